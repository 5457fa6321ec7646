"""Drafts of evidence: for each reason of a dispute the right fields, only true words, and whether to fight at all."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from handlers.account import Access, Account, Way
from handlers.customer import ChargeId, CustomerId, Dispute, EarlyFraudWarning, PriceId, SubscriptionId
from handlers.decisions import Decision, Money, Verdict
from handlers.evidence import MAX_FIELD, MAX_TEXT, Draft, draft
from handlers.terms import Policy
from tests.handlers.history import DAY, HOUR, MONTH, POLICY, T0, Bought, History, Sold, policy_with

REASONS = [
    *("duplicate", "credit_not_processed", "subscription_canceled", "fraudulent", "unrecognized"),
    *("product_not_received", "product_unacceptable", "general", "a_reason_of_tomorrow", ""),
]
TEXT_FIELDS = {
    *("duplicate_charge_id", "duplicate_charge_explanation", "refund_policy", "refund_policy_disclosure"),
    *("refund_refusal_explanation", "cancellation_policy", "cancellation_policy_disclosure", "cancellation_rebuttal"),
    *("product_description", "service_date", "uncategorized_text"),
}


def drafted(
    h: History,
    charge: str,
    reason: str,
    *,
    policy: Policy = POLICY,
    decisions: dict[str, Decision] | None = None,
    access: Access | None = None,
    **fields: Any,
) -> Draft:
    """The draft for a dispute of `charge`, told now."""
    id_ = h.dispute(charge, fields.pop("status", "needs_response"), 20 * DAY, fields.pop("amount", None))
    h.change(id_, reason=reason, due_by=T0 + 30 * DAY, **fields)
    account = Account(customer=CustomerId("cus_A"), access=(access,)) if access else None
    return draft(h.file(), h.latest[id_], policy, decisions or {}, account)


def history() -> History:
    h = History()
    h.customer("cus_A", email="hash-of-an-e-mail", user_id="ada@example.com")
    return h


def copies(h: History) -> tuple[Bought, Bought]:
    """Two subscriptions by a double click: D3, the second is the duplicate."""
    return h.subscribe(0, card="fp"), h.subscribe(4, card="fp")


def serving(sub: Bought, until: int) -> Access:
    return Access(
        subscription=SubscriptionId(sub.id), status="active", way=Way.RENEWS, until=T0 + until, cause="in_0001 was paid"
    )


# nobody else's, and nothing twice -------------------------------------------------------------------------------------------


def test_the_other_charge_is_never_one_of_a_customer_that_only_an_e_mail_ties_to_this_one() -> None:
    h = History()
    h.customer("cus_A", email="hash-of-an-e-mail")
    h.customer("cus_B", email="hash-of-an-e-mail")
    mine = h.subscribe(0, metadata={"user_id": "u1"})
    h.subscribe(DAY, customer="cus_B", metadata={"user_id": "u2"})
    alone = drafted(h, mine.charge, "duplicate")
    assert "duplicate_charge_id" not in alone.fields
    assert "ch_0002" not in str(alone.fields)
    h.renew(mine)
    assert drafted(h, mine.charge, "duplicate").fields["duplicate_charge_id"] == "ch_0003"


def test_a_doubtful_copy_of_another_customer_is_told_to_the_person_and_not_to_the_bank() -> None:
    h = history()
    h.customer("cus_B", email="hash-of-an-e-mail")
    mine = h.subscribe(0)
    h.subscribe(4, customer="cus_B")
    found = drafted(h, mine.charge, "duplicate")
    assert "in doubt (D4)" in found.note
    assert "ch_0002" not in str(found.fields)


def test_of_two_disputed_copies_at_most_one_is_to_be_accepted() -> None:
    h = history()
    first, second = copies(h)
    h.dispute(second.charge, "needs_response")
    assert "ch_0002 is disputed too: of the two accept one at most" in drafted(h, first.charge, "duplicate").note


def test_a_copy_that_the_bank_gave_back_is_told_to_the_bank() -> None:
    h = history()
    first, second = copies(h)
    h.dispute(first.charge, "lost")
    said = drafted(h, second.charge, "duplicate").fields["duplicate_charge_explanation"]
    assert "29.00 USD was given back through the dispute dp_0001 of ch_0001" in said


def test_a_balance_credit_for_the_excess_is_told_before_anybody_accepts() -> None:
    h = history()
    sub = h.subscribe()
    again = h.pay_again(sub.first, 60)
    h.balance_read(DAY, ("invoice_overpaid", -2900, sub.first.invoice))
    assert "Stripe booked the excess as a balance credit" in drafted(h, again, "duplicate").note


# every reason ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_gives_a_draft_of_stripes_text_fields_without_personal_data(reason: str) -> None:
    h = history()
    sub = h.subscribe(0, email="hash-of-an-e-mail", card="card-fingerprint", metadata={"user_id": "ada@example.com"})
    h.renew(sub, email="hash-of-an-e-mail", card="card-fingerprint")
    found = drafted(h, sub.invoices[1].charge, reason)
    assert found.fields
    assert set(found.fields) <= TEXT_FIELDS
    assert all(found.fields.values())
    assert found.missing
    everything = msgspec.json.encode(found).decode()
    for secret in ("ada@example.com", "hash-of-an-e-mail", "card-fingerprint"):
        assert secret not in everything
    assert "Evidence is due by 2026-01-31T00:00:00Z" in found.note


@pytest.mark.parametrize("reason", REASONS)
def test_a_dispute_of_an_unknown_payment_says_so_instead_of_inventing_one(reason: str) -> None:
    dispute = Dispute(
        id="dp_9", as_of=T0, amount_minor=5, currency="usd", status="needs_response", reason=reason, created=T0
    )
    h = history()
    h.subscribe()
    found = draft(h.file(), dispute, POLICY, {}, None)
    assert "the payment itself: no charge of this dispute is known" in found.missing
    assert "not known here" in found.note
    assert "ch_0001" not in msgspec.json.encode(found).decode()


def test_the_text_never_exceeds_what_stripe_takes() -> None:
    h = history()
    sub = h.subscribe(0, Sold(price="p" * 100_000))
    found = drafted(h, sub.charge, "fraudulent")
    assert sum(map(len, found.fields.values())) <= MAX_TEXT
    h = history()
    sub = h.subscribe(0, Sold(price="p" * 160_000))
    found = drafted(h, sub.charge, "general")
    assert max(map(len, found.fields.values())) == MAX_FIELD


# duplicate ------------------------------------------------------------------------------------------------------------------


def test_a_renewal_disputed_as_a_duplicate_names_the_other_charge_and_both_service_periods() -> None:
    h = history()
    sub = h.subscribe()
    h.renew(sub)
    found = drafted(h, sub.invoices[1].charge, "duplicate")
    assert found.fields == {
        "duplicate_charge_id": "ch_0001",
        "duplicate_charge_explanation": (
            "The disputed payment is ch_0002: 29.00 USD, paid at 2026-01-31T00:00:00Z, for price_basic from 2026-01-31 "
            "to 2026-03-02 (invoice in_0002, subscription sub_0001). The other payment is ch_0001: 29.00 USD, paid at "
            "2026-01-01T00:00:00Z, for price_basic from 2026-01-01 to 2026-01-31 (invoice in_0001, subscription "
            "sub_0001). They paid for different service periods, which do not overlap."
        ),
    }
    assert found.note.startswith("No clause gives this payment back")


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (lambda h: h.subscribe(4, Sold("price_other")), "They paid for different services."),
        (
            lambda h: h.subscribe(4, metadata={"site": "b"}),
            "They paid for two subscriptions that were bought separately.",
        ),
        (lambda h: h.bare(9 * DAY), "One paid for a service period, the other is a single payment."),
    ],
)
def test_two_purchases_are_told_apart_by_what_they_bought(second: Any, says: str) -> None:
    h = history()
    sub = h.subscribe(0, metadata={"site": "a"})
    second(h)
    found = drafted(h, sub.charge, "duplicate")
    assert found.fields["duplicate_charge_id"] == "ch_0002"
    assert says in found.fields["duplicate_charge_explanation"]
    assert "Do not fight" not in found.note


def test_of_several_payments_the_other_one_is_the_nearest_of_the_same_amount() -> None:
    h = history()
    h.bare(0, 2900)
    disputed = h.bare(5 * DAY, 2900)
    h.bare(5 * DAY + HOUR, 1500)
    assert drafted(h, disputed, "duplicate").fields["duplicate_charge_id"] == "ch_0001"


def test_a_lone_payment_has_no_other_charge_to_name() -> None:
    h = history()
    found = drafted(h, h.subscribe().charge, "duplicate")
    assert set(found.fields) == {"duplicate_charge_explanation"}
    assert found.fields["duplicate_charge_explanation"].startswith("No other payment at Stripe is known.")


def test_a_proved_duplicate_is_not_fought() -> None:
    """The open dispute itself makes clause 4.3 a review; the draft looks at what it would say without it."""
    h = history()
    original, duplicate = copies(h)
    found = drafted(h, duplicate.charge, "duplicate")
    assert found.note.startswith("Do not fight: accept. ch_0002 is a duplicate of ch_0001 (4.3, D3)")
    assert "no refund is sent besides it" in found.note
    assert found.fields["duplicate_charge_id"] == original.charge
    assert "The disputed payment repeated the other one." in found.fields["duplicate_charge_explanation"]
    assert "finalsale explain" not in found.note


def test_the_duplicate_part_is_named_where_the_dispute_asks_for_more() -> None:
    h = history()
    h.subscribe()
    second = h.subscribe(4, extra=(Sold("price_pack_100", 1500, once=True),))
    note = drafted(h, second.charge, "duplicate").note
    assert "Only 29.00 USD of it is the duplicate part, the dispute asks for 44.00 USD." in note


def test_the_original_of_a_pair_that_nobody_refunded_is_not_fought_either() -> None:
    h = history()
    original, _ = copies(h)
    found = drafted(h, original.charge, "duplicate")
    assert found.note.startswith("Do not fight: accept. ch_0001 and ch_0002 are copies (4.3, D3)")
    assert "the other then stays" in found.note


def test_a_proved_duplicate_under_inquiry_may_be_refunded_by_a_persons_word() -> None:
    h = history()
    _, duplicate = copies(h)
    note = drafted(h, duplicate.charge, "duplicate", status="warning_needs_response").note
    assert "It is still an inquiry: the refund, approved by a person, ends it." in note


def test_a_duplicate_given_back_already_is_answered_with_its_refund_never_accepted() -> None:
    h = history()
    _, duplicate = copies(h)
    h.refund(duplicate.charge, DAY, action="act_1")
    decided = {duplicate.charge: _decided("ch_0002", "ch_0001", Verdict.REFUND)}
    found = drafted(h, duplicate.charge, "duplicate", decisions=decided)
    assert found.note.startswith("It was a duplicate of ch_0001. 29.00 USD was given back already")
    assert "or the same money goes back twice" in found.note
    said = found.fields["duplicate_charge_explanation"]
    assert "29.00 USD of ch_0002 was given back at 2026-01-02T00:00:00Z (refund re_0001)." in said


def test_after_a_partial_refund_only_the_rest_is_open() -> None:
    h = history()
    charge = h.subscribe().charge
    h.refund(charge, DAY, 1000)
    note = drafted(h, charge, "general", amount=2900).note
    assert "10.00 USD was given back already" in note
    assert "19.00 USD of the dispute is not given back yet" in note


def test_a_duplicate_whose_refund_failed_or_hangs_is_accepted_and_the_pending_refund_named() -> None:
    for status in ("failed", "pending"):
        h = history()
        _, duplicate = copies(h)
        h.refund(duplicate.charge, DAY, status=status, action="act_1", figure=False)
        decided = {duplicate.charge: _decided("ch_0002", "ch_0001", Verdict.REFUND)}
        note = drafted(h, duplicate.charge, "duplicate", decisions=decided).note
        assert note.startswith("Do not fight: accept.")
        assert ("The refund re_0001 is pending" in note) == (status == "pending")
        assert "See first that its refund is not under way: `finalsale explain ch_0002`." in note


@pytest.mark.parametrize("status", ["succeeded", "pending", None])
def test_the_intended_charge_is_fought_once_its_duplicate_goes_back(status: str | None) -> None:
    h = history()
    original, duplicate = copies(h)
    if status:
        h.refund(duplicate.charge, DAY, status=status, action="act_1")
    decided = {duplicate.charge: _decided("ch_0002", "ch_0001", Verdict.REFUND)}
    found = drafted(h, original.charge, "duplicate", decisions=decided)
    assert found.note.startswith("ch_0001 is the intended charge and its duplicate ch_0002 goes back: fight, once")
    said = found.fields["duplicate_charge_explanation"]
    assert "The disputed payment is the intended one, the other repeated it." in said
    assert ("29.00 USD of ch_0002 was given back" in said) == (status == "succeeded")


def test_the_intended_charge_is_fought_where_a_part_of_its_duplicate_was_given_back_by_hand() -> None:
    h = history()
    original, duplicate = copies(h)
    h.refund(duplicate.charge, DAY, 1000)
    assert drafted(h, original.charge, "duplicate").note.startswith("ch_0001 is the intended charge")


def test_a_doubtful_duplicate_is_a_persons_to_decide_first_and_nothing_is_claimed() -> None:
    h = history()
    h.subscribe()
    later = h.subscribe(3 * HOUR)
    found = drafted(h, later.charge, "duplicate")
    assert found.note.startswith("Whether it is a duplicate of ch_0001 is in doubt (D3)")
    assert "`finalsale explain ch_0002`" in found.note
    assert found.fields["duplicate_charge_explanation"].endswith("subscription sub_0001).")


def test_paid_outside_stripe_too_is_a_doubt_without_another_charge() -> None:
    h = history()
    sub = h.subscribe()
    h.change(sub.first.invoice, off_stripe_minor=2900, overpaid_minor=2900, amount_paid_minor=5800)
    found = drafted(h, sub.charge, "duplicate")
    assert found.note.startswith("Whether it is a duplicate is in doubt (D2)")
    assert "duplicate_charge_id" not in found.fields


# credit_not_processed and subscription_canceled -----------------------------------------------------------------------------


def test_a_refused_credit_cites_version_and_clauses() -> None:
    h = history()
    found = drafted(h, h.subscribe().charge, "credit_not_processed")
    for field in ("refund_policy", "refund_policy_disclosure"):
        assert "policy of AptNode, version 2025-01, in force since 2025-01-01" in found.fields[field]
    assert "(clauses 2 and 6)" in found.fields["refund_policy"]
    assert "(clause 4.3)" in found.fields["refund_policy"]
    assert found.fields["refund_refusal_explanation"].endswith("No credit is due: the sale is final (clauses 2 and 6).")


def test_a_refused_credit_cites_the_clause_of_the_decision() -> None:
    h = history()
    charge = h.subscribe().charge
    denied = Decision(
        subject=charge,
        customer=CustomerId("cus_A"),
        clause="3.2",
        rule="final_sale",
        verdict=Verdict.DENY,
        policy_version="2025-01",
        reason="A pack.",
    )
    found = drafted(h, charge, "credit_not_processed", decisions={charge: denied})
    assert found.fields["refund_refusal_explanation"].endswith("refused under clause 3.2.")


def test_a_credit_is_not_refused_for_a_duplicate() -> None:
    h = history()
    _, duplicate = copies(h)
    found = drafted(h, duplicate.charge, "credit_not_processed")
    assert found.note.startswith("Do not fight: accept.")
    assert "final" not in found.fields["refund_refusal_explanation"]


def test_a_credit_that_was_made_is_the_answer() -> None:
    h = history()
    charge = h.subscribe().charge
    h.refund(charge, DAY)
    found = drafted(h, charge, "credit_not_processed")
    assert (
        "29.00 USD of ch_0001 was given back at 2026-01-02T00:00:00Z (refund re_0001)."
        in (found.fields["refund_refusal_explanation"])
    )
    assert "No further credit is due" in found.fields["refund_refusal_explanation"]
    assert "given back already" in found.note


def test_terms_by_agreement_are_told_to_the_person_and_not_to_the_bank() -> None:
    policy = policy_with(
        agreement="""
        [[agreement]]
        customer = "cus_A"
        source = "MSA 2026-03, section 9"
        from = 2025-06-01T00:00:00Z
        overrides = { window = "30m" }
        """
    )
    h = history()
    found = drafted(h, h.subscribe().charge, "credit_not_processed", policy=policy)
    assert "Terms by agreement: MSA 2026-03, section 9." in found.note
    assert "amended by a written agreement" in found.fields["refund_policy"]
    assert "MSA" not in str(found.fields)


def test_a_cancellation_is_rebutted_with_its_times_and_the_period_that_was_paid() -> None:
    h = history()
    sub = h.subscribe()
    h.schedule_end(sub, 10 * DAY)
    found = drafted(h, sub.charge, "subscription_canceled", access=serving(sub, MONTH))
    assert found.fields["service_date"] == "2026-01-01"
    assert "(clause 1.1)" in found.fields["cancellation_policy"]
    said = found.fields["cancellation_rebuttal"]
    for part in (
        "for price_basic from 2026-01-01 to 2026-01-31",
        "The subscription sub_0001 ends at 2026-01-31T00:00:00Z.",
        "It was cancelled at 2026-01-11T00:00:00Z; the payment was made before the cancellation.",
        "began before the end, so the payment was due (clause 1.2)",
        "gave access until 2026-01-31T00:00:00Z",
    ):
        assert part in said


def test_an_immediate_end_and_a_subscription_that_nobody_cancelled() -> None:
    h = history()
    sub = h.subscribe()
    assert (
        "No cancellation of the subscription sub_0001 is known."
        in (drafted(h, sub.charge, "subscription_canceled").fields["cancellation_rebuttal"])
    )
    h.end(sub, 12 * DAY)
    said = drafted(h, sub.charge, "subscription_canceled").fields["cancellation_rebuttal"]
    assert "The subscription sub_0001 ended at 2026-01-13T00:00:00Z." in said


def test_a_charge_after_the_effective_end_is_not_fought_before_a_person_has_looked() -> None:
    h = history()
    sub = h.subscribe()
    h.renew(sub)
    h.end(sub, MONTH)
    found = drafted(h, sub.invoices[1].charge, "subscription_canceled")
    assert found.note.startswith(
        "Do not fight before a person has looked: ch_0002 paid for a period after the effective end"
    )
    assert "so the payment was due" not in found.fields["cancellation_rebuttal"]
    assert drafted(h, sub.charge, "subscription_canceled").note.startswith("No clause gives")
    refused = drafted(h, sub.invoices[1].charge, "credit_not_processed").fields["refund_refusal_explanation"]
    assert "No credit is due" not in refused


def test_a_decision_that_it_was_charged_after_the_end_is_heard_whoever_set_that_end() -> None:
    """A schedule's end stands in no field of the subscription."""
    h = history()
    sub = h.subscribe()
    late = h.renew(sub)
    told = Decision(
        subject=late.invoice,
        customer=CustomerId("cus_A"),
        clause="1.2",
        rule="charge_after_cancellation",
        verdict=Verdict.REVIEW,
        policy_version="2025-01",
        reason="",
        duplicate=ChargeId(late.charge),
    )
    found = drafted(h, late.charge, "subscription_canceled", decisions={late.invoice: told})
    assert found.note.startswith("Do not fight before a person has looked")
    assert "No cancellation" not in found.fields["cancellation_rebuttal"]


