"""The merchant's app's way in, `/api/v1/`: may this customer go on, consume its credits, open a case."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from aiohttp import web
from aiolimiter import AsyncLimiter
from prometheus_client import CollectorRegistry, Counter, Histogram

from handlers import account, terms
from handlers.cases import CaseRequest
from handlers.customer import CustomerId, Seconds
from handlers.terms import SHIPPED_POLICY, Policy, load_policy
from worker import cases
from worker.api_document import (
    CASE_KEY_PATTERN,
    KEY_HEADER,
    KEY_PATTERN,
    PREFIX,
    Access,
    Case,
    Code,
    Consumed,
    ConsumeRequest,
    Credits,
    Customer,
    ErrorDocument,
    Hold,
    Lot,
    Operation,
    openapi,
)
from worker.api_request import (
    RETRY_AFTER_S,
    Refusal,
    account_of,
    body_of,
    checked_id,
    decoded,
    key_of,
    nowhere,
    operation_of,
    refusal_of,
    shown_token,
    unauthorized,
    unknown_customer,
)
from worker.db import Pool, connect_pool, connection, queries, transaction
from worker.errors import PolicyInvalid
from worker.reading import NotFound
from worker.settings import Settings
from worker.tokens import Bearer, Tokens, configured_tokens, digest_of

POOL_SIZE = 6
POOL_WAIT_S = 2.0  # for a free connection; whoever waits longer is told to come back
STATEMENT_TIMEOUT_S = 5.0
LOCK_TIMEOUT_S = 2.0
TOKEN_PER_S = 500
"""Requests a second of one token in one web process; as many may come at once."""
ANONYMOUS_PER_S = 50
"""Requests a second of all who show no valid token, together. Nobody with a token waits for them."""

_read_account = msgspec.json.Decoder(account.Account).decode
_decode_case = msgspec.json.Decoder(CaseRequest).decode
_read_consumption = msgspec.json.Decoder(ConsumeRequest).decode
_encode = msgspec.json.Encoder().encode


class Call(NamedTuple):
    """One request, as far as it was understood."""

    request: web.Request
    id: str
    realm: str
    bearer: Bearer | None
    body: bytes


Run = Callable[["Api", Call], Awaitable[tuple[int, Any]]]


class Api:
    """The endpoints, their tokens and their own few connections, apart from the intake's."""

    pool: Pool
    tokens: Tokens
    policy: Policy

    def __init__(self, settings: Settings, registry: CollectorRegistry) -> None:
        self._settings = settings
        try:
            self.policy = load_policy(settings.policy or SHIPPED_POLICY)
        except terms.PolicyInvalid as invalid:
            raise PolicyInvalid(str(invalid)) from None
        self._configured = configured_tokens(settings.api_tokens.get_secret_value() if settings.api_tokens else "")
        self._limiters: dict[str, AsyncLimiter] = {}
        self._anonymous = AsyncLimiter(ANONYMOUS_PER_S, 1)
        self._answers = Counter(
            "finalsale_api_answers", "Requests answered", ["operation", "status"], registry=registry
        )
        buckets = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
        self._seconds = Histogram(
            "finalsale_api_seconds", "Time of one answer", ["operation"], buckets=buckets, registry=registry
        )

    async def connected(self, _: web.Application) -> AsyncIterator[None]:
        """Hold the connections and keep the tokens fresh while the web process serves."""
        self.pool = await connect_pool(
            self._settings.database_dsn(),
            role="api",
            min_size=0,  # the tokens' refresh keeps one open; a web process has to start without Postgres
            max_size=POOL_SIZE,
            statement_timeout_s=STATEMENT_TIMEOUT_S,
            lock_timeout_s=LOCK_TIMEOUT_S,
        )
        self.tokens = Tokens(self._configured, self.pool)
        refreshing = asyncio.create_task(self.tokens.run(), name="tokens")
        yield
        refreshing.cancel()
        with suppress(asyncio.CancelledError):
            await refreshing
        self.pool.terminate()

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request, whatever it is, with JSON."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        operation, name, allowed = operation_of(request)
        headers: dict[str, str] = {}
        try:
            bearer = await self._admitted(request)
            if operation is None:
                raise nowhere(allowed)
            status, document = await self._carried_out(operation, name, request, bearer)
        except Exception as error:
            refusal = error if isinstance(error, Refusal) else refusal_of(error)
            status, document = refusal.status, ErrorDocument(error=refusal.problem)
            headers = refusal.headers
        told = operation.name if operation else "none"
        self._answers.labels(told, status).inc()
        self._seconds.labels(told).observe(loop.time() - began)
        body = document if isinstance(document, bytes) else _encode(document)
        return web.Response(
            body=body, status=status, content_type="application/json", headers={"Cache-Control": "no-store", **headers}
        )

    async def _admitted(self, request: web.Request) -> Bearer | None:
        """Whose token the request shows, if it is anybody's, within the limits of both kinds. Raises Refusal."""
        shown = shown_token(request)
        digest = digest_of(shown) if shown is not None else None
        bearer = self.tokens.known(digest) if digest is not None else None
        if bearer is None:
            # before Postgres is asked: guessing must cost us less than the guesser. While memory is too old to tell a guess from a
            # token, all wait for the same query, and guesses are counted after it.
            counted = digest is None or self.tokens.current()
            if counted:
                await _take(self._anonymous)
            bearer = await self.tokens.look_up(digest) if digest is not None else None
            if bearer is None:
                if not counted:
                    await _take(self._anonymous)
                return None
        limiter = self._limiters.get(bearer.id)
        if limiter is None:
            limiter = self._limiters[bearer.id] = AsyncLimiter(TOKEN_PER_S, 1)
        await _take(limiter)
        return bearer

    async def _carried_out(
        self, operation: Operation, name: str, request: web.Request, bearer: Bearer | None
    ) -> tuple[int, Any]:
        if operation.scope is not None:
            if bearer is None:
                raise unauthorized(request)
            if operation.scope not in bearer.scopes:
                raise Refusal(Code.MISSING_SCOPE, f"This token has not the scope `{operation.scope}`.")
        id_ = checked_id(name) if "{id}" in operation.path else ""
        realm = self._settings.realm(account_of(request))
        body = await body_of(request) if operation.body is not None else b""
        run = RUN[operation.name]
        return await run(self, Call(request, id_, realm, bearer, body))


