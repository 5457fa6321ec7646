"""Clause 5: what a request must say, and what the policy answers to it; a draft never promises more, and never tells a stranger anything."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from handlers.account import Access, Account, Hold, LotKind, Outage, Standing, Way
from handlers.cases import (
    CaseRequest,
    Evaluation,
    Granted,
    Known,
    Refunding,
    RequestInvalid,
    evaluate,
    read_request,
)
from handlers.customer import CustomerId, SubscriptionId, at
from handlers.decisions import Decision, Money, Verdict
from handlers.wire import email_hash
from tests.handlers.history import DAY, HOUR, MINUTE, MONTH, POLICY, T0, History, Sold, policy_with

NOW = at(T0 + 2 * DAY)
DUE = NOW + timedelta(hours=24)
EMAIL = "ada@example.com"
ADA = email_hash(EMAIL)


def a_request(**fields: Any) -> CaseRequest:
    told = {"email": EMAIL, "date": "2026-01-01", "description": "I was charged and want it back."}
    return read_request(told | fields)


def asked(request: CaseRequest, known: Known | None, policy: Any = POLICY) -> Evaluation:
    return evaluate(request, known, policy, NOW, case="case_1", due_at=DUE)


def known_of(history: History, customer: str = "cus_A", **more: Any) -> Known:
    decisions = history.judge().decisions
    return Known(customer=CustomerId(customer), file=history.file(), **{"decisions": decisions} | more)


def bought_twice() -> History:
    """D3: ch_0002 of 42 seconds later repeats ch_0001."""
    history = History()
    history.customer(email=ADA, user_id="u1")
    for when in (0, 42):
        history.subscribe(when, metadata={"user_id": "u1"})
    return history


def bought_once(**payment: Any) -> History:
    history = History()
    history.customer(email=ADA)
    history.subscribe(0, **payment)
    return history


def an_access(way: Way, until: int | None = T0 + MONTH, id_: str = "sub_0001") -> Access:
    return Access(subscription=SubscriptionId(id_), status="active", way=way, until=until, cause="It says so.")


# what a request must say (5.1) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", ""),
        ("email", "ada"),
        ("email", "ada@example"),
        ("email", "ada @example.com"),
        ("email", "Ada <ada@example.com>"),
        ("email", "ada@example..com"),
        ("email", "ada@example.com\n"),
        ("email", "a" * 250 + "@example.com"),
        ("email", None),
        ("date", "yesterday"),
        ("date", "2026-02-30"),
        ("date", "2026-1-1"),
        ("date", "2026-01-01T25:00:00Z"),
        ("date", "31.01.2026"),
        ("description", "too short"),
        ("description", " " * 20),
        ("description", "x" * 5001),
        ("description", "\ud800 and nine more"),
        ("transaction", "ch_"),
        ("transaction", "my payment"),
        ("transaction", "evt_1"),
        ("transaction", "ch_1; drop table"),
        ("customer", "cus A"),
        ("kind", "complaint"),
        ("request_key", ""),
        ("request_key", "a b"),
        ("request_key", "x" * 201),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_with_the_field_and_how_to_write_it(
    field: str, value: Any
) -> None:
    with pytest.raises(RequestInvalid) as refused:
        a_request(**{field: value})
    if value != "\ud800 and nine more":
        assert refused.value.field == field
        assert str(refused.value).startswith(f"{field}: ")


@pytest.mark.parametrize("field", ["email", "date", "description"])
def test_what_clause_5_1_asks_for_may_not_be_left_out(field: str) -> None:
    told = {"email": EMAIL, "date": "2026-01-01", "description": "I was charged and want it back."}
    del told[field]
    with pytest.raises(RequestInvalid, match=f"^{field}: "):
        read_request(json.dumps(told))


@pytest.mark.parametrize("told", [b"", b"[]", b"{", b'"x"', b"\xff", b"[" * 5000])
def test_what_is_no_json_object_is_refused_in_a_sentence(told: bytes) -> None:
    with pytest.raises(RequestInvalid):
        read_request(told)


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(RequestInvalid, match="unknown field 'charge'"):
        a_request(charge="ch_1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "ADA.Lovelace+x@sub.example.co.uk"),
        ("email", "jörg@bücher.example"),
        ("date", "2026-01-31T12:00:00+05:30"),
        ("date", "2026-01-31 12:00"),
        ("transaction", "pi_3Abc"),
        ("transaction", "1234-5678"),
        ("transaction", "cs_test_a1B2"),
        ("customer", "cus_1"),
        ("kind", "technical"),
        ("request_key", "7b1c-42"),
    ],
)
def test_what_people_really_write_is_accepted(field: str, value: str) -> None:
    assert getattr(a_request(**{field: value}), field) == value


def test_a_request_is_about_something_else_where_nothing_is_said() -> None:
    assert a_request().about == "other"


def test_a_date_without_zone_is_utc() -> None:
    assert a_request(date="2026-01-31T12:00:00+05:30").dated == datetime(2026, 1, 31, 6, 30, tzinfo=UTC)
    assert a_request(date="2026-01-31").dated == datetime(2026, 1, 31, tzinfo=UTC)


# whom it is about: nothing is told to a stranger -------------------------------------------------------------------------


def strangers() -> dict[str, tuple[CaseRequest, Known | None]]:
    twice = known_of(bought_twice())
    return {
        "unknown transaction": (a_request(kind="refund", transaction="ch_0002"), None),
        "unknown in a known file": (a_request(kind="refund", transaction="ch_0002"), known_of(bought_once())),
        "another e-mail": (a_request(kind="refund", transaction="ch_0002", email="eve@example.com"), twice),
        "another customer": (a_request(kind="refund", transaction="ch_0002", customer="cus_B"), twice),
    }


@pytest.mark.parametrize("name", list(strangers()))
def test_what_cannot_be_matched_is_asked_for_and_nothing_is_promised_or_told(name: str) -> None:
    request, known = strangers()[name]
    said = asked(request, known)
    assert (said.clause, said.verdict, said.payments) == ("5.1", Verdict.REVIEW, ())
    assert "USD" not in said.draft_answer
    assert "neither confirm nor promise" in said.draft_answer


def test_the_draft_to_a_stranger_is_the_same_whether_or_not_the_payment_exists() -> None:
    assert len({asked(*pair).draft_answer for pair in strangers().values()}) == 1


@pytest.mark.parametrize("kind", ["refund", "duplicate", "technical", "cancellation", "chargeback", "other"])
def test_another_e_mail_is_told_nothing_whatever_it_asks(kind: str) -> None:
    account = Account(customer=CustomerId("cus_A"), access=(an_access(Way.ENDING),))
    lots = (Granted(id="x", kind=LotKind.TRIAL, clause="3.3", granted=9, remaining=0, lapsed=9),)
    known = known_of(bought_twice(), account=account, lots=lots)
    said = asked(
        a_request(kind=kind, customer="cus_A", email="eve@example.com", description="my credits are gone"), known
    )
    assert (said.clause, said.verdict) == ("5.1", Verdict.REVIEW)
    assert "e-mail address of the request does not match" in said.summary
    assert "eve@" not in said.summary


def test_the_e_mail_matches_whatever_its_case_also_as_the_card_holder_s() -> None:
    history = bought_once(email=email_hash("payer@example.com"))
    for email in ("ADA@Example.com", "payer@example.com"):
        assert asked(a_request(kind="refund", transaction="ch_0001", email=email), known_of(history)).clause == "2, 6"


def test_where_no_e_mail_is_known_none_can_be_compared() -> None:
    history = History()
    history.customer()
    history.subscribe(0)
    found = asked(a_request(kind="refund", transaction="ch_0001"), known_of(history))
    assert found.verdict is Verdict.DENY
    assert "make sure who asks before it is sent" in found.summary
    assert "make sure" not in found.draft_answer


@pytest.mark.parametrize("kind", ["refund", "duplicate", "technical", "cancellation", "chargeback"])
def test_without_a_transaction_and_a_customer_both_are_asked_for(kind: str) -> None:
    assert asked(a_request(kind=kind), None).clause == "5.1"


@pytest.mark.parametrize("about", [{"customer": "cus_A"}, {"transaction": "cus_A"}])
def test_a_refund_without_a_transaction_is_never_denied_but_asked_about(about: dict[str, str]) -> None:
    said = asked(a_request(kind="refund", **about), known_of(bought_once()))
    assert (said.clause, said.verdict) == ("5.1", Verdict.REVIEW)


def test_a_duplicate_is_found_by_the_customer_alone() -> None:
    assert asked(a_request(kind="duplicate", customer="cus_A"), known_of(bought_twice())).verdict is Verdict.REFUND


# 4.3 and 2, 6: the truth table -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transaction", ["ch_0001", "ch_0002", "pi_0002", "in_0002", "sub_0002"])
@pytest.mark.parametrize("kind", ["refund", "duplicate"])
def test_a_proved_duplicate_goes_back_whichever_of_its_ids_is_named(kind: str, transaction: str) -> None:
    said = asked(a_request(kind=kind, transaction=transaction), known_of(bought_twice()))
    assert (said.clause, said.verdict) == ("4.3", Verdict.REFUND)
    assert "29.00 USD" in said.draft_answer
    assert "clause 4.3" in said.draft_answer
    assert transaction in said.draft_answer


@pytest.mark.parametrize(
    ("state", "verdict", "words"),
    [
        ("proposed", Verdict.REFUND, "As soon as a member of our team has confirmed it, we send"),
        ("planned", Verdict.REFUND, "We are sending the repeated part, 29.00 USD, back"),
        ("sending", Verdict.REFUND, "We are sending the repeated part, 29.00 USD, back"),
        ("sent", Verdict.REFUND, "We sent the repeated part, 29.00 USD, back on 2 January 2026"),
        ("review", Verdict.REVIEW, "by 4 January 2026, 00:00 UTC"),
        ("failed", Verdict.REVIEW, "by 4 January 2026, 00:00 UTC"),
        ("withdrawn", Verdict.REVIEW, "by 4 January 2026, 00:00 UTC"),
    ],
)
def test_the_draft_says_how_far_the_refund_is(state: str, verdict: Verdict, words: str) -> None:
    refund = Refunding(state=state, amount=Money(2900, "usd"), sent_at=at(T0 + DAY))
    said = asked(
        a_request(kind="duplicate", transaction="ch_0002"), known_of(bought_twice(), refunds={"ch_0002": refund})
    )
    assert said.verdict is verdict
    assert words in said.draft_answer
    assert ("USD" in said.draft_answer) == (verdict is Verdict.REFUND)


def test_a_doubtful_duplicate_promises_an_answer_and_no_money() -> None:
    history = bought_twice()
    history.dispute("ch_0002", "needs_response", when=DAY)
    said = asked(a_request(kind="duplicate", transaction="ch_0002"), known_of(history))
    assert (said.clause, said.verdict) == ("4.3", Verdict.REVIEW)
    assert "by 4 January 2026, 00:00 UTC" in said.draft_answer
    assert "USD" not in said.draft_answer
    assert "finalsale explain ch_0002" in said.suggestions


def test_an_approved_review_is_told_with_the_amount_that_a_person_named() -> None:
    history = bought_twice()
    history.dispute("ch_0002", "won", when=DAY)
    refund = Refunding(state="sent", amount=Money(1000, "usd"), sent_at=at(T0 + DAY))
    known = known_of(history, refunds={"ch_0002": refund})
    assert known.decisions["ch_0002"].verdict is Verdict.REVIEW
    said = asked(a_request(kind="duplicate", transaction="ch_0002"), known)
    assert said.verdict is Verdict.REFUND
    assert "10.00 USD" in said.draft_answer


def test_what_a_person_rejected_is_not_promised() -> None:
    known = known_of(bought_twice(), rejected=frozenset(["ch_0002"]))
    said = asked(a_request(kind="duplicate", transaction="ch_0002"), known)
    assert said.verdict is Verdict.REVIEW
    assert "A person rejected ch_0002" in said.summary
    assert "USD" not in said.draft_answer


@pytest.mark.parametrize("kind", ["refund", "duplicate"])
def test_a_payment_that_repeats_no_other_is_denied_with_the_clauses(kind: str) -> None:
    said = asked(a_request(kind=kind, transaction="ch_0001"), known_of(bought_once()))
    assert (said.clause, said.verdict, said.payments) == ("2, 6", Verdict.DENY, ("ch_0001",))
    assert "clauses 2 and 6" in said.draft_answer
    assert "clause 4.3" in said.draft_answer
    assert "29.00 USD of 1 January 2026" in said.draft_answer


def test_a_credit_pack_is_denied_by_3_2() -> None:
    history = History()
    history.customer(email=ADA)
    charge = history.bare(0, 1000)
    history.session(0, charge=charge)
    said = asked(a_request(kind="refund", transaction=charge), known_of(history))
    assert (said.clause, said.verdict) == ("3.2", Verdict.DENY)


def test_a_renewal_after_one_another_is_no_duplicate() -> None:
    history = History()
    history.customer(email=ADA)
    history.renew(history.subscribe(0))
    said = asked(a_request(kind="duplicate", transaction="ch_0002"), known_of(history))
    assert said.verdict is Verdict.DENY
    assert "The request names 2026-01-01, the payment was made 2026-01-31" in said.summary


@pytest.mark.parametrize(
    ("status", "verdict", "clause"),
    [
        ("needs_response", Verdict.REVIEW, "7"),
        ("warning_needs_response", Verdict.REVIEW, "7"),
        ("something_new", Verdict.REVIEW, "7"),
        ("lost", Verdict.NONE, "7"),
        ("prevented", Verdict.NONE, "7"),
        ("won", Verdict.DENY, "2, 6"),
    ],
)
def test_a_disputed_payment_is_not_refunded_besides(status: str, verdict: Verdict, clause: str) -> None:
    history = bought_once()
    dispute = history.dispute("ch_0001", status)
    for transaction in ("ch_0001", dispute):
        said = asked(a_request(kind="refund", transaction=transaction), known_of(history))
        assert (said.clause, said.verdict) == (clause, verdict)


def test_what_went_back_already_is_said_so() -> None:
    history = bought_once()
    refund = history.refund("ch_0001", DAY)
    said = asked(a_request(kind="refund", transaction=refund), known_of(history))
    assert (said.verdict, "29.00 USD" in said.draft_answer) == (Verdict.NONE, True)


def test_a_failed_attempt_took_no_money() -> None:
    history = History()
    history.customer(email=ADA)
    history.failed(history.subscribe(0).first, MINUTE)
    said = asked(a_request(kind="refund", transaction="ch_0002"), known_of(history))
    assert (said.verdict, "no money was taken" in said.draft_answer) == (Verdict.NONE, True)


def test_a_charge_after_cancellation_is_looked_at_and_never_promised() -> None:
    late = Decision(
        subject="in_0001",
        customer=CustomerId("cus_A"),
        clause="1.2",
        rule="charge_after_cancellation",
        verdict=Verdict.REVIEW,
        policy_version="2025-01",
        reason="ch_0001 pays for a time after the end.",
    )
    for kind in ("refund", "cancellation"):
        said = asked(a_request(kind=kind, transaction="ch_0001"), known_of(bought_once(), decisions={"in_0001": late}))
        assert (said.clause, said.verdict) == ("1.2", Verdict.REVIEW)
        assert "USD" not in said.draft_answer


def test_an_agreement_is_named_and_its_version_kept() -> None:
    agreed = policy_with(
        agreement="""
