"""The truth table of clauses 1 to 6, 8 and 9: what people do at Stripe and in the shop, and what the policy makes of it.

Every plan is `price_basic` unless it is named: 29.00 USD a month, 500 credits, 50 in a trial. Days are counted from the first;
a month that begins on day 0 ends on day 31. `then` is everything that is so in the end: a line more or less is wrong.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from handlers.account import ActKind
from handlers.customer import at
from sandbox.invoices import LineOf
from tests.worker.rehearsal import DAY, Row, Scene, Story

ROWS: list[Row] = []
Days = AsyncIterator[float]
SECONDS = 1 / DAY


def table(rows: list[Row]) -> Callable[..., Callable[[Story], Story]]:
    """A decorator that makes a row of this table from its clause, its matter and what comes of it; the story is below."""

    def row(clause: str, name: str, then: str, *, agreement: str | None = None) -> Callable[[Story], Story]:
        def keep(story: Story) -> Story:
            rows.append(Row(clause=clause, name=name, story=story, then=then, agreement=agreement))
            return story

        return keep

    return row


row = table(ROWS)


# 1.1 and 1.2: cancelled, and served until the end of what was paid --------------------------------------------------------


@row(
    "1.2",
    "cancelled for the end of the period: it serves until then, and only then are the unused credits lost",
    """
""",
)
async def cancelled(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    await s.consume(120)
    yield 10
    s.books.cancel_at_period_end(sub)
    yield 30
    await s.says(
        "subscription 1: ending, until day 31",
        "included credits of day 0: 500 granted, 120 consumed, 380 left until day 31",
    )


@row(
    "1.1",
    "a cancellation that is taken back is none",
    """
""",
)
async def taken_back(s: Scene) -> Days:
    sub = s.buy()
    yield 10
    s.books.cancel_at_period_end(sub)
    yield 20
    await s.says("subscription 1: ending, until day 31")
    s.books.cancel_at_period_end(sub, False)


@row(
    "1.1",
    "cancelled for a date in the middle of the paid period: it ends on that date",
    """
""",
)
async def on_a_date(s: Scene) -> Days:
    sub = s.buy()
    yield 10
    s.books.cancel_at(sub, s.at(20))


@row(
    "1.1",
    "cancelled by the schedule: it ends with the last phase",
    """
""",
)
async def by_schedule(s: Scene) -> Days:
    sub = s.buy()
    yield 10
    s.books.schedule(sub, [([(s.stage.prices["price_basic"], 1)], s.at(61))], end_behavior="cancel")


@row(
    "1.1",
    "a schedule that is released ends nothing",
    """
""",
)
async def released(s: Scene) -> Days:
    sub = s.buy()
    yield 10
    schedule = s.books.schedule(sub, [([(s.stage.prices["price_basic"], 1)], s.at(61))], end_behavior="cancel")
    yield 20
    s.books.release_schedule(schedule)


@row(
    "1.2",
    "charged for a period after the end: a person must look, and nothing goes back by itself",
    """
""",
)
async def charged_after(s: Scene) -> Days:
    sub = s.buy()
    yield 10
    s.books.cancel_at_period_end(sub)
    yield 40
    s.books.charge_after_end(sub)


@row(
    "1.2",
    "what was used before the end may be billed after it",
    """
""",
)
async def usage_after(s: Scene) -> Days:
    sub = s.buy()
    yield 10
    s.books.cancel_at_period_end(sub)
    yield 40
    usage = s.stage.prices["price_usage"]
    line = LineOf(
        price=usage, amount=700, quantity=350, period=(s.at(0), s.at(31)), subscription=sub["id"], item="si_usage"
    )
    s.books.extra_invoice(sub, "manual", [line])


@row(
    "1.2",
    "renewed on the day before it was cancelled: that payment is a sale like any other",
    """
""",
)
async def renewed_first(s: Scene) -> Days:
    sub = s.buy()
    yield 32
    s.books.cancel_at_period_end(sub)


@row(
    "1.1",
    "a payment that does not come is no end; giving up after the last attempt is",
    """
""",
)
async def dunning(s: Scene) -> Days:
    s.buy()
    yield 20
    s.books.remove_method(s.customer)
    s.books.new_method(s.customer, charge="declines")
    yield 35
    await s.says("subscription 1: unpaid, until day 31", "included credits of day 0: 500 granted, 500 left")


@row(
    "1.1",
    "a first payment that never comes: nothing began",
    """
