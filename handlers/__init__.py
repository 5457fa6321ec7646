"""What should happen: pure rules over our own values; this file owns the map from Stripe event type to what is read from it."""

from __future__ import annotations

HANDLERS: dict[str, str] = {
    # payments
    "charge.succeeded": "charge",
    "charge.failed": "charge",
    "charge.pending": "charge",
    "charge.captured": "charge",
    "charge.updated": "charge",
    "charge.refunded": "charge",
    "charge.expired": "charge",
    "payment_intent.succeeded": "payment_intent",
    "payment_intent.payment_failed": "payment_intent",
    "payment_intent.canceled": "payment_intent",
    "payment_intent.processing": "payment_intent",
    # money that went back
    "charge.refund.updated": "refund",
    "refund.created": "refund",
    "refund.updated": "refund",
    "refund.failed": "refund",
    # disputes and warnings of them
    "charge.dispute.created": "dispute",
    "charge.dispute.updated": "dispute",
    "charge.dispute.closed": "dispute",
    "charge.dispute.funds_withdrawn": "dispute",
    "charge.dispute.funds_reinstated": "dispute",
    "radar.early_fraud_warning.created": "radar.early_fraud_warning",
    "radar.early_fraud_warning.updated": "radar.early_fraud_warning",
    # invoices and what paid them
    "invoice.created": "invoice",
    "invoice.finalized": "invoice",
    "invoice.paid": "invoice",
    "invoice.payment_failed": "invoice",
    "invoice.payment_succeeded": "invoice",
    "invoice.updated": "invoice",
    "invoice.voided": "invoice",
    "invoice.marked_uncollectible": "invoice",
    "invoice.overpaid": "invoice",
    "invoice.payment_action_required": "invoice",
    "invoice_payment.paid": "invoice_payment",
    # who buys, and what runs on
    "customer.created": "customer",
    "customer.updated": "customer",
    "customer.deleted": "customer",
    "customer.subscription.created": "subscription",
    "customer.subscription.updated": "subscription",
    "customer.subscription.deleted": "subscription",
    "customer.subscription.paused": "subscription",
    "customer.subscription.resumed": "subscription",
    "customer.subscription.trial_will_end": "subscription",
    "customer.subscription.pending_update_applied": "subscription",
    # what begins, changes and ends subscriptions by the calendar
    "subscription_schedule.created": "subscription_schedule",
    "subscription_schedule.updated": "subscription_schedule",
    "subscription_schedule.completed": "subscription_schedule",
    "subscription_schedule.released": "subscription_schedule",
    "subscription_schedule.canceled": "subscription_schedule",
    "subscription_schedule.aborted": "subscription_schedule",
    "subscription_schedule.expiring": "subscription_schedule",
    # purchases through Checkout
    "checkout.session.completed": "checkout.session",
    "checkout.session.async_payment_succeeded": "checkout.session",
    "checkout.session.async_payment_failed": "checkout.session",
    "checkout.session.expired": "checkout.session",
}
"""Stripe event type -> `object` of what its fact is read from. The keys are what the webhook endpoint subscribes to."""
