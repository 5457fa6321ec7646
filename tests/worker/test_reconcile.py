"""The nightly run end to end: what no webhook told is found, planned, healed through the one door, and told in a report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest
from pydantic import SecretStr

from handlers.customer import decode, encode
from handlers.decisions import Money
from handlers.projection import digest
from reconcile.report import Report
from reconcile.windows import DAY, Window
from sandbox import Sandbox
from sandbox.webhooks import snapshot_body
from tests.conftest import database_named
from tests.handlers.history import POLICY
from worker.db import Pool, connect_pool, transaction
from worker.embedded import EmbeddedServers
from worker.errors import SettingsInvalid
from worker.inbox import read_event, store_rows
from worker.jobs import WorkerProcess
from worker.judging import Court
from worker.reconciliation import Asked, Reconciliation
from worker.settings import Settings
from worker.settle import settle

Obj = dict[str, Any]
NOW = int(time.time())


async def double_click(sandbox: Sandbox) -> tuple[str, str]:
    """A customer with two subscriptions begun within a minute, an hour ago; the charges, the first first."""
    books = sandbox.books
    sandbox.webhooks.paused = True  # there is an endpoint; the test itself says what is delivered to it
    sandbox.configure({"webhook": {"url": "http://127.0.0.1:9/stripe/webhook", "secrets": ["whsec_test"]}})
    books.set_clock(NOW - 2 * DAY, running=False)
    price = books.new_price(books.new_product("FluxArt AI")["id"], "usd", 2900, interval="month", id_="price_basic")
    customer = books.new_customer(email="a@example.com", metadata={}, fingerprint="card1")
    charges = []
    for _ in range(2):
        bought = books.subscribe(customer, [(price, 1)], metadata={"user_id": "u1"})
        books.advance(40)
        charges.append(next(c["id"] for c in reversed(list(books.all("charge")))))
        del bought
    books.set_clock(NOW, running=True)
    return charges[0], charges[1]


async def run(settings: Settings, pool: Pool, sandbox: Sandbox, *, back: int = 3 * DAY, **how: Any) -> Report:
    """One run asked for at the sandbox, served by this process where it heals."""
    served = settings.model_copy(update={"stripe_api_base": sandbox.url})
    worker = WorkerProcess(served)
    worker.court = Court(policy=POLICY, refunds=how.pop("refunds", "auto"))
    worker.gateway.page_attempts = 3
    worker.use(pool)
    asked = Asked(
        kind="asked", words=f"since {back}", windows=lambda upper, since: (Window(upper - back, upper),), **how
    )
    try:
        return await Reconciliation(
            served, pool, worker.gateway, worker.court, asked, serve=worker.serve_once
        ).run_once()
    finally:
        await worker.gateway.aclose()


def about(event: Obj) -> str:
    """The id of the object that an event is about."""
    return str(msgspec.json.decode(event["data"]["object"])["id"])


def database_of(settings: Settings) -> str:
    return settings.database_dsn().rpartition("/")[2].partition("?")[0]


@asynccontextmanager
async def maintained(servers: EmbeddedServers, name: str) -> AsyncIterator[str]:
    """One more empty database beside the test's own."""
    conn = await asyncpg.connect(database_named(servers, "postgres"))
    await conn.execute(f"create database {name} template finalsale strategy file_copy")
    try:
        yield database_named(servers, name)
    finally:
        await conn.execute(f"drop database if exists {name} with (force)")
        await conn.close()


async def by_webhook(
    settings: Settings, pool: Pool, sandbox: Sandbox, *, but: Callable[[Obj], bool] = lambda event: False
) -> None:
    """Everything the sandbox has an event of is delivered, some aside, judged and looked up."""
    served = settings.model_copy(update={"stripe_api_base": sandbox.url})
    worker = WorkerProcess(served)
    worker.court = Court(policy=POLICY, refunds="review")
    worker.use(pool)
    rows = [read_event(snapshot_body(event), served.mode) for event in sandbox.books.all("event") if not but(event)]
    async with pool.acquire() as conn:
        await store_rows(conn, rows)
        # deliveries of two days, seen from today: Stripe's clock and ours are one here
        await conn.execute("update inbox set received_at = created_at")
    for _ in range(4):
        await worker.serve_once()
    await worker.gateway.aclose()


