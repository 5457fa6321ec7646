"""`finalsale policy diff A B`: recent history judged under both policies; what would change, and who must be told (clause 9)."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path

import msgspec

from handlers.decisions import Judgement, Verdict
from handlers.terms import Policy, load_policy
from reconcile.policies import Change, changes, terms_changed, throughout, to_be_told, without_refunds
from worker import reading
from worker.db import Connection, queries
from worker.history import persons
from worker.jobs import read_policy
from worker.judging import Court, is_ours
from worker.settings import Settings


def policy_named(settings: Settings, name: str) -> Policy:
    """A policy file, or a version of the file in use by its id. Raises NotFound, PolicyInvalid."""
    in_use = read_policy(settings)
    for number, version in enumerate(in_use.version):
        if version.id == name:
            return msgspec.structs.replace(in_use, version=in_use.version[: number + 1])
    if not Path(name).is_file():
        known = ", ".join(version.id for version in in_use.version)
        raise reading.NotFound(f"{name} is neither a policy file nor a version of the policy in use ({known}).")
    return load_policy(name)


async def diff(
    conn: Connection, court: Court, realm: str, was: Policy, would_be: Policy, since: datetime
) -> reading.Document:
    """What the newest version of one policy would have done differently from that of another since a moment.

    Each is held as if it had always been in force; our own refunds count as not made yet. What the newest dry run of
    `finalsale reconcile` found at Stripe counts too, so this works before the first webhook. Writes nothing.
    """
    now: datetime = await queries.moment_of(conn, realm=realm)
    old, new = throughout(was), throughout(would_be)
    terms = terms_changed(old.version[-1], new.version[-1])
    found: list[Change] = []
    told: list[str] = []
    money: dict[str, Counter[str]] = {"was": Counter(), "would_be": Counter()}
    judged = 0
    looked: str | None = await queries.newest_look(conn, realm=realm)
    async for person in persons(conn, realm, since_s=int(since.timestamp()), run=looked):
        judged += 1
        facts = {
            customer: without_refunds(theirs, lambda refund: is_ours(realm, refund))
            for customer, theirs in person.facts.items()
        }
        replayed = msgspec.structs.replace(person, facts=facts, acted=())
        first = replayed.judge(old, now, test_clocks=court.test_clocks)
        second = replayed.judge(new, now, test_clocks=court.test_clocks)
        found += changes(first, second)
        _count(money["was"], first)
        _count(money["would_be"], second)
    if terms:  # whoever has a subscription, also where nothing of it changed since
        async for person in persons(conn, realm, kind="subscription", run=looked):
            told += to_be_told(person.facts, test_clocks=court.test_clocks)
    return {
        "was": old.version[-1].id,
        "would_be": new.version[-1].id,
        "since": since,
        "persons": judged,
        "terms": [{"term": name, "was": before, "would_be": after} for name, before, after in terms],
        "changes": [msgspec.to_builtins(change) for change in found],
        "refunds": {
            name: [{"minor": n, "currency": c} for c, n in sorted(sums.items())] for name, sums in money.items()
        },
        "tell": sorted(told),
    }


def _count(sums: Counter[str], judgement: Judgement) -> None:
    for decision in judgement.decisions.values():
        if decision.verdict is Verdict.REFUND and decision.amount:
            sums[decision.amount.currency] += decision.amount.minor
