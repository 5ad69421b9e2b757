"""Differential privacy whose unit is a site: the models hide whether a site is in the population at all.

This is not the ε of a person, which DP-SGD at the sites gives. Each round, every site of the population is sampled by
itself with the same probability, in secret; each site's whole update is clipped to a fixed norm; noise is added once,
to the sum, which is divided by the expected number of sites (McMahan et al. 2018, arXiv 1710.06963, with Poisson
sampling and a fixed denominator). A site takes part in a round with probability q, so that a round costs it less:
amplification by sampling (Poisson-sampled Gaussian mechanism, add or remove one site).

It holds against an observer who sees the models after all rounds, and nothing else: not who was sampled, nor how many,
nor an update, nor a site's time, nor the noise. A trusted party samples the sites, adds and clips; here, the simulation
does. Cloister's protocol for real sites has no such party, so this is for simulations.

With `bands` b above 1, the noise of b rounds in a row is correlated, so that much of it cancels in the models (BandMF;
Choquette-Choo et al. 2023, arXiv 2306.08153). Sites are dealt once to b groups, and round t samples from group t mod b,
with probability bq: theorem 4 there says that this costs what ⌈T/b⌉ rounds of the sampled Gaussian mechanism at rate bq
cost, if the columns of the strategy matrix have a norm of at most 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from privacy.accounting.accounting import Mechanism, epsilon
from privacy.accounting.calibration import calibrate
from privacy.errors import ConfigError
from privacy.noise.randomness import Randomness
from simulations.study.participation import Poisson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from simulations.study.participation import Participation

_MOST_BANDS = 1024


@dataclass(frozen=True)
class SitePrivacy:
    """What each site's membership may cost. Give either `epsilon` or `noise_multiplier`.

    Attributes:
        max_update_norm: the L2 norm to which each site's whole update is clipped.
        epsilon: of a site, over all rounds.
        noise_multiplier: the deviation of the noise in the sum, as a multiple of `max_update_norm`.
        delta: below one over the number of sites; by default, one over that number to the power of 1.1.
        bands: in how many rounds in a row the noise is correlated; 1: in none.
    """

    max_update_norm: float
    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float | None = None
    bands: int = 1

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: if one is out of range.
        """
        if (self.epsilon is None) == (self.noise_multiplier is None):
            msg = "site privacy needs either epsilon or noise_multiplier"
            raise ConfigError(msg)
        for name in ("max_update_norm", "epsilon", "noise_multiplier", "delta"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                msg = f"site privacy: {name} = {value!r} must be above 0"
                raise ConfigError(msg)
        if self.delta is not None and self.delta >= 1:
            msg = f"site privacy: delta = {self.delta:g} must be below one over the number of sites"
            raise ConfigError(msg)
        bands: Any = self.bands  # Python does not check that it is whole
        if not isinstance(bands, int) or not 1 <= bands <= _MOST_BANDS:
            msg = f"site privacy: bands = {self.bands!r} must be a whole number from 1 to {_MOST_BANDS}"
            raise ConfigError(msg)

    def planned(self, sites: int, rounds: int, participation: Participation) -> SiteNoise:
        """Return the noise of a simulation.

        Raises:
            ConfigError: if sites are not sampled as the accounting assumes, or jax-privacy is not installed.
        """
        if not isinstance(participation, Poisson):
            msg = (
                f"site privacy holds only if sites are sampled independently, not with {participation}; "
                "set participation to poisson:0.1, or another probability"
            )
            raise ConfigError(msg)
        rate = participation.probability * self.bands
        if rate > 1 or self.bands > min(rounds, sites):
            msg = (
                f"site privacy: with bands = {self.bands}, {sites} sites and {rounds} rounds, sites are sampled with "
                f"{self.bands} · {participation.probability:g} = {rate:g}; it must be at most 1, and there must be as "
                "many rounds and sites as bands; set fewer bands"
            )
            raise ConfigError(msg)
        delta = self.delta or sites**-1.1
        if delta * sites >= 1:
            msg = (
                f"site privacy: delta = {delta:g} must be below one over the number of sites, {sites}: otherwise it "
                "allows to publish a site's update as it is; give a smaller delta, or more sites"
            )
            raise ConfigError(msg)
        steps = math.ceil(rounds / self.bands)
        sigma = self.noise_multiplier or calibrate(self.epsilon or math.inf, delta, rate, steps)
        coefficients = strategy_coefficients(rounds, self.bands)
        return SiteNoise(self, sigma, delta, participation.probability, sites, coefficients)


def strategy_coefficients(rounds: int, bands: int) -> tuple[float, ...]:
    """Return the first column of the banded Toeplitz strategy matrix C that suits sums of so many rounds.

    Its norm is 1, so no column of C has a larger one.

    Raises:
        ConfigError: if jax-privacy is not installed.
    """
    if bands == 1:
        return (1.0,)
    try:
        from jax_privacy.matrix_factorization import toeplitz  # noqa: PLC0415 - an extra
    except ImportError as error:
        msg = "bands above 1 need jax-privacy, which finds the correlation of the noise: pip install 'cloister[matrix]'"
        raise ConfigError(msg) from error
    found = np.asarray(toeplitz.optimize_banded_toeplitz(rounds, bands), np.float64)
    if found.shape != (bands,) or not np.isfinite(found).all() or found[0] <= 0:
        msg = f"jax-privacy finds no strategy for {rounds} rounds and {bands} bands; set fewer bands"
        raise ConfigError(msg)
    return tuple((found / np.linalg.norm(found)).tolist())


@dataclass
class SiteNoise:
    """Samples sites, adds noise to their sum, and accounts for both."""

    settings: SitePrivacy
    noise_multiplier: float
    delta: float
    probability: float  # of each site to be in a round, over all rounds
    sites: int
    coefficients: Sequence[float] = (1.0,)  # c₀ … of the strategy matrix
    earlier: list[NDArray[np.float64]] = field(default_factory=list)  # the last rounds' noise, the latest first
    _stream: Randomness = field(default_factory=Randomness.fresh)

    @property
    def max_update_norm(self) -> float:
        """The L2 norm of what a site adds to the sum, at most."""
        return self.settings.max_update_norm

    def sampled(self, number: int) -> NDArray[np.intp]:
        """Return the sites of a round, from 1, drawn in secret; there may be none."""
        bands = len(self.coefficients)
        group = np.arange((number - 1) % bands, self.sites, bands)
        return group[self._stream.uniform(len(group)) < self.probability * bands]

    def mean(self, total: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the noisy mean of a round's clipped updates, given their sum; rounds must be in order.

        The noise solves C x = z, for fresh z: the strategy matrix C is the only one that the accounting sees.
        """
        first, *others = self.coefficients
        fresh = self._stream.gaussian(total.size) * (self.noise_multiplier * self.max_update_norm)
        for coefficient, noise in zip(others, self.earlier, strict=False):
            fresh -= coefficient * noise
        fresh /= first
        self.earlier = [fresh, *self.earlier][: len(others)]
        return ((total + fresh) / (self.probability * self.sites)).astype(np.float32)

    def spent(self, rounds: int) -> float:
        """Return the ε of each site after so many rounds."""
        bands = len(self.coefficients)
        step = Mechanism(self.noise_multiplier, self.probability * bands, math.ceil(rounds / bands))
        return epsilon([step], self.delta)
