"""Operators: the people who may sign in to the console, their roles, and the tokens they sign in with."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import unicodedata
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
LAST_ADMIN_LIFETIME = timedelta(days=1)
"""What a new token of the only admin lasts at least."""

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


# U+2800 is no ignorable, but as blank as they are
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Unicode's Default_Ignorable_Code_Point: what a font shows nothing for."""
_ALPHABETS = frozenset({"LATIN", "CYRILLIC", "GREEK", "COPTIC", "ARMENIAN", "CHEROKEE"})
"""Those whose letters look like each other's (UTS 39)."""


# names, roles, secrets -----------------------------------------------------------------------------------------------------


def checked_name(name: str) -> str:
    """An operator's name on one line; it stands beside everything that is done with it. Raises OperatorInvalid."""
    told = unicodedata.normalize("NFC", " ".join(name.split()))
    if not told or len(told) > MAX_NAME or not told.isprintable() or _UNSEEN.search(told):
        raise OperatorInvalid(f"An operator's name is 1 to {MAX_NAME} printable characters.")
    letters = (char for char in unicodedata.normalize("NFKC", told) if char.isalpha())
    if len(_ALPHABETS.intersection(unicodedata.name(char, "").partition(" ")[0] for char in letters)) > 1:
        raise OperatorInvalid(
            "An operator's name has letters of one alphabet: those of two can look like another name."
        )
    return told


def folded(name: str) -> str:
    """What two names have in common that mean one person: the two-person rule compares them so.

    Unicode's NFKC_Casefold without what nobody sees: "José" is one name however it is encoded. Repeated until nothing changes,
    since folding can undo what normalizing did.
    """
    before, told = None, name
    while told != before:
        before, told = told, _UNSEEN.sub("", unicodedata.normalize("NFKC", told).casefold())
        told = " ".join(unicodedata.normalize("NFKC", told).split())
    return told


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


def sieve_of(secret: str) -> bytes:
    """32 bits of a hash of the secret part, kept beside its argon2id hash: what they do not fit is wrong, at no price.

    224 of the secret's 256 bits stay unknown to whoever reads them.
    """
    return hashlib.sha256(secret.encode()).digest()[:4]


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

    Raises OperatorInvalid, also where it is the last admin's and would end within LAST_ADMIN_LIFETIME.
    """
    giver = checked_name(by)
    row = await _locked(conn, name)
    if lifetime is not None and lifetime < LAST_ADMIN_LIFETIME:
        await _keep_an_admin(conn, row)
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
    """Refuse a token from now on, and end its sessions.

    Raises OperatorInvalid where it is not valid, and where no admin could sign in any more.
    """
    giver = checked_name(by)
    split = split_token(token_id)  # whoever pastes the whole token means this one
    id_ = split[0] if split else token_id.strip()
    await queries.lock_operators(conn)
    holder = await queries.find_operator_token(conn, id=id_)
    if holder is not None:
        await _keep_an_admin(conn, holder, token=id_)
    row = await queries.revoke_operator_token(conn, id=id_) if re.fullmatch("[0-9a-f]{8}", id_) else None
    if row is None:
        raise OperatorInvalid("No token that could be revoked has this id: see `finalsale operator list`.")
    await audit.record(
        conn, audit.EVERYWHERE, by=giver, via=via, act="operator.revoke", subject=row["operator"], before={"token": id_}
    )
    return {"id": id_, "name": row["operator"], "revoked_at": row["revoked_at"]}


async def known_to_decide(conn: Connection, name: str) -> bool:
    """Whether the name is one of an active operator who may decide. True as long as there are no operators at all."""
    row = await queries.operator_who_decides(conn, folded=folded(name))
    return bool(row["is_one"] or not row["are_known"])


async def _locked(conn: Connection, name: str) -> asyncpg.Record:
    # one lock for all: of two admins, each removing the other, one comes second and finds that it may not
    await queries.lock_operators(conn)
    row: asyncpg.Record | None = await queries.find_operator(conn, folded=folded(name))
    if row is None:
        raise OperatorInvalid("No operator has this name: see `finalsale operator list`.")
    return row


async def _keep_an_admin(conn: Connection, row: asyncpg.Record, token: str = "") -> None:
    """Refuse what would leave no admin who can sign in; with `token` the admin stays, and only this token goes."""
    if row["role"] != Role.ADMIN:
        return
    if not await queries.count_admins_besides(conn, operator="" if token else row["name"], token=token):
        instead = ", or rotate the token with an overlap of 0m" if token else ""
        raise OperatorInvalid(f"{row['name']} is the last admin who can sign in: make another one first{instead}.")


async def _new_token(conn: Connection, name: str, by: str, lifetime: timedelta | None) -> Document:
    if lifetime is not None and lifetime <= timedelta(0):
        raise OperatorInvalid("A token that expires at once is of no use: give it more time.")
    public, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    expires_at = None if lifetime is None else datetime.now(UTC) + lifetime
    await queries.add_operator_token(
        conn,
        id=public,
        operator=name,
        hash=await hash_of(secret),
        sieve=sieve_of(secret),
        by=by,
        expires_at=expires_at,
    )
    return {"id": public, "token": f"fso_{public}_{secret}", "expires_at": expires_at}


def _made(token: Document) -> Document:
    return {"token": token["token"], "token_id": token["id"], "expires_at": token["expires_at"]}
