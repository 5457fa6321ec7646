"""Drafts of the evidence against a dispute, by its reason, from our own facts and the policy. Pure: nothing is submitted.

Field names are those of `evidence` in https://docs.stripe.com/api/disputes/object. Only ids, amounts and times are
written; names, e-mails and metadata of the customer never are, a person adds them where the bank needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum

import msgspec

from handlers.account import Access, Account
from handlers.chargebacks import AWAITED, INQUIRIES
from handlers.court import span, when
from handlers.customer import (
    ChargeId,
    CustomerFile,
    Dispute,
    Fact,
    Line,
    Refund,
    Seconds,
    Subscription,
    at,
)
from handlers.decisions import ActionKind, Decision, Money, Verdict
from handlers.duplicates import judge
from handlers.payments import Contest, Payment, overlap_s, payments_of, service_lines
from handlers.terms import Policy

MAX_TEXT = 150_000
"""Characters that Stripe takes in all text fields of a dispute together."""
MAX_FIELD = 20_000
"""Characters that Stripe takes in one text field."""
MAX_PRIOR = 20
"""Earlier payments that are listed; more convince nobody."""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence as far as our facts reach, for a person to read, complete and submit or leave."""

    dispute: str
    reason: str
    fields: dict[str, str]
    """Text by Stripe's evidence field name; at most MAX_TEXT characters together."""
    missing: tuple[str, ...] = ()
    """What a person should add: files, and what this software does not keep."""
    note: str = ""
    """For the person, never for the bank: whether to fight at all, until when, and why."""


class Copy(Enum):
    """What the disputed payment is in the eyes of clause 4.3, were it not disputed."""

    DUPLICATE = "duplicate"
    ORIGINAL = "original"
    DOUBTFUL = "doubtful"
    SINGLE = "single"


def draft(
    file: CustomerFile, dispute: Dispute, policy: Policy, decisions: Mapping[str, Decision], account: Account | None
) -> Draft:
    """The evidence for one dispute. `file` is the whole person's, `decisions` those in force, by subject (clause 7)."""
    told = _Told(file, dispute, policy, decisions, account)
    write, files = _BY_REASON.get(dispute.reason, _ANYTHING)
    fields = write(told)
    missing = [*files, *(["the payment itself: no charge of this dispute is known"] if told.payment is None else [])]
    if told.before_policy:
        missing.append("the terms that applied when it was paid: no version of the policy was in force yet")
    if dispute.status == "appeal_needs_response":
        missing.append("evidence.appeal: an appeal is filed with a reason and files of its own")
    return Draft(
        dispute=dispute.id,
        reason=dispute.reason,
        fields=_capped(fields),
        missing=tuple(missing),
        note=" ".join(filter(None, [told.advice(), told.agreed, told.deadline()])),
    )


def _capped(fields: dict[str, str]) -> dict[str, str]:
    """No empty field, and no more text than Stripe takes; what comes last is cut first."""
    kept, left = {}, MAX_TEXT
    for name, text in fields.items():
        if text and left > 0:
            kept[name] = text[: min(left, MAX_FIELD)]
            left -= len(kept[name])
    return kept


