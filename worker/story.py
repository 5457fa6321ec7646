"""The story of one id: what it is, what it belongs to, what the policy says about it now and why, and what was done."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from handlers.customer import AnyFact, BalanceRead, Charge, Customer, Dispute, Fact, Refund, Subscription, at, decode
from handlers.decisions import Money
from handlers.events import Unreadable, parse_event
from handlers.payments import Payment
from worker.book import Book, answer, decided, is_about, open_book, payment_document, stored_document
from worker.db import Connection, queries
from worker.drain import Court
from worker.inbox import unpack
from worker.reading import Document, NotFound, action_story, decoded, fetch, without_personal_data
from worker.review import find

_RANK = {"refund": 0, "review": 1, "deny": 2, "none": 3}
_HIDDEN = ("kind", "email_hash", "card_fingerprint")


# explain -----------------------------------------------------------------------------------------------------------------


async def explain(conn: Connection, court: Court, realms: Sequence[str], id_: str) -> Document:
    """The story of any id of Stripe's or ours. Raises NotFound with where to look instead."""
    found: Document = {"id": id_, "event": None}
    target = id_
    if id_.startswith("evt_"):
        found["event"], told = await _event(conn, id_)
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
    return found | _told(book, court, fact)


async def _event(conn: Connection, id_: str) -> tuple[Document, str | None]:
    """An event's envelope in a sentence, and the id of the object that it tells of."""
    row = await queries.read_event(conn, id=id_)
    if row is None:
        raise NotFound(f"No event {id_} was received; `finalsale events list` shows what was.")
    story = f"The {row['type']} of {row['created_at']:%Y-%m-%d %H:%M:%S} UTC arrived at {row['received_at']:%H:%M:%S} and is {row['state']}."
    if row["error"]:
        story += f" ({row['error']})"
    try:
        told = parse_event(unpack(row["payload"]))
        subject = told.fact.id if told.fact is not None else told.hint.id if told.hint is not None else None
    except Unreadable as unreadable:
        story, subject = f"{story} It cannot be read: {unreadable.field}.", None
    else:
        if subject is None:
            story += " Nothing in the policy depends on this type."
    names = ("type", "state", "attempts", "error", "created_at", "received_at", "settled_at", "realm", "api_version")
    return {"id": id_, "story": story, **{name: row[name] for name in names}}, subject


def _told(book: Book, court: Court, fact: AnyFact) -> Document:
    """What an object belongs to, the answers for the payments it concerns, and what was done about them."""
    concerned = [p for p in book.payments if _concerns(fact, p)]
    answers = [answer(book, court, payment) for payment in concerned]
    subjects = {p.id for p in concerned} | {fact.id}
    if (decision := book.judgement.decisions.get(fact.id)) is not None and fact.id not in book.file.charges:
        answers.append(decided(decision))  # a trial about to be charged
    best = min(answers, key=lambda a: _RANK.get(a["verdict"], 9), default=None)
    head = best or {
        "verdict": "none",
        "clause": None,
        "reason": _no_payment(fact),
        "policy_version": None,
        "amount": None,
    }
    if isinstance(fact, Refund):
        head = head | _refund_story(book, fact)
    elif isinstance(fact, Dispute):
        head = head | {"clause": "7", "verdict": "none", "amount": None, "reason": _dispute_story(fact)}
    stored = [book.stored[s] for s in sorted(subjects) if s in book.stored]
    actions = book.actions_on(*subjects)
    return {
        **{name: head.get(name) for name in ("verdict", "clause", "rule", "policy_version", "reason", "amount")},
        **{name: head.get(name) for name in ("original", "duplicate")},
        "evidence": head.get("evidence", []),
        "linked_customers": [c for c in book.customers if c != getattr(fact, "customer", fact.id)],
        "belongs_to": _belongs_to(book, concerned),
        "payments": answers if len(answers) > 1 or not isinstance(fact, Charge) else [],
        "decisions": [stored_document(book, row) for row in stored],
        "actions": [action_story(action) for action in actions],
    }


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


# facts in words ----------------------------------------------------------------------------------------------------------


def _refund_story(book: Book, refund: Refund) -> Document:
    """Whether a refund that is at Stripe lies within the policy (clause 2; settled reading 9)."""
    amount = Money(refund.amount_minor, refund.currency)
    if refund.action is not None and any(a["id"] == refund.action for a in book.actions):
        return {"reason": f"Our own refund of {amount} ({refund.status}), made for {refund.action}."}
    known = book.judgement.decisions.get(refund.charge or "")
    stored = book.stored.get(refund.charge or "")
    decision = known or (decoded(stored) if stored is not None else None)
    if decision is not None:
        return {
            "reason": f"{amount} refunded by hand ({refund.status}) of a payment that clause 4.3 speaks of: {decision.reason}"
        }
    told = f"{amount} refunded by hand ({refund.status}), and no decision asked for it: it is outside the policy, for sales are final."
    return {"verdict": "deny", "clause": "2", "reason": told, "amount": None}


