"""One evaluation of a support request in the making: whom and which payments it is about, and how an answer is put."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from handlers.account import Standing
from handlers.case_request import CaseRequest, Evaluation, Known
from handlers.customer import CustomerFile, CustomerId, Seconds, at
from handlers.decisions import Verdict
from handlers.payments import Payment, payments_of
from handlers.terms import Policy, Terms
from handlers.wire import email_hash


class Hearing:
    """One evaluation in the making: what the request is about, and how an answer is put."""

    def __init__(
        self, request: CaseRequest, known: Known | None, policy: Policy, now: datetime, case: str, due_at: datetime
    ) -> None:
        self.request, self.policy, self.now, self.case, self.due_at = request, policy, now, case, due_at
        self.known = known or Known(customer=CustomerId(""), file=CustomerFile())
        self.is_known = known is not None
        self.whole_customer = request.transaction in (None, self.known.customer)
        self.names = _names(self.known.file, request.transaction)
        every = payments_of(self.known.file, frozenset(), test_clocks=True) if known else []
        mine = [p for p in every if self.known.customer in (p.charge.customer, p.id)]
        self.payments = mine if self.whole_customer else [p for p in every if self.names & names_of(p)]

    def unmatched(self) -> str:
        """Why the request cannot be matched to a person, for whoever answers; empty where it can."""
        request, known = self.request, self.known
        if not self.is_known:
            asked = request.transaction or request.customer
            return (
                f"Nothing is known here about {asked}." if asked else "Neither a transaction nor a customer was named."
            )
        if request.customer is not None and request.customer != known.customer:
            return f"{request.transaction} is {known.customer}'s, not {request.customer}'s."
        if (hashes := self._email_hashes()) and email_hash(request.email) not in hashes:
            return f"The e-mail address of the request does not match any that {known.customer} paid with."
        return ""

    def _email_hashes(self) -> set[str]:
        """Of every e-mail address that the customer, or who paid, is known by."""
        owner = self.known.file.customers.get(self.known.customer)
        charge = self.known.file.charges.get(self.request.transaction or "")
        every = {p.charge.email_hash for p in self.payments}
        every |= {owner.email_hash if owner else None, charge.email_hash if charge else None}
        return {hashed for hashed in every if hashed is not None}

    @property
    def terms(self) -> Terms:
        """In force when the payment was made, or now where it is about none."""
        when = self.payments[0].paid_at if self.payments else int(self.now.timestamp())
        return self.policy.terms_for(self.known.customer, when) or self.policy.earliest()

    def say(
        self, clause: str, verdict: Verdict, summary: str, *sentences: str, commands: tuple[str, ...] = ()
    ) -> Evaluation:
        """An evaluation whose draft consists of these paragraphs."""
        about = f" about {self.request.transaction}" if self.request.transaction else ""
        opening = f"Hello,\n\nthank you for your request{about}."
        closing = f"Kind regards\n{self.policy.merchant.name} support"
        terms = self.terms
        return Evaluation(
            clause=clause,
            verdict=verdict,
            policy_version=terms.version,
            summary=summary + (f" (agreement: {terms.agreement})" if terms.agreement else "") + self._notes(),
            draft_answer="\n\n".join([opening, *(s for s in sentences if s), closing]),
            customer=self.known.customer if self.is_known else None,
            payments=tuple(p.id for p in self.payments),
            suggestions=(*commands, f"finalsale cases answer {self.case} --by NAME"),
        )

    def _notes(self) -> str:
        """What whoever answers should know besides."""
        notes = []
        if self.is_known and not self._email_hashes():
            notes.append(f" No e-mail address of {self.known.customer} is known: make sure who asks before it is sent.")
        if self.is_known and len(self.payments) == 1 and self.request.transaction:
            paid = at(self.payments[0].paid_at)
            if abs((self.request.dated - paid).total_seconds()) > 3 * 86400:
                notes.append(f" The request names {self.request.date}, the payment was made {paid:%Y-%m-%d}.")
        if (account := self.known.account) is not None and account.standing is not Standing.GOOD:
            notes.append(f" {account.customer} is {account.standing} ({', '.join(h.subject for h in account.holds)}).")
        return "".join(notes)

    def ask(self, doubt: str) -> Evaluation:
        """Ask for what clause 5.1 wants. The draft is the same whatever is in doubt, and tells nothing about any payment."""
        anonymous = (
            self if not self.is_known else Hearing(self.request, None, self.policy, self.now, self.case, self.due_at)
        )
        told = anonymous.say(
            "5.1",
            Verdict.REVIEW,
            doubt,
            "With the details in your request we could not find a payment that belongs to it. So that we can check it, please "
            "answer from the e-mail address that you paid with and send us the date of the purchase and the transaction id as it "
            "stands on your receipt or card statement (clause 5.1 of our refund policy). Until then we can neither confirm nor "
            "promise anything.",
            commands=tuple(
                f"finalsale explain {id_}" for id_ in (self.request.transaction, self.request.customer) if id_
            ),
        )
        return msgspec.structs.replace(told, customer=self.known.customer if self.is_known else None)

    @property
    def soon(self) -> str:
        return f"A member of our team is looking at it, and you will hear from us by {moment(self.due_at)} (clause 5)."


def _names(file: CustomerFile, transaction: str | None) -> set[str]:
    """The ids under which a payment may be known that a transaction belongs to."""
    if transaction is None:
        return set()
    thing = file.sessions.get(transaction) or file.refunds.get(transaction) or file.disputes.get(transaction)
    return {transaction, *(thing.references() if thing is not None else ())}


def names_of(payment: Payment) -> set[str]:
    lines = {line.subscription for line in payment.invoice.lines} if payment.invoice else set()
    own = {payment.id, payment.charge.payment_intent, payment.session.id if payment.session else None}
    named = own | lines | {payment.invoice.subscription if payment.invoice else None, *payment.invoice_ids}
    return {name for name in named if name is not None}


def day(seconds: Seconds) -> str:
    """`31 January 2026`, UTC."""
    return f"{at(seconds).day} {at(seconds):%B %Y}"


def moment(when: datetime) -> str:
    """`31 January 2026, 12:00 UTC`."""
    told = when.astimezone(UTC)
    return f"{told.day} {told:%B %Y, %H:%M} UTC"
