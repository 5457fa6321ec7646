"""The restricted key that finalsale needs at Stripe: each resource of the form, none, read or write, and why."""

from __future__ import annotations

from typing import Any, NamedTuple

SOURCE = "docs.stripe.com/keys/permissions-reference"
NONE, READ, WRITE = "none", "read", "write"


class Resource(NamedTuple):
    """A row of the form at Dashboard > Developers > API keys > Create restricted key. `watch` is the key that can change nothing."""

    name: str
    watch: str
    work: str
    endpoints: tuple[str, ...]
    """Below /v1/ or /v2/: Stripe's own reference tells which permission each one needs, should the form have other names."""
    why: str


RECIPE: tuple[Resource, ...] = (
    Resource(
        "Charges and Refunds",
        READ,
        WRITE,
        ("/v1/charges", "/v1/refunds"),
        "payments and what went back of them; write sends the refund of a duplicate",
    ),
    Resource("Payment Intents", READ, READ, ("/v1/payment_intents",), "what a payment was for, and its retries"),
    Resource(
        "Customers",
        READ,
        WRITE,
        ("/v1/customers",),
        "whose payment it is, and the credit balance; write reverses a credit that a duplicate made",
    ),
    Resource(
        "Invoices",
        READ,
        READ,
        ("/v1/invoices", "/v1/invoice_payments"),
        "which period was paid, and whether it was paid twice",
    ),
    Resource(
        "Subscriptions",
        READ,
        WRITE,
        ("/v1/subscriptions", "/v1/subscription_schedules"),
        "trials, renewals and cancellations; write ends the subscription of a duplicate",
    ),
    Resource(
        "Disputes",
        READ,
        WRITE,
        ("/v1/disputes",),
        "chargebacks and their deadlines; write stages evidence, and never submits it",
    ),
    Resource("Checkout Sessions", READ, READ, ("/v1/checkout/sessions",), "what was bought, and by whom"),
    Resource("Early fraud warnings (Radar)", READ, READ, ("/v1/radar/early_fraud_warnings",), "warnings of the banks"),
    Resource("Balance", READ, READ, ("/v1/balance_transactions",), "the truth about money, for the nightly comparison"),
    Resource("Events", READ, READ, ("/v1/events",), "what no delivery told of, for the nightly comparison"),
    Resource(
        "Webhook Endpoints",
        READ,
        READ,
        ("/v1/webhook_endpoints",),
        "whether the endpoint is enabled and complete; --fix-endpoint needs write, once, with another key",
    ),
    Resource(
        "Event destinations",
        READ,
        READ,
        ("/v2/core/event_destinations", "/v2/core/events"),
        "thin events, and what Stripe could not deliver",
    ),
    Resource("Accounts", READ, READ, ("/v1/account",), "that a run never mixes two accounts' objects"),
    Resource(
        "Everything else",
        NONE,
        NONE,
        (),
        "payment methods, payouts, transfers, prices and all others are never touched",
    ),
)


def document() -> dict[str, Any]:
    """The recipe as `--json` answers it."""
    return {"source": SOURCE, "recipe": [row._asdict() for row in RECIPE]}
