"""Whoever signs a run: from `coordinator/`, who founded the consortium; from their own folder, any other person."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from client.person import is_person, read_person
from client.protection import kept_person
from privacy.config import read_toml, settings_file
from privacy.errors import ConfigError
from server.coordinator_settings import CoordinatorSettings
from server.protection import SIGNING_KEY, kept_coordinator
from transport.pki import read_signing_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Signer(NamedTuple):
    """A person's key, and what their folder says about them."""

    key: Ed25519PrivateKey
    authority: Path
    roster: Path
    name: str
    server: str  # host:port, which agents dial
    folder: Path


def read_signer(path: Path) -> Signer:
    """Read the folder of a person, or a coordinator's, or the settings in it.

    Raises:
        ConfigError: if it is neither.
        KeyFileError: if the key cannot be read.
    """
    if is_person(path):
        place = read_person(path)
        kept_person(place).ready()
        person = place.settings
        return Signer(place.signing_key(), place.authority, place.roster, person.name, person.server, place.folder)
    if not path.exists():
        msg = f"{path}: no such folder; name yours with --as: the one that `cloister person join` made, or coordinator/"
        raise ConfigError(msg)
    file = settings_file(path, "coordinator.toml")
    settings = read_toml(file, CoordinatorSettings)
    roster = Path(os.path.normpath(file.parent / settings.roster))
    kept_coordinator(file.parent).ready()
    key = read_signing_key(file.parent / SIGNING_KEY)
    return Signer(key, file.parent / "authority.pem", roster, settings.person, settings.server, file.parent)
