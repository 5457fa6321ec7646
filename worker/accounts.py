"""What the rules say about accounts, written down in the judging transaction: standing, access, credits, alerts, and news of it.

Everything is a difference: what a judgement wants against what the tables hold. The same judgement again writes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import asyncpg
import msgspec
import structlog

from handlers.account import Account, Act, Alert, Entry, Lot, LotBalance, Outage, Severity, Standing
from handlers.customer import CustomerId, Seconds, at
from handlers.decisions import Decision, Judgement, as_json
from handlers.ledger import postings
from handlers.news import Notice, account_news, entry_news
from worker.db import Connection, columns, queries
from worker.failpoint import failpoint
from worker.notices import write_notices

log = structlog.get_logger()


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """An account as it stands in the table, its bytes, and since when."""

    account: Account
    body: bytes
    changed_at: Seconds


class AlertHeld(msgspec.Struct, frozen=True):
    """An open alert's changeable parts."""

    severity: str
    sentence: str


class Books(msgspec.Struct, kw_only=True):
    """What our own tables hold about some customers."""

    acts: dict[str, list[Act]]
    outages: tuple[Outage, ...]
    balances: dict[str, dict[str, LotBalance]]
    ends: dict[str, datetime | None]
    accounts: dict[str, Held]
    alerts: dict[str, dict[str, AlertHeld]]

    def acts_of(self, customers: Iterable[str]) -> tuple[Act, ...]:
        """What operators did about these customers, oldest first for each."""
        return tuple(act for customer in customers for act in self.acts.get(customer, ()))

    def balances_of(self, customers: Iterable[str]) -> Mapping[str, LotBalance]:
        """The sums of these customers' lots, by lot."""
        return {lot: sums for customer in customers for lot, sums in self.balances.get(customer, {}).items()}


async def load_books(conn: Connection, realm: str, customers: Sequence[str]) -> Books:
    """Everything of ours that judging these customers needs. They are locked already; their lots are not."""
    books = Books(
        acts=defaultdict(list), outages=(), balances=defaultdict(dict), ends={}, accounts={}, alerts=defaultdict(dict)
    )
    for row in await conn.fetch(queries.acts_of.sql, realm, customers):
        books.acts[row["customer"]].append(msgspec.json.decode(row["body"], type=Act))
    books.outages = tuple(
        msgspec.json.decode(row["body"], type=Outage) for row in await conn.fetch(queries.declared_outages.sql, realm)
    )
    _take_lots(books, await conn.fetch(queries.lots_of.sql, realm, customers))
    for row in await conn.fetch(queries.accounts_of.sql, realm, customers):
        account = msgspec.json.decode(row["body"], type=Account)
        books.accounts[row["customer"]] = Held(
            account=account, body=row["body"], changed_at=int(row["changed_at"].timestamp())
        )
    for row in await conn.fetch(queries.open_alerts_of.sql, realm, customers):
        books.alerts[row["customer"]][row["cause"]] = AlertHeld(row["severity"], row["sentence"])
    return books


def _take_lots(books: Books, rows: Iterable[asyncpg.Record]) -> None:
    for row in rows:
        books.ends[row["id"]] = row["ends_at"]
        books.balances[row["customer"]][row["id"]] = LotBalance(
            granted=row["granted"],
            consumed=row["consumed"],
            expired=row["expired"],
            forfeited=row["forfeited"],
            taken_back=row["taken_back"],
        )


async def write_accounts(
    conn: Connection, realm: str, now: datetime, judgements: Sequence[Judgement], books: Books
) -> int:
    """Write what differs: accounts, lots with their entries, alerts, notices. Returns how many entries were posted."""
    news: list[Notice] = []
    changed: list[tuple[Account, Held | None]] = []
    for judgement in judgements:
        for customer, account in judgement.accounts.items():
            held = books.accounts.get(customer)
            nothing = not account.holds and not account.access and account.standing is Standing.GOOD
            if held is None and nothing:
                continue
            was, since = (held.account, held.changed_at) if held else (None, 0)
            news += account_news(was, account, since, int(now.timestamp()))  # also of an end that came by time alone
            if held is None or as_json(account) != held.body:
                changed.append((account, held))
    if changed:
        await _save_accounts(conn, realm, now, changed, judgements)
    entries = await _post(conn, realm, now, judgements, books)
    for customer, posted in entries.items():
        news += entry_news(posted, customer, int(now.timestamp()))
    await _save_alerts(conn, realm, judgements, books)
    if news:
        await write_notices(conn, realm, news)
    failpoint("after_accounts")
    return sum(map(len, entries.values()))


# standing and access -----------------------------------------------------------------------------------------------------


async def _save_accounts(
    conn: Connection,
    realm: str,
    now: datetime,
    changed: Sequence[tuple[Account, Held | None]],
    judgements: Sequence[Judgement],
) -> None:
    rows = []
    for account, held in changed:
        until = account.access_until
        rows.append(
            (
                account.customer,
                str(account.standing),
                len(account.holds),
                at(until) if until else None,
                as_json(account),
            )
        )
        before = held.account if held else Account(customer=account.customer)
        subjects = [hold.subject for hold in account.holds]
        if (before.standing, [hold.subject for hold in before.holds]) != (account.standing, subjects):
            decisions = {id_: d for judgement in judgements for id_, d in judgement.decisions.items()}
            await queries.save_standing_change(
                conn,
                realm=realm,
                customer=account.customer,
                was=str(before.standing),
                became=str(account.standing),
                holds=subjects,
                cause=_cause(before, account, decisions),
                now=now,
            )
            log.info(
                "standing.changed", customer=account.customer, was=str(before.standing), became=str(account.standing)
            )
    await conn.execute(queries.save_accounts.sql, realm, now, *columns(rows))


