"""What would follow if the books knew what Stripe says: one person judged twice, and every difference classed. Pure.

The same judgement as the webhooks': a class says only who carries it out, never whether it is right.
"""

from __future__ import annotations

from collections.abc import Iterable

from handlers.account import Standing
from handlers.decisions import Decision, Judgement, Verdict
from reconcile.findings import Class, Consequence
from reconcile.policies import changes


def consequences(was: Judgement, becomes: Judgement, refunds: str) -> list[Consequence]:
    """Everything the rules would newly say of one person. `refunds` is FINALSALE_REFUNDS: only `auto` sends by itself."""
    found = []
    for change in changes(was, becomes):
        decision = becomes.decisions.get(change.subject) if change.about == "decision" else None
        found.append(
            Consequence(
                about=change.about,
                class_=_decision_class(decision, refunds) if change.about == "decision" else Class.AUTO,
                customer=change.customer,
                subject=change.subject,
                clause=change.clause,
                was=change.was,
                becomes=change.would_be,
                rule=decision.rule if decision else "",
                verdict=str(decision.verdict) if decision else "",
                amount=decision.amount if decision else None,
                original=decision.original if decision else None,
                reason=decision.reason if decision else "",
            )
        )
    known = {consequence.customer for consequence in found if consequence.about == "standing"}
    for customer, account in sorted(becomes.accounts.items()):  # nobody knew the customer before
        before = was.accounts.get(customer)
        if customer not in known and before is None and account.standing is not Standing.GOOD:
            found.append(
                Consequence(
                    about="standing",
                    class_=Class.AUTO,
                    customer=customer,
                    subject=customer,
                    clause="7",
                    was=str(Standing.GOOD),
                    becomes=str(account.standing),
                    reason=" ".join(hold.cause for hold in account.holds),
                )
            )
    return found


def _decision_class(decision: Decision | None, refunds: str) -> Class:
    match decision.verdict if decision else Verdict.NONE:
        case Verdict.REFUND:
            return Class.AUTO if refunds == "auto" else Class.ASK
        case Verdict.REVIEW:
            return Class.ASK
        case Verdict.DENY:
            return Class.ASK
        case _:
            return Class.NEVER


def returned(found: Iterable[Consequence], verdict: Verdict) -> dict[str, int]:
    """By currency, what consequences with a verdict come to, in minor units."""
    sums: dict[str, int] = {}
    for consequence in found:
        if consequence.verdict == verdict and consequence.amount:
            sums[consequence.amount.currency] = sums.get(consequence.amount.currency, 0) + consequence.amount.minor
    return dict(sorted(sums.items()))
