"""Logs: one JSON line each, with nothing secret or personal in it whatever is logged and however it fails."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from worker import log
from worker.errors import DatabaseUnavailable, StripeRefused

CANARIES = {
    "signing secret": "whsec_4cANARYcanary",
    "live key": "sk_live_4cANARYcanary",
    "restricted key": "rk_test_4cANARYcanary",
    "bearer token": "Bearer 4cANARYcanary",
    "e-mail": "canary.person+tag@mail.example.com",
    "database password": "postgresql://owner:4cANARYcanary@db.example/x",
    "redis password": "rediss://:4cANARYcanary@cache.example:6380/0",
    "card number": "4242 4242 4242 4242",
    "bare card number": "4242424242424242",
}
TRACES = ("4cANARYcanary", "canary.person", "4242 4242", "42424242")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    log.configure("json", stream)
    yield stream
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_its_event_level_and_time(lines: io.StringIO) -> None:
    log.get_logger().info("refund.sent", action="act_1", ms=12)
    (line,) = written(lines)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "refund.sent", "level": "info", "action": "act_1", "ms": 12}


@pytest.mark.parametrize("canary", CANARIES.values(), ids=CANARIES.keys())
def test_a_canary_in_any_place_of_a_line_is_masked(canary: str, lines: io.StringIO) -> None:
    logger = log.get_logger()
    logger.info("thing.done", value=canary, nested={"a": [canary, {canary: canary}]}, text=f"before {canary} after")
    logger.info(f"thing {canary}")
    logger.info("thing.done", raw=canary.encode(), error=ValueError(canary), ours=DatabaseUnavailable(canary))
    logging.getLogger("library").warning("trouble with %s", canary)
    logging.getLogger("library").warning(f"trouble: {canary}")
    assert not [trace for trace in TRACES if trace in lines.getvalue()]
    assert len(written(lines)) == 5


@pytest.mark.parametrize(
    "key", ["email", "name", "address", "last4", "ip", "payload", "Authorization", "billing_details"]
)
def test_fields_named_as_personal_are_never_written(key: str, lines: io.StringIO) -> None:
    log.get_logger().info("thing.done", **{key: "Erika"}, nested={key: {"a": "Erika"}})
    assert "Erika" not in lines.getvalue()


def test_an_exception_is_reduced_to_class_our_words_and_places(lines: io.StringIO) -> None:
    def fail(secret_local: str) -> None:
        raise ValueError(f"payload {secret_local}")

    try:
        fail("4cANARYcanary")
    except ValueError:
        log.get_logger().exception("thing.failed")
    try:
        raise StripeRefused("refund refused for ch_1", code="charge_disputed", status=400)
    except StripeRefused as error:
        log.get_logger().error("thing.failed", exc_info=error)
    first, second = written(lines)
    assert "4cANARYcanary" not in lines.getvalue()
    assert first["error"] == "ValueError"
    assert "worker/test_log.py:" in first["at"]
    assert {name: second[name] for name in ("error", "error_code", "reason")} == {
        "error": "StripeRefused",
        "error_code": "stripe_refused",
        "reason": "refund refused for ch_1",
    }


def test_ids_amounts_and_times_stay_readable(lines: io.StringIO) -> None:
    fields = {
        "charge": "ch_3PbenchAAAAAAAAAA0000000",
        "amount_minor": 123456789,
        "at": "2026-11-22T10:00:00Z",
        "number": "1764000000",
    }
    log.get_logger().info("thing.done", **fields)
    (line,) = written(lines)
    assert {name: line[name] for name in fields} == fields


def test_a_value_of_an_unknown_kind_is_its_type(lines: io.StringIO) -> None:
    log.get_logger().info("thing.done", value=object(), blob=b"abc")
    (line,) = written(lines)
    assert (line["value"], line["blob"]) == ("[object]", "[3 bytes]")


def test_a_long_value_is_cut(lines: io.StringIO) -> None:
    log.get_logger().info("thing.done", value="x" * 100_000, many=list(range(1000)))
    assert len(lines.getvalue()) < 2000


def test_a_terminal_gets_readable_lines(lines: io.StringIO) -> None:
    log.configure("console", lines)
    log.get_logger().info("refund.sent", action="act_1")
    assert "refund.sent" in lines.getvalue()
    assert not lines.getvalue().startswith("{")
