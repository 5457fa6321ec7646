"""Operators: the people who may sign in to the console, their roles, and the tokens they sign in with."""

from __future__ import annotations

import asyncio
import re
import secrets
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

import asyncpg
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from worker import audit
from worker.db import Connection, queries
from worker.errors import Permanent
from worker.reading import fetch

DEFAULT_OVERLAP = timedelta(hours=24)
MAX_NAME = 60

Document = dict[str, Any]

_TOKEN = re.compile(r"fso_([0-9a-f]{8})_([A-Za-z0-9_-]{43})", re.ASCII).fullmatch
# 32 MiB and three passes take some 60 ms of one core: a guess is dear, and the secret has 256 random bits on top
_HASHER = PasswordHasher(time_cost=3, memory_cost=32 * 1024, parallelism=1)


class Role(StrEnum):
    """What an operator may do; each role may do what those before it may."""

    READ = "read"
    """See everything."""
    DECIDE = "decide"
    """Answer reviews, cases and chargebacks, act on accounts, replay, acknowledge."""
    ADMIN = "admin"
    """Make, change and remove operators."""

    def allows(self, needed: Role) -> bool:
        """Whether whoever has this role may do what needs the other."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


class Operator(NamedTuple):
    """Somebody who signed in."""

    name: str
    role: Role


class OperatorInvalid(Permanent):
    """What was asked for cannot be done with this operator or token; the message says what can."""

    error_code = "operator_invalid"


# names, roles, secrets -----------------------------------------------------------------------------------------------------


def checked_name(name: str) -> str:
    """An operator's name on one line; it stands beside everything that is done with it. Raises OperatorInvalid."""
    told = " ".join(name.split())
    if not told or len(told) > MAX_NAME or not told.isprintable():
        raise OperatorInvalid(f"An operator's name is 1 to {MAX_NAME} printable characters.")
    return told


def folded(name: str) -> str:
    """What two names have in common that mean one person: the two-person rule compares them so."""
    return " ".join(name.split()).casefold()


def role_of(word: str) -> Role:
    """The role that `word` names. Raises OperatorInvalid."""
    try:
        return Role(word.strip())
    except ValueError:
        raise OperatorInvalid(f"A role is one of {', '.join(Role)}.") from None


def split_token(token: str) -> tuple[str, str] | None:
    """The public and the secret part of `fso_<public>_<secret>`, or None where it is no token of ours."""
    told = _TOKEN(token.strip())
    return (told[1], told[2]) if told else None


async def hash_of(secret: str) -> str:
    """What is kept of a token's secret part: argon2id, in a thread."""
    return await asyncio.to_thread(_HASHER.hash, secret)


async def matches(hash_: str, secret: str) -> bool:
    """Whether `secret` is the one that was hashed, in a thread."""

    def check() -> bool:
        try:
            return _HASHER.verify(hash_, secret)
        except (VerificationError, InvalidHashError):
            return False

    return await asyncio.to_thread(check)


# what is done with operators. All run in the caller's transaction ----------------------------------------------------------


async def add(
    conn: Connection,
    name: str,
    role: Role,
    *,
    by: str,
    lifetime: timedelta | None = None,
    via: str = "cli",
) -> Document:
    """Make an operator. The answer has the token whole under `token`, which nobody can ever read again.

    Raises OperatorInvalid where the name is taken, also by somebody who was removed: what was done with it stays theirs.
    """
    told, giver = checked_name(name), checked_name(by)
    row = await queries.add_operator(conn, name=told, folded=folded(told), role=role.value, by=giver)
    if row is None:
        raise OperatorInvalid(
            f"The name {told!r} is taken, maybe by an operator who was removed: choose another, or rotate the token of this one."
        )
    token = await _new_token(conn, told, giver, lifetime)
    await audit.record(
        conn,
        audit.EVERYWHERE,
        by=giver,
        via=via,
        act="operator.add",
        subject=told,
        after={"role": role.value, "token": token["id"]},
    )
    return {"name": told, "role": role.value, **_made(token)}


async def every(conn: Connection) -> list[Document]:
    """All operators by name, those who were removed last, each with its tokens, without anything secret."""
    tokens: dict[str, list[Document]] = {}
    for row in await fetch(conn, queries.list_operator_tokens):
        names = ("id", "state", "created_at", "created_by", "expires_at", "revoked_at")
        tokens.setdefault(row["operator"], []).append({name: row[name] for name in names})
    found = []
    for row in await fetch(conn, queries.list_operators):
        names = ("name", "role", "created_at", "created_by", "removed_at", "seen_at")
        found.append({**{name: row[name] for name in names}, "tokens": tokens.get(row["name"], [])})
    return found


