"""`vmap`: the gradient of one record's loss, as torch computes it, mapped over records (torch.func).

It is right for whatever torch can map, because it takes a model as a whole: attention, tied weights, bare parameters.
All of a part's gradients are in memory at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from client.gradients.mode import GradientMode, check_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from client.gradients.loss import RecordLoss


class Vmap(GradientMode):
    """Fills `p.grad_sample`."""

    def __init__(self, model: nn.Module, loss: RecordLoss) -> None:
        super().__init__(model, loss_reduction="sum")
        self.loss, self._in_one = loss, True

    @override
    def remove_hooks(self) -> None:
        """Do nothing: there are none."""

    @override
    def fill(self, inputs: Tensor, targets: Tensor) -> None:
        if self._in_one:
            try:
                return self._fill(inputs, targets, self.loss.of_one)
            except RuntimeError:  # the loss branches on values, say; a model that does so fails below, too
                self._in_one = False
        with torch.no_grad():
            outputs = self.outputs(inputs)
        gradients = self.loss.gradients(outputs, targets)
        return self._fill(inputs, gradients, lambda output, gradient: (output * gradient).sum())

    def _fill(self, inputs: Tensor, others: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Set the gradients of `loss(output, other)`, one record at a time."""
        model, parameters = self._module, dict(self._module.named_parameters())

        def of_record(values: dict[str, Tensor], record: Tensor, other: Tensor) -> Tensor:
            with self.autocast(inputs):
                outputs = torch.func.functional_call(model, values, (record.unsqueeze(0),))
            check_rows(len(outputs), 1)
            return loss(outputs[0].float(), other)

        mapped = torch.func.vmap(torch.func.grad(of_record), in_dims=(None, 0, 0), randomness="different")
        samples = mapped({name: each.detach() for name, each in parameters.items()}, inputs, others)
        for name, each in samples.items():
            check_rows(len(each), len(inputs))
            setattr(parameters[name], "grad_sample", each)  # noqa: B010 - Opacus's attribute, of which types know nothing
