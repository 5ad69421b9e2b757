"""Writes the golden files in tests/vectors: see test_vectors.py, which reads them.

Whoever changes a format on purpose raises its version, and writes them anew (encryption is random: all values
change, none of them by accident):

    python -c "from tests.privacy.golden import write; write()"
"""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privacy.accounting import Mechanism
from privacy.ciphertext import C0_BYTES, CODE_BYTES, seeds_digest
from privacy.encryption import DecryptionKey
from privacy.envelope import SignedUpdate, sign_update
from privacy.ledger import Charge, Release
from privacy.manifest import open_manifest, sign_manifest
from privacy.masking import mask
from privacy.packing import pack
from privacy.plan import RoundPlan
from privacy.randomness import Randomness
from privacy.roster import sign_roster
from privacy.seal import binding
from privacy.signing import SignedDocument, sign
from tests.privacy.consortium import (
    KEYS,
    LAYOUT,
    MODEL,
    PARAMETERS,
    SECRET,
    authority_key,
    chained,
    mac_key,
    make_roster,
    private,
    public_hex,
    resigned,
    run_settings,
    signing_key,
    tag_key,
)
from tests.privacy.golden_streams import codes, masks

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parent.parent / "vectors"
VECTOR = np.linspace(-1, 1, PARAMETERS, dtype=np.float32)


def write() -> None:
    """Write all files anew."""
    FOLDER.mkdir(exist_ok=True)
    document = sign_manifest(run_settings(), signing_key("coordinator"), roster_version=3)
    manifest, run = open_manifest(document.to_bytes(), signing_key("coordinator").public_key())
    plan = RoundPlan(
        run=run,
        round=1,
        attempt=1,
        cohort=("north", "south", "west"),
        roster_version=3,
        epoch=2,
        keys=KEYS,
        minimum_cohort=3,
        deadline=1_800_000_000.5,
        base_model=MODEL.digest,
    )
    key = DecryptionKey.generate()
    charge = Charge(Release(run, 1, 1), Mechanism(1.0, 0.1, 5), sha256(b"ledger").hexdigest())
    packed = pack(private(VECTOR, charge), 1.0, manifest.packing, Randomness.seeded(7, "golden"))
    tagged = tag_key().tag(mask(packed, None), plan, "north")
    (block,) = tagged.blocks
    made = mac_key().authenticate(key.encrypt(replace(tagged, blocks=iter([block]))), plan, "north")
    (chunk,) = made.ciphertexts.chunks
    bound = manifest.packing.update_bound
    update = sign_update(made, plan, LAYOUT, "north", signing_key("north"), weight=1.0, update_bound=bound, mask="")
    ciphertext = {
        "key": _text(key.to_bytes()),
        "coefficients": block[0, :PARAMETERS].tolist(),  # the others are zero, but for the tag
        "secret": SECRET.hex(),
        "tag": int(block[0, -1]),
        "wire": _text(chunk),
        "code": int.from_bytes(chunk[-CODE_BYTES:], "little"),
        "digest": made.ciphertexts.digest,
        "seeds_digest": seeds_digest(made.ciphertexts.seeds),
        "c1": sha256(binding().expand(made.ciphertexts.seeds).tobytes()).hexdigest(),
    }
    roster = sign_roster(make_roster(), authority_key())
    documents = {
        "authority": _text(authority_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)),
        "coordinator": public_hex("coordinator"),
        "roster": roster.to_bytes().decode(),
        "roster_digest": roster.digest,
        "manifest": document.to_bytes().decode(),
        "run": run,
        "plan": plan.to_bytes().decode(),
        "plan_digest": plan.digest,
        "layout_digest": LAYOUT.digest,
        "model_digest": MODEL.digest,
        "header": update.header.decode(),
        "signature": update.signature.hex(),
    }
    _store("ciphertext", ciphertext)
    _store("codes", codes(plan, made.nonce, chunk[:C0_BYTES], made.ciphertexts.seeds))
    _store("masks", masks(plan))
    _store("documents", documents)
    _store("ledger", {"site": "north", "lineage": "patients", "public_key": public_hex("north"), "file": _ledger()})
    _store("bad", list(_bad(document, plan, roster, update)))


