"""What operators do and read about single customers: holds and extensions, credits, chargebacks and their evidence."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from cyclopts import App, Parameter

from handlers.account import ActKind
from handlers.chargebacks import CLOSED
from worker import acts, chargebacks, reading, review, show
from worker.desk import Desk, ask, settings_of_environment
from worker.options import By, Json, Note
from worker.stripe_gateway import StripeGateway

credits_app = App(name="credits", help="Credits of single customers: every lot and entry, service credits (4.1).")
chargebacks_app = App(name="chargebacks", help="Disputes (7): deadlines, decisions, drafts of evidence.")

Case = Annotated[str | None, Parameter(help="The case it belongs to.")]
Key = Annotated[str | None, Parameter(help="A word of your own: repeated under the same one, it is done once.")]
Customer = Annotated[str, Parameter(name="ID", help="The customer (cus_...).")]
DisputeId = Annotated[str, Parameter(name="ID", help="The dispute (dp_... or du_...).")]


# holds and access --------------------------------------------------------------------------------------------------------


def register(customers: App) -> None:
    """Put the acts about single customers under `finalsale customers`."""
    for command in (suspend, lift, keep, extend):
        customers.command(command)


def suspend(
    id_: Customer, /, *, by: By, reason: Note, case: Case = None, key: Key = None, as_json: Json = False
) -> None:
    """Suspend a customer until `lift`: a hold of your own, beside those of disputes. Credits cannot be consumed meanwhile."""
    _act(acts.Wish(kind=ActKind.SUSPEND, customer=id_, by=by, reason=reason, case=case, key=key), as_json)


def lift(
    id_: Customer,
    /,
    *,
    by: By,
    reason: Note,
    dispute: Annotated[str | None, Parameter(help="Lift this dispute's hold instead of the operators' own.")] = None,
    case: Case = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Lift the operators' hold, or with --dispute that of a dispute.

    A dispute's hold is lifted for the stage it is in: where it is lost later, or appealed, the hold comes back.
    """
    _act(acts.Wish(kind=ActKind.LIFT, customer=id_, by=by, reason=reason, case=case, key=key, dispute=dispute), as_json)


