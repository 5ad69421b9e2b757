"""The wire form holds 60 bits a value, exactly; the server's sum is arithmetic modulo q and nothing else."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from privacy.codec.ciphertext import (
    C0_BYTES,
    CIPHERTEXT_BYTES,
    CODE_BYTES,
    COEFF_MODULUS,
    SEED_BYTES,
    Accumulator,
    Ciphertexts,
    SummedCiphertexts,
    add_residues,
    pack60,
    residues,
    seeds_digest,
    unpack60,
)
from privacy.codec.packing import BLOCK, RING_DEGREE
from privacy.errors import MalformedError
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
def test_a_value_of_q_or_more_is_refused_at_every_position(place: int, value: int) -> None:
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


def wire_of(words: np.ndarray, seed: int = 1) -> list[bytes]:
    """Put residues `(n, 4096)`, random seeds and codes into chunks, as a site's ciphertexts travel."""
    generator = np.random.default_rng(seed)
    blocks = [words[start : start + BLOCK] for start in range(0, len(words), BLOCK)]
    codes = [generator.integers(0, COEFF_MODULUS, len(block), np.uint64).astype("<u8") for block in blocks]
    return [
        pack60(block.reshape(-1)) + generator.bytes(len(block) * SEED_BYTES) + code.tobytes()
        for block, code in zip(blocks, codes, strict=True)
    ]


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 82])
def test_the_wire_form_is_30792_bytes_a_ciphertext_and_cuts_back(count: int) -> None:
    assert C0_BYTES + SEED_BYTES + CODE_BYTES == CIPHERTEXT_BYTES == 30_792
    words = random_residues(count, count)
    chunks = wire_of(words)
    ciphertexts = Ciphertexts.read(chunks, count)
    assert [len(chunk) // CIPHERTEXT_BYTES for chunk in chunks] == [BLOCK] * (count // BLOCK) + [count % BLOCK] * (
        count % BLOCK > 0
    )
    assert ciphertexts.size == 30_792 * count
    assert ciphertexts.count == count
    assert ciphertexts.chunks == tuple(chunks)
    np.testing.assert_array_equal(np.concatenate(list(ciphertexts.residues())), words)
    assert len(ciphertexts.seeds) == count * SEED_BYTES
    counts = [len(chunk) // CIPHERTEXT_BYTES for chunk in chunks]
    ends = [(number * C0_BYTES, number * (C0_BYTES + SEED_BYTES)) for number in counts]
    cut = [(chunk[seeds:codes], chunk[codes:]) for chunk, (seeds, codes) in zip(chunks, ends, strict=True)]
    assert (ciphertexts.seeds, ciphertexts.codes) == tuple(map(b"".join, zip(*cut, strict=True)))
    assert ciphertexts.alone.codes == ciphertexts.codes
    ciphertexts.alone.check(count)


@pytest.mark.parametrize(
    ("lengths", "count"),
    [
        ((), 1),
        ((0,), 1),
        ((30_791,), 1),
        ((30_793,), 1),
        ((30_792,), 2),
        ((2 * 30_792,), 1),
        ((30_792,), 0),
        ((0,), 0),
        ((30_792, 30_792), 2),  # both belong into one chunk
        ((31 * 30_792, 2 * 30_792), 33),
        ((33 * 30_792,), 33),
        ((32 * 30_792, 0), 32),
        ((32 * 30_792, 30_791), 33),
    ],
)
def test_other_lengths_than_the_counts_are_refused(lengths: tuple[int, ...], count: int) -> None:
    with pytest.raises(MalformedError) as caught:
        Ciphertexts.read([bytes(length) for length in lengths], count)
    assert str(caught.value) == (
        f"{count} ciphertexts take {count * 30_792:,} bytes, not {sum(lengths):,}; they were cut or padded"
    )


@few
@given(st.integers(0, 30_791), st.integers(0, 7))
def test_the_digest_covers_every_bit_and_the_seeds_digest_every_seed(place: int, bit: int) -> None:
    data = bytearray(30_792)
    whole = Ciphertexts.read([bytes(data)], 1)
    data[place] ^= 1 << bit
    flipped = Ciphertexts.read([bytes(data)], 1)
    assert flipped.digest != whole.digest
    assert (seeds_digest(flipped.seeds) != seeds_digest(whole.seeds)) == (C0_BYTES <= place < C0_BYTES + SEED_BYTES)


def test_the_digest_covers_every_chunk_in_its_place() -> None:
    first, second = wire_of(random_residues(1, 2 * BLOCK))
    digests = {Ciphertexts(chunks).digest for chunks in ((first, second), (second, first), (first, first), (first,))}
    assert len(digests) == 4


# --- The server's sum ----------------------------------------------------------------------------------------------


def test_an_accumulator_adds_all_chunks_modulo_q() -> None:
    count = BLOCK + 2
    terms = [random_residues(number, count) for number in range(3)]
    accumulator = Accumulator(count)
    codes = np.zeros(count, np.uint64)
    for number, term in enumerate(terms):
        ciphertexts = Ciphertexts.read(wire_of(term, number), count)
        accumulator.add(ciphertexts)
        add_residues(codes, np.frombuffer(ciphertexts.codes, "<u8"))
    expected = np.zeros((count, RING_DEGREE), np.uint64)
    for term in terms:
        add_residues(expected, term)
    np.testing.assert_array_equal(np.concatenate([residues(chunk) for chunk in accumulator.chunks()]), expected)
    assert [len(chunk) for chunk in accumulator.chunks()] == [BLOCK * C0_BYTES, 2 * C0_BYTES]
    assert accumulator.code_bytes == codes.astype("<u8").tobytes()


@pytest.mark.parametrize("place", [0, BLOCK * RING_DEGREE - 1, BLOCK * RING_DEGREE, (BLOCK + 1) * RING_DEGREE - 1])
def test_no_ciphertext_is_added_if_one_residue_is_bad(place: int) -> None:
    count = BLOCK + 1
    accumulator = Accumulator(count)
    accumulator.add(Ciphertexts.read(wire_of(random_residues(1, count)), count))
    before, codes = accumulator.total.copy(), accumulator.code_bytes
    words = random_residues(2, count)
    words.reshape(-1)[place] = COEFF_MODULUS
    with pytest.raises(MalformedError, match="a coefficient is not below the modulus q"):
        accumulator.add(Ciphertexts.read(wire_of(words), count))
    np.testing.assert_array_equal(accumulator.total, before)
    assert accumulator.code_bytes == codes


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK])
@pytest.mark.parametrize("code", [COEFF_MODULUS, (1 << 64) - 1])
def test_no_ciphertext_is_added_if_one_code_is_bad(place: int, code: int) -> None:
    count = BLOCK + 1
    chunks = wire_of(random_residues(1, count))
    chunk, end = divmod(place, BLOCK)
    start = len(chunks[chunk]) - (min(BLOCK, count - chunk * BLOCK) - end) * CODE_BYTES
    chunks[chunk] = chunks[chunk][:start] + code.to_bytes(8, "little") + chunks[chunk][start + 8 :]
    accumulator = Accumulator(count)
    with pytest.raises(MalformedError, match="a coefficient is not below the modulus q"):
        accumulator.add(Ciphertexts.read(chunks, count))
    assert not accumulator.total.any()
    assert accumulator.code_bytes == bytes(count * CODE_BYTES)


@pytest.mark.parametrize("count", [1, BLOCK, BLOCK + 2])
def test_a_wrong_number_of_ciphertexts_is_not_added(count: int) -> None:
    accumulator = Accumulator(BLOCK + 1)
    with pytest.raises(MalformedError, match="they were cut or padded"):
        accumulator.add(Ciphertexts.read(wire_of(random_residues(1, count)), count))
    assert not accumulator.total.any()


@pytest.mark.parametrize("count", [1 << 62, 10**30])
def test_a_count_that_somebody_claims_costs_no_memory(count: int) -> None:
    chunk = bytes(CIPHERTEXT_BYTES)
    tracemalloc.start()
    try:
        for check in (
            lambda: Ciphertexts.read([chunk], count),
            lambda: SummedCiphertexts((chunk[:C0_BYTES],), (chunk[C0_BYTES:],), (), b"").check(count),
            lambda: SummedCiphertexts((chunk[:C0_BYTES],), (), (chunk[:C0_BYTES],), b"").check(count),
        ):
            with pytest.raises(MalformedError, match="they were cut or padded"):
                check()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
