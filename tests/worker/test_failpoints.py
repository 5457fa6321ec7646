"""One duplicate, one refund, whatever breaks where: every named point at which a worker can fail, by an exception and by death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import time
from pathlib import Path

import pytest

from sandbox.webhooks import snapshot_body
from tests.worker.merchant import POLICY_FILE, Merchant, merchant, store
from worker.db import Pool
from worker.failpoint import POINTS, FailpointReached
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
DIED = 70


def environment(m: Merchant, failpoint: str = "") -> dict[str, str]:
    """What a worker process of this deployment is told."""
    key = m.settings.stripe_api_key
    assert key is not None
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("FINALSALE_", "STRIPE_"))},
        "DATABASE_URL": m.settings.database_dsn(),
        "STRIPE_API_KEY": key.get_secret_value(),
        "STRIPE_API_BASE": m.sandbox.url,
        "FINALSALE_REFUNDS": "auto",
        "FINALSALE_POLICY": str(POLICY_FILE),
        "FINALSALE_FAILPOINT": failpoint,
        "FINALSALE_LOG": "json",
    }


async def start_worker(m: Merchant, failpoint: str = "") -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker.cli", "worker"),
        cwd=ROOT,
        env=environment(m, failpoint),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )


async def stop_worker(process: asyncio.subprocess.Process) -> float:
    """SIGTERM; how long it took to end. It must end well."""
    began = time.monotonic()
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 25) == 0
    return time.monotonic() - began


async def at_rest(m: Merchant, within_s: float = 20) -> None:
    """Nothing waits: no event, no action, no look-up that is due."""
    async with asyncio.timeout(within_s):
        while await m.pool.fetchval(
            """select exists (select 1 from inbox where state = 'waiting')
                   or exists (select 1 from actions where state in ('planned', 'sending'))
                   or not exists (select 1 from actions)"""
        ):
            await asyncio.sleep(0.05)


async def assert_one_refund(m: Merchant, sub: dict[str, object]) -> None:
    for _ in range(2):  # and once more when all its own events were heard
        assert [(r["amount"], r["charge"]) for r in m.books.all("refund")] == [(2900, m.charge_of(sub)["id"])]
        assert await m.actions() == {"refund": "sent", "cancel_subscription": "sent"}
        assert m.books.by_id[str(sub["id"])]["status"] == "canceled"
        assert await m.pool.fetchval("select count(*) from inbox where state <> 'done'") == 0
        await m.hear(list(m.books.all("event")))
        await m.perform(2)


def test_every_failpoint_of_the_source_is_listed_and_tried() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "worker").glob("*.py"))
    assert set(re.findall(r'\bfailpoint\("(\w+)"\)', source)) == POINTS


@pytest.mark.parametrize("point", sorted(POINTS))
async def test_an_error_anywhere_leaves_one_refund(
    settings: Settings, pool: Pool, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with merchant(settings, pool) as m:
        _, second = m.double_click()
        monkeypatch.setenv("FINALSALE_FAILPOINT", f"{point}:raise")
        for _ in range(4):
            with contextlib.suppress(FailpointReached):
                await m.to_the_end()
                break
            await pool.execute("update inbox set next_at = now() where state = 'waiting'")
        await pool.execute("update inbox set next_at = now() where state = 'waiting'")
        await m.to_the_end()
        assert "FINALSALE_FAILPOINT" not in os.environ, "the point was never reached"
        await assert_one_refund(m, second)


async def test_a_death_anywhere_leaves_one_refund(settings: Settings, pool: Pool) -> None:
    """Real processes: at every point in turn the worker dies on the spot, and the next one goes on. One customer for each point."""
    async with merchant(settings, pool) as m:
        subs = []
        for number, point in enumerate(sorted(POINTS)):
            _, second = m.double_click(f"u{number}")
            await store(pool, *(snapshot_body(event) for event in m.news()))
            subs.append(second)
            dying = await start_worker(m, f"{point}:exit")
            assert await asyncio.wait_for(dying.wait(), 15) == DIED, point
        last = await start_worker(m)
        await at_rest(m)
        await store(pool, *(snapshot_body(event) for event in m.books.all("event")))
        await at_rest(m)
        await stop_worker(last)
        assert sorted((r["amount"], r["charge"]) for r in m.books.all("refund")) == sorted(
            (2900, m.charge_of(sub)["id"]) for sub in subs
        )
        assert {m.books.by_id[sub["id"]]["status"] for sub in subs} == {"canceled"}
        assert set((await m.actions()).values()) == {"sent"}
        assert await pool.fetchval("select count(*) from inbox where state <> 'done'") == 0
        assert await pool.fetchval("select count(*) from actions where stripe_id is null") == 0
