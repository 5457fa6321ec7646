"""From stored events to files, decisions and actions: claim, fold, judge, write, in one transaction per batch.

`settle` is the one door through which facts come in, whoever brings them: webhooks, last looks, look-ups, the nightly run.
Everything in it holds under locks on the customers concerned and on every key that may tie them to others, taken in
sorted order, so two workers never judge one person at the same moment.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import structlog

from handlers.customer import AnyFact, Charge, CustomerFile, Fact, Refund, customer_of, decode, encode, fold
from handlers.decisions import Acted, ActionKind, Decision, Verdict, as_json
from handlers.duplicates import judge
from handlers.events import Hint, Unreadable, parse_event
from handlers.identity import link_keys
from handlers.terms import Policy
from worker.db import UNAVAILABLE, Connection, Pool, queries, transaction
from worker.failpoint import failpoint

BATCH = 200
MAX_ATTEMPTS = 8
LOOKUP_DELAY_S = 30
"""A missing object is usually in the next event; Stripe is asked only where it has not come by then."""
MAX_LOCK_ROUNDS = 6

log = structlog.get_logger()


class Court(msgspec.Struct, frozen=True, kw_only=True):
    """Under what rules facts are judged: the policy, whether money may move by itself, whether rehearsals count."""

    policy: Policy
    refunds: str
    test_clocks: bool = False

    @property
    def person_keys(self) -> frozenset[str]:
        """Every metadata key that names a person in any version of the policy."""
        return frozenset(key for version in self.policy.version for key in version.duplicates.person)


class Settled(msgspec.Struct):
    """What one settling did, in numbers for the log line."""

    facts: int = 0
    changed: int = 0
    files: int = 0
    decisions: int = 0
    waiting: int = 0


async def drain(
    pool: Pool, court: Court, *, batch: int = BATCH, careful: bool = False, rounds: int | None = None
) -> int:
    """Work off waiting events until none can be claimed. Returns how many were settled. Raises DatabaseUnavailable.

    `careful` tries one event at a time and counts the attempt first: so a worker begins after a crash.
    """
    total = 0
    while rounds is None or rounds > 0:
        done = await (_drain_carefully(pool, court, batch) if careful else _drain_batch(pool, court, batch))
        total += done
        if done == 0:
            break
        rounds = None if rounds is None else rounds - 1
    return total


async def _drain_batch(pool: Pool, court: Court, batch: int) -> int:
    try:
        return await _work(pool, court, batch=batch)
    except UNAVAILABLE:
        raise
    except _Bisect as poisoned:
        return await _bisect(pool, court, poisoned.event_ids, poisoned.cause)


class _Bisect(Exception):
    """A batch failed; its events are tried in halves, so that one bad event stops nobody but itself."""

    def __init__(self, event_ids: list[str], cause: Exception) -> None:
        super().__init__(str(cause))
        self.event_ids, self.cause = event_ids, cause


async def _bisect(pool: Pool, court: Court, event_ids: list[str], cause: Exception) -> int:
    if len(event_ids) == 1:
        log.error("event.failed", event_id=event_ids[0], error=type(cause).__name__)
        async with transaction(pool) as connection:
            await queries.postpone_event(
                connection, event_id=event_ids[0], max_attempts=MAX_ATTEMPTS, error=_our_words(cause)
            )
        return 1
    middle = len(event_ids) // 2
    done = 0
    for half in (event_ids[:middle], event_ids[middle:]):
        try:
            done += await _work(pool, court, event_ids=half)
        except _Bisect as poisoned:
            done += await _bisect(pool, court, poisoned.event_ids, poisoned.cause)
    return done


def _our_words(cause: Exception) -> str:
    """A failure's class and Postgres's code for it; what drivers say beyond that may quote a payload."""
    state = getattr(cause, "sqlstate", None)
    return f"{type(cause).__name__}{f' ({state})' if state else ''}; `finalsale events replay` tries again"


async def _drain_carefully(pool: Pool, court: Court, batch: int) -> int:
    async with transaction(pool) as connection:
        rows = await connection.fetch(queries.claim_events.sql, batch)
    done = 0
    for row in rows:
        async with transaction(pool) as connection:
            state = await connection.fetchval(queries.mark_attempt.sql, MAX_ATTEMPTS, row["event_id"])
        if state == "waiting":
            try:
                done += await _work(pool, court, event_ids=[row["event_id"]])
            except _Bisect as poisoned:
                done += await _bisect(pool, court, poisoned.event_ids, poisoned.cause)
    return done


async def _work(pool: Pool, court: Court, *, batch: int = 0, event_ids: list[str] | None = None) -> int:
    """One transaction: claim, read, settle, mark done. Serialization trouble is tried once more from the start."""
    for attempt in (1, 2, 3):
        claimed: list[str] = []
        started = time.perf_counter()
        try:
            async with transaction(pool) as connection:
                rows = await _claim(connection, batch, event_ids)
                if not rows:
                    return 0
                claimed = [row["event_id"] for row in rows]
                failpoint("after_claim")
                settled = await _settle_events(connection, court, rows)
                failpoint("before_commit")
        except UNAVAILABLE:
            raise
        except (
            asyncpg.SerializationError,
            asyncpg.DeadlockDetectedError,
            asyncpg.InvalidCachedStatementError,
        ) as error:
            if attempt == 3:
                raise _Bisect(claimed, error) from error
            continue
        except Exception as error:
            if not claimed:
                raise
            raise _Bisect(claimed, error) from error
        failpoint("after_commit")
        log.info(
            "drain.batch",
            events=len(claimed),
            **msgspec.structs.asdict(settled),
            ms=round((time.perf_counter() - started) * 1000, 1),
        )
        return len(claimed)
    raise AssertionError("unreachable")


async def _claim(connection: Connection, batch: int, event_ids: list[str] | None) -> list[asyncpg.Record]:
    if event_ids is None:
        return await connection.fetch(queries.claim_events.sql, batch)
    return await connection.fetch(queries.claim_these_events.sql, event_ids)


async def _settle_events(connection: Connection, court: Court, rows: Sequence[asyncpg.Record]) -> Settled:
    facts: dict[str, list[AnyFact]] = defaultdict(list)
    hints: dict[str, list[Hint]] = defaultdict(list)
    outcomes: list[tuple[str, str, str | None]] = []
    for row in rows:
        try:
            told = parse_event(row["payload"])
        except Unreadable as unreadable:
            outcomes.append((row["event_id"], "quarantined", str(unreadable)))
            log.warning("event.quarantined", event_id=row["event_id"], field=unreadable.field)
            continue
        outcomes.append((row["event_id"], "done", None))
        if told.fact is not None:
            facts[row["realm"]].append(told.fact)
        elif told.hint is not None:
            hints[row["realm"]].append(told.hint)
    total = Settled()
    for realm, told_facts in facts.items():
        settled = await settle(connection, court, realm, told_facts)
        for name in Settled.__struct_fields__:
            setattr(total, name, getattr(total, name) + getattr(settled, name))
    for realm, told_hints in hints.items():
        await _want(connection, realm, [(hint.object_type, hint.id, hint.url, 0) for hint in told_hints])
    ids, states, errors = zip(*outcomes, strict=True)
    await connection.execute(queries.settle_events.sql, list(ids), list(states), list(errors))
    return total


async def settle(
    connection: Connection,
    court: Court,
    realm: str,
    told: Iterable[AnyFact],
    *,
    wake: Iterable[str] = (),
    undecided: str | None = None,
) -> Settled:
    """Fold facts into their customers' files, judge every file that changed (or is to be woken), write what follows.

    Must run inside a transaction. Idempotent: the same facts again change nothing. `undecided` is an action whose
    outcome is in doubt: its decision is made anew, as if it had not begun.
    """
    facts = _folded(told)
    owned = await _owners(connection, realm, facts)
    if waiting := await connection.fetch(queries.waiting_for.sql, realm, list(facts)):
        for row in waiting:
            orphan = decode(row["body"])
            facts[orphan.id] = fold(orphan, facts[orphan.id]) if orphan.id in facts else orphan
        owned = await _owners(connection, realm, facts)
    seeds = sorted({*owned.values(), *wake})
    files = await _locked_files(connection, court, realm, facts, owned, seeds)
    changed = await _save(connection, realm, facts, owned, files)
    touched = {owned[id_] for id_ in changed if id_ in owned} | set(wake)
    if undecided is not None:
        touched |= set(owned.values())
    refunds = [fact for id_ in changed if isinstance(fact := files.facts[id_], Refund) and fact.action]
    if refunds:
        await _hear_of_refunds(connection, realm, refunds)
    failpoint("after_fold")
    groups = [group for group in files.groups if not touched.isdisjoint(group)]
    decisions = await _judge(connection, court, realm, groups, files, undecided)
    return Settled(
        facts=len(facts), changed=len(changed), files=len(groups), decisions=decisions, waiting=len(facts) - len(owned)
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
        elif isinstance(fact, Charge):
            owned[id_] = fact.id  # a guest's charge is a file of its own
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
    return owned


class _Files:
    """The customers' files of one settling: every fact by id, its customer, and who belongs to one person."""

    def __init__(self, links: Sequence[tuple[str, str]], customers: Iterable[str]) -> None:
        self.facts: dict[str, AnyFact] = {}
        self.bodies: dict[str, bytes] = {}
        self.by_customer: dict[str, dict[str, AnyFact]] = defaultdict(dict)
        self.groups = _groups(links, customers)


