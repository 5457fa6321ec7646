"""One person's book: their file as judged now beside what was decided, done and said; and whether a payment may be refunded."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from functools import partial

import asyncpg
import msgspec

from handlers.account import Account
from handlers.customer import CustomerFile, CustomerId, Dispute, EarlyFraudWarning, Fact, Refund, at, decode_known
from handlers.decisions import Acted, ActionKind, Decision, Judgement, Money, Verdict
from handlers.judgement import Ours, judge_person
from handlers.payments import Contest, Payment, payments_of
from worker.accounts import Books, load_books
from worker.db import Connection, queries
from worker.judging import Court, is_ours
from worker.reading import Document, acts_by_decision, amount_of, decision_document, decoded, evidence_of, fetch

BEGUN = ("sending", "sent")
MANY_FACTS = 300
"""Judging more than these takes longer than others in the process should wait."""


class Book(msgspec.Struct, kw_only=True):
    """One person's file with what is judged of it now, and what was decided, done and said."""

    realm: str
    now: datetime
    """The realm's moment."""
    customers: list[str]
    file: CustomerFile
    payments: list[Payment]
    judgement: Judgement
    ours: Books
    """Operators' acts, outages, accounts and lots as our tables hold them."""
    stored: dict[str, asyncpg.Record]
    """Decisions in force, by subject."""
    actions: list[asyncpg.Record]
    acts: dict[str, list[Document]]

    def actions_on(self, *subjects: str) -> list[asyncpg.Record]:
        """Actions about these objects, or wanted by decisions about them."""
        return [a for a in self.actions if a["subject"] in subjects or a["decision_subject"] in subjects]

    def account(self, customer: str) -> Account:
        """Standing and access as they are written down, which is what the app is told."""
        held = self.ours.accounts.get(customer)
        return held.account if held else Account(customer=CustomerId(customer))


async def open_book(conn: Connection, court: Court, realm: str, customer: str) -> Book:
    """Everything about one person, read and judged by every clause as of now. Nothing is written."""
    kin = await fetch(conn, queries.kin, customers=[customer], realm=realm)
    customers = sorted({customer} | {row["customer"] for row in kin})
    facts: dict[CustomerId, list[Fact]] = defaultdict(list, {CustomerId(c): [] for c in customers})
    for row in await fetch(conn, queries.load_objects, realm=realm, customers=customers):
        if (fact := decode_known(row["body"])) is not None:
            facts[row["customer"]].append(fact)
    file = CustomerFile(fact for theirs in facts.values() for fact in theirs)
    now: datetime = await queries.moment_of(conn, realm=realm)
    subjects = sorted(
        {*file.charges, *file.subscriptions, *file.invoices, *file.refunds, *file.disputes, *file.warnings}
    )
    stored: dict[str, asyncpg.Record] = {}
    for row in await fetch(conn, queries.decisions_of_subjects, realm=realm, subjects=subjects):
        stored.setdefault(row["subject"], row)
    ours = await load_books(conn, realm, customers)
    return Book(
        realm=realm,
        now=now,
        customers=customers,
        file=file,
        payments=payments_of(file, frozenset(), test_clocks=True),
        judgement=await _judged(conn, court, realm, now, facts, ours),
        ours=ours,
        stored=stored,
        actions=list(await fetch(conn, queries.actions_about, realm=realm, subjects=subjects)),
        acts=await acts_by_decision(conn, [row["id"] for row in stored.values()]),
    )


async def _judged(
    conn: Connection, court: Court, realm: str, now: datetime, facts: dict[CustomerId, list[Fact]], books: Books
) -> Judgement:
    customers = sorted(facts)
    begun = await fetch(conn, queries.begun_actions, realm=realm, customers=customers)
    ours = Ours(
        acted=tuple(Acted(kind=ActionKind(r["kind"]), subject=r["subject"], state=r["state"]) for r in begun),
        acts=books.acts_of(customers),
        outages=books.outages,
        balances=books.balances_of(customers),
        is_ours=lambda refund: is_ours(realm, refund),
    )
    judge = partial(judge_person, facts, court.policy, now, ours, test_clocks=court.test_clocks)
    # a page of one customer must not keep the web process from taking events in
    return await asyncio.to_thread(judge) if sum(map(len, facts.values())) > MANY_FACTS else judge()