class _Told:
    """The disputed payment and everything the file tells about it, in sentences."""

    def __init__(
        self,
        file: CustomerFile,
        dispute: Dispute,
        policy: Policy,
        decisions: Mapping[str, Decision],
        account: Account | None,
    ) -> None:
        self.file, self.dispute, self.policy, self.decisions = file, dispute, policy, decisions
        self.payments = payments_of(file, frozenset(), test_clocks=True)
        self.payment = next((p for p in self.payments if self._names(dispute, p)), None)
        paid_at = self.payment.charge.created if self.payment else dispute.created
        customer = self.payment.charge.customer if self.payment else None
        terms = policy.terms_for(customer or (account.customer if account else None), paid_at)
        self.before_policy, self.terms = terms is None, terms or policy.earliest()
        self.agreed = f"Terms by agreement: {self.terms.agreement}." if self.terms.agreement else ""
        invoice = self.payment.invoice if self.payment else None
        self.subscription = file.subscriptions.get((invoice.subscription if invoice else None) or "")
        self.access = _access(account, self.subscription)
        refunds = [r for r in file.refunds.values() if self.payment and self._names(r, self.payment)]
        self.refunds = sorted(refunds, key=lambda refund: (refund.created, refund.id))
        self.copy, self.other, self.ruling = self._look_for_a_copy()

    @staticmethod
    def _names(fact: Dispute | Refund, payment: Payment) -> bool:
        if fact.charge:
            return fact.charge == payment.id
        return fact.payment_intent is not None and fact.payment_intent == payment.charge.payment_intent

    # is it a duplicate?

    def _look_for_a_copy(self) -> tuple[Copy, Payment | None, Decision | None]:
        """What it is, which payment is the other one, and the decision that says so: proofs before doubts."""
        if self.payment is None:
            return Copy.SINGLE, None, None
        mine = ChargeId(self.payment.id)
        rulings = [*self.decisions.values(), *self._undisputed().values()]
        for verdict in (Verdict.REFUND, Verdict.REVIEW, Verdict.NONE):
            for ruling in sorted((d for d in rulings if d.verdict is verdict), key=lambda d: d.original == mine):
                given = {ruling.duplicate, *(s.subject for s in ruling.prepared if s.kind is ActionKind.REFUND)}
                if not ruling.duplicate or mine not in (ruling.original, *given):
                    continue
                named = ruling.duplicate if ruling.original == mine else ruling.original
                other = next((p for p in self.payments if p.id == named), None)
                if verdict is Verdict.REVIEW:
                    return Copy.DOUBTFUL, other, ruling
                if other is not None and verdict is Verdict.REFUND:
                    return (Copy.ORIGINAL if ruling.original == mine else Copy.DUPLICATE), other, ruling
                if other is not None and self._one_payer(other):
                    return Copy.SINGLE, other, ruling
        return Copy.SINGLE, self._nearest(self.payment), None

    def _undisputed(self) -> dict[str, Decision]:
        """What clause 4.3 says of the same facts without this dispute, which by itself makes every refund a review."""
        facts: list[Fact] = [
            fact
            for shelf in self.file.__slots__
            for fact in getattr(self.file, shelf).values()
            if fact.id != self.dispute.id
        ]
        paid, others = self.payment, [d for d in self.file.disputes.values() if d.id != self.dispute.id]
        if paid is not None and not any(self._names(d, paid) for d in others):
            charge = msgspec.structs.replace(paid.charge, disputed=False)
            facts = [charge if fact is paid.charge else fact for fact in facts]
        moment = at(max((fact.as_of for fact in facts), default=self.dispute.as_of))
        return judge(CustomerFile(facts), self.policy, moment, test_clocks=True).decisions

    def _one_payer(self, other: Payment) -> bool:
        """Whether both are one customer's or one card's. The file also holds customers that an e-mail alone ties to this one."""
        if self.payment is None:
            return False
        ours, theirs = self.payment.charge, other.charge
        same_card = ours.card_fingerprint is not None and ours.card_fingerprint == theirs.card_fingerprint
        return same_card or (ours.customer is not None and ours.customer == theirs.customer)

    @property
    def named(self) -> Payment | None:
        """The other payment, where the bank may hear of it: never one of another person's."""
        proved = self.copy in (Copy.DUPLICATE, Copy.ORIGINAL)
        return self.other if self.other is not None and (proved or self._one_payer(self.other)) else None

    def _nearest(self, payment: Payment) -> Payment | None:
        """The payment that the customer most likely means: of the same amount if there is one, nearest in time."""
        theirs = [p for p in self.payments if p is not payment and self._one_payer(p)]
        alike = [p for p in theirs if p.currency == payment.currency]
        captured = payment.charge.captured_minor
        order = [(p.charge.captured_minor != captured, abs(p.paid_at - payment.paid_at), p.id, p) for p in alike]
        return min(order, key=lambda row: row[:3])[3] if order else None

    # what went back

    def went_back(self, payment: Payment) -> Money:
        """What has gone back of a payment, as far as it is certain: pending refunds may still fail."""
        theirs = [r for r in self.file.refunds.values() if self._names(r, payment) and r.live]
        pending = sum(r.amount_minor for r in theirs if r.status != "succeeded")
        return Money(max(payment.refunded_minor - pending, 0), payment.currency)

    def refund_story(self, payment: Payment) -> str:
        """Every refund of a payment that succeeded, and what other disputes took back, as sentences for the bank."""
        done = [r for r in self.file.refunds.values() if self._names(r, payment) and r.status == "succeeded"]
        told = [
            f"{Money(r.amount_minor, r.currency)} of {payment.id} was given back at {when(r.created)} (refund {r.id})."
            for r in sorted(done, key=lambda r: (r.created, r.id))
        ]
        back = self.went_back(payment)
        told = told or ([f"{back} of {payment.id} was given back."] if back.minor else [])
        lost = [d for d in self.file.disputes.values() if d.status in ("lost", "prevented") and d.id != self.dispute.id]
        told += [
            f"{Money(d.amount_minor, d.currency)} was given back through the dispute {d.id} of {payment.id}."
            for d in sorted(lost, key=lambda d: d.id)
            if self._names(d, payment)
        ]
        return " ".join(told)

    # what was paid for

    def lines(self, payment: Payment) -> list[Line]:
        """The service that a payment bought, else whatever its invoice lists."""
        if payment.invoice is None:
            return []
        return service_lines(self.file, payment.invoice) or list(payment.invoice.lines)

    def paid_for(self, payment: Payment) -> str:
        """One payment in words: amount, time, and the service periods it bought."""
        amount = Money(payment.charge.captured_minor, payment.currency)
        head = f"{payment.id}: {amount}, paid at {when(payment.paid_at)}"
        bought = [
            f"{_thing(line)} from {_day(line.period_start)} to {_day(line.period_end)}" for line in self.lines(payment)
        ]
        if payment.invoice is None:
            single = "a single payment without an invoice" if payment.bare else f"for invoice {payment.invoice_id}"
            return f"{head}, {single}."
        of = f", subscription {payment.invoice.subscription}" if payment.invoice.subscription else ""
        return f"{head}, for {'; '.join(bought) or 'its invoice'} (invoice {payment.invoice.id}{of})."

    def product(self) -> str:
        if self.payment is None:
            return f"Digital services of {self.policy.merchant.name}, delivered online."
        made = f"Digital services of {self.policy.merchant.name}, made available online at once when paid"
        return f"{made}. Payment {self.paid_for(self.payment)}"

    def service_date(self) -> str:
        """The day on which the service began."""
        if self.payment is None:
            return ""
        return _day(min((line.period_start for line in self.lines(self.payment)), default=self.payment.paid_at))

    def access_story(self) -> str:
        if self.access is None or self.access.until is None:
            return ""
        return f"The subscription {self.access.subscription} gave access until {when(self.access.until)}."

    def policy_name(self) -> str:
        since = next((v.in_force_from for v in self.policy.version if v.id == self.terms.version), None)
        begun = f", in force since {since:%Y-%m-%d}" if since else ""
        amended = ", amended by a written agreement with the customer" if self.terms.agreement else ""
        return f"The cancellation and refund policy of {self.policy.merchant.name}, version {self.terms.version}{begun}{amended}"

    # what to do

    def advice(self) -> str:
        """Whether to fight, for the person who decides: never both a refund and a chargeback."""
        if self.payment is None:
            return "The payment is not known here: look it up at Stripe before anything is sent."
        pending = [r for r in self.refunds if r.live and r.status != "succeeded"]
        wait = "".join(f" The refund {r.id} is {r.status}: see first what becomes of it." for r in pending)
        back = self.went_back(self.payment)
        if back.minor and back.currency == self.dispute.currency:
            return f"{self._given_back(back)}{wait}"
        if self.copy is Copy.DUPLICATE or self.copy is Copy.ORIGINAL:
            return f"{self._one_of_two()}{wait}"
        if self.charged_after_end():
            return (
                f"Do not fight before a person has looked: {self.payment.id} paid for a period after the effective end "
                f"of the subscription, and clause 1.2 promises that nothing is charged then.{wait}"
            )
        if self.copy is Copy.DOUBTFUL and self.ruling:
            of = f" of {self.other.id}" if self.other else ""
            return (
                f"Whether it is a duplicate{of} is in doubt ({self.ruling.rule}): a person decides that first, "
                f"`finalsale explain {self.ruling.subject}` shows why. If it is one, accept the dispute."
                f"{self._not_twice()}{wait}"
            )
        why = f" About 4.3: {self.ruling.reason}" if self.ruling else ""
        return f"No clause gives this payment back: the draft may be used as it is.{why}{wait}"

    def _not_twice(self) -> str:
        """What else would give the same money back, were the dispute accepted."""
        said = ""
        if self.other is not None and self.other.contest is Contest.OPEN:
            said += f" {self.other.id} is disputed too: of the two accept one at most."
        booked = (t for read in self.file.balances.values() for t in read.transactions if t.type == "invoice_overpaid")
        if self.payment is not None and any(t.invoice in self.payment.invoice_ids for t in booked):
            said += " Stripe booked the excess as a balance credit: see that this does not compensate it as well."
        return said

    def _given_back(self, back: Money) -> str:
        was = f"It was a duplicate of {self.other.id}. " if self.copy is Copy.DUPLICATE and self.other else ""
        rest = Money(self.dispute.amount_minor - back.minor, back.currency)
        more = f" {rest} of the dispute is not given back yet: decide about that part alone." if rest.minor > 0 else ""
        return (
            f"{was}{back} was given back already: do not fight that it was, but do not accept the dispute either, or the "
            f"same money goes back twice. Answer with the refund as the proof.{more}"
        )

    def _one_of_two(self) -> str:
        """Advice where the payment is one of two proved copies, and nothing of it went back."""
        assert self.payment is not None
        assert self.other is not None
        assert self.ruling is not None
        begun = self.decisions.get(self.ruling.subject) is self.ruling
        if self.copy is Copy.ORIGINAL and (begun or self.other.refunded_minor):
            return (
                f"{self.payment.id} is the intended charge and its duplicate {self.other.id} goes back: fight, once "
                f"`finalsale explain {self.other.id}` shows that refund as made."
            )
        inquiry = self.dispute.status in INQUIRIES
        ends = " It is still an inquiry: the refund, approved by a person, ends it." if inquiry else ""
        if self.copy is Copy.ORIGINAL:
            return (
                f"Do not fight: accept. {self.payment.id} and {self.other.id} are copies (4.3, {self.ruling.rule}), and "
                f"one of them goes back in any case. With this dispute it is this one; the other then stays.{ends}"
            )
        part = self.ruling.amount
        over = part is not None and part.currency == self.dispute.currency and part.minor < self.dispute.amount_minor
        only = f" Only {part} of it is the duplicate part, the dispute asks for {self._asked()}." if over else ""
        seen = f" See first that its refund is not under way: `finalsale explain {self.payment.id}`." if begun else ""
        return (
            f"Do not fight: accept. {self.payment.id} is a duplicate of {self.other.id} (4.3, {self.ruling.rule}); the "
            f"dispute gives back what the policy would have given back, and no refund is sent besides it.{only}{seen}{ends}"
        )

    def _asked(self) -> Money:
        return Money(self.dispute.amount_minor, self.dispute.currency)

    def ends_at(self) -> Seconds | None:
        """When the subscription ended or will end; None where nobody ended it."""
        known = self.subscription
        if known is None or not known.ends:
            return None
        by_period = max((item.period_end for item in known.items), default=None) if known.cancel_at_period_end else None
        return known.ended_at or known.cancel_at or by_period

    def charged_after_end(self) -> bool:
        """Whether all that was paid for lies after the effective end (1.2), or a decision in force says so."""
        invoices = self.payment.invoice_ids if self.payment else ()
        if any((d := self.decisions.get(id_)) and d.rule == "charge_after_cancellation" for id_ in invoices):
            return True
        end, lines = self.ends_at(), self.lines(self.payment) if self.payment else []
        return end is not None and bool(lines) and min(line.period_start for line in lines) >= end

    def deadline(self) -> str:
        if self.dispute.status not in AWAITED:
            return f"The dispute is {self.dispute.status}: Stripe is not known to wait for evidence."
        if not self.dispute.due_by:
            return "Stripe takes no evidence for it: it cannot be challenged."
        return (
            f"Evidence is due by {when(self.dispute.due_by)} and can be submitted once; this draft submits nothing, "
            "but what is staged Stripe may submit by itself at the deadline."
        )


