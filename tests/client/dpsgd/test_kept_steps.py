"""A round that goes on from kept steps ends as if nothing had happened; one whose file is not its own starts again."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from typing_extensions import override

from client.dpsgd.kept_steps import StepsFile, kept_for
from client.dpsgd.training_steps import train
from client.task.probe import make_model
from client.task.task import Task
from privacy.noise.randomness import Randomness
from privacy.run.manifest import Manifest
from privacy.run.optimizer import Adam, AdamW, Cosine, Sgd
from strategies.algorithm import PLAIN, LocalSolver
from tests.client.gradients.test_augmentation import Varied
from tests.client.specimens import RECORDS, Scores, make_specimen, manifest
from tests.pictures import InTurn

STEPS, EVERY = 7, 2


class Killed(BaseException):
    """Stands for the end of a process."""


class Stream(Randomness):
    """Ends the process when it is to draw the sample of a step."""

    def __init__(self, key: int, steps: int) -> None:
        super().__init__(key.to_bytes(32, "big"))
        self._left = steps

    @override
    def uniform(self, count: int) -> NDArray[np.float64]:
        self._left -= 1
        if self._left < 0:
            raise Killed
        return super().uniform(count)


class Dropped(Scores):
    """Has a layer that draws."""

    @override
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 5), nn.Dropout(), nn.Linear(5, 2))


class Longer(InTurn):
    """Has as many steps for what stays as are kept once, and one more."""

    local_steps = EVERY + 1


@dataclass
class Case:
    """What is trained."""

    task: Task = field(default_factory=Scores)
    training: dict[str, object] = field(default_factory=dict)
    privacy: dict[str, object] = field(default_factory=dict)
    solver: LocalSolver = PLAIN

    @property
    def manifest(self) -> Manifest:
        run = manifest(STEPS, 0.5, 1.0, 1.0)
        assert run.settings.training
        training = replace(run.settings.training, **self.training)  # type: ignore[arg-type]
        privacy = replace(run.settings.privacy, **self.privacy)  # type: ignore[arg-type]
        return replace(run, settings=replace(run.settings, training=training, privacy=privacy))

    def train(self, path: Path, key: int, steps: int = STEPS, every: int = EVERY, purpose: bytes = b"") -> Tensor:
        """Train for a round, or until it is killed; return the parameters."""
        module = make_model(self.task, 0)
        records = make_specimen("mlp")[1] if isinstance(self.task, Scores) else self.task.example()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Randomness, "fresh", lambda: Randomness((key + 1000).to_bytes(32, "big")))
            train(self.task, module, records, RECORDS, self.manifest, Stream(key, steps), solver=self.solver,
                  file=StepsFile(path, every, "head", purpose, inf))  # fmt: skip
        return parameters_to_vector(module.parameters()).detach()


OFFSET = torch.linspace(-0.1, 0.1, 3 * 5 + 5 + 5 * 2).numpy()
CASES = {
    "sgd": Case(),
    "momentum": Case(training={"optimizer": Sgd(momentum=0.9)}),
    "nesterov": Case(training={"optimizer": Sgd(momentum=0.9, nesterov=True, weight_decay=0.1)}),
    "adam, a schedule": Case(training={"optimizer": Adam(), "schedule": Cosine(warm_up=0.1)}),
    "adamw": Case(training={"optimizer": AdamW()}),
    "clipping by layer": Case(privacy={"clipping": "per_layer"}),
    "augmentation": Case(Varied(), training={"augmentation_multiplicity": 3}),
    "dropout": Case(Dropped()),
    "an algorithm": Case(solver=LocalSolver(proximal=0.3, offset=OFFSET)),
    "fewer steps": Case(solver=LocalSolver(steps=5)),
    "steps of what stays": Case(Longer()),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_killed_before_any_step_a_round_ends_as_if_nothing_had_happened(case: Case, tmp_path: Path) -> None:
    undisturbed = case.train(tmp_path / "undisturbed", 1)
    assert not torch.equal(undisturbed, case.train(tmp_path / "other", 2))
    for step in range(EVERY + 1, case.solver.steps or STEPS):
        path = tmp_path / str(step)
        with pytest.raises(Killed):
            case.train(path, 1, step)
        assert torch.equal(case.train(path, 2), undisturbed)


def test_a_round_may_be_killed_again_and_again(tmp_path: Path) -> None:
    undisturbed = Case().train(tmp_path / "undisturbed", 1)
    path = tmp_path / "steps"
    for key, step in enumerate((3, 2, 2), start=1):  # counted from the steps that were kept
        with pytest.raises(Killed):
            Case().train(path, key, step)
    assert torch.equal(Case().train(path, 9), undisturbed)


def test_an_older_file_leads_to_the_same_end(tmp_path: Path) -> None:
    path, undisturbed = tmp_path / "steps", Case().train(tmp_path / "undisturbed", 1)
    with pytest.raises(Killed):
        Case().train(path, 1, 3)
    older = path.read_bytes()
    with pytest.raises(Killed):
        Case().train(path, 2, 4)
    assert path.read_bytes() != older
    path.write_bytes(older)
    assert torch.equal(Case().train(path, 3), undisturbed)


def _cut(data: bytes) -> bytes:
    return data[:-1]


def _flipped(data: bytes) -> bytes:
    return data[:50] + bytes([data[50] ^ 1]) + data[51:]


def _empty(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_cut, _flipped, _empty])
def test_a_damaged_file_is_noticed_and_the_round_starts_again_with_new_noise(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, anew = tmp_path / "steps", Case().train(tmp_path / "other", 2)
    with pytest.raises(Killed):
        Case().train(path, 1, 5)
    assert kept_for(path) == ("head", inf)
    path.write_bytes(damage(path.read_bytes()))
    assert kept_for(path) is None
    assert torch.equal(Case().train(path, 2), anew)
    assert "starts with its first step" in caplog.text
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("other", [Case(training={"learning_rate": 0.3}), Case(solver=LocalSolver(proximal=0.1))])
def test_steps_of_another_purpose_are_not_used(other: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "steps"
    runs: list[Callable[[], object]] = [
        lambda: other.train(path, 1, 5),
        lambda: Case().train(path, 1, 5, purpose=b"another model"),
    ]
    for run in runs:
        with pytest.raises(Killed):
            run()
        caplog.clear()
        assert torch.equal(Case().train(path, 2), Case().train(tmp_path / "anew", 2))
        assert "kept for another charge, model, setting, or other records" in caplog.text


def test_what_is_kept_says_nothing_about_the_noise_of_earlier_steps(tmp_path: Path) -> None:
    stream = Randomness(bytes(32))
    before = stream.uniform(4)
    key = stream.renew()
    after = stream.uniform(4)
    assert (Randomness(key).uniform(4) == after).all()
    assert not (before == after).any()
    with pytest.raises(Killed):
        Case().train(tmp_path / "steps", 1, 3)
    assert (1).to_bytes(32, "big").hex().encode() not in (tmp_path / "steps").read_bytes()


def test_a_full_disk_does_not_end_a_round(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    undisturbed = Case().train(tmp_path / "undisturbed", 1)
    (tmp_path / "file").touch()
    assert torch.equal(Case().train(tmp_path / "file" / "steps", 1), undisturbed)
    assert "the steps up to 2 could not be kept" in caplog.text
