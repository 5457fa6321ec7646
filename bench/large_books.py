"""Large books, made in minutes: a few customers played by the sandbox and settled as a worker does, then copied under other ids."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
import msgspec

from bench.played import COPIED, DAY, MARK, PARTS, REALM, Conn, Event, play
from handlers.decisions import Money
from handlers.terms import SHIPPED_POLICY
from reconcile.findings import Class, Finding, What
from reconcile.report import Day, ListRead, MoneyRow, Report, Waiting
from reconcile.windows import LISTS
from worker import audit
from worker.inbox import pack

YEAR_DAYS = 360
RECENT = ("asked", "open", "kept")
"""Parts that happened within the last two days; the others are spread over a year."""
OTHERS = ("inbox", "audit_chain", "findings")
"""Tables besides those copied that are filled before their indexes are made."""
_OWN_MOMENTS = ("access_until", "ends_at")
"""Moments of the service, which the bodies name as well: copies keep them."""


class Size(NamedTuple):
    """How much of what is made."""

    customers: int
    events: int
    alerts: int
    acts: int
    runs: int


LARGE = Size(customers=100_000, events=1_000_000, alerts=5_000, acts=20_000, runs=400)
SMALL = Size(customers=20, events=100, alerts=5, acts=10, runs=2)


async def make(database_url: str, size: Size) -> None:
    """Fill a migrated, empty database. Foreign keys and sums hold, the audit chain verifies, statistics are fresh."""
    conn = await asyncpg.connect(database_url, server_settings={"finalsale.projects": "1", "synchronous_commit": "off"})
    events = await play(conn)
    await _number(conn, size)
    await conn.execute("set session_replication_role = replica")  # sums, queues and freezing are seen to here
    indexes = await conn.fetch(_INDEXES, [*COPIED, *OTHERS])
    for index in indexes:  # built once over all rows, they are the same
        await conn.execute(f"drop index {index['indexname']}")
    for table in COPIED:
        await _copy(conn, table)
    await _events(conn, events, size)
    for statement, *parameters in _around(size):
        await conn.execute(statement, *parameters)
    await conn.execute("set session_replication_role = origin")
    for statement, *parameters in _by_people(size):
        await conn.execute(statement, *parameters)
    await _chain(conn, database_url)
    for index in indexes:
        await conn.execute(index["indexdef"])
    await conn.execute("vacuum analyze")
    await conn.execute("checkpoint")
    await conn.close()


_INDEXES = """
select indexname, indexdef from pg_indexes
where schemaname = 'public' and tablename = any($1::text[])
  and indexname not in (select conname from pg_constraint where conname is not null)
"""

# copies ------------------------------------------------------------------------------------------------------------------


async def _number(conn: Conn, size: Size) -> None:
    """Who is copied how often and when: spread over a year, those that wait for somebody over the last days."""
    parts = [part for part, share in PARTS.items() for _ in range(share)]
    places = list(PARTS)
    # a thousand is dealt out over all: no part stands together
    rows = []
    for n in range(size.customers):
        part = parts[n * 379 % 1000] if size.customers >= 1000 else places[n % len(places)]
        shift = timedelta(seconds=n * 7919 % (YEAR_DAYS * DAY) if part not in RECENT else n * 7919 % (2 * DAY))
        rows.append((n, places.index(part), f"n{n:06}", -shift))
    await conn.execute("create temporary table copies (n int, played int, mark text, shift interval)")
    await conn.copy_records_to_table("copies", records=rows, columns=["n", "played", "mark", "shift"])
    await conn.execute("analyze copies")


async def _copy(conn: Conn, table: str) -> None:
    """Every copy's rows of one table."""
    columns = await conn.fetch(
        """select attname as name, format_type(atttypid, null) as type from pg_attribute
           where attrelid = $1::regclass and attnum > 0 and not attisdropped and attgenerated = '' and attidentity = ''
           order by attnum""",
        table,
    )
    names = ", ".join(row["name"] for row in columns)
    values = ", ".join(_value(table, row["name"], row["type"]) for row in columns)
    await conn.execute(f"insert into {table} ({names}) select {values} from copies c join copied_{table} t on t.played = c.played")  # fmt: skip


def _value(table: str, name: str, type_: str) -> str:
    if type_ == "text" and name not in ("realm", "kind", "state", "clause", "rule", "verdict", "type", "currency"):
        return f"replace(t.{name}, '{MARK}', c.mark)"
    if type_ == "bytea":
        return f"convert_to(replace(convert_from(t.{name}, 'UTF8'), '{MARK}', c.mark), 'UTF8')"
    if type_ == "text[]":
        return f"replace(t.{name}::text, '{MARK}', c.mark)::text[]"
    if type_ == "timestamp with time zone" and name not in _OWN_MOMENTS:
        return f"t.{name} + c.shift"
    if table == "objects" and name in ("created", "as_of"):
        return f"t.{name} + extract(epoch from c.shift)::bigint"
    return f"t.{name}"


