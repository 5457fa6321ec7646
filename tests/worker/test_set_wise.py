"""The statements that look at all rows at once: both sides of the comparison, and paid periods that overlap."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from handlers.customer import at
from handlers.events import read_object
from handlers.terms import SHIPPED_POLICY, load_policy
from reconcile.windows import LISTS, ScanPlan, Window, scan_plan
from sandbox import Sandbox
from worker.db import Pool, columns, queries
from worker.judging import Court
from worker.runs import open_run
from worker.settings import Settings
from worker.settle import settle
from worker.unjudged import unjudged_copies

NOW = 1_790_000_000
DAY = 86_400
WINDOW = Window(NOW - DAY, NOW)
INSIDE, OUTSIDE = NOW - 100, NOW - 9 * DAY
COURT = Court(policy=load_policy(SHIPPED_POLICY), refunds="review")


async def plan() -> ScanPlan:
    return scan_plan([WINDOW], NOW)


BOOKED = [  # id, created, as_of, digest, unknown at Stripe
    ("equal", INSIDE, 5, 1, False),
    ("unshown", INSIDE, 5, 1, False),
    ("known_as_unknown", INSIDE, 5, 1, True),
    ("unshown_outside", OUTSIDE, 5, 1, False),
    ("otherwise", INSIDE, 5, 1, False),
    ("otherwise_but_staged", INSIDE, 5, 1, False),
    ("younger_here", INSIDE, 99, 1, False),
    ("equal_outside", OUTSIDE, 5, 1, False),
    ("otherwise_outside", OUTSIDE, 5, 1, False),
]
LISTED = [  # id, created, as_of, digest
    ("equal", INSIDE, 10, 1),
    ("otherwise", INSIDE, 10, 2),
    ("otherwise_but_staged", INSIDE, 10, 2),
    ("younger_here", INSIDE, 10, 2),
    ("equal_outside", OUTSIDE, 10, 1),
    ("otherwise_outside", OUTSIDE, 10, 2),
    ("missing", INSIDE, 10, 1),
    ("missing_but_staged", INSIDE, 10, 1),
]


async def test_everything_that_is_not_equal_on_both_sides_and_not_staged_is_named_once(
    settings: Settings, pool: Pool
) -> None:
    await pool.executemany(
        "insert into objects (realm, id, kind, created, as_of, digest, body, unknown_since)"
        " values ('test', $1, 'charge', $2, $3, $4, 'b', case when $5 then now() end)",
        BOOKED,
    )
    async with open_run(settings.database_dsn(), "test", kind="asked", asked="x", dry_run=True, plan=plan) as run:
        await pool.executemany(
            "insert into scanned (run, id, kind, created, as_of, digest) values ($1, $2, 'charge', $3, $4, $5)",
            [(run.id, *row) for row in LISTED],
        )
        await pool.executemany(
            "insert into found (run, id, kind, as_of, listed, body) values ($1, $2, 'charge', 10, true, 'f')",
            [(run.id, "otherwise_but_staged"), (run.id, "missing_but_staged")],
        )
        kinds = sorted({listing.kind for listing in LISTS.values()})
        asked = ([WINDOW.lo], [WINDOW.hi], "test", kinds, run.id, 100)
        rows = await run.conn.fetch(queries.unequal_sides.sql, *asked)
        fewer = await run.conn.fetch(queries.unequal_sides.sql, *asked[:-1], 2)
    told = {row["id"]: (row["kind"], row["unshown"], row["body"]) for row in rows}
    assert len(rows) == 4
    assert told == {
        "unshown": ("charge", True, b"b"),
        "otherwise": ("charge", False, None),
        "otherwise_outside": ("charge", False, None),
        "missing": ("charge", False, None),
    }
    assert next(row["id"] for row in fewer) == "unshown"


@pytest.mark.parametrize(
    ("decided", "named"),
    [((), ["cus_1"]), (("ch_month",), ["cus_1"]), (("ch_month", "ch_later"), []), (("ch_year",), [])],
)
async def test_an_overlap_counts_unless_a_decision_is_about_it(
    pool: Pool, decided: tuple[str, ...], named: list[str]
) -> None:
    """A year, and two months beside it that do not touch each other: a decision about the one says nothing of the other."""
    periods = [
        ("ch_year", "prod", 0, 365),
        ("ch_month", "prod", 30, 60),
        ("ch_later", "prod", 90, 120),
        ("ch_other", "another", 90, 120),
    ]
    rows = [(id_, thing, "cus_1", "cus_1", 100, "usd", 0, start, end) for id_, thing, start, end in periods]
    rows += [(f"ch_{n}", "prod", "cus_2", "cus_2", 100, "usd", 0, 30 * n, 30 * n + 30) for n in range(3)]
    await pool.execute(queries.save_paid_periods.sql, *columns(rows), "test")
    for subject in decided:
        await pool.execute(
            "insert into decisions (id, realm, subject, revision, customer, clause, rule, verdict, policy_version, fingerprint,"
            " body) values ($1, 'test', $1, 1, 'cus_1', '4.3', 'D3', 'review', '1', '', '')",
            subject,
        )
    assert [row["person"] for row in await pool.fetch(queries.unjudged_overlaps.sql, "test")] == named


async def test_a_copy_that_lost_its_decision_is_found_and_one_that_has_it_is_not(pool: Pool) -> None:
    facts, now = await bought_twice()
    async with pool.acquire() as conn:
        async with conn.transaction():
            await settle(conn, COURT, "test", facts)
        assert [f async for f in unjudged_copies(conn, "test", COURT, at(now))] == []
        about = await conn.fetchval("select subject from decisions")
        await conn.execute(
            "set session_replication_role = replica; delete from actions; delete from decisions; reset session_replication_role"
        )
        found = [f async for f in unjudged_copies(conn, "test", COURT, at(now))]
    assert [(f.object, f.what, f.class_, f.clause, str(f.amount)) for f in found] == [
        (about, "copy_unjudged", "auto", "4.3", "29.00 USD")
    ]


async def bought_twice() -> tuple[list[Any], int]:
    """What Stripe tells of one customer with the same subscription twice, and when."""
    async with Sandbox(seed=7, clock=time.time() - DAY, running=False) as sandbox:
        books = sandbox.books
        price = books.new_price(books.new_product("FluxArt AI")["id"], "usd", 2900, interval="month", id_="price_basic")
        customer = books.new_customer(email="x@example.com", metadata={"user_id": "u"}, fingerprint="card")
        for _ in range(2):
            books.subscribe(customer, [(price, 1)], metadata={"user_id": "u"})
            books.advance(60)
        kinds = ("customer", "subscription", "invoice", "payment_intent", "invoice_payment", "charge")
        told = [read_object(msgspec.json.encode(each), books.now()) for kind in kinds for each in books.all(kind)]
        return told, books.now()
