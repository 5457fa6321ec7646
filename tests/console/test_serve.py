"""The way from a request to a page: who is let in, what a form must bring, what is refused, and what every answer carries."""

from __future__ import annotations

import asyncio
import re

import aiohttp
import pytest
from pydantic import SecretStr

from tests.conftest import eventually
from tests.console.conftest import Browser, Make
from worker import console as the_console
from worker.console import requests
from worker.console.page import Page
from worker.console.requests import inside
from worker.db import Pool
from worker.operators import Role
from worker.settings import Settings
from worker.web import Listening, listening

CHANGES = [page for page in the_console.PAGES if page.method == "POST"]
READS = [page for page in the_console.PAGES if page.method == "GET"]


def some(page: Page) -> str:
    """A path of this page, for something that does not exist."""
    return "/console" + re.sub(r"\{[^}]*\}", "dec_000000000000000000000000", page.path)


def test_no_two_pages_have_one_path_and_none_is_changed_by_reading() -> None:
    paths = [(page.method, page.path) for page in the_console.PAGES]
    assert len(paths) == len(set(paths))
    assert {page.method for page in the_console.PAGES} == {"GET", "POST"}


def test_only_finding_is_a_form_that_readers_may_send() -> None:
    assert {page.path for page in CHANGES if page.role is Role.READ} <= {"/find"}


# who is let in -------------------------------------------------------------------------------------------------------------


async def test_without_a_session_no_page_shows_anything_but_the_way_in(browser: Make) -> None:
    stranger = await browser()
    for page in READS:
        status, html = await stranger.get(some(page))
        assert status == 401, page
        assert "Token of an operator" in html
        assert "<nav" not in html
    assert (await stranger.get("/console/no-such-page"))[0] == 401


async def test_without_a_session_nothing_is_changed_and_what_was_typed_is_shown_to_copy(browser: Make) -> None:
    stranger = await browser()
    for page in CHANGES:
        status, html = await stranger.send(some(page), {"reason": "half a page <of> words"})
        assert status == 401, page
        assert "half a page &lt;of&gt; words" in html
        assert "session has ended" in html


async def test_a_role_that_is_too_low_is_refused_by_every_page(signed_in: Make) -> None:
    reader, decider = await signed_in("Rosa", Role.READ), await signed_in("Ada", Role.DECIDE)
    for one, role in ((reader, Role.READ), (decider, Role.DECIDE)):
        csrf = await one.csrf()
        for page in the_console.PAGES:
            if role.allows(page.role):
                continue
            status, html = (
                await one.get(some(page)) if page.method == "GET" else await one.send(some(page), {"csrf": csrf})
            )
            assert status == 403, page
            assert f"needs the role {page.role}" in html


async def test_a_new_role_counts_from_the_next_request_on(admin: Browser, console: Browser) -> None:
    assert (await console.get("/console/operators"))[0] == 403
    status, html = await admin.post("/console/operators/Ada/role", role="admin")
    assert status == 200
    assert "Ada has the role admin now." in html
    assert (await console.get("/console/operators"))[0] == 200


# what a form must bring ----------------------------------------------------------------------------------------------------


async def added(admin: Browser, fields: dict[str, str], **headers: str) -> int:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return (await admin.send("/console/operators", {"name": "Eve", "role": "admin", **fields}, headers=sent))[0]


async def nobody_new(pool: Pool) -> bool:
    return not await pool.fetchval("select exists (select 1 from operators where name = 'Eve')")


async def test_a_change_needs_the_token_of_its_own_session(admin: Browser, console: Browser, pool: Pool) -> None:
    own = {"Origin": admin.base}
    assert await added(admin, {}, **own) == 403
    assert await added(admin, {"csrf": "0" * 64}, **own) == 403
    assert await added(admin, {"csrf": await console.csrf()}, **own) == 403
    assert await added(admin, {"csrf": "é"}, **own) == 403
    assert await nobody_new(pool)
    assert await added(admin, {"csrf": await admin.csrf()}, **own) == 200


async def test_a_form_of_another_site_is_refused_even_with_the_token(admin: Browser, pool: Pool) -> None:
    token = {"csrf": await admin.csrf()}
    assert await added(admin, token, Origin="https://evil.example") == 403
    assert await added(admin, token, Origin="null") == 403
    assert await added(admin, token, Origin=admin.base, Sec_Fetch_Site="cross-site") == 403
    assert await added(admin, token, Origin=admin.base, Sec_Fetch_Site="same-site") == 403
    assert await added(admin, token, Origin=admin.base + ".evil.example") == 403
    assert await added(admin, token) == 403  # neither header: no browser of this century
    assert await nobody_new(pool)


