"""FedAdam (Reddi et al., 2021, arXiv 2003.00295): v is a running mean of squared mean updates; see `adaptive`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass
from typing_extensions import override

from privacy.config import STRICT
from strategies.adaptive import AdaptiveServer, Decay

if TYPE_CHECKING:
    from strategies.algorithm import Values


@dataclass(frozen=True, config=STRICT)
class FedAdam(AdaptiveServer):
    """Steps follow the recent size of each parameter's updates."""

    beta_2: Decay = 0.99

    @override
    def second_moment(self, v: Values, square: Values) -> Values:
        return self.beta_2 * v + (1 - self.beta_2) * square
