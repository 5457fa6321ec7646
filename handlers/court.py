"""One judgement of clause 4.3 in the making: the file, its payments, the decisions so far, and the checks that every rule shares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from handlers.account import LotBalance
from handlers.customer import (
    ChargeId,
    CheckoutSession,
    CustomerFile,
    CustomerId,
    Invoice,
    InvoicePayment,
    Seconds,
    at,
)
from handlers.decisions import Acted, ActionKind, Decision, Evidence, Money, Prepared, Verdict
from handlers.identity import Traces
from handlers.ledger import used_of_duplicate
from handlers.payments import Contest, Payment, payments_of
from handlers.terms import Policy, Terms

CLAUSE = "4.3"
TWICE_GRANTED = ("D3", "D4", "D5")
"""Rules whose duplicate had granted credits of its own (reading 23)."""
FINAL_METHODS = frozenset(
    [
        *("card", "card_present", "link", "paypal", "cashapp", "amazon_pay", "revolut_pay", "alipay", "wechat_pay"),
        *("klarna", "affirm", "afterpay_clearpay", "ideal", "bancontact", "eps", "giropay", "p24", "blik", "twint"),
    ]
)
"""Payment methods whose success is not called back like a bank debit's. Any other, also an unknown one: review (22)."""


class Court:
    """One judgement in the making. Rules read from it and write their decisions with `rule`."""

    def __init__(
        self,
        file: CustomerFile,
        policy: Policy,
        now: datetime,
        acted: Iterable[Acted],
        test_clocks: bool,
        balances: Mapping[str, LotBalance] = {},
    ) -> None:
        self.file, self.policy, self.now, self.test_clocks = file, policy, now, test_clocks
        self.balances = balances
        self.acted = {(a.kind, a.subject) for a in acted}
        refunded = frozenset(subject for kind, subject in self.acted if kind is ActionKind.REFUND)
        self.payments = payments_of(file, refunded, test_clocks=test_clocks)
        self.by_invoice: dict[str, list[Payment]] = defaultdict(list)
        for payment in self.payments:
            for invoice_id in payment.invoice_ids:
                self.by_invoice[invoice_id].append(payment)
        self.rows: dict[str, list[InvoicePayment]] = defaultdict(list)
        for row in file.invoice_payments.values():
            self.rows[row.invoice].append(row)
        self.sessions: dict[str, list[CheckoutSession]] = defaultdict(list)
        for session in sorted(file.sessions.values(), key=lambda s: s.id):
            if session.subscription:
                self.sessions[session.subscription].append(session)
        self.decisions: dict[str, Decision] = {}
        self.originals: set[str] = set()
        """Charges that stay because this judgement gives a copy of theirs back."""
        self.listed: set[str] = set()
        """Charges that a review of another charge lists with it (reading 21)."""
        self.wanted: set[tuple[str, str]] = set()
        self.wake_at: list[datetime] = []
        self._terms: dict[str, Terms] = {}
        self._traces: Traces | None = None

    @property
    def traces(self) -> Traces:
        """E-mails and cards by customer, looked up only where two customers are compared."""
        self._traces = self._traces or Traces(self.file)
        return self._traces

    def terms(self, payment: Payment) -> Terms:
        """The terms in force when the payment was made; before the first version, that version's (and a doubt, see `rule`)."""
        known = self._terms.get(payment.id)
        if known is None:
            known = self.policy.terms_for(payment.charge.customer, payment.paid_at) or self.policy.earliest()
            self._terms[payment.id] = known
        return known

    def decided(self, payment: Payment) -> bool:
        """Whether another rule has spoken about it, or our refund of it was begun."""
        return payment.id in self.decisions or payment.id in self.listed or payment.acted

    def goes_back(self, payment: Payment) -> bool:
        """Whether this judgement already gives the payment back, so that it can be nobody's original."""
        decision = self.decisions.get(payment.id)
        return decision is not None and decision.verdict is Verdict.REFUND

    def rule(
        self,
        rule: str,
        original: Payment | None,
        duplicate: Payment,
        story: str,
        *,
        doubts: Iterable[str] = (),
        unlike: str = "",
        amount_minor: int,
        evidence: Iterable[Evidence] = (),
        prepared: Iterable[Prepared] = (),
    ) -> Decision:
        """Write the decision about `duplicate`: none where they are unlike, refund where nothing is in doubt, else review.

        An `amount_minor` of 0 leaves nothing to refund: at most the other prepared actions wait for a person.
        """
        terms = self.terms(duplicate)
        customer = duplicate.charge.customer or CustomerId(duplicate.id)
        amount = Money(amount_minor, duplicate.currency) if amount_minor > 0 else None
        agreed = f" (agreement: {terms.agreement})" if terms.agreement else ""
        if not unlike and terms.duplicates.rule == "none":
            unlike = "the customer's agreement excludes refunds of duplicates"
        steps = list(prepared)
        if amount:
            steps.insert(0, Prepared(kind=ActionKind.REFUND, subject=duplicate.id, customer=customer, amount=amount))
        used = self._used_credits(original, duplicate) if rule in TWICE_GRANTED and amount and not unlike else ()
        doubts = [*doubts, *("the customer has used a part of the credits that the duplicate granted" for _ in used)]
        found = list(dict.fromkeys([*doubts, *self._limits(original, duplicate, amount)]))
        if unlike:
            verdict, reason, steps, amount = Verdict.NONE, f"{story} Nothing goes back: {unlike}.{agreed}", [], None
        elif found or amount is None:
            verdict = Verdict.REVIEW
            reason = f"{story} A person must decide: {'; '.join(found) or 'the amount cannot be proved'}.{agreed}"
        else:
            verdict, reason = Verdict.REFUND, f"{story} {amount} goes back{_rest(original, steps)}.{agreed}"
        decision = Decision(
            subject=duplicate.id,
            customer=customer,
            clause=CLAUSE,
            rule=rule,
            verdict=verdict,
            policy_version=terms.version,
            reason=reason,
            amount=amount,
            original=ChargeId(original.id) if original else None,
            duplicate=ChargeId(duplicate.id),
            evidence=(*_both_payments(original, duplicate), *evidence, *used),
            prepared=tuple(steps),
            due_at=at(duplicate.paid_at) + timedelta(seconds=terms.duplicates.settle) if steps else None,
        )
        self.decisions[duplicate.id] = decision
        if verdict is Verdict.REFUND and original is not None:
            self.originals.add(original.id)
        return decision

    def _limits(self, original: Payment | None, duplicate: Payment, amount: Money | None) -> list[str]:
        """Clause 9 (which version), clause 8 (agreements), rule 6 (limits) and once more rule 1, as doubts."""
        found, terms = [], self.terms(duplicate)
        if self.policy.terms_for(duplicate.charge.customer, duplicate.paid_at) is None:
            found.append("no version of the policy was in force when it was paid")
        if duplicate.id in self.originals:
            found.append(f"{duplicate.id} is the original of another refund")
        if terms.duplicates.rule == "review":
            found.append("the customer's agreement asks for a person's decision")
        if original is None or not original.stands or self.goes_back(original) or original.id == duplicate.id:
            found.append("no other payment at Stripe is known to stand for it")
        elif original.charge.customer != duplicate.charge.customer and self.terms(original).duplicates.rule != "on":
            found.append(f"an agreement with {original.charge.customer} takes duplicates out of the ordinary")
        if amount is not None:
            limit = terms.refunds.per_refund.get(amount.currency)
            if limit is None:
                found.append(f"the policy names no refund limit for {amount.currency.upper()}")
            elif amount.minor > limit:
                found.append(f"{amount} is above the limit of {Money(limit, amount.currency)} per refund")
        return found

    def _used_credits(self, original: Payment | None, duplicate: Payment) -> tuple[Evidence, ...]:
        """Reading 23: evidence where more was consumed than the original granted. How much is no part of the doubt, so
        that going on consuming does not take back what a person has agreed to."""
        if original is None or not self.balances:
            return ()
        lots = [self._included_lots(payment) for payment in (original, duplicate)]
        used = used_of_duplicate(lots[0], lots[1], self.balances)
        if not used:
            return ()
        sums = [[self.balances[lot] for lot in theirs if lot in self.balances] for theirs in lots]
        said = [f"{sum(b.consumed for b in theirs)} of {sum(b.granted for b in theirs)}" for theirs in sums]
        return (
            Evidence("credits used, of those granted", *said),
            Evidence("used of the credits that only the duplicate granted", "0", str(used)),
        )

    def _included_lots(self, payment: Payment) -> list[str]:
        invoices = (self.file.invoices.get(id_) for id_ in payment.invoice_ids)
        return [f"included:{invoice.id}:{line.id}" for invoice in invoices if invoice for line in invoice.lines]

    def due(self, invoice: Invoice) -> Money:
        """What was due on an invoice, after the customer's balance."""
        return Money(invoice.amount_due_minor, invoice.currency)


