"""Take a newer roster in place of the one that is there, and keep the older: sums of rounds under it may still come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.errors import AuthenticityError
from privacy.run.roster import open_roster, roster_digest
from privacy.storage import read_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from privacy.crypto.signing import PublicKey
    from privacy.run.roster import Roster


def checked_roster(path: Path, data: bytes, authority: PublicKey, check: Callable[[Roster], None]) -> Roster:
    """Open a roster that is to take the place of the one at `path`, if there is one; write nothing.

    Args:
        path: where the present one is, or will be.
        data: the signed new one.
        authority: the key that signs both.
        check: raises if the roster does not list its reader rightly.

    Raises:
        AuthenticityError: if the authority did not sign it, it has expired, is older than the present one or another
            consortium's, or has the present one's version with other content.
        MalformedError: if it is no roster.
    """
    roster = open_roster(data, authority)
    check(roster)
    if not path.exists():
        return roster
    kept = read_file(path)
    before = open_roster(kept, authority, expired=True)
    if before.version > roster.version:
        msg = (
            f"roster {roster.version} is older than the one here, {before.version}; ask the coordinator for the latest"
        )
        raise AuthenticityError(msg)
    if before.consortium != roster.consortium:
        msg = f"this roster is of {roster.consortium!a}, and the one here of {before.consortium!a}; ask for its own"
        raise AuthenticityError(msg)
    ours, theirs = roster_digest(kept), roster_digest(data)
    if before.version == roster.version and ours != theirs:
        msg = (
            f"the authority signed two rosters {roster.version}: the one here has the digest {ours}, and this one "
            f"{theirs}; somebody is told a different story, so nothing was changed: ask the coordinator at once, who "
            "signs a newer one once that is settled: cloister renew"
        )
        raise AuthenticityError(msg)
    return roster


def replace_roster(path: Path, data: bytes, authority: PublicKey) -> None:
    """Write a checked roster to `path`, and keep the one that was there beside it."""
    if path.exists() and (kept := read_file(path)) != data:
        write_atomically(older_roster(path, open_roster(kept, authority, expired=True).version), kept)
    write_atomically(path, data)


def older_roster(path: Path, version: int) -> Path:
    """Return where an older version of a roster is kept."""
    return path.with_name(f"{path.name}-{version}")