# fraud and service ----------------------------------------------------------------------------------------------------------


def test_earlier_undisputed_payments_of_the_same_card_speak_against_fraud() -> None:
    h = history()
    first = h.bare(0)
    other_card = h.bare(DAY)
    disputed_before, refunded, warned, same = (h.bare(n * DAY) for n in (2, 3, 4, 5))
    last = h.bare(10 * DAY)
    later = h.bare(11 * DAY)
    for charge in (first, disputed_before, refunded, warned, same, last, later):
        h.change(charge, card_fingerprint="fp")
    h.dispute(disputed_before, "lost", 6 * DAY)
    h.refund(refunded, 6 * DAY)
    h.tell(EarlyFraudWarning(id="issfr_1", as_of=T0, created=T0, charge=ChargeId(warned)))
    unexplained = h.bare(7 * DAY)
    h.change(unexplained, card_fingerprint="fp", disputed=True)
    for reason in ("fraudulent", "unrecognized"):
        said = drafted(h, last, reason).fields["uncategorized_text"]
        assert said.startswith("Earlier payments with the same card that nobody disputed:\nch_")
        others = (other_card, disputed_before, refunded, warned, unexplained, later)
        named = {charge for charge in (first, same, *others) if charge in said}
        assert named == {first, same}


def test_without_a_card_nothing_is_said_about_earlier_payments() -> None:
    h = history()
    h.bare(0)
    assert "Earlier" not in str(drafted(h, h.bare(DAY), "fraudulent").fields)


