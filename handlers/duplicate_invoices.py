"""D1, D2 and D5 of clause 4.3: one invoice paid twice, one paid outside Stripe too, and two invoices for one period of one item."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from handlers.copies import Copy, Purchase, overlapping, purchases, repeat_of, settle
from handlers.court import Court, contested
from handlers.customer import BALANCE_READ_PREFIX, BalanceRead, BalanceTransaction, CustomerId, Invoice, Line
from handlers.decisions import ActionKind, Evidence, Money, Prepared
from handlers.payments import Payment
from handlers.terms import Terms

# D1, D2: one invoice, more than one payment -----------------------------------------------------------------------------


def paid_more_than_once(court: Court) -> None:
    """D1 and D2, for every invoice that somebody paid."""
    for invoice_id, payments in sorted(court.by_invoice.items()):
        invoice = court.file.invoices.get(invoice_id)
        if invoice is None:
            if len(payments) > 1:
                court.wanted.add(("invoice", invoice_id))
            continue
        standing = [payment for payment in payments if payment.stands]
        if not standing:
            continue
        outside_minor = _outside_minor(court, invoice)
        if outside_minor is not None:
            _marked_paid(court, invoice, standing, outside_minor)
        elif len(standing) > 1:
            _overpaid(court, invoice, payments, standing)


def _outside_minor(court: Court, invoice: Invoice) -> int | None:
    """What was paid outside Stripe, or None where nothing was (D2)."""
    rows = court.rows[invoice.id]
    records = [r for r in rows if r.status == "paid" and r.payment_type == "payment_record"]
    if invoice.off_stripe_minor or records:
        return max(invoice.off_stripe_minor, sum(r.amount_paid_minor or 0 for r in records))
    if invoice.status == "paid" and rows and all(row.status == "canceled" for row in rows):
        return invoice.amount_due_minor  # marked paid, its own payment canceled, and the money came all the same
    return None


def _marked_paid(court: Court, invoice: Invoice, standing: list[Payment], outside_minor: int) -> None:
    """D2: the outside money cannot be seen, so a person looks at every payment beyond what was due."""
    excess_minor = sum(payment.left_minor for payment in standing) + outside_minor - invoice.amount_due_minor
    for payment in reversed(standing):
        part_minor = min(payment.left_minor, excess_minor)
        if part_minor <= 0 or court.decided(payment):
            continue
        excess_minor -= part_minor
        original = standing[0] if payment is not standing[0] else None
        court.rule(
            "D2",
            original,
            payment,
            f"Invoice {invoice.id} was marked paid outside Stripe and also charged by {payment.id}.",
            doubts=["the money outside Stripe cannot be seen", *contested(original, payment)],
            amount_minor=part_minor,
            evidence=[
                Evidence("due, and paid outside", str(court.due(invoice)), str(Money(outside_minor, invoice.currency)))
            ],
        )


def _overpaid(court: Court, invoice: Invoice, payments: list[Payment], standing: list[Payment]) -> None:
    """D1: the excess over what was due goes back, taken from the latest payments, never from the original."""
    # of a payment whose refund has begun, the part that stays still pays the invoice, once Stripe told how much went back
    kept_minor = sum(p.left_minor for p in payments if p.acted and p.refunded_minor)
    excess_minor = sum(payment.left_minor for payment in standing) + kept_minor - invoice.amount_due_minor
    original, *later = standing
    owed = []
    for payment in reversed(later):
        part_minor = min(payment.left_minor, excess_minor)
        if part_minor > 0 and not court.decided(payment):
            excess_minor -= part_minor
            owed.append((payment, part_minor))
    if not owed:
        return  # partial payments that add up
    group_doubts = _group_doubts(court, invoice, payments)
    credit = _booked_credit(court, invoice, payments, sum(part for _, part in owed), court.terms(later[-1]))
    for payment, part_minor in owed:
        doubts = [*contested(original, payment), *credit.doubts, *_pack_doubts(court, invoice, payment), *group_doubts]
        if part_minor < payment.left_minor and payment.refunded_minor:
            doubts.append(f"{payment.id} was partly refunded and only partly in excess")
        if credit.prepared and len(owed) > 1:
            doubts.append("several payments share one balance credit")
        court.rule(
            "D1",
            original,
            payment,
            f"Invoice {invoice.id} was paid by {original.id} and again by {payment.id}.",
            doubts=doubts,
            unlike=credit.unlike,
            amount_minor=part_minor if credit.refundable else 0,
            evidence=[
                Evidence("invoice", invoice.id, invoice.id),
                Evidence("due, and paid in excess", str(court.due(invoice)), str(Money(part_minor, payment.currency))),
                *credit.evidence,
            ],
            prepared=credit.prepared,
        )


def _group_doubts(court: Court, invoice: Invoice, payments: list[Payment]) -> list[str]:
    """What makes the sum over an invoice's payments uncertain, whichever of them is looked at."""
    found = []
    if invoice.status != "paid":
        court.wanted.add(("invoice", invoice.id))
        found.append(f"the invoice is not known as paid ({invoice.status})")
    if any(p.currency != invoice.currency for p in payments):
        found.append("the invoice and its payments are not in one currency")
    if any(len(p.invoice_ids) > 1 for p in payments):
        found.append("one of its payments paid other invoices too")
    if invoice.credit_notes_minor:
        found.append(f"a credit note was written for invoice {invoice.id}")
    unknown = [p.id for p in payments if p.acted and not p.refunded_minor]
    if unknown and next(p.left_minor for p in payments if p.stands) < invoice.amount_due_minor:
        found.append(f"how much of {unknown[0]} our own refund leaves is not known yet")
    return found


