"""`finalsale outage`: declare an outage after looking at its preview (4.2), and see what came of it."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from worker import outages, reading, show
from worker.desk import Desk, ask
from worker.options import Json

outage = App(name="outage", help="Outages and the service credits they bring (4.2).")

Moment = Annotated[str, Parameter(help="A date and time (2026-01-31T12:00:00Z), or how far back (6h).")]


@outage.command
def declare(
    *,
    from_: Annotated[Moment, Parameter(name="--from")],
    to: Moment,
    plan: Annotated[
        list[str] | None, Parameter(help="Price id it met; several times for several, none for all.")
    ] = None,
    reason: Annotated[str, Parameter(help="What happened, for whoever reads this later.")] = "",
    by: Annotated[str, Parameter(help="Your name.")] = "",
    confirm: Annotated[str | None, Parameter(help="The id that the preview showed.")] = None,
    as_json: Json = False,
) -> None:
    """Show who would get how many credits for an outage; with --confirm ID, declare it.

    Each subscription that it met gets its included credits times overlap over service period, rounded down, once, however
    often it is declared. Never money.
    """
    from worker.jobs import court_of

    begins, ends, plans = reading.moment(from_), reading.moment(to), plan or []

    async def act(desk: Desk) -> Any:
        realm = desk.settings.realm(None)
        if confirm is None:
            return await outages.preview(desk.conn, court_of(desk.settings), realm, begins, ends, plans)
        return await outages.declare(desk.conn, realm, begins, ends, plans, confirm=confirm, by=by, reason=reason)

    document = ask(act, change=confirm is not None)
    if as_json:
        show.json_document(document)
    elif confirm is None:
        _preview(document)
    elif document["declared_now"]:
        show.say(
            f"Declared {document['id']}: {document['customers_to_judge']} customers are judged now, see `finalsale outage show`."
        )
    else:
        show.say(f"{document['id']} was declared before; nothing changes.")


@outage.command(name="show")
def show_outages(id_: Annotated[str | None, Parameter(name="ID")] = None, /, *, as_json: Json = False) -> None:
    """Every declared outage, newest first, or one: how many subscriptions got how many credits."""
    found = ask(lambda desk: outages.declared(desk.conn, desk.realms, id_))
    if id_ is not None and not found:
        raise reading.NotFound(f"There is no outage {id_}; `finalsale outage show` lists them.")
    if as_json:
        show.json_document(found)
        return
    show.table(
        ("outage", "begins", "ends", "plans", "subscriptions", "credits", "declared", "by", "reason"),
        [
            (
                row["id"],
                row["begins"],
                row["ends"],
                ", ".join(row.get("plans", ())) or "all",
                row["subscriptions"],
                row["credits"],
                row["declared_at"],
                row["by"],
                row["reason"],
            )
            for row in found
        ],
        "No outage was declared.",
    )
    if found and found[0]["still_to_judge"]:
        show.say(f"{found[0]['still_to_judge']} customers are still to be judged.")


def _preview(document: reading.Document) -> None:
    show.say(
        f"{document['subscriptions']} subscriptions of {document['customers']} customers would get {document['credits']} service "
        f"credits for {show.when(document['begins'])} to {show.when(document['ends'])} UTC"
        + (f" ({', '.join(document['plans'])})." if document["plans"] else " (all plans).")
    )
    show.table(
        ("customer", "subscription", "credits", "why"),
        [(row["customer"], row["subscription"], row["credits"], row["why"]) for row in document["who"]],
        "No subscription with included credits was served in that time.",
    )
    if document["declared"]:
        show.say(f"It was declared before, as {document['id']}: declaring it again changes nothing.")
    else:
        show.say(
            f"Nothing is declared yet. To declare it: the same command with --confirm {document['id']} --by NAME --reason TEXT"
        )
