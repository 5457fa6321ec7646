"""The conditions that no event brings: for each, the statement that sees it and the sentence that says it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import asyncpg
import msgspec

from handlers.account import Severity
from handlers.decisions import Money
from reconcile.findings import What
from reconcile.report import MoneyRow
from worker.audit_pace import Pace
from worker.db import Connection, queries
from worker.endpoint import reads_version
from worker.nightly import NAME as NIGHTS
from worker.reading import fetch
from worker.stripe_gateway import API_VERSION

MINUTE, HOUR = 60.0, 3600.0
SINGLY = 20
"""So many of one kind are an alert each; what comes beyond is one alert together, for nobody reads them one by one."""
COUNTED = 1000
"""Nothing is counted further than this: the sentence then says `at least`."""
COUNTED_WAITING = 10_000
DOUBT_CRITICAL_S = HOUR
REVIEW_WARNING_S, REVIEW_CRITICAL_S = 4 * HOUR, 24 * HOUR
PAUSED_WARNING_S, PAUSED_CRITICAL_S = 24 * HOUR, 72 * HOUR
QUARANTINE_CRITICAL_S = 24 * HOUR
BACKLOG_WARNING_S, BACKLOG_CRITICAL_S = 2 * MINUTE, 10 * MINUTE
NIGHT_LATE_S, NIGHT_CRITICAL_S = 2 * HOUR, 24 * HOUR
RECENT_EVENTS = 500
COMMITS_WITHIN = timedelta(minutes=10)
"""A decision is dated when its transaction began; it is seen when that committed, later than others that began after it."""


class Holding(NamedTuple):
    """One alert that should be open now. Equal causes are one alert; ids and amounts only."""

    realm: str
    cause: str
    """`kind:subject`, lasting as long as it is the same thing."""
    kind: str
    severity: Severity
    customer: str
    """'' where it is about no single customer."""
    subject: str
    sentence: str
    many: int = 1
    """How much it is that is told together; when that has grown much since people were told, they are told again."""


class Memory:
    """What one look may leave to the next one of the same process, so that nothing is read twice."""

    def __init__(self) -> None:
        self.reports: dict[str, tuple[str, str, int]] = {}
        """Of the last report that was opened, by realm: the run, what of its money does not close ('' where it does), how much."""
        self.oldest_review_at: datetime | None = None
        self.chain = Pace()


class Here(NamedTuple):
    """Where a condition looks: a connection in a transaction, the deployment's realms, its own one first, and what is remembered."""

    conn: Connection
    realms: list[str]
    memory: Memory


Find = Callable[[Here], Awaitable[list[Holding]]]


class Condition(NamedTuple):
    """What sees some kinds of alerts, and how often (seconds) it is worth looking."""

    kinds: frozenset[str]
    every_s: float
    find: Find