async def decisions(pool: Pool) -> list[tuple[Any, ...]]:
    """The decisions in force, without the moment they were written."""
    rows = await pool.fetch(
        "select distinct on (subject) subject, verdict, rule, body from decisions order by subject, revision desc"
    )
    return [tuple(row) for row in rows]


# before the first night --------------------------------------------------------------------------------------------------


async def test_a_dry_run_over_an_unknown_account_shows_its_duplicates_and_changes_nothing(
    settings: Settings, pool: Pool
) -> None:
    async with Sandbox() as stripe:
        _, second = await double_click(stripe)
        calls = len(stripe.books.calls)
        report = await run(settings, pool, stripe, dry_run=True)
        assert (report.drift, report.imported["charge"], report.unread_total) == (0, 2, 0)
        assert report.to_return == {"usd": 2900}
        (found,) = [c for c in report.consequences if c.verdict == "refund"]
        assert (found.subject, found.amount, found.rule) == (second, Money(2900, "usd"), "D3")
        assert report.exit == 1
        for table in ("objects", "decisions", "actions", "entries", "notices", "alerts", "wakeups", "lookups", "inbox"):
            assert await pool.fetchval(f"select count(*) from {table}") == 0, table
        assert len(stripe.books.calls) == calls


async def test_a_run_takes_an_unknown_account_in_and_the_next_one_is_clean(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        _, second = await double_click(stripe)
        report = await run(settings, pool, stripe)
        assert (report.drift, report.unread_total, report.unhealed) == (0, 0, 0)
        assert await pool.fetchval("select verdict from decisions where subject = $1", second) == "refund"
        again = await run(settings, pool, stripe)
        assert (again.drift, again.found, again.imported) == (0, {}, {})


# what a night finds ------------------------------------------------------------------------------------------------------


async def test_a_night_after_which_everything_arrived_finds_nothing(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        await double_click(stripe)
        await by_webhook(settings, pool, stripe)
        report = await run(settings, pool, stripe)
        assert (report.found, report.imported, report.unread_total) == ({}, {}, 0)
        assert all(row.residual_minor == 0 for row in report.money)


async def test_a_duplicate_that_no_webhook_told_of_is_decided_as_if_one_had(
    settings: Settings, pool: Pool, servers: EmbeddedServers
) -> None:
    async with Sandbox() as stripe:
        first, second = await double_click(stripe)
        later = [
            o["id"]
            for kind in ("charge", "payment_intent", "invoice", "subscription")
            for o in list(stripe.books.all(kind))[1:]
        ]
        heard_of = stripe.books.all("event")
        assert any(about(event) in later for event in heard_of)
        await by_webhook(
            settings, pool, stripe, but=lambda event: about(event) in later or "invoice_payment" in event["type"]
        )
        assert not [d for d in await decisions(pool) if d[0] == second]
        report = await run(settings, pool, stripe)
        healed = await decisions(pool)
        assert report.found["missing_here"] >= len(later)
        assert {f.object for f in report.findings if f.what == "missing_here"} >= set(later)
        assert all("never arrived" in f.cause for f in report.findings)
        assert (report.unhealed, report.healed) == (0, sum(report.found.values()))
    await pool.execute("truncate inbox")
    name = "heard_" + database_of(settings)
    async with maintained(servers, name) as url:
        other = await connect_pool(url, role="test")
        twin = settings.model_copy(update={"database_url": SecretStr(url)})
        async with Sandbox() as again:
            assert await double_click(again) == (first, second)
            await by_webhook(twin, other, again)
            assert await decisions(other) == healed
        other.terminate()


async def test_an_amount_that_was_altered_in_the_books_is_found_and_healed(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        first, _ = await double_click(stripe)
        await by_webhook(settings, pool, stripe)
        fact = decode(await pool.fetchval("select body from objects where id = $1", first))
        wrong = msgspec.structs.replace(fact, amount_minor=9900, captured_minor=9900)  # type: ignore[call-arg]  # a charge
        await pool.execute(
            "update objects set body = $2, digest = $3, moved_minor = 9900 where id = $1",
            first,
            encode(wrong),
            digest(wrong),
        )
        report = await run(settings, pool, stripe, dry_run=True)
        (found,) = [f for f in report.findings if f.what == "different"]
        assert (found.object, {d.field: (d.here, d.at_stripe) for d in found.differences}["amount"]) == (
            first,
            ("9900", "2900"),
        )
        (residual,) = report.residuals
        assert (residual.object, residual.minor, residual.explained) == (first, 2900 - 9900, True)
        healed = await run(settings, pool, stripe)
        assert (healed.healed, healed.unhealed) == (1, 0)
        assert decode(await pool.fetchval("select body from objects where id = $1", first)).amount_minor == 2900  # type: ignore[union-attr]  # a charge
        assert (await run(settings, pool, stripe)).found == {}


async def test_a_row_that_stripe_does_not_know_is_marked_and_stays(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        first, _ = await double_click(stripe)
        await by_webhook(settings, pool, stripe)
        fact = msgspec.structs.replace(
            decode(await pool.fetchval("select body from objects where id = $1", first)), id="ch_orphan"
        )
        async with transaction(pool) as conn:
            await settle(conn, Court(policy=POLICY, refunds="review"), "test", [fact])
        report = await run(settings, pool, stripe)
        (found,) = report.findings
        assert (found.what, found.object, found.class_) == ("missing_there", "ch_orphan", "never")
        assert await pool.fetchval("select unknown_since is not null from objects where id = 'ch_orphan'")
        assert (await run(settings, pool, stripe)).drift == 0


async def test_a_list_that_hides_what_stripe_has_makes_the_run_incomplete(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        first, _ = await double_click(stripe)
        await by_webhook(settings, pool, stripe)
        stripe.books._order["charge"] = [key for key in stripe.books._order["charge"] if key[2] != first]
        report = await run(settings, pool, stripe)
        assert (report.result, report.exit) == ("incomplete", 2)
        assert [(u.list, u.what) for u in report.unread] == [("charges", first)]
        assert (
            await pool.fetchval("select kind from alerts where resolved_at is null and severity = 'critical'")
            == "nightly_incomplete"
        )


async def test_a_page_that_never_comes_makes_the_run_incomplete_and_the_next_one_is_complete(
    settings: Settings, pool: Pool
) -> None:
    async with Sandbox() as stripe:
        await double_click(stripe)
        await by_webhook(settings, pool, stripe)
        stripe.configure({"faults": {"rules": [{"kind": "502_before", "path": "/v1/refunds"}]}})
        report = await run(settings, pool, stripe)
        assert (report.result, report.exit) == ("incomplete", 2)
        assert {u.list for u in report.unread} == {"refunds"}
        assert [line.unread > 0 for line in report.certificate if line.list == "refunds"] == [True]
        stripe.configure({"faults": {"rules": []}})
        assert (await run(settings, pool, stripe)).exit == 1  # complete: only the review of the double click waits


async def test_what_changed_after_the_upper_edge_is_left_to_the_webhooks(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        first, _ = await double_click(stripe)
        await by_webhook(settings, pool, stripe)
        made = stripe.books.create_refund(stripe.books.by_id[first], amount=500, reason=None, metadata={})
        report = await run(settings, pool, stripe)
        assert (report.drift, report.in_flight) == (0, 1)
        assert await pool.fetchval("select count(*) from objects where id = $1", made["id"]) == 0


async def test_webhooks_and_a_run_at_the_same_moment_come_to_one_result(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        _, second = await double_click(stripe)
        await by_webhook(settings, pool, stripe, but=lambda event: event["type"].startswith(("charge", "invoice")))
        await asyncio.gather(run(settings, pool, stripe), by_webhook(settings, pool, stripe))
        rows = await pool.fetch("select subject, revision, verdict from decisions where clause = '4.3'")
        assert [tuple(row) for row in rows if row["verdict"] == "refund"] == [(second, 1, "refund")]
        assert await pool.fetchval("select count(*) from actions where kind = 'refund'") == 1


# what must not look clean ------------------------------------------------------------------------------------------------


async def test_the_first_look_of_another_accounts_key_takes_nothing_in_and_is_never_gone_on_with(
    settings: Settings, pool: Pool
) -> None:
    async with Sandbox() as ours:
        await double_click(ours)
        await by_webhook(settings, pool, ours)
    before = await pool.fetch("select id, unknown_since from objects order by id")
    other = settings.model_copy(update={"stripe_api_key": SecretStr("sk_test_another")})
    async with Sandbox(seed=9) as theirs:
        await double_click(theirs)
        with pytest.raises(SettingsInvalid, match="another"):
            await run(other, pool, theirs)
        assert await pool.fetch("select id, unknown_since from objects order by id") == before
        assert await pool.fetchval("select count(*) from found") == 0
        assert await pool.fetchval("select state from runs") == "failed"


async def test_a_link_that_no_telling_can_correct_is_a_persons_and_never_called_healed(
    settings: Settings, pool: Pool
) -> None:
    async with Sandbox() as stripe:
        await double_click(stripe)
        await by_webhook(settings, pool, stripe)
        id_ = await pool.fetchval("select min(id) from objects where kind = 'invoice'")
        fact = decode(await pool.fetchval("select body from objects where id = $1", id_))
        wrong = msgspec.structs.replace(fact, subscription="sub_zzzz")  # type: ignore[call-arg]  # an invoice
        await pool.execute("update objects set body = $2, digest = $3 where id = $1", id_, encode(wrong), digest(wrong))
        for _ in range(2):
            report = await run(settings, pool, stripe)
            assert (report.healed, report.exit) == (0, 1)
            assert [(f.what, f.object) for f in report.findings if f.object == id_] == [("different", id_)]
            assert report.by_class["ask"] >= 1


async def test_a_row_that_claims_the_future_is_told(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        await double_click(stripe)
        await by_webhook(settings, pool, stripe)
        id_ = await pool.fetchval("select min(id) from objects where kind = 'subscription'")
        fact = decode(await pool.fetchval("select body from objects where id = $1", id_))
        wrong = msgspec.structs.replace(fact, status="canceled", as_of=NOW + 400 * DAY)  # type: ignore[call-arg]  # a subscription
        await pool.execute(
            "update objects set body = $2, digest = $3, as_of = $4 where id = $1",
            id_,
            encode(wrong),
            digest(wrong),
            wrong.as_of,
        )
        report = await run(settings, pool, stripe)
        assert report.found["from_the_future"] == 1
        assert report.exit == 1


async def test_an_event_that_has_waited_for_a_day_hides_nothing(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        _, second = await double_click(stripe)
        await by_webhook(settings, pool, stripe, but=lambda event: about(event) == second)
        late = [e for e in stripe.books.all("event") if about(e) == second]
        async with pool.acquire() as conn:
            await store_rows(conn, [read_event(snapshot_body(event), "test") for event in late])
        await pool.execute("update inbox set next_at = now() + interval '3 days', attempts = 3 where state = 'waiting'")
        report = await run(settings, pool, stripe, dry_run=True)
        (found,) = [f for f in report.findings if f.object == second]
        assert (found.what, "could not be worked on" in found.cause) == ("missing_here", True)


async def test_what_could_not_be_settled_makes_the_run_incomplete(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        first, _ = await double_click(stripe)
        await pool.execute(
            "create function no() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;"
            f"create trigger no before insert on objects for each row when (new.id = '{first}') execute function no()"
        )
        report = await run(settings, pool, stripe)
        assert (report.result, report.exit) == ("incomplete", 2)
        assert [(u.list, u.what) for u in report.unread] == [("books", first)]
        assert await pool.fetchval("select state from found where id = $1", first) == "failed"


async def test_a_writer_that_keeps_no_digest_leaves_none_that_lies(settings: Settings, pool: Pool) -> None:
    async with Sandbox() as stripe:
        first, _ = await double_click(stripe)
        await by_webhook(settings, pool, stripe)
        fact = decode(await pool.fetchval("select body from objects where id = $1", first))
        wrong = msgspec.structs.replace(fact, captured_minor=1, as_of=fact.as_of + 1)  # type: ignore[call-arg]  # a charge
        earlier_release = await asyncpg.connect(settings.database_dsn())
        await earlier_release.execute(
            "update objects set body = $2, as_of = $3 where id = $1", first, encode(wrong), wrong.as_of
        )
        await earlier_release.close()
        report = await run(settings, pool, stripe)
        assert (report.found["different"], report.healed, report.unhealed) == (1, 1, 0)
