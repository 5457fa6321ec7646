"""Clause 1: until when each subscription serves and why, and what was charged or credited for the time after its end. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec

from handlers.account import Access, Act, ActKind, Alert, Severity, Way
from handlers.court import when
from handlers.customer import (
    ChargeId,
    CustomerFile,
    CustomerId,
    Invoice,
    Line,
    Seconds,
    Subscription,
    SubscriptionId,
    SubscriptionSchedule,
    at,
)
from handlers.decisions import Decision, Evidence, Money, Verdict
from handlers.payments import Payment, on_test_clock, payments_of, service_lines
from handlers.terms import Policy, Terms

LOOK_AFTER_S = 600
"""How long after a scheduled end Stripe may take to tell of it before it is asked."""
SAME_MOMENT_S = 1
"""A proration made with an immediate end may begin in the second before it."""


class Cancellations(msgspec.Struct, frozen=True, kw_only=True):
    """What clause 1 says about one customer."""

    access: tuple[Access, ...] = ()
    """One for each subscription, by its id."""
    decisions: dict[str, Decision] = {}
    alerts: dict[str, Alert] = {}
    wanted: frozenset[tuple[str, str]] = frozenset()
    judge_again_at: datetime | None = None


class _Term(msgspec.Struct, frozen=True):
    """One subscription with what ends it."""

    subscription: Subscription
    access: Access
    scheduled_end: Seconds | None
    """An end that is set and has not come, as far as is known."""

    @property
    def effective_end(self) -> Seconds | None:
        """From when on nothing may be charged (1.2)."""
        return self.subscription.ended_at if self.subscription.ended_at is not None else self.scheduled_end


def judge_access(
    file: CustomerFile, customer: CustomerId, policy: Policy, now: datetime, acts: Iterable[Act], *, test_clocks: bool
) -> Cancellations:
    """Clauses 1.1 to 1.3, with extensions under 4.1, for one customer's file. Moments are unix seconds, amounts minor units."""
    terms = _terms_of_service(file, customer, [a for a in acts if a.kind is ActKind.EXTEND], test_clocks)
    moment = int(now.timestamp())
    wanted = {("subscription", t.subscription.id) for t in terms.values() if _overdue(t, moment)}
    decisions: dict[str, Decision] = {}
    alerts: dict[str, Alert] = {}
    charged = _charged_after(file, terms, test_clocks)
    credited = dict(_credited_after(file, terms, test_clocks))
    for invoice_id in sorted({*charged, *credited}):
        invoice, said = file.invoices[invoice_id], None
        if invoice_id in charged:
            term, line, payments = charged[invoice_id]
            also_minor = credited[invoice_id][1] if invoice_id in credited else 0
            said = _charge_after(invoice, customer, term, line, payments, policy, also_minor)
            if term.subscription.ended_at is None and term.subscription.as_of < payments[-1].paid_at:
                wanted.add(("subscription", term.subscription.id))  # the end may have been taken back meanwhile
        if invoice_id in credited and (said is None or said[0].verdict is Verdict.NONE):
            said = _proration_after(invoice, customer, *credited[invoice_id], policy)
        if said is not None:
            decisions[invoice_id], alert = said
            if alert is not None:
                alerts[alert.cause] = alert
    ahead = [t for term in terms.values() for t in _moments(term) if t > moment]
    return Cancellations(
        access=tuple(term.access for term in terms.values()),
        decisions=decisions,
        alerts=alerts,
        wanted=frozenset(wanted),
        judge_again_at=at(min(ahead)) if ahead else None,
    )


def _overdue(term: _Term, moment: Seconds) -> bool:
    """Whether a scheduled end has passed, and all that was told is from before it."""
    end = term.scheduled_end
    return end is not None and term.subscription.as_of < end and end + LOOK_AFTER_S <= moment


def _moments(term: _Term) -> Iterator[Seconds]:
    """When the passing of time alone changes what is to be said or asked about a subscription."""
    if term.access.until is not None:
        yield term.access.until
    if term.scheduled_end is not None:
        yield term.scheduled_end
        if term.subscription.as_of < term.scheduled_end:
            yield term.scheduled_end + LOOK_AFTER_S


# access ------------------------------------------------------------------------------------------------------------------


