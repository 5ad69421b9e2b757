"""Encrypt updates and decrypt their sum with seeded symmetric BFV.

Ring degree 4096, one 60-bit prime q, a prime plaintext modulus just under 2^48, coefficients rather than slots:
128-bit security by the HomomorphicEncryption.org tables (Albrecht et al., 2018) with bits to spare. BFV is exact, so
all sites decrypt the same bits. docs/decisions explains why CKKS is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from privacy.codec.ciphertext import COEFF_MODULUS, SEED_BYTES, pack60, residues
from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE
from privacy.crypto.seal import binding
from privacy.errors import KeyFileError, MalformedError
from privacy.noise.randomness import Randomness

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

    from numpy.typing import NDArray

    from privacy.codec.ciphertext import SummedChunk
    from privacy.crypto.tag import TaggedUpdate
    from privacy.ledger.ledger import Charge
    from privacy.parallel import Apply

_KEY_BYTES = 8 * RING_DEGREE
_DIGEST_BYTES = 32
_SMALL = 1 << 20  # messages below this are encoded exactly by ⌊q/t⌋ times the message
_WEIGHT_DEVIATION = 330  # from 2731 nonzero values: eleven standard deviations, further than SEAL ever draws


@dataclass(frozen=True)
class EncryptedUpdate:
    """An update that only the sites can read, encrypted chunk by chunk: packed c0 and seeds."""

    chunks: Iterator[tuple[bytes, bytes]]
    charge: Charge
    nonce: str  # 32 bytes in hex, to which the pads of its tags and codes are bound


class DecryptionKey:
    """The consortium's symmetric key of one key epoch: encrypts updates and decrypts sums. Only sites hold it."""

    def __init__(self, secret: Any, data: bytes = b"") -> None:  # noqa: ANN401 - SEAL's binding has no types
        """Take SEAL's key and, if it was read, the bytes from which it was."""
        self._secret, self._read = secret, data

    @classmethod
    def generate(cls) -> Self:
        """Make a new key from the operating system's randomness."""
        return cls(binding().new_key())

    def to_bytes(self) -> bytes:
        """Return the key: 4,096 little-endian words, then their SHA-256, since any residues would pass for a key."""
        return self._bytes

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a key that `to_bytes` wrote.

        Raises:
            KeyFileError: if `data` is damaged.
        """
        words = data[:_KEY_BYTES]
        if len(data) != _KEY_BYTES + _DIGEST_BYTES or sha256(words).digest() != data[_KEY_BYTES:]:
            msg = "the decryption key file is damaged; restore it from the site's backup"
            raise KeyFileError(msg)
        return cls(binding().read_key(words), data)

    def encrypt(self, update: TaggedUpdate, apply: Apply = map) -> EncryptedUpdate:
        """Encrypt a tagged update block by block, each ciphertext with fresh randomness from SEAL's own generator."""
        return EncryptedUpdate(apply(partial(_encrypt, self.to_bytes()), update.blocks), update.charge, update.nonce)

    def decrypt(self, chunks: Iterable[SummedChunk], apply: Apply = map) -> Iterator[NDArray[np.uint64]]:
        """Decrypt a sum whose codes have been checked (`privacy.crypto.mac`), as its chunks are taken.

        Returns:
            Sums of coefficients modulo t, `(n, 4096)` per chunk.

        Raises:
            MalformedError: if a chunk holds anything but residues.
        """
        return apply(partial(_decrypt, self.to_bytes()), chunks)

    def check_form(self) -> None:
        """Check that a key made by another site is one that SEAL could have drawn: 4,096 values of −1, 0 and 1.

        Under a zero key, or one with few nonzero values, ciphertexts would hide nothing from the server. Decrypting a
        ciphertext whose c1 is the constant ⌊q/t⌋ shows the values; decrypting one with a random c1 then proves that
        they are the key, since any other key leaves a random remainder.

        Raises:
            MalformedError: if it is not such a key.
        """
        step = np.zeros(RING_DEGREE, np.uint64)
        step[0] = COEFF_MODULUS // PLAIN_MODULUS
        values = binding().decrypt(self.decryptor, np.zeros_like(step), [step.tobytes()])
        positive, negative = values == 1, values == PLAIN_MODULUS - 1
        weight = np.count_nonzero(positive | negative)
        if np.count_nonzero(values) != weight or abs(weight - 2 * RING_DEGREE / 3) > _WEIGHT_DEVIATION:
            raise _malformed_key()
        randomness, ternary = Randomness.fresh(), positive.astype(np.float64) - negative
        c1, known = (randomness.residues(RING_DEGREE, modulus) for modulus in (COEFF_MODULUS, _SMALL))
        product = _times_ternary(c1, ternary)
        c0 = (known * step[0] + (np.uint64(COEFF_MODULUS) - product)) % np.uint64(COEFF_MODULUS)
        if not np.array_equal(binding().decrypt(self.decryptor, c0, [c1.tobytes()]), known):
            raise _malformed_key()

    @cached_property
    def _bytes(self) -> bytes:
        if self._read:
            return self._read
        words = binding().key_bytes(self._secret)
        return words + sha256(words).digest()

    @cached_property
    def encryptor(self) -> Any:  # noqa: ANN401
        """SEAL's encryptor for this key."""
        return binding().encryptor(self._secret)

    @cached_property
    def decryptor(self) -> Any:  # noqa: ANN401
        """SEAL's decryptor for this key."""
        return binding().decryptor(self._secret)


