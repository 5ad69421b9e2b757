"""Killed in the middle of a round, a site goes on from the steps that it kept, to the update it would have made."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from privacy.run.optimizer import Adam
from privacy.run.settings import Training
from tests.client.killed_steps import main
from tests.federations import NOISY, FederationMaker
from tests.forked import Forked

ROUNDS = 2
SETTINGS = replace(
    NOISY,
    rounds=ROUNDS,
    training=Training(steps_per_round=12, sample_rate=0.5, learning_rate=0.05, optimizer=Adam()),
)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=pytest.mark.soak)])
def test_a_site_that_is_killed_at_any_line_makes_the_same_update_under_one_charge(
    make_federation: FederationMaker, tmp_path: Path, kills: int
) -> None:
    first = make_federation(SETTINGS, name="undisturbed")
    with (first.paths["north"] / "site.toml").open("a", encoding="utf-8") as file:
        file.write("\n[training]\ncheckpoint_steps = 2\n")
    shutil.copytree(first.folder, first.folder.parent / "disturbed")
    process = Forked(tmp_path / "killed.log", main, str(first.folder.parent), str(kills), "3", env={})
    code, message = process.wait(110), process.log.read_text(encoding="utf-8")
    assert code == 0, message[-3000:]
    report = json.loads(message.splitlines()[-1])
    assert report["same"]
    assert report["charged"] == ROUNDS
    assert report["resumed"] > 0
    assert report["deaths"] >= report["resumed"]
