"""What judging writes about accounts in real books: nothing twice, nothing lost, nothing locked for ever, whoever else is at it."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import datetime
from typing import Any

import pytest

from handlers.customer import Subscription
from tests.handlers.history import DAY, T0, Bought, History
from tests.handlers.test_credits import PACK, Story, without_credits
from tests.worker.books import REALM, court, tell
from worker.db import Pool, queries, transaction
from worker.jobs import WorkerProcess
from worker.judging import Court
from worker.settings import Settings
from worker.settle import settle


async def sums(pool: Pool) -> dict[str, tuple[int, ...]]:
    """granted, consumed, expired, forfeited, taken back, remaining, by lot."""
    rows = await pool.fetch(
        "select id, granted, consumed, expired, forfeited, taken_back, remaining from lots order by id"
    )
    return {row[0]: tuple(row)[1:] for row in rows}


async def consume(pool: Pool, key: str, amount: int, customer: str = "cus_A") -> str:
    row = await pool.fetchrow("select outcome from consume_credits($1, $2, $3, $4)", REALM, customer, key, amount)
    assert row is not None
    return str(row["outcome"])


async def settled(pool: Pool, by: Court, facts: list[Any], wake: list[str] | None = None) -> None:
    async with transaction(pool) as conn:
        await settle(conn, by, REALM, facts, wake=wake or [])


# a grant stays --------------------------------------------------------------------------------------------------------------


async def test_a_policy_file_without_a_price_takes_nothing_back_in_the_books(pool: Pool) -> None:
    s = Story()
    s.customer()
    sub = s.subscribe(0, extra=(PACK,))
    await tell(pool, s)
    before = await sums(pool)
    assert [row[0] for row in before.values()] == [500, 100]
    await settled(pool, court(without_credits()), [], ["cus_A"])
    assert await sums(pool) == before
    s.end(sub, 10 * DAY)
    await tell(pool, s, court(without_credits()))
    assert [row[3] for row in (await sums(pool)).values()] == [500, 0]


async def test_an_event_with_the_first_lines_of_an_invoice_takes_nothing_back_in_the_books(pool: Pool) -> None:
    s = Story()
    s.customer()
    sub = s.subscribe(0, extra=(PACK,))
    await tell(pool, s)
    before = await sums(pool)
    s.change(sub.first.invoice, lines=s.latest[sub.first.invoice].lines[:1], lines_complete=False)
    await tell(pool, s)
    assert await sums(pool) == before
    assert await pool.fetchval("select count(*) from entries") == 2


# consumptions beside judgements --------------------------------------------------------------------------------------------


def subscribed(months: int) -> tuple[History, Bought]:
    """A customer with one paid lot for each month."""
    history = History()
    history.customer()
    sub = history.subscribe(0)
    for _ in range(months - 1):
        history.renew(sub)
    return history, sub


async def test_a_closing_and_a_consumption_lock_lots_in_one_order(pool: Pool) -> None:
    """One settling forfeits the lots of a later subscription and sets an end to those of an earlier one, while the app
    consumes: it holds the first lot already, and wants the others."""
    history, first = subscribed(2)
    second = history.subscribe(40 * DAY)
    await tell(pool, history)
    lots = sorted(await sums(pool))
    history.schedule_end(first, 50 * DAY)
    history.end(second, 50 * DAY)
    async with pool.acquire() as app, app.transaction():
        lock = "select 1 from lots where id = $1 for update"
        await app.execute(lock, lots[0])
        judging = asyncio.create_task(tell(pool, history))
        await asyncio.sleep(0.3)
        for lot in lots[1:]:
            await asyncio.wait_for(app.execute(lock, lot), 3)
    await judging
    assert [row[3] for row in (await sums(pool)).values()] == [0, 0, 500]
    assert await pool.fetchval("select count(*) from lots where ends_at is not null") == 3


async def test_consumptions_and_judgements_at_once_break_no_sum(pool: Pool) -> None:
    """The end of a subscription comes and is undone, over and over, while the app consumes from all its lots."""
    history, sub = subscribed(6)
    await tell(pool, history)
    rng, outcomes = random.Random(5), []

    async def judging() -> None:
        for n in range(30):
            ended = T0 + 200 * DAY if n % 2 else None
            history.change(sub.id, when=400 * DAY + n, status="canceled" if ended else "active", ended_at=ended)
            await tell(pool, history)

    async def consuming(worker: int) -> None:
        for n in range(50):
            outcomes.append(await consume(pool, f"k{worker}.{n % 40}", 1 + (worker * n) % 7))
            await asyncio.sleep(rng.random() / 100)

    await asyncio.gather(judging(), *(consuming(w) for w in range(4)))
    assert "consumed" in outcomes
    rows = await pool.fetch(
        "select l.remaining, (select sum(amount) from entries e where e.lot = l.id) as posted, l.consumed from lots l"
    )
    assert all(row["remaining"] == row["posted"] >= 0 for row in rows)
    consumed = sum(row["consumed"] for row in rows)
    assert consumed == await pool.fetchval("select coalesce(sum(amount), 0) from consumptions") > 0


async def test_one_key_asked_for_by_many_at_once_consumes_once(pool: Pool) -> None:
    history, _ = subscribed(2)
    await tell(pool, history)
    outcomes = await asyncio.gather(*(consume(pool, "k", 600) for _ in range(8)))
    assert sorted(outcomes) == ["consumed", *["repeated"] * 7]
    assert [row[1] for row in (await sums(pool)).values()] == [500, 100]


async def test_a_lot_that_got_credits_back_while_a_consumption_waited_is_left_out_of_it(pool: Pool) -> None:
    """It is under no lock of the consumption's, and whoever closes it anew must not be overtaken."""
    history, _ = subscribed(2)
    gone = history.subscribe(40 * DAY)
    history.end(gone, 41 * DAY)
    await tell(pool, history)
    lots = sorted(await sums(pool))
    async with pool.acquire() as other, other.transaction():
        await other.execute("select 1 from lots where id = $1 for update", lots[0])
        asking = asyncio.create_task(consume(pool, "k", 1200))
        await asyncio.sleep(0.3)
        history.change(gone.id, when=42 * DAY, status="active", ended_at=None)
        await tell(pool, history)
    assert await asking == "insufficient"
    assert await consume(pool, "k", 1200) == "consumed"