def stored_document(book: Book, row: asyncpg.Record) -> Document:
    """A decision as it was written down, with what was done and said about it, and whether the rules still say so."""
    mine = [a for a in book.actions if a["decision_subject"] == row["subject"]]
    now = book.judgement.decisions.get(row["subject"])
    begun = any(a["state"] in BEGUN or a["stripe_id"] for a in mine)
    changed = not begun and now is not None and now.fingerprint() != decoded(row).fingerprint()
    return decision_document(row, mine) | {"acts": book.acts.get(row["id"], []), "judged_otherwise_now": changed}


def payment_document(book: Book, payment: Payment) -> Document:
    """One payment with its invoice, service periods, what went back, and what disputes did."""
    invoice = payment.invoice
    refunds = [r.id for r in book.file.refunds.values() if is_about(r, payment)]
    disputes = [d.id for d in book.file.disputes.values() if is_about(d, payment)]
    return {
        "charge": payment.id,
        "customer": payment.charge.customer,
        "payment_intent": payment.charge.payment_intent,
        "paid_at": at(payment.paid_at),
        "paid": _money(payment.charge.captured_minor, payment),
        "refunded": _money(payment.refunded_minor, payment),
        "left": _money(payment.left_minor, payment),
        "dispute": payment.contest.value,
        "invoice": payment.invoice_id,
        "subscription": invoice.subscription if invoice else None,
        "lines": [
            {
                "price": line.price,
                "quantity": line.quantity,
                "amount": {"minor": line.net_minor, "currency": line.currency},
                "from": at(line.period_start),
                "to": at(line.period_end),
                "proration": line.proration,
            }
            for line in (invoice.lines if invoice else ())
        ],
        "refunds": sorted(refunds),
        "disputes": sorted(disputes),
    }


def is_about(fact: Refund | Dispute | EarlyFraudWarning, payment: Payment) -> bool:
    """Whether a refund, dispute or warning is of this payment: by its charge, or by its intent where it names no charge."""
    intent = payment.charge.payment_intent
    return fact.charge == payment.id or (fact.charge is None and intent is not None and fact.payment_intent == intent)


def _money(minor: int, payment: Payment) -> Document:
    return {"minor": minor, "currency": payment.currency}


# may this be refunded? ---------------------------------------------------------------------------------------------------


def answer(book: Book, court: Court, payment: Payment) -> Document:
    """ "May this be refunded?" for one payment, by the rules as of now; what was begun already is told from the books."""
    stored = book.stored.get(payment.id)
    decision = book.judgement.decisions.get(payment.id)
    begun = [a for a in book.actions if a["kind"] == "refund" and a["subject"] == payment.id]
    sent = next((a for a in begun if a["state"] in BEGUN or a["stripe_id"]), None)
    head: Document = {
        "charge": payment.id,
        "paid_at": at(payment.paid_at),
        "paid": _money(payment.charge.captured_minor, payment),
    }
    if sent is not None:
        wanted = book.stored.get(sent["decision_subject"], stored)
        return head | _given_back(sent, decoded(wanted) if wanted else None)
    if decision is not None and decision.verdict in (Verdict.REFUND, Verdict.REVIEW):
        return head | decided(decision)
    listed = next((a for a in begun if a["decision_subject"] != payment.id and a["state"] != "withdrawn"), None)
    if listed is not None and (other := book.stored.get(listed["decision_subject"])) is not None:
        return head | decided(decoded(other))
    after = next((d for i in payment.invoice_ids if (d := book.judgement.decisions.get(i)) and d.clause == "1.2"), None)
    if after is not None and after.verdict is Verdict.REVIEW:
        return head | decided(after)
    return head | _denied(book, court, payment, decision)


