"""People are told of alerts once, together, in time, again while nobody answers, and when it is over, whatever fails on the way."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr

from tests.worker.books import REALM, REALMS
from tests.worker.receivers import HOST, Mailbox, Webhook, closed_port, mailbox, webhook
from worker import alert_routes, alerts
from worker.alert_kinds import kind_of
from worker.alert_message import CRITICAL_AN_HOUR, Lately, Telling, gathered
from worker.alert_routes import near_of, read_routes
from worker.alerts import ROUTE_FAILED, AlertSender, acknowledge
from worker.db import Pool, columns, connection, queries, transaction
from worker.jobs import WorkerProcess
from worker.reading import NotFound
from worker.review import ActRefused
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
HOUR, MINUTE = 3600, 60


@pytest.fixture
async def mail() -> AsyncIterator[Mailbox]:
    async with mailbox() as box:
        yield box


@pytest.fixture
async def hook() -> AsyncIterator[Webhook]:
    async with webhook() as running:
        yield running


class Told:
    """A sender, and time that passes for it by moving everything that it looks at into the past."""

    def __init__(self, pool: Pool, sender: AlertSender) -> None:
        self.pool, self.sender = pool, sender

    async def passes(self, seconds: float) -> None:
        moved = {
            "alerts": ["look_at", "changed_at", "told_at", "steps_from", "raised_at", "acked_at", "resolved_at"],
            "alert_tellings": ["made_at"],
            "alert_messages": ["created_at", "next_at", "sent_at"],
        }
        for table, names in moved.items():
            changes = ", ".join(f"{name} = {name} - interval '{seconds} seconds'" for name in names)
            await self.pool.execute(f"update {table} set {changes}")

    async def round(self) -> int:
        """The quiet, the window and the sending; how many messages were tried."""
        await self.passes(6)
        await self.sender.plan()
        await self.passes(6)
        await self.sender.plan()
        return await self.send()

    async def send(self) -> int:
        tried = 0
        while done := sum(await asyncio.gather(*(self.sender.send_due(route) for route in self.sender.routes))):
            tried += done
        return tried


@asynccontextmanager
async def telling(pool: Pool, *urls: str, **settings: Any) -> AsyncIterator[Told]:
    """A sender over these routes, on this test's database."""
    given = Settings(**{"alert_urls": SecretStr(" ".join(urls)), "alert_private_hosts": HOST, **settings})
    sender = AlertSender(pool, given)
    sender.routes, sender.near = read_routes(given), near_of(given)
    yield Told(pool, sender)


async def raise_(pool: Pool, *causes: str, severity: str = "critical", kind: str = "refund_failed") -> None:
    rows = [(c, kind, severity, "cus_A", f"re_{c}", f"The refund re_{c} of 29.00 USD failed.") for c in causes]
    async with transaction(pool) as conn:
        await conn.fetch(queries.raise_alerts.sql, REALM, *columns(rows))


async def resolve(pool: Pool, *causes: str) -> None:
    async with transaction(pool) as conn:
        await queries.resolve_alerts(conn, realm=REALM, causes=list(causes))


# told once --------------------------------------------------------------------------------------------------------------


async def test_an_alert_is_told_once_over_mail_and_webhook_and_once_more_when_it_is_over(
    pool: Pool, mail: Mailbox, hook: Webhook
) -> None:
    async with telling(pool, mail.url, hook.url, public_url="https://pay.example.com") as told:
        await raise_(pool, "one")
        for _ in range(3):
            await told.round()
            await raise_(pool, "one")  # every run says it again
        await resolve(pool, "one")
        for _ in range(3):
            await told.round()
    for heard in (mail.heard, hook.heard):
        assert [message.title for message in heard] == [
            "[finalsale test] critical: Refund failed",
            "[finalsale test] resolved: Refund failed",
        ]
        first = heard[0].body
        kind = kind_of("refund_failed")
        assert "The refund re_one of 29.00 USD failed." in first
        assert kind.why in first
        assert "https://pay.example.com/console/" in first
        assert "Act: finalsale " in first
        assert "Since: 20" in first
        assert first.rstrip().endswith(f"Message {heard[0].id}")
    assert mail.heard[0].id != hook.heard[0].id


