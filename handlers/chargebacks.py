"""Clause 7: what the disputes of one customer, and what people decided about them, make of the customer's standing. Pure.

    needs_response, under_review, appeal_*, unknown   a hold
    lost                                              a hold, until an operator lifts or keeps it
    won, warning_closed, warning_*, prevented         no hold, unless an operator keeps one

Only a dispute's status counts, never the event that told of it: the standing is the set of holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import Enum

import msgspec

from handlers.account import KEPT_BY, OPERATOR_HOLD, Act, ActKind, Alert, Hold, Severity, Standing
from handlers.court import when
from handlers.customer import (
    Charge,
    ChargeId,
    CustomerFile,
    CustomerId,
    Dispute,
    EarlyFraudWarning,
    Refund,
    Seconds,
    at,
)
from handlers.decisions import Decision, Evidence, Money, Verdict
from handlers.terms import Policy, Terms

CLAUSE = "7"
INQUIRIES = ("warning_needs_response", "warning_under_review", "warning_closed")
AWAITED = ("needs_response", "warning_needs_response", "appeal_needs_response")
"""Statuses in which Stripe waits for evidence."""
CLOSED = ("won", "lost", "prevented", "warning_closed")
KNOWN = frozenset([*INQUIRIES, *AWAITED, *CLOSED, "under_review", "appeal_under_review"])

BY_ITSELF = {
    None: "Stripe submits no answer of its own",
    "manual": "Stripe submits no answer of its own",
    "prefer_manual": "where no evidence was given, Stripe may answer by itself (Smart Disputes)",
    "prefer_smart_disputes": "Stripe may answer by itself (Smart Disputes), before what was given by hand",
    "smart_disputes": "Stripe may answer by itself (Smart Disputes) and leaves out what was given by hand",
}
"""What Stripe does at the deadline by `intended_submission_method`. https://docs.stripe.com/api/disputes/object"""


class Disputes(msgspec.Struct, frozen=True, kw_only=True):
    """What clause 7 says about one customer."""

    standing: Standing = Standing.GOOD
    holds: tuple[Hold, ...] = ()
    """Ordered by `since`, then subject."""
    decisions: dict[str, Decision] = {}
    alerts: dict[str, Alert] = {}
    judge_again_at: datetime | None = None
    """When the next stage before a deadline begins, or the deadline itself."""


class Stage(Enum):
    """As what a dispute holds its customer. An operator's lift covers the stage that was seen, and no later one."""

    OPEN = "open"
    APPEAL = "appeal"
    LOST = "lost"


def stage_of(status: str) -> Stage | None:
    """The stage of a dispute's status; None where it holds nothing. A status we do not know holds."""
    if status in INQUIRIES or status in ("won", "prevented"):
        return None
    if status == "lost":
        return Stage.LOST
    return Stage.APPEAL if status.startswith("appeal_") else Stage.OPEN


def judge_disputes(
    file: CustomerFile, customer: CustomerId, policy: Policy, now: datetime, acts: Iterable[Act], *, test_clocks: bool
) -> Disputes:
    """Standing, holds, decisions and alerts from every dispute and early fraud warning in one customer's file (clause 7).

    The terms are those in force when the disputed payment was made. `now` moves nothing but the stages before a deadline.
    """
    told = sorted(acts, key=lambda act: (act.at, act.id))
    real = test_clocks or not _on_test_clock(file, customer)
    about = _About(file)
    cases = [_Case(d, customer, about, policy, told) for _, d in sorted(file.disputes.items()) if real]
    notes = [_Warning(w, customer, about, policy) for _, w in sorted(file.warnings.items()) if real]
    holds = [hold for hold in (_operators(told), *(case.hold() for case in cases)) if hold is not None]
    alerts = [alert for case in cases for alert in case.alerts(now)] + [a for note in notes for a in note.alerts()]
    wake_at = [moment for case in cases for moment in case.turning_points() if moment > now]
    if any(hold.suspends for hold in holds):
        standing = Standing.SUSPENDED
    else:
        standing = Standing.FLAGGED if holds else Standing.GOOD
    return Disputes(
        standing=standing,
        holds=tuple(sorted(holds, key=lambda hold: (hold.since, hold.subject))),
        decisions={d.subject: d for d in [*(case.decision() for case in cases), *(note.decision() for note in notes)]},
        alerts={alert.cause: alert for alert in alerts},
        judge_again_at=min(wake_at, default=None),
    )


