"""`explain` and `customers show` tell what every clause says: standing, access, credits, disputes, refunds, acts, outages, cases."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from handlers.account import ActKind
from handlers.case_request import read_request
from handlers.customer import ChargeId, CustomerId, EarlyFraudWarning
from handlers.events import email_hash
from tests.handlers.history import DAY, HOUR, MONTH, POLICY, T0, History, Sold, policy_with
from tests.worker.books import REALM, REALMS, court, tell
from worker import cases, outages, review, story
from worker.acts import Wish, carry_out
from worker.db import Pool, connection, transaction
from worker.judging import Court
from worker.reading import Document
from worker.review import ActRefused
from worker.settle import settle

EMAIL = "ann@example.com"
AGREED = policy_with(
    agreement='\n[[agreement]]\ncustomer = "cus_A"\nsource = "MSA 9"\nfrom = 2025-06-01T00:00:00Z\n'
    'overrides = { chargebacks = { on_chargeback = "suspend" } }\n'
)


def subscribed(status: str | None = None) -> History:
    """cus_A with sub_0001, 500 credits a month; its charge disputed where a status is given."""
    history = History()
    history.customer(email=email_hash(EMAIL))
    sub = history.subscribe()
    if status:
        history.dispute(sub.charge, status)
        history.change("dp_0001", due_by=T0 + 20 * DAY)
    return history


def charged_after_the_end() -> History:
    history = subscribed()
    sub = history.latest["sub_0001"]
    history.change(sub.id, when=MONTH, status="canceled", ended_at=T0 + MONTH, canceled_at=T0 + DAY)
    return history


async def explained(pool: Pool, id_: str, by: Court | None = None) -> Document:
    async with connection(pool) as conn:
        return await story.explain(conn, by or court(), REALMS, id_)


async def shown(pool: Pool, by: Court | None = None) -> Document:
    async with connection(pool) as conn:
        return await story.customer(conn, by or court(), REALMS, "cus_A")


async def do(pool: Pool, kind: ActKind, **more: Any) -> str:
    """An operator's act, and a worker that has looked at it."""
    wish = Wish(**{"kind": kind, "customer": "cus_A", "by": "Ann", "reason": "because", **more})
    async with transaction(pool) as conn:
        done = await carry_out(conn, REALMS, wish)
    async with transaction(pool) as conn:
        await settle(conn, court(), REALM, (), wake=["cus_A"])
    return str(done["id"])


# standing (7, 8) ---------------------------------------------------------------------------------------------------------


async def test_a_dispute_tells_status_deadline_hold_and_what_can_be_done(pool: Pool) -> None:
    await tell(pool, subscribed("needs_response"))
    told = await explained(pool, "dp_0001")
    assert (told["verdict"], told["clause"], told["policy_version"]) == ("review", "7", "2025-01")
    assert "due by 2026-01-21T00:00:00Z" in told["reason"]
    assert told["commands"] == ["finalsale chargebacks show dp_0001"]
    assert told["standing"]["standing"] == "flagged"
    assert [hold["subject"] for hold in told["standing"]["holds"]] == ["dp_0001"]
    assert [(d["id"], d["holds"]) for d in told["disputes"]] == [("dp_0001", True)]


async def test_a_lost_dispute_names_the_commands_that_lift_and_keep_its_hold(pool: Pool) -> None:
    await tell(pool, subscribed("lost"))
    told = await explained(pool, "dp_0001")
    assert [command.split()[2] for command in told["commands"]] == ["show", "lift", "keep"]
    assert all("cus_A" in command for command in told["commands"][1:])


async def test_a_charge_tells_its_disputes_and_their_holds(pool: Pool) -> None:
    await tell(pool, subscribed("needs_response"))
    told = await explained(pool, "ch_0001")
    assert (told["verdict"], told["clause"]) == ("deny", "2")
    (dispute,) = told["disputes"]
    assert (dispute["status"], dispute["holds"], dispute["clause"]) == ("needs_response", True, "7")
    assert [d["clause"] for d in told["decisions"]] == ["7"]
    assert [alert["kind"] for alert in told["alerts"]]


