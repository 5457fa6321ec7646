"""Delivery of events to webhook endpoints: signed, retried until 2xx, lost where told, and as rude about order and number as Stripe."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import random
import time
import zlib
from collections import deque
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import aiohttp
import msgspec

from sandbox.endpoints import Endpoints
from sandbox.store import Obj

FIRST_RETRY_S = 0.2
LAST_RETRY_S = 5.0
ANSWER_WITHIN_S = 20.0
HEALTH = "v2.core.health.event_generation_failure.resolved"
RELATED = {"checkout.session": "checkout/sessions", "radar.early_fraud_warning": "radar/early_fraud_warnings"}
"""Where objects are read whose path is not their name with an s."""


class Endpoint(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where events go and how. Any field may be set by `POST /_sandbox/config` under `webhook`.

    `url`, `api_version`, `enabled_events` and `status` are those of an endpoint in `/v1/webhook_endpoints`, and follow it
    when it is updated there. The way of delivery holds for every endpoint, also for those made over the API.
    """

    url: str | None = None
    secrets: list[str] = []
    """One `v1` signature per secret: two while a secret is rolled."""
    api_version: str | None = None
    enabled_events: list[str] = msgspec.field(default_factory=lambda: ["*"])
    status: str = "enabled"
    duplicate: bool = False
    shuffle: int = 0
    """Hold back up to this many deliveries and let them go in random order (0: in order of creation)."""
    delay_s: float = 0.0
    drop: float = 0.0
    """This fraction is never delivered, but stands in `/v1/events` with `pending_webhooks` 1. Which ones: by their ids."""
    drop_seed: int = 1
    drop_types: list[str] = []
    """Events whose type matches one of these shell patterns are never delivered either."""
    thin: bool = False
    """Send each event also as a `v2.core.event` notification without its object."""
    v2_events: list[str] = msgspec.field(default_factory=lambda: [HEALTH])
    """What an event destination for thin events at the same URL listens to; none: there is no such destination."""
    concurrency: int = 16


class Delivery(msgspec.Struct, kw_only=True):
    """One event on its way to one endpoint."""

    event: Obj
    to: Obj
    """The webhook endpoint."""
    thin: bool = False
    body: bytes | None = None
    """Of a notification that is not about an event of `/v1/events`."""
    attempts: int = 0
    answers: list[int] = []
    """Status of each attempt; 0 where there was no answer."""
    state: str = "waiting"
    """`waiting`, `delivered`, `dropped`, or `prevented`: the endpoint was disabled or deleted meanwhile."""


def signature(body: bytes, secrets: list[str], at: int) -> str:
    """The `Stripe-Signature` header (stripe.com/docs/webhooks#verify-manually)."""
    signed = f"{at}.".encode() + body
    marks = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    return ",".join([f"t={at}", *(f"v1={mark}" for mark in marks)])


def snapshot_body(event: Obj) -> bytes:
    """An event as Stripe prints it: indented by two."""
    return msgspec.json.format(msgspec.json.encode(event), indent=2)


def thin_body(event: Obj, store: Endpoints) -> bytes:
    """The same event as a notification that only names its object."""
    related = msgspec.json.decode(event["data"]["object"])
    body = {
        "id": "evt_thin_" + event["id"].removeprefix("evt_"),
        "object": "v2.core.event",
        "type": "v1." + event["type"],
        "created": iso(event["created"]),
        "livemode": store.livemode,
        "context": None,
        "reason": None,
        "related_object": related_object(related["object"], related["id"]),
        "snapshot_event": event["id"],
    }
    return msgspec.json.format(msgspec.json.encode(body), indent=2)


def related_object(kind: str, id_: str) -> Obj:
    """How a v2 event names an object."""
    return {"id": id_, "type": kind, "url": f"/v1/{RELATED.get(kind, kind + 's')}/{id_}"}


