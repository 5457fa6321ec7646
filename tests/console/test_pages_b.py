"""The console's pages about customers, events, runs, the policy, the audit and alerts, and its search, over real books."""

from __future__ import annotations

import html as markup
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as drawn
from hypothesis import strategies as st

from handlers.wire import email_hash
from tests.console.conftest import Browser
from tests.handlers.history import DAY, T0, History
from tests.stripe_sender import event
from tests.worker import reports
from tests.worker.books import REALM, court, tell
from tests.worker.reports import UNTIL
from worker import audit
from worker.db import Pool, queries, transaction
from worker.db import __file__ as queries_at
from worker.report_pages import csv_of, document_of, html_of
from worker.settle import settle

SQL = Path(queries_at).parent
EMAIL = "ada.lovelace@example.com"
CARD = "4242424242424242"


def words(html: str) -> str:
    """What a person reads on a page: no tags, spaces as one."""
    body = html[html.index("<main") : html.index("</main>")]
    return re.sub(r"\s+", " ", markup.unescape(re.sub(r"<[^>]+>", " ", body))).strip()


def bought_twice() -> History:
    """D3: ch_0002 repeats ch_0001; ch_0003 renews the first subscription."""
    history = History()
    history.customer(user_id="u1")
    first = history.subscribe(0, metadata={"user_id": "u1"})
    history.subscribe(42, metadata={"user_id": "u1"})
    history.renew(first)
    return history


async def deliver(
    pool: Pool, id_: str, type_: str = "charge.succeeded", state: str = "done", *, body: bytes = b"{}", ago_s: int = 0
) -> None:
    await pool.execute(
        """insert into inbox (event_id, realm, type, created_at, received_at, payload, state, error)
           values ($1, 'test', $2, now(), now() - make_interval(secs => $3), $4, $5, case when $5 = 'dead' then 'It broke.' end)""",
        id_,
        type_,
        ago_s,
        body,
        state,
    )


async def sent(by: Browser, path: str, fields: dict[str, str]) -> tuple[int, str]:
    """What a form with these fields leads to."""
    return await by.send(path, {"csrf": await by.csrf(), **fields})


async def judge_again(pool: Pool) -> None:
    """A worker's sweep over those who were woken."""
    for row in await pool.fetch(queries.due_wakeups.sql, 10):
        async with transaction(pool) as conn:
            await settle(conn, court(), row["realm"], (), wake=[row["customer"]])


# customers ---------------------------------------------------------------------------------------------------------------


async def test_a_customers_page_tells_payments_verdicts_decisions_and_credits(pool: Pool, console: Browser) -> None:
    await tell(pool, bought_twice())
    status, html = await console.get("/console/customers/cus_A")
    assert status == 200
    told = words(html)
    assert "cus_A good" in told
    for charge in ("ch_0001", "ch_0002", "ch_0003"):
        assert charge in told
    assert "Every sale is final" in told
    assert "refund clause 4.3 (D3)" in told
    assert "original of ch_0002" in told
    assert html.count('<svg class="paid"') == 3
    assert "Suspend" in told
    assert "Grant service credits (4.1)" in told


async def test_a_reader_sees_the_story_and_no_forms(pool: Pool, reader: Browser) -> None:
    await tell(pool, bought_twice())
    status, html = await reader.get("/console/customers/cus_A")
    assert status == 200
    assert "/acts" not in html
    assert "ch_0002" in html


async def test_a_reader_can_carry_out_nothing(pool: Pool, reader: Browser) -> None:
    await tell(pool, bought_twice())
    await deliver(pool, "evt_1", state="dead")
    forms: tuple[tuple[str, dict[str, str]], ...] = (
        ("/console/customers/cus_A/acts", {"act": "suspend", "reason": "because"}),
        ("/console/events/replay", {"state": "dead"}),
        ("/console/events/evt_1/replay", {}),
        ("/console/alerts/ack", {"cause": "x"}),
    )
    for path, fields in forms:
        status, _ = await sent(reader, path, fields)
        assert (path, status) == (path, 403)
    assert await pool.fetchval("select count(*) from acts") == 0
    assert await pool.fetchval("select state from inbox") == "dead"


