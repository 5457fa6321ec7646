"""The door: what Stripe sends, in either shape, reads as the same fact, and what cannot be read is named, never guessed."""

from __future__ import annotations

import json
from functools import reduce
from typing import Any, get_args

import pytest
import stripe
from hypothesis import example, given, settings
from hypothesis import strategies as st

from handlers import HANDLERS
from handlers.customer import (
    BalanceRead,
    BalanceTransaction,
    Charge,
    CheckoutSession,
    Customer,
    CustomerId,
    Dispute,
    EarlyFraudWarning,
    Invoice,
    InvoicePayment,
    Line,
    PaymentIntent,
    PriceCredits,
    Refund,
    SessionId,
    SessionLine,
    SessionLines,
    Subscription,
    SubscriptionItem,
    SubscriptionSchedule,
    Trial,
    decode,
    encode,
)
from handlers.events import (
    MAX_MINOR,
    Hint,
    Unreadable,
    email_hash,
    parse_event,
    read_balance,
    read_list,
    read_object,
    read_session_lines,
)
from tests.handlers import samples
from tests.handlers.samples import MONTH, NEW, SAMPLES, T0, Json, event, page, thin, wire

SHAPES = pytest.mark.parametrize("shape", ["new", "old"])
AS_OF = T0 + 5
TYPE_OF = {kind: type_ for type_, kind in HANDLERS.items()}


def read(obj: Json) -> Any:
    return read_object(wire(obj), AS_OF)


def refused(obj: Json) -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        read(obj)
    return caught.value


def changed(obj: Json, path: str, value: Any) -> Json:
    """A deep copy of `obj` with the value at a dotted path set, or dropped where `value` is `...`."""
    copy: Json = json.loads(json.dumps(obj))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    inner: Any = reduce(lambda value, key: value[key], parents, copy)
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return copy


# --- the map ------------------------------------------------------------------------------------------------------------


def test_every_subscribed_type_exists_at_stripe() -> None:
    assert set(HANDLERS) <= set(get_args(stripe.Event.__annotations__["type"]))


@pytest.mark.parametrize("type_", HANDLERS)
def test_every_subscribed_type_gives_the_fact_its_object_gives(type_: str) -> None:
    told = parse_event(event(type_, SAMPLES[HANDLERS[type_]], api_version=NEW))
    expected = read(SAMPLES[HANDLERS[type_]])
    if type_ == "customer.deleted":
        expected = Customer(
            **{name: getattr(expected, name) for name in expected.__struct_fields__} | {"deleted": True}
        )
    assert told.fact == expected
    assert (told.event_id, told.type, told.created, told.api_version) == ("evt_1", type_, AS_OF, NEW)
    assert (told.livemode, told.account, told.hint, told.previous_status) == (True, None, None, None)


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_fact_survives_the_store(kind: str) -> None:
    assert decode(encode(read(SAMPLES[kind]))) == read(SAMPLES[kind])


# --- the same fact from both shapes -------------------------------------------------------------------------------------


@SHAPES
def test_a_charge(shape: str) -> None:
    assert read(samples.charge(shape)) == Charge(
        id="ch_1", as_of=AS_OF, customer="cus_1", payment_intent="pi_1", amount_minor=2900, captured_minor=2900,
        refunded_minor=500, currency="usd", status="succeeded", captured=True, created=T0, method="card",
        card_fingerprint="fp_1", email_hash=email_hash("ada@example.com"), metadata={"order_id": "o-1"},
    )  # fmt: skip


@pytest.mark.parametrize(("captured", "expected"), [(True, 2900), (False, 0)])
def test_an_old_charge_captures_all_or_nothing(captured: bool, expected: int) -> None:
    old = changed(samples.charge("old", captured=captured), "amount_captured", ...)
    assert read(old).captured_minor == expected


def test_only_old_charges_and_intents_know_their_invoice() -> None:
    assert read(samples.charge("old", invoice="in_1")).invoice == "in_1"
    assert read(samples.payment_intent("old", invoice="in_1")).invoice == "in_1"
    assert read(samples.charge()).invoice is None


def test_an_old_charge_is_disputed_when_it_names_a_dispute() -> None:
    assert read(samples.charge("old", dispute="dp_1")).disputed
    assert not read(samples.charge("old")).disputed


