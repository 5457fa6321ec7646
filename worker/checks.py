"""The books held against Stripe's balance transactions and against our own rules: what a run says of money, and what should have followed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import asyncpg
from msgspec.structs import replace

from handlers.customer import Refund, at, decode
from handlers.decisions import Money
from reconcile.findings import Class, Difference, Finding, What
from reconcile.money import BOOKED_AS, ROUNDING, Booked, MoneyOfRun, Tally
from reconcile.report import SHOWN, Day, Other, Waiting
from reconcile.windows import ScanPlan
from worker.db import Connection, queries
from worker.reading import decoded, fetch

_PREFETCH = 500

# money -------------------------------------------------------------------------------------------------------------------


async def money_of(
    conn: Connection, run_id: str, realm: str, plan: ScanPlan, drift: Mapping[str, What] | None = None
) -> MoneyOfRun:
    """Stripe's balance transactions of a run against the books, by currency and kind. Minor units; nothing is written.

    `drift` are the objects about which the run has a finding: that explains their money too. The rows of `objects` must
    have been projected (`digest`). What agrees is summed in the database and never leaves it.
    """
    names, kinds = list(BOOKED_AS), list(BOOKED_AS.values())
    lows, highs = [w.lo for w in plan.windows], [w.hi for w in plan.windows]
    tally = Tally(plan.windows, drift or {})
    async with conn.transaction():  # a cursor lives in one
        asked = (names, kinds, run_id, lows, highs, realm, ROUNDING, SHOWN)
        async for row in conn.cursor(queries.money.sql, *asked, prefetch=_PREFETCH):
            if row["is_sum"]:
                sums = (row["at_stripe"], row["ours"], row["moves"])
                tally.add_sum(row["currency"], row["kind"], row["class"], *sums)
            else:
                tally.add(_booked(row))
    others = await conn.fetch(queries.other_money.sql, run_id, names)
    days = await conn.fetch(queries.money_by_day.sql, lows, highs, names, kinds, run_id)
    return tally.close(
        [Other(currency=r["currency"], kind=r["kind"], at_stripe_minor=r["minor"], count=r["moves"]) for r in others],
        [Day(day=r["day"], currency=r["currency"], kind=r["kind"], minor=r["minor"], count=r["moves"]) for r in days],
    )


def _booked(row: asyncpg.Record) -> Booked:
    return Booked(
        object=row["object"],
        kind=row["kind"],
        currency=row["currency"],
        booked_in=row["booked_in"],
        at_stripe_minor=row["at_stripe"],
        ours_minor=row["ours"],
        moves=row["moves"],
        last_at=row["last_at"] or 0,
        native=row["native"],
        rate=row["rate"],
        fact=decode(row["body"]) if row["body"] is not None else None,
        customer=row["customer"],
        class_=row["class"],
        staged=row["staged"],
    )


async def unknown_sources(conn: Connection, run_id: str, realm: str, most: int) -> list[tuple[str, str]]:
    """(kind, id) of what moved money during a run and is neither in the books nor read by it: to be read by id."""
    rows = await conn.fetch(queries.unknown_sources.sql, list(BOOKED_AS), list(BOOKED_AS.values()), run_id, realm, most)
    return [(row["kind"], row["source"]) for row in rows]


# the books' own checks ---------------------------------------------------------------------------------------------------


async def check_books(conn: Connection, realm: str, now: datetime) -> tuple[list[Finding], Waiting]:
    """Everything in the books of a realm that should have been followed by something and was not, and what waits for people.

    All of it is told every time for as long as it stands. `now` is the realm's moment, aware, UTC.
    """
    asked = {"realm": realm, "now": now}
    doubtful = await fetch(conn, queries.actions_in_doubt, **asked)
    findings = [
        *(_troubled_event(row) for row in await fetch(conn, queries.troubled_events, realm=realm)),
        *(_in_doubt(row) for row in doubtful),
        *(_unconfirmed(row) for row in await fetch(conn, queries.unconfirmed_refunds, **asked)),
        *_differing(await fetch(conn, queries.differing_refunds, realm=realm)),
        *(_overdue(row) for row in await fetch(conn, queries.overdue_lots, **asked)),
        *(_charged_after_end(row) for row in await fetch(conn, queries.charges_after_end, realm=realm)),
        *(_out_of_policy(row) for row in await fetch(conn, queries.refunds_out_of_policy, realm=realm)),
        *(_nobodys(row) for row in await fetch(conn, queries.nobodys, **asked)),
    ]
    return findings, replace(await _waiting(conn, realm, now), in_doubt=len(doubtful))


async def _waiting(conn: Connection, realm: str, now: datetime) -> Waiting:
    """The queue that `finalsale review list` shows, by how long it waits."""
    since = [row["decided_at"] for row in await fetch(conn, queries.read_waiting, realms=[realm])]

    def longer_than(**length: int) -> int:
        return sum(1 for then in since if now - then > timedelta(**length))

    return Waiting(
        reviews=len(since),
        reviews_1h=longer_than(hours=1),
        reviews_4h=longer_than(hours=4),
        reviews_24h=longer_than(hours=24),
        reviews_older=longer_than(days=7),
        planned=await queries.planned_actions(conn, realm=realm),
        oldest_review_at=int(min(since).timestamp()) if since else None,
    )


def _when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _troubled_event(row: asyncpg.Record) -> Finding:
    fate = "could not be read" if row["state"] == "quarantined" else f"was given up after {row['attempts']} attempts"
    id_ = row["event_id"]
    return Finding(
        what=What.EVENT_DEAD,
        class_=Class.ASK,
        object=id_,
        kind="event",
        sentence=f"{row['type']} {id_} of {_when(row['created_at'])} arrived and {fate}: {row['error'] or 'no reason was kept'}.",
        do=f"See `finalsale events show {id_}`; once the cause is gone, `finalsale events replay {id_}`.",
    )


def _amount(row: asyncpg.Record) -> Money | None:
    return Money(row["amount_minor"], row["currency"]) if row["amount_minor"] is not None else None


def _wanted(row: asyncpg.Record) -> str:
    """What an action is to do, in words."""
    amount = _amount(row)
    return f"{row['kind'].replace('_', ' ')}{f' of {amount}' if amount else ''} for {row['subject']}"


def _in_doubt(row: asyncpg.Record) -> Finding:
    sending = row["state"] == "sending"
    said = f" ({row['error']})" if row["error"] else ""
    return Finding(
        what=What.ACTION_IN_DOUBT,
        class_=Class.AUTO if sending else Class.ASK,
        object=row["id"],
        kind="action",
        sentence=(
            f"{row['id']}, a {_wanted(row)}, was sent first on {_when(row['first_sent_at'])}, and "
            f"whether Stripe carried it out is not known{said}."
        ),
        do=(
            "The worker asks Stripe what became of it before it sends anything again; is a worker running?"
            if sending
            else f"See `finalsale explain {row['id']}` and look at {row['subject']} at Stripe, then answer with "
            f"`finalsale review approve {row['decision_id']} --by NAME` or `finalsale review reject {row['decision_id']} --by NAME`."
        ),
        customer=row["customer"],
        clause="4.3",
        amount=_amount(row),
    )


def _unconfirmed(row: asyncpg.Record) -> Finding:
    refund = row["stripe_id"] or "a refund without an id"
    why = (
        f"is still {row['stripe_status']}"
        if row["known"]
        else "was sent, and Stripe never told of it: neither webhook nor list"
    )
    return Finding(
        what=What.REFUND_UNCONFIRMED,
        class_=Class.ASK,
        object=row["id"],
        kind="action",
        sentence=f"{refund}, the {_amount(row)} of {row['id']} for {row['subject']}, sent on {_when(row['first_sent_at'])}, {why}.",
        do=f"Look at {refund} at Stripe, and see `finalsale explain {row['id']}`; send nothing again by hand before that.",
        customer=row["customer"],
        clause="4.3",
        amount=_amount(row),
    )


def _differing(rows: Sequence[asyncpg.Record]) -> list[Finding]:
    found = []
    for row in rows:
        refund = decode(row["body"])
        if not isinstance(refund, Refund):
            continue
        made, wanted = Money(refund.amount_minor, refund.currency), Money(row["amount_minor"], row["currency"])
        differences = [Difference("amount", str(wanted), str(made))] if made != wanted else []
        if refund.charge is not None and refund.charge != row["subject"]:
            differences.append(Difference("charge", row["subject"], refund.charge))
        if differences:
            found.append(_differs(row, refund, tuple(differences)))
    return found


def _differs(row: asyncpg.Record, refund: Refund, differences: tuple[Difference, ...]) -> Finding:
    said = " and ".join(f"{d.field} {d.at_stripe} instead of {d.here}" for d in differences)
    return Finding(
        what=What.REFUND_DIFFERS,
        class_=Class.ASK,
        object=row["id"],
        kind="action",
        sentence=f"{refund.id}, made for {row['id']}, is not what was decided: {said}.",
        do=f"Compare `finalsale explain {row['id']}` with {refund.id} at Stripe; a refund cannot be called back.",
        customer=row["customer"],
        clause="4.3",
        amount=_amount(row),
        differences=differences,
    )


def _overdue(row: asyncpg.Record) -> Finding:
    trial = row["kind"] == "trial"
    return Finding(
        what=What.TRIAL_OVERDUE if trial else What.CREDITS_OVERDUE,
        class_=Class.AUTO,
        object=row["id"],
        kind="lot",
        sentence=(
            f"{row['remaining']} {row['kind']} credits of {row['customer']} ({row['id']}) ended on {_when(row['ends_at'])}, "
            "and are still in the ledger."
        ),
        do=f"{row['customer']} is woken and judged again, and the ledger closes the lot (nobody could consume from it meanwhile).",
        customer=row["customer"],
        clause=row["clause"],
    )


def _charged_after_end(row: asyncpg.Record) -> Finding:
    decision = decoded(row)
    return Finding(
        what=What.CHARGED_AFTER_END,
        class_=Class.ASK,
        object=row["subject"],
        kind="invoice",
        sentence=decision.reason,
        do=f"See `finalsale explain {row['subject']}`; once it is seen to, `finalsale review reject {row['id']} --by NAME --note TEXT`.",
        customer=row["customer"],
        clause=decision.clause,
        amount=decision.amount,
    )


def _out_of_policy(row: asyncpg.Record) -> Finding:
    decision = decoded(row)
    act = "note" if row["verdict"] == "deny" else "reject"
    return Finding(
        what=What.OUT_OF_POLICY,
        class_=Class.ASK,
        object=row["subject"],
        kind="refund",
        sentence=decision.reason,
        do=(
            f"Stripe cannot call it back: find out who made it and why, with `finalsale explain {row['subject']}`; then say so with "
            f"`finalsale review {act} {row['id']} --by NAME --note TEXT`."
        ),
        customer=row["customer"],
        clause=decision.clause,
        amount=decision.amount,
    )


def _nobodys(row: asyncpg.Record) -> Finding:
    waits_for: list[str] = row["waits_for"]
    return Finding(
        what=What.NOBODYS,
        class_=Class.AUTO,
        object=row["id"],
        kind=row["kind"],
        sentence=(
            f"The {row['kind'].replace('_', ' ')} {row['id']} has waited since {_when(at(row['as_of']))} for {' or '.join(waits_for)}, "
            "which would say whose it is."
        ),
        do=f"{' and '.join(waits_for)} {'is' if len(waits_for) == 1 else 'are'} read from Stripe by id.",
    )
