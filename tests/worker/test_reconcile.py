"""The nightly run end to end: what no webhook told is found, planned, healed through the one door, and told in a report."""

from __future__ import annotations

import time
from typing import Any

from reconcile.report import Report
from reconcile.windows import DAY, Window
from sandbox import Sandbox
from tests.handlers.history import POLICY
from worker.db import Pool
from worker.jobs import WorkerProcess
from worker.judging import Court
from worker.reconciliation import Asked, Reconciliation
from worker.settings import Settings

NOW = int(time.time())


async def double_click(sandbox: Sandbox) -> tuple[str, str]:
    """A customer with two subscriptions begun within a minute, an hour ago; the charges, the first first."""
    books = sandbox.books
    books.set_clock(NOW - 2 * DAY, running=False)
    price = books.new_price(books.new_product("FluxArt AI")["id"], "usd", 2900, interval="month", id_="price_basic")
    customer = books.new_customer(email="a@example.com", metadata={}, fingerprint="card1")
    charges = []
    for _ in range(2):
        bought = books.subscribe(customer, [(price, 1)], metadata={"user_id": "u1"})
        books.advance(40)
        charges.append(next(c["id"] for c in reversed(list(books.all("charge")))))
        del bought
    books.set_clock(NOW, running=True)
    return charges[0], charges[1]


async def run(settings: Settings, pool: Pool, sandbox: Sandbox, *, back: int = 3 * DAY, **how: Any) -> Report:
    """One run asked for at the sandbox, served by this process where it heals."""
    served = settings.model_copy(update={"stripe_api_base": sandbox.url})
    worker = WorkerProcess(served)
    worker.court = Court(policy=POLICY, refunds=how.pop("refunds", "auto"))
    worker.use(pool)
    asked = Asked(kind="asked", words=f"since {back}", windows=lambda upper, since: (Window(upper - back, upper),), **how)
    try:
        return await Reconciliation(
            served, pool, worker.gateway, worker.court, asked, serve=worker.serve_once
        ).run_once()
    finally:
        await worker.gateway.aclose()


async def test_a_dry_run_over_an_unknown_account_shows_its_duplicates_and_changes_nothing(
    settings: Settings, pool: Pool
) -> None:
    async with Sandbox() as stripe:
        first, second = await double_click(stripe)
        report = await run(settings, pool, stripe, dry_run=True)
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(report), indent=1).decode())
        assert report.drift == 0
        assert report.imported["charge"] == 2
        assert report.to_return == {"usd": 2900}
        assert await pool.fetchval("select count(*) from objects") == 0
        assert await pool.fetchval("select count(*) from decisions") == 0


async def test_a_run_takes_an_unknown_account_in_and_the_next_one_is_clean(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        first, second = await double_click(stripe)
        report = await run(settings, pool, stripe)
        assert (report.drift, report.unread_total, report.unhealed) == (0, 0, 0)
        assert await pool.fetchval("select verdict from decisions where subject = $1", second) == "refund"
        again = await run(settings, pool, stripe)
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(again), indent=1).decode())
        assert (again.drift, again.found) == (0, {})