def keep(
    id_: Customer,
    /,
    *,
    dispute: Annotated[str, Parameter(help="The dispute whose hold stays.")],
    by: By,
    reason: Note,
    case: Case = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Keep a dispute's hold whatever becomes of the dispute, until it is lifted."""
    _act(acts.Wish(kind=ActKind.KEEP, customer=id_, by=by, reason=reason, case=case, key=key, dispute=dispute), as_json)


def extend(
    id_: Customer,
    /,
    *,
    subscription: str,
    by: By,
    reason: Note,
    until: str | None = None,
    days: int | None = None,
    case: Case = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Extend access to a subscription for serious technical trouble (4.1). Nothing changes at Stripe.

    Parameters
    ----------
    until
        Access lasts until then (2026-01-31T12:00:00Z).
    days
        Or so many days longer than now.
    """
    moment = reading.moment(until) if until else None
    wish = acts.Wish(
        kind=ActKind.EXTEND,
        customer=id_,
        by=by,
        reason=reason,
        case=case,
        key=key,
        subscription=subscription,
        until=moment,
        days=days,
    )
    _act(wish, as_json)


JUDGED_WITHIN_S = 5.0
"""How long a command waits to show what a worker made of the act."""


def _act(wish: acts.Wish, as_json: bool) -> None:
    async def act(desk: Desk) -> Any:
        return await acts.carry_out(desk.conn, desk.realms, wish)

    document = done = ask(act, change=True)
    deadline = time.monotonic() + JUDGED_WITHIN_S
    while not document["judged"] and time.monotonic() < deadline:
        time.sleep(0.3)
        document = ask(lambda desk: acts.seen(desk.conn, desk.realms, done))
    if as_json:
        show.json_document(document)
    else:
        _done(document)


def _done(document: reading.Document) -> None:
    done = {
        "suspend": "Suspended {customer}.",
        "lift": "Lifted the hold of {dispute} on {customer}."
        if document["dispute"]
        else "Lifted the operators' hold on {customer}.",
        "keep": "The hold of {dispute} on {customer} is kept until it is lifted.",
        "extend": "{subscription} of {customer} serves until {until:%Y-%m-%d %H:%M:%S} UTC.",
        "grant": "Granted {credits} service credits to {customer}.",
    }[document["act"]].format_map(document)
    show.say(f"{done} {'It was done before' if document['repeated'] else 'Kept'} as {document['id']}.")
    holds = [f"{hold['subject']}: {hold['cause']}" for hold in document["holds"]]
    show.fields(
        [
            ("standing", document["standing"]),
            ("holds", "\n".join(holds) or "none"),
            ("access until", document["access_until"]),
            ("credits left", document["credits_left"]),
        ],
        indent=2,
    )
    if not document["judged"]:
        show.say("No worker has looked at it yet: it counts as soon as one does, and the lines above are from before.")


# credits -----------------------------------------------------------------------------------------------------------------


@credits_app.command
def grant(
    id_: Customer,
    /,
    *,
    credits_: Annotated[int, Parameter(name="--credits", help="Whole credits.")],
    by: By,
    reason: Note,
    until: Annotated[str | None, Parameter(help="They end then (2026-01-31); without it never.")] = None,
    case: Case = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Give service credits for serious technical trouble (4.1). Never money."""
    moment = reading.moment(until) if until else None
    wish = acts.Wish(
        kind=ActKind.GRANT, customer=id_, by=by, reason=reason, case=case, key=key, credits=credits_, until=moment
    )
    _act(wish, as_json)


@credits_app.command
def consume(
    id_: Customer,
    /,
    *,
    credits_: Annotated[int, Parameter(name="--credits", help="Whole credits.")],
    key: Annotated[str, Parameter(help="A word of your own: repeated under the same one, it consumes once.")],
    as_json: Json = False,
) -> None:
    """Consume credits as the app does: what ends soonest goes first."""
    document = ask(lambda d: acts.consume(d.conn, d.realms, id_, credits_, key), change=True)
    if as_json:
        show.json_document(document)
    else:
        done = "Consumed" if document["outcome"] == "consumed" else "Consumed before, under the same key:"
        show.say(f"{done} {document['consumed']} credits of {id_}; {document['remaining']} were left after that.")


@credits_app.command(name="show")
def show_credits(
    id_: Customer,
    /,
    *,
    at: Annotated[str | None, Parameter(help="As it was recorded then: a date and time, or how far back (7d).")] = None,
    as_json: Json = False,
) -> None:
    """A customer's balance, entry by entry: what moved it, by which clause, and why.

    An entry counts from the moment at which it was recorded; it is effective at the moment that it tells of, which may lie
    earlier where something was learned late.
    """
    moment = reading.moment(at) if at else None
    document = ask(lambda d: acts.credits_of(d.conn, d.realms, id_, moment))
    if as_json:
        show.json_document(document)
    else:
        _credits(document)


def _credits(document: reading.Document) -> None:
    as_of = f" as recorded by {show.when(document['at'])} UTC" if document["at"] else ""
    ended = document["balance"] - document["available"]
    more = f", {ended} of them in lots that have ended" if ended else ""
    show.say(f"{document['customer']}: {document['balance']} credits left{as_of}{more}.")
    if document["at"] and document["effective"] != document["balance"]:
        show.say(
            f"By what is known today, {document['effective']} were left at that moment: some of it was learned later."
        )
    show.say()
    show.table(
        ("lot", "ends", "left", "what became of it"),
        ([lot["id"], lot["ends_at"], lot["remaining"], _sums(lot)] for lot in document["lots"]),
        "No credits were granted by then." if document["at"] else "No credits were ever granted.",
    )
    for lot in document["lots"]:
        show.say()
        show.say(f"{lot['id']}: {lot['cause']}")
        show.table(
            ("recorded", "effective", "what", "credits", "left", "clause and cause"),
            (
                [
                    *(entry["recorded_at"], entry["effective_at"], entry["kind"].replace("_", " ")),
                    *(f"{entry['amount']:+d}", entry["left_in_lot"], f"{entry['clause']}: {entry['cause']}"),
                ]
                for entry in document["entries"]
                if entry["lot"] == lot["id"]
            ),
            "",
        )


def _sums(lot: reading.Document) -> str:
    """`500 granted, 20 consumed, 480 forfeited`: only what there is."""
    names = ("granted", "consumed", "expired", "forfeited", "taken_back")
    return ", ".join(f"{lot[name]} {name.replace('_', ' ')}" for name in names if lot[name] or name == "granted")


# chargebacks -------------------------------------------------------------------------------------------------------------


@chargebacks_app.command(name="list")
def list_chargebacks(
    *,
    over: Annotated[bool, Parameter(name="--all", negative="", help="Also those that are over.")] = False,
    as_json: Json = False,
) -> None:
    """Disputes that wait for a person first, the nearest deadline on top."""
    rows = ask(lambda d: chargebacks.disputes(d.conn, d.realms, over=over))
    if as_json:
        show.json_document(rows)
        return
    columns = ("dispute", "due", "amount", "status", "reason", "charge", "customer", "who is next")
    show.table(
        columns,
        (
            [
                *(row["id"], row["due_by"], show.amount(row["amount"]), row["status"], row["reason"], row["charge"]),
                *(
                    row["customer"],
                    "you" if row["waits_for_a_person"] else "nobody" if row["status"] in CLOSED else "the bank",
                ),
            ]
            for row in rows
        ),
        "No dispute is open.",
    )


@chargebacks_app.command(name="show")
def show_chargeback(id_: DisputeId, /, *, as_json: Json = False) -> None:
    """One dispute: what was decided and why, until when somebody has to answer, and the evidence we would give."""
    document = _drafted(id_).document
    if as_json:
        show.json_document(document)
        return
    show.say(f"{document['id']}  {show.amount(document['amount'])}  {document['status']} ({document['reason']})")
    show.fields(
        [
            ("charge", document["charge"]),
            ("customer", f"{document['customer']}, standing {document['standing']}"),
            ("due by", document["due_by"]),
            ("decision", f"{document['decision']['id']} by clause {document['decision']['clause']}"),
            ("reason", document["decision"]["reason"]),
            (
                "said",
                "\n".join(f"{a['by']} {show.when(a['at'])}: {a['note']}" for a in document["decision"]["acts"]) or None,
            ),
        ],
        indent=2,
    )
    show.say()
    _draft(document)
    if document["decision"]["verdict"] == "review":
        show.say(f"To stage it: finalsale chargebacks evidence {id_} --stage --by NAME")


@chargebacks_app.command
def evidence(
    id_: DisputeId,
    /,
    *,
    stage: Annotated[
        bool, Parameter(negative="", help="Put the draft into the dispute at Stripe, not submitted.")
    ] = False,
    by: Annotated[str, Parameter(help="Your name; needed to stage.")] = "",
    as_json: Json = False,
) -> None:
    """The draft of the evidence; with --stage it is put into the dispute at Stripe, for a person to complete and submit.

    It is never submitted from here. Fields that somebody filled at Stripe before are replaced where the draft has them too.
    """
    found = _drafted(id_)
    document: reading.Document = {"id": id_, "draft": found.document["draft"], "staged": False}
    if stage:
        document |= _stage(found, by)
    if as_json:
        show.json_document(document)
        return
    _draft(document)
    if document["staged"]:
        show.say(f"Staged at Stripe as {by}, and not submitted: complete and submit it in the dashboard.")


def _drafted(id_: str) -> chargebacks.Drafted:
    from worker.jobs import read_policy

    async def look(desk: Desk) -> chargebacks.Drafted:
        return await chargebacks.drafted(desk.conn, read_policy(desk.settings), desk.realms, id_)

    found: chargebacks.Drafted = ask(look)
    return found


def _stage(found: chargebacks.Drafted, by: str) -> reading.Document:
    """Stage the draft, outside of any transaction, then write down who did. Repeated, it is the same request."""
    name = review.named(by)
    fields, key = chargebacks.staging(found)

    async def send() -> None:
        gateway = StripeGateway(settings_of_environment())
        try:
            await gateway.stage_evidence(found.dispute.id, fields, key, found.realm.partition(":")[2] or None)
        finally:
            await gateway.aclose()

    asyncio.run(send())
    ask(lambda d: chargebacks.staged(d.conn, found, fields, by=name), change=True)
    return {"staged": True, "by": name, "fields": sorted(fields)}


def _draft(document: reading.Document) -> None:
    draft = document["draft"]
    show.say(f"Draft of the evidence ({draft['reason'] or 'no reason told'}). {draft['note']}".strip())
    show.fields([(name.replace("_", " "), text) for name, text in draft["fields"].items()], indent=2)
    if draft["missing"]:
        show.say("A person should add:")
        for missing in draft["missing"]:
            show.say(f"  {missing}")
