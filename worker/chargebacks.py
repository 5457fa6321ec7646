"""Disputes as people work on them (7): what is open and until when, what we would say, and staging that at Stripe.

Evidence is staged with `submit=false` and only when a person says so; submitting it is that person's, in Stripe's dashboard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from handlers.account import Account
from handlers.chargebacks import AWAITED, CLOSED
from handlers.customer import CustomerFile, Dispute, at, decode
from handlers.decisions import Decision, as_json
from handlers.evidence import Draft, draft
from handlers.terms import Policy
from worker import audit, review
from worker.db import Connection, queries
from worker.reading import Document, NotFound, acts_by_decision, decision_document, decoded, fetch
from worker.review import ActRefused


class Drafted(msgspec.Struct, frozen=True, kw_only=True):
    """One dispute, what was decided about it, and the evidence as far as our facts reach."""

    realm: str
    dispute: Dispute
    decision: Decision
    draft: Draft
    document: Document


async def disputes(conn: Connection, realms: Sequence[str], *, over: bool = False) -> list[Document]:
    """Disputes that wait for a person, then those that are open, the nearest deadline first; with `over` all of them."""
    found = []
    statement = queries.dispute_decisions if over else queries.open_dispute_decisions
    for row in await fetch(conn, statement, realms=list(realms)):
        fact, waits = decode(row["fact"]), row["verdict"] == "review"
        if isinstance(fact, Dispute) and (over or waits or fact.status not in CLOSED):
            found.append(_document(fact) | {"customer": row["customer"], "waits_for_a_person": waits})
    never = datetime.max.replace(tzinfo=UTC)
    return sorted(found, key=lambda d: (not d["waits_for_a_person"], d["due_by"] or never, d["id"]))


async def drafted(conn: Connection, policy: Policy, realms: Sequence[str], id_: str) -> Drafted:
    """One dispute with its decision and draft, from the whole person's file as it is now. Raises NotFound."""
    rows = await fetch(conn, queries.find_objects, realms=list(realms), ids=[id_])
    fact = decode(rows[0]["body"]) if rows else None
    row = await queries.decision_in_force(conn, realms=list(realms), subject=id_)
    if not isinstance(fact, Dispute) or row is None:
        raise NotFound(f"No dispute {id_} is known; `finalsale chargebacks list --all` shows every one.")
    realm = row["realm"]
    kin = await fetch(conn, queries.kin, customers=[row["customer"]], realm=realm)
    customers = sorted({row["customer"]} | {k["customer"] for k in kin})
    objects = await fetch(conn, queries.load_objects, realm=realm, customers=customers)
    stored = await fetch(conn, queries.current_decisions, realm=realm, customers=customers)
    account = await queries.account_now(conn, realm=realm, customer=row["customer"])
    written = draft(
        CustomerFile(decode(known["body"]) for known in objects),
        fact,
        policy,
        {known["subject"]: decoded(known) for known in stored},
        msgspec.json.decode(account["body"], type=Account) if account else None,
    )
    acts = await acts_by_decision(conn, [row["id"]])
    document = _document(fact) | {
        "realm": realm,
        "customer": row["customer"],
        "standing": account["standing"] if account else "good",
        "decision": decision_document(row, ()) | {"acts": acts[row["id"]]},
        "draft": msgspec.to_builtins(written),
    }
    return Drafted(realm=realm, dispute=fact, decision=decoded(row), draft=written, document=document)


def staging(found: Drafted) -> tuple[dict[str, str], str]:
    """The fields to be staged and their idempotency key: the same draft of the same dispute is one request. Raises ActRefused."""
    dispute, fields = found.dispute, found.draft.fields
    if dispute.status not in AWAITED:
        raise ActRefused(f"Stripe waits for no evidence about {dispute.id}: its status is {dispute.status}.")
    if dispute.evidence_submitted:
        raise ActRefused(
            f"Evidence about {dispute.id} was submitted already; what is staged after that changes nothing."
        )
    if not fields:
        raise ActRefused(f"There is nothing to stage for {dispute.id}: our facts fill no field. {found.draft.note}")
    # Stripe's own last word counts too: a draft that is staged again after another one is a request of its own
    digest = hashlib.sha256(as_json((dispute.as_of, fields))).hexdigest()[:24]
    return fields, f"finalsale:evidence:{dispute.id}:{digest}"


async def staged(conn: Connection, found: Drafted, fields: Collection[str], *, by: str, via: str = "cli") -> None:
    """Write down who staged which fields at Stripe. Must run inside a transaction. Raises NotFound, ActRefused."""
    told = f"evidence staged by {by}, not submitted: {', '.join(sorted(fields))}"
    await review.note(conn, [found.realm], found.dispute.id, by=by, text=told, via=via)
    after = {"fields": sorted(fields), "submitted": False}
    named: Document = {"by": by, "via": via, "act": "chargeback.stage", "subject": found.dispute.id}
    await audit.record(conn, found.realm, after=after, **named)


def _document(dispute: Dispute) -> dict[str, Any]:
    return {
        "id": dispute.id,
        "status": dispute.status,
        "reason": dispute.reason,
        "amount": {"minor": dispute.amount_minor, "currency": dispute.currency},
        "charge": dispute.charge,
        "created": at(dispute.created),
        "due_by": at(dispute.due_by) if dispute.due_by else None,
        "evidence_submitted": dispute.evidence_submitted,
        "by_itself": dispute.intended_submission_method,
    }
