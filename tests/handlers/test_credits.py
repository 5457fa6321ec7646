"""Clauses 3, 4.1 and 4.3 (rule 7) as a table: what happened, and the lots of credits that follow from it."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
import pytest

from handlers.account import Act, ActKind, Entry, EntryKind, Lot, LotBalance, Outage
from handlers.credits import Credits, lots_of
from handlers.customer import (
    SESSION_LINES_PREFIX,
    ChargeId,
    CustomerId,
    InvoiceId,
    PriceCredits,
    PriceId,
    SessionId,
    SessionLine,
    SessionLines,
    Subscription,
    SubscriptionItem,
    SubscriptionItemId,
    Trial,
    at,
)
from handlers.decisions import Verdict
from handlers.duplicates import judge
from handlers.ledger import postings, used_of_duplicate
from handlers.terms import SHIPPED_POLICY, Policy
from tests.handlers.history import DAY, HOUR, POLICY, T0, Billed, Bought, History, Sold, policy_with

PACK = Sold("price_pack_100", 1500, once=True)
CUSTOMER = CustomerId("cus_A")


class Story(History):
    """A customer's history with trials, packs, operators' acts and outages, and the lots that follow from it."""

    def __init__(self) -> None:
        super().__init__()
        self.acts: list[Act] = []
        self.outages: list[Outage] = []
        self.returned: set[ChargeId] = set()
        self.moment: int | None = None
        self.policy: Policy = POLICY
        self.test_clocks = False
        self.ledger: dict[str, LotBalance] = {}

    def trial(self, days: int = 7, start: int = 0, *, price: str = "price_basic", quantity: int = 1) -> str:
        """A subscription on trial."""
        id_ = self.id("sub")
        item = SubscriptionItem(
            id=SubscriptionItemId(f"si_{id_}_0"),
            price=PriceId(price),
            quantity=quantity,
            interval="month",
            period_start=T0 + start,
            period_end=T0 + start + days * DAY,
        )
        told = Trial(
            start=T0 + start,
            end=T0 + start + days * DAY,
            told_at=T0 + start,
            items=((PriceId(price), quantity),),
            items_at=T0 + start,
        )
        self.tell(
            Subscription(
                id=id_,
                as_of=T0 + start,
                customer=CUSTOMER,
                status="trialing",
                currency="usd",
                created=T0 + start,
                items=(item,),
                trial_start=told.start,
                trial_end=told.end,
                trials=(told,),
            )
        )
        return id_

    def retell_trial(self, id_: str, when: int, end: int, **fields: Any) -> None:
        """The trial's end as told at `when`, with whatever else changed."""
        known: Subscription = self.latest[id_]
        told = msgspec.structs.replace(known.trials[-1], end=T0 + end, told_at=T0 + when, items_at=T0 + when)
        self.change(id_, when=when, trial_end=T0 + end, trials=(told,), **fields)

    def second_trial(self, id_: str, when: int, days: int) -> None:
        """A trial added to a subscription that had one before."""
        known: Subscription = self.latest[id_]
        start, end = T0 + when, T0 + when + days * DAY
        told = Trial(start=start, end=end, told_at=start, items=known.trials[0].items, items_at=start)
        self.change(id_, when=when, status="trialing", trial_start=start, trial_end=end, trials=(told,))

    def price_says(self, sub: Bought | str, *told: tuple[str, int | None, int | None, int]) -> None:
        """Metadata of prices: (price, credits, trial credits, since)."""
        prices = tuple(
            PriceCredits(price=PriceId(price), credits=credits_, trial_credits=trial, since=T0 + since)
            for price, credits_, trial, since in told
        )
        self.change(sub if isinstance(sub, str) else sub.id, price_credits=prices)

    def checkout(self, when: int = 0, *lines: SessionLine, payment: str = "paid", read: bool = True) -> tuple[str, str]:
        """A one-time purchase through Checkout: (session, charge)."""
        charge = self.bare(when, 1500)
        session = self.session(when, charge=charge)
        self.change(session, payment_status=payment)
        if read:
            self.read_lines(session, when + 5, *(lines or (SessionLine(id="li_1", price=PriceId("price_pack_100")),)))
        return session, charge

    def read_lines(self, session: str, when: int, *lines: SessionLine, complete: bool = True) -> None:
        self.tell(
            SessionLines(
                id=f"{SESSION_LINES_PREFIX}{session}",
                as_of=T0 + when,
                session=SessionId(session),
                lines=lines,
                complete=complete,
            )
        )

    def give_back(self, charge: str, when: int, **more: Any) -> None:
        """The charge is a duplicate and was given back."""
        self.refund(charge, when, action="act_1", **more)
        self.returned.add(ChargeId(charge))

    def grant(self, when: int, credits_: int, until: int | None = None, kind: ActKind = ActKind.GRANT) -> None:
        """An operator's service credits."""
        self.acts.append(
            Act(
                id=f"op_{len(self.acts) + 1}",
                kind=kind,
                customer=CUSTOMER,
                at=T0 + when,
                by="ada",
                reason="exports were broken",
                case="case_1",
                credits=credits_,
                until=None if until is None else T0 + until,
            )
        )

    def outage(self, begins: int, ends: int, *plans: str, declared: int | None = None) -> str:
        """A declared outage."""
        id_ = f"out_{len(self.outages) + 1}"
        self.outages.append(
            Outage(
                id=id_,
                begins=T0 + begins,
                ends=T0 + ends,
                plans=tuple(PriceId(plan) for plan in plans),
                declared_at=T0 + (ends + HOUR if declared is None else declared),
                by="ada",
                reason="the queue stood still",
            )
        )
        return id_

    @property
    def now(self) -> datetime:
        latest = max((fact.as_of for fact in self.tellings), default=T0) + HOUR
        return at(latest if self.moment is None else T0 + self.moment)

    def credits(self) -> Credits:
        return lots_of(
            self.file(),
            CUSTOMER,
            self.policy,
            self.now,
            self.acts,
            self.outages,
            frozenset(self.returned),
            test_clocks=self.test_clocks,
            ledger=self.ledger,
        )

    def post(self) -> list[Entry]:
        """The postings that bring the ledger to what the facts say now; the ledger is there from then on."""
        told = self.credits()
        ledger = {lot: sums for lot, sums in self.ledger.items() if lot not in told.unproved}
        entries = postings(told.lots, ledger, int(self.now.timestamp()))
        for entry in entries:
            known = self.ledger.get(entry.lot, LotBalance())
            sign = 1 if entry.kind is EntryKind.GRANTED else -1
            moved = {str(entry.kind): getattr(known, entry.kind) + sign * entry.amount}
            self.ledger[entry.lot] = msgspec.structs.replace(known, **moved)
        return entries


