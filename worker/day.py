"""The merchant's day that `finalsale run` plays against the sandbox: played to its rest, shown, checked and reported."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from handlers.decisions import Decision, Money, Verdict
from reconcile.truth import Check, Expected, Outcome, RefundAtStripe, RefundDecided, compare_refunds, compare_truth
from worker.db import Connection, Pool, connection
from worker.errors import FinalsaleError

if TYPE_CHECKING:  # `worker.run` starts the processes and then plays the day: it imports this room
    from worker.run import DayOptions, Run

DAY_TIMEOUT_S = 600.0
_LONG_ID = re.compile(r"\b[a-z]+_[0-9A-Za-z]{10,}")
REDRAW_S = 0.25


async def play_day(run: Run, options: DayOptions) -> AsyncIterator[dict[str, Any]]:
    """Start the day, and yield its state until every event is delivered, worked off and acted upon.

    Raises FinalsaleError when the day fails or does not come to an end.
    """
    await run.sandbox.ask("day", {"customers": options.customers, "seed": options.seed})
    deadline = time.monotonic() + DAY_TIMEOUT_S
    quiet = 0
    while time.monotonic() < deadline:
        day = await run.sandbox.ask("day")
        if day["state"] == "failed":
            raise FinalsaleError(f"the sandbox's day failed: {day.get('error')}")
        yield day
        if day["state"] == "done":
            pending = (await run.sandbox.ask("flush", {"timeout_s": 1}))["pending"]
            quiet = quiet + 1 if not pending and await _is_quiet(run.pool) else 0
            if quiet >= 3:  # a refund's own events come after it: quiet must be seen more than once
                return
        await asyncio.sleep(REDRAW_S)
    raise FinalsaleError(f"the day did not come to rest within {DAY_TIMEOUT_S:.0f} s; see {run.deployment.log}")


async def _is_quiet(pool: Pool) -> bool:
    try:
        async with connection(pool) as conn:
            return not await conn.fetchval(
                """select exists (select 1 from inbox where state = 'waiting')
                       or exists (select 1 from actions where state in ('planned', 'sending'))
                       or exists (select 1 from lookups where state = 'waiting' and kind = 'balance')"""
            )
    except FinalsaleError:
        return False


class Report(msgspec.Struct, kw_only=True):
    """What a day came to; the document of `run --once --json`."""

    events: int
    payments: int
    duplicates: int
    refunds: list[dict[str, Any]]
    reviews: list[dict[str, Any]]
    left_alone: list[dict[str, Any]]
    alerts: list[dict[str, Any]]
    """What people should hear of: open alerts, the most severe first."""
    accounts: dict[str, Any]
    """How many customers are in which standing, and the sums of credits by kind of lot."""
    checks: list[Check]
    seconds: float

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


async def report(run: Run) -> Report:
    """Our books against the sandbox's, and both against the truth about the seeded cases."""
    books = await run.sandbox.ask("books")
    deliveries = (await run.sandbox.ask("deliveries"))["deliveries"]
    truth = msgspec.convert((await run.sandbox.ask("day"))["truth"], list[Expected])
    async with connection(run.pool) as conn:
        decisions = [
            (row["id"], msgspec.json.decode(row["body"], type=Decision))
            for row in await conn.fetch(
                "select distinct on (realm, subject) id, body from decisions order by realm, subject, revision desc"
            )
        ]
        actions = await conn.fetch("select * from actions order by created_at, id")
        states = await _inbox_states(conn)
        known = {row["event_id"] for row in await conn.fetch("select event_id from inbox")}
        alerts = [dict(row) for row in await conn.fetch(_OPEN_ALERTS)]
        accounts = await _accounts(conn)
    payments = [c for c in books["objects"].get("charge", []) if c["status"] == "succeeded" and c["captured"]]
    refunds = [_refund_row(row, decisions) for row in actions if row["kind"] == "refund" and row["state"] == "sent"]
    checks = [
        *_event_checks(deliveries, known, states),
        *compare_refunds(
            [
                RefundDecided(
                    action=row["action"],
                    charge=row["duplicate"],
                    original=row["original"],
                    amount_minor=row["amount"]["minor"],
                    currency=row["amount"]["currency"],
                    stripe_id=row["stripe_id"],
                )
                for row in refunds
            ],
            [_at_stripe(refund) for refund in books["objects"].get("refund", [])],
        ),
        *compare_truth(truth, _outcomes(decisions, actions, run.settings.refunds)),
        _told_by_hand(books["objects"], truth, decisions, alerts),
        _credits_close(accounts),
    ]
    return Report(
        events=len(known),
        payments=len(payments),
        duplicates=sum(1 for _, d in decisions if d.verdict is Verdict.REFUND),
        refunds=refunds,
        reviews=[_row(id_, d) for id_, d in decisions if d.verdict is Verdict.REVIEW],
        left_alone=_left_alone(truth, decisions),
        alerts=alerts,
        accounts=accounts,
        checks=checks,
        seconds=round(time.monotonic() - run.began, 1),
    )


