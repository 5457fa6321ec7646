"""A merchant's year with real processes: 10,000 customers, every clause, an app that consumes credits; and the books must close.

`python -m tests.year` plays it against the sandbox on an advanced clock; `--json` prints one document {checks, seconds}.
The test suite plays a short one. Everything that must hold is in `tests.year_books`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import secrets
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import structlog
from aiohttp import web
from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from standardwebhooks import Webhook

from handlers.decisions import Decision
from handlers.terms import Policy, load_policy
from reconcile.truth import Check
from tests.year_books import close_books
from tests.year_operators import Operators
from tests.year_played import DAY, Heard, Played, Said
from worker.db import Pool, connect_pool, connection
from worker.db.migrations import migrate
from worker.embedded import embedded_servers
from worker.run import Deployment, SandboxProcess, free_port, sandbox_process
from worker.settings import Settings

REST_WITHIN_S = 300.0
SPARED_DAYS = 3
"""Whoever is part of a seeded duplicate consumes nothing for so long: used credits are a matter of their own (reading 23)."""
TOKEN = "fst_the_merchants_app_in_a_year"


class YearOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How large a year, and how many workers carry it."""

    customers: int = 10_000
    days: int = 366
    seed: int = 1
    workers: int = 2


# the policy ------------------------------------------------------------------------------------------------------------

_VERSION = """
[[version]]
id = "{id}"
in_force_from = {begins}
duplicates = {{ reverse_overpaid_credit = true }}
chargebacks = {{ on_chargeback = "{on_chargeback}" }}
[version.refunds]
per_refund = {{ usd = 50000, eur = 50000, gbp = 40000, jpy = 75000, kwd = 150000 }}
per_day = {{ usd = 500000000, eur = 500000000, gbp = 500000000, jpy = 500000000, kwd = 500000000 }}
two_persons = {{ usd = 100000, eur = 100000, gbp = 80000, jpy = 150000, kwd = 300000 }}
[version.credits]
plans = {{ price_studio = {{ included = {included}, trial = {trial} }} }}
packs = {{ price_pack_100 = 100, price_pack_studio = {pack} }}
"""

_AGREEMENT = """
[[agreement]]
customer = "{customer}"
source = "{name}"
from = {begins}
overrides = {overrides}
"""

OVERRIDES = {
    "review": '{ duplicates = "review" }',
    "suspend": '{ on_chargeback = "suspend" }',
    "credits": "{ credits = { plans = { price_studio = { included = 900 } } } }",
}


