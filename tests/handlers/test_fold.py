"""Any order, any repetition: folding facts about one object always ends in the same fact."""

from __future__ import annotations

from functools import reduce
from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.customer import (
    BalanceRead,
    Charge,
    CheckoutSession,
    Customer,
    CustomerFile,
    Dispute,
    EarlyFraudWarning,
    Fact,
    Invoice,
    InvoicePayment,
    PaymentIntent,
    PriceCredits,
    Refund,
    SessionLine,
    SessionLines,
    Subscription,
    SubscriptionSchedule,
    Trial,
    fold,
)
from handlers.events import read_object
from tests.handlers import samples
from tests.handlers.samples import T0, wire

AMOUNTS = st.sampled_from([0, 1, 2900, 2**48 - 1])
TIMES = st.sampled_from([0, 1, T0])
LINK = st.none() | st.sampled_from(["x_1", "x_2", "x_3"])
METADATA = st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["", "1", "\x00"]), max_size=2)
STATUSES: dict[type[Fact], list[str]] = {
    Charge: ["pending", "failed", "succeeded"],
    PaymentIntent: ["processing", "requires_capture", "canceled", "succeeded"],
    Invoice: ["draft", "open", "paid", "void"],
    InvoicePayment: ["open", "canceled", "paid"],
    Subscription: ["incomplete", "trialing", "active", "past_due", "canceled"],
    Refund: ["pending", "succeeded", "failed"],
    Dispute: ["needs_response", "lost", "won", "prevented"],
    CheckoutSession: ["open", "complete"],
    SubscriptionSchedule: ["not_started", "active", "released", "completed"],
}
KINDS: list[type[Fact]] = [*STATUSES, Customer, EarlyFraudWarning, BalanceRead, SessionLines]

ITEMS = st.sampled_from([(), (("price_1", 1),), (("price_1", 2), ("price_2", 1))])
TRIALS = st.lists(
    st.builds(Trial, start=TIMES, end=TIMES, told_at=TIMES, items=ITEMS, items_at=TIMES),
    max_size=3,
    unique_by=lambda trial: trial.start,
).map(lambda trials: tuple(sorted(trials, key=lambda trial: trial.start)))
CREDITS = st.sampled_from([None, 0, 500])
PRICE_CREDITS = st.lists(
    st.builds(
        PriceCredits, price=st.just("price_1"), credits=CREDITS, trial_credits=CREDITS, since=st.sampled_from([0, T0])
    ),
    max_size=1,
).map(tuple)
LINES = st.sampled_from([(), (SessionLine(id="li_1"),), (SessionLine(id="li_1"), SessionLine(id="li_2", credits=9))])
GATHERED = {"trials": TRIALS, "price_credits": PRICE_CREDITS}


def values_of(kind: type[Fact], field: msgspec.structs.FieldInfo) -> st.SearchStrategy[Any]:
    """A few values for one field of a fact: few, so that ties are common."""
    name = field.encode_name
    if name in GATHERED:
        return GATHERED[name]
    if name == "lines" and kind is SessionLines:
        return LINES
    if name == "as_of":
        return st.sampled_from([T0, T0 + 1])
    if name == "status":
        return st.sampled_from([*STATUSES[kind], "of_the_future"])
    if name in kind.STICKY:
        return st.sampled_from(["x_1", "x_2"]) if field.required else LINK
    if "metadata" in name:
        return METADATA
    if name.endswith("_minor"):
        return AMOUNTS
    if name in ("created", "paid_at", "cancel_at", "ended_at", "trial_end", "ends_at"):
        return TIMES
    if field.type is bool:
        return st.booleans()
    if field.type is str and not field.required:
        return st.sampled_from(["", "paid", "b"])
    fixed = {
        "id": "id_1",
        "currency": "usd",
        "invoice": "in_1",
        "mode": "payment",
        "customer": "cus_1",
        "session": "cs_1",
    }
    return st.just(fixed[name]) if field.required else st.just(field.default)


def facts_of(kind: type[Fact]) -> st.SearchStrategy[Fact]:
    fields = {
        f.name: values_of(kind, f) for f in msgspec.structs.fields(kind) if f.default_factory is msgspec.NODEFAULT
    }
    return st.builds(kind, **fields)


# subscriptions gather trials and credits, so they come as often as all others together
THREE = st.sampled_from([*KINDS, *[Subscription] * len(KINDS)]).flatmap(lambda kind: st.tuples(*[facts_of(kind)] * 3))


