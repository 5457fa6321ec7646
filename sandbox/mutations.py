"""Every POST and DELETE the sandbox understands, with the parameters each of them takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sandbox import endpoints
from sandbox.billing import Books
from sandbox.params import allow, flag, integer, require
from sandbox.store import Obj, invalid

SUBMISSION_METHODS = ("manual", "prefer_manual", "prefer_smart_disputes", "smart_disputes")


def _metadata(params: Obj, name: str = "metadata") -> Obj:
    value = params.get(name) or {}
    if not isinstance(value, dict):
        raise invalid("Invalid hash", param=name, stored=False)
    return value


def merge_metadata(obj: Obj, params: Obj) -> None:
    """Stripe's way: given keys are set, empty values remove theirs, others stay."""
    for key, value in _metadata(params).items():
        if value == "":
            obj["metadata"].pop(key, None)
        else:
            obj["metadata"][key] = value


def create_customer(books: Books, params: Obj) -> Obj:
    allow(params, {"email", "name", "metadata", "description", "payment_method", "invoice_settings", "phone"})
    chosen = params.get("payment_method") or _metadata(params, "invoice_settings").get("default_payment_method")
    customer = books.new_customer(email=params.get("email"), name=params.get("name"), metadata=_metadata(params))
    customer["invoice_settings"]["default_payment_method"] = books.method(chosen).id if chosen else None
    customer["description"] = params.get("description")
    return customer


def update_customer(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, {"email", "name", "metadata", "description", "invoice_settings", "phone"})
    customer = books.get("customer", id_)
    chosen = _metadata(params, "invoice_settings").get("default_payment_method")
    if chosen:
        customer["invoice_settings"]["default_payment_method"] = books.method(chosen).id
    merge_metadata(customer, params)
    values = {name: params[name] for name in ("email", "name", "description", "phone") if name in params}
    books.change(customer, "customer.updated", **values)
    return customer


def create_product(books: Books, params: Obj) -> Obj:
    allow(params, {"name", "metadata", "id", "description", "active"})
    return books.new_product(require(params, "name"), id_=params.get("id"), metadata=_metadata(params))


def create_price(books: Books, params: Obj) -> Obj:
    allow(params, {"product", "currency", "unit_amount", "recurring", "metadata", "nickname", "lookup_key"})
    recurring = _metadata(params, "recurring")
    product = books.get("product", require(params, "product"), "product")
    return books.new_price(
        product["id"],
        require(params, "currency").lower(),
        integer(params, "unit_amount") or 0,
        interval=recurring.get("interval"),
        interval_count=integer(recurring, "interval_count") or 1,
        metadata=_metadata(params),
    )


def update_price(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, {"metadata", "nickname", "active"})
    price = books.get("price", id_)
    books.update_price(price, _metadata(params))
    return price


def create_coupon(books: Books, params: Obj) -> Obj:
    allow(params, {"id", "percent_off", "amount_off", "currency", "duration", "name", "metadata"})
    name = books.new_coupon(
        id_=params.get("id"), percent_off=integer(params, "percent_off"), amount_off=integer(params, "amount_off")
    )
    return books.coupons[name]


def create_tax_rate(books: Books, params: Obj) -> Obj:
    allow(params, {"display_name", "percentage", "inclusive", "country", "description", "metadata"})
    return books.new_tax_rate(float(require(params, "percentage")), inclusive=flag(params, "inclusive"))


def _hashes(given: Any, name: str) -> list[Obj]:
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise invalid("Invalid array of hashes", param=name, stored=False)
    return given


def _priced(books: Books, given: Any, name: str) -> list[tuple[Obj, int]]:
    if not given:
        raise invalid(f"Missing required param: {name}.", param=name, code="parameter_missing", stored=False)
    found = []
    for item in _hashes(given, name):
        price = books.get("price", require(item, "price"), f"{name}[0][price]")
        found.append((price, integer(item, "quantity") or 1))
    return found


