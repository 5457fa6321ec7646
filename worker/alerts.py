"""What people are told of alerts: an outbox from transitions of `alerts` to messages over the routes, each told once.

    alerts ──trigger──▶ look_at ──plan──▶ tellings (one a route) ──gather──▶ messages ──▶ sent
              5 s of quiet        what people believe               grouped, limited    at least once, one id

The plan compares what people believe (`told_at`, `told_severity`) with what is: raised, of a higher severity, resolved, or critical
and not acknowledged for 1 h, 4 h and 24 h. A cause that comes and goes within ten minutes is told as coming back once, and as over
when it stayed over for ten minutes. A route that cannot be reached waits longer and longer, gathers what it missed into one message,
and after two hours the other routes hear of it. Without routes nothing is planned: whoever sets one later hears what is open then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
import structlog

from worker import audit
from worker.alert_message import Telling, gathered, message_id, of_test, written
from worker.alert_routes import SEVERITIES, Outcome, Route, near_of, routes_of, send
from worker.db import Connection, Pool, columns, connection, queries, transaction
from worker.reading import Document, NotFound, fetch
from worker.review import named, said_why
from worker.settings import Settings

AT_ONCE = 500
"""Alerts of one round, and tellings of one message."""
FLAPPING = timedelta(minutes=10)
STEPS = (timedelta(hours=1), timedelta(hours=4), timedelta(hours=24))
"""Since it became critical: when it is told again while nobody acknowledges it, each time to one severity's routes more."""
LEASE_S = 60.0
FIRST_RETRY_S, LAST_RETRY_S = 15.0, 1800.0
DEAD_AFTER_S = 2 * 3600.0
GIVE_UP_AFTER_S = 3 * 86_400.0
ROUTE_FAILED = "alert_route_failed"

_TELLING = (
    *("realms", "causes", "raisings", "steps", "routes", "kinds", "severities", "customers", "subjects", "sentences"),
    *("since", "flaps"),
)
_LOOKED_AT = ("realms", "causes", "look_at", "told_at", "told_severities", "told_steps", "steps_from")

log = structlog.get_logger()


class Next(NamedTuple):
    """What follows from looking at an alert: what to tell, and the row's columns afterwards."""

    step: str | None
    look_at: datetime | None
    told_at: datetime | None
    told_severity: str | None
    told_step: int = 0
    steps_from: datetime | None = None


def next_of(alert: Document) -> Next:
    """Compare what people believe of an alert with what is. Pure: `alert["now"]` is the moment."""
    now, severity, told_at, told = alert["now"], alert["severity"], alert["told_at"], alert["told_severity"]
    if alert["resolved_at"] is not None:
        steady_at = alert["changed_at"] + FLAPPING
        if told_at is None:
            return Next(None, None, None, None)
        if alert["flaps"] and now < steady_at:
            return Next(None, steady_at, told_at, told, alert["told_step"], alert["steps_from"])
        return Next("resolved", None, None, None)
    if told_at is None:
        return Next("raised", _reminder(alert, severity, 0, now), now, severity, 0, now)
    if SEVERITIES.index(severity) < SEVERITIES.index(told):
        return Next(f"rose to {severity}", _reminder(alert, severity, 0, now), told_at, severity, 0, now)
    step, since = alert["told_step"], alert["steps_from"]
    due = _reminder(alert, severity, step, since)
    if due is None or due > now:
        return Next(None, due, told_at, told, step, since)
    while step < len(STEPS) and since + STEPS[step] <= now:  # what a long silence missed is one reminder
        step += 1
    return Next(f"again {step}", _reminder(alert, severity, step, since), told_at, told, step, since)


def _reminder(alert: Document, severity: str, step: int, since: datetime) -> datetime | None:
    """When an open alert is to be told again if nothing changes."""
    if severity != "critical" or alert["acked"] or step >= len(STEPS):
        return None
    due: datetime = since + STEPS[step]
    return due


def routes_for(routes: Sequence[Route], alert: Document, step: str) -> list[str]:
    """The names of the routes that hear of a step: those of its severity, and of one severity more with every reminder."""
    if alert["kind"] == ROUTE_FAILED:  # whoever can still be reached, and never the one that cannot
        return [route.name for route in routes if route.name != alert["subject"]]
    first = SEVERITIES.index(alert["severity"])
    reminders = int(step.removeprefix("again ")) if step.startswith("again ") else 0
    wanted = set(SEVERITIES[first : first + 1 + reminders])
    return [route.name for route in routes if route.severities & wanted]


