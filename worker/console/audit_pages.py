"""The console's page about the audit: what operators did, before and after, and the head of the chain that nobody can change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from worker import audit
from worker.console import asked
from worker.console.page import Page, Shown, Visit
from worker.db import queries
from worker.log import masked
from worker.operators import Role
from worker.reading import Document

LISTED = 50
OF_TOKENS = ("token", "tokens")
"""Fields with the public parts of operators' tokens: for those who manage them."""
_ABSENT = object()


async def acts(visit: Visit) -> Shown:
    """Operators' acts, newest first, by name, act and subject; and how long the chain is."""
    by, act, subject = (asked.word(visit.query, name) for name in ("by", "act", "subject"))
    before = asked.number(visit.query, "before")
    found = await audit.listed(
        visit.conn, visit.realms, by=by, act=act, subject=subject, before=before, limit=LISTED + 1
    )
    go_on = found[LISTED - 1]["id"] if len(found) > LISTED else None
    address = asked.address("/console/audit", by=by, act=act, subject=subject, before=go_on) if go_on else None
    return Shown(
        "audit.html.j2",
        {
            "acts": [_in_words(one, visit.operator.role) for one in found[:LISTED]],
            "by": by,
            "act": act,
            "subject": subject,
            "next": address,
            "head": await audit.head(visit.conn),
            "checked": await queries.newest_audit_check(visit.conn),
        },
    )


def _in_words(one: Document, role: Role) -> Document:
    told = changes(one["before"], one["after"])
    seen = [change for change in told if role is Role.ADMIN or change["field"] not in OF_TOKENS]
    return one | {"reason": masked(one["reason"]), "changes": seen}


def changes(before: Document | None, after: Document | None) -> Iterator[Document]:
    """What an act changed: each field that differs, with what it was and what it became; only what is new where nothing was."""
    was, became = dict(_fields(before)), dict(_fields(after))
    for name in [*was, *(name for name in became if name not in was)]:
        old, new = was.get(name, _ABSENT), became.get(name, _ABSENT)
        if old != new:
            yield {"field": name, "was": _text(old), "became": _text(new)}


def _fields(told: Document | None, under: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value of a document by its path: `amount.minor`."""
    for name, value in (told or {}).items():
        if isinstance(value, dict):
            yield from _fields(value, f"{under}{name}.")
        else:
            yield f"{under}{name}", value


def _text(value: Any) -> str | None:
    """A value in words; None where there is none, or it says nothing."""
    match value:
        case None:
            return None
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(filter(None, map(_text, value))) or "none"
        case dict():
            return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items()) or "none"
        case _ if value is _ABSENT:
            return None
        case _:
            return masked(str(value))


PAGES = (Page("GET", "/audit", Role.READ, acts),)
