"""The whole stand-in, and what shops add to billing: Checkout, payments without an invoice, and an app's mistakes."""

from __future__ import annotations

from typing import Any

from sandbox import forms
from sandbox.forms import Method
from sandbox.schedules import Schedules
from sandbox.store import Obj
from sandbox.subscriptions import ENDED, after

__all__ = ["ENDED", "Books", "after"]


class Books(Schedules):
    """Everything a merchant, their customers and the banks do is a method here."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.session_lines: dict[str, list[Obj]] = {}
        """Checkout session to its line items, which are read on their own."""
        self._unsettled: dict[str, Obj] = {}
        """Payment intent to the completed session that waits for it."""

    # -- Checkout ------------------------------------------------------------------------------------------------------

    def checkout(
        self,
        customer: Obj | None,
        price: Obj,
        *,
        mode: str,
        quantity: int = 1,
        extra: list[tuple[Obj, int]] | None = None,
        metadata: Obj | None = None,
        client_reference_id: str | None = None,
        subscription_metadata: Obj | None = None,
        payment_metadata: Obj | None = None,
        method: Method | None = None,
        **more: Any,
    ) -> Obj:
        """A Checkout session, opened and gone through: `mode=payment` (a pack) or `mode=subscription`.

        `extra`: further prices (one-time ones, in a subscription). A delayed method completes it `unpaid`; what becomes
        of the money is told by `async_payment_succeeded` or `async_payment_failed`. A declined card leaves it open.
        """
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
        bought = [(price, quantity), *(extra or [])]
        if mode == "payment":
            total = sum(each["unit_amount"] * many for each, many in bought)
            pi, charge = self.pay_bare(
                customer, total, price["currency"], metadata=payment_metadata, description=price["id"], method=method
            )
            session["payment_intent"] = pi["id"]
            self.session_lines[session["id"]] = [self._item_of(session, *each) for each in bought]
        else:
            if customer is None:
                raise ValueError("a subscription needs a customer")
            sub = self.subscribe(
                customer, [(price, quantity)], metadata=subscription_metadata, extra=extra, method=method, **more
            )
            invoice = self.by_id[sub["latest_invoice"]]
            session |= {"subscription": sub["id"], "invoice": invoice["id"]}
            pi, charge, total = *self._payment_of(invoice), invoice["total"]
            self.session_lines[session["id"]] = [self._item_of_line(line) for line in invoice["lines"]["data"]]
        session |= {"amount_subtotal": total, "amount_total": total}
        self.put(session)
        self._complete(session, pi, charge)
        return session

    def _complete(self, session: Obj, pi: Obj, charge: Obj) -> None:
        if charge.get("status") == "failed":
            self.at(session["expires_at"], lambda: self._session_expires(session))
            return
        if charge:
            paid = "paid" if charge["status"] == "succeeded" else "unpaid"
        else:
            paid = "paid" if session["amount_total"] else "no_payment_required"
        session |= {"payment_status": paid, "status": "complete", "url": None}
        if paid == "unpaid":
            self._unsettled[pi["id"]] = session
        self.emit("checkout.session.completed", session)

    def _session_expires(self, session: Obj) -> None:
        session |= {"status": "expired", "url": None}
        self.emit("checkout.session.expired", session)

    def paid(self, pi: Obj, charge: Obj) -> None:
        super().paid(pi, charge)
        if session := self._unsettled.pop(pi["id"], None):
            session["payment_status"] = "paid"
            self.emit("checkout.session.async_payment_succeeded", session)

    def unpaid(self, pi: Obj, charge: Obj) -> None:
        super().unpaid(pi, charge)
        if session := self._unsettled.pop(pi["id"], None):
            self.emit("checkout.session.async_payment_failed", session)

    def _payment_of(self, invoice: Obj) -> tuple[Obj, Obj]:
        """The payment intent and the charge of an invoice's first payment, if it has one."""
        payments = self.linked("invoice_payment", "invoice", invoice["id"])
        pi = self.by_id[payments[0]["payment"]["payment_intent"]] if payments else {}
        return pi, self.by_id.get(pi.get("latest_charge") or "", {})

    def _item_of(self, session: Obj, price: Obj, quantity: int) -> Obj:
        amount = price["unit_amount"] * quantity
        return forms.session_line(self.new_id("li_1"), price, quantity, session["currency"], amount=amount)

    def _item_of_line(self, line: Obj) -> Obj:
        """What the session shows of a line of the first invoice."""
        taxes = [(tax["amount"], tax["tax_behavior"]) for tax in line["taxes"]]
        return forms.session_line(
            self.new_id("li_1"),
            self.by_id[line["pricing"]["price_details"]["price"]],
            line["quantity"],
            line["currency"],
            amount=line["amount"],
            discount=sum(off["amount"] for off in line["discount_amounts"]),
            tax=sum(amount for amount, _ in taxes),
            tax_on_top=sum(amount for amount, behavior in taxes if behavior == "exclusive"),
        )

    # -- without Billing -----------------------------------------------------------------------------------------------

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

    def charge_after_end(self, sub: Obj, *, method: Method | None = None) -> Obj:
        """The app's mistake: it bills one more period of a subscription that has ended, and collects it. Returns the charge.

        A `manual` invoice whose lines name the subscription and a period that begins now, at or after `ended_at`.
        """
        if sub["status"] not in ENDED:
            raise ValueError("the subscription has not ended")
        lines = self._period_lines(sub)
        for line in lines:
            line.period = (self.now(), after(self.now(), line.price["recurring"], 1))
        invoice = self.extra_invoice(sub, "manual", lines, pay=False)
        return self.pay_invoice(invoice, method)
