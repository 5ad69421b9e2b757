"""The head of a site's ledger, signed by the site for itself and kept by the server: how an old copy is noticed.

A chain of digests finds an edit, but not that entries are missing at its end: a ledger that was restored from an old
backup, or deleted, looks like one in which less was spent. So after each charge, and whenever it says that it is ready,
a site hands the server its ledger's head, signed. The server keeps the last one that each site sent, and brings it back
with the next query and with each round. The site verifies its own signature, and charges nothing unless this head
occurs in its ledger.

The signature is over the lineage's name too, which is not sent: a head that does not verify is about other people, or
not of this site's making, and says nothing. So a malicious server can withhold a head, or replay an older one, and then
all is as if there were none; it cannot keep a site with a whole ledger from taking part. What it sees is a digest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.errors import AuthenticityError, MalformedError
from privacy.signing import sign, verify

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from privacy.ledger import Ledger

KIND = "ledger"
_SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class SignedHead:
    """Up to where a site's ledger went."""

    head: str  # of the ledger, 64 hex digits
    signature: bytes

    def __post_init__(self) -> None:
        """Check the form.

        Raises:
            MalformedError: if it can be no head.
        """
        if not re.fullmatch("[0-9a-f]{64}", self.head) or len(self.signature) != _SIGNATURE_BYTES:
            msg = "a message holds a ledger's head in another form; both sides must run the same version"
            raise MalformedError(msg)


def sign_head(ledger: Ledger, key: Ed25519PrivateKey) -> SignedHead:
    """Sign a ledger's present head as its site.

    Raises:
        LedgerError: if the ledger was edited.
    """
    head = ledger.head
    return SignedHead(head, sign(key, KIND, _signed_part(ledger, head)))


def check_head(ledger: Ledger, known: SignedHead | None, key: Ed25519PrivateKey) -> None:
    """Hold a ledger against a head that the server brought back, if the site made it for just this ledger.

    Raises:
        LedgerError: if the ledger is older, or was edited.
    """
    if known is None:
        return
    try:
        verify(key.public_key(), KIND, _signed_part(ledger, known.head), known.signature)
    except AuthenticityError:
        return  # another lineage's, or none at all
    ledger.check_holds(known.head)


def _signed_part(ledger: Ledger, head: str) -> bytes:
    return f"{ledger.site} {ledger.lineage} {head}".encode()
