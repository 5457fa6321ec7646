"""The console's pages about chargebacks: deadlines, what Stripe does by itself, and the evidence that a person may stage there."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from handlers.chargebacks import AWAITED, BY_ITSELF, CLOSED
from worker import chargebacks as disputes
from worker.console import asked
from worker.console.page import Gone, Page, Shown, Visit
from worker.operators import Role
from worker.reading import Document, NotUnderstood
from worker.review import ActRefused
from worker.stripe_gateway import StripeGateway

LISTED = 50
SOON_S = 86_400
"""A deadline nearer than this is shown in red."""


async def chargebacks(visit: Visit) -> Shown:
    """Those that wait for a person, then the other open ones, the nearest deadline first; with `all` also those that are over."""
    over = visit.query.get("show") == "all"
    rows = await disputes.disputes(visit.conn, visit.realms, over=over)
    part = asked.stretch(rows, visit.query, "/console/chargebacks", "from", LISTED, lambda _: False)
    keep = "&show=all" if over else ""
    return Shown(
        "chargebacks.html.j2",
        {
            "rows": [row | clock(row, visit.now) for row in part.rows],
            "total": part.total,
            "over": over,
            "next": part.older.replace("#", f"{keep}#", 1) if part.older else None,
        },
    )


def clock(dispute: Document, now: datetime) -> Document:
    """The deadline in words, how much it presses, and what happens without anybody acting."""
    due, status = dispute["due_by"], dispute["status"]
    method = dispute["by_itself"]
    told = {
        "left": "",
        "tone": "soft",
        "over": status in CLOSED,
        "alone": BY_ITSELF.get(method, f"what Stripe then does ({method}) is not known to this release"),
    }
    if due is None or status not in AWAITED or dispute["evidence_submitted"]:
        return told
    left_s = int((due - now).total_seconds())
    tone = "bad" if left_s <= SOON_S else "ask"
    return told | {"left": left_in_words(left_s), "tone": tone}


def left_in_words(left_s: int) -> str:
    """`3 days 4 h left`, `50 min left`, `passed 2 h ago`."""
    days, rest = divmod(abs(left_s), 86_400)
    hours, minutes = rest // 3_600, rest % 3_600 // 60
    if days:
        told = f"{days} day{'s' if days > 1 else ''}" + (f" {hours} h" if hours else "")
    else:
        told = f"{hours} h" + (f" {minutes} min" if minutes else "") if hours else f"{minutes} min"
    return f"{told} left" if left_s >= 0 else f"passed {told} ago"


async def one(visit: Visit) -> Shown:
    """One dispute: its deadline, what was decided, and the draft of the evidence field by field."""
    found = await disputes.drafted(visit.conn, visit.court.policy, visit.realms, asked.id_in(visit.path))
    try:
        disputes.staging(found)
        refused = "" if _can_write(visit) else NO_KEY
    except ActRefused as why:
        refused = str(why)
    return Shown(
        "chargeback.html.j2",
        {name: value for name, value in found.document.items() if name != "id"}
        | clock(found.document, visit.now)
        | {
            "kept_back": refused,
            "waits": found.document["decision"]["verdict"] == "review",
            "may": visit.operator.role.allows(Role.DECIDE),
        },
    )


NO_KEY = (
    "This web process has no key for Stripe, so nothing can be staged from here: "
    "stage it where the worker runs, with `finalsale chargebacks evidence ID --stage --by NAME`."
)


def _can_write(visit: Visit) -> bool:
    return visit.settings.stripe_api_key is not None


async def stage(visit: Visit) -> Gone:
    """Put the draft into the dispute at Stripe, not submitted, and write down who did. Repeated, it is the same request.

    Raises NotFound, NotUnderstood, ActRefused, StripeRefused, StripeUnavailable, OutcomeUnknown.
    """
    id_ = asked.id_in(visit.path)
    if visit.form.get("sure") != "yes":
        raise NotUnderstood("Tick the box: what is staged replaces what somebody filled in at Stripe before.")
    if not _can_write(visit):
        raise ActRefused(NO_KEY)
    async with visit.conn.transaction(readonly=True, isolation="repeatable_read"):
        found = await disputes.drafted(visit.conn, visit.court.policy, visit.realms, id_)
    fields, key = disputes.staging(found)
    await _send(visit, found, fields, key)
    async with visit.conn.transaction():
        await disputes.staged(visit.conn, found, fields, by=visit.operator.name, via="console")
    return Gone(
        asked.page_of("chargebacks", found.dispute.id),
        f"The evidence about {found.dispute.id} is staged at Stripe and not submitted: complete and submit it there.",
    )


async def _send(visit: Visit, found: disputes.Drafted, fields: dict[str, Any], key: str) -> None:
    gateway = StripeGateway(visit.settings)
    try:
        await gateway.stage_evidence(found.dispute.id, fields, key, found.realm.partition(":")[2] or None)
    finally:
        await gateway.aclose()


PAGES = (
    Page("GET", "/chargebacks", Role.READ, chargebacks),
    Page("GET", "/chargebacks/{id}", Role.READ, one),
    Page("POST", "/chargebacks/{id}/stage", Role.DECIDE, stage, own_transaction=True),
)
