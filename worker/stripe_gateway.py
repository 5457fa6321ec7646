"""The one door to Stripe: reads as our facts, writes that are safe to repeat, every failure as ours, within a rate budget.

Reads are plain GETs decoded by `handlers.events` (the SDK takes ten times as long for a page). Writes are the SDK's, carry an
idempotency key always, and are never repeated in here: whoever writes has committed what it sends, and decides what an
unknown outcome means (stripe.com/docs/api/idempotent_requests).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
import stamina
import stripe
from pydantic import SecretStr
from yarl import URL

from handlers.customer import AnyFact, BalanceRead, CustomerId, Invoice, Seconds, SessionId, SessionLines
from handlers.events import read_balance, read_list, read_object, read_session_lines
from worker.budget import Budget
from worker.errors import OutcomeUnknown, SettingsInvalid, StripeRefused, StripeUnavailable
from worker.metrics import counts, observe_call
from worker.settings import Settings

API_VERSION = "2026-10-28.endive"
"""Sent with every request, whatever the account's default is: these are the shapes that our reads expect."""
CALL_TIMEOUT_S = 10.0
READ_ATTEMPTS = 4
PAGE_ATTEMPTS = 10
"""Of a scan's page: where a fifth of all answers fail, one page in ten million is given up."""
READ_BUFFER = 1 << 20
"""A page of a hundred objects fits in, so that the connection need not be paused while it comes."""
T = TypeVar("T")
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
    secret: str | None = None


class RawPage(msgspec.Struct, frozen=True):
    """One page of a list, newest first: its objects undecoded, whether more follow, Stripe's clock, and the failed tries."""

    data: list[msgspec.Raw]
    has_more: bool
    as_of: Seconds
    retries: int


class _Page(msgspec.Struct, tag_field="object", tag="list"):
    data: list[msgspec.Raw]
    has_more: bool


class _Listed(msgspec.Struct, tag_field="object", tag="list"):
    data: list[Any]
    has_more: bool


class _Error(msgspec.Struct):
    type: Any = None
    code: Any = None
    param: Any = None


class _Told(msgspec.Struct):
    error: _Error


