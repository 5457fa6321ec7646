"""Ordinary life of a merchant's day: sign-ups, trials, renewals, changes, packs, failures, endings. Nothing is owed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sandbox.day import DAY, HOUR, Day, Steps
from sandbox.invoices import LineOf
from sandbox.store import Obj

PLANS = ("price_basic", "price_basic", "price_basic", "price_pro", "price_basic_eur", "price_basic_gbp")
RARE = ("price_basic_jpy", "price_basic_kwd", "price_basic_yearly", "price_team")


def stories(day: Day, people: int) -> Iterable[Steps]:
    """The look-alikes once each, then `people` ordinary ones."""
    for story in LOOK_ALIKES:
        yield story(day)
    for _ in range(people):
        yield day.rng.choice(ORDINARY)(day)


def _plan(day: Day) -> str:
    return day.rng.choice(RARE if day.rng.random() < 0.15 else PLANS)


def sign_up(day: Day) -> Steps:
    yield day.sometime(22)
    customer, user = day.person()
    day.books.checkout(
        customer,
        day.price[_plan(day)],
        mode="subscription",
        client_reference_id=user,
        subscription_metadata={"user_id": user},
    )


def renewal(day: Day) -> Steps:
    yield day.month_before(day.sometime(20))
    customer, user = day.person()
    day.buy(customer, day.rng.choice(PLANS), metadata={"user_id": user})


def trial_starts(day: Day) -> Steps:
    yield day.sometime(22)
    customer, user = day.person()
    day.buy(customer, metadata={"user_id": user}, trial_end=day.books.now() + 7 * DAY)


def trial_converts(day: Day) -> Steps:
    yield day.sometime(20) - 7 * DAY
    customer, user = day.person()
    day.buy(customer, metadata={"user_id": user}, trial_end=day.books.now() + 7 * DAY)


def pack(day: Day) -> Steps:
    yield day.sometime(22)
    customer, user = day.person()
    day.books.checkout(
        customer,
        day.price["price_pack_100"],
        mode="payment",
        client_reference_id=user,
        payment_metadata={"order_id": f"o_{user}", "user_id": user},
    )


def first_fails(day: Day) -> Steps:
    """The first card is declined, a second one works."""
    t = day.sometime(20)
    yield t
    customer, user = day.person(charge="declines")
    sub = day.buy(customer, metadata={"user_id": user}).sub
    yield t + 180
    day.books.new_method(customer)
    day.books.pay_invoice(day.books.by_id[sub["latest_invoice"]])


def given_up(day: Day) -> Steps:
    """The card is declined and nobody comes back."""
    yield day.sometime(2)
    customer, user = day.person(charge="declines")
    day.buy(customer, metadata={"user_id": user})


def canceled_later(day: Day) -> Steps:
    t = day.sometime(20)
    yield t - 12 * DAY
    customer, user = day.person()
    sub = day.buy(customer, metadata={"user_id": user}).sub
    yield t
    day.books.cancel_at_period_end(sub)


def canceled_now(day: Day) -> Steps:
    t = day.sometime(20)
    yield t - 5 * DAY
    customer, user = day.person()
    sub = day.buy(customer, metadata={"user_id": user}).sub
    yield t
    day.books.cancel(sub)


ORDINARY: Sequence[Callable[[Day], Steps]] = (
    [sign_up] * 6
    + [renewal] * 8
    + [trial_starts] * 3
    + [trial_converts] * 2
    + [pack] * 3
    + [first_fails, given_up, canceled_later, canceled_later, canceled_now]
)


# -- look-alikes: each writes a truth row that says `none` -------------------------------------------------------------


def upgrade(day: Day) -> Steps:
    t = day.sometime()
    yield t - 10 * DAY
    customer, user = day.person()
    a = day.buy(customer, metadata={"user_id": user})
    yield t
    invoice = day.books.update_items(a.sub, [{"price": day.price["price_pro"]}], "always_invoice")
    assert invoice is not None
    day.tell("L1 upgrade with proration", "D3", "none", a.charge, day.charge_of(invoice))


def more_seats(day: Day) -> Steps:
    t = day.sometime()
    yield t
    customer, user = day.person()
    a = day.buy(customer, "price_team", metadata={"user_id": user})
    yield t + 60
    invoice = day.books.update_items(a.sub, [{"quantity": 2}], "always_invoice")
    assert invoice is not None
    day.tell("L2 one more seat", "D5", "none", a.charge, day.charge_of(invoice))


def _short(day: Day, price: str, name: str, back: int) -> Steps:
    t = day.start + HOUR * 4 + day.rng.randrange(8 * HOUR)
    yield t - back
    customer, user = day.person()
    a = day.buy(customer, price, metadata={"user_id": user})
    yield t + 2 * HOUR
    last = day.charge_of(day.books.by_id[a.sub["latest_invoice"]])
    day.tell(name, "D5", "none", a.charge, last)


def daily(day: Day) -> Steps:
    return _short(day, "price_basic_daily", "L5 renewed every day", 2 * DAY)


def weekly(day: Day) -> Steps:
    return _short(day, "price_basic_weekly", "L5 renewed every week", 7 * DAY)


def retried(day: Day) -> Steps:
    """A renewal fails, its retry on the same payment intent succeeds."""
    t = day.sometime()
    yield day.month_before(t)
    customer, user = day.person()
    a = day.buy(customer, metadata={"user_id": user})
    good = day.books.method(customer["invoice_settings"]["default_payment_method"])
    yield t - HOUR
    day.books.new_method(customer, charge="declines")
    yield t + 4 * HOUR
    charge = day.books.pay_invoice(day.books.by_id[a.sub["latest_invoice"]], good)
    day.tell("L6 failed, then retried", "D1", "none", a.charge, charge)


def authorised(day: Day) -> Steps:
    t = day.sometime()
    yield t
    customer, user = day.person()
    a = day.buy(customer, metadata={"user_id": user})
    yield t + 120
    _, held = day.books.pay_bare(customer, 2900, "usd", manual=True)
    day.tell("L7 uncaptured authorisation", "D6", "none", a.charge, held)


def two_authorised(day: Day) -> Steps:
    t = day.sometime()
    yield t
    customer, user = day.person()
    order = {"order_id": f"o_{user}"}
    _, held = day.books.pay_bare(customer, 4900, "usd", metadata=order, manual=True)
    yield t + 120
    _, paid = day.books.pay_bare(customer, 4900, "usd", metadata=order)
    day.tell("L7 authorised, then paid anew", "D6", "none", held, paid)


def _line(day: Day, sub: Obj, price: str, amount: int, item: bool = False) -> LineOf:
    now = day.books.now()
    return LineOf(
        price=day.price[price],
        amount=amount,
        period=(now - DAY, now) if item else (now, now),
        subscription=sub["id"],
        item=day.books.new_id("si_", 14) if item else None,
    )


def threshold(day: Day) -> Steps:
    """Usage billed in the middle of the period."""
    t = day.sometime()
    yield t
    customer, user = day.person()
    a = day.buy(customer, metadata={"user_id": user})
    yield t + 3 * HOUR
    invoice = day.books.extra_invoice(a.sub, "subscription_threshold", [_line(day, a.sub, "price_minutes", 2900, True)])
    day.tell("L13 usage reached its threshold", "D5", "none", a.charge, day.charge_of(invoice))


def in_parts(day: Day) -> Steps:
    """One invoice, two payments that add up to it."""
    t = day.sometime()
    yield t
    customer, user = day.person()
    sub = day.buy(customer, metadata={"user_id": user}).sub
    yield t + HOUR
    invoice = day.books.extra_invoice(sub, "manual", [_line(day, sub, "price_pack_100", 1500)], pay=False)
    one = day.books.pay_again(invoice, 1000)
    yield t + 2 * HOUR
    two = day.books.pay_again(invoice, 500)
    day.tell("L15 paid in two parts", "D1", "none", one, two)


def from_balance(day: Day) -> Steps:
    t = day.sometime()
    yield t
    customer, user = day.person()
    day.books.move_balance(customer, -1200, "usd", "adjustment", note="goodwill")
    a = day.buy(customer, metadata={"user_id": user})
    day.tell("L16 partly paid from the balance", "D1", "none", {}, a.charge)


def free(day: Day) -> Steps:
    """A whole discount: nothing to pay, twice."""
    t = day.sometime()
    yield t
    customer, user = day.person()
    coupon = day.books.new_coupon(percent_off=100)
    day.buy(customer, metadata={"user_id": user}, coupon=coupon)
    yield t + 30
    b = day.buy(customer, "price_team", metadata={"user_id": user})
    day.tell("L8 zero amount beside a payment", "D3", "none", {}, b.charge)


def debit_failed(day: Day) -> Steps:
    """Two bank debits for two subscriptions; the later one was returned unpaid."""
    t = day.sometime()
    yield t
    customer, user = day.person(type="us_bank_account", settle_s=1800)
    a = day.buy(customer, metadata={"user_id": user})
    yield t + 60
    b = day.buy(
        customer,
        metadata={"user_id": user},
        method=day.books.new_method(None, type="us_bank_account", settle_s=1800, charge="fails"),
    )
    yield t + 2 * HOUR
    day.tell("D3 bank debit failed", "D3", "none", a.charge, b.charge)


def refunded_by_hand(day: Day) -> Steps:
    """Out of policy: somebody refunded a payment that had no copy."""
    t = day.sometime()
    yield t
    customer, user = day.person()
    a = day.buy(customer, metadata={"user_id": user})
    yield t + HOUR
    day.books.create_refund(a.charge, reason="requested_by_customer")
    day.tell("2, 6 refunded by hand without a copy", "6", "none", {}, a.charge)


def charged_back(day: Day) -> Steps:
    """A chargeback on the only payment there is."""
    t = day.sometime()
    yield t
    customer, user = day.person()
    a = day.buy(customer, metadata={"user_id": user})
    yield t + HOUR
    day.books.open_dispute(a.charge, reason="product_unacceptable")
    day.tell("7 chargeback without a copy", "7", "none", {}, a.charge)


LOOK_ALIKES: list[Callable[[Day], Steps]] = [
    upgrade,
    more_seats,
    daily,
    weekly,
    retried,
    authorised,
    two_authorised,
    threshold,
    in_parts,
    from_balance,
    free,
    debit_failed,
    refunded_by_hand,
    charged_back,
]
