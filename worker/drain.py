"""From stored events to files, decisions and actions: claim, fold, judge, write, in one transaction per batch.

`settle` is the one door through which facts come in, whoever brings them: webhooks, last looks, look-ups, the nightly run.
Everything in it holds under locks on the customers concerned and on every key that may tie them to others, taken in
sorted order, so two workers never judge one person at the same moment.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

import asyncpg
import msgspec
import structlog

from handlers.customer import AnyFact, Charge, CustomerFile, CustomerId, Fact, Refund, customer_of, decode, encode, fold
from handlers.decisions import Acted, ActionKind, Decision, Judgement, Verdict, as_json
from handlers.events import Hint, Unreadable, parse_event
from handlers.identity import link_keys
from handlers.judgement import Ours, judge_person
from handlers.news import refund_news
from handlers.refunds import survivor_of
from handlers.terms import Policy
from worker.accounts import load_books, write_accounts
from worker.db import Connection, Pool, queries, transaction
from worker.errors import DatabaseUnavailable
from worker.failpoint import failpoint
from worker.inbox import unpack
from worker.notices import write_notices

BATCH = 200
MAX_ATTEMPTS = 8
SUSPECT_FROM = 2
"""Attempts after which an event is tried alone when a worker begins after another one's death."""
LOOKUP_DELAY_S = 30
"""A missing object is usually in the next event; Stripe is asked only where it has not come by then."""
MAX_LOCK_ROUNDS = 6
WITHDRAWN = "Withdrawn"
"""How the reason of a decision begins that the rules no longer make."""
MUST_DECIDE = "A person must decide: "
"""How the reason of a review begins to list its doubts."""

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