async def remove(conn: Connection, name: str, *, by: str, via: str = "cli") -> Document:
    """End an operator with all tokens and sessions; the name stays taken. Raises OperatorInvalid, also for the last admin."""
    giver = checked_name(by)
    row = await _locked(conn, name)
    await _keep_an_admin(conn, row)
    await queries.remove_operator(conn, name=row["name"])
    await audit.record(
        conn,
        audit.EVERYWHERE,
        by=giver,
        via=via,
        act="operator.remove",
        subject=row["name"],
        before={"role": row["role"]},
    )
    return {"name": row["name"], "role": row["role"], "removed": True}


async def set_role(conn: Connection, name: str, role: Role, *, by: str, via: str = "cli") -> Document:
    """Give an operator another role, from the next request on. Raises OperatorInvalid, also where no admin would be left."""
    giver = checked_name(by)
    row = await _locked(conn, name)
    if role is not Role.ADMIN:
        await _keep_an_admin(conn, row)
    await queries.set_operator_role(conn, name=row["name"], role=role.value)
    await audit.record(
        conn,
        audit.EVERYWHERE,
        by=giver,
        via=via,
        act="operator.role",
        subject=row["name"],
        before={"role": row["role"]},
        after={"role": role.value},
    )
    return {"name": row["name"], "role": role.value}


async def rotate(
    conn: Connection,
    name: str,
    *,
    by: str,
    overlap: timedelta | None = None,
    lifetime: timedelta | None = None,
    via: str = "cli",
) -> Document:
    """A new token for an operator; the others end after `overlap` (DEFAULT_OVERLAP) and with them their sessions.

    Raises OperatorInvalid.
    """
    giver = checked_name(by)
    row = await _locked(conn, name)
    old = await fetch(
        conn, queries.end_operator_tokens, name=row["name"], overlap=DEFAULT_OVERLAP if overlap is None else overlap
    )
    token = await _new_token(conn, row["name"], giver, lifetime)
    replaces = [{"id": one["id"], "expires_at": one["expires_at"]} for one in old]
    await audit.record(
        conn,
        audit.EVERYWHERE,
        by=giver,
        via=via,
        act="operator.rotate",
        subject=row["name"],
        before={"tokens": [one["id"] for one in old]},
        after={"token": token["id"]},
    )
    return {"name": row["name"], "role": row["role"], **_made(token), "replaces": replaces}


async def revoke(conn: Connection, token_id: str, *, by: str, via: str = "cli") -> Document:
    """Refuse a token from now on, and end its sessions. Raises OperatorInvalid where it is not valid."""
    giver = checked_name(by)
    split = split_token(token_id)  # whoever pastes the whole token means this one
    id_ = split[0] if split else token_id.strip()
    row = await queries.revoke_operator_token(conn, id=id_) if re.fullmatch("[0-9a-f]{8}", id_) else None
    if row is None:
        raise OperatorInvalid("No token that could be revoked has this id: see `finalsale operator list`.")
    await audit.record(
        conn, audit.EVERYWHERE, by=giver, via=via, act="operator.revoke", subject=row["operator"], before={"token": id_}
    )
    return {"id": id_, "name": row["operator"], "revoked_at": row["revoked_at"]}


async def _locked(conn: Connection, name: str) -> asyncpg.Record:
    # one lock for all: of two admins, each removing the other, one comes second and finds that it may not
    await queries.lock_operators(conn)
    row: asyncpg.Record | None = await queries.find_operator(conn, folded=folded(name))
    if row is None:
        raise OperatorInvalid("No operator has this name: see `finalsale operator list`.")
    return row


async def _keep_an_admin(conn: Connection, row: asyncpg.Record) -> None:
    if row["role"] == Role.ADMIN and await queries.count_admins(conn) <= 1:
        raise OperatorInvalid(f"{row['name']} is the last admin: make another one first.")


async def _new_token(conn: Connection, name: str, by: str, lifetime: timedelta | None) -> Document:
    if lifetime is not None and not lifetime:
        raise OperatorInvalid("A token that expires at once is of no use: give it more time.")
    public, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    expires_at = None if lifetime is None else datetime.now(UTC) + lifetime
    await queries.add_operator_token(
        conn, id=public, operator=name, hash=await hash_of(secret), by=by, expires_at=expires_at
    )
    return {"id": public, "token": f"fso_{public}_{secret}", "expires_at": expires_at}


def _made(token: Document) -> Document:
    return {"token": token["token"], "token_id": token["id"], "expires_at": token["expires_at"]}
