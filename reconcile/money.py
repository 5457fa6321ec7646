"""Why an object's money is not the same in Stripe's balance transactions and in the books: every minor unit has a reason. Pure."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from handlers.court import when
from handlers.customer import AnyFact, Charge, Dispute, Refund, Seconds
from handlers.decisions import Money
from handlers.projection import moved
from reconcile.findings import Class, Finding, What
from reconcile.report import SHOWN, Day, MoneyRow, Other, Residual
from reconcile.windows import DAY, Window

BOOKED_AS: dict[str, str] = {
    # `type` of a balance transaction, or its `reporting_category` where the type says less (docs.stripe.com/reports/reporting-categories)
    "charge": "charge",
    "payment": "charge",
    "payment_reversal": "charge",
    "payment_failure_refund": "charge",
    "charge_failure": "charge",
    "partial_capture_reversal": "charge",
    "refund": "refund",
    "payment_refund": "refund",
    "refund_failure": "refund",
    "dispute": "dispute",
    "dispute_reversal": "dispute",
}
"""Which balance transactions are a payment's, by the kind of object that moved them. Every other is told as `Other`."""

ROUNDING = 1e-6
"""Stripe tells exchange rates to six places: so much of an amount may be lost in one, beside one minor unit."""

BOOKED_LATER = frozenset(
    (
        *(
            "ach_credit_transfer",
            "ach_debit",
            "acss_debit",
            "au_becs_debit",
            "bacs_debit",
            "boleto",
            "customer_balance",
        ),
        *("konbini", "multibanco", "nz_bank_account", "oxxo", "sepa_debit", "us_bank_account"),
    )
)
"""Ways of paying in which days pass between a charge's `created` and its booking."""
BOOKED_WITHIN = 14 * DAY

_SAYS = {
    What.MISSING_HERE: "the books lack this {kind}",
    What.MISSING_THERE: "Stripe does not know this {kind}",
    What.DIFFERENT: "the books have this {kind} otherwise than Stripe",
    What.EVENT_UNHEARD: "an event about this {kind} never arrived",
    What.FROM_THE_FUTURE: "the books' row of this {kind} claims to be newer than Stripe's clock",
}


class Booked(msgspec.Struct, frozen=True, kw_only=True):
    """One object whose money differs, in one currency. Minor units of `currency`; money that left is negative."""

    object: str
    kind: str
    currency: str
    booked_in: str | None
    """The currency of its balance transactions; None where there are none in the windows."""
    at_stripe_minor: int
    ours_minor: int
    """In `currency`: converted at Stripe's rate where the object is in another."""
    moves: int = 0
    last_at: Seconds = 0
    """When the last of its moves was booked."""
    native: float | None = None
    """The sum of its moves at their own rates, in the currency of the object; None where no rate was told."""
    rate: float | None = None
    """Mean rate of its moves."""
    fact: AnyFact | None = None
    """What the books know of it."""
    customer: str | None = None
    class_: str = "open"
    """`rounded`, `staged` or `open`."""
    staged: bool = False
    """This run read it from Stripe, and the books have it otherwise or not at all."""

    @property
    def residual_minor(self) -> int:
        return self.at_stripe_minor - self.ours_minor


class MoneyOfRun(msgspec.Struct, kw_only=True):
    """What a run says of the money, in the forms of the report."""

    rows: list[MoneyRow]
    other: list[Other]
    residuals: list[Residual]
    """Those without an explanation first, then the largest; SHOWN at most."""
    residuals_total: int
    days: list[Day]
    findings: list[Finding]
    """One for each object among `residuals` that nothing explains."""

    @property
    def to_read(self) -> list[str]:
        """Objects of which all balance transactions (`source=`) should be read: those in the windows leave them unexplained."""
        return [finding.object for finding in self.findings]


class Tally:
    """Sums and residuals of a run, as they come in; it keeps no more than `shown` objects."""

    def __init__(self, windows: Sequence[Window], drift: Mapping[str, What], *, shown: int = SHOWN) -> None:
        self._windows, self._drift, self._shown = windows, drift, shown
        self._sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])  # at Stripe, ours, explained
        self._largest: list[tuple[bool, int, str, str, Residual, str | None]] = []
        self.residuals_total = 0

    def add_sum(
        self, currency: str, kind: str, class_: str, at_stripe_minor: int, ours_minor: int, objects: int
    ) -> None:
        """Objects of one class in sum: `same`, or of a difference that explains itself, or `open`, which come one by one."""
        sums = self._sums[currency, kind]
        sums[0] += at_stripe_minor
        sums[1] += ours_minor
        if class_ in ("rounded", "staged"):
            sums[2] += at_stripe_minor - ours_minor
            self.residuals_total += objects

    def add(self, booked: Booked) -> None:
        """One object that differs. Its sums came with `add_sum`."""
        why, explained = reason(booked, self._windows, self._drift)
        if booked.class_ == "open":
            self.residuals_total += 1
            self._sums[booked.currency, booked.kind][2] += booked.residual_minor if explained else 0
        residual = Residual(
            currency=booked.currency,
            kind=booked.kind,
            object=booked.object,
            minor=booked.residual_minor,
            why=why,
            explained=explained,
        )
        entry = (not explained, abs(residual.minor), residual.object, residual.currency, residual, booked.customer)
        if len(self._largest) < self._shown:
            heapq.heappush(self._largest, entry)
        elif entry[:4] > self._largest[0][:4]:
            heapq.heapreplace(self._largest, entry)

    def close(self, other: list[Other], days: list[Day]) -> MoneyOfRun:
        """Everything that was added, as the report has it."""
        largest = sorted(self._largest, key=lambda entry: (not entry[0], -entry[1], entry[2:4]))
        findings: dict[str, Finding] = {}
        for unexplained, _, object_, _, residual, customer in largest:
            if unexplained:
                findings.setdefault(object_, _finding(residual, customer))
        return MoneyOfRun(
            rows=[
                MoneyRow(
                    currency=currency,
                    kind=kind,
                    at_stripe_minor=at_stripe,
                    ours_minor=ours,
                    residual_minor=at_stripe - ours,
                    explained_minor=explained,
                )
                for (currency, kind), (at_stripe, ours, explained) in sorted(self._sums.items())
            ],
            other=other,
            residuals=[entry[4] for entry in largest],
            residuals_total=self.residuals_total,
            days=days,
            findings=list(findings.values()),
        )


