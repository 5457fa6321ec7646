"""Objects carry what the SDK's types promise, and each API version shows links where that version had them."""

from __future__ import annotations

import types
from decimal import Decimal
from typing import Any, ForwardRef, Literal, Union, get_args, get_origin

import msgspec
import pytest
import stripe
from stripe import checkout, radar

from sandbox import Sandbox, shapes
from sandbox.billing import Books
from sandbox.day import Day
from tests.sandbox.conftest import Obj, Shop

CLASSES: dict[str, type] = {
    "balance_transaction": stripe.BalanceTransaction,
    "charge": stripe.Charge,
    "checkout.session": checkout.Session,
    "customer": stripe.Customer,
    "customer_balance_transaction": stripe.CustomerBalanceTransaction,
    "dispute": stripe.Dispute,
    "event": stripe.Event,
    "invoice": stripe.Invoice,
    "item": stripe.LineItem,
    "invoice_payment": stripe.InvoicePayment,
    "payment_intent": stripe.PaymentIntent,
    "plan": stripe.Plan,
    "price": stripe.Price,
    "product": stripe.Product,
    "radar.early_fraud_warning": radar.EarlyFraudWarning,
    "refund": stripe.Refund,
    "subscription": stripe.Subscription,
    "subscription_schedule": stripe.SubscriptionSchedule,
    "tax_rate": stripe.TaxRate,
}
NOT_IN_THE_SDK = {"destination", "dispute", "order", "object", "source"}
"""Keys the API still sends although the SDK no longer types them."""


def wrong(value: Any, want: Any, path: str) -> list[str]:
    """What does not fit the annotation `want`; an empty list if all does."""
    if isinstance(want, str | ForwardRef):
        if not isinstance(value, dict):
            return [] if isinstance(value, str) else [f"{path}: {value!r} is no object"]
        known = CLASSES.get(value.get("object", ""))
        return wrong(value, known, path) if known else []
    origin: Any = get_origin(want)
    args = get_args(want)
    if origin in (Union, types.UnionType):
        tries = [wrong(value, arg, path) for arg in args]
        return min(tries, key=len)
    if origin is Literal:
        return [] if value in args else [f"{path}: {value!r} is none of {args}"]
    if origin is list:
        if not isinstance(value, list):
            return [f"{path}: no list"]
        return [bad for i, part in enumerate(value) for bad in wrong(part, args[0], f"{path}[{i}]")]
    if origin is not None and origin.__name__ == "ListObject":
        return [bad for i, part in enumerate(value["data"]) for bad in wrong(part, args[0], f"{path}.data[{i}]")]
    if origin is not None or (isinstance(want, type) and want.__name__ == "UntypedStripeObject"):
        return [] if isinstance(value, dict) else [f"{path}: {value!r} is no hash"]
    if want in (None, type(None)):
        return [] if value is None else [f"{path}: {value!r} is not null"]
    if want is Decimal:
        return [] if isinstance(value, str) else [f"{path}: {value!r} is no decimal string"]
    if want in (int, str, bool, float):
        fits = type(value) is want or (want is float and type(value) is int)
        return [] if fits else [f"{path}: {value!r} is no {want.__name__}"]
    return wrong_fields(value, want, path)


