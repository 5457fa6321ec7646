"""Refunds, chargebacks and cases in the console: lists by page, sums, the switch, staged evidence, answers; and who may."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from handlers.cases import read_request
from sandbox import Sandbox
from tests.conftest import eventually
from tests.console.conftest import Browser, Make
from tests.console.test_pages_a import EMAIL, REVIEW, disputed, forms, words
from tests.handlers.history import DAY, POLICY
from tests.stripe_sender import WEBHOOK_SECRET
from tests.worker.books import court, tell
from tests.worker.test_review import (
    bought_twice,
    pretend_sent,
)
from worker import cases, operators
from worker.console import refunds
from worker.console.chargebacks import left_in_words
from worker.db import Pool, transaction
from worker.operators import Role
from worker.settings import Settings
from worker.web import listening

# refunds -----------------------------------------------------------------------------------------------------------------


async def test_refunds_are_listed_by_state_and_go_on_page_by_page(
    pool: Pool, console: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tell(pool, bought_twice())
    await pool.execute(
        """insert into actions (id, realm, kind, subject, decision_subject, decision_id, customer, amount_minor, currency,
               state, due_at, next_at, first_sent_at, idempotency_key, stripe_id, error, created_at)
           select 'act_' || n, 'test', 'refund', 'ch_x' || n, 'ch_x' || n, (select min(id) from decisions), 'cus_A', 100 * n, 'eur',
               s, now(), now(), now(), 'k' || n, case when s = 'sent' then 're_' || n end, 'why ' || n, now() - n * interval '1 hour'
           from (values (1, 'sent'), (2, 'failed'), (3, 'sent'), (4, 'review'), (5, 'sending')) x (n, s)"""
    )
    monkeypatch.setattr(refunds, "LISTED", 2)

    async def listed(path: str) -> list[str]:
        seen = []
        while path:
            _, html = await console.get(path)
            seen += re.findall(r">(ch_\w+)</a><br>", html)
            found = re.search(r'class="pager"><a href="([^"]+)"', html)
            path = found[1].replace("&amp;", "&") if found else ""
        return seen

    assert await listed("/console/refunds") == ["ch_0002", "ch_x1", "ch_x2", "ch_x3", "ch_x4", "ch_x5"]
    for state, expected in (
        ("sent", ["ch_x1", "ch_x3"]),
        ("failed", ["ch_x2"]),
        ("in-doubt", ["ch_x4"]),
        ("in-flight", ["ch_x5"]),
        ("waiting", ["ch_0002"]),
    ):
        assert await listed(f"/console/refunds?state={state}") == expected
    assert (await console.get("/console/refunds?state=nonsense"))[0] == 400
    _, html = await console.get("/console/refunds?state=failed")
    assert "Try again, or close" in words(html)


async def test_refunds_are_paused_and_resumed_with_a_reason_and_every_page_says_so(pool: Pool, signed_in: Make) -> None:
    ada, rosa = await signed_in("Ada"), await signed_in("Rosa", Role.READ)
    assert (await ada.post("/console/refunds/pause", reason=" "))[0] == 400
    assert (await rosa.post("/console/refunds/pause", reason="no"))[0] == 403
    await ada.post("/console/refunds/pause", reason="the bank asked")
    for path in ("/console/", "/console/reviews", "/console/cases"):
        assert "Refunds are paused" in words((await rosa.get(path))[1])
    _, html = await rosa.get("/console/refunds")
    assert "Paused by Ada" in words(html)
    assert "the bank asked" in words(html)
    assert forms(html) == set()
    _, html = await ada.post("/console/refunds/resume", reason="settled")
    assert "Refunds go again" in words(html)
    assert await pool.fetchval("select is_on from switches") is False


async def test_a_yes_while_refunds_are_paused_says_that_nothing_is_sent_yet(pool: Pool, console: Browser) -> None:
    await tell(pool, bought_twice())
    await console.post("/console/refunds/pause", reason="wait")
    _, html = await console.post(REVIEW + "/approve")
    assert "Refunds are paused: nothing is sent until somebody resumes them" in words(html)


async def test_a_month_is_counted_from_its_first_moment(pool: Pool, console: Browser) -> None:
    await tell(pool, bought_twice(), court())
    await pretend_sent(pool, "sent", stripe_id="re_1")
    async with pool.acquire() as conn:
        await conn.execute("set session_replication_role = replica")
        for moment, counted in (
            ("date_trunc('month', now()) - interval '1 ms'", False),
            ("date_trunc('month', now())", True),
        ):
            await conn.execute(
                f"update actions set first_sent_at = {moment}, stripe_status = 'succeeded' where kind = 'refund'"
            )
            _, html = await console.get("/console/refunds")
            assert ('>29.00 USD</span></td><td class="n">1<' in html) is counted
        await conn.execute("reset session_replication_role")


# chargebacks -------------------------------------------------------------------------------------------------------------


async def test_chargebacks_tell_their_deadline_and_what_stripe_does_by_itself(pool: Pool, console: Browser) -> None:
    await tell(pool, disputed(3 * DAY + 7300, intended_submission_method="prefer_smart_disputes"))
    _, html = await console.get("/console/chargebacks")
    text = words(html)
    assert "3 days 2 h left" in text
    assert "Stripe may answer by itself (Smart Disputes)" in text
    assert "you needs response" in text
    _, html = await console.get("/console/chargebacks/dp_0001")
    text = words(html)
    assert "Duplicate charge explanation" in text
    assert "A person should add" in text
    assert forms(html) == {"stage"}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (3 * 86_400 + 7_300, "3 days 2 h left"),
        (86_400, "1 day left"),
        (5_400, "1 h 30 min left"),
        (59, "0 min left"),
        (-7_200, "passed 2 h ago"),
        (-86_400 * 2, "passed 2 days ago"),
    ],
)
def test_a_deadline_is_told_in_words(seconds: int, said: str) -> None:
    assert left_in_words(seconds) == said


@asynccontextmanager
async def at_stripe(settings: Settings, pool: Pool) -> AsyncIterator[tuple[Sandbox, Browser]]:
    """A console whose Stripe is the sandbox, and Ada's browser."""
    async with (
        Sandbox(webhook_secrets=[WEBHOOK_SECRET]) as stripe,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
        listening(settings.model_copy(update={"stripe_api_base": stripe.url})) as web,
    ):
        await eventually(web.watch.ready)
        async with transaction(pool) as conn:
            made = await operators.add(conn, "Ada", Role.DECIDE, by="tests")
        browser = Browser(f"http://127.0.0.1:{web.port}", session, "Ada", made["token"])
        assert (await browser.sign_in())[0] == 303
        yield stripe, browser


