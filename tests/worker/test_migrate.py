"""Migrations: idempotent, safe when machines start at once, in step with Alembic's own view of history."""

import asyncio
from pathlib import Path

import asyncpg
import pytest
from alembic.script import ScriptDirectory

from tests.conftest import database_named
from worker.db.migrations import HERE, KNOWN_REVISIONS, is_pending, migrate, pending
from worker.embedded import EmbeddedServers
from worker.errors import DatabaseUnavailable


@pytest.fixture
async def empty_database_url(servers: EmbeddedServers) -> str:
    connection = await asyncpg.connect(database_named(servers, "postgres"))
    await connection.execute("drop database if exists empty_one")
    await connection.execute("create database empty_one")
    await connection.close()
    return database_named(servers, "empty_one")


async def test_two_machines_that_start_at_once_apply_each_revision_once(empty_database_url: str) -> None:
    assert await pending(empty_database_url)
    applied = await asyncio.gather(*(migrate(empty_database_url) for _ in range(3)))
    assert sorted(applied) == [[], [], list(KNOWN_REVISIONS)]
    assert not await pending(empty_database_url)


async def test_a_failed_revision_leaves_nothing_behind(empty_database_url: str) -> None:
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute("create table workers (other_owner int)")  # in the way of the first revision
    with pytest.raises(Exception, match="workers"):
        await migrate(empty_database_url)
    assert await connection.fetchval("select count(*) from pg_tables where tablename = 'inbox'") == 0
    assert await pending(empty_database_url)
    await connection.execute("drop table workers")
    await connection.close()
    assert await migrate(empty_database_url) == list(KNOWN_REVISIONS)


async def test_a_database_ahead_of_this_release_is_not_pending() -> None:
    assert (is_pending(None), is_pending("0000"), is_pending(KNOWN_REVISIONS[-1]), is_pending("9999")) == (
        True,
        True,
        False,
        False,
    )


def test_history_is_a_straight_line_that_ends_in_the_newest_file() -> None:
    script = ScriptDirectory(str(HERE))
    assert [revision.revision for revision in script.walk_revisions()] == list(reversed(KNOWN_REVISIONS))


def test_every_revision_has_its_sql_beside_it() -> None:
    assert {path.stem for path in HERE.glob("versions/*.sql")} == {path.stem for path in HERE.glob("versions/0*.py")}


async def test_a_database_that_cannot_be_reached_is_said_to_be_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        await migrate(f"postgresql://postgres@/x?host={tmp_path}")
    with pytest.raises(DatabaseUnavailable):
        await pending(f"postgresql://postgres@/x?host={tmp_path}")
