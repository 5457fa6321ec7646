"""Refunds and idempotency behave as Stripe documents them."""

from __future__ import annotations

import asyncio

import pytest

from sandbox import Sandbox
from tests.sandbox.conftest import NOW, Client, Obj, Shop

DAY = 86400


def types(sb: Sandbox, prefix: str = "") -> list[str]:
    return [event["type"] for event in sb.books.all("event") if event["type"].startswith(prefix)]


# -- refunds -----------------------------------------------------------------------------------------------------------


async def test_partial_refunds_add_up_until_nothing_is_left(sb: Sandbox, shop: Shop, client: Client) -> None:
    charge = shop.charge()
    first = await client.post("/v1/refunds", {"charge": charge["id"], "amount": 900, "metadata[dup]": "7"})
    assert (first.body["amount"], first.body["status"], first.body["metadata"]) == (900, "succeeded", {"dup": "7"})
    assert (charge["amount_refunded"], charge["refunded"]) == (900, False)
    rest = await client.post("/v1/refunds", {"payment_intent": charge["payment_intent"], "reason": "duplicate"})
    assert (rest.body["amount"], charge["refunded"]) == (2000, True)
    again = await client.post("/v1/refunds", {"charge": charge["id"]})
    assert (again.status, again.error["code"]) == (400, "charge_already_refunded")
    assert types(sb, "charge.refunded") == ["charge.refunded"] * 2
    moved = await client.get("/v1/balance_transactions", type="refund")
    assert sorted(txn["amount"] for txn in moved.body["data"]) == [-2000, -900]


async def test_more_than_is_left_is_refused_without_a_code(shop: Shop, client: Client) -> None:
    charge = shop.charge()
    refused = await client.post("/v1/refunds", {"charge": charge["id"], "amount": 2901})
    assert refused.error == {
        "type": "invalid_request_error",
        "param": "amount",
        "message": "Refund amount ($29.01) is greater than unrefunded amount on charge ($29.00)",
    }


@pytest.mark.parametrize("status", ["needs_response", "under_review", "lost"])
async def test_a_charged_back_charge_is_not_refunded(sb: Sandbox, shop: Shop, client: Client, status: str) -> None:
    charge = shop.charge()
    sb.books.set_dispute(sb.books.open_dispute(charge), status)
    refused = await client.post("/v1/refunds", {"charge": charge["id"]})
    assert (refused.status, refused.error["code"], charge["amount_refunded"]) == (400, "charge_disputed", 0)


async def test_a_full_refund_closes_an_inquiry_and_a_partial_one_does_not(sb: Sandbox, shop: Shop) -> None:
    charge = shop.charge()
    dispute = sb.books.open_dispute(charge, inquiry=True)
    assert (dispute["status"], dispute["balance_transactions"]) == ("warning_needs_response", [])
    sb.books.create_refund(charge, 100)
    assert dispute["status"] == "warning_needs_response"
    sb.books.create_refund(charge)
    assert (dispute["status"], types(sb, "charge.dispute.closed")) == ("warning_closed", ["charge.dispute.closed"])


async def test_an_uncaptured_charge_cannot_be_refunded(sb: Sandbox, shop: Shop, client: Client) -> None:
    pi, charge = sb.books.pay_bare(shop.customer, 500, "usd", manual=True)
    assert (pi["status"], charge["captured"]) == ("requires_capture", False)
    assert (await client.post("/v1/refunds", {"charge": charge["id"]})).status == 400
    assert (await client.post(f"/v1/payment_intents/{pi['id']}/cancel")).body["status"] == "canceled"


async def test_what_does_not_exist_is_404_and_what_is_malformed_400(shop: Shop, client: Client) -> None:
    missing = await client.post("/v1/refunds", {"charge": "ch_no"})
    assert (missing.status, missing.error["code"], missing.error["param"]) == (404, "resource_missing", "charge")
    charge = shop.charge()["id"]
    assert (await client.post("/v1/refunds", {"charge": charge, "amount": "x"})).error["code"] == (
        "parameter_invalid_integer"
    )
    assert (await client.post("/v1/refunds", {"charge": charge, "sum": 1})).error["code"] == "parameter_unknown"
    assert (await client.post("/v1/refunds", {"charge": charge, "reason": "because"})).error["param"] == "reason"


async def test_a_succeeded_refund_may_fail_later_and_the_charge_owes_again(sb: Sandbox, shop: Shop) -> None:
    charge = shop.charge(refund="fails_later")
    refund = sb.books.create_refund(charge, 900)
    assert (refund["status"], charge["amount_refunded"]) == ("succeeded", 900)
    sb.books.advance(3 * DAY + 1)
    assert (refund["status"], refund["failure_reason"]) == ("failed", "expired_or_canceled_card")
    assert (charge["amount_refunded"], types(sb, "refund.failed")) == (0, ["refund.failed"])
    moved = [sb.books.by_id[refund[k]]["amount"] for k in ("balance_transaction", "failure_balance_transaction")]
    assert moved == [-900, 900]


async def test_without_funds_a_refund_waits_as_pending(sb: Sandbox, shop: Shop) -> None:
    charge = shop.charge()
    sb.configure({"low_balance": True})
    refund = sb.books.create_refund(charge)
    assert (refund["status"], refund["pending_reason"]) == ("pending", "insufficient_funds")
    sb.books.advance(3 * DAY + 1)
    assert (refund["status"], "pending_reason" in refund) == ("succeeded", False)


