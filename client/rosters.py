"""Take a newer roster in place of the one that is there, and keep the older: sums of rounds under it may still come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.crypto.key_epoch import SealingKey
from privacy.errors import AuthenticityError, KeyFileError
from privacy.failures import reason
from privacy.run.roster import open_roster, roster_digest
from privacy.storage import read_file, write_atomically
from transport.pki import key_digest, read_authority_key, read_signing_key, read_tls_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from client.settings import Keys
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


def take_roster(folder: Path, keys: Keys, site: str, data: bytes) -> Roster:
    """Keep a newer roster.

    Args:
        folder: the site's folder.
        keys: the files in it.
        site: the site's name.
        data: the signed roster.

    Raises:
        AuthenticityError: as `checked_roster`, or if it lists other keys for this site.
    """
    authority = read_authority_key(folder / keys.authority)
    roster = check_site_roster(folder, keys, site, data, authority)
    replace_roster(folder / keys.roster, data, authority)
    return roster


def check_offered(folder: Path, keys: Keys, site: str, data: bytes) -> Roster:
    """Check the roster with which the server runs, without keeping it; return it.

    Raises:
        AuthenticityError: if it is not one that this site could take; says what to do.
        MalformedError: if it is no roster.
    """
    try:
        return check_site_roster(folder, keys, site, data, read_authority_key(folder / keys.authority))
    except AuthenticityError as error:
        msg = f"the server's roster cannot be taken: {error}; an old copy may have been put back at the server"
        raise AuthenticityError(msg) from error


def check_site_roster(folder: Path, keys: Keys, site: str, data: bytes, authority: PublicKey) -> Roster:
    """Open a roster that is to take the place of a site's, if it has one; write nothing.

    Raises:
        AuthenticityError: as `checked_roster`, or if it lists other keys for this site.
        MalformedError: if it is no roster.
        ProtocolError: if it does not list the site.
    """

    def check(roster: Roster) -> None:
        member, tls = roster.member(site), read_tls_key(folder / keys.tls_key).public_key()
        if (member.signing_key, member.sealing_key) != public_keys(folder, keys) or member.tls_key != key_digest(tls):
            msg = (
                f"roster {roster.version} lists keys for {site} that are not in {folder}; join again with a new "
                "invitation"
            )
            raise AuthenticityError(msg)

    return checked_roster(folder / keys.roster, data, authority, check)


def public_keys(folder: Path, keys: Keys) -> tuple[str, str]:
    """Return the site's public keys for signing and sealing, as the roster lists them.

    Raises:
        KeyFileError: if one cannot be read.
    """
    signing = read_signing_key(folder / keys.signing_key).public_key().public_bytes_raw().hex()
    try:
        return signing, SealingKey(read_file(folder / keys.sealing_key)).public
    except OSError as error:
        msg = f"{folder / keys.sealing_key}: {reason(error)}; restore this key from the site's backup"
        raise KeyFileError(msg) from error
