"""Support cases (clause 5): opened and evaluated at once, answered by a person with a name, alerted before 24 hours have passed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import structlog

from handlers.account import Account, LotKind, Outage
from handlers.cases import (
    Case,
    CaseRequest,
    Evaluation,
    Granted,
    Known,
    Refunding,
    RequestInvalid,
    evaluate,
    read_request,
)
from handlers.customer import CustomerFile, CustomerId, decode_known
from handlers.decisions import Decision, Money, Verdict
from handlers.terms import CaseTerms, Policy
from worker import audit
from worker.db import Connection, queries
from worker.errors import Permanent
from worker.reading import Document, NotFound, acts_by_decision, fetch
from worker.review import ActRefused, named, said_why

__all__ = ["CaseConflict", "CaseInvalid", "CaseRequest", "RequestInvalid", "open_case", "read_request", "show_case"]

MIN_PREFIX = len("case_") + 4
"""Fewer characters would make a typing error a case."""
MAX_ANSWER = 20_000

log = structlog.get_logger()


class CaseInvalid(Permanent):
    """A request that no case can be opened for; the message names the field and says how to write it."""

    error_code = "case_invalid"


class CaseConflict(Permanent):
    """The request key was used before, for another request."""

    error_code = "request_key_used"


# opening -----------------------------------------------------------------------------------------------------------------


async def open_case(
    conn: Connection, policy: Policy, realm: str, request: CaseRequest, *, by: str, via: str = "cli"
) -> Document:
    """Open a case and evaluate it at once; the same request under the same key opens none and returns the first one.

    Must run inside a transaction. `by` is the operator, or the name of the app's token. Raises CaseInvalid, CaseConflict.
    """
    name, id_ = named(by), "case_" + secrets.token_hex(12)
    now: datetime = await queries.case_moment(conn, realm=realm)
    if request.dated > now + timedelta(days=1):  # a day's grace: dates have no time zone
        raise CaseInvalid(f"date: {request.date} lies in the future; write the day of the purchase.")
    known = await _known(conn, realm, request)
    terms = _clock(policy, known.customer if known else None, now)
    due_at = now + timedelta(seconds=terms.answer_within)
    evaluation = evaluate(request, known, policy, now, case=id_, due_at=due_at)
    made = await queries.insert_case(
        conn,
        id=id_,
        realm=realm,
        customer=evaluation.customer,
        opened_at=now,
        due_at=due_at,
        alert_at=max(due_at - timedelta(seconds=terms.alert_before), now),
        request_key=request.request_key,
        body=msgspec.json.encode(Case(request=request, evaluation=evaluation)),
    )
    if made is None:
        row = await queries.case_by_key(conn, realm=realm, request_key=request.request_key)
        if _case(row).request != request:
            raise CaseConflict(f"The request key was used for {row['id']}, which asks something else.")
        return await show_case(conn, [realm], row["id"])
    await queries.save_case_act(conn, case_id=id_, act="open", by_name=name, text=evaluation.summary)
    after = {"customer": evaluation.customer, "about": request.about, "verdict": str(evaluation.verdict)}
    await audit.record(conn, realm, by=name, via=via, act="case.open", subject=id_, after=after)
    log.info("case.opened", case_id=id_, about=request.about, clause=evaluation.clause, verdict=str(evaluation.verdict))
    return await show_case(conn, [realm], id_)


def _clock(policy: Policy, customer: CustomerId | None, now: datetime) -> CaseTerms:
    """The support clock in force now, an agreement with the customer included (clauses 5, 8 and 9)."""
    return (policy.terms_for(customer, int(now.timestamp())) or policy.earliest()).cases


async def _known(conn: Connection, realm: str, request: CaseRequest) -> Known | None:
    """What the books hold about the person: the transaction's owner, else the customer named; None where neither is known.

    Facts are read before decisions: both are committed together, so no fact is seen without the decisions that follow from it.
    """
    customer = await _owner(conn, realm, request)
    kin = await fetch(conn, queries.kin, customers=[customer], realm=realm) if customer else []
    customers = sorted({customer or ""} | {row["customer"] for row in kin})
    rows = await fetch(conn, queries.load_objects, realm=realm, customers=customers)
    facts = [fact for row in rows if (fact := decode_known(row["body"])) is not None]
    if customer is None or not facts:
        return None
    file = CustomerFile(facts)
    rows = await fetch(conn, queries.current_decisions, realm=realm, customers=customers)
    acts = await acts_by_decision(conn, [row["id"] for row in rows])
    account = await queries.case_account(conn, realm=realm, customer=customer)
    outages = await fetch(conn, queries.case_outages, realm=realm, customer=customer)
    return Known(
        customer=customer,
        file=file,
        decisions={row["subject"]: msgspec.json.decode(row["body"], type=Decision) for row in rows},
        account=msgspec.json.decode(account, type=Account) if account is not None else None,
        refunds=await _refunds(conn, realm, file),
        rejected=frozenset(r["subject"] for r in rows if any(a["act"] == "reject" for a in acts[r["id"]])),
        lots=tuple(_granted(r) for r in await fetch(conn, queries.case_lots, realm=realm, customer=customer)),
        outages=tuple(msgspec.json.decode(row["body"], type=Outage) for row in outages),
    )


async def _owner(conn: Connection, realm: str, request: CaseRequest) -> CustomerId | None:
    if request.transaction is not None:
        rows = await fetch(conn, queries.owners, realm=realm, ids=[request.transaction])
        if rows:
            return CustomerId(rows[0]["customer"])
    is_customer = request.transaction is not None and request.transaction.startswith("cus_")
    named = request.transaction if is_customer else request.customer
    return CustomerId(named) if named is not None else None


async def _refunds(conn: Connection, realm: str, file: CustomerFile) -> dict[str, Refunding]:
    """Our refunds of the file's charges, by charge."""
    rows = await fetch(conn, queries.actions_about, realm=realm, subjects=sorted(file.charges))
    return {
        row["subject"]: Refunding(
            state=row["state"],
            amount=Money(row["amount_minor"], row["currency"]),
            sent_at=row["first_sent_at"],
        )
        for row in rows
        if row["kind"] == "refund"
    }


