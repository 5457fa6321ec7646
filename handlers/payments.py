"""What a payment is, what it paid for, and whether its money still stands: the groundwork that the rules of 4.3 share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from enum import Enum

import msgspec

from handlers.customer import (
    Charge,
    ChargeId,
    CheckoutSession,
    CustomerFile,
    CustomerId,
    Dispute,
    Fact,
    Invoice,
    InvoiceId,
    InvoicePayment,
    Line,
    Metadata,
    PaymentIntent,
    Refund,
    Seconds,
)
from handlers.decisions import Money, PaidPeriod

NOT_SERVICE = ("subscription_threshold", "subscription_update")
"""Billing reasons whose lines are usage or prorations, never a service period bought anew."""


class Contest(Enum):
    """What the disputes of one charge come to (settled reading 8, chargebacks in full)."""

    NONE = "none"
    OPEN = "open"
    WON = "won"
    PARTLY_LOST = "partly lost"
    MONEY_BACK = "money back"


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """A succeeded, captured charge with everything known about it. Amounts in minor units of `currency`."""

    charge: Charge
    intent: PaymentIntent | None
    invoice_ids: tuple[InvoiceId, ...]
    """The invoices it paid, as far as told; empty for a bare payment."""
    invoice: Invoice | None
    """The (first) invoice it paid; None for a bare payment, and while that invoice has not been told of yet."""
    session: CheckoutSession | None
    paid_at: Seconds
    refunded_minor: int
    lost_minor: int
    """What disputes took back."""
    contest: Contest
    acted: bool
    """Our own refund of it was begun: it no longer stands, and is not decided again."""

    @property
    def id(self) -> str:
        return self.charge.id

    @property
    def invoice_id(self) -> InvoiceId | None:
        return self.invoice_ids[0] if self.invoice_ids else None

    @property
    def order(self) -> tuple[Seconds, str]:
        """Which payment is earlier: by the second it succeeded, then by id in byte order (readings 14 and 27)."""
        return self.paid_at, self.charge.id

    @property
    def currency(self) -> str:
        return self.charge.currency

    @property
    def left_minor(self) -> int:
        """What could still be refunded."""
        return max(self.charge.captured_minor - self.refunded_minor - self.lost_minor, 0)

    @property
    def stands(self) -> bool:
        """Captured, not wholly given back, not taken back by the bank (rule 1)."""
        return not self.acted and self.left_minor > 0

    @property
    def metadata(self) -> Metadata:
        """The charge's metadata, with the payment intent's and the session's where the charge is silent."""
        parts = (self.session.metadata if self.session else {}, self.intent.metadata if self.intent else {})
        return {**parts[0], **parts[1], **self.charge.metadata}

    @property
    def bare(self) -> bool:
        """A payment for no invoice."""
        return not self.invoice_ids


def payments_of(file: CustomerFile, acted: frozenset[str], *, test_clocks: bool) -> list[Payment]:
    """Every payment in the file, earliest first. `acted` names charges whose refund we have begun to send."""
    links, by_charge = _Links(file), _ByCharge(file)
    sessions = {s.payment_intent: s for s in sorted(file.sessions.values(), key=_by_id) if s.payment_intent}
    found = []
    for charge in file.charges.values():
        if charge.status != "succeeded" or not charge.captured or charge.captured_minor <= 0:
            continue
        named, paid_at = links(charge)
        invoices = [file.invoices[id_] for id_ in named if id_ in file.invoices]
        if not test_clocks and (
            on_test_clock(file, charge.customer, None) or any(on_test_clock(file, None, i) for i in invoices)
        ):
            continue
        refunds, disputes = by_charge(charge)
        refunded = refunded_minor(charge, refunds)
        state, lost_minor = contest(charge, disputes, refunded)
        found.append(
            Payment(
                charge=charge,
                intent=file.intents.get(charge.payment_intent or ""),
                invoice_ids=tuple(named),
                invoice=file.invoices.get(named[0]) if named else None,
                session=sessions.get(charge.payment_intent) if charge.payment_intent else None,
                paid_at=charge.created if charge.method == "card" or paid_at is None else max(charge.created, paid_at),
                refunded_minor=refunded,
                lost_minor=lost_minor,
                contest=state,
                acted=charge.id in acted,
            )
        )
    return sorted(found, key=lambda payment: payment.order)


