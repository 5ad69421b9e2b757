"""`hooks`, `functorch` and `ghost`: Opacus's own modes, where it is right.

Two things are mended. Opacus counts the gradient of an embedding's padding row into a record's norm, though that row
never moves: its samplers get gradients without it. And whatever precision a model runs in, samplers get float32.

What cannot be mended is found by comparing (see `choice`): ghost clipping takes norms from samplers but the sum from a
second backward pass, and where those disagree (an odd padding, a weight used outside its layer), clipping bounds
something else than what is summed.
"""

from __future__ import annotations

from collections import ChainMap
from typing import TYPE_CHECKING, Any

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.grad_sample.embedding import compute_embedding_grad_sample, compute_embedding_norm_sample
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from typing_extensions import override

from client.gradients.clipping import clip_factors
from client.gradients.mode import GradientMode, check_rows
from client.gradients.optimizer import add_to_sum
from privacy.errors import TaskError

if TYPE_CHECKING:
    from client.gradients.loss import RecordLoss


class _Single:
    """Samplers get float32, whatever the model runs in."""

    def rearrange_grad_samples(self, **kwargs: Any) -> tuple[list[Tensor], Tensor]:  # noqa: ANN401 - passed on
        activations, backprops = super().rearrange_grad_samples(**kwargs)  # type: ignore[misc]  # Opacus's
        return [each.float() if each.is_floating_point() else each for each in activations], backprops.float()


class Hooks(_Single, GradSampleModule, GradientMode):  # type: ignore[misc]  # opacus is untyped
    """Fills `p.grad_sample`."""

    def __init__(self, model: nn.Module, loss: RecordLoss, *, force_functorch: bool) -> None:
        _validate(model)
        super().__init__(model, loss_reduction="sum", force_functorch=force_functorch)
        self.loss = loss

    @override
    def fill(self, inputs: Tensor, targets: Tensor) -> None:
        outputs = self.outputs(inputs)
        outputs.backward(self.loss.gradients(outputs, targets).to(outputs.dtype))
        parameters: list[Any] = list(self._module.parameters())  # to which Opacus adds attributes
        for parameter in parameters:
            if parameter.grad_sample is None:  # the loss does not depend on it
                parameter.grad_sample = parameter.new_zeros((len(inputs), *parameter.shape))
            check_rows(len(parameter.grad_sample), len(inputs))


class Ghost(_Single, GradSampleModuleFastGradientClipping, GradientMode):  # type: ignore[misc]  # opacus is untyped
    """Adds to `p.summed_grad`: one backward pass for norms, a second for the clipped sum."""

    def __init__(self, model: nn.Module, loss: RecordLoss, max_grad_norm: float) -> None:
        _validate(model)
        super().__init__(model, loss_reduction="sum", max_grad_norm=max_grad_norm)  # pyright: ignore[reportArgumentType] - Opacus says int
        self.loss = loss

    @override
    def fill(self, inputs: Tensor, targets: Tensor) -> None:
        outputs = self.outputs(inputs)
        gradients = self.loss.gradients(outputs, targets)
        outputs.backward(gradients, retain_graph=True)
        factors, finite = clip_factors(self._squares(len(inputs)), self.max_grad_norm)
        self.disable_hooks()
        try:
            if not finite.all():  # begin again without them: zero times infinity is not zero
                self.dropped += int((~finite).sum())
                if not finite.any():
                    return
                targets, factors = targets[finite], factors[finite]
                outputs = self.outputs(inputs[finite])
                gradients = self.loss.gradients(outputs, targets)
            weighted = gradients * factors.view(-1, *[1] * (gradients.dim() - 1))
            parameters = list(self._module.parameters())
            sums = torch.autograd.grad(outputs, parameters, weighted, allow_unused=True)
        finally:
            self.enable_hooks()
        for parameter, part in zip(parameters, sums, strict=True):
            parameter.grad = None
            if part is not None:
                add_to_sum(parameter, part.clone())  # autograd may give one tensor to several parameters

    def _squares(self, records: int) -> Tensor:
        """Return the squared norms of gradients, `(n,)`, and forget them: what is left over must not count again."""
        total = torch.zeros(records, device=next(self._module.parameters()).device)
        for name, parameter in self._module.named_parameters():
            norms = vars(parameter).pop("_norm_sample", None)
            if norms is None:
                msg = f"Opacus has no norms for {name}"
                raise TaskError(msg)
            check_rows(len(norms), records)
            total = total + norms.float().square()
        return total


def _validate(model: nn.Module) -> None:
    problems = [str(problem).splitlines()[0] for problem in ModuleValidator.validate(model, strict=False)]
    if problems:
        msg = f"Opacus cannot differentiate it record by record: {'; '.join(problems)}"
        raise TaskError(msg)


def _without_padding(layer: nn.Embedding, indices: Tensor, backprops: Tensor) -> Tensor:
    if layer.padding_idx is None:
        return backprops
    return backprops.masked_fill((indices == layer.padding_idx).unsqueeze(-1), 0.0)


def _embedding_grad_sample(layer: nn.Embedding, activations: list[Tensor], backprops: Tensor) -> dict[Any, Tensor]:
    masked = _without_padding(layer, activations[0], backprops)
    compute: Any = compute_embedding_grad_sample  # it says that activations are one tensor, and takes a list
    found: dict[Any, Tensor] = compute(layer, activations, masked)
    return found


def _embedding_norm_sample(layer: nn.Embedding, activations: list[Tensor], backprops: Tensor) -> dict[Any, Tensor]:
    masked = _without_padding(layer, activations[0], backprops)
    found: dict[Any, Tensor] = compute_embedding_norm_sample(layer, activations, masked)
    return found


# Ours alone: Opacus's `register_grad_sampler` would change it for everybody in this process. What others register with
# Opacus, a task for a layer of its own, is still found.
_GRAD_SAMPLERS: Any = ChainMap({nn.Embedding: _embedding_grad_sample}, GradSampleModule.GRAD_SAMPLERS)
_NORM_SAMPLERS: Any = ChainMap(
    {nn.Embedding: _embedding_norm_sample}, GradSampleModuleFastGradientClipping.NORM_SAMPLERS
)
Hooks.GRAD_SAMPLERS = Ghost.GRAD_SAMPLERS = _GRAD_SAMPLERS
Ghost.NORM_SAMPLERS = _NORM_SAMPLERS
