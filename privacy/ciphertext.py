"""Ciphertexts on the wire, and the sum that the server builds from them without any key.

A seeded symmetric BFV ciphertext is c0, 4096 integers modulo the 60-bit prime q, and a 64-byte seed from which
c1 follows. On the wire, c0 is packed to exactly 60 bits a value (two make 15 bytes) and the seed follows as it
is: 30,784 bytes for 12,285 parameters under `compact`, 2.51 bytes each.

Adding ciphertexts means adding their c0 modulo q and keeping every seed. numpy does that; no parser of SEAL's
ever sees a byte from the network (one crafted length field there reads past the heap).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from privacy.errors import MalformedError
from privacy.packing import RING_DEGREE

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

COEFF_MODULUS = 1152921504606830593  # SEAL's 60-bit NTT prime for N = 4096
SEED_BYTES = 64
C0_BYTES = RING_DEGREE * 15 // 2
_MASK = np.uint64((1 << 60) - 1)
_Q = np.uint64(COEFF_MODULUS)


def pack60(words: NDArray[np.uint64]) -> bytes:
    """Pack `(n,)` integers below 2^60, n even, to 7.5 bytes each, little-endian."""
    even, odd = words.reshape(-1, 2).T
    packed = np.empty((even.size, 15), dtype=np.uint8)
    # Two words of 64 bits lie over the 15 bytes; the byte that they share gets the same value from both.
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
    """Seeded ciphertexts in wire form: packed c0 of all, then the seeds of all."""

    c0: bytes
    seeds: bytes

    @property
    def count(self) -> int:
        """How many ciphertexts these are."""
        return len(self.seeds) // SEED_BYTES

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of c0 and seeds."""
        hashed = sha256(self.c0)
        hashed.update(self.seeds)
        return hashed.hexdigest()

    @property
    def seeds_digest(self) -> str:
        """SHA-256, in hex, of the seeds alone, which travel on with the sum."""
        return seeds_digest(self.seeds)

    def to_bytes(self) -> bytes:
        """Return the wire form: c0, then seeds."""
        return self.c0 + self.seeds

    @classmethod
    def from_bytes(cls, data: bytes, count: int) -> Self:
        """Cut the wire form of `count` ciphertexts.

        Raises:
            MalformedError: if the length is not exactly theirs.
        """
        expected = count * (C0_BYTES + SEED_BYTES)
        if len(data) != expected:
            msg = f"{count} ciphertexts take {expected:,} bytes, not {len(data):,}; the update was cut or padded"
            raise MalformedError(msg)
        return cls(data[: count * C0_BYTES], data[count * C0_BYTES :])


def seeds_digest(seeds: bytes) -> str:
    """SHA-256, in hex, of a site's seeds: what its header signs, and every other site checks before it decrypts."""
    return sha256(b"cloister seeds" + seeds).hexdigest()


def residues(c0: bytes) -> NDArray[np.uint64]:
    """Unpack c0 to `(ciphertexts, 4096)` and check that every value is a residue modulo q.

    Raises:
        MalformedError: if a value is q or more, or the length is not a whole number of ciphertexts.
    """
    if len(c0) % C0_BYTES:
        msg = f"{len(c0):,} bytes are not a whole number of ciphertexts; the update was cut or padded"
        raise MalformedError(msg)
    words = unpack60(c0)
    if words.size and words.max() >= _Q:
        msg = "a coefficient is not below the modulus q; these are not ciphertexts of this protocol"
        raise MalformedError(msg)
    return words.reshape(-1, RING_DEGREE)


def add_residues(total: NDArray[np.uint64], term: NDArray[np.uint64]) -> None:
    """Add `term` to `total`, both `(ciphertexts, 4096)` of residues, modulo q and in place."""
    np.add(total, term, out=total)
    np.minimum(total, total - _Q, out=total)  # below q, the difference wraps round to a huge number
