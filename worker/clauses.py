"""What every clause says about one customer's things, as documents: standing, access, credits, refunds, disputes, acts, cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from handlers.account import Access, Act, ActKind
from handlers.case_request import Case
from handlers.chargebacks import CLOSED
from handlers.customer import AnyFact, Customer, Dispute, EarlyFraudWarning, Invoice, Refund, Subscription, at
from handlers.decisions import Decision, Money
from handlers.out_of_policy import LAPSED
from handlers.payments import Payment
from worker.book import Book, is_about
from worker.db import Connection, queries
from worker.judging import Court, is_ours
from worker.reading import Document, decoded, fetch

SUMS = ("granted", "consumed", "expired", "forfeited", "taken_back")


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What our own tables hold about one customer beside facts and decisions."""

    customer: str
    lots: list[Document]
    alerts: list[Document]
    cases: list[asyncpg.Record]


async def read_kept(conn: Connection, book: Book, customer: str, *, resolved: bool = False) -> Kept:
    """One customer's lots, alerts (with `resolved` also those that are over) and cases."""
    one = {"realm": book.realm, "customer": customer}
    return Kept(
        customer=customer,
        lots=[lot_document(row, book.now) for row in await fetch(conn, queries.read_lots, **one)],
        alerts=[dict(row) for row in await fetch(conn, queries.alerts_of_customer, resolved=resolved, **one)],
        cases=await fetch(conn, queries.cases_of_customer, **one),
    )


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """Which ids belong to the thing that was asked about; `whole`: it is the customer, and everything belongs to it."""

    names: frozenset[str]
    grants: frozenset[str]
    """Ids by which lots are named: invoices, Checkout sessions, subscriptions."""
    whole: bool

    def has(self, *ids: str | None) -> bool:
        """Whether one of these belongs to it."""
        return self.whole or not self.names.isdisjoint(ids)

    def granted(self, lot_id: str) -> bool:
        """Whether a lot was granted by it."""
        return self.whole or not self.grants.isdisjoint(lot_id.split(":"))


def reach_of(book: Book, fact: AnyFact, payments: Sequence[Payment]) -> Reach:
    """What an object and the payments that it concerns reach to."""
    grants = {fact.id} if isinstance(fact, Invoice | Subscription) else set()
    names = {fact.id}
    for payment in payments:
        grants |= {*payment.invoice_ids} | ({payment.session.id} if payment.session else set())
        names |= {payment.id} | ({payment.charge.payment_intent} if payment.charge.payment_intent else set())
    if not isinstance(fact, Dispute | EarlyFraudWarning | Refund):
        about: list[Refund | Dispute | EarlyFraudWarning] = [
            *book.file.refunds.values(),
            *book.file.disputes.values(),
            *book.file.warnings.values(),
        ]
        names |= {thing.id for thing in about if any(is_about(thing, payment) for payment in payments)}
    return Reach(names=frozenset(names | grants), grants=frozenset(grants), whole=isinstance(fact, Customer))


def told(book: Book, court: Court, own: Kept, reach: Reach) -> Document:
    """Everything beside 4.3 that has to do with what was asked about; lists are empty where there is nothing."""
    customer, file = own.customer, book.file
    acts = book.ours.acts.get(customer, [])
    return {
        "standing": standing(book, customer),
        "access": [access_document(a) for a in book.account(customer).access if reach.has(a.subscription)],
        "refunds": [refund_document(book, r) for _, r in sorted(file.refunds.items()) if reach.has(r.id)],
        "disputes": [dispute_document(book, d, customer) for _, d in sorted(file.disputes.items()) if reach.has(d.id)],
        "warnings": [warning_document(book, w) for _, w in sorted(file.warnings.items()) if reach.has(w.id)],
        "credits": [lot for lot in own.lots if reach.granted(lot["id"])],
        "acts": [act_document(act) for act in acts if reach.has(act.dispute, act.subscription)],
        "cases": [case for row in own.cases if reach.has(row["id"], *_named(case := case_document(row)))],
        "alerts": [a for a in own.alerts if a["resolved_at"] is None and reach.has(a["subject"])],
        "agreements": agreements(court, customer, book.now),
    }


# standing and access (7, 1) ----------------------------------------------------------------------------------------------


def standing(book: Book, customer: str) -> Document:
    """The customer's standing with every hold and its cause, and until when access lasts, as the app is told."""
    account = book.account(customer)
    return {
        "customer": customer,
        "standing": str(account.standing),
        "holds": [
            {
                "subject": hold.subject,
                "since": at(hold.since),
                "status": hold.status,
                "suspends": hold.suspends,
                "charge": hold.charge,
                "due_by": at(hold.due_by) if hold.due_by else None,
                "cause": hold.cause,
            }
            for hold in account.holds
        ],
        "access_until": _when(account.access_until),
    }


