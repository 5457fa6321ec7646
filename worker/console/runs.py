"""The console's pages about comparisons with Stripe: every run, how far one has come, and its report to read, sign and keep."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any

import asyncpg
import msgspec

from reconcile.report import Report
from worker.console import asked
from worker.console.page import File, Page, Shown, Visit
from worker.db import queries
from worker.operators import Role
from worker.reading import Document, NotFound, NotUnderstood, fetch
from worker.report_pages import csv_of, document_of, html_of, matter_of

LISTED = 20
"""Rows of a page: the figures of each are in a report that has to be opened."""
UNREAD = 100

RESULTS = {"clean": "ok", "needs_person": "ask", "incomplete": "bad", "failed": "bad", "abandoned": "soft"}
"""The tone of a result, and of a run that has none."""


async def runs(visit: Visit) -> Shown:
    """Every run, the newest first, with what it found or how far it is."""
    mark = asked.mark(visit.query)
    rows = await fetch(
        visit.conn, queries.console_runs, realms=visit.realms, before_at=mark.at, before_id=mark.id, most=LISTED + 1
    )
    found = [_line(row) for row in rows[:LISTED]]
    go_on = asked.Mark(rows[LISTED - 1]["started_at"], rows[LISTED - 1]["id"]) if len(rows) > LISTED else None
    address = asked.address("/console/runs", before=go_on) if go_on else None
    return Shown("runs.html.j2", {"runs": found, "tones": RESULTS, "next": address})


def _line(row: asyncpg.Record) -> Document:
    ended = row["finished_at"] or (row["seen_at"] if row["state"] != "running" else None)
    seconds = round((ended - row["started_at"]).total_seconds()) if ended else None
    return {**row, "seconds": seconds}


async def run(visit: Visit) -> Shown:
    """One run: its report as it is signed, or how much of each list is read. Raises NotFound."""
    row = await _found(visit)
    told = {name: value for name, value in row.items() if name != "report"}
    if row["report"] is None:
        lists = [dict(one) for one in await fetch(visit.conn, queries.run_progress, run=row["id"])]
        unread = [dict(one) for one in await fetch(visit.conn, queries.console_unread, run=row["id"], most=UNREAD)]
        return Shown("run.html.j2", {"run": told, "lists": lists, "unread": unread, "report": None})
    drawn = await asyncio.to_thread(_drawn, row["report"])  # takes a while; others are served meanwhile
    return Shown("run.html.j2", {"run": told, **(drawn or {"lists": [], "unread": [], "report": None})})


@lru_cache(maxsize=4)
def _drawn(stored: bytes) -> dict[str, Any] | None:
    """A report in words and drawings. A stored one never changes, and people look at the newest again and again."""
    report = _report(stored)
    return None if report is None else matter_of(report, stored)


async def kept(visit: Visit) -> File:
    """A run's report as a file: csv, json, or the page that is signed (html). Raises NotFound, NotUnderstood."""
    form = asked.one_of(visit.path, "form", ("csv", "json", "html"))
    row = await _found(visit)
    if row["report"] is None:
        raise NotFound(f"{row['id']} has no report yet ({row['state']}, {row['stage']}).")
    if form == "json":
        return File(document_of(row["report"]), "application/json", f"{row['id']}.json")
    report = _report(row["report"])
    if report is None:
        raise NotUnderstood(f"The report of {row['id']} was written by another release; its JSON shows it as it is.")
    if form == "csv":
        text = await asyncio.to_thread(csv_of, report)
        return File(text.encode(), "text/csv; charset=utf-8", f"{row['id']}.csv")
    page = await asyncio.to_thread(html_of, report, row["report"])
    return File(page.encode(), "text/html; charset=utf-8", f"{row['id']}.html")


async def _found(visit: Visit) -> asyncpg.Record:
    id_ = asked.id_in(visit.path)
    row: asyncpg.Record | None = await queries.console_run(visit.conn, realms=visit.realms, id=id_)
    if row is None:
        raise NotFound(f"There is no run {id_}; the list of nightly runs has them all.")
    return row


def _report(stored: bytes) -> Report | None:
    """The report, or None where another release wrote it in a form that this one cannot read."""
    try:
        return msgspec.json.decode(stored, type=Report)
    except msgspec.ValidationError:
        return None


PAGES = (
    Page("GET", "/runs", Role.READ, runs),
    Page("GET", "/runs/{id}", Role.READ, run),
    Page("GET", "/runs/{id}/{form}", Role.READ, kept),
)
