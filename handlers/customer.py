"""The file of one person: what Stripe told us about every object of their customers, and how two tellings fold into one.

Every fact is a frozen value. Two facts about one object fold with `fold`, which is commutative, associative and
idempotent, so any order and any repetition of deliveries ends in the same file.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, ClassVar, NewType, TypeVar

import msgspec

CustomerId = NewType("CustomerId", str)
ChargeId = NewType("ChargeId", str)
PaymentIntentId = NewType("PaymentIntentId", str)
InvoiceId = NewType("InvoiceId", str)
InvoicePaymentId = NewType("InvoicePaymentId", str)
SubscriptionId = NewType("SubscriptionId", str)
SubscriptionItemId = NewType("SubscriptionItemId", str)
RefundId = NewType("RefundId", str)
DisputeId = NewType("DisputeId", str)
SessionId = NewType("SessionId", str)
ScheduleId = NewType("ScheduleId", str)
PriceId = NewType("PriceId", str)
ProductId = NewType("ProductId", str)

Seconds = int
"""Unix seconds, UTC, as Stripe sends them. Converted with `at` only where a person or Postgres reads them."""

Metadata = dict[str, str]

BALANCE_READ_PREFIX = "balance:"
"""Id prefix of a `BalanceRead`, which is not a Stripe object but a list read at one moment; so is `SessionLines`."""
SESSION_LINES_PREFIX = "lines:"


def at(seconds: Seconds) -> datetime:
    """Unix seconds as an aware UTC datetime."""
    return datetime.fromtimestamp(seconds, UTC)


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """What one telling said about one Stripe object.

    `as_of` is Stripe's clock (event `created`, or the `Date` header of a read), in seconds: of two facts the later wins.
    """

    STICKY: ClassVar[tuple[str, ...]] = ()
    """Links that only ever come into being: once told, a later telling in another API shape does not unset them."""

    id: str
    as_of: Seconds

    GATHERED: ClassVar[tuple[str, ...]] = ()
    """What every telling adds to, so that a later one does not make it forgotten; `gather` unites two of them."""

    def progress(self) -> int:
        """Tie-breaker within one second: the state that lies later in the object's life wins."""
        return 0

    def gather(self, name: str, other: Any) -> Any:
        """The union of a `GATHERED` field of ours with another telling's: commutative, associative, idempotent."""
        raise AssertionError(f"{name} is not gathered")

    def references(self) -> tuple[str, ...]:
        """Ids of the objects through which the customer is found when the object itself does not name one."""
        return ()


class Customer(Fact, frozen=True, kw_only=True, omit_defaults=True, tag="customer"):
    """A Stripe customer. The e-mail is kept only as a hash, enough to see that two are equal."""

    created: Seconds = 0
    email_hash: str | None = None
    metadata: Metadata = {}
    deleted: bool = False
    balance_minor: int = 0
    test_clock: bool = False

    def progress(self) -> int:
        return int(self.deleted)


class Charge(Fact, frozen=True, kw_only=True, omit_defaults=True, tag="charge"):
    """A charge. A payment is a succeeded, captured one."""

    STICKY: ClassVar[tuple[str, ...]] = ("customer", "payment_intent", "invoice")
    customer: CustomerId | None = None
    payment_intent: PaymentIntentId | None = None
    invoice: InvoiceId | None = None
    """Only in API versions before 2025-03-31.basil."""
    amount_minor: int
    captured_minor: int
    refunded_minor: int = 0
    currency: str
    status: str
    captured: bool
    disputed: bool = False
    created: Seconds
    method: str = ""
    """`payment_method_details.type`: `card`, `us_bank_account`, `sepa_debit`, ..."""
    card_fingerprint: str | None = None
    email_hash: str | None = None
    metadata: Metadata = {}

    def progress(self) -> int:
        rank = {"pending": 1, "failed": 2, "succeeded": 3}.get(self.status, 0)
        return (((rank * 2 + self.captured) * 2 + self.disputed) << 48) + self.refunded_minor


