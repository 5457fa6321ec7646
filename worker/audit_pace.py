"""How the audit queue is emptied: from where a sequencer reads it, and whether the chain moves while rows wait."""

from __future__ import annotations

import time

from worker.reading import Document

QUEUE_LATE_S = 300.0
"""The queue is emptied every second; what waits for five minutes waits for somebody who does not come."""
PLACE_S = 600.0
"""So long a sequencer trusts its place in the queue. It is wrong only where a database was restored under a running worker."""


class Place:
    """From where one sequencer reads the queue: rows up to `above` are chained, and nobody is at work who could still commit one.

    Without it every round would walk over the index entries of all that was chained since the oldest snapshot (a backup, a
    verification) began.
    """

    def __init__(self) -> None:
        self.above = self._newest = 0
        self._edge: tuple[int, int] | None = None
        self._until = time.monotonic() + PLACE_S

    def emptied(self, newest: int, oldest_at_work: int, next_at_work: int) -> None:
        """A round took everything above. The transactions are those of a snapshot from before it took.

        Whoever holds a number below one that was seen has an id below every one that is given later.
        """
        if time.monotonic() > self._until:
            self.__dict__.update(Place().__dict__)
            return
        if self._edge is None or oldest_at_work >= self._edge[1]:
            self.above = self.above if self._edge is None else self._edge[0]
            self._edge = self._newest, next_at_work
        self._newest = max(self._newest, newest)


class Pace:
    """Whether the chain moves while rows wait, by what one process saw at its looks. After a pause of all workers it catches up."""

    def __init__(self) -> None:
        self._length: int | None = None
        self._since = 0.0

    def late(self, state: Document, now_s: float) -> str | None:
        """What to say of the chain's head as it is at `now_s` of a steady clock; None where nothing is late."""
        if state["length"] != self._length or not state["pending"]:
            self._length, self._since = state["length"], now_s
        still_s = min(now_s - self._since, state["oldest_pending_s"] or 0.0)
        if still_s <= QUEUE_LATE_S:
            return None
        return f"The audit chain has stood still for {still_s / 60:.0f} minutes while {state['pending']} rows wait."