async def test_a_token_in_the_address_is_no_token(admin: Browser, pool: Pool) -> None:
    path = f"/console/operators?csrf={await admin.csrf()}&name=Eve&role=admin"
    assert (await admin.send(path, {"name": "Eve", "role": "admin"}))[0] == 403
    assert (await admin.get(path))[0] == 200
    assert await nobody_new(pool)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b'{"name": "Eve"}'),
        ("text/plain", b"csrf=1"),
        ("multipart/form-data; boundary=x", b"--x--"),
        ("", b"csrf=1"),
    ],
)
async def test_only_a_plain_form_is_read(admin: Browser, content_type: str, body: bytes) -> None:
    headers = {"Origin": admin.base, "Content-Type": content_type}
    assert (await admin.send("/console/operators", body, headers=headers))[0] == 400


async def test_a_body_or_a_field_beyond_the_limit_is_refused(admin: Browser) -> None:
    csrf = await admin.csrf()
    assert (await admin.send("/console/operators", {"csrf": csrf, "name": "x" * 70_000}))[0] == 413
    status, html = await admin.send("/console/operators", {"csrf": csrf, "name": "x" * 4_001})
    assert status == 413
    assert "4,000" in html


async def test_fields_that_are_no_text_or_there_twice_are_refused(admin: Browser) -> None:
    headers = {"Origin": admin.base, "Content-Type": "application/x-www-form-urlencoded"}
    csrf = (await admin.csrf()).encode()
    for body in (b"name=%00", b"name=%ff", b"name=%ed%a0%80", b"name=a&name=b", "name=é".encode(), b"a=&" * 500):
        status, _ = await admin.send("/console/operators", b"csrf=" + csrf + b"&" + body, headers=headers)
        assert status == 400, body


async def test_a_form_that_does_not_arrive_whole_is_not_waited_for(
    admin: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "READ_TIMEOUT_S", 0.2)
    port = int(admin.base.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST /console/operators HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: {admin.base}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 50\r\n\r\nname=".encode()
    )
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 400")
    writer.close()


async def test_a_failure_that_nobody_foresaw_tells_nothing_of_its_inside(admin: Browser, pool: Pool) -> None:
    await pool.execute(
        "create function broken() returns trigger language plpgsql as $$ begin raise 'the inside %', new.name; end $$;"
        "create trigger broken before insert on operators for each row execute function broken()"
    )
    status, html = await admin.post("/console/operators", name="Eve", role="read")
    assert status == 500
    assert "the inside" not in html
    assert "Look whether it was done before you repeat it." in html
    assert ">\nEve</textarea>" in html
    assert await nobody_new(pool)


async def test_a_refused_change_keeps_what_was_typed(admin: Browser) -> None:
    status, html = await admin.post("/console/operators", name="ida", role="read")
    assert status == 409
    assert "is taken" in html
    assert ">\nida</textarea>" in html


# paths and headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/console/../metrics",
        "/console/%2e%2e/%2e%2e/etc/passwd",
        "/console/console.css/../operators",
        "/console//operators",
        "/console/operators/",
        "/console/_base.html.j2",
        "/console/%00",
        "/console/reviews/%00",
        "/console/reviews/%ed%a0%80",
        "/console/reviews/..%2f..%2foperators",
        "/console/reviews/'%20or%201=1--",
        "/console/reviews/{{7*7}}",
        "/console/%0d%0aSet-Cookie:%20a=b",
        "/console/?a=%00",
    ],
)
async def test_strange_paths_lead_nowhere(admin: Browser, path: str) -> None:
    from yarl import URL

    async with admin.session.get(URL(admin.base + path, encoded=True), allow_redirects=False) as answer:
        html = await answer.text()
        assert answer.status in (200, 400, 404), html
        if answer.status == 200:
            assert "/../" in path  # the client took the dots away before it asked
        assert "Set-Cookie" not in answer.headers
        assert "49" not in html.partition("<main")[2]