async def test_an_operator_suspends_with_name_and_reason_and_lifts_again(pool: Pool, console: Browser) -> None:
    history = bought_twice()
    await tell(pool, history)
    status, html = await console.post(
        "/console/customers/cus_A/acts", act="suspend", reason="Abuse of trials", key="k1"
    )
    assert status == 200
    assert "Suspended cus_A. Kept as oact_" in words(html)
    assert "Ada suspended the customer until lifted: Abuse of trials" in words(html)
    await judge_again(pool)
    status, html = await console.get("/console/customers/cus_A")
    assert "cus_A suspended" in words(html)
    assert "Lift the operators' hold" in words(html)
    status, html = await console.get("/console/customers")
    assert "cus_A suspended 1" in words(html)
    await console.post("/console/customers/cus_A/acts", act="lift", reason="Talked to them")
    await judge_again(pool)
    status, html = await console.get("/console/customers/cus_A")
    assert "cus_A good" in words(html)
    acts = await pool.fetch(
        "select by_name, via, act, subject, reason from operator_acts where subject = 'cus_A' order by id"
    )
    assert [(row["by_name"], row["via"], row["reason"]) for row in acts] == [
        ("Ada", "console", "Abuse of trials"),
        ("Ada", "console", "Talked to them"),
    ]


async def test_the_same_form_sent_twice_grants_once(pool: Pool, console: Browser) -> None:
    await tell(pool, bought_twice())
    fields = {"act": "grant", "credits": "50", "reason": "Outage of a day", "key": "k-grant", "until": ""}
    for _ in range(2):
        status, html = await sent(console, "/console/customers/cus_A/acts", fields)
        assert status == 200
    assert "It was done before" in words(html)
    assert await pool.fetchval("select count(*) from acts") == 1


async def test_access_is_extended_by_days(pool: Pool, console: Browser) -> None:
    history = bought_twice()
    await tell(pool, history)
    status, html = await console.post(
        "/console/customers/cus_A/acts", act="extend", subscription="sub_0001", days="3650", reason="We were down"
    )
    assert status == 200
    assert "sub_0001 of cus_A serves until" in words(html)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"act": "fly", "reason": "x"}, 400),
        ({"reason": "x"}, 400),
        ({"act": "grant", "credits": "many", "reason": "x"}, 400),
        ({"act": "grant", "credits": "0", "reason": "x"}, 409),
        ({"act": "suspend", "reason": "  "}, 409),
        ({"act": "lift", "reason": "x"}, 409),
        ({"act": "grant", "credits": "5", "reason": "x", "until": "2020-01-01"}, 409),
        ({"act": "grant", "credits": "5", "reason": "x", "until": "soon"}, 400),
        ({"act": "extend", "subscription": "sub_9", "days": "3", "reason": "x"}, 404),
    ],
)
async def test_an_act_that_cannot_be_is_refused_with_a_sentence(
    pool: Pool, console: Browser, fields: dict[str, str], expected: int
) -> None:
    await tell(pool, bought_twice())
    status, html = await sent(console, "/console/customers/cus_A/acts", fields)
    assert status == expected
    assert await pool.fetchval("select count(*) from acts") == 0
    assert fields.get("reason", "").strip() in words(html)


async def test_a_customer_whose_own_object_never_arrived_has_a_page(pool: Pool, console: Browser) -> None:
    history = bought_twice()
    history.forget("cus_A")
    await tell(pool, history)
    status, html = await console.get("/console/customers/cus_A")
    assert status == 200
    assert "ch_0003" in html


async def test_decisions_show_evidence_actions_and_every_revision(pool: Pool, console: Browser) -> None:
    history = bought_twice()
    await tell(pool, history)
    history.refund("ch_0002", DAY, 2900)
    await tell(pool, history)
    assert await pool.fetchval("select count(*) from decisions where subject = 'ch_0002'") > 1
    _, html = await console.get("/console/customers/cus_A")
    told = words(html)
    assert "revisions" in told
    assert "Revision 1: refund by 4.3 (D3)" in told
    assert "Evidence" in told
    assert "cancel subscription for sub_0002" in told


