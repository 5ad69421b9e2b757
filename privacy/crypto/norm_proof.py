"""Prove in zero knowledge that the squares of committed integers add up to at most a limit.

Given C = commit(y, ρ), a site proves that it knows k integers y with Σ y[j]² ≤ B. In a group of order ℓ it is easy to
prove Σ y² ≡ B − (a number of n bits) mod ℓ, but that is not enough: two colluding sites could commit to 252-bit numbers
that cancel between them and whose squares have a small sum modulo ℓ. So a proof has two parts.

1. *No wraparound.* The site commits to 128 masks of 120 bits. Then it receives a random binary 128 × k matrix R and
   shows w = R·y + mask. If some y[j] were at least 2¹²⁰ away from 0 modulo ℓ, at most one of the two values of R[i, j]
   could give a w[i] below 2¹²⁰, so the probability that all 128 are below is at most 2⁻¹²⁸. (Gentry, Halevi and
   Lyubashevsky, EUROCRYPT 2022, section 3, bound a norm modulo a number in this way.) Hence Σ y² < k·2²⁴⁰ < ℓ. The
   distributions of w for any two y within the limit are closer than 2⁻⁵⁸.
2. *The limit.* The site commits to the bits b of B − Σ y², and proves for x = (y, masks, b) that

       Σ y² + Σ 2ⁱ·b[i] = B        R·y + mask = w        b[i]² = b[i]

   Each equation but the first is multiplied by a different power of a challenge, and all are added into one equation
   Σ D·x² + Σ l·x = c. The site commits to a uniform s, and to the t₁ and t₀ of
   Σ D·z² + e·Σ l·z = e²·c + e·t₁ + t₀, where z = e·x + s. It answers a challenge e with z, which is uniform whatever
   x is. (This is a Σ-protocol like Schnorr's, J. Cryptology 1991, for a quadratic form. Answers to three challenges
   yield x, or a discrete logarithm.)

Challenges are SHAKE256 of the statement and of everything said before (Fiat and Shamir, CRYPTO 1986). Many proofs are
checked at once by a random linear combination of their equations, so each generator is multiplied only once.
"""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import dataclass
from hashlib import shake_256
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from privacy.crypto.pedersen import BYTES, IDENTITY, ORDER, combine, generator, generators, read_point, read_scalar
from privacy.errors import ConfigError, MalformedError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

    from numpy.typing import NDArray

    Terms = list[tuple[int, bytes]]

ROWS = 128
_MASK_BYTES = 15
_MASKS = 1 << 8 * _MASK_BYTES
_MARGIN = 1 << 60  # at least |R·y| for numbers within a limit, so that w never leaves its range
_MOST_NUMBERS, _MOST_BITS = 1 << 10, 100
_WEIGHTS = 1 << 128
_POINTS, _BLINDINGS = 6, 3


@dataclass(frozen=True)
class Statement:
    """What a proof states: the squares of the committed numbers add up to at most `limit`.

    Raises:
        ConfigError: if no such proof is possible.
    """

    context: bytes  # what the proof is bound to
    site: str
    numbers: int  # k, a multiple of 8
    limit: int  # B

    def __post_init__(self) -> None:
        """Check that no sum of such numbers, masked or not, can wrap around."""
        if self.numbers % 8 or not 0 < self.numbers <= _MOST_NUMBERS or not 0 < self.limit < 1 << _MOST_BITS:
            msg = (
                f"the norm of {self.numbers} numbers cannot be proved to be within {self.limit}; choose a "
                "smaller update_norm"
            )
            raise ConfigError(msg)

    @property
    def bits(self) -> int:
        """How many bits B − Σ y² may take."""
        return self.limit.bit_length()

    @property
    def proof_bytes(self) -> int:
        """The length of a proof in bytes."""
        return BYTES * (_POINTS + self.numbers + ROWS + self.bits + _BLINDINGS) + _MASK_BYTES * ROWS


