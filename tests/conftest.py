"""What all tests share: one embedded PostgreSQL and Valkey for the session, a fresh migrated database for each test."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator

import aiohttp
import asyncpg
import pytest
import structlog
from redis.asyncio import Redis

from tests.stripe_sender import WEBHOOK_SECRET, Sender
from worker.db import Pool, connect_pool
from worker.db.migrations import migrate
from worker.embedded import EmbeddedServers
from worker.settings import Settings
from worker.web import Listening, listening


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    """The session's servers; their database `finalsale` is migrated and serves as the template of every test's own."""
    running = EmbeddedServers(tmp_path_factory.mktemp("servers"))
    try:
        running.start()
        asyncio.run(migrate(running.database_url))
        asyncio.run(_fsync(running.database_url, "off"))
        yield running
    finally:
        running.stop()


async def _fsync(url: str, state: str) -> None:
    """What is killed here are processes, never the machine: what they wrote is the system's already. Half the suite's time."""
    connection = await asyncpg.connect(url)
    await connection.execute(f"alter system set fsync = {state}")
    await connection.execute("select pg_reload_conf()")
    while await connection.fetchval("show fsync") != state:
        await asyncio.sleep(0.01)
    await connection.close()


@pytest.fixture
async def durable(servers: EmbeddedServers) -> AsyncIterator[None]:
    """Postgres as it is deployed, for tests that look at its settings."""
    await _fsync(servers.database_url, "on")
    yield
    await _fsync(servers.database_url, "off")


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A test that configures our logs, as commands do, leaves none of it (nor its captured standard error) to the next one."""
    yield
    structlog.reset_defaults()


async def eventually(holds: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait until `holds` does; TimeoutError if it never does."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.01)


def database_named(servers: EmbeddedServers, name: str) -> str:
    return servers.database_url.replace("/finalsale?", f"/{name}?")


@pytest.fixture
async def database_url(servers: EmbeddedServers) -> AsyncIterator[str]:
    """A database of this test's own, migrated and empty."""
    name = f"test_{secrets.token_hex(6)}"
    maintenance = database_named(servers, "postgres")
    connection = await asyncpg.connect(maintenance)
    await connection.execute(f"create database {name} template finalsale strategy wal_log")
    await connection.close()
    yield database_named(servers, name)
    connection = await asyncpg.connect(maintenance)
    await connection.execute(f"drop database if exists {name} with (force)")
    await connection.close()


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    """A pool on this test's database."""
    connected = await connect_pool(database_url, role="test", min_size=1, max_size=8)
    yield connected
    connected.terminate()


@pytest.fixture
async def redis_url(servers: EmbeddedServers) -> str:
    """The session's Valkey, emptied."""
    client = Redis.from_url(servers.redis_url)
    await client.flushall()
    await client.aclose()
    return servers.redis_url


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Settings:
    """Settings of a test-mode deployment on this test's servers, on a free port of the loopback."""
    return Settings(
        stripe_api_key="sk_test_canary0000000000",
        stripe_webhook_secret=WEBHOOK_SECRET,
        bind="127.0.0.1",
        port=0,
        log="json",
    ).with_servers(database_url, redis_url)


@pytest.fixture
async def web(settings: Settings) -> AsyncIterator[Listening]:
    """The real web process's inside, on a free port, ready."""
    async with listening(settings) as running:
        await eventually(running.watch.ready)
        yield running


@pytest.fixture
async def sender(web: Listening) -> AsyncIterator[Sender]:
    """Stripe, as `web` sees it."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Sender(web.port, session)
