"""`finalsale audit`: what people did, whether anything was changed behind the audit's back, and a copy for an auditor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import asyncpg
from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import Progress

from worker import audit, reading, show
from worker.audit_export import export as write_export
from worker.audit_export import read_digest
from worker.db import connect_pool, transaction
from worker.desk import Desk, ask
from worker.errors import FinalsaleError
from worker.options import Json, Limit

PAGE = 50
"""Rows of a table where no --limit is given; a JSON document has them all."""
BROKEN, NOT_LOOKED = 1, 2

audit_app = App(
    name="audit", help="What people did, and the chain that shows tampering.", default_parameter=Parameter(negative="")
)


@audit_app.command(name="list")
def list_acts(
    *,
    by: Annotated[str | None, Parameter(help="Only this person's.")] = None,
    act: Annotated[str | None, Parameter(help="Only acts of this name, such as review.approve.")] = None,
    subject: Annotated[str | None, Parameter(help="Only what was done about this id or name.")] = None,
    before: Annotated[int | None, Parameter(help="Only acts with a smaller number: the next page.")] = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """What people did, the newest first: when, who, from where, what, about what, and why."""
    if limit is not None and limit < 1:
        raise reading.NotUnderstood("--limit is a number of rows, 1 or more.")
    most = limit if limit is not None or as_json else PAGE
    asked = {"by": by, "act": act, "subject": subject}
    found = ask(lambda d: audit.listed(d.conn, d.realms, before=before, limit=most, **asked))
    if as_json:
        show.json_document(found)
        return
    cells = ("id", "acted_at", "by", "via", "act", "subject", "reason")
    show.table(
        ("number", "when (UTC)", *cells[2:]),
        ([one[name] for name in cells] for one in found),
        "Nobody did anything yet.",
    )


@audit_app.command
def verify(
    *,
    against: Annotated[
        str | None, Parameter(help="An earlier state: a hash, LENGTH:HASH, or a file that `audit export` wrote.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Recompute the whole chain and compare every row with it: edited, removed, reordered, or written past it.

    Exits 0 where all is as it was, 1 where something was changed (and says where), 2 where it could not look. What was cut off at
    the end together with its rows is seen only by an earlier state: the worker writes one into its log every day (audit.head).
    What is found is kept, so that the alert of a broken chain goes as soon as it is whole again (not with --against).
    """
    try:
        digests = [read_digest(against)] if against is not None else []
        with _bar() as advance:
            found = ask(lambda d: _verified(d, digests, advance))
    except (FinalsaleError, asyncpg.PostgresError, OSError) as error:
        sentence = (
            str(error) if isinstance(error, FinalsaleError) else f"The chain cannot be read ({type(error).__name__})."
        )
        if as_json:
            show.json_document({"ok": None, "error": sentence})
        else:
            sys.stderr.write(f"finalsale: {show.plain(sentence).plain}\n")
        return NOT_LOOKED
    if as_json:
        show.json_document(found)
    else:
        _page(found)
    return 0 if found["ok"] else BROKEN


async def _verified(
    desk: Desk, against: Sequence[audit.Digest], advance: Callable[[int, int], None]
) -> reading.Document:
    found = await audit.verify(desk.conn, against=against, progress=advance)
    if not against:
        # the desk's own transaction only reads; a role that may not keep it leaves that to the workers
        with suppress(asyncpg.InsufficientPrivilegeError):
            pool = await connect_pool(desk.settings.database_dsn(), role="cli", max_size=1)
            try:
                async with transaction(pool) as conn:
                    await audit.save_check(conn, found)
            finally:
                pool.terminate()
    return found


@audit_app.command
def export(file: Path, /, *, as_json: Json = False) -> None:
    """Write the chain for an auditor, one JSON line for each link with its row, and the digest of it beside, as FILE.sha256.

    The same chain gives the same bytes. Keep the digest where nobody who can change the database can: `audit verify --against`
    takes it. What customers wrote is not in the file.
    """

    async def write(desk: Desk) -> reading.Document:
        return await write_export(desk.conn, file)

    document = ask(write)
    if as_json:
        show.json_document(document)
        return
    show.say(f"Wrote {document['length']} links into {document['file']}, and its digest into {document['digest']}.")
    show.say(f"SHA-256 {document['sha256']}")
    show.say(f"head    {document['head']}")


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """On a terminal, a bar on standard error while the chain is read."""
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("links", total=None)
        yield lambda done, length: progress.update(task, completed=done, total=length)


def _page(found: reading.Document) -> None:
    if found["ok"]:
        show.say(f"The audit chain is whole: {found['length']} links, every row as it was written.")
    else:
        many = "1 problem" if found["problem_count"] == 1 else f"{found['problem_count']} problems"
        show.say(f"The audit chain is broken: {many}.")
        for problem in found["problems"]:
            show.say(f"  {problem['sentence']}")
        if found["problem_count"] > len(found["problems"]):
            show.say(f"  and {found['problem_count'] - len(found['problems'])} more.")
    show.say(f"head {found['length']}:{found['head']}")
    if found["erased"]:
        show.say(f"Words of {found['erased']} rows were erased on request; the rows are as they were otherwise.")
    if found["pending"]:
        show.say(f"{found['pending']} rows wait to be chained; a worker does it every second.")
    if found["not_yet_chained"]:
        show.say(f"Rows from before the chain are still being chained: {', '.join(found['not_yet_chained'])}.")
