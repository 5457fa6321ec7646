"""Erasing personal data changes no judgement, and leaves nothing that could be found again."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.customer import Charge, Customer, CustomerFile, Fact
from handlers.decisions import Judgement
from handlers.duplicates import judge
from handlers.erasure import PERSONAL, erased, impersonal, pseudonyms
from handlers.terms import Policy
from tests.handlers.history import History
from tests.handlers.test_duplicates_properties import NOW, histories, policies

KEY = b"k" * 32


def verdicts(judged: Judgement) -> Any:
    return {
        subject: (d.verdict, d.clause, d.rule, d.amount, d.original, d.duplicate)
        for subject, d in judged.decisions.items()
    }


@given(histories(), policies, st.binary(min_size=16, max_size=64))
@settings(max_examples=150, deadline=None)
def test_every_judgement_of_an_erased_person_is_what_it_was(h: History, policy: Policy, key: bytes) -> None:
    pseudonym = pseudonyms(key)
    before = judge(CustomerFile(h.tellings), policy, NOW)
    after = judge(CustomerFile(erased(fact, pseudonym) for fact in h.tellings), policy, NOW)
    assert verdicts(after) == verdicts(before)
    assert after.wanted == before.wanted


@given(histories())
@settings(max_examples=50, deadline=None)
def test_no_value_of_before_is_left_in_a_personal_field(h: History) -> None:
    pseudonym = pseudonyms(KEY)
    for fact in h.tellings:
        for name in PERSONAL.get(type(fact), ()):
            value = getattr(erased(fact, pseudonym), name)
            for text in value.values() if isinstance(value, dict) else [value] if value else []:
                assert text.startswith("erased:")


def test_erased_twice_is_erased_once_and_words_that_name_nobody_stay() -> None:
    customer = Customer(
        id="cus_1", as_of=1, email_hash="abc", metadata={"user_id": "u_1", "workspace": "guest", "x": ""}
    )
    once = erased(customer, pseudonyms(KEY))
    assert erased(once, pseudonyms(b"other" * 5)) == once
    assert once.metadata["workspace"] == "guest"
    assert once.metadata["x"] == ""
    assert once.email_hash != "abc"


def test_a_later_telling_keeps_the_known_pseudonyms_and_brings_nothing_personal_of_its_own() -> None:
    def charge(as_of: int, **over: Any) -> Charge:
        return Charge(
            id="ch_1", as_of=as_of, amount_minor=1, captured_minor=1, currency="usd", status="succeeded", captured=True, created=1, **over
        )  # fmt: skip

    known: Fact = charge(1, email_hash="erased:1", card_fingerprint="erased:2", metadata={"user_id": "erased:3"})
    told = charge(2, email_hash="ada", card_fingerprint="fp", metadata={"user_id": "u_1", "name": "Ada"}, disputed=True)
    kept = impersonal(told, known)
    assert kept == charge(
        2, email_hash="erased:1", card_fingerprint="erased:2", metadata={"user_id": "erased:3"}, disputed=True
    )
    assert impersonal(told) == charge(2, disputed=True)