async def drain(
    pool: Pool, court: Court, *, batch: int = BATCH, careful: bool = False, rounds: int | None = None
) -> int:
    """Work off waiting events until none can be claimed. Returns how many were settled. Raises DatabaseUnavailable.

    `careful` counts the attempts first, and tries alone what was counted before: so a worker begins after a crash.
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
        done += await _attempt(pool, court, half)
    return done


def _our_words(cause: Exception) -> str:
    """A failure's class and Postgres's code for it; what drivers say beyond that may quote a payload."""
    state = getattr(cause, "sqlstate", None)
    return f"{type(cause).__name__}{f' ({state})' if state else ''}; `finalsale events replay` tries again"


async def _drain_carefully(pool: Pool, court: Court, batch: int) -> int:
    """One batch whose events are counted before they are touched; those that were counted before are tried alone."""
    async with transaction(pool) as connection:
        rows = await connection.fetch(queries.claim_events.sql, batch)
        suspects = [row["event_id"] for row in rows if row["attempts"] >= SUSPECT_FROM]
        others = [row["event_id"] for row in rows if row["attempts"] < SUSPECT_FROM]
        await connection.execute(queries.mark_attempts.sql, others)
    done = await _attempt(pool, court, others) if others else 0
    for event_id in suspects:
        async with transaction(pool) as connection:
            state = await connection.fetchval(queries.mark_attempt.sql, MAX_ATTEMPTS, event_id)
        if state == "waiting":
            done += await _attempt(pool, court, [event_id])
    return done


async def _attempt(pool: Pool, court: Court, event_ids: list[str]) -> int:
    try:
        return await _work(pool, court, event_ids=event_ids)
    except _Bisect as poisoned:
        return await _bisect(pool, court, poisoned.event_ids, poisoned.cause)


async def _work(pool: Pool, court: Court, *, batch: int = 0, event_ids: list[str] | None = None) -> int:
    """One transaction: claim, read, settle, mark done. What only met another worker is tried again from the start."""
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
        except DatabaseUnavailable as unavailable:
            cause = unavailable.__cause__
            if claimed and isinstance(cause, Exception) and is_about_these(cause):
                raise _Bisect(claimed, cause) from cause
            raise  # nothing is known against the events: they stay as they are
        except (
            asyncpg.SerializationError,
            asyncpg.DeadlockDetectedError,
            asyncpg.InvalidCachedStatementError,
            Overtaken,
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


def is_about_these(cause: BaseException | None) -> bool:
    """Whether a Postgres that answers refused these very values, or found the work on them too long."""
    refused_value = isinstance(cause, asyncpg.InterfaceError) and isinstance(cause, ValueError)
    return refused_value or isinstance(cause, (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError))


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
            told = parse_event(unpack(row["payload"]))
        except Unreadable as unreadable:
            outcomes.append((row["event_id"], "quarantined", str(unreadable)))
            log.warning("event.quarantined", event_id=row["event_id"], field=unreadable.field)
            continue
        if told.hint is not None and not _ONE_STEP.fullmatch(told.hint.id):
            outcomes.append((row["event_id"], "quarantined", "event: related_object.id: is no Stripe id"))
            continue
        outcomes.append((row["event_id"], "done", None))
        if told.fact is not None:
            facts[row["realm"]].append(told.fact)
        elif told.hint is not None:
            hints[row["realm"]].append(told.hint)
    total = Settled()
    for realm, told_facts in sorted(facts.items()):  # sorted, as everything that takes locks
        settled = await settle(connection, court, realm, told_facts)
        for name in Settled.__struct_fields__:
            setattr(total, name, getattr(total, name) + getattr(settled, name))
    for realm, told_hints in sorted(hints.items()):
        await _want(connection, realm, [(h.object_type, h.id, _path(h.object_type, h.id), 0) for h in told_hints])
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
            orphan = decode(row["body"])
            facts[orphan.id] = fold(orphan, facts[orphan.id]) if orphan.id in facts else orphan
        owned = await _owners(connection, realm, facts)
    woken = sorted(wake)
    seeds = sorted({*owned.values(), *woken, *left})
    files = await _locked_files(connection, court, realm, facts, owned, seeds)
    if woken:
        await connection.execute(queries.wake_now.sql, realm, woken)
    changed = await _save(connection, realm, facts, owned, files)
    touched = {owned[id_] for id_ in changed if id_ in owned} | set(woken) | left
    if undecided is not None:
        touched |= set(owned.values())
    refunds = [fact for id_ in changed if isinstance(fact := files.facts[id_], Refund) and fact.action]
    if refunds:
        await _hear_of_refunds(connection, realm, refunds)
    failpoint("after_fold")
    groups = [group for group in files.groups if not touched.isdisjoint(group)]
    decisions, entries = await _judge(connection, court, realm, groups, files, undecided)
    if refunds:
        await _tell_of_refunds(connection, realm, refunds, files)
    return Settled(
        facts=len(facts),
        changed=len(changed),
        files=len(groups),
        decisions=decisions,
        entries=entries,
        waiting=len(facts) - len(owned),
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
        fact = decode(row["body"])
        files.facts[fact.id], files.bodies[fact.id], files.versions[fact.id] = fact, row["body"], row["version"]
        if row["customer"] is not None:
            files.owners[fact.id] = row["customer"]
            files.by_customer[row["customer"]][fact.id] = fact
    return files


def _hashed(key: str) -> str:
    """`person:…`, `email:…` or `card:…` with a hash behind: no personal data in the index, and no character it refuses."""
    kind, _, name = key.partition(":")
    return f"{kind}:{hashlib.blake2b(name.encode(errors='surrogatepass'), digest_size=16).hexdigest()}"


def lock_number(thing: str) -> int:
    """The advisory lock of a thing, named with its realm or its kind: 64 bits, so that two things hardly ever share one."""
    return int.from_bytes(hashlib.blake2b(thing.encode(), digest_size=8).digest(), "big", signed=True)


async def _save(
    connection: Connection, realm: str, facts: dict[str, AnyFact], owned: dict[str, str], files: _Files
) -> list[str]:
    """Fold the facts into what is known and write what changed. Returns the ids that did. Raises Overtaken."""
    new: list[tuple[Any, ...]] = []
    known_rows: list[tuple[Any, ...]] = []
    for id_, fact in sorted(facts.items()):
        known = files.facts.get(id_)
        folded = fact if known is None else fold(known, fact)
        body = encode(folded)
        customer = owned.get(id_)
        adopted = customer is not None and id_ not in files.by_customer[customer]
        if body == files.bodies.get(id_) and not adopted:
            continue
        files.facts[id_] = folded
        if customer is not None:
            if adopted and (before := files.owners.get(id_)):
                del files.by_customer[before][id_]
            files.by_customer[customer][id_] = folded
        references = (*folded.references(), None, None)
        row = (customer, references[0], references[1], folded.as_of, body)
        if known is None:
            new.append((id_, str(type(folded).__struct_config__.tag), *row))
        else:
            known_rows.append((id_, *row, files.versions[id_]))
    written = 0
    if new:
        written += len(await connection.fetch(queries.insert_objects.sql, realm, *_columns(new)))
    if known_rows:
        written += len(await connection.fetch(queries.update_objects.sql, *_columns(known_rows), realm))
    if written < len(new) + len(known_rows):
        raise Overtaken(f"{len(new) + len(known_rows) - written} objects were changed by another worker meanwhile")
    return [row[0] for row in (*new, *known_rows)]


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return list(map(list, zip(*rows, strict=True)))


async def _hear_of_refunds(connection: Connection, realm: str, refunds: Sequence[Refund]) -> None:
    rows = [(r.action, r.id, r.charge, r.status, r.failure_reason) for r in refunds]
    await connection.execute(queries.hear_of_refunds.sql, *_columns(rows), realm)


async def _tell_of_refunds(connection: Connection, realm: str, refunds: Sequence[Refund], files: _Files) -> None:
    """The merchant's app hears of our refunds once Stripe has told of them."""
    made = {r.action: r for r in refunds if r.action is not None and r.live and is_ours(realm, r)}
    notices = []
    for row in await connection.fetch(queries.refunds_made.sql, realm, list(made)) if made else []:
        decision, refund = msgspec.json.decode(row["body"], type=Decision), made[row["action"]]
        kept = survivor_of(CustomerFile(files.facts.values()), decision)
        notices.append(refund_news(refund, decision, ended=row["ended"], kept=kept))
    await write_notices(connection, realm, notices)


