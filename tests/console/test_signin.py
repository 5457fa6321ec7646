"""Signing in and out: what a token and a session are good for, for how long, and what guessing costs."""

from __future__ import annotations

import asyncio
import io
import json
import re
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.conftest import eventually
from tests.console.conftest import Browser, Make
from worker import log, operators
from worker.console import sessions
from worker.console.sessions import FAILURES_PER_MINUTE, Throttle, network_of
from worker.db import Pool
from worker.operators import Role
from worker.settings import Settings
from worker.web import listening

WRONG = "fso_00000000_" + "A" * 43


def cookies_of(browser: Browser) -> dict[str, Any]:
    return dict(browser.session.cookie_jar.filter_cookies(URL(browser.base)))


async def operator_acts(pool: Pool) -> list[tuple[str, str]]:
    return [
        (row["act"], row["by_name"]) for row in await pool.fetch("select act, by_name from operator_acts order by id")
    ]


# tokens --------------------------------------------------------------------------------------------------------------------


async def test_a_token_signs_in_and_leads_to_where_one_wanted_to_go(console: Browser, browser: Make) -> None:
    one = await browser()
    _, html = await one.get("/console/reviews?clause=4.3")
    assert 'name="to" value="/console/reviews?clause=4.3"' in html
    status, _ = await one.sign_in(console.token, "/console/reviews?clause=4.3")
    assert status == 303
    assert one.headers["Location"] == "/console/reviews?clause=4.3"
    assert "Ada" in (await one.get("/console/nowhere"))[1]


async def test_it_leads_nowhere_outside_the_console(console: Browser, browser: Make) -> None:
    one = await browser()
    for to in ("https://evil.example/", "//evil.example", "/console/\r\nX-Evil: 1", "/console/..//evil"):
        assert (await one.sign_in(console.token, to))[0] == 303
        assert one.headers["Location"] == "/console/"
        assert "X-Evil" not in one.headers


async def test_the_answer_does_not_tell_which_part_of_a_token_was_wrong(console: Browser, browser: Make) -> None:
    one = await browser()
    public = console.token.split("_")[1]
    answers = {
        re.sub(r'name="to".*', "", (await one.sign_in(token))[1])
        for token in (WRONG, f"fso_{public}_{'A' * 43}", "fso_x", "something else")
    }
    assert len(answers) == 1
    assert "not valid here" in answers.pop()
    assert cookies_of(one) == {}


async def test_an_expired_or_revoked_token_and_a_removed_operator_cannot_sign_in(
    console: Browser, browser: Make, pool: Pool
) -> None:
    one = await browser()
    await pool.execute("update operator_tokens set expires_at = now()")
    assert (await one.sign_in(console.token))[0] == 401
    await pool.execute("update operator_tokens set expires_at = null")
    assert (await one.sign_in(console.token))[0] == 303
    await pool.execute("update operator_tokens set revoked_at = now()")
    assert (await one.sign_in(console.token))[0] == 401
    await pool.execute("update operator_tokens set revoked_at = null; update operators set removed_at = now()")
    assert (await one.sign_in(console.token))[0] == 401


async def test_a_foreign_site_cannot_sign_anybody_in(console: Browser, browser: Make) -> None:
    one = await browser()
    headers = {"Origin": "https://evil.example"}
    status, _ = await one.send("/console/signin", {"token": console.token}, headers=headers, follow=False)
    assert status == 403
    assert cookies_of(one) == {}


async def test_over_plain_http_from_elsewhere_no_token_is_taken(console: Browser, browser: Make) -> None:
    one = await browser()
    headers = {"Host": "books.example", "Origin": "http://books.example"}
    status, html = await one.send("/console/signin", {"token": console.token}, headers=headers, follow=False)
    assert status == 400
    assert "https" in html


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "10.0.0.9:8080", "Origin": "http://10.0.0.9:8080"}, 400),
        ({"Host": "ops.example", "Origin": "http://ops.example", "X-Forwarded-Proto": "http"}, 400),
        ({"Host": "ops.example:8080", "Origin": "http://ops.example:8080"}, 400),
        ({"Host": "ops.example", "Origin": "https://ops.example"}, 303),
        ({"Host": "OPS.example:443", "Origin": "https://OPS.example:443"}, 303),
        ({"Host": "10.0.0.9:8080", "Origin": "https://ops.example", "X-Forwarded-Proto": "https"}, 303),
    ],
    ids=["another host", "said to be http", "another port", "the address", "with its port", "said to be https"],
)
async def test_the_configured_address_is_believed_only_where_the_request_went_there(
    settings: Settings, pool: Pool, headers: dict[str, str], status: int
) -> None:
    async with pool.acquire() as conn, conn.transaction():
        made = await operators.add(conn, "Ada", Role.DECIDE, by="tests")
    told = settings.model_copy(update={"console_url": "https://ops.example/console"})
    async with listening(told) as web, aiohttp.ClientSession() as session:
        await eventually(web.watch.ready)
        one = Browser(f"http://127.0.0.1:{web.port}", session)
        answered, _ = await one.send("/console/signin", {"token": made["token"]}, headers=headers, follow=False)
    assert answered == status
    assert ("Set-Cookie" in one.headers) is (status == 303)


