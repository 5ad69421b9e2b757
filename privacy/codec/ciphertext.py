"""Encode ciphertexts for the wire, and add them up without any key, as the server does.

A seeded symmetric BFV ciphertext is c0, 4096 integers modulo the 60-bit prime q, and a 64-byte seed that determines
c1. On the wire, c0 is packed to exactly 60 bits per value (15 bytes for two); the seed and a code follow: 30,792 bytes
for 12,285 parameters under `compact`, 2.51 bytes each.

To add ciphertexts is to add their c0 modulo q and keep every seed. numpy does this; SEAL's parsers never see a byte
from the network (in them, one crafted length field causes a read past the end of the heap buffer).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from privacy.codec.packing import BLOCK, RING_DEGREE
from privacy.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from numpy.typing import NDArray

COEFF_MODULUS = 1152921504606830593  # SEAL's 60-bit NTT prime for N = 4096
SEED_BYTES = 64
C0_BYTES = RING_DEGREE * 15 // 2
CODE_BYTES = 8
CIPHERTEXT_BYTES = C0_BYTES + SEED_BYTES + CODE_BYTES
_MASK = np.uint64((1 << 60) - 1)
_Q = np.uint64(COEFF_MODULUS)


def pack60(words: NDArray[np.uint64]) -> bytes:
    """Pack `(n,)` integers below 2^60, n even, to 7.5 bytes each, little-endian."""
    even, odd = words.reshape(-1, 2).T
    packed = np.empty((even.size, 15), dtype=np.uint8)
    # Two words of 64 bits cover the 15 bytes; both write the same value to the byte that they share.
    packed[:, :8].view("<u8")[:, 0] = even | odd << np.uint64(60)
    packed[:, 7:].view("<u8")[:, 0] = even >> np.uint64(56) | odd << np.uint64(4)
    return packed.tobytes()


def unpack60(data: bytes | memoryview) -> NDArray[np.uint64]:
    """Undo `pack60`: `(n,)`."""
    packed = np.frombuffer(data, dtype=np.uint8).reshape(-1, 15)
    words = np.empty((len(packed), 2), dtype=np.uint64)
    words[:, 0] = packed[:, :8].view("<u8")[:, 0] & _MASK
    words[:, 1] = packed[:, 7:].view("<u8")[:, 0] >> np.uint64(4)
    return words.reshape(-1)


@dataclass(frozen=True)
class Ciphertexts:
    """Seeded ciphertexts in wire form, 32 to a chunk: a chunk's packed c0, then its seeds, then its codes."""

    chunks: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of all chunks."""
        hashed = sha256()
        for chunk in self.chunks:
            hashed.update(chunk)
        return hashed.hexdigest()

    @property
    def seeds(self) -> bytes:
        """All seeds, in order. They travel with the sum."""
        return b"".join(chunk[_count(chunk) * C0_BYTES : -_count(chunk) * CODE_BYTES] for chunk in self.chunks)

    @property
    def codes(self) -> bytes:
        """All codes (`privacy.crypto.mac`), in order."""
        return b"".join(chunk[-_count(chunk) * CODE_BYTES :] for chunk in self.chunks)

    @property
    def alone(self) -> SummedCiphertexts:
        """These ciphertexts as a sum of one update."""
        c0 = tuple(chunk[: _count(chunk) * C0_BYTES] for chunk in self.chunks)
        return SummedCiphertexts(c0, (self.seeds,), (), self.codes)

    @property
    def count(self) -> int:
        """The number of ciphertexts."""
        return sum(map(_count, self.chunks))

    @property
    def size(self) -> int:
        """The number of bytes."""
        return sum(map(len, self.chunks))

    def residues(self) -> Iterator[NDArray[np.uint64]]:
        """Unpack each chunk's c0. See the function `residues` for the error."""
        for chunk in self.chunks:
            yield residues(memoryview(chunk)[: _count(chunk) * C0_BYTES])

    @classmethod
    def read(cls, chunks: Sequence[bytes], count: int) -> Self:
        """Take the chunks of `count` ciphertexts.

        Raises:
            MalformedError: if the chunks do not have exactly the lengths of `count` ciphertexts.
        """
        check_chunks(chunks, count, CIPHERTEXT_BYTES)
        return cls(tuple(chunks))


