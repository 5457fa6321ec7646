"""Every person in the books, one after the other: what previews, `policy diff` and other replays of history judge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from datetime import datetime

import msgspec

from handlers.account import Outage
from handlers.customer import CustomerId, Fact, Seconds, decode, decode_known, fold
from handlers.decisions import Acted, ActionKind, Judgement
from handlers.judgement import Ours, judge_person
from handlers.terms import Policy
from worker.accounts import Books, load_books
from worker.db import Connection, queries
from worker.judging import is_ours
from worker.settle import joined

BATCH = 200


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """One person's customers with their facts, and what our own books hold about them."""

    realm: str
    facts: dict[CustomerId, list[Fact]]
    books: Books
    acted: tuple[Acted, ...]

    def judge(
        self, policy: Policy, now: datetime, *, test_clocks: bool, outages: tuple[Outage, ...] | None = None
    ) -> Judgement:
        """What the rules say about this person under a policy; `outages` in place of the declared ones. Writes nothing."""
        ours = Ours(
            acted=self.acted,
            acts=self.books.acts_of(self.facts),
            outages=self.books.outages if outages is None else outages,
            balances=self.books.balances_of(self.facts),
            is_ours=lambda refund: is_ours(self.realm, refund),
        )
        return judge_person(self.facts, policy, now, ours, test_clocks=test_clocks)


async def persons(
    conn: Connection, realm: str, *, since_s: Seconds = 0, kind: str | None = None, run: str | None = None
) -> AsyncIterator[Person]:
    """Everybody with an object that changed since (unix seconds), or with one of a kind; each person once.

    With a `run`, what it found at Stripe is laid over the books, and counts as they would once it is healed.
    """
    seen: set[str] = set()
    after = ""
    while True:
        rows = await conn.fetch(queries.customers_after.sql, realm, after, since_s, kind, BATCH)
        more = await conn.fetch(queries.found_customers.sql, run, after, BATCH) if run else []
        customers = sorted({row["customer"] for row in (*rows, *more)})[:BATCH]
        if not customers:
            return
        after = customers[-1]
        async for person in persons_of(conn, realm, customers, seen, run=run):
            yield person


async def persons_of(
    conn: Connection,
    realm: str,
    customers: Iterable[str],
    seen: set[str],
    *,
    run: str | None = None,
    books: bool = True,
) -> AsyncIterator[Person]:
    """The persons whom these customers belong to, each once over all calls that share `seen`.

    `books=False` leaves out Stripe's facts in the books: what a run found stands alone then.
    """
    seeds = [customer for customer in customers if customer not in seen]
    if not seeds:
        return
    links = [(row["customer"], row["key"]) for row in await conn.fetch(queries.kin.sql, seeds, realm)]
    groups = joined(links, {*seeds, *(customer for customer, _ in links)})
    theirs = sorted(set().union(*groups) - seen)
    # whoever is alone cannot be met again: batches have no customer in common
    seen.update(customer for group in groups if len(group) > 1 for customer in group)
    facts: dict[str, dict[str, Fact]] = defaultdict(dict)
    if books:
        for row in await conn.fetch(queries.load_objects.sql, realm, theirs):
            if (fact := decode_known(row["body"])) is not None:
                facts[row["customer"]][fact.id] = fact
    for row in await conn.fetch(queries.laid_over.sql, run, theirs) if run else []:
        told, shelf = decode(row["body"]), facts[row["customer"]]
        known = shelf.get(told.id)
        shelf[told.id] = told if known is None else fold(known, told)
    ours = await load_books(conn, realm, theirs)
    begun = await conn.fetch(queries.begun_actions.sql, realm, theirs)
    acted = tuple(Acted(kind=ActionKind(r["kind"]), subject=r["subject"], state=r["state"]) for r in begun)
    for group in groups:
        if group <= set(theirs):
            shelves = {CustomerId(customer): list(facts[customer].values()) for customer in sorted(group)}
            yield Person(realm=realm, facts=shelves, books=ours, acted=acted)