def create_subscription(books: Books, params: Obj) -> Obj:
    allow(
        params,
        {"customer", "items", "metadata", "trial_end", "trial_period_days", "discounts", "add_invoice_items"}
        | {"default_payment_method", "default_tax_rates", "cancel_at_period_end", "payment_behavior", "off_session"}
        | {"collection_method", "description", "proration_behavior", "expand", "trial_settings"},
    )
    customer = books.get("customer", require(params, "customer"), "customer")
    days, end = integer(params, "trial_period_days"), integer(params, "trial_end")
    chosen = params.get("default_payment_method")
    if not chosen and not customer["invoice_settings"]["default_payment_method"] and not (days or end):
        raise invalid(
            "This customer has no attached payment source or default payment method.", code="resource_missing"
        )
    discounts = _hashes(params.get("discounts") or [], "discounts")
    return books.subscribe(
        customer,
        _priced(books, params.get("items"), "items"),
        metadata=_metadata(params),
        trial_end=end or (books.now() + days * 86400 if days else None),
        coupon=discounts[0].get("coupon") if discounts else None,
        tax_rates=[books.get("tax_rate", rate, "default_tax_rates") for rate in params.get("default_tax_rates") or []],
        extra=_priced(books, params["add_invoice_items"], "add_invoice_items") if "add_invoice_items" in params else [],
        cancel_at_period_end=flag(params, "cancel_at_period_end"),
        method=books.method(chosen) if chosen else None,
        missing_payment_method=_missing_payment_method(params) or "create_invoice",
    )


def _missing_payment_method(params: Obj) -> str | None:
    """`trial_settings[end_behavior][missing_payment_method]`, if it is given."""
    chosen = _metadata(_metadata(params, "trial_settings"), "end_behavior").get("missing_payment_method")
    if chosen not in (None, "cancel", "create_invoice", "pause"):
        raise invalid(
            "Invalid missing_payment_method: must be one of cancel, create_invoice, or pause",
            param="trial_settings[end_behavior][missing_payment_method]",
            stored=False,
        )
    return chosen


def update_subscription(books: Books, params: Obj, id_: str) -> Obj:
    allow(
        params,
        {"cancel_at_period_end", "items", "proration_behavior", "metadata", "trial_end", "cancellation_details"}
        | {"default_payment_method", "description", "proration_date", "payment_behavior"}
        | {"cancel_at", "pause_collection", "trial_settings"},
    )
    sub = books.get("subscription", id_)
    if sub["status"] in ("canceled", "incomplete_expired"):
        raise invalid("A canceled subscription can only update its cancellation_details and metadata.")
    if _metadata(params):
        before = {"metadata": dict(sub["metadata"])}
        merge_metadata(sub, params)
        books.emit("customer.subscription.updated", sub, before)
    if "trial_end" in params:
        end = books.now() if params["trial_end"] == "now" else integer(params, "trial_end")
        how = params.get("proration_behavior", "create_prorations")
        books.set_trial_end(sub, end or books.now(), proration=how)
    if chosen := _missing_payment_method(params):
        sub["trial_settings"]["end_behavior"]["missing_payment_method"] = chosen
    if "pause_collection" in params:
        paused = _metadata(params, "pause_collection")
        books.pause_collection(sub, paused.get("behavior"), resumes_at=integer(paused, "resumes_at"))
    if "cancel_at" in params:
        books.cancel_at(sub, integer(params, "cancel_at"))
    if "cancel_at_period_end" in params:
        sub["cancellation_details"] |= _metadata(params, "cancellation_details")
        books.cancel_at_period_end(sub, flag(params, "cancel_at_period_end"))
    if params.get("items"):
        changes = []
        for item in _hashes(params["items"], "items"):
            change: Obj = {"id": item.get("id")}
            if "price" in item:
                change["price"] = books.get("price", item["price"], "items[0][price]")
            if "quantity" in item:
                change["quantity"] = integer(item, "quantity")
            changes.append(change)
        books.update_items(sub, changes, params.get("proration_behavior", "create_prorations"))
    return sub


def delete_subscription(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, {"prorate", "invoice_now", "cancellation_details"})
    sub = books.get("subscription", id_)
    books.cancel(
        sub,
        prorate=flag(params, "prorate"),
        invoice_now=flag(params, "invoice_now"),
        details=_metadata(params, "cancellation_details"),
    )
    return sub


def pause_subscription(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, {"type", "bill_for", "invoicing_behavior"})
    sub = books.get("subscription", id_)
    books.pause(sub)
    return sub


def resume_subscription(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, {"billing_cycle_anchor", "payment_behavior", "proration_behavior"})
    sub = books.get("subscription", id_)
    books.resume(sub)
    return sub


def create_schedule(books: Books, params: Obj) -> Obj:
    allow(params, {"from_subscription"})
    return books.schedule(books.get("subscription", require(params, "from_subscription"), "from_subscription"))