def _access(account: Account | None, subscription: Subscription | None) -> Access | None:
    if account is None or subscription is None:
        return None
    return next((access for access in account.access if access.subscription == subscription.id), None)


def _day(seconds: Seconds) -> str:
    return f"{at(seconds):%Y-%m-%d}"


def _thing(line: Line) -> str:
    count = f"{line.quantity} x " if line.quantity and line.quantity > 1 else ""
    return f"{count}{line.price or 'an item'}"


# what is written for each reason ---------------------------------------------------------------------------------------------


def _duplicate(told: _Told) -> dict[str, str]:
    payment, other = told.payment, told.named
    if payment is None:
        return {}
    if other is None:
        none = "" if told.other else "No other payment at Stripe is known. "
        return {"duplicate_charge_explanation": f"{none}{told.paid_for(payment)}"}
    both = f"The disputed payment is {told.paid_for(payment)} The other payment is {told.paid_for(other)}"
    match told.copy:
        case Copy.DUPLICATE:
            why = f"The disputed payment repeated the other one. {told.refund_story(payment)}"
        case Copy.ORIGINAL:
            why = f"The disputed payment is the intended one, the other repeated it. {told.refund_story(other)}"
        case Copy.DOUBTFUL:
            why = told.refund_story(payment)
        case Copy.SINGLE:
            why = f"{_why_two(told, payment, other)} {told.refund_story(payment)} {told.refund_story(other)}"
    said = " ".join(f"{both} {why}".split())
    return {"duplicate_charge_id": other.id, "duplicate_charge_explanation": said}


