"""Gaps at the endpoint are found, told, and repaired without taking anything away; a deployment's trouble has a remedy."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from handlers import HANDLERS
from handlers.events import EVENT_GENERATION_FAILED, Gap, Hint, parse_event
from reconcile.findings import Class
from reconcile.windows import LISTS, Window
from sandbox import Sandbox
from sandbox.health import tell_failures
from tests.stripe_sender import WEBHOOK_SECRET, event, thin_event
from tests.worker.books import court
from worker import cli_doctor, operators
from worker.db import Pool, connection, transaction
from worker.doctor import examine, exit_code
from worker.drain import drain
from worker.endpoint import CannotFix, Check, State, check_endpoint, endpoint_findings, fix_endpoint, public_url
from worker.endpoint import reads_version as reads
from worker.gaps import close_gaps, name_gaps, open_gaps
from worker.inbox import read_event, store_rows
from worker.operators import Role
from worker.settings import Settings
from worker.stripe_gateway import API_VERSION, StripeGateway
from worker.web import Listening

pytestmark = pytest.mark.usefixtures("durable")

URL = "http://127.0.0.1:9/stripe/webhook"
DAY = 86_400
TOLD_AT = 1_795_341_600  # 2026-11-22T10:00:00Z, when `health` was made


@asynccontextmanager
async def at(stripe: Sandbox, settings: Settings, **changes: Any) -> AsyncIterator[tuple[StripeGateway, Settings]]:
    """A gateway to the sandbox, and the settings of a deployment that uses it."""
    deployed = settings.model_copy(update={"stripe_api_base": stripe.url, **changes})
    gateway = StripeGateway(deployed)
    try:
        yield gateway, deployed
    finally:
        await gateway.aclose()


def own(stripe: Sandbox) -> dict[str, Any]:
    """The endpoint of the account, where it has just one."""
    (endpoint,) = stripe.books.all("webhook_endpoint")
    return endpoint


def states(checks: list[Check]) -> dict[str, State]:
    return {check.name: check.state for check in checks}


# gaps that Stripe tells of -----------------------------------------------------------------------------------------------


def health(**fields: Any) -> bytes:
    """The event about an event that could not be made, as it stands at docs.stripe.com/webhooks/handle-irrecoverable-events."""
    return thin_event(
        type=EVENT_GENERATION_FAILED, created="2026-11-22T10:00:00.000Z", **{"related_object": None, **fields}
    )


def test_the_event_about_a_lost_event_names_the_time_and_the_object_where_it_tells_them() -> None:
    page = "https://dashboard.stripe.com/payment_intents/pi_1"
    told = parse_event(
        health(
            data={
                "alert_id": "halert_1",
                "impact": {
                    "event_type": "payment_intent.succeeded",
                    "related_object": {"id": "pi_1", "type": "payment_intent", "url": page},
                },
                "resolved_at": "2026-11-22T09:00:00.500Z",
                "summary": "We have failed to create a notification for your Stripe account.",
            }
        )
    )
    until = TOLD_AT - 3600 + 1
    assert (told.gap, told.hint) == (Gap(until - 3 * DAY, until), Hint("payment_intent", "pi_1", ""))


def test_the_event_about_a_lost_event_uses_the_beginning_where_it_is_told() -> None:
    data = {"started_at": "2026-11-22T08:00:00Z", "resolved_at": "2026-11-22T09:00:00Z"}
    assert parse_event(health(data=data)).gap == Gap(TOLD_AT - 7200, TOLD_AT - 3600 + 1)


@pytest.mark.parametrize(
    "data",
    [None, {}, [], "x", {"impact": 1}, {"resolved_at": "yesterday"}, {"started_at": "2027-01-01T00:00:00Z"},
     {"impact": {"related_object": {"id": "../x", "type": "charge"}}}, {"impact": {"related_object": {"id": "p", "type": "price"}}}],
)  # fmt: skip
def test_a_lost_event_of_which_nothing_can_be_read_is_a_gap_of_three_days_before_it_was_told(data: Any) -> None:
    told = parse_event(health(data=data))
    assert (told.gap, told.hint) == (Gap(TOLD_AT + 1 - 3 * DAY, TOLD_AT + 1), None)


def test_other_thin_events_are_no_gap() -> None:
    assert parse_event(thin_event()).gap is None


async def test_a_change_whose_event_stripe_could_not_make_leads_to_its_time_and_its_object(
    settings: Settings, pool: Pool, web: Listening
) -> None:
    """From the change nobody heard of, over the delivered notice, to what a run must read."""
    url = f"http://127.0.0.1:{web.port}/stripe/webhook"
    async with (
        Sandbox(webhook_url=url, webhook_secrets=[WEBHOOK_SECRET]) as stripe,
        at(stripe, settings) as (gateway, _),
    ):
        before = int(time.time())
        stripe.configure({"generate_events": False})
        customer = stripe.books.new_customer(email="a@example.com", metadata={}, fingerprint="card1")
        stripe.configure({"generate_events": True})
        notices = tell_failures(stripe.books, stripe.webhooks, before - 1, int(time.time()) + 1)
        assert await stripe.webhooks.flush(5) == 0
        while await pool.fetchval("select count(*) from inbox") < len(notices):
            await asyncio.sleep(0.01)

        await drain(pool, court())
        assert await pool.fetchval("select array_agg(distinct state) from inbox") == ["done"]
        rows = await pool.fetch("select realm, state, object from gaps")
        assert {tuple(row) for row in rows} == {("test", "open", None)}
        assert len(rows) == len(notices)

        assert await name_gaps(pool, gateway, "test") == len(notices)
        wanted = {(row["kind"], row["id"], row["state"]) for row in await pool.fetch("select * from lookups")}
        assert ("customer", customer["id"], "waiting") in wanted
        assert await name_gaps(pool, gateway, "test") == 0


async def drained_gap(pool: Pool) -> None:
    async with connection(pool) as conn:
        row = read_event(health(), "test")
        await store_rows(conn, [row])
    await drain(pool, court())


async def test_a_gap_is_open_until_a_run_has_read_all_of_its_time(pool: Pool) -> None:
    await drained_gap(pool)
    end = int(time.time()) - 3600
    begin = end - 3 * DAY
    await pool.execute("update gaps set since = to_timestamp($1), until = to_timestamp($2)", begin, end)
    async with connection(pool) as conn:
        (gap,) = await open_gaps(conn, "test")
        assert (gap.window, gap.object) == (Window(begin, end), None)
        assert await open_gaps(conn, "live") == []
        assert await close_gaps(conn, "live", [Window(begin, end)]) == 0
        assert await close_gaps(conn, "test", []) == 0
        assert await close_gaps(conn, "test", [Window(begin, end - 1)]) == 0
        assert await close_gaps(conn, "test", [Window(begin + 1, end)]) == 0
        assert await close_gaps(conn, "test", [Window(begin, end - DAY), Window(end - DAY, end + 5)]) == 1
        assert await open_gaps(conn, "test") == []


async def test_a_gap_that_reaches_into_the_last_minute_waits_until_its_objects_can_have_come(pool: Pool) -> None:
    await drained_gap(pool)
    await pool.execute("update gaps set until = now() - interval '30 seconds'")
    async with connection(pool) as conn:
        assert await open_gaps(conn, "test") == []
    await pool.execute("update gaps set until = now() - interval '61 seconds'")
    async with connection(pool) as conn:
        assert len(await open_gaps(conn, "test")) == 1


async def test_a_gap_whose_object_stripe_does_not_tell_stays_a_gap_by_time(settings: Settings, pool: Pool) -> None:
    await drained_gap(pool)
    async with Sandbox() as stripe, at(stripe, settings) as (gateway, _):
        assert await name_gaps(pool, gateway, "test") == 0
    assert await pool.fetchval("select state from gaps") == "open"


async def test_a_lost_event_about_an_object_that_we_do_not_read_asks_for_nothing(
    settings: Settings, pool: Pool
) -> None:
    async with Sandbox() as stripe, at(stripe, settings) as (gateway, _):
        told = json.loads(health(data={"impact": {"related_object": {"id": "price_1", "type": "price"}}}))
        stripe.books.v2_events[told["id"]] = told
        await drained_gap(pool)
        assert await name_gaps(pool, gateway, "test") == 0
    assert await pool.fetchval("select count(*) from lookups") == 0


# the endpoint ------------------------------------------------------------------------------------------------------------


async def test_an_endpoint_that_sends_everything_in_our_version_is_well(settings: Settings) -> None:
    async with Sandbox(webhook_url=URL) as stripe, at(stripe, settings, public_url=URL) as (gateway, deployed):
        checks = await check_endpoint(gateway, deployed)
        assert {check.state for check in checks} == {State.OK}
        assert endpoint_findings(checks) == []
        assert await fix_endpoint(gateway, deployed, None) == []


async def test_a_disabled_endpoint_is_found_and_enabled(settings: Settings) -> None:
    async with Sandbox(webhook_url=URL) as stripe, at(stripe, settings, public_url=URL) as (gateway, deployed):
        own(stripe)["status"] = "disabled"
        checks = await check_endpoint(gateway, deployed)
        assert states(checks)["endpoint enabled"] is State.FAIL
        (finding,) = endpoint_findings(checks)
        assert (finding.class_, "disabled" in finding.sentence) == (Class.ASK, True)
        assert await fix_endpoint(gateway, deployed, None) == [f"{own(stripe)['id']} is enabled."]
        assert own(stripe)["status"] == "enabled"
        assert exit_code(await check_endpoint(gateway, deployed)) == 0


async def test_missing_types_are_named_and_added_and_nothing_of_the_merchants_is_removed(settings: Settings) -> None:
    async with Sandbox(webhook_url=URL) as stripe, at(stripe, settings, public_url=URL) as (gateway, deployed):
        own(stripe)["enabled_events"] = [
            "payout.paid",
            *(HANDLERS.keys() - {"charge.dispute.created", "refund.failed"}),
        ]
        events = {check.name: check for check in await check_endpoint(gateway, deployed)}["endpoint events"]
        assert events.state is State.FAIL
        assert "2 of" in events.detail
        assert "charge.dispute.created, refund.failed" in events.detail
        await fix_endpoint(gateway, deployed, None)
        assert set(own(stripe)["enabled_events"]) == {"payout.paid", *HANDLERS}


@pytest.mark.parametrize(
    ("version", "state"),
    [
        (API_VERSION, State.OK),
        ("2022-11-15", State.OK),
        ("2025-02-24.acacia", State.OK),
        ("2026-12-16.endive", State.OK),
        ("2027-03-31.fennel", State.FAIL),
        (None, State.WARN),
    ],
)
async def test_an_endpoint_of_a_version_that_we_do_not_read_is_found(
    settings: Settings, version: str | None, state: State
) -> None:
    async with Sandbox(webhook_url=URL) as stripe, at(stripe, settings) as (gateway, deployed):
        own(stripe)["api_version"] = version
        checks = await check_endpoint(gateway, deployed)
        (found,) = [check for check in checks if check.name == "endpoint API version"]
        assert found.state is state
        assert ("both signing secrets" in found.remedy) == (state is not State.OK)
        assert [f.class_ for f in endpoint_findings(checks)] == {"ok": [], "warn": [Class.NEVER], "fail": [Class.ASK]}[
            state
        ]


def test_what_is_no_version_is_not_read() -> None:
    assert not any(reads(version) for version in ("", "latest", "2026", ".endive", "2026-1-1.endive"))


async def test_while_an_endpoint_is_replaced_the_two_count_together(settings: Settings) -> None:
    async with Sandbox(webhook_url=URL) as stripe, at(stripe, settings) as (gateway, deployed):
        own(stripe)["enabled_events"] = ["charge.succeeded"]
        second = stripe.books.new_webhook_endpoint(URL, sorted(HANDLERS), api_version=API_VERSION)
        assert exit_code(await check_endpoint(gateway, deployed)) == 0
        second["status"] = "disabled"
        assert states(await check_endpoint(gateway, deployed))["endpoint events"] is State.FAIL


async def test_endpoints_of_others_are_left_alone_and_ours_is_created_with_its_secret_shown_once(
    settings: Settings,
) -> None:
    shown: list[str] = []
    async with Sandbox(webhook_url="http://127.0.0.1:9/crm") as stripe:
        stripe.books.new_webhook_endpoint("http://127.0.0.1:9/mail", ["*"])
        async with at(stripe, settings, public_url="https://pay.example.com/") as (gateway, deployed):
            (check,) = await check_endpoint(gateway, deployed)
            assert check.state is State.FAIL
            assert "https://pay.example.com/stripe/webhook" in check.detail
            with pytest.raises(CannotFix, match="terminal"):
                await fix_endpoint(gateway, deployed, None)
            assert len(list(stripe.books.all("webhook_endpoint"))) == 2
            told = await fix_endpoint(gateway, deployed, shown.append)
            assert exit_code([c for c in await check_endpoint(gateway, deployed) if c.name != "health events"]) == 0
        made = next(e for e in stripe.books.all("webhook_endpoint") if "pay.example.com" in e["url"])
        assert (made["api_version"], set(made["enabled_events"])) == (API_VERSION, set(HANDLERS))
        assert shown == stripe.books.secrets[made["id"]]
        assert shown[0] not in " ".join(told)


async def test_without_a_url_nothing_is_created(settings: Settings) -> None:
    async with Sandbox() as stripe, at(stripe, settings) as (gateway, deployed):
        with pytest.raises(CannotFix, match="FINALSALE_PUBLIC_URL"):
            await fix_endpoint(gateway, deployed, print)


async def test_a_creation_whose_answer_is_lost_makes_one_endpoint_and_shows_its_secret(settings: Settings) -> None:
    shown: list[str] = []
    async with Sandbox() as stripe, at(stripe, settings, public_url="https://pay.example.com") as (gateway, deployed):
        rule = {"kind": "502_after", "rate": 1.0, "path": "/v1/webhook_endpoints", "method": "POST", "times": 1}
        stripe.configure({"faults": {"rules": [rule]}})
        await fix_endpoint(gateway, deployed, shown.append)
        assert shown == stripe.books.secrets[own(stripe)["id"]]
        assert [call["replayed"] for call in stripe.books.calls] == [False, True]


async def test_several_urls_that_could_be_ours_are_told_and_none_is_changed(settings: Settings) -> None:
    async with Sandbox(webhook_url=URL) as stripe:
        stripe.books.new_webhook_endpoint("https://staging.example.com/stripe/webhook/", ["charge.succeeded"])
        async with at(stripe, settings) as (gateway, deployed):
            assert states(await check_endpoint(gateway, deployed))["endpoint"] is State.WARN
            with pytest.raises(CannotFix, match="FINALSALE_PUBLIC_URL"):
                await fix_endpoint(gateway, deployed, None)
        async with at(stripe, settings, public_url="https://STAGING.example.com/stripe/webhook") as (gateway, deployed):
            await fix_endpoint(gateway, deployed, None)
        events = [set(e["enabled_events"]) for e in stripe.books.all("webhook_endpoint")]
        assert sorted(map(len, events)) == sorted([1, len(HANDLERS)])


async def test_a_key_that_may_only_read_repairs_nothing_and_says_so(settings: Settings) -> None:
    async with Sandbox(webhook_url=URL) as stripe:
        own(stripe)["status"] = "disabled"
        async with at(stripe, settings, public_url=URL, stripe_api_key=SecretStr("rk_test_read0000")) as (
            gateway,
            deployed,
        ):
            with pytest.raises(CannotFix, match="write access"):
                await fix_endpoint(gateway, deployed, None)
        assert own(stripe)["status"] == "disabled"


async def test_endpoints_that_the_key_may_not_read_are_no_clean_bill(settings: Settings) -> None:
    async with Sandbox(webhook_url=URL) as stripe:
        stripe.configure({"denied": ["/v1/webhook_endpoints"]})
        async with at(stripe, settings, stripe_api_key=SecretStr("rk_test_x")) as (gateway, deployed):
            (check,) = await check_endpoint(gateway, deployed)
        assert check.state is State.WARN
        assert "webhook endpoints" in check.remedy


async def test_an_endpoint_without_health_events_is_told_how_to_hear_them(settings: Settings) -> None:
    async with Sandbox(webhook_url=URL) as stripe, at(stripe, settings) as (gateway, deployed):
        for heard in ([], ["v2.core.event_destination.ping"]):
            stripe.configure({"webhook": {"v2_events": heard}})
            (check,) = [c for c in await check_endpoint(gateway, deployed) if c.state is not State.OK]
            assert (check.name, check.state) == ("health events", State.WARN)
            assert EVENT_GENERATION_FAILED in check.remedy


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (None, None),
        ("", None),
        ("https://a.example", "https://a.example/stripe/webhook"),
        ("https://a.example/", "https://a.example/stripe/webhook"),
        ("https://a.example/hooks/stripe", "https://a.example/hooks/stripe"),
    ],
)
def test_a_bare_host_stands_for_the_usual_path(given: str | None, url: str | None) -> None:
    assert public_url(Settings(public_url=given)) == url


# the whole deployment ----------------------------------------------------------------------------------------------------


async def make_well(pool: Pool) -> None:
    """What a deployment has after its first night."""
    await pool.execute(
        """insert into runs (id, realm, kind, dry_run, asked, plan, state, exit_code, finished_at)
           values ('run_1', 'test', 'nightly', false, 'night of 2026-11-22', '', 'done', 0, now())"""
    )
    await pool.execute("insert into workers (id, role) values (gen_random_uuid(), 'worker')")
    async with transaction(pool) as conn:
        await operators.add(conn, "Ada", Role.ADMIN, by="Ada")
    async with connection(pool) as conn:
        await store_rows(conn, [read_event(event(), "test")])


def restricted(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "stripe_api_key": SecretStr("rk_test_x"),
            "stripe_webhook_secret": SecretStr("whsec_a,whsec_b"),
            "alert_urls": SecretStr("json://127.0.0.1:9"),
            "alert_private_hosts": "127.0.0.1",
        }
    )


async def test_a_deployment_with_everything_it_needs_is_well(settings: Settings, pool: Pool) -> None:
    await make_well(pool)
    async with Sandbox(webhook_url=URL) as stripe, at(stripe, restricted(settings)) as (_, deployed):
        checks = await examine(deployed)
    assert [check for check in checks if check.state is not State.OK] == []
    assert exit_code(checks) == 0


async def test_a_list_that_the_key_may_not_read_is_named(settings: Settings, pool: Pool) -> None:
    await make_well(pool)
    async with Sandbox(webhook_url=URL) as stripe, at(stripe, restricted(settings)) as (_, deployed):
        stripe.configure({"denied": ["/v1/events", "/v1/radar/early_fraud_warnings"]})
        wrong = {check.name: check.remedy for check in await examine(deployed) if check.state is not State.OK}
    assert wrong == {
        "list of events": "Give the key read access to events.",
        "list of early fraud warnings": "Give the key read access to early fraud warnings.",
    }


async def test_without_a_database_what_lies_in_it_is_not_called_well(settings: Settings, tmp_path: Path) -> None:
    away = SecretStr("postgresql://nobody@127.0.0.1:9/none")
    async with Sandbox(webhook_url=URL) as stripe, at(stripe, restricted(settings), database_url=away) as (_, deployed):
        found = states(await examine(deployed))
    assert found["database"] is State.FAIL
    unseen = ("migrations", "API version of events", "nightly run", "events never made")
    assert {found[name] for name in unseen} == {State.WARN}


async def test_without_a_key_nothing_of_stripes_is_called_well(settings: Settings, pool: Pool) -> None:
    found = states(await examine(settings.model_copy(update={"stripe_api_key": None})))
    assert found["Stripe key"] is State.FAIL
    assert {found[name] for name in ("Stripe lists", "clock", "endpoint")} == {State.WARN}


async def test_a_clock_that_makes_every_delivery_too_old_is_found(settings: Settings, pool: Pool) -> None:
    async with Sandbox(webhook_url=URL) as stripe, at(stripe, restricted(settings)) as (_, deployed):
        stripe.configure({"clock": {"set": time.time() - 400}})
        checks = {check.name: check for check in await examine(deployed)}
        assert checks["clock"].state is State.FAIL
        assert "ahead of Stripe's" in checks["clock"].detail
        stripe.configure({"clock": {"set": time.time() + 60}})
        checks = {check.name: check for check in await examine(deployed)}
    assert checks["clock"].state is State.WARN
    assert "behind Stripe's" in checks["clock"].detail


async def test_a_redis_that_is_away_costs_time_only(settings: Settings, pool: Pool) -> None:
    for url in (None, SecretStr("redis://127.0.0.1:9")):
        found = states(await examine(settings.model_copy(update={"redis_url": url, "stripe_api_key": None})))
        assert found["Redis"] is State.WARN


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ("state = 'done'", State.OK),
        ("exit_code = 1", State.WARN),
        ("exit_code = 2", State.FAIL),
        ("state = 'incomplete', exit_code = 2", State.FAIL),
        ("state = 'failed', exit_code = null", State.FAIL),
        ("started_at = now() - interval '27 hours'", State.WARN),
        ("started_at = now() - interval '73 hours'", State.FAIL),
        ("state = 'running'", State.WARN),
        ("dry_run = true", State.WARN),
    ],
)
async def test_the_last_night_is_well_only_if_it_looked_at_everything_lately(
    settings: Settings, pool: Pool, change: str, state: State
) -> None:
    await make_well(pool)
    await pool.execute(f"update runs set {change}")
    assert states(await examine(settings.model_copy(update={"stripe_api_key": None})))["nightly run"] is state


async def test_events_in_a_version_that_we_do_not_read_are_found(settings: Settings, pool: Pool) -> None:
    await make_well(pool)
    async with connection(pool) as conn:
        await store_rows(conn, [read_event(event("evt_9", api_version="2027-03-31.fennel"), "test")])
    checks = {c.name: c for c in await examine(settings.model_copy(update={"stripe_api_key": None}))}
    assert checks["API version of events"].state is State.FAIL
    assert "2027-03-31.fennel" in checks["API version of events"].detail


async def test_an_open_gap_is_told_and_is_a_failure_when_no_run_read_it(settings: Settings, pool: Pool) -> None:
    unconnected = settings.model_copy(update={"stripe_api_key": None})
    await drained_gap(pool)
    assert states(await examine(unconnected))["events never made"] is State.WARN
    await pool.execute("update gaps set told_at = now() - interval '2 days'")
    assert states(await examine(unconnected))["events never made"] is State.FAIL
    await pool.execute("update gaps set state = 'read'")
    assert states(await examine(unconnected))["events never made"] is State.OK


async def test_an_old_schema_is_told_and_nothing_in_it_is_called_well(settings: Settings, pool: Pool) -> None:
    await pool.execute("update alembic_version set version_num = '0002'")
    checks = {c.name: c for c in await examine(settings.model_copy(update={"stripe_api_key": None}))}
    assert (checks["migrations"].state, checks["migrations"].remedy) == (State.FAIL, "`finalsale migrate`")
    assert checks["nightly run"].detail == "not looked at: the schema is of another release"


def test_a_run_reads_no_list_that_the_doctor_does_not_try() -> None:
    assert all(listing.path.startswith("/v1/") for listing in LISTS.values())


# the command -------------------------------------------------------------------------------------------------------------

Doctor = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def doctor(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """`finalsale doctor` with the environment of a deployment on this test's servers."""
    assert settings.database_url is not None
    assert settings.redis_url is not None
    for name, value in {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "STRIPE_API_KEY": "sk_test_canary0000000000",
        "STRIPE_WEBHOOK_SECRET": "whsec_canary",
        "FINALSALE_PUBLIC_URL": URL,
        "FINALSALE_BIND": "127.0.0.1",
        "FINALSALE_ALERT_URLS": "json://127.0.0.1:9",
        "FINALSALE_ALERT_PRIVATE_HOSTS": "127.0.0.1",
        "COLUMNS": "80",
    }.items():
        monkeypatch.setenv(name, value)

    async def run(stripe: Sandbox | None = None, **options: bool) -> tuple[int, str, str]:
        if stripe is not None:
            monkeypatch.setenv("STRIPE_API_BASE", stripe.url)
        capsys.readouterr()
        code = await asyncio.to_thread(lambda: cli_doctor.doctor(**options))
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


