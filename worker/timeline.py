"""One customer's time line: what happened, oldest first, one sentence each; Stripe's facts beside what was decided and done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from handlers.customer import Subscription, at
from handlers.decisions import Money
from handlers.payments import Payment
from worker.book import Book, is_about
from worker.clauses import Kept, act_sentence, case_document
from worker.db import Connection, queries
from worker.reading import Document, decoded, fetch

Entry = tuple[datetime, str, str]
"""When, the id it is about, and what happened."""


async def timeline(
    conn: Connection,
    book: Book,
    own: Kept,
    payments: Sequence[Payment],
    subscriptions: Sequence[Subscription],
    subjects: set[str],
) -> list[Document]:
    """Everything about one customer; `subjects` are those whose decisions belong to it."""
    entries = [
        *_money(book, payments),
        *(entry for subscription in subscriptions for entry in _life(book, own.customer, subscription)),
        *_decisions(book, subjects),
        *_people(book, own),
        *await _credits(conn, book.realm, own.customer),
        *await _standing(conn, book.realm, own.customer),
    ]
    return [{"at": when, "id": id_, "what": what} for when, id_, what in sorted(entries)]


def _money(book: Book, payments: Sequence[Payment]) -> Iterator[Entry]:
    for p in payments:
        lines = p.invoice.lines if p.invoice else ()
        what = "; ".join(
            f"{line.price or 'item'} {at(line.period_start):%Y-%m-%d} to {at(line.period_end):%Y-%m-%d}"
            for line in lines
        )
        paid = Money(p.charge.captured_minor, p.currency)
        yield at(p.paid_at), p.id, f"paid {paid} for {p.invoice_id or 'no invoice'}{f' ({what})' if what else ''}"
        for refund in book.file.refunds.values():
            if is_about(refund, p):
                whose = "our " if refund.action else ""
                told = f"{whose}refund of {Money(refund.amount_minor, refund.currency)} of {p.id}, {refund.status}"
                yield at(refund.created), refund.id, told
        for dispute in book.file.disputes.values():
            if is_about(dispute, p):
                told = f"dispute of {Money(dispute.amount_minor, dispute.currency)} on {p.id}, {dispute.status}"
                yield at(dispute.created), dispute.id, told
        for warning in book.file.warnings.values():
            if is_about(warning, p):
                yield at(warning.created), warning.id, f"early fraud warning about {p.id} ({warning.fraud_type})"


def _life(book: Book, customer: str, s: Subscription) -> Iterator[Entry]:
    """A subscription from its beginning to its end (1)."""
    access = next((a for a in book.account(customer).access if a.subscription == s.id), None)
    prices = ", ".join(i.price for i in s.items) or "nothing"
    yield at(s.created), s.id, f"subscribed to {prices}, now {s.status}"
    why = f" ({s.cancellation_reason})" if s.cancellation_reason else ""
    if s.canceled_at is not None and s.canceled_at != s.ended_at:
        until = f"; access until {at(access.until):%Y-%m-%d %H:%M:%S}" if access and access.until else ""
        yield at(s.canceled_at), s.id, f"asked to be cancelled{why}{until}"
    if s.ended_at is not None:
        yield at(s.ended_at), s.id, f"ended{why}{f', {access.way}'.replace('_', ' ') if access else ''}"


def _decisions(book: Book, subjects: set[str]) -> Iterator[Entry]:
    for subject, row in book.stored.items():
        if subject in subjects:
            decision = decoded(row)
            told = f"{decision.verdict} by {decision.clause} ({decision.rule}): {decision.reason}"
            yield row["decided_at"], row["id"], told


def _people(book: Book, own: Kept) -> Iterator[Entry]:
    """What operators and support did, and what people were told."""
    for act in book.ours.acts.get(own.customer, []):
        yield at(act.at), act.id, act_sentence(act)
    for row in own.cases:
        case = case_document(row)
        yield case["opened_at"], case["id"], f"case about {case['kind']} opened, due {case['due_at']:%Y-%m-%d %H:%M}"
        if case["answered_at"] is not None:
            yield case["answered_at"], case["id"], f"case {case['state']}: {case['verdict']} by {case['clause']}"
    for alert in own.alerts:
        kind = alert["kind"].replace("_", " ")
        yield alert["raised_at"], alert["subject"], f"{alert['severity']} alert: {kind}"
        if alert["resolved_at"] is not None:
            yield alert["resolved_at"], alert["subject"], f"alert resolved: {kind}"


async def _credits(conn: Connection, realm: str, customer: str) -> list[Entry]:
    """Entries of every lot; what was consumed is summed by lot and day, for an app consumes often."""
    found: list[Entry] = []
    for row in await fetch(conn, queries.entries_by_day, realm=realm, customer=customer):
        what = row["kind"].replace("_", " ")
        if row["kind"] == "consumed":
            times = f" in {row['entries']} entries" if row["entries"] > 1 else ""
            found.append((row["effective_at"], row["lot"], f"{-row['amount']} credits consumed{times}"))
        else:
            told = f"{abs(row['amount'])} credits {what} by {row['clause']}: {row['cause']}"
            taken = row["amount"] > 0 and row["kind"] != "granted"
            found.append((row["effective_at"], row["lot"], f"given back again: {told}" if taken else told))
    return found


async def _standing(conn: Connection, realm: str, customer: str) -> list[Entry]:
    return [
        (row["changed_at"], customer, _change(row["was"], row["became"], row["cause"]))
        for row in await fetch(conn, queries.standing_changes_of, realm=realm, customer=customer)
    ]


def _change(was: str, became: str, cause: str) -> str:
    moved = f"standing {was} -> {became}" if was != became else f"still {became}, with other holds"
    return f"{moved}: {cause}"
