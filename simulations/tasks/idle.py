"""An idle study: a model of any size that is never trained, to measure the cost of the protocol alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from client.task.task import Task

if TYPE_CHECKING:
    from pathlib import Path

PARAMETERS = "CLOISTER_IDLE_PARAMETERS"
"""The environment variable with the number of parameters; set the same at every site."""

_DEFAULT = 1_000
_LAYER = 1 << 20  # most parameters in one tensor, as in real models


class _Side(nn.ModuleList):
    """Parallel layers."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs `(n, 1)` to the mean of each layer's outputs: `(n, layers)`."""
        return inputs * torch.stack([cast("nn.Linear", layer).weight.mean() for layer in self])


class Idle(Task):
    """Linear layers without bias on one input, for runs with `steps_per_round = 0`.

    >>> sum(parameter.numel() for parameter in Idle().model().parameters())
    1000
    """

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: inputs `(n, 1)` to outputs `(n, layers)`."""
        size = int(os.environ.get(PARAMETERS, _DEFAULT))
        return _Side([nn.Linear(1, min(_LAYER, size - start), bias=False) for start in range(0, size, _LAYER)])

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        """Return one all-zero record per line of the file: inputs `(n, 1)`, targets `(n,)`."""
        count = len(path.read_text(encoding="utf-8").splitlines())
        return torch.zeros(count, 1), torch.zeros(count)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        """Make up inputs `(4, 1)` and targets `(4,)`."""
        return torch.arange(4.0).unsqueeze(1), torch.arange(4.0)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean square of outputs `(n, …)`."""
        del targets
        return outputs.square().mean()
