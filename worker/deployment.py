"""What the doctor's checks look at, and the words in which they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from worker.db import Connection
from worker.db.migrations import is_pending
from worker.endpoint import Check, State
from worker.settings import Settings
from worker.stripe_gateway import StripeGateway

NO_LOOK = "not looked at"


class Deployment(msgspec.Struct, kw_only=True):
    """What the checks look at, read once. A trouble is a sentence why nothing more can be seen there."""

    settings: Settings
    gateway: StripeGateway
    conn: Connection | None = None
    """A connection carries one statement at a time: whoever uses it holds `turn`."""
    turn: asyncio.Lock
    embedded: bool = False
    """The database is ours, in the state directory."""
    database_trouble: str = ""
    postgres: str = ""
    revision: str | None = None
    stripe_trouble: str = ""
    lists: dict[str, str] = {}
    """By path of the API: why it cannot be read, or nothing."""
    refused: frozenset[str] = frozenset()
    """The paths that the key may not read."""
    skew_s: float | None = None
    """Our clock less Stripe's; within a second of transmission and of the header's precision it counts as 0."""

    @property
    def books(self) -> Connection | None:
        """The database, if it has this release's tables."""
        return None if is_pending(self.revision) else self.conn

    @property
    def no_books(self) -> str:
        """Why there is nothing to look at."""
        return "no database" if self.conn is None else "the schema is of another release"


Checker = Callable[[Deployment], Awaitable[list[Check]]]


def ok(name: str, detail: str) -> Check:
    """All is well there."""
    return Check(name, State.OK, detail)


def warn(name: str, detail: str, remedy: str) -> Check:
    """It works, and should be better."""
    return Check(name, State.WARN, detail, remedy)


def fail(name: str, detail: str, remedy: str) -> Check:
    """Something does not work."""
    return Check(name, State.FAIL, detail, remedy)


def unseen(name: str, why: str) -> Check:
    """Never clean without having looked."""
    return warn(name, f"{NO_LOOK}: {why}", "See above.")