class PaymentIntent(Fact, frozen=True, kw_only=True, omit_defaults=True, tag="payment_intent"):
    """A payment intent: the metadata of a bare payment, and in old shapes the link to its invoice."""

    STICKY: ClassVar[tuple[str, ...]] = ("customer", "invoice")
    customer: CustomerId | None = None
    invoice: InvoiceId | None = None
    latest_charge: ChargeId | None = None
    amount_minor: int
    currency: str
    status: str
    created: Seconds
    metadata: Metadata = {}

    def progress(self) -> int:
        return {"processing": 1, "requires_capture": 2, "canceled": 3, "succeeded": 4}.get(self.status, 0)


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of an invoice. `period_start`/`period_end` is the service period (never the invoice's)."""

    id: str
    amount_minor: int
    """Before discounts; inclusive taxes are inside, exclusive ones are not."""
    currency: str
    period_start: Seconds
    period_end: Seconds
    price: PriceId | None = None
    product: ProductId | None = None
    quantity: int | None = None
    proration: bool = False
    subscription: SubscriptionId | None = None
    subscription_item: SubscriptionItemId | None = None
    invoice_item: str | None = None
    """Set for one-time lines (add-ons, set-up fees, packs, prorations)."""
    discount_minor: int = 0
    tax_exclusive_minor: int = 0
    metered: bool = False
    credits: int | None = None
    """The price's own `credits` metadata, in API shapes whose lines carry the price."""

    @property
    def net_minor(self) -> int:
        """What this line adds to the invoice's total: amount less discounts plus exclusive taxes (rule 2 of 4.3)."""
        return self.amount_minor - self.discount_minor + self.tax_exclusive_minor


class Invoice(Fact, frozen=True, kw_only=True, omit_defaults=True, tag="invoice"):
    """An invoice with its lines. In new shapes it does not know its payments: see `InvoicePayment`."""

    STICKY: ClassVar[tuple[str, ...]] = ("customer", "subscription", "payment_intent")
    customer: CustomerId | None = None
    subscription: SubscriptionId | None = None
    payment_intent: PaymentIntentId | None = None
    """Old shapes only, as `charge`."""
    charge: ChargeId | None = None
    billing_reason: str = ""
    status: str
    currency: str
    total_minor: int
    amount_due_minor: int
    amount_paid_minor: int
    overpaid_minor: int | None = None
    """`amount_overpaid`; None where the API version does not tell."""
    off_stripe_minor: int = 0
    """`amount_paid_off_stripe`, or the amount paid of an old-shape invoice with `paid_out_of_band`."""
    starting_balance_minor: int = 0
    ending_balance_minor: int | None = None
    credit_notes_minor: int = 0
    """Pre- and post-payment credit notes together."""
    shipping_minor: int = 0
    attempt_count: int = 0
    created: Seconds
    paid_at: Seconds | None = None
    lines: tuple[Line, ...] = ()
    lines_complete: bool = True
    """False where the object carried only the first page of its lines: nothing can be proved from a part."""
    subscription_metadata: Metadata = {}
    metadata: Metadata = {}
    test_clock: bool = False

    def progress(self) -> int:
        rank = {"draft": 1, "open": 2, "uncollectible": 3, "void": 4, "paid": 5}.get(self.status, 0)
        return (rank << 48) + (self.overpaid_minor or 0) + self.off_stripe_minor + self.credit_notes_minor

    def references(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.subscription, self.payment_intent, self.charge)))


