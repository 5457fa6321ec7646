"""Personal data: payloads go after the retention, and one customer's data when that is asked for. Books and chain stay as they are.

Where it lies: `inbox.payload` (events as Stripe sent them), `objects` (hashes of e-mails, card fingerprints, the merchant's metadata),
`links` (hashes of the same), `cases` and `case_acts` (what a customer wrote), and what a nightly run holds staged. Decisions,
actions, entries, notices, alerts and reports name ids (also the merchant's own, as evidence) and amounts only. What an operator
wrote (`review_acts.note`, `acts.body`, `operator_acts.reason`, `alerts.ack_note`) stays unless it is asked for.

`erase` needs the privileges of the tables' owner; `prune` those of a worker.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import structlog

from handlers.account import Account, Act
from handlers.cases import Case
from handlers.customer import AnyFact, CustomerFile, Fact, decode_known, encode
from handlers.decisions import as_json
from handlers.erasure import erased, pseudonyms
from handlers.identity import link_keys
from handlers.wire import email_hash
from worker import audit
from worker.db import Connection, Pool, columns, connection, queries, transaction
from worker.inbox import unpack
from worker.judging import Court
from worker.reading import Document, NotFound, fetch
from worker.review import ActRefused, named, said_why
from worker.settle import key_hash, lock_number

SLICE = 2_000
"""Events of one transaction: some 10 MB of payloads."""
SLICES_A_ROUND = 50
GONE_ADDRESS, GONE_TEXT = "erased@erased.invalid", "[erased on request]"
GONE_EVENT = "its payload was erased on request"

_IDS = re.compile(rb'"([a-z]{2,8}_[A-Za-z0-9_]{1,200})"').findall

log = structlog.get_logger()

Progress = Callable[[int], None]


# retention ---------------------------------------------------------------------------------------------------------------


async def prune(pool: Pool, days: int) -> int:
    """Take their payload from events that were settled and are older than `days`; what is not settled keeps its own.

    Works in slices of one transaction each, at most SLICES_A_ROUND of them. Returns how many payloads went.
    """
    pruned = 0
    for _ in range(SLICES_A_ROUND):
        async with transaction(pool) as conn:
            await queries.lock_keys(conn, keys=[lock_number("retention")])
            since: datetime | None = await queries.prune_from(conn)
            if since is None:
                break
            until: datetime = await queries.prune_edge(conn, since=since, days=days, most=SLICE)
            if until <= since:
                break
            pruned += int(await queries.prune_slice(conn, since=since, until=until))
    async with transaction(pool) as conn:
        pruned += int(await queries.prune_settled(conn))
        await queries.prune_tellings(conn, days=days, most=SLICE)
        await queries.prune_messages(conn, days=days, most=SLICE)
        await queries.prune_sessions(conn, most=SLICE)
    if pruned:
        log.info("retention.pruned", payloads=pruned, older_than_days=days)
    return pruned


# erasure -----------------------------------------------------------------------------------------------------------------


class Erasure(msgspec.Struct, kw_only=True):
    """What an erasure is about to do, or did."""

    realm: str
    customers: list[str]
    """The customer, and all others that are the same person."""
    facts: list[AnyFact]
    cases: list[str]
    """Of these customers, and those that nobody could match and that have the same e-mail."""
    payloads: int = 0
    done: bool = False

    @property
    def document(self) -> Document:
        """For people and programs, without anything personal."""
        return {
            "customers": self.customers,
            "objects": len(self.facts),
            "cases": self.cases,
            "payloads": self.payloads,
            "erased": self.done,
        }


async def look(conn: Connection, realms: Sequence[str], customer: str) -> Erasure:
    """Whom an erasure would concern, and what. Raises NotFound, and ActRefused where something is not over yet."""
    rows = await fetch(conn, queries.find_objects, realms=list(realms), ids=[customer])
    if not rows or rows[0]["customer"] is None:
        raise NotFound(
            f"There is no customer {customer} in the books; `finalsale explain {customer}` says what is known."
        )
    realm, customer = rows[0]["realm"], rows[0]["customer"]
    kin = await fetch(conn, queries.kin, customers=[customer], realm=realm)
    customers = sorted({customer, *(row["customer"] for row in kin)})
    await _refuse_while_told(conn, realm, customers)
    await queries.lock_keys(conn, keys=sorted(lock_number(f"{realm} {one}") for one in customers))
    stored = await fetch(conn, queries.load_objects, realm=realm, customers=customers)
    facts = [fact for row in stored if (fact := decode_known(row["body"])) is not None]
    cases = await _cases(conn, realm, customers, facts)
    unread = [f"{case['id']} is open" for case in cases if case["state"] == "open" and case["customer"] is None]
    if still := [*_alive(facts), *await _open(conn, realm, customers), *unread]:
        more = f" and {len(still) - 5} more" if len(still) > 5 else ""
        raise ActRefused(
            f"{customer} cannot be erased yet, something is not over: {', '.join(still[:5])}{more}. End it first."
        )
    return Erasure(realm=realm, customers=customers, facts=facts, cases=[row["id"] for row in cases])


async def _refuse_while_told(conn: Connection, realm: str, customers: list[str]) -> None:
    """An event that still waits would fail, or be settled, with everything in it. Before any lock: there may be many."""
    stored = await fetch(conn, queries.load_objects, realm=realm, customers=customers)
    ids = {id_.encode() for id_ in (*customers, *(row["id"] for row in stored))}
    after = ""
    while rows := await fetch(conn, queries.waiting_slice, after=after, realm=realm, most=SLICE):
        after = rows[-1]["event_id"]
        if told := [row["event_id"] for row in rows if _tells_of(row["payload"], ids)]:
            raise ActRefused(
                f"{customers[0]} cannot be erased yet: {told[0]} tells of it and waits to be worked on. Try again in a moment; "
                "`finalsale events list --state waiting` shows what waits."
            )


async def _cases(conn: Connection, realm: str, customers: list[str], facts: Sequence[AnyFact]) -> list[asyncpg.Record]:
    """Their cases, locked, and those of nobody whose e-mail is one of theirs."""
    found = await fetch(conn, queries.cases_to_erase, realm=realm, customers=customers)
    hashes = {getattr(fact, "email_hash", None) for fact in facts} - {None}
    after = ""
    while hashes and (rows := await fetch(conn, queries.unmatched_cases, realm=realm, after=after, most=SLICE)):
        after = rows[-1]["id"]
        found += [row for row in rows if email_hash(_case(row).request.email) in hashes]
    return found


def _case(row: asyncpg.Record) -> Case:
    return msgspec.json.decode(row["body"], type=Case)


def _alive(facts: Sequence[AnyFact]) -> list[str]:
    file = CustomerFile(facts)
    alive = [f"{s.id} may still renew" for s in file.subscriptions.values() if s.alive]
    closed = ("won", "lost", "prevented", "warning_closed")
    return alive + [f"{d.id} is {d.status}" for d in file.disputes.values() if d.status not in closed]


async def _open(conn: Connection, realm: str, customers: list[str]) -> list[str]:
    rows = await fetch(conn, queries.open_matters, realm=realm, customers=customers)
    return [
        f"{row['id']} ({row['state']})" if row["what"] == "action" else f"{row['id']} is {row['state']}" for row in rows
    ]


async def erase(
    conn: Connection,
    court: Court,
    realms: Sequence[str],
    customer: str,
    *,
    by: str,
    reason: str,
    linked: bool = False,
    notes: bool = False,
    via: str = "cli",
) -> Erasure:
    """Erase a person's data from facts, links and cases. Must run inside a transaction; `erase_payloads` follows it.

    Decisions, actions, entries and the chain stay. Later tellings of these customers are kept without personal fields. With
    `notes` also what operators wrote about them goes; what they did, and what followed from it, stays.
    Raises NotFound, ActRefused: something is not over, or the person has other customers and `linked` does not say so.
    """
    name, why = named(by), said_why(reason)
    if not why:
        raise ActRefused("Say why, for whoever audits this: --reason TEXT.")
    found = await look(conn, realms, customer)
    if len(found.customers) > 1 and not linked:
        raise ActRefused(
            f"{customer} is one person with {', '.join(c for c in found.customers if c != customer)}: decisions rest on that. "
            "Erase them all with --linked."
        )
    pseudonym = pseudonyms(secrets.token_bytes(32))
    facts = [erased(fact, pseudonym) for fact in found.facts]
    await _write(conn, court, found, facts)
    for row in await fetch(conn, queries.lock_cases, ids=found.cases):
        body = msgspec.json.encode(_without_words(_case(row)))
        await queries.write_case(conn, id=row["id"], customer=row["customer"], body=body)
    await audit.permit_erasure(conn)
    await queries.erase_case_texts(conn, case_ids=found.cases, gone=GONE_TEXT)
    if notes:
        await _erase_notes(conn, found)
    await queries.save_erasures(conn, realm=found.realm, customers=found.customers, by_name=name, reason=why)
    await audit.record(
        conn, found.realm, by=name, via=via, act="customers.erase", subject=customer, reason=why, after=found.document
    )
    found.done = True
    return found


async def _write(conn: Connection, court: Court, found: Erasure, facts: Sequence[Fact]) -> None:
    """The facts with pseudonyms, and the links that follow from them."""
    owners = {fact.id: getattr(fact, "customer", None) or fact.id for fact in facts}
    if facts:
        bodies = columns([(fact.id, encode(fact)) for fact in facts])
        await queries.erase_objects(conn, ids=bodies[0], bodies=bodies[1], realm=found.realm)
    await queries.erase_links(conn, realm=found.realm, customers=found.customers)
    links = sorted(
        {
            (owners[fact.id], key_hash(key))
            for fact in facts
            if owners[fact.id] in found.customers
            for key in link_keys(fact, court.person_keys)
        }
    )
    if links:
        await conn.execute(queries.save_links.sql, found.realm, *columns(links))
    await queries.erase_staged(conn, customers=found.customers, ids=[fact.id for fact in facts])


async def _erase_notes(conn: Connection, found: Erasure) -> None:
    """What operators wrote about them: on decisions and alerts, and as the reasons of what they did. Acts keep their effect."""
    whom: dict[str, Any] = {"realm": found.realm, "customers": found.customers}
    await queries.erase_review_notes(conn, **whom, gone=GONE_TEXT)
    ids = [*found.customers, *(fact.id for fact in found.facts), *found.cases]
    await queries.erase_reasons(conn, **whom, ids=ids, gone=GONE_TEXT)
    await queries.erase_ack_notes(conn, **whom, gone=GONE_TEXT)
    words = set()
    for row in await fetch(conn, queries.acts_to_erase, **whom):
        act = msgspec.json.decode(row["body"], type=Act)
        if act.reason not in ("", GONE_TEXT):
            words.add(act.reason)
            body = as_json(msgspec.structs.replace(act, reason=GONE_TEXT))
            await queries.erase_act(conn, id=act.id, body=body)
    for row in await fetch(conn, queries.accounts_to_erase, **whom) if words else []:
        account = msgspec.json.decode(row["body"], type=Account)
        holds = tuple(msgspec.structs.replace(hold, cause=_without(words, hold.cause)) for hold in account.holds)
        body = as_json(msgspec.structs.replace(account, holds=holds))
        await queries.erase_account(conn, realm=found.realm, customer=account.customer, body=body)


def _without(words: set[str], cause: str) -> str:
    """A hold's cause ends with the words of the act that it rests on."""
    for said in sorted(words, key=len, reverse=True):
        cause = cause.replace(f": {said}", f": {GONE_TEXT}")
    return cause


