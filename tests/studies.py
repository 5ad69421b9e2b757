"""Tasks for tests. An agent, in this process or in one of its own, imports them by name as it imports any task."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from traceback import walk_stack
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.data.records import read_csv
from client.dpsgd.training_steps import _take_steps
from client.task.task import Task
from client.work.survey import Survey
from client.work.training import Study
from privacy.errors import DataError
from simulations.tasks.idle import Idle

QUOTE = "Mrs Smith, 1961"  # a record that some tasks below try to let out
HOLD, HOLD_LOADING, MET = "hold", "hold-loading", ".met"
DYING = "dying"
SPARE = "CLOISTER_TEST_SPARE"  # in the environment of an agent that is to take another's place
HOLD_SPARE = "hold-spare"


class Tiny(Task):
    """Two features, three parameters."""

    @override
    def model(self) -> nn.Module:
        return nn.Linear(2, 1)

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        inputs, targets = read_csv(path, features=("a", "b"), target="y")
        return torch.from_numpy(inputs), torch.from_numpy(targets).unsqueeze(1)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        return torch.arange(8.0).reshape(4, 2), torch.arange(4.0).unsqueeze(1)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs, targets)


class Scored(Tiny):
    """Has metrics: one within its range, one that is beyond it or no number."""

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        off = (outputs - targets).squeeze(1)
        odd = torch.where(off > 0, 3 * off, torch.full_like(off, torch.nan))
        return {"near": (off.abs() < 1).float(), "odd": odd}


class Counted(Tiny):
    """Every record is right."""

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"accuracy": torch.ones(len(outputs)), "odd": torch.full((len(outputs),), torch.nan)}


class Knowing(Tiny):
    """Knows whether it has loaded records: before, all that it sees is made up."""

    def __init__(self) -> None:
        self.has_records = False

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        self.has_records = True
        return super().load(path)


class Unmeasurable(Knowing):
    """Its metrics raise an error that quotes a record, once there are records."""

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if self.has_records:
            raise ValueError(QUOTE)
        return {}


class Ranked(Tiny):
    """Its metrics hold each record against all others: a rank, and an accuracy that is balanced over classes."""

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        near = ((outputs - targets).abs() < 1).float().squeeze(1)
        classes = targets.squeeze(1).round()
        balanced = near / (classes[:, None] == classes).float().sum(1)
        return {"above": (outputs > outputs.mean()).float().squeeze(1), "balanced": balanced}


class Unlisted(Tiny):
    """No site's policy names it."""


class Wide(Tiny):
    """More parameters than one ciphertext holds."""

    @override
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4000), nn.Linear(4000, 1))


class Still(Wide):
    """Nothing to learn: all that an update holds is noise."""

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.0 * super().loss(outputs, targets)


class Quoting(Tiny):
    """Its complaint about the records quotes one."""

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        msg = f"{path}:3: cannot read {QUOTE}"
        raise DataError(msg)


class Broken(Tiny):
    """Meets a bug, which quotes a record, as often as its class says; only as it trains."""

    bugs: ClassVar[int] = 0
    kind: ClassVar[type[BaseException]] = ValueError

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs.sum()  # so that it is called with the records: see `known_losses`
        if Broken.bugs > 0 and trains():
            Broken.bugs -= 1
            raise self.kind(QUOTE)
        return super().loss(outputs, targets)


class Held(Tiny):
    """Stops at a site where a file says so: when records are read, or when it trains, until that file is gone."""

    def __init__(self) -> None:
        self._folder = Path()

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        self._folder = path.parent
        _hold(self._folder / (HOLD_SPARE if SPARE in os.environ else HOLD_LOADING))
        return super().load(path)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if trains():
            _hold(self._folder / HOLD)
        return super().loss(outputs, targets)


class Weighty(Idle):
    """A model of any size that is never trained. Stops where it would be; in a spare agent at the records, too."""

    def __init__(self) -> None:
        self._folder = Path()

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        self._folder = path.parent
        if SPARE in os.environ:
            _hold(self._folder / HOLD_SPARE)
        return super().load(path)

    @override
    def model(self) -> nn.Module:
        if trains():
            _hold(self._folder / HOLD)
        return super().model()


class Mortal(Tiny):
    """A worker's process ends in training where a file says so."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        self._folder = path.parent
        return super().load(path)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._folder and os.environ.get("RANK", "0") != "0" and (self._folder / DYING).exists() and takes_steps():
            os._exit(9)
        return super().loss(outputs, targets)


def trains() -> bool:
    """Whether this is a round, not a trial of the task."""
    return any(frame.f_code is Study.release.__code__ for frame, _ in walk_stack(None))


def takes_steps() -> bool:
    """Whether this is within steps of training, in whichever process."""
    return any(frame.f_code is _take_steps.__code__ for frame, _ in walk_stack(None))


def _hold(file: Path) -> None:
    """Wait while a file is there; say beside it that it was met."""
    deadline = time.monotonic() + 90
    if file.exists():
        file.with_suffix(MET).touch()
    while file.exists() and time.monotonic() < deadline:
        Event().wait(0.02)


class Asked(Survey):
    """The two features of `Tiny`, and its target as a label; notes where it read records."""

    columns: ClassVar[Mapping[str, tuple[float, float]]] = {"a": (0.0, 4.0), "b": (0.0, 8.0)}
    classes: ClassVar[tuple[float, ...]] = (0.0, 1.0, 2.0)
    files: ClassVar[list[Path]] = []

    @override
    def load(self, path: Path) -> tuple[ArrayLike, ArrayLike]:
        Asked.files.append(path)
        return read_csv(path, features=("a", "b"), target="y")


class Unlabelled(Asked):
    """No label, and tensors instead of arrays."""

    classes: ClassVar[tuple[float, ...]] = ()

    @override
    def load(self, path: Path) -> tuple[ArrayLike, ArrayLike]:
        values, labels = super().load(path)
        return torch.from_numpy(np.asarray(values)), torch.from_numpy(np.asarray(labels))


class Replaced(Asked):
    """Reads whatever a test says."""

    read: ClassVar[tuple[ArrayLike, ArrayLike]] = ((), ())

    @override
    def load(self, path: Path) -> tuple[ArrayLike, ArrayLike]:
        return self.read


class NoColumns(Asked):
    """Asks nothing."""

    columns: ClassVar[Mapping[str, tuple[float, float]]] = {}


class Backwards(Asked):
    """A range from high to low."""

    columns: ClassVar[Mapping[str, tuple[float, float]]] = {"a": (4.0, 0.0)}


class Endless(Asked):
    """A range without an end."""

    columns: ClassVar[Mapping[str, tuple[float, float]]] = {"a": (0.0, float("inf"))}


class Twice(Asked):
    """A class that stands twice."""

    classes: ClassVar[tuple[float, ...]] = (0.0, 0.0)
