"""What a year's driver did and saw, and how two sides of its books are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from handlers.decisions import Decision
from reconcile.truth import Check

DAY = 86400


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """A notice as the merchant's app first got it, its signature checked."""

    id: str
    customer: str
    type: str


class Said(msgspec.Struct):
    """What the app was told when it asked for credits."""

    consumed: dict[tuple[str, str], int] = {}
    """Credits by customer and key."""
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    wrong: list[str] = []


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """An outage that was declared, and what its preview said that it would give."""

    id: str
    begins: int
    ends: int
    plans: tuple[str, ...]
    declared_at: int
    previewed: int


class Played(msgspec.Struct, kw_only=True):
    """What the driver did in the year, and what it saw in the evenings."""

    begin: int
    days: int
    events: int = 0
    evening: dict[str, Decision] = {}
    """The decision about each seeded payment, on the evening of its day."""
    seeded: set[str] = set()
    """Customers of the seeded duplicates and look-alikes."""
    outages: list[Declared] = []
    """In the order in which they were declared."""
    cases: list[str] = []
    answered: list[str] = []
    acts: int = 0
    granted: int = 0
    """Service credits that operators gave (4.1)."""
    suspended: list[str] = []
    """Customers whom an operator suspended and did not lift."""
    lifted: set[str] = set()
    """Lost disputes that an operator forgave."""
    kept: set[str] = set()
    """Disputes that an operator holds against their customer."""


def equal(name: str, ours: Mapping[Any, Any], theirs: Mapping[Any, Any], *, more: str = "") -> Check:
    """Two mappings, key by key; the figure shows the first that differ."""
    wrong = [
        f"{k}: {ours.get(k)}, not {theirs.get(k)}" for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)
    ]
    return none(name, sorted(wrong), f"{len(ours)} equal" + (f"; {more}" if more else ""))


def same(name: str, ours: Iterable[str], theirs: Iterable[str]) -> Check:
    return equal(name, dict.fromkeys(ours, "found"), dict.fromkeys(theirs, "found"))


def none(name: str, wrong: Iterable[str], otherwise: str) -> Check:
    """Holds where nothing is wrong."""
    faults = list(wrong)
    figure = otherwise if not faults else f"{len(faults)} wrong: " + "; ".join(faults[:5])
    return Check(name=name, ok=not faults, figure=figure)
