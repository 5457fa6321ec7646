"""The doctor's look at the database: the server, its schema, who may do what in it, and how the work in it goes on."""

from __future__ import annotations

import re
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import cache

import asyncpg

from reconcile.windows import RECENT
from worker import audit
from worker.db import UNAVAILABLE, connect_pool, connection, queries
from worker.db.migrations import KNOWN_REVISIONS, VERSIONS, current_revision, is_pending
from worker.deployment import Deployment, fail, ok, unseen, warn
from worker.desk import with_database
from worker.endpoint import Check, reads_version
from worker.errors import FinalsaleError
from worker.stripe_gateway import API_VERSION

POSTGRES_AT_LEAST = 14
STATEMENT_TIMEOUT_S = 3.0
DATABASE_CLOCK_WARNS_S = 5
SEATS_WARN = 10
"""Free connections: a web process takes up to ten, a worker eight."""
XID_WARNS = 1_000_000_000
"""Half of the way to where Postgres stops writing."""
FORGOTTEN_S = 600.0
MANY_DEAD = 100_000
RECENT_EVENTS = 1_000
RUN_LATE_S = 26 * 3600
"""A night and two hours."""
GAP_LATE_S = 26 * 3600
ALIVE_S = 60.0
QUEUE_LATE_S = 60.0
NOTICE_LATE_S = 3600.0
CHECKED_LATE_S = 50 * 3600
PRUNED_LATE_D = 2.0


async def connect(d: Deployment, until_closed: AsyncExitStack) -> None:
    """The database for as long as the checks take, if it can be reached; otherwise the trouble."""
    try:
        d.embedded = d.settings.database_url is None
        served = await until_closed.enter_async_context(with_database(d.settings))
        pool = await connect_pool(
            served.database_dsn(), role="doctor", max_size=1, statement_timeout_s=STATEMENT_TIMEOUT_S, lock_timeout_s=1
        )
        until_closed.callback(pool.terminate)
        conn = await until_closed.enter_async_context(connection(pool))
        d.postgres = str(await conn.fetchval("show server_version"))
        d.revision = await current_revision(conn)
        d.conn = conn
    except FinalsaleError as trouble:
        d.database_trouble = str(trouble)
    except (*UNAVAILABLE, asyncpg.PostgresError, ValueError) as refused:
        d.database_trouble = f"Postgres refuses us ({type(refused).__name__})"


# the server --------------------------------------------------------------------------------------------------------------


async def database(d: Deployment) -> list[Check]:
    """Version, and whether what is committed is kept."""
    name = "database"
    if d.database_trouble or d.conn is None:
        remedy = "Set DATABASE_URL to a PostgreSQL that answers."
        return [fail(name, f"{d.database_trouble.rstrip('.') or 'There is none'}.", remedy)]
    if int(re.findall(r"\d+", d.postgres)[0]) < POSTGRES_AT_LEAST:
        return [fail(name, f"PostgreSQL {d.postgres} is too old.", f"Use version {POSTGRES_AT_LEAST} or a later one.")]
    server = await queries.doctor_server(d.conn)
    found: list[Check] = []
    if server["is_standby"]:
        found.append(fail(name, "It is a standby, which takes no writes.", "Set DATABASE_URL to the primary."))
    lax = [one for one in ("fsync", "full_page_writes") if not server[one]]
    if server["synchronous_commit"] == "off":
        lax.append("synchronous_commit")
    if lax:
        detail = f"{', '.join(lax)} is off: events that Stripe was told are kept are lost in a crash."
        found.append(fail(name, detail, "Set it to on."))
    if abs(server["clock_s"] - time.time()) > DATABASE_CLOCK_WARNS_S:
        detail = f"Its clock and this machine's are {abs(server['clock_s'] - time.time()):.0f} s apart."
        found.append(warn(name, detail, "Set both by NTP: deadlines are kept by the database's."))
    return found or [ok(name, f"PostgreSQL {d.postgres}, {server['bytes'] / 2**20:,.0f} MiB; what it commits is kept.")]


async def connections(d: Deployment) -> list[Check]:
    """Free places, and transactions that somebody forgot."""
    name = "connections"
    if d.conn is None:
        return [unseen(name, "no database")]
    server, found = await queries.doctor_server(d.conn), []
    free = server["seats"] - server["taken"]
    told = f"{server['taken']} of {server['seats']} are taken."
    if free < SEATS_WARN:
        remedy = "Raise max_connections, run fewer processes, or use a pooler in session mode."
        found.append(warn(name, f"{told} A process that starts now may find no place.", remedy))
    forgotten = await queries.doctor_forgotten(d.conn)
    if forgotten is not None and forgotten["open_s"] > FORGOTTEN_S:
        detail = f"A transaction of {forgotten['program'] or 'an unnamed program'} is open for {forgotten['open_s'] / 60:.0f} minutes: nothing is cleaned up meanwhile."
        found.append(warn(name, detail, "End that program's session (pg_terminate_backend)."))
    return found or [ok(name, told)]


