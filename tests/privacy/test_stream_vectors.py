"""Golden files of streams, held against a second implementation: of RFC 5869, counter mode and whole numbers alone."""

from __future__ import annotations

import hmac
import json
from base64 import b64decode
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from privacy.ciphertext import C0_BYTES, CODE_BYTES, COEFF_MODULUS
from privacy.expansion import expand
from privacy.packing import PLAIN_MODULUS, RING_DEGREE
from privacy.plan import read_plan
from tests.privacy.consortium import public_hex
from tests.privacy.golden import FOLDER
from tests.privacy.golden_streams import FIRST, codes, masks

if TYPE_CHECKING:
    from collections.abc import Iterator


def stored(name: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads((FOLDER / f"{name}.json").read_text())


CODES, MASKS = stored("codes"), stored("masks")
WIRE = b64decode(stored("ciphertext")["wire"])


def derived(secret: bytes, info: bytes) -> bytes:
    """HKDF with SHA-256, no salt, 32 bytes (RFC 5869)."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\1", "sha256")


def stream(key: bytes, modulus: int) -> Iterator[int]:
    """AES-256 in counter mode from zero, cut into little-endian words; of each the upper bits, if below the modulus."""
    keystream = Cipher(AES(key), CTR(bytes(16))).encryptor()
    while True:
        word = int.from_bytes(keystream.update(bytes(8)), "little") >> (64 - modulus.bit_length())
        if word < modulus:
            yield word


def plan_digest(plan: str) -> bytes:
    """SHA-256 over the purpose and the plan's exact bytes, each behind its length."""
    data = plan.encode()
    return sha256(b"cloister" + (4).to_bytes(2, "big") + b"plan" + len(data).to_bytes(8, "big") + data).digest()


@pytest.mark.parametrize("case", CODES["rounds"], ids=["with seeds", "with c1"])
def test_a_second_implementation_makes_the_known_codes(case: dict[str, Any]) -> None:
    secret, whose = bytes.fromhex(CODES["secret"]), CODES["site"].encode()
    drawn = list(islice(stream(derived(secret, b"cloister mac rho"), COEFF_MODULUS), 2 * RING_DEGREE))
    rho = drawn[:RING_DEGREE], drawn[RING_DEGREE:]
    assert [each[:FIRST] for each in rho] == CODES["rho"]
    digest = plan_digest(case["plan"])
    assert digest.hex() == case["digest"]
    nonce = bytes.fromhex(CODES["nonce"])
    pads = stream(derived(secret, b"cloister mac pad" + digest + nonce + whose), COEFF_MODULUS)
    first = list(islice(pads, FIRST))
    assert first == case["pads"]
    number, seed = int.from_bytes(WIRE[:C0_BYTES], "little"), WIRE[C0_BYTES:-CODE_BYTES]
    c0 = [number >> 60 * place & (1 << 60) - 1 for place in range(RING_DEGREE)]
    code = first[0] + sum(r * c for r, c in zip(rho[0], c0, strict=True))
    if len(json.loads(case["plan"])["cohort"]) > 32:
        code += sum(r * c for r, c in zip(rho[1], expand(seed).tolist(), strict=True))
    assert (code % COEFF_MODULUS).to_bytes(8, "little").hex() == case["code"]


def test_the_known_code_is_the_known_ciphertexts() -> None:
    assert CODES["rounds"][0]["code"] == WIRE[-CODE_BYTES:].hex()
    assert CODES["rounds"][0]["plan"] == MASKS["plan"] == stored("documents")["plan"]


def test_a_second_implementation_makes_the_known_masks() -> None:
    digest, site = plan_digest(MASKS["plan"]), MASKS["site"]
    info, total = b"cloister mask ", [0] * FIRST
    for name, known in MASKS["streams"].items():
        if name == "own":
            secret, label = bytes.fromhex(MASKS["seed"]), b"own" + digest + site.encode()
        else:
            secret = bytes.fromhex(MASKS["secrets"][name])
            label = b"pair" + digest + json.dumps(sorted((site, name))).encode()
            assert derived(secret, info + label).hex() == MASKS["pair_seeds"][name]
        first = list(islice(stream(derived(secret, info + label), PLAIN_MODULUS), FIRST))
        assert first == known, name
        sign = -1 if name != "own" and name < site else 1  # of a pair, the first in the alphabet adds
        total = [(sum_ + sign * each) % PLAIN_MODULUS for sum_, each in zip(total, first, strict=True)]
    assert total == MASKS["masked"][:FIRST]
    assert MASKS["masked"][-1] == 0  # the tag's place


def test_a_second_implementation_opens_the_known_seed() -> None:
    seed, digest = bytes.fromhex(MASKS["seed"]), plan_digest(MASKS["plan"])
    assert sha256(b"cloister mask" + seed).hexdigest() == MASKS["commitment"]
    info = b"cloister mask reveal" + digest + bytes.fromhex(MASKS["commitment"]) + MASKS["site"].encode()
    key = derived(bytes.fromhex(MASKS["secret"]), info)
    assert AESGCM(key).decrypt(bytes(12), bytes.fromhex(MASKS["sealed"]), None) == seed


def leaf(value: bytes) -> bytes:
    return sha256(b"\0" + value).digest()


def node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


def test_a_second_implementation_makes_the_known_commitments_and_opens_the_known_pairs() -> None:
    cohort, site = json.loads(MASKS["plan"])["cohort"], MASKS["site"]
    seeds = {other: bytes.fromhex(seed) for other, seed in MASKS["pair_seeds"].items()}
    committed = [sha256(b"cloister pair" + seeds[each]).digest() if each in seeds else bytes(32) for each in cohort]
    assert b"".join(committed).hex() == MASKS["commitments"]
    north, south, west = map(leaf, committed)
    assert node(node(north, south), node(west, bytes(32))).hex() == MASKS["pairs"]
    assert MASKS["absent"] == ["west"]
    sealed = bytes.fromhex(MASKS["sealed_pairs"])
    info = b"cloister mask show" + plan_digest(MASKS["plan"]) + json.dumps([site, "west"]).encode()
    key = derived(bytes.fromhex(MASKS["secret"]), info)
    assert AESGCM(key).decrypt(bytes(12), sealed[:48], None) == seeds["west"]
    assert sealed[48:] == bytes(32) + node(north, south)


def test_a_second_implementation_verifies_the_known_agreement() -> None:
    digests = b"".join(sha256(MASKS["headers"][site].encode()).digest() for site in sorted(MASKS["headers"]))
    assert sha256(b"cloister set" + digests).hexdigest() == MASKS["set"]
    payload = f"{plan_digest(MASKS['plan']).hex()} {MASKS['set']}".encode()
    bound = b"cloister" + (5).to_bytes(2, "big") + b"agree" + len(payload).to_bytes(8, "big") + payload
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex("south")))
    key.verify(bytes.fromhex(MASKS["agreed"]), bound)


def test_this_implementation_makes_what_is_in_the_files() -> None:
    plan = read_plan(MASKS["plan"].encode())
    assert json.loads(json.dumps(codes(plan, CODES["nonce"], WIRE[:C0_BYTES], WIRE[C0_BYTES:-CODE_BYTES]))) == CODES
    assert json.loads(json.dumps(masks(plan))) == MASKS
