"""Real receivers on the loopback for what alerts are sent to: a mail server and a webhook, which keep all that reaches them."""

from __future__ import annotations

import asyncio
import email
import email.policy
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.message import EmailMessage
from typing import Any, NamedTuple

from aiohttp import web
from aiosmtpd.smtp import SMTP, Envelope, Session

HOST = "127.0.0.1"


class Heard(NamedTuple):
    """One message as its receiver sees it."""

    id: str
    title: str
    body: str


class Mailbox:
    """A mail server: it takes every message, unless `answer` says otherwise."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.answer = "250 OK"
        self.port = 0

    @property
    def url(self) -> str:
        return f"mailto://{HOST}:{self.port}/?from=finalsale@example.com&to=oncall@example.com"

    @property
    def heard(self) -> list[Heard]:
        """What arrived, in order."""
        return [
            Heard(
                str(mail["message-id"]).strip("<>").partition("@")[0],
                " ".join(str(mail["subject"]).split()),
                mail.get_body(("plain",)).get_content().replace("\r\n", "\n"),  # type: ignore[union-attr]
            )
            for mail in self.mails
        ]

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        mail = email.message_from_bytes(envelope.content or b"", policy=email.policy.default)  # type: ignore[arg-type]
        if self.answer.startswith("250"):
            self.mails.append(mail)
        return self.answer


class Webhook:
    """A receiver of JSON: it keeps every request and answers what the test says, as late as the test says."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str]] = []
        self.answer: Callable[[], int] = lambda: 200
        self.refuses = ""
        """What it answers 400 to, for good."""
        self.slow_s = 0.0
        self.to = ""
        self.port = 0

    @property
    def url(self) -> str:
        return f"json://{HOST}:{self.port}/hook"

    @property
    def heard(self) -> list[Heard]:
        """What arrived, in order."""
        return [Heard(body["id"], body["title"], body["message"]) for body in self.bodies]

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append((request.method, request.path))
        body = await request.json() if request.can_read_body else {}
        await asyncio.sleep(self.slow_s)
        status = 400 if self.refuses and self.refuses in str(body) else self.answer()
        if status < 300:
            self.bodies.append(body)
        return web.Response(status=status, headers={"location": self.to} if self.to else None)


@asynccontextmanager
async def mailbox() -> AsyncIterator[Mailbox]:
    """A mail server on a free port."""
    box = Mailbox()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(box, hostname="localhost", loop=loop), HOST, 0)
    box.port = server.sockets[0].getsockname()[1]
    try:
        yield box
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def webhook() -> AsyncIterator[Webhook]:
    """A web server on a free port."""
    hook = Webhook()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", hook.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    hook.port = runner.addresses[0][1]
    try:
        yield hook
    finally:
        await runner.cleanup()


def closed_port() -> int:
    """A port of the loopback where nobody listens."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        port: int = taken.getsockname()[1]
        return port
