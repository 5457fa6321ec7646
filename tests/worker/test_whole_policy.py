"""The truth table of the whole policy, driven from people's acts at Stripe to what comes of them, in both API shapes.

Each shape is played twice: delivered in order, and as rudely as Stripe may (shuffled, repeated, partly held back, in odd batches).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from functools import cache

import asyncpg
import msgspec
import pytest

from tests.conftest import database_named
from tests.policy_truth import ROWS as CLAUSES
from tests.policy_truth_chargebacks import ROWS as CHARGEBACKS
from tests.stripe_sender import WEBHOOK_SECRET
from tests.worker.rehearsal import SHAPES, Row, stage
from worker.db import connect_pool
from worker.embedded import EmbeddedServers
from worker.settings import Settings

ROWS = [*CLAUSES, *CHARGEBACKS]
LAST_DAY = 66
DELIVERIES = {"in order": None, "rudely": 7}
PASSING = ("told: ", "alert over: ")
"""What may be told in between where events come in another order: news and alerts of what was true only for a moment."""


class Played(msgspec.Struct, frozen=True):
    """What became of every row, by its place in the table."""

    seen: list[list[str]]
    failures: list[Exception | None]
    repeats: int
    undone: list[str]
    """What was left in the inbox, the look-ups or the actions, which should be nothing."""


async def play(servers: EmbeddedServers, shape: str, delivery: str) -> Played:
    """The whole table in a database of its own."""
    name, maintenance = f"test_{secrets.token_hex(6)}", await asyncpg.connect(database_named(servers, "postgres"))
    await maintenance.execute(f"create database {name} template finalsale")
    url = database_named(servers, name)
    settings = Settings(stripe_api_key="sk_test_canary0000000000", stripe_webhook_secret=WEBHOOK_SECRET).with_servers(
        url, servers.redis_url
    )
    pool = await connect_pool(url, role="test", min_size=1, max_size=8)
    try:
        async with stage(settings, pool, shape, rude=DELIVERIES[delivery]) as played:
            await played.play(ROWS, LAST_DAY)
            undone = await pool.fetch(_UNDONE)
            return Played(
                seen=[scene.seen for scene in played.scenes],
                failures=[scene.failure for scene in played.scenes],
                repeats=played.repeats,
                undone=[row["what"] for row in undone],
            )
    finally:
        pool.terminate()
        await maintenance.execute(f"drop database if exists {name} with (force)")
        await maintenance.close()


_UNDONE = """
    select 'event ' || event_id || ' ' || state || ' ' || coalesce(error, '') as what from inbox where state <> 'done'
    union all select 'lookup ' || kind || ' ' || state || ' ' || coalesce(error, '') from lookups where state <> 'done'
    union all select 'action ' || kind || ' ' || state || ' ' || coalesce(error, '') from actions
              where state not in ('sent', 'proposed', 'withdrawn')"""


@pytest.fixture(scope="module")
def played(servers: EmbeddedServers) -> Callable[[str, str], Played]:
    """The table, played once for each shape and delivery that is asked for."""

    @cache
    def once(shape: str, delivery: str) -> Played:
        return asyncio.run(play(servers, shape, delivery))

    return once


def _lasting(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith(PASSING)]


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("number", range(len(ROWS)), ids=[f"{row.clause}: {row.name}" for row in ROWS])
def test_the_policy_says(played: Callable[[str, str], Played], number: int, shape: str, delivery: str) -> None:
    row: Row = ROWS[number]
    table = played(shape, delivery)
    if (failure := table.failures[number]) is not None:
        raise failure
    if delivery == "in order":
        assert table.seen[number] == row.outcome(shape)
    else:
        assert _lasting(table.seen[number]) == _lasting(row.outcome(shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_left_undone_and_the_rude_delivery_was_rude(
    played: Callable[[str, str], Played], shape: str
) -> None:
    assert [played(shape, delivery).undone for delivery in DELIVERIES] == [[], []]
    assert played(shape, "rudely").repeats > 100


@pytest.mark.parametrize(
    "clause", ["1.1", "1.2", "1.3", "2, 6", "3.1", "3.2", "3.3", "4.1", "4.2", "4.3", "5", "7", "8", "9"]
)
def test_every_clause_has_rows(clause: str) -> None:
    assert len([row for row in ROWS if row.clause == clause]) >= 2
