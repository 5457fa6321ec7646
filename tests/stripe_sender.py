"""What Stripe does when it delivers an event: builds the envelope, signs the bytes, posts them."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import Any

import aiohttp

WEBHOOK_SECRET = "whsec_test_0123456789abcdef"


def event(event_id: str = "evt_1", event_type: str = "charge.succeeded", **fields: Any) -> bytes:
    """The body of a snapshot event; `fields` replace or add what stands in the envelope."""
    envelope = {
        "id": event_id,
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": 1_764_000_000,
        "data": {"object": {"id": "ch_1", "object": "charge", "amount": 2000, "currency": "eur"}},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": event_type,
    }
    return json.dumps(envelope | fields, indent=2).encode()


def thin_event(event_id: str = "evt_thin_1", **fields: Any) -> bytes:
    """The body of a thin event, which names an object and does not carry it."""
    notification = {
        "id": event_id,
        "object": "v2.core.event",
        "type": "v1.charge.dispute.created",
        "created": "2026-11-22T10:00:00.123Z",
        "livemode": False,
        "context": None,
        "related_object": {"id": "dp_1", "type": "charge.dispute", "url": "/v1/disputes/dp_1"},
    }
    return json.dumps(notification | fields).encode()


def mac(body: bytes, signed_at: int | str, secret: str = WEBHOOK_SECRET) -> str:
    return hmac.new(secret.encode(), f"{signed_at}.".encode() + body, hashlib.sha256).hexdigest()


def signature(body: bytes, *, secret: str = WEBHOOK_SECRET, signed_at: int | None = None) -> str:
    """The Stripe-Signature header for `body`."""
    at = int(time.time()) if signed_at is None else signed_at
    return f"t={at},v1={mac(body, at, secret)},v0={'0' * 64}"


class Sender:
    """Posts to one endpoint over keep-alive connections."""

    def __init__(self, port: int, session: aiohttp.ClientSession) -> None:
        self.port = port
        self.session = session
        self.base = f"http://127.0.0.1:{port}"

    async def deliver(
        self, body: bytes, *, header: str | None = None, **headers: str
    ) -> tuple[int, str, dict[str, str]]:
        """Post one event, signed unless a `header` is given; status, text and headers of the answer."""
        sent = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature(body) if header is None else header,
        }
        async with self.session.post(f"{self.base}/stripe/webhook", data=body, headers=sent | headers) as answer:
            return answer.status, await answer.text(), dict(answer.headers)

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.base + path) as answer:
            return answer.status, await (answer.json() if answer.content_type == "application/json" else answer.text())
