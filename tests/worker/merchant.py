"""A merchant in a test: the sandbox's Stripe, real books, and the worker's steps one at a time instead of a running worker."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from handlers.terms import Policy, load_policy, parse_policy
from sandbox import Sandbox
from sandbox.webhooks import snapshot_body, thin_body
from worker.db import Pool, transaction
from worker.drain import drain
from worker.inbox import read_event, store_rows
from worker.judging import Court
from worker.perform import Performer
from worker.settings import Settings
from worker.stripe_gateway import StripeGateway

POLICY_FILE = Path(__file__).with_name("prompt.policy.toml")
POLICY = load_policy(POLICY_FILE)
Obj = dict[str, Any]


def policy_with(*changes: tuple[str, str]) -> Policy:
    """The tests' policy with some of its text replaced."""
    text = POLICY_FILE.read_text(encoding="utf-8")
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return parse_policy(text)


REVERSING = policy_with(("reverse_overpaid_credit = false", "reverse_overpaid_credit = true"))


async def store(pool: Pool, *bodies: bytes) -> int:
    """Bodies into the inbox, as the web process stores them. Returns how many were new."""
    async with transaction(pool) as conn:
        return await store_rows(conn, [read_event(body, "test") for body in bodies])


class Merchant:
    """Stripe's side in `books`, ours in `pool`; nothing is heard, drained or performed unless the test says so."""

    def __init__(self, sandbox: Sandbox, pool: Pool, settings: Settings, court: Court, gateway: StripeGateway) -> None:
        self.sandbox, self.books, self.pool, self.settings = sandbox, sandbox.books, pool, settings
        self.court, self.gateway = court, gateway
        self.performer = Performer(pool, court, gateway, "test")
        self._heard = 0
        self.books.set_clock(int(time.time()) - 3600, running=False)
        self.price = self.books.new_price(
            self.books.new_product("FluxArt AI")["id"], "usd", 2900, interval="month", id_="price_basic"
        )

    # at Stripe

    def customer(self, **metadata: str) -> Obj:
        number = len(list(self.books.all("customer")))
        return self.books.new_customer(email=f"{number}@example.com", metadata=metadata, fingerprint=f"card{number}")

    def buy(self, customer: Obj, user: str = "u1", **how: Any) -> Obj:
        sub = self.books.subscribe(customer, [(self.price, 1)], metadata={"user_id": user}, **how)
        self.books.advance(42)
        return sub

    def charge_of(self, sub: Obj) -> Obj:
        (row,) = self.books.linked("invoice_payment", "invoice", sub["latest_invoice"])[:1]
        intent = self.books.by_id[row["payment"]["payment_intent"]]
        charge: Obj = self.books.by_id[intent["latest_charge"]]
        return charge

    def double_click(self, user: str = "u1") -> tuple[Obj, Obj]:
        """D3: two subscriptions of one customer, 42 seconds apart."""
        customer = self.customer()
        return self.buy(customer, user), self.buy(customer, user)

    def paid_twice(self, *, credit: bool = False) -> tuple[Obj, Obj]:
        """D1: one invoice, two payments. Returns the invoice and the second charge."""
        sub = self.buy(self.customer())
        invoice = self.books.by_id[sub["latest_invoice"]]
        charge = self.books.pay_again(invoice, credit=credit)
        self.books.advance(42)
        return invoice, charge

    @property
    def refunds(self) -> list[Obj]:
        """Refunds of ours at Stripe."""
        return [r for r in self.books.all("refund") if (r["metadata"] or {}).get("finalsale_action")]

    def calls(self, path: str, method: str = "POST") -> list[Obj]:
        """Mutations that reached Stripe on a path."""
        return [c for c in self.books.calls if c["path"].endswith(path) and c["method"] == method]

    def fault(self, *rules: Obj) -> None:
        self.sandbox.configure({"faults": {"rules": list(rules)}})

    # between

    def news(self) -> list[Obj]:
        """Events made since the last time."""
        events = list(self.books.all("event"))
        new, self._heard = events[self._heard :], len(events)
        return new

    async def hear(self, events: Iterable[Obj] | None = None) -> None:
        """Deliver events (what is new, unless others are given) and drain them."""
        bodies = [snapshot_body(event) for event in (self.news() if events is None else events)]
        await store(self.pool, *bodies)
        await self.drain()

    async def hear_thin(self) -> None:
        await store(self.pool, *(thin_body(event, self.books) for event in self.news()))
        await self.drain()

    def lose(self) -> None:
        """What happened since then is never delivered."""
        self.news()

    # ours

    async def drain(self) -> int:
        return await drain(self.pool, self.court)

    async def perform(self, times: int = 1, by: Performer | None = None) -> None:
        """Every action that is begun or planned gets its turn now, whatever it was told to wait for."""
        for _ in range(times):
            await self.pool.execute("update actions set next_at = now() where state in ('planned', 'sending')")
            await (by or self.performer).perform_due()

    async def look_up(self, times: int = 1) -> None:
        for _ in range(times):
            await self.pool.execute("update lookups set next_at = now() where state = 'waiting'")
            await self.performer.look_up_due()

    async def to_the_end(self) -> None:
        """Hear, look up and perform until nothing moves any more."""
        for _ in range(8):
            await self.hear()
            await self.look_up()
            await self.perform()
        await self.hear()

    async def actions(self) -> dict[str, str]:
        """State by kind, or by kind and subject where there are several of one."""
        rows = await self.pool.fetch("select kind, subject, state from actions order by step, subject")
        kinds = [row["kind"] for row in rows]
        several = len(set(kinds)) < len(kinds)
        return {(f"{r['kind']} {r['subject']}" if several else r["kind"]): r["state"] for r in rows}

    async def refund_row(self) -> Any:
        (row,) = await self.pool.fetch("select * from actions where kind = 'refund'")
        return row

    async def verdicts(self) -> dict[str, str]:
        """Verdict in force by charge."""
        rows = await self.pool.fetch(
            "select distinct on (subject) subject, verdict from decisions order by subject, revision desc"
        )
        return {row["subject"]: row["verdict"] for row in rows}

    async def reason(self, subject: str) -> str:
        body = await self.pool.fetchval(
            "select body from decisions where subject = $1 order by revision desc limit 1", subject
        )
        return str(msgspec.json.decode(body)["reason"])


@asynccontextmanager
async def merchant(
    settings: Settings,
    pool: Pool,
    *,
    policy: Policy = POLICY,
    refunds: str = "auto",
    timeout_s: float = 2.0,
    **sandbox: Any,
) -> AsyncIterator[Merchant]:
    """A merchant whose worker judges by `policy` and moves money by itself, unless `refunds` says otherwise."""
    async with Sandbox(**sandbox) as stripe:
        running = settings.model_copy(update={"stripe_api_base": stripe.url, "refunds": refunds, "policy": POLICY_FILE})
        gateway = StripeGateway(running, timeout_s=timeout_s)
        try:
            yield Merchant(stripe, pool, running, Court(policy=policy, refunds=refunds), gateway)
        finally:
            await gateway.aclose()
