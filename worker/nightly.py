"""Every night: Stripe's own list of events of the last three days against the inbox; what never arrived is stored now.

First version of the nightly run: it heals lost deliveries through the same door. It does not compare objects or money yet.
"""

from __future__ import annotations

from datetime import timedelta

import msgspec
import structlog

from worker.db import Pool, connection, queries
from worker.errors import FinalsaleError
from worker.inbox import NotAnEvent, Row, read_event, store_rows
from worker.settings import Settings
from worker.stripe_gateway import StripeGateway

NAME = "events"
WINDOW = timedelta(days=3)
GRACE_S = 60
"""Events younger than this are still on their way, and no gap."""
MAX_PAGES = 10_000

log = structlog.get_logger()


class Gap(msgspec.Struct):
    """What a run saw and did."""

    pages: int = 0
    seen: int = 0
    missing: int = 0


async def run_if_due(pool: Pool, gateway: StripeGateway, settings: Settings) -> Gap | None:
    """Run once for the newest 03:00 UTC that no run is done for, on whichever worker takes it. None where nothing was due.

    A run that could not read everything is `incomplete`, never clean, and is taken up again after ten minutes.
    """
    async with connection(pool) as conn:
        await queries.wake_overdue(conn)  # cheap, and needs no Stripe: every look of the nightly loop
    if not gateway.connected:
        return None
    async with connection(pool) as conn:
        due_at = await queries.last_due(conn)
        if not await queries.take_run(conn, name=NAME, due_at=due_at):
            return None
    gap = Gap()
    try:
        await heal_events(pool, gateway, settings, int(due_at.timestamp() - WINDOW.total_seconds()), gap)
        state, result = "done", f"{gap.pages} pages, {gap.seen} events, {gap.missing} had never arrived"
    except FinalsaleError as error:
        state, result = "incomplete", f"after {gap.pages} pages, {gap.seen} events: {error}"
    async with connection(pool) as conn:
        await queries.finish_run(conn, name=NAME, due_at=due_at, state=state, result=result)
    log.info("nightly.run", state=state, **msgspec.structs.asdict(gap))
    return gap


async def heal_events(pool: Pool, gateway: StripeGateway, settings: Settings, since_s: int, gap: Gap) -> None:
    """Page through /v1/events since then, newest first, and store what the inbox lacks. Raises as the gateway's reads."""
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        bodies, more, now_s = await gateway.event_page(since_s, cursor)
        gap.pages += 1
        rows = [row for body in bodies if (row := _row(body, settings)) is not None]
        gap.seen += len(bodies)
        cursor = rows[-1].event_id if rows else None
        await _store_missing(pool, [row for row in rows if row.created_s <= now_s - GRACE_S], gap)
        if not more or cursor is None:
            return


def _row(body: bytes, settings: Settings) -> Row | None:
    try:
        return read_event(body, settings.mode)
    except NotAnEvent as error:
        raise FinalsaleError(f"Stripe listed an event that cannot be read: {error}") from None


async def _store_missing(pool: Pool, rows: list[Row], gap: Gap) -> None:
    if not rows:
        return
    async with connection(pool) as conn:
        known = {row["event_id"] for row in await conn.fetch(queries.known_events.sql, [row.event_id for row in rows])}
        lost = [row for row in rows if row.event_id not in known]
        if lost:
            gap.missing += await store_rows(conn, lost)
            log.warning("event.never_arrived", events=len(lost), first=lost[-1].event_id)
