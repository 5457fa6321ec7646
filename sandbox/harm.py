"""What happens at Stripe in silence: things whose webhooks are never delivered, with the truth about each of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from sandbox.billing import ENDED, Books
from sandbox.day import Day
from sandbox.disputes import CLOSED
from sandbox.store import Obj
from sandbox.webhooks import Webhooks

STEP_S = 20
"""Between one act and the next; what falls due meanwhile is told as ever."""


class Harmed(msgspec.Struct, kw_only=True):
    """One silent act."""

    what: str
    object: str
    """The object that says it: the refund, the dispute, the later charge, the subscription."""
    customer: str | None
    amount_minor: int = 0
    currency: str | None = None
    expect: str = "healed"
    """`healed`: the books follow. `refund`: the later payment goes back too. `review`: a person has to look."""
    also: list[str] = []
    """Other objects that it made or changed."""


class Harm:
    """Does harm to the books of a sandbox: each customer at most once, and none of those whose cases are seeded."""

    def __init__(self, books: Books, webhooks: Webhooks, day: Day, seed: int = 1) -> None:
        self.books, self.webhooks, self.day = books, webhooks, day
        self.rng = random.Random(f"harm {seed}")
        self.done: list[Harmed] = []
        self._spared = {row.customer for row in day.truth}

    def do(self, asked: dict[str, int]) -> list[Harmed]:
        """So many of each of `KINDS`, as far as there are objects for it."""
        for what, count in asked.items():
            for _ in range(count):
                self.books.advance(STEP_S)
                row = KINDS[what](self)
                if row is None:
                    break
                self.done.append(row)
        return self.done

    def silently(self, act: Callable[[], Any]) -> Any:
        """Let it happen: its events stand in `/v1/events`, but are on their way to nobody."""
        self.webhooks.deaf = True
        try:
            return act()
        finally:
            self.webhooks.deaf = False

    def pick(self, objects: Iterator[Obj], customer: Callable[[Obj], str | None]) -> Obj | None:
        """One of them, whose customer is left alone from then on."""
        found = sorted((o for o in objects if customer(o) not in self._spared), key=lambda o: str(o["id"]))
        if not found:
            return None
        chosen = self.rng.choice(found)
        self._spared.add(str(customer(chosen)))
        return chosen

    def newcomer(self) -> tuple[Obj, str]:
        who, user = self.day.person()
        self._spared.add(who["id"])
        return who, user

    # -- what there is to harm -----------------------------------------------------------------------------------------

    def untouched(self) -> Iterator[Obj]:
        """Settled card payments that nobody refunded or disputed."""
        for charge in self.books.all("charge"):
            fresh = charge["captured"] and not charge["amount_refunded"] and not charge["disputed"]
            if fresh and charge["customer"] and charge["id"].startswith("ch_"):
                yield charge

    def subscriptions(self, *statuses: str) -> Iterator[Obj]:
        return (sub for sub in self.books.all("subscription") if sub["status"] in statuses and not sub["test_clock"])

    def of_charge(self, obj: Obj) -> str | None:
        """The customer of a refund or a dispute."""
        customer: str | None = self.books.by_id[obj["charge"]]["customer"]
        return customer


def _customer(obj: Obj) -> str | None:
    customer: str | None = obj["customer"]
    return customer


def _money(what: str, obj: Obj, customer: str | None, expect: str, *also: str) -> Harmed:
    return Harmed(
        what=what,
        object=obj["id"],
        customer=customer,
        amount_minor=obj["amount"],
        currency=obj["currency"],
        expect=expect,
        also=list(also),
    )


def dispute_closed(h: Harm) -> Harmed | None:
    """A dispute that was open comes to its end."""
    open_ones = (d for d in h.books.all("dispute") if d["status"] not in CLOSED)
    if (dispute := h.pick(open_ones, h.of_charge)) is None:
        return None
    end = "warning_closed" if dispute["status"].startswith("warning_") else h.rng.choice(["won", "lost"])
    h.silently(lambda: h.books.set_dispute(dispute, end))
    return _money("dispute_closed", dispute, h.of_charge(dispute), "healed", end)


def dispute_opened(h: Harm) -> Harmed | None:
    """A chargeback on a payment that nobody repeated."""
    if (charge := h.pick(h.untouched(), _customer)) is None:
        return None
    dispute: Obj = h.silently(lambda: h.books.open_dispute(charge, reason="product_not_received"))
    return _money("dispute_opened", dispute, charge["customer"], "healed", charge["id"])


def warning(h: Harm) -> Harmed | None:
    """An early fraud warning."""
    if (charge := h.pick(h.untouched(), _customer)) is None:
        return None
    made: Obj = h.silently(lambda: h.books.warn_of_fraud(charge))
    return Harmed(what="warning", object=made["id"], customer=charge["customer"], also=[charge["id"]])


def refund_by_hand(h: Harm) -> Harmed | None:
    """Somebody at the Dashboard gives back what nothing owes (2, 6)."""
    if (charge := h.pick(h.untouched(), _customer)) is None:
        return None
    part = h.rng.choice([None, charge["amount"] // 3 or None])
    refund: Obj = h.silently(lambda: h.books.create_refund(charge, part, reason="requested_by_customer"))
    return _money("refund_by_hand", refund, charge["customer"], "review", charge["id"])


def refund_failed(h: Harm) -> Harmed | None:
    """A refund that had gone out comes back; one that the API made, if there is one."""
    return _refund(h, "refund_failed", ("pending", "succeeded"), h.books.fail_refund)


def refund_succeeded(h: Harm) -> Harmed | None:
    """A refund that was pending arrives."""
    return _refund(h, "refund_succeeded", ("pending",), h.books.settle_refund)


def _refund(h: Harm, what: str, statuses: tuple[str, ...], act: Callable[[Obj], None]) -> Harmed | None:
    """On refunds with metadata first: those are the ones that somebody waits for. Seeded customers are not spared here."""
    harmed = {row.object for row in h.done}
    fit = [r for r in h.books.all("refund") if r["status"] in statuses and r["id"] not in harmed]
    found = sorted(fit, key=lambda r: (not r["metadata"], str(r["id"])))
    if not found:
        return None
    named = [refund for refund in found if refund["metadata"]] or found
    refund = h.rng.choice(named)
    h.silently(lambda: act(refund))
    expect = "review" if what == "refund_failed" and refund["metadata"] else "healed"
    return _money(what, refund, h.of_charge(refund), expect, refund["charge"])


def duplicate_d1(h: Harm) -> Harmed | None:
    """One invoice is paid a second time; Stripe books no credit for it."""
    who, user = h.newcomer()
    copy = h.day.buy(who, metadata={"user_id": user})
    h.books.advance(STEP_S)
    again: Obj = h.silently(lambda: h.books.pay_again(copy.invoice, credit=False))
    return _money("duplicate_d1", again, who["id"], "refund", copy.charge["id"])


def duplicate_d3(h: Harm) -> Harmed | None:
    """The same plan is bought a second time by a double click."""
    who, user = h.newcomer()
    first = h.day.buy(who, metadata={"user_id": user})
    h.books.advance(5)
    second = h.silently(lambda: h.day.buy(who, metadata={"user_id": user}))
    return _money("duplicate_d3", second.charge, who["id"], "refund", first.charge["id"], second.sub["id"])


def trial_ended(h: Harm) -> Harmed | None:
    """A trial ends before its time, and is paid for or not."""
    if (sub := h.pick(h.subscriptions("trialing"), _customer)) is None:
        return None
    h.silently(lambda: h.books.set_trial_end(sub, h.books.now()))
    return Harmed(what="trial_ended", object=sub["id"], customer=sub["customer"], also=[sub["latest_invoice"]])


def subscription_ended(h: Harm) -> Harmed | None:
    """A subscription ends at once."""
    if (sub := h.pick(h.subscriptions("active", "past_due"), _customer)) is None:
        return None
    h.silently(lambda: h.books.cancel(sub))
    return Harmed(what="subscription_ended", object=sub["id"], customer=sub["customer"])


def charged_after_end(h: Harm) -> Harmed | None:
    """The app bills one more period of what has ended (1.2)."""
    if (sub := h.pick(h.subscriptions(*ENDED), _customer)) is None:
        return None
    method = h.books.new_method(h.books.by_id[sub["customer"]])
    charge: Obj = h.silently(lambda: h.books.charge_after_end(sub, method=method))
    invoice = h.books.linked("invoice", "subscription", sub["id"])[-1]["id"]
    return _money("charged_after_end", charge, sub["customer"], "review", sub["id"], invoice)


KINDS: dict[str, Callable[[Harm], Harmed | None]] = {
    act.__name__: act
    for act in (
        dispute_closed,
        dispute_opened,
        warning,
        refund_by_hand,
        refund_failed,
        refund_succeeded,
        duplicate_d1,
        duplicate_d3,
        trial_ended,
        subscription_ended,
        charged_after_end,
    )
}
THREE_OF_EACH = dict.fromkeys(KINDS, 3)


def harm(books: Books, webhooks: Webhooks, day: Day | None, asked: dict[str, Any]) -> list[Harmed]:
    """As `POST /_sandbox/harm` asks for it: {seed, and how many of each of `KINDS`}; three of each if none is named."""
    counts = {what: count for what, count in asked.items() if what != "seed"}
    unknown = sorted(set(counts) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown harm {', '.join(unknown)}; there are {', '.join(KINDS)}")
    if day is None:
        day = Day(books, seed=int(asked.get("seed", 1)))
        day.open_shop()
    return Harm(books, webhooks, day, int(asked.get("seed", 1))).do(counts or THREE_OF_EACH)
