"""The console's pages about support cases: which answer is due soonest, one case whole, and what a person does about it (5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

import asyncpg

from worker import cases as desk
from worker.console import asked
from worker.console.chargebacks import left_in_words
from worker.console.clause_words import clause_in_words
from worker.console.page import Gone, Page, Shown, Visit
from worker.console.reviews import in_short
from worker.db import queries
from worker.operators import Role
from worker.reading import Document, NotUnderstood, fetch

LISTED = 50
SOON_S = 4 * 3600
MAX_ANSWER = 4_000
"""Characters of an answer written here; what is longer is written on the command line."""


async def cases(visit: Visit) -> Shown:
    """Open cases, the soonest due first; with `over` those that were answered or closed, newest first."""
    over = visit.query.get("show") == "over"
    mark = asked.mark(visit.query, "after")
    statement = queries.desk_cases_over_page if over else queries.desk_cases_open_page
    rows = await fetch(visit.conn, statement, realms=visit.realms, after_at=mark.at, after_id=mark.id, most=LISTED + 1)
    more = None
    if len(rows) > LISTED:
        last = rows[LISTED - 1]
        more = asked.Mark(last["opened_at" if over else "due_at"], last["id"])
    return Shown(
        "cases.html.j2",
        {
            "rows": [_listed(row) for row in rows[:LISTED]],
            "clock": await queries.desk_cases_clock(visit.conn, realms=visit.realms),
            "over": over,
            "next": asked.address("/console/cases", show="over" if over else None, after=more) if more else None,
        },
    )


def _listed(row: asyncpg.Record) -> Document:
    told = desk.case_document(row)
    return told | clock(row["state"], row["due_at"], row["now"]) | {"short": in_short(told["summary"])}


def clock(state: str, due_at: datetime, now: datetime) -> Document:
    """The time until the answer is due, in words, and how much it presses."""
    if state != "open":
        return {"left": "", "tone": "soft"}
    left_s = int((due_at - now).total_seconds())
    return {"left": left_in_words(left_s), "tone": "bad" if left_s <= 0 else "ask" if left_s <= SOON_S else "soft"}


async def one(visit: Visit) -> Shown:
    """One case whole: the request, what the policy says, the draft, and what was done about it."""
    found = await desk.show_case(visit.conn, visit.realms, asked.id_in(visit.path))
    may = visit.operator.role.allows(Role.DECIDE)
    now = await queries.case_moment(visit.conn, realm=found["realm"])
    return Shown(
        "case.html.j2",
        {
            "case": found | {"email": found["email"] if may else desk.masked_email(found["email"])},
            "clause": clause_in_words(found["clause"] or ""),
            "may": may,
            "most": MAX_ANSWER,
            **clock(found["state"], found["due_at"], now),
        },
    )


# what a person does about it ---------------------------------------------------------------------------------------------


async def assign(visit: Visit) -> Gone:
    """Say who answers it: the operator, or whom the form names. Raises NotFound, NotUnderstood, ActRefused."""
    to = visit.form.get("to", "").strip() or visit.operator.name
    return await _acted(
        visit, lambda id_, how: desk.assign(visit.conn, visit.realms, id_, to=to, **how), f"{to} answers {{id}}."
    )


async def note(visit: Visit) -> Gone:
    """Write something down; nothing else changes. Raises NotFound, NotUnderstood, ActRefused."""
    text = visit.form.get("note", "").strip()
    if not text:
        raise NotUnderstood("The note is empty.")
    return await _acted(
        visit, lambda id_, how: desk.note(visit.conn, visit.realms, id_, text=text, **how), "Your note stands on {id}."
    )


async def evaluate(visit: Visit) -> Gone:
    """Evaluate an open case again by what is known now. Raises NotFound, ActRefused."""
    return await _acted(
        visit,
        lambda id_, how: desk.reevaluate(visit.conn, visit.court.policy, visit.realms, id_, **how),
        "{id} was evaluated again: the draft below is by what is known now.",
    )


async def answer(visit: Visit) -> Gone:
    """Write down the answer; the unchanged draft is refused where it is not what the policy says any more.

    Raises NotFound, NotUnderstood, ActRefused.
    """
    text = visit.form.get("answer", "").strip()
    if not text:
        raise NotUnderstood("The answer is empty.")
    found = await desk.show_case(visit.conn, visit.realms, asked.id_in(visit.path))
    own = None if text == found["draft_answer"].strip() else text
    return await _acted(
        visit,
        lambda id_, how: desk.answer(visit.conn, visit.court.policy, visit.realms, id_, text=own, **how),
        "{id} is answered and its clock stands still. Nothing is sent from here: send the answer yourself.",
    )


async def close(visit: Visit) -> Gone:
    """Close it. Raises NotFound, ActRefused."""
    text = visit.form.get("reason", "")
    return await _acted(
        visit, lambda id_, how: desk.close(visit.conn, visit.realms, id_, text=text, **how), "{id} is closed."
    )


async def reopen(visit: Visit) -> Gone:
    """Open it again with a new clock. Raises NotFound, ActRefused."""
    text = visit.form.get("reason", "")
    return await _acted(
        visit,
        lambda id_, how: desk.reopen(visit.conn, visit.court.policy, visit.realms, id_, text=text, **how),
        "{id} is open again, with a new clock.",
    )


async def _acted(visit: Visit, act: Callable[[str, dict[str, str]], Awaitable[Document]], said: str) -> Gone:
    done = await act(asked.id_in(visit.path), {"by": visit.operator.name, "via": "console"})
    return Gone(asked.page_of("cases", done["id"]), said.format(id=done["id"]))


PAGES = (
    Page("GET", "/cases", Role.READ, cases),
    Page("GET", "/cases/{id}", Role.READ, one),
    Page("POST", "/cases/{id}/assign", Role.DECIDE, assign),
    Page("POST", "/cases/{id}/note", Role.DECIDE, note),
    Page("POST", "/cases/{id}/evaluate", Role.DECIDE, evaluate),
    Page("POST", "/cases/{id}/answer", Role.DECIDE, answer),
    Page("POST", "/cases/{id}/close", Role.DECIDE, close),
    Page("POST", "/cases/{id}/reopen", Role.DECIDE, reopen),
)