_OPEN_ALERTS = """select kind, severity, customer, subject, sentence, raised_at from alerts where resolved_at is null
    order by array_position(array['critical', 'warning', 'note'], severity), raised_at, cause"""


_GONE = ("consumed", "expired", "forfeited", "taken_back", "remaining")
"""What becomes of granted credits."""


async def _accounts(conn: Connection) -> dict[str, Any]:
    """Standing and credits of everybody: what moved by the entries, what remains by the lots."""
    standing = {r["standing"]: r["n"] for r in await conn.fetch("select standing, count(*) n from accounts group by 1")}
    moved = await conn.fetch(
        """select l.kind, e.kind as what, sum(e.amount)::bigint as credits
           from entries e join lots l on l.realm = e.realm and l.id = e.lot group by l.kind, e.kind"""
    )
    lots = await conn.fetch("select kind, sum(remaining)::bigint as remaining from lots group by kind order by kind")
    credits_ = {r["kind"]: dict.fromkeys(("granted", *_GONE), 0) | {"remaining": r["remaining"]} for r in lots}
    for row in moved:
        credits_[row["kind"]][row["what"]] = row["credits"] if row["what"] == "granted" else -row["credits"]
    return {
        "standing": {name: standing.get(name, 0) for name in ("good", "flagged", "suspended")},
        "credits": [{"kind": kind, **sums} for kind, sums in credits_.items()],
    }


def _credits_close(accounts: dict[str, Any]) -> Check:
    wrong = [row["kind"] for row in accounts["credits"] if row["granted"] != sum(row[name] for name in _GONE)]
    total = {name: sum(row[name] for row in accounts["credits"]) for name in ("granted", *_GONE)}
    sums = " + ".join(f"{total[name]} {name.replace('_', ' ')}" for name in _GONE)
    return Check(
        name="credits close",
        ok=not wrong,
        figure=f"wrong for {', '.join(wrong)}" if wrong else f"{total['granted']} granted = {sums}",
    )


def _told_by_hand(
    objects: dict[str, Any],
    truth: list[Expected],
    decisions: list[tuple[str, Decision]],
    alerts: list[dict[str, Any]],
) -> Check:
    """Refunds at Stripe that bear no action of ours, against those that clause 2, 6 or 4.3 speaks of, and the alerts."""
    prevented = {d["charge"] for d in objects.get("dispute", []) if d["status"] == "prevented"}
    rehearsed = {c["id"] for c in objects.get("customer", []) if c.get("test_clock")}
    charges = {c["id"]: c for c in objects.get("charge", [])}
    by_hand = {
        refund["id"]: refund["charge"]
        for refund in objects.get("refund", [])
        if "finalsale_action" not in (refund["metadata"] or {})
        and refund["status"] not in ("failed", "canceled")
        and charges[refund["charge"]]["captured"]
        and refund["charge"] not in prevented
        and charges[refund["charge"]]["customer"] not in rehearsed
    }
    said = {d.subject: d for _, d in decisions if d.subject.startswith(("re_", "pyr_"))}
    alerted = [alert["subject"] for alert in alerts if alert["kind"] == "out_of_policy_refund"]
    no_copy = {row.duplicate for row in truth if row.rule == "6"}
    seeded = sorted(refund for refund, charge in by_hand.items() if charge in no_copy)
    wrong = sorted(set(said) ^ set(by_hand)) + sorted(set(alerted) ^ set(seeded))
    outside = sum(1 for d in said.values() if d.verdict is Verdict.DENY)
    figure = f"{len(by_hand)} by hand, {len(said)} told, {outside} out of policy, {len(alerted)} alerts"
    ok = not wrong and outside == len(seeded) == len(alerted)
    return Check(
        name="every refund by hand told, none else", ok=ok, figure=f"{figure}; wrong: {wrong[:5]}" if wrong else figure
    )


async def _inbox_states(conn: Connection) -> dict[str, int]:
    rows = await conn.fetch("select state, count(*) as events from inbox group by state")
    return {row["state"]: row["events"] for row in rows}


def _event_checks(deliveries: list[dict[str, Any]], known: set[str], states: dict[str, int]) -> list[Check]:
    acknowledged = {d["event"] for d in deliveries if d["state"] == "delivered" and not d["thin"]}
    made = {d["event"] for d in deliveries}
    lost = sorted(acknowledged - known)
    return [
        Check(
            name="no acknowledged event lost",
            ok=not lost and acknowledged == made,
            figure=f"{len(made)} made, {len(acknowledged)} acknowledged, {len(acknowledged & known)} stored",
        ),
        Check(
            name="every event worked off",
            ok=set(states) <= {"done"},
            figure=", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none",
        ),
    ]


