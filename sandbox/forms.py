"""Blank Stripe objects: every field the API sends, with the value it has when nothing is known about it yet."""

from __future__ import annotations

from typing import Any

import msgspec

Obj = dict[str, Any]

DISPUTE_EVIDENCE = [
    "access_activity_log",
    "billing_address",
    "cancellation_policy",
    "cancellation_policy_disclosure",
    "cancellation_rebuttal",
    "customer_communication",
    "customer_email_address",
    "customer_name",
    "customer_purchase_ip",
    "customer_signature",
    "duplicate_charge_documentation",
    "duplicate_charge_explanation",
    "duplicate_charge_id",
    "product_description",
    "receipt",
    "refund_policy",
    "refund_policy_disclosure",
    "refund_refusal_explanation",
    "service_date",
    "service_documentation",
    "shipping_address",
    "shipping_carrier",
    "shipping_date",
    "shipping_documentation",
    "shipping_tracking_number",
    "uncategorized_file",
    "uncategorized_text",
]


class Method(msgspec.Struct, kw_only=True):
    """A payment method of the sandbox, and how it behaves."""

    id: str
    type: str = "card"
    """`card`, `us_bank_account` or `sepa_debit`."""
    fingerprint: str = "Xt5EWLLDS7FJjR1c"
    last4: str = "4242"
    brand: str = "visa"
    charge: str = "succeeds"
    """`succeeds`, `declines`, or for bank debits also `fails` (accepted first, refused when it should settle)."""
    settle_s: int = 4 * 86400
    """Bank debits: seconds from `pending` to the end."""
    refund: str = "succeeds"
    """`succeeds`, `pending` (and succeeds later), `pending_fails`, or `fails_later` (succeeded first)."""
    dispute: str | None = None
    """`chargeback` or `inquiry`: opened right after a successful charge."""

    @property
    def delayed(self) -> bool:
        return self.type != "card"


METHODS = {
    "pm_card_visa": Method(id="pm_card_visa"),
    "pm_card_mastercard": Method(id="pm_card_mastercard", brand="mastercard", last4="4444", fingerprint="sR2fJYQ8wDk1"),
    "pm_card_chargeDeclined": Method(id="pm_card_chargeDeclined", last4="0002", charge="declines"),
    "pm_card_chargeCustomerFail": Method(id="pm_card_chargeCustomerFail", last4="0341", charge="declines"),
    "pm_card_createDispute": Method(id="pm_card_createDispute", last4="0259", dispute="chargeback"),
    "pm_card_createDisputeInquiry": Method(id="pm_card_createDisputeInquiry", last4="1976", dispute="inquiry"),
    "pm_card_pendingRefund": Method(id="pm_card_pendingRefund", last4="7726", refund="pending"),
    "pm_card_refundFail": Method(id="pm_card_refundFail", last4="5126", refund="fails_later"),
    "pm_usBankAccount_success": Method(id="pm_usBankAccount_success", type="us_bank_account", last4="6789"),
    "pm_usBankAccount_debitNotAuthorized": Method(
        id="pm_usBankAccount_debitNotAuthorized", type="us_bank_account", last4="1113", charge="fails"
    ),
}
"""The names documented at stripe.com/docs/testing that make sense here."""


def address() -> Obj:
    return {"city": None, "country": "US", "line1": None, "line2": None, "postal_code": "94107", "state": None}


def customer(id_: str, created: int, livemode: bool, email: str | None, name: str | None, metadata: Obj) -> Obj:
    return {
        "id": id_,
        "object": "customer",
        "address": None,
        "balance": 0,
        "business_name": None,
        "created": created,
        "currency": None,
        "customer_account": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "discount": None,
        "email": email,
        "individual_name": name,
        "invoice_prefix": id_[4:12].upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": livemode,
        "metadata": metadata,
        "name": name,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }


