"""The one door through which facts come in, whoever brings them: webhooks, last looks, look-ups, wake-ups, the nightly run.

Everything in `settle` holds under locks on the customers concerned and on every key that may tie them to others, taken in
sorted order, so two workers never judge one person at the same moment.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from handlers.customer import AnyFact, Charge, CustomerFile, Refund, customer_of, decode_known, encode, fold
from handlers.decisions import Decision
from handlers.erasure import impersonal
from handlers.identity import link_keys
from handlers.news import refund_news
from handlers.projection import projected
from handlers.refunds import survivor_of
from worker.db import Connection, columns, queries
from worker.failpoint import failpoint
from worker.judging import Court, is_ours, judge_groups
from worker.notices import write_notices

MAX_LOCK_ROUNDS = 6


class Overtaken(Exception):
    """Another worker changed an object that was under no lock; from the start again, everything is seen."""


class Settled(msgspec.Struct):
    """What one settling did, in numbers for the log line."""

    facts: int = 0
    changed: int = 0
    files: int = 0
    decisions: int = 0
    entries: int = 0
    waiting: int = 0
    erased: tuple[str, ...] = ()
    """Ids of facts about customers who were erased: whatever else told of them must not be kept either."""

    @property
    def numbers(self) -> dict[str, int]:
        """Everything that is one."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if name != "erased"}


async def settle(
    connection: Connection,
    court: Court,
    realm: str,
    told: Iterable[AnyFact],
    *,
    wake: Iterable[str] = (),
    undecided: tuple[str, str] | None = None,
) -> Settled:
    """Fold facts into their customers' files, judge every file that changed (or is to be woken), write what follows.

    Must run inside a transaction. Idempotent: the same facts again change nothing. `undecided`, a decision's
    subject and a kind of its actions, are steps at their last look: judged as if they had not begun. Raises Overtaken: roll
    back, try again.
    """
    facts = _folded(told)
    owned = await _owners(connection, realm, facts)
    guests = [id_ for id_, fact in facts.items() if isinstance(fact, Charge) and owned[id_] != id_]
    left: set[str] = set()  # guests whose file moves to a customer: theirs is empty from now on
    if waiting := await connection.fetch(queries.waiting_for.sql, realm, list(facts), guests):
        for row in waiting:
            left.update([row["customer"]] if row["customer"] else [])
            if (orphan := decode_known(row["body"])) is None:
                continue
            facts[orphan.id] = fold(orphan, facts[orphan.id]) if orphan.id in facts else orphan
        owned = await _owners(connection, realm, facts)
    woken = sorted(wake)
    seeds = sorted({*owned.values(), *woken, *left})
    files = await _locked_files(connection, court, realm, facts, owned, seeds)
    said: dict[str, AnyFact] = {}
    while erased := await _about_erased(connection, realm, facts, owned, said):
        said |= erased
        facts |= {id_: impersonal(fact) for id_, fact in erased.items()}
        await connection.execute("rollback to savepoint locks")  # with it go the links that they brought
        files = await _locked_files(connection, court, realm, facts, owned, seeds)
    if woken:
        await connection.execute(queries.wake_now.sql, realm, woken)
    changed = await _save(connection, realm, facts, owned, files, said)
    touched = {owned[id_] for id_ in changed if id_ in owned} | set(woken) | left
    if undecided is not None:
        touched |= set(owned.values())
    refunds = [fact for id_ in changed if isinstance(fact := files.facts[id_], Refund) and fact.action]
    if refunds:
        await _hear_of_refunds(connection, realm, refunds)
    failpoint("after_fold")
    groups = [group for group in files.groups if not touched.isdisjoint(group)]
    decisions, entries = await judge_groups(connection, court, realm, groups, files.by_customer, undecided)
    if refunds:
        await _tell_of_refunds(connection, realm, refunds, files)
    return Settled(
        facts=len(facts),
        changed=len(changed),
        files=len(groups),
        decisions=decisions,
        entries=entries,
        waiting=len(facts) - len(owned),
        erased=tuple(said),
    )


def _folded(told: Iterable[AnyFact]) -> dict[str, AnyFact]:
    facts: dict[str, AnyFact] = {}
    for fact in told:
        facts[fact.id] = fold(facts[fact.id], fact) if fact.id in facts else fact
    return facts


