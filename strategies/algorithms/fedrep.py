"""FedRep (Collins et al., 2021, arXiv 2102.07078): train each site's own head and the shared body in turn.

In each round, the first `own_steps` steps train only the parameters that stay at the site (`Task.local`); the others
train only the shared ones. A record's gradient is clipped over those that a step trains, and only they get noise.
Every step is charged as any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

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
class FedRep(FedAvg):
    """Federated averaging of a body under local heads, trained in turn."""

    own_steps: Annotated[int, Field(ge=1)] = 1  # of each round's steps

    personal: ClassVar[bool] = True

    @override
    def check(self, run: Run) -> str | None:
        if self.own_steps >= run.steps:
            return (
                f"own_steps = {self.own_steps} leaves no step for what is shared, as a round takes {run.steps}; lower "
                "it, or take more steps"
            )
        return None

    @override
    def local(self, at: LocalRound, train: Callable[[LocalSolver], Update]) -> Update:
        return train(LocalSolver(own_steps=self.own_steps))