async def upkeep(d: Deployment) -> list[Check]:
    """Autovacuum: whether it runs, and keeps up with the tables that change most."""
    name = "autovacuum"
    if d.conn is None:
        return [unseen(name, "no database")]
    server, found = await queries.doctor_server(d.conn), []
    if not server["autovacuum"]:
        found.append(
            fail(name, "It is off: tables grow, and Postgres stops writing in the end.", "Set autovacuum to on.")
        )
    if server["oldest_xid"] > XID_WARNS:
        detail = (
            f"The oldest row is {server['oldest_xid']:,} transactions old; at 2,100,000,000 Postgres stops writing."
        )
        found.append(
            fail(name, detail, "Run `vacuum freeze` on this database now, and see what holds autovacuum back.")
        )
    for row in await d.conn.fetch(queries.doctor_dead_rows.sql, MANY_DEAD):
        since = "never" if row["since_s"] is None else f"{row['since_s'] / 3600:.1f} h ago"
        detail = (
            f"{row['name']} holds {row['dead']:,} dead rows beside {row['live']:,} live ones; last cleaned {since}."
        )
        found.append(
            warn(name, detail, f"Run `vacuum {row['name']}`, and see whether a long transaction holds it back.")
        )
    return found or [ok(name, "It keeps up.")]


# the schema --------------------------------------------------------------------------------------------------------------


async def migrations(d: Deployment) -> list[Check]:
    """The schema against this release's."""
    name, newest = "migrations", KNOWN_REVISIONS[-1]
    if d.conn is None:
        return [unseen(name, "no database")]
    if is_pending(d.revision):
        detail = f"The schema is at {d.revision or 'nothing'}, not {newest}."
        return [fail(name, detail, "`finalsale migrate`")]
    if d.revision != newest:
        detail = f"The schema is at {d.revision}, of a later release than this one, which knows {newest}."
        return [warn(name, detail, "Deploy one release everywhere.")]
    return [ok(name, f"The schema is at {newest}.")]


@cache
def migrated_indexes() -> dict[str, str]:
    """Every index that the migrations make and none drops, with its statement."""
    made: dict[str, str] = {}
    for path in sorted(VERSIONS.glob("[0-9]*.sql")):
        script = re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8"))
        for statement in script.split(";"):
            text = " ".join(statement.split())
            if dropped := re.fullmatch(r"drop index (?:if exists )?(\w+)", text):
                made.pop(dropped[1], None)
            elif named := re.match(r"create (?:unique )?index (\w+) on", text):
                made[named[1]] = text
    return made


async def indexes(d: Deployment) -> list[Check]:
    """Every index that the migrations made is there, and can be used."""
    name = "indexes"
    if d.books is None:
        return [unseen(name, d.no_books)]
    there = {row["name"]: row for row in await d.books.fetch(queries.doctor_indexes.sql)}
    found = []
    for index, statement in migrated_indexes().items():
        again = statement.replace(" index ", " index concurrently ", 1)
        if index not in there:
            found.append(fail(name, f"{index} is missing: what it serves reads whole tables.", f"`{again}`"))
        elif not there[index]["is_valid"]:
            remedy = f"`drop index concurrently {index}`, then `{again}`"
            found.append(fail(name, f"{index} is not valid: nobody reads by it.", remedy))
    found += [
        fail(name, f"{row['name']} of {row['table_name']} is not valid.", f"`reindex index concurrently {row['name']}`")
        for row in there.values()
        if not row["is_valid"] and row["name"] not in migrated_indexes()
    ]
    return found or [ok(name, f"All {len(migrated_indexes())} of the migrations are there and valid.")]


