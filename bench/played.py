"""A few customers played by the sandbox and settled as a worker does; their rows are marked for copies under other ids."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeAlias

import asyncpg
import msgspec

from handlers.case_request import CaseRequest
from handlers.customer import CustomerId
from handlers.decisions import Decision, Verdict
from handlers.events import read_object
from handlers.terms import SHIPPED_POLICY, load_policy
from sandbox import Sandbox
from sandbox.webhooks import snapshot_body
from worker.cases import open_case
from worker.judging import Court
from worker.settle import settle

REALM = "test"
POLICY = load_policy(SHIPPED_POLICY)
DAY = 86_400
MONTHS = 3
CONSUMED = 3
"""Consumptions of each lot."""
PARTS = {"plain": 650, "twice": 300, "asked": 1, "open": 1, "kept": 4, "lost": 44}
"""Of a thousand customers: nothing happened; a duplicate was refunded; one waits for a yes; a dispute waits for a person, was seen
to by one, was lost."""
COPIED = (
    *("objects", "links", "decisions", "actions", "accounts", "lots", "entries", "standing_changes", "notices"),
    "paid_periods",
)
"""Tables whose rows belong to a customer."""
IDS = r"\b(?:cus|sub|si|in|il|ii|pi|inpay|ch|py|cs|du|re|dec|act|evt|txn|msg|req)_\w{6,}"
"""Ids of Stripe's and ours, wherever they stand: each copy has the same ids with its own end."""
MARK = "Zcopied"
_TEXT, _BYTES = re.compile(IDS), re.compile(IDS.encode())

Conn: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Event(NamedTuple):
    """An event of one played customer, marked for its copies."""

    played: int
    id: str
    type: str
    api_version: str
    created: int
    body: bytes


async def play(conn: Conn) -> list[Event]:
    """Play one customer of each part, settle what Stripe tells of them, and leave their marked rows in `copied_…`."""
    async with Sandbox(seed=7) as sandbox:
        books = sandbox.books
        books.set_clock(int(time.time()) - (31 * MONTHS + 1) * DAY, running=False)
        product = books.new_product("FluxArt AI", id_="prod_basic")["id"]
        price = books.new_price(product, "usd", 2900, interval="month", id_="price_basic")
        customers = {}
        for part in PARTS:
            customers[part] = await _bought(conn, books, price, part)
        books.advance(31 * MONTHS * DAY - 3600)  # the renewals of everybody
        for part, customer in customers.items():
            await _ends(conn, books, part, customer)
        events = _told(books, list(customers.values()))
    await _plain_decisions(conn, customers["plain"])
    await _asked_for(conn, customers["twice"])
    await _keep(conn, list(customers.values()))
    return events


async def _bought(conn: Conn, books: Any, price: Any, part: str) -> str:
    """A subscription, and for some the same again."""
    customer = books.new_customer(email=f"{part}@example.com", metadata={}, fingerprint=f"card{part}")
    id_: str = customer["id"]
    books.subscribe(customer, [(price, 1)], metadata={"user_id": f"user{part}"})
    if part in ("twice", "asked"):
        books.advance(60)
        again = books.subscribe(customer, [(price, 1)], metadata={"user_id": f"user{part}"})
        await _settled(conn, books, id_)
        books.cancel(again)
    await _settled(conn, books, id_)
    return id_


async def _ends(conn: Conn, books: Any, part: str, customer: str) -> None:
    """What happened last: for some a dispute, which some lost."""
    if part in ("open", "kept", "lost"):
        charge = next(charge for charge in books.all("charge") if charge["customer"] == customer)
        dispute = books.open_dispute(charge)
        await _settled(conn, books, customer)
        if part == "lost":
            books.advance(60)
            books.set_dispute(dispute, "lost")
    await _settled(conn, books, customer)


_KINDS = ("customer", "subscription", "invoice", "payment_intent", "invoice_payment", "charge", "dispute")


async def _settled(conn: Conn, books: Any, customer: str) -> None:
    """What Stripe tells of a customer now, through the one door."""
    now = books.now()
    facts = [read_object(msgspec.json.encode(each), now) for kind in _KINDS for each in books.all(kind)]
    owned = {customer}
    mine = []
    for fact in facts:  # a payment of an invoice, a dispute of a charge: in the order of the kinds
        if fact.id in owned or getattr(fact, "customer", None) == customer or not owned.isdisjoint(fact.references()):
            owned.add(fact.id)
            mine.append(fact)
    async with conn.transaction():
        await settle(conn, Court(policy=POLICY, refunds="review"), REALM, mine)


