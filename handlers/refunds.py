"""The last look before money moves: what is read again from Stripe for a decision, and what exactly is then sent (rule 8)."""

from __future__ import annotations

import msgspec

from handlers.customer import CustomerFile, SubscriptionId
from handlers.decisions import ActionKind, Decision
from handlers.payments import Payment, payments_of


class Reads(msgspec.Struct, frozen=True, kw_only=True):
    """Ids of everything that the decision rests on, to be read anew."""

    charges: frozenset[str] = frozenset()
    intents: frozenset[str] = frozenset()
    invoices: frozenset[str] = frozenset()
    subscriptions: frozenset[str] = frozenset()
    balances: frozenset[str] = frozenset()


def last_look(file: CustomerFile, decision: Decision) -> Reads:
    """Both payments with their intents, invoices and subscriptions, and for D1 the customer's balance."""
    named: set[str | None] = {decision.original, decision.duplicate}
    named |= {step.subject for step in decision.prepared if step.kind is ActionKind.REFUND}
    payments = [p for p in _all_payments(file) if p.id in named]
    invoices = {p.invoice_id for p in payments if p.invoice_id}
    subscriptions = {i.subscription for i in file.invoices.values() if i.id in invoices and i.subscription}
    subscriptions |= {SubscriptionId(s.subject) for s in decision.prepared if s.kind is ActionKind.CANCEL_SUBSCRIPTION}
    customers = {p.charge.customer for p in payments if p.charge.customer}
    return Reads(
        charges=frozenset(p.id for p in payments),
        intents=frozenset(p.charge.payment_intent for p in payments if p.charge.payment_intent),
        invoices=frozenset(invoices),
        subscriptions=frozenset(subscriptions),
        balances=frozenset(customers) if decision.rule in ("D1", "D2") else frozenset(),
    )


def survivor_of(file: CustomerFile, decision: Decision) -> str | None:
    """The subscription that the original paid for; it must still serve when the other one is cancelled (reading 19)."""
    original = next((p for p in _all_payments(file) if p.id == decision.original), None)
    return original.invoice.subscription if original and original.invoice else None


def refunded_minor_of(file: CustomerFile, charge: str) -> int:
    """What has gone back of a charge so far, in minor units."""
    return next((p.refunded_minor for p in _all_payments(file) if p.id == charge), 0)


def parameters(
    kind: ActionKind, action: str, decision: str, subject: str, amount_minor: int, currency: str
) -> dict[str, object]:
    """What is sent to Stripe for an action, frozen before the call. Amounts in minor units, never left to a default."""
    metadata = {"finalsale_action": action, "finalsale_decision": decision}
    match kind:
        case ActionKind.REFUND:
            assert amount_minor > 0, "a refund without an amount would return everything that is left"
            return {"charge": subject, "amount": amount_minor, "reason": "duplicate", "metadata": metadata}
        case ActionKind.CANCEL_SUBSCRIPTION:
            return {"prorate": "false", "invoice_now": "false"}
        case ActionKind.REVERSE_BALANCE_CREDIT:
            assert amount_minor > 0, "a reversal takes back a credit; only a positive amount does"
            return {
                "amount": amount_minor,
                "currency": currency,
                "description": f"Credit for the overpayment of {subject} reversed; it goes back to the payment method",
                "metadata": {**metadata, "invoice": subject},
            }


def _all_payments(file: CustomerFile) -> list[Payment]:
    return payments_of(file, frozenset(), test_clocks=True)
