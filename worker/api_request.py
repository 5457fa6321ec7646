"""What a request to the API says, read with distrust, and how one is refused."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import unquote

import asyncpg
import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from handlers.cases import RequestInvalid
from worker.api_document import (
    ACCOUNT_HEADER,
    ACCOUNT_PATTERN,
    ID_PATTERN,
    KEY_HEADER,
    MEANING,
    PATHS,
    PREFIX,
    Code,
    Operation,
    Problem,
)
from worker.errors import DatabaseUnavailable
from worker.log import get_logger

log = get_logger()

MAX_BODY_BYTES = 64 * 1024
READ_TIMEOUT_S = 10.0
RETRY_AFTER_S = 1

_id = re.compile(ID_PATTERN, re.ASCII).fullmatch
_account = re.compile(ACCOUNT_PATTERN, re.ASCII).fullmatch
_field = re.compile(r" - at `\$\.?(.*)`$").search
_named_field = re.compile(r"^Object (?:missing required|contains unknown) field `(.*)`$", re.DOTALL).match

T = TypeVar("T")


class Refusal(Exception):
    """A request that is answered with an error: its code, a sentence for whoever reads it, and what else belongs to it."""

    def __init__(self, code: Code, message: str, *, headers: dict[str, str] | None = None, **told: Any) -> None:
        self.status = MEANING[code].status
        self.problem = Problem(code=code, message=message, **told)
        self.headers = headers or {}


# what a request says -------------------------------------------------------------------------------------------------------


def operation_of(request: web.Request) -> tuple[Operation | None, str, tuple[str, ...]]:
    """The operation, the id in its path, and the methods that the path knows (none: no such path)."""
    parts = request.rel_url.raw_path.removeprefix(PREFIX).split("/")
    for template, methods in PATHS:
        if len(template) == len(parts) and all(
            a == b or (a == "{id}" and b) for a, b in zip(template, parts, strict=True)
        ):
            name = next((b for a, b in zip(template, parts, strict=True) if a == "{id}"), "")
            return methods.get(request.method), unquote(name), tuple(methods)
    return None, "", ()


def shown_token(request: web.Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def checked_id(name: str) -> str:
    if not _id(name):
        raise Refusal(
            Code.INVALID,
            "The id in the path is 1 to 255 letters, digits, underscores, dots, colons or dashes.",
            field="id",
        )
    return name


def account_of(request: web.Request) -> str | None:
    """The connected account that the request is about, if it names one."""
    named = request.headers.get(ACCOUNT_HEADER)
    if named is not None and not _account(named):
        raise Refusal(Code.INVALID, f"{ACCOUNT_HEADER} is the id of a connected account, acct_….", field=ACCOUNT_HEADER)
    return named


def key_of(request: web.Request, in_body: str | UnsetType | None, pattern: str) -> str | None:
    """The caller's key, of the header or of the body. Both have to be the same."""
    header = request.headers.get(KEY_HEADER)
    key = header if in_body is UNSET or in_body is None else in_body
    if header is not None and header != key:
        raise Refusal(Code.INVALID, f"The header {KEY_HEADER} and the key in the body differ.", field=KEY_HEADER)
    if key is not None and not re.fullmatch(pattern, key, re.ASCII):
        field = KEY_HEADER if header is not None else "key"
        raise Refusal(Code.INVALID, f"A key here matches {pattern}.", field=field)
    return key


async def body_of(request: web.Request) -> bytes:
    content_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" or "Content-Encoding" in request.headers:
        raise Refusal(Code.UNSUPPORTED, "Send the body as application/json, without a Content-Encoding.")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise _too_large()
    parts = bytearray()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            while len(parts) <= MAX_BODY_BYTES and (part := await request.content.readany()):
                parts += part
    except TimeoutError:
        raise Refusal(Code.TOO_SLOW, "The body did not arrive in time.", headers={"Connection": "close"}) from None
    if len(parts) > MAX_BODY_BYTES:
        raise _too_large()
    return bytes(parts)


def decoded(body: bytes, read: Callable[[bytes], T]) -> T:
    """The body as what it has to be. Raises Refusal: 400 for what is no JSON, 422 with the field for what is not right."""
    try:
        document = read(body)
        json.loads(body, object_pairs_hook=_without_repetition)
        return document
    except msgspec.ValidationError as error:
        place = _field(str(error)) or _named_field(str(error))
        sentence = str(error).partition(" - at `")[0] + "."
        raise Refusal(Code.INVALID, sentence, field=place[1] if place and place[1] else UNSET) from None
    except RequestInvalid as error:
        raise Refusal(Code.INVALID, f"{error}.", field=error.field or UNSET) from None
    except (ValueError, RecursionError):  # DecodeError and UnicodeDecodeError are ValueErrors
        raise Refusal(Code.MALFORMED, MEANING[Code.MALFORMED].description) from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two programs may read a field that is named twice differently, so nobody may send one."""
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError
    return found


# refusals ------------------------------------------------------------------------------------------------------------------


def nowhere(allowed: tuple[str, ...]) -> Refusal:
    if allowed:
        allow = ", ".join(allowed)
        return Refusal(Code.METHOD, f"This path is for {allow}.", headers={"Allow": allow})
    return Refusal(Code.NOT_FOUND, f"There is no such path; {PREFIX}openapi.json lists them.")


def unauthorized(request: web.Request) -> Refusal:
    shown = "Authorization" in request.headers
    challenge = 'Bearer realm="finalsale"' + (', error="invalid_token"' if shown else "")
    return Refusal(
        Code.UNAUTHORIZED,
        "The token is not valid." if shown else "Show a token: Authorization: Bearer TOKEN.",
        headers={"WWW-Authenticate": challenge},
    )


def unknown_customer(id_: str) -> Refusal:
    return Refusal(Code.UNKNOWN_CUSTOMER, f"Nothing is known of a customer {id_}.", field="id")


def _too_large() -> Refusal:
    return Refusal(Code.TOO_LARGE, f"The body is larger than {MAX_BODY_BYTES} bytes.")


def refusal_of(error: Exception) -> Refusal:
    """What to say when something failed: come back, where that helps."""
    match error:
        case asyncpg.DataError():
            return Refusal(Code.INVALID, "A text has a character in it that cannot be stored.")
        case (
            DatabaseUnavailable()
            | asyncpg.TransactionRollbackError()
            | asyncpg.UndefinedTableError()
            | asyncpg.UndefinedFunctionError()
        ):
            message = "The books cannot be read now: come back in a moment. To repeat a request with its key is safe."
            return Refusal(Code.UNAVAILABLE, message, headers={"Retry-After": str(RETRY_AFTER_S)})
        case _:
            log.error("api.failed", exc_info=error)
            return Refusal(Code.FAILED, "This failed in a way nobody expected; the log says where.")
