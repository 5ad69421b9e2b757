"""Advance the model by one round: apply an algorithm block by block, and keep its state."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from privacy.codec.update import Model, is_finite
from privacy.errors import ProtocolError
from strategies.algorithm import BLOCK, Mean, Run
from strategies.algorithms.fedavg import FedAvg

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from privacy.codec.update import Update
    from strategies.algorithm import Algorithm, Values


@dataclass(frozen=True, eq=False)
class State:
    """An algorithm's state, identical at all sites: float64 vectors `(n,)` by name."""

    vectors: Mapping[str, Values] = field(default_factory=dict)

    @classmethod
    def start(cls, algorithm: Algorithm, size: int) -> Self:
        """Return the state before the first round, for a model with `size` parameters."""
        return cls({name: np.full(size, algorithm.initial(name)) for name in algorithm.state})

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of names and values; empty if there are no vectors."""
        if not self.vectors:
            return ""
        hashed = sha256(b"cloister state" + json.dumps(list(self.vectors)).encode())
        for vector in self.vectors.values():
            hashed.update(np.ascontiguousarray(vector, dtype="<f8").data)
        return hashed.hexdigest()


def advance(
    algorithm: Algorithm, run: Run, model: Model, state: State, mean: Update, weights: Mapping[str, float]
) -> tuple[Model, State]:
    """Return the next round's model and state. The model's vector overwrites the mean.

    Args:
        algorithm: the run's algorithm.
        run: what its manifest fixes.
        model: the model that the round started from.
        state: the state that belongs to it.
        mean: the mean of the contributors' updates.
        weights: the contributors' weights.

    Raises:
        ProtocolError: if a value is not finite, or the algorithm returns vectors of another shape or name.
    """
    vector = mean.vector
    after = {name: np.empty(vector.size) for name in state.vectors}
    for start in range(0, vector.size, BLOCK):
        part = slice(start, start + BLOCK)
        known = {name: values[part] for name, values in state.vectors.items()}
        means = Mean(vector[part].astype(np.float64), weights, run)
        with np.errstate(all="ignore"):  # checked below
            new_part, kept = algorithm.apply(model.vector[part].astype(np.float64), known, means)
            if new_part.shape != vector[part].shape or kept.keys() != after.keys():
                msg = f"{type(algorithm).__name__} returns a model or a state with another shape; correct its `apply`"
                raise ProtocolError(msg)
            vector[part] = new_part
        for name, values in kept.items():
            after[name][part] = values
    if not is_finite(vector) or not all(np.isfinite(values).all() for values in after.values()):
        msg = "the model is not finite after this round; start a new run with a lower learning rate"
        raise ProtocolError(msg)
    return Model(vector, model.layout), State(after)


def average(model: Model, mean: Update) -> Model:
    """Return the model plus the mean update, by federated averaging. The result overwrites the mean."""
    return advance(FedAvg(), Run(0, 1.0, {}), model, State(), mean, {})[0]
