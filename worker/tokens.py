"""Bearer tokens of the merchant's app: where they come from, what each may do, and how long one is believed."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

import asyncpg

from worker import audit
from worker.db import Connection, Pool, connection, queries
from worker.errors import DatabaseUnavailable, Permanent, SettingsInvalid

REFRESH_S = 1.0
STALE_AFTER_S = 2.0  # a revoked token is refused after that, whatever happens to Postgres
MIN_TOKEN_CHARACTERS = 16
DEFAULT_OVERLAP = timedelta(hours=24)
MOST_LIFETIME = timedelta(days=3650)

_VISIBLE = re.compile(r"[!-~]+", re.ASCII).fullmatch
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,99}", re.ASCII).fullmatch
_LENGTH = re.compile(r"([0-9]{1,9})([mhd])", re.ASCII).fullmatch
_UNITS_S = {"m": 60, "h": 3600, "d": 86_400}

Document = dict[str, Any]


class Scope(StrEnum):
    """What a token may be used for."""

    READ = "read"
    """Standing, access and credits of customers."""
    CONSUME = "consume"
    """Consuming credits."""
    CASES = "cases"
    """Opening and reading cases."""


class Bearer(NamedTuple):
    """Whoever presents a token: its public id, its name for people, and what it may do."""

    id: str
    name: str
    scopes: frozenset[Scope]


class TokenInvalid(Permanent):
    """A token's name, scopes or lifetime cannot be what was asked for; the message says what can."""

    error_code = "token_invalid"


def digest_of(token: str) -> bytes:
    """What is kept of a token. One plain hash is enough: ours are 256 random bits, and no guess hits a digest step by step."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


# of the environment --------------------------------------------------------------------------------------------------------


def configured_tokens(listed: str) -> dict[bytes, Bearer]:
    """The tokens of FINALSALE_API_TOKENS by their hash: `token` may do everything, `name:scope+scope:token` what it says.

    Raises SettingsInvalid with a sentence that counts the entries and never quotes one.
    """
    found: dict[bytes, Bearer] = {}
    for place, entry in enumerate((part.strip() for part in listed.split(",") if part.strip()), 1):
        where = f"FINALSALE_API_TOKENS: entry {place}"
        parts = entry.split(":", 2)
        if len(parts) == 2:
            raise SettingsInvalid(f"{where} is neither `token` nor `name:scope+scope:token`.")
        name, scopes, token = parts if len(parts) == 3 else (f"configured-{place}", "+".join(Scope), entry)
        if len(token) < MIN_TOKEN_CHARACTERS:
            raise SettingsInvalid(
                f"{where} has a token shorter than {MIN_TOKEN_CHARACTERS} characters: make it longer."
            )
        if not _VISIBLE(token):
            raise SettingsInvalid(f"{where} has a token with a character that no HTTP header carries.")
        try:
            bearer = Bearer(f"env_{place}", checked_name(name), scopes_of(scopes.split("+")))
        except TokenInvalid as error:
            raise SettingsInvalid(f"{where}: {error}") from None
        if found.setdefault(digest_of(token), bearer) is not bearer:
            raise SettingsInvalid(f"{where} is a token that stands there before: name each once.")
    return found


def scopes_of(words: Iterable[str]) -> frozenset[Scope]:
    """The scopes that `words` name. Raises TokenInvalid."""
    try:
        scopes = frozenset(Scope(word.strip()) for word in words)
    except ValueError:
        scopes = frozenset()
    if not scopes:
        raise TokenInvalid(f"Scopes are {', '.join(Scope)}: name one or more of them.")
    return scopes


def checked_name(name: str) -> str:
    """A token's name, which stands in lists and beside what was done with it. Raises TokenInvalid."""
    if not _NAME(name):
        raise TokenInvalid("A token's name is 1 to 100 letters, digits, spaces, dots, dashes, underscores or at signs.")
    return name


def length_of(text: str) -> timedelta:
    """`90d`, `24h` or `30m` as a length of time. Raises TokenInvalid."""
    told = _LENGTH(text)
    length = timedelta(seconds=int(told[1]) * _UNITS_S[told[2]]) if told else None
    if length is None or length > MOST_LIFETIME:
        raise TokenInvalid(f"A length of time is written 30m, 24h or 90d, and is at most {MOST_LIFETIME.days}d.")
    return length


# of the table --------------------------------------------------------------------------------------------------------------


async def add(
    conn: Connection,
    name: str,
    scopes: frozenset[Scope],
    *,
    by: str,
    lifetime: timedelta | None = None,
    via: str = "cli",
) -> Document:
    """Make a token. The answer has it whole under `token`, which nobody can ever read again. Raises TokenInvalid."""
    _refuse_nameless(by)
    if lifetime is not None and not lifetime:
        raise TokenInvalid("A token that expires at once is of no use: give it more time.")
    public = secrets.token_hex(4)
    token = f"fst_{public}_{secrets.token_urlsafe(32)}"
    row = await queries.add_token(
        conn,
        id=public,
        name=checked_name(name),
        hash=digest_of(token),
        scopes=sorted(scopes),
        by=by.strip(),
        expires_at=None if lifetime is None else datetime.now(UTC) + lifetime,
    )
    await _record(conn, "add", by, via, [_shown(row)])
    return {**_shown(row), "token": token}


