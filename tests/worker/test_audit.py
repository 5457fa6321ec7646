"""The audit chain: whatever is edited, removed, reordered or written past it is found and named; nothing that was not is."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from handlers.account import ActKind
from tests.handlers.history import DAY, MINUTE, POLICY, History
from tests.worker.books import REALMS, tell
from worker import audit, operators, review, tokens
from worker.acts import Wish, carry_out
from worker.audit import append_pending, broken, check_if_due, head, listed, record, verify
from worker.audit_export import DigestUnreadable, read_digest
from worker.audit_pace import Pace, Place
from worker.cli import main
from worker.db import Pool, connection, queries, transaction
from worker.db.migrations import VERSIONS
from worker.operators import Role
from worker.reading import NotFound, NotUnderstood
from worker.replay import replay_events
from worker.settings import Settings

DECISION = """insert into decisions (id, realm, subject, revision, customer, clause, rule, verdict, policy_version, fingerprint, body)
              values ($1, 'test', 'ch_' || $1, 1, 'cus_A', '4.3', 'D1', 'refund', '2026', 'f', '{"reason":"because"}')"""
ACTION = """insert into actions (id, realm, kind, subject, decision_subject, decision_id, customer, amount_minor, currency, state,
                                 due_at, next_at)
            values ('act_' || $1, 'test', 'refund', 'ch_' || $1, 'ch_' || $1, $1, 'cus_A', 500, 'usd', 'planned', now(), now())"""
LOT = """insert into lots (realm, id, customer, kind, clause, granted_at, cause)
         values ('test', 'lot_' || $1, 'cus_A', 'trial', '3.1', now(), 'a trial')"""
ENTRY = """insert into entries (realm, lot, customer, kind, amount, clause, cause, effective_at)
           values ('test', 'lot_' || $1, 'cus_A', 'granted', $2, '3.1', 'a trial', now())"""
CASE = """insert into cases (id, realm, customer, opened_at, due_at, alert_at, body)
          values ('case_' || $1, 'test', 'cus_A', now(), now(), now(), '{}')"""


async def write(conn: Any, name: str) -> None:
    """A row of every kind that the chain binds, and a change of an action."""
    await conn.execute(DECISION, name)
    await conn.execute(ACTION, name)
    await conn.execute("update actions set state = 'review', error = 'a person' where id = 'act_' || $1", name)
    await conn.execute(LOT, name)
    await conn.execute(ENTRY, name, 7)
    await conn.execute(
        "insert into review_acts (decision_id, act, by_name, note) values ($1, 'note', 'Ann', 'hm')", name
    )
    await conn.execute(CASE, name)
    await conn.execute(
        "insert into case_acts (case_id, act, by_name, text) values ('case_' || $1, 'note', 'Ann', 'she is ill')", name
    )
    await conn.execute(
        """insert into acts (id, realm, customer, kind, body) values ('oact_' || $1, 'test', 'cus_A', 'suspend', '{"by":"Ann"}')""",
        name,
    )
    await conn.execute("insert into outages (id, realm, body) values ('out_' || $1, 'test', '{}')", name)
    await conn.execute(
        """insert into standing_changes (realm, customer, was, became, holds, cause, changed_at)
           values ('test', $1, 'good', 'suspended', '{dp_1,"a b"}', 'a dispute', now())""",
        name,
    )
    await record(conn, "test", by="Ann", via="cli", act="note", subject=name, reason="why", after={"n": 1})
    await queries.set_pause_switch(conn, is_on=True, by_name="Ann", reason=name)


async def written(pool: Pool, *names: str) -> None:
    """Rows of every kind, chained."""
    for name in names:
        async with transaction(pool) as conn:
            await write(conn, name)
    while await append_pending(pool):
        pass


async def verified(pool: Pool, *against: audit.Digest) -> dict[str, Any]:
    async with connection(pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        return await verify(conn, against=against)


async def tamper(pool: Pool, *statements: str) -> None:
    """What nobody may do: as a superuser, behind the triggers' back."""
    async with transaction(pool) as conn:
        await conn.execute("set local session_replication_role = replica")
        for statement in statements:
            await conn.execute(statement)


def whats(found: dict[str, Any]) -> set[str]:
    return {problem["what"] for problem in found["problems"]}


# the chain ---------------------------------------------------------------------------------------------------------------


async def test_everything_that_was_written_is_chained_once_in_its_states_and_verifies(pool: Pool) -> None:
    await written(pool, "a", "b")
    found = await verified(pool)
    assert (found["ok"], found["problems"], found["pending"]) == (True, [], 0)
    seldom = ("policy_versions", "operators", "operator_tokens", "api_tokens", "erased_texts")
    assert found["checked"] == {"links": found["length"]} | {
        name: 4 if name == "actions" else 2 for name in audit.SOURCES if name not in seldom
    }
    async with connection(pool) as conn:
        now = await head(conn)
        assert (now["length"], now["hash"], now["pending"]) == (found["length"], found["head"], 0)
        assert await broken(conn) is None