@dataclass(frozen=True)
class Proof:
    """What a site sends, in order."""

    commitment: bytes  # C, to the numbers
    hidden: bytes  # a commitment to masks and bits
    masked: tuple[int, ...]  # w
    starts: tuple[bytes, bytes]  # commitments to s, in two parts, as C and `hidden` commit to x
    line: tuple[bytes, bytes]  # commitments to t₁ and t₀
    answers: tuple[int, ...]  # z
    blindings: tuple[int, int, int]  # that open the answers: of the two parts, and of the equation

    def to_bytes(self) -> bytes:
        """Return the proof's wire form."""
        scalars = (scalar.to_bytes(BYTES, "little") for scalar in (*self.answers, *self.blindings))
        return b"".join([self.commitment, self.hidden, *self.starts, *self.line, _words(self.masked), *scalars])

    @classmethod
    def read(cls, data: bytes, statement: Statement) -> Self:
        """Read a proof from outside. It may still be false: see `all_hold`.

        Raises:
            MalformedError: if it does not have the form of a proof of this statement.
        """
        if len(data) != statement.proof_bytes:
            msg = (
                f"{len(data)} bytes are not a proof of the norm of {statement.site}'s update; run the same "
                "version everywhere"
            )
            raise MalformedError(msg)
        words, scalars = BYTES * _POINTS, BYTES * _POINTS + _MASK_BYTES * ROWS
        commitment, hidden, *rest = (read_point(part) for part in _split(data[:words], BYTES))
        masked = tuple(int.from_bytes(part, "little") for part in _split(data[words:scalars], _MASK_BYTES))
        *answers, first, second, third = (read_scalar(part) for part in _split(data[scalars:], BYTES))
        return cls(
            commitment, hidden, masked, (rest[0], rest[1]), (rest[2], rest[3]), tuple(answers), (first, second, third)
        )


def commit(numbers: Sequence[int], blinding: int) -> bytes:
    """Commit to integers. A sum of commitments is a commitment to the sums."""
    return combine([*zip(numbers, generators("number", len(numbers)), strict=True), _blinded(blinding)])


def prove(statement: Statement, numbers: Sequence[int], blinding: int) -> Proof:
    """Prove that the squares of `numbers` add up to at most the limit; `blinding` is used in their commitment.

    Raises:
        ProtocolError: if they add up to more.
    """
    left = statement.limit - sum(number * number for number in numbers)
    if left < 0:
        msg = f"the norm of {statement.site}'s update exceeds the run's update_norm, so it cannot be proved"
        raise ProtocolError(msg)
    return _prove(statement, numbers, blinding, [left >> place & 1 for place in range(statement.bits)])


def _prove(statement: Statement, numbers: Sequence[int], blinding: int, bits: Sequence[int]) -> Proof:
    transcript = _Transcript(statement)
    masks = [_MARGIN + secrets.randbelow(_MASKS - 2 * _MARGIN) for _ in range(ROWS)]
    hiding, first, second, third, fourth = (secrets.randbelow(ORDER) for _ in range(5))
    commitment, hidden = commit(numbers, blinding), _commit_hidden([*masks, *bits], hiding)

    rows = transcript.rows(statement.numbers, commitment, hidden)
    masked = tuple(sum(compress(numbers, row)) + mask for row, mask in zip(rows.tolist(), masks, strict=True))
    relation = _Relation.of(statement, rows, masked, transcript.scalar(_words(masked)))

    x = [*numbers, *masks, *bits]
    s = [secrets.randbelow(ORDER) for _ in x]
    starts = commit(s[: len(numbers)], first), _commit_hidden(s[len(numbers) :], second)
    t1, t0 = relation.along(x, s)
    line = _commit_value(t1, third), _commit_value(t0, fourth)
    e = transcript.scalar(*starts, *line)
    z = tuple((e * known + start) % ORDER for known, start in zip(x, s, strict=True))
    blindings = (e * blinding + first) % ORDER, (e * hiding + second) % ORDER, (e * third + fourth) % ORDER
    return Proof(commitment, hidden, masked, starts, line, z, blindings)


def all_hold(proofs: Iterable[tuple[Statement, Proof]]) -> bool:
    """Return whether all of these proofs hold. A false one among them is overlooked with probability 2⁻¹²⁸."""
    total = Counter[bytes]()
    for statement, proof in proofs:
        for equation in _equations(statement, proof):
            weight = 1 + secrets.randbelow(_WEIGHTS)
            for scalar, point in equation:
                total[point] += weight * scalar
    return combine((scalar, point) for point, scalar in total.items()) == IDENTITY


