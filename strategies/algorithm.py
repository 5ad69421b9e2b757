"""The seam of federated algorithms: what a site does in a round, and what the mean of all updates does to the model.

Both halves run at the sites, because the server cannot read. An algorithm is one class, in a file of
`strategies/algorithms/` or in another package, and a dataclass: its fields are its parameters in `[strategy]`.

    local   trains once, with DP-SGD, and returns the vector that travels to the sum
    apply   (model, state, mean) → (model, state), the same at every site

`local` never sees a record or a gradient. `train` gives it an update that has its noise already; whatever it makes of
that, and of what all sites know, costs no further ε (post-processing). What it keeps at the site from round to round,
`own`, is made of the same.

`apply` must give the same bits on every machine: it gets double precision, in blocks of at most `BLOCK` values, and
uses only +, −, ×, ÷, square roots and comparisons, element by element. `state` is what it keeps from round to round;
it is part of a site's checkpoint and of the digest that all sites must agree on.
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

    steps: int  # optimiser steps of a site in a round, at most
    learning_rate: float  # of these steps
    weights: Mapping[str, float]  # of every site that the run names

    @classmethod
    def of(cls, settings: RunSettings) -> Self:
        """Return what a run's settings fix; of a run that trains nothing, no steps."""
        weights = {site: settings.weight(site) for site in settings.cohort.sizes}
        training = settings.training
        return cls(training.steps_per_round, training.learning_rate, weights) if training else cls(0, 1.0, weights)


@dataclass(frozen=True, eq=False)
class LocalSolver:
    """How a site descends: each step adds `proximal · (w − w₀) + offset` to the gradient, after clipping and noise."""

    proximal: float = 0.0  # the pull towards the model w₀ from which the round starts
    offset: Values | None = None  # `(n,)`, in the units of a gradient
    steps: int | None = None  # fewer than the run's, if given; the run's are charged all the same


PLAIN = LocalSolver()
"""Plain DP-SGD, all of the run's steps."""


@dataclass(frozen=True, eq=False)
class LocalRound:
    """What a site knows before it trains. All of it is public, but for `own`, which is made of noisy updates."""

    run: Run
    site: str
    model: Update  # w₀; not to be changed
    state: Mapping[str, Values]  # what `apply` keeps
    own: Mapping[str, Values]  # what `keep` returned last; zeros at first


@dataclass(frozen=True, eq=False)
class Mean:
    """What a sum opened to: the weighted mean of its contributors' vectors, or a block of it."""

    values: Values
    weights: Mapping[str, float]  # of the contributors
    run: Run

    @property
    def share(self) -> float:
        """The contributors' share of all sites' weight."""
        return fsum(self.weights.values()) / fsum(self.run.weights.values())


class Algorithm(Protocol):
    """A federated algorithm. What a class does not define is as in federated averaging."""

    version: ClassVar[int] = 1
    """Raise it when the same parameters give other numbers: sites with different versions do not train together."""

    state: ClassVar[tuple[str, ...]] = ()
    """Names of the vectors that `apply` keeps."""

    own: ClassVar[tuple[str, ...]] = ()
    """Names of the vectors that stay at a site."""

    def check(self, run: Run) -> str | None:
        """Say what is wrong with using this algorithm for a run, and what to change; None if nothing is."""
        del run
        return None

    def initial(self, name: str) -> float:
        """Return what every value of a vector of `state` is before the first round."""
        del name
        return 0.0

    def local(self, at: LocalRound, train: Callable[[LocalSolver], Update]) -> Update:
        """Train once, and return what travels.

        Args:
            at: what the site knows.
            train: makes this site's update `(n,)`, clipped and with its noise; may be called once.
        """
        del at
        return train(PLAIN)

    def keep(self, at: LocalRound, sent: Values) -> Mapping[str, Values]:
        """Return the vectors of `own` that hold from now on, if this site's vector becomes part of the round's sum.

        Args:
            at: what the site knew before it trained.
            sent: the vector that left the site, `(n,)`, after it was cut and rounded to what the codec can say.
        """
        del at, sent
        return {}

    def apply(self, model: Values, state: Mapping[str, Values], mean: Mean) -> tuple[Values, Mapping[str, Values]]:
        """Return the next model and state, of blocks of equal length."""
        ...
