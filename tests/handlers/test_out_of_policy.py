"""Clauses 2 and 6: what a refund that somebody made at Stripe was, row by row: within 4.3, in doubt, or against the policy."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from random import Random

import msgspec
import pytest

from handlers.account import Severity
from handlers.customer import CustomerFile, Fact, Refund, at
from handlers.decisions import Acted, Verdict
from handlers.out_of_policy import ByHand, refunds_by_hand
from handlers.terms import Policy
from tests.handlers.history import DAY, HOUR, MINUTE, MONTH, POLICY, T0, Bought, History, Sold, policy_with
from tests.handlers.verdicts import begun

NOW = at(T0 + 400 * DAY)
PACK = Sold(price="price_pack_100", amount=1000, once=True)


def _ours(refund: Refund) -> bool:
    return refund.action is not None


def by_hand(
    h: History,
    *,
    policy: Policy = POLICY,
    acted: tuple[Acted, ...] = (),
    now: datetime = NOW,
    test_clocks: bool = False,
    facts: list[Fact] | None = None,
) -> ByHand:
    file = CustomerFile(h.tellings if facts is None else facts)
    return refunds_by_hand(file, policy, now, _ours, acted=acted, test_clocks=test_clocks)


def bought_twice(h: History) -> tuple[Bought, Bought]:
    """D3: ch_0001 is the original, ch_0002 its copy, 40 seconds later."""
    return h.subscribe(0), h.subscribe(40)


Row = tuple[str, Callable[[History], object], dict[str, tuple[str, str, str | None]], set[str]]
"""What it is called, the story, by refund (verdict, clause, amount), and the charges given back as duplicates."""

WITHIN = ("none", "4.3", None)
AGAINST = ("deny", "2, 6", "29.00 USD")


def _plain(h: History) -> None:
    h.refund(h.subscribe().charge, DAY)


def _part(h: History) -> None:
    h.refund(h.subscribe().charge, DAY, 500)


def _pack(h: History) -> None:
    h.refund(h.bare(0, 1000), DAY)


def _pending(h: History) -> None:
    h.refund(h.subscribe().charge, DAY, status="pending")


def _failed(h: History) -> None:
    h.refund(h.subscribe().charge, DAY, status="failed")
    h.refund(h.subscribe(2 * MONTH).charge, 2 * MONTH + DAY, status="canceled")


def _lapsed(h: History) -> None:
    charge = h.bare(0)
    h.change(charge, captured=False, captured_minor=0)
    h.change(h.refund(charge, 7 * DAY, 2900, figure=False), reason="expired_uncaptured_charge")


def _captured_in_part(h: History) -> None:
    charge = h.bare(0)
    h.change(charge, captured_minor=2000)
    h.change(h.refund(charge, 7 * DAY, 900, figure=False), reason="expired_uncaptured_charge")


def _too_much_twice(h: History) -> None:
    h.subscribe(0)
    copy = h.subscribe(40, extra=(PACK,))
    h.refund(copy.charge, HOUR, 3400)
    h.refund(copy.charge, 2 * HOUR, 500)


def _copy_partly_lost(h: History) -> None:
    original, copy = bought_twice(h)
    h.dispute(copy.charge, "lost", DAY, 1000)
    h.refund(original.charge, 2 * DAY)


def _prevented(h: History) -> None:
    charge = h.subscribe().charge
    h.dispute(charge, "prevented", DAY)
    h.refund(charge, DAY)


def _before_dispute(h: History) -> None:
    charge = h.subscribe().charge
    h.refund(charge, DAY, 1000)
    h.dispute(charge, "prevented", 2 * DAY)


def _unknown_charge(h: History) -> None:
    sub = h.subscribe()
    h.refund(sub.charge, DAY)
    h.forget(sub.charge)


def _by_intent(h: History) -> None:
    sub = h.subscribe()
    id_ = h.refund(sub.charge, DAY)
    h.forget(id_)
    refund = Refund(
        id=id_,
        as_of=T0 + DAY,
        payment_intent=h.latest[sub.charge].payment_intent,
        amount_minor=2900,
        currency="usd",
        status="succeeded",
        created=T0 + DAY,
    )
    h.tell(refund)


def _ours_of_copy(h: History) -> None:
    _, copy = bought_twice(h)
    h.refund(copy.charge, HOUR, action="act_1")


def _copy(h: History) -> None:
    _, copy = bought_twice(h)
    h.refund(copy.charge, HOUR)


def _copy_and_cancelled(h: History) -> None:
    _, copy = bought_twice(h)
    h.end(copy, HOUR - 1)
    h.refund(copy.charge, HOUR)


def _copy_then_life_goes_on(h: History) -> None:
    original, copy = bought_twice(h)
    h.refund(copy.charge, HOUR)
    h.end(copy, HOUR + 5)
    for _ in range(3):
        h.renew(original)
    item = h.latest[original.id].items[0]
    h.change(original.id, when=2 * MONTH, items=(msgspec.structs.replace(item, price="price_pro", quantity=3),))
    h.schedule_end(original, 3 * MONTH)
    h.end(original, 4 * MONTH)
    h.dispute(original.charge, "lost", 5 * MONTH)


def _copy_renewed(h: History) -> None:
    original, copy = bought_twice(h)
    h.refund(copy.charge, HOUR)
    h.renew(original)
    h.renew(copy)


def _copy_in_parts(h: History) -> None:
    _, copy = bought_twice(h)
    h.refund(copy.charge, HOUR, 1000)
    h.refund(copy.charge, 2 * HOUR, 1900)


def _copy_in_part(h: History) -> None:
    _, copy = bought_twice(h)
    h.refund(copy.charge, HOUR, 1000)


def _copy_with_pack(h: History) -> None:
    h.subscribe(0)
    h.refund(h.subscribe(40, extra=(PACK,)).charge, HOUR)


def _copy_with_pack_in_parts(h: History) -> None:
    h.subscribe(0)
    copy = h.subscribe(40, extra=(PACK,))
    h.refund(copy.charge, HOUR, 2900)
    h.refund(copy.charge, 2 * HOUR, 1000)


def _original_instead(h: History) -> None:
    original, _ = bought_twice(h)
    h.refund(original.charge, HOUR)


def _original_and_cancelled(h: History) -> None:
    original, _ = bought_twice(h)
    h.end(original, HOUR - 30)
    h.refund(original.charge, HOUR)


def _both(h: History) -> None:
    original, copy = bought_twice(h)
    h.refund(copy.charge, HOUR)
    h.refund(original.charge, 2 * HOUR)


def _both_in_one_second(h: History) -> None:
    original, copy = bought_twice(h)
    h.refund(copy.charge, HOUR)
    h.refund(original.charge, HOUR)


def _original_after_ours(h: History) -> None:
    original, copy = bought_twice(h)
    h.refund(copy.charge, HOUR, action="act_1")
    h.refund(original.charge, 2 * HOUR)


def _rest_after_ours(h: History) -> None:
    h.subscribe(0)
    copy = h.subscribe(40, extra=(PACK,))
    h.refund(copy.charge, HOUR, 2900, action="act_1")
    h.refund(copy.charge, 2 * HOUR, 1000)


def _bought_again_after(h: History) -> None:
    first = h.subscribe(0)
    h.refund(first.charge, 5 * MINUTE)
    h.subscribe(10 * MINUTE)


def _ended_and_bought_again(h: History) -> None:
    first = h.subscribe(0)
    h.end(first, 4 * MINUTE)
    h.subscribe(10 * MINUTE)
    h.refund(first.charge, HOUR)


def _paid_twice(h: History) -> None:
    h.refund(h.pay_again(h.subscribe().first, 40), HOUR)
    h.balance_read(60)


def _paid_twice_first(h: History) -> None:
    sub = h.subscribe()
    h.pay_again(sub.first, 40)
    h.balance_read(60)
    h.refund(sub.charge, HOUR)


def _by_credit_note(h: History) -> None:
    _, copy = bought_twice(h)
    h.refund(copy.charge, HOUR)
    h.change(copy.first.invoice, when=HOUR, credit_notes_minor=2900)


def _outside_the_window(h: History) -> None:
    h.subscribe(0)
    h.refund(h.subscribe(3 * HOUR).charge, DAY)


def _renewal_listed_late(h: History) -> None:
    original, copy = bought_twice(h)
    h.renew(original)
    h.refund(h.renew(copy).charge, MONTH + DAY)


def _workspaces(h: History) -> None:
    h.subscribe(0, metadata={"workspace_id": "a"})
    h.refund(h.subscribe(40, metadata={"workspace_id": "b"}).charge, HOUR)


ROWS: list[Row] = [
    ("a subscription's only payment: all sales are final", _plain, {"re_0001": AGAINST}, set()),
    ("a part of it is no better", _part, {"re_0001": ("deny", "2, 6", "5.00 USD")}, set()),
    ("a credit pack", _pack, {"re_0001": ("deny", "2, 6", "10.00 USD")}, set()),
    ("a refund that is still pending counts", _pending, {"re_0001": AGAINST}, set()),
    ("a refund known only by its payment intent", _by_intent, {"re_0001": AGAINST}, set()),
    ("failed and canceled refunds gave nothing back", _failed, {}, set()),
    ("an authorisation that lapsed was never money", _lapsed, {}, set()),
    ("the rest of an authorisation that was captured in part", _captured_in_part, {}, set()),
    ("more than the copy, twice", _too_much_twice, {"re_0001": ("deny", "2, 6", "5.00 USD"), "re_0002": ("deny", "2, 6", "5.00 USD")}, {"ch_0002"}),
    ("the original, after a dispute took a part of its copy: in doubt", _copy_partly_lost, {"re_0001": ("review", "4.3", "29.00 USD")}, set()),
    ("what the network gave back to prevent a chargeback", _prevented, {}, set()),
    ("another refund of a charge whose chargeback was prevented", _before_dispute, {"re_0001": ("deny", "2, 6", "10.00 USD")}, set()),
    ("a refund whose charge is not known yet waits", _unknown_charge, {}, set()),
    ("our own refund of a copy", _ours_of_copy, {}, {"ch_0002"}),
    ("a true copy", _copy, {"re_0001": WITHIN}, {"ch_0002"}),
    ("a true copy whose subscription the person had ended first", _copy_and_cancelled, {"re_0001": WITHIN}, {"ch_0002"}),
    ("a true copy, whatever becomes of the original later", _copy_then_life_goes_on, {"re_0001": WITHIN}, {"ch_0002"}),
    ("a true copy that was left running and renewed", _copy_renewed, {"re_0001": WITHIN}, {"ch_0002"}),
    ("a true copy in two parts", _copy_in_parts, {"re_0001": WITHIN, "re_0002": WITHIN}, {"ch_0002"}),
    ("a part of a true copy: the rest is not back yet", _copy_in_part, {"re_0001": WITHIN}, set()),
    ("a true copy by a credit note, which stands in both books", _by_credit_note, {"re_0001": WITHIN}, {"ch_0002"}),
    ("a copy with a pack on it, all given back: the pack's part is too much", _copy_with_pack, {"re_0001": ("deny", "2, 6", "10.00 USD")}, {"ch_0002"}),
    ("the copy first, then the pack's part", _copy_with_pack_in_parts, {"re_0001": WITHIN, "re_0002": ("deny", "2, 6", "10.00 USD")}, {"ch_0002"}),
    ("the original instead of its copy: one of two", _original_instead, {"re_0001": WITHIN}, {"ch_0001"}),
    ("the original, its subscription ended with it", _original_and_cancelled, {"re_0001": WITHIN}, {"ch_0001"}),
    ("both: the second refund was of the last one standing", _both, {"re_0001": WITHIN, "re_0002": AGAINST}, {"ch_0002"}),
    ("both within one second: still only one of them is against the policy", _both_in_one_second, {"re_0001": WITHIN, "re_0002": AGAINST}, {"ch_0002"}),
    ("the original after our refund of the copy", _original_after_ours, {"re_0002": AGAINST}, {"ch_0002"}),
    ("the rest of a copy after our refund of its duplicate part", _rest_after_ours, {"re_0002": ("deny", "2, 6", "10.00 USD")}, {"ch_0002"}),
    ("given back before it was bought again: it had no copy then", _bought_again_after, {"re_0001": AGAINST}, set()),
    ("ended before it was bought again: no overlap, no copy", _ended_and_bought_again, {"re_0001": AGAINST}, set()),
    ("one invoice paid twice, the later payment", _paid_twice, {"re_0001": WITHIN}, {"ch_0002"}),
    ("one invoice paid twice, the earlier payment", _paid_twice_first, {"re_0001": WITHIN}, {"ch_0001"}),
    ("bought again hours later: in doubt", _outside_the_window, {"re_0001": ("review", "4.3", "29.00 USD")}, set()),
    ("a renewal of a copy found late: it was listed with the first, in doubt", _renewal_listed_late, {"re_0001": ("review", "4.3", "29.00 USD")}, set()),
    ("two workspaces: bought on purpose", _workspaces, {"re_0001": AGAINST}, set()),
]  # fmt: skip


@pytest.mark.parametrize(("story", "expected", "returned"), [pytest.param(*row[1:], id=row[0]) for row in ROWS])
def test_what_a_refund_by_hand_was(
    story: Callable[[History], object], expected: dict[str, tuple[str, str, str | None]], returned: set[str]
) -> None:
    h = History()
    story(h)
    found = by_hand(h)
    told = {id_: (str(d.verdict), d.clause, str(d.amount) if d.amount else None) for id_, d in found.decisions.items()}
    assert told == expected, [d.reason for d in found.decisions.values()]
    assert found.returned == returned
    assert {a.subject: a.severity for a in found.alerts.values()} == {
        id_: Severity.CRITICAL if row[0] == "deny" else Severity.WARNING
        for id_, row in expected.items()
        if row[0] in ("deny", "review")
    }
    assert all(a.cause == f"{a.kind}:{a.subject}" for a in found.alerts.values())


@pytest.mark.parametrize("story", [pytest.param(row[1], id=row[0]) for row in ROWS])
def test_any_order_and_repetition_of_tellings_gives_the_same_answer(story: Callable[[History], object]) -> None:
    h = History()
    story(h)
    first = by_hand(h)
    for seed in range(4):
        chance = Random(seed)
        facts = [*h.tellings, *chance.choices(h.tellings, k=3)]
        chance.shuffle(facts)
        assert by_hand(h, facts=facts) == first


@pytest.mark.parametrize("story", [pytest.param(row[1], id=row[0]) for row in ROWS])
def test_time_alone_does_not_change_what_a_refund_was(story: Callable[[History], object]) -> None:
    h = History()
    story(h)
    assert by_hand(h, now=at(T0 + 900 * DAY)) == by_hand(h)


def test_the_charges_own_figure_may_be_told_before_or_after_the_refund() -> None:
    for figure in (True, False):
        h = History()
        _, copy = bought_twice(h)
        h.refund(copy.charge, HOUR, figure=figure)
        assert by_hand(h).decisions["re_0001"].verdict is Verdict.NONE


def test_the_sentences_name_charge_amount_and_moment_and_nobody_else() -> None:
    h = History()
    _plain(h)
    found = by_hand(h)
    decision, alert = found.decisions["re_0001"], found.alerts["out_of_policy_refund:re_0001"]
    for sentence in (decision.reason, alert.sentence):
        assert "29.00 USD of ch_0001" in sentence
        assert "2026-01-02T00:00:00Z" in sentence
        assert "made at Stripe, not by finalsale" in sentence
    assert decision.rule == "out_of_policy_refund"
    assert decision.duplicate == "ch_0001"


def test_a_refund_within_the_policy_names_both_payments_and_what_the_rule_said() -> None:
    h = History()
    _original_instead(h)
    decision = by_hand(h).decisions["re_0001"]
    assert (decision.rule, decision.original, decision.duplicate) == ("refunded_by_hand", "ch_0002", "ch_0001")
    assert any(e.original == "D3" for e in decision.evidence)


def test_a_refund_in_doubt_names_the_payment_it_may_be_a_copy_of() -> None:
    h = History()
    _outside_the_window(h)
    decision = by_hand(h).decisions["re_0001"]
    assert (decision.rule, decision.original, decision.duplicate) == ("refunded_by_hand", "ch_0001", "ch_0002")
    assert "beside ch_0001 was in doubt" in decision.reason


def test_a_refund_of_the_original_after_our_refund_of_the_copy_was_begun_is_against_the_policy() -> None:
    h = History()
    original, copy = bought_twice(h)
    h.refund(original.charge, HOUR)
    assert by_hand(h).decisions["re_0001"].verdict is Verdict.NONE
    assert by_hand(h, acted=begun(copy.charge)).decisions["re_0001"].verdict is Verdict.DENY


def test_an_action_of_ours_on_the_same_charge_does_not_hide_that_it_was_a_copy() -> None:
    h = History()
    _copy(h)
    assert by_hand(h, acted=begun("ch_0002")).decisions["re_0001"].verdict is Verdict.NONE


def test_the_policy_version_is_the_one_in_force_when_it_was_paid() -> None:
    later = '\n[[version]]\nid = "2026-02"\nin_force_from = 2026-02-01T00:00:00Z\n'
    h = History()
    h.refund(h.subscribe().charge, 2 * MONTH)
    h.refund(h.subscribe(2 * MONTH).charge, 3 * MONTH)
    found = by_hand(h, policy=policy_with(agreement=later))
    assert [d.policy_version for d in found.decisions.values()] == [POLICY.version[0].id, "2026-02"]


def test_an_agreement_that_excludes_duplicates_leaves_no_clause_for_the_refund() -> None:
    agreed = (
        '\n[[agreement]]\ncustomer = "cus_A"\nsource = "MSA, section 9"\nfrom = 2025-01-01T00:00:00Z\n'
        'overrides = { duplicates = "none" }\n'
    )
    h = History()
    _copy(h)
    assert by_hand(h, policy=policy_with(agreement=agreed)).decisions["re_0001"].verdict is Verdict.DENY


def test_rehearsals_on_a_test_clock_are_left_alone_unless_they_count() -> None:
    h = History()
    h.customer(test_clock=True)
    _plain(h)
    assert by_hand(h).decisions == {}
    assert by_hand(h, test_clocks=True).decisions["re_0001"].verdict is Verdict.DENY


def test_a_balance_that_was_never_read_is_asked_for() -> None:
    h = History()
    h.refund(h.pay_again(h.subscribe().first, 40), HOUR)
    found = by_hand(h)
    assert found.decisions["re_0001"].verdict is Verdict.REVIEW
    assert found.wanted == {("balance", "cus_A")}


def test_without_a_refund_by_hand_nothing_is_judged() -> None:
    h = History()
    bought_twice(h)
    assert by_hand(h) == ByHand()


def test_a_refund_is_ours_only_by_the_charge_it_came_from_also_where_it_names_the_payment_intent_alone() -> None:
    """Metadata that somebody copied, or made up, excuses nothing."""
    h = History()
    h.customer()
    h.subscribe()
    told: Refund = h.latest[h.refund("ch_0001", DAY, action="act_of_another_charge")]
    h.forget(told.id)
    h.tell(msgspec.structs.replace(told, charge=None, payment_intent=h.latest["ch_0001"].payment_intent))

    def made_for_another(refund: Refund) -> bool:
        return refund.charge != "ch_0001"

    found = refunds_by_hand(h.file(), POLICY, NOW, made_for_another, acted=(), test_clocks=False)
    assert [d.verdict for d in found.decisions.values()] == [Verdict.DENY]
    assert found.returned == frozenset()


def test_a_prevented_chargeback_excuses_one_refund_not_every_one_of_its_amount() -> None:
    h = History()
    h.customer()
    h.subscribe()
    h.dispute("ch_0001", "prevented", DAY, 1000)
    h.refund("ch_0001", DAY + 5, 1000)
    h.refund("ch_0001", 3 * DAY, 1000)
    found = by_hand(h)
    assert {id_: d.verdict for id_, d in found.decisions.items()} == {"re_0002": Verdict.DENY}