class InvoicePayment(Fact, frozen=True, kw_only=True, omit_defaults=True, tag="invoice_payment"):
    """Which payment paid which invoice (API versions since 2025-03-31.basil). It names no customer."""

    STICKY: ClassVar[tuple[str, ...]] = ("payment_intent", "charge")
    invoice: InvoiceId
    payment_type: str = ""
    """`payment_intent`, `charge` or `payment_record` (money from outside Stripe)."""
    payment_intent: PaymentIntentId | None = None
    charge: ChargeId | None = None
    status: str
    amount_paid_minor: int | None = None
    currency: str
    created: Seconds
    paid_at: Seconds | None = None

    def progress(self) -> int:
        return {"open": 1, "canceled": 2, "paid": 3}.get(self.status, 0)

    def references(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.invoice, self.payment_intent, self.charge)))


class SubscriptionItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One item of a subscription: what is sold, how many, and its current period."""

    id: SubscriptionItemId
    price: PriceId
    product: ProductId | None = None
    quantity: int | None = None
    interval: str = ""
    interval_count: int = 1
    metered: bool = False
    period_start: Seconds
    period_end: Seconds
    trial_offer: bool = False
    """A paid introductory offer (`current_trial`, API version endive)."""


class Trial(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One trial of a subscription, known by its start. Stripe tells only of the newest; ended ones are kept here."""

    start: Seconds
    end: Seconds
    """As told last (`told_at`): trials are extended and shortened."""
    told_at: Seconds
    items: tuple[tuple[PriceId, int], ...] = ()
    """Prices and quantities as told first (`items_at`): what the trial was given for."""
    items_at: Seconds


class PriceCredits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, order=True):
    """What a price's metadata grants (`credits`, `trial_credits`), and since when it was seen to say so."""

    price: PriceId
    credits: int | None = None
    trial_credits: int | None = None
    since: Seconds
    seen: Seconds = 0
    """When it was seen to say so last, where that is later than `since`: metadata may be changed and changed back."""

    @property
    def until(self) -> Seconds:
        """The last moment at which it is known to have said so."""
        return max(self.since, self.seen)


class Subscription(Fact, frozen=True, kw_only=True, omit_defaults=True, tag="subscription"):
    """A subscription with its items. It is alive unless its status is `canceled` or `incomplete_expired`."""

    STICKY: ClassVar[tuple[str, ...]] = ("customer", "schedule")
    GATHERED: ClassVar[tuple[str, ...]] = ("trials", "price_credits")
    customer: CustomerId | None = None
    status: str
    currency: str = ""
    created: Seconds
    items: tuple[SubscriptionItem, ...] = ()
    items_complete: bool = True
    metadata: Metadata = {}
    cancel_at_period_end: bool = False
    cancel_at: Seconds | None = None
    canceled_at: Seconds | None = None
    ended_at: Seconds | None = None
    cancellation_reason: str | None = None
    trial_start: Seconds | None = None
    trial_end: Seconds | None = None
    latest_invoice: InvoiceId | None = None
    collection_paused: bool = False
    schedule: ScheduleId | None = None
    trials: tuple[Trial, ...] = ()
    """Every trial it was ever told to have, by start."""
    price_credits: tuple[PriceCredits, ...] = ()
    """What the metadata of its prices ever said about credits."""
    test_clock: bool = False

    def gather(self, name: str, other: Any) -> Any:
        if name == "trials":
            trials = {trial.start: trial for trial in self.trials}
            for trial in other:
                trials[trial.start] = _one_trial(trials[trial.start], trial) if trial.start in trials else trial
            return tuple(trials[start] for start in sorted(trials))
        said = {(c.price, c.credits, c.trial_credits): c for c in self.price_credits}
        for told in other:
            key = (told.price, told.credits, told.trial_credits)
            said[key] = _one_span(said[key], told) if key in said else told
        return tuple(sorted(said.values(), key=_price_credits_order))

    def progress(self) -> int:
        order = ("incomplete", "trialing", "active", "past_due", "unpaid", "paused", "incomplete_expired", "canceled")
        return (order.index(self.status) + 1 if self.status in order else 0) * 2 + self.ends

    @property
    def alive(self) -> bool:
        """Whether it may still renew. An unknown status counts as alive: nothing is inferred from what we cannot read."""
        return self.status not in ("canceled", "incomplete_expired") and self.ended_at is None

    @property
    def ends(self) -> bool:
        """Whether somebody ended it or scheduled its end."""
        return not self.alive or self.cancel_at_period_end or self.cancel_at is not None


