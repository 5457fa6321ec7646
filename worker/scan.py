"""Stripe's lists read into a run: chains of pages side by side, each page one request and one transaction.

A chain reads one slice of one list, newest first. While chains are free, the others give them the older half of what they
have left, so a dense hour is read by many. What a killed run has committed is not read again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any
from urllib.parse import quote

import msgspec
import structlog

from handlers.customer import (
    BALANCE_READ_PREFIX,
    SESSION_LINES_PREFIX,
    AnyFact,
    CustomerId,
    Invoice,
    Seconds,
    SessionId,
)
from handlers.events import Unreadable
from handlers.projection import created_of, digest
from handlers.wire import MAX_SECONDS
from reconcile.windows import LISTS, STRIPE_BEGAN, Listing, Window, halves
from worker.db import Connection, columns, queries
from worker.errors import StripeRefused, StripeUnavailable
from worker.inbox import pack
from worker.runs import Run, kind_of
from worker.scan_page import Listed, PageWrong, about, is_ours, named, read_page, told_by
from worker.settings import Mode
from worker.stripe_gateway import PAGE_LIMIT, RawPage, StripeGateway

CHAINS = 6
"""Of one list side by side: at 250 ms a page they use what one endpoint allows."""
CHAINS_OF_FIRST = 12
"""More, so that it keeps its rate while its pages wait behind others to be written."""
SPARE_PAGES = 2
"""A slice with less left is not split: each part ends with a page that is not full."""
PAGES_AT_ONCE = 30
"""In memory or under way, half a megabyte each; those of the events come on top."""
FIRST = "events"
"""The longest list, by far: whatever else is read, the run lasts as long as this one, so it goes ahead."""
UNSHOWN = "Stripe has it and the list over its time did not show it"
"""Why a list is not believed although the object was read by its id: what else it hides nobody knows."""
REREADS_AT_ONCE = 16
REREAD_ATTEMPTS = 3
REREAD_BATCH = 200
MAX_LATE_PAGES = 2_000
UNREADABLE = (StripeRefused, StripeUnavailable, Unreadable)

OnProgress = Callable[[str, int, int, int], None]
"""After each page: list, seconds of its windows that are read, seconds in all, objects read."""

log = structlog.get_logger()


class _Slice(msgspec.Struct):
    """Where a chain is. `edge` is the `created` of the oldest object read, at first `hi`."""

    lo: Seconds
    hi: Seconds
    edge: Seconds
    cursor: str | None = None
    restarted: bool = False


class _Lane(msgspec.Struct):
    """One list: what waits to be read, how many chains read, and how far they are."""

    name: str
    listing: Listing
    waiting: deque[_Slice]
    chains: int = 0
    promised: int = 0
    """Slices about to be given away."""
    read_s: int = 0
    total_s: int = 0
    objects: int = 0

    @property
    def most(self) -> int:
        """So many chains may read at once."""
        return CHAINS_OF_FIRST if self.name == FIRST else CHAINS

    @property
    def idle(self) -> bool:
        """Whether a chain more could read, and has nothing to."""
        return not self.waiting and self.chains + self.promised < self.most


async def scan(run: Run, gateway: StripeGateway, mode: Mode, on_progress: OnProgress) -> None:
    """Read every open slice of the run. What cannot be read is put down in `unread`, and holds up nothing else.

    Raises DatabaseUnavailable: the run's connection is its lock, and without it nothing may be written.
    """
    async with run.transaction() as conn:
        await queries.forgive_slices(conn, run=run.id)
        rows = await conn.fetch(queries.slices_of.sql, run.id)
    lanes = {name: _Lane(name, listing, deque()) for name, listing in LISTS.items()}
    for row in rows:
        lane = lanes[row["list"]]
        lane.total_s += row["hi"] - row["lo"]
        lane.objects += row["objects"]
        if row["state"] == "open":
            lane.waiting.append(_Slice(row["lo"], row["hi"], row["hi"], row["cursor"]))
        else:
            lane.read_s += row["hi"] - row["lo"]
    await _Scan(run, gateway, mode, on_progress).read(list(lanes.values()))


class _Scan:
    def __init__(self, run: Run, gateway: StripeGateway, mode: Mode, on_progress: OnProgress) -> None:
        self.run, self.gateway, self.mode, self.on_progress = run, gateway, mode, on_progress
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE)

    async def read(self, lanes: Sequence[_Lane]) -> None:
        try:
            async with asyncio.TaskGroup() as self._tasks:
                for lane in lanes:
                    self._begin(lane)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def _begin(self, lane: _Lane) -> None:
        while lane.waiting and lane.chains < lane.most:
            lane.chains += 1
            self._tasks.create_task(self._chain(lane, lane.waiting.popleft()))

    async def _chain(self, lane: _Lane, slice_: _Slice) -> None:
        while True:
            async with nullcontext() if lane.name == FIRST else self._pages:
                more = await self._page(lane, slice_)
            self.on_progress(lane.name, lane.read_s, lane.total_s, lane.objects)
            if not more:
                break
        lane.chains -= 1
        self._begin(lane)

    async def _page(self, lane: _Lane, slice_: _Slice) -> bool:
        """Read one page and commit it. Returns whether the slice goes on."""
        window = Window(slice_.lo, slice_.hi)
        try:
            page = await self._ask(lane, slice_)
            listed = read_page(lane.name, page, window, slice_.cursor, slice_.edge, self.mode)
        except StripeRefused as refused:
            if refused.code == "resource_missing" and slice_.cursor is not None and not slice_.restarted:
                await self._restart(lane, slice_)
                return True
            return await self._give_up(lane, slice_, _sentence(refused, lane))
        except StripeUnavailable as failed:
            return await self._give_up(lane, slice_, str(failed), self.gateway.page_attempts - 1)
        except PageWrong as wrong:
            return await self._give_up(lane, slice_, f"a page of {lane.name} is not to be believed: {wrong}")
        given = _given_away(lane, slice_, listed) if page.has_more else None
        lane.promised += given is not None
        await self._commit(lane, slice_, page, listed, given)
        self._advance(lane, slice_, page, listed, given)
        return page.has_more

    async def _ask(self, lane: _Lane, slice_: _Slice) -> RawPage:
        filters: dict[str, Any] = {
            "limit": PAGE_LIMIT,
            "created": {"gte": slice_.lo, "lt": slice_.hi},
            **dict(lane.listing.filters),
        }
        if slice_.cursor is not None:
            filters["starting_after"] = slice_.cursor
        return await self.gateway.page(lane.listing.path, filters, self.run.account, ahead=lane.name == FIRST)

    async def _commit(self, lane: _Lane, slice_: _Slice, page: RawPage, listed: Listed, given: Window | None) -> None:
        """Everything that a page says and how far the slice is now, in one transaction."""
        run = self.run
        if any(isinstance(fact, Invoice) and not fact.lines_complete for fact in listed.facts):
            await _complete(run, self.gateway, listed)
        async with run.transaction() as conn:
            if listed.facts:
                await _save_facts(run, conn, listed.facts)
            if listed.events:
                await _save_events(run, conn, listed)
            if listed.moves:
                await conn.execute(
                    queries.save_balance_moves.sql, run.id, *columns([msgspec.structs.astuple(m) for m in listed.moves])
                )
            for id_, why in listed.unread:
                await run.unread(lane.name, id_, why)
            if given is not None:
                await conn.execute(queries.add_slices.sql, run.id, [lane.name], [given.lo], [given.hi])
            await queries.save_page(
                conn,
                run=run.id,
                list=lane.name,
                hi=slice_.hi,
                lo=given.hi if given is not None else slice_.lo,
                cursor=listed.last_id,
                state="open" if page.has_more else "done",
                objects=listed.seen,
                retries=page.retries,
                first_id=listed.first_id,
                last_id=listed.last_id,
            )

    def _advance(self, lane: _Lane, slice_: _Slice, page: RawPage, listed: Listed, given: Window | None) -> None:
        lane.objects += listed.seen
        if given is not None:
            slice_.lo = given.hi
            lane.promised -= 1
            lane.waiting.append(_Slice(given.lo, given.hi, given.hi))
            self._begin(lane)
        reached = listed.oldest if page.has_more and listed.oldest is not None else slice_.lo
        lane.read_s += slice_.edge - reached
        slice_.edge, slice_.cursor = reached, listed.last_id

    async def _restart(self, lane: _Lane, slice_: _Slice) -> None:
        """What was deleted at Stripe can be no cursor: its slice is read from the top again, once."""
        async with self.run.transaction() as conn:
            await queries.restart_slice(conn, run=self.run.id, list=lane.name, hi=slice_.hi)
        lane.read_s -= slice_.hi - slice_.edge
        slice_.cursor, slice_.edge, slice_.restarted = None, slice_.hi, True

    async def _give_up(self, lane: _Lane, slice_: _Slice, why: str, retries: int = 0) -> bool:
        async with self.run.transaction() as conn:
            await queries.give_up_slice(conn, run=self.run.id, list=lane.name, hi=slice_.hi, error=why, retries=retries)
            await self.run.unread(lane.name, f"{slice_.lo}..{slice_.hi}", why)
        log.warning("scan.unread", list=lane.name, lo=slice_.lo, hi=slice_.hi, error=why)
        lane.read_s += slice_.edge - slice_.lo
        return False


def _given_away(lane: _Lane, slice_: _Slice, listed: Listed) -> Window | None:
    """The older half of what a chain has left, where another chain is idle and two pages seem to be left."""
    if not lane.idle or listed.oldest is None:
        return None
    begin = max(slice_.lo, min(STRIPE_BEGAN, listed.oldest))
    if listed.oldest - begin <= SPARE_PAGES * (slice_.edge - listed.oldest):
        return None
    parts = halves(begin, listed.oldest + 1)
    return Window(slice_.lo, parts[1].hi) if parts is not None else None


def _sentence(refused: StripeRefused, lane: _Lane) -> str:
    if refused.status == 403:
        what = lane.listing.path.removeprefix("/v1/").replace("_", " ").replace("/", " ")
        return f"the key may not read this list: give the key read access to {what}"
    return str(refused)


# --- what a page says, into the tables -----------------------------------------------------------------------------------


async def _save_facts(run: Run, conn: Connection, facts: Sequence[AnyFact]) -> None:
    """Every fact as a narrow row; whole those that the books lack or have otherwise."""
    alike: dict[tuple[str, Seconds], list[AnyFact]] = {}
    for fact in facts:
        alike.setdefault((kind_of(fact), fact.as_of), []).append(fact)
    differing: set[str] = set()
    for (
        kind,
        as_of,
    ), told in alike.items():  # what they share is sent once: the driver's cost is in the elements of arrays
        ids, created = [fact.id for fact in told], [created_of(fact) or 0 for fact in told]
        rows = await conn.fetch(
            queries.save_scanned.sql, ids, created, [digest(fact) for fact in told], run.id, kind, as_of, run.realm
        )
        differing.update(row["id"] for row in rows)
    if differing:
        await run.stage_facts([fact for fact in facts if fact.id in differing], listed=True)


async def _save_events(run: Run, conn: Connection, listed: Listed) -> None:
    """Events that never arrived, and what they tell."""
    ours = {row.event_id: row for row in listed.events if is_ours(row)}
    if not ours:
        return
    for heard in await conn.fetch(queries.heard_events.sql, list(ours)):
        del ours[heard["event_id"]]
    rows: list[tuple[Any, ...]] = []
    facts: list[AnyFact] = []
    for row in ours.values():
        try:
            fact, object_ = told_by(row)
        except Unreadable as error:
            listed.unread.append((row.event_id, str(error)))
            fact, object_ = None, about(row.payload)
        facts += [fact] if fact is not None else []
        rows.append((row.event_id, row.type, row.created_s, object_, pack(row.payload)))
    if rows:
        await conn.execute(queries.save_unheard.sql, run.id, *columns(rows))
    await run.stage_facts(facts, listed=False)


async def _complete(run: Run, gateway: StripeGateway, listed: Listed) -> None:
    """A list shows ten lines of an invoice: those that the books do not have just so are read with all of them."""
    async with run.transaction() as conn:
        ids = [fact.id for fact in listed.facts]
        known = {row["id"]: row["digest"] for row in await conn.fetch(queries.digests_of.sql, run.realm, ids)}
    whole: list[AnyFact] = []
    for fact in listed.facts:
        if isinstance(fact, Invoice) and not fact.lines_complete and known.get(fact.id) != digest(fact):
            try:
                whole.append(await gateway.read(f"/v1/invoices/{quote(fact.id, safe='')}", run.account))
            except UNREADABLE as error:
                listed.unread.append((fact.id, f"its lines: {error}"))
        else:
            whole.append(fact)
    listed.facts = whole


# --- single objects ------------------------------------------------------------------------------------------------------


async def late_objects(gateway: StripeGateway, upper: Seconds, account: str | None = None) -> set[str]:
    """Ids of the objects of which events tell that were created from `upper` on: what is said of them is in flight.

    Raises StripeRefused, also where the list does not end, and StripeUnavailable.
    """
    ids: set[str] = set()
    filters: dict[str, Any] = {"limit": PAGE_LIMIT, "created": {"gte": upper}}
    for _ in range(MAX_LATE_PAGES):
        page = await gateway.page("/v1/events", filters, account, ahead=True)
        ids.update(id_ for raw in page.data if (id_ := about(bytes(raw))) is not None)
        if not page.has_more or not page.data:
            return ids
        try:
            filters["starting_after"], _ = named(bytes(page.data[-1]))
        except PageWrong as wrong:
            raise StripeUnavailable(f"a page of events is not to be believed: {wrong}") from None
    raise StripeRefused(f"/v1/events since {upper} has more than {MAX_LATE_PAGES} pages", code="too_long", status=0)


async def reread(run: Run, gateway: StripeGateway, kind_ids: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Read objects by id and stage what Stripe says of them. Returns those that Stripe does not know.

    `kind` is that of our facts. What cannot be read is put down in `unread`. Raises DatabaseUnavailable.
    """
    gone: list[tuple[str, str]] = []
    slots = asyncio.Semaphore(REREADS_AT_ONCE)

    async def read(kind: str, id_: str) -> AnyFact | Exception:
        failed: Exception | None = None
        for _ in range(REREAD_ATTEMPTS):
            async with slots:
                try:
                    return await _read(gateway, kind, id_, run.account)
                except StripeUnavailable as error:
                    failed = error  # the gateway has tried a few times; in thousands of reads that is not enough
                except UNREADABLE as error:
                    return error
        assert failed is not None
        return failed

    rest = iter(dict.fromkeys(kind_ids))
    while batch := list(islice(rest, REREAD_BATCH)):
        answers = await asyncio.gather(*(read(kind, id_) for kind, id_ in batch))
        async with run.transaction() as conn:
            facts = [answer for answer in answers if not isinstance(answer, Exception)]
            if facts:
                await _save_facts(run, conn, facts)
                await queries.forgive_objects(conn, run=run.id, ids=[fact.id for fact in facts], but=UNSHOWN)
            for (kind, id_), answer in zip(batch, answers, strict=True):
                if isinstance(answer, StripeRefused) and answer.status == 404:
                    gone.append((kind, id_))
                elif isinstance(answer, Exception):
                    await run.unread(_LIST_OF.get(kind, kind), id_, str(answer))
    return gone