def product(id_: str, created: int, livemode: bool, name: str, metadata: Obj) -> Obj:
    return {
        "id": id_,
        "object": "product",
        "active": True,
        "created": created,
        "default_price": None,
        "description": None,
        "images": [],
        "livemode": livemode,
        "marketing_features": [],
        "metadata": metadata,
        "name": name,
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": None,
        "tax_code": None,
        "type": "service",
        "unit_label": None,
        "updated": created,
        "url": None,
    }


def price(
    id_: str, created: int, livemode: bool, *, product: str, currency: str, unit_amount: int, recurring: Obj | None
) -> Obj:
    return {
        "id": id_,
        "object": "price",
        "active": True,
        "billing_scheme": "per_unit",
        "created": created,
        "currency": currency,
        "custom_unit_amount": None,
        "livemode": livemode,
        "lookup_key": None,
        "metadata": {},
        "nickname": None,
        "product": product,
        "recurring": recurring,
        "tax_behavior": "unspecified",
        "tiers_mode": None,
        "transform_quantity": None,
        "type": "recurring" if recurring else "one_time",
        "unit_amount": unit_amount,
        "unit_amount_decimal": str(unit_amount),
    }


def plan(price: Obj) -> Obj:
    """The legacy twin of a recurring price, still sent inside subscription items."""
    return {
        "id": price["id"],
        "object": "plan",
        "active": True,
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": "per_unit",
        "created": price["created"],
        "currency": price["currency"],
        "interval": price["recurring"]["interval"],
        "interval_count": price["recurring"]["interval_count"],
        "livemode": price["livemode"],
        "metadata": price["metadata"],
        "meter": None,
        "nickname": None,
        "product": price["product"],
        "tiers_mode": None,
        "transform_usage": None,
        "trial_period_days": None,
        "usage_type": price["recurring"]["usage_type"],
    }


def payment_intent(
    id_: str, created: int, livemode: bool, *, amount: int, currency: str, customer: str | None, metadata: Obj
) -> Obj:
    return {
        "id": id_,
        "object": "payment_intent",
        "amount": amount,
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": 0,
        "application": None,
        "application_fee_amount": None,
        "automatic_payment_methods": None,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": "automatic",
        "client_secret": f"{id_}_secret_{id_[-8:]}",
        "confirmation_method": "automatic",
        "created": created,
        "currency": currency,
        "customer": customer,
        "customer_account": None,
        "description": None,
        "excluded_payment_method_types": None,
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": livemode,
        "metadata": metadata,
        "next_action": None,
        "on_behalf_of": None,
        "payment_details": None,
        "payment_method": None,
        "payment_method_configuration_details": None,
        "payment_method_options": {
            "card": {
                "installments": None,
                "mandate_options": None,
                "network": None,
                "request_three_d_secure": "automatic",
            }
        },
        "payment_method_types": ["card"],
        "processing": None,
        "receipt_email": None,
        "review": None,
        "setup_future_usage": None,
        "shipping": None,
        "source": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": "requires_payment_method",
        "transfer_data": None,
        "transfer_group": None,
    }


def _method_details(method: Method, pi: Obj) -> Obj:
    if method.type == "card":
        card = {
            "amount_authorized": pi["amount"],
            "authorization_code": None,
            "brand": method.brand,
            "checks": {"address_line1_check": None, "address_postal_code_check": "pass", "cvc_check": "pass"},
            "country": "US",
            "exp_month": 12,
            "exp_year": 2031,
            "extended_authorization": {"status": "disabled"},
            "fingerprint": method.fingerprint,
            "funding": "credit",
            "incremental_authorization": {"status": "unavailable"},
            "installments": None,
            "last4": method.last4,
            "mandate": None,
            "multicapture": {"status": "unavailable"},
            "network": method.brand,
            "network_token": {"used": False},
            "network_transaction_id": f"9{pi['created']}"[:10],
            "overcapture": {"maximum_amount_capturable": pi["amount"], "status": "unavailable"},
            "regulated_status": "unregulated",
            "three_d_secure": None,
            "wallet": None,
        }
        return {"card": card, "type": "card"}
    bank = {
        "account_holder_type": "individual",
        "account_type": "checking",
        "bank_name": "STRIPE TEST BANK",
        "fingerprint": method.fingerprint,
        "last4": method.last4,
        "mandate": None,
        "payment_reference": None,
        "routing_number": "110000000",
    }
    sepa = {
        "bank_code": "37040044",
        "branch_code": None,
        "country": "DE",
        "fingerprint": method.fingerprint,
        "last4": method.last4,
        "mandate": None,
    }
    return {method.type: sepa if method.type == "sepa_debit" else bank, "type": method.type}


