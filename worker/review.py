"""What people say about decisions: the queue that waits for them, and approve, reject and note, each with a name (4.3, rule 9).

Every act holds the lock that judging the same customer takes, looks whether the decision is still the one in force, and
changes rows in the same transaction; what is sent in the end is still decided by the performer's last look (rule 8).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import asyncpg
import msgspec

from handlers.customer import Charge, CustomerFile, Seconds, decode, decode_known
from handlers.decisions import ActionKind, Decision, Money, Verdict
from handlers.payments import payments_of
from handlers.terms import Policy
from worker import audit
from worker.db import Connection, queries
from worker.errors import Permanent
from worker.judging import action_id
from worker.operators import folded, known_to_decide
from worker.reading import (
    Document,
    NotFound,
    action_story,
    actions_by_decision,
    acts_by_decision,
    amount_of,
    decoded,
    fetch,
)
from worker.settle import lock_number

OPEN_STATES = ("proposed", "review", "failed")
"""States of an action in which it waits for a person."""
MIN_PREFIX = 8
"""`dec_` and four more characters: fewer would make a typing error a decision."""
MAX_NAME, MAX_NOTE = 100, 2000


class ActRefused(Permanent):
    """What a person wanted cannot be done now; the message says why, and what can."""

    error_code = "act_refused"


class Case(msgspec.Struct, kw_only=True):
    """One decision in force with its actions, locked, and what was said about it."""

    id: str
    realm: str
    decision: Decision
    actions: list[asyncpg.Record]
    acts: list[Document]

    def in_state(self, *states: str) -> list[asyncpg.Record]:
        """Its own actions in some states."""
        return [a for a in self.actions if a["state"] in states and a["decision_subject"] == self.decision.subject]

    def said(self, act: str) -> list[Document]:
        """Acts of one kind, oldest first."""
        return [said for said in self.acts if said["act"] == act]


# the queue ---------------------------------------------------------------------------------------------------------------


async def waiting(conn: Connection, realms: Sequence[str], policy: Policy) -> list[Document]:
    """Everything that waits for a person, longest first: the decision, its actions, what was said, and how to answer."""
    return await described(conn, realms, policy, await fetch(conn, queries.read_waiting, realms=list(realms)))


async def described(
    conn: Connection, realms: Sequence[str], policy: Policy, rows: Sequence[asyncpg.Record]
) -> list[Document]:
    """Some decisions in force as a person decides about them: the actions, what was said, and how to answer."""
    actions = await actions_by_decision(conn, realms, rows)
    acts = await acts_by_decision(conn, [row["id"] for row in rows])
    paid_at = await _paid_at(conn, realms, [charge for row in rows if (charge := decoded(row).duplicate)])
    now = datetime.now(UTC)
    found = []
    for row in rows:
        decision, mine = decoded(row), actions[row["realm"], row["subject"]]
        open_ = [action for action in mine if action["state"] in OPEN_STATES]
        case = Case(id=row["id"], realm=row["realm"], decision=decision, actions=mine, acts=acts[row["id"]])
        prepared = [a for a in open_ if a["kind"] == "refund"]
        nothing_prepared = not open_ and _refundable(decision) is not None
        two = _needs_two(policy, decision, _refund_sums(prepared), paid_at.get(decision.duplicate or ""))
        found.append(
            {
                "id": row["id"],
                "subject": decision.subject,
                "customer": decision.customer,
                "clause": decision.clause,
                "rule": decision.rule,
                "verdict": str(decision.verdict),
                "policy_version": decision.policy_version,
                "reason": decision.reason,
                "amount": amount_of(decision.amount),
                "original": decision.original,
                "duplicate": decision.duplicate,
                "decided_at": row["decided_at"],
                "age_s": max(int((now - row["decided_at"]).total_seconds()), 0),
                "problems": [action["error"] for action in open_ if action["error"]],
                "actions": [action_story(action) for action in mine],
                "acts": case.acts,
                "approved_by": _fresh_names(case, open_),
                "two_persons": None if nothing_prepared else two,
                "approve": _how_to_approve(case, open_),
                "needs_amount": nothing_prepared,
                "etag": etag_of(open_),
                "reject": f"finalsale review reject {row['id']} --by NAME",
                "look": _look(decision),
            }
        )
    return found


def etag_of(open_: Iterable[asyncpg.Record]) -> str:
    """What a person saw of the actions that an answer is about: the same as long as nothing happened to them."""
    seen = sorted(
        (a["id"], a["state"], a["amount_minor"] or 0, a["currency"] or "", a["error"] or "", str(a["first_sent_at"]))
        for a in open_
    )
    return hashlib.sha256(msgspec.json.encode(seen)).hexdigest()[:20]


def _refundable(decision: Decision) -> str | None:
    """The charge of which a person may give back a part that no rule could prove; None where no clause lets money go back.

    Only 4.3 does, in a decision about the payment itself: one about an end (1), a hand refund (2, 6) or a dispute (7) only
    names a payment.
    """
    return decision.duplicate if decision.clause == "4.3" and decision.subject == decision.duplicate else None


def _how_to_approve(case: Case, open_: Sequence[asyncpg.Record]) -> str:
    """The command of a yes, or in words why there is none."""
    if not open_ and _refundable(case.decision) is None:
        return "nothing to approve: no clause gives money back for it; settle it, then close it as below"
    if any(action["stripe_id"] is not None for action in open_):
        return "nothing to approve: what was carried out is not repeated; settle it another way, then close it as below"
    return f"finalsale review approve {case.id} --by NAME" + ("" if open_ else " --amount MINOR")


def _look(decision: Decision) -> str:
    """The command that shows what a decision is about."""
    return f"finalsale {'chargebacks show' if decision.clause == '7' else 'explain'} {decision.subject}"


async def _paid_at(conn: Connection, realms: Sequence[str], charges: Sequence[str]) -> dict[str, Seconds]:
    rows = await fetch(conn, queries.find_objects, realms=list(realms), ids=list(charges))
    return {row["id"]: fact.created for row in rows if isinstance(fact := decode(row["body"]), Charge)}


def _refund_sums(actions: Iterable[asyncpg.Record]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for action in actions:
        sums[action["currency"]] = sums.get(action["currency"], 0) + action["amount_minor"]
    return sums


def _needs_two(policy: Policy, decision: Decision, sums: Mapping[str, int], paid_at: Seconds | None) -> bool:
    """Rule 9: above the limit of the version that judged it, or where that names none for the currency, two names."""
    version = next((v for v in policy.version if v.id == decision.policy_version), None)
    limits = version.refunds.two_persons if version else {}
    terms = policy.terms_for(decision.customer, paid_at) if paid_at is not None else None
    if terms is not None and terms.version == decision.policy_version:
        limits = terms.refunds.two_persons  # an agreement may lie over the version (clause 8)
    return any(currency not in limits or minor > limits[currency] for currency, minor in sums.items())


# the acts ----------------------------------------------------------------------------------------------------------------


async def approve(
    conn: Connection,
    policy: Policy,
    realms: Sequence[str],
    id_: str,
    *,
    by: str,
    note: str = "",
    amount_minor: int | None = None,
    via: str = "cli",
    etag: str | None = None,
) -> Document:
    """A person's yes: the decision's waiting actions become due now, above the two-person limit with the second name.

    Must run inside a transaction. `amount_minor` is needed, and only allowed, where no refund could be prepared. `etag` is
    that of the page which the person answers. Raises NotFound, ActRefused.
    """
    name = named(by)
    case = await _lock(conn, realms, id_)
    _refuse_stale(case, etag)
    open_, before = _approvable(case, amount_minor), _states(case)
    if amount_minor is not None:
        open_ = await _with_refund(conn, case, open_, amount_minor)
    _refuse_second_sending(case, open_)
    paid_at = (await _paid_at(conn, [case.realm], [case.decision.duplicate or ""])).get(case.decision.duplicate or "")
    sums = _refund_sums(action for action in open_ if action["kind"] == "refund")
    names, persons = _fresh_names(case, open_), 2 if _needs_two(policy, case.decision, sums, paid_at) else 1
    await _refuse_as_second(conn, case, name, names, known=persons > 1 and via == "cli")
    names.append(name)
    await queries.save_act(conn, decision_id=case.id, act="approve", by_name=name, note=said_why(note))
    planned = []
    if len(names) >= persons:
        rows = await fetch(conn, queries.plan_actions, ids=[action["id"] for action in open_], names=names)
        planned = [row["id"] for row in rows]
        assert len(planned) == len(open_), "an action changed while it was locked"
    after = {"planned": planned, "approved_by": names, "persons_needed": persons, "amount_minor": amount_minor}
    await _record(conn, case, "approve", name, via, note, before, after)
    return await _outcome(conn, case, "approve", name) | {
        "persons_needed": persons,
        "approved_by": names,
        "planned": planned,
    }


def _refuse_stale(case: Case, etag: str | None) -> None:
    if etag is not None and etag != etag_of(case.in_state(*OPEN_STATES)):
        raise ActRefused(
            f"{case.id} has changed since your page was made: {_state_of_things(case)} Look again, then decide."
        )


async def reject(
    conn: Connection,
    realms: Sequence[str],
    id_: str,
    *,
    by: str,
    note: str = "",
    via: str = "cli",
    etag: str | None = None,
) -> Document:
    """A person's no: what was not sent is withdrawn, and the review is closed. Must run inside a transaction.

    What Stripe was asked for before, and refused, is closed too. Raises NotFound, ActRefused.
    """
    name = named(by)
    case = await _lock(conn, realms, id_)
    _refuse_stale(case, etag)
    _refuse_if_rejected(case)
    if sending := case.in_state("sending"):
        raise ActRefused(f"{sending[0]['id']} of {case.id} is being sent at this moment: look again in a minute.")
    unsent = case.in_state("planned", *OPEN_STATES)
    if not unsent and (case.decision.verdict is not Verdict.REVIEW or case.said("approve")):
        raise ActRefused(f"Nothing of {case.id} waits any more: {_state_of_things(case)}")
    await queries.save_act(conn, decision_id=case.id, act="reject", by_name=name, note=said_why(note))
    rows = await fetch(
        conn, queries.close_actions, ids=[action["id"] for action in unsent], error=f"rejected by {name}"
    )
    withdrawn = [row["id"] for row in rows]
    await _record(conn, case, "reject", name, via, note, _states(case), {"withdrawn": withdrawn})
    return await _outcome(conn, case, "reject", name) | {"withdrawn": withdrawn}


async def note(conn: Connection, realms: Sequence[str], id_: str, *, by: str, text: str, via: str = "cli") -> Document:
    """A note on a decision, which changes nothing. Must run inside a transaction. Raises NotFound, ActRefused."""
    name, said = named(by), said_why(text)
    if not said:
        raise ActRefused("The note is empty: write it with --note TEXT.")
    case = await _lock(conn, realms, id_)
    await queries.save_act(conn, decision_id=case.id, act="note", by_name=name, note=said)
    await _record(conn, case, "note", name, via, said, None, None)
    return await _outcome(conn, case, "note", name)


async def pause(
    conn: Connection, *, on: bool, by: str, reason: str = "", via: str = "cli", etag: str | None = None
) -> None:
    """Stop every refund before it is sent, or let them go again (rule 6). Raises ActRefused without a name.

    `etag`: when the switch was set that the person saw, ISO 8601 or empty. One that was set anew since is left alone.
    """
    name, why = named(by), said_why(reason)
    row = await queries.lock_pause_switch(conn)
    was = row is not None and row["is_on"]
    if row is not None and etag is not None and etag != row["set_at"].isoformat():
        state = "paused anew" if was else "let go again"
        raise ActRefused(
            f"Refunds were {state} by {row['by_name']} at {row['set_at']:%Y-%m-%d %H:%M:%S} UTC, after your page was made"
            + (f": {row['reason']}" if row["reason"] else "")
            + ". Look again, then decide."
        )
    await queries.set_pause_switch(conn, is_on=on, by_name=name, reason=why)
    await audit.record(
        conn,
        audit.EVERYWHERE,
        by=name,
        via=via,
        act="refunds.pause" if on else "refunds.resume",
        subject="refunds",
        reason=why,
        before={"paused": was},
        after={"paused": on},
    )


def _states(case: Case) -> Document:
    """What the actions of a decision are before a person acts."""
    return {"actions": {action["id"]: action["state"] for action in case.actions}}


async def _record(
    conn: Connection,
    case: Case,
    act: str,
    name: str,
    via: str,
    why: str,
    before: Document | None,
    after: Document | None,
) -> None:
    await audit.record(
        conn,
        case.realm,
        by=name,
        via=via,
        act=f"review.{act}",
        subject=case.id,
        reason=said_why(why),
        before=before,
        after=after,
    )


async def _outcome(conn: Connection, case: Case, act: str, name: str) -> Document:
    rows = await fetch(conn, queries.read_actions, realms=[case.realm], subjects=[case.decision.subject])
    return {
        "id": case.id,
        "subject": case.decision.subject,
        "act": act,
        "by": name,
        "refunds_paused": bool(await queries.is_paused(conn)),
        "actions": [action_story(row) for row in rows],
    }


# finding and locking -----------------------------------------------------------------------------------------------------


async def _lock(conn: Connection, realms: Sequence[str], id_: str) -> Case:
    """The decision in force that `id_` means, with nobody else judging or changing it until the transaction ends."""
    found = await find(conn, realms, id_)
    await queries.lock_keys(conn, keys=[lock_number(f"{found['realm']} {found['customer']}")])
    row = await queries.decision_in_force(conn, realms=[found["realm"]], subject=found["subject"])
    decision = decoded(row)
    if id_.startswith("dec_") and row["id"] != found["id"]:
        raise ActRefused(
            f"{found['id']} is not in force any more: {row['id']} took its place ({decision.verdict}). "
            f"It says: {decision.reason} Decide about that one."
        )
    charge = decision.duplicate or ""
    locked = {"realm": row["realm"], "decision_subject": row["subject"], "charge": charge}
    actions = await fetch(conn, queries.lock_actions, **locked)
    acts = await acts_by_decision(conn, [row["id"]])
    return Case(id=row["id"], realm=row["realm"], decision=decision, actions=actions, acts=acts[row["id"]])


async def find(conn: Connection, realms: Sequence[str], id_: str) -> asyncpg.Record:
    """The decision with this id or unique beginning of one, or the one in force for this charge or action. Raises NotFound."""
    here = list(realms)
    if id_.startswith("dec_"):
        if len(id_) < MIN_PREFIX:
            raise NotFound(f"{id_!r} is too short: write at least {MIN_PREFIX} characters of the decision's id.")
        rows = await fetch(conn, queries.decisions_by_prefix, realms=here, prefix=id_)
        if len(rows) > 1:
            raise NotFound(
                f"Several decisions begin with {id_}: {', '.join(row['id'] for row in rows)}. Write more of it."
            )
        if rows:
            return rows[0]
        raise NotFound(f"There is no decision {id_}; `finalsale review list` shows what waits.")
    action = await queries.read_action(conn, realms=here, id=id_) if id_.startswith("act_") else None
    row = await queries.decision_in_force(conn, realms=here, subject=action["decision_subject"] if action else id_)
    if row is None:
        raise NotFound(f"There is no decision about {id_}; `finalsale review list` shows what waits.")
    found: asyncpg.Record = row
    return found


# what speaks against an approval -----------------------------------------------------------------------------------------


def _approvable(case: Case, amount_minor: int | None) -> list[asyncpg.Record]:
    """The actions that a yes would make due. Raises ActRefused where there is nothing to approve."""
    _refuse_if_rejected(case)
    open_ = case.in_state(*OPEN_STATES)
    if case.decision.verdict not in (Verdict.REFUND, Verdict.REVIEW):
        raise ActRefused(f"{case.id} says {case.decision.verdict}, there is nothing to approve: {case.decision.reason}")
    if open_ and amount_minor is None:
        return open_
    if _refundable(case.decision) is None:
        raise ActRefused(
            f"{case.id} is about {case.decision.subject} by clause {case.decision.clause}, and no clause gives money back for it: "
            f"there is nothing to approve, nor to name an --amount for. {case.decision.reason} Look with `{_look(case.decision)}`; "
            f"once it is seen to, close it with `finalsale review reject {case.id} --by NAME --note TEXT`."
        )
    if amount_minor is not None:
        return open_
    if case.actions or case.said("approve"):
        raise ActRefused(f"Nothing of {case.id} waits for an approval: {_state_of_things(case)}")
    raise ActRefused(
        f"Nothing is prepared for {case.id}, because nothing could be proved: say how much goes back with --amount MINOR "
        f"(minor units), or reject it. {case.decision.reason}"
    )


def _refuse_if_rejected(case: Case) -> None:
    if rejected := case.said("reject"):
        said = rejected[-1]
        raise ActRefused(f"{case.id} was rejected by {said['by']} on {said['at']:%Y-%m-%d %H:%M} UTC already.")


async def _refuse_as_second(conn: Connection, case: Case, name: str, names: Sequence[str], *, known: bool) -> None:
    """One person is not two; with `known` a name has to be one of an operator, where there are operators."""
    if any(_same_name(name, other) for other in names):
        raise ActRefused(f"{name} has approved {case.id} already; it needs a second person, with another name.")
    if known and not await known_to_decide(conn, name):
        raise ActRefused(
            f"{case.id} needs two people, and {name} is no operator who may decide: say --by with the name of one, "
            "as `finalsale operator list` shows it, or approve it in the console."
        )


def _refuse_second_sending(case: Case, open_: Sequence[asyncpg.Record]) -> None:
    """What Stripe was asked for once is asked for again only where it made nothing of it and the decision still wants the same."""
    wanted = {(str(s.kind), s.subject): s.amount for s in case.decision.prepared}
    by_hand = ActionKind.REFUND not in {s.kind for s in case.decision.prepared}
    for action in open_:
        if action["stripe_id"] is not None:
            raise ActRefused(
                f"{action['id']} was carried out at Stripe as {action['stripe_id']} ({action['stripe_status']}) and cannot be "
                f"repeated: {action['error']}. Give it back another way, then close this with `finalsale review reject`."
            )
        if action["first_sent_at"] is None or (by_hand and action["kind"] == "refund"):
            continue
        key = (action["kind"], action["subject"])
        amount = Money(action["amount_minor"], action["currency"]) if action["currency"] else None
        if key not in wanted or wanted[key] != amount:
            raise ActRefused(
                f"{action['id']} was sent to Stripe as {amount or action['kind']} and refused, and the decision says "
                f"something else now: {case.decision.reason} Settle it in Stripe's dashboard, then reject this one."
            )


async def _with_refund(
    conn: Connection, case: Case, open_: list[asyncpg.Record], amount_minor: int
) -> list[asyncpg.Record]:
    """The open actions with a refund of the amount that a person named, of at most what is left on the duplicate."""
    charge = _refundable(case.decision)
    assert charge is not None, "refused before"
    if refund := next((a for a in open_ if a["kind"] == "refund"), None):
        prepared = Money(refund["amount_minor"], refund["currency"])
        if refund["amount_minor"] == amount_minor and refund["subject"] == charge:
            return open_
        raise ActRefused(f"{prepared} is prepared for {case.id}: approve that without --amount, or reject it.")
    if any(a["kind"] == "refund" and a["state"] != "withdrawn" for a in case.actions):
        raise ActRefused(
            f"A refund of {charge} exists already, and there is never a second one: {_state_of_things(case)}"
        )
    left = await _left_on(conn, case, charge)
    if amount_minor <= 0 or left.minor < amount_minor:
        asked = Money(amount_minor, left.currency)
        raise ActRefused(
            f"{asked} cannot go back: by the books {left} is left on {charge}, and at most that can be refunded."
        )
    made = await queries.propose_refund(
        conn,
        id=action_id(case.realm, "refund", charge),
        realm=case.realm,
        subject=charge,
        decision_subject=case.decision.subject,
        decision_id=case.id,
        customer=case.decision.customer,
        amount_minor=amount_minor,
        currency=left.currency,
    )
    if made is None:
        raise ActRefused(f"A refund of {charge} exists already, and there is never a second one.")
    locked = {"realm": case.realm, "decision_subject": case.decision.subject, "charge": charge}
    case.actions = await fetch(conn, queries.lock_actions, **locked)
    return case.in_state(*OPEN_STATES)


async def _left_on(conn: Connection, case: Case, charge: str) -> Money:
    """What is left on a charge by the books. Raises ActRefused where it is not in them."""
    rows = await fetch(conn, queries.owners, realm=case.realm, ids=[charge])
    customers = [row["customer"] for row in rows]
    loaded = await fetch(conn, queries.load_objects, realm=case.realm, customers=customers)
    file = CustomerFile(fact for row in loaded if (fact := decode_known(row["body"])) is not None)
    for payment in payments_of(file, frozenset(), test_clocks=True):
        if payment.id == charge:
            return Money(payment.left_minor, payment.currency)
    raise ActRefused(f"{charge} is not in the books as a payment, so no amount can be checked against it.")


def _fresh_names(case: Case, open_: Sequence[asyncpg.Record]) -> list[str]:
    """Who approved since the waiting actions came to wait: a yes from before Stripe's refusal is no yes to another try."""
    since = max((a["settled_at"] or a["created_at"] for a in open_), default=None)
    return [said["by"] for said in case.said("approve") if since is None or said["at"] >= since]


def _state_of_things(case: Case) -> str:
    """In words, where the actions of a decision stand."""
    states = [
        f"{a['kind'].replace('_', ' ')} of {a['subject']} is {a['state']}"
        + (f" as {a['stripe_id']}" if a["stripe_id"] else "")
        for a in case.actions
    ]
    approved = ", ".join(said["by"] for said in case.said("approve"))
    return "; ".join([*states, *([f"approved by {approved}"] if approved else [])] or ["it has no actions"]) + "."


def _same_name(one: str, other: str) -> bool:
    return folded(one) == folded(other)


def named(by: str) -> str:
    """The name of whoever acts, on one line. Raises ActRefused where there is none."""
    name = " ".join(by.split())
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise ActRefused(f"Say who you are with --by NAME (up to {MAX_NAME} characters).")
    return name


def said_why(text: str) -> str:
    """A note or a reason as it is kept. Raises ActRefused where it is too long."""
    said = text.strip()
    if len(said) > MAX_NOTE or "\x00" in said:
        raise ActRefused(f"A note has at most {MAX_NOTE} characters, and no NUL.")
    return said
