"""Disputes and fraud warnings: what the cardholder's bank does, the evidence against it, and what follows at the deadline."""

from __future__ import annotations

from typing import Any

from sandbox import forms
from sandbox.forms import Method
from sandbox.payments import OPEN_CHARGEBACK, Payments
from sandbox.store import Obj, invalid

DISPUTE_FEE = 1500
INQUIRY_KEPT_S = 120 * 86400
ANSWER_S = 9 * 86400
"""How long a chargeback may be answered, unless `due_by` says otherwise."""
EVIDENCE_LENGTH = 150_000
INQUIRY = ("warning_needs_response", "warning_under_review")
CLOSED = ("won", "lost", "warning_closed", "prevented")


class Disputes(Payments):
    """Behaviour of disputes (stripe.com/docs/disputes): what each of them does to its charge, and to its refunds."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.smart_disputes = False
        """Whether Stripe has a packet of its own for every dispute, to be sent where `intended_submission_method` allows."""

    def confirm(self, pi: Obj, method: Method) -> Obj:
        charge = super().confirm(pi, method)
        if method.dispute and charge["status"] == "succeeded" and charge["captured"]:
            self.open_dispute(charge, inquiry=method.dispute == "inquiry")
        return charge

    def create_refund(
        self, charge: Obj, amount: int | None = None, *, reason: str | None = None, metadata: Obj | None = None
    ) -> Obj:
        refund = super().create_refund(charge, amount, reason=reason, metadata=metadata)
        if charge["refunded"]:
            self._settle_warnings(charge)
            for dispute in self.linked("dispute", "charge", charge["id"]):
                if dispute["status"] in INQUIRY:
                    self.set_dispute(dispute, "warning_closed")
        return refund

    # -- the bank ------------------------------------------------------------------------------------------------------

    def open_dispute(
        self,
        charge: Obj,
        amount: int | None = None,
        *,
        reason: str = "fraudulent",
        inquiry: bool = False,
        prevented: bool = False,
        status: str | None = None,
        due_by: int | None = None,
    ) -> Obj:
        """The cardholder's bank speaks: a chargeback, an inquiry, or a dispute the network resolved by a refund.

        `status` says it in one word where the flags do not (also one that Stripe has not today). `due_by` (unix
        seconds) 0: it cannot be contested, and is lost at once. `amount` (minor units) may exceed the charge.
        """
        status = status or ("warning_needs_response" if inquiry else "prevented" if prevented else "needs_response")
        inquiry, prevented = status.startswith("warning_"), status == "prevented"
        dispute = forms.dispute(
            self.new_id("du_1"),
            self.now(),
            self.livemode,
            charge=charge,
            amount=charge["amount"] if amount is None else amount,
            reason=reason,
            status=status,
            case_type="inquiry" if inquiry else "resolution" if prevented else "chargeback",
        )
        due_by = dispute["created"] + ANSWER_S if due_by is None else due_by
        dispute["evidence_details"]["due_by"] = due_by
        self.put(dispute)
        was_disputed, charge["disputed"] = charge["disputed"], True
        self.emit("charge.dispute.created", dispute)
        if not inquiry:
            self._withdraw(dispute, 0 if prevented else DISPUTE_FEE)
        if prevented:
            self.emit("charge.dispute.closed", dispute)
        if not was_disputed:
            self.emit("charge.updated", charge, {"disputed": False})
        self._settle_warnings(charge)
        self._watch(dispute)
        return dispute

    def _watch(self, dispute: Obj) -> None:
        """Silence loses a chargeback at its deadline; an inquiry nobody escalated closes by itself."""
        due_by = dispute["evidence_details"]["due_by"]
        if dispute["status"] in INQUIRY:
            self.at(dispute["created"] + INQUIRY_KEPT_S, lambda: self._inquiry_ends(dispute))
        elif due_by:
            self.at(due_by, lambda: self._deadline(dispute, due_by))
        elif dispute["status"] == "needs_response":
            self.set_dispute(dispute, "lost")

    def _withdraw(self, dispute: Obj, fee: int) -> None:
        """Money out. A refund still on its way fails: the customer has the money through the bank already."""
        dispute["balance_transactions"].append(self._move(dispute, "adjustment", "dispute", -dispute["amount"], fee))
        dispute["is_charge_refundable"] = False
        self.emit("charge.dispute.funds_withdrawn", dispute)
        for refund in self.linked("refund", "charge", dispute["charge"]):
            if refund["status"] == "pending":
                self.fail_refund(refund, "charge_for_pending_refund_disputed")

    def _inquiry_ends(self, dispute: Obj) -> None:
        if dispute["status"] in INQUIRY:
            self.set_dispute(dispute, "warning_closed")

    def _deadline(self, dispute: Obj, due_by: int) -> None:
        """What Stripe does by itself: it sends what it may send, else the chargeback is lost."""
        details, intended = dispute["evidence_details"], dispute["intended_submission_method"]
        if dispute["status"] != "needs_response" or details["due_by"] != due_by:
            return
        staged = details["has_evidence"] and intended != "smart_disputes"
        smart = self.smart_disputes and intended != "manual"
        if smart and (not staged or intended == "prefer_smart_disputes"):
            self._submit(dispute, "smart_disputes")
        elif staged:
            self._submit(dispute, "manual")
        else:
            self.set_dispute(dispute, "lost")
            return
        self.emit("charge.dispute.updated", dispute, {"status": "needs_response"})

    def escalate(self, dispute: Obj, *, due_by: int | None = None) -> None:
        """An inquiry becomes a chargeback: `updated` and money out, no second `created`."""
        if "card" in dispute["payment_method_details"]:
            dispute["payment_method_details"]["card"]["case_type"] = "chargeback"
        dispute["evidence_details"]["due_by"] = self.now() + ANSWER_S if due_by is None else due_by
        self.change(dispute, "charge.dispute.updated", status="needs_response")
        self._withdraw(dispute, DISPUTE_FEE)
        self._watch(dispute)

    def set_dispute(self, dispute: Obj, status: str) -> None:
        """Any further step: `won`, `lost`, `warning_closed`, `under_review`, `appeal_*`, also `lost` to `won`."""
        before = dispute["status"]
        if before == status:
            return
        dispute["status"] = status
        late = before in ("won", "lost")
        moved = sum(txn["amount"] for txn in dispute["balance_transactions"])
        if status == "won" and moved:
            dispute["balance_transactions"].append(self._move(dispute, "adjustment", "dispute_reversal", -moved))
        if status in CLOSED:
            left = not self.by_id[dispute["charge"]]["refunded"]
            dispute["is_charge_refundable"] = status == "warning_closed" and left
        self.emit(
            "charge.dispute.closed" if status in CLOSED and not late else "charge.dispute.updated",
            dispute,
            {"status": before},
        )
        if status == "won" and moved:
            self.emit("charge.dispute.funds_reinstated", dispute)
        elif moved >= 0 and status in ("lost", "prevented", *OPEN_CHARGEBACK):
            self._withdraw(dispute, 0 if status == "prevented" else DISPUTE_FEE)

    # -- the merchant --------------------------------------------------------------------------------------------------

    def update_dispute(self, dispute: Obj, evidence: Obj, metadata: Obj, submit: bool) -> None:
        """Store evidence and, unless `submit` is false, send it to the bank: there is one chance."""
        details = dispute["evidence_details"]
        if evidence and not dispute["status"].endswith("needs_response"):
            raise invalid("This dispute is already closed, or its evidence was submitted.", code="dispute_not_editable")
        staged = dispute["evidence"] | evidence
        if sum(len(text) for text in staged.values() if isinstance(text, str)) > EVIDENCE_LENGTH:
            raise invalid(
                f"The combined character count of all evidence fields is limited to {EVIDENCE_LENGTH}.",
                param="evidence",
                stored=False,
            )
        dispute["evidence"] = staged
        for key, value in metadata.items():
            if value == "":
                dispute["metadata"].pop(key, None)
            else:
                dispute["metadata"][key] = value
        details["has_evidence"] = any(v for k, v in staged.items() if k != "enhanced_evidence")
        before = dispute["status"]
        if submit and details["has_evidence"] and before.endswith("needs_response"):
            self._submit(dispute, "manual")
        self.emit("charge.dispute.updated", dispute, {} if before == dispute["status"] else {"status": before})

    def _submit(self, dispute: Obj, how: str) -> None:
        details = dispute["evidence_details"]
        details |= {"submission_count": details["submission_count"] + 1, "submission_method": how, "has_evidence": True}
        details["past_due"] = bool(details["due_by"]) and self.now() > details["due_by"]
        dispute["status"] = dispute["status"].replace("needs_response", "under_review")

    # -- early fraud warnings ------------------------------------------------------------------------------------------

    def warn_of_fraud(self, charge: Obj, fraud_type: str = "made_with_stolen_card") -> Obj:
        """An early fraud warning: a notice, no money."""
        warning = forms.early_fraud_warning(
            self.new_id("issfr_1"), self.now(), self.livemode, charge=charge, fraud_type=fraud_type
        )
        self.put(warning)
        self.emit("radar.early_fraud_warning.created", warning)
        return warning

    def _settle_warnings(self, charge: Obj) -> None:
        """Nothing is left to do about a warning when its charge was refunded whole or disputed."""
        for warning in self.linked("radar.early_fraud_warning", "charge", charge["id"]):
            if warning["actionable"]:
                self.change(warning, "radar.early_fraud_warning.updated", actionable=False)
