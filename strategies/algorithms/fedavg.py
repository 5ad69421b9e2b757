"""Federated averaging (McMahan et al., 2017, arXiv 1602.05629): the model plus the mean update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass
from typing_extensions import override

from privacy.config import STRICT
from strategies.algorithm import Algorithm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from strategies.algorithm import Mean, Values


@dataclass(frozen=True, config=STRICT)
class FedAvg(Algorithm):
    """Each site takes its SGD steps; the model moves by the mean of their updates."""

    @override
    def apply(self, model: Values, state: Mapping[str, Values], mean: Mean) -> tuple[Values, Mapping[str, Values]]:
        return model + mean.values, state
