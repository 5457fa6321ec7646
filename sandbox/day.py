"""A merchant's day: catalogue, people, ordinary life, and the seeded cases with the truth about each of them."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from sandbox.billing import Books, after
from sandbox.store import Obj

HOUR = 3600
DAY = 86400
BEGINS_S = 26 * HOUR
"""The day begins so long before the real now ..."""
ENDS_S = 35 * 60
"""... and its last payment lies at least so long before it, so that a settle delay of ten minutes is over."""

Steps = Iterator[int]
"""A story: it yields the time of its next step (unix seconds) and is resumed then."""


class Truth(msgspec.Struct, kw_only=True):
    """What must come of one seeded case."""

    case: str
    rule: str
    expect: str
    """`refund`, `review` or `none`."""
    customer: str
    original: str | None
    duplicate: str | None
    """Charge ids. For `none`: the payment that looks like a copy and is not."""
    amount_minor: int
    """The money in question; 0 for `none`."""
    currency: str
    cancels: str | None = None
    """The subscription that ends with the refund."""
    reverses: bool = False
    """Whether a balance credit is taken back together with the refund."""


class Copy(NamedTuple):
    """One purchase of a subscription: what was bought, its first invoice, and the charge that paid it."""

    sub: Obj
    invoice: Obj
    charge: Obj


class Day:
    """Runs all stories in the order of their steps; at the end the clock is the real one."""

    def __init__(self, books: Books, *, customers: int = 240, seed: int = 1) -> None:
        self.books = books
        self.rng = random.Random(seed)
        self.seed = seed
        self.customers = customers
        self.start = int(time.time()) - BEGINS_S
        self.end = self.start + BEGINS_S - ENDS_S
        self.state = "waiting"
        self.progress = 0.0
        self.error: str | None = None
        self.finished = asyncio.Event()
        self.truth: list[Truth] = []
        self.price: dict[str, Obj] = {}
        self._people = 0
        self._stories = 0
        self._queue: list[tuple[int, int, Steps]] = []

    async def run(self) -> None:
        """Generate the day; `state` becomes `done`, or `failed` with `error`."""
        self.state = "running"
        try:
            await self._run()
            self.state, self.progress = "done", 1.0
        except Exception as error:
            self.state, self.error = "failed", f"{type(error).__name__}: {error}"
        finally:
            self.books.set_clock(time.time(), running=True)
            self.finished.set()

    async def _run(self) -> None:
        from sandbox import cases, life  # the stories know the day's types, the day only their lists

        before = len(self.books.by_id) - len(self.books.objects.get("webhook_endpoint", {}))
        self.books.rng = random.Random(f"day {self.seed} after {before}")
        self.books.set_clock(self.start - 70 * DAY, running=False)
        self.open_shop()
        for story in cases.stories(self):
            self.add(story)
        for story in life.stories(self, self.customers - cases.PEOPLE):
            self.add(story)
        steps = 0
        while self._queue:
            at, number, story = heapq.heappop(self._queue)
            self.books.set_clock(at)
            self._step(number, story)
            steps += 1
            if steps % 20 == 0:
                self.progress = max(0.0, min(0.99, (at - self.start) / (self.end - self.start)))
                await asyncio.sleep(0)
        self.books.set_clock(self.end)

    def add(self, story: Steps) -> None:
        """Take a story in; it runs up to its first moment."""
        self._stories += 1
        self._step(self._stories, story)

    def _step(self, number: int, story: Steps) -> None:
        due = next(story, None)
        if due is not None:
            if not self.books.now() <= due <= self.end:
                raise ValueError("a story goes back in time, or beyond the day")
            heapq.heappush(self._queue, (due, number, story))

    # -- the shop ------------------------------------------------------------------------------------------------------

    def open_shop(self) -> None:
        books = self.books
        if "price_basic" in books.by_id:  # a second day in the same shop
            self.price = {price["id"]: price for price in books.all("price")}
            return
        basic, pro = books.new_product("FluxArt AI Basic"), books.new_product("FluxArt AI Pro")
        team, seat = books.new_product("FluxArt AI Team"), books.new_product("FluxArt AI extra seat")
        pack, api = books.new_product("100 credits"), books.new_product("FluxArt AI rendering minutes")
        rows: list[tuple[str, Obj, str, int, str | None]] = [
            ("price_basic", basic, "usd", 2900, "month"),
            ("price_basic_yearly", basic, "usd", 29000, "year"),
            ("price_basic_weekly", basic, "usd", 900, "week"),
            ("price_basic_daily", basic, "usd", 199, "day"),
            ("price_basic_eur", basic, "eur", 2700, "month"),
            ("price_basic_gbp", basic, "gbp", 2400, "month"),
            ("price_basic_jpy", basic, "jpy", 4500, "month"),
            ("price_basic_kwd", basic, "kwd", 8900, "month"),
            ("price_pro", pro, "usd", 9900, "month"),
            ("price_pro_yearly", pro, "usd", 99000, "year"),
            ("price_team", team, "usd", 4900, "month"),
            ("price_seat", seat, "usd", 1200, "month"),
            ("price_pack_100", pack, "usd", 1500, None),
        ]
        included = {"month": "500", "year": "6000", "week": "125", "day": "20"}
        for id_, product, currency, amount, interval in rows:
            many = included.get(interval or "", "100")
            granted = {"credits": many} | ({"trial_credits": "50"} if interval else {})
            self.price[id_] = books.new_price(
                product["id"], currency, amount, interval=interval, id_=id_, metadata=granted
            )
        self.price["price_minutes"] = books.new_price(
            api["id"], "usd", 2, interval="month", id_="price_minutes", usage_type="metered"
        )

    # -- what stories use ----------------------------------------------------------------------------------------------

    def person(self, **method: Any) -> tuple[Obj, str]:
        """A new customer with a card of their own, and the person's id in the merchant's app."""
        self._people += 1
        user = f"u_{self.seed}_{self._people:05d}"
        return self.books.new_customer(**({"email": f"{user}@example.com"} | method)), user

    def sometime(self, hours: float = 12.0) -> int:
        """A moment in the first `hours` of the day."""
        return self.start + self.rng.randrange(10 * 60, int(hours * HOUR))

    def month_before(self, t: int) -> int:
        """When a monthly subscription must have begun to renew exactly at `t`."""
        at = datetime.fromtimestamp(t, UTC)
        for months in (1, 2):
            year, month = at.year + (at.month - 1 - months) // 12, (at.month - 1 - months) % 12 + 1
            try:
                begin = int(at.replace(year=year, month=month).timestamp())
            except ValueError:
                continue
            if after(begin, {"interval": "month", "interval_count": 1}, months) == t:
                return begin
        raise ValueError("no month has this day")

    def buy(self, customer: Obj, price: str = "price_basic", quantity: int = 1, **how: Any) -> Copy:
        """Subscribe; the charge is that of the first invoice."""
        sub = self.books.subscribe(customer, [(self.price[price], quantity)], **how)
        return self.copy_of(sub)

    def copy_of(self, sub: Obj) -> Copy:
        invoice = self.books.by_id[sub["latest_invoice"]]
        return Copy(sub, invoice, self.charge_of(invoice))

    def charge_of(self, invoice: Obj) -> Obj:
        """The first charge that paid (or is to pay) this invoice."""
        for payment in self.books.linked("invoice_payment", "invoice", invoice["id"]):
            charge = self.books.by_id[payment["payment"]["payment_intent"]]["latest_charge"]
            if charge:
                return self.books.by_id[charge]
        return {}

    def tell(
        self,
        case: str,
        rule: str,
        expect: str,
        original: Obj,
        duplicate: Obj,
        *,
        amount: int | None = None,
        cancels: Obj | None = None,
        reverses: bool = False,
    ) -> None:
        """Write one truth row; `amount` defaults to the whole later charge."""
        money = 0 if expect == "none" else duplicate["amount"] if amount is None else amount
        self.truth.append(
            Truth(
                case=case,
                rule=rule,
                expect=expect,
                customer=duplicate["customer"],
                original=original.get("id"),
                duplicate=duplicate["id"],
                amount_minor=money,
                currency=duplicate["currency"],
                cancels=cancels["id"] if cancels else None,
                reverses=reverses,
            )
        )