async def test_the_document_has_every_check_with_its_remedy_and_no_secret(pool: Pool, doctor: Doctor) -> None:
    await make_well(pool)
    async with Sandbox(webhook_url=URL) as stripe:
        code, out, err = await doctor(stripe, as_json=True)
        assert code == 1  # a full key could be a restricted one
        checks = json.loads(out)["checks"]
        assert [c["name"] for c in checks if c["state"] == "warn"] == ["Stripe key"]
        assert all(set(check) == {"name", "state", "detail", "remedy"} for check in checks)
        assert all(bool(check["remedy"]) == (check["state"] != "ok") for check in checks)
        own(stripe)["status"] = "disabled"
        assert (await doctor(stripe, as_json=True))[0] == 2
    assert "canary" not in out + err


async def test_a_repair_is_told_and_checked_at_once(pool: Pool, doctor: Doctor) -> None:
    await make_well(pool)
    async with Sandbox(webhook_url=URL) as stripe:
        own(stripe)["status"] = "disabled"
        code, out, _ = await doctor(stripe, fix=True, as_json=True)
        assert (code, json.loads(out)["fixed"]) == (1, [f"{own(stripe)['id']} is enabled."])
        code, out, _ = await doctor(stripe, fix=True)
        assert "Nothing is to be repaired" in out
        assert "ok    endpoint enabled" in out


