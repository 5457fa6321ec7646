"""The web process: its routes, its view of Postgres, and the server with its limits and its orderly end."""

from __future__ import annotations

import asyncio
import hmac
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import aiohttp.http_parser
import asyncpg
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from worker import api, console, tracing
from worker.alert_standin import AlertStandIn
from worker.db import queries, session_settings
from worker.db.migrations import current_revision, is_pending
from worker.errors import FinalsaleError
from worker.gauges import Exporter
from worker.log import get_logger
from worker.metrics import Grown
from worker.ring import Bell
from worker.settings import Settings
from worker.vigil import WebVigil
from worker.webhook import Webhook

log = get_logger()

KEEPALIVE_TIMEOUT_S = 75.0  # also ends connections that never send a whole head
MAX_CONNECTIONS = 1000
LISTEN_BACKLOG = 1024
SHUTDOWN_TIMEOUT_S = 20.0
LOOK_INTERVAL_S = 1.0
LOOK_TIMEOUT_S = 5.0
STALE_AFTER_S = 3.0  # Postgres counts as away when it was not seen for so long

WEBHOOK_PATH = "/stripe/webhook"
PROXIED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP", "Fly-Client-IP", "Via")
"""Headers that a proxy adds: a request that has one came from outside."""

Extend = Callable[[web.Application], None]
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Watch:
    """Looks at Postgres every second, on a connection of its own: is it there, is it migrated, how long is the backlog."""

    def __init__(self, url: str, backlog_limit: int) -> None:
        self.also: Callable[[asyncpg.Connection[asyncpg.Record]], Awaitable[None]] | None = None
        """What else is to be done with the connection, after each look."""
        self.backlog = 0
        self.backlog_limit = backlog_limit
        self.migrations_pending = True
        self._url = url
        self._loop = asyncio.get_running_loop()
        self._seen_at = -STALE_AFTER_S
        self._was_there: bool | None = None
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    def overloaded(self) -> bool:
        """Whether the workers are so far behind that new events had better wait at Stripe."""
        return self.backlog >= self.backlog_limit

    def postgres_there(self) -> bool:
        """Whether Postgres answered within the last STALE_AFTER_S seconds."""
        return self._loop.time() - self._seen_at < STALE_AFTER_S

    def ready(self) -> bool:
        """Whether events can be taken in."""
        return self.postgres_there() and not self.migrations_pending and not self.overloaded()

    async def run(self, report: Callable[[], None]) -> None:
        """Look until cancelled, and let `report` say what happened since the last look."""
        try:
            while True:
                began = self._loop.time()
                await self._look()
                report()
                # counting a long backlog takes its time: no more than a twentieth of Postgres's
                await asyncio.sleep(
                    max(LOOK_INTERVAL_S, 20 * (self._loop.time() - began)) if self._was_there else LOOK_INTERVAL_S
                )
        finally:
            if self._connection is not None:
                self._connection.terminate()

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                if self._connection is None or self._connection.is_closed():
                    settings = session_settings("watch", statement_timeout_s=LOOK_TIMEOUT_S, lock_timeout_s=1)
                    self._connection = await asyncpg.connect(self._url, server_settings=settings)
                if self.migrations_pending:
                    self.migrations_pending = is_pending(await current_revision(self._connection))
                if not self.migrations_pending:
                    self.backlog = await queries.count_waiting(self._connection, most=self.backlog_limit)
                    if self.also is not None:
                        await self.also(self._connection)
        except Exception as error:  # the watch goes on, whatever there was to see
            if self._connection is not None:
                self._connection.terminate()
                self._connection = None
            if self._was_there is not False:
                log.error("postgres.lost", exc_info=error)
            self._was_there = False
            return
        self._seen_at = self._loop.time()
        if self._was_there is False:
            log.info("postgres.returned")
        self._was_there = True


class _Exported(Collector):
    """What is this process's own (see worker.metrics), turned into Prometheus's form when it is scraped."""

    def __init__(self, webhook: Webhook, watch: Watch) -> None:
        self._webhook = webhook
        self._watch = watch

    def collect(self) -> Iterable[Metric]:
        """The families, as prometheus_client asks for them."""
        family = CounterMetricFamily(
            "finalsale_intake_answers",
            "Deliveries that this process answered, right even while Postgres is away; all processes' are finalsale_deliveries_total.",
            labels=["outcome"],
        )
        for value, count in self._webhook.counts.items():
            family.add_metric([value], count)
        yield family
        yield GaugeMetricFamily(
            "finalsale_inbox_backlog",
            "Events waiting, counted up to FINALSALE_INTAKE_BACKLOG_LIMIT; from there on deliveries are answered 503.",
            value=self._watch.backlog,
        )
        yield GaugeMetricFamily(
            "finalsale_postgres_up", "1 while Postgres answers this process.", value=self._watch.postgres_there()
        )


class _Reporter:
    """One log line a second at most, with what was answered since the last one."""

    def __init__(self, webhook: Webhook) -> None:
        self._webhook = webhook
        self._answers: Counter[str] = Counter()
        self._commits: Counter[str] = Counter()

    def __call__(self) -> None:
        answers, commits = self._webhook.counts - self._answers, self._webhook.commits - self._commits
        if answers or commits:
            log.info("intake.reported", answers=dict(answers), commits=dict(commits))
            self._answers, self._commits = self._webhook.counts.copy(), self._webhook.commits.copy()