async def test_an_agreement_that_judged_is_named_with_its_source(pool: Pool) -> None:
    by = court(AGREED)
    await tell(pool, subscribed("needs_response"), by)
    for id_ in ("dp_0001", "ch_0001", "sub_0001"):
        told = await explained(pool, id_, by)
        assert (id_, told["agreement"], told["standing"]["standing"]) == (id_, "MSA 9", "suspended")
        assert [(a["source"], a["in_force"]) for a in told["agreements"]] == [("MSA 9", True)]
    assert (await explained(pool, "dp_0001"))["agreement"] is None


async def test_an_early_fraud_warning_is_a_note(pool: Pool) -> None:
    history = subscribed()
    warning = EarlyFraudWarning(id="issfr_1", as_of=T0 + DAY, created=T0 + DAY, charge=ChargeId("ch_0001"))
    history.tell(warning)
    await tell(pool, history)
    told = await explained(pool, "issfr_1")
    assert (told["verdict"], told["clause"], told["rule"]) == ("none", "7", "early_fraud_warning")
    assert [w["id"] for w in (await explained(pool, "ch_0001"))["warnings"]] == ["issfr_1"]


# after the end (1.2, 1.3) ------------------------------------------------------------------------------------------------


async def test_a_charge_after_cancellation_is_a_review_by_1_2_for_every_id_of_it(pool: Pool) -> None:
    history = History()
    history.customer()
    sub = history.subscribe()
    history.end(sub, MONTH)
    history.renew(sub, paid_when=MONTH + HOUR)
    await tell(pool, history)
    for id_ in ("ch_0002", "in_0002", "sub_0001"):
        told = await explained(pool, id_)
        assert (id_, told["verdict"], told["clause"]) == (id_, "review", "1.2")
        assert "no clause lets it go back" in told["reason"]
    assert (await explained(pool, "ch_0001"))["clause"] == "2"


async def test_no_amount_can_be_approved_where_no_clause_allows_a_refund(pool: Pool) -> None:
    history = History()
    history.customer()
    sub = history.subscribe()
    history.end(sub, MONTH)
    history.renew(sub, paid_when=MONTH + HOUR)
    history.dispute("ch_0001", "needs_response")
    await tell(pool, history)
    for subject, clause in (("in_0002", "1.2"), ("dp_0001", "7")):
        for amount in (None, 100):
            with pytest.raises(ActRefused, match=f"by clause {clause}, and no clause gives money back"):
                async with transaction(pool) as conn:
                    await review.approve(conn, POLICY, REALMS, subject, by="Ann", amount_minor=amount)
    async with connection(pool) as conn:
        items = {item["subject"]: item for item in await review.waiting(conn, REALMS, POLICY)}
    assert {subject: item["look"] for subject, item in items.items()} == {
        "in_0002": "finalsale explain in_0002",
        "dp_0001": "finalsale chargebacks show dp_0001",
    }
    assert all(item["approve"].startswith("nothing to approve") for item in items.values())
    async with transaction(pool) as conn:
        await review.reject(conn, REALMS, "in_0002", by="Ann", note="refunded outside")
    assert await pool.fetchval("select count(*) from actions") == 0


async def test_what_went_back_by_hand_in_doubt_cannot_be_approved_either(pool: Pool) -> None:
    """The doubt is about a refund that was made; a yes would give the payment back a second time."""
    history = History()
    history.customer(user_id="u1")
    for when in (0, 2 * HOUR):
        history.subscribe(when, metadata={"user_id": "u1"})
    refund = history.refund("ch_0002", DAY, 100)
    await tell(pool, history)
    assert (await explained(pool, refund))["verdict"] == "review"
    with pytest.raises(ActRefused, match="nothing to approve"):
        async with transaction(pool) as conn:
            await review.approve(conn, POLICY, REALMS, refund, by="Ann", amount_minor=100)


