"""What must hold for every customer's credits: books that close, no balance below zero, and no matter in which order facts came."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.account import Entry, EntryKind, Lot, LotBalance, LotKind
from handlers.credits import lots_of
from handlers.customer import ChargeId, CustomerFile, Fact, Refund, at
from handlers.ledger import postings
from tests.handlers.history import DAY, T0, Bought, Sold
from tests.handlers.test_credits import CUSTOMER, PACK, Story

KINDS = [LotKind.TRIAL, LotKind.INCLUDED, LotKind.SERVICE, LotKind.PURCHASED]
LAST = T0 + 120 * DAY


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """A random life: trials extended, cancelled and converted, payments, ends, refunds, packs, service credits, outages."""
    story, pick = Story(), random.Random(draw(st.integers(0, 2**32)))
    subs: list[Bought] = []
    trials: list[str] = []
    for _ in range(draw(st.integers(1, 14))):
        _something(story, pick, subs, trials)
    return story


def _something(s: Story, pick: random.Random, subs: list[Bought], trials: list[str]) -> None:
    when, choice = pick.randrange(0, 60) * DAY, pick.randrange(12)
    if choice <= 1 or (not subs and not trials):
        items = pick.choice([(Sold(),), (Sold(quantity=2),), (Sold(), Sold("price_pro", 5900))])
        extra = (PACK,) if pick.random() < 0.3 else ()
        subs.append(s.subscribe(when, *items, extra=extra, off_stripe=pick.choice([0, 0, 0, 2900])))
    elif choice <= 3:
        trials.append(s.trial(pick.choice([3, 7, 14]), when))
    elif choice == 4:
        _, charge = s.checkout(when, payment=pick.choice(["paid", "paid", "unpaid"]))
        if pick.random() < 0.3:
            s.give_back(charge, when + DAY)
    elif choice == 5:
        s.grant(when, pick.randrange(1, 90), until=pick.choice([None, when + 9 * DAY]))
    elif choice == 6:
        s.outage(when, when + pick.randrange(1, 5 * DAY), *pick.choice([(), ("price_pro",)]))
    elif choice <= 8 and trials:
        _trial_goes_on(s, pick, pick.choice(trials), when)
    elif subs:
        _subscription_goes_on(s, pick, pick.choice(subs), when)


def _trial_goes_on(s: Story, pick: random.Random, trial: str, when: int) -> None:
    match pick.choice(["extended", "shortened", "converted", "cancelled", "again", "paused"]):
        case "extended":
            s.retell_trial(trial, when, when + 20 * DAY)
        case "shortened":
            s.retell_trial(trial, when, when, status="active")
        case "converted":
            s.change(trial, when=when, status="active")
        case "cancelled":
            s.change(trial, when=when, status="canceled", ended_at=T0 + when)
        case "again":
            s.second_trial(trial, when, 5)
        case _:
            s.change(trial, when=when, status="paused")


def _subscription_goes_on(s: Story, pick: random.Random, sub: Bought, when: int) -> None:
    charge = sub.invoices[-1].charge
    match pick.choice(["renewed", "ended", "scheduled", "unpaid", "back", "failed", "twice", "by hand", "disputed"]):
        case "renewed":
            s.renew(sub)
        case "ended":
            s.end(sub, when)
        case "scheduled":
            s.schedule_end(sub, when)
        case "unpaid":
            s.change(sub.id, when=when, status="unpaid")
        case "back":
            s.give_back(charge, when)
        case "failed":
            s.change(charge, when=when, status="failed", captured=False)
        case "twice":
            s.give_back(s.pay_again(sub.invoices[-1], when), when + DAY)
        case "by hand":
            s.refund(charge, when)
        case _:
            s.dispute(charge, "lost", when)


class Ledger:
    """A model of the ledger: sums by lot, every entry, and consumption of what ends soonest first."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.sums: dict[str, LotBalance] = {}
        self.lots: dict[str, Lot] = {}
        self.entries: list[Entry] = []

    def learn(self, facts: Iterable[Fact], now: int) -> None:
        """Judge the facts known so far and post what follows; posting twice posts nothing."""
        known, story = list(facts), self.story
        told = {fact.charge for fact in known if isinstance(fact, Refund)}
        wanted = lots_of(
            CustomerFile(known),
            CUSTOMER,
            story.policy,
            at(now),
            story.acts,
            story.outages,
            frozenset(ChargeId(charge) for charge in story.returned if charge in told),
            test_clocks=False,
        ).lots
        self.post(postings(wanted, self.sums, now))
        self.lots |= wanted
        assert postings(wanted, self.sums, now) == []
        for id_, sums in self.sums.items():
            lot = wanted.get(id_)
            closed = {kind: getattr(sums, kind) for kind in ("expired", "forfeited", "taken_back")}
            allowed = "taken_back" if lot is None else str(lot.closing.kind) if lot.closing else ""
            assert all(amount == 0 for kind, amount in closed.items() if kind != allowed)
            assert sums.remaining == (0 if allowed else sums.granted - sums.consumed)
        assert all(id_ in self.sums for id_ in wanted)

    def post(self, entries: Iterable[Entry]) -> None:
        """Each posting keeps every sum and every balance at zero or above."""
        for entry in entries:
            assert entry.cause
            assert entry.clause
            assert entry.amount
            known = self.sums.get(entry.lot, LotBalance())
            sign = 1 if entry.kind is EntryKind.GRANTED else -1
            sums = msgspec.structs.replace(known, **{str(entry.kind): getattr(known, entry.kind) + sign * entry.amount})
            assert min(msgspec.structs.astuple(sums)) >= 0
            assert sums.remaining >= 0
            self.sums[entry.lot] = sums
            self.entries.append(entry)

    def consume(self, amount: int, now: int) -> None:
        """Up to so many credits: what ends soonest goes first."""
        open_ = [lot for lot in self.lots.values() if lot.ends_at is None or lot.ends_at > now]
        for lot in sorted(open_, key=lambda x: (x.ends_at or LAST * 2, KINDS.index(x.kind), x.granted_at, x.id)):
            part = min(amount, self.sums[lot.id].remaining)
            if part:
                what = Entry(
                    lot=lot.id,
                    kind=EntryKind.CONSUMED,
                    amount=-part,
                    effective_at=now,
                    clause=lot.clause,
                    cause="the app",
                )
                self.post([what])
            amount -= part

    def check(self) -> None:
        """The books close: the sums are the sums of the entries, and what was granted is all accounted for."""
        posted: Counter[tuple[str, str]] = Counter()
        for entry in self.entries:
            posted[entry.lot, str(entry.kind)] += entry.amount if entry.kind is EntryKind.GRANTED else -entry.amount
        for id_, sums in self.sums.items():
            assert msgspec.structs.asdict(sums) == {kind: posted[id_, kind] for kind in sums.__struct_fields__}
        assert sum(entry.amount for entry in self.entries) == sum(sums.remaining for sums in self.sums.values())