async def test_what_comes_and_goes_within_the_quiet_is_told_to_nobody(pool: Pool, hook: Webhook) -> None:
    async with telling(pool, hook.url) as told:
        await raise_(pool, "one")
        await told.sender.plan()
        assert await pool.fetchval("select count(*) from alert_tellings") == 0
        await resolve(pool, "one")
        assert await told.round() == 0
        assert await told.round() == 0
    assert hook.bodies == []


async def test_a_changed_sentence_is_no_news_and_a_higher_severity_is(pool: Pool, hook: Webhook) -> None:
    async with telling(pool, hook.url) as told:
        await raise_(pool, "one", severity="warning")
        await told.round()
        await pool.execute("update alerts set sentence = 'It is 2 h old now.'")
        assert await told.round() == 0
        await raise_(pool, "one", severity="critical")
        await told.round()
        await raise_(pool, "one", severity="warning")
        await told.round()
        await raise_(pool, "one", severity="critical")
        await told.round()
    assert [m.title for m in hook.heard] == [
        "[finalsale test] warning: Refund failed",
        "[finalsale test] critical, worse: Refund failed",
    ]


async def test_what_flaps_is_told_as_coming_back_once_with_a_count_and_as_over_when_it_stays_over(
    pool: Pool, hook: Webhook
) -> None:
    async with telling(pool, hook.url) as told:
        for _ in range(5):
            await raise_(pool, "one")
            await told.round()
            await told.passes(MINUTE)
            await resolve(pool, "one")
            await told.round()
            await told.passes(MINUTE)
        assert [m.title.split()[2] for m in hook.heard] == ["critical:", "resolved:", "critical:"]
        assert "it came back 1 times within minutes" in hook.heard[-1].body
        await told.passes(10 * MINUTE)
        await told.round()
        assert [m.title.split()[2] for m in hook.heard][3:] == ["resolved:"]
        await told.passes(HOUR)
        await raise_(pool, "one")
        await told.round()
        assert len(hook.heard) == 5
        assert "came back" not in hook.heard[-1].body


async def test_routes_hear_of_their_severities_and_of_what_is_over_only_where_they_heard_of_it(
    pool: Pool, mail: Mailbox, hook: Webhook
) -> None:
    async with telling(pool, f"critical={mail.url}", f"note+warning={hook.url}") as told:
        await raise_(pool, "bad", severity="critical")
        await raise_(pool, "odd", severity="warning", kind="chargeback_open")
        await told.round()
        await resolve(pool, "bad")
        await raise_(pool, "odd", severity="critical", kind="chargeback_open")
        await told.round()
        await resolve(pool, "odd")
        await told.round()
    assert [(m.title.split()[2], "re_bad" in m.body) for m in mail.heard] == [
        ("critical:", True),
        ("critical,", False),
        ("resolved:", True),
        ("resolved:", False),
    ]
    assert [(m.title.split()[2], "re_odd" in m.body) for m in hook.heard] == [("warning:", True), ("resolved:", True)]


async def test_what_was_critical_for_long_and_is_over_before_anybody_was_told_is_told_once(
    pool: Pool, hook: Webhook
) -> None:
    async with telling(pool, hook.url) as told:
        await raise_(pool, "long", "short")
        await pool.execute("update alerts set raised_at = now() - interval '20 minutes' where cause = 'long'")
        await resolve(pool, "long", "short")
        await told.round()
        assert await told.round() == 0
    assert [(m.title, "re_long" in m.body) for m in hook.heard] == [
        ("[finalsale test] was critical: Refund failed", True)
    ]
    assert "It was so from 20" in hook.heard[0].body