def update_schedule(books: Books, params: Obj, id_: str) -> Obj:
    """`phases` are given whole, as Stripe wants them: the current one first."""
    allow(params, {"phases", "end_behavior", "proration_behavior", "metadata"})
    schedule = books.get("subscription_schedule", id_)
    merge_metadata(schedule, params)
    phases = None
    if "phases" in params:
        later = _hashes(params["phases"], "phases")[1:]
        phases = [(_priced(books, p.get("items"), "phases[items]"), integer(p, "end_date") or 0) for p in later]
    how = params.get("proration_behavior", "create_prorations")
    books.set_phases(schedule, phases, end_behavior=params.get("end_behavior"), proration=how)
    return schedule


def release_schedule(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, set())
    schedule = books.get("subscription_schedule", id_)
    books.release_schedule(schedule)
    return schedule


def cancel_schedule(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, {"invoice_now", "prorate"})
    schedule = books.get("subscription_schedule", id_)
    flags = {name: flag(params, name, default=True) for name in ("invoice_now", "prorate")}
    books.cancel_schedule(schedule, **flags)
    return schedule


def create_payment_intent(books: Books, params: Obj) -> Obj:
    allow(
        params,
        {"amount", "currency", "customer", "metadata", "payment_method", "confirm", "capture_method", "description"}
        | {"payment_method_types", "off_session", "automatic_payment_methods", "return_url", "receipt_email"},
    )
    amount = integer(params, "amount")
    if amount is None or amount < 1:
        raise invalid("This value must be greater than or equal to 1.", param="amount", stored=False)
    customer = books.get("customer", params["customer"], "customer") if params.get("customer") else None
    pi = books.new_payment_intent(
        amount,
        require(params, "currency").lower(),
        customer=customer["id"] if customer else None,
        metadata=_metadata(params),
        description=params.get("description"),
        manual=params.get("capture_method") == "manual",
    )
    if flag(params, "confirm"):
        confirm_payment_intent(books, {"payment_method": params.get("payment_method")}, pi["id"])
    return pi


def confirm_payment_intent(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, {"payment_method", "off_session", "return_url"})
    pi = books.get("payment_intent", id_, "intent")
    owner = books.by_id.get(pi["customer"] or "", {})
    default = (owner.get("invoice_settings") or {}).get("default_payment_method")
    chosen = params.get("payment_method") or pi["payment_method"] or default
    if not chosen:
        raise invalid("You cannot confirm this PaymentIntent because it's missing a payment method.")
    charge = books.confirm(pi, books.method(chosen))
    if charge["status"] == "failed":
        raise books.declined(pi)
    return pi


def capture_payment_intent(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, {"metadata"})
    pi = books.get("payment_intent", id_, "intent")
    books.capture(pi)
    return pi


def cancel_payment_intent(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, {"cancellation_reason"})
    pi = books.get("payment_intent", id_, "intent")
    books.cancel_payment_intent(pi, params.get("cancellation_reason") or "requested_by_customer")
    return pi


def create_refund(books: Books, params: Obj) -> Obj:
    allow(
        params,
        {"charge", "payment_intent", "amount", "reason", "metadata", "reverse_transfer", "refund_application_fee"}
        | {"instructions_email"},
    )
    amount, reason = integer(params, "amount"), params.get("reason")
    if reason not in (None, "duplicate", "fraudulent", "requested_by_customer"):
        raise invalid(
            "Invalid reason: must be one of duplicate, fraudulent, or requested_by_customer",
            param="reason",
            stored=False,
        )
    if amount is not None and amount < 1:
        raise invalid(
            "This value must be greater than or equal to 1.",
            param="amount",
            code="parameter_invalid_integer",
            stored=False,
        )
    if params.get("charge"):
        charge = books.get("charge", params["charge"], "charge")
    elif params.get("payment_intent"):
        pi = books.get("payment_intent", params["payment_intent"], "payment_intent")
        if not pi["latest_charge"]:
            raise invalid("This PaymentIntent does not have a successful charge to refund.")
        charge = books.by_id[pi["latest_charge"]]
    else:
        raise invalid("One of the following params should be provided for this request: payment_intent or charge.")
    return books.create_refund(charge, amount, reason=reason, metadata=_metadata(params))


def update_refund(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, {"metadata"})
    refund = books.get("refund", id_)
    merge_metadata(refund, params)
    books.emit("refund.updated", refund)
    return refund


