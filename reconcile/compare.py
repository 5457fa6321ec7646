"""One object as Stripe tells it against the same object in the books, field by field, both ways. Pure.

What counts is what some rule reads: amounts, currencies, states, what went back, periods, links, the metadata that names persons
and orders. What Stripe changes without sending any event is no drift: it is taken in, and not complained of.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

from handlers.customer import (
    AnyFact,
    BalanceRead,
    Charge,
    CheckoutSession,
    Customer,
    CustomerFile,
    Dispute,
    EarlyFraudWarning,
    Fact,
    Invoice,
    InvoicePayment,
    PaymentIntent,
    Refund,
    Seconds,
    SessionLines,
    Subscription,
    SubscriptionSchedule,
    at,
    fold,
)
from handlers.payments import refunded_minor
from reconcile.findings import Difference

_FIELDS: dict[type[Fact], tuple[str, ...]] = {
    Charge: (
        *("amount_minor", "captured_minor", "currency", "status", "captured", "created"),
        *("customer", "payment_intent", "metadata", "method"),
    ),
    PaymentIntent: ("amount_minor", "currency", "status", "created", "customer"),
    Invoice: (
        *("status", "currency", "total_minor", "amount_due_minor", "amount_paid_minor", "created"),
        *("customer", "subscription", "billing_reason", "metadata"),
    ),
    InvoicePayment: ("invoice", "status", "amount_paid_minor", "currency", "payment_intent", "created"),
    Subscription: (
        *("status", "created", "items", "cancel_at_period_end", "cancel_at", "canceled_at", "ended_at"),
        *("trial_start", "trial_end", "collection_paused", "customer", "metadata"),
    ),
    SubscriptionSchedule: ("status", "end_behavior", "ends_at", "customer", "subscription"),
    Refund: ("amount_minor", "currency", "status", "created", "charge", "action"),
    Dispute: ("amount_minor", "currency", "status", "created", "charge", "due_by"),
    EarlyFraudWarning: ("charge", "actionable", "created"),
    CheckoutSession: (
        *("mode", "status", "payment_status", "client_reference_id", "metadata"),
        *("customer", "payment_intent", "subscription", "invoice"),
    ),
    Customer: ("email_hash", "metadata", "deleted"),
}
"""Fields whose difference is a finding. Others are taken in silently."""

_PERSONAL = frozenset(["email_hash", "client_reference_id"])
"""Fields whose values are not told: a hash of an address can be tried out, and apps put addresses into the other."""
_TIMES = frozenset(
    ["created", "cancel_at", "ended_at", "trial_start", "trial_end", "ends_at", "due_by", "paid_at", "canceled_at"]
)
_SILENT_STATES: dict[type[Fact], frozenset[str]] = {
    # no event that we hear tells of these: a payment intent or a session that nobody has paid, an invoice payment under way
    InvoicePayment: frozenset(["open", "canceled"]),
    PaymentIntent: frozenset(
        ["requires_payment_method", "requires_confirmation", "requires_action", "requires_capture"]
    ),
    CheckoutSession: frozenset(["open"]),
}


class Matter(Enum):
    """What a telling of Stripe's means beside the books."""

    SAME = "same"
    """Nothing new, or the books have been told something later."""
    MORE = "more"
    """More than any event tells; taken in, no drift."""
    MISSING = "missing"
    DIFFERENT = "different"
    FROM_THE_FUTURE = "from the future"


class Compared(msgspec.Struct, frozen=True):
    """The outcome for one object, with the fields that differ."""

    matter: Matter
    differences: tuple[Difference, ...] = ()


def compare(
    here: AnyFact | None,
    at_stripe: AnyFact,
    file: CustomerFile,
    *,
    told_unheard: bool = False,
    listed: bool = True,
) -> Compared:
    """Stripe's telling of one object against the books' (None: they have none).

    `file` holds everything else known about the customer, what was found tonight included: a charge whose refund is missing
    is not missing anything itself. `told_unheard`: an event about it never arrived, so nothing about it is silent.
    `listed`: Stripe showed it so during the run; otherwise only an event tells it, and of its own second the books may know
    the end already (an invoice is finalized and paid within one).
    """
    if here is None:
        no_event = not told_unheard and (silent(at_stripe) or _told_otherwise(at_stripe, file))
        return Compared(Matter.MORE if no_event else Matter.MISSING)
    if type(here) is not type(at_stripe):
        return Compared(Matter.DIFFERENT, (Difference("kind", _tag(here), _tag(at_stripe)),))
    healed = fold(here, at_stripe)
    if here.as_of > at_stripe.as_of:  # an old event may still add to what is gathered over all tellings
        return Compared(Matter.SAME if healed == here else Matter.MORE)
    last_word = at_stripe if listed or here.as_of < at_stripe.as_of else healed
    found = differences(here, last_word, file)
    if found:
        return Compared(Matter.DIFFERENT, found)
    return Compared(Matter.SAME if _but_for_time(healed, here) else Matter.MORE)


def from_the_future(here: AnyFact, at_stripe: AnyFact, now_s: Seconds) -> bool:
    """Whether a row claims a telling that Stripe cannot have made yet, and says something else than Stripe does."""
    return here.as_of > now_s and bool(differences(here, at_stripe, CustomerFile()))


