"""SCAFFOLD (Karimireddy et al., 2020, arXiv 1910.06378): control variates correct for differences in site data.

Each site has a control variate cᵢ, and all sites know c = Σ pᵢcᵢ, where p are their shares of the weight. A step at
site i adds c − cᵢ to its noisy gradient. With option II of the paper, over K steps of learning rate η,

    cᵢ⁺ = cᵢ − c − Δᵢ/(K·η)          Δᵢ: the update that the site sent

The change that a site would have to send, cᵢ⁺ − cᵢ = −c − Δᵢ/(K·η), follows from c and Δᵢ; its mean follows from c and
the mean update. So a site sends one vector, not two. Here c and cᵢ are stored times K·η, in the units of an update.
With the contributors' share s of the weight,

    c⁺    = c − s·(c + mean)
    model = model + server_learning_rate · mean

Both variates are computed from updates that already have their noise: they cost no ε, and are as noisy as one update.
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
class Scaffold(Algorithm):
    """Stochastic controlled averaging."""

    server_learning_rate: Annotated[float, Field(gt=0, le=1e6)] = 1.0

    state: ClassVar[tuple[str, ...]] = ("c",)
    own: ClassVar[tuple[str, ...]] = ("c_i",)

    @override
    def check(self, run: Run) -> str | None:
        if not run.plain:
            return NEEDS_PLAIN
        return None if run.steps else "it needs rounds of at least one step; set steps_per_round"

    @override
    def local(self, at: LocalRound, train: Callable[[LocalSolver], Update]) -> Update:
        scale = at.run.steps * at.run.learning_rate
        return train(LocalSolver(offset=(at.state["c"] - at.own["c_i"]) / scale))

    @override
    def keep(self, at: LocalRound, sent: Values) -> Mapping[str, Values]:
        return {"c_i": at.own["c_i"] - at.state["c"] - sent}

    @override
    def apply(self, model: Values, state: Mapping[str, Values], mean: Mean) -> tuple[Values, Mapping[str, Values]]:
        c = state["c"] - mean.fraction * (state["c"] + mean.values)
        return model + self.server_learning_rate * mean.values, {"c": c}
