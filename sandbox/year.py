"""A merchant's year: thousands of customers live through it day by day, and every case that some clause is about is written down."""

from __future__ import annotations

import gc
import heapq
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

import msgspec

from sandbox.billing import ENDED, Books
from sandbox.day import DAY, HOUR, Day, Steps, Truth
from sandbox.store import EVENTS_KEPT_S, Obj
from sandbox.webhooks import Webhooks

BEFORE_CASES = 64
"""Days that the seeded cases may reach back: some begin with a renewal, two months before."""
AFTER_CASES = 6
SMALL, FEW_CASES = 200, 4
"""A year with fewer customers than this takes every fourth of the day's cases: each needs people of its own."""
UNTOLD = ("found_late",)
"""Cases that only arise where nothing was delivered for a month."""
LEAVE_AFTER = (20 * DAY, 27 * DAY)
"""When the people of a seeded case end what still runs: before it renews."""


class Known(msgspec.Struct, kw_only=True):
    """What the year did that some clause speaks of, as ids of Stripe's objects: nobody but the year can know it."""

    cases: list[Truth] = []
    """4.3: what must come of each seeded payment by the evening of the day on which it was told."""
    charged_after_end: list[str] = []
    """1.2: invoices for periods after the end."""
    prorated: list[str] = []
    """1.3: invoices that credit the unused rest at an immediate end."""
    by_hand: list[str] = []
    """2, 6: refunds of payments that repeat nothing."""
    warnings: list[str] = []
    """7: early fraud warnings."""
    enterprises: dict[str, str] = {}
    """8: customer by the name of what is agreed with them."""
    happened: dict[str, int] = {}
    """How often each kind of thing happened."""


