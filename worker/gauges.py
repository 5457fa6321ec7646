"""What a web process knows of the books for Prometheus: looked up in the background, served from memory, each look with its age.

`GET /metrics` never waits for Postgres: while it is away the last known values are served, and `finalsale_look_age_seconds`
rises. A look is repeated no sooner than SPARING times what it took, so that no size of the books makes it a burden.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from typing import Any, NamedTuple

import asyncpg
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from handlers.chargebacks import AWAITED
from handlers.customer import Dispute, decode_known
from worker import metrics
from worker.budget import TOTAL_S
from worker.db import Connection, queries, session_settings
from worker.db.migrations import KNOWN_REVISIONS
from worker.log import get_logger
from worker.reading import fetch, realms_of
from worker.settings import Settings

LOOK_S = 5.0
"""How often the shared counts are added and read. Below every scrape interval, so that no process shows less than another did."""
CHEAP_S, QUEUE_S, DEAR_S = 15.0, 60.0, 300.0
SPARING = 50
MOST = 10_000
"""Rows counted of one thing; more is a number that nobody reads exactly."""
STATEMENT_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0
AGES = ("<1h", "1h-4h", "4h-24h", ">24h")

log = get_logger()

Rows = Iterable[tuple[Sequence[str], float]]


def gauge(name: str, text: str, labels: Sequence[str], rows: Rows) -> Metric:
    """One family of gauges."""
    family = GaugeMetricFamily(f"finalsale_{name}", text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def lone(name: str, text: str, number: float | None) -> Metric:
    """A family of one gauge without labels, or of none where there is nothing to say."""
    return gauge(name, text, (), [] if number is None else [((), float(number))])


async def _inbox(conn: Connection, realms: list[str]) -> Iterator[Metric]:
    ages = await queries.gauge_inbox(conn)
    troubled = {row["state"]: row["many"] for row in await fetch(conn, queries.gauge_troubled, most=MOST)}
    return iter(
        (
            lone("inbox_oldest_age_seconds", "How long the oldest waiting event waits.", ages["oldest_s"] or 0.0),
            lone(
                "inbox_newest_age_seconds",
                "How long ago the newest event came in. Long where the account usually has events: look at the endpoint.",
                ages["newest_s"],
            ),
            gauge(
                "inbox_troubled_events",
                "Events that could not be worked on: dead (failed eight times) or quarantined (not understood). What they tell is missing from the books until `finalsale events replay`.",
                ("state",),
                [((state,), troubled.get(state, 0)) for state in ("dead", "quarantined")],
            ),
        )
    )


async def _actions(conn: Connection, realms: list[str]) -> Iterator[Metric]:
    begun = await fetch(conn, queries.gauge_begun, most=MOST)
    risk = await fetch(conn, queries.gauge_at_risk, realms=realms, most=MOST)
    return iter(
        (
            gauge(
                "actions_begun",
                "Steps planned (wait for their time) or sending (begun; their outcome is not known yet).",
                ("kind", "state"),
                [((r["kind"], r["state"]), r["many"]) for r in begun],
            ),
            gauge(
                "action_in_doubt_age_seconds",
                "How long the oldest step of a kind is `sending`: normally a second. It is asked about, never sent blindly again.",
                ("kind",),
                [((r["kind"],), r["in_doubt_s"]) for r in begun if r["in_doubt_s"] is not None],
            ),
            gauge(
                "refunds_at_risk_minor_units",
                "Money of duplicates that is not back yet, in minor units: proposed or review (a person must act), planned, sending.",
                ("state", "currency"),
                [((r["state"], r["currency"]), r["minor"]) for r in risk],
            ),
        )
    )


async def _refunded(conn: Connection, realms: list[str]) -> Iterator[Metric]:
    rows = await fetch(conn, queries.gauge_refunded, realms=realms)
    money = [((r["currency"],), r["minor"]) for r in rows]
    many = [((r["currency"],), r["many"]) for r in rows]
    return iter(
        (
            gauge(
                "refunded_minor_units",
                "Money given back in all, in minor units; falls where a refund failed later.",
                ("currency",),
                money,
            ),
            gauge("refunds", "Refunds that stand, in all.", ("currency",), many),
        )
    )


async def _reviews(conn: Connection, realms: list[str]) -> Iterator[Metric]:
    rows = await fetch(conn, queries.gauge_reviews, realms=realms, most=MOST)
    many = {row["bucket"]: row["many"] for row in rows}
    oldest = max((row["oldest_s"] for row in rows), default=0.0)
    return iter(
        (
            gauge(
                "reviews_waiting",
                "Reviews that wait for a person, by how long.",
                ("age",),
                [((age,), many.get(place, 0)) for place, age in enumerate(AGES)],
            ),
            lone("review_oldest_age_seconds", "How long the oldest review waits.", oldest),
        )
    )


async def _nightly(conn: Connection, realms: list[str]) -> Iterator[Metric]:
    night = await queries.gauge_nights(conn)
    run = await queries.gauge_runs(conn, realms=realms)
    return iter(
        (
            lone(
                "nightly_age_seconds",
                "Since the newest night (03:00 UTC) whose comparison with Stripe was done: above 27 hours one is missing.",
                night["done_s"],
            ),
            lone("nightly_incomplete", "1 while the newest night is incomplete.", night["state"] == "incomplete"),
            lone(
                "nightly_exit_code",
                "Of the newest finished runs the worst: 0 clean, 1 drift or something to ask, 2 incomplete.",
                run["exit_code"],
            ),
            lone(
                "nightly_duration_seconds",
                "How long the newest finished run took, of all realms the longest.",
                run["took_s"],
            ),
        )
    )


async def _people(conn: Connection, realms: list[str]) -> Iterator[Metric]:
    alerts = await fetch(conn, queries.gauge_alerts, realms=realms, most=MOST)
    bodies = await fetch(conn, queries.gauge_disputes, realms=realms, most=MOST)
    facts = [fact for row in bodies if isinstance(fact := decode_known(row["body"]), Dispute)]
    due = [f.due_by for f in facts if f.due_by and f.status in AWAITED and not f.evidence_submitted]
    return iter(
        (
            gauge(
                "alerts_open",
                "Alerts whose cause stands, by severity and kind: `finalsale alerts list`.",
                ("severity", "kind"),
                [((r["severity"], r["kind"]), r["many"]) for r in alerts],
            ),
            lone("disputes_open", "Disputes and inquiries that are not over.", len(facts)),
            lone(
                "dispute_deadline_seconds",
                "Until the next deadline of a dispute that waits for evidence; below zero it was missed.",
                min(due) - time.time() if due else None,
            ),
        )
    )


async def _work(conn: Connection, realms: list[str]) -> Iterator[Metric]:
    work = await queries.gauge_work(conn, realms=realms, most=MOST)
    workers = await fetch(conn, queries.gauge_workers)
    bells = {row["bell"]: row["many"] for row in workers if row["role"] == "worker"}
    return iter(
        (
            lone("cases_open", "Support cases that wait for an answer.", work["cases"]),
            lone("cases_overdue", "Cases past the 24 hours of clause 5.", work["overdue"]),
            lone("notices_waiting", "Notices to the merchant's app that wait to be sent.", work["notices"]),
            lone("lookups_waiting", "Objects that wait to be read from Stripe.", work["lookups"]),
            lone("refunds_paused", "1 while nothing is sent to Stripe: `finalsale refunds resume`.", work["is_paused"]),
            gauge(
                "workers",
                "Workers seen within 30 seconds: rung (by Redis), or polling (without it, somewhat later).",
                ("doorbell",),
                [((bell,), bells.get(bell, 0)) for bell in ("rung", "polling")],
            ),
        )
    )


async def _standing(conn: Connection, realms: list[str]) -> Iterator[Metric]:
    rows = {r["standing"]: r["many"] for r in await fetch(conn, queries.gauge_not_good, realms=realms, most=MOST)}
    every = await queries.gauge_accounts(conn, realms=realms)
    many = {
        "good": max(0, every - sum(rows.values())),
        "flagged": rows.get("flagged", 0),
        "suspended": rows.get("suspended", 0),
    }
    counted = [((standing,), many[standing]) for standing in many]
    return iter((gauge("customers", "Customers by standing (7).", ("standing",), counted),))


async def _credits(conn: Connection, realms: list[str]) -> Iterator[Metric]:
    states = ("granted", "consumed", "expired", "forfeited", "taken_back", "remaining")
    rows = await fetch(conn, queries.gauge_credits, realms=realms)
    told = [((row["kind"], state), row[state]) for row in rows for state in states]
    return iter((gauge("credits", "Credits by kind of lot and what became of them.", ("kind", "state"), told),))


async def _chain(conn: Connection, realms: list[str]) -> Iterator[Metric]:
    has = await queries.has_chain(conn)
    row = await queries.gauge_chain(conn, most=MOST) if has else {"length": None, "pending": None}
    return iter(
        (
            lone("audit_chain_length", "Links of the audit chain.", row["length"]),
            lone(
                "audit_chain_pending", "Rows written and not yet chained: a second's worth, normally.", row["pending"]
            ),
        )
    )


class Look(NamedTuple):
    """One question to the books and how often it is asked."""

    name: str
    every_s: float
    ask: Callable[[Connection, list[str]], Awaitable[Iterable[Metric]]]


LOOKS = (
    Look("inbox", CHEAP_S, _inbox),
    Look("work", CHEAP_S, _work),
    Look("actions", CHEAP_S, _actions),
    Look("people", CHEAP_S, _people),
    Look("chain", CHEAP_S, _chain),
    Look("nightly", QUEUE_S, _nightly),
    Look("reviews", QUEUE_S, _reviews),
    Look("refunded", QUEUE_S, _refunded),
    Look("standing", DEAR_S, _standing),
    Look("credits", DEAR_S, _credits),
)


class Seen(NamedTuple):
    """A look's answer, when it was had, and what it took."""

    at: float
    took_s: float
    families: tuple[Metric, ...]


