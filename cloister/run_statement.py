"""A run's statement: what was signed, what it costs a site, and what came of it, for whoever files or compares runs.

The first two come from the signed run, which is checked; the third is what the server says. What a site has charged is
in the site's own statement, `cloister audit statement`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cloister.views.observers import against_whom, cost_of_votes
from cloister.views.run_page import report
from privacy.accounting.accounting import epsilon
from privacy.ledger.balance import without_infinity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cloister.run_status import RunStatus
    from privacy.run.manifest import SignedRun


def run_statement(run: RunStatus, signed: SignedRun, events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the statement of a run, as JSON values: ε is "infinite" for a run without noise.

    Args:
        run: how it stands.
        signed: as it was signed.
        events: all of its events, the oldest first.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: if the events are of another form.
    """
    manifest, settings = signed.manifest, signed.manifest.settings
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
            **report(run, events),
        },
    }
    return without_infinity(statement, "infinite")
