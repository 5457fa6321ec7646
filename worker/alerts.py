"""What people are told of alerts: an outbox from transitions of `alerts` to messages over the routes, each told once.

    alerts ──trigger──▶ look_at ──plan──▶ tellings (one a route) ──gather──▶ messages ──▶ sent
              5 s of quiet        what people believe               grouped, limited    at least once, one id

The plan compares what people believe (`told_at`, `told_severity`) with what is: raised, of a higher severity, resolved, or critical
and not acknowledged for 1 h, 4 h and 24 h. A cause that comes and goes within ten minutes is told as coming back once, and as over
when it stayed over for ten minutes. A route that cannot be reached waits longer and longer, gathers what it missed into one message,
and after two hours the other routes hear of it; what is critical goes past what it could not be sent, and what the service refuses
for good is told in short instead. A route that is set wrongly is left out and told of over the others. Without routes nothing is
planned: whoever sets one later hears what is open then, and what was critical within the last day.
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
from worker.alert_message import MESSAGES_AN_HOUR, Lately, Telling, gathered, message_id, of_test, plain, written
from worker.alert_routes import SEVERITIES, Checked, Outcome, Route, checked_routes, near_of, send, written_routes
from worker.db import Connection, Pool, columns, connection, queries, transaction
from worker.public_address import Near
from worker.reading import Document, NotFound, fetch
from worker.review import named, said_why
from worker.settings import Settings

AT_ONCE = 500
"""Alerts of one transaction."""
GATHERED_AT_ONCE = 10_000
"""Tellings of one message: a storm is one message with a count."""
FLAPPING = timedelta(minutes=10)
UNHEARD_AFTER, UNHEARD_FOR = timedelta(minutes=5), timedelta(days=1)
"""What was critical for longer and is over unheard is told all the same, for so long afterwards."""
STEPS = (timedelta(hours=1), timedelta(hours=4), timedelta(hours=24))
"""Since it became critical: when it is told again while nobody acknowledges it, each time to one severity's routes more."""
LEASE_S = 60.0
FIRST_RETRY_S, LAST_RETRY_S = 15.0, 1800.0
DEAD_AFTER_S = 2 * 3600.0
GIVE_UP_AFTER_S = 3 * 86_400.0
REFUSALS = 3
"""So often a service has to refuse a message before it is told in short instead."""
ROUTE_FAILED = "alert_route_failed"
CHECK_AGAIN_S = 600.0

_TELLING = (
    *("realms", "causes", "raisings", "steps", "routes", "kinds", "severities", "customers", "subjects", "sentences"),
    *("since", "flaps", "until"),
)
_LOOKED_AT = ("realms", "causes", "look_at", "told_at", "told_severities", "told_steps", "steps_from", "anew")

log = structlog.get_logger()


class Next(NamedTuple):
    """What follows from looking at an alert: what to tell, and the row's columns afterwards."""

    step: str | None
    look_at: datetime | None
    told_at: datetime | None
    told_severity: str | None
    told_step: int = 0
    steps_from: datetime | None = None
    anew: bool = False
    """What is told from now on is news, though it was told before."""


def next_of(alert: Document) -> Next:
    """Compare what people believe of an alert with what is. Pure: `alert["now"]` is the moment."""
    now, severity, told_at, told = alert["now"], alert["severity"], alert["told_at"], alert["told_severity"]
    if alert["resolved_at"] is not None:
        steady_at = alert["changed_at"] + FLAPPING
        if told_at is None:
            return Next("was" if _was_unheard(alert) else None, None, None, None)
        if alert["flaps"] and now < steady_at:
            return Next(None, steady_at, told_at, told, alert["told_step"], alert["steps_from"])
        return Next("resolved", None, None, None)
    if told_at is None:
        return Next("raised", _reminder(alert, severity, 0, now), now, severity, 0, now)
    if SEVERITIES.index(severity) < SEVERITIES.index(told):
        return Next(f"rose to {severity}", _reminder(alert, severity, 0, now), told_at, severity, 0, now)
    if alert["grew"]:  # what counts many things, and they are many more than people were told
        return Next(f"grew {alert['grown']}", _reminder(alert, severity, 0, now), told_at, severity, 0, now, True)
    step, since = alert["told_step"], alert["steps_from"]
    if SEVERITIES.index(severity) > SEVERITIES.index(
        told
    ):  # when it has stayed so for a while, the next rise is one again
        steady_at = alert["changed_at"] + FLAPPING
        if now < steady_at:
            return Next(None, steady_at, told_at, told, step, since)
        return Next(None, None, told_at, severity, 0, None, True)
    due = _reminder(alert, severity, step, since)
    if due is None or due > now:
        return Next(None, due, told_at, told, step, since)
    while step < len(STEPS) and since + STEPS[step] <= now:  # what a long silence missed is one reminder
        step += 1
    return Next(f"again {step}", _reminder(alert, severity, step, since), told_at, told, step, since)


