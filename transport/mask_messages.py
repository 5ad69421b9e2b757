"""Convert the messages of masked rounds to Flower records and back. See `transport.messages`."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from privacy.codec.envelope import Contribution
from privacy.crypto.masking import REVEAL_BYTES
from transport.fields import DIGEST, array_bytes, blobs, check_names, field, lacks
from transport.run_messages import put_signed, read_signed, sum_to_arrays

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from privacy.codec.envelope import SignedUpdate
    from privacy.crypto.summation import EncryptedSum


_LONGEST_PROOF = 1 << 16  # bytes
SEEDS, CODES, VALUES = "seeds", "codes", "values"  # why a sum does not open: what was wrong
REFUSAL = "refused"  # the signature's kind, and the record's name
_WHY = {SEEDS, CODES, VALUES}


@dataclass(frozen=True)
class Refusal:
    """Why a site does not open a sum."""

    why: str
    liars: list[str]  # sites that signed false seeds
    signature: bytes = b""

    def signed_part(self, plan: str) -> bytes:
        """Return the bytes to sign, for the plan with this digest."""
        return f"{plan} {self.why} {','.join(self.liars)}".encode()


@dataclass(frozen=True)
class Verdict:
    """A site's signed judgement of a member's update."""

    right: bool
    signature: bytes


@dataclass(frozen=True)
class Accusation:
    """A site's signed judgement that a member's update is wrong."""

    site: str
    signature: bytes


def pack_contributors(
    manifest: bytes,
    plan: bytes,
    contributions: Sequence[Contribution],
    agreed: Mapping[str, bytes] | None = None,
    summed: str = "",
) -> RecordDict:
    """Show a site the contributors; before it reveals its seed, also their signatures and the sum's digest."""
    headers: dict[str, bytes] = {}
    for index, part in enumerate(contributions):
        headers |= {f"header-{index}": part.header, f"signature-{index}": part.signature}
    run = ConfigRecord({"manifest": manifest, "plan": plan})
    if summed:
        run["sum"] = summed
    return RecordDict({
        "run": run,
        "cohort": blobs(headers),
        "agreed": ConfigRecord(dict(agreed or {})),
    })  # fmt: skip


def read_contributors(content: RecordDict) -> tuple[bytes, list[Contribution]]:
    """Return the plan, and the headers and signatures of its contributors."""
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
    """Return the contributors' signatures of their set, by site."""
    agreed = content.get("agreed")
    if not isinstance(agreed, ConfigRecord):
        lacks("agreed")
    return {site: field(content, "agreed", site, bytes) for site in agreed}


def read_summed(content: RecordDict) -> str:
    """Return the digest of the sum to be unmasked; empty if none is given."""
    run = content.get("run")
    digest = run.get("sum", "") if isinstance(run, ConfigRecord) else ""
    if not isinstance(digest, str) or not re.fullmatch(f"({DIGEST})?", digest):
        lacks("run.sum")
    return digest


def pack_agreed(signature: bytes, sealed: bytes) -> RecordDict:
    """Agree to a set of contributors, and send the sealed seeds of masks shared with absent sites."""
    return RecordDict({"agree": ConfigRecord({"signature": signature}), "pairs": blobs({"sealed": sealed})})


def read_agreed(content: RecordDict) -> tuple[bytes, bytes]:
    """Return a site's signature, and its sealed seeds."""
    return field(content, "agree", "signature", bytes), array_bytes(content, "pairs", "sealed")


def pack_revealed(sealed: bytes) -> RecordDict:
    """Reveal a sealed seed, prefixed with its site's signature."""
    return RecordDict({"reveal": ConfigRecord({"sealed": sealed})})


def read_revealed(content: RecordDict) -> bytes:
    """Return a sealed seed, prefixed with its site's signature."""
    sealed = field(content, "reveal", "sealed", bytes)
    if len(sealed) != REVEAL_BYTES:
        lacks("reveal.sealed")
    return sealed


def pack_to_prove(manifest: bytes, total: EncryptedSum, agreed: Mapping[str, bytes], summed: str) -> RecordDict:
    """Show a site a sum without its ciphertexts, and ask it to prove the norm of its update."""
    return RecordDict({
        "run": ConfigRecord({"manifest": manifest, "sum": summed}),
        "sum": sum_to_arrays(total),
        "agreed": ConfigRecord(dict(agreed)),
    })  # fmt: skip


def pack_proof(signed: bytes) -> RecordDict:
    """Send a proof, prefixed with its site's signature."""
    return RecordDict({"norm": blobs({"proof": signed})})


def read_proof(content: RecordDict) -> bytes:
    """Return a signed proof; only sites can verify it."""
    proof = array_bytes(content, "norm", "proof")
    if len(proof) > _LONGEST_PROOF:
        lacks("norm.proof")
    return proof


def pack_refusal(refusal: Refusal) -> RecordDict:
    """Say why a sum does not open."""
    return RecordDict({REFUSAL: ConfigRecord(asdict(refusal))})


def find_refusal(content: RecordDict) -> Refusal | None:
    """Return why a site does not open a sum; None if the message is not a refusal."""
    if REFUSAL not in content:
        return None
    fields: dict[str, type] = {"why": str, "liars": list, "signature": bytes}
    refusal = Refusal(**{name: field(content, REFUSAL, name, kind) for name, kind in fields.items()})
    check_names(refusal.liars, "refused.liars")
    if refusal.why not in _WHY or bool(refusal.liars) != (refusal.why == SEEDS):
        lacks("refused.why")
    return refusal


def pack_body(manifest: bytes, plan: bytes, update: SignedUpdate, accusation: Accusation | None = None) -> RecordDict:
    """Ask a site whether a member's update is right; `accusation` is another site's judgement that it is wrong."""
    content = RecordDict({"run": ConfigRecord({"manifest": manifest, "plan": plan})})
    content["accusation"] = ConfigRecord(asdict(accusation) if accusation else {})
    return put_signed(content, update)


def read_body(content: RecordDict) -> tuple[bytes, SignedUpdate, Accusation | None]:
    """Return the plan, an update, and the accusation against it, if any."""
    accusation, parsed = content.get("accusation"), None
    if not isinstance(accusation, ConfigRecord):
        lacks("accusation")
    if accusation:
        site, signature = field(content, "accusation", "site", str), field(content, "accusation", "signature", bytes)
        check_names([site], "accusation.site")
        parsed = Accusation(site, signature)
    return field(content, "run", "plan", bytes), read_signed(content), parsed


def pack_verdict(verdict: Verdict) -> RecordDict:
    """Say whether a member's update is right."""
    return RecordDict({"verdict": ConfigRecord(asdict(verdict))})


def read_verdict(content: RecordDict) -> Verdict:
    """Read whether a member's update is right."""
    return Verdict(field(content, "verdict", "right", bool), field(content, "verdict", "signature", bytes))
