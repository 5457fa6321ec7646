"""Stripe's lists read into a run, beside what the rate budget allows and beside the usual way of reading them.

The sandbox runs in a process of its own, answers every GET 200 ms late and enforces Stripe's limits. Ours is `worker.scan.scan`
as the nightly run calls it, from the first request to the last commit, also in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncpg
import stripe
import uvloop

from bench.servers import peak_rss_mb
from reconcile.windows import ScanPlan, Window
from worker.budget import PER_ENDPOINT_S, TOTAL_S
from worker.db import queries
from worker.runs import open_run
from worker.scan import scan as read_lists
from worker.settings import read_settings
from worker.stripe_gateway import PAGE_LIMIT, StripeGateway

LISTS = ("charges", "payment_intents", "invoices", "invoice_payments", "balance_transactions")
"""All of one length, so that every one has pages to read until the end."""
PAYMENTS = 20_000
USUAL = 2_500
"""Objects that the usual way reads; its pace does not depend on how many there are."""
LATENCY_S = 0.2
DAYS = 90
REALM = "test"

# what a first run found, in the books as if it had been healed: the nightly run's usual case
BOOKS = """
insert into objects (realm, id, kind, customer, as_of, body, created, digest)
select $1, f.id, f.kind, coalesce(f.customer, f.id), f.as_of, f.body, s.created, s.digest from found f join scanned s using (run, id)
"""

Round = dict[str, Any]


async def scan(database_url: str, _: str, __: float) -> list[dict[str, Any]]:
    """The benchmarks `scan_vs_rate_budget` and `scan_vs_usual_way`: one round of each case, as long as its lists are."""
    connection = await asyncpg.connect(database_url)
    tables = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
    emptied = ", ".join(row["tablename"] for row in tables if row["tablename"] != "alembic_version")
    # the books refuse to be emptied; as a replica, their triggers keep still
    await connection.execute(
        f"set session_replication_role = replica; truncate {emptied}; reset session_replication_role"
    )
    async with _stripe() as (url, upper):
        first = await _child("ours", database_url, url, upper, *LISTS)
        await connection.execute(BOOKS, REALM)
        await connection.execute("vacuum analyze objects")
        known = await connection.fetchval("select count(*) from objects")
        nightly = await _child("ours", database_url, url, upper, *LISTS)
        alone = await _child("ours", database_url, url, upper, LISTS[0])
        usual = await _child("usual", database_url, url, upper)
    await connection.close()
    if known != PAYMENTS * (len(LISTS) - 1) or usual["unknown"]:
        raise RuntimeError(f"{known} objects are in the books; the usual way misses {usual['unknown']}")
    return [_by_budget(first, nightly, alone), _by_usual_way(nightly, alone, usual)]


def _by_budget(first: Round, nightly: Round, alone: Round) -> dict[str, Any]:
    return {
        "name": "scan_vs_rate_budget",
        "ours": round(nightly["per_s"]),
        "baseline": round(nightly["allowed_per_s"]),
        "unit": "objects/s",
        "ratio": round(nightly["per_s"] / nightly["allowed_per_s"], 3),
        "first_import_ratio": round(first["per_s"] / first["allowed_per_s"], 3),
        "one_list_ratio": round(alone["per_s"] / alone["allowed_per_s"], 3),
        "cpu_share_at_one_endpoints_rate": round(alone["cpu_share"], 4),
        "rounds": {"nightly": nightly, "first_import": first, "one_list": alone},
    }


def _by_usual_way(nightly: Round, alone: Round, usual: Round) -> dict[str, Any]:
    return {
        "name": "scan_vs_usual_way",
        "ours": round(nightly["per_s"]),
        "baseline": round(usual["per_s"]),
        "unit": "objects/s",
        "ratio": round(nightly["per_s"] / usual["per_s"], 2),
        "one_list_ratio": round(alone["per_s"] / usual["per_s"], 2),
        "cpu_us_per_event": round(nightly["cpu_us_per_object"], 1),
        "baseline_cpu_us_per_event": round(usual["cpu_us_per_object"], 1),
        "rounds": {"ours": nightly, "baseline": usual},
    }


@asynccontextmanager
async def _stripe() -> AsyncIterator[tuple[str, int]]:
    """The sandbox with its payments, late and limited; gives its URL and the end of the payments' window."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "sandbox", stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        url = json.loads(await process.stdout.readline())["url"]
        upper = int(time.time()) - 3600
        async with aiohttp.ClientSession(url) as session:
            for path, asked in (
                ("bulk", {"charges": PAYMENTS, "from": upper - DAYS * 86_400, "to": upper, "seed": 4}),
                ("config", {"latency_s": LATENCY_S, "rate_limit": {"enabled": True}}),
            ):
                async with session.post(f"/_sandbox/{path}", json=asked) as answer:
                    answer.raise_for_status()
        yield url, upper
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)


