"""The head of a site's ledger, signed by the site for itself and kept elsewhere: how an old copy is noticed.

Nobody without the site's key can edit a ledger unnoticed, but entries that are missing at its end leave no trace: a
ledger that was restored from an old backup, or deleted, looks like one in which less was spent. So the last head is
kept in two other places, with its signature:

- at the site, in a folder of its own: a ledger that was restored by itself is noticed at once;
- at the server: after each charge, and whenever it says that it is ready, a site hands it the head. The server keeps
  the last one that each site sent, and brings it back with the next query and with each round.

The site verifies its own signature, and charges nothing unless this head occurs in its ledger.

The signature is over the lineage's name too, which is not sent: a head that does not verify is about other people, or
not of this site's making, and says nothing. So a malicious server can withhold a head, or replay an older one, and then
all is as if there were none; it cannot keep a site with a whole ledger from taking part. What it sees is a digest.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.errors import MalformedError
from privacy.ledger.entries import signed_by
from privacy.storage import make_folder, naming, read_file

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from privacy.ledger.entries import Whose

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

    def is_of(self, whose: Whose, key: Ed25519PublicKey) -> bool:
        """Whether the site made it for just this ledger."""
        return signed_by(whose, self.head, self.signature.hex().encode(), key)


class LastHead:
    """The last head of a ledger, in a file at the site. It may fall behind the ledger, and never be ahead of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, head: SignedHead) -> None:
        """Write a head that stands in the ledger, on disk. What a power failure takes of this is only help."""
        self._write(f"{head.head} {head.signature.hex()}\n")

    def check_writable(self) -> None:
        """Write again what stands there, or an empty file for a moment, so that what cannot be written is noticed.

        Raises:
            OSError: naming the file, if it cannot.
        """
        if (kept := self.read()) is not None:
            self.keep(kept)
        elif not self.path.is_file():
            self._write("")
            self.path.unlink()

    def _write(self, text: str) -> None:
        make_folder(self.path.parent)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.new")
        with naming(self.path):
            try:
                beside.write_text(text)
                beside.replace(self.path)
            finally:
                with suppress(OSError):
                    beside.unlink(missing_ok=True)

    def read(self) -> SignedHead | None:
        """Return the head; None if there is none, or none that can be read."""
        try:
            head, signature = read_file(self.path).decode("ascii").split()
            return SignedHead(head, bytes.fromhex(signature))
        except (OSError, ValueError, MalformedError):
            return None
