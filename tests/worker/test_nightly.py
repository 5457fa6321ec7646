"""When a night is due: once, on whichever worker takes it; caught up when missed, taken up again when it failed."""

from __future__ import annotations

import asyncio
import time
from datetime import date, timedelta

import msgspec

from handlers.events import Gap
from reconcile.report import Report
from reconcile.windows import DAY, RECENT
from sandbox import Sandbox
from tests.handlers.history import POLICY
from worker.db import Pool, transaction
from worker.gaps import note_gaps
from worker.jobs import WorkerProcess
from worker.judging import Court
from worker.nightly import run_if_due
from worker.settings import Settings


async def purchases(sandbox: Sandbox, *, days_ago: float = 0.1) -> None:
    """Twenty people who each bought one subscription."""
    books = sandbox.books
    books.set_clock(int(time.time() - days_ago * DAY), running=False)
    price = books.new_price(books.new_product("FluxArt AI")["id"], "usd", 2900, interval="month", id_="price_basic")
    for number in range(20):
        customer = books.new_customer(email=f"{number}@example.com", metadata={}, fingerprint=f"card{number}")
        books.subscribe(customer, [(price, 1)], metadata={"user_id": f"u{number}"})
    books.set_clock(int(time.time()), running=True)


async def night(settings: Settings, pool: Pool, sandbox: Sandbox) -> list[Report]:
    """One look of a worker's nightly loop, with its other loops running beside it."""
    served = settings.model_copy(update={"stripe_api_base": sandbox.url})
    worker = WorkerProcess(served)
    worker.court = Court(policy=POLICY, refunds="review")
    worker.use(pool)
    # an earlier night was done here: a deployment that never had one begins with the next
    if not await pool.fetchval("select count(*) from schedule_runs"):
        await pool.execute(
            "insert into schedule_runs (name, due_at, state) values ('reconcile', now() - interval '40 days', 'done')"
        )
    worker.gateway.page_attempts = 3
    await pool.execute("insert into workers (id, role, detail) values (gen_random_uuid(), 'worker', 'schema 0003')")
    stop = asyncio.Event()

    async def work() -> None:
        while not stop.is_set():
            await worker.serve_once()
            await asyncio.sleep(0.05)

    working = asyncio.create_task(work())
    try:
        return await run_if_due(pool, worker.gateway, served, worker.court)
    finally:
        stop.set()
        await working
        await pool.execute("delete from workers")
        await worker.gateway.aclose()


async def test_a_night_takes_in_what_no_webhook_told_and_a_second_one_is_not_due(
    settings: Settings, pool: Pool
) -> None:
    async with Sandbox() as stripe:
        await purchases(stripe)
        (report,) = await night(settings, pool, stripe)
        assert (report.kind, report.imported["charge"], report.unread_total) == ("nightly", 20, 0)
        assert report.until - report.windows[-1][0] == RECENT
        assert await pool.fetchval("select count(*) from objects where kind = 'charge'") == 20
        assert await pool.fetchval("select state from schedule_runs order by due_at desc limit 1") == "done"
        assert await night(settings, pool, stripe) == []


async def test_nights_that_were_missed_are_made_up_for(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        await purchases(stripe)
        await night(settings, pool, stripe)
        await pool.execute("update schedule_runs set due_at = due_at - $1::interval", timedelta(days=4))
        four = date.fromisoformat(
            (await pool.fetchval("select asked from runs")).removeprefix("night of ")
        ) - timedelta(days=4)
        await pool.execute("update runs set asked = $1", f"night of {four}")
        (report,) = await night(settings, pool, stripe)
        assert report.until - report.windows[-1][0] >= RECENT + 3 * DAY


async def test_a_night_that_could_not_read_everything_is_taken_up_again_where_it_stopped(
    settings: Settings, pool: Pool
) -> None:
    async with Sandbox() as stripe:
        await purchases(stripe)
        stripe.configure({"faults": {"rules": [{"kind": "502_before", "rate": 1.0, "path": "/v1/charges"}]}})
        (report,) = await night(settings, pool, stripe)
        assert report.exit == 2
        assert await pool.fetchval("select state from schedule_runs order by due_at desc limit 1") == "incomplete"
        assert await pool.fetchval("select kind from alerts where resolved_at is null") == "nightly_incomplete"
        assert await night(settings, pool, stripe) == []  # not at once
        stripe.configure({"faults": {"rules": []}})
        await pool.execute("update schedule_runs set started_at = started_at - interval '11 minutes'")
        (again,) = await night(settings, pool, stripe)
        assert (again.run, again.unread_total, again.exit) == (report.run, 0, 0)
        assert await pool.fetchval("select attempts from runs where id = $1", report.run) == 2
        assert (
            await pool.fetchval("select count(*) from alerts where kind = 'nightly_incomplete' and resolved_at is null")
            == 0
        )


async def test_a_gap_that_stripe_told_of_is_read_at_once_and_closed(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        await purchases(stripe)
        await night(settings, pool, stripe)
        now = int(time.time())
        await pool.execute("delete from objects where id = (select min(id) from objects where kind = 'charge')")
        async with transaction(pool) as conn:
            await note_gaps(conn, [("test", "evt_gap", Gap(since=now - DAY, until=now - 600), None)])
        (report,) = await night(settings, pool, stripe)
        assert report.asked.startswith("gap ")
        assert await pool.fetchval("select count(*) from objects where kind = 'charge'") == 20
        assert await night(settings, pool, stripe) == []


async def test_the_report_is_kept_as_it_was_answered(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        await purchases(stripe)
        (report,) = await night(settings, pool, stripe)
        kept = await pool.fetchval("select report from runs where id = $1", report.run)
        assert msgspec.json.decode(kept, type=Report) == report


async def test_a_new_deployment_begins_with_the_next_night(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        await purchases(stripe)
        served = settings.model_copy(update={"stripe_api_base": stripe.url})
        worker = WorkerProcess(served)
        worker.use(pool)
        assert await run_if_due(pool, worker.gateway, served, worker.court) == []
        assert await pool.fetchval("select count(*) from runs") == 0
        await pool.execute("update schedule_runs set due_at = due_at - interval '1 day'")
        await worker.gateway.aclose()
    async with Sandbox() as stripe:
        await purchases(stripe)
        (report,) = await night(settings, pool, stripe)
        assert report.kind == "nightly"
