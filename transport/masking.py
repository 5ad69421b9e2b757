"""What the messages say that end a masked round: protocol types to Flower records and back.

query.agree   manifest, plan, the contributors' signed headers  → their set, signed; sealed seeds of masks to take off
query.reveal  the same, and what all of them signed             → the seed of the site's own mask, sealed
query.prove   manifest, that, the seeds, in a run with `update_norm` → a proof of how long the site's update is
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from privacy.envelope import Contribution
from privacy.masking import SEALED_BYTES
from transport.contents import sum_to_arrays
from transport.fields import DIGEST, array_bytes, blob, field, lacks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from privacy.summation import EncryptedSum

_LONGEST_PROOF = 1 << 16  # bytes


def pack_contributors(
    manifest: bytes,
    plan: bytes,
    contributions: Sequence[Contribution],
    agreed: Mapping[str, bytes] | None = None,
    summed: str = "",
) -> RecordDict:
    """Show a site who contributed; then, to have it reveal its seed, what all of them signed, and the sum's digest."""
    headers: dict[str, Array] = {}
    for index, part in enumerate(contributions):
        headers |= {f"header-{index}": blob(part.header), f"signature-{index}": blob(part.signature)}
    return RecordDict({
        "run": ConfigRecord({"manifest": manifest, "plan": plan} | ({"sum": summed} if summed else {})),
        "cohort": ArrayRecord(headers),
        "agreed": ConfigRecord(dict(agreed or {})),
    })  # fmt: skip


def read_contributors(content: RecordDict) -> tuple[bytes, list[Contribution]]:
    """Return the plan, and the headers of its contributors."""
    cohort = content.get("cohort")
    if not isinstance(cohort, ArrayRecord) or len(cohort) % 2:
        lacks("cohort")
    contributions = [
        Contribution(
            array_bytes(content, "cohort", f"header-{index}"), array_bytes(content, "cohort", f"signature-{index}"), b""
        )
        for index in range(len(cohort) // 2)
    ]
    return field(content, "run", "plan", bytes), contributions


def read_signatures(content: RecordDict) -> dict[str, bytes]:
    """Return what the contributors signed, by site."""
    agreed = content.get("agreed")
    if not isinstance(agreed, ConfigRecord):
        lacks("agreed")
    return {site: field(content, "agreed", site, bytes) for site in agreed}


def read_summed(content: RecordDict) -> str:
    """Return the digest of the sum from which a mask is to come off; empty where none is told."""
    run = content.get("run")
    digest = run.get("sum", "") if isinstance(run, ConfigRecord) else ""
    if not isinstance(digest, str) or not re.fullmatch(f"({DIGEST})?", digest):
        lacks("run.sum")
    return digest


def pack_agreed(signature: bytes, sealed: bytes) -> RecordDict:
    """Agree to a set of contributors, and bring the sealed seeds of masks that are shared with others."""
    return RecordDict({"agree": ConfigRecord({"signature": signature}), "pairs": ArrayRecord({"sealed": blob(sealed)})})


def read_agreed(content: RecordDict) -> tuple[bytes, bytes]:
    """Read a site's signature, and its sealed seeds."""
    return field(content, "agree", "signature", bytes), array_bytes(content, "pairs", "sealed")


def pack_revealed(sealed: bytes) -> RecordDict:
    """Reveal a sealed seed."""
    return RecordDict({"reveal": ConfigRecord({"sealed": sealed})})


def read_revealed(content: RecordDict) -> bytes:
    """Read a sealed seed."""
    sealed = field(content, "reveal", "sealed", bytes)
    if len(sealed) != SEALED_BYTES:
        lacks("reveal.sealed")
    return sealed


def pack_to_prove(manifest: bytes, total: EncryptedSum, agreed: Mapping[str, bytes]) -> RecordDict:
    """Show a site all that there is of a sum but its ciphertexts, for it to prove how long its update is."""
    shown = replace(total, c0=(), codes=b"", c1=())
    return RecordDict({
        "run": ConfigRecord({"manifest": manifest, "sum": total.digest}),
        "sum": sum_to_arrays(shown),
        "agreed": ConfigRecord(dict(agreed)),
    })  # fmt: skip


def pack_proof(signed: bytes) -> RecordDict:
    """Bring a proof, with its site's signature before it."""
    return RecordDict({"norm": ArrayRecord({"proof": blob(signed)})})


def read_proof(content: RecordDict) -> bytes:
    """Read a signed proof; only sites can tell whether it holds."""
    proof = array_bytes(content, "norm", "proof")
    if len(proof) > _LONGEST_PROOF:
        lacks("norm.proof")
    return proof
