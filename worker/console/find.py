"""The console's search: any id of Stripe's or ours, an e-mail address or a person's id in the app, to the page that shows it."""

from __future__ import annotations

from urllib.parse import urlsplit

from handlers.account import LotKind
from handlers.wire import email_hash
from worker import story
from worker.console import asked
from worker.console.page import Answer, Gone, Page, Shown, Visit
from worker.db import queries
from worker.log import masked
from worker.operators import Role
from worker.reading import Document, NotFound, fetch
from worker.settle import key_hash

MAX_QUERY = 2000
LISTED = 50
"""Customers shown where an e-mail address or a person's id names several."""


async def find(visit: Visit) -> Answer:
    """Go to what was looked for. An e-mail address is looked up by its hash, and appears in no address, page or log."""
    typed = (visit.form or visit.query).get("q", "").strip()
    if not typed:
        return Shown("find.html.j2", _told("", [], ""))
    if len(typed) > MAX_QUERY or not typed.isprintable():
        return Shown("find.html.j2", _told("", [], "No id and no e-mail address looks like that."), 404)
    if "@" in typed and "://" not in typed:
        return await _by_key(visit, f"email:{email_hash(typed)}", "that e-mail address")
    id_ = _id_in(typed)
    if (place := await _ours(visit, id_) or await _stripes(visit, id_)) is not None:
        return place
    return await _by_key(visit, f"person:{id_}"[:200], masked(id_))


def _id_in(typed: str) -> str:
    """The id itself, also out of an address of Stripe's dashboard or of this console."""
    if "://" in typed:
        try:
            parts = [part for part in urlsplit(typed).path.split("/") if part]
        except ValueError:
            parts = []
        return parts[-1] if parts else typed
    return typed.strip("\"'<>(),;")


def _told(looked_for: str, customers: list[Document], sentence: str) -> Document:
    return {"looked_for": looked_for, "customers": customers, "sentence": sentence}


async def _by_key(visit: Visit, key: str, looked_for: str) -> Answer:
    """The customers that something outside Stripe's ids names: one is gone to, several are shown."""
    rows = await fetch(
        visit.conn, queries.console_customers_by_key, realms=visit.realms, keys=[key_hash(key)], most=LISTED + 1
    )
    if len(rows) == 1:
        return _customer(rows[0]["customer"])
    found = [dict(row) for row in rows[:LISTED]]
    if found:
        several = f"{looked_for[0].upper()}{looked_for[1:]} belongs to several customers."
        return Shown("find.html.j2", _told(looked_for, found, several))
    return Shown("find.html.j2", _told(looked_for, [], f"Nothing is known about {looked_for}."), 404)


def _customer(customer: str, show: str | None = None) -> Gone:
    """A customer's page, at the thing that was looked for."""
    return Gone(asked.page_of("customers", customer, show=show) + ("#shown" if show else ""), "")


async def _ours(visit: Visit, id_: str) -> Answer | None:
    """Where an id of our own is shown: a run, a case, a decision, an action, an act, an outage, a lot."""
    conn, realms = visit.conn, visit.realms
    if id_.startswith("run_") and await queries.console_run(conn, realms=realms, id=id_) is not None:
        return Gone(asked.page_of("runs", id_), "")
    if id_.startswith("case_") and await queries.console_case_exists(conn, realms=realms, id=id_):
        return Gone(asked.page_of("cases", id_), "")
    if id_.startswith("out_"):
        return await _outage(visit, id_)
    row = None
    if id_.startswith("dec_"):
        row = await queries.console_decision_of(conn, realms=realms, id=id_)
        return _customer(row["customer"], row["subject"]) if row else None
    if id_.startswith("act_"):
        row = await queries.read_action(conn, realms=realms, id=id_)
    elif id_.startswith("oact_"):
        row = await queries.find_operator_act(conn, realms=realms, id=id_)
    elif id_.partition(":")[0] in set(LotKind):
        row = await queries.find_lot(conn, realms=realms, id=id_)
    return _customer(row["customer"], id_) if row else None


async def _outage(visit: Visit, id_: str) -> Answer | None:
    try:
        told = await story.explain(visit.conn, visit.court, visit.realms, id_)
    except NotFound:
        return None
    return Shown("find.html.j2", _told(id_, [], told["reason"]))


async def _stripes(visit: Visit, id_: str) -> Answer | None:
    """Where an object or event of Stripe's is shown."""
    if id_.startswith("evt_") and await queries.console_event_exists(visit.conn, id=id_):
        return Gone(asked.page_of("events", id_), "")
    rows = await fetch(visit.conn, queries.find_objects, realms=visit.realms, ids=[id_])
    if not rows:
        known = await fetch(visit.conn, queries.realms_of_customer, realms=visit.realms, customer=id_)
        return _customer(id_) if known else None
    row = rows[0]
    if row["kind"] == "dispute" and row["customer"]:
        return Gone(asked.page_of("chargebacks", id_), "")
    if row["customer"]:
        return _customer(row["customer"], None if row["customer"] == id_ else id_)
    told = await story.explain(visit.conn, visit.court, visit.realms, id_)
    return Shown("find.html.j2", _told(id_, [], told["reason"]))


PAGES = (
    Page("GET", "/find", Role.READ, find),
    Page("POST", "/find", Role.READ, find),
)
