"""`hooks` and `functorch`: Opacus's own modes, with corrections.

- Opacus counts the gradient of an embedding's padding row in a record's norm, though that row is never trained: here
  samplers get gradients without it.
- Samplers get float32, whatever the model's precision.
- State left by a backward pass (of a layer whose output is not used) would be added to the next batch's gradients:
  every batch starts afresh, and a layer is refused if only some of its calls have a gradient.

The comparison with autograd finds errors that cannot be corrected here (see `choice`). Opacus's ghost clipping is not
offered: it computes norms from Gram matrices, which can come out too small, and not from the gradients that it sums.
"""

from __future__ import annotations

from collections import ChainMap
from typing import TYPE_CHECKING, Any

from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.embedding import compute_embedding_grad_sample
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from typing_extensions import override

from client.gradients.mode import GradientMode, check_rows, refuse_packed
from client.gradients.record_gradients import Rows
from privacy.errors import TaskError

if TYPE_CHECKING:
    from client.data.inputs import Inputs
    from client.gradients.record_gradients import RecordGradients


class Hooks(GradSampleModule, GradientMode):  # type: ignore[misc]  # opacus is untyped
    """Computes gradients written out for every record."""

    def __init__(self, model: nn.Module, *, force_functorch: bool) -> None:
        problems = [str(problem).splitlines()[0] for problem in ModuleValidator.validate(model, strict=False)]
        if problems:
            msg = f"Opacus cannot compute its gradients per record: {'; '.join(problems)}"
            raise TaskError(msg)
        super().__init__(model, loss_reduction="sum", force_functorch=force_functorch)
        self.autograd_grad_sample_hooks += refuse_packed(model)
        self._records = 0  # in the current part of the batch

    def rearrange_grad_samples(self, **kwargs: Any) -> Any:  # noqa: ANN401 - passed on
        """Give samplers float32 tensors with one row per record."""
        activations, backprops = super().rearrange_grad_samples(**kwargs)
        for tensor in (*activations, backprops):
            check_rows(len(tensor), self._records)
        return [
            activation.float() if activation.is_floating_point() else activation for activation in activations
        ], backprops.float()

    @override
    def per_record(self, inputs: Inputs, targets: Tensor) -> list[RecordGradients | None]:
        self._records = len(targets)
        self._begin_anew()
        try:
            outputs = self.outputs(inputs)
            outputs.backward(self.loss.gradients(outputs, targets).to(outputs.dtype))
            return [self._share(parameter) for parameter in self.trained]
        finally:
            self._begin_anew()

    def _share(self, parameter: Any) -> Rows | None:  # noqa: ANN401 - Opacus adds attributes to parameters
        if parameter.grad_sample is None and not hasattr(parameter, "_current_grad_sample"):
            return None  # the outputs do not depend on its layer
        if not isinstance(parameter.grad_sample, Tensor):
            msg = "Opacus attributes the gradients of a layer to a call on which the outputs do not depend"
            raise TaskError(msg)
        check_rows(len(parameter.grad_sample), self._records)
        return Rows(parameter.grad_sample.float())

    def _begin_anew(self) -> None:
        parameters: list[Any] = list(self.trained)  # to which Opacus adds attributes
        for parameter in parameters:
            parameter.grad = parameter.grad_sample = None
            parameter._forward_counter = 0  # noqa: SLF001 - Opacus's
            vars(parameter).pop("_current_grad_sample", None)
        for part in self._module.modules():
            for left in ("activations", "max_batch_len"):
                vars(part).pop(left, None)


def _embedding_grad_sample(layer: nn.Embedding, activations: list[Tensor], backprops: Tensor) -> dict[Any, Tensor]:
    if layer.padding_idx is not None:
        backprops = backprops.masked_fill((activations[0] == layer.padding_idx).unsqueeze(-1), 0.0)
    compute: Any = compute_embedding_grad_sample  # typed for one tensor of activations, but takes a list
    samples: dict[Any, Tensor] = compute(layer, activations, backprops)
    return samples


# Local to this class: Opacus's `register_grad_sampler` would change it for the whole process. Samplers that others
# register with Opacus, such as a task's for its own layer, are still found.
_SAMPLERS: Any = ChainMap({nn.Embedding: _embedding_grad_sample}, GradSampleModule.GRAD_SAMPLERS)
Hooks.GRAD_SAMPLERS = _SAMPLERS