# access and credits (1, 3, 4) --------------------------------------------------------------------------------------------


async def test_a_subscription_tells_access_its_request_and_the_lots_it_granted(pool: Pool) -> None:
    await tell(pool, charged_after_the_end())
    told = await explained(pool, "sub_0001")
    (access,) = told["access"]
    assert (access["way"], access["until"]) == ("ended", datetime.fromtimestamp(T0 + MONTH, UTC))
    assert access["requested_at"] == datetime.fromtimestamp(T0 + DAY, UTC)
    (lot,) = told["credits"]
    assert (lot["kind"], lot["granted"], lot["forfeited"], lot["available"]) == ("included", 500, 500, 0)


async def test_a_trial_is_told_with_its_credits(pool: Pool) -> None:
    history = History()
    history.customer()
    history.subscribe(trial_until=7 * DAY)
    sub = history.latest["sub_0001"]
    trial = {"start": T0, "end": T0 + 7 * DAY, "told_at": T0, "items_at": T0, "items": [["price_basic", 1]]}
    history.tell(msgspec.convert(msgspec.to_builtins(sub) | {"trials": [trial]}, type(sub)))
    await tell(pool, history)
    told = await explained(pool, "sub_0001")
    assert [trial["to"] for trial in told["trials"]] == [datetime.fromtimestamp(T0 + 7 * DAY, UTC)]
    assert [lot["clause"] for lot in told["credits"]] == ["3.3"]
    assert told["reason"].startswith("sub_0001 is trialing")


async def test_an_invoice_tells_the_credits_of_each_line(pool: Pool) -> None:
    history = History()
    history.customer()
    history.subscribe(0, Sold(), extra=(Sold("price_pack_100", 500, once=True),))
    await tell(pool, history)
    told = await explained(pool, "in_0001")
    assert sorted((line["price"], line["credits"]) for line in told["lines"]) == [
        ("price_basic", 500),
        ("price_pack_100", 100),
    ]
    assert all(line["lot"].endswith(line["id"]) for line in told["lines"])


async def test_a_charge_tells_only_the_credits_that_it_granted(pool: Pool) -> None:
    history = History()
    history.customer()
    history.renew(history.subscribe())
    await tell(pool, history)
    (lot,) = (await explained(pool, "ch_0002"))["credits"]
    assert lot["id"].startswith("included:in_0002:")


async def test_a_lot_tells_its_entries(pool: Pool) -> None:
    await tell(pool, subscribed())
    id_ = await pool.fetchval("select id from lots")
    await pool.execute("select consume_credits('test', 'cus_A', 'k1', 20)")
    told = await explained(pool, id_)
    assert (told["kind"], told["clause"], told["credits"][0]["remaining"]) == ("lot", "3.1", 480)
    assert [(e["kind"], e["amount"]) for e in told["entries"]] == [("granted", 500), ("consumed", -20)]


# what people did (4.1, 4.2, 5) -------------------------------------------------------------------------------------------


async def test_an_operators_act_is_told_with_what_came_of_it(pool: Pool) -> None:
    await tell(pool, subscribed())
    granted = await do(pool, ActKind.GRANT, credits=30, case="case_7")
    told = await explained(pool, granted)
    assert (told["kind"], told["clause"], told["customer"]) == ("act", "4.1", "cus_A")
    assert "Ann gave 30 service credits: because (case case_7)" in told["reason"]
    assert [lot["id"] for lot in told["credits"]] == [f"service:{granted}"]
    suspended = await do(pool, ActKind.SUSPEND)
    told = await explained(pool, suspended)
    assert (told["clause"], told["standing"]["standing"]) == ("7", "suspended")