def _at_stripe(refund: dict[str, Any]) -> RefundAtStripe:
    return RefundAtStripe(
        id=refund["id"],
        charge=refund["charge"],
        amount_minor=refund["amount"],
        currency=refund["currency"],
        status=refund["status"],
        action=(refund["metadata"] or {}).get("finalsale_action"),
    )


def _refund_row(row: Any, decisions: list[tuple[str, Decision]]) -> dict[str, Any]:
    decision = next(d for _, d in decisions if d.subject == row["decision_subject"])
    return {
        "customer": row["customer"],
        "original": decision.original,
        "duplicate": row["subject"],
        "amount": {"minor": row["amount_minor"], "currency": row["currency"]},
        "clause": decision.clause,
        "rule": decision.rule,
        "reason": decision.reason,
        "stripe_id": row["stripe_id"],
        "action": row["id"],
        "decision": row["decision_id"],
    }


def _row(id_: str, decision: Decision) -> dict[str, Any]:
    return {
        "id": id_,
        "customer": decision.customer,
        "subject": decision.subject,
        "original": decision.original,
        "amount": msgspec.to_builtins(decision.amount),
        "clause": decision.clause,
        "rule": decision.rule,
        "reason": decision.reason,
    }


def _left_alone(truth: list[Expected], decisions: list[tuple[str, Decision]]) -> list[dict[str, Any]]:
    """Every seeded look-alike with why nothing was done: a decision's words, or that nothing pointed to a copy."""
    none = {d.subject: (id_, d) for id_, d in decisions if d.verdict is Verdict.NONE}
    rows = []
    for case in truth:
        if case.expect == "none":
            id_, decision = none.pop(case.duplicate or "", (None, None))
            said = decision is not None and not decision.reason.startswith("Withdrawn")
            rows.append(
                {
                    "id": id_,
                    "case": case.case,
                    "subject": case.duplicate,
                    "original": case.original,
                    "rule": case.rule,
                    "reason": decision.reason if decision is not None and said else _besides(case, decisions),
                }
            )
    rest = [_row(id_, d) | {"case": ""} for id_, d in none.values() if not d.reason.startswith("Withdrawn")]
    return [*rows, *rest]


def _besides(case: Expected, decisions: list[tuple[str, Decision]]) -> str:
    """What another clause says of a payment that nothing pointed to as a copy."""
    others = [d for _, d in decisions if d.clause in ("2, 6", "7") and case.duplicate in _named(d)]
    more = "".join(f" By clause {d.clause}: {d.reason}" for d in others)
    return f"Nothing pointed to a copy.{more}"


def _named(decision: Decision) -> set[str | None]:
    """The payments that a decision is about: its own, and those that a dispute's evidence names."""
    return {decision.duplicate, *(e.original for e in decision.evidence if e.fact.startswith("charge and "))}


def _outcomes(decisions: list[tuple[str, Decision]], actions: list[Any], refunds: str) -> dict[str, Outcome]:
    """What was sent, and with FINALSALE_REFUNDS=review what a proved duplicate has ready for a person's yes."""
    proved = {d.subject for _, d in decisions if d.verdict is Verdict.REFUND and refunds == "review"}
    sent: dict[tuple[str, str], Any] = {
        (a["decision_subject"], a["kind"]): a
        for a in actions
        if a["state"] == "sent" or (a["state"] == "proposed" and a["decision_subject"] in proved)
    }
    found = {}
    for _, decision in decisions:
        subject = decision.subject
        refund, cancel = sent.get((subject, "refund")), sent.get((subject, "cancel_subscription"))
        found[subject] = Outcome(
            verdict=str(decision.verdict),
            original=decision.original,
            refunded_minor=refund["amount_minor"] if refund else 0,
            canceled=cancel["subject"] if cancel else None,
            reversed=(subject, "reverse_balance_credit") in sent,
        )
    return found


# what a person sees ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def screen(console: Console, *, live: bool) -> Iterator[Callable[[Group], None]]:
    """What draws a picture over the last one; where nobody watches (not `live`), it draws nothing."""
    if not live:
        yield lambda drawn: None
        return
    with Live(console=console, auto_refresh=False, transient=True) as view:
        yield lambda drawn: view.update(drawn, refresh=True)


