"""What clause 7 keeps for every telling of a customer's disputes, in any order and repetition."""

from __future__ import annotations

import random
from datetime import datetime

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.account import OPERATOR_HOLD, Act, ActKind, Standing
from handlers.chargebacks import KNOWN, Disputes, judge_disputes
from handlers.customer import CustomerFile, CustomerId, DisputeId, Fact, at
from handlers.terms import Policy
from tests.handlers.history import DAY, HOUR, POLICY, T0, History, policy_with

SUSPENDING = policy_with(('on_chargeback = "flag"', 'on_chargeback = "suspend"'))
STATUSES = [*sorted(KNOWN), "something_new", "appeal_new"]
HOLDING = {"needs_response", "under_review", "appeal_needs_response", "appeal_under_review", "lost"}
"""Written out anew: the oracle does not ask the code under test."""
REFUNDS = ["succeeded", "pending", "failed", "canceled"]

policies = st.sampled_from([POLICY, SUSPENDING])
moments = st.integers(0, 60 * DAY).map(lambda seconds: at(T0 + seconds))


@st.composite
def lives(draw: st.DrawFn) -> History:
    """A customer with a few payments, and disputes of them that are told again and again in other statuses."""
    h, pick = History(), random.Random(draw(st.integers(0, 2**32)))
    h.customer()
    charges = [h.bare(n * DAY) for n in range(draw(st.integers(1, 3)))]
    disputes = [
        h.dispute(pick.choice(charges), pick.choice(STATUSES), DAY * pick.randint(1, 5), pick.choice([None, 900, 9900]))
        for _ in range(draw(st.integers(0, 4)))
    ]
    for _ in range(draw(st.integers(0, 8))):
        if disputes and pick.random() < 0.8:
            told = {"status": pick.choice(STATUSES), "due_by": pick.choice([None, 0, T0 + 20 * DAY, T0 + 30 * DAY])}
            h.change(pick.choice(disputes), when=pick.randint(5, 9) * DAY, **told)
        else:
            h.refund(pick.choice(charges), 6 * DAY, pick.choice([500, None]), status=pick.choice(REFUNDS), action="a")
    if pick.random() < 0.2:
        h.forget(pick.choice(charges))
    return h


@st.composite
def told_acts(draw: st.DrawFn) -> list[Act]:
    """What operators did, about disputes that there may or may not be."""
    pick = random.Random(draw(st.integers(0, 2**32)))
    return [
        Act(
            id=f"act_{n}",
            kind=pick.choice([ActKind.SUSPEND, ActKind.LIFT, ActKind.LIFT, ActKind.KEEP, ActKind.GRANT]),
            customer=CustomerId("cus_A"),
            at=T0 + pick.randint(0, 3) * HOUR,
            by="op",
            reason="because",
            dispute=pick.choice([None, DisputeId("dp_0001"), DisputeId("dp_0002"), DisputeId("dp_0009")]),
            status=pick.choice(["", *STATUSES]),
        )
        for n in range(draw(st.integers(0, 6)))
    ]


def _judged(facts: list[Fact], policy: Policy, now: datetime, acts: list[Act]) -> Disputes:
    return judge_disputes(CustomerFile(facts), CustomerId("cus_A"), policy, now, acts, test_clocks=False)


@given(lives(), told_acts(), policies, moments, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_any_order_and_repetition_of_tellings_and_acts_gives_the_same_standing(
    h: History, acts: list[Act], policy: Policy, now: datetime, chance: random.Random
) -> None:
    expected = _judged(h.tellings, policy, now, acts)
    told, done = [*h.tellings, *chance.choices(h.tellings, k=5)], list(acts)
    chance.shuffle(told)
    chance.shuffle(done)
    again = _judged(told, policy, now, done)
    assert again == expected
    assert [msgspec.json.encode(d) for d in again.decisions.values()] == [
        msgspec.json.encode(d) for d in expected.decisions.values()
    ]


@given(lives(), policies, moments)
@settings(max_examples=300, deadline=None)
def test_without_operators_the_holds_are_exactly_the_open_lost_and_unknown_chargebacks(
    h: History, policy: Policy, now: datetime
) -> None:
    found = _judged(h.tellings, policy, now, [])
    folded = CustomerFile(h.tellings).disputes
    assert {hold.subject for hold in found.holds} == {
        id_ for id_, dispute in folded.items() if dispute.status in HOLDING or dispute.status not in KNOWN
    }
    assert set(found.decisions) == set(folded)


@given(lives(), told_acts(), policies, moments)
@settings(max_examples=300, deadline=None)
def test_every_hold_has_a_cause_and_the_standing_is_made_of_the_holds_alone(
    h: History, acts: list[Act], policy: Policy, now: datetime
) -> None:
    found = _judged(h.tellings, policy, now, acts)
    folded = CustomerFile(h.tellings).disputes
    for hold in found.holds:
        assert hold.subject in hold.cause or hold.subject == OPERATOR_HOLD
        assert hold.subject in folded or any(act.kind is ActKind.SUSPEND for act in acts)
        assert hold.suspends == (hold.subject == OPERATOR_HOLD or policy is SUSPENDING)
    suspended = any(hold.suspends for hold in found.holds)
    flagged = Standing.FLAGGED if found.holds else Standing.GOOD
    assert found.standing is (Standing.SUSPENDED if suspended else flagged)
    assert len({hold.subject for hold in found.holds}) == len(found.holds)
    for hold in found.holds:
        if (told := folded.get(hold.subject)) and told.status not in HOLDING and told.status in KNOWN:
            assert any(act.kind is ActKind.KEEP and act.dispute == hold.subject for act in acts)
    for id_, dispute in folded.items():
        if dispute.status in HOLDING and id_ not in {hold.subject for hold in found.holds}:
            assert any(act.kind is ActKind.LIFT and act.dispute == id_ for act in acts), "only a lift frees"


@given(lives(), told_acts(), policies, moments, moments)
@settings(max_examples=300, deadline=None)
def test_between_two_looks_nothing_changes_unless_the_second_was_asked_for(
    h: History, acts: list[Act], policy: Policy, one: datetime, two: datetime
) -> None:
    first, second = sorted([one, two])
    early, late = _judged(h.tellings, policy, first, acts), _judged(h.tellings, policy, second, acts)
    assert (early.standing, early.holds, early.decisions) == (late.standing, late.holds, late.decisions)
    if early.judge_again_at is None or early.judge_again_at > second:
        assert early.alerts == late.alerts
