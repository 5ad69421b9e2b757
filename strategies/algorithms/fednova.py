"""FedNova (Wang et al., 2020, arXiv 2007.07481): normalise updates by the number of local steps.

With plain averaging, a site that takes more steps pulls the model towards its own optimum. Here site i, which takes τᵢ
of the run's K steps, sends its update times K/τᵢ. Over the contributors, whose shares of the weight are p,

    model = model + mean · Σ pᵢτᵢ / K

A site takes all of the run's steps unless `steps` gives it fewer, for example on a slow machine. Its ledger is charged
for all K steps, so ε is never underestimated. The noise in its update is scaled by K/τᵢ too.
"""

from __future__ import annotations

from dataclasses import field
from math import fsum
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from typing_extensions import override

from privacy.config import STRICT
from strategies.algorithm import NEEDS_PLAIN, Algorithm, LocalSolver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from strategies.algorithm import LocalRound, Mean, Run, Update, Values


@dataclass(frozen=True, config=STRICT)
class FedNova(Algorithm):
    """Normalised averaging."""

    steps: dict[str, Annotated[int, Field(ge=1)]] = field(default_factory=dict)  # for sites that take fewer

    @override
    def check(self, run: Run) -> str | None:
        if not run.plain:
            return NEEDS_PLAIN
        for site, count in self.steps.items():
            if site not in run.weights:
                return f"steps names {site}, which is not in [cohort.sizes]; remove it"
            if count > run.steps:
                return (
                    f"steps gives {site} {count} steps, but the run is charged for {run.steps}; set at most {run.steps}"
                )
        return None

    @override
    def local(self, at: LocalRound, train: Callable[[LocalSolver], Update]) -> Update:
        count = self.steps.get(at.site, at.run.steps)
        update = train(LocalSolver(steps=count))
        return update * np.float32(at.run.steps / count) if count < at.run.steps else update

    @override
    def apply(self, model: Values, state: Mapping[str, Values], mean: Mean) -> tuple[Values, Mapping[str, Values]]:
        steps = fsum(weight * self.steps.get(site, mean.run.steps) for site, weight in mean.weights.items())
        whole = fsum(weight * mean.run.steps for weight in mean.weights.values())
        return model + (steps / whole if whole else 1.0) * mean.values, state