def decided(decision: Decision) -> Document:
    """What a decision says, as every answer shows it."""
    return {
        "verdict": str(decision.verdict),
        "clause": decision.clause,
        "rule": decision.rule,
        "policy_version": decision.policy_version,
        "reason": decision.reason,
        "amount": amount_of(decision.amount),
        "original": decision.original,
        "duplicate": decision.duplicate,
        "evidence": evidence_of(decision),
    }


def _given_back(action: asyncpg.Record, decision: Decision | None) -> Document:
    amount = Money(action["amount_minor"], action["currency"])
    told = f"{amount} of it was sent back as {action['stripe_id']} ({action['stripe_status']})."
    if action["state"] == "sending":
        told = f"{amount} of it is being sent back at this moment ({action['id']})."
    elif action["state"] != "sent":
        told = f"{amount} of it was to go back, and a person must see to it: {action['error']}."
    if decision is None:
        return {"verdict": "refund", "clause": "4.3", "reason": told, "amount": amount_of(amount), "evidence": []}
    return decided(decision) | {
        "verdict": "refund",
        "reason": f"{decision.reason} {told}",
        "amount": amount_of(amount),
    }


def _denied(book: Book, court: Court, payment: Payment, decision: Decision | None) -> Document:
    """Clause 2, or 3.2 for a credit pack: every sale is final, and why this is no exception."""
    terms = court.policy.terms_for(payment.charge.customer, payment.paid_at) or court.policy.earliest()
    clause = "3.2" if _only_packs(payment, terms.credits.packs) else "2"
    left = Money(payment.left_minor, payment.currency)
    if payment.contest is Contest.MONEY_BACK:
        reason = "Nothing is left to refund: a dispute took this payment back."
    elif payment.left_minor == 0:
        reason = f"Nothing is left to refund: {Money(payment.refunded_minor, payment.currency)} of this payment went back already."
    elif clause == "3.2":
        reason = f"No. Credits bought once stay with the customer for good, and once they are on the account {left} is not refundable."
    else:
        reason = f"No. Every sale is final, and this payment of {left} repeats no other one, so clause 4.3 does not reach it."
    if original_of := _original_of(book, payment):
        reason = f"No. It is the original of {original_of}: a duplicate goes back, the charge that was meant never does (4.3)."
    elif decision is not None:
        reason += f" It was compared with {decision.original}: {decision.reason}"
    if _is_rehearsal(book, payment) and not court.test_clocks:
        reason += " It is on a test clock, which is left alone (FINALSALE_TEST_CLOCKS)."
    if terms.agreement:
        reason += f" (agreement: {terms.agreement})"
    evidence = evidence_of(decision) if decision else []
    return {
        "verdict": "deny",
        "clause": clause,
        "rule": decision.rule if decision else None,
        "policy_version": terms.version,
        "reason": reason,
        "amount": None,
        "original": None,
        "duplicate": None,
        "evidence": evidence,
    }


def _only_packs(payment: Payment, packs: Iterable[str]) -> bool:
    """Whether it bought credit packs and nothing else: every line is one, or a Checkout purchase without subscription."""
    known = set(packs)
    if payment.invoice is not None and payment.invoice.lines:
        return all(line.price in known for line in payment.invoice.lines)
    if payment.session is not None and payment.session.mode == "payment":
        return True
    return payment.bare and any(value in known for value in payment.metadata.values())


def _original_of(book: Book, payment: Payment) -> str | None:
    """The duplicates of which this payment is the one that stays."""
    now = {d.subject: d for d in book.judgement.decisions.values()}
    begun = {a["decision_subject"] for a in book.actions if a["state"] in BEGUN}
    now |= {s: decoded(book.stored[s]) for s in begun if s in book.stored and s not in now}
    found = [
        s
        for s, d in sorted(now.items())
        if s not in book.file.refunds and d.original == payment.id and d.verdict in (Verdict.REFUND, Verdict.REVIEW)
    ]
    return ", ".join(found) or None


def _is_rehearsal(book: Book, payment: Payment) -> bool:
    owner = book.file.customers.get(payment.charge.customer or "")
    return any(thing is not None and thing.test_clock for thing in (owner, payment.invoice))