def wrong_fields(value: Any, want: type, path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: {value!r} is no object"]
    fields = {k: v for k, v in want.__annotations__.items() if "ClassVar" not in str(v)}
    bad = [f"{path}.{key}: not known to the SDK" for key in value if key not in fields and key not in NOT_IN_THE_SDK]
    for name, annotation in fields.items():
        optional = type(None) in get_args(annotation)
        if name in value:
            bad += wrong(value[name], annotation, f"{path}.{name}")
        elif not optional:
            bad.append(f"{path}.{name}: missing")
    return bad


async def a_day() -> Books:
    books = Books(seed=3)
    await Day(books, customers=160, seed=3).run()
    running = [sub for sub in books.all("subscription") if sub["status"] == "active"]
    books.pause(running[0])
    books.cancel_schedule(books.schedule(running[1], end_behavior="cancel"))
    books.schedule(running[2])
    return books


async def test_every_object_of_a_day_fits_the_types_of_the_sdk() -> None:
    books = await a_day()
    seen: dict[str, list[str]] = {}
    items = {line["id"]: line for lines in books.session_lines.values() for line in lines}
    for kind, objects in [*books.objects.items(), ("item", items)]:
        for obj in list(objects.values())[:200]:
            shown = obj if kind != "event" else msgspec.json.decode(shapes.encode(obj))
            for bad in wrong(shown, CLASSES[kind], kind):
                seen.setdefault(bad.split(":")[0], []).append(bad)
    assert {path: found[0] for path, found in seen.items()} == {}
    assert set(CLASSES) == {*books.objects, "item"}


async def test_every_event_type_is_one_of_the_sdk() -> None:
    books = await a_day()
    known = get_args(stripe.Event.__annotations__["type"])
    assert {event["type"] for event in books.all("event")} - set(known) == set()


@pytest.mark.parametrize("version", shapes.VERSIONS)
async def test_a_day_can_be_rendered_in_every_version(version: str) -> None:
    books = Books(seed=1, api_version=version)
    await Day(books, customers=130).run()
    types_seen = {event["type"] for event in books.all("event")}
    assert ("invoice_payment.paid" in types_seen) == (version >= "2025-05-28")
    assert {event["api_version"] for event in books.all("event")} == {version}


def shown(obj: Obj, version: str, sb: Sandbox) -> Obj:
    return shapes.render(obj, version, sb.books)


async def test_before_basil_invoice_and_charge_name_one_another(sb: Sandbox, shop: Shop) -> None:
    sub, invoice, charge = shop.subscribe(metadata={"user_id": "u1"})
    old = {kind: shown(obj, "2025-02-24.acacia", sb) for kind, obj in (("in", invoice), ("ch", charge), ("sub", sub))}
    line = old["in"]["lines"]["data"][0]
    assert old["ch"]["invoice"] == invoice["id"]
    assert shown(sb.books.by_id[charge["payment_intent"]], "2024-06-20", sb)["invoice"] == invoice["id"]
    assert (old["in"]["charge"], old["in"]["payment_intent"]) == (charge["id"], charge["payment_intent"])
    assert (old["in"]["paid"], old["in"]["paid_out_of_band"], old["in"]["subscription"]) == (True, False, sub["id"])
    assert old["in"]["subscription_details"] == {"metadata": {"user_id": "u1"}}
    assert old["sub"]["current_period_end"] == sub["items"]["data"][0]["current_period_end"]
    assert "current_period_end" not in old["sub"]["items"]["data"][0]
    assert (line["price"]["id"], line["proration"], line["type"]) == (shop.basic["id"], False, "subscription")
    assert line["subscription_item"] == sub["items"]["data"][0]["id"]
    assert not {"parent", "amount_overpaid", "payments", "total_taxes"} & set(old["in"])


async def test_since_basil_only_the_invoice_payment_links_them(sb: Sandbox, shop: Shop) -> None:
    _, invoice, charge = shop.subscribe()
    for version in ("2025-03-31.basil", "2025-11-17.clover", shapes.NEWEST):
        assert "invoice" not in shown(charge, version, sb)
        assert not {"charge", "payment_intent", "paid", "subscription"} & set(shown(invoice, version, sb))


async def test_an_old_shape_shows_taxes_and_discounts_in_their_old_places(sb: Sandbox, shop: Shop) -> None:
    rate = sb.books.new_tax_rate(20, inclusive=False)
    _, invoice, _ = shop.subscribe(tax_rates=[rate], coupon=sb.books.new_coupon(percent_off=50))
    old = shown(invoice, "2024-06-20", sb)
    assert (old["tax"], old["total"], old["discount"]["coupon"]["percent_off"]) == (290, 1740, 50)
    assert old["total_tax_amounts"][0]["tax_rate"] == rate["id"]
    assert old["lines"]["data"][0]["tax_amounts"][0]["amount"] == 290


async def test_previous_attributes_of_a_renewal_stand_where_the_version_has_the_period(shop: Shop) -> None:
    for version, where in (("2024-06-20", "current_period_end"), (shapes.NEWEST, "items")):
        shop.books.event_version = version
        shop.subscribe()
        shop.books.advance(32 * 86400)
        event = [e for e in shop.books.all("event") if e["type"] == "customer.subscription.updated"][-1]
        assert where in event["data"]["previous_attributes"]


async def test_the_same_seed_tells_the_same_truth() -> None:
    told = []
    for _ in range(2):
        day = Day(Books(seed=5), seed=9)
        await day.run()
        told.append([(row.case, row.expect, row.original, row.duplicate, row.amount_minor) for row in day.truth])
    assert told[0] == told[1]
