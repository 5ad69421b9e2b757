"""Golden files: what one version wrote, every later one must read alike, and refuse alike.

They hold fixed keys, ciphertexts, whole rounds, and one document and message of each kind, with what they decode to;
and a museum of bad ones, each with the error that it must cause. `tests/privacy/golden.py` writes them; a reader that
was written from docs/protocol.md alone reads them too, in tests/second.
"""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key

from privacy import errors
from privacy.accounting.accounting import Mechanism
from privacy.codec.ciphertext import (
    C0_BYTES,
    CODE_BYTES,
    Ciphertexts,
    add_residues,
    pack60,
    residues,
    seeds_digest,
)
from privacy.codec.envelope import Contribution, SignedUpdate, verify_update
from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE, unpack
from privacy.codec.update import Layout
from privacy.crypto.encryption import DecryptionKey
from privacy.crypto.expansion import expand
from privacy.crypto.key_epoch import EpochKeys, SealingKey, read_letter
from privacy.crypto.mac import MacKey
from privacy.crypto.pairs import read_pair
from privacy.crypto.signing import SignedDocument
from privacy.crypto.summation import EncryptedSum, check_sum
from privacy.ledger.ledger import Ledger
from privacy.noise.randomness import Randomness
from privacy.run.manifest import open_manifest, open_run
from privacy.run.plan import read_plan
from privacy.run.roster import open_roster
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
    signing_key,
)
from tests.privacy.golden import VECTOR
from tests.privacy.golden_numbers import numbers
from tests.privacy.golden_rounds import Golden, model_of, opened, seeds_of
from tests.privacy.golden_streams import codes, masks
from tests.privacy.golden_training import steps_and_rates
from tests.privacy.golden_wire import entry
from tests.privacy.readers import READERS, arrays_of, reply_of
from tests.privacy.vectors import good_parts, parts_of, stored
from transport.parcel import decode_instruction
from transport.run_messages import sum_from_arrays

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.crypto.signing import PublicKey
    from privacy.run.manifest import Manifest
    from privacy.run.plan import RoundPlan
    from privacy.run.roster import Roster


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
    manifest, run = open_run(data["manifest"].encode(), roster)[1:3]
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
    data, made_now = stored("documents"), documents()
    assert data["coordinator"] == public_hex("coordinator") == made_now.roster.people[0].signing_key
    assert made_now.roster == make_roster()
    assert made_now.manifest.settings == run_settings()
    assert made_now.run == data["run"] == made_now.plan.run
    assert made_now.plan.digest == data["plan_digest"]
    assert made_now.plan.to_bytes() == data["plan"].encode()
    assert SignedDocument.open(data["roster"].encode(), "roster", made_now.authority).digest == data["roster_digest"]
    assert (LAYOUT.digest, MODEL.digest) == (data["layout_digest"], data["model_digest"])


def test_the_known_update_is_verified_and_signing_it_again_gives_the_same_bytes() -> None:
    golden = documents()
    verified = verify_update(golden.update, "north", golden.plan, golden.manifest, golden.roster)
    assert verified.header.layout == LAYOUT.digest
    assert resigned(golden.update, "north", {}) == golden.update


def test_a_sum_with_the_known_update_alone_is_too_small() -> None:
    golden = documents()
    part = Contribution(golden.update.header, golden.update.signature, wire()[C0_BYTES:-CODE_BYTES])
    total = EncryptedSum(golden.plan.to_bytes(), (part,), (wire()[:C0_BYTES],), wire()[-CODE_BYTES:])
    with pytest.raises(errors.ProtocolError, match=r"has too few contributors \(1\)"):
        check_sum(total, golden.run, golden.manifest, golden.roster)