def _text(data: bytes) -> str:
    return b64encode(data).decode()


def _store(name: str, content: object) -> None:
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def _ledger(steps: int = 5, signer: str = "north") -> str:
    """Return a ledger of three charges, written line by line rather than by the code under test."""
    events: list[dict[str, object]] = [{"lineage": "patients", "site": "north", "time": "2026-01-01T00:00:00+00:00"}]
    for number in (1, 2, 3):
        event: dict[str, object] = {
            "attempt": 1,
            "discrete": False,
            "noise_multiplier": 1.0,
            "purpose": "training",
            "round": number,
            "run": "ab" * 32,
            "sample_rate": 0.1,
        }
        events.append(event | {"steps": 5, "time": f"2026-01-01T00:0{number}:00+00:00"})
    bodies = [json.dumps(event, sort_keys=True) for event in events]
    bodies = [body.replace('"steps": 5', f'"steps": {steps}', 1) for body in bodies]
    return chained((body.encode() for body in bodies), signing_key(signer)).decode()


def _bad(
    manifest: SignedDocument, plan: RoundPlan, roster: SignedDocument, update: SignedUpdate
) -> Iterator[dict[str, str]]:
    """Make what must be refused: of which kind it pretends to be, its data, and the error's class."""
    good = {"manifest": manifest.to_bytes(), "roster": roster.to_bytes()}
    for kind, data in good.items():
        other = "roster" if kind == "manifest" else "manifest"
        payload, signer = (manifest if kind == "manifest" else roster).payload, signing_key("mallory")
        flipped = bytearray(data)
        flipped[-20] ^= 1
        forged = SignedDocument.make(signer, kind, payload).to_bytes()
        relabelled = data.replace(f" {kind} ".encode(), f" {other} ".encode(), 1)
        for name, broken, error in (
            ("a flipped bit", bytes(flipped), "AuthenticityError"),
            ("cut in the payload", data[:-1], "AuthenticityError"),
            ("cut in the first line", data[:50], "MalformedError"),
            ("one byte more", data + b"\n", "AuthenticityError"),
            ("another kind", good[other], "MalformedError"),
            ("relabelled", relabelled, "MalformedError"),
            ("the other kind, relabelled", good[other].replace(other.encode(), kind.encode(), 1), "AuthenticityError"),
            ("another signer", forged, "AuthenticityError"),
            ("the signature in capitals", _capitals(data), "MalformedError"),
        ):
            yield {"kind": kind, "name": name, "data": broken.decode("latin-1"), "error": error}
    old = json.loads(roster.payload) | {"expires": 1_700_000_000.0}
    for name, kind, document, error in (
        ("expired", "roster", old, "AuthenticityError"),
        ("never expires", "roster", old | {"expires": float("inf")}, "MalformedError"),
        ("a member twice", "roster", old | {"members": old["members"][:1] * 2}, "MalformedError"),
        ("a later version", "manifest", json.loads(manifest.payload) | {"version": 2}, "MalformedError"),
        ("noise that is no number", "manifest", json.loads(manifest.payload) | {"noise_multiplier": float("nan")},
         "MalformedError"),
    ):  # fmt: skip
        key = authority_key() if kind == "roster" else signing_key("coordinator")
        made = SignedDocument.make(key, kind, json.dumps(document).encode())
        yield {"kind": kind, "name": name, "data": made.to_bytes().decode(), "error": error}
    text = plan.to_bytes().decode()
    for name, bad_plan in (
        ("spaces", text.replace(":", ": ")),
        ("a key twice", text.replace('"round":1', '"round":2,"round":1')),
        ("cut", text[:-1]),
        ("a deadline that never comes", text.replace("1800000000.5", "Infinity")),
        ("a parameter that is the manifest's", text.replace('"round"', '"noise_multiplier":0.0,"round"')),
    ):
        yield {"kind": "plan", "name": name, "data": bad_plan, "error": "MalformedError"}
    for name, broken_update, error in (
        ("another site's key", resigned(update, "south", {}), "AuthenticityError"),
        ("signed as another kind", _as_kind(update, "plan"), "AuthenticityError"),
        ("a header after signing", replace(update, header=update.header + b" "), "AuthenticityError"),
        ("half a signature", replace(update, signature=update.signature[:32]), "AuthenticityError"),
        ("another round", resigned(update, "north", {"round": 2}), "ProtocolError"),
        ("another run", resigned(update, "north", {"run": "ab" * 32}), "ProtocolError"),
        ("another site", resigned(update, "north", {"site": "south"}), "ProtocolError"),
        ("another weight", resigned(update, "north", {"weight": 0.5}), "ProtocolError"),
        ("another base model", resigned(update, "north", {"base_model": "ab" * 32}), "ProtocolError"),
        ("other keys", resigned(update, "north", {"keys": "0" * 64}), "ProtocolError"),
        ("no range", resigned(update, "north", {"update_bound": 0.0}), "MalformedError"),
        ("an infinite range", resigned(update, "north", {"update_bound": float("inf")}), "MalformedError"),
        ("a mask that the run has not", resigned(update, "north", {"mask": "ab" * 32}), "ProtocolError"),
        ("a weight above one", resigned(update, "north", {"weight": 1.5}), "MalformedError"),
        ("a later version", resigned(update, "north", {"version": 2}), "MalformedError"),
        ("two ciphertexts' parameters", resigned(update, "north", {"size": 12_286}), "MalformedError"),
        ("another body's digest", resigned(update, "north", {"ciphertexts": "ab" * 32}), "AuthenticityError"),
        ("another body's seeds", resigned(update, "north", {"seeds": "ab" * 32}), "AuthenticityError"),
    ):
        both = f"{broken_update.signature.hex()}\n{broken_update.header.decode()}"
        yield {"kind": "update", "name": name, "data": both, "error": error}
    for name, file in _bad_ledgers():
        yield {"kind": "ledger", "name": name, "data": file, "error": "LedgerError"}


