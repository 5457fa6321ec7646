"""What a deployment needs to be well, looked at from here: settings, database, Redis, key, lists, clock, endpoint, last run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import asyncpg
import msgspec
from redis.exceptions import RedisError

from reconcile.windows import LISTS, RECENT
from worker.db import UNAVAILABLE, Connection, connect_pool, connection, queries
from worker.db.migrations import KNOWN_REVISIONS, current_revision, is_pending
from worker.desk import with_database
from worker.endpoint import Check, State, check_endpoint, reads_version
from worker.errors import FinalsaleError, PolicyInvalid, StripeRefused, StripeUnavailable
from worker.jobs import read_policy
from worker.ring import connect_redis
from worker.settings import Settings
from worker.stripe_gateway import API_VERSION, StripeGateway

POSTGRES_AT_LEAST = 14
STRIPE_TIMEOUT_S = 5.0
REDIS_TIMEOUT_S = 2.0
CLOCK_WARNS_S = 30
"""A clock that is so far off refuses no delivery yet, and mixes up the order of reads and events."""
RECENT_EVENTS = 1_000
RUN_LATE_S = 26 * 3600
"""A night and two hours."""
GAP_LATE_S = 26 * 3600
NO_LOOK = "not looked at"

_RESTRICTED, _FULL = ("rk_live_", "rk_test_"), ("sk_live_", "sk_test_", "sk_org_live_", "sk_org_test_")
_KINDS_OF_WORDS = {"radar/early_fraud_warnings": "early fraud warnings", "checkout/sessions": "Checkout sessions"}


class Deployment(msgspec.Struct, kw_only=True):
    """What the checks look at, read once. A trouble is a sentence why nothing more can be seen there."""

    settings: Settings
    gateway: StripeGateway
    conn: Connection | None = None
    database_trouble: str = ""
    postgres: str = ""
    revision: str | None = None
    stripe_trouble: str = ""
    lists: dict[str, str]
    """By path of the API: why it cannot be read, or nothing."""
    refused: frozenset[str] = frozenset()
    """The paths that the key may not read."""
    skew_s: float | None = None
    """Our clock less Stripe's; within a second of transmission and of the header's precision it counts as 0."""

    @property
    def books(self) -> Connection | None:
        """The database, if it has this release's tables."""
        return None if is_pending(self.revision) else self.conn


async def examine(settings: Settings) -> list[Check]:
    """Every check, in the order in which troubles should be mended. Does not raise for what is wrong: that is a check."""
    gateway = StripeGateway(settings, timeout_s=STRIPE_TIMEOUT_S)
    deployment = Deployment(settings=settings, gateway=gateway, lists={})
    checks: list[Check] = []
    try:
        await _probe_stripe(deployment)
        async with AsyncExitStack() as until_closed:
            await _open_books(deployment, until_closed)
            for check in CHECKS:
                checks += await _looked(check, deployment)
    finally:
        await gateway.aclose()
    return checks


def exit_code(checks: Sequence[Check]) -> int:
    """0 where all is well, 1 with warnings, 2 where something fails."""
    states = {check.state for check in checks}
    return 2 if State.FAIL in states else 1 if State.WARN in states else 0


async def _looked(check: Checker, deployment: Deployment) -> list[Check]:
    """One check's answers; a database that goes away meanwhile is its answer, and stops no other check."""
    try:
        return await check(deployment)
    except FinalsaleError as error:
        return [_fail(_title(check), str(error), "Run this again.")]
    except (*UNAVAILABLE, asyncpg.PostgresError) as error:
        return [_fail(_title(check), f"Postgres did not answer this ({type(error).__name__}).", "Run this again.")]


def _title(check: Checker) -> str:
    return getattr(check, "__name__", "").strip("_").replace("_", " ")


def _ok(name: str, detail: str) -> Check:
    return Check(name, State.OK, detail)


def _warn(name: str, detail: str, remedy: str) -> Check:
    return Check(name, State.WARN, detail, remedy)


