"""Notices reach the merchant's app signed, in each customer's order, at least once, and no news is older than a week."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from handlers.customer import CustomerId
from handlers.news import Notice
from tests.worker.books import REALM, REALMS
from worker import notices
from worker.db import Pool, connection, transaction
from worker.errors import SettingsInvalid
from worker.notices import MAX_ATTEMPTS, NoticeSender, notice_id, replay, retry_after_s, write_notices
from worker.reading import NotFound, NotUnderstood
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"o" * 24).decode()
DAY = 86_400

Answer = Callable[[dict[str, Any]], int]


class Receiver:
    """The merchant's app: it keeps every request, and answers what the test says."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answer: Answer = lambda body: 200
        self.slow_s: Callable[[dict[str, Any]], float] = lambda body: 0.0
        self.at_once = self.most_at_once = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        told = json.loads(body)
        self.requests.append((dict(request.headers), body))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.slow_s(told))
        finally:
            self.at_once -= 1
        status = self.answer(told)
        return web.Response(status=status, headers={"location": "/elsewhere"} if status // 100 == 3 else None)

    async def elsewhere(self, request: web.Request) -> web.Response:
        """Where a redirect would lead."""
        self.requests.append((dict(request.headers), await request.read()))
        return web.Response()

    @property
    def told(self) -> list[str]:
        """`customer number`, in the order of arrival."""
        return [f"{body['customer']} {body['data']['n']}" for body in self.bodies]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]


@pytest.fixture
async def app() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    application = web.Application()
    application.router.add_post("/notices", receiver.handle)
    application.router.add_route("*", "/elsewhere", receiver.elsewhere)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/notices"
    yield receiver
    await runner.cleanup()


@asynccontextmanager
async def sending(pool: Pool, **settings: Any) -> AsyncIterator[NoticeSender]:
    """A sender with settings of its own, on this test's database."""
    timeout_s = settings.pop("timeout_s", 10.0)
    sender = NoticeSender(pool, Settings(**{"app_webhook_secret": SECRET, **settings}), timeout_s=timeout_s)
    try:
        yield sender
    finally:
        await sender.aclose()


@pytest.fixture
async def sender(pool: Pool, app: Receiver) -> AsyncIterator[NoticeSender]:
    async with sending(pool, app_webhook_url=app.url) as made:
        yield made


def notice(customer: str = "cus_A", n: int = 1, *, ago_s: float = 0) -> Notice:
    return Notice(
        key=f"standing.changed:{customer}:{n}",
        type="standing.changed",
        customer=CustomerId(customer),
        timestamp=int(time.time() - ago_s),
        data={"n": n},
    )


async def write(pool: Pool, *told: Notice, realm: str = REALM) -> int:
    async with transaction(pool) as conn:
        return await write_notices(conn, realm, told)


async def states(pool: Pool) -> list[str]:
    return [row["state"] for row in await pool.fetch("select state from notices order by number")]


async def due_now(pool: Pool) -> None:
    await pool.execute("update notices set next_at = now() where state = 'waiting'")


# the form ----------------------------------------------------------------------------------------------------------------


async def test_a_notice_is_signed_as_the_standard_says_and_tells_what_where_and_whose(
    pool: Pool, app: Receiver, sender: NoticeSender
) -> None:
    await write(pool, notice())
    assert await sender.send_due() == 1
    ((headers, body),) = app.requests
    told = Webhook(SECRET).verify(body, headers)  # raises unless the signature, the id and the time are right
    id_ = notice_id(REALM, "standing.changed:cus_A:1")
    assert headers["webhook-id"] == told["id"] == id_
    assert (told["type"], told["customer"], told["mode"], told["account"]) == (
        "standing.changed",
        "cus_A",
        "test",
        None,
    )
    assert told["data"] == {"n": 1}
    assert told["timestamp"].endswith("Z")
    assert await states(pool) == ["sent"]
    assert await sender.send_due() == 0


async def test_while_a_secret_is_replaced_either_one_verifies(pool: Pool, app: Receiver) -> None:
    await write(pool, notice())
    async with sending(pool, app_webhook_url=app.url, app_webhook_secret=f"{SECRET}, {OTHER_SECRET}") as sender:
        await sender.send_due()
    ((headers, body),) = app.requests
    for secret in (SECRET, OTHER_SECRET):
        assert Webhook(secret).verify(body, headers)["data"] == {"n": 1}
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + base64.b64encode(b"x" * 32).decode()).verify(body, headers)


async def test_a_connected_account_is_named_and_another_mode_is_not_sent(
    pool: Pool, app: Receiver, sender: NoticeSender
) -> None:
    await write(pool, notice(), realm="test:acct_1")
    await write(pool, notice(), realm="live")
    await sender.send_due()
    assert [(body["mode"], body["account"]) for body in app.bodies] == [("test", "acct_1")]


