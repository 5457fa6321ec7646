"""The scan: everything that Stripe lists is read once, in any split, through any weather, and what is not is said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from handlers.customer import Invoice, decode
from handlers.projection import digest
from reconcile.windows import LISTS, SLICES, ScanPlan, Window, scan_plan
from sandbox import Sandbox
from worker.budget import Budget
from worker.db import Pool
from worker.errors import DatabaseUnavailable
from worker.inbox import read_event, store_rows
from worker.runs import Run, certificate, open_run, unread_of
from worker.scan import late_objects, reread, scan
from worker.settings import Settings
from worker.stripe_gateway import StripeGateway

Obj = dict[str, Any]
DAYS = 2
TABLES = ("scanned", "found", "unheard", "balance_moves")
WIRE = {"early_fraud_warning": "radar.early_fraud_warning", "checkout_session": "checkout.session"}
FAST = 10_000


class Shop:
    """Two days of a merchant at Stripe, nothing of it heard here."""

    def __init__(self, sandbox: Sandbox, settings: Settings) -> None:
        self.sandbox, self.books, self.settings = sandbox, sandbox.books, settings
        self.now = int(time.time())
        self.upper = self.now - 60
        self.url = sandbox.url
        self.seen: list[tuple[str, int, int, int]] = []
        self._live()

    def _live(self) -> None:
        books, begin = self.books, self.now - DAYS * 86_400
        books.set_clock(begin - 100, running=False)
        price = books.new_price(books.new_product("FluxArt AI")["id"], "usd", 2900, interval="month", id_="price_basic")
        for number in range(120):
            books.set_clock(begin + number * (DAYS * 86_400 - 7_200) // 120, running=False)
            customer = books.new_customer(email=f"{number}@example.com", metadata={}, fingerprint=f"card{number}")
            if number % 2:
                _, charge = books.pay_bare(customer, 500, "usd")
            else:
                subscription = books.subscribe(customer, [(price, 1)], metadata={"user_id": f"u{number}"})
                charge = books.pay_again(books.by_id[subscription["latest_invoice"]])
            if number % 10 == 0:
                books.create_refund(charge)
            if number % 15 == 1:
                books.open_dispute(charge)
            if number % 30 == 3:
                books.warn_of_fraud(charge)
        for _ in range(130):  # a dense hour: many objects in few seconds
            books.new_customer(email="dense@example.com", metadata={}, fingerprint="dense")
        books.set_clock(self.now, running=True)

    async def plan(self) -> ScanPlan:
        return scan_plan([Window(self.now - DAYS * 86_400 - 1_000, self.upper)], self.upper)

    def gateway(self, **over: Any) -> StripeGateway:
        running = self.settings.model_copy(update={"stripe_api_base": self.url})
        return StripeGateway(running, **({"budget": Budget(FAST, FAST), "timeout_s": 2.0} | over))

    def all(self, name: str) -> dict[str, Obj]:
        """What Stripe would list under a name of LISTS."""
        kind = WIRE.get(LISTS[name].kind, LISTS[name].kind)
        return {obj["id"]: obj for obj in self.books.all(kind) if obj["created"] < self.upper}

    @asynccontextmanager
    async def run(self, **over: Any) -> AsyncIterator[Run]:
        asked: Obj = {"kind": "nightly", "asked": "", "dry_run": False, "plan": self.plan} | over
        async with open_run(self.settings.database_dsn(), "test", **asked) as run:
            yield run

    async def scan(self, run: Run, gateway: StripeGateway) -> None:
        await scan(run, gateway, "test", lambda *seen: self.seen.append(seen))

    async def whole(self, **over: Any) -> Run:
        """One run from beginning to end."""
        gateway = self.gateway(**over)
        try:
            async with self.run() as run:
                await self.scan(run, gateway)
                self.certificate = {line.list: line for line in await certificate(run.conn, run.id)}
                self.unread = await unread_of(run.conn, run.id, 100)
                return run
        finally:
            await gateway.aclose()


@asynccontextmanager
async def at_stripe(settings: Settings) -> AsyncIterator[Shop]:
    async with Sandbox() as sandbox:
        yield Shop(sandbox, settings)


@asynccontextmanager
async def middleman(
    shop: Shop, alter: Callable[[str, Obj], tuple[int, Obj]], *, only_with: str | None = None
) -> AsyncIterator[None]:
    """Somebody between Stripe and us who alters what the lists say."""
    async with aiohttp.ClientSession() as session:
        stripe = shop.sandbox.url

        async def forward(request: web.Request) -> web.Response:
            headers = {name: request.headers[name] for name in ("Authorization", "Stripe-Version")}
            async with session.get(stripe + request.path_qs, headers=headers) as answer:
                page, date = await answer.json(), answer.headers["Date"]
            status = 200
            if only_with is None or only_with in request.query:
                status, page = alter(request.path, page)
            return web.json_response(page, status=status, headers={"Date": date})

        app = web.Application()
        app.add_routes([web.get("/{path:.*}", forward)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        shop.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            shop.url = stripe
            await runner.cleanup()


async def rows_of(pool: Pool, table: str) -> set[str]:
    column = "event_id" if table == "unheard" else "id"
    return {row[0] for row in await pool.fetch(f"select {column} from {table}")}


async def assert_all_read(shop: Shop, pool: Pool) -> None:
    """Every object that Stripe lists is a row, once, and the certificate says so."""
    facts = {name for name in LISTS if name not in ("events", "balance_transactions")}
    everything = {id_ for name in facts for id_ in shop.all(name)}
    assert await rows_of(pool, "scanned") == everything
    assert await rows_of(pool, "balance_moves") == set(shop.all("balance_transactions"))
    assert {line.unread for line in shop.certificate.values()} == {0}
    for name in LISTS:
        if name not in ("subscriptions_alive", "invoices_open", "invoices_draft"):
            assert (name, shop.certificate[name].objects) == (name, len(shop.all(name)))
    newest = max(shop.all("charges").values(), key=lambda charge: charge["created"])
    assert shop.all("charges")[str(shop.certificate["charges"].first_id)]["created"] == newest["created"]
    states = await pool.fetch("select distinct state from slices")
    assert [row["state"] for row in states] == ["done"]
    covered = await pool.fetch("select list, sum(hi - lo) as seconds from slices group by list")
    plan = await shop.plan()
    assert {r["list"]: r["seconds"] for r in covered} == {
        n: sum(w.hi - w.lo for w in ws) for n, ws in plan.lists.items()
    }


async def test_everything_is_read_once_and_staged_where_the_books_lack_it(settings: Settings, pool: Pool) -> None:
    async with at_stripe(settings) as shop:
        await shop.whole()
        await assert_all_read(shop, pool)
        assert await rows_of(pool, "found") == await rows_of(pool, "scanned")
        assert {row["listed"] for row in await pool.fetch("select distinct listed from found")} == {True}
        types = {row["type"] for row in await pool.fetch("select distinct type from unheard")}
        assert {"charge.succeeded", "invoice.paid", "customer.created", "charge.dispute.created"} <= types
        done = {name: (read, total) for name, read, total, _ in shop.seen}
        assert all(read == total for read, total in done.values())
        moved = await pool.fetchval("select sum(amount) from balance_moves where type in ('charge', 'payment')")
        assert moved == sum(c["amount_captured"] for c in shop.books.all("charge") if c["status"] == "succeeded")


async def test_what_the_books_have_just_so_is_not_staged_again(settings: Settings, pool: Pool) -> None:
    async with at_stripe(settings) as shop:
        await shop.whole()
        await pool.execute(
            "insert into objects (realm, id, kind, customer, as_of, body, digest) "
            "select 'test', f.id, f.kind, f.customer, f.as_of, f.body, s.digest from found f join scanned s using (run, id)"
        )
        changed, younger, undigested = sorted(shop.all("charges"))[:3]
        await pool.execute("update objects set digest = digest + 1 where id = any($1)", [changed, younger])
        await pool.execute("update objects set as_of = as_of + 60 where id = $1", younger)
        await pool.execute("update objects set digest = null where id = $1", undigested)
        await pool.execute(
            "insert into inbox (event_id, realm, type, created_at, payload) "
            "select event_id, 'test', type, to_timestamp(created), payload from unheard"
        )
        await pool.execute("update runs set state = 'done'")
        await shop.whole()
        assert await rows_of(pool, "found") == {changed, undigested}
        assert await rows_of(pool, "unheard") == set()


async def test_events_that_never_arrived_are_kept_as_they_are_with_what_they_tell(
    settings: Settings, pool: Pool
) -> None:
    async with at_stripe(settings) as shop:
        charge = next(iter(shop.all("charges").values()))
        heard = next(e for e in shop.books.all("event") if e["type"] == "customer.created")
        async with pool.acquire() as conn:
            body = (
                b'{"id": "%s", "object": "event", "type": "x", "created": 1, "livemode": false}' % heard["id"].encode()
            )
            await store_rows(conn, [read_event(body, "test")])
        charge["id"], kept = (
            "ch_moved",
            charge["id"],
        )  # the list shows it under another id: only events tell of the old one
        await shop.whole()
        row = await pool.fetchrow("select listed, customer from found where id = $1", kept)
        assert (row["listed"], row["customer"]) == (False, charge["customer"])
        assert heard["id"] not in await rows_of(pool, "unheard")
        told = await pool.fetch("select object from unheard where type = 'charge.succeeded'")
        assert kept in {row["object"] for row in told}


async def test_events_of_the_other_mode_and_of_other_types_are_none_of_ours(settings: Settings, pool: Pool) -> None:
    async with at_stripe(settings) as shop:
        first, second, health = list(shop.books.all("event"))[:3]
        first["livemode"], second["type"], health["type"] = (
            True,
            "payout.paid",
            "v2.core.health.event_generation_failure.x",
        )
        await shop.whole()
        unheard = await rows_of(pool, "unheard")
        assert unheard.isdisjoint({first["id"], second["id"]})
        assert health["id"] in unheard
        assert shop.certificate["events"].objects == len(shop.all("events"))


@pytest.mark.parametrize("limit", [3, 17])
async def test_any_split_reads_the_same(
    settings: Settings, pool: Pool, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.scan.PAGE_LIMIT", limit)
    async with at_stripe(settings) as shop:
        await shop.whole()
        await assert_all_read(shop, pool)
        assert shop.certificate["customers"].slices > SLICES
        assert await pool.fetchval("select bool_and(hi - lo >= 1) from slices")


async def test_five_in_a_hundred_of_every_failure_change_nothing(settings: Settings, pool: Pool) -> None:
    async with at_stripe(settings) as shop:
        kinds = ("429", "502_before", "timeout_before", "truncated")
        rules = [{"kind": kind, "rate": 0.05, "method": "GET", "hold_s": 1.0} for kind in kinds]
        shop.sandbox.configure({"faults": {"seed": 7, "rules": rules}})
        await shop.whole(timeout_s=0.5)
        shop.sandbox.configure({"faults": {"rules": []}})
        await assert_all_read(shop, pool)
        assert set(shop.sandbox.faults.counts) == set(kinds)
        assert sum(line.retries for line in shop.certificate.values()) > 5


async def test_a_killed_run_resumes_at_its_page(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.scan.PAGE_LIMIT", 10)
    async with at_stripe(settings) as shop:
        pages = 0
        for died_after in (3, 9, 20, 28):
            gateway = shop.gateway(budget=Budget(FAST, 200))
            async with shop.run() as run:
                reading = asyncio.create_task(shop.scan(run, gateway))
                while await pool.fetchval("select sum(pages) from slices") < pages + died_after:
                    await asyncio.sleep(0)
                if died_after % 2:
                    reading.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await reading
                else:
                    await pool.execute("select pg_terminate_backend($1)", run.conn.get_server_pid())
                    with pytest.raises(DatabaseUnavailable):
                        await reading
            await gateway.aclose()
            pages = await pool.fetchval("select sum(pages) from slices")
        before = {
            row["list"]: row["pages"]
            for row in await pool.fetch("select list, sum(pages) as pages from slices group by 1")
        }
        budget = Budget(FAST, FAST)
        run = await shop.whole(budget=budget)
        assert run.resumed
        await assert_all_read(shop, pool)
        assert budget.requests == await pool.fetchval("select sum(pages) from slices") - pages  # no page a second time
        assert await pool.fetchval("select count(*) from runs") == 1
        assert sum(before.values()) >= 60
        assert all(shop.certificate[name].pages >= count for name, count in before.items())


async def test_a_list_that_never_comes_is_unread_and_the_others_are_whole(settings: Settings, pool: Pool) -> None:
    async with at_stripe(settings) as shop:
        shop.sandbox.configure({"faults": [{"kind": "502_before", "path": "/v1/refunds", "method": "GET"}]})
        run = await shop.whole(page_attempts=2)
        assert {name for name, line in shop.certificate.items() if line.unread} == {"refunds"}
        assert {row.list for row in shop.unread} == {"refunds"}
        assert "/v1/refunds: 502" in shop.unread[0].why
        assert set(shop.all("charges")) <= await rows_of(pool, "scanned")
        shop.sandbox.configure({"faults": []})
        again = await shop.whole()
        assert again.id == run.id
        await assert_all_read(shop, pool)
        assert shop.unread == []


async def test_a_key_that_may_not_read_a_list_is_told_which_permission_it_lacks(settings: Settings, pool: Pool) -> None:
    def forbid(path: str, page: Obj) -> tuple[int, Obj]:
        told = {"error": {"type": "invalid_request_error", "code": "more_permissions_required"}}
        return (403, told) if path == "/v1/radar/early_fraud_warnings" else (200, page)

    async with at_stripe(settings) as shop, middleman(shop, forbid):
        await shop.whole()
        assert {name for name, line in shop.certificate.items() if line.unread} == {"early_fraud_warnings"}
        assert "give the key read access to radar early fraud warnings" in shop.unread[0].why


async def test_an_object_that_cannot_be_read_is_named_and_the_rest_of_its_page_counts(
    settings: Settings, pool: Pool
) -> None:
    async with at_stripe(settings) as shop:
        charge, move, event = (list(shop.all(n).values())[5] for n in ("charges", "balance_transactions", "events"))
        charge["amount"], move["amount"], event["type"] = "much", None, "no type"
        await shop.whole()
        named = {row.what: (row.list, row.why) for row in shop.unread}
        assert set(named) == {charge["id"], move["id"], event["id"]}
        assert named[charge["id"]][0] == "charges"
        assert "charge.amount" in named[charge["id"]][1]
        assert "balance_transaction.amount" in named[move["id"]][1]
        assert await rows_of(pool, "scanned") >= set(shop.all("charges")) - {charge["id"]}
        assert shop.certificate["charges"].unread == 1


async def test_an_object_that_hides_its_page_from_the_decoder_is_named_and_the_rest_counts(
    settings: Settings, pool: Pool
) -> None:
    broken: list[str] = []

    def surrogate(path: str, page: Obj) -> tuple[int, Obj]:
        if path == "/v1/charges" and len(page["data"]) > 3 and not broken:
            page["data"][2]["description"] = "half a character: \ud800"
            broken.append(page["data"][2]["id"])
        return 200, page

    async with at_stripe(settings) as shop, middleman(shop, surrogate):
        await shop.whole()
        assert [(row.list, row.what) for row in shop.unread] == [("charges", broken[0])]
        assert await rows_of(pool, "scanned") >= set(shop.all("charges")) - set(broken)


def _younger(page: Obj) -> None:
    page["data"][0]["created"] += 10 * 86_400


def _older(page: Obj) -> None:
    page["data"][-1]["created"] = 5


def _shuffled(page: Obj) -> None:
    page["data"].reverse()


def _twice(page: Obj) -> None:
    page["data"].append(page["data"][0])


def _endless(page: Obj) -> None:
    page["data"], page["has_more"] = [], True


def _cut(page: Obj) -> None:
    del page["has_more"]


def _no_list(page: Obj) -> None:
    page["object"] = "charge"


def _nameless(page: Obj) -> None:
    del page["data"][-1]["id"]


@pytest.mark.parametrize("spoil", [_younger, _older, _shuffled, _twice, _endless, _cut, _no_list, _nameless])
async def test_a_page_that_is_not_to_be_believed_is_unread(settings: Settings, pool: Pool, spoil: Any) -> None:
    def spoiled(path: str, page: Obj) -> tuple[int, Obj]:
        if path == "/v1/charges" and len(page["data"]) > 1:
            spoil(page)
        return 200, page

    async with at_stripe(settings) as shop, middleman(shop, spoiled):
        await shop.whole(page_attempts=2)
        assert {name for name, line in shop.certificate.items() if line.unread} == {"charges"}
        assert await rows_of(pool, "scanned") >= set(shop.all("customers"))


async def test_the_same_page_again_and_again_is_no_endless_list(settings: Settings, pool: Pool) -> None:
    first: list[Obj] = []

    def stuck(path: str, page: Obj) -> tuple[int, Obj]:
        if path == "/v1/customers" and len(page["data"]) == 100:
            first.append(page)
            return 200, first[0] | {"has_more": True}
        return 200, page if path != "/v1/customers" or not first else first[0]

    async with at_stripe(settings) as shop, middleman(shop, stuck):
        await shop.whole()
        assert shop.certificate["customers"].unread > 0


async def test_a_deleted_cursor_starts_its_slice_again(settings: Settings, pool: Pool) -> None:
    async with at_stripe(settings) as shop:
        dense = [c for c in shop.all("customers").values() if c["email"] == "dense@example.com"]
        refused: list[str] = []

        def missing(path: str, page: Obj) -> tuple[int, Obj]:
            if path == "/v1/customers" and len(page["data"]) < 100 and len(refused) < 1 and page["data"]:
                refused.append(path)
                return 404, {"error": {"type": "invalid_request_error", "code": "resource_missing"}}
            return 200, page

        async with middleman(shop, missing, only_with="starting_after"):
            await shop.whole()
        assert refused
        assert len(dense) == 130
        await assert_all_read(shop, pool)


async def test_a_rate_above_stripes_limit_is_taken_back_and_everything_is_read(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.scan.PAGE_LIMIT", 20)
    async with at_stripe(settings) as shop:
        shop.sandbox.configure({"rate_limit": {"endpoint_per_s": 12, "global_per_s": 60}})
        budget = Budget(60, 200)
        await shop.whole(budget=budget)
        shop.sandbox.configure({"rate_limit": {"enabled": False}})
        await assert_all_read(shop, pool)
        assert budget.rate_limited == shop.sandbox.limits.refused > 0
        assert min(budget.endpoint(name).rate for name in ("customers", "events")) < 45


async def test_invoices_with_more_lines_than_a_list_shows_are_staged_with_all_of_them(
    settings: Settings, pool: Pool
) -> None:
    async with at_stripe(settings) as shop:
        invoice = next(iter(shop.all("invoices").values()))
        line = invoice["lines"]["data"][0]
        invoice["lines"]["data"] = [line | {"id": f"il_{number}"} for number in range(25)]
        await shop.whole()
        row = await pool.fetchrow(
            "select f.body, s.digest from found f join scanned s using (run, id) where id = $1", invoice["id"]
        )
        fact = decode(row["body"])
        assert isinstance(fact, Invoice)
        assert (len(fact.lines), fact.lines_complete, row["digest"]) == (25, True, digest(fact))


async def test_objects_are_read_again_by_id_and_those_unknown_to_stripe_are_returned(
    settings: Settings, pool: Pool
) -> None:
    async with at_stripe(settings) as shop:
        gateway = shop.gateway()
        asked = [(listing.kind, next(iter(shop.all(name)))) for name, listing in LISTS.items() if shop.all(name)]
        asked = [(kind, id_) for kind, id_ in asked if kind not in ("event", "balance_transaction")]
        broken = list(shop.all("charges").values())[3]
        broken["amount"] = "much"
        async with shop.run() as run:
            gone = await reread(
                run, gateway, [*asked, ("charge", "ch_none"), ("charge", broken["id"]), ("customer", "cus/../x y")]
            )
            assert gateway.budget.requests == len(set(asked)) + 3
            assert gone == [("charge", "ch_none"), ("customer", "cus/../x y")]
            assert await rows_of(pool, "scanned") == await rows_of(pool, "found") == {id_ for _, id_ in asked}
            assert [(row.list, row.what) for row in await unread_of(run.conn, run.id, 5)] == [("charges", broken["id"])]
        await gateway.aclose()


async def test_objects_of_events_after_the_edge_are_in_flight(settings: Settings) -> None:
    async with at_stripe(settings) as shop:
        gateway = shop.gateway()
        assert await late_objects(gateway, shop.upper) == set()
        customer = shop.books.new_customer(email="late@example.com", metadata={}, fingerprint="late")
        _, charge = shop.books.pay_bare(customer, 500, "usd")
        late = await late_objects(gateway, shop.upper)
        assert {customer["id"], charge["id"]} <= late
        assert late.isdisjoint(shop.all("charges"))
        await gateway.aclose()


async def test_a_budget_is_reached_and_never_passed_by_more_than_a_few() -> None:
    budget = Budget(40, 80)
    taken: list[float] = []

    async def taker(endpoint: str, ahead: bool) -> None:
        for _ in range(20):
            await budget.take(endpoint, ahead=ahead)
            taken.append(time.monotonic())

    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for endpoint in ("a", "b", "c"):
            for _ in range(3):
                tasks.create_task(taker(endpoint, endpoint == "a"))
    seconds = time.monotonic() - began
    assert budget.requests == len(taken) == 180
    assert 180 / seconds > 80 * 0.93
    taken.sort()
    assert max(sum(1 for t in taken if start <= t < start + 1) for start in taken) <= 80 + 8


async def test_a_refused_endpoint_slows_alone_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.budget.RECOVER_S", 0.01)
    budget = Budget(20, 60)
    budget.refused("charges", "endpoint-rate")
    budget.refused("charges", "endpoint-rate")  # was under way already
    assert (budget.endpoint("charges").rate, budget.endpoint("refunds").rate, budget.total.rate) == (14, 20, 60)
    budget.refused("charges", "global-rate")
    assert (budget.total.rate, budget.rate_limited) == (42, 3)
    for _ in range(14):
        await budget.take("charges")
    assert budget.endpoint("charges").rate == 20


async def test_a_refusal_that_speaks_of_no_rate_slows_only_where_many_come() -> None:
    budget = Budget(20, 60)
    for _ in range(4):
        budget.refused("charges", None)
    assert budget.total.rate == 60
    budget.refused("charges", "global-concurrency")
    assert budget.total.rate == 42