@SHAPES
def test_a_payment_intent(shape: str) -> None:
    assert read(samples.payment_intent(shape)) == PaymentIntent(
        id="pi_1", as_of=AS_OF, customer="cus_1", latest_charge="ch_1", amount_minor=2900, currency="usd",
        status="succeeded", created=T0, metadata={"order_id": "o-1"},
    )  # fmt: skip


@SHAPES
def test_an_invoice(shape: str) -> None:
    lines = (
        Line(
            id="il_1", amount_minor=3000, currency="usd", period_start=T0, period_end=T0 + MONTH, price="price_1",
            product="prod_1", quantity=2, subscription="sub_1", subscription_item="si_1", discount_minor=350,
            tax_exclusive_minor=200,
        ),
        Line(
            id="il_2", amount_minor=3000, currency="usd", period_start=T0, period_end=T0 + MONTH, price="price_pack",
            product="prod_pack", quantity=1, invoice_item="ii_1",
        ),
    )  # fmt: skip
    told_by_old = {"payment_intent": "pi_1", "charge": "ch_1"}
    assert read(samples.invoice(shape)) == Invoice(
        id="in_1", as_of=AS_OF, customer="cus_1", subscription="sub_1", billing_reason="subscription_create",
        status="paid", currency="usd", total_minor=6150, amount_due_minor=5850, amount_paid_minor=5850,
        overpaid_minor=None if shape == "old" else 0, starting_balance_minor=-300, ending_balance_minor=0,
        credit_notes_minor=120, shipping_minor=700, attempt_count=1, created=T0, paid_at=T0 + 3, lines=lines,
        subscription_metadata={"user_id": "u1"}, metadata={"source": "web"}, **(told_by_old if shape == "old" else {}),
    )  # fmt: skip


@SHAPES
def test_a_proration_line_is_known_as_one(shape: str) -> None:
    path = "parent.subscription_item_details." if shape == "new" else ""
    line = changed(changed(samples.line(shape), path + "proration", True), path + "invoice_item", "ii_9")
    (told,) = read(samples.invoice(shape, lines={"data": [line], "has_more": False})).lines
    assert (told.proration, told.invoice_item, told.subscription_item) == (True, "ii_9", "si_1")


@SHAPES
def test_money_from_outside_stripe(shape: str) -> None:
    outside = {"amount_paid_off_stripe": 5850} if shape == "new" else {"paid_out_of_band": True}
    assert read(samples.invoice(shape, **outside)).off_stripe_minor == 5850


@pytest.mark.parametrize(("paid", "expected"), [(0, 5850), (40, 40)])
def test_an_old_invoice_paid_out_of_band_may_say_that_nothing_was_paid(paid: int, expected: int) -> None:
    assert read(samples.invoice("old", paid_out_of_band=True, amount_paid=paid)).off_stripe_minor == expected


def test_an_old_invoice_without_status_is_paid_only_if_it_says_so() -> None:
    old = changed(samples.invoice("old"), "status", ...)
    assert read(old).status == "paid"
    assert refused(old | {"paid": False}).field == "invoice.status"


def test_an_old_line_knows_that_it_is_metered() -> None:
    metered = changed(samples.invoice("old"), "lines.data.0.price.recurring.usage_type", "metered")
    by_plan = changed(
        changed(samples.invoice("old"), "lines.data.0.price", None), "lines.data.0.plan.usage_type", "metered"
    )
    assert [read(obj).lines[0].metered for obj in (metered, by_plan, samples.invoice())] == [True, True, False]


@SHAPES
@pytest.mark.parametrize("told", [True, ..., None])
def test_lines_and_items_are_complete_only_where_the_list_says_so(shape: str, told: Any) -> None:
    assert not read(changed(samples.invoice(shape), "lines.has_more", told)).lines_complete
    assert not read(changed(samples.subscription(shape), "items.has_more", told)).items_complete
    assert not read(changed(samples.invoice(shape), "lines", ...)).lines_complete


@SHAPES
def test_a_subscription(shape: str) -> None:
    item = SubscriptionItem(
        id="si_1", price="price_1", product="prod_1", quantity=2, interval="month", period_start=T0,
        period_end=T0 + MONTH,
    )  # fmt: skip
    assert read(samples.subscription(shape)) == Subscription(
        id="sub_1", as_of=AS_OF, customer="cus_1", status="active", currency="usd", created=T0, items=(item,),
        metadata={"user_id": "u1"}, cancel_at_period_end=True, canceled_at=T0 + 100,
        cancellation_reason="cancellation_requested", latest_invoice="in_1", collection_paused=True,
    )  # fmt: skip


