"""What is encrypted in a site's or a person's folder: `cloister protect SITE`."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING

from client.turn import without_agent
from privacy.at_rest.held import holds
from privacy.at_rest.kept import KeptFolder

if TYPE_CHECKING:
    from pathlib import Path

    from client.person import PersonFolder
    from client.settings import SiteFolder
    from privacy.at_rest.vault import Secret


def kept(place: SiteFolder) -> KeptFolder:
    """Return a site's folder as one that can be encrypted."""
    keys = place.settings.keys
    paths = (place.path(getattr(keys, each.name)) for each in fields(keys))
    folder = KeptFolder.of(place.folder, paths, partial(without_agent, place.folder))
    further = tuple(name for name in folder.files if not holds(name) and not holds(f"{name}/key"))
    return replace(folder, files=further)


def kept_person(place: PersonFolder) -> KeptFolder:
    """Return a person's folder as one that can be encrypted."""
    return KeptFolder(place.folder, (), (), partial(without_agent, place.folder))


def new_folder(folder: Path) -> KeptFolder:
    """Return the folder of a site or person about to join, which has no settings yet."""
    folder.mkdir(parents=True, exist_ok=True)
    return KeptFolder(folder, (), (), partial(without_agent, folder))


def protect(place: SiteFolder, secret: Secret | None) -> int:
    """Encrypt a site's folder, as `KeptFolder.protect`."""
    return kept(place).protect(secret)


def unprotect(place: SiteFolder) -> int:
    """Decrypt a site's folder, as `KeptFolder.unprotect`."""
    return kept(place).unprotect()


def ready(place: SiteFolder) -> None:
    """Open a site's folder, as `KeptFolder.ready`."""
    kept(place).ready()
