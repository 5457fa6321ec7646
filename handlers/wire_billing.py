"""The wire of billing: prices, invoices with their lines, what paid them, a customer's balance.

Only the fields we read, of the old and the new shapes: `handlers.events` says which those are. `fact(as_of)` is the object
as our value, told at `as_of` (unix seconds); it raises `Unreadable`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from handlers.customer import (
    BalanceTransaction,
    ChargeId,
    CustomerId,
    Invoice,
    InvoiceId,
    InvoicePayment,
    Line,
    PaymentIntentId,
    PriceId,
    ProductId,
    Seconds,
    SubscriptionId,
    SubscriptionItemId,
)
from handlers.wire import (
    ACTION_KEY,
    TEXT,
    Amount,
    Count,
    Currency,
    Expanded,
    ObjectWire,
    Part,
    Ref,
    Signed,
    Text,
    Time,
    id_of,
    metadata_of,
)

MAX_CREDITS = 10**9
"""The most credits that one unit of a price may grant; metadata that says more is taken for a slip and ignored."""
_DIGITS = re.compile(r"[0-9]{1,10}")


def credits_told(value: Any) -> int | None:
    """A number of credits from a price's metadata, or None where it is no whole number from 0 to `MAX_CREDITS`."""
    if not isinstance(value, str) or not _DIGITS.fullmatch(value):
        return None
    return int(value) if int(value) <= MAX_CREDITS else None


class _Recurring(Part):
    interval: Text | None = None
    interval_count: Count | None = None
    usage_type: Text | None = None


class Price(_Recurring, kw_only=True):
    """A price, or an old plan, which carries the fields of `recurring` itself."""

    id: Annotated[PriceId, TEXT]
    product: Ref[ProductId] = None
    recurring: _Recurring | None = None
    type: Text | None = None
    metadata: dict[str, Any] | None = None

    @property
    def credits(self) -> int | None:
        return credits_told(self.metadata.get("credits")) if self.metadata else None

    @property
    def trial_credits(self) -> int | None:
        return credits_told(self.metadata.get("trial_credits")) if self.metadata else None

    @property
    def rhythm(self) -> _Recurring:
        return self.recurring or self

    @property
    def metered(self) -> bool:
        return self.rhythm.usage_type == "metered"


class _Period(Part):
    start: Time
    end: Time


class _Discount(Part):
    amount: Signed
    type: str | None = None


class _Tax(Part):
    amount: Signed
    tax_behavior: str


class _OldTax(Part):
    amount: Signed
    inclusive: bool


class _PriceDetails(Part):
    price: Ref[PriceId] = None
    product: Ref[ProductId] = None


class _Pricing(Part):
    price_details: _PriceDetails | None = None


class _ItemDetails(Part):
    subscription: Ref[SubscriptionId] = None
    subscription_item: Ref[SubscriptionItemId] = None
    invoice_item: Ref[str] = None
    proration: bool | None = None


class _LineParent(Part):
    subscription_item_details: _ItemDetails | None = None
    invoice_item_details: _ItemDetails | None = None


class _Line(_ItemDetails, kw_only=True):
    """A line of an invoice. What new shapes say in `parent`, old ones say in the line itself: hence the base."""

    id: Text
    amount: Signed
    currency: Currency
    period: _Period
    quantity: Count | None = None
    discount_amounts: list[_Discount] | None = None
    pretax_credit_amounts: list[_Discount] | None = None
    taxes: list[_Tax] | None = None
    tax_amounts: list[_OldTax] | None = None
    parent: _LineParent | None = None
    pricing: _Pricing | None = None
    price: Price | None = None
    plan: Price | None = None

    def line(self) -> Line:
        parent = self.parent
        told = (parent.subscription_item_details or parent.invoice_item_details or self) if parent else self
        details = self.pricing.price_details if self.pricing else None
        old = self.price or self.plan
        discount = sum(d.amount for d in self.discount_amounts or ())
        for credit in self.pretax_credit_amounts or ():
            if credit.type == "credit_balance_transaction":  # the type `discount` repeats `discount_amounts`
                discount += credit.amount
        if self.taxes:
            tax = sum(t.amount for t in self.taxes if t.tax_behavior == "exclusive")
        else:
            tax = sum(t.amount for t in self.tax_amounts or () if not t.inclusive)
        return Line(
            id=self.id,
            amount_minor=self.amount,
            currency=self.currency,
            period_start=self.period.start,
            period_end=self.period.end,
            price=id_of(details.price) if details else old.id if old else None,
            product=id_of(details.product) if details else id_of(old.product) if old else None,
            quantity=self.quantity,
            proration=bool(told.proration or self.proration),
            subscription=id_of(told.subscription) or id_of(self.subscription),
            subscription_item=id_of(told.subscription_item) or id_of(self.subscription_item),
            invoice_item=id_of(told.invoice_item) or id_of(self.invoice_item),
            discount_minor=discount,
            tax_exclusive_minor=tax,
            metered=old.metered if old else False,
            credits=old.credits if old else None,
        )


class _LineList(Part):
    data: list[_Line]
    has_more: bool | None = None


class _SubscriptionDetails(Part):
    subscription: Ref[SubscriptionId] = None
    metadata: dict[str, Any] | None = None