async def test_what_is_committed_and_not_chained_yet_is_neither_missing_nor_free_to_change(pool: Pool) -> None:
    async with transaction(pool) as conn:
        await write(conn, "a")
    assert (await verified(pool))["ok"]
    await tamper(pool, "update decisions set verdict = 'deny'")
    assert whats(await verified(pool)) == {"edited"}


async def test_a_change_of_an_action_that_says_nothing_new_is_not_chained(pool: Pool) -> None:
    await written(pool, "a")
    length = (await verified(pool))["length"]
    await pool.execute("update actions set attempts = attempts + 1, next_at = now(), error = 'again'")
    assert await append_pending(pool) == 0
    await pool.execute("update actions set amount_minor = 400")
    assert await append_pending(pool) == 1
    found = await verified(pool)
    assert (found["ok"], found["length"]) == (True, length + 1)


async def test_a_hash_does_not_depend_on_the_settings_of_a_session(pool: Pool) -> None:
    await written(pool, "a")
    async with transaction(pool) as conn:
        for setting in (
            "timezone = 'Asia/Tokyo'",
            "datestyle = 'German'",
            "bytea_output = 'escape'",
            "extra_float_digits = 0",
        ):
            await conn.execute(f"set local {setting}")
        assert (await verify(conn))["ok"]