async def test_a_severity_that_fell_for_a_while_and_rises_again_is_told_and_reminded_of_again(
    pool: Pool, hook: Webhook
) -> None:
    async with telling(pool, hook.url) as told:
        await raise_(pool, "one")
        for _ in range(3):
            await told.round()
            await told.passes(25 * HOUR)
        await raise_(pool, "one", severity="warning")
        await told.round()
        await told.passes(HOUR)
        await told.round()
        before = len(hook.heard)
        await raise_(pool, "one")
        await told.round()
        await told.passes(HOUR)
        await told.round()
    assert [m.title.split(":")[0][17:] for m in hook.heard[before:]] == ["critical, worse", "critical, still open"]


async def test_without_routes_nothing_is_told_and_a_route_set_later_hears_what_is_open_then(
    pool: Pool, hook: Webhook
) -> None:
    async with telling(pool) as nobody:
        await raise_(pool, "one", "two")
        await nobody.round()
        await resolve(pool, "two")
        await nobody.round()
    async with telling(pool, hook.url) as told:
        await told.round()
    assert ["re_one" in m.body and "re_two" not in m.body for m in hook.heard] == [True]


async def test_alerts_of_the_other_mode_are_not_ours_to_tell(pool: Pool, hook: Webhook) -> None:
    await raise_(pool, "one")
    await pool.execute("update alerts set realm = 'live'")
    async with telling(pool, hook.url) as told:
        assert await told.round() == 0


async def test_the_worker_process_tells_by_itself(settings: Settings, pool: Pool, hook: Webhook) -> None:
    """Though another route is set wrongly, which it tells of too."""
    urls = SecretStr(f"{hook.url} nonsense://hunter2")
    worker = WorkerProcess(settings.model_copy(update={"alert_urls": urls, "alert_private_hosts": HOST}))
    running = asyncio.create_task(worker.run())
    await raise_(pool, "one", kind="chargeback")
    await pool.execute("update alerts set look_at = now()")
    try:
        async with asyncio.timeout(40):
            while len(hook.heard) < 2:
                await asyncio.sleep(0.1)
                await pool.execute("update alerts set look_at = now() where look_at < now() + interval '5 seconds'")
                await pool.execute("update alert_tellings set made_at = now() - interval '10 seconds'")
    finally:
        worker.stop()
        await running
    assert {m.title for m in hook.heard} == {
        "[finalsale test] critical: Chargeback",
        "[finalsale test] critical: An alert route is dead",
    }
    assert "hunter2" not in str(hook.bodies)


