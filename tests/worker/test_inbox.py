"""Group commit from inside: limits, halving round a poisonous row, callers that are cancelled, a role that may only insert."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.db import Pool
from worker.inbox import MAX_BATCH_ROWS, MAX_PENDING_BYTES, Commit, Inbox, Kind, Outcome, Row, pack, unpack

TEST_MODE = Kind("test", None, None)


def row(event_id: str, payload: bytes = b"{}", event_type: str = "charge.succeeded", kind: Kind = TEST_MODE) -> Row:
    return Row(event_id, event_type, 1_764_000_000, payload, kind)


async def stored(pool: Pool) -> set[str]:
    return {found["event_id"] for found in await pool.fetch("select event_id from inbox")}


async def test_a_poisonous_row_is_refused_alone_and_the_others_are_stored(database_url: str, pool: Pool) -> None:
    inbox = Inbox(database_url, lambda _: None)
    rows = [row(f"evt_{number}") for number in range(49)]
    rows.insert(17, row("evt_poison\0"))  # text cannot hold NUL; the envelope's check lets none through
    outcomes = await asyncio.gather(*(inbox.add(one) for one in rows))
    await inbox.close()
    assert [place for place, outcome in enumerate(outcomes) if outcome is not Outcome.COMMITTED] == [17]
    assert outcomes[17] is Outcome.UNSTORABLE
    assert await stored(pool) == {f"evt_{number}" for number in range(49)}


async def test_what_arrives_during_a_commit_shares_the_next_one(database_url: str, pool: Pool) -> None:
    commits: list[Commit] = []
    inbox = Inbox(database_url, commits.append)
    first = inbox.add(row("evt_first"))
    while not commits:
        await asyncio.sleep(0)
        if len(inbox._pending) < 100 and not first.done():
            inbox.add(row(f"evt_{len(inbox._pending)}"))
    await inbox.close()
    assert commits[0].rows == 1 or commits[0].rows < commits[1].rows
    assert len(commits) <= 3


async def test_no_batch_is_larger_than_the_limits(database_url: str, pool: Pool) -> None:
    commits: list[Commit] = []
    inbox = Inbox(database_url, commits.append)
    many = [inbox.add(row(f"evt_{number}")) for number in range(2 * MAX_BATCH_ROWS + 1)]
    large = [inbox.add(row(f"evt_large_{number}", b"x" * 1_000_000)) for number in range(20)]
    outcomes = await asyncio.gather(*many, *large)
    await inbox.close()
    assert set(outcomes) <= {Outcome.COMMITTED, Outcome.UNAVAILABLE}
    assert {outcomes[place] for place in range(len(many))} == {Outcome.COMMITTED}
    assert max(commit.rows for commit in commits) == MAX_BATCH_ROWS
    assert len(commits) >= 3 + 20_000_000 // (8 * 1024 * 1024)


async def test_memory_for_waiting_rows_is_bounded(database_url: str) -> None:
    inbox = Inbox("postgresql://postgres@/nowhere?host=/nonexistent", lambda _: None)
    payload = b"x" * (1024 * 1024)
    futures = [inbox.add(row(f"evt_{number}", payload)) for number in range(MAX_PENDING_BYTES // len(payload) + 1)]
    assert [future.done() for future in futures[-2:]] == [False, True]
    assert futures[-1].result() is Outcome.UNAVAILABLE
    assert set(await asyncio.gather(*futures)) == {Outcome.UNAVAILABLE}
    await inbox.close()


async def test_a_cancelled_caller_takes_nothing_back_and_disturbs_nobody(database_url: str, pool: Pool) -> None:
    inbox = Inbox(database_url, lambda _: None)

    async def store(event_id: str) -> Outcome:
        return await inbox.add(row(event_id))

    for attempt in range(30):
        tasks = [asyncio.create_task(store(f"evt_{attempt}_{number}")) for number in range(20)]
        for _ in range(attempt):
            await asyncio.sleep(0)
        tasks[attempt % 20].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        stays = [outcome for place, outcome in enumerate(outcomes) if place != attempt % 20]
        assert stays == [Outcome.COMMITTED] * 19
    await inbox.close()
    assert len(await stored(pool)) >= 30 * 19


async def test_close_commits_what_is_pending(database_url: str, pool: Pool) -> None:
    inbox = Inbox(database_url, lambda _: None)
    futures = [inbox.add(row(f"evt_{number}")) for number in range(10)]
    await inbox.close()
    assert {future.result() for future in futures} == {Outcome.COMMITTED}
    assert len(await stored(pool)) == 10


async def test_a_role_that_may_only_insert_is_enough(database_url: str, pool: Pool) -> None:
    await pool.execute("drop role if exists only_insert; create role only_insert login")
    columns = "event_id, realm, type, api_version, created_at, payload, state, error"
    await pool.execute(f"grant insert ({columns}) on inbox to only_insert")
    url = database_url.replace("postgres@", "only_insert@")
    inbox = Inbox(url, lambda _: None)
    assert [await inbox.add(row(event_id)) for event_id in ("evt_1", "evt_1", "evt_2")] == [Outcome.COMMITTED] * 3
    await inbox.close()
    connection = await asyncpg.connect(url)
    for statement in ("select payload from inbox", "update inbox set state = 'done'", "delete from inbox"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()
    assert await stored(pool) == {"evt_1", "evt_2"}
    await pool.execute("drop owned by only_insert; drop role only_insert")


async def test_an_error_of_any_kind_is_never_a_yes_and_never_a_hang(database_url: str, pool: Pool) -> None:
    await pool.execute(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;"
        "create trigger refuse before insert on inbox for each row execute function refuse()"
    )
    commits: list[Commit] = []
    inbox = Inbox(database_url, commits.append)
    assert await inbox.add(row("evt_1")) is Outcome.UNAVAILABLE
    assert type(commits[0].error).__name__ == "RaiseError"
    await pool.execute("drop trigger refuse on inbox")
    assert await inbox.add(row("evt_1")) is Outcome.COMMITTED
    await inbox.close()


async def test_events_of_several_kinds_share_one_commit_and_keep_their_own(database_url: str, pool: Pool) -> None:
    commits: list[Commit] = []
    inbox = Inbox(database_url, commits.append)
    kinds = [
        Kind("test", "2026-10-28.endive", None),
        Kind("test:acct_1", None, None),
        Kind("live", "2024-06-20", "wrong mode"),
    ]
    await asyncio.gather(*(inbox.add(row(f"evt_{number}", kind=kinds[number % 3])) for number in range(30)))
    await inbox.close()
    assert (len(commits), commits[0].new_rows) == (1, 30)
    for number, found in enumerate(await pool.fetch("select * from inbox order by substring(event_id from 5)::int")):
        kind = kinds[number % 3]
        assert (found["realm"], found["api_version"], found["error"]) == tuple(kind)
        assert found["state"] == ("ignored" if kind.ignored_because else "waiting")


async def test_a_poisonous_row_among_several_kinds_leaves_no_half_batch(database_url: str, pool: Pool) -> None:
    inbox = Inbox(database_url, lambda _: None)
    rows = [row(f"evt_{number}", kind=Kind(f"test:acct_{number % 2}", None, None)) for number in range(10)]
    rows[7] = row("evt_poison\0", kind=rows[7].kind)
    outcomes = await asyncio.gather(*(inbox.add(one) for one in rows))
    await inbox.close()
    assert [place for place, outcome in enumerate(outcomes) if outcome is not Outcome.COMMITTED] == [7]
    assert await stored(pool) == {f"evt_{number}" for number in range(10) if number != 7}


@given(st.binary(max_size=4096))
def test_what_is_packed_unpacks_to_the_very_bytes(tail: bytes) -> None:
    for body in (b"{" + tail, b"{" + tail * 8 + b"}"):
        assert unpack(pack(body)) == body