""",
)
async def never_began(s: Scene) -> Days:
    s.books.new_method(s.customer, charge="declines")
    s.buy()
    yield 1


# 1.3: ended at once -------------------------------------------------------------------------------------------------------


@row(
    "1.3",
    "ended at once: access ends at once, the rest of the period is not given back",
    """
""",
)
async def at_once(s: Scene) -> Days:
    sub = s.buy()
    yield 10
    s.books.cancel(sub)


@row(
    "1.3",
    "ended at once with a credit for the rest: out of policy, a person must look",
    """
""",
)
async def prorated(s: Scene) -> Days:
    sub = s.buy()
    yield 10
    s.books.cancel(sub, prorate=True, invoice_now=True)


@row(
    "1.3",
    "a change of plan credits and charges by the day: that is no cancellation",
    """
""",
)
async def change_of_plan(s: Scene) -> Days:
    sub = s.buy()
    yield 10
    s.books.update_items(sub, [{"price": s.stage.prices["price_pro"]}], "always_invoice")


# 2 and 6: all sales are final ---------------------------------------------------------------------------------------------


@row(
    "2, 6",
    "somebody refunds a sale by hand: out of policy, told at once",
    """
""",
)
async def by_hand(s: Scene) -> Days:
    sub = s.buy()
    yield 3
    s.books.create_refund(s.charge(sub), 1000)


@row(
    "2, 6",
    "a refund by hand that failed gave nothing back",
    """
""",
)
async def failed_by_hand(s: Scene) -> Days:
    sub = s.buy()
    yield 3
    refund = s.books.create_refund(s.charge(sub))
    yield 4
    await s.says("critical alert: out_of_policy_refund refund 1")
    s.books.fail_refund(refund)


@row(
    "2, 6",
    "a refund by hand of a true duplicate is within the policy, and its credits go",
    """
""",
)
async def hand_refund_of_duplicate(s: Scene) -> Days:
    s.buy()
    yield 42 * SECONDS
    second = s.buy()
    s.books.create_refund(s.charge(second))
    s.books.cancel(second)
    yield 1


@row(
    "2, 6",
    "a refund by hand of more than the duplicate part",
    """
""",
)
async def more_than_the_duplicate(s: Scene) -> Days:
    pack = (s.stage.prices["price_pack_100"], 1)
    s.buy()
    yield 42 * SECONDS
    second = s.buy(extra=[pack])
    s.books.create_refund(s.charge(second))
    s.books.cancel(second)
    yield 1


# 3.1: included credits ----------------------------------------------------------------------------------------------------


@row(
    "3.1",
    "unused credits are carried over while the subscription goes on",
    """
""",
)
async def carried_over(s: Scene) -> Days:
    s.buy()
    yield 40
    assert await s.consume(800) == "consumed"
    assert await s.consume(800) == "repeated"
    assert await s.consume(900, "other") == "insufficient"


@row(
    "3.1",
    "the price's own metadata says how many; three seats are three times as many",
    """
""",
)
async def by_metadata(s: Scene) -> Days:
    s.buy("price_own", quantity=3)
    yield 1


@row(
    "3.1",
    "a month that a coupon made free was paid",
    """
""",
)
async def free_month(s: Scene) -> Days:
    s.buy(coupon=s.books.new_coupon(percent_off=100))
    yield 1


@row(
    "3.1",
    "collection that is paused is no end",
    """
""",
)
async def collection_paused(s: Scene) -> Days:
    sub = s.buy()
    yield 10
    s.books.pause_collection(sub)


# 3.2: packs ---------------------------------------------------------------------------------------------------------------


@row(
    "3.2",
    "a pack outlives every cancellation",
    """
""",
)
async def pack_stays(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    s.pack()
    s.pack("price_pack_40", quantity=2)
    yield 10
    s.books.cancel(sub)
    yield 40
    assert await s.consume(130) == "consumed"


@row(
    "3.2",
    "a pack paid by bank debit grants when the money is there",
    """
""",
)
async def pack_by_debit(s: Scene) -> Days:
    s.pack(method=s.books.new_method(s.customer, type="us_bank_account"))
    yield 3
    await s.says_not(
        "purchased credits of day 0: 100 granted, 100 left", "purchased credits of day 3: 100 granted, 100 left"
    )
    yield 5


@row(
    "3.2",
    "a bank debit that fails grants nothing",
    """
