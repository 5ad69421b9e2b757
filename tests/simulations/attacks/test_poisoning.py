"""One member that poisons takes the model down; with votes it is found, and the others' model is a good one."""

from pathlib import Path

import pytest

from privacy.run.tables import Vote
from simulations.attacks.poisoning import LIAR, SINCE, poisoned_run


@pytest.mark.parametrize("sites", [4, pytest.param(6, marks=pytest.mark.soak)])
def test_with_votes_the_poisoner_is_found_and_the_model_recovers(tmp_path: Path, sites: int) -> None:
    hardly_turned_over = Vote(epsilon=12.0, tolerance=0.1)
    outcome = poisoned_run(tmp_path / "study", sites, 16, hardly_turned_over)
    assert list(outcome.excluded) == [LIAR]
    assert SINCE <= min(outcome.undone) < max(outcome.undone) <= outcome.excluded[LIAR]
    assert outcome.accuracy > 0.85


def test_without_votes_a_poisoner_is_not_noticed(tmp_path: Path) -> None:
    outcome = poisoned_run(tmp_path / "study", 4, 10, None)
    assert (outcome.excluded, outcome.undone) == ({}, ())
    assert outcome.accuracy < 0.6
