"""A running sandbox, a plain HTTP client for it, and a receiver of webhooks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from sandbox import Sandbox

Obj = dict[str, Any]
NOW = 1_790_000_000
"""Sandbox time of most tests; the clock stands still there."""


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: Any

    @property
    def error(self) -> Obj:
        found: Obj = self.body["error"]
        return found


class Client:
    """Form-encoded requests with a key, and nothing clever."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self.session = url, session

    async def ask(self, method: str, path: str, params: Obj | None = None, **headers: str) -> Answer:
        headers = {"Authorization": "Bearer sk_test_x"} | {k.replace("_", "-"): v for k, v in headers.items()}
        async with self.session.request(
            method,
            self.url + path,
            params=params if method == "GET" else None,
            data=params if method != "GET" else None,
            headers=headers,
        ) as answer:
            return Answer(answer.status, dict(answer.headers), msgspec.json.decode(await answer.read()))

    async def get(self, path: str, **params: str | int) -> Answer:
        return await self.ask("GET", path, params)

    async def post(self, path: str, params: Obj | None = None, key: str | None = None, **headers: str) -> Answer:
        return await self.ask("POST", path, params, **(headers | ({"Idempotency_Key": key} if key else {})))


class Receiver:
    """An endpoint that keeps what it got and answers as told."""

    def __init__(self) -> None:
        self.url = ""
        self.got: list[tuple[bytes, str]] = []
        self.answers: list[int] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.got.append((await request.read(), request.headers["Stripe-Signature"]))
        return web.Response(status=self.answers.pop(0) if self.answers else 200)

    def events(self) -> list[Obj]:
        return [msgspec.json.decode(body) for body, _ in self.got]


@pytest.fixture
async def sb() -> AsyncIterator[Sandbox]:
    async with Sandbox(clock=NOW, running=False) as sandbox:
        yield sandbox


@pytest.fixture
async def client(sb: Sandbox) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        yield Client(sb.url, session)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


class Shop:
    """One plan and one customer, which most tests need."""

    def __init__(self, sb: Sandbox) -> None:
        books = sb.books
        product = books.new_product("FluxArt AI")
        self.books = books
        self.basic = books.new_price(product["id"], "usd", 2900, interval="month")
        self.pro = books.new_price(product["id"], "usd", 9900, interval="month")
        self.pack = books.new_price(product["id"], "usd", 1500)
        self.customer = books.new_customer(email="a@example.com")

    def subscribe(self, **how: Any) -> tuple[Obj, Obj, Obj]:
        """A subscription, its first invoice and the charge that paid it."""
        sub = self.books.subscribe(self.customer, [(self.basic, 1)], **how)
        invoice = self.books.by_id[sub["latest_invoice"]]
        payments = self.books.linked("invoice_payment", "invoice", invoice["id"])
        pi = self.books.by_id[payments[0]["payment"]["payment_intent"]] if payments else {}
        return sub, invoice, self.books.by_id.get(pi.get("latest_charge") or "", {})

    def charge(self, amount: int = 2900, **method: Any) -> Obj:
        how = self.books.new_method(None, **method) if method else None
        return self.books.pay_bare(self.customer, amount, "usd", method=how)[1]


@pytest.fixture
def shop(sb: Sandbox) -> Shop:
    return Shop(sb)


async def settle() -> None:
    """Let tasks run that are ready."""
    for _ in range(5):
        await asyncio.sleep(0)