def day(seconds: int) -> str:
    return f"day {(seconds - T0) / DAY:g}"


def summary(lot: Lot) -> str:
    """A lot in a line: its kind and credits, and how and when it ends or ended."""
    said = f"{lot.kind} {lot.credits}"
    if lot.closing:
        return f"{said}, {lot.closing.kind} on {day(lot.closing.at)}"
    return said if lot.ends_at is None else f"{said}, until {day(lot.ends_at)}"


Row = tuple[str, str, tuple[str, ...], Callable[[Story], None]]
ROWS: list[Row] = []


def row(clause: str, sentence: str, *lots: str) -> Callable[[Callable[[Story], None]], Callable[[Story], None]]:
    """One row of the table. A story may return nothing but change what it was given."""

    def told(tell: Callable[[Story], None]) -> Callable[[Story], None]:
        ROWS.append((clause, sentence, lots, tell))
        return tell

    return told


# 3.1 included credits


@row("3.1", "A paid line of a subscription grants its included credits, with no end in sight.", "included 500")
def _(s: Story) -> None:
    s.subscribe()


@row("3.1", "Each unit of the quantity grants them.", "included 1500")
def _(s: Story) -> None:
    s.subscribe(0, Sold(quantity=3))


@row("3.1", "At renewal the old credits are carried over and new ones are granted.", "included 500", "included 500")
def _(s: Story) -> None:
    s.renew(s.subscribe())


@row("3.1", "Two plans on one subscription: a lot for each line.", "included 2500", "included 500")
def _(s: Story) -> None:
    s.subscribe(0, Sold(), Sold("price_pro", 5900))


@row(
    "3.1",
    "A cancellation asked for changes nothing before it takes effect; only the end is known.",
    "included 500, until day 30",
)
def _(s: Story) -> None:
    s.schedule_end(s.subscribe(), 3 * DAY)


@row("3.1", "A date set for the end is known as the end.", "included 500, until day 12")
def _(s: Story) -> None:
    s.change(s.subscribe().id, when=DAY, cancel_at=T0 + 12 * DAY)


@row("3.1", "A cancellation that was withdrawn leaves no end in sight.", "included 500")
def _(s: Story) -> None:
    sub = s.subscribe()
    s.schedule_end(sub, 3 * DAY)
    s.change(sub.id, when=4 * DAY, cancel_at_period_end=False, canceled_at=None)


@row(
    "3.1", "At the effective end the unused are forfeited, of every period.", *["included 500, forfeited on day 40"] * 2
)
def _(s: Story) -> None:
    sub = s.subscribe()
    s.renew(sub)
    s.end(sub, 40 * DAY)


@row("3.1", "Past due is not an end.", "included 500")
def _(s: Story) -> None:
    s.change(s.subscribe().id, when=31 * DAY, status="past_due")


@row("3.1", "Unpaid is not an end.", "included 500")
def _(s: Story) -> None:
    s.change(s.subscribe().id, when=31 * DAY, status="unpaid")


@row("3.1", "Paused is not an end.", "included 500")
def _(s: Story) -> None:
    s.change(s.subscribe().id, when=31 * DAY, status="paused")


@row("3.1", "A status nobody knows is not an end.", "included 500")
def _(s: Story) -> None:
    s.change(s.subscribe().id, when=31 * DAY, status="hibernating")


@row(
    "3.1", "One subscription's end leaves another's credits alone.", "included 2500", "included 500, forfeited on day 5"
)
def _(s: Story) -> None:
    s.end(s.subscribe(), 5 * DAY)
    s.subscribe(0, Sold("price_pro", 5900))


@row("3.1", "Paid after the end: granted and forfeited in the same moment.", "included 500, forfeited on day 32")
def _(s: Story) -> None:
    sub = s.subscribe(paid_when=32 * DAY)
    s.change(sub.id, when=31 * DAY, status="canceled", ended_at=T0 + 30 * DAY)


@row("3.1", "An invoice that is not paid grants nothing.")
def _(s: Story) -> None:
    s.change(s.subscribe().first.invoice, status="open")


@row("3.1", "A coupon of 100 % grants all the same: the line was sold.", "included 500")
def _(s: Story) -> None:
    s.subscribe(0, Sold(discount=2900))


@row("3.1", "A trial's invoice of 0 grants no paid credits.")
def _(s: Story) -> None:
    s.subscribe(0, Sold(amount=0))


