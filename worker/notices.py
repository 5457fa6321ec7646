"""Notices to the merchant's app: an outbox written with what they tell of, and sent signed, each customer's in order.

    written ──▶ waiting ──2xx──▶ sent
       │           │ anything else: again after 5 s .. 1 h, for about three days; 410: at once
       │ old news  ▼
       ▼         failed, with an alert          `finalsale notices replay` makes any of them wait again
      held

The form is that of Standard Webhooks (https://www.standardwebhooks.com): `webhook-id`, `webhook-timestamp` (when it is sent,
in seconds) and `webhook-signature` (one for each secret) over `id.timestamp.body`. Delivery is at least once: who is killed
between the app's answer and its commit sends again, under the same id and with the same body. So an app passes over an id
that it has seen. Only a customer's oldest waiting notice is sent; those of different customers go side by side.

What was true for more than seven days when it was learned is `held`: importing a merchant's past tells the app nothing.
Without an address nothing is sent, and what has waited an hour is held too.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import ipaddress
import random
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog
from standardwebhooks import Webhook

from handlers.customer import at
from handlers.decisions import as_json
from handlers.news import Notice
from worker import audit
from worker.db import Connection, Pool, connection, queries
from worker.errors import SettingsInvalid
from worker.reading import Document, NotFound, NotUnderstood, fetch
from worker.settings import Settings

NEWS_FOR_S = 7 * 86_400.0
SIDE_BY_SIDE = 8
SEND_TIMEOUT_S = 10.0
LEASE_S = 30.0
"""How long a notice belongs to the worker that took it: longer than sending can last."""
ROUND_S = 5.0
"""A round takes no new notice after this, so that a worker that stops is not kept."""
FIRST_RETRY_S, LAST_RETRY_S = 5.0, 3600.0
MAX_ATTEMPTS = 82
"""The waits between them come to three days: ten that double, up to 43 minutes, and seventy of an hour."""
SECRET_PREFIX = "whsec_"  # noqa: S105 - the name of the format
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
GONE = 410

log = structlog.get_logger()


def notice_id(realm: str, key: str) -> str:
    """The id of a notice, which is also its `webhook-id`: the same wherever the same news is told."""
    return "msg_" + hashlib.sha256(f"{realm} {key}".encode(errors="surrogatepass")).hexdigest()[:24]


async def write_notices(conn: Connection, realm: str, notices: Sequence[Notice]) -> int:
    """Put notices into the outbox, in this order; those that are in it already are passed over. Returns how many are new.

    Must run in the transaction that makes them true, under the customers' locks: their order is the order of commits.
    """
    if not notices:
        return 0
    rows = [
        (id_ := notice_id(realm, n.key), n.customer, n.type, _body(id_, realm, n), at(n.timestamp)) for n in notices
    ]
    ids, customers, types, bodies, true_at = map(list, zip(*rows, strict=True))
    told = {"ids": ids, "customers": customers, "types": types, "bodies": bodies, "true_at": true_at}
    return len(await fetch(conn, queries.save_notices, realm=realm, news_for_s=NEWS_FOR_S, **told))


def _body(id_: str, realm: str, notice: Notice) -> bytes:
    mode, _, account = realm.partition(":")
    return as_json(
        {
            "id": id_,
            "type": notice.type,
            "timestamp": f"{at(notice.timestamp):%Y-%m-%dT%H:%M:%SZ}",
            "mode": mode,
            "account": account or None,
            "customer": notice.customer,
            "data": notice.data,
        }
    )


# where to, and signed with what ------------------------------------------------------------------------------------------


class App:
    """The merchant's app: its address, and the secrets it may check signatures with."""

    def __init__(self, url: str, secrets: Iterable[str]) -> None:
        self.url = url
        self._signers = [Webhook(secret) for secret in secrets]

    def headers(self, id_: str, body: bytes, sent_at: datetime) -> dict[str, str]:
        """What goes with a body sent at this moment: a signature by every secret, the first one first."""
        text = body.decode()
        return {
            "content-type": "application/json",
            "user-agent": "finalsale",
            "webhook-id": id_,
            "webhook-timestamp": str(int(sent_at.timestamp())),
            "webhook-signature": " ".join(signer.sign(id_, sent_at, text) for signer in self._signers),
        }


