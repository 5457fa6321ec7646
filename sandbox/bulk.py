"""Many payments at once for measurements: one real purchase of a scratch shop, copied under new ids and times."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from sandbox import shapes
from sandbox.billing import Books
from sandbox.forms import Method
from sandbox.store import ALPHABET, Obj

MONTH = 30 * 86400
T = 1_400_000_000
"""When the scratch shop sells; a number that stands for nothing else in an object."""
AMOUNT = 2_953
USER, FINGERPRINT, LAST4 = "thebulkuser", "thebulkfingerprint", "thebulklast4"
"""Words that stand for nothing else in an object."""
PERSON = ("customer", "subscription")
PAYMENT = ("invoice", "payment_intent", "invoice_payment", "charge", "balance_transaction")
CATALOGUE = ("product", "price", "plan")


class Pattern:
    """Objects as text with gaps for their ids and times, which is filled far faster than they are built."""

    def __init__(self, objects: list[Obj], gaps: dict[str, str]) -> None:
        self._text = shapes.encode(objects).decode().replace("%", "%%")
        for value, name in gaps.items():
            self._text = self._text.replace(value, f"%({name})s")

    def fill(self, values: dict[str, Any]) -> list[Obj]:
        found: list[Obj] = msgspec.json.decode((self._text % values).encode())
        return found


def fill(books: Books, charges: int, since: int, until: int, seed: int = 1) -> Obj:
    """`charges` succeeded charges, spread evenly over [since, until) (unix seconds), each with its payment intent, paid
    invoice, invoice payment and balance transaction; returns how many objects of which kind there are of it.

    Each person has one subscription and pays every 30 days (or once), so that nothing is paid twice. No events are made,
    and the subscriptions do not renew by themselves.
    """
    person, payment = _patterns(books)
    rng = random.Random(f"bulk {seed}")
    people = max(1, min(charges, round(charges * MONTH / (until - since))))
    step = (until - since) / charges
    lasts = round(people * step) if people < charges else MONTH
    names: list[dict[str, Any]] = []
    for number in range(charges):
        at = since + int(number * step)
        if number < people:
            names.append(_person(rng, f"b{seed}x{number}"))
        values = names[number % people] | _ids(rng) | {"created": at, "end": at + lasts, "settles": at + 2 * 86400}
        if number < people:
            for obj in person.fill(values):
                books.put(obj)
            card = {"fingerprint": values["fingerprint"], "last4": values["last4"]}
            books.methods[values["method"]] = Method(id=values["method"], **card)
        _renewed(books.by_id[values["subscription"]], values)
        for obj in payment.fill(values):
            books.put(obj)
        books.invoice_of[values["payment_intent"]] = values["invoice"]
    return {"people": people, "objects": charges * len(PAYMENT) + people * len(PERSON)}


def _renewed(sub: Obj, values: dict[str, Any]) -> None:
    sub["latest_invoice"] = values["invoice"]
    sub["items"]["data"][0] |= {"current_period_start": values["created"], "current_period_end": values["end"]}


def _person(rng: random.Random, user: str) -> dict[str, Any]:
    """What stays the same in all payments of one person."""
    return {
        "user": user,
        "customer": "cus_" + _letters(rng, 14),
        "subscription": "sub_1" + _letters(rng),
        "item": "si_" + _letters(rng, 14),
        "method": "pm_1" + _letters(rng),
        "fingerprint": _letters(rng, 16),
        "last4": str(rng.randrange(1000, 9999)),
    }


def _ids(rng: random.Random) -> dict[str, str]:
    prefixes = {"invoice": "in_1", "payment_intent": "pi_3", "invoice_payment": "inpay_1", "charge": "ch_3"}
    prefixes |= {"balance_transaction": "txn_3", "line": "il_1", "number": ""}
    return {name: prefix + _letters(rng) for name, prefix in prefixes.items()}


def _letters(rng: random.Random, length: int = 24) -> str:
    return "".join(rng.choices(ALPHABET, k=length))


def _patterns(books: Books) -> tuple[Pattern, Pattern]:
    """The text of a person and of a payment; the catalogue they buy from is put into the books."""
    scratch = Books(clock=T, running=False, livemode=books.livemode, seed=7, api_version=books.event_version)
    scratch.events_on = False
    product = scratch.new_product("FluxArt AI Bulk", id_="prod_bulk")
    price = scratch.new_price(product["id"], "usd", AMOUNT, interval="month", id_="price_bulk")
    customer = scratch.new_customer(
        email=f"{USER}@example.com", metadata={"user_id": USER}, fingerprint=FINGERPRINT, last4=LAST4
    )
    sub = scratch.subscribe(customer, [(price, 1)], metadata={"user_id": USER})
    one = {kind: next(iter(scratch.all(kind))) for kind in (*PERSON, *PAYMENT)}
    if price["id"] not in books.by_id:
        for obj in [obj for kind in CATALOGUE for obj in scratch.all(kind)]:
            books.put(obj)
    gaps = {one[kind]["id"]: kind for kind in one} | {
        one["invoice"]["lines"]["data"][0]["id"]: "line",
        one["invoice"]["number"]: "number",
        sub["items"]["data"][0]["id"]: "item",
        customer["invoice_settings"]["default_payment_method"]: "method",
        FINGERPRINT: "fingerprint",
        LAST4: "last4",
        USER: "user",
        str(T): "created",
        str(sub["items"]["data"][0]["current_period_end"]): "end",
        str(one["balance_transaction"]["available_on"]): "settles",
    }
    return Pattern([one[kind] for kind in PERSON], gaps), Pattern([one[kind] for kind in PAYMENT], gaps)
