"""The nightly run: read Stripe, compare with the books both ways, plan, heal through the one door, and leave a report.

    lock ▸ scan ▸ reread by id ▸ compare ▸ plan (pure, what was found laid over the books) ▸ heal ▸ verify ▸ report

Whoever runs it, a worker at night or a person at the command line, only writes facts and wishes; a worker judges and sends, by its
own policy. Where no worker is alive, the process that asked works itself, and sends nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Protocol, TypeAlias

import asyncpg
import msgspec
import structlog

from handlers.customer import Seconds, decode
from reconcile.findings import DRIFT, Finding, What
from reconcile.money import MoneyOfRun
from reconcile.report import SHOWN, Report, result_of
from reconcile.windows import ALIVE, EVENTS_KEPT, GRACE, LISTS, ScanPlan, Window, merged, scan_plan
from worker.checks import check_books, money_of, unknown_sources
from worker.db import UNAVAILABLE, Pool, connection, queries, transaction
from worker.endpoint import check_endpoint, endpoint_findings
from worker.errors import DatabaseUnavailable, SettingsInvalid, StripeRefused, StripeUnavailable
from worker.healing import Healing
from worker.inbox import unpack
from worker.judging import Court
from worker.matching import (
    IN_FLIGHT_S,
    Matched,
    Matcher,
    find_owners,
    missing_there,
    object_of,
    project_older_rows,
    save_findings,
)
from worker.planning import READABLE, Planned, Planner
from worker.runs import certificate, open_run, unread_of
from worker.scan import UNSHOWN, late_objects, read_moves, reread, scan
from worker.settings import Settings
from worker.stripe_gateway import StripeGateway
from worker.unjudged import unjudged_copies

ROWS = 2_000
STRANGERS_AT_MOST = 20
"""So many objects may be unknown at Stripe, beside others that it knows, before it is asked whose account this is."""
UNSEEN_AT_MOST = 5_000
"""Rows of the books within the windows that Stripe's lists did not show; more is another account, and nothing to read one by one."""
BACKLOG_WITHIN_S = 300.0
POLL_S = 0.5
AHEAD_S = 300
"""So far a row's telling may lie ahead of Stripe's clock before it is held to be wrong."""
RUN_ALERT = "nightly run"
NIGHT = "night of "
"""How the words of the nightly run begin; a gap's begin otherwise, and say nothing of the night."""

log = structlog.get_logger()


Windows: TypeAlias = Callable[[Seconds, Seconds | None], Iterable[Window]]
"""Given the upper edge and since when the books know everything."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is to do: by itself at night or because somebody asked, over which windows, and whether it may heal."""

    kind: str
    words: str
    """The window in the asker's words: an unfinished run of the same words is taken up again."""
    windows: Windows
    dry_run: bool = False
    grace_s: int = GRACE


class _Account(msgspec.Struct):
    id: str


class Watch(Protocol):
    """Who follows a run while it works; `worker.progress.Progress` is one."""

    def begin(self, lists: Iterable[str]) -> None: ...
    def page(self, list_: str, done_seconds: int, total_seconds: int, objects: int) -> None: ...
    def stage(self, name: str) -> None: ...


class Unwatched:
    """Nobody looks."""

    def begin(self, lists: Iterable[str]) -> None: ...
    def page(self, list_: str, done_seconds: int, total_seconds: int, objects: int) -> None: ...
    def stage(self, name: str) -> None: ...


