"""Draw random numbers from a cipher: AES-256 in counter mode under a key that is used once.

Differential privacy is only as good as its noise. `torch.randn` and numpy draw from generators whose state can be
recovered from their output, and whose noise repeats under a fixed seed. So noise, sampling and rounding all use this
module: each site takes a new key from the operating system for every round.

`Randomness.seeded` exists only for repeatable runs WITHOUT privacy; a manifest with both a seed and noise is refused.

    >>> a = Randomness.seeded(7, "north", 1, "rounding")
    >>> b = Randomness.seeded(7, "north", 1, "rounding")
    >>> bool((a.uniform(3) == b.uniform(3)).all())
    True
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from itertools import count as from_zero
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR, GCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from cryptography.hazmat.primitives.ciphers import CipherContext
    from numpy.typing import NDArray

_KEY_BYTES = 32
_BLOCK = 1 << 16  # values drawn at a time
_AES_BLOCK, _NONCE = 16, 12  # bytes
_BY_CTR = 2 * _AES_BLOCK  # bytes of each nonce's blocks that GCM keeps for itself
_BY_GCM = (1 << 36) - _BY_CTR  # the rest: as many as GCM encrypts under a nonce
_ZEROS = memoryview(bytes(8 * _BLOCK))


class _Keystream:
    """The output of AES-256 in counter mode from a zero block, over zeros.

    OpenSSL computes GCM twice as fast as counter mode alone, although GCM encrypts in counter mode, too (NIST SP
    800-38D): its counter's first 12 bytes are the nonce, the others count from 2. So GCM computes all but two of every
    2³² blocks; its tag is not needed.
    """

    def __init__(self, key: bytes) -> None:
        self._ciphers = self._in_order(AES(key))
        self._cipher, self._left = next(self._ciphers)

    @staticmethod
    def _in_order(key: AES) -> Iterator[tuple[CipherContext, int]]:
        """Yield ciphers, each with the number of bytes that are to be taken from it."""
        for number in from_zero():
            nonce = number.to_bytes(_NONCE, "big")
            yield Cipher(key, CTR(nonce + bytes(_AES_BLOCK - _NONCE))).encryptor(), _BY_CTR
            yield Cipher(key, GCM(nonce)).encryptor(), _BY_GCM

    def _next(self, most: int) -> tuple[CipherContext, int]:
        """Return the cipher of the next bytes, and how many to take from it."""
        if not self._left:
            self._cipher, self._left = next(self._ciphers)
        taken = min(most, self._left)
        self._left -= taken
        return self._cipher, taken

    def update(self, zeros: bytes) -> bytes:
        """Return the next bytes, as many as there are zeros."""
        parts = list[bytes]()
        while zeros:
            cipher, taken = self._next(len(zeros))
            parts.append(cipher.update(zeros[:taken]))
            zeros = zeros[taken:]
        return b"".join(parts)

    def update_into(self, zeros: memoryview, into: memoryview) -> None:
        """Write the next bytes, as many as there are zeros; `into` is longer by a block, as the ciphers require."""
        while zeros:
            cipher, taken = self._next(len(zeros))
            cipher.update_into(zeros[:taken], into)
            zeros, into = zeros[taken:], into[taken:]


@dataclass(frozen=True)
class _Room:
    """Memory in which to draw n pairs of Gaussian samples."""

    output: NDArray[np.uint8]  # the cipher's output, and its spare block
    logarithms: NDArray[np.float64]  # (n,)
    numbers: NDArray[np.float32] | NDArray[np.float64]  # (2, n)

    @classmethod
    def of(cls, number: type[np.float32 | np.float64], pairs: int) -> Self:
        numbers: Any = np.empty((2, pairs), number)  # the type of numbers is one of two
        return cls(np.empty(pairs * (8 + numbers.itemsize) + _AES_BLOCK, np.uint8), np.empty(pairs), numbers)

    def part(self, pairs: int) -> _Room:
        """Return the part of it that fewer pairs need."""
        return _Room(self.output, self.logarithms[:pairs], self.numbers[:, :pairs])

    @property
    def words(self) -> NDArray[np.int64]:
        """The words from which radii are drawn, `(n,)`."""
        return self.output[: 8 * self.logarithms.size].view("<i8")

    @property
    def angles(self) -> NDArray[np.int32] | NDArray[np.int64]:
        """The words from which angles are drawn, `(n,)`, of as many bits as the numbers."""
        size, width = self.logarithms.size, self.numbers.itemsize
        return self.output[8 * size : (8 + width) * size].view(f"<i{width}")


class Randomness:
    """A stream of random numbers. Not safe to share between threads."""

    def __init__(self, key: bytes) -> None:
        self.restart(key)
        self._kept: _Room | None = None

    @classmethod
    def fresh(cls) -> Self:
        """Start a stream under a new key from the operating system."""
        return cls(os.urandom(_KEY_BYTES))

    @classmethod
    def derived(cls, secret: bytes, info: bytes) -> Self:
        """Start the stream that a secret and `info` determine (HKDF with SHA-256, RFC 5869, no salt)."""
        return cls(HKDF(hashes.SHA256(), _KEY_BYTES, salt=None, info=info).derive(secret))

    @classmethod
    def seeded(cls, seed: int, *labels: str | int) -> Self:
        """Start the stream of a public seed and labels. It gives no privacy."""
        return cls(sha256(repr((seed, *labels)).encode()).digest())

    def renew(self) -> bytes:
        """Go on under a new key, drawn from this stream, and return it. Nothing drawn before follows from it."""
        key = self.bytes(_KEY_BYTES)
        self.restart(key)
        return key

    def restart(self, key: bytes) -> None:
        """Go on with the start of a key's stream."""
        self._stream = _Keystream(key)

    def bytes(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        return self._stream.update(bytes(count))

    def residues(self, count: int, modulus: int) -> NDArray[np.uint64]:
        """Return `(count,)` uniform integers below `modulus`: the upper bits of words, with rejection."""
        shift, residues = np.uint64(64 - modulus.bit_length()), np.empty(0, dtype=np.uint64)
        while residues.size < count:
            words = np.frombuffer(self.bytes(8 * (count - residues.size)), dtype="<u8") >> shift
            if words.max() >= modulus:
                words = words[words < modulus]
            residues = np.concatenate([residues, words]) if residues.size else words
        return residues

    def uniform32(self, count: int) -> NDArray[np.float32]:
        """Return `(count,)` uniform multiples of 2⁻²⁴ in [0, 1): the finest even grid that float32 can hold."""
        drawn = np.empty(count, np.float32)
        self.fill_uniform32(drawn)
        return drawn

    def fill_uniform32(self, drawn: NDArray[np.float32]) -> None:
        """Overwrite `(n,)` contiguous numbers by what `uniform32` returns, in memory that is kept from call to call."""
        for start in range(0, drawn.size, _BLOCK):
            block = drawn[start : start + _BLOCK]
            output = self._room(np.float32, (block.size + 1) // 2).output  # more than 4 bytes for each value
            self._stream.update_into(_ZEROS[: block.nbytes], output.data)
            words = output[: block.nbytes].view("<u4")
            np.right_shift(words, 8, out=words)
            np.copyto(block, words)
            block *= np.float32(2.0**-24)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return `(count,)` uniform multiples of 2⁻⁵³ in [0, 1)."""
        words = np.frombuffer(self.bytes(8 * count), dtype="<u8") >> np.uint64(11)
        return words.astype(np.float64) * 2.0**-53

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Return `(count,)` samples of N(0, 1) in double precision; see `fill_gaussian`."""
        drawn = np.empty(count)
        self.fill_gaussian(drawn)
        return drawn

    def fill_gaussian(self, drawn: NDArray[np.float32] | NDArray[np.float64], deviation: float = 1.0) -> None:
        """Overwrite `(n,)` numbers with samples of N(0, deviation²), by Box and Muller (1958).

        Radii √(−2 ln u) use u in (0, 1] in steps of 2⁻⁶², as far as a double can resolve them, and logarithms in double
        precision: no tail is cut off, and no sample is zero because its radius is. The rest is computed in the
        precision of `drawn`, from angles of as many bits, which are rounded to it. In single precision, a sample
        is wrong by at most 2⁻²¹ of its radius, of which rounding a finished sample makes up to 2⁻²⁴.

        The work is block by block, in memory that is kept from call to call: the system takes longer to provide new
        memory than the processor takes to draw. Sine and cosine, two functions for two samples, are faster than the
        single tangent of half the angle: numpy has vector code for them in single precision on every processor, and for
        the tangent only where there is AVX-512.
        """
        number = drawn.dtype.type
        for start in range(0, drawn.size, _BLOCK):
            block = drawn[start : start + _BLOCK]
            half = (block.size + 1) // 2
            room = self._room(number, half)
            self._stream.update_into(_ZEROS[: half * (8 + drawn.itemsize)], room.output.data)
            words, logarithms, (radius, angle) = room.words, room.logarithms, room.numbers
            words |= 1  # never zero, and negative as often as positive
            np.copyto(logarithms, words)
            np.multiply(logarithms, 2.0**-63, out=logarithms)
            np.log2(np.abs(logarithms, out=logarithms), out=logarithms)
            np.copyto(radius, logarithms, casting="same_kind")
            np.multiply(radius, number(-2.0 * np.log(2.0)), out=radius)
            np.sqrt(radius, out=radius)
            np.multiply(radius, number(deviation), out=radius)  # its square might be no number of single precision
            np.copyto(angle, room.angles, casting="same_kind")
            np.multiply(angle, number(np.pi * 2.0 ** (1 - 8 * drawn.itemsize)), out=angle)
            sines, cosines = block[half:], block[:half]
            np.multiply(np.cos(angle, out=cosines), radius, out=cosines)
            few = sines.size
            np.multiply(np.sin(angle[:few], out=sines), radius[:few], out=sines)

    def _room(self, number: type[np.float32 | np.float64], half: int) -> _Room:
        """Return memory in which to draw `half` pairs of samples, at most `_BLOCK / 2`."""
        kept = self._kept
        if kept is None or kept.numbers.dtype != number or kept.logarithms.size < half:
            kept = self._kept = _Room.of(number, half)
        return kept if kept.logarithms.size == half else kept.part(half)
