"""`cloister stats`: figures over the three hospitals, as good as it says, and the same over the network."""

import io
import json
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from client.data.held_out import split_held_out
from client.data.records import read_csv
from client.flower import open_site
from cloister.commands import stats
from cloister.commands.simulate import simulate
from cloister.local import follow, start_agents, start_server
from privacy.config import read_toml
from privacy.errors import ConfigError
from privacy.run.settings import RunSettings
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.inspection import find_secrets, site_secrets
from simulations.tasks.diagnosis import RANGES, TARGET
from simulations.tasks.hospitals import FILE_NAME, write_hospital_records
from tests.forked import ForkedAgents

RUN = Path(__file__).parents[3] / "simulations" / "tasks" / "measurements.toml"
SITES = ("north", "south", "east")


def _check(report: dict[str, Any], folder: Path) -> None:
    """Hold the figures against all records that are not held out."""
    parts = [read_csv(folder / site / FILE_NAME, features=tuple(RANGES), target=TARGET) for site in SITES]
    kept = [split_held_out(len(values), 0.2)[0] for values, _ in parts]
    values = np.concatenate([part[0][rows] for part, rows in zip(parts, kept, strict=True)])
    labels = np.concatenate([part[1][rows] for part, rows in zip(parts, kept, strict=True)])
    assert abs(report["count"] - len(values)) < 6 * report["count_error"]
    for place, (name, (low, high)) in enumerate(RANGES.items()):
        read, own = report["columns"][name], np.clip(values[:, place], low, high)
        assert abs(read["mean"] - own.mean()) < 6 * read["mean_error"]
        assert abs(read["deviation"] - own.std()) < 6 * read["deviation_error"]
    for entry in report["classes"]:
        assert abs(entry["count"] - np.sum(labels == entry["label"])) < 6 * entry["count_error"]


def test_the_reference_survey_is_within_its_errors_and_fits_a_terminal(tmp_path: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, width=1000)
    report = stats.survey(None, tmp_path / "survey", console)
    _check(report, tmp_path / "survey")
    assert json.loads(json.dumps(report)) == report
    assert report["epsilon_spent"] == pytest.approx(dict.fromkeys(SITES, report["epsilon"]), abs=1e-3)
    assert 1.9 < report["epsilon"] <= 2.0

    stats.show(report, console)
    output = text.getvalue().splitlines()
    assert all(any(line.startswith(name) for line in output) for name in RANGES)
    assert max(len(line) for line in output if not line.startswith("  file ")) <= 80

    stored = stats.latest(tmp_path / "survey" / "south")
    assert stored["columns"] == report["columns"]
    assert stored == stats.latest(tmp_path / "survey" / "south" / "site.toml")


def test_each_command_refers_a_run_of_the_other_kind_to_the_other_command(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(ConfigError, match="use `cloister simulate`"):
        stats.survey(RUN.with_name("diagnosis.toml"), tmp_path / "survey", console)
    with pytest.raises(ConfigError, match="use `cloister stats "):
        simulate(RUN, tmp_path / "training", console)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_a_survey_over_the_network_by_real_processes(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path, SITES)
    write_hospital_records(federation.paths)
    settings = read_toml(RUN, RunSettings)
    federation.sign(settings)
    terms = SiteTerms(tasks=(settings.task,), maximum_epsilon=2.0, epsilon=2.0)
    events: list[dict[str, Any]] = []
    with ForkedAgents() as processes:
        start_agents(processes, federation, start_server(processes, federation), terms)
        follow(processes, federation, events.append)
    assert events[-1]["event"] == "finished"
    files = {file.read_bytes() for path in federation.paths.values() for file in path.glob("statistics/*")}
    assert len(files) == 1
    _check(stats.latest(federation.paths["east"]), tmp_path)
    assert not find_secrets(federation.server, site_secrets(federation))
    for path in federation.paths.values():
        assert 1.9 < open_site(path).ledger.spent(1e-5) <= 2.0 < inf


def test_an_evaluation_shows_tables_and_what_is_undefined(tmp_path: Path) -> None:
    row = {"low": 0.0, "high": 0.1, "count": 31.0, "gap": -0.25, "gap_error": 0.5}
    metrics = {
        "auc": {"value": None, "reason": "noise hides whether any record has class 1"},
        "confusion": {"counts": [[30.0, -2.0], [1.0, 12.0]], "error": 3.0},
        "ece": {"value": 0.04, "error": 0.02, "count_error": 3.0, "table": [row]},
    }
    report = {
        "metrics": metrics, "count": 40.0, "count_error": 3.0, "sites": ["east", "north"], "model": "ab",
        "epsilon": None, "delta": 1e-5,
    }  # fmt: skip
    own = {"records": 20, "metrics": {"auc": {"value": 0.9}, "ece": {"value": None, "reason": "none"}}}
    for folder, content in (("statistics", report), ("metrics", own)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "exam-12345678.json").write_text(json.dumps(content))
    (tmp_path / "site.toml").touch()
    text = io.StringIO()
    stats.show(stats.latest(tmp_path), Console(file=text, width=1000))
    output = text.getvalue()
    assert "– undefined: noise hides whether any record has class 1; alone 0.9" in output
    assert "     30      -2" in output
    assert "0.0 to 0.1       31 ± 3 records, true − said -0.25 ± 0.50" in output
    assert "0.04 ± 0.02; alone undefined" in output.replace("0.0400", "0.04").replace("0.020", "0.02")
    assert "exact, over this site's 20 held-out records" in output
    (tmp_path / "metrics" / "exam-12345678.json").write_text("{")
    with pytest.raises(ConfigError, match="it holds only this site's own figures"):
        stats.latest(tmp_path)