def test_what_an_item_says_of_itself() -> None:
    trial = {"start_date": T0, "end_date": T0 + 9, "trial_offer": "to_1"}
    yearly = samples.price(recurring={"interval": "year", "interval_count": 2, "usage_type": "metered"})
    body = samples.subscription(items={"data": [samples.item(current_trial=trial, price=yearly)], "has_more": False})
    (item,) = read(body).items
    assert (item.trial_offer, item.metered, item.interval, item.interval_count) == (True, True, "year", 2)


def test_an_old_item_with_a_plan_only() -> None:
    plan = {"id": "gold plan", "product": "prod_1", "interval": "week", "interval_count": 2, "usage_type": "metered"}
    item = changed(samples.item("old", plan=plan), "price", ...)
    (told,) = read(samples.subscription("old", items={"data": [item], "has_more": False})).items
    assert (told.price, told.interval, told.interval_count, told.metered) == ("gold plan", "week", 2, True)


def test_the_rest() -> None:
    assert read(samples.invoice_payment()) == InvoicePayment(
        id="inpay_1", as_of=AS_OF, invoice="in_1", payment_type="payment_intent", payment_intent="pi_1", status="paid",
        amount_paid_minor=5850, currency="usd", created=T0, paid_at=T0 + 3,
    )  # fmt: skip
    assert read(samples.customer()) == Customer(
        id="cus_1", as_of=AS_OF, created=T0, email_hash=email_hash("ADA@example.com "), metadata={"user_id": "u1"},
        balance_minor=-300,
    )  # fmt: skip
    assert read(samples.refund()) == Refund(
        id="re_1", as_of=AS_OF, charge="ch_1", payment_intent="pi_1", amount_minor=500, currency="usd",
        status="succeeded", created=T0 + 60, reason="duplicate", action="a-1",
    )  # fmt: skip
    assert read(samples.dispute()) == Dispute(
        id="du_1", as_of=AS_OF, charge="ch_1", payment_intent="pi_1", amount_minor=2900, currency="usd",
        status="needs_response", reason="fraudulent", created=T0 + 90, due_by=T0 + MONTH,
        intended_submission_method="manual", withdrawn_minor=0,
    )  # fmt: skip
    assert read(samples.checkout_session()) == CheckoutSession(
        id="cs_1", as_of=AS_OF, customer="cus_1", mode="subscription", payment_status="paid", status="complete",
        created=T0, client_reference_id="u1", metadata={"user_id": "u1"}, subscription="sub_1", invoice="in_1",
    )  # fmt: skip
    assert read(samples.early_fraud_warning()) == EarlyFraudWarning(
        id="issfr_1", as_of=AS_OF, charge="ch_1", payment_intent="pi_1", fraud_type="made_with_stolen_card",
        actionable=True, created=T0,
    )  # fmt: skip


# --- trials, credits and schedules --------------------------------------------------------------------------------------


@SHAPES
def test_a_trial_is_told_with_what_it_was_given_for(shape: str) -> None:
    items = [samples.item(shape, id="si_2", price=samples.price(id="price_2"), quantity=None), samples.item(shape)]
    body = samples.subscription(
        shape, trial_start=T0, trial_end=T0 + 9, items={"data": items, "has_more": False}, schedule="sub_sched_1"
    )
    told = read(body)
    given_for = (("price_1", 2), ("price_2", 1))
    assert told.trials == (Trial(start=T0, end=T0 + 9, told_at=AS_OF, items=given_for, items_at=AS_OF),)
    assert told.schedule == "sub_sched_1"


@pytest.mark.parametrize("over", [{"trial_start": T0}, {"trial_end": T0 + 9}, {}])
def test_half_a_trial_is_none(over: Json) -> None:
    assert read(samples.subscription(**over)).trials == ()


NUMBERS = [("500", 500), ("0", 0), ("007", 7), (str(10**9), 10**9)]
SLIPS = ["", "-1", "+5", "5.0", "1e3", " 5", "5\n", "\u0665", str(10**9 + 1), "0" * 11, 500, None, True, [], {}]


