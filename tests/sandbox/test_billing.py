"""Subscriptions, invoices and the customer's balance live as Stripe Billing lets them live."""

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


async def test_a_first_invoice_is_charged_at_once(sb: Sandbox, shop: Shop) -> None:
    before = len(types(sb))
    sub, invoice, charge = shop.subscribe(metadata={"user_id": "u1"})
    assert (sub["status"], invoice["status"], charge["status"]) == ("active", "paid", "succeeded")
    line = invoice["lines"]["data"][0]
    assert line["period"] == {"start": NOW, "end": after(NOW, shop.basic["recurring"], 1)}
    assert invoice["parent"]["subscription_details"]["metadata"] == {"user_id": "u1"}
    assert types(sb)[before:] == [
        "customer.subscription.created",
        "invoice.created",
        "payment_intent.created",
        "invoice.finalized",
        "charge.succeeded",
        "payment_intent.succeeded",
        "invoice_payment.paid",
        "invoice.updated",
        "invoice.paid",
        "invoice.payment_succeeded",
        "customer.subscription.updated",
    ]


@pytest.mark.parametrize(("inclusive", "total", "tax"), [(False, 3068, 458), (True, 2610, 338)])
async def test_taxes_and_discounts_close_on_the_total(
    sb: Sandbox, shop: Shop, inclusive: bool, total: int, tax: int
) -> None:
    rate = sb.books.new_tax_rate(17.55 if not inclusive else 14.9, inclusive=inclusive)
    _, invoice, charge = shop.subscribe(coupon=sb.books.new_coupon(percent_off=10), tax_rates=[rate])
    line = invoice["lines"]["data"][0]
    discounted = line["amount"] - sum(d["amount"] for d in line["discount_amounts"])
    assert (invoice["subtotal"], discounted) == (2900, 2610)
    assert (line["taxes"][0]["amount"], invoice["total"], charge["amount"]) == (tax, total, total)


async def test_a_renewal_is_drafted_then_finalized_an_hour_later(sb: Sandbox, shop: Shop) -> None:
    sub, first, _ = shop.subscribe()
    end = sub["items"]["data"][0]["current_period_end"]
    sb.books.set_clock(end + 60)
    assert (latest(sb, sub)["status"], latest(sb, sub)["billing_reason"]) == ("draft", "subscription_cycle")
    sb.books.set_clock(end + 3601)
    renewal = latest(sb, sub)
    assert (renewal["status"], renewal["id"] != first["id"]) == ("paid", True)
    assert renewal["lines"]["data"][0]["period"]["start"] == end
    assert renewal["period_start"] == NOW
    """The invoice's own period is the one before: the service period stands on the line."""


async def test_months_keep_their_anchor(sb: Sandbox) -> None:
    january = 1_706_702_400  # 2024-01-31 12:00 UTC
    ends = [after(january, {"interval": "month", "interval_count": 1}, n) for n in (1, 2)]
    assert ends == [1_709_208_000, 1_711_886_400]


async def test_a_second_payment_of_one_invoice_becomes_credit_that_the_next_invoice_eats(
    sb: Sandbox, shop: Shop, client: Client
) -> None:
    sub, invoice, _ = shop.subscribe()
    again = sb.books.pay_again(invoice)
    assert (invoice["amount_paid"], invoice["amount_overpaid"], invoice["amount_remaining"]) == (5800, 2900, 0)
    assert (again["status"], shop.customer["balance"], types(sb, "invoice.overpaid")) == (
        "succeeded",
        -2900,
        ["invoice.overpaid"],
    )
    sb.books.advance(32 * DAY)
    renewal = latest(sb, sub)
    assert (renewal["starting_balance"], renewal["ending_balance"], renewal["amount_due"]) == (-2900, 0, 0)
    assert (renewal["status"], renewal["total"]) == ("paid", 2900)
    booked = await client.get(f"/v1/customers/{shop.customer['id']}/balance_transactions")
    assert [(t["type"], t["amount"], t["invoice"]) for t in booked.body["data"]] == [
        ("applied_to_invoice", 2900, renewal["id"]),
        ("invoice_overpaid", -2900, invoice["id"]),
    ]