class AlertSender:
    """Tells people. One per worker process; several may work beside each other. Raises SettingsInvalid for a wrong route."""

    def __init__(self, pool: Pool, settings: Settings, routes: Sequence[Route] | None = None) -> None:
        self.pool, self.settings = pool, settings
        self.near = near_of(settings)
        self.routes = tuple(routes_of(settings) if routes is None else routes)
        self.realms = f"^{settings.mode}(:|$)"

    async def plan(self) -> int:
        """Turn transitions into tellings and tellings into messages. Returns how many messages. Raises DatabaseUnavailable."""
        if not self.routes:
            return 0
        names = [route.name for route in self.routes]
        async with transaction(self.pool) as conn:
            if not await queries.plan_alerts_alone(conn):
                return 0
            while await self._look(conn) == AT_ONCE:
                pass
            lost = {"mode": self.settings.mode, "realms": self.realms, "routes": names}
            await queries.tellings_of_lost_routes(conn, **lost)
            await queries.messages_of_lost_routes(conn, **lost)
            await queries.lost_routes_alerts(conn, **lost)
            return sum([await self._gather(conn, name) for name in names])

    async def _look(self, conn: Connection) -> int:
        """Look at what changed or is due, and write down whom it concerns."""
        alerts = [dict(row) for row in await fetch(conn, queries.alerts_to_look_at, realms=self.realms, most=AT_ONCE)]
        looked = [(alert, next_of(alert)) for alert in alerts]
        if not looked:
            return 0
        over = [(a["realm"], a["cause"], a["told_at"]) for a, n in looked if n.step == "resolved"]
        gone = [(a["realm"], a["cause"]) for a, n in looked if n.told_at is None]
        heard = await self._heard(conn, over)
        if gone:
            realms, causes = columns(gone)
            await queries.drop_tellings(conn, realms=realms, causes=causes)
        told = [
            _telling_row(alert, following.step, route)
            for alert, following in looked
            if following.step
            for route in (
                heard.get((alert["realm"], alert["cause"]), [])
                if following.step == "resolved"
                else routes_for(self.routes, alert, following.step)
            )
        ]
        if told:
            names = [
                "realms",
                "causes",
                "raisings",
                "steps",
                "routes",
                "kinds",
                "severities",
                "customers",
                "subjects",
                "sentences",
                "since",
                "flaps",
            ]
            await queries.save_tellings(conn, **dict(zip(names, columns(told), strict=True)))
        rows = [(a["realm"], a["cause"], *n[1:]) for a, n in looked]
        await queries.alerts_looked_at(conn, **dict(zip(_LOOKED_AT, columns(rows), strict=True)))
        return len(looked)

    async def _heard(self, conn: Connection, over: Sequence[Sequence[Any]]) -> dict[tuple[str, str], list[str]]:
        """The routes that were told of some alerts since they are believed to be open."""
        heard: dict[tuple[str, str], list[str]] = {}
        if over:
            realms, causes, since = columns(over)
            for row in await fetch(conn, queries.routes_that_heard, realms=realms, causes=causes, since=since):
                heard.setdefault((row["realm"], row["cause"]), []).append(row["route"])
        known = {route.name for route in self.routes}
        return {alert: [route for route in routes if route in known] for alert, routes in heard.items()}

    async def _gather(self, conn: Connection, route: str) -> int:
        """Put what waits for a route into messages: few, and no more than people can read."""
        rows = await fetch(conn, queries.waiting_tellings, route=route, realms=self.realms, most=AT_ONCE)
        if not rows:
            return 0
        lately = await queries.messages_lately(conn, route=route, mode=self.settings.mode)
        if lately["stuck"]:  # it would only add to what cannot be sent: one message when it answers again
            return 0
        groups = gathered([_telling_of(row) for row in rows], lately["lately"])
        for group in groups:
            id_ = message_id(self.settings.mode, route, group)
            message = written(group, self.settings, id_)
            at = {"mode": self.settings.mode, "route": route}
            await queries.save_message(conn, id=id_, **at, **message._asdict())
            realms, causes, raisings, steps = columns([(t.realm, t.cause, t.raising, t.step) for t in group])
            carried = {"realms": realms, "causes": causes, "raisings": raisings, "steps": steps}
            await queries.tellings_in_message(conn, message=id_, route=route, **carried)
        return len(groups)

    async def send_due(self, route: Route) -> int:
        """Send a route's oldest message if it is due; returns 1 if one was tried. Raises DatabaseUnavailable."""
        mode = self.settings.mode
        async with connection(self.pool) as conn:
            row = await queries.claim_message(conn, route=route.name, mode=mode, lease_s=LEASE_S)
        if row is None:
            return 0
        told = {"id_": row["id"], "title": row["title"], "body": row["body"], "severity": row["severity"]}
        outcome = await send(route, self.near, **told)
        async with transaction(self.pool) as conn:
            await self._mark(conn, route, row, outcome)
        say = log.info if outcome.sent else log.warning
        say(
            "alert.sent" if outcome.sent else "alert.failed",
            message_id=row["id"],
            route=route.name,
            severity=row["severity"],
            attempts=row["attempts"],
            problem=outcome.problem,
        )
        return 1

    async def _mark(self, conn: Connection, route: Route, row: asyncpg.Record, outcome: Outcome) -> None:
        mine = {"id": row["id"], "attempts": row["attempts"]}
        about = {"realm": self.settings.mode, "cause": f"{ROUTE_FAILED}:{route.name}"}
        if outcome.sent:
            if await queries.message_sent(conn, **mine) is not None:
                await queries.resolve_route_failed(conn, **about)
            return
        if row["age_s"] > GIVE_UP_AFTER_S:
            await queries.message_given_up(conn, error=outcome.problem, **mine)
        else:
            await queries.message_postponed(conn, error=outcome.problem, wait_s=wait_s(row["attempts"]), **mine)
        if row["age_s"] > DEAD_AFTER_S:
            sentence = (
                f"Alerts over the route {route.name} have not got through for hours: {outcome.problem}. "
                "What it should have told waits. To try every route: finalsale alerts test"
            )
            await queries.raise_route_failed(conn, route=route.name, sentence=sentence, **about)