def access_document(access: Access) -> Document:
    """Until when one subscription serves, how it stands towards its end, and why."""
    return {
        "subscription": access.subscription,
        "status": access.status,
        "way": str(access.way),
        "until": _when(access.until),
        "requested_at": _when(access.requested_at),
        "ended_at": _when(access.ended_at),
        "reason": access.reason,
        "cause": access.cause,
    }


def agreements(court: Court, customer: str, now: datetime) -> list[Document]:
    """What was agreed with one customer (8), where it is written, and whether it holds now."""
    return [
        {
            "source": agreed.source,
            "from": agreed.from_,
            "until": agreed.until,
            "overrides": agreed.overrides,
            "in_force": agreed.from_ <= now and (agreed.until is None or now < agreed.until),
        }
        for agreed in court.policy.agreement
        if agreed.customer == customer
    ]


# money that went back, and disputes (2, 6, 4.3, 7) -----------------------------------------------------------------------


def refund_document(book: Book, refund: Refund) -> Document:
    """One refund: whose it is, which decision made it or what the policy says of it."""
    action = next((a for a in book.actions if a["id"] == refund.action), None)
    ours = is_ours(book.realm, refund) and action is not None
    said = _decision_on(book, refund.id)
    return {
        "id": refund.id,
        "charge": refund.charge,
        "amount": {"minor": refund.amount_minor, "currency": refund.currency},
        "status": refund.status,
        "created": at(refund.created),
        "ours": ours,
        "action": refund.action if ours else None,
        "decision": action["decision_id"] if ours and action else None,
        **_head(said),
        "reason": refund_reason(book, refund, said, action if ours else None),
    }


def refund_reason(book: Book, refund: Refund, said: Decision | None, action: asyncpg.Record | None) -> str:
    """One sentence on a refund: our own, within 4.3, out of policy, or none of these."""
    amount = Money(refund.amount_minor, refund.currency)
    if action is not None:
        row = book.stored.get(action["decision_subject"])
        by = f" by decision {action['decision_id']}"
        if row is not None:
            decision = decoded(row)
            by += f" ({decision.clause}, {decision.rule})"
        return f"Our own refund of {amount} ({refund.status}), made for {action['id']}{by}."
    if said is not None:
        return said.reason
    if not refund.live:
        return f"Somebody's refund of {amount} is {refund.status}: nothing of it went back, so no clause speaks of it."
    if refund.reason == LAPSED:
        return f"Stripe let an authorisation of {amount} go that was never captured: no money had moved."
    if any(d.status == "prevented" and d.charge == refund.charge for d in book.file.disputes.values()):
        return f"The network gave {amount} back to prevent a chargeback (7): nobody's decision, and nothing more to refund."
    return f"Somebody refunded {amount} ({refund.status}); no payment that the rules look at is known for it."


def dispute_document(book: Book, dispute: Dispute, customer: str) -> Document:
    """One dispute: status, deadline, what Stripe does by itself, and what it holds."""
    hold = next((h for h in book.account(customer).holds if h.subject == dispute.id), None)
    said = _decision_on(book, dispute.id)
    return {
        "id": dispute.id,
        "charge": dispute.charge,
        "amount": {"minor": dispute.amount_minor, "currency": dispute.currency},
        "status": dispute.status,
        "created": at(dispute.created),
        "ours": False,
        "dispute_reason": dispute.reason,
        "due_by": _when(dispute.due_by),
        "by_itself": dispute.intended_submission_method,
        "holds": hold is not None,
        "suspends": hold is not None and hold.suspends,
        **_head(said),
        "reason": said.reason
        if said
        else f"The dispute is {dispute.status}; it is on a test clock, which is left alone.",
    }


def warning_document(book: Book, warning: EarlyFraudWarning) -> Document:
    """One early fraud warning: a note, and nothing else (settled reading 8)."""
    said = _decision_on(book, warning.id)
    reason = said.reason if said else "The card network warned of fraud; it is on a test clock, which is left alone."
    return {
        "id": warning.id,
        "charge": warning.charge,
        "fraud_type": warning.fraud_type,
        "created": at(warning.created),
        **_head(said),
        "reason": reason,
    }


def next_steps(fact: AnyFact, customer: str) -> list[str]:
    """The commands that act on a dispute while something can still be done about it."""
    if not isinstance(fact, Dispute):
        return []
    steps = [f"finalsale chargebacks show {fact.id}"]
    if fact.status == "lost":
        steps += [
            f"finalsale customers {act} {customer} --dispute {fact.id} --by NAME --reason ..."
            for act in ("lift", "keep")
        ]
    return steps if fact.status == "lost" or fact.status not in CLOSED else []