def on_test_clock(file: CustomerFile, customer: CustomerId | None, invoice: Invoice | None) -> bool:
    """Objects on a test clock are a rehearsal and left alone (reading 28)."""
    owner = file.customers.get(customer or "")
    subscription = file.subscriptions.get(invoice.subscription or "") if invoice else None
    return any(thing is not None and thing.test_clock for thing in (owner, invoice, subscription))


def _by_id(fact: Fact) -> str:
    return fact.id


class _Links:
    """Charge -> the invoices it paid, through invoice payments (new shapes) and the objects' own fields (old ones)."""

    def __init__(self, file: CustomerFile) -> None:
        self.file = file
        self.paid: dict[str, list[InvoicePayment]] = defaultdict(list)
        self.old: dict[str, set[InvoiceId]] = defaultdict(set)
        for row in file.invoice_payments.values():
            for reference in (row.payment_intent, row.charge):
                if reference:
                    self.paid[reference].append(row)
        for invoice in file.invoices.values():
            for link in (invoice.payment_intent, invoice.charge):
                if link:
                    self.old[link].add(InvoiceId(invoice.id))

    def __call__(self, charge: Charge) -> tuple[list[InvoiceId], Seconds | None]:
        keys = [key for key in (charge.id, charge.payment_intent) if key]
        rows = [row for key in keys for row in self.paid.get(key, ())]
        intent = self.file.intents.get(charge.payment_intent or "")
        named = {row.invoice for row in rows if row.status != "canceled"}
        named.update(*(self.old.get(key, ()) for key in keys))
        named.update(link for link in (charge.invoice, intent.invoice if intent else None) if link)
        # a canceled invoice payment whose money came all the same: marked paid elsewhere meanwhile (D2)
        named = named or {row.invoice for row in rows}
        paid_at = max((row.paid_at for row in rows if row.paid_at is not None), default=None)
        return sorted(named), paid_at


class _ByCharge:
    """Charge -> its refunds and disputes, also those that name only the payment intent."""

    def __init__(self, file: CustomerFile) -> None:
        self.refunds: dict[str, list[Refund]] = defaultdict(list)
        self.disputes: dict[str, list[Dispute]] = defaultdict(list)
        for refund in file.refunds.values():
            self.refunds[refund.charge or refund.payment_intent or ""].append(refund)
        for dispute in file.disputes.values():
            self.disputes[dispute.charge or dispute.payment_intent or ""].append(dispute)

    def __call__(self, charge: Charge) -> tuple[list[Refund], list[Dispute]]:
        intent = charge.payment_intent or "-"
        return (
            self.refunds.get(charge.id, []) + self.refunds.get(intent, []),
            self.disputes.get(charge.id, []) + self.disputes.get(intent, []),
        )


def refunded_minor(charge: Charge, refunds: Iterable[Refund]) -> int:
    """What went back of a charge: its own figure as of when it was told, corrected by what its refunds say since.

    A refund that failed after that moment is still inside the figure, one that was made after it is not. Where the two
    sources cannot be reconciled the larger sum counts: better one refund too few.
    """
    known = list(refunds)
    within = sum(r.amount_minor for r in known if r.live and r.created <= charge.as_of)
    since = sum(r.amount_minor for r in known if r.live and r.created > charge.as_of)
    told = charge.refunded_minor
    failed_since = sum(r.amount_minor for r in known if not r.live and r.created <= charge.as_of < r.as_of)
    if failed_since <= told - within:
        told -= failed_since
    return max(within, told) + since