async def _owners(connection: Connection, realm: str, facts: dict[str, AnyFact]) -> dict[str, str]:
    """Fact id -> customer: its own word, else that of what it refers to, here or in the books."""
    owned: dict[str, str] = {}
    seeking: dict[str, AnyFact] = {}
    for id_, fact in facts.items():
        customer = customer_of(fact)
        if customer is not None:
            owned[id_] = customer
        else:
            seeking[id_] = fact
    if seeking:
        references = {r for fact in seeking.values() for r in fact.references()}
        rows = await connection.fetch(queries.owners.sql, realm, sorted(references | seeking.keys()))
        known = {row["id"]: row["customer"] for row in rows}
        for _ in range(3):  # an invoice payment leads to an invoice, that to a subscription, that to the customer
            for id_, fact in list(seeking.items()):
                found = next((o for r in (*fact.references(), id_) if (o := owned.get(r) or known.get(r))), None)
                if found:
                    owned[id_] = found
                    del seeking[id_]
        for id_, fact in seeking.items():
            if isinstance(fact, Charge):
                owned[id_] = id_  # a guest's charge is a file of its own, until some telling names a customer
        for id_, fact in seeking.items():
            if id_ not in owned and (found := next((owned[r] for r in fact.references() if r in owned), None)):
                owned[id_] = found
    return owned


class _Files:
    """The customers' files of one settling: every fact by id, its customer, and who belongs to one person."""

    def __init__(self, links: Sequence[tuple[str, str]], customers: Iterable[str]) -> None:
        self.facts: dict[str, AnyFact] = {}
        self.bodies: dict[str, bytes] = {}
        self.versions: dict[str, int] = {}
        self.owners: dict[str, str] = {}
        self.by_customer: dict[str, dict[str, AnyFact]] = defaultdict(dict)
        self.groups = joined(links, customers)


def joined(links: Sequence[tuple[str, str]], customers: Iterable[str]) -> list[set[str]]:
    """Customers joined by shared keys, as disjoint sets."""
    group_of: dict[str, set[str]] = {customer: {customer} for customer in customers}
    by_key: dict[str, str] = {}
    for customer, key in links:
        group = group_of.setdefault(customer, {customer})
        first = by_key.setdefault(key, customer)
        other = group_of[first]
        if other is not group:
            other |= group
            for member in group:
                group_of[member] = other
    return list({id(group): group for group in group_of.values()}.values())


async def _locked_files(
    connection: Connection, court: Court, realm: str, facts: dict[str, AnyFact], owned: dict[str, str], seeds: list[str]
) -> _Files:
    """Lock everything that may be one person with these customers, then read it.

    Locked are the customers, and every key that a fact brings anew: two workers that each bring the same key meet at
    the key; one that brings a key somebody has already meets that customer.
    """
    told = {
        (owned[id_], key_hash(key))
        for id_, fact in facts.items()
        if id_ in owned
        for key in link_keys(fact, court.person_keys)
    }
    needed = {f"{realm} {thing}" for thing in (*seeds, *(key for _, key in told))}
    held: set[str] = set()
    for _ in range(MAX_LOCK_ROUNDS):
        if held:  # somebody new: begin again from a clean slate, for locks are taken in one sorted order only
            await connection.execute("rollback to savepoint locks")
        await connection.execute("savepoint locks")
        held = needed
        await connection.execute(queries.lock_keys.sql, sorted(lock_number(thing) for thing in held))
        known = {tuple(row) for row in await connection.fetch(queries.keys_of.sql, realm, seeds)}
        if fresh := sorted(told - known):
            await connection.execute(queries.save_links.sql, realm, *map(list, zip(*fresh, strict=True)))
        links = [tuple(row) for row in await connection.fetch(queries.kin.sql, seeds, realm)]
        customers = {customer for customer, _ in links} | set(seeds)
        needed = held | {f"{realm} {customer}" for customer in customers}
        if needed == held:
            break
    else:
        raise RuntimeError("the circle of linked customers kept growing while it was being locked")
    files = _Files(links, customers)
    rows = await connection.fetch(queries.load_objects.sql, realm, sorted(customers))
    loaded = {row["id"] for row in rows}
    if strangers := [id_ for id_ in facts if id_ not in loaded]:
        rows += await connection.fetch(queries.load_objects_by_id.sql, realm, strangers)
    for row in rows:
        if (fact := decode_known(row["body"])) is None:
            continue  # a newer release's, which runs beside this one: it stays as it is
        files.facts[fact.id], files.bodies[fact.id], files.versions[fact.id] = fact, row["body"], row["version"]
        if row["customer"] is not None:
            files.owners[fact.id] = row["customer"]
            files.by_customer[row["customer"]][fact.id] = fact
    return files