TAMPERINGS: dict[str, tuple[str, str]] = {
    "a decision's verdict": ("update decisions set verdict = 'deny' where id = 'b'", "edited"),
    "a decision's body": ("update decisions set body = '{}' where id = 'b'", "edited"),
    "an action's amount": ("update actions set amount_minor = 501 where id = 'act_b'", "edited"),
    "an action's state": ("update actions set state = 'planned' where id = 'act_b'", "edited"),
    "who approved": ("update actions set approved_by = '{Eve}' where id = 'act_b'", "edited"),
    "an entry's amount": ("update entries set amount = 8 where lot = 'lot_b'", "edited"),
    "an entry removed": ("delete from entries where lot = 'lot_b'", "gone"),
    "an action removed": ("delete from actions where id = 'act_b'", "gone"),
    "a note on a decision": ("update review_acts set note = 'no' where decision_id = 'b'", "edited"),
    "a note on a case": ("update case_acts set text = 'no' where case_id = 'case_b'", "edited"),
    "who acted": ("update operator_acts set by_name = 'Eve' where subject = 'b'", "edited"),
    "what an act did": ("update operator_acts set after = '{}' where subject = 'b'", "edited"),
    "an operator's act": ("""update acts set body = '{"by":"Eve"}' where id = 'oact_b'""", "edited"),
    "an outage": ("update outages set body = '[]' where id = 'out_b'", "edited"),
    "a change of standing": ("update standing_changes set holds = '{dp_1,a,b}' where customer = 'b'", "edited"),
    "a switch": ("update switches set is_on = false", "edited"),
    "a salt": ("update audit_texts set salt = null where source = 'case_acts'", "edited"),
    "a decision and its word": (
        "update decisions set verdict = 'deny' where id = 'b'; insert into audit_queue (source, realm, row_id, content) "
        "select source, realm, row_id, content from audit_sources where source = 'decisions' and row_id = 'b'",
        "edited",
    ),
    "the sums of a lot": ("update lots set granted = 1000000 where id = 'lot_b'", "sums"),
    "a decision past the chain": (DECISION.replace("$1", "'eve'"), "unchained"),
    "a link's content": ("update audit_chain set content = sha256('x') where seq = 3", "broken"),
    "a link's hash": ("update audit_chain set hash = sha256('x') where seq = 3", "broken"),
    "a link's moment": ("update audit_chain set chained_at = chained_at + interval '1 second' where seq = 3", "broken"),
    "a link's realm": ("update audit_chain set realm = 'live' where seq = 3", "broken"),
    "a link removed": ("delete from audit_chain where seq = 3", "removed"),
    "the first link removed": ("delete from audit_chain where seq = 1", "removed"),
    "two links swapped": (
        "update audit_chain set seq = case seq when 3 then -5 else -3 end where seq in (3, 5)",
        "broken",
    ),
    "a row and its link": (
        "delete from audit_chain where row_id = 'b'; delete from decisions where id = 'b'",
        "removed",
    ),
    "the tail": ("delete from audit_chain where seq > 20", "unchained"),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
async def test_tampering_is_found(pool: Pool, tampering: str) -> None:
    await written(pool, "a", "b", "c")
    statement, what = TAMPERINGS[tampering]
    await tamper(pool, *statement.split(";"), "update audit_chain set seq = -seq where seq < 0")
    found = await verified(pool)
    assert not found["ok"]
    assert what in whats(found), found["problems"]
    assert found["problem_count"] >= len(found["problems"]) > 0


async def test_a_problem_says_where_it_is(pool: Pool) -> None:
    await written(pool, "a", "b")
    await tamper(
        pool, "update actions set amount_minor = 501 where id = 'act_b'", "delete from audit_chain where seq = 4"
    )
    found = await verified(pool)
    edited = next(problem for problem in found["problems"] if problem["what"] == "edited")
    assert (edited["source"], edited["id"]) == ("actions", "act_b")
    assert edited["seq"] == await pool.fetchval("select max(seq) from audit_chain where row_id = 'act_b'")
    assert next(problem["seq"] for problem in found["problems"] if problem["what"] == "removed") == 4


async def test_a_row_and_all_of_the_chain_that_knows_it_are_missed_only_by_an_earlier_digest(pool: Pool) -> None:
    await written(pool, "a")
    before = await verified(pool)
    await written(pool, "b")
    late = await verified(pool)
    cut = [f"delete from audit_chain where seq > {before['length']}"]
    rows = [
        f"delete from {name} where {key} = 'b'" for name, key in (("decisions", "id"), ("standing_changes", "customer"))
    ]
    rows += [f"delete from {name} where {key} like '%b'" for name, key in (("actions", "id"), ("entries", "lot"))]
    rows += ["delete from review_acts where decision_id = 'b'", "delete from case_acts where case_id = 'case_b'"]
    rows += ["delete from acts where id = 'oact_b'", "delete from outages where id = 'out_b'"]
    rows += ["delete from operator_acts where subject = 'b'", "delete from lots where id = 'lot_b'"]
    await tamper(pool, *cut, *rows, "delete from switches")
    plain = await verified(pool)
    assert whats(plain) == {"gone"}  # the switch alone, which has one row for all its states
    for digest in (
        audit.Digest(late["length"], bytes.fromhex(late["head"])),
        audit.Digest(None, bytes.fromhex(late["head"])),
    ):
        assert "cut" in whats(await verified(pool, digest))
    known = audit.Digest(before["length"], bytes.fromhex(before["head"]))
    assert whats(await verified(pool, known)) == {"gone"}


async def test_a_chain_that_was_written_anew_is_found_by_an_earlier_digest(pool: Pool) -> None:
    await written(pool, "a", "b")
    before = await verified(pool)
    await tamper(
        pool,
        "update decisions set verdict = 'deny' where id = 'a'",
        "delete from audit_chain",
        "delete from audit_queue",
    )
    await pool.execute(
        "insert into audit_queue (source, realm, row_id, content) select source, realm, row_id, content from audit_sources"
    )
    while await append_pending(pool):
        pass
    assert (await verified(pool))["ok"]
    digest = audit.Digest((await verified(pool))["length"], bytes.fromhex(before["head"]))
    assert whats(await verified(pool, digest)) == {"rewritten"}


BEGUN = "first_sent_at = now(), generation = 1, idempotency_key = 'k:1', approved_by = '{Ann}'"


@pytest.mark.parametrize(
    ("begun", "undone"),
    [
        ("state = 'review'", "state = 'proposed'"),
        ("state = 'review'", "state = 'withdrawn'"),
        ("state = 'review'", "approved_by = '{Eve}'"),
        ("state = 'review'", "idempotency_key = null"),
        ("state = 'review'", "idempotency_key = 'k:2'"),
        ("state = 'review'", "first_sent_at = null, generation = 0"),
        ("state = 'review', stripe_id = 're_1'", "state = 'planned'"),
        ("state = 'review', stripe_id = 're_1'", "stripe_id = null"),
        ("state = 'sent', stripe_id = 're_1'", "state = 'planned'"),
    ],
)
async def test_what_was_begun_at_stripe_cannot_be_made_to_look_as_if_it_never_was(
    pool: Pool, begun: str, undone: str
) -> None:
    async with transaction(pool) as conn:
        await write(conn, "a")
    await pool.execute(f"update actions set {BEGUN}, {begun}")
    with pytest.raises(asyncpg.RestrictViolationError):
        await pool.execute(f"update actions set {undone}")


# writers, sequencers, crashes --------------------------------------------------------------------------------------------


async def assert_whole(pool: Pool, decisions: int) -> None:
    """Gapless, verified, and every decision in it once."""
    found = await verified(pool)
    assert (found["ok"], found["problems"], found["pending"]) == (True, [], 0)
    rows = await pool.fetch("select row_id, count(*) from audit_chain where source = 'decisions' group by row_id")
    assert (len(rows), {row["count"] for row in rows}) == (decisions, {1})
    assert await pool.fetchval("select max(seq) - count(*) from audit_chain") == 0


async def test_ten_writers_and_two_sequencers_make_one_chain_without_gaps(pool: Pool) -> None:
    done = asyncio.Event()

    async def writer(number: int) -> None:
        for turn in range(6):
            async with transaction(pool, timeout_s=30) as conn:
                await write(conn, f"{number}_{turn}")
                if turn == 3:
                    await asyncio.sleep(0.05)  # commits behind others with higher numbers

    async def sequencer() -> None:
        while not done.is_set():
            await append_pending(pool, most=17)
            await asyncio.sleep(0)

    at_work = [asyncio.create_task(sequencer()) for _ in range(2)]
    await asyncio.gather(*(writer(number) for number in range(5)))
    await asyncio.gather(*(writer(number) for number in range(5, 10)))
    done.set()
    await asyncio.gather(*at_work)
    while await append_pending(pool):
        pass
    await assert_whole(pool, 60)


SEQUENCER = """
import asyncio, sys
from worker.audit import append_pending
from worker.db import connect_pool
async def main():
    pool = await connect_pool(sys.argv[1], role="test", lock_timeout_s=30)
    print("ready", flush=True)
    while True:
        await append_pending(pool, most=5)
asyncio.run(main())
"""


async def test_a_sequencer_that_is_killed_in_a_round_loses_nothing_and_does_nothing_twice(
    pool: Pool, database_url: str
) -> None:
    for name in "abc":
        async with transaction(pool) as conn:
            await write(conn, name)
    queued = await pool.fetchval("select count(*) from audit_queue")
    async with transaction(pool) as conn:
        await conn.execute(
            "lock table audit_chain in exclusive mode"
        )  # readers pass; the round stops where it would write
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SEQUENCER, database_url, stdout=asyncio.subprocess.PIPE, env=os.environ
        )
        async with asyncio.timeout(20):
            while not await conn.fetchval(
                "select count(*) from pg_locks where relation = 'audit_chain'::regclass and not granted"
            ):
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with asyncio.timeout(20):
        while await pool.fetchval("select count(*) from pg_locks where locktype = 'advisory'"):
            await asyncio.sleep(0.02)  # until Postgres has noticed
    left = await pool.fetchval("select (select count(*) from audit_queue) + (select count(*) from audit_chain)")
    assert left == queued
    while await append_pending(pool):
        pass
    await assert_whole(pool, 3)