def contest(charge: Charge, disputes: Iterable[Dispute], refunded: int) -> tuple[Contest, int]:
    """What the charge's disputes come to, and how much they took back. A status we do not know counts as open."""
    known = list(disputes)
    statuses = {dispute.status for dispute in known}
    taken_minor = sum(d.amount_minor for d in known if d.status in ("lost", "prevented"))
    if statuses - {"warning_closed", "won", "lost", "prevented"}:
        return Contest.OPEN, taken_minor
    if charge.disputed and not known:
        return Contest.OPEN, 0  # the charge says disputed, and none was told of yet: nothing is assumed about it
    if taken_minor:
        whole = taken_minor >= charge.captured_minor - refunded
        return (Contest.MONEY_BACK if whole else Contest.PARTLY_LOST), taken_minor
    return (Contest.WON if "won" in statuses else Contest.NONE), 0


def service_lines(file: CustomerFile, invoice: Invoice) -> list[Line]:
    """The lines that buy a service period: recurring, not a proration, not usage, not free."""
    if invoice.billing_reason in NOT_SERVICE:
        return []
    subscription = file.subscriptions.get(invoice.subscription or "")
    metered = {item.price for item in subscription.items if item.metered} if subscription else set()
    return [
        line
        for line in invoice.lines
        if line.subscription_item
        and not line.proration
        and not line.metered
        and line.price not in metered
        and line.net_minor > 0
        and line.period_end > line.period_start
    ]


BARE_PERIOD_S = 7 * 86_400
"""How long a payment without an invoice looks like a copy of an equal one (D6 and D7 reach days)."""


def paid_periods(file: CustomerFile, payments: Iterable[Payment]) -> list[PaidPeriod]:
    """What each payment paid for, one row per thing, so that overlaps can be found over all files at once.

    A first sight only, wider than the rules: whoever overlaps here is judged by them.
    """
    found = []
    for payment in payments:
        spans: dict[str, tuple[int, Seconds, Seconds]] = {}
        for line in service_lines(file, payment.invoice) if payment.invoice else ():
            thing = line.product or line.price or "?"
            minor, start, end = spans.get(thing, (0, line.period_start, line.period_end))
            spans[thing] = minor + line.net_minor, min(start, line.period_start), max(end, line.period_end)
        if payment.bare and payment.charge.customer:
            bare = f"bare {payment.charge.captured_minor}"
            spans = {bare: (payment.charge.captured_minor, payment.paid_at, payment.paid_at + BARE_PERIOD_S)}
        found += [
            PaidPeriod(
                charge=ChargeId(payment.id),
                customer=payment.charge.customer or CustomerId(payment.id),
                thing=thing,
                amount_minor=minor,
                currency=payment.currency,
                paid_at=payment.paid_at,
                start=start,
                end=end,
            )
            for thing, (minor, start, end) in sorted(spans.items())
        ]
    return found


def overlap_s(a: Line, b: Line) -> Seconds:
    """Seconds that two service periods share; adjacent periods share none."""
    return max(0, min(a.period_end, b.period_end) - max(a.period_start, b.period_start))


def closes(invoice: Invoice, paid: Payment) -> str | None:
    """Why an invoice's arithmetic does not close to the cent with its total and payment, or None where it does (rule 2)."""
    if invoice.status != "paid":
        return f"the invoice {invoice.id} is not known as paid ({invoice.status})"
    if not invoice.lines_complete:
        return f"only a part of the lines of invoice {invoice.id} is known"
    if any(line.currency != invoice.currency for line in invoice.lines) or paid.currency != invoice.currency:
        return f"the invoice {invoice.id} and its payment are not in one currency"
    total, due = Money(invoice.total_minor, invoice.currency), Money(invoice.amount_due_minor, invoice.currency)
    lines = Money(sum(line.net_minor for line in invoice.lines) + invoice.shipping_minor, invoice.currency)
    captured = Money(paid.charge.captured_minor, paid.currency)
    if lines != total:
        return f"the lines of invoice {invoice.id} come to {lines}, its total is {total}"
    if invoice.credit_notes_minor:
        return f"a credit note was written for invoice {invoice.id}"
    if due != total:
        return f"invoice {invoice.id} was partly settled with the customer's balance ({due} of {total} was due)"
    if captured != due:
        return f"the payment was {captured}, but {due} was due on invoice {invoice.id}"
    return None
