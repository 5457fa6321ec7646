"""The console's first page: is it healthy, what waits for whoever looks, what went back this month, and a month in two drawings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from functools import lru_cache, partial
from typing import NamedTuple

import asyncpg

from handlers.chargebacks import CLOSED
from handlers.decisions import Money
from worker import chargebacks as disputes
from worker.alert_kinds import kind_of
from worker.cases import case_document
from worker.console import asked
from worker.console.cases import clock as case_clock
from worker.console.chargebacks import clock
from worker.console.page import Page, Shown, Visit
from worker.console.refunds import at_risk, month_of, returned
from worker.console.reviews import COUNTED, in_words, waiting
from worker.db import queries
from worker.operators import Role
from worker.plots import Plot, stacked
from worker.reading import WORKER_SILENT_AFTER, Document, fetch

SHOWN = 5
"""Rows of each list of what waits."""
DAYS = 30
BACKLOG_COUNTED = 10_000
SLOW_S, STUCK_S = 60, 300
"""Seconds that the oldest event may wait before somebody should look, and before something is broken."""
NIGHT_LATE_S = 26 * 3600
"""A night and two hours."""
DRAWN = 3
"""Currencies that get a drawing: those with the most refunds."""
VERDICTS = ("refund", "review", "deny")


class Sign(NamedTuple):
    """One thing that is not well: how bad, in words, and where to look."""

    tone: str
    words: str
    page: str


async def overview(visit: Visit) -> Shown:
    """Everything that somebody who has just been woken needs first."""
    running, work = await _running(visit), await _work(visit)
    signs = [*_broken(running, visit.now), *_waits(running, work)]
    worst = "bad" if any(s.tone == "bad" for s in signs) else "ask" if signs else "ok"
    return Shown(
        "overview.html.j2",
        {
            "tone": worst,
            "health": {"ok": "All well", "ask": "Something waits for a person", "bad": "Something is broken"}[worst],
            "signs": sorted(signs, key=lambda sign: sign.tone != "bad"),
            "running": running,
            "work": work,
            "returned": await returned(visit),
            "at_risk": await at_risk(visit),
            "month": f"{visit.now:%B %Y}",
            "since": month_of(visit.now),
            "plots": await _plots(visit),
        },
    )


# is it healthy? ----------------------------------------------------------------------------------------------------------


async def _running(visit: Visit) -> Document:
    """Who is at work, how far behind, and what the last night came to."""
    conn, here = visit.conn, {"realms": visit.realms}
    seen = await fetch(conn, queries.workers_seen)
    alive = [row for row in seen if visit.now - row["seen_at"] < WORKER_SILENT_AFTER]
    backlog = await queries.desk_backlog(conn, most=BACKLOG_COUNTED)
    troubled = {row["state"]: row["events"] for row in await fetch(conn, queries.desk_troubled_events)}
    nights = [dict(row) for row in await fetch(conn, queries.desk_last_nights, **here)]
    return {
        "alive": len(alive),
        "silent": len(seen) - len(alive),
        "seen_at": max((row["seen_at"] for row in seen), default=None),
        "rung": bool(alive) and all(", rung," in row["detail"] for row in alive),
        "backlog": backlog["waiting"],
        "backlog_words": f"{backlog['waiting']:,}" + (" or more" if backlog["waiting"] >= BACKLOG_COUNTED else ""),
        "oldest_s": None if backlog["oldest_at"] is None else _age_s(backlog["oldest_at"], visit.now),
        "dead": troubled.get("dead", 0),
        "quarantined": troubled.get("quarantined", 0),
        "nights": nights,
        "night_due": visit.settings.stripe_api_key is not None,
    }


def _broken(running: Document, now: datetime) -> Iterable[Sign]:
    """What does not work as it should."""
    if not running["alive"]:
        waits = f"; {running['backlog_words']} events wait" if running["backlog"] else ""
        yield Sign("bad", f"No worker is alive: nothing is judged and nothing is sent{waits}.", "/console/events")
    elif (running["oldest_s"] or 0) > SLOW_S:
        tone = "bad" if running["oldest_s"] > STUCK_S else "ask"
        told = f"The workers are behind: {running['backlog_words']} events wait, the oldest for {running['oldest_s'] // 60} min."
        yield Sign(tone, told, "/console/events?state=waiting")
    if running["dead"]:
        yield Sign(
            "bad", f"{_count(running['dead'], 'event')} could not be judged (dead).", "/console/events?state=dead"
        )
    if running["quarantined"]:
        told = f"{_count(running['quarantined'], 'event')} cannot be read by this release (quarantined)."
        yield Sign("ask", told, "/console/events?state=quarantined")
    for night in running["nights"]:
        sign = night_in_words(night, now)
        if sign.tone != "ok":
            yield sign


def night_in_words(night: Document, now: datetime) -> Sign:
    """The result of the newest nightly run of one realm."""
    page = asked.page_of("runs", night["id"])
    if night["state"] == "running":
        late = (now - night["seen_at"]).total_seconds() > STUCK_S
        return Sign("ask" if late else "ok", f"The nightly run is under way ({night['stage']}).", page)
    if night["state"] != "done" or night["result"] == "incomplete":
        return Sign("bad", "The last nightly run is incomplete: it could not read everything.", page)
    finished = night["finished_at"] or night["started_at"]
    if (now - finished).total_seconds() > NIGHT_LATE_S:
        return Sign("bad", f"No nightly run since {finished:%Y-%m-%d %H:%M} UTC.", page)
    told = f"{night['result']}: drift {night['drift']:,}, healed {night['healed']:,}"
    return Sign("ok", f"The last nightly run is {told}.", page)


# what waits? -------------------------------------------------------------------------------------------------------------


async def _work(visit: Visit) -> Document:
    """What waits for a person, and of each kind the first few."""
    conn, here = visit.conn, {"realms": visit.realms}
    items, _ = await waiting(visit, 2 * SHOWN)
    counts = await fetch(conn, queries.desk_queue_counts, most=COUNTED, **here)
    due = [
        row | clock(row, visit.now)
        for row in await disputes.disputes(conn, visit.realms)
        if row["waits_for_a_person"] and row["status"] not in CLOSED
    ]
    rows = await fetch(conn, queries.desk_cases_open_page, after_at=None, after_id=None, most=SHOWN, **here)
    alerts = await fetch(conn, queries.desk_worst_alerts, most=SHOWN, **here)
    return {
        "reviews": sum(row["waiting"] for row in counts),
        "reviews_words": in_words(sum(row["waiting"] for row in counts)),
        "answered": sum(item["mine"] for item in items),
        "mine": [item for item in items if not item["mine"]][:SHOWN],
        "chargebacks": len(due),
        "nearest": due[:SHOWN],
        "cases": dict(await queries.desk_cases_clock(conn, **here)),
        "soonest": [case_document(row) | case_clock(row["state"], row["due_at"], row["now"]) for row in rows],
        "alerts": {row["severity"]: row["alerts"] for row in await fetch(conn, queries.desk_open_alerts, **here)},
        "worst": [
            dict(row) | {"title": kind_of(row["kind"]).title, "page": asked.page_of("alerts", row["cause"])}
            for row in alerts
        ],
    }


def _waits(running: Document, work: Document) -> Iterable[Sign]:
    """What is well and waits for somebody."""
    if late := work["cases"]["overdue"]:
        yield Sign("ask", f"{_count(late, 'case')} should have been answered by now.", "/console/cases")
    if critical := work["alerts"].get("critical"):
        yield Sign(
            "ask", f"{_count(critical, 'critical alert')} {'is' if critical == 1 else 'are'} open.", "/console/alerts"
        )
    if count := work["chargebacks"]:
        nearest = work["nearest"][0]
        told = f", the nearest: {nearest['left']}" if nearest["left"] else ""
        yield Sign("ask", f"{_count(count, 'chargeback')} to answer{told}.", "/console/chargebacks")
    if open_ := work["cases"]["waiting"] - work["cases"]["overdue"]:
        yield Sign("ask", f"{_count(open_, 'case')} to answer.", "/console/cases")
    if work["reviews"]:
        noun = "review" if work["reviews"] == 1 else "reviews"
        yield Sign("ask", f"{work['reviews_words']} {noun} to decide.", "/console/reviews")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _age_s(then: datetime, now: datetime) -> int:
    return max(int((now - then).total_seconds()), 0)


# a month in drawings -----------------------------------------------------------------------------------------------------


async def _plots(visit: Visit) -> list[Plot]:
    """Refunds by day for the currencies with the most of them, and decisions by day and verdict."""
    today = visit.now.date()
    since = datetime.combine(today - timedelta(days=DAYS - 1), datetime.min.time(), visit.now.tzinfo)
    here = {"realms": visit.realms, "since": since}
    back = await fetch(visit.conn, queries.desk_returned_by_day, **here)
    decided = await fetch(visit.conn, queries.desk_decided_by_day, **here)
    # in a thread: the intake of this process must not wait for a drawing
    return await asyncio.to_thread(_drawn, back, decided, today)


def _drawn(back: Sequence[asyncpg.Record], decided: Sequence[asyncpg.Record], today: date) -> list[Plot]:
    by_currency: dict[str, list[tuple[date, int]]] = {}
    often: dict[str, int] = {}
    for row in back:
        by_currency.setdefault(row["currency"], []).append((row["day"], row["minor"]))
        often[row["currency"]] = often.get(row["currency"], 0) + row["refunds"]
    drawn = sorted(by_currency, key=lambda currency: (-often[currency], currency))[:DRAWN]
    plots = [_of_currency(currency, tuple(by_currency[currency]), today) for currency in drawn]
    if decided:
        plots.append(_of_verdicts(tuple((row["day"], row["verdict"], row["decisions"]) for row in decided), today))
    return plots


# the same figures are drawn once, however often the page is looked at
@lru_cache(maxsize=64)
def _of_currency(currency: str, sums: Sequence[tuple[date, int]], today: date) -> Plot:
    name = currency.upper()
    figures = {(f"{day:%m-%d}", name): minor for day, minor in sums}
    in_words = partial(_money, currency)
    return stacked(f"{name} returned by day (UTC)", "day", _days(today), figures, [(0, name)], in_words)


@lru_cache(maxsize=64)
def _of_verdicts(counts: Sequence[tuple[date, str, int]], today: date) -> Plot:
    figures = {(f"{day:%m-%d}", verdict): count for day, verdict, count in counts}
    colours = list(enumerate(VERDICTS))
    return stacked("Decisions by day (UTC) and verdict", "day", _days(today), figures, colours, "{:,}".format)


def _money(currency: str, minor: int) -> str:
    return str(Money(minor, currency))


def _days(today: date) -> list[str]:
    return [f"{today - timedelta(days=back):%m-%d}" for back in reversed(range(DAYS))]


PAGES = (Page("GET", "/", Role.READ, overview),)
