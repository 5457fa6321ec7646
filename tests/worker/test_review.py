"""Rule 9 of 4.3: a person's yes makes exactly what was prepared due, above the limit with two names, and never a second refund."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from sandbox import Sandbox
from tests.handlers.history import DAY, MINUTE, POLICY, History, Sold, policy_with
from tests.stripe_sender import WEBHOOK_SECRET
from tests.worker.books import REALMS, court, tell
from worker import reading, review
from worker.db import Pool, connection, transaction
from worker.jobs import WorkerProcess
from worker.reading import Document, NotFound
from worker.review import ActRefused
from worker.settings import Settings
from worker.settle import settle
from worker.web import listening


def bought_twice(amount: int = 2900, currency: str = "usd") -> History:
    """D3: one customer, two subscriptions 42 seconds apart; ch_0002 repeats ch_0001."""
    history = History()
    history.customer(user_id="u1")
    for when in (0, 42):
        history.subscribe(when, Sold(amount=amount), currency=currency, metadata={"user_id": "u1"})
    return history


def paid_again_and_credit_partly_spent() -> History:
    """D1: ch_0002 repeats ch_0001, but a part of Stripe's balance credit for it is gone, so nothing can be prepared."""
    history = History()
    history.customer()
    sub = history.subscribe()
    history.pay_again(sub.first, MINUTE)
    history.balance_read(DAY, ("invoice_overpaid", -2900, sub.first.invoice), ("applied_to_invoice", 1000, None))
    return history


async def approve(pool: Pool, id_: str = "ch_0002", by: str = "Ann", **more: Any) -> Document:
    async with transaction(pool) as conn:
        return await review.approve(conn, POLICY, REALMS, id_, by=by, **more)


async def reject(pool: Pool, id_: str = "ch_0002", by: str = "Ann") -> Document:
    async with transaction(pool) as conn:
        return await review.reject(conn, REALMS, id_, by=by)


async def waiting(pool: Pool) -> list[Document]:
    async with connection(pool) as conn:
        return await review.waiting(conn, REALMS, POLICY)


async def actions(pool: Pool) -> dict[str, tuple[str, list[str]]]:
    rows = await pool.fetch("select kind, subject, state, approved_by from actions order by step, subject")
    return {f"{row['kind']} {row['subject']}": (row["state"], row["approved_by"]) for row in rows}


async def pretend_sent(pool: Pool, state: str, *, error: str | None = None, stripe_id: str | None = None) -> None:
    """The refund's row as the performer leaves it once it was sent."""
    await pool.execute(
        """update actions set state = $1, idempotency_key = 'k', first_sent_at = now(), key_since = now(), generation = 1,
           error = $2, stripe_id = $3, stripe_status = case when $3::text is not null then 'failed' end, settled_at = now()
           where kind = 'refund'""",
        state,
        error,
        stripe_id,
    )


# yes ---------------------------------------------------------------------------------------------------------------------


async def test_a_yes_makes_every_prepared_action_due_at_once_and_keeps_the_name(pool: Pool) -> None:
    await tell(pool, bought_twice())
    await pool.execute("update actions set due_at = now() + interval '1 hour', next_at = now() + interval '1 hour'")
    outcome = await approve(pool, note="spoke to her")
    assert await actions(pool) == {
        "refund ch_0002": ("planned", ["Ann"]),
        "cancel_subscription sub_0002": ("planned", ["Ann"]),
    }
    assert await pool.fetchval("select bool_and(due_at <= now() and next_at <= now()) from actions")
    acts = await pool.fetch("select act, by_name, note from review_acts")
    assert [tuple(act) for act in acts] == [("approve", "Ann", "spoke to her")]
    assert (outcome["persons_needed"], len(outcome["planned"])) == (1, 2)
    assert await waiting(pool) == []


