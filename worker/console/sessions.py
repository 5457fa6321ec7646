"""Signing in to the console: tokens checked at a constant price, guesses throttled, sessions begun, found and ended."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import secrets
import time
from collections import deque
from datetime import timedelta
from typing import NamedTuple

from worker.db import Connection, Pool, connection, queries
from worker.operators import Operator, Role, hash_of, matches, split_token

IDLE = timedelta(minutes=30)
LIFETIME = timedelta(hours=12)
FAILURES_PER_MINUTE = 5
"""Of one source address, and of one token's public part. Counted by each web process."""
FAILURES_OF_ALL_PER_MINUTE = 60
AT_ONCE = 2
"""Tokens that are checked at the same time; each takes a core and 32 MiB for some 60 ms."""
MAX_KEYS = 10_000


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
    """Failures of the last minute, by who failed. Memory is bounded: whoever failed longest ago is forgotten first."""

    def __init__(self) -> None:
        self._failures: dict[str, deque[float]] = {}
        self._all: deque[float] = deque()

    def refuses(self, *keys: str) -> bool:
        """Whether one of these, or everybody together, has failed too often."""
        now = time.monotonic()
        if len(_recent(self._all, now)) >= FAILURES_OF_ALL_PER_MINUTE:
            return True
        return any(len(_recent(self._failures.get(key, deque()), now)) >= FAILURES_PER_MINUTE for key in keys)

    def failed(self, *keys: str) -> None:
        """Count one failure against each of these."""
        now = time.monotonic()
        self._all.append(now)
        for key in keys:
            counted = self._failures.pop(key, None) or deque(maxlen=FAILURES_PER_MINUTE)
            counted.append(now)
            self._failures[key] = counted
        while len(self._failures) > MAX_KEYS:
            del self._failures[next(iter(self._failures))]

    def forgive(self, *keys: str) -> None:
        """Take back what was counted last: it was no failure."""
        for failures in (self._all, *(self._failures[key] for key in keys if key in self._failures)):
            if failures:
                failures.pop()


def _recent(failures: deque[float], now: float) -> deque[float]:
    while failures and failures[0] < now - 60:
        failures.popleft()
    return failures


class Gate:
    """Checks tokens, a few at a time, and makes an unknown one cost as much as a wrong one."""

    def __init__(self) -> None:
        self.throttle = Throttle()
        self._places = asyncio.Semaphore(AT_ONCE)
        self._nobody: str | None = None

    async def check(self, pool: Pool, token: str) -> tuple[str, str, str] | None:
        """Public part, operator and role of a valid token, or None; the time it takes does not tell which part is wrong.

        Raises DatabaseUnavailable.
        """
        split = split_token(token) or ("", "")
        async with connection(pool) as conn:
            row = await queries.find_operator_token(conn, id=split[0])
        async with self._places:
            if self._nobody is None:
                self._nobody = await hash_of(secrets.token_urlsafe(32))
            right = await matches(row["hash"] if row else self._nobody, split[1])
        return (split[0], row["name"], row["role"]) if row and right else None


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
    """Whom a failure counts against: an IPv4 address, or the /64 that one customer of a provider has of IPv6."""
    try:
        told = ipaddress.ip_address(address.strip().strip("[]"))
    except ValueError:
        return "unknown"
    if isinstance(told, ipaddress.IPv6Address):
        return str(told.ipv4_mapped or ipaddress.ip_network((told, 64), strict=False))
    return str(told)
