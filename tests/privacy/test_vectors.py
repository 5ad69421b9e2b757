"""Golden files: what one version wrote, every later one must read alike, and refuse alike.

They hold fixed keys, one ciphertext, and one document of each kind, with what they decode to; and a museum of bad
ones, each with the error that it must cause. `tests/privacy/golden.py` writes them.
"""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from privacy import errors
from privacy.accounting import Mechanism
from privacy.ciphertext import (
    C0_BYTES,
    CODE_BYTES,
    COEFF_MODULUS,
    Ciphertexts,
    add_residues,
    pack60,
    residues,
    seeds_digest,
)
from privacy.encryption import DecryptionKey
from privacy.envelope import Contribution, SignedUpdate, verify_update
from privacy.expansion import expand
from privacy.ledger import Ledger
from privacy.mac import MacKey
from privacy.manifest import open_manifest
from privacy.packing import PLAIN_MODULUS, RING_DEGREE, unpack
from privacy.plan import read_plan
from privacy.randomness import Randomness
from privacy.roster import open_roster
from privacy.signing import SignedDocument
from privacy.summation import EncryptedSum, RunningSum, check_sum
from tests.privacy.consortium import (
    LAYOUT,
    MODEL,
    PARAMETERS,
    decrypted,
    header_of,
    make_roster,
    packed,
    public_hex,
    resigned,
    run_settings,
)
from tests.privacy.golden import FOLDER, VECTOR

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from privacy.manifest import Manifest
    from privacy.plan import RoundPlan
    from privacy.roster import Roster
    from privacy.signing import PublicKey


@cache
def stored(name: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads((FOLDER / f"{name}.json").read_text())


@cache
def wire() -> bytes:
    return b64decode(stored("ciphertext")["wire"])


@cache
def key() -> DecryptionKey:
    return DecryptionKey.from_bytes(b64decode(stored("ciphertext")["key"]))


def coefficients() -> np.ndarray:
    known = np.zeros((1, RING_DEGREE), np.uint64)
    known[0, :PARAMETERS] = stored("ciphertext")["coefficients"]
    return known


def tagged() -> np.ndarray:
    known = coefficients()
    known[0, -1] = stored("ciphertext")["tag"]
    return known


@dataclass(frozen=True)
class Documents:
    authority: PublicKey
    roster: Roster
    manifest: Manifest
    run: str
    plan: RoundPlan
    update: SignedUpdate


@cache
def documents() -> Documents:
    """Open everything that is good, from the files alone."""
    data = stored("documents")
    authority = load_der_public_key(b64decode(data["authority"]))
    roster = open_roster(data["roster"].encode(), authority)  # type: ignore[arg-type]
    manifest, run = open_manifest(data["manifest"].encode(), roster.manifest_key)
    update = SignedUpdate(data["header"].encode(), bytes.fromhex(data["signature"]), (wire(),))
    return Documents(authority, roster, manifest, run, read_plan(data["plan"].encode()), update)  # type: ignore[arg-type]


def test_the_known_ciphertext_decrypts_to_the_known_coefficients() -> None:
    ciphertexts = Ciphertexts.read([wire()], 1)
    assert ciphertexts.digest == stored("ciphertext")["digest"]
    assert seeds_digest(ciphertexts.seeds) == stored("ciphertext")["seeds_digest"]
    np.testing.assert_array_equal(decrypted(key(), [wire()[:C0_BYTES]], [ciphertexts.seeds], 1), tagged())


def test_the_known_code_is_the_known_sites_for_the_known_plan() -> None:
    total, mac = Ciphertexts.read([wire()], 1).alone, MacKey(bytes.fromhex(stored("ciphertext")["secret"]))
    nonce = str(header_of(documents().update)["nonce"])
    assert int.from_bytes(total.codes, "little") == stored("ciphertext")["code"]
    assert next(mac.check(total, documents().plan, {"north": nonce})).c0 == wire()[:C0_BYTES]
    with pytest.raises(errors.AuthenticityError, match="nothing was decrypted"):
        next(mac.check(total, documents().plan, {"south": nonce}))


def test_the_sum_of_the_known_ciphertext_with_itself_is_twice_as_much() -> None:
    c0, seed = wire()[:C0_BYTES], wire()[C0_BYTES:-CODE_BYTES]
    total = residues(c0).copy()
    add_residues(total, residues(c0))
    opened = decrypted(key(), [pack60(total.reshape(-1))], [seed] * 2, 1)
    np.testing.assert_array_equal(opened, 2 * tagged() % PLAIN_MODULUS)


def test_the_known_seed_expands_to_the_known_c1() -> None:
    assert (
        sha256(expand(wire()[C0_BYTES:-CODE_BYTES]).astype("<u8").tobytes()).hexdigest() == stored("ciphertext")["c1"]
    )


def test_the_known_coefficients_are_what_packing_makes_and_unpack_to_the_vector() -> None:
    packing = documents().manifest.packing
    np.testing.assert_array_equal(packed(VECTOR, 1.0, packing, Randomness.seeded(7, "golden")), coefficients())
    mean = unpack([coefficients()], PARAMETERS, [1.0], packing).vector
    np.testing.assert_allclose(mean, VECTOR, rtol=0, atol=packing.max_error([1.0]))


def test_the_known_key_is_stored_as_it_was() -> None:
    assert key().to_bytes() == b64decode(stored("ciphertext")["key"])


def test_the_known_documents_verify_and_say_the_same() -> None:
    data, found = stored("documents"), documents()
    assert data["coordinator"] == public_hex("coordinator") == found.roster.coordinator_key
    assert found.roster == make_roster()
    assert found.manifest.settings == run_settings()
    assert found.run == data["run"] == found.plan.run
    assert found.plan.digest == data["plan_digest"]
    assert found.plan.to_bytes() == data["plan"].encode()
    assert SignedDocument.open(data["roster"].encode(), "roster", found.authority).digest == data["roster_digest"]
    assert (LAYOUT.digest, MODEL.digest) == (data["layout_digest"], data["model_digest"])


def test_the_known_update_is_verified_and_signing_it_again_gives_the_same_bytes() -> None:
    found = documents()
    verified = verify_update(found.update, "north", found.plan, found.manifest, found.roster)
    assert verified.header.layout == LAYOUT.digest
    assert resigned(found.update, "north", {}) == found.update


def test_a_sum_with_the_known_update_alone_is_too_small() -> None:
    found = documents()
    part = Contribution(found.update.header, found.update.signature, wire()[C0_BYTES:-CODE_BYTES])
    total = EncryptedSum(found.plan.to_bytes(), (part,), (wire()[:C0_BYTES],), wire()[-CODE_BYTES:])
    with pytest.raises(errors.ProtocolError, match="over 1 sites, fewer than the minimum"):
        check_sum(total, found.run, found.manifest, found.roster)


def open_ledger(file: str, folder: Path) -> list[Mechanism]:
    path = folder / "ledger"
    path.write_text(file)
    known = stored("ledger")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(known["public_key"]))
    return Ledger(path, known["site"], known["lineage"], key).mechanisms()