def create_app(
    webhook: Webhook, watch: Watch, bell: Bell, settings: Settings, registry: CollectorRegistry, *, intake: bool = True
) -> web.Application:
    """The routes that every web process has; without `intake` none that takes events in."""
    redis_given = settings.redis_url is not None

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        told = {
            "ready": watch.ready(),
            "postgres": "ok" if watch.postgres_there() else "unavailable",
            "migrations": "pending" if watch.migrations_pending else "current",
            "backlog": watch.backlog,
            "backlog_limit": watch.backlog_limit,
            "redis": "not configured" if not redis_given else "ok" if bell.reachable else "not reached",
        }
        return web.json_response(told, status=200 if told["ready"] else 503)

    async def metrics(request: web.Request) -> web.Response:
        _refuse_strangers(request, settings)
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    app = web.Application()
    if intake:
        app.router.add_route("*", WEBHOOK_PATH, webhook.handle)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


def _refuse_strangers(request: web.Request, settings: Settings) -> None:
    """Metrics tell how much money goes back: they are for who asks this process itself, or has the token.

    Raises HTTPNotFound towards the world behind a proxy, HTTPUnauthorized towards a neighbour without the token.
    """
    token = settings.metrics_token
    if token is not None:
        told = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if hmac.compare_digest(told, b"Bearer " + token.get_secret_value().encode()):
            return
    if any(name in request.headers for name in PROXIED):
        raise web.HTTPNotFound
    if token is not None:
        raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})


class Listening(NamedTuple):
    """A running web process."""

    port: int
    webhook: Webhook
    watch: Watch
    bell: Bell


@asynccontextmanager
async def listening(
    settings: Settings, *, port: int | None = None, extend: Extend | None = None
) -> AsyncIterator[Listening]:
    """Serve until the block ends; then finish what is under way, commit it, and ring.

    Starts while Postgres and Redis are down and answers 503 until Postgres is there. `port` 0 is a free one. `extend` may add
    routes. Raises SettingsInvalid, OSError when the port is taken, FinalsaleError without aiohttp's C parser.
    """
    if aiohttp.http_parser.HttpRequestParser is aiohttp.http_parser.HttpRequestParserPy:
        # request smuggling: the parser in Python accepted what proxies read differently more than once
        raise FinalsaleError(
            "aiohttp runs without its C parser: unset AIOHTTP_NO_EXTENSIONS, or install aiohttp from a wheel."
        )
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    watch = Watch(settings.database_dsn(), settings.intake_backlog_limit)
    bell = Bell(settings.redis_dsn())
    webhook = Webhook(settings, overloaded=watch.overloaded, ring=bell.ring)
    watch.also = WebVigil(settings.realm(None), webhook.signatures).look
    registry.register(_Exported(webhook, watch))
    grown = [Grown(*each) for each in webhook.grows()] + [Grown("finalsale_rings", bell.rings)]
    exporter = Exporter(settings, grown, lambda: not watch.migrations_pending)
    registry.register(exporter)
    intake = settings.console != "only"
    app = create_app(webhook, watch, bell, settings, registry, intake=intake)
    if intake:
        api.mount(app, settings, registry)
    if settings.console != "off":
        console.mount(app, settings)
    if extend is not None:
        extend(app)
    report = _Reporter(webhook)
    watching = asyncio.create_task(watch.run(report), name="watch")
    exporting = asyncio.create_task(exporter.run(), name="metrics")
    telling = asyncio.create_task(AlertStandIn(settings, lambda: not watch.migrations_pending).run(), name="alerts")
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=KEEPALIVE_TIMEOUT_S,
        auto_decompress=False,  # the signature is over the bytes as sent, and Stripe never compresses
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    try:
        await runner.setup()
        assert runner.server is not None
        if intake:
            runner.server.request_handler = _first(webhook, runner.server.request_handler)
        loop = asyncio.get_running_loop()
        chosen = settings.port if port is None else port
        factory = _bounded(runner.server)
        server = await loop.create_server(
            factory, settings.bind, chosen, backlog=LISTEN_BACKLOG, reuse_port=chosen != 0
        )
        try:
            yield Listening(server.sockets[0].getsockname()[1], webhook, watch, bell)
        finally:
            server.close()
    finally:
        await runner.cleanup()
        await webhook.close()
        await bell.close()
        for task in (watching, exporting, telling):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        report()


def _first(webhook: Webhook, others: Handler) -> Handler:
    """The webhook before all routes: finding a route and its middlewares costs as much as reading the event."""

    def handle(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        if request.raw_path == WEBHOOK_PATH and "Expect" not in request.headers:
            return webhook.handle(request)
        return others(request)

    return handle


def _bounded(server: web.Server) -> Callable[[], RequestHandler]:
    """At most MAX_CONNECTIONS: a new one takes the place of the oldest that is not being answered.

    So a slow sender can hold places, but not keep an honest one out.
    """

    def connect() -> RequestHandler:
        held = server.connections
        if len(held) >= MAX_CONNECTIONS:
            # aiohttp has no public name for "no request has arrived whole"; one without a transport is closing already
            idle = next((one for one in held if one.transport is not None and one._current_request is None), None)
            if idle is not None:
                idle.force_close()
        return server()

    return connect


async def serve(
    settings: Settings,
    *,
    port: int | None = None,
    on_ready: Callable[[int], None] | None = None,
    extend: Extend | None = None,
) -> None:
    """The web process: serve until SIGTERM or SIGINT, then stop accepting, finish, commit, and return.

    `on_ready` is called with the port once requests are taken. Run it with uvloop.
    """
    tracing.start("web")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    async with listening(settings, port=port, extend=extend) as running:
        log.info("web.started", port=running.port, mode=settings.mode, bind=settings.bind)
        if on_ready is not None:
            on_ready(running.port)
        await stop.wait()
        log.info("web.stopping")
    await tracing.stop()
    log.info("web.stopped", answers=dict(running.webhook.counts))
