"""What arrives from Stripe, in every API shape that is in use, as our values; Stripe's shapes stop here.

Shapes told apart: up to 2025-02-24.acacia ("old"), and 2025-03-31.basil up to 2026-10-28.endive ("new"). One object may
carry fields of both; the new one wins. Unknown fields and unknown enum values pass, a missing or unfit value that
we need never does: it is named in an `Unreadable`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from handlers import HANDLERS
from handlers.customer import (
    BALANCE_READ_PREFIX,
    AnyFact,
    BalanceRead,
    BalanceTransaction,
    Charge,
    ChargeId,
    CheckoutSession,
    Customer,
    CustomerId,
    Dispute,
    DisputeId,
    EarlyFraudWarning,
    Invoice,
    InvoiceId,
    InvoicePayment,
    Line,
    Metadata,
    PaymentIntent,
    PaymentIntentId,
    PriceId,
    ProductId,
    Refund,
    Seconds,
    Subscription,
    SubscriptionId,
    SubscriptionItem,
    SubscriptionItemId,
)

T = TypeVar("T", bound=str)
W = TypeVar("W")

MAX_MINOR = 2**48 - 1
"""Largest amount we read: `progress` in customer.py packs amounts below 48 bits, and no sum of lines can pass 64."""
MAX_SECONDS = 253_402_300_799
"""The last second of the year 9999, the last one a datetime can hold."""
ACTION_KEY = "finalsale_action"
"""Metadata key under which the objects that we make at Stripe carry the id of our action."""

# No control characters: these end in text columns, and PostgreSQL refuses NUL. Customer and price ids may be the merchant's own.
_TEXT = Meta(pattern=r"\A[^\x00-\x1f\x7f]{1,255}\Z")
Text: TypeAlias = Annotated[str, _TEXT]
Currency: TypeAlias = Annotated[str, Meta(pattern=r"\A[a-z0-9]{3,12}\Z")]
Amount: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_MINOR)]
Signed: TypeAlias = Annotated[int, Meta(ge=-MAX_MINOR, le=MAX_MINOR)]
Time: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_SECONDS)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_MINOR)]


class Unreadable(ValueError):
    """An object lacks what we need, or has it in a form we must not guess at. The event belongs into quarantine.

    `field` is the dotted path of what is wrong, as `invoice.lines.data.0.period`. No value is quoted, ids aside.
    """

    def __init__(self, object_type: str, object_id: str | None, field: str, problem: str) -> None:
        super().__init__(f"{object_type} {object_id or '(no id)'}: {field}: {problem}")
        self.object_type = object_type
        self.object_id = object_id
        self.field = field


class Hint(Struct, frozen=True):
    """What a thin event says: this object changed, read it. `url` is its path in the API, without host."""

    object_type: str
    id: str
    url: str


class Told(Struct, frozen=True, kw_only=True):
    """One event. `fact` for a snapshot event of a type in `HANDLERS`, `hint` for a thin one about such an object."""

    event_id: str
    type: str
    created: Seconds
    api_version: str | None = None
    livemode: bool
    account: str | None = None
    fact: AnyFact | None = None
    hint: Hint | None = None
    previous_status: str | None = None


def parse_event(payload: bytes) -> Told:
    """A webhook's body, snapshot or thin, as what it tells. Raises `Unreadable`.

    An event type that is not in `HANDLERS` has neither fact nor hint. Source: docs.stripe.com/webhooks and /event-destinations.
    """
    event = _read(_EVENT, _utf8(payload, "event"), "event")
    if isinstance(event, _ThinEvent):
        created = int(event.created.timestamp())
        if not 0 <= created <= MAX_SECONDS:
            raise Unreadable("event", event.id, "event.created", "out of range")
        return Told(
            event_id=event.id,
            type=event.type,
            created=created,
            livemode=event.livemode,
            account=_account(event.account, event.context),
            hint=_hint(event.related_object),
        )
    kind = HANDLERS.get(event.type)
    fact = None if kind is None else _fact(event.data.object, event.created, kind)
    if event.type == "customer.deleted" and isinstance(fact, Customer):
        fact = msgspec.structs.replace(fact, deleted=True)
    previous = event.data.previous_attributes
    return Told(
        event_id=event.id,
        type=event.type,
        created=event.created,
        api_version=event.api_version,
        livemode=event.livemode,
        account=_account(event.account, event.context),
        fact=fact,
        previous_status=previous.status if previous is not None and isinstance(previous.status, str) else None,
    )


def read_object(obj: bytes, as_of: Seconds) -> AnyFact:
    """One object as the API returned it at `as_of` (unix seconds of the `Date` header). Raises `Unreadable`."""
    return _fact(_utf8(obj, "object"), as_of)


def read_list(page: bytes, as_of: Seconds) -> tuple[list[AnyFact], bool]:
    """One page of an API list, in the page's order, and its `has_more`. Raises `Unreadable` for the first bad object."""
    listed = _read(_PAGE, _utf8(page, "list"), "list")
    return [_fact(raw, as_of) for raw in listed.data], listed.has_more