def _terms_of_service(
    file: CustomerFile, customer: CustomerId, extensions: list[Act], test_clocks: bool
) -> dict[SubscriptionId, _Term]:
    lines: dict[str, list[Line]] = defaultdict(list)
    for invoice in file.invoices.values():
        if invoice.status == "paid" and invoice.billing_reason != "subscription_threshold":
            for line in invoice.lines:
                lines[line.subscription or invoice.subscription or ""].append(line)
    found = {}
    for id_ in sorted(file.subscriptions):
        subscription = file.subscriptions[id_]
        rehearsal = subscription.test_clock or on_test_clock(file, customer, None)
        if subscription.customer in (None, customer) and (test_clocks or not rehearsal):
            subscription_id = SubscriptionId(id_)
            own = [act for act in extensions if act.subscription == id_ and act.until is not None]
            found[subscription_id] = _term(subscription, lines[id_], _schedule_of(file, subscription), own)
    return found


def _schedule_of(file: CustomerFile, subscription: Subscription) -> SubscriptionSchedule | None:
    """The schedule that ends this subscription, or ended it. One that was released ends nothing."""
    ends = [
        s
        for s in file.schedules.values()
        if (s.subscription == subscription.id or s.id == subscription.schedule)
        and s.end_behavior == "cancel"
        and s.status in ("active", "completed", "canceled")
    ]
    return max(ends, key=lambda s: (s.created, s.id), default=None)


def _term(
    subscription: Subscription, lines: list[Line], schedule: SubscriptionSchedule | None, extensions: list[Act]
) -> _Term:
    served_until = _served_until(subscription, lines)
    way = _way(subscription, schedule, served_until)
    scheduled_end = _scheduled_end(subscription, schedule)
    ended_at = None if way is Way.NEVER_BEGAN else subscription.ended_at
    until = served_until
    cut_at = ended_at if ended_at is not None else scheduled_end
    if until is not None and cut_at is not None:
        until = min(until, cut_at)
    extended = None
    for act in sorted(extensions, key=lambda a: (a.until or 0, a.id)):
        cut_short = way is Way.ENDED_AT_ONCE and ended_at is not None and ended_at >= act.at
        if way is not Way.NEVER_BEGAN and not cut_short and act.until is not None and act.until > (until or 0):
            until, extended = act.until, act
    if way is Way.NEVER_BEGAN:
        until = None
    access = Access(
        subscription=SubscriptionId(subscription.id),
        status=subscription.status,
        way=way,
        until=until,
        cause=_cause(subscription, way, served_until, scheduled_end, extended),
        requested_at=subscription.canceled_at,
        ends_at=scheduled_end,
        ended_at=subscription.ended_at,
        reason=subscription.cancellation_reason,
    )
    return _Term(subscription, access, scheduled_end)


def _served_until(subscription: Subscription, lines: list[Line]) -> Seconds | None:
    """End of what was paid or tried. A line wholly discounted was paid; one credited by a change of plan is cut there.

    What a change of plan credited from some moment on, it charged anew from that moment, unless the new plan's period
    is shorter: so a year that became a month serves for the month.
    """
    metered = {item.price for item in subscription.items if item.metered}
    ended_at = subscription.ended_at
    credits_ = [
        line
        for line in lines
        if line.proration
        and line.net_minor < 0
        and (ended_at is None or line.period_start < ended_at - SAME_MOMENT_S)  # else it is a matter of 1.3
    ]
    ends = []
    for line in lines:
        if not line.subscription_item or line.metered or line.price in metered or line.amount_minor <= 0:
            continue
        if ended_at is not None and line.period_start >= ended_at and line.period_start > subscription.created:
            continue  # charged after the end (1.2), which does not make that end an early one
        cuts = [
            credit.period_start
            for credit in credits_
            if credit.subscription_item == line.subscription_item and credit.period_start > line.period_start
        ]
        ends.append(min([line.period_end, *cuts]))
    if subscription.trial_end is not None:
        ends.append(subscription.trial_end)
    return max(ends, default=None)


def _way(subscription: Subscription, schedule: SubscriptionSchedule | None, served_until: Seconds | None) -> Way:
    """How it stands towards its end. An end that is set outranks a payment that is due or a pause: those are no end.

    A subscription whose collection is paused is PAUSED although Stripe calls it active: it renews, but nothing is paid.
    """
    status, ended_at = subscription.status, subscription.ended_at
    if status == "incomplete_expired":
        return Way.NEVER_BEGAN
    if not subscription.alive:
        if schedule is not None and schedule.status == "completed":
            return Way.ENDED_BY_SCHEDULE
        if ended_at is not None and served_until is not None and ended_at < served_until:
            return Way.ENDED_AT_ONCE
        # ending a subscription cancels its schedule too: such a one says nothing where the end came early
        return Way.ENDED_BY_SCHEDULE if schedule is not None and schedule.status == "canceled" else Way.ENDED
    if status not in ("incomplete", "trialing", "active", "past_due", "unpaid", "paused"):
        return Way.UNKNOWN
    planned = schedule.ends_at if schedule is not None and schedule.status == "active" else None
    asked = subscription.cancel_at
    if planned is not None and not subscription.cancel_at_period_end and (asked is None or asked >= planned):
        return Way.ENDING_BY_SCHEDULE  # Stripe also shows a schedule's end as `cancel_at`
    if subscription.cancel_at_period_end or asked is not None:
        return Way.ENDING
    if status == "paused" or subscription.collection_paused:
        return Way.PAUSED
    return Way.RENEWS if status in ("trialing", "active") else Way.UNPAID