def _why_two(told: _Told, payment: Payment, other: Payment) -> str:
    """Why two payments are two purchases, as far as the service periods of their invoices prove it."""
    if payment.bare and other.bare:
        return f"They are two single payments, {span(abs(payment.paid_at - other.paid_at))} apart."
    if payment.bare or other.bare:
        return "One paid for a service period, the other is a single payment."
    ours, theirs = told.lines(payment), told.lines(other)
    if not ours or not theirs:
        return ""
    if not any(overlap_s(a, b) for a in ours for b in theirs):
        return "They paid for different service periods, which do not overlap."
    if not {line.price for line in ours} & {line.price for line in theirs}:
        return "They paid for different services."
    if payment.invoice and other.invoice and payment.invoice.subscription != other.invoice.subscription:
        return "They paid for two subscriptions that were bought separately."
    return ""


def _credit_not_processed(told: _Told) -> dict[str, str]:
    return {
        "refund_policy": (
            f"{told.policy_name()}: digital services are delivered when they are paid, and every sale is final; "
            "subscriptions, credit packs and add-ons are not paid back (clauses 2 and 6), credits that were bought stay "
            "usable instead of being paid back (clause 3.2). Trouble and outages are made good with credits or time "
            "(clauses 4.1 and 4.2). Money goes back in one case only: a subscription charged more than once by mistake, "
            "and then the repeated part (clause 4.3)."
        ),
        "refund_policy_disclosure": _disclosure(told),
        "refund_refusal_explanation": _refusal(told),
        "service_date": told.service_date(),
    }


