"""The worker as a process: without Redis, with a dead or frozen one, through a restart of Postgres, in company, and when told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from sandbox.webhooks import snapshot_body
from tests.conftest import eventually
from tests.worker.merchant import Merchant, merchant, store
from tests.worker.test_failpoints import at_rest, start_worker, stop_worker
from worker.db import Pool, connect_pool
from worker.db.migrations import migrate
from worker.embedded import EmbeddedServers, embedded_servers
from worker.jobs import WorkerProcess
from worker.ring import Bell
from worker.settings import Settings


@pytest.fixture
async def own_valkey(tmp_path: Path) -> AsyncIterator[EmbeddedServers]:
    """A Valkey of this test's own, to be hurt."""
    async with embedded_servers(tmp_path / "own", postgres=False) as servers:
        yield servers


@asynccontextmanager
async def working(settings: Settings) -> AsyncIterator[WorkerProcess]:
    """A worker in this process, ready; it must end well."""
    process, ready = WorkerProcess(settings), asyncio.Event()
    task = asyncio.create_task(process.run(ready.set))
    await asyncio.wait((task, asyncio.create_task(ready.wait())), return_when=asyncio.FIRST_COMPLETED, timeout=10)
    try:
        yield process
    finally:
        process.stop()
        async with asyncio.timeout(25):
            await task


async def one_more(m: Merchant, within_s: float = 10) -> None:
    """A new duplicate goes all the way to its one refund."""
    before = len(m.refunds)
    _, second = m.double_click(f"u{before}")
    await store(m.pool, *(snapshot_body(event) for event in m.news()))
    await at_rest(m, within_s)
    assert [(r["amount"], r["charge"]) for r in m.refunds[before:]] == [(2900, m.charge_of(second)["id"])]


async def test_on_the_previous_schema_a_worker_works_and_keeps_its_policy_when_it_can(
    settings: Settings, pool: Pool
) -> None:
    await pool.execute("alter table policy_versions rename to not_yet")
    async with merchant(settings, pool) as m, working(m.settings) as process:
        await one_more(m)
        await pool.execute("alter table not_yet rename to policy_versions")
        await process._policy_once()
        assert await pool.fetchval("select count(*) from policy_versions") == 1


async def test_without_redis_the_worker_looks_by_itself(settings: Settings, pool: Pool) -> None:
    async with merchant(settings, pool) as m, working(m.settings.model_copy(update={"redis_url": None})) as process:
        await one_more(m)
        assert not process.rung


