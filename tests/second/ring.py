"""Second reader: streams, residues, ciphertexts and keys, with whole numbers; see `signed.py`.

numpy is used in one place: to hash 4,096 bytes of a seed's stream 64 at a time, all at once.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

N = 4096
Q = 2**60 - 16383
T = 2**48 - 59
PSI = 116777451583545
C0, SEED, CODE = 30720, 64, 8
_HALF = 1 << 30


# --- Streams ----------------------------------------------------------------------------------------------------------


def hkdf(secret: bytes, info: bytes) -> bytes:
    """HKDF with SHA-256, no salt, 32 bytes (RFC 5869)."""
    return hmac.digest(hmac.digest(bytes(32), secret, "sha256"), info + b"\1", "sha256")


def keystream(key: bytes, length: int) -> bytes:
    return Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(length))


def residues(key: bytes, modulus: int, count: int) -> list[int]:
    """Return the first residues of a stream."""
    shift, drawn = 64 - modulus.bit_length(), count + 64
    words = struct.unpack(f"<{drawn}Q", keystream(key, 8 * drawn))
    residues_ = [word >> shift for word in words if word >> shift < modulus]
    assert len(residues_) >= count
    return residues_[:count]


def uniform(key: bytes, count: int) -> list[float]:
    """Return numbers from 0 to 1 in steps of 2⁻²⁴: how the golden files were rounded."""
    return [(word >> 8) / 2**24 for word in struct.unpack(f"<{count}I", keystream(key, 4 * count))]


def pads(secret: bytes, purpose: str, modulus: int, plan: str, nonce: str, site: str, count: int) -> list[int]:
    """Return the pads of a site's tags (`tag`) or codes (`mac`)."""
    label = b"pad" + bytes.fromhex(plan) + bytes.fromhex(nonce) + site.encode()
    return residues(hkdf(secret, b"cloister " + purpose.encode() + b" " + label), modulus, count)


def alpha(secret: bytes) -> list[int]:
    return residues(hkdf(secret, b"cloister tag alpha"), T, N - 1)


def rho(secret: bytes) -> tuple[list[int], list[int]]:
    both = residues(hkdf(secret, b"cloister mac rho"), Q, 2 * N)
    return both[:N], both[N:]


# --- Polynomials ------------------------------------------------------------------------------------------------------


def unpack60(data: bytes) -> list[int]:
    numbers = []
    for start in range(0, len(data), 15):
        both = int.from_bytes(data[start : start + 15], "little")
        numbers += [both & (1 << 60) - 1, both >> 60]
    return numbers


def pack60(words: Sequence[int]) -> bytes:
    pairs = zip(words[::2], words[1::2], strict=True)
    return b"".join((one | other << 60).to_bytes(15, "little") for one, other in pairs)


def reversed_bits(number: int) -> int:
    return int(f"{number:012b}"[::-1], 2)


_POWERS = [pow(PSI, reversed_bits(number), Q) for number in range(N)]
_INVERSE = [pow(power, -1, Q) for power in _POWERS]


def transform(values: Sequence[int]) -> list[int]:
    """Return a polynomial's values at ψ^(2·rev(i) + 1)."""
    values_, length, block = list(values), N, 1
    while block < N:
        length //= 2
        for number in range(block):
            root, start = _POWERS[block + number], 2 * number * length
            for place in range(start, start + length):
                one, other = values_[place], values_[place + length] * root % Q
                values_[place], values_[place + length] = (one + other) % Q, (one - other) % Q
        block *= 2
    return values_


def inverse(values: Sequence[int]) -> list[int]:
    """Return the polynomial that has these values."""
    values_, length, block = list(values), 1, N
    while block > 1:
        block //= 2
        for number in range(block):
            root, start = _INVERSE[block + number], 2 * number * length
            for place in range(start, start + length):
                one, other = values_[place], values_[place + length]
                values_[place], values_[place + length] = (one + other) % Q, (one - other) * root % Q
        length *= 2
    scale = pow(N, -1, Q)
    return [value * scale % Q for value in values_]


