"""Check the claims behind a run's ε against what canaries show.

The claims are the ledger's: σ, sampling rate and steps of every charge. A check fails only on a result that a sound
pipeline gives in fewer than one of 100,000 audits, so all checks together raise fewer than one false alarm in 10,000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from privacy.accounting.accounting import epsilon
from privacy.accounting.auditing import (
    dispersion_chance,
    gaussian_epsilon,
    largest_correlation,
    one_run_epsilon,
    rate_chance,
    scale_interval,
    separation,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from privacy.accounting.accounting import Mechanism

CONFIDENCE = 0.95  # of the reported bounds
FALSE_ALARM = 1e-5  # of each check
LONGEST = 1 << 16  # most values of a tensor compared with others
GUESSED = 20  # guess at one canary in this many: those that stand out most


@dataclass(frozen=True)
class Sighting:
    """Observations of one site's run with m canaries, over R rounds and S steps."""

    included: NDArray[np.bool_]  # (m,): which canaries are in the data
    moved: NDArray[np.float64]  # (R, m): how far each round moved their coordinates, in whole clipped gradients
    batches: NDArray[np.bool_]  # (S, m): which canaries were in the batch of each step taken
    charged: tuple[Mechanism, ...]  # the ledger's charges
    delta: float
    own: dict[str, NDArray[np.float64]]  # (R, d) for each of the task's own tensors: how far each round moved it

    @property
    def scores(self) -> NDArray[np.float64]:
        """The final model's evidence, `(m,)`: how often each canary seems to have been in a batch."""
        return np.asarray(self.moved.sum(axis=0))

    @property
    def steps(self) -> int:
        """The number of steps in the ledger."""
        return sum(mechanism.steps for mechanism in self.charged)

    @property
    def expected(self) -> float:
        """The expected number of batches that an included canary is in."""
        return math.fsum(mechanism.steps * mechanism.sample_rate for mechanism in self.charged)

    @property
    def noise(self) -> float:
        """The standard deviation of a coordinate under the ledger's noise."""
        return math.sqrt(math.fsum(mechanism.steps * mechanism.noise_multiplier**2 for mechanism in self.charged))

    @cached_property
    def claimed(self) -> float:
        """The accountant's ε."""
        return epsilon(self.charged, self.delta)

    def formal(self, confidence: float, delta: float) -> float:
        """Return the lower bound on ε by Steinke et al. The number of guesses is fixed beforehand."""
        order, half = np.argsort(-self.scores, kind="stable"), max(1, self.included.size // GUESSED // 2)
        right = self.included[order[:half]].sum() + (~self.included[order[-half:]]).sum()
        return one_run_epsilon(self.included.size, 2 * half, int(right), delta, confidence)

    def gaussian(self, confidence: float) -> float:
        """Return the lower bound on ε from the errors of a membership test, assuming a Gaussian mechanism.

        The threshold is fixed beforehand, from the claims: half the expected score of an included canary.
        """
        above = self.scores > self.expected / 2
        out, inside = ~self.included, self.included
        errors = int(above[out].sum()), int(out.sum()), int((~above[inside]).sum()), int(inside.sum())
        return gaussian_epsilon(separation(*errors, confidence), self.delta)


@dataclass(frozen=True)
class Check:
    """One claim, the observation, and whether the claim holds."""

    name: str
    claim: str
    seen: str
    held: bool


def check(first: Sighting, silent: Sighting) -> list[Check]:
    """Check the claims against the observations at one site, and its noise against that of a noise-only site."""
    seen = [_formal(first), _implementation(first)]
    return [*seen, _noise(first), _clipping(first), _sampling(first), _steps(first), *_reuse(first, silent)]


def noise_ratio(sighting: Sighting, confidence: float) -> tuple[float, float, float]:
    """Return the ratio of measured to claimed noise: lower limit, estimate, upper limit."""
    low, middle, high = scale_interval(sighting.scores[~sighting.included], confidence)
    noise = sighting.noise or math.inf
    return low / noise, middle / noise, high / noise


def contribution(sighting: Sighting) -> tuple[float, float]:
    """Return a record's contribution per step, in multiples of C, and its standard error.

    Least squares of scores on the number of steps that each canary was seen in.
    """
    seen = sighting.batches[:, sighting.included].sum(axis=0)
    squares = float((seen**2).sum())
    if squares == 0:
        return 0.0, 0.0
    return float(seen @ sighting.scores[sighting.included]) / squares, sighting.noise / math.sqrt(squares)


def _formal(sighting: Sighting) -> Check:
    """Refute ε if the bound exceeds it, and not by chance.

    At 99.999 % the bound would say nothing: with this many canaries, its term in δ alone is larger than the allowed
    error. So both must exceed ε: the reported bound, and a 99.999 % bound without that term, against lucky guesses.
    """
    bound = sighting.formal(CONFIDENCE, sighting.delta)
    sure = min(bound, sighting.formal(1 - FALSE_ALARM, 0.0))
    return Check("formal bound", f"ε {sighting.claimed:.2f}", f"ε ≥ {bound:.2f} at 95 %", sure <= sighting.claimed)


def _implementation(sighting: Sighting) -> Check:
    bound, sure = sighting.gaussian(CONFIDENCE), sighting.gaussian(1 - FALSE_ALARM)
    seen = f"ε ≥ {bound:.2f} at 95 %, {sure:.2f} at 99.999 %"
    return Check("implementation", f"ε {sighting.claimed:.2f}", seen, sure <= sighting.claimed)


def _noise(sighting: Sighting) -> Check:
    low, middle, high = noise_ratio(sighting, 1 - FALSE_ALARM)
    seen = f"{middle:.3f} of it ({low:.3f} to {high:.3f})"
    return Check("noise", f"deviation {sighting.noise:.2f} C", seen, low <= 1 <= high)


def _clipping(sighting: Sighting) -> Check:
    largest, error = contribution(sighting)
    margin = NormalDist().inv_cdf(1 - FALSE_ALARM / 2) * error + 1e-3  # rounding and float32 are below a thousandth
    return Check("clipping", "a record counts 1 C", f"{largest:.4g} ± {margin:.2g}", abs(largest - 1) <= margin)


def _sampling(sighting: Sighting) -> Check:
    """Check batches against Poisson sampling: the rate, the spread of steps per record, the spread of batch sizes."""
    batches = sighting.batches[:, sighting.included].astype(np.int64)
    steps, size = batches.shape
    rate = sighting.charged[0].sample_rate
    total, uses, sizes = int(batches.sum()), batches.sum(axis=0), batches.sum(axis=1)
    chances = {
        "rate": rate_chance(total, steps * size, rate),
        "steps a record is in": dispersion_chance(uses, steps, rate),
        "sizes of batches": dispersion_chance(sizes, size, rate),
    }
    one_rate = len({mechanism.sample_rate for mechanism in sighting.charged}) == 1
    worst = min(chances, key=lambda name: chances[name])
    fraction = total / max(1, steps * size)
    seen = f"rate {fraction:.4f}, batches {sizes.min(initial=size)}–{sizes.max(initial=0)}"
    if chances[worst] <= FALSE_ALARM / len(chances):
        seen += f"; p = {chances[worst]:.1g} for {worst}"
    held = one_rate and steps > 0 and chances[worst] > FALSE_ALARM / len(chances)
    return Check("sampling", f"Poisson, rate {rate:g}", seen, held)


def _steps(sighting: Sighting) -> Check:
    steps = len(sighting.batches)
    return Check("steps", f"{sighting.steps} in the ledger", f"{steps} taken", steps == sighting.steps)


def _reuse(first: Sighting, silent: Sighting) -> list[Check]:
    """Check that noise is independent between rounds and sites, in the canaries' coordinates and in every tensor.

    Only one of two compared rows needs to be pure noise: independent rows do not correlate with it.
    """
    out = ~first.included
    own = [(first.own[name][:, :LONGEST], value[:, :LONGEST]) for name, value in silent.own.items()]
    own = [pair for pair in own if pair[0].shape[1] > 2]  # noqa: PLR2004 - two values are always collinear
    rounds = [first.moved[:, out], *(noise for _, noise in own)]
    sites = [(first.moved[:, out], silent.moved[:, out]), *own]
    return [
        independent("other rounds", [largest_correlation(updates) for updates in rounds]),
        independent("another site", [largest_correlation(*series) for series in sites]),
    ]


def independent(name: str, correlations: list[tuple[float, float]]) -> Check:
    """Judge pairs of correlation and probability by the least likely one."""
    largest, chance = min(correlations, key=lambda result: result[1])
    chance = min(1.0, chance * len(correlations))
    seen = f"correlation {largest:.3f} at most (p = {chance:.2g})"
    return Check(name, "independent noise", seen, chance > FALSE_ALARM)