def silent(told: AnyFact) -> bool:
    """Whether Stripe sends none of the events we hear about an object in this state, so that lacking it is no drift."""
    if isinstance(told, BalanceRead | SessionLines):
        return True  # an answer to a look-up: there is no event of it at all
    return getattr(told, "status", None) in _SILENT_STATES.get(type(told), ())


def _told_otherwise(told: AnyFact, file: CustomerFile) -> bool:
    """Whether an invoice payment's events are in an API version that has none of it: its invoice and its payment name each other."""
    if not isinstance(told, InvoicePayment):
        return False
    invoice, intent = file.invoices.get(told.invoice), file.intents.get(told.payment_intent or "-")
    return bool((invoice and (invoice.payment_intent or invoice.charge)) or (intent and intent.invoice))


def differences(here: AnyFact, at_stripe: AnyFact, file: CustomerFile) -> tuple[Difference, ...]:
    """The fields that matter and are not the same, both values in words."""
    found = []
    for name in _FIELDS.get(type(here), ()):
        ours, theirs = _value(here, name), _value(at_stripe, name)
        if ours == theirs or (name in here.STICKY and theirs is None):
            continue  # a link that some API shape does not tell is no difference
        if name == "status" and silent(at_stripe):
            continue
        if name in _PERSONAL and ours and theirs:
            found.append(Difference(name, "one", "another"))
            continue
        found.append(Difference(name.removesuffix("_minor"), _said(name, ours), _said(name, theirs)))
    match here, at_stripe:
        case Charge(), Charge():
            found += _charge(here, at_stripe, file)
        case Invoice(), Invoice():
            found += _invoice(here, at_stripe)
        case _:
            pass
    return tuple(found)


def _value(fact: Fact, name: str) -> Any:
    value = getattr(fact, name)
    match name:
        case "items":
            return tuple(sorted((i.price, i.quantity or 0, i.period_start, i.period_end) for i in value))
        case "metadata":
            return dict(sorted(value.items()))
        case "due_by":
            return value or None
        case _:
            return value


def _charge(here: Charge, at_stripe: Charge, file: CustomerFile) -> list[Difference]:
    """What went back of a charge is also in its refunds, and that it is disputed in its disputes."""
    refunds = [
        r for r in file.refunds.values() if r.charge == here.id or (r.payment_intent or "-") == here.payment_intent
    ]
    gone = refunded_minor(here, refunds)
    found = []
    if gone != at_stripe.refunded_minor and here.refunded_minor != at_stripe.refunded_minor:
        found.append(Difference("refunded", str(gone), str(at_stripe.refunded_minor)))
    if here.disputed != at_stripe.disputed:
        known = any(
            d.charge == here.id or (d.payment_intent or "-") == here.payment_intent for d in file.disputes.values()
        )
        if not known or here.disputed:  # Stripe sends no event about the charge when it becomes disputed
            found.append(Difference("disputed", _said("", here.disputed), _said("", at_stripe.disputed)))
    return found


def _invoice(here: Invoice, at_stripe: Invoice) -> list[Difference]:
    found = []
    ours, theirs = here.off_stripe_minor, at_stripe.off_stripe_minor
    if here.overpaid_minor is None and ours and theirs:
        pass  # an API version without `amount_paid_off_stripe` only tells that something was paid elsewhere
    elif ours != theirs:
        found.append(Difference("off_stripe", str(ours), str(theirs)))
    if here.overpaid_minor is not None and (here.overpaid_minor or 0) != (at_stripe.overpaid_minor or 0):
        found.append(Difference("overpaid", str(here.overpaid_minor), str(at_stripe.overpaid_minor or 0)))
    if here.lines_complete and at_stripe.lines_complete:
        our_lines, their_lines = (
            {line.id: (line.net_minor, line.period_start, line.period_end) for line in invoice.lines}
            for invoice in (here, at_stripe)
        )
        for id_ in sorted(our_lines.keys() | their_lines.keys()):
            if our_lines.get(id_) != their_lines.get(id_):
                found.append(Difference(f"line {id_}", _line(our_lines.get(id_)), _line(their_lines.get(id_))))
    return found


def _line(told: tuple[int, Seconds, Seconds] | None) -> str:
    return f"{told[0]} for {_moment(told[1])} to {_moment(told[2])}" if told else "-"


def _but_for_time(a: AnyFact, b: AnyFact) -> bool:
    return msgspec.structs.replace(a, as_of=0) == msgspec.structs.replace(b, as_of=0)


def _said(name: str, value: Any) -> str:
    """A value for people. Metadata is told by its keys' values only where short; hashes and ids stand as they are."""
    if value is None or value in ("", {}, ()):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in _PERSONAL:
        return "one"
    if name in _TIMES:
        return _moment(value)
    if name == "items":
        return ", ".join(f"{n if n is not None else 1} x {p} {_moment(a)} to {_moment(b)}" for p, n, a, b in value)
    if isinstance(value, dict):
        return ", ".join(sorted(value))
    return str(value)


def _moment(seconds: Seconds) -> str:
    return f"{at(seconds):%Y-%m-%d %H:%M:%S}" if seconds % 86_400 else f"{at(seconds):%Y-%m-%d}"


def _tag(fact: Fact) -> str:
    return str(fact.__struct_config__.tag)
