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
    from simulations.vectorised.workspace import Workspace


class Descent:
    """How far sites have moved from the model that they started from.

    With plain SGD, their models are not made before a second step needs them: the first starts from the same one.
    """

    def __init__(
        self, training: Training, shapes: Mapping[str, torch.Size], start: Tensor, sites: int, workspace: Workspace
    ) -> None:
        """Begin at the model `start`, `(parameters,)`, at each of some sites.

        Args:
            training: says which optimizer.
            shapes: of the parameters, by name.
            start: the model.
            sites: how many.
            workspace: where gradients and models are kept; no other descent may use it at the same time.
        """
        self._shapes, self._start, self._workspace, self._sites = shapes, start, workspace, sites
        self._models = self.by_name(start.expand(sites, -1))
        self._moved: Tensor | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        if training.optimizer != Sgd():
            self._models = {name: part.clone() for name, part in self._models.items()}
            self._optimizer = make_optimizer(training.optimizer, list(self._models.values()), training.learning_rate)

    def by_name(self, rows: Tensor) -> Parameters:
        """Return the parts of `(S, parameters)`, by name, as the parameters `(S, ...)` that they are."""
        parts = rows.split([shape.numel() for shape in self._shapes.values()], 1)
        return {name: part.view(-1, *shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    @property
    def models(self) -> Parameters:
        """The sites' models now, `(S, ...)` by name."""
        if not self._models:
            assert self._moved is not None  # noqa: S101 - `step` empties the one and fills the other
            models = self._workspace.rows("models", self._sites)
            self._models = self.by_name(torch.add(self._start, self._moved, out=models))
        return self._models

    @property
    def gradients(self) -> Tensor:
        """Where the gradients of the next step are to be put, `(S, parameters)`."""
        first = self._optimizer is None and self._moved is None
        return self._workspace.rows("moved" if first else "gradients", self._sites)

    def step(self, gradients: Tensor, rate: float) -> None:
        """Take a step along these gradients `(S, parameters)`, which are used up."""
        if self._optimizer is not None:
            for name, gradient in self.by_name(gradients).items():
                self._models[name].grad = gradient
            set_rate(self._optimizer, rate)
            self._optimizer.step()
            return
        self._moved = gradients.mul_(-rate) if self._moved is None else self._moved.add_(gradients, alpha=-rate)
        self._models = {}

    @property
    def updates(self) -> Tensor:
        """The sites' models less the one that they started from, `(S, parameters)`."""
        if self._moved is not None:
            return self._moved
        return torch.cat([model.flatten(1) for model in self._models.values()], 1).sub_(self._start)
