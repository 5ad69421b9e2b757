"""The space of a search: what stands in it fits the run, and what is drawn is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cloister.private_tuning import RandomDraws
from privacy.errors import ConfigError
from simulations.study.run_settings import SimulatedRun
from simulations.tuning.space import Space, applied, read_space, settings_map, usual

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = SimulatedRun(strategy={"name": "fedprox", "mu": 0.5}).completed("lungs:Lungs", {"north": 100, "south": 80})
BASE = settings_map(SETTINGS)


def test_a_space_is_read_from_a_file_with_dots_or_tables(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(
        "[space]\nrounds = {low = 2, high = 4}\ntraining.learning_rate = {low = 0.1, high = 1, log = true}\n"
        "[space.strategy]\nmu = [0.1, 1.0]\nname = ['fedavg', 'fedprox']\n",
        encoding="utf-8",
    )
    space = read_space(path, BASE)
    assert set(space.dimensions) == {"strategy.name", "rounds", "training.learning_rate", "strategy.mu"}
    for _ in range(20):
        values = space.draw(RandomDraws(), BASE)
        assert ("strategy.mu" in values) == (values["strategy.name"] == "fedprox")
        run = applied(BASE, values)
        assert run.rounds in {2, 3, 4}
        assert run.strategy["name"] == values["strategy.name"]
        assert run.training is not None
        assert 0.1 <= run.training.learning_rate <= 1
        run.completed("lungs:Lungs", {"north": 100, "south": 80})  # the algorithm takes its parameters


def test_a_setting_takes_the_place_of_the_one_that_it_excludes() -> None:
    run = applied(BASE, {"training.steps_per_round": 7, "privacy.noise_multiplier": 1.5})
    assert run.training is not None
    assert (run.training.steps_per_round, run.training.epochs_per_round) == (7, None)
    assert (run.privacy.noise_multiplier, run.privacy.epsilon) == (1.5, None)
    optimizer = applied(BASE, {"training.optimizer.name": "adam"}).training
    assert optimizer is not None
    assert optimizer.optimizer.name == "adam"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "a space is a mapping"),
        ({"training.lerning_rate": [1.0]}, "did you mean `learning_rate`"),
        ({"training.learning_rate": [0.1, -1.0]}, "greater than 0"),
        ({"training.learning_rate": {"low": 1.0, "hihg": 2.0}}, "did you mean `high`"),
        ({"training.learning_rate": {"low": 2.0, "high": 1.0}}, "low at most high"),
        ({"training.learning_rate": {"low": 0.0, "high": 1.0, "log": True}}, "above 0"),
        ({"training.learning_rate": []}, "needs a list of values"),
        ({"training.learning_rate": 0.1}, "needs a list of values"),
        ({"strategy.name": ["fedporx"]}, "fedprox"),
    ],
)
def test_what_is_no_space_of_the_run_is_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read_space(given, BASE)


def test_the_usual_space_has_the_algorithms_own_numbers_and_no_clipping_without_noise() -> None:
    assert set(usual(BASE).dimensions) == {
        "training.learning_rate", "privacy.max_grad_norm", "training.sample_rate", "strategy.mu",
    }  # fmt: skip
    usual(BASE).check(BASE)
    plain = {**BASE, "privacy": {"noise_multiplier": 0.0, "max_grad_norm": 1.0}, "strategy": {"name": "fedavg"}}
    assert set(usual(plain).dimensions) == {"training.learning_rate"}


def test_a_private_search_has_no_range_of_what_decides_the_cost() -> None:
    assert Space({"training.learning_rate": {"low": 0.1, "high": 1.0}, "rounds": [5, 10]}).charged == {
        "rounds": [5, 10]
    }
    with pytest.raises(ConfigError, match="from a list"):
        _ = Space({"training.sample_rate": {"low": 0.1, "high": 1.0}}).charged