async def test_an_overpayment_may_book_no_credit(sb: Sandbox, shop: Shop) -> None:
    _, invoice, _ = shop.subscribe()
    sb.books.pay_again(invoice, credit=False)
    assert (invoice["amount_overpaid"], shop.customer["balance"]) == (2900, 0)


async def test_a_debit_adjustment_reverses_the_credit(sb: Sandbox, shop: Shop, client: Client) -> None:
    _, invoice, _ = shop.subscribe()
    sb.books.pay_again(invoice)
    path = f"/v1/customers/{shop.customer['id']}/balance_transactions"
    answer = await client.post(path, {"amount": 2900, "currency": "usd", "metadata[dup]": "1"})
    assert (answer.body["type"], answer.body["ending_balance"], shop.customer["balance"]) == ("adjustment", 0, 0)
    assert (await client.post(path, {"amount": 2900, "currency": "eur"})).status == 400


async def test_marking_an_invoice_paid_cancels_its_payment_intent(sb: Sandbox, shop: Shop, client: Client) -> None:
    bad = sb.books.new_method(shop.customer, charge="declines")
    sub, invoice, _ = shop.subscribe()
    assert (sub["status"], invoice["status"], bad.charge) == ("incomplete", "open", "declines")
    paid = await client.post(f"/v1/invoices/{invoice['id']}/pay", {"paid_out_of_band": "true"})
    assert (paid.body["status"], paid.body["amount_paid"], paid.body["amount_paid_off_stripe"]) == ("paid", 2900, 2900)
    pi = sb.books.by_id[sb.books.linked("invoice_payment", "invoice", invoice["id"])[0]["payment"]["payment_intent"]]
    assert (pi["status"], pi["cancellation_reason"], sub["status"]) == ("canceled", "requested_by_customer", "active")


async def test_an_unpaid_first_invoice_expires_after_23_hours(sb: Sandbox, shop: Shop) -> None:
    sb.books.new_method(shop.customer, charge="declines")
    sub, invoice, _ = shop.subscribe()
    sb.books.advance(23 * 3600 - 1)
    assert sub["status"] == "incomplete"
    sb.books.advance(2)
    assert (sub["status"], invoice["status"]) == ("incomplete_expired", "void")


async def test_a_failed_renewal_is_retried_on_the_same_payment_intent(sb: Sandbox, shop: Shop) -> None:
    sub, _, _ = shop.subscribe()
    good = shop.customer["invoice_settings"]["default_payment_method"]
    sb.books.new_method(shop.customer, charge="declines")
    sb.books.set_clock(sub["items"]["data"][0]["current_period_end"] + 3700)
    invoice = latest(sb, sub)
    assert (sub["status"], invoice["attempt_count"], types(sb, "invoice.payment_failed")) == (
        "past_due",
        1,
        ["invoice.payment_failed"],
    )
    shop.customer["invoice_settings"]["default_payment_method"] = good
    sb.books.advance(3 * DAY)
    assert (sub["status"], invoice["status"], invoice["attempt_count"]) == ("active", "paid", 2)
    payments = sb.books.linked("invoice_payment", "invoice", invoice["id"])
    charges = sb.books.linked("charge", "payment_intent", payments[0]["payment"]["payment_intent"])
    assert [charge["status"] for charge in charges] == ["failed", "succeeded"]


async def test_when_every_retry_fails_the_subscription_ends(sb: Sandbox, shop: Shop) -> None:
    sub, _, _ = shop.subscribe()
    sb.books.new_method(shop.customer, charge="declines")
    sb.books.advance(31 * DAY + 20 * DAY)
    assert (sub["status"], sub["cancellation_details"]["reason"]) == ("canceled", "payment_failed")