def _disclosure(told: _Told) -> str:
    return (
        f"{told.policy_name()}, is published by the merchant with its date. A payment is judged by the version that was "
        "in force when it was made (clause 9)."
    )


def _refusal(told: _Told) -> str:
    """Why no (further) credit is due, or what is true where one is: no false word to the bank."""
    if told.payment is None:
        return ""
    facts = f"Payment {told.paid_for(told.payment)} {told.refund_story(told.payment)}".strip()
    own = told.decisions.get(told.payment.id)
    if told.copy is not Copy.SINGLE:
        return f"{facts} {told.refund_story(told.named)}".strip() if told.named else facts
    if told.charged_after_end():
        return facts
    if own is not None and own.verdict is Verdict.DENY:
        return f"{facts} A refund was asked for and refused under clause {own.clause}."
    compared = told.other is not None and told.ruling is None
    examined = (
        "It was compared with the customer's other payments and repeats none of them (clause 4.3)." if compared else ""
    )
    more = "further " if told.went_back(told.payment).minor else ""
    final = f"No {more}credit is due: the sale is final (clauses 2 and 6)."
    return " ".join(filter(None, [facts, examined, final]))


def _subscription_canceled(told: _Told) -> dict[str, str]:
    return {
        "cancellation_policy": (
            f"{told.policy_name()}: a subscription can be cancelled at any time (clause 1.1). It then serves to the end "
            "of the period that was paid, and nothing is charged afterwards (clause 1.2). Whoever wants it to end at "
            "once loses the rest of the period without being paid back (clause 1.3)."
        ),
        "cancellation_policy_disclosure": _disclosure(told),
        "cancellation_rebuttal": _rebuttal(told),
        "service_date": told.service_date(),
    }


