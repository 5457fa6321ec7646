"""Stripe's webhook endpoint, `POST /stripe/webhook`: verify, store, ring, answer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

from aiohttp import HttpVersion11, StreamReader, web

from worker import tracing
from worker.inbox import Commit, Inbox, NotAnEvent, Outcome, read_event
from worker.metrics import counts
from worker.settings import Settings
from worker.signals import Signatures
from worker.signature import Refused, verify

MAX_BODY_BYTES = 1024 * 1024  # Stripe publishes no limit; the largest events seen are a fifth of this
READ_TIMEOUT_S = 10.0
RETRY_AFTER_UNAVAILABLE_S = 1
RETRY_AFTER_BACKLOG_S = 5


class Refusal(Exception):
    """A request that is answered with 4xx: the reason for the counter, the sentence for the sender."""

    def __init__(self, reason: str, status: HTTPStatus, sentence: str, headers: dict[str, str] | None = None) -> None:
        self.reason = reason
        self.status = status
        self.sentence = sentence
        self.headers = headers


class Stored(web.StreamResponse):
    """The answer to nearly every delivery, written as it is: composing it anew costs more than the signature check.

    It carries nothing of its request, so that one serves all. Only for HTTP/1.1 connections that stay open.
    """

    def __init__(self) -> None:
        super().__init__()
        self._second = -1
        self._bytes = b""

    def at(self, now_s: float) -> Stored:
        """The answer with its Date, which changes once a second."""
        if int(now_s) != self._second:
            self._second = int(now_s)
            date = formatdate(self._second, usegmt=True)
            self._bytes = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 7\r\nDate: {date}\r\n\r\nstored\n".encode()
        return self

    @property
    def keep_alive(self) -> bool:
        """It does not end its connection."""
        return True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write the whole answer."""
        if request.transport is None:
            raise ConnectionResetError  # as aiohttp's own answers do when the sender has left
        request.transport.write(self._bytes)

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


class Webhook:
    """The endpoint and what it counts. A 2xx is said only after the event's commit; 503 asks Stripe to send it again."""

    def __init__(
        self,
        settings: Settings,
        *,
        overloaded: Callable[[], bool],
        ring: Callable[[], None],
    ) -> None:
        self.counts: Counter[str] = Counter()  # answers: committed, unavailable, backlog, and the reasons of refusals
        self.commits: Counter[str] = Counter()  # commits, new_rows, and failures by class
        # a process that serves the console alone takes nothing in, and needs no secret for it
        self._secrets = settings.webhook_secrets() if settings.console != "only" else ()
        self.signatures = Signatures(self._secrets)
        self._mode = settings.mode
        self._tolerance_s = settings.signature_tolerance_s
        self._overloaded = overloaded
        self._ring = ring
        self._stored = Stored()
        self._inbox = Inbox(settings.database_dsn(), self._committed)

    def grows(self) -> tuple[tuple[str, Counter[str]], ...]:
        """What it counts, by the family of metrics that it belongs to."""
        return ("finalsale_deliveries", self.counts), ("finalsale_intake_commits", self.commits)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one delivery."""
        try:
            body = await _read(request)
            header = request.headers.get("Stripe-Signature", "").encode("utf-8", "surrogateescape")
            now_s = time.time()
            verdict = verify(header, body, self._secrets, now_s, self._tolerance_s)
            if isinstance(verdict, Refused):
                reason = f"signature_{verdict.reason.name.lower()}"
                raise Refusal(reason, HTTPStatus.BAD_REQUEST, verdict.reason.value)
            self.signatures.verified(header, body, verdict.place)
            row = read_event(body, self._mode)
        except Refusal as refusal:
            return self._refuse(refusal)
        except NotAnEvent as error:
            return self._refuse(Refusal(error.error_code, HTTPStatus.BAD_REQUEST, str(error)))
        if self._overloaded():
            return self._come_back("backlog", RETRY_AFTER_BACKLOG_S)
        verified_ns = time.time_ns() if tracing.spans is not None else 0
        outcome = await self._inbox.add(row)
        if tracing.spans is not None:
            told = row.kind.realm, row.event_id, row.type, outcome.value
            tracing.spans.delivered(*told, int(now_s * 1e9), verified_ns)
        if outcome is Outcome.COMMITTED:
            self.counts["committed"] += 1
            return (
                self._stored.at(now_s)
                if request.keep_alive and request.version >= HttpVersion11
                else web.Response(text="stored\n")
            )
        if outcome is Outcome.UNSTORABLE:
            return self._refuse(Refusal("unstorable", HTTPStatus.BAD_REQUEST, "The event cannot be stored as it is."))
        return self._come_back("unavailable", RETRY_AFTER_UNAVAILABLE_S)

    async def close(self) -> None:
        """Commit what is pending."""
        await self._inbox.close()

    def _refuse(self, refusal: Refusal) -> web.Response:
        self.counts[refusal.reason] += 1
        return web.Response(status=refusal.status, text=refusal.sentence + "\n", headers=refusal.headers)

    def _come_back(self, reason: str, after_s: int) -> web.Response:
        self.counts[reason] += 1
        return web.Response(status=503, text="Not stored; send it again.\n", headers={"Retry-After": str(after_s)})

    def _committed(self, commit: Commit) -> None:
        counts.observe("finalsale_intake_commit_seconds", commit.seconds)
        counts.observe("finalsale_intake_commit_rows", commit.rows)
        if commit.error is None:
            self.commits["done"] += 1
            self.commits["new_rows"] += commit.new_rows
            self._ring()
        else:
            self.commits[type(commit.error).__name__] += 1


async def _read(request: web.BaseRequest) -> bytes:
    """The whole body as it was signed, within limits of size and time. Raises Refusal."""
    if request.method != "POST":
        raise Refusal("method", HTTPStatus.METHOD_NOT_ALLOWED, "Stripe's events are sent with POST.", {"Allow": "POST"})
    content_type = request.headers.get("Content-Type")
    if content_type is not None and content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(
            "content_type", HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Stripe's events are sent as application/json."
        )
    content = request.content
    if content.is_eof():  # arrived together with the head, as nearly always
        body = content.read_nowait()
    elif (request.content_length or 0) > MAX_BODY_BYTES:
        raise _too_large()
    else:
        body = await _read_slowly(content)
    if len(body) > MAX_BODY_BYTES:
        raise _too_large()
    return body


async def _read_slowly(content: StreamReader) -> bytes:
    parts = bytearray()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            while len(parts) <= MAX_BODY_BYTES and (part := await content.readany()):
                parts += part
    except TimeoutError:
        raise Refusal(
            "slow", HTTPStatus.REQUEST_TIMEOUT, "The body did not arrive in time.", {"Connection": "close"}
        ) from None
    return bytes(parts)


def _too_large() -> Refusal:
    return Refusal("too_large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is larger than {MAX_BODY_BYTES} bytes.")
