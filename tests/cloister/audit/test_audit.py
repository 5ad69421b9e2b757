"""`cloister audit privacy`: a sound pipeline passes, and every way of breaking it that we know is found and named."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner
from typing_extensions import override

from client.dpsgd import training_steps
from client.gradients.choice import make_mode
from client.gradients.clipping import add_clipped
from cloister.audit.statement import AUDIT
from cloister.cli import app
from privacy.ledger.ledger import Ledger
from privacy.noise.randomness import Randomness
from simulations.engine.federation import Federation, SiteTerms
from simulations.tasks.diagnosis import Diagnosis
from simulations.tasks.hospitals import write_hospital_records
from tests.probes import Through

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from client.gradients.mode import GradientMode
    from client.task.task import Task
    from privacy.accounting.accounting import Mechanism
    from privacy.ledger.ledger import Budget, Charge, Release
    from privacy.run.manifest import Manifest

CANARIES = 2000
OWN = 31  # parameters of the reference study's model: 30 weights and a bias

# --- Faults, seeded into the real pipeline. What training takes is changed in one place: here. ---------------------

TRAIN = training_steps.train


def _training(
    monkeypatch: pytest.MonkeyPatch,
    manifest: Callable[[Manifest], Manifest] = lambda same: same,
    randomness: Callable[[Randomness], Randomness] = lambda same: same,
) -> None:
    def broken(
        task: Task, model: nn.Module, records: tuple[Tensor, Tensor], size: int, signed: Manifest, drawn: Randomness,
        **settings: Any,  # noqa: ANN401 - passed on
    ) -> None:  # fmt: skip
        TRAIN(task, model, records, size, manifest(signed), randomness(drawn), **settings)

    monkeypatch.setattr("client.work.training.train", broken)


def _noise_times(factor: float) -> Callable[[Manifest], Manifest]:
    return lambda manifest: replace(manifest, noise_multiplier=factor * manifest.noise_multiplier)


def _unclipped(manifest: Manifest) -> Manifest:
    """Return a manifest by which nothing is clipped, and noise is what it was."""
    privacy, most = manifest.settings.privacy, 1e9
    norm = privacy.max_grad_norm
    assert norm
    settings = replace(manifest.settings, privacy=replace(privacy, max_grad_norm=most))
    return replace(manifest, settings=settings, noise_multiplier=manifest.noise_multiplier * norm / most)


class Shuffled(Randomness):
    """Deals records out to batches of one size, each to one batch an epoch, where a Poisson sample is asked for."""

    def __init__(self, drawn: Randomness) -> None:
        self._drawn = drawn
        self._left: NDArray[np.intp] = np.empty(0, np.intp)

    @override
    def uniform(self, count: int) -> NDArray[np.float64]:
        half = count // 2
        self._left = self._left[half:] if self._left.size == count else np.argsort(self._drawn.uniform(count))
        values = np.ones(count)
        values[self._left[:half]] = 0.0
        return values

    @override
    def fill_gaussian(self, drawn: NDArray[np.float32] | NDArray[np.float64], deviation: float = 1.0) -> None:
        self._drawn.fill_gaussian(drawn, deviation)


class Elsewhere(Randomness):
    """Draws noise and gives the model's own parameters, the first ones, something else in its place."""

    def __init__(self, drawn: Randomness, change: Callable[[NDArray[Any]], None]) -> None:
        self._drawn, self._change = drawn, change

    @override
    def uniform(self, count: int) -> NDArray[np.float64]:
        return self._drawn.uniform(count)

    @override
    def fill_gaussian(self, drawn: NDArray[np.float32] | NDArray[np.float64], deviation: float = 1.0) -> None:
        self._drawn.fill_gaussian(drawn, deviation)
        self._change(drawn)


def _put(start: int, end: int, source: int | None) -> Callable[[Randomness], Randomness]:
    """Let noise in these places be that of other places, or none."""

    def change(values: NDArray[np.float64]) -> None:
        values[start:end] = 0.0 if source is None else values[source : source + end - start]

    return lambda drawn: Elsewhere(drawn, change)


def _fill_by_layer(mode: GradientMode, inputs: Tensor, targets: Tensor) -> None:
    """Clip every parameter's gradient to C by itself."""
    gradients = mode.per_record(inputs, targets) if len(inputs) else [None] * len(mode.trained)
    for parameter, share in zip(mode.trained, gradients, strict=True):
        add_clipped([parameter], [share], len(inputs), mode.max_grad_norm)


def _clip_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> GradientMode:  # noqa: ANN401 - passed on
        mode = make_mode(*args)
        monkeypatch.setattr(type(mode), "fill", _fill_by_layer)  # not earlier: it would not have been chosen
        return mode

    monkeypatch.setattr(training_steps, "make_mode", broken)


