"""Every person in the books, one after the other: what previews, `policy diff` and other replays of history judge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import datetime

import msgspec

from handlers.account import Outage
from handlers.customer import CustomerId, Fact, Seconds, decode
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
    conn: Connection, realm: str, *, since_s: Seconds = 0, kind: str | None = None
) -> AsyncIterator[Person]:
    """Everybody with an object that changed since (unix seconds), or with one of a kind; each person once."""
    seen: set[str] = set()
    after = ""
    while True:
        rows = await conn.fetch(queries.customers_after.sql, realm, after, since_s, kind, BATCH)
        if not rows:
            return
        after = rows[-1]["customer"]
        seeds = [row["customer"] for row in rows if row["customer"] not in seen]
        if not seeds:
            continue
        links = [(row["customer"], row["key"]) for row in await conn.fetch(queries.kin.sql, seeds, realm)]
        groups = joined(links, {*seeds, *(customer for customer, _ in links)})
        customers = sorted(set().union(*groups) - seen)
        seen.update(customers)
        facts: dict[str, list[Fact]] = defaultdict(list)
        for row in await conn.fetch(queries.load_objects.sql, realm, customers):
            facts[row["customer"]].append(decode(row["body"]))
        books = await load_books(conn, realm, customers)
        begun = await conn.fetch(queries.begun_actions.sql, realm, customers)
        acted = tuple(Acted(kind=ActionKind(r["kind"]), subject=r["subject"], state=r["state"]) for r in begun)
        for group in groups:
            if group <= set(customers):
                theirs = {CustomerId(customer): facts[customer] for customer in sorted(group)}
                yield Person(realm=realm, facts=theirs, books=books, acted=acted)