class Reconciliation:
    """One run, from the lock to the report. `run_once` is the whole of it."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        gateway: StripeGateway,
        court: Court,
        asked: Asked,
        *,
        realm: str | None = None,
        watch: Watch | None = None,
        on_plan: Callable[[Report], None] | None = None,
        serve: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        self.settings, self.pool, self.gateway, self.court, self.asked = settings, pool, gateway, court, asked
        self.realm = realm or settings.realm(None)
        self.watch = watch or Unwatched()
        self.on_plan = on_plan
        self.serve = serve
        """Does a worker's work once, where no worker is alive; how much it did."""
        self.matched = Matched()
        self.planned = Planned()
        self.reread = self.unhealed = 0
        self.served = True
        self.why: list[str] = []
        self.late: set[str] = set()
        """Objects that changed after the upper edge, or whose events have arrived and wait."""
        self.money = MoneyOfRun(rows=[], other=[], residuals=[], residuals_total=0, days=[], findings=[])

    async def run_once(self) -> Report:
        """Everything. Raises AnotherRun, SettingsInvalid (no key), StripeRefused, StripeUnavailable, DatabaseUnavailable.

        A run that raised is taken up again by the next one that is asked the same.
        """
        if not self.gateway.connected:
            raise SettingsInvalid(
                "STRIPE_API_KEY is not set: nothing can be compared with Stripe without a key that may read."
            )
        started = time.time()
        self.requests_before = self.gateway.budget.requests, self.gateway.budget.rate_limited
        dsn = self.settings.database_dsn()
        try:
            return await self._run(started, dsn)
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            raise DatabaseUnavailable(f"Postgres failed in the middle of the run ({type(error).__name__})") from error

    async def _run(self, started: float, dsn: str) -> Report:
        asked = self.asked
        async with open_run(
            dsn,
            self.realm,
            kind=asked.kind,
            asked=asked.words,
            dry_run=asked.dry_run,
            plan=self._plan,
            key=self.gateway.key_hash,
        ) as run:
            log.info("run.began", run=run.id, resumed=run.resumed, dry_run=run.dry_run, asked=asked.words)
            self.run = run
            self.heard_since: Seconds | None = await queries.heard_since(run.conn, realm=self.realm)
            await self._scan()
            await self._compare()
            await self._plan_healing()
            if not run.dry_run:
                await self._heal()
            report = await self._report(started)
            await self._finish(report)
        return report

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _plan(self) -> ScanPlan:
        """The fixed upper edge is Stripe's clock less the grace: what is younger is still on its way here."""
        async with connection(self.pool) as conn:
            heard: Seconds | None = await queries.heard_since(conn, realm=self.realm)
            taken_in: Seconds | None = await queries.taken_in_since(conn, realm=self.realm)
        upper = await self._stripe_clock() - self.asked.grace_s
        since = min((s for s in (heard, taken_in) if s is not None), default=None)
        plan = scan_plan(self.asked.windows(upper, since), upper)
        if not plan.windows:
            raise SettingsInvalid(
                f"There is nothing to look at in the window asked for ({self.asked.words}): it is empty."
            )
        if heard is None:  # nothing was ever delivered: no event is missing
            return msgspec.structs.replace(plan, lists={**plan.lists, "events": ()})
        kept = Window(max(heard, upper - EVENTS_KEPT), upper)
        events = merged(Window(max(w.lo, kept.lo), w.hi) for w in plan.lists["events"])
        return msgspec.structs.replace(plan, lists={**plan.lists, "events": events})

    async def _same_account(self) -> None:
        """Refuse a key of another account than the last run's, where this one may tell whose it is. Raises SettingsInvalid."""
        run = self.run
        try:
            body, _ = await self.gateway.document("/v1/account", account=run.account)
            mine = msgspec.json.decode(body, type=_Account).id
        except (StripeRefused, StripeUnavailable, msgspec.DecodeError):
            return  # a restricted key may not; what it lists is held against the books all the same
        known = await queries.known_account(run.conn, realm=self.realm, run=run.id)
        if known not in (None, mine):
            await run.disown()
            raise SettingsInvalid(
                f"STRIPE_API_KEY is of the account {mine}, and these books are of {known}. Nothing was taken in."
            )
        async with run.transaction() as conn:
            await queries.save_account(conn, run=run.id, account=mine)

    async def _scan(self) -> None:
        run = self.run
        await self._same_account()
        await self._stage("project")
        await project_older_rows(run)
        self.again = await self._forgive()
        await self._stage("scan")
        self.watch.begin([name for name, windows in run.plan.lists.items() if windows])
        await scan(run, self.gateway, self.settings.mode, self.watch.page)
        await self._stage("reread")
        await self._settle_backlog()
        try:
            if self.heard_since:
                self.late |= await late_objects(self.gateway, run.plan.upper, run.account)
                async with run.transaction() as conn:
                    await queries.forgive_objects(conn, run=run.id, ids=[f"{run.plan.upper}.."], but=UNSHOWN)
        except (StripeRefused, StripeUnavailable) as error:
            async with run.transaction():
                await run.unread("events", f"{run.plan.upper}..", str(error))
        await self._reread()

    async def _forgive(self) -> dict[str, str]:
        """Objects that an earlier attempt could not read: this one asks again. Id -> kind. `reread` forgives what it has read."""
        async with self.run.transaction() as conn:
            await queries.forgive_moves(conn, run=self.run.id)
            await queries.reopen_lists(conn, run=self.run.id, why=UNSHOWN)
        rows = await self.run.conn.fetch(queries.unread_objects.sql, self.run.id, UNSHOWN)
        again = {row["what"]: LISTS[row["list"]].kind for row in rows if row["list"] in LISTS}
        return {id_: kind for id_, kind in again.items() if kind in READABLE}

    async def _settle_backlog(self) -> None:
        """What has arrived is worked on before anything is compared; what is still waiting then is in flight."""
        began = time.monotonic()
        while await queries.backlog_before(self.run.conn, realm=self.realm, upper=self.run.plan.upper):
            if not await queries.live_workers(self.run.conn):
                if self.asked.dry_run or self.serve is None or not await self.serve():
                    break
            elif time.monotonic() - began > BACKLOG_WITHIN_S:
                break
            else:
                await asyncio.sleep(POLL_S)
        after = ""
        young = self.run.plan.upper - IN_FLIGHT_S
        while rows := await self.run.conn.fetch(queries.waiting_events.sql, self.realm, young, after, ROWS):
            after = rows[-1]["event_id"]
            self.late.update(named for row in rows if (named := object_of(unpack(row["payload"]))))

    async def _reread(self) -> None:
        """By id: what may still change and was not listed, what only an event told of, what the lists did not show."""
        run = self.run
        unfinished = await run.conn.fetch(queries.unseen_unfinished.sql, self.realm, run.plan.upper, run.id)
        told = await run.conn.fetch(queries.unseen_told.sql, run.id)
        windows = run.plan.windows
        partly = {row.list for row in await certificate(run.conn, run.id) if row.unread}
        kinds = sorted({LISTS[name].kind for name in LISTS if name not in partly and name not in ALIVE})
        unequal = await run.conn.fetch(
            queries.unequal_sides.sql,
            [w.lo for w in windows],
            [w.hi for w in windows],
            self.realm,
            kinds,
            run.id,
            UNSEEN_AT_MOST + 1,
        )
        unshown = [row for row in unequal if row["unshown"]]
        if len(unequal) > UNSEEN_AT_MOST:
            async with run.transaction():
                why = (
                    f"more than {UNSEEN_AT_MOST} objects are in the books and on none of Stripe's lists, or otherwise than"
                    " listed: is this key another account's?"
                )
                await run.unread("books", "unshown", why)
            unshown = unshown[:UNSEEN_AT_MOST]
        sources = await unknown_sources(run.conn, run.id, self.realm, UNSEEN_AT_MOST)
        if len(sources) >= UNSEEN_AT_MOST:
            async with run.transaction():
                why = f"{UNSEEN_AT_MOST} objects or more moved money and are neither listed nor in the books: they were not all read"
                await run.unread("balance_transactions", "sources", why)
        asked = {
            **{row["id"]: row["kind"] for row in (*unfinished, *told, *unequal[:UNSEEN_AT_MOST])},
            **{id_: kind for kind, id_ in sources},
            **self.again,
        }
        gone = await reread(run, self.gateway, [(kind, id_) for id_, kind in sorted(asked.items()) if kind in READABLE])
        self.reread = len(asked)
        await self._unknown(gone, {row["id"]: row["body"] for row in unshown})

    async def _unknown(self, gone: Sequence[tuple[str, str]], unshown: dict[str, bytes]) -> None:
        """Mark what Stripe does not know; what it knows and did not list makes the list unbelievable."""
        run, lost = self.run, {id_ for _, id_ in gone}
        listed = await queries.anything_listed(run.conn, run=run.id)
        shared = await queries.shared_objects(run.conn, realm=self.realm, run=run.id, most=len(lost) + 1)
        if lost and ((listed and not shared) or len(lost) > max(shared, STRANGERS_AT_MOST)):
            await run.disown()
            raise SettingsInvalid(
                f"Stripe knows {shared} of the objects in these books and does not know {len(lost)}: STRIPE_API_KEY is another"
                " account's, or DATABASE_URL another's books. Nothing was taken in."
            )
        rows = await run.conn.fetch(queries.load_objects_by_id.sql, self.realm, sorted(lost))
        found = [
            missing_there(str(fact.__struct_config__.tag), fact.id, fact, row["customer"])
            for row in rows
            if (fact := decode(row["body"])) is not None
        ]
        hidden = await self._hidden_customers(unshown.values())
        async with run.transaction() as conn:
            await save_findings(run, found)
            if not run.dry_run and found:
                await conn.execute(queries.mark_unknown.sql, self.realm, [finding.object for finding in found])
            for id_, body in sorted(unshown.items()):
                fact = decode(body)
                kind = str(fact.__struct_config__.tag)
                on_clock = getattr(fact, "test_clock", False) or getattr(fact, "customer", None) in hidden
                if id_ not in lost and kind != "customer" and not on_clock:
                    await run.unread(next(name for name in LISTS if LISTS[name].kind == kind), id_, UNSHOWN)

    async def _hidden_customers(self, bodies: Iterable[bytes]) -> set[str]:
        """Customers on a test clock: Stripe's lists leave them and theirs out."""
        owners = sorted({str(owner) for body in bodies if (owner := getattr(decode(body), "customer", None))})
        rows = await self.run.conn.fetch(queries.load_objects_by_id.sql, self.realm, owners) if owners else []
        return {row["id"] for row in rows if getattr(decode(row["body"]), "test_clock", False)}

    # --- comparing ----------------------------------------------------------------------------------------------------

    async def _compare(self) -> None:
        run = self.run
        await self._stage("compare")
        before = await queries.matched_before(run.conn, run=run.id)
        async with run.transaction() as conn:
            await queries.drop_standing(conn, run=run.id, drift=[str(what) for what in DRIFT])
        await find_owners(run)
        matcher = Matcher(run, self.heard_since, self.late, await self._stripe_clock() + AHEAD_S)
        self.matched = await matcher.match()
        if before is not None:
            self.matched = _together(msgspec.json.decode(before, type=Matched), self.matched)
        now: datetime = await queries.moment_of(run.conn, realm=self.realm)
        standing, self.waiting = await check_books(run.conn, self.realm, now)
        drift = await run.conn.fetch(queries.drifting.sql, run.id, [str(w) for w in DRIFT])
        await self._balance({row["object"]: What(row["what"]) for row in drift})
        copies = [finding async for finding in unjudged_copies(run.conn, self.realm, self.court, now)]
        endpoint: list[Finding] = []
        if self.heard_since is not None and run.account is None:  # webhooks are in use
            endpoint = endpoint_findings(await check_endpoint(self.gateway, self.settings))
        async with run.transaction():
            await save_findings(run, (*standing, *copies, *endpoint))

    async def _balance(self, drift: dict[str, What]) -> None:
        """Money by currency, with a second look at every object that it leaves unexplained. Not from a list that was not read."""
        run = self.run
        await queries.analyze_run(run.conn)
        if any(line.unread for line in await certificate(run.conn, run.id) if line.list == "balance_transactions"):
            self.why.append("Money was not compared: Stripe's balance transactions could not all be read.")
            return
        unknown = await run.conn.fetch(queries.marked_unknown.sql, self.realm)
        known = dict.fromkeys((row["id"] for row in unknown), What.MISSING_THERE) | drift
        self.money = await money_of(run.conn, run.id, self.realm, run.plan, known)
        if self.money.to_read:
            await read_moves(run, self.gateway, self.money.to_read)
            self.money = await money_of(run.conn, run.id, self.realm, run.plan, known)
        if (more := self.money.residuals_total - len(self.money.residuals)) > 0:
            said = f"{more} more residuals are summed and not listed; the second look was at those listed."
            self.why = [*(why for why in self.why if "more residuals" not in why), said]
        async with run.transaction() as conn:
            await queries.drop_findings(conn, run=run.id, what=str(What.MONEY))
            await save_findings(run, self.money.findings)

    async def _stripe_clock(self) -> Seconds:
        """What time it is at Stripe."""
        return (await self.gateway.page("/v1/events", {"limit": 1}, _account(self.realm))).as_of

    # --- planning and healing -----------------------------------------------------------------------------------------

    async def _plan_healing(self) -> None:
        await self._stage("plan")
        now: datetime = await queries.moment_of(self.run.conn, realm=self.realm)
        self.planned = await Planner(self.run, self.gateway, self.court).plan(now)
        if self.on_plan is not None:
            self.on_plan(await self._report(time.time(), final=False))

    async def _heal(self) -> None:
        await self._stage("heal")
        healing = Healing(self.run, self.court, self.serve)
        await healing.heal(self.heard_since, self.matched)
        await self._stage("verify")
        self.unhealed, self.waiting = await healing.verify()
        async with self.run.transaction() as conn:
            await queries.take_digests(conn, realm=self.realm, run=self.run.id)
        left = await self.run.conn.fetch(queries.drifting.sql, self.run.id, [str(w) for w in DRIFT])
        await self._balance({row["object"]: What(row["what"]) for row in left if not row["healed"]})
        self.served, self.why = healing.served, [*self.why, *healing.why]

    # --- the report ---------------------------------------------------------------------------------------------------

    async def _report(self, started: float, *, final: bool = True) -> Report:
        run, conn = self.run, self.run.conn
        lists = await certificate(conn, run.id)
        unread = await unread_of(conn, run.id, SHOWN)
        total = await queries.count_unread(conn, run=run.id)
        rows = await conn.fetch(queries.count_findings.sql, run.id)
        found: Counter[str] = Counter()
        classes: Counter[str] = Counter()
        for row in rows:
            found[row["what"]] += row["n"]
            classes[row["class"]] += row["n"]
        some = await conn.fetch(queries.some_findings.sql, run.id, SHOWN)
        asked, limited = self.requests_before
        money = self.money
        report = Report(
            run=run.id,
            realm=self.realm,
            kind=self.asked.kind,
            dry_run=run.dry_run,
            asked=self.asked.words,
            since=min((w.lo for w in run.plan.windows), default=run.plan.upper),
            until=run.plan.upper,
            windows=[(w.lo, w.hi) for w in run.plan.windows],
            started_at=int(started),
            finished_at=int(time.time()),
            result="",
            exit=0,
            why=list(self.why),
            certificate=lists,
            unread=unread,
            unread_total=total,
            reread=self.reread + self.planned.looked_up,
            requests=self.gateway.budget.requests - asked,
            rate_limited=self.gateway.budget.rate_limited - limited,
            imported=dict(sorted(self.matched.imported.items())),
            enriched=self.matched.enriched,
            in_flight=self.matched.in_flight,
            found=dict(sorted(found.items())),
            drift=sum(found[what] for what in DRIFT),
            by_class=dict(sorted(classes.items())),
            findings=[msgspec.json.decode(row["body"], type=Finding) for row in some],
            consequences=self.planned.consequences,
            consequences_total=self.planned.total,
            to_return=self.planned.to_return,
            to_review=self.planned.to_review,
            would_hold=self.planned.would_hold,
            credits_due=self.planned.credits_due,
            healed=sum(row["n"] for row in rows if row["healed"]),
            unhealed=self.unhealed,
            money=money.rows,
            other=money.other,
            residuals=money.residuals,
            residuals_total=money.residuals_total,
            days=money.days,
            causes=dict(sorted(self.matched.causes.items())),
            waiting=self.waiting,
        )
        report.result, report.exit = result_of(report)
        if report.exit == 0 and not self.served and self.waiting.planned:
            report.result, report.exit = "needs_person", 1  # somebody has to start a worker
        if final:
            report.why += _why(report)
        return report

    async def _finish(self, report: Report) -> None:
        """Keep the report; an incomplete run raises an alert, a complete one resolves it."""
        run = self.run
        state = "incomplete" if report.result == "incomplete" else "done"
        async with transaction(self.pool) as conn:
            if report.result == "incomplete" and not run.dry_run:
                sentence = (
                    f"The comparison with Stripe is incomplete: {' '.join(report.why)} `finalsale runs show {run.id}`"
                )
                await queries.raise_run_alert(
                    conn,
                    realm=self.realm,
                    cause=RUN_ALERT,
                    kind="nightly_incomplete",
                    severity="critical",
                    subject=run.id,
                    sentence=sentence,
                )
            elif self.asked.words.startswith(NIGHT):
                await queries.resolve_run_alert(conn, realm=self.realm, cause=RUN_ALERT)
        if state == "done" and not run.dry_run:
            async with run.transaction() as conn:
                await queries.run_since(conn, run=run.id, since=report.since, heard_since=self.heard_since)
        await run.finish(state, report.exit, msgspec.json.encode(report))
        log.info(
            "run.finished",
            run=run.id,
            result=report.result,
            objects=sum(line.objects for line in report.certificate),
            drift=report.drift,
            healed=report.healed,
            unread=report.unread_total,
            seconds=report.finished_at - report.started_at,
        )

    async def _stage(self, name: str) -> None:
        await self.run.stage(name)
        self.watch.stage(name)


def _account(realm: str) -> str | None:
    return realm.partition(":")[2] or None


def _together(a: Matched, b: Matched) -> Matched:
    return Matched(
        imported=Counter(a.imported) + Counter(b.imported),
        enriched=a.enriched + b.enriched,
        in_flight=a.in_flight + b.in_flight,
        causes=Counter(a.causes) + Counter(b.causes),
    )


def _why(report: Report) -> list[str]:
    """Why the result is what it is, in sentences."""
    said = []
    if report.unread_total:
        said.append(f"{report.unread_total} things could not be read.")
    if report.unhealed:
        said.append(f"{report.unhealed} findings are still there after healing.")
    if n := report.by_class.get("ask", 0):
        said.append(f"{n} finding{' needs' if n == 1 else 's need'} a person.")
    if report.waiting.reviews:
        said.append(
            f"{report.waiting.reviews} review{' waits' if report.waiting.reviews == 1 else 's wait'} for a person."
        )
    if report.dry_run and (n := report.by_class.get("auto", 0)):
        said.append(f"{n} findings would be healed without --dry-run.")
    return said
