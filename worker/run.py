"""`finalsale run`: everything in one process tree, against the real Stripe, or against the sandbox with a merchant's day.

The tree is what a machine in the cloud runs: one web process, one worker, each started again when it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

import aiohttp
import msgspec
from pydantic import SecretStr
from rich.console import Console

from worker import operators
from worker.console_address import console_address
from worker.day import picture, play_day, print_report, report, screen
from worker.db import Pool, connect_pool, transaction
from worker.db.migrations import migrate
from worker.embedded import EmbeddedServers, embedded_servers
from worker.errors import FinalsaleError, SettingsInvalid
from worker.jobs import read_policy
from worker.settings import Settings

CHECKOUT = Path(__file__).absolute().parent.parent
"""Where the sandbox lies beside this package; in an installed wheel there is none."""
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 25.0


class DayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the sandbox plays the day."""

    customers: int = 240
    seed: int = 1
    twice: bool = False
    shuffle: bool = False
    api_version: str | None = None
    faults: float = 0.0
    """Fraction of Stripe calls that fail after their effect."""
    log_dir: Path | None = None

    def webhook(self) -> dict[str, Any]:
        """The sandbox's delivery settings."""
        return {"duplicate": self.twice, "shuffle": 200 if self.shuffle else 0}


class Child:
    """One process of ours, started again whenever it dies before it is asked to stop."""

    def __init__(self, name: str, arguments: list[str], env: dict[str, str], log: IO[bytes] | int) -> None:
        self.name, self.arguments, self.env, self.log = name, arguments, env, log
        self.process: asyncio.subprocess.Process | None = None
        self.starts = 0
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Start it and keep it running."""
        self._task = asyncio.create_task(self._keep(), name=self.name)

    async def _keep(self) -> None:
        while not self._stopping:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, *self.arguments, env=self.env, stdout=self.log, stderr=self.log
            )
            self.starts += 1
            began = time.monotonic()
            await self.process.wait()
            if time.monotonic() - began < 1 and not self._stopping:
                await asyncio.sleep(0.5)

    def kill(self) -> None:
        """kill -9, as the machine would; it is started again."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL where that was not enough."""
        self._stopping = True
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class Deployment:
    """Web and worker as real processes on given servers."""

    def __init__(self, settings: Settings, *, webs: int = 1, workers: int = 1, log_dir: Path | None = None) -> None:
        self.settings = settings
        self.port = settings.port or free_port()
        env = {**os.environ, **_environment(settings), "PORT": str(self.port), "FINALSALE_LOG": "json"}
        self.log = (log_dir or settings.state_dir) / "run.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.log.open("wb")
        self.webs = [Child(f"web {n}", ["-m", "worker.cli", "web"], env, self._file) for n in range(webs)]
        self.workers = [Child(f"worker {n}", ["-m", "worker.cli", "worker"], env, self._file) for n in range(workers)]

    @property
    def endpoint(self) -> str:
        """Where Stripe delivers."""
        return f"http://127.0.0.1:{self.port}/stripe/webhook"

    async def start(self) -> None:
        """Start all processes and wait until events can be taken in. Raises FinalsaleError with the log's place."""
        for child in (*self.webs, *self.workers):
            child.start()
        ready = f"http://127.0.0.1:{self.port}/readyz"
        async with aiohttp.ClientSession() as http:
            deadline = time.monotonic() + READY_TIMEOUT_S
            while time.monotonic() < deadline:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with http.get(ready, timeout=aiohttp.ClientTimeout(total=2)) as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.1)
        raise FinalsaleError(f"the web process did not become ready within {READY_TIMEOUT_S:.0f} s; see {self.log}")

    async def stop(self) -> None:
        """Stop all processes in order: nobody delivers any more, then nobody works."""
        for children in (self.webs, self.workers):
            await asyncio.gather(*(child.stop() for child in children))
        self._file.close()


