"""The fault campaign: a merchant's day while web, worker, Valkey and Postgres are killed at random moments.

`python -m tests.chaos --minutes 10 --seed 1` plays day after day until the time is over; the test suite plays one short day.
What must hold is what `finalsale run` checks: no acknowledged event lost, the same refunds to the cent, none twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import asyncpg
from redis.asyncio import Redis

from worker.day import Report, play_day, report
from worker.run import DayOptions, Run, sandbox_run
from worker.settings import Settings

FAULTS = ("kill web", "kill worker", "kill valkey", "empty valkey", "kill a postgres backend", "restart postgres")
WEIGHTS = (6, 8, 2, 3, 4, 1)


async def chaotic_day(
    options: DayOptions, *, every_s: float, faults: tuple[str, ...] = FAULTS, state_dir: Path
) -> tuple[Report, Counter[str]]:
    """One day with a fault about every `every_s` seconds. Returns the report and how often each fault was made."""
    settings = Settings(state_dir=state_dir, port=0)
    done: Counter[str] = Counter()
    async with sandbox_run(settings, options, workers=2) as run:
        over = asyncio.Event()
        monkey = asyncio.create_task(_break_things(run, random.Random(options.seed), every_s, faults, done, over))
        try:
            async for day in play_day(run, options):
                if day["state"] == "done" and not monkey.done():
                    left = await _left(run)
                    if left < 50 or sum(done.values()) > 2000:
                        over.set()  # the day is over: now everything must come to rest by itself
        finally:
            over.set()
            await monkey  # never cancelled: what it stopped it starts again
        return await report(run), done


async def _left(run: Run) -> int:
    deliveries = (await run.sandbox.ask("deliveries"))["deliveries"]
    return sum(1 for delivery in deliveries if delivery["state"] == "waiting")


async def _break_things(
    run: Run, rng: random.Random, every_s: float, faults: tuple[str, ...], done: Counter[str], over: asyncio.Event
) -> None:
    weights = [WEIGHTS[FAULTS.index(fault)] for fault in faults]
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.expovariate(1 / every_s)):
                await over.wait()
                return
        fault = rng.choices(faults, weights)[0]
        with contextlib.suppress(asyncpg.PostgresError, OSError, ConnectionError):
            await _make(run, rng, fault)
            done[fault] += 1


async def _make(run: Run, rng: random.Random, fault: str) -> None:
    servers = run.servers
    assert servers is not None
    match fault:
        case "kill web":
            rng.choice(run.deployment.webs).kill()
        case "kill worker":
            rng.choice(run.deployment.workers).kill()
        case "kill valkey":
            await asyncio.to_thread(servers.stop_valkey, signal.SIGKILL)
            await asyncio.sleep(rng.uniform(0, 2))
            await asyncio.to_thread(servers.start_valkey)
        case "empty valkey":
            client = Redis.from_url(servers.redis_url)
            await client.flushall()
            await client.aclose()
        case "kill a postgres backend":
            connection = await asyncpg.connect(servers.database_url, timeout=5)
            await connection.execute(
                """select pg_terminate_backend(pid) from pg_stat_activity
                   where application_name like 'finalsale w%' order by random() limit 1"""
            )
            await connection.close()
        case "restart postgres":
            await asyncio.to_thread(servers.stop_postgres, signal.SIGQUIT)
            await asyncio.to_thread(servers.start_postgres)


async def campaign(minutes: float, seed: int, customers: int) -> int:
    """Days until the time is over. Returns the exit code."""
    deadline = time.monotonic() + minutes * 60
    total: Counter[str] = Counter()
    events = days = 0
    while time.monotonic() < deadline:
        options = DayOptions(customers=customers, seed=seed + days, twice=True, shuffle=True, faults=0.05)
        with tempfile.TemporaryDirectory(prefix="finalsale-chaos-") as directory:
            done, made = await chaotic_day(options, every_s=0.4, state_dir=Path(directory))
        days, events, total = days + 1, events + done.events, total + made
        sys.stdout.write(f"seed {options.seed}: {done.events} events, {sum(made.values())} faults, {done.seconds} s\n")
        for check in done.checks:
            if not check.ok:
                sys.stdout.write(f"  FAIL {check.name}: {check.figure}\n")
        if not done.ok:
            return 1
    faults = ", ".join(f"{count} x {fault}" for fault, count in sorted(total.items()))
    sys.stdout.write(f"{days} days, {events} events: nothing lost, nothing twice, nothing wrong ({faults})\n")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--customers", type=int, default=1000)
    arguments = parser.parse_args()
    os.environ.pop("STRIPE_API_KEY", None)
    sys.exit(asyncio.run(campaign(arguments.minutes, arguments.seed, arguments.customers)))


if __name__ == "__main__":
    main()
