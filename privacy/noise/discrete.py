"""Sample the discrete Gaussian distribution exactly: integers x with probability proportional to exp(−x²/2s²).

Canonne, Kamath and Steinke (2020, arXiv 2004.00010) define it and show that it is as private as the continuous one.

Noise that is computed in floating point and then rounded has gaps and steps that reveal the value it was added to
(Mironov 2012). This module outputs only integers, and floating point decides only where its error cannot matter. The
rest, one proposal in 10¹², is decided with as many random bits and decimals as it takes.

A proposal is drawn uniformly from −12s … 12s and accepted with probability exp(−x²/2s²). The untruncated distribution
has less than 2⁻¹⁰⁰ of its mass beyond 12s (`privacy.noise.noise_shares` accounts for it): no noise overflows a field.

    >>> from privacy.noise.randomness import Randomness
    >>> discrete_gaussian(Randomness.seeded(1, "noise"), 6, 10_000).tolist()
    [9, -70, -160, -41, -73, -61]
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from privacy.noise.randomness import Randomness

_SCALES = 12  # the noise's range, in s
_BITS = 53  # in the first comparison
_MORE_BITS = 64
_UNSURE = 2.0**-40  # exp(−y) in doubles is off by at most 80 · 2⁻⁵³ for y ≤ 72, in any library
_PROPOSALS = 24 / math.sqrt(2 * math.pi)  # per accepted one


def reach(variance: int) -> int:
    """Return the largest possible noise: 12s, rounded down."""
    return math.isqrt(_SCALES**2 * variance)


def discrete_gaussian(randomness: Randomness, count: int, variance: int) -> NDArray[np.int64]:
    """Return `(count,)` independent integers from −12s … 12s, for s² = `variance` ≥ 1."""
    kept, most = [np.empty(0, np.int64)], reach(variance)
    missing = count
    while missing > 0:
        tries = int(missing * _PROPOSALS) + 16
        proposed = randomness.residues(tries, 2 * most + 1).astype(np.int64) - most
        kept.append(proposed[_accepted(proposed, variance, randomness)][:missing])
        missing -= kept[-1].size
    return np.concatenate(kept)


def _accepted(proposed: NDArray[np.int64], variance: int, randomness: Randomness) -> NDArray[np.bool_]:
    """Return which proposals to accept `(n,)`: each with probability exp(−x²/2s²)."""
    drawn = randomness.uniform(proposed.size)  # the first bits of a number between 0 and 1
    chances = np.exp(-(proposed * proposed) / (2 * variance))
    accepted: NDArray[np.bool_] = drawn < chances
    for place in np.flatnonzero(np.abs(drawn - chances) <= _UNSURE):
        first = int(drawn[place] * 2.0**_BITS)
        accepted[place] = _is_below(first, Fraction(int(proposed[place]) ** 2, 2 * variance), randomness)
    return accepted


def _is_below(first: int, exponent: Fraction, randomness: Randomness) -> bool:
    """Return whether a uniform number in [0, 1) with these first 53 bits is below exp(−exponent).

    Each iteration refines the number and the power. The loop terminates with probability 1.
    """
    bits, number = _BITS, first
    while True:
        with localcontext() as context:
            context.prec = digits = 20 + bits // 3
            power = Fraction((Decimal(-exponent.numerator) / exponent.denominator).exp())
        off = power / 10 ** (digits - 3)  # quotient (at most 72) and exp are each correctly rounded
        if Fraction(number + 1, 1 << bits) <= power - off:
            return True
        if Fraction(number, 1 << bits) >= power + off:
            return False
        number = number << _MORE_BITS | int.from_bytes(randomness.bytes(_MORE_BITS // 8), "little")
        bits += _MORE_BITS