async def _judge(
    connection: Connection,
    court: Court,
    realm: str,
    groups: Sequence[set[str]],
    files: _Files,
    undecided: tuple[str, str] | None,
) -> tuple[int, int]:
    """Judge each person's file and write what follows. Returns how many decisions and entries were new."""
    customers = sorted(set().union(*groups)) if groups else []
    if not customers:
        return 0, 0
    rows = await connection.fetch(queries.begun_actions.sql, realm, customers)
    begun = [row for row in rows if (row["decision_subject"], row["kind"]) != undecided]
    current = {row["subject"]: row for row in await connection.fetch(queries.current_decisions.sql, realm, customers)}
    acted = tuple(Acted(kind=ActionKind(r["kind"]), subject=r["subject"], state=r["state"]) for r in begun)
    frozen = {(row["decision_subject"], row["kind"], row["subject"]) for row in begun}
    now: datetime = await queries.moment_of(connection, realm=realm)
    books = await load_books(connection, realm, customers)
    judgements: list[Judgement] = []
    for group in groups:
        facts: dict[CustomerId, list[Fact]] = {
            CustomerId(customer): list(files.by_customer[customer].values()) for customer in group
        }
        ours = Ours(
            acted=acted,
            acts=books.acts_of(group),
            outages=books.outages,
            balances=books.balances_of(group),
            is_ours=lambda refund: is_ours(realm, refund),
        )
        judgement = judge_person(facts, court.policy, now, ours, test_clocks=court.test_clocks)
        judgements.append(judgement)
        if judgement.judge_again_at is not None:
            await queries.wake_later(connection, realm=realm, customer=min(group), due_at=judgement.judge_again_at)
    strangers = [subject for judgement in judgements for subject in judgement.decisions if subject not in current]
    if strangers:  # decided before under another customer, as a guest's charge is
        told = await connection.fetch(queries.current_decisions_about.sql, realm, strangers)
        current |= {row["subject"]: row for row in told}
    judged = {subject for judgement in judgements for subject in judgement.decisions}
    news: list[_News] = []
    for group, judgement in zip(groups, judgements, strict=True):
        others = judged - judgement.decisions.keys()
        known = {
            s: r for s, r in current.items() if s in judgement.decisions or (s not in others and r["customer"] in group)
        }
        news += _revisions(judgement.decisions, known, frozen)
    wanted = frozenset().union(*(judgement.wanted for judgement in judgements))
    if wanted:
        await _want(connection, realm, [_lookup(kind, id_) for kind, id_ in sorted(wanted)])
    if news:
        await _write_decisions(connection, court, realm, news, _handed_over(news, judgements, current))
    return len(news), await write_accounts(connection, realm, now, judgements, books)