# sessions ------------------------------------------------------------------------------------------------------------------


async def test_behind_https_the_cookie_is_bound_to_this_host_and_hidden_from_scripts(
    console: Browser, browser: Make
) -> None:
    one = await browser()
    headers = {"Host": "books.example", "Origin": "https://books.example", "X-Forwarded-Proto": "https"}
    await one.send("/console/signin", {"token": console.token}, headers=headers, follow=False)
    cookie = one.headers["Set-Cookie"]
    assert re.fullmatch(r"__Host-finalsale=[A-Za-z0-9_-]{43}; HttpOnly; Path=/; SameSite=Strict; Secure", cookie)


async def test_on_this_machine_the_cookie_works_over_http(console: Browser) -> None:
    await console.sign_in()
    cookie = console.headers["Set-Cookie"]
    assert re.fullmatch(r"finalsale=[A-Za-z0-9_-]{43}; HttpOnly; Path=/; SameSite=Strict", cookie)


async def test_a_cookie_without_the_prefix_is_nothing_behind_https(console: Browser, browser: Make) -> None:
    one, value = await browser(), cookies_of(console)["finalsale"].value
    sent = {"Host": "books.example", "X_Forwarded_Proto": "https"}
    assert (await one.get("/console/nowhere", Cookie=f"finalsale={value}", **sent))[0] == 401
    assert (await one.get("/console/nowhere", Cookie=f"__Host-finalsale={value}", **sent))[0] == 404


async def test_signing_in_makes_a_new_session_and_ends_the_one_before(console: Browser, browser: Make) -> None:
    planted = "x" * 43
    one = await browser()
    one.session.cookie_jar.update_cookies({"finalsale": planted}, URL(one.base))
    await one.sign_in(console.token)
    assert cookies_of(one)["finalsale"].value != planted
    first = cookies_of(one)["finalsale"].value
    await one.sign_in(console.token)
    other = await browser()
    for dead in (planted, first):
        assert (await other.get("/console/nowhere", Cookie=f"finalsale={dead}"))[0] == 401


async def test_a_stolen_cookie_is_worth_nothing_after_signing_out(console: Browser, browser: Make) -> None:
    stolen, thief = cookies_of(console)["finalsale"].value, await browser()
    assert (await thief.get("/console/nowhere", Cookie=f"finalsale={stolen}"))[0] == 404
    status, html = await console.post("/console/signout")
    assert status == 200
    assert "Token of an operator" in html
    assert cookies_of(console) == {}
    assert (await thief.get("/console/nowhere", Cookie=f"finalsale={stolen}"))[0] == 401


async def test_nobody_else_can_sign_one_out(console: Browser) -> None:
    status, _ = await console.send("/console/signout", {}, follow=False)
    assert status == 403
    assert (await console.get("/console/nowhere"))[0] == 404


@pytest.mark.parametrize(
    "end",
    [
        "update console_sessions set seen_at = now() - interval '31 minutes'",
        "update console_sessions set ends_at = now()",
        "update operator_tokens set revoked_at = now()",
        "update operator_tokens set expires_at = now()",
        "update operators set removed_at = now()",
    ],
    ids=["idle", "too long", "token revoked", "token expired", "operator removed"],
)
async def test_a_session_ends(console: Browser, pool: Pool, end: str) -> None:
    assert (await console.get("/console/nowhere"))[0] == 404
    await pool.execute(end)
    assert (await console.get("/console/nowhere"))[0] == 401


async def test_a_session_lasts_twelve_hours_at_most_and_a_page_that_refreshes_itself_does_not_keep_it(
    console: Browser, pool: Pool
) -> None:
    assert await pool.fetchval("select ends_at - began_at from console_sessions") == timedelta(hours=12)
    await pool.execute("update console_sessions set seen_at = now() - interval '20 minutes'")
    idle = "select now() - seen_at > interval '19 minutes' from console_sessions"
    assert (await console.get("/console/nowhere", Finalsale_Live="1"))[0] == 404
    assert await pool.fetchval(idle)
    assert (await console.get("/console/nowhere"))[0] == 404
    assert not await pool.fetchval(idle)