@row("3.1", "A change of plan in mid-period grants nothing by its prorations.", "included 500")
def _(s: Story) -> None:
    sub = s.subscribe()
    s.price_says(sub, ("price_pro", 2500, None, 15 * DAY))
    lines = (Sold(amount=-1400, proration=True), Sold("price_pro", 2900, proration=True))
    s.bill(sub, 15 * DAY, *lines, reason="subscription_update", paid_when=15 * DAY, end=30 * DAY)


@row("3.1", "A change of plan that begins a new period grants by its full line.", "included 2500", "included 500")
def _(s: Story) -> None:
    sub = s.subscribe()
    s.price_says(sub, ("price_pro", 2500, None, 15 * DAY))
    lines = (Sold(amount=-1400, proration=True), Sold("price_pro", 5900))
    s.bill(sub, 15 * DAY, *lines, reason="subscription_update", paid_when=15 * DAY)


@row("3.1", "Metered usage grants nothing.")
def _(s: Story) -> None:
    s.subscribe(0, Sold(metered=True))


@row("3.1", "A threshold invoice grants nothing.", "included 500")
def _(s: Story) -> None:
    s.bill(s.subscribe(), 5 * DAY, Sold(), reason="subscription_threshold", paid_when=5 * DAY)


@row("3.1", "Marked paid outside Stripe is paid, whatever became of the card.", "included 500")
def _(s: Story) -> None:
    sub = s.subscribe(off_stripe=2900)
    s.change(sub.first.charge, when=DAY, status="failed", captured=False, captured_minor=0)


@row("3.1", "A bank debit that failed after it had succeeded grants nothing.")
def _(s: Story) -> None:
    sub = s.subscribe(method="us_bank_account")
    s.change(sub.first.charge, when=4 * DAY, status="failed", captured=False, captured_minor=0)


@row("3.1", "A failed attempt before the one that paid says nothing.", "included 500")
def _(s: Story) -> None:
    sub = s.subscribe(paid_when=2 * HOUR)
    s.failed(sub.first, HOUR)


@row("3.1", "A failed attempt before it was paid, and nothing else known: paid is paid.", "included 500")
def _(s: Story) -> None:
    sub = s.subscribe(paid_when=2 * HOUR)
    s.failed(sub.first, HOUR)
    s.forget(sub.first.charge, sub.first.intent)


@row("3.1", "The card failed and the customer's balance paid.", "included 500")
def _(s: Story) -> None:
    sub = s.subscribe(balance=2900)
    s.change(sub.first.charge, when=HOUR, status="failed", captured=False)


@row("3.1", "A failed attempt, while the charge that paid was not told of yet: paid is paid.", "included 500")
def _(s: Story) -> None:
    sub = s.subscribe(paid_when=2 * HOUR)
    s.failed(sub.first, 3 * HOUR)
    s.forget(sub.first.charge)


@row("3.1", "A price that grants nothing makes no lot.")
def _(s: Story) -> None:
    s.subscribe(0, Sold("price_unknown", 900))


@row("3.1", "The price's metadata wins over the policy file.", "included 720")
def _(s: Story) -> None:
    s.price_says(s.subscribe(), ("price_basic", 720, None, 0))


@row("3.1", "Metadata that says 0 wins too.")
def _(s: Story) -> None:
    s.price_says(s.subscribe(), ("price_basic", 0, None, 0))


@row("3.1", "Metadata changed between two periods: each by what it said when paid.", "included 600", "included 700")
def _(s: Story) -> None:
    sub = s.subscribe()
    s.renew(sub)
    s.price_says(sub, ("price_basic", 600, None, 0), ("price_basic", 700, None, 20 * DAY))


@row("3.1", "Metadata first seen after the payment counts for it.", "included 600")
def _(s: Story) -> None:
    s.price_says(s.subscribe(), ("price_basic", 700, None, 9 * DAY), ("price_basic", 600, None, 3 * DAY))


@row("3.1", "Metadata on the line itself, in shapes that carry it, wins over the policy file.", "included 650")
def _(s: Story) -> None:
    invoice = s.latest[s.subscribe().first.invoice]
    s.change(invoice.id, lines=(msgspec.structs.replace(invoice.lines[0], credits=650),))


@row("3.1", "A later version of the policy changes what is granted from then on.", "included 500", "included 800")
def _(s: Story) -> None:
    later = '\n[[version]]\nid = "2026-02"\nin_force_from = 2026-01-20T00:00:00Z\n'
    later += "[version.credits]\nplans = { price_basic = { included = 800 } }\n"
    s.policy = policy_with(agreement=later)
    s.renew(s.subscribe())


@row("8", "An agreement may grant more.", "included 9000")
def _(s: Story) -> None:
    agreed = '\n[[agreement]]\ncustomer = "cus_A"\nsource = "MSA"\nfrom = 2025-06-01T00:00:00Z\n'
    agreed += "overrides = { credits = { plans = { price_basic = { included = 9000 } } } }\n"
    s.policy = policy_with(agreement=agreed)
    s.subscribe()


# 3.2 credits bought once


@row(
    "3.2",
    "A pack on a subscription's invoice never ends; the subscription's credits do.",
    "included 500, forfeited on day 5",
    "purchased 100",
)
def _(s: Story) -> None:
    s.end(s.subscribe(extra=(PACK,)), 5 * DAY)


@row("3.2", "Two of one pack on one line.", "included 500", "purchased 200")
def _(s: Story) -> None:
    s.subscribe(extra=(Sold("price_pack_100", 3000, quantity=2, once=True),))


@row("3.2", "A set-up fee is no pack.", "included 500")
def _(s: Story) -> None:
    s.subscribe(extra=(Sold("price_setup", 900, once=True),))