@SHAPES
@pytest.mark.parametrize(("value", "granted"), [*NUMBERS, *[(slip, None) for slip in SLIPS]])
def test_what_a_price_grants_is_a_whole_number_or_nothing(shape: str, value: Any, granted: int | None) -> None:
    """The metadata of the price, on an item and in old shapes on an invoice's line; slips are ignored, never guessed at."""
    priced = samples.price(metadata={"credits": value, "other": "9"})
    item = samples.item(shape, price=priced)
    told = read(samples.subscription(shape, items={"data": [item, item], "has_more": False})).price_credits
    assert told == (() if granted is None else (PriceCredits(price="price_1", credits=granted, since=AS_OF),))
    line = read(changed(samples.invoice("old"), "lines.data.0.price", priced)).lines[0]
    assert line.credits == granted


def test_credits_of_several_prices_are_told_in_one_order() -> None:
    prices = [("price_2", {"trial_credits": "5"}), ("price_1", {"credits": "7", "trial_credits": "x"}), ("price_3", {})]
    items = [samples.item(id=f"si_{n}", price=samples.price(id=p, metadata=m)) for n, (p, m) in enumerate(prices)]
    assert read(samples.subscription(items={"data": items, "has_more": False})).price_credits == (
        PriceCredits(price="price_1", credits=7, since=AS_OF),
        PriceCredits(price="price_2", trial_credits=5, since=AS_OF),
    )


def test_an_old_item_with_a_plan_only_tells_the_plans_credits() -> None:
    plan = {"id": "gold", "product": "prod_1", "interval": "week", "interval_count": 1, "metadata": {"credits": "9"}}
    item = changed(samples.item("old", plan=plan), "price", ...)
    told = read(samples.subscription("old", items={"data": [item], "has_more": False}))
    assert told.price_credits == (PriceCredits(price="gold", credits=9, since=AS_OF),)


def test_a_schedule_ends_with_its_last_phase_and_keeps_the_subscription_it_released() -> None:
    told = SubscriptionSchedule(
        id="sub_sched_1", as_of=AS_OF, customer="cus_1", subscription="sub_1", status="active", end_behavior="cancel",
        ends_at=T0 + MONTH, created=T0,
    )  # fmt: skip
    assert read(samples.subscription_schedule()) == told
    released = samples.subscription_schedule(
        status="released", subscription=None, released_subscription="sub_1", released_at=T0 + 7, phases=[]
    )
    fact = read(released)
    assert (fact.subscription, fact.released_at, fact.ends_at) == ("sub_1", T0 + 7, None)
    last = {"start_date": T0 + MONTH, "end_date": T0 + 2 * MONTH}
    assert read(samples.subscription_schedule(phases=[{"end_date": T0 + MONTH}, last])).ends_at == T0 + 2 * MONTH


def test_the_lines_of_a_checkout_session_read_as_one_fact() -> None:
    monthly = samples.session_line(id="li_2", price=samples.price(), quantity=None, amount_total=2900)
    pages = [page(samples.session_line(), has_more=True), page(monthly)]
    pack = SessionLine(id="li_1", price="price_pack", quantity=2, amount_minor=3000, currency="usd", credits=100)
    plan = SessionLine(id="li_2", price="price_1", amount_minor=2900, currency="usd", recurring=True)
    whole = SessionLines(id="lines:cs_1", as_of=AS_OF, session="cs_1", lines=(pack, plan))
    cs = SessionId("cs_1")
    assert read_session_lines(cs, pages, AS_OF) == whole
    assert decode(encode(whole)) == whole
    assert read_session_lines(cs, pages[:1], AS_OF).complete is False
    assert read_session_lines(cs, [], AS_OF).complete is False


def test_a_session_line_without_price_is_read_and_another_kind_of_object_is_refused() -> None:
    (line,) = read_session_lines(SessionId("cs_1"), [page(samples.session_line(price=None))], AS_OF).lines
    assert (line.price, line.recurring, line.credits) == (None, False, None)
    for damaged in (samples.charge(), samples.session_line(amount_total=None), samples.session_line(quantity=-1)):
        with pytest.raises(Unreadable):
            read_session_lines(SessionId("cs_1"), [page(damaged)], AS_OF)


# --- disputes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "sent"), [(0, False), (1, True), (None, False), (..., False)])
def test_evidence_is_submitted_when_a_submission_was_counted(count: Any, sent: bool) -> None:
    staged = changed(samples.dispute(), "evidence_details.has_evidence", True)
    assert read(changed(staged, "evidence_details.submission_count", count)).evidence_submitted == sent


