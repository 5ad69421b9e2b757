"""Digits whose images a run may vary: each copy is moved by at most one pixel, in either direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional
from typing_extensions import override

from simulations.tasks.digits import Digits

if TYPE_CHECKING:
    from torch import Generator, Tensor

_SIDE = 8


class MovedDigits(Digits):
    """Which digit, from 64 pixels, with an augmentation: 650 parameters.

    >>> image = torch.ones(1, 64)
    >>> copies = MovedDigits().augment(image.repeat(9, 1), torch.Generator().manual_seed(0))
    >>> sorted(set(copies.sum(1).tolist()))  # an image that is moved loses a row, a column, or both
    [49.0, 56.0, 64.0]
    """

    @override
    def augment(self, inputs: Tensor, generator: Generator) -> Tensor:
        """Move each image `(n, 64)` by −1, 0 or 1 pixels down and right; what is left free is white."""
        wide = functional.pad(inputs.reshape(-1, _SIDE, _SIDE), (1, 1, 1, 1))
        by = torch.randint(3, (2, len(inputs), 1), generator=generator, device=inputs.device)
        places = torch.arange(_SIDE, device=inputs.device)
        down, right = (by + places).unbind()
        record = torch.arange(len(inputs), device=inputs.device).view(-1, 1, 1)
        return wide[record, down.unsqueeze(2), right.unsqueeze(1)].flatten(1)
