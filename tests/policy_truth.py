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

    def row(
        clause: str, name: str, then: str, *, agreement: str | None = None, old: str | None = None
    ) -> Callable[[Story], Story]:
        def keep(story: Story) -> Story:
            rows.append(Row(clause=clause, name=name, story=story, then=then, agreement=agreement, old=old))
            return story

        return keep

    return row


row = table(ROWS)


# 1.1 and 1.2: cancelled, and served until the end of what was paid --------------------------------------------------------


@row(
    "1.2",
    "cancelled for the end of the period: it serves until then, and only then are the unused credits lost",
    """
    subscription 1: ended, until day 31
    included credits of day 0: 500 granted, 120 consumed, 380 forfeited
    told: access.ended subscription 1
    told: access.ending subscription 1
    told: credits.forfeited 380
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
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    told: access.ending subscription 1
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
    subscription 1: ended at once, until day 20
    included credits of day 0: 500 granted, 500 forfeited
    told: access.ended subscription 1
    told: access.ending subscription 1
    told: credits.forfeited 500
    """,
)
async def on_a_date(s: Scene) -> Days:
    sub = s.buy()
    yield 10
    s.books.cancel_at(sub, s.at(20))
    yield 19
    await s.says("subscription 1: ending, until day 20")


@row(
    "1.1",
    "cancelled by the schedule: it ends with the last phase",
    """
    subscription 1: ended by schedule, until day 61
    included credits of day 0: 500 granted, 500 forfeited
    included credits of day 31: 500 granted, 500 forfeited
    told: access.ended subscription 1
    told: access.ending subscription 1
    told: credits.forfeited 500
    told: credits.forfeited 500
    """,
)
async def by_schedule(s: Scene) -> Days:
    sub = s.buy()
    yield 10
    s.books.schedule(sub, [([(s.stage.prices["price_basic"], 1)], s.at(61))], end_behavior="cancel")
    yield 31.02  # the renewal is an invoice already, and not paid yet
    await s.says("subscription 1: ending by schedule, until day 31")
    await s.says_not("told: access.ended subscription 1")
    yield 32
    await s.says("subscription 1: ending by schedule, until day 61", "told: access.ending subscription 1")