async def _take(limiter: AsyncLimiter) -> None:
    if not limiter.has_capacity():
        raise Refusal(Code.TOO_MANY, "Too many requests: wait a moment.", headers={"Retry-After": str(RETRY_AFTER_S)})
    await limiter.acquire()


# the operations ------------------------------------------------------------------------------------------------------------


async def show_customer(api: Api, call: Call) -> tuple[int, Customer]:
    """Standing, access and credits of one customer, as of one moment."""
    async with connection(api.pool, timeout_s=POOL_WAIT_S) as conn:
        row = await queries.customer_now(conn, realm=call.realm, customer=call.id)
    if not row["known"]:
        raise unknown_customer(call.id)
    now: datetime = row["now"]
    lots = [_lot(fields, now) for fields in row["lots"]]
    available = sum(lot.available for lot in lots)
    standing = account.Standing(row["standing"] or account.Standing.GOOD)
    until: datetime | None = row["access_until"]
    serves = until is not None and until > now
    judged = _read_account(row["body"]) if row["body"] is not None else account.Account(customer=CustomerId(call.id))
    return 200, Customer(
        customer=call.id,
        as_of=now,
        standing=standing,
        may_continue=standing is not account.Standing.SUSPENDED and (serves or available > 0),
        holds=_holds(judged),
        access_until=until,
        access=[_access(one) for one in judged.access],
        credits=Credits(available=available, lots=lots),
    )


async def consume_credits(api: Api, call: Call) -> tuple[int, Consumed]:
    """Consume credits once for a key of the caller's."""
    asked = decoded(call.body, _read_consumption)
    key = key_of(call.request, asked.key, KEY_PATTERN)
    if key is None:
        raise Refusal(Code.INVALID, f"A key is missing: in the body, or as the header {KEY_HEADER}.", field="key")
    async with connection(api.pool, timeout_s=POOL_WAIT_S) as conn:
        row = await queries.consume(conn, realm=call.realm, customer=call.id, key=key, amount=asked.amount)
    if not row["known"]:
        raise unknown_customer(call.id)
    match row["outcome"]:
        case "consumed" | "repeated" as outcome:
            return 200, Consumed(outcome=outcome, consumed=row["consumed"], remaining=row["remaining"])
        case "other_amount":
            raise Refusal(
                Code.OTHER_AMOUNT,
                f"This key has consumed {row['consumed']} credits before: use a key of its own for another amount.",
                field="amount",
                consumed=row["consumed"],
            )
        case "suspended":
            raise Refusal(
                Code.SUSPENDED,
                "The customer is suspended: nothing is consumed while a hold that suspends is open.",
                holds=_holds(_read_account(row["account"])),
            )
        case _:
            raise Refusal(
                Code.INSUFFICIENT, f"Only {row['available']} credits are available.", available=row["available"]
            )


