"""Checkout sessions and the prices in them: line items, delayed payments, and the metadata that grants credits."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox import Sandbox
from tests.sandbox.conftest import NOW, Client, Obj, Shop

DAY = 86400
BANK: Obj = {"type": "us_bank_account", "settle_s": 2 * DAY}


def sessions(sb: Sandbox) -> list[str]:
    return [event["type"] for event in sb.books.all("event") if event["type"].startswith("checkout.")]


async def test_the_line_items_of_a_session_are_read_in_pages(sb: Sandbox, shop: Shop, client: Client) -> None:
    pack = sb.books.new_price(shop.pack["product"], "usd", 1500, metadata={"credits": "100"})
    session = sb.books.checkout(shop.customer, pack, mode="payment", quantity=3, extra=[(shop.pack, 1)])
    path = f"/v1/checkout/sessions/{session['id']}/line_items"
    whole = (await client.get(path)).body
    first, second = whole["data"]
    assert (first["object"], first["quantity"], first["amount_total"]) == ("item", 3, 4500)
    assert (first["price"]["metadata"], first["price"]["type"]) == ({"credits": "100"}, "one_time")
    assert (session["amount_total"], whole["has_more"]) == (6000, False)
    page = (await client.get(path, limit=1)).body
    assert ([line["id"] for line in page["data"]], page["has_more"]) == ([first["id"]], True)
    rest = (await client.get(path, limit=1, starting_after=first["id"])).body
    assert ([line["id"] for line in rest["data"]], rest["has_more"]) == ([second["id"]], False)
    assert (await client.get(path, starting_after="li_no")).status == 404
    assert (await client.get("/v1/checkout/sessions/cs_no/line_items")).status == 404


async def test_line_items_of_a_subscription_close_on_the_total(sb: Sandbox, shop: Shop, client: Client) -> None:
    rate = sb.books.new_tax_rate(10.0, inclusive=False)
    session = sb.books.checkout(
        shop.customer,
        shop.basic,
        mode="subscription",
        extra=[(shop.pack, 2)],
        coupon=sb.books.new_coupon(percent_off=50),
        tax_rates=[rate],
    )
    lines = (await client.get(f"/v1/checkout/sessions/{session['id']}/line_items")).body["data"]
    assert {line["price"]["id"] for line in lines} == {shop.basic["id"], shop.pack["id"]}
    assert sum(line["amount_total"] for line in lines) == session["amount_total"] == 3245
    assert [(line["amount_discount"], line["amount_tax"]) for line in lines] == [(1500, 150), (1450, 145)]


@pytest.mark.parametrize("mode", ["payment", "subscription"])
@pytest.mark.parametrize(
    ("charge", "event", "status"),
    [("succeeds", "async_payment_succeeded", "paid"), ("fails", "async_payment_failed", "unpaid")],
)
async def test_a_delayed_payment_completes_the_session_first_and_is_told_of_later(
    sb: Sandbox, shop: Shop, mode: str, charge: str, event: str, status: str
) -> None:
    method = sb.books.new_method(None, charge=charge, **BANK)
    price = shop.pack if mode == "payment" else shop.basic
    session = sb.books.checkout(shop.customer, price, mode=mode, method=method)
    assert (session["status"], session["payment_status"]) == ("complete", "unpaid")
    assert sessions(sb) == ["checkout.session.completed"]
    sb.books.advance(2 * DAY)
    assert (session["status"], session["payment_status"]) == ("complete", status)
    assert sessions(sb) == ["checkout.session.completed", f"checkout.session.{event}"]


async def test_a_declined_card_leaves_the_session_open_until_it_expires(sb: Sandbox, shop: Shop) -> None:
    method = sb.books.new_method(None, charge="declines")
    session = sb.books.checkout(shop.customer, shop.pack, mode="payment", method=method)
    assert (session["status"], session["payment_status"], sessions(sb)) == ("open", "unpaid", [])
    sb.books.advance(DAY)
    assert (session["status"], sessions(sb)) == ("expired", ["checkout.session.expired"])


async def test_a_trial_needs_no_payment(sb: Sandbox, shop: Shop) -> None:
    session = sb.books.checkout(shop.customer, shop.basic, mode="subscription", trial_end=NOW + 7 * DAY)
    assert (session["payment_status"], session["amount_total"]) == ("no_payment_required", 0)


@pytest.mark.parametrize("version", ["2026-10-28.endive", "2025-11-17.clover", "2025-02-24.acacia"])
async def test_what_a_price_grants_stands_on_items_and_in_old_versions_on_lines(
    sb: Sandbox, shop: Shop, client: Client, version: str
) -> None:
    price = sb.books.new_price(shop.basic["product"], "usd", 100, interval="week", metadata={"credits": "500"})
    sub = sb.books.subscribe(shop.customer, [(price, 1)])
    changed = await client.post(f"/v1/prices/{price['id']}", {"metadata[credits]": "600", "metadata[trial_credits]": 5})
    granted = {"credits": "600", "trial_credits": "5"}
    assert changed.body["metadata"] == granted
    shown = (await client.ask("GET", f"/v1/subscriptions/{sub['id']}", Stripe_Version=version)).body
    item = shown["items"]["data"][0]
    assert (item["price"]["metadata"], item["plan"]["metadata"]) == (granted, granted)
    invoice = (await client.ask("GET", f"/v1/invoices/{sub['latest_invoice']}", Stripe_Version=version)).body
    line: Any = invoice["lines"]["data"][0]
    assert line.get("price", {}).get("metadata") == (granted if version < "2025-03-31" else None)
    await client.post(f"/v1/prices/{price['id']}", {"metadata[credits]": ""})
    assert price["metadata"] == {"trial_credits": "5"}
