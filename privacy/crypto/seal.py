"""Wrap the SEAL binding that TenSEAL ships. No other module touches it, and only sites load it.

TenSEAL's high-level API can neither make seeded ciphertexts nor use a single prime. The binding can, but saves to and
loads from files only, so this module gives it a memory-backed file descriptor. SEAL compresses what it saves: this
module decompresses it, and hands SEAL uncompressed frames that it built itself. From outside come only checked residues
and seeds. The frames' offsets belong to one SEAL version, so they are checked once with a known ciphertext, and an
unknown build is refused with a clear message.

SEAL encrypts zeros; this module adds the message m to c0, as q·m/t rounded (Fan and Vercauteren, 2012). BFV does
nothing else with a message; doing it here is cheaper than handing SEAL a plaintext, and keeps messages out of the file.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import threading
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import tenseal.sealapi as seal
import zstandard

from privacy.codec.ciphertext import COEFF_MODULUS, SEED_BYTES, add_residues
from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE
from privacy.errors import EncryptionError, KeyFileError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, major, minor, compression, reserved, total size
_ZSTD = 2
_WORDS = 8 * RING_DEGREE
_LARGEST = 4 * _WORDS  # bytes, more than any object saved here takes
_SCALE, _REST = divmod(COEFF_MODULUS, PLAIN_MODULUS)


class Seal:
    """SEAL's context, its frames, and the file descriptor through which it saves and loads."""

    def __init__(self) -> None:
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
        parameters.set_poly_modulus_degree(RING_DEGREE)
        chain = seal.CoeffModulus.Create(RING_DEGREE, [60])
        parameters.set_coeff_modulus(chain)
        parameters.set_plain_modulus(PLAIN_MODULUS)
        self._context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)  # noqa: FBT003 - positional in the binding
        if chain[0].value() != COEFF_MODULUS or not self._context.parameters_set():
            msg = "this build of TenSEAL uses a different modulus; install the version that pyproject.toml names"
            raise EncryptionError(msg)
        self._evaluator = seal.Evaluator(self._context)
        self._open_file()
        os.register_at_fork(after_in_child=self._open_file)  # two processes must never write to one file
        self._learn_frames()

    def new_key(self) -> Any:  # noqa: ANN401 - SEAL's binding has no types
        """Make a secret key from the operating system's randomness."""
        return seal.KeyGenerator(self._context).secret_key()

    def key_bytes(self, secret: Any) -> bytes:  # noqa: ANN401
        """Return a key's 4,096 little-endian words."""
        return self._save(secret)[-_WORDS:]

    def read_key(self, words: bytes) -> Any:  # noqa: ANN401
        """Undo `key_bytes`.

        Raises:
            KeyFileError: if `words` is not a key.
        """
        with contextlib.suppress(RuntimeError, ValueError):
            return self._load(seal.SecretKey(), self._key_frame + words)
        msg = "the decryption key file has no key for these parameters; restore it from the site's backup"
        raise KeyFileError(msg)

    def encryptor(self, secret: Any) -> Any:  # noqa: ANN401
        """Return the encryptor that `encrypt` needs."""
        return seal.Encryptor(self._context, secret)

    def decryptor(self, secret: Any) -> Any:  # noqa: ANN401
        """Return the decryptor that `decrypt` needs."""
        return seal.Decryptor(self._context, secret)

    def encrypt(self, encryptor: Any, coefficients: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], bytes]:  # noqa: ANN401
        """Encrypt `(4096,)` coefficients below t; return c0 `(4096,)` and the seed of a fresh ciphertext."""
        blob = self._save(encryptor.encrypt_zero_symmetric())
        zero = np.frombuffer(blob, dtype="<u8", count=RING_DEGREE, offset=self._before)
        # q·m/t = scale·m + rest·m/t. The last term is below 2^18: float64 rounds it right, or off by one at a tie.
        c0 = coefficients * np.uint64(_SCALE) + np.rint(coefficients * (_REST / PLAIN_MODULUS)).astype(np.uint64)
        add_residues(c0, zero)
        return c0, blob[-SEED_BYTES:]

    def decrypt(self, decryptor: Any, c0: NDArray[np.uint64], c1: Sequence[bytes]) -> NDArray[np.uint64]:  # noqa: ANN401
        """Decrypt `(4096,)` residues c0 with the sum of these c1, each given as a seed or as words, to `(4096,)`."""
        total, nothing = self._ciphertext(c0, c1[0]), np.zeros(RING_DEGREE, dtype=np.uint64)
        for polynomial in c1[1:]:
            self._evaluator.add_inplace(total, self._ciphertext(nothing, polynomial))
        opened = seal.Plaintext()
        decryptor.decrypt(total, opened)
        values = np.frombuffer(self._save(opened)[len(self._plain_frame) :], dtype="<u8")
        return np.pad(values, (0, RING_DEGREE - values.size))  # SEAL omits zero coefficients of the highest degrees

    def expand(self, seed: bytes) -> NDArray[np.uint64]:
        """Return the c1 `(4096,)` of a seed."""
        whole = self._save(self._ciphertext(np.zeros(RING_DEGREE, dtype=np.uint64), seed))
        return np.frombuffer(whole[-_WORDS:], dtype="<u8")

    def _ciphertext(self, c0: NDArray[np.uint64], c1: bytes) -> Any:  # noqa: ANN401
        head, tail = (self._head, self._tail) if len(c1) == SEED_BYTES else (self._whole_head, b"")
        return self._load(seal.Ciphertext(self._context), head + c0.astype("<u8").tobytes() + tail + c1)

    def _open_file(self) -> None:
        self._lock = threading.Lock()  # protects the file and the decompressor
        self._decompressor = zstandard.ZstdDecompressor()
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("cloister")
            self._path = f"/proc/self/fd/{self._file}"
        else:  # pragma: no cover - other systems than Linux
            self._file, self._path = tempfile.mkstemp()

    def _save(self, thing: Any) -> bytes:  # noqa: ANN401
        """Return what SEAL saves, uncompressed."""
        with self._lock:
            thing.save(self._path)
            framed = os.pread(self._file, _LARGEST, 0)
            magic, size, major, minor, compression, reserved, _ = _HEADER.unpack_from(framed)
            if compression != _ZSTD:
                return framed
            body = self._decompressor.decompress(framed[_HEADER.size :], max_output_size=_LARGEST)
        return _HEADER.pack(magic, size, major, minor, 0, reserved, _HEADER.size + len(body)) + body

    def _load(self, thing: Any, frame: bytes) -> Any:  # noqa: ANN401
        """Fill a SEAL object from an uncompressed frame."""
        with self._lock:
            os.pwrite(self._file, frame, 0)
            os.ftruncate(self._file, len(frame))
            thing.load(self._context, self._path)
        return thing

    def _learn_frames(self) -> None:
        """Learn where SEAL puts coefficients and seed, from a ciphertext of a known message.

        Raises:
            EncryptionError: if the frames are not those of the known build.
        """
        key = self.new_key()
        self._key_frame = self._save(key)[:-_WORDS]
        self._plain_frame = self._save(seal.Plaintext(RING_DEGREE))[:-_WORDS]
        known = np.arange(RING_DEGREE, dtype=np.uint64) + np.uint64(PLAIN_MODULUS - RING_DEGREE)
        blob = self._save(self.encryptor(key).encrypt_zero_symmetric())
        # Before c0: header, metadata, array header. After it: the random generator's header and type.
        self._before, after = 113, 17
        if len(blob) != self._before + _WORDS + after + SEED_BYTES:
            raise _unknown_build()
        self._head = blob[: self._before]
        self._tail = blob[self._before + _WORDS : -SEED_BYTES]
        c0, seed = self.encrypt(self.encryptor(key), known)
        whole = self._save(self._ciphertext(c0, seed))
        self._whole_head = whole[: self._before]
        if c0.max() >= COEFF_MODULUS or len(whole) != self._before + 2 * _WORDS:
            raise _unknown_build()
        for c1 in (seed, whole[-_WORDS:]):
            if not np.array_equal(self.decrypt(self.decryptor(key), c0, [c1]), known):
                raise _unknown_build()


@cache
def binding() -> Seal:
    """Return this process's binding.

    Raises:
        EncryptionError: if Cloister does not know this build of TenSEAL.
    """
    return Seal()


def _unknown_build() -> EncryptionError:
    return EncryptionError(
        "this build of TenSEAL saves ciphertexts in a format that Cloister cannot read; install the version that "
        "pyproject.toml names"
    )
