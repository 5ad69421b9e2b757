"""`cloister sign`: turn run.toml into a manifest signed by the coordinator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloister.views.observers import against_whom, cost_of_votes
from privacy.accounting.accounting import epsilon
from privacy.config import read_toml
from privacy.errors import ConfigError, KeyFileError
from privacy.ledger.balance import excessive
from privacy.run.manifest import open_manifest
from privacy.run.new_manifest import sign_manifest
from privacy.run.settings import RunSettings
from privacy.storage import write_atomically
from strategies.registry import completed
from transport.pki import read_roster, read_signing_key

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST_ROUND = 30 * 86_400.0  # seconds


def sign_run(run: Path, coordinator: Path, roster: Path, out: Path) -> dict[str, Any]:
    """Sign a run, and return its cost to every site.

    Raises:
        CloisterError: if settings or keys are wrong, or the run names a site that is not a member.
    """
    settings = read_toml(run, RunSettings)
    if settings.cohort.round_deadline_seconds > _LONGEST_ROUND:
        msg = f"{run}: round_deadline_seconds is more than 30 days; write how long a round may take at most"
        raise ConfigError(msg)
    for path, option in ((coordinator, "--coordinator"), (roster, "--roster")):
        if not path.exists():
            msg = f"{path}: no such file or folder; name the consortium's with {option}"
            raise KeyFileError(msg)
    members = read_roster(roster, coordinator / "authority.pem")
    for site in settings.cohort.sizes:
        members.member(site)
    key = read_signing_key(coordinator / "signing.key")
    document = sign_manifest(completed(settings), key, roster_version=members.version)
    manifest, digest = open_manifest(document.to_bytes(), members.manifest_key)  # checks that the roster lists this key
    write_atomically(out, document.to_bytes())
    return {
        "manifest": str(out),
        "run": digest,
        "rounds": settings.rounds,
        "noise_multiplier": manifest.noise_multiplier,
        "epsilon": epsilon([manifest.run_cost], settings.privacy.delta),
        "delta": settings.privacy.delta,
        "delta_warning": excessive(settings.privacy.delta, settings.largest_size),
        **against_whom(manifest),
        **cost_of_votes(manifest),
    }