def test_the_known_ledger_counts_three_charges(tmp_path: Path) -> None:
    assert open_ledger(stored("ledger")["file"], tmp_path) == [Mechanism(1.0, 0.1, 5)] * 3


def _open_update(data: str) -> object:
    signature, _, header = data.partition("\n")
    update = SignedUpdate(header.encode(), bytes.fromhex(signature), (wire(),))
    return verify_update(update, "north", documents().plan, documents().manifest, documents().roster)


@pytest.mark.parametrize("bad", stored("bad"), ids=lambda bad: f"{bad['kind']}: {bad['name']}")
def test_each_bad_one_is_refused_with_its_own_error(bad: dict[str, str], tmp_path: Path) -> None:
    readers: dict[str, Callable[[str], object]] = {
        "manifest": lambda data: open_manifest(data.encode("latin-1"), documents().roster.manifest_key),
        "roster": lambda data: open_roster(data.encode("latin-1"), documents().authority),
        "plan": lambda data: read_plan(data.encode()),
        "update": _open_update,
        "ledger": lambda data: open_ledger(data, tmp_path),
    }
    with pytest.raises(errors.CloisterError) as caught:
        readers[bad["kind"]](bad["data"])
    assert type(caught.value).__name__ == bad["error"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("a flipped bit in c0", "AuthenticityError"),
        ("a flipped bit in the seed", "AuthenticityError"),
        ("a flipped bit in the code", "AuthenticityError"),
        ("cut", "MalformedError"),
        ("padded", "MalformedError"),
        ("twice", "MalformedError"),
        ("two chunks", "MalformedError"),
        ("in two", "MalformedError"),
        ("empty", "MalformedError"),
        ("no chunk", "MalformedError"),
        ("a coefficient of q, signed", "MalformedError"),
        ("a code of q, signed", "MalformedError"),
    ],
)
def test_the_known_update_with_a_bad_body_is_refused(name: str, error: str) -> None:
    flipped, seed, code = bytearray(wire()), bytearray(wire()), bytearray(wire())
    flipped[1_000] ^= 4
    seed[C0_BYTES] ^= 4
    code[-1] ^= 4
    words = residues(wire()[:C0_BYTES]).copy()
    words[0, 0] = COEFF_MODULUS
    update = {
        "a flipped bit in c0": replace(documents().update, chunks=(bytes(flipped),)),
        "a flipped bit in the seed": replace(documents().update, chunks=(bytes(seed),)),
        "a flipped bit in the code": replace(documents().update, chunks=(bytes(code),)),
        "cut": replace(documents().update, chunks=(wire()[:-1],)),
        "padded": replace(documents().update, chunks=(wire() + b"\0",)),
        "twice": replace(documents().update, chunks=(wire() * 2,)),
        "two chunks": replace(documents().update, chunks=(wire(), wire())),
        "in two": replace(documents().update, chunks=(wire()[:1_000], wire()[1_000:])),
        "empty": replace(documents().update, chunks=(b"",)),
        "no chunk": replace(documents().update, chunks=()),
        "a coefficient of q, signed": resigned(
            documents().update, "north", {}, pack60(words.reshape(-1)) + wire()[C0_BYTES:]
        ),
        "a code of q, signed": resigned(
            documents().update, "north", {}, wire()[:-CODE_BYTES] + COEFF_MODULUS.to_bytes(CODE_BYTES, "little")
        ),
    }[name]
    found, running = documents(), RunningSum(documents().plan)
    with pytest.raises(errors.CloisterError) as caught:
        running.add(verify_update(update, "north", found.plan, found.manifest, found.roster))
    assert type(caught.value).__name__ == error
    assert running.sites == ()


def test_a_damaged_known_key_is_refused() -> None:
    data = b64decode(stored("ciphertext")["key"])
    for broken in (data[:-1], data + b"\0", bytes([data[0] ^ 1]) + data[1:], data[:-1] + bytes([data[-1] ^ 1])):
        with pytest.raises(errors.KeyFileError):
            DecryptionKey.from_bytes(broken)