def app_of(settings: Settings) -> App | None:
    """The app that notices go to, or None where no address is set. Raises SettingsInvalid with what to set."""
    url = settings.app_webhook_url
    if not url:
        return None
    _check_url(url, settings.mode)
    secrets = settings.app_webhook_secret.get_secret_value() if settings.app_webhook_secret else ""
    listed = [secret.strip() for secret in secrets.split(",") if secret.strip()]
    if not listed or not all(_is_secret(secret) for secret in listed):
        raise SettingsInvalid(
            "FINALSALE_APP_WEBHOOK_SECRET must hold the secret that notices are signed with: whsec_ and the base64 of 24 to 64 "
            "random bytes (openssl rand -base64 32), or several of them separated by commas while one is replaced."
        )
    return App(url, listed)


def _check_url(url: str, mode: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https") or parts.username or parts.password:
        raise SettingsInvalid(
            "FINALSALE_APP_WEBHOOK_URL is not valid: set the https address of the app, without a user or password in it."
        )
    if parts.scheme == "http" and (mode == "live" or not _is_near(host)):
        raise SettingsInvalid(
            "FINALSALE_APP_WEBHOOK_URL must begin with https: http is for an address on this machine or a private network, "
            "in test mode."
        )


def _is_near(host: str) -> bool:
    """Whether a host is this machine, a private address, or a name that only a private network knows."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".internal", ".local"))


def _is_secret(secret: str) -> bool:
    try:
        raw = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return secret.startswith(SECRET_PREFIX) and MIN_SECRET_BYTES <= len(raw) <= MAX_SECRET_BYTES


# sending -----------------------------------------------------------------------------------------------------------------


class NoticeSender:
    """Sends what waits. One per worker process; several workers may send beside each other. Close with `aclose`.

    Raises SettingsInvalid where the address or the secret cannot be used.
    """

    def __init__(self, pool: Pool, settings: Settings, *, timeout_s: float = SEND_TIMEOUT_S) -> None:
        self.pool, self.app = pool, app_of(settings)
        self.realms = f"^{settings.mode}(:|$)"
        self.timeout_s = timeout_s
        self.stopping = False
        """Set from outside: what is under way is finished, nothing new is begun."""
        self._session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        """Close the connections to the app."""
        if self._session is not None:
            await self._session.close()

    async def send_due(self) -> int:
        """Send every notice whose turn it is, for at most a few seconds. Returns how many were tried. Raises DatabaseUnavailable."""
        if self.app is None:
            async with connection(self.pool) as conn:
                await queries.hold_unaddressed(conn, realms=self.realms)
            return 0
        until = time.monotonic() + ROUND_S
        first = None if self.stopping else await self._claim()
        if first is None:
            return 0
        lanes = [self._lane(self.app, first if lane == 0 else None, until) for lane in range(SIDE_BY_SIDE)]
        tried = 0
        for outcome in await asyncio.gather(*lanes, return_exceptions=True):  # none is left running behind a failed one
            if isinstance(outcome, BaseException):
                raise outcome
            tried += outcome
        return tried

    async def _lane(self, app: App, row: Any, until: float) -> int:
        """One notice after the other. What another customer's answer takes holds up only its own lane."""
        tried = 0
        while True:
            if row is None and (self.stopping or time.monotonic() > until or (row := await self._claim()) is None):
                return tried
            await self._send(app, row)
            tried, row = tried + 1, None

    async def _claim(self) -> Any:
        async with connection(self.pool) as conn:
            return await queries.claim_notice(conn, realms=self.realms, lease_s=LEASE_S)

    async def _send(self, app: App, row: Any) -> None:
        started = time.perf_counter()
        problem, gone = await self._post(app, row["id"], bytes(row["body"]))
        mine = {"id": row["id"], "attempts": row["attempts"]}
        async with connection(self.pool) as conn:
            if problem is None:
                await queries.notice_sent(conn, **mine)
            elif gone or row["attempts"] >= MAX_ATTEMPTS:
                await queries.give_up_notice(conn, error=problem, **mine)
            else:
                await queries.postpone_notices(conn, error=problem, wait_s=retry_after_s(row["attempts"]), **mine)
        say = log.info if problem is None else log.warning
        say(
            "notice.sent" if problem is None else "notice.failed",
            notice_id=row["id"],
            customer=row["customer"],
            type=row["type"],
            attempts=row["attempts"],
            problem=problem,
            ms=round((time.perf_counter() - started) * 1000, 1),
        )

    async def _post(self, app: App, id_: str, body: bytes) -> tuple[str | None, bool]:
        """What went wrong, in our own words, or None; and whether the app said that the address is gone for good."""
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        try:
            async with self._session.post(
                app.url,
                data=body,
                headers=app.headers(id_, body, datetime.now(UTC)),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self.timeout_s),
            ) as answer:
                if 200 <= answer.status < 300:
                    return None, False
                return f"the app answered {answer.status}", answer.status == GONE
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return f"no answer from the app ({type(error).__name__})", False


