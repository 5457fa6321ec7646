"""Trials end, are moved, come again and pause, and subscriptions end, as Stripe Billing lets them."""

from __future__ import annotations

import pytest

from sandbox import Sandbox
from sandbox.billing import after
from tests.sandbox.conftest import NOW, Client, Obj, Shop

DAY = 86400


def types(sb: Sandbox, prefix: str = "") -> list[str]:
    return [event["type"] for event in sb.books.all("event") if event["type"].startswith(prefix)]


def latest(sb: Sandbox, sub: Obj) -> Obj:
    return sb.books.by_id[sub["latest_invoice"]]


# -- the end of a trial ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behavior", "status", "event"),
    [("cancel", "canceled", "deleted"), ("pause", "paused", "paused"), ("create_invoice", "past_due", "updated")],
)
async def test_a_trial_that_ends_without_payment_method_does_what_was_chosen(
    sb: Sandbox, shop: Shop, client: Client, behavior: str, status: str, event: str
) -> None:
    sb.books.remove_method(shop.customer)
    params = {"customer": shop.customer["id"], "items[0][price]": shop.basic["id"], "trial_period_days": 7}
    params["trial_settings[end_behavior][missing_payment_method]"] = behavior
    made = await client.post("/v1/subscriptions", params)
    assert made.body["trial_settings"]["end_behavior"]["missing_payment_method"] == behavior
    sb.books.advance(7 * DAY + 3601)
    sub = (await client.get(f"/v1/subscriptions/{made.body['id']}")).body
    assert (sub["status"], types(sb, "customer.subscription.")[-1]) == (status, f"customer.subscription.{event}")
    assert len(types(sb, "charge.")) == 0
    if behavior == "create_invoice":
        assert (latest(sb, sub)["status"], latest(sb, sub)["attempt_count"]) == ("open", 1)
        assert types(sb, "invoice.payment_failed") == ["invoice.payment_failed"]


async def test_an_unknown_end_behavior_is_refused(shop: Shop, client: Client) -> None:
    params = {"customer": shop.customer["id"], "items[0][price]": shop.basic["id"], "trial_period_days": 7}
    params["trial_settings[end_behavior][missing_payment_method]"] = "explode"
    assert (await client.post("/v1/subscriptions", params)).status == 400


async def test_a_trial_paused_for_want_of_a_card_is_resumed_with_one(sb: Sandbox, shop: Shop, client: Client) -> None:
    sb.books.remove_method(shop.customer)
    sub, _, _ = shop.subscribe(trial_end=NOW + 7 * DAY, missing_payment_method="pause")
    sb.books.advance(7 * DAY)
    details = sub["status_details"]["paused"]
    assert (details["subscription"]["type"], details["transitioned_at"]) == (
        "trial_end_without_payment_method",
        NOW + 7 * DAY,
    )
    path = f"/v1/subscriptions/{sub['id']}/resume"
    assert (await client.post(path)).error["code"] == "resource_missing"
    sb.books.new_method(shop.customer)
    resumed = (await client.post(path)).body
    assert (resumed["status"], resumed["status_details"], latest(sb, sub)["status"]) == ("active", None, "paid")
    assert latest(sb, sub)["lines"]["data"][0]["period"]["start"] == NOW + 7 * DAY
    assert "customer.subscription.resumed" in types(sb)
    assert (await client.post(path)).status == 400
    sb.books.advance(32 * DAY)
    assert latest(sb, sub)["billing_reason"] == "subscription_cycle"


async def test_a_shortened_trial_ends_now_and_says_so(sb: Sandbox, shop: Shop, client: Client) -> None:
    sub, _, _ = shop.subscribe(trial_end=NOW + 20 * DAY)
    sb.books.advance(DAY)
    ended = await client.post(f"/v1/subscriptions/{sub['id']}", {"trial_end": "now"})
    assert (ended.body["status"], ended.body["trial_end"]) == ("active", NOW + DAY)
    assert types(sb, "customer.subscription.")[-3:] == [
        f"customer.subscription.{what}" for what in ("updated", "trial_will_end", "updated")
    ]
    sb.books.advance(3601)
    assert latest(sb, sub)["lines"]["data"][0]["period"]["start"] == NOW + DAY


async def test_an_extended_trial_warns_again_three_days_before_its_new_end(sb: Sandbox, shop: Shop) -> None:
    sub, _, _ = shop.subscribe(trial_end=NOW + 7 * DAY)
    sb.books.advance(5 * DAY)
    sb.books.set_trial_end(sub, NOW + 30 * DAY)
    assert len(types(sb, "customer.subscription.trial_will_end")) == 1
    sb.books.set_clock(NOW + 27 * DAY - 1)
    assert len(types(sb, "customer.subscription.trial_will_end")) == 1
    sb.books.advance(2)
    assert len(types(sb, "customer.subscription.trial_will_end")) == 2


