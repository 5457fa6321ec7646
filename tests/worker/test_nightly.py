"""The nightly run finds what no webhook told, and never looks clean when it could not look."""

from __future__ import annotations

import time

from sandbox import Sandbox
from worker.db import Pool
from worker.nightly import run_if_due
from worker.settings import Settings
from worker.stripe_gateway import StripeGateway


async def purchases(sandbox: Sandbox) -> None:
    books = sandbox.books
    books.set_clock(int(time.time()) - 3600, running=False)
    price = books.new_price(books.new_product("FluxArt AI")["id"], "usd", 2900, interval="month", id_="price_basic")
    for number in range(20):
        customer = books.new_customer(email=f"{number}@example.com", metadata={}, fingerprint=f"card{number}")
        books.subscribe(customer, [(price, 1)], metadata={"user_id": f"u{number}"})
    books.set_clock(int(time.time()), running=True)


async def test_events_that_never_arrived_are_stored_once_and_a_second_run_is_not_due(
    settings: Settings, pool: Pool
) -> None:
    async with Sandbox() as stripe:
        await purchases(stripe)
        running = settings.model_copy(update={"stripe_api_base": stripe.url})
        gateway = StripeGateway(running)
        gap = await run_if_due(pool, gateway, running)
        assert gap is not None
        made = {event["id"] for event in stripe.books.all("event")}
        stored = {row["event_id"] for row in await pool.fetch("select event_id from inbox where state = 'waiting'")}
        assert (gap.seen, gap.missing) == (len(made), len(made))
        assert stored == made
        assert await pool.fetchval("select state from schedule_runs") == "done"
        assert await run_if_due(pool, gateway, running) is None
        await gateway.aclose()


async def test_a_run_that_could_not_read_everything_is_incomplete(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        await purchases(stripe)
        stripe.configure({"faults": {"rules": [{"kind": "502_before", "rate": 1.0, "path": "/v1/events"}]}})
        running = settings.model_copy(update={"stripe_api_base": stripe.url})
        gateway = StripeGateway(running)
        await run_if_due(pool, gateway, running)
        assert await pool.fetchval("select state from schedule_runs") == "incomplete"
        await gateway.aclose()
