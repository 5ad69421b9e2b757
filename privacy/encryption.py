"""Seeded symmetric BFV: the only file that touches TenSEAL, and only sites load it.

Ring degree 4096, one 60-bit prime q, plaintext modulus a prime just under 2^48, coefficients rather than
slots: 128-bit security by the HomomorphicEncryption.org tables (Albrecht et al., 2018) with bits to spare. Exact, so
all sites decrypt the same bits. See docs/decisions for why not CKKS.

TenSEAL's high-level API can neither make seeded ciphertexts nor use a single prime, so this goes through the
SEAL binding that it ships. That binding saves and loads files only: a memory-backed file descriptor serves. SEAL
compresses what it saves; this unframes it and hands SEAL uncompressed frames that it built itself. Only c0 values
already checked to be residues, and seeds, ever come from outside. The frame's offsets belong to one
SEAL version, so they are checked once, with a known ciphertext, and an unknown build is refused in plain words.

SEAL encrypts zeros; the message m is added to c0 here, as q·m/t rounded (Fan and Vercauteren, 2012). That is all that
BFV does with it, costs less than handing SEAL a plaintext, and keeps messages out of that file.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import threading
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import tenseal.sealapi as seal
import zstandard

from privacy.ciphertext import COEFF_MODULUS, SEED_BYTES, Ciphertexts, add_residues, pack60, residues
from privacy.errors import EncryptionError, KeyFileError, MalformedError
from privacy.packing import PLAIN_MODULUS, RING_DEGREE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from numpy.typing import NDArray

    from privacy.ledger import Charge
    from privacy.tag import TaggedUpdate

_HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, major, minor, compression, reserved, total size
_ZSTD = 2
_WORDS = 8 * RING_DEGREE
_LARGEST = 4 * _WORDS  # more bytes than anything that is saved here
_SCALE, _REST = divmod(COEFF_MODULUS, PLAIN_MODULUS)
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class EncryptedUpdate:
    """An update that only the sites can read, and the charge under which it was made."""

    ciphertexts: Ciphertexts
    charge: Charge


class _Seal:
    """SEAL's context, its frames, and the file descriptor through which bytes pass."""

    def __init__(self) -> None:
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
        parameters.set_poly_modulus_degree(RING_DEGREE)
        chain = seal.CoeffModulus.Create(RING_DEGREE, [60])
        parameters.set_coeff_modulus(chain)
        parameters.set_plain_modulus(PLAIN_MODULUS)
        self.context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)  # noqa: FBT003 - positional in the binding
        if chain[0].value() != COEFF_MODULUS or not self.context.parameters_set():
            msg = "this build of TenSEAL chooses another modulus; install the version that pyproject.toml names"
            raise EncryptionError(msg)
        self._open_file()
        os.register_at_fork(after_in_child=self._open_file)  # two processes must never write to one file
        self._learn_frames()

    def _open_file(self) -> None:
        self._lock = threading.Lock()  # over the file and the decompressor
        self._decompressor = zstandard.ZstdDecompressor()
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("cloister")
            self._path = f"/proc/self/fd/{self._file}"
        else:  # pragma: no cover - other systems than Linux
            self._file, self._path = tempfile.mkstemp()

    def save(self, thing: Any) -> bytes:  # noqa: ANN401 - SEAL's binding has no types
        """Return what SEAL saves, without its compression frame."""
        with self._lock:
            thing.save(self._path)
            framed = os.pread(self._file, _LARGEST, 0)
            magic, size, major, minor, compression, reserved, _ = _HEADER.unpack_from(framed)
            if compression != _ZSTD:
                return framed
            body = self._decompressor.decompress(framed[_HEADER.size :], max_output_size=_LARGEST)
        return _HEADER.pack(magic, size, major, minor, 0, reserved, _HEADER.size + len(body)) + body

    def load(self, thing: Any, frame: bytes) -> Any:  # noqa: ANN401
        """Fill a SEAL object from an uncompressed frame."""
        with self._lock:
            os.pwrite(self._file, frame, 0)
            os.ftruncate(self._file, len(frame))
            thing.load(self.context, self._path)
        return thing

    def _learn_frames(self) -> None:
        """Find where SEAL puts coefficients and seed, with a ciphertext of a known message."""
        key = seal.KeyGenerator(self.context).secret_key()
        self.key_frame = self.save(key)[:-_WORDS]
        self.plain_frame = self.save(seal.Plaintext(RING_DEGREE))[:-_WORDS]
        known = np.arange(RING_DEGREE, dtype=np.uint64) + np.uint64(PLAIN_MODULUS - RING_DEGREE)
        encryptor = seal.Encryptor(self.context, key)
        blob = self.save(encryptor.encrypt_zero_symmetric())
        # Before c0: header, metadata, array header. After it: the header of the generator's description, its type.
        self.before, after = 113, 17
        if len(blob) != self.before + _WORDS + after + SEED_BYTES:
            raise _unknown_build()
        self.head = blob[: self.before]
        self.tail = blob[self.before + _WORDS : -SEED_BYTES]
        c0, seed = self.encrypt(encryptor, known)
        back = seal.Plaintext()
        seal.Decryptor(self.context, key).decrypt(self.ciphertext(c0, seed), back)
        if c0.max() >= COEFF_MODULUS or not np.array_equal(self.coefficients(back), known):
            raise _unknown_build()

    def coefficients(self, plaintext: Any) -> NDArray[np.uint64]:  # noqa: ANN401
        """Return a SEAL plaintext's `(4096,)` coefficients; SEAL leaves leading zeros out."""
        values = np.frombuffer(self.save(plaintext)[len(self.plain_frame) :], dtype="<u8")
        return np.pad(values, (0, RING_DEGREE - values.size))

    def ciphertext(self, c0: NDArray[np.uint64], seed: bytes) -> Any:  # noqa: ANN401
        """Make a SEAL ciphertext of `(4096,)` residues and a seed, which SEAL expands to c1."""
        return self.load(seal.Ciphertext(self.context), self.head + c0.astype("<u8").tobytes() + self.tail + seed)

    def encrypt(self, encryptor: Any, coefficients: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], bytes]:  # noqa: ANN401
        """Encrypt `(4096,)` coefficients below t; return c0 `(4096,)` and the seed of a fresh ciphertext."""
        blob = self.save(encryptor.encrypt_zero_symmetric())
        zero = np.frombuffer(blob, dtype="<u8", count=RING_DEGREE, offset=self.before)
        # q·m/t = scale·m + rest·m/t. The last term is below 2^18: a float64 rounds it rightly, or one off at a tie.
        c0 = coefficients * np.uint64(_SCALE) + np.rint(coefficients * (_REST / PLAIN_MODULUS)).astype(np.uint64)
        add_residues(c0, zero)
        return c0, blob[-SEED_BYTES:]


