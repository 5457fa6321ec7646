"""The campaign of the nightly run: lost webhooks, falsified books, faults and `kill -9`; everything seeded is found, and nothing else.

`python -m tests.night --objects 100000` plays all of it with real processes and prints the table of found, missed and false
alarms; `--json` prints one document. The test suite plays short ones.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

from reconcile.findings import DRIFT, What
from reconcile.truth import Check
from tests.night_books import decided, held, refund_ids, refunds_once, same_books
from tests.night_place import (
    BOOKS,
    SHAPES,
    Books,
    NightOptions,
    Place,
    Said,
    books,
    copy,
    create,
    deliver,
    do_harm,
    feed,
    listed_events,
    place,
    truth_of,
)
from tests.night_truth import Line, Seed, in_words
from tests.year_played import equal, none
from worker.inbox import unpack

FAULTS = ("429", "502_before", "500_before", "timeout_before", "truncated")
RATE = 0.05
SMALLER = 10
"""Clean books, and runs that are killed time and again, are so many times smaller in the campaign."""
SILENT_DUPLICATES = ("unheard: duplicate_d1", "unheard: duplicate_d3")


class NightReport(msgspec.Struct, kw_only=True):
    """What a campaign came to."""

    table: list[Line]
    checks: list[Check]
    kills: dict[str, int]
    """How many runs were killed, by the stage they were at."""
    seconds: float

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


# what must hold --------------------------------------------------------------------------------------------------------


def table_holds(name: str, lines: Iterable[Line]) -> list[Check]:
    """Everything seeded is found, and nothing else is."""
    lines = list(lines)
    missed = [f"{line.kind} {id_}" for line in lines for id_ in line.missed]
    false = [words for line in lines for words in line.false_alarms]
    seeded = sum(line.seeded for line in lines)
    return [
        none(f"{name}: everything seeded is found", missed, f"{seeded} of {seeded}"),
        none(f"{name}: nothing else is found", false, "0 false alarms"),
    ]


def complete(name: str, said: Said, *, exit_: int | None = None) -> Check:
    """Read to the end and healed; with `exit_`, and told by that exit code."""
    report = said.report
    wrong = [
        *(f"{row.list} {row.what}: {row.why}" for row in report.unread),
        *(row.list for row in report.certificate if row.unread),
    ]
    wrong += [f"{report.unhealed} unhealed"] if report.unhealed else []
    wrong += [f"{n} explained by nothing" for n in [sum(not r.explained for r in report.residuals)] if n]
    wrong += [f"exit {said.exit}"] if said.exit not in ((0, 1) if exit_ is None else (exit_,)) else []
    objects = sum(row.objects for row in report.certificate)
    return none(name, wrong, f"exit {said.exit}, {objects} objects, {report.healed} healed, {said.seconds} s")


def quiet(name: str, said: Said, before: Said) -> Check:
    """A run after a run: nothing differs, nothing new is found."""
    new = [f.sentence for f in said.findings if f.id not in before.ids or f.what in DRIFT]
    return none(name, new, f"drift 0, {len(said.findings)} findings wait for people as before")


# the scenarios ---------------------------------------------------------------------------------------------------------


async def clean_books(options: NightOptions, state_dir: Path, shape: str) -> list[Check]:
    """Everything was delivered: a run finds nothing, whatever API version the endpoint has."""
    async with place(options, state_dir, shape) as at, books(at, BOOKS, refunds="auto", web=True) as kept:
        await deliver(kept, 0)
        await at.stripe.ask("clock", {"advance_s": 600})
        await kept.flush()
        said = await kept.reconcile()
        name = f"clean books, {shape}"
        lines = await truth_of(kept, said, [])
        return [*table_holds(name, lines), complete(f"{name}: complete", said), *await refunds_once(kept)]


class Night:
    """Days with harm, and the runs over them: each trial on a copy of the same falsified books, the last one for good."""

    def __init__(self, at: Place, checks: Iterable[Check] = ()) -> None:
        self.at, self.options = at, at.options
        self.checks = list(checks)
        self.kills: Counter[str] = Counter()
        self.table: list[Line] = []
        self.seeds: list[Seed] = []

    async def harmed(self) -> None:
        """Deliver most of it, do harm, and keep what a run over it finds when nobody disturbs it.

        Nothing is sent before the last run, so that Stripe shows the same to all.
        """
        async with books(self.at, BOOKS, refunds="review", web=True) as kept:
            await deliver(kept, self.options.drop)
            rows = await kept.pool.fetch("select event_id, payload from inbox")
            self.delivered = {row["event_id"]: unpack(row["payload"]) for row in rows}  # Stripe lists 30 days only
            self.seeds = await do_harm(kept, self.options.seed)
        await copy(self.at, BOOKS, "calm")
        async with books(self.at, "calm", refunds="review") as kept:
            self.calm = await kept.reconcile()
            await kept.settle_down()
            self.books, self.ids = await held(kept.pool), await refund_ids(kept.pool)
        self.checks.append(complete("undisturbed: complete", self.calm, exit_=1))

    async def as_if_all_had_come(self) -> None:
        """The undisturbed run's decisions against those of books to which every event was delivered."""
        events = await listed_events(self.at) | self.delivered
        await create(self.at, "twin")
        async with books(self.at, "twin", refunds="review") as kept:
            await feed(kept.pool, events.values())
            await kept.settle_down()
            twin, ids = await decided(kept.pool), await refund_ids(kept.pool)
        mine = {seed.object for seed in self.seeds if seed.what == {What.MISSING_THERE}}
        here = {subject: said for subject, said in self.books.decisions.items() if subject not in mine}
        silent = {s.object for s in self.seeds if s.kind in SILENT_DUPLICATES}
        both = {subject: ids.get(subject) for subject in silent}
        self.checks += [
            equal("decided as if every webhook had come", here, twin),
            equal(
                "a duplicate that no webhook told of has the same decision", {s: self.ids.get(s) for s in silent}, both
            ),
        ]

    async def under_faults(self) -> None:
        """Every twentieth answer each a 429, a 5xx, a time-out, or cut off: the same result."""
        rules = [{"kind": kind, "rate": RATE, "path": "/v1/*", "hold_s": 0.5} for kind in FAULTS]
        await self._trial("faults", rules)

    async def one_slice_never_comes(self) -> None:
        """Not a whole list, but some seconds of it."""
        query = f"*created[[]lt]={self.calm.report.until}*"
        await self.a_page_never_comes({"path": "/v1/charges", "query": query})

    async def a_page_never_comes(self, rule: dict[str, Any]) -> None:
        """Incomplete, exit 2, an alert; and afterwards, with the fault gone, complete."""
        name = f"a page that never comes ({rule['path']} {rule.get('query', '')})"
        await copy(self.at, BOOKS, "unread")
        async with books(self.at, "unread", refunds="review") as kept:
            await self._break([{"kind": "502_before", **rule}])
            said = await kept.reconcile()
            await self._break([])
            alerts = await kept.pool.fetchval(
                "select count(*) from alerts where kind = 'nightly_incomplete' and resolved_at is null"
            )
            report = said.report
            figure = f"exit {said.exit}, {report.result}, {report.unread_total} unread, {alerts} alert"
            ok = (said.exit, report.result, alerts) == (2, "incomplete", 1) and report.unread_total > 0
            self.checks.append(Check(name=f"{name}: exit 2, alert", ok=ok, figure=figure))
            self.checks.append(complete(f"{name}, then does: complete", await kept.reconcile(), exit_=1))

    async def killed(self, kills: int, seed: int) -> None:
        """`kill -9` of the run, so many times at random moments, each time begun again: the same result."""
        rng = random.Random(f"kills {seed}")
        await copy(self.at, BOOKS, "killed")
        async with books(self.at, "killed", refunds="review") as kept:
            marks: dict[tuple[Any, ...], tuple[Any, ...]] = {}
            done, said = 0, None
            for _ in range(kills):
                stage = await self._kill_one(kept, rng)
                if stage is None:  # it was faster than the moment
                    ended = await kept.pool.fetchval("select exit_code from runs")
                    said = await kept.said(ended)
                    break
                done += 1
                self.kills[stage] += 1
                rows = await kept.pool.fetch(
                    "select list, lo, hi, pages from slices where state = 'done' and run in (select id from runs)"
                )
                marks |= {(row["list"], row["lo"], row["hi"]): (row["pages"],) for row in rows}
            said = said or await kept.reconcile()
            await kept.settle_down()
            name = f"killed {done} times"
            run = await kept.pool.fetchrow("select count(*) as runs, max(attempts) as attempts from runs")
            rows = await kept.pool.fetch("select list, lo, hi, pages from slices where run = $1", said.report.run)
            after = {(row["list"], row["lo"], row["hi"]): (row["pages"],) for row in rows}
            again = [f"{slice_}" for slice_ in marks if after.get(slice_) != marks[slice_]]
            seen = {row.list: row.objects for row in said.report.certificate}
            calm = {row.list: row.objects for row in self.calm.report.certificate}
            attempts = f"{run['runs']} run, {run['attempts']} attempts" if run else "no run"
            self.checks += [
                Check(name=f"{name}: taken up", ok=attempts == f"1 run, {done + 1} attempts", figure=attempts),
                none(f"{name}: no finished slice is read again", again, f"{len(marks)} slices finished before"),
                equal(f"{name}: each object is read once", seen, calm),
                *await self._as_calm(name, said, kept),
            ]

    async def _kill_one(self, kept: Books, rng: random.Random) -> str | None:
        """Start a run and kill it in the midst of its work; at which stage, or None where it had ended before."""
        before = await kept.pool.fetchval("select coalesce(max(attempts), 0)::int from runs")
        process = await kept.begin()
        try:
            while process.returncode is None and not await kept.pool.fetchval(_AT_WORK, before):
                await asyncio.sleep(0.005)
            wanted = rng.choice(("scan", "scan", "scan", "reread", "compare", "plan", "heal", "verify"))
            while process.returncode is None:
                stage = str(await kept.pool.fetchval("select stage from runs where state = 'running'"))
                if stage not in _ORDER or _ORDER.index(stage) >= _ORDER.index(wanted):
                    break
                await asyncio.sleep(0.002)
            await asyncio.sleep(rng.random() * (0.8 * self.calm.seconds if wanted == "scan" else 0.05))
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()
        row = await kept.pool.fetchrow("select state, stage from runs")
        return str(row["stage"]) if row and row["state"] == "running" else None

    async def _break(self, rules: list[dict[str, Any]]) -> None:
        await self.at.stripe.ask("config", {"faults": {"seed": self.options.seed, "rules": rules}})

    async def _trial(self, name: str, rules: list[dict[str, Any]]) -> None:
        await copy(self.at, BOOKS, "trial")
        async with books(self.at, "trial", refunds="review") as kept:
            await self._break(rules)
            said = await kept.reconcile()
            await self._break([])
            await kept.settle_down()
            retries = sum(row.retries for row in said.report.certificate)
            made = sum((await self.at.stripe.ask("books"))["faults"].values())
            self.checks += [
                complete(f"{name}: complete", said, exit_=self.calm.exit),
                Check(name=f"{name}: made", ok=made > 0, figure=f"{made} faults, {retries} pages asked for again"),
                *await self._as_calm(name, said, kept),
            ]

    async def _as_calm(self, name: str, said: Said, kept: Books) -> list[Check]:
        """The same findings, and the same books, as where nobody disturbed."""
        ours, theirs = ({f.id: f.class_ for f in run.findings} for run in (said, self.calm))
        return [
            equal(f"{name}: the same findings", ours, theirs),
            same_books(f"{name}: the same books", await held(kept.pool), self.books),
            Check(name=f"{name}: the same exit code", ok=said.exit == self.calm.exit, figure=str(said.exit)),
        ]

    async def for_good(self) -> None:
        """The run that counts: it finds and heals everything, what it refunds it refunds once, and the next finds nothing."""
        at = self.at
        await at.stripe.ask("config", {"webhook": {"drop": 0}})
        await self._clock_runs()
        async with books(at, BOOKS, refunds="auto", web=True) as kept:
            said = await kept.reconcile()
            self.table = await truth_of(kept, said, self.seeds)
            self.checks += [
                *table_holds("harm", self.table),
                complete("harm: complete and healed", said, exit_=1),
                equal("harm: decided as where nothing was sent", await decided(kept.pool), self.books.decisions),
                await self._sent(kept, self.seeds, "harm"),
            ]
            await kept.flush()
            again = await kept.reconcile()
            self.checks += [
                quiet("a second run finds nothing new", again, said),
                complete("a second run is complete", again),
                *await refunds_once(kept),
            ]
            await self._meanwhile(kept)

    async def _meanwhile(self, kept: Books) -> None:
        """New harm; and while a run heals it, everything that was lost is delivered after all."""
        seeds = await do_harm(kept, self.options.seed + 1, books_too=False)
        await self._clock_runs()
        process = await kept.begin()
        while process.returncode is None and not await kept.pool.fetchval(_HEALS):
            await asyncio.sleep(0.005)
        sent = (await self.at.stripe.ask("redeliver", {}))["sent"]
        await process.communicate()
        await kept.flush()
        said = await kept.reconcile()
        drift = [finding.sentence for finding in said.findings if finding.what in DRIFT]
        name = "webhooks and the run at once"
        self.checks += [
            none(f"{name}: one result", drift, f"{len(seeds)} seeds, {sent} events delivered meanwhile"),
            await self._sent(kept, seeds, name),
            *await refunds_once(kept),
        ]

    async def _clock_runs(self) -> None:
        now = (await self.at.stripe.ask("clock", {"advance_s": 60}))["now"]
        await self.at.stripe.ask("clock", {"set": now, "running": True})

    async def _sent(self, kept: Books, seeds: list[Seed], name: str) -> Check:
        """Every silent duplicate went back, once."""
        silent = {s.object for s in seeds if s.kind in SILENT_DUPLICATES}
        await kept.rest()
        refunds = (await self.at.stripe.ask("books"))["objects"]["refund"]
        times = Counter(r["charge"] for r in refunds if r["charge"] in silent)
        return equal(f"{name}: silent duplicates went back once", dict(times), dict.fromkeys(silent, 1))