def read_balance(customer: CustomerId, pages: Iterable[bytes], as_of: Seconds) -> BalanceRead:
    """The pages of a customer's balance transactions, newest first, as one fact. Raises `Unreadable`.

    Complete only where the last page says that no more follows. Source: docs.stripe.com/api/customer_balance_transactions.
    """
    transactions: list[BalanceTransaction] = []
    complete = False
    for page in pages:
        listed = _read(_PAGE, _utf8(page, "list"), "list")
        for raw in listed.data:
            wire = _read(_BALANCE_TRANSACTION, raw, "customer_balance_transaction")
            if _id(wire.customer) != customer:
                raise wire.unfit("customer", "is another customer")
            transactions.append(wire.transaction())
        complete = not listed.has_more
    key = BALANCE_READ_PREFIX + customer
    return BalanceRead(id=key, as_of=as_of, customer=customer, transactions=tuple(transactions), complete=complete)


def email_hash(email: str) -> str:
    """An e-mail address as 32 hex digits, equal for equal addresses whatever their case; the address itself is not kept."""
    return hashlib.sha256(email.strip().lower().encode()).hexdigest()[:32]


# --- the wire: only the fields we read, of both shapes ------------------------------------------------------------------


class _Part(Struct):
    """A part of an object. Not tracked by the garbage collector: decoded values hold no cycles."""


class _Expanded(_Part, Generic[T]):
    """An object where an id would do: the caller asked for `expand[]`, or it was deleted."""

    id: Annotated[T, _TEXT]


Ref: TypeAlias = Annotated[T, _TEXT] | _Expanded[T] | None


class _Email(_Part):
    email: str | None = None


class _Fingerprint(_Part):
    fingerprint: Text | None = None


class _PaymentMethodDetails(_Part):
    type: Text | None = None
    card: _Fingerprint | None = None


class _Object(Struct, tag_field="object"):
    """A whole object, known by its `object` field."""

    id: Text

    def unfit(self, path: str, problem: str) -> Unreadable:
        """The error for the field at `path` inside this object."""
        kind = str(self.__struct_config__.tag)
        return Unreadable(kind, self.id, f"{kind}.{path}", problem)


class _Charge(_Object, tag="charge"):
    amount: Amount
    amount_refunded: Amount
    captured: bool
    created: Time
    currency: Currency
    status: Text
    amount_captured: Amount | None = None  # not in the oldest shapes, which capture all or nothing
    disputed: bool | None = None
    dispute: Ref[DisputeId] = None  # old, where `disputed` is absent
    customer: Ref[CustomerId] = None
    payment_intent: Ref[PaymentIntentId] = None
    invoice: Ref[InvoiceId] = None  # old
    payment_method_details: _PaymentMethodDetails | None = None
    billing_details: _Email | None = None
    metadata: dict[str, Any] | None = None

    def fact(self, as_of: Seconds) -> Charge:
        captured = self.amount_captured
        method = self.payment_method_details
        return Charge(
            id=self.id,
            as_of=as_of,
            customer=_id(self.customer),
            payment_intent=_id(self.payment_intent),
            invoice=_id(self.invoice),
            amount_minor=self.amount,
            captured_minor=captured if captured is not None else self.amount if self.captured else 0,
            refunded_minor=self.amount_refunded,
            currency=self.currency,
            status=self.status,
            captured=self.captured,
            disputed=self.dispute is not None if self.disputed is None else self.disputed,
            created=self.created,
            method=(method.type or "") if method else "",
            card_fingerprint=method.card.fingerprint if method and method.card else None,
            email_hash=_hashed(self.billing_details.email if self.billing_details else None),
            metadata=_metadata(self.metadata),
        )


