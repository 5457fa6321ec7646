"""What a night's test seeds, and the table of it: every harm against what a run found, and every finding against the harm that explains it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from handlers.customer import AnyFact, Charge, CustomerId, Invoice, Refund, Subscription, decode, encode
from handlers.projection import projected
from reconcile.findings import DRIFT, Finding, What
from worker.db import Connection

REALM = "test"


class Seed(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong, and what a run must say of it: a finding about `object` or, where there is none, about `event`."""

    kind: str
    object: str
    event: str | None = None
    customer: str | None = None
    what: frozenset[What] = frozenset({What.MISSING_HERE, What.DIFFERENT})
    also: tuple[str, ...] = ()
    """Other objects that it made or changed: findings about these are no false alarms."""


class Line(msgspec.Struct, kw_only=True):
    """A line of the table. `healed`: of what was found and is the run's to heal; None where it is a person's."""

    kind: str
    seeded: int = 0
    found: int = 0
    missed: list[str] = []
    false_alarms: list[str] = []


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was never delivered."""

    id: str
    type: str
    created: int
    object: str | None


# seeding in the books --------------------------------------------------------------------------------------------------


async def seed_books(
    conn: Connection, seed: int, each: int, untouchable: set[str], window: tuple[int, int]
) -> list[Seed]:
    """Falsify rows of the books in SQL, `each` of every kind; none that is in `untouchable`."""
    rng = random.Random(f"books {seed}")
    rows = await conn.fetch(
        """select id, customer, body from objects where kind in ('charge', 'refund', 'invoice') and customer is not null
           and created >= $1 and created < $2 order by id""",
        *window,
    )
    facts = {row["id"]: (row["customer"], decode(row["body"])) for row in rows if row["id"] not in untouchable}
    seeds = []
    for name, changed in _WRONG.items():
        for kept in (False, True):
            able = [(id_, told) for id_, (_, fact) in facts.items() if (told := changed(fact)) is not None]
            for id_, told in rng.sample(able, min(each, len(able))):
                await _write(conn, told, digest_kept=kept)
                customer, _ = facts.pop(id_)
                words = f"wrong amount: {name}" + (" (digest kept)" if kept else "")
                seeds.append(Seed(kind=words, object=id_, customer=customer, what=frozenset({What.DIFFERENT})))
    people = sorted({customer for customer, _ in facts.values()})
    return [*seeds, *await _orphans(conn, rng, each, people, window)]


def _charge(fact: AnyFact) -> AnyFact | None:
    if not isinstance(fact, Charge) or fact.status != "succeeded" or fact.refunded_minor:
        return None
    return replace(fact, amount_minor=fact.amount_minor + 100, captured_minor=fact.captured_minor + 100)


def _refund(fact: AnyFact) -> AnyFact | None:
    return replace(fact, amount_minor=fact.amount_minor - 1) if isinstance(fact, Refund) and fact.live else None


def _invoice(fact: AnyFact) -> AnyFact | None:
    if not isinstance(fact, Invoice) or fact.status != "paid" or not fact.total_minor:
        return None
    return replace(fact, total_minor=fact.total_minor + 500)


_WRONG: dict[str, Callable[[AnyFact], AnyFact | None]] = {"charge": _charge, "refund": _refund, "invoice": _invoice}


async def _write(conn: Connection, fact: AnyFact, *, digest_kept: bool) -> None:
    body = encode(fact)
    if digest_kept:
        await conn.execute("set finalsale.projects to '0'")  # as a person with psql, or an earlier release
        await conn.execute("update objects set body = $1 where realm = $2 and id = $3", body, REALM, fact.id)
        await conn.execute("set finalsale.projects to '1'")
        return
    _, digest, moved, currency, _ = projected(fact)
    await conn.execute(
        """update objects set body = $1, digest = $4, moved_minor = $5, currency = $6 where realm = $2 and id = $3""",
        *(body, REALM, fact.id, digest, moved, currency),
    )


async def _orphans(
    conn: Connection, rng: random.Random, each: int, people: Sequence[str], window: tuple[int, int]
) -> list[Seed]:
    """Rows that Stripe does not know: of customers that there are, and of nobody."""
    seeds = []
    for n in range(each):
        then = rng.randrange(*window)
        who = CustomerId(rng.choice(people))
        stranger = CustomerId(f"cus_orphan{n}")
        made: list[tuple[str, AnyFact, str | None]] = [
            ("orphan charge", _orphan_charge(f"ch_orphan{n}", who, then), who),
            ("orphan charge of nobody", _orphan_charge(f"ch_nobody{n}", stranger, then), stranger),
            ("orphan refund", _orphan_refund(f"re_orphan{n}", f"ch_orphan{n}", then), who),
            ("orphan refund of nobody", _orphan_refund(f"re_nobody{n}", f"ch_unheard{n}", then), None),
            ("orphan subscription", _orphan_subscription(f"sub_orphan{n}", who, then), who),
        ]
        for kind, fact, customer in made:
            created, digest, moved, currency, unfinished = projected(fact)
            references = (*fact.references(), None, None)
            await conn.execute(
                """insert into objects (realm, id, kind, customer, reference_a, reference_b, as_of, body, created, digest,
                   moved_minor, currency, unfinished) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)""",
                *(
                    REALM,
                    fact.id,
                    str(type(fact).__struct_config__.tag),
                    customer,
                    references[0],
                    references[1],
                    fact.as_of,
                ),
                *(encode(fact), created, digest, moved, currency, unfinished),
            )
            seeds.append(Seed(kind=kind, object=fact.id, customer=customer, what=frozenset({What.MISSING_THERE})))
    return seeds


def _orphan_charge(id_: str, customer: CustomerId, then: int) -> AnyFact:
    return Charge(
        id=id_, as_of=then, customer=customer, amount_minor=4200, captured_minor=4200, currency="usd", status="succeeded",
        captured=True, created=then,
    )  # fmt: skip


def _orphan_refund(id_: str, charge: str, then: int) -> AnyFact:
    return msgspec.convert(
        {"kind": "refund", "id": id_, "as_of": then, "charge": charge, "amount_minor": 4200, "currency": "usd"}
        | {"status": "succeeded", "created": then},
        Refund,
    )


def _orphan_subscription(id_: str, customer: CustomerId, then: int) -> AnyFact:
    return msgspec.convert(
        {"kind": "subscription", "id": id_, "as_of": then, "customer": customer, "status": "active", "created": then},
        Subscription,
    )


async def seed_dead(conn: Connection, events: Iterable[tuple[Event, bytes]]) -> list[Seed]:
    """Events that arrived and were given up: in the inbox, and without any effect."""
    seeds = []
    for event, stored in events:
        await conn.execute(
            """insert into inbox (event_id, realm, type, api_version, created_at, received_at, payload, state, attempts, error, settled_at)
               values ($1, $2, $3, null, to_timestamp($4), to_timestamp($4), $5, 'dead', 20, 'given up for the test', now())""",
            *(event.id, REALM, event.type, event.created, stored),
        )
        seeds.append(
            Seed(
                kind="dead event",
                object=event.id,
                what=frozenset({What.EVENT_DEAD}),
                also=tuple(filter(None, [event.object])),
            )
        )
    return seeds


# what was seeded otherwise ---------------------------------------------------------------------------------------------


def seeds_of_events(events: Iterable[Event]) -> list[Seed]:
    """What was never delivered must be found as its object or, where that is right all the same, as itself."""
    drift = frozenset({What.MISSING_HERE, What.DIFFERENT, What.EVENT_UNHEARD})
    return [
        Seed(kind="webhook never delivered", object=event.object or event.id, event=event.id, what=drift)
        for event in events
    ]


def seeds_of_harm(harmed: Iterable[Mapping[str, Any]]) -> list[Seed]:
    """As `POST /_sandbox/harm` answers."""
    return [
        Seed(kind=f"unheard: {row['what']}", object=row["object"], customer=row["customer"], also=tuple(row["also"]))
        for row in harmed
    ]


# the table -------------------------------------------------------------------------------------------------------------


def table(
    seeds: Iterable[Seed], found: Sequence[Finding], known: Mapping[What, set[str]], woken: set[str]
) -> list[Line]:
    """Kind by kind, what was seeded and found; the last lines are findings that nothing explains.

    `known`: subjects of findings that are none of the seeds' and true all the same (refunds made by hand in the sandbox's
    ordinary life, by kind of finding). `woken`: customers of whom something never arrived, so that their credits may be late.
    """
    lines: dict[str, Line] = {}
    said: dict[str, set[What]] = {}
    for finding in found:
        said.setdefault(finding.object, set()).add(finding.what)
    explained: set[str] = set()
    for seed in seeds:
        line = lines.setdefault(seed.kind, Line(kind=seed.kind))
        line.seeded += 1
        about = said.get(seed.object, set()) | said.get(seed.event or "", set())
        if about & seed.what:
            line.found += 1
        else:
            line.missed.append(seed.event or seed.object)
        explained |= {seed.object, *seed.also, *filter(None, [seed.event])}
    for finding in found:
        if _explained(finding, explained, known, woken):
            continue
        line = lines.setdefault(f"finding: {finding.what}", Line(kind=f"finding: {finding.what}"))
        line.false_alarms.append(f"{finding.object} ({finding.kind}): {finding.sentence} [{finding.cause}]")
    return sorted(lines.values(), key=lambda line: line.kind)


def _explained(finding: Finding, seeded: set[str], known: Mapping[What, set[str]], woken: set[str]) -> bool:
    if finding.object in known.get(finding.what, ()):
        return True
    if finding.what in DRIFT or finding.what in (What.EVENT_DEAD, What.MONEY, What.OUT_OF_POLICY, What.NOBODYS):
        return finding.object in seeded
    return finding.customer in woken


def in_words(lines: Iterable[Line]) -> str:
    """The table for people."""
    rows = [f"{'kind of harm':<36} {'seeded':>7} {'found':>7} {'missed':>7} {'false alarms':>13}"]
    for line in lines:
        rows.append(
            f"{line.kind:<36} {line.seeded:>7} {line.found:>7} {len(line.missed):>7} {len(line.false_alarms):>13}"
        )
        rows += [f"    missed: {id_}" for id_ in line.missed[:5]]
        rows += [f"    false: {words[:300]}" for words in line.false_alarms[:5]]
    return "\n".join(rows)