def _dispute_story(dispute: Dispute) -> str:
    amount, charge = Money(dispute.amount_minor, dispute.currency), dispute.charge or dispute.payment_intent
    due = f" Evidence is due by {at(dispute.due_by):%Y-%m-%d %H:%M} UTC." if dispute.due_by else ""
    match dispute.status:
        case "won" | "warning_closed":
            return f"The dispute of {amount} on {charge} is over ({dispute.status}) and holds nothing any more."
        case "lost":
            return f"The dispute of {amount} on {charge} was lost: the money went back, and the hold stays until a person decides."
        case "prevented":
            return (
                f"The network gave {amount} of {charge} back before a chargeback: no hold, and nothing more to refund."
            )
        case "warning_needs_response" | "warning_under_review":
            return f"An inquiry about {amount} of {charge} is open ({dispute.status}): no hold yet, and no refund by itself.{due}"
        case _:
            return f"A chargeback of {amount} on {charge} is open ({dispute.status}): the customer is on hold.{due}"


def _no_payment(fact: AnyFact) -> str:
    if isinstance(fact, Charge):
        return f"It never became a payment ({fact.status}{'' if fact.captured else ', not captured'}), so there is nothing to refund."
    return "No payment is known for it, so there is nothing to refund."


def _belongs_to(book: Book, payments: Sequence[Payment]) -> list[Document]:
    """For every payment concerned: what it paid for, and what of it still stands."""
    return [payment_document(book, payment) for payment in payments]


def _facts(fact: Fact) -> Document:
    """An object as we keep it, in Stripe's words, without what could name a person."""
    told = msgspec.to_builtins(fact)
    kept = {name: value for name, value in told.items() if name not in _HIDDEN}
    masked: Document = without_personal_data(kept)
    return masked


# customers show ----------------------------------------------------------------------------------------------------------


async def customer(conn: Connection, court: Court, realms: Sequence[str], id_: str) -> Document:
    """One customer on a time line: payments with their periods and answers, refunds, disputes, subscriptions, decisions."""
    rows = await fetch(conn, queries.find_objects, realms=list(realms), ids=[id_])
    if not rows or rows[0]["customer"] != id_:
        raise NotFound(
            f"No customer {id_} is known; `finalsale explain ID` finds whose a charge, invoice or subscription is."
        )
    book = await open_book(conn, court, rows[0]["realm"], id_)
    mine = [p for p in book.payments if (p.charge.customer or p.id) == id_]
    subscriptions = [s for s in book.file.subscriptions.values() if s.customer == id_]
    subjects = {p.id for p in mine} | {s.id for s in subscriptions}
    return {
        "id": id_,
        "realm": book.realm,
        "linked_customers": [other for other in book.customers if other != id_],
        "payments": [payment_document(book, p) | {"answer": answer(book, court, p)} for p in mine],
        "subscriptions": [_subscription_document(s) for s in sorted(subscriptions, key=lambda s: (s.created, s.id))],
        "refunds": [_moneyed(f) for f in book.file.refunds.values() if any(is_about(f, p) for p in mine)],
        "disputes": [_moneyed(f) for f in book.file.disputes.values() if any(is_about(f, p) for p in mine)],
        "decisions": [
            stored_document(book, row) for subject, row in sorted(book.stored.items()) if subject in subjects
        ],
        "timeline": _timeline(book, mine, subscriptions),
    }


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


def _moneyed(fact: Refund | Dispute) -> Document:
    return {
        "id": fact.id,
        "charge": fact.charge,
        "amount": {"minor": fact.amount_minor, "currency": fact.currency},
        "status": fact.status,
        "created": at(fact.created),
        "ours": isinstance(fact, Refund) and fact.action is not None,
    }


def _timeline(book: Book, mine: Sequence[Payment], subscriptions: Sequence[Subscription]) -> list[Document]:
    """What happened, oldest first, one sentence each."""
    entries: list[tuple[datetime, str, str]] = []
    for p in mine:
        lines = p.invoice.lines if p.invoice else ()
        what = "; ".join(
            f"{line.price or 'item'} {at(line.period_start):%Y-%m-%d} to {at(line.period_end):%Y-%m-%d}"
            for line in lines
        )
        paid = Money(p.charge.captured_minor, p.currency)
        entries.append(
            (at(p.paid_at), p.id, f"paid {paid} for {p.invoice_id or 'no invoice'}{f' ({what})' if what else ''}")
        )
        entries += [
            (
                at(f.created),
                f.id,
                f"{'our ' if f.action else ''}refund of {Money(f.amount_minor, f.currency)} of {p.id}, {f.status}",
            )
            for f in book.file.refunds.values()
            if is_about(f, p)
        ]
        entries += [
            (at(f.created), f.id, f"dispute of {Money(f.amount_minor, f.currency)} on {p.id}, {f.status}")
            for f in book.file.disputes.values()
            if is_about(f, p)
        ]
        if (row := book.stored.get(p.id)) is not None:
            decision = decoded(row)
            entries.append(
                (
                    row["decided_at"],
                    row["id"],
                    f"{decision.verdict} by {decision.clause} ({decision.rule}): {decision.reason}",
                )
            )
    for s in subscriptions:
        entries.append(
            (at(s.created), s.id, f"subscribed to {', '.join(i.price for i in s.items) or 'nothing'}, now {s.status}")
        )
        if s.ended_at is not None:
            entries.append(
                (at(s.ended_at), s.id, f"ended{f' ({s.cancellation_reason})' if s.cancellation_reason else ''}")
            )
    return [{"at": when, "id": id_, "what": what} for when, id_, what in sorted(entries)]
