"""A federated algorithm as another package would write it: it imports nothing but `cloister`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from cloister import Algorithm, LocalRound, LocalSolver, Mean, Update, Values


@dataclass(frozen=True)
class Slowed(Algorithm):
    """Takes part of each mean update, pulls sites back a little, and counts rounds in its state."""

    part: float = 0.5

    version: ClassVar[int] = 3
    state: ClassVar[tuple[str, ...]] = ("rounds",)

    @override
    def local(self, at: LocalRound, train: Callable[[LocalSolver], Update]) -> Update:
        return train(LocalSolver(proximal=0.01))

    @override
    def apply(self, model: Values, state: Mapping[str, Values], mean: Mean) -> tuple[Values, Mapping[str, Values]]:
        return model + self.part * mean.values, {"rounds": state["rounds"] + 1}
