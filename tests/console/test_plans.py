"""Whatever a page, a gauge, the alert round or the doctor asks of books that have grown reads an index, and a bounded part of it."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import pytest

from bench.console import addresses
from bench.large_books import Size, make
from bench.played import POLICY
from tests.conftest import database_named
from worker import gauges, reading
from worker.console import PAGES
from worker.console.page import Page, Visit
from worker.db import Connection, Pool, connect_pool, connection, queries
from worker.db.migrations import current_revision
from worker.deployment import Deployment
from worker.doctor import CHECKS
from worker.embedded import EmbeddedServers
from worker.judging import Court
from worker.operators import Operator, Role
from worker.settings import Settings
from worker.stripe_gateway import StripeGateway
from worker.vigil import Vigil

SIZE = Size(customers=2_000, events=20_000, alerts=2_000, acts=2_000, runs=100)
GROWING = frozenset(
    (
        *("inbox", "objects", "links", "decisions", "actions", "entries", "lots", "accounts", "standing_changes"),
        *("notices", "alerts", "cases", "operator_acts", "audit_chain", "runs", "findings", "review_acts"),
        "paid_periods",
    )
)
MOST = 600
"""Rows of one table that a statement may touch here: less than a third of what there is of nearly everything."""

PAGES_MAY = {
    "console_events": "a filter looks at no more than 5,000 events, however rare what it asks for is",
    "console_judged": "400 decisions of each verdict at most, each by its own descent",
}
GAUGES_MAY = {
    "gauge_reviews": "every review there ever was, once a minute and no more than a fiftieth of the time",
    "gauge_refunded": "every refund there ever was, once a minute and no more than a fiftieth of the time",
    "gauge_accounts": "counts all customers, every five minutes and no more than a fiftieth of the time",
    "gauge_credits": "sums all lots, every five minutes and no more than a fiftieth of the time",
}
STATUS_MAY = {
    "inbox_counts": "counts everything, for a person who asks",
    "verdict_counts": "counts everything, for a person who asks",
    "action_counts": "counts everything, for a person who asks",
    "refunded_by_currency": "sums every refund, for a person who asks",
    "credit_sums": "sums all lots, for a person who asks",
    "read_waiting": "every review there ever was, for a person who asks",
}

NAMES = {
    getattr(queries, name).sql: name.removesuffix("_cursor")
    for name in queries.available_queries
    if hasattr(getattr(queries, name), "sql")
}
_ASKS = re.compile(r"\s*(?:--[^\n]*\n\s*)*(?:with|select|insert|update|delete)\b", re.I)


@pytest.fixture(scope="module")
def grown(servers: EmbeddedServers) -> Iterator[str]:
    """Books in which everything that grows has grown, shared by the tests here."""
    name = f"grown_{secrets.token_hex(6)}"
    url = database_named(servers, name)

    async def on_server(statement: str) -> None:
        server = await asyncpg.connect(database_named(servers, "postgres"))
        await server.execute(statement)
        await server.close()

    asyncio.run(on_server(f"create database {name} template finalsale strategy wal_log"))
    asyncio.run(make(url, SIZE))
    yield url
    asyncio.run(on_server(f"drop database {name} with (force)"))


@pytest.fixture
def looking(grown: str, redis_url: str) -> Settings:
    """Settings of a deployment on these books, without a key of Stripe's."""
    return Settings(stripe_webhook_secret="whsec_test_0123456789abcdef").with_servers(grown, redis_url)  # type: ignore[arg-type]  # read as the environment's text is


@pytest.fixture
async def one(looking: Settings) -> Any:
    """A pool of one connection, whose statements can be listened to."""
    pool = await connect_pool(looking.database_dsn(), role="test", max_size=1)
    yield pool
    pool.terminate()


class Asked(NamedTuple):
    """A statement as it was sent."""

    sql: str
    args: tuple[Any, ...]

    @property
    def name(self) -> str:
        return NAMES.get(self.sql, " ".join(self.sql.split())[:60])


class Listener:
    """Every statement of a pool of one connection, each once for each set of arguments."""

    def __init__(self) -> None:
        self.asked: dict[str, Asked] = {}

    def __call__(self, told: Any) -> None:
        if _ASKS.match(told.query) and "pg_advisory_unlock_all" not in told.query:  # which the pool sends with others
            self.asked.setdefault(f"{told.query} {told.args!r}", Asked(told.query, told.args))


async def listen(pool: Pool) -> Listener:
    listener = Listener()
    async with connection(pool) as conn:
        conn.add_query_logger(listener)
    return listener


