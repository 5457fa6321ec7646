"""Customers' lives at random, for the property tests: everything people, banks and operators may do, on days of no order."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime

from handlers.account import ActKind
from sandbox.store import Obj, StripeError
from tests.worker.rehearsal import DAY, Scene, Story
from worker.reading import NotFound
from worker.review import ActRefused

LAST_DAY = 60
STATUSES = ("needs_response", "under_review", "won", "lost", "appeal_under_review", "warning_closed", "arbitration")
OPENED = ("needs_response", "needs_response", "warning_needs_response", "prevented", "arbitration")


class Life:
    """One customer's life. Every step picks something that can be done with what there is; what Stripe refuses is no step."""

    def __init__(self, scene: Scene, rng: random.Random, *, consuming: bool) -> None:
        self.s, self.rng, self.books = scene, rng, scene.books
        self.consuming = consuming

    async def days(self) -> AsyncIterator[float]:
        day = 0.0
        self.s.buy(self._plan(), trial_end=self.s.at(7) if self.rng.random() < 0.4 else None)
        while True:
            day += self.rng.choice((42 / DAY, 0.02, 1.3, 3.1, 6.7, 11.9))
            if day > LAST_DAY:
                return
            yield day
            with suppress(StripeError, ActRefused, NotFound, IndexError, ValueError):
                await self._step()

    def _plan(self) -> str:
        return self.rng.choice(("price_basic", "price_basic", "price_own", "price_pro"))

    async def _step(self) -> None:
        act = self.rng.choice((self._shop, self._shop, self._subscription, self._subscription, self._bank, self._bank))
        if self.rng.random() < 0.2:
            await self._operator()
        elif self.consuming and self.rng.random() < 0.3:
            await self.s.consume(self.rng.randint(1, 300), key=f"k{self.rng.random()}")
        else:
            act()

    def _mine(self, kind: str) -> list[Obj]:
        mine = set(self.s.customers)
        charges = {c["id"] for c in self.books.all("charge") if c["customer"] in mine}
        return [o for o in self.books.all(kind) if o.get("customer") in mine or o.get("charge") in charges]

    def _one(self, kind: str) -> Obj:
        return self.rng.choice(self._mine(kind))

    # what people do

    def _shop(self) -> None:
        rng, s = self.rng, self.s
        invoices = [i for i in self._mine("invoice") if i["status"] == "paid" and i["amount_paid"]]
        deeds: tuple[Callable[[], object], ...] = (
            lambda: s.buy("price_basic"),
            lambda: s.buy(self._plan(), quantity=rng.randint(1, 3)),
            lambda: s.buy("price_basic", extra=[(s.stage.prices["price_pack_100"], 1)]),
            lambda: s.buy("price_basic", by=s.somebody() if len(s.customers) < 2 else s.customer),
            lambda: s.pack(rng.choice(("price_pack_100", "price_pack_40")), quantity=rng.randint(1, 2)),
            lambda: s.pack(method=self.books.new_method(s.customer, type="us_bank_account", charge=self._luck())),
            lambda: self.books.pay_again(rng.choice(invoices), credit=rng.random() < 0.3),
            lambda: self.books.new_method(s.customer, charge=rng.choice(("declines", "succeeds"))),
        )
        rng.choice(deeds)()

    def _luck(self) -> str:
        return self.rng.choice(("succeeds", "fails"))

    def _subscription(self) -> None:
        rng, s = self.rng, self.s
        sub = self._one("subscription")
        later = self.books.now() + rng.randint(1, 30) * DAY
        deeds: tuple[Callable[[], object], ...] = (
            lambda: self.books.cancel_at_period_end(sub, rng.random() < 0.7),
            lambda: self.books.cancel_at(sub, rng.choice((later, None))),
            lambda: self.books.cancel(sub, prorate=rng.random() < 0.4, invoice_now=rng.random() < 0.5),
            lambda: self.books.set_trial_end(sub, later, proration="none"),
            # a grant is frozen: of a trial whose plan was changed the first telling says how much, so no order for those
            lambda: sub["trial_start"] or self.books.update_items(sub, [{"price": s.stage.prices[self._plan()]}]),
            lambda: self.books.pause_collection(sub, rng.choice(("void", None))),
            lambda: self.books.charge_after_end(sub),
            lambda: self.books.schedule(sub, [([self._held(sub)], later + 31 * DAY)], end_behavior="cancel"),
            lambda: self.books.release_schedule(self.books.by_id[sub["schedule"] or ""]) if sub["schedule"] else None,
        )
        rng.choice(deeds)()

    def _held(self, sub: Obj) -> tuple[Obj, int]:
        item = sub["items"]["data"][0]
        return item["price"], item["quantity"]

    def _bank(self) -> None:
        rng = self.rng
        deeds: tuple[Callable[[], object], ...] = (
            lambda: self.books.open_dispute(self._one("charge"), status=rng.choice(OPENED), due_by=self.s.at(90)),
            lambda: self.books.set_dispute(self._one("dispute"), rng.choice(STATUSES)),
            lambda: self.books.set_dispute(self._one("dispute"), rng.choice(STATUSES)),
            lambda: self.books.warn_of_fraud(self._one("charge")),
            lambda: self.books.create_refund(self._one("charge"), rng.choice((None, 100, 1000))),
            lambda: self.books.fail_refund(self._one("refund")),
        )
        rng.choice(deeds)()

    async def _operator(self) -> None:
        rng, s = self.rng, self.s
        until = datetime.fromtimestamp(self.books.now() + rng.randint(1, 20) * DAY, UTC)
        match rng.randrange(6):
            case 0:
                await s.act(ActKind.GRANT, credits=rng.randint(1, 90), until=rng.choice((until, None)))
            case 1:
                await s.act(ActKind.EXTEND, subscription=self._one("subscription")["id"], until=until)
            case 2:
                await s.act(ActKind.SUSPEND)
            case 3:
                await s.act(ActKind.LIFT)
            case 4:
                await s.act(ActKind.LIFT, dispute=self._one("dispute")["id"])
            case 5:
                await s.act(ActKind.KEEP, dispute=self._one("dispute")["id"])


def life(seed: int, *, consuming: bool) -> Story:
    """A story of one life."""

    async def story(scene: Scene) -> AsyncIterator[float]:
        rng = random.Random(f"{seed} {scene.number}")
        async for day in Life(scene, rng, consuming=consuming).days():
            yield day

    return story