@pytest.mark.parametrize(
    ("moved", "withdrawn"),
    [
        (None, None),
        ([], 0),
        ([(-2900, "usd")], 2900),
        ([(-2900, "usd"), (2900, "usd")], 0),
        ([(-2900, "usd"), (1900, "usd")], 1000),
        ([(-2700, "eur")], None),
    ],
)
def test_what_a_dispute_took_is_the_sum_of_its_movements_in_its_own_currency(moved: Any, withdrawn: int | None) -> None:
    txns = moved and [{"id": "txn_1", "amount": amount, "currency": c, "fee": 1500} for amount, c in moved]
    told = read(samples.dispute(balance_transactions=[] if moved == [] else txns, is_charge_refundable=True))
    assert (told.withdrawn_minor, told.refundable) == (withdrawn, True)


@pytest.mark.parametrize(
    "payment", [{"type": "charge", "charge": "ch_9", "payment_intent": None}, {"type": "charge", "charge": "ch_9"}]
)
def test_payment_variants_may_be_absent_or_null(payment: Json) -> None:
    told = read(samples.invoice_payment(payment=payment, amount_paid=None, status="open", status_transitions=None))
    assert (told.charge, told.payment_intent, told.amount_paid_minor, told.paid_at) == ("ch_9", None, None, None)


@pytest.mark.parametrize("details", [None, {"due_by": 0}, {"due_by": None}])
def test_a_dispute_without_deadline(details: Json | None) -> None:
    assert read(samples.dispute(evidence_details=details)).due_by is None


def test_a_deleted_customer_has_an_id_only() -> None:
    assert read({"id": "cus_1", "object": "customer", "deleted": True}) == Customer(
        id="cus_1", as_of=AS_OF, deleted=True
    )


@pytest.mark.parametrize("kind", ["invoice", "subscription", "customer"])
def test_objects_on_a_test_clock_are_marked(kind: str) -> None:
    assert read(SAMPLES[kind] | {"test_clock": "clock_1"}).test_clock
    assert not read(SAMPLES[kind]).test_clock


# --- tolerance ----------------------------------------------------------------------------------------------------------

LINKS = {
    "charge": ["customer", "payment_intent"],
    "payment_intent": ["customer", "latest_charge"],
    "invoice": ["customer", "parent.subscription_details.subscription", "lines.data.0.pricing.price_details.price"],
    "invoice_payment": ["invoice", "payment.payment_intent"],
    "subscription": ["customer", "latest_invoice", "items.data.0.price.product"],
    "subscription_schedule": ["customer", "subscription"],
    "refund": ["charge", "payment_intent"],
    "dispute": ["charge", "payment_intent"],
    "checkout.session": ["customer", "subscription", "invoice"],
    "radar.early_fraud_warning": ["charge", "payment_intent"],
}


@pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind, paths in LINKS.items() for path in paths])
def test_an_expanded_object_reads_like_its_id(kind: str, path: str) -> None:
    link: Any = reduce(lambda value, key: value[int(key) if key.isdigit() else key], path.split("."), SAMPLES[kind])
    assert isinstance(link, str)
    assert read(changed(SAMPLES[kind], path, {"id": link, "object": "thing", "amount": 1.5})) == read(SAMPLES[kind])


@pytest.mark.parametrize("kind", SAMPLES)
def test_unknown_fields_change_nothing(kind: str) -> None:
    assert read(SAMPLES[kind] | {"brand_new": {"a": [1.5, None]}, "zzz": "\x00"}) == read(SAMPLES[kind])


@pytest.mark.parametrize("kind", [kind for kind in SAMPLES if "status" in SAMPLES[kind]])
def test_unknown_enum_values_are_kept_as_they_are(kind: str) -> None:
    assert read(SAMPLES[kind] | {"status": "of_the_future"}).status == "of_the_future"


def test_an_unknown_tax_behavior_adds_nothing() -> None:
    future = changed(samples.invoice(), "lines.data.0.taxes.0.tax_behavior", "of_the_future")
    assert read(future).lines[0].tax_exclusive_minor == 0


def test_metadata_becomes_strings_and_null_is_no_value() -> None:
    told = read(samples.charge(metadata={"a": 1, "b": True, "c": None, "d": "x\x00y", "e": "\N{SNOWMAN}"}))
    assert told.metadata == {"a": "1", "b": "True", "d": "x\x00y", "e": "\N{SNOWMAN}"}
    assert decode(encode(told)) == told
    assert read(samples.charge(metadata=None)).metadata == {}


@pytest.mark.parametrize("email", [None, "", "  "])
def test_no_e_mail_is_equal_to_nobodys(email: str | None) -> None:
    assert read(samples.customer(email=email)).email_hash is None