def charge(id_: str, created: int, livemode: bool, *, pi: Obj, method: Method, email: str | None) -> Obj:
    return {
        "id": id_,
        "object": "charge",
        "amount": pi["amount"],
        "amount_captured": 0,
        "amount_refunded": 0,
        "application": None,
        "application_fee": None,
        "application_fee_amount": None,
        "balance_transaction": None,
        "billing_details": {"address": address(), "email": email, "name": None, "phone": None, "tax_id": None},
        "calculated_statement_descriptor": "APTNODE",
        "captured": False,
        "created": created,
        "currency": pi["currency"],
        "customer": pi["customer"],
        "description": pi["description"],
        "destination": None,
        "dispute": None,
        "disputed": False,
        "failure_balance_transaction": None,
        "failure_code": None,
        "failure_message": None,
        "fraud_details": {},
        "livemode": livemode,
        "metadata": dict(pi["metadata"]),
        "on_behalf_of": None,
        "order": None,
        "outcome": {
            "advice_code": None,
            "network_advice_code": None,
            "network_decline_code": None,
            "network_status": "approved_by_network",
            "reason": None,
            "risk_level": "normal",
            "risk_score": 21,
            "seller_message": "Payment complete.",
            "type": "authorized",
        },
        "paid": False,
        "payment_intent": pi["id"],
        "payment_method": method.id,
        "payment_method_details": _method_details(method, pi),
        "presentment_details": None,
        "radar_options": {},
        "receipt_email": None,
        "receipt_number": None,
        "receipt_url": None,
        "refunded": False,
        "review": None,
        "shipping": None,
        "source": None,
        "source_transfer": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": "pending",
        "transfer_data": None,
        "transfer_group": None,
    }


def refund(id_: str, created: int, *, charge: Obj, amount: int, reason: str | None, metadata: Obj) -> Obj:
    kind = charge["payment_method_details"]["type"]
    details: Obj = {"card": {"type": "refund"}} if kind == "card" else {kind: {}}
    return {
        "id": id_,
        "object": "refund",
        "amount": amount,
        "balance_transaction": None,
        "charge": charge["id"],
        "created": created,
        "currency": charge["currency"],
        "customer": charge["customer"],
        "destination_details": details | {"type": kind},
        "metadata": metadata,
        "payment_intent": charge["payment_intent"],
        "payment_method": charge["payment_method"],
        "presentment_details": None,
        "reason": reason,
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": "succeeded",
        "transfer_reversal": None,
    }


def dispute(
    id_: str, created: int, livemode: bool, *, charge: Obj, amount: int, reason: str, status: str, case_type: str
) -> Obj:
    details: Obj = {"type": charge["payment_method_details"]["type"]}
    if details["type"] == "card":
        brand = charge["payment_method_details"]["card"]["brand"]
        details["card"] = {"brand": brand, "case_type": case_type, "network": brand, "network_reason_code": "10.4"}
    return {
        "id": id_,
        "object": "dispute",
        "amount": amount,
        "balance_transactions": [],
        "charge": charge["id"],
        "created": created,
        "currency": charge["currency"],
        "enhanced_eligibility_types": [],
        "evidence": dict.fromkeys(DISPUTE_EVIDENCE) | {"enhanced_evidence": {}},
        "evidence_details": {
            "due_by": created + 9 * 86400,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
            "submission_method": "not_submitted",
        },
        "intended_submission_method": "prefer_manual",
        "is_charge_refundable": case_type == "inquiry" and not charge["refunded"],
        "livemode": livemode,
        "metadata": {},
        "network_reason_code": None,
        "payment_intent": charge["payment_intent"],
        "payment_method_details": details,
        "reason": reason,
        "status": status,
    }