async def test_removing_an_operator_or_revoking_a_token_in_the_console_ends_the_session(
    admin: Browser, console: Browser, signed_in: Make, pool: Pool
) -> None:
    status, html = await admin.post("/console/operators/Ada/remove", sure="yes")
    assert status == 200
    assert "Ada was removed" in html
    assert (await console.get("/console/nowhere"))[0] == 401
    other = await signed_in("Bea")
    await admin.post(f"/console/operator-tokens/{other.token.split('_')[1]}/revoke")
    assert (await other.get("/console/nowhere"))[0] == 401
    assert await pool.fetchval("select count(*) from console_sessions") == 1


async def test_what_was_said_is_shown_once(admin: Browser, console: Browser) -> None:
    _, html = await admin.post("/console/operators/Ada/role", role="read")
    assert html.count('class="said"') == 1
    assert 'class="said"' not in (await admin.get("/console/operators"))[1]


# guessing ------------------------------------------------------------------------------------------------------------------


async def test_after_five_failures_a_minute_an_address_has_to_wait(browser: Make) -> None:
    one = await browser()
    assert [(await one.sign_in(WRONG))[0] for _ in range(FAILURES_PER_MINUTE)] == [401] * FAILURES_PER_MINUTE
    status, html = await one.sign_in(WRONG)
    assert status == 429
    assert one.headers["Retry-After"] == "60"
    assert "Too many tries" in html


async def test_nobodys_failures_keep_anybody_with_the_right_token_out(console: Browser, browser: Make) -> None:
    """Not those of the same address (on a platform all may seem to come from one), of the same token or of the whole world."""
    stranger, honest = await browser(), await browser()
    public = console.token.split("_")[1]
    for n in range(80):
        headers = {"Origin": stranger.base, "X-Forwarded-For": f"2001:db8:{n // 5:x}::1"}
        fields = {"token": f"fso_{public}_{'A' * 43}" if n % 2 else "x"}
        await stranger.send("/console/signin", fields, headers=headers, follow=False)
    for _ in range(FAILURES_PER_MINUTE + 1):
        await honest.sign_in(f"fso_{public}_{'A' * 43}")
    assert (await honest.sign_in(WRONG))[0] == 429
    assert (await honest.sign_in(console.token))[0] == 303


async def test_failures_under_way_count_as_well(browser: Make) -> None:
    one = await browser()
    answers = await asyncio.gather(*(one.sign_in(WRONG) for _ in range(20)))
    assert sorted(status for status, _ in answers) == [401] * FAILURES_PER_MINUTE + [429] * 15