def _cause(before: Account, after: Account, decisions: Mapping[str, Decision]) -> str:
    """Why a standing or its holds changed, in words: what came, and what became of what went."""
    known, held = {h.subject for h in before.holds}, {h.subject for h in after.holds}
    said = [hold.lasting_cause for hold in after.holds if hold.subject not in known]
    for hold in before.holds:
        if hold.subject not in held:
            decision = decisions.get(hold.subject)
            said.append(decision.reason if decision else f"The hold of {hold.subject} was lifted.")
    return " ".join(said) or "What the holds do was changed by the policy or an agreement."


# credits -----------------------------------------------------------------------------------------------------------------


async def _post(
    conn: Connection, realm: str, now: datetime, judgements: Sequence[Judgement], books: Books
) -> dict[CustomerId, list[Entry]]:
    """Entries that bring every ledger to what the rules want; lots that lose something are locked and looked at again."""
    wanted = {customer: lots for judgement in judgements for customer, lots in judgement.lots.items()}
    unproved = frozenset[str]().union(*(judgement.unproved for judgement in judgements))
    now_s = int(now.timestamp())

    def due(customer: CustomerId) -> list[Entry]:
        ledger = books.balances.get(customer, {})
        proved = {lot: sums for lot, sums in ledger.items() if lot not in unproved} if unproved else ledger
        return postings(wanted[customer], proved, now_s)

    posted = {customer: found for customer in wanted if (found := due(customer))}
    known = {lot for sums in books.balances.values() for lot in sums}
    moved = [
        (lot, ends_at)
        for of_customer in wanted.values()
        for lot in of_customer.values()
        if lot.id in known and books.ends[lot.id] != (ends_at := _ends_at(lot))
    ]
    # all that will be written, in one order: a consumption locks its customer's lots in the same
    touched = {entry.lot for found in posted.values() for entry in found} & known | {lot.id for lot, _ in moved}
    if touched:
        _take_lots(books, await conn.fetch(queries.lock_lots.sql, realm, sorted(touched)))
        posted = {customer: due(customer) for customer in posted}
    entered = {entry.lot for found in posted.values() for entry in found}
    fresh = [lot for of in wanted.values() for lot in of.values() if lot.id in entered and lot.id not in known]
    lots = [_lot_row(lot, ends_at) for lot, ends_at in moved] + [_lot_row(lot, _ends_at(lot)) for lot in fresh]
    if lots:
        await conn.execute(queries.save_lots.sql, realm, *columns(sorted(lots)))
    rows = [_entry_row(customer, entry) for customer, found in sorted(posted.items()) for entry in found]
    if rows:
        await conn.execute(queries.save_entries.sql, realm, *columns(rows))
    return posted


def _ends_at(lot: Lot) -> datetime | None:
    return at(lot.ends_at) if lot.ends_at is not None else None


def _lot_row(lot: Lot, ends_at: datetime | None) -> tuple[Any, ...]:
    return lot.id, lot.customer, str(lot.kind), lot.clause, at(lot.granted_at), ends_at, lot.cause


def _entry_row(customer: str, entry: Entry) -> tuple[Any, ...]:
    return entry.lot, customer, str(entry.kind), entry.amount, entry.clause, entry.cause, at(entry.effective_at)


# alerts ------------------------------------------------------------------------------------------------------------------


async def _save_alerts(conn: Connection, realm: str, judgements: Sequence[Judgement], books: Books) -> None:
    """Raise what is new, say anew what changed, resolve what is gone."""
    raised: list[Alert] = []
    gone: list[str] = []
    fresh: dict[str, Alert] = {}
    wanted = {cause for judgement in judgements for cause in judgement.alerts}
    for judgement in judgements:
        held = {c: alert for customer in judgement.accounts for c, alert in books.alerts.get(customer, {}).items()}
        for cause, alert in sorted(judgement.alerts.items()):
            if held.get(cause) != AlertHeld(str(alert.severity), alert.sentence):
                raised.append(alert)
                if cause not in held:
                    fresh[cause] = alert
        gone += [cause for cause in held if cause not in wanted]
    if raised:
        rows = sorted((a.cause, a.kind, str(a.severity), a.customer, a.subject, a.sentence) for a in raised)
        said = {row["cause"] for row in await conn.fetch(queries.raise_alerts.sql, realm, *columns(rows))}
        for alert in (alert for cause, alert in fresh.items() if cause in said):
            say = log.info if alert.severity is Severity.NOTE else log.warning
            say("alert.raised", kind=alert.kind, severity=str(alert.severity), subject=alert.subject)
    if gone:
        await conn.execute(queries.resolve_alerts.sql, realm, sorted(gone))