def _groups(links: Sequence[tuple[str, str]], customers: Iterable[str]) -> list[set[str]]:
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
        (owned[id_], _hashed(key))
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
        await connection.execute(queries.lock_keys.sql, sorted(_lock_number(thing) for thing in held))
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
        fact = decode(row["body"])
        files.facts[fact.id], files.bodies[fact.id] = fact, row["body"]
        if row["customer"] is not None:
            files.by_customer[row["customer"]][fact.id] = fact
    return files


def _hashed(key: str) -> str:
    """`person:…`, `email:…` or `card:…` with a hash behind: no personal data in the index, and no character it refuses."""
    kind, _, name = key.partition(":")
    return f"{kind}:{hashlib.blake2b(name.encode(errors='surrogatepass'), digest_size=16).hexdigest()}"


def _lock_number(thing: str) -> int:
    return int.from_bytes(hashlib.blake2b(thing.encode(), digest_size=8).digest(), "big", signed=True)


async def _save(
    connection: Connection, realm: str, facts: dict[str, AnyFact], owned: dict[str, str], files: _Files
) -> list[str]:
    """Fold the facts into what is known and write what changed. Returns the ids that did."""
    columns: list[tuple[Any, ...]] = []
    for id_, fact in facts.items():
        known = files.facts.get(id_)
        folded = fact if known is None else fold(known, fact)
        body = encode(folded)
        customer = owned.get(id_)
        adopted = customer is not None and id_ not in files.by_customer[customer]
        if body == files.bodies.get(id_) and not adopted:
            continue
        files.facts[id_] = folded
        if customer is not None:
            files.by_customer[customer][id_] = folded
        references = (*folded.references(), None, None)
        kind = str(type(folded).__struct_config__.tag)
        columns.append((id_, kind, customer, references[0], references[1], folded.as_of, body))
    if columns:
        await connection.execute(queries.save_objects.sql, realm, *map(list, zip(*columns, strict=True)))
    return [row[0] for row in columns]


