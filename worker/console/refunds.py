"""The console's page about refunds: what was prepared and made, the sums of the month, and the switch that pauses them all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import asyncpg

from worker import review
from worker.console import asked
from worker.console.clause_words import rule_in_words
from worker.console.page import Gone, Page, Shown, Visit
from worker.db import queries
from worker.operators import Role
from worker.reading import Document, NotUnderstood, action_story, fetch, money, pause_switch

LISTED = 50
STATES = {
    "waiting": ("wait for a yes", ("proposed",)),
    "in-flight": ("on their way", ("planned", "sending")),
    "failed": ("failed", ("failed",)),
    "in-doubt": ("in doubt", ("review",)),
    "sent": ("sent", ("sent",)),
    "withdrawn": ("withdrawn", ("withdrawn",)),
}
"""What the filter offers: its word in the address, its label, and the states of actions it means."""
EVERY = tuple(state for _, states in STATES.values() for state in states)
TONES = {"sent": "ok", "proposed": "ask", "failed": "bad", "review": "bad"}


async def refunds(visit: Visit) -> Shown:
    """Refunds, newest first, of one state if asked; it goes on page by page."""
    chosen, before = asked.one_of(visit.query, "state", tuple(STATES)), asked.mark(visit.query)
    rows = await fetch(
        visit.conn,
        queries.desk_refunds_page,
        realms=visit.realms,
        states=list(STATES[chosen][1] if chosen else EVERY),
        before_at=before.at,
        before_id=before.id,
        most=LISTED + 1,
    )
    more = asked.Mark(rows[LISTED - 1]["created_at"], rows[LISTED - 1]["id"]) if len(rows) > LISTED else None
    return Shown(
        "refunds.html.j2",
        {
            "rows": [
                action_story(row)
                | {name: row[name] for name in ("realm", "customer", "decision_id", "clause", "rule", "created_at")}
                | {"meant": rule_in_words(row["rule"]), "tone": TONES.get(row["state"], "soft"), "back": came_back(row)}
                for row in rows[:LISTED]
            ],
            "next": asked.address("/console/refunds", state=chosen, before=more) if more else None,
            "states": [(name, label) for name, (label, _) in STATES.items()],
            "chosen": chosen,
            "returned": await returned(visit),
            "at_risk": await at_risk(visit),
            "month": f"{visit.now:%B %Y}",
            "switch": await pause_switch(visit.conn),
            "automatic": visit.settings.refunds == "auto",
            "may": visit.operator.role.allows(Role.DECIDE),
        },
    )


def came_back(row: asyncpg.Record) -> bool:
    """Whether Stripe failed or cancelled it after it was sent: the money is with the merchant again."""
    return row["state"] == "sent" and row["stripe_status"] in ("failed", "canceled")


def month_of(now: datetime) -> datetime:
    """The month's beginning, UTC."""
    return now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


async def returned(visit: Visit) -> list[Document]:
    """What went back this month (UTC), by currency."""
    rows = await fetch(visit.conn, queries.desk_returned_since, realms=visit.realms, since=month_of(visit.now))
    return [{"amount": money(row["minor"], row["currency"]), "refunds": row["refunds"]} for row in rows]


async def at_risk(visit: Visit) -> list[Document]:
    """What may still go back, by currency: it waits for a yes, is on its way, or is in doubt."""
    rows = await fetch(visit.conn, queries.desk_at_risk, realms=visit.realms)
    currencies: dict[str, list[Document]] = {}
    for row in rows:
        currencies.setdefault(row["currency"], []).append(dict(row))
    return [
        {
            "amount": money(sum(row["minor"] for row in states), currency),
            "refunds": sum(row["refunds"] for row in states),
            "states": _in_words(states),
        }
        for currency, states in sorted(currencies.items())
    ]


def _in_words(states: Sequence[Document]) -> str:
    """`3 wait for a yes, 1 on their way`."""
    told: dict[str, int] = {}
    for row in states:
        label = next(label for label, meant in STATES.values() if row["state"] in meant)
        told[label] = told.get(label, 0) + row["refunds"]
    return ", ".join(f"{count:,} {label}" for label, count in told.items())


# the switch --------------------------------------------------------------------------------------------------------------


async def pause(visit: Visit) -> Gone:
    """Stop every refund before it is sent. Raises NotUnderstood without a reason."""
    return await _switched(
        visit, on=True, said="Refunds are paused: nothing is sent to Stripe until somebody resumes them."
    )


async def resume(visit: Visit) -> Gone:
    """Let refunds go again. Raises NotUnderstood without a reason."""
    return await _switched(visit, on=False, said="Refunds go again.")


async def _switched(visit: Visit, *, on: bool, said: str) -> Gone:
    reason = visit.form.get("reason", "").strip()
    if not reason:
        raise NotUnderstood("Say why: whoever is on call next was not there.")
    await review.pause(
        visit.conn, on=on, by=visit.operator.name, reason=reason, via="console", etag=visit.form.get("etag")
    )
    return Gone("/console/refunds", said)


PAGES = (
    Page("GET", "/refunds", Role.READ, refunds),
    Page("POST", "/refunds/pause", Role.DECIDE, pause),
    Page("POST", "/refunds/resume", Role.DECIDE, resume),
)
