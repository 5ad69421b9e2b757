"""The codec over many sites at once: the same levels, residuals and mean as `privacy.codec.packing`, bit for bit.

Levels are added as integers, as the server adds them under encryption; they are never packed, for nothing is sent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from privacy.codec.packing import decoded
from privacy.codec.update import Update

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from privacy.codec.packing import Packing

_ROWS = 1 << 17  # values at a time: what a core's cache holds in both precisions


class LevelSum:
    """The sum of the levels of a round's updates."""

    def __init__(self, size: int, packing: Packing) -> None:
        self._packing, self._total = packing, torch.zeros(size, dtype=torch.float64)
        rows = max(1, _ROWS // size)
        self._doubles, self._draws = torch.empty((2, rows, size), dtype=torch.float64)
        self._floats = torch.empty((rows, size))

    def add(self, updates: Tensor, units: Tensor, uniform: Tensor) -> None:
        """Round updates to levels and add them; what the levels do not carry overwrites the updates.

        Args:
            updates: of some sites, `(S, parameters)`, float32, on the CPU.
            units: the step between two levels at each site, `(S, 1)`, float64: `packing.unit(weight)`.
            uniform: draws from [0, 1), `(S, parameters)`, float32, by which values are rounded up or down.
        """
        top, rows = self._packing.levels - 1, len(self._floats)
        for start in range(0, len(updates), rows):
            part = updates[start : start + rows]
            unit, several = units[start : start + rows], len(part)
            levels, drawn, floats = self._doubles[:several], self._draws[:several], self._floats[:several]
            levels.copy_(part)
            drawn.copy_(uniform[start : start + rows])
            levels.div_(unit).add_(top / 2).add_(drawn).clamp_(0, top).floor_()
            self._total.add_(levels.sum(0))  # exact: integers below 2^53
            floats.copy_(levels.sub_(top / 2).mul_(unit))
            part.sub_(floats)

    def include(self, other: LevelSum) -> None:
        """Add what another sum has."""
        self._total.add_(other._total)

    @property
    def levels(self) -> NDArray[np.uint64]:
        """The sum so far, `(parameters,)`."""
        return self._total.numpy().astype(np.uint64)

    def mean(self, weights: Sequence[float]) -> Update:
        """Return the weighted mean of the updates that were added, as the sites decode it.

        Args:
            weights: of the sites that were added.
        """
        return Update(decoded(self.levels, len(weights), math.fsum(weights), self._packing).astype(np.float32))
