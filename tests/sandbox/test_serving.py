"""Keys, lists, faults, limits, webhooks and the process itself."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
import time

import aiohttp
import msgspec
import pytest
import stripe

from sandbox import Sandbox
from tests.sandbox.conftest import NOW, Client, Obj, Receiver, Shop

SECRET = "whsec_sandbox"


# -- admission and lists -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("authorization", ["", "Bearer nonsense", "Bearer sk_live_x", "Basic ???"])
async def test_without_a_key_of_this_mode_it_is_401(client: Client, authorization: str) -> None:
    answer = await client.ask("GET", "/v1/charges", Authorization=authorization)
    assert (answer.status, answer.error["type"]) == (401, "invalid_request_error")


async def test_basic_authentication_works_and_a_reading_key_only_reads(shop: Shop, client: Client) -> None:
    basic = "Basic " + base64.b64encode(b"sk_test_x:").decode()
    assert (await client.ask("GET", "/v1/charges", Authorization=basic)).status == 200
    read_only = "Bearer rk_test_readonly"
    assert (await client.ask("GET", "/v1/charges", Authorization=read_only)).status == 200
    assert (await client.ask("POST", "/v1/refunds", {"charge": "x"}, Authorization=read_only)).status == 403


async def test_the_date_is_the_sandbox_clock(client: Client) -> None:
    assert (await client.get("/v1/charges")).headers["Date"] == "Mon, 21 Sep 2026 14:13:20 GMT"


async def test_lists_page_newest_first_in_both_directions(sb: Sandbox, shop: Shop, client: Client) -> None:
    ids = [shop.charge()["id"] for _ in range(5)]
    first = (await client.get("/v1/charges", limit=2)).body
    assert ([c["id"] for c in first["data"]], first["has_more"]) == (ids[:2:-1], True)
    rest = (await client.get("/v1/charges", limit=10, starting_after=ids[3])).body
    assert ([c["id"] for c in rest["data"]], rest["has_more"]) == (ids[2::-1], False)
    newer = (await client.get("/v1/charges", limit=2, ending_before=ids[1])).body
    assert ([c["id"] for c in newer["data"]], newer["has_more"]) == ([ids[3], ids[2]], True)
    assert (await client.get("/v1/charges", limit=101)).status == 400
    assert (await client.get("/v1/charges", starting_after="ch_no")).error["code"] == "resource_missing"
    assert (await client.get("/v1/charges", colour="red")).error["code"] == "parameter_unknown"


async def test_created_windows_are_cut_exactly(sb: Sandbox, shop: Shop, client: Client) -> None:
    for _ in range(3):
        shop.charge()
        sb.books.advance(1)
    cases: list[tuple[Obj, int]] = [
        ({"created[gte]": NOW, "created[lt]": NOW + 2}, 2),
        ({"created[gt]": NOW, "created[lte]": NOW + 2}, 2),
        ({"created": NOW + 1}, 1),
        ({"created[gte]": NOW + 3}, 0),
    ]
    for params, count in cases:
        assert len((await client.ask("GET", "/v1/charges", params)).body["data"]) == count


async def test_every_documented_filter_finds_its_object(sb: Sandbox, shop: Shop, client: Client) -> None:
    sub, invoice, charge = shop.subscribe()
    pi, customer = charge["payment_intent"], shop.customer["id"]
    shop.charge()
    refund, dispute = sb.books.create_refund(charge, 100), sb.books.open_dispute(charge)
    found: list[tuple[str, Obj, str]] = [
        ("charges", {"payment_intent": pi}, charge["id"]),
        ("refunds", {"charge": charge["id"]}, refund["id"]),
        ("refunds", {"payment_intent": pi}, refund["id"]),
        ("disputes", {"charge": charge["id"]}, dispute["id"]),
        ("invoices", {"subscription": sub["id"], "status": "paid"}, invoice["id"]),
        ("invoices", {"customer": customer}, invoice["id"]),
        ("subscriptions", {"customer": customer, "price": shop.basic["id"], "status": "active"}, sub["id"]),
        ("balance_transactions", {"source": refund["id"], "type": "refund"}, refund["balance_transaction"]),
    ]
    for path, params, id_ in found:
        answer = await client.ask("GET", f"/v1/{path}", params)
        assert [o["id"] for o in answer.body["data"]] == [id_], path
    payment = {"payment[type]": "payment_intent", "payment[payment_intent]": pi}
    for params in (payment, {"invoice": invoice["id"], "status": "paid"}):
        answer = await client.ask("GET", "/v1/invoice_payments", params)
        assert [p["invoice"] for p in answer.body["data"]] == [invoice["id"]]
    old = await client.ask("GET", "/v1/invoice_payments", Stripe_Version="2025-02-24.acacia")
    assert old.status == 404
    lines = (await client.get(f"/v1/invoices/{invoice['id']}/lines")).body
    assert [line["id"] for line in lines["data"]] == [invoice["lines"]["data"][0]["id"]]


async def test_an_invoice_carries_ten_lines_and_the_rest_is_read_page_by_page(
    sb: Sandbox, shop: Shop, client: Client
) -> None:
    _, invoice, _ = shop.subscribe(extra=[(shop.pack, 1)] * 11)
    ids = [line["id"] for line in invoice["lines"]["data"]]
    path = f"/v1/invoices/{invoice['id']}"
    shown = (await client.get(path)).body["lines"]
    assert ([line["id"] for line in shown["data"]], shown["has_more"], shown["total_count"]) == (ids[:10], True, 12)
    rest = (await client.get(f"{path}/lines", starting_after=ids[9])).body
    assert ([line["id"] for line in rest["data"]], rest["has_more"]) == (ids[10:], False)


async def test_canceled_subscriptions_are_listed_only_when_asked_for(sb: Sandbox, shop: Shop, client: Client) -> None:
    sb.books.cancel(shop.subscribe()[0])
    clocked = sb.books.new_customer(test_clock="clock_1")
    sb.books.subscribe(clocked, [(shop.basic, 1)])
    for status, count in (({}, 0), ({"status": "all"}, 1), ({"status": "canceled"}, 1), ({"status": "active"}, 0)):
        assert len((await client.ask("GET", "/v1/subscriptions", status)).body["data"]) == count


async def test_expand_follows_ids_through_lists(sb: Sandbox, shop: Shop, client: Client) -> None:
    _, invoice, charge = shop.subscribe()
    path = "payments.data.payment.payment_intent.latest_charge"
    one = (await client.ask("GET", f"/v1/invoices/{invoice['id']}", {"expand[]": path})).body
    assert one["payments"]["data"][0]["payment"]["payment_intent"]["latest_charge"]["id"] == charge["id"]
    assert "payments" not in (await client.get(f"/v1/invoices/{invoice['id']}")).body
    sb.books.create_refund(charge, 5)
    refunds = (await client.ask("GET", "/v1/refunds", {"expand[]": "data.charge"})).body
    assert refunds["data"][0]["charge"]["amount_refunded"] == 5
    assert isinstance(charge["payment_intent"], str)


async def test_events_are_filtered_by_type_and_by_delivery(sb: Sandbox, shop: Shop, client: Client) -> None:
    shop.subscribe()
    wild = (await client.get("/v1/events", type="charge.*")).body["data"]
    assert [e["type"] for e in wild] == ["charge.succeeded"]
    two = await client.ask("GET", "/v1/events", {"types[0]": "invoice.paid", "types[1]": "charge.succeeded"})
    assert [e["type"] for e in two.body["data"]] == ["invoice.paid", "charge.succeeded"]
    assert (await client.get("/v1/events", delivery_success="false")).body["data"] == []
    sb.books.advance(31 * 86400 - 1)
    assert all(e["created"] > NOW for e in (await client.get("/v1/events")).body["data"])


async def test_the_official_sdk_talks_to_it(sb: Sandbox, shop: Shop) -> None:
    stripe.enable_telemetry = False
    http = stripe.AIOHTTPClient()
    client = stripe.StripeClient("sk_test_x", base_addresses={"api": sb.url}, http_client=http)
    _, _, charge = shop.subscribe()
    refund = await client.v1.refunds.create_async(
        {"charge": charge["id"], "amount": 100, "metadata": {"a": "b"}}, {"idempotency_key": "k"}
    )
    assert (refund.amount, refund.metadata and refund.metadata["a"]) == (100, "b")
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await client.v1.refunds.create_async({"charge": charge["id"], "amount": 9999})
    assert (refused.value.code, refused.value.param) == (None, "amount")
    pages = await client.v1.events.list_async({"limit": 3})
    assert len([event async for event in pages.auto_paging_iter()]) == len(list(sb.books.all("event")))
    await http.close_async()  # type: ignore[no-untyped-call] # untyped in the SDK


# -- faults and limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "refunded"), [("truncated", 100), ("reset", 100), ("timeout_after", 100)])
async def test_an_answer_can_be_lost_after_the_effect(
    sb: Sandbox, shop: Shop, client: Client, kind: str, refunded: int
) -> None:
    charge = shop.charge()
    params = {"charge": charge["id"], "amount": 100}
    sb.configure({"faults": {"rules": [{"kind": kind, "path": "/v1/refunds", "hold_s": 0.2}]}})
    with pytest.raises(aiohttp.ClientError):
        await client.post("/v1/refunds", params, key="k")
    assert charge["amount_refunded"] == refunded
    sb.configure({"faults": []})
    again = await client.post("/v1/refunds", params, key="k")
    assert (again.status, again.headers["Idempotent-Replayed"], charge["amount_refunded"]) == (200, "true", 100)


@pytest.mark.parametrize("kind", ["timeout_before", "502_before"])
async def test_a_request_can_be_lost_before_the_effect(sb: Sandbox, shop: Shop, client: Client, kind: str) -> None:
    charge = shop.charge()
    sb.configure({"faults": [{"kind": kind, "method": "POST", "times": 1, "hold_s": 0.2}]})
    try:
        assert (await client.post("/v1/refunds", {"charge": charge["id"]}, key="k")).status == 502
    except aiohttp.ClientError:
        assert kind == "timeout_before"
    assert charge["amount_refunded"] == 0
    assert (await client.post("/v1/refunds", {"charge": charge["id"]}, key="k")).status == 200


async def test_a_502_after_the_effect_leaves_the_true_answer_under_the_key(
    sb: Sandbox, shop: Shop, client: Client
) -> None:
    charge = shop.charge()
    sb.configure({"faults": [{"kind": "502_after", "times": 1}]})
    assert (await client.post("/v1/refunds", {"charge": charge["id"]}, key="k")).status == 502
    assert (await client.post("/v1/refunds", {"charge": charge["id"]}, key="k")).status == 200
    assert charge["amount_refunded"] == charge["amount"]


async def test_rate_limits_are_per_endpoint_and_in_all(sb: Sandbox, client: Client) -> None:
    sb.configure({"rate_limit": {"endpoint_per_s": 3, "global_per_s": 5}})
    answers = [await client.get("/v1/charges") for _ in range(4)] + [await client.get("/v1/refunds") for _ in range(3)]
    refused = [a for a in answers if a.status == 429]
    reasons = [a.headers["Stripe-Rate-Limited-Reason"] for a in refused]
    assert (reasons[0], reasons[-1]) == ("endpoint-rate", "global-rate")


# -- webhooks ----------------------------------------------------------------------------------------------------------


def listen(sb: Sandbox, receiver: Receiver, **more: object) -> None:
    sb.configure({"webhook": {"url": receiver.url, "secrets": [SECRET], **more}})


async def test_events_arrive_signed_in_order_and_pretty(sb: Sandbox, shop: Shop, receiver: Receiver) -> None:
    listen(sb, receiver, concurrency=1)
    shop.subscribe()
    assert await sb.webhooks.flush(5) == 0
    made = [e["id"] for e in sb.books.all("event") if e["pending_webhooks"]]
    assert [e["id"] for e in receiver.events()] == made
    body, header = receiver.got[0]
    assert stripe.Webhook.construct_event(body, header, SECRET).id == made[0]
    assert body.startswith(b'{\n  "id"')


async def test_while_a_secret_is_rolled_there_is_one_signature_per_secret(
    sb: Sandbox, shop: Shop, receiver: Receiver
) -> None:
    listen(sb, receiver, secrets=["whsec_old", "whsec_new"])
    shop.charge()
    await sb.webhooks.flush(5)
    for secret in ("whsec_old", "whsec_new"):
        for body, header in receiver.got:
            assert stripe.WebhookSignature.verify_header(body.decode(), header, secret, 300)


async def test_a_refused_delivery_is_retried_with_a_new_signature_and_the_same_body(
    sb: Sandbox, shop: Shop, receiver: Receiver, client: Client
) -> None:
    receiver.answers = [500, 302, 200]
    listen(sb, receiver)
    sb.books.warn_of_fraud(shop.charge())
    pending = (await client.get("/v1/events", delivery_success="false")).body["data"]
    assert pending
    assert await sb.webhooks.flush(5) == 0
    bodies: dict[str, set[bytes]] = {}
    for body, _ in receiver.got:
        bodies.setdefault(msgspec.json.decode(body)["id"], set()).add(body)
    assert all(len(same) == 1 for same in bodies.values())
    assert sorted(a for d in sb.webhooks.deliveries for a in d.answers if a != 200) == [302, 500]
    assert (await client.get("/v1/events", delivery_success="false")).body["data"] == []


async def test_deliveries_can_be_doubled_shuffled_and_dropped(sb: Sandbox, shop: Shop, receiver: Receiver) -> None:
    listen(sb, receiver, duplicate=True, shuffle=20, concurrency=1)
    for _ in range(10):
        shop.charge()
    assert await sb.webhooks.flush(5) == 0
    got = [e["id"] for e in receiver.events()]
    made = [e["id"] for e in sb.books.all("event") if e["pending_webhooks"]]
    assert sorted(got) == sorted(made * 2)
    assert got != [id_ for id_ in made for _ in range(2)]
    receiver.got.clear()
    listen(sb, receiver, duplicate=False, shuffle=0, drop=1.0)
    shop.charge()
    assert (await sb.webhooks.flush(5), receiver.got) == (0, [])


async def test_a_thin_event_names_its_object_and_its_twin(sb: Sandbox, shop: Shop, receiver: Receiver) -> None:
    listen(sb, receiver, thin=True)
    charge = shop.charge()
    await sb.webhooks.flush(5)
    thin = [e for e in receiver.events() if e["object"] == "v2.core.event" and "charge" in e["type"]]
    assert [e["related_object"] for e in thin] == [
        {"id": charge["id"], "type": "charge", "url": f"/v1/charges/{charge['id']}"}
    ]
    assert thin[0]["snapshot_event"] in {e["id"] for e in receiver.events()}


async def test_an_event_keeps_the_version_it_was_made_in(
    sb: Sandbox, shop: Shop, receiver: Receiver, client: Client
) -> None:
    listen(sb, receiver, api_version="2024-06-20")
    _, invoice, charge = shop.subscribe()
    await sb.webhooks.flush(5)
    event = next(e for e in receiver.events() if e["type"] == "charge.succeeded")
    assert (event["api_version"], event["data"]["object"]["invoice"]) == ("2024-06-20", invoice["id"])
    read = (await client.get(f"/v1/events/{event['id']}")).body
    assert read["data"] == event["data"]
    assert "invoice" not in (await client.get(f"/v1/charges/{charge['id']}")).body


# -- the day and the process -------------------------------------------------------------------------------------------


async def test_a_day_is_delivered_whole_and_ends_in_the_past(receiver: Receiver) -> None:
    async with Sandbox(webhook_url=receiver.url, webhook_secrets=[SECRET]) as sb:
        day = sb.begin_day(customers=140, seed=2)
        await day.finished.wait()
        assert (day.state, await sb.webhooks.flush(30)) == ("done", 0)
        assert len(receiver.got) == sum(1 for e in sb.books.all("event") if e["pending_webhooks"])
        paid = [c["created"] for c in sb.books.all("charge")]
        assert max(paid) < time.time() - 1800
        assert abs(sb.books.now() - time.time()) < 2
        rules = {row.rule for row in day.truth}
        assert {f"D{n}" for n in range(1, 11)} <= rules
        assert {row.expect for row in day.truth} == {"refund", "review", "none"}


async def test_a_second_day_may_follow_in_the_same_books(sb: Sandbox) -> None:
    for _ in range(2):
        day = sb.begin_day(customers=130)
        await day.finished.wait()
        assert (day.state, day.error) == ("done", None)
    ids = [charge["id"] for charge in sb.books.all("charge")]
    assert len(ids) == len(set(ids)) > 400


async def test_truth_of_a_refund_is_possible_at_stripe(sb: Sandbox) -> None:
    """Every refund the truth asks for can be made, and the original still stands afterwards."""
    day = sb.begin_day(seed=4)
    await day.finished.wait()
    for row in (row for row in day.truth if row.expect == "refund"):
        original, duplicate = sb.books.by_id[str(row.original)], sb.books.by_id[str(row.duplicate)]
        assert (original["captured"], original["amount_refunded"]) == (True, 0), row.case
        assert (original["created"], original["id"]) < (duplicate["created"], duplicate["id"]), row.case
        sb.books.create_refund(duplicate, row.amount_minor)
        if row.cancels:
            sb.books.cancel(sb.books.by_id[row.cancels])


async def test_it_runs_alone_and_stops_on_sigterm() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sandbox", "--seed", "3", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    url = json.loads(await process.stdout.readline())["url"]
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/_sandbox/config", data=b'{"faults": {"nonsense": 1}}') as answer:
            assert answer.status == 400
        async with session.post(f"{url}/_sandbox/day", data=b'{"customers": 130}') as answer:
            assert answer.status == 202
        for _ in range(200):
            async with session.get(f"{url}/_sandbox/day") as answer:
                shown = await answer.json()
            if shown["state"] == "done":
                break
            await asyncio.sleep(0.02)
        assert (shown["state"], len(shown["truth"]) > 90) == ("done", True)
        async with session.get(f"{url}/_sandbox/books") as answer:
            books = await answer.json()
        assert len(books["objects"]["charge"]) > 100
        async with session.post(f"{url}/_sandbox/flush", data=b'{"timeout_s": 1}') as answer:
            assert await answer.json() == {"pending": 0}
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 5) == 0
