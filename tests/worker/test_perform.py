"""Exactly once at Stripe: whatever fails, whoever interferes, a duplicate is given back once, in the right amount, or a person is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiohttp import web
from pydantic import SecretStr

from tests.worker.merchant import REVERSING, Merchant, merchant, policy_with
from worker import review
from worker.db import Pool, transaction
from worker.perform import MAX_FAILURES, MAX_KEYS, Performer
from worker.settings import Settings
from worker.stripe_gateway import StripeGateway


@pytest.fixture
async def m(settings: Settings, pool: Pool) -> AsyncIterator[Merchant]:
    async with merchant(settings, pool, timeout_s=0.5) as made:
        yield made


@pytest.fixture
async def reversing(settings: Settings, pool: Pool) -> AsyncIterator[Merchant]:
    """A merchant whose policy takes Stripe's balance credit back by itself (D1)."""
    async with merchant(settings, pool, timeout_s=0.5, policy=REVERSING) as made:
        yield made


@pytest.fixture
async def by_hand(settings: Settings, pool: Pool) -> AsyncIterator[Merchant]:
    """A merchant whose refunds wait for a person."""
    async with merchant(settings, pool, timeout_s=0.5, refunds="review") as made:
        yield made


def amounts(m: Merchant) -> list[tuple[int, str]]:
    return [(r["amount"], r["charge"]) for r in m.refunds]


async def assert_done(m: Merchant, sub: dict[str, Any]) -> None:
    """Exactly one refund of the later payment, its subscription ended, everything terminal and known to us."""
    assert amounts(m) == [(2900, m.charge_of(sub)["id"])]
    assert m.books.by_id[sub["id"]]["status"] == "canceled"
    assert await m.actions() == {"refund": "sent", "cancel_subscription": "sent"}
    assert (await m.refund_row())["stripe_id"] == m.refunds[0]["id"]


# Stripe fails --------------------------------------------------------------------------------------------------------------

FAULTS = (
    "500_after",
    "500_before",
    "502_before",
    "502_after",
    "timeout_before",
    "timeout_after",
    "truncated",
    "reset",
    "429",
)


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_refund_whose_answer_is_lost_is_made_once(m: Merchant, kind: str) -> None:
    _, second = m.double_click()
    m.fault({"kind": kind, "path": "/v1/refunds", "method": "POST", "times": 1, "hold_s": 2})
    await m.to_the_end()
    await assert_done(m, second)
    assert sum(c["executed"] for c in m.calls("/refunds")) == 1


@pytest.mark.parametrize("kind", ["500_after", "500_before", "timeout_after", "reset", "429"])
async def test_a_cancellation_whose_answer_is_lost_is_made_once(m: Merchant, kind: str) -> None:
    _, second = m.double_click()
    m.fault({"kind": kind, "path": "/v1/subscriptions/*", "method": "DELETE", "times": 1, "hold_s": 2})
    await m.to_the_end()
    await assert_done(m, second)
    assert sum(c["executed"] for c in m.calls(second["id"], "DELETE")) == 1


@pytest.mark.parametrize("kind", ["500_after", "500_before", "timeout_after", "truncated", "429"])
async def test_a_balance_reversal_whose_answer_is_lost_is_made_once(reversing: Merchant, kind: str) -> None:
    m = reversing
    invoice, charge = m.paid_twice(credit=True)
    m.fault({"kind": kind, "path": "*/balance_transactions", "method": "POST", "times": 1, "hold_s": 2})
    await m.to_the_end()
    assert amounts(m) == [(2900, charge["id"])]
    assert m.books.by_id[invoice["customer"]]["balance"] == 0
    assert await m.actions() == {"reverse_balance_credit": "sent", "refund": "sent"}


async def test_a_key_that_is_still_in_flight_is_waited_for(m: Merchant) -> None:
    """Stripe is slow: we hang up, ask again, hear 409, and find the one refund at last."""
    _, second = m.double_click()
    await m.hear()
    m.fault({"kind": "latency", "path": "/v1/refunds", "method": "POST", "times": 1, "hold_s": 2.0})
    await m.perform(2)
    assert [c["status"] for c in m.calls("/refunds")][-1] == 409
    assert await m.actions() == {"refund": "sending", "cancel_subscription": "planned"}
    await asyncio.sleep(1.2)
    await m.to_the_end()
    await assert_done(m, second)


