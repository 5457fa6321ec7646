"""What arrives from Stripe, in every API shape that is in use, as our values; Stripe's shapes stop here.

Shapes told apart: up to 2025-02-24.acacia ("old"), and 2025-03-31.basil up to 2026-10-28.endive ("new"). One object may
carry fields of both; the new one wins. Unknown fields and unknown enum values pass, a missing or unfit value that
we need never does: it is named in an `Unreadable`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from handlers import HANDLERS
from handlers.customer import (
    BALANCE_READ_PREFIX,
    SESSION_LINES_PREFIX,
    AnyFact,
    BalanceRead,
    BalanceTransaction,
    Customer,
    CustomerId,
    Seconds,
    SessionId,
    SessionLine,
    SessionLines,
)
from handlers.wire import (
    ACTION_KEY,
    MAX_MINOR,
    MAX_SECONDS,
    ChargeWire,
    CheckoutSessionWire,
    CustomerWire,
    DisputeWire,
    EarlyFraudWarningWire,
    ObjectWire,
    Part,
    PaymentIntentWire,
    RefundWire,
    Text,
    Time,
    Unreadable,
    email_hash,
    id_of,
)
from handlers.wire_billing import BalanceTransactionWire, InvoicePaymentWire, InvoiceWire
from handlers.wire_subscriptions import SessionLineWire, SubscriptionScheduleWire, SubscriptionWire

__all__ = [
    "ACTION_KEY",
    "EVENT_GENERATION_FAILED",
    "MAX_MINOR",
    "MAX_SECONDS",
    "Gap",
    "Hint",
    "Told",
    "Unreadable",
    "email_hash",
    "parse_event",
    "read_balance",
    "read_list",
    "read_object",
    "read_session_lines",
]

W = TypeVar("W")

EVENT_GENERATION_FAILED = "v2.core.health.event_generation_failure.resolved"
"""Stripe could not make an event: it is neither delivered nor listed, ever (docs.stripe.com/webhooks/handle-irrecoverable-events)."""
GAP_UNTOLD = 3 * 86_400
"""How far back such a failure may lie where Stripe does not say; for so long Stripe tries to deliver what it could make."""


class Gap(Struct, frozen=True):
    """Unix seconds [since, until) in which Stripe failed to make an event. Which object's, is in the event's `hint`, if told."""

    since: Seconds
    until: Seconds


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
    gap: Gap | None = None
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
        lost = _lost(event.data) if event.type == EVENT_GENERATION_FAILED else None
        return Told(
            event_id=event.id,
            type=event.type,
            created=created,
            livemode=event.livemode,
            account=_account(event.account, event.context),
            hint=_hint(event.related_object) if lost is None else lost.hint(),
            gap=None if lost is None else lost.gap(created),
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
            if id_of(wire.customer) != customer:
                raise wire.unfit("customer", "is another customer")
            transactions.append(wire.transaction())
        complete = not listed.has_more
    key = BALANCE_READ_PREFIX + customer
    return BalanceRead(id=key, as_of=as_of, customer=customer, transactions=tuple(transactions), complete=complete)


def read_session_lines(session: SessionId, pages: Iterable[bytes], as_of: Seconds) -> SessionLines:
    """The pages of a Checkout session's line items as one fact. Raises `Unreadable`.

    Complete only where the last page says that no more follows. The items do not name their session: the caller read
    them from its path. Source: docs.stripe.com/api/checkout/sessions/line_items.
    """
    lines: list[SessionLine] = []
    complete = False
    for page in pages:
        listed = _read(_PAGE, _utf8(page, "list"), "list")
        lines += [_read(_SESSION_LINE, raw, "item").line() for raw in listed.data]
        complete = not listed.has_more
    key = SESSION_LINES_PREFIX + session
    return SessionLines(id=key, as_of=as_of, session=session, lines=tuple(lines), complete=complete)


# --- the envelopes: events, pages, and what names an object that cannot be read ------------------------------------------


class _Page(Part):
    data: list[msgspec.Raw]
    has_more: bool


class _Previous(Part):
    status: Any = None


class _EventData(Part):
    object: msgspec.Raw
    previous_attributes: _Previous | None = None


class _Event(ObjectWire, tag="event"):
    type: Text
    created: Time
    livemode: bool
    data: _EventData
    api_version: Text | None = None
    account: Text | None = None
    context: Text | None = None


class _Related(Part):
    id: Text
    type: Text
    url: str


class _ThinEvent(ObjectWire, tag="v2.core.event"):
    type: Text
    created: Annotated[datetime, Meta(tz=True)]
    livemode: bool
    account: Text | None = None
    context: Text | None = None
    related_object: _Related | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")


class _LostObject(Struct):
    id: str
    type: str


class _Impact(Struct):
    related_object: _LostObject | None = None


class _Lost(Struct):
    """`data` of the event about a failed event, as far as we use it. A delivered event may come without any of it."""

    impact: _Impact | None = None
    started_at: Annotated[datetime, Meta(tz=True)] | None = None
    resolved_at: Annotated[datetime, Meta(tz=True)] | None = None

    def gap(self, created: Seconds) -> Gap:
        """The failure's time. What is not told, or cannot be, is taken from when the event about it was made."""
        until = created + 1
        if self.resolved_at is not None:
            until = min(until, int(self.resolved_at.timestamp()) + 1)
        since = until - GAP_UNTOLD
        if self.started_at is not None and 0 <= self.started_at.timestamp() < until:
            since = int(self.started_at.timestamp())
        return Gap(max(0, since), max(1, until))

    def hint(self) -> Hint | None:
        """The object that changed unheard, if it is of a kind that we read. The address told with it is a page for people."""
        about = self.impact.related_object if self.impact is not None else None
        if about is None or _PRINTABLE_ID.fullmatch(about.id) is None:
            return None
        kind = _THIN_NAMES.get(about.type, about.type)
        return Hint(kind, about.id, "") if kind in _KINDS else None


