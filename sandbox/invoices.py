"""Invoices: lines with discounts and taxes, the customer's balance, payments of an invoice, and what is paid twice."""

from __future__ import annotations

from typing import Any

import msgspec

from sandbox import forms
from sandbox.disputes import Disputes
from sandbox.forms import Method
from sandbox.store import Obj, invalid

DAY = 86400


class LineOf(msgspec.Struct, kw_only=True):
    """What a line is made from."""

    price: Obj
    amount: int
    quantity: int = 1
    period: tuple[int, int]
    subscription: str | None = None
    item: str | None = None
    """The subscription item; None for one-time lines."""
    proration: bool = False
    credited: Obj | None = None
    description: str | None = None


def share(amount: int, part: int, whole: int) -> int:
    """`amount * part / whole` in minor units, halves away from zero."""
    sign = -1 if amount < 0 else 1
    return sign * ((abs(amount) * part * 2 + whole) // (2 * whole))


class Invoices(Disputes):
    """Behaviour of invoices and of the customer's credit balance."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.coupons: dict[str, Obj] = {}
        self.uncredited: set[str] = set()
        """Invoices whose overpayment books no credit on the customer's balance."""
        self.retry_s: list[int] = [3 * DAY, 5 * DAY, 7 * DAY]
        self._number = 0

    # -- catalogue and customers ---------------------------------------------------------------------------------------

    def new_customer(
        self,
        *,
        email: str | None = None,
        name: str | None = None,
        metadata: Obj | None = None,
        test_clock: str | None = None,
        **method: Any,
    ) -> Obj:
        """A customer with a payment method of their own (`fingerprint=`, `type=`, `charge=`, ... describe it)."""
        customer = forms.customer(self.new_id("cus_", 14), self.now(), self.livemode, email, name, dict(metadata or {}))
        customer["test_clock"] = test_clock
        self.put(customer)
        self.new_method(customer, **method)
        self.emit("customer.created", customer)
        return customer

    def remove_method(self, customer: Obj) -> None:
        """The customer's default payment method is detached: nothing can be collected automatically."""
        settings = customer["invoice_settings"] | {"default_payment_method": None}
        self.change(customer, "customer.updated", invoice_settings=settings)

    def new_product(self, name: str, *, id_: str | None = None, metadata: Obj | None = None) -> Obj:
        product = forms.product(id_ or self.new_id("prod_", 14), self.now(), self.livemode, name, dict(metadata or {}))
        self.put(product)
        self.emit("product.created", product)
        return product

    def new_price(
        self,
        product: str,
        currency: str,
        unit_amount: int,
        *,
        interval: str | None = None,
        interval_count: int = 1,
        id_: str | None = None,
        metadata: Obj | None = None,
        usage_type: str = "licensed",
    ) -> Obj:
        """A price; recurring when `interval` is `day`, `week`, `month` or `year`."""
        recurring = {"interval": interval, "interval_count": interval_count, "meter": None} | {
            "trial_period_days": None,
            "usage_type": usage_type,
        }
        price = forms.price(
            id_ or self.new_id("price_1"),
            self.now(),
            self.livemode,
            product=product,
            currency=currency,
            unit_amount=unit_amount,
            recurring=recurring if interval else None,
        )
        price["metadata"] |= metadata or {}
        self.put(price)
        if interval:
            self.objects.setdefault("plan", {})[price["id"]] = forms.plan(price)
        self.emit("price.created", price)
        return price

    def update_price(self, price: Obj, metadata: Obj) -> None:
        """Change the price's metadata: given keys are set, empty values remove theirs. Subscriptions show it from now on."""
        before = {"metadata": dict(price["metadata"])}
        price["metadata"] |= metadata
        for key in [key for key, value in price["metadata"].items() if value == ""]:
            del price["metadata"][key]
        self.emit("price.updated", price, before)

    def new_coupon(
        self, *, id_: str | None = None, percent_off: int | None = None, amount_off: int | None = None
    ) -> str:
        """A coupon that lasts for ever; returns its id."""
        name = id_ or self.new_id("", 8)
        self.coupons[name] = {"id": name, "object": "coupon", "percent_off": percent_off, "amount_off": amount_off}
        self.coupons[name] |= {"created": self.now(), "duration": "forever", "livemode": self.livemode, "valid": True}
        return name

    def new_discount(self, coupon: str, *, customer: str, subscription: str | None) -> str:
        if coupon not in self.coupons:
            raise invalid(f"No such coupon: '{coupon}'", param="discounts[0][coupon]", code="resource_missing")
        discount = {
            "id": self.new_id("di_1"),
            "object": "discount",
            "checkout_session": None,
            "coupon": self.coupons[coupon],
            "source": {"coupon": coupon, "type": "coupon"},
            "customer": customer,
            "customer_account": None,
            "end": None,
            "invoice": None,
            "invoice_item": None,
            "promotion_code": None,
            "start": self.now(),
            "subscription": subscription,
            "subscription_item": None,
        }
        self.by_id[str(discount["id"])] = discount
        return str(discount["id"])

    def new_tax_rate(self, percentage: float, *, inclusive: bool) -> Obj:
        """A tax rate; the percentage may have two decimals."""
        rate: Obj = {
            "id": self.new_id("txr_1"),
            "object": "tax_rate",
            "active": True,
            "country": None,
            "created": self.now(),
            "description": None,
            "display_name": "VAT" if inclusive else "Sales tax",
            "effective_percentage": percentage,
            "flat_amount": None,
            "inclusive": inclusive,
            "jurisdiction": None,
            "jurisdiction_level": None,
            "livemode": self.livemode,
            "metadata": {},
            "percentage": percentage,
            "rate_type": "percentage",
            "state": None,
            "tax_type": "vat" if inclusive else "sales_tax",
        }
        return self.put(rate)

    # -- the balance ---------------------------------------------------------------------------------------------------

    def move_balance(
        self, customer: Obj, amount: int, currency: str, type_: str, invoice: str | None = None, note: str | None = None
    ) -> Obj:
        """Change the customer's balance by `amount` minor units: negative is credit, positive is owed."""
        txn = forms.customer_balance_transaction(
            self.new_id("cbtxn_1"),
            self.now(),
            self.livemode,
            customer=customer,
            amount=amount,
            currency=currency,
            type_=type_,
            invoice=invoice,
        )
        txn["description"] = note
        self.put(txn)
        if customer["currency"] is None:
            customer["currency"] = currency
        self.change(customer, "customer.updated", balance=customer["balance"] + amount)
        return txn

    # -- making an invoice ---------------------------------------------------------------------------------------------

    def draft_invoice(
        self, customer: Obj, currency: str, billing_reason: str, lines: list[LineOf], subscription: Obj | None = None
    ) -> Obj:
        """A draft with its lines, discounts and taxes computed; emits `invoice.created`."""
        invoice = forms.invoice(
            self.new_id("in_1"),
            self.now(),
            self.livemode,
            customer=customer,
            currency=currency,
            billing_reason=billing_reason,
        )
        if subscription is not None:
            details = {"metadata": dict(subscription["metadata"]), "subscription": subscription["id"]}
            invoice["parent"] = {
                "quote_details": None,
                "subscription_details": details | {"subscription_proration_date": None},
                "type": "subscription_details",
            }
            invoice["discounts"] = list(subscription["discounts"])
            invoice["default_tax_rates"] = list(subscription["default_tax_rates"])
        rest = {
            d: int(self.by_id[d]["coupon"]["amount_off"] or 0) for d in invoice["discounts"]
        }  # amount_off is spent over the lines, in order
        for line in lines:
            invoice["lines"]["data"].append(self._line(invoice, line, rest))
        invoice["lines"]["total_count"] = len(lines)
        self._add_up(invoice)
        invoice["starting_balance"] = customer["balance"]
        invoice["test_clock"] = customer["test_clock"]
        self.put(invoice)
        self.emit("invoice.created", invoice)
        return invoice

    def _line(self, invoice: Obj, of: LineOf, rest: dict[str, int]) -> Obj:
        line = forms.line(
            self.new_id("il_1"),
            self.livemode,
            invoice=invoice["id"],
            amount=of.amount,
            currency=invoice["currency"],
            price=of.price,
            quantity=of.quantity,
        )
        line["period"] = {"end": of.period[1], "start": of.period[0]}
        line["description"] = of.description or f"{of.quantity} × {of.price['id']}"
        line["subscription"] = of.subscription
        line["discountable"] = not of.proration
        generated = self.new_id("ii_1") if of.proration or not of.item else None
        details = {
            "invoice_item": generated,
            "proration": of.proration,
            "proration_details": {"credited_items": of.credited} if of.proration else None,
            "subscription": of.subscription,
        }
        kind = "subscription_item_details" if of.item else "invoice_item_details"
        line["parent"] = {"invoice_item_details": None, "subscription_item_details": None, "type": kind}
        line["parent"][kind] = details | ({"subscription_item": of.item} if of.item else {})
        if not of.proration:
            self._discount(invoice, line, rest)
        self._tax(invoice, line)
        return line

    def _discount(self, invoice: Obj, line: Obj, rest: dict[str, int]) -> None:
        left = line["amount"]
        for discount in invoice["discounts"]:
            coupon = self.by_id[discount]["coupon"]
            off = share(left, int(coupon["percent_off"]), 100) if coupon["percent_off"] else min(left, rest[discount])
            rest[discount] = max(0, rest[discount] - off)
            left -= off
            if off:
                line["discount_amounts"].append({"amount": off, "discount": discount})
                line["pretax_credit_amounts"].append({"amount": off, "discount": discount, "type": "discount"})

    def _tax(self, invoice: Obj, line: Obj) -> None:
        net = line["amount"] - sum(d["amount"] for d in line["discount_amounts"])
        for rate in invoice["default_tax_rates"]:
            points = round(rate["percentage"] * 100)
            amount = share(net, points, 10000 + points if rate["inclusive"] else 10000)
            line["taxes"].append(
                {
                    "amount": amount,
                    "tax_behavior": "inclusive" if rate["inclusive"] else "exclusive",
                    "tax_rate_details": {"tax_rate": rate["id"]},
                    "taxability_reason": "standard_rated",
                    "taxable_amount": net - amount if rate["inclusive"] else net,
                    "type": "tax_rate_details",
                }
            )

    def _add_up(self, invoice: Obj) -> None:
        lines = invoice["lines"]["data"]
        discounts: dict[str, int] = {}
        taxes: dict[str, Obj] = {}
        for line in lines:
            for off in line["discount_amounts"]:
                discounts[off["discount"]] = discounts.get(off["discount"], 0) + off["amount"]
            for tax in line["taxes"]:
                total = taxes.setdefault(tax["tax_rate_details"]["tax_rate"], tax | {"amount": 0, "taxable_amount": 0})
                total["amount"] += tax["amount"]
                total["taxable_amount"] += tax["taxable_amount"]
        net = sum(line["amount"] for line in lines) - sum(discounts.values())
        exclusive = sum(t["amount"] for t in taxes.values() if t["tax_behavior"] == "exclusive")
        inclusive = sum(t["amount"] for t in taxes.values() if t["tax_behavior"] == "inclusive")
        invoice |= {
            "subtotal": sum(line["amount"] for line in lines),
            "subtotal_excluding_tax": sum(line["amount"] for line in lines) - inclusive,
            "total": net + exclusive,
            "total_discount_amounts": [{"amount": a, "discount": d} for d, a in discounts.items()],
            "total_excluding_tax": net - inclusive,
            "total_pretax_credit_amounts": [
                {"amount": a, "discount": d, "type": "discount"} for d, a in discounts.items()
            ],
            "total_taxes": list(taxes.values()),
        }
        invoice["amount_due"] = invoice["amount_remaining"] = max(0, net + exclusive)

    # -- finalizing and paying -----------------------------------------------------------------------------------------

    def finalize(self, invoice: Obj, description: str = "Subscription update") -> None:
        """Draft to open: the balance is applied, the default payment is made; nothing due means paid at once."""
        if invoice["status"] != "draft":
            return
        customer, now = self.by_id[invoice["customer"]], self.now()
        self._number += 1
        invoice |= {
            "status": "open",
            "number": f"{customer['invoice_prefix']}-{self._number:04d}",
            "effective_at": now,
            "automatically_finalizes_at": None,
            "hosted_invoice_url": f"https://invoice.stripe.com/i/{invoice['id']}",
        }
        invoice["status_transitions"]["finalized_at"] = now
        due = self._apply_balance(invoice, customer)
        invoice |= {"amount_due": due, "amount_remaining": due, "ending_balance": customer["balance"]}
        if due:
            self.new_invoice_payment(invoice, due, is_default=True, description=description)
        self.emit("invoice.finalized", invoice)
        if not due:
            self._mark_paid(invoice, attempted=True)

    def _apply_balance(self, invoice: Obj, customer: Obj) -> int:
        total, balance = invoice["total"], customer["balance"]
        same = customer["currency"] in (None, invoice["currency"])
        invoice["starting_balance"] = balance if same else 0
        if total < 0:
            self.move_balance(customer, total, invoice["currency"], "applied_to_invoice", invoice["id"])
            return 0
        applied = min(-balance, total) if same else 0
        if applied:
            self.move_balance(customer, applied, invoice["currency"], "applied_to_invoice", invoice["id"])
        return int(total - applied)

    def new_invoice_payment(
        self, invoice: Obj, amount: int, *, is_default: bool, pi: Obj | None = None, description: str | None = None
    ) -> Obj:
        if pi is None:
            pi = self.new_payment_intent(
                amount,
                invoice["currency"],
                customer=invoice["customer"],
                invoice=invoice["id"],
                description=description or "Payment for Invoice",
            )
        self.invoice_of[pi["id"]] = invoice["id"]
        return self.put(
            forms.invoice_payment(
                self.new_id("inpay_1"),
                self.now(),
                self.livemode,
                invoice=invoice,
                amount=amount,
                pi=pi["id"],
                is_default=is_default,
            )
        )

    def pay_invoice(self, invoice: Obj, method: Method | None = None) -> Obj:
        """One attempt with the default payment; returns its charge. Raises where the invoice is not open."""
        if invoice["status"] == "paid":
            raise invalid("Invoice is already paid", code="invoice_already_paid")
        if invoice["status"] == "draft":
            self.finalize(invoice)
        if invoice["status"] != "open":
            raise invalid(f"This invoice cannot be paid: its status is {invoice['status']}.")
        payment = next(p for p in self.linked("invoice_payment", "invoice", invoice["id"]) if p["is_default"])
        return self._attempt(invoice, self.by_id[payment["payment"]["payment_intent"]], method)

    def _attempt(self, invoice: Obj, pi: Obj, method: Method | None) -> Obj:
        if method is None:
            method = self.method(self._default_method(invoice))
        invoice |= {"attempted": True, "attempt_count": invoice["attempt_count"] + 1}
        return self.confirm(pi, method)

    def _default_method(self, invoice: Obj) -> str:
        parent = invoice["parent"] or {}
        sub = self.by_id.get((parent.get("subscription_details") or {}).get("subscription", ""), {})
        default = self.by_id[invoice["customer"]]["invoice_settings"]["default_payment_method"]
        return str(sub.get("default_payment_method") or default or "")

    def pay_again(self, invoice: Obj, amount: int | None = None, *, credit: bool = True) -> Obj:
        """Another payment of the same invoice with a payment intent of its own; returns its charge.

        `credit=False`: Stripe books no `invoice_overpaid` credit for what is paid too much.
        """
        if not credit:
            self.uncredited.add(invoice["id"])
        payment = self.new_invoice_payment(invoice, amount or invoice["amount_due"], is_default=False)
        pi = self.by_id[payment["payment"]["payment_intent"]]
        return self.confirm(pi, self.method(self._default_method(invoice)))

    def attach_payment(self, invoice: Obj, pi: Obj) -> Obj:
        """`/attach_payment`: an already succeeded payment intent is credited at once."""
        if invoice["status"] != "open":
            raise invalid("Payments can only be attached to an open invoice.", code="invoice_not_editable")
        if pi["id"] in self.invoice_of:
            raise invalid("The PaymentIntent is already attached to an invoice.", param="payment_intent")
        self.new_invoice_payment(invoice, pi["amount"], is_default=False, pi=pi)
        if pi["status"] == "succeeded":
            self.paid(pi, self.by_id[pi["latest_charge"]])
        return invoice

    def pay_out_of_band(self, invoice: Obj) -> None:
        """Marked as paid outside Stripe: the open payments are canceled."""
        if invoice["status"] != "open":
            raise invalid("Invoice is already paid", code="invoice_already_paid")
        for payment in self.linked("invoice_payment", "invoice", invoice["id"]):
            pi = self.by_id[payment["payment"]["payment_intent"]]
            if payment["status"] == "open" and pi["status"] not in ("succeeded", "processing"):
                payment["status"] = "canceled"
                payment["status_transitions"]["canceled_at"] = self.now()
                self.cancel_payment_intent(pi, "requested_by_customer")
        outside = invoice["amount_remaining"]
        invoice |= {"amount_paid_off_stripe": outside, "amount_paid": invoice["amount_paid"] + outside}
        invoice["amount_remaining"] = 0
        self._mark_paid(invoice, attempted=False)

    def void(self, invoice: Obj, status: str = "void") -> None:
        invoice["status"] = status
        invoice |= {"auto_advance": False, "next_payment_attempt": None}
        stamp = "voided_at" if status == "void" else "marked_uncollectible_at"
        invoice["status_transitions"][stamp] = self.now()
        self.emit("invoice.voided" if status == "void" else "invoice.marked_uncollectible", invoice)

    def paid(self, pi: Obj, charge: Obj) -> None:
        invoice = self.by_id.get(self.invoice_of.get(pi["id"], ""))
        if invoice is None:
            return
        payment = self.linked("invoice_payment", "payment.payment_intent", pi["id"])[0]
        payment |= {"status": "paid", "amount_paid": charge["amount"]}
        payment["status_transitions"]["paid_at"] = self.now()
        self.emit("invoice_payment.paid", payment)
        invoice["amount_paid"] += charge["amount"]
        invoice["amount_remaining"] = max(0, invoice["amount_due"] - invoice["amount_paid"])
        if invoice["status"] == "open" and not invoice["amount_remaining"]:
            self._mark_paid(invoice, attempted=True)
        self._book_overpayment(invoice)

    def _book_overpayment(self, invoice: Obj) -> None:
        excess = invoice["amount_paid"] - invoice["amount_due"] - invoice["amount_overpaid"]
        if excess <= 0:
            return
        invoice["amount_overpaid"] += excess
        if invoice["id"] not in self.uncredited:
            customer = self.by_id[invoice["customer"]]
            self.move_balance(customer, -excess, invoice["currency"], "invoice_overpaid", invoice["id"])
        self.emit("invoice.updated", invoice, {"amount_overpaid": invoice["amount_overpaid"] - excess})
        self.emit("invoice.overpaid", invoice)

    def _mark_paid(self, invoice: Obj, *, attempted: bool) -> None:
        invoice |= {"status": "paid", "auto_advance": False, "next_payment_attempt": None, "attempted": True}
        invoice["status_transitions"]["paid_at"] = self.now()
        self.emit("invoice.updated", invoice, {"status": "open"})
        self.emit("invoice.paid", invoice)
        if attempted:
            self.emit("invoice.payment_succeeded", invoice)
        self.invoice_paid(invoice)

    def unpaid(self, pi: Obj, charge: Obj) -> None:
        invoice = self.by_id.get(self.invoice_of.get(pi["id"], ""))
        if invoice is None or invoice["status"] != "open":
            return
        self._attempt_failed(invoice)

    def _attempt_failed(self, invoice: Obj) -> None:
        attempt = invoice["attempt_count"]
        more = invoice["billing_reason"] != "subscription_create" and attempt <= len(self.retry_s)
        if more and invoice["auto_advance"]:
            due = self.now() + self.retry_s[attempt - 1]
            invoice["next_payment_attempt"] = due
            self.at(due, lambda: self._retry(invoice, due))
        else:
            invoice["next_payment_attempt"] = None
        self.emit("invoice.updated", invoice, {"attempt_count": attempt - 1})
        self.emit("invoice.payment_failed", invoice)
        self.invoice_unpaid(invoice, last=not more)

    def _retry(self, invoice: Obj, due: int) -> None:
        if invoice["status"] == "open" and invoice["next_payment_attempt"] == due and invoice["auto_advance"]:
            self.collect(invoice)

    def collect(self, invoice: Obj) -> None:
        """One automatic attempt on an open invoice; without a payment method it fails, and no charge is made."""
        if self._default_method(invoice):
            self.pay_invoice(invoice)
        else:
            invoice |= {"attempted": True, "attempt_count": invoice["attempt_count"] + 1}
            self._attempt_failed(invoice)

    def invoice_paid(self, invoice: Obj) -> None:
        """What a paid invoice means; subscriptions become active here."""

    def invoice_unpaid(self, invoice: Obj, *, last: bool) -> None:
        """What a failed attempt means; subscriptions become past due here."""
