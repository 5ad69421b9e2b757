"""Tasks for tests. A site's agent, in this process or in one of its own, imports them by name as it imports any task."""

import time
from pathlib import Path
from threading import Event
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.records import read_csv
from client.task import Task
from privacy.errors import DataError

SECRET = "Mrs Smith, 1961"  # a record that some tasks below try to let out
HOLD, HELD = "hold", "held"


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
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs, targets)


class Unlisted(Tiny):
    """No site's policy names it."""


class Wide(Tiny):
    """More parameters than one ciphertext holds."""

    @override
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4000), nn.Linear(4000, 1))


class Watched(Tiny):
    """Notes what stands in the site's ledger whenever records are read."""

    ledgers: ClassVar[list[list[str]]] = []

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        self.ledgers.append([line for file in (path.parent / "ledger").glob("*") for line in file.read_text().splitlines()])
        return super().load(path)


class Quoting(Tiny):
    """Its complaint about the records quotes one."""

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        msg = f"{path}:3: cannot read {SECRET}"
        raise DataError(msg)


class Broken(Tiny):
    """Meets a bug, which quotes a record, as often as its class says."""

    bugs: ClassVar[int] = 0

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if Broken.bugs > 0:
            Broken.bugs -= 1
            raise ValueError(SECRET)
        return super().loss(outputs, targets)


class Held(Tiny):
    """Stops in the round whose number stands in the site's file `hold`, until that file is gone."""

    def __init__(self) -> None:
        self._folder, self._calls = Path(), 0

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        self._folder = path.parent
        return super().load(path)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self._calls += 1
        hold, deadline = self._folder / HOLD, time.monotonic() + 60
        if hold.exists() and hold.read_text() == str(self._calls):
            (self._folder / HELD).touch()
            while hold.exists() and time.monotonic() < deadline:
                Event().wait(0.02)
        return super().loss(outputs, targets)
