"""Lock, read, verify, append to and sync a ledger's file."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.clock import date
from privacy.crypto.signing import sign
from privacy.errors import KeyFileError, LedgerError, MalformedError, VaultError
from privacy.failpoints import failpoint
from privacy.ledger.entries import KIND, Entries, LedgerOwner, read_entries, signed_by, write_adopted, write_lost
from privacy.ledger.ledger_head import LastHead, SignedHead
from privacy.log_file import opened_log, read_log
from privacy.storage import lost, make_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from privacy.accounting.accounting import Mechanism
    from privacy.ledger.entries import Release
    from privacy.log_file import LogFile


class Chain:
    """An append-only file of signed lines.

    Args:
        path: the file's path.
        site: the site that owns it.
        lineage: the people whom it is about.
        key: the site's signing key; the public key is enough for reading.
        last: where the site keeps the last head, apart from the file; None to keep none.
    """

    def __init__(self, path: Path, site: str, lineage: str, key: Ed25519PrivateKey | Ed25519PublicKey,
                 last: Path | None = None) -> None:  # fmt: skip
        self.path, self.site, self.lineage, self.owner = path, site, lineage, LedgerOwner(site, lineage)
        self._key, self._last, self._known = key, LastHead(last) if last else None, Entries()

    @cached_property
    def public_key(self) -> Ed25519PublicKey:
        """The key that verifies the lines."""
        return self._key if isinstance(self._key, Ed25519PublicKey) else self._key.public_key()

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """The key that signs the lines.

        Raises:
            KeyFileError: if only the public key is here.
        """
        if isinstance(self._key, Ed25519PublicKey):
            msg = (
                f"{self.path}: {self.site}'s signing key is missing, so nothing is written; restore the key from backup"
            )
            raise KeyFileError(msg)
        return self._key

    def entries(self) -> Entries:
        """Return everything in the ledger. Write nothing: a torn last line is skipped and stays in the file.

        Raises:
            LedgerError: if the file was edited, is an older copy than the last head says, or cannot be read.
        """
        last = self.last_of_any_key()  # read before the file, to which others may append, so never ahead of it
        try:
            data = read_log(self.path)
        except FileNotFoundError:
            self._check_not_lost()
            data = b""
        except OSError as error:
            msg = f"{self.path}: {error.strerror or error}; no update is sent until the ledger can be read"
            raise LedgerError(msg) from error
        return self._read(data, last)

    @property
    def head(self) -> str:
        """The ledger's head: the digest of all its lines."""
        return self.entries().head

    def sign_head(self) -> SignedHead:
        """Return the current head, signed by the site.

        Raises:
            KeyFileError: if the ledger is empty, and only the public key is here.
            LedgerError: as `entries`.
        """
        entries = self.entries()
        if entries.signature:
            return SignedHead(entries.head, bytes.fromhex(entries.signature.decode()))
        return SignedHead(entries.head, sign(self.signing_key, KIND, self.owner.signed_part(entries.head)))

    def check_head(self, known: SignedHead | None) -> None:
        """Check the ledger against a head that the server sent back, if the site signed it for this ledger.

        Raises:
            LedgerError: if the ledger is older, or was edited.
        """
        if known:
            self._check_not_older(known, self.entries())

    def last_kept(self) -> str | None:
        """Return the last head that the site keeps apart from the file, or None if there is none for this ledger."""
        kept = self.last_of_any_key()
        return kept.head if kept and kept.is_of(self.owner, self.public_key) else None

    def last_of_any_key(self) -> SignedHead | None:
        """Return the last head that is kept apart from the file, whoever signed it; None if there is none."""
        return self._last.read() if self._last else None

    def head_of_any_key(self) -> SignedHead | None:
        """Return the head of the file's lines, whoever signed them; None if there are none, or they cannot be read."""
        try:
            entries = read_entries(read_log(self.path), self.path, self.owner, None)
            return SignedHead(entries.head, bytes.fromhex(entries.signature.decode())) if entries.signature else None
        except (OSError, ValueError, LedgerError, VaultError, MalformedError):
            return None

    def check_holds(self, head: str, entries: Entries) -> None:
        """Check that the chain contains a head that this ledger once had.

        Raises:
            LedgerError: if it does not, so this must be an older copy.
        """
        if head not in entries.heads:
            ends = f"ends on {entries.charges[-1].time}" if entries.charges else "is empty"
            msg = (
                f"{self.path}: the ledger {ends} and lacks later charges of {self.site} (head {head[:12]}); "
                "restore the newest copy; nothing is charged until then; if it is lost, see `cloister ledger recover "
                "--help`"
            )
            raise LedgerError(msg)

    def adopt(self, before: Ed25519PublicKey | None) -> None:
        """Sign, with the site's present key, a ledger that was signed with another key.

        Args:
            before: the other key; None to accept the ledger as it is, whoever signed it.

        Raises:
            LedgerError: if the ledger is damaged, an older copy, not signed with `before`, or already signed with the
                present key.
        """
        with self._locked() as (file, data):
            entries = read_entries(data, self.path, self.owner, before)
            kept = self.last_of_any_key()
            if kept and (before is None or kept.is_of(self.owner, before)):
                self.check_holds(kept.head, entries)
            if not entries.signature or signed_by(self.owner, entries.head, entries.signature, self.public_key):
                msg = f"{self.path}: this ledger has no entry signed with a key other than {self.site}'s present one"
                raise LedgerError(msg)
            file.keep(len(entries.data))
            key = before.public_bytes_raw().hex() if before else ""
            self.append(file, write_adopted(entries, self.owner, self.signing_key, key, date()))

    def accept_lost(self, heads: Iterable[SignedHead], charges: Sequence[tuple[Release, Mechanism]],
                    records_per_person: int) -> None:  # fmt: skip
        """Charge what lost lines may have cost, and accept their heads from now on.

        Args:
            heads: heads of this ledger, kept elsewhere; those of other ledgers are ignored. The last head that the site
                keeps is accepted too.
            charges: the most that the lost lines may have cost.
            records_per_person: the most records of one person.

        Raises:
            LedgerError: if the ledger was edited, or cannot be written.
        """
        with self._locked() as (file, data):
            entries = read_entries(data, self.path, self.owner, self.public_key)
            lost = self.lost_heads(heads, entries)
            if len(entries.data) != len(data):
                file.keep(len(entries.data))
            self.append(file, write_lost(entries, self.owner, self.signing_key, lost, charges,
                                         records_per_person=records_per_person, time=date()))  # fmt: skip

    def lost_heads(self, heads: Iterable[SignedHead], entries: Entries) -> set[str]:
        """Return the heads of this ledger, among these and the last one that the site keeps, that its lines lack."""
        own = [self.last_kept(), *(head.head for head in heads if head.is_of(self.owner, self.public_key))]
        return {head for head in own if head} - entries.heads

    @contextmanager
    def opened(self) -> Iterator[tuple[LogFile, Entries]]:
        """Lock the file, read it, and cut off a torn last line.

        Raises:
            LedgerError: if it was edited, is an older copy than the last head says, or cannot be read or written.
        """
        with self._locked() as (file, data):
            entries = self._read(data, self.last_of_any_key())
            if len(entries.data) != len(data):
                file.keep(len(entries.data))
            yield file, entries

    def append(self, file: LogFile, lines: bytes) -> str:
        """Append lines and sync them to disk; return the new head."""
        failpoint("ledger-entry")
        self._write(file, lines)
        failpoint("ledger-entered")
        head, signature, _ = lines.splitlines()[-1].split(b" ", 2)
        if self._last:
            self._last.keep(SignedHead(head.decode(), bytes.fromhex(signature.decode())))
        return head.decode()

    def sync(self, file: LogFile) -> None:
        """Sync the file to disk, including what other processes wrote."""
        self._write(file, b"")

    def _write(self, file: LogFile, lines: bytes) -> None:
        file.append(lines)
        if not file.is_in_place():
            msg = (
                f"{self.path}: another file replaced this ledger while it was being written; no update was sent; "
                "try again"
            )
            raise LedgerError(msg)

    @contextmanager
    def _locked(self) -> Iterator[tuple[LogFile, bytes]]:
        self._check_not_lost()  # opening a dangling link would create an empty ledger at its target
        try:
            make_folder(self.path.parent)
            with opened_log(self.path) as file:
                yield file, file.data
        except OSError as error:
            msg = f"{error.filename or self.path}: {error.strerror or error}; "
            raise LedgerError(msg + "no update is sent until the ledger can be written") from error

    def _check_not_lost(self) -> None:
        if lost(self.path):
            msg = (
                f"{self.path}: this link leads to a missing file; mount or restore the file; nothing is charged "
                "until then"
            )
            raise LedgerError(msg)

    def _read(self, data: bytes, last: SignedHead | None) -> Entries:
        self._known = read_entries(data, self.path, self.owner, self.public_key, self._known)
        if last:
            self._check_not_older(last, self._known)
        return self._known

    def _check_not_older(self, known: SignedHead, entries: Entries) -> None:
        """Check that entries hold a head, unless the site did not sign it for this ledger."""
        if known.head not in entries.heads and known.is_of(self.owner, self.public_key):
            self.check_holds(known.head, entries)
