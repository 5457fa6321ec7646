"""The door of the inbox: an event's envelope becomes a row, rows that arrive together become one commit.

Requests that arrive while a commit is under way share the next one. There is no waiting for company: under load batches form
by themselves, and a lone event is committed at once.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, NamedTuple

import asyncpg
import lz4.block
import msgspec

from worker.db import Connection, queries, session_settings
from worker.errors import Permanent
from worker.settings import Mode, realm_of

COMMIT_TIMEOUT_S = 0.9  # from an event's arrival to its commit; the sender hears 503 within a second
MAX_BATCH_ROWS = 500
MAX_BATCH_BYTES = 8 * 1024 * 1024
MAX_PENDING_BYTES = 64 * 1024 * 1024  # what may wait in memory while a commit is slow
LATEST_CREATED_S = 253_402_300_799  # the end of the year 9999

_IDENTIFIER = re.compile(r"[A-Za-z0-9_.:-]{1,255}", re.ASCII).fullmatch
_ACCOUNT = re.compile(r"acct_[A-Za-z0-9_]{1,250}", re.ASCII).fullmatch


class Kind(NamedTuple):
    """What the events of a batch nearly always have in common."""

    realm: str
    api_version: str | None
    ignored_because: str | None


class Row(NamedTuple):
    """One event as it is stored."""

    event_id: str
    type: str
    created_s: int
    payload: bytes
    kind: Kind


class NotAnEvent(Permanent):
    """A signed body that is not an event as Stripe sends them; the message is one sentence for the sender."""

    error_code = "not_an_event"


class Envelope(msgspec.Struct):
    """What is read of an event at intake: enough to file it. `data.object` is left for the worker."""

    id: str
    object: str
    type: str
    created: int | str  # unix seconds; RFC 3339 in thin events
    livemode: bool
    api_version: str | None = None
    account: str | None = None
    context: Any = None  # of thin events: "acct_…", or "org_…/acct_…"


_decode = msgspec.json.Decoder(Envelope).decode


def read_event(body: bytes, mode: Mode) -> Row:
    """The row for one signed body. Raises NotAnEvent with a sentence that helps an honest sender."""
    try:
        if not body.isascii():
            body.decode()  # the decoder does not look into the strings that it skips
        try:
            envelope = _decode(body)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            # It refuses a lone surrogate (\ud800) even where it only skips. That is the worker's to judge, not a reason to lose
            # an event that was signed.
            envelope = msgspec.convert(json.loads(body), Envelope)
    except msgspec.ValidationError as error:
        raise NotAnEvent(
            f"The body is not a Stripe event: {error}."
        ) from None  # names fields and types, quotes nothing
    except (ValueError, RecursionError):  # DecodeError and UnicodeDecodeError are ValueErrors
        raise NotAnEvent("The body is not valid JSON in UTF-8.") from None
    if envelope.object not in ("event", "v2.core.event"):
        raise NotAnEvent('The body is not a Stripe event: its "object" is neither "event" nor "v2.core.event".')
    if not _IDENTIFIER(envelope.id) or not _IDENTIFIER(envelope.type):
        raise NotAnEvent('The body is not a Stripe event: its "id" or "type" is not one that Stripe would use.')
    if envelope.api_version is not None and not _IDENTIFIER(envelope.api_version):
        raise NotAnEvent('The body is not a Stripe event: its "api_version" is not one that Stripe would use.')
    sent_mode: Mode = "live" if envelope.livemode else "test"
    ignored_because = None if sent_mode == mode else f"wrong mode: a {sent_mode} event at a {mode} deployment"
    kind = Kind(realm_of(sent_mode, _account(envelope)), envelope.api_version, ignored_because)
    return Row(envelope.id, envelope.type, _seconds(envelope.created), body, kind)


def _account(envelope: Envelope) -> str | None:
    """The connected account, if it is one's event: `account` of a snapshot, the last part of a thin event's `context`."""
    if envelope.account is None:
        context = envelope.context
        if not isinstance(context, str):
            return None
        last = context.rpartition("/")[2]
        return last if _ACCOUNT(last) else None
    if not _ACCOUNT(envelope.account):
        raise NotAnEvent('The body is not a Stripe event: its "account" is not one that Stripe would use.')
    return envelope.account


def _seconds(created: int | str) -> int:
    if isinstance(created, str):
        try:
            told = datetime.fromisoformat(created)
            created = int((told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp())
        except (ValueError, OverflowError):
            raise NotAnEvent('The body is not a Stripe event: its "created" is not a time.') from None
    if not 0 <= created <= LATEST_CREATED_S:
        raise NotAnEvent('The body is not a Stripe event: its "created" is out of range.')
    return created


class Outcome(Enum):
    """What became of one event."""

    COMMITTED = "committed"
    UNAVAILABLE = "unavailable"  # perhaps committed all the same: the sender sends it again and it is a duplicate then
    UNSTORABLE = "unstorable"


class Commit(NamedTuple):
    """One flush, for counters and logs."""

    rows: int
    new_rows: int  # the others were there already
    seconds: float
    error: BaseException | None


Waiting = tuple[Row, "asyncio.Future[Outcome]", float]


class Inbox:
    """Group commit of rows into `inbox` over one connection of its own, which it opens again by itself when it breaks."""

    def __init__(self, url: str, on_commit: Callable[[Commit], None]) -> None:
        self._url = url
        self._on_commit = on_commit
        self._pending: list[Waiting] = []
        self._pending_bytes = 0
        self._flusher: asyncio.Task[None] | None = None
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._loop = asyncio.get_running_loop()

    def add(self, row: Row) -> asyncio.Future[Outcome]:
        """Put `row` into the next commit. The future is done once that commit is, or within COMMIT_TIMEOUT_S.

        It is this caller's own: cancelling it takes nothing back and disturbs nobody else.
        """
        done = self._loop.create_future()
        if self._pending_bytes + len(row.payload) > MAX_PENDING_BYTES:
            done.set_result(Outcome.UNAVAILABLE)
            return done
        self._pending.append((row, done, self._loop.time()))
        self._pending_bytes += len(row.payload)
        if self._flusher is None:
            self._flusher = self._loop.create_task(self._flush(), name="inbox flush")
        return done

    async def close(self) -> None:
        """Commit what is pending and leave."""
        if self._flusher is not None:
            await asyncio.shield(self._flusher)
        if self._connection is not None:
            self._connection.terminate()

    async def _flush(self) -> None:
        try:
            while self._pending:
                batch = self._take()
                began = time.perf_counter()
                new_rows, error = await self._commit(batch)
                self._on_commit(Commit(len(batch), new_rows, time.perf_counter() - began, error))
        finally:
            self._flusher = None

    def _take(self) -> list[Waiting]:
        """The oldest pending rows, at most one batch of them and always at least one."""
        if len(self._pending) <= MAX_BATCH_ROWS and self._pending_bytes <= MAX_BATCH_BYTES:
            batch, self._pending, self._pending_bytes = self._pending, [], 0
            return batch
        count = size = 0
        for row, _, _ in self._pending[:MAX_BATCH_ROWS]:
            size += len(row.payload)
            if count and size > MAX_BATCH_BYTES:
                size -= len(row.payload)
                break
            count += 1
        batch, self._pending = self._pending[:count], self._pending[count:]
        self._pending_bytes -= size
        return batch

    async def _commit(self, batch: list[Waiting]) -> tuple[int, BaseException | None]:
        """Store a batch and tell everyone in it; a row that Postgres refuses is found by halving, and refused alone."""
        new_rows = 0
        failure: BaseException | None = None
        try:
            async with asyncio.timeout_at(batch[0][2] + COMMIT_TIMEOUT_S):
                new_rows = await self._store([row for row, _, _ in batch])
            outcome = Outcome.COMMITTED
        except (
            asyncpg.DataError,
            asyncpg.IntegrityConstraintViolationError,
            asyncpg.ProgramLimitExceededError,
        ) as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                first, second = await self._commit(batch[:middle]), await self._commit(batch[middle:])
                return first[0] + second[0], first[1] or second[1]
            outcome, failure = Outcome.UNSTORABLE, error
        except Exception as error:  # whatever it is, nobody in the batch may wait for ever or hear yes
            outcome, failure = Outcome.UNAVAILABLE, error
            self._drop_connection()  # whatever it was in the middle of; the next commit begins on a new one
        for _, done, _ in batch:
            if not done.done():
                done.set_result(outcome)
        return new_rows, failure

    async def _store(self, rows: list[Row]) -> int:
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = self._connection = await self._connect()
        if all(row.kind == rows[0].kind for row in rows):
            return await _insert(connection, rows[0].kind, rows)
        async with connection.transaction():
            return await store_rows(connection, rows)

    async def _connect(self) -> asyncpg.Connection[asyncpg.Record]:
        settings = session_settings("intake", statement_timeout_s=COMMIT_TIMEOUT_S, lock_timeout_s=COMMIT_TIMEOUT_S)
        # a deployment that switched it off for other programs must not lose what we said yes to
        settings["synchronous_commit"] = "on"
        return await asyncpg.connect(self._url, server_settings=settings)

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


async def _insert(connection: Connection, kind: Kind, rows: Sequence[Row]) -> int:
    """Insert rows of one kind; how many were new. What they share is sent once: the driver's cost is in the elements of arrays."""
    event_ids, types, created_s, payloads, _ = zip(*rows, strict=True)
    status: str = await queries.store_events(
        connection,
        event_ids=event_ids,
        types=types,
        created_s=created_s,
        payloads=[pack(payload) for payload in payloads],
        **kind._asdict(),
    )
    return int(status.rpartition(" ")[2])  # "INSERT 0 25"


async def store_rows(connection: Connection, rows: Sequence[Row]) -> int:
    """Store rows of any kinds (an import, the nightly run); how many were new. Duplicates are passed over."""
    kinds: dict[Kind, list[Row]] = {}
    for row in rows:
        kinds.setdefault(row.kind, []).append(row)
    return sum([await _insert(connection, kind, alike) for kind, alike in kinds.items()])


def pack(body: bytes) -> bytes:
    """A body as the inbox keeps it: a byte 1 and an lz4 block, where that is shorter; otherwise the body as it is.

    Done here, since a third of the bytes to send, log and sync is worth more than the 5 us it costs, and not every
    Postgres is built with lz4.
    """
    packed: bytes = b"\x01" + lz4.block.compress(body)
    return packed if len(packed) < len(body) else body


def unpack(stored: bytes) -> bytes:
    """The inverse of `pack`: the very bytes that were signed. JSON never begins with a byte 1."""
    return bytes(lz4.block.decompress(stored[1:])) if stored[:1] == b"\x01" else stored
