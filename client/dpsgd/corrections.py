"""What a run's algorithm adds to each step's noisy gradient: a pull to the round's model, or a fixed vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from privacy.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor


class Correction:
    """Adds `proximal · (w − w₀) + offset` to the gradients; w₀ are the parameters at its creation."""

    def __init__(self, parameters: list[Tensor], proximal: float, offset: Tensor | None) -> None:
        self._parameters, self._proximal = parameters, proximal
        self._start = [parameter.detach().clone() for parameter in parameters] if proximal else []
        self._offset = None if offset is None else offset.split([parameter.numel() for parameter in parameters])
        if self._offset:
            self._offset = [
                part.to(parameter).view_as(parameter) for part, parameter in zip(self._offset, parameters, strict=True)
            ]

    @torch.no_grad()
    def __call__(self, *_: object) -> None:
        """Add it, before a step of the optimizer.

        Raises:
            TaskError: if a parameter has no gradient.
        """
        for number, parameter in enumerate(self._parameters):
            gradient = parameter.grad
            if gradient is None:
                msg = "a trained parameter of the model has no gradient; this is a bug in Cloister, please report it"
                raise TaskError(msg)
            if self._proximal:
                gradient.add_(parameter.detach() - self._start[number], alpha=self._proximal)
            if self._offset:
                gradient.add_(self._offset[number])