def _rest(original: Payment | None, steps: Iterable[Prepared]) -> str:
    """What else a refund does, and what stays, as the end of its sentence."""
    said = [f", {original.id} stays"] if original else []
    for step in steps:
        if step.kind is ActionKind.CANCEL_SUBSCRIPTION:
            said.append(f", the subscription {step.subject} is cancelled at once")
        elif step.kind is ActionKind.REVERSE_BALANCE_CREDIT:
            said.append(f", Stripe's balance credit of {step.amount} is taken back")
    return "".join(said)


def contested(original: Payment | None, duplicate: Payment) -> list[str]:
    """Disputes, debits not final, and an original that no longer stands whole (rules 4 and 5, readings 8, 20 and 22)."""
    found = []
    for name, payment in (("original", original), ("later payment", duplicate)):
        if payment is None:
            continue
        match payment.contest:
            case Contest.OPEN:
                found.append(f"a dispute or inquiry is open on the {name} {payment.id}")
            case Contest.WON:
                found.append(f"a dispute on the {name} {payment.id} was won")
            case Contest.PARTLY_LOST:
                found.append(f"a dispute took back a part of the {name} {payment.id}")
            case Contest.NONE | Contest.MONEY_BACK:
                pass
        if payment.charge.method not in FINAL_METHODS:
            method = payment.charge.method or "payment by an unknown method"
            found.append(f"the {name} {payment.id} is a {method}, which may still be returned")
        if len(payment.invoice_ids) > 1:
            found.append(f"the {name} {payment.id} paid several invoices ({', '.join(payment.invoice_ids)})")
    if original is not None and original.refunded_minor:
        found.append(f"{Money(original.refunded_minor, original.currency)} of the original {original.id} was refunded")
    return found


def _both_payments(original: Payment | None, duplicate: Payment) -> list[Evidence]:
    def both(fact: str, ours: str, theirs: str) -> Evidence:
        return Evidence(fact, ours if original else "outside Stripe", theirs)

    first = original or duplicate
    found = [both("paid at", when(first.paid_at), when(duplicate.paid_at))]
    amounts = [Money(p.charge.captured_minor, p.currency) for p in (first, duplicate)]
    found.append(both("amount", str(amounts[0]), str(amounts[1])))
    if first.refunded_minor or duplicate.refunded_minor:
        back = [Money(p.refunded_minor, p.currency) for p in (first, duplicate)]
        found.append(both("refunded before", str(back[0]), str(back[1])))
    return found


def when(seconds: Seconds) -> str:
    """A moment as evidence shows it."""
    return f"{at(seconds):%Y-%m-%dT%H:%M:%SZ}"


def span(seconds: Seconds) -> str:
    """A length of time as a person says it: `42 s`, `15 min 1 s`, `3 h`, `12 days`."""
    if seconds >= 2 * 86400:
        return f"{seconds // 86400} days"
    parts = ((seconds // 3600, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s"))
    return " ".join([f"{count} {unit}" for count, unit in parts if count][:2]) or "0 s"
