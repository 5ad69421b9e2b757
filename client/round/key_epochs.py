"""The key ceremony at a site: make an epoch's keys or accept another site's; then share secrets with other sites."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from privacy.crypto.key_epoch import EpochKeys, read_letter, write_letters
from privacy.crypto.pairs import read_pair, write_pairs
from privacy.errors import CloisterError, ProtocolError
from privacy.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from client.site import Site

log = logging.getLogger("cloister.agent")


def lead_epoch(site: Site, epoch: int) -> tuple[EpochKeys, dict[str, bytes]]:
    """Make and keep a new epoch's keys, and seal them to every member of the roster.

    Raises:
        ProtocolError: if the epoch is not newer than this site's newest.
    """
    if epoch <= site.keyring.latest:
        msg = f"{site.name} has the keys of key epoch {site.keyring.latest}; it does not make keys of key epoch {epoch}"
        raise ProtocolError(msg)
    keys = EpochKeys.generate(epoch)
    letters = write_letters(keys, site.roster, site.name, site.signing_key)
    _take(site, keys)
    return keys, letters


def accept_letter(site: Site, leader: str, letter: bytes) -> EpochKeys:
    """Open a letter, check who wrote it, and keep its keys.

    Raises:
        CloisterError: if it is not from a member of the roster, not for this site, or not of a newer epoch.
    """
    keys = read_letter(letter, leader, site.roster, site.name, site.sealing_key)
    _take(site, keys)
    return keys


def accept_pairs(site: Site, fingerprint: str, letters: Mapping[str, bytes]) -> EpochKeys:
    """Accept the secrets that other members share with this site under its current keys; skip and log invalid ones.

    Raises:
        ProtocolError: if the fingerprint is not that of the site's current keys.
    """
    keys = site.keyring.current(site.roster.version)
    if keys is None or keys.fingerprint != fingerprint:
        msg = f"{site.name} shares secrets only under its newest keys"
        raise ProtocolError(msg)
    secrets = {}
    for sender, letter in letters.items():
        try:
            secrets[sender] = read_pair(letter, keys, site.roster, sender, site.name, site.sealing_key)
        except CloisterError as error:
            log.warning("the secret of masks shared with %s: %s", sender, error)
    site.keyring.keep_pairs(keys, secrets)
    return keys


def _take(site: Site, keys: EpochKeys) -> None:
    """Keep an epoch's keys, and make the secrets that this site shares with others."""
    site.keyring.take(keys, site.roster.version)
    failpoint("keys-taken")
    if not site.keyring.own_letters(keys):
        site.keyring.keep_pairs(keys, *write_pairs(keys, site.roster, site.name, site.signing_key))