async def test_a_debit_settles_later_and_its_refund_is_a_pyr(sb: Sandbox, shop: Shop) -> None:
    charge = shop.charge(type="us_bank_account", settle_s=60)
    failing = shop.charge(type="us_bank_account", settle_s=60, charge="fails")
    assert (charge["status"], charge["id"][:3]) == ("pending", "py_")
    sb.books.advance(61)
    assert (charge["status"], failing["status"], failing["captured"]) == ("succeeded", "failed", False)
    assert sb.books.create_refund(charge)["id"].startswith("pyr_")


async def test_refunding_an_invoice_payment_leaves_the_invoice_alone(sb: Sandbox, shop: Shop) -> None:
    _, invoice, charge = shop.subscribe()
    sb.books.create_refund(charge)
    assert (invoice["status"], invoice["amount_paid"]) == ("paid", 2900)


async def test_only_the_metadata_of_a_refund_can_change(sb: Sandbox, shop: Shop, client: Client) -> None:
    refund = sb.books.create_refund(shop.charge(), metadata={"a": "1", "b": "2"})
    path = f"/v1/refunds/{refund['id']}"
    assert (await client.post(path, {"metadata[a]": "", "metadata[c]": "3"})).body["metadata"] == {"b": "2", "c": "3"}
    assert (await client.post(path, {"amount": 1})).error["code"] == "parameter_unknown"
    assert (await client.post(path + "/cancel")).status == 400


# -- idempotency -------------------------------------------------------------------------------------------------------


async def test_a_key_replays_the_first_answer(sb: Sandbox, shop: Shop, client: Client) -> None:
    charge = shop.charge()
    params = {"charge": charge["id"], "amount": 100}
    first = await client.post("/v1/refunds", params, key="k")
    again = await client.post("/v1/refunds", params, key="k")
    assert again.body == first.body
    assert (again.headers["Idempotent-Replayed"], "Idempotent-Replayed" in first.headers) == ("true", False)
    assert again.headers["Original-Request"] == first.headers["Request-Id"] != again.headers["Request-Id"]
    assert charge["amount_refunded"] == 100
    assert [(c["executed"], c["replayed"], c["idempotency_key"]) for c in sb.books.calls] == [
        (True, False, "k"),
        (False, True, "k"),
    ]


async def test_a_key_with_other_parameters_is_refused(shop: Shop, client: Client) -> None:
    charge = shop.charge()
    await client.post("/v1/refunds", {"charge": charge["id"], "amount": 100}, key="k")
    other = await client.post("/v1/refunds", {"charge": charge["id"], "amount": 200}, key="k")
    assert (other.status, other.error["type"], charge["amount_refunded"]) == (400, "idempotency_error", 100)


@pytest.mark.parametrize(("kind", "refunded"), [("500_before", 0), ("500_after", 100)])
async def test_a_500_stays_500_for_the_life_of_its_key(
    sb: Sandbox, shop: Shop, client: Client, kind: str, refunded: int
) -> None:
    charge = shop.charge()
    params = {"charge": charge["id"], "amount": 100}
    sb.configure({"faults": [{"kind": kind, "times": 1}], "idempotency_ttl_s": 60})
    assert [(await client.post("/v1/refunds", params, key="k")).status for _ in range(3)] == [500, 500, 500]
    assert charge["amount_refunded"] == refunded
    sb.books.advance(60)
    assert (await client.post("/v1/refunds", params, key="k")).status == 200
    assert charge["amount_refunded"] == refunded + 100


async def test_a_key_in_flight_is_409(sb: Sandbox, shop: Shop, client: Client) -> None:
    params = {"charge": shop.charge()["id"]}
    sb.configure({"faults": [{"kind": "latency", "times": 1, "hold_s": 0.3}]})
    first = asyncio.create_task(client.post("/v1/refunds", params, key="k"))
    await asyncio.sleep(0.1)
    second = await client.post("/v1/refunds", params, key="k")
    assert (second.status, second.error["code"]) == (409, "idempotency_key_in_use")
    assert second.headers["Stripe-Should-Retry"] == "true"
    assert (await first).status == 200
    assert (await client.post("/v1/refunds", params, key="k")).headers["Idempotent-Replayed"] == "true"


async def test_refusals_before_execution_are_not_kept(sb: Sandbox, shop: Shop, client: Client) -> None:
    charge = shop.charge()
    assert (await client.post("/v1/refunds", {"charge": charge["id"], "amount": "x"}, key="k")).status == 400
    sb.configure({"faults": [{"kind": "429", "times": 1}]})
    limited = await client.post("/v1/refunds", {"charge": charge["id"]}, key="k")
    assert (limited.status, "Stripe-Rate-Limited-Reason" in limited.headers) == (429, True)
    assert (await client.post("/v1/refunds", {"charge": charge["id"]}, key="k")).status == 200


async def test_a_refusal_of_the_operation_itself_is_kept(sb: Sandbox, shop: Shop, client: Client) -> None:
    charge = shop.charge()
    dispute = sb.books.open_dispute(charge)
    assert (await client.post("/v1/refunds", {"charge": charge["id"]}, key="k")).status == 400
    sb.books.set_dispute(dispute, "won")
    replayed = await client.post("/v1/refunds", {"charge": charge["id"]}, key="k")
    assert (replayed.status, replayed.headers["Idempotent-Replayed"]) == (400, "true")


async def test_keys_live_on_the_sandbox_clock(sb: Sandbox, shop: Shop, client: Client) -> None:
    params: Obj = {"charge": shop.charge()["id"], "amount": 100}
    first = await client.post("/v1/refunds", params, key="k")
    sb.books.set_clock(NOW + DAY - 1)
    assert (await client.post("/v1/refunds", params, key="k")).body["id"] == first.body["id"]
    sb.books.advance(1)
    assert (await client.post("/v1/refunds", params, key="k")).body["id"] != first.body["id"]
