"""`python -m bench [--json] [--seconds N]`: every benchmark beside its baseline, on embedded servers with fsync on."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.api import api
from bench.console import console
from bench.intake import intake
from bench.judge import judge
from bench.judged import judged
from bench.scan import scan
from worker.db.migrations import migrate
from worker.embedded import embedded_servers

Benchmark = Callable[[str, str, float], Awaitable[list[dict[str, Any]]]]

BENCHMARKS: tuple[Benchmark, ...] = (intake, judged, api, scan, judge, console)
"""Each gets (database_url, redis_url, seconds of one round) and gives the entries of the report."""


async def run(seconds: float, only: str | None = None) -> list[dict[str, Any]]:
    """All benchmarks or one of them, one after another, in a fresh database."""
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="finalsale-bench-") as directory:
        async with embedded_servers(Path(directory)) as (database_url, redis_url):
            await migrate(database_url)
            for benchmark in BENCHMARKS:
                if only in (None, benchmark.__name__):
                    results += await benchmark(database_url, redis_url, seconds)
    return results


def show(results: list[dict[str, Any]]) -> None:
    """The results as a table for people."""
    table = Table(title="finalsale beside its baselines (medians of interleaved rounds)")
    for heading in ("benchmark", "ours", "baseline", "unit", "ratio", "p50 ms", "p99 ms", "CPU us/event"):
        table.add_column(heading, justify="left" if heading in ("benchmark", "unit") else "right")
    for result in results:
        pairs = [
            f"{result.get(field, '-')} / {result.get(f'baseline_{field}', '-')}"
            for field in ("p50_ms", "p99_ms", "cpu_us_per_event")
        ]
        table.add_row(
            result["name"],
            f"{result['ours']:,.0f}",
            f"{result['baseline']:,.0f}",
            result["unit"],
            f"{result['ratio']:.2f}",
            *pairs,
        )
    console = Console()
    console.print(table, width=None if console.is_terminal else 120)


def main() -> None:
    """Run, and print a table or one JSON document."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time of one round (default 3)")
    parser.add_argument("--only", choices=[b.__name__ for b in BENCHMARKS], help="one benchmark alone")
    arguments = parser.parse_args()
    results = asyncio.run(run(arguments.seconds, arguments.only))
    if arguments.json:
        json.dump({"benchmarks": results}, sys.stdout, indent=2)
        print()
    else:
        show(results)


if __name__ == "__main__":
    main()
