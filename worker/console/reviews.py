"""The console's pages about decisions: the queue that waits for a person, one decision with both payments, and the answers to it."""

from __future__ import annotations

from collections import Counter

from handlers.customer import Charge, decode
from handlers.decisions import Money, Verdict
from worker import review
from worker.console import asked
from worker.console.beside import compared
from worker.console.clause_words import clause_in_words, rule_in_words
from worker.console.page import Gone, Page, Shown, Visit
from worker.db import queries
from worker.operators import Role, folded
from worker.reading import Document, NotUnderstood, decision_document, decoded, fetch

LISTED = 25
COUNTED = 1_000
"""How far the queue is counted: above that nobody needs the exact number."""

START = asked.Mark()

STEPS = {
    "refund": "{amount} of {subject} goes back to the customer",
    "cancel_subscription": "{subject} is cancelled at once",
    "reverse_balance_credit": "Stripe's balance credit of {amount} for {subject} is taken back",
}


# the queue ---------------------------------------------------------------------------------------------------------------


async def queue(visit: Visit) -> Shown:
    """What waits for a person, longest first, by clause if asked; it goes on page by page."""
    after, clause = asked.mark(visit.query, "after"), asked.word(visit.query, "clause")
    items, follows = await waiting(visit, LISTED, after=after, clause=clause)
    counts = await fetch(visit.conn, queries.desk_queue_counts, realms=visit.realms, most=COUNTED)
    return Shown(
        "reviews.html.j2",
        {
            "items": items,
            "clauses": [(row["clause"], row["waiting"], clause_in_words(row["clause"])) for row in counts],
            "total": in_words(sum(row["waiting"] for row in counts)),
            "clause": clause,
            "next": asked.address("/console/reviews", clause=clause, after=follows) if follows else None,
        },
    )


async def waiting(
    visit: Visit, most: int, *, after: asked.Mark = START, clause: str | None = None
) -> tuple[list[Document], asked.Mark | None]:
    """So many of the decisions that wait, with what this operator may do about each, and where the list goes on."""
    rows = await fetch(
        visit.conn,
        queries.desk_queue_page,
        realms=visit.realms,
        clause=clause,
        after_at=after.at,
        after_id=after.id,
        most=most + 1,
    )
    more = asked.Mark(rows[most - 1]["since"], rows[most - 1]["id"]) if len(rows) > most else None
    shown = rows[:most]
    items = await review.described(visit.conn, visit.realms, visit.court.policy, shown)
    since = {row["id"]: row["since"] for row in shown}
    for item in items:
        item["waits_s"] = max(int((visit.now - since[item["id"]]).total_seconds()), 0)
        item["short"] = in_short(item["reason"])
        item["mine"] = said_yes(item, visit.operator.name)
        item["why"] = _why(item)
    return items, more


def in_words(count: int) -> str:
    """A count that stopped at COUNTED says so."""
    return f"{COUNTED:,} or more" if count >= COUNTED else f"{count:,}"


def said_yes(item: Document, name: str) -> bool:
    """Whether this operator's yes is among those that count now: the two-person rule then asks for somebody else."""
    return any(folded(name) == folded(other) for other in item["approved_by"])


def _why(item: Document) -> str:
    """Why it waits, in a few words; empty where its doubts are all there is to say."""
    if item["approved_by"]:
        return f"{', '.join(item['approved_by'])} said yes; a second person is needed"
    if any(action["state"] == "failed" for action in item["actions"]):
        return "Stripe refused it"
    if any(action["state"] == "review" for action in item["actions"]):
        return "what became of it at Stripe is not certain"
    if item["needs_amount"]:
        return "no amount could be proved"
    if item["verdict"] == Verdict.REVIEW:
        return ""  # its doubts say it
    return "proved, and every refund waits for a yes here"


def in_short(reason: str) -> str:
    """The doubts of a reason where it lists them, otherwise its beginning."""
    _, found, doubts = reason.partition("A person must decide: ")
    told = doubts if found else reason
    return told if len(told) <= 160 else f"{told[:159].rsplit(' ', 1)[0]} …"


# one decision ------------------------------------------------------------------------------------------------------------


async def one(visit: Visit) -> Shown:
    """One decision: both payments, the evidence, what was said and done, and what a yes would do."""
    named = await review.find(visit.conn, visit.realms, asked.id_in(visit.path))
    row = await queries.decision_in_force(visit.conn, realms=[named["realm"]], subject=named["subject"])
    item = (await review.described(visit.conn, [row["realm"]], visit.court.policy, [row]))[0]
    decision = decoded(row)
    waits = bool(await queries.desk_is_waiting(visit.conn, id=row["id"]))
    rows = await compared(visit.conn, row["realm"], decision) if decision.duplicate or decision.original else []
    return Shown(
        "review.html.j2",
        {
            "item": item,
            "decision": decision_document(row, ()),
            "realm": row["realm"],
            "asked_for": named["id"]
            if named["id"] != row["id"] and asked.id_in(visit.path).startswith("dec_")
            else None,
            "waits": waits,
            "waits_s": int((visit.now - row["decided_at"]).total_seconds()),
            "clause": clause_in_words(decision.clause),
            "rule": rule_in_words(decision.rule),
            "rows": rows,
            "steps": _steps(item),
            "yes": _yes(item) if waits else None,
            "closes": waits and not item["approve"].startswith("finalsale "),
            "may": visit.operator.role.allows(Role.DECIDE),
            "mine": said_yes(item, visit.operator.name),
            "yeses": [act for act in item["acts"] if act["act"] == "approve" and act["by"] in item["approved_by"]],
            "chargeback": decision.subject
            if decision.clause == "7" and decision.rule != "early_fraud_warning"
            else None,
            "paused": bool(await queries.is_paused(visit.conn)),
        },
    )


