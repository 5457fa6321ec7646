"""The truth table of clause 7: what the cardholder's bank does, and what becomes of the customer's standing."""

from __future__ import annotations

from handlers.account import ActKind
from tests.policy_truth import SECONDS, Days, table
from tests.worker.rehearsal import Row, Scene

ROWS: list[Row] = []
row = table(ROWS)


@row(
    "7",
    "a chargeback flags the customer while it is open; silence loses it, and the hold stays until a person decides",
    """
    standing: flagged (dispute 1 lost)
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 1 consumed, 499 left
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
async def lost_by_silence(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    s.books.open_dispute(s.charge(sub))
    yield 6
    await s.says("standing: flagged (dispute 1 needs_response)", "critical alert: chargeback dispute 1")
    assert await s.consume(1) == "consumed"


@row(
    "7",
    "deadlines: 7 days, 3 days, 24 hours",
    """
    standing: flagged (dispute 1 under_review)
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    dispute 1: none under 7 (chargeback)
    alert over: chargeback dispute 1
    alert over: deadline dispute 1 3d
    alert over: deadline dispute 1 7d
    alert over: deadline dispute 1 24h
    told: standing.changed flagged
    """,
)
async def deadlines(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    dispute = s.books.open_dispute(s.charge(sub), due_by=s.at(15))
    yield 7
    await s.says_not("warning alert: deadline dispute 1 7d")
    yield 8
    await s.says("warning alert: deadline dispute 1 7d")
    yield 12
    await s.says("warning alert: deadline dispute 1 3d", "alert over: deadline dispute 1 7d")
    yield 14
    await s.says("critical alert: deadline dispute 1 24h")
    s.books.set_dispute(dispute, "under_review")
    yield 14.1
    await s.says("standing: flagged (dispute 1 under_review)")


@row(
    "7",
    "a chargeback that is won lifts its hold",
    """
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    dispute 1: none under 7 (chargeback)
    alert over: chargeback dispute 1
    alert over: deadline dispute 1 7d
    told: standing.changed flagged
    told: standing.changed good
    """,
)
async def won(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    dispute = s.books.open_dispute(s.charge(sub))
    yield 7
    s.books.set_dispute(dispute, "under_review")
    yield 8
    s.books.set_dispute(dispute, "won")


@row(
    "7",
    "lost, and then won after all",
    """
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    dispute 1: none under 7 (chargeback)
    alert over: chargeback dispute 1
    alert over: chargeback_lost dispute 1
    alert over: deadline dispute 1 7d
    told: standing.changed flagged
    told: standing.changed good
    """,
)
async def won_after_lost(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    dispute = s.books.open_dispute(s.charge(sub))
    yield 7
    s.books.set_dispute(dispute, "lost")
    yield 20
    await s.says("standing: flagged (dispute 1 lost)")
    s.books.set_dispute(dispute, "won")


@row(
    "7",
    "lost, appealed, and lost again: a lift of the first loss does not cover the appeal",
    """
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    dispute 1: none under 7 (chargeback)
    alert over: chargeback dispute 1
    alert over: chargeback_lost dispute 1
    alert over: deadline dispute 1 7d
    told: standing.changed flagged
    told: standing.changed flagged
    told: standing.changed good
    told: standing.changed good
    """,
)
async def appealed(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    dispute = s.books.open_dispute(s.charge(sub))
    yield 7
    s.books.set_dispute(dispute, "lost")
    yield 8
    await s.act(ActKind.LIFT, dispute=dispute["id"])
    yield 9
    await s.says_not("standing: flagged (dispute 1 lost)")
    s.books.set_dispute(dispute, "appeal_under_review")
    yield 10
    await s.says("standing: flagged (dispute 1 appeal_under_review)")
    s.books.set_dispute(dispute, "lost")


@row(
    "7",
    "an operator keeps the hold of a chargeback that is won",
    """
    standing: flagged (dispute 1 won)
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    dispute 1: none under 7 (chargeback)
    alert over: chargeback dispute 1
    alert over: deadline dispute 1 7d
    told: standing.changed flagged
    """,
)
async def kept(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    dispute = s.books.open_dispute(s.charge(sub))
    yield 7
    await s.act(ActKind.KEEP, dispute=dispute["id"])
    yield 8
    s.books.set_dispute(dispute, "won")


@row(
    "7",
    "an operator suspends and lifts: meanwhile nothing is consumed",
    """
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 10 consumed, 490 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    told: standing.changed good
    told: standing.changed suspended
    """,
)
async def suspended(s: Scene) -> Days:
    s.buy()
    yield 5
    await s.act(ActKind.SUSPEND)
    yield 6
    await s.says("standing: suspended (operator)")
    assert await s.consume(10) == "suspended"
    await s.act(ActKind.LIFT)
    yield 7
    assert await s.consume(10) == "consumed"


@row(
    "7",
    "an inquiry holds nothing, also when it closes",
    """
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    dispute 1: none under 7 (inquiry)
    alert over: inquiry dispute 1
    """,
)
async def inquiry(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    dispute = s.books.open_dispute(s.charge(sub), inquiry=True)
    yield 6
    await s.says("warning alert: inquiry dispute 1")
    await s.says_not("standing: flagged (dispute 1 warning_needs_response)")
    s.books.set_dispute(dispute, "warning_closed")


@row(
    "7",
    "an inquiry that escalates becomes a chargeback, without a second beginning",
    """
    standing: flagged (dispute 1 needs_response)
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    dispute 1: review under 7 (chargeback)
    critical alert: chargeback dispute 1
    alert over: deadline dispute 1 7d
    alert over: inquiry dispute 1
    told: standing.changed flagged
    """,
)
async def escalates(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    dispute = s.books.open_dispute(s.charge(sub), inquiry=True)
    yield 10
    s.books.escalate(dispute, due_by=s.at(80))


@row(
    "7",
    "a dispute that the network prevented: no hold, no refund",
    """
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    dispute 1: none under 7 (prevented)
    """,
)
async def prevented(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    s.books.open_dispute(s.charge(sub), prevented=True)


@row(
    "7",
    "a status that nobody knows yet holds, and says so",
    """
    standing: flagged (dispute 1 arbitration_pending)
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    dispute 1: review under 7 (chargeback)
    warning alert: unknown_status dispute 1
    told: standing.changed flagged
    """,
)
async def unknown(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    s.books.open_dispute(s.charge(sub), status="arbitration_pending", due_by=s.at(80))


@row(
    "7",
    "two disputes of one charge: the standing clears when both are over",
    """
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    dispute 1: none under 7 (chargeback)
    dispute 2: none under 7 (chargeback)
    alert over: chargeback dispute 1
    alert over: chargeback dispute 2
    told: standing.changed flagged
    told: standing.changed flagged
    told: standing.changed good
    """,
)
async def two_of_one(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    first = s.books.open_dispute(s.charge(sub), 1000, due_by=s.at(80))
    second = s.books.open_dispute(s.charge(sub), 1900, due_by=s.at(80))
    yield 6
    s.books.set_dispute(first, "won")
    yield 7
    await s.says("standing: flagged (dispute 2 needs_response)")
    s.books.set_dispute(second, "won")


@row(
    "7",
    "a dispute larger than its charge, after a part was refunded by hand",
    """
    standing: flagged (dispute 1 needs_response)
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    refund 1: 9.00 USD of charge 1 by hand, succeeded
    refund 1: deny 9.00 USD under 2, 6 (out_of_policy_refund)
    dispute 1: review under 7 (chargeback)
    critical alert: chargeback dispute 1
    critical alert: out_of_policy_refund refund 1
    told: standing.changed flagged
    """,
)
async def larger(s: Scene) -> Days:
    sub = s.buy()
    yield 4
    s.books.create_refund(s.charge(sub), 900)
    yield 5
    s.books.open_dispute(s.charge(sub), 3100, due_by=s.at(80))


@row(
    "7",
    "a dispute that cannot be answered is lost at once",
    """
    standing: flagged (dispute 1 lost)
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    dispute 1: review under 7 (chargeback)
    warning alert: chargeback_lost dispute 1
    told: standing.changed flagged
    """,
)
async def no_answer(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    s.books.open_dispute(s.charge(sub), due_by=0)


@row(
    "7",
    "an early fraud warning is a note: no hold, no refund",
    """
    subscription 1: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    warning 1: none under 7 (early_fraud_warning)
    note alert: early_fraud_warning warning 1
    """,
)
async def warned(s: Scene) -> Days:
    sub = s.buy()
    yield 5
    s.books.warn_of_fraud(s.charge(sub))


@row(
    "7",
    "a double click and a chargeback on the copy: the bank gives it back, finalsale does not",
    """
    standing: flagged (dispute 1 needs_response)
    subscription 1: renews, until day 92
    subscription 2: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    included credits of day 61: 600 granted, 600 left
    charge 2: review 29.00 USD under 4.3 (D3)
    dispute 1: review under 7 (chargeback)
    action cancel_subscription of subscription 2: proposed
    action refund of charge 2: proposed
    action refund of charge 4: proposed
    action refund of charge 6: proposed
    critical alert: chargeback dispute 1
    told: standing.changed flagged
    """,
)
async def copy_disputed(s: Scene) -> Days:
    s.buy()
    yield 42 * SECONDS
    second = s.buy()
    s.books.open_dispute(s.charge(second), due_by=s.at(80))
    yield 2


@row(
    "7",
    "a double click and a chargeback on the first payment",
    """
    standing: flagged (dispute 1 needs_response)
    subscription 1: renews, until day 92
    subscription 2: renews, until day 92
    included credits of day 0: 500 granted, 500 left
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    included credits of day 61: 600 granted, 600 left
    charge 2: review 29.00 USD under 4.3 (D3)
    dispute 1: review under 7 (chargeback)
    action cancel_subscription of subscription 2: proposed
    action refund of charge 2: proposed
    action refund of charge 4: proposed
    action refund of charge 6: proposed
    critical alert: chargeback dispute 1
    told: standing.changed flagged
    """,
)
async def original_disputed(s: Scene) -> Days:
    first = s.buy()
    yield 42 * SECONDS
    s.buy()
    s.books.open_dispute(s.charge(first), due_by=s.at(80))
    yield 2


@row(
    "7",
    "the chargeback on the copy is lost: that copy is paid back, nothing is left to decide about it",
    """
    standing: flagged (dispute 1 lost)
    subscription 1: renews, until day 92
    subscription 2: ended at once, until day 0
    included credits of day 0: 500 granted, 500 forfeited
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    charge 2: none under 4.3 (D3)
    dispute 1: review under 7 (chargeback)
    warning alert: chargeback_lost dispute 1
    alert over: chargeback dispute 1
    told: access.ended subscription 2
    told: credits.forfeited 500
    told: standing.changed flagged
    """,
)
async def copy_lost(s: Scene) -> Days:
    s.buy()
    yield 42 * SECONDS
    second = s.buy()
    dispute = s.books.open_dispute(s.charge(second))
    s.books.cancel(second)
    yield 2
    await s.says("charge 2: review 29.00 USD under 4.3 (D3)")
    s.books.set_dispute(dispute, "lost")


@row(
    "7",
    "the chargeback on the copy is won: it has its money again, and the duplicate is owed, which a person decides",
    """
    subscription 1: renews, until day 92
    subscription 2: ended at once, until day 0
    included credits of day 0: 500 granted, 500 forfeited
    included credits of day 0: 500 granted, 500 left
    included credits of day 31: 500 granted, 500 left
    included credits of day 61: 600 granted, 600 left
    charge 2: review 29.00 USD under 4.3 (D3)
    dispute 1: none under 7 (chargeback)
    action refund of charge 2: proposed
    alert over: chargeback dispute 1
    told: access.ended subscription 2
    told: credits.forfeited 500
    told: standing.changed flagged
    told: standing.changed good
    """,
)
async def copy_won(s: Scene) -> Days:
    s.buy()
    yield 42 * SECONDS
    second = s.buy()
    dispute = s.books.open_dispute(s.charge(second))
    s.books.cancel(second)
    yield 2
    s.books.set_dispute(dispute, "won")
