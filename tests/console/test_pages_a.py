"""The pages of work, as people without script meet them: what they say, which forms they offer to whom, and what the forms do."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.console.conftest import Browser, Make
from tests.handlers.history import DAY, POLICY, History
from tests.worker.books import REALMS, tell
from tests.worker.test_review import (
    actions,
    bought_twice,
    open_house,
    paid_again_and_credit_partly_spent,
    pretend_sent,
    until,
)
from worker import review
from worker.console import overview, reviews
from worker.console.reviews import minor_of
from worker.db import Pool, queries, transaction
from worker.operators import Role
from worker.reading import NotUnderstood
from worker.settings import Settings

EMAIL = "ada.lovelace@example.com"
REVIEW = "/console/reviews/ch_0002"


def words(html: str) -> str:
    """A page's text, as it is read."""
    body = re.sub(r"<(script|style|title)\b.*?</\1>", " ", html, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)).replace(" .", ".").replace(" ,", ",")


def forms(html: str) -> set[str]:
    """The last words of the addresses of the page's own forms."""
    return {action.rpartition("/")[2] for action in re.findall(r'class="act" method="post" action="([^"]+)"', html)}


def disputed(in_s: int, **more: object) -> History:
    history = bought_twice()
    id_ = history.dispute("ch_0001", "needs_response")
    history.change(id_, due_by=int(time.time()) + in_s, reason="duplicate", **more)
    return history


async def alive(pool: Pool) -> None:
    await pool.execute(
        "insert into workers (id, role, detail) values (gen_random_uuid(), 'worker', 'a pid 1, rung, x')"
    )


# overview ----------------------------------------------------------------------------------------------------------------


async def test_the_first_page_says_all_well_where_a_worker_lives_and_nothing_waits(
    pool: Pool, console: Browser
) -> None:
    await alive(pool)
    status, html = await console.get("/console/")
    assert status == 200
    assert "All well" in words(html)
    assert "rung through Redis" in words(html)


async def test_without_a_worker_something_is_broken_and_the_page_says_what(console: Browser) -> None:
    _, html = await console.get("/console/")
    assert "Something is broken" in words(html)
    assert "No worker is alive" in words(html)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("update workers set detail = 'a pid 1, polling, x'", "polling: Redis does not ring"),
        ("update workers set seen_at = now() - interval '1 minute'", "No worker is alive"),
        (
            "insert into inbox (event_id, realm, type, created_at, payload, state) values ('evt_1', 'test', 'x', now(), '', 'dead')",
            "1 event could not be judged",
        ),
        (
            "insert into inbox (event_id, realm, type, created_at, payload, received_at) values ('evt_1', 'test', 'x', now(), '', now() - interval '10 minutes')",
            "The workers are behind: 1 events wait, the oldest for 10 min",
        ),
        (
            "insert into runs (id, realm, kind, dry_run, asked, plan, state) values ('run_1', 'test', 'nightly', false, 'x', '{}', 'incomplete')",
            "The last nightly run is incomplete",
        ),
        (
            "insert into runs (id, realm, kind, dry_run, asked, plan, state, finished_at, report) values ('run_1', 'test', 'nightly', false, 'x', '{}', 'done', now() - interval '2 days', '{\"result\": \"clean\", \"drift\": 0, \"healed\": 0}')",
            "No nightly run since",
        ),
    ],
)
async def test_what_is_broken_is_said_on_the_first_page(pool: Pool, console: Browser, trouble: str, said: str) -> None:
    await alive(pool)
    await pool.execute(trouble)
    _, html = await console.get("/console/")
    assert said in words(html)


async def test_the_first_page_offers_no_review_that_waits_for_another_person(pool: Pool, signed_in: Make) -> None:
    await tell(pool, bought_twice(amount=120_000))
    ada, bob = await signed_in("Ada"), await signed_in("Bob")
    await ada.post(REVIEW + "/approve")
    _, mine = await ada.get("/console/")
    _, his = await bob.get("/console/")
    assert "Nothing waits for you" in words(mine)
    assert "1 more wait for a second person: you said yes already" in words(mine)
    assert "Ada said yes; a second person is needed" in words(his)