def _charging(monkeypatch: pytest.MonkeyPatch, change: Callable[[Mechanism], Mechanism]) -> None:
    reserve = Ledger.reserve

    def broken(self: Ledger, release: Release, mechanism: Mechanism, budget: Budget) -> Charge:
        return reserve(self, release, change(mechanism), budget)

    monkeypatch.setattr(Ledger, "reserve", broken)


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], set[str]]] = {
    "no noise": (lambda patch: _training(patch, _noise_times(0.0)), {"implementation", "noise"}),
    "half the noise": (lambda patch: _training(patch, _noise_times(0.5)), {"implementation", "noise"}),
    "no clipping": (lambda patch: _training(patch, _unclipped), {"implementation", "clipping"}),
    "shuffling instead of Poisson sampling": (lambda patch: _training(patch, randomness=Shuffled), {"sampling"}),
    "no noise on the model's own parameters": (
        lambda patch: _training(patch, randomness=_put(0, OWN, None)),
        {"model's noise"},
    ),
    "no noise on one of the model's layers": (
        lambda patch: _training(patch, randomness=_put(OWN - 1, OWN, None)),
        {"model's noise"},
    ),
    "clipping by layer": (_clip_by_layer, {"joint clipping"}),
    "the same noise in canaries and in the model": (
        lambda patch: _training(patch, randomness=_put(OWN, 2 * OWN, 0)),
        {"other places"},
    ),
    "a ledger that skips a step": (
        lambda patch: _charging(patch, lambda cost: replace(cost, steps=cost.steps - 1)),
        {"steps"},
    ),
    "a ledger with a lower rate": (
        lambda patch: _charging(patch, lambda cost: replace(cost, sample_rate=0.45)),
        {"sampling"},
    ),
    "the same noise every round": (
        lambda patch: patch.setattr(Randomness, "fresh", lambda: Randomness(bytes(32))),
        {"other rounds", "another site"},
    ),
}


# Each of these takes as long as a whole audit; tests/cloister/audit/test_audit_checks.py has every check by itself.
SLOW = {
    "half the noise",
    "no clipping",
    "shuffling instead of Poisson sampling",
    "no noise on the model's own parameters",
    "no noise on one of the model's layers",
    "clipping by layer",
    "the same noise in canaries and in the model",
    "a ledger that skips a step",
    "a ledger with a lower rate",
    "the same noise every round",
}


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=pytest.mark.soak) if fault in SLOW else fault for fault in FAULTS]
)
def test_every_seeded_fault_is_found_named_and_fails_the_command(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    seed, named = FAULTS[fault]
    seed(monkeypatch)
    result = CliRunner().invoke(app, ["audit", "privacy", "--canaries", str(CANARIES), "--json"])

    assert result.exit_code == 1
    report = json.loads(result.stdout.splitlines()[-1])
    assert not report["passed"]
    assert named <= {check["name"] for check in report["checks"] if not check["held"]}
    message = next(line for line in result.stderr.splitlines() if line.startswith("✗ the reference study"))
    assert all(name in message for name in named)


def test_a_sound_pipeline_passes_and_the_measured_epsilon_is_close_to_the_claim(tmp_path: Path) -> None:
    picture = tmp_path / "audit.png"
    result = CliRunner().invoke(app, ["audit", "privacy", "--json", "--plot", str(picture)])

    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert 4.5 <= report["epsilon_lower"] <= report["epsilon_claimed"] <= 8.0
    assert 0 < report["epsilon_formal"] < report["epsilon_lower"]
    assert report["steps_taken"] == report["steps_charged"] == 48
    assert report["noise_ratio_interval"][0] <= report["noise_ratio"] <= report["noise_ratio_interval"][1]
    assert all(check["held"] for check in report["checks"])
    assert max(map(len, result.stderr.splitlines()[: len(report["checks"]) + 1])) <= 80
    assert picture.read_bytes().startswith(b"\x89PNG")


def _site(folder: Path, tasks: tuple[str, ...]) -> Path:
    federation = Federation.create(folder, ("north", "south", "east"))
    write_hospital_records(federation.paths)
    federation.write_settings("east", "localhost:1", SiteTerms(tasks))
    return federation.paths["east"]


def test_an_audit_of_a_site_stays_in_its_folder_and_charges_its_people_nothing(tmp_path: Path) -> None:
    site = _site(tmp_path, ("simulations.tasks.measurements:Measurements", "simulations.tasks.diagnosis:Diagnosis"))
    before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, ["audit", "privacy", str(site), "--canaries", "500", "--epsilon", "3", "--json"])

    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert (report["site"], report["task"]) == ("east", "simulations.tasks.diagnosis:Diagnosis")
    assert 2.9 < report["epsilon_claimed"] <= 3.0
    after = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    assert json.loads(after.pop(site / AUDIT)) == report
    assert after == before


class ToTheLongest(Diagnosis):
    """Cuts records after the last value of the batch that is above the mean: to the longest, if they were tokens."""

    @override
    def model(self) -> nn.Module:
        return Through(self._cut, super().model())

    @staticmethod
    def _cut(inputs: Tensor) -> Tensor:
        lengths = ((inputs > 0.5) * torch.arange(1, inputs.shape[1] + 1)).amax(1)
        return inputs * (torch.arange(inputs.shape[1]) < lengths.max())


def test_an_audit_tests_the_sites_own_task_and_reports_why_it_fails(tmp_path: Path) -> None:
    name = f"{ToTheLongest.__module__}:{ToTheLongest.__name__}"
    site = _site(tmp_path, ("simulations.tasks.diagnosis:Diagnosis", name))
    picture = tmp_path / "audit.png"
    result = CliRunner().invoke(app, ["audit", "privacy", str(site), "--json", "--plot", str(picture)])

    assert result.exit_code == 1
    report = json.loads(result.stdout.splitlines()[-1])
    (check,) = report["checks"]
    assert (check["name"], check["held"], report["passed"]) == ("gradients", False, False)
    assert check["seen"].startswith(f"{name}: its model gives a record a different output in another batch")
    assert check["seen"] in " ".join(result.stderr.split())
    assert json.loads((site / AUDIT).read_bytes()) == report
    assert not picture.exists()
    written = CliRunner().invoke(app, ["audit", "statement", str(site)])
    assert "REFUTED: gradients" in written.stdout


def test_a_site_without_a_training_task_has_nothing_to_audit(tmp_path: Path) -> None:
    site = _site(tmp_path, ("simulations.tasks.measurements:Measurements",))
    result = CliRunner().invoke(app, ["audit", "privacy", str(site)])
    assert "no task that trains" in str(result.exception)