class SandboxProcess:
    """The stand-in Stripe in a process of its own, and its control paths."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, http: aiohttp.ClientSession) -> None:
        self.process, self.url, self.http = process, url, http

    async def ask(self, path: str, body: Any = None) -> Any:
        """GET, or POST with a body, on a control path. Raises aiohttp.ClientError."""
        method = "GET" if body is None else "POST"
        async with self.http.request(method, f"{self.url}/_sandbox/{path}", json=body) as answer:
            answer.raise_for_status()
            return await answer.json(loads=msgspec.json.decode)


@asynccontextmanager
async def sandbox_process(secret: str, api_version: str | None, log: Path) -> AsyncIterator[SandboxProcess]:
    """Start `python -m sandbox`. Raises SettingsInvalid where the sandbox is not installed (it is no part of the wheel)."""
    if not (CHECKOUT / "sandbox" / "__main__.py").exists():
        raise SettingsInvalid(
            "STRIPE_API_KEY is not set, and the sandbox is not installed: set the key, or run from a checkout with `make run`."
        )
    arguments = ["-m", "sandbox", "--webhook-secret", secret, *(["--api-version", api_version] if api_version else [])]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=CHECKOUT, stdout=asyncio.subprocess.PIPE, stderr=file
        )
        try:
            assert process.stdout is not None
            first = await asyncio.wait_for(process.stdout.readline(), READY_TIMEOUT_S)
            if not first:
                raise FinalsaleError(f"the sandbox did not start; see {log}")
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as http:
                yield SandboxProcess(process, json.loads(first)["url"], http)
        finally:
            if process.returncode is None:
                process.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), 5)
            if process.returncode is None:
                process.kill()


class Run(msgspec.Struct, kw_only=True):
    """A day in progress: everything a fault campaign may reach for."""

    servers: EmbeddedServers | None
    deployment: Deployment
    sandbox: SandboxProcess
    pool: Pool
    settings: Settings
    began: float


@asynccontextmanager
async def sandbox_run(
    settings: Settings, options: DayOptions, *, webs: int = 1, workers: int = 1
) -> AsyncIterator[Run]:
    """Servers, sandbox, web and worker, all fresh, ready for the day. Needs the sandbox's policy file and empty books."""
    began = time.monotonic()
    read_policy(settings)
    state_dir = settings.state_dir / "sandbox"
    wants = {"postgres": settings.database_url is None, "valkey": settings.redis_url is None}
    async with embedded_servers(state_dir, **wants) as servers:
        database = settings.database_url.get_secret_value() if settings.database_url else servers.database_url
        redis = settings.redis_dsn() or servers.redis_url
        if settings.database_url is None:
            await _fresh_database(database)
        secret = "whsec_" + secrets.token_hex(16)
        async with sandbox_process(secret, options.api_version, state_dir / "sandbox.log") as stripe:
            changed: dict[str, Any] = {
                "stripe_api_base": stripe.url,
                "stripe_api_key": SecretStr("sk_test_sandbox"),
                "stripe_webhook_secret": SecretStr(secret),
                "port": _port(settings),
            }
            if "FINALSALE_REFUNDS" not in os.environ:
                changed["refunds"] = "auto"
            if settings.policy is None:
                changed["policy"] = sandbox_policy()
            running = settings.model_copy(update=changed).with_servers(database, redis)
            await migrate(database)
            pool = await connect_pool(database, role="run", min_size=1, max_size=3)
            deployment = Deployment(running, webs=webs, workers=workers, log_dir=options.log_dir or state_dir)
            try:
                if await pool.fetchval("select exists (select 1 from inbox)"):
                    raise SettingsInvalid("DATABASE_URL already holds events; the sandbox's day needs empty books")
                # before anybody looks whether Stripe's endpoint is right
                await stripe.ask("config", {"webhook": {"url": deployment.endpoint, **options.webhook()}})
                await deployment.start()
                if options.faults:
                    rules = [
                        {"kind": kind, "rate": options.faults / 3, "path": "/v1/*"}
                        for kind in ("502_after", "500_after", "truncated")
                    ]
                    await stripe.ask("config", {"faults": {"seed": options.seed, "rules": rules}})
                yield Run(
                    servers=servers, deployment=deployment, sandbox=stripe, pool=pool, settings=running, began=began
                )
            finally:
                await deployment.stop()
                pool.terminate()


def sandbox_policy() -> Path:
    """The policy file that lies beside the sandbox: the shipped one, with balance credits reversed by itself."""
    return CHECKOUT / "sandbox" / "sandbox.policy.toml"


def main(*, settings: Settings, once: bool, as_json: bool, options: DayOptions) -> int:
    """Run until Ctrl-C, or with `once` until the day is done. Returns the exit code. Raises FinalsaleError."""
    console = Console(stderr=as_json, highlight=False)
    with contextlib.suppress(KeyboardInterrupt):
        if settings.stripe_api_key is not None:
            return asyncio.run(_run_real(settings, console))
        return asyncio.run(_run_sandbox(settings, console, once=once, as_json=as_json, options=options))
    return 0