async def _hear_of_refunds(connection: Connection, realm: str, refunds: Sequence[Refund]) -> None:
    rows = [(r.action, r.id, r.charge, r.status, r.failure_reason) for r in refunds]
    await connection.execute(queries.hear_of_refunds.sql, *map(list, zip(*rows, strict=True)), realm)


async def _judge(
    connection: Connection, court: Court, realm: str, groups: Sequence[set[str]], files: _Files, undecided: str | None
) -> int:
    """Judge each person's file and write new decisions, actions, look-ups and wake-ups."""
    customers = sorted(set().union(*groups)) if groups else []
    if not customers:
        return 0
    rows = await connection.fetch(queries.begun_actions.sql, realm, customers)
    begun = [row for row in rows if row["id"] != undecided]
    current = {row["subject"]: row for row in await connection.fetch(queries.current_decisions.sql, realm, customers)}
    acted = [Acted(kind=ActionKind(r["kind"]), subject=r["subject"], state=r["state"]) for r in begun]
    frozen = {row["decision_subject"] for row in begun}
    now = datetime.now(UTC)
    news: list[tuple[Decision, int]] = []
    for group in groups:
        facts: list[Fact] = [fact for customer in group for fact in files.by_customer[customer].values()]
        judgement = judge(CustomerFile(facts), court.policy, now, acted=acted, test_clocks=court.test_clocks)
        news += _revisions(judgement.decisions, {s: r for s, r in current.items() if _of(r, group)}, frozen)
        if judgement.wanted:
            await _want(connection, realm, [_lookup(kind, id_) for kind, id_ in sorted(judgement.wanted)])
        if judgement.judge_again_at is not None:
            await queries.wake_later(connection, realm=realm, customer=min(group), due_at=judgement.judge_again_at)
    if news:
        await _write_decisions(connection, court, realm, news)
    return len(news)


