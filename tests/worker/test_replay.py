"""Properties of the books that random lives leave behind, and the same books again from the same events in any order."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest

from handlers.account import OPERATOR_HOLD, Account, Act, ActKind
from sandbox.webhooks import snapshot_body
from tests.conftest import database_named
from tests.worker.lives_at_random import LAST_DAY, life
from tests.worker.merchant import Obj, store
from tests.worker.rehearsal import DAY, REALM, Row, Scene, Stage, stage
from worker.db import Pool, connect_pool
from worker.drain import drain
from worker.embedded import EmbeddedServers
from worker.perform import Performer
from worker.settings import Settings

LIVES = 7


@asynccontextmanager
async def lived(settings: Settings, pool: Pool, shape: str, seed: int, *, consuming: bool) -> AsyncIterator[Stage]:
    """Some random lives, played to their end, with an outage in the middle and at least one duplicate."""
    story = life(seed, consuming=consuming)
    rows = [Row(clause="", name=str(n), story=story, then="") for n in range(LIVES)]
    rows += [Row(clause="", name=story.__name__, story=story, then="") for story in (_outage, _double_click)]
    async with stage(settings, pool, shape, rude=seed if consuming else None) as played:
        await played.play(rows, LAST_DAY + 1)
        assert [scene.failure for scene in played.scenes if scene.failure] == []
        assert await pool.fetchval("select count(*) from inbox where state <> 'done'") == 0
        yield played


async def _outage(scene: Scene) -> AsyncIterator[float]:
    yield 30
    await scene.outage(20, 23)


async def _double_click(scene: Scene) -> AsyncIterator[float]:
    scene.buy()
    yield 42 / DAY
    scene.buy()
    yield 1


# what the books must be ------------------------------------------------------------------------------------------------------


def lifted_or_kept(status: str, acts: list[Act]) -> bool:
    """Whether a dispute holds its customer: the chapter "Chargebacks in full" once more, in few words."""
    lifted: set[str] = set()
    for act in acts:
        if act.kind is ActKind.KEEP:
            lifted = {"kept"}
        else:
            lifted.discard("kept")
            lifted.add(_stage(act.status))
    return "kept" in lifted or (_stage(status) not in ("none", *lifted))


def _stage(status: str) -> str:
    if status.startswith("warning_") or status in ("won", "prevented"):
        return "none"
    if status == "lost":
        return "lost"
    return "appeal" if status.startswith("appeal_") else "open"


async def check_ledger(pool: Pool, known: set[str]) -> None:
    """Entries add up to the lots, never below zero, and each names what moved the credits."""
    sums: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    left: dict[str, int] = defaultdict(int)
    entries = await pool.fetch("select * from entries order by id")
    for entry in entries:
        sums[entry["lot"]][entry["kind"]] += entry["amount"] if entry["kind"] == "granted" else -entry["amount"]
        left[entry["lot"]] += entry["amount"]
        assert left[entry["lot"]] >= 0, dict(entry)
        if entry["kind"] != "consumed":
            assert known & set(re.findall(r"[a-z]+_\w+", entry["cause"])), entry["cause"]
        else:
            assert f"key {entry['key']}" in entry["cause"]
    lots = await pool.fetch("select * from lots")
    assert {lot["id"] for lot in lots} == set(sums)
    for lot in lots:
        kinds = {k: lot[k] for k in ("granted", "consumed", "expired", "forfeited", "taken_back")}
        assert kinds == {k: sums[lot["id"]][k] for k in kinds}, lot["id"]
        assert lot["remaining"] == left[lot["id"]] >= 0
        assert kinds["granted"] > 0
    assert lots


async def check_holds(played: Stage) -> None:
    """The set of holds is the set of open chargebacks and what operators said of them; every change has its cause."""
    pool, books = played.m.pool, played.m.books
    acts = [
        msgspec.json.decode(row["body"], type=Act)
        for row in await pool.fetch("select body from acts order by acted_at")
    ]
    acts.sort(key=lambda act: act.at)
    expected: dict[str, set[str]] = defaultdict(set)
    for dispute in books.all("dispute"):
        customer = books.by_id[dispute["charge"]]["customer"]
        if lifted_or_kept(dispute["status"], [a for a in acts if a.dispute == dispute["id"]]):
            expected[customer].add(dispute["id"])
    for act in acts:
        if act.kind is ActKind.SUSPEND:
            expected[act.customer].add(OPERATOR_HOLD)
        elif act.kind is ActKind.LIFT and act.dispute is None:
            expected[act.customer].discard(OPERATOR_HOLD)
    accounts = {row["customer"]: row for row in await pool.fetch("select * from accounts")}
    found = {
        customer: {hold.subject for hold in msgspec.json.decode(row["body"], type=Account).holds}
        for customer, row in accounts.items()
    }
    assert {c: holds for c, holds in found.items() if holds} == {c: holds for c, holds in expected.items() if holds}
    last: dict[str, tuple[str, set[str]]] = defaultdict(lambda: ("good", set()))
    for change in await pool.fetch("select * from standing_changes order by id"):
        was, held = last[change["customer"]]
        now = set(change["holds"])
        assert change["was"] == was
        assert (change["became"], now) != (was, held), "a change that changed nothing"
        for subject in now ^ held:
            said = r"Suspended by|operator" if subject == OPERATOR_HOLD else subject
            assert re.search(said, change["cause"]), dict(change)
        last[change["customer"]] = (change["became"], now)
    for customer, row in accounts.items():
        assert last[customer] == (row["standing"], found[customer]), customer
        assert row["holds"] == len(found[customer])


def everything_known(played: Stage) -> set[str]:
    return {*played.m.books.by_id, *(id_ for scene in played.scenes for id_ in scene.declared)}


@pytest.mark.parametrize(("seed", "shape"), [(1, "new"), (2, "old"), (3, "new"), (4, "old")])
async def test_the_books_add_up_whatever_happens(settings: Settings, pool: Pool, seed: int, shape: str) -> None:
    async with lived(settings, pool, shape, seed, consuming=True) as played:
        acts = {row["id"] for row in await pool.fetch("select id from acts")}
        await check_ledger(pool, everything_known(played) | acts)
        await check_holds(played)
        for table in ("acts", "standing_changes", "consumptions", "outages"):
            assert await pool.fetchval(f"select count(*) from {table}"), f"no {table}: the lives were too quiet"


# the same books again ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def empty_database(servers: EmbeddedServers, played: Stage) -> AsyncIterator[Pool]:
    """A database with nothing in it but what operators did, at the moment at which the lives ended."""
    name = f"replay_{random.randbytes(6).hex()}"
    maintenance = await asyncpg.connect(database_named(servers, "postgres"))
    await maintenance.execute(f"create database {name} template finalsale")
    pool = await connect_pool(database_named(servers, name), role="test", min_size=1, max_size=4)
    try:
        for table in ("acts", "outages", "rehearsal_clock"):
            rows = await played.m.pool.fetch(f"select * from {table}")
            columns = list(rows[0].keys())
            await pool.copy_records_to_table(table, records=[tuple(row) for row in rows], columns=columns)
        yield pool
    finally:
        pool.terminate()
        await maintenance.execute(f"drop database if exists {name} with (force)")
        await maintenance.close()


async def replay(played: Stage, pool: Pool, events: list[Obj], batches: random.Random) -> None:
    """These events in this order, drained in batches of any size, and then everything that has fallen due."""
    while events:
        part = batches.randint(1, 60)
        now, events = events[:part], events[part:]
        await store(pool, *(snapshot_body(event) for event in now))
        await drain(pool, played.m.court, batch=batches.randint(1, 60))
    assert await pool.fetchval("select count(*) from inbox where state <> 'done'") == 0
    played.process.pool = pool
    for _ in range(3):
        await played.process._sweep_once()


async def look_up(played: Stage, pool: Pool) -> None:
    """What the rules wished to read at Stripe, as it stands there now."""
    performer = Performer(pool, played.m.court, played.m.gateway, REALM)
    for _ in range(12):
        await pool.execute("update lookups set next_at = now() where state = 'waiting'")
        await performer.look_up_due()


async def books_of(pool: Pool) -> dict[str, Any]:
    """Everything that the order of events must not change: facts, decisions in force, accounts, alerts, net credits."""
    objects = await pool.fetch("select id, kind, customer, body from objects order by id")
    decisions = await pool.fetch(
        "select distinct on (subject) subject, body from decisions order by subject, revision desc"
    )
    said = {row["subject"]: json.loads(row["body"]) for row in decisions}
    accounts = await pool.fetch("select customer, body from accounts order by customer")
    alerts = await pool.fetch("select cause, customer, severity, sentence from alerts where resolved_at is null")
    actions = await pool.fetch(
        "select kind, subject, amount_minor from actions where state <> 'withdrawn' order by kind, subject"
    )
    return {
        "objects": {row["id"]: tuple(row) for row in objects},
        "decisions": {s: d for s, d in said.items() if not d["reason"].startswith("Withdrawn")},
        "accounts": {row["customer"]: json.loads(row["body"]) for row in accounts if _is_news(row["body"])},
        "alerts": {row["cause"]: dict(row) for row in alerts},
        "actions": [tuple(row) for row in actions],
        "credits": await credits_of(pool),
    }


def _is_news(body: bytes) -> bool:
    """Whether an account says anything: one that was judged good and empty again is as if it had never been."""
    account = msgspec.json.decode(body, type=Account)
    return bool(account.holds or account.access)


async def credits_of(pool: Pool) -> dict[tuple[str, str], int]:
    """Net sums by lot and kind. Left out: lots whose ground was told away again, which were granted and taken back whole; and
    what an outage gave, which is granted by what is known at that moment (4.2)."""
    rows = await pool.fetch(
        """select lot, kind, sum(amount) as net from entries e
           where lot not like 'service:out_%'
             and not exists (select from lots l join entries gone on gone.lot = l.id and gone.realm = l.realm
                             where l.id = e.lot and l.taken_back = l.granted and gone.kind = 'taken_back'
                               and gone.cause like 'with what is known now%')
           group by lot, kind having sum(amount) <> 0"""
    )
    return {(row["lot"], row["kind"]): int(row["net"]) for row in rows}


@pytest.mark.parametrize(("seed", "shape"), [(11, "new"), (12, "old")])
async def test_all_events_again_into_empty_databases_make_the_same_books(
    servers: EmbeddedServers, settings: Settings, pool: Pool, seed: int, shape: str
) -> None:
    """One delivery of each event in order; shuffled and repeated; and as it was lived, with look-ups and refunds."""
    async with lived(settings, pool, shape, seed, consuming=False) as played:
        events = list(played.m.books.all("event"))
        rng = random.Random(seed)
        disorder = [*events, *({**e, "id": e["id"] + "again"} for e in rng.sample(events, len(events) // 2))]
        rng.shuffle(disorder)
        async with empty_database(servers, played) as first, empty_database(servers, played) as second:
            await replay(played, first, events, random.Random(seed))
            await replay(played, second, disorder, random.Random(seed + 1))
            one, other = await books_of(first), await books_of(second)
            for part in one:
                assert one[part] == other[part], part
            await look_up(played, first)
            again, was = await books_of(first), await books_of(pool)
            assert again["accounts"] == was["accounts"]
            assert again["credits"] == was["credits"]
            refunded = {
                row["customer"]
                for row in await pool.fetch("select customer from actions where first_sent_at is not null")
            }
            assert refunded
            for part in ("decisions", "alerts"):
                assert of_others(again[part], refunded) == of_others(was[part], refunded), part


def of_others(told: dict[str, Any], customers: set[str]) -> dict[str, Any]:
    """But for these customers: that our own refund was made is an action's row, not an event, so they are judged otherwise."""
    return {key: row for key, row in told.items() if row["customer"] not in customers}