@row("3.2", "A pack bought through Checkout.", "purchased 100")
def _(s: Story) -> None:
    s.checkout()


@row("3.2", "The pack's own metadata wins over the policy file; a recurring line is none.", "purchased 240")
def _(s: Story) -> None:
    lines = (SessionLine(id="li_1", price=PriceId("price_pack_100"), quantity=2, credits=120),)
    s.checkout(0, *lines, SessionLine(id="li_2", price=PriceId("price_basic"), recurring=True, credits=900))


@row("3.2", "A delayed payment that is still on its way grants nothing.")
def _(s: Story) -> None:
    _, charge = s.checkout(payment="unpaid")
    s.change(charge, status="pending", captured=False, captured_minor=0)


@row("3.2", "A delayed payment that arrived grants.", "purchased 100")
def _(s: Story) -> None:
    session, _ = s.checkout(payment="unpaid")
    s.change(session, when=4 * DAY, payment_status="paid")


@row("3.2", "Nothing to pay counts as paid.", "purchased 100")
def _(s: Story) -> None:
    session, charge = s.checkout(payment="no_payment_required")
    s.forget(charge, s.latest[session].payment_intent)


@row("3.2", "A payment that failed after it had succeeded grants nothing.")
def _(s: Story) -> None:
    _, charge = s.checkout()
    s.change(charge, when=4 * DAY, status="failed", captured=False, captured_minor=0)


@row("3.2", "A card refused before another one paid says nothing.", "purchased 100")
def _(s: Story) -> None:
    _, charge = s.checkout()
    known = s.latest[charge]
    s.tell(msgspec.structs.replace(known, id="ch_refused", status="failed", captured=False, captured_minor=0))


@row("3.2", "What Checkout invoiced is granted once, by the invoice.", "purchased 100")
def _(s: Story) -> None:
    session, _ = s.checkout()
    sub = s.subscribe(0, Sold(amount=0), extra=(PACK,))
    s.change(session, invoice=InvoiceId(sub.first.invoice))


@row("3.2", "The invoice of a pack is known by its payment, before the session names it.", "purchased 100")
def _(s: Story) -> None:
    session, _ = s.checkout()
    sub = s.subscribe(0, Sold(amount=0), extra=(PACK,))
    s.change(session, payment_intent=sub.first.intent)


@row("3.2", "A refund that the policy did not allow takes no purchased credits away.", "purchased 100")
def _(s: Story) -> None:
    s.refund(s.checkout()[1], DAY)


@row("3.2", "A chargeback takes no purchased credits away; it holds the customer.", "purchased 100")
def _(s: Story) -> None:
    s.dispute(s.checkout()[1], "lost")


@row(
    "4.3",
    "A pack charged twice and given back once: the duplicate's credits go.",
    "purchased 100",
    "purchased 100, taken_back on day 2",
)
def _(s: Story) -> None:
    s.checkout()
    s.give_back(s.checkout(9)[1], 2 * DAY)


# 3.3 trials


@row("3.3", "A trial grants its credits at its start, until its end.", "trial 50, until day 7")
def _(s: Story) -> None:
    s.trial()


@row("3.3", "Quantities and metadata count for trials too.", "trial 60, until day 7")
def _(s: Story) -> None:
    s.price_says(s.trial(quantity=3), ("price_basic", None, 20, 0))


@row("3.3", "A plan without trial credits has a trial without a lot.")
def _(s: Story) -> None:
    s.trial(price="price_unknown")


@row("3.3", "A trial that converts loses its credits at its end.", "trial 50, expired on day 7")
def _(s: Story) -> None:
    s.change(s.trial(), when=7 * DAY, status="active")


@row("3.3", "A conversion learned a day late counts from the true end.", "trial 50, expired on day 7")
def _(s: Story) -> None:
    s.change(s.trial(), when=8 * DAY, status="active")


@row("3.3", "A trial without a payment method that pauses has ended.", "trial 50, expired on day 7")
def _(s: Story) -> None:
    s.change(s.trial(), when=7 * DAY, status="paused")


@row("3.3", "A trial cancelled at its end.", "trial 50, expired on day 7")
def _(s: Story) -> None:
    s.change(s.trial(), when=7 * DAY, status="canceled", ended_at=T0 + 7 * DAY)


@row("3.3", "A trial cancelled at once ends at once.", "trial 50, expired on day 3")
def _(s: Story) -> None:
    s.change(s.trial(), when=3 * DAY, status="canceled", ended_at=T0 + 3 * DAY)


@row("3.3", "A trial whose cancellation is only scheduled runs on.", "trial 50, until day 7")
def _(s: Story) -> None:
    s.change(s.trial(), when=3 * DAY, cancel_at_period_end=True, cancel_at=T0 + 7 * DAY)


@row("3.3", "A trial that was extended ends at the later end.", "trial 50, until day 14")
def _(s: Story) -> None:
    s.retell_trial(s.trial(), 6 * DAY, 14 * DAY)


@row("3.3", "A trial that was ended early ended then.", "trial 50, expired on day 2")
def _(s: Story) -> None:
    s.retell_trial(s.trial(), 2 * DAY, 2 * DAY, status="active")


@row("3.3", "A second trial is a lot of its own.", "trial 50, expired on day 7", "trial 50, until day 33")
def _(s: Story) -> None:
    sub = s.trial()
    s.change(sub, when=7 * DAY, status="active")
    s.second_trial(sub, 30 * DAY, 3)


