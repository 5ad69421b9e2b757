"""Read, lock and append to a file of entries; in a site's encrypted folder, each append is encrypted by itself."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from privacy.at_rest.sealed import HEAD_BYTES, LOG, MAGIC, FileKey, key_of_head
from privacy.at_rest.sealed_log import open_records, sealed_record
from privacy.at_rest.vaults import vault_of
from privacy.files import private
from privacy.storage import append, must_open, new_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from privacy.at_rest.vault import Vault


class LogFile:
    """An append-only file that is open and locked.

    Args:
        path: its path.
        file: the open file.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._key: FileKey | None = None
        self._ends = [0]  # where the head and each record end in the file
        self._starts = [0]  # where the text of each record starts; the last: where the next one's would
        self.data = self._read()
        """What is in it. In a file that is not encrypted, the end may be torn."""

    def _read(self) -> bytes:
        held = vault_of(self._path)
        self._file.seek(0)
        sealed = bool(os.fstat(self._file.fileno()).st_size) and self._is_begun(held)
        data = self._file.read()
        if held is None or (data and not sealed and not self._is_torn(data)):
            return data
        vault, relative = held
        if len(data) < HEAD_BYTES or not sealed:  # new, or a crash came within its first entry
            encrypting = sealed or vault.header.state != "decrypting"
            self._key = new_key(*held, self._path, LOG) if encrypting else None
            return b""
        self._key = key_of_head(data[:HEAD_BYTES], vault.data_key, bytes.fromhex(vault.header.id), relative, self._path)
        if self._key.kind != LOG:
            raise self._key.altered()
        texts, ends = open_records(self._key, data)
        self._ends = [HEAD_BYTES, *ends]
        for text in texts:
            self._starts.append(self._starts[-1] + len(text))
        return b"".join(texts)

    def _is_begun(self, held: tuple[Vault, str] | None) -> bool:
        """Return whether the file has an encrypted file's start; a first write that was torn is none."""
        start = self._file.read(HEAD_BYTES)
        self._file.seek(0)
        return False if held and self._is_torn(start) else must_open(self._file, held, self._path)

    @staticmethod
    def _is_torn(start: bytes) -> bool:
        return len(start) < HEAD_BYTES and (not any(start) or MAGIC.startswith(start))

    def append(self, data: bytes, *, sync: bool = True) -> None:
        """Append an entry, or nothing, and sync the file, including what other processes wrote.

        Raises:
            OSError: naming the file, if it cannot be written; then it has its previous length.
        """
        if not data or not self._key:
            append(self._path, self._file.fileno(), data, sync=sync)
            return
        self._cut(self._ends[-1])
        head = b"" if self._ends[-1] else self._key.head
        record = sealed_record(self._key, len(self._ends) - 1, data)
        append(self._path, self._file.fileno(), head + record, sync=sync)
        if head:
            self._ends = [HEAD_BYTES]
        self._ends.append(self._ends[-1] + len(record))
        self._starts.append(self._starts[-1] + len(data))

    def keep(self, size: int) -> None:
        """Drop what follows the first `size` bytes of the content: a torn entry."""
        if self._key is None:
            self._file.truncate(size)
        elif size in self._starts:
            kept = self._starts.index(size) + 1
            self._ends, self._starts = self._ends[:kept], self._starts[:kept]
            self._cut(self._ends[-1])
        else:
            raise self._key.altered()  # entries are written whole

    def _cut(self, size: int) -> None:
        if os.fstat(self._file.fileno()).st_size > size:
            self._file.truncate(size)

    def is_in_place(self) -> bool:
        """Return whether no other file has replaced this one."""
        return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())


@contextmanager
def opened_log(path: Path) -> Iterator[LogFile]:
    """Open a file for appending, make it if it is missing, and lock it against other processes.

    Raises:
        OSError: if it cannot be opened.
        VaultError: if it is encrypted and cannot be opened, or was altered.
    """
    with open(path, "a+b", opener=private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield LogFile(path, file)


def read_log(path: Path) -> bytes:
    """Return what is in a file of entries, once nobody writes to it.

    Raises:
        OSError, VaultError: as `opened_log`; also if it is missing.
    """
    with open(path, "rb", opener=private) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return LogFile(path, file).data
