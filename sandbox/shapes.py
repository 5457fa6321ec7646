"""One object, many API versions: how the newest shape is turned into the one a request or an endpoint asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from sandbox.store import Store

Obj = dict[str, Any]

NEWEST = "2026-10-28.endive"
BASIL = "2025-03-31"
FLEXIBLE = "2025-09-30"
"""Since then subscriptions are made with flexible billing mode unless they are asked to be classic."""
VERSIONS = (
    "2024-06-20",
    "2024-09-30.acacia",
    "2024-12-18.acacia",
    "2025-02-24.acacia",
    "2025-03-31.basil",
    "2025-08-27.basil",
    "2025-09-30.clover",
    "2025-11-17.clover",
    "2026-02-25.clover",
    "2026-03-25.dahlia",
    "2026-08-26.dahlia",
    "2026-09-30.endive",
    NEWEST,
)

LINES_SHOWN = 10
"""An invoice carries the first page of its lines; the others are read from `/lines`."""

encode = msgspec.json.Encoder(decimal_format="string").encode

EVENT_SINCE = {
    "invoice.overpaid": BASIL,
    "invoice_payment.paid": "2025-05-28",
    "refund.failed": "2024-09-30",
}
"""Events that only endpoints of a later version receive."""

SINCE: dict[str, dict[str, str]] = {
    "invoice": {
        "amount_overpaid": BASIL,
        "amount_paid_off_stripe": "2026-05-27",
        "customer_account": "2025-09-30",
        "status_details": "2026-09-30",
    },
    "subscription": {
        "billing_mode": "2025-06-30",
        "billing_schedules": "2025-09-30",
        "customer_account": "2025-09-30",
        "managed_payments": "2026-02-25",
        "status_details": "2026-09-30",
    },
    "subscription_schedule": {
        "billing_mode": "2025-06-30",
        "customer_account": FLEXIBLE,
        "pause_schedules": "2026-09-30",
    },
    "dispute": {"intended_submission_method": NEWEST, "enhanced_eligibility_types": "2024-12-18"},
    "refund": {"pending_reason": "2025-04-30", "customer": "2025-09-30", "payment_method": "2025-09-30"},
    "payment_intent": {"payment_details": "2025-09-30", "customer_account": "2025-09-30"},
    "customer": {"customer_account": "2025-09-30"},
    "customer_balance_transaction": {"checkout_session": "2025-08-27", "customer_account": "2025-09-30"},
    "balance_transaction": {"balance_type": "2025-09-30"},
}
"""Fields that older versions do not know at all. Moves of fields are in the functions below."""


def day(version: str) -> str:
    """The date of an API version, which orders them."""
    return version[:10]


def is_old(version: str) -> bool:
    """Before 2025-03-31.basil: an invoice and its charge name one another."""
    return day(version) < BASIL


def has_event(type_: str, version: str) -> bool:
    return day(version) >= EVENT_SINCE.get(type_, "")


def render(obj: Obj, version: str, store: Store) -> Obj:
    """The object as `version` shows it. It may be the object itself, or share parts with it: the caller must not change it."""
    if obj["object"] == "invoice" and len(obj["lines"]["data"]) > LINES_SHOWN:
        obj = obj | {"lines": obj["lines"] | {"data": obj["lines"]["data"][:LINES_SHOWN], "has_more": True}}
    if version == NEWEST:
        return obj
    kind, old = obj["object"], OLD.get(obj["object"]) if is_old(version) else None
    copy: Obj = dict(obj) if old is None else msgspec.json.decode(encode(obj))  # what old shapes change lies deeper
    for field, since in SINCE.get(kind, {}).items():
        if day(version) < day(since):
            copy.pop(field, None)
    if kind == "dispute" and day(version) < day(NEWEST):
        copy["evidence_details"] = _without(copy["evidence_details"], "submission_method")
    if old is not None:
        old(copy, store)
    if kind == "subscription" and day(version) < "2026-09-30":
        items = copy["items"]
        copy["items"] = items | {"data": [_without(item, "billed_until", "current_trial") for item in items["data"]]}
    return copy


def _without(obj: Obj, *fields: str) -> Obj:
    return {name: value for name, value in obj.items() if name not in fields}


def previous(obj: Obj, values: Obj, version: str) -> Obj:
    """`previous_attributes` in the words of `version`: before basil the period stood on the subscription itself."""
    if not is_old(version):
        return values
    values = dict(values)
    if obj["object"] == "subscription" and "items" in values:
        first = values.pop("items")["data"][0]
        values |= {name: first[name] for name in ("current_period_start", "current_period_end") if name in first}
    gone = ("amount_overpaid", "amount_paid_off_stripe", "status_details")
    return {name: value for name, value in values.items() if name not in gone}


def _old_charge(charge: Obj, store: Store) -> None:
    charge["invoice"] = store.invoice_of.get(charge["payment_intent"] or "")


def _old_payment_intent(pi: Obj, store: Store) -> None:
    pi["invoice"] = store.invoice_of.get(pi["id"])


def _old_subscription(sub: Obj, store: Store) -> None:
    first = sub["items"]["data"][0]
    sub |= {
        "current_period_start": first["current_period_start"],
        "current_period_end": first["current_period_end"],
        "discount": store.by_id.get(sub["discounts"][0]) if sub["discounts"] else None,
        "plan": first["plan"],
        "quantity": first["quantity"],
    }
    for item in sub["items"]["data"]:
        del item["current_period_start"], item["current_period_end"]


def _old_tax_amounts(taxes: list[Obj]) -> list[Obj]:
    return [
        {
            "amount": tax["amount"],
            "inclusive": tax["tax_behavior"] == "inclusive",
            "tax_rate": tax["tax_rate_details"]["tax_rate"],
            "taxability_reason": tax["taxability_reason"],
            "taxable_amount": tax["taxable_amount"],
        }
        for tax in taxes
    ]


def _old_line(line: Obj, store: Store) -> None:
    parent = line.pop("parent")
    pricing = line.pop("pricing") or {}
    taxes = line.pop("taxes")
    details = parent[parent["type"]]
    price = store.by_id.get(pricing.get("price_details", {}).get("price", ""))
    exclusive = sum(tax["amount"] for tax in taxes if tax["tax_behavior"] == "inclusive")
    line |= {
        "amount_excluding_tax": line["amount"] - exclusive,
        "plan": store.objects.get("plan", {}).get(price["id"]) if price and price["recurring"] else None,
        "price": price,
        "proration": details["proration"],
        "proration_details": details["proration_details"] or {"credited_items": None},
        "subscription": details["subscription"],
        "tax_amounts": _old_tax_amounts(taxes),
        "tax_rates": [],
        "type": "invoiceitem" if details.get("invoice_item") else "subscription",
        "unit_amount_excluding_tax": pricing.get("unit_amount_decimal"),
    }
    if details.get("subscription_item"):
        line["subscription_item"] = details["subscription_item"]
    if details.get("invoice_item"):
        line["invoice_item"] = details["invoice_item"]
    line.pop("quantity_decimal", None)
    line.pop("subtotal", None)


def _old_invoice(invoice: Obj, store: Store) -> None:
    parent = invoice.pop("parent") or {}
    of_subscription = parent.get("subscription_details") or {}
    taxes = invoice.pop("total_taxes") or []
    payments = store.linked("invoice_payment", "invoice", invoice["id"])
    default = next((p["payment"]["payment_intent"] for p in payments if p["is_default"]), None)
    outside = store.by_id[invoice["id"]]["amount_paid_off_stripe"] if invoice["id"] in store.by_id else 0
    for field in ("confirmation_secret", "payments"):
        invoice.pop(field, None)
    invoice |= {
        "application_fee_amount": None,
        "charge": store.by_id[default]["latest_charge"] if default else None,
        "discount": store.by_id.get(invoice["discounts"][0]) if invoice["discounts"] else None,
        "paid": invoice["status"] == "paid",
        "paid_out_of_band": invoice["status"] == "paid" and outside > 0,
        "payment_intent": default,
        "quote": None,
        "subscription": of_subscription.get("subscription"),
        "subscription_details": {"metadata": of_subscription.get("metadata")},
        "tax": sum(tax["amount"] for tax in taxes) if taxes else None,
        "total_tax_amounts": _old_tax_amounts(taxes),
        "transfer_data": None,
    }
    for line in invoice["lines"]["data"]:
        _old_line(line, store)


OLD = {
    "charge": _old_charge,
    "payment_intent": _old_payment_intent,
    "subscription": _old_subscription,
    "invoice": _old_invoice,
    "line_item": _old_line,
}


def expand(obj: Obj, paths: list[str], version: str, store: Store) -> Obj:
    """Follow `expand[]` paths: ids become objects, and include-only lists appear."""
    if not paths:
        return obj
    copy: Obj = msgspec.json.decode(encode(obj))
    for path in paths:
        _expand(copy, path.split("."), version, store)
    return copy


def _expand(node: Any, path: list[str], version: str, store: Store) -> None:
    if isinstance(node, list):
        for part in node:
            _expand(part, path, version, store)
        return
    if not path or not isinstance(node, dict):
        return
    name, rest = path[0], path[1:]
    if name not in node and node.get("id"):
        _include(node, name, version, store)
    value = node.get(name)
    if isinstance(value, str) and value in store.by_id:
        value = node[name] = msgspec.json.decode(encode(render(store.by_id[value], version, store)))
    elif isinstance(value, list):
        node[name] = value = [
            msgspec.json.decode(encode(render(store.by_id[v], version, store)))
            if isinstance(v, str) and v in store.by_id
            else v
            for v in value
        ]
    _expand(value, rest, version, store)


def _include(node: Obj, name: str, version: str, store: Store) -> None:
    """Lists that Stripe sends only when asked for."""
    kinds = {("invoice", "payments"): "invoice_payment", ("charge", "refunds"): "refund"}
    kind = kinds.get((node.get("object", ""), name))
    if kind is None or (kind == "invoice_payment" and is_old(version)):
        return
    found = store.linked(kind, node["object"], node["id"])
    url = f"/v1/charges/{node['id']}/refunds" if kind == "refund" else f"/v1/invoices/{node['id']}/payments"
    node[name] = listing([render(o, version, store) for o in reversed(found)], url)


def listing(objects: list[Obj], url: str, has_more: bool = False) -> Obj:
    return {"object": "list", "data": objects, "has_more": has_more, "url": url}
