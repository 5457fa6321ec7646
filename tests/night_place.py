"""Where a night is played: a sandbox that has lived through some days, real processes on databases of its own, and what is seeded."""

from __future__ import annotations

import asyncio
import random
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import msgspec
from pydantic import SecretStr

from handlers import HANDLERS
from reconcile.findings import Finding, What
from reconcile.report import Report
from tests.night_truth import Event, Line, Seed, seed_books, seed_dead, seeds_of_events, seeds_of_harm, table
from tests.year import policy_text
from worker import nightly
from worker.db import Pool, connect_pool, queries, transaction
from worker.db.migrations import migrate
from worker.embedded import embedded_servers
from worker.inbox import pack, read_event, store_rows
from worker.run import Deployment, SandboxProcess, free_port, sandbox_process
from worker.settings import Settings

BOOKS = "night"
"""The database that keeps the books for good; the trials work on copies of it."""
DAY = 86_400
REST_WITHIN_S = 900.0
FLUSH_S = 300.0
SHAPES = ("2026-10-28.endive", "2025-02-24.acacia")


class NightOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How large the campaign is."""

    objects: int = 100_000
    days: int = 3
    seed: int = 1
    workers: int = 1
    drop: float = 0.1
    each: int = 10
    """Of every kind of harm."""
    kills: int = 50
    kills_per_run: int = 5


class Said(msgspec.Struct):
    """What one `finalsale reconcile` came to, and everything it found: the report itself shows the first thousand."""

    exit: int
    report: Report
    findings: list[Finding]
    seconds: float

    @property
    def ids(self) -> set[str]:
        return {finding.id for finding in self.findings}


class Place(msgspec.Struct, kw_only=True):
    """A sandbox that has lived through some days, and servers on which books of it can be kept."""

    options: NightOptions
    state_dir: Path
    stripe: SandboxProcess
    settings: Settings
    database: str
    told: dict[str, Any]
    """What the sandbox says of its days."""

    @property
    def begin(self) -> int:
        return int(self.told["begin"])

    def on(self, database: str) -> str:
        """The URL of another database of the same server."""
        return self.database.replace("/finalsale?", f"/{database}?")


@asynccontextmanager
async def place(options: NightOptions, state_dir: Path, shape: str = SHAPES[0]) -> AsyncIterator[Place]:
    """Servers, and a sandbox whose days are over and whose events are still held back."""
    secret, port = "whsec_" + secrets.token_hex(16), free_port()
    async with (
        embedded_servers(state_dir) as (database, redis),
        sandbox_process(secret, shape, state_dir / "sandbox.log") as stripe,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1800)) as patient,
    ):
        stripe.http = patient
        endpoint = {"url": f"http://127.0.0.1:{port}/stripe/webhook", "concurrency": 32}
        await stripe.ask("config", {"webhook": endpoint})
        asked = {"objects": options.objects, "days": options.days, "seed": options.seed}
        told = await stripe.ask("night", asked)
        path = state_dir / "night.policy.toml"
        path.write_text(policy_text(told["end"] - 80 * DAY, 160, told["known"]["enterprises"]))
        settings = Settings(
            stripe_api_base=stripe.url,
            stripe_api_key=SecretStr("sk_test_sandbox"),
            stripe_webhook_secret=SecretStr(secret),
            port=port,
            policy=path,
            state_dir=state_dir,
        ).with_servers(database, redis)
        at = Place(options=options, state_dir=state_dir, stripe=stripe, settings=settings, database=database, told=told)
        await create(at, BOOKS)
        yield at


class Books(msgspec.Struct, kw_only=True):
    """One deployment on one database: its processes and a pool of the test's own."""

    place: Place
    name: str
    pool: Pool
    deployment: Deployment

    async def reconcile(self, *more: str) -> Said:
        """Run `finalsale reconcile` over the days to its end."""
        began = time.monotonic()
        process = await self.begin(*more)
        out, err = await process.communicate()
        if not out:
            raise RuntimeError(
                f"finalsale reconcile said nothing and ended with {process.returncode}: {err.decode()[-2000:]}"
            )
        return await self.said(process.returncode or 0, time.monotonic() - began)

    async def said(self, exit_: int, seconds: float = 0.0) -> Said:
        """What the newest run came to, as it is kept."""
        row = await self.pool.fetchrow("select id, report from runs order by started_at desc limit 1")
        assert row is not None
        rows = await self.pool.fetch("select body from findings where run = $1", row["id"])
        return Said(
            exit=exit_,
            report=msgspec.json.decode(row["report"], type=Report),
            findings=[msgspec.json.decode(found["body"], type=Finding) for found in rows],
            seconds=round(seconds, 1),
        )

    async def begin(self, *more: str) -> asyncio.subprocess.Process:
        """Start `finalsale reconcile`, and leave it to itself."""
        since = f"{self.place.options.days + 1}d"
        child = self.deployment.workers[0]
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worker.cli", "reconcile", "--since", since, "--json", *more),
            env=child.env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def rest(self) -> None:
        """Until nothing is left to do, seen twice: what is done brings new events."""
        deadline, quiet = time.monotonic() + REST_WITHIN_S, 0
        while quiet < 2:
            left = tuple(await self.pool.fetchrow(LEFT) or ())
            if time.monotonic() > deadline:
                raise RuntimeError(f"no rest within {REST_WITHIN_S:.0f} s: {left}")
            quiet = 0 if any(left) else quiet + 1
            await asyncio.sleep(0.05)

    async def settle_down(self) -> None:
        """At rest, and no look-up left that some later moment would make: two sets of books could not be compared otherwise."""
        await self.rest()
        for _ in range(3):
            await self.pool.execute("update lookups set next_at = now() where state = 'waiting'")
            await self.rest()

    async def flush(self) -> None:
        """Everything deliverable delivered and worked off, and what that made happen, too."""
        for _ in range(3):
            while (await self.place.stripe.ask("flush", {"timeout_s": FLUSH_S}))["pending"]:
                pass
            await self.rest()


