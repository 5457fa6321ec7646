"""The console's pages about alerts: what is open and what to do about it, what each route was told, and what is over."""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import quote

from worker import alerts
from worker.alert_kinds import kind_of
from worker.console import asked
from worker.console.page import Gone, Page, Shown, Visit
from worker.db import queries
from worker.operators import Role
from worker.reading import Document, NotFound, NotUnderstood, fetch

OPEN_AT_MOST = 200
LISTED = 50
DELIVERIES = 100
OVER_SINCE = timedelta(days=7)
TONES = {"critical": "bad", "warning": "ask", "note": "soft"}


async def open_alerts(visit: Visit) -> Shown:
    """What is open, the worst first, and what was resolved in the last seven days."""
    rows = await fetch(visit.conn, queries.console_open_alerts, realms=visit.realms, most=OPEN_AT_MOST + 1)
    mark = asked.mark(visit.query)
    over = await fetch(
        visit.conn,
        queries.console_alerts_over,
        realms=visit.realms,
        since=visit.now - OVER_SINCE,
        before_at=mark.at,
        before_id=mark.id,
        most=LISTED + 1,
    )
    go_on = asked.Mark(over[LISTED - 1]["resolved_at"], over[LISTED - 1]["cause"]) if len(over) > LISTED else None
    return Shown(
        "alerts.html.j2",
        {
            "open": [_told(dict(row)) for row in rows[:OPEN_AT_MOST]],
            "more": len(rows) > OPEN_AT_MOST,
            "over": [_told(dict(row)) for row in over[:LISTED]],
            "next": asked.address("/console/alerts", before=go_on) if go_on else None,
            "tones": TONES,
            "may_act": visit.operator.role.allows(Role.DECIDE),
        },
    )


async def alert(visit: Visit) -> Shown:
    """One alert, with everything that each route was told of it. Raises NotFound."""
    cause = asked.id_in(visit.path, "cause")
    rows = await fetch(visit.conn, queries.read_alert, realms=visit.realms, cause=cause)
    if not rows:
        raise NotFound("There is no such alert; the list shows what is open, and what was resolved in the last days.")
    told = _told(dict(rows[0]))
    said = await fetch(
        visit.conn, queries.deliveries_of_alert, realm=told["realm"], cause=told["cause"], most=DELIVERIES
    )
    may_act = visit.operator.role.allows(Role.DECIDE)
    return Shown(
        "alert.html.j2", {"alert": told, "tellings": [dict(row) for row in said], "tones": TONES, "may_act": may_act}
    )


def _told(row: Document) -> Document:
    """An alert with its kind's words, its page and the command that acts."""
    kind = kind_of(row["kind"])
    parts = {name: str(row[name]) for name in ("subject", "customer", "cause")}
    quoted = {name: quote(value, safe="") for name, value in parts.items()}
    return row | {
        "title": kind.title,
        "why": kind.why,
        "page": kind.page.format_map(quoted),
        "command": kind.command.format_map(parts),
        "own_page": asked.page_of("alerts", row["cause"]),
    }


async def acknowledge(visit: Visit) -> Gone:
    """Say that a person has seen it, which stops the reminders; the alert stays open. Raises NotFound, NotUnderstood."""
    cause = asked.word(visit.form, "cause")
    if cause is None:
        raise NotUnderstood("Say which alert: its cause is missing.")
    note = visit.form.get("note", "").strip()
    who = {"by": visit.operator.name, "via": "console", "role": str(visit.operator.role)}
    await alerts.acknowledge(visit.conn, visit.realms, cause, note=note, **who)
    return Gone("/console/alerts", "Acknowledged: nobody is reminded of it any more. It closes when its cause is gone.")


PAGES = (
    Page("GET", "/alerts", Role.READ, open_alerts),
    Page("POST", "/alerts/ack", Role.DECIDE, acknowledge),
    Page("GET", "/alerts/{cause}", Role.READ, alert),
)
