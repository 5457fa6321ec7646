"""What the merchant's app is told when a customer's account changes: each thing once, with the moment at which it became true."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.account import Access, Account, Entry, EntryKind, Hold, Standing, Way
from handlers.customer import ChargeId, CustomerId, Refund, RefundId, SubscriptionId
from handlers.decisions import ActionKind, Decision, Money, Prepared, Verdict
from handlers.news import Notice, account_news, entry_news, refund_news

CUS = CustomerId("cus_A")
NOW = 1_767_225_600  # 2026-01-01T00:00:00Z
DAY = 86_400


def account(standing: Standing = Standing.GOOD, *holds: Hold, access: tuple[Access, ...] = ()) -> Account:
    return Account(customer=CUS, standing=standing, holds=holds, access=access)


def hold(subject: str = "dp_1", *, suspends: bool = False, since: int = NOW - DAY) -> Hold:
    status = "needs_response" if subject != "operator" else "operator"
    return Hold(subject=subject, since=since, status=status, suspends=suspends, cause=f"{subject} is open.")


def access(way: Way, until: int | None, **more: Any) -> Access:
    told = {"status": "active", "cause": "Cancelled.", **more}
    return Access(subscription=SubscriptionId("sub_1"), way=way, until=until, **told)


def types(notices: list[Notice]) -> list[str]:
    return [notice.type for notice in notices]


# standing ----------------------------------------------------------------------------------------------------------------

FLAGGED = account(Standing.FLAGGED, hold())


@pytest.mark.parametrize(
    ("sentence", "was", "is_", "told"),
    [
        ("a new customer in good standing is no news", None, account(), []),
        ("a new customer with a chargeback is", None, FLAGGED, ["standing.changed"]),
        ("a chargeback comes", account(), FLAGGED, ["standing.changed"]),
        ("nothing changed", FLAGGED, FLAGGED, []),
        ("the last chargeback is over", FLAGGED, account(), ["standing.changed"]),
        (
            "a second chargeback comes and the standing stays",
            FLAGGED,
            account(Standing.FLAGGED, hold(), hold("dp_2")),
            ["standing.changed"],
        ),
        (
            "a flag becomes a suspension",
            FLAGGED,
            account(Standing.SUSPENDED, hold(suspends=True)),
            ["standing.changed"],
        ),
        (
            "an operator's hold comes to a suspension",
            account(Standing.SUSPENDED, hold(suspends=True)),
            account(Standing.SUSPENDED, hold(suspends=True), hold("operator", suspends=True)),
            ["standing.changed"],
        ),
        (
            "only the words of a hold changed",
            FLAGGED,
            account(Standing.FLAGGED, msgspec.structs.replace(hold(), cause="Other words.", status="under_review")),
            [],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_standing(sentence: str, was: Account | None, is_: Account, told: list[str]) -> None:
    assert types(account_news(was, is_, NOW - 60, NOW)) == told


def test_a_change_of_standing_says_what_it_was_and_names_every_hold() -> None:
    (told,) = account_news(account(), FLAGGED, NOW - 60, NOW)
    assert told.data == {
        "standing": "flagged",
        "was": "good",
        "holds": [
            {
                "subject": "dp_1",
                "since": "2025-12-31T00:00:00Z",
                "status": "needs_response",
                "suspends": False,
                "due_by": None,
                "cause": "dp_1 is open.",
            }
        ],
    }


def test_a_known_customers_standing_changes_when_it_is_judged_and_a_strangers_with_its_newest_hold() -> None:
    """A hold that comes back is as old as its dispute and still news; an imported one is as old as it is."""
    old = account(Standing.FLAGGED, hold(since=NOW - 90 * DAY), hold("dp_2", since=NOW - 60 * DAY))
    assert account_news(account(), old, NOW - 60, NOW)[0].timestamp == NOW
    assert account_news(None, old, 0, NOW)[0].timestamp == NOW - 60 * DAY


def test_a_standing_that_comes_back_is_told_again() -> None:
    first = account_news(account(), FLAGGED, NOW - 9, NOW)
    second = account_news(account(), FLAGGED, NOW + 1, NOW + 2)
    assert first[0].key != second[0].key


# access ------------------------------------------------------------------------------------------------------------------

END = NOW + 10 * DAY
RENEWS = access(Way.RENEWS, END)
ENDING = access(Way.ENDING, END, requested_at=NOW, reason="cancellation_requested")


@pytest.mark.parametrize(
    ("sentence", "was", "is_", "at", "told"),
    [
        ("a subscription that renews is no news", None, RENEWS, NOW, []),
        ("nor when its period has passed and the next is not paid yet", RENEWS, RENEWS, END + 1, []),
        ("a cancellation is told with its end", RENEWS, ENDING, NOW, ["access.ending"]),
        ("once", ENDING, ENDING, NOW + 5, []),
        ("by a schedule too", RENEWS, access(Way.ENDING_BY_SCHEDULE, END), NOW, ["access.ending"]),
        ("withdrawn, it is not taken back", ENDING, RENEWS, NOW, []),
        ("its end moves", ENDING, access(Way.ENDING, END + DAY, requested_at=NOW), NOW + 5, ["access.ending"]),
        ("its end comes by the clock alone", ENDING, ENDING, END, ["access.ended"]),
        ("not a second before", ENDING, ENDING, END - 1, []),
        ("it ends at Stripe at that moment", ENDING, access(Way.ENDED, END), END, ["access.ended"]),
        ("it is ended at once", RENEWS, access(Way.ENDED_AT_ONCE, NOW, ended_at=NOW), NOW, ["access.ended"]),
        ("a schedule ended it", RENEWS, access(Way.ENDED_BY_SCHEDULE, NOW), NOW, ["access.ended"]),
        ("ended, but extended by the merchant", ENDING, access(Way.ENDED, END + DAY), END, ["access.ending"]),
        ("unpaid is no end", RENEWS, access(Way.UNPAID, NOW), END, []),
        ("paused is no end", RENEWS, access(Way.PAUSED, NOW), END, []),
        ("it never began", None, access(Way.NEVER_BEGAN, None), NOW, []),
        ("an unknown status is no end", RENEWS, access(Way.UNKNOWN, NOW), END, []),
        ("cancelled, and nothing was ever paid", RENEWS, access(Way.ENDING, None), NOW, []),
        ("ended, and nothing was ever paid", RENEWS, access(Way.ENDED, None, ended_at=NOW), NOW, ["access.ended"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_access(sentence: str, was: Access | None, is_: Access, at: int, told: list[str]) -> None:
    before = account(access=(was,)) if was is not None else None
    was_at = NOW + 1 if was is ENDING and at > NOW + 1 else NOW - 60
    assert types(account_news(before, account(access=(is_,)), was_at, at)) == told


def test_an_announced_end_names_its_date_and_reason() -> None:
    (told,) = account_news(account(access=(RENEWS,)), account(access=(ENDING,)), NOW - 60, NOW)
    assert told.data == {
        "subscription": "sub_1",
        "access_until": "2026-01-11T00:00:00Z",
        "reason": "cancellation_requested",
        "cause": "Cancelled.",
    }


def test_an_end_is_as_old_as_itself_and_a_cancellation_as_old_as_its_request() -> None:
    """So that importing a year of subscriptions tells the app nothing; a date that moves is news of now."""
    asked = msgspec.structs.replace(ENDING, requested_at=NOW - 20 * DAY)
    assert account_news(None, account(access=(asked,)), 0, NOW)[0].timestamp == NOW - 20 * DAY
    ended = access(Way.ENDED, NOW - 200 * DAY)
    assert account_news(None, account(access=(ended,)), 0, NOW)[0].timestamp == NOW - 200 * DAY
    moved = msgspec.structs.replace(asked, until=END + DAY)
    (told,) = account_news(account(access=(asked,)), account(access=(moved,)), NOW - DAY, NOW)
    assert told.timestamp == NOW


def test_judging_the_same_account_again_after_its_end_tells_the_same_notice() -> None:
    """The row of an account is not written when only time passed: the key is what keeps it from being told twice."""
    is_ = account(access=(ENDING,))
    first, second = (account_news(is_, is_, NOW, END + later) for later in (1, 5000))
    assert [n.key for n in first] == [n.key for n in second]


def test_a_cancellation_that_was_withdrawn_and_comes_again_is_told_again() -> None:
    first = account_news(account(access=(RENEWS,)), account(access=(ENDING,)), NOW - 60, NOW)
    again = msgspec.structs.replace(ENDING, requested_at=NOW + DAY)
    second = account_news(account(access=(RENEWS,)), account(access=(again,)), NOW + 60, NOW + DAY)
    assert first[0].key != second[0].key


_ways = st.builds(
    access,
    st.sampled_from(list(Way)),
    st.one_of(st.none(), st.integers(NOW - 5 * DAY, NOW + 5 * DAY)),
    requested_at=st.one_of(st.none(), st.integers(NOW - 5 * DAY, NOW)),
    ended_at=st.one_of(st.none(), st.integers(NOW - 5 * DAY, NOW)),
)


@given(st.lists(st.tuples(_ways, st.integers(1, DAY)), min_size=1, max_size=8))
def test_whatever_becomes_of_a_subscription_every_notice_is_told_once_and_no_end_is_missed(
    steps: list[tuple[Access, int]],
) -> None:
    told: dict[str, Notice] = {}
    was, was_at, now = None, 0, NOW
    for step, later in steps:
        is_ = account(access=(step,))
        for notice in account_news(was, is_, was_at, now):
            told.setdefault(notice.key, notice)
        assert not {n.key for n in account_news(is_, is_, now, now)}
        was, was_at, now = is_, now, now + later
    ended = [s for s, _ in steps if s.way in (Way.ENDED, Way.ENDED_AT_ONCE, Way.ENDED_BY_SCHEDULE)]
    over = {s.until for s in ended if s.until is not None and s.until <= NOW}
    assert len([n for n in told.values() if n.type == "access.ended"]) >= len(over)
    assert all(n.timestamp <= now for n in told.values())


# credits -----------------------------------------------------------------------------------------------------------------


def entry(amount: int, kind: EntryKind = EntryKind.EXPIRED, lot: str = "trial:sub_1:1", at: int = NOW) -> Entry:
    return Entry(lot=lot, kind=kind, amount=amount, effective_at=at, clause="3.3", cause=f"{lot} is over.")


def test_credits_that_expired_or_were_forfeited_are_told_by_lot() -> None:
    told = entry_news(
        [
            entry(-30, at=NOW - 9),
            entry(-20),
            entry(-500, EntryKind.FORFEITED, "included:in_1:il_1"),
            entry(50, EntryKind.GRANTED, "service:oact_1"),
            entry(-5, EntryKind.TAKEN_BACK, "included:in_2:il_1"),
        ],
        CUS,
        NOW,
    )
    assert [(n.type, n.data["lot"], n.data["credits"], n.data["reversed"]) for n in told] == [
        ("credits.expired", "trial:sub_1:1", 50, False),
        ("credits.forfeited", "included:in_1:il_1", 500, False),
    ]
    assert (told[0].timestamp, told[0].data["clause"]) == (NOW, "3.3")


def test_a_loss_that_was_undone_is_told_as_a_negative_one() -> None:
    (told,) = entry_news([entry(40)], CUS, NOW)
    assert (told.type, told.data["credits"], told.data["reversed"]) == ("credits.expired", -40, True)


def test_what_goes_and_comes_back_in_one_posting_is_no_news() -> None:
    assert entry_news([entry(40), entry(-40)], CUS, NOW) == []


def test_the_same_loss_at_another_posting_is_told_again() -> None:
    keys = {entry_news([entry(-40)], CUS, posted_at)[0].key for posted_at in (NOW, NOW, NOW + 1)}
    assert len(keys) == 2


# refunds -----------------------------------------------------------------------------------------------------------------


def test_a_refund_says_what_went_back_and_which_subscription_stays() -> None:
    step = Prepared(kind=ActionKind.CANCEL_SUBSCRIPTION, subject="sub_2", customer=CUS)
    decision = Decision(
        subject="ch_2",
        customer=CUS,
        clause="4.3",
        rule="D3",
        verdict=Verdict.REFUND,
        policy_version="2025-01",
        reason="Bought twice.",
        amount=Money(2900, "usd"),
        original=ChargeId("ch_1"),
        duplicate=ChargeId("ch_2"),
        prepared=(step,),
    )
    refund = Refund(
        id=RefundId("re_1"),
        as_of=NOW,
        charge=ChargeId("ch_2"),
        amount_minor=2900,
        currency="usd",
        status="pending",
        created=NOW - 3,
        action="act_1",
    )
    told = refund_news(refund, decision, kept="sub_1")
    assert (told.type, told.customer, told.timestamp) == ("refund.made", "cus_A", NOW - 3)
    assert told.data == {
        "refund": "re_1",
        "charge": "ch_2",
        "amount": 2900,
        "currency": "usd",
        "original": "ch_1",
        "subscription_ended": "sub_2",
        "subscription_kept": "sub_1",
    }
    later = msgspec.structs.replace(refund, status="succeeded", as_of=NOW + 60)
    assert refund_news(later, decision, ended="sub_2").key == told.key
