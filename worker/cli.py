"""The command line `finalsale`: what an operator starts, reads and decides. One sentence on standard error for every failure."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import asyncpg
from cyclopts import App, CycloptsError, Group, Parameter

from worker import reading, review, show, show_story
from worker.cli_accounts import chargebacks_app, credits_app
from worker.cli_accounts import register as register_acts
from worker.cli_app import tokens
from worker.cli_audit import audit_app
from worker.cli_cases import cases
from worker.cli_customers import find, list_customers, policy_files
from worker.cli_doctor import doctor
from worker.cli_examples import teach
from worker.cli_notices import alerts_app, notices_app
from worker.cli_operator import operator_app
from worker.cli_outages import outage
from worker.cli_privacy import erase
from worker.cli_reconcile import reconcile
from worker.cli_runs import runs
from worker.desk import Desk, ask, settings_of_environment, with_database
from worker.errors import FinalsaleError
from worker.log import get_logger
from worker.options import By, ByLogin, Json, Limit, Note, login
from worker.settings import Settings

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
PAGE = 50
"""Rows of a table where no --limit is given; a JSON document has them all."""

Id = Annotated[str, Parameter(name="ID", help="A decision's id, a unique beginning of it, or the charge it is about.")]


def _version() -> str:
    try:
        return metadata.version("finalsale")
    except metadata.PackageNotFoundError:
        return "not installed as a package"


RUNNING, READING, DECIDING = (
    Group(name, sort_key=place) for place, name in enumerate(("Run", "Read (all with --json)", "Decide"))
)
app = App(
    name="finalsale",
    help=(
        "Carry out a no-refund policy on a Stripe account: the only money that goes back is a duplicate charge, exactly once, "
        "exactly the duplicate part.\n\nSettings come from the environment: DATABASE_URL, REDIS_URL, STRIPE_API_KEY, "
        "STRIPE_WEBHOOK_SECRET, FINALSALE_REFUNDS (review or auto), FINALSALE_POLICY."
    ),
    version=_version,
    default_parameter=Parameter(negative=""),
    help_format="plaintext",
)
app["--help"].group = app["--version"].group = "Help"
events = App(name="events", help="The inbox: what Stripe delivered.", group=READING)
reviews = App(name="review", help="What waits for a person, and the person's answer.", group=DECIDING)
refunds = App(name="refunds", help="Every refund, and the switch that stops them all.", group=DECIDING)
single_customers = App(
    name="customers", help="Customers: who is on hold, one's whole story, holds, extensions, erasure.", group=READING
)
policy = App(name="policy", help="The policy file in use.", group=READING)
register_acts(single_customers)
single_customers.command(list_customers, name="list")
single_customers.command(find)
single_customers.command(erase)
policy.command(policy_files, name="files")
for part in (credits_app, chargebacks_app, outage, cases, tokens, operator_app):
    part.group = (DECIDING,)
for part in (alerts_app, audit_app, notices_app, runs):
    part.group = (READING,)
for part in (
    events,
    single_customers,
    policy,
    alerts_app,
    audit_app,
    notices_app,
    runs,
    reviews,
    refunds,
    credits_app,
    chargebacks_app,
):
    app.command(part)
for part in (outage, cases, tokens, operator_app):
    app.command(part)


def _answer(document: Any, as_json: bool, page: Callable[[Any], None]) -> None:
    """Show a document the way it was asked for."""
    if as_json:
        show.json_document(document)
    else:
        page(document)


# run ---------------------------------------------------------------------------------------------------------------------


@app.command(group=RUNNING)
def run(
    *,
    once: bool = False,
    customers: int = 240,
    seed: int = 1,
    twice: bool = False,
    shuffle: bool = False,
    faults: float = 0.0,
    api_version: str | None = None,
    log_dir: Path | None = None,
    as_json: Json = False,
) -> int:
    """Everything in one process tree: embedded servers where none are given, migrations, web and worker.

    With STRIPE_API_KEY against the real Stripe; without it against the sandbox, where a merchant's day is played and checked.

    Parameters
    ----------
    once
        End when the sandbox's day is done, instead of staying up.
    customers
        How many customers the day has.
    seed
        Another number, another day.
    twice
        Deliver every event twice.
    shuffle
        Deliver events out of order.
    faults
        Fraction of calls to the sandbox that fail after their effect, 0 to 1.
    api_version
        Stripe API version of the sandbox's events.
    log_dir
        Where the processes' logs go.
    """
    from worker.run import DayOptions
    from worker.run import main as run_everything

    day = DayOptions(
        customers=customers,
        seed=seed,
        twice=twice,
        shuffle=shuffle,
        faults=faults,
        api_version=api_version,
        log_dir=log_dir,
    )
    return run_everything(settings=settings_of_environment(), once=once, as_json=as_json, options=day)


@app.command(group=RUNNING)
def web() -> None:
    """The web process: take in Stripe's events on PORT until SIGTERM."""
    from worker.jobs import read_policy
    from worker.web import serve

    read_policy(settings_of_environment())  # a deployment whose policy cannot be read must not look healthy
    _serve(serve)


