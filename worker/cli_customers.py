"""`finalsale customers list` and `find`, and the policy files that were in force: what the console lists, on the command line."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from handlers.wire import email_hash
from worker import audit, reading, show
from worker.db import queries
from worker.desk import Desk, ask
from worker.options import Json, Limit
from worker.settle import key_hash

PAGE = 50
"""Rows where no --limit is given."""


def list_customers(*, limit: Limit = None, as_json: Json = False) -> None:
    """Customers that are not in good standing, the newest change first. `decisions` lists those judged last."""
    most = PAGE if limit is None else limit
    if most < 1:
        raise reading.NotUnderstood("--limit is a number of rows, 1 or more.")

    async def look(desk: Desk) -> list[reading.Document]:
        here = {"realms": desk.realms, "before_at": None, "before_id": None, "most": most}
        return [dict(row) for row in await reading.fetch(desk.conn, queries.console_not_good, **here)]

    found = ask(look)
    if as_json:
        show.json_document(found)
        return
    names = ("customer", "standing", "holds", "since", "realm")
    rows = ([one[name] for name in ("customer", "standing", "holds", "changed_at", "realm")] for one in found)
    show.table(names, rows, "Every customer is in good standing.")


def find(
    text: Annotated[str, Parameter(name="TEXT", help="An e-mail address, your app's id of a person, or - to read it from standard input.")],
    /,
    *,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Whom an e-mail address or your app's own id of a person names. For ids of Stripe's and ours: `explain`.

    Only its hash is compared; it is stored nowhere. With `-` it stays out of the shell's history too.
    """
    typed = (sys.stdin.readline() if text == "-" else text).strip()
    if not typed:
        raise reading.NotUnderstood("Say what to look for: an e-mail address, or your app's id of a person.")
    key = f"email:{email_hash(typed)}" if "@" in typed else f"person:{typed}"[:200]

    async def look(desk: Desk) -> list[reading.Document]:
        asked = {"realms": desk.realms, "keys": [key_hash(key)], "most": PAGE}
        return [dict(row) for row in await reading.fetch(desk.conn, queries.console_customers_by_key, **asked)]

    found = ask(look)
    if as_json:
        show.json_document(found)
        return
    rows = ([one["customer"], one["realm"], f"finalsale customers show {one['customer']}"] for one in found)
    show.table(("customer", "realm", "look"), rows, "Nobody is known by that.")


def policy_files(*, limit: Limit = None, as_json: Json = False) -> None:
    """Every policy file that a worker began to judge by, the newest first: its versions, its SHA-256, when and by whom."""

    async def look(desk: Desk) -> list[reading.Document]:
        return await audit.policies(desk.conn, limit)

    found = ask(look)
    if as_json:
        show.json_document(found)
        return
    names = ("seen", "versions", "agreements", "worker", "sha256")
    rows = (
        [one["seen_at"], ", ".join(one["versions"]), one["agreements"], one["worker"], one["sha256"]] for one in found
    )
    show.table(names, rows, "No worker has started yet.")