@dataclass(frozen=True)
class SummedCiphertexts:
    """A sum: chunks of packed c0 and, for c1, either every contributor's seeds or chunks of the summed c1."""

    c0: tuple[bytes, ...]
    seeds: tuple[bytes, ...]
    c1: tuple[bytes, ...]
    codes: bytes

    def check(self, count: int) -> None:
        """Check that this is a sum of `count` ciphertexts.

        Raises:
            MalformedError: if a part is too short or too long, or c1 is given twice or not at all.
        """
        check_chunks(self.c0, count, C0_BYTES)
        if self.c1:
            check_chunks(self.c1, count, C0_BYTES)
        if len(self.codes) != count * CODE_BYTES:
            msg = (
                f"{len(self.codes)} bytes are the wrong length for the codes of {count} ciphertexts; the sum was "
                "not decrypted"
            )
            raise MalformedError(msg)
        sources = any(self.seeds) + bool(self.c1)
        if sources != 1 or (any(self.seeds) and any(len(site) != count * SEED_BYTES for site in self.seeds)):
            msg = f"the seeds do not belong to a sum of {count} ciphertexts; the sum was not decrypted"
            raise MalformedError(msg)

    def chunks(self) -> Iterator[SummedChunk]:
        """Yield the sum chunk by chunk."""
        for index, c0 in enumerate(self.c0):
            place = slice(index * BLOCK * SEED_BYTES, (index + 1) * BLOCK * SEED_BYTES)
            seeds = [] if self.c1 else [site[place] for site in self.seeds]
            codes = self.codes[index * BLOCK * CODE_BYTES : (index + 1) * BLOCK * CODE_BYTES]
            listed = np.frombuffer(codes, dtype="<u8").tolist()
            yield SummedChunk(c0, seeds, self.c1[index] if self.c1 else b"", listed)


class SummedChunk(NamedTuple):
    """One chunk of a sum."""

    c0: bytes
    seeds: list[bytes]  # of its ciphertexts, one item per contributor; empty if c1 is given
    c1: bytes
    codes: list[int]


class Accumulator:
    """The running sum of c0 or c1 modulo q: `(count, 4096)`, whatever the number of sites."""

    def __init__(self, count: int) -> None:
        self.total = np.zeros((count, RING_DEGREE), dtype=np.uint64)
        self._codes = np.zeros(count, dtype=np.uint64)

    def add(self, ciphertexts: Ciphertexts) -> None:
        """Add the c0 and codes of all these ciphertexts, or nothing if there is an error.

        Raises:
            MalformedError: if their number is not `count`, or one is malformed.
        """
        check_chunks(ciphertexts.chunks, len(self.total), CIPHERTEXT_BYTES)
        codes = np.frombuffer(ciphertexts.codes, dtype="<u8")
        _check_residues(codes)
        for _ in ciphertexts.residues():
            pass
        add_residues(self._codes, codes)
        for index, block in enumerate(ciphertexts.residues()):
            add_residues(self.total[index * BLOCK : (index + 1) * BLOCK], block)

    @property
    def code_bytes(self) -> bytes:
        """The sum of the codes, in wire form."""
        return self._codes.astype("<u8").tobytes()

    def chunks(self) -> tuple[bytes, ...]:
        """Return the packed sum, 32 ciphertexts to a chunk."""
        starts = range(0, len(self.total), BLOCK)
        return tuple(pack60(self.total[start : start + BLOCK].reshape(-1)) for start in starts)


def check_chunks(chunks: Sequence[bytes], count: int, size: int) -> None:
    """Check that chunks have the lengths of `count` items of `size` bytes, 32 to a chunk.

    Raises:
        MalformedError: if they do not.
    """
    # Check the number of chunks first: `count` comes from outside and may be huge.
    fits = len(chunks) == -(-count // BLOCK)
    if not fits or any(len(chunk) != min(BLOCK, count - BLOCK * index) * size for index, chunk in enumerate(chunks)):
        msg = f"{count} ciphertexts take {count * size:,} bytes, not {sum(map(len, chunks)):,}; they were cut or padded"
        raise MalformedError(msg)


def _count(chunk: bytes) -> int:
    return len(chunk) // CIPHERTEXT_BYTES


def seeds_digest(seeds: bytes) -> str:
    """Return the SHA-256, in hex, of a site's seeds, which its header carries and other sites check."""
    return sha256(b"cloister seeds" + seeds).hexdigest()


def residues(c0: bytes | memoryview) -> NDArray[np.uint64]:
    """Unpack c0 to `(ciphertexts, 4096)` and check that every value is a residue modulo q.

    Raises:
        MalformedError: if a value is q or more, or the length is not a whole number of ciphertexts.
    """
    if len(c0) % C0_BYTES:
        msg = f"{len(c0):,} bytes are not a whole number of ciphertexts; the update was cut or padded"
        raise MalformedError(msg)
    words = unpack60(c0)
    _check_residues(words)
    return words.reshape(-1, RING_DEGREE)


def _check_residues(words: NDArray[np.uint64]) -> None:
    if words.size and words.max() >= _Q:
        msg = "a coefficient is not below the modulus q; these are not Cloister ciphertexts"
        raise MalformedError(msg)


def add_residues(total: NDArray[np.uint64], term: NDArray[np.uint64]) -> None:
    """Add `term` to `total` modulo q, in place; both hold `(ciphertexts, 4096)` residues."""
    np.add(total, term, out=total)
    np.minimum(total, total - _Q, out=total)  # if the sum is below q, the difference wraps around to a huge number
