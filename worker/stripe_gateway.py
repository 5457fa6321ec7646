"""The one door to Stripe: reads as our facts, writes that are safe to repeat, every failure as ours, within a rate budget.

Reads are raw pages decoded by `handlers.events`; writes carry an idempotency key always, and are never repeated in here:
whoever writes has committed what it sends, and decides what an unknown outcome means (stripe.com/docs/api/idempotent_requests).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import msgspec
import stamina
import stripe
from aiolimiter import AsyncLimiter

from handlers.customer import AnyFact, BalanceRead, CustomerId, Invoice, Seconds, SessionId, SessionLines
from handlers.events import read_balance, read_list, read_object, read_session_lines
from worker.errors import OutcomeUnknown, SettingsInvalid, StripeRefused, StripeUnavailable
from worker.settings import Settings

API_VERSION = "2026-10-28.endive"
"""Sent with every request, whatever the account's default is: these are the shapes that our reads expect."""
CALL_TIMEOUT_S = 10.0
READS_PER_S = 20
"""Below Stripe's 25 per endpoint, so that a refund never waits behind our own reads."""
READ_ATTEMPTS = 4
PAGE_LIMIT = 100
MAX_PAGES = 50
"""Pages of one list read before money moves; a charge with more than 5,000 refunds is a person's matter."""


class Reply(msgspec.Struct, frozen=True):
    """Stripe's answer to a write."""

    id: str
    status: str | None
    replayed: bool
    """It was the stored answer to an earlier request with this key (`Idempotent-Replayed`)."""


class _Created(msgspec.Struct):
    id: str
    status: str | None = None


class _Page(msgspec.Struct):
    data: list[msgspec.Raw]
    has_more: bool


