"""What a run found at Stripe against the books, customer by customer: findings with their causes, and what is only new.

Reads in batches of customers, writes through the run's connection. Decides nothing itself: `reconcile.compare` does.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import asyncpg
import msgspec

from handlers.customer import AnyFact, Charge, Customer, CustomerFile, Fact, Seconds, at, decode, decode_known, encode
from handlers.decisions import Money
from handlers.events import Unreadable, parse_event
from handlers.projection import moved, projected
from reconcile.compare import Compared, Matter, compare, differences, from_the_future
from reconcile.findings import Class, Finding, What
from worker.db import columns, queries
from worker.inbox import unpack
from worker.runs import Run

BATCH = 200
ROWS = 2_000
IN_FLIGHT_S = 900
"""Events that wait for longer than so before the upper edge are no longer on their way: somebody should have worked on them."""
UNWORKABLE_READ = 5_000
"""So many dead and quarantined events are looked into for what they are about."""


_Books: TypeAlias = dict[str, tuple[str | None, AnyFact]]


class Matched(msgspec.Struct):
    """What matching came to, beside the findings it wrote."""

    imported: dict[str, int] = msgspec.field(default_factory=Counter)
    enriched: int = 0
    in_flight: int = 0
    causes: dict[str, int] = msgspec.field(default_factory=Counter)


async def project_older_rows(run: Run) -> int:
    """Give rows that an earlier release wrote their digest and what else stands beside the bytes. Returns how many had none."""
    done = 0
    while rows := await run.conn.fetch(queries.undigested.sql, run.realm, ROWS):
        beside = [(row["id"], row["as_of"], *_beside(row["body"])) for row in rows]
        async with run.transaction() as conn:
            await conn.execute(queries.project_objects.sql, *columns(beside), run.realm)
        done += len(rows)
    return done


def _beside(body: bytes) -> tuple[Seconds | None, int, int | None, str | None, bool]:
    """The columns beside a row's bytes; of a newer release's kind nothing but that it was looked at."""
    fact = decode_known(body)
    return (None, 0, None, None, False) if fact is None else projected(fact)


async def find_owners(run: Run) -> None:
    """Whose each found object is, by what it refers to: among what was found, and in the books. Guests own themselves."""
    for _ in range(3):  # an invoice payment leads to an invoice, that to a subscription, that to the customer
        owned, after = 0, ""
        while rows := await run.conn.fetch(queries.unowned_found.sql, run.id, after, ROWS):
            after = rows[-1]["id"]
            seeking = {row["id"]: decode(row["body"]).references() for row in rows}
            wanted = sorted({reference for references in seeking.values() for reference in references} | seeking.keys())
            known = {
                r["id"]: r["customer"]
                for r in await run.conn.fetch(queries.owners_found.sql, run.id, wanted, run.realm)
            }
            told = [
                (id_, owner)
                for id_, references in seeking.items()
                if (owner := next((known[r] for r in (*references, id_) if r in known), None))
            ]
            if told:
                await run.conn.execute(queries.own_found.sql, *columns(told), run.id)
            owned += len(told)
        if not owned:
            break
    after = ""
    while rows := await run.conn.fetch(queries.unowned_found.sql, run.id, after, ROWS):
        after = rows[-1]["id"]
        guests = [(row["id"], row["id"]) for row in rows if isinstance(decode(row["body"]), Charge)]
        if guests:
            await run.conn.execute(queries.own_found.sql, *columns(guests), run.id)


class Matcher:
    """One pass over everything staged. `heard_since`: what was created before the first delivery is new to the books, and no drift."""

    def __init__(self, run: Run, heard_since: Seconds | None, late: set[str], now_s: Seconds) -> None:
        self.run, self.heard_since, self.late, self.now_s = run, heard_since, late, now_s
        self.matched = Matched()
        self.unworkable: dict[str, str] = {}
        """Object -> the dead or quarantined event that told of it."""

    async def match(self) -> Matched:
        """Write a finding for everything that is not as Stripe says; pass over what is."""
        conn, run = self.run.conn, self.run
        await self._look_into_unworkable()
        after = ""
        while rows := await conn.fetch(queries.found_customers.sql, run.id, after, BATCH):
            customers = [row["customer"] for row in rows]
            after = customers[-1]
            staged = await conn.fetch(queries.staged_of.sql, run.id, customers)
            await self._match(staged, await self._books_of(customers, staged))
        after = ""
        while staged := await conn.fetch(queries.staged_of_nobody.sql, run.id, after, ROWS):
            after = staged[-1]["id"]
            await self._match(staged, await self._books_of([], staged))
        await self._unheard_alone()
        return self.matched

    async def _books_of(self, customers: list[str], staged: Sequence[asyncpg.Record]) -> _Books:
        """The books' facts by id, each with its customer: everything of these, and what is staged wherever it lies."""
        rows = await self.run.conn.fetch(queries.load_objects.sql, self.run.realm, customers) if customers else []
        here = {row["id"] for row in rows}
        if strangers := [row["id"] for row in staged if row["id"] not in here]:
            rows += await self.run.conn.fetch(queries.load_objects_by_id.sql, self.run.realm, strangers)
        return {r["id"]: (r["customer"], fact) for r in rows if (fact := decode_known(r["body"])) is not None}

    async def _match(self, staged: Sequence[asyncpg.Record], books: _Books) -> None:
        told = {row["id"]: decode(row["body"]) for row in staged}
        heard_not: dict[str, asyncpg.Record] = {}
        for row in await self.run.conn.fetch(queries.unheard_about.sql, self.run.id, sorted(told)):
            heard_not[row["object"]] = row
        files = _files(books, told, {row["id"]: row["customer"] for row in staged})
        same: list[str] = []
        found: list[Finding] = []
        for row in staged:
            id_, at_stripe, here = row["id"], told[row["id"]], books.get(row["id"], (None, None))[1]
            if id_ in self.late:  # it changed after the upper edge: that event is on its way
                self.matched.in_flight += 1
                same.append(id_)
                continue
            unheard = heard_not.get(id_)
            if isinstance(at_stripe, Customer) and at_stripe.deleted and isinstance(here, Customer):
                at_stripe = await self._deleted(here, at_stripe)
            outcome = compare(
                here, at_stripe, files[row["customer"]], told_unheard=unheard is not None, listed=row["listed"]
            )
            if here is not None and row["listed"] and from_the_future(here, at_stripe, self.now_s):
                found.append(_from_the_future(here, at_stripe, row["customer"]))
                same.append(id_)
            elif outcome.matter is Matter.SAME:
                same.append(id_)
            elif outcome.matter is Matter.MORE:
                self.matched.enriched += 1
            elif outcome.matter is Matter.MISSING and self._before_the_books(at_stripe):
                self.matched.imported[row["kind"]] += 1
            else:
                found.append(self._finding(row, at_stripe, outcome, unheard))
        async with self.run.transaction():
            if same:
                await self.run.conn.execute(queries.pass_over.sql, self.run.id, same)
            await save_findings(self.run, found)

    async def _deleted(self, here: Customer, told: Customer) -> Customer:
        """A deleted customer is read without address and metadata, its event carries both: what the books know of it stays."""
        kept = msgspec.structs.replace(here, deleted=True, as_of=max(here.as_of, told.as_of))
        async with self.run.transaction() as conn:
            await queries.replace_found(conn, run=self.run.id, id=told.id, body=encode(kept))
        return kept

    def _before_the_books(self, told: AnyFact) -> bool:
        created: Seconds = getattr(told, "created", told.as_of)
        return self.heard_since is None or created < self.heard_since

    def _finding(
        self, row: asyncpg.Record, told: AnyFact, outcome: Compared, unheard: asyncpg.Record | None
    ) -> Finding:
        missing = outcome.matter is Matter.MISSING
        kind = str(row["kind"]).replace("_", " ")
        money = moved(told) or _amount(told)
        if unheard is not None:
            cause, short = (
                f"{unheard['type']} {unheard['event_id']} of {_when(unheard['created'])} never arrived",
                "event never arrived",
            )
        elif event := self.unworkable.get(row["id"]):
            cause, short = f"{event} arrived and could not be worked on", "event could not be worked on"
        else:
            cause, short = "no event that Stripe still lists tells of it", "no event lists it"
        self.matched.causes[short] += 1
        what = (
            f"The books lack the {kind} {row['id']}"
            if missing
            else f"The {kind} {row['id']} stands differently in the books"
        )
        detail = "; ".join(f"{d.field}: {d.here} here, {d.at_stripe} at Stripe" for d in outcome.differences[:4])
        return Finding(
            what=What.MISSING_HERE if missing else What.DIFFERENT,
            class_=Class.AUTO,
            object=row["id"],
            kind=row["kind"],
            customer=row["customer"],
            sentence=f"{what}{f' ({_said(told, money)})' if missing else f' ({detail})'}.",
            do="What Stripe says is taken into the books and judged like any event.",
            amount=money,
            cause=cause,
            differences=outcome.differences,
        )

    async def _look_into_unworkable(self) -> None:
        rows = await self.run.conn.fetch(
            queries.unworkable_events.sql, self.run.realm, self.run.plan.upper - IN_FLIGHT_S, UNWORKABLE_READ
        )
        for row in rows:
            named = object_of(unpack(row["payload"]))
            if named:
                self.unworkable[named] = f"{row['type']} {row['event_id']} ({row['state']})"

    async def _unheard_alone(self) -> None:
        """Events that never arrived and whose object is right all the same: a later one told it."""
        if self.heard_since is None:
            return
        found = [
            Finding(
                what=What.EVENT_UNHEARD,
                class_=Class.AUTO,
                object=row["event_id"],
                kind="event",
                customer=row["customer"],
                sentence=f"{row['type']} {row['event_id']} about {row['object'] or 'nothing known'} never arrived; what it tells is in the books.",
                do="The event is stored as if it had been delivered.",
                cause="the delivery failed",
            )
            for row in await self.run.conn.fetch(queries.unheard_alone.sql, self.run.id, self.heard_since)
        ]
        self.matched.causes["event never arrived"] += len(found)
        async with self.run.transaction():
            await save_findings(self.run, found)