async def test_a_credit_lot_is_shown_with_its_entries(pool: Pool, console: Browser) -> None:
    history = bought_twice()
    await tell(pool, history)
    await console.post("/console/customers/cus_A/acts", act="grant", credits="50", reason="Trouble", key="k")
    await judge_again(pool)
    _, html = await console.get("/console/customers/cus_A")
    assert re.search(r"service:oact_\w+ ", words(html))
    assert "+50 granted" in words(html)


async def test_long_lists_of_a_customer_go_on_by_link(pool: Pool, console: Browser) -> None:
    history = History()
    history.customer()
    sub = history.subscribe(0)
    for _ in range(70):
        history.renew(sub)
    await tell(pool, history)
    _, html = await console.get("/console/customers/cus_A")
    assert html.count('<svg class="paid"') == 50
    assert "1 to 50 of 71" in words(html)
    assert "ch_0001 " not in words(html).split("Subscriptions and access")[0]
    status, older = await console.get("/console/customers/cus_A?payments=50")
    assert status == 200
    assert "51 to 71 of 71" in words(older)
    assert "ch_0001" in older
    status, found = await console.get("/console/customers/cus_A?show=in_0001")
    assert '<li id="shown" class="shown">' in found
    assert "51 to 71 of 71" in words(found)


async def test_the_list_of_customers_pages_those_judged_last_each_once(pool: Pool, console: Browser) -> None:
    await pool.execute(
        """insert into decisions (id, realm, subject, revision, customer, clause, rule, verdict, policy_version, fingerprint, body,
                                  decided_at)
           select 'dec_' || lpad(n::text, 5, '0'), 'test', 'ch_' || n, 1, 'cus_' || lpad((n / 3)::text, 4, '0'), '4.3', 'D3',
                  (array['refund', 'review', 'deny', 'none'])[1 + n % 4], '2025-01', 'f', '{}', now() - make_interval(secs => n / 2)
           from generate_series(0, 400) n"""
    )
    seen: list[str] = []
    path: str | None = "/console/customers"
    while path:
        status, html = await console.get(path)
        assert status == 200
        judged = html[html.index('id="judged"') :]
        page = re.findall(r'href="/console/customers/(cus_\d+)"', judged)
        assert len(page) == len(set(page)) <= 50
        seen += page
        more = re.search(r'href="(/console/customers\?judged=[^"]+)"', judged)
        path = markup.unescape(more[1]) if more else None
    assert set(seen) == {f"cus_{n:04}" for n in range(134)}
    assert seen[0] == "cus_0000"


# the search --------------------------------------------------------------------------------------------------------------


async def test_every_id_leads_to_its_page(pool: Pool, console: Browser) -> None:
    history = bought_twice()
    dispute = history.dispute("ch_0003", "needs_response")
    await tell(pool, history)
    await deliver(pool, "evt_1")
    decision = await pool.fetchval("select id from decisions where subject = 'ch_0002'")
    action = await pool.fetchval("select min(id) from actions")
    lot = await pool.fetchval("select min(id) from lots")
    for typed, expected in (
        ("cus_A", "/console/customers/cus_A"),
        ("ch_0002", "/console/customers/cus_A?show=ch_0002#shown"),
        (" pi_0002\n", "/console/customers/cus_A?show=pi_0002#shown"),
        ("in_0003", "/console/customers/cus_A?show=in_0003#shown"),
        ("sub_0001", "/console/customers/cus_A?show=sub_0001#shown"),
        (decision, "/console/customers/cus_A?show=ch_0002#shown"),
        (action, f"/console/customers/cus_A?show={action}#shown"),
        (dispute, f"/console/chargebacks/{dispute}"),
        ("evt_1", "/console/events/evt_1"),
        ("u1", "/console/customers/cus_A"),
        ("https://dashboard.stripe.com/test/payments/pi_0001", "/console/customers/cus_A?show=pi_0001#shown"),
        *(((lot, f"/console/customers/cus_A?show={quote(lot, safe='')}#shown"),) if lot else ()),
    ):
        status, _ = await console.post("/console/find", q=typed, follow=False)
        assert (typed, status, console.headers.get("Location")) == (typed, 303, expected)
        status, _ = await console.get(f"/console/find?q={quote(typed)}", follow=False)
        assert (typed, status) == (typed, 303)
        _, html = await console.get(expected.partition("#")[0])
        assert 'id="shown"' in html or "show=" not in expected


