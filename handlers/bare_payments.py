"""D6 and D7 of clause 4.3: payments without an invoice, charged again by the app, or by hand beside an invoice."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator

import msgspec

from handlers.court import Court, contested, span
from handlers.customer import Charge, Invoice, Metadata
from handlers.decisions import Evidence, Money
from handlers.identity import Finding, Sameness, compare_metadata, compare_orders, named, shown
from handlers.payments import Payment
from handlers.terms import DuplicateTerms

# D6: charged again under a fresh idempotency key -------------------------------------------------------------------------


class _Twin(msgspec.Struct, frozen=True):
    """An earlier bare payment that the later one may repeat, and what is said about the two."""

    original: Payment
    doubts: tuple[str, ...]
    unlike: str
    orders: Finding


def charged_again(court: Court) -> None:
    """D6: two payments without an invoice, same customer, amount and currency, for one order."""
    groups: dict[tuple[str, str, int], list[Payment]] = defaultdict(list)
    for payment in court.payments:
        if payment.bare and payment.charge.customer and (payment.session is None or payment.session.mode == "payment"):
            groups[payment.charge.customer, payment.currency, payment.charge.captured_minor].append(payment)
    for group in groups.values():
        if len(group) < 2:
            continue
        by_order = _by_order(court, group)
        times = [payment.paid_at for payment in group]
        for index, payment in enumerate(group):
            if court.decided(payment):
                continue
            candidates = _candidates(court, group[:index], times, payment, by_order)
            twins = [twin for one in candidates if (twin := _twin(court, one, payment, by_order)) is not None]
            twins.sort(key=lambda twin: (bool(twin.unlike), bool(twin.doubts), twin.original.order))
            if twins:
                _settle(court, payment, twins[0])


def _by_order(court: Court, group: list[Payment]) -> dict[tuple[str, str], list[Payment]]:
    """Payments by the order ids that they carry."""
    found: dict[tuple[str, str], list[Payment]] = defaultdict(list)
    for payment in group:
        for key in court.terms(payment).duplicates.order:
            if id_ := payment.metadata.get(key):
                found[key, id_].append(payment)
    return found


def _candidates(
    court: Court,
    earlier: list[Payment],
    times: list[int],
    payment: Payment,
    by_order: dict[tuple[str, str], list[Payment]],
) -> list[Payment]:
    """The standing payments within the windows before this one, and the first one of the same order however long ago."""
    terms = court.terms(payment).duplicates
    near = bisect_left(times, payment.paid_at - max(terms.window, terms.bare_payment_window))
    found = {p.id: p for p in earlier[near:] if p.stands and not court.goes_back(p)}
    for key in terms.order:
        for first in by_order.get((key, payment.metadata.get(key, "")), ()):
            if first.order >= payment.order:
                break
            if first.stands and not court.goes_back(first):
                found[first.id] = first
                break
    return list(found.values())


def _twin(
    court: Court, original: Payment, payment: Payment, by_order: dict[tuple[str, str], list[Payment]]
) -> _Twin | None:
    """Whether two bare payments of one customer and amount are copies; None where nobody would think so."""
    terms = court.terms(payment)
    ours, theirs = original.metadata, payment.metadata
    apart_s = payment.paid_at - original.paid_at
    orders = compare_orders(ours, theirs, terms.duplicates)
    rest = compare_metadata(
        _without_orders(ours, terms.duplicates), _without_orders(theirs, terms.duplicates), terms.duplicates
    )
    unlike = _unlike(original, payment, orders, rest, terms.duplicates)
    if (unlike or orders.sameness is not Sameness.SAME) and apart_s > terms.duplicates.window:
        return None
    doubts = []
    if orders.sameness is Sameness.DOUBT:
        doubts.append(f"{orders.why}, and they are {span(apart_s)} apart")
    elif apart_s > terms.duplicates.bare_payment_window:
        doubts.append(f"the order id is equal, but they are {span(apart_s)} apart")
    elif apart_s > terms.duplicates.window and _copied(payment, terms.duplicates, by_order):
        doubts.append(
            "the same order id stands on payments much further apart, so the app seems to copy it onto renewals"
        )
    doubts += _persons(ours, theirs, terms.duplicates)
    if rest.sameness is Sameness.DOUBT:
        doubts.append(rest.why)
    packs = terms.credits.packs
    if original.session or payment.session or any(v in packs for v in (*ours.values(), *theirs.values())):
        doubts.append("it looks like a credit pack, and 4.3 speaks of subscriptions")
    return _Twin(original, tuple(doubts), unlike, orders)


def _without_orders(metadata: Metadata, terms: DuplicateTerms) -> Metadata:
    return {key: value for key, value in metadata.items() if key not in terms.order}


def _unlike(original: Payment, payment: Payment, orders: Finding, rest: Finding, terms: DuplicateTerms) -> str:
    """Why they are no copies after all, or ""."""
    ours, theirs = named(original.metadata, terms.person), named(payment.metadata, terms.person)
    if orders.sameness is Sameness.DIFFERENT:
        return orders.why
    if any(ours[key] != theirs[key] for key in ours.keys() & theirs.keys()):
        return "they were made for different persons"
    if rest.sameness is Sameness.DIFFERENT:
        return rest.why
    if orders.sameness is not Sameness.SAME and original.session and payment.session:
        return "each was bought on purpose in a Checkout session of its own"
    return ""


def _persons(ours: Metadata, theirs: Metadata, terms: DuplicateTerms) -> Iterator[str]:
    if named(ours, terms.person).keys() != named(theirs, terms.person).keys():
        yield "only one of the two names the person"


def _copied(payment: Payment, terms: DuplicateTerms, by_order: dict[tuple[str, str], list[Payment]]) -> bool:
    """Whether the payment's order id stands on payments so far apart that it cannot name one purchase."""
    rows = [by_order.get((key, payment.metadata.get(key, "")), []) for key in terms.order]
    return any(found and found[-1].paid_at - found[0].paid_at > 2 * terms.bare_payment_window for found in rows)