async def unbounded(url: str, listener: Listener) -> dict[str, str]:
    """The statements that read a growing table whole, or more than MOST rows of one: by name, with what they read."""
    assert listener.asked
    found: dict[str, str] = {}
    conn = await asyncpg.connect(url)
    for asked in listener.asked.values():
        undone = conn.transaction()
        await undone.start()
        try:
            await conn.execute("set local enable_seqscan = off")
            for node in await plan(conn, "explain (format json)", asked):
                if node["Node Type"] == "Seq Scan" and node["Relation Name"] in GROWING:
                    found[asked.name] = f"no index serves it on {node['Relation Name']}"
            await conn.execute("set local enable_seqscan = on")
            for node in await plan(conn, "explain (analyze, timing off, format json)", asked):
                rows = touched(node)
                if node.get("Relation Name") in GROWING and rows > MOST:
                    found.setdefault(asked.name, f"{rows:.0f} rows of {node['Relation Name']}")
        finally:
            await undone.rollback()
    await conn.close()
    return found


async def plan(conn: Any, how: str, asked: Asked) -> list[dict[str, Any]]:
    """The nodes of a statement's plan."""
    told = json.loads(await conn.fetchval(f"{how} {asked.sql}", *asked.args))
    return list(nodes(told[0]["Plan"]))


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in node.get("Plans", ()):
        yield from nodes(inner)


def touched(node: Mapping[str, Any]) -> float:
    """Rows that a node looked at, whether or not it passed them on."""
    each = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    return float(sum(node.get(name, 0) for name in each)) * float(node.get("Actual Loops", 1))


def page_at(path: str) -> tuple[Page, dict[str, str]]:
    """The page that answers a path, and the path's variable parts."""
    for page in PAGES:
        found = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", page.path), path)
        if page.method == "GET" and found:
            return page, found.groupdict()
    raise LookupError(path)


async def show(conn: Connection, looking: Settings, address: str) -> None:
    """One page as the console asks for it: in a snapshot that changes nothing."""
    parts = urlsplit(address)
    page, path = page_at(parts.path)
    court, admin = Court(policy=POLICY, refunds="review"), Operator("Ada", Role.ADMIN)
    query = dict(parse_qsl(parts.query))
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        await page.show(Visit(conn, looking, court, ["test"], admin, datetime.now(UTC), path, query, {}))


async def test_every_page_reads_an_index_and_a_bounded_part_of_it(looking: Settings, one: Pool) -> None:
    async with connection(one) as conn:
        pages = await addresses(conn)
    listener = await listen(one)
    for address in pages.values():
        async with connection(one) as conn:
            await show(conn, looking, address)
    found = await unbounded(looking.database_dsn(), listener)
    assert found.keys() == PAGES_MAY.keys(), found


async def test_the_alert_round_reads_an_index_and_a_bounded_part_of_it(looking: Settings, one: Pool) -> None:
    gateway = StripeGateway(looking)
    listener = await listen(one)
    await Vigil(one, looking, gateway).look()
    await gateway.aclose()
    assert {"late_reviews", "backlog_age", "settle_vigil_alerts"} <= {asked.name for asked in listener.asked.values()}
    found = await unbounded(looking.database_dsn(), listener)
    assert found == {}


async def test_only_gauges_that_are_asked_for_seldom_read_much(looking: Settings, one: Pool) -> None:
    listener = await listen(one)
    for look in gauges.LOOKS:
        async with connection(one) as conn:
            await look.ask(conn, ["test"])
    found = await unbounded(looking.database_dsn(), listener)
    assert found.keys() == GAUGES_MAY.keys(), found


async def test_the_status_command_reads_whole_tables_only_to_count_them(looking: Settings, one: Pool) -> None:
    listener = await listen(one)
    async with connection(one) as conn:
        await reading.status(conn, await reading.realms_of(conn, "test"), looking, POLICY)
    found = await unbounded(looking.database_dsn(), listener)
    assert found.keys() == STATUS_MAY.keys(), found


async def test_the_doctor_reads_a_bounded_part_of_the_books(looking: Settings, one: Pool) -> None:
    gateway = StripeGateway(looking)
    listener = await listen(one)
    async with connection(one) as conn:
        looked = Deployment(settings=looking, gateway=gateway, turn=asyncio.Lock(), conn=conn)
        looked.postgres, looked.revision = str(await conn.fetchval("show server_version")), await current_revision(conn)
        for placed in CHECKS:
            if placed.in_books:
                await placed.check(looked)
    await gateway.aclose()
    found = await unbounded(looking.database_dsn(), listener)
    assert found == {}