async def test_a_worker_that_is_told_to_stop_does_not_wait_for_the_check_of_its_routes(
    settings: Settings, pool: Pool, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = [
        sys.executable,
        "-c",
        "import time; time.sleep(30)",
    ]  # in place of a library that hangs while it is loaded
    monkeypatch.setattr(alert_routes, "_command", lambda: hanging)
    worker, ready = WorkerProcess(settings.model_copy(update={"alert_urls": SecretStr(hook.url)})), asyncio.Event()
    running = asyncio.create_task(worker.run(ready.set))
    async with asyncio.timeout(30):
        await ready.wait()
        await asyncio.sleep(1)
        began = time.monotonic()
        worker.stop()
        await running
    assert time.monotonic() - began < 10


async def test_a_route_whose_check_does_not_answer_is_used_and_one_that_is_right_again_is_over(
    pool: Pool, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_routes, "CHECK_WITHIN_S", 0.001)
    slow = AlertSender(pool, Settings(alert_urls=SecretStr(hook.url)))
    await slow.check()
    assert [route.url for route in slow.routes] == [hook.url]
    monkeypatch.undo()
    for private, wrong, open_ in ((None, 0, 1), (HOST, 1, 0)):  # its address is not public, and then allowed on purpose
        sender = AlertSender(pool, Settings(alert_urls=SecretStr(hook.url), alert_private_hosts=private))
        await sender.check()
        assert len(sender.routes) == wrong
        assert await pool.fetchval("select count(*) from alerts where resolved_at is null") == open_


# together, and not too much ---------------------------------------------------------------------------------------------


async def test_two_hundred_alerts_at_once_are_one_message_that_names_them_all(pool: Pool, mail: Mailbox) -> None:
    causes = [f"c{n:03}" for n in range(200)]
    async with telling(pool, mail.url) as told:
        await raise_(pool, *causes)
        await told.round()
        (message,) = mail.heard
        assert message.title == "[finalsale test] critical: 200 alerts (200 Refund failed)"
        assert all(f"re_{cause}" in message.body for cause in causes)
        assert message.body.count("Act: ") == 20
        assert "And 180 more:" in message.body
        await resolve(pool, *causes)
        await told.round()
        assert [m.title for m in mail.heard[1:]] == ["[finalsale test] resolved: 200 alerts (200 resolved)"]


async def test_a_few_alerts_are_told_kind_by_kind(pool: Pool, hook: Webhook) -> None:
    async with telling(pool, hook.url) as told:
        await raise_(pool, "a", "b")
        await raise_(pool, "c", kind="case_overdue")
        await told.round()
    assert [("2 alerts" in m.title, "re_c" in m.body) for m in hook.heard] == [(True, False), (False, True)]


async def test_a_route_over_its_hourly_limit_hears_what_is_critical_and_later_the_rest_in_one_digest(
    pool: Pool, hook: Webhook
) -> None:
    async with telling(pool, hook.url) as told:
        await pool.execute(
            """insert into alert_messages (id, mode, route, severity, title, body, state)
               select 'old' || n, 'test', $1, 'warning', '', '', 'sent' from generate_series(1, 30) n""",
            told.sender.routes[0].name,
        )
        await raise_(pool, "w1", "w2", "w3", severity="warning")
        assert await told.round() == 0
        await raise_(pool, "bad")
        await told.round()
        assert [("re_bad" in m.body, "re_w1" in m.body) for m in hook.heard] == [(True, False)]
        await raise_(pool, "w4", severity="warning", kind="case_overdue")
        assert await told.round() == 0
        await told.passes(HOUR)
        await told.round()
    assert len(hook.heard) == 2
    assert all(f"re_w{n}" in hook.heard[1].body for n in (1, 2, 3, 4))


async def test_what_is_critical_is_not_hidden_by_how_much_else_waits(pool: Pool, hook: Webhook) -> None:
    async with telling(pool, hook.url) as told:
        await pool.execute(
            """insert into alert_messages (id, mode, route, severity, title, body, state)
               select 'old' || n, 'test', $1, 'warning', '', '', 'sent' from generate_series(1, 30) n""",
            told.sender.routes[0].name,
        )
        await raise_(pool, *(f"w{n}" for n in range(600)), severity="warning", kind="chargeback")
        await told.passes(6)
        await told.sender.plan()
        await raise_(pool, "bad")
        assert await told.round() == 1
    assert ["re_bad" in m.body for m in hook.heard] == [True]


def waits(cause: str, kind: str = "refund_failed", severity: str = "critical") -> Telling:
    since = datetime.now(UTC)
    return Telling(REALM, cause, 1, "raised", kind, severity, "", cause, "It failed.", since, 0, None, 10.0)


def test_over_the_higher_limit_a_route_hears_a_digest_every_five_minutes_and_of_a_new_kind_at_once() -> None:
    waiting = [waits("a"), waits("b"), waits("c", severity="warning")]
    over = Lately(CRITICAL_AN_HOUR, 20.0, told=frozenset({"refund_failed"}))
    assert gathered(waiting, over) == []
    assert gathered(waiting, over._replace(last_s=301.0)) == [waiting[:2]]
    new = waits("d", kind="audit_broken")
    assert gathered([*waiting, new], over) == [[*waiting[:2], new]]


async def test_a_storm_is_one_message_with_a_count_when_it_comes_and_when_it_is_over(pool: Pool, hook: Webhook) -> None:
    causes = [f"c{n:04}" for n in range(1200)]
    async with telling(pool, hook.url) as told:
        await raise_(pool, *causes)
        await told.round()
        await resolve(pool, *causes)
        await told.round()
    assert [m.title for m in hook.heard] == [
        "[finalsale test] critical: 1200 alerts (1200 Refund failed)",
        "[finalsale test] resolved: 1200 alerts (1200 resolved)",
    ]
    assert "and 680 others." in hook.heard[1].body


# until somebody has it --------------------------------------------------------------------------------------------------


async def test_a_critical_alert_is_told_again_after_1_4_and_24_hours_and_to_more_people_each_time(
    pool: Pool, mail: Mailbox, hook: Webhook
) -> None:
    async with telling(pool, f"critical={mail.url}", f"warning={hook.url}") as told:
        await raise_(pool, "one")
        told_after: list[tuple[int, int]] = []
        for hours in (0, 1, 2, 1, 1, 18, 2, 48):
            await told.passes(hours * HOUR)
            await told.round()
            told_after.append((len(mail.heard), len(hook.heard)))
        assert told_after == [(1, 0), (2, 1), (2, 1), (3, 2), (3, 2), (3, 2), (4, 3), (4, 3)]
        assert mail.heard[1].title == "[finalsale test] critical, still open: Refund failed"
        await resolve(pool, "one")
        await told.round()
        assert [box.heard[-1].title.split()[2] for box in (mail, hook)] == ["resolved:", "resolved:"]


async def test_acknowledging_stops_the_reminders_until_it_grows_worse_or_comes_back(pool: Pool, hook: Webhook) -> None:
    async with telling(pool, hook.url) as told:
        await raise_(pool, "one")
        await told.round()
        async with transaction(pool) as conn:
            (acked,) = await acknowledge(conn, REALMS, "one", "ada", "calling the bank", via="console")
            assert acked["cause"] == "one"
            with pytest.raises(NotFound, match="nobody has acknowledged"):
                await acknowledge(conn, REALMS, "one", "bob")
            with pytest.raises(ActRefused):
                await acknowledge(conn, REALMS, "all", "  ")
            act = await conn.fetchrow("select by_name, via, act, subject, reason from operator_acts")
            assert act is not None
            assert tuple(act) == ("ada", "console", "alert.acknowledge", "one", "calling the bank")
        for _ in range(3):
            await told.passes(25 * HOUR)
            assert await told.round() == 0
        await resolve(pool, "one")
        await told.round()
        await told.passes(HOUR)
        await raise_(pool, "one")
        await told.round()
        await told.passes(HOUR)
        await told.round()
    assert [m.title.split(":")[0] for m in hook.heard] == [
        "[finalsale test] critical",
        "[finalsale test] resolved",
        "[finalsale test] critical",
        "[finalsale test] critical, still open",
    ]


async def test_who_had_it_has_it_no_more_when_it_comes_back_after_people_heard_that_it_was_over(
    pool: Pool, hook: Webhook
) -> None:
    async with telling(pool, hook.url) as told:
        await raise_(pool, "one")
        await told.round()
        async with transaction(pool) as conn:
            await acknowledge(conn, REALMS, "one", "ada")
        await resolve(pool, "one")
        await told.round()
        await told.passes(5 * MINUTE)
        await raise_(pool, "one")
        await told.round()
        await told.passes(HOUR)
        await told.round()
    assert [m.title.split(":")[0][17:] for m in hook.heard] == [
        "critical",
        "resolved",
        "critical",
        "critical, still open",
    ]


async def test_an_acknowledged_warning_that_becomes_critical_is_told_and_reminded_of(pool: Pool, hook: Webhook) -> None:
    async with telling(pool, hook.url) as told:
        await raise_(pool, "one", severity="warning")
        await told.round()
        async with transaction(pool) as conn:
            await acknowledge(conn, REALMS, "all", "ada")
        await raise_(pool, "one", severity="critical")
        await told.round()
        await told.passes(HOUR)
        await told.round()
    assert [m.title.split(":")[0][17:] for m in hook.heard] == ["warning", "critical, worse", "critical, still open"]


# whatever fails ---------------------------------------------------------------------------------------------------------


async def test_a_sender_killed_after_the_receiver_answered_sends_again_under_the_same_id(
    pool: Pool, hook: Webhook, database_url: str
) -> None:
    """A real process dies by SIGKILL while the webhook has the message; the lease ends, and another worker takes it up."""
    async with telling(pool, hook.url) as told:
        await raise_(pool, "one")
        await told.passes(6)
        await told.sender.plan()
        await told.passes(6)
        await told.sender.plan()
        script = """
            import asyncio
            from worker.alerts import AlertSender
            from worker.db import connect_pool
            from worker.settings import read_settings
            async def main():
                settings = read_settings()
                sender = AlertSender(await connect_pool(settings.database_dsn(), role="test"), settings)
                await sender.check()
                await sender.send_due(sender.routes[0])
            asyncio.run(main())
        """
        environment = {
            **os.environ,
            "DATABASE_URL": database_url,
            "FINALSALE_ALERT_URLS": hook.url,
            "FINALSALE_ALERT_PRIVATE_HOSTS": HOST,
        }
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", textwrap.dedent(script), cwd=ROOT, env=environment
        )

        def kill() -> int:
            os.kill(child.pid, signal.SIGKILL)
            return 200

        hook.answer = kill
        async with asyncio.timeout(30):
            assert await child.wait() == -signal.SIGKILL
        hook.answer = lambda: 200
        assert await told.send() == 0  # still leased to the dead
        await told.passes(61)
        assert await told.send() == 1
        assert await told.send() == 0
    assert len(hook.heard) == 2
    assert hook.heard[0] == hook.heard[1]


