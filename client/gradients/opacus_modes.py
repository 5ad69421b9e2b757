"""`hooks` and `functorch`: Opacus's own modes, where it is right.

What is mended:

- Opacus counts the gradient of an embedding's padding row into a record's norm, though that row never moves: its
  samplers get gradients without it.
- Whatever precision a model runs in, samplers get float32.
- What a backward pass leaves behind (a layer whose output is not used) would be added to the next batch's gradients:
  every batch begins anew, and a layer of whose calls some have no gradient is refused.

What cannot be mended is found by comparing (see `choice`). Opacus's ghost clipping is not offered: it takes norms from
Gram matrices, which can come out too small, and the sum from elsewhere.
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
from client.gradients.shares import Rows
from privacy.errors import TaskError

if TYPE_CHECKING:
    from client.gradients.shares import Share


class Hooks(GradSampleModule, GradientMode):  # type: ignore[misc]  # opacus is untyped
    """Takes gradients that are written out for every record."""

    def __init__(self, model: nn.Module, *, force_functorch: bool) -> None:
        problems = [str(problem).splitlines()[0] for problem in ModuleValidator.validate(model, strict=False)]
        if problems:
            msg = f"Opacus cannot differentiate it record by record: {'; '.join(problems)}"
            raise TaskError(msg)
        super().__init__(model, loss_reduction="sum", force_functorch=force_functorch)
        self.autograd_grad_sample_hooks += refuse_packed(model)
        self._records = 0  # in the part that is computed

    def rearrange_grad_samples(self, **kwargs: Any) -> Any:  # noqa: ANN401 - passed on
        """Give samplers float32, of every record."""
        activations, backprops = super().rearrange_grad_samples(**kwargs)
        for each in (*activations, backprops):
            check_rows(len(each), self._records)
        return [each.float() if each.is_floating_point() else each for each in activations], backprops.float()

    @override
    def shares(self, inputs: Tensor, targets: Tensor) -> list[Share | None]:
        self._records = len(inputs)
        self._begin_anew()
        try:
            outputs = self.outputs(inputs)
            outputs.backward(self.loss.gradients(outputs, targets).to(outputs.dtype))
            return [self._share(parameter) for parameter in self.trained]
        finally:
            self._begin_anew()

    def _share(self, parameter: Any) -> Rows | None:  # noqa: ANN401 - Opacus adds attributes to parameters
        if parameter.grad_sample is None and not hasattr(parameter, "_current_grad_sample"):
            return None  # the outputs depend on no call of its layer
        if not isinstance(parameter.grad_sample, Tensor):
            msg = "Opacus takes gradients of a layer for those of another call, of which the outputs do not depend"
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
    compute: Any = compute_embedding_grad_sample  # it says that activations are one tensor, and takes a list
    found: dict[Any, Tensor] = compute(layer, activations, backprops)
    return found


# Ours alone: Opacus's `register_grad_sampler` would change it for everybody in this process. What others register with
# Opacus, a task for a layer of its own, is still found.
_SAMPLERS: Any = ChainMap({nn.Embedding: _embedding_grad_sample}, GradSampleModule.GRAD_SAMPLERS)
Hooks.GRAD_SAMPLERS = _SAMPLERS
