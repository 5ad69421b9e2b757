"""The interface of federated algorithms: how a site trains in a round, and how the mean update changes the model.

Both halves run at the sites, because the server cannot read updates. An algorithm is a dataclass in a file of
`strategies/algorithms/` or in another package; its fields are its parameters in `[strategy]`.

    local   trains once, with DP-SGD, and returns the vector to be summed
    apply   (model, state, mean) → (model, state), the same at every site

`local` never sees a record or a gradient. `train` returns an update that already has its noise, so whatever `local`
computes from it and from public values costs no further ε (post-processing). The same holds for `own`, the vectors
that a site keeps from round to round.

`apply` must give the same bits on every machine: it gets double precision, in blocks of at most `BLOCK` values, and
uses only +, −, ×, ÷, square roots and comparisons, element by element. Its `state`, kept from round to round, is part
of a site's checkpoint and of the digest that all sites must agree on.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from privacy.run.settings import RunSettings

BLOCK = 1 << 20

Update = NDArray[np.float32]
"""All parameters of a model, `(n,)`, in the order of its layout."""

Values = NDArray[np.float64]
"""The same in double precision, or a block of it."""


@dataclass(frozen=True)
class Run:
    """What the signed manifest fixes for a whole run."""

    steps: int  # most optimiser steps of a site in a round
    learning_rate: float  # of the optimiser; the highest, if a schedule changes it
    weights: Mapping[str, float]  # of every site in the run
    plain: bool = True  # whether every step is the learning rate times the gradient, and nothing else

    @classmethod
    def of(cls, settings: RunSettings) -> Self:
        """Return what a run's settings fix; zero steps if the run does not train."""
        weights = {site: settings.weight(site) for site in settings.cohort.sizes}
        training = settings.training
        if training is None:
            return cls(0, 1.0, weights)
        return cls(training.steps, training.learning_rate, weights, training.plain)


NEEDS_PLAIN = (
    "it counts on plain steps of one learning rate; remove optimizer and schedule from [training], or use another "
    "strategy"
)
"""What `check` returns for a run that is not plain, if the algorithm needs one."""


@dataclass(frozen=True, eq=False)
class LocalSolver:
    """Local training: each step adds `proximal · (w − w₀) + offset` to the gradient, after clipping and noise.

    The run's optimizer takes the step along that sum. Parameters that stay at the site follow their gradient alone.
    """

    proximal: float = 0.0  # the pull towards w₀, the model at the start of the round
    offset: Values | None = None  # `(n,)`, in the units of a gradient
    steps: int | None = None  # fewer than the run's, if given; the ledger is charged for all of the run's


PLAIN = LocalSolver()
"""Plain DP-SGD with all of the run's steps."""


@dataclass(frozen=True, eq=False)
class LocalRound:
    """What a site knows before it trains. All of it is public except `own`, which is computed from noisy updates."""

    run: Run
    site: str
    model: Update  # w₀; do not modify
    state: Mapping[str, Values]  # what `apply` keeps
    own: Mapping[str, Values]  # what `keep` last returned; initially zeros


@dataclass(frozen=True, eq=False)
class Mean:
    """A decrypted sum: the weighted mean of its contributors' vectors, or a block of it."""

    values: Values
    weights: Mapping[str, float]  # of the contributors
    run: Run

    @property
    def fraction(self) -> float:
        """The fraction of all sites' weight that the contributors have."""
        return fsum(self.weights.values()) / fsum(self.run.weights.values())


class Algorithm(Protocol):
    """A federated algorithm. Defaults are those of federated averaging."""

    version: ClassVar[int] = 1
    """Increase it when the same parameters give other results: sites with different versions cannot train together."""

    state: ClassVar[tuple[str, ...]] = ()
    """Names of the vectors that `apply` keeps."""

    own: ClassVar[tuple[str, ...]] = ()
    """Names of the vectors that stay at a site."""

    def check(self, run: Run) -> str | None:
        """Return why this algorithm does not suit a run, and what to change; None if it does."""
        del run
        return None

    def initial(self, name: str) -> float:
        """Return the initial value of all entries of a vector in `state`."""
        del name
        return 0.0

    def local(self, at: LocalRound, train: Callable[[LocalSolver], Update]) -> Update:
        """Train once, and return the vector to be summed.

        Args:
            at: what the site knows before training.
            train: returns this site's update `(n,)`, clipped and with its noise; may be called only once.
        """
        del at
        return train(PLAIN)

    def keep(self, at: LocalRound, sent: Values) -> Mapping[str, Values]:
        """Return the new vectors of `own`, used if this site's vector becomes part of the round's sum.

        Args:
            at: what the site knew before it trained.
            sent: the vector that left the site, `(n,)`, after the codec clipped and rounded it.
        """
        del at, sent
        return {}

    def apply(self, model: Values, state: Mapping[str, Values], mean: Mean) -> tuple[Values, Mapping[str, Values]]:
        """Return the next model and state, given blocks of equal length."""
        ...
