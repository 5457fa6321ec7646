"""`finalsale customers erase`: take one customer's personal data out of the books, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from worker import privacy, show
from worker.db import connect_pool
from worker.desk import STATEMENT_TIMEOUT_S, open_desk, settings_of_environment, with_database
from worker.options import By, Json, Note
from worker.privacy import Erasure
from worker.settings import Settings

Customer = Annotated[str, Parameter(name="ID", help="The customer (cus_...).")]


def erase(
    id_: Customer,
    /,
    *,
    by: By,
    reason: Note,
    linked: Annotated[bool, Parameter(help="Also all customers that are the same person.")] = False,
    notes: Annotated[
        bool, Parameter(help="Also what operators wrote about them: notes, and reasons of what they did.")
    ] = False,
    confirm: Annotated[bool, Parameter(help="Do it; without this nothing is changed.")] = False,
    as_json: Json = False,
) -> None:
    """Erase a customer's personal data: hashes of e-mails, cards, metadata, cases' words, and the payloads of events.

    Decisions, refunds, credits and the audit chain stay; they name ids and amounts only. Refused while something is not over.
    Needs the privileges of the tables' owner (the role that `finalsale migrate` runs as).
    Delete the customer at Stripe first: what Stripe still has is told again, and is kept without personal fields.
    It cannot be undone. Without --confirm it only says what would go.
    """
    settings = settings_of_environment()
    found = asyncio.run(
        _erase(settings, id_, {"by": by, "reason": reason, "linked": linked, "notes": notes})
        if confirm
        else _look(settings, id_)
    )
    if as_json:
        show.json_document(found.document)
        return
    whom = ", ".join(found.customers)
    if not found.done:
        show.say(
            f"Would erase personal data of {whom}: {len(found.facts)} objects, {len(found.cases)} cases, and events."
        )
        show.say("Nothing was changed. It cannot be undone: say --confirm.")
        return
    show.say(
        f"Erased personal data of {whom}: {len(found.facts)} objects, {len(found.cases)} cases, {found.payloads} events."
    )


async def _look(settings: Settings, id_: str) -> Erasure:
    async with open_desk(settings, change=True) as desk:
        return await privacy.look(desk.conn, desk.realms, id_)


async def _erase(settings: Settings, id_: str, said: dict[str, Any]) -> Erasure:
    from worker.jobs import court_of

    async with with_database(settings) as served:
        async with open_desk(served, change=True) as desk:
            court = court_of(served)
            found = await privacy.erase(desk.conn, court, desk.realms, id_, **said)
        pool = await connect_pool(
            served.database_dsn(), role="cli", max_size=1, statement_timeout_s=STATEMENT_TIMEOUT_S
        )
        try:
            with Console(stderr=True).status("looking for events ...") as status:
                await privacy.erase_payloads(
                    pool,
                    found,
                    lambda looked: status.update(f"looked into {looked:,} events, {found.payloads:,} erased"),
                )
        finally:
            pool.terminate()
    return found
