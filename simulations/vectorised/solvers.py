"""The local half of an algorithm at many sites at once.

An algorithm's `local` is called for each site: it asks for one training, and returns what the site sends. So that all
sites train together, it is called twice: the first call ends when it asks for training and says how; the second gets
the update. `local` depends only on its arguments, as `strategies.algorithm` requires, so both calls do the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from strategies.algorithm import PLAIN, Algorithm, LocalRound, LocalSolver

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

    from numpy.typing import NDArray
    from torch import Tensor

    from privacy.codec.update import Model
    from strategies.advance import State
    from strategies.algorithm import Run


class _AskedError(Exception):
    """Ends a call of `local` when it asks for training."""

    def __init__(self, solver: LocalSolver) -> None:
        super().__init__()
        self.solver = solver


def _ask(solver: LocalSolver) -> NoReturn:
    raise _AskedError(solver)


@dataclass(frozen=True, eq=False)
class LocalHalves:
    """The local half of an algorithm in one round, at some sites."""

    algorithm: Algorithm
    rounds: Sequence[LocalRound]  # one for each site; none if the algorithm has no local half
    solvers: Sequence[LocalSolver]

    @classmethod
    def at(
        cls, algorithm: Algorithm, run: Run, sites: Sequence[str], model: Model, state: State,
        own: Mapping[str, NDArray[np.float64]],
    ) -> LocalHalves:  # fmt: skip
        """Ask the algorithm how each of these sites trains; `own` are the vectors that they keep, `(S, parameters)`."""
        if type(algorithm).local is Algorithm.local and not own:
            return cls(algorithm, (), ())
        rounds = [
            LocalRound(run, site, model.vector, state.vectors, {name: rows[place] for name, rows in own.items()})
            for place, site in enumerate(sites)
        ]
        return cls(algorithm, rounds, [_solver(algorithm, at) for at in rounds])

    def steps(self, most: int) -> NDArray[np.int64] | None:
        """Return how many steps each site takes, `(S,)`; None if all take `most`."""
        counts = [most if solver.steps is None else min(most, solver.steps) for solver in self.solvers]
        return np.array(counts) if any(count < most for count in counts) else None

    @property
    def proximal(self) -> Tensor | None:
        """The strength of the pull towards the model at each site, `(S, 1)`; None if there is none."""
        pulls = [solver.proximal for solver in self.solvers]
        return torch.tensor(pulls, dtype=torch.float32).unsqueeze(1) if any(pulls) else None

    @property
    def offset(self) -> Tensor | None:
        """What is added to the gradients of each site, `(S, parameters)`; None if there is nothing."""
        if all(solver.offset is None for solver in self.solvers):
            return None
        offsets = [solver.offset for solver in self.solvers]
        size = next(offset.size for offset in offsets if offset is not None)
        return torch.from_numpy(
            np.stack(
                [np.zeros(size, np.float32) if offset is None else offset.astype(np.float32) for offset in offsets]
            )
        )

    def sent(self, updates: Tensor) -> None:
        """Replace the sites' updates, `(S, parameters)`, by what the algorithm sends."""
        for at, row in zip(self.rounds, updates.numpy(), strict=True) if self.rounds else ():
            vector = self.algorithm.local(at, lambda _, row=row: row)  # type: ignore[misc]  # bound in each turn
            if vector is not row:
                row[:] = vector

    def kept(self, sent: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return what the sites keep, by name, given what left them after rounding, `(S, parameters)`."""
        rows = [self.algorithm.keep(at, row) for at, row in zip(self.rounds, sent, strict=True)]
        return {name: np.stack([row[name] for row in rows]) for name in self.algorithm.own}


def _solver(algorithm: Algorithm, at: LocalRound) -> LocalSolver:
    try:
        algorithm.local(at, _ask)
    except _AskedError as asked:
        return asked.solver
    return PLAIN
