"""The rules 1 to 10, the settled readings 1 to 28, and everything that only looks like a duplicate (clause 4.3)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from handlers.decisions import ActionKind
from tests.handlers.history import (
    DAY,
    HOUR,
    MINUTE,
    MONTH,
    T0,
    History,
    Sold,
    policy_with,
)
from tests.handlers.verdicts import Case, Cases, begun, check, none, refund, review

cases = Cases()
COPY = ("refund ch_0002 29.00 USD", "cancel sub_0002")
PACK = Sold("price_pack_100", 1500, once=True)


def twice(
    h: History, apart: int = 4, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None
) -> None:
    """Two subscriptions to the same thing, some seconds apart."""
    h.subscribe(0, **(first or {}))
    h.subscribe(apart, **(second or {}))


def copied(why: str, *prepared: str, rule: str = "D3") -> Any:
    return review("ch_0002", "ch_0001", rule, *(prepared or COPY), why=why)


SURE = refund("ch_0002", "ch_0001", "D3", "29.00 USD", "cancel sub_0002")

# never duplicates -----------------------------------------------------------------------------------------------------------


@cases("never: plan changes and prorations")
def _(h: History) -> None:
    sub = h.subscribe()
    h.bill(
        sub,
        DAY,
        Sold("price_pro", 5900),
        Sold(amount=-1400, proration=True),
        reason="subscription_update",
        paid_when=DAY,
    )


@cases("never: prorations on a renewal")
def _(h: History) -> None:
    sub = h.subscribe()
    h.bill(sub, DAY, Sold(proration=True), reason="subscription_cycle", paid_when=DAY)


@cases("never: more seats within one subscription (2)")
def _(h: History) -> None:
    sub = h.subscribe(0, Sold(quantity=2, amount=5800))
    h.bill(sub, DAY, Sold(quantity=3, amount=8700), reason="subscription_update", paid_when=DAY)


@cases(
    "never: two credit packs bought on purpose in Checkout, minutes apart (4)",
    none("ch_0002", "ch_0001", "D6", "on purpose"),
)
def _(h: History) -> None:
    for when in (0, 60):
        h.session(when, charge=h.bare(when, 1500))


@cases(
    "never: two packs with different order ids, minutes apart (4)", none("ch_0002", "ch_0001", "D6", "another purchase")
)
def _(h: History) -> None:
    h.bare(0, 1500, order_id="a")
    h.bare(60, 1500, order_id="b")


@cases("never: two workspaces", none("ch_0002", "ch_0001", "D3", "'workspace_id' differs"))
def _(h: History) -> None:
    twice(h, 4, {"metadata": {"workspace_id": "w1"}}, {"metadata": {"workspace_id": "w2"}})


@cases("never: a gift beside one's own", none("ch_0002", "ch_0001", "D3", "'gift' differs"))
def _(h: History) -> None:
    twice(h, 4, {}, {"metadata": {"gift": "yes"}})


@cases("never: two products")
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(4, Sold("price_other"))


@cases("never: renewals, however short the interval")
def _(h: History) -> None:
    sub = h.subscribe(period_s=DAY)
    for _ in range(5):
        h.renew(sub)


@cases("never: a failed attempt and its retry on one payment intent (12)")
def _(h: History) -> None:
    sub = h.subscribe(paid_when=50)
    h.failed(sub.first, 4)


@cases("never: an uncaptured authorisation")
def _(h: History) -> None:
    sub = h.subscribe()
    h.pay_again(sub.first, 40, captured=False, captured_minor=0)
    h.balance_read(60)


@cases("never: free invoices and trials")
def _(h: History) -> None:
    for when in (0, 4):
        h.subscribe(when, Sold(amount=0), captured_minor=0)


@cases("never: reactivated after the end (5)")
def _(h: History) -> None:
    h.end(h.subscribe(0), DAY)
    h.subscribe(DAY)


@cases("never: threshold invoices for usage in the middle of the period")
def _(h: History) -> None:
    sub = h.subscribe()
    h.bill(sub, 0, Sold(), reason="subscription_threshold", paid_when=DAY)


@cases("never: partial payments that add up to the total")
def _(h: History) -> None:
    sub = h.subscribe()
    h.change("ch_0001", amount_minor=900, captured_minor=900)
    h.pay_again(sub.first, 40, 2000)


@cases("never: an invoice partly paid from the balance, next to nothing else")
def _(h: History) -> None:
    sub = h.subscribe(balance=900)
    h.renew(sub)


@cases("never: phases of a schedule")
def _(h: History) -> None:
    sub = h.subscribe()
    h.bill(sub, MONTH, Sold("price_phase_2"), reason="subscription_cycle", paid_when=MONTH)


@cases("never: a paid intro offer and the regular price after it")
def _(h: History) -> None:
    sub = h.subscribe(0, Sold(amount=100), period_s=7 * DAY)
    h.bill(sub, 7 * DAY, Sold(), reason="subscription_cycle", paid_when=7 * DAY, end=37 * DAY)


@cases("never: a recurring line that a coupon made free, beside a paid pack")
def _(h: History) -> None:
    for when in (0, 4):
        h.subscribe(when, Sold(discount=2900), extra=(PACK,))


# rules ------------------------------------------------------------------------------------------------------------------------


@cases(
    "rule 1: where the first was refunded by hand, the second is the original",
    refund("ch_0003", "ch_0002", "D3", "29.00 USD", "cancel sub_0003"),
)
def _(h: History) -> None:
    for when in (0, 4, 9):
        h.subscribe(when)
    h.refund("ch_0001", HOUR)


@cases(
    "rule 1: equal seconds are ordered by charge id, in byte order (27)",
    refund("ch_a", "ch_B", "D3", "29.00 USD", "cancel sub_0001"),
)
def _(h: History) -> None:
    h.subscribe(0, id="ch_a")
    h.subscribe(0, id="ch_B")


@cases(
    "rule 2: a pack on the same invoice stays paid", refund("ch_0002", "ch_0001", "D3", "29.00 USD", "cancel sub_0002")
)
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(4, extra=(PACK,))


@cases("rule 2: an arithmetic that does not close", copied("come to 29.00 USD, its total is 30.00 USD"))
def _(h: History) -> None:
    twice(h)
    h.change("in_0002", total_minor=3000, amount_due_minor=3000)
    h.change("ch_0002", amount_minor=3000, captured_minor=3000)


@cases("rule 2: only a part of the lines is known", copied("only a part of the lines"))
def _(h: History) -> None:
    twice(h)
    h.change("in_0002", lines_complete=False)


@cases("rule 2: a credit note was written", copied("credit note"))
def _(h: History) -> None:
    twice(h)
    h.change("in_0002", credit_notes_minor=500)


@cases("rule 2: the original was compensated by a credit note", copied("credit note was written for the original's"))
def _(h: History) -> None:
    twice(h)
    h.change("in_0001", credit_notes_minor=2900)


@cases("rule 3: partly refunded already: the rest", refund("ch_0002", "ch_0001", "D3", "19.00 USD", "cancel sub_0002"))
def _(h: History) -> None:
    twice(h)
    h.refund("ch_0002", HOUR, 1000)


@cases(
    "rule 3: the charge's figure is older than the refund: both count",
    refund("ch_0002", "ch_0001", "D3", "9.00 USD", "cancel sub_0002"),
)
def _(h: History) -> None:
    twice(h)
    h.change("ch_0002", when=HOUR, refunded_minor=1000)  # its refund was never told of
    h.refund("ch_0002", 2 * HOUR, 1000, figure=False)


@cases(
    "rule 3: a refund that failed since the charge was told of is no longer inside its figure",
    refund("ch_0002", "ch_0001", "D3", "29.00 USD", "cancel sub_0002"),
)
def _(h: History) -> None:
    twice(h)
    back = h.refund("ch_0002", HOUR, 1000)
    h.change(back, when=2 * HOUR, status="failed")


@cases(
    "rule 3: a failed refund takes nothing off another one that only the charge tells of",
    refund("ch_0002", "ch_0001", "D3", "24.00 USD", "cancel sub_0002"),
)
def _(h: History) -> None:
    twice(h)
    h.refund("ch_0002", HOUR, 1000, status="failed")
    h.change("ch_0002", when=2 * HOUR, refunded_minor=500)
    h.change("re_0001", when=3 * HOUR)


@cases(
    "rule 3: fully refunded, and its subscription ended: nothing left",
    none("ch_0002", "ch_0001", "D3", "went back already"),
)
def _(h: History) -> None:
    twice(h)
    h.refund("ch_0002", HOUR)
    h.change("sub_0002", status="canceled", ended_at=T0 + HOUR)


@pytest.mark.parametrize(
    "status", ["needs_response", "under_review", "warning_needs_response", "appeal_under_review", "new_status"]
)
@pytest.mark.parametrize("charge", ["ch_0001", "ch_0002"])
def test_rule_4_an_open_dispute_on_either_copy_is_a_review(status: str, charge: str) -> None:
    def tell(h: History) -> None:
        twice(h)
        h.dispute(charge, status)

    check(Case("", tell, (copied("a dispute or inquiry is open"),)))


@cases("rule 4: the charge says disputed and no dispute is told of yet", copied("a dispute or inquiry is open"))
def _(h: History) -> None:
    twice(h)
    h.change("ch_0002", disputed=True)


@cases("rule 4: a dispute on a third payment changes nothing", SURE)
def _(h: History) -> None:
    twice(h)
    h.dispute(h.bare(DAY, 700), "needs_response")


@cases("rule 5: a pending bank debit is no payment yet (11)")
def _(h: History) -> None:
    twice(h, second={"method": "sepa_debit"})
    h.change("ch_0002", status="pending", captured=False, captured_minor=0)


@cases("rule 5: a failed bank debit never was one (11)")
def _(h: History) -> None:
    twice(h, second={"method": "sepa_debit"})
    h.change("ch_0002", status="failed", captured=False, captured_minor=0)


@cases(
    "rule 6: above the limit per refund",
    review(
        "ch_0002",
        "ch_0001",
        "D3",
        "refund ch_0002 500.01 USD",
        "cancel sub_0002",
        why="500.01 USD is above the limit of 500.00 USD",
    ),
)
def _(h: History) -> None:
    for when in (0, 4):
        h.subscribe(when, Sold(amount=50001))


@cases("rule 6: exactly the limit", refund("ch_0002", "ch_0001", "D3", "500.00 USD", "cancel sub_0002"))
def _(h: History) -> None:
    for when in (0, 4):
        h.subscribe(when, Sold(amount=50000))


@cases(
    "rule 6: a currency without a limit",
    review("ch_0002", "ch_0001", "D3", "refund ch_0002 29.00 CHF", "cancel sub_0002", why="no refund limit for CHF"),
)
def _(h: History) -> None:
    for when in (0, 4):
        h.subscribe(when, currency="chf")


# readings -----------------------------------------------------------------------------------------------------------------------


@cases("1: outside the window, overlapping", copied("2 h apart, more than the window of 15 min"))
def _(h: History) -> None:
    twice(h, 2 * HOUR)


@cases(
    "1: three copies, two inside the window and one hours later",
    SURE,
    review("ch_0003", "ch_0001", "D3", "refund ch_0003 29.00 USD", "cancel sub_0003", why="more than the window"),
)
def _(h: History) -> None:
    for when in (0, 4, 3 * HOUR):
        h.subscribe(when)


@cases(
    "2: another quantity of the same price",
    review(
        "ch_0002", "ch_0001", "D3", "refund ch_0002 58.00 USD", "cancel sub_0002", why="quantities differ (1 and 2)"
    ),
)
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(4, Sold(quantity=2, amount=5800))


@cases("3: different persons under one customer", none("ch_0002", "ch_0001", "D3", "different persons"))
def _(h: History) -> None:
    twice(h, 4, {"metadata": {"user_id": "a"}}, {"metadata": {"user_id": "b"}})


@cases("3: different persons with one card and one e-mail", none("ch_0002", "ch_0001", "D4", "different persons"))
def _(h: History) -> None:
    shared = {"card": "fp", "email": "hash"}
    twice(h, 4, {"metadata": {"user_id": "a"}, **shared}, {"metadata": {"user_id": "b"}, "customer": "cus_B", **shared})


@cases("3: different scope, across customers", none("ch_0002", "ch_0001", "D4", "'team_id' differs"))
def _(h: History) -> None:
    twice(
        h,
        4,
        {"metadata": {"user_id": "a", "team_id": "x"}},
        {"metadata": {"user_id": "a", "team_id": "y"}, "customer": "cus_B"},
    )


@cases("5: ended in the very second in which the other began")
def _(h: History) -> None:
    h.end(h.subscribe(0), HOUR)
    h.subscribe(HOUR)


@cases("5: ended a second after the other began: the original would not serve (19)", copied("ended or is about to end"))
def _(h: History) -> None:
    first = h.subscribe(0)
    h.subscribe(60)
    h.end(first, 61)


@cases("5: bought again while the scheduled end had not come", copied("ended or is about to end"))
def _(h: History) -> None:
    h.schedule_end(h.subscribe(0), DAY)
    h.subscribe(2 * DAY)


@cases(
    "8: a lost dispute on the later copy: its money went back", none("ch_0002", "ch_0001", "D3", "went back already")
)
def _(h: History) -> None:
    twice(h)
    h.dispute("ch_0002", "lost")


@cases(
    "8: a prevented dispute on the later copy: the network refunded it",
    none("ch_0002", "ch_0001", "D3", "went back already"),
)
def _(h: History) -> None:
    twice(h)
    h.dispute("ch_0002", "prevented")


@cases("8: a lost dispute on the first: the other is the original")
def _(h: History) -> None:
    twice(h)
    h.dispute("ch_0001", "lost")


@cases(
    "8: a dispute lost in part",
    review("ch_0002", "ch_0001", "D3", "refund ch_0002 19.00 USD", "cancel sub_0002", why="took back a part"),
)
def _(h: History) -> None:
    twice(h)
    h.dispute("ch_0002", "lost", amount=1000)


@cases(
    "9: the later one given back by hand, its subscription left running",
    review("ch_0002", "ch_0001", "D3", "cancel sub_0002", why="left running"),
)
def _(h: History) -> None:
    twice(h)
    h.refund("ch_0002", HOUR)


@cases(
    "9: as before, and the cancellation was begun already",
    none("ch_0002", "ch_0001", "D3", "went back already"),
    acted=begun("sub_0002", kind=ActionKind.CANCEL_SUBSCRIPTION),
)
def _(h: History) -> None:
    twice(h)
    h.refund("ch_0002", HOUR)


@cases("9: the first one given back by hand: the later one is the original")
def _(h: History) -> None:
    twice(h)
    h.refund("ch_0001", HOUR)


@cases("11, 22: a bank debit that succeeded may still be returned", copied("sepa_debit, which may still be returned"))
def _(h: History) -> None:
    twice(h, second={"method": "sepa_debit", "begun": 4})


@cases("22: the original is a bank debit", copied("the original ch_0001 is a us_bank_account"))
def _(h: History) -> None:
    twice(h, first={"method": "us_bank_account"})


@cases("22: a method nobody told of", copied("unknown method"))
def _(h: History) -> None:
    twice(h, second={"method": ""})


@cases(
    "14: earlier is what was paid earlier, not what was begun earlier",
    refund("ch_0001", "ch_0002", "D3", "29.00 USD", "cancel sub_0001"),
)
def _(h: History) -> None:
    twice(h, 4, {"paid_when": 120})


@cases(
    "14: a bank debit that was begun first and succeeded days later is the later one",
    review("ch_0001", "ch_0002", "D3", "refund ch_0001 29.00 USD", "cancel sub_0001", why="sepa_debit"),
)
def _(h: History) -> None:
    twice(h, 4, {"paid_when": 3 * DAY, "method": "sepa_debit", "begun": 0})


@cases("16: equal on every key", SURE)
def _(h: History) -> None:
    twice(h, 4, {"metadata": {"user_id": "a", "plan": "x"}}, {"metadata": {"user_id": "a", "plan": "x"}})


@cases("16: different in volatile keys only", SURE)
def _(h: History) -> None:
    twice(h, 4, {"metadata": {"request_id": "1"}}, {"metadata": {"request_id": "2", "utm_source": "mail"}})


@cases("16: a fresh order id per click", copied("order key 'order_id' differs"))
def _(h: History) -> None:
    twice(h, 4, {"metadata": {"order_id": "1"}}, {"metadata": {"order_id": "2"}})


@cases("16: different in an unknown key", copied("key 'colour' differs"))
def _(h: History) -> None:
    twice(h, 4, {"metadata": {"colour": "red"}}, {"metadata": {"colour": "blue"}})


@cases("16: an unknown key on one of them only", copied("key 'colour' differs"))
def _(h: History) -> None:
    twice(h, 4, {}, {"metadata": {"colour": "blue"}})


@cases("16: a scope that differs decides even beside a doubt", none("ch_0002", "ch_0001", "D3", "'seat' differs"))
def _(h: History) -> None:
    twice(h, 4, {"metadata": {"colour": "red", "seat": "1"}}, {"metadata": {"colour": "blue", "seat": "2"}})


@cases("17: the person's id is told on one side only", copied("only one of the two names the person"))
def _(h: History) -> None:
    twice(h, 4, {"metadata": {"user_id": "a"}})


@cases("17: the sources disagree", copied("sources of the person's id disagree"))
def _(h: History) -> None:
    twice(h, 4, {"metadata": {"user_id": "a"}, "reference": "b"}, {"metadata": {"user_id": "a"}})


@cases("17: the customer's metadata speaks where the subscription is silent", SURE)
def _(h: History) -> None:
    h.customer(user_id="a")
    twice(h, 4, {"metadata": {"user_id": "a"}})


@cases(
    "17: ids under different keys are not compared",
    policy=policy_with(('person = ["user_id"]', 'person = ["user_id", "account_id"]')),
)
def _(h: History) -> None:
    twice(h, 4, {"metadata": {"user_id": "7"}}, {"metadata": {"account_id": "7"}, "customer": "cus_B"})


@cases(
    "18: a pack charged twice under one order id",
    review("ch_0002", "ch_0001", "D6", "refund ch_0002 15.00 USD", why="credit pack"),
)
def _(h: History) -> None:
    for when in (0, 60):
        h.session(when, charge=h.bare(when, 1500, order_id="o1"))


@cases(
    "18: a pack's price named in metadata",
    review("ch_0002", "ch_0001", "D6", "refund ch_0002 15.00 USD", why="credit pack"),
)
def _(h: History) -> None:
    for when in (0, 60):
        h.bare(when, 1500, order_id="o1", price="price_pack_100")


@cases(
    "18: an invoice with a pack, paid twice",
    review("ch_0002", "ch_0001", "D1", "refund ch_0002 44.00 USD", why="credit pack"),
)
def _(h: History) -> None:
    sub = h.subscribe(extra=(PACK,))
    h.pay_again(sub.first, 60)
    h.balance_read(90)


@cases("19: the original's subscription was ended by the customer", copied("ended or is about to end"))
def _(h: History) -> None:
    first = h.subscribe(0)
    h.subscribe(4)
    h.end(first, HOUR)


@cases("19: its end is scheduled for a date", copied("ended or is about to end"))
def _(h: History) -> None:
    twice(h)
    h.change("sub_0001", cancel_at=T0 + MONTH)


@cases("20: an original that was partly refunded", copied("9.00 USD of the original ch_0001 was refunded"))
def _(h: History) -> None:
    twice(h)
    h.refund("ch_0001", HOUR, 900)


@cases("20: an original whose dispute was won", copied("a dispute on the original ch_0001 was won"))
def _(h: History) -> None:
    twice(h)
    h.dispute("ch_0001", "won")


@cases("20: a closed inquiry leaves no trace", SURE)
def _(h: History) -> None:
    twice(h)
    h.dispute("ch_0001", "warning_closed")
    h.dispute("ch_0002", "warning_closed")


@cases(
    "21: found after the copies renewed: one review lists all",
    copied(
        "each of these payments is a copy: ch_0002, ch_0004, ch_0006",
        *("refund ch_0002 29.00 USD", "refund ch_0004 29.00 USD", "refund ch_0006 29.00 USD", "cancel sub_0002"),
    ),
)
def _(h: History) -> None:
    one, two = h.subscribe(0), h.subscribe(4)
    for _ in range(2):
        h.renew(one)
        h.renew(two)


@cases("21: the original renewed and the copy had ended: still one plain refund", refund("ch_0002", "ch_0001", "D3"))
def _(h: History) -> None:
    one, two = h.subscribe(0), h.subscribe(4)
    h.end(two, DAY)
    h.renew(one)


@cases(
    "21: approved, and the first of the refunds was begun: the others keep their decision",
    acted=begun("ch_0002"),
)
def _(h: History) -> None:
    one, two = h.subscribe(0), h.subscribe(4)
    h.renew(one)
    h.renew(two)
    h.refund("ch_0002", MONTH + DAY, action="act_1")


@cases(
    "21: refunded by us, not cancelled, and renewed since: a person looks at the renewal",
    review(
        "ch_0004", "ch_0003", "D3", "refund ch_0004 29.00 USD", "cancel sub_0002", why="not both are the first payments"
    ),
    acted=begun("ch_0002"),
)
def _(h: History) -> None:
    one, two = h.subscribe(0), h.subscribe(4)
    h.refund("ch_0002", HOUR, action="act_1")
    h.renew(one)
    h.renew(two)


@cases(
    "21: the first copy given back by hand, left running, and renewed",
    review(
        "ch_0004", "ch_0003", "D3", "refund ch_0004 29.00 USD", "cancel sub_0002", why="not both are the first payments"
    ),
)
def _(h: History) -> None:
    one, two = h.subscribe(0), h.subscribe(4)
    h.refund("ch_0002", HOUR)
    h.renew(one)
    h.renew(two)


@cases(
    "21: the renewal of the copy was disputed: it is listed, and its refund is not prepared",
    copied("ch_0002, ch_0004", "refund ch_0002 29.00 USD", "cancel sub_0002"),
)
def _(h: History) -> None:
    one, two = h.subscribe(0), h.subscribe(4)
    h.renew(one)
    h.renew(two)
    h.dispute("ch_0004", "needs_response", MONTH + DAY)


@cases("24: at the very end of the window", SURE)
def _(h: History) -> None:
    twice(h, 15 * MINUTE)


@cases("24: a second beyond it", copied("more than the window"))
def _(h: History) -> None:
    twice(h, 15 * MINUTE + 1)


@cases(
    "24: measured from the original, not from the copy before",
    refund("ch_0002", "ch_0001", "D3", "29.00 USD", "cancel sub_0002"),
    review("ch_0003", "ch_0001", "D3", "refund ch_0003 29.00 USD", "cancel sub_0003", why="20 min apart"),
)
def _(h: History) -> None:
    for when in (0, 10 * MINUTE, 20 * MINUTE):
        h.subscribe(when)


@cases(
    "25: a coupon on one of them only",
    review(
        "ch_0002",
        "ch_0001",
        "D3",
        "refund ch_0002 24.00 USD",
        "cancel sub_0002",
        why="amounts differ (29.00 USD and 24.00 USD)",
    ),
)
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(4, Sold(discount=500))


@cases(
    "25: the later copy partly paid from the balance",
    review(
        "ch_0002", "ch_0001", "D3", "refund ch_0002 19.00 USD", "cancel sub_0002", why="19.00 USD of 29.00 USD was due"
    ),
)
def _(h: History) -> None:
    twice(h, second={"balance": 1000})


@cases(
    "25: a hand refund on an invoice that also carries a pack",
    review(
        "ch_0002",
        "ch_0001",
        "D3",
        "refund ch_0002 24.00 USD",
        "cancel sub_0002",
        why="refunded by hand, and the invoice carries other lines",
    ),
)
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(4, extra=(PACK,))
    h.refund("ch_0002", HOUR, 500)


@cases("25: both invoices carry the same pack: only the subscription's line is a copy", SURE)
def _(h: History) -> None:
    twice(h, 4, {"extra": (PACK,)}, {"extra": (PACK,)})


@cases("25: the later copy was ended by the customer, not refunded", refund("ch_0002", "ch_0001", "D3"))
def _(h: History) -> None:
    twice(h)
    h.change("sub_0002", status="canceled", ended_at=T0 + HOUR)


@cases("26: a trial beside a paid subscription, long before it is charged")
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(60, trial_until=14 * DAY)


@cases(
    "26: a trial beside a paid subscription, about to be charged",
    review("sub_0002", "ch_0001", "D3", "cancel sub_0002", why="about to be charged"),
)
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(60, trial_until=14 * DAY)
    h.bare(12 * DAY, 100)


@cases("26: a trial for another workspace")
def _(h: History) -> None:
    h.subscribe(0, metadata={"workspace_id": "a"})
    h.subscribe(60, metadata={"workspace_id": "b"}, trial_until=DAY)


@cases(
    "27: the same thing paid in two currencies",
    review("ch_0002", "ch_0001", "D3", "refund ch_0002 29.00 EUR", "cancel sub_0002", why="two currencies"),
)
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(4, currency="eur")


@cases("28: test clocks are left alone")
def _(h: History) -> None:
    h.customer(test_clock=True)
    twice(h)


@cases("28: a subscription on a test clock, its customer not told of")
def _(h: History) -> None:
    twice(h, 4, {"test_clock": True}, {"test_clock": True})


@cases("28: test clocks count in a rehearsal", SURE, test_clocks=True)
def _(h: History) -> None:
    h.customer(test_clock=True)
    twice(h)


# clauses 8 and 9 ----------------------------------------------------------------------------------------------------------------

AGREED = '\n[[agreement]]\ncustomer = "cus_A"\nsource = "MSA 4"\nfrom = 2025-06-01T00:00:00Z\noverrides = {{ {} }}\n'


@cases(
    "8: an agreement that asks for a person",
    copied("agreement asks for a person"),
    policy=policy_with(agreement=AGREED.format('duplicates = "review"')),
)
def _(h: History) -> None:
    twice(h)


@cases(
    "8: an agreement that excludes refunds of duplicates, and says so",
    none("ch_0002", "ch_0001", "D3", "(agreement: MSA 4)"),
    policy=policy_with(agreement=AGREED.format('duplicates = "none"')),
)
def _(h: History) -> None:
    twice(h)


@cases(
    "8: an agreement with a wider window",
    refund("ch_0002", "ch_0001", "D3", "29.00 USD", "cancel sub_0002"),
    policy=policy_with(agreement=AGREED.format('window = "3h"')),
)
def _(h: History) -> None:
    twice(h, 2 * HOUR)


@cases(
    "8: an agreement with the original's customer only",
    review("ch_0002", "ch_0001", "D4", *COPY, why="agreement with cus_A"),
    policy=policy_with(agreement=AGREED.format('duplicates = "none"')),
)
def _(h: History) -> None:
    twice(h, 4, {"metadata": {"user_id": "a"}}, {"metadata": {"user_id": "a"}, "customer": "cus_B"})


@cases(
    "9: paid before any version was in force",
    copied("no version of the policy"),
    policy=policy_with(("in_force_from = 2025-01-01", "in_force_from = 2026-02-01")),
)
def _(h: History) -> None:
    twice(h)


# an adversary's stories -----------------------------------------------------------------------------------------------------------


@cases(
    "a hostile story: one payment linked to two invoices",
    copied("paid several invoices", "refund ch_0002 29.00 USD", "cancel sub_0002"),
)
def _(h: History) -> None:
    twice(h)
    row = h.latest["inpay_0002"]
    h.tell(msgspec.structs.replace(row, id="inpay_x", invoice="in_x"))


@cases(
    "a hostile story: the copy's charge is not known to be an invoice's yet",
    copied("no order id on both", "refund ch_0002 29.00 USD", rule="D6"),
)
def _(h: History) -> None:
    twice(h)
    h.forget("inpay_0001", "inpay_0002")


@cases("a hostile story: the subscription was changed after it was paid", copied("do not hold the same items"))
def _(h: History) -> None:
    twice(h)
    sub = h.latest["sub_0002"]
    h.change("sub_0002", items=(msgspec.structs.replace(sub.items[0], price="price_pro"),))


@cases(
    "a hostile story: a renewal that shares seconds with the copy's first period is not a copy",
    copied("ch_0002, ch_0004", "refund ch_0002 29.00 USD", "refund ch_0004 29.00 USD", "cancel sub_0002"),
)
def _(h: History) -> None:
    one, two = h.subscribe(0), h.subscribe(10 * MINUTE)
    h.renew(one)
    h.renew(two)


@cases("a hostile story: an order id of D6 on payments of invoices")
def _(h: History) -> None:
    h.subscribe(0, metadata={"workspace_id": "a"})
    h.subscribe(4, metadata={"workspace_id": "b"})
    h.change("ch_0001", metadata={"order_id": "1"})
    h.change("ch_0002", metadata={"order_id": "1"})


@cases(
    "a hostile story: tied by an e-mail only, given back by hand and left running: somebody saw to it",
    none("ch_0002", "ch_0001", "D4", "went back already"),
)
def _(h: History) -> None:
    twice(h, 4, {"email": "hash"}, {"email": "hash", "customer": "cus_B"})
    h.refund("ch_0002", HOUR)


@cases(
    "a cancellation that was begun is not prepared again",
    refund("ch_0002", "ch_0001", "D3"),
    acted=begun("sub_0002", kind=ActionKind.CANCEL_SUBSCRIPTION),
)
def _(h: History) -> None:
    twice(h)


@cases(
    "a hostile story: both subscriptions were changed alike after they were paid",
    copied("was changed since it was paid"),
)
def _(h: History) -> None:
    twice(h)
    for sub in ("sub_0001", "sub_0002"):
        h.change(sub, items=(msgspec.structs.replace(h.latest[sub].items[0], price="price_pro"),))


@cases(
    "three purchases, of which the last repeats the second beyond doubt and the first perhaps",
    copied("key 'colour' differs"),
    refund("ch_0003", "ch_0002", "D3", "29.00 USD", "cancel sub_0003"),
)
def _(h: History) -> None:
    h.subscribe(0, metadata={"colour": "red"})
    h.subscribe(4)
    h.subscribe(9)


@cases(
    "three purchases, of which the last repeats the second and not the first",
    refund("ch_0003", "ch_0002", "D3", "29.00 USD", "cancel sub_0003"),
)
def _(h: History) -> None:
    for when, workspace in ((0, "w1"), (4, "w2"), (9, "w2")):
        h.subscribe(when, metadata={"workspace_id": workspace})


@cases(
    "a payment that our own refund of its second invoice keeps is not given back by itself",
    copied("keeps ch_0002 as its original"),
    acted=begun("ch_0003"),
)
def _(h: History) -> None:
    h.subscribe(0)
    two = h.subscribe(4)
    h.bill(two, 4, *two.items, reason="subscription_create", paid_when=60)


@cases("26: a trial beside a paid subscription that is about to end")
def _(h: History) -> None:
    h.schedule_end(h.subscribe(0), DAY)
    h.subscribe(60, trial_until=2 * DAY)


@pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])
def test_rules_readings_and_look_alikes(case: Case) -> None:
    check(case)
