"""Stripe objects as they come over the wire, made small: `new` (basil and later) and `old` (acacia and earlier) shapes.

Each pair tells the same story, so that both must read as the same fact. Values are ours; keys are Stripe's.
"""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]

T0 = 1_780_000_000
MONTH = 2_592_000
NEW, OLD = "2026-10-28.endive", "2025-02-24.acacia"


def event(type_: str, obj: Json, **over: Any) -> bytes:
    """A snapshot event about `obj` as a webhook's body. `previous` becomes `previous_attributes`."""
    told = {"object": obj}
    if previous := over.pop("previous", None):
        told["previous_attributes"] = previous
    body: Json = {
        "id": "evt_1",
        "object": "event",
        "api_version": NEW,
        "created": T0 + 5,
        "data": told,
        "livemode": True,
        "pending_webhooks": 1,
        "request": {"id": "req_1", "idempotency_key": "k"},
        "type": type_,
    }
    return wire(body | over)


def thin(type_: str, related: Json | None, **over: Any) -> bytes:
    """A thin event, as an event destination sends it."""
    body: Json = {
        "id": "evt_thin_1",
        "object": "v2.core.event",
        "type": type_,
        "livemode": True,
        "created": "2026-11-22T10:00:00.250Z",
        "context": None,
        "related_object": related,
        "reason": None,
    }
    return wire(body | over)