class _Credit(msgspec.Struct, frozen=True, kw_only=True):
    """What Stripe booked on the customer's balance for an overpaid invoice (reading 7)."""

    doubts: tuple[str, ...] = ()
    unlike: str = ""
    refundable: bool = True
    prepared: tuple[Prepared, ...] = ()
    evidence: tuple[Evidence, ...] = ()


def _booked_credit(court: Court, invoice: Invoice, payments: list[Payment], excess_minor: int, terms: Terms) -> _Credit:
    """Reading 7, from the balance as it was last read. No event tells of it, so a D1 waits until it was read."""
    if (ActionKind.REVERSE_BALANCE_CREDIT, invoice.id) in court.acted:
        again = any(p.acted for p in payments)
        doubt = f"the balance credit of {invoice.id} was reversed for another of its payments"
        return _Credit(doubts=(doubt,)) if again else _Credit()
    customer = invoice.customer or next((p.charge.customer for p in payments if p.charge.customer), None)
    told = Money(invoice.overpaid_minor or 0, invoice.currency)
    read = court.file.balances.get(f"{BALANCE_READ_PREFIX}{customer}")
    if customer and (read is None or read.as_of < max(_balance_moved(court, invoice, payments))):
        court.wanted.add(("balance", customer))
    if read is None or read.as_of < max(p.paid_at for p in payments):
        said = f" (the invoice tells of {told} overpaid)" if told.minor else ""
        doubt = f"whether Stripe booked a balance credit for it is still being read{said}"
        return _Credit(doubts=(doubt,), refundable=False)
    if not read.complete:
        return _Credit(doubts=("the customer's balance has more transactions than were read",), refundable=False)
    booked = Money(-sum(row.amount_minor for row in _booked(read, invoice)), invoice.currency)
    if booked.minor > 0:
        return _weighed(read, invoice, CustomerId(customer or ""), booked, excess_minor, terms)
    in_favour = Money(max(0, -read.transactions[0].ending_balance_minor) if read.transactions else 0, invoice.currency)
    if told.minor and in_favour.minor >= told.minor:
        doubt = f"no balance credit is booked for {told} overpaid, yet {in_favour} stands in the customer's favour"
        return _Credit(doubts=(doubt,), refundable=False)
    return _Credit(evidence=(Evidence("balance credit booked", "none", "none"),))


def _booked(read: BalanceRead, invoice: Invoice) -> list[BalanceTransaction]:
    return [row for row in read.transactions if row.type == "invoice_overpaid" and row.invoice == invoice.id]


def _balance_moved(court: Court, invoice: Invoice, payments: list[Payment]) -> list[int]:
    """Moments that we know of at which the customer's balance may have changed."""
    spending = (i for i in court.file.invoices.values() if i.customer == invoice.customer and i.starting_balance_minor)
    return [*(p.paid_at for p in payments), *(i.paid_at for i in spending if i.paid_at is not None)]


