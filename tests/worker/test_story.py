"""`explain` answers for any id what it is and whether it may be refunded, with the clause, true as of now."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.handlers.history import DAY, T0, History, Sold, policy_with
from tests.stripe_sender import event
from tests.worker.books import REALMS, court, tell
from worker import story
from worker.db import Pool, connection
from worker.judging import Court
from worker.reading import Document, NotFound


def bought_twice() -> History:
    """D3: ch_0002 repeats ch_0001; ch_0003 renews the first subscription."""
    history = History()
    history.customer(user_id="u1")
    first = history.subscribe(0, metadata={"user_id": "u1"})
    history.subscribe(42, metadata={"user_id": "u1"})
    history.renew(first)
    return history


async def explained(pool: Pool, id_: str, by: Court | None = None) -> Document:
    async with connection(pool) as conn:
        return await story.explain(conn, by or court(), REALMS, id_)


async def said(pool: Pool, id_: str, by: Court | None = None) -> tuple[Any, Any]:
    told = await explained(pool, id_, by)
    return told["verdict"], told["clause"]


async def deliver(pool: Pool, id_: str, body: bytes, state: str = "done") -> None:
    await pool.execute(
        "insert into inbox (event_id, realm, type, created_at, payload, state) values ($1, 'test', $2, now(), $3, $4)",
        id_,
        json.loads(body)["type"],
        body,
        state,
    )


# may this be refunded? ---------------------------------------------------------------------------------------------------


async def test_a_payment_that_repeats_nothing_is_denied_by_clause_2(pool: Pool) -> None:
    history = History()
    history.customer()
    history.subscribe()
    await tell(pool, history)
    told = await explained(pool, "ch_0001")
    assert (told["verdict"], told["clause"], told["policy_version"]) == ("deny", "2", "2025-01")
    assert "Every sale is final" in told["reason"]
    assert told["decisions"] == []
    (payment,) = told["belongs_to"]
    assert (payment["invoice"], payment["subscription"]) == ("in_0001", "sub_0001")


@pytest.mark.parametrize("how", ["invoice", "checkout", "metadata"])
async def test_a_credit_pack_is_denied_by_clause_3_2(pool: Pool, how: str) -> None:
    history = History()
    history.customer()
    if how == "invoice":
        sub = history.subscribe()
        history.bill(sub, DAY, Sold("price_pack_100", 500, once=True), reason="manual", paid_when=DAY)
        charge = sub.invoices[-1].charge
    else:
        charge = history.bare(DAY, 500, **({"pack": "price_pack_100"} if how == "metadata" else {}))
        if how == "checkout":
            history.session(DAY, charge=charge)
    await tell(pool, history)
    assert await said(pool, charge) == ("deny", "3.2")


async def test_a_plan_with_a_pack_on_its_invoice_is_a_sale_like_any_other(pool: Pool) -> None:
    history = History()
    history.customer()
    history.subscribe(0, Sold(), extra=(Sold("price_pack_100", 500, once=True),))
    await tell(pool, history)
    assert await said(pool, "ch_0001") == ("deny", "2")


async def test_the_duplicate_goes_back_and_its_original_does_not(pool: Pool) -> None:
    await tell(pool, bought_twice())
    told = await explained(pool, "ch_0002")
    assert (told["verdict"], told["clause"], told["rule"]) == ("refund", "4.3", "D3")
    assert told["amount"] == {"minor": 2900, "currency": "usd"}
    assert (told["original"], told["duplicate"]) == ("ch_0001", "ch_0002")
    assert {"fact": "customer", "original": "cus_A", "duplicate": "cus_A"} in told["evidence"]
    assert [(a["kind"], a["state"]) for a in told["actions"]] == [
        ("refund", "proposed"),
        ("cancel_subscription", "proposed"),
    ]
    (decision,) = told["decisions"]
    assert (decision["subject"], decision["judged_otherwise_now"]) == ("ch_0002", False)
    original = await explained(pool, "ch_0001")
    assert (original["verdict"], original["clause"]) == ("deny", "2")
    assert "original of ch_0002" in original["reason"]


async def test_what_was_sent_back_is_told_with_stripes_id(pool: Pool) -> None:
    await tell(pool, bought_twice(), court(refunds="auto"))
    await pool.execute(
        """update actions set state = 'sent', idempotency_key = 'k', first_sent_at = now(), stripe_id = 're_1',
           stripe_status = 'succeeded' where kind = 'refund'"""
    )
    told = await explained(pool, "ch_0002")
    assert (told["verdict"], told["clause"], told["amount"]) == ("refund", "4.3", {"minor": 2900, "currency": "usd"})
    assert told["reason"].endswith("29.00 USD of it was sent back as re_1 (succeeded).")
    assert "original of ch_0002" in (await explained(pool, "ch_0001"))["reason"]


async def test_it_is_the_rules_of_now_that_answer(pool: Pool) -> None:
    """The policy changed since the decision was written: the answer follows, and says that it differs."""
    history = bought_twice()
    await tell(pool, history)
    narrow = policy_with(('window = "15m"', 'window = "30s"'))
    told = await explained(pool, "ch_0002", court(narrow))
    assert told["verdict"] == "review"
    assert [(d["verdict"], d["judged_otherwise_now"]) for d in told["decisions"]] == [("refund", True)]


async def test_a_look_alike_is_denied_with_what_it_was_compared_with(pool: Pool) -> None:
    history = History()
    history.customer()
    for site in ("a", "b"):
        history.subscribe(0, metadata={"site_id": site})
    await tell(pool, history)
    told = await explained(pool, "ch_0002")
    assert (told["verdict"], told["clause"]) == ("deny", "2")
    assert "compared with ch_0001" in told["reason"]
    assert "site_id" in told["reason"]


async def test_copies_listed_in_a_review_answer_with_that_review(pool: Pool) -> None:
    history = History()
    history.customer(user_id="u1")
    for sub in [history.subscribe(when, metadata={"user_id": "u1"}) for when in (0, 42)]:
        history.renew(sub)
    await tell(pool, history)
    told = await explained(pool, "ch_0004")
    assert (told["verdict"], told["clause"]) == ("review", "4.3")
    assert "ch_0004" in told["reason"]


@pytest.mark.parametrize(
    ("status", "words"),
    [("lost", "a dispute took this payment back"), ("needs_response", "repeats no other one")],
)
async def test_a_dispute_changes_what_is_left(pool: Pool, status: str, words: str) -> None:
    history = History()
    history.customer()
    sub = history.subscribe()
    history.dispute(sub.charge, status)
    await tell(pool, history)
    assert words in (await explained(pool, sub.charge))["reason"]


async def test_what_went_back_already_cannot_go_back_again(pool: Pool) -> None:
    history = History()
    history.customer()
    sub = history.subscribe()
    history.refund(sub.charge, DAY)
    await tell(pool, history)
    assert "29.00 USD of this payment went back already" in (await explained(pool, sub.charge))["reason"]


async def test_a_failed_attempt_never_was_a_payment(pool: Pool) -> None:
    history = History()
    history.customer()
    sub = history.subscribe()
    failed = history.failed(sub.first, 0)
    await tell(pool, history)
    told = await explained(pool, failed)
    assert (told["verdict"], told["clause"]) == ("none", None)
    assert "never became a payment (failed" in told["reason"]


async def test_a_rehearsal_on_a_test_clock_says_so(pool: Pool) -> None:
    history = History()
    history.customer(test_clock=True)
    history.subscribe(test_clock=True)
    await tell(pool, history)
    assert "test clock" in (await explained(pool, "ch_0001"))["reason"]


async def test_an_agreement_is_named(pool: Pool) -> None:
    agreed = policy_with(
        agreement='\n[[agreement]]\ncustomer = "cus_A"\nsource = "MSA 9"\nfrom = 2025-06-01T00:00:00Z\n'
        'overrides = { duplicates = "review" }\n'
    )
    history = History()
    history.customer()
    history.subscribe()
    await tell(pool, history)
    assert "(agreement: MSA 9)" in (await explained(pool, "ch_0001", court(agreed)))["reason"]


# every kind of id --------------------------------------------------------------------------------------------------------


async def test_every_id_of_a_duplicate_leads_to_its_story(pool: Pool) -> None:
    history = bought_twice()
    await tell(pool, history)
    decision, action = (
        await pool.fetchval("select id from decisions"),
        await pool.fetchval("select min(id) from actions"),
    )
    for id_ in ("ch_0002", "pi_0002", "in_0002", "sub_0002", "cus_A", decision, action):
        told = await explained(pool, id_)
        assert (id_, told["verdict"], told["clause"], told["duplicate"]) == (id_, "refund", "4.3", "ch_0002")
    for id_ in ("pi_0001", "in_0001", "sub_0001", "in_0003"):
        assert (id_, *await said(pool, id_)) == (id_, "deny", "2")


async def test_a_customer_is_answered_for_every_payment(pool: Pool) -> None:
    await tell(pool, bought_twice())
    told = await explained(pool, "cus_A")
    assert {a["charge"]: a["verdict"] for a in told["payments"]} == {
        "ch_0001": "deny",
        "ch_0002": "refund",
        "ch_0003": "deny",
    }


async def test_a_refund_by_hand_is_outside_the_policy_unless_it_was_of_a_duplicate(pool: Pool) -> None:
    history = bought_twice()
    by_hand, of_duplicate = history.refund("ch_0003", DAY, 100), history.refund("ch_0002", DAY, 2900)
    await tell(pool, history)
    told = await explained(pool, by_hand)
    assert (told["verdict"], told["clause"]) == ("deny", "2, 6")
    assert "no clause allows it" in told["reason"]
    assert await said(pool, of_duplicate) == ("none", "4.3")
    assert "within 4.3" in (await explained(pool, of_duplicate))["reason"]


async def test_our_own_refund_names_its_action(pool: Pool) -> None:
    history = bought_twice()
    await tell(pool, history, court(refunds="auto"))
    action = await pool.fetchval(
        """update actions set state = 'sent', idempotency_key = 'k', first_sent_at = now() where kind = 'refund'
           returning id"""
    )
    refund = history.refund("ch_0002", DAY, 2900, action=action)
    await tell(pool, history)
    told = await explained(pool, refund)
    assert told["verdict"] == "refund"
    decision = await pool.fetchval("select id from decisions where subject = 'ch_0002'")
    assert told["reason"] == (
        f"Our own refund of 29.00 USD (succeeded), made for {action} by decision {decision} (4.3, D3)."
    )
    (refunded,) = (await explained(pool, "ch_0002"))["refunds"]
    assert (refunded["id"], refunded["ours"], refunded["decision"]) == (refund, True, decision)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("needs_response", "flagged as long as it is open"),
        ("won", "puts no hold"),
        ("lost", "until an operator lifts or keeps"),
        ("prevented", "before a chargeback"),
        ("warning_needs_response", "inquiry"),
        ("of_the_future", "does not know the status"),
    ],
)
async def test_a_dispute_is_told_by_its_status(pool: Pool, status: str, words: str) -> None:
    history = History()
    history.customer()
    sub = history.subscribe()
    id_ = history.dispute(sub.charge, status)
    await tell(pool, history)
    told = await explained(pool, id_)
    assert told["clause"] == "7"
    assert words in told["reason"]


async def test_an_event_leads_to_the_object_it_tells_of(pool: Pool) -> None:
    await tell(pool, bought_twice())
    charge = {"id": "ch_0002", "object": "charge", "amount": 2900, "amount_captured": 2900, "amount_refunded": 0}
    charge |= {"currency": "usd", "status": "succeeded", "captured": True, "created": T0, "customer": "cus_A"}
    await deliver(pool, "evt_1", event("evt_1", data={"object": charge}))
    told = await explained(pool, "evt_1")
    assert (told["event"]["state"], told["verdict"], told["duplicate"]) == ("done", "refund", "ch_0002")


async def test_an_event_that_tells_nothing_is_told_for_itself(pool: Pool) -> None:
    await deliver(pool, "evt_1", event("evt_1", "product.created", data={"object": {"id": "prod_1"}}))
    await deliver(pool, "evt_2", event("evt_2", "charge.succeeded", data={"object": {"id": "ch_1"}}), "quarantined")
    await deliver(pool, "evt_3", event("evt_3", "charge.succeeded"), "waiting")
    assert "Nothing in the policy depends on this type" in (await explained(pool, "evt_1"))["reason"]
    assert "cannot be read" in (await explained(pool, "evt_2"))["reason"]


async def test_an_object_without_a_customer_waits_for_what_names_one(pool: Pool) -> None:
    history = History()
    history.customer()
    sub = history.subscribe()
    payment = next(id_ for id_ in history.latest if id_.startswith("inpay"))
    history.forget(*[id_ for id_ in history.latest if id_ != payment])
    await tell(pool, history)
    told = await explained(pool, payment)
    assert (told["verdict"], told["customer"]) == (None, None)
    assert sub.first.invoice in told["reason"]


@pytest.mark.parametrize("id_", ["ch_none", "evt_none", "dec_none1234", "act_none", "", "'; drop table inbox; --"])
async def test_an_unknown_id_says_where_to_look(pool: Pool, id_: str) -> None:
    with pytest.raises(NotFound, match="finalsale "):
        await explained(pool, id_)


async def test_personal_data_is_not_told(pool: Pool) -> None:
    history = History()
    history.customer(email="hash-of-the-address", contact="ann@example.com")
    history.subscribe(metadata={"note": "call ann@example.com", "email": "ann@example.com"})
    await tell(pool, history)
    for id_ in ("cus_A", "sub_0001", "in_0001", "ch_0001"):
        told = json.dumps(await explained(pool, id_), default=str)
        assert "ann@" not in told
        assert "hash-of" not in told


# customers show ----------------------------------------------------------------------------------------------------------


async def test_a_customer_is_shown_on_a_time_line(pool: Pool) -> None:
    history = bought_twice()
    history.refund("ch_0003", DAY * 40, 100)
    history.dispute("ch_0001", "won", DAY * 41)
    await tell(pool, history)
    async with connection(pool) as conn:
        told = await story.customer(conn, court(), REALMS, "cus_A")
    assert [p["answer"]["verdict"] for p in told["payments"]] == ["deny", "review", "deny"]
    times = [entry["at"] for entry in told["timeline"]]
    assert times == sorted(times)
    assert {"ch_0001", "ch_0002", "ch_0003", "re_0001", "dp_0001", "sub_0001", "sub_0002"} <= {
        e["id"] for e in told["timeline"]
    }
    assert [(r["id"], r["ours"]) for r in told["refunds"]] == [("re_0001", False)]
    assert told["linked_customers"] == []


async def test_linked_customers_are_named_and_not_mixed_in(pool: Pool) -> None:
    history = History()
    for name in ("cus_A", "cus_B"):
        history.customer(name, user_id="u1")
        history.subscribe(0, customer=name, metadata={"user_id": "u1"})
    await tell(pool, history)
    async with connection(pool) as conn:
        told = await story.customer(conn, court(), REALMS, "cus_A")
    assert told["linked_customers"] == ["cus_B"]
    assert [p["charge"] for p in told["payments"]] == ["ch_0001"]


async def test_only_a_customer_is_shown(pool: Pool) -> None:
    await tell(pool, bought_twice())
    async with connection(pool) as conn:
        for id_ in ("ch_0001", "cus_none"):
            with pytest.raises(NotFound, match="explain"):
                await story.customer(conn, court(), REALMS, id_)
