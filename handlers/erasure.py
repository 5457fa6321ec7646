"""Which fields of a fact are personal, and a fact without them: what `customers erase` leaves of a customer.

Rules only ever ask whether two e-mails, cards, persons or orders are equal. So an erased value becomes a pseudonym that is equal
wherever the value was, made with a key that nobody keeps: every past judgement stays what it was, and no value can be found again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from handlers.customer import Charge, CheckoutSession, Customer, Fact, Invoice, PaymentIntent, Subscription
from handlers.identity import NOBODY

F = TypeVar("F", bound=Fact)
Pseudonym = Callable[[str], str]

PERSONAL: dict[type[Fact], tuple[str, ...]] = {
    Customer: ("email_hash", "metadata"),
    Charge: ("email_hash", "card_fingerprint", "metadata"),
    PaymentIntent: ("metadata",),
    Invoice: ("subscription_metadata", "metadata"),
    Subscription: ("metadata",),
    CheckoutSession: ("client_reference_id", "metadata"),
}
"""Hashes of e-mails, card fingerprints, and what the merchant wrote down, which may be anything. Other facts hold ids, amounts and times."""


def pseudonyms(key: bytes) -> Pseudonym:
    """Equal values get equal pseudonyms, as long as the key lives. Words that name nobody stay what they are."""

    def pseudonym(value: str) -> str:
        if value.startswith("erased:") or value.strip().lower() in NOBODY:
            return value
        return "erased:" + hashlib.blake2b(value.encode(errors="surrogatepass"), key=key, digest_size=12).hexdigest()

    return pseudonym


def erased(fact: F, pseudonym: Pseudonym) -> F:
    """The fact with a pseudonym for every personal value."""
    changed = {
        name: {key: pseudonym(text) for key, text in value.items()} if isinstance(value, dict) else pseudonym(value)
        for name in PERSONAL.get(type(fact), ())
        if (value := getattr(fact, name))
    }
    return msgspec.structs.replace(fact, **changed) if changed else fact


def impersonal(fact: F, known: F | None = None) -> F:
    """A telling about an erased customer as it may be kept: with the personal fields that are known already, or none.

    Without them the rules cannot prove that two persons are one, and leave a new payment to a person.
    """
    blank: dict[str, Any] = {
        name: getattr(known, name) if known is not None else {} if isinstance(getattr(fact, name), dict) else None
        for name in PERSONAL.get(type(fact), ())
    }
    return msgspec.structs.replace(fact, **blank) if blank else fact
