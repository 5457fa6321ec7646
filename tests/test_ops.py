"""The files of ops/: rules and dashboard use only what /metrics exports, the rules do what they say, their commands exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import eventually
from worker import gauges
from worker.alert_kinds import KINDS
from worker.settings import Settings
from worker.web import listening

OPS = Path(__file__).parents[1] / "ops"
RULES = OPS / "prometheus" / "finalsale.rules.yml"
UNIT_TESTS = OPS / "prometheus" / "finalsale.rules.test.yml"
DASHBOARD = OPS / "grafana" / "finalsale.json"
ENDINGS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def rules() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard_queries() -> Iterator[str]:
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def names_in(expressions: list[str]) -> set[str]:
    return {name for text in expressions for name in re.findall(r"\b(?:finalsale|process)_[a-z0-9_]+", text)}


async def test_rules_and_dashboard_name_only_what_a_web_process_exports(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "LOOK_S", 0.05)
    async with listening(settings) as web, aiohttp.ClientSession() as session:
        await eventually(web.watch.ready)
        families: dict[str, str] = {}
        while not any("look_age" in name for name in families) or "finalsale_credits" not in families:
            async with session.get(f"http://127.0.0.1:{web.port}/metrics") as answer:
                families = {f.name: f.type for f in text_string_to_metric_families(await answer.text())}
    exported = {name + ending for name, kind in families.items() for ending in ENDINGS.get(kind, ("",))}
    assert names_in([rule["expr"] for rule in rules()]) - exported == set()
    assert names_in(list(dashboard_queries())) - exported == set()
    series = [one["series"] for test in unit_tests() for one in test["input_series"]]
    assert names_in(series) - exported == set()


def unit_tests() -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = yaml.safe_load(UNIT_TESTS.read_text(encoding="utf-8"))["tests"]
    return tests


def test_every_rule_says_how_bad_it_is_why_and_what_to_do() -> None:
    found = rules()
    assert len({rule["alert"] for rule in found}) == len(found)
    for rule in found:
        assert rule["labels"]["severity"] in ("critical", "warning", "note"), rule["alert"]
        assert rule["for"], rule["alert"]
        assert set(rule["annotations"]) == {"summary", "why", "runbook"}, rule["alert"]
        assert rule["annotations"]["runbook"].startswith("finalsale "), rule["alert"]


def test_rules_that_repeat_our_own_alerts_name_kinds_that_exist() -> None:
    named = {
        kind
        for rule in rules()
        for found in re.findall(r'finalsale_alerts_open\{kind=~?"([^"]+)"', rule["expr"])
        for kind in found.split("|")
    }
    assert named
    assert named <= set(KINDS)


def test_the_command_of_every_rule_exists() -> None:
    from worker.cli import app

    for rule in rules():
        words = rule["annotations"]["runbook"].split()[1:]
        command: Any = app
        for word in words[: 2 if words[0] in ("doctor", "status") else len(words)]:
            if word.startswith("-"):
                break
            command = command[word]  # KeyError: no such command


def test_the_dashboard_is_one_and_no_panel_lies_on_another() -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert board["schemaVersion"] >= 41
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert [p["title"] for p in panels if p["type"] == "row"][:6] == [
        "Intake",
        "Work",
        "Money",
        "People",
        "Nightly and audit",
        "Stripe",
    ]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (it is part of Prometheus)")
@pytest.mark.parametrize("arguments", [("check", "rules", RULES.name), ("test", "rules", UNIT_TESTS.name)])
def test_promtool_finds_the_rules_right(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (it is part of Prometheus)")
def test_promtool_can_read_every_query_of_the_dashboard(tmp_path: Path) -> None:
    queries = [query.replace("$__rate_interval", "5m") for query in dashboard_queries()]
    named = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": named}]}), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
