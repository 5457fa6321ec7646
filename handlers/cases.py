"""Clause 5: what a support request asks, what the policy says to it at once, and a draft of the answer. Pure.

    refund, duplicate  2, 3.2, 4.3   what the decisions about the payment say; without one, sales are final
    technical          4.1, 4.2      a person's discretion, in credits or time, never in money
    cancellation       1.1 to 1.3    until when access lasts
    chargeback         7             what holds the account
    other              3, 5          credits that lapsed; else a person reads it

A draft cites the clause, promises nothing that the policy does not, and names no id but the one the customer gave. Where the
request cannot be matched to a payment of that e-mail address, it is the same draft whatever the reason, so that it tells nobody
whether a payment exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from handlers.account import Access, LotKind, Standing, Way
from handlers.case_hearing import Hearing, day, moment, names_of
from handlers.case_request import (
    KINDS,
    Case,
    CaseRequest,
    Evaluation,
    Granted,
    Kind,
    Known,
    Refunding,
    RequestInvalid,
    read_request,
)
from handlers.customer import CustomerFile, at
from handlers.decisions import Decision, Money, Verdict
from handlers.payments import Contest, Payment
from handlers.terms import Policy

__all__ = [
    "KINDS",
    "Case",
    "CaseRequest",
    "Evaluation",
    "Granted",
    "Kind",
    "Known",
    "Refunding",
    "RequestInvalid",
    "evaluate",
    "read_request",
]

BEGUN = ("planned", "sending", "sent")
"""States of a refund of ours in which the money is on its way, or there."""


def evaluate(
    request: CaseRequest, known: Known | None, policy: Policy, now: datetime, *, case: str, due_at: datetime
) -> Evaluation:
    """What the policy says to a request, by what is known of the person it is about; None: nobody is known.

    `case` is its id for the commands, `due_at` when the answer is due at the latest.
    """
    hearing = Hearing(request, known, policy, now, case, due_at)
    if known is None and request.about == "other" and request.transaction is None and request.customer is None:
        return _read_by_a_person(hearing)
    if doubt := hearing.unmatched():
        return hearing.ask(doubt)
    stories = {
        "refund": _money_back,
        "duplicate": _money_back,
        "technical": _trouble,
        "cancellation": _cancellation,
        "chargeback": _chargeback,
        "other": _something_else,
    }
    return stories[request.about](hearing)


# refund, duplicate (2, 3.2, 4.3) -----------------------------------------------------------------------------------------


def _money_back(h: Hearing) -> Evaluation:
    """What the decisions about these payments say; where there is none, every sale is final."""
    goes, waits = _spoken_for(h)
    if waits:
        return _somebody_looks(h, waits, goes)
    if goes:
        summary, back = " ".join(d.reason for d in goes), [_gives_back(h, decision) for decision in goes]
        return h.say("4.3", Verdict.REFUND, summary, *back, commands=_explain(d.subject for d in goes))
    if h.whole_customer:
        return h.ask(f"No transaction is named, and no payment of {h.known.customer} is known to repeat another one.")
    if not h.payments:
        return _no_payment(h)
    if any(p.contest is Contest.OPEN for p in h.payments):
        disputed = ", ".join(p.id for p in h.payments if p.contest is Contest.OPEN)
        told = "A dispute about this payment is open with your bank. While it is, we do not refund the payment besides it (clause 7)."
        return h.say("7", Verdict.REVIEW, f"A dispute is open on {disputed}: no refund.", told, h.soon)
    if not any(p.left_minor for p in h.payments):
        return _back_already(h)
    return _final(h)


def _spoken_for(h: Hearing) -> tuple[list[Decision], list[Decision]]:
    """Decisions about these payments by which money goes back, and those that wait for a person."""
    known = h.known
    mine = (
        {p.id for p in h.payments}
        | {i for p in h.payments for i in p.invoice_ids}
        | (h.names & known.file.subscriptions.keys())
    )
    goes, waits = [], []
    for subject, decision in sorted(known.decisions.items()):
        steps = {step.subject for step in decision.prepared}
        if (
            decision.verdict not in (Verdict.REFUND, Verdict.REVIEW)
            or subject in known.file.refunds | known.file.disputes
        ):
            continue
        if mine.isdisjoint({subject, decision.original, decision.duplicate} | steps):
            continue
        refund = known.refunds.get(decision.duplicate or subject)
        proved = decision.verdict is Verdict.REFUND and (refund is None or refund.state == "proposed")
        if (refund is not None and refund.state in BEGUN) or (proved and subject not in known.rejected):
            goes.append(decision)
        else:
            waits.append(decision)
    return goes, waits


def _gives_back(h: Hearing, decision: Decision) -> str:
    """How much goes or went back, when and why, in words for the customer."""
    charge = h.known.file.charges.get(decision.duplicate or decision.subject)
    refund = h.known.refunds.get(decision.duplicate or decision.subject)
    amount = refund.amount if refund else decision.amount
    what = f"Your payment{f' of {day(charge.created)}' if charge else ''} repeats another one for the same service."
    part = f"the repeated part, {amount}," if amount else "the repeated part"
    if refund is not None and refund.state == "sent":
        sent = f" on {day(int(refund.sent_at.timestamp()))}" if refund.sent_at else ""
        how = f"We sent {part} back{sent} to the payment method that was charged."
    elif refund is not None and refund.state in BEGUN:
        how = f"We are sending {part} back to the payment method that was charged."
    else:
        how = f"As soon as a member of our team has confirmed it, we send {part} back to the payment method that was charged."
    return f"{what} {how} A duplicate is refunded, the payment that was meant stays (clause 4.3 of our refund policy)."


def _somebody_looks(h: Hearing, waits: list[Decision], goes: list[Decision]) -> Evaluation:
    """A person has to decide: nothing is promised."""
    rejected = h.known.rejected
    said = [f"{f'A person rejected {d.subject}. ' if d.subject in rejected else ''}{d.reason}" for d in waits]
    clause, proved = waits[0].clause, waits[0].verdict is Verdict.REFUND
    what = {
        "4.3": "Whether your payment repeats another one cannot be told from the records alone",
        "1.2": "Your payment may be for a time after the end of your subscription",
    }.get("" if proved else clause, "Your payment needs a closer look")
    if any(p.contest is Contest.OPEN for p in h.payments):
        what = "A dispute about this payment is open with your bank, and while it is we do not refund the payment besides it"
    told = [
        *(_gives_back(h, decision) for decision in goes),
        f"{what} (clause {clause} of our refund policy). {h.soon}",
    ]
    commands = (*_explain(d.subject for d in waits), "finalsale review list")
    return h.say(clause, Verdict.REVIEW, " ".join(said), *told, commands=commands)


def _no_payment(h: Hearing) -> Evaluation:
    charge = h.known.file.charges.get(h.request.transaction or "")
    if charge is not None and (charge.status == "failed" or (charge.status == "succeeded" and not charge.captured)):
        what = "did not succeed" if charge.status == "failed" else "was only authorised"
        told = f"This payment {what}: no money was taken for it, so there is nothing to refund."
        return h.say("2", Verdict.NONE, f"{charge.id} {what}: nothing to refund.", told)
    if h.names.isdisjoint(_every_id(h.known.file)):
        return h.ask(f"Nothing is known here about {h.request.transaction}.")
    told = "No completed payment is known to us for it yet, so there is nothing that we could refund now."
    return h.say("2", Verdict.REVIEW, f"No payment is known for {h.request.transaction}.", told, h.soon)


def _back_already(h: Hearing) -> Evaluation:
    if any(p.contest is Contest.MONEY_BACK for p in h.payments):
        told = (
            "The amount of this payment went back through your bank already, so nothing is left to refund (clause 7)."
        )
        return h.say("7", Verdict.NONE, "A dispute took the money back: nothing is left to refund.", told)
    back = ", ".join(f"{Money(p.refunded_minor, p.currency)}" for p in h.payments)
    told = f"{back} of it was sent back already to the payment method that was charged, so nothing is left to refund (clause 4.3)."
    return h.say("4.3", Verdict.NONE, f"{back} went back already.", told)


def _final(h: Hearing) -> Evaluation:
    """Clauses 2 and 6, or 3.2 for a credit pack: why this is no exception."""
    payments, packs = h.payments, h.terms.credits.packs
    one = payments[0]
    paid = Money(one.charge.captured_minor, one.currency)
    what = (
        f"Your payment of {paid} of {day(one.paid_at)} repeats"
        if len(payments) == 1
        else f"None of the {len(payments)} payments for it repeats"
    )
    checked = f"{what} no other one that we know of." if len(payments) == 1 else f"{what} another one that we know of."
    again = "If you see a second charge for the same period, please send us its transaction id."
    names = ", ".join(p.id for p in payments)
    if all(_is_pack(p, packs) for p in payments):
        rule = "Credits that were bought once stay on your account for good, and are not refundable once they were added (clause 3.2 of our refund policy)."
        summary = f"{names} bought credits (3.2), and no decision says that it is a duplicate."
        return h.say("3.2", Verdict.DENY, summary, checked, rule, again, commands=_explain(p.id for p in payments))
    rule = (
        "All sales are final (clauses 2 and 6 of our refund policy); what we refund is a payment that was taken more than once for "
        "the same subscription (clause 4.3). We therefore cannot refund it."
    )
    stop = "You can cancel at any time; access then lasts to the end of the time that is paid (clauses 1.1 and 1.2)."
    summary = f"No decision says that {names} is a duplicate, so the sale is final."
    return h.say("2, 6", Verdict.DENY, summary, checked, rule, again, stop, commands=_explain(p.id for p in payments))


def _is_pack(payment: Payment, packs: Mapping[str, int]) -> bool:
    """Whether it bought credit packs and nothing else."""
    if payment.invoice is not None and payment.invoice.lines:
        return all(line.price in packs for line in payment.invoice.lines)
    return payment.bare and payment.session is not None and payment.session.mode == "payment"


def _every_id(file: CustomerFile) -> set[str]:
    shelves = (
        file.charges,
        file.intents,
        file.invoices,
        file.subscriptions,
        file.refunds,
        file.disputes,
        file.sessions,
    )
    return {id_ for shelf in shelves for id_ in shelf}


def _explain(ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"finalsale explain {id_}" for id_ in ids)


# technical (4.1, 4.2) ----------------------------------------------------------------------------------------------------


def _trouble(h: Hearing) -> Evaluation:
    """Credits that a declared outage gave; else what a person may give, in credits or time."""
    known, asked = h.known, h.request.dated.timestamp()
    given = {
        o.id: sum(lot.granted for lot in known.lots if lot.id.startswith(f"service:{o.id}:")) for o in known.outages
    }
    covering = [o for o in known.outages if given[o.id] and o.begins - 86400 < asked < o.ends + 86400]
    if covering:
        told = [
            f"For the outage from {moment(at(o.begins))} to {moment(at(o.ends))}, {given[o.id]} service credits were added to your "
            "account (clause 4.2 of our refund policy). Outages are made up for in credits, not in money."
            for o in covering
        ]
        summary = "; ".join(f"outage {o.id} gave {given[o.id]} credits" for o in covering)
        return h.say("4.2", Verdict.NONE, f"Made up for: {summary}.", *told)
    grant = f"finalsale credits grant {known.customer} --credits N --reason TEXT --case {h.case} --by NAME"
    extend = tuple(
        f"finalsale customers extend {known.customer} --subscription {a.subscription} --until DATE --reason TEXT --by NAME"
        for a in _accesses(h)
        if a.way in (Way.RENEWS, Way.ENDING)
    )
    others = [f"outage {o} gave {n} credits" for o, n in given.items() if n]
    summary = "Service credits or an extension are at a person's discretion, never money."
    summary += f" Given before: {'; '.join(others)}." if others else " No declared outage gave anything for that day."
    told_ = (
        "We are sorry for the trouble. For serious technical problems we may, at our own discretion, give service credits or extend "
        "a subscription; we do not make up for them in money (clauses 4.1 and 4.2 of our refund policy)."
    )
    return h.say("4.1", Verdict.REVIEW, summary, told_, h.soon, commands=(grant, *extend))


# cancellation (1) --------------------------------------------------------------------------------------------------------


def _accesses(h: Hearing) -> list[Access]:
    """The subscriptions it is about: those of the transaction, or else all of the customer's."""
    every = list(h.known.account.access) if h.known.account else []
    named = h.names.union(*(names_of(p) for p in h.payments)) if not h.whole_customer else set()
    return [a for a in every if a.subscription in named] or every