async def test_an_email_is_found_by_its_hash_and_is_in_no_address(pool: Pool, console: Browser) -> None:
    history = History()
    history.customer("cus_A", email=email_hash(EMAIL))
    history.subscribe(0)
    await tell(pool, history)
    status, html = await console.post("/console/find", q=f"  {EMAIL.upper()} ", follow=False)
    assert (status, console.headers["Location"]) == (303, "/console/customers/cus_A")
    history.customer("cus_B", email=email_hash(EMAIL))
    await tell(pool, history)
    status, html = await console.post("/console/find", q=EMAIL)
    assert status == 200
    assert {"cus_A", "cus_B"} <= set(re.findall(r"cus_\w", html))
    assert "example.com" not in html.lower()
    status, html = await console.post("/console/find", q="nobody@example.com")
    assert status == 404
    assert "example.com" not in html


async def test_what_nobody_knows_says_where_to_look(console: Browser) -> None:
    status, html = await console.post("/console/find", q="ch_nobody")
    assert status == 404
    assert "Nothing is known about ch_nobody." in words(html)
    assert "/console/events" in html
    status, html = await console.post("/console/find", q="")
    assert status == 200


# events ------------------------------------------------------------------------------------------------------------------


async def test_events_are_listed_newest_first_and_filtered_by_state_and_type(pool: Pool, console: Browser) -> None:
    await deliver(pool, "evt_a", "invoice.paid", "done", ago_s=30)
    await deliver(pool, "evt_b", "charge.succeeded", "waiting", ago_s=20)
    await deliver(pool, "evt_c", "invoice.voided", "dead", ago_s=10)
    await deliver(pool, "evt_d", "invoice.voided", "quarantined", ago_s=5)

    async def listed(query: str) -> list[str]:
        status, html = await console.get(f"/console/events{query}")
        assert status == 200
        return re.findall(r'href="/console/events/(evt_\w+)"', html)

    assert await listed("") == ["evt_d", "evt_c", "evt_b", "evt_a"]
    assert await listed("?type=invoice.*") == ["evt_d", "evt_c", "evt_a"]
    assert await listed("?type=invoice_paid") == []
    assert await listed("?state=dead") == ["evt_c"]
    assert await listed("?state=waiting") == ["evt_b"]
    assert await listed("?state=done&type=charge.*") == []
    assert await listed("?state=quarantined&type=invoice.voided") == ["evt_d"]


@pytest.mark.parametrize("state", ["done", "waiting", "dead"])
async def test_pages_of_events_show_each_once(pool: Pool, console: Browser, state: str) -> None:
    await pool.execute(
        """insert into inbox (event_id, realm, type, created_at, received_at, next_at, payload, state)
           select 'evt_' || lpad(n::text, 4, '0'), 'test', 'invoice.paid', now(), moved, moved, '{}', $1
           from generate_series(0, 129) n cross join lateral (select now() - make_interval(secs => n / 40) as moved) t""",
        state,
    )
    seen: list[str] = []
    path: str | None = f"/console/events?state={state}"
    while path:
        status, html = await console.get(path)
        assert status == 200
        seen += re.findall(r'href="/console/events/(evt_\w+)"', html)
        more = re.search(r'class="pager"><a href="([^"]+)"', html)
        path = markup.unescape(more[1]) if more else None
    assert len(seen) == 130 == len(set(seen))


