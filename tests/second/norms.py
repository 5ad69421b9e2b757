"""Second reader: how long updates are, after "How long updates are" in docs/protocol.md. Slow: plain Python."""

from __future__ import annotations

import struct
from functools import cache
from hashlib import sha256, shake_256
from itertools import count
from math import ceil, isqrt
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.second.signed import AUTHENTICITY, MALFORMED, need, verify

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Point = tuple[int, int, int, int]  # X, Y, Z, X·Y/Z, as in RFC 8032

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
K, T, ROWS = 128, 261, 128
_D = -121665 * pow(121666, -1, P) % P
_ROOT = pow(2, (P - 1) // 4, P)
NEUTRAL: Point = (0, 1, 1, 0)


def add(one: Point, other: Point) -> Point:
    a, b = (one[1] - one[0]) * (other[1] - other[0]) % P, (one[1] + one[0]) * (other[1] + other[0]) % P
    c, d = 2 * _D * one[3] * other[3] % P, 2 * one[2] * other[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(scalar: int, point: Point) -> Point:
    product, scalar = NEUTRAL, scalar % ORDER
    while scalar:
        if scalar & 1:
            product = add(product, point)
        point, scalar = add(point, point), scalar >> 1
    return product


def total(terms: Iterable[tuple[int, Point]]) -> Point:
    sum_ = NEUTRAL
    for scalar, point in terms:
        sum_ = add(sum_, times(scalar, point))
    return sum_


def same(one: Point, other: Point) -> bool:
    return (one[0] * other[2] - other[0] * one[2]) % P == (one[1] * other[2] - other[1] * one[2]) % P == 0


def encoded(point: Point) -> bytes:
    inverse = pow(point[2], -1, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decoded(data: bytes) -> Point | None:
    """Return a point, if these bytes are one."""
    word = int.from_bytes(data, "little")
    y, sign = word & ~(1 << 255), word >> 255
    square = (y * y - 1) * pow(_D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * _ROOT % P
    if y >= P or (x * x - square) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def read_point(data: bytes) -> Point:
    point = decoded(data)
    need(point is not None and not same(point, NEUTRAL), MALFORMED, "no point")
    assert point is not None
    need(same(add(times(ORDER - 1, point), point), NEUTRAL), MALFORMED, "no point of the group")
    return point


@cache
def generator(name: str, index: int) -> Point:
    for tried in count():
        point = decoded(sha256(f"cloister generator {name} {index} {tried}".encode()).digest())
        if point:
            return times(8, point)
    raise AssertionError


def commit(numbers: Sequence[int], blinding: int) -> Point:
    terms = [(number, generator("number", j)) for j, number in enumerate(numbers)]
    return total([*terms, (blinding, generator("blinding", 0))])


def context_of(plan: str, contributors: str, summed: str, seeds: dict[str, bytes]) -> bytes:
    digests = b"".join(map(bytes.fromhex, (plan, contributors, summed)))
    return sha256(b"cloister norm" + digests + b"".join(seeds[site] for site in sorted(seeds))).digest()


def projections(context: bytes, vector: Sequence[int]) -> list[int]:
    key = sha256(b"cloister norm signs" + context).digest()
    stream = Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(len(vector) * K // 8))
    bits = int.from_bytes(stream, "little")
    return [sum(v if bits >> (i * K + j) & 1 else -v for i, v in enumerate(vector)) for j in range(K)]


def longest(norm: float, weight: float, levels: int, bound: float, size: int) -> int:
    root = isqrt(size) + 1
    return min(ceil(norm * weight * (levels - 1) / bound) + 2 * root, (levels - 1) * root)


def blinding(secrets: dict[str, bytes], context: bytes, site: str) -> int:
    blinding_ = 0
    for other, secret in secrets.items():
        info = b"cloister norm blinding" + context + " ".join(sorted((site, other))).encode()
        drawn = int.from_bytes(HKDF(hashes.SHA256(), 64, salt=None, info=info).derive(secret), "little")
        blinding_ += drawn if site < other else -drawn
    return blinding_ % ORDER


def check(signed: bytes, subject: bytes, context: bytes, site: str, limit: int, key: bytes) -> Point:
    """Check a site's signed proof; return what it commits to."""
    signature, proof = signed[:64], signed[64:]
    verify(key, "norm", subject + proof, signature)
    bits = limit.bit_length()
    need(len(proof) == 32 * (6 + K + ROWS + bits + 3) + 15 * ROWS, MALFORMED, "length")
    points = [proof[32 * i : 32 * i + 32] for i in range(6)]
    c, m, a1, a2, t1, t0 = map(read_point, points)
    words = proof[192 : 192 + 15 * ROWS]
    masked = [int.from_bytes(words[15 * i : 15 * i + 15], "little") for i in range(ROWS)]
    rest = proof[192 + 15 * ROWS :]
    scalars = [int.from_bytes(rest[i : i + 32], "little") for i in range(0, len(rest), 32)]
    need(all(scalar < ORDER for scalar in scalars), MALFORMED, "scalar")
    z, (r1, r2, r3) = scalars[:-3], scalars[-3:]

    transcript: list[bytes] = [context, site.encode(), b"%d %d" % (K, limit)]

    def challenge(length: int, *parts: bytes) -> bytes:
        transcript.extend(parts)
        data = b"".join(struct.pack(">Q", len(part)) + part for part in transcript)
        return shake_256(b"cloister norm proof" + data).digest(length)

    drawn = int.from_bytes(challenge(ROWS * K // 8, points[0], points[1]), "little")
    rows = [[drawn >> (i * K + j) & 1 for j in range(K)] for i in range(ROWS)]
    gamma = int.from_bytes(challenge(64, words), "little") % ORDER
    powers = [pow(gamma, i + 1, ORDER) for i in range(ROWS + bits)]
    e = int.from_bytes(challenge(64, *points[2:4], *points[4:]), "little") % ORDER
    squares = [1] * K + [0] * ROWS + powers[ROWS:]
    linear = [sum(powers[i] * rows[i][j] for i in range(ROWS)) for j in range(K)]
    linear += powers[:ROWS] + [2**i - powers[ROWS + i] for i in range(bits)]
    constant = limit + sum(power * word for power, word in zip(powers, masked, strict=False))

    blind = generator("blinding", 0)
    hidden = [(value, generator("hidden", j)) for j, value in enumerate(z[K:])]
    value = sum(d * a * a for d, a in zip(squares, z, strict=True))
    value += e * sum(weight * a for weight, a in zip(linear, z, strict=True)) - e * e * constant
    need(same(commit(z[:K], r1), total([(e, c), (1, a1)])), AUTHENTICITY, "numbers")
    need(same(total([*hidden, (r2, blind)]), total([(e, m), (1, a2)])), AUTHENTICITY, "masks and bits")
    left = total([(value, generator("value", 0)), (r3, blind)])
    need(same(left, total([(e, t1), (1, t0)])), AUTHENTICITY, "equation")
    return c


def known(case: dict[str, Any], site: str) -> tuple[dict[str, bytes], list[int]]:
    """Return what a site of the golden file shares with the others, and its update in half levels."""
    entry = case["sites"][site]
    secrets = {other: bytes.fromhex(secret) for other, secret in entry["pair_secrets"].items()}
    return secrets, [((31 * entry["factor"] * j) % 401 - 200) * 10 for j in range(case["parameters"])]
