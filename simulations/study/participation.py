"""Which sites take part in a round of a large population."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from privacy.config import did_you_mean
from privacy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


@runtime_checkable
class Participation(Protocol):
    """Chooses the sites of a round; what it returns depends only on its arguments."""

    def sites(self, population: int, number: int, draw: np.random.Generator) -> NDArray[np.intp]:
        """Return the numbers of the sites that take part in a round, ascending.

        Args:
            population: how many sites there are.
            number: the round's, from 1.
            draw: what chance decides.
        """
        ...


@dataclass(frozen=True)
class Everybody:
    """All sites take part in every round."""

    def sites(self, population: int, number: int, draw: np.random.Generator) -> NDArray[np.intp]:
        """Return all sites."""
        del number, draw
        return np.arange(population)


@dataclass(frozen=True)
class Fraction:
    """A fixed number of sites takes part, chosen anew each round."""

    fraction: float

    def sites(self, population: int, number: int, draw: np.random.Generator) -> NDArray[np.intp]:
        """Return so many sites, at least one."""
        del number
        return np.sort(draw.choice(population, max(1, round(self.fraction * population)), replace=False))


@dataclass(frozen=True)
class Poisson:
    """Each site takes part by itself with this probability: what amplification by sampling of sites assumes."""

    probability: float

    def sites(self, population: int, number: int, draw: np.random.Generator) -> NDArray[np.intp]:
        """Return the sites that take part; there may be none."""
        del number
        return np.flatnonzero(draw.random(population) < self.probability)


@dataclass(frozen=True)
class Available:
    """Each site is online with a probability that changes over time.

    Without `online`, availability follows a day: it falls to a tenth at night. Each site has a time zone of its own.
    """

    online: Callable[[int, int], float] | None = None  # of a site in a round
    rounds_per_day: float = 24.0

    def sites(self, population: int, number: int, draw: np.random.Generator) -> NDArray[np.intp]:
        """Return the sites that are online."""
        if self.online is None:
            zones = np.arange(population) * 0.6180339887 % 1  # evenly over the day, for any number of sites
            chance = 0.55 + 0.45 * np.cos(2 * np.pi * (number / self.rounds_per_day + zones))
        else:
            chance = np.array([self.online(site, number) for site in range(population)])
        return np.flatnonzero(draw.random(population) < chance)


def read_participation(given: object) -> Participation:
    """Return a participation, given one, a fraction, or a text such as `poisson:0.1`.

    Raises:
        ConfigError: if it is none.

    >>> read_participation(0.5), read_participation("poisson:0.1")
    (Fraction(fraction=0.5), Poisson(probability=0.1))
    """
    if isinstance(given, Participation):
        return given
    alone: dict[str, Callable[[], Participation]] = {"all": Everybody, "available": Available}
    name, colon, rest = str(given).partition(":")
    if name in alone and not colon:
        return alone[name]()
    try:
        amount = float(rest if colon else name)
    except ValueError:
        amount = -1.0
    if not 0 < amount <= 1 or (colon and name not in {"poisson", "fraction"}):
        known = [*alone, "poisson", "fraction"]
        hint = (name not in known and did_you_mean(name, known)) or "write all, 0.1, poisson:0.1 or available"
        msg = f"{given!a} says no participation; {hint}"
        raise ConfigError(msg)
    if name == "poisson":
        return Poisson(amount)
    return Everybody() if amount == 1 else Fraction(amount)