def _fail(name: str, detail: str, remedy: str) -> Check:
    return Check(name, State.FAIL, detail, remedy)


def _unseen(name: str, why: str) -> Check:
    """Never clean without having looked."""
    return _warn(name, f"{NO_LOOK}: {why}", "See above.")


# --- looking -------------------------------------------------------------------------------------------------------------


async def _open_books(deployment: Deployment, until_closed: AsyncExitStack) -> None:
    """The database for as long as the checks take, if it can be reached; otherwise the trouble."""
    try:
        served = await until_closed.enter_async_context(with_database(deployment.settings))
        pool = await connect_pool(served.database_dsn(), role="doctor", max_size=1)
        until_closed.callback(pool.terminate)
        conn = await until_closed.enter_async_context(connection(pool))
        deployment.postgres = str(await conn.fetchval("show server_version"))
        deployment.revision = await current_revision(conn)
        deployment.conn = conn
    except FinalsaleError as trouble:
        deployment.database_trouble = str(trouble)
    except (*UNAVAILABLE, asyncpg.PostgresError, ValueError) as refused:
        deployment.database_trouble = f"Postgres refuses us ({type(refused).__name__})"


async def _probe_stripe(deployment: Deployment) -> None:
    """One object of each list. The first list is asked alone: where nobody answers, nobody is asked twelve times more."""
    if not deployment.gateway.connected:
        deployment.stripe_trouble = "STRIPE_API_KEY is not set"
        return
    first, *others = dict.fromkeys(listing.path for listing in LISTS.values())
    await _probe_list(deployment, first)
    if deployment.lists[first] and first not in deployment.refused:
        deployment.stripe_trouble = deployment.lists[first]
        return
    await asyncio.gather(*(_probe_list(deployment, path) for path in others))


async def _probe_list(deployment: Deployment, path: str) -> None:
    before = time.time()
    try:
        _body, stripe_s = await deployment.gateway.document(path, {"limit": 1})
    except StripeRefused as refused:
        deployment.lists[path] = str(refused)
        if refused.status == 403:
            deployment.refused |= {path}
        return
    except StripeUnavailable as trouble:
        deployment.lists[path] = str(trouble)
        return
    deployment.lists[path] = ""
    after = time.time()
    behind, ahead = stripe_s - after, before - (stripe_s + 1)
    deployment.skew_s = 0.0 if max(behind, ahead) <= 0 else ahead if ahead > 0 else -behind


# --- the checks ----------------------------------------------------------------------------------------------------------


async def _settings(d: Deployment) -> list[Check]:
    refunds = "sends refunds by itself" if d.settings.refunds == "auto" else "leaves refunds to a person"
    return [_ok("settings", f"{d.settings.mode} mode; {refunds}.")]


async def _policy(d: Deployment) -> list[Check]:
    try:
        policy = read_policy(d.settings)
    except PolicyInvalid as invalid:
        return [_fail("policy", str(invalid), "Correct the file; FINALSALE_POLICY names it.")]
    versions = "one version" if len(policy.version) == 1 else f"{len(policy.version)} versions"
    return [_ok("policy", f"{d.settings.policy or 'The shipped one'}: {versions}, valid.")]


async def _webhook_secret(d: Deployment) -> list[Check]:
    try:
        secrets = d.settings.webhook_secrets()
    except FinalsaleError as error:
        return [_fail("webhook secret", str(error), "The Dashboard shows it beside the endpoint.")]
    if not all(secret.startswith(b"whsec_") for secret in secrets):
        remedy = "Set STRIPE_WEBHOOK_SECRET to what the Dashboard shows beside the endpoint (whsec_…)."
        return [_warn("webhook secret", "A signing secret does not begin with whsec_, as Stripe's do.", remedy)]
    return [_ok("webhook secret", "one is set." if len(secrets) == 1 else f"{len(secrets)} are set.")]


