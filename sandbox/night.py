"""What a nightly run is tested with: a merchant with a past, some days that are lived through quickly, and their events held back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from sandbox.billing import Books
from sandbox.day import DAY, HOUR, Steps
from sandbox.store import Obj, standing
from sandbox.webhooks import Webhooks
from sandbox.year import AFTER_CASES, BEFORE_CASES, UNTOLD, Year

ENDS_S = 2 * HOUR
"""The last day ends so long before the real now: what is owed is owed by then, and `harm` has room to happen in."""
EACH, EACH_DAY = 13.0, 0.25
"""Objects and events within the days that a customer stands for: at all, and with each day more."""
PENDING = 4
"""Refunds that are still under way at the end, at least."""
NEW = 0.8
"""This share of the people comes during the days themselves; the others came before, and renew."""


class Night(Year):
    """Some days with about so many objects and events, ending two hours ago; before them two months in which all began."""

    def __init__(
        self, books: Books, webhooks: Webhooks, *, objects: int, days: int, seed: int = 1, begin: int | None = None
    ) -> None:
        people = max(1, round(objects / (EACH + EACH_DAY * days)))
        whole = max(BEFORE_CASES + AFTER_CASES + 1, BEFORE_CASES + 1 + days)
        super().__init__(books, webhooks, customers=people, days=whole, seed=seed)
        self.shown = days
        self.end = int(time.time()) - ENDS_S if begin is None else begin + days * DAY
        self.begin = self.end - whole * DAY

    def open(self) -> None:
        super().open()
        for _ in range(PENDING + self.customers // 500):
            self.add(self._refunded_by_hand())

    def _refunded_by_hand(self) -> Steps:
        """Out of policy (2, 6), and still under way when the days end."""
        yield self.end - self.rng.randrange(3 * HOUR, DAY)
        who, user = self.person(refund=self.rng.choice(["pending", "pending_fails"]))
        copy = self.buy(who, metadata={"user_id": user})
        yield self.books.now() + HOUR
        refund = self.books.create_refund(copy.charge, reason="requested_by_customer")
        self.known.by_hand.append(refund["id"])

    def arrival(self) -> int:
        if self.rng.random() < NEW:
            return self.end - 2 * HOUR - self.rng.randrange(self.shown * DAY)
        return super().arrival()

    def _spread(self, seeded: Iterable[Steps]) -> None:
        """Every case within the days; it takes a little more than one."""
        for story in seeded:
            day = self.days - 1 - self.shown + self.rng.randrange(self.shown)
            self.start = self.begin + day * DAY - 2 * HOUR
            if getattr(story, "__name__", "") not in UNTOLD:
                self.add(story)

    async def live(self) -> None:
        """Let it all happen. Events wait for `flush`; the clock then runs on, two hours late."""
        with standing():
            self.open()
            while self.today < self.days:
                self.step()
                await asyncio.sleep(0)
        self.books.set_clock(self.end, running=True)

    def told(self) -> Obj:
        """What there is, and what must come of the seeded payments."""
        return {
            "begin": self.end - self.shown * DAY,
            "end": self.end,
            "people": self.customers,
            "objects": {kind: len(objects) for kind, objects in self.books.objects.items()},
            "known": msgspec.structs.replace(self.known, happened=dict(self.happened)),
        }


def night(books: Books, webhooks: Webhooks, asked: dict[str, Any]) -> Night:
    """As `POST /_sandbox/night` asks for it: {objects, days, seed, from}."""
    return Night(
        books,
        webhooks,
        objects=asked.get("objects", 100_000),
        days=asked.get("days", 5),
        seed=asked.get("seed", 1),
        begin=asked.get("from"),
    )
