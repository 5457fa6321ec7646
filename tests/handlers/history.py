"""A customer's history as facts, written as a story: who subscribed when, what was paid, refunded, disputed. Independent of the sandbox."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from handlers.customer import (
    BALANCE_READ_PREFIX,
    BalanceRead,
    BalanceTransaction,
    Charge,
    ChargeId,
    CheckoutSession,
    Customer,
    CustomerFile,
    CustomerId,
    Dispute,
    Fact,
    Invoice,
    InvoiceId,
    InvoicePayment,
    Line,
    PaymentIntent,
    PaymentIntentId,
    PriceId,
    ProductId,
    Refund,
    Subscription,
    SubscriptionId,
    SubscriptionItem,
    SubscriptionItemId,
    at,
)
from handlers.decisions import Acted, Judgement
from handlers.duplicates import judge
from handlers.terms import SHIPPED_POLICY, Policy, load_policy, parse_policy

T0 = 1_767_225_600  # 2026-01-01T00:00:00Z
MINUTE, HOUR, DAY = 60, 3600, 86400
MONTH = 30 * DAY

POLICY = load_policy(SHIPPED_POLICY)


def policy_with(*changes: tuple[str, str], agreement: str = "") -> Policy:
    """The shipped policy with some of its text replaced, and perhaps an agreement added."""
    text = SHIPPED_POLICY.read_text(encoding="utf-8")
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return parse_policy(text + agreement)


REVERSING = policy_with(("reverse_overpaid_credit = false", "reverse_overpaid_credit = true"))
RECOVERING = policy_with(('late_recovery = "review"', 'late_recovery = "refund"'))


@dataclass(frozen=True)
class Sold:
    """What one line sells. `amount` is the line's amount before discount and exclusive tax."""

    price: str = "price_basic"
    amount: int = 2900
    quantity: int = 1
    discount: int = 0
    tax: int = 0
    product: str | None = None
    metered: bool = False
    proration: bool = False
    once: bool = False
    """A one-time line (pack, fee) instead of an item of the subscription."""
    period: int | None = None
    """Length of its period in seconds, where it differs from the others'."""

    @property
    def net(self) -> int:
        return self.amount - self.discount + self.tax


@dataclass
class Billed:
    """One invoice and what paid it."""

    invoice: str
    charge: str
    intent: str
    customer: str
    total: int
    start: int
    end: int


@dataclass
class Bought:
    """One subscription with its invoices."""

    id: str
    customer: str
    items: tuple[Sold, ...]
    currency: str
    period_s: int
    invoices: list[Billed] = field(default_factory=list)

    @property
    def first(self) -> Billed:
        return self.invoices[0]

    @property
    def charge(self) -> str:
        return self.invoices[0].charge