def _cancellation(h: Hearing) -> Evaluation:
    """How each subscription stands towards its end, and until when it serves."""
    accesses = _accesses(h)
    invoices = {i for p in h.payments for i in p.invoice_ids}
    late = [
        d
        for s, d in sorted(h.known.decisions.items())
        if s in invoices and d.clause.startswith("1.") and d.verdict is Verdict.REVIEW
    ]
    if late:
        return _somebody_looks(h, late, [])
    if not accesses:
        told = "You can cancel a subscription at any time (clause 1.1 of our refund policy)."
        return h.say("1.1", Verdict.REVIEW, f"No subscription of {h.known.customer} is known.", told, h.soon)
    stories = [_story(a) for a in accesses]
    waits = any(verdict is Verdict.REVIEW for _, verdict, _ in stories)
    commands = tuple(f"finalsale explain {a.subscription}" for a in accesses)
    clauses = ", ".join(sorted({clause for clause, _, _ in stories}))
    summary = " ".join(f"{a.subscription} ({a.way}): {a.cause}" for a in accesses)
    if waits:
        summary += " Cancel what still renews at Stripe, at the period's end, then evaluate the case again."
        commands = (*commands, f"finalsale cases evaluate {h.case} --by NAME")
    verdict = Verdict.REVIEW if waits else Verdict.NONE
    told_ = list(dict.fromkeys(text for _, _, text in stories))
    return h.say(clauses, verdict, summary, *told_, h.soon if waits else "", commands=commands)


