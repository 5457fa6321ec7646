"""Intake while its servers are stopped, frozen or killed: 503 within a second, no wrong 2xx, and recovery by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from tests.conftest import eventually
from tests.stripe_sender import WEBHOOK_SECRET, Sender, event
from worker.db.migrations import migrate
from worker.embedded import EmbeddedServers, embedded_servers
from worker.settings import Settings
from worker.web import Listening, listening


@pytest.fixture
async def own_servers(tmp_path: Path) -> AsyncIterator[EmbeddedServers]:
    """Servers of this test's own, to be hurt."""
    async with embedded_servers(tmp_path / "own") as servers:
        await migrate(servers.database_url)
        yield servers


@pytest.fixture
def own_settings(own_servers: EmbeddedServers) -> Settings:
    database_url, redis_url = own_servers
    return Settings(stripe_webhook_secret=WEBHOOK_SECRET, bind="127.0.0.1", port=0).with_servers(
        database_url, redis_url
    )


@pytest.fixture
async def own_web(own_settings: Settings) -> AsyncIterator[tuple[Listening, Sender]]:
    async with listening(own_settings) as running, aiohttp.ClientSession() as session:
        await eventually(running.watch.ready)
        yield running, Sender(running.port, session)


async def acknowledged(sender: Sender, prefix: str, count: int = 20) -> tuple[set[str], float]:
    """Deliver some events at once: the ids that were answered 200, and the longest wait. Everything else must be a 503 to retry."""

    async def one(event_id: str) -> tuple[str | None, float]:
        began = time.monotonic()
        status, _, headers = await sender.deliver(event(event_id))
        assert status == 200 or (status == 503 and headers["Retry-After"] == "1")
        return event_id if status == 200 else None, time.monotonic() - began

    answers = await asyncio.gather(*(one(f"{prefix}{number}") for number in range(count)))
    return {event_id for event_id, _ in answers if event_id}, max(waited for _, waited in answers)


async def stored_ids(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    ids = {row["event_id"] for row in await connection.fetch("select event_id from inbox")}
    await connection.close()
    return ids


async def test_postgres_killed_means_503_within_a_second_and_recovery_by_itself(
    own_servers: EmbeddedServers, own_web: tuple[Listening, Sender]
) -> None:
    web, sender = own_web
    before, _ = await acknowledged(sender, "before")
    assert len(before) == 20
    await asyncio.to_thread(own_servers.stop_postgres, signal.SIGKILL)
    during, waited = await acknowledged(sender, "during")
    assert during == set()
    assert waited < 1.1
    await eventually(lambda: not web.watch.postgres_there())
    assert (await sender.get("/readyz"))[0] == 503
    assert (await sender.get("/healthz"))[0] == 200
    await asyncio.to_thread(own_servers.start_postgres)
    after, _ = await acknowledged(sender, "after")
    assert len(after) == 20
    await eventually(web.watch.ready, 3)
    assert await stored_ids(own_servers.database_url) >= before | after


async def test_postgres_frozen_means_503_within_a_second_and_recovery_by_itself(
    own_servers: EmbeddedServers, own_web: tuple[Listening, Sender]
) -> None:
    web, sender = own_web
    assert len((await acknowledged(sender, "before"))[0]) == 20
    frozen = [process for process in _family(own_servers.postgres_pid) if process]
    for process in frozen:
        os.kill(process, signal.SIGSTOP)
    try:
        for attempt in range(3):
            during, waited = await acknowledged(sender, f"during{attempt}_")
            assert during == set()
            assert waited < 1.2
        await eventually(lambda: not web.watch.postgres_there(), 10)
    finally:
        for process in frozen:
            os.kill(process, signal.SIGCONT)
    await eventually(web.watch.postgres_there, 10)
    after, _ = await acknowledged(sender, "after")
    assert len(after) == 20
    assert await stored_ids(own_servers.database_url) >= after


def _family(pid: int | None) -> list[int]:
    assert pid is not None
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(int(child) for child in children)]


