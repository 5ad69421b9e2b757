"""The wire form holds 60 bits a value, exactly; the server's sum is arithmetic modulo q and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from privacy.ciphertext import (
    C0_BYTES,
    COEFF_MODULUS,
    SEED_BYTES,
    Ciphertexts,
    add_residues,
    pack60,
    residues,
    seeds_digest,
    unpack60,
)
from privacy.errors import MalformedError
from privacy.packing import RING_DEGREE
from tests.privacy.consortium import few, relaxed

words60 = arrays.arrays(np.uint64, st.integers(0, 50).map(lambda n: 2 * n), elements=st.integers(0, (1 << 60) - 1))


@relaxed
@given(words60)
@example(np.full(4, (1 << 60) - 1, np.uint64))
@example(np.array([0, (1 << 60) - 1, (1 << 60) - 1, 0], np.uint64))
def test_packing_to_60_bits_keeps_every_bit(words: np.ndarray) -> None:
    data = pack60(words)
    assert len(data) * 2 == words.size * 15
    np.testing.assert_array_equal(unpack60(data), words)


@relaxed
@given(words60)
def test_the_packed_form_is_one_little_endian_number(words: np.ndarray) -> None:
    number = sum(int(word) << 60 * place for place, word in enumerate(words))
    assert pack60(words) == number.to_bytes(words.size * 15 // 2, "little")


@relaxed
@given(st.integers(0, 20).flatmap(lambda n: st.binary(min_size=15 * n, max_size=15 * n)))
def test_every_string_of_whole_pairs_unpacks_and_packs_to_itself(data: bytes) -> None:
    assert pack60(unpack60(data)) == data


def random_residues(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, COEFF_MODULUS, (count, RING_DEGREE), np.uint64)


@few
@given(seed=st.integers(0, 1 << 32), count=st.integers(0, 3))
def test_residues_come_back_in_rows(seed: int, count: int) -> None:
    words = random_residues(seed, count)
    words[:, :2] = [0, COEFF_MODULUS - 1]
    np.testing.assert_array_equal(residues(pack60(words.reshape(-1))), words)


@few
@given(place=st.integers(0, 2 * RING_DEGREE - 1), value=st.integers(COEFF_MODULUS, (1 << 60) - 1))
@example(place=0, value=COEFF_MODULUS)
def test_a_value_of_q_or_more_is_refused_wherever_it_stands(place: int, value: int) -> None:
    words = random_residues(1, 2).reshape(-1)
    words[place] = value
    with pytest.raises(MalformedError, match="a coefficient is not below the modulus q"):
        residues(pack60(words))


@pytest.mark.parametrize("length", [1, 15, C0_BYTES - 15, C0_BYTES - 1, C0_BYTES + 1, 2 * C0_BYTES - 15])
def test_cut_and_padded_residues_are_refused(length: int) -> None:
    with pytest.raises(MalformedError) as caught:
        residues(bytes(length))
    assert str(caught.value) == (
        f"{length:,} bytes are not a whole number of ciphertexts; the update was cut or padded"
    )


@few
@given(seed=st.integers(0, 1 << 32), terms=st.integers(1, 6))
def test_adding_is_integer_arithmetic_modulo_q(seed: int, terms: int) -> None:
    rows = [random_residues(seed + number, 1) for number in range(terms)]
    for row in rows:
        row[0, :4] = [0, 1, COEFF_MODULUS - 1, COEFF_MODULUS // 2 + 1]
    total = np.zeros((1, RING_DEGREE), np.uint64)
    for row in rows:
        add_residues(total, row)
    columns = zip(*(row[0].tolist() for row in rows), strict=True)
    assert total[0].tolist() == [sum(column) % COEFF_MODULUS for column in columns]


def test_a_sum_of_q_itself_is_zero() -> None:
    total = np.full((1, RING_DEGREE), COEFF_MODULUS - 1, np.uint64)
    add_residues(total, np.ones((1, RING_DEGREE), np.uint64))
    assert not total.any()


def test_adding_a_thousand_largest_residues_stays_below_q() -> None:
    total = np.zeros((1, RING_DEGREE), np.uint64)
    largest = np.full_like(total, COEFF_MODULUS - 1)
    for _ in range(1_000):
        add_residues(total, largest)
    assert set(total[0].tolist()) == {-1_000 % COEFF_MODULUS}


@pytest.mark.parametrize("count", [1, 2, 82])
def test_the_wire_form_is_30784_bytes_a_ciphertext_and_cuts_back(count: int) -> None:
    assert C0_BYTES + SEED_BYTES == 30_784
    ciphertexts = Ciphertexts(b"c" * count * C0_BYTES, b"s" * count * SEED_BYTES)
    data = ciphertexts.to_bytes()
    assert len(data) == 30_784 * count
    assert ciphertexts.count == count
    assert Ciphertexts.from_bytes(data, count) == ciphertexts


@pytest.mark.parametrize(
    ("length", "count"), [(0, 1), (30_783, 1), (30_785, 1), (30_784, 2), (2 * 30_784, 1), (30_784, 0)]
)
def test_another_length_than_the_counts_is_refused(length: int, count: int) -> None:
    with pytest.raises(MalformedError) as caught:
        Ciphertexts.from_bytes(bytes(length), count)
    assert str(caught.value) == (
        f"{count} ciphertexts take {count * 30_784:,} bytes, not {length:,}; the update was cut or padded"
    )


@few
@given(st.integers(0, 30_783), st.integers(0, 7))
def test_the_digest_covers_every_bit_and_the_seeds_digest_every_seed(place: int, bit: int) -> None:
    data = bytearray(30_784)
    whole = Ciphertexts.from_bytes(bytes(data), 1)
    data[place] ^= 1 << bit
    flipped = Ciphertexts.from_bytes(bytes(data), 1)
    assert flipped.digest != whole.digest
    assert (flipped.seeds_digest != whole.seeds_digest) == (place >= C0_BYTES)
    assert flipped.seeds_digest == seeds_digest(flipped.seeds)