def test_the_known_ledger_counts_every_charge(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_text(stored("ledger")["file"])
    known = stored("ledger")
    ledger = Ledger(path, known["site"], known["lineage"], signing_key("north"))
    names = ("noise_multiplier", "sample_rate", "steps", "discrete")
    assert ledger.mechanisms() == [
        Mechanism.response(charge["epsilon"]) if "epsilon" in charge else Mechanism(*(charge[name] for name in names))
        for charge in known["charges"]
    ]
    assert [entry.head for entry in ledger.entries().charges] == [charge["head"] for charge in known["charges"]]
    assert ledger.head == known["head"]


@pytest.mark.parametrize("kind", READERS)
def test_each_good_one_is_read(kind: str) -> None:
    READERS[kind](good_parts(kind))


@pytest.mark.parametrize("kind", READERS)
def test_each_bad_one_is_refused_with_its_own_error(kind: str) -> None:
    expected = {bad["name"]: bad["error"] for bad in stored("bad")["bad"] if bad["kind"] == kind}
    results = dict.fromkeys(expected, "none")
    for bad in stored("bad")["bad"]:
        if bad["kind"] == kind:
            try:
                READERS[kind](parts_of(bad))
            except errors.CloisterError as error:
                results[bad["name"]] = type(error).__name__
    assert expected
    assert results == expected


def test_names_of_bad_records_are_reported_once() -> None:
    names = [(bad["kind"], bad["name"]) for bad in stored("bad")["bad"]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", stored("wire")["messages"])
def test_each_known_message_is_read_as_before(kind: str) -> None:
    known = stored("wire")["messages"][kind]
    message = decode_instruction(bytes.fromhex(known["body"]))
    assert entry(bytes.fromhex(known["body"]), message.content) == known
    assert (message.metadata.message_type, message.metadata.dst_node_id) == (kind, stored("wire")["node"])


@pytest.mark.parametrize("kind", stored("wire")["replies"])
def test_each_known_reply_is_read_as_before(kind: str) -> None:
    known = stored("wire")["replies"][kind]
    assert entry(bytes.fromhex(known["body"]), reply_of(bytes.fromhex(known["body"]))) == known


def test_the_known_letters_contain_the_known_keys_and_secret() -> None:
    known, roster = stored("keys"), documents().roster
    key = SealingKey(bytes.fromhex(known["sealing_keys"]["south"]))
    keys = read_letter(known["letter"].encode(), "north", roster, "south", key)
    assert (keys.epoch, keys.fingerprint) == (known["epoch"], known["fingerprint"])
    assert keys.to_bytes() == good_parts("keys")["data"]
    secret = read_pair(bytes.fromhex(known["pair_letter"]), keys, roster, "north", "south", key)
    assert secret.hex() == known["pair_secret"]


def test_the_known_runs_have_the_known_steps_and_learning_rates() -> None:
    for known in stored("training")["runs"]:
        manifest, _ = open_manifest(known["manifest"].encode(), signing_key("coordinator").public_key())
        steps, rates = steps_and_rates(manifest)
        assert steps == manifest.round_cost.steps == known["steps"]
        np.testing.assert_allclose(rates, known["rates"], rtol=1e-14)  # other machines may round cosines otherwise


def test_values_derived_from_fixed_keys_are_unchanged() -> None:
    codes_, plan = stored("codes"), read_plan(stored("masks")["plan"].encode())
    computed = codes(plan, codes_["nonce"], wire()[:C0_BYTES], wire()[C0_BYTES:-CODE_BYTES])
    assert plain(computed) == codes_
    assert plain(masks(plan)) == stored("masks")
    computed, known = plain(numbers()), plain(stored("numbers"))
    for documents_ in (computed, known):
        del documents_["shared_noise"]["manifest"]  # has a nonce and the time in it
    del known["evaluation"]  # of a model that torch drew: see tests/client/work/test_evaluation.py
    for name in ("edges", "vector"):  # sums of cosines and roots, which other machines may round otherwise
        np.testing.assert_allclose(computed["statistics"].pop(name), known["statistics"][name], rtol=1e-12)
        computed["statistics"][name] = known["statistics"][name]
    assert computed == known


@pytest.mark.parametrize("name", ["round", "large"])
def test_the_known_sums_open_to_the_known_models(name: str) -> None:
    known = stored(name)
    keys = EpochKeys(2, key(), bytes.fromhex(stored("ciphertext")["secret"]))
    manifest, _ = open_run(known["manifest"].encode(), documents().roster)[1:3]
    roster = open_roster(known["roster"].encode(), documents().authority)
    layout = Layout(tuple((part, tuple(shape)) for part, shape in known["layout"]))
    kind = {"round": "sum", "large": "large sum"}[name]
    total = sum_from_arrays(arrays_of(good_parts(kind)))
    plan, model = read_plan(known["plan"].encode()), model_of(layout)
    assert (plan.digest, plan.base_model, layout.digest) == (known["plan_digest"], model.digest, known["layout_digest"])
    golden = Golden(roster, manifest, plan, model, keys, total, known["update_bound"], {})
    assert plain(opened(golden, *seeds_of(golden))) == known["opened"]


def plain(value: object) -> Any:  # noqa: ANN401 - JSON
    """Return what JSON makes of a value."""
    return json.loads(json.dumps(value))


def test_a_damaged_known_key_is_refused() -> None:
    data = b64decode(stored("ciphertext")["key"])
    for broken in (data[:-1], data + b"\0", bytes([data[0] ^ 1]) + data[1:], data[:-1] + bytes([data[-1] ^ 1])):
        with pytest.raises(errors.KeyFileError):
            DecryptionKey.from_bytes(broken)