async def _child(what: str, database_url: str, url: str, upper: int, *lists: str) -> Round:
    environment = os.environ | {
        "DATABASE_URL": database_url,
        "STRIPE_API_KEY": "sk_test_bench0123456789",
        "STRIPE_API_BASE": url,
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.scan", what, str(upper), *lists, env=environment, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await asyncio.wait_for(child.communicate(), 120)
    if child.returncode:
        raise RuntimeError(f"the reader {what} failed")
    figures: Round = json.loads(told)
    return figures


# the readers, each a process -------------------------------------------------------------------------------------------------


async def ours(upper: int, *lists: str) -> Round:
    """One run's scan of some lists, over all their payments."""
    settings = read_settings()
    windows = (Window(upper - DAYS * 86_400, upper),)

    async def plan() -> ScanPlan:
        return ScanPlan(upper=upper, windows=windows, lists=dict.fromkeys(lists, windows))

    gateway = StripeGateway(settings)
    async with open_run(settings.database_dsn(), REALM, kind="asked", asked="bench", dry_run=True, plan=plan) as run:
        clock = _Clock()
        await read_lists(run, gateway, "test", lambda *_: None)
        rows = await run.conn.fetch(queries.slices_of.sql, run.id)
        figures = clock.figures(sum(row["objects"] for row in rows))
        unread = await queries.count_unread(run.conn, run=run.id)
        if unread or any(row["state"] != "done" for row in rows) or figures["objects"] != PAYMENTS * len(lists):
            raise RuntimeError(f"the round is not valid: {figures}, {unread} unread")
        await run.finish("done", 0, b"{}")
    requests = min(len(lists) * PER_ENDPOINT_S, TOTAL_S)
    figures |= {"allowed_per_s": requests * PAGE_LIMIT, "requests": gateway.budget.requests}
    await gateway.aclose()
    return figures | {"slices": len(rows), "rate_limited": gateway.budget.rate_limited}


async def usual(upper: int) -> Round:
    """What one writes first: the SDK's objects, its paging with one cursor, one look into the books for each object."""
    settings = read_settings()
    assert settings.stripe_api_key is not None
    stripe.enable_telemetry = False
    http = stripe.AIOHTTPClient()
    client = stripe.StripeClient(
        settings.stripe_api_key.get_secret_value(),
        base_addresses={"api": settings.stripe_api_base},
        http_client=http,
    )
    connection = await asyncpg.connect(settings.database_dsn())
    unknown = seen = 0
    clock = _Clock()
    page = await client.v1.charges.list_async(params={"limit": PAGE_LIMIT, "created": {"lt": upper}})
    async for charge in page.auto_paging_iter():
        sql = "select exists (select from objects where realm = 'test' and id = $1)"
        unknown += not await connection.fetchval(sql, charge.id)
        seen += 1
        if seen == USUAL:
            break
    figures = clock.figures(seen)
    await connection.close()
    await http.close_async()
    return figures | {"unknown": unknown}


class _Clock:
    """Time and processor time of this process since it was made."""

    def __init__(self) -> None:
        self.began, self.cpu = time.perf_counter(), time.process_time()

    def figures(self, objects: int) -> Round:
        seconds, cpu_s = time.perf_counter() - self.began, time.process_time() - self.cpu
        return {
            "objects": objects,
            "seconds": round(seconds, 3),
            "per_s": round(objects / seconds, 1),
            "cpu_share": round(cpu_s / seconds, 4),
            "cpu_us_per_object": round(cpu_s / objects * 1e6, 2),
            "peak_rss_mb": peak_rss_mb(),
        }


if __name__ == "__main__":
    reader = ours if sys.argv[1] == "ours" else usual
    print(json.dumps(uvloop.run(reader(int(sys.argv[2]), *sys.argv[3:]))))