async def test_the_same_facts_again_leave_an_approval_alone(pool: Pool) -> None:
    """The last look judges again; only a different answer may take a yes back."""
    history = paid_again_and_credit_partly_spent()
    await tell(pool, history)
    await approve(pool, amount_minor=1900)
    async with transaction(pool) as conn:
        judged = await settle(conn, court(), "test", [], wake=["cus_A"])
    assert (judged.files, judged.decisions) == (1, 0)
    assert await actions(pool) == {"refund ch_0002": ("planned", ["Ann"])}


async def test_other_facts_take_a_yes_to_a_review_back(pool: Pool) -> None:
    history = bought_twice(amount=60_000)  # above the limit per refund: a review
    await tell(pool, history)
    await approve(pool)
    history.refund("ch_0001", DAY, 100)
    await tell(pool, history)
    assert await actions(pool) == {
        "refund ch_0002": ("proposed", []),
        "cancel_subscription sub_0002": ("proposed", []),
    }
    assert {item["subject"] for item in await waiting(pool)} == {"ch_0002", "re_0001"}  # and why it was given back


@pytest.mark.parametrize("written", ["whole", "beginning", "charge", "action"])
async def test_a_decision_is_named_by_its_id_a_beginning_its_charge_or_its_action(pool: Pool, written: str) -> None:
    await tell(pool, bought_twice())
    id_, action = await pool.fetchval("select id from decisions"), await pool.fetchval("select min(id) from actions")
    names = {"whole": id_, "beginning": id_[:9], "charge": "ch_0002", "action": action}
    assert (await approve(pool, names[written]))["id"] == id_


@pytest.mark.parametrize("id_", ["dec_", "dec_12", "dec_ffffffffff", "ch_9999", "act_none", "", "%", "dec_%%%%%%"])
async def test_an_id_that_names_nothing_is_said_so(pool: Pool, id_: str) -> None:
    await tell(pool, bought_twice())
    with pytest.raises(NotFound):
        await approve(pool, id_)


@pytest.mark.parametrize("by", ["", "  ", "\n", "x" * 101, "Ann\x1b[2J"])
async def test_nobody_decides_without_a_name(pool: Pool, by: str) -> None:
    await tell(pool, bought_twice())
    with pytest.raises(ActRefused, match="--by NAME"):
        await approve(pool, by=by)
    assert await pool.fetchval("select count(*) from review_acts") == 0


async def test_a_decision_that_was_replaced_cannot_be_approved(pool: Pool) -> None:
    history = bought_twice(amount=60_000)
    await tell(pool, history)
    old = await pool.fetchval("select id from decisions")
    history.refund("ch_0001", DAY, 100)
    await tell(pool, history)
    new = await pool.fetchval("select id from decisions where revision = 2")
    with pytest.raises(ActRefused, match=f"{old} is not in force any more: {new} took its place"):
        await approve(pool, old)


async def test_a_decision_that_says_none_has_nothing_to_approve(pool: Pool) -> None:
    history = bought_twice()
    await tell(pool, history)
    history.refund("ch_0002", DAY)
    sub = history.latest["sub_0002"]
    history.change(sub.id, when=DAY, status="canceled", ended_at=sub.created + DAY)
    await tell(pool, history)
    with pytest.raises(ActRefused, match="says none"):
        await approve(pool)


async def test_another_realm_is_out_of_reach(pool: Pool) -> None:
    await tell(pool, bought_twice(), realm="live")
    with pytest.raises(NotFound):
        await approve(pool)


# two persons -------------------------------------------------------------------------------------------------------------


async def test_above_the_limit_the_second_yes_needs_another_name(pool: Pool) -> None:
    await tell(pool, bought_twice(amount=100_001))
    assert (await waiting(pool))[0]["two_persons"] is True
    first = await approve(pool, by=" Ann  Lee ")
    assert (first["planned"], first["approved_by"]) == ([], ["Ann Lee"])
    for same in ("ann lee", "ANN LEE", "Ann Lee"):
        with pytest.raises(ActRefused, match="second person"):
            await approve(pool, by=same)
    assert (await waiting(pool))[0]["approved_by"] == ["Ann Lee"]
    assert {state for state, _ in (await actions(pool)).values()} == {"proposed"}
    await approve(pool, by="Bob")
    assert set(map(str, (await actions(pool)).values())) == {"('planned', ['Ann Lee', 'Bob'])"}


