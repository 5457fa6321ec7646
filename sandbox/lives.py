"""How customers live through a year: they try, buy, renew, fall behind, change, complain and leave, each way that some clause knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from sandbox.billing import ENDED
from sandbox.cases import Twice, twice
from sandbox.day import DAY, HOUR, Steps
from sandbox.store import Obj
from sandbox.year import Year

PLANS = {
    "price_basic": 40,
    "price_pro": 12,
    "price_studio": 12,
    "price_basic_eur": 8,
    "price_basic_gbp": 6,
    "price_basic_yearly": 8,
    "price_team": 4,
    "price_basic_jpy": 3,
    "price_basic_kwd": 2,
    "price_basic_weekly": 2,
}
"""What is bought how often."""
STAYS_DAYS = 85
"""How long people stay on average, if they do not leave with their trial."""
QUIET_DAYS = 45
"""How long nothing happens to a customer, on average, besides renewals."""


class Life(msgspec.Struct):
    """One customer and what they have now."""

    customer: Obj
    user: str
    sub: Obj

    @property
    def over(self) -> bool:
        return bool(self.sub["status"] in ENDED)


def customer(year: Year) -> Steps:
    """One ordinary customer, from the first day to the last."""
    rng = year.rng
    yield year.arrival()
    roll = rng.random()
    if roll < 0.12:
        yield from buys_packs(year)
        return
    life = Life(*_newcomer(year), {})
    yield from (tries if roll < 0.42 else subscribes)(year, life)
    if rng.random() < 0.07 and life.sub and life.over:
        yield year.books.now() + rng.randrange(1 * DAY, 40 * DAY)
        yield from comes_back(year, life)


def _newcomer(year: Year, **method: Any) -> tuple[Obj, str]:
    if year.rng.random() < 0.04 and not method:
        method = {"type": "us_bank_account", "settle_s": 3 * DAY}
    return year.person(**method)


def _plan(year: Year) -> str:
    return year.rng.choices(list(PLANS), list(PLANS.values()))[0]


def _subscribe(year: Year, life: Life, plan: str, **how: Any) -> None:
    quantity = year.rng.randrange(1, 6) if plan == "price_team" else 1
    named = {"user_id": life.user}
    if how or year.rng.random() < 0.4:
        life.sub = year.books.subscribe(life.customer, [(year.price[plan], quantity)], metadata=named, **how)
        return
    session = year.books.checkout(
        life.customer,
        year.price[plan],
        mode="subscription",
        quantity=quantity,
        client_reference_id=life.user,
        subscription_metadata=named,
    )
    life.sub = year.books.by_id[session["subscription"]]


def subscribes(year: Year, life: Life) -> Steps:
    """Buys a plan and stays with it for a while."""
    _subscribe(year, life, _plan(year))
    yield from stays(year, life)


def comes_back(year: Year, life: Life) -> Steps:
    """Buys the same again after the end, some with a second trial."""
    year.counted("came back")
    if not life.customer["invoice_settings"]["default_payment_method"]:
        year.books.new_method(life.customer)
    plan, again = life.sub["items"]["data"][0]["price"]["id"], year.rng.random() < 0.3
    _subscribe(year, life, plan, **({"trial_end": year.books.now() + 7 * DAY} if again else {}))
    yield from stays(year, life)


def stays(year: Year, life: Life) -> Steps:
    """Renews until it is time to leave; now and then something happens."""
    rng = year.rng
    leaves_at = year.books.now() + int(rng.expovariate(1 / STAYS_DAYS) * DAY) + 2 * HOUR
    while (due := year.books.now() + int(rng.expovariate(1 / QUIET_DAYS) * DAY) + HOUR) < leaves_at:
        yield due
        if life.over:
            return
        happens = rng.choices(list(HAPPENINGS), list(HAPPENINGS.values()))[0]
        yield from happens(year, life)
    yield max(leaves_at, year.books.now())
    if not life.over and life.sub["status"] != "incomplete":
        leaves = rng.choices(list(ENDINGS), list(ENDINGS.values()))[0]
        year.counted(leaves.__name__)
        yield from leaves(year, life)


# -- trials ------------------------------------------------------------------------------------------------------------


def tries(year: Year, life: Life) -> Steps:
    """Begins with a trial, which ends in one of its ways."""
    rng = year.rng
    now, plan = year.books.now(), rng.choice(["price_basic", "price_basic", "price_pro", "price_studio"])
    _subscribe(year, life, plan, trial_end=now + rng.choice([7, 14]) * DAY)
    way = rng.choices(list(TRIALS), list(TRIALS.values()))[0]
    year.counted(way.__name__)
    yield now + rng.randrange(1 * DAY, 6 * DAY)
    yield from way(year, life)


def converts(year: Year, life: Life) -> Steps:
    yield from stays(year, life)


def trial_extended(year: Year, life: Life) -> Steps:
    year.books.set_trial_end(life.sub, life.sub["trial_end"] + 7 * DAY)
    yield from stays(year, life)


def trial_shortened(year: Year, life: Life) -> Steps:
    year.books.set_trial_end(life.sub, year.books.now())
    yield from stays(year, life)


def trial_ends_unbought(year: Year, life: Life) -> Steps:
    year.books.cancel_at_period_end(life.sub)
    yield life.sub["trial_end"] + HOUR


def trial_cancelled(year: Year, life: Life) -> Steps:
    year.books.cancel(life.sub)
    yield year.books.now() + HOUR


def trial_without_card(year: Year, life: Life) -> Steps:
    """No payment method when it ends: paused or cancelled, as the subscription says."""
    behavior = year.rng.choice(["pause", "cancel"])
    life.sub["trial_settings"]["end_behavior"]["missing_payment_method"] = behavior
    life.customer["invoice_settings"]["default_payment_method"] = None
    yield life.sub["trial_end"] + 30 * DAY
    if not life.over:
        year.books.cancel(life.sub)


TRIALS: dict[Callable[[Year, Life], Steps], int] = {
    converts: 45,
    trial_extended: 8,
    trial_shortened: 6,
    trial_ends_unbought: 22,
    trial_cancelled: 9,
    trial_without_card: 10,
}

# -- what happens in between -------------------------------------------------------------------------------------------


def buys_pack(year: Year, life: Life) -> Steps:
    _buy_pack(year, life.customer, life.user)
    yield year.books.now() + HOUR


def _buy_pack(year: Year, who: Obj, user: str) -> None:
    year.counted("pack")
    year.books.checkout(
        who,
        year.price[year.rng.choice(["price_pack_100", "price_pack_100", "price_pack_studio"])],
        mode="payment",
        client_reference_id=user,
        payment_metadata={"order_id": year.books.new_id("o_", 10), "user_id": user},
    )


def buys_packs(year: Year) -> Steps:
    """Never subscribes: only packs, some by a bank debit, of which some fail."""
    rng = year.rng
    debit = {"type": "us_bank_account", "settle_s": 3 * DAY, "charge": rng.choice(["succeeds", "fails"])}
    who, user = year.person(**(debit if rng.random() < 0.2 else {}))
    for _ in range(rng.randrange(1, 4)):
        _buy_pack(year, who, user)
        yield year.books.now() + rng.randrange(2 * DAY, 60 * DAY)


def upgrades(year: Year, life: Life) -> Steps:
    """To a bigger plan, billed at once or with the next period."""
    price = life.sub["items"]["data"][0]["price"]["id"]
    if price in ("price_basic", "price_studio") and life.sub["status"] == "active":
        year.counted("upgrade")
        how = year.rng.choice(["always_invoice", "create_prorations"])
        year.books.update_items(life.sub, [{"price": year.price["price_pro"]}], how)
    yield year.books.now() + HOUR


def falls_behind(year: Year, life: Life) -> Steps:
    """The card stops working; a new one comes in time, late, or never."""
    year.counted("card failed")
    year.books.new_method(life.customer, charge="declines")
    renews = life.sub["items"]["data"][0]["current_period_end"]
    if renews - year.books.now() > 35 * DAY or year.rng.random() < 0.25:  # nobody comes back: dunning ends it
        return
    yield max(year.books.now(), renews + year.rng.randrange(-2 * DAY, 7 * DAY))
    if life.over:
        return
    year.books.new_method(life.customer)
    invoice = year.books.by_id[life.sub["latest_invoice"]]
    if invoice["status"] == "open" and year.rng.random() < 0.7:  # else the next attempt collects it
        year.books.pay_invoice(invoice)


def thinks_again(year: Year, life: Life) -> Steps:
    """Cancels, and takes it back before the end."""
    if life.sub["cancel_at"]:
        return
    year.counted("cancellation withdrawn")
    year.books.cancel_at_period_end(life.sub)
    ends = life.sub["items"]["data"][0]["current_period_end"]
    yield year.books.now() + min(2 * DAY, max(60, (ends - year.books.now()) // 2))
    if not life.over:
        year.books.cancel_at_period_end(life.sub, False)


def is_rescheduled(year: Year, life: Life) -> Steps:
    """Put on a schedule that would end it, and let go of it: nothing ends."""
    schedule = year.books.schedule(life.sub, end_behavior="cancel")
    yield year.books.now() + DAY // 2
    if schedule["status"] == "active" and not life.over:
        year.counted("schedule released")
        year.books.release_schedule(schedule)


def collection_pauses(year: Year, life: Life) -> Steps:
    """Nothing is collected for a while; that is no end."""
    year.counted("collection paused")
    year.books.pause_collection(life.sub)
    yield year.books.now() + 40 * DAY
    if not life.over:
        year.books.pause_collection(life.sub, None)


def refunded_by_hand(year: Year, life: Life) -> Steps:
    """Out of policy (2, 6): somebody at the Dashboard gives back what nothing owes."""
    if charge := _last_payment(year, life.sub):
        part = year.rng.choice([None, charge["amount"] // 3])
        year.known.by_hand.append(year.books.create_refund(charge, part, reason="requested_by_customer")["id"])
    yield year.books.now() + HOUR


def _last_payment(year: Year, sub: Obj) -> Obj | None:
    """The newest settled card payment of a subscription that nobody touched yet."""
    for invoice in reversed(year.books.linked("invoice", "subscription", sub["id"])):
        charge = year.charge_of(invoice)
        fresh = charge and charge["status"] == "succeeded" and not charge["amount_refunded"] and not charge["disputed"]
        if fresh and charge["id"].startswith("ch_"):
            return charge
    return None


def is_warned_of(year: Year, life: Life) -> Steps:
    if charge := _last_payment(year, life.sub):
        year.known.warnings.append(year.books.warn_of_fraud(charge)["id"])
    yield year.books.now() + HOUR


def complains_to_the_bank(year: Year, life: Life) -> Steps:
    if charge := _last_payment(year, life.sub):
        yield from charged_back(year, charge, year.rng.choice(list(PATHS)))


HAPPENINGS: dict[Callable[[Year, Life], Steps], int] = {
    buys_pack: 34,
    upgrades: 14,
    falls_behind: 22,
    thinks_again: 12,
    is_rescheduled: 2,
    collection_pauses: 2,
    refunded_by_hand: 2,
    is_warned_of: 2,
    complains_to_the_bank: 4,
}

# -- endings -----------------------------------------------------------------------------------------------------------


def ends_with_the_period(year: Year, life: Life) -> Steps:
    year.books.cancel_at_period_end(life.sub)
    yield life.sub["items"]["data"][0]["current_period_end"] + 2 * HOUR


def ends_at_once(year: Year, life: Life) -> Steps:
    year.books.cancel(life.sub)
    yield year.books.now() + HOUR


def ends_with_proration(year: Year, life: Life) -> Steps:
    """Ended at once, and the rest of the period credited: out of policy (1.3)."""
    if life.sub["status"] != "active" or life.sub["items"]["data"][0]["current_period_end"] < year.books.now() + DAY:
        yield from ends_at_once(year, life)
        return
    before = {invoice["id"] for invoice in year.books.linked("invoice", "subscription", life.sub["id"])}
    year.books.cancel(life.sub, prorate=True, invoice_now=True)
    made = [i["id"] for i in year.books.linked("invoice", "subscription", life.sub["id"]) if i["id"] not in before]
    year.known.prorated += made
    yield year.books.now() + HOUR


def ends_and_is_billed(year: Year, life: Life) -> Steps:
    """The app bills a period after the end: a charge after cancellation (1.2)."""
    year.books.cancel(life.sub)
    yield year.books.now() + year.rng.randrange(3 * HOUR, 20 * DAY)
    year.books.charge_after_end(life.sub, method=year.books.new_method(life.customer))
    year.known.charged_after_end.append(year.books.linked("invoice", "subscription", life.sub["id"])[-1]["id"])


def ends_by_schedule(year: Year, life: Life) -> Steps:
    year.books.schedule(life.sub, end_behavior="cancel")
    yield life.sub["items"]["data"][0]["current_period_end"] + 2 * HOUR


def ends_on_a_date(year: Year, life: Life) -> Steps:
    """Set to end in the middle of a period."""
    ends_at = year.books.now() + year.rng.randrange(2 * DAY, 20 * DAY)
    year.books.cancel_at(life.sub, ends_at)
    yield ends_at + HOUR


ENDINGS: dict[Callable[[Year, Life], Steps], int] = {
    ends_with_the_period: 56,
    ends_at_once: 28,
    ends_by_schedule: 4,
    ends_on_a_date: 4,
    ends_with_proration: 4,
    ends_and_is_billed: 3,
}

# -- chargebacks -------------------------------------------------------------------------------------------------------

PATHS: dict[str, tuple[dict[str, Any], list[tuple[int, str]]]] = {
    "lost in silence": ({}, []),
    "won": ({"reason": "product_not_received"}, [(5, "under_review"), (20, "won")]),
    "lost": ({"reason": "subscription_canceled"}, [(6, "under_review"), (25, "lost")]),
    "lost, then won": ({}, [(4, "under_review"), (15, "lost"), (35, "won")]),
    "appealed and won": (
        {"reason": "credit_not_processed"},
        [(5, "under_review"), (9, "lost"), (8, "appeal_needs_response"), (3, "appeal_under_review"), (14, "won")],
    ),
    "appealed and lost": (
        {},
        [(5, "under_review"), (9, "lost"), (8, "appeal_needs_response"), (3, "appeal_under_review"), (14, "lost")],
    ),
    "a status nobody knows": ({}, [(3, "arbitration_pending")]),
    "inquiry closed": ({"inquiry": True}, [(10, "warning_under_review"), (30, "warning_closed")]),
    "inquiry escalated": ({"inquiry": True}, [(8, "escalate"), (4, "under_review"), (20, "won")]),
    "inquiry escalated and lost": ({"inquiry": True}, [(8, "escalate")]),
    "prevented": ({"prevented": True}, []),
    "larger than its charge": ({"more": 120}, [(5, "under_review"), (18, "lost")]),
    "two on one charge": ({"parts": 2}, [(5, "under_review"), (18, "won")]),
    "after a part was refunded": ({"refund": 4}, [(5, "under_review"), (18, "won")]),
}
"""How a dispute is opened, and after how many days it becomes what."""


def charged_back(year: Year, charge: Obj, path: str) -> Steps:
    """A dispute about this charge, along one of the paths."""
    how, steps = dict(PATHS[path][0]), PATHS[path][1]
    year.counted(f"dispute: {path}")
    parts, share = how.pop("parts", 1), how.pop("refund", 0)
    if share:
        year.known.by_hand.append(year.books.create_refund(charge, charge["amount"] // share)["id"])
        yield year.books.now() + DAY
    amount = (charge["amount"] - charge["amount_refunded"]) * how.pop("more", 100) // (100 * parts)
    disputes = [year.books.open_dispute(charge, amount, **how) for _ in range(parts)]
    for days, status in steps:
        yield year.books.now() + days * DAY
        for dispute in disputes[:1] if status == "won" and parts > 1 else disputes:
            if status == "escalate":
                year.books.escalate(dispute)
            else:
                year.books.set_dispute(dispute, status)


# -- seeded besides the day's cases ------------------------------------------------------------------------------------


def enterprises(year: Year) -> None:
    """Customers with agreements (8), known by name before the year begins; each buys later, like anybody."""
    year.books.set_clock(year.begin)
    for agreed, live in (("review", enterprise_pays_twice), ("suspend", enterprise_disputes), ("credits", enterprise)):
        who, user = year.person(email=f"{agreed}@enterprise.example.com")
        year.known.enterprises[agreed] = who["id"]
        year.add(live(year, Life(who, user, {})))


def enterprise(year: Year, life: Life) -> Steps:
    yield year.begin + 20 * DAY + 5 * HOUR
    _subscribe(year, life, "price_studio")
    yield year.end


def enterprise_pays_twice(year: Year, life: Life) -> Steps:
    """A double click, which the agreement leaves to a person."""
    t = year.begin + 30 * DAY + 5 * HOUR
    yield t
    a = year.buy(life.customer, "price_pro", metadata={"user_id": life.user})
    yield t + 5
    b = year.buy(life.customer, "price_pro", metadata={"user_id": life.user})
    year.tell("8 an agreement says review", "D3", "review", a.charge, b.charge)


def enterprise_disputes(year: Year, life: Life) -> Steps:
    yield year.begin + 25 * DAY + 5 * HOUR
    copy = year.buy(life.customer, "price_pro", metadata={"user_id": life.user})
    yield year.books.now() + 12 * DAY
    yield from charged_back(year, copy.charge, "lost")


def seeded(year: Year) -> Iterator[Steps]:
    """Every path and ending once each, whatever chance does; and what is both a refund and a chargeback."""
    for path in PATHS:
        yield disputed(year, path)
    for ending in ENDINGS:
        yield ended(year, ending)
    for way in TRIALS:
        yield tried(year, way)
    pending = Twice(case="D3 disputed while its refund is pending", method={"refund": "pending"})
    yield refund_and_dispute(year, pending)


def disputed(year: Year, path: str) -> Steps:
    yield year.sometime() - 30 * DAY
    who, user = year.person()
    copy = year.buy(who, "price_basic_yearly", metadata={"user_id": user})
    yield year.books.now() + 3 * DAY
    yield from charged_back(year, copy.charge, path)


def ended(year: Year, ending: Callable[[Year, Life], Steps]) -> Steps:
    yield year.sometime() - 40 * DAY
    life = Life(*year.person(), {})
    _subscribe(year, life, "price_basic")
    yield year.books.now() + 9 * DAY
    yield from ending(year, life)


def tried(year: Year, way: Callable[[Year, Life], Steps]) -> Steps:
    yield year.sometime() - 40 * DAY
    life = Life(*year.person(), {})
    _subscribe(year, life, "price_basic", trial_end=year.books.now() + 7 * DAY)
    yield year.books.now() + 2 * DAY
    yield from way(year, life)


def refund_and_dispute(year: Year, of: Twice) -> Steps:
    """The bank takes the money back while our refund of it is on its way."""
    told = len(year.truth)
    yield from twice(year, of)
    duplicate = next(row.duplicate for row in year.truth[told:] if row.case == of.case)
    yield year.books.now() + DAY
    year.counted("dispute: while a refund is pending")
    year.books.open_dispute(year.books.by_id[duplicate or ""], reason="duplicate")
