"""Simulated sites have models of their own: those that real sites would have, by every engine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from cloister import CloisterError, EarlyStop, Personal, simulate
from privacy.run.optimizer import Sgd
from simulations.engine.inline import run_inline
from simulations.pools import Division, Pool
from simulations.study.scoring import score
from tests.simulations.study.test_checkpoints import interrupted, play
from tests.simulations.study.test_simulate import INPUTS, PLAIN, TARGETS, Sign
from tests.simulations.study.test_to_run import RUN, deployed, named, of_no_site

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

TUNED = Personal("fine-tuning", learning_rate=0.5, epochs=10.0)
DITTO = Personal("ditto", learning_rate=0.3, epochs=1.0, proximal=0.1)
PARTS = dict(zip(("north", "south", "east", "west"), np.array_split(np.arange(len(INPUTS)), 4), strict=True))
# Two sites call positive what the others call negative: no model is good for all.
CONTRARY = {site: (INPUTS[part], abs((site in {"east", "west"}) - TARGETS[part])) for site, part in PARTS.items()}


class Headed(Sign):
    """The same, with a head of each site's own."""

    local = ("2.*",)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def values(module: nn.Module) -> dict[str, Tensor]:
    """A model's tensors, all of which are parameters."""
    return dict(module.state_dict())


@pytest.mark.parametrize("personal", [TUNED, DITTO])
def test_every_engine_arrives_at_the_same_personal_models(personal: Personal) -> None:
    run = PLAIN | {"rounds": 4}
    results = [
        simulate(Sign, CONTRARY, run, engine=engine, processes=2, personal=personal)
        for engine in ("inline", "processes", "vectorised")
    ]
    for result in results:
        assert list(result.personal) == list(result.site_models) == list(PARTS)
        assert {worth["records"] for worth in result.personal.values()} == {15}
        means = result.personal_metrics
        assert means["personal"]["accuracy"] > means["shared"]["accuracy"] + 0.2
        assert means["shared"]["accuracy"] == pytest.approx(result.metrics["accuracy"])
    assert results[0].digest == simulate(Sign, CONTRARY, run, engine="inline").digest
    for site in PARTS:
        for name, tensor in values(results[0].site_models[site]).items():
            assert tensor.equal(values(results[1].site_models[site])[name])
            torch.testing.assert_close(tensor, values(results[2].site_models[site])[name], atol=1e-3, rtol=0)


@pytest.mark.parametrize("personal", [TUNED, DITTO])
def test_a_personal_model_is_the_one_that_a_real_site_trains(personal: Personal, tmp_path: Path) -> None:
    _, federation, terms = deployed(tmp_path, "inline")
    for site in federation.sites:
        federation.write_settings(site, "localhost:1", replace(terms, personal=personal))
    run_inline(federation)
    by_name = dict.fromkeys(named(), of_no_site())
    result = simulate("simulations.tasks.digits:Digits", named(), RUN, engine="inline", test=by_name, personal=personal)
    for site, path in federation.paths.items():
        (file,) = path.glob("personal/*.safetensors")
        for name, array in load_file(file).items():
            assert np.array_equal(array, values(result.site_models[site])[name].numpy())


def test_what_stays_at_a_site_is_in_its_model_and_its_metrics() -> None:
    run = PLAIN | {"rounds": 6}
    results = [simulate(Headed, CONTRARY, run, engine=engine, processes=2) for engine in ("inline", "processes")]
    result = results[0]
    assert result.metrics == pytest.approx(result.personal_metrics["personal"])  # each record by its own site's model
    assert result.personal_metrics["personal"]["loss"] < result.personal_metrics["shared"]["loss"]
    own = {site: values(module) for site, module in result.site_models.items()}
    for site, tensors in own.items():
        assert all(tensors[name].equal(values(results[1].site_models[site])[name]) for name in tensors)
        assert tensors["0.weight"].equal(values(result.model)["0.weight"])
        assert not tensors["2.weight"].equal(values(result.model)["2.weight"])
    assert not own["north"]["2.weight"].equal(own["east"]["2.weight"])
    tuned = simulate(Headed, CONTRARY, run, engine="inline", personal={"method": "fine-tuning", "learning_rate": 0.5})
    assert tuned.personal_metrics["shared"] == pytest.approx(result.personal_metrics["personal"])


def test_without_either_sites_have_no_models_of_their_own() -> None:
    result = simulate(Sign, CONTRARY, PLAIN, engine="vectorised")
    assert not result.site_models
    assert not result.personal
    assert not result.personal_metrics
    assert "personal" not in result.summary()


@pytest.mark.parametrize("personal", [TUNED, DITTO])
def test_a_site_that_was_in_no_round_has_a_model_too(personal: Personal) -> None:
    run = PLAIN | {"rounds": 1}
    result = simulate(Sign, (INPUTS, TARGETS), run, sites=8, participation=0.25, personal=personal, engine="vectorised")
    same = [
        site for site, own in result.site_models.items() if values(own)["weight"].equal(values(result.model)["weight"])
    ]
    assert len(same) == (6 if personal is DITTO else 0)
    assert len(result.personal) == 8