@pytest.mark.parametrize(("version", "start"), [("2026-10-28.endive", NOW + 40 * DAY), ("2025-02-24.acacia", NOW)])
async def test_a_second_trial_is_told_with_its_own_start_only_in_flexible_billing(
    sb: Sandbox, shop: Shop, client: Client, version: str, start: int
) -> None:
    sb.books.event_version = version
    sub, _, _ = shop.subscribe(trial_end=NOW + 7 * DAY)
    sb.books.set_clock(NOW + 40 * DAY)
    again = {"trial_end": NOW + 50 * DAY, "proration_behavior": "none"}
    answer = await client.post(f"/v1/subscriptions/{sub['id']}", again, Stripe_Version=version)
    told = answer.body
    assert (told["status"], told["trial_start"], told["trial_end"]) == ("trialing", start, NOW + 50 * DAY)
    assert latest(sb, sub)["total"] == 0
    sb.books.set_clock(NOW + 50 * DAY + 3601)
    assert (sub["status"], latest(sb, sub)["amount_paid"]) == ("active", 2900)
    assert sub["items"]["data"][0]["current_period_end"] == after(NOW + 50 * DAY, shop.basic["recurring"], 1)


async def test_a_second_trial_credits_what_was_paid_for_the_time(sb: Sandbox, shop: Shop) -> None:
    sub, _, _ = shop.subscribe()
    item = sub["items"]["data"][0]
    middle = (item["current_period_start"] + item["current_period_end"]) // 2
    sb.books.set_clock(middle)
    sb.books.set_trial_end(sub, middle + 5 * DAY)
    assert shop.customer["balance"] == -1450


async def test_canceled_in_its_trial_it_ends_with_the_trial_also_when_that_is_extended(sb: Sandbox, shop: Shop) -> None:
    sub, _, _ = shop.subscribe(trial_end=NOW + 7 * DAY)
    sb.books.cancel_at_period_end(sub)
    sb.books.set_trial_end(sub, NOW + 9 * DAY)
    assert sub["cancel_at"] == NOW + 9 * DAY
    sb.books.advance(9 * DAY)
    assert (sub["status"], sub["ended_at"]) == ("canceled", NOW + 9 * DAY)
    assert not types(sb, "charge.")


# -- pauses ------------------------------------------------------------------------------------------------------------


async def test_a_paused_subscription_bills_nothing_until_it_is_resumed(sb: Sandbox, shop: Shop, client: Client) -> None:
    sub, _, _ = shop.subscribe()
    paused = await client.post(f"/v1/subscriptions/{sub['id']}/pause", {})
    assert (paused.body["status"], types(sb)[-1]) == ("paused", "customer.subscription.paused")
    sb.books.advance(70 * DAY)
    assert len(sb.books.linked("invoice", "subscription", sub["id"])) == 1
    old = await client.ask("GET", f"/v1/subscriptions/{sub['id']}", Stripe_Version="2025-02-24.acacia")
    assert (old.body["status"], "status_details" in old.body) == ("paused", False)


@pytest.mark.parametrize(
    ("behavior", "status"), [("void", "void"), ("keep_as_draft", "draft"), ("mark_uncollectible", "uncollectible")]
)
async def test_paused_collection_leaves_the_status_and_bills_in_vain(
    sb: Sandbox, shop: Shop, client: Client, behavior: str, status: str
) -> None:
    sub, _, _ = shop.subscribe()
    await client.post(f"/v1/subscriptions/{sub['id']}", {"pause_collection[behavior]": behavior})
    sb.books.advance(32 * DAY)
    assert (sub["status"], latest(sb, sub)["status"]) == ("active", status)
    resumed = await client.post(f"/v1/subscriptions/{sub['id']}", {"pause_collection": ""})
    assert resumed.body["pause_collection"] is None
    sb.books.advance(31 * DAY)
    assert latest(sb, sub)["status"] == "paid"


async def test_collection_resumes_by_itself_where_a_day_was_named(sb: Sandbox, shop: Shop) -> None:
    sub, _, _ = shop.subscribe()
    sb.books.pause_collection(sub, "void", resumes_at=NOW + 3 * DAY)
    sb.books.advance(3 * DAY)
    assert sub["pause_collection"] is None


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after_retries", "drafts"), [("unpaid", True), ("past_due", False)])
async def test_after_the_last_retry_it_may_stay_unpaid_or_past_due(
    sb: Sandbox, shop: Shop, after_retries: str, drafts: bool
) -> None:
    sb.books.after_retries = after_retries
    sub, _, _ = shop.subscribe()
    sb.books.new_method(shop.customer, charge="declines")
    sb.books.advance(50 * DAY)
    assert (sub["status"], sub["ended_at"]) == (after_retries, None)
    sb.books.advance(20 * DAY)
    newest = latest(sb, sub)
    assert (newest["status"], newest["auto_advance"]) == (("draft", False) if drafts else ("open", True))


