"""Proofs of how long updates are, for the golden files: three sites, one proof whole, and what is wrong with others."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from privacy.codec.packing import Packing
from privacy.crypto.norm_proof import ROWS, Proof, commit
from privacy.crypto.norm_signature import sign_proof, subject_of
from privacy.crypto.norms import _blinding, context_of, longest, projection, prove_norm, state
from privacy.crypto.pedersen import BYTES, IDENTITY, ORDER, generator
from privacy.crypto.signing import SIGNATURE_BYTES
from tests.privacy.bad_vectors import Bad
from tests.privacy.consortium import shared_secrets, signing_key
from tests.privacy.vectors import good_parts, stored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SITES = ("north", "south", "west")
KINDS = {
    "proof": {"context": "hex norm/context", "subject": "hex norm/subject", "site": "text =south",
              "limit": "text norm/limit_of_south", "signed": "base64 norm/proof_of_south"},
}  # fmt: skip
_SIZE, _NORM, _BOUND = 300, 2.0, 0.5
_WEIGHTS = {"north": 1.0, "south": 0.75, "west": 0.5}
_GENERATORS = (("number", 0), ("number", 127), ("hidden", 5), ("value", 0), ("blinding", 0))
_PLAN, _SET, _SUM = (sha256(name).hexdigest() for name in (b"a plan", b"a set", b"a sum"))
_FIRST = _MASKED = 6 * BYTES
_SCALARS = _FIRST + 15 * ROWS


def half_levels(factor: int) -> NDArray[np.float64]:
    """Return an update in half levels that is easily written down: value j is ((31·factor·j) mod 401 − 200)·10."""
    return (10 * ((31 * factor * np.arange(_SIZE)) % 401 - 200)).astype(np.float64)


def norms() -> dict[str, object]:
    """Return all of it."""
    packing = Packing.of("compact", cohort=len(SITES), update_bound=_BOUND, max_weight=1.0)
    seeds = {site: sha256(f"mask of {site}".encode()).digest() for site in SITES}
    subject = subject_of(_PLAN, _SET, _SUM)
    context = context_of(subject, seeds)
    by_site, proof, total, limit = dict[str, object](), b"", np.zeros(_SIZE), 0
    for number, site in enumerate(SITES):
        update, secrets = half_levels(number + 3), shared_secrets(site, SITES)
        into = projection(context)
        into.add(update)
        length = longest(packing, _SIZE, _WEIGHTS[site], _NORM)
        blinding = _blinding(secrets, context, site)
        by_site[site] = {
            "factor": number + 3,
            "weight": _WEIGHTS[site],
            "length": length,
            "seed": seeds[site].hex(),
            "pair_secrets": {other: secret.hex() for other, secret in secrets.items()},
            "projections": into.numbers,
            "blinding": f"{blinding:064x}",
            "commitment": commit(into.numbers, blinding).hex(),
        }
        if site == "south":
            statement = state(context, site, length)
            limit, proof = statement.limit, prove_norm(statement, into.numbers, secrets)
        total += update
    into = projection(context)
    into.add(total)
    return {
        "plan": _PLAN, "set": _SET, "sum": _SUM, "subject": subject.hex(), "context": context.hex(),
        "parameters": _SIZE, "update_norm": _NORM,
        "update_bound": _BOUND, "levels": packing.levels, "sites": by_site, "projections_of_sum": into.numbers,
        "generators": {f"{name} {index}": generator(name, index).hex() for name, index in _GENERATORS},
        "limit_of_south": str(limit),
        "proof_of_south": _text(sign_proof(proof, subject, signing_key("south"))),
    }  # fmt: skip


def bad_norms() -> Iterator[Bad]:
    """Yield bad proofs."""
    good = good_parts("proof")
    signed, context, subject = good["signed"], good["context"], good["subject"]
    proof = signed[SIGNATURE_BYTES:]

    def resigned(data: bytes, site: str = "south") -> bytes:
        return sign_proof(data, subject, signing_key(site))

    def with_(place: int, data: bytes) -> bytes:
        return resigned(proof[:place] + data + proof[place + len(data) :])

    off = bytearray(proof)
    off[_MASKED] ^= 1
    two = BYTES * 2
    outside = bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f")  # of order 2
    for name, parts, error in (
        ("no proof", {"signed": b""}, "AuthenticityError"),
        ("a bit of the proof, not signed", {"signed": signed[:-1] + bytes([signed[-1] ^ 1])}, "AuthenticityError"),
        ("signed by another site", {"signed": resigned(proof, "west")}, "AuthenticityError"),
        ("of another context", {"context": sha256(context).digest()}, "AuthenticityError"),
        ("of another sum", {"subject": subject[:-1] + bytes([subject[-1] ^ 1])}, "AuthenticityError"),
        ("a byte less", {"signed": resigned(proof[:-1])}, "MalformedError"),
        ("a scalar more", {"signed": resigned(proof + bytes(BYTES))}, "MalformedError"),
        ("the neutral element", {"signed": with_(0, IDENTITY)}, "MalformedError"),
        ("a point of order 2", {"signed": with_(two, outside)}, "MalformedError"),
        ("what is no point", {"signed": with_(0, (2).to_bytes(BYTES, "little"))}, "MalformedError"),
        ("an answer of ℓ", {"signed": with_(_SCALARS, ORDER.to_bytes(BYTES, "little"))}, "MalformedError"),
        ("another limit of as many bits", {"limit": str(int(good["limit"]) - 1).encode()}, "AuthenticityError"),
        ("another commitment", {"signed": with_(0, generator("value"))}, "AuthenticityError"),
        ("another masked sum", {"signed": resigned(bytes(off))}, "AuthenticityError"),
        *(
            (f"another {part}", {"signed": with_(place, (5).to_bytes(BYTES, "little"))}, "AuthenticityError")
            for part, place in (
                ("answer of a projection", _SCALARS),
                ("answer of a mask", _SCALARS + 130 * BYTES),
                ("answer of a bit", len(proof) - 4 * BYTES),
                ("blinding of the projections", len(proof) - 3 * BYTES),
                ("blinding of the others", len(proof) - 2 * BYTES),
                ("blinding of the equation", len(proof) - BYTES),
            )
        ),
    ):
        yield Bad("proof", name, parts, error)
    assert Proof.read(proof, state(context, "south", stored("norm")["sites"]["south"]["length"])).to_bytes() == proof


def _text(data: bytes) -> str:
    return b64encode(data).decode()