""",
)
async def pack_unpaid(s: Scene) -> Days:
    s.pack(method=s.books.new_method(s.customer, type="us_bank_account", charge="fails"))
    yield 6


@row(
    "3.2",
    "a pack on the invoice of a subscription: credits of both kinds",
    """
""",
)
async def pack_on_invoice(s: Scene) -> Days:
    sub = s.buy(extra=[(s.stage.prices["price_pack_100"], 1)])
    yield 2
    s.books.cancel(sub)


# 3.3: trials --------------------------------------------------------------------------------------------------------------


@row(
    "3.3",
    "a trial that converts: its credits expire with it all the same",
    """
""",
)
async def converts(s: Scene) -> Days:
    s.buy(trial_end=s.at(7))
    yield 3
    assert await s.consume(20) == "consumed"
    yield 10


@row(
    "3.3",
    "an extended trial expires at its new end",
    """
""",
)
async def extended_trial(s: Scene) -> Days:
    sub = s.buy(trial_end=s.at(7))
    yield 3
    s.books.set_trial_end(sub, s.at(12))
    yield 8
    await s.says("trial credits of day 0: 50 granted, 50 left until day 12")
    yield 12


@row(
    "3.3",
    "a trial that is cut short expires when it ends",
    """
""",
)
async def shortened_trial(s: Scene) -> Days:
    sub = s.buy(trial_end=s.at(7))
    yield 3
    s.books.set_trial_end(sub, s.at(4))
    yield 6


@row(
    "3.3",
    "a trial that is cancelled at once",
    """
""",
)
async def cancelled_trial(s: Scene) -> Days:
    sub = s.buy(trial_end=s.at(7))
    yield 3
    s.books.cancel(sub)


@row(
    "3.3",
    "a trial that is cancelled for its end serves until then",
    """
""",
)
async def cancelled_for_trial_end(s: Scene) -> Days:
    sub = s.buy(trial_end=s.at(7))
    yield 3
    s.books.cancel_at_period_end(sub)


@row(
    "3.3",
    "a trial without a card that ends in a pause: the trial's credits are gone, and nothing has ended",
    """
""",
)
async def paused_after_trial(s: Scene) -> Days:
    s.books.remove_method(s.customer)
    s.buy(trial_end=s.at(7), missing_payment_method="pause")
    yield 10


@row(
    "3.3",
    "a trial without a card that ends the subscription",
    """
""",
)
async def ended_after_trial(s: Scene) -> Days:
    s.books.remove_method(s.customer)
    s.buy(trial_end=s.at(7), missing_payment_method="cancel")
    yield 10


@row(
    "3.3",
    "a second trial of the same subscription has credits of its own",
    """
""",
)
async def second_trial(s: Scene) -> Days:
    sub = s.buy(trial_end=s.at(7))
    yield 40
    s.books.set_trial_end(sub, s.at(45), proration="none")
    yield 46


# 4.1: technical trouble ---------------------------------------------------------------------------------------------------


@row(
    "4.1",
    "an operator grants service credits, for a while and for good",
    """
""",
)
async def granted(s: Scene) -> Days:
    s.buy()
    yield 5
    await s.act(ActKind.GRANT, credits=30, until=at(s.at(9)), case="T-1")
    await s.act(ActKind.GRANT, credits=40)
    yield 6
    assert await s.consume(10) == "consumed"


@row(
    "4.1",
    "an operator extends a subscription that was cancelled: it serves longer, its credits are lost at its end",
    """
""",
)
async def extended(s: Scene) -> Days:
    sub = s.buy()
    yield 10
    s.books.cancel_at_period_end(sub)
    yield 20
    await s.act(ActKind.EXTEND, subscription=sub["id"], days=7, case="T-2")


# 4.2: outages -------------------------------------------------------------------------------------------------------------


@row(
    "4.2",
    "an outage gives credits in proportion, rounded down, once however often it is declared",
    """
""",
)
async def outage(s: Scene) -> Days:
    s.buy("price_outage")
    yield 15
    await s.outage(10, 12, "price_outage")
    await s.outage(10, 12, "price_outage")


@row(
    "4.2",
    "an outage gives nothing for the time after an end, nor to another plan",
    """
