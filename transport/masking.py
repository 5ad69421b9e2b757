"""What the two messages say that end a masked round: protocol types to Flower records and back.

query.agree   manifest, plan, the contributors' signed headers  → their set, signed; sealed seeds of masks to take off
query.reveal  the same, and what all of them signed             → the seed of the site's own mask, sealed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from privacy.envelope import Contribution
from privacy.masking import SEALED_BYTES
from transport.fields import array_bytes, blob, field, lacks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def pack_contributors(
    manifest: bytes, plan: bytes, contributions: Sequence[Contribution], agreed: Mapping[str, bytes] | None = None
) -> RecordDict:
    """Show a site who contributed; then, to have it reveal its seed, what all of them signed."""
    headers: dict[str, Array] = {}
    for index, part in enumerate(contributions):
        headers |= {f"header-{index}": blob(part.header), f"signature-{index}": blob(part.signature)}
    return RecordDict({
        "run": ConfigRecord({"manifest": manifest, "plan": plan}),
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