def _price_credits_order(told: PriceCredits) -> tuple[str, Seconds, int, int]:
    amounts = [-1 if amount is None else amount for amount in (told.credits, told.trial_credits)]
    return told.price, told.since, amounts[0], amounts[1]


def _one_span(a: PriceCredits, b: PriceCredits) -> PriceCredits:
    """One from two that say the same of a price: since the earlier, until the later."""
    since, until = min(a.since, b.since), max(a.until, b.until)
    return msgspec.structs.replace(a, since=since, seen=until if until > since else 0)


def _one_trial(a: Trial, b: Trial) -> Trial:
    """One trial from two tellings of it: the end from the later, the items from the earlier; ties by value."""
    last, first = max(a, b, key=lambda t: (t.told_at, t.end)), min(a, b, key=lambda t: (t.items_at, t.items))
    return Trial(start=a.start, end=last.end, told_at=last.told_at, items=first.items, items_at=first.items_at)


class SubscriptionSchedule(Fact, frozen=True, kw_only=True, omit_defaults=True, tag="subscription_schedule"):
    """A subscription schedule: it may end its subscription by itself (`end_behavior` `cancel`)."""

    STICKY: ClassVar[tuple[str, ...]] = ("customer", "subscription")
    customer: CustomerId | None = None
    subscription: SubscriptionId | None = None
    """Also the one it was released from."""
    status: str
    """`not_started`, `active`, `completed`, `released`, `canceled`."""
    end_behavior: str = ""
    ends_at: Seconds | None = None
    """End of the last phase."""
    created: Seconds
    completed_at: Seconds | None = None
    canceled_at: Seconds | None = None
    released_at: Seconds | None = None

    def progress(self) -> int:
        return {"not_started": 1, "active": 2, "released": 3, "canceled": 4, "completed": 5}.get(self.status, 0)

    def references(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.subscription,)))


class Refund(Fact, frozen=True, kw_only=True, omit_defaults=True, tag="refund"):
    """A refund. `succeeded` may still become `failed` for up to 30 days."""

    STICKY: ClassVar[tuple[str, ...]] = ("charge", "payment_intent", "action")
    charge: ChargeId | None = None
    payment_intent: PaymentIntentId | None = None
    amount_minor: int
    currency: str
    status: str
    created: Seconds
    reason: str | None = None
    failure_reason: str | None = None
    action: str | None = None
    """Our own action's id, from the refund's metadata; None for a refund somebody else made."""

    def progress(self) -> int:
        return {"requires_action": 1, "pending": 2, "succeeded": 3, "canceled": 4, "failed": 5}.get(self.status, 0)

    @property
    def live(self) -> bool:
        """Whether the money went or may yet go back. An unknown status counts: better one refund too few."""
        return self.status not in ("failed", "canceled")

    def references(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.charge, self.payment_intent)))


class Dispute(Fact, frozen=True, kw_only=True, omit_defaults=True, tag="dispute"):
    """A dispute (chargeback, inquiry, or one prevented by the network). Its status is the truth, never its events."""

    STICKY: ClassVar[tuple[str, ...]] = ("charge", "payment_intent")
    charge: ChargeId | None = None
    payment_intent: PaymentIntentId | None = None
    amount_minor: int
    currency: str
    status: str
    reason: str = ""
    created: Seconds
    due_by: Seconds | None = None
    """`evidence_details.due_by`; None or 0: it cannot be challenged."""
    intended_submission_method: str | None = None
    """What Stripe does by itself at the deadline."""
    evidence_submitted: bool = False
    refundable: bool = False
    """`is_charge_refundable`: true for inquiries."""
    withdrawn_minor: int | None = None
    """What its balance transactions took, fees aside (a dispute less its reversals); None where they were not told."""

    def progress(self) -> int:
        order = (
            *("warning_needs_response", "warning_under_review", "warning_closed", "needs_response", "under_review"),
            *("lost", "appeal_needs_response", "appeal_under_review", "won", "prevented"),
        )
        return order.index(self.status) + 1 if self.status in order else 0

    def references(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.charge, self.payment_intent)))