# wake-ups ------------------------------------------------------------------------------------------------------------------


async def test_a_look_up_that_stripe_never_answers_wakes_no_file_again_and_again(
    pool: Pool, settings: Settings
) -> None:
    """An unknown subscription, unread session lines, a trial nobody tells of any more: asked for, and then waited for."""
    s = Story()
    s.customer()
    unknown = s.subscribe(0)
    s.forget(unknown.id)
    s.checkout(0, read=False)
    s.trial(7)
    await tell(pool, s)
    process = WorkerProcess(settings)
    process.pool = pool
    for _ in range(4):
        await process._sweep_once()
        await pool.execute("update lookups set state = 'failed', error = 'no such object' where state = 'waiting'")
    await process.gateway.aclose()
    assert await pool.fetchval("select count(*) from wakeups where due_at <= now()") == 0
    assert await pool.fetchval("select max(attempts) from lookups") == 0
    assert await pool.fetchval("select count(*) from entries where kind = 'expired'") == 1


@pytest.mark.parametrize("ahead_days", [-30, 0, 400])
async def test_an_overdue_lot_is_judged_again_whatever_the_rehearsals_clock_says(
    pool: Pool, settings: Settings, ahead_days: int
) -> None:
    await pool.execute("insert into rehearsal_clock (ahead) values (make_interval(days => $1))", ahead_days)
    moment: datetime = await pool.fetchval("select moment('test')")
    s = Story()
    s.customer()
    s.trial(7, int(moment.timestamp()) - T0 - 6 * DAY)
    await tell(pool, s)
    await pool.execute("delete from wakeups")
    await pool.execute("update rehearsal_clock set ahead = ahead + interval '2 days'")
    await queries.wake_overdue(pool)
    process = WorkerProcess(settings)
    process.pool = pool
    await process._sweep_once()
    await process.gateway.aclose()
    assert [row[2] for row in (await sums(pool)).values()] == [50]


# many customers --------------------------------------------------------------------------------------------------------------


async def test_two_hundred_customers_of_one_batch_are_judged_in_seconds(pool: Pool) -> None:
    history = History()
    for n in range(200):
        customer = history.customer(f"cus_{n:03d}")
        sub = history.subscribe(n, customer=customer)
        history.refund(sub.charge, n + DAY)
    began = time.perf_counter()
    await tell(pool, history)
    history.tellings = [s for s in history.latest.values() if isinstance(s, Subscription)]
    for sub_ in list(history.tellings):
        history.change(sub_.id)
    await tell(pool, history)
    assert time.perf_counter() - began < 8
    assert await pool.fetchval("select count(*) from lots") == 200
    assert await pool.fetchval("select count(*) from alerts where resolved_at is null") == 200