class _Named(Struct):
    """The little that is read of an object that could not be read, to name it."""

    id: Any = None
    object: Any = None


_AnyWire = (
    ChargeWire
    | PaymentIntentWire
    | InvoiceWire
    | InvoicePaymentWire
    | SubscriptionWire
    | SubscriptionScheduleWire
    | CustomerWire
    | RefundWire
    | DisputeWire
    | CheckoutSessionWire
    | EarlyFraudWarningWire
)
_EVENT: msgspec.json.Decoder[_Event | _ThinEvent] = msgspec.json.Decoder(_Event | _ThinEvent)
_OBJECT: msgspec.json.Decoder[_AnyWire] = msgspec.json.Decoder(_AnyWire)
_PAGE = msgspec.json.Decoder(_Page)
_BALANCE_TRANSACTION = msgspec.json.Decoder(BalanceTransactionWire)
_SESSION_LINE = msgspec.json.Decoder(SessionLineWire)
_NAMED = msgspec.json.Decoder(_Named)
_LOST = msgspec.json.Decoder(_Lost | None)

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


def _account(account: str | None, context: str | None) -> str | None:
    """The connected account: `account`, or the last part of an organisation's `context` (`org_1/acct_2`)."""
    if account is None and context is not None:
        last = context.rpartition("/")[2]
        account = last if last.startswith("acct_") else None
    return account


def _lost(data: msgspec.Raw) -> _Lost:
    """What a health event tells. In a shape that nobody knows it tells nothing, and is a gap all the same."""
    try:
        return _LOST.decode(data) or _Lost()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Lost()


def _hint(related: _Related | None) -> Hint | None:
    """What to read again, if it is of a kind that we read and lies in the v1 API."""
    if related is None or _URL.fullmatch(related.url) is None:
        return None
    kind = _THIN_NAMES.get(related.type, related.type)
    return Hint(kind, related.id, related.url) if kind in _KINDS else None
