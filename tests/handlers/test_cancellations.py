"""Clause 1, row by row: how a subscription stands, until when it serves, and what was charged or credited after its end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from random import Random
from typing import Any

import msgspec
import pytest

from handlers.account import Access, Act, ActKind, Severity, Way
from handlers.cancellations import Cancellations, judge_access
from handlers.customer import (
    CustomerFile,
    CustomerId,
    Fact,
    ScheduleId,
    SubscriptionId,
    SubscriptionSchedule,
    at,
)
from handlers.decisions import Verdict
from handlers.terms import Policy
from tests.handlers.history import DAY, HOUR, MINUTE, MONTH, POLICY, T0, Bought, History, Sold, policy_with

CUSTOMER = CustomerId("cus_A")
NOW = at(T0 + 10 * DAY)
CREDIT = Sold(amount=-1450, proration=True)


def judged(
    h: History,
    *,
    now: datetime = NOW,
    acts: tuple[Act, ...] = (),
    policy: Policy = POLICY,
    test_clocks: bool = False,
    facts: list[Fact] | None = None,
) -> Cancellations:
    file = CustomerFile(h.tellings if facts is None else facts)
    return judge_access(file, CUSTOMER, policy, now, acts, test_clocks=test_clocks)


def extension(until: int, at_: int = DAY, **over: Any) -> Act:
    return Act(
        id="act_ext",
        kind=ActKind.EXTEND,
        customer=CUSTOMER,
        at=T0 + at_,
        by="ada",
        reason="outage",
        case="case_7",
        subscription=SubscriptionId("sub_0001"),
        until=T0 + until,
        **over,
    )


def scheduled(h: History, sub: Bought, status: str, ends: int, *, end_behavior: str = "cancel") -> None:
    id_ = h.id("sub_sched")
    h.tell(
        SubscriptionSchedule(
            id=id_,
            as_of=T0 + 1,
            customer=CUSTOMER,
            subscription=SubscriptionId(sub.id),
            status=status,
            end_behavior=end_behavior,
            ends_at=T0 + ends,
            created=T0 + 1,
        )
    )
    h.change(sub.id, schedule=ScheduleId(id_))


# access until ------------------------------------------------------------------------------------------------------------

Row = tuple[str, Callable[[History], object], Way, int | None, str, tuple[Act, ...]]
"""What it is called, the story, the way, until when (seconds after T0), what the cause holds, extensions."""
ROWS: list[Row] = []


def row(
    name: str, way: Way, until: int | None, holds: str = "", *acts: Act
) -> Callable[[Callable[[History], object]], Callable[[History], object]]:
    def told(story: Callable[[History], object]) -> Callable[[History], object]:
        ROWS.append((name, story, way, until, holds, acts))
        return story

    return told


@row("paid and running: until the end of what was paid", Way.RENEWS, MONTH, "is active and renews")
def _(h: History) -> None:
    h.subscribe()


@row("renewed: until the end of the newest paid period", Way.RENEWS, 2 * MONTH)
def _(h: History) -> None:
    h.renew(h.subscribe())


@row("a renewal that is not paid buys nothing", Way.UNPAID, MONTH, "a payment is due, which is no end")
def _(h: History) -> None:
    sub = h.subscribe()
    h.change(h.renew(sub).invoice, status="open")
    h.change(sub.id, when=MONTH, status="past_due")


@row("unpaid is no end", Way.UNPAID, MONTH)
def _(h: History) -> None:
    h.change(h.subscribe().id, status="unpaid")


@row("incomplete: nothing was paid yet", Way.UNPAID, None, "nothing was paid or tried")
def _(h: History) -> None:
    sub = h.subscribe(status="incomplete")
    h.change(sub.first.invoice, status="open")


@row("incomplete_expired never began", Way.NEVER_BEGAN, None, "never began", extension(2 * MONTH))
def _(h: History) -> None:
    sub = h.subscribe(status="incomplete")
    h.change(sub.first.invoice, status="void")
    h.change(sub.id, when=DAY, status="incomplete_expired", ended_at=T0 + DAY, trial_end=T0 + DAY)


@row("a coupon of 100 % counts as paid", Way.RENEWS, MONTH)
def _(h: History) -> None:
    h.subscribe(0, Sold(discount=2900))


@row("a proration, a pack and usage buy no period", Way.RENEWS, MONTH)
def _(h: History) -> None:
    sub = h.subscribe()
    pack = Sold(price="price_pack_100", amount=1000, once=True)
    usage = Sold(price="price_usage", metered=True)
    h.bill(sub, DAY, pack, reason="manual", paid_when=DAY, end=3 * MONTH)
    billed = h.bill(sub, DAY, usage, reason="subscription_cycle", paid_when=DAY, end=4 * MONTH)
    lines = tuple(msgspec.structs.replace(line, metered=True) for line in h.latest[billed.invoice].lines)
    h.change(billed.invoice, lines=lines)
    h.bill(sub, DAY, usage, reason="subscription_threshold", paid_when=DAY, end=5 * MONTH)


@row("a plan changed at once for a longer period, which was paid", Way.RENEWS, DAY + 12 * MONTH)
def _(h: History) -> None:
    sub = h.subscribe()
    h.bill(sub, DAY, Sold(amount=29000), reason="subscription_update", paid_when=DAY, end=DAY + 12 * MONTH)


@row("a year that became a month, the rest credited: the month serves", Way.RENEWS, DAY + MONTH)
def _(h: History) -> None:
    sub = h.subscribe(0, Sold(amount=29000), period_s=12 * MONTH)
    billed = h.bill(
        sub,
        DAY,
        Sold(amount=-28000, proration=True, period=12 * MONTH - DAY),
        Sold(amount=2900),
        reason="subscription_update",
        paid_when=DAY,
        end=DAY + MONTH,
    )
    first, second = h.latest[billed.invoice].lines
    item = f"si_{sub.id}_0"
    lines = tuple(msgspec.structs.replace(line, subscription_item=item) for line in (first, second))
    h.change(billed.invoice, lines=lines)


@row("an upgrade within the period: credit and charge leave its end as it was", Way.RENEWS, MONTH)
def _(h: History) -> None:
    sub = h.subscribe()
    up = Sold(amount=4000, proration=True)
    h.bill(sub, DAY, CREDIT, up, reason="subscription_update", paid_when=DAY, end=MONTH)


@row("trialing: until the trial's end", Way.RENEWS, 7 * DAY, "is trialing")
def _(h: History) -> None:
    h.subscribe(trial_until=7 * DAY)


@row("a trial cancelled with its end", Way.ENDING, 7 * DAY, "ends on 2026-01-08T00:00:00Z")
def _(h: History) -> None:
    h.schedule_end(h.subscribe(trial_until=7 * DAY), DAY)


@row("a trial that ended by itself", Way.ENDED, 7 * DAY)
def _(h: History) -> None:
    h.end(h.subscribe(trial_until=7 * DAY), 7 * DAY)


@row("a trial ended at once", Way.ENDED_AT_ONCE, DAY, "before the end of what was paid or tried")
def _(h: History) -> None:
    h.end(h.subscribe(trial_until=7 * DAY), DAY)


@row("cancelled with the period: serves until its end (1.2)", Way.ENDING, MONTH, "asked for on 2026-01-02T00:00:00Z (cancellation_requested) (1.1, 1.2)")  # fmt: skip
def _(h: History) -> None:
    sub = h.subscribe()
    h.schedule_end(sub, DAY)
    h.change(sub.id, cancellation_reason="cancellation_requested")


@row("an end set later than what was paid lengthens nothing", Way.ENDING, MONTH, "ends on 2026-03-02T00:00:00Z")
def _(h: History) -> None:
    h.change(h.subscribe().id, when=DAY, cancel_at=T0 + 2 * MONTH, canceled_at=T0 + DAY)


@row("an end set earlier is the end", Way.ENDING, 20 * DAY)
def _(h: History) -> None:
    h.change(h.subscribe().id, when=DAY, cancel_at=T0 + 20 * DAY, canceled_at=T0 + DAY)


@row("and stays it when it has come", Way.ENDED_AT_ONCE, 20 * DAY)
def _(h: History) -> None:
    sub = h.subscribe()
    h.change(sub.id, when=20 * DAY, status="canceled", cancel_at=T0 + 20 * DAY, ended_at=T0 + 20 * DAY)


@row("a cancellation taken back renews", Way.RENEWS, MONTH)
def _(h: History) -> None:
    sub = h.subscribe()
    h.schedule_end(sub, DAY)
    h.change(sub.id, when=2 * DAY, cancel_at_period_end=False, canceled_at=None)


@row("ended with the period", Way.ENDED, MONTH, "ended on 2026-01-31T00:00:00Z")
def _(h: History) -> None:
    h.end(h.subscribe(), MONTH)


@row("ended weeks later, when dunning gave up: what was paid ended before", Way.ENDED, MONTH)
def _(h: History) -> None:
    h.end(h.subscribe(), MONTH + 20 * DAY)


@row("ended at once: nothing after (1.3)", Way.ENDED_AT_ONCE, 5 * DAY, "(1.3)")
def _(h: History) -> None:
    h.end(h.subscribe(), 5 * DAY)


@row("ended at once with a credit is still ended at once", Way.ENDED_AT_ONCE, 5 * DAY)
def _(h: History) -> None:
    sub = h.subscribe()
    h.end(sub, 5 * DAY)
    h.bill(sub, 5 * DAY, CREDIT, reason="subscription_update", paid_when=5 * DAY, end=MONTH)


@row("past due and cancelled: the end counts", Way.ENDING, MONTH, "(past_due)")
def _(h: History) -> None:
    h.change(h.subscribe().id, when=DAY, status="past_due", cancel_at=T0 + 2 * MONTH)


@row("paused is no end", Way.PAUSED, MONTH, "is paused, which is no end")
def _(h: History) -> None:
    h.change(h.subscribe().id, status="paused")


@row("neither is a paused collection", Way.PAUSED, MONTH, "collection of payments for sub_0001 (active) is paused")
def _(h: History) -> None:
    h.change(h.subscribe().id, collection_paused=True)


@row("a status of the future is taken for no end", Way.UNKNOWN, MONTH, "does not know")
def _(h: History) -> None:
    h.change(h.subscribe().id, status="hibernating")


@row("a status of the future with an end has ended", Way.ENDED_AT_ONCE, DAY)
def _(h: History) -> None:
    h.change(h.subscribe().id, status="hibernating", ended_at=T0 + DAY)


@row("ending by a schedule", Way.ENDING_BY_SCHEDULE, MONTH, "ends on 2026-03-02T00:00:00Z by its schedule")
def _(h: History) -> None:
    sub = h.subscribe()
    scheduled(h, sub, "active", 2 * MONTH)
    h.change(sub.id, cancel_at=T0 + 2 * MONTH)


@row("a person's end that comes before the schedule's", Way.ENDING, 20 * DAY, "ends on 2026-01-21T00:00:00Z")
def _(h: History) -> None:
    sub = h.subscribe()
    scheduled(h, sub, "active", 2 * MONTH)
    h.change(sub.id, cancel_at=T0 + 20 * DAY)


@row("ended by a schedule that was completed, also within a paid period", Way.ENDED_BY_SCHEDULE, 20 * DAY)
def _(h: History) -> None:
    sub = h.subscribe()
    scheduled(h, sub, "completed", 20 * DAY)
    h.end(sub, 20 * DAY)


@row("a schedule cancelled with its subscription ended it at once", Way.ENDED_AT_ONCE, 5 * DAY)
def _(h: History) -> None:
    sub = h.subscribe()
    scheduled(h, sub, "canceled", 2 * MONTH)
    h.end(sub, 5 * DAY)


@row("a schedule cancelled at the end of what was paid", Way.ENDED_BY_SCHEDULE, MONTH)
def _(h: History) -> None:
    sub = h.subscribe()
    scheduled(h, sub, "canceled", 2 * MONTH)
    h.end(sub, MONTH)


@row("a released schedule ends nothing", Way.RENEWS, MONTH)
def _(h: History) -> None:
    scheduled(h, h.subscribe(), "released", 2 * MONTH)


@row("neither does one that releases at its end", Way.RENEWS, MONTH)
def _(h: History) -> None:
    scheduled(h, h.subscribe(), "active", 2 * MONTH, end_behavior="release")


@row("extended by an operator (4.1)", Way.RENEWS, MONTH + 5 * DAY, "extended until 2026-02-05T00:00:00Z (4.1, act act_ext, case case_7)", extension(MONTH + 5 * DAY))  # fmt: skip
def _(h: History) -> None:
    h.subscribe()


@row("an extension that is shorter than what was paid", Way.RENEWS, MONTH, "", extension(5 * DAY))
def _(h: History) -> None:
    h.subscribe()


@row("an extension of what ends with its period", Way.ENDED, MONTH + 5 * DAY, "4.1", extension(MONTH + 5 * DAY))
def _(h: History) -> None:
    h.end(h.subscribe(), MONTH)


@row("ended at once after the extension: nothing after", Way.ENDED_AT_ONCE, 5 * DAY, "", extension(MONTH + 5 * DAY))
def _(h: History) -> None:
    h.end(h.subscribe(), 5 * DAY)


@row("extended after it was ended at once", Way.ENDED_AT_ONCE, 2 * MONTH, "4.1", extension(2 * MONTH, at_=6 * DAY))
def _(h: History) -> None:
    h.end(h.subscribe(), 5 * DAY)


ACCESS = [pytest.param(*r[1:], id=r[0]) for r in ROWS]


@pytest.mark.parametrize(("story", "way", "until", "holds", "acts"), ACCESS)
def test_how_a_subscription_stands_and_until_when_it_serves(
    story: Callable[[History], object], way: Way, until: int | None, holds: str, acts: tuple[Act, ...]
) -> None:
    h = History()
    story(h)
    found = judged(h, acts=acts)
    (access,) = found.access
    assert (access.way, access.until) == (way, None if until is None else T0 + until), access.cause
    assert holds in access.cause
    assert access.cause.endswith(".")
    if way is not Way.ENDED_AT_ONCE:
        assert found.decisions == {}
    for seed in range(3):
        chance = Random(seed)
        facts = [*h.tellings, *chance.choices(h.tellings, k=2)]
        chance.shuffle(facts)
        assert judged(h, acts=acts, facts=facts) == found
    later = judged(h, acts=acts, now=at(T0 + 900 * DAY))
    assert (later.access, later.decisions, later.alerts) == (found.access, found.decisions, found.alerts)


def test_each_subscription_of_the_customer_has_one_access_in_order_of_its_id() -> None:
    h = History()
    first, second = h.subscribe(), h.subscribe(40)
    h.subscribe(50, customer="cus_B")
    h.end(second, HOUR)
    found = judged(h, acts=(extension(2 * MONTH),))
    assert [(a.subscription, a.until) for a in found.access] == [(first.id, T0 + 2 * MONTH), (second.id, T0 + HOUR)]


def test_an_access_carries_what_stripe_said_of_the_cancellation() -> None:
    h = History()
    sub = h.subscribe()
    h.change(
        sub.id, when=MONTH, status="canceled", canceled_at=T0 + DAY, ended_at=T0 + MONTH, cancellation_reason="payment_failed"
    )  # fmt: skip
    access: Access = judged(h).access[0]
    assert (access.status, access.requested_at, access.ended_at) == ("canceled", T0 + DAY, T0 + MONTH)
    assert access.reason == "payment_failed"


# charge after cancellation (1.2) -----------------------------------------------------------------------------------------


def _renewed_after(h: History) -> Bought:
    sub = h.subscribe()
    h.end(sub, MONTH)
    h.renew(sub, paid_when=MONTH + HOUR)
    return sub


def test_a_payment_for_a_period_after_the_end_is_a_review_and_a_critical_alert() -> None:
    h = History()
    _renewed_after(h)
    found = judged(h)
    (decision,) = found.decisions.values()
    assert (decision.subject, decision.clause, decision.rule) == ("in_0002", "1.2", "charge_after_cancellation")
    assert (decision.verdict, decision.amount, decision.prepared) == (Verdict.REVIEW, None, ())
    assert decision.duplicate == "ch_0002"
    for told in ("ch_0002 charged 29.00 USD", "in_0002", "sub_0001", "2026-01-31T00:00:00Z", "2026-01-31T01:00:00Z"):
        assert told in decision.reason
    (alert,) = found.alerts.values()
    assert (alert.cause, alert.severity) == ("charge_after_cancellation:in_0002", Severity.CRITICAL)
    assert alert.subject == "in_0002"


def _usage(h: History) -> None:
    sub = h.subscribe()
    h.end(sub, MONTH)
    billed = h.bill(sub, MONTH, Sold(price="price_use"), reason="subscription_cycle", paid_when=MONTH + HOUR)
    lines = tuple(msgspec.structs.replace(line, metered=True) for line in h.latest[billed.invoice].lines)
    h.change(billed.invoice, lines=lines)


def _earlier_period(h: History) -> None:
    sub = h.subscribe()
    h.renew(sub, paid_when=MONTH + 20 * DAY)
    h.end(sub, MONTH + 10 * DAY)


def _open_invoice(h: History) -> None:
    sub = _renewed_after(h)
    h.change(sub.invoices[1].charge, status="failed", captured=False, captured_minor=0)
    h.change(sub.invoices[1].invoice, status="open")


def _free(h: History) -> None:
    sub = h.subscribe()
    h.end(sub, MONTH)
    h.bill(sub, MONTH, Sold(discount=2900), reason="subscription_cycle", paid_when=MONTH, captured_minor=0)


def _new_subscription(h: History) -> None:
    h.end(h.subscribe(), MONTH)
    h.subscribe(MONTH + DAY)


def _pack_later(h: History) -> None:
    sub = h.subscribe()
    h.end(sub, MONTH)
    pack = Sold(price="price_pack_100", amount=1000, once=True)
    h.bill(sub, MONTH + DAY, pack, reason="manual", paid_when=MONTH + DAY)


def _before_a_scheduled_end(h: History) -> None:
    sub = h.subscribe()
    h.renew(sub)
    h.change(sub.id, when=DAY, cancel_at=T0 + 2 * MONTH)


def _told_of_an_old_period(h: History) -> None:
    sub = h.subscribe()
    h.renew(sub)
    h.schedule_end(sub, MONTH + DAY)  # the period it was told with was over: when it ends is not known


def _taken_back(h: History) -> None:
    sub = h.subscribe()
    h.schedule_end(sub, DAY)
    h.renew(sub)
    h.change(sub.id, when=2 * DAY, cancel_at_period_end=False, canceled_at=None)


@pytest.mark.parametrize(
    "story",
    [
        pytest.param(_usage, id="usage billed after the end (reading 13)"),
        pytest.param(_earlier_period, id="a period that had begun before the end, paid late"),
        pytest.param(_open_invoice, id="an invoice that nobody paid"),
        pytest.param(_free, id="an invoice of nothing"),
        pytest.param(_new_subscription, id="another subscription, bought after the end"),
        pytest.param(_pack_later, id="a pack on an invoice of the ended subscription"),
        pytest.param(_before_a_scheduled_end, id="a renewal before a scheduled end"),
        pytest.param(_told_of_an_old_period, id="a renewal of which the telling does not know yet"),
        pytest.param(_taken_back, id="a renewal after the cancellation was taken back"),
    ],
)
def test_no_charge_after_cancellation(story: Callable[[History], object]) -> None:
    h = History()
    story(h)
    found = judged(h)
    assert (found.decisions, found.alerts) == ({}, {})


@pytest.mark.parametrize("fields", [{"cancel_at": T0 + MONTH}, {"cancel_at_period_end": True}])
def test_a_payment_for_a_period_after_a_standing_scheduled_end_is_one_too(fields: dict[str, Any]) -> None:
    h = History()
    sub = h.subscribe()
    h.change(sub.id, when=DAY, canceled_at=T0 + DAY, **fields)
    h.renew(sub)
    found = judged(h, now=at(T0 + MONTH))
    assert [d.rule for d in found.decisions.values()] == ["charge_after_cancellation"]
    assert "was set to end on 2026-01-31T00:00:00Z" in found.decisions["in_0002"].reason
    assert found.wanted == {("subscription", sub.id)}  # it may have been taken back meanwhile


def test_a_charge_after_cancellation_that_went_back_is_over() -> None:
    h = History()
    sub = _renewed_after(h)
    h.refund(sub.invoices[1].charge, MONTH + DAY)
    found = judged(h)
    assert (found.decisions["in_0002"].verdict, found.alerts) == (Verdict.NONE, {})
    assert "All of it went back" in found.decisions["in_0002"].reason


def test_one_that_went_back_in_part_is_not_over() -> None:
    h = History()
    sub = _renewed_after(h)
    h.refund(sub.invoices[1].charge, MONTH + DAY, 1000)
    assert judged(h).decisions["in_0002"].verdict is Verdict.REVIEW


def test_two_payments_of_one_late_invoice_are_one_decision_that_names_both() -> None:
    h = History()
    sub = _renewed_after(h)
    h.pay_again(sub.invoices[1], MONTH + 2 * HOUR)
    (decision,) = judged(h).decisions.values()
    assert "ch_0002, ch_0003 charged 58.00 USD" in decision.reason


# proration on immediate cancellation (1.3) -------------------------------------------------------------------------------


def _credited(h: History, when: int = 5 * DAY, *, ended: int | None = 5 * DAY, status: str = "paid") -> str:
    sub = h.subscribe()
    if ended is not None:
        h.end(sub, ended)
    billed = h.bill(sub, when, CREDIT, reason="subscription_update", paid_when=5 * DAY, end=MONTH)
    h.change(billed.invoice, status=status)
    h.forget(billed.charge, billed.intent)
    return billed.invoice


@pytest.mark.parametrize("begins", [5 * DAY - 1, 5 * DAY, 6 * DAY])
@pytest.mark.parametrize("status", ["paid", "open"])
def test_a_credit_for_the_time_after_an_immediate_end_is_a_review(begins: int, status: str) -> None:
    h = History()
    invoice = _credited(h, begins, status=status)
    found = judged(h)
    decision = found.decisions[invoice]
    assert (decision.clause, decision.rule, decision.verdict) == ("1.3", "proration_after_cancellation", Verdict.REVIEW)
    assert "credits 14.50 USD" in decision.reason
    assert "2026-01-06T00:00:00Z" in decision.reason
    assert [a.severity for a in found.alerts.values()] == [Severity.WARNING]


@pytest.mark.parametrize(
    "story",
    [
        pytest.param(lambda h: _credited(h, ended=None), id="a plan change while alive"),
        pytest.param(lambda h: _credited(h, 4 * DAY), id="a plan change the day before the end"),
        pytest.param(lambda h: _credited(h, status="void"), id="a void invoice"),
        pytest.param(lambda h: _credited(h, status="draft"), id="a draft"),
    ],
)
def test_no_proration_after_cancellation(story: Callable[[History], object]) -> None:
    h = History()
    story(h)
    assert judged(h).decisions == {}


def _both(h: History) -> Bought:
    sub = h.subscribe()
    h.end(sub, 5 * DAY)
    h.bill(sub, 6 * DAY, Sold(), CREDIT, reason="subscription_cycle", paid_when=6 * DAY)
    return sub


def test_a_late_charge_with_a_credit_is_judged_as_the_charge_and_mentions_the_credit() -> None:
    h = History()
    _both(h)
    found = judged(h)
    assert [d.clause for d in found.decisions.values()] == ["1.2"]
    assert "credits 14.50 USD for the time after it (1.3)" in found.decisions["in_0002"].reason
    assert list(found.alerts) == ["charge_after_cancellation:in_0002"]


def test_the_credit_is_judged_when_the_late_charge_went_back() -> None:
    h = History()
    h.refund(_both(h).invoices[1].charge, 7 * DAY)
    assert [d.clause for d in judged(h).decisions.values()] == ["1.3"]


# the clock ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "again", "asked"),
    [
        (10 * DAY, 20 * DAY, False),
        (20 * DAY - 1, 20 * DAY, False),
        (20 * DAY, 20 * DAY + 10 * MINUTE, False),
        (20 * DAY + 10 * MINUTE - 1, 20 * DAY + 10 * MINUTE, False),
        (20 * DAY + 10 * MINUTE, None, True),
        (MONTH, None, True),
    ],
)
def test_a_scheduled_end_wakes_the_judge_and_is_asked_for_where_stripe_is_silent(
    now: int, again: int | None, asked: bool
) -> None:
    h = History()
    sub = h.subscribe()
    h.change(sub.id, when=DAY, cancel_at=T0 + 20 * DAY)
    found = judged(h, now=at(T0 + now))
    assert found.judge_again_at == (None if again is None else at(T0 + again))
    assert found.wanted == ({("subscription", sub.id)} if asked else frozenset())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"when": 20 * DAY, "cancel_at": T0 + 20 * DAY}, id="told since, and not ended"),
        pytest.param({"when": 20 * DAY, "status": "canceled", "ended_at": T0 + 20 * DAY}, id="ended"),
        pytest.param({"when": DAY}, id="never scheduled"),
    ],
)
def test_nothing_is_asked_where_stripe_told(change: dict[str, Any]) -> None:
    h = History()
    h.change(h.subscribe().id, **change)
    assert judged(h, now=at(T0 + 25 * DAY)).wanted == frozenset()


def test_a_trial_cancelled_with_its_end_is_asked_for_too() -> None:
    h = History()
    sub = h.subscribe(trial_until=7 * DAY)
    h.schedule_end(sub, DAY)
    assert judged(h, now=at(T0 + 7 * DAY + HOUR)).wanted == {("subscription", sub.id)}


def test_an_extension_wakes_the_judge_when_it_is_over() -> None:
    h = History()
    h.end(h.subscribe(), MONTH)
    found = judged(h, now=at(T0 + MONTH), acts=(extension(MONTH + DAY),))
    assert found.judge_again_at == at(T0 + MONTH + DAY)


# rehearsals and versions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_rehearsals_on_a_test_clock_are_left_alone_unless_they_count(whole: bool) -> None:
    h = History()
    h.customer(test_clock=whole)
    sub = _renewed_after(h)
    h.change(sub.id, test_clock=not whole)
    _credited(h)
    h.change("sub_0002", test_clock=not whole)
    left_alone = judged(h)
    assert (left_alone.access, left_alone.decisions, left_alone.judge_again_at) == ((), {}, None)
    counted = judged(h, test_clocks=True)
    assert len(counted.access) == len(counted.decisions) == 2


def test_the_policy_version_is_the_one_in_force_when_it_was_charged() -> None:
    later = '\n[[version]]\nid = "2026-02"\nin_force_from = 2026-01-31T00:30:00Z\n'
    h = History()
    _renewed_after(h)
    assert judged(h, policy=policy_with(agreement=later)).decisions["in_0002"].policy_version == "2026-02"
