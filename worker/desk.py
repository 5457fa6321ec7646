"""How a command meets the books: one connection, one transaction, the realms it may see, the embedded database included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from worker import reading
from worker.db import Connection, connect_pool, connection, transaction
from worker.db.migrations import current_revision, is_pending
from worker.errors import Permanent
from worker.log import configure
from worker.settings import Settings, read_settings

STATEMENT_TIMEOUT_S = 60.0
LOCK_TIMEOUT_S = 10.0


class Desk(NamedTuple):
    """A connection to the books, and which of them this deployment sees."""

    conn: Connection
    settings: Settings
    realms: list[str]


class NoDatabase(Permanent):
    """There are no books to open; the message says what to set."""

    error_code = "no_database"


@asynccontextmanager
async def with_database(settings: Settings) -> AsyncIterator[Settings]:
    """The settings with a database in them: DATABASE_URL's, or the embedded one that `finalsale run` made in this directory."""
    if settings.database_url is not None:
        yield settings
        return
    if not (settings.state_dir / "postgres" / "PG_VERSION").exists():
        raise NoDatabase(
            "DATABASE_URL is not set, and no embedded database is here: set it to a PostgreSQL URL, or start `finalsale run`."
        )
    from worker.embedded import embedded_servers

    async with embedded_servers(settings.state_dir, valkey=False) as servers:
        yield settings.with_servers(servers.database_url, settings.redis_dsn())


@asynccontextmanager
async def open_desk(settings: Settings, *, change: bool) -> AsyncIterator[Desk]:
    """One transaction on the books: a snapshot that changes nothing, or acts that are committed together."""
    async with with_database(settings) as served:
        pool = await connect_pool(
            served.database_dsn(),
            role="cli",
            max_size=1,
            statement_timeout_s=STATEMENT_TIMEOUT_S,
            lock_timeout_s=LOCK_TIMEOUT_S,
        )
        try:
            async with connection(pool) as conn:
                if is_pending(await current_revision(conn)):
                    raise NoDatabase("The database does not have this release's tables yet: run `finalsale migrate`.")
            if change:
                async with transaction(pool) as conn:
                    yield Desk(conn, served, await reading.realms_of(conn, served.mode))
            else:
                async with connection(pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
                    yield Desk(conn, served, await reading.realms_of(conn, served.mode))
        finally:
            pool.terminate()


def settings_of_environment() -> Settings:
    settings = read_settings()
    configure(settings.log)
    return settings


def ask(work: Callable[[Desk], Awaitable[Any]], *, change: bool = False) -> Any:
    """Run `work` at a desk of its own and return what it found."""

    async def run() -> Any:
        async with open_desk(settings_of_environment(), change=change) as desk:
            return await work(desk)

    return asyncio.run(run())
