"""The console over a million events and 100,000 customers: every page by HTTP, and what looks at the books beside it.

The baseline is the same page of the same release over nearly empty books, asked in turns. A page is to answer within LIMIT_MS.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import structlog

from bench.large_books import LARGE, SMALL, Size, make
from bench.played import Conn
from worker import audit, gauges, operators, privacy, reading
from worker.console import PAGES
from worker.db import Pool, connect_pool, connection, queries, transaction
from worker.db.migrations import current_revision, migrate
from worker.deployment import Deployment
from worker.doctor import CHECKS
from worker.jobs import read_policy
from worker.operators import Role
from worker.settings import Settings
from worker.stripe_gateway import StripeGateway
from worker.vigil import Vigil

LIMIT_MS = 100.0
ROUNDS = 20
SCANNED = 100_000
"""Payloads that the erasure's scan looks into."""

Times = dict[str, list[float]]


async def console(database_url: str, _: str, __: float) -> list[dict[str, Any]]:
    """The benchmark `console`: milliseconds of every page, of /metrics, `status`, the alert round and the doctor's look; rates."""
    books: list[Books] = []
    quiet = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=quiet)  # standard output is the report's
    async with AsyncExitStack() as until_closed:
        for name, size in (("large", LARGE), ("small", SMALL)):
            books.append(await until_closed.enter_async_context(_books(database_url, name, size)))
        large, small = books
        measured: list[tuple[str, Times]] = []
        for look in await _looks(large, small):
            measured.append((look.name, {"large": [], "small": []}))
            for number in range(look.rounds + 1):
                for where in (large, small):
                    began = time.perf_counter()
                    await look.ask(where)
                    if number:  # the first one warms up
                        measured[-1][1][where.name].append((time.perf_counter() - began) * 1000)
        return [*(_entry(name, times) for name, times in measured), *await _rates(large)]


def _entry(name: str, times: Times) -> dict[str, Any]:
    ours, baseline = sorted(times["large"]), sorted(times["small"])
    at = lambda latencies, share: latencies[min(math.ceil(share * len(latencies)), len(latencies)) - 1]  # noqa: E731
    return {
        "name": name,
        "ours": round(at(ours, 0.5), 2),
        "baseline": round(at(baseline, 0.5), 2),
        "unit": "ms",
        "ratio": round(at(ours, 0.5) / at(baseline, 0.5), 2),
        "p50_ms": round(at(ours, 0.5), 2),
        "p99_ms": round(at(ours, 0.99), 2),
        "baseline_p50_ms": round(at(baseline, 0.5), 2),
        "baseline_p99_ms": round(at(baseline, 0.99), 2),
        "limit_ms": LIMIT_MS,
        "within_limit": at(ours, 0.5) < LIMIT_MS,
    }


# books, and who looks at them --------------------------------------------------------------------------------------------


class Books(NamedTuple):
    """One database with its web process, a signed-in browser, and what processes look with."""

    name: str
    settings: Settings
    pool: Pool
    browser: aiohttp.ClientSession
    pages: Mapping[str, str]


class Look(NamedTuple):
    """Something that is asked of both books."""

    name: str
    ask: Callable[[Books], Awaitable[object]]
    rounds: int = ROUNDS


@asynccontextmanager
async def _books(server_url: str, name: str, size: Size) -> AsyncIterator[Books]:
    """Books of this size in a database of their own, kept if they are there already, and a browser in front of them."""
    url = server_url.replace("/finalsale?", f"/bench_{name}?")
    maintenance = await asyncpg.connect(server_url)
    if not await maintenance.fetchval("select exists (select from pg_database where datname = $1)", f"bench_{name}"):
        await maintenance.execute(f"create database bench_{name}")
        await migrate(url)
        # only the making: what is measured later writes nothing that counts
        await _durable(maintenance, durable=False)
        await make(url, size)
        await _durable(maintenance, durable=True)
    await maintenance.close()
    await asyncio.to_thread(os.sync)
    settings = Settings(stripe_webhook_secret="whsec_bench_0123456789abcdef", log="json").with_servers(url, None)
    async with AsyncExitStack() as until_closed:
        pool = await connect_pool(url, role="bench", max_size=2, statement_timeout_s=600)
        until_closed.callback(pool.terminate)
        async with transaction(pool) as conn:
            made = await operators.add(conn, f"Bench {secrets.token_hex(4)}", Role.ADMIN, by="bench")
            pages = await addresses(conn)
        port = await until_closed.enter_async_context(_web(url))
        jar = aiohttp.CookieJar(unsafe=True)
        browser = await until_closed.enter_async_context(
            aiohttp.ClientSession(f"http://127.0.0.1:{port}", cookie_jar=jar)
        )
        await _sign_in(browser, made["token"])
        yield Books(name, settings, pool, browser, pages)