class _ChargeList(_Part):
    data: list[_Expanded[ChargeId]] = []


class _PaymentIntent(_Object, tag="payment_intent"):
    amount: Amount
    created: Time
    currency: Currency
    status: Text
    customer: Ref[CustomerId] = None
    invoice: Ref[InvoiceId] = None  # old
    latest_charge: Ref[ChargeId] = None
    charges: _ChargeList | None = None  # before 2022-11-15, newest first
    metadata: dict[str, Any] | None = None

    def fact(self, as_of: Seconds) -> PaymentIntent:
        charges = self.charges.data if self.charges else []
        return PaymentIntent(
            id=self.id,
            as_of=as_of,
            customer=_id(self.customer),
            invoice=_id(self.invoice),
            latest_charge=_id(self.latest_charge) or (charges[0].id if charges else None),
            amount_minor=self.amount,
            currency=self.currency,
            status=self.status,
            created=self.created,
            metadata=_metadata(self.metadata),
        )


class _Recurring(_Part):
    interval: Text | None = None
    interval_count: Count | None = None
    usage_type: Text | None = None


class _Price(_Recurring, kw_only=True):
    """A price, or an old plan, which carries the fields of `recurring` itself."""

    id: Annotated[PriceId, _TEXT]
    product: Ref[ProductId] = None
    recurring: _Recurring | None = None

    @property
    def rhythm(self) -> _Recurring:
        return self.recurring or self

    @property
    def metered(self) -> bool:
        return self.rhythm.usage_type == "metered"


class _Period(_Part):
    start: Time
    end: Time


class _Discount(_Part):
    amount: Signed
    type: str | None = None


class _Tax(_Part):
    amount: Signed
    tax_behavior: str


class _OldTax(_Part):
    amount: Signed
    inclusive: bool


class _PriceDetails(_Part):
    price: Ref[PriceId] = None
    product: Ref[ProductId] = None


class _Pricing(_Part):
    price_details: _PriceDetails | None = None


class _ItemDetails(_Part):
    subscription: Ref[SubscriptionId] = None
    subscription_item: Ref[SubscriptionItemId] = None
    invoice_item: Ref[str] = None
    proration: bool | None = None


class _LineParent(_Part):
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
    price: _Price | None = None
    plan: _Price | None = None

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
            price=_id(details.price) if details else old.id if old else None,
            product=_id(details.product) if details else _id(old.product) if old else None,
            quantity=self.quantity,
            proration=bool(told.proration or self.proration),
            subscription=_id(told.subscription) or _id(self.subscription),
            subscription_item=_id(told.subscription_item) or _id(self.subscription_item),
            invoice_item=_id(told.invoice_item) or _id(self.invoice_item),
            discount_minor=discount,
            tax_exclusive_minor=tax,
            metered=old.metered if old else False,
        )


class _LineList(_Part):
    data: list[_Line]
    has_more: bool | None = None


class _SubscriptionDetails(_Part):
    subscription: Ref[SubscriptionId] = None
    metadata: dict[str, Any] | None = None


class _InvoiceParent(_Part):
    subscription_details: _SubscriptionDetails | None = None


class _ShippingCost(_Part):
    amount_total: Amount


class _Transitions(_Part):
    paid_at: Time | None = None


class _Invoice(_Object, tag="invoice"):
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
            customer=_id(self.customer),
            subscription=(_id(details.subscription) if details else None) or _id(self.subscription),
            payment_intent=_id(self.payment_intent),
            charge=_id(self.charge),
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
            subscription_metadata=_metadata(details.metadata) if details else {},
            metadata=_metadata(self.metadata),
            test_clock=self.test_clock is not None,
        )

    def off_stripe_minor(self) -> int:
        """Money that Stripe was only told of. An old invoice paid that way may say that nothing was paid."""
        if self.amount_paid_off_stripe is not None:
            return self.amount_paid_off_stripe
        return (self.amount_paid or self.amount_due) if self.paid_out_of_band else 0


class _InvoicePaymentOf(_Part):
    type: Text | None = None
    payment_intent: Ref[PaymentIntentId] = None
    charge: Ref[ChargeId] = None


