"""What a browser's request is believed: where it comes from, how large it may be, and what its fields say."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from aiohttp import web

from worker.console.sessions import network_of
from worker.reading import NotUnderstood
from worker.settings import Settings

MAX_FIELD = 4_000
MAX_BODY = 64 * 1024
MAX_FIELDS = 100
READ_TIMEOUT_S = 10.0
HTTPS_PORT = 443

_INSIDE = re.compile(r"/console/[A-Za-z0-9_\-./?=&%:,+~@]{0,500}(#[A-Za-z0-9_\-]{1,60})?", re.ASCII).fullmatch


class NotFromHere(Exception):
    """A change that another site may have sent."""


class TooLarge(Exception):
    """A body or a field beyond the limits; the message says which."""


def same_site(request: web.Request, settings: Settings) -> None:
    """Refuse a change that did not come from a page of this console. Raises NotFromHere.

    Browsers say so themselves in two headers; one of them must be there, and none may say otherwise.
    """
    fetched_by, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if fetched_by is not None and fetched_by != "same-origin":
        raise NotFromHere
    if origin is not None and origin != "null":
        known = (settings.console_url, settings.public_url)
        hosts = {request.host, *(urlsplit(url).netloc for url in known if url)}
        if urlsplit(origin).netloc not in hosts:
            raise NotFromHere
    elif fetched_by is None:
        raise NotFromHere


async def form_of(request: web.Request) -> dict[str, str]:
    """The fields of a change. Raises NotUnderstood, TooLarge."""
    if request.content_type != "application/x-www-form-urlencoded":
        raise NotUnderstood("A form of this console is sent as application/x-www-form-urlencoded.")
    if (request.content_length or 0) > MAX_BODY:
        raise TooLarge(f"A form has at most {MAX_BODY // 1024} KB.")
    body = bytearray()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > MAX_BODY:
                    raise TooLarge(f"A form has at most {MAX_BODY // 1024} KB.")
    except (TimeoutError, ConnectionError, web.RequestPayloadError):
        raise NotUnderstood("The form did not arrive whole: send it again.") from None
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS, separator="&"
        )
    except ValueError:
        raise NotUnderstood("The form cannot be read.") from None
    fields = {name: value.replace("\r\n", "\n") for name, value in pairs}
    if len(fields) != len(pairs):
        raise NotUnderstood("A field of the form is there twice.")
    if any(len(value) > MAX_FIELD for value in fields.values()):
        raise TooLarge(f"A field has at most {MAX_FIELD:,} characters.")
    _refuse_nul(fields)
    return fields


def query_of(request: web.Request) -> dict[str, str]:
    """The query of a page's address; of a name that is there twice, the last. Raises NotUnderstood."""
    told = dict(request.query)
    if any(len(value) > MAX_FIELD for value in told.values()):
        raise NotUnderstood("The address of this page is too long.")
    _refuse_nul(told)
    _refuse_nul(request.match_info)
    return told


def _refuse_nul(fields: Mapping[str, str]) -> None:
    """What PostgreSQL cannot store as text, nobody has written."""
    for text in (*fields.keys(), *fields.values()):
        if "\x00" in text or (not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)):
            raise NotUnderstood("The address or the form has a character that is no text.")


def inside(path: str) -> str:
    """`path` if it is one of the console's own pages, else its first page."""
    steps = path.partition("?")[0].split("/")
    return path if _INSIDE(path) and "//" not in path and not {".", ".."} & set(steps) else "/console/"


def is_loopback(request: web.Request) -> bool:
    """Whether the browser runs on this machine and asked it by a loopback name."""
    name, _ = _place(f"//{request.host}")
    try:
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_https(request: web.Request, settings: Settings) -> bool:
    """Whether the browser speaks https, to us or to what stands before us.

    What stands before us says so, or the request went to the https address that was configured and nobody says otherwise.
    """
    if request.secure:
        return True
    if forwarded := request.headers.getall("X-Forwarded-Proto", []):
        return forwarded[-1].rpartition(",")[2].strip().lower() == "https"
    known = (settings.console_url, settings.public_url)
    here = _place(f"//{request.host}")
    return bool(here[0]) and here in {_place(url) for url in known if url and url.startswith("https:")}


def _place(url: str) -> tuple[str, int]:
    """Host and port of an address; the port of https where it names none, and no host where it is none."""
    try:
        told = urlsplit(url)
        return told.hostname or "", told.port or HTTPS_PORT
    except ValueError:
        return "", 0


def source_of(request: web.Request) -> str:
    """The network a request comes from; behind a proxy, what the proxy nearest to us says of it.

    That is Fly-Client-IP on Fly, where the last of X-Forwarded-For is the app's own address, and elsewhere that last one: all
    before it is the sender's claim. Whoever forges either only chooses whom wrong tokens count against.
    """
    remote = request.remote or ""
    try:
        near = ipaddress.ip_address(remote.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(near, ipaddress.IPv6Address):
        near = near.ipv4_mapped or near
    if not near.is_global:
        if fly := request.headers.get("Fly-Client-IP"):
            return network_of(fly)
        if forwarded := request.headers.getall("X-Forwarded-For", []):
            return network_of(forwarded[-1].rpartition(",")[2])
    return network_of(remote)
