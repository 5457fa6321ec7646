"""What a customer has beside payments: standing, access and credits; and what the merchant's own people did about them.

Values only. The rules that make them are in `chargebacks`, `cancellations`, `credits` and `outages`.
"""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from handlers.customer import ChargeId, CustomerId, DisputeId, PriceId, Seconds, SubscriptionId

# credits (clauses 3 and 4) -----------------------------------------------------------------------------------------------


class LotKind(StrEnum):
    """Which rule of clause 3 or 4 a lot of credits lives by."""

    TRIAL = "trial"
    INCLUDED = "included"
    PURCHASED = "purchased"
    SERVICE = "service"


class EntryKind(StrEnum):
    """What moved credits. `granted` adds, the others take; an entry of the other sign takes an earlier one back."""

    GRANTED = "granted"
    CONSUMED = "consumed"
    EXPIRED = "expired"
    FORFEITED = "forfeited"
    TAKEN_BACK = "taken_back"


class Closing(msgspec.Struct, frozen=True, kw_only=True):
    """Why and when what is left of a lot goes: `expired` (3.3), `forfeited` (3.1) or `taken_back` (4.3, rule 7)."""

    kind: EntryKind
    at: Seconds
    cause: str
    """A sentence that names the object it rests on."""


class Lot(msgspec.Struct, frozen=True, kw_only=True):
    """One grant of credits as the rules want it. Whole credits; its id is the same wherever the same facts are judged.

    Ids: `trial:sub_…:START`, `included:in_…:LINE`, `purchased:in_…:LINE`, `purchased:cs_…:LINE`, `service:ACT`,
    `service:OUTAGE:sub_…`.
    """

    id: str
    customer: CustomerId
    kind: LotKind
    clause: str
    credits: int
    granted_at: Seconds
    cause: str
    ends_at: Seconds | None = None
    """When it ends as far as is known (a trial's end, a scheduled end of the subscription); None: no end in sight.
    From then on nothing can be consumed from it, whether or not its closing was posted."""
    closing: Closing | None = None


class LotBalance(msgspec.Struct, frozen=True, kw_only=True):
    """The sums of a lot's entries in the ledger, each as a positive number of credits."""

    granted: int = 0
    consumed: int = 0
    expired: int = 0
    forfeited: int = 0
    taken_back: int = 0

    @property
    def remaining(self) -> int:
        return self.granted - self.consumed - self.expired - self.forfeited - self.taken_back


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One posting to a lot. `amount` is signed: what it adds to what remains."""

    lot: str
    kind: EntryKind
    amount: int
    effective_at: Seconds
    clause: str
    cause: str


# standing (clause 7) and access (clause 1) -------------------------------------------------------------------------------


class Standing(StrEnum):
    """`good`: no hold. `flagged`: a chargeback is open. `suspended`: the policy, or an operator, says so."""

    GOOD = "good"
    FLAGGED = "flagged"
    SUSPENDED = "suspended"


OPERATOR_HOLD = "operator"
"""Subject of the hold that an operator put on a customer."""


KEPT_BY = " Kept by "
"""How the part of a hold's cause begins that names the operator who kept it."""


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """One reason why a customer's standing is not good: a dispute (`dp_…`/`du_…`), or `operator`."""

    subject: str
    since: Seconds
    status: str
    """The dispute's status; `operator` for a person's own hold."""
    suspends: bool
    cause: str
    charge: ChargeId | None = None
    due_by: Seconds | None = None

    @property
    def outward_cause(self) -> str:
        """The cause as the merchant's app may hear it: without what operators wrote, and their names."""
        return "An operator suspended it." if self.subject == OPERATOR_HOLD else self.cause.partition(KEPT_BY)[0]

    @property
    def lasting_cause(self) -> str:
        """The cause as it is written down for ever: with operators' names and moments, without their words, which may be erased."""
        kept_by = f"Suspended by |{KEPT_BY}"
        return re.sub(rf"((?:{kept_by}).*? at [\dT:-]+Z): .*", r"\1.", self.cause, flags=re.DOTALL)