async def test_it_can_be_set_to_end_at_any_moment_and_that_can_be_withdrawn(
    sb: Sandbox, shop: Shop, client: Client
) -> None:
    sub, _, _ = shop.subscribe()
    path = f"/v1/subscriptions/{sub['id']}"
    assert (await client.post(path, {"cancel_at": NOW + 45 * DAY})).body["cancel_at"] == NOW + 45 * DAY
    assert (await client.post(path, {"cancel_at": ""})).body["cancel_at"] is None
    await client.post(path, {"cancel_at": NOW + 50 * DAY})
    sb.books.advance(50 * DAY - 1)
    assert sub["status"] == "active"
    sb.books.advance(1)
    assert (sub["status"], sub["ended_at"], sub["canceled_at"]) == ("canceled", NOW + 50 * DAY, NOW)


async def test_prorated_without_final_invoice_the_credit_stays_pending(sb: Sandbox, shop: Shop, client: Client) -> None:
    sub, _, _ = shop.subscribe()
    item = sub["items"]["data"][0]
    sb.books.set_clock((item["current_period_start"] + item["current_period_end"]) // 2)
    await client.ask("DELETE", f"/v1/subscriptions/{sub['id']}", {"prorate": "true"})
    assert (shop.customer["balance"], len(sb.books.linked("invoice", "subscription", sub["id"]))) == (0, 1)
    invoice = sb.books.invoice_pending(sub)
    assert invoice is not None
    (line,) = invoice["lines"]["data"]
    assert (line["amount"], line["parent"]["subscription_item_details"]["proration"]) == (-1450, True)
    assert (line["period"]["end"], invoice["billing_reason"]) == (item["current_period_end"], "manual")
    assert shop.customer["balance"] == -1450


@pytest.mark.parametrize(("prorate", "kept"), [("true", [-2900, 5800, -5800]), ("false", None)])
async def test_what_was_pending_is_kept_with_a_proration_and_dropped_without(
    sb: Sandbox, shop: Shop, client: Client, prorate: str, kept: list[int] | None
) -> None:
    sub, _, _ = shop.subscribe()
    sb.books.update_items(sub, [{"quantity": 2}])
    await client.ask("DELETE", f"/v1/subscriptions/{sub['id']}", {"prorate": prorate})
    invoice = sb.books.invoice_pending(sub)
    assert (invoice and [line["amount"] for line in invoice["lines"]["data"]]) == kept


async def test_a_trial_ended_at_once_has_nothing_to_credit(sb: Sandbox, shop: Shop) -> None:
    sub, _, _ = shop.subscribe(trial_end=NOW + 7 * DAY)
    sb.books.cancel(sub, prorate=True, invoice_now=True)
    assert (sub["status"], shop.customer["balance"]) == ("canceled", 0)


@pytest.mark.parametrize("version", ["2026-10-28.endive", "2025-02-24.acacia"])
async def test_the_app_can_bill_a_period_after_the_end(sb: Sandbox, shop: Shop, client: Client, version: str) -> None:
    sub, _, _ = shop.subscribe()
    sb.books.cancel(sub)
    sb.books.advance(2 * DAY)
    charge = sb.books.charge_after_end(sub)
    found = await client.ask("GET", f"/v1/invoices?subscription={sub['id']}&limit=1", Stripe_Version=version)
    (invoice,) = found.body["data"]
    (line,) = invoice["lines"]["data"]
    assert (charge["status"], invoice["status"], invoice["billing_reason"]) == ("succeeded", "paid", "manual")
    assert line["period"] == {"start": NOW + 2 * DAY, "end": after(NOW + 2 * DAY, shop.basic["recurring"], 1)}
    assert sub["ended_at"] <= line["period"]["start"]
    details = line["parent"]["subscription_item_details"] if "parent" in line else line
    assert (details["subscription"], details["proration"]) == (sub["id"], False)
    assert sub["status"] == "canceled"


async def test_only_what_has_ended_can_be_billed_after_its_end(sb: Sandbox, shop: Shop) -> None:
    sub, _, _ = shop.subscribe()
    with pytest.raises(ValueError, match="not ended"):
        sb.books.charge_after_end(sub)
