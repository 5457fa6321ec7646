"""What must hold for every history, whatever the order in which it was told (promises 2 and 3)."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.customer import Charge, CustomerFile, Fact, Invoice, at
from handlers.decisions import Acted, ActionKind, Decision, Judgement, Verdict
from handlers.duplicates import judge
from handlers.terms import Policy
from tests.handlers.history import DAY, HOUR, MINUTE, MONTH, POLICY, RECOVERING, REVERSING, Bought, History, Sold
from tests.handlers.history import T0 as EPOCH

NOW = at(EPOCH + 200 * DAY)
PACK = Sold("price_pack_100", 1500, once=True)
METADATA: list[dict[str, str]] = [
    *(
        {},
        {},
        {},
        {},
        {},
        {},
        {"user_id": "u1"},
        {"user_id": "u1"},
        {"user_id": "u1"},
        {"user_id": "u2"},
        {"workspace_id": "w1"},
    ),
    *({"order_id": "o1"}, {"colour": "red"}, {"request_id": "r"}),
]
WHEN = [0, 4, 4, 9, 9, 14 * MINUTE, 16 * MINUTE, 3 * HOUR, 5 * DAY, MONTH, MONTH + 5]
STATUSES = ["needs_response", "warning_closed", "won", "lost", "prevented", "something_new"]


@st.composite
def histories(draw: st.DrawFn) -> History:
    """A random life of one person: purchases, renewals, copies, refunds, disputes, under one or two customers."""
    h = History()
    pick = random.Random(draw(st.integers(0, 2**32)))
    h.customer("cus_A", **_named(pick))
    subs = [_subscribe(h, pick) for _ in range(draw(st.integers(1, 3)))]
    subs += [_click_again(h, pick, pick.choice(subs)) for _ in range(draw(st.integers(0, 3)))]
    for _ in range(draw(st.integers(0, 9))):
        _something(h, pick, subs)
    return h


def _named(pick: random.Random) -> Any:
    return pick.choice(METADATA)


def _subscribe(h: History, pick: random.Random) -> Bought:
    items = [Sold(discount=pick.choice([0, 0, 0, 400]), tax=pick.choice([0, 0, 551]))]
    if pick.random() < 0.2:
        items.append(Sold("price_seats", 500, quantity=pick.choice([1, 2])))
    if pick.random() < 0.15:
        items = [Sold("price_pro", 5900, product="prod_price_basic")]
    return h.subscribe(
        pick.choice(WHEN),
        *items,
        customer=pick.choice(["cus_A", "cus_A", "cus_B"]),
        metadata=pick.choice(METADATA),
        extra=(PACK,) if pick.random() < 0.2 else (),
        currency=pick.choice(["usd", "usd", "usd", "eur"]),
        method=pick.choice(["card"] * 9 + ["sepa_debit"]),
        card=pick.choice([None, "fp"]),
        balance=pick.choice([0, 0, 0, 100]),
    )


def _click_again(h: History, pick: random.Random, sub: Bought) -> Bought:
    known = h.latest[sub.id]
    return h.subscribe(
        known.created - EPOCH + pick.choice([0, 3, 14 * MINUTE, 16 * MINUTE]),
        *sub.items,
        customer=pick.choice([sub.customer] * 4 + ["cus_B"]),
        metadata=known.metadata,
        currency=sub.currency,
        extra=(PACK,) if pick.random() < 0.3 else (),
    )


def _something(h: History, pick: random.Random, subs: list[Bought]) -> None:
    sub = pick.choice(subs)
    charge = pick.choice([f.id for f in h.tellings if isinstance(f, Charge)])
    when = pick.choice([HOUR, DAY, MONTH + DAY])
    match pick.choice(
        ["renew", "renew", "again", "again", "invoice", "bare", "bare", "refund", "refund", "dispute", "balance", "end"]
    ):
        case "renew":
            h.renew(sub, paid_when=sub.invoices[-1].end + pick.choice([0, 0, 8 * DAY]), attempts=pick.choice([1, 3]))
        case "again":
            h.pay_again(pick.choice(sub.invoices), when, pick.choice([None, None, 500]))
        case "invoice":
            last = sub.invoices[-1]
            h.bill(
                sub,
                last.start,
                *sub.items,
                reason=pick.choice(["subscription_cycle", "manual"]),
                paid_when=last.start + HOUR,
            )
        case "bare":
            for n in range(pick.choice([1, 2, 3])):
                h.bare(when + n * 90, customer=sub.customer, **pick.choice([_named(pick), {"order_id": "o1"}]))
        case "refund":
            h.refund(
                charge,
                when,
                pick.choice([None, 700]),
                status=pick.choice(["succeeded", "succeeded", "failed"]),
                figure=pick.random() < 0.5,
            )
        case "dispute":
            h.dispute(charge, pick.choice(STATUSES), when, pick.choice([None, 600]))
        case "balance":
            rows: list[tuple[str, int, str | None]] = (
                [("invoice_overpaid", -2900, sub.first.invoice)] if pick.random() < 0.3 else []
            )
            h.balance_read(pick.choice([10, 90 * DAY]), *rows, customer=sub.customer)
        case "end":
            pick.choice([h.end, h.schedule_end])(sub, when)


policies = st.sampled_from([POLICY, REVERSING, RECOVERING])


def _refunds(judged: Judgement) -> list[Decision]:
    return [d for d in judged.decisions.values() if d.verdict is Verdict.REFUND]


@given(histories(), policies, st.randoms(use_true_random=False))
@settings(max_examples=250, deadline=None)
def test_any_order_repetition_and_partition_of_the_telling_gives_the_same_judgement(
    h: History, policy: Policy, chance: random.Random
) -> None:
    expected = judge(CustomerFile(h.tellings), policy, NOW)
    told = [*h.tellings, *chance.choices(h.tellings, k=5)]
    chance.shuffle(told)
    cut = chance.randrange(len(told) + 1)
    parts = [CustomerFile(told[:cut]), CustomerFile(told[cut:])]
    chance.shuffle(parts)
    again = judge(CustomerFile(told), policy, NOW)
    in_parts = judge(CustomerFile([fact for part in parts for fact in _all(part)]), policy, NOW)
    assert again == expected
    assert in_parts == expected
    assert {s: d.fingerprint() for s, d in again.decisions.items()} == {
        s: d.fingerprint() for s, d in expected.decisions.items()
    }


def _all(file: CustomerFile) -> list[Fact]:
    return [fact for name in file.__slots__ for fact in getattr(file, name).values()]


@given(histories(), policies)
@settings(max_examples=250, deadline=None)
def test_a_refund_rests_on_an_original_that_stands_and_takes_at_most_the_repeated_part(
    h: History, policy: Policy
) -> None:
    judged = judge(h.file(), policy, NOW)
    refunded = {d.subject for d in _refunds(judged)}
    for decision in _refunds(judged):
        assert decision.original is not None
        assert decision.original not in refunded
        assert _left(h, decision.original) > 0
        assert not _open_dispute(h, decision.original)
        assert not _open_dispute(h, decision.subject)
        assert decision.amount is not None
        assert 0 < decision.amount.minor <= _left(h, decision.subject)
        assert decision.amount.currency == h.latest[decision.subject].currency
        if decision.rule in ("D3", "D4", "D5", "D8"):
            assert decision.amount.minor <= _recurring(h, decision.subject)
    for invoice, charges in _paying(h).items():
        kept = sum(_left(h, c) - _amount(judged, c) for c in charges)
        if any(judged.decisions[c].rule == "D1" for c in charges if c in refunded):
            assert kept >= h.latest[invoice].amount_due_minor, "never less than what was due stays"


@given(histories())
@settings(max_examples=150, deadline=None)
def test_every_action_of_a_decision_has_a_sound_amount(h: History) -> None:
    judged = judge(h.file(), POLICY, NOW)
    prepared: dict[str, int] = defaultdict(int)
    for decision in judged.decisions.values():
        for step in decision.prepared:
            assert step.amount is None or step.amount.minor > 0
            if step.kind is ActionKind.REFUND and step.amount:
                prepared[step.subject] += step.amount.minor
        assert (decision.due_at is not None) == bool(decision.prepared)
        assert decision.verdict is not Verdict.REFUND or decision.prepared
    for charge, minor in prepared.items():
        assert minor <= _left(h, charge), "one charge is never prepared twice"


@given(histories(), policies, st.booleans())
@settings(max_examples=200, deadline=None)
def test_what_was_begun_is_never_decided_again_and_its_original_never_goes_back(
    h: History, policy: Policy, told: bool
) -> None:
    begun: dict[str, str] = {}
    for _ in range(4):
        acted = [Acted(kind=ActionKind.REFUND, subject=subject, state="sent") for subject in begun]
        fresh = _refunds(judge(h.file(), policy, NOW, acted=acted))
        for decision in fresh:
            assert decision.subject not in begun
            assert decision.subject not in begun.values(), "an original was given back"
            assert decision.original not in begun
        for decision in fresh:
            begun[decision.subject] = str(decision.original)
            if told and decision.amount:
                h.refund(decision.subject, 100 * DAY, decision.amount.minor, action=f"act_{decision.subject}")
        if not fresh:
            return
    raise AssertionError("the judgement never comes to rest")


@given(histories(), st.randoms(use_true_random=False), policies)
@settings(max_examples=250, deadline=None)
def test_a_part_of_the_facts_never_crashes_and_never_refunds_without_a_standing_original(
    h: History, chance: random.Random, policy: Policy
) -> None:
    ids = sorted(h.latest)
    missing = set(chance.sample(ids, chance.randrange(len(ids) + 1)))
    known = [fact for fact in h.tellings if fact.id not in missing]
    judged = judge(CustomerFile(known), policy, NOW)
    for decision in _refunds(judged):
        assert decision.original not in {None, *missing}
        assert decision.original not in {d.subject for d in _refunds(judged)}


# an oracle of its own: what the facts say, without the code under test ------------------------------------------------------


def _left(h: History, charge: str) -> int:
    known: Any = CustomerFile(h.tellings).charges[charge]
    file = CustomerFile(h.tellings)
    live = sum(r.amount_minor for r in file.refunds.values() if r.charge == charge and r.status == "succeeded")
    taken = sum(
        d.amount_minor for d in file.disputes.values() if d.charge == charge and d.status in ("lost", "prevented")
    )
    return int(max(known.captured_minor - live - taken, 0))


def _open_dispute(h: History, charge: str) -> bool:
    closed = ("won", "lost", "prevented", "warning_closed")
    return any(d.charge == charge and d.status not in closed for d in CustomerFile(h.tellings).disputes.values())


def _paying(h: History) -> dict[str, list[str]]:
    file = CustomerFile(h.tellings)
    found: dict[str, list[str]] = defaultdict(list)
    by_intent = {c.payment_intent: c for c in file.charges.values() if c.status == "succeeded"}
    for row in file.invoice_payments.values():
        found[row.invoice].append(by_intent[row.payment_intent].id)
    return found


def _recurring(h: History, charge: str) -> int:
    invoice: Invoice = h.latest[next(i for i, charges in _paying(h).items() if charge in charges)]
    return sum(line.net_minor for line in invoice.lines if line.invoice_item is None)


def _amount(judged: Judgement, charge: str) -> int:
    decision = judged.decisions.get(charge)
    return decision.amount.minor if decision and decision.amount and decision.verdict is Verdict.REFUND else 0
