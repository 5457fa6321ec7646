"""The table of clause 4.3, row by row: how a duplicate arises, what proves it, and the verdict."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from handlers.customer import Line
from handlers.decisions import ActionKind
from tests.handlers.history import DAY, HOUR, MINUTE, MONTH, RECOVERING, REVERSING, Bought, History, Sold
from tests.handlers.verdicts import Case, Cases, begun, check, none, refund, review

cases = Cases()

# D1: one invoice, two successful payments ---------------------------------------------------------------------------------


def _paid_twice(h: History) -> None:
    sub = h.subscribe()
    h.pay_again(sub.first, 40)


@cases("D1, no balance credit booked: the later payment goes back", refund("ch_0002", "ch_0001", "D1"))
def _(h: History) -> None:
    _paid_twice(h)
    h.balance_read(60)


@cases(
    "D1, balance not read since the second payment: the reading is waited for",
    review("ch_0002", "ch_0001", "D1", why="still being read"),
)
def _(h: History) -> None:
    h.balance_read(10)
    _paid_twice(h)


@cases(
    "D1, an unspent balance credit: a person decides, reversal and refund prepared",
    review("ch_0002", "ch_0001", "D1", "refund ch_0002 29.00 USD", "reverse in_0001 29.00 USD", why="unspent"),
)
def _(h: History) -> None:
    _paid_twice(h)
    h.balance_read(60, ("invoice_overpaid", -2900, "in_0001"))


@cases(
    "D1, an unspent balance credit where the policy reverses it: reversal and refund together",
    refund("ch_0002", "ch_0001", "D1", "29.00 USD", "reverse in_0001 29.00 USD"),
    policy=REVERSING,
)
def _(h: History) -> None:
    _paid_twice(h)
    h.balance_read(60, ("invoice_overpaid", -2900, "in_0001"))


@cases(
    "D1, balance credit reversed by us already: the refund follows",
    refund("ch_0002", "ch_0001", "D1"),
    acted=begun("in_0001", kind=ActionKind.REVERSE_BALANCE_CREDIT),
    policy=REVERSING,
)
def _(h: History) -> None:
    _paid_twice(h)
    h.balance_read(60, ("invoice_overpaid", -2900, "in_0001"))


@cases(
    "D1, a third payment after credit and refund of the second were settled: its own credit must be looked at",
    review("ch_0003", "ch_0001", "D1", "refund ch_0003 29.00 USD", why="reversed for another"),
    acted=begun("ch_0002") + begun("in_0001", kind=ActionKind.REVERSE_BALANCE_CREDIT),
    policy=REVERSING,
)
def _(h: History) -> None:
    sub = h.subscribe()
    h.pay_again(sub.first, 40)
    h.refund("ch_0002", 900, action="act_1")
    h.pay_again(sub.first, HOUR)
    h.balance_read(
        2 * HOUR,
        ("invoice_overpaid", -2900, "in_0001"),
        ("adjustment", 2900, None),
        ("invoice_overpaid", -2900, "in_0001"),
    )


@cases(
    "D1, the balance credit partly spent: a person decides, nothing prepared",
    review("ch_0002", "ch_0001", "D1", why="a part was used"),
    policy=REVERSING,
)
def _(h: History) -> None:
    _paid_twice(h)
    h.balance_read(60, ("invoice_overpaid", -2900, "in_0001"), ("applied_to_invoice", 1000, "in_0009"))


@cases(
    "D1, the balance credit wholly spent: it was the compensation",
    none("ch_0002", "ch_0001", "D1", "used that up"),
    policy=REVERSING,
)
def _(h: History) -> None:
    _paid_twice(h)
    h.balance_read(60, ("invoice_overpaid", -2900, "in_0001"), ("applied_to_invoice", 2900, "in_0009"))


@cases(
    "D1, the balance credit taken away by hand, not spent: a person decides",
    review("ch_0002", "ch_0001", "D1", why="a part was used or changed"),
    policy=REVERSING,
)
def _(h: History) -> None:
    _paid_twice(h)
    h.balance_read(60, ("invoice_overpaid", -2900, "in_0001"), ("adjustment", 2900, None))


@cases(
    "D1, a spent credit hidden behind a new one: not taken for unspent",
    review("ch_0002", "ch_0001", "D1", why="a part was used or changed"),
    policy=REVERSING,
)
def _(h: History) -> None:
    _paid_twice(h)
    h.balance_read(
        60, ("invoice_overpaid", -2900, "in_0001"), ("applied_to_invoice", 2900, "in_0009"), ("adjustment", -2900, None)
    )


@cases(
    "D1, the credit is not the excess: a person decides",
    review(
        *("ch_0002", "ch_0001", "D1", "refund ch_0002 29.00 USD", "reverse in_0001 20.00 USD"),
        why="balance credit (20.00 USD) is not the excess (29.00 USD)",
    ),
    policy=REVERSING,
)
def _(h: History) -> None:
    _paid_twice(h)
    h.balance_read(60, ("invoice_overpaid", -2000, "in_0001"))


@cases(
    "D1, the invoice tells of an overpayment, and the balance as read shows no credit: none was booked",
    refund("ch_0002", "ch_0001", "D1"),
)
def _(h: History) -> None:
    _paid_twice(h)
    h.change("in_0001", overpaid_minor=2900)
    h.balance_read(60)


@cases(
    "D1, no credit booked under its name, but as much stands in the customer's favour",
    review("ch_0002", "ch_0001", "D1", why="stands in the customer's favour"),
)
def _(h: History) -> None:
    _paid_twice(h)
    h.change("in_0001", overpaid_minor=2900)
    h.balance_read(60, ("adjustment", -2900, None))


@cases("D1, only a part of the balance was read", review("ch_0002", "ch_0001", "D1", why="more transactions"))
def _(h: History) -> None:
    _paid_twice(h)
    h.balance_read(60, complete=False)


@cases(
    "D1, the second payment exceeds what was due by a part: exactly that part",
    refund("ch_0002", "ch_0001", "D1", "10.00 USD"),
)
def _(h: History) -> None:
    sub = h.subscribe()
    h.change("ch_0001", captured_minor=1900, amount_minor=1900)
    h.pay_again(sub.first, 40, 2000)
    h.balance_read(60)


@cases(
    "D1, three payments: two go back, the first stays",
    refund("ch_0002", "ch_0001", "D1"),
    refund("ch_0003", "ch_0001", "D1"),
)
def _(h: History) -> None:
    sub = h.subscribe()
    h.pay_again(sub.first, 40)
    h.pay_again(sub.first, 50)
    h.balance_read(60)


@cases(
    "D1, three payments sharing one credit: a person decides about both",
    review(
        "ch_0002", "ch_0001", "D1", "refund ch_0002 29.00 USD", "reverse in_0001 58.00 USD", why="share one balance"
    ),
    review(
        "ch_0003", "ch_0001", "D1", "refund ch_0003 29.00 USD", "reverse in_0001 58.00 USD", why="share one balance"
    ),
    policy=REVERSING,
)
def _(h: History) -> None:
    sub = h.subscribe()
    h.pay_again(sub.first, 40)
    h.pay_again(sub.first, 50)
    h.balance_read(60, ("invoice_overpaid", -2900, "in_0001"), ("invoice_overpaid", -2900, "in_0001"))


@cases(
    "D1 on an invoice partly settled from the balance: measured by what was due",
    refund("ch_0002", "ch_0001", "D1", "19.00 USD"),
)
def _(h: History) -> None:
    sub = h.subscribe(balance=1000)
    h.pay_again(sub.first, 40)
    h.balance_read(60)


@cases(
    "D1 while the invoice is only known as open: not yet proved",
    review("ch_0002", "ch_0001", "D1", "refund ch_0002 29.00 USD", why="not known as paid (open)"),
)
def _(h: History) -> None:
    _paid_twice(h)
    h.change("in_0001", status="open")
    h.balance_read(60)


@cases(
    "D1 on an invoice of no subscription: 4.3 speaks of subscriptions",
    review("ch_0002", "ch_0001", "D1", "refund ch_0002 29.00 USD", why="no subscription"),
)
def _(h: History) -> None:
    _paid_twice(h)
    h.tellings = [f for f in h.tellings if f.id != "in_0001"]
    h.change("in_0001", subscription=None)
    h.balance_read(60)


@cases("D1 is found on a renewal, too", refund("ch_0003", "ch_0002", "D1"))
def _(h: History) -> None:
    sub = h.subscribe()
    renewed = h.renew(sub)
    h.pay_again(renewed, MONTH + 40)
    h.balance_read(MONTH + 60)


def _in_parts(h: History) -> None:
    """19 of 29 dollars, then 29 of which our own refund gives back 19, then 29 again."""
    sub = h.subscribe()
    h.change("ch_0001", captured_minor=1900, amount_minor=1900)
    h.pay_again(sub.first, 40)
    h.pay_again(sub.first, HOUR)
    h.balance_read(2 * HOUR)


@cases(
    "D1, the rest of a payment that we refunded in part still pays the invoice",
    refund("ch_0003", "ch_0001", "D1"),
    acted=begun("ch_0002"),
)
def _(h: History) -> None:
    _in_parts(h)
    h.refund("ch_0002", HOUR, 1900, action="act_1")


@cases(
    "D1, how much our own refund leaves is not told yet",
    review("ch_0003", "ch_0001", "D1", "refund ch_0003 19.00 USD", why="how much of ch_0002"),
    acted=begun("ch_0002"),
)
def _(h: History) -> None:
    _in_parts(h)


@cases(
    "D1, refunded in part by hand and only partly in excess",
    review("ch_0002", "ch_0001", "D1", "refund ch_0002 14.00 USD", why="partly refunded and only partly in excess"),
)
def _(h: History) -> None:
    sub = h.subscribe()
    h.change("ch_0001", captured_minor=1900, amount_minor=1900)
    h.pay_again(sub.first, 40)
    h.refund("ch_0002", 50, 500)
    h.balance_read(60)


# D2: marked paid outside Stripe ---------------------------------------------------------------------------------------------


@cases(
    "D2, marked paid outside Stripe and charged: the outside money cannot be seen",
    review("ch_0001", None, "D2", "refund ch_0001 29.00 USD", why="cannot be seen"),
)
def _(h: History) -> None:
    h.subscribe(off_stripe=2900)


@cases(
    "D2, a payment record beside the charge",
    review("ch_0001", None, "D2", "refund ch_0001 29.00 USD", why="cannot be seen"),
)
def _(h: History) -> None:
    h.subscribe()
    h._pay("in_0001", 50, 2900, "usd", "cus_A")
    record = msgspec.structs.replace(h.latest["inpay_0002"], payment_type="payment_record", payment_intent=None)
    h.forget("ch_0002", "pi_0002", "inpay_0002")
    h.tell(record)


@cases(
    "D2, its own payment canceled when it was marked paid, and the money came all the same",
    review("ch_0001", None, "D2", "refund ch_0001 29.00 USD", why="cannot be seen"),
)
def _(h: History) -> None:
    h.subscribe()
    h.change("inpay_0001", status="canceled")


@cases("D2, outside money and a charge that add up to what was due: no excess")
def _(h: History) -> None:
    h.subscribe(off_stripe=1000)
    h.change("ch_0001", captured_minor=1900, amount_minor=1900)


@cases(
    "D2 and D1 together: a person looks at each charge",
    review("ch_0001", None, "D2", "refund ch_0001 29.00 USD", why="cannot be seen"),
    review("ch_0002", "ch_0001", "D2", "refund ch_0002 29.00 USD", why="cannot be seen"),
)
def _(h: History) -> None:
    sub = h.subscribe(off_stripe=2900)
    h.pay_again(sub.first, 40)


# D3: two subscriptions, one customer --------------------------------------------------------------------------------------


@cases("D3, a double click", refund("ch_0002", "ch_0001", "D3", "29.00 USD", "cancel sub_0002"))
def _(h: History) -> None:
    h.customer()
    h.subscribe(0)
    h.subscribe(4)


@cases("D3, only the first of the two invoices is told of yet: nothing is decided")
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(4)
    h.forget("in_0002")


@cases("D3, only the later of the two invoices is told of yet: nothing is decided")
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(4)
    h.forget("in_0001")


@cases("D3, the later subscription is not told of yet: nothing is decided")
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(4)
    h.forget("sub_0002")


@cases(
    "D3, the original's invoice is only partly paid: it is not known as paid",
    review("ch_0002", "ch_0001", "D3", "refund ch_0002 29.00 USD", "cancel sub_0002", why="not known yet as paid"),
)
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(4)
    h.change("ch_0001", captured_minor=900, amount_minor=900)
    h.change("in_0001", status="open")


@cases(
    "D3, three clicks: the first stays",
    refund("ch_0002", "ch_0001", "D3", "29.00 USD", "cancel sub_0002"),
    refund("ch_0003", "ch_0001", "D3", "29.00 USD", "cancel sub_0003"),
)
def _(h: History) -> None:
    for when in (0, 4, 9):
        h.subscribe(when)


@cases("D3 with two items each", refund("ch_0002", "ch_0001", "D3", "79.00 USD", "cancel sub_0002"))
def _(h: History) -> None:
    for when in (0, 4):
        h.subscribe(when, Sold(), Sold("price_seats", 5000, quantity=5))


@cases(
    "D3, the later subscription holds one item more: it cannot be cancelled as a copy",
    review("ch_0002", "ch_0001", "D3", "refund ch_0002 29.00 USD", "cancel sub_0002", why="same items"),
)
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(4, Sold(), Sold("price_seats", 5000, quantity=5))


@cases(
    "D3, the later subscription also holds a metered item: cancelling it would end more than the copy",
    review("ch_0002", "ch_0001", "D3", "refund ch_0002 29.00 USD", "cancel sub_0002", why="do not hold the same items"),
)
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(4, Sold(), Sold("price_usage", 0, metered=True))


@cases("D3, a tiered price with several lines each", refund("ch_0002", "ch_0001", "D3", "66.00 USD", "cancel sub_0002"))
def _(h: History) -> None:
    for when in (0, 4):
        h.subscribe(when, Sold("price_tiers", 5000, quantity=8))
        last = f"in_000{1 + (when > 0)}"
        line = h.latest[last].lines[0]
        split = (
            _part(line, "a", 5, 5000),
            _part(line, "b", 3, 1600),
        )
        h.change(last, lines=split, total_minor=6600, amount_due_minor=6600, amount_paid_minor=6600)
        h.change(f"ch_000{1 + (when > 0)}", captured_minor=6600, amount_minor=6600)


def _part(line: Line, suffix: str, quantity: int, amount: int) -> Line:
    return msgspec.structs.replace(line, id=f"x_{suffix}", quantity=quantity, amount_minor=amount)


# D4: two customers, one person --------------------------------------------------------------------------------------------


@cases("D4, one app user under two customers", refund("ch_0002", "ch_0001", "D4", "29.00 USD", "cancel sub_0002"))
def _(h: History) -> None:
    h.subscribe(0, customer="cus_A", metadata={"user_id": "u7"})
    h.subscribe(7, customer="cus_B", metadata={"user_id": "u7"})


@cases("D4 by client_reference_id", refund("ch_0002", "ch_0001", "D4", "29.00 USD", "cancel sub_0002"))
def _(h: History) -> None:
    h.subscribe(0, customer="cus_A", reference="u7")
    h.subscribe(7, customer="cus_B", reference="u7")


@cases(
    "D4, the person named by session metadata here and by the customer there",
    refund("ch_0002", "ch_0001", "D4", "29.00 USD", "cancel sub_0002"),
)
def _(h: History) -> None:
    h.customer("cus_B", user_id="u7")
    h.subscribe(0, customer="cus_A", session={"user_id": "u7"})
    h.subscribe(7, customer="cus_B")


@cases(
    "D4, equal e-mail alone",
    review("ch_0002", "ch_0001", "D4", "refund ch_0002 29.00 USD", "cancel sub_0002", why="only an equal e-mail"),
)
def _(h: History) -> None:
    h.customer("cus_A", email="hash")
    h.customer("cus_B", email="hash")
    h.subscribe(0, customer="cus_A")
    h.subscribe(7, customer="cus_B")


@cases(
    "D4, equal card alone",
    review("ch_0002", "ch_0001", "D4", "refund ch_0002 29.00 USD", "cancel sub_0002", why="only an equal card"),
)
def _(h: History) -> None:
    h.subscribe(0, customer="cus_A", card="fp")
    h.subscribe(7, customer="cus_B", card="fp")


@cases("D4, two strangers who bought the same")
def _(h: History) -> None:
    h.subscribe(0, customer="cus_A", card="fp1")
    h.subscribe(7, customer="cus_B", card="fp2")


@cases("D4, an id that is none: two guests called `undefined` are not one person")
def _(h: History) -> None:
    h.subscribe(0, customer="cus_A", metadata={"user_id": "undefined"})
    h.subscribe(7, customer="cus_B", metadata={"user_id": "undefined"})


# D5: two invoices for one period of one item -------------------------------------------------------------------------------


def _second_cycle(h: History, **more: Any) -> None:
    sub = h.subscribe()
    first = h.renew(sub)
    h.bill(sub, first.start, *sub.items, **{"reason": "subscription_cycle", "paid_when": first.start + HOUR, **more})


@cases("D5, two renewals for one period", refund("ch_0003", "ch_0002", "D5"))
def _(h: History) -> None:
    _second_cycle(h)


@cases("D5, three renewals for one period", refund("ch_0003", "ch_0002", "D5"), refund("ch_0004", "ch_0002", "D5"))
def _(h: History) -> None:
    _second_cycle(h)
    sub_items = (Sold(),)
    h.bill(_sub(), MONTH, *sub_items, reason="subscription_cycle", paid_when=MONTH + 2 * HOUR)


def _sub(id_: str = "sub_0001") -> Bought:
    return Bought(id_, "cus_A", (Sold(),), "usd", MONTH)


@cases(
    "D5, amounts differ",
    review("ch_0003", "ch_0002", "D5", "refund ch_0003 25.00 USD", why="amounts differ (29.00 USD and 25.00 USD)"),
)
def _(h: History) -> None:
    sub = h.subscribe()
    first = h.renew(sub)
    h.bill(sub, first.start, Sold(discount=400), reason="subscription_cycle", paid_when=first.start + HOUR)


@cases(
    "D5, one of them raised by hand",
    review("ch_0003", "ch_0002", "D5", "refund ch_0003 29.00 USD", why="not both invoices are ordinary renewals"),
)
def _(h: History) -> None:
    _second_cycle(h, reason="manual")


@cases(
    "D5, a subscription's first invoice and a renewal for one period (6)",
    review("ch_0002", "ch_0001", "D5", "refund ch_0002 29.00 USD", why="ordinary renewals"),
)
def _(h: History) -> None:
    sub = h.subscribe()
    h.bill(sub, 0, *sub.items, reason="subscription_cycle", paid_when=HOUR)


@cases(
    "D5, periods that overlap without being identical (6)",
    review("ch_0003", "ch_0002", "D5", "refund ch_0003 29.00 USD", why="not identical"),
)
def _(h: History) -> None:
    sub = h.subscribe()
    first = h.renew(sub)
    h.bill(sub, first.start + DAY, *sub.items, reason="subscription_cycle", paid_when=first.start + DAY)


@cases(
    "D5 touching the period before by minutes: compared with the identical one",
    refund("ch_0003", "ch_0002", "D5"),
    review("ch_0002", "ch_0001", "D5", "refund ch_0002 29.00 USD", why="not identical"),
)
def _(h: History) -> None:
    sub = h.subscribe()
    h.change("in_0001", lines=(_longer(h.latest["in_0001"].lines[0]),))
    first = h.renew(sub)
    h.bill(sub, first.start, *sub.items, reason="subscription_cycle", paid_when=first.start + HOUR)


def _longer(line: Line) -> Line:
    return msgspec.structs.replace(line, period_end=line.period_end + 5 * MINUTE)


@cases(
    "D5, the plan was changed since",
    review("ch_0003", "ch_0002", "D5", "refund ch_0003 29.00 USD", why="subscription was changed since"),
)
def _(h: History) -> None:
    _second_cycle(h)
    item = h.latest["sub_0001"].items[0]
    h.change("sub_0001", items=(msgspec.structs.replace(item, price="price_pro"),))


@cases(
    "D5, the subscription is not told of yet",
    review("ch_0003", "ch_0002", "D5", "refund ch_0003 29.00 USD", why="not known yet"),
)
def _(h: History) -> None:
    _second_cycle(h)
    h.forget("sub_0001")


@cases("D5, a metered price billed for the same period is usage, not a copy")
def _(h: History) -> None:
    sub = h.subscribe(0, Sold("price_usage", 500, metered=True))
    first = h.renew(sub)
    h.bill(sub, first.start, *sub.items, reason="subscription_cycle", paid_when=first.start + HOUR)


@cases(
    "D5, an item of another interval that is not repeated stays out of the refund",
    review("ch_0003", "ch_0002", "D5", "refund ch_0003 29.00 USD", why="same items for the same time"),
)
def _(h: History) -> None:
    quarterly = Sold("price_quarter", 6000, period=3 * MONTH)
    sub = h.subscribe(0, Sold(), quarterly)
    first = h.bill(sub, MONTH, Sold(), quarterly, reason="subscription_cycle", paid_when=MONTH)
    h.bill(sub, first.start, Sold(), quarterly, reason="subscription_cycle", paid_when=MONTH + HOUR)
    lines = h.latest["in_0003"].lines
    h.change("in_0003", lines=(lines[0], _moved(lines[1], 3 * MONTH)))
    h.forget("in_0001", "ch_0001")


def _moved(line: Line, by: int) -> Line:
    return msgspec.structs.replace(line, period_start=line.period_start + by, period_end=line.period_end + by)


# D6: the app's own renewal retried ------------------------------------------------------------------------------------------


@cases("D6, one order charged twice", refund("ch_0002", "ch_0001", "D6"))
def _(h: History) -> None:
    h.bare(0, order_id="o1")
    h.bare(90, order_id="o1")


@cases("D6, one order charged three times", refund("ch_0002", "ch_0001", "D6"), refund("ch_0003", "ch_0001", "D6"))
def _(h: History) -> None:
    for when in (0, 90, 3 * HOUR):
        h.bare(when, order_id="o1")


@cases("D6, at the very end of the window", refund("ch_0002", "ch_0001", "D6"))
def _(h: History) -> None:
    h.bare(0, renewal_id="r1")
    h.bare(24 * HOUR, renewal_id="r1")


@cases(
    "D6, equal id beyond the window", review("ch_0002", "ch_0001", "D6", "refund ch_0002 29.00 USD", why="2 days apart")
)
def _(h: History) -> None:
    h.bare(0, order_id="o1")
    h.bare(2 * DAY, order_id="o1")


@cases(
    "D6 measured from the original, not from the copy that went back",
    refund("ch_0002", "ch_0001", "D6"),
    review("ch_0003", "ch_0001", "D6", "refund ch_0003 29.00 USD", why="the order id is equal"),
)
def _(h: History) -> None:
    for when in (0, 20 * HOUR, 40 * HOUR):
        h.bare(when, order_id="o1")


@cases(
    "D6, the app copies one id onto daily renewals: not proved by it",
    *(review(f"ch_000{n}", "ch_0001", "D6", f"refund ch_000{n} 29.00 USD", why="") for n in (2, 3, 4)),
)
def _(h: History) -> None:
    for day in range(4):
        h.bare(day * DAY, order_id="first")


@cases(
    "D6, an app that copies ids charges one renewal twice: the copy is still plain",
    review("ch_0002", "ch_0001", "D6", "refund ch_0002 29.00 USD", why="apart"),
    refund("ch_0003", "ch_0002", "D6"),
)
def _(h: History) -> None:
    h.bare(0, order_id="first")
    h.bare(MONTH, order_id="first")
    h.bare(MONTH + 10, order_id="first")


@cases(
    "D6 without any id, minutes apart",
    review("ch_0002", "ch_0001", "D6", "refund ch_0002 29.00 USD", why="no order id on both"),
)
def _(h: History) -> None:
    h.bare(0)
    h.bare(5 * MINUTE)


@cases("D6 without any id, weeks apart")
def _(h: History) -> None:
    h.bare(0)
    h.bare(21 * DAY)


@cases(
    "D6, an id on one of them only, minutes apart",
    review("ch_0002", "ch_0001", "D6", "refund ch_0002 29.00 USD", why="no order id on both"),
)
def _(h: History) -> None:
    h.bare(0, order_id="o1")
    h.bare(5 * MINUTE)


@cases("D6, order equal but renewal different: two renewals of one order")
def _(h: History) -> None:
    h.bare(0, order_id="o1", renewal_id="r1")
    h.bare(5 * MINUTE, order_id="o1", renewal_id="r2")


@cases("D6, other amount, other customer, other currency")
def _(h: History) -> None:
    h.bare(0, 2900, order_id="o1")
    h.bare(10, 2901, order_id="o1")
    h.bare(20, 2900, order_id="o1", customer="cus_B")
    h.bare(30, 2900, order_id="o1", currency="eur")


@cases("D6 for different persons", none("ch_0002", "ch_0001", "D6", "different persons"))
def _(h: History) -> None:
    h.bare(0, order_id="o1", user_id="a")
    h.bare(10, order_id="o1", user_id="b")


@cases(
    "D6 with other metadata unlike in an unknown key",
    review("ch_0002", "ch_0001", "D6", "refund ch_0002 29.00 USD", why="'colour' differs"),
)
def _(h: History) -> None:
    h.bare(0, order_id="o1", colour="red")
    h.bare(10, order_id="o1", colour="blue")


# D7: charged by hand what dunning collected -----------------------------------------------------------------------------------


def _dunned(h: History, hand: int, failed: int, paid: int = 2 * DAY, amount: int = 2900) -> None:
    sub = h.subscribe()
    billed = h.renew(sub, paid_when=MONTH + paid, attempts=2)
    h.failed(billed, MONTH + failed)
    h.bare(MONTH + hand, amount)


@cases(
    "D7, charged by hand between the failure and the late success",
    review("ch_0002", "ch_0004", "D7", "refund ch_0002 29.00 USD", why="only a person knows"),
)
def _(h: History) -> None:
    _dunned(h, hand=DAY, failed=HOUR)


@cases(
    "D7, dunning collected first and the hand charge came after",
    review("ch_0004", "ch_0002", "D7", "refund ch_0004 29.00 USD", why="only a person knows"),
)
def _(h: History) -> None:
    _dunned(h, hand=3 * DAY, failed=HOUR)


@cases("D7 needs a failed attempt before the hand charge (26)")
def _(h: History) -> None:
    _dunned(h, hand=HOUR, failed=DAY)


@cases("D7, another amount")
def _(h: History) -> None:
    _dunned(h, hand=DAY, failed=HOUR, amount=2800)


@cases("D7, weeks apart")
def _(h: History) -> None:
    _dunned(h, hand=DAY, failed=HOUR, paid=12 * DAY)


# D8: subscribed again, and the old one recovered ------------------------------------------------------------------------------


def _recovered(h: History, **new: Any) -> None:
    old = h.subscribe(0)
    h.subscribe(MONTH + 5 * DAY, **new)
    h.renew(old, paid_when=MONTH + 8 * DAY, attempts=3)


@cases(
    "D8, the policy leaves it to a person: refund and cancellation prepared",
    review("ch_0003", "ch_0002", "D8", "refund ch_0003 29.00 USD", "cancel sub_0001", why="late recoveries"),
)
def _(h: History) -> None:
    _recovered(h)


@cases(
    "D8, automatic where the policy says so",
    refund("ch_0003", "ch_0002", "D8", "29.00 USD", "cancel sub_0001"),
    policy=RECOVERING,
)
def _(h: History) -> None:
    _recovered(h)


@cases(
    "D8 at another amount is never automatic",
    review("ch_0003", "ch_0002", "D8", "refund ch_0003 29.00 USD", "cancel sub_0001", why="amounts differ"),
    policy=RECOVERING,
)
def _(h: History) -> None:
    old = h.subscribe(0)
    h.subscribe(MONTH + 5 * DAY, Sold(discount=900))
    h.renew(old, paid_when=MONTH + 8 * DAY, attempts=3)


@cases(
    "D8, the new subscription was ended meanwhile",
    review("ch_0003", "ch_0002", "D8", "refund ch_0003 29.00 USD", "cancel sub_0001", why="ended or is about to end"),
    policy=RECOVERING,
)
def _(h: History) -> None:
    _recovered(h)
    h.schedule_end(_sub("sub_0002"), MONTH + 9 * DAY)


@cases(
    "an old invoice paid at the first attempt is no late recovery",
    review("ch_0003", "ch_0002", "D3", "refund ch_0003 29.00 USD", "cancel sub_0001", why="more than the window"),
    policy=RECOVERING,
)
def _(h: History) -> None:
    old = h.subscribe(0)
    h.subscribe(MONTH + 5 * DAY)
    h.renew(old, paid_when=MONTH + 8 * DAY, attempts=1)


# D9, D10 --------------------------------------------------------------------------------------------------------------------


@cases(
    "D9, moved from another processor",
    review("ch_0002", "ch_0001", "D9", "refund ch_0002 29.00 USD", "cancel sub_0002", why="only a person knows"),
)
def _(h: History) -> None:
    h.subscribe(0)
    h.subscribe(60, metadata={"migrated_from": "braintree"})


@cases("D9, the key alone is nothing (26)")
def _(h: History) -> None:
    h.subscribe(0, metadata={"migrated_from": "braintree"})
    h.subscribe(60, Sold("price_other", product="prod_other"), metadata={"migrated_from": "braintree"})


@cases(
    "D10, monthly and yearly plan of one product",
    review("ch_0002", "ch_0001", "D10", "refund ch_0002 290.00 USD", "cancel sub_0002", why="only a person knows"),
)
def _(h: History) -> None:
    h.subscribe(0, Sold("price_month", product="prod_x"))
    h.subscribe(DAY, Sold("price_year", 29000, product="prod_x"), period_s=365 * DAY)


@cases(
    "D10 across two customers of one person (26)",
    review("ch_0002", "ch_0001", "D10", "refund ch_0002 290.00 USD", "cancel sub_0002", why="only a person knows"),
)
def _(h: History) -> None:
    h.subscribe(0, Sold("price_month", product="prod_x"), metadata={"user_id": "u7"})
    h.subscribe(
        60,
        Sold("price_year", 29000, product="prod_x"),
        period_s=365 * DAY,
        customer="cus_B",
        metadata={"user_id": "u7"},
    )


@pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])
def test_the_table(case: Case) -> None:
    check(case)