async def privileges(d: Deployment) -> list[Check]:
    """Whether anybody who works here may do what no process needs. In test mode it is told, and nobody is warned."""
    name = "privileges"
    if d.books is None:
        return [unseen(name, d.no_books)]
    found, told = [], []
    for row in await d.books.fetch(queries.doctor_roles.sql):
        who = f"{row['role']} ({', '.join(p.removeprefix('finalsale ') for p in row['programs']) or 'this command'})"
        if row["is_super"]:
            too_much = "is a superuser: who breaks in reads files and rewrites everything"
        elif row["is_owner"]:
            too_much = "owns the tables, and can switch off what keeps them append-only"
        elif row["rewrites"]:
            too_much = f"may rewrite what is append-only: {', '.join(row['rewrites'])}"
        else:
            continue
        told.append(f"{who} {too_much}")
    if told and d.settings.mode == "live":
        remedy = "`finalsale doctor --grants` prints the SQL of a role for each process."
        found = [warn(name, f"{sentence}.", remedy) for sentence in told]
    in_test = f"{'; '.join(told)}. In live mode that is a warning." if told else "No role may do more than it needs."
    return found or [ok(name, in_test)]


# the work ----------------------------------------------------------------------------------------------------------------


async def workers(d: Deployment) -> list[Check]:
    """Whether anybody judges and sends."""
    name = "workers"
    if d.books is None:
        return [unseen(name, d.no_books)]
    rows = await d.books.fetch(queries.doctor_workers.sql)
    alive = [row for row in rows if row["role"] == "worker" and row["seen_s"] < ALIVE_S]
    if alive:
        return [ok(name, f"{len(alive)} at work, seen {alive[0]['seen_s']:.0f} s ago.")]
    last = f"the last one was seen {rows[0]['seen_s'] / 60:.0f} minutes ago" if rows else "none ever was"
    remedy = "Start `finalsale worker`, or `finalsale run`."
    return [fail(name, f"None is at work ({last}): events are kept, and nothing is decided or sent.", remedy)]


async def event_versions(d: Deployment) -> list[Check]:
    """The API versions that events really came in."""
    name = "API version of events"
    if d.books is None:
        return [unseen(name, d.no_books)]
    rows = await d.books.fetch(queries.recent_api_versions.sql, d.settings.mode, RECENT_EVENTS)
    if not rows:
        remedy = "Send one from the Dashboard, or wait for a payment."
        return [warn(name, "No event has arrived within 30 days.", remedy)]
    versions = {row["api_version"]: row["newest"] for row in rows if row["api_version"] is not None}
    unknown = [version for version in versions if not reads_version(version)]
    if unknown:
        detail = f"Events came in {', '.join(unknown)}; this release reads versions up to {API_VERSION}."
        return [fail(name, detail, "See the endpoint's API version above, or use a later release.")]
    return [ok(name, f"{', '.join(versions) or 'thin events only'}: read by this release.")]


async def nightly_run(d: Deployment) -> list[Check]:
    """The last comparison with Stripe that ended."""
    name = "nightly run"
    if d.books is None:
        return [unseen(name, d.no_books)]
    run = await d.books.fetchrow(queries.last_nightly.sql, d.settings.realm(None))
    if run is None:
        remedy = "A worker starts one at 03:00 UTC; `finalsale reconcile` starts one now."
        return [warn(name, "None has ended yet.", remedy)]
    ended = run["finished_at"]
    told = f"{run['id']} ended {ended:%Y-%m-%d %H:%M} UTC" if ended is not None else f"{run['id']} ended"
    show = f"`finalsale runs show {run['id']}`"
    if run["state"] != "done" or run["exit_code"] == 2:
        return [fail(name, f"{told} and is {run['state']}: not everything was read.", f"{show} says what.")]
    if run["age_s"] >= RECENT:
        return [fail(name, f"{told}, more than {RECENT // 86_400} days ago.", "See whether a worker runs.")]
    if run["age_s"] > RUN_LATE_S:
        return [warn(name, f"{told}, and last night's is missing.", "See whether a worker runs.")]
    if run["exit_code"]:
        return [warn(name, f"{told}: a person must act.", f"{show} says on what.")]
    return [ok(name, f"{told}, and nothing was left to do.")]


async def gaps(d: Deployment) -> list[Check]:
    """Events that Stripe could not make, and no run has made up for."""
    name = "events never made"
    if d.books is None:
        return [unseen(name, d.no_books)]
    row = await d.books.fetchrow(queries.count_open_gaps.sql, d.settings.realm(None))
    if row is None or not row["gaps"]:
        return [ok(name, "Stripe told of none that was not made up for.")]
    since: datetime = row["since"]
    detail = f"Stripe could not make events since {since.astimezone(UTC):%Y-%m-%d %H:%M} UTC ({row['gaps']} times)"
    if row["age_s"] > GAP_LATE_S:
        return [fail(name, f"{detail}, and no run has read that time.", "See whether a worker runs.")]
    return [warn(name, f"{detail}; the next run reads that time.", "Wait for it, or `finalsale reconcile`.")]


