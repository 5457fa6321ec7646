"""The running sandbox: `/v1`, the control paths under `/_sandbox`, the ticking clock, the merchant's day and year."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
from aiohttp import web

from sandbox import bulk, shapes
from sandbox.api import Api, as_json
from sandbox.billing import Books
from sandbox.day import Day
from sandbox.faults import Faults, RateLimit
from sandbox.harm import harm
from sandbox.health import tell_failures
from sandbox.night import night
from sandbox.store import Obj, standing
from sandbox.webhooks import Webhooks
from sandbox.year import Year

TICK_S = 0.25
FLUSH_AT_MOST_S = 600.0


class Sandbox:
    """A stand-in Stripe on a local port.

    Use it in process (`async with Sandbox() as sb: sb.url, sb.books`) or alone (`python -m sandbox`).
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        seed: int = 1,
        livemode: bool = False,
        api_version: str = shapes.NEWEST,
        clock: float | None = None,
        running: bool = True,
        webhook_url: str | None = None,
        webhook_secrets: list[str] | None = None,
    ) -> None:
        self.books = Books(seed=seed, livemode=livemode, api_version=api_version, clock=clock, running=running)
        self.webhooks = Webhooks(self.books, seed)
        self.faults = Faults(seed)
        self.limits = RateLimit()
        self.api = Api(self.books, self.faults, self.limits)
        self.url = ""
        self.day: Day | None = None
        self.year: Year | None = None
        self._endpoint = {"url": webhook_url, "secrets": webhook_secrets or [], "api_version": api_version}
        self._host, self._port = host, port
        self._tasks: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Sandbox:
        await self.start()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.stop()

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 20)
        app.add_routes(
            [
                web.route("*", "/v1/{path:.*}", self.api.handle),
                web.route("*", "/v2/{path:.*}", self.api.handle),
                web.get("/_sandbox/books", self._books),
                web.post("/_sandbox/config", self._config),
                web.post("/_sandbox/clock", self._clock),
                web.post("/_sandbox/flush", self._flush),
                web.get("/_sandbox/deliveries", self._deliveries),
                web.post("/_sandbox/redeliver", self._redeliver),
                web.post("/_sandbox/health", self._health),
                web.post("/_sandbox/bulk", self._bulk),
                web.post("/_sandbox/day", self._start_day),
                web.get("/_sandbox/day", self._show_day),
                web.post("/_sandbox/year", self._open_year),
                web.post("/_sandbox/year/step", self._step_year),
                web.get("/_sandbox/year", self._show_year),
                web.post("/_sandbox/night", self._night),
                web.post("/_sandbox/harm", self._harm),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        self.url = f"http://{self._host}:{self._runner.addresses[0][1]}"
        self.webhooks.configure(self._endpoint)
        self._tasks.append(asyncio.create_task(self._tick()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        await self.webhooks.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if self.books.running and (self.day is None or self.day.state != "running"):
                self.books.tick()

    # -- control -------------------------------------------------------------------------------------------------------

    def configure(self, settings: dict[str, Any]) -> None:
        """`webhook` (the fields of `sandbox.webhooks.Endpoint`), `faults`, `rate_limit`, `latency_s`, `denied` [path],
        `generate_events`, `settlement` {currency, rates}, `clock` {set, running}, `idempotency_ttl_s`, `low_balance`,
        `refund_settle_s`, `refund_of_disputed`. What is not named stays.
        """
        if "webhook" in settings:
            self.webhooks.configure(settings["webhook"])
        if "faults" in settings:
            self.faults.configure(settings["faults"])
        if "rate_limit" in settings:
            self.limits.configure(settings["rate_limit"])
        if "clock" in settings:
            clock = settings["clock"]
            self.books.set_clock(clock.get("set", self.books.clock()), running=clock.get("running"))
        if "settlement" in settings:
            self.books.settles_in = settings["settlement"].get("currency", self.books.settles_in)
            self.books.rates = settings["settlement"].get("rates", self.books.rates)
        self.books.events_on = settings.get("generate_events", self.books.events_on)
        self.api.latency_s = settings.get("latency_s", self.api.latency_s)
        self.api.denied = settings.get("denied", self.api.denied)
        self.api.key_kept_s = settings.get("idempotency_ttl_s", self.api.key_kept_s)
        self.books.low_balance = settings.get("low_balance", self.books.low_balance)
        self.books.refund_settle_s = settings.get("refund_settle_s", self.books.refund_settle_s)
        self.books.refund_of_disputed = settings.get("refund_of_disputed", self.books.refund_of_disputed)

    async def _config(self, request: web.Request) -> web.Response:
        try:
            self.configure(msgspec.json.decode(await request.read()))
        except (msgspec.ValidationError, msgspec.DecodeError, ValueError) as error:
            return as_json({"error": str(error)}, 400)
        endpoint = msgspec.to_builtins(self.webhooks.endpoint) | {"secrets": len(self.webhooks.endpoint.secrets)}
        rules = [msgspec.to_builtins(rule) for rule in self.faults.rules]
        return as_json({"webhook": endpoint, "faults": rules, "rate_limit": self.limits.enabled})

    async def _clock(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read())
        if "set" in asked:
            self.books.set_clock(asked["set"], running=asked.get("running"))
        else:
            self.books.advance(asked.get("advance_s", 0))
        return as_json({"now": self.books.now(), "running": self.books.running})

    async def _books(self, request: web.Request) -> web.Response:
        """Every object by type (events left out unless `?events=1`) and every mutation received."""
        kinds = self.books.objects
        shown = {
            kind: list(objects.values())
            for kind, objects in kinds.items()
            if kind != "event" or request.query.get("events")
        }
        return as_json(
            {
                "now": self.books.now(),
                "objects": shown,
                "calls": self.books.calls,
                "faults": self.faults.counts,
                "rate_limited": self.limits.refused,
            }
        )

    async def _flush(self, request: web.Request) -> web.Response:
        body = await request.read()
        asked: Obj = msgspec.json.decode(body) if body else {}
        timeout_s = min(FLUSH_AT_MOST_S, float(asked.get("timeout_s", 30)))
        if self.year is not None:
            self.webhooks.paused = False
        return as_json({"pending": await self.webhooks.flush(timeout_s)})

    async def _deliveries(self, request: web.Request) -> web.Response:
        shown = [
            {
                "event": d.event["id"],
                "type": d.event["type"],
                "created": d.event["created"],
                "thin": d.thin,
                "state": d.state,
                "attempts": d.attempts,
                "answers": d.answers,
            }
            for d in self.webhooks.deliveries
        ]
        return as_json({"deliveries": shown})

    async def _redeliver(self, request: web.Request) -> web.Response:
        """{events?: [id]}: deliver what was lost, all of it or these."""
        body = await request.read()
        ids = (msgspec.json.decode(body) if body else {}).get("events")
        return as_json({"sent": self.webhooks.send_again(None if ids is None else set(ids))})

    async def _health(self, request: web.Request) -> web.Response:
        """{from, to}: tell of the events that were not made in [from, to), with `generate_events` off."""
        asked: Obj = msgspec.json.decode(await request.read())
        told = tell_failures(self.books, self.webhooks, asked["from"], asked["to"])
        return as_json({"events": told})

    async def _bulk(self, request: web.Request) -> web.Response:
        """{charges, from, to, seed}: so many paid invoices, spread evenly over [from, to), without events."""
        asked: Obj = msgspec.json.decode(await request.read())
        with standing():
            made = bulk.fill(self.books, asked["charges"], asked["from"], asked["to"], asked.get("seed", 1))
        return as_json(made)

    # -- the day -------------------------------------------------------------------------------------------------------

    async def _start_day(self, request: web.Request) -> web.Response:
        body = await request.read()
        asked: Obj = msgspec.json.decode(body) if body else {}
        if self.day is not None and self.day.state in ("waiting", "running"):
            return as_json({"error": "a day is running"}, 409)
        self.begin_day(customers=int(asked.get("customers", 240)), seed=int(asked.get("seed", 1)))
        return as_json({"state": "running"}, 202)

    def begin_day(self, *, customers: int = 240, seed: int = 1) -> Day:
        """Start the merchant's day in the background; await `day.finished`, then `flush`."""
        self.day = Day(self.books, customers=customers, seed=seed)
        self._tasks.append(asyncio.create_task(self._live(self.day)))
        return self.day

    async def _live(self, day: Day) -> None:
        """Events of the day go out when it is over: what is read back is then the same in every run of one seed."""
        self.webhooks.paused = True
        try:
            await day.run()
        finally:
            self.webhooks.resume()

    async def _show_day(self, request: web.Request) -> web.Response:
        if self.day is None:
            return as_json({"state": "none", "progress": 0.0, "truth": []})
        day = self.day
        return as_json({"state": day.state, "progress": day.progress, "error": day.error, "truth": day.truth})

    # -- the year ------------------------------------------------------------------------------------------------------

    async def _open_year(self, request: web.Request) -> web.Response:
        """{customers, days, seed}: a year that ends last midnight. Its clock only moves with `step`."""
        asked: Obj = msgspec.json.decode(await request.read())
        if self.year is not None or self.day is not None:
            return as_json({"error": "this sandbox has a day or a year already"}, 409)
        self.webhooks.paused = True
        self.year = Year(
            self.books, self.webhooks, customers=asked["customers"], days=asked["days"], seed=asked.get("seed", 1)
        )
        self.year.open()
        return as_json({"begin": self.year.begin, "days": self.year.days, "enterprises": self.year.known.enterprises})

    async def _step_year(self, request: web.Request) -> web.Response:
        """One more day happens; its events wait for `flush`, so that whoever keeps another clock can move that first."""
        if self.year is None or self.year.today >= self.year.days:
            return as_json({"error": "there is no day left"}, 409)
        self.webhooks.paused = True
        told = self.year.step()
        return as_json({"now": self.books.now(), "left": self.year.days - self.year.today, "told": told})

    async def _show_year(self, request: web.Request) -> web.Response:
        """What the year knows; with `?books=1` also Stripe's side of the books, and what became of every event."""
        if self.year is None:
            return as_json({"error": "there is no year"}, 404)
        known = msgspec.structs.replace(self.year.known, happened=dict(self.year.happened))
        shown: Obj = {"known": known}
        if request.query.get("books"):
            shown |= {"books": self.year.ledger(), "events": self.year.events(), "calls": len(self.books.calls)}
        return as_json(shown)

    # -- the night -----------------------------------------------------------------------------------------------------

    async def _night(self, request: web.Request) -> web.Response:
        """{objects, days, seed, from}: days that end two hours ago (or begin at `from`). Their events wait for `flush`."""
        body = await request.read()
        if self.year is not None or self.day is not None:
            return as_json({"error": "this sandbox has a day or a year already"}, 409)
        self.webhooks.paused = True
        self.year = lived = night(self.books, self.webhooks, msgspec.json.decode(body) if body else {})
        await lived.live()
        return as_json(lived.told())

    async def _harm(self, request: web.Request) -> web.Response:
        """{seed, how many of each kind of `sandbox.harm.KINDS`}: silent acts; answers with what was done."""
        body = await request.read()
        try:
            done = harm(self.books, self.webhooks, self.year or self.day, msgspec.json.decode(body) if body else {})
        except ValueError as error:
            return as_json({"error": str(error)}, 400)
        return as_json({"now": self.books.now(), "harm": done})