class Year(Day):
    """The stories of a day, spread over a year, among people who come, stay for a while and leave."""

    def __init__(self, books: Books, webhooks: Webhooks, *, customers: int, days: int, seed: int = 1) -> None:
        super().__init__(books, customers=customers, seed=seed)
        if days < BEFORE_CASES + AFTER_CASES + 1:
            raise ValueError(f"a year has more than {BEFORE_CASES + AFTER_CASES} days")
        self.webhooks = webhooks
        self.days, self.today = days, 0
        self.end = int(time.time()) // DAY * DAY
        self.begin = self.end - days * DAY
        self.known = Known(cases=self.truth)
        self.happened: Counter[str] = Counter()
        self.acknowledged: list[str] = []
        """Events that had their 2xx, and were forgotten since."""

    def open(self) -> None:
        """The shop, the customers with agreements, and what everybody will do."""
        from sandbox import cases, life, lives  # the stories know the year's type, the year only their lists

        self.books.set_clock(self.begin, running=False)
        self.open_shop()
        studio = self.books.new_product("FluxArt AI Studio")["id"]
        for id_, amount, interval in (("price_studio", 3900, "month"), ("price_pack_studio", 1900, None)):
            self.price[id_] = self.books.new_price(studio, "usd", amount, interval=interval, id_=id_)
        lives.enterprises(self)
        few = FEW_CASES if self.customers < SMALL else 1
        for _ in range(max(1, self.customers // 3000)):
            self._spread(story for n, story in enumerate(cases.stories(self)) if n % few == 0)
            self._spread(life.stories(self, 0))
            self._spread(lives.seeded(self))
        for _ in range(self.customers):
            self.add(lives.customer(self))
        for part, becomes in ((5, "unpaid"), (7, "cancel")):  # how dunning ends, in eighths of the year
            self.books.at(
                self.begin + self.days * DAY * part // 8, partial(setattr, self.books, "after_retries", becomes)
            )

    def arrival(self) -> int:
        """When somebody comes."""
        return self.begin + self.rng.randrange(self.days * DAY - 2 * HOUR)

    def _spread(self, seeded: Iterable[Steps]) -> None:
        """Each story on a day of its own; it asks for its moment when it is taken in."""
        for story in seeded:
            self.start = self.begin + self.rng.randrange(BEFORE_CASES, self.days - AFTER_CASES) * DAY
            if getattr(story, "__name__", "") not in UNTOLD:
                self.add(story)

    def step(self) -> list[Truth]:
        """Live one more day, up to the next midnight; returns the cases told on it."""
        told = len(self.truth)
        self.today += 1
        until = self.begin + self.today * DAY
        while self._queue and self._queue[0][0] <= until:
            at, number, story = heapq.heappop(self._queue)
            self.books.set_clock(at)
            self._step(number, story)
        self.books.set_clock(until)
        self._forget(until - EVENTS_KEPT_S)
        gc.freeze()  # what was made today mostly stays: the collector need not walk through it again and again
        return self.truth[told:]

    def _step(self, number: int, story: Steps) -> None:
        due = next(story, None)
        if due is not None and due <= self.end:  # what lies beyond is another year's
            heapq.heappush(self._queue, (max(due, self.books.now()), number, story))

    def _forget(self, before: int) -> None:
        """Stripe keeps events for 30 days; what was delivered needs no more memory than its id."""
        gone = 0
        for delivery in self.webhooks.deliveries:
            if delivery.event["created"] >= before or delivery.state != "delivered":
                before = min(before, delivery.event["created"])
                break
            gone += 1
        old = self.webhooks.deliveries[:gone]
        del self.webhooks.deliveries[:gone]
        self.acknowledged += [delivery.event["id"] for delivery in old]
        self.books.forget(before)

    # -- what stories use ----------------------------------------------------------------------------------------------

    def tell(self, case: str, rule: str, expect: str, original: Obj, duplicate: Obj, **more: Any) -> None:
        """As on a day; and these people leave before what they bought renews."""
        super().tell(case, rule, expect, original, duplicate, **more)
        people = {charge["customer"] for charge in (original, duplicate) if charge}
        self.add(self._leave(sorted(people)))
        if (case, rule) == ("2, 6 refunded by hand without a copy", "6"):
            self.known.by_hand += [refund["id"] for refund in self.books.linked("refund", "charge", duplicate["id"])]

    def _leave(self, people: list[str]) -> Steps:
        yield self.books.now() + self.rng.randrange(*LEAVE_AFTER)
        for customer in people:
            for sub in self.books.linked("subscription", "customer", customer):
                if sub["status"] not in ENDED:
                    self.books.cancel(sub)

    def counted(self, what: str) -> None:
        """One more of this kind happened."""
        self.happened[what] += 1

    # -- what the driver reads -----------------------------------------------------------------------------------------

    def events(self) -> Obj:
        """Which events were made and which had their 2xx."""
        rest = self.webhooks.deliveries
        waiting = [d.event["id"] for d in rest if d.state != "delivered"]
        return {"acknowledged": [*self.acknowledged, *(d.event["id"] for d in rest if d.state == "delivered")]} | {
            "waiting": waiting
        }

    def ledger(self) -> Obj:
        """Stripe's side of the books in few words: subscriptions, what was paid on them, packs, refunds and disputes."""
        books = self.books
        charges = books.objects.get("charge", {})
        return {
            "prices": {price["id"]: price["metadata"] for price in books.all("price")},
            "subscriptions": [_subscription(books, sub) for sub in books.all("subscription")],
            "lines": [line for invoice in books.all("invoice") for line in _paid_lines(invoice)],
            "packs": [
                *(pack for session in books.all("checkout.session") for pack in _packs(books, session)),
                *(pack for invoice in books.all("invoice") for pack in _packs_on(books, invoice)),
            ],
            "refunds": list(books.all("refund")),
            "disputes": [
                {"id": d["id"], "status": d["status"], "charge": d["charge"], "created": d["created"]}
                | {"customer": charges[d["charge"]]["customer"], "paid": charges[d["charge"]]["created"]}
                for d in books.all("dispute")
            ],
        }


def _subscription(books: Books, sub: Obj) -> Obj:
    """A subscription with what it began with: its prices and quantities, as its first invoice has them."""
    names = ("id", "customer", "status", "created", "ended_at", "trial_start", "trial_end", "test_clock", "canceled_at")
    first = books.linked("invoice", "subscription", sub["id"])[0]
    items = [
        [line["pricing"]["price_details"]["price"], line["quantity"]]
        for line in first["lines"]["data"]
        if line["parent"]["subscription_item_details"]
    ]
    return {name: sub[name] for name in names} | {"items": items}


def _paid_lines(invoice: Obj) -> list[Obj]:
    """The service lines of a paid invoice that are no prorations and no usage."""
    details = (invoice["parent"] or {}).get("subscription_details")
    if invoice["status"] != "paid" or not details or invoice["billing_reason"] == "subscription_threshold":
        return []
    found = []
    for line in invoice["lines"]["data"]:
        item = line["parent"]["subscription_item_details"]
        if item and not item["proration"] and line["amount"] > 0:
            found.append(
                {
                    "id": line["id"],
                    "invoice": invoice["id"],
                    "customer": invoice["customer"],
                    "subscription": details["subscription"],
                    "item": item["subscription_item"],
                    "price": line["pricing"]["price_details"]["price"],
                    "quantity": line["quantity"],
                    "begins": line["period"]["start"],
                    "ends": line["period"]["end"],
                    "paid_at": invoice["status_transitions"]["paid_at"],
                    "created": invoice["created"],
                    "test_clock": invoice["test_clock"],
                }
            )
    return found


def _packs(books: Books, session: Obj) -> list[Obj]:
    """The pack that a Checkout session sold, once it is paid."""
    if session["mode"] != "payment" or session["payment_status"] != "paid":
        return []
    intent = books.by_id[session["payment_intent"]]
    return [
        {"purchase": session["id"], "customer": session["customer"], "price": intent["description"], "quantity": 1}
        | {"paid_at": session["created"]}
    ]


def _packs_on(books: Books, invoice: Obj) -> list[Obj]:
    """Packs that stand on a paid invoice, besides a subscription or alone."""
    if invoice["status"] != "paid":
        return []
    found = []
    for line in invoice["lines"]["data"]:
        item = line["parent"]["invoice_item_details"]
        price = line["pricing"]["price_details"]["price"]
        if item and not item["proration"] and line["amount"] > 0 and not books.by_id[price]["recurring"]:
            bought = {"purchase": line["id"], "customer": invoice["customer"], "price": price}
            found.append(bought | {"quantity": line["quantity"], "paid_at": invoice["status_transitions"]["paid_at"]})
    return found