def _equations(statement: Statement, proof: Proof) -> tuple[Terms, Terms, Terms]:
    """Return three linear combinations of points that all equal the identity if the proof holds."""
    transcript = _Transcript(statement)
    rows = transcript.rows(statement.numbers, proof.commitment, proof.hidden)
    relation = _Relation.of(statement, rows, proof.masked, transcript.scalar(_words(proof.masked)))
    e = transcript.scalar(*proof.starts, *proof.line)
    z, (first, second, third) = proof.answers, proof.blindings
    numbers = zip(z[: statement.numbers], generators("number", statement.numbers), strict=True)
    others = zip(z[statement.numbers :], generators("hidden", ROWS + statement.bits), strict=True)
    return (
        [*numbers, _blinded(first), (-e, proof.commitment), (-1, proof.starts[0])],
        [*others, _blinded(second), (-e, proof.hidden), (-1, proof.starts[1])],
        [(relation.at(z, e), generator("value")), _blinded(third), (-e, proof.line[0]), (-1, proof.line[1])],
    )


@dataclass(frozen=True)
class _Relation:
    """Σ D·x² + Σ l·x = c, of x = (numbers, masks, bits)."""

    squares: list[int]  # D
    linear: list[int]  # l
    constant: int  # c

    @classmethod
    def of(cls, statement: Statement, rows: NDArray[np.uint8], masked: Sequence[int], gamma: int) -> Self:
        powers = [gamma]
        while len(powers) < ROWS + statement.bits:
            powers.append(powers[-1] * gamma % ORDER)
        of_rows, of_bits = powers[:ROWS], powers[ROWS:]
        of_numbers = (sum(compress(of_rows, column)) for column in rows.T.tolist())
        return cls(
            squares=[1] * statement.numbers + [0] * ROWS + of_bits,
            linear=[*of_numbers, *of_rows, *((1 << place) - power for place, power in enumerate(of_bits))],
            constant=statement.limit + _dot(of_rows, masked),
        )

    def along(self, x: Sequence[int], s: Sequence[int]) -> tuple[int, int]:
        """Return t₁ and t₀ for z = e·x + s."""
        both = zip(self.squares, x, s, strict=True)
        t1 = sum(2 * d * known * start for d, known, start in both) + _dot(self.linear, s)
        return t1, sum(d * start * start for d, start in zip(self.squares, s, strict=True))

    def at(self, z: Sequence[int], e: int) -> int:
        """Return Σ D·z² + e·Σ l·z − e²·c."""
        squares = sum(d * answer * answer for d, answer in zip(self.squares, z, strict=True))
        return squares + e * (_dot(self.linear, z) - e * self.constant)


class _Transcript:
    """Everything said so far, from which challenges are derived."""

    def __init__(self, statement: Statement) -> None:
        self._hash = shake_256(b"cloister norm proof")
        self._say(statement.context, statement.site.encode(), b"%d %d" % (statement.numbers, statement.limit))

    def rows(self, numbers: int, *parts: bytes) -> NDArray[np.uint8]:
        """Absorb `said`, then return R, `(128, k)` zeros and ones."""
        self._say(*parts)
        drawn = np.frombuffer(self._hash.digest(ROWS * numbers // 8), dtype=np.uint8)
        return np.unpackbits(drawn, bitorder="little").reshape(ROWS, numbers)

    def scalar(self, *parts: bytes) -> int:
        """Absorb `said`, then return a number below ℓ."""
        self._say(*parts)
        return int.from_bytes(self._hash.digest(2 * BYTES), "little") % ORDER

    def _say(self, *parts: bytes) -> None:
        for part in parts:
            self._hash.update(len(part).to_bytes(8, "big") + part)


def _commit_hidden(numbers: Sequence[int], blinding: int) -> bytes:
    return combine([*zip(numbers, generators("hidden", len(numbers)), strict=True), _blinded(blinding)])


def _commit_value(value: int, blinding: int) -> bytes:
    return combine([(value, generator("value")), _blinded(blinding)])


def _blinded(blinding: int) -> tuple[int, bytes]:
    return blinding, generator("blinding")


def _dot(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _words(masked: Sequence[int]) -> bytes:
    return b"".join(word.to_bytes(_MASK_BYTES, "little") for word in masked)


def _split(data: bytes, size: int) -> list[bytes]:
    return [data[place : place + size] for place in range(0, len(data), size)]
