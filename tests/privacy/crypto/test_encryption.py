"""Sums decrypt exactly, ciphertexts never repeat, and no bytes from outside crash the decryption."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from hashlib import sha256
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.codec.ciphertext import (
    C0_BYTES,
    CIPHERTEXT_BYTES,
    COEFF_MODULUS,
    SEED_BYTES,
    Ciphertexts,
    SummedCiphertexts,
    add_residues,
    pack60,
)
from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE, Packing, Profile, unpack
from privacy.codec.update import Update
from privacy.crypto.encryption import DecryptionKey
from privacy.errors import AuthenticityError, KeyFileError, MalformedError
from privacy.noise.randomness import Randomness
from tests.privacy.consortium import (
    decrypted,
    decryption_key,
    few,
    joined,
    make_plan,
    nonce_of,
    packed,
    tag_key,
    tagged,
    uncoded,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEY_BYTES = 8 * RING_DEGREE + 32
PROFILES: tuple[Profile, ...] = get_args(Profile)


def encrypt(coefficients: np.ndarray, key: DecryptionKey | None = None) -> Ciphertexts:
    return uncoded((key or decryption_key()).encrypt(tagged(coefficients)))


def rows_of(ciphertexts: Ciphertexts) -> np.ndarray:
    return np.concatenate(list(ciphertexts.residues()))


def sum_and_decrypt(terms: list[np.ndarray]) -> np.ndarray:
    """Encrypt every term, add as the server does, without a key, and decrypt the sum."""
    c0, seeds = encrypt_and_sum(terms)
    return decrypted(decryption_key(), [c0], seeds, len(terms[0]))


def encrypt_and_sum(terms: list[np.ndarray]) -> tuple[bytes, list[bytes]]:
    total = np.zeros_like(terms[0])
    seeds = []
    for term in terms:
        ciphertexts = encrypt(term)
        add_residues(total, rows_of(ciphertexts))
        seeds.append(ciphertexts.seeds)
    return pack60(total.reshape(-1)), seeds


@few
@given(seed=st.integers(0, 1 << 32), count=st.integers(1, 2), sites=st.integers(1, 5))
def test_sums_decrypt_exactly(seed: int, count: int, sites: int) -> None:
    generator = np.random.default_rng(seed)
    terms = [generator.integers(0, PLAIN_MODULUS // sites, (count, RING_DEGREE), np.uint64) for _ in range(sites)]
    np.testing.assert_array_equal(sum_and_decrypt(terms), np.sum(terms, axis=0))


@pytest.mark.parametrize("value", [0, 1, PLAIN_MODULUS - 1])
@pytest.mark.parametrize("places", [slice(None), slice(0, 1), slice(-1, None)])
def test_plaintexts_at_the_edges_survive(value: int, places: slice) -> None:
    # SEAL stores plaintexts without their leading zeros: the shortest and the longest form must both come back.
    coefficients = np.zeros((1, RING_DEGREE), np.uint64)
    coefficients[0, places] = value
    np.testing.assert_array_equal(sum_and_decrypt([coefficients]), coefficients)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_sum_of_fifty_packed_updates_is_the_sum_of_their_integers(profile: Profile) -> None:
    packing = Packing.of(profile, cohort=50, update_bound=1.0, max_weight=1.0)
    generator = np.random.default_rng(2)
    terms = [packed(generator.normal(size=100), 1.0, packing, Randomness.seeded(number)) for number in range(50)]
    np.testing.assert_array_equal(sum_and_decrypt(terms), np.sum(terms, axis=0))


def test_encrypting_twice_shares_no_seed_and_no_residue() -> None:
    first, second = (encrypt(np.ones((3, RING_DEGREE), np.uint64)) for _ in range(2))
    seeds = {
        contribution.seeds[place : place + SEED_BYTES]
        for contribution in (first, second)
        for place in range(0, len(contribution.seeds), 64)
    }
    assert len(seeds) == 6
    assert not (rows_of(first) == rows_of(second)).any()


def test_c0_of_zeros_looks_like_any_other() -> None:
    c0 = rows_of(encrypt(np.zeros((8, RING_DEGREE), np.uint64)))
    # Uniform on [0, q): mean q/2, standard deviation q/√12; five of the mean's.
    assert abs(c0.astype(np.float64).mean() / COEFF_MODULUS - 0.5) < 5 / np.sqrt(12 * c0.size)
    assert np.unique(c0).size == c0.size


@pytest.mark.parametrize(
    ("profile", "ciphertexts", "bytes_per_parameter"),
    [("compact", 82, 2.53), ("precise", 123, 3.80), ("dense", 62, 1.91)],
)
def test_a_million_parameters_take_less_than_the_plain_floats(
    profile: Profile, ciphertexts: int, bytes_per_parameter: float
) -> None:
    packing = Packing.of(profile, cohort=10, update_bound=1.0, max_weight=1.0)
    assert packing.ciphertexts(1_000_000) == ciphertexts
    assert ciphertexts * CIPHERTEXT_BYTES / 1_000_000 <= bytes_per_parameter < 4


def test_a_ciphertext_takes_30792_bytes() -> None:
    encrypted = encrypt(np.ones((34, RING_DEGREE), np.uint64))
    assert (encrypted.count, len(encrypted.seeds), encrypted.size) == (34, 34 * SEED_BYTES, 34 * 30_792)
    assert [len(chunk) for chunk in encrypted.chunks] == [32 * CIPHERTEXT_BYTES, 2 * CIPHERTEXT_BYTES]


def test_a_key_that_was_stored_opens_what_it_encrypted() -> None:
    data = decryption_key().to_bytes()
    assert len(data) == KEY_BYTES
    read = DecryptionKey.from_bytes(data)
    assert read.to_bytes() == data
    coefficients = np.arange(RING_DEGREE, dtype=np.uint64).reshape(1, -1)
    c0, seeds = encrypt_and_sum([coefficients])
    np.testing.assert_array_equal(decrypted(read, [c0], seeds, 1), coefficients)
    back = encrypt(coefficients, read)
    c0 = pack60(rows_of(back).reshape(-1))
    np.testing.assert_array_equal(decrypted(decryption_key(), [c0], [back.seeds], 1), coefficients)


def test_two_keys_are_never_the_same() -> None:
    assert DecryptionKey.generate().to_bytes() != DecryptionKey.generate().to_bytes()


@few
@given(place=st.integers(0, KEY_BYTES - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_key_file_is_noticed(place: int, bit: int) -> None:
    # Without its digest, almost any key file would pass: whoever used it would send noise, and read noise.
    data = bytearray(decryption_key().to_bytes())
    data[place] ^= 1 << bit
    with pytest.raises(KeyFileError, match="the decryption key file is damaged; restore it"):
        DecryptionKey.from_bytes(bytes(data))


@pytest.mark.parametrize("length", [0, 1, 31, 32, KEY_BYTES - 33, KEY_BYTES - 32, KEY_BYTES - 1, KEY_BYTES + 1])
def test_a_key_file_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(KeyFileError):
        DecryptionKey.from_bytes(decryption_key().to_bytes().ljust(length, b"\0")[:length])


@few
@given(st.binary(max_size=200) | st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES))
def test_arbitrary_bytes_are_not_a_key(data: bytes) -> None:
    with pytest.raises(KeyFileError):
        DecryptionKey.from_bytes(data)


def key_of(words: NDArray[np.uint64]) -> DecryptionKey:
    data = words.astype("<u8").tobytes()
    return DecryptionKey.from_bytes(data + sha256(data).digest())


def test_keys_that_seal_draws_have_the_form_of_keys() -> None:
    for _ in range(10):
        DecryptionKey.generate().check_form()


GENUINE = np.frombuffer(decryption_key().to_bytes()[:-32], "<u8")


@pytest.mark.parametrize(
    "words",
    [
        np.zeros_like(GENUINE),
        np.ones_like(GENUINE),
        np.full_like(GENUINE, COEFF_MODULUS - 1),
        np.full_like(GENUINE, COEFF_MODULUS // 4096),
        GENUINE * np.uint64(2) % np.uint64(COEFF_MODULUS),
        np.append(GENUINE[:-1], np.uint64((int(GENUINE[-1]) + 1) % COEFF_MODULUS)),
        np.random.default_rng(1).integers(0, COEFF_MODULUS, RING_DEGREE, np.uint64),
    ],
    ids=["zero", "one", "minus one", "a constant", "twice a key", "a key but for one word", "random"],
)
def test_a_key_that_no_honest_site_makes_is_refused(words: NDArray[np.uint64]) -> None:
    with pytest.raises(MalformedError, match="an honest site would not make these keys"):
        key_of(words).check_form()


@few
@given(seed=st.integers(0, 1 << 32), sites=st.integers(1, 3))
def test_hostile_residues_and_seeds_decrypt_to_noise_and_are_refused(seed: int, sites: int) -> None:
    generator = np.random.default_rng(seed)
    c0 = pack60(generator.integers(0, COEFF_MODULUS, RING_DEGREE, np.uint64))
    opened = decrypted(decryption_key(), [c0], [generator.bytes(SEED_BYTES) for _ in range(sites)], 1)
    assert opened.shape == (1, RING_DEGREE)
    assert opened.max() < PLAIN_MODULUS
    plan = make_plan("ab" * 32)
    with pytest.raises(AuthenticityError, match="is not the sum of the updates that it claims to contain"):
        list(tag_key().check([opened], plan, {site: nonce_of(site) for site in plan.cohort}))


@pytest.mark.parametrize("word", [0, 1, COEFF_MODULUS - 1])
@pytest.mark.parametrize("seed", [bytes(SEED_BYTES), b"\xff" * SEED_BYTES])
def test_degenerate_ciphertexts_only_decrypt_to_something(word: int, seed: bytes) -> None:
    c0 = pack60(np.full(RING_DEGREE, word, np.uint64))
    assert decrypted(decryption_key(), [c0], [seed, seed, seed], 1).max() < PLAIN_MODULUS


@few
@given(c0=st.binary(max_size=100) | st.binary(min_size=C0_BYTES, max_size=C0_BYTES), seeds=st.binary(max_size=130))
def test_arbitrary_bytes_decrypt_to_something_or_are_malformed(c0: bytes, seeds: bytes) -> None:
    with contextlib.suppress(MalformedError):
        assert decrypted(decryption_key(), [c0], [seeds], 1).max() < PLAIN_MODULUS


@pytest.mark.parametrize("place", [0, RING_DEGREE - 1])
def test_a_part_c1_of_no_residues_never_reaches_seal(place: int) -> None:
    words = np.zeros(RING_DEGREE, np.uint64)
    words[place] = COEFF_MODULUS
    whole, bad = bytes(C0_BYTES), pack60(words)
    for c0, c1 in ((whole, bad), (bad, whole)):
        total = SummedCiphertexts((c0,), (), (c1,), bytes(8))
        total.check(1)
        with pytest.raises(MalformedError, match="not below the modulus q"):
            joined(decryption_key().decrypt(total.chunks()))


def test_under_another_key_a_sum_is_noise_and_unpacking_refuses_it() -> None:
    packing = Packing.of("compact", cohort=1, update_bound=1.0, max_weight=1.0)
    c0, seeds = encrypt_and_sum([packed(np.ones(9), 1.0, packing)])
    assert isinstance(unpack([decrypted(decryption_key(), [c0], seeds, 1)], 9, [1.0], packing), Update)
    with pytest.raises(MalformedError, match="the sum was altered"):
        unpack([decrypted(DecryptionKey.generate(), [c0], seeds, 1)], 9, [1.0], packing)


FORKED = """
import os, sys
import numpy as np
from privacy.codec.ciphertext import pack60
from privacy.crypto.encryption import DecryptionKey
from tests.privacy.consortium import decrypted, tagged, uncoded

key = DecryptionKey.generate()
readers = []
for child in range(3):
    reader, writer = os.pipe()
    if os.fork() == 0:
        row = np.full((1, 4096), child + 1, np.uint64)
        for _ in range(40):
            made = uncoded(key.encrypt(tagged(row)))
            c0 = pack60(next(made.residues()).reshape(-1))
            if not (decrypted(key, [c0], [made.seeds], 1) == row).all():
                os._exit(1)
        os.write(writer, made.seeds)
        os._exit(0)
    readers.append(reader)
codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in readers]
seeds = {os.read(reader, 64) for reader in readers}
sys.exit(0 if codes == [0, 0, 0] and len(seeds) == 3 else f"{codes}, {len(seeds)} seeds")
"""


def test_forked_processes_do_not_write_into_each_others_ciphertexts() -> None:
    # SEAL saves and loads through a file in memory. Were it shared, half of these would encrypt another's values.
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
