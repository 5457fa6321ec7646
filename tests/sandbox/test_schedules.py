"""Subscription schedules run with the clock, let go, and end their subscription, as Stripe documents them."""

from __future__ import annotations

import pytest

from sandbox import Sandbox, shapes
from sandbox.billing import after
from tests.sandbox.conftest import NOW, Client, Obj, Shop

DAY = 86400


def types(sb: Sandbox, prefix: str = "subscription_schedule.") -> list[str]:
    return [event["type"].removeprefix(prefix) for event in sb.books.all("event") if event["type"].startswith(prefix)]


def latest(sb: Sandbox, sub: Obj) -> Obj:
    return sb.books.by_id[sub["latest_invoice"]]


def ends(shop: Shop, months: int) -> int:
    return after(NOW, shop.basic["recurring"], months)


async def test_phases_follow_one_another_and_the_subscription_is_let_go(
    sb: Sandbox, shop: Shop, client: Client
) -> None:
    sub, _, _ = shop.subscribe()
    schedule = sb.books.schedule(sub, [([(shop.pro, 2)], ends(shop, 2))])
    assert (sub["schedule"], sub["cancel_at"], schedule["status"]) == (schedule["id"], None, "active")
    sb.books.set_clock(ends(shop, 1) + 3601)
    assert (latest(sb, sub)["billing_reason"], latest(sb, sub)["amount_paid"]) == ("subscription_cycle", 2 * 9900)
    assert [line["amount"] for line in latest(sb, sub)["lines"]["data"]] == [2 * 9900]
    sb.books.set_clock(ends(shop, 2) - 7 * DAY - 1)
    assert types(sb)[-1] == "updated"
    sb.books.set_clock(ends(shop, 2) - 7 * DAY)
    assert types(sb)[-1] == "expiring"
    sb.books.set_clock(ends(shop, 2) + 3601)
    shown = (await client.get(f"/v1/subscription_schedules/{schedule['id']}")).body
    assert (shown["status"], shown["completed_at"]) == ("completed", ends(shop, 2))
    assert (shown["subscription"], shown["released_subscription"]) == (None, sub["id"])
    assert (sub["status"], sub["schedule"], latest(sb, sub)["amount_paid"]) == ("active", None, 2 * 9900)
    assert types(sb) == ["created", "updated", "expiring", "completed"]


async def test_a_schedule_that_cancels_ends_its_subscription_with_the_last_phase(
    sb: Sandbox, shop: Shop, client: Client
) -> None:
    sub, _, _ = shop.subscribe()
    made = await client.post("/v1/subscription_schedules", {"from_subscription": sub["id"]})
    path = f"/v1/subscription_schedules/{made.body['id']}"
    first = made.body["phases"][0]
    params = {"phases[0][items][0][price]": shop.basic["id"], "phases[0][end_date]": first["end_date"]}
    params |= {"phases[1][items][0][price]": shop.basic["id"], "phases[1][end_date]": ends(shop, 3)}
    changed = await client.post(path, params | {"end_behavior": "cancel"})
    assert [phase["end_date"] for phase in changed.body["phases"]] == [ends(shop, 1), ends(shop, 3)]
    assert (sub["cancel_at"], sub["cancel_at_period_end"]) == (ends(shop, 3), False)
    sb.books.set_clock(ends(shop, 3) + 3601)
    assert (sub["status"], sub["ended_at"], len(types(sb, "charge.succeeded"))) == ("canceled", ends(shop, 3), 3)
    shown = (await client.get(path)).body
    assert (shown["status"], shown["subscription"], shown["current_phase"]) == ("completed", sub["id"], None)
    assert types(sb)[-1] == "completed"


async def test_a_phase_that_begins_within_a_period_is_prorated(sb: Sandbox, shop: Shop) -> None:
    sub, _, _ = shop.subscribe()
    sb.books.schedule(sub, [([(shop.basic, 1)], ends(shop, 1) + 10 * DAY), ([(shop.pro, 1)], ends(shop, 3))])
    sb.books.set_clock(ends(shop, 1) + 10 * DAY)
    assert sub["items"]["data"][0]["price"]["id"] == shop.pro["id"]
    sb.books.set_clock(ends(shop, 2) + 3601)
    amounts = [line["amount"] for line in latest(sb, sub)["lines"]["data"]]
    assert (amounts[0] < 0 < amounts[1], amounts[2]) == (True, 9900)