def _files(
    books: _Books, told: dict[str, AnyFact], owners: dict[str, str | None]
) -> defaultdict[str | None, CustomerFile]:
    """The file of each customer as it will be: the books and what was found."""
    facts: dict[str | None, list[Fact]] = defaultdict(list)
    for customer, fact in books.values():
        facts[customer].append(fact)
    for id_, fact in told.items():
        facts[owners[id_]].append(fact)
    return defaultdict(CustomerFile, {customer: CustomerFile(theirs) for customer, theirs in facts.items()})


async def save_findings(run: Run, found: Iterable[Finding]) -> None:
    """Keep findings; the same one again replaces itself."""
    rows = [(f.id, str(f.what), str(f.class_), f.object, f.customer, msgspec.json.encode(f)) for f in found]
    unique = list({row[0]: row for row in rows}.values())
    if unique:
        await run.conn.execute(queries.save_findings.sql, run.id, *columns(unique))


def object_of(payload: bytes) -> str | None:
    """The id of the object that a stored event is about, as far as it can be read."""
    try:
        told = parse_event(payload)
    except Unreadable as unreadable:
        return unreadable.object_id
    return told.fact.id if told.fact is not None else told.hint.id if told.hint is not None else None


def _from_the_future(here: AnyFact, at_stripe: AnyFact, customer: str | None) -> Finding:
    return Finding(
        what=What.FROM_THE_FUTURE,
        class_=Class.ASK,
        object=here.id,
        kind=str(here.__struct_config__.tag),
        customer=customer,
        sentence=f"{here.id} claims to be told at {_when(here.as_of)}, which has not come yet, and differs from what Stripe says.",
        do="No telling of Stripe's can correct it before that moment: find out what wrote it, and set objects.as_of right.",
        differences=differences(here, at_stripe, CustomerFile()),
    )