async def test_every_answer_says_what_a_browser_may_do_with_it(admin: Browser, browser: Make) -> None:
    stranger = await browser()
    for one, path in (
        (admin, "/console/operators"),
        (admin, "/console/nowhere"),
        (stranger, "/console/"),
        (stranger, "/console/console.css"),
        (stranger, "/console/live.js"),
        (stranger, "/console"),
    ):
        await one.get(path, follow=False)
        csp = one.headers["Content-Security-Policy"]
        assert csp.startswith("default-src 'none'; style-src 'self'; script-src 'self';"), path
        assert "unsafe" not in csp
        assert "frame-ancestors 'none'" in csp
        assert one.headers["X-Frame-Options"] == "DENY"
        assert one.headers["X-Content-Type-Options"] == "nosniff"
        assert one.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert one.headers["Referrer-Policy"] == "same-origin"
        assert one.headers["Cache-Control"] == ("no-cache" if path.endswith((".css", ".js")) else "no-store")
        assert "Strict-Transport-Security" not in one.headers
    await stranger.get("/console/", X_Forwarded_Proto="https")
    assert stranger.headers["Strict-Transport-Security"] == "max-age=31536000"


async def test_no_page_has_anything_inline(admin: Browser) -> None:
    for page in READS:
        _, html = await admin.get(some(page))
        assert not re.search(r"<style|<script(?! src=)|\son\w+=|\sstyle=|javascript:", html), page.path


async def test_every_page_has_one_heading_a_language_and_a_way_past_the_menu(admin: Browser) -> None:
    for page in READS:
        status, html = await admin.get(some(page))
        assert status < 500, (page.path, html)
        if "<html" in html:
            assert html.count("<h1") == 1, page.path
            assert '<html lang="en">' in html
            assert 'href="#main"' in html
            assert 'id="main"' in html


def test_one_is_sent_on_only_to_pages_of_the_console() -> None:
    assert inside("/console/reviews?clause=4.3") == "/console/reviews?clause=4.3"
    for elsewhere in (
        "https://evil.example/console/",
        "//evil.example",
        "/console//evil.example",
        "/console/\r\nSet-Cookie: a=b",
        "/console/\n",
        "/console/../api/v1",
        "/console/..",
        "/console/\\evil",
        "/healthz",
        "javascript:alert(1)",
        "",
    ):
        assert inside(elsewhere) == "/console/", elsewhere


async def test_a_link_from_elsewhere_finds_the_strict_cookie_on_the_second_step(admin: Browser) -> None:
    admin.session.cookie_jar.clear()  # as a browser does with a strict cookie on the way from another site
    status, html = await admin.get("/console/reviews/dec_1", Sec_Fetch_Site="cross-site")
    assert status == 200
    assert '<meta http-equiv="refresh" content="0">' in html
    assert 'href="/console/reviews/dec_1"' in html


# where it is served --------------------------------------------------------------------------------------------------------


async def statuses(settings: Settings, *paths: str) -> list[int]:
    async with listening(settings) as running, aiohttp.ClientSession() as http:
        await eventually(running.watch.ready)
        found = []
        for path in paths:
            async with http.get(f"http://127.0.0.1:{running.port}{path}") as answer:
                found.append(answer.status)
        return found


PLACES = ("/console/", "/stripe/webhook", "/api/v1/openapi.json", "/healthz", "/metrics")


async def test_the_console_can_be_left_out_or_served_alone_without_a_webhook_secret(settings: Settings) -> None:
    assert await statuses(settings, *PLACES) == [401, 405, 200, 200, 200]
    off = settings.model_copy(update={"console": "off"})
    assert await statuses(off, *PLACES) == [404, 405, 200, 200, 200]
    only = settings.model_copy(update={"console": "only", "stripe_webhook_secret": None})
    assert await statuses(only, *PLACES) == [401, 404, 404, 200, 200]


async def test_while_the_database_is_away_a_page_says_so_in_plain_words(settings: Settings) -> None:
    away = settings.model_copy(update={"database_url": SecretStr("postgresql://127.0.0.1:1/none")})
    async with (
        listening(away) as running,
        aiohttp.ClientSession(cookies={"finalsale": "x"}) as http,
        http.get(f"http://127.0.0.1:{running.port}/console/") as answer,
    ):
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "5"
        html = await answer.text()
    assert "The database does not answer" in html
    assert "127.0.0.1" not in html


async def test_the_webhook_is_not_the_consoles_business(console_web: Listening) -> None:
    address = f"http://127.0.0.1:{console_web.port}/stripe/webhook"
    async with aiohttp.ClientSession() as http, http.post(address, json={}) as answer:
        assert answer.status == 400
        assert "Content-Security-Policy" not in answer.headers
