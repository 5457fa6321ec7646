"""The worker process: drains when the bell rings, looks by itself when it does not, performs what is due, stops in time.

    bell (arq, while Redis is there) ──┐
    sweep (a timer, always)  ──────────┴──▶ drain ──▶ perform ──▶ look-ups, wake-ups, orphans

Only this file knows arq. Its job carries no truth: losing any or all of them costs latency until the next sweep.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import asyncpg
import msgspec
import structlog
from arq.worker import Worker, func

from handlers.customer import AnyFact, decode_known
from handlers.terms import SHIPPED_POLICY, Policy, PolicyInvalid, load_policy
from worker import audit, errors, tracing
from worker.alert_routes import Route
from worker.alerts import AlertSender
from worker.audit_pace import Place
from worker.cases import alert_cases
from worker.db import Pool, connect_pool, connection, queries, transaction
from worker.db.migrations import KNOWN_REVISIONS
from worker.drain import drain, is_about_these
from worker.errors import DatabaseUnavailable
from worker.healing import heal_due
from worker.judging import Court
from worker.metrics import FLUSH_S, flush
from worker.nightly import run_if_due
from worker.notices import NoticeSender
from worker.perform import Performer
from worker.privacy import prune
from worker.ring import FUNCTION, QUEUE, connect_redis
from worker.settings import Settings
from worker.settle import settle
from worker.stripe_gateway import StripeGateway
from worker.vigil import Vigil

DRAINS = 2
"""Drain loops of one process: while one waits for Postgres, the other one judges."""
SWEEP_RUNG_S = 2.0
SWEEP_SILENT_S = 0.5
"""How often the worker looks by itself: while the bell works, and while it does not."""
PERFORM_S = 0.5
BEAT_S = 10.0
NOTICES_S = 1.0
CASES_S = 60.0
VIGIL_S = 12.0
POLICY_S = 60.0
ALERTS_S = 1.0
RETENTION_S = 600.0
AUDIT_S = 1.0
AUDIT_LOOK_S = 60.0
"""How often a worker asks whether the chain was verified within the last day."""
NIGHTLY_LOOK_S = 60.0
"""How often a worker asks whether the newest nightly run is done."""
STOP_WITHIN_S = 20.0
"""Well inside Fly's kill_timeout of 30 s."""
RETRY_S = 1.0
ARQ_POLL_S = 0.05
CAREFUL_FIRST = 200
WAKES_AT_ONCE = 100

log = structlog.get_logger()


def read_policy(settings: Settings) -> Policy:
    """The policy file in use. Raises PolicyInvalid (ours, permanent) with the file, the line and the reason."""
    try:
        return load_policy(settings.policy or SHIPPED_POLICY)
    except PolicyInvalid as invalid:
        raise errors.PolicyInvalid(str(invalid)) from None


def court_of(settings: Settings) -> Court:
    """The rules this process judges by. Test clocks count only in test mode."""
    rehearsal = settings.test_clocks and settings.mode == "test"
    return Court(policy=read_policy(settings), refunds=settings.refunds, test_clocks=rehearsal)


