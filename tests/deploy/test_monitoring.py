"""Alerts and dashboard ask for metrics that are exported, and the documentation lists them."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.settings import read_site
from server.operations.reasons import Reason
from server.store.store import STATUSES
from tests.deploy.exported import exported, names, table
from tests.deploy.image import ROOT
from tests.federations import FederationMaker

FOLDER = ROOT / "deploy" / "monitoring"
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool, of Debian's package prometheus, is not installed"
)


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in RULES)
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ()))


def test_alerts_and_dashboard_ask_only_for_metrics_that_are_exported(make_federation: FederationMaker) -> None:
    metrics = exported(read_site(make_federation().paths["north"]))
    asked = {name for text in expressions() for name in re.findall(r"\b(?:cloister|process)_\w+", text)}
    assert asked <= names(metrics)
    shown = {name for name in names(metrics) if name.startswith("cloister_")}
    assert shown - asked == {"cloister_build_info", "cloister_round_seconds_sum", "cloister_round_seconds_count"}


def test_labels_that_are_asked_for_can_be() -> None:
    reasons = {one for text in expressions() for group in re.findall(r'reason!?=~?"([^"]*)"', text)
               for one in group.split("|")}  # fmt: skip
    assert reasons <= set(Reason)
    assert set(re.findall(r'status="(\w+)"', "".join(expressions()))) <= set(STATUSES)


def test_the_documentation_lists_every_metric(make_federation: FederationMaker) -> None:
    expected = table(exported(read_site(make_federation().paths["north"])))
    document = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert expected in document, f"docs/deployment.md should have this table:\n{expected}"


def test_every_alert_says_what_it_means_and_how_urgent_it_is() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"page", "ticket"}


def test_panels_have_places_of_their_own_and_a_source_to_choose() -> None:
    places = set[tuple[int, int]]()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not own & places, panel["title"]
        places |= own
        assert at["x"] + at["w"] <= 24
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${source}"
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@needs_promtool
def test_prometheus_takes_the_alerts() -> None:
    promtool("check", "rules", FOLDER / "alerts.yaml")


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    cases = (Path(__file__).parent / "alerts_test.yaml").read_text(encoding="utf-8")
    (tmp_path / "test.yaml").write_text(cases.replace("ALERTS", str(FOLDER / "alerts.yaml")), encoding="utf-8")
    promtool("test", "rules", tmp_path / "test.yaml")


@needs_promtool
def test_prometheus_takes_the_dashboards_questions(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yaml")


def promtool(*arguments: str | Path) -> None:
    ended = subprocess.run([PROMTOOL or "", *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