async def test_mail_that_is_sent_again_has_the_same_message_id(pool: Pool, mail: Mailbox) -> None:
    async with telling(pool, mail.url) as told:
        await raise_(pool, "one")
        await told.round()
        await pool.execute("update alert_messages set state = 'waiting', next_at = now()")
        await told.send()
    assert len(mail.mails) == 2
    assert mail.mails[0]["message-id"] == mail.mails[1]["message-id"]
    assert str(mail.mails[0]["message-id"]).startswith("<alm_")


async def test_a_dead_route_waits_longer_each_time_and_hears_all_it_missed_in_one_message(
    pool: Pool, mail: Mailbox, hook: Webhook
) -> None:
    mail.answer = "451 try again later"
    async with telling(pool, mail.url, hook.url) as told:
        await raise_(pool, "one")
        await told.round()
        waits = []
        for n in range(4):
            row = await pool.fetchrow(
                """select attempts, error, extract(epoch from next_at - now())::float8 as wait_s
                   from alert_messages where state = 'waiting'"""
            )
            assert row is not None
            assert row["attempts"] == n + 1
            assert row["error"] == "the service could not be reached or refused it"
            waits.append(row["wait_s"])
            await raise_(pool, f"more{n}")
            await told.passes(row["wait_s"] + 1)
            await told.round()
        assert [0.7 < wait / expected < 1.3 for wait, expected in zip(waits, (15, 30, 60, 120), strict=True)] == [
            True
        ] * 4
        assert len(hook.heard) == 5
        mail.answer = "250 OK"
        await told.passes(10 * MINUTE)
        await told.round()
        await told.round()
    assert ["re_one" in m.body for m in mail.heard] == [True, False]
    assert all(f"re_more{n}" in mail.heard[1].body for n in range(4))