def _steps(item: Document) -> list[str]:
    """What a yes does, step by step: the actions that wait."""
    return [
        _step(action["kind"]).format(subject=action["subject"], amount=_amount(action["amount"]))
        for action in item["actions"]
        if action["state"] in review.OPEN_STATES
    ]


def _step(kind: str) -> str:
    return STEPS.get(kind, kind.replace("_", " ") + " of {subject}")


def _amount(amount: Document | None) -> str:
    return str(Money(amount["minor"], amount["currency"])) if amount else ""


def _together(amounts: list[Document]) -> str:
    """What goes back by currency, and in how many refunds where it is more than one."""
    by_currency = Counter[str]()
    for amount in amounts:
        by_currency[amount["currency"]] += amount["minor"]
    sums = ", ".join(str(Money(minor, currency)) for currency, minor in by_currency.items())
    return f"{sums} in {len(amounts)} refunds" if len(amounts) > 1 else sums


def _yes(item: Document) -> Document | None:
    """The button of a yes, and the amount that a person must name where none could be proved; None where no yes is possible."""
    if not item["approve"].startswith("finalsale "):
        return None
    if item["needs_amount"]:
        return {"label": "Approve: refund this amount", "needs_amount": True}
    refunds = [a for a in item["actions"] if a["state"] in review.OPEN_STATES and a["kind"] == "refund"]
    sums = _together([action["amount"] for action in refunds])
    others = [a for a in item["actions"] if a["state"] in review.OPEN_STATES and a["kind"] != "refund"]
    label = (
        f"Approve: refund {sums}" if sums else "Approve: " + " and ".join(a["kind"].replace("_", " ") for a in others)
    )
    return {"label": label, "needs_amount": False}


# the answers -------------------------------------------------------------------------------------------------------------


async def approve(visit: Visit) -> Gone:
    """A yes with the operator's name. Raises NotFound, NotUnderstood, ActRefused."""
    id_, text = asked.id_in(visit.path), visit.form.get("note", "")
    amount = await _named_amount(visit, id_)
    done = await review.approve(
        visit.conn,
        visit.court.policy,
        visit.realms,
        id_,
        by=visit.operator.name,
        note=text,
        amount_minor=amount,
        via="console",
        etag=visit.form.get("etag"),
    )
    told = f"You approved {done['id']}."
    if not done["planned"]:
        told += " It needs a second person: somebody else has to approve it, too."
    elif done["refunds_paused"]:
        told += " Refunds are paused: nothing is sent until somebody resumes them."
    else:
        told += " It is on its way to Stripe."
    return Gone(asked.page_of("reviews", done["id"]), told)


async def _named_amount(visit: Visit, id_: str) -> int | None:
    """The amount in the form, in minor units of the payment's own currency; None where the form has none."""
    if "amount" not in visit.form:
        return None
    currency = await _currency(visit, id_)
    return minor_of(visit.form["amount"], currency)


async def _currency(visit: Visit, id_: str) -> str:
    found = await review.find(visit.conn, visit.realms, id_)
    rows = await fetch(visit.conn, queries.find_objects, realms=[found["realm"]], ids=[found["subject"]])
    charge = decode(rows[0]["body"]) if rows else None
    if not isinstance(charge, Charge):
        raise NotUnderstood(f"{found['subject']} is no payment that the books know, so no amount of it can be named.")
    return charge.currency


def minor_of(text: str, currency: str) -> int:
    """`12.50` in the currency's own digits as minor units. Raises NotUnderstood: nothing is rounded or guessed."""
    example = str(Money(1250, currency))
    digits = len(example.partition(" ")[0].partition(".")[2])
    whole, point, part = text.strip().partition(".")
    plain = (
        whole.isascii() and whole.isdigit() and len(whole) <= 12 and ((part.isascii() and part.isdigit()) or not point)
    )
    if not plain or len(part) != (digits if point else 0):
        raise NotUnderstood(f"Write the amount as in {example}: digits, without thousands separators.")
    return int(whole + (part or "0" * digits))


async def reject(visit: Visit) -> Gone:
    """A no, with its reason. Raises NotFound, NotUnderstood, ActRefused."""
    reason = _needed(visit, "reason", "Say why: whoever reads it later was not there.")
    done = await review.reject(
        visit.conn,
        visit.realms,
        asked.id_in(visit.path),
        by=visit.operator.name,
        note=reason,
        via="console",
        etag=visit.form.get("etag"),
    )
    return Gone(asked.page_of("reviews", done["id"]), f"You closed {done['id']}: nothing goes back for it.")


async def note(visit: Visit) -> Gone:
    """A note, which changes nothing. Raises NotFound, NotUnderstood, ActRefused."""
    text = _needed(visit, "note", "The note is empty.")
    done = await review.note(
        visit.conn, visit.realms, asked.id_in(visit.path), by=visit.operator.name, text=text, via="console"
    )
    return Gone(asked.page_of("reviews", done["id"]), f"Your note stands on {done['id']}.")


def _needed(visit: Visit, name: str, otherwise: str) -> str:
    text = visit.form.get(name, "").strip()
    if not text:
        raise NotUnderstood(otherwise)
    return text


PAGES = (
    Page("GET", "/reviews", Role.READ, queue),
    Page("GET", "/reviews/{id}", Role.READ, one),
    Page("POST", "/reviews/{id}/approve", Role.DECIDE, approve),
    Page("POST", "/reviews/{id}/reject", Role.DECIDE, reject),
    Page("POST", "/reviews/{id}/note", Role.DECIDE, note),
)
