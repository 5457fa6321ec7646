"""What no event brings is noticed: every condition provoked for real, raised once, worse when it lasts, and over when it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncpg
import msgspec
import pytest
from aiohttp import web
from pydantic import SecretStr

from reconcile.report import MoneyRow
from sandbox import Sandbox
from tests.conftest import eventually
from tests.handlers.history import DAY, History, Sold
from tests.stripe_sender import WEBHOOK_SECRET, Sender, event, mac
from tests.worker import reports
from tests.worker.books import REALM, court, tell
from tests.worker.merchant import Merchant, merchant, policy_with
from tests.worker.test_audit import tamper, written
from worker import conditions, review
from worker.db import Pool, connection, queries, transaction
from worker.jobs import WorkerProcess
from worker.settings import Settings
from worker.settle import settle
from worker.signals import Signatures
from worker.stripe_gateway import StripeGateway, ahead_s
from worker.vigil import NO_WORKER_CAUSE, Vigil, WebVigil
from worker.web import Watch, listening

OLD, NEW = WEBHOOK_SECRET, "whsec_rolled_0123456789abcdef"
URL = "http://127.0.0.1:9/stripe/webhook"


@pytest.fixture
async def m(settings: Settings, pool: Pool) -> AsyncIterator[Merchant]:
    async with merchant(settings, pool, timeout_s=0.5) as made:
        yield made


@pytest.fixture
async def offline(settings: Settings) -> AsyncIterator[tuple[Settings, StripeGateway]]:
    """A deployment without a key: only the database is looked at."""
    without = settings.model_copy(update={"stripe_api_key": None})
    gateway = StripeGateway(without)
    yield without, gateway
    await gateway.aclose()


async def look(pool: Pool, settings: Settings, gateway: StripeGateway, times: int = 2) -> int:
    """Rounds of the vigil by workers that just began, so that everything is due. What the last one changed."""
    changed = 0
    for _ in range(times):
        vigil = Vigil(pool, settings, gateway)
        changed = await vigil.look()
        await vigil.ask()
    return changed


async def alerts(pool: Pool, *kinds: str) -> list[tuple[str, str]]:
    """Cause and severity of what is open, of some kinds."""
    rows = await pool.fetch(
        "select cause, severity from alerts where resolved_at is null and kind = any($1::text[]) order by cause", kinds
    )
    return [tuple(row) for row in rows]


async def sentence(pool: Pool, cause: str) -> str:
    return str(await pool.fetchval("select sentence from alerts where cause = $1", cause))


async def later(pool: Pool, hours: float) -> None:
    """Everything happened so much longer ago."""
    shift = f"interval '{hours} hours'"
    await tamper(
        pool,
        f"update decisions set decided_at = decided_at - {shift}",
        f"""update actions set created_at = created_at - {shift}, due_at = due_at - {shift}, settled_at = settled_at - {shift},
            first_sent_at = first_sent_at - {shift}""",
        f"update switches set set_at = set_at - {shift}",
        f"update inbox set received_at = received_at - {shift}, next_at = next_at - {shift}",
        f"update signals set since = since - {shift}, seen_at = seen_at - {shift}",
        f"update schedule_runs set due_at = due_at - {shift}, started_at = started_at - {shift}",
    )


def bought_twice(amount: int = 2900) -> History:
    history = History()
    history.customer(user_id="u1")
    for when in (0, 42):
        history.subscribe(when, Sold(amount=amount), metadata={"user_id": "u1"})
    return history


# refunds -----------------------------------------------------------------------------------------------------------------


async def test_a_refund_that_failed_is_told_once_until_a_person_closes_it(m: Merchant) -> None:
    m.double_click()
    await m.to_the_end()
    assert await look(m.pool, m.settings, m.gateway) == 0 or await alerts(m.pool, "refund_failed") == []
    m.books.fail_refund(m.refunds[0], "expired_or_canceled_card")
    await m.hear()
    await look(m.pool, m.settings, m.gateway)
    row = await m.refund_row()
    cause = f"refund_failed:{row['id']}"
    assert await alerts(m.pool, "refund_failed", "refund_in_doubt") == [(cause, "critical")]
    said = await sentence(m.pool, cause)
    assert all(word in said for word in ("29.00 USD", row["subject"], row["customer"], "failed", "finalsale explain"))
    assert await look(m.pool, m.settings, m.gateway) == 0
    async with transaction(m.pool) as conn:
        await settle(conn, m.court, REALM, [], wake=[row["customer"]])  # judging must not take it for one of its own
    assert await alerts(m.pool, "refund_failed") == [(cause, "critical")]
    async with transaction(m.pool) as conn:
        await review.reject(conn, ["test"], row["decision_subject"], by="Ann", note="paid back by bank")
    await look(m.pool, m.settings, m.gateway)
    assert await alerts(m.pool, "refund_failed") == []


async def test_a_refund_sent_into_silence_is_in_doubt_after_minutes_and_critical_after_an_hour(m: Merchant) -> None:
    m.double_click()
    await m.hear()
    m.fault({"kind": "timeout_before", "path": "/v1/refunds", "method": "POST", "hold_s": 2})
    await m.perform()
    await look(m.pool, m.settings, m.gateway)
    assert await alerts(m.pool, "refund_in_doubt") == []
    await later(m.pool, 0.1)
    await look(m.pool, m.settings, m.gateway)
    cause = f"refund_in_doubt:{(await m.refund_row())['id']}"
    assert await alerts(m.pool, "refund_in_doubt") == [(cause, "warning")]
    await later(m.pool, 1)
    await look(m.pool, m.settings, m.gateway)
    assert await alerts(m.pool, "refund_in_doubt") == [(cause, "critical")]
    m.fault()
    await m.to_the_end()
    await look(m.pool, m.settings, m.gateway)
    assert await alerts(m.pool, "refund_in_doubt", "refund_failed") == []


async def test_many_refunds_in_doubt_are_one_alert(m: Merchant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "SINGLY", 2)
    for number in range(3):
        m.double_click(f"u{number}")
    await m.hear()
    m.fault({"kind": "timeout_before", "path": "/v1/refunds", "method": "POST", "hold_s": 1})
    await m.perform()
    await later(m.pool, 0.1)
    await look(m.pool, m.settings, m.gateway)
    assert await alerts(m.pool, "refund_in_doubt", "refunds_in_doubt") == [("refunds_in_doubt:all", "critical")]
    assert "3 steps of refunds" in await sentence(m.pool, "refunds_in_doubt:all")


async def trouble(pool: Pool, number: int, *, rule: str = "refund", age_s: int = 0) -> None:
    """A refund that Stripe refused, or (`review`) a decision that waits for a person."""
    await pool.execute(
        """insert into decisions (id, realm, subject, revision, customer, clause, rule, verdict, policy_version, fingerprint, body, decided_at)
           values ($1, 'test', 'ch_' || $1, 1, 'cus_A', '4.3', 'D1', $2, '2026', 'f', '{"reason":"because"}',
                   now() - $3 * interval '1 second')""",
        *(f"dec_{number}", rule, age_s),
    )
    if rule == "refund":
        await pool.execute(
            """insert into actions (id, realm, kind, subject, decision_subject, decision_id, customer, amount_minor, currency, state, due_at,
                                    next_at, first_sent_at, settled_at, error, parameters, idempotency_key, refunded_before_minor)
               values ('act_' || $1, 'test', 'refund', 'ch_' || $1, 'ch_' || $1, $1, 'cus_A', 500, 'usd', 'review', now(), now(), now(),
                       now(), 'Stripe refused: charge_disputed', '{}', 'k' || $1, 0)""",
            f"dec_{number}",
        )


async def test_beyond_the_limit_what_was_told_one_by_one_stays_so_and_the_rest_is_one_alert_until_few_are_left(
    pool: Pool, offline: tuple[Settings, StripeGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "SINGLY", 4)

    async def told() -> list[str]:
        await look(pool, *offline)
        return [cause.partition(":")[2] for cause, _ in await alerts(pool, "refund_failed", "refunds_failed")]

    for number in range(4):
        await trouble(pool, number)
    first = [f"act_dec_{number}" for number in range(4)]
    assert await told() == first
    await trouble(pool, 4)
    await trouble(pool, 5)
    assert await told() == [*first, "all"]
    assert await pool.fetchval("select count(*) from alerts where raising > 1 or resolved_at is not null") == 0
    assert "2 more steps of refunds" in await sentence(pool, "refunds_failed:all")
    await pool.execute("update actions set state = 'failed' where id in ('act_dec_0', 'act_dec_1', 'act_dec_2')")
    assert await told() == ["act_dec_3", "all"]  # three of four that would be told one by one
    await pool.execute("update actions set state = 'failed' where id = 'act_dec_4'")
    assert await told() == ["act_dec_3", "act_dec_5"]


async def test_what_the_previous_release_takes_for_an_alert_of_judging_stays_open(
    pool: Pool, settings: Settings, offline: tuple[Settings, StripeGateway]
) -> None:
    await trouble(pool, 1)
    await look(pool, *offline)
    before = await asyncpg.connect(settings.database_dsn())
    try:
        await before.execute("update alerts set resolved_at = now()")
    finally:
        await before.close()
    assert await alerts(pool, "refund_failed") == [("refund_failed:act_dec_1", "critical")]
    await pool.execute("update actions set state = 'failed'")
    await look(pool, *offline)
    assert await alerts(pool, "refund_failed") == []


async def test_the_days_limit_and_the_limit_per_refund_are_told_until_people_decided(
    settings: Settings, pool: Pool
) -> None:
    tight = policy_with(("per_day     = { usd = 500000", "per_day     = { usd = 3000"))
    async with merchant(settings, pool, policy=tight) as m:
        for number in range(2):
            m.double_click(f"u{number}")
        await m.to_the_end()
        await look(pool, m.settings, m.gateway)
        assert await alerts(pool, "refund_limit", "refund_failed") == [("refund_limit:day:usd", "warning")]
        said = await sentence(pool, "refund_limit:day:usd")
        assert "1 refunds of 29.00 USD" in said
        subject = await pool.fetchval("select decision_subject from actions where kind = 'refund' and state = 'review'")
        async with transaction(pool) as conn:
            await review.approve(conn, tight, ["test"], subject, by="Ann")
        await look(pool, m.settings, m.gateway)
        assert await alerts(pool, "refund_limit") == []


async def test_the_limit_per_refund_is_told(pool: Pool, offline: tuple[Settings, StripeGateway]) -> None:
    await tell(pool, bought_twice(60_000), court(refunds="auto"))
    await look(pool, *offline)
    assert await alerts(pool, "refund_limit") == [("refund_limit:each:usd", "warning")]


async def test_a_pause_that_was_forgotten_is_told_after_a_day_and_is_critical_after_three(
    pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    async with transaction(pool) as conn:
        await review.pause(conn, on=True, by="Ann", reason="looking")
    await look(pool, *offline)
    assert await alerts(pool, "refunds_paused") == []
    await later(pool, 25)
    await look(pool, *offline)
    assert await alerts(pool, "refunds_paused") == [("refunds_paused:switch", "warning")]
    await later(pool, 48)
    await look(pool, *offline)
    assert await alerts(pool, "refunds_paused") == [("refunds_paused:switch", "critical")]
    async with transaction(pool) as conn:
        await review.pause(conn, on=False, by="Ann")
    await look(pool, *offline)
    assert await alerts(pool, "refunds_paused") == []


# reviews -----------------------------------------------------------------------------------------------------------------


async def test_a_review_is_told_after_one_hour_four_and_a_day_once_each(
    pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    await tell(pool, bought_twice())
    seen = []
    for hours in (0.5, 0.6, 3, 20):
        await later(pool, hours)
        await look(pool, *offline)
        seen.append(await alerts(pool, "review_waiting", "reviews_waiting"))
        assert await look(pool, *offline) == 0
    cause = "review_waiting:ch_0002"
    assert seen == [[], [(cause, "note")], [(cause, "warning")], [(cause, "critical")]]
    said = await sentence(pool, cause)
    assert all(word in said for word in ("ch_0002", "cus_A", "29.00 USD", "4.3", "finalsale review approve"))
    async with transaction(pool) as conn:
        await settle(conn, court(), REALM, [], wake=["cus_A"])
        await review.approve(conn, court().policy, ["test"], "ch_0002", by="Ann")
    await look(pool, *offline)
    assert await alerts(pool, "review_waiting") == []


async def test_many_reviews_are_one_alert(
    pool: Pool, offline: tuple[Settings, StripeGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "SINGLY", 1)
    for realm in ("test", "test:acct_1"):
        await tell(pool, bought_twice(), realm=realm)
    await later(pool, 5)
    await look(pool, *offline)
    assert await alerts(pool, "review_waiting", "reviews_waiting") == [("reviews_waiting:all", "warning")]
    assert (await sentence(pool, "reviews_waiting:all")).startswith("2 decisions")


async def test_reviews_beyond_the_limit_leave_those_that_were_told_one_by_one(
    pool: Pool, offline: tuple[Settings, StripeGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "SINGLY", 2)
    for number in range(2):
        await trouble(pool, number, rule="review", age_s=7000)
    await look(pool, *offline)
    for number in range(2, 7):  # older ones do not take their places
        await trouble(pool, number, rule="review", age_s=7100)
    await look(pool, *offline)
    singly = [(f"review_waiting:ch_dec_{number}", "note") for number in range(2)]
    assert await alerts(pool, "review_waiting", "reviews_waiting") == [*singly, ("reviews_waiting:all", "note")]
    assert (await sentence(pool, "reviews_waiting:all")).startswith(
        "5 more decisions wait for a person, the oldest (dec_2)"
    )


async def test_a_decision_that_was_committed_late_is_not_passed_over(
    pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    vigil = Vigil(pool, *offline)
    await trouble(pool, 1, rule="review", age_s=7200)
    await vigil.look()
    await trouble(pool, 2, rule="review", age_s=7205)
    vigil._next.clear()
    await vigil.look()
    assert len(await alerts(pool, "review_waiting")) == 2


async def test_an_alert_about_a_charge_after_the_end_is_over_when_a_person_closed_it_and_stays_over(
    pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    history = History()
    history.customer()
    sub = history.subscribe()
    history.end(sub, DAY)
    late = history.renew(sub)
    await tell(pool, history)
    await look(pool, *offline)
    cause = f"charge_after_cancellation:{late.invoice}"
    assert await alerts(pool, "charge_after_cancellation") == [(cause, "critical")]
    async with transaction(pool) as conn:
        await review.reject(conn, ["test"], late.invoice, by="Ann", note="written to the customer")
    await look(pool, *offline)
    assert await alerts(pool, "charge_after_cancellation") == []
    async with transaction(pool) as conn:
        await settle(conn, court(), REALM, [], wake=["cus_A"])
    assert await alerts(pool, "charge_after_cancellation") == []


async def test_an_alert_about_a_refund_by_hand_is_over_with_a_note_and_comes_back_with_more_to_say(
    pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    history = History()
    history.customer()
    history.subscribe()
    refund = history.refund("ch_0001", DAY, 1000)
    await tell(pool, history)
    assert await alerts(pool, "out_of_policy_refund") == [(f"out_of_policy_refund:{refund}", "critical")]
    async with transaction(pool) as conn:
        await review.note(conn, ["test"], refund, by="Ann", text="the CEO's promise")
    await look(pool, *offline)
    await tell(pool, history)
    assert await alerts(pool, "out_of_policy_refund") == []
    again = history.refund("ch_0001", DAY + 60, 500)
    await tell(pool, history)
    await look(pool, *offline)
    assert await alerts(pool, "out_of_policy_refund") == [(f"out_of_policy_refund:{again}", "critical")]


# events ------------------------------------------------------------------------------------------------------------------


async def test_events_that_cannot_be_worked_on_are_one_alert_until_they_are_replayed(
    sender: Sender, pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    for number in range(5):
        await sender.deliver(event(f"evt_{number}"))
    await pool.execute(
        "update inbox set state = case when event_id = 'evt_4' then 'quarantined' else 'dead' end, error = 'KeyError'"
    )
    await look(pool, *offline)
    kinds = ("events_dead", "events_quarantined")
    assert await alerts(pool, *kinds) == [("events_dead:inbox", "critical"), ("events_quarantined:inbox", "warning")]
    said = await sentence(pool, "events_dead:inbox")
    assert "4 events" in said
    assert "evt_0, evt_1, evt_2 and 1 more (KeyError)" in said
    await later(pool, 25)
    await look(pool, *offline)
    assert [severity for _, severity in await alerts(pool, *kinds)] == ["critical", "critical"]
    await pool.execute("update inbox set state = 'done'")
    await look(pool, *offline)
    assert await alerts(pool, *kinds) == []


async def test_many_more_dead_events_than_somebody_acknowledged_are_news(
    sender: Sender, pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    async def dead(count: int) -> tuple[Any, ...]:
        for _ in range(count):
            await sender.deliver(event(f"evt_{time.time_ns()}"))
        await pool.execute("update inbox set state = 'dead', error = 'KeyError'")
        await look(pool, *offline)
        (row,) = await pool.fetch("select acked_by, counted, grown, raising, look_at <= now() from alerts")
        return tuple(row)

    await dead(1)
    await pool.execute("update alerts set acked_by = 'Ann', look_at = null")
    assert await dead(8) == ("Ann", 1, 0, 1, None)
    assert await dead(1) == (None, 10, 1, 1, True)
    assert await dead(5) == (None, 10, 1, 1, True)


async def test_a_backlog_is_told_after_two_minutes_and_critical_after_ten(
    sender: Sender, pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    await sender.deliver(event())
    seen = []
    for hours in (0, 3 / 60, 9 / 60):
        await later(pool, hours)
        await look(pool, *offline)
        seen.append(await alerts(pool, "backlog_growing"))
    assert seen == [[], [("backlog_growing:inbox", "warning")], [("backlog_growing:inbox", "critical")]]
    await pool.execute(
        "update inbox set next_at = now() + interval '5 minutes'"
    )  # it failed, and waits for its next try
    await look(pool, *offline)
    assert await alerts(pool, "backlog_growing") == []


async def test_events_in_a_version_that_this_release_cannot_read_are_told_for_a_day(
    sender: Sender, pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    await sender.deliver(event())
    await look(pool, *offline)
    assert await alerts(pool, "api_version_unknown") == []
    await sender.deliver(event("evt_2", api_version="2027-09-30.zinnia"))
    await look(pool, *offline)
    assert await alerts(pool, "api_version_unknown") == [("api_version_unknown:2027-09-30.zinnia", "critical")]
    await later(pool, 25)
    await look(pool, *offline)
    assert await alerts(pool, "api_version_unknown") == []


async def test_events_that_stripe_has_and_that_never_came_are_told_until_one_comes(m: Merchant) -> None:
    m.sandbox.configure({"webhook": {"url": URL, "secrets": [WEBHOOK_SECRET]}})
    await m.pool.execute("insert into schedule_runs (name, due_at, state) values ('reconcile', now(), 'done')")
    await later(m.pool, 24)
    m.double_click()
    m.books.advance(1200)
    await look(m.pool, m.settings, m.gateway)
    assert await alerts(m.pool, "intake_silent") == [("intake_silent:events", "critical")]
    told = await m.pool.fetchval("select subject from alerts where kind = 'intake_silent'")
    assert told in m.books.by_id or told in {e["id"] for e in m.books.all("event")}
    await m.hear()
    await look(m.pool, m.settings, m.gateway)
    assert await alerts(m.pool, "intake_silent") == []


async def test_silence_where_stripe_has_nothing_to_tell_is_no_alert(m: Merchant) -> None:
    await m.pool.execute("insert into schedule_runs (name, due_at, state) values ('reconcile', now(), 'done')")
    await later(m.pool, 24)
    m.double_click()  # minutes ago only: it may still be on its way
    await look(m.pool, m.settings, m.gateway)
    assert await alerts(m.pool, "intake_silent") == []


async def test_an_endpoint_that_does_not_tell_everything_is_told_until_it_is_repaired(m: Merchant) -> None:
    deployed = m.settings.model_copy(update={"public_url": URL})
    m.sandbox.configure({"webhook": {"url": URL, "secrets": [WEBHOOK_SECRET], "enabled_events": ["charge.succeeded"]}})
    await look(m.pool, deployed, m.gateway)
    cause = "endpoint_misconfigured:endpoint_events"
    assert await alerts(m.pool, "endpoint_misconfigured") == [(cause, "critical")]
    assert "types are not sent" in await sentence(m.pool, cause)
    m.sandbox.configure({"webhook": {"enabled_events": ["*"]}})
    await look(m.pool, deployed, m.gateway)
    assert await alerts(m.pool, "endpoint_misconfigured") == [(cause, "critical")]  # asked again after minutes only
    await later(m.pool, 0.1)
    await look(m.pool, deployed, m.gateway)
    assert await alerts(m.pool, "endpoint_misconfigured") == []


@asynccontextmanager
async def answering(status: int) -> AsyncIterator[str]:
    """A Stripe that answers every read so; 0: not at all."""

    async def answer(_: web.BaseRequest) -> web.Response:
        if not status:
            await asyncio.sleep(60)
        return web.json_response({"error": {"type": "invalid_request_error"}}, status=status)

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)  # 0 would be no limit
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_key_that_may_not_read_events_is_told_once_until_it_may(
    settings: Settings, pool: Pool, m: Merchant
) -> None:
    async with answering(403) as url:
        refused = m.settings.model_copy(update={"stripe_api_base": url})
        gateway = StripeGateway(refused)
        await look(pool, refused, gateway)
        await gateway.aclose()
    assert await alerts(pool, "intake_unseen", "intake_silent", "endpoint_misconfigured") == [
        ("intake_unseen:events", "warning")
    ]
    await later(pool, 0.1)
    await look(pool, m.settings, m.gateway)
    assert await alerts(pool, "intake_unseen") == []


async def test_a_round_does_not_wait_for_a_stripe_that_hangs_and_a_worker_that_stops_neither(
    settings: Settings, pool: Pool
) -> None:
    async with answering(0) as url:
        process = WorkerProcess(settings.model_copy(update={"stripe_api_base": url}))
        vigil = Vigil(pool, process.settings, process.gateway)
        await asyncio.wait_for(vigil.look(), 5)
        asking = asyncio.create_task(process._unless_stopping(vigil.ask))
        await asyncio.sleep(0.3)
        assert not asking.done()
        process.stopping.set()
        await asyncio.wait_for(asking, 1)
        await process.gateway.aclose()


# signatures --------------------------------------------------------------------------------------------------------------


def signed_by(body: bytes, *secrets: str) -> str:
    now = int(time.time())
    return ",".join([f"t={now}", *(f"v1={mac(body, now, secret)}" for secret in secrets)])


async def deliveries(settings: Settings, pool: Pool, ours: str, *signed: tuple[str, ...]) -> None:
    """A web process with our secrets takes in one delivery for each set of signatures, and tells what it saw."""
    async with listening(settings.model_copy(update={"stripe_webhook_secret": SecretStr(ours)})) as web:
        await eventually(web.watch.ready)
        async with aiohttp.ClientSession() as session:
            for secrets in signed:
                body = event(f"evt_{time.time_ns()}")
                status, *_ = await Sender(web.port, session).deliver(body, header=signed_by(body, *secrets))
                assert status == 200
                async with connection(pool) as conn:
                    await web.webhook.signatures.keep(conn)


async def test_an_old_secret_that_is_about_to_expire_is_told_until_the_new_one_is_set(
    settings: Settings, pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    await deliveries(settings, pool, OLD, (OLD,))
    await look(pool, *offline)
    assert await alerts(pool, "secret_expiring") == []
    await deliveries(settings, pool, OLD, (NEW, OLD))
    await look(pool, *offline)
    assert await alerts(pool, "secret_expiring") == [("secret_expiring:webhook", "critical")]
    assert "whsec" not in await sentence(pool, "secret_expiring:webhook")
    await deliveries(settings, pool, f"{OLD},{NEW}", (NEW, OLD))
    await look(pool, *offline)
    assert await alerts(pool, "secret_expiring") == []


async def test_a_new_secret_that_was_set_at_once_while_the_old_one_still_signs_is_no_alert(
    settings: Settings, pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    await deliveries(settings, pool, OLD, (OLD,))
    await deliveries(settings, pool, NEW, (NEW, OLD), (NEW,), (NEW, OLD))
    await look(pool, *offline)
    assert await alerts(pool, "secret_expiring") == []
    assert not await pool.fetchval("select bool_or(place like '%whsec%') from signals")


# clocks ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "told", "after", "ahead"),
    [(100, 100, 101, 0), (100.9, 100, 101, 0), (101.5, 100, 102, 0.5), (200, 100, 201, 99), (100, 160, 101, -59)],
)
def test_a_clock_is_off_by_what_the_way_and_whole_seconds_do_not_explain(
    before: float, told: float, after: float, ahead: float
) -> None:
    assert ahead_s(before, told, after, precision_s=1.0) == pytest.approx(ahead)


async def test_a_clock_that_is_off_stripes_is_told_by_the_answers_that_come_anyway(m: Merchant) -> None:
    """The sandbox's clock is an hour behind."""
    m.double_click()
    await m.to_the_end()
    await look(m.pool, m.settings, m.gateway)
    ((cause, severity),) = await alerts(m.pool, "clock_skew")
    assert (cause.partition(":")[0], severity) == ("clock_skew", "critical")
    assert "ahead of Stripe's" in await sentence(m.pool, cause)
    m.books.set_clock(int(time.time()), running=True)
    await m.gateway.document("/v1/charges", {"limit": 1})
    vigil = Vigil(m.pool, m.settings, m.gateway)
    await vigil.look()
    assert await alerts(m.pool, "clock_skew") == []


