"""A real Chromium for the console's tests: where it is found, how it is started, who sits before it, what it complained about."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}
SERIOUS = ("serious", "critical")
WITHIN_MS = 10_000
REFRESH_MS = 16_000
"""A little more than live.js waits between two looks."""
_TELL_VIOLATIONS = """addEventListener("securitypolicyviolation",
  (event) => console.error("CSP: " + event.violatedDirective + " " + event.blockedURI))"""
_SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def chromium_path() -> str | None:
    """The browser that FINALSALE_CHROMIUM names, or the first of its usual names on the PATH."""
    named = os.environ.get("FINALSALE_CHROMIUM")
    if named:
        return named
    return next(filter(None, map(shutil.which, NAMES)), None)


MISSING = (
    None
    if chromium_path()
    else f"no Chromium here: set FINALSALE_CHROMIUM, or put one of {', '.join(NAMES)} on the PATH"
)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """One headless browser; a person is a context of it."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


class Person:
    """Somebody before a browser window of their own: cookies, storage and complaints are nobody else's."""

    def __init__(self, base: str, context: BrowserContext, page: Page) -> None:
        self.base, self.context, self.page = base, context, page
        self.complaints: list[str] = []
        """What the browser wrote to its console as an error, scripts' failures and CSP violations among it."""
        page.on("console", self._complained)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _complained(self, message: ConsoleMessage) -> None:
        if message.type == "error" and "status of 401" not in message.text:  # the page to sign in at is one
            self.complaints.append(f"{message.text} ({message.location['url']})")

    async def goes_to(self, path: str) -> int:
        """Open a page; its status."""
        answer = await self.page.goto(self.base + path)
        assert answer is not None
        return answer.status

    async def signs_in(self, token: str, *, at: str = "/console/") -> None:
        """Through the page that asks who it is, on the way to the page `at`."""
        await self.goes_to(at)
        await self.page.get_by_label("Token of an operator").fill(token)
        await self.page.get_by_role("button", name="Sign in").click()
        await self.page.get_by_role("button", name="Sign out").wait_for()

    async def reads(self) -> str:
        """The text of the page's matter."""
        return await self.page.locator("main").inner_text()

    async def serious(self) -> list[str]:
        """What axe finds wrong with the page that matters: rule, what it says, and the first place."""
        found = (await Axe().run(self.page, options=RULES)).response["violations"]
        return [f"{v['id']}: {v['help']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in SERIOUS]

    async def unfolds(self) -> None:
        """Open everything that can be opened on this page."""
        await self.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")

    async def waits_for_the_refresh(self) -> None:
        """Until the page has asked for itself again by its own clock, and shows what came."""
        async with self.page.expect_response(lambda answer: "finalsale-live" in answer.request.headers):
            await self.page.clock.fast_forward(REFRESH_MS)

    async def tabs_to(self, words: str) -> None:
        """Press Tab until the focus is on what is labelled so. AssertionError where the keyboard does not lead there."""
        seen = []
        for _ in range(150):
            await self.page.keyboard.press("Tab")
            focused = self.page.locator("*:focus")
            if not await focused.count():
                continue
            label = focused.locator("xpath=ancestor::label")
            seen.append((await (label if await label.count() else focused).inner_text()).strip())
            if seen[-1].startswith(words):
                return
        raise AssertionError(f"no way by keyboard to {words!r}; it led to {seen}")

    async def enters(self) -> None:
        """Press Enter, and wait for the page it leads to."""
        async with self.page.expect_navigation():
            await self.page.keyboard.press("Enter")

    async def sideways(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(await self.page.evaluate(_SIDEWAYS))


@asynccontextmanager
async def person(browser: Browser, base: str, *, width: int = 1280, **how: Any) -> AsyncIterator[Person]:
    """A window of this width; `how` are options of a browser context: color_scheme, java_script_enabled."""
    context = await browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **how)
    context.set_default_timeout(WITHIN_MS)
    await context.add_init_script(_TELL_VIOLATIONS)
    try:
        page = await context.new_page()
        if how.get("java_script_enabled", True):
            await page.clock.install()
        yield Person(base, context, page)
    finally:
        await context.close()


async def screenshots(who: Person, paths: Sequence[str], into: Path, name: str = "") -> list[Path]:
    """Each page in its whole length as a PNG, for people to look at."""
    made = []
    for path in paths:
        await who.goes_to(path)
        made.append(into / f"{path.removeprefix('/console').strip('/').replace('/', '_') or 'overview'}{name}.png")
        await who.page.screenshot(path=made[-1], full_page=True)
    return made
