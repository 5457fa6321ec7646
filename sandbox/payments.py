"""Money in and out: payment intents, charges, refunds and the balance they move."""

from __future__ import annotations

from typing import Any

from sandbox import forms
from sandbox.endpoints import Endpoints
from sandbox.forms import METHODS, Method
from sandbox.store import Obj, StripeError, invalid, missing

OPEN_CHARGEBACK = ("needs_response", "under_review", "appeal_needs_response", "appeal_under_review")
REVERSAL_S = 2 * 3600
"""A card refund this soon after its charge goes out as a reversal (stripe.com/docs/refunds)."""
ZERO_DECIMAL = [
    "bif",
    "clp",
    "djf",
    "gnf",
    "jpy",
    "kmf",
    "krw",
    "mga",
    "pyg",
    "rwf",
    "ugx",
    "vnd",
    "vuv",
    "xaf",
    "xof",
    "xpf",
]


def money(minor: int, currency: str) -> str:
    """An amount as Stripe's messages print it."""
    digits = 0 if currency in ZERO_DECIMAL else 3 if currency in ("bhd", "jod", "kwd", "omr", "tnd") else 2
    text = f"{minor / 10**digits:,.{digits}f}"
    return f"${text}" if currency == "usd" else f"{text} {currency.upper()}"