@pytest.mark.parametrize("reason", ["product_not_received", "product_unacceptable"])
def test_a_service_is_described_with_its_period_and_access(reason: str) -> None:
    h = history()
    sub = h.subscribe(0, Sold(quantity=3))
    fields = drafted(h, sub.charge, reason, access=serving(sub, MONTH)).fields
    assert "3 x price_basic from 2026-01-01 to 2026-01-31" in fields["product_description"]
    assert fields["service_date"] == "2026-01-01"
    assert "gave access until 2026-01-31T00:00:00Z" in fields["uncategorized_text"]


# the note -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"due_by": None}, "it cannot be challenged"),
        ({"status": "under_review"}, "The dispute is under_review: Stripe is not known to wait for evidence."),
        ({"status": "needs_response"}, "can be submitted once; this draft submits nothing"),
    ],
)
def test_the_note_says_whether_evidence_is_awaited(fields: dict[str, Any], says: str) -> None:
    h = history()
    id_ = h.dispute(h.subscribe().charge, "needs_response", DAY)
    h.change(id_, **{"due_by": T0 + 30 * DAY, **fields})
    assert says in draft(h.file(), h.latest[id_], POLICY, {}, None).note


def test_an_appeal_and_a_payment_before_the_policy_are_said_to_be_incomplete() -> None:
    h = history()
    policy = policy_with(("in_force_from = 2025-01-01", "in_force_from = 2026-06-01"))
    found = drafted(h, h.subscribe().charge, "general", status="appeal_needs_response", policy=policy)
    assert any(item.startswith("evidence.appeal") for item in found.missing)
    assert any(item.startswith("the terms that applied") for item in found.missing)


def test_a_line_without_a_price_is_an_item() -> None:
    h = history()
    sub = h.subscribe()
    (line,) = h.latest[sub.first.invoice].lines
    h.change(sub.first.invoice, lines=(msgspec.structs.replace(line, price=None),))
    assert "for an item from" in drafted(h, sub.charge, "product_unacceptable").fields["product_description"]
    assert PriceId("price_basic") not in drafted(h, sub.charge, "general").fields["uncategorized_text"]


def _decided(duplicate: str, original: str, verdict: Verdict) -> Decision:
    return Decision(
        subject=duplicate,
        customer=CustomerId("cus_A"),
        clause="4.3",
        rule="D3",
        verdict=verdict,
        policy_version="2025-01",
        reason="A double click.",
        amount=Money(2900, "usd"),
        original=ChargeId(original),
        duplicate=ChargeId(duplicate),
    )