async def test_what_stripes_clock_said_a_quarter_of_an_hour_ago_is_forgotten(
    pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    _, gateway = offline
    gateway.ahead_s, gateway.ahead_at = 400.0, time.monotonic()
    await look(pool, *offline)
    assert [severity for _, severity in await alerts(pool, "clock_skew")] == ["critical"]
    gateway.ahead_at -= 900
    await look(pool, *offline)
    assert await alerts(pool, "clock_skew") == []


async def test_a_web_process_whose_clock_is_off_is_told(
    pool: Pool, offline: tuple[Settings, StripeGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    vigil = WebVigil("test", Signatures([]))
    vigil._next = 0
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 400)
    async with connection(pool) as conn:
        await vigil.look(conn)
    monkeypatch.undo()
    await look(pool, *offline)
    ((cause, severity),) = await alerts(pool, "clock_skew")
    assert cause.startswith("clock_skew:web on ")
    assert severity == "critical"


async def test_a_rehearsals_clock_is_no_skew(m: Merchant) -> None:
    m.double_click()
    await m.to_the_end()
    await look(m.pool, m.settings.model_copy(update={"test_clocks": True}), m.gateway)
    assert await alerts(m.pool, "clock_skew") == []


async def test_a_machine_that_is_gone_is_forgotten_with_its_clock(
    pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    detail = '{"of":"Postgres\'s","seconds":-45.0}'
    async with connection(pool) as conn:
        await queries.save_signal(conn, name="clock", place="gone", detail=detail)
    await look(pool, *offline)
    assert await alerts(pool, "clock_skew") == [("clock_skew:gone", "warning")]
    await later(pool, 0.2)
    await look(pool, *offline)
    assert await alerts(pool, "clock_skew") == []


# nights, books, chain, workers --------------------------------------------------------------------------------------------


async def test_a_night_that_nobody_began_is_told_and_one_that_is_at_work_is_not(
    pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    async with connection(pool) as conn:
        due = await queries.last_due(conn)
        age_h = await conn.fetchval("select extract(epoch from now() - $1::timestamptz)::float8 / 3600", due)
    await look(pool, *offline)
    assert await alerts(pool, "nightly_not_run") == []  # a deployment that had no night yet
    await pool.execute(
        "insert into schedule_runs (name, due_at, state) values ('reconcile', $1::timestamptz - interval '1 day', 'done')",
        due,
    )
    await look(pool, *offline)
    expected = [("nightly_not_run:reconcile", "warning")] if age_h >= 2 else []
    assert await alerts(pool, "nightly_not_run") == expected
    await pool.execute("insert into schedule_runs (name, due_at, state) values ('reconcile', $1, 'running')", due)
    await pool.execute(
        "insert into runs (id, realm, kind, dry_run, asked, plan) values ('run_1', 'test', 'nightly', false, 'night of x', '{}')"
    )
    await look(pool, *offline)
    assert await alerts(pool, "nightly_not_run") == []
    await pool.execute("update runs set seen_at = now() - interval '11 minutes'")
    await look(pool, *offline)
    assert await alerts(pool, "nightly_not_run") == expected
    await pool.execute("update schedule_runs set state = 'done'")
    await look(pool, *offline)
    assert await alerts(pool, "nightly_not_run") == []


async def night_with(pool: Pool, id_: str, residual: int, explained: int) -> None:
    money = [
        MoneyRow(
            currency="usd",
            kind="charge",
            at_stripe_minor=0,
            ours_minor=0,
            residual_minor=residual,
            explained_minor=explained,
        )
    ]
    report = msgspec.json.encode(reports.night(run=id_, money=money))
    await pool.execute(
        """insert into runs (id, realm, kind, dry_run, asked, plan, state, report, started_at)
           values ($1, 'test', 'nightly', false, 'night of 2026-11-2' || $1, '{}', 'done', $2, clock_timestamp())""",
        *(id_, report),
    )


async def test_books_that_do_not_close_are_told_until_a_night_closes_them(
    pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    await night_with(pool, "run_1", 30, 0)
    await look(pool, *offline)
    assert await alerts(pool, "books_do_not_close") == [("books_do_not_close:money", "critical")]
    assert "0.30 USD of charges" in await sentence(pool, "books_do_not_close:money")
    await night_with(pool, "run_2", 30, 30)
    await look(pool, *offline)
    assert await alerts(pool, "books_do_not_close") == []


async def test_a_broken_chain_is_told(pool: Pool, offline: tuple[Settings, StripeGateway]) -> None:
    await written(pool, "a", "b")
    await look(pool, *offline)
    assert await alerts(pool, "audit_broken") == []
    await tamper(pool, "update audit_chain set hash = sha256(hash) where seq = (select max(seq) from audit_chain)")
    await look(pool, *offline)
    assert await alerts(pool, "audit_broken") == [("audit_broken:chain", "critical")]


async def beat(pool: Pool, name: str, started: float, seen: float) -> None:
    await pool.execute(
        """insert into workers (id, role, detail, started_at, seen_at) values
           (gen_random_uuid(), 'worker', $1, now() - $2 * interval '1 minute', now() - $3 * interval '1 minute')""",
        *(name, started, seen),
    )


async def test_a_worker_that_fell_silent_is_told_until_another_takes_its_place(
    pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    await beat(pool, "here pid 1, rung", 60, 0)
    await beat(pool, "there pid 2, rung", 60, 5)
    await look(pool, *offline)
    assert await alerts(pool, "worker_silent") == [("worker_silent:workers", "warning")]
    assert "there pid 2" in await sentence(pool, "worker_silent:workers")
    await beat(pool, "there pid 3, rung", 4, 0)
    await look(pool, *offline)
    assert await alerts(pool, "worker_silent") == []


async def test_where_no_worker_is_alive_a_web_process_says_so_and_the_next_worker_takes_it_back(
    web: Any, settings: Settings, pool: Pool, offline: tuple[Settings, StripeGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    vigil = WebVigil("test", web.webhook.signatures)
    async with connection(pool) as conn:
        await vigil.look(conn)  # it has only just begun
        assert await alerts(pool, "worker_silent") == []
        began = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: began + 300)
        await vigil.look(conn)
    assert await alerts(pool, "worker_silent") == [(NO_WORKER_CAUSE, "critical")]
    await beat(pool, "here pid 1", 1, 0)
    await look(pool, *offline)
    assert await alerts(pool, "worker_silent") == []


async def test_an_alert_that_somebody_holds_costs_a_web_process_neither_its_readiness_nor_what_it_saw(
    pool: Pool, settings: Settings
) -> None:
    signatures = Signatures([b"x"])
    vigil = WebVigil("test", signatures)
    watch = Watch(settings.database_dsn(), 1000)
    watch.also = vigil.look
    async with pool.acquire() as holder, holder.transaction():
        await holder.execute("lock table alerts, signals")
        signatures.verified(b"t=1,v1=a", b"", 0)
        vigil._next = 0
        await watch._look()
        assert watch.ready()
    vigil._next = 0
    await watch._look()
    assert watch.ready()
    assert await pool.fetchval("select count(*) from signals where name = 'secret alone'") == 1
    assert watch._connection is not None
    await watch._connection.close()


# rounds ------------------------------------------------------------------------------------------------------------------


async def test_of_workers_that_look_at_once_one_does(pool: Pool, offline: tuple[Settings, StripeGateway]) -> None:
    await tell(pool, bought_twice())
    await later(pool, 5)
    changed = await asyncio.gather(*(Vigil(pool, *offline).look() for _ in range(6)))
    assert sum(changed) == 1
    assert len(await alerts(pool, "review_waiting")) == 1


async def test_a_condition_that_cannot_be_looked_at_leaves_its_alerts_and_stops_no_other(
    pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    async with transaction(pool) as conn:
        await review.pause(conn, on=True, by="Ann")
    await later(pool, 30)
    await look(pool, *offline)
    await tell(pool, bought_twice())
    await later(pool, 5)
    await pool.execute("alter table switches rename to switched")
    await look(pool, *offline)
    assert [severity for _, severity in await alerts(pool, "refunds_paused", "review_waiting")] == [
        "warning",
        "warning",
    ]


async def test_a_condition_that_takes_too_long_stops_no_other(
    pool: Pool, offline: tuple[Settings, StripeGateway]
) -> None:
    async def slow(here: conditions.Here) -> list[conditions.Holding]:
        await here.conn.execute("set local statement_timeout = '50ms'")
        await here.conn.execute("select pg_sleep(1)")
        return []

    await trouble(pool, 1)
    vigil = Vigil(pool, *offline)
    vigil._conditions = (conditions.Condition(frozenset({"events_dead"}), 0, slow), *vigil._conditions)
    assert await vigil.look() == 1
    assert len(await alerts(pool, "refund_failed")) == 1


async def test_nothing_of_another_mode_is_touched(pool: Pool, offline: tuple[Settings, StripeGateway]) -> None:
    await pool.execute(
        """insert into alerts (realm, cause, kind, severity, customer, subject, sentence)
           values ('live', 'review_waiting:x', 'review_waiting', 'note', '', 'x', 'x')"""
    )
    await look(pool, *offline)
    assert await alerts(pool, "review_waiting") == [("review_waiting:x", "note")]


async def test_a_round_over_an_empty_sandbox_account_is_quiet(settings: Settings, pool: Pool) -> None:
    async with Sandbox(webhook_url=URL) as stripe:
        deployed = settings.model_copy(update={"stripe_api_base": stripe.url, "public_url": URL})
        gateway = StripeGateway(deployed)
        try:
            await look(pool, deployed, gateway)
        finally:
            await gateway.aclose()
    assert await pool.fetch("select cause from alerts") == []