async def test_a_ring_wakes_the_worker_at_once(settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.jobs.SWEEP_RUNG_S", 30.0)
    async with merchant(settings, pool) as m, working(m.settings) as process:
        await eventually(lambda: process.rung)
        await asyncio.sleep(0.5)
        m.double_click()
        await store(m.pool, *(snapshot_body(event) for event in m.news()))
        bell = Bell(m.settings.redis_dsn())
        await at_rest(m, 5)
        await bell.close()


async def test_a_redis_that_is_emptied_killed_or_frozen_costs_nothing_but_time(
    settings: Settings, pool: Pool, own_valkey: EmbeddedServers
) -> None:
    redis = settings.with_servers(settings.database_dsn(), own_valkey.redis_url)
    async with merchant(redis, pool) as m, working(m.settings) as process:
        await eventually(lambda: process.rung)
        client = Redis.from_url(own_valkey.redis_url)
        await client.flushall()
        await client.aclose()
        await one_more(m)
        await asyncio.to_thread(own_valkey.stop_valkey, signal.SIGKILL)
        await one_more(m)
        await eventually(lambda: not process.rung, 5)
        await asyncio.to_thread(own_valkey.start_valkey)
        await eventually(lambda: process.rung, 8)
        assert own_valkey.valkey_pid is not None
        os.kill(own_valkey.valkey_pid, signal.SIGSTOP)
        try:
            await one_more(m)
            await eventually(lambda: not process.rung, 8)
            await one_more(m)
        finally:
            os.kill(own_valkey.valkey_pid, signal.SIGCONT)
        await eventually(lambda: process.rung, 12)
        await one_more(m)


async def test_a_frozen_redis_does_not_keep_the_worker_from_stopping(
    settings: Settings, pool: Pool, own_valkey: EmbeddedServers
) -> None:
    redis = settings.with_servers(settings.database_dsn(), own_valkey.redis_url)
    assert own_valkey.valkey_pid is not None
    async with merchant(redis, pool) as m, working(m.settings) as process:
        await eventually(lambda: process.rung)
        os.kill(own_valkey.valkey_pid, signal.SIGSTOP)
        began = asyncio.get_running_loop().time()
    os.kill(own_valkey.valkey_pid, signal.SIGCONT)
    assert asyncio.get_running_loop().time() - began < 8


async def test_postgres_restarted_under_the_worker_is_taken_up_again(tmp_path: Path, settings: Settings) -> None:
    async with embedded_servers(tmp_path / "own", valkey=False) as servers:
        await migrate(servers.database_url)
        pool = await connect_pool(servers.database_url, role="test", min_size=0)
        async with merchant(settings.with_servers(servers.database_url, None), pool) as m, working(m.settings):
            await one_more(m)
            m.double_click("during")
            await store(m.pool, *(snapshot_body(event) for event in m.news()))
            await asyncio.to_thread(servers.stop_postgres, signal.SIGQUIT)
            await asyncio.sleep(1)
            await asyncio.to_thread(servers.start_postgres)
            await pool.expire_connections()
            for _ in range(8):  # connections of before the restart, which the pool finds dead only when it uses them
                try:
                    await at_rest(m)
                    break
                except Exception:
                    await asyncio.sleep(0.1)
            assert len(m.refunds) == 2
            await one_more(m)
        pool.terminate()


async def test_workers_in_company_refund_everything_once(settings: Settings, pool: Pool) -> None:
    """Three real processes; some of the duplicates are one person under two customers."""
    async with merchant(settings, pool) as m:
        workers = [await start_worker(m) for _ in range(3)]
        laters = []
        for number in range(8):
            if number % 2:
                second = m.double_click(f"u{number}")[1]
            else:
                m.buy(m.customer(), f"u{number}")
                second = m.buy(m.customer(), f"u{number}")
            laters.append(m.charge_of(second)["id"])
            for event in m.news():
                await store(pool, snapshot_body(event))
        await asyncio.sleep(1)
        await at_rest(m)
        await asyncio.gather(*(stop_worker(worker) for worker in workers))
        assert sorted((r["amount"], r["charge"]) for r in m.books.all("refund")) == sorted(
            (2900, id_) for id_ in laters
        )
        assert set((await m.actions()).values()) == {"sent"}


async def test_sigterm_under_load_ends_in_time_and_nothing_happens_twice(settings: Settings, pool: Pool) -> None:
    async with merchant(settings, pool) as m:
        laters = [m.charge_of(m.double_click(f"u{number}")[1])["id"] for number in range(10)]
        m.fault({"kind": "latency", "path": "/v1/refunds", "method": "POST", "hold_s": 0.5})
        await store(pool, *(snapshot_body(event) for event in m.news()))
        first = await start_worker(m)
        async with asyncio.timeout(15):
            while not m.refunds:
                await asyncio.sleep(0.02)
        assert await stop_worker(first) < 20
        assert await pool.fetchval("select count(*) from workers") == 0
        assert len(m.refunds) < len(laters), "it was over before it was told to stop"
        m.fault()
        second = await start_worker(m)
        await at_rest(m)
        await stop_worker(second)
        assert sorted(r["charge"] for r in m.books.all("refund")) == sorted(laters)


async def test_a_worker_after_a_death_begins_carefully(settings: Settings, pool: Pool) -> None:
    """An event that kills whoever touches it is counted from the second worker on, so it cannot kill for ever."""
    async with merchant(settings, pool) as m:
        m.buy(m.customer())
        await store(pool, *(snapshot_body(event) for event in m.news()))
        for _ in range(3):
            dying = await start_worker(m, "after_claim:exit")
            assert await asyncio.wait_for(dying.wait(), 15) == 70
        assert await pool.fetchval("select max(attempts) from inbox") == 2
        last = await start_worker(m)
        async with asyncio.timeout(10):
            while await pool.fetchval("select count(*) from inbox where state <> 'done'"):
                await asyncio.sleep(0.05)
        await stop_worker(last)
