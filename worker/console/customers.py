"""The console's pages about customers: who is not in good standing, who was judged last, and one customer's whole story."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, time
from typing import Any

import asyncpg
import msgspec

from handlers.account import ActKind
from handlers.decisions import Decision
from worker import acts, story
from worker.console import asked
from worker.console.page import Gone, Page, Shown, Visit
from worker.db import queries
from worker.operators import Role
from worker.reading import Document, NotUnderstood, action_story, amount_of, fetch, moment
from worker.show import credits_in_words

LISTED = 50
"""Rows of one page of a list."""
PAYMENTS, DECISIONS, LOTS, HAPPENED = 50, 30, 50, 100
"""Rows of one customer's page, of each of its lists."""
ENTRIES = 40
"""Entries shown of one lot: the newest."""
LOOKED_AT = 400
"""Decisions that one page of the list of customers is made of, at most: one customer may have had many in a row."""
REVISIONS = 500

DONE = {
    ActKind.SUSPEND: "Suspended {customer}.",
    ActKind.LIFT: "Lifted the hold on {customer}.",
    ActKind.KEEP: "The hold of {dispute} on {customer} is kept until it is lifted.",
    ActKind.EXTEND: "{subscription} of {customer} serves until {until:%Y-%m-%d %H:%M:%S} UTC.",
    ActKind.GRANT: "Granted {credits} service credits to {customer}.",
}


# the list ----------------------------------------------------------------------------------------------------------------


async def customers(visit: Visit) -> Shown:
    """Those that are not in good standing, then those judged last; each list goes on by itself."""
    trouble, judged = asked.mark(visit.query, "standing"), asked.mark(visit.query, "judged")
    here = {"realms": visit.realms}
    held = await fetch(
        visit.conn, queries.console_not_good, before_at=trouble.at, before_id=trouble.id, most=LISTED + 1, **here
    )
    recent, go_on = await _judged(visit, judged)
    more = asked.Mark(held[LISTED - 1]["changed_at"], held[LISTED - 1]["customer"]) if len(held) > LISTED else None
    return Shown(
        "customers.html.j2",
        {
            "not_good": [dict(row) for row in held[:LISTED]],
            "not_good_next": asked.address("/console/customers", standing=more) if more else None,
            "judged": recent,
            "judged_next": asked.address("/console/customers", judged=go_on) if go_on else None,
        },
    )


async def _judged(visit: Visit, mark: asked.Mark) -> tuple[list[Document], asked.Mark | None]:
    """Customers by their newest decision, each once on a page, with their standing; and where the list goes on."""
    rows = await fetch(
        visit.conn,
        queries.console_judged,
        realms=visit.realms,
        before_at=mark.at,
        before_id=mark.id,
        most=LOOKED_AT,
    )
    newest: dict[str, Document] = {}
    last: asyncpg.Record | None = None
    for row in rows:
        if len(newest) == LISTED and row["customer"] not in newest:
            break
        newest.setdefault(row["customer"], dict(row))
        last = row
    known = await fetch(visit.conn, queries.console_accounts, realms=visit.realms, customers=list(newest))
    standing = {row["customer"]: row["standing"] for row in known}
    shown = [one | {"standing": standing.get(one["customer"], "good")} for one in newest.values()]
    ended = last is None or (last is rows[-1] and len(rows) < LOOKED_AT)
    return shown, None if ended or last is None else asked.Mark(last["decided_at"], last["id"])


# one customer ------------------------------------------------------------------------------------------------------------


async def customer(visit: Visit) -> Shown:
    """One customer's whole story, as `finalsale customers show` tells it; `?show=` marks one thing on the page."""
    id_ = asked.id_in(visit.path)
    wanted = asked.word(visit.query, "show")
    told = await story.customer(visit.conn, visit.court, visit.realms, id_)
    subject = await _subject(visit, wanted)
    path = asked.page_of("customers", id_)

    def listed(rows: Sequence[Any], name: str, most: int) -> asked.Stretch:
        newest_first = list(reversed(rows))
        return asked.stretch(newest_first, visit.query, path, name, most, lambda row: _names(row, wanted, subject))

    payments = listed(sorted(told["payments"], key=lambda p: (p["paid_at"], p["charge"])), "payments", PAYMENTS)
    decisions = listed(sorted(told["decisions"], key=lambda d: (d["decided_at"], d["id"])), "decisions", DECISIONS)
    lots = listed(told["lots"], "lots", LOTS)
    happened = listed(told["timeline"], "happened", HAPPENED)
    shown = [*payments.rows, *decisions.rows, *lots.rows, *told["subscriptions"], *told["acts"], *told["cases"]]
    return Shown(
        "customer.html.j2",
        {
            "told": told,
            "payments": payments,
            "bars": _bars(payments.rows),
            "back": _about_payments(told),
            "decisions": decisions,
            "written": await _written(visit, told["realm"], [d["subject"] for d in decisions.rows]),
            "lots": lots,
            "became": credits_in_words,
            "entries": await _entries(visit, told["realm"], id_, {lot["id"] for lot in lots.rows}),
            "happened": happened,
            "wanted": wanted,
            "marked": next((thing for thing in shown if wanted and _names(thing, wanted, subject)), None),
            "may_act": visit.operator.role.allows(Role.DECIDE),
            "holds": [hold["subject"] for hold in told["standing"]["holds"]],
            "key": secrets.token_hex(12),
        },
    )