LEFT = """select (select count(*) from inbox where state = 'waiting'),
    (select count(*) from actions where state in ('planned', 'sending') and next_at <= now()),
    (select count(*) from lookups where state = 'waiting' and next_at <= now()),
    (select count(*) from wakeups where due_at <= moment(realm))"""


@asynccontextmanager
async def books(at: Place, name: str, *, refunds: str, web: bool = False) -> AsyncIterator[Books]:
    """Processes on the database `name`, one set at a time on one place."""
    settings = at.settings.with_servers(at.on(name), at.settings.redis_dsn()).model_copy(update={"refunds": refunds})
    deployment = Deployment(settings, webs=int(web), workers=at.options.workers, log_dir=at.state_dir / name)
    pool = await connect_pool(at.on(name), role="night", min_size=1, max_size=4, statement_timeout_s=120)
    try:
        if web:
            await deployment.start()
        else:
            for child in deployment.workers:
                child.start()
            while not await pool.fetchval(
                "select count(*) from workers where role = 'worker' and seen_at > now() - interval '9 s'"
            ):
                await asyncio.sleep(0.05)
        yield Books(place=at, name=name, pool=pool, deployment=deployment)
    finally:
        await deployment.stop()
        pool.terminate()


async def create(at: Place, name: str) -> None:
    """A migrated, empty database, whose night is over: or the worker's own run would take everything in before it happens."""
    conn = await asyncpg.connect(at.on("postgres"))
    try:
        await conn.execute(f"drop database if exists {name} with (force)")
        await conn.execute(f"create database {name}")
    finally:
        await conn.close()
    await migrate(at.on(name))
    fresh = await asyncpg.connect(at.on(name))
    await fresh.execute(
        "insert into schedule_runs (name, due_at, state) values ($1, $2, 'done'), ($1, $2 + interval '1 day', 'done')",
        nightly.NAME,
        await queries.last_due(fresh),
    )
    await fresh.close()


async def copy(at: Place, source: str, name: str) -> None:
    """A database like another one, on which nobody works."""
    conn = await asyncpg.connect(at.on("postgres"))
    try:
        await conn.execute(f"drop database if exists {name} with (force)")
        await conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()",
            source,
        )
        await conn.execute(f"create database {name} template {source} strategy file_copy")
    finally:
        await conn.close()
    fresh = await asyncpg.connect(at.on(name))
    await fresh.execute("delete from workers")  # those of the other database
    await fresh.close()


# delivering ------------------------------------------------------------------------------------------------------------


async def deliver(kept: Books, drop: float) -> None:
    """Deliver the days' events but for a share of them, and what lies before them whole: that is another night's matter."""
    at = kept.place
    await at.stripe.ask("config", {"webhook": {"drop": drop, "drop_seed": at.options.seed}})
    await kept.flush()
    older = [d["event"] for d in await _deliveries(at) if d["state"] == "dropped" and d["created"] < at.begin]
    if older:
        await at.stripe.ask("redeliver", {"events": older})
    await kept.flush()
    await _as_if_in_time(kept.pool, at)


async def _as_if_in_time(pool: Pool, at: Place) -> None:
    """Everything was delivered just now; in life it would have been when it happened, and the books would have begun then."""
    await pool.execute(
        "update inbox set received_at = created_at where created_at >= to_timestamp($1)", at.begin - 2 * DAY
    )