async def test_money_of_the_month_and_the_drawings_tell_the_same_sums(pool: Pool, console: Browser) -> None:
    await tell(pool, bought_twice())
    await pretend_sent(pool, "sent", stripe_id="re_1")
    await pool.execute("update actions set stripe_status = 'succeeded'")
    _, html = await console.get("/console/")
    assert re.search(r"Returned in \w+ \d+ Sum Refunds 29.00 USD 1", words(html))
    assert "USD returned by day (UTC)" in words(html)
    assert "<svg" in html
    assert "style=" not in html
    await pool.execute("update actions set stripe_status = 'failed'")
    _, html = await console.get("/console/")
    assert "Nothing yet" in words(html), "what Stripe failed came back"


# the queue ---------------------------------------------------------------------------------------------------------------


async def test_the_queue_goes_on_page_by_page_and_every_review_is_on_exactly_one(
    pool: Pool, console: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = bought_twice()
    history.refund("ch_0001", DAY, 100)
    history.dispute("ch_0001", "needs_response")
    await tell(pool, history)
    monkeypatch.setattr(reviews, "LISTED", 1)
    expected = {row["subject"] for row in await waiting_subjects(pool)}
    assert len(expected) >= 3
    seen, path = [], "/console/reviews"
    while path:
        _, html = await console.get(path)
        seen += re.findall(r'<a class="id" href="/console/reviews/dec_[0-9a-f]+">([^<]+)</a>', html)
        found = re.search(r'class="pager"><a href="([^"]+)"', html)
        path = found[1].replace("&amp;", "&") if found else ""
    assert sorted(seen) == sorted(expected)


async def waiting_subjects(pool: Pool) -> list[dict[str, str]]:
    async with transaction(pool) as conn:
        return await review.waiting(conn, REALMS, POLICY)


async def test_the_queue_is_filtered_by_clause(pool: Pool, console: Browser) -> None:
    history = bought_twice()
    history.dispute("ch_0001", "needs_response")
    await tell(pool, history)
    _, html = await console.get("/console/reviews?clause=7")
    assert "dp_0001" in html
    assert ">ch_0002</a>" not in html
    assert "Clause 7 (1)" in words(html)


async def test_an_answered_review_leaves_the_queue(pool: Pool, console: Browser) -> None:
    await tell(pool, bought_twice())
    assert ">ch_0002</a>" in (await console.get("/console/reviews"))[1]
    await console.post(REVIEW + "/reject", reason="she wanted both")
    assert "Nothing waits for a person" in words((await console.get("/console/reviews"))[1])


# one review --------------------------------------------------------------------------------------------------------------


async def test_a_review_shows_both_payments_the_evidence_and_what_a_yes_does(pool: Pool, console: Browser) -> None:
    await tell(pool, bought_twice())
    status, html = await console.get(REVIEW)
    text = words(html)
    assert status == 200
    for said in (
        "one customer bought the same subscription twice",
        "amount 29.00 USD 29.00 USD equal",
        "42 s apart",
        "the duplicates alone go back",
        "29.00 USD of ch_0002 goes back to the customer",
        "sub_0002 is cancelled at once",
        "Approve: refund 29.00 USD",
    ):
        assert said in text
    assert "https://dashboard.stripe.com/test/payments/ch_0001" in html


@pytest.mark.parametrize(
    ("role", "offered"), [(Role.READ, set()), (Role.DECIDE, {"approve", "reject", "note"})], ids=["read", "decide"]
)
async def test_only_who_may_decide_is_offered_the_forms(
    pool: Pool, signed_in: Make, role: Role, offered: set[str]
) -> None:
    await tell(pool, bought_twice())
    browser = await signed_in("Grace", role)
    _, html = await browser.get(REVIEW)
    assert forms(html) == offered
    status, _ = await browser.post(REVIEW + "/approve")
    assert status == (200 if offered else 403)
    assert (await actions(pool))["refund ch_0002"][0] == ("planned" if offered else "proposed")


async def test_a_yes_keeps_the_operators_name_and_note_and_says_what_comes(pool: Pool, console: Browser) -> None:
    await tell(pool, bought_twice())
    _, html = await console.post(REVIEW + "/approve", note="spoke to her")
    assert "It is on its way to Stripe" in words(html)
    assert "Ada said yes : spoke to her" in words(html).replace("yes: ", "yes : ")
    assert await actions(pool) == {
        "refund ch_0002": ("planned", ["Ada"]),
        "cancel_subscription sub_0002": ("planned", ["Ada"]),
    }
    assert forms(html) == {"note"}


async def test_above_the_limit_two_people_say_yes_in_their_own_browsers(pool: Pool, signed_in: Make) -> None:
    await tell(pool, bought_twice(amount=120_000))
    ada, bob = await signed_in("Ada"), await signed_in("Bob")
    _, html = await ada.post(REVIEW + "/approve")
    assert "It needs a second person" in words(html)
    assert "you cannot be both" in words(html)
    assert "approve" not in forms(html)
    status, html = await ada.post(REVIEW + "/approve", note="I insist on it")
    assert status == 409
    assert "I insist on it" in html, "what was typed is not lost"
    assert (await actions(pool))["refund ch_0002"] == ("proposed", [])
    _, html = await bob.get(REVIEW)
    assert re.search(r"Ada said yes at [\d :-]+ UTC ; a second person is needed", words(html))
    _, html = await bob.post(REVIEW + "/approve")
    assert (await actions(pool))["refund ch_0002"] == ("planned", ["Ada", "Bob"])


async def test_a_no_needs_its_reason(pool: Pool, console: Browser) -> None:
    await tell(pool, bought_twice())
    status, _ = await console.post(REVIEW + "/reject", reason="  ")
    assert status == 400
    assert (await actions(pool))["refund ch_0002"][0] == "proposed"
    _, html = await console.post(REVIEW + "/reject", reason="she wanted both")
    assert "nothing goes back for it" in words(html)
    assert (await actions(pool))["refund ch_0002"][0] == "withdrawn"
    assert "Ada said no : she wanted both" in words(html).replace("no: ", "no : ")


async def test_the_second_answer_of_two_at_once_is_refused_with_its_words_kept(pool: Pool, signed_in: Make) -> None:
    await tell(pool, bought_twice())
    ada, bob = await signed_in("Ada"), await signed_in("Bob")
    await ada.post(REVIEW + "/approve")
    status, html = await bob.post(REVIEW + "/approve", note="I agree with <b>Ada</b>")
    assert status == 409
    assert "I agree with &lt;b&gt;Ada&lt;/b&gt;" in html


async def test_a_note_changes_nothing_but_is_there(pool: Pool, console: Browser) -> None:
    await tell(pool, bought_twice())
    _, html = await console.post(REVIEW + "/note", note="I wrote to her")
    assert "Ada noted : I wrote to her" in words(html).replace("noted: ", "noted : ")
    assert (await actions(pool))["refund ch_0002"] == ("proposed", [])


async def test_where_no_amount_could_be_proved_a_person_names_it_in_the_currencys_own_digits(
    pool: Pool, console: Browser
) -> None:
    await tell(pool, paid_again_and_credit_partly_spent())
    _, html = await console.get(REVIEW)
    assert 'name="amount"' in html
    for wrong in ("", "19.000", "1,900.00", "-19.00"):
        assert (await console.post(REVIEW + "/approve", amount=wrong))[0] == 400, wrong
    assert (await console.post(REVIEW + "/approve", amount="19.00"))[0] == 200
    assert await pool.fetchval("select amount_minor from actions where kind = 'refund'") == 1900


async def test_more_than_is_left_is_refused(pool: Pool, console: Browser) -> None:
    await tell(pool, paid_again_and_credit_partly_spent())
    status, html = await console.post(REVIEW + "/approve", amount="29.01")
    assert status == 409
    assert "29.00 USD is left" in words(html)
    assert await actions(pool) == {}


@pytest.mark.parametrize(
    ("text", "currency", "minor"),
    [("12.50", "usd", 1250), ("12", "usd", 1200), ("1250", "jpy", 1250), ("1.250", "kwd", 1250), (" 0.01 ", "eur", 1)],
)
def test_an_amount_is_read_in_the_digits_of_its_currency(text: str, currency: str, minor: int) -> None:
    assert minor_of(text, currency) == minor


@pytest.mark.parametrize(
    ("text", "currency"),
    [
        ("12.5", "usd"),
        ("12.50", "jpy"),
        ("12.", "usd"),
        (".50", "usd"),
        ("1 200", "usd"),
        ("9" * 13, "usd"),
        ("²", "usd"),
    ],
)
def test_an_amount_is_never_guessed(text: str, currency: str) -> None:
    with pytest.raises(NotUnderstood):
        minor_of(text, currency)


async def test_a_decision_that_was_replaced_leads_to_the_one_in_force(pool: Pool, console: Browser) -> None:
    history = bought_twice(amount=60_000)
    await tell(pool, history)
    old = await pool.fetchval("select id from decisions")
    history.refund("ch_0001", DAY, 100)
    await tell(pool, history)
    _, html = await console.get(f"/console/reviews/{old}")
    assert f"You asked for {old}, which is not in force any more" in words(html)
    assert (await console.post(f"/console/reviews/{old}/approve"))[0] == 409


@pytest.mark.parametrize("id_", ["dec_", "dec_ffffffff", "ch_9999", "%25", "..%2f..", "dec_'%20or%201=1"])
async def test_an_id_that_names_nothing_is_a_page_that_says_so(pool: Pool, console: Browser, id_: str) -> None:
    for path in (f"/console/reviews/{id_}", f"/console/chargebacks/{id_}", f"/console/cases/{id_}"):
        assert (await console.get(path))[0] == 404, path


async def test_after_a_yes_the_refund_appears_with_its_id_at_stripe(
    settings: Settings, pool: Pool, console: Browser
) -> None:
    """The whole way: two purchases, a review, a yes in the console, the refund at Stripe, and its id on the page."""
    async with open_house(settings) as stripe:
        books = stripe.books
        books.set_clock(int(time.time()) - 7200, running=False)
        price = books.new_price(books.new_product("FluxArt AI")["id"], "usd", 2900, interval="month", id_="price_basic")
        customer = books.new_customer(email=EMAIL, metadata={}, fingerprint="card1")
        books.subscribe(customer, [(price, 1)], metadata={"user_id": "u1"})
        books.advance(3600)
        books.subscribe(customer, [(price, 1)], metadata={"user_id": "u1"})
        await until(pool, "select count(*) = 1 from decisions where verdict = 'review'")
        _, html = await console.get("/console/reviews")
        found = re.search(r"/console/reviews/dec_[0-9a-f]+", html)
        assert found
        _, html = await console.get(found[0])
        assert "the same card" in words(html)
        assert EMAIL not in html
        await console.post(found[0] + "/approve")
        await until(pool, "select count(*) = 2 from actions where state = 'sent'")
        (refund,) = books.all("refund")
        _, html = await console.get(found[0])
        assert refund["id"] in html
        assert "sent" in words(html)
        _, html = await console.get("/console/refunds")
        assert refund["id"] in html


# every page --------------------------------------------------------------------------------------------------------------

PATHS = ("/", "/reviews", "/reviews/ch_0002", "/refunds", "/chargebacks", "/chargebacks/dp_0001", "/cases")


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_has_one_heading_and_nothing_inline(pool: Pool, console: Browser, path: str) -> None:
    await alive(pool)
    await tell(pool, disputed(DAY))
    status, html = await console.get("/console" + path)
    assert status == 200
    assert html.count("<h1") == 1
    assert not re.search(r"<[^>]+\s(style|on\w+)=|<style|<script(?! src=)", html)
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


GROWING = ("inbox", "objects", "decisions", "actions", "review_acts", "alerts", "cases", "runs")
STATEMENTS = re.findall(
    r"-- name: (desk_\w+)", (Path(overview.__file__).parents[1] / "db" / "console_a.sql").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", STATEMENTS)
async def test_no_statement_of_these_pages_reads_a_growing_table_whole(pool: Pool, name: str) -> None:
    sql = getattr(queries, name).sql
    given = ", ".join(["null"] * len(set(re.findall(r"\$\d+", sql))))
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("set local enable_seqscan = off; set local plan_cache_mode = force_generic_plan")
        await conn.execute(f"prepare looked_at as {sql}")
        rows = await conn.fetch(f"explain execute looked_at{f'({given})' if given else ''}")
    plan = "\n".join(row[0] for row in rows)
    assert not re.search(rf"Seq Scan on ({'|'.join(GROWING)})\b", plan), plan