async def test_evidence_is_staged_at_stripe_only_with_the_box_ticked_and_never_submitted(
    settings: Settings, pool: Pool
) -> None:
    async with at_stripe(settings, pool) as (stripe, browser):
        dispute = await known_to(stripe, pool)
        stage = f"/console/chargebacks/{dispute}/stage"
        status, _ = await browser.post(stage)
        assert status == 400
        assert not any(stripe.books.by_id[dispute]["evidence"].values())
        status, html = await browser.post(stage, sure="yes")
        assert status == 200
        assert "staged at Stripe and not submitted" in words(html)
        assert "Ada noted : evidence staged by Ada, not submitted" in words(html).replace("noted: ", "noted : ")
        told = stripe.books.by_id[dispute]
        assert any(told["evidence"].values())
        assert told["evidence_details"]["submission_count"] == 0


async def known_to(stripe: Sandbox, pool: Pool) -> str:
    """A dispute that Stripe and the books know under one id."""
    books = stripe.books
    price = books.new_price(books.new_product("FluxArt AI")["id"], "usd", 2900, interval="month", id_="price_basic")
    sub = books.subscribe(books.new_customer(email=EMAIL, metadata={}, fingerprint="card1"), [(price, 1)])
    charge = next(c for c in books.all("charge") if c["customer"] == sub["customer"])
    told = books.open_dispute(charge, reason="duplicate")
    history = disputed(DAY)
    fact = history.latest.pop("dp_0001")
    history.tellings = [f for f in history.tellings if f.id != "dp_0001"]
    history.tell(type(fact)(**{name: getattr(fact, name) for name in fact.__struct_fields__} | {"id": told["id"]}))
    await tell(pool, history)
    return str(told["id"])


