"""Commitments to vectors of integers that add up, as the integers do (Pedersen, CRYPTO 1991).

    commit(x, ρ) = Σ x[j]·G[j] + ρ·H        in the group of prime order ℓ of edwards25519, by libsodium

Nobody knows one generator as a multiple of another: they are hashes. So whoever could open a commitment to two vectors
would have solved a discrete logarithm, and as long as ρ is uniform and unknown, a commitment says nothing of its
vector, to any computer. Sums of commitments are commitments to the sums.

Points and scalars have 32 bytes. A point from outside is checked to be one of the group, in its only form: libsodium
before the end of 2025 took some points of order 2ℓ (CVE-2025-69277).
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
    """Return the generator of that name and number: eight times the first hash that is a point at all."""
    for tried in count():
        point = sha256(f"cloister generator {name} {index} {tried}".encode()).digest()
        with suppress(NotAPointError):
            for _ in range(3):
                point = crypto_core_ed25519_add(point, point)
            return point
    raise AssertionError  # half of all hashes are points


def generators(name: str, count: int) -> list[bytes]:
    """Return the first generators of a name."""
    return [generator(name, index) for index in range(count)]


def combine(terms: Iterable[tuple[int, bytes]]) -> bytes:
    """Return Σ scalar·point, over points of the group."""
    total = IDENTITY
    for scalar, point in terms:
        reduced = scalar % ORDER
        if reduced:  # libsodium has no product that is the identity
            product = crypto_scalarmult_ed25519_noclamp(reduced.to_bytes(BYTES, "little"), point)
            total = crypto_core_ed25519_add(total, product)
    return total


def read_point(data: bytes) -> bytes:
    """Return a point from outside.

    Raises:
        MalformedError: if these bytes are none, or the identity.
    """
    if len(data) != BYTES or not crypto_core_ed25519_is_valid_point(data):
        msg = "a commitment is no point of the group; run the same version everywhere"
        raise MalformedError(msg)
    return data


def read_scalar(data: bytes) -> int:
    """Return a scalar from outside, below ℓ.

    Raises:
        MalformedError: if it is not in its only form.
    """
    scalar = int.from_bytes(data, "little")
    if len(data) != BYTES or scalar >= ORDER:
        msg = "a proof holds a number that is too large; run the same version everywhere"
        raise MalformedError(msg)
    return scalar