@pytest.mark.parametrize("seed", range(6))
async def test_any_interleaving_of_commits_ends_in_a_chain_that_verifies(pool: Pool, seed: int) -> None:
    chance = random.Random(seed)
    open_: list[tuple[Any, Any]] = []
    written_ = 0
    for turn in range(25):
        deed = chance.choice(("begin", "begin", "commit", "abandon", "append", "change"))
        if deed == "begin" and len(open_) < 4:
            conn = await pool.acquire()
            begun = conn.transaction()
            await begun.start()
            await conn.execute(DECISION, f"d{turn}")
            await conn.execute(ACTION, f"d{turn}")
            open_.append((conn, begun))
        elif deed in ("commit", "abandon") and open_:
            conn, begun = open_.pop(chance.randrange(len(open_)))
            await (begun.commit() if deed == "commit" else begun.rollback())
            written_ += deed == "commit"
            await pool.release(conn)
        elif deed == "append":
            await append_pending(pool, most=chance.choice((1, 2, 50)))
        elif deed == "change":
            await pool.execute("update actions set amount_minor = amount_minor + 1")
        assert (await verified(pool))["ok"]
    for conn, begun in open_:
        await begun.commit()
        written_ += 1
        await pool.release(conn)
    while await append_pending(pool):
        pass
    await assert_whole(pool, written_)


async def test_the_queue_is_emptied_into_the_chain_only(pool: Pool) -> None:
    async with transaction(pool) as conn:
        await write(conn, "a")
    statement = "delete from audit_queue where number = (select min(number) from audit_queue)"
    with pytest.raises(asyncpg.RestrictViolationError):
        await pool.execute(statement)
    while await append_pending(pool):
        pass
    async with transaction(pool) as conn:
        await write(conn, "b")
    with pytest.raises(asyncpg.RestrictViolationError):
        await pool.execute(statement)


async def test_a_sequencer_keeps_its_place_and_passes_nobody_over_who_commits_late(pool: Pool) -> None:
    place = Place()

    async def append() -> None:
        while await append_pending(pool, place=place):
            pass

    conn = await pool.acquire()
    late = conn.transaction()
    await late.start()
    await conn.execute(DECISION, "late")
    for number in range(4):
        await pool.execute(DECISION, f"d{number}")
        await append()
    assert place.above == 0
    await late.commit()
    await pool.release(conn)
    for number in range(4, 8):
        await pool.execute(DECISION, f"d{number}")
        await append()
    assert place.above > 4
    await assert_whole(pool, 9)


# rows from before --------------------------------------------------------------------------------------------------------


async def forget_the_chain(pool: Pool) -> None:
    """The books as they were before the migration: rows, and no chain."""
    emptied = [f"audit_{name}" for name in ("chain", "queue", "texts", "backfill")]
    await tamper(pool, *(f"delete from {name}" for name in [*emptied, "operator_acts"]))


def backfill_of_the_migration() -> str:
    """The statements with which the migration ends."""
    return (
        (VERSIONS / "0004_audit.sql")
        .read_text(encoding="utf-8")
        .partition("-- what was there before")[2]
        .partition("\n")[2]
    )


