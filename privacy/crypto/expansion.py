"""Expand ciphertext seeds to c1 without SEAL, for a server that adds up c1 and has neither SEAL nor a key.

SEAL draws c1 from a stream: block j is BLAKE2Xb(input u64le(j), key seed, output 4,096 bytes), cut into little-endian
64-bit words. Each of the first 4,096 words becomes a coefficient modulo q. A word in the last, incomplete multiple of
q would favour small residues: after the 4,096 words are drawn, the stream's next acceptable word replaces it. (SEAL
also rejects the word just below that multiple.)

BLAKE2Xb first hashes to a root of 64 bytes, then hashes the root once for each 64 bytes of output (Aumasson et al.,
"BLAKE2X", 2016). hashlib computes the roots. It rejects the tree depth of 0 that the second step needs, so this module
implements BLAKE2b's compression (RFC 7693, section 3.2) in numpy, thousands of hashes at a time.

>>> expand(bytes(range(64)))[:2]
array([767746516062861584, 493202236469546801], dtype=uint64)
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from privacy.codec.ciphertext import COEFF_MODULUS, SEED_BYTES, add_residues
from privacy.codec.packing import RING_DEGREE
from privacy.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

_BLOCK = 4096  # bytes that SEAL draws at a time
_BLOCKS = 8 * RING_DEGREE // _BLOCK
_HASH = 64  # bytes
_BATCH = 16  # ciphertexts: few numpy calls, and their operands still fit into a core's cache

_START = np.array([
    0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
    0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179,
], dtype=np.uint64)  # fmt: skip
_ORDERS = [[int(place, 16) for place in order] for order in (
    "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
    "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0",
)]  # fmt: skip
_ROUNDS = [*_ORDERS, *_ORDERS[:2]]
_MIXES = [
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
]  # fmt: skip
_TURNS = [[(np.uint64(right), np.uint64(64 - right)) for right in step] for step in ((32, 24), (16, 63))]


def expand(seed: bytes) -> Words:
    """Return the c1 of a seed: `(4096,)` residues modulo q.

    Raises:
        MalformedError: if the seed does not have 64 bytes.
    """
    total = np.zeros((1, RING_DEGREE), dtype=np.uint64)
    add_expanded(total, seed)
    return total.reshape(-1)


def add_expanded(total: Words, seeds: bytes) -> None:
    """Add the c1 of n concatenated seeds to `total`, `(n, 4096)` residues modulo q, in place.

    Raises:
        MalformedError: if `seeds` does not hold n seeds.
    """
    if len(seeds) != len(total) * SEED_BYTES:
        msg = (
            f"{len(total)} ciphertexts need {len(total) * SEED_BYTES} bytes of seeds, not {len(seeds)}; no "
            "seed was added"
        )
        raise MalformedError(msg)
    rows = [seeds[start : start + SEED_BYTES] for start in range(0, len(seeds), SEED_BYTES)]
    for first in range(0, len(rows), _BATCH):
        batch = slice(first, first + _BATCH)
        add_residues(total[batch], _expand(rows[batch], COEFF_MODULUS))


def _expand(seeds: list[bytes], modulus: int) -> Words:
    roots = b"".join(root for seed in seeds for root in _roots(seed, range(_BLOCKS)))
    words = _leaves(np.frombuffer(roots, dtype="<u8").reshape(-1, 8), _BLOCK).reshape(len(seeds), RING_DEGREE)
    good = (1 << 64) - 1 - ((1 << 64) - 1) % modulus - 1
    for index in np.flatnonzero((words >= good).any(axis=1)):
        _replace(words[index], _words_after(seeds[index]), good)
    return words % np.uint64(modulus)


def _replace(words: Words, further: Iterator[int], good: int) -> None:
    """Replace each word that is too large, in order, by the stream's next word that is not."""
    for place in np.flatnonzero(words >= good):
        words[place] = next(word for word in further if word < good)


def _words_after(seed: bytes) -> Iterator[int]:
    """Yield the words of a seed's stream after the 4,096 that every polynomial uses."""
    for root in _roots(seed, count(_BLOCKS)):
        yield from _leaves(np.frombuffer(root, dtype="<u8").reshape(1, 8), _BLOCK)[0].tolist()


def _roots(seed: bytes, blocks: Iterable[int]) -> Iterator[bytes]:
    """Yield BLAKE2Xb's root for each block of a seed's stream."""
    keyed = blake2b(key=seed, node_offset=_BLOCK << 32)
    for block in blocks:
        state = keyed.copy()
        state.update(struct.pack("<Q", block))
        yield state.digest()


def _leaves(roots: Words, size: int) -> Words:
    """Return the BLAKE2Xb output of `size` bytes for each of `(n, 8)` roots: `(n, 8 * (size // 64))`."""
    shape = len(roots), size // _HASH
    words = _START.copy()
    words[:3] ^= np.array([_HASH | _HASH << 32, size << 32, _HASH << 8], dtype=np.uint64)
    first = [np.full(shape, word) for word in words]
    first[1] ^= np.arange(shape[1], dtype=np.uint64)
    state = [*(lane.copy() for lane in first), *(np.full(shape, word) for word in _START)]
    state[12] ^= np.uint64(_HASH)  # bytes hashed
    state[14] ^= ~np.uint64(0)  # last block
    _mix_all(state, [roots[:, place : place + 1] for place in range(8)])
    output = np.empty((*shape, 8), dtype=np.uint64)
    for place, lane in enumerate(first):
        output[:, :, place] = lane ^ state[place] ^ state[place + 8]
    return output.reshape(len(roots), -1)


def _mix_all(state: list[Words], message: list[Words]) -> None:
    """Run BLAKE2b's twelve rounds over 16 lanes, in place; the upper eight words of the message are zero."""
    add, xor, left, right, both = np.add, np.bitwise_xor, np.left_shift, np.right_shift, np.bitwise_or
    spare = np.empty_like(state[0])
    for order in _ROUNDS:
        for mix, lanes in enumerate(_MIXES):
            a, b, c, d = (state[lane] for lane in lanes)
            for step, ((down_d, up_d), (down_b, up_b)) in enumerate(_TURNS):
                word = order[2 * mix + step]
                add(a, b, out=a)
                if word < len(message):
                    add(a, message[word], out=a)
                xor(d, a, out=d)
                both(right(d, down_d, out=spare), left(d, up_d, out=d), out=d)
                add(c, d, out=c)
                xor(b, c, out=b)
                both(right(b, down_b, out=spare), left(b, up_b, out=b), out=b)
