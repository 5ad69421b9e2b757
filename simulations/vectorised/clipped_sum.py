"""The sum of clipped updates, to which a trusted party adds noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_ROWS = 1 << 17  # values at a time


class SumNoise(Protocol):
    """What a trusted party does with the sum of a round's updates."""

    earlier: list[NDArray[np.float64]]
    """What it has to know of earlier rounds' noise, `(parameters,)` each."""

    @property
    def max_update_norm(self) -> float:
        """The L2 norm to which each update is clipped."""
        ...

    def mean(self, total: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the noisy mean of the round's updates, `(parameters,)`, given their sum."""
        ...


class ClippedSum:
    """The sum of a round's updates, each clipped as a whole."""

    def __init__(self, size: int, max_norm: float) -> None:
        self._total, self._most = torch.zeros(size, dtype=torch.float64), max_norm

    def add(self, updates: Tensor) -> None:
        """Clip updates `(S, parameters)` and add them; one that is not finite adds nothing."""
        rows = max(1, _ROWS // updates.shape[1])
        for part in updates.split(rows):
            exact = part.double()
            norms = exact.square().sum(1).sqrt()
            factors = (self._most / norms.clamp(min=self._most)).unsqueeze(1)
            finite = norms.isfinite().unsqueeze(1)
            self._total += exact.mul_(factors).masked_fill_(~finite, 0.0).sum(0)

    def include(self, other: ClippedSum) -> None:
        """Add what another sum has."""
        self._total += other._total

    @property
    def total(self) -> NDArray[np.float64]:
        """The sum, `(parameters,)`."""
        return self._total.numpy()
