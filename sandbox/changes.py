"""What people do to a running subscription: trials, cancellation, pauses, other items, and the proration of all that."""

from __future__ import annotations

import copy

from sandbox import forms
from sandbox.invoices import LineOf, share
from sandbox.store import Obj, invalid
from sandbox.subscriptions import ENDED, Subscriptions, after


class Changes(Subscriptions):
    """Behaviour of a subscription when it is changed (stripe.com/docs/billing/subscriptions/trials, /cancel, /pause)."""

    # -- trials --------------------------------------------------------------------------------------------------------

    def set_trial_end(self, sub: Obj, trial_end: int, *, proration: str = "create_prorations") -> None:
        """Extend or shorten a trial (the past means: it ends now), or begin another one on a subscription without."""
        self._alive(sub)
        if sub["status"] != "trialing":
            self._try_again(sub, trial_end, proration)
            return
        before = {"trial_end": sub["trial_end"], "items": copy.deepcopy(sub["items"])}
        trial_end = max(trial_end, self.now())
        sub |= {"trial_end": trial_end, "billing_cycle_anchor": trial_end}
        if sub["cancel_at_period_end"]:
            sub["cancel_at"] = trial_end
        for item in sub["items"]["data"]:
            item["current_period_end"] = trial_end
        self.emit("customer.subscription.updated", sub, before)
        self._warn_of_trial_end(sub)
        self._watch_period(sub)
        self.tick()

    def _try_again(self, sub: Obj, trial_end: int, proration: str) -> None:
        now = self.now()
        if trial_end <= now:
            return
        lines = [] if proration == "none" else self._credit_lines(sub)
        names = ("status", "trial_start", "trial_end", "billing_cycle_anchor", "items", "latest_invoice")
        before = {name: copy.deepcopy(sub[name]) for name in names}
        kept = sub["trial_start"] if sub["billing_mode"]["type"] == "classic" else None  # flexible tells the latest
        sub |= {
            "status": "trialing",
            "status_details": None,
            "trial_start": kept or now,
            "trial_end": trial_end,
            "billing_cycle_anchor": trial_end,
        }
        self._cycles[sub["id"]] = 0
        for item in sub["items"]["data"]:
            item |= {"current_period_start": now, "current_period_end": trial_end}
        lines = self._pending.pop(sub["id"], []) + lines + self._period_lines(sub, free=True)
        invoice = self.extra_invoice(sub, "subscription_update", lines)
        sub["latest_invoice"] = invoice["id"]
        self.emit("customer.subscription.updated", sub, before)
        self._warn_of_trial_end(sub)
        self._watch_period(sub)

    # -- the end -------------------------------------------------------------------------------------------------------

    def cancel_at_period_end(self, sub: Obj, cancel: bool = True) -> None:
        """The customer's request (or its withdrawal); the end comes with the period."""
        self._unscheduled(sub)
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

    def cancel_at(self, sub: Obj, ts: int | None) -> None:
        """Set the end to any moment (unix seconds), or withdraw it with None."""
        self._unscheduled(sub)
        details = sub["cancellation_details"] | {"reason": "cancellation_requested" if ts else None}
        self.change(
            sub,
            "customer.subscription.updated",
            cancel_at=ts,
            cancel_at_period_end=False,
            canceled_at=self.now() if ts else None,
            cancellation_details=details,
        )
        if ts:
            self.at(ts, lambda: self._cancel_due(sub, ts))

    def _unscheduled(self, sub: Obj) -> None:
        self._alive(sub)
        if sub["schedule"]:
            raise invalid(
                f"The subscription is managed by the subscription schedule `{sub['schedule']}`, and updating any "
                "cancelation behavior directly is not allowed. Please update the schedule instead."
            )

    def _cancel_due(self, sub: Obj, ts: int) -> None:
        if sub["status"] not in ENDED and sub["cancel_at"] == ts and not sub["cancel_at_period_end"]:
            self._end(sub, sub["cancellation_details"]["reason"])

    def cancel(self, sub: Obj, *, prorate: bool = False, invoice_now: bool = False, details: Obj | None = None) -> None:
        """End it now; a second time is 404 `resource_missing`.

        `prorate`: the unused rest becomes a credit line, on a final invoice with `invoice_now`, else it stays pending
        (`invoice_pending`). Without `prorate` what was pending is dropped.
        """
        self._alive(sub)
        lines = self._credit_lines(sub) if prorate else []
        for invoice in self.linked("invoice", "subscription", sub["id"]):
            if invoice["status"] in ("draft", "open"):
                invoice |= {"auto_advance": False, "next_payment_attempt": None}
                self.emit("invoice.updated", invoice, {"auto_advance": True})
        sub["cancellation_details"] |= details or {}
        self._end(sub, "cancellation_requested")
        pending = self._pending.pop(sub["id"], []) if prorate or invoice_now else []
        self._pending[sub["id"]] = pending + lines
        if invoice_now:
            self.invoice_pending(sub, "subscription_update")

    def invoice_pending(self, sub: Obj, billing_reason: str = "manual") -> Obj | None:
        """An invoice of what is pending for this subscription, if anything is."""
        lines = self._pending.pop(sub["id"], [])
        return self.extra_invoice(sub, billing_reason, lines) if lines else None

    # -- pauses --------------------------------------------------------------------------------------------------------

    def pause(self, sub: Obj) -> None:
        """`/pause` (API version endive, flexible billing): it serves and bills nothing until it is resumed."""
        self._alive(sub)
        if sub["billing_mode"]["type"] != "flexible" or sub["status"] not in ("active", "trialing", "past_due"):
            raise invalid("Only active subscriptions with flexible billing mode can be paused.")
        self._pause(sub, "pause_requested")

    def resume(self, sub: Obj) -> Obj:
        """`/resume`: a new period begins now, and its invoice is charged; returns that invoice."""
        self._alive(sub)
        if sub["status"] != "paused":
            raise invalid(f"Only paused subscriptions can be resumed; this one is {sub['status']}.")
        customer = self.by_id[sub["customer"]]
        if not (sub["default_payment_method"] or customer["invoice_settings"]["default_payment_method"]):
            raise invalid(
                "This customer has no attached payment source or default payment method.", code="resource_missing"
            )
        before = {name: copy.deepcopy(sub[name]) for name in ("status", "status_details", "items", "latest_invoice")}
        sub |= {"status": "active", "status_details": None}
        self._restart(sub)
        lines = self._pending.pop(sub["id"], []) + self._period_lines(sub)
        invoice = self.draft_invoice(customer, sub["currency"], "subscription_update", lines, sub)
        sub["latest_invoice"] = invoice["id"]
        self.emit("customer.subscription.updated", sub, before)
        self.emit("customer.subscription.resumed", sub, before)
        self.finalize(invoice)
        if invoice["status"] == "open":
            self.pay_invoice(invoice)
        return invoice

    def pause_collection(self, sub: Obj, behavior: str | None = "void", *, resumes_at: int | None = None) -> None:
        """Bill without collecting (`void`, `keep_as_draft`, `mark_uncollectible`), or again with None; no status changes."""
        self._alive(sub)
        paused = {"behavior": behavior, "resumes_at": resumes_at} if behavior else None
        self.change(sub, "customer.subscription.updated", pause_collection=paused)
        if paused and resumes_at:
            self.at(resumes_at, lambda: self._collection_resumes(sub, paused))

    def _collection_resumes(self, sub: Obj, paused: Obj) -> None:
        if sub["pause_collection"] is paused:
            self.pause_collection(sub, None)

    # -- other items ---------------------------------------------------------------------------------------------------

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
        found: list[LineOf] = []
        if sub["status"] == "trialing":  # nothing was paid for this period
            return found
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