def test_no_fact_keeps_a_personal_datum() -> None:
    for obj in SAMPLES.values():
        assert b"example" not in encode(read(obj)).lower()


# --- what is refused ----------------------------------------------------------------------------------------------------

NEEDED = {
    "charge": ["id", "amount", "amount_refunded", "captured", "created", "currency", "status"],
    "payment_intent": ["id", "amount", "created", "currency", "status"],
    "invoice": [
        *("id", "amount_due", "amount_paid", "created", "currency", "starting_balance", "total", "status"),
        *("lines.data.0.amount", "lines.data.1.currency", "lines.data.0.period", "lines.data.0.period.end"),
        *("lines.data.0.taxes.0.amount", "lines.data.0.taxes.0.tax_behavior", "lines.data.0.discount_amounts.0.amount"),
    ],
    "invoice_payment": ["id", "created", "currency", "invoice", "payment", "status"],
    "subscription": [
        *("id", "created", "status", "items.data.0.id", "items.data.0.price", "items.data.0.price.id"),
        *("items.data.0.current_period_start", "items.data.0.current_period_end"),
    ],
    "subscription_schedule": ["id", "created", "status"],
    "customer": ["id", "created"],
    "refund": ["id", "amount", "created", "currency", "status"],
    "dispute": ["id", "amount", "created", "currency", "status"],
    "checkout.session": ["id", "created", "mode"],
    "radar.early_fraud_warning": ["id", "actionable", "created"],
}


@pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind, paths in NEEDED.items() for path in paths])
def test_a_missing_field_is_named(kind: str, path: str) -> None:
    error = refused(changed(SAMPLES[kind], path, ...))
    assert error.field == f"{kind}.{path}"
    assert error.object_type == kind
    assert error.object_id == (None if path == "id" else SAMPLES[kind]["id"])
    assert error.field in str(error)
    with pytest.raises(Unreadable) as caught:
        parse_event(event(TYPE_OF[kind], changed(SAMPLES[kind], path, ...)))
    assert str(caught.value) == str(error)


UNFIT = [29.0, 1.5, "2900", True, 2**63, 2**63 - 1, MAX_MINOR + 1, -(2**63) - 1, [], {}]


@pytest.mark.parametrize("value", [*UNFIT, -1, None])
def test_an_unfit_amount_is_refused(value: Any) -> None:
    assert refused(samples.charge(amount=value)).field == "charge.amount"
    assert (
        refused(changed(samples.invoice(), "lines.data.1.period.start", value)).field
        == "invoice.lines.data.1.period.start"
    )


@pytest.mark.parametrize("value", [*UNFIT, None])
def test_an_unfit_signed_amount_is_refused(value: Any) -> None:
    assert refused(changed(samples.invoice(), "lines.data.0.amount", value)).field == "invoice.lines.data.0.amount"


def test_negative_amounts_pass_where_stripe_means_them() -> None:
    body = changed(samples.invoice(total=-5, amount_due=0), "lines.data.0.amount", -MAX_MINOR)
    assert (read(body).total_minor, read(body).lines[0].amount_minor) == (-5, -MAX_MINOR)


@pytest.mark.parametrize("obj_id", ["", "ch_\x00", "ch_1\n", 7, None, "x" * 256])
def test_an_id_that_no_column_can_hold_is_refused_and_not_repeated(obj_id: Any) -> None:
    error = refused(samples.charge(id=obj_id))
    assert (error.field, error.object_id) == ("charge.id", None)
    assert refused(samples.charge(customer={"id": obj_id})).field == "charge.customer.id"


def test_a_message_quotes_no_value() -> None:
    for secret in (
        samples.charge(currency="Ada Example"),
        samples.charge(amount="Ada Example"),
        {"object": "Ada Example"},
    ):
        assert "Ada" not in str(refused(secret))


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"null", b"[]", b"7", b"{}", b'{"object":"event"}', b'{"object":"charge"}', b"\xff", b"{" * 9000,
        b"[" * 100_000, b'{"a":' * 50_000,
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused(payload: bytes) -> None:
    for door in (parse_event, lambda body: read_object(body, AS_OF), lambda body: read_list(body, AS_OF)):
        with pytest.raises(Unreadable):
            door(payload)


def test_text_that_is_not_utf8_is_refused_wherever_it_stands() -> None:
    body = event("charge.succeeded", samples.charge()).replace(b"Subscription creation", b"\xff")
    with pytest.raises(Unreadable, match="not UTF-8"):
        parse_event(body)


