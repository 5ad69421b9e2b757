"""Writes the golden files in tests/vectors: see test_vectors.py, which reads them.

Whoever changes a format on purpose raises its version, and writes them anew (encryption is random: all values
change, none of them by accident):

    python -c "from tests.privacy.golden import write; write()"
"""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256

import numpy as np
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privacy.accounting.accounting import Mechanism
from privacy.codec.ciphertext import C0_BYTES, CODE_BYTES, Ciphertexts, seeds_digest
from privacy.codec.envelope import Contribution, SignedUpdate, sign_update
from privacy.codec.packing import pack
from privacy.crypto.agreement import set_digest
from privacy.crypto.encryption import DecryptionKey
from privacy.crypto.key_epoch import EpochKeys
from privacy.crypto.masking import mask
from privacy.crypto.seal import binding
from privacy.crypto.signing import sign
from privacy.ledger.ledger import Charge, Release
from privacy.noise.randomness import Randomness
from privacy.run.manifest import open_manifest
from privacy.run.new_manifest import sign_manifest
from privacy.run.plan import RoundPlan
from privacy.run.roster import sign_roster
from tests.client.evaluations import made_up_evaluation
from tests.privacy import golden_bad, golden_bad_sums, golden_bad_wire, golden_norm
from tests.privacy.consortium import (
    KEYS,
    LAYOUT,
    MODEL,
    PARAMETERS,
    SECRET,
    authority_key,
    mac_key,
    make_roster,
    private,
    public_hex,
    run_settings,
    signing_key,
    tag_key,
)
from tests.privacy.golden_bad import ledger_lines
from tests.privacy.golden_keys import letters
from tests.privacy.golden_norm import norms
from tests.privacy.golden_numbers import numbers
from tests.privacy.golden_rounds import Golden, large_round, masked_round, text
from tests.privacy.golden_streams import codes, masks
from tests.privacy.golden_training import trainings
from tests.privacy.golden_wire import messages
from tests.privacy.vectors import FOLDER, change, good_parts, store

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
    authenticated = mac_key().authenticate(key.encrypt(replace(tagged, blocks=iter([block]))), plan, "north")
    (chunk,) = authenticated.ciphertexts.chunks
    bound = manifest.packing.update_bound
    update = sign_update(
        authenticated, plan, LAYOUT, "north", signing_key("north"), weight=1.0, update_bound=bound, mask=""
    )
    ciphertext = {
        "key": text(key.to_bytes()),
        "values": VECTOR.tolist(),
        "rounding_key": sha256(repr((7, "golden")).encode()).hexdigest(),
        "coefficients": block[0, :PARAMETERS].tolist(),  # the others are zero, but for the tag
        "secret": SECRET.hex(),
        "tag": int(block[0, -1]),
        "wire": text(chunk),
        "code": int.from_bytes(chunk[-CODE_BYTES:], "little"),
        "digest": authenticated.ciphertexts.digest,
        "seeds_digest": seeds_digest(authenticated.ciphertexts.seeds),
        "c1": sha256(binding().expand(authenticated.ciphertexts.seeds).tobytes()).hexdigest(),
    }
    roster = sign_roster(make_roster(), authority_key())
    documents = {
        "authority": text(authority_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)),
        "coordinator": public_hex("coordinator"),
        "roster": roster.to_bytes().decode(),
        "roster_digest": roster.digest,
        "manifest": document.to_bytes().decode(),
        "run": run,
        "plan": plan.to_bytes().decode(),
        "plan_digest": plan.digest,
        "layout": LAYOUT.shapes,
        "model": MODEL.vector.tolist(),
        "layout_digest": LAYOUT.digest,
        "model_digest": MODEL.digest,
        "header": update.header.decode(),
        "signature": update.signature.hex(),
    }
    keys = EpochKeys(2, key, SECRET)
    round_, golden = masked_round(keys)
    store("ciphertext", ciphertext)
    store("codes", codes(plan, authenticated.nonce, chunk[:C0_BYTES], authenticated.ciphertexts.seeds))
    store("masks", masks(plan))
    store("documents", documents | {"signed": text(_signed(update))})
    store("ledger", _ledger())
    store("keys", letters(keys))
    store("round", round_ | _contributors(golden, authenticated.ciphertexts))
    store("large", large_round(keys)[0])
    store("numbers", numbers() | {"evaluation": made_up_evaluation()})
    store("wire", messages(run))
    store("norm", norms())
    store("training", trainings())
    write_bad()


