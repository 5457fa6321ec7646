"""Original and duplicate beside each other: every fact that a person compares, and whether the two are alike in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from handlers.customer import CustomerFile, Dispute, EarlyFraudWarning, Invoice, Refund, at, decode_known
from handlers.decisions import Decision, Money
from handlers.payments import Contest, Payment, overlap_s, payments_of
from worker.book import is_about
from worker.db import Connection, queries
from worker.reading import fetch
from worker.show import age

MAX_LINES = 6
"""So many lines of an invoice are shown; the rest is counted."""


class Row(NamedTuple):
    """One fact of both payments."""

    fact: str
    original: str
    duplicate: str
    alike: str = ""
    """Whether the two are alike in it, in a word; empty where that means nothing, or one of them does not tell."""
    tone: str = "soft"
    is_id: bool = False
    """Whether both cells are ids, each to be linked."""


async def compared(conn: Connection, realm: str, decision: Decision) -> list[Row]:
    """The facts of a decision's two payments; those of one where it names no other. Empty where neither is in the books."""
    charges = [charge for charge in (decision.original, decision.duplicate) if charge]
    owners = {row["customer"] for row in await fetch(conn, queries.owners, realm=realm, ids=charges)}
    rows = await fetch(conn, queries.load_objects, realm=realm, customers=sorted(owners))
    file = CustomerFile(fact for row in rows if (fact := decode_known(row["body"])) is not None)
    found = {payment.id: payment for payment in payments_of(file, frozenset(), test_clocks=True)}
    pair = [found.get(decision.original or ""), found.get(decision.duplicate or "")]
    return list(_rows(file, pair[0], pair[1])) if any(pair) else []


def _rows(file: CustomerFile, a: Payment | None, b: Payment | None) -> Iterator[Row]:
    one, other = _told(file, a), _told(file, b)
    for fact in one | other:
        left, right = one.get(fact, ""), other.get(fact, "")
        if left or right:
            yield Row(fact, left, right, *_alike(fact, left, right, a, b), fact in IDS)


IDS = ("payment", "customer", "invoice", "subscription", "payment intent", "Checkout session")
_TELLING = ("amount", "customer", "bought", "paid for")
"""Facts in which a copy is expected to be like its original; in others two purchases differ anyway."""
_OF_EACH = ("invoice", "subscription", "Checkout session")


def _alike(fact: str, left: str, right: str, a: Payment | None, b: Payment | None) -> tuple[str, str]:
    """A word for the last column, and its tone."""
    if not left or not right or a is None or b is None:
        return "", "soft"
    if fact == "paid at":
        return f"{age(abs(b.paid_at - a.paid_at))} apart", "soft"
    if fact == "paid with":
        cards = a.charge.card_fingerprint, b.charge.card_fingerprint
        if not all(cards):
            return "", "soft"
        return ("the same card", "ok") if cards[0] == cards[1] else ("another card", "ask")
    if fact == "paid for" and left != right and _overlap(a, b):
        return "overlap", "ok"
    if fact in _TELLING:
        return ("equal", "ok") if left == right else ("differs", "ask")
    if fact in _OF_EACH:
        return ("the same" if left == right else "another one"), "soft"
    return "", "soft"


def _overlap(a: Payment, b: Payment) -> bool:
    """Whether a period that one paid for shares time with one of the other's."""
    lines = [payment.invoice.lines if payment.invoice else () for payment in (a, b)]
    return any(overlap_s(one, other) > 0 for one in lines[0] for other in lines[1])


def _told(file: CustomerFile, payment: Payment | None) -> dict[str, str]:
    """Every fact of one payment, in the order of the page."""
    if payment is None:
        return {}
    charge, invoice = payment.charge, payment.invoice
    left = Money(payment.left_minor, payment.currency)
    return {
        "payment": charge.id,
        "amount": str(Money(charge.captured_minor, charge.currency)),
        "paid at": _when(at(payment.paid_at)),
        "customer": charge.customer or "a guest",
        "bought": _bought(invoice),
        "paid for": _periods(invoice),
        "why charged": _why(invoice) if invoice else "not by an invoice",
        "invoice": payment.invoice_id or "",
        "subscription": (invoice.subscription or "") if invoice else "",
        "the subscription is": _subscription(file, invoice),
        "paid with": _method(payment),
        "Checkout session": payment.session.id if payment.session else "",
        "payment intent": charge.payment_intent or "",
        "went back": _refunds(file, payment) or "nothing",
        "disputes": _disputes(file, payment) or "none",
        "left": str(left),
    }


def _bought(invoice: Invoice | None) -> str:
    if invoice is None or not invoice.lines:
        return ""
    said = [
        f"{line.price or line.product or 'an item without a price'}{f' × {line.quantity}' if line.quantity else ''}"
        f" for {Money(line.net_minor, line.currency)}{' (proration)' if line.proration else ''}"
        for line in invoice.lines[:MAX_LINES]
    ]
    return _and_more(said, len(invoice.lines))


def _periods(invoice: Invoice | None) -> str:
    lines = invoice.lines if invoice else ()
    periods = sorted({(line.period_start, line.period_end) for line in lines if not line.proration})
    said = [f"{_when(at(start))} to {_when(at(end))}" for start, end in periods[:MAX_LINES]]
    return _and_more(said, len(periods))


def _and_more(said: Sequence[str], total: int) -> str:
    return "; ".join([*said, *([f"and {total - len(said)} more"] if total > len(said) else [])])


def _why(invoice: Invoice) -> str:
    word = invoice.billing_reason.replace("_", " ") or "an invoice"
    return f"{word}, {invoice.status}"


def _subscription(file: CustomerFile, invoice: Invoice | None) -> str:
    known = file.subscriptions.get(invoice.subscription or "") if invoice else None
    if known is None:
        return ""
    ends = " (set to end)" if known.alive and known.ends else ""
    return f"{known.status}{ends}, begun {_when(at(known.created))}"


def _method(payment: Payment) -> str:
    known = "" if payment.charge.card_fingerprint or payment.charge.method != "card" else " (which one is not told)"
    return f"{payment.charge.method or 'not told'}{known}"


def _refunds(file: CustomerFile, payment: Payment) -> str:
    told = [
        f"{refund.id} {Money(refund.amount_minor, refund.currency)} {refund.status}{'' if refund.action else ', by hand'}"
        for _, refund in sorted(file.refunds.items())
        if is_about(refund, payment)
    ]
    if not told and payment.refunded_minor:
        return str(Money(payment.refunded_minor, payment.currency))
    return _and_more(told[:MAX_LINES], len(told))


def _disputes(file: CustomerFile, payment: Payment) -> str:
    about: list[Dispute | EarlyFraudWarning | Refund] = [*file.disputes.values(), *file.warnings.values()]
    told = [
        f"{fact.id} {fact.status}" if isinstance(fact, Dispute) else f"{fact.id} (early fraud warning)"
        for fact in sorted(about, key=lambda fact: fact.id)
        if is_about(fact, payment)
    ]
    if not told and payment.contest is not Contest.NONE:
        return str(payment.contest.value)
    return _and_more(told[:MAX_LINES], len(told))


def _when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"