async def test_a_trial_costs_nothing_and_then_converts(sb: Sandbox, shop: Shop) -> None:
    sub, invoice, _ = shop.subscribe(trial_end=NOW + 7 * DAY)
    assert (sub["status"], invoice["total"], invoice["status"]) == ("trialing", 0, "paid")
    assert not sb.books.linked("invoice_payment", "invoice", invoice["id"])
    sb.books.advance(4 * DAY + 1)
    assert types(sb, "customer.subscription.trial") == ["customer.subscription.trial_will_end"]
    sb.books.advance(3 * DAY)
    assert (sub["status"], latest(sb, sub)["status"]) == ("active", "draft")
    sb.books.advance(3600)
    assert (latest(sb, sub)["status"], latest(sb, sub)["amount_paid"]) == ("paid", 2900)


async def test_a_trial_can_be_extended(sb: Sandbox, shop: Shop, client: Client) -> None:
    sub, _, _ = shop.subscribe(trial_end=NOW + 7 * DAY)
    await client.post(f"/v1/subscriptions/{sub['id']}", {"trial_end": NOW + 9 * DAY})
    sb.books.advance(8 * DAY)
    assert sub["status"] == "trialing"
    sb.books.advance(DAY + 1)
    assert sub["status"] == "active"


async def test_canceling_at_period_end_ends_with_the_period(sb: Sandbox, shop: Shop, client: Client) -> None:
    sub, _, _ = shop.subscribe()
    end = sub["items"]["data"][0]["current_period_end"]
    sb.books.advance(DAY)
    await client.post(f"/v1/subscriptions/{sub['id']}", {"cancel_at_period_end": "true"})
    assert (sub["status"], sub["canceled_at"], sub["ended_at"]) == ("active", NOW + DAY, None)
    sb.books.set_clock(end + 10)
    assert (sub["status"], sub["canceled_at"], sub["ended_at"]) == ("canceled", NOW + DAY, end)
    assert len(sb.books.linked("invoice", "subscription", sub["id"])) == 1


async def test_canceling_now_makes_no_invoice_and_twice_is_404(sb: Sandbox, shop: Shop, client: Client) -> None:
    sub, _, _ = shop.subscribe()
    first = await client.ask("DELETE", f"/v1/subscriptions/{sub['id']}", {"prorate": "false", "invoice_now": "false"})
    assert (first.body["status"], first.body["ended_at"]) == ("canceled", NOW)
    assert len(sb.books.linked("invoice", "subscription", sub["id"])) == 1
    second = await client.ask("DELETE", f"/v1/subscriptions/{sub['id']}")
    assert (second.status, second.error["code"]) == (404, "resource_missing")


