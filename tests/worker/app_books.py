"""What the tests of the API need in the books, put there by SQL, and the app that asks for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import aiohttp
import msgspec

from handlers.account import Account, Standing
from handlers.customer import CustomerId
from worker.api_document import PATHS, Operation
from worker.db import Pool

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TOKEN = "app-token-of-the-tests"


async def put_account(
    pool: Pool, customer: str = "cus_A", *, until: datetime | None = None, realm: str = "test", **fields: Any
) -> None:
    """An account as the drain writes it."""
    account = Account(customer=CustomerId(customer), **fields)
    await pool.execute(
        "insert into accounts (realm, customer, standing, holds, access_until, body, changed_at)"
        " values ($1, $2, $3, $4, $5, $6, now())",
        realm,
        customer,
        Standing(account.standing).value,
        len(account.holds),
        until,
        msgspec.json.encode(account),
    )


async def put_lot(
    pool: Pool,
    id_: str,
    granted: int,
    *,
    customer: str = "cus_A",
    kind: str = "purchased",
    ends_at: datetime | None = None,
    realm: str = "test",
) -> None:
    """A lot and the entry that granted it, an hour ago."""
    await pool.execute(
        "insert into lots (realm, id, customer, kind, clause, granted_at, ends_at, cause) values ($1, $2, $3, $4, '3', $5, $6, 'x')",
        realm,
        id_,
        customer,
        kind,
        NOW - HOUR,
        ends_at,
    )
    await pool.execute(
        "insert into entries (realm, lot, customer, kind, amount, clause, cause, effective_at)"
        " values ($1, $2, $3, 'granted', $4, '3', 'paid', $5)",
        realm,
        id_,
        customer,
        granted,
        NOW - HOUR,
    )


class Told(NamedTuple):
    """An answer of the API."""

    status: int
    json: Any
    headers: Any

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


def _operation(method: str, path: str) -> Operation | None:
    parts = path.split("/")
    for template, methods in PATHS:
        if len(template) == len(parts) and all(
            b if a == "{id}" else a == b for a, b in zip(template, parts, strict=True)
        ):
            return methods.get(method)
    return None


class App:
    """The merchant's app, with its token."""

    def __init__(self, port: int, session: aiohttp.ClientSession, token: str | None = TOKEN) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self.session = session
        self.token = token

    async def ask(self, method: str, path: str, **request: Any) -> Told:
        """One request; `path` is behind /api/v1/. Whatever is answered has to be in the description."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        headers |= request.pop("headers", {})
        async with self.session.request(
            method, f"{self.base}/api/v1/{path}", headers=headers, allow_redirects=False, **request
        ) as answer:
            assert answer.content_type == "application/json"
            told = Told(answer.status, await answer.json() if method != "HEAD" else None, answer.headers)
        operation = _operation(method, path)
        if operation is None:
            assert told.status in (404, 405)
        elif told.status not in operation.answers:
            assert told.code in operation.codes()
        return told

    async def get(self, path: str, **request: Any) -> Told:
        return await self.ask("GET", path, **request)

    async def consume(self, amount: Any, key: Any, customer: str = "cus_A", **request: Any) -> Told:
        return await self.ask(
            "POST", f"customers/{customer}/credits/consume", json={"amount": amount, "key": key}, **request
        )
