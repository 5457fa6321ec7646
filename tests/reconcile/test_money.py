"""Every difference between Stripe's bookings and the books has a sentence, and only what is proved counts as explained."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.customer import Charge, ChargeId, Dispute, Refund
from handlers.decisions import Money
from reconcile.findings import Class, What
from reconcile.money import Booked, MoneyOfRun, Tally, outside, reason
from reconcile.windows import DAY, Window

T0 = 1_790_000_000
WINDOWS = (Window(T0, T0 + DAY), Window(T0 + 20 * DAY, T0 + 23 * DAY))
INSIDE = T0 + 21 * DAY


def charge(**fields: Any) -> Charge:
    told: dict[str, Any] = {
        "id": "ch_1",
        "amount_minor": 2900,
        "captured_minor": 2900,
        "currency": "usd",
        "captured": True,
    }
    return Charge(**{**told, "status": "succeeded", "created": INSIDE, "as_of": INSIDE, "method": "card"} | fields)


def refund(**fields: Any) -> Refund:
    told: dict[str, Any] = {"id": "re_1", "charge": ChargeId("ch_1"), "amount_minor": 2900, "currency": "usd"}
    return Refund(**{**told, "status": "succeeded", "created": INSIDE, "as_of": INSIDE} | fields)


def dispute(**fields: Any) -> Dispute:
    told: dict[str, Any] = {"id": "dp_1", "charge": ChargeId("ch_1"), "amount_minor": 2900, "currency": "usd"}
    return Dispute(**{**told, "status": "lost", "created": INSIDE, "as_of": INSIDE} | fields)


def booked(fact: Any, at_stripe: int, ours: int, **fields: Any) -> Booked:
    told: dict[str, Any] = {"object": fact.id, "kind": "charge", "currency": "usd", "booked_in": "usd", "moves": 1}
    told |= {"at_stripe_minor": at_stripe, "ours_minor": ours, "last_at": INSIDE, "fact": fact}
    return Booked(**told | fields)


def never_booked(fact: Any, ours: int) -> Booked:
    return booked(fact, 0, ours, booked_in=None, moves=0, last_at=0)


OLD = {"created": T0 + 19 * DAY}
ABROAD = {"currency": "usd", "booked_in": "usd", "rate": 1.25}

EXPLAINED = {
    "a refund still pending": never_booked(refund(status="pending"), -2900),
    "a bank debit begun right before a window's end": never_booked(
        charge(method="sepa_debit", created=T0 + DAY - 60), 2900
    ),
    "a bank debit booked before it succeeded": booked(charge(status="pending", captured=False), 2900, 0),
    "a refund of an earlier window that failed in this one": booked(refund(status="failed", **OLD), 2900, 0),
    "a refund that failed after the windows": booked(refund(status="failed", as_of=T0 + 30 * DAY), -2900, 0),
    "a debit that failed after the windows": booked(charge(status="failed", as_of=T0 + 30 * DAY), 2900, 0),
    "a dispute of an earlier window won in this one": booked(dispute(status="won", withdrawn_minor=0, **OLD), 2900, 0),
    "a dispute won after the windows": booked(dispute(status="won", withdrawn_minor=0, as_of=T0 + 30 * DAY), -2900, 0),
    "a dispute whose withdrawal no telling named": booked(dispute(), -2900, 0),
    "a part captured, of which the rest was taken back later": booked(
        charge(captured_minor=1900, as_of=T0 + 30 * DAY), 2900, 1900
    ),
    "a reinstated dispute at two rates": booked(
        dispute(currency="eur", status="won", withdrawn_minor=0), 41, 0, moves=2, native=0.4, **ABROAD
    ),
    "a dispute withdrawn in another currency": booked(dispute(currency="eur"), -3625, 0, native=-2900.0, **ABROAD),
}

UNEXPLAINED = {
    "a charge the books have with another amount": booked(charge(captured_minor=1900), 2900, 1900),
    "a charge that Stripe booked twice": booked(charge(as_of=T0 + 30 * DAY), 5800, 2900, moves=2),
    "a card charge that Stripe never booked": never_booked(charge(as_of=T0 + 30 * DAY), 2900),
    "a succeeded refund that Stripe never booked": never_booked(refund(), -2900),
    "a refund of the windows that failed in them, with one booking": booked(refund(status="failed"), 2900, 0),
    "a live refund whose money came back": booked(refund(as_of=T0 + 30 * DAY), 0, -2900, moves=2),
    "a dispute that withdrew more": booked(dispute(withdrawn_minor=2900), -4900, -2900),
    "a charge abroad without a rate": booked(charge(currency="eur"), 3625, 0),
    "a charge abroad with another amount": booked(charge(currency="eur"), 2500, 3625, native=2000.0, **ABROAD),
}


@pytest.mark.parametrize("case", EXPLAINED)
def test_a_difference_that_state_and_windows_account_for_is_explained(case: str) -> None:
    assert reason(EXPLAINED[case], WINDOWS, {})[1]


@pytest.mark.parametrize("case", UNEXPLAINED)
def test_a_difference_that_nothing_proves_is_left_unexplained(case: str) -> None:
    assert not reason(UNEXPLAINED[case], WINDOWS, {})[1]


def test_a_bank_debit_with_all_the_time_it_takes_inside_the_windows_should_have_been_booked() -> None:
    debit = never_booked(charge(method="sepa_debit"), 2900)
    assert not reason(debit, (Window(T0, T0 + 60 * DAY),), {})[1]


def test_a_finding_about_the_object_explains_its_money_and_is_named() -> None:
    gap = Booked(object="ch_1", kind="charge", currency="usd", booked_in="usd", at_stripe_minor=2900, ours_minor=0)
    assert reason(gap, WINDOWS, {"ch_1": What.MISSING_HERE}) == (
        "the books lack this charge: see missing_here ch_1",
        True,
    )
    assert not reason(gap, WINDOWS, {"ch_2": What.MISSING_HERE})[1]


def test_what_this_run_read_otherwise_explains_it() -> None:
    assert reason(booked(charge(captured_minor=1900), 2900, 1900, staged=True), WINDOWS, {})[1]


def test_outside_is_any_second_in_no_window() -> None:
    edge = T0 + DAY
    assert not outside(WINDOWS, T0, edge - 1)
    assert outside(WINDOWS, T0, edge)
    assert outside(WINDOWS, T0 - 1, T0)
    assert outside(WINDOWS, INSIDE, T0 + 23 * DAY)
    assert outside((), T0, T0)


def close(*rows: Booked, shown: int = 1000) -> MoneyOfRun:
    tally = Tally(WINDOWS, {}, shown=shown)
    for row in rows:
        tally.add_sum(row.currency, row.kind, row.class_, row.at_stripe_minor, row.ours_minor, 1)
        tally.add(row)
    return tally.close([], [])


def test_an_unexplained_residual_is_a_finding_for_a_person() -> None:
    told = close(booked(charge(captured_minor=1900), 2900, 1900, customer="cus_A"))
    [finding] = told.findings
    assert (finding.what, finding.class_, finding.object, finding.customer) == (What.MONEY, Class.ASK, "ch_1", "cus_A")
    assert finding.amount == Money(1000, "usd")
    assert "10.00 USD of ch_1 cannot be explained" in finding.sentence
    assert told.to_read == ["ch_1"]


def test_what_nothing_explains_is_shown_before_what_something_does_and_the_sums_stay_whole() -> None:
    explained = [never_booked(refund(id=f"re_{n}", status="pending"), -5000 - n) for n in range(4)]
    strange = booked(charge(captured_minor=2899), 2900, 2899)
    told = close(*explained, strange, shown=2)
    assert [(r.object, r.explained) for r in told.residuals] == [("ch_1", False), ("re_3", True)]
    assert told.residuals_total == 5
    [row] = told.rows
    assert (row.residual_minor, row.explained_minor) == (5000 * 4 + 6 + 1, 5000 * 4 + 6)