def is_ours(realm: str, refund: Refund) -> bool:
    """Whether a refund carries the id of the one action that could have made it: a copied id names another charge."""
    if refund.action is None:
        return False
    return refund.charge is None or refund.action == action_id(realm, ActionKind.REFUND, refund.charge)


class _News(msgspec.Struct, frozen=True):
    """A decision to be written as this revision. `agreed`: it brings nothing that would take a person's approval back."""

    decision: Decision
    revision: int
    agreed: bool = False


def _revisions(
    judged: dict[str, Decision], current: dict[str, asyncpg.Record], begun: set[tuple[str, str, str]]
) -> list[_News]:
    """New or changed decisions with their revision; one that the rules no longer make is withdrawn, in words.

    `begun` are the steps under way, as (decision's subject, kind, subject). A decision of theirs stands as long as the
    rules still want its other steps, and have no new doubt.
    """
    news = []
    frozen = {subject for subject, _, _ in begun}
    past = {
        subject for subject, kind, _ in begun if kind != ActionKind.REVERSE_BALANCE_CREDIT
    }  # no rule speaks of them again
    for subject, decision in judged.items():
        row = current.get(subject)
        if row is None:
            news.append(_News(decision, 1))
        elif row["fingerprint"] != decision.fingerprint():
            known = msgspec.json.decode(row["body"], type=Decision)
            agreed = _agrees(decision, known)
            rest = tuple(step for step in known.prepared if (subject, step.kind, step.subject) not in begun)
            if not (subject in frozen and agreed and decision.prepared == rest):
                news.append(_News(decision, row["revision"] + 1, agreed))
    for subject, row in current.items():
        if subject not in judged and subject not in past:
            before = msgspec.json.decode(row["body"], type=Decision)
            if before.reason.startswith(WITHDRAWN):
                continue
            gone = msgspec.structs.replace(
                before,
                verdict=Verdict.NONE,
                reason=_withdrawn(before),
                amount=None,
                prepared=(),
                due_at=None,
            )
            news.append(_News(gone, row["revision"] + 1))
    return news


def _withdrawn(before: Decision) -> str:
    about = (
        "repeats no payment that still stands" if before.clause == "4.3" else f"is no matter of clause {before.clause}"
    )
    return f"{WITHDRAWN}: with what is known now, {before.subject} {about}."


def _agrees(decision: Decision, known: Decision) -> bool:
    """Whether a decision is as sure as the known one, or surer, about the same two payments."""
    same = (decision.original, decision.duplicate) == (known.original, known.duplicate)
    surer = decision.verdict is Verdict.REFUND or (
        decision.verdict is known.verdict and _doubts(decision) <= _doubts(known)
    )
    return same and surer


def _doubts(decision: Decision) -> frozenset[str]:
    return frozenset(decision.reason.partition(MUST_DECIDE)[2].rstrip(".").split("; "))


def decision_id(realm: str, subject: str, revision: int) -> str:
    """The id of one revision of a subject's decision: the same wherever the same events were judged."""
    return "dec_" + hashlib.sha256(f"{realm} {subject} {revision}".encode()).hexdigest()[:24]


def action_id(realm: str, kind: str, subject: str) -> str:
    """The id of the one action of a kind about a subject; it travels in the metadata of what we make at Stripe."""
    return "act_" + hashlib.sha256(f"{realm} {kind} {subject}".encode()).hexdigest()[:24]