@pytest.mark.parametrize("half", [rb"\ud800", rb"\udc00", rb"\ud800abcdefgh", rb"\ud83d\ud83d"])
def test_half_a_surrogate_pair_is_refused(half: bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        parse_event(event("charge.succeeded", samples.charge()).replace(b"o-1", half))
    assert caught.value.field == "event"


def test_a_type_about_one_kind_with_an_object_of_another_is_refused() -> None:
    with pytest.raises(Unreadable) as caught:
        parse_event(event("charge.succeeded", samples.refund()))
    assert (caught.value.field, caught.value.object_id) == ("charge.object", "re_1")


@pytest.mark.parametrize("name", ["id", "type", "created", "livemode", "data"])
def test_an_envelope_without_what_we_need_is_refused(name: str) -> None:
    with pytest.raises(Unreadable) as caught:
        parse_event(wire(changed(json.loads(event("charge.succeeded", samples.charge())), name, ...)))
    assert caught.value.field == f"event.{name}"


# --- envelopes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["invoice.upcoming", "price.created", "of.the.future"])
def test_a_type_that_is_not_in_the_map_has_no_fact(type_: str) -> None:
    told = parse_event(event(type_, {"object": "whatever", "amount": 1.5}))
    assert (told.type, told.fact, told.hint) == (type_, None, None)


def test_a_deleted_customer_is_deleted_though_the_object_does_not_say_so() -> None:
    fact = parse_event(event("customer.deleted", samples.customer())).fact
    assert isinstance(fact, Customer)
    assert (fact.deleted, fact.balance_minor) == (True, -300)


@pytest.mark.parametrize(
    ("previous", "expected"), [({"status": "trialing"}, "trialing"), ({"status": None}, None), ({"x": 1}, None)]
)
def test_the_status_before(previous: Json, expected: str | None) -> None:
    assert (
        parse_event(event("customer.subscription.updated", samples.subscription(), previous=previous)).previous_status
        == expected
    )


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ({}, None), ({"account": "acct_1"}, "acct_1"), ({"context": "acct_2"}, "acct_2"), ({"context": "org_1/acct_3"}, "acct_3"),
        ({"context": "org_1"}, None), ({"account": "acct_1", "context": "acct_2"}, "acct_1"),
    ],
)  # fmt: skip
def test_the_account_of_an_event(over: Json, expected: str | None) -> None:
    assert parse_event(event("charge.succeeded", samples.charge(), **over)).account == expected
    assert parse_event(thin("v1.charge.succeeded", None, **over)).account == expected


@pytest.mark.parametrize(
    ("type_", "url", "expected"),
    [
        ("charge", "/v1/charges/ch_1", "charge"),
        ("dispute", "/v1/disputes/du_1", "dispute"),
        ("charge.dispute", "/v1/disputes/du_1", "dispute"),
        ("checkout.session", "/v1/checkout/sessions/cs_1", "checkout.session"),
        ("customer", "/v1/customers/c%40x", "customer"),
        ("subscription_schedule", "/v1/subscription_schedules/sub_sched_1", "subscription_schedule"),
        ("payout", "/v1/payouts/po_1", None),
        ("charge", "/v2/core/charges/ch_1", None),
        ("charge", "https://example.com/v1/charges/ch_1", None),
        ("charge", "/v1/../admin", None),
        ("charge", "/v1/charges?x=1", None),
    ],
)
def test_a_thin_event_is_a_hint_to_read_what_we_read(type_: str, url: str, expected: str | None) -> None:
    told = parse_event(thin("v1.thing.updated", {"id": "x_1", "type": type_, "url": url}))
    assert told.hint == (None if expected is None else Hint(expected, "x_1", url))
    assert (told.event_id, told.created, told.fact, told.livemode) == ("evt_thin_1", 1795341600, None, True)


@pytest.mark.parametrize("created", ["2026-11-22T10:00:00", "yesterday", 5, "1900-01-01T00:00:00Z"])
def test_a_thin_event_with_an_unclear_time_is_refused(created: Any) -> None:
    with pytest.raises(Unreadable) as caught:
        parse_event(thin("v1.charge.succeeded", None, created=created))
    assert caught.value.field == "event.created"


# --- lists --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_more", [True, False])
def test_a_page_reads_as_its_facts_in_order(has_more: bool) -> None:
    body = page(samples.charge(id="ch_2"), samples.charge("old"), has_more=has_more)
    assert read_list(body, AS_OF) == ([read(samples.charge(id="ch_2")), read(samples.charge())], has_more)


