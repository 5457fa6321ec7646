"""How much goes back, to the cent: discounts, taxes, quantities, packs, partial refunds, currencies, several copies (4.3, rules 2 and 3)."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from handlers.customer import Line, at
from handlers.decisions import Money, Verdict
from tests.handlers.history import DAY, HOUR, MONTH, POLICY, T0, History, Sold
from tests.handlers.verdicts import Case, Cases, begun, check, refund, review

cases = Cases()
PACK = Sold("price_pack_100", 1500, once=True)


def _sold_twice(*items: Sold, extra: tuple[Sold, ...] = (), currency: str = "usd") -> History:
    h = History()
    h.subscribe(0, *items, currency=currency)
    h.subscribe(4, *items, extra=extra, currency=currency)
    return h


@pytest.mark.parametrize(
    ("sold", "currency", "amount"),
    [
        ((Sold(),), "usd", "29.00 USD"),
        ((Sold(discount=333),), "usd", "25.67 USD"),
        ((Sold(tax=551),), "usd", "34.51 USD"),  # 19 % exclusive
        ((Sold(amount=3451),), "eur", "34.51 EUR"),  # the same, inclusive: inside the amount already
        ((Sold(discount=290, tax=496),), "usd", "31.06 USD"),  # 10 % off, then 19 % on the rest
        ((Sold(amount=14500, quantity=5),), "usd", "145.00 USD"),
        ((Sold(), Sold("price_seats", 999, quantity=3, tax=190, discount=99)), "usd", "39.90 USD"),
        ((Sold(amount=2900),), "jpy", "2900 JPY"),
        ((Sold(amount=12345),), "kwd", "12.345 KWD"),
        ((Sold(amount=1),), "usd", "0.01 USD"),
    ],
)
def test_the_repeated_lines_go_back_to_the_cent(sold: tuple[Sold, ...], currency: str, amount: str) -> None:
    """Amount less the line's own discounts plus its exclusive taxes."""
    decision = _sold_twice(*sold, currency=currency).judge().decisions["ch_0002"]
    assert (decision.verdict, str(decision.amount)) == (Verdict.REFUND, amount), decision.reason


@pytest.mark.parametrize(
    ("extra", "amount"),
    [
        ((PACK,), "25.00 USD"),
        ((PACK, Sold("price_setup", 990, once=True, tax=188)), "25.00 USD"),
        ((Sold("price_pack_100", 1500, once=True, discount=200),), "25.00 USD"),
    ],
)
def test_what_is_sold_once_on_the_same_invoice_stays_paid(extra: tuple[Sold, ...], amount: str) -> None:
    decision = _sold_twice(Sold(discount=400), extra=extra).judge().decisions["ch_0002"]
    assert (decision.verdict, str(decision.amount)) == (Verdict.REFUND, amount), decision.reason


@pytest.mark.parametrize(("back", "rest"), [(1, 2899), (1450, 1450), (2899, 1)])
def test_what_went_back_already_counts(back: int, rest: int) -> None:
    h = _sold_twice(Sold())
    h.refund("ch_0002", HOUR, back)
    decision = h.judge().decisions["ch_0002"]
    assert decision.amount == Money(rest, "usd")
    assert decision.verdict is Verdict.REFUND


@cases(
    "four copies: three go back",
    *(refund(f"ch_000{n}", "ch_0001", "D3", "29.00 USD", f"cancel sub_000{n}") for n in (2, 3, 4)),
)
def _(h: History) -> None:
    for when in (0, 3, 6, 9):
        h.subscribe(when)


@cases(
    "four copies, the second partly and the third wholly given back by hand",
    refund("ch_0002", "ch_0001", "D3", "19.00 USD", "cancel sub_0002"),
    review("ch_0003", "ch_0001", "D3", "cancel sub_0003", why="left running"),
    refund("ch_0004", "ch_0001", "D3", "29.00 USD", "cancel sub_0004"),
)
def _(h: History) -> None:
    for when in (0, 3, 6, 9):
        h.subscribe(when)
    h.refund("ch_0002", HOUR, 1000)
    h.refund("ch_0003", HOUR)


@cases(
    "one subscription's invoice paid twice, and bought twice as well",
    refund("ch_0002", "ch_0001", "D1"),
    refund("ch_0003", "ch_0001", "D3", "29.00 USD", "cancel sub_0002"),
)
def _(h: History) -> None:
    sub = h.subscribe(0)
    h.pay_again(sub.first, 2)
    h.subscribe(4)
    h.balance_read(60)


@cases(
    "bought twice, and the copy's invoice paid twice: what stays of the one is not given back in the same breath",
    refund("ch_0003", "ch_0002", "D1"),
    review("ch_0002", "ch_0001", "D3", "refund ch_0002 29.00 USD", "cancel sub_0002", why="original of another refund"),
)
def _(h: History) -> None:
    h.subscribe(0)
    copy = h.subscribe(4)
    h.pay_again(copy.first, 9)
    h.balance_read(60)