async def _durable(maintenance: Conn, *, durable: bool) -> None:
    await maintenance.execute(f"alter system set fsync = {'on' if durable else 'off'}")
    await maintenance.execute("select pg_reload_conf()")


@asynccontextmanager
async def _web(url: str) -> AsyncIterator[int]:
    """The real web process on these books; gives its port."""
    environment = os.environ | {
        "DATABASE_URL": url,
        "STRIPE_WEBHOOK_SECRET": "whsec_bench_0123456789abcdef",
        "FINALSALE_BIND": "127.0.0.1",
    }
    environment.pop("STRIPE_API_KEY", None)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.servers", "ours"),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())["port"]
    finally:
        process.terminate()
        await asyncio.wait_for(process.communicate(), 30)


async def _sign_in(browser: aiohttp.ClientSession, token: str) -> None:
    base = str(browser._base_url).rstrip("/")
    sent = {"Origin": base, "Sec-Fetch-Site": "same-origin"}
    for _ in range(50):
        async with browser.post(
            "/console/signin", data={"token": token, "to": "/console/"}, headers=sent, allow_redirects=False
        ) as answer:
            if answer.status == 303:
                return
        await asyncio.sleep(0.2)
    raise RuntimeError(f"the console lets nobody in: {answer.status}")


# what is asked -----------------------------------------------------------------------------------------------------------

_NAMED = """
select (select id from decisions where clause = '4.3' and verdict = 'refund' and id ~ 'n[0-9]{5,}$' order by decided_at desc limit 1) as decision,
       (select subject from decisions where clause = '7' order by decided_at desc limit 1) as dispute,
       (select customer from decisions where verdict = 'none' order by decided_at limit 1) as plain,
       (select customer from actions where state = 'sent' order by created_at limit 1) as twice,
       (select subject from actions where state = 'sent' and kind = 'refund' order by created_at limit 1) as charge,
       (select id from cases order by opened_at limit 1) as case,
       coalesce((select event_id from inbox where type = 'charge.succeeded' and state = 'done' limit 1),
                (select event_id from inbox where state = 'done' limit 1)) as event,
       (select id from runs order by started_at desc limit 1) as run,
       (select cause from alerts order by raised_at limit 1) as cause,
       (select max(id) from policy_versions)::text as policy,
       (select decided_at from decisions where verdict = 'none' order by decided_at offset 10 limit 1) as long_ago
"""

QUERIES: tuple[str, ...] = (
    *("/reviews?clause=4.3", "/refunds?state=sent", "/refunds?state=withdrawn", "/chargebacks?show=all", "/cases?show=over"),
    *("/events?state=done&type=charge.dispute.*", "/events?state=dead", "/events?state=quarantined", "/events?state=waiting"),
    *("/events?type=no.such.type", "/audit?by=Ada", "/audit?by=Nobody", "/audit?act=review.reject", "/audit?subject=dec_77"),
    *("/audit?by=Ada&act=no.such", "/find?q={twice}", "/find?q={charge}", "/find?q={decision}", "/find?q=someone@example.com"),
    "/customers?judged={long_ago},x",
    "/events?before={long_ago},x",
)  # fmt: skip
"""Pages besides the plain ones: filters that match much, little and nothing, and lists far from their beginning."""
PATHS: dict[str, str] = {
    "/reviews/{id}": "decision",
    "/chargebacks/{id}": "dispute",
    "/customers/{id}": "twice",
    "/cases/{id}": "case",
    "/events/{id}": "event",
    "/runs/{id}": "run",
    "/alerts/{cause}": "cause",
    "/policy/{id}": "policy",
}
FORMS = ("csv", "json", "html")


