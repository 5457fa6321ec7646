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
from handlers.terms import Policy, as_written

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
            *_accounts(document),
            ("workers", "\n".join(workers) or "none: start one with `finalsale worker`"),
        ]
    )


def _accounts(document: Document) -> list[tuple[str, object]]:
    """The lines of `status` on customers: standing, disputes, credits, cases, and what people and the app are to hear of."""
    standing, alerts, open_, cases = (document[name] for name in ("standing", "alerts", "chargebacks", "cases"))
    deadline = f", evidence next due by {when(open_['next_due_by'])}" if open_["next_due_by"] else ""
    due = f", the next due by {when(cases['next_due_at'])}" if cases["next_due_at"] else ""
    kinds = [f"{row['kind']}: {credits_in_words(row)}, {row['remaining']} remaining" for row in document["credits"]]
    more = "" if not any(alerts.values()) else ": finalsale alerts list"
    told = "" if document["alerts_are_told"] else " (FINALSALE_ALERT_URLS is not set: nobody is told)"
    if failed := document["alert_routes_failed"]:
        told += f" (nothing gets through over {', '.join(failed)}: finalsale alerts routes)"
    return [
        ("standing", f"{standing['flagged']} flagged, {standing['suspended']} suspended"),
        ("chargebacks", f"{open_['open']} open, {open_['waiting']} wait for a person{deadline}"),
        ("credits", "\n".join(kinds) or "none granted yet"),
        ("cases", f"{cases['open']} open, {cases['overdue']} overdue{due}"),
        ("alerts", f"{', '.join(f'{n} {severity}' for severity, n in alerts.items())}{told}{more}"),
        ("notices", ", ".join(f"{n} {state}" for state, n in document["notices"].items())),
    ]


def credits_in_words(sums: Document) -> str:
    """`500 granted, 20 consumed, 480 forfeited`: only what there is."""
    names = ("granted", "consumed", "expired", "forfeited", "taken_back")
    return ", ".join(f"{sums[name]} {name.replace('_', ' ')}" for name in names if sums[name] or name == "granted")


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
        decision_block(decision)
        say()
    say(f"{len(rows)} decisions." if rows else "No decisions.")


def decision_block(decision: Document, said_above: str | None = None) -> None:
    """One decision with its actions; its reason is left out where it was said above."""
    revision = f", revision {decision['revision']}" if decision["revision"] > 1 else ""
    about = f"{amount(decision['amount'])}  {decision['subject']}" if decision["amount"] else decision["subject"]
    head = f"{decision['verdict'].upper()}  {about}  {when(decision['decided_at'])}"
    console().print(Text(head, style=STYLES.get(decision["verdict"], "") or "bold"))
    rule = f"clause {decision['clause']} ({decision['rule']}), policy {decision['policy_version']}{revision}"
    reason = [] if decision["reason"] == said_above else [("reason", decision["reason"])]
    fields([("decision", f"{decision['id']}  {rule}"), *reason], indent=2)
    actions_block(decision["actions"])


def actions_block(actions: Sequence[Document]) -> None:
    """Actions, one a line: kind, id, state, amount, what Stripe called it, what went wrong."""
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
        about = f"{item['subject']}  {amount(item['amount'])}" if item["amount"] else item["subject"]
        head = f"{item['id']}  {about}  clause {item['clause']} ({item['rule']})  waits {age(item['age_s'])}"
        console().print(Text(head, style="bold"))
        fields([("why", item["reason"])], indent=2)
        actions_block(item["actions"])
        said = [
            f"{a['act']} by {a['by']} {when(a['at'])}" + (f": {a['note']}" if a["note"] else "") for a in item["acts"]
        ]
        two = "  (above the two-person limit: two different names)" if item["two_persons"] else ""
        answers = [("said", "\n".join(said))] if said else []
        if not item["approve"].startswith("finalsale "):
            seen = f"{item['reject']} --note TEXT"
            fields([*answers, ("yes", item["approve"]), ("look", item["look"]), ("seen", seen)], indent=2)
        else:
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
        closed = "Rejected" if document["actions"] else "Closed"
        said = {"approve": "Approved", "reject": closed, "note": "Noted on"}[document["act"]]
        say(f"{said} {document['id']} as {document['by']}.")
    actions_block(document["actions"])
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
    told: dict[str, Any] = msgspec.to_builtins(as_written(policy))
    return told


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
