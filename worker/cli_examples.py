"""What `--help` teaches beside the options: for each command what it changes, an example, and exit codes where they matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cyclopts import App

NOTHING = "nothing"


class Taught(NamedTuple):
    """`changes`: what is different afterwards. `codes`: what the exit code says, where it is more than 0 or 1."""

    changes: str
    example: str
    codes: str = ""

    def text(self) -> str:
        """The lines below a command's options."""
        lines = [f"Changes: {self.changes}.", f"Example: finalsale {self.example}"]
        return "\n\n".join([*lines, *([f"Exit code: {self.codes}."] if self.codes else [])])


_RUN_CODES = "0 all is in order, 1 a person must act, 2 not everything was read"

TAUGHT: dict[str, Taught] = {
    "run": Taught(
        "the books under FINALSALE_STATE_DIR, or DATABASE_URL's; against the real Stripe it may refund",
        "run --once --customers 50",
    ),
    "web": Taught("the inbox: each delivery is one row", "web"),
    "worker": Taught("decisions, accounts and actions; sends refunds that are due", "worker"),
    "migrate": Taught("the schema; only ever adds", "migrate"),
    "reconcile": Taught(
        "the books, unless --dry-run; nothing at Stripe", "reconcile --since 90d --dry-run", _RUN_CODES
    ),
    "doctor": Taught(
        "nothing, unless --fix-endpoint",
        "doctor --json",
        "0 all is well, 1 warnings, 2 something fails; it ends within about 15 seconds, whatever does not answer",
    ),
    "status": Taught(NOTHING, "status"),
    "explain": Taught(NOTHING, "explain ch_3PxYz"),
    "decisions": Taught(NOTHING, "decisions --verdict refund --since 7d"),
    "completion": Taught(NOTHING, "completion bash"),
    "events list": Taught(NOTHING, "events list --state dead"),
    "events show": Taught(NOTHING, "events show evt_1PxYz --payload"),
    "events replay": Taught(
        "the events wait again; the same facts change nothing", "events replay --state dead --by Ada"
    ),
    "events import": Taught("the inbox; events that are here already are passed over", "events import events.jsonl"),
    "customers list": Taught(NOTHING, "customers list"),
    "customers find": Taught(NOTHING, "customers find ada@example.com"),
    "customers show": Taught(NOTHING, "customers show cus_PxYz"),
    "customers suspend": Taught(
        "the customer's standing; the app is told", "customers suspend cus_PxYz --by Ada --reason 'Fraud.'"
    ),
    "customers lift": Taught(
        "the customer's standing; the app is told", "customers lift cus_PxYz --by Ada --reason 'Cleared up.'"
    ),
    "customers keep": Taught(
        "the standing: this dispute suspends no more",
        "customers keep cus_PxYz --dispute du_1 --by Ada --reason 'Withdrawn.'",
    ),
    "customers extend": Taught(
        "until when the subscription gives access",
        "customers extend cus_PxYz --subscription sub_1 --days 7 --by Ada --reason 'Outage.'",
    ),
    "customers erase": Taught(
        "personal data goes for good, with --confirm; books and audit chain stay valid",
        "customers erase cus_PxYz --by Ada --reason 'Asked for, clause 8.'",
    ),
    "policy show": Taught(NOTHING, "policy show"),
    "policy files": Taught(NOTHING, "policy files"),
    "policy check": Taught(NOTHING, "policy check new.toml", "1 where the file is not valid"),
    "policy diff": Taught(NOTHING, "policy diff 2025-01 new.toml --since 90d"),
    "alerts list": Taught(NOTHING, "alerts list --all"),
    "alerts show": Taught(NOTHING, "alerts show chargeback:du_1"),
    "alerts ack": Taught("reminders of it end", "alerts ack chargeback:du_1 --by Ada --note 'On it.'"),
    "alerts routes": Taught(NOTHING, "alerts routes"),
    "alerts test": Taught(
        "nothing; sends a message over each route", "alerts test --severity critical", "1 where a route fails"
    ),
    "audit list": Taught(NOTHING, "audit list --by Ada"),
    "audit verify": Taught(NOTHING, "audit verify", "0 the chain holds, 1 it is broken, 2 it could not be looked at"),
    "audit export": Taught("nothing; writes the file and its digest", "audit export audit.jsonl"),
    "notices list": Taught(NOTHING, "notices list --state failed"),
    "notices show": Taught(NOTHING, "notices show msg_1"),
    "notices replay": Taught("the notices are sent again, with the same ids", "notices replay --since 24h --by Ada"),
    "runs list": Taught(NOTHING, "runs list --limit 10"),
    "runs show": Taught("nothing; --html and --csv write files", "runs show run_1 --html report.html", _RUN_CODES),
    "review list": Taught(NOTHING, "review list"),
    "review approve": Taught(
        "the prepared actions are due at once: money goes back", "review approve ch_3PxYz --by Ada --note 'Twice.'"
    ),
    "review reject": Taught("prepared actions are withdrawn", "review reject ch_3PxYz --by Ada --note 'Two seats.'"),
    "review note": Taught("the note is kept", "review note ch_3PxYz --by Ada --note 'Asked the customer.'"),
    "refunds list": Taught(NOTHING, "refunds list"),
    "refunds pause": Taught(
        "no refund is sent until `refunds resume`", "refunds pause --by Ada --reason 'Looking at D4.'"
    ),
    "refunds resume": Taught("refunds go again", "refunds resume --by Ada"),
    "credits show": Taught(NOTHING, "credits show cus_PxYz"),
    "credits grant": Taught(
        "a lot of service credits (4.1)", "credits grant cus_PxYz --credits 50 --by Ada --reason 'Delay.'"
    ),
    "credits consume": Taught(
        "credits are used up, once for a key", "credits consume cus_PxYz --credits 3 --key job-17"
    ),
    "chargebacks list": Taught(NOTHING, "chargebacks list"),
    "chargebacks show": Taught(NOTHING, "chargebacks show du_1"),
    "chargebacks evidence": Taught(
        "nothing; with --stage the draft at Stripe, which is never submitted from here",
        "chargebacks evidence du_1 --stage --by Ada",
    ),
    "outage declare": Taught(
        "nothing; with --confirm everybody's service credits (4.2)",
        "outage declare --from 2026-01-31T10:00:00Z --to 2026-01-31T14:00:00Z --reason 'Queue.' --by Ada",
    ),
    "outage show": Taught(NOTHING, "outage show"),
    "cases list": Taught(NOTHING, "cases list --overdue"),
    "cases show": Taught(NOTHING, "cases show case_1"),
    "cases open": Taught(
        "a case, evaluated at once",
        "cases open --by Ada --email a@example.com --date 2026-01-31 --description 'Charged twice.' --transaction ch_1",
    ),
    "cases assign": Taught("who answers it", "cases assign case_1 --to Grace --by Ada"),
    "cases note": Taught("the note is kept", "cases note case_1 --note 'Called.' --by Ada"),
    "cases evaluate": Taught("the evaluation, by what is known now", "cases evaluate case_1 --by Ada"),
    "cases answer": Taught("the case counts as answered; nothing is sent", "cases answer case_1 --by Ada"),
    "cases close": Taught("the case is closed", "cases close case_1 --by Ada --note 'Done.'"),
    "cases reopen": Taught("the case waits again", "cases reopen case_1 --by Ada --note 'Wrote again.'"),
    "tokens list": Taught(NOTHING, "tokens list"),
    "tokens add": Taught("the app's API takes the new token", "tokens add app --scopes read,consume --by Ada"),
    "tokens revoke": Taught("the token is refused within two seconds", "tokens revoke app --by Ada"),
    "tokens rotate": Taught(
        "a new token; the old ones end after the overlap", "tokens rotate app --by Ada --overlap 24h"
    ),
    "operator list": Taught(NOTHING, "operator list"),
    "operator add": Taught("somebody can sign in to the console", "operator add Ada --role admin"),
    "operator remove": Taught("the operator is signed out for good", "operator remove Ada --by Grace"),
    "operator role": Taught("what the operator may do, at once", "operator role Ada decide --by Grace"),
    "operator rotate": Taught("a new token; the old ones end after the overlap", "operator rotate Ada --overlap 24h"),
    "operator revoke": Taught("the token and its sessions end", "operator revoke 1a2b3c --by Grace"),
}


def commands(app: App, path: tuple[str, ...] = ()) -> Iterator[tuple[str, App]]:
    """Every command that does something, by its words; groups of commands are not."""
    for name in app:
        if name.startswith("-"):
            continue
        part = app[name]
        if any(not below.startswith("-") for below in part):
            yield from commands(part, (*path, name))
        else:
            yield " ".join((*path, name)), part


def teach(app: App) -> None:
    """Put what is taught below each command's help."""
    for words, command in commands(app):
        if words in TAUGHT:
            command.help_epilogue = TAUGHT[words].text()