async def _deliveries(at: Place) -> list[dict[str, Any]]:
    return list((await at.stripe.ask("deliveries"))["deliveries"])


async def listed_events(at: Place) -> dict[str, bytes]:
    """Every event as Stripe lists it, by id."""
    found: dict[str, bytes] = {}
    query, key = "limit=100", {"Authorization": "Bearer sk_test_sandbox"}
    while True:
        async with at.stripe.http.get(f"{at.stripe.url}/v1/events?{query}", headers=key) as answer:
            page = msgspec.json.decode(await answer.read(), type=_Page)
        last = ""
        for raw in page.data:
            last = msgspec.json.decode(raw, type=_Named).id
            found[last] = bytes(raw)
        if not page.has_more:
            return found
        query = f"limit=100&starting_after={last}"


class _Page(msgspec.Struct):
    data: list[msgspec.Raw]
    has_more: bool


class _Named(msgspec.Struct):
    id: str
    type: str = ""
    created: int = 0
    data: dict[str, Any] = {}


def _event(raw: bytes) -> Event:
    told = msgspec.json.decode(raw, type=_Named)
    return Event(id=told.id, type=told.type, created=told.created, object=told.data.get("object", {}).get("id"))


async def feed(pool: Pool, events: Iterable[bytes]) -> None:
    """Put events into the inbox as the web process would."""
    rows = [read_event(body, "test") for body in events]
    for start in range(0, len(rows), 2000):
        async with transaction(pool) as conn:
            await store_rows(conn, rows[start : start + 2000])


# harm ------------------------------------------------------------------------------------------------------------------


async def do_harm(kept: Books, seed: int, *, books_too: bool = True) -> list[Seed]:
    """Harm at Stripe in silence; what webhooks never told; and (`books_too`) falsified rows, orphans and dead events in the books.

    Stripe's clock stands still from then on, so that every run over this harm sees the same.
    """
    at, each = kept.place, kept.place.options.each
    asked = dict.fromkeys(HARM, each) | {"seed": seed}
    harmed = (await at.stripe.ask("harm", asked))["harm"]
    await kept.flush()
    now = (await at.stripe.ask("clock", {"advance_s": 600}))["now"]
    await at.stripe.ask("clock", {"set": now, "running": False})
    await kept.flush()
    await kept.pool.execute(
        "update lookups set next_at = now() where state = 'waiting'"
    )  # no run may find them due later
    await kept.rest()
    await _as_if_in_time(kept.pool, at)
    payloads = await listed_events(at)
    here = {row["event_id"] for row in await kept.pool.fetch("select event_id from inbox")}
    unheard = [_event(raw) for id_, raw in payloads.items() if id_ not in here]
    unheard = [event for event in unheard if event.created >= at.begin and event.type in HANDLERS]
    harm = seeds_of_harm(harmed)
    if not books_too:
        return [*harm, *seeds_of_events(unheard)]
    rng = random.Random(f"dead {seed}")
    dead = rng.sample(sorted((e for e in unheard if e.object), key=lambda e: e.id), min(each, len(unheard)))
    untouchable = {e.object for e in unheard if e.object} | {id_ for s in harm for id_ in (s.object, *s.also)}
    async with transaction(kept.pool) as conn:
        buried = await seed_dead(conn, [(event, pack(payloads[event.id])) for event in dead])
        false = await seed_books(conn, seed, each, untouchable, (at.begin, now - 3600))
    gone = {event.id for event in dead}
    return [*harm, *buried, *false, *seeds_of_events(e for e in unheard if e.id not in gone)]


HARM = (
    *("dispute_closed", "dispute_opened", "warning", "refund_by_hand", "refund_failed", "refund_succeeded"),
    *("duplicate_d1", "duplicate_d3", "trial_ended", "subscription_ended", "charged_after_end"),
)


async def truth_of(kept: Books, said: Said, seeds: list[Seed]) -> list[Line]:
    """The table of one run. What the sandbox's ordinary life did against the policy is found, too, and no false alarm."""
    life = kept.place.told["known"]
    known = {What.OUT_OF_POLICY: set(life["by_hand"]), What.CHARGED_AFTER_END: set(life["charged_after_end"])}
    woken = {seed.customer for seed in seeds if seed.customer}
    objects = sorted({id_ for seed in seeds for id_ in (seed.object, *seed.also)})
    rows = await kept.pool.fetch("select distinct customer from objects where id = any($1::text[])", objects)
    woken |= {row["customer"] for row in rows if row["customer"]}
    return table(seeds, said.findings, known, woken)