def _granted(row: asyncpg.Record) -> Granted:
    return Granted(
        id=row["id"],
        kind=LotKind(row["kind"]),
        clause=row["clause"],
        granted=row["granted"],
        remaining=row["remaining"],
        lapsed=row["lapsed"],
        ends_at=int(row["ends_at"].timestamp()) if row["ends_at"] is not None else None,
    )


async def realm_of_request(conn: Connection, realms: Sequence[str], request: CaseRequest) -> str | None:
    """The realm, among these, that knows the transaction or the customer; None where none does."""
    ids = [id_ for id_ in (request.transaction, request.customer) if id_]
    rows = {row["id"]: row["realm"] for row in await fetch(conn, queries.find_objects, realms=list(realms), ids=ids)}
    return next((rows[id_] for id_ in ids if id_ in rows), None)


# reading -----------------------------------------------------------------------------------------------------------------


async def show_case(conn: Connection, realms: Sequence[str], id_: str) -> Document:
    """One case whole, the e-mail address included, with everything that was done about it. Raises NotFound."""
    row = await queries.read_case(conn, id=await _find(conn, realms, id_))
    case = _case(row)
    acts = await fetch(conn, queries.read_case_acts, case_id=row["id"])
    return case_document(row) | {
        "email": case.request.email,
        "description": case.request.description,
        "draft_answer": case.evaluation.draft_answer,
        "answer": case.answer,
        "suggestions": list(case.evaluation.suggestions),
        "acts": [{"act": a["act"], "by": a["by_name"], "text": a["text"], "at": a["acted_at"]} for a in acts],
    }


async def list_cases(
    conn: Connection,
    realms: Sequence[str],
    *,
    state: str | None = None,
    assigned: str | None = None,
    overdue: bool = False,
    limit: int | None = None,
) -> list[Document]:
    """Cases, those that wait first and the soonest due at the top. E-mail addresses are masked."""
    asked = {"realms": list(realms), "state": state, "assigned": assigned, "overdue": overdue, "most": limit}
    return [case_document(row) for row in await fetch(conn, queries.list_cases, **asked)]


def case_document(row: asyncpg.Record) -> Document:
    """One row as lists show it: its e-mail address is masked."""
    case = _case(row)
    request, evaluation = case.request, case.evaluation
    return {
        "id": row["id"],
        "realm": row["realm"],
        "state": row["state"],
        "kind": request.about,
        "customer": row["customer"],
        "email": masked_email(request.email),
        "date": request.date,
        "transaction": request.transaction,
        "clause": evaluation.clause,
        "verdict": str(evaluation.verdict),
        "policy_version": evaluation.policy_version,
        "summary": evaluation.summary,
        "payments": list(evaluation.payments),
        "assigned_to": row["assigned_to"],
        "opened_at": row["opened_at"],
        "alert_at": row["alert_at"],
        "due_at": row["due_at"],
        "answered_at": row["answered_at"],
        "overdue": row["state"] == "open" and row["due_at"] <= row["now"],
    }


def masked_email(email: str) -> str:
    """`a…@example.com`."""
    local, _, domain = email.rpartition("@")
    return f"{local[:1]}…@{domain}"