# once for one cause ------------------------------------------------------------------------------------------------------


async def test_the_same_news_twice_is_one_notice(pool: Pool, app: Receiver, sender: NoticeSender) -> None:
    assert await write(pool, notice(), notice()) == 1
    assert await write(pool, notice()) == 0
    assert await write(pool) == 0
    await sender.send_due()
    assert app.told == ["cus_A 1"]


@pytest.mark.parametrize(("ago_s", "state"), [(7 * DAY - 60, "waiting"), (7 * DAY + 60, "held")])
async def test_what_has_been_true_for_a_week_is_no_news(pool: Pool, ago_s: int, state: str) -> None:
    await write(pool, notice(ago_s=ago_s))
    assert await states(pool) == [state]


async def test_in_a_rehearsal_a_week_is_a_week_of_the_rehearsed_clock(pool: Pool) -> None:
    await pool.execute("insert into rehearsal_clock (ahead) values (interval '-300 days')")
    await write(pool, notice(ago_s=301 * DAY), notice(n=2, ago_s=308 * DAY))
    assert await states(pool) == ["waiting", "held"]


# order -------------------------------------------------------------------------------------------------------------------


async def test_one_customers_notices_arrive_in_order_while_others_go_side_by_side(
    pool: Pool, app: Receiver, sender: NoticeSender
) -> None:
    app.slow_s = lambda body: 0.2
    for n in range(1, 6):
        await write(pool, *(notice(customer, n) for customer in ("cus_A", "cus_B", "cus_C")))
    assert await sender.send_due() == 15
    for customer in ("cus_A", "cus_B", "cus_C"):
        assert [told for told in app.told if told.startswith(customer)] == [f"{customer} {n}" for n in range(1, 6)]
    assert app.most_at_once == 3


async def test_no_more_than_eight_go_at_once(pool: Pool, app: Receiver, sender: NoticeSender) -> None:
    app.slow_s = lambda body: 0.4
    await write(pool, *(notice(f"cus_{n}") for n in range(20)))
    assert await sender.send_due() == 20
    assert app.most_at_once == 8


async def test_a_failure_holds_up_that_customer_only_and_later_ones_wait_behind_it(
    pool: Pool, app: Receiver, sender: NoticeSender
) -> None:
    await write(pool, notice(n=1), notice(n=2), notice("cus_B", 1), notice("cus_B", 2))
    app.answer = lambda body: 500 if body["customer"] == "cus_A" else 204
    await sender.send_due()
    await sender.send_due()
    assert sorted(app.told) == ["cus_A 1", "cus_B 1", "cus_B 2"]
    first = await pool.fetchrow("select * from notices order by number limit 1")
    assert first is not None
    assert (first["state"], first["attempts"], first["error"]) == ("waiting", 1, "the app answered 500")
    app.answer = lambda body: 200
    await due_now(pool)
    await sender.send_due()
    assert app.told[-2:] == ["cus_A 1", "cus_A 2"]
    assert await pool.fetchval("select count(*) from notices where error is not null") == 0


async def test_two_workers_beside_each_other_keep_the_order(pool: Pool, app: Receiver, sender: NoticeSender) -> None:
    app.slow_s = lambda body: 0.01
    for n in range(1, 16):
        await write(pool, *(notice(customer, n) for customer in ("cus_A", "cus_B")))
    async with sending(pool, app_webhook_url=app.url) as other:
        assert sum(await asyncio.gather(sender.send_due(), other.send_due())) == 30
    for customer in ("cus_A", "cus_B"):
        assert [told for told in app.told if told.startswith(customer)] == [f"{customer} {n}" for n in range(1, 16)]


async def test_a_round_ends_although_the_app_keeps_asking_for_more(
    pool: Pool, app: Receiver, sender: NoticeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "ROUND_S", 0.1)
    app.slow_s = lambda body: 0.06
    await write(pool, *(notice(n=n) for n in range(50)))
    assert await sender.send_due() < 10
    sender.stopping = True
    assert await sender.send_due() == 0


# failures ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 308, 400, 404, 429, 500, 503])
async def test_anything_but_a_2xx_is_tried_again_and_no_redirect_is_followed(
    pool: Pool, app: Receiver, sender: NoticeSender, status: int
) -> None:
    app.answer = lambda body: status
    await write(pool, notice())
    await sender.send_due()
    assert len(app.requests) == 1
    wait_s = await pool.fetchval("select extract(epoch from next_at - now())::float8 from notices")
    assert 3 < wait_s <= 6
    assert await states(pool) == ["waiting"]