def write_bad() -> None:
    """Write the bad vectors anew, as changes of what the other files hold."""
    kinds = golden_bad.KINDS | golden_bad_sums.KINDS | golden_bad_wire.KINDS | golden_norm.KINDS
    store("bad", {"kinds": kinds, "bad": []})
    bad = [
        {
            "kind": bad_one.kind,
            "name": bad_one.name,
            "parts": {
                name: change(good_parts(bad_one.kind).get(name, b""), part) for name, part in bad_one.parts.items()
            },
            "error": bad_one.error,
        }
        for bad_one in (
            *golden_bad.documents(),
            *golden_bad_sums.sums(),
            *golden_bad_wire.wire(),
            *golden_norm.bad_norms(),
        )
    ]
    store("bad", {"kinds": kinds, "bad": bad})


def _signed(north: SignedUpdate) -> bytes:
    """Return headers of three sites for one body, and their signatures, as contributions to a sum travel."""
    weights = {"south": 200 / 300, "west": 100 / 300}
    one = Contribution(north.header, north.signature, b"")
    others = (golden_bad.resigned(one, {"site": site, "weight": weight}) for site, weight in weights.items())
    return golden_bad.joined([one, *others])


def _contributors(golden: Golden, ciphertexts: Ciphertexts) -> dict[str, object]:
    """Return what sites are shown of a masked round; and an update with masks whose body is the known ciphertext."""
    contributions = [
        replace(contribution, seeds=b"", reveal=b"", pairs=b"") for contribution in golden.total.contributions
    ]
    south = next(
        contribution
        for contribution in golden.total.contributions
        if json.loads(contribution.header)["site"] == "south"
    )
    changes = {"size": PARAMETERS, "ciphertexts": ciphertexts.digest, "seeds": seeds_digest(ciphertexts.seeds)}
    changed = golden_bad.resigned(south, changes)
    agreed = {json.loads(contribution.header)["site"]: contribution for contribution in contributions}
    statement = f"{golden.plan.digest} {set_digest({site: part.header for site, part in agreed.items()})}".encode()
    return {
        "shown": text(golden_bad.joined(contributions)),
        "agreed": json.dumps({site: sign(signing_key(site), "agree", statement).hex() for site in agreed}),
        "masked_update": {
            "header": changed.header.decode(),
            "signature": changed.signature.hex(),
            "commitments": golden.commitments["south"].hex(),
        },
    }


def _ledger() -> dict[str, object]:
    """Return a ledger with lines of every kind, written line by line rather than by the code under test."""
    run, other = "ab" * 32, "cd" * 32
    charge: dict[str, object] = {"run": run, "round": 1, "attempt": 1, "purpose": "training"}
    cost: dict[str, object] = {"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 5, "discrete": False}
    failed = charge | {"round": 2}
    before: list[dict[str, object]] = [
        {"site": "north", "lineage": "patients"},
        charge | cost,
        charge | {"left": "12" * 32},
        failed | cost,
        failed | {"left": ""},
        failed | cost,
        failed | {"left": "34" * 32},
    ]
    after: list[dict[str, object]] = [
        {"adopted": public_hex("north before")},
        charge | {"run": other} | cost | {"steps": 1, "discrete": True},
        charge | {"run": other, "purpose": "statistics"} | cost | {"sample_rate": 1, "steps": 1},
        charge | {"run": other, "attempt": 2, "purpose": "evaluation"} | cost | {"sample_rate": 1, "steps": 1},
        charge | {"run": other, "purpose": "vote", "epsilon": 0.5},
        charge | {"run": other, "purpose": "vote", "left": "56" * 32},
        charge | {"run": other, "round": 2} | cost | {"records_per_person": 3},
        charge | {"run": other, "round": 2, "purpose": "vote", "epsilon": 0.5, "records_per_person": 3},
        charge | {"run": other, "round": 0, "attempt": 0} | cost | {"steps": 500},
        {"lost": ["78" * 32, "9a" * 32]},
    ]
    bodies = [
        json.dumps(event | {"time": f"2026-01-01T00:{minute:02}:00+00:00"}, sort_keys=True).encode()
        for minute, event in enumerate([*before, *after])
    ]
    file = ledger_lines(bodies[: len(before)], "north before")
    file = ledger_lines(bodies[len(before) :], "north", file)
    return {
        "site": "north",
        "lineage": "patients",
        "public_key": public_hex("north"),
        "keys": [public_hex("north before")] * len(before) + [public_hex("north")] * len(after),
        "file": file.decode(),
        "head": file.splitlines()[-1][:64].decode(),
        "charges": [event | {"head": line[:64].decode()} for event, line in zip(
            [*before, *after], file.splitlines(), strict=True) if {"steps", "epsilon"} & event.keys()],
    }  # fmt: skip