def balance_transaction(
    id_: str, created: int, *, source: Obj, type_: str, category: str, amount: int, fee: int, currency: str
) -> Obj:
    details = [
        {"amount": fee, "application": None, "currency": currency, "description": "Stripe fee", "type": "stripe_fee"}
    ]
    return {
        "id": id_,
        "object": "balance_transaction",
        "amount": amount,
        "available_on": created + 2 * 86400,
        "balance_type": "payments",
        "created": created,
        "currency": currency,
        "description": None,
        "exchange_rate": None,
        "fee": fee,
        "fee_details": details if fee else [],
        "net": amount - fee,
        "reporting_category": category,
        "source": source["id"],
        "status": "pending",
        "type": type_,
    }


def early_fraud_warning(id_: str, created: int, livemode: bool, *, charge: Obj, fraud_type: str) -> Obj:
    return {
        "id": id_,
        "object": "radar.early_fraud_warning",
        "actionable": not charge["refunded"] and not charge["disputed"],
        "charge": charge["id"],
        "created": created,
        "fraud_type": fraud_type,
        "livemode": livemode,
        "payment_intent": charge["payment_intent"],
    }


def customer_balance_transaction(
    id_: str,
    created: int,
    livemode: bool,
    *,
    customer: Obj,
    amount: int,
    currency: str,
    type_: str,
    invoice: str | None,
) -> Obj:
    return {
        "id": id_,
        "object": "customer_balance_transaction",
        "amount": amount,
        "checkout_session": None,
        "created": created,
        "credit_note": None,
        "currency": currency,
        "customer": customer["id"],
        "customer_account": None,
        "description": None,
        "ending_balance": customer["balance"] + amount,
        "invoice": invoice,
        "livemode": livemode,
        "metadata": {},
        "type": type_,
    }


def subscription_item(
    id_: str, created: int, *, subscription: str, price: Obj, quantity: int, period: tuple[int, int]
) -> Obj:
    return {
        "id": id_,
        "object": "subscription_item",
        "billed_until": None,
        "billing_thresholds": None,
        "created": created,
        "current_period_end": period[1],
        "current_period_start": period[0],
        "current_trial": None,
        "discounts": [],
        "metadata": {},
        "plan": plan(price),
        "price": price,
        "quantity": quantity,
        "subscription": subscription,
        "tax_rates": [],
    }


def subscription(id_: str, created: int, livemode: bool, *, customer: str, currency: str, metadata: Obj) -> Obj:
    return {
        "id": id_,
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": created,
        "billing_cycle_anchor_config": None,
        "billing_mode": {"flexible": {"proration_discounts": "included"}, "type": "flexible"},
        "billing_schedules": [],
        "billing_thresholds": None,
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": "charge_automatically",
        "created": created,
        "currency": currency,
        "customer": customer,
        "customer_account": None,
        "days_until_due": None,
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "items": {
            "object": "list",
            "data": [],
            "has_more": False,
            "total_count": 0,
            "url": f"/v1/subscription_items?subscription={id_}",
        },
        "latest_invoice": None,
        "livemode": livemode,
        "managed_payments": {"enabled": False},
        "metadata": metadata,
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": created,
        "status": "incomplete",
        "status_details": None,
        "test_clock": None,
        "transfer_data": None,
        "trial_end": None,
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        "trial_start": None,
    }