def _on_test_clock(file: CustomerFile, customer: CustomerId) -> bool:
    """Whether the customer is a rehearsal's (reading 28). A clock is a customer's: any object on it proves it."""
    owner = file.customers.get(customer)
    clocked = [o.customer for o in file.subscriptions.values() if o.test_clock]
    clocked += [o.customer for o in file.invoices.values() if o.test_clock]
    return (owner is not None and owner.test_clock) or customer in clocked


def _operators(acts: list[Act]) -> Hold | None:
    """The hold that an operator put on the customer, unless it was lifted since."""
    hold: Hold | None = None
    for act in acts:
        if act.kind is ActKind.SUSPEND:
            hold = Hold(
                subject=OPERATOR_HOLD,
                since=hold.since if hold else act.at,
                status=OPERATOR_HOLD,
                suspends=True,
                cause=f"Suspended by {act.by} at {when(act.at)}: {act.reason}",
            )
        elif act.kind is ActKind.LIFT and act.dispute is None:
            hold = None
    return hold


class _About:
    """What the file knows about a disputed charge: the charge itself, its refunds and all its disputes."""

    def __init__(self, file: CustomerFile) -> None:
        self.file = file
        self.by_intent = {c.payment_intent: c for _, c in sorted(file.charges.items()) if c.status == "succeeded"}

    def charge(self, about: Dispute | EarlyFraudWarning | Refund) -> Charge | None:
        """The charge it names, or the succeeded one of the payment intent it names."""
        named = self.file.charges.get(about.charge or "")
        return named or (self.by_intent.get(about.payment_intent) if about.payment_intent else None)

    def refunds(self, charge: Charge | None) -> list[Refund]:
        """Refunds of the charge, earliest first."""
        theirs = [r for r in self.file.refunds.values() if charge is not None and self.charge(r) is charge]
        return sorted(theirs, key=lambda refund: (refund.created, refund.id))

    def others(self, dispute: Dispute, charge: Charge | None) -> list[Dispute]:
        """Further disputes of the same charge, by id."""
        same = [d for d in self.file.disputes.values() if charge is not None and self.charge(d) is charge]
        return sorted((d for d in same if d.id != dispute.id), key=lambda d: d.id)


def _terms(policy: Policy, customer: CustomerId, paid_at: Seconds) -> Terms:
    return policy.terms_for(customer, paid_at) or policy.earliest()


def _agreed(terms: Terms) -> str:
    return f" (agreement: {terms.agreement})" if terms.agreement else ""


