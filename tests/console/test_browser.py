"""The console in real Chromium: a duplicate's way to its refund by two people, without script, by keyboard, and for everybody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec
import pytest

from sandbox import Sandbox
from tests.console.browser import MISSING, Person, chromium, person
from tests.console.test_pages_a import disputed
from tests.console.test_pages_b import deliver, put_run, raised
from tests.console.test_pages_work import opened
from tests.stripe_sender import WEBHOOK_SECRET
from tests.worker import reports
from tests.worker.books import tell
from tests.worker.test_review import until
from worker import operators
from worker.console import PAGES
from worker.db import Pool, transaction
from worker.jobs import WorkerProcess
from worker.operators import Role
from worker.settings import Settings
from worker.web import Listening, listening

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


class Shop(NamedTuple):
    """A deployment whose refunds wait for a person, and the stand-in Stripe that tells it things."""

    stripe: Sandbox
    pool: Pool
    base: str

    async def sells_twice(self, amount: int, name: str) -> dict[str, Any]:
        """One customer buys the same subscription twice within a minute. The second subscription, once its decision waits."""
        books = self.stripe.books
        price = books.new_price(books.new_product(name)["id"], "usd", amount, interval="month", id_=f"price_{name}")
        customer = books.new_customer(email=f"{name}@example.com", metadata={}, fingerprint=f"card {name}")
        decided = await self.pool.fetchval("select count(*) from decisions where verdict in ('refund', 'review')")
        for _ in range(2):
            second = books.subscribe(customer, [(price, 1)], metadata={"user_id": name})
            books.advance(42)
        await until(self.pool, f"select count(*) > {decided} from decisions where verdict in ('refund', 'review')")
        await until(self.pool, "select bool_and(state = 'done') from inbox")
        return dict(second)

    async def token(self, name: str) -> str:
        """A new operator who may decide."""
        return await token_of(self.pool, name)


async def token_of(pool: Pool, name: str, role: Role = Role.DECIDE) -> str:
    async with transaction(pool) as conn:
        made = await operators.add(conn, name, role, by="tests")
    return str(made["token"])


@asynccontextmanager
async def shop(settings: Settings, pool: Pool) -> AsyncIterator[Shop]:
    async with Sandbox(webhook_secrets=[WEBHOOK_SECRET]) as stripe:
        running = settings.model_copy(update={"stripe_api_base": stripe.url, "refunds": "review"})
        async with listening(running) as web:
            base = f"http://127.0.0.1:{web.port}"
            stripe.configure({"webhook": {"url": f"{base}/stripe/webhook"}})
            stripe.books.set_clock(int(time.time()) - 7200, running=False)
            worker = WorkerProcess(running)
            working = asyncio.create_task(worker.run())
            try:
                yield Shop(stripe, pool, base)
            finally:
                worker.stop()
                await working


async def approves(who: Person, note: str) -> str:
    """Press the button of a yes, with a note; what the page then says."""
    await who.page.get_by_label("Note (may stay empty)").fill(note)
    await who.page.get_by_role("button", name="Approve: refund").click()
    return await who.page.get_by_role("status").inner_text()


async def test_a_duplicate_above_the_limit_goes_back_once_two_people_said_yes(settings: Settings, pool: Pool) -> None:
    async with (
        shop(settings, pool) as here,
        chromium() as browser,
        person(browser, here.base) as ada,
        person(browser, here.base) as bo,
    ):
        second = await here.sells_twice(120_000, "studio")
        await ada.signs_in(await here.token("Ada"))
        (cookie,) = await ada.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")

        assert "1 review to decide" in await ada.reads()
        await ada.page.get_by_role("link", name="1 review to decide").click()
        await ada.page.get_by_role("link", name="ch_").click()
        told = await ada.reads()
        assert "Original: stays" in told
        assert told.count("1200.00 USD") >= 3
        assert "two people with different names have to say yes" in told
        assert "It needs a second person" in await approves(ada, "Same basket, 42 seconds apart")
        assert list(here.stripe.books.all("refund")) == []
        assert "you cannot be both" in await ada.reads()
        assert not await ada.page.get_by_role("button", name="Approve").count()

        await bo.signs_in(await here.token("Bo"))
        assert "Ada said yes; a second person is needed" in await bo.reads()
        await bo.goes_to(ada.page.url.removeprefix(here.base))
        assert "It is on its way to Stripe" in await approves(bo, "I see the same")
        await until(pool, "select bool_and(state = 'sent') from actions")
        await ada.page.evaluate("window.same = true")
        await ada.waits_for_the_refresh()
        (refund,) = here.stripe.books.all("refund")
        await ada.page.get_by_text(refund["id"]).first.wait_for()
        assert await ada.page.evaluate("window.same"), "the page was loaded anew"
        assert "waits for a person" not in await ada.reads()

        await bo.goes_to("/console/refunds")
        assert f"{refund['id']} succeeded" in await bo.reads()
        await bo.goes_to("/console/audit")
        audit = await bo.reads()
        assert "Ada" in audit
        assert "Same basket, 42 seconds apart" in audit
        assert "I see the same" in audit
        assert [(r["amount"], r["status"]) for r in here.stripe.books.all("refund")] == [(120_000, "succeeded")]
        assert here.stripe.books.by_id[second["id"]]["status"] == "canceled"
        assert ada.complaints + bo.complaints == []


async def test_a_half_written_no_survives_a_refresh_and_the_sessions_end_and_then_is_said(
    settings: Settings, pool: Pool
) -> None:
    async with shop(settings, pool) as here, chromium() as browser, person(browser, here.base) as ada:
        await here.sells_twice(2900, "basic")
        token = await here.token("Ada")
        (id_,) = [
            row["id"]
            for row in await pool.fetch(
                "select id from decisions where subject like 'ch_%' and verdict in ('refund', 'review')"
            )
        ]
        await ada.signs_in(token, at=f"/console/reviews/{id_}")
        reason = ada.page.get_by_label("Reason")
        await reason.press_sequentially("They wanted two, say")
        await ada.waits_for_the_refresh()
        assert await reason.input_value() == "They wanted two, say"
        await pool.execute("delete from console_sessions")
        await ada.page.get_by_role("button", name="Reject").click()
        assert "Your session has ended" in await ada.reads()
        assert await ada.page.get_by_label("reason").input_value() == "They wanted two, say"
        await ada.page.get_by_label("Token of an operator").fill(token)
        await ada.page.get_by_role("button", name="Sign in").click()
        await ada.page.wait_for_url(f"**/console/reviews/{id_}")
        assert await reason.input_value() == "They wanted two, say"
        assert await pool.fetchval("select count(*) from review_acts") == 0
        await ada.page.get_by_role("button", name="Reject").click()
        assert "nothing goes back for it" in await ada.page.get_by_role("status").inner_text()
        assert "Ada said no: They wanted two, say" in await ada.reads()
        assert list(here.stripe.books.all("refund")) == []


async def test_without_script_and_by_keyboard_alone_a_duplicate_goes_back(settings: Settings, pool: Pool) -> None:
    async with (
        shop(settings, pool) as here,
        chromium() as browser,
        person(browser, here.base, width=390, java_script_enabled=False) as ada,
    ):
        await here.sells_twice(2900, "basic")
        keys = ada.page.keyboard
        await ada.goes_to("/console/")
        await ada.tabs_to("Token of an operator")
        await keys.type(await here.token("Ada"))
        await ada.enters()
        await ada.tabs_to("1 review to decide")
        await ada.enters()
        await ada.tabs_to("ch_")
        await ada.enters()
        await ada.tabs_to("Note")
        await keys.type("Twice by accident")
        await ada.tabs_to("Approve: refund 29.00 USD")
        await ada.enters()
        assert "It is on its way to Stripe" in await ada.page.get_by_role("status").inner_text()
        await until(pool, "select bool_and(state = 'sent') from actions")
        await ada.goes_to("/console/refunds")
        (refund,) = here.stripe.books.all("refund")
        assert f"{refund['id']} succeeded" in await ada.reads()
        assert ada.complaints == []


# for everybody -----------------------------------------------------------------------------------------------------------


async def full_books(pool: Pool) -> dict[str, str]:
    """Something of everything; by the map's path of a page, the address of one with something on it."""
    await tell(pool, disputed(86_400))
    case = await opened(pool, transaction="ch_0002")
    await deliver(pool, "evt_1", state="dead")
    await put_run(pool, "run_a", report=msgspec.json.encode(reports.night()))
    await put_run(pool, "run_u", "running")
    await raised(pool, "over", "note", kind="early_fraud_warning", resolved_ago=timedelta(hours=1))
    await pool.execute(
        "insert into policy_versions (sha256, versions, agreements, body, worker) values (sha256('a = 1'), array['2025-01'], 0, 'a = 1', 'w')"
    )
    number = await pool.fetchval("select max(id) from policy_versions")
    samples = {
        "/reviews/{id}": "/reviews/ch_0002",
        "/chargebacks/{id}": "/chargebacks/dp_0001",
        "/cases/{id}": f"/cases/{case}",
        "/customers/{id}": "/customers/cus_A",
        "/events/{id}": "/events/evt_1",
        "/runs/{id}": "/runs/run_a",
        "/alerts/{cause}": "/alerts/chargeback:dp_0001",
        "/policy/{id}": f"/policy/{number}",
    }
    pages = {page.path for page in PAGES if page.method == "GET"} - {"/runs/{id}/{form}"}  # files
    return {path: "/console" + samples.get(path, path) for path in pages} | {"a run under way": "/console/runs/run_u"}


