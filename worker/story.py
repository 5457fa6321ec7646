"""The story of one id: what it is, what it belongs to, what the policy says about it now and why, and what was done."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from handlers.account import Act, LotKind
from handlers.customer import (
    AnyFact,
    BalanceRead,
    Charge,
    Customer,
    CustomerId,
    Dispute,
    EarlyFraudWarning,
    Fact,
    Invoice,
    Refund,
    Seconds,
    Subscription,
    at,
    decode,
)
from handlers.events import Unreadable, parse_event
from handlers.payments import Payment
from worker import cases, clauses, outages
from worker.book import Book, answer, decided, is_about, open_book, payment_document, stored_document
from worker.db import Connection, queries
from worker.inbox import unpack
from worker.judging import Court
from worker.reading import Document, NotFound, action_story, fetch, without_personal_data
from worker.review import find
from worker.timeline import timeline

_RANK = {"refund": 0, "review": 1, "deny": 2, "none": 3}
_HIDDEN = ("kind", "email_hash", "card_fingerprint")
_COMPARED = frozenset(["metadata", "subscription_metadata", "client_reference_id"])
"""What rules compare persons and orders by: whoever asks why needs the values."""


# explain -----------------------------------------------------------------------------------------------------------------


async def explain(conn: Connection, court: Court, realms: Sequence[str], id_: str) -> Document:
    """The story of any id of Stripe's or ours. Raises NotFound with where to look instead."""
    found: Document = {"id": id_, "event": None}
    if (ours := await _ours(conn, court, realms, id_)) is not None:
        return found | ours
    target = id_
    if id_.startswith("evt_"):
        found["event"], told = await event_story(conn, id_)
        if told is None:
            return found | {"kind": "event", "reason": found["event"]["story"]}
        target = told
    elif id_.startswith(("act_", "dec_")):
        target = (await find(conn, realms, id_))["subject"]
    rows = await fetch(conn, queries.find_objects, realms=list(realms), ids=[target])
    if not rows:
        if found["event"] is not None:
            return found | {
                "kind": "event",
                "reason": f"{found['event']['story']} It tells of {target}, which is not in the books.",
            }
        raise NotFound(
            f"Nothing is known about {id_}. `finalsale events list` shows what arrived; what no event told of, the nightly run finds."
        )
    row = rows[0]
    fact = decode(row["body"])
    found |= {"kind": row["kind"], "realm": row["realm"], "customer": row["customer"], "facts": _facts(fact)}
    if row["customer"] is None:
        why = (
            f"Whose {target} is, nobody has told yet: it waits for {' or '.join(fact.references()) or 'its customer'}."
        )
        return found | {"verdict": None, "clause": None, "reason": why}
    book = await open_book(conn, court, row["realm"], row["customer"])
    return found | _told(book, court, fact, await clauses.read_kept(conn, book, row["customer"]))


async def event_story(conn: Connection, id_: str) -> tuple[Document, str | None]:
    """An event's envelope in a sentence, and the id of the object that it tells of. Raises NotFound."""
    row = await queries.read_event(conn, id=id_)
    if row is None:
        raise NotFound(f"No event {id_} was received; `finalsale events list` shows what was.")
    story = f"The {row['type']} of {row['created_at']:%Y-%m-%d %H:%M:%S} UTC arrived at {row['received_at']:%H:%M:%S} and is {row['state']}."
    if row["error"]:
        story += f" ({row['error']})"
    names = ("type", "state", "attempts", "error", "created_at", "received_at", "settled_at", "realm", "api_version")
    document = {"id": id_, "story": story, **{name: row[name] for name in names}, "payload_removed": not row["payload"]}
    if not row["payload"]:
        return document | {"story": f"{story} Its payload was removed, after the retention or on request."}, None
    try:
        told = parse_event(unpack(row["payload"]))
        subject = told.fact.id if told.fact is not None else told.hint.id if told.hint is not None else None
    except Unreadable as unreadable:
        story, subject = f"{story} It cannot be read: {unreadable.field}.", None
    else:
        if subject is None:
            story += " Nothing in the policy depends on this type."
    return document | {"story": story}, subject


