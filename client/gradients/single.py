"""`autograd`: plain autograd, one record after the other.

The slowest mode, but correct for whatever torch can differentiate: packed sequences, operations that cannot be mapped,
models that branch on values. All gradients of a part are in memory at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from client.data.inputs import singles
from client.gradients.mode import GradientMode
from client.gradients.record_gradients import Rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from client.data.inputs import Inputs


class Single(GradientMode):
    """Computes the gradients of batches of one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, loss_reduction="sum")

    @override
    def remove_hooks(self) -> None:
        """Do nothing: there are none."""

    @override
    def per_record(self, inputs: Inputs, targets: Tensor) -> list[Rows]:
        by_record = [self._of_one(*record) for record in zip(singles(inputs), targets.split(1), strict=True)]
        return [Rows(torch.stack(gradients).float()) for gradients in zip(*by_record, strict=True)]

    def _of_one(self, inputs: Inputs, targets: Tensor) -> tuple[Tensor, ...]:
        outputs = self.outputs(inputs)
        back = self.loss.gradients(outputs, targets).to(outputs.dtype)
        return torch.autograd.grad(outputs, self.trained, back, allow_unused=True, materialize_grads=True)
