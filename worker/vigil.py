"""The vigil: one worker at a time looks whether anything that no event brings is wrong, and keeps the alerts as things are."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from functools import partial

import asyncpg
import structlog

from handlers.account import Severity
from worker import audit
from worker.conditions import CONDITIONS, MINUTE, Condition, Here, Holding, Memory
from worker.db import UNAVAILABLE, Connection, Pool, columns, connection, queries, transaction
from worker.reading import fetch, realms_of
from worker.settings import Settings
from worker.settle import lock_number
from worker.signals import KINDS_OF_SIGNALS, Clocks, Signatures, ask_stripe, of_signals
from worker.stripe_gateway import StripeGateway

NO_WORKER = (
    "No worker has been alive for two minutes: events are stored, and nothing is judged, refunded or told. "
    "Start one with `finalsale worker`; `finalsale status` shows who is at work."
)
NO_WORKER_CAUSE = "worker_silent:workers"

SLOW = (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError)
"""One statement took too long, or waited for somebody: that says nothing of the others."""
BRIEFLY = "set local lock_timeout = '250ms'; set local statement_timeout = '1s'"

log = structlog.get_logger()


class WebVigil:
    """What a web process sees: the signatures of its deliveries, its clock, and that no worker is there to hold the vigil."""

    def __init__(self, realm: str, signatures: Signatures) -> None:
        self._realm, self._signatures = realm, signatures
        self._clocks = Clocks(f"web on {socket.gethostname()}")
        self._next = time.monotonic() + 2 * MINUTE  # whoever starts web before a worker is not told of it

    async def look(self, conn: Connection) -> None:
        """Once a minute, however often it is called. A web process that may not write this takes events in all the same.

        Whoever holds a row that it writes keeps it for a moment only: the connection is that of the readiness.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + MINUTE
        try:
            for step in (self._signatures.keep, self._clocks.look, self._no_worker):
                async with conn.transaction():
                    await conn.execute(BRIEFLY)
                    await step(conn)
        except (asyncpg.InsufficientPrivilegeError, *SLOW) as error:
            log.warning("vigil.untold", error=type(error).__name__)

    async def _no_worker(self, conn: Connection) -> None:
        await queries.raise_no_worker(conn, realm=self._realm, cause=NO_WORKER_CAUSE, sentence=NO_WORKER)


class Vigil:
    """The looks of one process. Several may hold the vigil beside each other: whoever comes second in a round leaves it."""

    def __init__(self, pool: Pool, settings: Settings, gateway: StripeGateway) -> None:
        self.pool, self.settings, self.gateway = pool, settings, gateway
        rehearsal = settings.test_clocks and settings.mode == "test"  # its Stripe lives in a time of its own
        self._clocks = Clocks(socket.gethostname(), None if rehearsal else gateway)
        self._memory = Memory()
        self._next: dict[Condition, float] = {}
        seen = partial(of_signals, tolerance_s=settings.signature_tolerance_s)
        self._conditions = (*CONDITIONS, Condition(KINDS_OF_SIGNALS, 0, seen), CHAIN)

    async def look(self) -> int:
        """One round: clocks, and everything that is due. How many alerts changed; 0 where another looks.

        Raises DatabaseUnavailable.
        """
        async with connection(self.pool) as conn:
            await self._clocks.look(conn)
        async with transaction(self.pool) as conn:
            held = not await conn.fetchval("select pg_try_advisory_xact_lock($1)", lock_number("vigil"))
            return 0 if held else await self._round(conn)

    async def ask(self) -> None:
        """What only Stripe knows, for the next round: beside it, for Stripe may be slow. Raises DatabaseUnavailable."""
        await ask_stripe(self.pool, self.gateway, self.settings)

    async def _round(self, conn: Connection) -> int:
        own = self.settings.realm(None)
        realms = [own, *(realm for realm in await realms_of(conn, self.settings.mode) if realm != own)]
        here = Here(conn, realms, self._memory)
        holding: list[Holding] = []
        looked_at: set[str] = set()
        for condition in self._conditions:
            if self._is_due(condition) and (found := await _found(condition, here)) is not None:
                holding += found
                looked_at |= condition.kinds
        closed = await fetch(conn, queries.close_seen_to, realms=realms)
        return len(closed) + await settle_alerts(conn, realms, holding, sorted(looked_at))

    def _is_due(self, condition: Condition) -> bool:
        now = time.monotonic()
        if now < self._next.get(condition, 0.0):
            return False
        self._next[condition] = now + condition.every_s
        return True


async def _found(condition: Condition, here: Here) -> list[Holding] | None:
    """What holds; None where looking failed, which leaves the alerts of these kinds as they are and stops no other look."""
    try:
        async with here.conn.transaction():
            return await condition.find(here)
    except Exception as error:
        if isinstance(error, UNAVAILABLE) and not isinstance(error, SLOW):
            raise
        log.error("vigil.failed", kinds=sorted(condition.kinds), error=type(error).__name__, exc_info=error)
        return None


async def _chain_in_trouble(here: Here) -> list[Holding]:
    found = []
    if late := here.memory.chain.late(await audit.head(here.conn), time.monotonic()):
        late += " Nothing is lost; `finalsale status` shows who is at work."
        found.append(Holding(here.realms[0], "audit_late:chain", "audit_late", Severity.WARNING, "", "chain", late))
    if why := await audit.broken(here.conn):
        why += " `finalsale audit verify` says where; keep a copy of the database before anything else is changed."
        found.append(Holding(here.realms[0], "audit_broken:chain", "audit_broken", Severity.CRITICAL, "", "chain", why))
    return found


CHAIN = Condition(frozenset({"audit_broken", "audit_late"}), 3 * MINUTE, _chain_in_trouble)


async def settle_alerts(
    conn: Connection, realms: Sequence[str], holding: Sequence[Holding], looked_at: Sequence[str]
) -> int:
    """Make the open alerts of these kinds and realms those that hold, and no others. Idempotent. How many changed."""
    told = columns(holding) if holding else [[] for _ in Holding._fields]
    changes = await conn.fetch(queries.settle_vigil_alerts.sql, *told, list(realms), list(looked_at))
    for row in changes:
        if row["change"] != "changed":
            say = log.info if row["change"] == "resolved" or row["severity"] == Severity.NOTE else log.warning
            say(f"alert.{row['change']}", kind=row["kind"], severity=row["severity"], subject=row["subject"])
    return len(changes)