def key_hash(key: str) -> str:
    """`person:…`, `email:…` or `card:…` with a hash behind: no personal data in the index, and no character it refuses."""
    kind, _, name = key.partition(":")
    return f"{kind}:{hashlib.blake2b(name.encode(errors='surrogatepass'), digest_size=16).hexdigest()}"


def lock_number(thing: str) -> int:
    """The advisory lock of a thing, named with its realm or its kind: 64 bits, so that two things hardly ever share one."""
    return int.from_bytes(hashlib.blake2b(thing.encode(), digest_size=8).digest(), "big", signed=True)


async def _about_erased(
    connection: Connection, realm: str, facts: dict[str, AnyFact], owned: dict[str, str], said: dict[str, AnyFact]
) -> dict[str, AnyFact]:
    """The tellings, besides those in `said`, whose customers were erased. Under their locks, which an erasure takes too."""
    if not owned:
        return {}
    rows = await connection.fetch(queries.erased_among.sql, realm, sorted(set(owned.values())))
    gone = {row["customer"] for row in rows}
    return {id_: facts[id_] for id_, customer in owned.items() if customer in gone and id_ not in said}


async def _save(
    connection: Connection,
    realm: str,
    facts: dict[str, AnyFact],
    owned: dict[str, str],
    files: _Files,
    said: dict[str, AnyFact],
) -> list[str]:
    """Fold the facts into what is known and write what changed. Returns the ids that did. Raises Overtaken.

    `said`: tellings about erased customers. They take over the pseudonyms that are known; their digest is that of Stripe's words.
    """
    new: list[tuple[Any, ...]] = []
    known_rows: list[tuple[Any, ...]] = []
    alike: set[str] = set()
    for id_, fact in sorted(facts.items()):
        known = files.facts.get(id_)
        whole = said.get(id_)
        if whole is not None and known is not None:
            whole = fold(known, whole)
            if files.owners.get(id_) == owned[id_]:
                fact = impersonal(fact, known)
            else:  # nobody's or a guest's until now: what is known of it was never erased
                known = impersonal(known)
        folded = fact if known is None else fold(known, fact)
        body = encode(folded)
        customer = owned.get(id_)
        adopted = customer is not None and id_ not in files.by_customer[customer]
        if body == files.bodies.get(id_) and not adopted:
            if id_ not in said or said[id_].as_of < folded.as_of:
                continue
            alike.add(id_)  # what it says is known; only its digest may be another one
        files.facts[id_] = folded
        if customer is not None:
            if adopted and (before := files.owners.get(id_)):
                del files.by_customer[before][id_]
                if id_ in said and before == id_:
                    await queries.erase_links(connection, realm=realm, customers=[id_])
            files.by_customer[customer][id_] = folded
        references = (*folded.references(), None, None)
        beside = projected(folded if whole is None else whole)
        row = (customer, references[0], references[1], folded.as_of, body, *beside)
        if known is None:
            new.append((id_, str(type(folded).__struct_config__.tag), *row))
        else:
            known_rows.append((id_, *row, files.versions[id_]))
    written = 0
    if new:
        written += len(await connection.fetch(queries.insert_objects.sql, realm, *columns(new)))
    if known_rows:
        written += len(await connection.fetch(queries.update_objects.sql, *columns(known_rows), realm))
    if written < len(new) + len(known_rows):
        raise Overtaken(f"{len(new) + len(known_rows) - written} objects were changed by another worker meanwhile")
    return [row[0] for row in (*new, *known_rows) if row[0] not in alike]


async def _hear_of_refunds(connection: Connection, realm: str, refunds: Sequence[Refund]) -> None:
    rows = [(r.action, r.id, r.charge, r.status, r.failure_reason) for r in refunds]
    await connection.execute(queries.hear_of_refunds.sql, *columns(rows), realm)


async def _tell_of_refunds(connection: Connection, realm: str, refunds: Sequence[Refund], files: _Files) -> None:
    """The merchant's app hears of our refunds once Stripe has told of them."""
    made = {r.action: r for r in refunds if r.action is not None and r.live and is_ours(realm, r)}
    notices = []
    for row in await connection.fetch(queries.refunds_made.sql, realm, list(made)) if made else []:
        decision, refund = msgspec.json.decode(row["body"], type=Decision), made[row["action"]]
        kept = survivor_of(CustomerFile(files.facts.values()), decision)
        notices.append(refund_news(refund, decision, ended=row["ended"], kept=kept))
    await write_notices(connection, realm, notices)