[[agreement]]
customer = "cus_A"
source = "MSA 7"
from = 2025-06-01T00:00:00Z
overrides = { duplicates = "review" }
"""
    )
    history = bought_twice()
    known = Known(customer=CustomerId("cus_A"), file=history.file(), decisions=history.judge(agreed).decisions)
    said = asked(a_request(kind="duplicate", transaction="ch_0002"), known, agreed)
    assert (said.verdict, said.policy_version) == (Verdict.REVIEW, "2025-01")
    assert "MSA 7" in said.summary
    assert "MSA 7" not in said.draft_answer


# 4.1, 4.2 ----------------------------------------------------------------------------------------------------------------


def an_outage(begins: int = T0, ends: int = T0 + 6 * HOUR) -> Outage:
    return Outage(id="out_1", begins=begins, ends=ends, declared_at=ends, by="Ann", reason="power")


def test_technical_trouble_is_a_person_s_discretion_never_money() -> None:
    account = Account(customer=CustomerId("cus_A"), access=(an_access(Way.RENEWS),))
    said = asked(a_request(kind="technical", customer="cus_A"), known_of(bought_once(), account=account))
    assert (said.clause, said.verdict) == ("4.1", Verdict.REVIEW)
    assert said.suggestions[0] == "finalsale credits grant cus_A --credits N --reason TEXT --case case_1 --by NAME"
    assert any(s.startswith("finalsale customers extend cus_A --subscription sub_0001") for s in said.suggestions)
    assert "do not make up for them in money" in said.draft_answer


@pytest.mark.parametrize(("date", "clause"), [("2026-01-01", "4.2"), ("2026-01-09", "4.1")])
def test_a_declared_outage_of_that_day_was_made_up_for(date: str, clause: str) -> None:
    lot = Granted(id="service:out_1:sub_0001", kind=LotKind.SERVICE, clause="4.2", granted=4, remaining=1, lapsed=0)
    known = known_of(bought_once(), lots=(lot,), outages=(an_outage(),))
    said = asked(a_request(kind="technical", customer="cus_A", date=date), known)
    assert said.clause == clause
    assert ("4 service credits were added" in said.draft_answer) == (clause == "4.2")
    assert "outage out_1 gave 4 credits" in said.summary


# 1 -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "clause", "verdict", "words"),
    [
        (Way.RENEWS, "1.1", Verdict.REVIEW, "Once it is cancelled, access lasts until 31 January 2026, 00:00 UTC"),
        (Way.UNPAID, "1.1", Verdict.REVIEW, "cancel your subscription at any time"),
        (Way.PAUSED, "1.1", Verdict.REVIEW, "cancel your subscription at any time"),
        (Way.UNKNOWN, "1.1", Verdict.REVIEW, "cancel a subscription at any time"),
        (Way.ENDING, "1.2", Verdict.NONE, "Access lasts until 31 January 2026, 00:00 UTC, and nothing is charged"),
        (Way.ENDING_BY_SCHEDULE, "1.2", Verdict.NONE, "Access lasts until 31 January 2026, 00:00 UTC"),
        (Way.ENDED, "1.2", Verdict.NONE, "Access lasted until 31 January 2026, 00:00 UTC"),
        (Way.ENDED_BY_SCHEDULE, "1.2", Verdict.NONE, "Access lasted until"),
        (Way.ENDED_AT_ONCE, "1.3", Verdict.NONE, "The rest of the period is not refunded"),
        (Way.NEVER_BEGAN, "1.1", Verdict.NONE, "never began"),
    ],
)
def test_a_cancellation_is_answered_by_how_the_subscription_stands(
    way: Way, clause: str, verdict: Verdict, words: str
) -> None:
    account = Account(customer=CustomerId("cus_A"), access=(an_access(way),))
    known = known_of(bought_once(), account=account)
    for about in ({"customer": "cus_A"}, {"transaction": "sub_0001"}, {"transaction": "ch_0001"}):
        said = asked(a_request(kind="cancellation", **about), known)
        assert (said.clause, said.verdict) == (clause, verdict)
        assert words in said.draft_answer


def test_only_the_subscription_that_is_asked_about_is_spoken_of() -> None:
    account = Account(
        customer=CustomerId("cus_A"),
        access=(an_access(Way.ENDED_AT_ONCE), an_access(Way.ENDING, T0 + 2 * MONTH, "sub_0002")),
    )
    known = known_of(bought_twice(), account=account)
    assert asked(a_request(kind="cancellation", transaction="ch_0002"), known).clause == "1.2"
    assert asked(a_request(kind="cancellation", customer="cus_A"), known).clause == "1.2, 1.3"


def test_without_a_known_subscription_a_person_looks() -> None:
    said = asked(a_request(kind="cancellation", customer="cus_A"), known_of(bought_once()))
    assert (said.clause, said.verdict) == ("1.1", Verdict.REVIEW)


# 7 -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("standing", "words"), [(Standing.SUSPENDED, "is suspended"), (Standing.FLAGGED, "may be suspended")]
)
def test_a_chargeback_is_answered_with_what_holds_the_account(standing: Standing, words: str) -> None:
    hold = Hold(subject="dp_1", since=T0, status="needs_response", suspends=True, cause="dp_1 is open.")
    account = Account(customer=CustomerId("cus_A"), standing=standing, holds=(hold,))
    said = asked(a_request(kind="chargeback", customer="cus_A"), known_of(bought_once(), account=account))
    assert (said.clause, said.verdict) == ("7", Verdict.REVIEW)
    assert words in said.draft_answer
    assert "dp_1" not in said.draft_answer


def test_nothing_holds_a_customer_in_good_standing() -> None:
    said = asked(a_request(kind="chargeback", customer="cus_A"), known_of(bought_once()))
    assert (said.clause, said.verdict) == ("7", Verdict.NONE)


# 3 and 5 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lot", "clause", "words"),
    [
        (
            Granted(id="a", kind=LotKind.TRIAL, clause="3.3", granted=50, remaining=0, lapsed=30, ends_at=T0),
            "3.3",
            "30 of your trial",
        ),
        (
            Granted(id="a", kind=LotKind.TRIAL, clause="3.3", granted=50, remaining=9, lapsed=0, ends_at=T0),
            "3.3",
            "9 of your trial",
        ),
        (
            Granted(id="a", kind=LotKind.INCLUDED, clause="3.1", granted=50, remaining=0, lapsed=7),
            "3.1",
            "7 of your included",
        ),
    ],
)
def test_credits_that_lapsed_are_explained_by_their_clause(lot: Granted, clause: str, words: str) -> None:
    known = known_of(bought_once(), lots=(lot,))
    said = asked(a_request(customer="cus_A", description="Where are my credits?"), known)
    assert (said.clause, said.verdict) == (clause, Verdict.DENY)
    assert words in said.draft_answer


def test_credits_that_stand_are_no_reason_to_deny() -> None:
    lot = Granted(id="a", kind=LotKind.PURCHASED, clause="3.2", granted=50, remaining=50, lapsed=0)
    said = asked(a_request(customer="cus_A", description="Where are my credits?"), known_of(bought_once(), lots=(lot,)))
    assert (said.clause, said.verdict) == ("5", Verdict.REVIEW)


def test_anything_else_is_read_by_a_person_with_a_day_to_answer() -> None:
    said = asked(a_request(), None)
    assert (said.clause, said.verdict) == ("5", Verdict.REVIEW)
    assert "by 4 January 2026, 00:00 UTC" in said.draft_answer


# every draft -------------------------------------------------------------------------------------------------------------


def test_a_draft_greets_without_a_name_signs_as_the_merchant_and_names_no_id_but_the_one_given() -> None:
    account = Account(customer=CustomerId("cus_A"), access=(an_access(Way.RENEWS),))
    known = known_of(bought_twice(), account=account)
    for kind in ("refund", "duplicate", "technical", "cancellation", "chargeback", "other"):
        said = asked(a_request(kind=kind, transaction="ch_0002"), known)
        assert said.draft_answer.startswith("Hello,\n\n")
        assert said.draft_answer.endswith("AptNode support")
        for id_ in ("ch_0001", "in_", "sub_", "cus_", "case_", "dec_", EMAIL):
            assert id_ not in said.draft_answer
        assert "clause" in said.draft_answer


def test_equal_facts_give_an_equal_evaluation() -> None:
    history = bought_twice()
    first = known_of(history)
    history.tellings.reverse()
    request = a_request(kind="refund", transaction="in_0001")
    assert asked(request, first) == asked(request, known_of(history))


def test_packs_on_an_invoice_with_a_subscription_are_no_pack_purchase() -> None:
    history = History()
    history.customer(email=ADA)
    history.subscribe(0, extra=(Sold(price="price_pack_100", amount=1000, once=True),))
    assert asked(a_request(kind="refund", transaction="ch_0001"), known_of(history)).clause == "2, 6"


def test_a_proved_duplicate_whose_refund_failed_is_not_called_a_doubt() -> None:
    failed = {"ch_0002": Refunding(state="review", amount=Money(2900, "usd"))}
    found = asked(a_request(kind="refund", transaction="ch_0002"), known_of(bought_twice(), refunds=failed))
    assert found.verdict is Verdict.REVIEW
    assert "needs a closer look" in found.draft_answer
    assert "cannot be told" not in found.draft_answer


def test_a_doubt_that_is_a_dispute_is_told_as_the_dispute() -> None:
    history = bought_twice()
    history.dispute("ch_0002", "needs_response")
    found = asked(a_request(kind="refund", transaction="ch_0002"), known_of(history))
    assert "A dispute about this payment is open with your bank" in found.draft_answer
    assert "cannot be told" not in found.draft_answer
