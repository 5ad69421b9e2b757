"""The base class of FedAdagrad, FedAdam and FedYogi (Reddi et al., 2021, arXiv 2003.00295, algorithm 2).

    m     = beta_1 · m + (1 − beta_1) · mean
    v     = `second_moment` of the subclass; initially tau²
    model = model + server_learning_rate · m / (√v + tau)

As in the paper, the bias of the first rounds is not corrected. An adaptive server changes every parameter by about
`server_learning_rate` per round, whatever the size of the updates; noise makes v larger and the steps smaller.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from typing_extensions import override

from privacy.config import STRICT
from strategies.algorithm import Algorithm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from strategies.algorithm import Mean, Values

Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class AdaptiveServer(Algorithm):
    """Federated averaging with a separate step size for every parameter."""

    server_learning_rate: Annotated[float, Field(gt=0, le=1e6)] = 0.1
    beta_1: Decay = 0.9
    tau: Annotated[float, Field(ge=1e-9, le=1e3)] = 1e-3  # smaller is more adaptive

    state: ClassVar[tuple[str, ...]] = ("m", "v")

    @abstractmethod
    def second_moment(self, v: Values, square: Values) -> Values:
        """Return the next v, given the current v and the squared mean."""

    @override
    def initial(self, name: str) -> float:
        return self.tau * self.tau if name == "v" else 0.0

    @override
    def apply(self, model: Values, state: Mapping[str, Values], mean: Mean) -> tuple[Values, Mapping[str, Values]]:
        m = self.beta_1 * state["m"] + (1 - self.beta_1) * mean.values
        v = self.second_moment(state["v"], mean.values * mean.values)
        return model + self.server_learning_rate * m / (np.sqrt(v) + self.tau), {"m": m, "v": v}