class _Case:
    """One dispute with everything that bears on it."""

    def __init__(self, dispute: Dispute, customer: CustomerId, about: _About, policy: Policy, acts: list[Act]) -> None:
        self.dispute, self.customer = dispute, customer
        self.status, self.stage = dispute.status, stage_of(dispute.status)
        self.charge = about.charge(dispute)
        self.refunds, self.others = about.refunds(self.charge), about.others(dispute, self.charge)
        self.terms = _terms(policy, customer, self.charge.created if self.charge else dispute.created)
        self.amount = Money(dispute.amount_minor, dispute.currency)
        self.kept: Act | None = None
        self.lifted: set[Stage | None] = set()
        for act in acts:
            if act.dispute != dispute.id:
                continue
            if act.kind is ActKind.KEEP:
                self.kept, self.lifted = act, set()
            elif act.kind is ActKind.LIFT:
                self.kept = None
                self.lifted.add(stage_of(act.status) if act.status else None)

    # what it does to the customer

    @property
    def holds(self) -> bool:
        return self.kept is not None or (self.stage is not None and self.stage not in self.lifted)

    @property
    def suspends(self) -> bool:
        return self.terms.chargebacks.on_chargeback == "suspend"

    @property
    def undecided(self) -> bool:
        """Lost, and no operator said what becomes of the hold."""
        return self.stage is Stage.LOST and self.kept is None and Stage.LOST not in self.lifted

    @property
    def unknown(self) -> bool:
        return self.status not in KNOWN

    def hold(self) -> Hold | None:
        """Its hold on the customer, if it has one."""
        if not self.holds:
            return None
        kept = f"{KEPT_BY}{self.kept.by} at {when(self.kept.at)}: {self.kept.reason}" if self.kept else ""
        return Hold(
            subject=self.dispute.id,
            since=self.dispute.created,
            status=self.status,
            suspends=self.suspends,
            cause=f"{self._what()}{kept}",
            charge=ChargeId(self.charge.id) if self.charge else self.dispute.charge,
            due_by=self.dispute.due_by or None,
        )

    # what is said about it

    @property
    def rule(self) -> str:
        if self.status == "prevented":
            return "prevented"
        return "inquiry" if self.status in INQUIRIES else "chargeback"

    def decision(self) -> Decision:
        """Review while a person must answer, or decide about the hold; none while the bank decides and when it is over."""
        waits = self.status in AWAITED or self.undecided or self.unknown
        said = [self._what(), self._prospect(), self._standing(), *(self._refund(refund) for refund in self.refunds)]
        return Decision(
            subject=self.dispute.id,
            customer=self.customer,
            clause=CLAUSE,
            rule=self.rule,
            verdict=Verdict.REVIEW if waits else Verdict.NONE,
            policy_version=self.terms.version,
            reason=" ".join(filter(None, said)) + _agreed(self.terms),
            evidence=tuple(self._evidence()),
        )

    def _what(self) -> str:
        noun = {"prevented": "The dispute", "inquiry": "The inquiry", "chargeback": "The chargeback"}[self.rule]
        charge = self.charge.id if self.charge else self.dispute.charge or self.dispute.payment_intent
        on = f" on {charge}" if charge else ""
        why, status = self.dispute.reason or "no reason told", self.status or "without a status"
        more = ""
        if self.charge and self.charge.currency == self.dispute.currency:
            paid = Money(self.charge.captured_minor, self.charge.currency)
            more = f"; only {paid} were paid" if self.dispute.amount_minor > paid.minor else ""
        return f"{noun} {self.dispute.id} of {self.amount}{on} ({why}) is {status}{more}."

    def _prospect(self) -> str:
        """Who acts next, until when, and what happens without anybody acting."""
        match self.status:
            case "under_review" | "appeal_under_review":
                return "The bank decides."
            case "warning_under_review":
                return "The bank decides whether it becomes a chargeback."
            case "won":
                return "It was decided for us."
            case "warning_closed":
                return "It was closed without a chargeback."
            case "prevented":
                return "The network gave the money back before a chargeback; it is not refunded again."
            case "lost":
                return "The bank gave the money back; it is not refunded again."
        return " ".join(filter(None, [self._deadline(), self._if_unanswered()]))

    def _deadline(self) -> str:
        unknown = "This release does not know the status." if self.unknown else ""
        if self.dispute.evidence_submitted:
            return f"{unknown} Evidence was submitted.".strip()
        if not self.dispute.due_by:
            return unknown or "It cannot be challenged."
        method = self.dispute.intended_submission_method
        by_itself = BY_ITSELF.get(method, f"what Stripe then does ({method}) is not known to this release")
        return f"{unknown} Evidence is due by {when(self.dispute.due_by)}; {by_itself}.".strip()

    def _if_unanswered(self) -> str:
        if self.dispute.evidence_submitted or not self.dispute.due_by:
            return ""
        return {
            "needs_response": "If nobody answers, it is lost.",
            "appeal_needs_response": "If nobody answers, the appeal is lost.",
            "warning_needs_response": "If nobody answers, it may become a chargeback.",
        }.get(self.status, "")

    def _standing(self) -> str:
        becomes = "suspended" if self.suspends else "flagged"
        if self.kept:
            return f"An operator keeps its hold: the customer stays {becomes} until it is lifted."
        if self.holds:
            until = "until an operator lifts or keeps the hold" if self.stage is Stage.LOST else "as long as it is open"
            return f"The customer is {becomes} {until}."
        return "An operator lifted its hold." if self.stage is not None else "It puts no hold on the customer."

    def _refund(self, refund: Refund) -> str:
        """Refund and chargeback never both: where a refund of the charge stands, and what is owed."""
        money, whose = Money(refund.amount_minor, refund.currency), "Our refund" if refund.action else "A refund"
        if refund.status == "succeeded":
            twice = "" if self.status in CLOSED else ": the evidence must say so, for it must not go back twice"
            more = ": more than was paid went back" if self.status == "lost" and self._more_than_paid(refund) else twice
            return f"{whose} {refund.id} gave back {money} of this charge{more}."
        if refund.live:
            waits = "" if self.status in CLOSED else "; it may fail because of the dispute, and none is sent besides it"
            return f"{whose} {refund.id} of {money} of this charge is {refund.status}{waits}."
        if not refund.action:
            return f"{whose} {refund.id} of {money} of this charge {_ended(refund)}: nothing of it went back."
        part = self.dispute.amount_minor < refund.amount_minor and self.dispute.currency == refund.currency
        gave = (
            f"the dispute gave {self.amount} of it back, for which nothing is owed"
            if part
            else "the dispute gave the money back, nothing is owed for it"
        )
        owed = {
            **dict.fromkeys(["won", "warning_closed"], "the duplicate is owed again"),
            **dict.fromkeys(["lost", "prevented"], gave),
            **dict.fromkeys(INQUIRIES[:2], "the duplicate is owed again only if the inquiry closes"),
        }.get(self.status, "the duplicate is owed again only if the dispute is won")
        return f"{whose} {refund.id} of {money} of this charge {_ended(refund)}: {owed}."

    def _more_than_paid(self, refund: Refund) -> bool:
        """Whether what the dispute withdrew and a refund together are more than the charge was; False where it is not known."""
        dispute, charge = self.dispute, self.charge
        if charge is None or not charge.currency == dispute.currency == refund.currency:
            return False
        return (dispute.withdrawn_minor or 0) + refund.amount_minor > max(charge.captured_minor, dispute.amount_minor)

    def _evidence(self) -> Iterable[Evidence]:
        """Payment beside dispute, as the columns `original` and `duplicate`."""
        dispute, charge = self.dispute, self.charge
        named = charge.id if charge else dispute.charge or "not known"
        yield Evidence("charge and dispute", named, dispute.id)
        yield Evidence("paid and disputed at", when(charge.created) if charge else "not known", when(dispute.created))
        paid = str(Money(charge.captured_minor, charge.currency)) if charge else "not known"
        yield Evidence("amount", paid, str(self.amount))
        if dispute.withdrawn_minor is not None:
            yield Evidence("withdrawn by Stripe, fees aside", "", str(Money(dispute.withdrawn_minor, dispute.currency)))
        for refund in self.refunds:
            what = f"refund {refund.id} {'of ours' if refund.action else 'by hand'}"
            yield Evidence(what, str(Money(refund.amount_minor, refund.currency)), refund.status)
        for other in self.others:
            what = f"further dispute {other.id} of the charge"
            yield Evidence(what, str(Money(other.amount_minor, other.currency)), other.status)

    # what people hear

    def alerts(self, now: datetime) -> list[Alert]:
        """What a person should hear of now: the dispute while it waits for somebody, and the nearest deadline stage."""
        core = f"{self._what()} {self._prospect()}"
        show = f"`finalsale chargebacks show {self.dispute.id}` drafts the evidence."
        found = []
        if self.status == "warning_needs_response":
            found.append(self._alert("inquiry", Severity.WARNING, f"{core} {show}"))
        elif self.status in AWAITED:
            found.append(self._alert("chargeback", Severity.CRITICAL, f"{core} {self._standing()} {show}"))
        if self.unknown:
            look = f"`finalsale chargebacks show {self.dispute.id}` shows it."
            found.append(self._alert("unknown_status", Severity.WARNING, f"{core} {self._standing()} {look}"))
        if self.undecided:
            lift = f"finalsale customers lift {self.customer} --dispute {self.dispute.id} --by NAME --reason …"
            say = f"{core} {self._standing()} `{lift}` lifts it, `{lift.replace(' lift ', ' keep ', 1)}` keeps it."
            found.append(self._alert("chargeback_lost", Severity.WARNING, say))
        if (step := self._nearest(now)) is not None:
            severity = Severity.CRITICAL if step <= 86400 else Severity.WARNING
            found.append(self._alert("deadline", severity, f"{core} {show}", stage=_stage_name(step)))
        return found

    def _alert(self, kind: str, severity: Severity, sentence: str, stage: str = "") -> Alert:
        return Alert(
            cause=":".join(filter(None, [kind, self.dispute.id, stage])),
            kind=kind,
            severity=severity,
            customer=self.customer,
            subject=self.dispute.id,
            sentence=sentence,
        )

    def _due(self) -> datetime | None:
        """The moment until which somebody must answer; None where nobody must, or somebody did."""
        waits = (self.status in AWAITED or self.unknown) and not self.dispute.evidence_submitted
        return at(self.dispute.due_by) if waits and self.dispute.due_by else None

    def _nearest(self, now: datetime) -> int | None:
        """The last stage before the deadline that has begun, in seconds before it; None before the first and after it."""
        due = self._due()
        if due is None or now >= due:
            return None
        begun = [s for s in self.terms.chargebacks.deadline_alerts if due - timedelta(seconds=s) <= now]
        return min(begun, default=None)

    def turning_points(self) -> list[datetime]:
        """The moments at which time alone changes what is said: every stage before the deadline, and the deadline."""
        due = self._due()
        steps = (0, *self.terms.chargebacks.deadline_alerts)
        return [] if due is None else [due - timedelta(seconds=s) for s in steps]