class _NoSuccess(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body


_SKIP = msgspec.json.Decoder(msgspec.Raw)
_PAGE = msgspec.json.Decoder(_Page)


def _whole(body: bytes) -> bytes:
    """The body, if it is a whole JSON document. Raises ValueError."""
    try:
        _SKIP.decode(body)
    except msgspec.DecodeError:
        json.loads(body)  # msgspec also refuses a lone surrogate: that is for whoever reads the object to judge
    return body


def _page_in(body: bytes) -> _Page:
    """The page in a body. Raises ValueError where it is no whole page of a list."""
    try:
        return _PAGE.decode(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        told = json.loads(body)  # whole after all: one object with a lone surrogate must not hide the other ninety-nine
        page = msgspec.convert(told, _Listed)
        return _Page([msgspec.Raw(json.dumps(each).encode()) for each in page.data], page.has_more)


class StripeGateway:
    """Reads and writes at Stripe for one key. Close with `aclose`. A call is given up after `timeout_s`.

    `budget` is how fast it reads; `page_attempts` how often a page of a scan is asked for.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        budget: Budget | None = None,
        page_attempts: int = PAGE_ATTEMPTS,
    ) -> None:
        stripe.enable_telemetry = False  # it writes below the home directory, which is read-only in a container
        key = settings.stripe_api_key.get_secret_value() if settings.stripe_api_key else ""
        self.connected = bool(key)
        self.timeout_s = timeout_s
        self.budget = budget or Budget()
        self.page_attempts = page_attempts
        self._session: aiohttp.ClientSession | None = None
        self._reader: aiohttp.ClientSession | None = None
        self._key, self._base = key, settings.stripe_api_base
        self.key_hash = hashlib.sha256(key.encode()).hexdigest()[:16]
        """Tells one key from another; nothing can be learnt of the key from it."""
        self._client: stripe.StripeClient | None = None
        self.ahead_s: float | None = None
        """How far our clock was ahead of Stripe's at the last read (negative: behind), seconds; 0.0 within what can be told."""
        self.ahead_at = -math.inf
        """When that was, by time.monotonic(): a clock may have been put right since."""

    def _needs_key(self) -> None:
        if not self.connected:
            raise SettingsInvalid("STRIPE_API_KEY is not set: nothing can be read from Stripe or sent to it")

    def _stripe(self) -> stripe.StripeClient:
        self._needs_key()
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
        for session in filter(None, (self._session, self._reader)):
            await session.close()

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
        path = f"/v1/customers/{quote(customer, safe='')}/balance_transactions"
        body, as_of = await self._get(path, {"limit": PAGE_LIMIT}, account)
        return read_balance(customer, [body], as_of)

    async def read_session_lines(self, session: SessionId, account: str | None) -> SessionLines:
        """What was bought through a Checkout session, which its events do not carry. Raises as `read`."""
        path = f"/v1/checkout/sessions/{quote(session, safe='')}/line_items"
        body, as_of = await self._get(path, {"limit": PAGE_LIMIT}, account)
        return read_session_lines(session, [body], as_of)

    async def page(
        self, path: str, filters: Mapping[str, Any], account: str | None = None, *, ahead: bool = False
    ) -> RawPage:
        """One page of a list. `filters` as Stripe nests them: `{"created": {"gte": 1}}`. `ahead`: see `Budget.take`.

        Raises StripeRefused, and StripeUnavailable after `page_attempts` that failed, were cut off, or were no page.
        """
        async for attempt in stamina.retry_context(
            on=StripeUnavailable, attempts=self.page_attempts, timeout=None, wait_initial=0.2, wait_max=5.0
        ):
            with attempt:
                page, as_of = await self._get_once(path, filters, account, _page_in, ahead=ahead)
                return RawPage(page.data, page.has_more, as_of, attempt.num - 1)
        raise AssertionError("unreachable")

    async def document(
        self, path: str, filters: Mapping[str, Any] | None = None, account: str | None = None
    ) -> tuple[bytes, Seconds]:
        """Any GET as Stripe rendered it, with Stripe's clock: what is configured there, not what was paid. Raises as `read`."""
        return await self._get(path, filters or {}, account)

    async def refund(self, parameters: Mapping[str, Any], key: str, account: str | None) -> Reply:
        """POST /v1/refunds. Raises StripeRefused (nothing happened), OutcomeUnknown, StripeUnavailable (429: nothing happened)."""
        return await self._write("post", "/v1/refunds", parameters, key, account)

    async def cancel_subscription(
        self, subscription: str, parameters: Mapping[str, Any], key: str, account: str | None
    ) -> Reply:
        """DELETE /v1/subscriptions/…; already cancelled (404) is success. Raises as `refund`."""
        try:
            return await self._write(
                "delete", f"/v1/subscriptions/{quote(subscription, safe='')}", parameters, key, account
            )
        except StripeRefused as refused:
            if refused.status == 404:
                return Reply(subscription, "canceled", replayed=True)
            raise

    async def adjust_balance(
        self, customer: str, parameters: Mapping[str, Any], key: str, account: str | None
    ) -> Reply:
        """POST /v1/customers/…/balance_transactions. Raises as `refund`."""
        return await self._write(
            "post", f"/v1/customers/{quote(customer, safe='')}/balance_transactions", parameters, key, account
        )

    async def stage_evidence(self, dispute: str, fields: Mapping[str, str], key: str, account: str | None) -> Reply:
        """POST /v1/disputes/… with `submit=false`, always: without it the update would be submitted for good. Raises as `refund`."""
        return await self._write(
            "post", f"/v1/disputes/{dispute}", {"evidence": dict(fields), "submit": "false"}, key, account
        )

    async def webhook_endpoint(
        self, endpoint: str | None, parameters: Mapping[str, Any], key: str
    ) -> tuple[Reply, SecretStr | None]:
        """POST /v1/webhook_endpoints/…, or a new one where none is named: only that tells its signing secret. Raises as `refund`."""
        path = f"/v1/webhook_endpoints/{endpoint}" if endpoint else "/v1/webhook_endpoints"
        created, replayed = await self._send("post", path, parameters, key, None)
        secret = SecretStr(created.secret) if created.secret else None
        return Reply(created.id, created.status, replayed), secret

    async def _get(self, path: str, filters: Mapping[str, Any], account: str | None) -> tuple[bytes, Seconds]:
        """A read changes nothing, so it is repeated a few times before it counts as failed."""
        async for attempt in stamina.retry_context(
            on=StripeUnavailable, attempts=READ_ATTEMPTS, timeout=None, wait_initial=0.2, wait_max=2.0
        ):
            with attempt:
                return await self._get_once(path, filters, account, _whole)
        raise AssertionError("unreachable")

    async def _get_once(
        self,
        path: str,
        filters: Mapping[str, Any],
        account: str | None,
        reader: Callable[[bytes], T],
        *,
        ahead: bool = True,
    ) -> tuple[T, Seconds]:
        """Single reads go ahead of a scan: money waits for them."""
        self._needs_key()
        if self._reader is None:
            self._reader = self._new_reader()
        endpoint = path.split("/")[2]
        asked = time.perf_counter()
        await self.budget.take(endpoint, ahead=ahead)
        use, began_ns, status = "read" if ahead else "scan", time.time_ns(), None
        counts.add("finalsale_stripe_budget_turns", use)
        counts.add("finalsale_stripe_budget_wait_seconds", use, by=time.perf_counter() - asked)
        headers = {"Stripe-Account": account} if account else None
        try:
            async with self._reader.get(
                self._url(path), params=flattened(filters), headers=headers, allow_redirects=False
            ) as answer:
                body = await answer.read()
                status = answer.status
            if answer.status != 200:
                raise _NoSuccess(answer.status, body)
            told = _stripe_clock(answer.headers)
            self.ahead_s, self.ahead_at = ahead_s(began_ns / 1e9, told, time.time(), precision_s=1.0), time.monotonic()
            return reader(body), told
        except _NoSuccess as failed:
            if failed.status == 429:
                self.budget.refused(endpoint, answer.headers.get("Stripe-Rate-Limited-Reason"))
            raise _failure(path, failed.status, *_told(failed.body), wrote=False) from None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:  # the last: half a body, or no list
            raise StripeUnavailable(f"{path}: no whole answer ({type(error).__name__})") from None
        finally:
            observe_call("GET", path, status, began_ns)

    def _new_reader(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self.timeout_s, connect=5),
            headers={"Authorization": f"Bearer {self._key}", "Stripe-Version": API_VERSION},
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=READ_BUFFER,
        )

    def _url(self, path: str) -> URL:
        return URL(self._base.rstrip("/") + path, encoded=True)  # ids in paths are quoted already

    async def _write(
        self, method: str, path: str, parameters: Mapping[str, Any], key: str, account: str | None
    ) -> Reply:
        created, replayed = await self._send(method, path, parameters, key, account)
        return Reply(created.id, created.status, replayed)

    async def _send(
        self, method: str, path: str, parameters: Mapping[str, Any], key: str, account: str | None
    ) -> tuple[_Created, bool]:
        assert "/disputes" not in path or parameters.get("submit") == "false", "evidence is submitted by people only"
        client = self._stripe()
        began_ns, status = time.time_ns(), None
        try:
            async with asyncio.timeout(self.timeout_s + 1):
                answer = await client.raw_request_async(
                    method, path, **parameters, idempotency_key=key, **_options(account)
                )
            status = answer.code
            created = msgspec.json.decode(answer.body, type=_Created)
        except stripe.StripeError as error:
            status = error.http_status
            raise _refused_write(path, error) from None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise OutcomeUnknown(f"{path}: no whole answer ({type(error).__name__})") from None
        finally:
            observe_call(method.upper(), path, status, began_ns)
        return created, _replayed(answer.headers)


def _refused_write(path: str, error: stripe.StripeError) -> Exception:
    """A refusal or failure that the SDK reports of a write, as ours."""
    told = error.json_body.get("error") if isinstance(error.json_body, dict) else None
    of_error: dict[str, Any] = told if isinstance(told, dict) else {}
    code, parameter = of_error.get("code"), of_error.get("param")
    failure = _failure(path, error.http_status or 0, code, type(error).__name__, parameter, wrote=True)
    if isinstance(failure, OutcomeUnknown):
        failure.replayed = _replayed(error.headers or {})
    return failure


def _told(body: bytes) -> tuple[str | None, str, Any]:
    """The code, type and parameter of an error's body; not all that answers in Stripe's place speaks JSON."""
    try:
        error = msgspec.json.decode(body, type=_Told).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        error = _Error()
    code, kind = error.code, error.type
    return code if isinstance(code, str) else None, kind if isinstance(kind, str) else "no error object", error.param


def _failure(path: str, status: int, code: str | None, name: str, parameter: Any, *, wrote: bool) -> Exception:
    """Stripe's refusals and failures as ours. A lost connection or 5xx after a write leaves its outcome unknown."""
    sentence = f"{path}: {status or 'no answer'} {code or name}"
    if status in (401, 429):  # the key is being rolled, or the rate is too high: nothing happened, and it will pass
        return StripeUnavailable(sentence)
    if wrote and status == 409 and code == "idempotency_key_in_use":
        return OutcomeUnknown(sentence)
    if status == 0 or status >= 500:
        return OutcomeUnknown(sentence) if wrote else StripeUnavailable(sentence)
    if status == 409 or status < 400:  # we follow no redirect: our key would go with it
        return StripeUnavailable(sentence)
    detail = f" (param {parameter})" if isinstance(parameter, str) and parameter.isidentifier() else ""
    return StripeRefused(f"{sentence}{detail}", code=code or name, status=status)


def flattened(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Parameters as Stripe reads them from an address: `created[gte]=1`, `types[0]=charge.failed`, `true`."""
    match value:
        case Mapping():
            inner = [(f"{name}[{key}]" if name else str(key), each) for key, each in value.items()]
        case list() | tuple():
            inner = [(f"{name}[{place}]", each) for place, each in enumerate(value)]
        case None:
            return []
        case bool():
            return [(name, str(value).lower())]
        case _:
            return [(name, str(value))]
    return [pair for key, each in inner for pair in flattened(each, key)]


def ahead_s(before_s: float, told_s: float, after_s: float, precision_s: float = 0.0) -> float:
    """How far our clock is ahead of one that said `told_s` between our `before_s` and `after_s`; 0.0 where that tells nothing."""
    if before_s > told_s + precision_s:
        return before_s - told_s - precision_s
    return min(after_s - told_s, 0.0)


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
