"""Nights and bulk: their size, their money, their silence, and the truth about the harm."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import aiohttp
import msgspec
import pytest

from sandbox import Sandbox, bulk
from sandbox.harm import KINDS
from sandbox.store import Obj
from tests.sandbox.conftest import Client, Receiver, Shop

DAY = 86400


async def ask(client: Client, path: str, asked: Obj) -> Obj:
    async with client.session.post(f"{client.url}/_sandbox/{path}", data=msgspec.json.encode(asked)) as answer:
        assert answer.status == 200, await answer.text()
        shown: Obj = msgspec.json.decode(await answer.read())
        return shown


async def test_bulk_payments_are_whole_spread_evenly_and_paid_once(sb: Sandbox, client: Client) -> None:
    until = sb.books.now()
    made = await ask(client, "bulk", {"charges": 600, "from": until - 60 * DAY, "to": until, "seed": 3})
    books = sb.books
    charges = sorted(books.all("charge"), key=lambda c: int(c["created"]))
    gaps = {b["created"] - a["created"] for a, b in itertools.pairwise(charges)}
    assert (len(charges), made["people"], gaps) == (600, 300, {60 * DAY // 600})
    for charge in charges:
        (payment,) = books.linked("invoice_payment", "payment.payment_intent", charge["payment_intent"])
        (moved,) = books.linked("balance_transaction", "source", charge["id"])
        invoice = books.by_id[payment["invoice"]]
        assert (invoice["status"], invoice["customer"]) == ("paid", charge["customer"])
        assert (moved["id"], moved["amount"]) == (charge["balance_transaction"], charge["amount"])
    periods = Counter((i["customer"], i["lines"]["data"][0]["period"]["start"]) for i in books.all("invoice"))
    cards = {c["payment_method_details"]["card"]["fingerprint"] for c in charges}
    assert (max(periods.values()), len(cards)) == (1, 300)
    books.create_refund(charges[0])


async def test_a_bulk_page_is_an_ordinary_page_in_every_version(sb: Sandbox, shop: Shop, client: Client) -> None:
    _, _, charge = shop.subscribe()
    bulk.fill(sb.books, 3, sb.books.now() - DAY, sb.books.now())
    for version in ("2024-06-20", "2025-09-30.clover", "2026-10-28.endive"):
        answer = await client.ask("GET", "/v1/charges", {"limit": 100}, Stripe_Version=version)
        shapes = [set(row) for row in answer.body["data"]]
        assert next(row["id"] for row in answer.body["data"]) == charge["id"]
        assert all(shape == shapes[0] for shape in shapes), version


async def test_a_night_has_its_size_and_waits_for_flush(receiver: Receiver) -> None:
    async with Sandbox(webhook_url=receiver.url, webhook_secrets=["whsec_x"]) as sb:
        async with aiohttp.ClientSession() as session:
            shown = await ask(Client(sb.url, session), "night", {"objects": 6000, "days": 4, "seed": 2})
        within = sum(
            1 for kind in sb.books.objects.values() for o in kind.values() if o.get("created", 0) >= shown["begin"]
        )
        assert 4500 < within < 9000
        assert time.time() - 7260 < sb.books.now() < time.time() - 7100
        assert ({case["expect"] for case in shown["known"]["cases"]}, receiver.got) == (
            {"refund", "review", "none"},
            [],
        )
        assert {"jpy", "kwd", "eur"} <= {charge["currency"] for charge in sb.books.all("charge")}
        assert any(refund["status"] == "pending" for refund in sb.books.all("refund"))


@pytest.mark.parametrize("rates", [{}, {"eur": 1.1, "jpy": 0.67}])
async def test_every_move_of_money_has_its_balance_transaction(sb: Sandbox, rates: dict[str, float]) -> None:
    """In its own currency, or converted at the rate it names."""
    sb.configure({"settlement": {"currency": "usd", "rates": rates}})
    day = sb.begin_day(customers=140, seed=5)
    await day.finished.wait()
    for refund in list(sb.books.all("refund"))[:3]:
        sb.books.fail_refund(refund)
    books = sb.books
    expected: Counter[str] = Counter()
    for charge in books.all("charge"):
        expected[charge["id"]] += charge["amount_captured"]
    for refund in books.all("refund"):
        expected[refund["id"]] -= refund["amount"] if refund["status"] == "succeeded" else 0
    for dispute in books.all("dispute"):
        out = dispute["status"] in ("needs_response", "under_review", "lost", "prevented")
        expected[dispute["id"]] -= dispute["amount"] if out else 0
    moved: Counter[str] = Counter()
    for txn in books.all("balance_transaction"):
        own = books.by_id[txn["source"]]["currency"]
        rate = rates.get(own)
        assert (txn["exchange_rate"], txn["currency"]) == (rate, "usd" if rate else own)
        assert txn["net"] == txn["amount"] - txn["fee"]
        moved[txn["source"]] += round(txn["amount"] / rate) if rate else txn["amount"]
    assert {k: v for k, v in moved.items() if v} == {k: v for k, v in expected.items() if v}
    assert {"charge", "refund", "refund_failure", "dispute"} <= {
        txn["reporting_category"] for txn in books.all("balance_transaction")
    }


async def test_harm_is_silent_and_tells_the_truth(sb: Sandbox, receiver: Receiver, client: Client) -> None:
    sb.configure({"webhook": {"url": receiver.url, "secrets": ["whsec_x"], "concurrency": 1}})
    await ask(client, "night", {"objects": 3000, "days": 3})
    done = (await ask(client, "harm", dict.fromkeys(KINDS, 2) | {"seed": 7}))["harm"]
    assert Counter(row["what"] for row in done) == dict.fromkeys(KINDS, 2)
    sb.webhooks.paused = False
    assert await sb.webhooks.flush(30) == 0
    heard = {(e["type"], e["data"]["object"]["id"]) for e in receiver.events() if e["object"] == "event"}
    books = sb.books
    for row in done:
        obj = books.by_id[row["object"]]
        if row["what"] in ("duplicate_d1", "duplicate_d3", "charged_after_end", "dispute_opened", "refund_by_hand"):
            assert row["object"] not in {id_ for _, id_ in heard}, row
        if row["what"] == "subscription_ended":
            assert (obj["status"], ("customer.subscription.deleted", obj["id"]) in heard) == ("canceled", False)
        if row["what"] == "trial_ended":
            assert (obj["status"] == "trialing", row["also"][0] in {id_ for _, id_ in heard}) == (False, False)
    lost = {e["id"] for e in books.all("event")} - {e["id"] for e in receiver.events()}
    unheard = {e["id"] for e in books.all("event") if books.pending.get(e["id"])}
    assert lost == unheard
    assert (await client.ask("POST", "/_sandbox/harm")).status == 200