def wire(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode()


def page(*objects: Json, has_more: bool = False) -> bytes:
    return wire({"object": "list", "data": list(objects), "has_more": has_more, "url": "/v1/things"})


def charge(shape: str = "new", **over: Any) -> Json:
    body: Json = {
        "id": "ch_1",
        "object": "charge",
        "amount": 2900,
        "amount_captured": 2900,
        "amount_refunded": 500,
        "balance_transaction": "txn_1",
        "billing_details": {
            "address": {
                "city": None,
                "country": "DE",
                "line1": None,
                "line2": None,
                "postal_code": "10115",
                "state": None,
            },
            "email": " Ada@Example.com",
            "name": "Ada Example",
            "phone": None,
        },
        "captured": True,
        "created": T0,
        "currency": "usd",
        "customer": "cus_1",
        "description": "Subscription creation",
        "disputed": False,
        "failure_code": None,
        "livemode": True,
        "metadata": {"order_id": "o-1"},
        "outcome": {"network_status": "approved_by_network", "risk_level": "normal", "type": "authorized"},
        "paid": True,
        "payment_intent": "pi_1",
        "payment_method": "pm_1",
        "payment_method_details": {
            "card": {"brand": "visa", "country": "US", "exp_month": 8, "fingerprint": "fp_1", "last4": "4242"},
            "type": "card",
        },
        "receipt_email": None,
        "refunded": False,
        "status": "succeeded",
    }
    if shape == "old":
        body |= {"refunds": {"object": "list", "data": [], "has_more": False}, "source": None, "dispute": None}
        del body["disputed"]
    return body | over


def payment_intent(shape: str = "new", **over: Any) -> Json:
    body: Json = {
        "id": "pi_1",
        "object": "payment_intent",
        "amount": 2900,
        "amount_received": 2900,
        "created": T0,
        "currency": "usd",
        "customer": "cus_1",
        "latest_charge": "ch_1",
        "livemode": True,
        "metadata": {"order_id": "o-1"},
        "payment_method_types": ["card"],
        "status": "succeeded",
    }
    if shape == "old":
        del body["latest_charge"]
        body["charges"] = {"object": "list", "data": [charge("old")], "has_more": False}
    return body | over


def price(**over: Any) -> Json:
    return {
        "id": "price_1",
        "object": "price",
        "currency": "usd",
        "metadata": {},
        "product": "prod_1",
        "recurring": {"interval": "month", "interval_count": 1, "usage_type": "licensed"},
        "type": "recurring",
        "unit_amount": 3000,
    } | over


def line(shape: str = "new", **over: Any) -> Json:
    """A subscription line: 30.00 with 3.00 off, 0.50 billing credit, 2.00 tax on top and 1.00 tax inside."""
    body: Json = {
        "id": "il_1",
        "object": "line_item",
        "amount": 3000,
        "currency": "usd",
        "description": "1 × Basic",
        "discount_amounts": [{"amount": 300, "discount": "di_1"}],
        "discountable": True,
        "livemode": True,
        "metadata": {},
        "period": {"start": T0, "end": T0 + MONTH},
        "pretax_credit_amounts": [
            {"amount": 300, "discount": "di_1", "type": "discount"},
            {"amount": 50, "credit_balance_transaction": "cbtxn_1", "type": "credit_balance_transaction"},
        ],
        "quantity": 2,
        "subscription": "sub_1",
    }
    if shape == "old":
        body |= {
            "plan": {
                "id": "price_1",
                "object": "plan",
                "product": "prod_1",
                "usage_type": "licensed",
                "interval": "month",
            },
            "price": price(),
            "proration": False,
            "subscription_item": "si_1",
            "tax_amounts": [{"amount": 200, "inclusive": False}, {"amount": 100, "inclusive": True}],
            "type": "subscription",
        }
    else:
        body |= {
            "parent": {
                "invoice_item_details": None,
                "subscription_item_details": {
                    "invoice_item": None,
                    "proration": False,
                    "proration_details": {"credited_items": None},
                    "subscription": "sub_1",
                    "subscription_item": "si_1",
                },
                "type": "subscription_item_details",
            },
            "pricing": {
                "price_details": {"price": "price_1", "product": "prod_1"},
                "type": "price_details",
                "unit_amount_decimal": "1500",
            },
            "taxes": [{"amount": 200, "tax_behavior": "exclusive"}, {"amount": 100, "tax_behavior": "inclusive"}],
        }
    return body | over


def added_line(shape: str = "new", **over: Any) -> Json:
    """A one-time line (a credit pack) beside the subscription's own."""
    body = line(shape, id="il_2", discount_amounts=[], pretax_credit_amounts=[], subscription=None, quantity=1)
    if shape == "old":
        one_time = price(id="price_pack", product="prod_pack", recurring=None, type="one_time")
        body |= {"invoice_item": "ii_1", "plan": None, "price": one_time, "tax_amounts": [], "type": "invoiceitem"}
        del body["subscription_item"]
    else:
        details = {"invoice_item": "ii_1", "proration": False, "proration_details": None, "subscription": None}
        body["parent"] = {
            "invoice_item_details": details,
            "subscription_item_details": None,
            "type": "invoice_item_details",
        }
        body["pricing"] = {"price_details": {"price": "price_pack", "product": "prod_pack"}, "type": "price_details"}
        body["taxes"] = []
    return body | over


def invoice(shape: str = "new", **over: Any) -> Json:
    lines = {
        "object": "list",
        "data": [line(shape), added_line(shape)],
        "has_more": False,
        "total_count": 2,
        "url": "/v1/invoices/in_1/lines",
    }
    body: Json = {
        "id": "in_1",
        "object": "invoice",
        "amount_due": 5850,
        "amount_paid": 5850,
        "amount_remaining": 0,
        "attempt_count": 1,
        "attempted": True,
        "billing_reason": "subscription_create",
        "created": T0,
        "currency": "usd",
        "customer": "cus_1",
        "customer_email": "ada@example.com",
        "customer_name": "Ada Example",
        "ending_balance": 0,
        "lines": lines,
        "livemode": True,
        "metadata": {"source": "web"},
        "period_end": T0,
        "period_start": T0,
        "post_payment_credit_notes_amount": 100,
        "pre_payment_credit_notes_amount": 20,
        "shipping_cost": {"amount_subtotal": 700, "amount_tax": 0, "amount_total": 700},
        "starting_balance": -300,
        "status": "paid",
        "status_transitions": {"finalized_at": T0, "paid_at": T0 + 3, "voided_at": None},
        "subtotal": 6000,
        "test_clock": None,
        "total": 6150,
    }
    details = {"metadata": {"user_id": "u1"}}
    if shape == "old":
        body |= {"charge": "ch_1", "payment_intent": "pi_1", "paid": True, "paid_out_of_band": False}
        body |= {"subscription": "sub_1", "subscription_details": details, "tax": 300}
    else:
        body |= {"amount_overpaid": 0, "amount_paid_off_stripe": 0, "total_taxes": []}
        body["parent"] = {
            "quote_details": None,
            "subscription_details": details | {"subscription": "sub_1", "subscription_proration_date": None},
            "type": "subscription_details",
        }
    return body | over


def invoice_payment(**over: Any) -> Json:
    return {
        "id": "inpay_1",
        "object": "invoice_payment",
        "amount_paid": 5850,
        "amount_requested": 5850,
        "created": T0,
        "currency": "usd",
        "invoice": "in_1",
        "is_default": True,
        "livemode": True,
        "payment": {"payment_intent": "pi_1", "type": "payment_intent"},
        "status": "paid",
        "status_transitions": {"canceled_at": None, "paid_at": T0 + 3},
    } | over


def item(shape: str = "new", **over: Any) -> Json:
    body: Json = {
        "id": "si_1",
        "object": "subscription_item",
        "created": T0,
        "metadata": {},
        "price": price(),
        "quantity": 2,
        "subscription": "sub_1",
    }
    if shape == "new":
        body |= {"current_period_start": T0, "current_period_end": T0 + MONTH, "current_trial": None}
    return body | over


def subscription(shape: str = "new", **over: Any) -> Json:
    body: Json = {
        "id": "sub_1",
        "object": "subscription",
        "cancel_at": None,
        "cancel_at_period_end": True,
        "canceled_at": T0 + 100,
        "cancellation_details": {"comment": None, "feedback": None, "reason": "cancellation_requested"},
        "created": T0,
        "currency": "usd",
        "customer": "cus_1",
        "ended_at": None,
        "items": {"object": "list", "data": [item(shape)], "has_more": False, "total_count": 1, "url": "/v1/x"},
        "latest_invoice": "in_1",
        "livemode": True,
        "metadata": {"user_id": "u1"},
        "pause_collection": {"behavior": "void", "resumes_at": None},
        "status": "active",
        "schedule": None,
        "test_clock": None,
        "trial_end": None,
        "trial_start": None,
    }
    if shape == "old":
        body |= {"current_period_start": T0, "current_period_end": T0 + MONTH, "discount": None}
    return body | over


def subscription_schedule(**over: Any) -> Json:
    """One phase of a month on `sub_1`, which ends with it."""
    phase = {
        "items": [{"price": "price_1", "quantity": 2}],
        "start_date": T0,
        "end_date": T0 + MONTH,
        "trial_end": None,
    }
    return {
        "id": "sub_sched_1",
        "object": "subscription_schedule",
        "canceled_at": None,
        "completed_at": None,
        "created": T0,
        "current_phase": {"start_date": T0, "end_date": T0 + MONTH},
        "customer": "cus_1",
        "end_behavior": "cancel",
        "livemode": True,
        "metadata": {},
        "phases": [phase],
        "released_at": None,
        "released_subscription": None,
        "status": "active",
        "subscription": "sub_1",
        "test_clock": None,
    } | over


def customer(**over: Any) -> Json:
    return {
        "id": "cus_1",
        "object": "customer",
        "balance": -300,
        "created": T0,
        "email": "ada@example.com",
        "livemode": True,
        "metadata": {"user_id": "u1"},
        "name": "Ada Example",
        "test_clock": None,
    } | over


def refund(**over: Any) -> Json:
    return {
        "id": "re_1",
        "object": "refund",
        "amount": 500,
        "charge": "ch_1",
        "created": T0 + 60,
        "currency": "usd",
        "metadata": {"finalsale_action": "a-1"},
        "payment_intent": "pi_1",
        "reason": "duplicate",
        "status": "succeeded",
    } | over


def dispute(**over: Any) -> Json:
    return {
        "id": "du_1",
        "object": "dispute",
        "amount": 2900,
        "balance_transactions": [],
        "charge": "ch_1",
        "created": T0 + 90,
        "currency": "usd",
        "evidence_details": {"due_by": T0 + MONTH, "has_evidence": False, "past_due": False, "submission_count": 0},
        "intended_submission_method": "manual",
        "is_charge_refundable": False,
        "livemode": True,
        "metadata": {},
        "payment_intent": "pi_1",
        "reason": "fraudulent",
        "status": "needs_response",
    } | over


def checkout_session(**over: Any) -> Json:
    return {
        "id": "cs_1",
        "object": "checkout.session",
        "client_reference_id": "u1",
        "created": T0,
        "customer": "cus_1",
        "invoice": "in_1",
        "livemode": True,
        "metadata": {"user_id": "u1"},
        "mode": "subscription",
        "payment_intent": None,
        "payment_status": "paid",
        "status": "complete",
        "subscription": "sub_1",
    } | over


def session_line(**over: Any) -> Json:
    """A credit pack bought twice through a Checkout session."""
    return {
        "id": "li_1",
        "object": "item",
        "amount_discount": 0,
        "amount_subtotal": 3000,
        "amount_tax": 0,
        "amount_total": 3000,
        "currency": "usd",
        "description": "100 credits",
        "price": price(id="price_pack", metadata={"credits": "100"}, recurring=None, type="one_time"),
        "quantity": 2,
    } | over


def early_fraud_warning(**over: Any) -> Json:
    return {
        "id": "issfr_1",
        "object": "radar.early_fraud_warning",
        "actionable": True,
        "charge": "ch_1",
        "created": T0,
        "fraud_type": "made_with_stolen_card",
        "livemode": True,
        "payment_intent": "pi_1",
    } | over


def balance_transaction(**over: Any) -> Json:
    return {
        "id": "cbtxn_1",
        "object": "customer_balance_transaction",
        "amount": -2900,
        "created": T0,
        "currency": "usd",
        "customer": "cus_1",
        "ending_balance": -2900,
        "invoice": "in_1",
        "metadata": {},
        "type": "invoice_overpaid",
    } | over


SAMPLES: dict[str, Json] = {
    "charge": charge(),
    "payment_intent": payment_intent(),
    "refund": refund(),
    "dispute": dispute(),
    "radar.early_fraud_warning": early_fraud_warning(),
    "invoice": invoice(),
    "invoice_payment": invoice_payment(),
    "customer": customer(),
    "subscription": subscription(),
    "subscription_schedule": subscription_schedule(),
    "checkout.session": checkout_session(),
}
"""One object of every kind that is read, by its `object`."""