def _case(row: Mapping[str, Any] | asyncpg.Record) -> Case:
    return msgspec.json.decode(row["body"], type=Case)


async def _find(conn: Connection, realms: Sequence[str], id_: str) -> str:
    """The id of the one case that `id_` names whole or by its beginning. Raises NotFound."""
    if len(id_) < MIN_PREFIX or not id_.startswith("case_"):
        raise NotFound(f"{id_!r} names no case: write case_ and at least four more characters of its id.")
    try:
        rows = await fetch(conn, queries.cases_by_prefix, realms=list(realms), prefix=id_)
    except (UnicodeError, asyncpg.DataError, asyncpg.CharacterNotInRepertoireError):
        rows = []
    if len(rows) > 1 and rows[0]["id"] != id_:
        raise NotFound(f"Several cases begin with {id_}: {', '.join(row['id'] for row in rows)}. Write more of it.")
    if not rows:
        raise NotFound(f"There is no case {id_}; `finalsale cases list` shows them.")
    found: str = rows[0]["id"]
    return found


# what people do about them -----------------------------------------------------------------------------------------------


async def assign(conn: Connection, realms: Sequence[str], id_: str, *, to: str, by: str, via: str = "cli") -> Document:
    """Say who answers it. Must run inside a transaction, like every act. Raises NotFound, ActRefused."""
    row, name = await _locked(conn, realms, id_), named(by)
    whom = named(to)
    if row["state"] == "closed":
        raise ActRefused(f"{row['id']} is closed: reopen it first with `finalsale cases reopen {row['id']} --by NAME`.")
    await queries.assign_case(conn, id=row["id"], assigned_to=whom)
    return await _acted(conn, row, "assign", name, whom, via)


async def note(conn: Connection, realms: Sequence[str], id_: str, *, text: str, by: str, via: str = "cli") -> Document:
    """Write something down about it; nothing else changes. Raises NotFound, ActRefused."""
    name, said = named(by), said_why(text)
    if not said:
        raise ActRefused("The note is empty: write it with --note TEXT.")
    return await _acted(conn, await _locked(conn, realms, id_), "note", name, said, via)


async def reevaluate(
    conn: Connection, policy: Policy, realms: Sequence[str], id_: str, *, by: str, via: str = "cli"
) -> Document:
    """Evaluate an open case again, by what is known now. Raises NotFound, ActRefused."""
    row, name = await _locked(conn, realms, id_), named(by)
    _refuse_unless(row, "open")
    evaluation = await _evaluated(conn, policy, row)
    await _write(conn, row, msgspec.structs.replace(_case(row), evaluation=evaluation))
    return await _acted(conn, row, "evaluate", name, evaluation.summary, via)


async def answer(
    conn: Connection,
    policy: Policy,
    realms: Sequence[str],
    id_: str,
    *,
    by: str,
    text: str | None = None,
    via: str = "cli",
) -> Document:
    """Answer an open case with these words, or with the draft if it is still what the policy says; the clock stops.

    The answer is written down here and sent by whoever answers. Raises NotFound, ActRefused.
    """
    row, name = await _locked(conn, realms, id_), named(by)
    _refuse_unless(row, "open")
    case = _case(row)
    if text is None:
        if (await _evaluated(conn, policy, row)).draft_answer != case.evaluation.draft_answer:
            raise ActRefused(
                f"What is known has changed since the draft of {row['id']} was written: run `finalsale cases evaluate {row['id']} "
                "--by NAME` and read the new one, or write the answer with --text."
            )
        said = case.evaluation.draft_answer
    else:
        said = text.strip()
        if not said or len(said) > MAX_ANSWER or "\x00" in said:
            raise ActRefused(f"An answer has 1 to {MAX_ANSWER} characters, and no NUL.")
    answered = msgspec.structs.replace(case, answer=said)
    await queries.answer_case(conn, id=row["id"], body=msgspec.json.encode(answered))
    await _quiet(conn, row)
    told = "with the draft" if text is None else "in other words than the draft"
    return await _acted(conn, row, "answer", name, told, via)


async def close(
    conn: Connection, realms: Sequence[str], id_: str, *, by: str, text: str = "", via: str = "cli"
) -> Document:
    """Close it; where it was never answered, only with a reason. Raises NotFound, ActRefused."""
    row, name, said = await _locked(conn, realms, id_), named(by), said_why(text)
    _refuse_unless(row, "open", "answered")
    if row["state"] == "open" and not said:
        raise ActRefused(f"{row['id']} was not answered: answer it, or say with --note TEXT why it needs no answer.")
    await queries.close_case(conn, id=row["id"])
    await _quiet(conn, row)
    return await _acted(conn, row, "close", name, said, via)


