"""Sums decrypt exactly, ciphertexts never repeat, and no bytes from outside crash the decryption."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.ciphertext import C0_BYTES, COEFF_MODULUS, SEED_BYTES, add_residues, pack60, residues
from privacy.encryption import DecryptionKey
from privacy.errors import AuthenticityError, KeyFileError, MalformedError
from privacy.packing import PLAIN_MODULUS, RING_DEGREE, Packing, Profile, pack, unpack
from privacy.randomness import Randomness
from privacy.tag import TaggedUpdate
from privacy.update import Update
from tests.privacy.consortium import CHARGE, decryption_key, few, make_plan, private, tag_key

KEY_BYTES = 8 * RING_DEGREE + 32
PROFILES: tuple[Profile, ...] = get_args(Profile)


def encrypt_and_sum(terms: list[np.ndarray]) -> tuple[bytes, list[bytes]]:
    """Encrypt every term and add as the server does, without a key."""
    total = np.zeros_like(terms[0])
    seeds = []
    for term in terms:
        ciphertexts = decryption_key().encrypt(TaggedUpdate(term, CHARGE)).ciphertexts
        add_residues(total, residues(ciphertexts.c0))
        seeds.append(ciphertexts.seeds)
    return pack60(total.reshape(-1)), seeds


@few
@given(seed=st.integers(0, 1 << 32), count=st.integers(1, 2), sites=st.integers(1, 5))
def test_sums_decrypt_exactly(seed: int, count: int, sites: int) -> None:
    generator = np.random.default_rng(seed)
    terms = [generator.integers(0, PLAIN_MODULUS // sites, (count, RING_DEGREE), np.uint64) for _ in range(sites)]
    c0, seeds = encrypt_and_sum(terms)
    np.testing.assert_array_equal(decryption_key().decrypt_sum(c0, seeds), np.sum(terms, axis=0))


@pytest.mark.parametrize("value", [0, 1, PLAIN_MODULUS - 1])
@pytest.mark.parametrize("places", [slice(None), slice(0, 1), slice(-1, None)])
def test_plaintexts_at_the_edges_survive(value: int, places: slice) -> None:
    # SEAL stores plaintexts without their leading zeros: the shortest and the longest form must both come back.
    coefficients = np.zeros((1, RING_DEGREE), np.uint64)
    coefficients[0, places] = value
    c0, seeds = encrypt_and_sum([coefficients])
    np.testing.assert_array_equal(decryption_key().decrypt_sum(c0, seeds), coefficients)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_sum_of_fifty_packed_updates_is_the_sum_of_their_integers(profile: Profile) -> None:
    packing = Packing.of(profile, cohort=50, update_bound=1.0, max_weight=1.0)
    generator = np.random.default_rng(2)
    packed = [
        pack(private(generator.normal(size=100)), 1.0, packing, Randomness.seeded(number)).coefficients
        for number in range(50)
    ]
    c0, seeds = encrypt_and_sum(packed)
    np.testing.assert_array_equal(decryption_key().decrypt_sum(c0, seeds), np.sum(packed, axis=0))


def test_encrypting_twice_shares_no_seed_and_no_residue() -> None:
    packed = TaggedUpdate(np.ones((3, RING_DEGREE), np.uint64), CHARGE)
    first, second = (decryption_key().encrypt(packed).ciphertexts for _ in range(2))
    seeds = {
        each.seeds[place : place + SEED_BYTES] for each in (first, second) for place in range(0, len(each.seeds), 64)
    }
    assert len(seeds) == 6
    assert not (residues(first.c0) == residues(second.c0)).any()


def test_c0_of_zeros_looks_like_any_other() -> None:
    c0 = residues(decryption_key().encrypt(TaggedUpdate(np.zeros((8, RING_DEGREE), np.uint64), CHARGE)).ciphertexts.c0)
    # Uniform on [0, q): mean q/2, standard deviation q/√12; five of the mean's.
    assert abs(c0.astype(np.float64).mean() / COEFF_MODULUS - 0.5) < 5 / np.sqrt(12 * c0.size)
    assert np.unique(c0).size == c0.size


@pytest.mark.parametrize(
    ("profile", "ciphertexts", "bytes_per_parameter"), [("compact", 82, 2.53), ("precise", 123, 3.80)]
)
def test_a_million_parameters_take_less_than_the_plain_floats(
    profile: Profile, ciphertexts: int, bytes_per_parameter: float
) -> None:
    packing = Packing.of(profile, cohort=10, update_bound=1.0, max_weight=1.0)
    assert packing.ciphertexts(1_000_000) == ciphertexts
    assert ciphertexts * (C0_BYTES + SEED_BYTES) / 1_000_000 <= bytes_per_parameter < 4


def test_what_encryption_makes_is_30784_bytes_a_ciphertext() -> None:
    made = decryption_key().encrypt(TaggedUpdate(np.ones((2, RING_DEGREE), np.uint64), CHARGE)).ciphertexts
    assert (len(made.c0), len(made.seeds), len(made.to_bytes())) == (2 * C0_BYTES, 2 * SEED_BYTES, 2 * 30_784)


def test_a_key_that_was_stored_opens_what_it_encrypted() -> None:
    data = decryption_key().to_bytes()
    assert len(data) == KEY_BYTES
    read = DecryptionKey.from_bytes(data)
    assert read.to_bytes() == data
    coefficients = np.arange(RING_DEGREE, dtype=np.uint64).reshape(1, -1)
    c0, seeds = encrypt_and_sum([coefficients])
    np.testing.assert_array_equal(read.decrypt_sum(c0, seeds), coefficients)
    back = read.encrypt(TaggedUpdate(coefficients, CHARGE)).ciphertexts
    np.testing.assert_array_equal(decryption_key().decrypt_sum(back.c0, [back.seeds]), coefficients)


def test_two_keys_are_never_the_same() -> None:
    assert DecryptionKey.generate().to_bytes() != DecryptionKey.generate().to_bytes()


@few
@given(place=st.integers(0, KEY_BYTES - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_key_file_is_noticed(place: int, bit: int) -> None:
    # Without its digest, almost any key file would pass: whoever used it would send noise, and read noise.
    data = bytearray(decryption_key().to_bytes())
    data[place] ^= 1 << bit
    with pytest.raises(KeyFileError, match="the decryption key's file is damaged; restore it"):
        DecryptionKey.from_bytes(bytes(data))


@pytest.mark.parametrize("length", [0, 1, 31, 32, KEY_BYTES - 33, KEY_BYTES - 32, KEY_BYTES - 1, KEY_BYTES + 1])
def test_a_key_file_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(KeyFileError):
        DecryptionKey.from_bytes(decryption_key().to_bytes().ljust(length, b"\0")[:length])


@few
@given(st.binary(max_size=200) | st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES))
def test_arbitrary_bytes_are_no_key(data: bytes) -> None:
    with pytest.raises(KeyFileError):
        DecryptionKey.from_bytes(data)


@few
@given(seed=st.integers(0, 1 << 32), sites=st.integers(1, 3))
def test_hostile_residues_and_seeds_decrypt_to_noise_and_are_refused(seed: int, sites: int) -> None:
    generator = np.random.default_rng(seed)
    c0 = pack60(generator.integers(0, COEFF_MODULUS, RING_DEGREE, np.uint64))
    opened = decryption_key().decrypt_sum(c0, [generator.bytes(SEED_BYTES) for _ in range(sites)])
    assert opened.shape == (1, RING_DEGREE)
    assert opened.max() < PLAIN_MODULUS
    plan = make_plan("ab" * 32)
    with pytest.raises(AuthenticityError, match="is not that of the updates it is said to hold"):
        tag_key().check(opened, plan, plan.cohort)


@pytest.mark.parametrize("word", [0, 1, COEFF_MODULUS - 1])
@pytest.mark.parametrize("seed", [bytes(SEED_BYTES), b"\xff" * SEED_BYTES])
def test_degenerate_ciphertexts_only_decrypt_to_something(word: int, seed: bytes) -> None:
    c0 = pack60(np.full(RING_DEGREE, word, np.uint64))
    assert decryption_key().decrypt_sum(c0, [seed, seed, seed]).max() < PLAIN_MODULUS


@few
@given(c0=st.binary(max_size=100) | st.binary(min_size=C0_BYTES, max_size=C0_BYTES), seeds=st.binary(max_size=130))
def test_arbitrary_bytes_decrypt_to_something_or_are_malformed(c0: bytes, seeds: bytes) -> None:
    with contextlib.suppress(MalformedError):
        assert decryption_key().decrypt_sum(c0, [seeds]).max(initial=0) < PLAIN_MODULUS


@pytest.mark.parametrize(
    ("ciphertexts", "seeds"),
    [
        pytest.param(1, [], id="no seeds"),
        pytest.param(1, [b""], id="empty seeds"),
        pytest.param(1, [bytes(63)], id="a cut seed"),
        pytest.param(1, [bytes(65)], id="a padded seed"),
        pytest.param(1, [bytes(128)], id="seeds of two ciphertexts for one"),
        pytest.param(2, [bytes(64)], id="seeds of one ciphertext for two"),
        pytest.param(1, [bytes(64), bytes(63)], id="the second site's seed cut"),
    ],
)
def test_seeds_that_do_not_belong_to_the_sum_never_reach_seal(ciphertexts: int, seeds: list[bytes]) -> None:
    with pytest.raises(MalformedError, match=f"do not belong to a sum of {ciphertexts} ciphertexts"):
        decryption_key().decrypt_sum(bytes(ciphertexts * C0_BYTES), seeds)


def test_under_another_key_a_sum_is_noise_and_unpacking_refuses_it() -> None:
    packing = Packing.of("compact", cohort=1, update_bound=1.0, max_weight=1.0)
    c0, seeds = encrypt_and_sum([pack(private(np.ones(9)), 1.0, packing, Randomness.fresh()).coefficients])
    assert isinstance(unpack(decryption_key().decrypt_sum(c0, seeds), 9, [1.0], packing), Update)
    with pytest.raises(MalformedError, match="it was altered"):
        unpack(DecryptionKey.generate().decrypt_sum(c0, seeds), 9, [1.0], packing)


FORKED = """
import os, sys
import numpy as np
from privacy.encryption import DecryptionKey
from privacy.tag import TaggedUpdate
from tests.privacy.consortium import CHARGE

key = DecryptionKey.generate()
readers = []
for child in range(3):
    reader, writer = os.pipe()
    if os.fork() == 0:
        row = np.full((1, 4096), child + 1, np.uint64)
        for _ in range(40):
            made = key.encrypt(TaggedUpdate(row, CHARGE)).ciphertexts
            if not (key.decrypt_sum(made.c0, [made.seeds]) == row).all():
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