def _of(row: asyncpg.Record, group: set[str]) -> bool:
    return msgspec.json.decode(row["body"], type=Decision).customer in group


def _revisions(
    judged: dict[str, Decision], current: dict[str, asyncpg.Record], frozen: set[str]
) -> list[tuple[Decision, int]]:
    """New or changed decisions with their revision; one that the rules no longer make is withdrawn, in words."""
    news = []
    for subject, decision in judged.items():
        known = current.get(subject)
        if known is None or known["fingerprint"] != decision.fingerprint():
            news.append((decision, known["revision"] + 1 if known else 1))
    for subject, row in current.items():
        if subject not in judged and subject not in frozen and row["verdict"] != Verdict.NONE:
            before = msgspec.json.decode(row["body"], type=Decision)
            gone = msgspec.structs.replace(
                before,
                verdict=Verdict.NONE,
                reason=f"Withdrawn: with what is known now, {subject} repeats no payment that still stands.",
                amount=None,
                prepared=(),
                due_at=None,
            )
            news.append((gone, row["revision"] + 1))
    return news


def decision_id(realm: str, subject: str, revision: int) -> str:
    """The id of one revision of a subject's decision: the same wherever the same events were judged."""
    return "dec_" + hashlib.sha256(f"{realm} {subject} {revision}".encode()).hexdigest()[:24]


def action_id(realm: str, kind: str, subject: str) -> str:
    """The id of the one action of a kind about a subject; it travels in the metadata of what we make at Stripe."""
    return "act_" + hashlib.sha256(f"{realm} {kind} {subject}".encode()).hexdigest()[:24]


async def _write_decisions(
    connection: Connection, court: Court, realm: str, news: Sequence[tuple[Decision, int]]
) -> None:
    rows = [
        (
            decision_id(realm, d.subject, revision),
            *(
                d.subject,
                revision,
                d.customer,
                d.clause,
                d.rule,
                str(d.verdict),
                d.policy_version,
                d.fingerprint(),
                as_json(d),
            ),
        )
        for d, revision in news
    ]
    columns = list(map(list, zip(*rows, strict=True)))
    await connection.execute(queries.save_decisions.sql, realm, *columns)
    failpoint("after_decide")
    for decision, revision in news:
        kept = [f"{step.kind} {step.subject}" for step in decision.prepared]
        await connection.execute(
            queries.withdraw_actions.sql, "its decision fell away or changed", realm, decision.subject, kept
        )
        for step in decision.prepared:
            await queries.save_action(
                connection,
                id=action_id(realm, step.kind, step.subject),
                realm=realm,
                kind=str(step.kind),
                subject=step.subject,
                decision_subject=decision.subject,
                decision_id=decision_id(realm, decision.subject, revision),
                customer=step.customer,
                amount_minor=step.amount.minor if step.amount else None,
                currency=step.amount.currency if step.amount else None,
                state="planned" if decision.verdict is Verdict.REFUND and court.refunds == "auto" else "proposed",
                due_at=decision.due_at,
                sure=decision.verdict is Verdict.REFUND,
            )
        log.info(
            "decision.made",
            decision_id=decision_id(realm, decision.subject, revision),
            subject=decision.subject,
            customer=decision.customer,
            rule=decision.rule,
            verdict=str(decision.verdict),
            amount=str(decision.amount) if decision.amount else None,
        )


def _lookup(kind: str, id_: str) -> tuple[str, str, str, int]:
    match kind:
        case "balance":
            return kind, id_, f"/v1/customers/{id_}/balance_transactions", 0
        case "invoice":
            return kind, id_, f"/v1/invoices/{id_}", LOOKUP_DELAY_S
        case _:
            return kind, id_, f"/v1/{kind}s/{id_}", LOOKUP_DELAY_S


async def _want(connection: Connection, realm: str, wanted: Sequence[tuple[str, str, str, int]]) -> None:
    unique = sorted({(kind, id_): (kind, id_, url, delay_s) for kind, id_, url, delay_s in wanted}.values())
    await connection.execute(queries.want_lookups.sql, realm, *map(list, zip(*unique, strict=True)))
