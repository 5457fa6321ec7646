"""The schema's history: plain SQL files in `versions`, applied in order by Alembic under one lock, so that machines may start at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg

from worker.db import UNAVAILABLE, Connection
from worker.errors import DatabaseUnavailable

HERE = Path(__file__).parent
VERSIONS = HERE / "versions"

LOCK_KEY = 0x66696E616C73616C  # "finalsal"; only to differ from other programs' advisory locks in a shared database
LOCK_TIMEOUT_S = 300.0  # as long as the slowest migration of another machine may take

# History is a straight line and files are named by revision, so the newest is known without importing Alembic.
KNOWN_REVISIONS = tuple(sorted(path.stem.partition("_")[0] for path in VERSIONS.glob("[0-9]*.py")))


async def migrate(url: str) -> list[str]:
    """Bring the schema to the newest revision; the revisions applied, oldest first, none when it was there already.

    Raises DatabaseUnavailable when Postgres cannot be reached or another migration holds the lock too long.
    """
    try:
        async with asyncio.timeout(LOCK_TIMEOUT_S):
            guard = await asyncpg.connect(url, timeout=10, server_settings={"application_name": "finalsale migrate"})
            await guard.execute(f"select pg_advisory_lock({LOCK_KEY})")
    except UNAVAILABLE as error:
        raise DatabaseUnavailable(f"Postgres cannot be migrated now ({type(error).__name__})") from error
    try:
        before = await current_revision(guard)
        await _upgrade(url)
        after = await current_revision(guard)
    finally:
        await guard.close()  # ends the session, and with it the lock
    assert after is not None
    return [revision for revision in KNOWN_REVISIONS if (before is None or revision > before) and revision <= after]


async def pending(url: str) -> bool:
    """Whether this release needs a revision that the database does not have. Raises DatabaseUnavailable."""
    try:
        connection = await asyncpg.connect(url, timeout=5, command_timeout=5)
        try:
            return is_pending(await current_revision(connection))
        finally:
            await connection.close()
    except UNAVAILABLE as error:
        raise DatabaseUnavailable(f"Postgres cannot be reached ({type(error).__name__})") from error


def is_pending(current: str | None) -> bool:
    """True for a database behind this release. One ahead of it is fine: the previous release works on the new schema."""
    return current is None or current < KNOWN_REVISIONS[-1]


async def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at; None before the first."""
    try:
        current = await connection.fetchval("select version_num from alembic_version")
    except asyncpg.UndefinedTableError:
        return None
    return None if current is None else str(current)


def run_sql(name: str) -> None:
    """Run a file of `versions` in the current migration's transaction; it may hold any number of statements."""
    from alembic import op  # Alembic and SQLAlchemy are needed by `migrate` alone, and cost the web process 30 MB

    connection = op.get_bind()
    connection.exec_driver_sql("select 1")  # begins the transaction, which SQLAlchemy does with its first statement
    script = (VERSIONS / name).read_text(encoding="utf-8")

    async def execute(raw: Any) -> None:
        await raw.execute(f"{script}\nselect 1")  # asyncpg cannot read the answer to a file of nothing but comments

    dbapi_connection: Any = connection.connection.dbapi_connection
    dbapi_connection.run_async(execute)


async def _upgrade(url: str) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import Connection as SyncConnection
    from sqlalchemy import NullPool
    from sqlalchemy.ext.asyncio import create_async_engine

    def upgrade(connection: SyncConnection) -> None:
        config = Config()
        config.set_main_option("script_location", str(HERE).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async def connect() -> Any:
        return await asyncpg.connect(
            url, timeout=10, server_settings={"application_name": "finalsale migrate", "lock_timeout": "10000"}
        )

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(upgrade)
    finally:
        await engine.dispose()