def _weighed(
    read: BalanceRead, invoice: Invoice, customer: CustomerId, booked: Money, excess_minor: int, terms: Terms
) -> _Credit:
    """A booked credit: wholly spent, it was the compensation; unspent, it may be reversed; anything else is a doubt."""
    newest = _booked(read, invoice)[0]
    since = read.transactions[: read.transactions.index(newest)]  # newest first, as Stripe lists them
    spent_minor = sum(row.amount_minor for row in since if row.type == "applied_to_invoice")
    left_minor = min(max(0, -read.transactions[0].ending_balance_minor), booked.minor)
    evidence = (Evidence("balance credit booked, and left", str(booked), str(Money(left_minor, invoice.currency))),)
    if left_minor == 0 and spent_minor >= booked.minor:
        why = f"Stripe had booked {booked} on the customer's balance for it, and later invoices used that up"
        return _Credit(unlike=why, evidence=evidence)
    if left_minor < booked.minor or spent_minor > 0:
        doubt = f"of the balance credit of {booked} that Stripe booked for it, a part was used or changed since"
        return _Credit(doubts=(doubt,), refundable=False, evidence=evidence)
    reversal = Prepared(kind=ActionKind.REVERSE_BALANCE_CREDIT, subject=invoice.id, customer=customer, amount=booked)
    doubts = []
    if booked.minor != excess_minor:
        doubts.append(f"the balance credit ({booked}) is not the excess ({Money(excess_minor, invoice.currency)})")
    if not terms.duplicates.reverse_overpaid_credit:
        doubts.append(
            f"Stripe booked {booked} on the customer's balance for it, unspent, and the policy does not take such a credit back by itself"
        )
    return _Credit(doubts=tuple(doubts), prepared=(reversal,), evidence=evidence)


def _pack_doubts(court: Court, invoice: Invoice, payment: Payment) -> list[str]:
    """Reading 18: 4.3 speaks of subscriptions; a pack charged twice is a person's decision."""
    packs = court.terms(payment).credits.packs
    if any(line.price in packs for line in invoice.lines):
        return ["the invoice carries a credit pack, and 4.3 speaks of subscriptions"]
    if not invoice.subscription:
        return ["the invoice belongs to no subscription, and 4.3 speaks of subscriptions"]
    if not invoice.lines_complete:
        court.wanted.add(("invoice", invoice.id))
        return ["only a part of the invoice's lines is known"]
    return []


# D5: two invoices for one period of one item -----------------------------------------------------------------------------


def invoiced_twice(court: Court) -> None:
    """D5: the same item of one subscription, invoiced and paid twice for one period."""
    bought = purchases(court)
    earlier: dict[str, list[tuple[Purchase, Line, Line]]] = defaultdict(list)
    for later, second, original, first in overlapping(bought, bought, _item):
        if original.invoice.id != later.invoice.id and original.payment.order < later.payment.order:
            earlier[later.invoice.id].append((original, first, second))
    for later in bought:
        found = [
            row for row in earlier[later.invoice.id] if row[0].payment.stands and not court.goes_back(row[0].payment)
        ]
        if found and not court.decided(later.payment):
            # an identical period proves more than one that merely touches the renewal border
            found.sort(key=lambda row: (_span(row[1]) != _span(row[2]), row[0].payment.order))
            _second_invoice(court, found[0][0], later, found[0][1], found[0][2])


def _item(line: Line) -> str | None:
    return line.subscription_item


def _span(line: Line) -> tuple[int, int]:
    return line.period_start, line.period_end


def _second_invoice(court: Court, original: Purchase, duplicate: Purchase, first: Line, second: Line) -> None:
    doubts = []
    if _span(first) != _span(second):
        doubts.append("the periods overlap but are not identical")
    if {original.invoice.billing_reason, duplicate.invoice.billing_reason} != {"subscription_cycle"}:
        doubts.append("not both invoices are ordinary renewals")
    owner = second.subscription or duplicate.invoice.subscription
    subscription = court.file.subscriptions.get(owner or "")
    if subscription is None:
        court.wanted |= {("subscription", owner)} if owner else set()
        doubts.append("the subscription is not known yet")
    elif not any((item.id, item.price) == (second.subscription_item, second.price) for item in subscription.items):
        doubts.append("the subscription was changed since")
    copy = Copy(
        rule="D5",
        how="the same item of one subscription was invoiced twice",
        repeats=(repeat_of(original, duplicate, _item, identical=_span(first) == _span(second)),),
        doubts=tuple(doubts),
        kin=True,
        evidence=(Evidence("subscription item", first.subscription_item or "", second.subscription_item or ""),),
    )
    settle(court, copy)