def said_at(moment: datetime) -> str:
    """A moment as sentences name it."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _many(count: int, most: int = COUNTED) -> str:
    return f"at least {most:,}" if count >= most else f"{count:,}"


def _and_more(ids: Sequence[str], count: int) -> str:
    return ", ".join(ids) + (f" and {_many(count - len(ids))} more" if count > len(ids) else "")


async def _open(here: Here, *kinds: str) -> set[tuple[str, str]]:
    """Realm and cause of the open alerts of these kinds."""
    rows = await fetch(here.conn, queries.open_of_kinds, realms=here.realms, kinds=list(kinds))
    return {(row["realm"], row["cause"]) for row in rows}


def _singly(
    causes: Iterable[tuple[str, str]], count: int, together: tuple[str, str], told: AbstractSet[tuple[str, str]]
) -> set[tuple[str, str]]:
    """Which of `count` causes are an alert each: all of a few, of many those that are told of one by one already (`told`).

    Once some are told `together`, they are so until half as many are left: nobody shall hear of them in turns.
    """
    few = count <= (SINGLY // 2 if together in told else SINGLY)
    return set(causes) if few else set(causes) & told


# refunds -----------------------------------------------------------------------------------------------------------------

REFUNDS_IN_TROUBLE = frozenset({"refund_failed", "refunds_failed", "refund_in_doubt", "refunds_in_doubt"})


async def refunds_in_trouble(here: Here) -> list[Holding]:
    """Actions that Stripe refused, that failed later, or of which nobody knows whether they were carried out."""
    rows = await fetch(here.conn, queries.troubled_actions, realms=here.realms, most=COUNTED)
    told = await _open(here, *REFUNDS_IN_TROUBLE)
    found: list[Holding] = []
    for kind, in_doubt in (("refund_failed", False), ("refund_in_doubt", True)):
        mine = [row for row in rows if row["in_doubt"] == in_doubt]
        for realm in here.realms:
            found += _trouble(kind, realm, [row for row in mine if row["realm"] == realm], told)
    return found


def _trouble(
    kind: str, realm: str, rows: Sequence[asyncpg.Record], told: AbstractSet[tuple[str, str]]
) -> list[Holding]:
    kind_of_many, said = (
        ("refunds_failed", "were not carried out")
        if kind == "refund_failed"
        else ("refunds_in_doubt", "are in doubt: Stripe's answer never came")
    )
    causes = {row["id"]: (realm, f"{kind}:{row['id']}") for row in rows}
    singly = _singly(causes.values(), len(rows), (realm, f"{kind_of_many}:all"), told)
    found = [
        Holding(*causes[row["id"]], kind, _severity_of(kind, row), row["customer"], row["id"], _told(kind, row))
        for row in rows
        if causes[row["id"]] in singly
    ]
    if rest := [row for row in rows if causes[row["id"]] not in singly]:
        names = _and_more([row["id"] for row in rest[:3]], len(rest))
        sentence = (
            f"{_many(len(rest))} {'more ' if singly else ''}steps of refunds {said}, the oldest since {said_at(_since(rest[0]))}: "
            f"{names}. `finalsale refunds list` shows them, `finalsale review list` those that a person decides."
        )
        all_ = (realm, f"{kind_of_many}:all", kind_of_many, Severity.CRITICAL, "", "refunds", sentence)
        found.append(Holding(*all_, len(rest)))
    return found


def _severity_of(kind: str, row: asyncpg.Record) -> Severity:
    young = _since(row) > datetime.now(UTC) - timedelta(seconds=DOUBT_CRITICAL_S)
    return Severity.WARNING if kind == "refund_in_doubt" and young else Severity.CRITICAL


def _since(row: asyncpg.Record) -> datetime:
    since: datetime = row["first_sent_at"] or row["settled_at"]
    return since


def _told(kind: str, row: asyncpg.Record) -> str:
    words = {
        "refund": f"The refund of {Money(row['amount_minor'] or 0, row['currency'] or '')} of {row['subject']}",
        "cancel_subscription": f"The cancellation of the duplicate {row['subject']}",
        "reverse_balance_credit": f"Taking back the balance credit of {row['subject']}",
    }
    what = f"{words.get(row['kind'], row['kind'])} ({row['customer']}, {row['id']})"
    why = f": {row['error']}" if row["error"] else ""
    if kind == "refund_in_doubt":
        return (
            f"{what} was sent at {said_at(_since(row))}, and nobody knows yet whether Stripe carried it out{why}. "
            f"Nothing is sent blindly again; `finalsale explain {row['subject']}` shows where it stands."
        )
    return (
        f"{what} was not carried out{why}. Since {said_at(_since(row))}; nothing is tried again by itself. "
        f"`finalsale explain {row['subject']}` shows it, and `finalsale review approve` or `reject {row['decision_subject']}` decides."
    )


async def limits_reached(here: Here) -> list[Holding]:
    """Refunds that a limit of the policy puts before a person, summed for each limit and currency."""
    rows = await fetch(here.conn, queries.held_by_limits, realms=here.realms, most=COUNTED)
    return [
        Holding(
            row["realm"],
            f"refund_limit:{'day' if row['of_day'] else 'each'}:{row['currency']}",
            "refund_limit",
            Severity.WARNING,
            "",
            "refunds",
            f"The policy's limit {'of a day' if row['of_day'] else 'per refund'} holds {_many(row['refunds'])} refunds of "
            f"{Money(row['minor'], row['currency'])} together back, since {said_at(row['since'])}: {_and_more(row['ids'], row['refunds'])}. "
            "They wait for a person: `finalsale review list`",
            row["refunds"],
        )
        for row in rows
    ]


async def paused_too_long(here: Here) -> list[Holding]:
    """Refunds that were stopped by hand and forgotten."""
    row = await queries.pause_seen(here.conn, most=COUNTED)
    if row is None or row["age_s"] < PAUSED_WARNING_S:
        return []
    severity = Severity.CRITICAL if row["age_s"] >= PAUSED_CRITICAL_S else Severity.WARNING
    sentence = (
        f"{row['by_name']} paused all refunds at {said_at(row['set_at'])}; {_many(row['held'])} that are due wait for the switch. "
        "`finalsale refunds resume --by NAME` lets them go."
    )
    return [Holding(here.realms[0], "refunds_paused:switch", "refunds_paused", severity, "", "refunds", sentence)]


# reviews -----------------------------------------------------------------------------------------------------------------


async def reviews_waiting(here: Here) -> list[Holding]:
    """Decisions that wait for a person since an hour, four, or a day; those beyond SINGLY are one alert."""
    memory = here.memory
    since = memory.oldest_review_at and memory.oldest_review_at - COMMITS_WITHIN
    memory.oldest_review_at = await queries.oldest_review(here.conn, realms=here.realms, from_at=since)
    told = await _open(here, "review_waiting", "reviews_waiting")
    asked = {"oldest_at": memory.oldest_review_at, "told": sorted(f"{realm} {cause}" for realm, cause in told)}
    rows = await fetch(here.conn, queries.late_reviews, realms=here.realms, most=len(told) + SINGLY + 1, **asked)
    if not rows:
        return []
    waiting, together = rows[0]["waiting"], (here.realms[0], "reviews_waiting:all")
    causes = {row["id"]: (row["realm"], f"review_waiting:{row['subject']}") for row in rows}
    singly = _singly(causes.values(), waiting, together, told)
    found = [
        Holding(
            *causes[row["id"]],
            "review_waiting",
            _severity_by_age(row["age_s"]),
            row["customer"],
            row["id"],
            _asked(row),
        )
        for row in rows
        if causes[row["id"]] in singly
    ]
    if rest := [row for row in rows if causes[row["id"]] not in singly]:
        oldest, count = rest[0], waiting - len(found)
        sentence = (
            f"{count:,} {'more ' if found else ''}decisions wait for a person, the oldest ({oldest['id']}) since "
            f"{said_at(oldest['since'])}. `finalsale review list` shows them."
        )
        severity = _severity_by_age(oldest["age_s"])
        found.append(Holding(*together, "reviews_waiting", severity, "", "reviews", sentence, count))
    return found


def _asked(row: asyncpg.Record) -> str:
    amount = f", {Money(row['minor'], row['currency'])}," if row["currency"] else ""
    return (
        f"{row['rule'].replace('_', ' ').capitalize()} (clause {row['clause']}): {row['subject']} of {row['customer']}{amount} "
        f"waits for a person since {said_at(row['since'])}. `finalsale explain {row['subject']}` shows why, "
        f"`finalsale review approve` or `reject {row['id']} --by NAME` decides."
    )


def _severity_by_age(age_s: float) -> Severity:
    if age_s >= REVIEW_CRITICAL_S:
        return Severity.CRITICAL
    return Severity.WARNING if age_s >= REVIEW_WARNING_S else Severity.NOTE


# events ------------------------------------------------------------------------------------------------------------------


async def events_in_trouble(here: Here) -> list[Holding]:
    """Events that could not be worked on, or not be understood: one alert for each, with their number."""
    found = []
    for row in await fetch(here.conn, queries.events_in_trouble, realms=here.realms, most=COUNTED):
        kind = "events_dead" if row["state"] == "dead" else "events_quarantined"
        late = row["age_s"] >= QUARANTINE_CRITICAL_S
        severity = Severity.CRITICAL if row["state"] == "dead" or late else Severity.WARNING
        said = "could not be worked on" if row["state"] == "dead" else "cannot be understood"
        sentence = (
            f"{_many(row['events'])} events {said}, the oldest since {said_at(row['since'])}: {_and_more(row['ids'], row['events'])} "
            f"({row['error'] or 'no reason was kept'}). `finalsale events show {row['ids'][0]}` shows one, "
            f"`finalsale events replay --state {row['state']}` tries them all again."
        )
        found.append(Holding(row["realm"], f"{kind}:inbox", kind, severity, "", "inbox", sentence, row["events"]))
    return found


async def backlog_growing(here: Here) -> list[Holding]:
    """Events whose turn came minutes ago."""
    row = await queries.backlog_age(here.conn)
    if row is None or row["age_s"] is None or row["age_s"] < BACKLOG_WARNING_S:
        return []
    count = await queries.backlog_counted(here.conn, most=COUNTED_WAITING)
    severity = Severity.CRITICAL if row["age_s"] >= BACKLOG_CRITICAL_S else Severity.WARNING
    sentence = (
        f"{_many(count, COUNTED_WAITING)} events wait, the oldest since {said_at(row['since'])}: decisions, refunds and holds are late. "
        "`finalsale status` shows who is at work; more workers or a faster database help."
    )
    return [Holding(here.realms[0], "backlog_growing:inbox", "backlog_growing", severity, "", "inbox", sentence)]


async def versions_unknown(here: Here) -> list[Holding]:
    """API versions of the last day's newest events that this release does not read."""
    rows = await fetch(here.conn, queries.versions_of_day, most=RECENT_EVENTS)
    return [
        Holding(
            here.realms[0],
            f"api_version_unknown:{row['api_version']}",
            "api_version_unknown",
            Severity.CRITICAL,
            "",
            row["api_version"],
            f"{row['events']} of the newest {RECENT_EVENTS} events came in API version {row['api_version']}, the last one, "
            f"{row['event_id']}, at {said_at(row['newest_at'])}; this release reads versions up to {API_VERSION}. "
            "`finalsale doctor` says how the endpoint is put right.",
        )
        for row in rows
        if not reads_version(row["api_version"])
    ]