def _refuse_nameless(by: str) -> None:
    if not by.strip():
        raise TokenInvalid("Say who changes the tokens: --by NAME.")


async def _record(conn: Connection, act: str, by: str, via: str, tokens: list[Document]) -> None:
    """One act for each token, with what is public of it."""
    for one in tokens:
        after = {name: one[name] for name in ("id", "scopes", "expires_at", "revoked_at")}
        told: Document = {"by": by.strip(), "via": via, "act": f"token.{act}", "subject": one["name"]}
        await audit.record(conn, audit.EVERYWHERE, after=after, **told)


async def every(conn: Connection) -> list[Document]:
    """All tokens, the newest first, without anything secret."""
    return [_shown(row) async for row in queries.list_tokens(conn)]


async def revoke(conn: Connection, which: str, *, by: str, via: str = "cli") -> list[Document]:
    """Refuse a token from now on: one by its id, or all of a name. Raises TokenInvalid where none of them is valid."""
    _refuse_nameless(by)
    ended = [_shown(row) async for row in queries.revoke_tokens(conn, which=which)]
    if not ended:
        raise TokenInvalid(f"No token that could be revoked has the id or name {which!r}: see `finalsale tokens list`.")
    await _record(conn, "revoke", by, via, ended)
    return ended


async def rotate(
    conn: Connection,
    name: str,
    *,
    by: str,
    overlap: timedelta = DEFAULT_OVERLAP,
    lifetime: timedelta | None = None,
    via: str = "cli",
) -> Document:
    """A new token of this name, with the scopes of its newest; the others stay valid for `overlap` and no longer.

    Raises TokenInvalid where no token of this name is valid.
    """
    _refuse_nameless(by)
    old = [_shown(row) async for row in queries.end_tokens(conn, name=name, overlap=overlap)]
    if not old:
        raise TokenInvalid(f"No valid token has the name {name!r}: see `finalsale tokens list`.")
    newest = max(old, key=lambda token: (token["created_at"], token["id"]))
    made = await add(conn, name, scopes_of(newest["scopes"]), by=by, lifetime=lifetime, via=via)
    await _record(conn, "end", by, via, old)
    return {**made, "replaces": [{"id": one["id"], "expires_at": one["expires_at"]} for one in old]}


def _shown(row: asyncpg.Record) -> Document:
    return {
        "id": row["id"],
        "name": row["name"],
        "state": row["state"],
        "scopes": list(row["scopes"]),
        "created_at": row["created_at"],
        "created_by": row["created_by"],
        "expires_at": row["expires_at"],
        "revoked_at": row["revoked_at"],
    }


# in the web process --------------------------------------------------------------------------------------------------------


class Tokens:
    """The tokens that are valid now: those of the environment, and the table's as of the last second.

    Memory answers for tokens it knows. One that it does not know causes at most one more query a second, however many are tried.
    """

    def __init__(self, configured: Mapping[bytes, Bearer], pool: Pool) -> None:
        self._configured = configured
        self._pool = pool
        self._stored: dict[bytes, Bearer] = {}
        self._loop = asyncio.get_running_loop()
        self._read_at = self._missed_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    def current(self) -> bool:
        """Whether memory is young enough to be believed."""
        return self._loop.time() - self._read_at < STALE_AFTER_S

    def known(self, digest: bytes) -> Bearer | None:
        """Whose token this is, as far as memory can say."""
        return self._configured.get(digest) or (self._stored.get(digest) if self.current() else None)

    async def look_up(self, digest: bytes) -> Bearer | None:
        """Whose token this is, from the table if it was not asked within a second. Raises DatabaseUnavailable."""
        if self._loop.time() - self._missed_at >= REFRESH_S:
            self._missed_at = self._loop.time()
            await self._read()
        elif self._reading is not None:
            await self._read()
        elif not self.current():
            raise DatabaseUnavailable("The tokens cannot be read from Postgres.")
        return self.known(digest)

    async def run(self) -> None:
        """Read the table every second, until cancelled."""
        while True:
            with suppress(DatabaseUnavailable):
                await self._read()
            await asyncio.sleep(REFRESH_S)

    async def _read(self) -> None:
        """One query for all who ask at the same time; who leaves does not take it from the others."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._fetch(), name="tokens")
            self._reading.add_done_callback(self._was_read)
        await asyncio.shield(self._reading)

    def _was_read(self, done: asyncio.Task[None]) -> None:
        self._reading = None
        if not done.cancelled():
            done.exception()  # every asker hears it; without one, nobody needs to

    async def _fetch(self) -> None:
        began = self._loop.time()
        try:
            async with connection(self._pool, timeout_s=STALE_AFTER_S) as conn:
                rows = [row async for row in queries.valid_tokens(conn)]
        except asyncpg.UndefinedTableError as error:
            raise DatabaseUnavailable("The database does not have this release's tables yet.") from error
        # a scope of a later release is none that this one could grant
        self._stored = {
            row["hash"]: Bearer(row["id"], row["name"], frozenset(s for s in Scope if s in row["scopes"]))
            for row in rows
        }
        self._read_at = began