def _unknown_build() -> EncryptionError:
    return EncryptionError("this build of TenSEAL saves ciphertexts in a form that Cloister does not know; "
                           "install the version that pyproject.toml names")  # fmt: skip


class DecryptionKey:
    """The consortium's symmetric key of one epoch: encrypts updates and decrypts sums. Only sites hold it."""

    _seal: _Seal | None = None

    def __init__(self, secret: Any) -> None:  # noqa: ANN401
        self._secret = secret

    @classmethod
    def _binding(cls) -> _Seal:
        if DecryptionKey._seal is None:
            DecryptionKey._seal = _Seal()
        return DecryptionKey._seal

    @classmethod
    def generate(cls) -> Self:
        """Make a new key from the operating system's randomness."""
        return cls(seal.KeyGenerator(cls._binding().context).secret_key())

    def to_bytes(self) -> bytes:
        """Return the key: 4,096 little-endian words, then their SHA-256, since any residues would pass for a key."""
        words = self._binding().save(self._secret)[-_WORDS:]
        return words + sha256(words).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a key that this site stored itself.

        Raises:
            KeyFileError: if `data` is no such key.
        """
        words = data[:_WORDS]
        if len(data) != _WORDS + _DIGEST_BYTES or sha256(words).digest() != data[_WORDS:]:
            msg = "the decryption key's file is damaged; restore it from the site's backup"
            raise KeyFileError(msg)
        binding = cls._binding()
        with contextlib.suppress(RuntimeError, ValueError):
            return cls(binding.load(seal.SecretKey(), binding.key_frame + words))
        msg = "the decryption key's file holds no key for these parameters; restore it from the site's backup"
        raise KeyFileError(msg)

    @cached_property
    def _encryptor(self) -> Any:  # noqa: ANN401
        return seal.Encryptor(self._binding().context, self._secret)

    @cached_property
    def _decryptor(self) -> Any:  # noqa: ANN401
        return seal.Decryptor(self._binding().context, self._secret)

    def encrypt(self, update: TaggedUpdate) -> EncryptedUpdate:
        """Encrypt a tagged update; each ciphertext under fresh randomness from SEAL's own generator."""
        binding = self._binding()
        c0, seeds = bytearray(), bytearray()
        for row in update.coefficients:
            words, seed = binding.encrypt(self._encryptor, row)
            c0 += pack60(words)
            seeds += seed
        return EncryptedUpdate(Ciphertexts(bytes(c0), bytes(seeds)), update.charge)

    def decrypt_sum(self, c0: bytes, seeds: Sequence[bytes]) -> NDArray[np.uint64]:
        """Decrypt a sum: packed c0 of the sum, and every contributor's seeds, one after the other.

        Returns:
            Sums of coefficients modulo t, `(ciphertexts, 4096)`.

        Raises:
            MalformedError: if c0 holds anything but residues, or a contributor's seeds are fewer or more.
        """
        binding, evaluator = self._binding(), seal.Evaluator(self._binding().context)
        total = residues(c0)
        if not seeds or any(len(site) != len(total) * SEED_BYTES for site in seeds):
            msg = f"the seeds do not belong to a sum of {len(total)} ciphertexts; it was not decrypted"
            raise MalformedError(msg)
        result = np.empty_like(total)
        nothing = np.zeros(RING_DEGREE, dtype=np.uint64)
        for index, row in enumerate(total):
            place = slice(index * SEED_BYTES, (index + 1) * SEED_BYTES)
            first, *others = (site[place] for site in seeds)
            ciphertext = binding.ciphertext(row, first)
            for seed in others:
                evaluator.add_inplace(ciphertext, binding.ciphertext(nothing, seed))
            opened = seal.Plaintext()
            self._decryptor.decrypt(ciphertext, opened)
            result[index] = binding.coefficients(opened)
        return result