def _told(story: Story, pick: random.Random) -> list[Fact]:
    """Every fact in some order, some of them again."""
    facts = story.tellings + pick.choices(story.tellings, k=3)
    pick.shuffle(facts)
    return facts


@settings(max_examples=120, deadline=None)
@given(stories(), st.integers(0, 2**32))
def test_books_close_however_consumption_and_late_facts_interleave(story: Story, seed: int) -> None:
    pick, ledger, now = random.Random(seed), Ledger(story), T0
    facts = _told(story, pick)
    for n in range(len(facts)):
        ledger.consume(pick.choice([0, 0, 7, 60, 900]), now)
        if pick.random() < 0.6:
            now += pick.randrange(0, 6 * DAY)
            ledger.learn(facts[: n + 1], now)
    ledger.learn(facts, max(now, LAST))
    ledger.learn(facts, max(now, LAST) + DAY)
    ledger.check()


@settings(max_examples=120, deadline=None)
@given(stories(), st.integers(0, 2**32))
def test_without_consumption_every_order_of_learning_ends_in_the_same_sums(story: Story, seed: int) -> None:
    """Equal per lot and kind, wherever the lot is still wanted. Of a lot whose ground fell away nothing remains; whether
    it was granted before depends on what was learned first. Outages are left out: their grant is frozen at what was known."""
    story.outages = []
    pick, first, second = random.Random(seed), Ledger(story), Ledger(story)
    first.learn(story.tellings, LAST)
    facts, now = _told(story, pick), T0
    for n in range(len(facts)):
        now = min(LAST, now + pick.randrange(0, 6 * DAY))
        second.learn(facts[: n + 1], now)
    second.learn(facts, LAST)
    second.check()
    gone = second.sums.keys() - first.sums.keys()
    assert {id_: sums for id_, sums in second.sums.items() if id_ not in gone} == first.sums
    assert all(second.sums[id_].remaining == 0 for id_ in gone)


@settings(max_examples=120, deadline=None)
@given(stories(), st.integers(0, 2**32))
def test_the_lots_are_the_same_for_every_order_and_repetition(story: Story, seed: int) -> None:
    story.moment = LAST - T0
    before = story.credits()
    story.tellings = _told(story, random.Random(seed))
    random.Random(seed).shuffle(story.acts)
    random.Random(seed).shuffle(story.outages)
    assert story.credits() == before


@settings(max_examples=60, deadline=None)
@given(stories())
def test_in_the_end_no_trial_and_no_ended_subscription_holds_credits_and_packs_do(story: Story) -> None:
    """The state that a month without news leads to."""
    ledger = Ledger(story)
    ledger.learn(story.tellings, LAST)
    file = story.file()
    for id_, sums in ledger.sums.items():
        lot = ledger.lots[id_]
        if lot.kind is LotKind.TRIAL:
            assert sums.remaining == 0
            assert sums.expired == sums.granted
        elif lot.kind is LotKind.INCLUDED:
            over = file.subscriptions[file.invoices[id_.split(":")[1]].subscription or ""].ended_at is not None
            assert (sums.remaining == 0) is (over or sums.taken_back > 0)
        elif lot.kind is LotKind.PURCHASED:
            assert sums.forfeited == sums.expired == 0