def test_a_run_that_is_stopped_is_personalised_where_it_ended() -> None:
    stop = EarlyStop("accuracy", patience=1, larger_is_better=False)
    result = simulate(Sign, CONTRARY, PLAIN | {"rounds": 30}, engine="vectorised", callbacks=[stop], personal=TUNED)
    assert result.stopped
    assert len(result.personal) == 4


@pytest.mark.parametrize(("engine", "task"), [("vectorised", Sign), ("inline", Headed)])
def test_a_killed_simulation_goes_on_with_the_same_personal_models(
    engine: str, task: type[Sign], tmp_path: Path
) -> None:
    changed: dict[str, Any] = {"engine": engine, "task": task, "personal": DITTO}
    interrupted(tmp_path / "here", **changed)
    whole = play(None, **changed)
    for resumed in (play(tmp_path / "here", **changed), play(tmp_path / "here", **changed)):  # then nothing is left
        assert resumed.personal == whole.personal
        for site, own in whole.site_models.items():
            assert all(tensor.equal(values(resumed.site_models[site])[name]) for name, tensor in values(own).items())
    with pytest.raises(CloisterError, match="another simulation"):
        play(tmp_path / "here", **(changed | {"personal": None}))


def test_a_result_with_personal_models_says_so_wherever_it_is_shown(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[personal]\nmethod = "fine-tuning"\nlearning_rate = 0.5\n', encoding="utf-8")
    result = simulate(Sign, CONTRARY, PLAIN, engine="vectorised", personal=tmp_path / "own.toml")
    own = f"accuracy {result.personal_metrics['personal']['accuracy']:.4g}"
    page = result.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{own} (shared model" in page
    worth = result.personal["north"]
    figures = (worth[kind][name] for name in ("loss", "accuracy") for kind in ("shared", "personal"))
    cells = ["north", str(worth["records"]), *(f"{figure:.3f}" for figure in figures)]
    assert f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" in page
    assert result.summary()["personal"]["north"]["shared"].keys() == {"loss", "accuracy"}
    text = result.to_run(tmp_path / "run.toml").read_text(encoding="utf-8")
    assert "not part of a run" in text
    assert '# method = "fine-tuning"\n' in text
    again = simulate(Sign, CONTRARY, tmp_path / "run.toml", engine="vectorised")
    assert again.digest == result.digest


def test_personal_models_are_measured_on_the_records_that_are_given_for_their_sites() -> None:
    test = {"south": CONTRARY["south"], "east": CONTRARY["east"]}
    result = simulate(Sign, CONTRARY, PLAIN, engine="vectorised", test=test, personal=TUNED)
    assert {site: worth["records"] for site, worth in result.personal.items()} == {"south": 75, "east": 75}
    pool = Pool(torch.from_numpy(CONTRARY["east"][0]), torch.from_numpy(CONTRARY["east"][1]).float()[:, None])
    own = score(Sign(), "Sign", result.site_models["east"], pool.records)
    assert result.personal["east"]["personal"] == pytest.approx(own)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test": (INPUTS, TARGETS)}, "give test as a fraction, or as a mapping"),
        ({"test": {"nord": (INPUTS, TARGETS)}}, "'nord', which is no site"),
        ({"test": {}}, "name at least one"),
        ({"records": {}}, "name at least one"),
        ({"personal": replace(TUNED, layers=("head.*",))}, "no trained parameter of .*:Sign matches"),
        ({"personal": {"method": "ditto", "learnin_rate": 1.0}}, "did you mean `learning_rate`"),
        ({"personal": 3}, "personal is a int"),
        ({"personal": "nowhere.toml"}, "nowhere.toml"),
        ({"personal": replace(TUNED, learning_rate=1e30, optimizer=Sgd(weight_decay=1.0))}, "no longer finite"),
    ],
)
def test_what_is_wrong_is_said(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"records": CONTRARY, "engine": "vectorised", "personal": TUNED} | changed
    with pytest.raises(CloisterError, match=message):
        simulate(Sign, given.pop("records"), PLAIN, **given)
    with pytest.raises(CloisterError, match="Personal: 'learning_rate' must be greater than 0"):
        Personal("ditto", learning_rate=-1.0)


def test_a_fraction_of_each_site_s_records_is_held_out_and_no_site_is_left_without() -> None:
    pool = Pool(torch.arange(90.0)[:, None], torch.arange(90))
    sizes = [1, 2, 3, 4, 30, 50]
    division = Division(pool, dict(zip("abcdef", np.split(np.arange(90)[::-1], np.cumsum(sizes)[:-1]), strict=True)))
    kept, taken = division.split(0.2, seed=1)
    assert min(kept.sizes.values()) == 1
    assert sum(taken.sizes.values()) == 18
    assert [abs(taken.sizes[site] - 0.2 * size) < 1 for site, size in division.sizes.items()] == [True] * 6
    for site, part in division.parts.items():
        assert sorted([*kept.parts[site], *taken.parts[site]]) == sorted(part)
    assert taken.whole.targets.tolist() == sorted(taken.whole.targets.tolist())
    assert not set(kept.whole.targets.tolist()) & set(taken.whole.targets.tolist())
    one, other = taken.split(0.5, seed=1, least=0)
    assert (len(one.whole), len(other.whole)) == (9, 9)
