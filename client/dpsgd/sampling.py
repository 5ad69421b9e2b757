"""Poisson sampling of a step's batch, on which the accountants rely, and the other random parts of a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from privacy.noise.randomness import Randomness


@dataclass(frozen=True)
class Chance:
    """The random parts of a round: sampling, noise and dropout."""

    randomness: Randomness
    sample_rate: float
    noise_multiplier: float
    by_torch: Randomness  # seeds torch's generators, from which dropout draws

    def sample(self, count: int) -> Tensor:
        """Draw a step's batch from `count` records: each is in it independently, with probability `sample_rate`.

        Returns:
            `(count,)` booleans.
        """
        return torch.from_numpy(self.randomness.uniform(count) < self.sample_rate)
