"""Counting: plain numbers in the memory of each process, added to one small table, the same sums for whoever asks any web process.

Workers have no port, and several processes may share one, so what is counted (everything in `FAMILIES`) goes through
`metric_totals`: each process adds what it counted since its last time, every FLUSH_S and at its end, and a web process shows
the table's sums and nothing of its own beside them. They go on over restarts; a kill -9 loses the last seconds of counting,
never anything of the books. What stands in the books is not counted but looked up: worker.gauges.

Three things are a web process's own, so that they are right even while Postgres is away: its answers to deliveries
(`finalsale_intake_answers_total`, and shared as `finalsale_deliveries_total`), the API's requests, and `process_*`.
Prometheus tells them apart by `instance`. A shared series is the same from every instance: take `max`, never `sum`, over them.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from worker import tracing
from worker.db import Connection, columns, queries

FLUSH_S = 10.0
MAX_SERIES = 2000
"""Of one process. Labels come from short lists; should one ever not, it must not fill the memory or the table."""

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)


class Family(NamedTuple):
    """One family of series. Without `buckets` it is a counter, exported with `_total` behind its name."""

    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] | None = None


FAMILIES: dict[str, Family] = {
    "finalsale_deliveries": Family(
        "Deliveries of events by Stripe that were answered, by outcome: committed (2xx), unavailable and backlog (503, Stripe sends them again), anything else is the reason of a refusal (4xx).",
        ("outcome",),
    ),
    "finalsale_intake_commits": Family(
        "Group commits of the intake: done, the new_rows in them, and failures by class.", ("result",)
    ),
    "finalsale_intake_commit_seconds": Family(
        "Time of one group commit; a delivery waits for one or two of them.", (), _SHORT
    ),
    "finalsale_intake_commit_rows": Family(
        "Events in one group commit; batches form by themselves under load.", (), _SIZES
    ),
    "finalsale_rings": Family(
        "Rings of the doorbell (Redis) after a commit: sent or failed. A failed one costs latency, never an event.",
        ("result",),
    ),
    "finalsale_drain_batches": Family(
        "Batches of events that workers took: done, again (another worker was met), bisected (one of it failed), unavailable (Postgres).",
        ("outcome",),
    ),
    "finalsale_drain_events": Family(
        "Events worked off: done (folded and judged), quarantined (not understood), failed (postponed; dead after eight times).",
        ("outcome",),
    ),
    "finalsale_drain_seconds": Family("Time of one batch from the claim to the commit.", (), _LONG),
    "finalsale_judged": Family(
        "What judging brought: files looked at, decisions and entries of credits written.", ("what",)
    ),
    "finalsale_perform_steps": Family(
        "Steps of actions (refund, cancel_subscription, reverse_balance_credit) that had their turn: sent, adopted (Stripe had it already), stopped (the last look or a rule), in_doubt, refused, unavailable, overtaken, failed.",
        ("kind", "outcome"),
    ),
    "finalsale_perform_seconds": Family("Time of one step: last look, call and commit.", ("kind",), _LONG),
    "finalsale_stripe_calls": Family(
        "Calls to Stripe by endpoint (ids replaced by {id}), method and HTTP status; `none` is no whole answer.",
        ("endpoint", "method", "status"),
    ),
    "finalsale_stripe_call_seconds": Family("Time of one call to Stripe.", ("method",), _LONG),
    "finalsale_stripe_budget_turns": Family(
        "Turns taken of the rate budget for reads: `read` (look-ups and last looks, which go first) or `scan` (the nightly run's pages). Its rate over finalsale_stripe_budget_per_second is the share used.",
        ("use",),
    ),
    "finalsale_stripe_budget_wait_seconds": Family("Time that reads waited for their turn.", ("use",)),
    "finalsale_stripe_rate_limited": Family(
        "Answers 429: Stripe's limit was met, and the budget cut itself.", ("endpoint",)
    ),
}

Series = tuple[str, tuple[str, ...]]


class Counts:
    """What this process counted and has not yet added to the table. Not for threads: one event loop counts."""

    def __init__(self) -> None:
        self._values: dict[Series, float] = {}

    def add(self, family: str, *labels: str, by: float = 1.0) -> None:
        """Count. `labels` as the family names them."""
        self._add((family, labels), by)

    def observe(self, family: str, value: float, *labels: str) -> None:
        """One observation of a histogram: its bucket (not yet cumulative) and the sum."""
        buckets = FAMILIES[family].buckets or ()
        place = bisect_left(buckets, value)
        self._add((f"{family}_bucket", (*labels, f"{buckets[place]:g}" if place < len(buckets) else "+Inf")), 1.0)
        self._add((f"{family}_sum", labels), value)

    def take(self) -> dict[Series, float]:
        """Everything counted since the last time; it is the caller's now."""
        taken, self._values = self._values, {}
        return taken

    def put_back(self, taken: dict[Series, float]) -> None:
        """What could not be added to the table is counted again the next time."""
        for series, value in taken.items():
            self._add(series, value)

    def _add(self, series: Series, by: float) -> None:
        values = self._values
        if series in values:
            values[series] += by
        elif len(values) < MAX_SERIES:
            values[series] = by