def _scheduled_end(subscription: Subscription, schedule: SubscriptionSchedule | None) -> Seconds | None:
    """When a living subscription is going to end, as far as anybody set it."""
    if not subscription.alive:
        return None
    ends = [subscription.cancel_at] if subscription.cancel_at is not None else []
    if schedule is not None and schedule.status == "active" and schedule.ends_at is not None:
        ends.append(schedule.ends_at)
    if subscription.cancel_at_period_end and not ends:
        periods = [item.period_end for item in subscription.items]
        trial = [subscription.trial_end] if subscription.status == "trialing" and subscription.trial_end else []
        # a period that was over when it was told of is not the one it ends with
        ends = [end for end in (max(trial or periods, default=0),) if end > subscription.as_of]
    return min(ends, default=None)


def _cause(
    subscription: Subscription,
    way: Way,
    served_until: Seconds | None,
    scheduled_end: Seconds | None,
    extended: Act | None,
) -> str:
    """One sentence: what was asked for and when, when it takes effect, and what was paid (1.1, 1.2, 1.3)."""
    id_, status = subscription.id, subscription.status
    reason = f" ({subscription.cancellation_reason})" if subscription.cancellation_reason else ""
    asked = (
        f", asked for on {when(subscription.canceled_at)}{reason}" if subscription.canceled_at is not None else reason
    )
    ended = f" on {when(subscription.ended_at)}" if subscription.ended_at is not None else ""
    ends = f" on {when(scheduled_end)}" if scheduled_end is not None else " with its period"
    said = {
        Way.RENEWS: f"{id_} is {status} and renews",
        Way.ENDING: f"{id_} ({status}) ends{ends}{asked} (1.1, 1.2)",
        Way.ENDING_BY_SCHEDULE: f"{id_} ({status}) ends{ends} by its schedule (1.1, 1.2)",
        Way.PAUSED: f"{id_} is paused, which is no end"
        if status == "paused"
        else f"the collection of payments for {id_} ({status}) is paused, which is no end",
        Way.UNPAID: f"{id_} is {status}: a payment is due, which is no end",
        Way.ENDED: f"{id_} ended{ended}{asked} (1.2)",
        Way.ENDED_AT_ONCE: f"{id_} ended{ended}, before the end of what was paid or tried{asked} (1.3)",
        Way.ENDED_BY_SCHEDULE: f"{id_} ended{ended} by its schedule (1.2)",
        Way.NEVER_BEGAN: f"{id_} never began: its first payment did not come",
        Way.UNKNOWN: f"{id_} has the status {status}, which this release does not know; nothing is taken for an end",
    }[way]
    if way is not Way.NEVER_BEGAN:
        lasts = f"lasts until {when(served_until)}" if served_until is not None else ""
        said += f"; what was paid or tried {lasts}" if lasts else "; nothing was paid or tried"
    if extended is not None and extended.until is not None:
        case = f", case {extended.case}" if extended.case else ""
        said += f"; extended until {when(extended.until)} (4.1, act {extended.id}{case})"
    return f"{said}."


# charged or credited for the time after the end ---------------------------------------------------------------------------


def _charged_after(
    file: CustomerFile, terms: dict[SubscriptionId, _Term], test_clocks: bool
) -> dict[str, tuple[_Term, Line, list[Payment]]]:
    """Paid invoices with a service period that begins at or after its subscription's end (1.2): the payments, earliest first.

    Usage is no service period, so what was used before the end may be billed after it (reading 13).
    """
    late: dict[str, tuple[_Term, Line]] = {}
    if any(term.effective_end is not None for term in terms.values()):
        for invoice in file.invoices.values():
            for line in service_lines(file, invoice):
                term = terms.get(line.subscription or invoice.subscription or SubscriptionId(""))
                end = term.effective_end if term is not None else None
                # a subscription that was ended in the second it began was not charged after that
                begins_it = term is not None and line.period_start <= term.subscription.created
                if term is not None and end is not None and line.period_start >= end and not begins_it:
                    late.setdefault(invoice.id, (term, line))
    found: dict[str, tuple[_Term, Line, list[Payment]]] = {}
    for payment in payments_of(file, frozenset(), test_clocks=test_clocks) if late else ():
        for invoice_id in payment.invoice_ids:
            if invoice_id in late:
                found.setdefault(invoice_id, (*late[invoice_id], []))[2].append(payment)
    return found


