"""What a run found is let in through the one door: folded and judged by `settle`, in any process, as often as it takes.

`heal_due` is the work, and every worker does it; `Healing` gives a run's findings to it, waits, and looks whether they are gone.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import datetime

import asyncpg
import msgspec
import structlog

from handlers.customer import AnyFact, CustomerFile, Seconds, decode
from reconcile.compare import Matter, compare
from reconcile.findings import Class, What
from reconcile.report import SHOWN, Waiting
from worker.checks import check_books
from worker.db import Connection, Pool, queries, transaction
from worker.drain import is_about_these
from worker.errors import DatabaseUnavailable
from worker.inbox import Row, read_event, store_rows, unpack
from worker.judging import Court, path_of, want
from worker.matching import Matched, save_findings
from worker.runs import Run
from worker.settle import Overtaken, settle

BATCH = 20
"""Customers that are healed in one transaction."""
FACTS_AT_MOST = 5_000
ROWS = 2_000
HEAL_WITHIN_S = 900.0
SEND_WITHIN_S = 120.0
POLL_S = 0.5

log = structlog.get_logger()


async def heal_due(pool: Pool, court: Court, *, batch: int = BATCH) -> int:
    """Settle what finished comparing and waits to be healed, until nothing does. Returns how many facts were.

    A fact that cannot be settled is tried alone, and then marked `failed`: it holds up no other, and its run cannot be clean.
    """
    healed = 0
    while True:
        done, refused = await _heal(pool, court, batch)
        for run, id_ in refused:
            one, failed = await _heal(pool, court, 1, (run, id_))
            done += one
            if failed:
                async with transaction(pool) as conn:
                    await conn.execute(queries.healed.sql, "failed", run, [id_])
                log.error("heal.failed", run=run, id=id_)
        healed += done
        if not done and not refused:
            return healed


async def _heal(
    pool: Pool, court: Court, batch: int, only: tuple[str, str] | None = None
) -> tuple[int, list[tuple[str, str]]]:
    """One batch in one transaction: how many were settled, and those of a batch that failed."""
    claimed: list[asyncpg.Record] = []
    for attempt in (1, 2, 3):
        try:
            async with transaction(pool) as conn:
                claimed = await (
                    conn.fetch(queries.claim_to_heal_these.sql, only[0], [only[1]])
                    if only
                    else conn.fetch(queries.claim_to_heal.sql, batch, FACTS_AT_MOST)
                )
                await _settle(conn, court, claimed)
            return len(claimed), []
        except (Overtaken, asyncpg.SerializationError, asyncpg.DeadlockDetectedError):
            if attempt == 3:
                return 0, []  # says nothing against the facts: they wait for the next look
        except DatabaseUnavailable as error:
            if not is_about_these(error.__cause__):
                raise
            break
        except Exception as error:
            log.error("heal.failed", facts=len(claimed), error=type(error).__name__, exc_info=error)
            break
    return 0, [(row["run"], row["id"]) for row in claimed]


async def _settle(conn: Connection, court: Court, claimed: list[asyncpg.Record]) -> None:
    facts: dict[str, list[AnyFact]] = defaultdict(list)
    ids: dict[str, list[str]] = defaultdict(list)
    for row in claimed:
        facts[row["realm"]].append(decode(row["body"]))
        ids[row["run"]].append(row["id"])
    for realm, told in sorted(facts.items()):
        settled = await settle(conn, court, realm, told)
        log.info("heal.settled", realm=realm, facts=settled.facts, decisions=settled.decisions, entries=settled.entries)
    for run, healed in sorted(ids.items()):
        await conn.execute(queries.healed.sql, "healed", run, healed)


# a run's side of it ------------------------------------------------------------------------------------------------------


class Healing:
    """One run's findings on their way into the books. `serve` does a worker's work once, where no worker is alive."""

    def __init__(self, run: Run, court: Court, serve: Callable[[], Awaitable[int]] | None) -> None:
        self.run, self.court, self.serve = run, court, serve
        self.served = True
        """Whether a worker was alive."""
        self.why: list[str] = []

    async def heal(self, heard_since: Seconds | None, matched: Matched) -> None:
        """Give everything of class auto to healing, and wait until it is done. `heard_since`: events before it are not missing."""
        run = self.run
        alive = self.served = bool(await queries.live_workers(run.conn))
        if not alive:
            self.why.append(
                f"No worker is running: what was found was taken in and judged here (policy {self.court.policy.version[-1].id},"
                f" refunds {self.court.refunds}), and nothing is sent to Stripe until one runs."
            )
        await self._store_unheard(heard_since)
        rows = await run.conn.fetch(queries.findings_to_wake.sql, run.id, [str(w) for w in _WOKEN])
        customers = sorted({row["customer"] for row in rows if row["customer"]})
        async with run.transaction() as conn:
            if customers:
                await queries.wake_these(conn, realm=self.run.realm, customers=customers)
            await self._want_references(conn)
            await queries.begin_healing(conn, run=run.id, matched=msgspec.json.encode(matched))
        await self._until_healed(customers, alive)

    async def _store_unheard(self, since: Seconds | None) -> None:
        """Events that never arrived, into the inbox as if they had; those from before the books began are not missing."""
        after = ""
        while since is not None and (
            rows := await self.run.conn.fetch(queries.unheard_payloads.sql, self.run.id, since, after, ROWS)
        ):
            after = rows[-1]["event_id"]
            events = [self._row(unpack(row["payload"])) for row in rows]
            async with self.run.transaction() as conn:
                await store_rows(conn, events)

    def _row(self, payload: bytes) -> Row:
        """An event listed for a connected account need not name it: its realm is the run's."""
        row = read_event(payload, "live" if self.run.realm.startswith("live") else "test")
        return row._replace(kind=row.kind._replace(realm=self.run.realm))

    async def _want_references(self, conn: Connection) -> None:
        """What objects of nobody refer to is read: it says whose they are."""
        rows = await conn.fetch(queries.nobodys_references.sql, self.run.realm, self.run.id, str(What.NOBODYS))
        told = [
            (kind, ref)
            for row in rows
            for ref in (row["reference_a"], row["reference_b"])
            if ref and (kind := _kind_of_id(ref))
        ]
        if told:
            await want(conn, self.run.realm, [(kind, id_, path_of(kind, id_), 0) for kind, id_ in told])

    async def _until_healed(self, customers: list[str], alive: bool) -> None:
        """Until nothing of the run waits: for the workers, or by working here."""
        began = time.monotonic()
        while True:
            if not alive and self.serve is not None:
                await self.serve()
            row = (await self.run.conn.fetch(queries.still_to_heal.sql, self.run.id, self.run.realm, customers))[0]
            waits = [name for name in ("facts", "events", "wakeups", "lookups") if row[name]]
            sends = row["actions"] if alive and self.court.refunds == "auto" else 0
            elapsed = time.monotonic() - began
            if not waits and (not sends or elapsed > SEND_WITHIN_S):
                return
            if elapsed > HEAL_WITHIN_S:
                self.why.append(
                    f"After {HEAL_WITHIN_S / 60:.0f} minutes {' and '.join(waits)} still wait to be worked on: is a worker running?"
                )
                return
            if alive or not waits:
                await asyncio.sleep(POLL_S)

    async def verify(self) -> tuple[int, Waiting]:
        """Every finding of class auto again: how many are still there, and what waits for people now.

        What is as Stripe says is healed. A fact that is not makes the run incomplete; what the rules leave as it is although
        it looks overdue is a person's.
        """
        run = self.run
        unsettled = await run.conn.fetch(queries.unhealed_facts.sql, run.id, SHOWN)
        async with run.transaction() as conn:
            await queries.forgive_unhealed(conn, run=run.id)
            for row in unsettled:
                state = "it could not be settled" if row["state"] == "failed" else "nobody has settled it in time"
                await run.unread("books", row["id"], f"read from Stripe, and not taken into the books: {state}")
        unhealed = 0
        now: datetime = await queries.moment_of(run.conn, realm=run.realm)
        still, waiting = await check_books(run.conn, run.realm, now)
        stands = {finding.id for finding in still if finding.class_ is Class.AUTO}
        async with run.transaction() as conn:
            # what only came to light with what was healed is for a person, too; what was settled by it is not any more
            await save_findings(run, (finding for finding in still if finding.class_ is Class.ASK))
            await queries.drop_settled(
                conn, run=run.id, whats=[str(what) for what in _STANDING], ids=[finding.id for finding in still]
            )
        after = ""
        while rows := await run.conn.fetch(queries.auto_findings.sql, run.id, after, ROWS):
            after = rows[-1]["id"]
            objects = [row["object"] for row in rows]
            told = {r["id"]: r for r in await run.conn.fetch(queries.found_bodies.sql, run.id, objects)}
            here = {
                r["id"]: decode(r["body"])
                for r in await run.conn.fetch(queries.load_objects_by_id.sql, self.run.realm, objects)
            }
            heard = {r["event_id"] for r in await run.conn.fetch(queries.settled_events.sql, objects)}
            decided = {
                r["subject"] for r in await run.conn.fetch(queries.decided_subjects.sql, self.run.realm, objects)
            }
            healed, standing = list[str](), list[str]()
            for row in rows:
                match What(row["what"]):
                    case What.MISSING_HERE | What.DIFFERENT:
                        found, known = told.get(row["object"]), here.get(row["object"])
                        ok = found is not None and _agrees(known, decode(found["body"]))
                        if found is not None and _other_link(known, found):
                            ok, standing = False, [*standing, row["id"]]
                    case What.EVENT_UNHEARD:
                        ok = row["object"] in heard
                    case What.COPY_UNJUDGED:
                        ok = row["object"] in decided
                    case _:
                        ok = row["id"] not in stands
                        standing += [] if ok else [row["id"]]
                healed += [row["id"]] if ok else []
            unhealed += len(rows) - len(healed) - len(standing)
            async with run.transaction() as conn:
                await queries.mark_healed(conn, run=run.id, ids=healed)
                await queries.ask_about(conn, run=run.id, ids=standing)
        return unhealed, waiting


