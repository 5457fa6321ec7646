"""Intake of signed 6 KB events over 64 connections by one web process, beside a bare handler and a naive one."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
from typing import Any

import asyncpg

CONNECTIONS = 64
ROUNDS = 5
SECRET = "whsec_bench_0123456789abcdef"
SERVERS = ("bare", "naive", "ours")

Round = dict[str, Any]


async def intake(database_url: str, redis_url: str, seconds: float) -> list[dict[str, Any]]:
    """The benchmarks `intake_vs_bare` and `intake_vs_naive`: medians over interleaved rounds of `seconds` each."""
    await _warm_up(database_url, redis_url)
    rounds: dict[str, list[Round]] = {name: [] for name in SERVERS}
    for number in range(ROUNDS):
        turn = number % len(SERVERS)
        for name in SERVERS[turn:] + SERVERS[:turn]:
            rounds[name].append(await one_round(name, f"evt_{name}{number}", database_url, redis_url, seconds))
    return [
        compared("intake_vs_bare", rounds["ours"], rounds["bare"]),
        compared("intake_vs_naive", rounds["ours"], rounds["naive"]),
    ]


async def _warm_up(database_url: str, redis_url: str) -> None:
    """Bring a cluster of a minute's age to where a running one is: its WAL files exist and are used again, its memory is touched."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("alter system set min_wal_size = '512MB'")
    await connection.execute("select pg_reload_conf()")
    await connection.close()
    await one_round("ours", "evt_warm", database_url, redis_url, 2.0)


async def one_round(name: str, prefix: str, database_url: str, redis_url: str, seconds: float) -> Round:
    """Start a server, load it, stop it, and check that what it acknowledged is what is committed."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("truncate inbox")
    await connection.execute("checkpoint")  # none in the middle of a round on behalf of the one before
    environment = os.environ | {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "STRIPE_API_KEY": "sk_test_bench",
        "FINALSALE_BIND": "127.0.0.1",
    }
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.servers", name, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert server.stdout is not None
    ready = json.loads(await server.stdout.readline() or b"null") or await _failed(server)
    try:
        figures = await _load(ready["port"], prefix, seconds)
    finally:
        server.terminate()
        rest, errors = await asyncio.wait_for(server.communicate(), 30)
    ended = json.loads(rest.splitlines()[-1])
    acknowledged = figures.pop("statuses")
    committed = await connection.fetchval("select count(*) from inbox")
    await connection.close()
    if set(acknowledged) != {"200"} or (name != "bare" and committed != acknowledged["200"]):
        raise RuntimeError(f"{name}: answers {acknowledged}, committed {committed}; {errors.decode()[-500:]}")
    cpu_us = (ended["cpu_s"] - ready["cpu_s"]) / acknowledged["200"] * 1e6
    return {**figures, "cpu_us_per_event": cpu_us, "committed": committed}


async def _load(port: int, prefix: str, seconds: float) -> Round:
    arguments = (str(port), prefix, SECRET, str(seconds), str(CONNECTIONS))
    sender = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.load", *arguments, stdout=subprocess.PIPE
    )
    try:
        output, _ = await asyncio.wait_for(sender.communicate(), seconds + 30)
    finally:
        if sender.returncode is None:
            sender.kill()
    figures: Round = json.loads(output)
    return figures


async def _failed(server: asyncio.subprocess.Process) -> Any:
    _, errors = await server.communicate()
    raise RuntimeError(f"the server did not start: {errors.decode()[-1000:]}")


def compared(name: str, ours: list[Round], baseline: list[Round]) -> dict[str, Any]:
    """One benchmark of the report, in requests per second."""

    def median(rounds: list[Round], field: str, digits: int = 1) -> float:
        return round(statistics.median(one[field] for one in rounds), digits)

    pairs = [one["per_s"] / other["per_s"] for one, other in zip(ours, baseline, strict=True)]
    return {
        "name": name,
        "ours": median(ours, "per_s", 0),
        "baseline": median(baseline, "per_s", 0),
        "unit": "requests/s",
        "ratio": round(statistics.median(pairs), 3),  # of neighbours in time: what else the machine does falls on both
        "p50_ms": median(ours, "p50_ms", 2),
        "p99_ms": median(ours, "p99_ms", 2),
        "baseline_p50_ms": median(baseline, "p50_ms", 2),
        "baseline_p99_ms": median(baseline, "p99_ms", 2),
        "cpu_us_per_event": median(ours, "cpu_us_per_event"),
        "baseline_cpu_us_per_event": median(baseline, "cpu_us_per_event"),
        "rounds": [
            {"ours": round(one["per_s"]), "baseline": round(other["per_s"])}
            for one, other in zip(ours, baseline, strict=True)
        ],
    }