@app.command(group=RUNNING)
def worker() -> None:
    """A worker process: judge what came in, send what is due, until SIGTERM. Several may run beside each other."""
    from worker.jobs import work

    _serve(work)


def _serve(process: Callable[[Settings], Coroutine[Any, Any, None]]) -> None:
    """Run a process that never ends by itself, on uvloop."""
    import uvloop

    async def serving() -> None:
        async with with_database(settings_of_environment()) as served:
            await process(served)

    uvloop.run(serving())


@app.command(group=RUNNING)
def migrate(*, as_json: Json = False) -> None:
    """Bring the database to this release's schema. Safe to run on several machines at once, and again."""
    from worker.db.migrations import KNOWN_REVISIONS
    from worker.db.migrations import migrate as apply

    async def bring() -> list[str]:
        async with with_database(settings_of_environment()) as served:
            return await apply(served.database_dsn())

    applied = asyncio.run(bring())
    sentence = (
        f"Applied {', '.join(applied)}." if applied else f"Nothing to apply: the schema is at {KNOWN_REVISIONS[-1]}."
    )
    _answer({"applied": applied, "revision": KNOWN_REVISIONS[-1]}, as_json, lambda _: show.say(sentence))


app.command(reconcile, group=RUNNING)
app.command(doctor, group=RUNNING)


# read --------------------------------------------------------------------------------------------------------------------


@app.command(group=READING)
def status(*, as_json: Json = False) -> None:
    """How things stand: inbox, decisions, reviews, money that went back, standing, credits, cases, alerts, who is at work."""
    from worker.jobs import read_policy

    async def look(desk: Desk) -> Any:
        return await reading.status(desk.conn, desk.realms, desk.settings, read_policy(desk.settings))

    _answer(ask(look), as_json, show.status)


@app.command(group=READING)
def explain(id_: Annotated[str, Parameter(name="ID")], /, *, as_json: Json = False) -> None:
    """The story of one id: what it is, what the policy says about it and why, and what was done.

    Takes every id of Stripe's that was told of (ch_ pi_ in_ sub_ cus_ re_ dp_ du_ issfr_ evt_) and ours: act_ dec_ oact_ out_
    case_ and lots. For a payment it answers whether it may be refunded, with the clause.
    """
    from worker import story
    from worker.jobs import court_of

    _answer(ask(lambda d: story.explain(d.conn, court_of(d.settings), d.realms, id_)), as_json, show_story.explain)


