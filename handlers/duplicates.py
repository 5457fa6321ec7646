"""Clause 4.3: which payments are duplicates, of what, and how much of each goes back. Pure.

`judge` reads one person's file and says everything at once. A refund is the verdict only where nothing is in doubt; each
doubt is a sentence of the reason for the review.

    D1  one invoice, two payments                duplicate_invoices.paid_more_than_once
    D2  marked paid outside Stripe, and charged  duplicate_invoices.paid_more_than_once
    D3  two subscriptions, one customer          duplicate_subscriptions.bought_twice
    D4  two customers, one person                duplicate_subscriptions.bought_twice
    D5  two invoices for one period of one item  duplicate_invoices.invoiced_twice
    D6  the app charged again                    bare_payments.charged_again
    D7  charged by hand what dunning collected   bare_payments.charged_by_hand
    D8  old subscription recovered late          duplicate_subscriptions.bought_twice
    D9  moved from elsewhere                     duplicate_subscriptions.bought_twice
    D10 two prices of one product                duplicate_subscriptions.bought_twice
        a trial about to be charged              duplicate_subscriptions.trials_about_to_charge
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from handlers.account import LotBalance
from handlers.bare_payments import charged_again, charged_by_hand
from handlers.court import Court
from handlers.customer import CustomerFile
from handlers.decisions import Acted, Judgement
from handlers.duplicate_invoices import invoiced_twice, paid_more_than_once
from handlers.duplicate_subscriptions import bought_twice, trials_about_to_charge
from handlers.payments import paid_periods
from handlers.terms import Policy

RULES = (
    invoiced_twice,
    bought_twice,
    charged_again,
    charged_by_hand,
    trials_about_to_charge,
)
"""After D1 and D2, in this order: a payment that one rule has decided is not decided again by a later one."""


def judge(
    file: CustomerFile,
    policy: Policy,
    now: datetime,
    *,
    acted: Iterable[Acted] = (),
    balances: Mapping[str, LotBalance] = {},
    test_clocks: bool = False,
) -> Judgement:
    """Every decision of clause 4.3 about one person's file, by charge (a trial's by its subscription).

    `acted` are the actions already begun: what they concern is not decided again, and no longer stands. `balances` are
    the sums of the ledger's lots, of all these customers (reading 23).
    """
    court = Court(file, policy, now, acted, test_clocks, balances)
    paid_more_than_once(court)
    if len(court.payments) > 1 or (court.payments and len(file.subscriptions) > 1):
        for rule in RULES:
            rule(court)
    return Judgement(
        decisions=court.decisions,
        wanted=frozenset(court.wanted),
        judge_again_at=min(court.wake_at, default=None),
        paid=tuple(paid_periods(file, court.payments)),
    )