def retry_after_s(attempts: int) -> float:
    """The wait after so many attempts: doubling from 5 s to an hour, a fifth more or less, so that they do not come in a crowd."""
    return min(FIRST_RETRY_S * 2.0 ** min(attempts - 1, 20), LAST_RETRY_S) * random.uniform(0.8, 1.2)  # noqa: S311 - no secret


# reading and sending again -----------------------------------------------------------------------------------------------


async def replay(
    conn: Connection,
    realms: Sequence[str],
    *,
    ids: Sequence[str] = (),
    customer: str | None = None,
    since: datetime | None = None,
    state: str | None = None,
    by: str,
    via: str = "cli",
) -> list[str]:
    """Let notices wait again, under the same ids and with the same bodies; each condition narrows it. Returns their ids.

    Raises NotUnderstood without any condition or a name, NotFound where a named id is not here (then nothing is replayed).
    """
    if not (ids or customer or since or state):
        raise NotUnderstood("Say which: ids, --customer, --since or --state.")
    if not by.strip():
        raise NotUnderstood("Say who replays them: --by NAME.")
    asked = {"ids": list(ids) or None, "customer": customer, "since": since, "state": state}
    rows = await fetch(conn, queries.replay_notices, realms=list(realms), **asked)
    found = [row["id"] for row in rows]
    if missing := [id_ for id_ in ids if id_ not in found]:
        raise NotFound(
            f"Nothing was replayed: {', '.join(missing)} is not here; `finalsale notices list` shows what is."
        )
    told: Document = {
        "by": by.strip(),
        "via": via,
        "act": "notices.replay",
        "subject": ids[0] if len(ids) == 1 else customer or "notices",
    }
    after = {"replayed": len(found), "ids": found[: audit.MOST_NAMED], "since": since, "state": state}
    await audit.record(conn, realms[0] if len(realms) == 1 else audit.EVERYWHERE, after=after, **told)
    return found


async def listed(
    conn: Connection,
    realms: Sequence[str],
    *,
    customer: str | None = None,
    state: str | None = None,
    limit: int | None = None,
) -> list[Document]:
    """Notices, newest first, without their bodies."""
    asked = {"customer": customer, "state": state, "most": limit}
    return [dict(row) for row in await fetch(conn, queries.read_notices, realms=list(realms), **asked)]


async def shown(conn: Connection, realms: Sequence[str], id_: str) -> Document:
    """One notice with the body that is signed and sent. Raises NotFound."""
    row = await queries.read_notice(conn, realms=list(realms), id=id_)
    if row is None:
        raise NotFound(f"There is no notice {id_}; `finalsale notices list` shows what there is.")
    return {**row, "body": msgspec.json.decode(row["body"])}


async def alerts(
    conn: Connection, realms: Sequence[str], *, resolved: bool = False, limit: int | None = None
) -> list[Document]:
    """What people should hear of now, the most severe first; with `resolved` also what is over."""
    asked = {"resolved": resolved, "most": limit}
    return [dict(row) for row in await fetch(conn, queries.read_alerts, realms=list(realms), **asked)]
