"""`finalsale runs`: every comparison with Stripe that there was, and its report as a page, as JSON, as HTML and as CSV."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import asyncpg
import msgspec
from cyclopts import App, Parameter

from reconcile.report import Report
from worker import reading, show, show_run
from worker.db import queries
from worker.desk import Desk, ask
from worker.options import Json, Limit

PAGE = 50
"""Rows of a table where no --limit is given; a JSON document has them all."""

runs = App(name="runs", help="Comparisons with Stripe and their reports.", default_parameter=Parameter(negative=""))


@runs.command(name="list")
def list_runs(*, limit: Limit = None, as_json: Json = False) -> None:
    """Every run, the newest first: what it read, how it ended, and how far one that is under way has come."""
    if limit is not None and limit < 1:
        raise reading.NotUnderstood("--limit is a number of rows, 1 or more.")
    most = limit if limit is not None or as_json else PAGE

    async def look(desk: Desk) -> list[reading.Document]:
        rows = await reading.fetch(desk.conn, queries.list_runs, realms=desk.realms, most=most)
        return [_document(row) for row in rows]

    found = ask(look)
    if as_json:
        show.json_document(found)
        return
    names = ("run", "realm", "state", "window (UTC)", "started", "took", "exit", "drift", "asked")
    show.table(names, (_row(run) for run in found), "No run yet: `finalsale reconcile --dry-run` makes the first.")


@runs.command(name="show")
def show_one(
    id_: Annotated[str, Parameter(name="ID|last", help="A run's id, a unique beginning of it, or `last`.")] = "last",
    /,
    *,
    html: Annotated[Path | None, Parameter(help="Write the report into this file, as one page to sign.")] = None,
    csv: Annotated[Path | None, Parameter(help="Write the report into this file, for a spreadsheet.")] = None,
    as_json: Json = False,
) -> None:
    """The report of one run, or how far it is where it has none yet. With --json the report as it is kept,
    byte for byte what the SHA-256 on the signed page was made of.
    """

    async def look(desk: Desk) -> tuple[asyncpg.Record, list[reading.Document]]:
        rows = await reading.fetch(desk.conn, queries.find_runs, realms=desk.realms, id=id_)
        if not rows:
            raise reading.NotFound(f"There is no run {id_}; `finalsale runs list` shows them all.")
        if len(rows) > 1 and id_ not in ("last", rows[0]["id"]):
            raise reading.NotUnderstood(f"Several runs begin with {id_}: write more of the id.")
        run = rows[0]
        lists = [] if run["report"] else await reading.fetch(desk.conn, queries.run_progress, run=run["id"])
        return run, [dict(row) for row in lists]

    run, lists = ask(look)
    stored: bytes | None = run["report"]
    if stored is None:
        if html or csv:
            raise reading.NotUnderstood(f"{run['id']} has no report yet ({run['state']}, {run['stage']}).")
        _unfinished(run, lists, as_json)
        return
    written = _files(run["id"], stored, html, csv)
    if as_json:
        from worker.report_pages import document_of

        sys.stdout.write(document_of(stored).decode())
    elif written:
        for path in written:
            show.say(f"Wrote {path}.")
    else:
        report = _report(run["id"], stored)
        show_run.page_of(report)(report)


def _files(id_: str, stored: bytes, html: Path | None, csv: Path | None) -> list[Path]:
    """Write what was asked for; the plots' library is loaded only here."""
    if not html and not csv:
        return []
    from worker.report_pages import write_csv, write_html

    report = _report(id_, stored)
    if html:
        write_html(report, html, stored)
    if csv:
        write_csv(report, csv)
    return [path for path in (html, csv) if path]


def _report(id_: str, stored: bytes) -> Report:
    try:
        return msgspec.json.decode(stored, type=Report)
    except msgspec.ValidationError as error:
        raise reading.NotUnderstood(
            f"The report of {id_} was written by another release ({error}); --json shows it as it is."
        ) from None


def _document(row: asyncpg.Record) -> reading.Document:
    """One run as `runs list` shows it."""
    ended = row["finished_at"] or (row["seen_at"] if row["state"] != "running" else None)
    seconds = round((ended - row["started_at"]).total_seconds()) if ended else None
    return {**dict(row), "seconds": seconds}


def _row(run: reading.Document) -> list[object]:
    window = f"{run['since']:%Y-%m-%d %H:%M} to {run['until']:%Y-%m-%d %H:%M}" if run["since"] else None
    state = f"running: {run['stage']}" if run["state"] == "running" else run["result"] or run["state"]
    dry = f"{run['asked']} (dry run)" if run["dry_run"] else run["asked"]
    took = show.age(run["seconds"])
    return [run["id"], run["realm"], state, window, run["started_at"], took, run["exit_code"], run["drift"], dry]


def _unfinished(run: asyncpg.Record, lists: list[reading.Document], as_json: bool) -> None:
    """A run without a report: its stage, and how much of each list is read."""
    known = {name: value for name, value in run.items() if name != "report"}
    if as_json:
        show.json_document({**known, "lists": lists})
        return
    show.say(f"{run['id']} has no report yet: {run['state']}, {run['stage']}, seen {show.when(run['seen_at'])} UTC.")
    show.say()
    rows = (
        [one["list"].replace("_", " "), f"{one['share']:.0%}", *(one[name] for name in ("slices", "pages", "objects", "unread"))]
        for one in lists
    )  # fmt: skip
    show.table(("list", "read", "slices", "pages", "objects", "unread"), rows, "Nothing was read yet.")
