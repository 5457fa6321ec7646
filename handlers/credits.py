"""Clauses 3 and 4: which lots of credits a customer should have, and when they end; `ledger` posts the difference. Pure.

Late events are settled by one rule: what was consumed before we learned of an end stays consumed. The end takes what is
left, effective at the true moment and recorded when it was learned; if a later telling undoes the end, what it took comes
back. A grant is frozen once it is posted. Nothing is ever edited, and no balance goes below zero.

How the clauses are read where they leave room:
- A proration line grants nothing: after a change of plan in mid-period the new plan's credits come with its next paid line.
- A line that a coupon made free was paid; a trial's line of 0 was not. Marked paid outside Stripe is paid.
- One trial at a time: a second one that begins before the first was to end ends it.
- What was granted stays granted when the policy file or a price's metadata no longer grants it, and while a part of what
  it rests on has to be read again.
- Credits of a duplicate go back where every payment of its invoice was given back: of one invoice paid twice the lot
  stays, and so does a credit pack on a duplicate subscription's invoice, for only the subscription's lines went back. Where
  less went back than those lines cost, only lines whose item another paid invoice sells for the same time count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

from handlers.account import Act, ActKind, Closing, EntryKind, Lot, LotBalance, LotKind, Outage
from handlers.court import when
from handlers.customer import (
    SESSION_LINES_PREFIX,
    Charge,
    ChargeId,
    CheckoutSession,
    CustomerFile,
    CustomerId,
    Invoice,
    InvoiceId,
    InvoicePayment,
    Line,
    PriceCredits,
    PriceId,
    Seconds,
    Subscription,
    Trial,
    at,
)
from handlers.outages import PaidLine, service_lots
from handlers.payments import Payment, on_test_clock, overlap_s, payments_of
from handlers.terms import CreditTerms, Policy

GRACE_S = 3600
"""How long after a trial's end a newer telling is waited for, since trials are extended (3.3)."""
MAX_LOT = 10**15
"""The most credits of one lot: sums of many stay within what the ledger can count."""


class Credits(msgspec.Struct, frozen=True, kw_only=True):
    """The lots a customer should have, by id, and what would sharpen them: look-ups, and a later moment."""

    lots: dict[str, Lot]
    wanted: frozenset[tuple[str, str]]
    judge_again_at: datetime | None
    unproved: frozenset[str] = frozenset()
    """Lots in the ledger whose ground is not known whole: neither wanted nor to be closed until it is."""


def lots_of(
    file: CustomerFile,
    customer: CustomerId,
    policy: Policy,
    now: datetime,
    acts: Iterable[Act],
    outages: Iterable[Outage],
    returned: frozenset[ChargeId],
    *,
    test_clocks: bool,
    ledger: Mapping[str, LotBalance] = {},
) -> Credits:
    """Every lot of one customer, from that customer's facts. `returned`: charges that were given back as duplicates.

    `ledger`: the sums of the lots that were granted before. They never change how much is granted, only what is known of.
    """
    grants = _Grants(file, customer, policy, int(now.timestamp()), returned, test_clocks, ledger)
    if test_clocks or not on_test_clock(file, customer, None):
        grants.trials()
        grants.invoices()
        grants.sessions()
    grants.acts(acts)
    declared = tuple(outages)
    grants.add(*service_lots(customer, grants.served, declared))
    doubts = (*grants.doubts, *(f"service:{o.id}:{owner}" for o in declared for owner in sorted(grants.doubted)))
    return Credits(
        lots=dict(sorted(grants.lots.items())),
        wanted=frozenset(grants.wanted),
        judge_again_at=at(min(grants.wake_at)) if grants.wake_at else None,
        unproved=frozenset(lot for lot in ledger if lot not in grants.lots and lot.startswith(doubts)),
    )


