"""`cloister tune`: from the shell, and for a consortium, whose runs are drawn and paid for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cloister import CloisterError
from cloister.private_tuning import RandomDraws, draw_private, plan_private
from privacy.config import read_toml
from privacy.run.settings import RunSettings
from tests.simulations.study.test_simulate import INPUTS, TARGETS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cloister.in_process import Run

pytest.importorskip("optuna", reason="the extra simulation is not installed")

RUN = """
name = "signs"
task = "tests.simulations.study.test_simulate:Sign"
rounds = 2
strategy = "fedprox"
[training]
sample_rate = 0.2
steps_per_round = 2
learning_rate = 0.5
[privacy]
epsilon = 1.0
max_grad_norm = 1.0
[encryption]
update_bound = 1.0
collusion_resistant = false
[cohort]
minimum = 2
[cohort.sizes]
north = 100
south = 80
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(RUN, encoding="utf-8")
    return path


def test_a_search_from_the_shell_writes_the_best_run(run: Path, tmp_path: Path, cloister: Run) -> None:
    records, space = tmp_path / "records.csv", tmp_path / "space.toml"
    rows = [",".join(map(str, (*row, int(target)))) for row, target in zip(INPUTS.tolist(), TARGETS, strict=True)]
    records.write_text("\n".join(["a,b,c,d,positive", *rows]), encoding="utf-8")
    space.write_text("[space]\ntraining.learning_rate = [0.001, 0.5]\n", encoding="utf-8")
    options = "--records", records, "--space", space, "--folder", tmp_path / "search", "--sites", "2"
    shown = cloister("tune", run, *options, "--trials", "2", "--engine", "vectorised")
    assert shown.returncode == 0, shown.stderr
    assert "✓ 2 trials (2 complete)" in shown.stdout
    assert "all trials together cost ε" in shown.stdout
    assert (tmp_path / "search" / "run.toml").exists()
    report = json.loads(cloister("tune", run, *options, "--trials", "3", "--engine", "vectorised", "--json").stdout)
    assert report["trials"] == 3
    assert report["epsilon_of_all"] > report["best"]["epsilon"]


def test_a_consortium_is_told_the_cost_before_anything_is_drawn(run: Path, tmp_path: Path, cloister: Run) -> None:
    shown = cloister("tune", run, "--private", "--trials", "10", "--folder", tmp_path / "drawn")
    assert shown.returncode == 0, shown.stderr
    assert "one run costs each person ε 1.00" in shown.stdout
    assert not (tmp_path / "drawn").exists()
    done = cloister("tune", run, "--private", "--trials", "3", "--folder", tmp_path / "drawn", "--yes", "--json")
    report = json.loads(done.stdout)
    assert report["epsilon_of_one"] < report["epsilon_of_choice"] < 2 * report["epsilon_of_all"]
    assert len(report["runs"]) == len(list((tmp_path / "drawn").glob("run-*.toml"))) >= 1
    again = cloister("tune", run, "--private", "--folder", tmp_path / "drawn", "--yes")
    assert "has runs already" in again.stderr


def test_drawn_runs_are_ready_to_sign_and_differ(run: Path, tmp_path: Path) -> None:
    paths = [path for number in range(8) for path in draw_private(run, None, 2, tmp_path / str(number))]
    settings = [read_toml(path, RunSettings) for path in paths]
    assert all(each.cohort.sizes == {"north": 100, "south": 80} and each.privacy.epsilon == 1.0 for each in settings)
    assert len({each.training.learning_rate for each in settings if each.training}) == len(paths)
    assert len({each.name for each in settings}) == len(paths)
    assert not any(each.name.endswith(("-1", "-001")) for each in settings)  # how many there are stays secret
    assert len({str(each.strategy["mu"]) for each in settings}) == len(paths)
    # Whoever sees the best run's name may not learn that there were at least so many.
    ends = [each.name.rpartition("-")[2] for each in settings]
    assert len(set(ends)) == len(paths)
    assert all(len(end) == 8 for end in ends)


def test_the_dearest_run_that_may_be_drawn_counts(run: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text("[space]\nprivacy.epsilon = [0.5, 2.0]\ntraining.learning_rate = [0.1, 1.0]\n", encoding="utf-8")
    cost = plan_private(run, space, 5)
    assert cost["epsilon_of_one"] == pytest.approx(2.0, rel=0.01)
    space.write_text("[space]\nprivacy.noise_multiplier = [0.0, 2.0]\n", encoding="utf-8")
    with pytest.raises(CloisterError, match="needs noise in every run"):
        plan_private(run, space, 5)
    space.write_text("[space]\nrounds = {low = 2, high = 4}\n", encoding="utf-8")
    with pytest.raises(CloisterError, match="chooses it from a list"):
        plan_private(run, space, 5)


def test_draws_are_in_the_space_and_their_number_has_its_mean() -> None:
    draws = RandomDraws()
    counts = [draws.repetitions(5.0) for _ in range(4000)]
    assert min(counts) == 1
    assert sum(counts) / len(counts) == pytest.approx(5.0, rel=0.15)
    assert {draws.suggest_float("x", 0.0, 1.0, step=0.5) for _ in range(100)} == {0.0, 0.5, 1.0}
    assert {draws.suggest_int("x", 2, 6, step=2) for _ in range(100)} == {2, 4, 6}
    values = [draws.suggest_float("x", 0.001, 1.0, log=True) for _ in range(1000)]
    assert sum(value < 0.0316 for value in values) == pytest.approx(500, abs=100)


@pytest.mark.parametrize(
    ("options", "text"), [(("--records", "a.csv", "--private"), "leave --records out"), ((), "--records FILE")]
)
def test_a_search_needs_records_or_a_consortium(options: tuple[str, ...], text: str, run: Path, cloister: Run) -> None:
    refused = cloister("tune", run, *options)
    assert refused.returncode == 1
    assert text in refused.stderr
