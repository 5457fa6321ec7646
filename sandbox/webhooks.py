"""Delivery of events to the webhook endpoint: signed, retried until 2xx, and as rude about order and number as Stripe."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import random
import time
from collections import deque
from datetime import UTC, datetime

import aiohttp
import msgspec

from sandbox.store import Obj, Store

FIRST_RETRY_S = 0.2
LAST_RETRY_S = 5.0
ANSWER_WITHIN_S = 20.0


class Endpoint(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where events go and how. Any field may be set by `POST /_sandbox/config` under `webhook`."""

    url: str | None = None
    secrets: list[str] = []
    """One `v1` signature per secret: two while a secret is rolled."""
    api_version: str | None = None
    duplicate: bool = False
    shuffle: int = 0
    """Hold back up to this many deliveries and let them go in random order (0: in order of creation)."""
    delay_s: float = 0.0
    drop: float = 0.0
    """This fraction is never delivered, but stands in `/v1/events` with `pending_webhooks` 1."""
    thin: bool = False
    """Send each event also as a `v2.core.event` notification without its object."""
    concurrency: int = 16


class Delivery(msgspec.Struct, kw_only=True):
    """One event on its way."""

    event: Obj
    thin: bool = False
    attempts: int = 0
    answers: list[int] = []
    """Status of each attempt; 0 where there was no answer."""
    state: str = "waiting"


def signature(body: bytes, secrets: list[str], at: int) -> str:
    """The `Stripe-Signature` header (stripe.com/docs/webhooks#verify-manually)."""
    signed = f"{at}.".encode() + body
    marks = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    return ",".join([f"t={at}", *(f"v1={mark}" for mark in marks)])


def snapshot_body(event: Obj) -> bytes:
    """An event as Stripe prints it: indented by two."""
    return msgspec.json.format(msgspec.json.encode(event), indent=2)


def thin_body(event: Obj, store: Store) -> bytes:
    """The same event as a notification that only names its object."""
    related = msgspec.json.decode(event["data"]["object"])
    kind: str = related["object"]
    plural = {"checkout.session": "checkout/sessions", "radar.early_fraud_warning": "radar/early_fraud_warnings"}
    body = {
        "id": "evt_thin_" + event["id"].removeprefix("evt_"),
        "object": "v2.core.event",
        "type": "v1." + event["type"],
        "created": datetime.fromtimestamp(event["created"], UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "livemode": store.livemode,
        "context": None,
        "reason": None,
        "related_object": {
            "id": related["id"],
            "type": kind,
            "url": f"/v1/{plural.get(kind, kind + 's')}/{related['id']}",
        },
        "snapshot_event": event["id"],
    }
    return msgspec.json.format(msgspec.json.encode(body), indent=2)


class Webhooks:
    """The one endpoint of the sandbox and everything under way to it."""

    def __init__(self, store: Store, seed: int = 1) -> None:
        self.endpoint = Endpoint()
        self.deliveries: list[Delivery] = []
        self.paused = False
        """Hold every delivery back until `resume`."""
        self._store = store
        self._rng = random.Random(seed)
        self._held: deque[Delivery] = deque()
        self._queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self._outstanding = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._workers: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None
        store.on_event = self.submit

    def configure(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._store.endpoints = 1 if endpoint.url else 0
        if endpoint.api_version:
            self._store.event_version = endpoint.api_version
        while len(self._workers) < endpoint.concurrency:
            self._workers.append(asyncio.create_task(self._work()))

    async def close(self) -> None:
        for worker in self._workers:
            worker.cancel()
        for worker in self._workers:
            with contextlib.suppress(asyncio.CancelledError):
                await worker
        self._workers = []
        if self._session:
            await self._session.close()

    def submit(self, event: Obj) -> None:
        """Take an event that has just been made; copies, order and losses are decided here."""
        how = self.endpoint
        if not how.url:
            return
        kinds = [False, *([True] if how.thin else [])]
        for delivery in [Delivery(event=event, thin=thin) for thin in kinds]:
            self.deliveries.append(delivery)
            if how.drop and self._rng.random() < how.drop:
                delivery.state = "dropped"
                continue
            for _ in range(2 if how.duplicate else 1):
                self._outstanding += 1
                self._held.append(delivery)
        if self._outstanding:
            self._idle.clear()
        while not self.paused and len(self._held) > how.shuffle:
            self._release()
        if self._held and not self.paused:
            with contextlib.suppress(RuntimeError):  # no loop: the next flush lets them go
                asyncio.get_running_loop().call_later(0.5, self._release_all)

    def _release(self) -> None:
        at = self._rng.randrange(min(len(self._held), self.endpoint.shuffle + 1))
        delivery = self._held[at]
        del self._held[at]
        if self.endpoint.delay_s:
            asyncio.get_running_loop().call_later(self.endpoint.delay_s, self._queue.put_nowait, delivery)
        else:
            self._queue.put_nowait(delivery)

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

    async def _work(self) -> None:
        while True:
            delivery = await self._queue.get()
            status = await self._post(delivery)
            delivery.attempts += 1
            delivery.answers.append(status)
            if 200 <= status < 300:
                delivery.state = "delivered"
                if not delivery.thin:
                    self._store.pending[delivery.event["id"]] = 0
                self._outstanding -= 1
                if not self._outstanding:
                    self._idle.set()
            else:
                wait = min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** min(delivery.attempts - 1, 8))
                asyncio.get_running_loop().call_later(wait, self._queue.put_nowait, delivery)

    async def _post(self, delivery: Delivery) -> int:
        """One attempt, signed anew with the real time: receivers check the tolerance against their own clock."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
            self._session = aiohttp.ClientSession(
                timeout=timeout, connector=aiohttp.TCPConnector(limit=0), trust_env=False
            )
        if not self.endpoint.url:
            return 0
        body = thin_body(delivery.event, self._store) if delivery.thin else snapshot_body(delivery.event)
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature(body, self.endpoint.secrets, int(time.time())),
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        }
        try:
            async with self._session.post(
                self.endpoint.url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0
