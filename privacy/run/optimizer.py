"""Define the optimizers and schedules of learning rates that a run's `[training]` may name, with their parameters.

    optimizer = "adam"
    schedule = "cosine"

    [training.optimizer]
    name = "sgd"
    momentum = 0.9

A site gives the optimizer only gradients that are clipped and have their noise. What it computes from them (momentum,
moments, weight decay) is post-processing, and costs no ε. The number of steps does cost, however they are counted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass
from typing_extensions import override

from privacy.config import STRICT, did_you_mean

_MOST_STEPS = 1_000_000_000

Decay = Annotated[float, Field(ge=0, lt=1)]
Part = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class Sgd:
    """Gradient descent, with momentum if asked (Nesterov's, as in Sutskever et al., 2013).

    Raises:
        ValueError: if Nesterov's momentum is asked for without a momentum.
    """

    name: Literal["sgd"] = "sgd"
    momentum: Decay = 0.0
    nesterov: bool = False
    weight_decay: Amount = 0.0  # an L2 penalty: added to the gradient, times the weights

    def __post_init__(self) -> None:
        """Check that Nesterov's momentum is above 0."""
        if self.nesterov and self.momentum == 0:
            msg = "nesterov is a kind of momentum; set momentum above 0, or remove nesterov"
            raise ValueError(msg)


@dataclass(frozen=True, config=STRICT)
class Adam:
    """Adam (Kingma and Ba, 2015, arXiv 1412.6980)."""

    name: Literal["adam"] = "adam"
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Above = 1e-8
    weight_decay: Amount = 0.0  # an L2 penalty: added to the gradient, times the weights


@dataclass(frozen=True, config=STRICT)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv 1711.05101)."""

    name: Literal["adamw"] = "adamw"
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Above = 1e-8
    weight_decay: Amount = 0.01  # each step shrinks the weights by this times the learning rate


def steps_of(steps: int | None, epochs: float | None, sample_rate: float) -> int:
    """Return the number of steps: as given, or at least one in which each record is used so often on average."""
    return max(1, round((epochs or 0.0) / sample_rate)) if steps is None else steps


def check_steps(steps: int | None, epochs: float | None, sample_rate: float) -> None:
    """Check that steps or epochs are given, and that epochs are not too many steps.

    Raises:
        ValueError: says what to change.
    """
    if (steps is None) == (epochs is None):
        msg = "set either steps_per_round or epochs_per_round"
        raise ValueError(msg)
    if epochs is not None and epochs / sample_rate > _MOST_STEPS:
        msg = (
            f"{epochs:g} epochs at a sample_rate of {sample_rate:g} are more than {_MOST_STEPS:,} steps a round; set "
            "fewer epochs_per_round, or a larger sample_rate"
        )
        raise ValueError(msg)


class _Schedule(ABC):
    """Base of the schedules: the learning rate rises over the first steps, then follows `_decay`."""

    warm_up: float

    def fraction(self, step: int, steps: int, rounds: int) -> float:
        """Return the fraction of the learning rate that a step takes, 0 … 1.

        Args:
            step: its number in the whole run, from 1.
            steps: the number of steps per round.
            rounds: the number of rounds.
        """
        warm = round(self.warm_up * steps * rounds)
        done = max(0, step - warm - 1) / max(1, steps * rounds - warm)
        return min(1.0, step / (warm + 1)) * self._decay(done, (step - 1) // steps)

    @abstractmethod
    def _decay(self, done: float, rounds: int) -> float:
        """Return a fraction of the learning rate.

        Args:
            done: the fraction of steps after the warm-up that have been taken, 0 to below 1.
            rounds: the number of rounds before this one.
        """


@dataclass(frozen=True, config=STRICT)
class Constant(_Schedule):
    """The same rate in every step after the warm-up."""

    name: Literal["constant"] = "constant"
    warm_up: Part = 0.0  # fraction of the run's steps

    @override
    def _decay(self, done: float, rounds: int) -> float:
        return 1.0


@dataclass(frozen=True, config=STRICT)
class Cosine(_Schedule):
    """Half a cosine wave (Loshchilov and Hutter, 2017, arXiv 1608.03983), without restarts."""

    name: Literal["cosine"] = "cosine"
    warm_up: Part = 0.0
    final: Part = 0.0  # fraction of the rate that is reached after the last step

    @override
    def _decay(self, done: float, rounds: int) -> float:
        return 1 - (1 - self.final) * (1 - math.cos(math.pi * done)) / 2


@dataclass(frozen=True, config=STRICT)
class Linear(_Schedule):
    """A straight line."""

    name: Literal["linear"] = "linear"
    warm_up: Part = 0.0
    final: Part = 0.0  # as above

    @override
    def _decay(self, done: float, rounds: int) -> float:
        return 1 - (1 - self.final) * done


@dataclass(frozen=True, config=STRICT)
class Step(_Schedule):
    """The rate is multiplied by `factor` after every so many rounds, counted from the run's first."""

    name: Literal["step"] = "step"
    warm_up: Part = 0.0
    every: Annotated[int, Field(ge=1)] = 10  # rounds
    factor: Annotated[float, Field(gt=0, le=1)] = 0.5

    @override
    def _decay(self, done: float, rounds: int) -> float:
        return float(self.factor ** (rounds // self.every))


def _optimizer(value: object) -> object:
    return _table(value, "optimizer", ("sgd", "adam", "adamw"))


def _schedule(value: object) -> object:
    return _table(value, "schedule", ("constant", "cosine", "step", "linear"))


def _table(value: object, kind: str, names: tuple[str, ...]) -> object:
    """Return a setting as a table with a known name; a name alone is a short form of it.

    Raises:
        ValueError: if no such name is known.
    """
    table: Any = {"name": value} if isinstance(value, str) else value
    if isinstance(table, dict) and table.get("name") not in names:
        hint = did_you_mean(str(table.get("name")), names) or f"name one of {', '.join(names)}"
        msg = f"there is no {kind} {table.get('name')!r}; {hint}" if "name" in table else f"its name is missing; {hint}"
        raise ValueError(msg)
    return table


Optimizer = Annotated[Annotated[Sgd | Adam | AdamW, Field(discriminator="name")], BeforeValidator(_optimizer)]
"""A setting: a table, or a name alone as a short form of it."""

Schedule = Annotated[
    Annotated[Constant | Cosine | Step | Linear, Field(discriminator="name")], BeforeValidator(_schedule)
]
"""A setting, as above."""
