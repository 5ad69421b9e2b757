"""What is encrypted in a server's folder and in a coordinator's: `cloister protect server`, `... coordinator`.

A server's: its TLS key, invitations, requests and welcomes, letters with keys, heads of ledgers, and in its store,
value by value, what each run keeps. A coordinator's: the authority's key, the key that signs runs, and invitations.
Not: settings, certificates and the roster, which others read.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from privacy.at_rest.kept import KeptFolder
from privacy.folder_locks import folder_alone
from transport.api import SESSION_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from server.settings import ServerFolder

INVITATIONS, REQUESTS, WELCOMES = "invitations", "requests", "welcomes"
"""Folders at the server: what it needs to recognise invited sites, what they ask, and what they get."""

RENEWALS, ANSWERS = "renewals", "answers"
"""Folder at the server, with certificates that sites want renewed; and in it, one with the new ones."""

AUTHORITY_KEY, SIGNING_KEY = "authority.key", "signing.key"
"""Files of the coordinator."""


def kept_server(place: ServerFolder) -> KeptFolder:
    """Return a server's folder as one that can be encrypted."""
    settings = place.settings
    beside_roster = (settings.roster.parent / name for name in (INVITATIONS, REQUESTS, WELCOMES, RENEWALS))
    paths = (settings.tls_key, settings.epochs, settings.ledger_heads, *beside_roster)
    return KeptFolder.of(place.folder, paths, partial(folder_alone, place.folder), partial(_convert_store, place))


def _convert_store(place: ServerFolder) -> int:
    from server.store.conversion import convert  # noqa: PLC0415 - a coordinator has no use for a database

    return convert(place)


def kept_coordinator(folder: Path) -> KeptFolder:
    """Return a coordinator's folder as one that can be encrypted."""
    files = AUTHORITY_KEY, SIGNING_KEY, INVITATIONS, SESSION_FILE
    return KeptFolder(folder, files, (), partial(folder_alone, folder))
