"""The API at 200 requests a second, half of them reading and half consuming, on a database of 100,000 customers.

An open loop: every request is sent at its time, whether or not those before it are answered, and its latency counts from that
time. Beside it, in the same run, a bare aiohttp handler that passes the same SQL to asyncpg and writes down what comes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import random
import signal
import statistics
import sys
import time
from typing import Any

import aiohttp
import asyncpg
import uvloop
from aiohttp import web

from bench.servers import tell

CUSTOMERS = 100_000
PER_S = 200
SECONDS = 10.0
ROUNDS = 3
LIMIT_MS = 20.0
TOKEN = "bench-0123456789abcdef"
NAMES = ("ours", "bare")

Round = dict[str, Any]

ACCOUNTS = """
insert into accounts (realm, customer, standing, holds, access_until, body, changed_at)
select 'test', 'cus_' || n, 'good', 0, now() + interval '20 days', convert_to(
    '{"customer":"cus_' || n || '","standing":"good","holds":[],"access":[{"subscription":"sub_' || n || '","status":"active",'
    || '"way":"renews","until":' || extract(epoch from now() + interval '20 days')::bigint || ',"cause":"in_' || n || ' is paid."}]}',
    'UTF8'), now()
from generate_series(1, $1) as n
"""
LOTS = """
insert into lots (realm, id, customer, kind, clause, granted_at, ends_at, cause)
select 'test', kind || ':in_' || n, 'cus_' || n, kind, '3', now(), ends_at, 'paid'
from generate_series(1, $1) as n,
     (values ('included', now() + interval '20 days'), ('purchased', null)) as lot (kind, ends_at)
