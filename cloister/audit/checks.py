"""The claims that a run's ε rests on, each held against what canaries show.

The claims are the ledger's: σ, sampling rate and steps of every charge. A check fails only on what a sound pipeline
would show in fewer than one of 100,000 audits, so that all of them together give fewer than one false alarm in 10,000.
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

CONFIDENCE = 0.95  # of the bounds that are reported
FALSE_ALARM = 1e-5  # of each check
LONGEST = 1 << 16  # values of a tensor that are compared with others
GUESSED = 20  # one canary in so many is guessed at: those that stand out most


@dataclass(frozen=True)
class Sighting:
    """What was seen of one site's run with m canaries, over R rounds and S steps."""

    included: NDArray[np.bool_]  # (m,): which canaries' coins said that they are in
    moved: NDArray[np.float64]  # (R, m): how far each round moved their coordinates, in whole clipped gradients
    batches: NDArray[np.bool_]  # (S, m): which were in the batch of each step that was taken
    charged: tuple[Mechanism, ...]  # what the ledger has
    delta: float
    own: dict[str, NDArray[np.float64]]  # (R, d) for each of the other task's tensors: how far rounds moved it

    @property
    def scores(self) -> NDArray[np.float64]:
        """What the final model alone tells, `(m,)`: how often each canary seems to have counted."""
        return np.asarray(self.moved.sum(axis=0))

    @property
    def steps(self) -> int:
        """How many steps the ledger has."""
        return sum(each.steps for each in self.charged)

    @property
    def expected(self) -> float:
        """How often a canary that is in should have counted."""
        return math.fsum(each.steps * each.sample_rate for each in self.charged)

    @property
    def noise(self) -> float:
        """The deviation of a coordinate that the ledger's noise makes."""
        return math.sqrt(math.fsum(each.steps * each.noise_multiplier**2 for each in self.charged))

    @cached_property
    def claimed(self) -> float:
        """ε by the accountant."""
        return epsilon(self.charged, self.delta)

    def formal(self, confidence: float, delta: float) -> float:
        """Return ε that Steinke's bound refutes. How many are guessed at is fixed beforehand."""
        order, half = np.argsort(-self.scores, kind="stable"), max(1, self.included.size // GUESSED // 2)
        right = self.included[order[:half]].sum() + (~self.included[order[-half:]]).sum()
        return one_run_epsilon(self.included.size, 2 * half, int(right), delta, confidence)

    def gaussian(self, confidence: float) -> float:
        """Return ε that errors of telling in from out refute, for a mechanism of Gaussian shape.

        The threshold is fixed beforehand, from the claims: halfway to what a canary should have counted.
        """
        above = self.scores > self.expected / 2
        out, inside = ~self.included, self.included
        errors = int(above[out].sum()), int(out.sum()), int((~above[inside]).sum()), int(inside.sum())
        return gaussian_epsilon(separation(*errors, confidence), self.delta)


@dataclass(frozen=True)
class Check:
    """One claim, what was seen of it, and whether it stands."""

    name: str
    claim: str
    seen: str
    held: bool


def check(first: Sighting, silent: Sighting) -> list[Check]:
    """Hold the claims against what was seen at one site; and noise against that of a second one with nothing else."""
    seen = [_formal(first), _implementation(first)]
    return [*seen, _noise(first), _clipping(first), _sampling(first), _steps(first), *_reuse(first, silent)]


def noise_ratio(sighting: Sighting, confidence: float) -> tuple[float, float, float]:
    """Return the noise's measured scale over the claimed one: lower limit, estimate, upper limit."""
    low, middle, high = scale_interval(sighting.scores[~sighting.included], confidence)
    noise = sighting.noise or math.inf
    return low / noise, middle / noise, high / noise


def contribution(sighting: Sighting) -> tuple[float, float]:
    """Return by how many times C a record counts in each step that it is in, and the error of that.

    Least squares of scores on the steps that each canary was seen in.
    """
    seen = sighting.batches[:, sighting.included].sum(axis=0)
    squares = float((seen**2).sum())
    if squares == 0:
        return 0.0, 0.0
    return float(seen @ sighting.scores[sighting.included]) / squares, sighting.noise / math.sqrt(squares)


def _formal(sighting: Sighting) -> Check:
    """Refute ε if the bound passes it, and not by chance.

    At 99.999 % the bound would be silent: its term in δ alone is more than that, for so many canaries. So the bound
    counts as reported, and beside it one without that term, which a lucky guesser does not pass.
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
    found, error = contribution(sighting)
    margin = NormalDist().inv_cdf(1 - FALSE_ALARM / 2) * error + 1e-3  # rounding and float32 are below a thousandth
    return Check("clipping", "a record counts 1 C", f"{found:.4g} ± {margin:.2g}", abs(found - 1) <= margin)


def _sampling(sighting: Sighting) -> Check:
    """Hold batches against Poisson sampling: the rate, how evenly canaries take part, how much batches differ."""
    batches = sighting.batches[:, sighting.included].astype(np.int64)
    steps, size = batches.shape
    rate = sighting.charged[0].sample_rate
    total, each, sizes = int(batches.sum()), batches.sum(axis=0), batches.sum(axis=1)
    chances = {
        "rate": rate_chance(total, steps * size, rate),
        "steps a record is in": dispersion_chance(each, steps, rate),
        "sizes of batches": dispersion_chance(sizes, size, rate),
    }
    one_rate = len({one.sample_rate for one in sighting.charged}) == 1
    worst = min(chances, key=lambda name: chances[name])
    share = total / max(1, steps * size)
    seen = f"rate {share:.4f}, batches {sizes.min(initial=size)}–{sizes.max(initial=0)}"
    if chances[worst] <= FALSE_ALARM / len(chances):
        seen += f"; p = {chances[worst]:.1g} for {worst}"
    held = one_rate and steps > 0 and chances[worst] > FALSE_ALARM / len(chances)
    return Check("sampling", f"Poisson, rate {rate:g}", seen, held)


def _steps(sighting: Sighting) -> Check:
    taken = len(sighting.batches)
    return Check("steps", f"{sighting.steps} in the ledger", f"{taken} taken", taken == sighting.steps)


def _reuse(first: Sighting, silent: Sighting) -> list[Check]:
    """Hold noise against that of other rounds and of another site, in canaries' coordinates and in every tensor.

    Of two rows, one that is noise alone is enough: what is independent of it does not correlate with it.
    """
    out = ~first.included
    own = [(first.own[name][:, :LONGEST], each[:, :LONGEST]) for name, each in silent.own.items()]
    own = [pair for pair in own if pair[0].shape[1] > 2]  # noqa: PLR2004 - two values always lie on a line
    rounds = [first.moved[:, out], *(noise for _, noise in own)]
    sites = [(first.moved[:, out], silent.moved[:, out]), *own]
    return [
        independent("other rounds", [largest_correlation(each) for each in rounds]),
        independent("another site", [largest_correlation(*each) for each in sites]),
    ]


def independent(name: str, correlations: list[tuple[float, float]]) -> Check:
    """Judge correlations and their chances by the least likely."""
    largest, chance = min(correlations, key=lambda each: each[1])
    chance = min(1.0, chance * len(correlations))
    seen = f"correlation {largest:.3f} at most (p = {chance:.2g})"
    return Check(name, "independent noise", seen, chance > FALSE_ALARM)
