"""Declared outages (4.2): the preview of who would get how many credits and why, the declaration, and what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime

import asyncpg
import msgspec

from handlers.account import Lot, Outage
from handlers.customer import PriceId
from handlers.decisions import as_json
from worker import audit
from worker.db import Connection, queries
from worker.history import persons
from worker.judging import Court
from worker.reading import Document, NotUnderstood, fetch
from worker.review import ActRefused, named, said_why

MAX_DAYS = 31


async def preview(
    conn: Connection, court: Court, realm: str, begins: datetime, ends: datetime, plans: Sequence[str]
) -> Document:
    """Who would get how many service credits if this outage were declared now, and why. Writes nothing.

    Raises NotUnderstood where the times make no outage.
    """
    now: datetime = await queries.moment_of(conn, realm=realm)
    outage = _outage(realm, begins, ends, plans, now, "preview", "preview")
    declared = tuple(_decoded(row) for row in await conn.fetch(queries.declared_outages.sql, realm))
    known = outage.id in {other.id for other in declared}
    lots: list[Lot] = []
    async for person in persons(conn, realm, kind="subscription"):
        judged = person.judge(
            court.policy,
            now,
            test_clocks=court.test_clocks,
            outages=declared if known else (*declared, outage),
        )
        for theirs in judged.lots.values():
            lots += [lot for lot in theirs.values() if lot.id.startswith(f"service:{outage.id}:")]
    lots.sort(key=lambda lot: (-lot.credits, lot.id))
    return {
        "id": outage.id,
        "declared": known,
        "begins": begins,
        "ends": ends,
        "plans": sorted(plans),
        "subscriptions": len(lots),
        "customers": len({lot.customer for lot in lots}),
        "credits": sum(lot.credits for lot in lots),
        "who": [_row(lot) for lot in lots],
    }


def _row(lot: Lot) -> Document:
    subscription = lot.id.rpartition(":")[2]
    return {"customer": lot.customer, "subscription": subscription, "credits": lot.credits, "why": lot.cause}


async def declare(
    conn: Connection,
    realm: str,
    begins: datetime,
    ends: datetime,
    plans: Sequence[str],
    *,
    confirm: str,
    by: str,
    reason: str,
    via: str = "cli",
) -> Document:
    """Declare what was previewed: the credits follow file by file, once, also for subscriptions learned of later.

    `confirm` is the preview's id, so that what is declared is what was looked at. Declared again, nothing happens.
    Must run inside a transaction. Raises NotUnderstood, ActRefused.
    """
    if not (why := said_why(reason)):
        raise ActRefused("An outage is declared with a reason: --reason TEXT.")
    now: datetime = await queries.moment_of(conn, realm=realm)
    outage = _outage(realm, begins, ends, plans, now, named(by), why)
    if confirm != outage.id:
        raise ActRefused(
            f"{confirm!r} is not what this outage is called: look at its preview, then say --confirm {outage.id}."
        )
    fresh = await queries.save_outage(conn, id=outage.id, realm=realm, body=as_json(outage))
    woken = await queries.wake_subscribers(conn, realm=realm) if fresh else 0
    if fresh:
        after = {"begins": begins, "ends": ends, "plans": sorted(plans), "customers_to_judge": woken or 0}
        told: Document = {"by": outage.by, "via": via, "act": "outage.declare", "subject": outage.id, "reason": why}
        await audit.record(conn, realm, after=after, **told)
    return {"id": outage.id, "declared_now": bool(fresh), "customers_to_judge": woken or 0}


async def declared(conn: Connection, realms: Sequence[str], id_: str | None = None) -> list[Document]:
    """Every declared outage, or the one with this id, with the credits given so far and the files still to be judged."""
    rows = await fetch(conn, queries.read_outages, realms=list(realms), id=id_)
    return [_document(row) for row in rows]


def _document(row: asyncpg.Record) -> Document:
    outage = _decoded(row)
    return {
        **msgspec.to_builtins(outage),
        "begins": datetime.fromtimestamp(outage.begins, tz=row["declared_at"].tzinfo),
        "ends": datetime.fromtimestamp(outage.ends, tz=row["declared_at"].tzinfo),
        "declared_at": row["declared_at"],
        "subscriptions": row["subscriptions"],
        "credits": row["credits"],
        "still_to_judge": row["still_to_judge"],
    }


def _decoded(row: asyncpg.Record) -> Outage:
    return msgspec.json.decode(row["body"], type=Outage)


def _outage(
    realm: str, begins: datetime, ends: datetime, plans: Sequence[str], now: datetime, by: str, reason: str
) -> Outage:
    if ends <= begins:
        raise NotUnderstood(
            f"An outage that ends ({ends:%Y-%m-%dT%H:%M:%SZ}) before it begins is none: check --from and --to."
        )
    if ends > now:
        raise NotUnderstood("The outage is not over yet (--to lies in the future): declare it when it is.")
    if (ends - begins).days >= MAX_DAYS:
        raise NotUnderstood(f"An outage of {(ends - begins).days} days: at most {MAX_DAYS} can be declared at once.")
    told = [realm, int(begins.timestamp()), int(ends.timestamp()), sorted(plans)]
    return Outage(
        id="out_" + hashlib.sha256(as_json(told)).hexdigest()[:16],
        begins=int(begins.timestamp()),
        ends=int(ends.timestamp()),
        plans=tuple(PriceId(plan) for plan in sorted(plans)),
        declared_at=int(now.timestamp()),
        by=by,
        reason=reason,
    )
