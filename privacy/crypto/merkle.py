"""Commit to many values with one digest; a short proof shows any one of them (Merkle, CRYPTO 1987).

Leaves and nodes are hashed with different prefixes, as in RFC 6962, section 2.1, so that neither passes for the other.
The leaves are padded with zeros to a power of two, so the number of values determines the length of a proof.

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
    """Return the length of a proof for one of `count` values, in bytes."""
    return DIGEST_BYTES * (count - 1).bit_length()


def root(values: Sequence[bytes]) -> bytes:
    """Return the digest that commits to all values, 32 bytes."""
    return _levels(values)[-1][0]


def proof(values: Sequence[bytes], index: int) -> bytes:
    """Return the proof that the value at an index is in the tree: one digest per level, from the leaves up."""
    return b"".join(level[(index >> depth) ^ 1] for depth, level in enumerate(_levels(values)[:-1]))


def root_of(value: bytes, index: int, path: bytes) -> bytes:
    """Return the root that a proof gives for a value at an index."""
    digest = _leaf(value)
    for start in range(0, len(path), DIGEST_BYTES):
        other = path[start : start + DIGEST_BYTES]
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
