"""`finalsale cases`: support requests, what the policy says to them, and who answers by when (clause 5)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.text import Text

from handlers.cases import Kind, RequestInvalid, read_request
from worker import cases as desk_of_cases
from worker import show
from worker.cases import CaseInvalid, CaseRequest
from worker.desk import Desk, ask
from worker.options import By, Json, Note
from worker.reading import Document, NotUnderstood

MAX_FILE = 65_536
PAGE = 50
"""Rows of a table where no --limit is given; a JSON document has them all."""

Id = Annotated[str, Parameter(name="ID", help="A case's id, or a unique beginning of it.")]

cases = App(name="cases", help="Support requests (5): evaluated at once, to be answered within 24 hours.")


@cases.command(name="open")
def open_(
    *,
    by: By,
    email: str | None = None,
    date: str | None = None,
    description: str | None = None,
    transaction: str | None = None,
    customer: str | None = None,
    kind: Kind | None = None,
    request_key: str | None = None,
    file: Annotated[Path | None, Parameter(help="The request as a JSON object instead; - for standard input.")] = None,
    as_json: Json = False,
) -> None:
    """Open a case for a customer's request. What the policy says and a draft of the answer are there at once.

    Parameters
    ----------
    email
        Where the answer goes; compared with the payment's.
    date
        Day or moment of the purchase (2026-01-31).
    description
        What happened, 10 to 5000 characters.
    transaction
        ch_ pi_ in_ sub_ re_ dp_ cs_ cus_, or the number on the receipt.
    customer
        The Stripe customer (cus_...), if it is known.
    kind
        What it is about; `other` where nothing is said.
    request_key
        The same key again opens no second case.
    """
    told = {"email": email, "date": date, "description": description, "transaction": transaction}
    told |= {"customer": customer, "kind": kind, "request_key": request_key}
    given = {name: value for name, value in told.items() if value is not None}
    request = _request(file, given)

    async def act(desk: Desk) -> Any:
        from worker.jobs import read_policy

        realm = await desk_of_cases.realm_of_request(desk.conn, desk.realms, request) or desk.settings.realm(None)
        return await desk_of_cases.open_case(desk.conn, read_policy(desk.settings), realm, request, by=by)

    _answer(ask(act, change=True), as_json, page)


def _request(file: Path | None, given: dict[str, Any]) -> CaseRequest:
    """The request from a file or from options. Raises CaseInvalid, NotUnderstood."""
    if file is not None and given:
        raise NotUnderstood("Write the request either with --file or with options, not both.")
    try:
        if file is None:
            return read_request(given)
        if str(file) == "-":
            return read_request(sys.stdin.buffer.read(MAX_FILE + 1))
        with file.open("rb") as opened:
            return read_request(opened.read(MAX_FILE + 1))
    except OSError as error:
        raise NotUnderstood(f"{file} cannot be read ({type(error).__name__}).") from None
    except RequestInvalid as invalid:
        raise CaseInvalid(str(invalid)) from None


@cases.command(name="list")
def list_(
    *,
    state: Literal["open", "answered", "closed"] | None = None,
    assigned: Annotated[str | None, Parameter(help="Only those of this person.")] = None,
    overdue: Annotated[bool, Parameter(help="Only open ones whose answer is late.")] = False,
    limit: Annotated[int | None, Parameter(help="At most so many rows.")] = None,
    as_json: Json = False,
) -> None:
    """Cases: those that wait first, the soonest due at the top."""
    if limit is not None and limit < 1:
        raise NotUnderstood("--limit is a number of rows, 1 or more.")
    most = limit if limit is not None or as_json else PAGE

    async def look(desk: Desk) -> Any:
        return await desk_of_cases.list_cases(
            desk.conn, desk.realms, state=state, assigned=assigned, overdue=overdue, limit=most
        )

    _answer(ask(look), as_json, _table)


@cases.command(name="show")
def show_(id_: Id, /, *, as_json: Json = False) -> None:
    """One case whole: the request, what the policy says, the draft, and what was done about it."""
    _answer(ask(lambda desk: desk_of_cases.show_case(desk.conn, desk.realms, id_)), as_json, page)


@cases.command
def assign(id_: Id, /, *, to: Annotated[str, Parameter(help="Who answers it.")], by: By, as_json: Json = False) -> None:
    """Say who answers it."""
    _change(lambda desk: desk_of_cases.assign(desk.conn, desk.realms, id_, to=to, by=by), as_json)


@cases.command(name="note")
def note_(id_: Id, /, *, note: Note, by: By, as_json: Json = False) -> None:
    """Write something down about it; nothing else changes."""
    _change(lambda desk: desk_of_cases.note(desk.conn, desk.realms, id_, text=note, by=by), as_json)


@cases.command(name="evaluate")
def evaluate_(id_: Id, /, *, by: By, as_json: Json = False) -> None:
    """Evaluate an open case again, by what is known now: the draft may be another one."""
    from worker.jobs import read_policy

    def work(desk: Desk) -> Coroutine[Any, Any, Document]:
        return desk_of_cases.reevaluate(desk.conn, read_policy(desk.settings), desk.realms, id_, by=by)

    _change(work, as_json)


@cases.command(name="answer")
def answer_(
    id_: Id,
    /,
    *,
    by: By,
    text: Annotated[str | None, Parameter(help="The answer; without it the draft, if it still holds.")] = None,
    as_json: Json = False,
) -> None:
    """Write down the answer and stop the clock. Nothing is sent from here: the page shows what to send."""
    from worker.jobs import read_policy

    def work(desk: Desk) -> Coroutine[Any, Any, Document]:
        return desk_of_cases.answer(desk.conn, read_policy(desk.settings), desk.realms, id_, by=by, text=text)

    _change(work, as_json)


@cases.command(name="close")
def close_(id_: Id, /, *, by: By, note: Note = "", as_json: Json = False) -> None:
    """Close it; where it was never answered, only with a reason."""
    _change(lambda desk: desk_of_cases.close(desk.conn, desk.realms, id_, by=by, text=note), as_json)


@cases.command(name="reopen")
def reopen_(id_: Id, /, *, by: By, note: Note = "", as_json: Json = False) -> None:
    """Open it again, with a new clock and a new evaluation."""
    from worker.jobs import read_policy

    def work(desk: Desk) -> Coroutine[Any, Any, Document]:
        return desk_of_cases.reopen(desk.conn, read_policy(desk.settings), desk.realms, id_, by=by, text=note)

    _change(work, as_json)


def _change(work: Callable[[Desk], Coroutine[Any, Any, Document]], as_json: bool) -> None:
    _answer(ask(work, change=True), as_json, page)


def _answer(document: Any, as_json: bool, drawn: Callable[[Any], None]) -> None:
    if as_json:
        show.json_document(document)
    else:
        drawn(document)


# pages -------------------------------------------------------------------------------------------------------------------


def _table(rows: list[Document]) -> None:
    columns = ("case", "state", "due", "kind", "verdict", "about", "assigned", "from")
    drawn = (
        [
            *(r["id"], "OVERDUE" if r["overdue"] else r["state"], r["due_at"], r["kind"]),
            f"{r['verdict']} ({r['clause']})",
            *(r["transaction"] or r["customer"], r["assigned_to"], r["email"]),
        ]
        for r in rows
    )
    show.table(columns, drawn, "No cases.")


def page(document: Document) -> None:
    """One case: the verdict first, then the request, the draft and what was done."""
    verdict = str(document["verdict"])
    head = f"{document['id']}  {verdict.upper()}, clause {document['clause']}  {document['state']}"
    show.console().print(Text(head, style=show.STYLES.get(verdict, "") or "bold"))
    late = "  LATE" if document["overdue"] else ""
    show.fields(
        [
            ("why", document["summary"]),
            ("answer due", f"{show.when(document['due_at'])} UTC{late}"),
            ("assigned to", document["assigned_to"]),
            ("customer", document["customer"]),
            ("from", document["email"]),
            ("about", f"{document['kind']}, {document['transaction'] or 'no transaction named'}, {document['date']}"),
            ("payments", ", ".join(document["payments"])),
            ("policy", document["policy_version"]),
        ],
        indent=2,
    )
    for title, text in (("asked", document["description"]), _words(document)):
        show.say()
        show.console().print(Text(title, style="bold"))
        show.say(text)
    show.say()
    show.fields(
        (f"{show.when(act['at'])} {act['act']}", f"{act['by']}" + (f": {act['text']}" if act["text"] else ""))
        for act in document["acts"]
    )
    if document["state"] == "open":
        show.say()
        show.fields((("next", "\n".join(document["suggestions"])),))


def _words(document: Document) -> tuple[str, str]:
    """The answer that was given, or the draft."""
    if document["answer"] is not None:
        return "answer", document["answer"]
    return "draft of the answer", document["draft_answer"]