@row(
    "3.3",
    "A second trial that begins before the first was to end ends it.",
    "trial 50, expired on day 5",
    "trial 50, until day 12",
)
def _(s: Story) -> None:
    s.second_trial(s.trial(), 5 * DAY, 7)


@row("3.3", "The clock alone, told at the end: over.", "trial 50, expired on day 7")
def _(s: Story) -> None:
    s.change(s.trial(), when=7 * DAY)
    s.moment = 7 * DAY


@row("3.3", "The clock alone, told before the end: for an hour it may have been extended.", "trial 50, until day 7")
def _(s: Story) -> None:
    s.trial()
    s.moment = 7 * DAY + HOUR - 1


@row("3.3", "The clock alone, an hour after the end: over.", "trial 50, expired on day 7")
def _(s: Story) -> None:
    s.trial()
    s.moment = 7 * DAY + HOUR


@row(
    "3.3", "No first payment within a day: the trial's credits go with the subscription.", "trial 50, expired on day 1"
)
def _(s: Story) -> None:
    s.change(s.trial(), when=DAY, status="incomplete_expired", ended_at=T0 + DAY)


# 4.1 service credits


@row(
    "4.1",
    "An operator gives service credits; they survive every cancellation.",
    "included 500, forfeited on day 5",
    "service 80",
)
def _(s: Story) -> None:
    s.end(s.subscribe(), 5 * DAY)
    s.grant(DAY, 80)


@row("4.1", "Service credits given until a date are there until then.", "service 80, until day 9")
def _(s: Story) -> None:
    s.grant(DAY, 80, until=9 * DAY)
    s.moment = 9 * DAY - 1


@row("4.1", "And not a second longer.", "service 80, expired on day 9")
def _(s: Story) -> None:
    s.grant(DAY, 80, until=9 * DAY)
    s.moment = 9 * DAY


@row("4.1", "An extension of access grants no credits.")
def _(s: Story) -> None:
    s.grant(DAY, 80, kind=ActKind.EXTEND)


# 4.3, rule 7: credits of duplicates


@row(
    "4.3",
    "Bought twice: what the duplicate granted is taken back, the original's credits stay.",
    "included 500",
    "included 500, taken_back on day 1",
)
def _(s: Story) -> None:
    s.subscribe()
    twin = s.subscribe(4)
    s.give_back(twin.first.charge, DAY)
    s.end(twin, DAY + 5)


@row(
    "4.3",
    "A pack on the duplicate's invoice stays: only the subscription's line went back.",
    "included 500",
    "included 500, taken_back on day 1",
    "purchased 100",
)
def _(s: Story) -> None:
    s.subscribe()
    s.give_back(s.subscribe(4, extra=(PACK,)).first.charge, DAY, amount=2900)


@row("4.3", "One invoice paid twice granted once; giving the second payment back takes nothing.", "included 500")
def _(s: Story) -> None:
    sub = s.subscribe()
    s.give_back(s.pay_again(sub.first, 60), DAY)


@row("4.3", "And it stays so if the bank takes the first payment back later.", "included 500")
def _(s: Story) -> None:
    sub = s.subscribe()
    s.give_back(s.pay_again(sub.first, 60), DAY)
    s.dispute(sub.first.charge, "lost")


@row("4.3", "Marked paid outside Stripe and charged too: the charge went back, the credits stay.", "included 500")
def _(s: Story) -> None:
    s.give_back(s.subscribe(off_stripe=2900).first.charge, DAY)


@row("2, 6", "A refund that was no duplicate's takes no included credits away before the end.", "included 500")
def _(s: Story) -> None:
    s.refund(s.subscribe().first.charge, DAY)


# test clocks


@row("28", "A subscription on a test clock is left alone.")
def _(s: Story) -> None:
    s.subscribe(test_clock=True)
    s.change(s.trial(), test_clock=True)


@row("28", "A customer on a test clock is left alone, Checkout included.")
def _(s: Story) -> None:
    s.customer(test_clock=True)
    s.subscribe()
    s.checkout()


@row("28", "Unless the merchant rehearses.", "included 500", "purchased 100")
def _(s: Story) -> None:
    s.customer(test_clock=True)
    s.subscribe()
    s.checkout()
    s.test_clocks = True


@pytest.mark.parametrize(("clause", "sentence", "lots", "tell"), ROWS, ids=[f"{r[0]}: {r[1]}" for r in ROWS])
def test_credits_follow_the_clause(
    clause: str, sentence: str, lots: tuple[str, ...], tell: Callable[[Story], None]
) -> None:
    """Every row holds, whatever the order in which its facts were told; every lot names what it rests on."""
    story = Story()
    tell(story)
    found = story.credits()
    assert sorted(map(summary, found.lots.values())) == sorted(lots)
    for lot in found.lots.values():
        assert any(part in lot.cause for part in lot.id.split(":")[1:])
        assert lot.closing is None or lot.closing.at >= lot.granted_at
    moment = int(story.now.timestamp()) - T0
    for seed in range(3):
        random.Random(seed).shuffle(story.tellings)
        story.tellings += story.tellings[:2]
        story.moment = moment
        assert story.credits() == found


# what is still to be learned ---------------------------------------------------------------------------------------------


def test_a_paid_line_waits_for_its_subscription_whose_price_tells_the_credits() -> None:
    story = Story()
    sub = story.subscribe()
    known = story.latest[sub.id]
    story.forget(sub.id)
    assert story.credits().wanted == {("subscription", sub.id)}
    assert not story.credits().lots
    story.tell(known)
    assert not story.credits().wanted
    assert len(story.credits().lots) == 1


