"""Bound ε from below by an attacker's guesses, and test the assumptions from which ε is computed.

An accountant bounds ε from above, for the mechanism that it is told about. These functions bound ε from below, for the
mechanism that actually ran: an attacker who can tell which canaries were in the data refutes every ε too small to
allow that.

- `one_run_epsilon` is rigorous: it holds for any mechanism, from one run (Steinke, Nasr and Jagielski 2023, arXiv
  2305.08846, theorem 5.2). It is far below the true ε, and cannot exceed about ln(guesses).
- `gaussian_epsilon` of `separation` is close to the true ε, but assumes that the mechanism trades false alarms for
  misses as a Gaussian one does (Nasr et al. 2023, arXiv 2302.07956; Dong, Roth and Su 2022). DP-SGD over many steps
  nearly does. It tests an implementation; it proves nothing about other mechanisms.

    >>> round(gaussian_epsilon(1.0, 1e-5), 2)  # of N(0, 1) against N(1, 1)
    4.38
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize, special, stats

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HALVINGS = 40
_FAR = 40.0  # standard deviations: the mass beyond is below any δ


def one_run_epsilon(canaries: int, guesses: int, right: int, delta: float, confidence: float) -> float:
    """Return the largest ε that this number of correct guesses refutes.

    Args:
        canaries: the number of canaries, each included independently with probability ½.
        guesses: for how many of them the attacker guessed whether it was included; fixed before it looked.
        right: the number of correct guesses.
        delta: δ of the claim.
        confidence: the minimum probability that this bound is at most the mechanism's true ε.

    Returns:
        ε, at least 0.
    """
    low, high = 0.0, 1.0
    while _chance(canaries, guesses, right, high, delta) < 1 - confidence:
        low, high = high, 2 * high
    if _chance(canaries, guesses, right, low, delta) >= 1 - confidence:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _chance(canaries, guesses, right, middle, delta) < 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _chance(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return an upper bound on the probability of at least `right` correct guesses under (ε, δ): theorem 5.2, p = ½.

    Pr[Binomial(r, e^ε/(e^ε + 1)) ≥ v] + 2mδ · max over i of Pr[v > Binomial ≥ v − i]/i.
    """
    fraction = float(special.expit(epsilon))
    pure = float(stats.binom.sf(right - 1, guesses, fraction))
    back = np.arange(1, right + 1)
    below = np.cumsum(stats.binom.pmf(right - back, guesses, fraction))
    return min(1.0, pure + 2 * canaries * delta * float((below / back).max(initial=0.0)))


def separation(false_alarms: int, excluded: int, misses: int, included: int, confidence: float) -> float:
    """Return a lower bound on μ, the distance in standard deviations between two normals told apart with these errors.

    Both error rates are bounded by Clopper and Pearson (1934), each with half of the allowed failure probability.
    """
    alarm = _upper_rate(false_alarms, excluded, (1 + confidence) / 2)
    miss = _upper_rate(misses, included, (1 + confidence) / 2)
    return max(0.0, float(special.ndtri(1 - alarm) - special.ndtri(miss)))