class History:
    """Facts in the making. Times are seconds after T0; every id is counted up, so equal stories have equal ids."""

    def __init__(self) -> None:
        self.tellings: list[Fact] = []
        self.latest: dict[str, Any] = {}
        self._count: dict[str, int] = {}

    # the telling of facts

    def tell(self, fact: Fact) -> None:
        self.tellings.append(fact)
        self.latest[fact.id] = fact

    def change(self, id_: str, *, when: int | None = None, **fields: Any) -> None:
        """A later telling of a known object; by default a second after the last one."""
        known = self.latest[id_]
        as_of = known.as_of + 1 if when is None else T0 + when
        self.tell(msgspec.structs.replace(known, as_of=as_of, **fields))

    def forget(self, *ids: str) -> None:
        """As if nothing had been told of these objects yet."""
        self.tellings = [fact for fact in self.tellings if fact.id not in ids]
        for id_ in ids:
            self.latest.pop(id_, None)

    def id(self, prefix: str) -> str:
        self._count[prefix] = self._count.get(prefix, 0) + 1
        return f"{prefix}_{self._count[prefix]:04d}"

    # who

    def customer(
        self, id_: str = "cus_A", *, email: str | None = None, test_clock: bool = False, **metadata: str
    ) -> str:
        self.tell(Customer(id=id_, as_of=T0, created=T0, email_hash=email, metadata=metadata, test_clock=test_clock))
        return id_

    # what

    def subscribe(
        self,
        when: int = 0,
        *items: Sold,
        customer: str = "cus_A",
        extra: tuple[Sold, ...] = (),
        currency: str = "usd",
        period_s: int = MONTH,
        metadata: dict[str, str] | None = None,
        session: dict[str, str] | None = None,
        reference: str | None = None,
        paid_when: int | None = None,
        status: str = "active",
        test_clock: bool = False,
        trial_until: int | None = None,
        **payment: Any,
    ) -> Bought:
        """A subscription with its first invoice, paid at `paid_when` (by default at once)."""
        items = items or (Sold(),)
        sub = Bought(self.id("sub"), customer, items, currency, period_s)
        self.tell(
            Subscription(
                id=sub.id,
                as_of=T0 + when,
                customer=CustomerId(customer),
                status="trialing" if trial_until is not None else status,
                currency=currency,
                created=T0 + when,
                metadata=metadata or {},
                test_clock=test_clock,
                trial_start=T0 + when if trial_until is not None else None,
                trial_end=T0 + trial_until if trial_until is not None else None,
                items=tuple(
                    SubscriptionItem(
                        id=SubscriptionItemId(f"si_{sub.id}_{n}"),
                        price=PriceId(item.price),
                        product=ProductId(item.product or f"prod_{item.price}"),
                        quantity=item.quantity,
                        interval="month",
                        metered=item.metered,
                        period_start=T0 + when,
                        period_end=T0 + when + period_s,
                    )
                    for n, item in enumerate(items)
                ),
            )
        )
        if session is not None or reference is not None:
            self.session(when, sub=sub, reference=reference, **(session or {}))
        if trial_until is None:
            self.bill(
                sub,
                when,
                *items,
                *extra,
                reason="subscription_create",
                paid_when=when if paid_when is None else paid_when,
                metadata=metadata,
                **payment,
            )
        return sub

    def renew(self, sub: Bought, *, paid_when: int | None = None, **more: Any) -> Billed:
        """The next period of a subscription, paid when it begins unless told otherwise."""
        start = sub.invoices[-1].end
        return self.bill(
            sub,
            start,
            *sub.items,
            reason="subscription_cycle",
            paid_when=start if paid_when is None else paid_when,
            **more,
        )

    def bill(
        self,
        sub: Bought,
        start: int,
        *lines: Sold,
        reason: str,
        paid_when: int,
        metadata: dict[str, str] | None = None,
        attempts: int = 1,
        created: int | None = None,
        end: int | None = None,
        balance: int = 0,
        off_stripe: int = 0,
        **payment: Any,
    ) -> Billed:
        """An invoice of a subscription with its lines, paid by one charge of what is due after `balance`."""
        end = start + sub.period_s if end is None else end
        total = sum(line.net for line in lines)
        invoice = self.id("in")
        told = tuple(self._line(sub, n, sold, start, end, f"il_{invoice}") for n, sold in enumerate(lines))
        self.tell(
            Invoice(
                id=invoice,
                as_of=T0 + paid_when,
                customer=CustomerId(sub.customer),
                subscription=SubscriptionId(sub.id),
                billing_reason=reason,
                status="paid",
                currency=sub.currency,
                total_minor=total,
                amount_due_minor=total - balance,
                amount_paid_minor=total - balance,
                overpaid_minor=0,
                off_stripe_minor=off_stripe,
                starting_balance_minor=-balance,
                attempt_count=attempts,
                created=T0 + (start if created is None else created),
                paid_at=T0 + paid_when,
                lines=told,
                subscription_metadata=metadata or {},
            )
        )
        charge, intent = self._pay(invoice, paid_when, total - balance, sub.currency, sub.customer, **payment)
        billed = Billed(invoice, charge, intent, sub.customer, total, start, end)
        sub.invoices.append(billed)
        return billed

    def _line(self, sub: Bought, n: int, sold: Sold, start: int, end: int, prefix: str) -> Line:
        until = end if sold.period is None else start + sold.period
        place = next((i for i, item in enumerate(sub.items) if item.price == sold.price), n)
        return Line(
            id=f"{prefix}_{n}",
            amount_minor=sold.amount,
            currency=sub.currency,
            period_start=T0 + start,
            period_end=T0 + until,
            price=PriceId(sold.price),
            product=ProductId(sold.product or f"prod_{sold.price}"),
            quantity=sold.quantity,
            subscription=SubscriptionId(sub.id),
            subscription_item=None if sold.once else SubscriptionItemId(f"si_{sub.id}_{place}"),
            invoice_item=f"ii_{prefix}_{n}" if sold.once else None,
            discount_minor=sold.discount,
            tax_exclusive_minor=sold.tax,
            proration=sold.proration,
        )

    def _pay(
        self, invoice: str | None, when: int, amount: int, currency: str, customer: str, **charge: Any
    ) -> tuple[str, str]:
        id_, intent = charge.pop("id", None) or self.id("ch"), self.id("pi")
        metadata, method = charge.pop("metadata", {}), charge.pop("method", "card")
        created = charge.pop("begun", when)
        self.tell(
            PaymentIntent(
                id=intent,
                as_of=T0 + when,
                customer=CustomerId(customer),
                latest_charge=ChargeId(id_),
                amount_minor=amount,
                currency=currency,
                status="succeeded",
                created=T0 + created,
                metadata=metadata,
            )
        )
        self.tell(
            Charge(
                id=id_,
                as_of=T0 + when,
                customer=CustomerId(customer),
                payment_intent=PaymentIntentId(intent),
                amount_minor=amount,
                captured_minor=charge.pop("captured_minor", amount),
                currency=currency,
                status=charge.pop("status", "succeeded"),
                captured=charge.pop("captured", True),
                created=T0 + created,
                method=method,
                card_fingerprint=charge.pop("card", None),
                email_hash=charge.pop("email", None),
                **charge,
            )
        )
        if invoice is not None:
            self.tell(
                InvoicePayment(
                    id=self.id("inpay"),
                    as_of=T0 + when,
                    invoice=InvoiceId(invoice),
                    payment_type="payment_intent",
                    payment_intent=PaymentIntentId(intent),
                    status="paid",
                    amount_paid_minor=amount,
                    currency=currency,
                    created=T0 + created,
                    paid_at=T0 + when,
                )
            )
        return id_, intent

    def pay_again(self, billed: Billed, when: int, amount: int | None = None, **charge: Any) -> str:
        """A further successful payment of the same invoice (D1). What Stripe books for it is told by `balance_read`."""
        invoice: Invoice = self.latest[billed.invoice]
        paid = invoice.amount_due_minor if amount is None else amount
        return self._pay(billed.invoice, when, paid, invoice.currency, billed.customer, **charge)[0]

    def bare(
        self, when: int, amount: int = 2900, *, currency: str = "usd", customer: str = "cus_A", **metadata: str
    ) -> str:
        """A payment without an invoice."""
        return self._pay(None, when, amount, currency, customer, metadata=metadata)[0]

    def failed(self, billed: Billed, when: int) -> str:
        """A failed attempt of an invoice's own payment intent."""
        known: Charge = self.latest[billed.charge]
        id_ = self.id("ch")
        self.tell(
            msgspec.structs.replace(
                known, id=id_, as_of=T0 + when, created=T0 + when, status="failed", captured=False, captured_minor=0
            )
        )
        return id_

    def session(
        self,
        when: int,
        *,
        sub: Bought | None = None,
        charge: str | None = None,
        reference: str | None = None,
        **metadata: str,
    ) -> str:
        """A Checkout session that made a subscription, or a one-time payment."""
        id_ = self.id("cs")
        intent = self.latest[charge].payment_intent if charge else None
        self.tell(
            CheckoutSession(
                id=id_,
                as_of=T0 + when,
                customer=CustomerId(sub.customer if sub else self.latest[charge or ""].customer),
                mode="subscription" if sub else "payment",
                payment_status="paid",
                status="complete",
                created=T0 + when,
                client_reference_id=reference,
                metadata=metadata,
                payment_intent=intent,
                subscription=SubscriptionId(sub.id) if sub else None,
            )
        )
        return id_

    # what went back

    def refund(
        self,
        charge: str,
        when: int,
        amount: int | None = None,
        *,
        status: str = "succeeded",
        action: str | None = None,
        figure: bool = True,
    ) -> str:
        """A refund, and (with `figure`) the charge told anew with it."""
        known: Charge = self.latest[charge]
        minor = known.captured_minor - known.refunded_minor if amount is None else amount
        id_ = self.id("re")
        self.tell(
            Refund(
                id=id_,
                as_of=T0 + when,
                charge=ChargeId(charge),
                amount_minor=minor,
                currency=known.currency,
                status=status,
                created=T0 + when,
                action=action,
            )
        )
        if figure and status not in ("failed", "canceled"):
            self.change(charge, when=when, refunded_minor=known.refunded_minor + minor)
        return id_

    def dispute(self, charge: str, status: str, when: int = DAY, amount: int | None = None) -> str:
        """A dispute in its present status."""
        known: Charge = self.latest[charge]
        id_ = self.id("dp")
        self.tell(
            Dispute(
                id=id_,
                as_of=T0 + when,
                charge=ChargeId(charge),
                amount_minor=known.amount_minor if amount is None else amount,
                currency=known.currency,
                status=status,
                created=T0 + when,
            )
        )
        self.change(charge, when=when, disputed=True)
        return id_

    def balance_read(
        self, when: int, *rows: tuple[str, int, str | None], customer: str = "cus_A", complete: bool = True
    ) -> None:
        """The customer's balance as read: rows of (type, amount, invoice), oldest first; negative is credit."""
        told, balance = [], 0
        for n, (kind, amount, invoice) in enumerate(rows):
            balance += amount
            told.append(
                BalanceTransaction(
                    id=f"cbtxn_{n:02d}",
                    type=kind,
                    amount_minor=amount,
                    ending_balance_minor=balance,
                    currency="usd",
                    created=T0 + when,
                    invoice=InvoiceId(invoice) if invoice else None,
                )
            )
        self.tell(
            BalanceRead(
                id=f"{BALANCE_READ_PREFIX}{customer}",
                as_of=T0 + when,
                customer=CustomerId(customer),
                transactions=tuple(reversed(told)),
                complete=complete,
            )
        )

    def end(self, sub: Bought, when: int) -> None:
        """The subscription ended at once."""
        self.change(sub.id, when=when, status="canceled", ended_at=T0 + when, canceled_at=T0 + when)

    def schedule_end(self, sub: Bought, when: int) -> None:
        """The customer asked for an end with the period."""
        self.change(sub.id, when=when, cancel_at_period_end=True, canceled_at=T0 + when)

    # the verdict

    def file(self) -> CustomerFile:
        return CustomerFile(self.tellings)

    def judge(
        self,
        policy: Policy = POLICY,
        *,
        acted: tuple[Acted, ...] = (),
        now: datetime | None = None,
        test_clocks: bool = False,
    ) -> Judgement:
        moment = now or at(max((fact.as_of for fact in self.tellings), default=T0) + HOUR)
        return judge(self.file(), policy, moment, acted=acted, test_clocks=test_clocks)
