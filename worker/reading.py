"""What people and programs read of the books: the inbox, decisions, refunds and the state of things, as documents ready for JSON."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec

from handlers.chargebacks import CLOSED
from handlers.customer import Dispute, at, decode
from handlers.decisions import Decision, Money
from handlers.terms import Policy
from worker.db import Connection, queries
from worker.errors import Permanent
from worker.inbox import unpack
from worker.log import _PRIVATE_KEYS, masked
from worker.settings import Settings

Document = dict[str, Any]

WORKER_SILENT_AFTER = timedelta(seconds=45)
"""A worker says every 10 s that it lives; after four missed beats it counts as gone."""
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_DAYS_BACK = 36_500

# Fields of Stripe's objects that name, reach or describe a person, open something to whoever has the link, or are free text.
_PRIVATE_ENDS = (
    *(
        "_address",
        "_description",
        "_email",
        "_fingerprint",
        "_holder",
        "_ip",
        "_last4",
        "_name",
        "_pdf",
        "_phone",
        "_secret",
    ),
    *("_shipping", "_signature", "_tax_ids", "_url"),
)
_PRIVATE_AT_STRIPE = frozenset(
    {
        *(
            "account_number",
            "bank_account",
            "business_profile",
            "buyer_id",
            "client_reference_id",
            "collected_information",
        ),
        *("comment", "company", "custom_fields", "description", "dob", "evidence", "fingerprint", "footer", "iban"),
        *("id_number", "individual", "mandate_options", "memo", "message", "next_action", "note", "payer_id"),
        *("routing_number", "sort_code", "ssn_last_4", "tax_id", "tax_ids", "text", "tracking_number", "url"),
        *("user_agent", "vat_id"),
    }
)


class NotFound(Permanent):
    """Nothing in the books has this id; the message says where to look."""

    error_code = "not_found"


class NotUnderstood(Permanent):
    """A value on the command line cannot be read; the message says how to write it."""

    error_code = "not_understood"


async def fetch(conn: Connection, query: Any, **parameters: Any) -> list[asyncpg.Record]:
    """All rows of a named statement."""
    return [row async for row in query(conn, **parameters)]


async def realms_of(conn: Connection, mode: str) -> list[str]:
    """The realms of this mode: the account's own, and those of connected accounts that facts came from."""
    seen = {row["realm"] for row in await fetch(conn, queries.realms_seen)}
    return sorted({mode} | {realm for realm in seen if realm.startswith(f"{mode}:")})


def moment(text: str, now: datetime | None = None) -> datetime:
    """`7d`, `24h`, `15m` before now, or an ISO date or time (UTC where no zone is named). Raises NotUnderstood."""
    if back := re.fullmatch(r"(\d{1,9})([smhd])", text):
        length_s = int(back[1]) * _UNITS_S[back[2]]
        if length_s <= MAX_DAYS_BACK * 86_400:
            return (now or datetime.now(UTC)) - timedelta(seconds=length_s)
    else:
        try:
            told = datetime.fromisoformat(text)
            return told.astimezone(UTC) if told.tzinfo else told.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            pass
    raise NotUnderstood(f"{text!r} is no moment: write how far back (30m, 24h, 7d) or a date (2026-01-31T12:00:00Z).")


def money(minor: int | None, currency: str | None) -> Document | None:
    """An amount as every document shows it, or None."""
    return None if minor is None or currency is None else {"minor": minor, "currency": currency}


def amount_of(amount: Money | None) -> Document | None:
    """A rule's amount as every document shows it, or None."""
    return None if amount is None else money(amount.minor, amount.currency)


def decoded(row: asyncpg.Record) -> Decision:
    """The decision in a row's body."""
    return msgspec.json.decode(row["body"], type=Decision)


def action_document(row: asyncpg.Record) -> Document:
    """One action, as `decisions` shows it."""
    return {
        "id": row["id"],
        "kind": row["kind"],
        "state": row["state"],
        "stripe_id": row["stripe_id"],
        "amount": money(row["amount_minor"], row["currency"]),
    }


def action_story(row: asyncpg.Record) -> Document:
    """One action with everything a person asks about it."""
    return action_document(row) | {
        "subject": row["subject"],
        "stripe_status": row["stripe_status"],
        "error": row["error"],
        "approved_by": list(row["approved_by"]),
        "due_at": row["due_at"],
        "sent_at": row["first_sent_at"],
        "settled_at": row["settled_at"],
    }


def evidence_of(decision: Decision) -> list[Document]:
    """What a decision rests on, as documents show it: an app may use e-mail addresses as ids of persons and orders."""
    return [
        {name: masked(said) for name, said in msgspec.structs.asdict(evidence).items()}
        for evidence in decision.evidence
    ]


