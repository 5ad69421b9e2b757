"""Commitments to many values by one digest, of which any one can be shown with a short proof (Merkle, CRYPTO 1987).

Leaves and nodes are hashed with different prefixes, as in RFC 6962, section 2.1, so that neither passes for the other.
The tree is filled up to a power of two with zeros: how long a proof is follows from how many values there are.

>>> values = [b"a", b"b", b"c"]
>>> root_of(b"b", 1, proof(values, 1)) == root(values)
True
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

DIGEST_BYTES = 32


def proof_bytes(count: int) -> int:
    """Return how long a proof is for one of `count` values."""
    return DIGEST_BYTES * (count - 1).bit_length()


def root(values: Sequence[bytes]) -> bytes:
    """Return the digest that commits to all values, 32 bytes."""
    return _levels(values)[-1][0]


def proof(values: Sequence[bytes], index: int) -> bytes:
    """Return what shows that the value at an index is one of those committed to: a digest a level, from below."""
    return b"".join(level[(index >> depth) ^ 1] for depth, level in enumerate(_levels(values)[:-1]))


def root_of(value: bytes, index: int, shown: bytes) -> bytes:
    """Return the root that a value at an index has by a proof."""
    digest = _leaf(value)
    for start in range(0, len(shown), DIGEST_BYTES):
        other = shown[start : start + DIGEST_BYTES]
        digest, index = (_node(other, digest) if index & 1 else _node(digest, other)), index >> 1
    return digest


def _levels(values: Sequence[bytes]) -> list[list[bytes]]:
    width = 1 << (len(values) - 1).bit_length()
    levels = [[_leaf(value) for value in values] + [bytes(DIGEST_BYTES)] * (width - len(values))]
    while len(levels[-1]) > 1:
        below = levels[-1]
        levels.append([_node(left, right) for left, right in zip(below[::2], below[1::2], strict=True)])
    return levels


def _leaf(value: bytes) -> bytes:
    return sha256(b"\0" + value).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()
