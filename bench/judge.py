"""A million payments compared with what Stripe listed, and judged, beside one plain pass over them in Postgres.

Ours is what a nightly run does once the pages are read: every listed row held against the books by digest and every row of the
books against the lists, overlapping paid periods that no decision is about, and the judging of whoever has some. The baseline
is one window with aggregates over the same payments, on the same session.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import sys
import time
from typing import Any

import asyncpg
import msgspec

from bench.servers import peak_rss_mb
from handlers.customer import AnyFact, Charge, CustomerFile, at, decode, encode
from handlers.duplicates import judge as judge_file
from handlers.events import read_object
from handlers.projection import projected
from handlers.terms import SHIPPED_POLICY, load_policy
from reconcile.windows import LISTS, ScanPlan, Window, scan_plan
from sandbox import Sandbox
from worker.db import columns, queries
from worker.judging import Court
from worker.reconciliation import UNSEEN_AT_MOST
from worker.runs import Run, kind_of, open_run
from worker.stripe_gateway import PAGE_LIMIT
from worker.unjudged import unjudged_copies

POLICY = load_policy(SHIPPED_POLICY)
SIZES = (100_000, 1_000_000)
ROUNDS = 5
EACH = 10
"""Payments of one person, one a month."""
ONE_IN = 1_000
"""Payments of whom one is an undecided copy; as many overlap and are decided, as many are listed otherwise and staged."""
HIDDEN_ONE_IN = 10_000
NOW = 1_790_000_000
MONTH = 30 * 86_400
REALM = "test"
RUN = "run_bench"
WINDOW = Window(NOW - (EACH + 1) * MONTH, NOW)
PAGES = 200
"""Pages whose look-ups in the books are measured, of all that the scan makes as it reads."""

ID = re.compile(rb"\b(?:cus|sub|si|in|il|pi|inpay|ch)_\w+|cardx|userx")
GAPS = (
    (r'"ch_\w+"', '"%1$s"'),
    (r'"cus_\w+"', '"%2$s"'),
    (r'"pi_\w+"', '"pi_3%3$s"'),
    (r'"created":\d+', '"created":%4$s'),
)

PAYMENTS = """
create temporary table payments as
select n, 'ch_3' || substr(md5(n::text), 1, 24) as charge, 'cus_' || substr(md5('c' || n % ($1 / $2)), 1, 14) as customer,
       $3::bigint - $2 * $4::bigint + (n / ($1 / $2)) * $4::bigint + n % ($1 / $2) * $4::bigint / ($1 / $2) as created,
       ('x' || substr(md5('d' || n), 1, 16))::bit(64)::bigint as digest
from generate_series(0, $1 - 1) as n
"""
OBJECTS = """
insert into objects (realm, id, kind, customer, reference_a, as_of, body, created, digest, moved_minor, currency, unfinished)
select $1, charge, 'charge', customer, 'pi_3' || substr(charge, 5), $2, convert_to(format($3, charge, customer, substr(charge, 5), created), 'UTF8'),
       created, digest, 2900, 'usd', false
from payments order by n
"""
PERIODS = """
insert into paid_periods
select $1, charge, 'prod_basic', customer, customer, 2900, 'usd', created, created - case when n % $3 = 7 then 86400 else 0 end, created + $2::bigint
from payments order by n
"""
DECISIONS = """
insert into decisions (id, realm, subject, revision, customer, clause, rule, verdict, policy_version, fingerprint, body)
select 'dec_' || n, $1, charge, 1, customer, '4.3', 'D3', 'none', '1', '', '' from payments where n % $2 = 7
"""
LINKS = """
insert into links (realm, customer, key) select distinct $1, customer, kind || ':' || md5(kind || customer)
from payments, unnest(array['person', 'email', 'card']) as kind
"""
SCANNED = """
insert into scanned (run, id, kind, created, as_of, digest)
select $1, id, kind, o.created, as_of, case when n % $3 = 11 then o.digest + 1 else o.digest end
from objects o left join payments on charge = id where n is null or n % $2 <> 13 order by o.created
"""
STAGED = """
insert into found (run, id, kind, customer, as_of, listed, body)
select $1, id, kind, o.customer, as_of, true, body from payments join objects o on o.realm = $2 and o.id = charge where n % $3 = 11
"""
INDEXES = """
select indexname, indexdef from pg_indexes where tablename in ('objects', 'paid_periods', 'links') and indexname not like '%pkey'
"""
PAGE_IDS = "select id from scanned where run = $1 order by created desc limit $2"
BASELINE = """
select count(*), sum(amount_minor), count(*) filter (where before > period_start) from (
    select amount_minor, period_start, lag(period_end) over (partition by person, thing order by period_start) as before
    from paid_periods where realm = $1) p
