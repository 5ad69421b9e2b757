"""FedProx (Li et al., 2020, arXiv 1812.06127): keep each site near the model that starts the round.

A site minimises its loss plus mu/2 · ‖w − w₀‖². The penalty's gradient, mu · (w − w₀), is added to each step's noisy
gradient. It depends only on the model and earlier noisy steps, so it is not clipped and costs no ε.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from typing_extensions import override

from privacy.config import STRICT
from strategies.algorithm import LocalSolver
from strategies.algorithms.fedavg import FedAvg

if TYPE_CHECKING:
    from collections.abc import Callable

    from strategies.algorithm import LocalRound, Run, Update


@dataclass(frozen=True, config=STRICT)
class FedProx(FedAvg):
    """Federated averaging with a proximal term at the sites."""

    mu: Annotated[float, Field(gt=0, le=1e6)] = 0.1  # the strength of the pull

    @override
    def check(self, run: Run) -> str | None:
        if self.mu * run.learning_rate >= 1:  # a step would overshoot w₀; beyond 2, steps diverge
            return f"mu = {self.mu:g} times the learning rate {run.learning_rate:g} must be below 1; lower one"
        return None

    @override
    def local(self, at: LocalRound, train: Callable[[LocalSolver], Update]) -> Update:
        return train(LocalSolver(proximal=self.mu))
