"""From stored events to settled facts: claim, read, settle, mark done, in one transaction per batch.

A batch that fails is bisected until the bad event stands alone; what only met another worker is tried again.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

import asyncpg
import structlog

from handlers.customer import AnyFact
from handlers.events import Gap, Hint, Unreadable, parse_event
from worker import tracing
from worker.db import Connection, Pool, columns, queries, transaction
from worker.errors import DatabaseUnavailable
from worker.failpoint import failpoint
from worker.gaps import note_gaps
from worker.inbox import unpack
from worker.judging import ONE_STEP, Court, path_of, want
from worker.metrics import count_settled, counts
from worker.settle import Overtaken, Settled, settle

BATCH = 200
MAX_ATTEMPTS = 8


SUSPECT_FROM = 2
"""Attempts after which an event is tried alone when a worker begins after another one's death."""

log = structlog.get_logger()


async def drain(
    pool: Pool, court: Court, *, batch: int = BATCH, careful: bool = False, rounds: int | None = None
) -> int:
    """Work off waiting events until none can be claimed. Returns how many were settled. Raises DatabaseUnavailable.

    `careful` counts the attempts first, and tries alone what was counted before: so a worker begins after a crash.
    """
    total = 0
    while rounds is None or rounds > 0:
        done = await (_drain_carefully(pool, court, batch) if careful else _drain_batch(pool, court, batch))
        total += done
        if done == 0:
            break
        rounds = None if rounds is None else rounds - 1
    return total


async def _drain_batch(pool: Pool, court: Court, batch: int) -> int:
    try:
        return await _work(pool, court, batch=batch)
    except _Bisect as poisoned:
        return await _bisect(pool, court, poisoned.event_ids, poisoned.cause)


class _Bisect(Exception):
    """A batch failed; its events are tried in halves, so that one bad event stops nobody but itself."""

    def __init__(self, event_ids: list[str], cause: Exception) -> None:
        super().__init__(str(cause))
        self.event_ids, self.cause = event_ids, cause


async def _bisect(pool: Pool, court: Court, event_ids: list[str], cause: Exception) -> int:
    if len(event_ids) == 1:
        log.error("event.failed", event_id=event_ids[0], error=type(cause).__name__)
        counts.add("finalsale_drain_events", "failed")
        async with transaction(pool) as connection:
            await queries.postpone_event(
                connection, event_id=event_ids[0], max_attempts=MAX_ATTEMPTS, error=_our_words(cause)
            )
        return 1
    middle = len(event_ids) // 2
    done = 0
    for half in (event_ids[:middle], event_ids[middle:]):
        done += await _attempt(pool, court, half)
    return done


def _our_words(cause: Exception) -> str:
    """A failure's class and Postgres's code for it; what drivers say beyond that may quote a payload."""
    state = getattr(cause, "sqlstate", None)
    return f"{type(cause).__name__}{f' ({state})' if state else ''}; `finalsale events replay` tries again"


async def _drain_carefully(pool: Pool, court: Court, batch: int) -> int:
    """One batch whose events are counted before they are touched; those that were counted before are tried alone."""
    async with transaction(pool) as connection:
        rows = await connection.fetch(queries.claim_events.sql, batch)
        suspects = [row["event_id"] for row in rows if row["attempts"] >= SUSPECT_FROM]
        others = [row["event_id"] for row in rows if row["attempts"] < SUSPECT_FROM]
        await connection.execute(queries.mark_attempts.sql, others)
    done = await _attempt(pool, court, others) if others else 0
    for event_id in suspects:
        async with transaction(pool) as connection:
            state = await connection.fetchval(queries.mark_attempt.sql, MAX_ATTEMPTS, event_id)
        if state == "waiting":
            done += await _attempt(pool, court, [event_id])
    return done


async def _attempt(pool: Pool, court: Court, event_ids: list[str]) -> int:
    try:
        return await _work(pool, court, event_ids=event_ids)
    except _Bisect as poisoned:
        return await _bisect(pool, court, poisoned.event_ids, poisoned.cause)


