"""Seeds expand to what SEAL makes of them, to the bit, without SEAL."""

from __future__ import annotations

import os
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tenseal.sealapi as seal
from hypothesis import given
from hypothesis import strategies as st

from privacy.codec.ciphertext import COEFF_MODULUS, SEED_BYTES, add_residues
from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE
from privacy.crypto.expansion import _expand, _leaves, add_expanded, expand
from privacy.crypto.seal import binding
from privacy.errors import MalformedError
from tests.privacy.consortium import few

if TYPE_CHECKING:
    from pathlib import Path

WORDS = 8 * RING_DEGREE
GOLDEN = "64dd6556b31c086f428a09f6dec882f8fc569e522b38bd9f5e8e13f920eafd21"  # SHA-256 of c1
OFTEN = 1085102592571318273  # just over 2^64 / 17: SEAL passes over one word in 17


def by_seal(seed: bytes) -> np.ndarray:
    """Let SEAL expand a seed."""
    return binding().expand(seed)


@few
@given(st.binary(min_size=SEED_BYTES, max_size=SEED_BYTES))
def test_a_seed_expands_to_what_seal_makes_of_it(seed: bytes) -> None:
    np.testing.assert_array_equal(expand(seed), by_seal(seed))


def test_hundreds_of_seeds_expand_to_what_seal_makes_of_them() -> None:
    seeds = os.urandom(200 * SEED_BYTES)
    total = np.zeros((200, RING_DEGREE), np.uint64)
    add_expanded(total, seeds)
    for index, row in enumerate(total):
        np.testing.assert_array_equal(row, by_seal(seeds[index * SEED_BYTES : (index + 1) * SEED_BYTES]))


def test_one_seed_expands_to_the_same_in_every_version() -> None:
    assert sha256(expand(bytes(range(64))).astype("<u8").tobytes()).hexdigest() == GOLDEN


def test_words_that_would_favour_small_residues_are_replaced_in_seals_order(tmp_path: Path) -> None:
    # Modulo q this happens once in 2^34 ciphertexts; modulo another prime, 240 times in each.
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    parameters.set_poly_modulus_degree(RING_DEGREE)
    parameters.set_coeff_modulus([seal.Modulus(OFTEN)])
    parameters.set_plain_modulus(PLAIN_MODULUS)
    context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)  # noqa: FBT003 - positional in the binding
    seeded = seal.Encryptor(context, seal.KeyGenerator(context).secret_key()).encrypt_zero_symmetric()
    frame = binding()._save(seeded)
    (tmp_path / "seeded").write_bytes(frame)
    whole = seal.Ciphertext()
    whole.load(context, str(tmp_path / "seeded"))
    c1 = np.frombuffer(binding()._save(whole)[-WORDS:], dtype="<u8")
    np.testing.assert_array_equal(_expand([frame[-SEED_BYTES:]], OFTEN)[0], c1)


def test_blake2xb_gives_what_was_published() -> None:
    # One of the vectors of golang.org/x/crypto/blake2b, 196 bytes long: all but its last hash, which is a shorter one.
    published = (
        "cdeb07d36dc5f9a1cd717a9e9cca37a2ce93caa298eee63571f7d6c5fde2a11c666cf53cf2dcb41ca2ea2319e7230ca6"
        "8e38c647905928713a13982bf47fe33d7095ebd50b2df976208920a43eb2e29b942f32467403c45cea18bf44e0f6aeb1"
        "55b48a8e5c471fec972a9d62f7ae093d2758f0aaec7ca50cb4725bfa219f1a3a46ad6bde7361f445f86b94d66b8ece08"
        "0e56c510250693a5d0ea0ae87b4421860b853bcf0381eae4f1bf7c5c0472a93ad18407bc88475ab8560d344a921d3e86"
    )
    root = blake2b(bytes(range(256)), key=bytes(range(64)), node_offset=196 << 32).digest()
    assert _leaves(np.frombuffer(root, dtype="<u8").reshape(1, 8), 196).astype("<u8").tobytes().hex() == published


def test_adding_is_modulo_q() -> None:
    seeds = os.urandom(3 * SEED_BYTES)
    start = np.full((3, RING_DEGREE), COEFF_MODULUS - 1, np.uint64)
    total = start.copy()
    add_expanded(total, seeds)
    add_residues(start, np.stack([expand(seeds[place : place + SEED_BYTES]) for place in (0, 64, 128)]))
    np.testing.assert_array_equal(total, start)
    assert total.max() < COEFF_MODULUS


@pytest.mark.parametrize("length", [0, 63, 65, 128])
def test_seeds_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(MalformedError, match="64 bytes of seeds, not"):
        expand(bytes(length))
