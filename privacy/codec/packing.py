"""Pack real numbers as integers whose sums are exact, several to a coefficient, and unpack their sum.

A homomorphic sum of integers is exact, so every site decrypts the same bits. CKKS would add an error that differs at
every decryption, and it is unsafe once results are shared (Li and Micciancio, eprint 2020/1533). The price is a fixed
range, `update_bound`, and rounding, which is stochastic and so unbiased.

A coefficient has 48 bits: 3 fields of 16 (`compact`), 2 of 24 (`precise`) or 4 of 12 (`dense`). For at most K sites,
a field of B bits holds L = ⌊(2^B − 2)/K⌋ + 1 levels, so that K values add up to at most 2^B − 2: no field carries into
the next, and every sum of coefficients stays below the plaintext modulus t. The last coefficient of each ciphertext is
reserved for the tag.

For an update x of weight w ≤ w_max:   u = (w·x/(bound·w_max) + 1)·(L − 1)/2
                                       field = ⌊u + U[0,1)⌋, clipped to 0 … L − 1
Over K' contributors:   Σ w·x = (Σ field − K'(L − 1)/2)·2·bound·w_max/(L − 1).

    >>> packing = Packing.of("compact", cohort=3, update_bound=1.0, max_weight=1.0)
    >>> packing.levels, packing.ciphertexts(1_000_000)
    (21845, 82)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from privacy.codec.update import PackedUpdate, Update, is_finite
from privacy.errors import ConfigError, MalformedError, ProtocolError
from privacy.noise.discrete import discrete_gaussian, reach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Self

    from numpy.typing import NDArray

    from privacy.codec.update import PrivateUpdate
    from privacy.ledger.ledger import Charge
    from privacy.noise.randomness import Randomness

RING_DEGREE = 4096
PLAIN_MODULUS = (1 << 48) - 59  # the largest prime below 2^48
_USABLE = RING_DEGREE - 1

BLOCK = 32  # ciphertexts that are processed and sent together: at most one mebibyte

Profile = Literal["compact", "precise", "dense"]
_FIELDS: dict[Profile, tuple[int, int]] = {"compact": (3, 16), "precise": (2, 24), "dense": (4, 12)}
_MIN_LEVELS = 16
_SMALLEST, _LARGEST = 1e-30, 1e30  # outside, float32 updates lose precision or overflow


@dataclass(frozen=True)
class Packing:
    """How the updates of one run become integers. The manifest fixes it, so it is the same at every site."""

    fields: int
    bits: int
    cohort: int  # the most sites that may ever be summed
    update_bound: float
    max_weight: float

    @classmethod
    def of(cls, profile: Profile, *, cohort: int, update_bound: float, max_weight: float) -> Self:
        """Return the packing of a profile.

        Raises:
            ConfigError: if cohort, bound or weight leave no room in a field.
        """
        fields, bits = _FIELDS[profile]
        return cls(fields, bits, cohort, update_bound, max_weight)

    def __post_init__(self) -> None:
        """Check that no sum can carry or wrap.

        Raises:
            ConfigError: if it could.
        """
        if self.cohort < 1 or self.levels < _MIN_LEVELS:
            most = ((1 << self.bits) - 2) // (_MIN_LEVELS - 1)
            msg = f"fields of {self.bits} bits have room for 1 to {most} sites, not {self.cohort}; use `precise`"
            raise ConfigError(msg)
        if not all(_SMALLEST <= value <= _LARGEST for value in (self.update_bound, self.max_weight)):
            msg = (
                f"update_bound {self.update_bound:g} and weight {self.max_weight:g} must be between "
                f"{_SMALLEST:g} and {_LARGEST:g}"
            )
            raise ConfigError(msg)

    @property
    def levels(self) -> int:
        """How many values one site's field can take, L."""
        return ((1 << self.bits) - 2) // self.cohort + 1

    @property
    def slots(self) -> int:
        """How many parameters fit into one ciphertext."""
        return self.fields * _USABLE

    def ciphertexts(self, size: int) -> int:
        """How many ciphertexts an update of `size` parameters takes."""
        return -(-size // self.slots)

    def unit(self, weight: float) -> float:
        """The step between two levels, in an update of this weight."""
        return 2 * self.update_bound * self.max_weight / (self.levels - 1) / weight

    def max_error(self, weights: Sequence[float]) -> float:
        """The largest error of the mean that rounding can cause: every contributor off by one level."""
        return len(weights) * self.unit(1.0) / sum(weights)


class PackedStream(PackedUpdate):
    """A packed update that gives, once all its blocks are taken, the part of the update that they do not carry."""

    def __init__(self, blocks: Iterator[NDArray[np.uint64]], charge: Charge, residual: NDArray[np.float32]) -> None:
        super().__init__(self._until_used_up(blocks), charge)
        self._residual, self._used_up = residual, False

    def _until_used_up(self, blocks: Iterator[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint64]]:
        yield from blocks
        self._used_up = True

    @property
    def residual(self) -> NDArray[np.float32]:
        """What clipping and rounding cut off, `(size,)`: the update minus what its blocks decode to.

        It is added to the next update, so that over a run nothing is lost, only delayed (error feedback; Seide et al.
        2014, Karimireddy et al. 2019). It is computed after the noise, so it costs no privacy.

        Raises:
            ProtocolError: if some blocks have not been taken.
        """
        if not self._used_up:
            msg = "the residual of an update is known only after all its blocks have been taken; take them first"
            raise ProtocolError(msg)
        return self._residual


def pack(update: PrivateUpdate, weight: float, packing: Packing, randomness: Randomness) -> PackedStream:
    """Weight, round stochastically to levels, clip to the existing levels and pack, as the blocks are taken.

    The stream takes over the update's memory: `update.vector` no longer holds the update afterwards.

    Raises:
        MalformedError: if the weight is not in (0, w_max] or a value is not finite.
    """
    _check(update.vector, weight, packing)
    levels_of = partial(_keeping_the_rest, unit=packing.unit(weight), packing=packing, randomness=randomness)
    return PackedStream(_packed(update.vector, packing, levels_of), update.charge, update.vector)


def pack_with_share(
    update: Update, charge: Charge, weight: float, packing: Packing, randomness: Randomness, variance: int
) -> PackedUpdate:
    """Pack an update that has no noise yet, and add this site's share of the sum's noise to its levels.

    The share's variance is in levels² (`privacy.noise.noise_shares`); `randomness` must be fresh. The update is clipped
    to levels that leave room for the noise on either side, so nothing is clipped after the noise is added and the sum
    is exact. There is no residual, since it would be unprotected data: zeros overwrite the update in memory.

    Raises:
        MalformedError: if the weight is not in (0, w_max] or a value is not finite.
    """
    _check(update.vector, weight, packing)
    levels_of = partial(_noised, unit=packing.unit(weight), packing=packing, randomness=randomness, variance=variance)
    return PackedUpdate(_packed(update.vector, packing, levels_of), charge)


def _check(vector: NDArray[np.float32], weight: float, packing: Packing) -> None:
    if not 0 < weight <= packing.max_weight:
        msg = f"the weight {weight} is not in (0, {packing.max_weight}], the range that the manifest fixes"
        raise MalformedError(msg)
    if not is_finite(vector):
        msg = "the update contains values that are not finite; nothing was encrypted"
        raise MalformedError(msg)


def _packed(
    vector: NDArray[np.float32],
    packing: Packing,
    levels_of: Callable[[NDArray[np.float32]], NDArray[np.float64] | NDArray[np.int64]],
) -> Iterator[NDArray[np.uint64]]:
    starts = range(0, vector.size, packing.slots)
    for first in range(0, len(starts), BLOCK):
        chosen = starts[first : first + BLOCK]
        block = np.zeros((len(chosen), RING_DEGREE), dtype=np.uint64)
        # One ciphertext at a time, so that its data stay in the processor's cache.
        for row, start in zip(block, chosen, strict=True):
            row[:_USABLE] = _joined(levels_of(vector[start : start + packing.slots]), packing)
        yield block


def _keeping_the_rest(
    values: NDArray[np.float32], unit: float, packing: Packing, randomness: Randomness
) -> NDArray[np.float64]:
    levels = _round(values, unit, packing, randomness, 0)
    values -= ((levels - (packing.levels - 1) / 2) * unit).astype(np.float32)
    return levels


def _noised(
    values: NDArray[np.float32], unit: float, packing: Packing, randomness: Randomness, variance: int
) -> NDArray[np.int64]:
    levels = _round(values, unit, packing, randomness, reach(variance)).astype(np.int64)
    values[:] = 0
    levels += discrete_gaussian(randomness, values.size, variance)
    return levels


def _round(
    values: NDArray[np.float32], unit: float, packing: Packing, randomness: Randomness, margin: int
) -> NDArray[np.float64]:
    """Return the levels of values `(n,)`: integers from `margin` to L − 1 − `margin`."""
    top = packing.levels - 1
    scaled = values.astype(np.float64)
    scaled /= unit
    scaled += top / 2
    scaled += randomness.uniform32(values.size)
    # In floating point, u + U may fall just below 0 or round up to top + 1; clipping first keeps fields from carrying.
    return np.floor(np.clip(scaled, margin, top - margin, out=scaled), out=scaled)


def _joined(levels: NDArray[np.float64] | NDArray[np.int64], packing: Packing) -> NDArray[np.uint64]:
    """Return the coefficients `(4095,)` that hold up to `slots` levels."""
    fields = np.zeros(packing.slots, dtype=np.uint64)
    fields[: levels.size] = levels.astype(np.uint64)
    blocks = fields.reshape(packing.fields, _USABLE)
    coefficients: NDArray[np.uint64] = blocks[0]
    for k in range(1, packing.fields):
        coefficients |= blocks[k] << np.uint64(packing.bits * k)
    return coefficients


def unpack(blocks: Iterable[NDArray[np.uint64]], size: int, weights: Sequence[float], packing: Packing) -> Update:
    """Turn a decrypted sum, block by block, into the weighted mean of the contributors' updates, `(size,)`.

    Raises:
        MalformedError: if the sum has the wrong size, a field holds more than these contributors can reach, or an
            unused field is not zero.
    """
    top, contributors = packing.levels - 1, len(weights)
    if not 1 <= contributors <= packing.cohort:
        msg = f"a sum over {contributors} sites does not fit this run"
        raise MalformedError(msg)
    weight = math.fsum(weights)  # exact, so that their order does not matter
    mean, done = np.empty(size, dtype=np.float32), 0
    for block in blocks:
        fields = _separated(block, packing)
        used, unused = np.split(fields, [min(fields.size, size - done)])
        if (
            int(used.max(initial=0)) > contributors * top
            or unused.any()
            or len(block) != packing.ciphertexts(used.size)
        ):
            msg = "the decrypted sum contains values that these contributors cannot have sent; the sum was altered"
            raise MalformedError(msg)
        mean[done : done + used.size] = decoded(used, contributors, weight, packing)
        done += used.size
    if done != size:
        msg = f"a sum of {done} values does not fit this run's {size}"
        raise MalformedError(msg)
    return Update(mean)


def decoded(levels: NDArray[np.uint64], contributors: int, weight: float, packing: Packing) -> NDArray[np.float64]:
    """Return the weighted mean that a sum of levels `(n,)` stands for, `(n,)`.

    Args:
        levels: the sum of the contributors' levels.
        contributors: how many updates were added.
        weight: the sum of their weights.
        packing: the packing of these updates.
    """
    unit = packing.unit(1.0) / weight
    return (levels.astype(np.float64) - contributors * (packing.levels - 1) / 2) * unit


def half_levels(block: NDArray[np.uint64], contributors: int, packing: Packing) -> NDArray[np.float64]:
    """Return the values `(n·slots,)` of a sum of packed updates in half levels: integers, with 0 for zero.

    Args:
        block: a block `(n, 4096)` of a sum, as `unpack` takes it, or of one update.
        contributors: how many updates were added.
        packing: the packing of these updates.
    """
    return 2 * _separated(block, packing).astype(np.float64) - contributors * (packing.levels - 1)


def _separated(block: NDArray[np.uint64], packing: Packing) -> NDArray[np.uint64]:
    """Return the fields `(n·slots,)` of coefficients `(n, 4096)`, in the order of the parameters."""
    mask = np.uint64((1 << packing.bits) - 1)
    shifts = (np.uint64(packing.bits * k) for k in range(packing.fields))
    return np.stack([block[:, :_USABLE] >> shift & mask for shift in shifts], axis=1).reshape(-1)