async def _work(pool: Pool, court: Court, *, batch: int = 0, event_ids: list[str] | None = None) -> int:
    """One transaction: claim, read, settle, mark done. What only met another worker is tried again from the start."""
    for attempt in (1, 2, 3):
        claimed: list[str] = []
        began_ns = time.time_ns()
        try:
            async with transaction(pool) as connection:
                rows = await _claim(connection, batch, event_ids)
                if not rows:
                    return 0
                claimed = [row["event_id"] for row in rows]
                claimed_ns = time.time_ns()
                failpoint("after_claim")
                settled, outcomes = await _settle_events(connection, court, rows)
                judged_ns = time.time_ns()
                failpoint("before_commit")
        except DatabaseUnavailable as unavailable:
            cause = unavailable.__cause__
            counts.add("finalsale_drain_batches", "unavailable")
            if claimed and isinstance(cause, Exception) and is_about_these(cause):
                raise _Bisect(claimed, cause) from cause
            raise  # nothing is known against the events: they stay as they are
        except (
            asyncpg.SerializationError,
            asyncpg.DeadlockDetectedError,
            asyncpg.InvalidCachedStatementError,
            Overtaken,
        ) as error:
            counts.add("finalsale_drain_batches", "again")
            if attempt == 3:
                raise _Bisect(claimed, error) from error
            continue
        except Exception as error:
            if not claimed:
                raise
            counts.add("finalsale_drain_batches", "bisected")
            raise _Bisect(claimed, error) from error
        failpoint("after_commit")
        took_s = (time.time_ns() - began_ns) / 1e9
        _count(outcomes, settled, took_s)
        if tracing.spans is not None:
            told = [(row["realm"], row["event_id"], state) for row, state in zip(rows, outcomes, strict=True)]
            tracing.spans.drained(told, began_ns, claimed_ns, judged_ns)
        log.info("drain.batch", events=len(claimed), **settled.numbers, ms=round(took_s * 1000, 1))
        return len(claimed)
    raise AssertionError("unreachable")


def _count(outcomes: Sequence[str], settled: Settled, took_s: float) -> None:
    counts.add("finalsale_drain_batches", "done")
    for outcome, many in Counter(outcomes).items():
        counts.add("finalsale_drain_events", outcome, by=many)
    counts.observe("finalsale_drain_seconds", took_s)
    count_settled(settled.files, settled.decisions, settled.entries)


def is_about_these(cause: BaseException | None) -> bool:
    """Whether a Postgres that answers refused these very values, or found the work on them too long."""
    refused_value = isinstance(cause, asyncpg.InterfaceError) and isinstance(cause, ValueError)
    return refused_value or isinstance(cause, (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError))


async def _claim(connection: Connection, batch: int, event_ids: list[str] | None) -> list[asyncpg.Record]:
    if event_ids is None:
        return await connection.fetch(queries.claim_events.sql, batch)
    return await connection.fetch(queries.claim_these_events.sql, event_ids)


class _Told(NamedTuple):
    """What a batch of events says: by realm the facts, each with its event, and the hints; then of each event what became of it."""

    facts: dict[str, list[tuple[AnyFact, str]]]
    hints: dict[str, list[Hint]]
    gaps: list[tuple[str, str, Gap, Hint | None]]
    outcomes: list[tuple[str, str, str | None]]


def _read(rows: Sequence[asyncpg.Record]) -> _Told:
    facts: dict[str, list[tuple[AnyFact, str]]] = defaultdict(list)
    hints: dict[str, list[Hint]] = defaultdict(list)
    gaps: list[tuple[str, str, Gap, Hint | None]] = []
    outcomes: list[tuple[str, str, str | None]] = []
    for row in rows:
        try:
            told = parse_event(unpack(row["payload"]))
        except Unreadable as unreadable:
            outcomes.append((row["event_id"], "quarantined", str(unreadable)))
            log.warning("event.quarantined", event_id=row["event_id"], field=unreadable.field)
            continue
        if told.hint is not None and not ONE_STEP.fullmatch(told.hint.id):
            outcomes.append((row["event_id"], "quarantined", "event: related_object.id: is no Stripe id"))
            continue
        outcomes.append((row["event_id"], "done", None))
        if told.fact is not None:
            facts[row["realm"]].append((told.fact, row["event_id"]))
        elif told.hint is not None:
            hints[row["realm"]].append(told.hint)
        if told.gap is not None:
            gaps.append((row["realm"], row["event_id"], told.gap, told.hint))
    return _Told(facts, hints, gaps, outcomes)


async def _settle_events(
    connection: Connection, court: Court, rows: Sequence[asyncpg.Record]
) -> tuple[Settled, Sequence[str]]:
    """What settling them brought, and of each event in its order what became of it: done or quarantined."""
    read = _read(rows)
    total = Settled()
    erased: list[str] = []
    for realm, told_facts in sorted(read.facts.items(), key=itemgetter(0)):  # sorted, as everything that takes locks
        settled = await settle(connection, court, realm, [fact for fact, _ in told_facts])
        for name in Settled.__struct_fields__:
            setattr(total, name, getattr(total, name) + getattr(settled, name))
        if settled.erased:
            erased += [event_id for fact, event_id in told_facts if fact.id in settled.erased]
        if tracing.spans is not None and settled.decisions:
            causes = [(fact.id, event_id) for fact, event_id in told_facts]
            await connection.execute(queries.save_causes.sql, *columns(causes), realm)
    for realm, told_hints in sorted(read.hints.items()):
        await want(connection, realm, [(h.object_type, h.id, path_of(h.object_type, h.id), 0) for h in told_hints])
    if read.gaps:
        await note_gaps(connection, read.gaps)
    ids, states, errors = zip(*read.outcomes, strict=True)
    await connection.execute(queries.settle_events.sql, list(ids), list(states), list(errors))
    if erased:
        await queries.empty_payloads(connection, event_ids=erased)
    return total, states