""",
)
async def outage_after_end(s: Scene) -> Days:
    sub = s.buy("price_outage2")
    s.buy("price_pro", metadata={"user_id": s.user})
    yield 11
    s.books.cancel(sub)
    yield 15
    await s.outage(10, 12, "price_outage2")


# 4.3: duplicates, and what they had granted -------------------------------------------------------------------------------


@row(
    "4.3",
    "a double click: the second payment goes back, its subscription ends, its credits are taken back",
    """
""",
)
async def double_click(s: Scene) -> Days:
    s.buy()
    yield 42 * SECONDS
    s.buy()
    yield 1


@row(
    "4.3",
    "a double click whose second credits were used: a person must look",
    """
""",
)
async def used(s: Scene) -> Days:
    s.buy()
    yield 42 * SECONDS
    s.hold_money = True
    s.buy()
    yield 43 * SECONDS
    assert await s.consume(600) == "consumed"
    s.hold_money = False
    yield 1


@row(
    "4.3",
    "a double click whose credits were used within what the first one granted",
    """
""",
)
async def used_less(s: Scene) -> Days:
    s.buy()
    yield 42 * SECONDS
    s.hold_money = True
    s.buy()
    yield 43 * SECONDS
    assert await s.consume(450) == "consumed"
    s.hold_money = False
    yield 1


@row(
    "4.3",
    "one invoice paid twice: the excess goes back, its credits stay",
    """
""",
)
async def paid_twice(s: Scene) -> Days:
    sub = s.buy()
    yield 1
    s.books.pay_again(s.invoice(sub), credit=False)
    yield 2


@row(
    "4.3",
    "two people of one name in the shop, one person in the app: the second payment goes back",
    """
""",
)
async def two_customers(s: Scene) -> Days:
    s.buy()
    yield 42 * SECONDS
    s.buy(by=s.somebody())
    yield 1


@row(
    "4.3",
    "two workspaces, two months, two packs: bought on purpose",
    """
""",
)
async def on_purpose(s: Scene) -> Days:
    for site in ("a", "b"):
        s.buy(metadata={"user_id": s.user, "workspace_id": site})
        s.pack(payment_metadata={"order_id": site})
    yield 40


# 5: cases -----------------------------------------------------------------------------------------------------------------


@row(
    "5",
    "a letter that asks for a sale's money is answered with no, in time",
    """
""",
)
async def letter(s: Scene) -> Days:
    sub = s.buy()
    yield 1
    case = await s.write_in(s.charge(sub)["id"])
    yield 1.9
    await s.says("warning alert: case_near_due")
    await s.answer(case)


@row(
    "5",
    "a letter that nobody answers within a day",
    """
""",
)
async def unanswered(s: Scene) -> Days:
    sub = s.buy()
    yield 1
    await s.write_in(s.charge(sub)["id"])
    yield 3


# 8 and 9: agreements and versions -----------------------------------------------------------------------------------------


@row(
    "8",
    "an agreement that duplicates are looked at by a person",
    """
""",
    agreement='{ duplicates = "review" }',
)
async def agreed_review(s: Scene) -> Days:
    s.buy()
    yield 42 * SECONDS
    s.buy()
    yield 1


@row(
    "8",
    "an agreement about credits",
    """
""",
    agreement="{ credits = { plans = { price_basic = { included = 900 } } } }",
)
async def agreed_credits(s: Scene) -> Days:
    s.buy()
    yield 1


@row(
    "8",
    "an agreement that a chargeback suspends",
    """
""",
    agreement='{ on_chargeback = "suspend" }',
)
async def agreed_suspension(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    s.books.open_dispute(s.charge(sub))
    yield 6
    assert await s.consume(1) == "suspended"


@row(
    "9",
    "what was paid before a new version is judged by the old one, what is paid after by the new one",
    """
""",
)
async def versions(s: Scene) -> Days:
    sub = s.buy()
    yield 44
    s.pack()
    yield 46
    s.pack()
    yield 62
    s.books.create_refund(s.charge(sub), 100)


@row(
    "9",
    "a chargeback holds by the version of its payment: before the new one it flags",
    """
""",
)
async def flags_by_old(s: Scene) -> Days:
    sub = s.buy()
    yield 50
    s.books.open_dispute(s.charge(sub))
    yield 51


@row(
    "9",
    "a chargeback of a payment under the new version suspends",
    """
""",
)
async def suspends_by_new(s: Scene) -> Days:
    yield 46
    sub = s.buy()
    yield 50
    s.books.open_dispute(s.charge(sub))
    yield 51
    assert await s.consume(1) == "suspended"
