"""A study in one call: records in any form, any partition, the same model by every engine."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import cloister
from client.data.records import read_csv
from cloister import CloisterError, EarlyStop, Flag, Number, Privacy, SimulatedRun, TableTask, Task, Training, simulate
from simulations.partitions import FlowerPartition
from simulations.study.run_settings import read_run_settings
from simulations.tuning.space import settings_map

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from client.data.columns import AnyColumn

_DRAW = np.random.default_rng(3)
INPUTS = _DRAW.normal(size=(300, 4)).astype(np.float32)
TARGETS = (INPUTS @ np.array([1.0, -2.0, 0.5, 0.0]) > 0).astype(np.float32)
PLAIN: dict[str, Any] = {
    "rounds": 3,
    "seed": 1,
    "privacy": {"noise_multiplier": 0.0, "max_grad_norm": 1.0},
    "training": {"sample_rate": 0.5, "steps_per_round": 2, "learning_rate": 0.5},
}


class Sign(Task):
    """Whether a sum is above 0."""

    def model(self) -> nn.Module:
        return nn.Linear(4, 1)

    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        values, targets = read_csv(path, features=["a", "b", "c", "d"], target="positive")
        return torch.from_numpy(values).float(), torch.from_numpy(targets).float()[:, None]

    def example(self) -> tuple[Tensor, Tensor]:
        return torch.randn(6, 4), torch.tensor([[0.0], [1.0]] * 3)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"accuracy": ((outputs > 0) == (targets > 0.5)).float()[:, 0]}


class Named(Sign):
    """The same with a metric that it only names."""

    metrics = ["auc"]  # type: ignore[assignment]  # noqa: RUF012


class Labels(Sign):
    """The same as two labels."""

    def model(self) -> nn.Module:
        return nn.Linear(4, 2)

    def example(self) -> tuple[Tensor, Tensor]:
        return torch.randn(6, 4), torch.arange(6) % 2

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (outputs.argmax(1) == targets).float()}


class Misnamed(Labels):
    """The same with a metric whose name a round has for something else."""

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": (outputs.argmax(1) == targets).float()}


def _frame() -> pd.DataFrame:
    frame = pd.DataFrame(dict(zip("abcd", INPUTS.T, strict=True)))
    frame["positive"] = TARGETS.astype(int)
    frame["ward"] = [f"ward {place % 4}" for place in range(len(frame))]
    return frame


def test_every_engine_arrives_at_the_same_model() -> None:
    results = [
        simulate(Sign, (INPUTS, TARGETS), PLAIN, sites=4, engine=engine, processes=2)
        for engine in ("inline", "processes", "vectorised")
    ]
    assert results[0].digest == results[1].digest
    for name, values in results[0].model.state_dict().items():
        torch.testing.assert_close(values, results[2].model.state_dict()[name], atol=1e-4, rtol=0)
    assert [row["sites"] for row in results[0].rows] == [4, 4, 4]
    assert results[0].metrics["accuracy"] == pytest.approx(results[2].metrics["accuracy"], abs=0.02)


@pytest.mark.parametrize("form", ["arrays", "tensors", "frame", "data set", "file", "sites"])
def test_records_come_in_any_form(form: str, tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    _frame().to_csv(path, index=False)
    tensors = torch.from_numpy(INPUTS), torch.from_numpy(TARGETS)[:, None]
    half = len(INPUTS) // 2
    records: dict[str, Any] = {
        "arrays": (INPUTS.astype(np.float64), TARGETS.astype(int)),
        "tensors": tensors,
        "frame": _frame(),
        "data set": TensorDataset(*tensors),
        "file": path,
        "sites": {
            "north": (INPUTS[:half], TARGETS[:half]), "south": (INPUTS[half:], TARGETS[half:]), "west": _frame()
        },
    }  # fmt: skip
    result = simulate(Sign, records[form], PLAIN, sites=None if form == "sites" else 5)
    assert result.engine == ("inline" if form == "sites" else "vectorised")
    assert result.rows[-1]["sites"] == (3 if form == "sites" else 5)
    assert result.metrics["accuracy"] > 0.6


class Tabled(TableTask):
    """The same, from columns."""

    columns: ClassVar[Sequence[AnyColumn]] = [Number(name, low=-1, high=1) for name in "abcd"]
    target: ClassVar[AnyColumn | Sequence[AnyColumn]] = Flag("positive")

    def model(self) -> nn.Module:
        return nn.Linear(4, 1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs, targets)


class OfPersons(Tabled):
    """The same, of persons with several records."""

    person = "ward"


def test_a_site_s_settings_say_which_records_and_how_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "records.txt").write_text(_frame().to_csv(index=False, sep=";"))
    (tmp_path / "site.toml").write_text(
        'site = "a"\n[data]\nfile = "data/records.txt"\nlineage = "a"\nsource = { name = "csv", separator = ";" }\n'
    )
    result = simulate(Tabled, tmp_path / "site.toml", PLAIN, sites=2, engine="vectorised")
    assert result.metrics["loss"] < 0.7
    with pytest.raises(CloisterError, match=r"a simulation takes a site\.toml, or a file with"):
        simulate(Tabled, tmp_path / "data" / "records.txt", PLAIN, sites=2)


def test_a_task_that_names_persons_is_told_what_to_do_instead() -> None:
    with pytest.raises(CloisterError, match="leave `person` out of the task"):
        simulate(OfPersons, _frame(), PLAIN, sites=2)


@pytest.mark.parametrize(
    "partition", ["iid", "dirichlet:0.3", "shards:2", "quantity_skew:0.5", "feature_shift:0.5", "by_column:ward"]
)
def test_records_are_divided_in_any_way(partition: str) -> None:
    sites = None if "by_column" in partition else 4
    result = simulate(Sign, _frame(), PLAIN | {"rounds": 1}, sites=sites, partition=partition, engine="vectorised")
    assert result.rows[-1]["sites"] == 4


def test_epsilon_is_that_of_the_rounds_a_site_took_part_in() -> None:
    run = SimulatedRun(rounds=4, privacy=Privacy(epsilon=3.0, max_grad_norm=1.0))
    everybody = simulate(Sign, (INPUTS, TARGETS), run, sites=8)
    assert everybody.epsilon == pytest.approx(3.0, rel=0.02)
    assert set(everybody.epsilons.values()) == {everybody.epsilon}
    some = simulate(Sign, (INPUTS, TARGETS), run, sites=8, participation=0.5)
    assert min(some.epsilons.values()) <= some.epsilon <= 3.0 * 1.02
    assert [row["sites"] for row in some.rows] == [4] * 4
    assert math.isinf(simulate(Sign, (INPUTS, TARGETS), PLAIN, sites=8).epsilon)


def test_a_callback_sees_every_round_and_may_end_the_run() -> None:
    rows: list[Any] = []
    for engine in ("inline", "vectorised"):
        stop = EarlyStop("accuracy", patience=1, larger_is_better=False)
        result = simulate(
            Sign, (INPUTS, TARGETS), PLAIN | {"rounds": 30}, sites=3, engine=engine, callbacks=[rows.append, stop],
            keep_models=True,
        )  # fmt: skip
        assert "no better accuracy" in result.stopped
        assert len(result.rows) < 30
        assert rows[-len(result.rows) :] == list(result.rows)
        assert len(result.models) == 1 + len(result.rows)


def test_a_misspelt_metric_does_not_go_unnoticed() -> None:
    with pytest.raises(CloisterError, match="no metric 'acuracy'; it measures loss, accuracy"):
        simulate(Sign, (INPUTS, TARGETS), PLAIN, sites=3, engine="vectorised", callbacks=[EarlyStop("acuracy")])


def test_a_result_can_be_looked_at_saved_and_reported(tmp_path: Path) -> None:
    result = simulate(Sign, (INPUTS, TARGETS), SimulatedRun(rounds=2), sites=6)
    assert list(result.history["accuracy"]) == [row["accuracy"] for row in result.rows]
    folder = result.save(tmp_path / "result")
    assert {file.name for file in folder.iterdir()} == {
        "history.csv", "model.safetensors", "plot.svg", "report.html", "result.json", "run.toml",
    }  # fmt: skip
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "<svg" in report
    assert "accuracy" in report
    again = simulate(Sign, (INPUTS, TARGETS), folder / "run.toml", engine="vectorised")
    assert len(again.rows) == 2
    assert again.rows[0]["sites"] == 6
    assert "accuracy" in repr(result)
    for taken, message in ((folder, "is not empty; name an empty or a new folder"), (folder / "plot.svg", "is a file")):
        with pytest.raises(CloisterError, match=message):  # of an earlier simulation, or anything else
            simulate(Sign, (INPUTS, TARGETS), PLAIN, sites=3, engine="inline", folder=taken)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"engine": "vectorized"}, "did you mean `vectorised`"),
        ({"partition": "dirichlett"}, "did you mean `dirichlet`"),
        ({"partition": "dirichlet:x"}, "is not a number"),
        ({"partition": "by_column:ward"}, "no such column"),
        ({"sites": 1}, "no federation"),
        ({"sites": 0}, "sites = 0; write for example sites=10"),
        ({"sites": "4"}, "sites = '4'; write"),
        ({"processes": -1}, "processes = -1; write"),
        ({"dropout": "x"}, "dropout = 'x'; write for example dropout=0.1"),
        ({"dropout": float("nan")}, "dropout = nan; write"),
        ({"deadline": "x"}, "deadline = 'x'; write for example deadline=60.0"),
        ({"site_privacy": 3.0}, "site_privacy = 3.0; write for example"),
        ({"engine": None}, "engine = None; write for example"),
        ({"device": 3.0}, "is no device"),
        ({"callbacks": 3}, "callbacks is a list of functions"),
        ({"checkpoint": 3}, "checkpoint = 3; write the path"),
        ({"measure_every": 1.5}, "measure_every = 1.5: write 1"),
        ({"partition": "iid:3"}, "random samples have no number"),
        ({"partition": "dirichlet:nan"}, "'nan' is not a number"),
        ({"partition": "quantity_skew:inf"}, "'inf' is not a number"),
        ({"measure_every": 0}, "1 for every round"),
        ({"device": "gpu"}, "no device"),
        ({"device": "meta"}, "cpu or cuda"),
        ({"device": "cuda:99"}, "no such GPU"),
        ({"callbacks": print}, "a list"),
        ({"sites": 1000}, "cannot be divided among 1000 sites"),
        ({"test": 1.5}, "between 0 and 1"),
        ({"participation": 2.0}, "says no participation"),
        ({"participation": "poison:0.2"}, "says no participation; did you mean `poisson`"),
        ({"participation": "available:0.2"}, "says no participation"),
        ({"participation": "all:0.2"}, "says no participation"),
        ({"participation": "some:0.2"}, "says no participation; write all"),
        ({"participation": "poisson"}, "says no participation"),
        ({"participation": "poisson:"}, "says no participation"),
        ({"participation": 0.2}, "at most 1 of 4 sites would deliver .* and a sum takes 2; raise participation"),
        ({"site_seconds": "uniform:10:20", "deadline": 5.0}, "at most 0 of 4 sites would deliver"),
        ({"run": {"rouns": 3}}, "did you mean `rounds`"),
        ({"run": {"rounds": 3, "privacy": {"epsilon": -1.0, "max_grad_norm": 1.0}}}, "greater than 0"),
        ({"run": PLAIN | {"strategy": "fedprocks"}}, "fedprocks"),
        ({"records": "nowhere.csv"}, "no such file"),
        ({"records": 3}, "give \\(inputs, targets\\)"),
        ({"records": (INPUTS[:, :3], TARGETS)}, "its example has"),
        ({"records": ([["a"]], [1])}, "numbers"),
        ({"records": INPUTS}, "one array; give two"),
        ({"records": (np.ma.masked_greater(INPUTS, 1), TARGETS)}, "masked array, in which values are missing"),
        ({"records": (csr_array(INPUTS), TARGETS)}, "the inputs are a sparse matrix; give a dense one"),
        ({"records": dict(enumerate([(INPUTS, TARGETS)] * 4))}, "0 is no name of a site"),
        ({"records": {"data": INPUTS, "target": TARGETS}}, "are a mapping, of 2 sites by name; leave sites = 4 out"),
        ({"records": {"a": (INPUTS, TARGETS)}, "partition": "shards:2"}, "leave partition out"),
        (
            {"records": _frame().assign(a=None)},
            "^the data frame, as a CSV file:2: `a` is missing",
        ),
        ({"records": _frame().assign(ward=None), "partition": "by_column:ward"}, "300 records have no value there"),
        ({"records": (INPUTS, TARGETS, TARGETS)}, "3 things; give two"),
        ({"records": (INPUTS, np.where(TARGETS, "yes", "no"))}, "numbers labels from 0"),
        ({"records": (INPUTS, np.where(np.arange(300) == 7, np.nan, TARGETS))}, "target 1 of record 8"),
        ({"records": (INPUTS, TARGETS + 1), "task": "THREE"}, "labels are 1 to 2, .* subtract 1 from them"),
        ({"records": (INPUTS, TARGETS * 2), "task": "THREE"}, "labels are 0 to 2, .* give the model 3 outputs"),
        ({"records": (INPUTS, TARGETS * 2 - 1), "task": "THREE"}, "labels are -1 to 1, .* number them from 0"),
        (
            {"records": (INPUTS, TARGETS + 1), "task": "NAMED"},
            r"record \d+, .*: labels are 1 to 2, .* classes are 0 and 1",
        ),
        (
            {"records": (INPUTS, np.where(np.arange(300) == 8, 7, TARGETS)), "task": "NAMED"},
            "target of record 9, .*: its label is 7, but the task's classes are 0 and 1; correct the record",
        ),
        ({"records": (INPUTS, TARGETS), "test": (INPUTS, TARGETS - 3), "task": "NAMED"}, "the test records: .* number"),
        ({"records": (INPUTS, TARGETS / 2), "task": "THREE"}, "whole numbers"),
        (
            {"records": (INPUTS, TARGETS + 6 * (np.arange(300) == 8)), "task": "THREE"},
            "target of record 9, .*: its label is [67], but the model has 2 outputs, for 0 to 1; correct the record",
        ),
        ({"partition": None}, "partition is a NoneType"),
        ({"log": "rounds.csv"}, "log = 'rounds.csv'; write for example"),
        ({"seed": -1}, "seed = -1; write for example seed=1"),
        ({"callbacks": [3]}, "a list of functions"),
        ({"run": {"epsilon": 1.0}}, r"it belongs in \[privacy\]"),
        ({"run": {"training": {"batch_size": 8}}}, "keys are sample_rate, learning_rate"),
        ({"task": nn.Linear}, "is not a task"),
        ({"task": Misnamed}, "its metric 'loss' has the name of another column"),
        ({"task": "nothing:There"}, "cannot be imported"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_round(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"task": Sign, "records": (INPUTS, TARGETS), "run": PLAIN, "sites": 4} | changed
    given["task"] = {"THREE": Labels, "NAMED": Named}.get(given["task"], given["task"])
    with pytest.raises(CloisterError, match=message):
        simulate(given.pop("task"), given.pop("records"), given.pop("run"), **given)


def test_flower_s_partitioners_divide_records() -> None:
    from flwr_datasets import partitioner as flower  # noqa: PLC0415 - takes a second to load

    ways = [
        flower.IidPartitioner(4),
        flower.DirichletPartitioner(4, "label", alpha=1.0, min_partition_size=5),
        flower.ShardPartitioner(4, "label", num_shards_per_partition=2),
        flower.PathologicalPartitioner(4, "label", num_classes_per_partition=1),
        flower.LinearPartitioner(4),
        flower.SquarePartitioner(4),
        flower.ExponentialPartitioner(4),
        flower.SizePartitioner([75, 75, 75, 75]),
        flower.NaturalIdPartitioner("ward"),
        flower.GroupedNaturalIdPartitioner("ward", 1),
        flower.ContinuousPartitioner(4, "a", strictness=0.5),
    ]
    for way in ways:
        result = simulate(Sign, _frame(), PLAIN | {"rounds": 1}, partition=FlowerPartition(way), engine="vectorised")
        assert result.rows[0]["sites"] == 4, type(way).__name__
    with pytest.raises(CloisterError, match="divides columns, and sites have whole records"):
        simulate(Sign, _frame(), PLAIN, partition=FlowerPartition(flower.VerticalEvenPartitioner(4)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"privacy": {"max_grad_norm": 0.5}}, {"epsilon": 3.0, "max_grad_norm": 0.5, "sample_rate": 0.32}),
        ({"privacy": {"noise_multiplier": 0.0}}, {"epsilon": None, "max_grad_norm": 1.0}),
        ({"privacy": Privacy(epsilon=1.0)}, {"epsilon": 1.0, "max_grad_norm": 1.0}),
        ({"training": {"learning_rate": 1.0}}, {"learning_rate": 1.0, "sample_rate": 0.32, "epochs_per_round": 1.0}),
        ({"training": {"steps_per_round": 3}}, {"learning_rate": 0.1, "sample_rate": 0.32, "epochs_per_round": None}),
        ({"encryption": {"profile": "precise"}}, {"update_bound": 1.0, "collusion_resistant": False}),
        ({"cohort": {"minimum": 2}}, {"minimum": 2, "sizes": {"a": 100, "b": 20}}),
        ({}, {"epsilon": 3.0, "max_grad_norm": 1.0, "update_bound": 1.0, "minimum": 2}),
    ],
)
def test_every_key_of_a_run_has_a_default(given: dict[str, Any], expected: dict[str, Any]) -> None:
    for run in (read_run_settings(given), SimulatedRun(**given)):
        settings = run.completed("a:B", {"a": 100, "b": 20})
        tables = asdict(settings)
        known = tables["privacy"] | tables["training"] | tables["encryption"] | tables["cohort"]
        assert {key: known[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("given", "sites", "expected"),
    [
        ({}, "abc", (True, 3)),
        ({}, "ab", (False, 2)),
        ({"encryption": {"profile": "precise"}}, "abc", (True, 3)),
        ({"encryption": {"collusion_resistant": False}}, "abc", (False, 3)),
        ({"cohort": {"minimum": 2}, "encryption": {"profile": "precise"}}, "abc", (False, 2)),
        ({"cohort": {"minimum": 4}}, "abcd", (True, 4)),
        ({"cohort": {"round_deadline_seconds": 60}}, "abcd", (True, 3)),
    ],
)
def test_what_a_simulated_run_does_not_set_is_as_real_runs_have_it(
    given: dict[str, Any], sites: str, expected: tuple[bool, int]
) -> None:
    run = read_run_settings(given)
    settings = run.completed("a:B", dict.fromkeys(sites, 100))
    real = run.deployed(settings)
    assert (real.encryption.collusion_resistant, real.cohort.minimum) == expected
    assert replace(real, encryption=settings.encryption, cohort=settings.cohort) == settings
    repeated = read_run_settings(settings_map(settings, run))  # as a search does
    assert repeated.completed("a:B", dict.fromkeys(sites, 100)) == settings
    assert repeated.deployed(settings) == real


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Training, {"learning_rat": 0.1}, "Training: 'learning_rat' unknown key; did you mean `learning_rate`"),
        (Training, {"learning_rate": "x", "sample_rate": 1.0}, "'learning_rate' must be a valid number"),
        (Training, {"learning_rate": 1.0}, "Training: the key `sample_rate` is missing"),
        (Privacy, {"epsilon": -1.0}, "Privacy: 'epsilon' must be greater than 0"),
        (Privacy, {}, "set either epsilon or noise_multiplier"),
        (SimulatedRun, {"round": 3}, "SimulatedRun: 'round' unknown key; did you mean `rounds`"),
        (SimulatedRun, {"training": {"sample_rat": 1.0}}, r"\[training\]: 'sample_rat' unknown key"),
        (SimulatedRun, {"cohort": {"minimum": "x"}}, r"\[cohort\]: 'minimum' must be"),
    ],
)
def test_wrong_arguments_are_explained_in_a_sentence(kind: Any, given: dict[str, Any], message: str) -> None:  # noqa: ANN401
    with pytest.raises(CloisterError, match=message) as raised:
        kind(**given)
    assert "pydantic" not in str(raised.value)


def test_results_are_compared_in_one_picture(tmp_path: Path) -> None:
    results = {
        name: simulate(Sign, (INPUTS, TARGETS), PLAIN | {"strategy": name}, sites=6) for name in ("fedavg", "fedprox")
    }
    figure = cloister.compare(results, path=tmp_path / "both.png")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == list(results)
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    with pytest.raises(CloisterError, match="did you mean `accuracy`"):
        cloister.compare(results, "acuracy")
    with pytest.raises(CloisterError, match="no result to compare"):
        cloister.compare({})
    with pytest.raises(CloisterError, match="takes results by name"):
        cloister.compare({"fedavg": [results["fedavg"], 3]})  # type: ignore[list-item]


def test_repeated_results_are_compared_as_a_band() -> None:
    repeated = [simulate(Sign, (INPUTS, TARGETS), PLAIN | {"seed": seed}, sites=6) for seed in (1, 2, 3)]
    names = [f"run {number}" for number in range(12)]
    figure = cloister.compare(dict.fromkeys(names, repeated), "loss")
    axes = figure.axes[0]
    for line, band in zip(axes.get_lines(), axes.collections, strict=True):
        heights = np.array([[row["loss"] for row in result.rows] for result in repeated])
        assert np.allclose(line.get_ydata(), heights.mean(0))
        edges = band.get_paths()[0].vertices
        assert (edges[:, 1].min(), edges[:, 1].max()) == (heights.min(), heights.max())
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}) == len(names)


def test_a_task_is_checked_again_once_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(Labels, (INPUTS, TARGETS), PLAIN, sites=6)
    monkeypatch.setattr(Labels, "model", lambda _: nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)))
    with pytest.raises(CloisterError, match="mixes the records of a batch"):
        simulate(Labels, (INPUTS, TARGETS), PLAIN, sites=6)


def test_names_are_there_for_users() -> None:
    assert cloister.Training is Training
    assert set(cloister.__all__) >= {"simulate", "Result", "SimulatedRun"}
