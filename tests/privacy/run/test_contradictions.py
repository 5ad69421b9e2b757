"""Noise can be shared only where nobody sees less than a sum, and where a sum is all that a round adds noise to."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from privacy.config import read_toml
from privacy.errors import ConfigError
from privacy.run.settings import RunSettings
from tests.privacy.consortium import run_settings

if TYPE_CHECKING:
    from pathlib import Path

STATISTICS: dict[str, Any] = {
    "training": None,
    "statistics": {},
    "rounds": 1,
    "encryption": {"update_bound": None, "profile": None},
    "privacy": {"max_grad_norm": None},
}


def sharing(**changes: Any) -> RunSettings:  # noqa: ANN401 - a table's changes, or a value
    """Read the settings of a run that shares noise, with changes as in a file."""
    data = json.loads(json.dumps(asdict(run_settings())))
    data["privacy"]["noise"] = "shared"
    data["training"]["steps_per_round"] = 1
    data["encryption"]["collusion_resistant"] = True
    for key, value in changes.items():
        data[key] = (data[key] or {}) | value if isinstance(value, dict) else value
    return TypeAdapter(RunSettings).validate_json(json.dumps(data))


def test_noise_is_shared_only_where_a_run_asks_for_it() -> None:
    assert not run_settings().shares_noise
    assert sharing().shares_noise
    assert not sharing(privacy={"noise": "local"}).shares_noise


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encryption": {"collusion_resistant": False}},
            "a single update has too little noise to be seen; set collusion_resistant = true in",
        ),
        ({"training": {"steps_per_round": 2}}, "added once per round; set steps_per_round = 1 and plan more rounds"),
        ({"training": {"steps_per_round": 0}}, "added once per round; set steps_per_round = 1 and plan more rounds"),
        (STATISTICS, 'statistics have local noise; remove noise = "shared"'),
        ({"privacy": {"noise_multiplier": 0.0}}, "noise_multiplier = 0 leaves no noise to share"),
        ({"seed": 1}, "a seed makes the noise predictable"),
        (
            {"privacy": {"colluding_sites": 3}},
            "colluding_sites = 3 leaves no honest site to add noise in a minimum cohort of 3; set fewer",
        ),
        ({"privacy": {"colluding_sites": -1}}, "greater than or equal to 0"),
        (
            {"privacy": {"noise": "local", "colluding_sites": 1}, "encryption": {"collusion_resistant": False}},
            "colluding_sites applies to masks; remove it, or remove collusion_resistant = false",
        ),
        (
            {"privacy": {"colluding_sites": 2}},
            "needs two sites that do not collude beside the 2 that may: set minimum = 4",
        ),
        ({"privacy": {"noise": "none"}}, "Input should be 'local' or 'shared'"),
        (
            {"encryption": {"update_norm": 1.0}},
            "a site's share of the noise is added after its update is clipped to update_norm",
        ),
        (
            {"privacy": {"noise": "local"}, "encryption": {"update_norm": 1.0, "collusion_resistant": False}},
            "proofs of update_norm need the secrets of masks; set collusion_resistant = true in [encryption]",
        ),
        ({"privacy": {"noise": "local"}, "encryption": {"update_norm": 0.0}}, "greater than 0"),
    ],
)
def test_any_other_combination_is_refused_when_settings_are_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        sharing(**changes)
    assert message in str(caught.value)


def test_from_a_file_the_refusal_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        """
name = "study"
task = "a:B"
rounds = 3
[training]
steps_per_round = 1
sample_rate = 1.0
learning_rate = 0.1
[privacy]
noise = "shared"
epsilon = 2.0
max_grad_norm = 1.0
[encryption]
update_bound = 1.0
collusion_resistant = false
[cohort.sizes]
a = 10
b = 10
c = 10
"""
    )
    with pytest.raises(ConfigError, match=r"^[^\n]*run\.toml: with noise = \"shared\" a single update [^\n]*$"):
        read_toml(path, RunSettings)