def decision_document(row: asyncpg.Record, actions: Iterable[asyncpg.Record]) -> Document:
    """One decision in the form that other programs rely on."""
    decision = decoded(row)
    return {
        "id": row["id"],
        "customer": decision.customer,
        "subject": decision.subject,
        "clause": decision.clause,
        "rule": decision.rule,
        "verdict": str(decision.verdict),
        "policy_version": decision.policy_version,
        "reason": decision.reason,
        "amount": amount_of(decision.amount),
        "original": decision.original,
        "duplicate": decision.duplicate,
        "evidence": evidence_of(decision),
        "decided_at": row["decided_at"],
        "revision": row["revision"],
        "actions": [action_document(action) for action in actions],
    }


async def actions_by_decision(
    conn: Connection, realms: Sequence[str], rows: Iterable[asyncpg.Record]
) -> dict[tuple[str, str], list[asyncpg.Record]]:
    """The actions of some decisions, by (realm, subject)."""
    found: dict[tuple[str, str], list[asyncpg.Record]] = defaultdict(list)
    subjects = sorted({row["subject"] for row in rows})
    for action in await fetch(conn, queries.read_actions, realms=list(realms), subjects=subjects):
        found[action["realm"], action["decision_subject"]].append(action)
    return found


async def acts_by_decision(conn: Connection, ids: Iterable[str]) -> dict[str, list[Document]]:
    """What people said about some decisions, oldest first."""
    found: dict[str, list[Document]] = defaultdict(list)
    for row in await fetch(conn, queries.read_acts, ids=list(ids)):
        act = {"act": row["act"], "by": row["by_name"], "note": row["note"], "at": row["acted_at"]}
        found[row["decision_id"]].append(act)
    return found


async def decisions(
    conn: Connection,
    realms: Sequence[str],
    *,
    customer: str | None = None,
    verdict: str | None = None,
    since: datetime | None = None,
    history: bool = False,
    limit: int | None = None,
) -> list[Document]:
    """Decisions, newest first: those in force, or every revision with the actions that were written for that one."""
    asked = {"customer": customer, "verdict": verdict, "since": since, "history": history, "most": limit}
    rows = await fetch(conn, queries.read_decisions, realms=list(realms), **asked)
    actions = await actions_by_decision(conn, realms, rows)
    documents = []
    for row in rows:
        mine = actions[row["realm"], row["subject"]]
        documents.append(decision_document(row, [a for a in mine if not history or a["decision_id"] == row["id"]]))
    return documents


async def refunds(conn: Connection, realms: Sequence[str], limit: int | None = None) -> list[Document]:
    """Every refund that was prepared or made, newest first, with the decision it rests on."""
    documents = []
    for row in await fetch(conn, queries.read_refunds, realms=list(realms), most=limit):
        decision = decoded(row)
        told = {
            "customer": row["customer"],
            "charge": row["subject"],
            "original": decision.original,
            "clause": decision.clause,
            "rule": decision.rule,
            "decision": row["decision_id"],
            "reason": decision.reason,
            "created_at": row["created_at"],
        }
        documents.append(told | action_story(row))
    return documents


async def events(
    conn: Connection, *, state: str | None = None, type_: str | None = None, limit: int | None = None
) -> list[Document]:
    """Events as they lie in the inbox, newest first, without their payloads. `type_` may end in `*`."""
    rows = await fetch(conn, queries.read_events, state=state, type=type_, most=limit)
    return [_event_document(row) for row in rows]


async def event(conn: Connection, id_: str, *, payload: bool = False) -> Document:
    """One event, with its payload where that is asked for, personal data masked. Raises NotFound."""
    row = await queries.read_event(conn, id=id_)
    if row is None:
        raise NotFound(f"No event {id_} was received; `finalsale events list` shows what was.")
    document = _event_document(row)
    if payload:
        try:
            document["payload"] = without_personal_data(msgspec.json.decode(unpack(row["payload"])))
        except (ValueError, RecursionError):
            document["payload"] = None
    return document


def _event_document(row: asyncpg.Record) -> Document:
    names = (*("realm", "type", "api_version", "state", "attempts", "error"), "created_at", "received_at", "settled_at")
    return {"id": row["event_id"], **{name: row[name] for name in names}, "next_at": row["next_at"]}


def without_personal_data(value: Any, *, kept: frozenset[str] = frozenset()) -> Any:
    """The same tree with personal fields, e-mail addresses, card numbers, links and secrets masked, but for the fields `kept`.

    Ids, amounts, states, times and enums stay readable, and so do the keys of metadata.
    """
    match value:
        case dict():
            return {masked(str(key)): _without(str(key), inner, kept) for key, inner in value.items()}
        case list():
            return [without_personal_data(inner, kept=kept) for inner in value]
        case str():
            return masked(value)
        case _:
            return value