def test_a_line_of_a_price_that_the_subscription_did_not_hold_when_it_was_told_of_waits_for_a_newer_telling() -> None:
    story = Story()
    sub = story.subscribe()
    story.bill(sub, 15 * DAY, Sold("price_pro", 5900), reason="subscription_update", paid_when=15 * DAY)
    assert [summary(lot) for lot in story.credits().lots.values()] == ["included 500"]
    assert story.credits().wanted == {("subscription", sub.id)}
    story.change(sub.id, when=16 * DAY)
    assert sorted(summary(lot) for lot in story.credits().lots.values()) == ["included 2500", "included 500"]
    assert not story.credits().wanted


def test_of_an_invoice_with_more_lines_than_it_carried_the_known_grant_and_the_rest_is_looked_up() -> None:
    story = Story()
    sub = story.subscribe()
    story.change(sub.first.invoice, lines_complete=False)
    assert [summary(lot) for lot in story.credits().lots.values()] == ["included 500"]
    assert story.credits().wanted == {("invoice", sub.first.invoice)}


def test_what_a_session_sold_is_looked_up_and_only_once_it_is_paid() -> None:
    story = Story()
    session, _ = story.checkout(payment="unpaid", read=False)
    assert not story.credits().wanted
    story.change(session, payment_status="paid")
    assert story.credits().wanted == {("session_lines", session)}
    assert not story.credits().lots
    story.read_lines(session, 60, SessionLine(id="li_1", price=PriceId("price_pack_100")), complete=False)
    assert story.credits().wanted == {("session_lines", session)}
    assert len(story.credits().lots) == 1


def test_a_trial_is_judged_again_at_its_end_then_looked_up_and_at_last_closed_by_the_clock() -> None:
    story = Story()
    sub, end = story.trial(), T0 + 7 * DAY
    story.moment = DAY
    assert (story.credits().judge_again_at, story.credits().wanted) == (at(end), frozenset())
    story.moment = 7 * DAY
    assert (story.credits().judge_again_at, story.credits().wanted) == (at(end + HOUR), {("subscription", sub)})
    story.moment = 7 * DAY + HOUR
    assert (story.credits().judge_again_at, story.credits().wanted) == (None, frozenset())


def test_service_credits_are_judged_again_when_they_end() -> None:
    story = Story()
    story.grant(DAY, 80, until=9 * DAY)
    story.moment = 2 * DAY
    assert story.credits().judge_again_at == at(T0 + 9 * DAY)


# the ledger --------------------------------------------------------------------------------------------------------------


def posted(ledger: dict[str, LotBalance], story: Story) -> list[tuple[str, int]]:
    """Post what the story wants; (kind, amount) of each entry. Posting again does nothing."""
    now = int(story.now.timestamp())
    entries = postings(story.credits().lots, ledger, now)
    for entry in entries:
        assert entry.cause
        assert entry.clause
        known = ledger.get(entry.lot, LotBalance())
        sign = 1 if entry.kind is EntryKind.GRANTED else -1
        sums = {str(entry.kind): getattr(known, entry.kind) + sign * entry.amount}
        ledger[entry.lot] = msgspec.structs.replace(known, **sums)
    assert postings(story.credits().lots, ledger, now) == []
    return [(str(entry.kind), entry.amount) for entry in entries]


def consume(ledger: dict[str, LotBalance], amount: int) -> None:
    lot = next(id_ for id_, balance in ledger.items() if balance.remaining >= amount)
    ledger[lot] = msgspec.structs.replace(ledger[lot], consumed=ledger[lot].consumed + amount)


def test_an_end_takes_what_is_left_and_what_was_consumed_before_it_was_learned_stays_consumed() -> None:
    story, ledger = Story(), dict[str, LotBalance]()
    sub = story.trial()
    assert posted(ledger, story) == [("granted", 50)]
    consume(ledger, 20)
    story.change(sub, when=8 * DAY, status="active")
    assert posted(ledger, story) == [("expired", -30)]


def test_a_trial_extended_after_it_was_closed_gets_back_what_its_end_took_and_loses_it_at_the_true_end() -> None:
    story, ledger = Story(), dict[str, LotBalance]()
    sub = story.trial()
    story.moment = 8 * DAY
    assert posted(ledger, story) == [("granted", 50), ("expired", -50)]
    story.retell_trial(sub, 6 * DAY, 14 * DAY)
    assert posted(ledger, story) == [("expired", 50)]
    consume(ledger, 5)
    story.moment = 15 * DAY
    assert posted(ledger, story) == [("expired", -45)]


def test_forfeited_first_and_known_as_a_duplicate_later_the_reversal_comes_before_the_take_back() -> None:
    story, ledger = Story(), dict[str, LotBalance]()
    sub = story.subscribe()
    story.end(sub, DAY)
    assert posted(ledger, story) == [("granted", 500), ("forfeited", -500)]
    story.give_back(sub.first.charge, DAY + 5)
    assert posted(ledger, story) == [("forfeited", 500), ("taken_back", -500)]


def test_a_payment_that_fails_after_it_succeeded_takes_back_what_is_left() -> None:
    story, ledger = Story(), dict[str, LotBalance]()
    sub = story.subscribe(method="us_bank_account")
    posted(ledger, story)
    consume(ledger, 120)
    story.change(sub.first.charge, when=4 * DAY, status="failed", captured=False, captured_minor=0)
    entries = postings(story.credits().lots, ledger, T0 + 5 * DAY)
    assert [(e.clause, e.kind, e.amount, e.effective_at) for e in entries] == [
        ("3", EntryKind.TAKEN_BACK, -380, T0 + 5 * DAY)
    ]
    assert posted(ledger, story) == [("taken_back", -380)]