async def test_at_the_limit_one_name_is_enough(pool: Pool) -> None:
    await tell(pool, bought_twice(amount=100_000))
    assert (await waiting(pool))[0]["two_persons"] is False
    assert (await approve(pool))["planned"]


async def test_a_currency_that_the_policy_does_not_name_needs_two_persons(pool: Pool) -> None:
    await tell(pool, bought_twice(amount=10, currency="chf"))
    assert (await approve(pool))["planned"] == []


async def test_an_agreement_may_lower_the_limit(pool: Pool) -> None:
    strict = policy_with(
        agreement='\n[[agreement]]\ncustomer = "cus_A"\nsource = "MSA 1"\nfrom = 2025-06-01T00:00:00Z\n'
        "overrides = { refunds = { two_persons = { usd = 1000 } } }\n"
    )
    await tell(pool, bought_twice(), court(strict))
    async with transaction(pool) as conn:
        outcome = await review.approve(conn, strict, REALMS, "ch_0002", by="Ann")
    assert outcome["persons_needed"] == 2


async def test_several_refunds_of_one_review_count_together(pool: Pool) -> None:
    """Found late: two copies of 600.00 stand in one review, and together they pass the limit of 1000.00."""
    history = History()
    history.customer(user_id="u1")
    subs = [history.subscribe(when, Sold(amount=60_000), metadata={"user_id": "u1"}) for when in (0, 42)]
    for sub in subs:
        history.renew(sub)
    await tell(pool, history)
    prepared = [kind for kind in await actions(pool) if kind.startswith("refund")]
    assert len(prepared) == 2
    assert (await approve(pool))["persons_needed"] == 2


# nothing prepared --------------------------------------------------------------------------------------------------------


async def test_where_nothing_could_be_proved_a_person_names_the_amount(pool: Pool) -> None:
    await tell(pool, paid_again_and_credit_partly_spent())
    assert (await waiting(pool))[0]["approve"].endswith("--amount MINOR")
    with pytest.raises(ActRefused, match="--amount MINOR"):
        await approve(pool)
    for amount in (2901, 0, -1):
        with pytest.raises(ActRefused, match=r"29\.00 USD is left on ch_0002"):
            await approve(pool, amount_minor=amount)
    assert await actions(pool) == {}
    await approve(pool, amount_minor=1900)
    (row,) = await pool.fetch("select * from actions")
    assert (row["kind"], row["subject"], row["amount_minor"], row["currency"]) == ("refund", "ch_0002", 1900, "usd")
    assert (row["state"], row["approved_by"], row["customer"]) == ("planned", ["Ann"], "cus_A")
    with pytest.raises(ActRefused, match="exists already"):
        await approve(pool, by="Bob", amount_minor=1900)


async def test_the_amount_counts_towards_two_persons_who_must_mean_the_same_one(pool: Pool) -> None:
    history = History()
    history.customer()
    sub = history.subscribe(0, Sold(amount=200_000))
    history.pay_again(sub.first, MINUTE)
    history.balance_read(DAY, ("invoice_overpaid", -200_000, sub.first.invoice), ("applied_to_invoice", 1000, None))
    await tell(pool, history)
    assert (await approve(pool, amount_minor=150_000))["planned"] == []
    with pytest.raises(ActRefused, match=r"1500\.00 USD is prepared"):
        await approve(pool, by="Bob", amount_minor=160_000)
    await approve(pool, by="Bob", amount_minor=150_000)
    assert await actions(pool) == {"refund ch_0002": ("planned", ["Ann", "Bob"])}


async def test_a_prepared_amount_is_not_changed_by_a_person(pool: Pool) -> None:
    await tell(pool, bought_twice())
    with pytest.raises(ActRefused, match=r"29\.00 USD is prepared"):
        await approve(pool, amount_minor=100)


