"""One page of one of Stripe's lists as rows for the tables, and every reason not to believe it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from handlers import HANDLERS
from handlers.customer import AnyFact, Seconds
from handlers.events import Unreadable, parse_event, read_object
from handlers.projection import created_of
from handlers.wire import Currency, ObjectWire, Ref, Signed, Text, Time, id_of
from reconcile.windows import LISTS, Window
from worker.inbox import NotAnEvent, Row, read_event
from worker.runs import kind_of
from worker.settings import Mode
from worker.stripe_gateway import RawPage

HEALTH = "v2.core.health."
"""Events in which Stripe tells of its own gaps."""
MAX_ID = 255


class PageWrong(Exception):
    """A page that cannot be what was asked for; the message is the reason, and goes into the report."""


class Move(msgspec.Struct, frozen=True):
    """One of Stripe's balance transactions, as its row."""

    id: str
    type: str
    category: str
    source: str | None
    amount: int
    fee: int
    currency: str
    created: Seconds
    rate: float | None


class Listed(msgspec.Struct):
    """What a page says. Only one of `facts`, `events` and `moves` has something."""

    seen: int = 0
    first_id: str | None = None
    last_id: str | None = None
    oldest: Seconds | None = None
    facts: list[AnyFact] = []
    events: list[Row] = []
    moves: list[Move] = []
    unread: list[tuple[str, str]] = []
    """Ids of objects that could not be read, and why."""


class _MoveWire(ObjectWire, tag="balance_transaction"):
    amount: Signed
    created: Time
    currency: Currency
    fee: Signed
    type: Text
    reporting_category: Text
    source: Ref[str] = None
    exchange_rate: float | None = None


class _Named(msgspec.Struct):
    """The little that is read of an object that could not be read: the page's order and the next cursor hang on it."""

    id: Any = None
    created: Any = None


class _AboutObject(msgspec.Struct):
    id: Any = None


class _AboutData(msgspec.Struct):
    object: _AboutObject | None = None


class _About(msgspec.Struct):
    data: _AboutData | None = None


_MOVE = msgspec.json.Decoder(_MoveWire)
_NAMED = msgspec.json.Decoder(_Named)
_ABOUT = msgspec.json.Decoder(_About)


def read_page(name: str, page: RawPage, asked: Window, cursor: str | None, edge: Seconds, mode: Mode) -> Listed:
    """The page of list `name`, asked for by `asked` after the object `cursor`; none of it may be younger than `edge`.

    Raises PageWrong. An object that cannot be read is no reason: it is named in `unread`, and the rest counts.
    """
    listed = Listed(seen=len(page.data))
    read = _reader(name, listed, page.as_of, mode)
    before: Seconds = min(edge, asked.hi - 1)
    ids: set[str | None] = {cursor}
    for raw in page.data:
        body = bytes(raw)
        try:
            id_, created = read(body)
        except (Unreadable, NotAnEvent) as error:
            id_, created = named(body)
            listed.unread.append((id_, str(error)))
        if id_ in ids:
            raise PageWrong(f"it names {id_} a second time")
        if created is not None:
            if not asked.lo <= created < asked.hi:
                raise PageWrong(f"{id_} of {created} is outside of what was asked for")
            if created > before:
                raise PageWrong(f"{id_} of {created} comes after an older object")
            before = created
        ids.add(id_)
        listed.first_id, listed.last_id = listed.first_id or id_, id_
    if page.has_more and not page.data:
        raise PageWrong("it is empty, and more is said to follow")
    listed.oldest = before if page.data else None
    return listed


def is_ours(row: Row) -> bool:
    """Whether an event is one that should have arrived here."""
    return row.kind.ignored_because is None and (row.type in HANDLERS or row.type.startswith(HEALTH))


def told_by(row: Row) -> tuple[AnyFact | None, str | None]:
    """What an event tells: its fact, and the id of the object that it is about. Raises Unreadable."""
    fact = parse_event(row.payload).fact if row.type in HANDLERS else None
    return fact, fact.id if fact is not None else about(row.payload)


def about(event: bytes) -> str | None:
    """The id of the object in an event, whatever its kind and shape; None where it has none."""
    try:
        data = _ABOUT.decode(event).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    id_ = data.object.id if data is not None and data.object is not None else None
    return id_ if _usable(id_) else None


def _reader(name: str, listed: Listed, as_of: Seconds, mode: Mode) -> Callable[[bytes], tuple[str, Seconds | None]]:
    """How an object of this list is read into `listed`; gives its id and `created`."""
    kind = LISTS[name].kind

    def event(body: bytes) -> tuple[str, Seconds | None]:
        row = read_event(body, mode)
        listed.events.append(row)
        return row.event_id, row.created_s

    def move(body: bytes) -> tuple[str, Seconds | None]:
        read = _move(body)
        listed.moves.append(read)
        return read.id, read.created

    def fact(body: bytes) -> tuple[str, Seconds | None]:
        told = read_object(body, as_of)
        if kind_of(told) != kind:
            raise Unreadable(kind, told.id, f"{kind}.object", "is another kind of object")
        listed.facts.append(told)
        return told.id, created_of(told)

    return {"events": event, "balance_transactions": move}.get(name, fact)


def _move(body: bytes) -> Move:
    try:
        wire = _MOVE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        where = str(error).rpartition("`$.")[2].rstrip("`") if "`$." in str(error) else "object"
        kind = "balance_transaction"
        raise Unreadable(kind, None, f"{kind}.{where}", "is missing or unfit") from None
    rate = wire.exchange_rate
    return Move(
        id=wire.id,
        type=wire.type,
        category=wire.reporting_category,
        source=id_of(wire.source),
        amount=wire.amount,
        fee=wire.fee,
        currency=wire.currency,
        created=wire.created,
        rate=rate,
    )


def named(body: bytes) -> tuple[str, Seconds | None]:
    """Id and `created` of an object, whatever else it says. Without an id the list cannot be followed: raises PageWrong."""
    try:
        told = _NAMED.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        told = _named_otherwise(body)
    if not _usable(told.id):
        raise PageWrong("it has an object without an id")
    return told.id, told.created if type(told.created) is int else None


def _named_otherwise(body: bytes) -> _Named:
    """msgspec refuses a lone surrogate anywhere in an object; its name can be read all the same."""
    try:
        return msgspec.convert(json.loads(body), _Named)
    except (ValueError, RecursionError):
        return _Named()


def _usable(id_: Any) -> bool:
    return isinstance(id_, str) and 0 < len(id_) <= MAX_ID and id_.isprintable()
