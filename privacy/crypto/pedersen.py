"""Implement additively homomorphic commitments to vectors of integers (Pedersen, CRYPTO 1991).

    commit(x, ρ) = Σ x[j]·G[j] + ρ·H        in the subgroup of prime order ℓ of edwards25519, by libsodium

The generators are hashes, so nobody knows one as a multiple of another. Commitments are binding: to open one to two
vectors is to solve a discrete logarithm. They are perfectly hiding: as long as ρ is uniform and unknown, a commitment
reveals nothing about its vector, whatever the computing power. Sums of commitments are commitments to the sums.

Points and scalars have 32 bytes. A point from outside must be in the group and in canonical form: libsodium before the
end of 2025 accepted some points of order 2ℓ (CVE-2025-69277).
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING

from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_core_ed25519_is_valid_point,
    crypto_scalarmult_ed25519_noclamp,
)
from nacl.exceptions import RuntimeError as NotAPointError

from privacy.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterable

ORDER = (1 << 252) + 27742317777372353535851937790883648493  # ℓ
BYTES = 32
IDENTITY = (1).to_bytes(BYTES, "little")


@cache
def generator(name: str, index: int = 0) -> bytes:
    """Return the generator with this name and index: eight times the first hash that is a point of the curve."""
    for tried in count():
        point = sha256(f"cloister generator {name} {index} {tried}".encode()).digest()
        with suppress(NotAPointError):
            for _ in range(3):
                point = crypto_core_ed25519_add(point, point)
            return point
    raise AssertionError  # half of all hashes are points


def generators(name: str, count: int) -> list[bytes]:
    """Return the first `count` generators of a name."""
    return [generator(name, index) for index in range(count)]


def combine(terms: Iterable[tuple[int, bytes]]) -> bytes:
    """Return Σ scalar·point over points of the group."""
    total = IDENTITY
    for scalar, point in terms:
        reduced = scalar % ORDER
        if reduced:  # libsodium refuses products that are the identity
            product = crypto_scalarmult_ed25519_noclamp(reduced.to_bytes(BYTES, "little"), point)
            total = crypto_core_ed25519_add(total, product)
    return total


def read_point(data: bytes) -> bytes:
    """Return a point from outside, checked.

    Raises:
        MalformedError: if these bytes are not a point of the group, or are the identity.
    """
    if len(data) != BYTES or not crypto_core_ed25519_is_valid_point(data):
        msg = "a commitment is not a point of the group; run the same version everywhere"
        raise MalformedError(msg)
    return data


def read_scalar(data: bytes) -> int:
    """Return a scalar from outside.

    Raises:
        MalformedError: if these bytes are not 32 bytes of a number below ℓ.
    """
    scalar = int.from_bytes(data, "little")
    if len(data) != BYTES or scalar >= ORDER:
        msg = "a proof contains a number that is too large; run the same version everywhere"
        raise MalformedError(msg)
    return scalar