def _rebuttal(told: _Told) -> str:
    """When it was cancelled, when that took effect, and which period the disputed payment was for."""
    payment, subscription = told.payment, told.subscription
    if payment is None:
        return ""
    said = [f"The disputed payment is {told.paid_for(payment)}"]
    if subscription is None:
        return f"{said[0]} It belongs to no subscription that is known."
    end, asked = told.ends_at(), subscription.canceled_at
    if end is None and not told.charged_after_end():
        said.append(f"No cancellation of the subscription {subscription.id} is known.")
    elif end is not None:
        ends = "ended" if subscription.ended_at else "ends"
        said.append(f"The subscription {subscription.id} {ends} at {when(end)}.")
    if asked is not None and end is not None:
        order = "before the cancellation" if payment.paid_at <= asked else "after the cancellation was asked for"
        said.append(f"It was cancelled at {when(asked)}; the payment was made {order}.")
    starts = min((line.period_start for line in told.lines(payment)), default=None)
    if end is not None and starts is not None and starts < end:
        said.append("The period that was paid began before the end, so the payment was due (clause 1.2).")
    said += [told.access_story(), told.refund_story(payment)]
    return " ".join(filter(None, said))


def _fraudulent(told: _Told) -> dict[str, str]:
    prior = _prior(told)
    listed = [told.paid_for(payment) for payment in prior]
    head = "Earlier payments with the same card that nobody disputed:"
    text = "\n".join([head, *listed]) if prior else ""
    return {
        "product_description": told.product(),
        "service_date": told.service_date(),
        "uncategorized_text": "\n".join(filter(None, [text, told.access_story(), _story_of_refunds(told)])),
    }


def _prior(told: _Told) -> list[Payment]:
    """Earlier payments of the same card that stand and were neither disputed nor warned about, earliest first."""
    if told.payment is None or not told.payment.charge.card_fingerprint:
        return []
    card = told.payment.charge.card_fingerprint
    warned = {w.charge for w in told.file.warnings.values()} | {w.payment_intent for w in told.file.warnings.values()}
    disputed = {d.charge for d in told.file.disputes.values()} | {d.payment_intent for d in told.file.disputes.values()}
    suspect = (warned | disputed) - {None}
    found = [
        p
        for p in told.payments
        if p.charge.card_fingerprint == card and p.order < told.payment.order and p.stands
        if p.contest is Contest.NONE and not suspect & {p.id, p.charge.payment_intent}
    ]
    return found[-MAX_PRIOR:]


def _story_of_refunds(told: _Told) -> str:
    return told.refund_story(told.payment) if told.payment else ""


def _not_as_expected(told: _Told) -> dict[str, str]:
    delivered = "The service was made available online when it was paid." if told.payment else ""
    said = [delivered, told.access_story(), _story_of_refunds(told)]
    return {
        "product_description": told.product(),
        "service_date": told.service_date(),
        "uncategorized_text": " ".join(filter(None, said)),
    }


def _anything(told: _Told) -> dict[str, str]:
    said = [told.product(), told.access_story(), _story_of_refunds(told), f"{told.policy_name()}, applies."]
    return {"uncategorized_text": "\n".join(filter(None, said))}


_WHO = "the customer's name, e-mail and billing address as given at purchase (not kept here)"
_LOG = "access_activity_log: when the customer used the service (from the app)"
_TALK = "customer_communication (file): what was written with the customer"
_RECEIPT = "receipt (file): the receipt or invoice that the customer got"
_SHOWN = "a screenshot (file) of where the policy was shown before payment"

Writer = Callable[[_Told], dict[str, str]]
_ANYTHING: tuple[Writer, tuple[str, ...]] = (_anything, (_LOG, _RECEIPT, _TALK))
_BY_REASON: dict[str, tuple[Writer, tuple[str, ...]]] = {
    "duplicate": (_duplicate, ("duplicate_charge_documentation (file): both receipts", _TALK)),
    "credit_not_processed": (_credit_not_processed, (_SHOWN, _TALK)),
    "subscription_canceled": (_subscription_canceled, (_SHOWN, _LOG, _TALK)),
    "fraudulent": (_fraudulent, ("customer_purchase_ip: from the app", _WHO, _LOG, _RECEIPT)),
    "unrecognized": (_fraudulent, ("customer_purchase_ip: from the app", _WHO, _LOG, _RECEIPT)),
    "product_not_received": (_not_as_expected, (_LOG, "service_documentation (file)", _TALK)),
    "product_unacceptable": (_not_as_expected, (_LOG, "service_documentation (file)", _TALK)),
}