def _story(access: Access) -> tuple[str, Verdict, str]:
    """Clause, verdict and paragraph for one subscription."""
    until = moment(at(access.until)) if access.until is not None else "the end of the time that is paid"
    match access.way:
        case Way.ENDING | Way.ENDING_BY_SCHEDULE:
            told = f"Your subscription is cancelled. Access lasts until {until}, and nothing is charged for the time after it (clause 1.2 of our refund policy)."
            return "1.2", Verdict.NONE, told
        case Way.ENDED | Way.ENDED_BY_SCHEDULE:
            told = f"Your subscription has ended. Access lasted until {until}, and nothing is charged for the time after it (clause 1.2 of our refund policy)."
            return "1.2", Verdict.NONE, told
        case Way.ENDED_AT_ONCE:
            told = f"Your subscription was ended at once, and access with it, on {until}. The rest of the period is not refunded (clause 1.3 of our refund policy)."
            return "1.3", Verdict.NONE, told
        case Way.NEVER_BEGAN:
            return (
                "1.1",
                Verdict.NONE,
                "Your subscription never began, so there is nothing to cancel (clause 1.1 of our refund policy).",
            )
        case Way.RENEWS | Way.UNPAID | Way.PAUSED:
            told = (
                "You can cancel your subscription at any time (clause 1.1 of our refund policy). Once it is cancelled, access lasts "
                f"until {until} and nothing is charged for the time after it (clause 1.2). The time that is paid is not refunded."
            )
            return "1.1", Verdict.REVIEW, told
        case _:
            return "1.1", Verdict.REVIEW, "You can cancel a subscription at any time (clause 1.1 of our refund policy)."


