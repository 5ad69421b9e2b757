"""`cloister bench algorithms` trains with the code of sites, and its table says what came of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from cloister.benchmarks import algorithms
from cloister.cli import app
from strategies.registry import completed, find, shipped

if TYPE_CHECKING:
    import pytest

KEYS = {
    "algorithm", "data", "sites", "alpha", "epsilon", "accuracy_mean", "accuracy_std", "seeds", "rounds_to_target",
    "rounds", "steps", "target",
}  # fmt: skip


def test_each_algorithm_that_ships_is_measured_with_parameters_that_it_has() -> None:
    sizes = {f"site-{number}": 100 for number in range(1, algorithms.SITES + 1)}
    for epsilon in algorithms.TARGETS:
        ways = algorithms.ways(epsilon)
        assert sorted(ways) == sorted(shipped())
        for name, way in ways.items():
            settings = completed(algorithms.settings_of(name, way, epsilon, sizes))
            assert settings.strategy["version"] == find(name).version
            assert settings.privacy.epsilon == epsilon


def test_rows_say_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithms, "_ROUNDS", {None: (3, 2), 8.0: (2, 1)})
    monkeypatch.setattr(algorithms, "TARGETS", {None: 0.2, 8.0: 1.0})
    for table in ("_PLAIN", "_PRIVATE"):
        few = {
            name: way for name, way in getattr(algorithms, table).items() if name in {"fedavg", "scaffold", "fedadam"}
        }
        monkeypatch.setattr(algorithms, table, few)
    result = CliRunner().invoke(app, ["bench", "algorithms", "--quick", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert [(row["algorithm"], row["epsilon"]) for row in report["rows"]] == [
        (name, epsilon) for epsilon in (None, 8.0) for name in ("fedavg", "fedadam", "scaffold")
    ]
    for row in report["rows"]:
        assert row.keys() == KEYS
        assert 0.05 < row["accuracy_mean"] <= 1
        assert row["seeds"] == 1
        assert (row["rounds_to_target"] is None) == (row["epsilon"] == 8.0)
    assert "rounds to 20 %" in algorithms.table(report)
