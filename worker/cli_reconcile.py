"""`finalsale reconcile`: compare Stripe with the books now, show what is wrong and what would be done, heal it unless told not to."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from handlers.customer import Seconds
from worker import reading, show
from worker.db import connect_pool, connection
from worker.db.migrations import current_revision, is_pending
from worker.desk import NoDatabase, settings_of_environment, with_database
from worker.errors import FinalsaleError
from worker.log import configure, get_logger
from worker.options import Json
from worker.settings import Settings

if TYPE_CHECKING:  # what only this command needs is loaded when it is called
    from reconcile.report import Report
    from worker.reconciliation import Windows

FAILED = 2
NIGHTLY = "72h"


def reconcile(
    *,
    since: Annotated[str, Parameter(help="How far back (90m, 72h, 7d) or from which moment (2026-01-31).")] = NIGHTLY,
    until: Annotated[str | None, Parameter(help="Up to which moment; by default now.")] = None,
    dry_run: Annotated[bool, Parameter(help="Read, compare and plan only: nothing is healed, nothing sent.")] = False,
    html: Annotated[Path | None, Parameter(help="Write the report as one self-contained page.")] = None,
    csv: Annotated[Path | None, Parameter(help="Write the report as CSV for finance.")] = None,
    as_json: Json = False,
) -> int:
    """Compare Stripe with the books, both ways, and heal what the webhooks missed.

    Reads every list of Stripe over the window, and again whatever has not come to its end; shows the plan; takes in what is missing
    through the same rules as the webhooks. With --dry-run nothing changes, and a read-only key is enough: so a merchant sees, before
    the first webhook, which duplicates the past months hold. A run that was killed goes on where it stopped.

    Exit code: 0 nothing left to do, 1 a person must act, 2 incomplete or failed.
    """
    from worker import report_pages, show_run

    try:
        report = asyncio.run(_run(settings_of_environment(), since, until, dry_run=dry_run, quiet=as_json))
        try:
            if as_json:
                show.json_document(report)
            else:
                show_run.page_of(report)(report)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read us has seen enough; the exit code stands
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if html:
            report_pages.write_html(report, html)
        if csv:
            report_pages.write_csv(report, csv)
    except FinalsaleError as error:
        return _failed(str(error))
    except Exception as error:  # 1 would say that a person must act on a report; there is none
        get_logger().error("command.failed", exc_info=error)
        return _failed(f"This failed in a way nobody expected ({type(error).__name__}); the line above says where.")
    return report.exit


def _failed(sentence: str) -> int:
    sys.stderr.write(f"finalsale: {show.plain(sentence).plain}\n")
    return FAILED


async def _run(settings: Settings, since: str, until: str | None, *, dry_run: bool, quiet: bool) -> Report:
    from worker import show_run
    from worker.jobs import WorkerProcess
    from worker.progress import Progress
    from worker.reconciliation import Asked, Reconciliation

    if sys.stderr.isatty():
        configure(settings.log, errors_only=True)  # a person watches the bar; the lines would tear it
    words = f"since {since}" + (f" until {until}" if until else "")
    asked = Asked(kind="asked", words=words, windows=_window(since, until), dry_run=dry_run)
    async with _books(settings, dry_run=dry_run) as served:
        pool = await connect_pool(
            served.database_dsn(), role="cli", max_size=6, statement_timeout_s=60, lock_timeout_s=15
        )
        worker = WorkerProcess(served)
        worker.use(pool)
        try:
            async with connection(pool) as conn:
                if is_pending(await current_revision(conn)):
                    raise NoDatabase("The database does not have this release's tables yet: run `finalsale migrate`.")
            with Progress() as progress:

                def plan(report: Report) -> None:
                    if not quiet and not report.dry_run:
                        progress.end()
                        show_run.plan_page(report)

                run = Reconciliation(
                    served,
                    pool,
                    worker.gateway,
                    worker.court,
                    asked,
                    watch=progress,
                    on_plan=plan,
                    serve=worker.serve_once,
                )
                return await run.run_once()
        finally:
            pool.terminate()
            await worker.gateway.aclose()


@asynccontextmanager
async def _books(settings: Settings, *, dry_run: bool) -> AsyncIterator[Settings]:
    """The database; for a first look without DATABASE_URL an embedded one, made here and migrated."""
    if not dry_run or settings.database_url is not None:
        async with with_database(settings) as served:
            yield served
        return
    from worker.db.migrations import migrate
    from worker.embedded import embedded_servers

    async with embedded_servers(settings.state_dir, valkey=False) as servers:
        await migrate(servers.database_url)
        yield settings.with_servers(servers.database_url, settings.redis_dsn())


def _window(since: str, until: str | None) -> Windows:
    """What was asked as a window. Raises NotUnderstood."""
    begin, end = reading.moment(since), reading.moment(until) if until else None
    if begin >= datetime.now(UTC):
        raise reading.NotUnderstood("--since is not in the past.")
    if end is not None and end <= begin:
        raise reading.NotUnderstood("--until is not after --since.")
    back = datetime.now(UTC) - begin

    from reconcile.windows import Window

    def windows(upper: Seconds, books_since: Seconds | None) -> tuple[Window, ...]:
        low = upper - _whole(back) if since[-1:].isalpha() else int(begin.timestamp())
        return (Window(low, min(upper, int(end.timestamp())) if end else upper),)

    return windows


def _whole(length: timedelta) -> Seconds:
    return round(length.total_seconds())
