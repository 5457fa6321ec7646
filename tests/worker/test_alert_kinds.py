"""Every kind of alert that any code raises has words, a page of the console and a command that exists."""

from __future__ import annotations

import ast
import re
import string
from pathlib import Path
from typing import Any

import pytest

from worker.alert_kinds import KINDS, kind_of
from worker.cli import app
from worker.conditions import CONDITIONS
from worker.signals import KINDS_OF_SIGNALS
from worker.vigil import CHAIN

ROOT = Path(__file__).parents[2]
PATHS = re.compile(
    r"/console/(reviews(/\{subject\})?|refunds|chargebacks(/\{subject\})?|customers(/\{(subject|customer)\})?|cases(/\{subject\})?|"
    r"events(/\{subject\})?|runs(/\{subject\})?|alerts|policy|audit|operators|find\?q=\{subject\})?"
)


def bound_in(tree: ast.Module) -> dict[str, set[str]]:
    """The texts that a module binds to each name, anywhere in it."""
    found: dict[str, set[str]] = {}

    def bind(target: ast.expr, value: ast.expr) -> None:
        match target, value:
            case _, ast.IfExp(body=body, orelse=other):
                bind(target, body)
                bind(target, other)
            case ast.Tuple(elts=targets), ast.Tuple(elts=values):
                for one, of in zip(targets, values, strict=True):
                    bind(one, of)
            case ast.Name(id=name), ast.Constant(value=str(text)):
                found.setdefault(name, set()).add(text)

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            bind(node.targets[0], node.value)
    return found


def texts(node: ast.expr, names: dict[str, set[str]]) -> set[str]:
    """The texts that an expression may be, as far as the module says them."""
    match node:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.Name(id=name):
            return names.get(name, set())
        case ast.IfExp(body=body, orelse=other):
            return texts(body, names) | texts(other, names)
        case _:
            return set()


def raised_by_python(path: Path) -> set[str]:
    """What is given as `kind=` beside a `severity=`, to `_alert(…)` of a dispute, and as the rule of a decision with an alert."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = bound_in(tree)
    found: set[str] = set()
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if {"kind", "severity", "sentence"} <= set(given):
            found |= texts(given["kind"], names)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "_alert" and call.args:
            found |= texts(call.args[0], names)
    return found


def raised_by_sql(path: Path) -> set[str]:
    """The texts of every statement that inserts into alerts, other than severities."""
    statements = re.split(r"(?m)^-- name:", path.read_text(encoding="utf-8"))
    found = set()
    for statement in statements:
        if "insert into alerts " in statement:
            values = statement.partition("insert into alerts ")[2].partition("on conflict")[0]
            found |= {
                text
                for text in re.findall(r"'([a-z_]+)'", values)
                if text not in ("critical", "warning", "note", "worker", "workers")
            }
    return found


def raised() -> set[str]:
    files = [path for folder in ("handlers", "worker") for path in (ROOT / folder).rglob("*.py")]
    found = set[str]().union(*(raised_by_python(path) for path in files))
    found |= set[str]().union(*(raised_by_sql(path) for path in (ROOT / "worker/db").glob("*.sql")))
    found |= set[str]().union(*(condition.kinds for condition in (*CONDITIONS, CHAIN))) | KINDS_OF_SIGNALS
    rules = ("charge_after_cancellation", "proration_after_cancellation", "out_of_policy_refund", "refunded_by_hand")
    return found | set(rules)  # their kind is the decision's rule


def test_every_kind_that_is_raised_anywhere_has_words() -> None:
    known = {
        "chargeback",
        "deadline",
        "early_fraud_warning",
        "nightly_incomplete",
        "case_overdue",
        "notice_failed",
        "worker_silent",
    }
    assert known <= raised()  # this looks where it should
    assert raised() - set(KINDS) == set()


def test_no_kind_has_words_that_nothing_raises() -> None:
    assert set(KINDS) - raised() == set()


@pytest.mark.parametrize("name", KINDS)
def test_a_kinds_page_is_one_of_the_console(name: str) -> None:
    kind = KINDS[name]
    assert PATHS.fullmatch(kind.page), kind.page
    for text in (kind.page, kind.command):
        assert {field for _, field, _, _ in string.Formatter().parse(text) if field} <= {"subject", "customer", "cause"}
    assert kind.title
    assert kind.why.endswith(".")


@pytest.mark.parametrize("name", KINDS)
def test_a_kinds_command_is_understood_by_the_real_command_line(name: str) -> None:
    words = KINDS[name].command.format(subject="ch_1", customer="cus_A", cause=f"{name}:ch_1").split()
    assert words[0] == "finalsale"
    _command, bound, rest, *_ = parsed(words[1:])
    assert rest == []
    assert bound is not None


def parsed(words: list[str]) -> tuple[Any, ...]:
    found: tuple[Any, ...] = app.parse_known_args(words)
    return found


def test_a_kind_that_nobody_knows_still_says_something_that_can_be_done() -> None:
    kind = kind_of("invented_tomorrow")
    assert kind.title == "Invented tomorrow"
    assert PATHS.fullmatch(kind.page)
    assert parsed(kind.command.split()[1:])[2] == []
    assert kind_of("refund_failed") is KINDS["refund_failed"]
