"""Disputes, evidence and fraud warnings behave as Stripe documents them."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox import Sandbox, shapes
from tests.sandbox.conftest import NOW, Client, Shop

DAY = 86400


def types(sb: Sandbox, prefix: str = "") -> list[str]:
    return [event["type"] for event in sb.books.all("event") if event["type"].startswith(prefix)]


async def test_a_chargeback_takes_the_money_and_a_win_returns_it(sb: Sandbox, shop: Shop, client: Client) -> None:
    charge = shop.charge()
    dispute = sb.books.open_dispute(charge)
    assert charge["disputed"]
    path = f"/v1/disputes/{dispute['id']}"
    staged = await client.post(path, {"evidence[product_description]": "images", "submit": "false"})
    assert (staged.body["status"], staged.body["evidence_details"]["has_evidence"]) == ("needs_response", True)
    sent = await client.post(path, {"evidence[product_description]": "images"})
    assert (sent.body["status"], sent.body["evidence_details"]["submission_count"]) == ("under_review", 1)
    assert (await client.post(path, {"evidence[product_description]": "late"})).status == 400
    sb.books.set_dispute(dispute, "won")
    moves = [(t["amount"], t["fee"], t["reporting_category"]) for t in dispute["balance_transactions"]]
    assert moves == [(-2900, 1500, "dispute"), (2900, 0, "dispute_reversal")]
    assert types(sb, "charge.dispute.") == [
        f"charge.dispute.{what}"
        for what in ("created", "funds_withdrawn", "updated", "updated", "closed", "funds_reinstated")
    ]


async def test_an_inquiry_escalates_without_a_second_created(sb: Sandbox, shop: Shop) -> None:
    dispute = sb.books.open_dispute(shop.charge(), inquiry=True)
    assert dispute["is_charge_refundable"]
    sb.books.escalate(dispute)
    assert (dispute["status"], dispute["is_charge_refundable"]) == ("needs_response", False)
    assert types(sb, "charge.dispute.") == [
        f"charge.dispute.{what}" for what in ("created", "updated", "funds_withdrawn")
    ]


async def test_silence_loses_a_chargeback_and_closes_an_inquiry(sb: Sandbox, shop: Shop) -> None:
    chargeback, inquiry = sb.books.open_dispute(shop.charge()), sb.books.open_dispute(shop.charge(), inquiry=True)
    sb.books.advance(9 * DAY)
    assert (chargeback["status"], chargeback["evidence_details"]["past_due"]) == ("lost", False)
    assert inquiry["status"] == "warning_needs_response"
    sb.books.advance(111 * DAY)
    assert inquiry["status"] == "warning_closed"


async def test_a_late_win_is_updated_and_reinstated_but_closed_once(sb: Sandbox, shop: Shop) -> None:
    dispute = sb.books.open_dispute(shop.charge())
    for status in ("lost", "appeal_needs_response", "appeal_under_review", "won"):
        sb.books.set_dispute(dispute, status)
    assert types(sb, "charge.dispute.closed") == ["charge.dispute.closed"] * 2
    late = sb.books.open_dispute(shop.charge())
    sb.books.set_dispute(late, "lost")
    sb.books.set_dispute(late, "won")
    assert types(sb, "charge.dispute.")[-3:] == [
        "charge.dispute.closed",
        "charge.dispute.updated",
        "charge.dispute.funds_reinstated",
    ]


async def test_a_prevented_dispute_is_created_and_closed_at_once(sb: Sandbox, shop: Shop) -> None:
    dispute = sb.books.open_dispute(shop.charge(), prevented=True)
    assert dispute["status"] == "prevented"
    assert {"charge.dispute.created", "charge.dispute.closed"} <= set(types(sb))


async def test_a_fraud_warning_moves_no_money(sb: Sandbox, shop: Shop, client: Client) -> None:
    charge = shop.charge()
    sb.books.warn_of_fraud(charge)
    found = await client.get("/v1/radar/early_fraud_warnings", charge=charge["id"])
    assert [w["actionable"] for w in found.body["data"]] == [True]
    assert len(list(sb.books.all("balance_transaction"))) == 1


async def test_what_is_too_long_is_refused_and_leaves_everything_as_it_was(
    sb: Sandbox, shop: Shop, client: Client
) -> None:
    dispute = sb.books.open_dispute(shop.charge())
    path = f"/v1/disputes/{dispute['id']}"
    first = {"evidence[uncategorized_text]": "x" * 100_000, "submit": "false", "metadata[draft]": "1"}
    assert (await client.post(path, first)).status == 200
    more = {"evidence[product_description]": "x" * 50_001, "submit": "false", "metadata[draft]": ""}
    refused = await client.post(path, more)
    assert (refused.status, refused.error["param"]) == (400, "evidence")
    shown = (await client.get(path)).body
    assert (shown["metadata"], shown["evidence"]["product_description"]) == ({"draft": "1"}, None)
    more["evidence[product_description]"] = "x" * 50_000
    assert (await client.post(path, more)).body["metadata"] == {}


async def test_an_unknown_field_of_evidence_is_refused(sb: Sandbox, shop: Shop, client: Client) -> None:
    dispute = sb.books.open_dispute(shop.charge())
    answer = await client.post(f"/v1/disputes/{dispute['id']}", {"evidence[story]": "x", "submit": "false"})
    assert answer.error["code"] == "parameter_unknown"


@pytest.mark.parametrize("status", ["won", "lost", "warning_closed", "under_review", "prevented"])
async def test_evidence_for_a_dispute_that_takes_none_is_refused(
    sb: Sandbox, shop: Shop, client: Client, status: str
) -> None:
    dispute = sb.books.open_dispute(shop.charge(), status=status)
    path = f"/v1/disputes/{dispute['id']}"
    assert (await client.post(path, {"evidence[product_description]": "x", "submit": "false"})).status == 400
    assert (await client.post(path, {"metadata[seen]": "1", "submit": "false"})).body["metadata"] == {"seen": "1"}


@pytest.mark.parametrize(
    ("intended", "staged", "smart", "outcome"),
    [
        ("manual", True, True, ("under_review", "manual")),
        ("manual", False, True, ("lost", "not_submitted")),
        ("prefer_manual", True, True, ("under_review", "manual")),
        ("prefer_manual", False, True, ("under_review", "smart_disputes")),
        ("prefer_manual", False, False, ("lost", "not_submitted")),
        ("prefer_smart_disputes", True, True, ("under_review", "smart_disputes")),
        ("prefer_smart_disputes", True, False, ("under_review", "manual")),
        ("smart_disputes", True, True, ("under_review", "smart_disputes")),
        ("smart_disputes", True, False, ("lost", "not_submitted")),
    ],
)
async def test_at_the_deadline_stripe_sends_what_it_may_send(
    sb: Sandbox, shop: Shop, client: Client, intended: str, staged: bool, smart: bool, outcome: tuple[str, str]
) -> None:
    sb.books.smart_disputes = smart
    dispute = sb.books.open_dispute(shop.charge(), due_by=NOW + 7 * DAY)
    assert dispute["intended_submission_method"] == "prefer_manual"
    params = {"intended_submission_method": intended, "submit": "false"}
    if staged:
        params["evidence[product_description]"] = "images"
    assert (await client.post(f"/v1/disputes/{dispute['id']}", params)).status == 200
    sb.books.advance(7 * DAY - 1)
    assert dispute["status"] == "needs_response"
    sb.books.advance(1)
    details = dispute["evidence_details"]
    assert (dispute["status"], details["submission_method"]) == outcome
    assert details["submission_count"] == (outcome[0] == "under_review")


async def test_a_dispute_that_cannot_be_contested_is_lost_at_once(sb: Sandbox, shop: Shop) -> None:
    dispute = sb.books.open_dispute(shop.charge(), due_by=0)
    assert (dispute["status"], dispute["evidence_details"]["due_by"]) == ("lost", 0)
    assert types(sb, "charge.dispute.") == [f"charge.dispute.{w}" for w in ("created", "funds_withdrawn", "closed")]


@pytest.mark.parametrize("how", ["opened", "escalated"])
async def test_a_chargeback_fails_the_refund_that_is_still_on_its_way(sb: Sandbox, shop: Shop, how: str) -> None:
    charge = shop.charge(refund="pending")
    inquiry = sb.books.open_dispute(charge, inquiry=True) if how == "escalated" else None
    refund = sb.books.create_refund(charge, 900)
    assert refund["status"] == "pending"
    if inquiry:
        sb.books.escalate(inquiry)
    else:
        sb.books.open_dispute(charge)
    assert (refund["status"], refund["failure_reason"]) == ("failed", "charge_for_pending_refund_disputed")
    assert charge["amount_refunded"] == 0


async def test_several_disputes_of_one_charge_and_one_larger_than_its_charge(
    sb: Sandbox, shop: Shop, client: Client
) -> None:
    charge = shop.charge(2900)
    larger, partial = sb.books.open_dispute(charge, 8700), sb.books.open_dispute(charge, 900, reason="duplicate")
    listed = await client.get("/v1/disputes", charge=charge["id"])
    assert [d["id"] for d in listed.body["data"]] == [partial["id"], larger["id"]]
    assert sum(t["amount"] for d in (larger, partial) for t in d["balance_transactions"]) == -9600
    assert len([e for e in sb.books.all("event") if e["type"] == "charge.updated"]) == 1


async def test_a_status_of_the_future_is_shown_as_it_is(sb: Sandbox, shop: Shop, client: Client) -> None:
    dispute = sb.books.open_dispute(shop.charge(), status="of_the_future")
    assert (await client.get(f"/v1/disputes/{dispute['id']}")).body["status"] == "of_the_future"
    sb.books.set_dispute(dispute, "of_the_day_after")
    assert types(sb, "charge.dispute.")[-1] == "charge.dispute.updated"


async def test_a_win_returns_the_money_once_and_a_later_loss_takes_it_again(sb: Sandbox, shop: Shop) -> None:
    dispute = sb.books.open_dispute(shop.charge())
    for status in ("won", "appeal_under_review", "lost"):
        sb.books.set_dispute(dispute, status)
    assert [t["amount"] for t in dispute["balance_transactions"]] == [-2900, 2900, -2900]


async def test_where_nothing_was_taken_a_win_returns_nothing(sb: Sandbox, shop: Shop) -> None:
    inquiry = sb.books.open_dispute(shop.charge(), inquiry=True)
    sb.books.set_dispute(inquiry, "won")
    assert inquiry["balance_transactions"] == []
    assert types(sb, "charge.dispute.") == ["charge.dispute.created", "charge.dispute.closed"]


async def test_an_inquiry_on_what_was_refunded_whole_leaves_nothing_to_refund(sb: Sandbox, shop: Shop) -> None:
    charge = shop.charge()
    sb.books.create_refund(charge)
    assert sb.books.open_dispute(charge, inquiry=True)["is_charge_refundable"] is False


@pytest.mark.parametrize("what", ["refund", "dispute"])
async def test_a_fraud_warning_is_no_longer_actionable_once_its_charge_is_settled(
    sb: Sandbox, shop: Shop, what: str
) -> None:
    charge = shop.charge()
    warning = sb.books.warn_of_fraud(charge)
    sb.books.create_refund(charge, 100)
    assert warning["actionable"]
    if what == "refund":
        sb.books.create_refund(charge)
    else:
        sb.books.open_dispute(charge)
    assert (warning["actionable"], types(sb, "radar")[-1]) == (False, "radar.early_fraud_warning.updated")


@pytest.mark.parametrize(("version", "shown"), [("2025-02-24.acacia", False), (shapes.NEWEST, True)])
async def test_only_the_newest_version_tells_how_evidence_will_be_submitted(
    sb: Sandbox, shop: Shop, client: Client, version: str, shown: bool
) -> None:
    dispute = sb.books.open_dispute(shop.charge())
    answer = await client.ask("GET", f"/v1/disputes/{dispute['id']}", Stripe_Version=version)
    body: Any = answer.body
    assert ("intended_submission_method" in body, "submission_method" in body["evidence_details"]) == (shown, shown)
    assert [t["amount"] for t in body["balance_transactions"]] == [-2900]