async def _database(d: Deployment) -> list[Check]:
    if d.database_trouble:
        return [
            _fail("database", f"{d.database_trouble.rstrip('.')}.", "Set DATABASE_URL to a PostgreSQL that answers.")
        ]
    if int(d.postgres.split(".")[0].split()[0]) < POSTGRES_AT_LEAST:
        return [
            _fail(
                "database", f"PostgreSQL {d.postgres} is too old.", f"Use version {POSTGRES_AT_LEAST} or a later one."
            )
        ]
    return [_ok("database", f"PostgreSQL {d.postgres}.")]


async def _migrations(d: Deployment) -> list[Check]:
    newest = KNOWN_REVISIONS[-1]
    if d.conn is None:
        return [_unseen("migrations", "no database")]
    if is_pending(d.revision):
        return [
            _fail("migrations", f"The schema is at {d.revision or 'nothing'}, not {newest}.", "`finalsale migrate`")
        ]
    if d.revision != newest:
        detail = f"The schema is at {d.revision}, of a later release than this one, which knows {newest}."
        return [_warn("migrations", detail, "Deploy one release everywhere.")]
    return [_ok("migrations", f"The schema is at {newest}.")]


async def _redis(d: Deployment) -> list[Check]:
    slower = "Work begins up to half a second later; nothing is lost."
    url = d.settings.redis_dsn()
    if url is None:
        return [_warn("Redis", f"REDIS_URL is not set. {slower}", "Set REDIS_URL, or leave it so.")]
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            client = await connect_redis(url)
            try:
                await client.ping()
            finally:
                await client.aclose()
    except (FinalsaleError, RedisError, OSError, TimeoutError) as error:
        detail = f"It does not answer ({type(error).__name__}). {slower}"
        return [_warn("Redis", detail, "See whether REDIS_URL is right and Redis is up.")]
    return [_ok("Redis", "It answers.")]


async def _stripe_key(d: Deployment) -> list[Check]:
    key = d.settings.stripe_api_key.get_secret_value() if d.settings.stripe_api_key else ""
    if not key:
        return [_fail("Stripe key", "STRIPE_API_KEY is not set.", "Set it to a restricted key (rk_…).")]
    if d.stripe_trouble:
        return [_fail("Stripe key", f"Stripe does not answer it: {d.stripe_trouble}.", "See whether the key is valid.")]
    if key.startswith(_RESTRICTED):
        return [_ok("Stripe key", f"A restricted key of {d.settings.mode} mode.")]
    if key.startswith(_FULL):
        detail = f"A key of {d.settings.mode} mode that may do everything."
        return [_warn("Stripe key", detail, "Use a restricted key (rk_…): whoever steals it can do less.")]
    return [_warn("Stripe key", "It begins as no key of Stripe's does; test mode is taken for granted.", "Look at it.")]


async def _stripe_lists(d: Deployment) -> list[Check]:
    if d.stripe_trouble:
        return [_unseen("Stripe lists", d.stripe_trouble)]
    failed = [_list_failed(d, path, why) for path, why in d.lists.items() if why]
    return failed or [_ok("Stripe lists", f"All {len(d.lists)} that a run reads can be read.")]


def _list_failed(d: Deployment, path: str, why: str) -> Check:
    last = path.removeprefix("/v1/")
    words = _KINDS_OF_WORDS.get(last, last.replace("_", " "))
    if path in d.refused:
        return _fail(f"list of {words}", f"The key may not read {path}.", f"Give the key read access to {words}.")
    return _fail(f"list of {words}", f"{why}.", "Run this again; if it stays so, ask Stripe.")


