"""What a run with shared noise costs a site against whom: the table that `sign` and `simulate` show."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from privacy.shared import most_parameters, observers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from privacy.manifest import Manifest


def against_whom(manifest: Manifest) -> dict[str, Any]:
    """Return `observers` and `most_parameters` for JSON, where an infinite ε is null; nothing if noise is local."""
    if not manifest.settings.shares_noise:
        return {}
    rows = [asdict(each) for each in observers(manifest, manifest.settings.privacy.delta)]
    finite = [row | {"epsilon": row["epsilon"] if math.isfinite(row["epsilon"]) else None} for row in rows]
    return {"observers": finite, "most_parameters": most_parameters(manifest)}


def table(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of that table, if the report has one."""
    if "observers" not in report:
        return []
    lines = [f"the noise is shared; models of up to {report['most_parameters']:,} parameters. ε against whoever"]
    for row in report["observers"]:
        cost = "∞" if row["epsilon"] is None else f"{row['epsilon']:.2f}"
        mark = "  ← declared, charged" if row["declared"] else ""
        lines.append(f"  {row['who']:<46} {cost:>8}  (σ {row['noise_multiplier']:.3g}){mark}")
    return lines
