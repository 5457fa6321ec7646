"""What the doctor looks at, one thing at a time: each trouble is found and has a remedy, and nothing that hangs holds it up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from reconcile.windows import LISTS
from sandbox import Sandbox
from tests.worker.test_doctor import URL, at, make_well, restricted, states
from tests.worker.test_grants import As, by, session  # noqa: F401 - `by` is a fixture
from worker import cli_doctor, grants, recipe
from worker.db import Pool
from worker.doctor import END_S, examine
from worker.doctor_books import migrated_indexes
from worker.doctor_place import contradictions, known_variables, redis_judged, strangers, try_routes
from worker.endpoint import Check, State
from worker.grants import CONSOLE
from worker.settings import Settings

pytestmark = pytest.mark.usefixtures("durable")


async def checks_of(settings: Settings) -> dict[str, Check]:
    """By name, without Stripe: what is not about it needs none."""
    return {check.name: check for check in await examine(settings.model_copy(update={"stripe_api_key": None}))}


# nothing holds it up -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def silent() -> AsyncIterator[int]:
    """A port that takes every connection and never says a word."""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_servers_that_take_connections_and_never_answer_are_told_within_seconds(settings: Settings) -> None:
    async with silent() as port:
        deaf = restricted(settings).model_copy(
            update={
                "database_url": SecretStr(f"postgresql://postgres@127.0.0.1:{port}/finalsale"),
                "redis_url": SecretStr(f"redis://127.0.0.1:{port}"),
                "stripe_api_base": f"http://127.0.0.1:{port}",
            }
        )
        began = time.monotonic()
        found = states(await examine(deaf))
        assert time.monotonic() - began < END_S + 2
    assert (found["database"], found["Redis"], found["Stripe key"]) == (State.FAIL, State.WARN, State.FAIL)
    for unseen in ("migrations", "privileges", "indexes", "workers", "audit", "operators", "clock", "Stripe writes"):
        assert found[unseen] is not State.OK


async def test_a_table_that_somebody_has_locked_is_told_and_stops_no_other_check(
    settings: Settings, pool: Pool
) -> None:
    await make_well(pool)
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("lock table runs in access exclusive mode")
        began = time.monotonic()
        found = await checks_of(settings)
        assert time.monotonic() - began < END_S + 2
    assert found["nightly run"].state is State.FAIL
    assert found["workers"].state is State.OK


# variables ---------------------------------------------------------------------------------------------------------------


def test_a_misspelt_variable_is_told_with_the_one_that_was_meant() -> None:
    found = strangers(["FINALSALE_REFUND", "STRIPE_WEBHOOK_SECRETS", "STRIPE_DEVICE_NAME", "HOME", "FINALSALE_POLICY"])
    assert found == {"FINALSALE_REFUND": "FINALSALE_REFUNDS", "STRIPE_WEBHOOK_SECRETS": "STRIPE_WEBHOOK_SECRET"}
    assert strangers(["FINALSALE_XYZZY_PLUGH"]) == {"FINALSALE_XYZZY_PLUGH": ""}
    assert strangers(known_variables()) == {}


LIVE = SecretStr("rk_live_x")


@pytest.mark.parametrize(
    ("changes", "names", "state"),
    [
        ({"refunds": "auto", "stripe_api_key": None}, "STRIPE_API_KEY", State.FAIL),
        ({"stripe_api_key": LIVE, "stripe_api_base": "https://elsewhere.example"}, "STRIPE_API_BASE", State.FAIL),
        ({"stripe_api_key": LIVE, "test_clocks": True}, "FINALSALE_TEST_CLOCKS", State.WARN),
        ({"stripe_api_key": LIVE, "public_url": "http://a.example"}, "FINALSALE_PUBLIC_URL", State.FAIL),
        ({"app_webhook_secret": SecretStr("x")}, "FINALSALE_APP_WEBHOOK_URL", State.WARN),
        ({"alert_private_hosts": "127.0.0.1"}, "FINALSALE_ALERT_URLS", State.WARN),
    ],
)
def test_settings_that_contradict_each_other_are_told(changes: dict[str, Any], names: str, state: State) -> None:
    (found,) = contradictions(Settings().model_copy(update=changes))
    assert (found.state, names in found.detail, bool(found.remedy)) == (state, True, True)


def test_settings_that_go_together_are_well() -> None:
    assert contradictions(Settings().model_copy(update={"stripe_api_key": LIVE, "refunds": "auto"})) == []


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"console": "off", "bind": "0.0.0.0"}, State.OK),
        ({"bind": "127.0.0.1"}, State.OK),
        ({"bind": "0.0.0.0"}, State.WARN),
        ({"bind": "0.0.0.0", "stripe_api_key": LIVE}, State.FAIL),
        ({"console_url": "https://ops.example"}, State.OK),
        ({"console_url": "http://ops.example"}, State.FAIL),
    ],
)
async def test_a_console_that_people_reach_without_tls_is_told(changes: dict[str, Any], state: State) -> None:
    found = await examine(
        Settings().model_copy(update={"database_url": SecretStr("postgresql://127.0.0.1:9/x"), **changes})
    )
    assert states(found)["console address"] is state


# Redis -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "version", "policy", "told"),
    [
        ("redis://:secret@redis.example", "7.2.4", "noeviction", ""),
        ("unix:///run/redis.sock", "6.2.0", "noeviction", ""),
        ("redis://127.0.0.1", "8.0.0", "noeviction", ""),
        ("redis://:secret@redis.example", "6.0.16", "noeviction", "too old"),
        ("redis://:secret@redis.example", "7.2.4", "allkeys-lru", "forgets keys"),
        ("redis://redis.example", "7.2.4", "noeviction", "no password"),
    ],
)
def test_a_redis_that_could_cost_time_is_told(url: str, version: str, policy: str, told: str) -> None:
    (found,) = redis_judged(url, {"redis_version": version}, {"maxmemory_policy": policy})
    assert (found.state is State.OK, told in found.detail) == (not told, True)


# the database ------------------------------------------------------------------------------------------------------------


async def test_an_index_that_is_missing_or_not_valid_is_told_with_the_statement_that_makes_it(
    settings: Settings, pool: Pool
) -> None:
    names = {row["name"] for row in await pool.fetch("select relname::text as name from pg_class where relkind = 'i'")}
    assert migrated_indexes().keys() <= names
    await pool.execute("drop index inbox_received")
    await pool.execute("update pg_index set indisvalid = false where indexrelid = 'lots_customer'::regclass")
    found = [
        check
        for check in await examine(settings.model_copy(update={"stripe_api_key": None}))
        if check.name == "indexes"
    ]
    assert [check.state for check in found] == [State.FAIL, State.FAIL]
    remedies = " ".join(check.remedy for check in found)
    assert "create index concurrently inbox_received on inbox (received_at)" in remedies
    assert "drop index concurrently lots_customer" in remedies


async def test_a_role_that_may_do_too_much_is_told_in_live_mode_and_the_grants_cure_it(
    settings: Settings,
    pool: Pool,
    by: As,  # noqa: F811
) -> None:
    live = {"stripe_api_key": LIVE, "stripe_api_base": "http://127.0.0.1:9"}
    assert (await checks_of(settings))["privileges"].state is State.OK

    async def judged(role: str) -> list[Check]:
        return [c for c in await examine(by(role).model_copy(update=live)) if c.name == "privileges"]

    (superuser,) = await judged("postgres")
    assert superuser.state is State.WARN
    assert "superuser" in superuser.detail
    assert "--grants" in superuser.remedy
    (owner,) = await judged(grants.OWNER)
    assert "owns the tables" in owner.detail
    assert [c.state for c in await judged(CONSOLE)] == [State.OK]
    await pool.execute(f"grant delete on decisions to {CONSOLE}")
    (rewriter,) = await judged(CONSOLE)
    assert "decisions" in rewriter.detail


async def test_a_superuser_at_work_beside_us_is_told_too(settings: Settings, pool: Pool, by: As) -> None:  # noqa: F811
    async with session(settings) as conn:
        await conn.execute("set application_name = 'finalsale worker'")
        live = by(CONSOLE).model_copy(update={"stripe_api_key": LIVE, "stripe_api_base": "http://127.0.0.1:9"})
        (found,) = [c for c in await examine(live) if c.name == "privileges"]
    assert (found.state, "postgres (worker)" in found.detail) == (State.WARN, True)


async def test_the_consoles_role_is_enough_to_look_at_everything(settings: Settings, pool: Pool, by: As) -> None:  # noqa: F811
    await make_well(pool)
    assert [c for c in (await checks_of(by(CONSOLE))).values() if "may not look" in c.detail] == []


async def test_without_a_worker_the_work_is_not_called_well(settings: Settings, pool: Pool) -> None:
    assert (await checks_of(settings))["workers"].state is State.FAIL
    await make_well(pool)
    assert (await checks_of(settings))["workers"].state is State.OK
    await pool.execute("update workers set seen_at = now() - interval '5 minutes'")
    assert (await checks_of(settings))["workers"].state is State.FAIL


async def test_a_console_that_nobody_can_sign_in_to_is_told(settings: Settings, pool: Pool) -> None:
    assert "Nobody can sign in" in (await checks_of(settings))["operators"].detail
    await make_well(pool)
    assert (await checks_of(settings))["operators"].state is State.OK
    await pool.execute("update operator_tokens set expires_at = now()")
    assert (await checks_of(settings))["operators"].state is State.WARN


async def test_payloads_that_outlive_their_time_are_told(settings: Settings, pool: Pool) -> None:
    await make_well(pool)
    assert (await checks_of(settings))["retention"].state is State.OK
    await pool.execute("update inbox set received_at = now() - interval '100 days'")
    assert (await checks_of(settings))["retention"].state is State.WARN
    await pool.execute("insert into retention (pruned_to) values (now() - interval '90 days')")
    assert (await checks_of(settings))["retention"].state is State.OK


async def test_rows_that_nobody_chains_are_told(settings: Settings, pool: Pool) -> None:
    await make_well(pool)
    assert (await checks_of(settings))["audit"].state is State.OK
    await pool.execute("alter table audit_queue disable trigger all")
    await pool.execute("insert into audit_queue (source, realm, row_id, content) values ('decisions', 'test', 'x', '')")
    await pool.execute("update audit_queue set queued_at = now() - interval '2 minutes'")
    assert (await checks_of(settings))["audit"].state is State.WARN


# Stripe ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("refunds", "state"), [("review", State.WARN), ("auto", State.FAIL)])
async def test_a_key_that_may_not_refund_is_told_and_nothing_was_written_to_find_out(
    settings: Settings, refunds: str, state: State
) -> None:
    async with Sandbox(webhook_url=URL) as stripe, at(stripe, restricted(settings), refunds=refunds) as (_, deployed):
        reading = deployed.model_copy(update={"stripe_api_key": SecretStr("rk_test_read0000")})
        before = len(list(stripe.books.all("event")))
        found = {check.name: check for check in await examine(reading)}["Stripe writes"]
        assert found.state is state
        assert "refunds" in found.remedy
        assert states(await examine(deployed))["Stripe writes"] is State.OK
        assert len(list(stripe.books.all("event"))) == before
        assert all(call["status"] >= 400 for call in stripe.books.calls)
        assert [list(stripe.books.all(kind)) for kind in ("refund", "dispute")] == [[], []]


def test_the_recipe_has_a_row_for_every_list_that_a_run_reads() -> None:
    named = {path for row in recipe.RECIPE for path in row.endpoints}
    assert {listing.path for listing in LISTS.values()} <= named
    assert {row.name for row in recipe.RECIPE if row.watch == recipe.WRITE} == set()
    assert {row.name for row in recipe.RECIPE if row.work == recipe.WRITE} == {
        "Charges and Refunds",
        "Customers",
        "Subscriptions",
        "Disputes",
    }


# what is only printed, and the test message -------------------------------------------------------------------------------


def test_the_recipe_and_the_grants_are_printed_without_a_deployment(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_doctor.doctor(recipe_=True, grants_=True, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["grants"] == grants.statements()
    assert {row["name"] for row in told["recipe"]} >= {"Events", "Charges and Refunds"}
    assert cli_doctor.doctor(grants_=True) == 0
    assert capsys.readouterr().out == grants.script()


async def test_a_test_message_goes_over_each_route_and_a_dead_one_is_told(settings: Settings) -> None:
    heard: list[Any] = []

    async def take(request: web.Request) -> web.Response:
        heard.append(await request.json())
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.addresses
    port = runner.addresses[0][1]
    routes = settings.model_copy(
        update={
            "alert_urls": SecretStr(f"json://127.0.0.1:{port} json://127.0.0.1:9"),
            "alert_private_hosts": "127.0.0.1",
        }
    )
    found = await try_routes(routes)
    await runner.cleanup()
    assert sorted(check.state for check in found) == [State.FAIL, State.OK]
    assert len(heard) == 1
    assert "Test message" in heard[0]["title"]
    (nobody,) = await try_routes(settings)
    assert nobody.state is State.FAIL