async def test_rows_from_before_the_chain_are_chained_in_slices_and_verify(pool: Pool) -> None:
    for name in ("a", "b", "c", "d", "e"):
        async with transaction(pool) as conn:
            await write(conn, name)
    await forget_the_chain(pool)
    await pool.execute(backfill_of_the_migration())
    async with transaction(pool) as conn:
        await write(conn, "bb")
    found = await verified(pool)
    assert (found["problems"], found["not_yet_chained"]) == ([], ["actions", "decisions", "entries"])
    rounds = 0
    while await append_pending(pool, most=2):
        rounds += 1
        await pool.execute("update actions set amount_minor = amount_minor + 1 where id in ('act_a', 'act_e')")
        assert (await verified(pool))["ok"]
        assert rounds < 200
        if rounds > 20:
            break
    while await append_pending(pool):
        pass
    found = await verified(pool)
    assert (found["ok"], found["not_yet_chained"], found["problems"]) == (True, [], [])
    assert {
        row["row_id"] for row in await pool.fetch("select row_id from audit_chain where source = 'entries'")
    } == set("123456")
    await tamper(pool, "update decisions set verdict = 'deny' where id = 'c'")
    assert whats(await verified(pool)) == {"edited"}


# erasing -----------------------------------------------------------------------------------------------------------------


GONE = "[erased on request]"


async def erase_words(pool: Pool, *, by: str | None = "Ann") -> None:
    """What a person wrote in the rows `a`, as `customers erase --notes` does it."""
    async with transaction(pool) as conn:
        await audit.permit_erasure(conn)
        await conn.execute("update case_acts set text = $1 where case_id = 'case_a'", GONE)
        await conn.execute("update operator_acts set reason = $1, after = null where subject = 'a'", GONE)
        body = b'{"reason":"%s", "by":"Ann"}' % GONE.encode()
        await conn.execute("update acts set body = $1 where id = 'oact_a'", body)
        await conn.execute("update review_acts set note = $1 where decision_id = 'a'", GONE)
        if by:
            await record(conn, "test", by=by, via="cli", act="customers.erase", subject="cus_A", reason="asked")


async def test_words_can_be_erased_and_the_chain_still_verifies(pool: Pool) -> None:
    await written(pool, "a", "b")
    with pytest.raises(asyncpg.RestrictViolationError):
        await pool.execute("update case_acts set text = $1", GONE)
    await erase_words(pool)
    assert (await verified(pool))["ok"]
    while await append_pending(pool):
        pass
    found = await verified(pool)
    assert (found["ok"], found["problems"], found["erased"]) == (True, [], 4)
    assert await pool.fetchval("select count(*) from audit_texts where salt is null") == 4
    await tamper(pool, "update review_acts set note = 'other words' where decision_id = 'a'")
    assert whats(await verified(pool)) == {"edited"}


async def test_an_erasure_that_nobody_says_he_made_is_found(pool: Pool) -> None:
    await written(pool, "a")
    await erase_words(pool, by=None)
    found = await verified(pool)
    assert (whats(found), found["problem_count"]) == ({"unexplained"}, 4)
    async with transaction(pool) as conn:  # later is too late
        await record(conn, "test", by="Ann", via="cli", act="customers.erase", subject="cus_A", reason="asked")
    assert whats(await verified(pool)) == {"unexplained"}


async def test_erasing_cannot_change_anything_but_words(pool: Pool) -> None:
    await written(pool, "a")

    async def in_an_erasure(statement: str) -> None:
        async with transaction(pool) as conn:
            await write(conn, "queued")
            await audit.permit_erasure(conn)
            await conn.execute(statement)

    for statement in (
        "update case_acts set by_name = 'Eve'",
        "update case_acts set text = 'I promised nothing'",
        "update review_acts set note = 'approved by Bob'",
        "update operator_acts set reason = 'the boss said so'",
        """update operator_acts set after = '{\"n\":999999}'""",
        """update acts set body = '{\"by\":\"Mallory\"}'""",
        """update acts set body = '{\"by\":\"Ann\",\"reason\":\"\"}'""",
        "update audit_texts set salt = ''",
        "update operator_acts set act = 'none'",
        "update review_acts set act = 'approve'",
        "update acts set kind = 'lift'",
        "update audit_texts set digest = ''",
        "update decisions set verdict = 'deny'",
        "delete from case_acts",
        "delete from operator_acts",
        "update audit_chain set realm = 'live'",
        "delete from audit_chain",
        "truncate audit_chain",
        "update audit_queue set content = ''",
    ):
        with pytest.raises(asyncpg.RestrictViolationError):
            await in_an_erasure(statement)


async def test_an_erasure_that_the_chain_was_not_told_of_is_found(pool: Pool) -> None:
    await written(pool, "a")
    await tamper(
        pool,
        "update case_acts set text = ''",
        "update audit_texts set salt = null, replaced = sha256('') where source = 'case_acts'",
    )
    assert whats(await verified(pool)) == {"unchained", "unexplained"}


