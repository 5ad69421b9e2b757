"""The steps of many sites from one model, by the optimizer that a run names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from client.dpsgd.optimizers import make_optimizer, set_rate
from privacy.run.optimizer import Sgd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from privacy.run.settings import Training
    from simulations.vectorised.gradients import Parameters


class Descent:
    """How far sites have moved from the model that they started from.

    With plain SGD, their models are not made before a second step needs them: the first starts from the same one.
    """

    def __init__(self, training: Training, start: Mapping[str, Tensor], sites: int) -> None:
        """Begin at the parameters `start`, by name, at each of some sites."""
        self._start = start
        self._models = {name: part.expand(sites, *part.shape) for name, part in start.items()}
        self._moved: Parameters | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        if training.optimizer != Sgd():
            self._models = {name: part.clone() for name, part in self._models.items()}
            self._optimizer = make_optimizer(training.optimizer, list(self._models.values()), training.learning_rate)

    @property
    def models(self) -> Parameters:
        """The sites' models now, `(S, ...)` by name."""
        if not self._models:
            assert self._moved is not None  # noqa: S101 - `step` empties the one and fills the other
            self._models = {name: part + self._moved[name] for name, part in self._start.items()}
        return self._models

    def step(self, gradients: Parameters, rate: float) -> None:
        """Take a step along these gradients `(S, ...)`, which are used up."""
        if self._optimizer is not None:
            for name, model in self._models.items():
                model.grad = gradients[name]
            set_rate(self._optimizer, rate)
            self._optimizer.step()
            return
        if self._moved is None:
            self._moved = {name: gradient.mul_(-rate) for name, gradient in gradients.items()}
        else:
            for name, moved in self._moved.items():
                moved.add_(gradients[name], alpha=-rate)
        self._models = {}

    @property
    def updates(self) -> Tensor:
        """The sites' models less the one that they started from, `(S, parameters)`."""
        moved = self._moved
        if moved is None:
            moved = {name: model - self._start[name] for name, model in self._models.items()}
        return torch.cat([part.flatten(1) for part in moved.values()], 1)