async def test_a_message_that_is_refused_for_what_it_says_is_told_in_short_and_what_is_critical_goes_past_it(
    pool: Pool, hook: Webhook
) -> None:
    hook.refuses = "re_poison"
    async with telling(pool, hook.url) as told:
        await raise_(pool, "poison", severity="warning")
        await told.round()
        await raise_(pool, "boom")
        await told.round()
        assert [m.title for m in hook.heard] == ["[finalsale test] critical: Refund failed"]
        for _ in range(2):
            await told.passes(MINUTE)
            await told.send()
        assert [m.title for m in hook.heard[1:]] == ["[finalsale test] warning: 1 alert, told in short"]
        await raise_(pool, "next", severity="warning")
        await told.round()
        assert "re_next" in hook.heard[2].body
        async with connection(pool) as conn:
            (route,) = await alerts.routes_state(conn, told.sender.settings, told.sender.routes)
        assert (route["sent"], route["waiting"], route["failed"]) == (3, 0, 1)
        assert route["error"] == "the service answered 400"


async def test_a_service_that_refuses_even_what_says_nothing_is_a_dead_route(pool: Pool, hook: Webhook) -> None:
    hook.answer = lambda: 401
    async with telling(pool, hook.url) as told:
        await raise_(pool, "one")
        await told.round()
        for _ in range(2):
            await pool.execute("update alert_messages set refusals = 2")
            await told.passes(HOUR / 2)
            await told.send()
        async with connection(pool) as conn:
            (failed,) = await conn.fetch(queries.failed_routes.sql, REALMS)
        assert "the service answered 401" in failed["sentence"]


