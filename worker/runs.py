"""One run over Stripe's lists: its lock, its row, its slices, and what it stages; all through one connection that is the lock.

The session-level lock and every write share a connection: when it dies the lock is free and nothing more can be written, so
two runs never overlap and a dead one holds nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import asyncpg
import msgspec

from handlers.customer import AnyFact, Seconds, customer_of, decode, decode_known, encode, fold
from handlers.erasure import PERSONAL, impersonal
from reconcile.report import ListRead, Unread
from reconcile.windows import LISTS, ScanPlan, initial_slices
from worker.db import CONNECT_TIMEOUT_S, UNAVAILABLE, Connection, columns, queries, session_settings
from worker.errors import DatabaseUnavailable, FinalsaleError
from worker.settle import lock_number

STATEMENT_TIMEOUT_S = 600.0
"""Comparing millions of rows in one statement takes a while; longer than this, something is wrong."""
LOCK_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0
SESSION = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    # a server busy for a client that has gone must see it, or the lock of a dead run outlives it by one statement
    "client_connection_check_interval": "5000",
    # what a crash of Postgres takes back together, the page and how far its slice is, is read again; `finish` waits
    "synchronous_commit": "off",
    # a million rows listed are held against a million of the books in one hash join
    "work_mem": "64MB",
}


class AnotherRun(FinalsaleError):
    """Another run over the same realm is under way; the message says which and since when."""

    error_code = "another_run"


class Run:
    """A run that holds the lock. Made by `open_run`."""

    def __init__(
        self, conn: Connection, id_: str, realm: str, plan: ScanPlan, *, asked: str, dry_run: bool, resumed: bool
    ) -> None:
        self.conn, self.id, self.realm, self.plan = conn, id_, realm, plan
        self.asked, self.dry_run, self.resumed = asked, dry_run, resumed
        self._turn = asyncio.Lock()

    @property
    def account(self) -> str | None:
        """The connected account that the realm is of, if it is one's."""
        return self.realm.partition(":")[2] or None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """One transaction on the run's connection, which chains of pages take in turns. Raises DatabaseUnavailable."""
        try:
            async with self._turn, self.conn.transaction():
                yield self.conn
        except UNAVAILABLE as error:
            raise DatabaseUnavailable(f"the run's connection is lost, and its lock ({type(error).__name__})") from error

    async def stage(self, name: str) -> None:
        """Tell what the run is at, for people who watch."""
        async with self.transaction() as conn:
            await queries.stage_run(conn, id=self.id, stage=name)

    async def stage_facts(self, facts: Iterable[AnyFact], *, listed: bool) -> None:
        """Fold facts into `found`. `listed`: Stripe showed them during this run. Inside `transaction`."""
        told: dict[str, AnyFact] = {}
        for fact in facts:
            told[fact.id] = fold(told[fact.id], fact) if fact.id in told else fact
        if not told:
            return
        await self._without_the_erased(told)
        known = {row["id"]: row for row in await self.conn.fetch(queries.found_of.sql, self.id, list(told))}
        alike: dict[tuple[str, Seconds, bool], list[tuple[str, str | None, bytes]]] = {}
        for id_, fact in sorted(told.items()):
            before = known.get(id_)
            folded = fold(decode(before["body"]), fact) if before else fact
            customer = customer_of(folded) or (before["customer"] if before else None)
            shared = kind_of(folded), folded.as_of, listed or bool(before and before["listed"])
            alike.setdefault(shared, []).append((id_, customer, encode(folded)))
        for (kind, as_of, shown), rows in alike.items():  # the driver's cost is in the elements of arrays
            await self.conn.execute(queries.save_found.sql, self.id, kind, as_of, shown, *columns(rows))

    async def _without_the_erased(self, told: dict[str, AnyFact]) -> None:
        """Facts of erased customers as the books keep them: what Stripe says of the person is not staged."""
        personal = [(id_, customer_of(fact) or id_) for id_, fact in told.items() if type(fact) in PERSONAL]
        if not personal:
            return
        for row in await self.conn.fetch(queries.erased_owners.sql, self.realm, *columns(personal)):
            known = decode_known(row["body"]) if row["body"] is not None else None
            told[row["id"]] = impersonal(told[row["id"]], known)

    async def unread(self, list_: str, what: str, why: str) -> None:
        """Put down what could not be read: one such row makes the run incomplete. Inside `transaction`."""
        await queries.save_unread(self.conn, run=self.id, list=list_, what=what, why=why)

    async def disown(self) -> None:
        """Throw away all that the run read: it is not this account's. Nobody goes on with it."""
        async with self.transaction() as conn:
            await queries.disown_run(conn, id=self.id)

    async def finish(self, state: str, exit_code: int, report: bytes) -> None:
        """End the run: `done`, `incomplete` or `failed`, with its report as JSON."""
        async with self.transaction() as conn:
            await conn.execute("set local synchronous_commit to on")
            await queries.end_run(conn, id=self.id, state=state, exit_code=exit_code, report=report)


