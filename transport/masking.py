"""What is said in masked rounds only: protocol types to Flower records and back. See `transport.messages`."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from privacy.codec.envelope import Contribution
from privacy.crypto.masking import REVEAL_BYTES
from transport.contents import put_signed, read_signed, sum_to_arrays
from transport.fields import DIGEST, array_bytes, blob, check_names, field, lacks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from privacy.codec.envelope import SignedUpdate
    from privacy.crypto.summation import EncryptedSum


_LONGEST_PROOF = 1 << 16  # bytes
SEEDS, CODES, VALUES = "seeds", "codes", "values"  # why a sum does not open: what did not fit
REFUSAL = "refused"  # the kind of its signature, and its record
_WHY = {SEEDS, CODES, VALUES}


@dataclass(frozen=True)
class Refusal:
    """Why a site does not open a sum."""

    why: str
    liars: list[str]  # who signed false seeds
    signature: bytes = b""

    def signed_part(self, plan: str) -> bytes:
        """Return the bytes that the signature is over, for the plan of this digest."""
        return f"{plan} {self.why} {','.join(self.liars)}".encode()


@dataclass(frozen=True)
class Verdict:
    """Whether a member's update is right, as a site signed it."""

    right: bool
    signature: bytes


@dataclass(frozen=True)
class Accusation:
    """Who judged that a member's update is wrong."""

    site: str
    signature: bytes


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
    run = ConfigRecord({"manifest": manifest, "plan": plan})
    if summed:
        run["sum"] = summed
    return RecordDict({
        "run": run,
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
    """Reveal a sealed seed, with its site's signature before it."""
    return RecordDict({"reveal": ConfigRecord({"sealed": sealed})})


def read_revealed(content: RecordDict) -> bytes:
    """Read a signature and a sealed seed."""
    sealed = field(content, "reveal", "sealed", bytes)
    if len(sealed) != REVEAL_BYTES:
        lacks("reveal.sealed")
    return sealed


def pack_to_prove(manifest: bytes, shown: EncryptedSum, agreed: Mapping[str, bytes], summed: str) -> RecordDict:
    """Show a site all that there is of a sum but its ciphertexts, for it to prove how long its update is."""
    return RecordDict({
        "run": ConfigRecord({"manifest": manifest, "sum": summed}),
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


def pack_refusal(refusal: Refusal) -> RecordDict:
    """Say why a sum does not open."""
    return RecordDict({REFUSAL: ConfigRecord(asdict(refusal))})


def find_refusal(content: RecordDict) -> Refusal | None:
    """Read why a site does not open a sum; nothing if it says anything else."""
    if REFUSAL not in content:
        return None
    fields: dict[str, type] = {"why": str, "liars": list, "signature": bytes}
    refusal = Refusal(**{name: field(content, REFUSAL, name, kind) for name, kind in fields.items()})
    check_names(refusal.liars, "refused.liars")
    if refusal.why not in _WHY or bool(refusal.liars) != (refusal.why == SEEDS):
        lacks("refused.why")
    return refusal


def pack_body(manifest: bytes, plan: bytes, update: SignedUpdate, accusation: Accusation | None = None) -> RecordDict:
    """Ask a site whether a member's update is right, which another said is wrong, or nobody did yet."""
    content = RecordDict({"run": ConfigRecord({"manifest": manifest, "plan": plan})})
    content["accusation"] = ConfigRecord(asdict(accusation) if accusation else {})
    return put_signed(content, update)


def read_body(content: RecordDict) -> tuple[bytes, SignedUpdate, Accusation | None]:
    """Return the plan, an update, and who said that it is wrong."""
    accusation, found = content.get("accusation"), None
    if not isinstance(accusation, ConfigRecord):
        lacks("accusation")
    if accusation:
        site, signature = field(content, "accusation", "site", str), field(content, "accusation", "signature", bytes)
        check_names([site], "accusation.site")
        found = Accusation(site, signature)
    return field(content, "run", "plan", bytes), read_signed(content), found


def pack_verdict(verdict: Verdict) -> RecordDict:
    """Say whether a member's update is right."""
    return RecordDict({"verdict": ConfigRecord(asdict(verdict))})


def read_verdict(content: RecordDict) -> Verdict:
    """Read whether a member's update is right."""
    return Verdict(field(content, "verdict", "right", bool), field(content, "verdict", "signature", bytes))
