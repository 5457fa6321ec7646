"""What all of Stripe's objects have in common on the wire, and the wire of payments and of who pays.

Only the fields we read, of the old and the new shapes: `handlers.events` says which those are. `fact(as_of)` is the object
as our value, told at `as_of` (unix seconds); it raises `Unreadable`.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

from msgspec import Meta, Struct

from handlers.customer import (
    Charge,
    ChargeId,
    CheckoutSession,
    Customer,
    CustomerId,
    Dispute,
    DisputeId,
    EarlyFraudWarning,
    InvoiceId,
    Metadata,
    PaymentIntent,
    PaymentIntentId,
    Refund,
    Seconds,
    SubscriptionId,
)

T = TypeVar("T", bound=str)

MAX_MINOR = 2**48 - 1
"""Largest amount we read: `progress` in customer.py packs amounts below 48 bits, and no sum of lines can pass 64."""
MAX_SECONDS = 253_402_300_799
"""The last second of the year 9999, the last one a datetime can hold."""
ACTION_KEY = "finalsale_action"
"""Metadata key under which the objects that we make at Stripe carry the id of our action."""

# No control characters: these end in text columns, and PostgreSQL refuses NUL. Customer and price ids may be the merchant's own.
TEXT = Meta(pattern=r"\A[^\x00-\x1f\x7f]{1,255}\Z")
Text: TypeAlias = Annotated[str, TEXT]
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


class Part(Struct):
    """A part of an object. Not tracked by the garbage collector: decoded values hold no cycles."""


class Expanded(Part, Generic[T]):
    """An object where an id would do: the caller asked for `expand[]`, or it was deleted."""

    id: Annotated[T, TEXT]


Ref: TypeAlias = Annotated[T, TEXT] | Expanded[T] | None


class ObjectWire(Struct, tag_field="object"):
    """A whole object, known by its `object` field."""

    id: Text

    def unfit(self, path: str, problem: str) -> Unreadable:
        """The error for the field at `path` inside this object."""
        kind = str(self.__struct_config__.tag)
        return Unreadable(kind, self.id, f"{kind}.{path}", problem)


def id_of(ref: T | Expanded[T] | None) -> T | None:
    """The id itself, whichever way the object was told."""
    return ref.id if isinstance(ref, Expanded) else ref


def email_hash(email: str) -> str:
    """An e-mail address as 32 hex digits, equal for equal addresses whatever their case; the address itself is not kept."""
    return hashlib.sha256(email.strip().lower().encode()).hexdigest()[:32]


def _hashed(email: str | None) -> str | None:
    return email_hash(email) if email and not email.isspace() else None


def metadata_of(told: dict[str, Any] | None) -> Metadata:
    """Metadata as Stripe means it, strings. A null is no value: two people without an id are not one person "None"."""
    return (
        {key: value if type(value) is str else str(value) for key, value in told.items() if value is not None}
        if told
        else {}
    )


class _Email(Part):
    email: str | None = None


class _Fingerprint(Part):
    fingerprint: Text | None = None


class _PaymentMethodDetails(Part):
    type: Text | None = None
    card: _Fingerprint | None = None


class ChargeWire(ObjectWire, tag="charge"):
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
            customer=id_of(self.customer),
            payment_intent=id_of(self.payment_intent),
            invoice=id_of(self.invoice),
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
            metadata=metadata_of(self.metadata),
        )


class _ChargeList(Part):
    data: list[Expanded[ChargeId]] = []


class PaymentIntentWire(ObjectWire, tag="payment_intent"):
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
            customer=id_of(self.customer),
            invoice=id_of(self.invoice),
            latest_charge=id_of(self.latest_charge) or (charges[0].id if charges else None),
            amount_minor=self.amount,
            currency=self.currency,
            status=self.status,
            created=self.created,
            metadata=metadata_of(self.metadata),
        )


class RefundWire(ObjectWire, tag="refund"):
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
            charge=id_of(self.charge),
            payment_intent=id_of(self.payment_intent),
            amount_minor=self.amount,
            currency=self.currency,
            status=self.status,
            created=self.created,
            reason=self.reason,
            failure_reason=self.failure_reason,
            action=metadata_of(self.metadata).get(ACTION_KEY),
        )


class _EvidenceDetails(Part):
    due_by: Time | None = None
    submission_count: Count | None = None


class _Movement(Part):
    """A balance transaction of a dispute: what it took (negative) or brought back, in the account's own currency."""

    amount: Signed
    currency: Currency


class DisputeWire(ObjectWire, tag="dispute"):
    amount: Amount
    created: Time
    currency: Currency
    status: Text
    charge: Ref[ChargeId] = None
    payment_intent: Ref[PaymentIntentId] = None
    reason: Text | None = None
    evidence_details: _EvidenceDetails | None = None
    intended_submission_method: Text | None = None
    is_charge_refundable: bool | None = None
    balance_transactions: list[_Movement] | None = None

    def fact(self, as_of: Seconds) -> Dispute:
        details = self.evidence_details
        return Dispute(
            id=self.id,
            as_of=as_of,
            charge=id_of(self.charge),
            payment_intent=id_of(self.payment_intent),
            amount_minor=self.amount,
            currency=self.currency,
            status=self.status,
            reason=self.reason or "",
            created=self.created,
            due_by=(details.due_by or None) if details else None,  # 0: cannot be contested
            intended_submission_method=self.intended_submission_method,
            evidence_submitted=bool(details and details.submission_count),
            refundable=bool(self.is_charge_refundable),
            withdrawn_minor=self.withdrawn_minor(),
        )

    def withdrawn_minor(self) -> int | None:
        """What the bank holds of ours, fees aside. None where it was not told, or was moved in another currency."""
        moved = self.balance_transactions
        if moved is None or any(each.currency != self.currency for each in moved):
            return None
        return -sum(each.amount for each in moved)


class EarlyFraudWarningWire(ObjectWire, tag="radar.early_fraud_warning"):
    created: Time
    actionable: bool
    charge: Ref[ChargeId] = None
    payment_intent: Ref[PaymentIntentId] = None
    fraud_type: Text | None = None

    def fact(self, as_of: Seconds) -> EarlyFraudWarning:
        return EarlyFraudWarning(
            id=self.id,
            as_of=as_of,
            charge=id_of(self.charge),
            payment_intent=id_of(self.payment_intent),
            fraud_type=self.fraud_type or "",
            actionable=self.actionable,
            created=self.created,
        )


class CheckoutSessionWire(ObjectWire, tag="checkout.session"):
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
            customer=id_of(self.customer),
            mode=self.mode,
            payment_status=self.payment_status or "",
            status=self.status or "",
            created=self.created,
            client_reference_id=self.client_reference_id or None,
            metadata=metadata_of(self.metadata),
            payment_intent=id_of(self.payment_intent),
            subscription=id_of(self.subscription),
            invoice=id_of(self.invoice),
        )


class CustomerWire(ObjectWire, tag="customer"):
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
            metadata=metadata_of(self.metadata),
            deleted=bool(self.deleted),
            balance_minor=self.balance or 0,
            test_clock=self.test_clock is not None,
        )
