"""Compare a mode's clipped sums with those of plain autograd.

Each side computes two logical batches of four records, in two parts each, with a step between them and the second batch
in reverse order: a mode that is right once may lose gradients afterwards, and a layer that sorts rows may get them in
order at first. After each batch, every parameter's clipped sum must equal autograd's, computed one record at a time.

A model that draws at random cannot be compared one record at a time. Dropout is removed. If that is not enough,
autograd computes single records' gradients in one pass over each part, both sides draw from the same seed, and draws on
the CPU are held fixed, since some modes draw for each record what others draw once for the batch.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, closing, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from client.data.inputs import Batch, call, device_of, rows, singles
from client.data.site_records import InMemory
from client.dpsgd.torch_draws import Draws, seed_used
from client.gradients.clipping import clip_factors
from client.gradients.mode import GradientMode, quiet, trainable
from client.gradients.noisy_optimizer import CipherOptimizer
from privacy.noise.randomness import Randomness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.gradients.loss import RecordLoss

_TOLERANCE = 1e-2  # per parameter, relative to the records' gradients; errors are larger, and GPUs may round to 10 bits
_COARSE = 0.25  # the same, over all parameters together, where a model computes with 8 bits
_NOISE = 1e-4  # in units of C: smaller differences may be rounding
_STEP = 1e-2  # length of the step between the batches, in units of C
_RECORDS, _PART = 4, 2  # records in a batch, and in a part


@dataclass(frozen=True)
class Sum:
    """A batch's clipped sum, parameter by parameter."""

    gradients: list[Tensor]
    sizes: list[float]  # sums of the norms of single records' clipped gradients


@dataclass(frozen=True)
class Expected:
    """The sums that a mode should compute for a model and some of its records."""

    records: Batch
    bound: float  # C
    sums: list[Sum]
    draws: bool  # whether the model draws at random

    @classmethod
    def of(cls, model: nn.Module, loss: RecordLoss, records: Batch) -> Expected:
        """Compute the expected sums with autograd; the model is not changed.

        Args:
            model: on the device of the records.
            loss: the loss of single records.
            records: inputs and targets `(n, ...)`; the first four are used, repeated if there are fewer.
        """
        chosen = torch.arange(_RECORDS, device=device_of(records[0])) % len(records[1])
        records, model = (rows(records[0], chosen), records[1][chosen]), cls.copy(model)
        before = _state(device_of(records[0]))
        with quiet():
            first = _norm(next(_one_by_one(model, loss, records)))
        draws = not torch.equal(_state(device_of(records[0])), before)
        bound, sums = (first / 2 if 0 < first < float("inf") else 1.0), []
        with quiet(), _held_still(draws=draws):
            for batch in _orders(device_of(records[0])):
                sums.append(_by_autograd(model, loss, records, batch, bound, draws=draws))
                with torch.no_grad():
                    for parameter, gradient in zip(trainable(model), sums[-1].gradients, strict=True):
                        parameter.sub_(gradient, alpha=_STEP / bound)
        return cls(records, bound, sums, draws)

    @staticmethod
    def copy(model: nn.Module) -> nn.Module:
        """Return a copy without dropout, and without the graphs of tensors that the model keeps."""
        with _Detaching():
            model = deepcopy(model)
        for part in model.modules():
            if isinstance(part, _DropoutNd):
                part.p = 0.0
            elif isinstance(part, nn.MultiheadAttention | nn.RNNBase):
                part.dropout = 0.0
        return model

    def wrong(self, mode: GradientMode) -> str | None:
        """Return the name of a parameter whose clipped sum differs from autograd's; None if all agree.

        Args:
            mode: a mode of a copy of the model, with this bound; bfloat16 is compared coarsely.
        """
        optimizer = CipherOptimizer(
            torch.optim.SGD(mode.trained, lr=_STEP / self.bound),
            noise_multiplier=0.0,
            max_grad_norm=self.bound,
            expected_batch_size=1,
            loss_reduction="sum",
            randomness=Randomness.seeded(0),
        )
        with quiet(), closing(optimizer), _held_still(draws=self.draws):
            for batch, expected in zip(_orders(device_of(self.records[0])), self.sums, strict=True):
                seed_used(0)
                optimizer.take(mode, InMemory(*self.records), batch, _PART)
                gradients = [parameter.grad for parameter in mode.trained if parameter.grad is not None]
                off = [_norm([one - other]) for one, other in zip(gradients, expected.gradients, strict=True)]
                if mode.precision is torch.bfloat16:
                    far = [sum(off) > _COARSE * sum(expected.sizes) + _NOISE * self.bound]
                else:
                    most = [_TOLERANCE * size + _NOISE * self.bound for size in expected.sizes]
                    far = [not one <= other for one, other in zip(off, most, strict=True)]
                if any(far):
                    named_parameters = mode._module.named_parameters()  # noqa: SLF001 - Opacus's
                    names: list[str] = [name for name, parameter in named_parameters if parameter.requires_grad]
                    return names[far.index(True)]
        return None


class _Detaching(TorchFunctionMode):
    """A context in which copies of computed tensors are constants; torch refuses to copy them with their graphs.

    Models keep such tensors: attention weights to look at, or the weight that `torch.nn.utils.weight_norm` computes.
    """

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].is_leaf:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        return memo.setdefault(id(tensor), tensor.detach().clone())


def _held_still(*, draws: bool) -> AbstractContextManager[object]:
    return Draws(still=True) if draws else nullcontext()


def _orders(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two batches of record indices, `(n,)`: in order, and in reverse order."""
    numbers = torch.arange(_RECORDS, device=device)
    return numbers, numbers.flip(0)


def _by_autograd(
    model: nn.Module, loss: RecordLoss, records: Batch, batch: Tensor, bound: float, *, draws: bool
) -> Sum:
    gradients = [torch.zeros_like(parameter) for parameter in trainable(model)]
    sizes = [0.0] * len(gradients)
    seed_used(0)
    for part in batch.split(_PART):
        for single in (_in_one_pass if draws else _one_by_one)(model, loss, (rows(records[0], part), records[1][part])):
            factor, finite = clip_factors(torch.tensor(_norm(single)) ** 2, bound)
            if finite:
                gradients = [gradient + float(factor) * own for gradient, own in zip(gradients, single, strict=True)]
                sizes = [size + float(factor) * _norm([own]) for size, own in zip(sizes, single, strict=True)]
    return Sum(gradients, sizes)


def _one_by_one(model: nn.Module, loss: RecordLoss, records: Batch) -> Iterator[list[Tensor]]:
    """Yield every record's gradients, parameter by parameter, from one pass per record."""
    for record in zip(singles(records[0]), records[1].split(1), strict=True):
        yield from _in_one_pass(model, loss, record)


def _in_one_pass(model: nn.Module, loss: RecordLoss, records: Batch) -> Iterator[list[Tensor]]:
    """Yield every record's gradients, parameter by parameter, from one pass over all records."""
    outputs = call(model, records[0])
    back = loss.gradients(outputs, records[1])
    for number in range(len(back)):
        own = torch.zeros_like(back)
        own[number] = back[number]
        gradients = torch.autograd.grad(
            outputs, trainable(model), own, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        yield list(gradients)


def _norm(gradients: list[Tensor]) -> float:
    squares = [torch.linalg.vector_norm(gradient, dtype=torch.float64).square() for gradient in gradients]
    return float(torch.stack(squares).sum().sqrt())


def _state(device: torch.device) -> Tensor:
    """Return the state of a device's random generator."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