def _decision_on(book: Book, subject: str) -> Decision | None:
    """As judged now, or, where the rules say nothing now, as it was written down."""
    row = book.stored.get(subject)
    return book.judgement.decisions.get(subject) or (decoded(row) if row is not None else None)


def _head(decision: Decision | None) -> Document:
    names = ("clause", "rule", "policy_version")
    head: Document = {name: getattr(decision, name) if decision else None for name in names}
    return head | {"verdict": str(decision.verdict) if decision else None}


# credits (3, 4) ----------------------------------------------------------------------------------------------------------


def lot_document(row: Mapping[str, Any] | asyncpg.Record, now: datetime) -> Document:
    """One lot: what granted it, when it ends, what became of it, and what can still be consumed."""
    names = ("id", "kind", "clause", "granted_at", "ends_at", "cause", *SUMS, "remaining")
    open_ = row["ends_at"] is None or row["ends_at"] > now
    return {**{name: row[name] for name in names}, "available": row["remaining"] if open_ else 0}


def credit_sums(lots: Iterable[Document]) -> Document:
    """What can be consumed now, what is left, and the sums by kind of lot."""
    kinds: dict[str, dict[str, int]] = {}
    for lot in lots:
        sums = kinds.setdefault(lot["kind"], dict.fromkeys((*SUMS, "remaining", "available"), 0))
        for name in sums:
            sums[name] += lot[name]
    left = {name: sum(sums[name] for sums in kinds.values()) for name in ("available", "remaining")}
    return left | {"kinds": [{"kind": kind, **sums} for kind, sums in sorted(kinds.items())]}


def lines_of(invoice: Invoice, lots: Iterable[Document]) -> list[Document]:
    """An invoice's lines with the lot that each granted."""
    by_line = {tuple(lot["id"].split(":", 2)[1:]): lot for lot in lots}
    return [
        {
            "id": line.id,
            "price": line.price,
            "quantity": line.quantity,
            "amount": {"minor": line.net_minor, "currency": line.currency},
            "from": at(line.period_start),
            "to": at(line.period_end),
            "proration": line.proration,
            "lot": by_line.get((invoice.id, line.id), {}).get("id"),
            "credits": by_line.get((invoice.id, line.id), {}).get("granted", 0),
        }
        for line in invoice.lines
    ]


# what people did (4.1, 5, 7) ---------------------------------------------------------------------------------------------


def act_document(act: Act) -> Document:
    """An operator's act, with the clause that allows it and a sentence."""
    return {
        "id": act.id,
        "act": str(act.kind),
        "clause": "4.1" if act.kind in (ActKind.GRANT, ActKind.EXTEND) else "7",
        "customer": act.customer,
        "by": act.by,
        "at": at(act.at),
        "reason": act.reason,
        "case": act.case,
        "dispute": act.dispute,
        "subscription": act.subscription,
        "credits": act.credits or None,
        "until": _when(act.until),
        "what": act_sentence(act),
    }


def act_sentence(act: Act) -> str:
    """What an operator did, in words."""
    until = f" until {at(act.until):%Y-%m-%d %H:%M:%S} UTC" if act.until is not None else ""
    what = {
        ActKind.SUSPEND: "suspended the customer until lifted",
        ActKind.LIFT: f"lifted the hold of {act.dispute}" if act.dispute else "lifted the operators' hold",
        ActKind.KEEP: f"keeps the hold of {act.dispute} until lifted",
        ActKind.GRANT: f"gave {act.credits} service credits{until}",
        ActKind.EXTEND: f"extended {act.subscription}{until}",
    }[act.kind]
    return f"{act.by} {what}: {act.reason}" + (f" (case {act.case})" if act.case else "")


def case_document(row: Mapping[str, Any] | asyncpg.Record) -> Document:
    """A support case without what the person wrote and from where."""
    case = msgspec.json.decode(row["body"], type=Case)
    return {
        "id": row["id"],
        "state": row["state"],
        "kind": case.request.about,
        "transaction": case.request.transaction,
        "payments": list(case.evaluation.payments),
        "clause": case.evaluation.clause,
        "verdict": str(case.evaluation.verdict),
        "policy_version": case.evaluation.policy_version,
        "summary": case.evaluation.summary,
        "assigned_to": row["assigned_to"],
        "opened_at": row["opened_at"],
        "due_at": row["due_at"],
        "answered_at": row["answered_at"],
        "overdue": row["state"] == "open" and row["due_at"] <= row["now"],
    }


def _named(case: Document) -> list[str | None]:
    return [case["transaction"], *case["payments"]]


def _when(seconds: int | None) -> datetime | None:
    return at(seconds) if seconds else None
