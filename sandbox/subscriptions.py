"""Subscriptions as they run by themselves: their beginning, periods, renewals and dunning, trials, and their end."""

from __future__ import annotations

import calendar
import copy
from datetime import UTC, datetime
from typing import Any

from sandbox import forms, shapes
from sandbox.forms import Method
from sandbox.invoices import DAY, Invoices, LineOf
from sandbox.store import Obj, StripeError

INCOMPLETE_S = 23 * 3600
ENDED = ("canceled", "incomplete_expired")


def after(anchor: int, recurring: Obj, count: int) -> int:
    """The end of the `count`-th period from `anchor`; months keep the anchor's day where the month has it."""
    step = count * recurring["interval_count"]
    if recurring["interval"] in ("day", "week"):
        return int(anchor + step * DAY * (7 if recurring["interval"] == "week" else 1))
    at = datetime.fromtimestamp(anchor, UTC)
    month = at.month - 1 + step * (12 if recurring["interval"] == "year" else 1)
    year, month = at.year + month // 12, month % 12 + 1
    day = min(at.day, calendar.monthrange(year, month)[1])
    return int(at.replace(year=year, month=month, day=day).timestamp())


class Subscriptions(Invoices):
    """Behaviour of subscriptions between two acts of anybody (stripe.com/docs/billing/subscriptions/overview)."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.finalize_after_s = 3600
        """How long a renewal's invoice stays a draft."""
        self.after_retries = "cancel"
        """What becomes of a subscription when the last retry failed: `cancel`, `unpaid` or `past_due`."""
        self._cycles: dict[str, int] = {}
        self._pending: dict[str, list[LineOf]] = {}

    # -- beginning -----------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        customer: Obj,
        items: list[tuple[Obj, int]],
        *,
        metadata: Obj | None = None,
        trial_end: int | None = None,
        coupon: str | None = None,
        tax_rates: list[Obj] | None = None,
        extra: list[tuple[Obj, int]] | None = None,
        cancel_at_period_end: bool = False,
        method: Method | None = None,
        missing_payment_method: str = "create_invoice",
    ) -> Obj:
        """A subscription with its first invoice, charged at once unless it begins with a trial. `extra`: one-time lines.

        `missing_payment_method`: what the end of a trial does without one: `create_invoice`, `cancel` or `pause`.
        """
        now = self.now()
        sub = forms.subscription(
            self.new_id("sub_1"),
            now,
            self.livemode,
            customer=customer["id"],
            currency=items[0][0]["currency"],
            metadata=dict(metadata or {}),
        )
        recurring = items[0][0]["recurring"]
        period = (now, trial_end or after(now, recurring, 1))
        for price, quantity in items:
            sub["items"]["data"].append(self._item(sub, price, quantity, period))
        sub["items"]["total_count"] = len(items)
        sub["test_clock"] = customer["test_clock"]
        sub["default_payment_method"] = method.id if method else None
        sub["default_tax_rates"] = list(tax_rates or [])
        sub["trial_settings"]["end_behavior"]["missing_payment_method"] = missing_payment_method
        if shapes.day(self.event_version) < shapes.FLEXIBLE:
            sub["billing_mode"] = {"flexible": None, "type": "classic"}
        if coupon:
            sub["discounts"] = [self.new_discount(coupon, customer=customer["id"], subscription=sub["id"])]
        if trial_end:
            sub |= {"status": "trialing", "trial_start": now, "trial_end": trial_end, "billing_cycle_anchor": trial_end}
        self._cycles[sub["id"]] = 0 if trial_end else 1
        if cancel_at_period_end:
            sub |= {"cancel_at_period_end": True, "cancel_at": period[1], "canceled_at": now}
        if customer["currency"] is None:
            customer["currency"] = sub["currency"]
        self.put(sub)
        self.emit("customer.subscription.created", sub)
        self._watch_period(sub)
        self._first_invoice(customer, sub, extra or [])
        return sub

    def _item(self, sub: Obj, price: Obj, quantity: int, period: tuple[int, int]) -> Obj:
        return forms.subscription_item(
            self.new_id("si_", 14), self.now(), subscription=sub["id"], price=price, quantity=quantity, period=period
        )

    def _first_invoice(self, customer: Obj, sub: Obj, extra: list[tuple[Obj, int]]) -> None:
        trial = sub["status"] == "trialing"
        lines = [
            LineOf(
                price=price,
                quantity=quantity,
                amount=price["unit_amount"] * quantity,
                period=(self.now(), self.now()),
                subscription=sub["id"],
            )
            for price, quantity in extra
        ] + self._period_lines(sub, free=trial)
        invoice = self.draft_invoice(customer, sub["currency"], "subscription_create", lines, sub)
        sub["latest_invoice"] = invoice["id"]
        self.finalize(invoice, "Subscription creation")
        if trial:
            self._warn_of_trial_end(sub)
        if invoice["status"] == "open":
            charge = self.pay_invoice(invoice)
            if charge["status"] == "pending" and sub["status"] == "incomplete":
                self._status(sub, "active")  # delayed methods do not keep the customer waiting
            self.at(self.now() + INCOMPLETE_S, lambda: self._expire(sub, invoice))

    def _period_lines(self, sub: Obj, *, free: bool = False) -> list[LineOf]:
        lines = []
        for item in sub["items"]["data"]:
            amount = 0 if free else (item["price"]["unit_amount"] or 0) * (item["quantity"] or 0)
            lines.append(
                LineOf(
                    price=item["price"],
                    quantity=item["quantity"],
                    amount=amount,
                    period=(item["current_period_start"], item["current_period_end"]),
                    subscription=sub["id"],
                    item=item["id"],
                    description="Trial period" if free else None,
                )
            )
        return lines

    def _expire(self, sub: Obj, invoice: Obj) -> None:
        if sub["status"] == "incomplete":
            self.void(invoice)
            sub["ended_at"] = self.now()
            self._status(sub, "incomplete_expired")

    def _status(self, sub: Obj, status: str) -> None:
        if sub["status"] != status and sub["status"] not in ENDED:
            self.change(sub, "customer.subscription.updated", status=status)

    # -- going on ------------------------------------------------------------------------------------------------------

    def _watch_period(self, sub: Obj) -> None:
        end = sub["items"]["data"][0]["current_period_end"]
        self.at(end, lambda: self._period_ends(sub, end))

    def _period_ends(self, sub: Obj, end: int) -> None:
        if sub["status"] in (*ENDED, "incomplete", "paused") or sub["items"]["data"][0]["current_period_end"] != end:
            return
        if self.phase_due(sub):
            return
        if sub["cancel_at_period_end"] or (sub["cancel_at"] and sub["cancel_at"] <= self.now()):
            self._end(sub, sub["cancellation_details"]["reason"] or "cancellation_requested")
            return
        before: Obj = {"items": copy.deepcopy(sub["items"]), "latest_invoice": sub["latest_invoice"]}
        if sub["status"] == "trialing":
            if self._trial_ends_unpaid(sub):
                return
            before["status"] = "trialing"
            sub["status"] = "active"
        self._next_period(sub)
        lines = self._pending.pop(sub["id"], []) + self._period_lines(sub)
        customer = self.by_id[sub["customer"]]
        invoice = self.draft_invoice(customer, sub["currency"], "subscription_cycle", lines, sub)
        first = before["items"]["data"][0]
        invoice |= {"period_start": first["current_period_start"], "period_end": first["current_period_end"]}
        sub["latest_invoice"] = invoice["id"]
        self.emit("customer.subscription.updated", sub, before)
        if sub["status"] == "unpaid":  # its invoices stay drafts until somebody takes it up again
            invoice["auto_advance"] = False
            return
        invoice["automatically_finalizes_at"] = self.now() + self.finalize_after_s
        self.at(self.now() + self.finalize_after_s, lambda: self._collect(invoice))

    def _trial_ends_unpaid(self, sub: Obj) -> bool:
        customer = self.by_id[sub["customer"]]
        if sub["default_payment_method"] or customer["invoice_settings"]["default_payment_method"]:
            return False
        behavior = sub["trial_settings"]["end_behavior"]["missing_payment_method"]
        if behavior == "cancel":
            self._end(sub, None)
        elif behavior == "pause":
            self._pause(sub, "trial_end_without_payment_method")
        return bool(behavior != "create_invoice")

    def _pause(self, sub: Obj, why: str) -> None:
        paused = {"subscription": {"type": why}, "transitioned_at": self.now(), "type": "subscription"}
        self.change(sub, "customer.subscription.paused", status="paused", status_details={"paused": paused})

    def _next_period(self, sub: Obj) -> None:
        self._cycles[sub["id"]] += 1
        recurring = sub["items"]["data"][0]["price"]["recurring"]
        start = sub["items"]["data"][0]["current_period_end"]
        end = after(sub["billing_cycle_anchor"], recurring, self._cycles[sub["id"]])
        for item in sub["items"]["data"]:
            item |= {"current_period_start": start, "current_period_end": end}
        self._watch_period(sub)

    def _collect(self, invoice: Obj) -> None:
        sub = self.by_id[invoice["parent"]["subscription_details"]["subscription"]]
        if invoice["status"] != "draft" or not invoice["auto_advance"] or sub["status"] in ENDED:
            return
        behavior = (sub["pause_collection"] or {}).get("behavior")
        if behavior == "keep_as_draft":
            invoice |= {"auto_advance": False, "automatically_finalizes_at": None}
            return
        self.finalize(invoice)
        if invoice["status"] == "open" and behavior:
            self.void(invoice, "void" if behavior == "void" else "uncollectible")
        elif invoice["status"] == "open":
            self.collect(invoice)

    def invoice_paid(self, invoice: Obj) -> None:
        sub = self._subscription_of(invoice)
        if sub is not None and sub["status"] in ("incomplete", "past_due", "unpaid"):
            self._status(sub, "active")

    def invoice_unpaid(self, invoice: Obj, *, last: bool) -> None:
        sub = self._subscription_of(invoice)
        if sub is None or sub["status"] in (*ENDED, "incomplete"):
            return
        self._status(sub, "past_due")
        if last and invoice["billing_reason"] == "subscription_cycle":
            if self.after_retries == "cancel":
                self._end(sub, "payment_failed")
            else:
                self._status(sub, self.after_retries)

    def _subscription_of(self, invoice: Obj) -> Obj | None:
        details = (invoice["parent"] or {}).get("subscription_details") or {}
        return self.by_id.get(details.get("subscription", ""))

    def _warn_of_trial_end(self, sub: Obj) -> None:
        end = sub["trial_end"]

        def warn() -> None:
            if sub["status"] == "trialing" and sub["trial_end"] == end:
                self.emit("customer.subscription.trial_will_end", sub)

        if end - self.now() > 3 * DAY:
            self.at(end - 3 * DAY, warn)
        else:
            warn()

    def _alive(self, sub: Obj) -> None:
        if sub["status"] in ENDED:
            raise StripeError(
                404,
                "invalid_request_error",
                f"No such subscription: '{sub['id']}'",
                code="resource_missing",
                param="id",
                stored=False,
            )

    def _end(self, sub: Obj, reason: str | None) -> None:
        now = self.now()
        sub |= {
            "status": "canceled",
            "ended_at": now,
            "canceled_at": sub["canceled_at"] or now,
            "pause_collection": None,
        }
        sub["cancellation_details"] |= {"reason": reason}
        self.emit("customer.subscription.deleted", sub)
        self.ended(sub, reason)

    def phase_due(self, sub: Obj) -> bool:
        """Whether a schedule ended this subscription now, at the end of its period; before that it may change its items."""
        return False

    def ended(self, sub: Obj, reason: str | None) -> None:
        """What follows from the end of a subscription; its schedule ends here."""
