"""What would follow from what a run found: everybody concerned judged twice, without it and with it laid over the books.

Writes nothing but what it reads from Stripe on the way: what the rules ask for before they can say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

import msgspec

from handlers.customer import CustomerId, Seconds
from handlers.decisions import Judgement, Verdict
from reconcile.findings import Consequence
from reconcile.plan import consequences
from reconcile.report import SHOWN
from reconcile.windows import LISTS
from worker.db import queries
from worker.history import Person, persons_of
from worker.judging import Court
from worker.matching import find_owners
from worker.runs import Run
from worker.scan import reread
from worker.stripe_gateway import StripeGateway

PERSONS = 200
LOOK_UP_ROUNDS = 3
_LOOKED_UP = {
    "balance": "balance_read",
    "checkout.session": "checkout_session",
    "radar.early_fraud_warning": "early_fraud_warning",
}
"""The kinds that rules ask for, where facts have another name."""
READABLE = frozenset(listing.kind for listing in LISTS.values()) - {"event", "balance_transaction"} | {
    "balance_read",
    "session_lines",
}
"""Kinds of facts that can be read by id."""


class Planned(msgspec.Struct):
    """What follows. Amounts by currency, minor units."""

    consequences: list[Consequence] = []
    """SHOWN at most, credits a quarter of that; `total` counts them all."""
    total: int = 0
    to_return: dict[str, int] = {}
    to_review: dict[str, int] = {}
    would_hold: int = 0
    credits_due: int = 0
    looked_up: int = 0


class Planner:
    """One pass over everybody whom a run found something about."""

    def __init__(self, run: Run, gateway: StripeGateway, court: Court) -> None:
        self.run, self.gateway, self.court = run, gateway, court
        self.planned = Planned()
        self._asked_for: set[str] = set()
        self._sums: Counter[tuple[str, str]] = Counter()
        self._shown: Counter[bool] = Counter()

    async def plan(self, now: datetime) -> Planned:
        """Judge everybody twice. Raises as the gateway's reads do only for the database; what cannot be read is `unread`."""
        after, seen = "", set[str]()
        while rows := await self.run.conn.fetch(queries.found_customers.sql, self.run.id, after, PERSONS):
            customers = [row["customer"] for row in rows]
            after = customers[-1]
            for was, becomes in await self._judged_twice(customers, seen, now):
                self._follow(was, becomes, int(now.timestamp()))
        self.planned.to_return = self._by_currency(Verdict.REFUND)
        self.planned.to_review = self._by_currency(Verdict.REVIEW)
        return self.planned

    async def _judged_twice(
        self, customers: Sequence[str], seen: set[str], now: datetime
    ) -> list[tuple[Judgement, Judgement]]:
        """Each person's judgement by the books, and by the books with what was found laid over them."""
        before_us = set(seen)
        for last in (*[False] * LOOK_UP_ROUNDS, True):  # after the last reading everybody is judged once more
            seen_now = set(before_us)
            becomes, wanted = [], set[tuple[str, str]]()
            async for person in persons_of(self.run.conn, self.run.realm, customers, seen_now, run=self.run.id):
                judgement = self._judge(person, now)
                becomes.append((person, judgement))
                wanted |= judgement.wanted
            unread = [(_LOOKED_UP.get(kind, kind), _lookup_id(kind, id_)) for kind, id_ in sorted(wanted)]
            known = await self.run.conn.fetch(queries.found_bodies.sql, self.run.id, [id_ for _, id_ in unread])
            have = {row["id"] for row in known} | self._asked_for
            unread = [(kind, id_) for kind, id_ in unread if id_ not in have and kind in READABLE]
            self._asked_for |= {id_ for _, id_ in unread}
            if not unread or last:
                break
            self.planned.looked_up += len(unread)
            await reread(self.run, self.gateway, unread)
            await find_owners(self.run)
        seen |= seen_now
        theirs = sorted({customer for person, _ in becomes for customer in person.facts})
        without: dict[CustomerId, Judgement] = {}
        async for person in persons_of(self.run.conn, self.run.realm, theirs, set()):
            if any(person.facts.values()):
                without |= dict.fromkeys(person.facts, self._judge(person, now))
        pairs = []
        for person, judgement in becomes:
            parts = {id(part): part for customer in person.facts if (part := without.get(customer))}
            was = Judgement(decisions={})
            for part in parts.values():
                was = _both(was, part)
            pairs.append((was, judgement))
        return pairs

    def _judge(self, person: Person, now: datetime) -> Judgement:
        return person.judge(self.court.policy, now, test_clocks=self.court.test_clocks)

    def _follow(self, was: Judgement, becomes: Judgement, now_s: Seconds) -> None:
        found, planned = consequences(was, becomes, self.court.refunds), self.planned
        imported = not was.accounts
        closed = {
            lot.id
            for lots in becomes.lots.values()
            for lot in lots.values()
            if lot.closing is not None and lot.closing.at <= now_s
        }
        for consequence in found:
            if consequence.about == "credits" and imported and consequence.subject not in closed:
                continue  # every lot is new then, and only what is overdue is worth a word
            planned.total += 1
            credits_ = consequence.about == "credits"
            if self._shown[credits_] < (SHOWN // 4 if credits_ else SHOWN):
                self._shown[credits_] += 1
                planned.consequences.append(consequence)
            if consequence.about == "standing" and consequence.becomes in ("flagged", "suspended"):
                planned.would_hold += 1
            if consequence.amount is not None:
                self._sums[consequence.verdict, consequence.amount.currency] += consequence.amount.minor
        for customer, lots in becomes.lots.items():
            known = was.lots.get(customer, {})
            for id_, lot in lots.items():
                if id_ in closed and (id_ not in known or known[id_].closing is None):
                    planned.credits_due += lot.credits

    def _by_currency(self, verdict: Verdict) -> dict[str, int]:
        return {currency: minor for (said, currency), minor in sorted(self._sums.items()) if said == verdict}


def _lookup_id(kind: str, id_: str) -> str:
    """The id under which a look-up's answer is kept among facts."""
    match kind:
        case "balance":
            return f"balance:{id_}"
        case "session_lines":
            return f"lines:{id_}"
        case _:
            return id_


def _both(a: Judgement, b: Judgement) -> Judgement:
    """Two judgements of disjoint persons as one."""
    return Judgement(
        decisions={**a.decisions, **b.decisions}, accounts={**a.accounts, **b.accounts}, lots={**a.lots, **b.lots}
    )