async def test_an_app_that_is_silent_or_away_is_tried_again(pool: Pool, app: Receiver) -> None:
    app.slow_s = lambda body: 3.0
    await write(pool, notice())
    async with sending(pool, app_webhook_url=app.url, timeout_s=0.2) as sender:
        await sender.send_due()
    assert await pool.fetchval("select error from notices") == "no answer from the app (TimeoutError)"
    await due_now(pool)
    async with sending(pool, app_webhook_url="http://127.0.0.1:9/") as sender:
        await sender.send_due()
    assert await pool.fetchval("select error from notices") == "no answer from the app (ClientConnectorError)"
    assert await states(pool) == ["waiting"]


def test_the_waits_double_to_an_hour_and_come_to_three_days() -> None:
    waits = [sum(retry_after_s(attempt) for _ in range(50)) / 50 for attempt in range(1, MAX_ATTEMPTS)]
    assert 4 < waits[0] < 6
    assert 8 < waits[1] < 12
    assert 3400 < waits[-1] < 3800
    assert 2.9 * DAY < sum(waits) < 3.1 * DAY


async def test_after_the_last_attempt_it_failed_a_person_hears_of_it_and_the_next_one_goes(
    pool: Pool, app: Receiver, sender: NoticeSender
) -> None:
    await write(pool, notice(n=1), notice(n=2))
    await pool.execute("update notices set attempts = $1 where number = 1", MAX_ATTEMPTS - 1)
    app.answer = lambda body: 503 if body["data"]["n"] == 1 else 200
    await sender.send_due()
    assert await states(pool) == ["failed", "sent"]
    async with connection(pool) as conn:
        (alert,) = await notices.alerts(conn, REALMS)
    id_ = notice_id(REALM, "standing.changed:cus_A:1")
    assert (alert["kind"], alert["severity"], alert["subject"]) == ("notice_failed", "warning", id_)
    assert "the app answered 503" in alert["sentence"]
    assert f"finalsale notices replay {id_}" in alert["sentence"]


async def test_410_ends_it_at_once_and_a_replay_that_arrives_ends_the_alert(
    pool: Pool, app: Receiver, sender: NoticeSender
) -> None:
    app.answer = lambda body: 410
    await write(pool, notice())
    await sender.send_due()
    assert await states(pool) == ["failed"]
    app.answer = lambda body: 200
    async with transaction(pool) as conn:
        await replay(conn, REALMS, state="failed", by="Ann")
    await sender.send_due()
    assert await states(pool) == ["sent"]
    async with connection(pool) as conn:
        assert await notices.alerts(conn, REALMS) == []
        assert len(await notices.alerts(conn, REALMS, resolved=True)) == 1


async def test_a_sender_that_was_killed_after_the_app_answered_sends_again_under_the_same_id(
    pool: Pool, app: Receiver, sender: NoticeSender, database_url: str
) -> None:
    """A real process dies by SIGKILL while the app has the request; the lease ends, and another worker takes it up."""
    await write(pool, notice(n=1), notice(n=2))
    script = """
        import asyncio
        from worker.db import connect_pool
        from worker.notices import NoticeSender
        from worker.settings import read_settings
        async def main():
            settings = read_settings()
            await NoticeSender(await connect_pool(settings.database_dsn(), role="test"), settings).send_due()
        asyncio.run(main())
    """
    environment = {
        **os.environ,
        "DATABASE_URL": database_url,
        "FINALSALE_APP_WEBHOOK_URL": app.url,
        "FINALSALE_APP_WEBHOOK_SECRET": SECRET,
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(script), cwd=ROOT, env=environment
    )

    def kill(body: dict[str, Any]) -> int:
        os.kill(child.pid, signal.SIGKILL)
        return 200

    app.answer = kill
    async with asyncio.timeout(30):
        assert await child.wait() == -signal.SIGKILL
    app.answer = lambda body: 200
    assert await sender.send_due() == 0  # still leased to the dead
    assert await states(pool) == ["waiting", "waiting"]
    await pool.execute("update notices set next_at = now() where number = 1")  # half a minute later
    await sender.send_due()
    assert app.told == ["cus_A 1", "cus_A 1", "cus_A 2"]
    assert app.requests[0][0]["webhook-id"] == app.requests[1][0]["webhook-id"]
    assert app.requests[0][1] == app.requests[1][1]


# without an address ------------------------------------------------------------------------------------------------------


