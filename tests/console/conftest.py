"""The console as a browser without script meets it: the real web process, operators with tokens, cookies, forms."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from html import unescape
from typing import Any

import aiohttp
import pytest

from tests.conftest import eventually
from worker import operators
from worker.db import Pool
from worker.operators import Role
from worker.settings import Settings
from worker.web import Listening, listening

_CSRF = re.compile(r'name="csrf" value="([0-9a-f]+)"').search


class Browser:
    """A signed-in operator's browser; `get` and `post` follow no redirect by themselves unless asked."""

    def __init__(self, base: str, session: aiohttp.ClientSession, operator: str = "", token: str = "") -> None:
        self.base, self.session, self.operator, self.token = base, session, operator, token
        self.headers: dict[str, str] = {}
        """Of the last answer."""

    async def get(self, path: str, *, follow: bool = True, **headers: str) -> tuple[int, str]:
        """Status and HTML of a page."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(self.base + path, headers=sent, allow_redirects=follow) as answer:
            self.headers = dict(answer.headers)
            return answer.status, await answer.text()

    async def post(self, path: str, *, follow: bool = True, **fields: str) -> tuple[int, str]:
        """Send a form of this console with its CSRF token; then the page it leads to."""
        return await self.send(path, {"csrf": await self.csrf(), **fields}, follow=follow)

    async def send(
        self, path: str, fields: Any, *, follow: bool = True, headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Send exactly these fields or bytes, by default from a page of this console."""
        sent = {"Origin": self.base, "Sec-Fetch-Site": "same-origin"} if headers is None else headers
        async with self.session.post(self.base + path, data=fields, headers=sent, allow_redirects=follow) as answer:
            self.headers = dict(answer.headers)
            return answer.status, await answer.text()

    async def csrf(self) -> str:
        """The token of this session's forms."""
        _, html = await self.get("/console/no-such-page")
        found = _CSRF(html)
        return unescape(found[1]) if found else ""

    async def sign_in(
        self, token: str | None = None, to: str = "/console/", *, follow: bool = False
    ) -> tuple[int, str]:
        """Sign in; 303 when the token was right."""
        return await self.send(
            "/console/signin", {"token": self.token if token is None else token, "to": to}, follow=follow
        )


Make = Callable[..., Awaitable[Browser]]


@pytest.fixture
async def console_web(settings: Settings) -> AsyncIterator[Listening]:
    """The web process with the console."""
    async with listening(settings) as running:
        await eventually(running.watch.ready)
        yield running


@pytest.fixture
async def browser(console_web: Listening) -> AsyncIterator[Make]:
    """Makes browsers: `await browser("Ada", Role.DECIDE)` is signed in, `await browser()` is not."""
    opened: list[aiohttp.ClientSession] = []

    async def make(name: str = "", role: Role = Role.DECIDE, *, pool: Pool | None = None) -> Browser:
        opened.append(aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)))
        base = f"http://127.0.0.1:{console_web.port}"
        if not name:
            return Browser(base, opened[-1])
        assert pool is not None
        async with pool.acquire() as conn, conn.transaction():
            made = await operators.add(conn, name, role, by="tests")
        one = Browser(base, opened[-1], name, made["token"])
        status, _ = await one.sign_in()
        assert status == 303
        return one

    yield make
    for session in opened:
        await session.close()


@pytest.fixture
async def signed_in(browser: Make, pool: Pool) -> Make:
    """Makes signed-in browsers: `await signed_in("Grace", Role.READ)`. Each is a person with a session of their own."""

    async def make(name: str, role: Role = Role.DECIDE) -> Browser:
        return await browser(name, role, pool=pool)

    return make


@pytest.fixture
async def console(signed_in: Make) -> Browser:
    """The browser of Ada, who may decide."""
    return await signed_in("Ada", Role.DECIDE)


@pytest.fixture
async def reader(signed_in: Make) -> Browser:
    """The browser of Rosa, who may only read."""
    return await signed_in("Rosa", Role.READ)


@pytest.fixture
async def admin(signed_in: Make) -> Browser:
    """The browser of Ida, who may do everything."""
    return await signed_in("Ida", Role.ADMIN)