# no ----------------------------------------------------------------------------------------------------------------------


async def test_a_no_withdraws_everything_and_is_final(pool: Pool) -> None:
    await tell(pool, bought_twice())
    await reject(pool)
    assert {state for state, _ in (await actions(pool)).values()} == {"withdrawn"}
    assert await waiting(pool) == []
    with pytest.raises(ActRefused, match="was rejected by Ann"):
        await approve(pool, by="Bob")
    with pytest.raises(ActRefused, match="was rejected by Ann"):
        await reject(pool, by="Bob")


async def test_a_refund_that_was_planned_can_still_be_stopped(pool: Pool) -> None:
    await tell(pool, bought_twice(), court(refunds="auto"))
    assert {state for state, _ in (await actions(pool)).values()} == {"planned"}
    await reject(pool)
    assert {state for state, _ in (await actions(pool)).values()} == {"withdrawn"}


async def test_a_review_without_actions_can_be_closed(pool: Pool) -> None:
    await tell(pool, paid_again_and_credit_partly_spent())
    await reject(pool)
    assert await waiting(pool) == []


async def test_a_note_changes_nothing_but_is_kept(pool: Pool) -> None:
    await tell(pool, bought_twice())
    async with transaction(pool) as conn:
        await review.note(conn, REALMS, "ch_0002", by="Ann", text="asked the customer")
    (item,) = await waiting(pool)
    assert [(act["act"], act["by"], act["note"]) for act in item["acts"]] == [("note", "Ann", "asked the customer")]
    assert {state for state, _ in (await actions(pool)).values()} == {"proposed"}


# what Stripe was asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["sending", "sent"])
async def test_what_was_sent_is_neither_approved_again_nor_taken_back(pool: Pool, state: str) -> None:
    await tell(pool, bought_twice(), court(refunds="auto"))
    await pretend_sent(pool, state)
    await pool.execute("update actions set state = 'withdrawn' where kind <> 'refund'")
    with pytest.raises(ActRefused, match=f"refund of ch_0002 is {state}"):
        await approve(pool)
    with pytest.raises(ActRefused, match=r"being sent|is sent"):
        await reject(pool)


async def test_what_stripe_refused_may_be_approved_again(pool: Pool) -> None:
    await tell(pool, bought_twice())
    await approve(pool)
    await pretend_sent(pool, "review", error="Stripe refused: insufficient funds")
    (item,) = await waiting(pool)
    assert item["problems"] == ["Stripe refused: insufficient funds"]
    await approve(pool)
    (row,) = await pool.fetch("select state, approved_by, error from actions where kind = 'refund'")
    assert tuple(row) == ("planned", ["Ann", "Ann"], None)


async def test_after_a_refusal_two_persons_have_to_say_yes_anew(pool: Pool) -> None:
    await tell(pool, bought_twice(amount=100_001))
    await approve(pool, by="Ann")
    await approve(pool, by="Bob")
    await pretend_sent(pool, "review", error="Stripe refused")
    assert (await approve(pool, by="Bob"))["planned"] == []
    assert (await approve(pool, by="Ann"))["planned"]


async def test_a_refund_that_failed_at_stripe_is_owed_another_way(pool: Pool) -> None:
    await tell(pool, bought_twice())
    await pretend_sent(pool, "review", error="the refund re_1 failed", stripe_id="re_1")
    with pytest.raises(ActRefused, match="another way"):
        await approve(pool)
    assert [item["subject"] for item in await waiting(pool)] == ["ch_0002"]
    await reject(pool)
    assert (await actions(pool))["refund ch_0002"][0] == "failed"
    assert await waiting(pool) == []