async def reopen(
    conn: Connection, policy: Policy, realms: Sequence[str], id_: str, *, by: str, text: str = "", via: str = "cli"
) -> Document:
    """Open it again with a new clock and a new evaluation. Raises NotFound, ActRefused."""
    row, name, said = await _locked(conn, realms, id_), named(by), said_why(text)
    _refuse_unless(row, "answered", "closed")
    terms = _clock(policy, row["customer"], row["now"])
    due_at: datetime = row["now"] + timedelta(seconds=terms.answer_within)
    evaluation = await _evaluated(conn, policy, row, due_at)
    case = msgspec.structs.replace(_case(row), evaluation=evaluation, answer=None)
    alert_at = max(due_at - timedelta(seconds=terms.alert_before), row["now"])
    body = msgspec.json.encode(case)
    await queries.reopen_case(conn, id=row["id"], due_at=due_at, alert_at=alert_at, body=body)
    return await _acted(conn, row, "reopen", name, said, via)


async def _locked(conn: Connection, realms: Sequence[str], id_: str) -> asyncpg.Record:
    row: asyncpg.Record = await queries.lock_case(conn, id=await _find(conn, realms, id_))
    return row


def _refuse_unless(row: asyncpg.Record, *states: str) -> None:
    if row["state"] in states:
        return
    when = f" since {row['answered_at']:%Y-%m-%d %H:%M} UTC" if row["state"] == "answered" else ""
    then = f"; `finalsale cases reopen {row['id']} --by NAME` opens it again" if row["state"] != "open" else " already"
    raise ActRefused(f"{row['id']} is {row['state']}{when}{then}.")


async def _evaluated(
    conn: Connection, policy: Policy, row: asyncpg.Record, due_at: datetime | None = None
) -> Evaluation:
    request = _case(row).request
    known = await _known(conn, row["realm"], request)
    return evaluate(request, known, policy, row["now"], case=row["id"], due_at=due_at or row["due_at"])


async def _write(conn: Connection, row: asyncpg.Record, case: Case) -> None:
    await queries.write_case(conn, id=row["id"], customer=case.evaluation.customer, body=msgspec.json.encode(case))


async def _acted(conn: Connection, row: asyncpg.Record, act: str, name: str, text: str, via: str) -> Document:
    """Write the act down, and return the case as it is now. Its words stay with the case: the audit has its state alone."""
    await queries.save_case_act(conn, case_id=row["id"], act=act, by_name=name, text=text)
    log.info("case.acted", case_id=row["id"], act=act)
    now = await show_case(conn, [row["realm"]], row["id"])
    kept = ("state", "assigned_to", "due_at")
    before, after = ({part: of[part] for part in kept} for of in (row, now))
    told: Document = {"by": name, "via": via, "act": f"case.{act}", "subject": row["id"]}
    await audit.record(conn, row["realm"], before=before, after=after, **told)
    return now


# the clock ---------------------------------------------------------------------------------------------------------------


async def overdue_cases(conn: Connection) -> list[str]:
    """Ids of open cases whose answer is late."""
    return [row["id"] for row in await fetch(conn, queries.cases_near_due) if row["overdue"]]


async def alert_cases(conn: Connection) -> int:
    """Raise an alert for every open case that is nearly due or late, resolve those that no longer hold. Returns how many hold.

    Must run inside a transaction. Idempotent.
    """
    standing = []
    for row in await fetch(conn, queries.cases_near_due):
        stage, kind = ("overdue", "case_overdue") if row["overdue"] else ("near", "case_near_due")
        standing.append(f"case:{row['id']}:{stage}")
        await queries.raise_case_alert(
            conn,
            realm=row["realm"],
            cause=standing[-1],
            kind=kind,
            severity="critical" if row["overdue"] else "warning",
            customer=row["customer"] or "",
            subject=row["id"],
            sentence=_sentence(row),
        )
    await fetch(conn, queries.resolve_case_alerts, standing=standing)
    return len(standing)


def _sentence(row: asyncpg.Record) -> str:
    case = _case(row)
    whose = f" of {row['customer']}" if row["customer"] else ""
    late = "should have been answered by" if row["overdue"] else "has no answer yet; it is due by"
    asks = "a person has to look" if case.evaluation.verdict is Verdict.REVIEW else "a draft is ready"
    return (
        f"{row['id']} ({case.request.about}{whose}) {late} {row['due_at']:%Y-%m-%d %H:%M} UTC, {asks} (clause 5): "
        f"finalsale cases show {row['id']}"
    )


async def _quiet(conn: Connection, row: asyncpg.Record) -> None:
    causes = [f"case:{row['id']}:{stage}" for stage in ("near", "overdue")]
    await queries.resolve_alerts_of_case(conn, realm=row["realm"], causes=causes)
