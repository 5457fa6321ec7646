"""Letting events be worked on again, by a person with a name."""

from __future__ import annotations

from collections.abc import Sequence

from worker import audit
from worker.db import Connection, queries
from worker.reading import Document, NotFound, NotUnderstood, fetch
from worker.review import named


async def replay_events(
    conn: Connection, *, ids: Sequence[str] = (), state: str | None = None, by: str, via: str = "cli"
) -> list[str]:
    """Let these events, or all that are dead or quarantined, wait again. Must run inside a transaction. Returns their ids.

    Harmless: the same facts again change nothing. Raises NotUnderstood, ActRefused without a name, NotFound where one of the
    ids cannot be replayed (then none is).
    """
    if bool(ids) == bool(state):
        raise NotUnderstood("Name the events to replay, or a --state (dead or quarantined), not both.")
    name = named(by)
    if state:
        rows = await fetch(conn, queries.replay_state, state=state)
    else:
        rows = await fetch(conn, queries.replay_events, ids=list(ids))
    found = [row["event_id"] for row in rows]
    if missing := [id_ for id_ in ids if id_ not in found]:
        raise NotFound(
            f"Nothing was replayed: {', '.join(missing)} is not here, waits already, or is another mode's event, or its payload was pruned."
        )
    told: Document = {
        "by": name,
        "via": via,
        "act": "events.replay",
        "subject": ids[0] if len(ids) == 1 else state or "events",
    }
    after = {"replayed": len(found), "ids": found[: audit.MOST_NAMED]}
    await audit.record(conn, audit.EVERYWHERE, after=after, **told)
    return found