def _credited_after(
    file: CustomerFile, terms: dict[SubscriptionId, _Term], test_clocks: bool
) -> Iterator[tuple[str, tuple[_Term, int]]]:
    """Invoices that credit, in minor units, a part of the period that an end cut off (1.3)."""
    if all(term.subscription.ended_at is None for term in terms.values()):
        return
    for invoice in file.invoices.values():
        if invoice.status in ("void", "draft") or (not test_clocks and on_test_clock(file, invoice.customer, invoice)):
            continue
        credited_minor, of = 0, None
        for line in invoice.lines:
            term = terms.get(line.subscription or invoice.subscription or SubscriptionId(""))
            end = term.subscription.ended_at if term is not None else None
            if end is None or not line.proration or line.net_minor >= 0:
                continue
            if line.period_start >= end - SAME_MOMENT_S and line.period_end > end:
                credited_minor, of = credited_minor - line.net_minor, of or term
        if of is not None:
            yield invoice.id, (of, credited_minor)


def _charge_after(
    invoice: Invoice,
    customer: CustomerId,
    term: _Term,
    line: Line,
    payments: list[Payment],
    policy: Policy,
    credited_minor: int,
) -> tuple[Decision, Alert | None]:
    """1.2: a person looks at a charge for the time after the end; no clause lets it go back by itself."""
    subscription, end = term.subscription, term.effective_end or 0
    kept = [payment for payment in payments if payment.left_minor > 0]
    payment = (kept or payments)[0]
    amount = Money(sum(p.charge.captured_minor for p in kept or payments), payment.currency)
    names = ", ".join(p.id for p in kept or payments)
    ends = "ended" if subscription.ended_at is not None else "was set to end"
    story = (
        f"{names} charged {amount} on {when(payment.paid_at)} through {invoice.id} for a service period of {subscription.id} "
        f"from {when(line.period_start)} on, but it {ends} on {when(end)}."
    )
    credit = f" The invoice also credits {Money(credited_minor, invoice.currency)} for the time after it (1.3)."
    also = credit if credited_minor else ""
    if kept:
        told = f"{story} Nothing may be charged after a cancellation, and no clause lets it go back by itself.{also}"
    else:
        told = f"{story} All of it went back since, so nothing is left to decide.{also}"
    decision = Decision(
        subject=invoice.id,
        customer=customer,
        clause="1.2",
        rule="charge_after_cancellation",
        verdict=Verdict.REVIEW if kept else Verdict.NONE,
        policy_version=_terms(policy, customer, payment.paid_at).version,
        reason=told,
        duplicate=ChargeId(payment.id),
        evidence=(
            Evidence("end, and charged for the time from", when(end), when(line.period_start)),
            Evidence("subscription and charge", subscription.id, names),
        ),
    )
    if not kept:
        return decision, None
    sentence = (
        f"{story} Stripe will not give it back by itself; look at it with `finalsale explain {invoice.id}` and decide."
    )
    return decision, _alert(decision, Severity.CRITICAL, sentence)


def _proration_after(
    invoice: Invoice, customer: CustomerId, term: _Term, credited_minor: int, policy: Policy
) -> tuple[Decision, Alert | None]:
    """1.3: an immediate end gives nothing back for the rest of the period."""
    end = term.subscription.ended_at or 0
    story = (
        f"{invoice.id} ({invoice.status}) credits {Money(credited_minor, invoice.currency)} for the time after the end of "
        f"{term.subscription.id} on {when(end)}; an immediate end gives nothing back for the rest of the period."
    )
    decision = Decision(
        subject=invoice.id,
        customer=customer,
        clause="1.3",
        rule="proration_after_cancellation",
        verdict=Verdict.REVIEW,
        policy_version=_terms(policy, customer, invoice.created).version,
        reason=f"{story} It was made at Stripe, not by finalsale.",
        evidence=(Evidence("end, and invoice of", when(end), when(invoice.created)),),
    )
    sentence = f"{story} Stripe sets it off against the next invoice; look at it with `finalsale explain {invoice.id}`."
    return decision, _alert(decision, Severity.WARNING, sentence)


def _terms(policy: Policy, customer: CustomerId, seconds: Seconds) -> Terms:
    return policy.terms_for(customer, seconds) or policy.earliest()


def _alert(decision: Decision, severity: Severity, sentence: str) -> Alert:
    return Alert(
        cause=f"{decision.rule}:{decision.subject}",
        kind=decision.rule,
        severity=severity,
        customer=decision.customer,
        subject=decision.subject,
        sentence=sentence,
    )