async def test_without_an_address_nothing_is_sent_and_after_an_hour_it_is_held_until_it_is_replayed(
    pool: Pool, app: Receiver, sender: NoticeSender
) -> None:
    await write(pool, notice(n=1), notice(n=2))
    await pool.execute("update notices set next_at = now() - interval '61 minutes' where number = 1")
    async with sending(pool, app_webhook_secret=None) as unaddressed:
        assert await unaddressed.send_due() == 0
    assert await states(pool) == ["held", "waiting"]
    await sender.send_due()
    async with transaction(pool) as conn:
        assert len(await replay(conn, REALMS, customer="cus_A", state="held", by="Ann")) == 1
    await sender.send_due()
    assert app.told == ["cus_A 2", "cus_A 1"]


@pytest.mark.parametrize(
    ("url", "mode_key", "secret", "says"),
    [
        ("http://app.example.com/n", None, SECRET, "must begin with https"),
        ("http://127.0.0.1/n", "sk_live_x", SECRET, "must begin with https"),
        ("ftp://app.example.com", None, SECRET, "is not valid"),
        ("https://", None, SECRET, "is not valid"),
        ("https://user:pass@app.example.com/", None, SECRET, "is not valid"),
        ("https://app.example.com:notaport/", None, SECRET, "is not valid"),
        ("https://app.example.com/n", None, None, "APP_WEBHOOK_SECRET"),
        ("https://app.example.com/n", None, "whsec_short", "APP_WEBHOOK_SECRET"),
        ("https://app.example.com/n", None, "not a secret at all, but long enough to be one", "APP_WEBHOOK_SECRET"),
        ("https://app.example.com/n", None, f"{SECRET},whsec_", "APP_WEBHOOK_SECRET"),
    ],
)
def test_an_address_or_a_secret_that_cannot_be_used_stops_the_start_without_telling_it(
    url: str, mode_key: str | None, secret: str | None, says: str
) -> None:
    settings = Settings(app_webhook_url=url, app_webhook_secret=secret, stripe_api_key=mode_key)
    with pytest.raises(SettingsInvalid, match=says) as raised:
        notices.app_of(settings)
    assert "pass" not in str(raised.value).replace("password", "")
    assert secret is None or secret not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    ["https://app.example.com/n", "http://localhost:3000/", "http://10.0.0.7/", "http://[::1]/", "http://app:80/"],
)
def test_https_anywhere_and_http_nearby_in_test_mode(url: str) -> None:
    assert notices.app_of(Settings(app_webhook_url=url, app_webhook_secret=SECRET)) is not None


def test_no_address_is_no_mistake() -> None:
    assert notices.app_of(Settings()) is None


# again -------------------------------------------------------------------------------------------------------------------


async def test_a_replay_sends_the_same_bodies_under_the_same_ids_in_the_old_order(
    pool: Pool, app: Receiver, sender: NoticeSender
) -> None:
    await write(pool, *(notice(n=n) for n in (1, 2, 3)), notice("cus_B"))
    await sender.send_due()
    async with transaction(pool) as conn:
        ids = await replay(conn, REALMS, customer="cus_A", by="Ann")
    assert len(ids) == 3
    before = {headers["webhook-id"]: body for headers, body in app.requests}
    app.requests.clear()
    await sender.send_due()
    assert app.told == ["cus_A 1", "cus_A 2", "cus_A 3"]
    assert all(before[headers["webhook-id"]] == body for headers, body in app.requests)


async def test_a_replay_is_narrowed_by_id_and_time_and_refuses_to_mean_everything(pool: Pool, app: Receiver) -> None:
    await write(pool, notice(n=1, ago_s=8 * DAY), notice(n=2, ago_s=8 * DAY))
    first = notice_id(REALM, "standing.changed:cus_A:1")
    async with transaction(pool) as conn:
        assert await replay(conn, REALMS, ids=[first], by="Ann") == [first]
        since = await conn.fetchval("select now() + interval '1 hour'")
        assert await replay(conn, REALMS, since=since, by="Ann") == []
        with pytest.raises(NotUnderstood):
            await replay(conn, REALMS, by="Ann")
        with pytest.raises(NotFound, match="msg_none"):
            await replay(conn, REALMS, ids=[first, "msg_none"], by="Ann")
        with pytest.raises(NotFound):
            await replay(conn, ["live"], ids=[first], by="Ann")
    assert await states(pool) == ["waiting", "held"]


async def test_a_notice_can_be_read_with_its_body(pool: Pool) -> None:
    await write(pool, notice())
    id_ = notice_id(REALM, "standing.changed:cus_A:1")
    async with connection(pool) as conn:
        assert (await notices.shown(conn, REALMS, id_))["body"]["data"] == {"n": 1}
        (row,) = await notices.listed(conn, REALMS, customer="cus_A", state="waiting", limit=5)
        assert row["id"] == id_
        assert await notices.listed(conn, REALMS, state="sent") == []
        with pytest.raises(NotFound):
            await notices.shown(conn, ["live"], id_)