def _upper_rate(count: int, of: int, confidence: float) -> float:
    return 1.0 if count >= of else float(stats.beta.ppf(confidence, count + 1, of - count))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the ε at δ between N(0, 1) and N(μ, 1) (Balle and Wang 2018, theorem 8)."""

    def excess(epsilon: float) -> float:
        kept = math.exp(float(special.log_ndtr(mu / 2 - epsilon / mu)))
        return kept - math.exp(epsilon + float(special.log_ndtr(-mu / 2 - epsilon / mu))) - delta

    if mu <= 0 or excess(0.0) <= 0:
        return 0.0
    return float(optimize.brentq(excess, 0.0, mu * mu / 2 + _FAR * mu))


def scale_interval(
    values: NDArray[np.float64], confidence: float, mean: float | None = None
) -> tuple[float, float, float]:
    """Return the lower limit, estimate and upper limit of a standard deviation, from normal values `(n,)`.

    Unless the mean is given, it is estimated, which takes n ≥ 2 values.
    """
    centre, freedom = (float(values.mean()), values.size - 1) if mean is None else (mean, values.size)
    spread = float(((values - centre) ** 2).sum()) / freedom
    high, low = (float(stats.chi2.ppf(fraction, freedom)) for fraction in ((1 + confidence) / 2, (1 - confidence) / 2))
    return math.sqrt(freedom * spread / high), math.sqrt(spread), math.sqrt(freedom * spread / low)


def dispersion_chance(counts: NDArray[np.int64], trials: int, rate: float) -> float:
    """Return the two-sided p-value of the dispersion of counts `(n,)`, each of `trials` independent trials at a rate.

    The mean and variance of the sum of squares, over its expectation, are known exactly. Its distribution is
    approximated by a gamma distribution, which is the limit (Pearson's χ²).
    """
    variance = trials * rate * (1 - rate)
    if variance == 0:
        return float((counts == round(trials * rate)).all())
    squares = float((((counts - trials * rate) ** 2) / variance).sum())
    spread = counts.size * (2 + (1 - 6 * rate * (1 - rate)) / variance)
    return _two_sided(float(stats.gamma.cdf(squares, counts.size**2 / spread, scale=spread / counts.size)))


def rate_chance(count: int, trials: int, rate: float) -> float:
    """Return the two-sided p-value of a count of independent trials at a rate."""
    if rate >= 1:
        return float(count == trials)
    lower, upper = float(stats.binom.cdf(count, trials, rate)), float(stats.binom.sf(count - 1, trials, rate))
    return min(1.0, 2 * min(lower, upper))


def largest_correlation(rows: NDArray[np.float64], others: NDArray[np.float64] | None = None) -> tuple[float, float]:
    """Return the largest correlation between two rows, and its p-value under independent noise.

    Args:
        rows: normal noise `(k, n)`: n values drawn k times.
        others: more rows `(l, n)`; if given, only pairs of one row and one of these count.

    Returns:
        The largest |r|, and its p-value times the number of pairs (Bonferroni), at most 1.
    """
    left, right = _standardised(rows), _standardised(rows if others is None else others)
    pairs = np.abs(left @ right.T)
    correlations = pairs[np.triu_indices(len(left), k=1)] if others is None else pairs.ravel()
    if not correlations.size:
        return 0.0, 1.0
    largest, freedom = min(float(correlations.max()), 1.0), rows.shape[1] - 2
    student = largest * math.sqrt(freedom / max(1 - largest**2, 1e-300))
    return largest, min(1.0, correlations.size * 2 * float(stats.t.sf(student, freedom)))


def sliding_correlation(rows: NDArray[np.float64], others: NDArray[np.float64] | None = None) -> tuple[float, float]:
    """Return the most significant cross-correlation of two pieces of noise at any shift, over all k draws together.

    Reused noise need not recur at the same position: a generator restarted for every layer makes all layers begin with
    the same noise.

    Args:
        rows: noise with mean 0, `(k, n)`: n values drawn k times.
        others: noise of the same draws, `(k, l)`; if None, `rows` is correlated with itself, shifted.

    Returns:
        The |r| that is least likely in independent noise, and its p-value times the number of shifts, at most 1.
    """
    left, right = rows, rows if others is None else others
    size, shifts = left.shape[1] + right.shape[1], np.arange(1 - left.shape[1], right.shape[1])
    spectrum = (np.fft.rfft(left, size).conj() * np.fft.rfft(right, size)).sum(0)
    products = np.fft.irfft(spectrum, size)[shifts]  # of left[i] and right[i + shift]
    start, end = np.maximum(0, shifts), np.minimum(right.shape[1], left.shape[1] + shifts)

    def energy(of: NDArray[np.float64], start: NDArray[np.intp], end: NDArray[np.intp]) -> NDArray[np.float64]:
        sums = np.concatenate([[0.0], np.cumsum((of**2).sum(0))])
        return np.asarray(sums[end] - sums[start])

    lengths = energy(left, start - shifts, end - shifts) * energy(right, start, end)
    freedom = len(left) * (end - start) - 1
    usable = (lengths > 0) & (freedom > 0) & ((others is not None) | (shifts > 0))
    if not usable.any():
        return 0.0, 1.0
    correlations, freedom = np.abs(products[usable]) / np.sqrt(lengths[usable]), freedom[usable]
    misfit = np.maximum(1 - correlations**2, 1e-14)  # the transform's rounding
    least = int(np.argmin(freedom * np.log(misfit)))
    student = float(correlations[least] * np.sqrt(freedom[least] / misfit[least]))
    return min(float(correlations[least]), 1.0), min(
        1.0, correlations.size * 2 * float(stats.t.sf(student, freedom[least]))
    )


def length_at_least(values: NDArray[np.float64], deviation: float, confidence: float) -> float:
    """Return a lower confidence limit on the L2 norm of a vector, from its values plus independent normal noise `(n,)`.

    From Birgé 2001, lemma 8.1: P(χ'² ≥ n + λ + 2√((n + 2λ)t) + 2t) ≤ e^-t for a noncentral χ'² of n degrees.
    """
    if deviation == 0:
        return float(np.linalg.norm(values))
    seen, slack = float((values**2).sum()) / deviation**2, 2 * math.sqrt(-math.log(1 - confidence))
    root = math.sqrt(max(0.0, 2 * seen - values.size)) - slack
    return deviation * math.sqrt(max(0.0, (max(0.0, root) ** 2 - values.size) / 2))


def _standardised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centre each row and scale it to norm 1. Constant rows become 0: they hold no noise to compare."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    length[length == 0] = 1.0
    result: NDArray[np.float64] = centred / length
    return result


def _two_sided(below: float) -> float:
    return 2 * min(below, 1 - below)