class Way(StrEnum):
    """How a subscription stands towards its end."""

    RENEWS = "renews"
    ENDING = "ending"
    """Cancelled; serves until the end of what was paid, or until a scheduled date."""
    ENDING_BY_SCHEDULE = "ending_by_schedule"
    PAUSED = "paused"
    """Not an end: nothing is forfeited."""
    UNPAID = "unpaid"
    """`past_due`, `unpaid`, `incomplete`: not an end either."""
    ENDED = "ended"
    """Over, at the end of what was paid."""
    ENDED_AT_ONCE = "ended_at_once"
    """Over before the end of what was paid (clause 1.3)."""
    ENDED_BY_SCHEDULE = "ended_by_schedule"
    NEVER_BEGAN = "never_began"
    """`incomplete_expired`."""
    UNKNOWN = "unknown"
    """A status of Stripe's that this release does not know."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Until when one subscription serves, and why (clauses 1.2, 1.3 and 4.1)."""

    subscription: SubscriptionId
    status: str
    way: Way
    until: Seconds | None
    """End of the paid service period or of the trial, or an earlier end that is set or came; None where nothing was paid or tried."""
    cause: str
    requested_at: Seconds | None = None
    ends_at: Seconds | None = None
    """When it is set to end, as long as that has not come; later than `until`, it renews before."""
    ended_at: Seconds | None = None
    reason: str | None = None
    """Stripe's `cancellation_details.reason`."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the merchant's app may ask about one customer, except the balance of the lots."""

    customer: CustomerId
    standing: Standing = Standing.GOOD
    holds: tuple[Hold, ...] = ()
    access: tuple[Access, ...] = ()

    @property
    def access_until(self) -> Seconds | None:
        """The latest end among the subscriptions; None where none ever served."""
        return max((a.until for a in self.access if a.until is not None), default=None)


# what people did ---------------------------------------------------------------------------------------------------------


class ActKind(StrEnum):
    """An operator's act about one customer."""

    SUSPEND = "suspend"
    """A hold of the operator's own, until `lift` without a dispute."""
    LIFT = "lift"
    """Lifts the hold of a dispute (of the stage the operator saw), or the operator's own."""
    KEEP = "keep"
    """Keeps a dispute's hold, whatever becomes of the dispute, until it is lifted."""
    GRANT = "grant"
    """Service credits (4.1)."""
    EXTEND = "extend"
    """Access to a subscription until a later moment (4.1)."""


class Act(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an operator did, with name and reason. Append-only; a fact for the rules like Stripe's."""

    id: str
    kind: ActKind
    customer: CustomerId
    at: Seconds
    by: str
    reason: str
    case: str | None = None
    dispute: DisputeId | None = None
    status: str = ""
    """LIFT: the dispute's status that the operator saw."""
    subscription: SubscriptionId | None = None
    credits: int = 0
    until: Seconds | None = None
    """EXTEND: access until then. GRANT: the credits end then; None: never."""


class Outage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A declared outage (4.2), half-open [begins, ends), of some plans' prices or of all where `plans` is empty."""

    id: str
    begins: Seconds
    ends: Seconds
    plans: tuple[PriceId, ...] = ()
    declared_at: Seconds
    by: str
    reason: str


# what people hear --------------------------------------------------------------------------------------------------------


class Severity(StrEnum):
    """How soon a person has to look."""

    CRITICAL = "critical"
    WARNING = "warning"
    NOTE = "note"


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """Something a person should hear of, as long as its cause lasts. Equal causes are one alert. Ids and amounts only."""

    cause: str
    """What it is about, as a key: `kind:subject[:stage]`."""
    kind: str
    severity: Severity
    customer: CustomerId
    subject: str
    sentence: str
    """What happened, how much, why it matters, what Stripe or time will do by itself, and the command that acts."""