def secret_of(words: Sequence[int]) -> list[int]:
    """Return the coefficients of a saved secret, from −q/2 to q/2."""
    return [value if value < Q // 2 else value - Q for value in inverse(words)]


def decrypt(c0: Sequence[int], c1: Sequence[int], key: Sequence[int]) -> list[int]:
    """Return round(t·(c0 + c1·s)/q) mod t, with the secret as it is saved."""
    product = inverse([one * other % Q for one, other in zip(transform(c1), key, strict=True)])
    return [(T * ((one + other) % Q) + Q // 2) // Q % T for one, other in zip(c0, product, strict=True)]


def noise(c0: Sequence[int], c1: Sequence[int], key: Sequence[int], message: Sequence[int]) -> list[int]:
    """Return e of a ciphertext."""
    product = inverse([one * other % Q for one, other in zip(transform(c1), key, strict=True)])
    rounded = [(one + other - (2 * Q * m + T) // (2 * T)) % Q
             for one, other, m in zip(c0, product, message, strict=True)]  # fmt: skip
    return [value if value < Q // 2 else value - Q for value in rounded]


def plus(rows: Iterable[Sequence[int]], modulus: int) -> list[int]:
    return [sum(column) % modulus for column in zip(*rows, strict=True)]


def inner(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(a * b for a, b in zip(one, other, strict=True))


# --- Seeds ------------------------------------------------------------------------------------------------------------

_START = [0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
          0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179]  # fmt: skip
_SIGMA = [[int(place, 16) for place in order] for order in (
    "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
    "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0",
)]  # fmt: skip


def _turned(word: np.ndarray, by: int) -> np.ndarray:
    return word >> np.uint64(by) | word << np.uint64(64 - by)


def blake2xb(root: bytes, length: int) -> bytes:
    """Return BLAKE2Xb's output after its first hash: BLAKE2b of that for each 64 bytes, as a tree of depth 0."""
    count = length // 64
    parameters = [np.full(count, value, np.uint64) for value in (64 | 64 << 32, length << 32, 64 << 8, 0, 0, 0, 0, 0)]
    parameters[1] |= np.arange(count, dtype=np.uint64)
    start = [np.uint64(value) ^ parameter for value, parameter in zip(_START, parameters, strict=True)]
    state = [*(row.copy() for row in start), *(np.full(count, value, np.uint64) for value in _START)]
    state[12] ^= np.uint64(64)
    state[14] ^= np.uint64(2**64 - 1)
    message = [np.uint64(word) for word in [*struct.unpack("<8Q", root), *[0] * 8]]
    for turn in range(12):
        order = _SIGMA[turn % 10]
        for step in range(8):
            a, b, c, d = (4 * row + (step % 4 + (row if step > 3 else 0)) % 4 for row in range(4))
            for word, (right, last) in zip(order[2 * step : 2 * step + 2], ((32, 24), (16, 63)), strict=True):
                state[a] = state[a] + state[b] + message[word]
                state[d] = _turned(state[d] ^ state[a], right)
                state[c] = state[c] + state[d]
                state[b] = _turned(state[b] ^ state[c], last)
    words = np.stack([start[place] ^ state[place] ^ state[place + 8] for place in range(8)], axis=1)
    return words.astype("<u8").tobytes()


def expand(seed: bytes) -> list[int]:
    """Return the c1 that follows from a seed."""
    stream = b""
    for block in range(8 * N // 4096):
        root = blake2b(block.to_bytes(8, "little"), key=seed, node_offset=4096 << 32).digest()
        stream += blake2xb(root, 4096)
    words = struct.unpack(f"<{N}Q", stream)
    assert max(words) < 16 * Q - 1, "a word to be replaced: 2⁻⁴⁶ for each"
    return [word % Q for word in words]


# --- The keys of an epoch ---------------------------------------------------------------------------------------------


def read_key_file(data: bytes) -> tuple[int, bytes, list[int]] | None:
    """Return epoch, tag key and the secret as it is saved; None if it is not a key file."""
    if len(data) != 8 + 32 + 8 * N + 32 + 32 or sha256(data[:-32]).digest() != data[-32:]:
        return None
    words = data[40:-64]
    values = list(struct.unpack(f"<{N}Q", words))
    if sha256(words).digest() != data[-64:-32] or max(values) >= Q:
        return None
    return int.from_bytes(data[:8], "big"), data[8:40], values


def has_form(words: Sequence[int]) -> bool:
    """Whether a secret is one that could be drawn."""
    values = secret_of(words)
    return set(values) <= {-1, 0, 1} and 2401 <= sum(map(abs, values)) <= 3060


def fingerprint(key_file: bytes) -> str:
    return sha256(b"cloister epoch keys" + key_file).hexdigest()
