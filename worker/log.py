"""Structured logs: one canonical line per unit of work, on standard error, with nothing in it that is personal or secret.

Event names are `noun.verb`. Values pass an allow-list of types as the last step before rendering; whatever looks like a
secret, an e-mail address, a card number or the password of a URL is masked even then, and an exception is reduced to its
class, our own words and the places it passed, never its arguments or local variables.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from types import TracebackType
from typing import Any, Literal, TextIO
from uuid import UUID

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from worker.errors import FinalsaleError

MAX_TEXT = 500  # a log line is read by people; longer values are evidence and belong to the database
MAX_ITEMS = 50
MAX_FRAMES = 4

_SECRET = re.compile(
    r"whsec_\w+"  # signing secrets, ours towards the application included
    r"|\b(?:sk|rk|pk|ek)_(?:org_)?(?:live|test)_\w+"
    r"|\bBearer\s+\S+"
    r"|(?<=://)[^/\s@]+(?=@)"  # user and password of a URL
    r"|(?i:(?:password|secret|token)=)[^&\s]+"
)
_EMAIL = re.compile(r"[^\s@<>\"',;:()\[\]]+@[^\s@<>\"',;:()\[\]]+\.[^\s@<>\"',;:()\[\]]+")
_CARD = re.compile(r"\b\d(?:[ -]?\d){12,18}\b")

# Names of fields that hold personal data or secrets wherever they occur in Stripe's objects or in HTTP.
# fmt: off
_PRIVATE_KEYS = frozenset(
    {
        "address", "authorization", "body", "billing_details", "card", "city", "cookie", "customer_details",
        "customer_email", "email", "headers", "ip", "ip_address", "last4", "line1", "line2", "name", "owner",
        "password", "payload", "phone", "postal_code", "receipt_email", "secret", "shipping", "signature", "token",
    }
)
# fmt: on


def get_logger(**bound: object) -> FilteringBoundLogger:
    """A logger with `bound` on every line; usable before `configure`."""
    logger: FilteringBoundLogger = structlog.get_logger(**bound)
    return logger


def configure(
    form: Literal["json", "console", "auto"] = "auto", stream: TextIO | None = None, *, errors_only: bool = False
) -> None:
    """Send our lines and the warnings of libraries to `stream` (standard error).

    `auto` is a readable line on a terminal and JSON anywhere else.
    """
    out: TextIO = stream if stream is not None else sys.stderr
    readable = form == "console" or (form == "auto" and out.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=out.isatty())
        if readable
        else structlog.processors.JSONRenderer(ensure_ascii=True)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            reduce_exception,
            keep_safe_values,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR if errors_only else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_LibraryHandler()]
    root.setLevel(logging.WARNING)


class _LibraryHandler(logging.Handler):
    """A library's warning as one of our lines: where it came from and its fixed text, never the values put into it."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        # Without arguments the text may already be composed, with values of unknown kind in it.
        text = str(record.msg) if record.args else str(record.msg).partition("\n")[0].partition(":")[0]
        fields: dict[str, Any] = {"library": record.name, "text": text}
        if record.exc_info and record.exc_info[1] is not None:
            fields["exc_info"] = record.exc_info[1]
        getattr(get_logger(), level)("library.warned", **fields)


def reduce_exception(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by `error` (class), `error_code`, `reason` (our own words only) and `at` (file:line, innermost last)."""
    exc_info = event.pop("exc_info", None)
    if not exc_info:
        return event
    error = (
        exc_info
        if isinstance(exc_info, BaseException)
        else exc_info[1]
        if isinstance(exc_info, tuple)
        else sys.exc_info()[1]
    )
    if error is None:
        return event
    event["error"] = type(error).__name__
    if isinstance(error, FinalsaleError):
        event["error_code"] = error.error_code
        event["reason"] = str(error)
    event["at"] = _places(error.__traceback__)
    return event


def _places(traceback: TracebackType | None) -> str:
    places: list[str] = []
    while traceback is not None:
        path = PurePath(traceback.tb_frame.f_code.co_filename)
        places.append(f"{'/'.join(path.parts[-2:])}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    return " > ".join(places[-MAX_FRAMES:])


def keep_safe_values(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The last step: only values of known kinds pass, with secrets and personal data masked."""
    return {masked(key): "[private]" if key.lower() in _PRIVATE_KEYS else safe(value) for key, value in event.items()}


def safe(value: object, depth: int = 0) -> Any:
    """`value` as something that may be logged: numbers and masked text; an unknown kind becomes its type's name."""
    match value:
        case None | bool() | int() | float():
            return value
        case Enum():
            return safe(value.value, depth)
        case str():
            return masked(value)
        case UUID() | Decimal() | PurePath() | date():
            return masked(str(value))
        case Mapping() if depth < 3:
            return {
                masked(str(key)): "[private]" if str(key).lower() in _PRIVATE_KEYS else safe(inner, depth + 1)
                for key, inner in list(value.items())[:MAX_ITEMS]
            }
        case list() | tuple() | set() | frozenset() if depth < 3:
            return [safe(inner, depth + 1) for inner in list(value)[:MAX_ITEMS]]
        case FinalsaleError():
            return masked(f"{type(value).__name__}: {value}")
        case bytes():
            return f"[{len(value)} bytes]"
        case _:
            return f"[{type(value).__name__}]"


def masked(text: str) -> str:
    """`text` without secrets, e-mail addresses, card numbers and URL passwords, cut to MAX_TEXT characters."""
    text = _SECRET.sub("[secret]", text[: 4 * MAX_TEXT])
    text = _EMAIL.sub("[email]", text)
    text = _CARD.sub(lambda found: "[card]" if _is_card(found.group()) else found.group(), text)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


def _is_card(text: str) -> bool:
    """The Luhn sum: true of every card number, and of one in ten other numbers of that length."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0
