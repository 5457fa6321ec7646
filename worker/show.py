"""How documents look: one JSON document for programs, calm tables and sentences for people. Times are UTC."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from handlers.decisions import Money
from handlers.terms import Duration, Policy

WIDTH_WITHOUT_TERMINAL = 200
MAX_REFUSALS_SHOWN = 20
STYLES = {
    **dict.fromkeys(("refund", "sent", "won"), "green"),
    **dict.fromkeys(("review", "proposed", "quarantined", "waiting", "planned", "sending"), "yellow"),
    **dict.fromkeys(("deny", "dead", "failed", "paused"), "red"),
}

Document = Mapping[str, Any]


def json_document(document: Any) -> None:
    """Exactly one JSON document on standard output."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")


def console() -> Console:
    """Standard output, as wide as the terminal; without markup, so that nothing in the books can style itself."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else WIDTH_WITHOUT_TERMINAL
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)


def amount(value: Document | None) -> str:
    """`29.00 USD`, or a dash."""
    return "-" if value is None else str(Money(value["minor"], value["currency"]))


def when(value: datetime | None) -> str:
    """`2026-01-31 12:00:00`, UTC, or a dash."""
    return "-" if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def age(seconds: int | None) -> str:
    """A length of time as a person says it: `42 s`, `15 min`, `3 h`, `12 days`."""
    if seconds is None:
        return "-"
    for unit_s, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds // unit_s} {name}"
    return f"{seconds} s"


def plain(value: object) -> Text:
    """Any value as text that cannot move the cursor: control characters are shown, words of state are coloured."""
    text = "-" if value is None or value == "" else when(value) if isinstance(value, datetime) else str(value)
    clean = "".join(c if c == "\n" or not unicodedata.category(c).startswith("C") else f"\\u{ord(c):04x}" for c in text)
    return Text(clean, style=STYLES.get(clean, ""))


def say(sentence: object = "") -> None:
    """One sentence on standard output, wrapped at words."""
    console().print(plain(sentence) if sentence != "" else "")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], nothing: str) -> None:
    """A table without lines between its rows; ids and amounts stay whole, the last column takes what is left and wraps."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    out, cells = console(), [[plain(value) for value in row] for row in rows]
    widths = [max((cell.cell_len for cell in column), default=0) + 2 for column in zip(*cells, strict=True)][:-1]
    fits = sum(widths) + 12 <= out.width  # otherwise cells are folded: an id or an amount may break, but is never cut
    for index, name in enumerate(columns):
        last = index == len(columns) - 1
        justify: Literal["right", "left"] = "right" if name == "amount" else "left"
        drawn.add_column(name, overflow="fold", no_wrap=fits and not last, justify=justify)
    for row in cells:
        drawn.add_row(*row)
    out.print(drawn if drawn.row_count else plain(nothing))


def fields(pairs: Iterable[tuple[str, object]], indent: int = 0) -> None:
    """Names and values, one a line, the values aligned and wrapped."""
    drawn = Table.grid(padding=(0, 2, 0, 0))
    drawn.add_column(no_wrap=True, style="bold")
    drawn.add_column(overflow="fold")
    for name, value in pairs:
        drawn.add_row(Text(" " * indent + name), plain(value))
    console().print(drawn)


# whole pages -------------------------------------------------------------------------------------------------------------


def status(document: Document) -> None:
    """`finalsale status`."""
    paused, inbox, reviews = document["refunds_paused"], document["inbox"], document["reviews"]
    oldest = f", the oldest for {age(inbox['oldest_waiting_s'])}" if inbox["waiting"] else ""
    refunds = {"auto": "sent by themselves", "review": "wait for a person"}[document["refunds"]]
    if paused["on"]:
        refunds += f"; PAUSED by {paused['by']} since {when(paused['since'])}" + (
            f" ({paused['reason']})" if paused["reason"] else ""
        )
    counted = [
        f"{n} {state}"
        for state, n in inbox.items()
        if state in ("done", "ignored", "quarantined", "dead") and (n or state == "done")
    ]
    waiting = f", the oldest for {age(reviews['oldest_s'])}: finalsale review list" if reviews["waiting"] else ""
    actions = [
        f"{kind.replace('_', ' ')}: {', '.join(f'{n} {state}' for state, n in states.items())}"
        for kind, states in document["actions"].items()
    ]
    money = [f"{amount(row)} in {row['refunds']}" for row in document["refunded"]]
    workers = [
        f"{w['role']} {w['detail']}, {'seen' if w['alive'] else 'SILENT since'} {when(w['seen_at'])}"
        for w in document["workers"]
    ]
    fields(
        [
            ("mode", document["mode"]),
            ("policy", document["policy_version"]),
            ("refunds", refunds),
            ("inbox", f"{inbox['waiting']} waiting{oldest}; {', '.join(counted)}"),
            ("decisions", ", ".join(f"{n} {verdict}" for verdict, n in document["decisions"].items())),
            ("reviews", f"{reviews['waiting']} waiting{waiting}"),
            ("actions", "\n".join(actions) or "none yet"),
            ("refunded", "\n".join(money) or "nothing yet"),
            ("workers", "\n".join(workers) or "none: start one with `finalsale worker`"),
        ]
    )


