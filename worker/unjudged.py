"""Paid periods that overlap and that nothing was decided about: a second pair of eyes beside the judging of files as they change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from handlers.customer import CustomerFile
from handlers.decisions import Decision
from handlers.duplicates import judge
from reconcile.findings import Class, Finding, What
from worker.db import Connection, queries
from worker.history import Person, persons_of
from worker.judging import Court

PERSONS = 200
DUPLICATES = "4.3"


async def unjudged_copies(conn: Connection, realm: str, court: Court, now: datetime) -> AsyncIterator[Finding]:
    """What the rules call a copy (4.3) and no decision is about, of everybody with overlapping paid periods. Writes nothing."""
    people = [row["person"] for row in await conn.fetch(queries.unjudged_overlaps.sql, realm)]
    seen: set[str] = set()
    for start in range(0, len(people), PERSONS):
        ruled: dict[str, Decision] = {}
        async for person in persons_of(conn, realm, people[start : start + PERSONS], seen):
            ruled |= _ruled(person, court, now)
        for row in await conn.fetch(queries.decided_subjects.sql, realm, list(ruled)):
            del ruled[row["subject"]]
        for _, decision in sorted(ruled.items()):
            yield _unjudged(decision)


def _ruled(person: Person, court: Court, now: datetime) -> dict[str, Decision]:
    """By subject, what the rules about copies alone decide: nobody's account or credits are looked at."""
    file = CustomerFile(fact for facts in person.facts.values() for fact in facts)
    balances = person.books.balances_of(person.facts)
    judgement = judge(file, court.policy, now, acted=person.acted, balances=balances, test_clocks=court.test_clocks)
    return {d.subject: d for d in judgement.decisions.values() if d.clause == DUPLICATES}


def _unjudged(decision: Decision) -> Finding:
    return Finding(
        what=What.COPY_UNJUDGED,
        class_=Class.AUTO,
        object=decision.subject,
        kind="charge",
        customer=decision.customer,
        sentence=f"{decision.subject} repeats a paid period and nothing was decided about it: {decision.reason}",
        do="Its customer is judged again.",
        clause=DUPLICATES,
        amount=decision.amount,
    )