async def _run_real(settings: Settings, console: Console) -> int:
    settings.webhook_secrets()
    read_policy(settings)
    wants = {"postgres": settings.database_url is None, "valkey": settings.redis_url is None}
    async with embedded_servers(settings.state_dir, **wants) as servers:
        database = settings.database_url.get_secret_value() if settings.database_url else servers.database_url
        running = settings.model_copy(update={"port": _port(settings)}).with_servers(
            database, settings.redis_dsn() or servers.redis_url
        )
        await migrate(database)
        deployment = Deployment(running)
        try:
            await deployment.start()
            console.print(f"The real Stripe, {settings.mode} mode, no sandbox. Refunds: {settings.refunds}.")
            console.print(f"Endpoint: {deployment.endpoint}   log: {deployment.log}   Ctrl-C stops.")
            if running.console != "off":
                where = "" if settings.database_url else f"FINALSALE_STATE_DIR={settings.state_dir.absolute()} "
                console.print(f"Console: {console_address(running)}", soft_wrap=True)
                console.print(
                    f"An operator's token: {where}finalsale operator add NAME --role admin",
                    soft_wrap=True,
                    markup=False,
                )
            await _until_stopped()
        finally:
            await deployment.stop()
    return 0


async def _run_sandbox(settings: Settings, console: Console, *, once: bool, as_json: bool, options: DayOptions) -> int:
    console.print("Starting PostgreSQL, Valkey, the sandbox Stripe, web and worker ...")
    async with sandbox_run(settings, options) as run:
        with screen(console, live=console.is_terminal) as draw:
            async for day in play_day(run, options):
                draw(await picture(run, day))
        done = await report(run)
        if as_json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(done), indent=2).decode() + "\n")
            sys.stdout.flush()
        else:
            print_report(console, done)
        if not once:
            console.print(f"\nStill up: {run.deployment.endpoint}   sandbox: {run.sandbox.url}   Ctrl-C stops.")
            console.print(
                f"[dim]In another terminal: FINALSALE_STATE_DIR={settings.state_dir / 'sandbox'} "
                ".venv/bin/finalsale review list[/dim]"
            )
            if run.settings.console != "off":
                await _invite(run, console)
            await _until_stopped()
        return 0 if done.ok else 1


async def _invite(run: Run, console: Console) -> None:
    """Two operators of this sandbox's console, for whoever tries it: some refunds need two people."""
    console.print(f"\nConsole: {console_address(run.settings)}", style="bold", soft_wrap=True)
    console.print("Sign in with one of these tokens. They are for this sandbox only and end with it.")
    async with transaction(run.pool) as conn:
        for name in ("demo", "second"):
            made = await operators.add(conn, name, operators.Role.ADMIN, by="finalsale run")
            console.print(f"  {name:<7} {made['token']}", soft_wrap=True, markup=False)
    console.print(
        "Open Reviews and answer one. Above the policy's two-person limit it takes a second name: "
        "sign in as the other one in a private window."
    )


async def _until_stopped() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


def _environment(settings: Settings) -> dict[str, str]:
    """The settings of this run as the environment of its processes."""
    told = {
        "DATABASE_URL": settings.database_dsn(),
        "REDIS_URL": settings.redis_dsn(),
        "STRIPE_API_KEY": settings.stripe_api_key.get_secret_value() if settings.stripe_api_key else None,
        "STRIPE_API_BASE": settings.stripe_api_base,
        "STRIPE_WEBHOOK_SECRET": settings.stripe_webhook_secret.get_secret_value()
        if settings.stripe_webhook_secret
        else None,
        "FINALSALE_REFUNDS": settings.refunds,
        "FINALSALE_POLICY": str(settings.policy.absolute()) if settings.policy else None,
        "FINALSALE_TEST_CLOCKS": "1" if settings.test_clocks else None,
    }
    return {name: value for name, value in told.items() if value is not None}


def _port(settings: Settings) -> int:
    """The wanted port; another free one where nobody asked for it and it is taken."""
    if "PORT" in os.environ:
        return settings.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", settings.port))
        except OSError:
            return free_port()
    return settings.port


def free_port() -> int:
    """A port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _fresh_database(url: str) -> None:
    """Empty books for a new day: the sandbox remembers nothing of the last one either."""
    pool = await connect_pool(url, role="run", min_size=1, max_size=1)
    try:
        await pool.execute("drop schema public cascade; create schema public")
    finally:
        pool.terminate()