# who may do what ----------------------------------------------------------------------------------------------------------


async def test_who_may_do_what_is_what_an_operator_act_says(pool: Pool) -> None:
    async with transaction(pool) as conn:
        for name in ("Ada", "Bob", "Cleo"):
            await operators.add(conn, name, Role.ADMIN, by="Ann")
        await operators.set_role(conn, "Bob", Role.READ, by="Ada")
        await operators.rotate(conn, "Bob", by="Ada")
        await operators.remove(conn, "Cleo", by="Ada")
        await tokens.add(conn, "app", frozenset({tokens.Scope.READ}), by="Ann")
    assert (await verified(pool))["problems"] == []
    while await append_pending(pool):
        pass
    found = await verified(pool)
    assert (found["problems"], found["checked"]["operators"], found["checked"]["operator_tokens"]) == ([], 5, 6)
    await pool.execute("update operators set role = 'admin' where name = 'Bob'")
    assert [one["id"] for one in (await verified(pool))["problems"]] == ["Bob"]
    await pool.execute("update operators set role = 'read' where name = 'Bob'")  # and back again
    while await append_pending(pool):
        pass
    (problem,) = (await verified(pool))["problems"]
    assert (problem["what"], problem["id"]) == ("unexplained", "Bob")
    await pool.execute("update operators set removed_at = null where name = 'Cleo'")
    await pool.execute(
        "insert into operator_tokens (id, operator, hash, sieve, created_by) values ('x', 'Ada', 'h', '', 'Ada')"
    )
    assert {one["id"] for one in (await verified(pool))["problems"]} == {"Bob", "Cleo", "x"}
    await tamper(pool, "update api_tokens set revoked_at = now()")
    assert "edited" in whats(await verified(pool))


# what a worker does ------------------------------------------------------------------------------------------------------


async def test_the_quick_look_says_what_is_wrong(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "RECENT", 10)
    await written(pool, "a", "b", "c")
    async with connection(pool) as conn:
        assert await broken(conn) is None
        newest = (await head(conn))["length"]
        async with conn.transaction():
            await conn.execute("set local session_replication_role = replica")
            await conn.execute("update audit_chain set content = '' where seq = $1", newest - 3)
        assert f"Link {newest - 3} " in str(await broken(conn))


async def test_a_chain_is_late_when_it_stands_still_over_looks_and_not_after_a_pause_of_all_workers(
    pool: Pool,
) -> None:
    async with transaction(pool) as conn:
        await write(conn, "a")
    await tamper(pool, "update audit_queue set queued_at = now() - interval '10 minutes'")
    now_s, pace = 1000.0, Pace()

    async def look(later_s: float) -> str | None:
        nonlocal now_s
        now_s += later_s
        async with connection(pool) as conn:
            assert await broken(conn) is None
            return pace.late(await head(conn), now_s)

    assert [await look(later_s) for later_s in (0, 180)] == [None, None]
    assert "stood still for 6 minutes while 11 rows wait" in str(await look(180))
    await append_pending(pool, most=1)
    assert await look(180) is None
    while await append_pending(pool):
        pass
    assert await look(3600) is None
    async with transaction(pool) as conn:
        await write(conn, "b")
    assert await look(3600) is None  # the rows are young


async def test_the_whole_chain_is_verified_once_a_day_and_what_was_found_is_kept(pool: Pool) -> None:
    await written(pool, "a")
    found = await check_if_due(pool)
    assert found is not None
    assert found["ok"]
    assert await check_if_due(pool) is None
    await tamper(
        pool,
        "update audit_checks set checked_at = now() - interval '25 hours'",
        "update decisions set verdict = 'deny'",
    )
    found = await check_if_due(pool)
    assert found is not None
    assert not found["ok"]
    async with connection(pool) as conn:
        assert "found 1 problem in the audit chain" in str(await broken(conn))


async def test_after_a_check_that_failed_a_repair_is_seen_within_the_hour(pool: Pool) -> None:
    await written(pool, "a")
    await tamper(pool, "update audit_chain set hash = sha256(hash) where seq = (select max(seq) from audit_chain)")
    failed = await check_if_due(pool)
    assert failed is not None
    assert not failed["ok"]
    assert await check_if_due(pool) is None
    await tamper(
        pool,
        "delete from audit_chain where seq = (select max(seq) from audit_chain)",
        "delete from switches",
        "update audit_checks set checked_at = now() - interval '61 minutes'",
    )
    async with transaction(pool) as conn:
        await queries.set_pause_switch(conn, is_on=True, by_name="Ann", reason="a")
    while await append_pending(pool):
        pass
    found = await check_if_due(pool)
    assert found is not None
    assert found["ok"], found["problems"]
    async with connection(pool) as conn:
        assert await broken(conn) is None