class _InvoicePayment(_Object, tag="invoice_payment"):
    created: Time
    currency: Currency
    invoice: Annotated[InvoiceId, _TEXT] | _Expanded[InvoiceId]
    payment: _InvoicePaymentOf
    status: Text
    amount_paid: Amount | None = None
    status_transitions: _Transitions | None = None

    def fact(self, as_of: Seconds) -> InvoicePayment:
        return InvoicePayment(
            id=self.id,
            as_of=as_of,
            invoice=self.invoice.id if isinstance(self.invoice, _Expanded) else self.invoice,
            payment_type=self.payment.type or "",
            payment_intent=_id(self.payment.payment_intent),
            charge=_id(self.payment.charge),
            status=self.status,
            amount_paid_minor=self.amount_paid,
            currency=self.currency,
            created=self.created,
            paid_at=self.status_transitions.paid_at if self.status_transitions else None,
        )


class _Item(_Part):
    id: Annotated[SubscriptionItemId, _TEXT]
    price: _Price | None = None
    plan: _Price | None = None
    quantity: Count | None = None
    current_period_start: Time | None = None
    current_period_end: Time | None = None
    current_trial: _Part | None = None


class _ItemList(_Part):
    data: list[_Item]
    has_more: bool | None = None


class _Cancellation(_Part):
    reason: Text | None = None


class _Subscription(_Object, tag="subscription"):
    created: Time
    status: Text
    currency: Currency | None = None
    customer: Ref[CustomerId] = None
    items: _ItemList | None = None
    current_period_start: Time | None = None  # old
    current_period_end: Time | None = None  # old
    cancel_at_period_end: bool | None = None
    cancel_at: Time | None = None
    canceled_at: Time | None = None
    ended_at: Time | None = None
    cancellation_details: _Cancellation | None = None
    trial_start: Time | None = None
    trial_end: Time | None = None
    latest_invoice: Ref[InvoiceId] = None
    pause_collection: _Part | None = None
    metadata: dict[str, Any] | None = None
    test_clock: Ref[str] = None

    def fact(self, as_of: Seconds) -> Subscription:
        items = self.items.data if self.items else []
        return Subscription(
            id=self.id,
            as_of=as_of,
            customer=_id(self.customer),
            status=self.status,
            currency=self.currency or "",
            created=self.created,
            items=tuple([self.item(number, item) for number, item in enumerate(items)]),
            items_complete=self.items is not None and self.items.has_more is False,
            metadata=_metadata(self.metadata),
            cancel_at_period_end=bool(self.cancel_at_period_end),
            cancel_at=self.cancel_at,
            canceled_at=self.canceled_at,
            ended_at=self.ended_at,
            cancellation_reason=self.cancellation_details.reason if self.cancellation_details else None,
            trial_start=self.trial_start,
            trial_end=self.trial_end,
            latest_invoice=_id(self.latest_invoice),
            collection_paused=self.pause_collection is not None,
            test_clock=self.test_clock is not None,
        )

    def item(self, number: int, item: _Item) -> SubscriptionItem:
        """The item at `number`; before basil all items shared the subscription's period."""
        price = item.price or item.plan
        start = self.current_period_start if item.current_period_start is None else item.current_period_start
        end = self.current_period_end if item.current_period_end is None else item.current_period_end
        if price is None:
            raise self.unfit(f"items.data.{number}.price", "is missing")
        if start is None or end is None:
            side = "start" if start is None else "end"
            raise self.unfit(f"items.data.{number}.current_period_{side}", "is missing")
        return SubscriptionItem(
            id=item.id,
            price=price.id,
            product=_id(price.product),
            quantity=item.quantity,
            interval=price.rhythm.interval or "",
            interval_count=price.rhythm.interval_count or 1,
            metered=price.metered,
            period_start=start,
            period_end=end,
            trial_offer=item.current_trial is not None,
        )


class _Customer(_Object, tag="customer"):
    created: Time | None = None
    email: str | None = None
    balance: Signed | None = None
    deleted: bool | None = None
    metadata: dict[str, Any] | None = None
    test_clock: Ref[str] = None

    def fact(self, as_of: Seconds) -> Customer:
        if self.created is None and not self.deleted:  # of a deleted customer the API tells the id alone
            raise self.unfit("created", "is missing")
        return Customer(
            id=self.id,
            as_of=as_of,
            created=self.created or 0,
            email_hash=_hashed(self.email),
            metadata=_metadata(self.metadata),
            deleted=bool(self.deleted),
            balance_minor=self.balance or 0,
            test_clock=self.test_clock is not None,
        )