def events(rows: Sequence[Document]) -> None:
    """`finalsale events list`."""
    columns = ("event", "received", "state", "type", "error")
    table(columns, ([e["id"], e["received_at"], e["state"], e["type"], e["error"]] for e in rows), "No events.")


def event(document: Document) -> None:
    """`finalsale events show`."""
    fields((name, value) for name, value in document.items() if name != "payload")
    if "payload" in document:
        say()
        say(msgspec.json.format(msgspec.json.encode(document["payload"]), indent=2).decode())


def decisions(rows: Sequence[Document]) -> None:
    """`finalsale decisions`: one block each, for the reason is what people come for."""
    for decision in rows:
        _decision(decision)
        say()
    say(f"{len(rows)} decisions." if rows else "No decisions.")


def _decision(decision: Document, said_above: str | None = None) -> None:
    revision = f", revision {decision['revision']}" if decision["revision"] > 1 else ""
    head = f"{decision['verdict'].upper()}  {amount(decision['amount'])}  {decision['subject']}  {when(decision['decided_at'])}"
    console().print(Text(head, style=STYLES.get(decision["verdict"], "") or "bold"))
    rule = f"clause {decision['clause']} ({decision['rule']}), policy {decision['policy_version']}{revision}"
    reason = [] if decision["reason"] == said_above else [("reason", decision["reason"])]
    fields([("decision", f"{decision['id']}  {rule}"), *reason], indent=2)
    _actions(decision["actions"])


def _actions(actions: Sequence[Document]) -> None:
    rows = []
    for action in actions:
        told = [
            action["id"],
            action["state"],
            amount(action["amount"]) if action["amount"] else "",
            action["stripe_id"] or "",
        ]
        line = "  ".join(part for part in told if part)
        rows.append((action["kind"].replace("_", " "), line + (f"\n{action['error']}" if action.get("error") else "")))
    if rows:
        fields(rows, indent=2)


def waiting(items: Sequence[Document]) -> None:
    """`finalsale review list`."""
    for item in items:
        head = f"{item['id']}  {item['subject']}  {amount(item['amount'])}  waits {age(item['age_s'])}"
        console().print(Text(head, style="bold"))
        fields([("why", item["reason"])], indent=2)
        _actions(item["actions"])
        said = [
            f"{a['act']} by {a['by']} {when(a['at'])}" + (f": {a['note']}" if a["note"] else "") for a in item["acts"]
        ]
        two = "  (above the two-person limit: two different names)" if item["two_persons"] else ""
        answers = [("said", "\n".join(said))] if said else []
        fields([*answers, ("yes", item["approve"] + two), ("no", item["reject"])], indent=2)
        say()
    say(f"{len(items)} waiting, the longest first." if items else "Nothing waits for a person.")


def act(document: Document) -> None:
    """What `review approve`, `reject` and `note` did."""
    if document["act"] == "approve" and not document["planned"]:
        say(
            f"Approved {document['id']} as {document['by']}. It needs a second person: another name has to approve it too."
        )
    else:
        said = {"approve": "Approved", "reject": "Rejected", "note": "Noted on"}[document["act"]]
        say(f"{said} {document['id']} as {document['by']}.")
    _actions(document["actions"])
    if document["act"] == "approve" and document["refunds_paused"]:
        say("Refunds are paused: nothing is sent before `finalsale refunds resume --by NAME`.")


def refunds(rows: Sequence[Document]) -> None:
    """`finalsale refunds list`."""
    columns = ("created", "amount", "charge", "state", "refund at Stripe", "rule", "customer")
    drawn = (
        [
            *(r["created_at"], amount(r["amount"]), r["charge"], r["state"]),
            f"{r['stripe_id']} {r['stripe_status'] or ''}".strip() if r["stripe_id"] else None,
            f"{r['clause']} {r['rule']}",
            r["customer"],
        ]
        for r in rows
    )
    table(columns, drawn, "No refunds yet.")