def _was_unheard(alert: Document) -> bool:
    """Whether it stood so long while it was critical that somebody should have heard of it, and is over since not long."""
    if alert["severity"] != "critical" or alert["acked"]:
        return False
    stood: timedelta = alert["resolved_at"] - alert["raised_at"]
    return stood >= UNHEARD_AFTER and alert["now"] - alert["changed_at"] < UNHEARD_FOR


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
    """Tells people. One per process; several may work beside each other. Nothing is told before `check`."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self.pool, self.settings = pool, settings
        self.set = written_routes(settings)[0]
        """The routes that can be read; `routes` are those of them that can be used."""
        self.routes: tuple[Route, ...] = ()
        self.near = Near([])
        self.checked: Checked | None = None
        self.realms = f"^{settings.mode}(:|$)"
        self._check_at = 0.0

    async def check(self) -> None:
        """Find out which routes can be used, and again later where one cannot. Raises DatabaseUnavailable.

        What is wrong stops nothing: it is left out, logged, and raised as a critical alert, which the other routes tell.
        """
        now = asyncio.get_running_loop().time()
        if now < self._check_at:
            return
        checked = await checked_routes(self.settings)
        for name, problem in checked.wrong.items():
            log.error("alert.route_wrong", route=name, problem=problem)
        if not checked.whole:
            log.warning("alert.routes_unchecked", routes=[route.name for route in checked.routes])
        self.routes, self.near, self.checked = checked.routes, checked.near, checked
        async with transaction(self.pool) as conn:
            realm = self.settings.mode
            for name, problem in sorted(checked.wrong.items()):
                sentence = f"{problem} Nothing is told over it. Correct it and restart; to see it: finalsale doctor"
                about = {"realm": realm, "cause": f"{ROUTE_FAILED}:{name}", "route": name, "severity": "critical"}
                await queries.raise_route_failed(conn, sentence=sentence, **about)
            if checked.whole:
                right = [route.name for route in checked.routes]
                await queries.resolve_routes_right(conn, realm=realm, routes=right)
                set_ = [*(route.name for route in self.set), *checked.wrong]
                await queries.lost_routes_alerts(conn, mode=realm, routes=set_)
        self._check_at = now + CHECK_AGAIN_S if checked.wrong or not checked.whole else float("inf")

    async def plan(self) -> int:
        """Turn transitions into tellings and tellings into messages. Returns how many messages. Raises DatabaseUnavailable."""
        if not self.routes:
            return 0
        looked = AT_ONCE
        while looked == AT_ONCE:  # a transaction each: whoever raises one of them waits for a few at most
            async with transaction(self.pool) as conn:
                if not await queries.plan_alerts_alone(conn):
                    return 0
                looked = await self._look(conn)
        async with transaction(self.pool) as conn:
            if not await queries.plan_alerts_alone(conn):
                return 0
            lost = {"mode": self.settings.mode, "realms": self.realms, "routes": [route.name for route in self.set]}
            await queries.tellings_of_lost_routes(conn, **lost)
            await queries.messages_of_lost_routes(conn, **lost)
            return sum([await self._gather(conn, route.name) for route in self.routes])

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
            _telling_row(alert, step, route)
            for alert, following in looked
            if following.step
            for step, route in self._whom(alert, following.step, heard.get((alert["realm"], alert["cause"]), []))
        ]
        if told:
            await queries.save_tellings(conn, **dict(zip(_TELLING, columns(told), strict=True)))
        rows = [(a["realm"], a["cause"], *n[1:]) for a, n in looked]
        await queries.alerts_looked_at(conn, **dict(zip(_LOOKED_AT, columns(rows), strict=True)))
        return len(looked)

    def _whom(self, alert: Document, step: str, heard: Sequence[str]) -> list[tuple[str, str]]:
        """What each route is told: that it is over where it was heard of, and elsewhere only that it was so for long."""
        if step != "resolved":
            return [(step, route) for route in routes_for(self.routes, alert, step)]
        missed = routes_for(self.routes, alert, "was") if _was_unheard(alert) else []
        return [("resolved", route) for route in heard] + [("was", route) for route in missed if route not in heard]

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
        at = {"mode": self.settings.mode, "route": route}
        row = await queries.messages_lately(conn, **at)
        if row["stuck_critical"]:  # it would only add to what cannot be sent: one message when it answers again
            return 0
        lately = Lately(row["messages"], float("inf") if row["last_s"] is None else row["last_s"], row["stuck"])
        limited = lately.stuck or lately.messages >= MESSAGES_AN_HOUR
        asked = {"realms": self.realms, "only_urgent": limited, "most": GATHERED_AT_ONCE}
        waiting = [_telling_of(row) for row in await fetch(conn, queries.waiting_tellings, route=route, **asked)]
        if limited and waiting:
            kinds = sorted({telling.kind for telling in waiting})
            told = await fetch(conn, queries.kinds_told_lately, kinds=kinds, **at)
            lately = lately._replace(told=frozenset(kind for (kind,) in told))
        groups = gathered(waiting, lately)
        for group in groups:
            id_ = message_id(self.settings.mode, route, group)
            message = written(group, self.settings, id_)
            await queries.save_message(conn, id=id_, is_plain=False, **at, **message._asdict())
            realms, causes, raisings = columns([(t.realm, t.cause, t.raising) for t in group])
            carried = {"realms": realms, "causes": causes, "raisings": raisings}
            await queries.tellings_in_message(conn, message=id_, route=route, **carried)
        return len(groups)

    async def send_due(self, route: Route) -> int:
        """Send a route's oldest message if it is due; returns 1 if one was tried. Raises DatabaseUnavailable."""
        if route not in self.routes:  # not checked yet, or wrong
            return 0
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
                await queries.dissolve_overtaken(conn, id=row["id"])
                await queries.resolve_route_failed(conn, **about)
            return
        refused = outcome.refused and row["refusals"] + 1 >= REFUSALS
        if refused and not row["is_plain"]:
            await self._tell_in_short(conn, route, row, outcome)
        elif row["age_s"] > GIVE_UP_AFTER_S:
            await queries.message_given_up(conn, error=outcome.problem, **mine)
        else:
            later = {"wait_s": wait_s(row["attempts"]), "refused": outcome.refused}
            await queries.message_postponed(conn, error=outcome.problem, **later, **mine)
        if max(row["age_s"], row["failing_s"] or 0.0) > DEAD_AFTER_S or (refused and row["is_plain"]):
            what = "is refused by the service" if refused else "has not got through for hours"
            sentence = (
                f"What is sent over the alert route {route.name} {what}: {outcome.problem}. "
                "What it should have told waits. To try every route: finalsale alerts test"
            )
            told = {"route": route.name, "severity": "warning", "sentence": sentence}
            await queries.raise_route_failed(conn, **told, **about)

    async def _tell_in_short(self, conn: Connection, route: Route, row: asyncpg.Record, outcome: Outcome) -> None:
        """In place of a message that the service refuses for what it says, one that says nothing but how many of what."""
        mine = {"id": row["id"], "attempts": row["attempts"], "error": outcome.problem}
        if await queries.message_set_aside(conn, **mine) is None:
            return
        told = await fetch(conn, queries.told_in_message, id=row["id"])
        id_ = f"{row['id']}_short"
        message = plain([tuple(each) for each in told], row["severity"], self.settings, id_)
        at = {"mode": self.settings.mode, "route": route.name}
        await queries.save_message(conn, id=id_, is_plain=True, **at, **message._asdict())
        await queries.tellings_of_refused(conn, plain=id_, refused=row["id"])
        log.warning("alert.refused", message_id=row["id"], route=route.name, told_as=id_, problem=outcome.problem)


def wait_s(attempts: int) -> float:
    """Seconds to wait after so many attempts: doubling from 15 s to half an hour, a fifth more or less."""
    return min(FIRST_RETRY_S * 2.0 ** min(attempts - 1, 20), LAST_RETRY_S) * random.uniform(0.8, 1.2)  # noqa: S311 - no secret


def _telling_row(alert: Document, step: str, route: str) -> tuple[Any, ...]:
    return (
        *(alert["realm"], alert["cause"], alert["raising"], step, route, alert["kind"], alert["severity"]),
        *(alert["customer"], alert["subject"], alert["sentence"], alert["raised_at"], alert["flaps"]),
        alert["resolved_at"] if step == "was" else None,
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
