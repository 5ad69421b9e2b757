"""Keep the signed head of a site's ledger in other places, to detect an old copy of the ledger.

Nobody without the site's key can edit a ledger unnoticed, but entries missing at its end leave no trace: a ledger that
was deleted or restored from an old backup looks like one with less spending. So the last head is kept, with its
signature, in two other places:

- at the site, in a folder of its own: if only the ledger is restored, the site detects it at once;
- at the server: a site sends the head after each charge and whenever it reports that it is ready. The server keeps the
  last head of each site and sends it back with the next query and with each round.

The site verifies its own signature, and charges nothing unless this head occurs in its ledger.

The signature also covers the name of the lineage, which is not sent. A head that does not verify is about other people
or was not made by this site, and is ignored. So a malicious server can withhold a head or replay an older one, which is
no worse than keeping none; it cannot keep a site with a complete ledger from taking part. All it sees is a digest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.errors import MalformedError, VaultError
from privacy.ledger.entries import signed_by
from privacy.storage import read_file, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from privacy.ledger.entries import LedgerOwner

_SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class SignedHead:
    """A head of a site's ledger, signed by the site."""

    head: str  # 64 hex digits
    signature: bytes

    def __post_init__(self) -> None:
        """Check the form.

        Raises:
            MalformedError: if it cannot be a head.
        """
        if not re.fullmatch("[0-9a-f]{64}", self.head) or len(self.signature) != _SIGNATURE_BYTES:
            msg = "a message contains a malformed ledger head; run the same version everywhere"
            raise MalformedError(msg)

    def is_of(self, owner: LedgerOwner, key: Ed25519PublicKey) -> bool:
        """Return whether the site signed it for exactly this ledger."""
        return signed_by(owner, self.head, self.signature.hex().encode(), key)


class LastHead:
    """The last head of a ledger, in a file at the site. It may be behind the ledger, but never ahead of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, head: SignedHead) -> None:
        """Write a head that is already in the ledger on disk. No sync: it is only an extra check."""
        self._write(f"{head.head} {head.signature.hex()}\n")

    def check_writable(self) -> None:
        """Check that the file can be written: rewrite its content, or create an empty file and remove it.

        Raises:
            OSError: naming the file, if it cannot be written.
        """
        if (kept := self.read()) is not None:
            self.keep(kept)
        elif not self.path.is_file():
            self._write("")
            self.path.unlink()

    def _write(self, text: str) -> None:
        write_atomically(self.path, text.encode(), sync=False)

    def read(self) -> SignedHead | None:
        """Return the head, or None if there is none or it cannot be read."""
        try:
            head, signature = read_file(self.path).decode("ascii").split()
            return SignedHead(head, bytes.fromhex(signature))
        except (OSError, ValueError, MalformedError, VaultError):
            return None
