"""A person's own folder: `person.toml`, and in `keys/` the key of their entry in the roster, which never leaves it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from client.rosters import checked_roster, replace_roster
from client.settings import Keys
from privacy.config import STRICT, File, read_toml, settings_file
from privacy.errors import AuthenticityError
from privacy.run.people import PersonName
from transport.address import Dialled
from transport.pki import read_authority_key, read_signing_key

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from privacy.run.invitation import Invitation
    from privacy.run.roster import Roster

FILE = "person.toml"
_KEYS = Keys()  # a person's folder has some of a site's keys, under the same names


@dataclass(frozen=True, config=STRICT)
class PersonSettings:
    """`person.toml`."""

    name: PersonName
    server: Dialled  # host:port, which agents dial


@dataclass(frozen=True, config=STRICT)
class PersonFolder:
    """A person's settings and their folder."""

    folder: File
    settings: PersonSettings

    @property
    def authority(self) -> Path:
        """The certificate of the authority that this person trusts."""
        return self.folder / _KEYS.authority

    @property
    def roster(self) -> Path:
        """The latest roster that this person took."""
        return self.folder / _KEYS.roster

    def signing_key(self) -> Ed25519PrivateKey:
        """Read this person's key.

        Raises:
            KeyFileError: if it cannot be read.
            VaultError: if the folder is encrypted and cannot be opened.
        """
        return read_signing_key(self.folder / _KEYS.signing_key)

    def take_roster(self, data: bytes) -> Roster:
        """Keep a newer roster.

        Raises:
            AuthenticityError: as `client.rosters.checked_roster`, or if it does not list this person with this key.
        """
        authority = read_authority_key(self.authority)
        roster = checked_roster(
            self.roster, data, authority, lambda new: check_listed(new, self.settings.name, self.signing_key())
        )
        replace_roster(self.roster, data, authority)
        return roster


def read_person(path: Path) -> PersonFolder:
    """Read a person's settings, given `person.toml` or the folder that holds it.

    Raises:
        ConfigError: if the file is missing or invalid, or the path to it leads through a link.
    """
    file = settings_file(path, FILE)
    return PersonFolder(file.parent, read_toml(file, PersonSettings))


def is_person(path: Path) -> bool:
    """Return whether a path is a person's folder, or the settings in it."""
    return path.name == FILE or (path / FILE).exists()


def check_listed(roster: Roster, name: str, key: Ed25519PrivateKey) -> None:
    """Check that a roster lists a person with this key.

    Raises:
        AuthenticityError: if it does not.
    """
    person = roster.person(name)
    if person is None or person.signing_key != key.public_key().public_bytes_raw().hex():
        does = "does not list" if person is None else "lists another key for"
        msg = f"roster {roster.version} {does} {name}; ask the coordinator for a new invitation"
        raise AuthenticityError(msg)


def settings_text(invitation: Invitation) -> str:
    """Return the `person.toml` of whoever is invited."""
    return f"""\
# Your entry in the roster. Your key is in keys/, made here; your role is in the roster.

name = {json.dumps(invitation.name)}
server = {json.dumps(invitation.server)}
"""
