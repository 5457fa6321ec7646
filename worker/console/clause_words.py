"""The clauses and rules in a sentence each, for whoever decides and has not the policy before them."""

from __future__ import annotations

CLAUSES = {
    "1.1": "Everybody may cancel at any time.",
    "1.2": "After a cancellation, access lasts to the end of the paid period, and nothing is charged any more.",
    "1.3": "Ending at once ends access at once; nothing goes back for the rest of the period.",
    "2": "Every sale is final.",
    "3.1": "Included credits last as long as the subscription.",
    "3.2": "Credits that were bought stay, and are not refunded.",
    "3.3": "Trial credits end with the trial.",
    "4.1": "For serious trouble a person may give service credits or extend a subscription.",
    "4.2": "For an outage a person may give service credits, never money.",
    "4.3": "Where one thing was charged more than once by accident, the duplicates alone go back; the charge that was meant stays.",
    "5": "A request is answered within 24 hours.",
    "6": "Extras and work made to order are final, too.",
    "7": "A chargeback may lead to suspension until it is settled.",
    "8": "An agreement with a customer may say otherwise.",
    "9": "A payment is judged by the version in force when it was made.",
}
RULES = {
    "D1": "one invoice was paid more than once",
    "D2": "an invoice was marked as paid outside Stripe, and charged as well",
    "D3": "one customer bought the same subscription twice",
    "D4": "one person bought the same subscription under two customers",
    "D5": "one period of one item was invoiced and paid twice",
    "D6": "the app charged once more for what was paid",
    "D7": "somebody charged by hand what dunning had collected",
    "D8": "an old subscription recovered after a new one had been bought",
    "D9": "a subscription that was moved here overlaps with one bought here",
    "D10": "two prices of one product were paid for overlapping periods",
}


def clause_in_words(clause: str) -> str:
    """What a clause says in short; empty for one that this release has no words for."""
    return CLAUSES.get(clause, "")


def rule_in_words(rule: str) -> str:
    """What a rule looks for; another clause's rule speaks for itself."""
    return RULES.get(rule, rule.replace("_", " "))