# chargeback (7) ----------------------------------------------------------------------------------------------------------


def _chargeback(h: Hearing) -> Evaluation:
    """What holds the account, if anything does."""
    account = h.known.account
    disputed = [p.id for p in h.payments if p.contest is Contest.OPEN]
    if account is None or not account.holds:
        if disputed:
            told = "A dispute about a payment of yours is open with your bank. While it is, we do not refund the payment besides it (clause 7)."
            return h.say(
                "7", Verdict.REVIEW, f"A dispute is open on {', '.join(disputed)}, without a hold.", told, h.soon
            )
        told = "No dispute holds your account (clause 7 of our refund policy)."
        return h.say("7", Verdict.NONE, f"Nothing holds {h.known.customer}.", told)
    suspended = account.standing is Standing.SUSPENDED
    state = (
        "is suspended until that is resolved" if suspended else "is marked until that is resolved, and may be suspended"
    )
    by_bank = any(hold.charge or hold.subject.startswith(("dp_", "du_")) for hold in account.holds)
    what = "A payment of yours was disputed with your bank." if by_bank else "Your account is under review."
    told = f"{what} Your account {state} (clause 7 of our refund policy)."
    rest = "A disputed payment is not refunded besides the dispute." if by_bank else ""
    commands = tuple(
        f"finalsale explain {hold.subject}" for hold in account.holds if hold.subject.startswith(("dp_", "du_"))
    )
    summary = " ".join(hold.cause for hold in account.holds)
    return h.say("7", Verdict.REVIEW, summary, told, rest, h.soon, commands=commands)


# something else (3, 5) ---------------------------------------------------------------------------------------------------


def _something_else(h: Hearing) -> Evaluation:
    """Credits that lapsed where the request speaks of credits; everything else is read by a person."""
    now = h.now.timestamp()
    over = [
        lot for lot in h.known.lots if lot.lapsed or (lot.remaining and lot.ends_at is not None and lot.ends_at <= now)
    ]
    if not over or "credit" not in h.request.description.casefold():
        return _read_by_a_person(h)
    why = {
        LotKind.TRIAL: "expired with the trial that they belonged to",
        LotKind.INCLUDED: "were included in a subscription and ended with it",
    }
    told, clauses = [], set()
    for lot in over:
        ended = f" on {day(lot.ends_at)}" if lot.ends_at is not None else ""
        clauses.add(lot.clause)
        told.append(
            f"{lot.lapsed or lot.remaining} of your {lot.kind} credits {why.get(lot.kind, 'had an end')}{ended} (clause {lot.clause} of our "
            "refund policy). Credits that have lapsed are neither restored nor refunded."
        )
    left = sum(lot.remaining for lot in h.known.lots if lot not in over)
    rest = f"{left} credits are on your account." if left else ""
    summary = (
        "Credits lapsed by their terms: " + ", ".join(f"{lot.id} {lot.lapsed or lot.remaining}" for lot in over) + "."
    )
    return h.say(
        ", ".join(sorted(clauses)),
        Verdict.DENY,
        summary,
        *told,
        rest,
        commands=(f"finalsale credits show {h.known.customer}",),
    )


def _read_by_a_person(h: Hearing) -> Evaluation:
    return h.say("5", Verdict.REVIEW, "No clause answers it by itself: a person has to read it.", h.soon)