def _bad_ledgers() -> Iterator[tuple[str, str]]:
    file = _ledger()
    first, second, third, fourth = file.splitlines(keepends=True)
    yield "fewer steps than were made", file.replace('"steps": 5', '"steps": 1', 1)
    yield "an entry deleted", first + second + fourth
    yield "two entries swapped", first + third + second + fourth
    yield "the first line deleted", second + third + fourth
    yield "another site", file.replace("north", "south")
    yield "the same entry twice", first + second + second + third + fourth
    yield "rewritten with another key", _ledger(1, "mallory")
    yield "digests recomputed, signatures kept", _with_signatures_of(file, _ledger(1, "mallory"))
    yield "the last signature in capitals", file[: -len(fourth)] + _capital_signature(fourth)


def _with_signatures_of(file: str, forged: str) -> str:
    """Recompute digests as somebody without the key would."""
    events, head, lines = [line.split(" ", 2)[2] for line in forged.splitlines()], "0" * 64, ""
    signature = ""
    for line, event in zip(file.splitlines(), events, strict=True):
        head = sha256(bytes.fromhex(head) + signature.encode() + event.encode()).hexdigest()
        signature = line.split(" ", 2)[1]
        lines += f"{head} {signature} {event}\n"
    return lines


def _capital_signature(line: str) -> str:
    head, signature, event = line.split(" ", 2)
    return f"{head} {signature.upper()} {event}"


def _capitals(document: bytes) -> bytes:
    magic, kind, rest = document.split(b" ", 2)
    signature, _, payload = rest.partition(b"\n")
    return b" ".join([magic, kind, signature.upper()]) + b"\n" + payload


def _as_kind(update: SignedUpdate, kind: str) -> SignedUpdate:
    return replace(update, signature=sign(signing_key("north"), kind, update.header))