def explain(document: Document) -> None:
    """`finalsale explain`: the answer first, then what it rests on."""
    if (event := document["event"]) is not None:
        say(event["story"])
        say()
    if document.get("verdict"):
        head = f"{document['kind'].replace('_', ' ')} {document['facts']['id']}: {document['verdict'].upper()}"
        head += f", clause {document['clause']}" if document["clause"] else ""
        head += f" ({document['rule']})" if document.get("rule") else ""
        head += f", {amount(document['amount'])}" if document["amount"] else ""
        console().print(Text(head, style=STYLES.get(document["verdict"], "") or "bold"))
    say(document["reason"])
    if "facts" not in document:
        return
    if document.get("evidence"):
        say()
        rows = ([e["fact"], e["original"], e["duplicate"]] for e in document["evidence"])
        table(("evidence", "original", "duplicate"), rows, "")
    if document.get("belongs_to"):
        say()
        _payments(document["belongs_to"], document["payments"])
    for decision in document.get("decisions", ()):
        say()
        _decision(decision, said_above=document["reason"])
        for said in decision["acts"]:
            say(f"  {said['act']} by {said['by']} {when(said['at'])}" + (f": {said['note']}" if said["note"] else ""))
        if decision["judged_otherwise_now"]:
            say(
                "  With what is known now the rules say something else; the worker writes it down when the file next changes."
            )
    if not document.get("decisions"):
        _actions(document.get("actions", ()))
    say()
    simple = (
        (k, v)
        for k, v in document["facts"].items()
        if not isinstance(v, (list, tuple, dict)) and k not in ("id", "as_of")
    )
    fields(
        ("customer", document["customer"]) if k == "customer" else _readable(k, v, document["facts"]) for k, v in simple
    )


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
    say()
    table(
        ("when", "id", "what"), ([e["at"], e["id"], e["what"]] for e in document["timeline"]), "Nothing happened yet."
    )


def imported(document: Document) -> None:
    """What `events import` did."""
    say(f"{document['read']} events read: {document['new']} new, {document['known']} known already.")
    if document["ignored"]:
        say(f"{document['ignored']} of them are of the other mode (live or test) and are ignored.")
    refused = document["refused"]
    for one in refused[:MAX_REFUSALS_SHOWN]:
        say(f"{one['at']}: {one['why']}")
    if len(refused) > MAX_REFUSALS_SHOWN:
        say(f"... and {len(refused) - MAX_REFUSALS_SHOWN} more that are no events.")


def policy_document(policy: Policy) -> dict[str, Any]:
    """The whole policy as the file writes it: durations as `15m`, money in minor units."""
    told: dict[str, Any] = msgspec.to_builtins(_written(policy))
    return told


def _written(value: Any) -> Any:
    match value:
        case Duration():
            return _duration(value)
        case msgspec.Struct():
            return {f.encode_name: _written(getattr(value, f.name)) for f in msgspec.structs.fields(value)}
        case dict():
            return {key: _written(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_written(inner) for inner in value]
        case _:
            return value


def _duration(seconds: int) -> str:
    for unit_s, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds and seconds % unit_s == 0:
            return f"{seconds // unit_s}{letter}"
    return f"{seconds}s"


def policy(document: Document) -> None:
    """`finalsale policy show`."""
    say(f"The policy of {document['merchant']['name']}")
    for version in document["version"]:
        say()
        say(f"Version {version['id']}, in force from {version['in_force_from']}")
        for name in ("duplicates", "refunds", "chargebacks", "credits", "cases"):
            say(f"  {name}")
            fields(((term, _term(value)) for term, value in version[name].items()), indent=4)
    for agreement in document["agreement"]:
        say()
        say(f"Agreement with {agreement['customer']} ({agreement['source']}), from {agreement['from']}")
        fields(((term, _term(value)) for term, value in agreement["overrides"].items()), indent=4)


def _term(value: Any) -> str:
    match value:
        case dict():
            return ", ".join(f"{key} {_term(inner)}" for key, inner in value.items()) or "none"
        case list() | tuple():
            return ", ".join(map(str, value)) or "none"
        case bool():
            return "yes" if value else "no"
        case _:
            return str(value)


def checked_policy(document: Document) -> None:
    """`finalsale policy check` of a good file."""
    say(f"{document['file']} is good: {len(document['versions'])} versions, {document['agreements']} agreements.")
    rows = (
        [v["id"], v["in_force_from"], "in force" if v["id"] == document["in_force"] else ""]
        for v in document["versions"]
    )
    table(("version", "in force from", ""), rows, "")


def policy_diff(document: Document) -> None:
    """`finalsale policy diff`."""
    say(
        f"{document['was']} -> {document['would_be']}, over {document['persons']} persons whose files changed since {when(document['since'])}\n"
    )
    terms = [(row["term"], row["was"], row["would_be"]) for row in document["terms"]]
    table(("term", "was", "would be"), terms, "Both versions say the same.")
    say()
    table(
        ("customer", "clause", "subject", "was", "would be"),
        [(c["customer"], c["clause"], c["subject"], c["was"], c["would_be"]) for c in document["changes"]],
        "Nothing in that history would have come out differently.",
    )
    for name, label in (("was", "refunds as it was"), ("would_be", "refunds as it would be")):
        say(f"{label}: " + (", ".join(amount(sum_) for sum_ in document["refunds"][name]) or "none"))
    told = document["tell"]
    if told:
        first = ", ".join(told[:10]) + (f" and {len(told) - 10} more (--json lists all)" if len(told) > 10 else "")
        say(f"To be told by e-mail (clause 9), because their subscription runs: {len(told)} customers: {first}")
    else:
        say("Nobody needs to be told.")