# nights and books --------------------------------------------------------------------------------------------------------


async def night_missing(here: Here) -> list[Holding]:
    """The newest due night that nobody began, or that was begun and is at work no more. An incomplete one has its own alert."""
    row = await queries.night_seen(here.conn, name=NIGHTS, realm=here.realms[0])
    if row is None or row["age_s"] < NIGHT_LATE_S or row["state"] in ("done", "incomplete") or row["at_work"]:
        return []
    severity = Severity.CRITICAL if row["age_s"] >= NIGHT_CRITICAL_S else Severity.WARNING
    happened = "was begun, and nobody is at it any more" if row["state"] == "running" else "was not begun"
    sentence = (
        f"The nightly comparison with Stripe that was due at {said_at(row['due_at'])} {happened}: what the webhooks missed is not found. "
        "See whether a worker runs and has STRIPE_API_KEY; `finalsale reconcile` makes up for it."
    )
    return [
        Holding(here.realms[0], "nightly_not_run:reconcile", "nightly_not_run", severity, "", "reconcile", sentence)
    ]


class _Told(msgspec.Struct):
    money: list[MoneyRow] = []
    found: dict[str, int] = {}


async def books_open(here: Here) -> list[Holding]:
    """What the last whole night could not explain of the money. A report is opened once."""
    found = []
    for row in await fetch(here.conn, queries.last_nights_done, realms=here.realms):
        run, realm = row["id"], row["realm"]
        if realm not in here.memory.reports or here.memory.reports[realm][0] != run:
            report = await queries.report_of_night(here.conn, id=run)
            here.memory.reports[realm] = (run, *_unexplained(msgspec.json.decode(report or b"{}", type=_Told)))
        _, open_, much = here.memory.reports[realm]
        if open_:
            sentence = f"The books do not close by {run}: {open_}. `finalsale runs show {run}` names the objects."
            told = ("books_do_not_close", Severity.CRITICAL, "", run, sentence, much)
            found.append(Holding(realm, "books_do_not_close:money", *told))
    return found


