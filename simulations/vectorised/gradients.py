"""Clipped sums of records' gradients at many sites at once: every site has its own model and its own records.

`S` sites, each with `n` records (padded), and parameters `(S, ...)` by name. Two ways, with the same result up to
rounding:

- Chains of linear layers: a record's gradient of a weight is the outer product of the layer's input and the gradient of
  its output, so its norm is a product of norms, and the clipped sum is one product of matrices per site ("ghost
  clipping"; Goodfellow 2015, arXiv 1510.01799; Bu et al. 2022, section 3). No record's gradient is ever made.
- Anything else that `torch.func.vmap` can map: every record's gradient is computed, clipped and added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.data.inputs import Inputs, call, mapped
from client.dpsgd.torch_draws import forked
from client.gradients.clipping import clip_factors
from client.gradients.loss import RecordLoss
from client.gradients.mode import quiet
from client.state.model_parts import tensors_of, trained
from client.task.probe import made_up
from privacy.errors import CloisterError
from simulations.vectorised.batches import Batches

if TYPE_CHECKING:
    from collections.abc import Mapping

    from client.task.task import Task

_SHOWN = 100  # characters of a message

Parameters = dict[str, Tensor]
"""Trained parameters by name, `(S, ...)`: one model for each site."""

_ELEMENTWISE = (
    nn.Identity, nn.Flatten, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
)  # fmt: skip


class SiteGradients(Protocol):
    """Computes the clipped sums of sites."""

    values_per_record: int
    """How many numbers a record takes while it is computed: what bounds the sites that fit in memory."""

    def clipped_sums(
        self, parameters: Parameters, batches: Batches, max_grad_norm: float, scale: Tensor, sums: Parameters
    ) -> None:
        """Compute the sum over each site's records of their gradients, each clipped to `max_grad_norm` in L2.

        Args:
            parameters: the sites' models. Those that are equal may be one tensor, expanded: then it is read once.
            batches: a batch of each site; padding adds nothing.
            max_grad_norm: C.
            scale: by which the sums are multiplied, `(S,)`.
            sums: overwritten by the sums.
        """
        ...


def site_gradients(task: Task, module: nn.Module) -> SiteGradients:
    """Return the faster way that suits a model."""
    layers = _chain(module)
    return MappedGradients(task, module) if layers is None else LinearGradients(task, module, layers)


def unmappable(task: Task, module: nn.Module) -> str | None:
    """Try a model, on the CPU, with one record at one site; return why it cannot be mapped, or None if it can."""
    if isinstance(way := site_gradients(task, module), LinearGradients):
        return None
    held = trained(module)
    parameters = {name: parameter.detach().unsqueeze(0) for name, parameter in held.items()}
    sums = {name: torch.empty_like(parameter) for name, parameter in parameters.items()}
    with forked():
        inputs, targets = made_up(task)
        one = Batches(mapped(lambda rows: rows[:1].unsqueeze(0), inputs), targets[:1].unsqueeze(0), torch.ones(1, 1))
        try:
            way.clipped_sums(parameters, one, 1.0, torch.ones(1), sums)
        except CloisterError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the model's own code raises when it is mapped
            return _unmapped(module, error)
    return None


def _unmapped(module: nn.Module, error: Exception) -> str:
    """Return what cannot be mapped, and what to change so that it can."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention) and layer.dropout:
            return (
                f"torch.func.vmap cannot map the dropout of attention; write {f'{name}.' if name else ''}dropout = 0.0 "
                "for its model in model(), and leave other dropout as it is"
            )
    said = str(error).strip().removeprefix("vmap: ").partition("\n")[0].partition(". ")[0][:_SHOWN]
    return (
        f"torch.func.vmap cannot map its model over records ({type(error).__name__}: {said}); write this operation "
        "otherwise, such as with torch.where"
    )


def _chain(module: nn.Module) -> list[nn.Module] | None:
    """Return a chain of linear layers and functions of single values, in order; None if the model is anything else."""
    if type(module) is nn.Sequential:
        parts = [_chain(part) for part in module]
        return None if None in parts else [layer for part in parts for layer in part or ()]
    if type(module) is nn.Linear:
        return [module] if all(parameter.requires_grad for parameter in module.parameters()) else None
    return [module] if type(module) in _ELEMENTWISE else None


