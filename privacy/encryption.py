"""Seeded symmetric BFV: how sites encrypt updates and open their sum.

Ring degree 4096, one 60-bit prime q, plaintext modulus a prime just under 2^48, coefficients rather than
slots: 128-bit security by the HomomorphicEncryption.org tables (Albrecht et al., 2018) with bits to spare. Exact, so
all sites decrypt the same bits. See docs/decisions for why not CKKS.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from privacy.ciphertext import SEED_BYTES, pack60, residues
from privacy.errors import KeyFileError
from privacy.packing import RING_DEGREE
from privacy.seal import binding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

    from numpy.typing import NDArray

    from privacy.ciphertext import SummedChunk
    from privacy.ledger import Charge
    from privacy.parallel import Apply
    from privacy.tag import TaggedUpdate

_KEY_BYTES = 8 * RING_DEGREE
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class EncryptedUpdate:
    """An update that only the sites can read, made chunk by chunk: packed c0, and seeds."""

    chunks: Iterator[tuple[bytes, bytes]]
    charge: Charge


class DecryptionKey:
    """The consortium's symmetric key of one epoch: encrypts updates and decrypts sums. Only sites hold it."""

    def __init__(self, secret: Any) -> None:  # noqa: ANN401 - SEAL's binding has no types
        self._secret = secret

    @classmethod
    def generate(cls) -> Self:
        """Make a new key from the operating system's randomness."""
        return cls(binding().new_key())

    def to_bytes(self) -> bytes:
        """Return the key: 4,096 little-endian words, then their SHA-256, since any residues would pass for a key."""
        return self._bytes

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a key that this site stored itself.

        Raises:
            KeyFileError: if `data` is no such key.
        """
        words = data[:_KEY_BYTES]
        if len(data) != _KEY_BYTES + _DIGEST_BYTES or sha256(words).digest() != data[_KEY_BYTES:]:
            msg = "the decryption key's file is damaged; restore it from the site's backup"
            raise KeyFileError(msg)
        return cls(binding().read_key(words))

    def encrypt(self, update: TaggedUpdate, apply: Apply = map) -> EncryptedUpdate:
        """Encrypt a tagged update, block by block; each ciphertext under fresh randomness from SEAL's own generator."""
        return EncryptedUpdate(apply(partial(_encrypt, self.to_bytes()), update.blocks), update.charge)

    def decrypt(self, chunks: Iterable[SummedChunk], apply: Apply = map) -> Iterator[NDArray[np.uint64]]:
        """Decrypt a sum whose codes were checked (`privacy.mac`), as its chunks are taken.

        Returns:
            Sums of coefficients modulo t, `(n, 4096)` a chunk.

        Raises:
            MalformedError: if a chunk holds anything but residues.
        """
        return apply(partial(_decrypt, self.to_bytes()), chunks)

    @cached_property
    def _bytes(self) -> bytes:
        words = binding().key_bytes(self._secret)
        return words + sha256(words).digest()

    @cached_property
    def encryptor(self) -> Any:  # noqa: ANN401
        """SEAL's, for this key."""
        return binding().encryptor(self._secret)

    @cached_property
    def decryptor(self) -> Any:  # noqa: ANN401
        """SEAL's, for this key."""
        return binding().decryptor(self._secret)


# What one process does for another, or for itself: hence by the key's bytes.


@lru_cache(maxsize=8)
def _key(data: bytes) -> DecryptionKey:
    return DecryptionKey.from_bytes(data)


def _encrypt(key: bytes, block: NDArray[np.uint64]) -> tuple[bytes, bytes]:
    """Encrypt coefficients `(n, 4096)`; return packed c0 and seeds."""
    made = [binding().encrypt(_key(key).encryptor, row) for row in block]
    return b"".join(pack60(c0) for c0, _ in made), b"".join(seed for _, seed in made)


def _decrypt(key: bytes, chunk: SummedChunk) -> NDArray[np.uint64]:
    """Decrypt one chunk of a sum, with every contributor's seeds or with the sum of their c1, to `(n, 4096)`."""
    rows, expanded = residues(chunk.c0), residues(chunk.c1)
    result = np.empty_like(rows)
    for index, row in enumerate(rows):
        place = slice(index * SEED_BYTES, (index + 1) * SEED_BYTES)
        parts = [site[place] for site in chunk.seeds] or [expanded[index].tobytes()]
        result[index] = binding().decrypt(_key(key).decryptor, row, parts)
    return result
