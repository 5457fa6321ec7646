"""How the story of an id and a customer's time line look to people: the answer first, then what every clause says."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.text import Text

from handlers.decisions import Money
from worker.show import (
    STYLES,
    Document,
    actions_block,
    amount,
    console,
    credits_in_words,
    decision_block,
    fields,
    say,
    table,
    when,
)

MAX_LOTS = 12
"""Lots that a page shows where nobody asked for credits: the newest; `credits show` has all."""


def explain(document: Document) -> None:
    """`finalsale explain`: the answer first, then what it rests on."""
    if (event := document["event"]) is not None:
        say(event["story"])
        say()
    _head(document)
    say(document["reason"])
    if "facts" not in document:
        return
    for command in document.get("commands", ()):
        say(f"  {command}")
    if standing := document.get("standing"):
        say()
        _standing(standing, document.get("agreements", ()))
    if document.get("evidence"):
        say()
        rows = ([e["fact"], e["original"], e["duplicate"]] for e in document["evidence"])
        table(("evidence", "original", "duplicate"), rows, "")
    if document.get("belongs_to"):
        say()
        _payments(document["belongs_to"], document["payments"])
    _sections(document)
    for decision in document.get("decisions", ()):
        say()
        decision_block(decision, said_above=document["reason"])
        for said in decision["acts"]:
            say(f"  {said['act']} by {said['by']} {when(said['at'])}" + (f": {said['note']}" if said["note"] else ""))
        if decision["judged_otherwise_now"]:
            say(
                "  With what is known now the rules say something else; the worker writes it down when the file next changes."
            )
    if not document.get("decisions"):
        actions_block(document.get("actions", ()))
    say()
    _facts(document)


def _head(document: Document) -> None:
    """`charge ch_1: DENY, clause 2, policy 2025-01`, coloured by the verdict."""
    head = f"{document['kind'].replace('_', ' ')} {document['facts']['id']}" if "facts" in document else ""
    if not head:
        return
    if document.get("verdict"):
        head += f": {document['verdict'].upper()}"
    head += f", clause {document['clause']}" if document.get("clause") else ""
    head += f" ({document['rule']})" if document.get("rule") else ""
    head += f", {amount(document['amount'])}" if document.get("amount") else ""
    head += f", policy {document['policy_version']}" if document.get("policy_version") else ""
    head += f", agreement {document['agreement']}" if document.get("agreement") else ""
    console().print(Text(head, style=STYLES.get(document.get("verdict") or "", "") or "bold"))


def _standing(standing: Document, agreements: Sequence[Document], credits_: str = "") -> None:
    holds = [f"{hold['subject']} since {when(hold['since'])}: {hold['cause']}" for hold in standing["holds"]]
    agreed = [
        f"{a['source']}, from {when(a['from'])}"
        + (f" to {when(a['until'])}" if a["until"] else "")
        + ("" if a["in_force"] else " (not in force now)")
        + f": {', '.join(a['overrides'])}"
        for a in agreements
    ]
    rows: list[tuple[str, object]] = [("customer", standing["customer"]), ("standing", standing["standing"])]
    rows += [("holds", "\n".join(holds))] if holds else []
    rows += [("access until", when(standing["access_until"]))]
    rows += [("credits", credits_)] if credits_ else []
    rows += [("agreement (8)", "\n".join(agreed))] if agreed else []
    fields(rows)


def _sections(document: Document) -> None:
    """What the clauses beside 4.3 know about it; a section without rows is left out."""
    lines = [
        [line["price"], f"{line['from']:%Y-%m-%d} to {line['to']:%Y-%m-%d}", amount(line["amount"]), _granted(line)]
        for line in document.get("lines", ())
    ]
    _section(("line", "period", "amount", "credits"), lines)
    access = [
        [a["subscription"], a["way"].replace("_", " "), a["until"], a["cause"]] for a in document.get("access", ())
    ]
    _section(("access", "way", "until", "why"), access)
    trials = [[when(trial["from"]), when(trial["to"])] for trial in document.get("trials", ())]
    _section(("trial from", "to"), trials)
    refunds = [
        [r["id"], amount(r["amount"]), r["status"], _whose(r)]
        for r in document.get("refunds", ())
        if r["id"] != document["id"]
    ]
    _section(("refund", "amount", "status", "whose"), refunds)
    disputes = [
        [d["id"], amount(d["amount"]), d["status"], d["due_by"], "holds" if d["holds"] else "no hold"]
        for d in document.get("disputes", ())
        if d["id"] != document["id"]
    ]
    _section(("dispute", "amount", "status", "evidence due", ""), disputes)
    _lots(document.get("credits", ()))
    entries = [
        [e["recorded_at"], e["effective_at"], f"{e['amount']:+d}", f"{e['kind'].replace('_', ' ')}: {e['cause']}"]
        for e in document.get("entries", ())
    ]
    _section(("recorded", "effective", "credits", "entry"), entries)
    _section(("act", "when", "what"), [[a["id"], a["at"], a["what"]] for a in document.get("acts", ())])
    cases = [[c["id"], c["state"], c["due_at"], f"{c['verdict']} by {c['clause']}"] for c in document.get("cases", ())]
    _section(("case", "state", "due", "the policy says"), cases)
    alerts = [
        [a["severity"], a["kind"].replace("_", " "), a["raised_at"], a["subject"]] for a in document.get("alerts", ())
    ]
    _section(("open alert", "kind", "since", "subject"), alerts)


def _section(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    if rows:
        say()
        table(columns, rows, "")


def _granted(line: Document) -> str:
    return f"{line['credits']} in {line['lot']}" if line["lot"] else "none"


def _whose(refund: Document) -> str:
    if refund["ours"]:
        return f"ours: {refund['action']}, {refund['decision']}"
    return f"by hand: {refund['verdict']} by {refund['clause']}" if refund["verdict"] else "by hand or the network"


def _lots(lots: Sequence[Document]) -> None:
    """Lots with what became of them, the newest where there are many."""
    shown = sorted(lots, key=lambda lot: (lot["granted_at"], lot["id"]))[-MAX_LOTS:]
    rows = [[lot["id"], lot["ends_at"], lot["remaining"], credits_in_words(lot)] for lot in shown]
    _section(("credits", "end", "left", "what became of them"), rows)
    if len(lots) > len(shown):
        say(f"... and {len(lots) - len(shown)} older lots: finalsale credits show CUSTOMER")


def _facts(document: Document) -> None:
    facts = document["facts"]
    simple = ((k, v) for k, v in facts.items() if not isinstance(v, (list, tuple, dict)) and k not in ("id", "as_of"))
    fields(("customer", document["customer"]) if k == "customer" else _readable(k, v, facts) for k, v in simple)


def _readable(name: str, value: object, facts: Document) -> tuple[str, object]:
    """A field of a Stripe object as people read it: amounts with their currency, unix seconds as times."""
    if name.endswith("_minor") and isinstance(value, int) and facts.get("currency"):
        return name.removesuffix("_minor").replace("_", " "), Money(value, facts["currency"])
    if isinstance(value, int) and not isinstance(value, bool) and value > 10**8 and not name.endswith("_minor"):
        return name.replace("_", " "), datetime.fromtimestamp(value, UTC)
    return name.replace("_", " "), value


def _payments(payments: Sequence[Document], answers: Sequence[Document]) -> None:
    said = {a["charge"]: f"{a['verdict']} ({a['clause']})" for a in answers if "charge" in a}
    columns = ("paid at", "amount", "charge", *(("answer",) if said else ()), "for")
    rows = []
    for p in payments:
        periods = [f"{x['price'] or 'item'} {x['from']:%Y-%m-%d} to {x['to']:%Y-%m-%d}" for x in p["lines"]]
        paid_for = [p["invoice"] or "no invoice", *([p["subscription"]] if p["subscription"] else []), *periods]
        back = [f"{amount(p['refunded'])} given back"] if p["refunded"]["minor"] else []
        contest = [f"dispute: {p['dispute']}"] if p["dispute"] != "none" else []
        answer = [said.get(p["charge"], "-")] if said else []
        rows.append([p["paid_at"], amount(p["paid"]), p["charge"], *answer, ", ".join([*paid_for, *back, *contest])])
    table(columns, rows, "No payments.")


def customer(document: Document) -> None:
    """`finalsale customers show`."""
    console().print(Text(document["id"], style="bold"))
    if document["linked_customers"]:
        say(f"Perhaps the same person as {', '.join(document['linked_customers'])} (by id in the app, e-mail or card).")
    say()
    credits_ = document["credits"]
    kinds = [f"{row['kind']}: {credits_in_words(row)}, {row['remaining']} left" for row in credits_["kinds"]]
    available = "\n".join([f"{credits_['available']} available", *kinds])
    _standing(document["standing"], document["agreements"], available)
    for alert in document["alerts"]:
        say(f"{alert['severity']}: {alert['sentence']}")
    say()
    _payments(document["payments"], [p["answer"] for p in document["payments"]])
    say()
    columns = ("subscription", "status", "began", "items")
    subscriptions = document["subscriptions"]
    items = (", ".join(f"{i['quantity'] or 1} x {i['price']}" for i in s["items"]) for s in subscriptions)
    table(
        columns,
        ([s["id"], s["status"], s["created"], i] for s, i in zip(subscriptions, items, strict=True)),
        "No subscriptions.",
    )
    _sections({"id": document["id"], "access": document["access"], "cases": document["cases"]})
    say()
    table(
        ("when", "id", "what"), ([e["at"], e["id"], e["what"]] for e in document["timeline"]), "Nothing happened yet."
    )
