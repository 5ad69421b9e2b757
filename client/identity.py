"""What a site must have before it dials: keys that belong together, the roster that lists them, room to write."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from privacy.clock import now
from privacy.crypto.key_epoch import SealingKey
from privacy.errors import AuthenticityError, KeyFileError, StorageError
from privacy.failures import reason
from privacy.storage import read_file, set_aside
from transport.channel import expired
from transport.diagnosis import check_private
from transport.pki import key_digest, read_certificate, read_signing_key, read_tls_key

if TYPE_CHECKING:
    from pathlib import Path

    from client.settings import SiteFolder
    from privacy.run.roster import Roster

_ROOM = 256 << 20  # bytes that should be free for models and updates in transit


def check_keys(place: SiteFolder) -> Roster:
    """Check that a site's keys are there, belong together, and are those in its roster; return the roster.

    Raises:
        KeyFileError: if they are not; says which file is wrong.
        ProtocolError: if the roster does not list the site.
    """
    tls_key, signing_key, sealing_key = private = _private(place)
    for path in private:
        try:
            read_file(path)
        except OSError as error:
            msg = f"{path}: {reason(error)}; restore this key from its owner's backup"
            raise KeyFileError(msg) from error
    roster = place.roster()
    member, tls = roster.member(place.settings.site), read_tls_key(tls_key).public_key()
    if read_certificate(place.tls.certificate).public_key() != tls:
        msg = f"{place.tls.certificate} does not belong to {tls_key}; take in the welcome again: cloister join"
        raise KeyFileError(msg)
    listed = member.tls_key, member.signing_key, member.sealing_key
    signing = read_signing_key(signing_key).public_key().public_bytes_raw().hex()
    if listed != (key_digest(tls), signing, SealingKey(read_file(sealing_key)).public):
        msg = (
            f"roster {roster.version} lists other keys for {member.site} than {tls_key.parent} holds; restore them "
            "from the site's backup, or, if they are new, take in the latest roster: cloister roster take"
        )
        raise KeyFileError(msg)
    return roster


def check_secrecy(place: SiteFolder) -> None:
    """Check that nobody but their owner may read the site's keys.

    Raises:
        KeyFileError: if others may; says how to change it.
    """
    check_private(*_private(place))


def check_certificate(place: SiteFolder) -> None:
    """Check that the site's certificate has not expired.

    Raises:
        AuthenticityError: if it has.
    """
    ends = read_certificate(place.tls.certificate).not_valid_after_utc
    if ends < now():
        raise AuthenticityError(expired(ends))


def check_room(place: SiteFolder) -> str:
    """Check that a site's folder can be written, and has some room; say how much.

    Raises:
        OSError: if it cannot be written.
        StorageError: if there is little room.
    """
    probe = place.folder / "outbox" / f".space-{os.getpid()}"
    set_aside(probe, 1)
    probe.unlink()
    free = shutil.disk_usage(place.folder).free
    if free < _ROOM:
        msg = f"{place.folder}: only {free >> 20} MB are free on its disk; make room for models and updates"
        raise StorageError(msg)
    return f"{free / 1e9:.1f} GB free"


def _private(place: SiteFolder) -> tuple[Path, Path, Path]:
    keys = place.settings.keys
    return place.path(keys.tls_key), place.path(keys.signing_key), place.path(keys.sealing_key)
