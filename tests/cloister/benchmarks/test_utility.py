"""`cloister bench utility` trains what a run trains, and says what it did."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.flower import open_site
from cloister.benchmarks.pipelines import charge_for_nobody
from cloister.benchmarks.trials import DATA, EPSILONS, Trial, ablations, trials
from cloister.benchmarks.utility import deal, measure, table, train
from cloister.views.plots import draw_utility
from privacy.accounting.accounting import epsilon
from privacy.errors import ConfigError
from server.settings import read_consortium, read_run
from simulations.engine.inline import run_inline

CANCER = DATA[1]
PLAIN = Trial("cancer", "none", None, 0.5, max_grad_norm=1e6, rounds=3)
SHORT = [PLAIN, *(replace(trial, rounds=2) for trial in trials() if trial.data == "cancer" and trial.noise != "none")]


@pytest.mark.parametrize("averaging", [0.0, 0.6])
def test_the_benchmark_trains_the_same_bits_as_a_run(tmp_path: Path, averaging: float) -> None:
    trial, seed = replace(PLAIN, averaging=averaging), 3
    federation = deal(CANCER, seed, tmp_path / "bench")
    studies, model, manifest = train(federation, CANCER, trial, seed, charge_for_nobody())
    cohort = replace(manifest.settings.cohort, round_deadline_seconds=20.0)
    federation.sign(replace(manifest.settings, seed=seed, cohort=cohort))
    for path in federation.paths.values():
        text = (path / "site.toml").read_text()
        text = text.replace("maximum_epsilon = 3.0", "maximum_epsilon = inf").replace(
            "\nepsilon = 3.0", "\nepsilon = inf"
        )
        (path / "site.toml").write_text(
            text.replace("minimum_noise_multiplier = 0.5", "minimum_noise_multiplier = 0.0")
        )
    open_site.cache_clear()
    run_inline(federation)
    results = {file.read_bytes() for path in federation.paths.values() for file in path.glob("models/*")}
    assert len(results) == 1
    assert results.pop().endswith(model.vector.tobytes())
    assert len(studies) == CANCER.sites


def test_every_trial_has_a_row_that_describes_its_training() -> None:
    report = measure(1, SHORT, first_seed=7)
    assert json.loads(json.dumps(report)) == report
    assert [(row["noise"], row["epsilon"]) for row in report["rows"]] == [
        (trial.noise, trial.epsilon) for trial in SHORT
    ]
    for row in report["rows"]:
        assert 0.5 < row["accuracy_mean"] <= 1
        assert {"data", "sites", "seeds", "delta", "rounds", "sample_rate", "learning_rate", "max_grad_norm"} <= set(
            row
        )
        assert row["epsilon_spent"] is None if row["epsilon"] is None else row["epsilon_spent"] <= row["epsilon"]
        assert row["epsilon"] is None or row["epsilon_spent"] > 0.97 * row["epsilon"]
    text = table(report)
    assert "seeds 7 to 7" in text
    assert "chosen on other splits" in text
    assert max(map(len, text.splitlines())) <= 120


def test_every_trial_has_the_stated_cost(tmp_path: Path) -> None:
    federation = deal(CANCER, 0, tmp_path / "bench")
    for trial in [*trials(), *ablations()]:
        if trial.data == CANCER.name and trial.epsilon:
            federation.sign(trial.settings(CANCER, dict.fromkeys(federation.sites, 80)))
            manifest = read_run(federation.manifest, read_consortium(federation.server).roster()).manifest
            assert 0.97 * trial.epsilon < epsilon([manifest.run_cost], CANCER.delta) <= trial.epsilon
            assert manifest.run_cost.discrete == (trial.noise == "shared")
    assert pytest.approx(1 / 455.2**1.1) == CANCER.delta


def test_a_picture_has_a_line_for_each_noise(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"data": "digits", "sites": 8, "noise": noise, "epsilon": target, "accuracy_mean": 0.9, "accuracy_std": 0.01,
         "variant": ""}
        for noise in ("local", "shared") for target in EPSILONS
    ]  # fmt: skip
    rows.append({**rows[0], "noise": "none", "epsilon": None})
    draw_utility({"rows": rows}, tmp_path / "utility.svg")
    assert "</svg>" in (tmp_path / "utility.svg").read_text()
    with pytest.raises(ConfigError, match="cannot be written"):
        draw_utility({"rows": rows}, tmp_path / "nowhere" / "utility.png")
