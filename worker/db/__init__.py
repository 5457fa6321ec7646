"""The way to Postgres: pools with limits on everything, and the named statements of the .sql files beside this one.

A statement `-- name: count_waiting$` in any of the files is `await queries.count_waiting(connection, limit=...)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import aiosql
import asyncpg
from asyncpg.pool import PoolConnectionProxy

from worker.errors import DatabaseUnavailable

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

CONNECT_TIMEOUT_S = 5.0
ACQUIRE_TIMEOUT_S = 5.0  # asyncpg's query time-out does not bound the wait for a free connection; this does
IDLE_IN_TRANSACTION_TIMEOUT_S = 15.0

queries: Any = aiosql.from_path(Path(__file__).parent, "asyncpg", mandatory_parameters=False)

# What asyncpg raises when the server is away, restarting, failing over, full or silent: try again later. Everything else
# that Postgres says (constraint, privilege, syntax) is about the statement.
UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.DatabaseDroppedError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DiskFullError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)


def session_settings(role: str, statement_timeout_s: float, lock_timeout_s: float) -> dict[str, str]:
    """What every session of ours sets, so that no statement, lock or forgotten transaction can hold up the others."""
    return {
        "application_name": f"finalsale {role}",
        "timezone": "UTC",
        "finalsale.projects": "1",  # our writers keep what stands beside an object's bytes; others lose its digest by a trigger
        "finalsale.vigil": "1",  # our writers know the alerts that judging did not raise; others cannot resolve them
        "statement_timeout": f"{statement_timeout_s * 1000:.0f}",
        "lock_timeout": f"{lock_timeout_s * 1000:.0f}",
        "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT_S * 1000:.0f}",
    }


async def connect_pool(
    url: str,
    *,
    role: str,
    min_size: int = 1,
    max_size: int = 4,
    statement_timeout_s: float = 10.0,
    lock_timeout_s: float = 3.0,
    parallel: bool = True,
) -> Pool:
    """A pool of sessions named after `role`. Take connections with `connection` or `transaction`, which bound the wait.

    `parallel`: whether Postgres may start helpers for a statement, which costs a short one more than they save.
    With `min_size=0` this returns while Postgres is down. Raises DatabaseUnavailable.
    """
    server_settings = session_settings(role, statement_timeout_s, lock_timeout_s)
    if not parallel:
        server_settings["max_parallel_workers_per_gather"] = "0"
    with_timeout = asyncpg.create_pool(
        url,
        min_size=min_size,
        max_size=max_size,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=statement_timeout_s + 2,  # the server cuts first; this one is for a server that is silent
        server_settings=server_settings,
    )
    try:
        async with asyncio.timeout(2 * CONNECT_TIMEOUT_S):
            return await with_timeout
    except UNAVAILABLE as error:
        raise DatabaseUnavailable(f"Postgres cannot be reached ({type(error).__name__})") from error


@asynccontextmanager
async def connection(pool: Pool, *, timeout_s: float = ACQUIRE_TIMEOUT_S) -> AsyncIterator[Connection]:
    """One connection of the pool. Raises DatabaseUnavailable instead of the many forms in which asyncpg says so."""
    try:
        async with pool.acquire(timeout=timeout_s) as acquired:
            yield acquired
    except UNAVAILABLE as error:
        raise DatabaseUnavailable(f"Postgres is not available ({type(error).__name__})") from error


@asynccontextmanager
async def transaction(pool: Pool, *, timeout_s: float = ACQUIRE_TIMEOUT_S) -> AsyncIterator[Connection]:
    """One transaction: committed when the block ends, rolled back when it raises. Raises DatabaseUnavailable."""
    async with connection(pool, timeout_s=timeout_s) as acquired, acquired.transaction():
        yield acquired


def columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Rows as the arrays that `unnest` takes; there must be one row at least."""
    return list(map(list, zip(*rows, strict=True)))
