"""Every clause over one person's file, in one pass. Pure: the same facts, policy and moment give the same judgement.

4.3     duplicates.judge               which payments are duplicates
2, 6    out_of_policy.refunds_by_hand  refunds that nobody here decided
7       chargebacks.judge_disputes     standing, holds, deadlines
1       cancellations.judge_access     access until, charges after the end
3, 4    credits.lots_of                the lots of credits a customer should have
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

import msgspec

from handlers.account import Account, Act, LotBalance, Outage
from handlers.cancellations import judge_access
from handlers.chargebacks import judge_disputes
from handlers.credits import lots_of
from handlers.customer import CustomerFile, CustomerId, Fact, Refund
from handlers.decisions import Acted, Judgement
from handlers.duplicates import judge
from handlers.out_of_policy import refunds_by_hand
from handlers.terms import Policy


def _nobodys(refund: Refund) -> bool:
    return refund.action is not None


class Ours(msgspec.Struct, frozen=True, kw_only=True):
    """What our own books add to Stripe's facts about one person."""

    acted: tuple[Acted, ...] = ()
    """Actions already begun."""
    acts: tuple[Act, ...] = ()
    """What operators did about these customers."""
    outages: tuple[Outage, ...] = ()
    """Every declared outage."""
    balances: Mapping[str, LotBalance] = {}
    """The ledger's sums, by lot, of all these customers."""
    is_ours: Callable[[Refund], bool] = _nobodys
    """Whether a refund was made by an action of ours."""


def judge_person(
    facts: Mapping[CustomerId, Iterable[Fact]],
    policy: Policy,
    now: datetime,
    ours: Ours,
    *,
    test_clocks: bool = False,
) -> Judgement:
    """Everything the policy says about one person, whose customers' facts are given by customer."""
    files = {customer: CustomerFile(theirs) for customer, theirs in sorted(facts.items())}
    whole = next(iter(files.values())) if len(files) == 1 else CustomerFile(f for t in facts.values() for f in t)
    judged = judge(whole, policy, now, acted=ours.acted, balances=ours.balances, test_clocks=test_clocks)
    by_hand = refunds_by_hand(whole, policy, now, ours.is_ours, acted=ours.acted, test_clocks=test_clocks)
    decisions, alerts = {**judged.decisions, **by_hand.decisions}, dict(by_hand.alerts)
    wanted, wake_at = set(judged.wanted | by_hand.wanted), [judged.judge_again_at]
    accounts, lots, unproved = {}, {}, set[str]()
    for customer, file in files.items():
        acts = tuple(act for act in ours.acts if act.customer == customer)
        disputes = judge_disputes(file, customer, policy, now, acts, test_clocks=test_clocks)
        access = judge_access(file, customer, policy, now, acts, test_clocks=test_clocks)
        credits_ = lots_of(
            file,
            customer,
            policy,
            now,
            acts,
            ours.outages,
            by_hand.returned,
            test_clocks=test_clocks,
            ledger=ours.balances,
        )
        accounts[customer] = Account(
            customer=customer, standing=disputes.standing, holds=disputes.holds, access=access.access
        )
        lots[customer] = credits_.lots
        unproved |= credits_.unproved
        for said in (disputes, access):
            decisions |= said.decisions
            alerts |= said.alerts
        wanted |= access.wanted | credits_.wanted
        wake_at += [disputes.judge_again_at, access.judge_again_at, credits_.judge_again_at]
    return Judgement(
        decisions=decisions,
        wanted=frozenset(wanted),
        judge_again_at=min((moment for moment in wake_at if moment is not None), default=None),
        accounts=accounts,
        lots=lots,
        unproved=frozenset(unproved),
        alerts=alerts,
        paid=judged.paid,
    )