def _times_ternary(polynomial: NDArray[np.uint64], ternary: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Multiply `(4096,)` residues by a polynomial of −1, 0 and 1, modulo x⁴⁰⁹⁶ + 1 and q.

    Products of 16-bit limbs stay below 2²⁸, so that a Fourier transform in doubles is wrong by far less than one half.
    """
    limbs = polynomial.astype("<u8").view("<u2").reshape(-1, 4).T
    product = np.fft.irfft(np.fft.rfft(limbs, 2 * RING_DEGREE) * np.fft.rfft(ternary, 2 * RING_DEGREE))
    terms = np.rint(product[:, :RING_DEGREE] - product[:, RING_DEGREE:]).astype(np.int64) % COEFF_MODULUS
    q, total = np.uint64(COEFF_MODULUS), np.zeros_like(polynomial)
    for term in terms[::-1].astype(np.uint64):
        for _ in range(4):  # times 2¹⁶, by four bits at a time: a residue has 60 of 64
            total = (total << np.uint64(4)) % q
        total = (total + term) % q
    return total


def _malformed_key() -> MalformedError:
    return MalformedError("an honest site would not make these keys; another site must lead the key ceremony")


# These may run in another process, so they take the key as bytes.


@lru_cache(maxsize=8)
def _key(data: bytes) -> DecryptionKey:
    return DecryptionKey.from_bytes(data)


def _encrypt(key: bytes, block: NDArray[np.uint64]) -> tuple[bytes, bytes]:
    """Encrypt `(n, 4096)` coefficients; return packed c0 and seeds."""
    encrypted = [binding().encrypt(_key(key).encryptor, row) for row in block]
    return b"".join(pack60(c0) for c0, _ in encrypted), b"".join(seed for _, seed in encrypted)


def _decrypt(key: bytes, chunk: SummedChunk) -> NDArray[np.uint64]:
    """Decrypt one chunk of a sum to `(n, 4096)`, with every contributor's seeds or with the sum of their c1."""
    rows, expanded = residues(chunk.c0), residues(chunk.c1)
    result = np.empty_like(rows)
    for index, row in enumerate(rows):
        place = slice(index * SEED_BYTES, (index + 1) * SEED_BYTES)
        parts = [site[place] for site in chunk.seeds] or [expanded[index].tobytes()]
        result[index] = binding().decrypt(_key(key).decryptor, row, parts)
    return result