def missing_there(kind: str, id_: str, fact: AnyFact, customer: str | None) -> Finding:
    """The books have an object that Stripe answers 404 for."""
    deleted = getattr(fact, "status", "") == "draft"
    money = moved(fact) or _amount(fact)
    return Finding(
        what=What.MISSING_THERE,
        class_=Class.NEVER,
        object=id_,
        kind=kind,
        customer=customer,
        sentence=f"Stripe does not know the {kind.replace('_', ' ')} {id_} of the books ({_said(fact, money)}).",
        do="It stays in the books, marked as unknown at Stripe since now.",
        amount=money,
        cause="a draft that was deleted at Stripe"
        if deleted
        else "not written from anything Stripe lists: another account's, or made here",
    )


def _amount(fact: AnyFact) -> Money | None:
    minor: Any = getattr(fact, "amount_minor", None) or getattr(fact, "total_minor", None)
    currency: Any = getattr(fact, "currency", None)
    return Money(minor, currency) if minor is not None and currency else None


def _said(fact: AnyFact, money: Money | None) -> str:
    created = getattr(fact, "created", None)
    parts = [getattr(fact, "status", ""), str(money) if money else "", f"of {_when(created)}" if created else ""]
    return ", ".join(part for part in parts if part) or "no details"


def _when(seconds: Seconds) -> str:
    return f"{at(seconds):%Y-%m-%d %H:%M:%S} UTC"
