"""Sites that train together do what sites do one by one."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from client.dpsgd.training_steps import train
from client.state.model_parts import drained, layout_of, set_tensors
from client.task.task import Task
from cloister.benchmarks.pipelines import charge_for_nobody
from privacy.codec.packing import Packing, pack, unpack
from privacy.codec.update import Model, Update, privatise
from privacy.noise.randomness import Randomness
from privacy.run.manifest import Manifest
from privacy.run.settings import RunSettings
from simulations.engine.keyless_rounds import PackedMeans, Sites, add_up
from simulations.vectorised.batches import Batches, SiteRecords, draw_as_sites, draw_together
from simulations.vectorised.gradients import LinearGradients, MappedGradients, site_gradients
from simulations.vectorised.kept_vectors import KeptVectors
from simulations.vectorised.levels import LevelSum
from simulations.vectorised.sites import VectorisedSites, unsuitable
from strategies.registry import completed

if TYPE_CHECKING:
    from privacy.codec.update import Layout
    from strategies.algorithm import LocalSolver

SIZES = {"a": 5, "b": 9, "c": 2, "d": 9, "e": 1}
FEATURES, CLASSES = 6, 3


class Chain(Task):
    """A chain of linear layers."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, CLASSES, bias=False)))

    def example(self) -> tuple[Tensor, Tensor]:
        return torch.randn(6, FEATURES), torch.arange(6) % CLASSES

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)


class Convolution(Chain):
    """A model that is no chain of linear layers."""

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (1, FEATURES)), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(),
            nn.Linear(16, CLASSES),
        )  # fmt: skip


TASKS: list[Task] = [Chain(), Convolution()]


@dataclass(frozen=True)
class _Study:
    """What `Sites` needs of a site: it trains by the steps of the client."""

    task: Task
    records: tuple[Tensor, Tensor]
    size: int
    layout: Layout

    def release(
        self, manifest: Manifest, number: int, model: Model, randomness: Randomness, solver: LocalSolver
    ) -> Update:
        module = self.task.model()
        set_tensors(module, model)
        train(self.task, module, self.records, self.size, manifest, randomness, number=number, solver=solver)
        return Update(drained(module, self.layout) - model.vector)


def _manifest(**changed: Any) -> Manifest:  # noqa: ANN401 - tables of run.toml
    sigma = changed.pop("sigma", 0.0)
    settings: dict[str, Any] = {
        "name": "x",
        "task": "tests.simulations.vectorised.test_sites:Chain",
        "rounds": 4,
        "seed": 3,
        "privacy": {"max_grad_norm": 0.7, "noise_multiplier": sigma},
        "cohort": {"sizes": SIZES},
        "training": {"sample_rate": 0.5, "steps_per_round": 3, "learning_rate": 0.3},
        "encryption": {"update_bound": 1.0, "collusion_resistant": False},
    } | changed
    if sigma:
        del settings["seed"]
    read = TypeAdapter(RunSettings).validate_json(json.dumps(settings))
    return Manifest(completed(read), sigma, 1, "00" * 8, "2026-01-01T00:00:00+00:00", 4e9)


def _records() -> tuple[Tensor, Tensor, list[np.ndarray[Any, Any]]]:
    drawn = torch.Generator().manual_seed(1)
    several = sum(SIZES.values())
    inputs, targets = torch.randn(several, FEATURES, generator=drawn), torch.arange(several) % CLASSES
    order = torch.randperm(several, generator=drawn).numpy()
    return inputs, targets, np.split(order, np.cumsum(list(SIZES.values()))[:-1])


def _start(task: Task) -> Model:
    torch.manual_seed(5)
    module = task.model()
    layout = layout_of(module)
    return Model(drained(module, layout), layout)


def _together(task: Task, manifest: Manifest) -> list[Model]:
    inputs, targets, parts = _records()
    sites = VectorisedSites(task, task.model(), SiteRecords.of(inputs, targets, parts), manifest)
    models = [_start(task)]
    for number in range(1, manifest.settings.rounds + 1):
        models.append(sites.round(number, models[-1]))
    return models