# what is remembered, and who is told ---------------------------------------------------------------------------------------


async def audit_chain(d: Deployment) -> list[Check]:
    """Whether the chain holds where it was looked at, and is not behind."""
    name = "audit"
    if d.books is None:
        return [unseen(name, d.no_books)]
    if (sentence := await audit.broken(d.books)) is not None:
        return [fail(name, sentence, "`finalsale audit verify` says where; keep the database as it is.")]
    head, late = await audit.head(d.books), 0.0
    late = head["oldest_pending_s"] or 0.0
    if late > QUEUE_LATE_S:
        detail = f"{head['pending']} rows wait to be chained, the oldest for {late / 60:.0f} minutes."
        return [warn(name, detail, "See whether a worker runs.")]
    newest = await queries.newest_audit_check(d.books)
    told = f"{head['length']:,} links, {head['pending']} rows on their way"
    if newest is None or (datetime.now(UTC) - newest["checked_at"]).total_seconds() > CHECKED_LATE_S:
        seen = "never" if newest is None else f"last {newest['checked_at']:%Y-%m-%d}"
        if head["length"]:
            return [
                warn(name, f"{told}; {seen} verified whole.", "`finalsale audit verify`; a worker does it every day.")
            ]
        return [ok(name, f"{told}.")]
    return [ok(name, f"{told}; verified whole {newest['checked_at']:%Y-%m-%d %H:%M} UTC.")]


async def operators(d: Deployment) -> list[Check]:
    """Whether somebody can sign in to the console, and somebody may let others in."""
    name = "operators"
    if d.settings.console == "off":
        return [ok(name, "FINALSALE_CONSOLE is off here.")]
    if d.books is None:
        return [unseen(name, d.no_books)]
    row = await queries.doctor_operators(d.books)
    if not row["admins"]:
        detail = (
            "Nobody can sign in to the console." if not row["people"] else "None of those who can sign in is an admin."
        )
        return [warn(name, detail, "`finalsale operator add NAME --role admin` prints a token, once.")]
    return [ok(name, f"{row['people']} can sign in, {row['admins']} of them as admin.")]


async def retention(d: Deployment) -> list[Check]:
    """Whether payloads, which hold personal data, go when their time is over."""
    name, days = "retention", d.settings.retention_days
    if d.books is None:
        return [unseen(name, d.no_books)]
    row = await queries.doctor_retention(d.books)
    if row["oldest_d"] is None or row["oldest_d"] <= days + PRUNED_LATE_D:
        return [ok(name, f"Payloads are kept for {days} days; none is older.")]
    if row["pruned_d"] is None or row["pruned_d"] > days + PRUNED_LATE_D:
        far = (
            "none was pruned yet"
            if row["pruned_d"] is None
            else f"they are pruned up to {row['pruned_d']:.0f} days ago"
        )
        detail = f"Payloads are to be kept for {days} days, and {far}."
        return [warn(name, detail, "See whether a worker runs: it prunes every ten minutes.")]
    return [ok(name, f"Payloads older than {days} days are gone.")]


async def alerts_told(d: Deployment) -> list[Check]:
    """Whether what people are to be told gets through to them."""
    name = "alerts told"
    if d.books is None:
        return [unseen(name, d.no_books)]
    failed = await d.books.fetch(queries.failed_routes.sql, [d.settings.mode])
    if failed:
        remedy = "`finalsale alerts routes` and `finalsale alerts test` say what is wrong with each route."
        return [fail(name, row["sentence"], remedy) for row in failed]
    return [ok(name, "No route is known to be dead.")]


async def notices(d: Deployment) -> list[Check]:
    """Whether the merchant's app takes what it is told."""
    name = "notices to the app"
    if d.books is None:
        return [unseen(name, d.no_books)]
    row = await queries.doctor_notices(d.books)
    if row["waiting"] and row["oldest_s"] > NOTICE_LATE_S and d.settings.app_webhook_url:
        detail = f"{row['waiting']} wait, the oldest for {row['oldest_s'] / 3600:.0f} h: the app does not take them."
        return [warn(name, detail, "`finalsale notices list` says what the app answered.")]
    if row["held"] and d.settings.app_webhook_url:
        detail = f"{row['held']} were held while no address was set."
        return [warn(name, detail, "`finalsale notices replay` sends them, if the app shall still hear them.")]
    return [ok(name, "None is late.")]