def _told(books: Any, customers: list[str]) -> list[Event]:
    """The events about each of these customers."""
    events = []
    for event in books.all("event"):
        body = snapshot_body(event)
        about = msgspec.json.decode(body)["data"]["object"]
        whose = about["id"] if about["object"] == "customer" else about.get("customer")
        if whose in customers:
            named = _marked(event["id"]), event["type"], event["api_version"], event["created"]
            events.append(Event(customers.index(whose), *named, _marked(body)))
    return events


async def _plain_decisions(conn: Conn, customer: str) -> None:
    """Of payments that nothing was wrong with: most subjects have a decision that says so."""
    for row in await conn.fetch("select id from objects where customer = $1 and kind = 'charge'", customer):
        decision = Decision(
            subject=row["id"],
            customer=CustomerId(customer),
            clause="4.3",
            rule="D3",
            verdict=Verdict.NONE,
            policy_version="2025-01",
            reason=f"{row['id']} pays for a time that nobody paid for before.",
        )
        told = [REALM, decision.subject, customer, decision.fingerprint(), msgspec.json.encode(decision)]
        await conn.execute(_PLAIN, *told)


async def _asked_for(conn: Conn, customer: str) -> None:
    """A customer asks support for a refund."""
    charge = await conn.fetchval("select subject from actions where customer = $1 and kind = 'refund'", customer)
    day = f"{datetime.now(UTC) - timedelta(days=MONTHS * 31):%Y-%m-%d}"
    request = CaseRequest(
        email="twice@example.com", date=day, description="I was charged twice.", transaction=charge, customer=customer
    )
    async with conn.transaction():
        await open_case(conn, POLICY, REALM, request, by="Ada")


_PLAIN = """
insert into decisions (id, realm, subject, revision, customer, clause, rule, verdict, policy_version, fingerprint, body)
values ('dec_' || md5($2), $1, $2, 1, $3, '4.3', 'D3', 'none', '2025-01', $4, $5)
"""


async def _keep(conn: Conn, customers: list[str]) -> None:
    """The rows of the played customers, marked, as they are found once everything was done."""
    places = list(PARTS)
    for table in COPIED:
        await conn.execute(
            f"create temporary table copied_{table} as select 0 as played, t.* from {table} t with no data"
        )
        rows = await conn.fetch(f"select array_position($1::text[], customer) - 1 as played, t.* from {table} t where customer = any($1)", customers)  # fmt: skip
        marked = [{name: _marked(value) for name, value in row.items()} for row in rows]
        if table == "actions":
            marked = [_sent(row) if row["played"] == places.index("twice") else row for row in marked]
        if table == "notices":
            marked = [row | {"state": "sent", "sent_at": row["created_at"]} for row in marked]
        if table == "links":
            marked = [row | {"key": row["key"] + MARK} for row in marked]
        await _put(conn, f"copied_{table}", marked)
    await _consume(conn)


def _marked(value: Any) -> Any:
    match value:
        case str():
            return _TEXT.sub(rf"\g<0>{MARK}", value)
        case bytes():
            return _BYTES.sub(rb"\g<0>%b" % MARK.encode(), value)
        case list():
            return [_marked(inner) for inner in value]
        case _:
            return value


def _sent(row: dict[str, Any]) -> dict[str, Any]:
    """An action as if it had been carried out."""
    then = row["created_at"] + timedelta(minutes=1)
    done = {"state": "sent", "generation": 1, "first_sent_at": then, "key_since": then, "settled_at": then}
    key = f"finalsale:{row['kind']}:{row['id']}:1"
    made = f"re_3Carried{MARK}" if row["kind"] == "refund" else row["subject"]
    return row | done | {"idempotency_key": key, "stripe_id": made, "stripe_status": "succeeded"}


async def _put(conn: Conn, table: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        await conn.copy_records_to_table(table, records=[list(row.values()) for row in rows], columns=list(rows[0]))


async def _consume(conn: Conn) -> None:
    """The app consumed of every lot that has enough left."""
    await conn.execute(
        """
        with used as (
            update copied_lots set consumed = consumed + $1, remaining = remaining - $1 where remaining >= $1 returning *)
        insert into copied_entries (played, realm, lot, customer, kind, amount, clause, cause, key, effective_at, recorded_at)
        select played, realm, id, customer, 'consumed', -1, clause, 'consumed by the app', 'key ' || n || id, granted_at, granted_at
        from used, generate_series(1, $1::int) as n
        """,
        CONSUMED,
    )
