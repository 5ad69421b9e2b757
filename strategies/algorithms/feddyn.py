"""FedDyn (Acar et al., 2021, arXiv 2111.04263): align each site's optimum with the global one.

Site i minimises its loss − ⟨gᵢ, w⟩ + alpha/2 · ‖w − w₀‖², then sets gᵢ⁺ = gᵢ − alpha · Δᵢ, where Δᵢ is the update that
it sent. Over the contributors, whose share of the weight is s,

    h⁺    = h − alpha · s · mean
    model = model + mean − h⁺ / alpha

gᵢ is computed from updates that already have their noise, so it costs no ε. Neither gᵢ nor h decays: noise accumulates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from typing_extensions import override

from privacy.config import STRICT
from strategies.algorithm import NEEDS_PLAIN, Algorithm, LocalSolver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from strategies.algorithm import LocalRound, Mean, Run, Update, Values


@dataclass(frozen=True, config=STRICT)
class FedDyn(Algorithm):
    """Dynamic regularisation."""

    alpha: Annotated[float, Field(gt=0, le=1e6)] = 0.1

    state: ClassVar[tuple[str, ...]] = ("h",)
    own: ClassVar[tuple[str, ...]] = ("g",)

    @override
    def check(self, run: Run) -> str | None:
        if not run.plain:
            return NEEDS_PLAIN
        if self.alpha * run.learning_rate >= 1:  # a step would overshoot w₀
            return f"alpha = {self.alpha:g} times the learning rate {run.learning_rate:g} must be below 1; lower one"
        return None

    @override
    def local(self, at: LocalRound, train: Callable[[LocalSolver], Update]) -> Update:
        return train(LocalSolver(proximal=self.alpha, offset=-at.own["g"]))

    @override
    def keep(self, at: LocalRound, sent: Values) -> Mapping[str, Values]:
        return {"g": at.own["g"] - self.alpha * sent}

    @override
    def apply(self, model: Values, state: Mapping[str, Values], mean: Mean) -> tuple[Values, Mapping[str, Values]]:
        h = state["h"] - self.alpha * mean.fraction * mean.values
        return model + mean.values - h / self.alpha, {"h": h}