def _ended(refund: Refund) -> str:
    return "was canceled" if refund.status == "canceled" else "failed"


def _stage_name(seconds: int) -> str:
    """`7d`, `3d`, `24h`: days where there is more than one, otherwise the largest unit that fits whole."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % length == 0 and seconds // length > (unit == "d"):
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


class _Warning:
    """An early fraud warning: told, and nothing else. It moves neither money nor standing (settled reading 8)."""

    def __init__(self, warning: EarlyFraudWarning, customer: CustomerId, about: _About, policy: Policy) -> None:
        self.warning, self.customer, self.charge = warning, customer, about.charge(warning)
        self.terms = _terms(policy, customer, self.charge.created if self.charge else warning.created)

    def decision(self) -> Decision:
        """Never more than a note."""
        named = self.charge.id if self.charge else self.warning.charge or "not known"
        paid = str(Money(self.charge.captured_minor, self.charge.currency)) if self.charge else "not known"
        return Decision(
            subject=self.warning.id,
            customer=self.customer,
            clause=CLAUSE,
            rule="early_fraud_warning",
            verdict=Verdict.NONE,
            policy_version=self.terms.version,
            reason=f"{self._what()} It puts no hold on the customer, and nothing is refunded for it.{_agreed(self.terms)}",
            evidence=(
                Evidence("charge and warning", named, self.warning.id),
                Evidence("amount", paid, self.warning.fraud_type or "no type told"),
            ),
        )

    def _what(self) -> str:
        about = self.charge.id if self.charge else self.warning.charge or self.warning.payment_intent or "a charge"
        size = f" of {Money(self.charge.captured_minor, self.charge.currency)}" if self.charge else ""
        why = self.warning.fraud_type or "no type told"
        return f"The card network warned at {when(self.warning.created)} that {about}{size} may be fraud ({why})."

    def alerts(self) -> list[Alert]:
        """A note, as long as Stripe calls the warning actionable."""
        if not self.warning.actionable:
            return []
        explain = f" `finalsale explain {self.charge.id}` shows the payment." if self.charge else ""
        return [
            Alert(
                cause=f"early_fraud_warning:{self.warning.id}",
                kind="early_fraud_warning",
                severity=Severity.NOTE,
                customer=self.customer,
                subject=self.warning.id,
                sentence=f"{self._what()} A chargeback may follow; it puts no hold on the customer.{explain}",
            )
        ]