async def test_what_was_overtaken_is_not_told_afterwards_as_if_it_were_news(pool: Pool, hook: Webhook) -> None:
    async with telling(pool, hook.url) as told:
        await raise_(pool, "one", "two", severity="warning")
        hook.answer = lambda: 503
        await told.round()
        hook.answer = lambda: 200
        await raise_(pool, "one")
        await told.round()
        await told.passes(2 * MINUTE)
        await told.round()
    assert [("re_one" in m.body, "re_two" in m.body, m.title.split()[2]) for m in hook.heard] == [
        (True, False, "critical,"),
        (False, True, "warning:"),
    ]


async def test_after_two_hours_the_other_routes_hear_that_a_route_is_dead_and_that_it_works_again(
    pool: Pool, mail: Mailbox, hook: Webhook
) -> None:
    mail.answer = "451 try again later"
    async with telling(pool, mail.url, f"note={hook.url}") as told:
        name = told.sender.routes[0].name
        await raise_(pool, "one", severity="warning")
        for _ in range(4):
            await told.round()
            await told.passes(HOUR)
        await told.round()
        assert [m.title for m in hook.heard] == ["[finalsale test] warning: An alert route is dead"]
        assert name in hook.heard[0].body
        mail.answer = "250 OK"
        await told.passes(HOUR)
        await told.round()
        await told.round()
    assert [m.title for m in hook.heard][1:] == ["[finalsale test] resolved: An alert route is dead"]
    assert (
        await pool.fetchval("select count(*) from alert_tellings where kind = $1 and route = $2", ROUTE_FAILED, name)
        == 0
    )


async def test_a_slow_route_does_not_hold_up_the_other(pool: Pool, mail: Mailbox, hook: Webhook) -> None:
    hook.slow_s = 3.0
    async with telling(pool, hook.url, mail.url) as told:
        await raise_(pool, "one")
        await told.passes(6)
        await told.sender.plan()
        await told.passes(6)
        await told.sender.plan()
        started = time.monotonic()
        slow = asyncio.create_task(told.sender.send_due(told.sender.routes[0]))
        await told.sender.send_due(told.sender.routes[1])
        took = time.monotonic() - started
        assert len(mail.heard) == 1
        assert took < 3.0
        await slow
    assert len(hook.heard) == 1


