"""Encrypt a site's or a person's folder, decrypt it, and change what opens it: `cloister protect SITE`."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from client.person import PersonFolder
from client.turn import without_agent
from privacy.at_rest import protection
from privacy.at_rest.held import holds
from privacy.at_rest.vaults import header_of, is_protected
from privacy.errors import VaultError

if TYPE_CHECKING:
    from client.settings import SiteFolder
    from privacy.at_rest.vault import Secret


def protect(place: SiteFolder | PersonFolder, secret: Secret | None) -> int:
    """Encrypt a site's folder, or change what opens it; return how many files were encrypted.

    Args:
        place: the site.
        secret: what opens it from now on; None to leave that as it is.

    Raises:
        VaultError: if an agent is running, or the present secret is missing or wrong.
    """
    with without_agent(place.folder):
        return protection.protect(place.folder, secret, _further(place)[0])


def unprotect(place: SiteFolder | PersonFolder) -> int:
    """Decrypt a site's folder; return how many files were decrypted.

    Raises:
        VaultError: as `protect`.
    """
    with without_agent(place.folder):
        return protection.unprotect(place.folder)


def ready(place: SiteFolder | PersonFolder) -> None:
    """Open a site's folder, if it is encrypted; finish its encryption, if that was interrupted.

    Raises:
        VaultError: if it cannot be opened, or `site.toml` names keys in it that are not encrypted.
    """
    if not is_protected(place.folder):
        return
    if header_of(place.folder).state != "encrypted":
        with without_agent(place.folder):
            protection.finish(place.folder)
    if not is_protected(place.folder):
        return
    header = header_of(place.folder)
    if missing := [each for each in _further(place)[0] if not header.holds(each)]:
        msg = (
            f"{place.folder / missing[0]}: `site.toml` keeps keys here, which were not encrypted with the rest; run "
            f"cloister protect {place.folder}"
        )
        raise VaultError(msg)


def outside(place: SiteFolder | PersonFolder) -> list[Path]:
    """Return the keys that `site.toml` keeps outside the folder; they stay as they are."""
    return _further(place)[1]


def _further(place: SiteFolder | PersonFolder) -> tuple[tuple[str, ...], list[Path]]:
    """Return the keys in the folder that are not in its usual folders, and those outside it."""
    if isinstance(place, PersonFolder):
        return (), []
    within, without, keys = list[str](), list[Path](), place.settings.keys
    for each in fields(keys):
        path = Path(os.path.abspath(place.path(getattr(keys, each.name))))  # noqa: PTH100 - resolve() follows links
        if not path.is_relative_to(place.folder):
            without.append(path)
        elif not holds((relative := path.relative_to(place.folder)).as_posix()) and not holds(str(relative / "key")):
            within.append(relative.as_posix())
    return tuple(within), without