counts = Counts()
"""This process's."""


class Grown:
    """A Counter of somebody else's, whose growth is counted when it is asked for and not with every event."""

    def __init__(self, family: str, counter: Counter[str]) -> None:
        self._family, self._counter = family, counter
        self._seen: Counter[str] = Counter()

    def count(self) -> None:
        """Add what it grew by since the last time."""
        for value, by in (self._counter - self._seen).items():
            counts.add(self._family, value, by=by)
        self._seen = self._counter.copy()


async def flush(conn: Connection) -> None:
    """Add what was counted to the table, in one statement over sorted rows: no process waits in a ring for others."""
    taken = counts.take()
    if not taken:
        return
    rows = sorted((name, msgspec.json.encode(labels).decode(), value) for (name, labels), value in taken.items())
    try:
        await conn.execute(queries.add_to_totals.sql, *columns(rows))
    except BaseException:
        counts.put_back(taken)
        raise


async def totals(conn: Connection) -> dict[str, dict[tuple[str, ...], float]]:
    """The table's sums: of every name its labels' values."""
    found: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for row in await conn.fetch(queries.metric_totals.sql):
        found[row["name"]][msgspec.json.decode(row["labels"], type=tuple[str, ...])] = row["value"]
    return found


def shared(sums: dict[str, dict[tuple[str, ...], float]]) -> Iterator[Metric]:
    """The families that all processes share, from the table's sums. What another release counted otherwise is passed over."""
    for name, family in FAMILIES.items():
        if family.buckets is None:
            counter = CounterMetricFamily(name, family.text, labels=family.labels)
            for labels, value in sums.get(name, {}).items():
                if len(labels) == len(family.labels):
                    counter.add_metric(labels, value)
            yield counter
        else:
            yield _histogram(name, family, sums.get(f"{name}_bucket", {}), sums.get(f"{name}_sum", {}))


def _histogram(
    name: str, family: Family, buckets: dict[tuple[str, ...], float], sums: dict[tuple[str, ...], float]
) -> HistogramMetricFamily:
    told = HistogramMetricFamily(name, family.text, labels=family.labels)
    for labels, total in sums.items():
        if len(labels) != len(family.labels):
            continue
        each = {f"{edge:g}": 0.0 for edge in family.buckets or ()} | {"+Inf": 0.0}
        for key, count in buckets.items():
            if key[:-1] == labels:  # an earlier release may have had other edges
                each[key[-1]] = each.get(key[-1], 0.0) + count
        below, cumulative = 0.0, []
        for edge, count in sorted(each.items(), key=lambda bucket: float(bucket[0])):
            below += count
            cumulative.append((edge, below))
        told.add_metric(labels, cumulative, total)
    return told


# fmt: off
_WORDS = frozenset(
    {
        "accounts", "balance", "balance_transactions", "charges", "checkout", "core", "credit_notes", "customers",
        "disputes", "early_fraud_warnings", "event_destinations", "events", "health", "invoice_items",
        "invoice_payments", "invoiceitems", "invoices", "line_items", "lines", "payment_intents", "payment_methods",
        "prices", "products", "radar", "refunds", "sessions", "subscription_schedules", "subscriptions", "v1", "v2",
        "webhook_endpoints",
    }
)
# fmt: on
_SEVERAL_IDS = re.compile(r"\{id\}(/\{id\})+")


def endpoint_of(path: str) -> str:
    """`/v1/charges/ch_1` as `/v1/charges/{id}`: few values, however many objects there are."""
    steps = path.partition("?")[0].strip("/").split("/")[:6]
    return "/" + _SEVERAL_IDS.sub("{id}", "/".join(step if step in _WORDS else "{id}" for step in steps))


def observe_call(method: str, path: str, status: int | None, began_ns: int) -> None:
    """A call to Stripe that has just ended, for counts and traces; `status` None: no whole answer."""
    endpoint = endpoint_of(path)
    counts.add("finalsale_stripe_calls", endpoint, method, str(status) if status else "none")
    counts.observe("finalsale_stripe_call_seconds", (time.time_ns() - began_ns) / 1e9, method)
    if status == 429:
        counts.add("finalsale_stripe_rate_limited", endpoint)
    if tracing.spans is not None:
        tracing.spans.call(method, endpoint, status, began_ns)


def count_settled(files: int, decisions: int, entries: int) -> None:
    """What one judging brought."""
    for what, many in (("files", files), ("decisions", decisions), ("entries", entries)):
        if many:
            counts.add("finalsale_judged", what, by=many)
