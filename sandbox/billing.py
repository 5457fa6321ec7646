"""Subscriptions: trials, renewals, changes with proration, cancellation, and Checkout that starts them."""

from __future__ import annotations

import calendar
import copy
from datetime import UTC, datetime
from typing import Any

from sandbox import forms
from sandbox.forms import Method
from sandbox.invoices import DAY, Invoices, LineOf, share
from sandbox.store import Obj, StripeError, invalid

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


class Books(Invoices):
    """The whole stand-in: everything a merchant, their customers and the banks do is a method here."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.finalize_after_s = 3600
        """How long a renewal's invoice stays a draft."""
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
    ) -> Obj:
        """A subscription with its first invoice, charged at once unless it begins with a trial. `extra`: one-time lines."""
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

    def checkout(
        self,
        customer: Obj | None,
        price: Obj,
        *,
        mode: str,
        quantity: int = 1,
        metadata: Obj | None = None,
        client_reference_id: str | None = None,
        subscription_metadata: Obj | None = None,
        payment_metadata: Obj | None = None,
        **more: Any,
    ) -> Obj:
        """A Checkout session, opened and completed: `mode=payment` (a pack) or `mode=subscription`."""
        session = forms.checkout_session(
            self.new_id("cs_live_a1" if self.livemode else "cs_test_a1", 58),
            self.now(),
            self.livemode,
            mode=mode,
            customer=customer,
            currency=price["currency"],
            metadata=dict(metadata or {}),
        )
        session["client_reference_id"] = client_reference_id
        total = price["unit_amount"] * quantity
        if mode == "payment":
            pi, charge = self.pay_bare(
                customer, total, price["currency"], metadata=payment_metadata, description=price["id"]
            )
            session["payment_intent"] = pi["id"]
            paid = charge["status"] == "succeeded"
        else:
            if customer is None:
                raise ValueError("a subscription needs a customer")
            sub = self.subscribe(customer, [(price, quantity)], metadata=subscription_metadata, **more)
            invoice = self.by_id[sub["latest_invoice"]]
            session |= {"subscription": sub["id"], "invoice": invoice["id"]}
            total, paid = invoice["total"], invoice["status"] == "paid"
        session |= {"amount_subtotal": total, "amount_total": total, "status": "complete", "url": None}
        session["payment_status"] = "paid" if paid and total else "no_payment_required" if not total else "unpaid"
        self.put(session)
        self.emit("checkout.session.completed", session)
        return session

    def pay_bare(
        self,
        customer: Obj | None,
        amount: int,
        currency: str,
        *,
        metadata: Obj | None = None,
        description: str | None = None,
        method: Method | None = None,
        manual: bool = False,
    ) -> tuple[Obj, Obj]:
        """A payment without an invoice; returns the payment intent and the charge. `manual`: left uncaptured."""
        pi = self.new_payment_intent(
            amount,
            currency,
            customer=customer["id"] if customer else None,
            metadata=metadata,
            description=description,
            manual=manual,
        )
        default = customer["invoice_settings"]["default_payment_method"] if customer else "pm_card_visa"
        return pi, self.confirm(pi, method or self.method(default))

    # -- going on ------------------------------------------------------------------------------------------------------

    def _watch_period(self, sub: Obj) -> None:
        end = sub["items"]["data"][0]["current_period_end"]
        self.at(end, lambda: self._period_ends(sub, end))

    def _period_ends(self, sub: Obj, end: int) -> None:
        if sub["status"] in (*ENDED, "incomplete", "paused") or sub["items"]["data"][0]["current_period_end"] != end:
            return
        if sub["cancel_at_period_end"]:
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
            self.change(sub, "customer.subscription.paused", status="paused")
        return bool(behavior != "create_invoice")

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
        self.finalize(invoice)
        if invoice["status"] == "open" and self._default_method(invoice):
            self.pay_invoice(invoice)

    def cycle_again(self, sub: Obj) -> Obj:
        """A second `subscription_cycle` invoice for the running period of the same item, paid: an engine's mistake."""
        return self.extra_invoice(sub, "subscription_cycle", self._period_lines(sub))

    def extra_invoice(self, sub: Obj, billing_reason: str, lines: list[LineOf], *, pay: bool = True) -> Obj:
        """An invoice of this subscription besides its own rhythm (`subscription_threshold`, `manual`, ...)."""
        invoice = self.draft_invoice(self.by_id[sub["customer"]], sub["currency"], billing_reason, lines, sub)
        self.finalize(invoice)
        if pay and invoice["status"] == "open":
            self.pay_invoice(invoice)
        return invoice

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
            self._end(sub, "payment_failed")

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

    # -- changing ------------------------------------------------------------------------------------------------------

    def set_trial_end(self, sub: Obj, trial_end: int) -> None:
        """Extend or shorten a trial; the past means that it ends now."""
        before = {"trial_end": sub["trial_end"], "items": copy.deepcopy(sub["items"])}
        trial_end = max(trial_end, self.now())
        sub |= {"trial_end": trial_end, "billing_cycle_anchor": trial_end}
        for item in sub["items"]["data"]:
            item["current_period_end"] = trial_end
        self.emit("customer.subscription.updated", sub, before)
        self._warn_of_trial_end(sub)
        self._watch_period(sub)
        self.tick()

    def cancel_at_period_end(self, sub: Obj, cancel: bool = True) -> None:
        """The customer's request (or its withdrawal); the end comes with the period."""
        self._alive(sub)
        end = sub["items"]["data"][0]["current_period_end"]
        details = sub["cancellation_details"] | {"reason": "cancellation_requested" if cancel else None}
        self.change(
            sub,
            "customer.subscription.updated",
            cancel_at_period_end=cancel,
            cancel_at=end if cancel else None,
            canceled_at=self.now() if cancel else None,
            cancellation_details=details,
        )

    def cancel(self, sub: Obj, *, prorate: bool = False, invoice_now: bool = False, details: Obj | None = None) -> None:
        """End it now; a second time is 404 `resource_missing`."""
        self._alive(sub)
        lines = self._credit_lines(sub) if prorate else []
        if not invoice_now:
            self._pending.pop(sub["id"], None)
        for invoice in self.linked("invoice", "subscription", sub["id"]):
            if invoice["status"] in ("draft", "open"):
                invoice |= {"auto_advance": False, "next_payment_attempt": None}
                self.emit("invoice.updated", invoice, {"auto_advance": True})
        sub["cancellation_details"] |= details or {}
        self._end(sub, "cancellation_requested")
        if invoice_now and (lines := self._pending.pop(sub["id"], []) + lines):
            self.extra_invoice(sub, "subscription_update", lines)

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
        sub |= {"status": "canceled", "ended_at": now, "canceled_at": sub["canceled_at"] or now}
        sub["cancellation_details"] |= {"reason": reason}
        self.emit("customer.subscription.deleted", sub)

    def update_items(self, sub: Obj, changes: list[Obj], proration: str = "create_prorations") -> Obj | None:
        """Change price or quantity of items (`{id?, price?, quantity?}`); returns the invoice where one is made at once."""
        self._alive(sub)
        before = {"items": copy.deepcopy(sub["items"])}
        lines: list[LineOf] = []
        reset = False
        for change in changes:
            item = self._which(sub, change)
            price = change.get("price") or item["price"]
            quantity = change.get("quantity", item["quantity"])
            reset = reset or price["recurring"]["interval"] != item["price"]["recurring"]["interval"]
            if proration != "none" and sub["status"] != "trialing":
                lines += self._credit_lines(sub, item)
            item |= {"price": price, "plan": forms.plan(price), "quantity": quantity}
            if lines and not reset:
                lines.append(self._debit_line(sub, item))
        if reset:
            self._restart(sub)
            lines += self._period_lines(sub)
        self.emit("customer.subscription.updated", sub, before)
        if not lines or (proration == "create_prorations" and not reset):
            self._pending.setdefault(sub["id"], []).extend(lines)
            return None
        invoice = self.extra_invoice(sub, "subscription_update", lines)
        sub["latest_invoice"] = invoice["id"]
        return invoice

    def _which(self, sub: Obj, change: Obj) -> Obj:
        items: list[Obj] = sub["items"]["data"]
        if change.get("id") is None:
            return items[0]
        for item in items:
            if item["id"] == change["id"]:
                return item
        raise invalid(f"No such subscription item: '{change['id']}'", param="items[0][id]", code="resource_missing")

    def _restart(self, sub: Obj) -> None:
        now = self.now()
        sub["billing_cycle_anchor"] = now
        self._cycles[sub["id"]] = 1
        end = after(now, sub["items"]["data"][0]["price"]["recurring"], 1)
        for item in sub["items"]["data"]:
            item |= {"current_period_start": now, "current_period_end": end}
        self._watch_period(sub)

    def _part(self, item: Obj) -> tuple[int, int, int]:
        now, start, end = self.now(), item["current_period_start"], item["current_period_end"]
        return share(item["price"]["unit_amount"] * item["quantity"], end - now, end - start), now, end

    def _credit_lines(self, sub: Obj, only: Obj | None = None) -> list[LineOf]:
        """The unused rest of the period, as negative proration lines."""
        found = []
        for item in [only] if only else sub["items"]["data"]:
            amount, now, end = self._part(item)
            found.append(
                LineOf(
                    price=item["price"],
                    quantity=item["quantity"],
                    amount=-amount,
                    period=(now, end),
                    subscription=sub["id"],
                    item=item["id"],
                    proration=True,
                    credited={"invoice": sub["latest_invoice"], "invoice_line_items": []},
                    description="Unused time",
                )
            )
        return found

    def _debit_line(self, sub: Obj, item: Obj) -> LineOf:
        amount, now, end = self._part(item)
        return LineOf(
            price=item["price"],
            quantity=item["quantity"],
            amount=amount,
            period=(now, end),
            subscription=sub["id"],
            item=item["id"],
            proration=True,
            description="Remaining time",
        )