def _one_by_one(task: Task, manifest: Manifest) -> list[Model]:
    inputs, targets, parts = _records()
    models = [_start(task)]
    studies: Any = {
        site: _Study(task, (inputs[part], targets[part]), SIZES[site], models[0].layout)
        for site, part in zip(SIZES, parts, strict=True)
    }
    sites = Sites.seeded(studies, {site: manifest.weight(site) for site in SIZES}, manifest, 3)
    means = PackedMeans(sites, manifest.settings.packing(0.0), charge_for_nobody())
    for number in range(1, manifest.settings.rounds + 1):
        before = Model(models[-1].vector.copy(), models[-1].layout)
        models.append(means.apply(before, means(number, models[-1])))
    return models


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"strategy": {"name": "fedprox", "mu": 0.5}},
        {"strategy": {"name": "scaffold"}},
        {"strategy": {"name": "fednova", "steps": {"b": 1, "c": 2}}},
        {"strategy": {"name": "fedadam"}},
        {"strategy": {"name": "feddyn"}},
        {"training": {"sample_rate": 1.0, "steps_per_round": 2, "learning_rate": 0.01, "optimizer": {"name": "adamw"}}},
        {
            "training": {
                "sample_rate": 0.7, "epochs_per_round": 2, "learning_rate": 0.2, "schedule": {"name": "cosine"},
                "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True},
            }
        },
    ],
    ids=["fedavg", "fedprox", "scaffold", "fednova", "fedadam", "feddyn", "adamw", "momentum"],
)  # fmt: skip
def test_sites_together_arrive_at_the_model_of_sites_one_by_one(task: Task, changed: dict[str, Any]) -> None:
    manifest = _manifest(**changed)
    for one, other in zip(_one_by_one(task, manifest), _together(task, manifest), strict=True):
        # A value on the edge between two levels may fall on either side: then the mean differs by a level of one site.
        level = manifest.settings.packing(0.0).unit(1.0)
        np.testing.assert_allclose(one.vector, other.vector, atol=max(1e-5, 2 * level * manifest.settings.rounds))
        assert np.median(np.abs(one.vector - other.vector)) < 1e-5


def test_the_same_updates_give_the_same_levels_residuals_and_mean_bit_for_bit() -> None:
    draw = np.random.default_rng(2)
    size, weights = 20_000, [1.0, 0.3, 0.77, 0.5]
    for profile in ("compact", "precise", "dense"):
        packing = Packing.of(profile, cohort=7, update_bound=0.5, max_weight=1.0)
        updates = (0.3 * draw.standard_normal((4, size))).astype(np.float32)
        streams = [Randomness.seeded(1, site) for site in range(4)]
        packed = [
            pack(privatise(Update(row.copy()), charge_for_nobody()), weight, packing, stream)
            for row, weight, stream in zip(updates, weights, streams, strict=True)
        ]
        mean = unpack(add_up(packed), size, weights, packing)
        total, rest = LevelSum(size, packing), torch.from_numpy(updates.copy())
        uniform = np.stack([Randomness.seeded(1, site).uniform32(size) for site in range(4)])
        units = torch.tensor([[packing.unit(weight)] for weight in weights], dtype=torch.float64)
        total.add(rest, units, torch.from_numpy(uniform))
        assert (total.mean(weights).vector == mean.vector).all()
        for row, stream in zip(rest.numpy(), packed, strict=True):
            assert (row == stream.residual).all()


def test_both_ways_compute_the_same_clipped_sums_as_autograd_record_by_record() -> None:
    task = TASKS[0]
    module = task.model()
    assert isinstance(site_gradients(task, module), LinearGradients)
    assert isinstance(site_gradients(TASKS[1], TASKS[1].model()), MappedGradients)
    drawn = torch.Generator().manual_seed(4)
    parameters = {
        name: torch.randn(3, *parameter.shape, generator=drawn) for name, parameter in module.named_parameters()
    }
    inputs = torch.randn(3, 4, FEATURES, generator=drawn)
    targets = torch.randint(CLASSES, (3, 4), generator=drawn)
    present = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.float32)
    inputs[1, 1] = torch.nan  # a record without a finite gradient adds nothing
    ways = site_gradients(task, module), MappedGradients(task, module)
    batches, ones = Batches(inputs, targets, present), torch.ones(3)
    results = [{name: torch.empty_like(parameter) for name, parameter in parameters.items()} for _ in ways]
    for way, sums in zip(ways, results, strict=True):
        way.clipped_sums(parameters, batches, 0.5, ones, sums)
    for site in range(3):
        expected = {name: torch.zeros_like(parameter[site]) for name, parameter in parameters.items()}
        for record in range(4):
            if not present[site, record] or inputs[site, record].isnan().any():
                continue
            module.load_state_dict({name: parameter[site] for name, parameter in parameters.items()})
            module.zero_grad()
            task.loss(module(inputs[site, record, None]), targets[site, record, None]).backward()
            gradients = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}  # type: ignore[union-attr]
            norm = sum(float(gradient.double().square().sum()) for gradient in gradients.values()) ** 0.5
            for name, gradient in gradients.items():
                expected[name] += gradient * min(1.0, 0.5 / (norm + 1e-6))
        for result in results:
            for name, total in expected.items():
                torch.testing.assert_close(result[name][site].view_as(total), total, atol=1e-5, rtol=1e-5)


