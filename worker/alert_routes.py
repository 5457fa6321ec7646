"""The routes that alerts are sent over: read from FINALSALE_ALERT_URLS, checked at the start, named without their secrets."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from worker.errors import SettingsInvalid
from worker.public_address import Near
from worker.settings import Settings

SEVERITIES = ("critical", "warning", "note")
HEARD_BY_DEFAULT = frozenset({"critical", "warning"})
SEND_WITHIN_S = 20.0
CHECK_WITHIN_S = 60.0
MAX_ANSWER = 65_536
NAME_DIGITS = 6

T = TypeVar("T")

# a comma ends an entry only where another one begins behind it: commas are common inside of these URLs
_BETWEEN = re.compile(r"\s+|,(?=\s*(?:[a-z+]+=)?[a-z][a-z0-9.-]*://)|,\s+", re.IGNORECASE)
_ENTRY = re.compile(
    r"(?:(?P<severities>[a-z+]+)=)?(?P<url>(?P<scheme>[a-z][a-z0-9.-]*)://.+)", re.IGNORECASE | re.DOTALL
)
_KEPT = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "SYSTEMROOT")


class Route(NamedTuple):
    """One URL of FINALSALE_ALERT_URLS. Only `name` may be stored or shown: the URL holds secrets."""

    name: str
    """The URL's scheme and a short hash of it."""
    severities: frozenset[str]
    url: str

    def __repr__(self) -> str:
        return f"Route({self.name!r}, {sorted(self.severities)!r})"


class Outcome(NamedTuple):
    """What became of one message on one route. `problem` is in our own words."""

    sent: bool
    problem: str | None = None
    refused: bool = False
    """The service answered, and would answer this message the same the next time."""


class Checked(NamedTuple):
    """What of FINALSALE_ALERT_URLS can be used."""

    routes: tuple[Route, ...]
    wrong: Mapping[str, str]
    """Why the others cannot be, in a sentence, by the route's name or the entry's place."""
    near: Near
    """What FINALSALE_ALERT_PRIVATE_HOSTS allows; nothing where it is wrong."""
    whole: bool = True
    """Whether the check answered. Where it did not, the routes are used: the process that sends checks each by itself."""


def routes_of(settings: Settings) -> tuple[Route, ...]:
    """The routes that are set, each checked by the library that sends (which takes about a second, in a process of its own).

    Raises SettingsInvalid, which names a wrong entry's place and never quotes it.
    """
    routes = read_routes(settings)
    if routes:
        for place, problem in enumerate(_checked(_asking(routes, near_of(settings))), start=1):
            if problem is not None:
                raise SettingsInvalid(_unusable(f"entry {place}", problem))
    return routes


def read_routes(settings: Settings) -> tuple[Route, ...]:
    """The routes as they are written, not checked. Raises SettingsInvalid."""
    routes, wrong = written_routes(settings)
    for problem in wrong.values():
        raise SettingsInvalid(problem)
    return routes


def written_routes(settings: Settings) -> tuple[tuple[Route, ...], dict[str, str]]:
    """The routes that can be read, not checked, and by its place what is wrong with every other entry."""
    written = settings.alert_urls.get_secret_value() if settings.alert_urls else ""
    routes: dict[str, Route] = {}
    wrong: dict[str, str] = {}
    for place, entry in enumerate(filter(None, (e.strip(",") for e in _BETWEEN.split(written.strip()))), start=1):
        found = _ENTRY.fullmatch(entry)
        if found is None:
            wrong[f"entry {place}"] = (
                f"FINALSALE_ALERT_URLS: entry {place} is no URL: write scheme://..., or severities before it as in "
                "critical+warning=scheme://..., and a space in a URL as %20."
            )
            continue
        severities = frozenset(found["severities"].lower().split("+")) if found["severities"] else HEARD_BY_DEFAULT
        if not severities <= frozenset(SEVERITIES):
            wrong[f"entry {place}"] = (
                f"FINALSALE_ALERT_URLS: entry {place} is for a severity that does not exist: "
                "they are critical, warning and note, joined by +."
            )
            continue
        digest = hashlib.sha256(found["url"].encode(errors="surrogatepass")).hexdigest()[:NAME_DIGITS]
        name = f"{found['scheme'].lower()}-{digest}"
        before = routes[name].severities if name in routes else frozenset()
        routes[name] = Route(name, severities | before, found["url"])
    return tuple(routes.values()), wrong


