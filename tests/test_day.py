"""A merchant's day with real processes: the same refunds in any order, any shape, under failing calls and under kill -9."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos import chaotic_day
from worker.day import Report, play_day, report
from worker.run import DayOptions, sandbox_run
from worker.settings import Settings

CUSTOMERS = 80


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The day runs on its own servers and against the sandbox, whatever the developer's shell says."""
    for name in [n for n in os.environ if n.startswith(("FINALSALE_", "STRIPE_"))] + [
        "DATABASE_URL",
        "REDIS_URL",
        "PORT",
    ]:
        monkeypatch.delenv(name, raising=False)


async def played(options: DayOptions, state_dir: Path) -> Report:
    async with sandbox_run(Settings(state_dir=state_dir, port=0), options) as run:
        async for _ in play_day(run, options):
            pass
        return await report(run)


def assert_clean(done: Report) -> None:
    assert [f"{check.name}: {check.figure}" for check in done.checks if not check.ok] == []
    assert done.refunds
    assert {"every refund by hand told, none else", "credits close"} <= {check.name for check in done.checks}
    assert sum(row["granted"] for row in done.accounts["credits"]) > 0


def assert_told(done: Report) -> None:
    """What a day has to tell people: chargebacks and the one refund by hand, and nothing about duplicates or our refunds."""
    told = [alert["kind"] for alert in done.alerts]
    assert told.count("out_of_policy_refund") == 1
    assert set(told) <= {
        "chargeback",
        "chargeback_lost",
        "inquiry",
        "out_of_policy_refund",
        "early_fraud_warning",
        "refund_limit",
    }
    ours = {row["stripe_id"] for row in done.refunds}
    assert not ours & {alert["subject"] for alert in done.alerts}
    assert done.accounts["standing"]["flagged"] == sum(kind.startswith("chargeback") for kind in told)
    assert {row["clause"] for row in done.reviews} == {"4.3", "7"}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(DayOptions(customers=CUSTOMERS), id="plain"),
        pytest.param(
            DayOptions(customers=CUSTOMERS, twice=True, shuffle=True, faults=0.05, api_version="2025-02-24.acacia"),
            id="old API shape, every event twice, shuffled, 5 % of Stripe calls fail after their effect",
        ),
    ],
)
async def test_the_day_refunds_every_duplicate_once_and_touches_nothing_else(
    options: DayOptions, tmp_path: Path
) -> None:
    done = await played(options, tmp_path)
    assert_clean(done)
    assert_told(done)


@pytest.mark.timeout(240)
async def test_killed_processes_and_an_emptied_valkey_lose_nothing_and_refund_nothing_twice(tmp_path: Path) -> None:
    options = DayOptions(customers=200, seed=3, twice=True, shuffle=True, faults=0.05)
    done, faults = await chaotic_day(options, every_s=0.4, state_dir=tmp_path)
    assert_clean(done)
    assert faults["kill web"]
    assert faults["kill worker"]