class Exporter(Collector):
    """Shared counts and gauges of one web process. `ready`: the schema is there."""

    def __init__(self, settings: Settings, grown: Sequence[metrics.Grown], ready: Callable[[], bool]) -> None:
        self._url, self._mode = settings.database_dsn(), settings.mode
        self._grown, self._ready = grown, ready
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._sums: dict[str, dict[tuple[str, ...], float]] = {}
        self._seen: dict[str, Seen] = {}
        self._due: dict[str, float] = {}
        self._build = _build()

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not collect."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Everything from memory."""
        yield self._build
        yield lone("stripe_budget_per_second", "Reads a second that one process may ask Stripe for.", TOTAL_S)
        yield from metrics.shared(self._sums)
        now = time.monotonic()
        seen = dict(self._seen)
        for each in seen.values():
            yield from each.families
        yield gauge(
            "look_age_seconds",
            "How old the numbers of a look at Postgres are; `counts` are those of the shared counters.",
            ("look",),
            [((name,), now - each.at) for name, each in seen.items()],
        )
        took = [((name,), each.took_s) for name, each in seen.items()]
        yield gauge("look_seconds", "What a look took.", ("look",), took)

    async def run(self) -> None:
        """Count and look until cancelled."""
        try:
            while True:
                if self._ready():
                    await self.look()
                await asyncio.sleep(LOOK_S)
        finally:
            self._drop()  # it may have been in the middle of something
            await self._last()

    async def look(self) -> None:
        """Everything that is due, one after the other; what fails keeps its last answer."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                conn = await self._connected()
                realms = await realms_of(conn, self._mode)
            await self._look(conn, realms, Look("counts", LOOK_S / 2, self._counts), sparing=0)
            for look in LOOKS:
                await self._look(conn, realms, look)
        except Exception as error:  # numbers are never worth a failure: their age tells
            log.warning("metrics.stale", error=type(error).__name__)
            self._drop()

    async def _look(self, conn: Connection, realms: list[str], look: Look, sparing: float = SPARING) -> None:
        began = time.monotonic()
        if began < self._due.get(look.name, 0.0):
            return
        try:
            async with asyncio.timeout(2 * STATEMENT_TIMEOUT_S):
                families = tuple(await look.ask(conn, realms))
            self._seen[look.name] = Seen(time.monotonic(), time.monotonic() - began, families)
        except asyncpg.QueryCanceledError:  # too dear for now: the others need not wait for it
            log.warning("metrics.stale", look=look.name, error="QueryCanceledError")
        finally:
            self._due[look.name] = began + max(look.every_s, sparing * (time.monotonic() - began))

    async def _counts(self, conn: Connection, realms: list[str]) -> Iterable[Metric]:
        for grown in self._grown:
            grown.count()
        await metrics.flush(conn)
        self._sums = await metrics.totals(conn)
        return ()

    async def _last(self) -> None:
        """What was counted since: a process that ends well loses nothing."""
        with suppress(Exception):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                if self._ready():
                    await self._counts(await self._connected(), [])
        self._drop()

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            settings = session_settings("metrics", statement_timeout_s=STATEMENT_TIMEOUT_S, lock_timeout_s=1)
            self._connection = await asyncpg.connect(self._url, server_settings=settings)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _build() -> Metric:
    try:
        version = metadata.version("finalsale")
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        version = "unknown"
    told: dict[str, Any] = {"version": version, "schema": KNOWN_REVISIONS[-1], "python": platform.python_version()}
    return gauge("build_info", "This release.", tuple(told), [(tuple(told.values()), 1)])