_ORDER = ("project", "scan", "reread", "compare", "plan", "heal", "verify")
_AT_WORK = "select exists (select from runs where state = 'running' and attempts > $1)"
_HEALS = "select exists (select from runs where state = 'running' and stage in ('plan', 'heal'))"


# the campaign ----------------------------------------------------------------------------------------------------------


async def campaign(options: NightOptions, directory: Path, say: Callable[[str], object]) -> NightReport:
    """All of it at full size."""
    began = time.monotonic()
    checks: list[Check] = []
    smaller = msgspec.structs.replace(options, objects=max(600, options.objects // SMALLER))

    def told(found: list[Check]) -> None:
        for check in found[len(checks) :]:
            checks.append(check)
            say(
                f"{time.monotonic() - began:7.1f} s  {'ok  ' if check.ok else 'FAIL'} {check.name}: {check.figure[:600]}"
            )

    for shape in SHAPES:
        told(checks + await clean_books(smaller, directory / shape, shape))
    async with place(smaller, directory / "kills") as at:
        killing = Night(at, checks)
        await killing.harmed()
        for trial in range(2 * options.kills):
            if left := options.kills - sum(killing.kills.values()):
                await killing.killed(min(options.kills_per_run, left), trial)
                told(killing.checks)
    async with place(options, directory / "harm") as at:
        night = Night(at, checks)
        for scenario in (
            night.harmed,
            night.as_if_all_had_come,
            night.under_faults,
            partial(night.a_page_never_comes, {"path": "/v1/refunds"}),
            night.one_slice_never_comes,
            night.for_good,
        ):
            await scenario()
            told(night.checks)
    seconds = round(time.monotonic() - began, 1)
    return NightReport(table=night.table, checks=checks, kills=dict(killing.kills), seconds=seconds)


def main() -> None:
    default = NightOptions()
    parser = argparse.ArgumentParser(prog="python -m tests.night", description=__doc__)
    for name in ("objects", "days", "seed", "workers", "each", "kills"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--json", action="store_true", help="one document on standard output")
    arguments = vars(parser.parse_args())
    as_json = arguments.pop("json")
    for name in [n for n in os.environ if n.startswith(("FINALSALE_", "STRIPE_")) or n in ("DATABASE_URL", "PORT")]:
        del os.environ[name]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="finalsale-night-") as directory:
        done = asyncio.run(
            campaign(NightOptions(**arguments), Path(directory), lambda line: sys.stderr.write(line + "\n"))
        )
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(done), indent=2).decode() + "\n")
    else:
        sys.stdout.write(in_words(done.table) + f"\n\nkilled at: {done.kills}\n")
        for check in done.checks:
            sys.stdout.write(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.figure[:600]}\n")
        sys.stdout.write(f"{done.seconds} s\n")
    sys.exit(0 if done.ok else 1)


if __name__ == "__main__":
    main()