class _Refund(_Object, tag="refund"):
    amount: Amount
    created: Time
    currency: Currency
    status: Text
    charge: Ref[ChargeId] = None
    payment_intent: Ref[PaymentIntentId] = None
    reason: Text | None = None
    failure_reason: Text | None = None
    metadata: dict[str, Any] | None = None

    def fact(self, as_of: Seconds) -> Refund:
        return Refund(
            id=self.id,
            as_of=as_of,
            charge=_id(self.charge),
            payment_intent=_id(self.payment_intent),
            amount_minor=self.amount,
            currency=self.currency,
            status=self.status,
            created=self.created,
            reason=self.reason,
            failure_reason=self.failure_reason,
            action=_metadata(self.metadata).get(ACTION_KEY),
        )


class _EvidenceDetails(_Part):
    due_by: Time | None = None


class _Dispute(_Object, tag="dispute"):
    amount: Amount
    created: Time
    currency: Currency
    status: Text
    charge: Ref[ChargeId] = None
    payment_intent: Ref[PaymentIntentId] = None
    reason: Text | None = None
    evidence_details: _EvidenceDetails | None = None
    intended_submission_method: Text | None = None

    def fact(self, as_of: Seconds) -> Dispute:
        return Dispute(
            id=self.id,
            as_of=as_of,
            charge=_id(self.charge),
            payment_intent=_id(self.payment_intent),
            amount_minor=self.amount,
            currency=self.currency,
            status=self.status,
            reason=self.reason or "",
            created=self.created,
            due_by=(self.evidence_details.due_by or None) if self.evidence_details else None,  # 0: cannot be contested
            intended_submission_method=self.intended_submission_method,
        )


class _CheckoutSession(_Object, tag="checkout.session"):
    created: Time
    mode: Text
    payment_status: Text | None = None
    status: Text | None = None
    customer: Ref[CustomerId] = None
    client_reference_id: str | None = None
    payment_intent: Ref[PaymentIntentId] = None
    subscription: Ref[SubscriptionId] = None
    invoice: Ref[InvoiceId] = None
    metadata: dict[str, Any] | None = None

    def fact(self, as_of: Seconds) -> CheckoutSession:
        return CheckoutSession(
            id=self.id,
            as_of=as_of,
            customer=_id(self.customer),
            mode=self.mode,
            payment_status=self.payment_status or "",
            status=self.status or "",
            created=self.created,
            client_reference_id=self.client_reference_id or None,
            metadata=_metadata(self.metadata),
            payment_intent=_id(self.payment_intent),
            subscription=_id(self.subscription),
            invoice=_id(self.invoice),
        )


class _EarlyFraudWarning(_Object, tag="radar.early_fraud_warning"):
    created: Time
    actionable: bool
    charge: Ref[ChargeId] = None
    payment_intent: Ref[PaymentIntentId] = None
    fraud_type: Text | None = None

    def fact(self, as_of: Seconds) -> EarlyFraudWarning:
        return EarlyFraudWarning(
            id=self.id,
            as_of=as_of,
            charge=_id(self.charge),
            payment_intent=_id(self.payment_intent),
            fraud_type=self.fraud_type or "",
            actionable=self.actionable,
            created=self.created,
        )


class _BalanceTransaction(_Object, tag="customer_balance_transaction"):
    amount: Signed
    created: Time
    currency: Currency
    customer: Annotated[CustomerId, _TEXT] | _Expanded[CustomerId]
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
            invoice=_id(self.invoice),
            action=_metadata(self.metadata).get(ACTION_KEY),
        )


class _Page(_Part):
    data: list[msgspec.Raw]
    has_more: bool


class _Previous(_Part):
    status: Any = None


class _EventData(_Part):
    object: msgspec.Raw
    previous_attributes: _Previous | None = None


class _Event(_Object, tag="event"):
    type: Text
    created: Time
    livemode: bool
    data: _EventData
    api_version: Text | None = None
    account: Text | None = None
    context: Text | None = None


class _Related(_Part):
    id: Text
    type: Text
    url: str


class _ThinEvent(_Object, tag="v2.core.event"):
    type: Text
    created: Annotated[datetime, Meta(tz=True)]
    livemode: bool
    account: Text | None = None
    context: Text | None = None
    related_object: _Related | None = None


class _Named(Struct):
    """The little that is read of an object that could not be read, to name it."""

    id: Any = None
    object: Any = None