def _without_words(case: Case) -> Case:
    request = msgspec.structs.replace(case.request, email=GONE_ADDRESS, description=GONE_TEXT)
    evaluation = msgspec.structs.replace(case.evaluation, draft_answer="")
    return msgspec.structs.replace(
        case, request=request, evaluation=evaluation, answer=None if case.answer is None else GONE_TEXT
    )


async def erase_payloads(pool: Pool, found: Erasure, progress: Progress = lambda _: None) -> int:
    """Take the payload from every event that does not wait and tells of these customers or their objects. Returns how many.

    What was dead or quarantined is `ignored` from then on: without its payload nobody can work on it any more.
    Looks into all payloads, thousands a second: which customer an event is about stands nowhere else.
    """
    ids = {id_.encode() for id_ in (*found.customers, *(fact.id for fact in found.facts))}
    since, after, looked = datetime.min.replace(tzinfo=UTC), "", 0
    while True:
        async with connection(pool) as conn:
            here = {"since": since, "after": after, "realm": found.realm, "most": SLICE}
            rows: list[Any] = await fetch(conn, queries.payload_slice, **here)
            if not rows:
                return found.payloads
            mine = [row["event_id"] for row in rows if _tells_of(row["payload"], ids)]
            if mine:
                await queries.erase_payloads(conn, event_ids=mine, error=GONE_EVENT)
        since, after, looked = rows[-1]["received_at"], rows[-1]["event_id"], looked + len(rows)
        found.payloads += len(mine)
        progress(looked)


def _tells_of(payload: bytes, ids: set[bytes]) -> bool:
    return not ids.isdisjoint(_IDS(unpack(payload)))