async def _events(conn: Conn, events: list[Event], size: Size) -> None:
    """So many events, each with the whole payload that Stripe sends, packed as the inbox packs it."""
    each = max(size.events // size.customers, 1)
    chosen = [[e for e in events if e.played == played][:each] for played in range(len(PARTS))]
    rows = await conn.fetch("select played, mark, shift from copies order by n")

    def records() -> Iterator[tuple[Any, ...]]:
        for played, mark, shift in rows:
            for event in chosen[played]:
                then = datetime.fromtimestamp(event.created, UTC) + shift
                payload = pack(event.body.replace(MARK.encode(), mark.encode()))
                id_ = event.id.replace(MARK, mark)
                yield id_, REALM, event.type, event.api_version, then, then, payload, "done", 1, then, then

    names = ["event_id", "realm", "type", "api_version", "created_at", "received_at", "payload", "state", "attempts", "next_at", "settled_at"]  # fmt: skip
    await conn.copy_records_to_table("inbox", records=records(), columns=names)


# what stands around ------------------------------------------------------------------------------------------------------


def _around(size: Size) -> list[tuple[Any, ...]]:
    """What is in trouble, alerts, nights and their reports, and who is at work."""
    told = msgspec.json.encode(_report()).decode()
    return [
        ("with few as (select event_id from inbox order by event_id limit $1) update inbox set state = 'dead', error = 'It broke.' where event_id in (select event_id from few)", max(size.events // 50_000, 1)),
        ("with few as (select event_id from inbox order by event_id desc limit $1) update inbox set state = 'quarantined', error = 'data.object: not known' where event_id in (select event_id from few)", max(size.events // 10_000, 1)),
        (_RUNS, size.runs, told),
        (_FINDINGS,),
        ("insert into schedule_runs (name, due_at, state, finished_at, result) select 'reconcile', date_trunc('day', now()) + interval '3 hours' - n * interval '1 day', 'done', now() - n * interval '1 day', 'clean' from generate_series(1, $1::int) n", size.runs),
        ("insert into workers (id, role, detail) values (gen_random_uuid(), 'worker', 'bench pid 1, rung, x')",),
    ]  # fmt: skip


_RUNS = """
insert into runs (id, realm, kind, dry_run, asked, plan, state, stage, exit_code, started_at, seen_at, finished_at, report)
select 'run_' || lpad(n::text, 8, '0'), 'test', 'nightly', false, 'night of ' || n, convert_to('{"upper":1790000000,"windows":[{"lo":1780000000,"hi":1790000000}],"lists":{}}', 'UTF8'),
       'done', 'report', 1, now() - n * interval '1 day', now() - n * interval '1 day', now() - n * interval '1 day' + interval '4 minutes',
       convert_to(replace($2::text, 'run_bench', 'run_' || lpad(n::text, 8, '0')), 'UTF8')
from generate_series(1, $1::int) n
"""
_FINDINGS = """
insert into findings (run, id, what, class, object, body)
select id, 'missing_here:' || n, 'missing_here', 'auto', 'ch_' || n, '{}' from runs, generate_series(1, 40) n
"""


def _by_people(size: Size) -> list[tuple[Any, ...]]:
    """What operators did, with the triggers that write it down: acts, answers, cases, the policy's versions, alerts."""
    return [
        (_ACTS, size.acts),
        (_ANSWERS, [list(PARTS).index("kept"), list(PARTS).index("lost")]),
        (_ALERTS, size.alerts),
        (_CASES, max(size.customers // 50, 2)),
        ("insert into policy_versions (sha256, versions, agreements, body, worker) select sha256($1 || n::text::bytea), '{2025-01}', 0, $1, 'bench' from generate_series(1, 20) n", SHIPPED_POLICY.read_bytes()),
    ]  # fmt: skip


_ACTS = """
insert into operator_acts (realm, by_name, role, via, act, subject, reason, before, after, acted_at)
select 'test', (array['Ada', 'Grace', 'Rosa'])[1 + n % 3], 'decide', 'console',
       (array['review.approve', 'review.reject', 'case.answer', 'customer.suspend', 'event.replay'])[1 + n % 5], 'dec_' || n,
       'as the policy says', '{"state":"proposed"}', '{"state":"planned"}', now() - (20001 - n) * interval '20 minutes'
from generate_series(1, $1::int) n
"""
_ANSWERS = """
insert into review_acts (decision_id, act, by_name, note)
select replace(t.id, 'Zcopied', c.mark), 'approve', 'Ada', 'seen' from copied_decisions t join copies c using (played)
where played = any($1::int[]) and t.verdict = 'review'
"""
_ALERTS = """
insert into alerts (realm, cause, kind, severity, customer, subject, sentence, raised_at, resolved_at)
select 'test', 'bench:' || n, (array['chargeback_lost', 'out_of_policy_refund', 'refunded_by_hand', 'charge_after_cancellation'])[1 + n % 4],
       (array['critical', 'warning', 'note'])[1 + n % 3], '', 'ch_' || n, 'Something was wrong with ch_' || n || ' for a while.',
       now() - n * interval '1 hour', case when n > $1 / 80 then now() - n * interval '1 hour' + interval '30 minutes' end
from generate_series(1, $1::int) n
"""
_CASES = """
insert into cases (id, realm, customer, state, opened_at, due_at, alert_at, answered_at, body)
select id || n, realm, customer, case when n % 40 = 0 then 'open' else 'answered' end, opened_at - n * interval '3 hours',
       due_at - n * interval '3 hours', alert_at - n * interval '3 hours',
       case when n % 40 <> 0 then opened_at - n * interval '2 hours' end, body
from cases, generate_series(1, $1::int) n
"""


def _report() -> Report:
    """A night with forty findings of each class and a year's money."""
    now = int(time.time())
    findings = [
        Finding(what=What.MISSING_HERE, class_=class_, object=f"ch_{class_}{n}", kind="charge", customer=f"cus_{n}", amount=Money(2900, "usd"),
                sentence=f"ch_{class_}{n} of 29.00 USD is at Stripe, and the books do not have it.", cause="charge.succeeded never arrived", do="it is taken into the books")
        for class_, n in itertools.product((Class.AUTO, Class.ASK), range(40))
    ]  # fmt: skip
    days = [
        Day(day=f"{datetime.fromtimestamp(now - n * DAY, UTC):%Y-%m-%d}", currency="usd", kind=kind, minor=2900 * n, count=n)
        for n, kind in itertools.product(range(90), ("charge", "refund", "dispute"))
    ]  # fmt: skip
    certificate = [ListRead(list=name, slices=3, pages=90, objects=9000, first_id="ch_first", last_id="ch_last", retries=1, unread=0) for name in LISTS]  # fmt: skip
    return Report(
        run="run_bench", realm=REALM, kind="nightly", dry_run=False, asked="night", since=now - 90 * DAY, until=now, windows=[(now - 90 * DAY, now)],
        started_at=now, finished_at=now, result="needs_person", exit=1, why=["Forty findings wait for a person."], certificate=certificate,
        unread=[], unread_total=0, reread=7, requests=900, rate_limited=2, imported={}, enriched=0, in_flight=3, found={"missing_here": 80}, drift=80,
        by_class={"auto": 40, "ask": 40}, findings=findings, consequences=[], consequences_total=0, to_return={}, to_review={}, would_hold=0,
        credits_due=0, healed=40, unhealed=0,
        money=[MoneyRow(currency="usd", kind="charge", at_stripe_minor=1, ours_minor=1, residual_minor=0, explained_minor=0)],
        other=[], residuals=[], residuals_total=0, days=days, causes={"event never arrived": 80}, waiting=Waiting(reviews=200),
    )  # fmt: skip


# the chain ---------------------------------------------------------------------------------------------------------------

_CHAINED = ["seq", "source", "realm", "row_id", "content", "hash", "chained_at"]
_SLICE = 20_000


async def _chain(conn: Conn, database_url: str) -> None:
    """Everything that is to be chained, chained anew in one go."""
    await conn.execute("set session_replication_role = replica; truncate audit_queue, audit_chain, audit_backfill")
    await conn.execute("set session_replication_role = origin")
    now = datetime.now(UTC)
    at_us, seq, hash_ = (now - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1), 0, audit.GENESIS
    reader = await asyncpg.connect(database_url)
    async with reader.transaction():
        cursor = await reader.cursor("select source, realm, row_id, content from audit_sources")
        while rows := await cursor.fetch(_SLICE):
            links = []
            for source, realm, row_id, content in rows:
                seq += 1
                hash_ = audit.link(hash_, seq, at_us, source, realm, row_id, content)
                links.append((seq, source, realm, row_id, content, hash_, now))
            await conn.copy_records_to_table("audit_chain", records=links, columns=_CHAINED)
    await reader.close()
