"""What the tables hold of a fact beside its bytes: when it was created, a digest, the money it moved, whether it may still change."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from handlers.customer import (
    Charge,
    CheckoutSession,
    Dispute,
    Fact,
    Invoice,
    InvoicePayment,
    PaymentIntent,
    PriceCredits,
    Refund,
    Seconds,
    Subscription,
    SubscriptionSchedule,
    encode,
)
from handlers.decisions import Money


def created_of(fact: Fact) -> Seconds | None:
    """Stripe's `created`; None for what is no object of Stripe's but a list read at one moment."""
    created: Seconds | None = getattr(fact, "created", None)
    return created


def digest(fact: Fact) -> int:
    """64 bits over what a telling says, equal for tellings that say the same whenever they were told.

    Left out are the moment of the telling, what is gathered over many tellings, and what only some API shapes tell. So
    equal digests mean that nothing differs; unequal ones that somebody has to look field by field.
    """
    said: dict[str, Any] = {"as_of": 0, **dict.fromkeys(fact.GATHERED, ())}
    match fact:
        case Charge() | PaymentIntent():
            said |= {"invoice": None}
        case Invoice():
            said |= {"payment_intent": None, "charge": None, "overpaid_minor": fact.overpaid_minor or None}
        case Subscription():
            said |= {"schedule": None, "price_credits": _newest_credits(fact)}
        case _:
            pass
    whole = encode(msgspec.structs.replace(fact, **said))
    return int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest(), "big", signed=True)


def _newest_credits(fact: Subscription) -> tuple[PriceCredits, ...]:
    """What each present price says of credits by now, without since when: its metadata changes without an event of ours."""
    newest: dict[str, PriceCredits] = {}
    for told in sorted(fact.price_credits, key=lambda c: (c.until, c.since)):
        newest[told.price] = msgspec.structs.replace(told, since=0, seen=0)
    return tuple(newest[item.price] for item in fact.items if item.price in newest)


def unfinished(fact: Fact) -> bool:
    """Whether an object may still change by itself, so that the nightly run reads it again whatever its age."""
    match fact:
        case Charge():
            held = fact.status == "succeeded" and not fact.captured and fact.refunded_minor < fact.amount_minor
            return fact.status == "pending" or held
        case PaymentIntent():
            return fact.status in ("processing", "requires_action", "requires_capture")
        case Invoice():
            return fact.status in ("draft", "open")
        case InvoicePayment():
            return fact.status == "open"
        case Subscription():
            return fact.alive
        case Refund():
            return fact.status not in ("succeeded", "failed", "canceled")
        case Dispute():
            return fact.status not in ("won", "lost", "prevented", "warning_closed")
        case CheckoutSession():
            return fact.status == "open"
        case SubscriptionSchedule():
            return fact.status in ("not_started", "active")
        case _:
            return False


def moved(fact: Fact) -> Money | None:
    """What an object moved of the merchant's money, in its own currency: a captured charge, less refunds, less disputes.

    None where it moves none: failed and uncaptured charges, refunds that failed, inquiries, and kinds that are no money.
    """
    match fact:
        case Charge(status="succeeded", captured=True):
            return Money(fact.captured_minor, fact.currency) if fact.captured_minor else None
        case Refund() if fact.live:
            return Money(-fact.amount_minor, fact.currency)
        case Dispute() if fact.withdrawn_minor:
            return Money(-fact.withdrawn_minor, fact.currency)
        case _:
            return None


def projected(fact: Fact) -> tuple[Seconds | None, int, int | None, str | None, bool]:
    """The columns beside a fact's bytes: created, digest, moved_minor, currency, unfinished."""
    money = moved(fact)
    amount, currency = (money.minor, money.currency) if money else (None, None)
    return created_of(fact), digest(fact), amount, currency, unfinished(fact)
