"""The seeded cases: every kind of duplicate with its near misses, and the payments that only look like one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

import msgspec

from sandbox.day import DAY, HOUR, Copy, Day, Steps
from sandbox.invoices import LineOf
from sandbox.store import Obj

Then = Callable[[Day, Copy, Copy], None]


def nothing(day: Day, first: Copy, second: Copy) -> None:
    """Nothing else happens."""


class Twice(msgspec.Struct, kw_only=True):
    """Something bought twice (D3 by one customer, D4 by two), and what must come of it."""

    case: str
    rule: str = "D3"
    expect: str = "refund"
    gap: int = 4
    price: str = "price_basic"
    other_price: str | None = None
    both: dict[str, Any] = {}
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    meta: dict[str, str] = {}
    other_meta: dict[str, str] | None = None
    """Metadata of the later subscription where it differs from `meta` (the person's id is added to both)."""
    named: bool = True
    """Whether the subscriptions carry `user_id`."""
    method: dict[str, Any] = {}
    two_customers: str = ""
    """For D4: `user_id`, `card` or `email`, whatever the two customers share."""
    between: Callable[[Day, Obj], None] | None = None
    then: Then = nothing
    wait: int = HOUR
    amount: int | None = None
    cancels: bool = True


def twice(day: Day, of: Twice) -> Steps:
    """Buy, buy again, let happen what happens, and tell the truth about it."""
    t = day.sometime()
    yield t
    customer, user = day.person(**of.method)
    shared = _terms(day, of.both)
    meta = of.meta | ({"user_id": user} if of.named else {})
    a = day.buy(customer, of.price, metadata=meta, **(shared | _terms(day, of.first)))
    yield t + of.gap
    other, later_user = _double(day, customer, of) if of.two_customers else (customer, user)
    if of.two_customers == "user_id":
        later_user = user
    if of.between:
        of.between(day, other)
    meta = (of.meta if of.other_meta is None else of.other_meta) | ({"user_id": later_user} if of.named else {})
    b = day.buy(other, of.other_price or of.price, metadata=meta, **(shared | _terms(day, of.second)))
    if a.charge["created"] == b.charge["created"]:  # equal seconds are ordered by the id of the charge
        a, b = sorted((a, b), key=lambda copy: str(copy.charge["id"]))
    yield t + of.gap + of.wait
    of.then(day, a, b)
    cancels = b.sub if of.cancels and of.expect == "refund" else None
    day.tell(of.case, of.rule, of.expect, a.charge, b.charge, amount=of.amount, cancels=cancels)


def _terms(day: Day, how: dict[str, Any]) -> dict[str, Any]:
    """`pack`, `percent_off` and `percent`/`inclusive` as the arguments of `subscribe`."""
    found = dict(how)
    if "pack" in found:
        found["extra"] = [(day.price["price_pack_100"], found.pop("pack"))]
    if "percent_off" in found:
        found["coupon"] = day.books.new_coupon(percent_off=found.pop("percent_off"))
    if "percent" in found:
        found["tax_rates"] = [day.books.new_tax_rate(found.pop("percent"), inclusive=found.pop("inclusive"))]
    return found


def _double(day: Day, customer: Obj, of: Twice) -> tuple[Obj, str]:
    """A second customer of (perhaps) the same person."""
    shared: dict[str, Any] = {}
    if of.two_customers == "card":
        method = day.books.method(customer["invoice_settings"]["default_payment_method"])
        shared = {"fingerprint": method.fingerprint, "last4": method.last4}
    if of.two_customers == "email":
        shared = {"email": customer["email"]}
    return day.person(**shared)


def _refund(which: int, amount: int | None = None, *, end: bool = False) -> Then:
    def act(day: Day, first: Copy, second: Copy) -> None:
        copy = (first, second)[which]
        day.books.create_refund(copy.charge, amount, reason="requested_by_customer")
        if end:
            day.books.cancel(copy.sub)

    return act


def _dispute(which: int, to: str | None = None, **how: Any) -> Then:
    def act(day: Day, first: Copy, second: Copy) -> None:
        dispute = day.books.open_dispute((first, second)[which].charge, **how)
        if to:
            day.books.set_dispute(dispute, to)

    return act


def _end(which: int, *, at_period_end: bool = False) -> Then:
    def act(day: Day, first: Copy, second: Copy) -> None:
        sub = (first, second)[which].sub
        if at_period_end:
            day.books.cancel_at_period_end(sub)
        else:
            day.books.cancel(sub)

    return act


def _warn(day: Day, first: Copy, second: Copy) -> None:
    day.books.warn_of_fraud(second.charge)


def _goodwill(day: Day, customer: Obj) -> None:
    day.books.move_balance(customer, -1000, "usd", "adjustment", note="goodwill")


BANK = {"type": "us_bank_account", "settle_s": 30 * 60}
SCOPED = {"workspace_id": "w_1"}

PURCHASES = [
    Twice(case="D3 double click"),
    Twice(case="D3 double click, pro", price="price_pro", gap=9),
    Twice(case="D3 same second", gap=0),
    Twice(case="D3 two tabs", gap=360),
    Twice(case="D3 at the edge of the window", gap=900),
    Twice(case="D3 euro", price="price_basic_eur", gap=11),
    Twice(case="D3 pound", price="price_basic_gbp", gap=20),
    Twice(case="D3 yen", price="price_basic_jpy", gap=31),
    Twice(case="D3 dinar", price="price_basic_kwd", gap=45),
    Twice(case="D3 exclusive tax", both={"percent": 8.25, "inclusive": False}),
    Twice(case="D3 inclusive tax", both={"percent": 19.0, "inclusive": True}, price="price_basic_eur"),
    Twice(case="D3 discount on both", both={"percent_off": 15}),
    Twice(case="D3 discount and tax", both={"percent_off": 33, "percent": 7.7, "inclusive": False}, gap=70),
    Twice(case="D3 three seats each", both={"quantity": 3}, price="price_team"),
    Twice(case="D3 no metadata", named=False),
    Twice(case="D3 same workspace", meta=SCOPED),
    Twice(case="D3 volatile key differs", meta={"session_id": "s1"}, other_meta={"session_id": "s2"}),
    Twice(case="D3 pack on the later invoice", second={"pack": 1}, amount=2900),
    Twice(case="D3 pack on both invoices", both={"pack": 1}, amount=2900),
    Twice(case="D3 later part refunded by hand", then=_refund(1, 900), amount=2000),
    Twice(case="D3 fraud warning on the later", then=_warn),
    Twice(case="D3 inquiry closed", then=_dispute(1, "warning_closed", inquiry=True)),
    Twice(case="D3 later ended by the customer", then=_end(1), cancels=False),
    # a person has to look
    Twice(case="D3 outside the window", gap=2 * HOUR, expect="review"),
    Twice(case="D3 just outside the window", gap=901, expect="review"),
    Twice(case="D3 different quantity", second={"quantity": 2}, expect="review"),
    Twice(case="D3 order id differs", meta={"order_id": "o1"}, other_meta={"order_id": "o2"}, expect="review"),
    Twice(case="D3 unknown key differs", meta={"theme": "dark"}, other_meta={"theme": "light"}, expect="review"),
    Twice(case="D3 coupon on one only", second={"percent_off": 20}, expect="review"),
    Twice(case="D3 later partly paid from the balance", between=_goodwill, expect="review"),
    Twice(case="D3 chargeback on the later", then=_dispute(1), expect="review"),
    Twice(case="D3 chargeback on the original", then=_dispute(0), expect="review"),
    Twice(case="D3 inquiry on the original", then=_dispute(0, inquiry=True), expect="review"),
    Twice(case="D3 dispute on the original won", then=_dispute(0, "won"), expect="review"),
    Twice(case="D3 original part refunded", then=_refund(0, 500), expect="review"),
    Twice(case="D3 refunded by hand, still running", then=_refund(1), expect="review", amount=0),
    Twice(case="D3 hand refund beside a pack", second={"pack": 1}, then=_refund(1, 1500), expect="review", amount=2900),
    Twice(case="D3 original ended by the customer", then=_end(0), expect="review"),
    Twice(case="D3 original set to end", then=_end(0, at_period_end=True), expect="review"),
    Twice(case="D3 settled bank debits", method=BANK, wait=2 * HOUR, expect="review"),
    Twice(case="D3 above the limit", price="price_pro_yearly", expect="review"),
    Twice(case="D10 monthly and yearly", rule="D10", other_price="price_basic_yearly", gap=600, expect="review"),
    Twice(case="D9 moved from elsewhere", rule="D9", other_meta={"migrated_from": "acct_old"}, expect="review"),
    # one of the two no longer stands, or never did
    Twice(case="D3 refunded by hand and ended", then=_refund(1, end=True), expect="none"),
    Twice(case="D3 original refunded and ended", then=_refund(0, end=True), expect="none"),
    Twice(case="D3 original lost to a dispute", then=_dispute(0, "lost"), expect="none"),
    Twice(case="D3 dispute on the original prevented", then=_dispute(0, prevented=True), expect="none"),
    Twice(case="D3 bank debits pending", method={"type": "us_bank_account"}, expect="none"),
    # bought on purpose
    Twice(case="L4 different workspace", meta=SCOPED, other_meta={"workspace_id": "w_2"}, expect="none"),
    Twice(case="L4 different site", meta={"site": "a"}, other_meta={"site": "b"}, expect="none", gap=300),
    Twice(case="L10 gift", other_meta={"gift": "yes", "recipient": "r_1"}, expect="none", gap=240),
    Twice(case="L4 different products", other_price="price_team", expect="none", gap=120),
    Twice(case="L9 test clock", method={"test_clock": "clock_1Sandbox"}, expect="none"),
    # two customers
    Twice(case="D4 equal user id", rule="D4", two_customers="user_id", gap=7),
    Twice(case="D4 equal user id, minutes apart", rule="D4", two_customers="user_id", gap=420),
    Twice(case="D4 equal user id, pro", rule="D4", two_customers="user_id", price="price_pro", gap=33),
    Twice(case="D4 outside the window", rule="D4", two_customers="user_id", gap=3 * HOUR, expect="review"),
    Twice(case="D4 equal card alone", rule="D4", two_customers="card", named=False, expect="review", gap=60),
    Twice(case="D4 equal e-mail alone", rule="D4", two_customers="email", named=False, expect="review", gap=60),
    Twice(
        case="D4 one person, two currencies",
        rule="D4",
        two_customers="user_id",
        other_price="price_basic_eur",
        expect="review",
    ),
    Twice(case="D4 one card, two persons", rule="D4", two_customers="card", expect="none", gap=40),
    Twice(case="D4 one e-mail, two persons", rule="D4", two_customers="email", expect="none", gap=40),
    Twice(
        case="D4 one person, two workspaces",
        rule="D4",
        two_customers="user_id",
        meta=SCOPED,
        other_meta={"workspace_id": "w_9"},
        expect="none",
    ),
]


PEOPLE = 125
"""About how many customers the cases and the look-alikes need."""


def stories(day: Day) -> Iterable[Steps]:
    """Every seeded case once."""
    yield from (twice(day, of) for of in PURCHASES)
    yield from (tell(day) for tell in (three_copies, two_and_a_late_third, by_reference, persons_disagree, found_late))
    for credit, use in (("none", ""), ("unspent", ""), ("partly spent", "pack"), ("wholly spent", "upgrade")):
        yield overpaid(day, credit, use)
    for price in ("price_basic_eur", "price_basic_jpy", "price_basic_kwd"):
        yield overpaid(day, "unspent", "", price)
    for what in ("later refunded", "later part refunded", "later disputed", "original disputed", "bank debits"):
        yield overpaid_and(day, what)
    yield paid_outside(day)
    for how in ("equal", "unequal", "overlapping", "first and cycle"):
        yield two_invoices(day, how)
    yield from (bare(day, *row) for row in BARE)
    yield from (by_hand(day, failed) for failed in (True, False))
    yield from (
        tell(day) for tell in (recovered_late, pack_charged_twice, two_packs, rebought, reactivated, moved_alone)
    )


# -- D3 and D4, told at length -----------------------------------------------------------------------------------------


def three_copies(day: Day) -> Steps:
    t = day.sometime()
    yield t
    customer, user = day.person()
    a = day.buy(customer, metadata={"user_id": user})
    yield t + 5
    b = day.buy(customer, metadata={"user_id": user})
    yield t + 12
    c = day.buy(customer, metadata={"user_id": user})
    for copy in (b, c):
        day.tell("D3 three copies", "D3", "refund", a.charge, copy.charge, cancels=copy.sub)


def two_and_a_late_third(day: Day) -> Steps:
    t = day.sometime()
    yield t
    customer, user = day.person()
    a = day.buy(customer, metadata={"user_id": user})
    yield t + 40
    b = day.buy(customer, metadata={"user_id": user})
    yield t + 5 * HOUR
    c = day.buy(customer, metadata={"user_id": user})
    day.tell("D3 two inside, one late", "D3", "refund", a.charge, b.charge, cancels=b.sub)
    day.tell("D3 two inside, one late", "D3", "review", a.charge, c.charge)


def by_reference(day: Day) -> Steps:
    """Two guest checkouts with one `client_reference_id`."""
    t = day.sometime()
    yield t
    (one, user), (two, _) = day.person(), day.person()
    made = []
    for customer in (one, two):
        session = day.books.checkout(
            customer, day.price["price_basic"], mode="subscription", client_reference_id=user, subscription_metadata={}
        )
        made.append(day.copy_of(day.books.by_id[session["subscription"]]))
        yield t + 25
    day.tell("D4 equal client_reference_id", "D4", "refund", made[0].charge, made[1].charge, cancels=made[1].sub)


def persons_disagree(day: Day) -> Steps:
    """The subscription says one person, its Checkout session another."""
    t = day.sometime()
    yield t
    (one, user), (two, stranger) = day.person(), day.person()
    a = day.buy(one, metadata={"user_id": user})
    yield t + 25
    session = day.books.checkout(
        two,
        day.price["price_basic"],
        mode="subscription",
        metadata={"user_id": stranger},
        subscription_metadata={"user_id": user},
    )
    b = day.copy_of(day.books.by_id[session["subscription"]])
    day.tell("D4 ids of the person disagree", "D4", "review", a.charge, b.charge)


def found_late(day: Day) -> Steps:
    """Two copies of a month ago that both renewed."""
    t = day.sometime()
    yield day.month_before(t)
    customer, user = day.person()
    a = day.buy(customer, metadata={"user_id": user})
    yield day.month_before(t) + 6
    b = day.buy(customer, metadata={"user_id": user})
    yield t + 3 * HOUR
    day.tell("D3 found after the copies renewed", "D3", "review", a.charge, b.charge)


# -- D1 and D2 ---------------------------------------------------------------------------------------------------------


def overpaid(day: Day, credit: str, use: str, price: str = "price_basic") -> Steps:
    t = day.sometime()
    yield t
    customer, user = day.person()
    a = day.buy(customer, price, metadata={"user_id": user})
    yield t + 90
    again = day.books.pay_again(a.invoice, credit=credit != "none")
    yield t + 2 * HOUR
    if use == "pack":
        pack = day.price["price_pack_100"]
        line = LineOf(price=pack, amount=pack["unit_amount"], period=(day.books.now(),) * 2, subscription=a.sub["id"])
        day.books.extra_invoice(a.sub, "manual", [line])
    if use == "upgrade":
        day.books.update_items(a.sub, [{"price": day.price["price_pro"]}], "always_invoice")
    expect = {"partly spent": "review", "wholly spent": "none"}.get(credit, "refund")
    case = f"D1 credit {credit}" + ("" if price == "price_basic" else f", {again['currency']}")
    day.tell(case, "D1", expect, a.charge, again, reverses=credit == "unspent")


def overpaid_and(day: Day, what: str) -> Steps:
    t = day.sometime()
    yield t
    customer, user = day.person(**(BANK if what == "bank debits" else {}))
    a = day.buy(customer, metadata={"user_id": user})
    yield t + 75
    again = day.books.pay_again(a.invoice, credit=False)
    yield t + 3 * HOUR
    expect, amount = "review", None
    if what == "later refunded":
        day.books.create_refund(again)
        expect = "none"
    elif what == "later part refunded":
        day.books.create_refund(again, 1000)
        expect, amount = "refund", 1900
    elif what.endswith("disputed"):
        day.books.open_dispute(again if what.startswith("later") else a.charge)
    day.tell(f"D1 {what}", "D1", expect, a.charge, again, amount=amount)


def paid_outside(day: Day) -> Steps:
    """A renewal whose card failed is marked paid by hand; the customer had paid it on the hosted page meanwhile."""
    t = day.sometime()
    yield day.month_before(t)
    customer, user = day.person()
    sub = day.buy(customer, metadata={"user_id": user}).sub
    yield t - HOUR
    day.books.new_method(customer, charge="declines")
    yield t + 2 * HOUR
    invoice = day.books.by_id[sub["latest_invoice"]]
    day.books.pay_out_of_band(invoice)
    yield t + 3 * HOUR
    day.books.new_method(customer)
    charge = day.books.pay_again(invoice)
    day.tell("D2 marked paid and charged", "D2", "review", {}, charge)


# -- D5 ----------------------------------------------------------------------------------------------------------------


def two_invoices(day: Day, how: str) -> Steps:
    t = day.sometime()
    first = how == "first and cycle"
    yield t if first else day.month_before(t)
    customer, user = day.person()
    sub = day.buy(customer, metadata={"user_id": user}).sub
    yield t + 2 * HOUR
    renewal = day.books.by_id[sub["latest_invoice"]]
    original = day.charge_of(renewal)
    yield t + 4 * HOUR
    item = sub["items"]["data"][0]
    start, end = item["current_period_start"], item["current_period_end"]
    line = LineOf(price=item["price"], amount=2900, period=(start, end), subscription=sub["id"], item=item["id"])
    if how == "unequal":
        line.amount = 2400
    elif how == "overlapping":
        line.period = (start + DAY, end)
    again = day.books.extra_invoice(sub, "subscription_cycle", [line])
    expect = "refund" if how == "equal" else "review"
    day.tell(f"D5 {how}", "D5", expect, original, day.charge_of(again))


# -- D6, D7, D8 --------------------------------------------------------------------------------------------------------

BARE: list[tuple[str, str, int, dict[str, str], dict[str, str]]] = [
    ("D6 equal order id", "refund", 180, {"order_id": "%"}, {"order_id": "%"}),
    ("D6 equal renewal id, hours apart", "refund", 9 * HOUR, {"renewal_id": "%"}, {"renewal_id": "%"}),
    ("D6 equal order id, days apart", "review", 5 * DAY, {"order_id": "%"}, {"order_id": "%"}),
    ("D6 no id, minutes apart", "review", 240, {}, {}),
    ("D6 different ids", "none", 150, {"order_id": "%a"}, {"order_id": "%b"}),
    ("D6 no id, weeks apart", "none", 21 * DAY, {}, {}),
]


def bare(day: Day, case: str, expect: str, gap: int, one: dict[str, str], two: dict[str, str]) -> Steps:
    t = day.sometime()
    yield t - gap if gap > DAY else t
    customer, user = day.person()
    _, a = day.books.pay_bare(customer, 4900, "usd", metadata={k: v.replace("%", user) for k, v in one.items()})
    yield t if gap > DAY else t + gap
    _, b = day.books.pay_bare(customer, 4900, "usd", metadata={k: v.replace("%", user) for k, v in two.items()})
    day.tell(case, "D6", expect, a, b)


def by_hand(day: Day, failed: bool) -> Steps:
    """Support charges what dunning collects later; or a person merely pays an equal amount."""
    t = day.sometime()
    yield day.month_before(t)
    customer, user = day.person()
    sub = day.buy(customer, metadata={"user_id": user}).sub
    yield t - HOUR
    good = day.books.method(customer["invoice_settings"]["default_payment_method"])
    if failed:
        day.books.new_method(customer, charge="declines")
    yield t + 2 * HOUR
    _, hand = day.books.pay_bare(customer, 2900, "usd", method=good, description="Past due, by phone")
    yield t + 6 * HOUR
    invoice = day.books.by_id[sub["latest_invoice"]]
    if failed:
        day.books.pay_invoice(invoice, good)
        day.tell("D7 charged by hand, then dunning", "D7", "review", hand, _succeeded(day, invoice))
    else:
        day.tell("D7 no failed attempt", "D7", "none", day.charge_of(invoice), hand)


def _succeeded(day: Day, invoice: Obj) -> Obj:
    charge = day.charge_of(invoice)
    assert charge["status"] == "succeeded"
    return charge


def recovered_late(day: Day) -> Steps:
    """Past due, bought anew, then the old invoice was collected after all."""
    t = day.sometime()
    renews = t - 2 * DAY
    yield day.month_before(renews)
    customer, user = day.person()
    old = day.buy(customer, metadata={"user_id": user}).sub
    yield renews - HOUR
    day.books.new_method(customer, charge="declines")
    yield t
    good = day.books.new_method(customer)
    new = day.buy(customer, metadata={"user_id": user}, method=good)
    yield t + 3 * HOUR
    invoice = day.books.by_id[old["latest_invoice"]]
    day.books.pay_invoice(invoice, good)
    day.tell("D8 old subscription recovered late", "D8", "review", new.charge, _succeeded(day, invoice))


# -- packs and endings -------------------------------------------------------------------------------------------------


def pack_charged_twice(day: Day) -> Steps:
    t = day.sometime()
    yield t
    customer, user = day.person()
    charges = yield from _packs(day, customer, [f"o_{user}", f"o_{user}"])
    day.tell("D6 pack twice under one order id", "D6", "review", charges[0], charges[1])


def two_packs(day: Day) -> Steps:
    t = day.sometime()
    yield t
    customer, _ = day.person()
    charges = yield from _packs(day, customer, [None, None])
    day.tell("L3 two packs on purpose", "D6", "none", charges[0], charges[1])


def _packs(day: Day, customer: Obj, orders: list[str | None]) -> Generator[int, None, list[Obj]]:
    found = []
    for order in orders:
        named = {"order_id": order} if order else {}
        session = day.books.checkout(
            customer, day.price["price_pack_100"], mode="payment", metadata=named, payment_metadata=named
        )
        found.append(day.books.by_id[day.books.by_id[session["payment_intent"]]["latest_charge"]])
        yield day.books.now() + 200
    return found


def rebought(day: Day) -> Steps:
    """Set to end with the period, and bought again before that."""
    t = day.sometime()
    yield t - 9 * DAY
    customer, user = day.person()
    a = day.buy(customer, metadata={"user_id": user})
    yield t - 2 * DAY
    day.books.cancel_at_period_end(a.sub)
    yield t
    b = day.buy(customer, metadata={"user_id": user})
    day.tell("L12 bought again while running out", "D3", "review", a.charge, b.charge)


def reactivated(day: Day) -> Steps:
    """Ended at once, and bought again later."""
    t = day.sometime()
    yield t
    customer, user = day.person()
    a = day.buy(customer, metadata={"user_id": user})
    yield t + 300
    day.books.cancel(a.sub)
    yield t + 400
    b = day.buy(customer, metadata={"user_id": user})
    day.tell("L11 ended before the other began", "D3", "none", a.charge, b.charge)


def moved_alone(day: Day) -> Steps:
    """`migrated_from` on the only subscription there is."""
    yield day.sometime()
    customer, user = day.person()
    a = day.buy(customer, metadata={"user_id": user, "migrated_from": "acct_old"})
    day.tell("D9 the key alone", "D9", "none", {}, a.charge)