class _Grants:
    """The lots of one customer in the making."""

    def __init__(
        self,
        file: CustomerFile,
        customer: CustomerId,
        policy: Policy,
        now: Seconds,
        returned: frozenset[ChargeId],
        test_clocks: bool,
        ledger: Mapping[str, LotBalance],
    ) -> None:
        self.file, self.customer, self.policy, self.now = file, customer, policy, now
        self.returned, self.test_clocks, self.ledger = returned, test_clocks, ledger
        self.lots: dict[str, Lot] = {}
        self.wanted: set[tuple[str, str]] = set()
        self.wake_at: list[Seconds] = []
        self.served: list[PaidLine] = []
        self.doubts: set[str] = set()
        """How the ids of lots begin whose ground is not known whole."""
        self.doubted: set[str] = set()
        """Subscriptions with such lots."""
        self.paid_by: dict[str, list[Payment]] = defaultdict(list)
        """Payments by the invoice and by the payment intent they paid."""
        for payment in payments_of(file, returned, test_clocks=test_clocks):
            for reference in (*payment.invoice_ids, payment.charge.payment_intent):
                if reference:
                    self.paid_by[reference].append(payment)
        self.rows: dict[str, list[InvoicePayment]] = defaultdict(list)
        for row in file.invoice_payments.values():
            self.rows[row.invoice].append(row)
        self.charges: dict[str, list[Charge]] = defaultdict(list)
        """Charges by their id, their payment intent and, in old shapes, their invoice."""
        for charge in file.charges.values():
            for named in filter(None, (charge.id, charge.payment_intent, charge.invoice)):
                self.charges[named].append(charge)
        self.any_failed = any(charge.status == "failed" for charge in file.charges.values())
        self.intents: dict[str, list[str]] = defaultdict(list)
        """Payment intents by invoice, in old shapes."""
        for intent in file.intents.values():
            if intent.invoice:
                self.intents[intent.invoice].append(intent.id)
        self.checkouts: dict[str, CheckoutSession] = {}
        """Checkout sessions by the invoice and by the subscription they made."""
        for session in sorted(file.sessions.values(), key=lambda s: s.id):
            for made in filter(None, (session.invoice, session.subscription)):
                self.checkouts.setdefault(made, session)

    def add(self, *lots: Lot) -> None:
        """These lots, without those that would grant nothing and never did."""
        for lot in lots:
            if lot.credits > 0 or lot.id in self.ledger:
                most = min(lot.credits, MAX_LOT)
                self.lots[lot.id] = lot if most == lot.credits else msgspec.structs.replace(lot, credits=most)

    # 3.3: trials

    def trials(self) -> None:
        for subscription in self.file.subscriptions.values():
            if subscription.test_clock and not self.test_clocks:
                continue
            over_at = subscription.ended_at
            for n, trial in enumerate(subscription.trials):
                amount = sum(
                    self._trial_credits(price, trial.start, subscription) * quantity for price, quantity in trial.items
                )
                ends = [trial.end, *(later.start for later in subscription.trials[n + 1 : n + 2])]
                end = max(trial.start, min(ends if over_at is None else [*ends, over_at]))
                if amount > 0 or _trial_id(subscription, trial) in self.ledger:
                    self._trial(subscription, trial, end, amount)

    def _trial(self, subscription: Subscription, trial: Trial, end: Seconds, amount: int) -> None:
        """The lot of one trial. Converting saves nothing; the subscription's end, or another trial, ends it earlier."""
        closing = None
        if self._trial_over(subscription, end):
            closing = Closing(
                kind=EntryKind.EXPIRED, at=end, cause=f"the trial of {subscription.id} ended at {when(end)}"
            )
        elif self.now < end:
            self.wake_at.append(end)
        else:  # told before the end: it may have been extended meanwhile
            self.wanted.add(("subscription", subscription.id))
            self.wake_at.append(end + GRACE_S)
        self.add(
            Lot(
                id=_trial_id(subscription, trial),
                customer=self.customer,
                kind=LotKind.TRIAL,
                clause="3.3",
                credits=amount,
                granted_at=trial.start,
                cause=f"trial of {subscription.id} from {when(trial.start)} to {when(end)}",
                ends_at=end,
                closing=closing,
            )
        )

    def _trial_over(self, subscription: Subscription, end: Seconds) -> bool:
        """Whether a trial is surely over: Stripe shows it gone, told of it after its end, or let an hour pass."""
        if subscription.status != "trialing" and end <= max(self.now, subscription.as_of):
            return True
        return self.now >= end and (subscription.as_of >= end or self.now >= end + GRACE_S)

    # 3.1 and 3.2: invoices

    def invoices(self) -> None:
        for invoice in self.file.invoices.values():
            if invoice.status != "paid" or invoice.billing_reason == "subscription_threshold":
                continue
            if not self.test_clocks and on_test_clock(self.file, None, invoice):
                continue
            if self._failed_since(invoice):
                continue
            if not invoice.lines_complete:
                self.wanted.add(("invoice", invoice.id))
                self.doubts |= {f"included:{invoice.id}:", f"purchased:{invoice.id}:"}
                self.doubted |= {invoice.subscription} if invoice.subscription else set()
            for line in invoice.lines:
                if line.amount_minor <= 0 or line.proration or line.metered:
                    continue
                if line.subscription_item:
                    self._included(invoice, line)
                elif line.invoice_item:
                    self._pack(invoice, line)

    def _included(self, invoice: Invoice, line: Line) -> None:
        """The lot of one paid line of a subscription (3.1), unless what its price grants is still to be learned."""
        paid_at = invoice.created if invoice.paid_at is None else invoice.paid_at
        owner = line.subscription or invoice.subscription
        subscription = self.file.subscriptions.get(owner or "")
        id_ = f"included:{invoice.id}:{line.id}"
        if owner and (subscription is None or _older_than_price(subscription, line, paid_at)):
            self.wanted.add(("subscription", owner))
            self.doubts.add(id_)
            self.doubted.add(owner)
            return
        if subscription and any(item.price == line.price and item.metered for item in subscription.items):
            return
        amount = self._included_credits(line, paid_at, subscription) * _quantity(line.quantity)
        granted = amount or (self.ledger[id_].granted if id_ in self.ledger else 0)
        if granted <= 0:
            return
        closing = self._given_back(invoice, paid_at)
        if closing is not None and not self._went_back(invoice, line):
            closing = None
        over_at = subscription.ended_at if subscription else None
        if closing is None and owner is not None:
            served = PaidLine(
                invoice=InvoiceId(invoice.id),
                line=line,
                subscription=owner,
                credits=granted,
                paid_at=paid_at,
                ended_at=over_at,
            )
            self.served.append(served)
        if closing is None and over_at is not None:
            cause = f"{owner} ended at {when(over_at)}"
            closing = Closing(kind=EntryKind.FORFEITED, at=max(over_at, paid_at), cause=cause)
        self.add(
            Lot(
                id=id_,
                customer=self.customer,
                kind=LotKind.INCLUDED,
                clause="3.1",
                credits=amount,
                granted_at=paid_at,
                cause=f"line {line.id} of invoice {invoice.id} for {owner}, paid at {when(paid_at)}",
                ends_at=closing.at if closing else _scheduled_end(subscription),
                closing=closing,
            )
        )

    def _pack(self, invoice: Invoice, line: Line) -> None:
        """The lot of one pack bought on an invoice (3.2): no end, whatever becomes of a subscription."""
        paid_at = invoice.created if invoice.paid_at is None else invoice.paid_at
        told = line.credits if line.credits is not None else self._told_at_checkout(invoice, line.price, paid_at)
        each = self._pack_credits(line.price, told, paid_at)
        alone = invoice.subscription is None and not any(other.subscription_item for other in invoice.lines)
        self._purchased(
            f"{invoice.id}:{line.id}",
            each * _quantity(line.quantity),
            paid_at,
            f"line {line.id} of invoice {invoice.id}, paid at {when(paid_at)}",
            self._given_back(invoice, paid_at) if alone else None,
        )

    def _told_at_checkout(self, invoice: Invoice, price: PriceId | None, when: Seconds) -> int | None:
        """What the price's metadata said where the invoice was made by Checkout; in new shapes its own lines do not tell."""
        first = invoice.billing_reason == "subscription_create"
        session = self.checkouts.get(invoice.id) or (self.checkouts.get(invoice.subscription or "") if first else None)
        if session is None:
            return None
        read = self.file.session_lines.get(f"{SESSION_LINES_PREFIX}{session.id}")
        if read is None and price not in self._terms(when).packs:
            self.wanted.add(("session_lines", session.id))
        return next((s.credits for s in read.lines if s.price == price and not s.recurring), None) if read else None

    def _purchased(self, of: str, amount: int, bought_at: Seconds, cause: str, closing: Closing | None) -> None:
        self.add(
            Lot(
                id=f"purchased:{of}",
                customer=self.customer,
                kind=LotKind.PURCHASED,
                clause="3.2",
                credits=amount,
                granted_at=bought_at,
                cause=cause,
                ends_at=closing.at if closing else None,
                closing=closing,
            )
        )

    # 3.2: Checkout

    def sessions(self) -> None:
        """Packs bought through Checkout without an invoice, once they are really paid, also by delayed methods."""
        for session in self.file.sessions.values():
            if session.mode != "payment" or session.payment_status not in ("paid", "no_payment_required"):
                continue
            payments = self.paid_by.get(session.payment_intent or "", [])
            if session.invoice or any(payment.invoice_ids for payment in payments):
                continue  # the invoice's own lines say what was bought
            if session.payment_intent and not payments and self._all_failed(self.charges[session.payment_intent]):
                continue
            read = self.file.session_lines.get(f"{SESSION_LINES_PREFIX}{session.id}")
            if read is None or not read.complete:
                self.wanted.add(("session_lines", session.id))
            if read is None:
                continue
            bought_at = min((payment.paid_at for payment in payments), default=session.created)
            closing = self._all_back(payments, bought_at)
            for line in read.lines:
                if not line.recurring:
                    each = self._pack_credits(line.price, line.credits, bought_at)
                    cause = f"line {line.id} of Checkout session {session.id}, paid at {when(bought_at)}"
                    self._purchased(f"{session.id}:{line.id}", each * line.quantity, bought_at, cause, closing)

    # 4.1

    def acts(self, acts: Iterable[Act]) -> None:
        """Service credits that an operator granted."""
        for act in acts:
            if act.kind is not ActKind.GRANT or act.customer != self.customer:
                continue
            closing = None
            if act.until is not None and self.now >= act.until:
                cause = f"the credits of {act.id} were given until {when(act.until)}"
                closing = Closing(kind=EntryKind.EXPIRED, at=max(act.until, act.at), cause=cause)
            elif act.until is not None:
                self.wake_at.append(act.until)
            case = f" for case {act.case}" if act.case else ""
            self.add(
                Lot(
                    id=f"service:{act.id}",
                    customer=self.customer,
                    kind=LotKind.SERVICE,
                    clause="4.1",
                    credits=act.credits,
                    granted_at=act.at,
                    cause=f"an operator's act {act.id}{case} at {when(act.at)}",
                    ends_at=act.until,
                    closing=closing,
                )
            )

    # was it paid, and did the money stay?

    def _failed_since(self, invoice: Invoice) -> bool:
        """Whether the only money known for a paid invoice failed after it had succeeded, as bank debits do.

        An attempt that failed before the invoice was paid says nothing about the payment that paid it.
        """
        if not self.any_failed or self.paid_by.get(invoice.id) or not invoice.amount_due_minor:
            return False
        if _paid_outside(invoice, self.rows.get(invoice.id, [])):
            return False
        rows = [row for row in self.rows.get(invoice.id, []) if row.status != "canceled"]
        told = [invoice.payment_intent, invoice.charge, *(r.payment_intent for r in rows), *(r.charge for r in rows)]
        named = {invoice.id, *self.intents.get(invoice.id, ()), *filter(None, told)}
        charges = [charge for reference in sorted(named) for charge in self.charges.get(reference, ())]
        paid_at = invoice.created if invoice.paid_at is None else invoice.paid_at
        return self._all_failed(charges) and any(charge.as_of > paid_at for charge in charges)

    def _all_failed(self, charges: Iterable[Charge]) -> bool:
        """Whether there are charges, all of them failed, and no newer one is known to exist."""
        known = list(charges)
        intents = [self.file.intents.get(charge.payment_intent or "") for charge in known]
        newest = {intent.latest_charge for intent in intents if intent and intent.latest_charge}
        return bool(known) and all(c.status == "failed" for c in known) and newest <= {c.id for c in known}

    def _given_back(self, invoice: Invoice, paid_at: Seconds) -> Closing | None:
        """The take-back of an invoice's credits (4.3, rule 7), where all that paid it was given back as a duplicate."""
        if _paid_outside(invoice, self.rows.get(invoice.id, [])):
            return None
        return self._all_back(self.paid_by.get(invoice.id, []), paid_at)

    def _went_back(self, invoice: Invoice, line: Line) -> bool:
        """Whether what was given back covers this line too: all of the subscription's lines, else only what was repeated."""
        sold = sum(other.net_minor for other in invoice.lines if other.subscription_item and not other.metered)
        if sum(payment.refunded_minor for payment in self.paid_by.get(invoice.id, ())) >= sold:
            return True
        return any(
            other.status == "paid"
            and other.id != invoice.id
            and any(
                twin.subscription_item == line.subscription_item and not twin.proration and overlap_s(twin, line)
                for twin in other.lines
            )
            for other in self.file.invoices.values()
        )

    def _all_back(self, payments: Iterable[Payment], granted_at: Seconds) -> Closing | None:
        charges = {payment.charge.id: payment.charge.payment_intent for payment in payments}
        if not charges or not self.returned.issuperset(charges):
            return None
        paid = {*charges, *filter(None, charges.values())}
        refunds = [r for r in self.file.refunds.values() if r.live and (r.charge or r.payment_intent) in paid]
        back_at = max(granted_at, min((refund.created for refund in refunds), default=granted_at))
        by = f" by {', '.join(sorted(refund.id for refund in refunds))}" if refunds else ""
        cause = f"the duplicate {', '.join(sorted(charges))} was given back{by}"
        return Closing(kind=EntryKind.TAKEN_BACK, at=back_at, cause=cause)

    # what a price grants

    def _included_credits(self, line: Line, when: Seconds, subscription: Subscription | None) -> int:
        """Credits of one unit for one paid period: the price's metadata, else the policy in force when it was paid."""
        told = [(c, c.credits) for c in _told_of(subscription, line.price) if c.credits is not None]
        if told:
            return _in_force(told, when)
        if line.credits is not None:
            return line.credits
        plan = self._terms(when).plans.get(line.price or "")
        return plan.included if plan else 0

    def _trial_credits(self, price: PriceId, when: Seconds, subscription: Subscription) -> int:
        told = [(c, c.trial_credits) for c in _told_of(subscription, price) if c.trial_credits is not None]
        if told:
            return _in_force(told, when)
        plan = self._terms(when).plans.get(price)
        return plan.trial if plan else 0

    def _pack_credits(self, price: PriceId | None, told: int | None, when: Seconds) -> int:
        return self._terms(when).packs.get(price or "", 0) if told is None else told

    def _terms(self, when: Seconds) -> CreditTerms:
        return (self.policy.terms_for(self.customer, when) or self.policy.earliest()).credits