def test_a_page_with_a_bad_object_names_it() -> None:
    with pytest.raises(Unreadable) as caught:
        read_list(page(samples.charge(), samples.charge(id="ch_2", amount=1.5)), AS_OF)
    assert (caught.value.field, caught.value.object_id) == ("charge.amount", "ch_2")


def test_a_page_that_does_not_say_whether_more_follows_is_refused() -> None:
    with pytest.raises(Unreadable) as caught:
        read_list(wire({"object": "list", "data": []}), AS_OF)
    assert caught.value.field == "list.has_more"


def test_balance_transactions_read_as_one_fact() -> None:
    cus = CustomerId("cus_1")
    pages = [
        page(samples.balance_transaction(id="cbtxn_2", amount=2900, ending_balance=0, metadata={"finalsale_action": "a-1"}, type="adjustment"), has_more=True),
        page(samples.balance_transaction()),
    ]  # fmt: skip
    newest = BalanceTransaction(
        id="cbtxn_2", type="adjustment", amount_minor=2900, ending_balance_minor=0, currency="usd", created=T0,
        invoice="in_1", action="a-1",
    )  # fmt: skip
    oldest = BalanceTransaction(
        id="cbtxn_1", type="invoice_overpaid", amount_minor=-2900, ending_balance_minor=-2900, currency="usd", created=T0,
        invoice="in_1",
    )  # fmt: skip
    whole = BalanceRead(id="balance:cus_1", as_of=AS_OF, customer=cus, transactions=(newest, oldest))
    assert read_balance(cus, pages, AS_OF) == whole
    assert read_balance(cus, pages[:1], AS_OF).complete is False
    assert read_balance(cus, [], AS_OF).complete is False
    assert read_balance(cus, [page()], AS_OF) == BalanceRead(id="balance:cus_1", as_of=AS_OF, customer=cus)


def test_another_customers_balance_is_refused() -> None:
    with pytest.raises(Unreadable, match=r"customer_balance_transaction\.customer"):
        read_balance(CustomerId("cus_2"), [page(samples.balance_transaction())], AS_OF)


# --- whatever comes -----------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(min_value=2**62), st.floats(), st.text(max_size=8),
    st.sampled_from(["", "charge", "\x00", "card", "paid", {"id": "x"}, {"data": []}, {"data": [{}], "has_more": False}]),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def paths_of(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, child in inner for path in [(*prefix, key), *paths_of(child, (*prefix, key))]]


ALL: list[Json] = [
    *SAMPLES.values(),
    samples.subscription(trial_start=T0, trial_end=T0 + 9, schedule="sub_sched_1"),
    samples.dispute(balance_transactions=[{"id": "txn_1", "amount": -2900, "currency": "usd"}]),
    samples.charge("old"),
    samples.payment_intent("old"),
    samples.invoice("old"),
    samples.subscription("old"),
]
SPOTS = [(obj, path) for obj in ALL for path in paths_of(obj)]


@settings(max_examples=400, deadline=None)
@given(spot=st.sampled_from(SPOTS), value=JSON)
def test_a_damaged_object_is_read_or_refused_and_never_anything_else(
    spot: tuple[Json, tuple[Any, ...]], value: Any
) -> None:
    obj, path = spot
    damaged = changed(obj, ".".join(map(str, path)), value)
    body = event(TYPE_OF[obj["object"]], damaged)
    for door in (parse_event, lambda _: read_object(wire(damaged), AS_OF), lambda _: read_list(page(damaged), AS_OF)):
        try:
            told = door(body)
        except Unreadable:
            continue
        else:
            fact = getattr(told, "fact", None)
            assert fact is None or decode(encode(fact)) == fact


@settings(max_examples=200, deadline=None)
@given(payload=st.binary(max_size=60) | JSON.map(wire))
@example(
    payload=b'{"object":"event","id":"e","type":"charge.failed","created":1,"livemode":true,"data":{"object":null}}'
)
def test_any_bytes_are_refused_and_never_crash(payload: bytes) -> None:
    for door in (
        parse_event,
        lambda body: read_object(body, AS_OF),
        lambda body: read_balance(CustomerId("c"), [body], AS_OF),
        lambda body: read_session_lines(SessionId("cs_1"), [body], AS_OF),
    ):
        with pytest.raises(Unreadable):
            door(payload)
