"""Report ε against each observer of a run with shared noise, the cost of votes, and personal models."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from privacy.accounting.accounting import epsilon
from privacy.noise.noise_shares import most_parameters, observers
from privacy.run.votes import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from privacy.run.manifest import Manifest

# Fraction of good rounds undone, above which an honest site may well be blamed: see `strategies.suspicion`.
_MOST_UNDONE = 0.1
_METRICS = 3  # of a personal model, that fit on a line


def against_whom(manifest: Manifest) -> dict[str, Any]:
    """Return `observers` and `most_parameters` for JSON, with null for an infinite ε; empty if noise is local."""
    if not manifest.settings.shares_noise:
        return {}
    rows = [asdict(observer) for observer in observers(manifest, manifest.settings.privacy.delta)]
    finite = [row | {"epsilon": row["epsilon"] if math.isfinite(row["epsilon"]) else None} for row in rows]
    return {"observers": finite, "most_parameters": most_parameters(manifest)}


def cost_of_votes(manifest: Manifest) -> dict[str, Any]:
    """Return `votes` for JSON, if the run has them: their cost to held-out records, and their error rates.

    The rates assume that all sites vote, and as many lie as the run must tolerate.
    """
    settings = manifest.settings
    if settings.vote is None:
        return {}
    wrong = errors(len(settings.cohort.sizes), max(1, settings.colluding_sites), settings.vote.epsilon)
    return {"votes": {
        "epsilon_of_each": settings.vote.epsilon,
        "epsilon": epsilon([manifest.votes_cost], settings.privacy.delta),
        "spoiled_round_kept": round(wrong.missed, 4),
        "good_round_undone": round(wrong.undone, 4),
    }}  # fmt: skip


def table(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of the observers' table, of votes and of personal models, if the report has them."""
    return [*_shared(report), *_votes(report), *_personal(report)]


def _personal(report: Mapping[str, Any]) -> list[str]:
    lines = [
        f"  {site:<12}" + ", ".join(
            f"{name} {_number(entry['shared'][name])} → {_number(entry['personal'][name])}"
            for name in list(entry["shared"])[:_METRICS]
        )
        for site, entry in report.get("personal", {}).items()
    ]  # fmt: skip
    head = "shared model → the hospital's own, on its held-out records; its own has no noise, and is not private"
    return [head, *lines] if lines else []


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _votes(report: Mapping[str, Any]) -> list[str]:
    if "votes" not in report:
        return []
    votes = report["votes"]
    stay, go = (f"{votes[name]:.1%}" for name in ("spoiled_round_kept", "good_round_undone"))
    lines = [
        f"each vote costs the held-out records ε {votes['epsilon_of_each']:g}, all of them {votes['epsilon']:.2f}",
        f"  if all sites vote, {stay} of spoiled rounds are kept, and {go} of good ones are undone",
    ]
    if votes["good_round_undone"] > _MOST_UNDONE:
        lines.append(
            "! chance would undo so many rounds that an honest site may be blamed: choose a larger epsilon, or more "
            "sites"
        )
    return lines


def _shared(report: Mapping[str, Any]) -> list[str]:
    if "observers" not in report:
        return []
    lines = [f"the noise is shared; models of up to {report['most_parameters']:,} parameters. ε against anyone who"]
    for row in report["observers"]:
        cost = "∞" if row["epsilon"] is None else f"{row['epsilon']:.2f}"
        mark = "  ← declared, charged" if row["declared"] else ""
        lines.append(f"  {row['who']:<46} {cost:>8}  (σ {row['noise_multiplier']:.3g}){mark}")
    return lines