async def test_canceling_with_proration_and_invoice_gives_credit(sb: Sandbox, shop: Shop) -> None:
    sub, _, _ = shop.subscribe()
    item = sub["items"]["data"][0]
    sb.books.set_clock((item["current_period_start"] + item["current_period_end"]) // 2)
    sb.books.cancel(sub, prorate=True, invoice_now=True)
    assert shop.customer["balance"] == -1450


async def test_an_upgrade_credits_the_rest_and_charges_the_rest(sb: Sandbox, shop: Shop, client: Client) -> None:
    sub, _, _ = shop.subscribe()
    item = sub["items"]["data"][0]
    sb.books.set_clock((item["current_period_start"] + item["current_period_end"]) // 2)
    change = {"items[0][id]": item["id"], "items[0][price]": shop.pro["id"], "proration_behavior": "always_invoice"}
    answer = await client.post(f"/v1/subscriptions/{sub['id']}", change)
    invoice = sb.books.by_id[answer.body["latest_invoice"]]
    assert (invoice["billing_reason"], invoice["amount_paid"]) == ("subscription_update", 3500)
    assert [line["amount"] for line in invoice["lines"]["data"]] == [-1450, 4950]
    assert all(line["parent"]["subscription_item_details"]["proration"] for line in invoice["lines"]["data"])


async def test_pending_prorations_wait_for_the_next_invoice(sb: Sandbox, shop: Shop) -> None:
    sub, _, _ = shop.subscribe()
    assert sb.books.update_items(sub, [{"quantity": 2}]) is None
    sb.books.advance(32 * DAY)
    assert [line["amount"] for line in latest(sb, sub)["lines"]["data"]] == [-2900, 5800, 5800]


async def test_another_interval_starts_a_new_period(sb: Sandbox, shop: Shop) -> None:
    year = sb.books.new_price(shop.basic["product"], "usd", 29000, interval="year")
    sub, _, _ = shop.subscribe()
    sb.books.update_items(sub, [{"price": year}], "always_invoice")
    assert [line["amount"] for line in latest(sb, sub)["lines"]["data"]] == [-2900, 29000]
    assert sub["items"]["data"][0]["current_period_end"] == after(NOW, year["recurring"], 1)


async def test_two_cycle_invoices_for_one_period_of_one_item(sb: Sandbox, shop: Shop) -> None:
    sub, _, _ = shop.subscribe()
    sb.books.advance(32 * DAY)
    again = sb.books.cycle_again(sub)
    one, two = (i["lines"]["data"][0] for i in (latest(sb, sub), again))
    assert (again["status"], again["billing_reason"]) == ("paid", "subscription_cycle")
    assert (one["period"], one["parent"]) == (two["period"], two["parent"])


async def test_a_succeeded_payment_intent_can_be_attached_to_an_open_invoice(
    sb: Sandbox, shop: Shop, client: Client
) -> None:
    sb.books.new_method(shop.customer, charge="declines")
    _, invoice, _ = shop.subscribe()
    pi, _ = sb.books.pay_bare(shop.customer, 2900, "usd", method=sb.books.method("pm_card_visa"))
    path = f"/v1/invoices/{invoice['id']}/attach_payment"
    assert (await client.post(path, {"payment_intent": pi["id"]})).body["status"] == "paid"
    assert (await client.post(path, {"payment_intent": pi["id"]})).status == 400


async def test_a_pack_bought_in_checkout_has_a_session_and_no_invoice(sb: Sandbox, shop: Shop, client: Client) -> None:
    session = sb.books.checkout(shop.customer, shop.pack, mode="payment", client_reference_id="u1")
    found = await client.get("/v1/checkout/sessions", payment_intent=session["payment_intent"])
    assert [(s["id"], s["payment_status"], s["client_reference_id"]) for s in found.body["data"]] == [
        (session["id"], "paid", "u1")
    ]
    assert not list(sb.books.all("invoice"))


async def test_a_customer_without_a_payment_method_cannot_subscribe(shop: Shop, client: Client) -> None:
    customer = (await client.post("/v1/customers", {"email": "b@example.com"})).body
    params = {"customer": customer["id"], "items[0][price]": shop.basic["id"]}
    assert (await client.post("/v1/subscriptions", params)).error["code"] == "resource_missing"
    params["default_payment_method"] = "pm_card_visa"
    assert (await client.post("/v1/subscriptions", params)).body["status"] == "active"


async def test_a_declined_confirmation_is_402(shop: Shop, client: Client) -> None:
    params = {"amount": 100, "currency": "usd", "confirm": "true", "payment_method": "pm_card_chargeDeclined"}
    declined = await client.post("/v1/payment_intents", params)
    assert (declined.status, declined.error["type"], declined.error["code"]) == (402, "card_error", "card_declined")


async def test_malformed_items_are_refused_in_words(shop: Shop, client: Client) -> None:
    for items in ({"items": "x"}, {"items[0]": "x"}, {"items[price]": "x"}, {}):
        answer = await client.post("/v1/subscriptions", {"customer": shop.customer["id"], **items})
        assert (answer.status, answer.error["param"]) == (400, "items")