async def test_an_outage_tells_who_got_what(pool: Pool) -> None:
    await tell(pool, subscribed())
    begins, ends = (datetime.fromtimestamp(T0 + hours * HOUR, UTC) for hours in (24, 96))
    async with transaction(pool) as conn:
        seen = await outages.preview(conn, court(), REALM, begins, ends, [])
        what = {"confirm": seen["id"], "by": "Ann", "reason": "the cluster was down"}
        await outages.declare(conn, REALM, begins, ends, [], **what)
        await settle(conn, court(), REALM, (), wake=["cus_A"])
    told = await explained(pool, seen["id"])
    assert (told["kind"], told["clause"]) == ("outage", "4.2")
    assert "declared by Ann" in told["reason"]
    assert [(lot["customer"], lot["granted"]) for lot in told["credits"]] == [("cus_A", 50)]
    assert "service" in {lot["kind"] for lot in (await explained(pool, "sub_0001"))["credits"]}


async def test_a_case_is_told_without_the_address_and_words_of_the_person(pool: Pool) -> None:
    await tell(pool, subscribed())
    asked = {"email": EMAIL, "date": "2026-01-01", "description": "Give me my money back, please.", "kind": "refund"}
    async with transaction(pool) as conn:
        opened = await cases.open_case(conn, POLICY, REALM, read_request(asked | {"transaction": "ch_0001"}), by="Ann")
    told = await explained(pool, opened["id"])
    assert (told["kind"], told["verdict"], told["customer"]) == ("case", "deny", "cus_A")
    assert "an answer is due by" in told["reason"]
    assert "ann@" not in json.dumps(told, default=str)
    assert "Give me" not in json.dumps(told, default=str)
    assert [case["id"] for case in (await explained(pool, "ch_0001"))["cases"]] == [opened["id"]]


# customers show ----------------------------------------------------------------------------------------------------------


async def test_the_time_line_has_what_every_clause_did(pool: Pool) -> None:
    history = subscribed("needs_response")
    await tell(pool, history)
    for key in range(3):
        await pool.execute("select consume_credits('test', 'cus_A', $1, 5)", f"k{key}")
    act = await do(pool, ActKind.KEEP, dispute="dp_0001")
    history.change("dp_0001", when=2 * DAY, status="won")
    await tell(pool, history)
    told = await shown(pool)
    assert (told["standing"]["standing"], told["credits"]["available"]) == ("flagged", 485)
    assert [a["subscription"] for a in told["access"]] == ["sub_0001"]
    assert [row["kind"] for row in told["credits"]["kinds"]] == ["included"]
    said = " | ".join(entry["what"] for entry in told["timeline"])
    for words in (
        *("standing good -> flagged", "500 credits granted by 3.1", "15 credits consumed in 3 entries"),
        *("Ann keeps the hold of dp_0001", "critical alert: chargeback", "alert resolved: chargeback", "none by 7"),
    ):
        assert words in said
    assert act in {entry["id"] for entry in told["timeline"]}
    assert told["timeline"] == sorted(told["timeline"], key=lambda e: (e["at"], e["id"], e["what"]))


async def test_what_another_customer_has_is_not_in_it(pool: Pool) -> None:
    history = subscribed()
    history.customer("cus_B", user_id="u1")
    history.change("cus_A", metadata={"user_id": "u1"})
    other = history.subscribe(DAY, customer="cus_B")
    history.dispute(other.charge, "needs_response")
    await tell(pool, history)
    told = await shown(pool)
    assert told["linked_customers"] == ["cus_B"]
    assert (told["standing"]["standing"], told["disputes"], told["alerts"]) == ("good", [], [])
    assert {lot["id"].split(":")[1] for lot in told["lots"]} == {"in_0001"}
    assert timedelta() < datetime.now(UTC) - told["timeline"][0]["at"]
    assert CustomerId("cus_B") not in json.dumps(told["timeline"], default=str)
