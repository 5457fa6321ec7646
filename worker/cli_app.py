"""Commands about the merchant's app: the bearer tokens it shows to the API."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from worker import show
from worker import tokens as bearer_tokens
from worker.desk import ask
from worker.log import get_logger
from worker.options import By, Json

log = get_logger()

Expires = Annotated[str | None, Parameter(help="How long it is valid: 90d, 24h, 30m. Without it, until it is revoked.")]

tokens = App(name="tokens", help="Bearer tokens of the merchant's app.", default_parameter=Parameter(negative=""))


@tokens.command
def add(
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    scopes: Annotated[str, Parameter(help="What it may do, separated by commas: read, consume, cases.")],
    by: By,
    expires: Expires = None,
    as_json: Json = False,
) -> None:
    """Make a token and print it. It is shown this once; only its hash is kept."""

    async def act(desk: Any) -> Any:
        lifetime = bearer_tokens.length_of(expires) if expires else None
        return await bearer_tokens.add(
            desk.conn, name, bearer_tokens.scopes_of(scopes.split(",")), by=by, lifetime=lifetime
        )

    made = ask(act, change=True)
    log.info("api_token.added", token_id=made["id"], by=by)
    _show_made(made, as_json)


@tokens.command(name="list")
def list_tokens(*, as_json: Json = False) -> None:
    """Every token there was, the newest first: its name, what it may do, and whether it is valid."""
    found = ask(lambda desk: bearer_tokens.every(desk.conn))
    if as_json:
        show.json_document(found)
        return
    _table(found, "There are no tokens in the database; FINALSALE_API_TOKENS may name some.")


@tokens.command
def revoke(
    which: Annotated[str, Parameter(name="NAME|ID", help="A token's id, or the name that several may share.")],
    /,
    *,
    by: By,
    as_json: Json = False,
) -> None:
    """Refuse a token from now on. Every web process hears of it within two seconds."""
    ended = ask(lambda desk: bearer_tokens.revoke(desk.conn, which, by=by), change=True)
    for one in ended:
        log.info("api_token.revoked", token_id=one["id"], by=by)
    if as_json:
        show.json_document(ended)
        return
    _table(ended, "")


@tokens.command
def rotate(
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    by: By,
    overlap: Annotated[str, Parameter(help="How long the old ones stay valid: 24h, 30m, 0m.")] = "24h",
    expires: Expires = None,
    as_json: Json = False,
) -> None:
    """Make a new token with the scopes of the old, print it, and let the old ones end after the overlap."""

    async def act(desk: Any) -> Any:
        kept = bearer_tokens.length_of(overlap)
        lifetime = bearer_tokens.length_of(expires) if expires else None
        return await bearer_tokens.rotate(desk.conn, name, by=by, overlap=kept, lifetime=lifetime)

    made = ask(act, change=True)
    log.info("api_token.rotated", token_id=made["id"], by=by)
    _show_made(made, as_json)
    if not as_json:
        for old in made["replaces"]:
            show.say(f"The token {old['id']} is valid until {show.when(old['expires_at'])} UTC.")


def _show_made(made: bearer_tokens.Document, as_json: bool) -> None:
    if as_json:
        show.json_document(made)
        return
    _print_whole(made["token"])
    show.say(f"Keep it now: only its hash is stored. Scopes: {', '.join(made['scopes'])}; name: {made['name']}.")
    if made["expires_at"] is not None:
        show.say(f"It is valid until {show.when(made['expires_at'])} UTC.")


def _print_whole(token: str) -> None:
    """A token on a line of its own, never wrapped: it is copied from there."""
    show.console().print(show.plain(token), soft_wrap=True)


def _table(found: list[bearer_tokens.Document], nothing: str) -> None:
    columns = ("id", "name", "state", "scopes", "made (UTC)", "by", "valid until (UTC)")
    rows = [
        (
            one["id"],
            one["name"],
            one["state"],
            ", ".join(one["scopes"]),
            one["created_at"],
            one["created_by"],
            one["revoked_at"] or one["expires_at"],
        )
        for one in found
    ]
    show.table(columns, rows, nothing)