@settings(max_examples=600, deadline=None)
@given(THREE)
def test_fold_is_commutative_associative_and_idempotent(facts: tuple[Fact, Fact, Fact]) -> None:
    a, b, c = facts
    assert fold(a, b) == fold(b, a)
    assert fold(fold(a, b), c) == fold(a, fold(b, c))
    assert fold(a, a) == a
    assert fold(fold(a, b), b) == fold(a, b) == fold(a, fold(a, b))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(KINDS).flatmap(lambda kind: st.lists(facts_of(kind), min_size=1, max_size=4)), st.randoms())
def test_every_order_with_every_repetition_ends_in_the_same_fact(facts: list[Fact], chance: Any) -> None:
    repeated = [*facts, *chance.choices(facts, k=3)]
    chance.shuffle(repeated)
    assert reduce(fold, repeated) == reduce(fold, facts)


@settings(max_examples=300, deadline=None)
@given(THREE)
def test_the_later_telling_wins_whatever_its_state(facts: tuple[Fact, Fact, Fact]) -> None:
    older, newer = (msgspec.structs.replace(fact, as_of=T0 + number) for number, fact in enumerate(facts[:2]))
    told = fold(older, newer)
    for field in set(newer.__struct_fields__) - {*newer.STICKY, *newer.GATHERED}:
        assert getattr(told, field) == getattr(newer, field)


@pytest.mark.parametrize("later", [0, 1])
def test_a_link_once_told_is_not_unset_by_the_other_shape(later: int) -> None:
    old = read_object(wire(samples.charge("old", invoice="in_1")), T0)
    new = read_object(wire(samples.charge()), T0 + later)
    for told in (fold(old, new), fold(new, old)):
        assert isinstance(told, Charge)
        assert told.invoice == "in_1"


def test_within_one_second_the_state_that_lies_later_in_life_wins() -> None:
    pending, done, returned = (
        read_object(wire(samples.refund(status=status)), T0) for status in ("pending", "succeeded", "failed")
    )
    for order in permutations([pending, done, returned]):
        assert reduce(fold, order) == returned


def test_a_trial_keeps_what_it_was_given_for_and_learns_its_last_end() -> None:
    """Extended, then shortened; the items changed meanwhile; a second trial later; a telling that knows of none."""
    first, second = T0, T0 + 500
    tellings = [
        told_trial(T0 + 1, first, T0 + 100, quantity=2),
        told_trial(T0 + 2, first, T0 + 200, quantity=3),
        told_trial(T0 + 3, first, T0 + 150, quantity=3),
        told_trial(T0 + 4, None, None, quantity=3),
        told_trial(T0 + 5, second, T0 + 900, quantity=5),
    ]
    expected = (
        Trial(start=first, end=T0 + 150, told_at=T0 + 3, items=(("price_1", 2),), items_at=T0 + 1),
        Trial(start=second, end=T0 + 900, told_at=T0 + 5, items=(("price_1", 5),), items_at=T0 + 5),
    )
    for order in permutations([*tellings, tellings[1]]):
        told = reduce(fold, order)
        assert isinstance(told, Subscription)
        assert told.trials == expected


def told_trial(as_of: int, start: int | None, end: int | None, *, quantity: int) -> Fact:
    items = {"data": [samples.item(quantity=quantity)], "has_more": False}
    return read_object(wire(samples.subscription(trial_start=start, trial_end=end, items=items)), as_of)


def told_credits(as_of: int, **metadata: str) -> Fact:
    items = {"data": [samples.item(price=samples.price(metadata=metadata))], "has_more": False}
    return read_object(wire(samples.subscription(items=items)), as_of)


def test_what_a_price_ever_granted_is_kept_since_it_was_first_seen() -> None:
    tellings = [
        told_credits(T0, credits="500"),
        told_credits(T0 + 1, credits="500"),
        told_credits(T0 + 2, credits="700", trial_credits="50"),
        told_credits(T0 + 3),
    ]
    for order in permutations(tellings):
        told = reduce(fold, order)
        assert isinstance(told, Subscription)
        assert told.price_credits == (
            PriceCredits(price="price_1", credits=500, since=T0, seen=T0 + 1),
            PriceCredits(price="price_1", credits=700, trial_credits=50, since=T0 + 2),
        )


def test_a_file_is_the_same_in_any_order() -> None:
    facts = [
        read_object(wire(body), T0 + n) for n, body in enumerate([samples.invoice("old"), samples.invoice(), samples.charge(), samples.customer()])
    ]  # fmt: skip
    files = [CustomerFile(order) for order in permutations(facts)]
    assert all(file.invoices == files[0].invoices and file.charges == files[0].charges for file in files)
    assert files[0].invoices["in_1"].payment_intent == "pi_1"