@row(
    "1.1",
    "a schedule that is released ends nothing",
    """
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
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
    subscription 1: ended, until day 31
    included credits of day 0: 500 granted, 500 forfeited
    included credits of day 40: 500 granted, 500 forfeited
    invoice 2: review under 1.2 (charge_after_cancellation)
    critical alert: charge_after_cancellation invoice 2
    told: access.ended subscription 1
    told: access.ending subscription 1
    told: credits.forfeited 500
    told: credits.forfeited 500
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
    subscription 1: ended, until day 31
    included credits of day 0: 500 granted, 500 forfeited
    told: access.ended subscription 1
    told: access.ending subscription 1
    told: credits.forfeited 500
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
    subscription 1: ended, until day 61
    included credits of day 0: 500 granted, 500 forfeited
    included credits of day 31: 500 granted, 500 forfeited
    told: access.ended subscription 1
    told: access.ending subscription 1
    told: credits.forfeited 500
    told: credits.forfeited 500
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
    subscription 1: ended, until day 31
    included credits of day 0: 500 granted, 500 forfeited
    told: access.ended subscription 1
    told: credits.forfeited 500
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
    subscription 1: never began, served nothing
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
    subscription 1: ended at once, until day 10
    included credits of day 0: 500 granted, 500 forfeited
    told: access.ended subscription 1
    told: credits.forfeited 500
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
    subscription 1: ended at once, until day 10
    included credits of day 0: 500 granted, 500 forfeited
    invoice 2: review under 1.3 (proration_after_cancellation)
    warning alert: proration_after_cancellation invoice 2
    told: access.ended subscription 1
    told: credits.forfeited 500
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
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 2500 granted, 2500 left
    included credits of day 61: 2500 granted, 2500 left
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
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    refund 1: 10.00 USD of charge 1 by hand, succeeded
    refund 1: deny 10.00 USD under 2, 6 (out_of_policy_refund)
    critical alert: out_of_policy_refund refund 1
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
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    refund 1: 29.00 USD of charge 1 by hand, failed
    alert over: out_of_policy_refund refund 1
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
    subscription 1: renews, until day 92
    subscription 2: ended at once, until day 0
    included credits of day 0: 500 granted, 500 left
    included credits of day 0: 500 granted, 500 taken back
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    charge 2: none under 4.3 (D3)
    refund 1: 29.00 USD of charge 2 by hand, succeeded
    refund 1: none under 4.3 (refunded_by_hand)
    told: access.ended subscription 2
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
    subscription 1: renews, until day 92
    subscription 2: ended at once, until day 0
    included credits of day 0: 500 granted, 500 left
    included credits of day 0: 500 granted, 500 taken back
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    purchased credits of day 0: 100 granted, 100 left
    charge 2: none under 4.3 (D3)
    refund 1: 39.00 USD of charge 2 by hand, succeeded
    refund 1: deny 10.00 USD under 2, 6 (out_of_policy_refund)
    critical alert: out_of_policy_refund refund 1
    told: access.ended subscription 2
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
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 consumed
    included credits of day 31: 500 granted, 300 consumed, 200 left
    included credits of day 61: 600 granted, 600 left
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
    subscription 1: renews, until day 92
    included credits of day 0: 2100 granted, 2100 left
    included credits of day 31: 2100 granted, 2100 left
    included credits of day 61: 2100 granted, 2100 left
    """,
)
async def by_metadata(s: Scene) -> Days:
    s.buy("price_own", quantity=3)
    yield 1


@row(
    "3.1",
    "a month that a coupon made free was paid",
    """
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    """,
)
async def free_month(s: Scene) -> Days:
    s.buy(coupon=s.books.new_coupon(percent_off=100))
    yield 1


