"""A population of sites: who begins a round, who drops out of it, and who is too late."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from privacy.errors import ConfigError
from simulations.study.participation import Everybody

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from simulations.study.participation import Participation


@dataclass(frozen=True)
class Seconds:
    """How many seconds a site takes for a round: drawn for each site and round from a distribution.

    `lognormal` has a median and the deviation of the logarithm, `exponential` a mean, `gamma` a mean and a shape,
    `uniform` a smallest and a largest value.
    """

    distribution: str
    parameters: tuple[float, ...]

    def draw(self, sites: int, draw: np.random.Generator) -> NDArray[np.float64]:
        """Return the seconds of so many sites, `(sites,)`.

        >>> Seconds("uniform", (5.0, 5.0)).draw(2, np.random.default_rng(0))
        array([5., 5.])
        """
        return _DISTRIBUTIONS[self.distribution](draw, sites, *self.parameters)

    def __str__(self) -> str:
        return ":".join([self.distribution, *(f"{value:g}" for value in self.parameters)])


_DISTRIBUTIONS: dict[str, Callable[..., NDArray[np.float64]]] = {
    "lognormal": lambda draw, sites, median, sigma: median * draw.lognormal(0.0, sigma, sites),
    "exponential": lambda draw, sites, mean: draw.exponential(mean, sites),
    "gamma": lambda draw, sites, mean, shape: draw.gamma(shape, mean / shape, sites),
    "uniform": lambda draw, sites, least, most: draw.uniform(least, most, sites),
}
_COUNTS = {"lognormal": 2, "exponential": 1, "gamma": 2, "uniform": 2}


def read_seconds(given: object) -> Seconds | None:
    """Return a distribution of seconds, given one, a text such as `lognormal:30:0.5`, or None.

    Raises:
        ConfigError: if it is none.

    >>> str(read_seconds("exponential:30"))
    'exponential:30'
    """
    if given is None or isinstance(given, Seconds):
        return given
    name, *rest = str(given).split(":")
    try:
        values = tuple(float(value) for value in rest)
    except ValueError:
        values = ()
    if len(values) != _COUNTS.get(name) or not all(0 < value < np.inf for value in values) or _falls(name, values):
        known = "lognormal:30:0.5, exponential:30, gamma:30:2 or uniform:10:60"
        msg = f"{given!a} is no distribution of seconds; write {known}"
        raise ConfigError(msg)
    return Seconds(name, values)


def _falls(name: str, values: tuple[float, ...]) -> bool:
    return name == "uniform" and values[0] > values[1]


@dataclass(frozen=True)
class Turnout:
    """Who takes part in a round: numbers of sites, ascending."""

    delivered: NDArray[np.intp]  # sites whose updates arrive in time
    late: NDArray[np.intp]  # sites that train, but are too late
    dropped: int  # how many fail before they train

    @property
    def charged(self) -> NDArray[np.intp]:
        """The sites that charge the round to their ledgers: they train, whether or not they are in time."""
        return np.union1d(self.delivered, self.late) if len(self.late) else self.delivered

    def absent(self, sites: int) -> NDArray[np.intp]:
        """Return who of so many sites contributes nothing."""
        return np.setdiff1d(np.arange(sites), self.delivered)

    @property
    def problems(self) -> dict[str, str]:
        """What went wrong, for people."""
        told = []
        if self.dropped:
            told.append(f"{self.dropped} dropped out")
        if len(self.late):
            told.append(f"{len(self.late)} too late")
        return {"sites that began": ", ".join(told)} if told else {}


@dataclass(frozen=True)
class Population:
    """Who takes part in rounds, by chance that depends only on the seed and the round's number."""

    sites: int
    participation: Participation
    seed: int
    dropout: float = 0.0  # the probability that a site that begins a round fails before it trains
    seconds: Seconds | None = None  # what a site takes; without, all are in time
    deadline: float = np.inf  # seconds

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: if one is out of range.
        """
        if not 0 <= self.dropout < 1:
            msg = f"dropout = {self.dropout:g} must be a probability from 0 to below 1"
            raise ConfigError(msg)
        if not self.deadline > 0:
            msg = f"deadline = {self.deadline:g}: write how many seconds a round waits for its sites"
            raise ConfigError(msg)

    @property
    def is_whole(self) -> bool:
        """Whether all sites take part in every round."""
        return isinstance(self.participation, Everybody) and not self.dropout and self.seconds is None

    def turnout(self, number: int, begun: NDArray[np.intp] | None = None) -> Turnout:
        """Return who takes part in a round, from 1; of the sites that begin it, if they were chosen otherwise."""
        draw = np.random.default_rng([self.seed, number])
        if begun is None:
            begun = np.asarray(self.participation.sites(self.sites, number, draw), np.intp)
        stays = draw.random(len(begun)) >= self.dropout
        trained = begun[stays]
        if self.seconds is None:
            in_time = np.ones(len(trained), bool)
        else:
            in_time = self.seconds.draw(len(trained), draw) <= self.deadline
        return Turnout(trained[in_time], trained[~in_time], len(begun) - len(trained))

    def check_enough(self, minimum: int, rounds: int) -> None:
        """Check that a round releases a model, before any is charged.

        Raises:
            ConfigError: if fewer than the cohort's minimum deliver in each.
        """
        most = 0
        for number in range(1, rounds + 1):
            most = max(most, len(self.turnout(number).delivered))
            if most >= minimum:
                return
        msg = (
            f"at most {most} of {self.sites} sites would deliver an update in any of the {rounds} rounds, and a sum "
            f"takes {minimum}; raise participation or deadline, lower dropout, or play more sites"
        )
        raise ConfigError(msg)

    def __str__(self) -> str:
        text = f"{self.participation}, dropout {self.dropout:g}, seconds {self.seconds}, deadline {self.deadline:g}"
        return re.sub(r" at 0x[0-9a-f]+", "", text)  # where a function lies in memory