class LinearGradients:
    """The clipped sums of chains of linear layers."""

    def __init__(self, task: Task, module: nn.Module, layers: list[nn.Module]) -> None:
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._loss = RecordLoss(task)
        self._layers = [
            (layer, names.get(id(getattr(layer, "weight", None)), ""), names.get(id(getattr(layer, "bias", None)), ""))
            for layer in layers
        ]
        self.values_per_record = sum(
            layer.in_features + layer.out_features for layer in layers if isinstance(layer, nn.Linear)
        )

    def clipped_sums(
        self, parameters: Parameters, batches: Batches, max_grad_norm: float, scale: Tensor, sums: Parameters
    ) -> None:
        """Compute the clipped sums, as the protocol says."""
        calls = self._calls(parameters, batches)
        squares = torch.zeros(batches.present.shape, dtype=torch.float64, device=scale.device)
        for _, bias, given, back in calls:
            squares += (given.square().sum(2).double() + bool(bias)) * back.square().sum(2)
        factors, finite = clip_factors(squares, max_grad_norm)
        factors = (factors * batches.present * scale.unsqueeze(1)).unsqueeze(2)
        all_finite = bool(finite.all())
        for weight, bias, given, back in calls:
            if not all_finite:  # zero times such a number is none
                given, back = (part.masked_fill(~finite.unsqueeze(2), 0.0) for part in (given, back))  # noqa: PLW2901
            clipped = back * factors
            torch.bmm(clipped.transpose(1, 2), given, out=sums[weight])
            if bias:
                torch.sum(clipped, 1, out=sums[bias])

    def _calls(self, parameters: Parameters, batches: Batches) -> list[tuple[str, str, Tensor, Tensor]]:
        """Return of each linear layer the names of weight and bias, its inputs, and the gradients of its outputs."""
        inputs, targets = batches.inputs, batches.targets
        assert isinstance(inputs, Tensor)  # noqa: S101 - a chain takes one tensor
        sites, several = targets.shape[:2]
        value, calls, outputs = inputs.flatten(0, 1), list[tuple[str, str, Tensor]](), list[Tensor]()
        with torch.enable_grad():
            for layer, weight, bias in self._layers:
                if not weight:
                    value = layer(value)
                    continue
                given = value.view(sites, several, -1)
                output = _linear(given, parameters[weight], parameters[bias] if bias else None)
                if not outputs:
                    output.requires_grad_()
                outputs.append(output)
                calls.append((weight, bias, given.detach()))
                value = output.flatten(0, 1)
            flat = targets.flatten(0, 1)
            known = self._loss.known_sum(value, flat)
            total = self._loss.losses(value, flat).sum() if known is None else known
            backs = torch.autograd.grad(total, outputs)
        return [(*called, back) for called, back in zip(calls, backs, strict=True)]


def _linear(given: Tensor, weights: Tensor, biases: Tensor | None) -> Tensor:
    """Return the outputs `(S, n, k)` of a linear layer at each site."""
    if not weights.stride(0):  # all sites have the same
        return nn.functional.linear(given, weights[0], None if biases is None else biases[0])
    matrices = weights.transpose(1, 2)
    return torch.bmm(given, matrices) if biases is None else torch.baddbmm(biases.unsqueeze(1), given, matrices)


class MappedGradients:
    """The clipped sums of any model that can be mapped."""

    def __init__(self, task: Task, module: nn.Module) -> None:
        held = trained(module)
        fixed = {name: tensor.detach() for name, tensor in tensors_of(module).items() if name not in held}

        def loss(parameters: Mapping[str, Tensor], inputs: Inputs, target: Tensor) -> Tensor:
            record = mapped(lambda tensor: tensor.unsqueeze(0), inputs)
            output = call(
                lambda *given, **named: functional_call(module, {**fixed, **parameters}, given, named), record
            )
            return task.loss(output, target.unsqueeze(0)).reshape(())

        of_site = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")  # such as a dropout mask
        self._of_records = vmap(of_site, randomness="different")
        self.values_per_record = 2 * sum(parameter.numel() for parameter in held.values())

    def clipped_sums(
        self, parameters: Parameters, batches: Batches, max_grad_norm: float, scale: Tensor, sums: Parameters
    ) -> None:
        """Compute the clipped sums, as the protocol says."""
        with quiet():
            gradients: Parameters = self._of_records(parameters, batches.inputs, batches.targets)
        squares = torch.zeros(batches.present.shape, dtype=torch.float64, device=scale.device)
        for gradient in gradients.values():
            squares += gradient.flatten(2).square().sum(2).double()
        factors, finite = clip_factors(squares, max_grad_norm)
        if not finite.all():  # zero times such a number is none
            gradients = {
                name: gradient.masked_fill(~finite.view(*finite.shape, *(1,) * (gradient.dim() - 2)), 0.0)
                for name, gradient in gradients.items()
            }
        factors = factors * batches.present * scale.unsqueeze(1)
        for name, gradient in gradients.items():
            sums[name].copy_(torch.einsum("sn,sn...->s...", factors, gradient))