async def test_a_console_without_a_key_says_that_it_cannot_stage(settings: Settings, pool: Pool) -> None:
    await tell(pool, disputed(DAY))
    without = settings.model_copy(update={"stripe_api_key": None})
    async with listening(without) as web, aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        await eventually(web.watch.ready)
        async with transaction(pool) as conn:
            made = await operators.add(conn, "Ada", Role.DECIDE, by="tests")
        browser = Browser(f"http://127.0.0.1:{web.port}", session, "Ada", made["token"])
        await browser.sign_in()
        _, html = await browser.get("/console/chargebacks/dp_0001")
        assert "This web process has no key for Stripe" in words(html)
        assert forms(html) == set()
        status, _ = await browser.post("/console/chargebacks/dp_0001/stage", sure="yes")
        assert status == 409


# cases -------------------------------------------------------------------------------------------------------------------


async def opened(pool: Pool, **more: str) -> str:
    asked = {"email": EMAIL, "date": "2026-01-01", "description": "Charged twice.", "kind": "duplicate"} | more
    async with transaction(pool) as conn:
        case = await cases.open_case(conn, POLICY, "test", read_request(asked), by="Ann")
    return str(case["id"])


async def test_cases_are_listed_soonest_due_first_without_an_address(pool: Pool, console: Browser) -> None:
    await tell(pool, bought_twice())
    late, soon = await opened(pool, transaction="ch_0002"), await opened(pool)
    await pool.execute("update cases set due_at = now() - interval '61 minutes' where id = $1", late)
    _, html = await console.get("/console/cases")
    assert "2 wait for an answer, 1 late" in words(html)
    assert "passed 1 h 1 min ago" in words(html)
    assert html.index(late) < html.index(soon)
    assert EMAIL not in html
    assert "example.com" not in html


async def test_a_case_is_assigned_noted_answered_and_opened_again(pool: Pool, console: Browser) -> None:
    await tell(pool, bought_twice())
    at = f"/console/cases/{await opened(pool, transaction='ch_0002')}"
    _, html = await console.get(at)
    assert forms(html) == {"assign", "note", "evaluate", "answer", "close"}
    assert EMAIL in html, "who answers needs the address"
    await console.post(at + "/assign")
    await console.post(at + "/note", note="called her")
    found = re.search(r'<textarea name="answer"[^>]*>\n(.*?)</textarea>', html, re.S)
    assert found
    _, html = await console.post(at + "/answer", answer=found[1])
    for said in ("assigned it to Ada", "noted: called her", "answered with the draft", "its clock stands still"):
        assert said in words(html)
    assert forms(html) == {"assign", "note", "close", "reopen"}
    await console.post(at + "/reopen", reason="she wrote again")
    _, html = await console.post(at + "/answer", answer="In my own words.")
    assert "answered in other words than the draft" in words(html)
    assert "In my own words." in words(html)
    _, html = await console.get("/console/cases?show=over")
    assert at in html


async def test_a_case_is_closed_unanswered_only_with_a_reason(pool: Pool, console: Browser) -> None:
    at = f"/console/cases/{await opened(pool)}"
    assert (await console.post(at + "/close", reason=""))[0] == 409
    _, html = await console.post(at + "/close", reason="sent twice by mistake")
    assert "is closed" in words(html)
    assert forms(html) == {"note", "reopen"}


async def test_who_may_only_read_sees_no_address_and_no_forms(pool: Pool, reader: Browser) -> None:
    at = f"/console/cases/{await opened(pool)}"
    _, html = await reader.get(at)
    assert EMAIL not in html
    assert "a…@example.com" in html
    assert forms(html) == set()
    assert (await reader.post(at + "/answer", answer="x"))[0] == 403
