"""The HTTP face of the sandbox: keys, rate limits, idempotency and faults round `/v1`, and the control paths."""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
import re
from email.utils import formatdate
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote_plus

import msgspec
from aiohttp import web

from sandbox import resources, shapes
from sandbox.billing import Books
from sandbox.faults import Fault, Faults, RateLimit
from sandbox.params import parse_form
from sandbox.store import ALPHABET, Obj, StripeError, invalid

KEY_KEPT_S = 86400
KEY_LENGTH = 255
HOLD_STEP_S = 0.05
KEY_PATTERN = re.compile(r"(?P<kind>sk|rk)_(?P<mode>test|live)_\w+")
VERSION_PATTERN = re.compile(r"\d{4}-\d{2}-\d{2}(\.[a-z]+)?")


class Kept(msgspec.Struct, kw_only=True):
    """What an idempotency key holds: the request it was used with, and the first answer."""

    method: str
    path: str
    params: Obj
    request_id: str
    at: float
    answer: tuple[int, bytes] | None = None
    """None while the first request is in flight."""


class Hangup(Exception):
    """End the connection instead of answering."""


class Api:
    """Serves `/v1` from the books."""

    def __init__(self, books: Books, faults: Faults, limits: RateLimit) -> None:
        self.books, self.faults, self.limits = books, faults, limits
        self.key_kept_s: float = KEY_KEPT_S
        self.latency_s = 0.0
        """How long every request is under way, besides what faults do to it."""
        self.denied: list[str] = []
        """Shell patterns of the paths that restricted keys (`rk_`) have no permission for."""
        self._kept: dict[str, Kept] = {}
        self._ids = random.Random(0)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request, from its key to its answer or its failure."""
        method, path = request.method, request.path
        self.books.tick()
        request_id = "req_" + "".join(self._ids.choices(ALPHABET, k=14))
        headers = {"Request-Id": request_id, "Date": formatdate(self.books.now(), usegmt=True)}
        call: Obj | None = None
        fault: Fault | None = None
        try:
            version = self._admit(request)
            headers["Stripe-Version"] = version
            text = request.query_string if method == "GET" else (await request.text() or request.query_string)
            if method != "GET":
                call = self._log(request, request_id)
            route = resources.route(path)
            self._limit(method, route)
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            fault = self.faults.pick(method, path, unquote_plus(request.query_string))
            if call is not None and fault is not None:
                call["fault"] = fault.kind
            await self._before(request, fault)
            params = parse_form(text)
            if method == "GET":
                if fault is not None and fault.kind in ("500_before", "500_after"):
                    raise _broken(500)
                status, body = 200, shapes.encode(resources.read(self.books, route, params, path, version))
            else:
                assert call is not None
                call["params"] = params
                status, body = await self._write(call, route, params, version, headers, fault)
        except StripeError as error:
            status, body = error.status, shapes.encode(error.body)
            headers |= error.headers
        except Hangup:
            return await self._hang_up(request)
        if call is not None:
            call["status"] = status
        return await self._answer(request, status, body, headers, fault)

    # -- before the request runs ---------------------------------------------------------------------------------------

    def _admit(self, request: web.Request) -> str:
        """Check key and version; returns the version of the answer."""
        match = KEY_PATTERN.fullmatch(_key(request.headers.get("Authorization", "")))
        if match is None or (match["mode"] == "live") != self.books.livemode:
            message = "You did not provide an API key, or it is not a key of this mode."
            raise StripeError(401, "invalid_request_error", message, stored=False)
        writes = "read" if request.method == "GET" else "write"
        denied = any(fnmatchcase(request.path, pattern) for pattern in self.denied)
        if match["kind"] == "rk" and (denied or ("read" in match[0] and writes == "write")):
            message = (
                f"The provided key does not have the required permissions for this endpoint on account "
                f"'{self.books.account['id']}'. Having the '{_permission(request.path, writes)}' permission would allow this "
                "request to continue."
            )
            raise StripeError(403, "invalid_request_error", message, code="more_permissions_required", stored=False)
        version = request.headers.get("Stripe-Version", shapes.NEWEST)
        if not VERSION_PATTERN.fullmatch(version):
            raise invalid(f"Invalid Stripe API version: {version}", stored=False)
        return version

    def _log(self, request: web.Request, request_id: str) -> Obj:
        call: Obj = {
            "at": self.books.now(),
            "method": request.method,
            "path": request.path,
            "params": None,
            "idempotency_key": request.headers.get("Idempotency-Key"),
            "request_id": request_id,
            "fault": None,
            "replayed": False,
            "executed": False,
            "status": None,
        }
        self.books.calls.append(call)
        return call

    def _limit(self, method: str, route: resources.Route) -> None:
        reason = self.limits.refusal(f"{method} {route.endpoint}")
        if reason:
            raise _too_many({"Stripe-Rate-Limited-Reason": reason})

    async def _before(self, request: web.Request, fault: Fault | None) -> None:
        if fault is None:
            return
        if fault.kind == "429":
            raise _too_many({"Stripe-Rate-Limited-Reason": "global-concurrency"})
        if fault.kind == "502_before":
            raise _broken(502)
        if fault.kind == "timeout_before":
            await _hold(request, fault.hold_s)
            raise Hangup
        if fault.kind == "latency" and request.method == "GET":
            await asyncio.sleep(fault.hold_s)

    # -- running it ----------------------------------------------------------------------------------------------------

    async def _write(
        self, call: Obj, route: resources.Route, params: Obj, version: str, headers: dict[str, str], fault: Fault | None
    ) -> tuple[int, bytes]:
        key = call["idempotency_key"] if call["method"] == "POST" else None
        if key is not None:
            headers["Idempotency-Key"] = key
            kept = self._look_up(key, call, params)
            if kept is not None and kept.answer is not None:
                call["replayed"] = True
                headers |= {"Idempotent-Replayed": "true", "Original-Request": kept.request_id}
                return kept.answer
            self._kept[key] = Kept(
                method=call["method"],
                path=call["path"],
                params=params,
                request_id=call["request_id"],
                at=self.books.clock(),
            )
        try:
            if fault is not None and fault.kind == "latency":
                await asyncio.sleep(fault.hold_s)
            answer = self._run(call, route, params, version, fault)
        except StripeError as error:
            answer = (error.status, shapes.encode(error.body))
            if not error.stored:
                self._kept.pop(key or "", None)
                raise
        except BaseException:
            self._kept.pop(key or "", None)
            raise
        if key is not None:
            self._kept[key].answer = answer
            headers["Original-Request"] = call["request_id"]
        return answer

    def _look_up(self, key: str, call: Obj, params: Obj) -> Kept | None:
        if len(key) > KEY_LENGTH:
            raise invalid("Idempotency keys may have at most 255 characters.", stored=False)
        kept = self._kept.get(key)
        if kept is None or self.books.clock() - kept.at >= self.key_kept_s:
            return None
        if (kept.method, kept.path, kept.params) != (call["method"], call["path"], params):
            message = (
                "Keys for idempotent requests can only be used with the same parameters they were first used with."
            )
            raise (
                StripeError(400, "idempotency_error", message, stored=False, headers={"Stripe-Should-Retry": "false"})
                if kept.answer is not None
                else _in_flight()
            )
        if kept.answer is None:
            raise _in_flight()
        return kept

    def _run(
        self, call: Obj, route: resources.Route, params: Obj, version: str, fault: Fault | None
    ) -> tuple[int, bytes]:
        if fault is not None and fault.kind == "500_before":
            raise _broken(500)
        self.books.request = {"id": call["request_id"], "idempotency_key": call["idempotency_key"]}
        try:
            obj = resources.write(self.books, call["method"], route, params, call["path"])
        finally:
            self.books.request = {"id": None, "idempotency_key": None}
        call["executed"] = True
        call["object"] = obj["id"]
        if fault is not None and fault.kind == "500_after":
            raise _broken(500)
        shown = shapes.render(obj, version, self.books) if obj["object"] != "coupon" else obj
        return 200, shapes.encode(shapes.expand(shown, params.get("expand") or [], version, self.books))

    # -- answering -----------------------------------------------------------------------------------------------------

    async def _answer(
        self, request: web.Request, status: int, body: bytes, headers: dict[str, str], fault: Fault | None
    ) -> web.StreamResponse:
        kind = fault.kind if fault is not None else ""
        if kind == "502_after":
            error = _broken(502)
            status, body = 502, shapes.encode(error.body)
        elif kind == "timeout_after":
            assert fault is not None
            await _hold(request, fault.hold_s)
            return await self._hang_up(request)
        elif kind == "reset":
            return await self._hang_up(request)
        headers["Content-Type"] = "application/json"
        if kind != "truncated":
            return web.Response(status=status, body=body, headers=headers)
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        if request.transport is not None:
            request.transport.close()
        return response

    async def _hang_up(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)


def _key(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return value if scheme.lower() == "bearer" else ""


def _permission(path: str, writes: str) -> str:
    """The permission of a restricted key that a path needs, by its name at Stripe."""
    at = resources.route(path)
    kind = resources.RESOURCES[at.resource].kind if at.resource in resources.RESOURCES else at.resource
    return f"rak_{kind.rpartition('.')[2].rpartition('/')[2]}_{writes}"


async def _hold(request: web.Request, seconds: float) -> None:
    """Keep the client waiting, at most `seconds` or until it has gone."""
    for _ in range(int(seconds / HOLD_STEP_S)):
        if request.transport is None or request.transport.is_closing():
            return
        await asyncio.sleep(HOLD_STEP_S)


def _broken(status: int) -> StripeError:
    return StripeError(status, "api_error", "An unknown error occurred.", stored=status == 500)


def _too_many(headers: dict[str, str]) -> StripeError:
    message = "Request rate limit exceeded."
    return StripeError(429, "invalid_request_error", message, code="rate_limit", stored=False, headers=headers)


def _in_flight() -> StripeError:
    return StripeError(
        409,
        "idempotency_error",
        "There is currently another in-progress request using this Idempotency Key.",
        code="idempotency_key_in_use",
        stored=False,
        headers={"Stripe-Should-Retry": "true"},
    )


def as_json(value: Any, status: int = 200) -> web.Response:
    """An answer of the control paths."""
    return web.Response(status=status, body=shapes.encode(value), content_type="application/json")