def kind_of(fact: AnyFact) -> str:
    """The kind under which the tables keep a fact."""
    return str(type(fact).__struct_config__.tag)


@asynccontextmanager
async def open_run(
    dsn: str,
    realm: str,
    *,
    kind: str,
    asked: str,
    dry_run: bool,
    plan: Callable[[], Awaitable[ScanPlan]],
    key: str = "",
) -> AsyncIterator[Run]:
    """Take the lock, then take up the unfinished run of the same question, or begin a new one with what `plan` says.

    `key` is a hash of the API key: only a run of the same one is taken up. Raises AnotherRun, DatabaseUnavailable. Leaving the block frees the lock, whatever the run came to.
    """
    lock = lock_number(f"{realm} nightly run")
    conn = await _connect(dsn)
    try:
        yield await _locked(conn, lock, realm, plan, kind=kind, asked=asked, dry_run=dry_run, key=key)
    finally:
        with contextlib.suppress(*UNAVAILABLE, asyncpg.PostgresError):
            await queries.free_run_lock(conn, lock=lock)
            await conn.close(timeout=CLOSE_TIMEOUT_S)
        conn.terminate()


async def _locked(
    conn: Connection,
    lock: int,
    realm: str,
    plan: Callable[[], Awaitable[ScanPlan]],
    *,
    kind: str,
    asked: str,
    dry_run: bool,
    key: str,
) -> Run:
    try:
        if not await queries.try_run_lock(conn, lock=lock):
            raise await _another(conn, realm)
        resumed = await _resumed(conn, realm, kind, asked, dry_run, key)
        return resumed or await _begun(conn, realm, kind, asked, dry_run, key, await plan())
    except UNAVAILABLE as error:
        raise DatabaseUnavailable(f"no run could begin ({type(error).__name__})") from error


async def certificate(conn: Connection, run_id: str) -> list[ListRead]:
    """How much of each list a run has read, in the order of the plan."""
    rows = {row["list"]: dict(row) for row in await conn.fetch(queries.certificate.sql, run_id)}
    order = [*(name for name in LISTS if name in rows), *sorted(rows.keys() - LISTS.keys())]
    return [msgspec.convert(rows[name], ListRead) for name in order]


async def unread_of(conn: Connection, run_id: str, limit: int) -> list[Unread]:
    """At most `limit` of the things that a run could not read."""
    return [Unread(*row) for row in await conn.fetch(queries.unread_of.sql, run_id, limit)]


async def _connect(dsn: str) -> asyncpg.Connection[asyncpg.Record]:
    settings = session_settings("nightly", statement_timeout_s=STATEMENT_TIMEOUT_S, lock_timeout_s=LOCK_TIMEOUT_S)
    try:
        return await asyncpg.connect(
            dsn,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=STATEMENT_TIMEOUT_S + 2,
            server_settings=settings | SESSION,
        )
    except UNAVAILABLE as error:
        raise DatabaseUnavailable(f"Postgres cannot be reached ({type(error).__name__})") from error


async def _another(conn: Connection, realm: str) -> AnotherRun:
    row = await queries.running_run(conn, realm=realm)
    if row is None:
        return AnotherRun(f"Another run over {realm} has just begun.")
    return AnotherRun(
        f"Another run over {realm} is under way: {row['id']}, since {row['started_at']:%Y-%m-%d %H:%M:%S} UTC."
    )


async def _resumed(conn: Connection, realm: str, kind: str, asked: str, dry_run: bool, key: str) -> Run | None:
    async with conn.transaction():
        row = await queries.resume_run(conn, realm=realm, kind=kind, asked=asked, dry_run=dry_run, key=key)
        await queries.abandon_runs(conn, realm=realm, but=row["id"] if row else None)
    if row is None:
        return None
    plan = msgspec.json.decode(row["plan"], type=ScanPlan)
    return Run(conn, row["id"], realm, plan, asked=asked, dry_run=dry_run, resumed=True)


async def _begun(conn: Connection, realm: str, kind: str, asked: str, dry_run: bool, key: str, plan: ScanPlan) -> Run:
    """A new run. What earlier ones read of Stripe has served its purpose; their certificates and findings stay."""
    id_ = f"run_{secrets.token_hex(12)}"
    for forget in (queries.forget_scanned, queries.forget_unheard, queries.forget_balance_moves, queries.forget_found):
        await forget(conn, realm=realm)
    async with conn.transaction():
        encoded = msgspec.json.encode(plan)
        await queries.begin_run(
            conn, id=id_, realm=realm, kind=kind, dry_run=dry_run, asked=asked, key=key, plan=encoded
        )
        cuts: Sequence[tuple[str, int, int]] = [
            (name, window.lo, window.hi) for name, windows in plan.lists.items() for window in initial_slices(windows)
        ]
        if cuts:
            await conn.execute(queries.add_slices.sql, id_, *columns(cuts))
    return Run(conn, id_, realm, plan, asked=asked, dry_run=dry_run, resumed=False)
