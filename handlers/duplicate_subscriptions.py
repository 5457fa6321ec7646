"""D3, D4 and D8 to D10 of clause 4.3: one thing bought as two subscriptions, by one customer or by one person under two; and trials."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta

import msgspec

from handlers.copies import Copy, Key, Purchase, overlapping, purchases, repeat_of, settle
from handlers.court import CLAUSE, Court, span, when
from handlers.customer import ChargeId, CustomerId, Line, Metadata, Seconds, Subscription, at
from handlers.decisions import ActionKind, Decision, Evidence, Prepared, Verdict
from handlers.identity import (
    Finding,
    Person,
    Sameness,
    compare_metadata,
    compare_persons,
    person_of,
    purchase_metadata,
)
from handlers.payments import Payment, on_test_clock, service_lines
from handlers.terms import DuplicateTerms

TRIAL_NOTICE = timedelta(days=3)
"""How long before its first charge a trial beside a paid subscription becomes a review (reading 26)."""
MIGRATION_KEYS = ("migrated", "imported_from", "legacy_subscription")
"""Metadata keys that begin like this tell of a move from another account or processor (D9)."""
_HOW = {
    "D3": "one customer bought the same subscription twice",
    "D4": "one person bought the same subscription twice, under two customers",
    "D8": "a past-due subscription recovered after the customer had subscribed again",
    "D9": "a subscription moved from elsewhere overlaps with one bought here",
    "D10": "two prices of one product were paid for overlapping periods",
}
_HOW_UNSURE = {
    "D3": "one customer has two subscriptions to one price",
    "D4": "two customers have a subscription to one price each",
}


class Holding(msgspec.Struct, frozen=True):
    """A subscription with what was paid for it and who owns it."""

    subscription: Subscription
    customer: CustomerId
    person: Person
    metadata: Metadata
    purchases: tuple[Purchase, ...]
    listed_until: Seconds
    """Up to then every copy was listed in a review that is being carried out, or was refunded by us; else 0."""
    kept: frozenset[str]
    """Its payments that stay because our refund of a copy of theirs (D5) was begun."""


def bought_twice(court: Court) -> None:
    """D3, D4, D8, D9, D10: every later payment of one subscription that covers a period paid through another."""
    holdings = _holdings(court)
    copies: dict[str, list[Copy]] = defaultdict(list)
    for index, one in enumerate(holdings):
        for other in holdings[index + 1 :]:
            copy = _compare(court, one, other)
            if copy is not None:
                copies[copy.duplicate.id].append(copy)
    for found in sorted(copies.values(), key=lambda each: each[0].duplicate.order):
        if court.decided(found[0].duplicate):
            continue
        # the original of a group is its earliest payment; a doubtful kinship never takes that place from a sure one
        found.sort(key=lambda copy: (bool(copy.unlike), not copy.kin, copy.original.order))
        standing = [copy for copy in found if not court.goes_back(copy.original)]
        if standing:
            settle(court, standing[0])


def _holdings(court: Court) -> list[Holding]:
    by_subscription: dict[str, list[Purchase]] = defaultdict(list)
    for purchase in purchases(court):
        if purchase.invoice.subscription:
            by_subscription[purchase.invoice.subscription].append(purchase)
    found = []
    for subscription_id, bought in by_subscription.items():
        subscription = court.file.subscriptions.get(subscription_id)
        if subscription is not None:
            found.append(_holding(court, subscription, bought))
        elif len(by_subscription) > 1:
            court.wanted.add(("subscription", subscription_id))
    return sorted(found, key=lambda holding: holding.purchases[0].payment.order)


def _holding(court: Court, subscription: Subscription, bought: list[Purchase]) -> Holding:
    payment = bought[0].payment if bought else None
    customer = subscription.customer or (payment.charge.customer if payment else None) or CustomerId("")
    terms = (court.terms(payment) if payment else court.policy.latest()).duplicates
    sessions = court.sessions[subscription.id]
    listed_until, kept = _begun(court, subscription, bought)
    return Holding(
        subscription=subscription,
        customer=customer,
        person=person_of(court.file.customers.get(customer), sessions, subscription.metadata, terms),
        metadata=purchase_metadata(subscription, sessions),
        purchases=tuple(bought),
        listed_until=listed_until,
        kept=kept,
    )


def _begun(court: Court, subscription: Subscription, bought: list[Purchase]) -> tuple[Seconds, frozenset[str]]:
    """What our own refunds of this subscription's payments have settled already.

    A refund of a whole period came from a decision that listed what had been paid until then (reading 21). One that left
    another payment for the same invoice or the same period of an item says that this other payment is the one that stays.
    """
    listed_until, kept = 0, set()
    for payment in court.payments:
        invoice = payment.invoice
        if not payment.acted or invoice is None or invoice.subscription != subscription.id:
            continue
        gone = Purchase(payment, invoice, tuple(service_lines(court.file, invoice)), shared=False)
        stays = [other for _, _, other, _ in overlapping([gone], bought, _item)]
        kept |= {other.payment.id for other in stays if other.invoice.id != invoice.id}
        if not stays:
            ours = [r.created for r in court.file.refunds.values() if r.charge == payment.id and r.action]
            listed_until = max([listed_until, *ours] if ours else [listed_until, int(court.now.timestamp())])
    return listed_until, frozenset(kept)


def _item(line: Line) -> str | None:
    return line.subscription_item


def _price(line: Line) -> str | None:
    return line.price


def _product(line: Line) -> str | None:
    return line.product


class _Meeting(msgspec.Struct, frozen=True):
    """Two holdings whose paid periods overlap: which one stays, and the purchases of the other that repeat it."""

    survivor: Holding
    second: Holding
    pairs: tuple[tuple[Purchase, Purchase], ...]
    """(original, copy), the judged copy first."""


def _meeting(one: Holding, other: Holding, key: Key) -> _Meeting | None:
    """Roles go to whole subscriptions: the later of the first two payments that overlap makes its subscription the copy.

    So a renewal of the survivor that shares minutes with the copy at the border is never taken for a copy itself.
    """
    shared: dict[tuple[str, str], int] = defaultdict(int)
    met: dict[tuple[str, str], tuple[Purchase, Purchase]] = {}
    for a, line, b, twin in overlapping(one.purchases, other.purchases, key):
        if a.payment.id != b.payment.id:
            pair = (a.invoice.id, b.invoice.id)
            met[pair] = (a, b)
            shared[pair] += min(line.period_end, twin.period_end) - max(line.period_start, twin.period_start)
    ranked = []
    for (a, b), shared_s in zip(met.values(), shared.values(), strict=True):
        first, later = (a, b) if a.payment.order < b.payment.order else (b, a)
        if first.payment.stands:
            ranked.append((later.payment.order, -shared_s, first.payment.order, first, later))
    if not ranked:
        return None
    *_, original, copy = min(ranked, key=lambda row: row[:3])
    survivor, second = (one, other) if copy in other.purchases else (other, one)
    best: dict[str, tuple[tuple[bool, int], Purchase, Purchase]] = {}
    for (a, b), shared_s in zip(met.values(), shared.values(), strict=True):
        of, later = (a, b) if survivor is one else (b, a)
        if later.invoice.id == copy.invoice.id or not of.payment.stands:
            continue
        rank = (of.payment.order > later.payment.order, -shared_s)
        if later.invoice.id not in best or rank < best[later.invoice.id][0]:
            best[later.invoice.id] = (rank, of, later)
    rest = sorted(((of, later) for _, of, later in best.values()), key=lambda pair: pair[1].payment.order)
    return _Meeting(survivor, second, ((original, copy), *rest))


def _compare(court: Court, one: Holding, other: Holding) -> Copy | None:
    """Two subscriptions: do payments of theirs cover one period of one thing, and what is in doubt about it."""
    who = _relation(court, one, other)
    if who is None or _ended_before(one.subscription, other.subscription):
        return None
    key: Key = _price
    meeting = _meeting(one, other, _price)
    if meeting is None:
        key = _product
        meeting = _meeting(one, other, _product)
    if meeting is None or (pairs := _still_open(meeting)) is None:
        return None
    survivor, second = meeting.survivor, meeting.second
    original, duplicate = pairs[0]
    terms = court.terms(duplicate.payment).duplicates
    app = compare_metadata(survivor.metadata, second.metadata, terms)
    unlike = next((found.why for found in (who, app) if found.sameness is Sameness.DIFFERENT), "")
    rule = _rule_of(one, other, survivor, second, duplicate, by_price=key is _price)
    repeats = tuple(repeat_of(of, later, key) for of, later in pairs)
    unsure = [found.why for found in (who, app) if found.sameness is Sameness.DOUBT]
    if rule in ("D9", "D10"):
        unsure.append("which of the two is wanted only a person knows")
    doubts = [*unsure, *_circumstances(rule, survivor, second, original, duplicate, terms), *_found_late(pairs)]
    kin = not unsure and not unlike and not repeats[0].unequal
    if duplicate.payment.id in second.kept:
        doubts.append(f"a refund was begun that keeps {duplicate.payment.id} as its original")
    return Copy(
        rule=rule,
        how=_HOW[rule] if kin else _HOW_UNSURE.get(rule, _HOW[rule]),
        repeats=repeats,
        doubts=tuple(doubts),
        kin=kin,
        unlike=unlike,
        ending=_cancellation(second),
        evidence=_why_same(survivor, second, who),
    )


def _still_open(meeting: _Meeting) -> tuple[tuple[Purchase, Purchase], ...] | None:
    """The copies still to be judged, the first that stands at the head; None where all were dealt with before."""
    pairs = [pair for pair in meeting.pairs if pair[1].payment.paid_at > meeting.second.listed_until]
    standing = [pair for pair in pairs if pair[1].payment.stands]
    return tuple(standing) or tuple(pairs[:1]) or None


def _found_late(pairs: Iterable[tuple[Purchase, Purchase]]) -> list[str]:
    listed = [later.payment.id for _, later in pairs]
    if len(listed) < 2:
        return []
    return [f"it was found after the copies renewed; each of these payments is a copy: {', '.join(listed)}"]


def _rule_of(
    one: Holding, other: Holding, survivor: Holding, second: Holding, duplicate: Purchase, *, by_price: bool
) -> str:
    if any(key.lower().startswith(MIGRATION_KEYS) for holding in (one, other) for key in holding.metadata):
        return "D9"
    if not by_price:
        return "D10"
    if _late_recovery(survivor, second, duplicate):
        return "D8"
    return "D3" if one.customer == other.customer else "D4"


def _relation(court: Court, one: Holding, other: Holding) -> Finding | None:
    """Whether two holdings belong to one person; None where nothing connects them."""
    same_customer = one.customer == other.customer and one.customer != ""
    persons = compare_persons(one.person, other.person)
    if same_customer:
        unnamed = not one.person.ids and not other.person.ids
        return Finding(Sameness.SAME, "the customer is the same") if unnamed else persons
    if persons.sameness is Sameness.SAME:
        return persons
    equal_id = bool(one.person.ids.items() & other.person.ids.items())
    link = court.traces.between(one.customer, other.customer)
    if link is None:
        return persons if equal_id else None
    if one.person.ids and other.person.ids:
        return persons
    return Finding(Sameness.DOUBT, f"only an equal {link} ties the two customers, which proves no one person")


def _ended_before(one: Subscription, other: Subscription) -> bool:
    """Reading 5: one had ended before the other began, so nothing overlapped, whatever the paid period said."""
    first, later = sorted((one, other), key=lambda s: (s.created, s.id))
    return first.ended_at is not None and first.ended_at <= later.created


def _late_recovery(survivor: Holding, second: Holding, duplicate: Purchase) -> bool:
    """D8: the later payment is an old invoice, paid after several attempts, after the other subscription had begun."""
    invoice, begun = duplicate.invoice, survivor.subscription.created
    return (
        invoice.attempt_count > 1
        and second.subscription.created < begun
        and invoice.created <= begun <= duplicate.payment.paid_at
        and invoice.billing_reason != "subscription_create"
    )


def _circumstances(
    rule: str, survivor: Holding, second: Holding, original: Purchase, duplicate: Purchase, terms: DuplicateTerms
) -> list[str]:
    """What speaks against an automatic refund although they are copies."""
    found = []
    apart_s = abs(second.subscription.created - survivor.subscription.created)
    if rule == "D8":
        if terms.late_recovery != "refund":
            found.append("the policy leaves late recoveries to a person")
    elif rule in ("D3", "D4"):
        if apart_s > terms.window:
            found.append(f"they were bought {span(apart_s)} apart, more than the window of {span(terms.window)}")
        if {original.invoice.billing_reason, duplicate.invoice.billing_reason} != {"subscription_create"}:
            found.append("not both are the first payments of their subscriptions")
    if survivor.subscription.ends:
        found.append(
            f"the original's subscription {survivor.subscription.id} ended or is about to end, "
            "and ending the other would leave nothing"
        )
    if rule != "D10" and _items(survivor.subscription) != _items(second.subscription):
        found.append("the two subscriptions do not hold the same items now")
    elif not _holds(second.subscription, duplicate):
        found.append(f"{second.subscription.id} was changed since it was paid")
    return found


def _items(subscription: Subscription) -> list[tuple[str, int]]:
    """What a subscription holds; never equal to anything where only a part of it is known."""
    if not subscription.items_complete:
        return [(subscription.id, 0)]
    return sorted((item.price, item.quantity or 1) for item in subscription.items)


def _holds(subscription: Subscription, purchase: Purchase) -> bool:
    """Whether the subscription still is what was paid for. A tiered price has several lines to one item."""
    bought: dict[str | None, int] = defaultdict(int)
    for line in purchase.lines:
        bought[line.price] += line.quantity or 1
    return bought.items() <= dict(_items(subscription)).items()


def _cancellation(second: Holding) -> Prepared | None:
    if not second.subscription.alive:
        return None  # ended by the customer already: nothing to cancel (reading 25)
    return Prepared(kind=ActionKind.CANCEL_SUBSCRIPTION, subject=second.subscription.id, customer=second.customer)


def _why_same(survivor: Holding, second: Holding, who: Finding) -> tuple[Evidence, ...]:
    named = survivor.person.ids or second.person.ids
    return (
        Evidence("subscription", survivor.subscription.id, second.subscription.id),
        Evidence("subscription began", when(survivor.subscription.created), when(second.subscription.created)),
        Evidence("customer", survivor.customer, second.customer),
        *((Evidence("person", str(survivor.person), str(second.person)),) if named else ()),
        Evidence("identity", who.why, who.why),
    )


# a trial beside a paid subscription --------------------------------------------------------------------------------------


def trials_about_to_charge(court: Court) -> None:
    """Reading 26: a trial beside a paid subscription of the same price is a review once it is about to be charged."""
    trialing = [s for s in court.file.subscriptions.values() if s.status == "trialing" and s.trial_end and not s.ends]
    if not trialing:
        return
    paid = _holdings(court)
    for subscription in sorted(trialing, key=lambda s: s.id):
        rehearsal = subscription.test_clock or on_test_clock(court.file, subscription.customer, None)
        if (rehearsal and not court.test_clocks) or (ActionKind.CANCEL_SUBSCRIPTION, subscription.id) in court.acted:
            continue
        trial = _holding(court, subscription, [])
        for holding in paid:
            if subscription.id not in court.decisions and holding.subscription.id != subscription.id:
                _trial_beside(court, trial, holding, subscription.trial_end or 0)


def _trial_beside(court: Court, trial: Holding, paid: Holding, trial_end: Seconds) -> None:
    prices = {item.price for item in trial.subscription.items}
    paid_for: list[Payment] = [
        p.payment for p in paid.purchases if p.payment.stands and any(line.price in prices for line in p.lines)
    ]
    runs_on = not paid.subscription.ends and any(item.price in prices for item in paid.subscription.items)
    if not paid_for or not runs_on:
        return
    terms = court.terms(paid_for[-1])
    who = _relation(court, paid, trial)
    app = compare_metadata(paid.metadata, trial.metadata, terms.duplicates)
    if who is None or Sameness.DIFFERENT in (who.sameness, app.sameness) or terms.duplicates.rule == "none":
        return
    notice_at = at(trial_end) - TRIAL_NOTICE
    if court.now < notice_at:
        court.wake_at.append(notice_at)
        return
    subscription = trial.subscription
    court.decisions[subscription.id] = Decision(
        subject=subscription.id,
        customer=trial.customer,
        clause=CLAUSE,
        rule="D3" if paid.customer == trial.customer else "D4",
        verdict=Verdict.REVIEW,
        policy_version=terms.version,
        reason=(
            f"The trial {subscription.id} is about to be charged on {at(trial_end):%Y-%m-%d}, beside "
            f"{paid.subscription.id}, which is paid for the same price. A person must decide: end the trial or let it convert."
        ),
        original=ChargeId(paid_for[-1].id),
        evidence=_why_same(paid, trial, who),
        prepared=tuple(step for step in (_cancellation(trial),) if step),
        due_at=notice_at,
    )