async def test_an_event_is_shown_with_what_it_tells_of_and_personal_data_masked(pool: Pool, console: Browser) -> None:
    await tell(pool, bought_twice())
    charge = {
        "id": "ch_0001", "object": "charge", "customer": "cus_A", "amount": 2900, "amount_captured": 2900, "amount_refunded": 0,
        "currency": "usd", "status": "succeeded", "captured": True, "created": T0,
        "billing_details": {"email": EMAIL, "name": "Ada Lovelace"}, "description": f"card {CARD} of {EMAIL}",
    }  # fmt: skip
    await deliver(pool, "evt_1", body=event("evt_1", data={"object": charge}))
    status, html = await console.get("/console/events/evt_1")
    assert status == 200
    assert "The charge.succeeded of" in words(html)
    assert "ch_0001 of cus_A" in words(html)
    assert "[private]" in html
    for private in (EMAIL, "Lovelace", CARD):
        assert private not in html


async def test_an_event_whose_payload_is_gone_or_unreadable_is_still_shown(pool: Pool, console: Browser) -> None:
    await deliver(pool, "evt_gone", body=b"")
    await deliver(pool, "evt_noise", body=b"\xff\x00 no json", state="quarantined")
    said = {
        "evt_gone": "The event itself is not here any more",
        "evt_noise": "The event itself is not shown: it is no JSON",
    }
    for id_, sentence in said.items():
        status, html = await console.get(f"/console/events/{id_}")
        assert (id_, status) == (id_, 200)
        assert sentence in words(html)
        assert ("Work on it again" in html) is (id_ == "evt_noise")


async def test_a_dead_event_is_replayed_with_a_name(pool: Pool, console: Browser) -> None:
    await deliver(pool, "evt_1", state="dead")
    await deliver(pool, "evt_2", state="dead")
    await deliver(pool, "evt_3", state="quarantined")
    status, html = await console.post("/console/events/evt_1/replay")
    assert status == 200
    assert "evt_1 waits again" in words(html)
    _, html = await console.get("/console/events?state=dead")
    assert "Let all 1 dead events be worked on again" in words(html)
    status, html = await console.post("/console/events/replay", state="dead")
    assert "1 dead events wait again." in words(html)
    states = {row["event_id"]: row["state"] for row in await pool.fetch("select event_id, state from inbox")}
    assert states == {"evt_1": "waiting", "evt_2": "waiting", "evt_3": "quarantined"}
    acts = await pool.fetch("select by_name, via, subject from operator_acts where act = 'events.replay' order by id")
    assert [tuple(row) for row in acts] == [("Ada", "console", "evt_1"), ("Ada", "console", "dead")]
    status, _ = await console.post("/console/events/evt_9/replay")
    assert status == 404


# runs --------------------------------------------------------------------------------------------------------------------


async def put_run(pool: Pool, id_: str, state: str = "done", report: bytes | None = None, ago_s: int = 0) -> None:
    plan = {"lists": {}, "windows": [{"lo": UNTIL - 3 * DAY, "hi": UNTIL}], "upper": UNTIL}
    await pool.execute(
        """insert into runs (id, realm, kind, dry_run, asked, plan, state, started_at, finished_at, report, exit_code)
           values ($1, 'test', 'nightly', false, '72h', $2, $3, now() - make_interval(secs => $4),
                   case when $5::bytea is not null then now() end, $5, 0)""",
        id_,
        json.dumps(plan).encode(),
        state,
        ago_s,
        report,
    )