async def test_a_chain_shorter_than_at_its_last_verification_is_said_at_once(pool: Pool) -> None:
    await written(pool, "a")
    await check_if_due(pool)
    await tamper(pool, "delete from audit_chain where seq > 3")
    async with connection(pool) as conn:
        assert "its end was removed" in str(await broken(conn))
    assert "cut" in whats(await verified(pool))


async def test_a_policy_file_is_kept_when_it_is_another_one(pool: Pool) -> None:
    async def seen(body: bytes) -> bool:
        async with transaction(pool) as conn:
            return await audit.record_policy(conn, body, ["2026-01"], 1, worker="one")

    assert [await seen(body) for body in (b"a", b"a", b"b", b"b", b"a")] == [True, False, True, False, True]
    while await append_pending(pool):
        pass
    assert (await verified(pool))["checked"]["policy_versions"] == 3
    async with connection(pool) as conn:
        assert [one["versions"] for one in await audit.policies(conn)] == [["2026-01"]] * 3
    await tamper(pool, "update policy_versions set body = 'c' where id = 2")
    assert whats(await verified(pool)) == {"edited"}


async def test_operators_acts_are_listed_newest_first_and_paged(pool: Pool) -> None:
    async with transaction(pool) as conn:
        for number in range(5):
            await record(conn, "test", by="Ann", via="console", act="approve", subject=f"dec_{number}", role="decide")
        await record(conn, "live", by="Ann", via="cli", act="approve", subject="dec_live")
        await record(
            conn, audit.EVERYWHERE, by="Bob", via="cli", act="pause", subject="refunds", before={"a": 1}, after={"a": 2}
        )
        first = await listed(conn, ["test"], limit=3)
        assert [one["subject"] for one in first] == ["refunds", "dec_4", "dec_3"]
        assert (first[0]["by"], first[0]["before"], first[0]["after"]) == ("Bob", {"a": 1}, {"a": 2})
        rest = await listed(conn, ["test"], before=first[-1]["id"])
        assert [one["subject"] for one in rest] == ["dec_2", "dec_1", "dec_0"]
        assert [one["subject"] for one in await listed(conn, ["test"], by="Bob")] == ["refunds"]
        assert [one["via"] for one in await listed(conn, ["test"], subject="dec_1", act="approve")] == ["console"]