async def test_a_frozen_amount_that_the_decision_no_longer_wants_is_not_sent_again(pool: Pool) -> None:
    """Sent as 29.00 and refused; then 10.00 went back by hand: 29.00 would be too much, and the row cannot change."""
    history = bought_twice()
    await tell(pool, history)
    await approve(pool)
    await pretend_sent(pool, "review", error="Stripe refused")
    history.refund("ch_0002", DAY, 1000)
    await tell(pool, history)
    with pytest.raises(ActRefused, match="something else now"):
        await approve(pool)


# at the same moment ------------------------------------------------------------------------------------------------------


async def test_of_two_people_at_the_same_moment_one_is_first(pool: Pool) -> None:
    await tell(pool, bought_twice())
    outcomes = await asyncio.gather(approve(pool, by="Ann"), approve(pool, by="Bob"), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ActRefused", "dict"]
    assert await pool.fetchval("select count(*) from review_acts") == 1


async def test_a_yes_waits_for_the_judge_and_does_not_reach_what_he_replaced(pool: Pool) -> None:
    """The worker is judging new facts; the yes was meant for what stood before."""
    history = paid_again_and_credit_partly_spent()
    await tell(pool, history)
    old = await pool.fetchval("select id from decisions")
    history.dispute("ch_0002", "needs_response")
    async with connection(pool) as conn:
        judging = conn.transaction()
        await judging.start()
        await settle(conn, court(), "test", list(history.tellings))  # type: ignore[arg-type]  # facts of the union only
        task = asyncio.create_task(approve(pool, old, amount_minor=1900))
        await asyncio.sleep(0.3)
        assert not task.done()
        await judging.commit()
    with pytest.raises(ActRefused, match="not in force any more"):
        await task
    assert await actions(pool) == {}


async def test_acts_cannot_be_changed_afterwards(pool: Pool) -> None:
    await tell(pool, bought_twice())
    await approve(pool)
    with pytest.raises(asyncpg.RestrictViolationError):
        await pool.execute("update review_acts set by_name = 'Eve'")


# the switch --------------------------------------------------------------------------------------------------------------


async def test_the_pause_switch_names_who_turned_it(pool: Pool) -> None:
    async with transaction(pool) as conn:
        await review.pause(conn, on=True, by="Bob", reason="holidays")
    (row,) = await pool.fetch("select name, is_on, by_name, reason from switches")
    assert tuple(row) == ("refunds_paused", True, "Bob", "holidays")
    async with transaction(pool) as conn:
        await review.pause(conn, on=False, by="Ann")
    (row,) = await pool.fetch("select is_on, by_name from switches")
    assert tuple(row) == (False, "Ann")


# through to Stripe -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_house(settings: Settings) -> AsyncIterator[Sandbox]:
    """A deployment whose refunds wait for a person, and the stand-in Stripe that tells it things."""
    async with Sandbox(webhook_secrets=[WEBHOOK_SECRET]) as stripe:
        running = settings.model_copy(update={"stripe_api_base": stripe.url, "refunds": "review"})
        async with listening(running) as web:
            stripe.configure({"webhook": {"url": f"http://127.0.0.1:{web.port}/stripe/webhook"}})
            worker = WorkerProcess(running)
            working = asyncio.create_task(worker.run())
            try:
                yield stripe
            finally:
                worker.stop()
                await working


async def until(pool: Pool, query: str, within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not await pool.fetchval(query):
            await asyncio.sleep(0.05)


async def test_nothing_is_sent_before_the_yes_and_exactly_what_was_shown_after_it(
    settings: Settings, pool: Pool
) -> None:
    """Two purchases an hour apart are a review (outside the window); the last look finds the same, and the yes holds."""
    async with open_house(settings) as stripe:
        books = stripe.books
        books.set_clock(int(time.time()) - 7200, running=False)
        price = books.new_price(books.new_product("FluxArt AI")["id"], "usd", 2900, interval="month", id_="price_basic")
        customer = books.new_customer(email="a@example.com", metadata={}, fingerprint="card1")
        books.subscribe(customer, [(price, 1)], metadata={"user_id": "u1"})
        books.advance(3600)
        second = books.subscribe(customer, [(price, 1)], metadata={"user_id": "u1"})
        await until(pool, "select count(*) = 1 from decisions where verdict = 'review'")
        await asyncio.sleep(1)
        assert list(books.all("refund")) == []
        (item,) = await waiting(pool)
        await approve(pool, item["id"])
        await until(pool, "select count(*) = 2 from actions where state = 'sent'")
        assert [(r["amount"], r["charge"]) for r in books.all("refund")] == [(2900, item["duplicate"])]
        assert books.by_id[second["id"]]["status"] == "canceled"


async def test_an_amount_that_a_person_named_is_sent_once(settings: Settings, pool: Pool) -> None:
    """A part of the balance credit was spent, so no rule can say how much of the second payment is still owed."""
    async with open_house(settings) as stripe:
        books = stripe.books
        books.set_clock(int(time.time()) - 7200, running=False)
        price = books.new_price(books.new_product("FluxArt AI")["id"], "usd", 2900, interval="month", id_="price_basic")
        customer = books.new_customer(email="a@example.com", metadata={}, fingerprint="card1")
        sub = books.subscribe(customer, [(price, 1)], metadata={"user_id": "u1"})
        invoice = books.by_id[sub["latest_invoice"]]
        books.advance(60)
        books.pay_again(invoice)
        books.advance(60)
        books.move_balance(customer, 1000, "usd", "adjustment")
        await until(pool, "select count(*) = 1 from lookups where kind = 'balance' and state = 'done'")
        (item,) = await waiting(pool)
        assert item["two_persons"] is None
        await approve(pool, item["id"], amount_minor=1900)
        await until(pool, "select count(*) = 1 from actions where state not in ('planned', 'sending')")
        assert [(r["amount"], r["charge"]) for r in books.all("refund")] == [(1900, item["duplicate"])]


# what the person saw ---------------------------------------------------------------------------------------------------------


async def test_an_answer_to_a_page_of_before_changes_nothing(pool: Pool) -> None:
    """Ada's tab shows a prepared refund; meanwhile it was approved, sent, and its outcome is in doubt."""
    await tell(pool, bought_twice())
    (seen,) = await waiting(pool)
    await approve(pool, by="Ann", etag=seen["etag"])
    await pretend_sent(pool, "review", error="no answer came")
    with pytest.raises(ActRefused, match="changed since your page was made"):
        await approve(pool, by="Ann", etag=seen["etag"])
    async with transaction(pool) as conn:
        with pytest.raises(ActRefused, match="changed since"):
            await review.reject(conn, REALMS, "ch_0002", by="Ann", etag=seen["etag"])
    (now,) = await waiting(pool)
    assert now["etag"] != seen["etag"]
    await approve(pool, by="Ann", etag=now["etag"])


async def test_a_second_person_must_have_seen_the_amount_that_the_first_one_named(pool: Pool) -> None:
    await tell(pool, paid_again_and_credit_partly_spent())
    (seen,) = await waiting(pool)
    await approve(pool, by="Ann", amount_minor=900, etag=seen["etag"])
    with pytest.raises(ActRefused):
        await approve(pool, by="Bob", amount_minor=2900, etag=seen["etag"])


async def test_an_old_page_does_not_undo_a_newer_pause(pool: Pool) -> None:
    async def switch(on: bool, by: str, etag: str | None = None) -> None:
        async with transaction(pool) as conn:
            await review.pause(conn, on=on, by=by, reason=f"{by} says so", etag=etag)

    async def shown() -> str:
        async with connection(pool) as conn:
            told = await reading.pause_switch(conn)
        return told["since"].isoformat() if told["since"] else ""

    await switch(True, "Ann", await shown())
    bobs = await shown()
    await switch(False, "Ann", bobs)
    await switch(True, "Eve", await shown())
    with pytest.raises(ActRefused, match="paused anew by Eve"):
        await switch(False, "Bob", bobs)
    async with connection(pool) as conn:
        assert (await reading.pause_switch(conn))["on"]
    await switch(False, "Bob", await shown())
