"""FedYogi (Reddi et al., 2021, arXiv 2003.00295): v approaches the squared mean in bounded steps; see `adaptive`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic.dataclasses import dataclass
from typing_extensions import override

from privacy.config import STRICT
from strategies.adaptive import AdaptiveServer, Decay

if TYPE_CHECKING:
    from strategies.algorithm import Values


@dataclass(frozen=True, config=STRICT)
class FedYogi(AdaptiveServer):
    """Like FedAdam, but v forgets a large update slowly, so steps grow less suddenly."""

    beta_2: Decay = 0.99

    @override
    def second_moment(self, v: Values, square: Values) -> Values:
        return v - (1 - self.beta_2) * square * np.sign(v - square)
