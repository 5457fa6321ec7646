"""`finalsale notices` and `finalsale alerts`: what the merchant's app was told, telling it again, and what people should hear of."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import App, Parameter

from worker import alerts, notices, reading, show
from worker.alert_routes import read_routes, routes_of
from worker.desk import Desk, ask, settings_of_environment
from worker.options import By, ByLogin, Json, Limit, Note, login

notices_app = App(name="notices", help="Signed notices to the merchant's app: what it was told and what waits.")
alerts_app = App(name="alerts", help="What people should hear of: chargebacks, deadlines, refunds by hand, failures.")

State = Literal["waiting", "sent", "failed", "held"]
Severity = Literal["critical", "warning", "note"]
NOBODY_IS_TOLD = "No routes are set, so nobody is told: set FINALSALE_ALERT_URLS."
PAGE = 50
"""Rows of a table where no --limit is given; a JSON document has them all."""


@notices_app.command(name="list")
def list_notices(
    *, customer: str | None = None, state: State | None = None, limit: Limit = None, as_json: Json = False
) -> None:
    """Notices, newest first: to whom they belong, what they tell, and what became of them.

    Parameters
    ----------
    customer
        Only this customer's (cus_...).
    state
        waiting (also: to be tried again), sent, failed (given up), or held (too old to be news).
    """
    most = _most(limit, as_json)
    rows = ask(lambda d: notices.listed(d.conn, d.realms, customer=customer, state=state, limit=most))
    if as_json:
        show.json_document(rows)
        return
    columns = ("notice", "made", "state", "type", "customer", "what went wrong")
    show.table(
        columns,
        ([*_cells(row, "id", "created_at", "state", "type", "customer"), _trouble(row)] for row in rows),
        "No notices.",
    )


@notices_app.command(name="show")
def show_notice(id_: Annotated[str, Parameter(name="ID")], /, *, as_json: Json = False) -> None:
    """One notice: what became of it, and the body that is signed and sent."""
    document = ask(lambda d: notices.shown(d.conn, d.realms, id_))
    if as_json:
        show.json_document(document)
        return
    show.fields((name.replace("_", " "), value) for name, value in document.items() if name != "body")
    show.say()
    show.say(msgspec.json.format(msgspec.json.encode(document["body"]), indent=2).decode())


@notices_app.command
def replay(
    *ids: Annotated[str, Parameter(name="ID")],
    customer: str | None = None,
    since: str | None = None,
    state: State | None = None,
    by: ByLogin = None,
    as_json: Json = False,
) -> None:
    """Send notices again, in their old order, under their old ids: an app that has seen one passes over it.

    Parameters
    ----------
    customer
        All of this customer's (cus_...).
    since
        Those made since: how far back (30m, 24h, 7d) or a date (2026-01-31).
    state
        Those in this state: failed, held, sent.
    """
    moment = reading.moment(since) if since else None

    async def again(desk: Desk) -> list[str]:
        asked: dict[str, Any] = {"customer": customer, "since": moment, "state": state}
        return await notices.replay(desk.conn, desk.realms, ids=ids, by=login(by), **asked)

    replayed = ask(again, change=True)
    if as_json:
        show.json_document({"replayed": replayed})
    else:
        show.say(f"{len(replayed)} notices wait again.")


@alerts_app.command(name="list")
def list_alerts(
    *,
    resolved: Annotated[bool, Parameter(name="--all", negative="", help="Also what is over.")] = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """What people should hear of now, the most severe first: what happened, what time will do by itself, what to do."""
    most = _most(limit, as_json)
    rows = ask(lambda d: notices.alerts(d.conn, d.realms, resolved=resolved, limit=most))
    if as_json:
        show.json_document(rows)
        return
    columns = ("severity", "since", *(("over since",) if resolved else ()), "told", "acknowledged", "subject", "what")
    cells = ("severity", "raised_at", *(("resolved_at",) if resolved else ()))
    show.table(
        columns,
        ([*_cells(row, *cells), _told(row), row["acked_by"], *_cells(row, "subject", "sentence")] for row in rows),
        "Nothing needs anybody's attention.",
    )


@alerts_app.command(name="show")
def show_alert(cause: Annotated[str, Parameter(name="CAUSE")], /, *, as_json: Json = False) -> None:
    """One alert, and who was told of it: over which route, when, and what became of each message."""
    found = ask(lambda d: alerts.shown(d.conn, d.realms, cause))
    if as_json:
        show.json_document(found)
        return
    columns = ("told", "route", "what", "state", "message", "what went wrong")
    for alert in found:
        show.fields((name.replace("_", " "), value) for name, value in alert.items() if name != "deliveries")
        show.say()
        show.table(columns, map(_delivery, alert["deliveries"]), "Nobody was told of it.")


@alerts_app.command
def ack(cause: Annotated[str, Parameter(name="CAUSE")], /, *, by: By, note: Note = "", as_json: Json = False) -> None:
    """Say that you have seen an alert and see to it: nobody is reminded of it until it comes back or grows worse.

    Parameters
    ----------
    cause
        As `finalsale alerts list --json` names it, or all.
    """
    acked = ask(lambda d: alerts.acknowledge(d.conn, d.realms, cause, by, note), change=True)
    if as_json:
        show.json_document({"acknowledged": acked})
    else:
        show.say(f"{len(acked)} alerts are {by}'s now.")


@alerts_app.command
def routes(*, as_json: Json = False) -> None:
    """The routes that alerts go over, by names without their secrets: what each hears, and how sending went within seven days."""
    rows = ask(lambda d: alerts.routes_state(d.conn, d.settings, read_routes(d.settings)))
    if as_json:
        show.json_document(rows)
        return
    columns = ("route", "hears", "sent", "waiting", "failed", "last sent", "what went wrong")
    cells = ("sent", "waiting", "failed", "last_sent", "error")
    show.table(
        columns, ([row["route"], ", ".join(row["severities"]), *_cells(row, *cells)] for row in rows), NOBODY_IS_TOLD
    )


@alerts_app.command(name="test")
def send_test(*, severity: Severity | None = None, as_json: Json = False) -> None:
    """Send a test message over every route and say how it went; exit code 1 where one does not work, or none is set.

    Parameters
    ----------
    severity
        Only over the routes that hear of this one.
    """
    settings = settings_of_environment()
    rows = asyncio.run(alerts.try_routes(settings, routes_of(settings), severity))
    if as_json:
        show.json_document(rows)
    else:
        show.table(("route", "got it", "what went wrong"), (_tried(row) for row in rows), NOBODY_IS_TOLD)
    if not rows or not all(row["sent"] for row in rows):
        raise SystemExit(1)


def _tried(row: reading.Document) -> list[object]:
    return [row["route"], "yes" if row["sent"] else "no", row["problem"]]


def _told(row: reading.Document) -> str | None:
    if row["told_at"] is None:
        return None
    reminders = f", reminded {row['told_step']} times" if row["told_step"] else ""
    return f"{show.when(row['told_at'])}{reminders}"


def _delivery(row: reading.Document) -> list[object]:
    state = row["dropped"] or row["state"] or "gathered into the next message"
    return [row["sent_at"], row["route"], f"{row['severity']}, {row['step']}", state, row["message"], row["error"]]


def _cells(row: reading.Document, *names: str) -> list[object]:
    return [row[name] for name in names]


def _trouble(row: reading.Document) -> str | None:
    if row["error"] is None:
        return None
    again = f"; tried {row['attempts']} times, again at {show.when(row['next_at'])}"
    return f"{row['error']}{again if row['state'] == 'waiting' else ''}"


def _most(limit: int | None, as_json: bool) -> int | None:
    if limit is not None and limit < 1:
        raise reading.NotUnderstood("--limit is a number of rows, 1 or more.")
    return limit if limit is not None or as_json else PAGE