def test_a_grant_is_frozen_even_where_the_price_says_more_later() -> None:
    story, ledger = Story(), dict[str, LotBalance]()
    sub = story.subscribe()
    posted(ledger, story)
    story.price_says(sub, ("price_basic", 900, None, 0))
    assert [summary(lot) for lot in story.credits().lots.values()] == ["included 900"]
    assert posted(ledger, story) == []


def test_an_end_wholly_consumed_before_takes_nothing() -> None:
    story, ledger = Story(), dict[str, LotBalance]()
    sub = story.subscribe()
    posted(ledger, story)
    consume(ledger, 500)
    story.end(sub, DAY)
    assert posted(ledger, story) == []


def test_entries_are_effective_at_the_true_moment_and_say_their_clause() -> None:
    story = Story()
    sub = story.subscribe()
    story.end(sub, 3 * DAY)
    granted, forfeited = postings(story.credits().lots, {}, T0 + 9 * DAY)
    assert (granted.effective_at, granted.clause) == (T0, "3.1")
    assert (forfeited.effective_at, forfeited.clause) == (T0 + 3 * DAY, "3.1")
    assert sub.id in forfeited.cause
    story.give_back(sub.first.charge, 4 * DAY)
    _, taken = postings(story.credits().lots, {}, T0 + 9 * DAY)
    assert (taken.effective_at, taken.clause) == (T0 + 4 * DAY, "4.3")
    assert sub.first.charge in taken.cause


# reading 23 --------------------------------------------------------------------------------------------------------------


def used(story: Story, original: Billed, duplicate: Billed, first: int, second: int) -> tuple[Verdict, str]:
    """The verdict where so many of 500 credits were consumed of either lot."""
    lots = [f"included:{billed.invoice}:il_{billed.invoice}_0" for billed in (original, duplicate)]
    balances = {lot: LotBalance(granted=500, consumed=n) for lot, n in zip(lots, (first, second), strict=True)}
    assert used_of_duplicate(lots[:1], lots[1:], balances) == max(0, first + second - 500)
    decision = judge(story.file(), POLICY, story.now, balances=balances).decisions[duplicate.charge]
    said = "a part of the credits that the duplicate granted" in decision.reason
    assert said is (first + second > 500)
    evidence = {e.fact: (e.original, e.duplicate) for e in decision.evidence}
    if said:
        assert evidence["credits used, of those granted"] == (f"{first} of 500", f"{second} of 500")
    return decision.verdict, decision.rule


@pytest.mark.parametrize(
    ("sentence", "first", "second", "verdict"),
    [
        ("Nothing was used.", 0, 0, Verdict.REFUND),
        ("What was used of the duplicate's, the original's would have covered.", 0, 500, Verdict.REFUND),
        ("Used up exactly what the original granted.", 480, 20, Verdict.REFUND),
        ("One credit more than the original granted: a person decides.", 500, 1, Verdict.REVIEW),
    ],
)
@pytest.mark.parametrize("rule", ["D3", "D4", "D5"])
def test_used_credits_of_a_duplicate_are_a_persons_matter(
    sentence: str, first: int, second: int, verdict: Verdict, rule: str
) -> None:
    """Reading 23, for every rule whose duplicate had granted credits of its own."""
    story = Story()
    if rule == "D5":
        sub = story.subscribe()
        original = story.renew(sub)
        duplicate = story.bill(
            sub, original.start, Sold(), reason="subscription_cycle", paid_when=original.start + HOUR
        )
    else:
        other = "cus_A" if rule == "D3" else "cus_B"
        for customer in {"cus_A", other}:
            story.customer(customer, user_id="u1")
        original = story.subscribe().first
        duplicate = story.subscribe(9, customer=other).first
    assert used(story, original, duplicate, first, second) == (verdict, rule)


def test_using_more_changes_the_evidence_but_not_the_doubt_so_an_approval_holds() -> None:
    story = Story()
    original, duplicate = story.subscribe().first, story.subscribe(9).first
    reasons = set()
    for consumed in (1, 40):
        lots = {
            f"included:{original.invoice}:il_{original.invoice}_0": LotBalance(granted=500, consumed=500),
            f"included:{duplicate.invoice}:il_{duplicate.invoice}_0": LotBalance(granted=500, consumed=consumed),
        }
        reasons.add(judge(story.file(), POLICY, story.now, balances=lots).decisions[duplicate.charge].reason)
    assert len(reasons) == 1


# a grant stays --------------------------------------------------------------------------------------------------------------


def without_credits() -> Policy:
    """The shipped policy, whose tables grant nothing any more."""
    lines = SHIPPED_POLICY.read_text(encoding="utf-8").splitlines()
    tables = [line for line in lines if line.startswith(("plans =", "packs ="))]
    assert len(tables) == 2
    return policy_with(*((line, f"{line.split()[0]} = {{}}") for line in tables))


def test_a_price_dropped_from_the_policy_file_takes_back_nothing_and_its_lots_still_end_by_their_rules() -> None:
    s = Story()
    s.customer()
    sub = s.subscribe(0, extra=(PACK,))
    s.trial(40, DAY)
    s.outage(2 * DAY, 5 * DAY)
    assert len(s.post()) == 4
    s.policy = without_credits()
    assert s.post() == []
    s.end(sub, 10 * DAY)
    assert [(e.kind, e.amount) for e in s.post()] == [(EntryKind.FORFEITED, -500)]
    s.moment = 42 * DAY
    assert [(e.kind, e.amount) for e in s.post()] == [(EntryKind.EXPIRED, -50)]
    assert [lot for lot, sums in s.ledger.items() if sums.remaining] == [
        "purchased:in_0001:il_in_0001_1",
        "service:out_1:sub_0001",
    ]