_AnyWire = (
    _Charge
    | _PaymentIntent
    | _Invoice
    | _InvoicePayment
    | _Subscription
    | _Customer
    | _Refund
    | _Dispute
    | _CheckoutSession
    | _EarlyFraudWarning
)
_EVENT: msgspec.json.Decoder[_Event | _ThinEvent] = msgspec.json.Decoder(_Event | _ThinEvent)
_OBJECT: msgspec.json.Decoder[_AnyWire] = msgspec.json.Decoder(_AnyWire)
_PAGE = msgspec.json.Decoder(_Page)
_BALANCE_TRANSACTION = msgspec.json.Decoder(_BalanceTransaction)
_NAMED = msgspec.json.Decoder(_Named)

_KINDS = frozenset(HANDLERS.values())
_THIN_NAMES = {"charge.dispute": "dispute", "customer.subscription": "subscription"}
_URL = re.compile(r"/v1/(?!.*\.\.)[\w./%@~-]+", re.ASCII)
_PRINTABLE_ID = re.compile(r"[\w-]{1,255}", re.ASCII)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_AT = re.compile(r" - at `.*?\$(.*)`\Z")


def _utf8(payload: bytes, kind: str) -> bytes:
    """The payload, if all of it is UTF-8: fields that we skip would otherwise pass unseen into the store."""
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError:
            raise Unreadable(kind, None, kind, "is not UTF-8") from None
    return payload


def _read(decoder: msgspec.json.Decoder[W], raw: bytes | msgspec.Raw, kind: str) -> W:
    """`raw` decoded; whatever msgspec says of bad input becomes `Unreadable` (the input itself is not chained to it)."""
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(raw, kind, error) from None


def _fact(raw: bytes | msgspec.Raw, as_of: Seconds, kind: str | None = None) -> AnyFact:
    """The fact in `raw`, which must be of `kind` where one is given."""
    wire = _read(_OBJECT, raw, kind or "object")
    if kind is not None and wire.__struct_config__.tag != kind:
        raise Unreadable(kind, wire.id, f"{kind}.object", "is another kind of object")
    return wire.fact(as_of)


def _unreadable(raw: bytes | msgspec.Raw, kind: str, error: Exception) -> Unreadable:
    """The error that names the object and, from msgspec's message, the field: `$.lines.data[0]` is `lines.data.0`."""
    try:
        named = _NAMED.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        named = _Named()
    object_id = named.id if isinstance(named.id, str) and _PRINTABLE_ID.fullmatch(named.id) else None
    if kind == "object" and isinstance(named.object, str) and named.object in _KINDS:
        kind = named.object
    if not isinstance(error, msgspec.ValidationError):
        return Unreadable(kind, object_id, kind, "is not JSON that can be read")
    message = str(error)
    where = _AT.search(message)
    path = re.sub(r"\[(\d+)\]", r".\1", where[1]).replace("[...]", "") if where else ""
    problem = message[: where.start()] if where else message
    if missing := _MISSING.match(problem):
        path, problem = f"{path}.{missing[1]}", "is missing"
    elif problem.startswith("Invalid value"):  # msgspec quotes the value here
        problem = "is of an unknown kind"
    return Unreadable(kind, object_id, kind + path, problem)


def _id(ref: T | _Expanded[T] | None) -> T | None:
    return ref.id if isinstance(ref, _Expanded) else ref


def _hashed(email: str | None) -> str | None:
    return email_hash(email) if email and not email.isspace() else None


def _metadata(told: dict[str, Any] | None) -> Metadata:
    """Metadata as Stripe means it, strings. A null is no value: two people without an id are not one person "None"."""
    return (
        {key: value if type(value) is str else str(value) for key, value in told.items() if value is not None}
        if told
        else {}
    )


def _account(account: str | None, context: str | None) -> str | None:
    """The connected account: `account`, or the last part of an organisation's `context` (`org_1/acct_2`)."""
    if account is None and context is not None:
        last = context.rpartition("/")[2]
        account = last if last.startswith("acct_") else None
    return account


def _hint(related: _Related | None) -> Hint | None:
    """What to read again, if it is of a kind that we read and lies in the v1 API."""
    if related is None or _URL.fullmatch(related.url) is None:
        return None
    kind = _THIN_NAMES.get(related.type, related.type)
    return Hint(kind, related.id, related.url) if kind in _KINDS else None
