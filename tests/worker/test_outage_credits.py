"""Declared outages on real books (4.2): preview, confirmation, once for each subscription, also for those learned of later."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from handlers.customer import at
from tests.handlers.history import DAY, MONTH, T0, History
from tests.worker.books import REALM, REALMS, court, tell
from worker import outages
from worker.db import Pool, queries, transaction
from worker.reading import NotUnderstood
from worker.review import ActRefused
from worker.settle import settle

BEGINS, ENDS = at(T0 + 3 * DAY), at(T0 + 6 * DAY)  # three of thirty days: a tenth of 500 credits
WHO = {"by": "Ann", "reason": "the image models were down"}


def customer(name: str) -> History:
    history = History()
    if name != "cus_A":
        history._count = dict.fromkeys(("sub", "in", "ch", "pi", "inpay"), 50)
    history.customer(name)
    history.subscribe(customer=name)
    return history


async def declare(pool: Pool, confirm: str | None = None, **plans: list[str]) -> dict[str, object]:
    async with transaction(pool) as conn:
        told = plans.get("plans", [])
        shown = await outages.preview(conn, court(), REALM, BEGINS, ENDS, told)
        return await outages.declare(conn, REALM, BEGINS, ENDS, told, confirm=confirm or shown["id"], **WHO)


async def judge_woken(pool: Pool) -> int:
    rows = await pool.fetch(queries.due_wakeups.sql, 100)
    async with transaction(pool) as conn:
        await settle(conn, court(), REALM, (), wake=[row["customer"] for row in rows])
    return len(rows)


async def service_credits(pool: Pool) -> dict[str, int]:
    rows = await pool.fetch("select customer, granted from lots where kind = 'service' order by customer")
    return {row["customer"]: row["granted"] for row in rows}


async def test_the_preview_names_everybody_with_credits_and_arithmetic_and_writes_nothing(pool: Pool) -> None:
    await tell(pool, customer("cus_A"))
    async with transaction(pool) as conn:
        shown = await outages.preview(conn, court(), REALM, BEGINS, ENDS, [])
    assert (shown["subscriptions"], shown["customers"], shown["credits"], shown["declared"]) == (1, 1, 50, False)
    assert [(row["customer"], row["credits"]) for row in shown["who"]] == [("cus_A", 50)]
    assert "500" in shown["who"][0]["why"]
    assert await pool.fetchval("select count(*) from outages") == 0
    assert await service_credits(pool) == {}


async def test_what_was_confirmed_is_given_once_however_often_it_is_declared(pool: Pool) -> None:
    await tell(pool, customer("cus_A"))
    first = await declare(pool)
    assert first["declared_now"]
    assert await judge_woken(pool) == 1
    second = await declare(pool)
    assert (second["id"], second["declared_now"]) == (first["id"], False)
    await judge_woken(pool)
    assert await service_credits(pool) == {"cus_A": 50}
    async with transaction(pool) as conn:
        (row,) = await outages.declared(conn, REALMS)
    assert (row["subscriptions"], row["credits"], row["by"], row["still_to_judge"]) == (1, 50, "Ann", 0)


async def test_a_subscription_learned_of_later_gets_its_credits_too(pool: Pool) -> None:
    await tell(pool, customer("cus_A"))
    await declare(pool)
    await judge_woken(pool)
    await tell(pool, customer("cus_B"))
    assert await service_credits(pool) == {"cus_A": 50, "cus_B": 50}


async def test_only_the_named_plans_count(pool: Pool) -> None:
    await tell(pool, customer("cus_A"))
    async with transaction(pool) as conn:
        shown = await outages.preview(conn, court(), REALM, BEGINS, ENDS, ["price_pro"])
        also = await outages.preview(conn, court(), REALM, BEGINS, ENDS, ["price_pro", "price_basic"])
    assert (shown["credits"], also["credits"]) == (0, 50)
    assert shown["id"] != also["id"]


async def test_what_was_not_previewed_has_no_reason_or_is_not_over_is_refused(pool: Pool) -> None:
    await tell(pool, customer("cus_A"))
    with pytest.raises(ActRefused, match="--confirm out_"):
        await declare(pool, confirm="out_0000000000000000")
    async with transaction(pool) as conn:
        shown = await outages.preview(conn, court(), REALM, BEGINS, ENDS, [])
        with pytest.raises(ActRefused, match="--reason"):
            await outages.declare(conn, REALM, BEGINS, ENDS, [], confirm=shown["id"], by="Ann", reason=" ")
        with pytest.raises(NotUnderstood, match="before it begins"):
            await outages.preview(conn, court(), REALM, ENDS, BEGINS, [])
        with pytest.raises(NotUnderstood, match="not over yet"):
            await outages.preview(conn, court(), REALM, BEGINS, datetime.now(BEGINS.tzinfo) + timedelta(days=1), [])
    assert await pool.fetchval("select count(*) from outages") == 0


async def test_half_a_credit_is_none_and_a_subscription_that_ended_before_gets_nothing(pool: Pool) -> None:
    history = customer("cus_A")
    history.change("sub_0001", when=2 * DAY, status="canceled", ended_at=T0 + 2 * DAY)
    await tell(pool, history)
    async with transaction(pool) as conn:
        assert (await outages.preview(conn, court(), REALM, BEGINS, ENDS, []))["credits"] == 0
        moment = await outages.preview(conn, court(), REALM, at(T0 + DAY), at(T0 + DAY + MONTH // 600), [])
    assert moment["credits"] == 0