class CheckoutSession(Fact, frozen=True, kw_only=True, omit_defaults=True, tag="checkout_session"):
    """A Checkout session: where a purchase on purpose, and often the person, can be seen."""

    STICKY: ClassVar[tuple[str, ...]] = ("customer", "payment_intent", "subscription", "invoice")
    customer: CustomerId | None = None
    mode: str
    payment_status: str = ""
    status: str = ""
    created: Seconds
    client_reference_id: str | None = None
    metadata: Metadata = {}
    payment_intent: PaymentIntentId | None = None
    subscription: SubscriptionId | None = None
    invoice: InvoiceId | None = None

    def progress(self) -> int:
        return {"open": 1, "expired": 2, "complete": 3}.get(self.status, 0) * 2 + (self.payment_status == "paid")

    def references(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.subscription, self.payment_intent, self.invoice)))


class SessionLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing bought through a Checkout session."""

    id: str
    price: PriceId | None = None
    quantity: int = 1
    amount_minor: int = 0
    currency: str = ""
    recurring: bool = False
    credits: int | None = None
    """The price's own `credits` metadata."""


class SessionLines(Fact, frozen=True, kw_only=True, omit_defaults=True, tag="session_lines"):
    """The line items of a Checkout session, which no event carries, as read from Stripe at `as_of`. Id: `lines:cs_…`."""

    session: SessionId
    lines: tuple[SessionLine, ...] = ()
    complete: bool = True

    def references(self) -> tuple[str, ...]:
        return (self.session,)


class EarlyFraudWarning(Fact, frozen=True, kw_only=True, omit_defaults=True, tag="early_fraud_warning"):
    """The network's early warning about a charge. A note; it changes no verdict (settled reading 8)."""

    STICKY: ClassVar[tuple[str, ...]] = ("charge", "payment_intent")
    charge: ChargeId | None = None
    payment_intent: PaymentIntentId | None = None
    fraud_type: str = ""
    actionable: bool = False
    created: Seconds

    def progress(self) -> int:
        return int(not self.actionable)

    def references(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.charge, self.payment_intent)))


class BalanceTransaction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One customer balance transaction. Negative amounts are credit in the customer's favour, as Stripe signs them."""

    id: str
    type: str
    amount_minor: int
    ending_balance_minor: int
    currency: str
    created: Seconds
    invoice: InvoiceId | None = None
    action: str | None = None


class BalanceRead(Fact, frozen=True, kw_only=True, omit_defaults=True, tag="balance_read"):
    """A customer's balance transactions, newest first, as read from Stripe at `as_of`. No event tells of them."""

    customer: CustomerId
    transactions: tuple[BalanceTransaction, ...] = ()
    complete: bool = True


AnyFact = (
    Customer
    | Charge
    | PaymentIntent
    | Invoice
    | InvoicePayment
    | Subscription
    | Refund
    | Dispute
    | CheckoutSession
    | EarlyFraudWarning
    | BalanceRead
    | SessionLines
    | SubscriptionSchedule
)

F = TypeVar("F", bound=Fact)

_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(AnyFact)


def encode(fact: Fact) -> bytes:
    """A fact as JSON bytes, the same bytes for equal facts."""
    return _encoder.encode(fact)


def decode(body: bytes | str) -> AnyFact:
    """The inverse of `encode`."""
    fact: AnyFact = _decoder.decode(body)
    return fact


class _Tag(msgspec.Struct):
    kind: str = ""