async def test_what_was_not_done_leaves_no_act(pool: Pool) -> None:
    async def fail() -> None:
        async with transaction(pool) as conn:
            await record(conn, "test", by="Ann", via="cli", act="approve", subject="dec_1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with connection(pool) as conn:
        assert await listed(conn, ["test"]) == []


# the command line --------------------------------------------------------------------------------------------------------


@pytest.fixture
def finalsale(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`finalsale audit …` on this test's books; its exit code."""
    for name in [name for name in os.environ if name.startswith(("FINALSALE_", "STRIPE_", "REDIS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", settings.database_dsn())

    def run(*arguments: str) -> int:
        return main(["audit", *arguments])

    return run


async def at_the_shell(finalsale: Callable[..., int], *arguments: str) -> int:
    """A command has an event loop of its own."""
    return await asyncio.to_thread(finalsale, *arguments)


async def test_verify_exits_0_for_a_whole_chain_1_for_a_broken_one_and_2_where_it_cannot_look(
    pool: Pool, finalsale: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await written(pool, "a")
    assert await at_the_shell(finalsale, "verify") == 0
    assert "The audit chain is whole: 11 links" in capsys.readouterr().out
    await tamper(pool, "update actions set amount_minor = 501")
    assert await at_the_shell(finalsale, "verify") == 1
    assert "actions act_a says something else than when it was chained." in capsys.readouterr().out
    assert await at_the_shell(finalsale, "verify", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["problem_count"], found["problems"][0]["id"]) == (False, 1, "act_a")
    assert await at_the_shell(finalsale, "verify", "--against", "no such file") == 2
    assert "neither a hash" in capsys.readouterr().err
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    assert await at_the_shell(finalsale, "verify", "--json") == 2
    assert json.loads(capsys.readouterr().out)["ok"] is None


async def test_an_export_is_the_same_bytes_again_and_its_digest_shows_a_cut_chain(
    pool: Pool, finalsale: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    await written(pool, "a", "b")
    first, second = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert await at_the_shell(finalsale, "export", str(first)) == 0
    assert await at_the_shell(finalsale, "export", str(second)) == 0
    assert first.read_bytes() == second.read_bytes()
    assert b"she is ill" not in first.read_bytes()
    lines = [json.loads(line) for line in first.read_bytes().splitlines()]
    hash_ = audit.GENESIS
    for line in lines:  # an auditor can follow the chain by the file alone
        names = (line["source"], line["realm"], line["id"])
        hash_ = audit.link(hash_, line["seq"], line["at_us"], *names, bytes.fromhex(line["content"]))
        assert hash_.hex() == line["hash"]
        assert line["row"] is not None
    digest = read_digest(str(first))
    assert digest == read_digest(f"{first}.sha256") == read_digest(f"{len(lines)}:{hash_.hex()}")
    assert (tmp_path / "one.jsonl.sha256").read_text().startswith(hashlib.sha256(first.read_bytes()).hexdigest())
    capsys.readouterr()
    assert await at_the_shell(finalsale, "verify", "--against", str(first)) == 0
    await tamper(pool, f"delete from audit_chain where seq > {len(lines) - 1}", "delete from switches")
    assert await at_the_shell(finalsale, "verify", "--against", str(first)) == 1
    assert "its end was removed" in capsys.readouterr().out


@pytest.mark.parametrize("told", ["", "abc", "1:2", "x" * 64, "/"])
def test_what_is_no_digest_is_refused(told: str) -> None:
    with pytest.raises(DigestUnreadable):
        read_digest(told)


async def test_acts_are_listed_as_a_table_and_as_json(
    pool: Pool, finalsale: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    async with transaction(pool) as conn:
        await record(conn, "test", by="Ann", via="console", act="review.approve", subject="dec_1", reason="twice")
    assert await at_the_shell(finalsale, "list", "--by", "Ann", "--json") == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["by"], one["act"], one["subject"], one["reason"]) == ("Ann", "review.approve", "dec_1", "twice")
    assert await at_the_shell(finalsale, "list", "--act", "none") == 0
    assert "Nobody did anything yet." in capsys.readouterr().out


# what the domain records -------------------------------------------------------------------------------------------------


async def acts(pool: Pool) -> list[tuple[Any, ...]]:
    async with connection(pool) as conn:
        found = await listed(conn, ["test"], limit=None)
    return [(one["act"], one["by"], one["via"], one["subject"]) for one in reversed(found)]


async def test_what_people_do_is_recorded_with_before_and_after(pool: Pool) -> None:
    history = History()
    history.customer()
    sub = history.subscribe()
    history.pay_again(sub.first, MINUTE)
    history.balance_read(DAY, ("invoice_overpaid", -2900, sub.first.invoice))
    await tell(pool, history)
    async with transaction(pool) as conn:
        await review.note(conn, REALMS, "ch_0002", by="Ann", text="looks twice", via="console")
        await review.approve(conn, POLICY, REALMS, "ch_0002", by="Ann", note="yes", via="console")
        await review.pause(conn, on=True, by="Bob", reason="holidays")
        wish = Wish(kind=ActKind.SUSPEND, customer="cus_A", by="Ann", reason="abuse")
        await carry_out(conn, REALMS, wish, via="console")
        made = await tokens.add(conn, "app", frozenset({tokens.Scope.READ}), by="Ann")
        await tokens.rotate(conn, "app", by="Bob")
        await tokens.revoke(conn, made["id"], by="Cleo")
    decision = await pool.fetchval("select id from decisions where subject = 'ch_0002'")
    assert await acts(pool) == [
        ("review.note", "Ann", "console", decision),
        ("review.approve", "Ann", "console", decision),
        ("refunds.pause", "Bob", "cli", "refunds"),
        ("customers.suspend", "Ann", "console", "cus_A"),
        ("token.add", "Ann", "cli", "app"),
        ("token.add", "Bob", "cli", "app"),
        ("token.end", "Bob", "cli", "app"),
        ("token.revoke", "Cleo", "cli", "app"),
    ]
    async with connection(pool) as conn:
        (approved,) = await listed(conn, ["test"], act="review.approve")
        (paused,) = await listed(conn, ["test"], act="refunds.pause")
        secrets = str(await listed(conn, ["test"], limit=None))
    actions = [row["id"] for row in await pool.fetch("select id from actions")]
    assert approved["before"] == {"actions": dict.fromkeys(actions, "proposed")}
    assert (sorted(approved["after"]["planned"]), approved["after"]["approved_by"]) == (sorted(actions), ["Ann"])
    assert (paused["before"], paused["after"], paused["reason"]) == ({"paused": False}, {"paused": True}, "holidays")
    assert made["token"] not in secrets


async def test_events_are_replayed_by_somebody(pool: Pool) -> None:
    await pool.execute(
        """insert into inbox (event_id, realm, type, created_at, payload, state) values
           ('evt_1', 'test', 't', now(), 'x', 'dead'), ('evt_2', 'test', 't', now(), 'x', 'waiting')"""
    )
    async with transaction(pool) as conn:
        assert await replay_events(conn, ids=["evt_1"], by="Ann", via="console") == ["evt_1"]
        assert await replay_events(conn, state="quarantined", by="Ann") == []
        refusals: tuple[dict[str, Any], ...] = ({"ids": ["evt_2"]}, {}, {"ids": ["evt_1"], "state": "dead"})
        for refused in refusals:
            with pytest.raises((NotFound, NotUnderstood)):
                await replay_events(conn, by="Ann", **refused)
    assert await acts(pool) == [
        ("events.replay", "Ann", "console", "evt_1"),
        ("events.replay", "Ann", "cli", "quarantined"),
    ]