def _settle(court: Court, payment: Payment, twin: _Twin) -> None:
    original = twin.original
    unlike = twin.unlike or ("" if payment.stands else "that payment's money went back already")
    court.rule(
        "D6",
        original,
        payment,
        f"{payment.id} charges the same customer and amount as {original.id}, {span(payment.paid_at - original.paid_at)} "
        "later, both without an invoice.",
        doubts=[*twin.doubts, *contested(original, payment)],
        unlike=unlike,
        amount_minor=payment.left_minor if payment.stands else 0,
        evidence=[Evidence("order", _order_id(original, court), _order_id(payment, court))],
    )


def _order_id(payment: Payment, court: Court) -> str:
    ids = [payment.metadata[key] for key in court.terms(payment).duplicates.order if payment.metadata.get(key)]
    return ", ".join(map(shown, ids)) or "no order id"


# D7: by hand, and by dunning -----------------------------------------------------------------------------------------------


def charged_by_hand(court: Court) -> None:
    """D7: a person charged by hand what dunning collected too. Only a person knows what the hand charge was meant for."""
    hands = [p for p in court.payments if p.bare and not p.session and p.stands and p.charge.customer]
    if not hands or not court.by_invoice:
        return
    invoices: dict[tuple[str, str, int], list[Invoice]] = defaultdict(list)
    for invoice_id in sorted(court.by_invoice):
        invoice = court.file.invoices.get(invoice_id)
        if invoice is not None and invoice.customer:
            invoices[invoice.customer, invoice.currency, invoice.amount_due_minor].append(invoice)
    failed: dict[str, list[Charge]] = defaultdict(list)
    for charge in court.file.charges.values():
        if charge.status == "failed" and charge.payment_intent:
            failed[charge.payment_intent].append(charge)
    for hand in hands:
        for invoice in invoices[hand.charge.customer or "", hand.currency, hand.charge.captured_minor]:
            paid = next((p for p in court.by_invoice[invoice.id] if p.stands), None)
            if paid is not None and _beside(court, hand, invoice, paid, failed):
                _by_hand(court, hand, invoice, paid)


def _beside(court: Court, hand: Payment, invoice: Invoice, paid: Payment, failed: dict[str, list[Charge]]) -> bool:
    """Reading 26: within days, and an attempt of the invoice had failed before the hand charge."""
    if abs(paid.paid_at - hand.paid_at) > court.terms(hand).duplicates.manual_charge_window:
        return False
    attempts = [c for p in court.by_invoice[invoice.id] for c in failed.get(p.charge.payment_intent or "", ())]
    if any(charge.created <= hand.paid_at for charge in attempts):
        return True
    # attempts that nobody told us of may have been the earlier ones
    return len(attempts) < invoice.attempt_count - 1 and invoice.created < hand.paid_at


def _by_hand(court: Court, hand: Payment, invoice: Invoice, paid: Payment) -> None:
    first, second = sorted((hand, paid), key=lambda p: p.order)
    if court.decided(second) or court.goes_back(first):
        return
    court.rule(
        "D7",
        first,
        second,
        f"{hand.id} was charged by hand for the amount of invoice {invoice.id}, which {paid.id} paid as well.",
        doubts=["whether the hand charge was meant for this invoice only a person knows", *contested(first, second)],
        amount_minor=second.left_minor,
        evidence=[
            Evidence(
                "due, and charged by hand",
                str(court.due(invoice)),
                str(Money(hand.charge.captured_minor, hand.currency)),
            )
        ],
    )