async def read_moves(run: Run, gateway: StripeGateway, sources: Sequence[str]) -> None:
    """Every balance transaction of these objects, also those booked outside of the run's windows. What cannot be read is `unread`."""
    name = "balance_transactions"
    for source in sources:
        filters: dict[str, Any] = {"source": source, "limit": PAGE_LIMIT}
        try:
            page = await gateway.page(LISTS[name].path, filters, run.account)
            listed = read_page(
                name,
                page,
                Window(0, MAX_SECONDS),
                None,
                MAX_SECONDS,
                "live" if run.realm.startswith("live") else "test",
            )
            if page.has_more:
                raise PageWrong(f"{source} has more than {PAGE_LIMIT} balance transactions")
            why = [why for _, why in listed.unread]
        except (StripeRefused, StripeUnavailable, PageWrong) as error:
            listed, why = Listed(), [str(error)]
        async with run.transaction() as conn:
            if listed.moves:
                rows = [msgspec.structs.astuple(move) for move in listed.moves]
                await conn.execute(queries.save_balance_moves.sql, run.id, *columns(rows))
            for sentence in why:
                await run.unread(name, source, sentence)


_LIST_OF = {listing.kind: name for name, listing in reversed(LISTS.items())}


async def _read(gateway: StripeGateway, kind: str, id_: str, account: str | None) -> AnyFact:
    match kind:
        case "balance_read":
            return await gateway.read_customer_balance(CustomerId(id_.removeprefix(BALANCE_READ_PREFIX)), account)
        case "session_lines":
            return await gateway.read_session_lines(SessionId(id_.removeprefix(SESSION_LINES_PREFIX)), account)
        case _:
            return await gateway.read(f"{LISTS[_LIST_OF[kind]].path}/{quote(id_, safe='')}", account)
