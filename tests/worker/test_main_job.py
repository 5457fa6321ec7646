"""The main job from end to end: signed events in, exactly one refund of exactly the duplicate part out. Real parts; Stripe is the sandbox."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox import Sandbox
from tests.conftest import WEBHOOK_SECRET
from worker.db import Pool
from worker.jobs import WorkerProcess
from worker.settings import Settings
from worker.web import listening

POLICY = Path(__file__).with_name("prompt.policy.toml")


@dataclass
class House:
    """A running deployment: one web process, one worker, and the stand-in Stripe."""

    sandbox: Sandbox
    worker: WorkerProcess
    pool: Pool

    async def settled(self, timeout_s: float = 20) -> None:
        """Everything delivered, drained and performed."""
        assert await self.sandbox.webhooks.flush(timeout_s) == 0
        async with asyncio.timeout(timeout_s):
            while True:
                left = await self.pool.fetchval(
                    """select (select count(*) from inbox where state = 'waiting')
                            + (select count(*) from actions where state in ('planned', 'sending'))
                            + (select count(*) from lookups where state = 'waiting' and next_at < now() + interval '1 s')"""
                )
                if not left:
                    return
                await asyncio.sleep(0.05)

    async def verdicts(self) -> dict[str, tuple[str, str]]:
        rows = await self.pool.fetch(
            "select distinct on (subject) subject, rule, verdict from decisions order by subject, revision desc"
        )
        return {row["subject"]: (row["rule"], row["verdict"]) for row in rows}


@asynccontextmanager
async def house(settings: Settings, pool: Pool, **sandbox: Any) -> AsyncIterator[House]:
    async with Sandbox(webhook_secrets=[WEBHOOK_SECRET], **sandbox) as stripe:
        running = settings.model_copy(update={"stripe_api_base": stripe.url, "refunds": "auto", "policy": POLICY})
        async with listening(running) as web:
            stripe.configure({"webhook": {"url": f"http://127.0.0.1:{web.port}/stripe/webhook"}})
            worker = WorkerProcess(running)
            task = asyncio.create_task(worker.run())
            try:
                yield House(stripe, worker, pool)
            finally:
                worker.stop()
                await task


@pytest.mark.parametrize("api_version", ["2026-10-28.endive", "2025-02-24.acacia"])
async def test_a_double_click_is_refunded_once_and_its_subscription_ended(
    settings: Settings, pool: Pool, api_version: str
) -> None:
    async with house(settings, pool, api_version=api_version) as h:
        books = h.sandbox.books
        books.set_clock(int(time.time()) - 3600, running=False)
        price = books.new_price(books.new_product("FluxArt AI")["id"], "usd", 2900, interval="month", id_="price_basic")
        customer = books.new_customer(email="a@example.com", metadata={}, fingerprint="card1")
        first = books.subscribe(customer, [(price, 1)], metadata={"user_id": "u1"})
        books.advance(42)
        second = books.subscribe(customer, [(price, 1)], metadata={"user_id": "u1"})
        await h.settled()
        refunds = books.all("refund")
        assert [(r["amount"], r["reason"]) for r in refunds] == [(2900, "duplicate")]
        assert books.by_id[second["id"]]["status"] == "canceled"
        assert books.by_id[first["id"]]["status"] == "active"
        assert list((await h.verdicts()).values()) == [("D3", "refund")]
        await asyncio.sleep(0.3)
        assert len(books.all("refund")) == 1
