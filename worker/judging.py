"""Files judged, and what follows written: decisions with their revisions, actions, look-ups, wake-ups, accounts.

Runs inside `settle`, under its locks. Decisions are append-only; an action follows its decision until it is begun.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

import asyncpg
import msgspec
import structlog

from handlers.customer import AnyFact, CustomerId, Fact, Refund
from handlers.decisions import Acted, ActionKind, Decision, Judgement, Verdict, as_json
from handlers.judgement import Ours, judge_person
from handlers.terms import Policy
from worker.accounts import load_books, write_accounts
from worker.db import Connection, columns, queries
from worker.failpoint import failpoint

LOOKUP_DELAY_S = 30
"""A missing object is usually in the next event; Stripe is asked only where it has not come by then."""
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


async def judge_groups(
    connection: Connection,
    court: Court,
    realm: str,
    groups: Sequence[set[str]],
    by_customer: Mapping[str, Mapping[str, AnyFact]],
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
            CustomerId(customer): list(by_customer[customer].values()) for customer in group
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
        await want(connection, realm, [_lookup(kind, id_) for kind, id_ in sorted(wanted)])
    if news:
        await _write_decisions(connection, court, realm, news, _handed_over(news, judgements, current))
    await _write_paid_periods(connection, realm, groups, judgements)
    return len(news), await write_accounts(connection, realm, now, judgements, books)


async def _write_paid_periods(
    connection: Connection, realm: str, groups: Sequence[set[str]], judgements: Sequence[Judgement]
) -> None:
    rows = [
        (p.charge, p.thing, min(group), p.customer, p.amount_minor, p.currency, p.paid_at, p.start, p.end)
        for group, judgement in zip(groups, judgements, strict=True)
        for p in judgement.paid
    ]
    if rows:
        await connection.execute(queries.save_paid_periods.sql, *columns(rows), realm)


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
    await connection.execute(queries.save_decisions.sql, realm, *columns(rows))
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


ONE_STEP = re.compile(r"(?!\.+\Z)[^\s/?#\\]{1,255}")
"""What an id may be to stand as one step of a path; customers' ids may be the merchant's own."""
_PATHS = {"checkout.session": "checkout/sessions", "radar.early_fraud_warning": "radar/early_fraud_warnings"}


def path_of(kind: str, id_: str) -> str:
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
    return kind, id_, path_of(kind, id_), 0 if kind in ("balance", "session_lines") else LOOKUP_DELAY_S


async def want(connection: Connection, realm: str, wanted: Sequence[tuple[str, str, str, int]]) -> None:
    """Ask for objects to be read from Stripe: kind, id, path, and after how many seconds. Asked twice, it is read once."""
    unique = sorted({(kind, id_): (kind, id_, path, delay_s) for kind, id_, path, delay_s in wanted}.values())
    await connection.execute(queries.want_lookups.sql, realm, *columns(unique))