def _told(book: Book, court: Court, fact: AnyFact, own: clauses.Kept) -> Document:
    """What an object belongs to, what every clause says about it and the payments it concerns, and what was done."""
    concerned = [p for p in book.payments if _concerns(fact, p)]
    reach = clauses.reach_of(book, fact, concerned)
    more = clauses.told(book, court, own, reach)
    answers = [answer(book, court, payment) for payment in concerned]
    own_words = isinstance(fact, Refund | Dispute | EarlyFraudWarning)
    if (decision := book.judgement.decisions.get(fact.id)) is not None and fact.id not in book.file.charges:
        answers.append(decided(decision))  # about a subscription's trial (4.3), or an invoice (1.2, 1.3)
    best = None if own_words else min(answers, key=lambda a: _RANK.get(a["verdict"], 9), default=None)
    head: Document = {"verdict": "none", "clause": None, "policy_version": None, "amount": None}
    head = best or head | {"reason": _no_payment(book, court, fact, own.customer)}
    if own_words:
        about = next(x for x in (*more["refunds"], *more["disputes"], *more["warnings"]) if x["id"] == fact.id)
        head |= _of_its_own(book, about, answers)
    subjects = {*reach.names, *(p.id for p in concerned)}
    stored = [book.stored[s] for s in sorted(subjects) if s in book.stored]
    linked = [c for c in book.customers if c != own.customer]
    return {
        **{name: head.get(name) for name in ("verdict", "clause", "rule", "policy_version", "reason", "amount")},
        "agreement": _agreement(court, own.customer, fact, concerned),
        **{name: head.get(name) for name in ("original", "duplicate")},
        "evidence": head.get("evidence", []),
        "linked_customers": linked,
        "belongs_to": [payment_document(book, payment) for payment in concerned],
        "payments": answers if len(answers) > 1 or not isinstance(fact, Charge) else [],
        "decisions": [stored_document(book, row) for row in stored],
        "actions": [action_story(action) for action in book.actions_on(*subjects)],
        **more,
        "trials": [{"from": at(t.start), "to": at(t.end)} for t in getattr(fact, "trials", ())],
        "lines": clauses.lines_of(fact, own.lots) if isinstance(fact, Invoice) else [],
        "commands": clauses.next_steps(fact, own.customer),
    }


def _of_its_own(book: Book, about: Document, answers: Sequence[Document]) -> Document:
    """The head of a refund's, dispute's or warning's story: what is said of itself, not of its payment."""
    decision = book.judgement.decisions.get(about["id"])
    if decision is not None and not about.get("ours"):
        return decided(decision)
    named = {name: about[name] for name in ("verdict", "clause", "rule", "policy_version", "reason")}
    if (
        about.get("ours") and "dispute_reason" not in about
    ):  # our own refund: of the payment that the decision speaks of
        repeated = next((a for a in answers if a["charge"] == about["charge"]), {})
        return {**repeated, "reason": about["reason"]}
    return named | {"verdict": about["verdict"] or "none", "amount": None}


def _agreement(court: Court, customer: str, fact: AnyFact, payments: Sequence[Payment]) -> str | None:
    """The agreement under which it is judged (8), where there is one: the one in force when it was paid, or began."""
    told_at: Seconds = getattr(fact, "created", 0) or fact.as_of
    moments = [payment.paid_at for payment in payments] or [told_at]
    found = (court.policy.terms_for(CustomerId(customer), moment) for moment in moments)
    return next((terms.agreement for terms in found if terms is not None and terms.agreement), None)


def _concerns(fact: AnyFact, payment: Payment) -> bool:
    """Whether an object has to do with a payment: it is it, caused it, was paid by it, or is about it."""
    invoice = payment.invoice
    lines = {line.subscription for line in invoice.lines} if invoice else set()
    names = {payment.id, payment.charge.payment_intent, payment.charge.customer, *payment.invoice_ids, *lines}
    names |= {invoice.subscription if invoice else None, payment.session.id if payment.session else None}
    mine: set[str | None] = (
        {fact.id, *fact.references()} if not isinstance(fact, Customer | Subscription) else {fact.id}
    )
    if isinstance(fact, BalanceRead):
        mine = {fact.customer}
    return bool(mine & (names - {None}))


# facts in words ---------------------------------------------------------------------------------------------------------


def _no_payment(book: Book, court: Court, fact: AnyFact, customer: str) -> str:
    if isinstance(fact, Subscription):
        access = next((a for a in book.account(customer).access if a.subscription == fact.id), None)
        if access is not None:
            return access.cause[0].upper() + access.cause[1:] if access.cause.startswith("the ") else access.cause
    if isinstance(fact, Charge):
        return f"It never became a payment ({fact.status}{'' if fact.captured else ', not captured'}), so there is nothing to refund."
    return "No payment is known for it, so there is nothing to refund."