async def test_another_interval_begins_its_own_rhythm(sb: Sandbox, shop: Shop) -> None:
    year = sb.books.new_price(shop.basic["product"], "usd", 29000, interval="year")
    sub, _, _ = shop.subscribe()
    sb.books.schedule(sub, [([(year, 1)], after(ends(shop, 1), year["recurring"], 1))])
    sb.books.set_clock(ends(shop, 1) + 3601)
    assert (latest(sb, sub)["amount_paid"], sub["items"]["data"][0]["current_period_end"]) == (
        29000,
        after(ends(shop, 1), year["recurring"], 1),
    )


async def test_released_it_runs_on_and_its_planned_end_is_taken_back(sb: Sandbox, shop: Shop, client: Client) -> None:
    sub, _, _ = shop.subscribe()
    schedule = sb.books.schedule(sub, end_behavior="cancel")
    assert sub["cancel_at"] == ends(shop, 1)
    released = await client.post(f"/v1/subscription_schedules/{schedule['id']}/release")
    assert (released.body["status"], released.body["released_subscription"]) == ("released", sub["id"])
    assert (sub["schedule"], sub["cancel_at"], sub["canceled_at"]) == (None, None, None)
    assert types(sb)[-1] == "released"
    sb.books.set_clock(ends(shop, 1) + 3601)
    assert (sub["status"], latest(sb, sub)["status"]) == ("active", "paid")
    assert (await client.post(f"/v1/subscription_schedules/{schedule['id']}/release")).status == 400


async def test_canceling_a_schedule_ends_its_subscription_with_proration_unless_told_otherwise(
    sb: Sandbox, shop: Shop, client: Client
) -> None:
    sub, _, _ = shop.subscribe()
    schedule = sb.books.schedule(sub)
    sb.books.set_clock((NOW + ends(shop, 1)) // 2)
    canceled = await client.post(f"/v1/subscription_schedules/{schedule['id']}/cancel")
    assert (canceled.body["status"], sub["status"], shop.customer["balance"]) == ("canceled", "canceled", -1450)
    assert types(sb)[-1] == "canceled"


@pytest.mark.parametrize(("how", "event"), [("asked", "canceled"), ("unpaid", "aborted")])
async def test_a_schedule_ends_with_its_subscription(sb: Sandbox, shop: Shop, how: str, event: str) -> None:
    sub, _, _ = shop.subscribe()
    schedule = sb.books.schedule(sub, [([(shop.basic, 1)], ends(shop, 6))])
    if how == "asked":
        sb.books.cancel(sub)
    else:
        sb.books.new_method(shop.customer, charge="declines")
        sb.books.advance(60 * DAY)
    assert (sub["status"], schedule["status"], types(sb)[-1]) == ("canceled", "canceled", event)


async def test_while_scheduled_the_end_is_the_schedules_business(sb: Sandbox, shop: Shop, client: Client) -> None:
    sub, _, _ = shop.subscribe()
    sb.books.schedule(sub)
    for params in ({"cancel_at_period_end": "true"}, {"cancel_at": NOW + DAY}):
        refused = await client.post(f"/v1/subscriptions/{sub['id']}", params)
        assert (refused.status, "managed by the subscription schedule" in refused.error["message"]) == (400, True)
    assert (await client.post("/v1/subscription_schedules", {"from_subscription": sub["id"]})).status == 400


async def test_schedules_are_listed_by_customer_in_every_version(sb: Sandbox, shop: Shop, client: Client) -> None:
    schedule = sb.books.schedule(shop.subscribe()[0])
    sb.books.schedule(sb.books.subscribe(sb.books.new_customer(), [(shop.basic, 1)]))
    for version, paused in ((shapes.NEWEST, True), ("2025-02-24.acacia", False)):
        path = f"/v1/subscription_schedules?customer={shop.customer['id']}"
        (shown,) = (await client.ask("GET", path, Stripe_Version=version)).body["data"]
        assert (shown["id"], "pause_schedules" in shown) == (schedule["id"], paused)
