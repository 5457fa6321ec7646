"""A short year with real processes: every clause carried out, and the books close."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console

from tests.year import YearOptions, year


@pytest.mark.timeout(300)
async def test_a_year_exercises_every_clause_and_its_books_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in os.environ if n.startswith(("FINALSALE_", "STRIPE_")) or n in ("DATABASE_URL", "PORT")]:
        monkeypatch.delenv(name)
    done = await year(YearOptions(customers=60, days=75, workers=1), tmp_path, Console(stderr=True, quiet=True))
    assert [f"{check.name}: {check.figure}" for check in done.checks if not check.ok] == []