async def test_who_signs_in_waits_for_a_turn_and_beyond_a_bound_is_told_to_come_back(
    console: Browser, browser: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MOST_WAITING", 6)
    each = [await browser() for _ in range(20)]
    answers = [status for status, _ in await asyncio.gather(*(one.sign_in(console.token) for one in each))]
    assert {303, 503} == set(answers)
    assert answers.count(303) >= 6
    refused = each[answers.index(503)]
    assert refused.headers["Retry-After"] == "5"
    assert (await refused.sign_in(console.token))[0] == 303


async def tried(one: Browser, **headers: str) -> int:
    sent = {"Origin": one.base, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return (await one.send("/console/signin", {"token": "fso_x"}, headers=sent, follow=False))[0]


async def test_behind_a_proxy_each_address_is_counted_and_what_the_sender_claims_is_not_believed(browser: Make) -> None:
    one = await browser()
    answers = [await tried(one, X_Forwarded_For=f"10.0.0.{n}, 203.0.113.7:{4000 + n}") for n in range(6)]
    assert answers == [401] * 5 + [429]
    assert await tried(one, X_Forwarded_For="203.0.113.7, 203.0.113.8") == 401


async def test_on_fly_the_address_is_the_one_that_its_proxy_names(browser: Make) -> None:
    """The last of X-Forwarded-For is the app's own address there."""
    one, own = await browser(), "66.241.125.7"
    assert [
        await tried(one, X_Forwarded_For=f"198.51.100.{n}, {own}", Fly_Client_IP="203.0.113.7") for n in range(6)
    ] == ([401] * 5 + [429])
    assert await tried(one, X_Forwarded_For=f"198.51.100.1, {own}", Fly_Client_IP="203.0.113.8") == 401


def test_the_throttle_forgets_after_a_minute_and_never_grows_beyond_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(sessions.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sessions, "MAX_SOURCES", 100)
    throttle = Throttle()
    for n in range(500):
        assert [throttle.refuses(f"10.0.0.{n}") for _ in range(FAILURES_PER_MINUTE + 1)][-2:] == [False, True]
    assert len(throttle._failures) == 100
    assert throttle.refuses("10.0.0.499")
    assert not throttle.refuses("10.0.0.1"), "forgotten: others failed since"
    now[0] += 61
    assert not throttle.refuses("10.0.0.499")


def test_an_ipv6_customer_is_one_whatever_addresses_they_use() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:203.0.113.7") == network_of("203.0.113.7") == "203.0.113.7"
    assert network_of("203.0.113.7:4711") == "203.0.113.7"
    assert network_of("[2001:db8::1]:443") == network_of("[2001:db8::2]") == network_of("2001:db8::3")
    assert network_of("no address\r\n") == network_of("") == network_of(":443") == "unknown"


async def test_only_the_right_secret_costs_anything(console: Browser, pool: Pool) -> None:
    """A wrong one is told from 32 bits of a hash, an unknown one alike; argon2 has the last word on what passes them."""
    gate = sessions.Gate()
    loop, public = asyncio.get_running_loop(), console.token.split("_")[1]

    async def best_of_five(token: str) -> float:
        times = []
        for _ in range(5):
            began = loop.time()
            found = await gate.check(pool, token)
            times.append(loop.time() - began)
            assert (found is not None) is (token == console.token)
        return min(times)

    right = await best_of_five(console.token)
    for wrong in (WRONG, f"fso_{public}_{'A' * 43}", "x"):
        assert await best_of_five(wrong) < right / 3
    await pool.execute("update operator_tokens set sieve = substr(sha256(convert_to($1, 'UTF8')), 1, 4)", "A" * 43)
    assert await gate.check(pool, f"fso_{public}_{'A' * 43}") is None, "the sieve alone lets nobody in"


# what is written down ------------------------------------------------------------------------------------------------------


async def test_signing_in_and_out_is_audited_and_failures_are_counted(
    console: Browser, browser: Make, pool: Pool
) -> None:
    one = await browser()
    for _ in range(3):
        await one.sign_in(WRONG)
    await console.post("/console/signout")
    assert await operator_acts(pool) == [
        ("operator.add", "tests"),
        ("signin", "Ada"),
        ("signin.failed", "nobody"),
        ("signout", "Ada"),
    ]


async def test_how_often_somebody_guessed_and_was_throttled_is_logged_and_audited(browser: Make, pool: Pool) -> None:
    lines = io.StringIO()
    log.configure("json", lines)
    one = await browser()
    for _ in range(FAILURES_PER_MINUTE + 2):
        await one.sign_in(WRONG)
    written = [json.loads(line) for line in lines.getvalue().splitlines() if "console.signin_failed" in line]
    assert [(line["failures"], line["throttled"]) for line in written] == [(1, 0), (5, 1)], "at once where it begins"
    rows = await pool.fetch(
        "select convert_from(after, 'UTF8') as after from operator_acts where act = 'signin.failed'"
    )
    assert [json.loads(row["after"]) for row in rows] == [
        {"failures": 1, "throttled": 0},
        {"failures": 5, "throttled": 1},
    ]


async def test_the_ids_of_tokens_are_for_admins(admin: Browser, console: Browser, reader: Browser) -> None:
    await admin.post("/console/operators/Ada/rotate", overlap="1h")
    ids = [one.token.split("_")[1] for one in (admin, console, reader)]
    _, seen = await reader.get("/console/audit")
    assert "operator rotate" in seen
    assert [id_ for id_ in ids if id_ in seen] == []
    _, seen = await admin.get("/console/audit")
    assert [id_ for id_ in ids if id_ in seen] == ids


async def test_no_token_cookie_or_name_is_in_the_logs(admin: Browser, browser: Make, pool: Pool) -> None:
    lines = io.StringIO()
    log.configure("json", lines)
    stranger = await browser()
    await stranger.sign_in("fso_1234abcd_" + "B" * 43)
    await admin.sign_in()
    status, html = await admin.post("/console/operators", name="Zerlina Secretname", role="decide")
    made = re.search(r"fso_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", html)
    assert status == 200
    assert made
    assert (await stranger.sign_in(made[0]))[0] == 303
    written = lines.getvalue()
    assert "console.signed_in" in written
    cookies = [one.value for one in (*cookies_of(admin).values(), *cookies_of(stranger).values())]
    for secret in (made[0][13:], admin.token[13:], "B" * 43, "Zerlina", "Ida", await admin.csrf(), *cookies):
        assert secret not in written
    stored = str(await pool.fetch("select * from operator_tokens")) + str(
        await pool.fetch("select * from console_sessions")
    )
    for secret in (made[0][13:], *cookies):
        assert secret not in stored


async def test_a_token_is_shown_once(admin: Browser, pool: Pool) -> None:
    _, html = await admin.post("/console/operators", name="Bea", role="read", expires="90d")
    assert len(re.findall(r"fso_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", html)) == 1
    _, html = await admin.get("/console/operators")
    assert "Bea" in html
    assert not re.search(r"fso_[0-9a-f]{8}_", html)
    async with pool.acquire() as conn:
        assert Role.READ in {one["role"] for one in await operators.every(conn)}