async def picture(run: Run, day: dict[str, Any]) -> Group:
    """One calm view: how far the day is, what arrived, what was decided last."""
    try:
        async with connection(run.pool) as conn:
            inbox = await _inbox_states(conn)
            last = await conn.fetch(
                "select body from decisions where verdict <> 'none' order by decided_at desc limit 8"
            )
            sent = await conn.fetchval("select count(*) from actions where kind = 'refund' and state = 'sent'")
    except FinalsaleError:
        return Group(Text("Postgres is away; waiting"))
    done = int(day["progress"] * 40)
    head = Text.assemble(
        ("A merchant's day  ", "bold"), "█" * done, ("░" * (40 - done), "dim"), f"  {day['progress']:.0%}\n"
    )
    head.append(
        f"{sum(inbox.values()):>6} events arrived   {inbox.get('waiting', 0):>4} waiting   {sent:>3} refunds made\n",
    )
    table = Table(box=None, padding=(0, 1), show_header=False)
    for row in last:
        decision = msgspec.json.decode(row["body"], type=Decision)
        colour = "green" if decision.verdict is Verdict.REFUND else "yellow"
        table.add_row(
            Text(f"{decision.verdict:>6}", style=colour),
            decision.rule,
            str(decision.amount or ""),
            _short(_because(decision.reason), 70),
        )
    return Group(head, table)


def print_report(console: Console, done: Report) -> None:
    """The report as tables: what was refunded, what waits for a person, what was left alone, and the checks."""
    console.print(
        f"\n[bold]{done.events} events, {done.payments} payments, {done.duplicates} duplicates, {done.seconds} s[/bold]\n"
    )
    table = _table("Refunded: exactly the duplicate part, exactly once")
    for column in ("customer", "original", "duplicate", "amount", "clause"):
        table.add_column(column, justify="right" if column == "amount" else "left", no_wrap=True)
    table.add_column("why", no_wrap=True)
    table.add_column("refund", no_wrap=True)
    room = max(24, console.width - 64)
    for row in done.refunds:
        ids = [_tail(row[name]) for name in ("customer", "original", "duplicate")]
        clause = f"{row['clause']} {row['rule']}"
        table.add_row(
            *ids, str(Money(**row["amount"])), clause, _short(_because(row["reason"]), room), _tail(row["stripe_id"])
        )
    console.print(table)
    table = _table("Waiting for a person")
    for column in ("about", "amount", "clause", "why"):
        table.add_column(column, justify="right" if column == "amount" else "left", no_wrap=column != "why")
    for row in done.reviews:
        amount = str(Money(**row["amount"])) if row["amount"] else ""
        clause = f"{row['clause']} {row['rule']}".replace("_", " ")
        table.add_row(_tail(row["subject"]), amount, clause, _because(row["reason"]))
    console.print(table)
    table = _table("Left alone")
    for column in ("about", "look-alike", "why"):
        table.add_column(column, no_wrap=column == "about")
    for row in done.left_alone:
        alike = row["case"] or f"{row['clause']} {row['rule']}".replace("_", " ")
        table.add_row(_tail(row["subject"]), alike, _because(row["reason"]))
    console.print(table)
    _print_accounts(console, done, room)
    console.print("\n[bold]Checked against the sandbox's own books[/bold]")
    for check in done.checks:
        console.print(
            f" {'[green]ok[/green]  ' if check.ok else '[red]FAIL[/red]'} {check.name}  [dim]{check.figure}[/dim]"
        )


def _print_accounts(console: Console, done: Report, room: int) -> None:
    """What people were told, and where standing and credits stand."""
    table = _table("Told to people")
    for column in ("severity", "kind", "about", "what"):
        table.add_column(column, no_wrap=column != "what")
    for alert in done.alerts:
        kind = alert["kind"].replace("_", " ")
        said = _LONG_ID.sub(lambda id_: _tail(id_[0]), alert["sentence"].replace(f" {alert['subject']}", ""))
        table.add_row(alert["severity"], kind, _tail(alert["subject"]), _short(said, 3 * room))
    console.print(table)
    console.print("\n[bold]Accounts[/bold]")
    standing = ", ".join(f"{n} {name}" for name, n in done.accounts["standing"].items())
    console.print(f" standing: {standing}")
    for row in done.accounts["credits"]:
        sums = " + ".join(f"{row[name]} {name.replace('_', ' ')}" for name in _GONE if row[name])
        console.print(f" {row['kind']} credits: {row['granted']} granted = {sums or 'nothing left'}")


def _table(title: str) -> Table:
    return Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, padding=(0, 1), pad_edge=False)


def _because(reason: str) -> str:
    """The part of a reason that tells one row of a table from the next."""
    for mark in ("A person must decide: ", "Nothing goes back: ", ": "):
        if mark in reason:
            return reason.partition(mark)[2]
    return reason


def _tail(id_: str | None) -> str:
    """The end of an id: short enough for a table, long enough to be found."""
    return f"…{id_[-7:]}" if id_ else ""


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