async def test_a_runs_report_is_shown_with_its_plots_and_kept_as_files(pool: Pool, console: Browser) -> None:
    written = msgspec.json.encode(reports.night())
    await put_run(pool, "run_a", report=written)
    status, html = await console.get("/console/runs")
    assert status == 200
    assert "run_a" in html
    status, html = await console.get("/console/runs/run_a")
    assert status == 200
    assert "<style" not in html
    assert "style=" not in html
    assert html.count("<h1") == 1
    assert html.count("<svg") >= 2
    assert "Completeness certificate" in html
    assert "is at Stripe, and the books do not have it." in words(html)
    status, csv = await console.get("/console/runs/run_a/csv")
    assert (status, console.headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
    assert csv == csv_of(reports.night())
    status, document = await console.get("/console/runs/run_a/json")
    assert document.encode() == document_of(written)
    status, page = await console.get("/console/runs/run_a/html")
    assert "attachment" in console.headers["Content-Disposition"]
    assert page == html_of(reports.night(), written)
    for path in ("/console/runs/run_a/exe", "/console/runs/run_b/csv", "/console/runs/run_b"):
        status, _ = await console.get(path)
        assert (path, status) == (path, 400 if path.endswith("exe") else 404)


async def test_a_run_under_way_shows_how_far_it_is_and_what_is_unread(pool: Pool, console: Browser) -> None:
    await put_run(pool, "run_u", "running")
    await pool.execute(
        """insert into slices (run, list, hi, lo, state, pages, objects)
           values ('run_u', 'charges', 100, 75, 'done', 3, 250), ('run_u', 'charges', 75, 0, 'open', 0, 0)"""
    )
    await pool.execute("insert into unread values ('run_u', 'charges', 'ch_9', 'Stripe answered 500 for an hour.')")
    status, html = await console.get("/console/runs/run_u")
    assert status == 200
    assert "No report yet: running, at scan." in words(html)
    assert "charges 25% 25% 1 of 2 3 250" in words(html)
    assert "Stripe answered 500 for an hour." in words(html)
    status, html = await console.get("/console/runs/run_u/csv")
    assert status == 404


async def test_a_report_of_another_release_is_offered_as_it_is(pool: Pool, console: Browser) -> None:
    await put_run(pool, "run_o", report=b'{"result": "clean", "drift": 0}')
    status, html = await console.get("/console/runs/run_o")
    assert status == 200
    assert "written by another release" in words(html)
    status, document = await console.get("/console/runs/run_o/json")
    assert json.loads(document) == {"result": "clean", "drift": 0}
    status, _ = await console.get("/console/runs/run_o/csv")
    assert status == 400


async def test_runs_are_paged_by_when_they_began(pool: Pool, console: Browser) -> None:
    for number in range(45):
        await put_run(pool, f"run_{number:02}", ago_s=number // 2)
    seen: list[str] = []
    path: str | None = "/console/runs"
    while path:
        _, html = await console.get(path)
        seen += re.findall(r'href="/console/runs/(run_\d+)"', html)
        more = re.search(r'class="pager"><a href="([^"]+)"', html)
        path = markup.unescape(more[1]) if more else None
    assert len(seen) == 45 == len(set(seen))


# policy ------------------------------------------------------------------------------------------------------------------


async def test_the_policy_is_shown_in_words_and_its_files_with_what_changed(pool: Pool, console: Browser) -> None:
    for number, text in enumerate(("a = 1\nwindow = '15m'\n", f"a = 1\nwindow = '30m'\n# ask {EMAIL}\n")):
        await pool.execute(
            """insert into policy_versions (sha256, versions, agreements, body, worker)
               values (sha256($1), array['2025-01'], $2, $1, 'w')""",
            text.encode(),
            number,
        )
    status, html = await console.get("/console/policy")
    assert status == 200
    assert "is in force for what is paid now" in words(html)
    assert "two payments this close may be one purchase" in words(html)
    first, second = sorted(int(n) for n in re.findall(r'href="/console/policy/(\d+)"', html))
    status, html = await console.get(f"/console/policy/{second}")
    assert status == 200
    assert "-window = '15m'" in markup.unescape(html)
    assert "+window = '30m'" in markup.unescape(html)
    assert EMAIL not in html
    status, html = await console.get(f"/console/policy/{first}")
    assert "The first one that was recorded, whole." in words(html)
    for typed, expected in (("99", 404), ("x", 400), (str(10**11), 404)):
        status, _ = await console.get(f"/console/policy/{typed}")
        assert (typed, status) == (typed, expected)


# audit -------------------------------------------------------------------------------------------------------------------


async def acted(pool: Pool, by: str, act: str, subject: str, **more: Any) -> None:
    async with pool.acquire() as conn, conn.transaction():
        await audit.record(conn, REALM, by=by, via="cli", act=act, subject=subject, **more)


async def test_the_audit_shows_who_did_what_with_before_and_after(pool: Pool, console: Browser) -> None:
    await acted(
        pool, "Grace", "customer.suspend", "cus_A", reason=f"wrote from {EMAIL}",
        before={"standing": "good", "holds": [], "same": 1}, after={"standing": "suspended", "holds": ["operator"], "same": 1},
    )  # fmt: skip
    await acted(pool, "Linus", "outage.declare", "out_1", after={"minutes": 90})
    status, html = await console.get("/console/audit")
    assert status == 200
    told = words(html)
    assert "standing: good → suspended" in told
    assert "holds: none → operator" in told
    assert "same" not in told
    assert "minutes: 90" in told
    assert told.index("Linus") < told.index("Grace")
    assert EMAIL not in html
    for query, present, absent in (
        ("by=Grace", "cus_A", "out_1"),
        ("act=outage.declare", "out_1", "cus_A"),
        ("subject=cus_A", "Grace", "Linus"),
    ):
        status, html = await console.get(f"/console/audit?{query}")
        assert present in words(html)
        assert absent not in words(html)


async def test_the_audit_says_whether_the_chain_was_verified(pool: Pool, console: Browser) -> None:
    _, html = await console.get("/console/audit")
    assert "not verified yet" in words(html)
    while await audit.append_pending(pool):
        pass
    await audit.check_if_due(pool)
    _, html = await console.get("/console/audit")
    assert "nothing edited, removed or reordered" in words(html)
    await pool.execute(
        "insert into audit_checks (ok, length, hash, problems, body) select false, length, hash, 2, body from audit_checks"
    )
    _, html = await console.get("/console/audit")
    assert "found 2 problems" in words(html)


async def test_the_audit_is_paged(pool: Pool, console: Browser) -> None:
    for number in range(60):
        await acted(pool, "Grace", "note", f"ch_{number:02}")
    _, html = await console.get("/console/audit?by=Grace")
    more = re.search(r'class="pager"><a href="([^"]+)"', html)
    assert more
    _, older = await console.get(markup.unescape(more[1]))
    seen = [*re.findall(r">(ch_\d\d)<", html), *re.findall(r">(ch_\d\d)<", older)]
    assert seen == [f"ch_{number:02}" for number in reversed(range(60))]


# alerts ------------------------------------------------------------------------------------------------------------------


async def raised(
    pool: Pool,
    cause: str,
    severity: str = "critical",
    *,
    kind: str = "chargeback",
    resolved_ago: timedelta | None = None,
) -> None:
    await pool.execute(
        """insert into alerts (realm, cause, kind, severity, customer, subject, sentence, raised_at, resolved_at)
           values ('test', $1, $2, $3, 'cus_A', 'dp_1', 'A sentence about ' || $1 || '.', now() - interval '9 days', $4)""",
        cause,
        kind,
        severity,
        None if resolved_ago is None else datetime.now(UTC) - resolved_ago,
    )


async def test_open_alerts_are_shown_worst_first_with_what_to_do(pool: Pool, console: Browser) -> None:
    await raised(pool, "chargeback:dp_1:note", "note")
    await raised(pool, "chargeback:dp_1")
    await raised(pool, "nobody:knows", "warning", kind="from_the_future")
    await raised(pool, "chargeback:dp_2", resolved_ago=timedelta(days=1))
    await raised(pool, "chargeback:dp_3", resolved_ago=timedelta(days=8))
    status, html = await console.get("/console/alerts")
    assert status == 200
    told = words(html)
    places = [
        told.index(f"A sentence about {cause}.")
        for cause in ("chargeback:dp_1", "nobody:knows", "chargeback:dp_1:note")
    ]
    assert places == sorted(places)
    assert "finalsale chargebacks show dp_1" in told
    assert "Unanswered by the deadline it is lost" in told
    assert 'href="/console/chargebacks/dp_1"' in html
    assert "From the future" in told
    assert "A sentence about chargeback:dp_2." in told
    assert "chargeback:dp_3" not in told
    status, html = await console.get("/console/alerts/chargeback%3Adp_1")
    assert status == 200
    assert "Who was told" in html


async def test_an_alert_is_acknowledged_with_a_name(pool: Pool, console: Browser) -> None:
    await raised(pool, "chargeback:dp_1")
    status, html = await console.post("/console/alerts/ack", cause="chargeback:dp_1", note="I write the evidence")
    assert status == 200
    assert "acknowledged by Ada" in words(html)
    assert "I write the evidence" in words(html)
    status, _ = await console.post("/console/alerts/ack", cause="chargeback:dp_1")
    assert status == 404
    status, _ = await console.post("/console/alerts/ack", cause="")
    assert status == 400
    via = await pool.fetchval("select via from operator_acts where subject = 'chargeback:dp_1'")
    assert via == "console"


async def test_alerts_that_are_over_are_paged(pool: Pool, console: Browser) -> None:
    for number in range(60):
        await raised(pool, f"c:{number:02}", resolved_ago=timedelta(minutes=number // 3))
    seen: list[str] = []
    path: str | None = "/console/alerts"
    while path:
        _, html = await console.get(path)
        seen += re.findall(r"A sentence about (c:\d\d)", html)
        more = re.search(r'class="pager"><a href="([^"]+)"', html)
        path = markup.unescape(more[1]) if more else None
    assert len(seen) == 60 == len(set(seen))


# what anybody may type ---------------------------------------------------------------------------------------------------

PLACES = ("customers", "events", "runs", "policy", "alerts")
LISTS = (
    "customers?standing=", "customers?judged=", "events?before=", "events?state=", "events?type=", "runs?before=",
    "policy?before=", "audit?before=", "audit?by=", "audit?subject=", "alerts?before=", "find?q=", "customers/cus_A?payments=",
    "customers/cus_A?show=", "customers/cus_A?happened=", "runs/run_a/",
)  # fmt: skip
ODD = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "0001-01-01T00:00:00+00:00,x", "9999-12-31T23:59:59-23:59,", "2026-01-01,", "-1", "0", "9" * 400, "%", "\\", "dec_", "act_%",
            "included:", "service:oact_x", "../../etc/passwd", "https://", "http://[", "https://[::1", "evt_\x00", "'; drop table inbox; --",
            "trial:\x7f", "٣", "²", "1e9", "infinity,x", "2026-01-01T00:00:00Z,\ud800",
        ]
    ),
)  # fmt: skip


@pytest.fixture
async def looked_up(pool: Pool, console: Browser) -> Browser:
    await tell(pool, bought_twice())
    return console


@drawn(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(place=st.sampled_from(PLACES + LISTS), odd=ODD)
async def test_no_address_breaks_a_page(looked_up: Browser, place: str, odd: str) -> None:
    path = f"/console/{place}{'' if place in LISTS else '/'}{quote(odd.encode(errors='surrogatepass'), safe='')}"
    status, html = await looked_up.get(path, follow=False)
    assert status in (200, 303, 400, 404), (path, status)
    assert "<h1" in html or status == 303


# speed -------------------------------------------------------------------------------------------------------------------

GROWING = "inbox|objects|decisions|actions|accounts|links|operator_acts|runs|unread|alerts|cases|entries|lots"
SAMPLE: dict[str, Any] = {
    "text": "x", "text[]": ["test", "x"], "timestamptz": datetime(2026, 1, 1, tzinfo=UTC), "int4": 10, "int8": 10, "bool": False,
}  # fmt: skip
STATEMENTS = re.findall(r"^-- name: (console_\w+)", (SQL / "console_b.sql").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", STATEMENTS)
async def test_every_statement_of_a_page_has_an_index_to_read(pool: Pool, name: str) -> None:
    statement = getattr(queries, name).sql
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("set local enable_seqscan = off; set local plan_cache_mode = force_generic_plan")
        asked = (await conn.prepare(statement)).get_parameters()
        values = [
            SAMPLE[one.name + ("[]" if one.kind == "array" and not one.name.endswith("[]") else "")] for one in asked
        ]
        plan = "\n".join(row[0] for row in await conn.fetch(f"explain {statement}", *values))
    assert not re.search(rf"Seq Scan on ({GROWING})\b", plan), plan