"""


async def judge(database_url: str, _: str, __: float) -> list[dict[str, Any]]:
    """The benchmark `judge_vs_plain_scan`: 100,000 and 1,000,000 payments, rounds interleaved with the baseline, medians."""
    sizes = []
    for payments in SIZES:
        await _seed(database_url, payments)
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.judge", database_url, str(payments), stdout=asyncio.subprocess.PIPE
        )
        told, _errors = await child.communicate()
        if child.returncode:
            raise RuntimeError(f"the run over {payments} payments failed")
        sizes.append(json.loads(told))
    small, large = sizes
    times = SIZES[1] / SIZES[0]
    return [
        {
            "name": "judge_vs_plain_scan",
            "ours": round(large["ours_s"] * 1000),
            "baseline": round(large["baseline_s"] * 1000),
            "unit": f"ms for {SIZES[1]:,} payments",
            "ratio": large["ratio"],
            "growth": round(large["ours_s"] / small["ours_s"], 2),
            "growth_of_baseline": round(large["baseline_s"] / small["baseline_s"], 2),
            "growth_of_payments": times,
            "peak_rss_mb": large["peak_rss_mb"],
            "sizes": sizes,
        }
    ]


# the books -------------------------------------------------------------------------------------------------------------------


async def _seed(database_url: str, payments: int) -> None:
    """Books with so many payments, and a run that has read them all."""
    facts = await _copied_person()
    conn = await asyncpg.connect(database_url)
    await _empty(conn)
    plan = scan_plan([WINDOW], NOW)
    told = {"id": RUN, "realm": REALM, "kind": "asked", "dry_run": True, "asked": "bench"}
    await queries.begin_run(conn, **told, key="", plan=msgspec.json.encode(plan))
    body = encode(next(fact for fact in facts if isinstance(fact, Charge))).decode().replace("%", "%%")
    for pattern, gap in GAPS:
        body = re.sub(pattern, gap, body)
    indexes = await conn.fetch(INDEXES)  # built once over all rows, they are the same
    for index in indexes:
        await conn.execute(f"drop index {index['indexname']}")
    await conn.execute(PAYMENTS, payments, EACH, NOW, MONTH)
    await conn.execute(OBJECTS, REALM, NOW, body)
    await conn.execute(PERIODS, REALM, MONTH, ONE_IN)
    await conn.execute(DECISIONS, REALM, ONE_IN)
    await conn.execute(LINKS, REALM)
    await _plant(conn, facts, payments // ONE_IN)
    await conn.execute(SCANNED, RUN, HIDDEN_ONE_IN, ONE_IN)
    await conn.execute(STAGED, RUN, REALM, ONE_IN)
    for index in indexes:
        await conn.execute(index["indexdef"])
    await conn.execute("drop table payments")
    await conn.execute("vacuum analyze")
    await conn.execute("checkpoint")
    await conn.close()
    await asyncio.to_thread(os.sync)  # what the seeding left to be written must not be in the way of what is measured


async def _empty(conn: asyncpg.Connection[asyncpg.Record]) -> None:
    tables = await conn.fetch("select tablename from pg_tables where schemaname = 'public'")
    emptied = ", ".join(row["tablename"] for row in tables if row["tablename"] != "alembic_version")
    # the books refuse to be emptied; as a replica, their triggers keep still
    await conn.execute(f"set session_replication_role = replica; truncate {emptied}; reset session_replication_role")


async def _copied_person() -> list[AnyFact]:
    """Everything Stripe tells of somebody who bought the same thing twice."""
    async with Sandbox(seed=7, clock=NOW - 86_400, running=False) as sandbox:
        books = sandbox.books
        product = books.new_product("FluxArt AI", id_="prod_basic")
        price = books.new_price(product["id"], "usd", 2900, interval="month", id_="price_basic")
        metadata = {"user_id": "userx"}
        customer = books.new_customer(email="x@example.com", metadata=metadata, fingerprint="cardx")
        for _ in range(2):
            books.subscribe(customer, [(price, 1)], metadata=metadata)
            books.advance(60)
        kinds = ("customer", "subscription", "invoice", "payment_intent", "invoice_payment", "charge")
        return [read_object(msgspec.json.encode(each), NOW) for kind in kinds for each in books.all(kind)]


async def _plant(conn: asyncpg.Connection[asyncpg.Record], facts: list[AnyFact], persons: int) -> None:
    """Copies of these facts under other ids, each a person of their own, with paid periods and without a decision."""
    paid = judge_file(CustomerFile(facts), POLICY, at(NOW)).paid
    objects: list[tuple[Any, ...]] = []
    periods: list[tuple[Any, ...]] = []
    for number in range(persons):
        own = b"\\g<0>n%d" % number
        theirs = [decode(ID.sub(own, encode(fact))) for fact in facts]
        customer = theirs[0].id
        for fact in theirs:
            links = (*fact.references(), None, None)[:2]
            objects.append((fact.id, kind_of(fact), customer, *links, fact.as_of, encode(fact), *projected(fact)))
        periods += [
            (f"{p.charge}n{number}", p.thing, customer, customer, p.amount_minor, p.currency, p.paid_at, p.start, p.end)
            for p in paid
        ]
    await conn.fetch(queries.insert_objects.sql, REALM, *columns(objects))
    await conn.execute(queries.save_paid_periods.sql, *columns(periods), REALM)


# the run, a process of its own -----------------------------------------------------------------------------------------------


async def rounds(database_url: str, payments: int) -> dict[str, Any]:
    """Rounds of the baseline and of ours, in turns, on the session of the seeded run."""

    async def never() -> ScanPlan:
        raise RuntimeError("the seeded run was not taken up")

    done: list[dict[str, float]] = []
    async with open_run(database_url, REALM, kind="asked", asked="bench", dry_run=True, plan=never) as run:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            await run.conn.fetchrow(BASELINE, REALM)
            done.append({"baseline_s": time.perf_counter() - began} | await _ours(run, payments))
        look_up_us = await _look_ups(run)
    median = {name: round(statistics.median(one[name] for one in done), 3) for name in done[0]}
    return {
        "payments": payments,
        **median,
        "ratio": round(statistics.median(one["ours_s"] / one["baseline_s"] for one in done), 2),
        "page_look_up_us_per_object": look_up_us,
        "peak_rss_mb": peak_rss_mb(),
        "rounds": [{name: round(value, 3) for name, value in one.items()} for one in done],
    }


async def _ours(run: Run, payments: int) -> dict[str, float]:
    """What `worker.reconciliation` asks the database once all pages are read, and the judging of whom it names."""
    began = time.perf_counter()
    kinds = sorted({listing.kind for listing in LISTS.values()})
    await run.conn.fetch(queries.unseen_unfinished.sql, REALM, NOW, run.id)
    await run.conn.fetch(queries.unseen_told.sql, run.id)
    most = UNSEEN_AT_MOST + 1
    unequal = await run.conn.fetch(queries.unequal_sides.sql, [WINDOW.lo], [WINDOW.hi], REALM, kinds, run.id, most)
    compared = time.perf_counter()
    court = Court(policy=POLICY, refunds="review")
    copies = [finding.object async for finding in unjudged_copies(run.conn, REALM, court, at(NOW))]
    ended = time.perf_counter()
    if len(unequal) != payments // HIDDEN_ONE_IN or len(set(copies)) != payments // ONE_IN:
        raise RuntimeError(f"the round is not valid: {len(unequal)} not listed, {len(copies)} copies found")
    return {"ours_s": ended - began, "compare_s": compared - began, "judge_s": ended - compared}


async def _look_ups(run: Run) -> float:
    """Microseconds per object of the look into the books that the scan makes for every page as it comes, at the pace of Stripe."""
    rows = await run.conn.fetch(PAGE_IDS, run.id, PAGES * PAGE_LIMIT)
    ids = [row["id"] for row in rows]
    began = time.perf_counter()
    for start in range(0, len(ids), PAGE_LIMIT):
        await run.conn.fetch(queries.digests_of.sql, REALM, ids[start : start + PAGE_LIMIT])
    return round((time.perf_counter() - began) / len(ids) * 1e6, 2)


if __name__ == "__main__":
    import uvloop

    print(json.dumps(uvloop.run(rounds(sys.argv[1], int(sys.argv[2])))))
