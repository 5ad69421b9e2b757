"""What all bad vectors share: their form, the names of the errors, and ways to change a good one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from privacy.crypto.signing import SignedDocument

if TYPE_CHECKING:
    from privacy.crypto.signing import PrivateKey

A, M, P = "AuthenticityError", "MalformedError", "ProtocolError"
OTHER = "ab" * 32
GONE = object()
"""Stands for a key that is left out."""


class Bad(NamedTuple):
    """One bad vector: those parts of it that are not the good one's."""

    kind: str
    name: str
    parts: dict[str, bytes]
    error: str


def changed(document: Any, path: str, value: object) -> Any:  # noqa: ANN401 - JSON
    """Return a copy of a document with another value at a path such as `settings.cohort.minimum`."""
    copy = json.loads(json.dumps(document))
    *tables, key = path.split(".")
    place = copy
    for table in tables:
        place = place[int(table) if isinstance(place, list) else table]
    if value is GONE:
        del place[key]
    else:
        place[int(key) if isinstance(place, list) else key] = value
    return copy


def signed(kind: str, key: PrivateKey, document: object) -> bytes:
    """Return a signed file with a document of this kind."""
    return SignedDocument.make(key, kind, json.dumps(document, indent=1, sort_keys=True).encode()).to_bytes()


def canonical(document: object) -> bytes:
    """Return the one form of a plan or header."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