async def _subject(visit: Visit, wanted: str | None) -> str | None:
    """What an action is about, so that the decision which wants it is marked."""
    if wanted is None or not wanted.startswith("act_"):
        return None
    row = await queries.read_action(visit.conn, realms=visit.realms, id=wanted)
    return row["decision_subject"] if row else None


def _names(row: Document, wanted: str | None, subject: str | None) -> bool:
    """Whether a row of the page is, or speaks of, the thing that was looked for."""
    if wanted is None:
        return False
    names = {row.get(name) for name in ("id", "charge", "payment_intent", "invoice", "subject")}
    return wanted in names | {*row.get("refunds", ()), *row.get("disputes", ())} or (
        subject is not None and subject == row.get("subject")
    )


def _bars(payments: Sequence[Document]) -> dict[str, list[Document]]:
    """For each payment the periods that it paid, as shares (0 to 1000) of the time that all of them span."""
    spans = [(line["from"], line["to"]) for payment in payments for line in payment["lines"]]
    if not spans:
        return {}
    begin, end = min(span[0] for span in spans), max(span[1] for span in spans)
    whole = max((end - begin).total_seconds(), 1.0)

    def share(moment: datetime) -> int:
        return int(1000 * ((moment - begin).total_seconds() / whole))

    return {
        payment["charge"]: [
            {"x": share(start), "width": max(share(stop) - share(start), 6)}
            for start, stop in sorted({(line["from"], line["to"]) for line in payment["lines"]})
        ]
        for payment in payments
    }


def _about_payments(told: Document) -> Mapping[str, Document]:
    """Refunds and disputes by their ids, for the payments that they are about."""
    return {one["id"]: one for one in (*told["refunds"], *told["disputes"])}


async def _written(visit: Visit, realm: str, subjects: list[str]) -> dict[str, Document]:
    """For each subject every revision of its decision, and everything about its actions."""
    about = {"subjects": subjects}
    actions: dict[str, list[Document]] = defaultdict(list)
    for row in await fetch(visit.conn, queries.read_actions, realms=[realm], **about):
        actions[row["decision_subject"]].append(action_story(row))
    revisions: dict[str, list[Document]] = defaultdict(list)
    for row in await fetch(visit.conn, queries.console_revisions, realm=realm, most=REVISIONS, **about):
        revisions[row["subject"]].append(_revision(row))
    return {subject: {"actions": actions[subject], "revisions": revisions[subject]} for subject in subjects}


def _revision(row: asyncpg.Record) -> Document:
    decision = msgspec.json.decode(row["body"], type=Decision)
    names = ("id", "revision", "clause", "rule", "verdict", "policy_version", "decided_at")
    return {name: row[name] for name in names} | {"reason": decision.reason, "amount": amount_of(decision.amount)}


async def _entries(visit: Visit, realm: str, id_: str, lots: set[str]) -> dict[str, Document]:
    """The newest entries of each lot shown, and how many there are; what was consumed is summed by day."""
    found: dict[str, list[Document]] = defaultdict(list)
    if lots:
        for row in await fetch(visit.conn, queries.entries_by_day, realm=realm, customer=id_):
            if row["lot"] in lots:
                found[row["lot"]].append(dict(row))
    return {lot: {"total": len(rows), "rows": rows[: -ENTRIES - 1 : -1]} for lot, rows in found.items()}


# what an operator does ---------------------------------------------------------------------------------------------------


async def act(visit: Visit) -> Gone:
    """Suspend, lift, keep, extend, grant: written down with the operator's name. Raises NotFound, NotUnderstood, ActRefused."""
    id_ = asked.id_in(visit.path)
    kind = asked.one_of(visit.form, "act", [*ActKind])
    if kind is None:
        raise NotUnderstood("Say what is to be done: suspend, lift, keep, extend or grant.")
    wish = acts.Wish(
        kind=ActKind(kind),
        customer=id_,
        by=visit.operator.name,
        reason=visit.form.get("reason", ""),
        case=asked.word(visit.form, "case"),
        key=asked.word(visit.form, "key"),
        dispute=asked.word(visit.form, "dispute"),
        subscription=asked.word(visit.form, "subscription"),
        credits=asked.number(visit.form, "credits") or 0,
        until=_end_of(asked.word(visit.form, "until")),
        days=asked.number(visit.form, "days"),
    )
    done = await acts.carry_out(visit.conn, visit.realms, wish, via="console")
    said = DONE[ActKind(kind)].format_map(done)
    kept = "It was done before" if done["repeated"] else "Kept"
    return Gone(asked.page_of("customers", id_), f"{said} {kept} as {done['id']}; a worker judges the file anew now.")


def _end_of(day: str | None) -> datetime | None:
    """The last second of a day that was picked, or the moment that was written. Raises NotUnderstood."""
    if day is None:
        return None
    told = moment(day)
    return told.replace(hour=23, minute=59, second=59) if told.time() == time() and len(day) == 10 else told


PAGES = (
    Page("GET", "/customers", Role.READ, customers),
    Page("GET", "/customers/{id}", Role.READ, customer),
    Page("POST", "/customers/{id}/acts", Role.DECIDE, act),
)
