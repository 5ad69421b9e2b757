"""The encryption benchmark's figures, and their table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

NVFLARE = "ckks-nvflare"
STEPS = ("client_cpu", "tag_cpu", "server_cpu", "decrypt_cpu")
_BYTES = ("bytes_up", "bytes_down")
_LINE = "{:<15}{:>10}{:>10}{:>9}{:>7}{:>8}{:>9}{:>10}"


@dataclass(frozen=True)
class Row:
    """The cost of one round in one pipeline: bytes per parameter, CPU seconds per million parameters."""

    pipeline: str
    parameters: int
    sites: int
    bytes_up: float  # from one site
    bytes_down: float  # to one site: the sum, with the contributors' data needed to decrypt it
    client_cpu: float  # encode, tag, encrypt, serialise
    tag_cpu: float  # the tag's part of client_cpu
    server_cpu: float  # per site: parse, check, add, and a fraction of closing the sum
    decrypt_cpu: float
    max_error: float  # of the mean, against float64; updates lie within ±1


def best(rows: Sequence[Row]) -> Row:
    """Return the minimum CPU time of each step over all rounds of a pipeline, and the largest error."""
    least = {step: min(getattr(row, step) for row in rows) for step in STEPS}
    return replace(rows[0], **least, max_error=max(row.max_error for row in rows))


def table(report: dict[str, Any]) -> str:
    """Format a report as text, in 80 columns."""
    rows = [Row(**row) for row in report["rows"]]
    theirs = next(row for row in rows if row.pipeline == NVFLARE)
    lines = [
        f"{theirs.parameters:,} parameters, {theirs.sites} sites; the best of {report['repetitions']} rounds",
        "",
        f"{'':15}{'bytes a parameter':>20}{'CPU, ms a million parameters':>33}{'largest':>10}",
        _LINE.format("", "up", "down", "site", "tag", "server", "decrypt", "error"),
    ]
    for row in rows:
        sent = (f"{getattr(row, name):,.2f}" for name in _BYTES)
        spent = (f"{1000 * getattr(row, step):,.1f}" for step in STEPS)
        lines.append(_LINE.format(row.pipeline, *sent, *spent, f"{row.max_error:.1e}"))
    lines += ["", f"{NVFLARE} takes this many times as much as:"]
    for row in rows:
        if row is not theirs:
            ratios = (
                "" if name == "tag_cpu" else f"{getattr(theirs, name) / getattr(row, name):.1f}"  # CKKS has no tag
                for name in (*_BYTES, *STEPS)
            )
            lines.append(_LINE.format(row.pipeline, *ratios, "").rstrip())
    return "\n".join(lines)