def _finding(residual: Residual, customer: str | None) -> Finding:
    return Finding(
        what=What.MONEY,
        class_=Class.ASK,
        object=residual.object,
        kind=residual.kind,
        sentence=f"{Money(residual.minor, residual.currency)} of {residual.object} cannot be explained: {residual.why}.",
        do=(
            f"Look at the balance transactions of {residual.object} at Stripe; "
            f"`finalsale explain {residual.object}` tells what the books know of it."
        ),
        customer=customer,
        amount=Money(residual.minor, residual.currency),
    )


def outside(windows: Sequence[Window], since: Seconds, until: Seconds) -> bool:
    """Whether any second of [since, until] lies in none of these disjoint, sorted windows."""
    for window in windows:
        if window.lo > since:
            break
        since = max(since, window.hi)
    return since <= until


def reason(booked: Booked, windows: Sequence[Window], drift: Mapping[str, What]) -> tuple[str, bool]:
    """Why one object's money differs, as part of a sentence, and whether that explains it (stripe.md 5 and 7).

    `drift` are the objects about which this run has a finding already.
    """
    fact = booked.fact
    if what := drift.get(booked.object):
        return f"{_SAYS.get(what, 'it was found wrong').format(kind=booked.kind)}: see {what} {booked.object}", True
    if booked.class_ == "rounded":
        return f"booked in {booked.currency} at Stripe's exchange rate, and rounded", True
    if booked.staged:
        return f"the books lack what this run read of this {booked.kind}", True
    if not isinstance(fact, Charge | Refund | Dispute):
        return f"Stripe booked it for {booked.object}, which the books do not know", False
    if booked.booked_in is None:
        return _never_booked(booked, fact, windows)
    if booked.booked_in != fact.currency and booked.native is None:
        return f"Stripe booked it in {booked.booked_in} and told no rate for the {fact.currency} of the books", False
    if explained := _explained(booked, fact, windows):
        return explained, True
    here = Money(booked.ours_minor, booked.currency)
    return f"Stripe booked {Money(booked.at_stripe_minor, booked.currency)} for it, and the books say {here}", False


def _never_booked(booked: Booked, fact: Charge | Refund | Dispute, windows: Sequence[Window]) -> tuple[str, bool]:
    """An object of the windows of which no balance transaction lies in them."""
    match fact:
        case Refund(status="pending" | "requires_action"):
            return f"the refund is still {fact.status}; Stripe books it when the money leaves", True
        case Charge() if fact.method in BOOKED_LATER and outside(windows, fact.created, fact.created + BOOKED_WITHIN):
            return f"paid by {fact.method}, which is booked days after it began: outside of what was read", True
        case _:
            here = Money(booked.ours_minor, booked.currency)
            return (
                f"the books say {here} since {when(fact.created)}, and Stripe booked nothing for it in the windows",
                False,
            )


def _explained(booked: Booked, fact: Charge | Refund | Dispute, windows: Sequence[Window]) -> str | None:
    """What a difference between booked moves and the books rests on; in the object's own currency, within rounding."""
    known = moved(fact)
    here = known.minor if known else 0
    at_rate = booked.booked_in != fact.currency and booked.native is not None and bool(booked.rate)
    there = booked.native if at_rate and booked.native is not None else float(booked.at_stripe_minor)
    slack = booked.moves / (booked.rate or 1.0) + abs(fact.amount_minor) * ROUNDING * booked.moves if at_rate else 0.0
    left = there - here
    if at_rate and abs(left) <= slack:
        return f"booked in {booked.currency} at several exchange rates"
    match fact:
        case Charge(status="pending") if abs(left - fact.amount_minor) <= slack:
            return f"the {fact.method or 'debit'} is booked, and on its way: it may still fail"
        case Dispute(withdrawn_minor=None, status="needs_response" | "under_review" | "lost") if (
            abs(left + fact.amount_minor) <= slack
        ):
            return "the books know the dispute, but no telling of what it withdrew in their currency"
        case _:
            pass
    halves = _halves(fact, here)
    if any(abs(there - half) <= slack for half in halves) and outside(
        windows, fact.created, max(fact.as_of, booked.last_at)
    ):
        return (
            f"its other booking lies outside of the windows that were read ({_state(fact)}, since {when(fact.created)})"
        )
    return None


def _halves(fact: Charge | Refund | Dispute, here: int) -> tuple[int, ...]:
    """What one of the two bookings that an object in this state has comes to, alone: the money out, or the money back."""
    amount = fact.amount_minor
    match fact:
        case Charge(
            status="succeeded", captured=True
        ):  # a part captured is booked as the whole, and the rest taken back
            return amount, here - amount
        case Charge(status="failed") | Refund(status="failed" | "canceled"):
            return amount, -amount
        case Dispute():
            return (amount, -amount) if here == 0 else (amount, 0)
        case _:
            return ()


def _state(fact: Charge | Refund | Dispute) -> str:
    return f"the {'charge' if isinstance(fact, Charge) else 'refund' if isinstance(fact, Refund) else 'dispute'} is {fact.status}"