def _unexplained(told: _Told) -> tuple[str, int]:
    """What does not close, in words, and how much it is: minor units of all currencies and refunds, only to see it grow."""
    left = [(row, row.residual_minor - row.explained_minor) for row in told.money]
    said = [f"{Money(minor, row.currency)} of {row.kind}s is explained by nothing" for row, minor in left if minor]
    if differing := told.found.get(What.REFUND_DIFFERS, 0):
        said.append(f"{differing} refunds at Stripe are not what was sent")
    return "; ".join(said), sum(abs(minor) for _, minor in left) + differing


# workers -----------------------------------------------------------------------------------------------------------------


async def workers_silent(here: Here) -> list[Holding]:
    """Workers that fell silent without ending well, and that no later one replaced. A living one looks: some are there."""
    rows = await fetch(here.conn, queries.heartbeats)
    missing = _unreplaced([r for r in rows if not r["is_alive"]], [r for r in rows if r["is_alive"]])
    if not missing:
        return []
    last = missing[-1]
    sentence = (
        f"{len(missing)} of {len(rows)} workers fell silent and nothing replaced them, the last at {said_at(last['seen_at'])} "
        f"({last['detail'].partition(',')[0]}). The others go on; `finalsale status` shows them."
    )
    return [
        Holding(here.realms[0], "worker_silent:workers", "worker_silent", Severity.WARNING, "", "workers", sentence)
    ]


def _unreplaced(silent: Sequence[asyncpg.Record], alive: Iterable[asyncpg.Record]) -> list[asyncpg.Record]:
    """Each later start stands for one that fell silent before it."""
    starts = sorted((row["started_at"] for row in alive), reverse=True)
    missing = []
    for row in sorted(silent, key=lambda row: row["seen_at"], reverse=True):
        if starts and starts[0] > row["seen_at"]:
            starts.pop(0)
        else:
            missing.append(row)
    return missing[::-1]


CONDITIONS: tuple[Condition, ...] = (
    Condition(REFUNDS_IN_TROUBLE, 0, refunds_in_trouble),
    Condition(frozenset({"refund_limit"}), 0, limits_reached),
    Condition(frozenset({"refunds_paused"}), 0, paused_too_long),
    Condition(frozenset({"review_waiting", "reviews_waiting"}), MINUTE, reviews_waiting),
    Condition(frozenset({"events_dead", "events_quarantined"}), 0, events_in_trouble),
    Condition(frozenset({"backlog_growing"}), 0, backlog_growing),
    Condition(frozenset({"api_version_unknown"}), MINUTE, versions_unknown),
    Condition(frozenset({"nightly_not_run"}), MINUTE, night_missing),
    Condition(frozenset({"books_do_not_close"}), MINUTE, books_open),
    Condition(frozenset({"worker_silent"}), 0, workers_silent),
)
