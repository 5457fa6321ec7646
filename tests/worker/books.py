"""Facts told to real books: histories settled into a test's database through the one door."""

from __future__ import annotations

from handlers.customer import AnyFact
from handlers.terms import Policy
from tests.handlers.history import POLICY, History
from worker.db import Pool, transaction
from worker.judging import Court
from worker.settle import settle

REALM = "test"
REALMS = [REALM]


def court(policy: Policy = POLICY, *, refunds: str = "review") -> Court:
    """The rules of a test: money waits for a person unless told otherwise."""
    return Court(policy=policy, refunds=refunds)


async def tell(pool: Pool, history: History, by: Court | None = None, *, realm: str = REALM) -> None:
    """Everything the history has told so far, folded, judged and committed."""
    facts: list[AnyFact] = list(history.tellings)  # type: ignore[arg-type]  # a History tells only facts of this union
    async with transaction(pool) as connection:
        await settle(connection, by or court(), realm, facts)
