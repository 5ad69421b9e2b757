"""`cloister sign`: turn run.toml into a manifest, signed by a person who may sign runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloister.signer import read_signer
from cloister.views.observers import against_whom, cost_of_votes
from privacy.accounting.accounting import epsilon
from privacy.config import read_toml
from privacy.errors import AuthenticityError, ConfigError, KeyFileError, RefusedError
from privacy.ledger.balance import excessive
from privacy.run.manifest import open_run
from privacy.run.new_manifest import sign_manifest
from privacy.run.people import ROLES, may, with_right
from privacy.run.settings import RunSettings
from privacy.storage import write_atomically
from strategies.registry import completed
from transport.pki import read_roster

if TYPE_CHECKING:
    from pathlib import Path

    from cloister.signer import Signer
    from privacy.run.roster import Roster

_LONGEST_ROUND = 30 * 86_400.0  # seconds


def sign_run(run: Path, folder: Path, roster: Path | None, out: Path) -> dict[str, Any]:
    """Sign a run, and return its cost to every site.

    Args:
        run: the run's settings.
        folder: the folder of whoever signs.
        roster: the consortium's roster; None for the one that the folder knows.
        out: where to write the signed run.

    Raises:
        CloisterError: if settings or keys are wrong, the run names somebody who is not in the roster, or whoever signs
            may not sign runs, or is not in the roster either.
    """
    settings = read_toml(run, RunSettings)
    if settings.cohort.round_deadline_seconds > _LONGEST_ROUND:
        msg = f"{run}: round_deadline_seconds is more than 30 days; write how long a round may take at most"
        raise ConfigError(msg)
    signer = read_signer(folder)
    path = roster or signer.roster
    if not path.exists():
        msg = f"{path}: no such file; name the consortium's roster with --roster"
        raise KeyFileError(msg)
    listed = read_roster(path, signer.authority)
    for site in settings.cohort.sizes:
        listed.member(site)
    for name in settings.recipients:
        if name not in ROLES and listed.person(name) is None:
            msg = f"{run}: recipients names {name}, whom roster {listed.version} does not list; name people or roles"
            raise ConfigError(msg)
    _check_signer(signer, listed)
    document = sign_manifest(completed(settings), signer.key, roster_version=listed.version).to_bytes()
    _, manifest, digest, person = open_run(document, listed)
    write_atomically(out, document)
    return {
        "manifest": str(out),
        "run": digest,
        "signed_by": {"name": person.name, "role": person.role},
        "rounds": settings.rounds,
        "noise_multiplier": manifest.noise_multiplier,
        "epsilon": epsilon([manifest.run_cost], settings.privacy.delta),
        "epsilon_of_two_records": epsilon([manifest.run_cost], settings.privacy.delta, group=2),
        "delta": settings.privacy.delta,
        "delta_warning": excessive(settings.privacy.delta, settings.largest_size),
        **against_whom(manifest),
        **cost_of_votes(manifest),
    }


def _check_signer(signer: Signer, roster: Roster) -> None:
    """Check that somebody may sign runs, before anything is calibrated.

    Raises:
        AuthenticityError: if the roster does not list them with their key.
        RefusedError: if their role may not.
    """
    key = signer.key.public_key().public_bytes_raw().hex()
    person = next((person for person in roster.people if person.signing_key == key), None)
    if person is None:
        msg = (
            f"roster {roster.version} of {roster.consortium} lists nobody with {signer.name}'s key, which is in "
            f"{signer.folder}, so they cannot sign a run; take the newest roster (cloister login, or cloister roster "
            "take), or ask the coordinator for an invitation"
        )
        raise AuthenticityError(msg)
    if not may(person.role, "sign"):
        msg = (
            f"{person.name} is {person.role} in roster {roster.version}, and only {with_right('sign')} may sign runs; "
            "give the run's file to one of them to sign, or ask the coordinator for another role"
        )
        raise RefusedError(msg)
