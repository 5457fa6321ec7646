"""What a page of the console is: a path, the role it needs, and a function from a visit to an answer. No page knows HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from worker.db import Connection
from worker.judging import Court
from worker.operators import Operator, Role
from worker.settings import Settings


class Visit(NamedTuple):
    """One request of a signed-in operator whose role, session and (for a change) CSRF token were found right."""

    conn: Connection
    """Reading: a read-only snapshot. Changing: a transaction, committed when the page has answered, rolled back when it raises."""
    settings: Settings
    court: Court
    realms: list[str]
    operator: Operator
    now: datetime
    path: Mapping[str, str]
    """The variable parts of the page's path."""
    query: Mapping[str, str]
    form: Mapping[str, str]
    """The fields of a change, without the CSRF token; each at most MAX_FIELD characters."""


class Shown(NamedTuple):
    """A template of `worker/templates/console/` and what it is rendered with."""

    template: str
    context: dict[str, Any]
    status: int = 200


class Gone(NamedTuple):
    """After a change: the page to go to (303), and a sentence to show there once."""

    to: str
    said: str


class File(NamedTuple):
    """Bytes to keep, such as a report as CSV."""

    body: bytes
    content_type: str
    name: str


Answer = Shown | Gone | File
Show = Callable[[Visit], Awaitable[Answer]]


class Page(NamedTuple):
    """One entry of the console's map. A change is a POST; NotFound, NotUnderstood and ActRefused become pages that say so."""

    method: str
    path: str
    """As aiohttp writes them, below /console: `/reviews/{id}`."""
    role: Role
    show: Show
    own_transaction: bool = False
    """A change that asks Stripe on its way: its connection is in no transaction, and it opens short ones itself."""