def iso(at: int) -> str:
    """Unix seconds as v2 writes time."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class Webhooks:
    """Everything under way to the webhook endpoints of the sandbox."""

    def __init__(self, store: Endpoints, seed: int = 1) -> None:
        self.endpoint = Endpoint()
        self.deliveries: list[Delivery] = []
        self.paused = False
        """Hold every delivery back until `resume`."""
        self.deaf = False
        """What is made now is never delivered, as if it were among what `drop` takes."""
        self._store = store
        self._own: Obj | None = None
        """The endpoint in `/v1/webhook_endpoints` that `endpoint` describes."""
        self._rng = random.Random(seed)
        self._held: deque[Delivery] = deque()
        self._queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self._outstanding = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._workers: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None
        store.on_event = self.submit

    def configure(self, settings: dict[str, Any]) -> None:
        """Set what is named of `Endpoint`; what is not named stays, also as `/v1/webhook_endpoints` left it."""
        own, held = self.own, {}
        if own is not None:
            held = {name: own[name] for name in ("url", "api_version", "enabled_events", "status")}
        elif self._own is not None:  # deleted over the API
            held = {"url": None}
        how = msgspec.convert(msgspec.to_builtins(self.endpoint) | held | settings, Endpoint)
        self.endpoint = how
        if how.url is None:
            if own is not None:
                self._store.delete_webhook_endpoint(own)
            self._own = None
        else:
            self._own = own or self._store.new_webhook_endpoint(how.url, how.enabled_events)
            fields = {"url": how.url, "enabled_events": how.enabled_events, "status": how.status}
            self._own |= fields | {"api_version": how.api_version}
            self._store.secrets[self._own["id"]] = how.secrets
        self._store.thin = self._thin_destination()
        if how.api_version:
            self._store.event_version = how.api_version
        while len(self._workers) < how.concurrency:
            self._workers.append(asyncio.create_task(self._work()))

    def _thin_destination(self) -> Obj | None:
        """The destination for thin events: one of its own, at the same URL and with the same secrets."""
        if self._own is None or not self.endpoint.v2_events:
            return None
        id_ = "ed_test_" + self._own["id"].removeprefix("we_")
        return self._own | {"id": id_, "object": "event_destination", "enabled_events": self.endpoint.v2_events}

    @property
    def own(self) -> Obj | None:
        """The configured endpoint, unless it was deleted over the API."""
        return self._own if self._own is not None and self._there(self._own) else None

    def _there(self, endpoint: Obj) -> bool:
        return endpoint["id"] in self._store.objects.get("webhook_endpoint", {})

    async def close(self) -> None:
        for worker in self._workers:
            worker.cancel()
        for worker in self._workers:
            with contextlib.suppress(asyncio.CancelledError):
                await worker
        self._workers = []
        if self._session:
            await self._session.close()

    # -- in and out ----------------------------------------------------------------------------------------------------

    def submit(self, told: list[tuple[Obj, Obj]]) -> None:
        """Take an event that has just been made, for each endpoint in its version; copies and order are decided here."""
        for to, event in told:
            self.deliveries.append(delivery := Delivery(event=event, to=to))
            self._hold(delivery)
            if self.endpoint.thin:
                self.deliveries.append(delivery := Delivery(event=event, to=to, thin=True))
                self._hold(delivery)
        self._let_go()

    def notify(self, event: Obj, to: Obj) -> None:
        """Send a v2 event as a thin notification: without `data`, which is read from `/v2/core/events`."""
        body = msgspec.json.encode({name: value for name, value in event.items() if name != "data"})
        self.deliveries.append(
            delivery := Delivery(event=event, to=to, thin=True, body=msgspec.json.format(body, indent=2))
        )
        self._hold(delivery)
        self._let_go()

    def send_again(self, ids: set[str] | None = None) -> int:
        """Deliver what was lost (these events, or all), as `stripe events resend` would; returns how many."""
        lost = [
            delivery
            for delivery in self.deliveries
            if delivery.state in ("dropped", "prevented") and (ids is None or delivery.event["id"] in ids)
        ]
        for delivery in lost:
            delivery.state = "waiting"
            self._outstanding += 1
            self._idle.clear()
            self._queue.put_nowait(delivery)
        return len(lost)

    def _hold(self, delivery: Delivery) -> None:
        if self.deaf:
            delivery.state = "dropped"
            return
        for _ in range(2 if self.endpoint.duplicate else 1):
            self._outstanding += 1
            self._held.append(delivery)
        self._idle.clear()

    def _let_go(self) -> None:
        while not self.paused and len(self._held) > self.endpoint.shuffle:
            self._release()
        if self._held and not self.paused:
            with contextlib.suppress(RuntimeError):  # no loop: the next flush lets them go
                asyncio.get_running_loop().call_later(0.5, self._release_all)

    def _release(self) -> None:
        at = self._rng.randrange(min(len(self._held), self.endpoint.shuffle + 1)) if self.endpoint.shuffle else 0
        delivery = self._held[at]
        del self._held[at]
        if self.lost(delivery.event):
            self._end(delivery, "dropped")
        elif self.endpoint.delay_s:
            asyncio.get_running_loop().call_later(self.endpoint.delay_s, self._queue.put_nowait, delivery)
        else:
            self._queue.put_nowait(delivery)

    def lost(self, event: Obj) -> bool:
        """Decided by the event alone, so that a seed loses the same events whenever they are let go."""
        how = self.endpoint
        if any(fnmatchcase(event["type"], pattern) for pattern in how.drop_types):
            return True
        return how.drop > 0 and zlib.crc32(f"{how.drop_seed} {event['id']}".encode()) < how.drop * 2**32

    def resume(self) -> None:
        self.paused = False
        self._release_all()

    def _release_all(self) -> None:
        while self._held and not self.paused:
            self._release()

    async def flush(self, timeout_s: float) -> int:
        """Wait until everything deliverable had its 2xx; returns how many are still on their way."""
        self._release_all()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return self._outstanding

    # -- one delivery --------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            delivery = await self._queue.get()
            if not self._there(delivery.to) or delivery.to["status"] != "enabled":
                self._end(delivery, "prevented")
                continue
            status = await self._post(delivery)
            delivery.attempts += 1
            delivery.answers.append(status)
            if 200 <= status < 300:
                first = delivery.state != "delivered"
                self._end(delivery, "delivered")
                if first and not delivery.thin:
                    left = self._store.pending.get(delivery.event["id"], 0)
                    self._store.pending[delivery.event["id"]] = max(0, left - 1)
            else:
                wait = min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** min(delivery.attempts - 1, 8))
                asyncio.get_running_loop().call_later(wait, self._queue.put_nowait, delivery)

    def _end(self, delivery: Delivery, state: str) -> None:
        delivery.state = state
        self._outstanding -= 1
        if not self._outstanding:
            self._idle.set()

    async def _post(self, delivery: Delivery) -> int:
        """One attempt, signed anew with the real time: receivers check the tolerance against their own clock."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
            self._session = aiohttp.ClientSession(
                timeout=timeout, connector=aiohttp.TCPConnector(limit=0), trust_env=False
            )
        body = delivery.body
        if body is None:
            body = thin_body(delivery.event, self._store) if delivery.thin else snapshot_body(delivery.event)
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature(body, self._store.secrets[delivery.to["id"]], int(time.time())),
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        }
        try:
            async with self._session.post(
                delivery.to["url"], data=body, headers=headers, allow_redirects=False
            ) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0