def subscription_schedule(id_: str, created: int, livemode: bool, *, sub: Obj, end_behavior: str) -> Obj:
    return {
        "id": id_,
        "object": "subscription_schedule",
        "application": None,
        "billing_mode": sub["billing_mode"],
        "canceled_at": None,
        "completed_at": None,
        "created": created,
        "current_phase": None,
        "customer": sub["customer"],
        "customer_account": None,
        "default_settings": {
            "application_fee_percent": None,
            "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
            "billing_cycle_anchor": "automatic",
            "billing_thresholds": None,
            "collection_method": "charge_automatically",
            "default_payment_method": None,
            "description": None,
            "invoice_settings": {
                "account_tax_ids": None,
                "custom_fields": None,
                "days_until_due": None,
                "description": None,
                "footer": None,
                "issuer": {"type": "self"},
            },
            "on_behalf_of": None,
            "transfer_data": None,
        },
        "end_behavior": end_behavior,
        "livemode": livemode,
        "metadata": {},
        "pause_schedules": [],
        "phases": [],
        "released_at": None,
        "released_subscription": None,
        "status": "active",
        "subscription": sub["id"],
        "test_clock": sub["test_clock"],
    }


def schedule_phase(items: list[tuple[Obj, int]], currency: str, start: int, end: int, proration: str) -> Obj:
    """One phase of a schedule; `start` and `end` in unix seconds."""
    return {
        "add_invoice_items": [],
        "application_fee_percent": None,
        "automatic_tax": None,
        "billing_cycle_anchor": None,
        "billing_thresholds": None,
        "collection_method": None,
        "currency": currency,
        "default_payment_method": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "end_date": end,
        "invoice_settings": None,
        "items": [
            {
                "billing_thresholds": None,
                "discounts": [],
                "metadata": {},
                "plan": price["id"],
                "price": price["id"],
                "quantity": quantity,
                "tax_rates": [],
            }
            for price, quantity in items
        ],
        "metadata": {},
        "on_behalf_of": None,
        "proration_behavior": proration,
        "start_date": start,
        "transfer_data": None,
        "trial_end": None,
    }


def invoice(id_: str, created: int, livemode: bool, *, customer: Obj, currency: str, billing_reason: str) -> Obj:
    return {
        "id": id_,
        "object": "invoice",
        "account_country": "US",
        "account_name": "AptNode",
        "account_tax_ids": None,
        "amount_due": 0,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_paid_off_stripe": 0,
        "amount_remaining": 0,
        "amount_shipping": 0,
        "application": None,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": True,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "automatically_finalizes_at": None,
        "billing_reason": billing_reason,
        "collection_method": "charge_automatically",
        "created": created,
        "currency": currency,
        "custom_fields": None,
        "customer": customer["id"],
        "customer_account": None,
        "customer_address": None,
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "customer_phone": None,
        "customer_shipping": None,
        "customer_tax_exempt": "none",
        "customer_tax_ids": [],
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "due_date": None,
        "effective_at": None,
        "ending_balance": None,
        "footer": None,
        "from_invoice": None,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "issuer": {"type": "self"},
        "last_finalization_error": None,
        "latest_revision": None,
        "lines": {
            "object": "list",
            "data": [],
            "has_more": False,
            "total_count": 0,
            "url": f"/v1/invoices/{id_}/lines",
        },
        "livemode": livemode,
        "metadata": {},
        "next_payment_attempt": None,
        "number": None,
        "on_behalf_of": None,
        "parent": None,
        "payment_settings": {
            "default_mandate": None,
            "payment_method_options": None,
            "payment_method_types": None,
        },
        "period_end": created,
        "period_start": created,
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "receipt_number": None,
        "rendering": None,
        "shipping_cost": None,
        "shipping_details": None,
        "starting_balance": 0,
        "statement_descriptor": None,
        "status": "draft",
        "status_details": None,
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subtotal": 0,
        "subtotal_excluding_tax": 0,
        "test_clock": None,
        "threshold_reason": None,
        "total": 0,
        "total_discount_amounts": [],
        "total_excluding_tax": 0,
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
        "webhooks_delivered_at": created,
    }


