"""The console's pages about the policy: the version in force, all terms in words, agreements, and every file that was in use."""

from __future__ import annotations

import difflib
from typing import Any

from handlers.decisions import Money
from worker.console import asked
from worker.console.page import Page, Shown, Visit
from worker.db import queries
from worker.log import masked
from worker.operators import Role
from worker.reading import Document, NotFound, fetch
from worker.show import policy_document

LISTED = 30
DIFF_LINES = 2000
AMOUNTS = ("per_refund", "per_day", "two_persons")
RULES = {
    "duplicates": "Duplicates (4.3)",
    "refunds": "Limits of refunds (4.3)",
    "chargebacks": "Chargebacks (7)",
    "credits": "Credits (3)",
    "cases": "Support (5)",
}
WORDS = {
    "rule": "how clause 4.3 is carried out",
    "window": "two payments this close may be one purchase",
    "settle": "wait before judging, for what is still on its way",
    "bare_payment_window": "the same for payments without an invoice",
    "manual_charge_window": "the same for charges made by hand",
    "late_recovery": "a payment recovered after the copy was paid",
    "person": "metadata keys that name the person",
    "order": "metadata keys that name the order",
    "scope": "metadata keys by which two purchases are meant",
    "volatile": "metadata keys that say nothing",
    "reverse_overpaid_credit": "take back balance credit of an overpaid invoice",
    "per_refund": "one refund at most",
    "per_day": "all refunds of a day at most",
    "two_persons": "from here on two people must say yes",
    "on_chargeback": "a customer with an open chargeback is",
    "deadline_alerts": "alerts before evidence is due",
    "plans": "credits by price",
    "packs": "credit packs by price",
    "answer_within": "an answer is due within",
    "alert_before": "alert so long before it is due",
}
"""What each term of the file means; one that is not here is shown by its name."""


async def policy(visit: Visit) -> Shown:
    """The policy in force now, all its versions in words, agreements, and the files that workers began to judge by."""
    file = visit.court.policy
    told = policy_document(file)
    in_force = [v.id for v in file.version if v.in_force_from <= visit.now]
    agreements = [
        {
            "customer": agreed.customer,
            "source": masked(agreed.source),
            "from": agreed.from_,
            "until": agreed.until,
            "in_force": agreed.from_ <= visit.now and (agreed.until is None or visit.now < agreed.until),
            "overrides": _in_words(agreed.overrides),
        }
        for agreed in file.agreement
    ]
    versions = [
        {"id": version.id, "from": version.in_force_from, "terms": _terms(written)}
        for version, written in zip(file.version, told["version"], strict=True)
    ]
    before = asked.number(visit.query, "before")
    recorded = await fetch(visit.conn, queries.console_policy_versions, before_id=before, most=LISTED + 1)
    older = asked.address("/console/policy", before=recorded[LISTED - 1]["id"]) if len(recorded) > LISTED else None
    return Shown(
        "policy.html.j2",
        {
            "merchant": file.merchant,
            "versions": versions[::-1],
            "in_force": in_force[-1] if in_force else None,
            "agreements": agreements,
            "recorded": [dict(row) for row in recorded[:LISTED]],
            "next": older,
            "refunds": visit.court.refunds,
        },
    )


async def recorded(visit: Visit) -> Shown:
    """One file that was in use, as it differs from the one before it; the first one whole. Raises NotFound."""
    number = asked.number(visit.path, "id")
    rows = await fetch(visit.conn, queries.console_policy_pair, id=number)
    if not rows or rows[0]["id"] != number:
        raise NotFound("No policy was recorded under this number; the page of the policy lists them all.")
    now, was = _lines(rows[0]["body"]), _lines(rows[1]["body"]) if len(rows) > 1 else []
    lines = list(difflib.unified_diff(was, now, lineterm="", n=3))[2:] if was else [f" {line}" for line in now]
    return Shown(
        "policy_recorded.html.j2",
        {
            "id": number,
            "before": rows[1]["id"] if len(rows) > 1 else None,
            "lines": [{"kind": line[:1], "text": line} for line in lines[:DIFF_LINES]],
            "more": max(len(lines) - DIFF_LINES, 0),
        },
    )


def _lines(body: bytes) -> list[str]:
    return [masked(line) for line in body.decode(errors="replace").splitlines()]


def _terms(version: Document) -> list[Document]:
    """A version's terms by rule, each with what it means and its value."""
    return [{"title": title, "rows": _in_words(version[rule])} for rule, title in RULES.items()]


def _in_words(terms: Document) -> list[tuple[str, str, str]]:
    return [
        (name, WORDS.get(term := name.rpartition(".")[2], ""), _value(value, term)) for name, value in terms.items()
    ]


def _value(value: Any, term: str = "") -> str:
    match value:
        case dict() if term in AMOUNTS:
            return ", ".join(_amount(currency, minor) for currency, minor in value.items()) or "none"
        case dict():
            inner = {key: _value(one).replace("; ", ", ").replace(": ", " ") for key, one in value.items()}
            return "; ".join(f"{key}: {words}" for key, words in inner.items()) or "none"
        case list() | tuple():
            return ", ".join(map(str, value)) or "none"
        case bool():
            return "yes" if value else "no"
        case _:
            return str(value)


def _amount(currency: str, minor: Any) -> str:
    return str(Money(minor, currency)) if isinstance(minor, int) else f"{minor} {currency}"


PAGES = (
    Page("GET", "/policy", Role.READ, policy),
    Page("GET", "/policy/{id}", Role.READ, recorded),
)
