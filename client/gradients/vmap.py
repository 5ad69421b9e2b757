"""`vmap`: the gradient of one record's loss, as torch computes it, mapped over records (torch.func).

It treats a model as a whole, so it is correct for whatever torch can map: attention, tied weights, bare parameters.
All gradients of a part are in memory at once.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from client.data.inputs import call, mapped, rows
from client.dpsgd.torch_draws import forked
from client.gradients.mode import GradientMode, check_rows
from client.gradients.record_gradients import Rows
from client.gradients.recurrent import begin_by_record
from client.task.user_code import is_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from client.data.inputs import Inputs


class Vmap(GradientMode):
    """Computes gradients written out for every record."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, loss_reduction="sum")
        self._in_one: bool | None = None  # whether a record's loss can be mapped as a whole
        self._hooks = begin_by_record(model)

    @override
    def remove_hooks(self) -> None:
        """Restore the recurrent layers."""
        for hook in self._hooks:
            hook.remove()

    @override
    def per_record(self, inputs: Inputs, targets: Tensor) -> list[Rows]:
        if self._in_one is None:
            self._in_one = self._can_be_one(rows(inputs, slice(1)), targets[:1])
        samples = (self._of_losses if self._in_one else self._of_outputs)(inputs, targets)
        for sample in samples:
            check_rows(len(sample), len(targets))
        return [Rows(gradients.float()) for gradients in samples]

    def _can_be_one(self, inputs: Inputs, targets: Tensor) -> bool:
        """Return whether one record's loss can be mapped as a whole. The trial does not advance the generator."""
        with forked():
            try:
                self._of_losses(inputs, targets)
            except RuntimeError as error:  # for instance, the loss branches on values; such a model fails later too
                if is_memory(error):
                    raise
                return False
        return True

    def _of_losses(self, inputs: Inputs, targets: Tensor) -> Sequence[Tensor]:
        """Map the gradient of a record's loss."""

        def of_one(values: Sequence[Tensor], record: Inputs, target: Tensor) -> Tensor:
            return self.loss.of_one(self._output(values, record), target)

        mapped = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0, 0), randomness="different")
        gradients: Sequence[Tensor] = mapped([parameter.detach() for parameter in self.trained], inputs, targets)
        return gradients

    def _of_outputs(self, inputs: Inputs, targets: Tensor) -> Sequence[Tensor]:
        """Map the model alone, over parameters too: every record has its own copy, with its own gradients.

        Torch does not allow a reduced precision here.
        """
        own = [parameter.detach().expand(len(targets), *parameter.shape).requires_grad_() for parameter in self.trained]
        outputs = torch.func.vmap(self._output, randomness="different")(own, inputs)
        gradients: Sequence[Tensor] = torch.autograd.grad(
            outputs, own, self.loss.gradients(outputs, targets), allow_unused=True, materialize_grads=True
        )
        return gradients

    def _output(self, values: Sequence[Tensor], record: Inputs) -> Tensor:
        with self.autocast(record), self._in_place_of_parameters(values):
            outputs: Tensor = call(self, mapped(lambda tensor: tensor.unsqueeze(0), record))
        check_rows(len(outputs), 1)
        return outputs[0].float()

    @contextmanager
    def _in_place_of_parameters(self, values: Sequence[Tensor]) -> Iterator[None]:
        """Run the model with these values in place of its parameters, wherever it keeps them.

        `torch.func.functional_call` goes by names, and does not restore a parameter that has two names in one module.
        """
        number = {id(parameter): index for index, parameter in enumerate(self.trained)}
        tables: list[dict[str, Any]] = [part._parameters for part in self._module.modules()]  # noqa: SLF001 - where torch itself changes them
        places = [(table, name, own) for table in tables for name, own in table.items() if id(own) in number]
        try:
            for table, name, own in places:
                table[name] = values[number[id(own)]]
            yield
        finally:
            for table, name, own in places:
                table[name] = own