def line(id_: str, livemode: bool, *, invoice: str, amount: int, currency: str, price: Obj, quantity: int) -> Obj:
    return {
        "id": id_,
        "object": "line_item",
        "amount": amount,
        "currency": currency,
        "description": None,
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": invoice,
        "livemode": livemode,
        "metadata": {},
        "parent": None,
        "period": {"end": 0, "start": 0},
        "pretax_credit_amounts": [],
        "pricing": {
            "price_details": {"price": price["id"], "product": price["product"]},
            "type": "price_details",
            "unit_amount_decimal": price["unit_amount_decimal"],
        },
        "quantity": quantity,
        "quantity_decimal": str(quantity),
        "subscription": None,
        "subtotal": amount,
        "taxes": [],
    }


def invoice_payment(
    id_: str, created: int, livemode: bool, *, invoice: Obj, amount: int, pi: str, is_default: bool
) -> Obj:
    return {
        "id": id_,
        "object": "invoice_payment",
        "amount_paid": None,
        "amount_requested": amount,
        "created": created,
        "currency": invoice["currency"],
        "invoice": invoice["id"],
        "is_default": is_default,
        "livemode": livemode,
        "payment": {"payment_intent": pi, "type": "payment_intent"},
        "status": "open",
        "status_transitions": {"canceled_at": None, "paid_at": None},
    }


def session_line(
    id_: str,
    price: Obj,
    quantity: int,
    currency: str,
    *,
    amount: int,
    discount: int = 0,
    tax: int = 0,
    tax_on_top: int = 0,
) -> Obj:
    """One line item of a Checkout session."""
    return {
        "id": id_,
        "object": "item",
        "adjustable_quantity": None,
        "amount_discount": discount,
        "amount_subtotal": amount,
        "amount_tax": tax,
        "amount_total": amount - discount + tax_on_top,
        "currency": currency,
        "description": price["id"],
        "metadata": {},
        "price": price,
        "quantity": quantity,
    }


def checkout_session(
    id_: str, created: int, livemode: bool, *, mode: str, customer: Obj | None, currency: str, metadata: Obj
) -> Obj:
    email = customer["email"] if customer else None
    return {
        "id": id_,
        "object": "checkout.session",
        "adaptive_pricing": {"enabled": False},
        "after_expiration": None,
        "allow_promotion_codes": None,
        "amount_subtotal": 0,
        "amount_total": 0,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "billing_address_collection": None,
        "cancel_url": None,
        "client_reference_id": None,
        "client_secret": None,
        "collected_information": None,
        "consent": None,
        "consent_collection": None,
        "created": created,
        "currency": currency,
        "currency_conversion": None,
        "custom_fields": [],
        "custom_text": {
            "after_submit": None,
            "shipping_address": None,
            "submit": None,
            "terms_of_service_acceptance": None,
        },
        "customer": customer["id"] if customer else None,
        "customer_account": None,
        "customer_creation": None,
        "customer_details": {"address": address(), "email": email, "name": None, "phone": None, "tax_exempt": "none"}
        | {"business_name": None, "individual_name": None, "tax_ids": []},
        "customer_email": None,
        "discounts": [],
        "expires_at": created + 86400,
        "invoice": None,
        "invoice_creation": None,
        "livemode": livemode,
        "locale": None,
        "metadata": metadata,
        "mode": mode,
        "origin_context": None,
        "payment_intent": None,
        "payment_link": None,
        "payment_method_collection": "always",
        "payment_method_configuration_details": None,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "payment_status": "unpaid",
        "permissions": None,
        "phone_number_collection": {"enabled": False},
        "recovered_from": None,
        "saved_payment_method_options": None,
        "setup_intent": None,
        "shipping_address_collection": None,
        "shipping_cost": None,
        "shipping_options": [],
        "status": "open",
        "submit_type": None,
        "subscription": None,
        "success_url": "https://app.example.com/thanks",
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": f"https://checkout.stripe.com/c/pay/{id_}",
        "wallet_options": None,
    }