def _facts(fact: Fact) -> Document:
    """An object as we keep it, in Stripe's words, without what could name a person."""
    told = msgspec.to_builtins(fact)
    kept = {name: value for name, value in told.items() if name not in _HIDDEN}
    masked: Document = without_personal_data(kept, kept=_COMPARED)
    return masked


# ids of our own ----------------------------------------------------------------------------------------------------------


async def _ours(conn: Connection, court: Court, realms: Sequence[str], id_: str) -> Document | None:
    """The story of an operator's act, an outage, a case or a lot; None for every other id."""
    if id_.startswith("oact_"):
        return await _operator_act(conn, court, realms, id_)
    if id_.startswith("out_"):
        return await _outage(conn, realms, id_)
    if id_.startswith("case_"):
        return await _case(conn, realms, id_)
    if id_.partition(":")[0] in set(LotKind):
        return await _lot(conn, court, realms, id_)
    return None


def _plain(kind: str, row: Document, clause: str, reason: str) -> Document:
    """What every story of our own ids has."""
    names = ("id", "realm", "customer")
    return {name: row.get(name) for name in names} | {
        "kind": kind,
        "facts": row.get("facts", {"id": row["id"]}),
        "verdict": None,
        "clause": clause,
        "rule": None,
        "amount": None,
        "evidence": [],
        "reason": reason,
    }


async def _operator_act(conn: Connection, court: Court, realms: Sequence[str], id_: str) -> Document:
    row = await queries.find_operator_act(conn, realms=list(realms), id=id_)
    if row is None:
        raise NotFound(f"There is no act {id_}; `finalsale customers show ID` lists what was done about a customer.")
    act = clauses.act_document(msgspec.json.decode(row["body"], type=Act))
    book = await open_book(conn, court, row["realm"], row["customer"])
    own = await clauses.read_kept(conn, book, row["customer"])
    lots = [lot for lot in own.lots if lot["id"] == f"service:{id_}"]
    found = _plain(
        "act", {"id": id_, **row, "facts": act}, act["clause"], f"On {act['at']:%Y-%m-%d %H:%M:%S} UTC {act['what']}."
    )
    access = [
        clauses.access_document(a) for a in book.account(own.customer).access if a.subscription == act["subscription"]
    ]
    return found | {"standing": clauses.standing(book, own.customer), "access": access, "credits": lots}


async def _outage(conn: Connection, realms: Sequence[str], id_: str) -> Document:
    found = await outages.declared(conn, realms, id_)
    if not found:
        raise NotFound(f"There is no outage {id_}; `finalsale outage show` shows every one that was declared.")
    told = found[0]
    rows = await fetch(conn, queries.lots_of_outage, realms=list(realms), id=id_)
    lots = [{"customer": row["customer"], **clauses.lot_document(row, told["declared_at"])} for row in rows]
    plans = f" of {', '.join(told['plans'])}" if told.get("plans") else " of every plan"
    reason = (
        f"An outage{plans} from {told['begins']:%Y-%m-%d %H:%M:%S} to {told['ends']:%Y-%m-%d %H:%M:%S} UTC, declared by "
        f"{told['by']} on {told['declared_at']:%Y-%m-%d %H:%M:%S} ({told['reason']}). {told['credits'] or 0} service credits were "
        f"given for {told['subscriptions']} subscriptions, in proportion to it and never money (4.2)."
    )
    if told["still_to_judge"]:
        reason += f" {told['still_to_judge']} customers are still to be looked at."
    realm = rows[0]["realm"] if rows else None
    return _plain("outage", {"id": id_, "realm": realm, "facts": told}, "4.2", reason) | {"credits": lots}


async def _case(conn: Connection, realms: Sequence[str], id_: str) -> Document:
    told = await cases.show_case(conn, realms, id_)
    private = ("email", "description")
    facts = {
        name: value for name, value in told.items() if name not in (*private, "acts", "suggestions", "draft_answer")
    }
    due = f"an answer is due by {told['due_at']:%Y-%m-%d %H:%M:%S} UTC"
    if told["answered_at"]:
        due = f"answered on {told['answered_at']:%Y-%m-%d %H:%M:%S} UTC"
    reason = f"A request about {told['kind']} is {told['state']}, {due} (5). {told['summary']}"
    story = _plain("case", told | {"facts": facts}, told["clause"], reason)
    head = {name: told[name] for name in ("verdict", "policy_version")}
    return story | head | {"commands": [f"finalsale cases show {told['id']}", *told["suggestions"]]}