def _handed_over(
    news: Sequence[_News], judgements: Sequence[Judgement], current: Mapping[str, asyncpg.Record]
) -> list[_News]:
    """Unchanged decisions with the steps that a changed one let go of: two may prepare one step, and its row names one."""
    changed = {new.decision.subject for new in news}
    known = [msgspec.json.decode(current[subject]["body"], type=Decision) for subject in changed & current.keys()]
    let_go = {(step.kind, step.subject) for decision in known for step in decision.prepared}
    let_go -= {(step.kind, step.subject) for new in news for step in new.decision.prepared}
    found = []
    for judgement in judgements if let_go else ():
        for subject, decision in judgement.decisions.items():
            row = current.get(subject)
            steps = tuple(step for step in decision.prepared if (step.kind, step.subject) in let_go)
            if steps and row is not None and subject not in changed and row["fingerprint"] == decision.fingerprint():
                found.append(_News(msgspec.structs.replace(decision, prepared=steps), row["revision"]))
    return found


async def _write_decisions(
    connection: Connection, court: Court, realm: str, news: Sequence[_News], handed_over: Sequence[_News]
) -> None:
    rows: list[tuple[Any, ...]] = []
    for new in news:
        d, id_ = new.decision, decision_id(realm, new.decision.subject, new.revision)
        told = (d.customer, d.clause, d.rule, str(d.verdict), d.policy_version, d.fingerprint(), as_json(d))
        rows.append((id_, d.subject, new.revision, *told))
    await connection.execute(queries.save_decisions.sql, realm, *_columns(rows))
    failpoint("after_decide")
    subjects = [new.decision.subject for new in news if new.revision > 1] + [
        new.decision.subject for new in handed_over
    ]
    refused = await connection.fetch(queries.rejected_subjects.sql, realm, subjects) if subjects else []
    rejected = {row["subject"] for row in refused}
    for new in news:
        kept = [f"{step.kind} {step.subject}" for step in new.decision.prepared]
        await connection.execute(
            queries.withdraw_actions.sql, "its decision fell away or changed", realm, new.decision.subject, kept
        )
    taken_up = [new for new in handed_over if new.decision.subject not in rejected]
    for new in (*taken_up, *news):
        decision, revision = new.decision, new.revision
        by_itself = decision.verdict is Verdict.REFUND and court.refunds == "auto" and decision.subject not in rejected
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
                state="planned" if by_itself else "proposed",
                due_at=decision.due_at,
                agreed=new.agreed,
            )
    for new in news:
        decision, revision = new.decision, new.revision
        log.info(
            "decision.made",
            decision_id=decision_id(realm, decision.subject, revision),
            subject=decision.subject,
            customer=decision.customer,
            rule=decision.rule,
            verdict=str(decision.verdict),
            amount=str(decision.amount) if decision.amount else None,
        )


_ONE_STEP = re.compile(r"(?!\.+\Z)[^\s/?#\\]{1,255}")
"""What an id may be to stand as one step of a path; customers' ids may be the merchant's own."""
_PATHS = {"checkout.session": "checkout/sessions", "radar.early_fraud_warning": "radar/early_fraud_warnings"}


def _path(kind: str, id_: str) -> str:
    """Where an object is read: by its type and id, never by an address that an event named."""
    step = quote(id_, safe="")
    match kind:
        case "balance":
            return f"/v1/customers/{step}/balance_transactions"
        case "session_lines":
            return f"/v1/checkout/sessions/{step}/line_items"
        case _:
            return f"/v1/{_PATHS.get(kind, kind + 's')}/{step}"


def _lookup(kind: str, id_: str) -> tuple[str, str, str, int]:
    return kind, id_, _path(kind, id_), 0 if kind in ("balance", "session_lines") else LOOKUP_DELAY_S


async def _want(connection: Connection, realm: str, wanted: Sequence[tuple[str, str, str, int]]) -> None:
    unique = sorted({(kind, id_): (kind, id_, path, delay_s) for kind, id_, path, delay_s in wanted}.values())
    await connection.execute(queries.want_lookups.sql, realm, *_columns(unique))
