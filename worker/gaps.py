"""Times in which Stripe could not make events: noted as they are told, read by the next run, closed when it has read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import structlog

from handlers.events import Gap, Hint, Unreadable, parse_event
from reconcile.windows import GRACE, Window, merged
from worker.db import Connection, Pool, columns, connection, queries, transaction
from worker.errors import StripeRefused, StripeUnavailable
from worker.judging import path_of, want
from worker.stripe_gateway import StripeGateway

NAMED_AT_ONCE = 500

log = structlog.get_logger()


class OpenGap(msgspec.Struct, frozen=True):
    """What a run must read, and the event that told of it."""

    window: Window
    event_id: str
    object: str | None = None
    """Whose event it was; None: Stripe has not said."""


async def note_gaps(conn: Connection, told: Sequence[tuple[str, str, Gap, Hint | None]]) -> None:
    """Keep what events told about failures of others: realm, event id, gap, and whose event it was."""
    rows = [
        (event_id, realm, gap.since, gap.until, hint.id if hint is not None else None)
        for realm, event_id, gap, hint in told
    ]
    await conn.execute(queries.note_gaps.sql, *columns(rows))
    log.warning("event.never_made", events=len(rows), first=rows[0][0])


async def open_gaps(conn: Connection, realm: str) -> list[OpenGap]:
    """The gaps that a run should read now, oldest first. The youngest minute is left to a later look, as with all lists."""
    rows = await conn.fetch(queries.open_gaps.sql, realm, GRACE)
    return [OpenGap(Window(row["since"], row["until"]), row["event_id"], row["object"]) for row in rows]


async def close_gaps(conn: Connection, realm: str, windows: Iterable[Window]) -> int:
    """Close every gap that lies inside what a finished run has read (ScanPlan.windows); how many there were.

    By windows and not by time: a resumed run knows what it read, and a gap told while it ran is closed only if it was read.
    """
    read = merged(windows)
    if not read:
        return 0
    status: str = await conn.execute(queries.close_gaps.sql, realm, [w.lo for w in read], [w.hi for w in read])
    return int(status.rpartition(" ")[2])  # "UPDATE 2"


async def name_gaps(pool: Pool, gateway: StripeGateway, realm: str) -> int:
    """Ask Stripe whose event was lost, where the delivery did not say, and have that object read; how many were told.

    The object may be older than the gap, and no list over the gap's time would show it: a refund of last year's charge.
    What Stripe does not tell stays a gap by time alone. Source: docs.stripe.com/webhooks/handle-irrecoverable-events.
    """
    async with connection(pool) as conn:
        rows = await conn.fetch(queries.gaps_without_object.sql, realm, NAMED_AT_ONCE)
    named = 0
    for row in rows:
        event_id = row["event_id"]
        try:
            body, _as_of = await gateway.document(
                f"/v2/core/events/{event_id}", account=realm.partition(":")[2] or None
            )
            told = parse_event(body)
        except (StripeRefused, StripeUnavailable, Unreadable) as error:
            log.warning("gap.unnamed", event_id=event_id, error=type(error).__name__)
            continue
        if told.gap is None or told.hint is None:
            continue
        async with transaction(pool) as conn:
            await note_gaps(conn, [(realm, event_id, told.gap, told.hint)])
            kind, id_ = told.hint.object_type, told.hint.id
            await want(conn, realm, [(kind, id_, path_of(kind, id_), 0)])
        named += 1
    return named