SHAPES = ("/", "/reviews/{id}", "/customers/{id}", "/runs/{id}", "/operators")
"""Pages that between them have every shape that a page has."""


async def faults(who: Person, paths: Iterable[str], axe: Collection[str]) -> dict[str, list[str]]:
    """By page: that it is not there, that it is wider than the window, and, of those named, what axe finds serious."""
    found: dict[str, list[str]] = {}
    for path in paths:
        status = await who.goes_to(path)
        await who.unfolds()
        wide = await who.sideways()
        found[path] = [f"status {status}"] * (status != 200) + [f"{wide} px too wide"] * (wide > 0)
        if path in axe:
            found[path] += await who.serious()
    return {path: said for path, said in found.items() if said}


async def test_every_page_is_accessible_on_desks_and_phones_in_light_and_dark(
    console_web: Listening, pool: Pool
) -> None:
    base, token = f"http://127.0.0.1:{console_web.port}", await token_of(pool, "Ida", Role.ADMIN)
    pages = await full_books(pool)
    all_, shapes = list(pages.values()), [pages[path] for path in SHAPES]
    async with chromium() as browser:
        async with person(browser, base) as ida:
            await ida.goes_to("/console/")
            assert await ida.serious() == [], "the page to sign in at"
            await ida.signs_in(token)
            signed_in = await ida.context.storage_state()
            assert await faults(ida, all_, axe=all_) == {}
            assert ida.complaints == []
        for width, scheme, paths in ((390, "dark", all_), (390, "light", shapes[:2]), (1280, "dark", shapes[:2])):
            async with person(browser, base, width=width, color_scheme=scheme, storage_state=signed_in) as ida:
                assert await faults(ida, paths, axe=shapes) == {}, (width, scheme)
                assert ida.complaints == []
