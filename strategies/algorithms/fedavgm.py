"""FedAvgM (Hsu, Qi and Brown, 2019, arXiv 1909.06335): server momentum over the mean updates.

    velocity = momentum · velocity + mean
    model    = model + server_learning_rate · velocity

Momentum accumulates what rounds have in common and averages out their noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from typing_extensions import override

from privacy.config import STRICT
from strategies.algorithm import Algorithm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from strategies.algorithm import Mean, Values


@dataclass(frozen=True, config=STRICT)
class FedAvgM(Algorithm):
    """Federated averaging with momentum."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    server_learning_rate: Annotated[float, Field(gt=0, le=1e6)] = 1.0

    state: ClassVar[tuple[str, ...]] = ("velocity",)

    @override
    def apply(self, model: Values, state: Mapping[str, Values], mean: Mean) -> tuple[Values, Mapping[str, Values]]:
        velocity = self.momentum * state["velocity"] + mean.values
        return model + self.server_learning_rate * velocity, {"velocity": velocity}
