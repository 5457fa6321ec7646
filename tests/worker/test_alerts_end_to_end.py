"""Each kind of alert from its cause at Stripe or in the books to a person's mail and webhook: told once, and told once when it is over."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, NamedTuple

import pytest

from tests.worker.merchant import Merchant, merchant, policy_with
from tests.worker.receivers import mailbox, webhook
from tests.worker.test_alerts import Told, telling
from tests.worker.test_audit import tamper, written
from tests.worker.test_nightly import night
from tests.worker.test_vigil import NEW, OLD, URL, beat, deliveries, later, look, night_with
from worker import cases, conditions, review
from worker.alert_kinds import KINDS
from worker.alerts import acknowledge
from worker.db import Pool, connection, queries, transaction
from worker.settings import Settings

Obj = dict[str, Any]


class Cause(NamedTuple):
    """How a kind comes about, and how it ends; what the first leaves is given to the second."""

    begin: Callable[[Merchant], Awaitable[Any]]
    end: Callable[[Merchant, Any], Awaitable[None]]


async def bought(m: Merchant) -> Obj:
    """The charge of one subscription."""
    return m.charge_of(m.buy(m.customer()))


async def rejected(m: Merchant, subject: str) -> None:
    async with transaction(m.pool) as conn:
        await review.reject(conn, ["test"], subject, by="Ann", note="seen to")


async def noted(m: Merchant, subject: str) -> None:
    async with transaction(m.pool) as conn:
        await review.note(conn, ["test"], subject, by="Ann", text="seen to")


async def charged_after_the_end(m: Merchant) -> str:
    sub = m.buy(m.customer())
    m.books.cancel(sub)
    m.books.advance(60)
    m.books.charge_after_end(sub)
    invoice: str = m.books.linked("invoice", "subscription", sub["id"])[-1]["id"]
    return invoice


async def refunded_by_hand(m: Merchant) -> str:
    refund: str = m.books.create_refund(await bought(m))["id"]
    return refund


async def refund_failed(m: Merchant) -> str:
    _, second = m.double_click()
    await m.to_the_end()
    m.books.fail_refund(m.refunds[0])
    charge: str = m.charge_of(second)["id"]
    return charge


async def in_doubt(m: Merchant) -> None:
    m.double_click()
    await m.hear()
    m.fault({"kind": "timeout_before", "path": "/v1/refunds", "method": "POST", "hold_s": 2})
    await m.perform()
    await later(m.pool, 0.1)


async def carried_out(m: Merchant, _: None) -> None:
    m.fault()
    await m.to_the_end()


async def limit_reached(m: Merchant) -> str:
    _, second = m.double_click()
    await m.to_the_end()
    charge: str = m.charge_of(second)["id"]
    return charge


async def pause(m: Merchant) -> None:
    async with transaction(m.pool) as conn:
        await review.pause(conn, on=True, by="Ann")
    await later(m.pool, 30)


async def resume(m: Merchant, _: None) -> None:
    async with transaction(m.pool) as conn:
        await review.pause(conn, on=False, by="Ann")


async def waits(m: Merchant) -> str:
    _, second = m.double_click()
    await m.hear()
    await later(m.pool, 30)
    charge: str = m.charge_of(second)["id"]
    return charge


async def many_wait(m: Merchant) -> None:
    for _ in range(conditions.SINGLY + 1):
        await waits(m)


async def all_rejected(m: Merchant, _: None) -> None:
    asking = "select distinct decision_subject from actions where state in ('proposed', 'review')"
    for row in await m.pool.fetch(asking):
        await rejected(m, row["decision_subject"])


def disputed(**how: Any) -> Callable[[Merchant], Awaitable[Obj]]:
    async def begin(m: Merchant) -> Obj:
        dispute: Obj = m.books.open_dispute(await bought(m), **how)
        return dispute

    return begin


async def lost(m: Merchant) -> Obj:
    dispute = await disputed()(m)
    m.books.set_dispute(dispute, "lost")
    return dispute


def becomes(status: str) -> Callable[[Merchant, Obj], Awaitable[None]]:
    async def end(m: Merchant, dispute: Obj) -> None:
        m.books.set_dispute(dispute, status)

    return end


async def warned(m: Merchant) -> Obj:
    charge = await bought(m)
    m.books.warn_of_fraud(charge)
    return charge


async def given_back(m: Merchant, charge: Obj) -> None:
    m.books.create_refund(charge)


def events_become(state: str) -> Callable[[Merchant], Awaitable[None]]:
    async def begin(m: Merchant) -> None:
        await bought(m)
        await m.hear()
        await m.pool.execute("update inbox set state = $1, error = 'KeyError'", state)

    return begin


async def replayed(m: Merchant, _: Any) -> None:
    await m.pool.execute("update inbox set state = 'waiting', next_at = now() where state <> 'done'")
    await m.drain()


async def not_drained(m: Merchant) -> None:
    await bought(m)
    await m.hear()
    await m.pool.execute("update inbox set state = 'waiting', next_at = now() - interval '5 minutes'")


async def of_tomorrow(m: Merchant) -> None:
    await bought(m)
    await m.hear()
    await m.pool.execute("update inbox set api_version = '2027-09-30.zinnia'")


async def a_day_passes(m: Merchant, _: None) -> None:
    await later(m.pool, 25)


async def unheard(m: Merchant) -> None:
    await m.pool.execute("insert into schedule_runs (name, due_at, state) values ('reconcile', now(), 'done')")
    await later(m.pool, 24)
    await bought(m)
    m.books.advance(1200)
    m.lose()


async def heard_again(m: Merchant, _: None) -> None:
    await bought(m)
    await m.hear()


async def disabled(m: Merchant) -> None:
    m.sandbox.configure({"webhook": {"status": "disabled"}})


async def enabled(m: Merchant, _: None) -> None:
    m.sandbox.configure({"webhook": {"status": "enabled"}})
    await later(m.pool, 0.1)


async def rolled(m: Merchant) -> None:
    await deliveries(m.settings, m.pool, OLD, (OLD,))
    await deliveries(m.settings, m.pool, OLD, (NEW, OLD))


async def new_secret_set(m: Merchant, _: None) -> None:
    await deliveries(m.settings, m.pool, f"{OLD},{NEW}", (NEW, OLD))


async def no_night(m: Merchant) -> None:
    await m.pool.execute(
        """insert into schedule_runs (name, due_at, state)
           select 'reconcile', date_trunc('day', (now() - interval '3 hours') at time zone 'utc') at time zone 'utc'
                  + interval '3 hours' - interval '1 day', 'done'"""
    )


async def night_done(m: Merchant, _: None) -> None:
    await m.pool.execute("update schedule_runs set due_at = due_at + interval '1 day'")


async def residual(m: Merchant) -> None:
    await night_with(m.pool, "run_1", 30, 0)


async def closed_books(m: Merchant, _: None) -> None:
    await night_with(m.pool, "run_2", 0, 0)


async def chain_edited(m: Merchant) -> bytes:
    await written(m.pool, "a", "b")
    kept: bytes = await m.pool.fetchval("select hash from audit_chain order by seq desc limit 1")
    await tamper(m.pool, "update audit_chain set hash = sha256(hash) where seq = (select max(seq) from audit_chain)")
    return kept


async def chain_restored(m: Merchant, kept: bytes) -> None:
    newest = "where seq = (select max(seq) from audit_chain)"
    await tamper(m.pool, f"update audit_chain set hash = '\\x{kept.hex()}'::bytea {newest}")


async def clock_off(m: Merchant) -> None:
    m.books.set_clock(int(time.time()) - 60, running=True)
    await m.gateway.document("/v1/charges", {"limit": 1})


async def clock_right(m: Merchant, _: None) -> None:
    m.books.set_clock(int(time.time()), running=True)
    await m.gateway.document("/v1/charges", {"limit": 1})
    async with connection(m.pool) as conn:
        await queries.drop_signal(conn, name="clock", place="*")  # as the same worker's next look does


async def worker_gone(m: Merchant) -> None:
    await beat(m.pool, "here pid 1", 60, 0)
    await beat(m.pool, "there pid 2", 60, 5)


async def worker_replaced(m: Merchant, _: None) -> None:
    await beat(m.pool, "there pid 3", 4, 0)


async def asked_for_help(m: Merchant, due_in: timedelta) -> str:
    """A support request, an hour before its answer is late, or after."""
    request = {"email": "ada@example.com", "date": "2026-01-31", "description": "I was charged and know not why"}
    async with transaction(m.pool) as conn:
        case = await cases.open_case(conn, m.court.policy, "test", cases.read_request(request), by="app")
    await m.pool.execute("update cases set alert_at = now() - interval '1 minute', due_at = now() + $1", due_in)
    await look_at_cases(m)
    return str(case["id"])


async def nearly_due(m: Merchant) -> str:
    return await asked_for_help(m, timedelta(hours=1))


async def overdue(m: Merchant) -> str:
    return await asked_for_help(m, timedelta(hours=-1))


async def look_at_cases(m: Merchant) -> None:
    async with transaction(m.pool) as conn:
        await cases.alert_cases(conn)


async def answered(m: Merchant, case: str) -> None:
    async with transaction(m.pool) as conn:
        await cases.close(conn, ["test"], case, by="Ann", text="answered on the phone")
    await look_at_cases(m)


async def night_stopped(m: Merchant) -> None:
    m.fault({"kind": "502_before", "rate": 1.0, "path": "/v1/charges", "method": "GET"})
    (report,) = await night(m.settings, m.pool, m.sandbox)
    assert report.exit == 2


async def night_taken_up(m: Merchant, _: None) -> None:
    m.fault()
    await m.pool.execute("update schedule_runs set started_at = started_at - interval '11 minutes'")
    (report,) = await night(m.settings, m.pool, m.sandbox)
    assert report.unread_total == 0


CAUSES = {
    "case_near_due": Cause(nearly_due, answered),
    "case_overdue": Cause(overdue, answered),
    "nightly_incomplete": Cause(night_stopped, night_taken_up),
    "charge_after_cancellation": Cause(charged_after_the_end, rejected),
    "out_of_policy_refund": Cause(refunded_by_hand, noted),
    "refund_failed": Cause(refund_failed, rejected),
    "refund_in_doubt": Cause(in_doubt, carried_out),
    "refund_limit": Cause(limit_reached, rejected),
    "refunds_paused": Cause(pause, resume),
    "review_waiting": Cause(waits, rejected),
    "reviews_waiting": Cause(many_wait, all_rejected),
    "chargeback": Cause(disputed(), becomes("won")),
    "inquiry": Cause(disputed(inquiry=True), becomes("warning_closed")),
    "deadline": Cause(disputed(), becomes("won")),
    "chargeback_lost": Cause(lost, becomes("won")),
    "early_fraud_warning": Cause(warned, given_back),
    "events_dead": Cause(events_become("dead"), replayed),
    "events_quarantined": Cause(events_become("quarantined"), replayed),
    "backlog_growing": Cause(not_drained, replayed),
    "api_version_unknown": Cause(of_tomorrow, a_day_passes),
    "intake_silent": Cause(unheard, heard_again),
    "endpoint_misconfigured": Cause(disabled, enabled),
    "secret_expiring": Cause(rolled, new_secret_set),
    "nightly_not_run": Cause(no_night, night_done),
    "books_do_not_close": Cause(residual, closed_books),
    "audit_broken": Cause(chain_edited, chain_restored),
    "clock_skew": Cause(clock_off, clock_right),
    "worker_silent": Cause(worker_gone, worker_replaced),
}
DEPLOYED: dict[str, dict[str, Any]] = {
    # the sandbox gives nine days and more to answer a chargeback
    "deadline": {"policy": policy_with(('deadline_alerts = ["7d"', 'deadline_alerts = ["30d", "7d"'))},
    "refund_limit": {"policy": policy_with(("per_day     = { usd = 500000", "per_day     = { usd = 100"))},
    "review_waiting": {"refunds": "review"},
    "reviews_waiting": {"refunds": "review"},
}
ELSEWHERE = {
    "refunds_failed": "tests/worker/test_vigil.py",
    "refunds_in_doubt": "tests/worker/test_vigil.py",
    "intake_unseen": "tests/worker/test_vigil.py",
    "proration_after_cancellation": "tests/handlers/test_cancellations.py",
    "refunded_by_hand": "tests/handlers/test_out_of_policy.py",
    "unknown_status": "tests/handlers/test_chargebacks.py",
    "notice_failed": "tests/worker/test_notices.py",
    "audit_late": "tests/worker/test_audit.py",
    "alert_route_failed": "tests/worker/test_alerts.py",
}
"""Kinds whose raising and resolving is shown there; how they are told is the same for all."""

MAILED = ("refund_failed", "deadline", "review_waiting", "nightly_incomplete", "audit_broken")
"""Kinds that go by mail too: how they are told is the same for all, and each message costs a process."""


def test_every_kind_is_provoked_here_or_where_it_is_raised() -> None:
    assert set(CAUSES) | set(ELSEWHERE) == set(KINDS)


@pytest.mark.parametrize("kind", CAUSES)
async def test_it_is_told_once_and_once_more_when_it_is_over(
    kind: str, settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "SINGLY", 2)
    monkeypatch.setattr(conditions, "NIGHT_LATE_S", 0)  # at whatever time of day this runs
    cause, title = CAUSES[kind], KINDS[kind].title
    async with (
        mailbox() as mail,
        webhook() as hook,
        merchant(settings, pool, **DEPLOYED.get(kind, {})) as m,
        telling(
            pool, *(f"critical+warning+note={one.url}" for one in (hook, mail)[: 2 if kind in MAILED else 1])
        ) as told,
    ):
        receivers = (hook, mail) if kind in MAILED else (hook,)
        m.settings = m.settings.model_copy(update={"public_url": URL})
        m.sandbox.configure({"webhook": {"url": URL, "secrets": [OLD]}})
        left = await cause.begin(m)
        for _ in range(2):
            await seen(m, told, hear=kind not in ("intake_silent", "backlog_growing"))
        for receiver in receivers:
            mine = [message for message in receiver.heard if title in message.title]
            assert len(mine) == 1, [message.title for message in receiver.heard]
            assert "Act: finalsale " in mine[0].body
            assert KINDS[kind].why in mine[0].body
            assert "@" not in mine[0].body
        await cause.end(m, left)
        for _ in range(2):
            await seen(m, told)
        for receiver in receivers:
            titles = [message.title for message in receiver.heard if title in message.title]
            assert len(titles) == 2
            assert "resolved" in titles[1]


async def test_what_is_many_times_more_than_was_acknowledged_is_told_again_and_over_once(
    settings: Settings, pool: Pool
) -> None:
    async with webhook() as hook, merchant(settings, pool) as m, telling(pool, hook.url) as told:

        async def dead(count: int) -> None:
            await pool.execute(
                """insert into inbox (event_id, realm, type, created_at, payload, state, error)
                   select 'evt_' || n, 'test', 'charge.succeeded', now(), '', 'dead', 'boom' from generate_series(1, $1) n
                   on conflict do nothing""",
                count,
            )
            await seen(m, told, hear=False)
            await seen(m, told, hear=False)

        await dead(1)
        async with connection(pool) as conn:
            await acknowledge(conn, ["test"], "events_dead:inbox", "Ann")
        await dead(5)
        await dead(499)
        await dead(500)
        await pool.execute("update inbox set state = 'done'")
        await dead(0)
        title = "Events that cannot be worked on"
        heard = [message for message in hook.heard if title in message.title]
        ways = ("critical", "critical, many more", "resolved")
        assert [message.title for message in heard] == [f"[finalsale test] {way}: {title}" for way in ways]
        assert "499 events" in heard[1].body


async def seen(m: Merchant, told: Told, *, hear: bool = True) -> None:
    """What a worker does: hear, look, tell."""
    if hear:
        await m.hear()
    await look(m.pool, m.settings, m.gateway, times=1)
    await told.round()