def test_a_later_telling_with_a_part_of_the_lines_takes_back_nothing_until_the_rest_is_read() -> None:
    s = Story()
    s.customer()
    sub = s.subscribe(0, extra=(PACK,))
    s.outage(2 * DAY, 5 * DAY)
    s.post()
    whole = s.latest[sub.first.invoice].lines
    s.change(sub.first.invoice, lines=whole[1:], lines_complete=False)
    assert s.post() == []
    s.change(sub.first.invoice, lines=whole[:1], lines_complete=False)
    assert s.post() == []
    assert ("invoice", sub.first.invoice) in s.credits().wanted
    s.change(sub.first.invoice, lines=whole[:1], lines_complete=True)
    assert [(e.lot, e.kind, e.amount) for e in s.post()] == [
        ("purchased:in_0001:il_in_0001_1", EntryKind.TAKEN_BACK, -100)
    ]


def test_a_late_telling_of_a_subscription_with_another_price_takes_back_nothing_that_was_granted() -> None:
    s = Story()
    s.customer()
    sub = s.subscribe(0)
    s.renew(sub)
    s.post()
    item = s.latest[sub.id].items[0]
    s.change(sub.id, when=10 * DAY, items=(msgspec.structs.replace(item, price=PriceId("price_pro")),))
    assert s.post() == []
    assert ("subscription", sub.id) in s.credits().wanted


def test_metadata_that_was_changed_and_changed_back_grants_what_it_says_now() -> None:
    """Credits for a renewal on day 30, and for what is paid while the other number holds, whatever is told first."""
    told = [("price_basic", 500, None, 0), ("price_basic", 1000, None, 10 * DAY), ("price_basic", 500, None, 20 * DAY)]
    rng = random.Random(3)
    for _ in range(6):
        rng.shuffle(told)
        s = Story()
        s.customer()
        sub = s.subscribe(0)
        s.bill(sub, 12 * DAY, Sold(), reason="subscription_cycle", paid_when=12 * DAY, end=20 * DAY)
        s.bill(sub, 30 * DAY, Sold(), reason="subscription_cycle", paid_when=30 * DAY)
        for n, said in enumerate([*told, *told[:2]]):
            s.change(sub.id, when=31 * DAY + n)
            s.price_says(sub, said)
        assert sorted(s.file().subscriptions[sub.id].price_credits) == [
            PriceCredits(price=PriceId("price_basic"), credits=500, since=T0, seen=T0 + 20 * DAY),
            PriceCredits(price=PriceId("price_basic"), credits=1000, since=T0 + 10 * DAY),
        ]
        assert [lot.credits for _, lot in sorted(s.credits().lots.items())] == [500, 1000, 500]


def test_an_item_that_only_the_second_invoice_bills_keeps_its_credits_when_the_repeated_line_goes_back() -> None:
    """D5 on an invoice with a second item: what was paid for that one did not go back."""
    s = Story()
    s.customer()
    sub = s.subscribe(0, Sold(), Sold("price_pro", 9900))
    s.bill(sub, sub.first.end, Sold(), reason="subscription_cycle", paid_when=sub.first.end)
    again = s.bill(
        sub, sub.first.end, Sold(), Sold("price_pro", 9900), reason="subscription_cycle", paid_when=sub.first.end + HOUR
    )
    s.give_back(again.charge, sub.first.end + DAY, amount=2900)
    lots = s.credits().lots
    assert lots[f"included:{again.invoice}:il_{again.invoice}_0"].closing is not None
    assert lots[f"included:{again.invoice}:il_{again.invoice}_1"].closing is None


def bought_with_an_invoice(s: Story, price: str) -> tuple[str, str]:
    """A purchase through Checkout for which Checkout made an invoice: (session, invoice)."""
    s.customer()
    sub = s.subscribe(0, Sold(price, 1500, once=True))
    invoice = s.latest[sub.first.invoice]
    s.forget(sub.id, invoice.id)
    lines = tuple(msgspec.structs.replace(line, subscription=None) for line in invoice.lines)
    s.tell(msgspec.structs.replace(invoice, subscription=None, billing_reason="manual", lines=lines))
    session = s.session(0, charge=sub.charge)
    s.change(session, invoice=InvoiceId(invoice.id))
    return session, invoice.id


def test_a_pack_whose_price_alone_tells_its_credits_is_granted_also_where_checkout_made_an_invoice() -> None:
    s = Story()
    session, invoice = bought_with_an_invoice(s, "price_77")
    assert s.credits().wanted == {("session_lines", session)}
    s.read_lines(session, 5, SessionLine(id="li_1", price=PriceId("price_77"), credits=77))
    told = s.credits()
    assert {lot: given.credits for lot, given in told.lots.items()} == {f"purchased:{invoice}:il_{invoice}_0": 77}
    assert not told.wanted


def test_a_pack_that_the_policy_file_knows_asks_nothing_of_stripe() -> None:
    s = Story()
    _, invoice = bought_with_an_invoice(s, "price_pack_100")
    told = s.credits()
    assert {lot: given.credits for lot, given in told.lots.items()} == {f"purchased:{invoice}:il_{invoice}_0": 100}
    assert not told.wanted


def test_a_lot_is_never_more_than_the_ledger_can_count() -> None:
    s = Story()
    s.customer()
    s.price_says(s.subscribe(0, Sold(quantity=2**48 - 1)), ("price_basic", 10**9, None, 0))
    assert [lot.credits for lot in s.credits().lots.values()] == [10**15]