async def checked_routes(settings: Settings) -> Checked:
    """The same as `routes_of`, for a process that has other work: what is wrong is left out and said. Cancelled, it ends at once."""
    routes, wrong = written_routes(settings)
    try:
        near = near_of(settings)
    except SettingsInvalid as invalid:
        near, wrong["FINALSALE_ALERT_PRIVATE_HOSTS"] = Near([]), str(invalid)
    if not routes:
        return Checked((), wrong, near)
    try:
        answer = await _asked(msgspec.json.encode(_asking(routes, near)), list[str | None], CHECK_WITHIN_S)
        problems = dict(zip((route.name for route in routes), answer, strict=True))
    except (OSError, ValueError, msgspec.MsgspecError):  # a TimeoutError is an OSError
        return Checked(routes, wrong, near, whole=False)
    wrong |= {name: _unusable(f"the entry {name}", problem) for name, problem in problems.items() if problem}
    return Checked(tuple(route for route in routes if problems[route.name] is None), wrong, near)


def _asking(routes: Sequence[Route], near: Near) -> dict[str, Any]:
    return {"do": "check", "urls": [route.url for route in routes], "near": [*near.written()]}


def _unusable(which: str, problem: str) -> str:
    return f"FINALSALE_ALERT_URLS: {which} cannot be used: {problem}."


def near_of(settings: Settings) -> Near:
    """What FINALSALE_ALERT_PRIVATE_HOSTS allows. Raises SettingsInvalid."""
    written = settings.alert_private_hosts or ""
    try:
        return Near([entry for entry in re.split(r"[\s,]+", written) if entry])
    except ValueError as wrong:
        raise SettingsInvalid(
            f"FINALSALE_ALERT_PRIVATE_HOSTS: entry {wrong} is no address, network or host name; separate them by commas."
        ) from None


# the process that sends --------------------------------------------------------------------------------------------------


def _command() -> list[str]:
    return [sys.executable, "-B", "-P", "-m", "worker.alert_send"]


def _environment() -> dict[str, str]:
    """Nothing of ours reaches the process: no secrets, no proxies, no home with a netrc in it."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    package = str(Path(__file__).parents[1])
    return {
        "PATH": os.defpath,
        "HOME": "/nonexistent",
        "LANG": "C.UTF-8",
        "NO_PROXY": "*",
        "PYTHONPATH": package,
        **kept,
    }


def _checked(asked: Mapping[str, Any]) -> Sequence[str | None]:
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter, nothing of the request in its arguments
            _command(),
            input=msgspec.json.encode(asked),
            capture_output=True,
            timeout=CHECK_WITHIN_S,
            env=_environment(),
            cwd="/",
            check=True,
        )
        return msgspec.json.decode(done.stdout[:MAX_ANSWER], type=list[str | None])
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        raise SettingsInvalid(
            f"FINALSALE_ALERT_URLS could not be checked: the process that sends alerts did not answer ({type(error).__name__})."
        ) from None


async def send(route: Route, near: Near, *, id_: str, title: str, body: str, severity: str) -> Outcome:
    """Send one message over one route, in a process of its own that ends within 20 s. Raises nothing but cancellation."""
    told = {"id": id_, "title": title, "body": body, "severity": severity}
    asked = msgspec.json.encode({"do": "send", "url": route.url, "near": [*near.written()], **told})
    try:
        return await _asked(asked, Outcome, SEND_WITHIN_S)
    except TimeoutError:
        return Outcome(False, f"no answer within {SEND_WITHIN_S:.0f} s")
    except OSError as error:
        return Outcome(False, f"the process that sends could not be started, or ended early ({type(error).__name__})")
    except msgspec.DecodeError:
        return Outcome(False, "the process that sends ended without an answer")


async def _asked(asked: bytes, type_: type[T], within_s: float) -> T:
    """Ask the process that sends. Raises TimeoutError, OSError, msgspec.DecodeError; it never outlives this call."""
    child = await asyncio.create_subprocess_exec(
        *_command(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=_environment(),
        cwd="/",
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(within_s):
            return msgspec.json.decode(await _answer(child, asked), type=type_)
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()


async def _answer(child: asyncio.subprocess.Process, asked: bytes) -> bytes:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(asked)
    child.stdin.write_eof()
    answer = bytearray()
    while len(answer) < MAX_ANSWER and (more := await child.stdout.read(4096)):
        answer += more
    if len(answer) < MAX_ANSWER:
        await child.wait()  # its output has ended, and with it itself
    return bytes(answer)
