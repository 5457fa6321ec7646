"""Clauses 2 and 6: refunds that somebody made at Stripe. Was it a duplicate's money (4.3), or does no clause allow it? Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

import msgspec

from handlers.account import Alert, Severity
from handlers.court import CLAUSE, when
from handlers.customer import (
    Charge,
    ChargeId,
    CustomerFile,
    CustomerId,
    Fact,
    Invoice,
    Line,
    Refund,
    Seconds,
    Subscription,
    SubscriptionItem,
    SubscriptionItemId,
)
from handlers.decisions import Acted, ActionKind, Decision, Evidence, Judgement, Money, Verdict
from handlers.duplicates import judge
from handlers.payments import Payment, payments_of, service_lines
from handlers.terms import Policy

LAPSED = "expired_uncaptured_charge"
"""Stripe's own reason for letting an authorisation go: no money had moved."""


class ByHand(msgspec.Struct, frozen=True, kw_only=True):
    """What the refunds that nobody here decided come to."""

    decisions: dict[str, Decision] = {}
    """By refund."""
    alerts: dict[str, Alert] = {}
    returned: frozenset[ChargeId] = frozenset()
    """Charges whose duplicate part was given back, by us or, within the policy, by hand."""
    wanted: frozenset[tuple[str, str]] = frozenset()
    """As in `Judgement`: what would have decided it, had it been known."""


