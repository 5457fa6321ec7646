"""When the nightly run is due, and over which windows; a missed night is caught up, a failed one taken up again."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import structlog

from handlers.customer import Seconds
from reconcile.report import Report
from reconcile.windows import DAY, ROUND, Window, merged, nightly
from worker import reading
from worker.db import Pool, connection, queries, transaction
from worker.errors import FinalsaleError
from worker.gaps import close_gaps, name_gaps, open_gaps
from worker.judging import Court
from worker.reconciliation import NIGHT, RUN_ALERT, Asked, Reconciliation, Windows
from worker.runs import AnotherRun
from worker.settings import Settings
from worker.stripe_gateway import StripeGateway

NAME = "reconcile"

log = structlog.get_logger()


async def run_if_due(pool: Pool, gateway: StripeGateway, settings: Settings, court: Court) -> list[Report]:
    """Run for the newest 03:00 UTC that no run is done for, on whichever worker takes it; at once where Stripe told of a gap.

    A new deployment's first night is the next one: whoever wants the past before asks for it (`finalsale reconcile`).

    A run that could not read everything is `incomplete`, never clean, and is taken up again after ten minutes.
    """
    async with connection(pool) as conn:
        await queries.wake_overdue(conn)  # cheap, and needs no Stripe: every look of the nightly loop
    if not gateway.connected:
        return []
    async with connection(pool) as conn:
        realms = await reading.realms_of(conn, settings.mode)
        due_at: datetime = await queries.last_due(conn)
        await queries.begin_nights(conn, name=NAME, due_at=due_at)
        mine: bool = bool(await queries.take_run(conn, name=NAME, due_at=due_at))
    if not mine:
        return await _gaps(pool, gateway, settings, court, realms)
    reports: list[Report] = []
    failed = False
    for realm in realms:
        asked = Asked(kind="nightly", words=f"{NIGHT}{due_at:%Y-%m-%d}", windows=await _windows(pool, realm, due_at))
        try:
            await name_gaps(pool, gateway, realm)
            reports.append(await reconcile(pool, gateway, settings, court, asked, realm))
        except AnotherRun as another:
            log.info("nightly.elsewhere", realm=realm, error=str(another))
            return reports
        except FinalsaleError as error:  # the other realms are not to wait for this one
            failed = True
            await _failed(pool, realm, due_at, str(error))
            log.error("nightly.failed", realm=realm, error=str(error))
        except Exception as error:  # a mistake of ours must not pass for a night that was never due
            await _failed(pool, realm, due_at, f"it failed in a way nobody expected ({type(error).__name__})")
            raise
    state = "incomplete" if failed or any(report.result == "incomplete" for report in reports) else "done"
    told = "; ".join(
        f"{r.run} {r.result}: drift {r.drift}, healed {r.healed}, unread {r.unread_total}" for r in reports
    )
    async with connection(pool) as conn:
        await queries.finish_run(conn, name=NAME, due_at=due_at, state=state, result=told)
    return reports


async def _windows(pool: Pool, realm: str, due_at: datetime) -> Windows:
    """A realm's windows of tonight, and of the nights since its last one that was done."""
    async with connection(pool) as conn:
        last: str | None = await queries.last_done_night_of(conn, realm=realm)
    tonight = int(due_at.timestamp()) // DAY
    missed = 1
    if last is not None:
        done = datetime.fromisoformat(last.removeprefix(NIGHT)).replace(tzinfo=UTC)
        missed = max(1, min(tonight - int(done.timestamp()) // DAY, ROUND))
    nights = range(tonight - missed + 1, tonight + 1)
    return lambda upper, since: nightly(upper, since, nights)


async def reconcile(
    pool: Pool, gateway: StripeGateway, settings: Settings, court: Court, asked: Asked, realm: str
) -> Report:
    """One run of a worker over one realm; the gaps that it has read are closed. Raises as `Reconciliation.run_once`."""
    report = await Reconciliation(settings, pool, gateway, court, asked, realm=realm).run_once()
    if report.result != "incomplete":
        async with transaction(pool) as conn:
            await close_gaps(conn, realm, [Window(lo, hi) for lo, hi in report.windows])
    return report


async def _gaps(
    pool: Pool, gateway: StripeGateway, settings: Settings, court: Court, realms: Iterable[str]
) -> list[Report]:
    """Times in which Stripe could not make events are read as soon as Stripe has told of them."""
    reports = []
    for realm in realms:
        async with connection(pool) as conn:
            gaps = await open_gaps(conn, realm)
        if not gaps or await _tried_lately(pool, realm):
            continue
        await name_gaps(pool, gateway, realm)
        windows = merged(gap.window for gap in gaps)
        asked = Asked(
            kind="nightly",
            words="gap " + ", ".join(f"{w.lo}..{w.hi}" for w in windows),
            windows=_over(windows),
        )
        try:
            reports.append(await reconcile(pool, gateway, settings, court, asked, realm))
        except FinalsaleError as error:  # the gap stays open, and is tried again with the next look
            log.warning("gap.unread", realm=realm, error=str(error))
    return reports


async def _tried_lately(pool: Pool, realm: str) -> bool:
    """Whether a gap was read, or tried to be, within the last minutes: what Stripe refuses is not asked for every minute."""
    async with connection(pool) as conn:
        return bool(await queries.gap_run_lately(conn, realm=realm))


def _over(windows: tuple[Window, ...]) -> Windows:
    def asked(upper: Seconds, since: Seconds | None) -> tuple[Window, ...]:
        return windows

    return asked


async def _failed(pool: Pool, realm: str, due_at: datetime, why: str) -> None:
    async with transaction(pool) as conn:
        await queries.finish_run(conn, name=NAME, due_at=due_at, state="incomplete", result=why)
        await queries.raise_run_alert(
            conn,
            realm=realm,
            cause=RUN_ALERT,
            kind="nightly_incomplete",
            severity="critical",
            subject=NAME,
            sentence=f"The nightly comparison with Stripe could not be made: {why}",
        )