_STANDING = (
    What.EVENT_DEAD,
    What.ACTION_IN_DOUBT,
    What.REFUND_UNCONFIRMED,
    What.REFUND_DIFFERS,
    What.CHARGED_AFTER_END,
    What.OUT_OF_POLICY,
)
"""For a person as long as they stand; looked at before healing and after it."""
_WOKEN = (What.TRIAL_OVERDUE, What.CREDITS_OVERDUE, What.COPY_UNJUDGED)
_KINDS_BY_PREFIX = {
    "ch_": "charge",
    "py_": "charge",
    "pi_": "payment_intent",
    "in_": "invoice",
    "sub_": "subscription",
    "cs_": "checkout.session",
}


def _kind_of_id(id_: str) -> str | None:
    return next((kind for prefix, kind in _KINDS_BY_PREFIX.items() if id_.startswith(prefix)), None)


def _other_link(here: AnyFact | None, found: asyncpg.Record) -> bool:
    """Whether the books tie an object to another than Stripe shows: links never change, so no telling puts a wrong one right."""
    if here is None or not found["listed"]:
        return False
    told = decode(found["body"])
    both = ((getattr(here, name, None), getattr(told, name)) for name in told.STICKY)
    return any(theirs is not None and ours != theirs for ours, theirs in both)


def _agrees(here: AnyFact | None, at_stripe: AnyFact) -> bool:
    """Whether the books say what Stripe said, or were told something later since, be it within the same second."""
    if here is None:
        return False
    return compare(here, at_stripe, CustomerFile([here]), listed=False).matter in (Matter.SAME, Matter.MORE)