class _Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a refund by hand was of, had we been asked right before it."""

    verdict: Verdict
    decision: Decision | None = None
    other: ChargeId | None = None
    """The copy that stays."""
    part_minor: int = 0
    """How much of the charge was a duplicate."""


def refunds_by_hand(
    file: CustomerFile,
    policy: Policy,
    now: datetime,
    is_ours: Callable[[Refund], bool],
    *,
    acted: Iterable[Acted],
    test_clocks: bool,
) -> ByHand:
    """Clauses 2 and 6 with settled reading 9, over one person's whole file. Amounts in minor units.

    Each refund is judged by the file as it stood right before it: what would 4.3 have said of that charge then? So what
    comes later (a renewal, a cancellation, a dispute, another refund) does not change what an earlier refund was.
    """
    live = [refund for refund in file.refunds.values() if refund.live]
    own = {refund.id for refund in live if is_ours(msgspec.structs.replace(refund, charge=_charge_of(file, refund)))}
    ours = {id_ for refund in live if refund.id in own and (id_ := _charge_of(file, refund))}
    foreign = [refund for refund in live if refund.reason != LAPSED and refund.id not in own]
    if not foreign:
        return ByHand(returned=frozenset(ours))
    payments = {ChargeId(payment.id): payment for payment in payments_of(file, frozenset(), test_clocks=test_clocks)}
    by_charge: dict[ChargeId, list[Refund]] = defaultdict(list)
    for refund in sorted(foreign, key=_order):
        of = _charge_of(file, refund)
        if of in payments:
            by_charge[of].append(refund)
    for of, theirs in by_charge.items():
        network = _by_the_network(file, payments[of].charge, theirs)
        by_charge[of] = [refund for refund in theirs if refund.id not in network]
    decisions: dict[str, Decision] = {}
    alerts: dict[str, Alert] = {}
    wanted: set[tuple[str, str]] = set()
    returned = set(ours)
    begun = tuple(acted)
    for charge_id, refunds in sorted(by_charge.items()):
        payment, spent_minor = payments[charge_id], 0
        others = [act for act in begun if act.subject != charge_id]
        for refund in refunds:
            before = _right_before(file, payment, refund, refunds)
            judged = judge(before, policy, now, acted=others, test_clocks=test_clocks)
            found = _found(judged, charge_id, _untouched(before))
            if found.verdict is Verdict.REVIEW:
                wanted |= judged.wanted
            decision, alert = _decision(payment, refund, found, spent_minor, policy)
            decisions[refund.id] = decision
            if alert is not None:
                alerts[alert.cause] = alert
            spent_minor += refund.amount_minor
            if found.verdict is Verdict.REFUND and spent_minor >= found.part_minor:
                returned.add(charge_id)
    return ByHand(decisions=decisions, alerts=alerts, returned=frozenset(returned), wanted=frozenset(wanted))


def _order(refund: Refund) -> tuple[Seconds, str]:
    return refund.created, refund.id


def _charge_of(file: CustomerFile, refund: Refund) -> ChargeId | None:
    """The charge that it gave back, also where only the payment intent is named; None while that is not known."""
    if refund.charge is not None:
        return refund.charge
    paid = [
        c.id for c in file.charges.values() if c.payment_intent == refund.payment_intent and c.status == "succeeded"
    ]
    return ChargeId(min(paid)) if paid and refund.payment_intent is not None else None


def _by_the_network(file: CustomerFile, charge: Charge, refunds: list[Refund]) -> set[str]:
    """Those that the network made to prevent a chargeback (reading 8): one for each such dispute, the nearest in time."""
    prevented = [
        d
        for d in file.disputes.values()
        if d.status == "prevented"
        and (d.charge == charge.id or (charge.payment_intent and d.payment_intent == charge.payment_intent))
    ]
    found: set[str] = set()
    for dispute in sorted(prevented, key=lambda d: (d.created, d.id)):
        alike = [r for r in refunds if r.id not in found and r.amount_minor == dispute.amount_minor]
        if alike:
            found.add(min(alike, key=lambda r: (abs(r.created - dispute.created), r.id)).id)
    return found


# the file as it stood ----------------------------------------------------------------------------------------------------


def _right_before(file: CustomerFile, payment: Payment, refund: Refund, by_hand: list[Refund]) -> CustomerFile:
    """The file as it stood right before a refund, and without anything that was given back of that charge by hand."""
    moment = refund.created
    given_back = {r.id for r in by_hand}
    dropped = [r for r in file.refunds.values() if r.id in given_back or _order(r) > _order(refund)]
    gone = {r.id for r in dropped}
    invoices = [i for i in file.invoices.values() if i.created <= moment]
    kept: list[Fact] = []
    for fact in _facts(file):
        if fact.id in gone or (fact.id != payment.id and getattr(fact, "created", 0) > moment):
            continue
        if isinstance(fact, Charge):
            fact = _charge_before(file, fact, dropped, moment)
        elif isinstance(fact, Invoice) and fact.credit_notes_minor and fact.id in payment.invoice_ids:
            # a refund by credit note stands in both books
            noted_minor = fact.credit_notes_minor - sum(r.amount_minor for r in by_hand)
            fact = msgspec.structs.replace(fact, credit_notes_minor=max(noted_minor, 0))
        elif isinstance(fact, Subscription):
            own = payment.invoice is not None and payment.invoice.subscription == fact.id
            fact = _subscription_before(file, fact, invoices, moment, own=own)
        kept.append(fact)
    return CustomerFile(kept)


def _facts(file: CustomerFile) -> Iterator[Fact]:
    for shelf in CustomerFile.__slots__:
        yield from getattr(file, shelf).values()


def _charge_before(file: CustomerFile, charge: Charge, dropped: list[Refund], moment: Seconds) -> Charge:
    """A charge without the refunds and disputes that came later."""
    told_minor = sum(
        r.amount_minor
        for r in dropped
        if r.live and r.created <= charge.as_of and _charge_of(file, r) == charge.id  # else its figure holds none of it
    )
    disputes = [
        d.created
        for d in file.disputes.values()
        if d.charge == charge.id or (charge.payment_intent and d.payment_intent == charge.payment_intent)
    ]
    return msgspec.structs.replace(
        charge,
        refunded_minor=max(charge.refunded_minor - told_minor, 0),
        disputed=charge.disputed and (not disputes or min(disputes) <= moment),
    )


def _subscription_before(
    file: CustomerFile, subscription: Subscription, invoices: list[Invoice], moment: Seconds, *, own: bool
) -> Subscription:
    """A subscription whose later end has not come, with what it was paid for by then.

    The refunded charge's own subscription is often ended together with the refund, by the same hand: that end does not
    count, unless the other purchase came after it (reading 5).
    """
    since = moment
    if own:
        begun = [s.created for s in file.subscriptions.values() if s.id != subscription.id and s.created <= moment]
        since = min(max(begun, default=moment), moment)
    if subscription.ended_at is not None and subscription.ended_at > since:
        subscription = msgspec.structs.replace(
            subscription, status="active", ended_at=None, cancel_at=subscription.cancel_at or subscription.ended_at
        )
    if subscription.canceled_at is not None and subscription.canceled_at > since:
        subscription = msgspec.structs.replace(
            subscription, canceled_at=None, cancel_at=None, cancel_at_period_end=False, cancellation_reason=None
        )
    paid = [i for i in invoices if i.subscription == subscription.id and i.status == "paid" and i.lines_complete]
    last = max(paid, key=lambda i: (i.created, i.id), default=None)
    if last is None or subscription.as_of <= moment:
        return subscription
    bought = {line.subscription_item: line for line in service_lines(file, last)}
    return msgspec.structs.replace(subscription, items=tuple(_as_bought(i, bought) for i in subscription.items))


def _as_bought(item: SubscriptionItem, bought: dict[SubscriptionItemId | None, Line]) -> SubscriptionItem:
    line = bought.get(item.id)
    if line is None or line.price is None:
        return item
    return msgspec.structs.replace(
        item, price=line.price, product=line.product, quantity=line.quantity or item.quantity
    )


# what it was -------------------------------------------------------------------------------------------------------------


def _untouched(file: CustomerFile) -> frozenset[str]:
    """Payments of which nothing has gone back."""
    payments = payments_of(file, frozenset(), test_clocks=True)
    return frozenset(payment.id for payment in payments if payment.left_minor == payment.charge.captured_minor)


def _found(judged: Judgement, charge_id: ChargeId, untouched: frozenset[str]) -> _Finding:
    """What 4.3 said of the charge itself, or of a copy of it: one of the two goes back, whichever a person chose.

    A review without an amount is about money only while nothing has gone back; later it is about ending a subscription.
    """
    own = judged.decisions.get(charge_id)
    ours = [own] if own is not None else []
    copies = [d for _, d in sorted(judged.decisions.items()) if d.original == charge_id and d.duplicate]
    for decision in (*ours, *copies):
        if decision.verdict is Verdict.REFUND and decision.amount is not None:
            other = decision.original if decision is own else decision.duplicate
            return _Finding(verdict=Verdict.REFUND, decision=decision, other=other, part_minor=decision.amount.minor)
    listing = [d for _, d in sorted(judged.decisions.items()) if _lists(d, charge_id)]
    for decision in (*ours, *copies, *listing):
        if decision.verdict is Verdict.REVIEW and (decision.amount is not None or decision.duplicate in untouched):
            other = decision.duplicate if decision.original == charge_id else decision.original
            return _Finding(verdict=Verdict.REVIEW, decision=decision, other=other)
    return _Finding(verdict=Verdict.DENY)


def _lists(decision: Decision, charge_id: ChargeId) -> bool:
    return any(step.kind is ActionKind.REFUND and step.subject == charge_id for step in decision.prepared)


def _decision(
    payment: Payment, refund: Refund, found: _Finding, spent_minor: int, policy: Policy
) -> tuple[Decision, Alert | None]:
    """The decision about one refund, of whose charge `spent_minor` had gone back by hand before."""
    charge, amount = payment.charge, Money(refund.amount_minor, refund.currency)
    customer = charge.customer or CustomerId(charge.id)
    terms = policy.terms_for(charge.customer, payment.paid_at) or policy.earliest()
    story = f"{refund.id} gave {amount} of {charge.id} back on {when(refund.created)}; it was made at Stripe, not by finalsale."
    clause, rule, verdict, alert = CLAUSE, "refunded_by_hand", found.verdict, None
    excess_minor = spent_minor + refund.amount_minor - max(found.part_minor, spent_minor)
    part = Money(found.part_minor, charge.currency)
    against: Money | None = amount
    if found.verdict is Verdict.REFUND and excess_minor <= 0:
        verdict, against = Verdict.NONE, None
        ending = f"It was one of two payments for the same thing ({found.other} stays), and {part} of it may go back: within 4.3."
    elif found.verdict is Verdict.REVIEW:
        ending = f"Whether it may go back as a duplicate beside {found.other or 'what was paid outside Stripe'} was in doubt."
        alert = Severity.WARNING
    else:
        clause, rule, verdict, alert = "2, 6", "out_of_policy_refund", Verdict.DENY, Severity.CRITICAL
        ending = "The payment is no duplicate, all sales are final, and no clause allows it."
        if found.verdict is Verdict.REFUND:
            against = Money(excess_minor, refund.currency)
            ending = f"Only {part} of it were a duplicate of {found.other}; {against} more went back, which no clause allows."
    decision = Decision(
        subject=refund.id,
        customer=customer,
        clause=clause,
        rule=rule,
        verdict=verdict,
        policy_version=terms.version,
        reason=f"{story} {ending}",
        amount=against,
        original=found.other,
        duplicate=ChargeId(charge.id),
        evidence=tuple(_evidence(payment, refund, found)),
    )
    if alert is None:
        return decision, None
    sentence = f"{story} {ending} Stripe cannot call it back; see `finalsale explain {charge.id}`."
    cause = f"{rule}:{refund.id}"
    return decision, Alert(
        cause=cause, kind=rule, severity=alert, customer=customer, subject=refund.id, sentence=sentence
    )


def _evidence(payment: Payment, refund: Refund, found: _Finding) -> Iterator[Evidence]:
    paid = Money(payment.charge.captured_minor, payment.currency)
    yield Evidence("paid, and given back", str(paid), str(Money(refund.amount_minor, refund.currency)))
    yield Evidence("paid, and given back on", when(payment.paid_at), when(refund.created))
    if found.decision is not None:
        yield Evidence(f"what {CLAUSE} said right before it", found.decision.rule, found.decision.reason)