@cases(
    "as before, once the first of the two refunds was begun",
    review(
        "ch_0002", "ch_0001", "D3", "refund ch_0002 29.00 USD", "cancel sub_0002", why="keeps ch_0002 as its original"
    ),
    acted=begun("ch_0003"),
)
def _(h: History) -> None:
    h.subscribe(0)
    copy = h.subscribe(4)
    h.pay_again(copy.first, 9)
    h.balance_read(60)


@cases(
    "bought twice, and whether the first invoice was paid twice is still in doubt",
    review("ch_0002", "ch_0001", "D1", why="still being read"),
    review("ch_0003", "ch_0001", "D3", "refund ch_0003 29.00 USD", "cancel sub_0002", why="more than one payment"),
)
def _(h: History) -> None:
    sub = h.subscribe(0)
    h.pay_again(sub.first, 2)
    h.subscribe(4)


@cases(
    "a shipping fee closes the sum and stays paid", refund("ch_0002", "ch_0001", "D3", "29.00 USD", "cancel sub_0002")
)
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(4)
    h.change("in_0002", total_minor=3400, amount_due_minor=3400, shipping_minor=500)
    h.change("ch_0002", amount_minor=3400, captured_minor=3400)


@pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])
def test_several_copies(case: Case) -> None:
    check(case)


def test_the_refund_waits_for_the_settle_delay_after_the_later_payment() -> None:
    decision = _sold_twice(Sold()).judge().decisions["ch_0002"]
    assert decision.due_at == at(T0 + 4) + timedelta(minutes=10)


def test_a_trial_is_judged_again_three_days_before_it_is_charged() -> None:
    h = History()
    h.subscribe(0)
    h.subscribe(60, trial_until=14 * DAY)
    assert h.judge().judge_again_at == at(T0 + 11 * DAY)
    assert h.judge(now=at(T0 + 11 * DAY)).decisions["sub_0002"].verdict is Verdict.REVIEW


def test_what_no_event_brings_is_asked_for() -> None:
    """The balance for D1; an invoice or a subscription that a payment of it was told of before."""
    h = History()
    sub = h.subscribe()
    h.pay_again(sub.first, 40)
    assert h.judge().wanted == {("balance", "cus_A")}
    two = _sold_twice(Sold())
    two.forget("in_0001", "sub_0002")
    assert two.judge().wanted == {("invoice", "in_0001")}
    two = _sold_twice(Sold())
    two.forget("sub_0002")
    assert two.judge().wanted == {("subscription", "sub_0002")}


def test_a_single_purchase_asks_for_nothing() -> None:
    h = History()
    h.subscribe()
    h.forget("in_0001", "sub_0001")
    judged = h.judge()
    assert (judged.decisions, judged.wanted) == ({}, frozenset())


def _long_history(subs: int, months: int, **more: str) -> History:
    h = History()
    for n in range(subs):
        sub = h.subscribe(n * 7 * HOUR, metadata={"workspace_id": f"w{n}", **more})
        for _ in range(months - 1):
            h.renew(sub)
    return h


@pytest.mark.parametrize(
    ("story", "limit_ms"),
    [
        (_long_history(2, 3), 1.0),  # about 30 objects
        (_long_history(2, 36), 30),  # about 300
        (_long_history(12, 6), 30),
    ],
    ids=["30 objects", "300 objects, two subscriptions", "300 objects, twelve subscriptions"],
)
def test_a_file_is_judged_in_its_time(story: History, limit_ms: float) -> None:
    assert _fastest_ms(story) < limit_ms


def test_three_hundred_bare_renewals_under_one_copied_id_are_judged_in_their_time() -> None:
    h = History()
    for n in range(300):
        h.bare(n * MONTH, order_id="first")
    assert _fastest_ms(h) < 60


def _fastest_ms(h: History) -> float:
    file, now = h.file(), at(T0 + 3 * 365 * DAY)
    from handlers.duplicates import judge

    best = 1e9
    for _ in range(7):
        begun = time.perf_counter()
        judge(file, POLICY, now)
        best = min(best, (time.perf_counter() - begun) * 1000)
    return best


def test_a_line_without_a_price_is_no_copy_of_another_one() -> None:
    h = _sold_twice(Sold())
    for n in (1, 2):
        line: Line = h.latest[f"in_000{n}"].lines[0]
        h.change(f"in_000{n}", lines=(_nameless(line),))
    assert h.judge().decisions == {}


def _nameless(line: Line) -> Line:
    import msgspec

    return msgspec.structs.replace(line, price=None, product=None)