async def test_what_waits_for_a_route_that_is_set_no_more_is_given_up_after_an_hour_and_says_why(
    pool: Pool, hook: Webhook
) -> None:
    async with telling(pool, f"json://{HOST}:{closed_port()}/") as old:
        await raise_(pool, "one")
        await old.round()
    async with telling(pool, hook.url) as told:
        await told.passes(2 * HOUR)
        await told.round()
        async with connection(pool) as conn:
            (alert,) = await alerts.shown(conn, REALMS, "one")
    states = {(d["route"].split("-")[0], d["state"], d["error"]) for d in alert["deliveries"] if d["state"] == "failed"}
    assert states == {("json", "failed", "FINALSALE_ALERT_URLS does not name this route any more")}


async def test_two_workers_tell_nothing_twice(pool: Pool, hook: Webhook) -> None:
    async with telling(pool, hook.url) as one, telling(pool, hook.url) as two:
        await raise_(pool, *(f"c{n}" for n in range(10)))
        await one.passes(6)
        await asyncio.gather(one.sender.plan(), two.sender.plan())
        await one.passes(6)
        await asyncio.gather(one.sender.plan(), two.sender.plan())
        await asyncio.gather(one.send(), two.send())
    assert len(hook.heard) == 1


async def test_no_e_mail_address_card_number_or_secret_leaves_in_a_message(pool: Pool, mail: Mailbox) -> None:
    async with telling(pool, mail.url) as told:
        await raise_(pool, "one")
        await pool.execute(
            "update alerts set sentence = 'ann@example.org paid with 4242 4242 4242 4242 and sk_live_abcdef12 was seen'"
        )
        await told.round()
    (message,) = mail.heard
    assert "[email] paid with [card] and [secret] was seen" in message.body


# commands ---------------------------------------------------------------------------------------------------------------


async def finalsale(*args: str, **environment: str) -> tuple[int, Any]:
    """A command with --json: its exit code and its document."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker.cli", *args, "--json"),
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await child.communicate()
    assert child.returncode is not None
    return child.returncode, msgspec.json.decode(out) if out else None


async def test_the_commands_show_acknowledge_and_try_and_never_show_a_routes_url(
    pool: Pool, hook: Webhook, database_url: str
) -> None:
    urls = f"{hook.url}?+token=hunter2 critical=json://{HOST}:{closed_port()}/"
    environment = {
        "DATABASE_URL": database_url,
        "FINALSALE_ALERT_URLS": urls,
        "FINALSALE_ALERT_PRIVATE_HOSTS": HOST,
    }
    async with telling(pool, *urls.split()) as told:
        await raise_(pool, "one")
        await told.round()
    code, acked = await finalsale("alerts", "ack", "one", "--by", "ada", "--note", "on it", **environment)
    assert (code, acked["acknowledged"][0]["cause"]) == (0, "one")
    code, listed = await finalsale("alerts", "list", **environment)
    assert (code, listed[0]["acked_by"], listed[0]["told_at"] is not None) == (0, "ada", True)
    code, shown = await finalsale("alerts", "show", "one", **environment)
    assert sorted((d["state"], d["step"]) for d in shown[0]["deliveries"]) == [
        ("sent", "raised"),
        ("waiting", "raised"),
    ]
    code, routes = await finalsale("alerts", "routes", **environment)
    assert [(r["severities"], r["sent"], r["waiting"]) for r in routes] == [
        (["critical", "warning"], 1, 0),
        (["critical"], 0, 1),
    ]
    code, tried = await finalsale("alerts", "test", **environment)
    assert (code, [t["sent"] for t in tried]) == (1, [True, False])
    assert "note: Test" in hook.heard[-1].title
    code, tried = await finalsale("alerts", "test", "--severity", "warning", **environment)
    assert (code, [t["sent"] for t in tried]) == (0, [True])
    assert not any(secret in str([acked, listed, shown, routes, tried]) for secret in ("hunter2", HOST, "hook"))