"""
ENTRIES = """
insert into entries (realm, lot, customer, kind, amount, clause, cause, effective_at)
select realm, id, customer, 'granted', 1000, clause, cause, granted_at from lots
"""


async def api(database_url: str, _: str, __: float) -> list[dict[str, Any]]:
    """The benchmark `api`: latencies in ms, with `api_p99_ms` and its limit. Rounds of 10 s, interleaved; the median of each."""
    connection = await asyncpg.connect(database_url)
    for statement in (ACCOUNTS, LOTS):
        await connection.execute(statement, CUSTOMERS)
    await connection.execute(ENTRIES)
    await connection.execute("vacuum analyze")
    await connection.execute("checkpoint")
    await asyncio.to_thread(
        os.sync
    )  # what the seeding left to be written must not be in the way of the commits measured
    rounds: dict[str, list[Round]] = {name: [] for name in NAMES}
    for number, name in itertools.product(range(ROUNDS), NAMES):
        await connection.execute("checkpoint")  # none in the middle of a round on behalf of the one before
        rounds[name].append(await one_round(name, f"{name}-{number}", database_url))
    consumed = await connection.fetchval("select count(*) from consumptions")
    await connection.close()
    if consumed != ROUNDS * len(NAMES) * (PER_S * SECONDS // 2):
        raise RuntimeError(f"{consumed} consumptions are committed, another number was acknowledged")
    return [_entry(rounds)]


def _entry(rounds: dict[str, list[Round]]) -> dict[str, Any]:
    figures = {
        prefix + field: round(statistics.median(one[field] for one in rounds[name]), 2)
        for name, prefix in (("ours", ""), ("bare", "baseline_"))
        for field in rounds[name][0]
    }
    return {
        "name": "api_vs_bare",
        "ours": figures["per_s"],
        "baseline": figures["baseline_per_s"],
        "unit": "requests/s",
        "ratio": round(figures["p99_ms"] / figures["baseline_p99_ms"], 2),
        "api_p99_ms": figures["p99_ms"],
        "limit_ms": LIMIT_MS,
        "within_limit": figures["p99_ms"] < LIMIT_MS,
        **figures,
        "rounds": [
            {f"{name}_p99_ms": round(rounds[name][number]["p99_ms"], 2) for name in NAMES} for number in range(ROUNDS)
        ],
    }


async def one_round(name: str, prefix: str, database_url: str) -> Round:
    """Start a server, send at the rate for a second and then for the measured time, and stop it."""
    environment = os.environ | {
        "DATABASE_URL": database_url,
        "STRIPE_WEBHOOK_SECRET": "whsec_bench_0123456789abcdef",
        "STRIPE_API_KEY": "sk_test_bench",
        "FINALSALE_BIND": "127.0.0.1",
        "FINALSALE_API_TOKENS": TOKEN,
    }
    module = ("bench.servers", "ours") if name == "ours" else ("bench.api", "bare")
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *module,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert server.stdout is not None
    try:
        ready = json.loads(await server.stdout.readline())
        figures = await _open_loop(ready["port"], prefix)
    finally:
        server.terminate()
        rest, _ = await asyncio.wait_for(server.communicate(), 30)
    ended = json.loads(rest.splitlines()[-1])
    return figures | {"cpu_us_per_event": (ended["cpu_s"] - ready["cpu_s"]) / (PER_S * (SECONDS + 0.5)) * 1e6}


async def _open_loop(port: int, prefix: str) -> Round:
    """Send every request at its time. Raises RuntimeError when one is not answered 200."""
    latencies: list[float] = []
    chosen = random.Random(prefix)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    base = f"http://127.0.0.1:{port}/api/v1/customers/cus_"
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(number: int, at: float) -> float:
            customer = chosen.randrange(1, CUSTOMERS + 1)
            if number % 2:
                asked = session.get(f"{base}{customer}")
            else:
                document = {"amount": 1, "key": f"{prefix}-{number}"}
                asked = session.post(f"{base}{customer}/credits/consume", json=document)
            async with asked as answer:
                body = await answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{prefix}: {answer.status} {body[:200]!r}")
            return time.perf_counter() - at

        while (await _status(session, f"{base}1")) != 200:
            await asyncio.sleep(0.05)
        for number in range(-PER_S, 0, 2):  # connections and plans are warm
            await ask(number + 1, 0)
        began = time.perf_counter() + 0.05
        sent = []
        for number in range(int(PER_S * SECONDS)):
            due = began + number / PER_S
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            sent.append(asyncio.create_task(ask(number, due)))
        latencies = sorted(await asyncio.gather(*sent))
        took = time.perf_counter() - began
    at = lambda share: latencies[min(math.ceil(share * len(latencies)), len(latencies)) - 1] * 1000  # noqa: E731
    return {"per_s": len(latencies) / took, "p50_ms": at(0.5), "p99_ms": at(0.99), "p999_ms": at(0.999)}


async def _status(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url) as answer:
        return answer.status


# the baseline ----------------------------------------------------------------------------------------------------------------


async def bare() -> None:
    """The same statements behind two handlers that check nothing."""
    pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=6, max_size=6)
    lots = (
        "select id, kind, clause, granted, consumed, remaining, granted_at, ends_at from lots"
        " where realm = 'test' and customer = $1 order by ends_at nulls last, granted_at, id"
    )

    async def show(request: web.Request) -> web.Response:
        customer = request.match_info["id"]
        async with pool.acquire() as connection:
            account = await connection.fetchrow(
                "select * from accounts where realm = 'test' and customer = $1", customer
            )
            rows = await connection.fetch(lots, customer)
        document = {"account": json.loads(account["body"]), "lots": [dict(row) for row in rows]}
        return web.Response(text=json.dumps(document, default=str), content_type="application/json")

    async def consume(request: web.Request) -> web.Response:
        asked = await request.json()
        async with pool.acquire() as connection:
            row = await connection.fetchrow(
                "select * from consume_credits('test', $1, $2, $3)",
                request.match_info["id"],
                asked["key"],
                asked["amount"],
            )
        return web.json_response(dict(row))

    app = web.Application()
    app.router.add_get("/api/v1/customers/{id}", show)
    app.router.add_post("/api/v1/customers/{id}/credits/consume", consume)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tell(runner.addresses[0][1])
    await stop.wait()
    await runner.cleanup()
    await pool.close()


if __name__ == "__main__":
    uvloop.run(bare())
    tell(None)
