"""FedAdagrad (Reddi et al., 2021, arXiv 2003.00295): v sums the squares of all mean updates; see `adaptive`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass
from typing_extensions import override

from privacy.config import STRICT
from strategies.adaptive import AdaptiveServer, Decay

if TYPE_CHECKING:
    from strategies.algorithm import Values


@dataclass(frozen=True, config=STRICT)
class FedAdagrad(AdaptiveServer):
    """Steps shrink over the run; suits sparse updates, and long runs without noise."""

    beta_1: Decay = 0.0

    @override
    def second_moment(self, v: Values, square: Values) -> Values:
        return v + square
