"""`cloister audit inversion`: reconstruct a digit from an update, to show what gradients reveal."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cloister.audit.gradient_inversion import DELTA, attacks
from cloister.views.plots import Panel, draw_digits

_CAPTIONS = (
    "what an ordinary federation's server\nreceives: the record itself",
    "a mixture in which the record with\nthis label dominates",
    "the same attack on what Cloister's\nsites encrypt: clipped, with noise",
    "what Cloister's server receives:\nits first 64 bytes, as pixels",
)


def demonstrate(out: Path, row: int, batch: int, epsilon: float) -> dict[str, Any]:
    """Attack a digit in four ways, draw the results, and return their correlations with the digit."""
    with TemporaryDirectory(prefix="cloister-audit-") as folder:
        truth, results = attacks(Path(folder), row, batch, epsilon)
    panels = [Panel("the record", truth, "a digit at the site", None)]
    panels += [
        Panel(result.name, result.image, caption, result.correlation)
        for result, caption in zip(results, _CAPTIONS, strict=True)
    ]
    draw_digits(panels, out)
    rows = [{"update": result.name, "correlation": round(result.correlation, 4)} for result in results]
    return {"picture": str(out), "epsilon": epsilon, "delta": DELTA, "batch": batch, "rows": rows}


def table(report: dict[str, Any]) -> str:
    """Format a report as text."""
    lines = [f"{'read back from a':<32}{'correlation with the record':>28}"]
    lines += [f"{row['update']:<32}{row['correlation']:>z28.2f}" for row in report["rows"]]
    return "\n".join([*lines, f"\n✓ {report['picture']} shows them"])