async def test_the_backend_killed_under_load_costs_no_acknowledged_event(
    own_servers: EmbeddedServers, own_web: tuple[Listening, Sender]
) -> None:
    _, sender = own_web
    said_yes: set[str] = set()
    killer = await asyncpg.connect(own_servers.database_url)
    for attempt in range(15):
        answers, _ = await asyncio.gather(
            acknowledged(sender, f"evt{attempt}_", 40),
            killer.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'finalsale intake'"
            ),
        )
        said_yes |= answers[0]
    await killer.close()
    assert len(said_yes) > 300
    assert said_yes <= await stored_ids(own_servers.database_url)


async def test_the_web_process_starts_while_postgres_is_down(
    own_servers: EmbeddedServers, own_settings: Settings
) -> None:
    await asyncio.to_thread(own_servers.stop_postgres)
    async with listening(own_settings) as running, aiohttp.ClientSession() as session:
        sender = Sender(running.port, session)
        assert (await acknowledged(sender, "early"))[0] == set()
        assert (await sender.get("/readyz"))[0] == 503
        await asyncio.to_thread(own_servers.start_postgres)
        await eventually(running.watch.ready, 5)
        assert len((await acknowledged(sender, "late"))[0]) == 20


async def test_a_database_that_is_not_migrated_is_503_and_not_ready(
    own_servers: EmbeddedServers, own_settings: Settings
) -> None:
    connection = await asyncpg.connect(own_servers.database_url)
    await connection.execute("alter table inbox rename to elsewhere; drop table alembic_version")
    async with listening(own_settings) as running, aiohttp.ClientSession() as session:
        sender = Sender(running.port, session)
        await eventually(running.watch.postgres_there)
        status, told = await sender.get("/readyz")
        assert (status, told["migrations"]) == (503, "pending")
        assert (await acknowledged(sender, "early"))[0] == set()
    await connection.close()


async def test_redis_frozen_or_gone_changes_nothing_for_the_sender(
    own_servers: EmbeddedServers, own_web: tuple[Listening, Sender]
) -> None:
    web, sender = own_web
    assert own_servers.valkey_pid is not None
    os.kill(own_servers.valkey_pid, signal.SIGSTOP)
    try:
        frozen, waited = await acknowledged(sender, "frozen", 100)
        assert (len(frozen), waited < 0.8) == (100, True)
        await eventually(lambda: web.bell.rings["failed"] > 0)
        assert len((await acknowledged(sender, "still", 100))[0]) == 100
        assert (await sender.get("/readyz"))[0] == 200
    finally:
        os.kill(own_servers.valkey_pid, signal.SIGCONT)
    await asyncio.to_thread(own_servers.stop_valkey, signal.SIGKILL)
    assert len((await acknowledged(sender, "gone", 100))[0]) == 100
    failed = web.bell.rings["failed"]
    await eventually(lambda: web.bell.rings["failed"] > failed)
    await asyncio.to_thread(own_servers.start_valkey)
    sent = web.bell.rings["sent"]
    await eventually(lambda: web.bell.rings["sent"] > sent)


async def test_sigterm_under_load_finishes_what_is_under_way_and_exits_0(own_servers: EmbeddedServers) -> None:
    environment = os.environ | {
        "DATABASE_URL": own_servers.database_url,
        "REDIS_URL": own_servers.redis_url,
        "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "FINALSALE_BIND": "127.0.0.1",
    }
    program = "import uvloop; from worker import log, settings, web; log.configure('json'); uvloop.run(web.serve(settings.read_settings(), port=0))"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    started = json.loads(await process.stderr.readline())
    assert started["event"] == "web.started"
    said_yes: set[str] = set()

    async def deliver_until_closed(lane: int, sender: Sender) -> None:
        for number in range(100_000):
            try:
                status, _, _ = await sender.deliver(event(f"evt_{lane}_{number}"))
            except aiohttp.ClientError:
                return
            assert status == 200
            said_yes.add(f"evt_{lane}_{number}")

    async with aiohttp.ClientSession() as session:
        sender = Sender(started["port"], session)
        lanes = [asyncio.create_task(deliver_until_closed(lane, sender)) for lane in range(20)]
        await asyncio.sleep(0.7)
        process.terminate()
        await asyncio.wait_for(asyncio.gather(*lanes), 20)
    lines = [json.loads(line) for line in (await process.stderr.read()).splitlines()]
    assert await asyncio.wait_for(process.wait(), 20) == 0
    assert lines[-1]["event"] == "web.stopped"
    assert len(said_yes) > 100
    assert said_yes <= await stored_ids(own_servers.database_url)