async def test_a_new_endpoints_secret_goes_to_the_terminal_and_nowhere_else(
    pool: Pool, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINALSALE_PUBLIC_URL", "https://pay.example.com")
    async with Sandbox() as stripe:
        code, out, _ = await doctor(stripe, fix=True)  # standard output is a file here, and files are kept
        assert (code, "run this in a terminal" in " ".join(out.split())) == (2, True)
        assert list(stripe.books.all("webhook_endpoint")) == []
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        _, out, err = await doctor(stripe, fix=True)
        (secret,) = stripe.books.secrets[own(stripe)["id"]]
    assert (out.count(secret), err.count(secret)) == (0, 1)


async def test_a_variable_that_cannot_be_read_is_a_check_too(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINALSALE_REFUNDS", "yes")
    code, out, _ = await doctor(as_json=True)
    (check,) = json.loads(out)["checks"]
    assert (code, check["name"], check["state"]) == (2, "settings", "fail")
    assert "FINALSALE_REFUNDS" in check["detail"]


async def test_a_policy_that_cannot_be_carried_out_is_found(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bad.toml").write_text("x = ")
    monkeypatch.setenv("FINALSALE_POLICY", str(tmp_path / "bad.toml"))
    monkeypatch.delenv("STRIPE_API_KEY")
    code, out, _ = await doctor(as_json=True)
    assert (code, {c["name"]: c["state"] for c in json.loads(out)["checks"]}["policy"]) == (2, "fail")


async def test_without_our_url_no_endpoint_is_touched_not_even_the_only_one(settings: Settings) -> None:
    async with Sandbox(webhook_url="https://shop.example.com/webhooks/orders") as stripe:
        own(stripe)["status"] = "disabled"
        async with at(stripe, settings) as (gateway, deployed):
            with pytest.raises(CannotFix, match="FINALSALE_PUBLIC_URL"):
                await fix_endpoint(gateway, deployed, None)
        assert own(stripe)["status"] == "disabled"
