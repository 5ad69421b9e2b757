"""A run's statement: what was signed, what it costs a site, and what came of it, for whoever files or compares runs.

The first two come from the signed run, which is checked; the third is what the server says. What a site has charged is
in the site's own statement, `cloister audit statement`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cloister.views.observers import against_whom, cost_of_votes
from privacy.accounting.accounting import epsilon
from privacy.ledger.balance import without_infinity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from privacy.run.manifest import SignedRun


def run_statement(
    standing: Mapping[str, Any], signed: SignedRun, events: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the statement of a run, as JSON values: ε is "infinite" for a run without noise.

    Args:
        standing: how it stands: the fields of a `RunStatus`.
        signed: as it was signed.
        events: all of its events, the oldest first.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: if the events are of another form.
    """
    manifest, settings = signed.manifest, signed.manifest.settings
    rounds, spent, model = Counter[str](), dict[str, float](), None
    for event in events:
        if event["event"] == "round":
            spent |= {site: float(value) for site, value in event["epsilon"].items()}
            if event["released"]:
                rounds.update(event["sites"])
                model = str(event.get("model") or "") or model
    statement: dict[str, Any] = {
        "run": signed.digest,
        "signed": {
            "by": {"name": signed.signer.name, "role": signed.signer.role},
            "roster": manifest.roster_version,
            "created": manifest.created,
            "settings": asdict(settings),
            "noise_multiplier": manifest.noise_multiplier,
        },
        "cost": {
            "epsilon": epsilon([manifest.run_cost], settings.privacy.delta),
            "delta": settings.privacy.delta,
            "of": "all rounds of this run, for one record of a site; the site's ledger adds what it spent before",
            **against_whom(manifest),
            **cost_of_votes(manifest),
        },
        "outcome": {
            "as_told_by": "the server; each site's own statement says what it charged",
            **standing,
            "model": model,
            "sites": {
                site: {"rounds": rounds[site], "epsilon_spent_over_all_runs": spent.get(site)}
                for site in settings.cohort.sizes
            },
        },
    }
    return without_infinity(statement, "infinite")