class StripeGateway:
    """Reads and writes at Stripe for one key. Close with `aclose`. A call is given up after `timeout_s`."""

    def __init__(self, settings: Settings, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        stripe.enable_telemetry = False  # it writes below the home directory, which is read-only in a container
        key = settings.stripe_api_key.get_secret_value() if settings.stripe_api_key else ""
        self.connected = bool(key)
        self.timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._key, self._base = key, settings.stripe_api_base
        self._client: stripe.StripeClient | None = None
        self._limits: dict[str, AsyncLimiter] = {}
        self.calls: dict[tuple[str, int], int] = {}

    def _stripe(self) -> stripe.StripeClient:
        if not self.connected:
            raise SettingsInvalid("STRIPE_API_KEY is not set: nothing can be read from Stripe or sent to it")
        if self._client is None:
            timeout = aiohttp.ClientTimeout(total=self.timeout_s, connect=5)
            self._session = aiohttp.ClientSession(timeout=timeout)
            self._client = stripe.StripeClient(
                self._key,
                stripe_version=API_VERSION,
                base_addresses={"api": self._base.rstrip("/")},
                http_client=stripe.AIOHTTPClient(timeout=self.timeout_s, session=self._session),
                max_network_retries=0,
            )
        return self._client

    async def aclose(self) -> None:
        """Close the connections to Stripe."""
        if self._session is not None:
            await self._session.close()

    async def read(self, path: str, account: str | None) -> AnyFact:
        """One object, `/v1/charges/ch_…`. Raises StripeRefused (404, permissions), StripeUnavailable, Unreadable."""
        body, as_of = await self._get(path, {}, account)
        fact = read_object(body, as_of)
        if isinstance(fact, Invoice) and not fact.lines_complete:
            return read_object(await self._with_all_lines(body, path, account), as_of)
        return fact

    async def _with_all_lines(self, invoice: bytes, path: str, account: str | None) -> bytes:
        """An invoice carries its first ten lines only; here it is with every one, from its own list of them."""
        whole = msgspec.json.decode(invoice)
        lines: list[Any] = []
        for _ in range(MAX_PAGES):
            cursor = {"starting_after": lines[-1]["id"]} if lines else {}
            body, _as_of = await self._get(f"{path}/lines", {"limit": PAGE_LIMIT, **cursor}, account)
            page = msgspec.json.decode(body)
            lines += page["data"]
            if not page["has_more"]:
                whole["lines"] = {**page, "data": lines}
                return msgspec.json.encode(whole)
        raise StripeRefused(f"{path}/lines has more than {MAX_PAGES} pages", code="too_long", status=0)

    async def read_all(self, path: str, filters: Mapping[str, Any], account: str | None) -> list[AnyFact]:
        """A whole list, every page of it, newest first. Raises as `read`, and StripeRefused where it does not end."""
        facts: list[AnyFact] = []
        cursor: dict[str, Any] = {}
        for _ in range(MAX_PAGES):
            body, as_of = await self._get(path, {**filters, "limit": PAGE_LIMIT, **cursor}, account)
            page, more = read_list(body, as_of)
            facts += page
            if not more or not page:
                return facts
            cursor = {"starting_after": page[-1].id}
        raise StripeRefused(f"{path} has more than {MAX_PAGES} pages", code="too_long", status=0)

    async def read_customer_balance(self, customer: CustomerId, account: str | None) -> BalanceRead:
        """A customer's balance transactions, newest first. Raises as `read`."""
        path = f"/v1/customers/{customer}/balance_transactions"
        body, as_of = await self._get(path, {"limit": PAGE_LIMIT}, account)
        return read_balance(customer, [body], as_of)

    async def read_session_lines(self, session: SessionId, account: str | None) -> SessionLines:
        """What was bought through a Checkout session, which its events do not carry. Raises as `read`."""
        path = f"/v1/checkout/sessions/{session}/line_items"
        body, as_of = await self._get(path, {"limit": PAGE_LIMIT}, account)
        return read_session_lines(session, [body], as_of)

    async def event_page(self, since_s: Seconds, after: str | None) -> tuple[list[bytes], bool, Seconds]:
        """One page of /v1/events, newest first: bodies as Stripe renders them, whether more follow, and Stripe's clock."""
        filters: dict[str, Any] = {"created": {"gte": since_s}, "limit": PAGE_LIMIT}
        body, as_of = await self._get("/v1/events", {**filters, **({"starting_after": after} if after else {})}, None)
        try:
            page = msgspec.json.decode(body, type=_Page)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StripeUnavailable(f"/v1/events: no whole page ({type(error).__name__})") from None
        return [bytes(raw) for raw in page.data], page.has_more, as_of

    async def refund(self, parameters: Mapping[str, Any], key: str, account: str | None) -> Reply:
        """POST /v1/refunds. Raises StripeRefused (nothing happened), OutcomeUnknown, StripeUnavailable (429: nothing happened)."""
        return await self._write("post", "/v1/refunds", parameters, key, account)

    async def cancel_subscription(
        self, subscription: str, parameters: Mapping[str, Any], key: str, account: str | None
    ) -> Reply:
        """DELETE /v1/subscriptions/…; already cancelled (404) is success. Raises as `refund`."""
        try:
            return await self._write("delete", f"/v1/subscriptions/{subscription}", parameters, key, account)
        except StripeRefused as refused:
            if refused.status == 404:
                return Reply(subscription, "canceled", replayed=True)
            raise

    async def adjust_balance(
        self, customer: str, parameters: Mapping[str, Any], key: str, account: str | None
    ) -> Reply:
        """POST /v1/customers/…/balance_transactions. Raises as `refund`."""
        return await self._write("post", f"/v1/customers/{customer}/balance_transactions", parameters, key, account)

    async def stage_evidence(self, dispute: str, fields: Mapping[str, str], key: str, account: str | None) -> Reply:
        """POST /v1/disputes/… with `submit=false`, always: without it the update would be submitted for good. Raises as `refund`."""
        return await self._write(
            "post", f"/v1/disputes/{dispute}", {"evidence": dict(fields), "submit": "false"}, key, account
        )

    async def _get(self, path: str, filters: Mapping[str, Any], account: str | None) -> tuple[bytes, Seconds]:
        """A read changes nothing, so it is repeated a few times before it counts as failed."""
        async for attempt in stamina.retry_context(
            on=StripeUnavailable, attempts=READ_ATTEMPTS, timeout=None, wait_initial=0.2, wait_max=2.0
        ):
            with attempt:
                return await self._get_once(path, filters, account)
        raise AssertionError("unreachable")

    async def _get_once(self, path: str, filters: Mapping[str, Any], account: str | None) -> tuple[bytes, Seconds]:
        client = self._stripe()
        await self._limit(path).acquire()
        try:
            async with asyncio.timeout(self.timeout_s + 1):
                answer = await client.raw_request_async("get", path, **filters, **_options(account))
        except stripe.StripeError as error:
            raise self._failure(path, error, wrote=False) from None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise StripeUnavailable(f"{path}: no whole answer ({type(error).__name__})") from None
        self._count(path, 200)
        body = answer.body
        return body.encode() if isinstance(body, str) else body, _stripe_clock(answer.headers)

    async def _write(
        self, method: str, path: str, parameters: Mapping[str, Any], key: str, account: str | None
    ) -> Reply:
        assert "/disputes" not in path or parameters.get("submit") == "false", "evidence is submitted by people only"
        client = self._stripe()
        try:
            async with asyncio.timeout(self.timeout_s + 1):
                answer = await client.raw_request_async(
                    method, path, **parameters, idempotency_key=key, **_options(account)
                )
            created = msgspec.json.decode(answer.body, type=_Created)
        except stripe.StripeError as error:
            raise self._failure(path, error, wrote=True) from None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise OutcomeUnknown(f"{path}: no whole answer ({type(error).__name__})") from None
        self._count(path, 200)
        return Reply(created.id, created.status, replayed=_replayed(answer.headers))

    def _failure(self, path: str, error: stripe.StripeError, *, wrote: bool) -> Exception:
        """Stripe's refusals and failures as ours. A lost connection or 5xx after a write leaves its outcome unknown."""
        status = error.http_status or 0
        told = error.json_body.get("error", {}) if isinstance(error.json_body, dict) else {}
        code = told.get("code") if isinstance(told, dict) else None
        self._count(path, status)
        sentence = f"{path}: {status or 'no answer'} {code or type(error).__name__}"
        if status in (401, 429):  # the key is being rolled, or the rate is too high: nothing happened, and it will pass
            return StripeUnavailable(sentence)
        if status == 409 and code == "idempotency_key_in_use":
            return OutcomeUnknown(sentence)
        if status == 0 or status >= 500:
            if not wrote:
                return StripeUnavailable(sentence)
            unknown = OutcomeUnknown(sentence)
            unknown.replayed = _replayed(error.headers or {})
            return unknown
        if status == 409:
            return StripeUnavailable(sentence)
        parameter = told.get("param") if isinstance(told, dict) else None
        detail = f" (param {parameter})" if isinstance(parameter, str) and parameter.isidentifier() else ""
        return StripeRefused(f"{sentence}{detail}", code=code or type(error).__name__, status=status)

    def _limit(self, path: str) -> AsyncLimiter:
        endpoint = path.split("/")[2] if path.count("/") > 1 else path
        if endpoint not in self._limits:
            self._limits[endpoint] = AsyncLimiter(READS_PER_S, 1)
        return self._limits[endpoint]

    def _count(self, path: str, status: int) -> None:
        key = (path.split("/")[2] if path.count("/") > 1 else path, status)
        self.calls[key] = self.calls.get(key, 0) + 1


def _options(account: str | None) -> dict[str, Any]:
    return {"stripe_account": account} if account else {}


def _replayed(headers: Mapping[str, str]) -> bool:
    return any(name.lower() == "idempotent-replayed" and value == "true" for name, value in headers.items())


def _stripe_clock(headers: Mapping[str, str]) -> Seconds:
    """When Stripe answered, by its own clock, so that reads and events are ordered by one clock; ours where it does not say."""
    told = next((value for name, value in headers.items() if name.lower() == "date"), None)
    try:
        return int(parsedate_to_datetime(told).timestamp()) if told else int(datetime.now(UTC).timestamp())
    except ValueError:
        return int(datetime.now(UTC).timestamp())