def policy_text(begin: int, days: int, enterprises: dict[str, str]) -> str:
    """A policy that changes in the middle of the year (9), and what is agreed with three customers (8)."""
    first, second = _toml(begin - 30 * DAY), _toml(begin + days // 2 * DAY)
    return "".join(
        [
            '[merchant]\nname = "AptNode"\n',
            _VERSION.format(id="first", begins=first, on_chargeback="flag", included=300, trial=30, pack=150),
            _VERSION.format(id="second", begins=second, on_chargeback="suspend", included=400, trial=40, pack=200),
            *(
                _AGREEMENT.format(customer=id_, name=f"MSA {name}", begins=first, overrides=OVERRIDES[name])
                for name, id_ in sorted(enterprises.items())
            ),
        ]
    )


def _toml(ts: int) -> str:
    return f"{datetime.fromtimestamp(ts, UTC):%Y-%m-%dT%H:%M:%SZ}"


# the merchant's app ----------------------------------------------------------------------------------------------------


class App:
    """The merchant's app: hears notices, asks for credits, and remembers both as it saw them."""

    def __init__(self, seed: int) -> None:
        self.secret = "whsec_" + "bWVyY2hhbnQtYXBwLW5vdGljZXMtc2VjcmV0ISE="
        self.heard: list[Heard] = []
        self.said = Said()
        self.url = ""
        self._rng = random.Random(f"app {seed}")
        self._seen: set[str] = set()
        self._refused: set[str] = set()
        self._keys: deque[tuple[str, str, int]] = deque(maxlen=500)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Serve the endpoint for notices on a free port of the loopback."""
        app = web.Application()
        app.add_routes([web.post("/notices", self._hear)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/notices"
        try:
            yield
        finally:
            await runner.cleanup()

    async def _hear(self, request: web.Request) -> web.Response:
        """Take a notice, unless it is one of the few whose first delivery fails."""
        body = await request.read()
        told = Webhook(self.secret).verify(
            body, dict(request.headers)
        )  # raises, and so answers 500, where it is not signed
        id_ = request.headers["webhook-id"]
        if id_ not in self._refused and self._rng.random() < 0.003:
            self._refused.add(id_)
            return web.Response(status=503)
        if id_ not in self._seen:
            self._seen.add(id_)
            self.heard.append(Heard(id=id_, customer=told["customer"], type=told["type"]))
        return web.Response(status=204)

    async def consume(self, http: aiohttp.ClientSession, base: str, customers: Sequence[str]) -> None:
        """Ask for credits of these customers, as their users would; now and then an old request comes again."""
        asked = [(c, secrets.token_hex(8), self._rng.randrange(1, 150)) for c in customers]
        again = [row for row in self._keys if self._rng.random() < 0.01]
        self._keys.extend(asked)
        gate = asyncio.Semaphore(8)

        async def ask(customer: str, key: str, amount: int, known: bool) -> None:
            async with (
                gate,
                http.post(
                    f"{base}/api/v1/customers/{customer}/credits/consume",
                    json={"amount": amount, "key": key},
                    headers={"Authorization": f"Bearer {TOKEN}"},
                ) as answer,
            ):
                told = await answer.json()
            outcome = told["outcome"] if answer.status == 200 else told["error"]["code"]
            self.said.outcomes[outcome] += 1
            if outcome == "consumed":
                self.said.consumed[customer, key] = amount
            elif outcome == "repeated" and not known:
                self.said.wrong.append(f"a fresh key of {customer} was called repeated")
            elif answer.status not in (200, 402, 403, 409):
                self.said.wrong.append(f"{answer.status} {outcome} for {customer}")

        await asyncio.gather(*(ask(*row, False) for row in asked))
        await asyncio.gather(*(ask(*row, True) for row in again))


# the year --------------------------------------------------------------------------------------------------------------


class Running(msgspec.Struct, kw_only=True):
    """A year in progress."""

    options: YearOptions
    stripe: SandboxProcess
    pool: Pool
    policy: Policy
    app: App
    http: aiohttp.ClientSession
    base: str
    begin: int
    played: Played
    operators: Operators
    spared: deque[set[str]] = msgspec.field(default_factory=lambda: deque(maxlen=SPARED_DAYS))


@asynccontextmanager
async def running(options: YearOptions, state_dir: Path) -> AsyncIterator[Running]:
    """Servers, sandbox, web and workers, all fresh, on the evening before the year begins."""
    app, secret, port = App(options.seed), "whsec_" + secrets.token_hex(16), free_port()
    async with embedded_servers(state_dir) as (database, redis), app.listening():
        await migrate(database)
        async with sandbox_process(secret, None, state_dir / "sandbox.log") as stripe, aiohttp.ClientSession() as http:
            endpoint = {"url": f"http://127.0.0.1:{port}/stripe/webhook", "concurrency": 32}
            await stripe.ask("config", {"webhook": endpoint})
            year = await stripe.ask("year", msgspec.structs.asdict(options))
            path = state_dir / "year.policy.toml"
            path.write_text(policy_text(year["begin"], year["days"], year["enterprises"]))
            settings = Settings(
                stripe_api_base=stripe.url,
                stripe_api_key=SecretStr("sk_test_sandbox"),
                stripe_webhook_secret=SecretStr(secret),
                port=port,
                refunds="auto",
                policy=path,
                state_dir=state_dir,
            ).with_servers(database, redis)
            pool = await connect_pool(database, role="year", min_size=1, max_size=4, statement_timeout_s=60)
            deployment = Deployment(settings, workers=options.workers, log_dir=state_dir)
            told = {"FINALSALE_APP_WEBHOOK_URL": app.url, "FINALSALE_APP_WEBHOOK_SECRET": app.secret}
            for child in (*deployment.webs, *deployment.workers):
                child.env.update(told, FINALSALE_API_TOKENS=TOKEN)
            try:
                await _set_clock(pool, year["begin"])
                await deployment.start()
                policy, played = load_policy(path), Played(begin=year["begin"], days=options.days)
                yield Running(
                    options=options,
                    stripe=stripe,
                    pool=pool,
                    policy=policy,
                    app=app,
                    http=http,
                    base=f"http://127.0.0.1:{port}",
                    begin=year["begin"],
                    played=played,
                    operators=Operators(pool, policy, played, http, stripe.url),
                )
            finally:
                await deployment.stop()
                pool.terminate()


async def _set_clock(pool: Pool, virtual: int) -> None:
    """From now on the workers judge by this moment; it goes on at the pace of the real clock."""
    await pool.execute(
        """insert into rehearsal_clock (ahead) values (to_timestamp($1) - now())
           on conflict (one) do update set ahead = excluded.ahead""",
        virtual,
    )


async def play(run: Running, progress: Progress) -> None:
    """Day by day: what happens at Stripe, what follows here, then what the app and the operators do."""
    task = progress.add_task("a year", total=run.options.days, events=0)
    for day in range(run.options.days):
        told = await run.stripe.ask("year/step", {})
        await _set_clock(run.pool, told["now"])
        await _flush(run)
        await _rest(run.pool, _AT_WORK)
        await _note_evening(run, told["told"])
        await _app_day(run, day)
        if await run.operators.evening(day):
            await _rest(run.pool, _WAKE_UPS)
        progress.update(task, advance=1, events=run.played.events)
    await _set_clock(run.pool, run.begin + (run.options.days + 2) * DAY)
    await _rest(run.pool, _IN_FLIGHT)
    await run.operators.last_evening()


async def _flush(run: Running) -> None:
    """Everything delivered; what our own doing makes happen meanwhile, too."""
    deadline, pending = time.monotonic() + REST_WITHIN_S, 1
    while pending:
        pending = (await run.stripe.ask("flush", {"timeout_s": REST_WITHIN_S}))["pending"]
        if time.monotonic() > deadline:
            raise RuntimeError(f"{pending} events had no 2xx within {REST_WITHIN_S:.0f} s")


_AT_WORK = {
    "events": "select count(*) from inbox where state = 'waiting' and next_at <= now()",
    "actions": "select count(*) from actions where state in ('planned', 'sending') and next_at <= now()",
}
_WAKE_UPS = {"wake-ups": "select count(*) from wakeups where due_at <= moment(realm)"}
_IN_FLIGHT = _WAKE_UPS | {
    "events": "select count(*) from inbox where state = 'waiting'",
    "actions": "select count(*) from actions where state in ('planned', 'sending')",
    "look-ups": "select count(*) from lookups where state = 'waiting'",
    "notices": "select count(*) from notices where state = 'waiting'",
}


async def _rest(pool: Pool, work: dict[str, str]) -> None:
    """Until nothing of this is left to do, seen twice: what is done brings new events."""
    asked = "select " + ", ".join(f"({counting})" for counting in work.values())
    deadline, quiet = time.monotonic() + REST_WITHIN_S, 0
    while quiet < 2:
        left = tuple(await pool.fetchrow(asked) or ())
        if time.monotonic() > deadline:
            raise RuntimeError(f"no rest within {REST_WITHIN_S:.0f} s: {dict(zip(work, left, strict=True))} left")
        quiet = 0 if any(left) else quiet + 1
        await asyncio.sleep(0.02)


async def _note_evening(run: Running, told: list[dict[str, Any]]) -> None:
    """What was decided by now about the payments that were seeded today."""
    run.spared.append({row["customer"] for row in told})
    subjects = [row["duplicate"] for row in told]
    for row in await run.pool.fetch(
        """select distinct on (subject) subject, body from decisions where subject = any($1::text[])
           order by subject, revision desc""",
        subjects,
    ):
        run.played.evening[row["subject"]] = msgspec.json.decode(row["body"], type=Decision)
    run.played.seeded |= run.spared[-1]


async def _app_day(run: Running, day: int) -> None:
    """Users of the merchant's app make pictures."""
    many = max(2, run.options.customers // 150)
    rows = await run.pool.fetch(
        """select customer from lots where remaining > 0 and not customer = any($1::text[])
           group by customer order by md5(customer || $2) limit $3""",
        sorted(set().union(*run.spared)),
        f"{run.options.seed} {day}",
        many,
    )
    await run.app.consume(run.http, run.base, [row["customer"] for row in rows])
    run.played.events = await run.pool.fetchval(
        "select greatest(reltuples, 0)::bigint from pg_class where relname = 'inbox'"
    )


# reporting -------------------------------------------------------------------------------------------------------------


class YearReport(msgspec.Struct, kw_only=True):
    """What a year came to."""

    checks: list[Check]
    seconds: float

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


async def year(options: YearOptions, state_dir: Path, console: Console) -> YearReport:
    """Play a year and close its books."""
    began = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("day {task.completed} of {task.total}, {task.fields[events]} events"),
        TimeElapsedColumn(),
    )
    async with running(options, state_dir) as run:
        with Progress(*columns, console=console) as progress:
            await play(run, progress)
        stripe = await run.stripe.ask("year?books=1")
        async with connection(run.pool) as conn:
            checks = await close_books(conn, stripe, run.played, run.policy, run.app.said, run.app.heard)
    return YearReport(checks=checks, seconds=round(time.monotonic() - began, 1))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.year", description=__doc__)
    parser.add_argument("--customers", type=int, default=YearOptions().customers)
    parser.add_argument("--days", type=int, default=YearOptions().days)
    parser.add_argument("--seed", type=int, default=YearOptions().seed)
    parser.add_argument("--workers", type=int, default=YearOptions().workers)
    parser.add_argument("--json", action="store_true", help="one document on standard output")
    arguments = vars(parser.parse_args())
    as_json = arguments.pop("json")
    for name in [n for n in os.environ if n.startswith(("FINALSALE_", "STRIPE_")) or n in ("DATABASE_URL", "PORT")]:
        del os.environ[name]
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR)
    )  # the processes log by themselves
    with tempfile.TemporaryDirectory(prefix="finalsale-year-") as directory:
        done = asyncio.run(year(YearOptions(**arguments), Path(directory), Console(stderr=True)))
    if as_json:
        sys.stdout.write(json.dumps(msgspec.to_builtins(done), indent=2) + "\n")
    else:
        for check in done.checks:
            sys.stdout.write(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.figure}\n")
        sys.stdout.write(f"{done.seconds} s\n")
    sys.exit(0 if done.ok else 1)


if __name__ == "__main__":
    main()