async def test_a_failure_that_stripe_stores_for_ever_ends_with_a_person(m: Merchant) -> None:
    m.double_click()
    m.fault({"kind": "500_before", "path": "/v1/refunds", "method": "POST"})
    await m.hear()
    await m.perform(5 * MAX_KEYS)
    row = await m.refund_row()
    assert (row["state"], row["generation"]) == ("review", MAX_KEYS)
    assert "keys" in row["error"]
    assert m.refunds == []
    assert len({c["idempotency_key"] for c in m.calls("/refunds")}) == MAX_KEYS
    assert (await m.actions())["cancel_subscription"] == "review"


async def test_a_new_key_waits_until_stripe_has_shown_all_it_did_under_the_old_one(m: Merchant) -> None:
    m.double_click()
    m.fault({"kind": "500_before", "path": "/v1/refunds", "method": "POST"})
    await m.hear()
    await m.perform(2)
    assert await m.pool.fetchval("select next_at > now() + interval '50 seconds' from actions where kind = 'refund'")


async def test_a_refund_that_stripe_refuses_is_a_persons_matter(m: Merchant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A charge that was refunded by hand between the last look and the call."""
    _, second = m.double_click()
    await m.hear()
    m.books.refund_of_disputed = "charge_disputed"
    charge = m.charge_of(second)
    original = m.gateway.refund

    async def meanwhile(*args: Any) -> Any:
        m.books.create_refund(charge, 100)
        return await original(*args)

    monkeypatch.setattr(m.gateway, "refund", meanwhile)  # the moment between look and call cannot be met otherwise
    await m.perform()
    row = await m.refund_row()
    assert (row["state"], row["stripe_id"]) == ("review", None)
    assert "Stripe refused" in row["error"]
    assert (await m.actions())["cancel_subscription"] == "review"


async def test_a_key_that_is_being_rolled_sends_nothing_to_people(m: Merchant, settings: Settings) -> None:
    _, second = m.double_click()
    await m.hear()
    wrong = StripeGateway(m.settings.model_copy(update={"stripe_api_key": SecretStr("sk_live_old")}))
    await m.perform(by=Performer(m.pool, m.court, wrong, "test"))
    await wrong.aclose()
    assert (await m.refund_row())["state"] == "planned"
    await m.to_the_end()
    await assert_done(m, second)


# an outcome that stays unknown for long ------------------------------------------------------------------------------------


async def lost_answer(m: Merchant, kind: str) -> Any:
    """A refund is sent and its answer lost; nothing of it is heard. Returns the later subscription."""
    _, second = m.double_click()
    m.fault({"kind": kind, "path": "/v1/refunds", "method": "POST", "times": 1, "hold_s": 2})
    await m.hear()
    await m.perform()
    m.lose()
    assert (await m.refund_row())["state"] == "sending"
    return second


async def grow_old(m: Merchant) -> None:
    """The key is older than 23 hours, and Stripe has forgotten it."""
    m.sandbox.configure({"idempotency_ttl_s": 0})
    await m.pool.execute("update actions set key_since = now() - interval '23 hours 1 minute' where state = 'sending'")


async def test_an_old_key_whose_refund_exists_is_adopted(m: Merchant) -> None:
    second = await lost_answer(m, "reset")
    await grow_old(m)
    await m.to_the_end()
    await assert_done(m, second)
    assert len(m.calls("/refunds")) == 1


async def test_an_old_key_without_a_refund_gets_a_new_one(m: Merchant) -> None:
    second = await lost_answer(m, "timeout_before")
    await grow_old(m)
    await m.to_the_end()
    await assert_done(m, second)
    assert [c["idempotency_key"][-2:] for c in m.calls("/refunds")] == [":1", ":2"]
    bodies = [c["params"] for c in m.calls("/refunds") if c["params"]]
    assert bodies[-1]["amount"] == "2900"


async def test_a_young_key_is_used_again_with_the_very_same_parameters(m: Merchant) -> None:
    second = await lost_answer(m, "502_before")
    await m.to_the_end()
    await assert_done(m, second)
    assert [c["idempotency_key"][-2:] for c in m.calls("/refunds")] == [":1", ":1"]


@pytest.mark.parametrize("old", [False, True], ids=["young key", "old key"])
async def test_a_hand_refund_after_the_crash_leaves_it_to_a_person(m: Merchant, old: bool) -> None:
    """The trap of two partial refunds: the invoice also carries a pack, so Stripe itself would let both of them pass."""
    customer = m.customer()
    pack = m.books.new_price(m.books.new_product("Pack")["id"], "usd", 5000, id_="price_pack_x")
    m.buy(customer)
    second = m.buy(customer, extra=[(pack, 1)])
    m.fault({"kind": "timeout_before", "path": "/v1/refunds", "method": "POST", "times": 1, "hold_s": 2})
    await m.hear()
    await m.perform()
    m.books.create_refund(m.charge_of(second), 2900)  # support, meanwhile
    m.lose()
    if old:
        await grow_old(m)
    await m.to_the_end()
    row = await m.refund_row()
    assert (row["state"], m.refunds) == ("review", [])
    assert "facts changed meanwhile" in row["error"]
    assert (await m.actions())["cancel_subscription"] in ("review", "proposed")


async def test_a_refund_given_up_by_a_person_is_still_recognized_when_it_appears(m: Merchant) -> None:
    await lost_answer(m, "reset")
    await m.pool.execute("update actions set state = 'failed', settled_at = now() where kind = 'refund'")
    await m.hear(list(m.books.all("event")))
    row = await m.refund_row()
    assert (row["state"], row["stripe_id"]) == ("sent", m.refunds[0]["id"])


# what becomes of a refund --------------------------------------------------------------------------------------------------


async def test_a_pending_refund_is_sent_and_later_known_to_have_succeeded(m: Merchant) -> None:
    m.books.low_balance = True
    m.double_click()
    await m.to_the_end()
    row = await m.refund_row()
    assert (row["state"], row["stripe_status"]) == ("sent", "pending")
    m.books.settle_refund(m.refunds[0])
    await m.to_the_end()
    assert (await m.refund_row())["stripe_status"] == "succeeded"
    assert len(m.refunds) == 1


async def test_a_refund_that_fails_later_is_a_persons_matter_and_never_repeated(m: Merchant) -> None:
    m.double_click()
    await m.to_the_end()
    m.books.fail_refund(m.refunds[0], "expired_or_canceled_card")
    await m.to_the_end()
    row = await m.refund_row()
    assert (row["state"], row["stripe_status"]) == ("review", "failed")
    assert row["error"] == (
        f"the refund {m.refunds[0]['id']} failed (expired_or_canceled_card): the duplicate is owed again, by another way, "
        "unless a dispute gives it back"
    )
    assert len(m.refunds) == 1


async def test_what_should_follow_a_refund_waits_when_that_fails(m: Merchant) -> None:
    m.double_click()
    await m.hear()
    await m.perform()
    m.books.fail_refund(m.refunds[0])
    await m.hear()
    assert await m.actions() == {"refund": "review", "cancel_subscription": "review"}


async def test_a_failure_that_is_heard_before_our_own_commit_is_not_overwritten(
    m: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    m.double_click()
    await m.hear()
    original = m.gateway.refund

    async def heard_first(*args: Any) -> Any:
        reply = await original(*args)
        m.books.fail_refund(m.refunds[0])
        await m.hear()
        return reply

    monkeypatch.setattr(m.gateway, "refund", heard_first)  # the moment between call and commit cannot be met otherwise
    await m.perform()
    row = await m.refund_row()
    assert (row["state"], row["stripe_status"]) == ("review", "failed")


async def test_a_refund_found_at_stripe_that_failed_is_not_taken_for_done(m: Merchant) -> None:
    await lost_answer(m, "reset")
    m.books.fail_refund(m.refunds[0])
    m.lose()
    await m.perform()
    row = await m.refund_row()
    assert (row["state"], row["stripe_status"]) == ("review", "failed")
    assert "owed again" in row["error"]
    assert len(m.refunds) == 1


async def test_our_own_refunds_events_make_no_decision_and_no_review(m: Merchant) -> None:
    m.double_click()
    await m.hear()
    before = await m.pool.fetchval("select count(*) from decisions")
    await m.to_the_end()
    await m.hear(list(m.books.all("event")))
    assert await m.pool.fetchval("select count(*) from decisions") == before
    assert await m.actions() == {"refund": "sent", "cancel_subscription": "sent"}


async def test_books_that_forgot_a_refund_find_it_at_stripe(m: Merchant) -> None:
    """As after a restore from an older backup: the row is planned, and Stripe has its refund already."""
    _, second = m.double_click()
    await m.hear()
    action = (await m.refund_row())["id"]
    m.books.create_refund(m.charge_of(second), 2900, metadata={"finalsale_action": action})
    m.lose()
    await m.perform(2)
    assert await m.actions() == {"refund": "sent", "cancel_subscription": "sent"}
    assert len(list(m.books.all("refund"))) == 1


# the last look -------------------------------------------------------------------------------------------------------------

Interference = Callable[[Merchant, dict[str, Any], dict[str, Any]], Any]
LOOKS: dict[str, tuple[Interference, str]] = {
    "chargeback on the later": (lambda m, a, b: m.books.open_dispute(m.charge_of(b)), "review"),
    "inquiry on the later": (lambda m, a, b: m.books.open_dispute(m.charge_of(b), inquiry=True), "review"),
    "chargeback on the original": (lambda m, a, b: m.books.open_dispute(m.charge_of(a)), "review"),
    "later refunded by hand": (lambda m, a, b: m.books.create_refund(m.charge_of(b)), "review"),
    "later refunded and ended": (
        lambda m, a, b: m.books.cancel(b) if m.books.create_refund(m.charge_of(b)) else None,
        "none",
    ),
    "original refunded": (lambda m, a, b: m.books.create_refund(m.charge_of(a)), "none"),
    "original partly refunded": (lambda m, a, b: m.books.create_refund(m.charge_of(a), 100), "review"),
    "original's subscription ended": (lambda m, a, b: m.books.cancel(a), "review"),
    "original's subscription set to end": (lambda m, a, b: m.books.cancel_at_period_end(a), "review"),
    "both renewed": (lambda m, a, b: m.books.advance(32 * 86400), "review"),
    "later upgraded": (
        lambda m, a, b: m.books.update_items(b, [{"id": b["items"]["data"][0]["id"], "quantity": 2}]),
        "review",
    ),
}


@pytest.mark.parametrize("what", LOOKS)
async def test_what_no_webhook_told_stops_the_refund_at_the_last_look(m: Merchant, what: str) -> None:
    first, second = m.double_click()
    await m.hear()
    charge = m.charge_of(second)["id"]
    assert (await m.verdicts())[charge] == "refund"
    interfere, verdict = LOOKS[what]
    interfere(m, first, second)
    m.lose()
    await m.perform(4)
    assert m.refunds == []
    assert m.calls("/refunds") == []
    assert (await m.verdicts())[charge] in (verdict, *(["review"] if verdict == "none" else []))
    assert set((await m.actions()).values()) <= {"proposed", "withdrawn", "review"}
    assert m.books.by_id[second["id"]]["status"] == ("canceled" if what == "later refunded and ended" else "active")


async def test_a_scope_that_only_the_checkout_session_tells_stops_it_too(m: Merchant) -> None:
    """Two workspaces, bought on purpose; the sessions' events were lost, and the subscriptions say nothing."""
    customer = m.customer()
    for workspace in ("w1", "w2"):
        m.books.checkout(
            customer, m.price, mode="subscription", metadata={"workspace_id": workspace}, subscription_metadata={}
        )
        m.books.advance(30)
    await m.hear([e for e in m.news() if not e["type"].startswith("checkout")])
    assert list((await m.verdicts()).values()) == ["refund"]
    await m.perform(3)
    assert m.refunds == []
    assert list((await m.verdicts()).values()) == ["none"]


async def test_a_part_given_back_by_hand_stops_it_until_that_has_settled_too(settings: Settings, pool: Pool) -> None:
    """What is sent in the end is the rest, ten minutes after somebody was at it by hand."""
    async with merchant(settings, pool, policy=policy_with(('settle = "0s"', 'settle = "10m"'))) as m:
        _, second = m.double_click()
        await m.hear()
        m.books.set_clock(int(time.time()), running=False)
        m.books.create_refund(m.charge_of(second), 900)
        m.lose()
        await m.perform()
        row = await m.refund_row()
        assert (row["state"], row["amount_minor"], m.refunds) == ("planned", 2000, [])
        assert "the last look found other facts" in row["error"]
        assert await pool.fetchval("select next_at > now() + interval '9 minutes' from actions where kind = 'refund'")
        await m.perform()
        assert amounts(m) == [(2000, m.charge_of(second)["id"])]


async def test_a_last_look_that_cannot_see_everything_sends_nothing(m: Merchant) -> None:
    m.double_click()
    await m.hear()
    m.fault({"kind": "502_before", "path": "/v1/disputes", "method": "GET"})
    await m.perform()
    assert (m.calls("/refunds"), (await m.refund_row())["state"]) == ([], "planned")


async def test_a_look_that_grew_old_before_its_turn_came_proves_nothing(
    m: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second = m.double_click()
    await m.hear()
    monkeypatch.setattr("worker.perform.LOOK_KEEPS_S", 0.0)
    await m.perform()
    assert m.calls("/refunds") == []
    monkeypatch.undo()
    await m.to_the_end()
    await assert_done(m, second)


# people and limits ---------------------------------------------------------------------------------------------------------


async def say_yes(m: Merchant, subject: str, **more: Any) -> None:
    async with transaction(m.pool) as conn:
        await review.approve(conn, m.court.policy, ["test"], subject, by="Ann", **more)


async def test_in_review_nothing_is_sent_before_a_yes_and_then_once(by_hand: Merchant) -> None:
    m = by_hand
    _, second = m.double_click()
    await m.to_the_end()
    assert (m.calls("/refunds"), await m.actions()) == ([], {"refund": "proposed", "cancel_subscription": "proposed"})
    await say_yes(m, m.charge_of(second)["id"])
    await m.to_the_end()
    await assert_done(m, second)


async def test_what_was_planned_under_auto_is_not_sent_once_review_is_set(m: Merchant) -> None:
    _, second = m.double_click()
    await m.hear()
    assert (await m.refund_row())["state"] == "planned"
    careful = Performer(m.pool, type(m.court)(policy=m.court.policy, refunds="review"), m.gateway, "test")
    await m.perform(3, by=careful)
    assert (m.calls("/refunds"), (await m.refund_row())["state"]) == ([], "proposed")
    await say_yes(m, m.charge_of(second)["id"])
    await m.perform(3, by=careful)
    await assert_done(m, second)


async def test_a_yes_falls_when_the_last_look_finds_another_amount(by_hand: Merchant) -> None:
    """The person said 29.00; meanwhile 9.00 went back by hand. 20.00 nobody has said yes to."""
    m = by_hand
    _, second = m.double_click()
    await m.hear()
    await say_yes(m, m.charge_of(second)["id"])
    m.books.create_refund(m.charge_of(second), 900)
    m.lose()
    await m.perform(3)
    row = await m.refund_row()
    assert (m.refunds, row["state"], row["approved_by"], row["amount_minor"]) == ([], "proposed", [], 2000)


async def test_a_yes_to_an_amount_that_is_no_longer_left_is_not_sent(by_hand: Merchant) -> None:
    m = by_hand
    invoice, charge = m.paid_twice(credit=True)
    await m.to_the_end()
    m.books.move_balance(m.books.by_id[invoice["customer"]], 1000, "usd", "adjustment")
    assert (await m.verdicts())[charge["id"]] == "review"
    await say_yes(m, charge["id"])
    m.books.create_refund(charge, 2000)
    m.lose()
    await m.perform(4)
    assert m.refunds == []


async def test_a_no_is_not_overruled_by_a_later_revision(m: Merchant) -> None:
    _, second = m.double_click()
    await m.hear()
    async with transaction(m.pool) as conn:
        await review.reject(conn, ["test"], m.charge_of(second)["id"], by="Ann")
    m.books.create_refund(m.charge_of(second), 900)
    await m.to_the_end()
    assert (await m.verdicts())[m.charge_of(second)["id"]] == "refund"
    assert (m.refunds, (await m.refund_row())["state"]) == ([], "proposed")


async def test_after_a_refusal_a_new_yes_is_held_against_the_facts_again(m: Merchant) -> None:
    """Refused, then refunded by hand (unheard), then approved: the frozen amount would be too much."""
    customer = m.customer()
    pack = m.books.new_price(m.books.new_product("Pack")["id"], "usd", 5000, id_="price_pack_x")
    m.buy(customer)
    second = m.buy(customer, extra=[(pack, 1)])
    await m.hear()
    row = await m.refund_row()
    await m.pool.execute(
        """update actions set state = 'review', first_sent_at = now(), key_since = now(), generation = 1,
           idempotency_key = 'k', parameters = '{}', refunded_before_minor = 0 where id = $1""",
        row["id"],
    )
    await say_yes(m, m.charge_of(second)["id"])
    m.books.create_refund(m.charge_of(second), 2900)
    m.lose()
    await m.perform(3)
    assert (m.calls("/refunds"), (await m.refund_row())["state"]) == ([], "review")


async def test_while_paused_nothing_moves_and_afterwards_it_goes_on(m: Merchant) -> None:
    _, second = m.double_click()
    async with transaction(m.pool) as conn:
        await review.pause(conn, on=True, by="Ann")
    await m.to_the_end()
    assert m.books.calls == []
    async with transaction(m.pool) as conn:
        await review.pause(conn, on=False, by="Ann")
    await m.to_the_end()
    await assert_done(m, second)


async def test_a_pause_during_the_last_look_holds(m: Merchant, monkeypatch: pytest.MonkeyPatch) -> None:
    m.double_click()
    await m.hear()
    original = m.performer._read

    async def paused_meanwhile(*args: Any) -> Any:
        async with transaction(m.pool) as conn:
            await review.pause(conn, on=True, by="Ann")
        return await original(*args)

    monkeypatch.setattr(m.performer, "_read", paused_meanwhile)  # the moment during the look cannot be met otherwise
    await m.perform()
    assert m.calls("/refunds") == []


async def test_two_workers_never_pass_the_days_limit_together(settings: Settings, pool: Pool) -> None:
    tight = policy_with(("per_day     = { usd = 500000", "per_day     = { usd = 6000"))
    async with merchant(settings, pool, policy=tight) as m:
        for number in range(6):
            m.double_click(f"u{number}")
        await m.hear()
        await pool.execute(
            """create function slowly() returns trigger language plpgsql as $$ begin perform pg_sleep(0.1); return new; end $$;
               create trigger slowly before update on actions for each row when (new.state = 'sending') execute function slowly()"""
        )
        others = [Performer(pool, m.court, m.gateway, "test") for _ in range(2)]
        await asyncio.gather(*(other.perform_due() for other in others))
        await m.to_the_end()
        assert len(m.refunds) == 2
        states = await pool.fetch("select state, count(*) as n from actions where kind = 'refund' group by state")
        assert {row["state"]: row["n"] for row in states} == {"sent": 2, "review": 4}
        assert await pool.fetchval("select count(*) from actions where error like '%day''s limit of 60.00 USD%'") == 4


async def test_two_workers_at_one_action_send_it_once(m: Merchant) -> None:
    _, second = m.double_click()
    await m.hear()
    performers = [Performer(m.pool, m.court, m.gateway, "test") for _ in range(4)]
    for _ in range(4):
        await asyncio.gather(*(performer.perform_due() for performer in performers))
    await assert_done(m, second)
    assert len(m.calls("/refunds")) == 1


# D1: the reversal and the refund -------------------------------------------------------------------------------------------


async def test_a_balance_credit_is_reversed_and_then_refunded(reversing: Merchant) -> None:
    m = reversing
    invoice, charge = m.paid_twice(credit=True)
    await m.to_the_end()
    assert amounts(m) == [(2900, charge["id"])]
    assert m.books.by_id[invoice["customer"]]["balance"] == 0
    assert [c["path"].rpartition("/")[2] for c in m.books.calls if c["executed"]] == ["balance_transactions", "refunds"]
    assert await m.pool.fetchval("select max(revision) from decisions where verdict = 'refund'") <= 2


async def test_a_yes_to_reversal_and_refund_holds_through_both_although_other_doubts_remain(
    settings: Settings, pool: Pool
) -> None:
    """The policy leaves the credit to a person, and 29.00 is above the limit: one yes carries both steps."""
    strict = policy_with(("per_refund  = { usd = 50000", "per_refund  = { usd = 1000"))
    async with merchant(settings, pool, policy=strict) as m:
        _, charge = m.paid_twice(credit=True)
        await m.to_the_end()
        assert await m.actions() == {"reverse_balance_credit": "proposed", "refund": "proposed"}
        await say_yes(m, charge["id"])
        await m.to_the_end()
        assert await m.actions() == {"reverse_balance_credit": "sent", "refund": "sent"}
        assert amounts(m) == [(2900, charge["id"])]


async def test_a_refund_refused_after_the_reversal_says_what_happened(
    reversing: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = reversing
    invoice, charge = m.paid_twice(credit=True)
    await m.hear()
    await m.look_up()
    await m.perform()
    original = m.gateway.refund

    async def meanwhile(*args: Any) -> Any:
        m.books.create_refund(charge, 100)
        return await original(*args)

    monkeypatch.setattr(m.gateway, "refund", meanwhile)  # the moment between look and call cannot be met otherwise
    await m.perform()
    row = await m.refund_row()
    assert row["state"] == "review"
    reversal = await m.pool.fetchval("select stripe_id from actions where kind = 'reverse_balance_credit'")
    assert row["error"].endswith(f"the balance credit of {invoice['id']} was taken back before, as {reversal}")


@pytest.mark.parametrize("what", ["original refunded", "chargeback"])
async def test_facts_that_change_between_reversal_and_refund_stop_the_refund(reversing: Merchant, what: str) -> None:
    m = reversing
    invoice, charge = m.paid_twice(credit=True)
    await m.hear()
    await m.look_up()
    await m.perform()
    assert (await m.actions())["reverse_balance_credit"] == "sent"
    if what == "chargeback":
        m.books.open_dispute(charge)
    else:
        rows = m.books.linked("invoice_payment", "invoice", invoice["id"])
        original = m.books.by_id[m.books.by_id[rows[0]["payment"]["payment_intent"]]["latest_charge"]]
        m.books.create_refund(original)
    m.lose()
    await m.perform(3)
    assert m.refunds == []
    assert (await m.actions())["refund"] in ("proposed", "withdrawn", "review")


async def test_a_credit_that_was_spent_after_a_lost_answer_is_not_taken_back(reversing: Merchant) -> None:
    m = reversing
    invoice, _ = m.paid_twice(credit=True)
    m.fault({"kind": "timeout_before", "path": "*/balance_transactions", "method": "POST", "times": 1, "hold_s": 2})
    await m.hear()
    await m.look_up()
    await m.perform()
    m.books.move_balance(m.books.by_id[invoice["customer"]], 2900, "usd", "applied_to_invoice")
    m.lose()
    await m.perform(3)
    assert sum(c["executed"] for c in m.calls("/balance_transactions")) == 0
    assert await m.actions() == {"reverse_balance_credit": "review", "refund": "review"} or m.refunds == []


# accounts and faults of our own --------------------------------------------------------------------------------------------


async def test_a_connected_accounts_refund_carries_its_account_on_every_call(settings: Settings, pool: Pool) -> None:
    async with merchant(settings, pool) as m:
        heard: list[str | None] = []

        async def forward(request: web.Request) -> web.Response:
            heard.append(request.headers.get("Stripe-Account"))
            async with aiohttp.request(
                request.method,
                m.sandbox.url + request.path_qs,
                headers={k: v for k, v in request.headers.items() if k not in ("Host", "Content-Length")},
                data=await request.read(),
            ) as answer:
                return web.Response(
                    status=answer.status, body=await answer.read(), headers={"Date": answer.headers["Date"]}
                )

        app = web.Application()
        app.add_routes([web.route("*", "/{path:.*}", forward)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        gateway = StripeGateway(m.settings.model_copy(update={"stripe_api_base": url}))
        _, second = m.double_click()
        await m.hear([{**event, "account": "acct_1"} for event in m.news()])
        await m.perform(4, by=Performer(pool, m.court, gateway, "test"))
        await gateway.aclose()
        await runner.cleanup()
        assert amounts(m) == [(2900, m.charge_of(second)["id"])]
        assert set(heard) == {"acct_1"}
        assert {row["realm"] for row in await pool.fetch("select realm from actions")} == {"test:acct_1"}


async def test_an_action_that_cannot_be_carried_out_holds_up_no_other_and_ends_with_a_person(
    m: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, broken = m.double_click("u1")
    _, second = m.double_click("u2")
    await m.hear()
    charge = m.charge_of(broken)["id"]
    original = m.gateway.refund

    async def fails(parameters: Any, *args: Any) -> Any:
        if parameters["charge"] == charge:
            raise ArithmeticError("a mistake of ours")
        return await original(parameters, *args)

    monkeypatch.setattr(m.gateway, "refund", fails)  # a mistake of ours, which must be made for it
    await m.perform(4)
    assert amounts(m) == [(2900, m.charge_of(second)["id"])]
    (row,) = await m.pool.fetch("select * from actions where kind = 'refund' and subject = $1", charge)
    assert (row["state"], row["error"]) == ("sending", "it could not be carried out (ArithmeticError)")
    await m.pool.execute("update actions set attempts = $1 where id = $2", MAX_FAILURES, row["id"])
    await m.perform()
    assert await m.pool.fetchval("select state from actions where id = $1", row["id"]) == "review"


async def test_a_cancelled_worker_leaves_no_lock_behind(m: Merchant) -> None:
    _, second = m.double_click()
    await m.hear()
    m.fault({"kind": "timeout_before", "path": "/v1/refunds", "method": "POST", "times": 1, "hold_s": 2})
    task = asyncio.create_task(m.performer.perform_due())
    async with asyncio.timeout(5):
        while (await m.refund_row())["state"] != "sending":
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await m.pool.fetchval("select count(*) from pg_locks where locktype = 'advisory'") == 0
    assert await m.pool.fetchval("select count(*) from pg_stat_activity where state like 'idle in transaction%'") == 0
    await m.to_the_end()
    await assert_done(m, second)


async def test_no_transaction_is_open_while_stripe_is_asked(m: Merchant) -> None:
    m.double_click()
    await m.hear()
    m.fault({"kind": "latency", "path": "/v1/charges/*", "hold_s": 0.4})
    task = asyncio.create_task(m.performer.perform_due())
    await asyncio.sleep(0.2)
    assert await m.pool.fetchval("select count(*) from pg_stat_activity where state like 'idle in transaction%'") == 0
    await task


# look-ups ------------------------------------------------------------------------------------------------------------------


async def test_a_wish_that_comes_while_the_object_is_being_read_is_not_lost(
    m: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second overpayment arrives between the reading of the balance and its settling."""
    invoice, _ = m.paid_twice(credit=True)
    await m.hear()
    original = m.gateway.read_customer_balance

    async def meanwhile(*args: Any) -> Any:
        read = await original(*args)
        if not m.news():
            m.books.advance(10)
            m.books.pay_again(invoice)
            await m.hear()
        return read

    monkeypatch.setattr(
        m.gateway, "read_customer_balance", meanwhile
    )  # the moment after the read cannot be met otherwise
    await m.look_up()
    monkeypatch.setattr(m.gateway, "read_customer_balance", original)  # as it was
    assert await m.pool.fetchval("select state from lookups where kind = 'balance'") == "waiting"
    await m.look_up()
    assert await m.pool.fetchval("select state from lookups where kind = 'balance'") == "done"


async def test_a_wish_right_after_a_read_is_granted_a_little_later(m: Merchant) -> None:
    invoice, _ = m.paid_twice(credit=True)
    await m.hear()
    await m.look_up()
    m.books.advance(10)
    m.books.pay_again(invoice)
    await m.hear()
    assert await m.pool.fetchval("select state from lookups where kind = 'balance'") == "waiting"


async def test_a_look_up_that_stripe_refuses_ends(m: Merchant) -> None:
    m.double_click()
    m.lose()
    async with transaction(m.pool) as conn:
        await conn.execute(
            "insert into lookups (realm, kind, id, url) values ('test', 'charge', 'ch_no', '/v1/charges/ch_no')"
        )
    await m.look_up(2)
    assert [tuple(row) for row in await m.pool.fetch("select state, attempts from lookups")] == [("failed", 1)]


# the database itself -------------------------------------------------------------------------------------------------------


async def test_the_database_refuses_a_second_refund_row_for_a_charge(m: Merchant) -> None:
    m.double_click()
    await m.hear()
    with pytest.raises(asyncpg.UniqueViolationError):
        await m.pool.execute(
            """insert into actions (id, realm, kind, subject, decision_subject, decision_id, customer, amount_minor, currency,
               state, due_at, next_at) select 'act_other', realm, kind, subject, decision_subject, decision_id, customer, 1, 'usd',
               'planned', now(), now() from actions where kind = 'refund'"""
        )


CHANGES = (
    "update actions set amount_minor = 1",
    "update actions set currency = 'eur'",
    "update actions set parameters = '{}'",
    "update actions set subject = 'ch_x'",
    "update actions set customer = 'cus_x'",
    "update actions set refunded_before_minor = 7",
    "update actions set first_sent_at = null",
    "update actions set state = 'planned' where kind = 'refund'",
    "update actions set stripe_id = 're_other' where kind = 'refund'",
    "update actions set stripe_id = null where kind = 'refund'",
    "update actions set generation = 0",
    "delete from actions",
    "truncate actions cascade",
    "delete from decisions",
    "update decisions set verdict = 'none'",
)


async def test_the_database_refuses_to_change_what_was_sent(m: Merchant) -> None:
    m.double_click()
    await m.to_the_end()
    assert await m.actions() == {"refund": "sent", "cancel_subscription": "sent"}
    let_through = []
    for change in CHANGES:
        try:
            await m.pool.execute(change)
            let_through.append(change)
        except (asyncpg.RestrictViolationError, asyncpg.CheckViolationError):
            pass
    assert let_through == []


async def test_a_refund_that_exists_at_stripe_is_never_planned_again(m: Merchant) -> None:
    m.double_click()
    await m.to_the_end()
    m.books.fail_refund(m.refunds[0])
    await m.hear()
    assert (await m.refund_row())["state"] == "review"
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await m.pool.execute("update actions set state = 'planned' where kind = 'refund'")


async def test_one_yes_is_not_enough_where_the_workers_own_policy_wants_two(settings: Settings, pool: Pool) -> None:
    """Whoever approved may have read another policy file: the worker counts the names against its own."""
    policy = policy_with(("two_persons = { usd = 100000", "two_persons = { usd = 1000"))
    async with merchant(settings, pool, policy=policy, refunds="review") as m:
        m.double_click()
        await m.hear()
        plan = "update actions set state = 'planned', approved_by = $1 where kind = 'refund'"
        await pool.execute(plan, ["ANNA"])
        await m.perform()
        assert m.refunds == []
        row = await m.refund_row()
        assert (row["state"], row["approved_by"]) == ("proposed", ["ANNA"])
        await pool.execute(plan, ["ANNA", " anna"])
        await m.perform()
        assert m.refunds == []
        await pool.execute(plan, ["ANNA", "BERT"])
        await m.perform()
        assert len(m.refunds) == 1
