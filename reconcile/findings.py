"""What a nightly run can find wrong, in one form: which object, what differs, why, and who may put it right."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from handlers.decisions import Money


class Class(StrEnum):
    """Who heals: `auto` this run by itself, `ask` a person must act, `never` nobody: it is shown, and stays as it is."""

    AUTO = "auto"
    ASK = "ask"
    NEVER = "never"


class What(StrEnum):
    """The kinds of finding. Drift is about facts (Stripe against the books), the rest about what should have followed."""

    # drift: Stripe against the books
    MISSING_HERE = "missing_here"
    """Stripe has an object that the books do not."""
    MISSING_THERE = "missing_there"
    """The books have an object that Stripe does not know."""
    DIFFERENT = "different"
    """Both have it, and a field that matters is not the same."""
    EVENT_UNHEARD = "event_unheard"
    """Stripe lists an event that never arrived; what it tells is in the books all the same."""
    FROM_THE_FUTURE = "from_the_future"
    """A row claims to be newer than Stripe's clock: no telling can correct it."""
    # events that arrived and could not be worked on
    EVENT_DEAD = "event_dead"
    # the books against the rules
    COPY_UNJUDGED = "copy_unjudged"
    """Two payments for one period of one thing, and no decision about either."""
    NOBODYS = "nobodys"
    """An object that has waited for days for the one that says whose it is."""
    ACTION_IN_DOUBT = "action_in_doubt"
    REFUND_UNCONFIRMED = "refund_unconfirmed"
    REFUND_DIFFERS = "refund_differs"
    TRIAL_OVERDUE = "trial_overdue"
    """Credits of a trial that ended are still there (3.3)."""
    CREDITS_OVERDUE = "credits_overdue"
    """Included credits of a subscription that ended are still there (3.1)."""
    CHARGED_AFTER_END = "charged_after_end"
    """A charge after cancellation that no person has closed (1.2)."""
    OUT_OF_POLICY = "out_of_policy"
    """A refund that no decision of ours made and the policy does not know (2, 6)."""
    # money
    MONEY = "money"
    """A residual between Stripe's balance transactions and the books that nothing explains."""
    # the endpoint
    ENDPOINT = "endpoint"


DRIFT = frozenset({What.MISSING_HERE, What.MISSING_THERE, What.DIFFERENT, What.EVENT_UNHEARD, What.FROM_THE_FUTURE})


class Difference(msgspec.Struct, frozen=True):
    """One field that is not the same, both values as a person reads them (`-`: there is none)."""

    field: str
    here: str
    at_stripe: str


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that is wrong. `sentence` says it whole; `do` says what this run does about it, or a person should."""

    what: What
    class_: Class = msgspec.field(name="class")
    object: str
    """The id it is about: Stripe's object, our action, a currency for money, the endpoint."""
    kind: str
    """Of the object: `charge`, `refund`, `action`, `lot`, …"""
    sentence: str
    do: str
    customer: str | None = None
    clause: str | None = None
    amount: Money | None = None
    cause: str = ""
    """Why it is so, as far as known: `charge.refunded evt_1 never arrived`."""
    differences: tuple[Difference, ...] = ()

    @property
    def id(self) -> str:
        """Unique within a run."""
        return f"{self.what}:{self.object}"


class Consequence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the rules would newly say once the findings are healed: a decision, a standing, or credits."""

    about: str
    """`decision`, `standing` or `credits`."""
    class_: Class = msgspec.field(name="class")
    """auto: it happens by itself; ask: a person decides; never: nothing follows, it is only said."""
    customer: str
    subject: str
    clause: str
    was: str
    becomes: str
    rule: str = ""
    verdict: str = ""
    amount: Money | None = None
    original: str | None = None
    reason: str = ""