class _InvoiceParent(Part):
    subscription_details: _SubscriptionDetails | None = None


class _ShippingCost(Part):
    amount_total: Amount


class _Transitions(Part):
    paid_at: Time | None = None


class InvoiceWire(ObjectWire, tag="invoice"):
    amount_due: Amount
    amount_paid: Amount
    created: Time
    currency: Currency
    starting_balance: Signed
    total: Signed
    status: Text | None = None
    paid: bool | None = None  # old
    customer: Ref[CustomerId] = None
    parent: _InvoiceParent | None = None
    subscription: Ref[SubscriptionId] = None  # old
    subscription_details: _SubscriptionDetails | None = None  # old
    payment_intent: Ref[PaymentIntentId] = None  # old
    charge: Ref[ChargeId] = None  # old
    billing_reason: Text | None = None
    amount_overpaid: Amount | None = None
    amount_paid_off_stripe: Amount | None = None
    paid_out_of_band: bool | None = None  # old
    ending_balance: Signed | None = None
    pre_payment_credit_notes_amount: Amount | None = None
    post_payment_credit_notes_amount: Amount | None = None
    shipping_cost: _ShippingCost | None = None
    attempt_count: Count | None = None
    status_transitions: _Transitions | None = None
    lines: _LineList | None = None
    metadata: dict[str, Any] | None = None
    test_clock: Ref[str] = None

    def fact(self, as_of: Seconds) -> Invoice:
        status = self.status or ("paid" if self.paid else None)
        if status is None:
            raise self.unfit("status", "is missing")
        details = (self.parent.subscription_details if self.parent else None) or self.subscription_details
        credit_notes = (self.pre_payment_credit_notes_amount or 0) + (self.post_payment_credit_notes_amount or 0)
        return Invoice(
            id=self.id,
            as_of=as_of,
            customer=id_of(self.customer),
            subscription=(id_of(details.subscription) if details else None) or id_of(self.subscription),
            payment_intent=id_of(self.payment_intent),
            charge=id_of(self.charge),
            billing_reason=self.billing_reason or "",
            status=status,
            currency=self.currency,
            total_minor=self.total,
            amount_due_minor=self.amount_due,
            amount_paid_minor=self.amount_paid,
            overpaid_minor=self.amount_overpaid,
            off_stripe_minor=self.off_stripe_minor(),
            starting_balance_minor=self.starting_balance,
            ending_balance_minor=self.ending_balance,
            credit_notes_minor=credit_notes,
            shipping_minor=self.shipping_cost.amount_total if self.shipping_cost else 0,
            attempt_count=self.attempt_count or 0,
            created=self.created,
            paid_at=self.status_transitions.paid_at if self.status_transitions else None,
            lines=tuple([line.line() for line in self.lines.data]) if self.lines else (),
            lines_complete=self.lines is not None and self.lines.has_more is False,
            subscription_metadata=metadata_of(details.metadata) if details else {},
            metadata=metadata_of(self.metadata),
            test_clock=self.test_clock is not None,
        )

    def off_stripe_minor(self) -> int:
        """Money that Stripe was only told of. An old invoice paid that way may say that nothing was paid."""
        if self.amount_paid_off_stripe is not None:
            return self.amount_paid_off_stripe
        return (self.amount_paid or self.amount_due) if self.paid_out_of_band else 0


class _InvoicePaymentOf(Part):
    type: Text | None = None
    payment_intent: Ref[PaymentIntentId] = None
    charge: Ref[ChargeId] = None


class InvoicePaymentWire(ObjectWire, tag="invoice_payment"):
    created: Time
    currency: Currency
    invoice: Annotated[InvoiceId, TEXT] | Expanded[InvoiceId]
    payment: _InvoicePaymentOf
    status: Text
    amount_paid: Amount | None = None
    status_transitions: _Transitions | None = None

    def fact(self, as_of: Seconds) -> InvoicePayment:
        return InvoicePayment(
            id=self.id,
            as_of=as_of,
            invoice=self.invoice.id if isinstance(self.invoice, Expanded) else self.invoice,
            payment_type=self.payment.type or "",
            payment_intent=id_of(self.payment.payment_intent),
            charge=id_of(self.payment.charge),
            status=self.status,
            amount_paid_minor=self.amount_paid,
            currency=self.currency,
            created=self.created,
            paid_at=self.status_transitions.paid_at if self.status_transitions else None,
        )


class BalanceTransactionWire(ObjectWire, tag="customer_balance_transaction"):
    amount: Signed
    created: Time
    currency: Currency
    customer: Annotated[CustomerId, TEXT] | Expanded[CustomerId]
    ending_balance: Signed
    type: Text
    invoice: Ref[InvoiceId] = None
    metadata: dict[str, Any] | None = None

    def transaction(self) -> BalanceTransaction:
        return BalanceTransaction(
            id=self.id,
            type=self.type,
            amount_minor=self.amount,
            ending_balance_minor=self.ending_balance,
            currency=self.currency,
            created=self.created,
            invoice=id_of(self.invoice),
            action=metadata_of(self.metadata).get(ACTION_KEY),
        )