@app.command(group=READING)
def decisions(
    *,
    customer: str | None = None,
    verdict: Literal["refund", "review", "deny", "none"] | None = None,
    since: str | None = None,
    history: bool = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Decisions in force, newest first, with their clause, reason, evidence and actions.

    Parameters
    ----------
    customer
        Only this customer's (cus_...).
    since
        Only those made since: how far back (30m, 24h, 7d) or a date (2026-01-31).
    history
        Every revision, also those that a later one replaced.
    """

    async def look(desk: Desk) -> Any:
        asked = {"customer": customer, "verdict": verdict, "history": history, "limit": _most(limit, as_json)}
        moment = reading.moment(since) if since else None
        return await reading.decisions(desk.conn, desk.realms, since=moment, **asked)  # type: ignore[arg-type]  # one dict of several types

    _answer(ask(look), as_json, show.decisions)


@single_customers.command(name="show")
def show_customer(id_: Annotated[str, Parameter(name="ID")], /, *, as_json: Json = False) -> None:
    """One customer: standing, access and credits, then a time line of everything that happened, was decided and done."""
    from worker import story
    from worker.jobs import court_of

    _answer(ask(lambda d: story.customer(d.conn, court_of(d.settings), d.realms, id_)), as_json, show_story.customer)


@events.command(name="list")
def list_events(
    *,
    state: Literal["waiting", "done", "ignored", "quarantined", "dead"] | None = None,
    type_: Annotated[str | None, Parameter(name="--type", help="Only this type; invoice.* for all of a kind.")] = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Events, newest first: when they came, what became of them, and why."""
    most = _most(limit, as_json)
    _answer(ask(lambda d: reading.events(d.conn, state=state, type_=type_, limit=most)), as_json, show.events)


@events.command(name="show")
def show_event(
    id_: Annotated[str, Parameter(name="ID")],
    /,
    *,
    payload: Annotated[bool, Parameter(help="The event itself too, with personal data masked.")] = False,
    as_json: Json = False,
) -> None:
    """One event: its envelope, its state and what went wrong with it."""
    _answer(ask(lambda d: reading.event(d.conn, id_, payload=payload)), as_json, show.event)


@events.command
def replay(
    *ids: Annotated[str, Parameter(name="ID")],
    state: Annotated[Literal["dead", "quarantined"] | None, Parameter(help="All events in this state.")] = None,
    by: ByLogin = None,
    as_json: Json = False,
) -> None:
    """Let events be worked on again, from the beginning. Harmless: the same facts again change nothing."""
    from worker.replay import replay_events

    replayed = ask(lambda d: replay_events(d.conn, ids=ids, state=state, by=login(by)), change=True)
    _answer({"replayed": replayed}, as_json, lambda _: show.say(f"{len(replayed)} events wait again."))


@events.command(name="import")
def import_events(file: Path, /, *, as_json: Json = False) -> int:
    """Store events from a file as if Stripe had sent them: JSON lines, a JSON array, or a page of Stripe's event list.

    They carry no signature; whoever runs this vouches for them. Events that are here already are passed over.
    """
    from worker.importing import import_events as intake

    document = intake(file)
    _answer(document, as_json, show.imported)
    return FAILED if document["refused"] else 0


def _most(limit: int | None, as_json: bool) -> int | None:
    if limit is not None and limit < 1:
        raise reading.NotUnderstood("--limit is a number of rows, 1 or more.")
    return limit if limit is not None or as_json else PAGE


@policy.command(name="show")
def show_policy(*, as_json: Json = False) -> None:
    """The policy that decisions are made by: every version with its terms, and agreements with single customers."""
    from worker.jobs import read_policy

    _answer(show.policy_document(read_policy(settings_of_environment())), as_json, show.policy)


@policy.command
def check(file: Path | None = None, /, *, as_json: Json = False) -> int:
    """Check a policy file whole, by default the one in use; an error names its line."""
    from handlers.terms import SHIPPED_POLICY, PolicyInvalid, load_policy

    path = file or settings_of_environment().policy or SHIPPED_POLICY
    try:
        checked = load_policy(path)
    except PolicyInvalid as invalid:
        if not as_json:
            raise
        show.json_document({"ok": False, "file": str(path), "error": str(invalid), "versions": [], "agreements": 0})
        return FAILED
    now = datetime.now(UTC)
    versions = [{"id": v.id, "in_force_from": v.in_force_from} for v in checked.version]
    in_force = next((v.id for v in reversed(checked.version) if v.in_force_from <= now), None)
    found = {
        "ok": True,
        "file": str(path),
        "in_force": in_force,
        "versions": versions,
        "agreements": len(checked.agreement),
    }
    _answer(found, as_json, show.checked_policy)
    return 0


@policy.command
def diff(
    was: Annotated[str, Parameter(name="A")],
    would_be: Annotated[str, Parameter(name="B")],
    /,
    *,
    since: Annotated[str, Parameter(help="Whose files changed since: how far back (90d) or a date.")] = "90d",
    as_json: Json = False,
) -> None:
    """What policy B would have done differently from A in recent history, and who must be told of it (clause 9).

    A and B are policy files, or version ids of the file in use; the newest version of each is held as if it had always been in
    force. Nothing is changed.
    """
    from worker.jobs import court_of
    from worker.policy_diff import diff as compare
    from worker.policy_diff import policy_named

    async def look(desk: Desk) -> Any:
        settings = desk.settings
        old, new = policy_named(settings, was), policy_named(settings, would_be)
        since_ = reading.moment(since)
        return await compare(desk.conn, court_of(settings), settings.realm(None), old, new, since_)

    _answer(ask(look), as_json, show.policy_diff)


# decide ------------------------------------------------------------------------------------------------------------------


@reviews.command(name="list")
def list_reviews(*, as_json: Json = False) -> None:
    """What waits for a person, the longest first: why, what is prepared, and how to answer."""
    from worker.jobs import read_policy

    _answer(ask(lambda d: review.waiting(d.conn, d.realms, read_policy(d.settings))), as_json, show.waiting)


@reviews.command
def approve(
    id_: Id,
    /,
    *,
    by: By,
    note: Note = "",
    amount: Annotated[
        int | None, Parameter(help="Minor units to give back, where no refund could be prepared.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say yes: the prepared actions become due at once. Above the two-person limit a second name has to say yes too.

    As soon as there are operators, both names are those of operators who may decide. The rule tells people apart by name, and
    here a name is what is typed: it does not stop whoever holds the database's password, or the tokens of two operators.
    """
    from worker.jobs import read_policy

    async def act(desk: Desk) -> Any:
        said = {"by": by, "note": note}
        return await review.approve(
            desk.conn, read_policy(desk.settings), desk.realms, id_, amount_minor=amount, **said
        )

    _answer(ask(act, change=True), as_json, show.act)


@reviews.command
def reject(id_: Id, /, *, by: By, note: Note = "", as_json: Json = False) -> None:
    """Say no: what was not sent yet is withdrawn, and the review is closed."""
    _answer(ask(lambda d: review.reject(d.conn, d.realms, id_, by=by, note=note), change=True), as_json, show.act)


@reviews.command(name="note")
def write_note(id_: Id, /, *, by: By, note: Note, as_json: Json = False) -> None:
    """Write something down about a decision; nothing else changes."""
    _answer(ask(lambda d: review.note(d.conn, d.realms, id_, by=by, text=note), change=True), as_json, show.act)


@refunds.command(name="list")
def list_refunds(*, limit: Limit = None, as_json: Json = False) -> None:
    """Every refund that was prepared or made, newest first, with its clause and what Stripe says of it."""
    most = _most(limit, as_json)
    _answer(ask(lambda d: reading.refunds(d.conn, d.realms, most)), as_json, show.refunds)


@refunds.command
def pause(*, by: By, reason: Annotated[str, Parameter(help="Why.")] = "", as_json: Json = False) -> None:
    """Stop every refund before it is sent, until `resume`. What is on its way to Stripe is finished."""
    _switch(on=True, by=by, reason=reason, as_json=as_json)


@refunds.command
def resume(*, by: By, as_json: Json = False) -> None:
    """Let refunds go again."""
    _switch(on=False, by=by, reason="", as_json=as_json)


def _switch(*, on: bool, by: str, reason: str, as_json: bool) -> None:
    async def act(desk: Desk) -> Any:
        was = await reading.pause_switch(desk.conn)
        await review.pause(desk.conn, on=on, by=by, reason=reason)
        return await reading.pause_switch(desk.conn), was

    now, was = ask(act, change=True)
    sentence = "Refunds are paused: nothing is sent to Stripe." if on else "Refunds go again."
    if was["on"] and not on:
        sentence += (
            f" {was['by']} had paused them at {show.when(was['since'])} UTC: {was['reason'] or 'no reason given'}"
        )
    _answer(now, as_json, lambda _: show.say(sentence))


# help --------------------------------------------------------------------------------------------------------------------


@app.command(group="Help")
def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(name="SHELL")], /) -> None:
    """Print the script that completes commands and options with the Tab key. Changes nothing.

    `finalsale --install-completion` puts it where the shell finds it.
    """
    sys.stdout.write(app.generate_completion(shell=shell))


app.register_install_completion_command(
    group="Help", help="Put the completion script where this shell finds it, and name it in the shell's startup file."
)
teach(app)


# the way out -------------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns 0, 1 with one sentence on standard error, or 2 where the command line cannot be understood."""
    from handlers.terms import PolicyInvalid

    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        return _failed(f"{error} Try `finalsale --help`.", MISUSED)
    except (FinalsaleError, PolicyInvalid) as error:
        return _failed(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has seen enough
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except (
        asyncpg.InvalidPasswordError,
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InsufficientPrivilegeError,
    ):
        return _failed(
            "Postgres does not let us in with the role and password of DATABASE_URL, or not to these tables."
        )
    except Exception as error:
        get_logger().error("command.failed", exc_info=error)
        return _failed(f"This failed in a way nobody expected ({type(error).__name__}); the line above says where.")


def _failed(sentence: str, code: int = FAILED) -> int:
    sys.stderr.write(f"finalsale: {show.plain(sentence).plain}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