async def addresses(conn: Any) -> dict[str, str]:
    """Every GET page of the map, and more, by what it is: its address in these books. Raises KeyError for an unknown page."""
    found = await conn.fetchrow(_NAMED)
    named = {name: value.isoformat() if name == "long_ago" else str(value) for name, value in found.items()}
    pages: dict[str, str] = {}
    for page in PAGES:
        if page.method != "GET":
            continue
        if page.path == "/runs/{id}/{form}":
            pages |= {f"/runs/{{id}}/{form}": f"/runs/{named['run']}/{form}" for form in FORMS}
        elif "{" in page.path:
            name = PATHS[page.path]
            pages[page.path] = page.path.replace(
                page.path[page.path.index("{") : page.path.index("}") + 1], named[name]
            )
        else:
            pages[page.path] = page.path
    pages["/reviews/{dispute}"] = f"/reviews/{named['dispute']}"
    pages["/customers/{plain}"] = f"/customers/{named['plain']}"
    return pages | {path: path.format_map(named).replace("+", "%2B") for path in QUERIES}


async def _looks(large: Books, small: Books) -> list[Look]:
    """The pages that both have, then what is asked without a browser."""
    pages = [Look(f"console {path}", _page(path)) for path in large.pages]
    return [
        *pages,
        Look("/metrics", _metrics),
        Look("gauges: every look", _gauges, 5),
        Look("finalsale status", _status, 5),
        Look("alert round", _alert_round, 5),
        Look("doctor: database", _doctor, 5),
    ]


def _page(path: str) -> Callable[[Books], Awaitable[object]]:
    async def ask(books: Books) -> None:
        async with books.browser.get(f"/console{books.pages[path]}", allow_redirects=False) as answer:
            body = await answer.read()
            if answer.status not in ((200, 303, 404) if path.startswith("/find") else (200,)):
                raise RuntimeError(f"{books.name} {path}: {answer.status} {body[-500:]!r}")

    return ask


async def _metrics(books: Books) -> None:
    async with books.browser.get("/metrics") as answer:
        await answer.read()
        answer.raise_for_status()


async def _gauges(books: Books) -> None:
    async with connection(books.pool) as conn:
        realms = await reading.realms_of(conn, "test")
        for look in gauges.LOOKS:
            await look.ask(conn, realms)


async def _status(books: Books) -> None:
    async with connection(books.pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        realms = await reading.realms_of(conn, "test")
        await reading.status(conn, realms, books.settings, read_policy(books.settings))


async def _alert_round(books: Books) -> None:
    gateway = StripeGateway(books.settings)
    try:
        await Vigil(books.pool, books.settings, gateway).look()
    finally:
        await gateway.aclose()


async def _doctor(books: Books) -> None:
    gateway = StripeGateway(books.settings)
    try:
        async with connection(books.pool) as conn:
            looked = Deployment(settings=books.settings, gateway=gateway, turn=asyncio.Lock())
            looked.conn, looked.postgres = conn, str(await conn.fetchval("show server_version"))
            looked.revision = await current_revision(conn)
            for placed in CHECKS:
                if placed.in_books:
                    await placed.check(looked)
    finally:
        await gateway.aclose()


# rates -------------------------------------------------------------------------------------------------------------------


async def _rates(large: Books) -> list[dict[str, Any]]:
    """Links verified a second beside reading them only; payloads looked into a second beside reading them only."""
    async with connection(large.pool) as conn:
        async with conn.transaction(isolation="repeatable_read"):
            began = time.perf_counter()
            read = 0
            async for rows in audit.links(conn):
                read += len(rows)
            plain_s, began = time.perf_counter() - began, time.perf_counter()
            found = await audit.verify(conn)
            ours_s = time.perf_counter() - began
        if not found["ok"]:
            raise RuntimeError(f"the chain does not verify: {found['problems'][:3]}")
        scan = await _scan(conn)
    return [_rate("audit verify", "links/s", read / ours_s, read / plain_s), scan]


async def _scan(conn: Any) -> dict[str, Any]:
    looked, plain_s, ours_s, after, since = 0, 0.0, 0.0, "", datetime.min.replace(tzinfo=UTC)
    while looked < SCANNED:
        began = time.perf_counter()
        rows = await reading.fetch(
            conn, queries.payload_slice, since=since, after=after, realm="test", most=privacy.SLICE
        )
        plain_s += time.perf_counter() - began
        for row in rows:
            privacy._tells_of(bytes(row["payload"]), {b"cus_nobody"})
        ours_s += time.perf_counter() - began
        if not rows:
            break
        since, after, looked = rows[-1]["received_at"], rows[-1]["event_id"], looked + len(rows)
    return _rate("erase: payloads looked into", "events/s", looked / ours_s, looked / plain_s)


def _rate(name: str, unit: str, ours: float, baseline: float) -> dict[str, Any]:
    return {
        "name": name,
        "ours": round(ours),
        "baseline": round(baseline),
        "unit": unit,
        "ratio": round(ours / baseline, 2),
    }
