"""The key ceremony at a site: make an epoch's keys for all, or take those that another site made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.epoch import EpochKeys, read_letter, write_letters
from privacy.errors import ProtocolError

if TYPE_CHECKING:
    from client.site import Site


def lead_epoch(site: Site, epoch: int) -> tuple[EpochKeys, dict[str, bytes]]:
    """Make a new epoch's keys, keep them, and seal them to every member that the roster lists.

    Raises:
        ProtocolError: if the epoch is not newer than the newest that this site has.
    """
    if epoch <= site.keyring.latest:
        msg = f"{site.name} has the keys of epoch {site.keyring.latest}; it makes none of epoch {epoch}"
        raise ProtocolError(msg)
    keys = EpochKeys.generate(epoch)
    letters = write_letters(keys, site.roster, site.name, site.signing_key)
    site.keyring.take(keys, site.roster.version)
    return keys, letters


def accept_letter(site: Site, leader: str, letter: bytes) -> EpochKeys:
    """Open a letter, check who wrote it, and keep the keys inside.

    Raises:
        CloisterError: if it is not from a member of the roster, not for this site, or of no newer epoch.
    """
    keys = read_letter(letter, leader, site.roster, site.name, site.sealing_key)
    site.keyring.take(keys, site.roster.version)
    return keys