def _without(key: str, value: Any, kept: frozenset[str]) -> Any:
    if value is None or isinstance(value, bool) or key in kept:
        return without_personal_data(value)
    if isinstance(value, dict) and key.endswith("metadata"):
        return {masked(str(name)): "[private]" for name in value}
    if key == "url" and isinstance(value, str) and value.startswith("/v1/"):
        return value  # where a list of Stripe's goes on
    personal = key in _PRIVATE_KEYS or key in _PRIVATE_AT_STRIPE or key.endswith(_PRIVATE_ENDS)
    return "[private]" if personal and value not in ("", [], {}) else without_personal_data(value, kept=kept)


async def status(conn: Connection, realms: Sequence[str], settings: Settings, policy: Policy) -> Document:
    """The state of things in one document: what waits, what was decided, what was done, and who is at work."""
    now = datetime.now(UTC)
    here = {"realms": list(realms)}
    inbox = {row["state"]: row for row in await fetch(conn, queries.inbox_counts)}
    waiting = await fetch(conn, queries.read_waiting, **here)
    actions: dict[str, dict[str, int]] = defaultdict(dict)
    for row in await fetch(conn, queries.action_counts, **here):
        actions[row["kind"]][row["state"]] = row["actions"]
    seen = await fetch(conn, queries.workers_seen)
    oldest = inbox["waiting"]["oldest_at"] if "waiting" in inbox else None
    in_force = [v for v in policy.version if v.in_force_from <= now]
    return {
        "mode": settings.mode,
        "refunds": settings.refunds,
        "refunds_paused": await pause_switch(conn),
        "policy_version": in_force[-1].id if in_force else None,
        "inbox": {
            **{
                s: inbox[s]["events"] if s in inbox else 0
                for s in ("waiting", "done", "ignored", "quarantined", "dead")
            },
            "oldest_waiting_s": _age_s(oldest, now),
        },
        "decisions": {
            **dict.fromkeys(("refund", "review", "deny", "none"), 0),
            **{row["verdict"]: row["decisions"] for row in await fetch(conn, queries.verdict_counts, **here)},
        },
        "actions": dict(actions),
        "reviews": {
            "waiting": len(waiting),
            "oldest_s": _age_s(waiting[0]["decided_at"], now) if waiting else None,
        },
        "refunded": [
            {"currency": row["currency"], "minor": row["minor"], "refunds": row["refunds"]}
            for row in await fetch(conn, queries.refunded_by_currency, **here)
        ],
        **await _accounts(conn, here),
        "alerts_are_told": settings.alert_urls is not None,
        "alert_routes_failed": [row["subject"] for row in await fetch(conn, queries.failed_routes, **here)],
        "workers": [
            {
                **{name: row[name] for name in ("role", "detail", "started_at", "seen_at")},
                "alive": now - row["seen_at"] < WORKER_SILENT_AFTER,
            }
            for row in seen
        ],
    }


async def _accounts(conn: Connection, here: dict[str, list[str]]) -> Document:
    """What `status` says of customers: standing, disputes, credits, cases, alerts and notices."""
    standing = {row["standing"]: row["customers"] for row in await fetch(conn, queries.standing_counts, **here)}
    alerts = {row["severity"]: row["alerts"] for row in await fetch(conn, queries.alert_counts, **here)}
    notices = {row["state"]: row["notices"] for row in await fetch(conn, queries.notice_counts, **here)}
    cases = await queries.case_counts(conn, **here)
    return {
        "standing": {name: standing.get(name, 0) for name in ("flagged", "suspended")},
        "chargebacks": await _disputes(conn, here),
        "credits": [dict(row) for row in await fetch(conn, queries.credit_sums, **here)],
        "cases": {"open": cases["waiting"], "overdue": cases["overdue"], "next_due_at": cases["next_due_at"]},
        "alerts": {name: alerts.get(name, 0) for name in ("critical", "warning", "note")},
        "notices": {name: notices.get(name, 0) for name in ("waiting", "failed", "held")},
    }


async def _disputes(conn: Connection, here: dict[str, list[str]]) -> Document:
    """How many disputes are open and wait for a person, and the nearest deadline among those that do."""
    open_, waiting, due = 0, 0, []
    for row in await fetch(conn, queries.dispute_decisions, **here):
        dispute, waits = decode(row["fact"]), row["verdict"] == "review"
        open_ += isinstance(dispute, Dispute) and dispute.status not in CLOSED
        waiting += waits
        if isinstance(dispute, Dispute) and waits and dispute.due_by and not dispute.evidence_submitted:
            due += [dispute.due_by] if dispute.status not in CLOSED else []
    return {"open": open_, "waiting": waiting, "next_due_by": at(min(due)) if due else None}


async def pause_switch(conn: Connection) -> Document:
    """Whether refunds are paused, by whom, why and since when."""
    row = await queries.pause_switch(conn)
    if row is None:
        return {"on": False, "by": None, "reason": None, "since": None}
    return {"on": row["is_on"], "by": row["by_name"], "reason": row["reason"], "since": row["set_at"]}


def _age_s(then: datetime | None, now: datetime) -> int | None:
    return None if then is None else max(int((now - then).total_seconds()), 0)
