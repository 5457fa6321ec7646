"""The embedded servers: shared by processes of one directory, durable, and not confused by a killed owner."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import asyncpg
import pytest
from redis.asyncio import Redis

from worker.embedded import EmbeddedServers, embedded_servers
from worker.errors import EmbeddedServerFailed


async def fetch(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_both_start_answer_and_stop_and_postgres_keeps_its_rows(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path / "state") as (database_url, redis_url):
        assert await fetch(database_url, "show fsync") == "on"
        assert await fetch(database_url, "show synchronous_commit") == "on"
        await fetch(database_url, "create table kept (n int)")
        client = Redis.from_url(redis_url)
        assert await client.ping()
        await client.aclose()
    with pytest.raises(OSError):
        await asyncpg.connect(database_url)
    async with embedded_servers(tmp_path / "state", valkey=False) as (database_url, redis_url):
        assert redis_url == ""
        assert await fetch(database_url, "select count(*) from kept") == 0


async def test_processes_of_one_directory_share_and_the_last_one_stops(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path / "state") as first:
        async with embedded_servers(tmp_path / "state") as second:
            assert (second.postgres_pid, second.valkey_pid) == (first.postgres_pid, first.valkey_pid)
        assert await fetch(first.database_url, "select 1") == 1
        client = Redis.from_url(first.redis_url)
        assert await client.ping()
        await client.aclose()
    with pytest.raises(OSError):
        await asyncpg.connect(first.database_url)


async def test_servers_left_by_a_killed_owner_are_taken_over_and_stopped(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from worker.embedded import EmbeddedServers;"
        "s = EmbeddedServers(Path(sys.argv[1])); s.start(); print(s.postgres_pid, flush=True); time.sleep(60)"
    )
    state = str(tmp_path / "state")
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", program, state, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    left = int(await owner.stdout.readline())
    owner.kill()
    await owner.wait()
    async with embedded_servers(tmp_path / "state") as servers:
        assert servers.postgres_pid == left
        assert await fetch(servers.database_url, "select 1") == 1
    with pytest.raises(OSError):
        await asyncpg.connect(servers.database_url)


async def test_a_crash_of_both_servers_is_recovered_from_at_the_next_start(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path / "state") as servers:
        await fetch(servers.database_url, "create table kept (n int)")
        await asyncio.to_thread(servers.stop_postgres, signal.SIGKILL)
        await asyncio.to_thread(servers.stop_valkey, signal.SIGKILL)
        await asyncio.to_thread(servers.start)
        assert await fetch(servers.database_url, "select count(*) from kept") == 0


async def test_a_pid_file_that_now_names_another_program_is_not_in_the_way(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path / "state", valkey=False):
        pass
    pid_file = tmp_path / "state" / "postgres" / "postmaster.pid"
    # of the server's own user, or Postgres knows by itself
    user = pid_file.parent.stat().st_uid if os.geteuid() == 0 else None
    other = await asyncio.create_subprocess_exec("sleep", "60", user=user)
    try:
        pid_file.write_text(f"{other.pid}\n{pid_file.parent}\n1\n5432\n\n\n\n\n")
        (tmp_path / "state" / "valkey.pid").write_text(f"{other.pid}\n")
        async with embedded_servers(tmp_path / "state") as servers:
            assert await fetch(servers.database_url, "select 1") == 1
        assert other.returncode is None
    finally:
        other.kill()
        await other.wait()


async def test_a_directory_with_a_long_name_works_through_a_short_socket_path(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path / ("long" * 30), valkey=False) as (database_url, _):
        assert await fetch(database_url, "select 1") == 1


async def test_nobody_else_on_the_machine_can_reach_the_sockets(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path / "state") as servers:
        sockets = Path(unquote(servers.database_url.partition("host=")[2]))  # elsewhere where the path is too long
        assert (await asyncio.to_thread(sockets.stat)).st_mode & 0o077 == 0
        assert await fetch(servers.database_url, "show listen_addresses") == ""


async def test_a_server_that_cannot_start_is_said_in_one_sentence(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path / "state", valkey=False):
        pass
    (tmp_path / "state" / "postgres" / "postgresql.conf").write_text("no_such_setting = 1\n")
    servers = EmbeddedServers(tmp_path / "state", valkey=False)
    with pytest.raises(EmbeddedServerFailed, match=r"did not start; its log is .*postgres.log"):
        await asyncio.to_thread(servers.start)
    await asyncio.to_thread(servers.stop)
