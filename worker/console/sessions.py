"""Signing in to the console: tokens checked, guesses throttled, sessions begun, found and ended."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import deque
from datetime import timedelta
from typing import NamedTuple

from worker.db import Connection, Pool, connection, queries
from worker.operators import Operator, Role, matches, sieve_of, split_token

IDLE = timedelta(minutes=30)
LIFETIME = timedelta(hours=12)
FAILURES_PER_MINUTE = 5
"""Of one source address. Counted by each web process."""
AT_ONCE = 2
"""Tokens that are checked at the same time; each takes a core and 32 MiB for some 60 ms."""
MOST_WAITING = 64
"""Right tokens that wait for their check, some two seconds' work."""
MAX_SOURCES = 10_000


class Session(NamedTuple):
    """A signed-in browser."""

    hash: bytes
    operator: Operator
    token: str
    csrf: str
    said: str | None
    """A sentence that was left for the next page."""
    is_stale: bool
    """Whether it was not seen within a minute."""


class Throttle:
    """Wrong tokens of the last minute, by source. Memory is bounded: whoever failed longest ago is forgotten first."""

    def __init__(self) -> None:
        self._failures: dict[str, deque[float]] = {}

    def refuses(self, source: str) -> bool:
        """Count a wrong token of `source`; whether it had too many within a minute already, and is told to wait."""
        now = time.monotonic()
        failures = self._failures.pop(source, None) or deque()
        while failures and failures[0] < now - 60:
            failures.popleft()
        too_many = len(failures) >= FAILURES_PER_MINUTE
        if not too_many:
            failures.append(now)
        self._failures[source] = failures
        if len(self._failures) > MAX_SOURCES:
            del self._failures[next(iter(self._failures))]
        return too_many


class Busy(Exception):
    """More people sign in at this moment than can be checked."""


class Gate:
    """Checks tokens. Nobody's failures keep the right token out: a wrong one is told at no price, and only who passes waits.

    So guesses cannot fill the queue, and the throttle never looks at who has the right token. It bounds what one source may
    ask, not what it may guess: 256 random bits do that.
    """

    def __init__(self) -> None:
        self.throttle = Throttle()
        self._places = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def check(self, pool: Pool, token: str) -> tuple[str, str, str] | None:
        """Public part, operator and role of a valid token, or None; the time it takes does not tell which part is wrong.

        Raises DatabaseUnavailable, Busy.
        """
        split = split_token(token)
        if split is None:
            return None
        public, secret = split
        async with connection(pool) as conn:
            row = await queries.find_operator_token(conn, id=public)
        fits = hmac.compare_digest(row["sieve"] if row else b"none", sieve_of(secret))
        if row is None or not fits or not await self._matches(row["hash"], secret):
            return None
        return public, row["name"], row["role"]

    async def _matches(self, hash_: str, secret: str) -> bool:
        if self._waiting >= MOST_WAITING:
            raise Busy
        self._waiting += 1
        try:
            async with self._places:
                return await matches(hash_, secret)
        finally:
            self._waiting -= 1


def hash_of_cookie(cookie: str) -> bytes:
    """What is kept of a session's cookie: one hash is enough for 256 random bits."""
    return hashlib.sha256(cookie.encode("utf-8", "surrogateescape")).digest()


async def begin(conn: Connection, operator: str, token: str) -> str:
    """Begin a session and return its cookie, which nobody else knows."""
    cookie = secrets.token_urlsafe(32)
    asked = {"hash": hash_of_cookie(cookie), "operator": operator, "token": token, "csrf": secrets.token_bytes(32)}
    await queries.begin_session(conn, **asked, lifetime=LIFETIME)
    return cookie


async def find(conn: Connection, cookie: str) -> Session | None:
    """The session of a cookie, with its operator's role as it is now."""
    hash_ = hash_of_cookie(cookie)
    row = await queries.find_session(conn, hash=hash_, idle=IDLE)
    if row is None:
        return None
    operator = Operator(row["operator"], Role(row["role"]))
    return Session(hash_, operator, row["token"], row["csrf"].hex(), row["said"], row["is_stale"])


def network_of(address: str) -> str:
    """Whom a failure counts against: an IPv4 address, or the /64 that one customer of a provider has of IPv6; without a port."""
    told_as = address.strip()
    if told_as.startswith("["):
        told_as = told_as[1:].partition("]")[0]
    elif told_as.count(":") == 1:
        told_as = told_as.partition(":")[0]
    try:
        told = ipaddress.ip_address(told_as.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(told, ipaddress.IPv6Address):
        return str(told.ipv4_mapped or ipaddress.ip_network((told, 64), strict=False))
    return str(told)