def wait_s(attempts: int) -> float:
    """Seconds to wait after so many attempts: doubling from 15 s to half an hour, a fifth more or less."""
    return min(FIRST_RETRY_S * 2.0 ** min(attempts - 1, 20), LAST_RETRY_S) * random.uniform(0.8, 1.2)  # noqa: S311 - no secret


def _telling_row(alert: Document, step: str, route: str) -> tuple[Any, ...]:
    return (
        *(alert["realm"], alert["cause"], alert["raising"], step, route, alert["kind"], alert["severity"]),
        *(alert["customer"], alert["subject"], alert["sentence"], alert["raised_at"], alert["flaps"]),
    )


def _telling_of(row: asyncpg.Record) -> Telling:
    return Telling(**{name: row[name] for name in Telling._fields})


# what people do ----------------------------------------------------------------------------------------------------------


async def acknowledge(
    conn: Connection,
    realms: Sequence[str],
    cause: str,
    by: str,
    note: str = "",
    via: str = "cli",
    role: str = "",
) -> list[Document]:
    """Somebody has seen an alert (or `all` that are open) and sees to it: no reminders until it comes back or grows worse.

    Returns what was acknowledged by this. Raises NotFound where there is no such open alert that nobody acknowledged, ActRefused
    without a name.
    """
    name, why = named(by), said_why(note)
    asked = {"cause": None if cause == "all" else cause, "by": name, "note": why or None}
    acked = [dict(row) for row in await fetch(conn, queries.acknowledge_alerts, realms=list(realms), **asked)]
    if not acked:
        what = "no open alert" if cause == "all" else f"no open alert {cause}"
        raise NotFound(f"There is {what} that nobody has acknowledged; `finalsale alerts list` shows what is open.")
    for alert in acked:
        told = {"act": "alert.acknowledge", "subject": alert["cause"], "reason": why, "role": role}
        await audit.record(conn, alert["realm"], by=name, via=via, **told)
    return acked


async def shown(conn: Connection, realms: Sequence[str], cause: str, limit: int = 100) -> list[Document]:
    """The alerts of this cause (one a realm), each with `deliveries`: who was told what, and what became of it. Raises NotFound."""
    alerts = [dict(row) for row in await fetch(conn, queries.read_alert, realms=list(realms), cause=cause)]
    if not alerts:
        raise NotFound(f"There is no alert {cause}; `finalsale alerts list --all` shows what there is.")
    for alert in alerts:
        told = await fetch(conn, queries.deliveries_of_alert, realm=alert["realm"], cause=cause, most=limit)
        alert["deliveries"] = [dict(row) for row in told]
    return alerts


async def routes_state(conn: Connection, settings: Settings, routes: Sequence[Route]) -> list[Document]:
    """The routes by their public names: what they hear, and how sending went within seven days."""
    lately = {row["route"]: dict(row) for row in await fetch(conn, queries.routes_lately, mode=settings.mode)}
    nothing = {"sent": 0, "waiting": 0, "failed": 0, "last_sent": None, "error": None}
    return [
        {"route": route.name, "severities": [s for s in SEVERITIES if s in route.severities]}
        | {name: lately.get(route.name, nothing)[name] for name in nothing}
        for route in routes
    ]


async def try_routes(settings: Settings, routes: Sequence[Route], severity: str | None = None) -> list[Document]:
    """Send a test message over each route (of those that hear a severity), past the outbox: who got it, and why others did not."""
    near = near_of(settings)
    asked = [route for route in routes if severity is None or severity in route.severities]
    message = of_test(severity or "note", settings)
    outcomes = await asyncio.gather(*(send(route, near, **message) for route in asked))
    return [{"route": route.name, **outcome._asdict()} for route, outcome in zip(asked, outcomes, strict=True)]