def _trial_id(subscription: Subscription, trial: Trial) -> str:
    return f"trial:{subscription.id}:{trial.start}"


def _quantity(quantity: int | None) -> int:
    return 1 if quantity is None else quantity


def _told_of(subscription: Subscription | None, price: PriceId | None) -> list[PriceCredits]:
    return [told for told in subscription.price_credits if told.price == price] if subscription else []


def _in_force(told: Iterable[tuple[PriceCredits, int]], when: Seconds) -> int:
    """What the metadata said at a moment: what it was seen to say last before it, else the first that was ever seen."""
    known = list(told)
    seen = [(s.until if s.until <= when else s.since, s.since, credits_) for s, credits_ in known if s.since <= when]
    return max(seen)[2] if seen else min((said.since, credits_) for said, credits_ in known)[1]


def _older_than_price(subscription: Subscription, line: Line, paid_at: Seconds) -> bool:
    """Whether the subscription was last told of before it held what this line sells, so that its metadata is unknown."""
    if subscription.as_of >= paid_at or line.price is None or line.credits is not None:
        return False
    return not _told_of(subscription, line.price) and all(item.price != line.price for item in subscription.items)


def _scheduled_end(subscription: Subscription | None) -> Seconds | None:
    """When a subscription ends as far as was asked for; None while it renews."""
    if subscription is None:
        return None
    if subscription.cancel_at is not None:
        return subscription.cancel_at
    if subscription.cancel_at_period_end:
        return max((item.period_end for item in subscription.items), default=None)
    return None


def _paid_outside(invoice: Invoice, rows: Iterable[InvoicePayment]) -> bool:
    """Whether an invoice was marked paid outside Stripe: no charge of ours is the money that paid it."""
    known = list(rows)
    records = any(row.status == "paid" and row.payment_type == "payment_record" for row in known)
    return bool(invoice.off_stripe_minor) or records or (bool(known) and all(r.status == "canceled" for r in known))
