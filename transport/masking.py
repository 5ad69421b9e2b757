"""What the message says with which a site reveals its mask's seed: protocol types to Flower records and back.

query.reveal  manifest, plan, the signed headers of its whole cohort  → the seed, sealed to the sites
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from privacy.envelope import Contribution
from privacy.masking import SEALED_BYTES
from transport.fields import array_bytes, blob, field, lacks

if TYPE_CHECKING:
    from collections.abc import Sequence


def pack_reveal(manifest: bytes, plan: bytes, contributions: Sequence[Contribution]) -> RecordDict:
    """Ask a site to reveal its seed, and show it who contributed."""
    headers: dict[str, Array] = {}
    for index, part in enumerate(contributions):
        headers |= {f"header-{index}": blob(part.header), f"signature-{index}": blob(part.signature)}
    return RecordDict({"run": ConfigRecord({"manifest": manifest, "plan": plan}), "cohort": ArrayRecord(headers)})


def read_reveal(content: RecordDict) -> tuple[bytes, list[Contribution]]:
    """Return the plan, and the headers of its cohort."""
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


def pack_revealed(sealed: bytes) -> RecordDict:
    """Reveal a sealed seed."""
    return RecordDict({"reveal": ConfigRecord({"sealed": sealed})})


def read_revealed(content: RecordDict) -> bytes:
    """Read a sealed seed."""
    sealed = field(content, "reveal", "sealed", bytes)
    if len(sealed) != SEALED_BYTES:
        lacks("reveal.sealed")
    return sealed
