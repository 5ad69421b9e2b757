"""Clip gradients to a norm of at most C: flat (Abadi et al., 2016, algorithm 1), as Opacus does, or layer by layer.

Layer by layer (McMahan et al., 2018, arXiv 1710.06963), the gradient of each of L layers is clipped by itself, to
C/√L. The norm over all layers is again at most C, so the noise and its cost are the same.
"""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.backends import cuda, mkldnn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from client.gradients.record_gradients import RecordGradients

_SMALL = 1e-6  # as in Opacus: no division by zero
_MOST = 1e38  # largest squared norm, near the limit of float32


def clip_factors(squares: Tensor, max_grad_norm: float) -> tuple[Tensor, Tensor]:
    """Return the clipping factor of every record's gradient, and which records count at all.

    Args:
        squares: squared norms of the records' gradients, `(..., n)`.
        max_grad_norm: the norm to which they are clipped.

    Returns:
        Factors `(..., n)` in [0, 1], float32, and whether the norm is finite and below 1e19, `(..., n)`. The rows of
        other records must not enter a sum, not even multiplied by zero.

    >>> clip_factors(torch.tensor([0.25, 4.0, torch.inf]), 1.0)
    (tensor([1.0000, 0.5000, 0.0000]), tensor([ True,  True, False]))
    """
    finite = squares < _MOST  # False for NaN too
    factors = squares.sqrt().add_(_SMALL).reciprocal_().mul_(max_grad_norm).clamp_(max=1.0)
    return factors.masked_fill_(~finite, 0.0).float(), finite


def add_clipped(
    parameters: Sequence[Any],
    gradients: Sequence[RecordGradients | None],
    records: int,
    max_grad_norm: float,
    layers: Sequence[int] | None = None,
) -> int:
    """Clip every record's gradient, and add the sum to every parameter's `summed_grad`.

    Args:
        parameters: all trained parameters; Opacus adds attributes to them.
        gradients: the records' gradients of each parameter; None if it has none.
        records: the number of records.
        max_grad_norm: C.
        layers: the number of each parameter's layer, from 0, to clip layer by layer; None: flat, over all parameters.

    Returns:
        The number of records whose gradients were not finite, and added nothing to any parameter.
    """
    device, dropped = parameters[0].device, 0
    layers = [0] * len(parameters) if layers is None else layers
    with torch.no_grad(), _float32(device):
        sums = torch.zeros((max(layers) + 1, records), dtype=torch.float64, device=device)
        by_layer = sums.unbind()
        for layer, gradient in zip(layers, gradients, strict=True):
            if gradient is not None:
                by_layer[layer].add_(gradient.squares())
        factors, finite = clip_factors(sums, max_grad_norm / math.sqrt(len(sums)))
        if not finite.all():
            finite = finite.all(0)
            dropped, factors = int((~finite).sum()), factors[:, finite]
            gradients = [gradient and gradient.of(finite) for gradient in gradients]
        by_layer = factors.unbind()
        for parameter, layer, gradient in zip(parameters, layers, gradients, strict=True):
            part = torch.zeros_like(parameter) if gradient is None else gradient.summed(by_layer[layer])
            part = part.to(parameter.dtype).view_as(parameter)
            parameter.summed_grad = part if parameter.summed_grad is None else parameter.summed_grad.add_(part)
    return dropped


@contextmanager
def _float32(device: torch.device) -> Iterator[None]:
    """Compute products in float32, even if a task lets torch round their factors to 8 or 11 bits.

    The norms clipped to C would not be those of the rounded gradients.
    """
    kind: Any = cuda.matmul if device.type == "cuda" else mkldnn.matmul  # type: ignore[attr-defined]  # not in the stubs
    before = kind.fp32_precision
    try:
        kind.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext():
            yield
    finally:
        kind.fp32_precision = before