def cancel_refund(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, set())
    refund = books.get("refund", id_)
    if refund["status"] != "requires_action":
        raise invalid(f"Refund {id_} has a status of {refund['status']} and cannot be canceled.")
    books.cancel_refund(refund)
    return refund


def create_balance_transaction(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, {"amount", "currency", "description", "metadata"})
    customer = books.get("customer", id_)
    amount = integer(params, "amount")
    if not amount:
        raise invalid("The amount must be a non-zero integer.", param="amount", stored=False)
    currency = require(params, "currency").lower()
    if customer["currency"] not in (None, currency):
        raise invalid(f"The customer's balance is in {customer['currency']}.", param="currency")
    txn = books.move_balance(customer, amount, currency, "adjustment", note=params.get("description"))
    txn["metadata"] = _metadata(params)
    return txn


def update_dispute(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, {"evidence", "metadata", "submit", "intended_submission_method"})
    dispute = books.get("dispute", id_)
    if "intended_submission_method" in params:
        if params["intended_submission_method"] not in SUBMISSION_METHODS:
            raise invalid("Invalid intended_submission_method", param="intended_submission_method", stored=False)
        dispute["intended_submission_method"] = params["intended_submission_method"]
    evidence = _metadata(params, "evidence")
    allow(evidence, set(dispute["evidence"]))
    books.update_dispute(dispute, evidence, _metadata(params), flag(params, "submit", default=True))
    return dispute


def pay_invoice(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, {"paid_out_of_band", "payment_method", "off_session"})
    invoice = books.get("invoice", id_, "invoice")
    if flag(params, "paid_out_of_band"):
        books.pay_out_of_band(invoice)
        return invoice
    chosen = params.get("payment_method")
    charge = books.pay_invoice(invoice, books.method(chosen) if chosen else None)
    if charge["status"] == "failed":
        raise books.declined(books.by_id[charge["payment_intent"]])
    return invoice


def attach_payment(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, {"payment_intent", "payment_record"})
    invoice = books.get("invoice", id_, "invoice")
    pi = books.get("payment_intent", require(params, "payment_intent"), "payment_intent")
    return books.attach_payment(invoice, pi)


def void_invoice(books: Books, params: Obj, id_: str) -> Obj:
    allow(params, set())
    invoice = books.get("invoice", id_, "invoice")
    if invoice["status"] != "open":
        raise invalid(f"You can only void an open invoice; this one is {invoice['status']}.")
    books.void(invoice)
    return invoice


CREATE: dict[str, Callable[[Books, Obj], Obj]] = {
    "customers": create_customer,
    "products": create_product,
    "prices": create_price,
    "coupons": create_coupon,
    "tax_rates": create_tax_rate,
    "subscriptions": create_subscription,
    "subscription_schedules": create_schedule,
    "payment_intents": create_payment_intent,
    "refunds": create_refund,
    "webhook_endpoints": endpoints.create,
}
CHANGE: dict[tuple[str, str, str], Callable[[Books, Obj, str], Obj]] = {
    ("POST", "customers", ""): update_customer,
    ("POST", "customers", "balance_transactions"): create_balance_transaction,
    ("POST", "prices", ""): update_price,
    ("POST", "subscriptions", ""): update_subscription,
    ("POST", "subscriptions", "pause"): pause_subscription,
    ("POST", "subscriptions", "resume"): resume_subscription,
    ("POST", "subscription_schedules", ""): update_schedule,
    ("POST", "subscription_schedules", "release"): release_schedule,
    ("POST", "subscription_schedules", "cancel"): cancel_schedule,
    ("DELETE", "subscriptions", ""): delete_subscription,
    ("POST", "payment_intents", "confirm"): confirm_payment_intent,
    ("POST", "payment_intents", "capture"): capture_payment_intent,
    ("POST", "payment_intents", "cancel"): cancel_payment_intent,
    ("POST", "refunds", ""): update_refund,
    ("POST", "refunds", "cancel"): cancel_refund,
    ("POST", "disputes", ""): update_dispute,
    ("POST", "invoices", "pay"): pay_invoice,
    ("POST", "invoices", "attach_payment"): attach_payment,
    ("POST", "invoices", "void"): void_invoice,
    ("POST", "webhook_endpoints", ""): endpoints.update,
    ("DELETE", "webhook_endpoints", ""): endpoints.delete,
}