@row(
    "3.1",
    "collection that is paused is no end",
    """
    subscription 1: paused, until day 31
    included credits of day 0: 500 granted, 500 left
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
    subscription 1: ended at once, until day 10
    included credits of day 0: 500 granted, 500 forfeited
    purchased credits of day 5: 100 granted, 100 consumed
    purchased credits of day 6: 80 granted, 30 consumed, 50 left
    told: access.ended subscription 1
    told: credits.forfeited 500
    """,
)
async def pack_stays(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    s.pack()
    yield 6
    s.pack("price_pack_40", quantity=2)
    yield 10
    s.books.cancel(sub)
    yield 40
    assert await s.consume(130) == "consumed"


@row(
    "3.2",
    "a pack paid by bank debit grants when the money is there",
    """
    purchased credits of day 0: 100 granted, 100 left
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
    subscription 1: ended at once, until day 2
    included credits of day 0: 500 granted, 500 forfeited
    purchased credits of day 0: 100 granted, 100 left
    told: access.ended subscription 1
    told: credits.forfeited 500
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
    subscription 1: renews, until day 68
    included credits of day 7: 500 granted, 500 left
    included credits of day 38: 500 granted, 500 left
    trial credits of day 0: 50 granted, 20 consumed, 30 expired
    told: credits.expired 30
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
    subscription 1: renews, until day 73
    included credits of day 12: 500 granted, 500 left
    included credits of day 43: 500 granted, 500 left
    trial credits of day 0: 50 granted, 50 expired
    told: credits.expired 50
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
    subscription 1: renews, until day 96
    included credits of day 4: 500 granted, 500 left
    included credits of day 35: 500 granted, 500 left
    included credits of day 65: 600 granted, 600 left
    trial credits of day 0: 50 granted, 50 expired
    told: credits.expired 50
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
    subscription 1: ended at once, until day 3
    trial credits of day 0: 50 granted, 50 expired
    told: access.ended subscription 1
    told: credits.expired 50
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
    subscription 1: ended, until day 7
    trial credits of day 0: 50 granted, 50 expired
    told: access.ended subscription 1
    told: access.ending subscription 1
    told: credits.expired 50
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
    subscription 1: paused, until day 7
    trial credits of day 0: 50 granted, 50 expired
    told: credits.expired 50
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
    subscription 1: ended, until day 7
    trial credits of day 0: 50 granted, 50 expired
    told: access.ended subscription 1
    told: credits.expired 50
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
    subscription 1: renews, until day 75
    included credits of day 7: 500 granted, 500 left
    included credits of day 38: 500 granted, 500 left
    included credits of day 45: 600 granted, 600 left
    trial credits of day 0: 50 granted, 50 expired
    trial credits of day 40: 50 granted, 50 expired
    charge 3: review 29.00 USD under 4.3 (D5, version second)
    action refund of charge 3: proposed
    told: credits.expired 50
    told: credits.expired 50
    """,
    old="""
    subscription 1: renews, until day 75
    included credits of day 7: 500 granted, 500 left
    included credits of day 38: 500 granted, 500 left
    included credits of day 45: 600 granted, 600 left
    trial credits of day 0: 50 granted, 50 expired
    charge 3: review 29.00 USD under 4.3 (D5, version second)
    action refund of charge 3: proposed
    told: credits.expired 50
    told: credits.expired 50
    told: credits.expired -50
    """,
)
async def second_trial(s: Scene) -> Days:  # it begins within a paid month, which may be an extra charge
    sub = s.buy(trial_end=s.at(7))
    yield 40
    s.books.set_trial_end(sub, s.at(45), proration="none")
    yield 46


# 4.1: technical trouble ---------------------------------------------------------------------------------------------------


@row(
    "4.1",
    "an operator grants service credits, for a while and for good",
    """
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    service credits of day 5: 30 granted, 10 consumed, 20 expired
    service credits of day 5: 40 granted, 40 left
    told: credits.expired 20
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
    subscription 1: ended, until day 38
    included credits of day 0: 500 granted, 500 forfeited
    told: access.ended subscription 1
    told: access.ending subscription 1
    told: access.ending subscription 1
    told: credits.forfeited 500
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
    subscription 1: renews, until day 92
    included credits of day 0: 1000 granted, 1000 left
    included credits of day 31: 1000 granted, 1000 left
    included credits of day 61: 1000 granted, 1000 left
    service credits of day 15: 64 granted, 64 left
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
    subscription 1: ended at once, until day 11
    subscription 2: renews, until day 92
    included credits of day 0: 700 granted, 700 left
    included credits of day 0: 1000 granted, 1000 forfeited
    included credits of day 31: 700 granted, 700 left
    included credits of day 61: 700 granted, 700 left
    service credits of day 15: 32 granted, 32 left
    told: access.ended subscription 1
    told: credits.forfeited 1000
    """,
)
async def outage_after_end(s: Scene) -> Days:
    sub = s.buy("price_outage2")
    s.buy("price_own", by=s.somebody(), metadata={"user_id": f"friend of {s.user}"})
    yield 11
    s.books.cancel(sub)
    yield 15
    await s.outage(10, 12, "price_outage2")


@row(
    "4.2",
    "an outage declared before a bank debit has paid for the period that it met: credits when it has",
    """
    subscription 1: renews, until day 92
    included credits of day 4: 1000 granted, 1000 left
    included credits of day 35: 1000 granted, 1000 left
    included credits of day 65: 1000 granted, 1000 left
    service credits of day 4: 32 granted, 32 left
    """,
)
async def outage_before_payment(s: Scene) -> Days:
    s.buy("price_outage3", method=s.books.new_method(s.customer, type="us_bank_account"))
    yield 3
    await s.outage(1, 2, "price_outage3")
    yield 3.5
    await s.says_not("service credits of day 3: 32 granted, 32 left")


# 4.3: duplicates, and what they had granted -------------------------------------------------------------------------------


@row(
    "4.3",
    "a double click: the second payment goes back, its subscription ends, its credits are taken back",
    """
    subscription 1: renews, until day 92
    subscription 2: ended at once, until day 0
    included credits of day 0: 500 granted, 500 left
    included credits of day 0: 500 granted, 500 taken back
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    charge 2: refund 29.00 USD under 4.3 (D3)
    refund 1: 29.00 USD of charge 2 by finalsale, succeeded
    action cancel_subscription of subscription 2: sent
    action refund of charge 2: sent
    told: access.ended subscription 2
    told: refund.made refund 1
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
    subscription 1: renews, until day 92
    subscription 2: renews, until day 92
    included credits of day 0: 500 granted, 100 consumed, 400 left
    included credits of day 0: 500 granted, 500 consumed
    included credits of day 31: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    included credits of day 61: 600 granted, 600 left
    charge 2: review 29.00 USD under 4.3 (D3)
    action cancel_subscription of subscription 2: proposed
    action refund of charge 2: proposed
    action refund of charge 4: proposed
    action refund of charge 6: proposed
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
    subscription 1: renews, until day 92
    subscription 2: ended at once, until day 0
    included credits of day 0: 500 granted, 450 consumed, 50 left
    included credits of day 0: 500 granted, 500 taken back
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    charge 2: refund 29.00 USD under 4.3 (D3)
    refund 1: 29.00 USD of charge 2 by finalsale, succeeded
    action cancel_subscription of subscription 2: sent
    action refund of charge 2: sent
    told: access.ended subscription 2
    told: refund.made refund 1
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
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    charge 2: refund 29.00 USD under 4.3 (D1)
    refund 1: 29.00 USD of charge 2 by finalsale, succeeded
    action refund of charge 2: sent
    told: refund.made refund 1
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
    subscription 1: renews, until day 92
    subscription 2: ended at once, until day 0
    included credits of day 0: 500 granted, 500 left
    included credits of day 0: 500 granted, 500 taken back
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    charge 2: refund 29.00 USD under 4.3 (D4)
    refund 1: 29.00 USD of charge 2 by finalsale, succeeded
    action cancel_subscription of subscription 2: sent
    action refund of charge 2: sent
    told: access.ended subscription 2
    told: refund.made refund 1
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
    subscription 1: renews, until day 92
    subscription 2: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    included credits of day 61: 600 granted, 600 left
    purchased credits of day 0: 100 granted, 100 left
    purchased credits of day 0: 100 granted, 100 left
    charge 3: none under 4.3 (D3)
    charge 4: none under 4.3 (D6)
    """,
)
async def on_purpose(s: Scene) -> Days:
    for n, site in enumerate("ab"):
        yield 60 * n * SECONDS
        s.buy(metadata={"user_id": s.user, "workspace_id": site})
        yield (60 * n + 30) * SECONDS
        s.pack(payment_metadata={"order_id": site})
    yield 40


@row(
    "4.3",
    "bought again after a week: a person decides, also after another trial of the copy was reviewed, and that fell away",
    """
    subscription 1: renews, until day 92
    subscription 2: renews, until day 91
    included credits of day 0: 500 granted, 500 left
    included credits of day 8: 500 granted, 500 left
    included credits of day 30: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 60: 600 granted, 600 left
    included credits of day 61: 600 granted, 600 left
    trial credits of day 10: 50 granted, 50 expired
    charge 2: review 29.00 USD under 4.3 (D3)
    charge 3: review 29.00 USD under 4.3 (D5)
    action cancel_subscription of subscription 2: proposed
    action refund of charge 2: proposed
    action refund of charge 3: proposed
    action refund of charge 5: proposed
    told: credits.expired 50
    """,
)
async def two_reviews(s: Scene) -> Days:  # both prepare one and the same cancellation
    s.buy()
    yield 8
    second = s.buy()
    yield 10
    s.books.set_trial_end(second, s.at(13), proration="none")
    yield 12
    await s.says("subscription 2: review under 4.3 (D3)")
    s.books.set_trial_end(second, s.at(30))
    yield 12.5
    await s.says_not("subscription 2: review under 4.3 (D3)")
    await s.says("action refund of charge 2: proposed", "action cancel_subscription of subscription 2: proposed")


@row(
    "4.3",
    "a rehearsal on a test clock is left alone",
    """
    """,
)
async def rehearsal(s: Scene) -> Days:
    somebody = s.somebody(test_clock="clock_1")
    for n in range(2):
        yield 60 * n * SECONDS
        sub = s.buy(by=somebody)
    yield 1
    s.books.open_dispute(s.charge(sub))
    s.books.cancel(sub, prorate=True, invoice_now=True)


# 5: cases -----------------------------------------------------------------------------------------------------------------


@row(
    "5",
    "a letter that asks for a sale's money is answered with no, in time",
    """
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    alert over: case_near_due
    a case: answered, deny under 2, 6
    """,
)
async def letter(s: Scene) -> Days:
    sub = s.buy()
    yield 1
    case = await s.write_in(s.charge(sub)["id"])
    yield 1.9
    await s.says("a case: open, deny under 2, 6", "warning alert: case_near_due")
    await s.answer(case)


@row(
    "5",
    "a letter that nobody answers within a day",
    """
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    critical alert: case_overdue
    alert over: case_near_due
    a case: open, deny under 2, 6
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
    subscription 1: renews, until day 92
    subscription 2: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    included credits of day 61: 600 granted, 600 left
    charge 2: review 29.00 USD under 4.3 (D3, as agreed)
    action cancel_subscription of subscription 2: proposed
    action refund of charge 2: proposed
    action refund of charge 4: proposed
    action refund of charge 6: proposed
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
    subscription 1: renews, until day 92
    included credits of day 0: 900 granted, 900 left
    included credits of day 31: 900 granted, 900 left
    included credits of day 61: 900 granted, 900 left
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
    standing: suspended (dispute 1 lost)
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    dispute 1: review under 7 (chargeback, as agreed)
    warning alert: chargeback_lost dispute 1
    alert over: chargeback dispute 1
    alert over: deadline dispute 1 3d
    alert over: deadline dispute 1 7d
    alert over: deadline dispute 1 24h
    told: standing.changed suspended
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
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    purchased credits of day 44: 100 granted, 100 left
    purchased credits of day 46: 110 granted, 110 left
    refund 1: 1.00 USD of charge 5 by hand, succeeded
    refund 1: deny 1.00 USD under 2, 6 (out_of_policy_refund, version second)
    critical alert: out_of_policy_refund refund 1
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
    standing: flagged (dispute 1 lost)
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    dispute 1: review under 7 (chargeback)
    warning alert: chargeback_lost dispute 1
    alert over: chargeback dispute 1
    alert over: deadline dispute 1 3d
    alert over: deadline dispute 1 7d
    alert over: deadline dispute 1 24h
    told: standing.changed flagged
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
    standing: suspended (dispute 1 lost)
    subscription 1: renews, until day 76
    included credits of day 46: 600 granted, 600 left
    dispute 1: review under 7 (chargeback, version second)
    warning alert: chargeback_lost dispute 1
    alert over: chargeback dispute 1
    alert over: deadline dispute 1 3d
    alert over: deadline dispute 1 7d
    alert over: deadline dispute 1 24h
    told: standing.changed suspended
    """,
)
async def suspends_by_new(s: Scene) -> Days:
    yield 46
    sub = s.buy()
    yield 50
    s.books.open_dispute(s.charge(sub))
    yield 51
    assert await s.consume(1) == "suspended"
