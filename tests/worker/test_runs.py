"""A run: one at a time, taken up where it stopped, and nothing it staged is lost or told twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from handlers.customer import Charge, ChargeId, CustomerId, Refund, decode
from reconcile.report import ListRead, Unread
from reconcile.windows import SLICES, ScanPlan, Window, scan_plan
from worker.db import Pool
from worker.errors import DatabaseUnavailable
from worker.runs import AnotherRun, Run, certificate, open_run, unread_of
from worker.settings import Settings

NOW = 1_790_000_000
WINDOW = Window(NOW - 86_400, NOW)


async def plan() -> ScanPlan:
    return scan_plan([WINDOW], NOW)


@asynccontextmanager
async def opened(settings: Settings, **over: Any) -> AsyncIterator[Run]:
    asked: dict[str, Any] = {"kind": "nightly", "asked": "", "dry_run": False, "plan": plan, "realm": "test"} | over
    async with open_run(settings.database_dsn(), **asked) as run:
        yield run


async def is_free(settings: Settings) -> bool:
    try:
        async with opened(settings):
            return True
    except AnotherRun:
        return False


async def end_session(pool: Pool, run: Run) -> None:
    await pool.execute("select pg_terminate_backend($1)", await run.conn.fetchval("select pg_backend_pid()"))


def refund(as_of: int, status: str, **over: Any) -> Refund:
    told: dict[str, Any] = {
        "id": "re_1",
        "charge": ChargeId("ch_1"),
        "amount_minor": 100,
        "currency": "usd",
        "status": status,
        "created": NOW - 50,
    }
    return Refund(as_of=as_of, **(told | over))


async def test_two_runs_over_one_realm_never_overlap_and_the_second_hears_who_is_at_it(settings: Settings) -> None:
    async with opened(settings) as first:
        with pytest.raises(AnotherRun, match=first.id):
            async with opened(settings):
                pass
        async with opened(settings, realm="live") as other:
            assert other.id != first.id
    async with opened(settings) as again:
        assert (again.id, again.resumed) == (first.id, True)


async def test_a_run_whose_connection_dies_holds_nothing_and_can_write_nothing(settings: Settings, pool: Pool) -> None:
    async with opened(settings) as run:
        await end_session(pool, run)
        with pytest.raises(DatabaseUnavailable):
            await run.stage("compare")
        async with opened(settings) as again:
            assert (again.id, again.resumed) == (run.id, True)
            with pytest.raises(DatabaseUnavailable):
                await run.finish("done", 0, b"{}")
    assert await pool.fetchval("select attempts from runs") == 2


async def test_a_run_is_cancelled_and_its_lock_is_free(settings: Settings) -> None:
    inside = asyncio.Event()

    async def forever() -> None:
        async with opened(settings):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(forever())
    await inside.wait()
    assert not await is_free(settings)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await is_free(settings)


async def test_an_unfinished_run_is_taken_up_only_by_the_same_question_of_the_same_day(
    settings: Settings, pool: Pool
) -> None:
    async with opened(settings, kind="asked", asked="7d") as first:
        pass
    async with opened(settings, kind="asked", asked="7d") as second:
        assert (second.id, second.resumed, second.plan) == (first.id, True, await plan())
    async with opened(settings, kind="asked", asked="7d", dry_run=True) as dry:
        assert (dry.resumed, dry.dry_run) == (False, True)
    assert (
        await pool.fetchval("select state from runs where id = $1", first.id) == "running"
    )  # it can still be taken up
    await pool.execute("update runs set started_at = now() - interval '25 hours' where id = $1", dry.id)
    async with opened(settings, kind="asked", asked="7d", dry_run=True) as fresh:
        assert (fresh.resumed, fresh.id == dry.id) == (False, False)
        await fresh.finish("incomplete", 2, b"{}")
    async with opened(settings, kind="asked", asked="7d", dry_run=True) as last:
        assert not last.resumed
    states = {row["id"]: row["state"] for row in await pool.fetch("select id, state from runs")}
    assert states == {first.id: "running", dry.id: "abandoned", fresh.id: "incomplete", last.id: "running"}


async def test_every_second_of_the_plan_has_a_slice(settings: Settings, pool: Pool) -> None:
    async with opened(settings) as run:
        rows = await pool.fetch(
            "select list, min(lo) as lo, max(hi) as hi, sum(hi - lo) as seconds from slices group by list"
        )
        told = {row["list"]: (row["lo"], row["hi"], row["seconds"]) for row in rows}
        assert told == {name: (w[0].lo, w[0].hi, w[0].hi - w[0].lo) for name, w in run.plan.lists.items()}
        assert await pool.fetchval("select count(*) from slices where list = 'charges'") == SLICES


async def test_tellings_of_one_object_are_staged_as_one(settings: Settings, pool: Pool) -> None:
    async with opened(settings) as run:
        for told, listed in (
            ([refund(NOW, "succeeded")], True),
            ([refund(NOW - 10, "pending", action="act_1"), refund(NOW - 5, "pending")], False),
        ):
            async with run.transaction():
                await run.stage_facts(told, listed=listed)
        row = await pool.fetchrow("select * from found")
        assert (row["id"], row["kind"], row["listed"], row["as_of"], row["state"]) == (
            "re_1",
            "refund",
            True,
            NOW,
            "staged",
        )
        staged = decode(row["body"])
        assert isinstance(staged, Refund)
        assert (staged.status, staged.charge) == ("succeeded", "ch_1")


async def test_a_staged_object_keeps_its_customer(settings: Settings, pool: Pool) -> None:
    charge = Charge(
        id="ch_1",
        as_of=NOW - 5,
        customer=CustomerId("cus_1"),
        amount_minor=1,
        captured_minor=1,
        currency="usd",
        status="succeeded",
        captured=True,
        created=NOW - 50,
    )
    async with opened(settings) as run:
        async with run.transaction():
            await run.stage_facts([charge, refund(NOW, "succeeded")], listed=False)
        rows = {row["id"]: (row["customer"], row["listed"]) for row in await pool.fetch("select * from found")}
        assert rows == {"ch_1": ("cus_1", False), "re_1": (None, False)}


async def test_what_fails_halfway_leaves_nothing(settings: Settings, pool: Pool) -> None:
    async with opened(settings) as run:

        async def fails() -> None:
            async with run.transaction():
                await run.stage_facts([refund(NOW, "succeeded")], listed=True)
                await run.unread("charges", "ch_1", "no reason")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fails()
        assert await pool.fetchval("select count(*) from found") == 0
        assert await unread_of(run.conn, run.id, 10) == []


async def test_the_certificate_counts_everything_that_is_not_read(settings: Settings) -> None:
    async def two() -> ScanPlan:
        return ScanPlan(
            upper=NOW, windows=(WINDOW,), lists={"refunds": (Window(0, 100),), "charges": (Window(0, 100),)}
        )

    async with opened(settings, plan=two) as run:
        async with run.transaction():
            await run.unread("charges", "ch_1", "charge.amount: is missing")
            await run.unread("customers", "cus_1", "no answer")
        await run.conn.execute(
            "update slices set state = 'done', pages = 2, objects = 150, retries = 1, first_id = 'ch_9', last_id = 'ch_2' "
            "where list = 'charges'"
        )
        nothing: dict[str, Any] = {
            "pages": 0,
            "objects": 0,
            "first_id": None,
            "last_id": None,
            "retries": 0,
            "unread": 1,
        }
        assert await certificate(run.conn, run.id) == [
            ListRead(list="customers", slices=0, **nothing),
            ListRead(
                list="charges", slices=1, pages=2, objects=150, retries=1, first_id="ch_9", last_id="ch_2", unread=1
            ),
            ListRead(list="refunds", slices=1, **nothing),
        ]
        assert await unread_of(run.conn, run.id, 1) == [Unread("charges", "ch_1", "charge.amount: is missing")]


async def test_a_new_run_forgets_what_earlier_ones_read_but_the_newest_dry_run_stays_whole(
    settings: Settings, pool: Pool
) -> None:
    ended: list[str] = []
    for number, dry in enumerate((True, True, False)):
        async with opened(settings, kind="asked", asked=str(number), dry_run=dry) as run:
            async with run.transaction() as conn:
                await run.stage_facts([refund(NOW, "succeeded")], listed=True)
                await run.unread("refunds", "re_2", "no answer")
                await conn.execute("insert into scanned values ($1, 're_1', 'refund', 1, 1, 1)", run.id)
            await run.finish("incomplete", 2, b"{}")
            ended.append(run.id)
    async with opened(settings, kind="asked", asked="new"):
        kept = {row["run"] for row in await pool.fetch("select run from found")}
        assert (kept, await pool.fetchval("select count(*) from scanned")) == ({ended[1]}, 0)
        assert await pool.fetchval("select count(*) from unread") == 3


async def test_a_database_that_is_away_is_said_to_be(settings: Settings) -> None:
    away = settings.database_dsn().partition("?")[0] + "?host=127.0.0.1&port=1"
    with pytest.raises(DatabaseUnavailable):
        async with open_run(away, "test", kind="nightly", asked="", dry_run=False, plan=plan):
            pass


async def test_the_lock_of_a_run_is_seen_by_its_name(settings: Settings, pool: Pool) -> None:
    async with opened(settings):
        names = {row[0] for row in await pool.fetch("select application_name from pg_stat_activity")}
        assert "finalsale nightly" in names

    async def gone() -> bool:
        return not await pool.fetchval(
            "select count(*) from pg_stat_activity where application_name = 'finalsale nightly'"
        )

    seen = False
    for _ in range(50):
        seen = await gone()
        if seen:
            break
        await asyncio.sleep(0.02)
    assert seen