class WorkerProcess:
    """One worker: several may run beside each other, on one machine or many."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.court = court_of(settings)
        self.id = uuid.uuid4()
        self._place = Place()
        self.bell, self.work, self.stopping = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.rung = False
        self._policy_kept = False
        self.gateway = StripeGateway(settings)
        self.performer: Performer | None = None
        self.settled = 0

    def use(self, pool: Pool) -> None:
        """Work on these books."""
        self.pool = pool
        self.performer = Performer(pool, self.court, self.gateway, self.settings.mode)

    async def serve_once(self) -> int:
        """A worker's work, once, but for sending: for a process that needs it done where no worker runs. How much it did."""
        assert self.performer is not None
        done = await drain(self.pool, self.court) + await heal_due(self.pool, self.court)
        await self._sweep_once()
        return done + await self.performer.look_up_due()

    async def run(self, on_ready: Callable[[], None] | None = None) -> None:
        """Work until `stop`. Raises DatabaseUnavailable only where Postgres cannot be reached at the start."""
        pool = await connect_pool(
            self.settings.database_dsn(),
            role="worker",
            min_size=2,
            max_size=24,  # as many as there are loops: one that waits for a lock keeps no other from its turn
            statement_timeout_s=20,
            lock_timeout_s=15,
        )
        self.use(pool)
        self.notices = NoticeSender(self.pool, self.settings)
        self.vigil = Vigil(self.pool, self.settings, self.gateway)
        self.alerts = AlertSender(self.pool, self.settings)
        log.info(
            "worker.started",
            mode=self.settings.mode,
            refunds=self.settings.refunds,
            policy=self.court.policy.version[-1].id,
        )
        await self._policy_once()
        await self._carefully_first()
        await self._beat_once()
        loops = [
            *(self._loop(f"drain {n}", self._drain_once, self.bell) for n in range(DRAINS)),
            self._loop("perform", self._perform_once, self.work),
            self._loop("sweep", self._sweep_once, None),
            self._loop("beat", self._beat_once, None, BEAT_S),
            self._loop("nightly", self._nightly_once, None, NIGHTLY_LOOK_S),
            self._loop("notices", self._notices_once, None, NOTICES_S),
            self._loop("cases", self._cases_once, None, CASES_S),
            self._loop("audit", self._chain_once, None, AUDIT_S),
            self._loop("audit check", self._verify_once, None, AUDIT_LOOK_S),
            self._loop("vigil", self.vigil.look, None, VIGIL_S),
            self._loop("vigil at Stripe", partial(self._unless_stopping, self.vigil.ask), None, VIGIL_S),
            self._loop("policy", self._policy_once, None, POLICY_S),
            self._loop("alert routes", partial(self._unless_stopping, self.alerts.check), None, VIGIL_S),
            self._loop("alerts", self.alerts.plan, None, ALERTS_S),
            *(self._loop(f"alerts {r.name}", partial(self._alerts_once, r), None, ALERTS_S) for r in self.alerts.set),
            self._loop("metrics", self._flush_once, None, FLUSH_S),
            self._loop("retention", self._prune_once, None, RETENTION_S),
            self._listen(),
        ]
        tasks = [asyncio.create_task(loop) for loop in loops]
        if on_ready is not None:
            on_ready()
        try:
            await self.stopping.wait()
            log.info("worker.stopping")
            _, late = await asyncio.wait(tasks, timeout=STOP_WITHIN_S)
            for task in late:
                task.cancel()  # rolled back or in doubt, and taken up by the next worker
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            with suppress(DatabaseUnavailable, asyncpg.PostgresError, OSError, TimeoutError):
                async with asyncio.timeout(2), connection(self.pool) as conn:
                    await queries.bury(conn, id=self.id)
                    await flush(conn)
            self.pool.terminate()
            await self.gateway.aclose()
            await self.notices.aclose()
            log.info("worker.stopped", settled=self.settled)

    def stop(self) -> None:
        """Finish what is under way and end; safe to call from a signal handler."""
        self.stopping.set()
        if self.performer is not None:
            self.performer.stopping = True
            self.notices.stopping = True
        self.bell.set()
        self.work.set()

    async def _loop(
        self, name: str, once: Callable[[], Awaitable[Any]], event: asyncio.Event | None, every_s: float | None = None
    ) -> None:
        """Call `once` for ever: when the event is set, and at least as often as the sweep looks. Failures are said and retried."""
        while not self.stopping.is_set():
            wait_s = every_s or (PERFORM_S if event is self.work else SWEEP_RUNG_S if self.rung else SWEEP_SILENT_S)
            try:
                await once()
            except DatabaseUnavailable as error:
                log.error("postgres.unavailable", loop=name, error=str(error))
                wait_s = RETRY_S
            except Exception as error:
                log.error("worker.failed", loop=name, error=type(error).__name__, exc_info=error)
                wait_s = RETRY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await (event or self.stopping).wait()
            if event is not None:
                event.clear()

    async def _carefully_first(self) -> None:
        """After a worker's death the oldest events are counted before they are touched, the suspects tried alone.

        A worker that ends well takes its row with it; one that an event killed left its row, and nothing else.
        """
        try:
            async with connection(self.pool) as conn:
                died = await conn.fetchval(
                    """select exists (select 1 from workers)
                           or exists (select 1 from inbox where state = 'waiting' and attempts > 0)"""
                )
            if died:
                self.settled += await drain(self.pool, self.court, batch=CAREFUL_FIRST, careful=True, rounds=1)
        except DatabaseUnavailable as error:
            log.error("postgres.unavailable", loop="start", error=str(error))

    async def _drain_once(self) -> None:
        settled = await drain(self.pool, self.court)
        self.settled += settled
        if settled:
            self.work.set()

    async def _perform_once(self) -> None:
        assert self.performer is not None
        while not self.stopping.is_set():
            performed = await self.performer.perform_due()
            if not await self.performer.look_up_due() and not performed:
                return

    async def _sweep_once(self) -> None:
        """What no event brings: what a run found, files whose time has come, objects that now know whose they are."""
        if await heal_due(self.pool, self.court):
            self.work.set()
        await self._wake_due()
        async with connection(self.pool) as conn:
            found = await conn.fetch(queries.found_orphans.sql, 200)
        orphans: dict[str, list[AnyFact]] = defaultdict(list)
        for row in found:
            if (orphan := decode_known(row["body"])) is not None:
                orphans[row["realm"]].append(orphan)
        for realm, facts in sorted(orphans.items()):
            if not await self._sweep(realm, facts):
                for fact in facts:  # one of them cannot be judged: the others shall not wait for it
                    await self._sweep(realm, [fact])

    async def _wake_due(self) -> None:
        """Judge every file whose time has come, many in one transaction; one that cannot be judged holds up no other."""
        while not self.stopping.is_set():
            async with connection(self.pool) as conn:
                due = await conn.fetch(queries.due_wakeups.sql, WAKES_AT_ONCE)
            by_realm: dict[str, list[str]] = defaultdict(list)
            for row in due:
                by_realm[row["realm"]].append(row["customer"])
            for realm, customers in sorted(by_realm.items()):
                if not await self._sweep(realm, wake=customers) and len(customers) > 1:
                    for customer in customers:
                        await self._sweep(realm, wake=[customer])
            if len(due) < WAKES_AT_ONCE:
                return

    async def _sweep(self, realm: str, facts: Sequence[AnyFact] = (), wake: Sequence[str] = ()) -> bool:
        """Settle some of it in a transaction of its own. Whether that went well; if not, a single file is woken again later."""
        try:
            async with transaction(self.pool) as conn:
                settled = await settle(conn, self.court, realm, facts, wake=wake)
        except Exception as error:
            if isinstance(error, DatabaseUnavailable) and not is_about_these(error.__cause__):
                raise
            who = wake[0] if len(wake) == 1 else None
            log.error("sweep.failed", realm=realm, customer=who, error=type(error).__name__, exc_info=error)
            if who:
                async with transaction(self.pool) as conn:
                    await queries.wake_again(conn, realm=realm, customer=who)
            return False
        log.info("sweep.settled", realm=realm, **settled.numbers)
        self.work.set()
        return True

    async def _beat_once(self) -> None:
        async with connection(self.pool) as conn:
            detail = f"{socket.gethostname()} pid {os.getpid()}, {'rung' if self.rung else 'polling'}, refunds {self.settings.refunds}, policy {self.settings.policy or 'shipped'}, schema {KNOWN_REVISIONS[-1]}"
            await queries.beat(conn, id=self.id, role="worker", detail=detail)

    async def _nightly_once(self) -> None:
        """A run that is under way when the process is told to stop is gone on with by the next one, where it was."""
        await self._unless_stopping(lambda: run_if_due(self.pool, self.gateway, self.settings, self.court))

    async def _unless_stopping(self, once: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Let it go at once when the process is told to stop."""
        running = asyncio.create_task(once())
        stop = asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait((running, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            running.cancel()  # nothing where it is done
        with suppress(asyncio.CancelledError):
            await running

    async def _notices_once(self) -> None:
        while not self.stopping.is_set() and await self.notices.send_due():
            pass

    async def _alerts_once(self, route: Route) -> None:
        while not self.stopping.is_set() and await self.alerts.send_due(route):
            pass

    async def _cases_once(self) -> None:
        async with transaction(self.pool) as conn:
            await alert_cases(conn)

    async def _policy_once(self) -> None:
        """Keep the policy in use where nobody can change it. Work does not wait for it: the schema may be the previous one still."""
        if self._policy_kept:
            return
        try:
            await self._keep_policy()
            self._policy_kept = True
        except (DatabaseUnavailable, asyncpg.PostgresError, OSError) as error:
            log.warning("policy.not_kept", error=type(error).__name__, again_s=POLICY_S)

    async def _keep_policy(self) -> None:
        path = self.settings.policy or SHIPPED_POLICY
        body = await asyncio.to_thread(path.read_bytes)
        policy = self.court.policy
        versions = [version.id for version in policy.version]
        async with transaction(self.pool) as conn:
            if await audit.record_policy(conn, body, versions, len(policy.agreement), worker=str(self.id)):
                log.info("policy.new", versions=versions, sha256=hashlib.sha256(body).hexdigest())

    async def _chain_once(self) -> None:
        while not self.stopping.is_set() and await audit.append_pending(self.pool, place=self._place):
            pass

    async def _verify_once(self) -> None:
        await self._unless_stopping(self._verify)

    async def _verify(self) -> None:
        if (found := await audit.check_if_due(self.pool)) is not None:
            say = log.info if found["ok"] else log.error
            say(
                "audit.head",
                ok=found["ok"],
                length=found["length"],
                hash=found["head"],
                problems=found["problem_count"],
            )

    async def _prune_once(self) -> None:
        await prune(self.pool, self.settings.retention_days)

    async def _flush_once(self) -> None:
        async with connection(self.pool) as conn:
            await flush(conn)

    async def _listen(self) -> None:
        """Be rung through arq for as long as Redis is there; come back to it when it returns."""
        url = self.settings.redis_dsn()
        while url and not self.stopping.is_set():
            worker: Worker | None = None
            try:
                async with asyncio.timeout(5):
                    pool = await connect_redis(url)
                worker = _arq_worker(pool, self.bell)
                running = asyncio.create_task(worker.async_run())
                self.rung = True
                log.info("bell.heard")
                self.bell.set()
                stop = asyncio.create_task(self.stopping.wait())
                alive = asyncio.create_task(_while_answering(pool))
                await asyncio.wait((running, stop, alive), return_when=asyncio.FIRST_COMPLETED)
                for task in (running, stop, alive):
                    task.cancel()
                await asyncio.gather(running, stop, alive, return_exceptions=True)
            except Exception as error:  # whatever becomes of the bell, the worker looks by itself
                log.info("bell.unheard", error=type(error).__name__)
            finally:
                if self.rung and not self.stopping.is_set():
                    log.warning("bell.silent", polling_every_s=SWEEP_SILENT_S)
                self.rung = False
                if worker is not None:
                    with suppress(Exception):  # closing what is broken may fail in any way; nothing depends on it
                        async with asyncio.timeout(2):
                            await worker.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S):
                    await self.stopping.wait()


async def _while_answering(pool: Any) -> None:
    """Ends when Redis no longer answers a ping within a second: a frozen Redis raises nothing by itself."""
    while True:
        await asyncio.sleep(2)
        async with asyncio.timeout(1):
            await pool.ping()


def _arq_worker(pool: Any, bell: asyncio.Event) -> Worker:
    async def ring(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> None:
        bell.set()

    return Worker(
        functions=[func(ring, name=FUNCTION, keep_result=0, timeout=20, max_tries=1)],
        redis_pool=pool,
        queue_name=QUEUE,
        handle_signals=False,
        max_jobs=100,
        poll_delay=ARQ_POLL_S,
        keep_result=0,
        allow_abort_jobs=False,
        log_results=False,
        job_serializer=msgspec.json.encode,
        job_deserializer=msgspec.json.decode,
    )


async def work(settings: Settings, on_ready: Callable[[], None] | None = None) -> None:
    """Run one worker until SIGTERM or SIGINT, then end within STOP_WITHIN_S; waits for Postgres at the start.

    Raises SettingsInvalid where refunds are to be sent and no key is set.
    """
    if settings.refunds == "auto" and settings.stripe_api_key is None:
        raise errors.SettingsInvalid(
            "FINALSALE_REFUNDS is auto and STRIPE_API_KEY is not set: set the key, or use review."
        )
    process = WorkerProcess(settings)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, process.stop)
    deadline = time.monotonic() + 60
    tracing.start("worker")
    try:
        while True:
            try:
                return await process.run(on_ready)
            except DatabaseUnavailable as error:
                if process.stopping.is_set() or time.monotonic() > deadline:
                    raise
                log.error("postgres.unavailable", loop="start", error=str(error))
                await asyncio.sleep(RETRY_S)
    finally:
        await tracing.stop()
