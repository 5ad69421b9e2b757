"""Define, sign and open the roster: the consortium's sites, its people and their keys, signed by its authority.

As in The Update Framework, a roster has a version that may only grow and an expiry date. A site has the authority's key
on its own disk and takes everybody else's from the roster, never from the server.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, Hex32
from privacy.crypto.signing import SignedDocument, digest
from privacy.errors import AuthenticityError, MalformedError, ProtocolError
from privacy.run.people import Person
from privacy.run.settings import SiteName

if TYPE_CHECKING:
    from privacy.crypto.signing import PrivateKey, PublicKey

KIND = "roster"


@dataclass(frozen=True, config=STRICT)
class Member:
    """One site and its keys."""

    site: SiteName
    tls_key: Hex32  # SHA-256 of the TLS certificate's public key (SubjectPublicKeyInfo)
    signing_key: Hex32  # Ed25519
    sealing_key: str  # HPKE, MLKEM768-X25519, in base64: letters are sealed to it

    @property
    def node_id(self) -> int:
        """Flower's node ID for this site: 62 bits of a digest of its name, the same in every run."""
        return int.from_bytes(sha256(b"cloister node " + self.site.encode()).digest()[:8], "big") >> 2

    @property
    def verification_key(self) -> Ed25519PublicKey:
        """The key that verifies this site's signatures."""
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.signing_key))


@dataclass(frozen=True, config=STRICT)
class Roster:
    """One version of a consortium's list of members and people."""

    consortium: str
    version: Annotated[int, Field(ge=1)]
    expires: Annotated[float, Field(allow_inf_nan=False)]  # seconds since 1970
    people: tuple[Person, ...]  # who signs, administers, operates, audits: `privacy.run.people`
    members: tuple[Member, ...]
    format: Literal[1] = 1

    def __post_init__(self) -> None:
        """Check that no site and no person is listed twice, even under different names."""
        sites, people = self.members, self.people
        for what, values in {
            "name": [*(member.site for member in sites), *(person.name for person in people)],
            "TLS key": [member.tls_key for member in sites],
            "signing key": [*(site.signing_key for site in sites), *(person.signing_key for person in people)],
        }.items():
            if len(set(values)) != len(values):
                msg = f"two entries have the same {what}"
                raise ValueError(msg)

    def member(self, site: str) -> Member:
        """Return the member with this name.

        Raises:
            ProtocolError: if there is none.
        """
        if (member := self._by_name.get(site)) is not None:
            return member
        msg = f"{site!r} is not a member of {self.consortium} (roster {self.version}); ask the coordinator to add it"
        raise ProtocolError(msg)

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        return {member.site: member for member in self.members}

    def person(self, name: str) -> Person | None:
        """Return the person with this name, or None."""
        return next((person for person in self.people if person.name == name), None)


def sign_roster(roster: Roster, authority: PrivateKey) -> SignedDocument:
    """Sign a roster as the consortium's authority."""
    return SignedDocument.make(authority, KIND, json.dumps(asdict(roster), indent=1, sort_keys=True).encode())


def open_roster(data: bytes, authority: PublicKey, *, expired: bool = False) -> Roster:
    """Check the authority's signature, read the roster, and check its date, unless `expired` ones are welcome.

    Raises:
        AuthenticityError: if the authority did not sign it, or it has expired.
        MalformedError: if it is not a roster of this version of Cloister.
    """
    document = SignedDocument.open(data, KIND, authority)
    try:
        roster = _read(document.payload)
    except ValidationError as error:
        msg = (
            f"this roster does not fit this version of Cloister ({error.errors()[0]['msg']}); use the same "
            "version everywhere"
        )
        raise MalformedError(msg) from error
    if roster.expires < time.time() and not expired:
        msg = f"roster {roster.version} of {roster.consortium} has expired; ask the coordinator for a newer one"
        raise AuthenticityError(msg)
    return roster


def roster_digest(data: bytes) -> str:
    """Return the digest of a signed roster: two of one version with different digests are two stories."""
    return digest(KIND, data.partition(b"\n")[2])


@lru_cache(maxsize=2)
def _read(payload: bytes) -> Roster:
    """Read a signed payload. Sites in one process share the result: a roster of 1,000 sites takes 3 MB."""
    return TypeAdapter(Roster).validate_json(payload)
