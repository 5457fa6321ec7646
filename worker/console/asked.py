"""What the address of a page asks for: an id, a word, a number, and where a long list goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from worker.reading import NotFound, NotUnderstood

MAX_ID = 300
MAX_NUMBER_DIGITS = 12
FIRST_YEAR, LAST_YEAR = 1969, 9000
"""Far from the ends of what Python and Postgres can count."""


class Mark(NamedTuple):
    """Where a list that is read by time and id goes on: after the row of this moment and id."""

    at: datetime | None = None
    id: str | None = None

    def __str__(self) -> str:
        return f"{self.at.isoformat() if self.at else ''},{self.id or ''}"


class Stretch(NamedTuple):
    """Some rows of a list that is in memory whole, and the addresses of the stretches beside it."""

    rows: list[Any]
    first: int
    """Number of the first row shown, from 1."""
    total: int
    newer: str | None
    older: str | None


def id_in(path: Mapping[str, str], name: str = "id") -> str:
    """An id in the path. Raises NotFound for what can be none."""
    text = path[name].strip()
    if not (0 < len(text) <= MAX_ID and text.isprintable()):
        raise NotFound("No id looks like that. The search finds every id that the books know.")
    return text


def word(fields: Mapping[str, str], name: str) -> str | None:
    """A word of a form or an address, None where it is empty. Raises NotUnderstood for what no keyboard writes."""
    text = fields.get(name, "").strip()
    if len(text) > MAX_ID or not text.isprintable():
        raise NotUnderstood(f"{name} is a word of up to {MAX_ID} characters.")
    return text or None


def one_of(fields: Mapping[str, str], name: str, words: Sequence[str]) -> str | None:
    """One of some words, None where it is empty. Raises NotUnderstood."""
    text = word(fields, name)
    if text is not None and text not in words:
        raise NotUnderstood(f"{name} is one of {', '.join(words)}.")
    return text


def number(fields: Mapping[str, str], name: str) -> int | None:
    """A whole number, None where it is empty. Raises NotUnderstood."""
    text = word(fields, name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER_DIGITS):
        raise NotUnderstood(f"{name} is a whole number.")
    return int(text)


def mark(query: Mapping[str, str], name: str = "before") -> Mark:
    """Where the list goes on, as `Mark` writes it. Raises NotUnderstood."""
    text = word(query, name)
    if text is None:
        return Mark()
    moment, _, id_ = text.partition(",")
    try:
        at = datetime.fromisoformat(moment)
        if at.tzinfo is None or not FIRST_YEAR < at.year < LAST_YEAR:
            raise ValueError("no moment of any row")
        return Mark(at, id_)
    except (ValueError, OverflowError):
        raise NotUnderstood("The list cannot go on there: begin at its first page again.") from None


def address(path: str, **query: object) -> str:
    """A page's address with what is set of the query."""
    asked = {name: str(value) for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(asked)}" if asked else path


def page_of(place: str, id_: str, **query: object) -> str:
    """The address of one thing's page: `page_of("customers", "cus_A")`."""
    return address(f"/console/{place}/{quote(id_, safe='')}", **query)


def stretch(
    rows: Sequence[Any], query: Mapping[str, str], path: str, name: str, most: int, wanted: Callable[[Any], bool]
) -> Stretch:
    """`most` rows from the number that `?name=` says, or the ones around the row that is wanted. Raises NotUnderstood."""
    begin = number(query, name)
    if begin is None:
        found = next((place for place, row in enumerate(rows) if wanted(row)), 0)
        begin = found // most * most
    begin = min(begin, max(len(rows) - 1, 0))
    older = address(path, **{name: begin + most}) + f"#{name}" if begin + most < len(rows) else None
    newer = address(path, **{name: max(begin - most, 0)}) + f"#{name}" if begin else None
    return Stretch(list(rows[begin : begin + most]), begin + 1, len(rows), newer, older)
