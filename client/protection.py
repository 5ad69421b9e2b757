"""What is encrypted in a site's or a person's folder: `cloister protect SITE`."""

from __future__ import annotations

import os
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from client.turn import without_agent
from privacy.at_rest.held import holds
from privacy.at_rest.kept import KeptFolder

if TYPE_CHECKING:
    from client.person import PersonFolder
    from client.settings import SiteFolder
    from privacy.at_rest.vault import Secret


def kept(place: SiteFolder) -> KeptFolder:
    """Return a site's folder as one that can be encrypted."""
    within, without, keys = list[str](), list[Path](), place.settings.keys
    for each in fields(keys):
        path = Path(os.path.abspath(place.path(getattr(keys, each.name))))  # noqa: PTH100 - resolve() follows links
        if not path.is_relative_to(place.folder):
            without.append(path)
        elif not holds((relative := path.relative_to(place.folder)).as_posix()) and not holds(str(relative / "key")):
            within.append(relative.as_posix())
    return KeptFolder(place.folder, tuple(within), tuple(without), partial(without_agent, place.folder))


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
