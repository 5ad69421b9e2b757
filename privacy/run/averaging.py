"""Which rounds' models are averaged into a run's result, and how much each of them counts.

averaging = 0.5     the mean of the models of the last half of the rounds
ema_decay = 0.9     an exponential moving average over the models of all rounds
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

_WARM_UP = 9  # so that after k models, the newest one counts at least 9/(k + 9), as in De et al., 2022


@dataclass(frozen=True)
class Averaging:
    """The mean of the last rounds' models or, with a decay, a moving average over all rounds."""

    share: float
    decay: float

    @classmethod
    def of(cls, share: float, decay: float) -> Self | None:
        """Return how a run averages models; None if it does not.

        Args:
            share: the fraction of rounds, at the end, to average; 0: none.
            decay: of the moving average, below 1; 0: none.

        Raises:
            ValueError: if both are asked for.
        """
        if share and decay:
            msg = "averaging and ema_decay are two ways to average models; remove one of them"
            raise ValueError(msg)
        return cls(share, decay) if share or decay else None

    def includes(self, number: int, rounds: int) -> bool:
        """Whether a round's model is averaged: the last ⌈share · rounds⌉ are, or all of them.

        >>> [Averaging(0.5, 0.0).includes(number, 5) for number in (1, 2, 3, 4, 5)]
        [False, False, True, True, True]
        """
        return self.decay > 0 or number > rounds - math.ceil(self.share * rounds)

    def window(self, count: int) -> float:
        """Return w for the mean of `count` models, 2 or more: the newest one counts 1/w.

        A moving average starts with a short window (De et al., 2022, arXiv 2204.13650, section 4), and so forgets the
        models of the first rounds.

        >>> [Averaging(0.0, 0.75).window(count) for count in (9, 18, 99)]
        [2.0, 3.0, 4.0]
        """
        return min(1 / (1 - self.decay), 1 + count / _WARM_UP) if self.decay else float(count)