async def _lot(conn: Connection, court: Court, realms: Sequence[str], id_: str) -> Document:
    row = await queries.find_lot(conn, realms=list(realms), id=id_)
    if row is None:
        raise NotFound(f"There is no lot {id_}; `finalsale credits show CUSTOMER` lists every lot.")
    book = await open_book(conn, court, row["realm"], row["customer"])
    own = await clauses.read_kept(conn, book, row["customer"])
    lot = next(lot for lot in own.lots if lot["id"] == id_)
    ends = f" It ends on {lot['ends_at']:%Y-%m-%d %H:%M:%S} UTC." if lot["ends_at"] else " It has no end in sight."
    reason = (
        f"{lot['granted']} {lot['kind']} credits of {row['customer']}, by clause {lot['clause']}: {lot['cause']}{ends}"
    )
    entries = await fetch(conn, queries.read_entries, realm=row["realm"], customer=row["customer"])
    story = _plain("lot", {**row, "facts": lot}, lot["clause"], reason)
    mine = [dict(entry) for entry in entries if entry["lot"] == id_]
    return story | {"standing": clauses.standing(book, own.customer), "credits": [lot], "entries": mine}


# customers show ----------------------------------------------------------------------------------------------------------


async def customer(conn: Connection, court: Court, realms: Sequence[str], id_: str) -> Document:
    """One customer: standing, access and credits now, what happened on a time line, and what every clause said."""
    realm, fact = await _found_customer(conn, realms, id_)
    book = await open_book(conn, court, realm, id_)
    own = await clauses.read_kept(conn, book, id_, resolved=True)
    mine = [p for p in book.payments if (p.charge.customer or p.id) == id_]
    subscriptions = [s for s in book.file.subscriptions.values() if s.customer == id_]
    reach = clauses.reach_of(book, fact, mine)
    subjects = {
        *reach.names,
        *(s.id for s in subscriptions),
        *(i.id for i in book.file.invoices.values() if i.customer == id_),
    }
    more = clauses.told(book, court, own, reach)
    about: list[Refund | Dispute] = [*book.file.refunds.values(), *book.file.disputes.values()]
    theirs = {thing.id for thing in about if any(is_about(thing, payment) for payment in mine)}
    stored = [stored_document(book, row) for subject, row in sorted(book.stored.items()) if subject in subjects]
    return {
        "id": id_,
        "realm": book.realm,
        "standing": more["standing"],
        "access": more["access"],
        "credits": clauses.credit_sums(own.lots),
        "agreements": more["agreements"],
        "alerts": more["alerts"],
        "cases": more["cases"],
        "acts": more["acts"],
        "linked_customers": [other for other in book.customers if other != id_],
        "payments": [payment_document(book, p) | {"answer": answer(book, court, p)} for p in mine],
        "subscriptions": [_subscription_document(s) for s in sorted(subscriptions, key=lambda s: (s.created, s.id))],
        "refunds": [refund for refund in more["refunds"] if refund["id"] in theirs],
        "disputes": [dispute for dispute in more["disputes"] if dispute["id"] in theirs],
        "lots": own.lots,
        "decisions": stored,
        "timeline": await timeline(conn, book, own, mine, subscriptions, subjects),
    }


async def _found_customer(conn: Connection, realms: Sequence[str], id_: str) -> tuple[str, AnyFact]:
    """A customer's realm and object; one of which only other objects have told yet is known by its id. Raises NotFound."""
    rows = await fetch(conn, queries.find_objects, realms=list(realms), ids=[id_])
    if rows and rows[0]["customer"] == id_:
        return rows[0]["realm"], decode(rows[0]["body"])
    told = [] if rows else await fetch(conn, queries.realms_of_customer, realms=list(realms), customer=id_)
    if not told:
        raise NotFound(
            f"No customer {id_} is known; `finalsale explain ID` finds whose a charge, invoice or subscription is."
        )
    return told[0]["realm"], Customer(id=CustomerId(id_), as_of=0)


def _subscription_document(subscription: Subscription) -> Document:
    return {
        "id": subscription.id,
        "status": subscription.status,
        "created": at(subscription.created),
        "items": [
            {"price": i.price, "quantity": i.quantity, "from": at(i.period_start), "to": at(i.period_end)}
            for i in subscription.items
        ],
        "cancel_at_period_end": subscription.cancel_at_period_end,
        "ended_at": at(subscription.ended_at) if subscription.ended_at is not None else None,
    }