_tag_decoder = msgspec.json.Decoder(_Tag)
KINDS = frozenset(str(kind.__struct_config__.tag) for kind in AnyFact.__args__)
"""The kinds of facts that this release knows."""


def decode_known(body: bytes | str) -> AnyFact | None:
    """As `decode`; None for a kind that only a newer release knows, which may run beside this one during a deploy."""
    try:
        return decode(body)
    except msgspec.ValidationError:
        if _tag_decoder.decode(body).kind in KINDS:
            raise
        return None


def fold(known: F, told: F) -> F:
    """One fact from two about the same object: the later telling, with the links that either has.

    Commutative, associative, idempotent. Equal seconds are settled by `progress`, then by bytes, so that two machines
    that saw the same events in different orders hold the same file.
    """
    if known == told:
        return known
    newer, older = (told, known) if _lies_later(told, known) else (known, told)
    links = {}
    for name in newer.STICKY:
        ours, theirs = getattr(newer, name), getattr(older, name)
        if theirs is not None and (ours is None or theirs > ours):
            links[name] = theirs  # links never change in truth; the greater one only keeps `fold` associative
    for name in newer.GATHERED:
        if (theirs := getattr(older, name)) and (united := newer.gather(name, theirs)) != getattr(newer, name):
            links[name] = united
    return msgspec.structs.replace(newer, **links) if links else newer


def _lies_later(a: Fact, b: Fact) -> bool:
    """Whether `a` is the later state of the two. Links take no part: they are merged on their own."""
    if a.as_of != b.as_of:
        return a.as_of > b.as_of
    if (pa := a.progress()) != (pb := b.progress()):
        return pa > pb
    unlinked: dict[str, Any] = {**dict.fromkeys(a.STICKY), **dict.fromkeys(a.GATHERED, ())}
    return encode(msgspec.structs.replace(a, **unlinked)) > encode(msgspec.structs.replace(b, **unlinked))


def customer_of(fact: Fact) -> CustomerId | None:
    """The customer that the object itself names, if it does."""
    if isinstance(fact, Customer):
        return CustomerId(fact.id)
    return getattr(fact, "customer", None)


class CustomerFile:
    """All facts about one person's customers, by kind and id. Built from any iterable of facts, in any order."""

    __slots__ = (
        "balances",
        "charges",
        "customers",
        "disputes",
        "intents",
        "invoice_payments",
        "invoices",
        "refunds",
        "schedules",
        "session_lines",
        "sessions",
        "subscriptions",
        "warnings",
    )

    def __init__(self, facts: Iterable[Fact] = ()) -> None:
        self.customers: dict[str, Customer] = {}
        self.charges: dict[str, Charge] = {}
        self.intents: dict[str, PaymentIntent] = {}
        self.invoices: dict[str, Invoice] = {}
        self.invoice_payments: dict[str, InvoicePayment] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.refunds: dict[str, Refund] = {}
        self.disputes: dict[str, Dispute] = {}
        self.sessions: dict[str, CheckoutSession] = {}
        self.warnings: dict[str, EarlyFraudWarning] = {}
        self.balances: dict[str, BalanceRead] = {}
        self.session_lines: dict[str, SessionLines] = {}
        self.schedules: dict[str, SubscriptionSchedule] = {}
        shelves: dict[type[Fact], Any] = {  # each shelf holds its own kind, which no type can say
            Customer: self.customers,
            Charge: self.charges,
            PaymentIntent: self.intents,
            Invoice: self.invoices,
            InvoicePayment: self.invoice_payments,
            Subscription: self.subscriptions,
            Refund: self.refunds,
            Dispute: self.disputes,
            CheckoutSession: self.sessions,
            EarlyFraudWarning: self.warnings,
            BalanceRead: self.balances,
            SessionLines: self.session_lines,
            SubscriptionSchedule: self.schedules,
        }
        for fact in facts:
            shelf = shelves[type(fact)]
            known = shelf.get(fact.id)
            shelf[fact.id] = fact if known is None else fold(known, fact)
