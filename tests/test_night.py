"""A short night with real processes: everything seeded is found and healed, nothing else is; also under faults and `kill -9`."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from reconcile.truth import Check
from tests.night import Night, clean_books
from tests.night_place import SHAPES, NightOptions, place

SHORT = NightOptions(objects=240, days=2, each=2)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The night runs on its own servers and against the sandbox, whatever the developer's shell says."""
    for name in [n for n in os.environ if n.startswith(("FINALSALE_", "STRIPE_")) or n in ("DATABASE_URL", "PORT")]:
        monkeypatch.delenv(name)


def assert_holds(checks: list[Check]) -> None:
    assert [f"{check.name}: {check.figure}" for check in checks if not check.ok] == []


@pytest.mark.timeout(120)
async def test_a_run_over_clean_books_in_the_old_api_shape_finds_nothing(tmp_path: Path) -> None:
    assert_holds(await clean_books(msgspec.structs.replace(SHORT, objects=120), tmp_path, SHAPES[1]))


@pytest.mark.timeout(300)
async def test_a_night_finds_and_heals_everything_seeded_and_nothing_else(tmp_path: Path) -> None:
    async with place(SHORT, tmp_path) as at:
        night = Night(at)
        await night.harmed()
        await night.as_if_all_had_come()
        await night.under_faults()
        await night.killed(3, 1)
        await night.for_good()
    assert_holds(night.checks)
    assert sum(night.kills.values()) >= 2, night.kills
