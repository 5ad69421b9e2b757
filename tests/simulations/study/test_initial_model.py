"""A simulated run starts from a file, as that of real sites does: beside its own file, the task's, or here."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from cloister import CloisterError, save_frozen, simulate, tune
from tests.pictures import SIDE, Net, Transfer

RUN: dict[str, Any] = {
    "rounds": 2,
    "seed": 1,
    "privacy": {"noise_multiplier": 0.0, "max_grad_norm": 1.0},
    "training": {"sample_rate": 0.5, "steps_per_round": 2, "learning_rate": 0.5},
}
RECORDS = torch.rand(60, 1, SIDE, SIDE), torch.rand(60, 1)
FROZEN = "backbone.1.running_mean"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _started(folder: Path) -> dict[str, Any]:
    """Write a backbone that the task does not make, and return a run that starts from it."""
    torch.manual_seed(77)
    net = Net(frozen=True)
    net.state_dict()[FROZEN].add_(0.25)
    (folder / "models" / "public").mkdir(parents=True)
    return RUN | {"start": {"model": save_frozen(net, folder / "models" / "public" / "backbone.safetensors")}}


@pytest.mark.parametrize("engine", ["inline", "processes", "vectorised"])
def test_the_backbone_is_that_of_the_file(here: Path, engine: str) -> None:
    run = _started(here)
    result, inline = (simulate(Transfer, RECORDS, run, sites=2, engine=name) for name in (engine, "inline"))
    assert (result.model.state_dict()[FROZEN] == 0.25).all()
    assert result.metrics["loss"] == pytest.approx(inline.metrics["loss"], rel=1e-4)


def test_a_file_beside_the_run_s_is_found_from_elsewhere(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = _started(here)["start"]["model"]
    (here / "run.toml").write_text(f'rounds = 1\n[start]\nmodel = "{digest}"\n')
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    result = simulate(Transfer, RECORDS, here / "run.toml", sites=2, engine="inline")
    assert (result.model.state_dict()[FROZEN] == 0.25).all()


def test_every_trial_of_a_search_and_the_best_start_from_the_file(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna", reason="the extra simulation is not installed")
    digest = _started(here)["start"]["model"]
    text = "rounds = 1\n[privacy]\nnoise_multiplier = 0.0\nmax_grad_norm = 1.0\n"
    (here / "run.toml").write_text(f'{text}[start]\nmodel = "{digest}"\n')
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    space = {"training.learning_rate": [0.1, 0.2]}
    for processes in (1, 2):
        tuned = tune(
            Transfer, RECORDS, here / "run.toml", space=space, trials=2, sites=2, engine="vectorised", progress=False,
            processes=processes,
        )  # fmt: skip
        assert [trial["state"] for trial in tuned.trials] == ["complete"] * 2
        assert (tuned.result.model.state_dict()[FROZEN] == 0.25).all()


def test_a_run_goes_on_from_an_earlier_one_s_model(here: Path) -> None:
    run = _started(here)
    simulate(Transfer, RECORDS, run, sites=2, engine="inline", folder="first")
    (trained,) = (here / "first" / "site-1" / "models").glob("*.safetensors")
    again = run | {"rounds": 1, "start": {"model": sha256(trained.read_bytes()).hexdigest()}}
    with pytest.raises(CloisterError, match="put it there"):
        simulate(Transfer, RECORDS, again, sites=2)
    trained.rename(here / "models" / "public" / trained.name)
    result = simulate(Transfer, RECORDS, again, sites=2, engine="inline")
    assert (result.model.state_dict()[FROZEN] == 0.25).all()


@pytest.mark.usefixtures("here")
def test_a_file_that_is_nowhere_is_asked_for_before_the_first_round() -> None:
    with pytest.raises(CloisterError, match=r"^\[start\] names .* which is not in .*public; put it there$"):
        simulate(Transfer, RECORDS, RUN | {"start": {"model": "0" * 64}}, sites=2)
