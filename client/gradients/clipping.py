"""Clipping (Abadi et al., 2016, algorithm 1), as Opacus does it: flat, and never by more than C."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALL = 1e-6  # Opacus's: no division by zero


def clip_factors(squares: Tensor, max_grad_norm: float) -> tuple[Tensor, Tensor]:
    """Return what to multiply every record's gradient with, and which records count at all.

    Args:
        squares: squared norms of the records' gradients over all parameters, `(n,)`, float32.
        max_grad_norm: C.

    Returns:
        Factors `(n,)` in [0, 1], and whether the norm is finite `(n,)`. The rows of the others must not enter a sum,
        not even times zero.

    >>> clip_factors(torch.tensor([0.25, 4.0, torch.inf]), 1.0)
    (tensor([1.0000, 0.5000, 0.0000]), tensor([ True,  True, False]))
    """
    finite = torch.isfinite(squares)
    factors = (max_grad_norm / (squares.sqrt() + _SMALL)).clamp(max=1.0)
    return torch.where(finite, factors, 0.0), finite
