"""`finalsale operator`: who may sign in to the console, with what role and tokens."""

from __future__ import annotations

import getpass
from datetime import timedelta
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from worker import operators, show
from worker.console_address import console_address
from worker.desk import Desk, ask
from worker.log import get_logger
from worker.operators import OperatorInvalid, Role
from worker.options import Json
from worker.tokens import TokenInvalid, length_of

log = get_logger()

operator_app = App(
    name="operator",
    help="Operators of the console: people, their roles and the tokens they sign in with.",
    default_parameter=Parameter(negative=""),
)
RoleName = Literal["read", "decide", "admin"]
Name = Annotated[str, Parameter(name="NAME")]
By = Annotated[str | None, Parameter(help="Your name, kept with what you do. Without it, your login name.")]
Expires = Annotated[
    str | None, Parameter(help="How long the token is valid: 90d, 24h, 30m. Without it, until it is revoked.")
]


@operator_app.command
def add(name: Name, /, *, role: RoleName, by: By = None, expires: Expires = None, as_json: Json = False) -> None:
    """Make an operator and print the token to sign in with. It is shown this once; only its hash is kept.

    The name stands beside everything that is done with it, and the two-person rule tells people apart by it.

    Parameters
    ----------
    role
        read: see everything. decide: answer and act too. admin: manage operators too.
    """

    async def act(desk: Desk) -> Any:
        lifetime = _length(expires)
        made = await operators.add(desk.conn, name, Role(role), by=_by(by), lifetime=lifetime)
        return made | {"console": console_address(desk.settings)}

    made = ask(act, change=True)
    log.info("operator.added", token_id=made["token_id"], role=role)
    _show_made(made, as_json)


@operator_app.command(name="list")
def list_operators(*, as_json: Json = False) -> None:
    """Every operator: role, valid tokens, when last seen in the console."""
    found = ask(lambda desk: operators.every(desk.conn))
    if as_json:
        show.json_document(found)
        return
    columns = ("name", "role", "last seen (UTC)", "made (UTC)", "by", "valid tokens")
    rows = []
    for one in found:
        role = "removed" if one["removed_at"] else one["role"]
        valid = [token["id"] for token in one["tokens"] if token["state"] == "valid"]
        made = (one["seen_at"], one["created_at"], one["created_by"])
        rows.append((one["name"], role, *made, ", ".join(valid) or "none"))
    show.table(columns, rows, "There are no operators: make the first with `finalsale operator add NAME --role admin`.")


@operator_app.command
def remove(name: Name, /, *, by: By = None, as_json: Json = False) -> None:
    """End an operator with all tokens and sessions. The name is not given again: what was done with it stays its own."""
    done = ask(lambda desk: operators.remove(desk.conn, name, by=_by(by)), change=True)
    _say(done, as_json, f"{done['name']} was removed and is signed out.")


@operator_app.command(name="role")
def set_role(
    name: Name, role: Annotated[RoleName, Parameter(name="ROLE")], /, *, by: By = None, as_json: Json = False
) -> None:
    """Give an operator another role: read, decide or admin. It counts from the next request on."""
    done = ask(lambda desk: operators.set_role(desk.conn, name, Role(role), by=_by(by)), change=True)
    _say(done, as_json, f"{done['name']} has the role {done['role']} now.")


@operator_app.command
def rotate(
    name: Name,
    /,
    *,
    overlap: Annotated[str, Parameter(help="How long the old tokens stay valid: 24h, 30m, 0m.")] = "24h",
    by: By = None,
    expires: Expires = None,
    as_json: Json = False,
) -> None:
    """Make a new token for an operator and print it; the old ones end after the overlap, and their sessions with them."""

    async def act(desk: Desk) -> Any:
        kept, lifetime = _length(overlap), _length(expires)
        made = await operators.rotate(desk.conn, name, by=_by(by), overlap=kept, lifetime=lifetime)
        return made | {"console": console_address(desk.settings)}

    made = ask(act, change=True)
    log.info("operator.rotated", token_id=made["token_id"])
    _show_made(made, as_json)


@operator_app.command
def revoke(
    token_id: Annotated[str, Parameter(name="TOKENID", help="The token's id, as `operator list` shows it.")],
    /,
    *,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Refuse a token from now on, and end the sessions that began with it."""
    done = ask(lambda desk: operators.revoke(desk.conn, token_id, by=_by(by)), change=True)
    _say(done, as_json, f"The token {done['id']} of {done['name']} is refused from now on.")


def _by(given: str | None) -> str:
    """Who acts: the name that was given, or the one of the login."""
    if given is not None:
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        raise OperatorInvalid("Say who you are: --by NAME.") from None


def _length(written: str | None) -> timedelta | None:
    try:
        return length_of(written) if written else None
    except TokenInvalid as error:
        raise OperatorInvalid(str(error)) from None


def _show_made(made: operators.Document, as_json: bool) -> None:
    if as_json:
        show.json_document(made)
        return
    show.console().print(show.plain(made["token"]), soft_wrap=True)  # on a line of its own: it is copied from there
    until = f"valid until {show.when(made['expires_at'])} UTC" if made["expires_at"] else "valid until it is revoked"
    show.say(f"Keep it now: only its hash is stored. Name: {made['name']}; role: {made['role']}; {until}.")
    for old in made.get("replaces", ()):
        show.say(f"The token {old['id']} ends {show.when(old['expires_at'])} UTC.")
    show.console().print(show.plain(f"Sign in at {made['console']}"), soft_wrap=True)


def _say(document: operators.Document, as_json: bool, sentence: str) -> None:
    if as_json:
        show.json_document(document)
    else:
        show.say(sentence)
