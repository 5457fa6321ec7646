"""The sandbox's memory: its clock and what falls due, ids, objects in order with their links, lists, and events."""

from __future__ import annotations

import contextlib
import gc
import heapq
import random
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from sandbox import shapes

Obj = dict[str, Any]
"""A Stripe object in its newest shape (2026-10-28.endive), exactly as it goes over the wire."""

EVENTS_KEPT_S = 30 * 86400
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


class StripeError(Exception):
    """An answer that is not 2xx, in the words of docs.stripe.com/api/errors."""

    def __init__(
        self,
        status: int,
        type_: str,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        stored: bool = True,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.stored = stored
        """False where the request never began to execute: such an answer is not kept under its idempotency key."""
        error: Obj = {"message": message, "type": type_} | more
        if code is not None:
            error |= {"code": code, "doc_url": "https://stripe.com/docs/error-codes/" + code.replace("_", "-")}
        if param is not None:
            error["param"] = param
        self.body: Obj = {"error": error}


def missing(kind: str, id_: str, param: str = "id") -> StripeError:
    """404 `resource_missing`; a missing object named by a parameter is a 400 in some products, at Stripe's core a 404."""
    noun = {"subscription": "subscription", "dispute": "dispute"}.get(kind, kind.replace("_", " "))
    return StripeError(
        404, "invalid_request_error", f"No such {noun}: '{id_}'", code="resource_missing", param=param, stored=False
    )


def invalid(message: str, *, param: str | None = None, code: str | None = None, stored: bool = True) -> StripeError:
    """400 `invalid_request_error`."""
    return StripeError(400, "invalid_request_error", message, param=param, code=code, stored=stored)


LINKS: dict[str, dict[str, Callable[[Obj], Any]]] = {
    "charge": {"customer": lambda o: o["customer"], "payment_intent": lambda o: o["payment_intent"]},
    "payment_intent": {"customer": lambda o: o["customer"]},
    "refund": {"charge": lambda o: o["charge"], "payment_intent": lambda o: o["payment_intent"]},
    "dispute": {"charge": lambda o: o["charge"], "payment_intent": lambda o: o["payment_intent"]},
    "radar.early_fraud_warning": {"charge": lambda o: o["charge"], "payment_intent": lambda o: o["payment_intent"]},
    "invoice": {
        "customer": lambda o: o["customer"],
        "subscription": lambda o: (o["parent"] or {}).get("subscription_details", {}).get("subscription"),
    },
    "invoice_payment": {
        "invoice": lambda o: o["invoice"],
        "payment.payment_intent": lambda o: o["payment"].get("payment_intent"),
    },
    "subscription": {"customer": lambda o: o["customer"]},
    "subscription_schedule": {"customer": lambda o: o["customer"]},
    "balance_transaction": {"source": lambda o: o["source"]},
    "customer_balance_transaction": {"customer": lambda o: o["customer"]},
    "checkout.session": {
        "payment_intent": lambda o: o["payment_intent"],
        "subscription": lambda o: o["subscription"],
        "customer": lambda o: o["customer"],
    },
    "price": {"product": lambda o: o["product"]},
}
"""Filters that are looked up in an index, because an object never leaves one value for another."""


@contextlib.contextmanager
def standing() -> Iterator[None]:
    """What is made meanwhile stays: the garbage collector need not walk through it again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class Store:
    """Objects, clock and events; the behaviour of payments and billing is built on top of it."""

    def __init__(
        self,
        *,
        seed: int = 1,
        livemode: bool = False,
        api_version: str = shapes.NEWEST,
        clock: float | None = None,
        running: bool = True,
    ) -> None:
        self.rng = random.Random(seed)
        self.livemode = livemode
        self.event_version = api_version
        self.events_on = True
        self.objects: dict[str, dict[str, Obj]] = {}
        self.by_id: dict[str, Obj] = {}
        self.invoice_of: dict[str, str] = {}
        """Payment intent to the invoice it was made for."""
        self.calls: list[Obj] = []
        """Every POST and DELETE received, with its idempotency key and what became of it."""
        self.request: Obj = {"id": None, "idempotency_key": None}
        self.on_event: Callable[[list[tuple[Obj, Obj]]], None] = lambda told: None
        """Called for each new event with the endpoints that hear of it, each with the event in its own version."""
        self.ungenerated: list[tuple[int, str, str, str]] = []
        """Events that were not made while `events_on` was false: when, which type, the object's kind and its id."""
        self.pending: dict[str, int] = {}
        """Event id to the number of deliveries that have had no 2xx yet (`pending_webhooks`)."""
        self._order: dict[str, list[tuple[int, int, str]]] = {}
        self._key: dict[str, tuple[int, int, str]] = {}
        self._index: dict[tuple[str, str, str], list[str]] = {}
        self._seq = 0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._base = time.time() if clock is None else float(clock)
        self._anchor = time.time()
        self._frozen: float | None = None
        self.running = running

    # -- clock ---------------------------------------------------------------------------------------------------------

    def clock(self) -> float:
        """Sandbox time in unix seconds."""
        if self._frozen is not None:
            return self._frozen
        return self._base + (time.time() - self._anchor if self.running else 0.0)

    def now(self) -> int:
        return int(self.clock())

    def set_clock(self, ts: float, *, running: bool | None = None) -> None:
        """Move to `ts` (unix seconds). Forward: everything that falls due on the way happens at its own time."""
        if ts > self.clock():
            self._run_due(ts)
        if running is not None:
            self.running = running
        self._base, self._anchor = float(ts), time.time()

    def advance(self, seconds: float) -> None:
        self.set_clock(self.clock() + seconds)

    def tick(self) -> None:
        """Do what has fallen due while the clock ran."""
        self._run_due(self.clock())

    def _run_due(self, until: float) -> None:
        before = self._frozen
        try:
            while self._due and self._due[0][0] <= until:
                ts, _, act = heapq.heappop(self._due)
                self._frozen = ts
                act()
        finally:
            self._frozen = before

    def at(self, ts: float, act: Callable[[], None]) -> None:
        """Let `act` happen at sandbox time `ts`; it must look at the state it finds, which may have moved on."""
        self._seq += 1
        heapq.heappush(self._due, (ts, self._seq, act))

    # -- objects -------------------------------------------------------------------------------------------------------

    def new_id(self, prefix: str, length: int = 24) -> str:
        return prefix + "".join(self.rng.choices(ALPHABET, k=length))

    def put(self, obj: Obj) -> Obj:
        """Keep a new object; the list order is by `created`, then by order of creation."""
        kind: str = obj["object"]
        self._seq += 1
        key = (obj["created"], self._seq, obj["id"])
        self.objects.setdefault(kind, {})[obj["id"]] = obj
        self.by_id[obj["id"]] = obj
        self._key[obj["id"]] = key
        insort(self._order.setdefault(kind, []), key)
        self.link(obj)
        return obj

    def link(self, obj: Obj) -> None:
        """Enter the object's links into the index; to be called again when a link that was null gets its value."""
        for name, read in LINKS.get(obj["object"], {}).items():
            value = read(obj)
            if value is not None:
                ids = self._index.setdefault((obj["object"], name, value), [])
                if obj["id"] not in ids:
                    ids.append(obj["id"])

    def get(self, kind: str, id_: str, param: str = "id") -> Obj:
        """The object, or Stripe's 404."""
        try:
            return self.objects[kind][id_]
        except KeyError:
            raise missing(kind, id_, param) from None

    def all(self, kind: str) -> Iterable[Obj]:
        return self.objects.get(kind, {}).values()

    def linked(self, kind: str, name: str, value: str) -> list[Obj]:
        """Objects of `kind` whose link `name` is `value`, oldest first."""
        return [self.objects[kind][id_] for id_ in self._index.get((kind, name, value), ())]

    def page(
        self,
        kind: str,
        *,
        limit: int,
        links: dict[str, str],
        keep: Callable[[Obj], bool],
        created: tuple[int, int],
        starting_after: str | None = None,
        ending_before: str | None = None,
    ) -> tuple[list[Obj], bool]:
        """One page, newest first, and whether there is more. `created` is a half-open window [from, until)."""
        if links:
            sets = [set(self._index.get((kind, name, value), ())) for name, value in links.items()]
            keys = sorted(self._key[id_] for id_ in set.intersection(*sets))
        else:
            keys = self._order.get(kind, [])
        low, high = bisect_left(keys, (created[0], -1, "")), bisect_left(keys, (created[1], -1, ""))
        if starting_after:
            high = min(high, bisect_left(keys, self._cursor(kind, starting_after, "starting_after")))
        if ending_before:
            low = max(low, bisect_right(keys, self._cursor(kind, ending_before, "ending_before")))
        span = range(low, high) if ending_before else range(high - 1, low - 1, -1)
        shelf, found = self.objects.get(kind, {}), []
        for i in span:
            obj = shelf[keys[i][2]]
            if keep(obj):
                found.append(obj)
                if len(found) > limit:
                    break
        more = len(found) > limit
        found = found[:limit]
        return (found[::-1] if ending_before else found), more

    def _cursor(self, kind: str, id_: str, param: str) -> tuple[int, int, str]:
        self.get(kind, id_, param)
        return self._key[id_]

    def drop(self, obj: Obj) -> None:
        """Take an object without links out again, as if it had never been."""
        kind, id_ = obj["object"], obj["id"]
        self._order[kind].remove(self._key.pop(id_))
        del self.objects[kind][id_], self.by_id[id_]

    def forget(self, before: int) -> None:
        """Drop the events made before `before` (unix seconds), as Stripe does after 30 days."""
        shelf, order = self.objects.get("event", {}), self._order.get("event", [])
        gone = bisect_left(order, (before, -1, ""))
        for _, _, id_ in order[:gone]:
            del shelf[id_], self.by_id[id_], self._key[id_]
            self.pending.pop(id_, None)
        del order[:gone]

    # -- events --------------------------------------------------------------------------------------------------------

    def emit(self, type_: str, obj: Obj, previous: Obj | None = None) -> None:
        """Make an event: rendered now, in the API version of the endpoint, and never again (stripe.com/docs/webhooks)."""
        if not shapes.has_event(type_, self.event_version):
            return
        if not self.events_on:
            self.ungenerated.append((self.now(), type_, obj["object"], obj["id"]))
            return
        listening = self.listening(type_)
        event: Obj = {
            "id": self.new_id("evt_1"),
            "object": "event",
            "api_version": self.event_version,
            "created": self.now(),
            "data": self._payload(obj, previous, self.event_version),
            "livemode": self.livemode,
            "pending_webhooks": len(listening),
            "request": dict(self.request),
            "type": type_,
        }
        self.put(event)
        if listening:
            self.pending[event["id"]] = len(listening)
        told = []
        for endpoint in listening:
            version = endpoint["api_version"] or self.event_version
            own = event
            if version != self.event_version:
                own = event | {"api_version": version, "data": self._payload(obj, previous, version)}
            told.append((endpoint, own))
        self.on_event(told)

    def listening(self, type_: str) -> list[Obj]:
        """The webhook endpoints that hear of events of this type."""
        return []

    def _payload(self, obj: Obj, previous: Obj | None, version: str) -> Obj:
        payload: Obj = {"object": msgspec.Raw(shapes.encode(shapes.render(obj, version, self)))}
        if previous is not None:
            payload["previous_attributes"] = shapes.previous(obj, previous, version)
        return payload

    def change(self, obj: Obj, type_: str, **values: Any) -> None:
        """Set fields and emit `type_` with the old values as `previous_attributes`."""
        previous = {name: obj[name] for name, value in values.items() if obj[name] != value}
        obj.update(values)
        self.emit(type_, obj, previous)