class Payments(Endpoints):
    """Behaviour of payments and refunds: what may be charged, and what may be given back."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.methods: dict[str, Method] = dict(METHODS)
        self.low_balance = False
        """Refunds of cards then wait as `pending` with `pending_reason=insufficient_funds`."""
        self.refund_settle_s = 3 * 86400
        self.refund_of_disputed = "charge_disputed"
        """The code of a refused refund under an open chargeback; `refund_disputed_payment` is the other one Stripe has."""
        self.settles_in = "usd"
        self.rates: dict[str, float] = {}
        """Currencies that settle in `settles_in`, with their rate: minor units times rate are minor units. Others settle as they are."""

    # -- payment methods and intents -----------------------------------------------------------------------------------

    def method(self, id_: str) -> Method:
        try:
            return self.methods[id_]
        except KeyError:
            raise missing("PaymentMethod", id_, "payment_method") from None

    def new_method(self, customer: Obj | None = None, **how: Any) -> Method:
        """A payment method with its own fingerprint (or the one given); becomes the customer's default."""
        how.setdefault("fingerprint", self.new_id("", 16))
        how.setdefault("last4", str(self.rng.randrange(1000, 9999)))
        method = Method(id=self.new_id("pm_1"), **how)
        self.methods[method.id] = method
        if customer is not None:
            customer["invoice_settings"]["default_payment_method"] = method.id
        return method

    def new_payment_intent(
        self,
        amount: int,
        currency: str,
        *,
        customer: str | None = None,
        metadata: Obj | None = None,
        description: str | None = None,
        manual: bool = False,
        invoice: str | None = None,
    ) -> Obj:
        pi = forms.payment_intent(
            self.new_id("pi_3"),
            self.now(),
            self.livemode,
            amount=amount,
            currency=currency,
            customer=customer,
            metadata=dict(metadata or {}),
        )
        pi["description"] = description
        pi["capture_method"] = "manual" if manual else "automatic"
        if invoice is not None:
            self.invoice_of[pi["id"]] = invoice
            pi["payment_details"] = {"customer_reference": None, "order_reference": invoice}
        self.put(pi)
        self.emit("payment_intent.created", pi)
        return pi

    def cancel_payment_intent(self, pi: Obj, reason: str) -> None:
        if pi["status"] in ("canceled", "succeeded"):
            raise invalid(
                f"You cannot cancel this PaymentIntent because it has a status of {pi['status']}.",
                code="payment_intent_unexpected_state",
            )
        pi |= {"status": "canceled", "cancellation_reason": reason, "canceled_at": self.now(), "amount_capturable": 0}
        self.emit("payment_intent.canceled", pi)

    def confirm(self, pi: Obj, method: Method) -> Obj:
        """Try to take the money. Returns the charge, whose `status` says how it went."""
        if pi["status"] in ("succeeded", "canceled", "processing", "requires_capture"):
            raise invalid(
                f"You cannot confirm this PaymentIntent because it has a status of {pi['status']}.",
                code="payment_intent_unexpected_state",
            )
        owner = self.by_id.get(pi["customer"] or "")
        prefix = "py_3" if method.delayed else "ch_3"
        charge = forms.charge(
            self.new_id(prefix),
            self.now(),
            self.livemode,
            pi=pi,
            method=method,
            email=owner["email"] if owner else None,
        )
        self.put(charge)
        pi |= {"payment_method": method.id, "latest_charge": charge["id"], "payment_method_types": [method.type]}
        if method.charge == "declines":
            self._charge_failed(charge, pi)
        elif method.delayed:
            pi |= {"status": "processing"}
            self.emit("charge.pending", charge)
            self.emit("payment_intent.processing", pi)
            self.at(self.clock() + method.settle_s, lambda: self._settle_debit(charge, pi, method))
        elif pi["capture_method"] == "manual":
            charge |= {"status": "succeeded", "paid": True}
            pi |= {"status": "requires_capture", "amount_capturable": pi["amount"]}
            self.emit("charge.succeeded", charge)
            self.emit("payment_intent.amount_capturable_updated", pi)
        else:
            self._charge_succeeded(charge, pi)
        return charge

    def capture(self, pi: Obj) -> None:
        if pi["status"] != "requires_capture":
            raise invalid(
                f"This PaymentIntent could not be captured because it has a status of {pi['status']}.",
                code="payment_intent_unexpected_state",
            )
        charge = self.by_id[pi["latest_charge"]]
        self._take(charge, pi)
        self.emit("charge.captured", charge)
        self.emit("payment_intent.succeeded", pi)
        self.paid(pi, charge)

    def _settle_debit(self, charge: Obj, pi: Obj, method: Method) -> None:
        if charge["status"] != "pending":
            return
        if method.charge == "fails":
            self._charge_failed(charge, pi)
        else:
            self._charge_succeeded(charge, pi)

    def _take(self, charge: Obj, pi: Obj) -> None:
        amount = charge["amount"]
        charge |= {"status": "succeeded", "paid": True, "captured": True, "amount_captured": amount}
        kind = "charge" if charge["id"].startswith("ch_") else "payment"
        txn = self._move(charge, kind, "charge", amount, fee=amount * 29 // 1000 + 30)
        charge["balance_transaction"] = txn["id"]
        pi |= {"status": "succeeded", "amount_received": amount, "amount_capturable": 0}

    def _charge_succeeded(self, charge: Obj, pi: Obj) -> None:
        self._take(charge, pi)
        self.emit("charge.succeeded", charge)
        self.emit("payment_intent.succeeded", pi)
        self.paid(pi, charge)

    def _charge_failed(self, charge: Obj, pi: Obj) -> None:
        message = "Your card was declined." if charge["id"].startswith("ch_") else "The debit was returned unpaid."
        code = "card_declined" if charge["id"].startswith("ch_") else "debit_not_authorized"
        charge |= {"status": "failed", "failure_code": code, "failure_message": message}
        charge["outcome"] |= {
            "network_status": "declined_by_network",
            "reason": "generic_decline",
            "seller_message": "The bank did not return any further details with this decline.",
            "type": "issuer_declined",
        }
        pi |= {"status": "requires_payment_method", "payment_method": None}
        pi["last_payment_error"] = {
            "charge": charge["id"],
            "code": code,
            "decline_code": "generic_decline",
            "doc_url": "https://stripe.com/docs/error-codes/card-declined",
            "message": message,
            "type": "card_error",
        }
        self.emit("charge.failed", charge)
        self.emit("payment_intent.payment_failed", pi)
        self.unpaid(pi, charge)

    def paid(self, pi: Obj, charge: Obj) -> None:
        """What follows from a success; billing credits the invoice here."""

    def unpaid(self, pi: Obj, charge: Obj) -> None:
        """What follows from a failure; billing starts dunning here."""

    def _move(self, source: Obj, type_: str, category: str, amount: int, fee: int = 0) -> Obj:
        """Money moves on the balance: in the currency of the payment, or converted where that has a rate."""
        currency: str = source["currency"]
        rate = self.rates.get(currency)
        txn = forms.balance_transaction(
            self.new_id("txn_3"),
            self.now(),
            source=source,
            type_=type_,
            category=category,
            amount=amount if rate is None else round(amount * rate),
            fee=fee if rate is None else round(fee * rate),
            currency=currency if rate is None else self.settles_in,
        )
        txn["exchange_rate"] = rate
        self.at(txn["available_on"], lambda: txn.update(status="available"))
        return self.put(txn)

    # -- refunds -------------------------------------------------------------------------------------------------------

    def create_refund(
        self, charge: Obj, amount: int | None = None, *, reason: str | None = None, metadata: Obj | None = None
    ) -> Obj:
        """Refund `amount` minor units (default: all that is left), or refuse in Stripe's words."""
        left = self._refundable(charge)
        amount = left if amount is None else amount
        if amount <= 0:
            raise invalid("This value must be greater than or equal to 1.", param="amount", stored=False)
        if amount > left:
            asked, rest = money(amount, charge["currency"]), money(left, charge["currency"])
            raise invalid(
                f"Refund amount ({asked}) is greater than unrefunded amount on charge ({rest})", param="amount"
            )
        method = self.methods[charge["payment_method"]]
        if self.low_balance and method.type != "card":
            raise invalid(
                "Insufficient funds in your Stripe balance to refund this amount.", code="balance_insufficient"
            )
        prefix = "re_3" if charge["id"].startswith("ch_") else "pyr_1"
        refund = forms.refund(
            self.new_id(prefix), self.now(), charge=charge, amount=amount, reason=reason, metadata=dict(metadata or {})
        )
        if method.type == "card" and self.now() - charge["created"] <= REVERSAL_S:
            refund["destination_details"]["card"]["type"] = "reversal"
        self._count_refund(charge, amount)
        self._start_refund(refund, method)
        self.put(refund)
        self.emit("refund.created", refund)
        self.emit("charge.refunded", charge, {"amount_refunded": charge["amount_refunded"] - amount})
        return refund

    def _refundable(self, charge: Obj) -> int:
        if charge["status"] != "succeeded":
            raise invalid(f"Charge {charge['id']} has a status of {charge['status']} and cannot be refunded.")
        if not charge["captured"]:
            raise invalid(
                f"Charge {charge['id']} has not been captured. Cancel its PaymentIntent instead of refunding it.",
                code="charge_not_refundable",
            )
        if charge["refunded"]:
            raise invalid(f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded")
        for dispute in self.linked("dispute", "charge", charge["id"]):
            if dispute["status"] in (*OPEN_CHARGEBACK, "lost", "prevented"):
                raise invalid(
                    f"Charge {charge['id']} has been charged back; cannot issue a refund.",
                    code=self.refund_of_disputed,
                )
        return int(charge["amount_captured"] - charge["amount_refunded"])

    def _count_refund(self, charge: Obj, amount: int) -> None:
        charge["amount_refunded"] += amount
        charge["refunded"] = charge["amount_refunded"] == charge["amount_captured"]

    def _start_refund(self, refund: Obj, method: Method) -> None:
        how = "pending" if self.low_balance or method.delayed else method.refund
        if how in ("pending", "pending_fails"):
            refund["status"] = "pending"
            refund["pending_reason"] = "insufficient_funds" if self.low_balance else "processing"
            end = self.fail_refund if how == "pending_fails" else self.settle_refund
            self.at(self.clock() + self.refund_settle_s, lambda: end(refund))
            return
        self._refund_moves(refund)
        if how == "fails_later":
            self.at(self.clock() + self.refund_settle_s, lambda: self.fail_refund(refund, "expired_or_canceled_card"))

    def _refund_moves(self, refund: Obj) -> None:
        kind = "refund" if refund["id"].startswith("re_") else "payment_refund"
        refund["balance_transaction"] = self._move(refund, kind, "refund", -refund["amount"])["id"]

    def settle_refund(self, refund: Obj) -> None:
        """A pending refund arrives."""
        if refund["status"] != "pending":
            return
        self._refund_moves(refund)
        refund.pop("pending_reason", None)
        self._refund_changed(refund, "succeeded")

    def fail_refund(self, refund: Obj, reason: str = "insufficient_funds") -> None:
        """A refund fails, also after it succeeded; the charge's `amount_refunded` goes down again."""
        if refund["status"] not in ("pending", "succeeded"):
            return
        if refund["balance_transaction"]:
            refund["failure_balance_transaction"] = self._move(
                refund, "refund_failure", "refund_failure", refund["amount"]
            )["id"]
        refund["failure_reason"] = reason
        refund.pop("pending_reason", None)
        self._count_refund(self.by_id[refund["charge"]], -refund["amount"])
        self._refund_changed(refund, "failed")
        self.emit("refund.failed", refund)

    def cancel_refund(self, refund: Obj) -> None:
        """Over the API only `requires_action` can be canceled; in the Dashboard also a pending card refund."""
        self._count_refund(self.by_id[refund["charge"]], -refund["amount"])
        refund.pop("pending_reason", None)
        self._refund_changed(refund, "canceled")

    def _refund_changed(self, refund: Obj, status: str) -> None:
        before = refund["status"]
        refund["status"] = status
        self.emit("refund.updated", refund, {"status": before})
        self.emit("charge.refund.updated", refund, {"status": before})

    def declined(self, pi: Obj) -> StripeError:
        """402, as the confirming request is answered."""
        error = pi["last_payment_error"]
        return StripeError(
            402,
            "card_error",
            error["message"],
            code=error["code"],
            decline_code=error["decline_code"],
            charge=error["charge"],
            payment_intent=pi,
        )
