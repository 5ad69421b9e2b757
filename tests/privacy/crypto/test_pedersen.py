"""The group is that of prime order, nobody chose its generators, and nothing else is taken from outside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_core_ed25519_add, crypto_core_ed25519_is_valid_point

from privacy.crypto.pedersen import BYTES, IDENTITY, ORDER, combine, generator, generators, read_point, read_scalar
from privacy.errors import MalformedError

BASE = bytes.fromhex("5866666666666666666666666666666666666666666666666666666666666666")  # RFC 8032's B
P = 2**255 - 19
OF_ORDER_2 = (P - 1).to_bytes(BYTES, "little")  # (0, −1)
SCALARS = st.integers(-ORDER, 2 * ORDER)


def test_the_order_is_that_of_the_group() -> None:
    assert combine([(ORDER - 1, BASE), (1, BASE)]) == IDENTITY
    assert combine([]) == combine([(0, BASE), (ORDER, BASE)]) == IDENTITY


@given(SCALARS, SCALARS)
def test_scalars_add_up_in_the_exponent(one: int, other: int) -> None:
    assert combine([(one, BASE), (other, BASE)]) == combine([(one + other, BASE)])


def test_generators_are_points_of_the_group_all_different_and_always_the_same() -> None:
    points = [*generators("number", 20), *generators("hidden", 20), generator("value"), generator("blinding")]
    assert len(set(points)) == len(points)
    assert all(read_point(point) == point for point in points)
    assert generator("number", 1).hex() == "85cb5583d21345f680063e23bf946878c00927d616ad15672863872bd2ac71ef"
    assert generator("blinding").hex() == "eab8742e2c3bd69ddc75852660e77d1c19adacf91d138a2fe30d652fea02febd"


def test_a_point_of_twice_the_order_is_refused() -> None:
    # libsodium before the end of 2025 took it.
    with pytest.raises(MalformedError, match="not a point of the group"):
        read_point(crypto_core_ed25519_add(BASE, OF_ORDER_2))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        BASE + b"\0",
        BASE[:-1],
        IDENTITY,
        OF_ORDER_2,
        (1 + P).to_bytes(BYTES, "little"),  # the identity, in another form
        bytes(BYTES),  # of order 4
        (2).to_bytes(BYTES, "little"),  # on no curve
        b"\xff" * BYTES,
    ],
)
def test_anything_but_a_point_of_the_group_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError, match="not a point of the group"):
        read_point(data)


@given(st.binary(min_size=BYTES, max_size=BYTES))
def test_only_valid_points_are_read(data: bytes) -> None:
    try:
        assert read_point(data) == data
    except MalformedError:
        return
    assert crypto_core_ed25519_is_valid_point(data)
    assert combine([(ORDER - 1, data)]) == combine([(-1, data)])
    assert combine([(ORDER - 1, data), (1, data)]) == IDENTITY


def test_a_scalar_has_one_form() -> None:
    assert read_scalar((ORDER - 1).to_bytes(BYTES, "little")) == ORDER - 1
    for data in (ORDER.to_bytes(BYTES, "little"), b"", bytes(BYTES + 1), bytes(BYTES - 1)):
        with pytest.raises(MalformedError, match="too large"):
            read_scalar(data)
