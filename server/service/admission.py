"""What a server checks of a run before it takes it, and again before the run begins."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from privacy.errors import RunError
from privacy.run.manifest import open_run

if TYPE_CHECKING:
    from privacy.run.manifest import SignedRun
    from privacy.run.roster import Roster


def admitted(document: bytes, roster: Roster) -> SignedRun:
    """Open a signed run that can run under a roster.

    Raises:
        AuthenticityError: if nobody in the roster signed it.
        RefusedError: if whoever did may not sign runs, or it has expired.
        MalformedError: if it is not a manifest of this version.
        RunError: if the roster lacks too many of its sites, or is older than the run.
    """
    run = open_run(document, roster)
    run.manifest.check_valid(time.time())
    _check_sites(run, roster)
    return run


def _check_sites(run: SignedRun, roster: Roster) -> None:
    manifest, cohort = run.manifest, run.manifest.settings.cohort
    if manifest.roster_version > roster.version:
        msg = (
            f"the run {manifest.settings.name!r} was signed for roster {manifest.roster_version}, and the server has "
            f"only roster {roster.version}; bring it the newer one"
        )
        raise RunError(msg)
    missing = sorted(cohort.sizes.keys() - {member.site for member in roster.members})
    if len(cohort.sizes) - len(missing) < cohort.minimum:
        msg = (
            f"the run {manifest.settings.name!r} needs {cohort.minimum} sites, and roster {roster.version} lacks "
            f"{', '.join(missing)} of the {len(cohort.sizes)} that it names; sign a run of members, or invite them"
        )
        raise RunError(msg)