def test_noise_has_the_run_s_deviation() -> None:
    task, rate = Chain(), 1e-9
    manifest = _manifest(
        sigma=2.0, rounds=1, training={"sample_rate": rate, "steps_per_round": 1, "learning_rate": 1.0},
        encryption={"update_bound": 16.0, "collusion_resistant": False, "profile": "precise"},
    )  # fmt: skip
    inputs, targets, parts = _records()
    draws = []
    for _ in range(30):  # hardly any record is in a batch: what is left is noise, of sites with weights 5, 9, 2, 9, 1
        sites = VectorisedSites(task, task.model(), SiteRecords.of(inputs, targets, parts), manifest)
        start = _start(task)
        draws.append(sites.round(1, start).vector - start.vector)
    weights = np.array(list(SIZES.values()))
    expected = 2.0 * 0.7 * np.sqrt((weights**2).sum()) / weights.sum()
    assert np.std(draws) == pytest.approx(expected, rel=0.1)
    assert abs(np.mean(draws)) < 0.1


def test_a_run_of_a_part_of_the_sites_leaves_the_others_residuals_alone() -> None:
    task, manifest = Chain(), _manifest()
    inputs, targets, parts = _records()
    sites = VectorisedSites(task, task.model(), SiteRecords.of(inputs, targets, parts), manifest)
    first = sites.round(1, _start(task), np.array([1, 4]))
    only = _manifest(cohort={"sizes": SIZES})
    again = VectorisedSites(task, task.model(), SiteRecords.of(inputs, targets, parts), only)
    assert (again.round(1, _start(task), np.array([4, 1])).vector == first.vector).all()
    kept = sites._residuals.read(np.arange(5))
    assert kept[[1, 4]].any(axis=1).all()
    assert not kept[[0, 2, 3]].any()


@pytest.mark.parametrize("most", [0, 1 << 30])
def test_kept_vectors_are_the_same_in_memory_and_in_a_file(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.vectorised.kept_vectors._IN_MEMORY", most)
    kept, draw = KeptVectors(10, 3, np.float32), np.random.default_rng(1)
    expected = np.zeros((10, 3), np.float32)
    for _ in range(20):
        some = np.sort(draw.choice(10, draw.integers(1, 10), replace=False))
        rows = draw.random((len(some), 3), np.float32)
        kept.write(some, rows)
        expected[some] = rows
        assert (kept.read(np.arange(10)) == expected).all()
        assert (kept.read(some) == rows).all()
    kept.close()


def test_batches_hold_the_records_drawn_and_padding() -> None:
    inputs = torch.arange(10.0).unsqueeze(1)
    records = SiteRecords.of(inputs, torch.arange(10), [np.array([3, 1, 4]), np.array([], int), np.array([5, 9])])
    whole = records.batches(np.array([0, 1, 2]), None)
    assert whole.present.tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 0]]
    assert whole.targets[0].tolist() == [3, 1, 4]
    assert whole.targets[2, :2].tolist() == [5, 9]
    drawn = np.array([[False, True, True], [False, False, False], [False, True, False]])
    some = records.batches(np.array([0, 1, 2]), lambda _: drawn)
    assert some.present.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert some.targets[0].tolist() == [1, 4]
    assert some.targets[2, 0] == 9
    assert records.batches(np.array([1]), None).present.tolist() == [[0]]


def test_sites_draw_from_their_own_streams_or_from_one() -> None:
    sizes = np.array([3, 0, 5])
    own = draw_as_sites([Randomness.seeded(1, site) for site in range(3)], 0.5)(sizes)
    assert (own[2] == (Randomness.seeded(1, 2).uniform(5) < 0.5)).all()
    share = np.mean([draw_together(Randomness.seeded(2), 0.3)(np.full(50, 40)).mean() for _ in range(5)])
    assert share == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"privacy": {"max_grad_norm": 1.0, "noise_multiplier": 0.0, "clipping": "per_layer"}}, "layer by layer"),
        ({"training": {"sample_rate": 0.5, "steps_per_round": 0, "learning_rate": 0.3}}, "trains nothing"),
    ],
)
def test_what_cannot_train_together_is_named(changed: dict[str, Any], reason: str) -> None:
    assert reason in str(unsuitable(Chain(), _manifest(**changed)))
    assert unsuitable(Chain(), _manifest()) is None
    local = Chain()
    local.local = ("0.*",)  # type: ignore[misc]
    assert "stay at the sites" in str(unsuitable(local, replace(_manifest())))
