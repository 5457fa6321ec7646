"""Events folded, judged and written per second by one worker process, beside arq's own no-op jobs per second.

Ours does the whole work: real events of subscriptions bought and renewed, one customer in fifty with a duplicate, from the
committed inbox to files, decisions and actions in Postgres. arq's jobs do nothing at all, under its best settings.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
from arq.connections import RedisSettings, create_pool
from arq.worker import Worker, func

from sandbox import Sandbox
from sandbox.webhooks import snapshot_body
from worker.inbox import pack

ROUNDS = 3
CUSTOMERS = 1500
ARQ_JOBS = 8000
ARQ_QUEUE = "bench:arq"
# the best of the settings tried on this kind of machine: more jobs at once or a shorter poll gain nothing
ARQ_SETTINGS = {"max_jobs": 100, "poll_delay": 0.05, "keep_result": 0}


async def judged(database_url: str, redis_url: str, seconds: float) -> list[dict[str, Any]]:
    """The benchmark `judged_vs_arq`: medians over interleaved rounds. `seconds` is not needed: a round ends with its work."""
    del seconds
    events = await _events()
    ours, theirs, spent = [], [], []
    for _ in range(ROUNDS):
        theirs.append(await _arq_round(redis_url))
        rate, cpu_us = await _our_round(database_url, redis_url, events)
        ours.append(rate)
        spent.append(cpu_us)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return [
        {
            "name": "judged_vs_arq",
            "ours": round(statistics.median(ours), 1),
            "baseline": round(statistics.median(theirs), 1),
            "unit": "events/s",
            "ratio": round(statistics.median(ratios), 3),
            "cpu_us_per_event": round(statistics.median(spent), 1),
            "events": len(events),
            "rounds": [{"ours": a, "baseline": b, "ratio": a / b} for a, b in zip(ours, theirs, strict=True)],
        }
    ]


async def _events() -> list[tuple[Any, ...]]:
    """A morning of renewals and sign-ups, as rows of the inbox, in the order in which Stripe made them."""
    async with Sandbox(seed=7) as sandbox:
        books = sandbox.books
        now = int(time.time())
        books.set_clock(now - 86400, running=False)
        price = books.new_price(books.new_product("FluxArt AI")["id"], "usd", 2900, interval="month", id_="price_basic")
        for number in range(CUSTOMERS):
            customer = books.new_customer(email=f"{number}@example.com", metadata={}, fingerprint=f"card{number}")
            metadata = {"user_id": f"user{number}"}
            books.subscribe(customer, [(price, 1)], metadata=metadata)
            if number % 50 == 0:
                books.subscribe(customer, [(price, 1)], metadata=metadata)
            books.advance(7)
        made = books.all("event")
    rows = []
    for event in made:
        created = datetime.fromtimestamp(event["created"], UTC)
        rows.append((event["id"], "test", event["type"], event["api_version"], created, pack(snapshot_body(event))))
    return rows


async def _our_round(database_url: str, redis_url: str, events: list[tuple[Any, ...]]) -> tuple[float, float]:
    """Events per second from the moment their inbox is committed to the moment nothing waits; CPU microseconds of the worker per event."""
    connection = await asyncpg.connect(database_url)
    tables = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
    emptied = ", ".join(row["tablename"] for row in tables if row["tablename"] != "alembic_version")
    # the books refuse to be emptied; as a replica, their triggers keep still
    await connection.execute(
        f"set session_replication_role = replica; truncate {emptied}; reset session_replication_role"
    )
    await connection.execute("checkpoint")
    environment = os.environ | {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "FINALSALE_LOG": "json"}
    environment.pop("STRIPE_API_KEY", None)
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.judged",
        "worker",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert worker.stdout is not None
    try:
        before = json.loads(await worker.stdout.readline())["cpu_s"]
        columns = ["event_id", "realm", "type", "api_version", "created_at", "payload"]
        await connection.copy_records_to_table("inbox", records=events, columns=columns)
        redis = await create_pool(RedisSettings.from_dsn(redis_url), job_serializer=msgspec.json.encode)
        began = time.perf_counter()
        await redis.enqueue_job("drain", _queue_name="finalsale:bell")
        while await connection.fetchval("select exists (select 1 from inbox where state = 'waiting')"):
            await asyncio.sleep(0.01)
        elapsed = time.perf_counter() - began
        await redis.aclose()
    finally:
        worker.terminate()
        rest, _ = await asyncio.wait_for(worker.communicate(), 30)
    spent = json.loads(rest.splitlines()[-1])["cpu_s"] - before
    states = await connection.fetch("select state, count(*) as many from inbox group by state")
    refunds = await connection.fetchval("select count(*) from decisions where verdict = 'refund'")
    await connection.close()
    done = {row["state"]: row["many"] for row in states}
    if done != {"done": len(events)} or refunds != CUSTOMERS // 50:
        raise RuntimeError(f"the round is not valid: {done}, {refunds} refunds decided of {CUSTOMERS // 50}")
    return len(events) / elapsed, spent / len(events) * 1e6


async def _arq_round(redis_url: str) -> float:
    """No-op jobs per second of one arq worker process on a full queue."""
    redis = await create_pool(RedisSettings.from_dsn(redis_url))
    await redis.flushall()
    for start in range(0, ARQ_JOBS, 200):
        await asyncio.gather(*(redis.enqueue_job("noop", n, _queue_name=ARQ_QUEUE) for n in range(start, start + 200)))
    await redis.aclose()
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.judged", "arq", redis_url, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    out, _ = await asyncio.wait_for(worker.communicate(), 120)
    told = json.loads(out.splitlines()[-1])
    if told["jobs"] != ARQ_JOBS:
        raise RuntimeError(f"arq did {told['jobs']} of {ARQ_JOBS} jobs")
    return float(told["jobs"] / told["seconds"])


async def _arq_worker(redis_url: str) -> None:
    times: list[float] = []

    async def noop(ctx: dict[Any, Any], number: int) -> None:
        times.append(time.perf_counter())

    worker = Worker(
        functions=[func(noop, name="noop", keep_result=0)],
        redis_settings=RedisSettings.from_dsn(redis_url),
        queue_name=ARQ_QUEUE,
        burst=True,
        handle_signals=False,
        log_results=False,
        **ARQ_SETTINGS,  # type: ignore[arg-type]  # a table of settings of several types
    )
    await worker.async_run()
    await worker.close()
    print(json.dumps({"jobs": len(times), "seconds": times[-1] - times[0]}), flush=True)


def _our_worker() -> None:
    from worker.jobs import work
    from worker.log import configure
    from worker.settings import read_settings

    def tell() -> None:
        print(json.dumps({"cpu_s": time.process_time()}), flush=True)

    configure("json")
    uvloop.run(work(read_settings(), on_ready=tell))
    tell()


if __name__ == "__main__":
    import uvloop

    if sys.argv[1] == "worker":
        _our_worker()
    else:
        uvloop.run(_arq_worker(sys.argv[2]))