async def _clock(d: Deployment) -> list[Check]:
    if d.skew_s is None:
        return [_unseen("clock", d.stripe_trouble or "no list could be read")]
    off = abs(d.skew_s)
    detail = f"{off:.0f} s {'ahead of' if d.skew_s > 0 else 'behind'} Stripe's."
    if off >= d.settings.signature_tolerance_s:
        return [
            _fail("clock", f"{detail} Every delivery is refused as too old or too new.", "Set this machine's clock.")
        ]
    if off >= CLOCK_WARNS_S:
        return [_warn("clock", detail, "Set this machine's clock.")]
    return [_ok("clock", "The same as Stripe's." if off < 1 else detail)]


async def _endpoint(d: Deployment) -> list[Check]:
    if d.stripe_trouble:
        return [_unseen("endpoint", d.stripe_trouble)]
    return await check_endpoint(d.gateway, d.settings)


async def _event_versions(d: Deployment) -> list[Check]:
    name = "API version of events"
    if d.books is None:
        return [_unseen(name, "no database")]
    rows = await d.books.fetch(queries.recent_api_versions.sql, d.settings.mode, RECENT_EVENTS)
    if not rows:
        return [
            _warn(name, "No event has arrived within 30 days.", "Send one from the Dashboard, or wait for a payment.")
        ]
    versions = {row["api_version"]: row["newest"] for row in rows if row["api_version"] is not None}
    unknown = [version for version in versions if not reads_version(version)]
    if unknown:
        detail = f"Events came in {', '.join(unknown)}; this release reads versions up to {API_VERSION}."
        return [_fail(name, detail, "See the endpoint's API version above, or use a later release.")]
    return [_ok(name, f"{', '.join(versions) or 'thin events only'}: read by this release.")]


async def _nightly_run(d: Deployment) -> list[Check]:
    name = "nightly run"
    if d.books is None:
        return [_unseen(name, "no database")]
    run = await d.books.fetchrow(queries.last_nightly.sql, d.settings.realm(None))
    if run is None:
        return [
            _warn(
                name, "None has ended yet.", "A worker starts one at 03:00 UTC; `finalsale reconcile` starts one now."
            )
        ]
    ended = run["finished_at"]
    told = f"{run['id']} ended {ended:%Y-%m-%d %H:%M} UTC" if ended is not None else f"{run['id']} ended"
    show = f"`finalsale runs show {run['id']}`"
    if run["state"] != "done" or run["exit_code"] == 2:
        return [_fail(name, f"{told} and is {run['state']}: not everything was read.", f"{show} says what.")]
    if run["age_s"] >= RECENT:
        return [_fail(name, f"{told}, more than {RECENT // 86_400} days ago.", "See whether a worker runs.")]
    if run["age_s"] > RUN_LATE_S:
        return [_warn(name, f"{told}, and last night's is missing.", "See whether a worker runs.")]
    if run["exit_code"]:
        return [_warn(name, f"{told}: a person must act.", f"{show} says on what.")]
    return [_ok(name, f"{told}, and nothing was left to do.")]


async def _gaps(d: Deployment) -> list[Check]:
    name = "events never made"
    if d.books is None:
        return [_unseen(name, "no database")]
    row = await d.books.fetchrow(queries.count_open_gaps.sql, d.settings.realm(None))
    if row is None or not row["gaps"]:
        return [_ok(name, "Stripe told of none that was not made up for.")]
    since: datetime = row["since"]
    detail = f"Stripe could not make events since {since.astimezone(UTC):%Y-%m-%d %H:%M} UTC ({row['gaps']} times)"
    if row["age_s"] > GAP_LATE_S:
        return [_fail(name, f"{detail}, and no run has read that time.", "See whether a worker runs.")]
    return [_warn(name, f"{detail}; the next run reads that time.", "Wait for it, or `finalsale reconcile`.")]


Checker = Callable[[Deployment], Awaitable[list[Check]]]
CHECKS: tuple[Checker, ...] = (
    _settings,
    _policy,
    _database,
    _migrations,
    _redis,
    _stripe_key,
    _clock,
    _stripe_lists,
    _webhook_secret,
    _endpoint,
    _event_versions,
    _nightly_run,
    _gaps,
)