async def open_case(api: Api, call: Call) -> tuple[int, Case]:
    """Open a case, or find the one that this key opened before."""
    asked = decoded(call.body, _read_case)
    asked = msgspec.structs.replace(asked, request_key=key_of(call.request, asked.request_key, CASE_KEY_PATTERN))
    assert call.bearer is not None
    try:
        async with transaction(api.pool, timeout_s=POOL_WAIT_S) as conn:
            now = await queries.case_moment(conn, realm=call.realm)
            case = await cases.open_case(conn, api.policy, call.realm, asked, by=call.bearer.name, via="app")
    except cases.CaseConflict as error:
        raise Refusal(Code.OTHER_REQUEST, str(error), field="request_key") from None
    except cases.CaseInvalid as error:
        raise Refusal(Code.INVALID, str(error), field=str(error).partition(":")[0]) from None
    return 201 if case["opened_at"] == now else 200, msgspec.convert(case, Case)


def _read_case(body: bytes) -> CaseRequest:
    try:
        return _decode_case(body)
    except msgspec.ValidationError:
        return cases.read_request(body)  # refuses it too, and says how to write it


async def show_case(api: Api, call: Call) -> tuple[int, Case]:
    """One case, by its whole id."""
    try:
        async with connection(api.pool, timeout_s=POOL_WAIT_S) as conn:
            case = await cases.show_case(conn, [call.realm], call.id)
    except NotFound:
        case = {}
    if case.get("id") != call.id:
        raise Refusal(Code.NOT_FOUND, f"There is no case {call.id}.", field="id")
    return 200, msgspec.convert(case, Case)


async def show_openapi(_: Api, __: Call) -> tuple[int, bytes]:
    """The description of all this, which programs read."""
    return 200, DOCUMENT


DOCUMENT = _encode(openapi())
RUN: dict[str, Run] = {
    "show_customer": show_customer,
    "consume_credits": consume_credits,
    "open_case": open_case,
    "show_case": show_case,
    "show_openapi": show_openapi,
}


def _holds(judged: account.Account) -> list[Hold]:
    return [
        Hold(
            subject=hold.subject,
            since=_time(hold.since),
            status=hold.status,
            suspends=hold.suspends,
            cause=hold.outward_cause,
            charge=hold.charge,
            due_by=None if hold.due_by is None else _time(hold.due_by),
        )
        for hold in judged.holds
    ]


def _access(one: account.Access) -> Access:
    return Access(
        subscription=one.subscription,
        status=one.status,
        way=one.way,
        until=None if one.until is None else _time(one.until),
        cause=one.cause,
        requested_at=None if one.requested_at is None else _time(one.requested_at),
        ended_at=None if one.ended_at is None else _time(one.ended_at),
        reason=one.reason,
    )


def _lot(fields: tuple[Any, ...], now: datetime) -> Lot:
    id_, kind, clause, granted, consumed, remaining, granted_at, ends_at = fields
    return Lot(
        id=id_,
        kind=account.LotKind(kind),
        clause=clause,
        granted=granted,
        consumed=consumed,
        available=remaining if ends_at is None or ends_at > now else 0,
        granted_at=granted_at,
        ends_at=ends_at,
    )


def _time(seconds: Seconds) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


# in the web process --------------------------------------------------------------------------------------------------------


def mount(app: web.Application, settings: Settings, registry: CollectorRegistry) -> None:
    """Put the API on `app`. It starts and ends with it, also while Postgres is down. Raises SettingsInvalid."""
    api = Api(settings, registry)
    app.router.add_route("*", PREFIX + r"{rest:[\s\S]*}", api.handle)
    app.cleanup_ctx.append(api.connected)
