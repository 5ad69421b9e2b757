"""Files encrypted with AES-256-GCM, each under a key of its own, and bound to their place in the site's folder.

    head   "cloister-sealed-1 ", the kind ("w" or "l"), a line feed, 16 bytes of the vault's id, 32 random bytes
    body   a whole file: pieces of 256 KiB, the last one shorter; a log: records, see `privacy.at_rest.sealed_log`

The file's key is derived from the vault's data key and the random bytes of the head. A piece's nonce is its number and
whether it is the last, so that pieces can be neither moved, repeated nor cut off (the STREAM construction). The
associated data are the head up to the id, and the file's path in the site's folder.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.errors import VaultError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

MAGIC = b"cloister-sealed-1 "
WHOLE, LOG, VALUE = b"w", b"l", b"v"
ID_BYTES, SALT_BYTES, TAG_BYTES = 16, 32, 16
PIECE = 1 << 18
HEAD_BYTES = len(MAGIC) + 2 + ID_BYTES + SALT_BYTES
_INFO = b"cloister file at rest"


def is_sealed(file: BinaryIO) -> bool:
    """Return whether a file that is open at its start has the form of an encrypted one; leave it there."""
    start = file.read(len(MAGIC))
    file.seek(0)
    return start == MAGIC


def sealed_size(size: int) -> int:
    """Return how many bytes a whole file of `size` bytes takes when it is encrypted."""
    return HEAD_BYTES + size + TAG_BYTES * max(1, -(-size // PIECE))


@dataclass(frozen=True)
class FileKey:
    """The key of one file.

    Args:
        data_key: the vault's.
        vault: the vault's id.
        relative: the file's path in the site's folder, as POSIX text.
        kind: `WHOLE` or `LOG`.
        salt: random bytes.
        path: the file's path, for messages.
    """

    data_key: bytes
    vault: bytes
    relative: str
    kind: bytes
    salt: bytes
    path: Path

    @property
    def head(self) -> bytes:
        """The head of the file."""
        return self._start + self.salt

    @property
    def _start(self) -> bytes:
        return MAGIC + self.kind + b"\n" + self.vault

    @cached_property
    def _cipher(self) -> AESGCM:
        return AESGCM(HKDF(SHA256(), 32, self.salt, _INFO).derive(self.data_key))

    def seal(self, nonce: bytes, data: bytes | memoryview, more: bytes = b"") -> bytes:
        """Encrypt a piece. `more` is further associated data."""
        return self._cipher.encrypt(nonce, data, self._bound(more))

    def open(self, nonce: bytes, sealed: bytes, more: bytes = b"") -> bytes:
        """Decrypt a piece.

        Raises:
            VaultError: naming the file, if it was altered or is another's.
        """
        try:
            return self._cipher.decrypt(nonce, sealed, self._bound(more))
        except InvalidTag as error:
            raise self.altered() from error

    def _bound(self, more: bytes) -> bytes:
        return self._start + self.relative.encode(errors="surrogateescape") + b"\0" + more

    def altered(self) -> VaultError:
        """Return the error for a file that does not open."""
        msg = (
            f"{self.path}: this encrypted file was altered or cut, or belongs at another place; restore it from a "
            "backup"
        )
        return VaultError(msg)


def key_of_head(head: bytes, data_key: bytes, vault: bytes, relative: str, path: Path) -> FileKey:
    """Return the key of a file with this head.

    Raises:
        VaultError: naming the file, if the head is cut, or of another site's folder.
    """
    kind, own = head[len(MAGIC) : len(MAGIC) + 1], head[len(MAGIC) + 2 : -SALT_BYTES]
    if len(head) != HEAD_BYTES or not head.startswith((MAGIC + WHOLE + b"\n", MAGIC + LOG + b"\n")):
        msg = f"{path}: this file is cut or not encrypted as this version does it; restore it from a backup"
        raise VaultError(msg)
    if own != vault:
        msg = (
            f"{path}: this file was encrypted in another folder, or before encryption was set up anew; restore this "
            "folder's own from its backup"
        )
        raise VaultError(msg)
    return FileKey(data_key, vault, relative, kind, head[-SALT_BYTES:], path)


def sealed_parts(key: FileKey, parts: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Encrypt a whole file; yield head and pieces. Holds one piece in memory."""
    yield key.head
    number, held = 0, memoryview(b"")
    for piece in _pieces(parts):
        if number:
            yield key.seal(_nonce(number - 1, last=False), held)
        number, held = number + 1, piece
    yield key.seal(_nonce(max(0, number - 1), last=True), held)


def _pieces(parts: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """Yield the content of all parts in pieces of one size, the last one shorter; copy only across parts."""
    gathered = bytearray()
    for part in parts:
        view = memoryview(part)
        rest = view.cast("B") if view.nbytes else memoryview(b"")
        while rest:
            if not gathered and len(rest) >= PIECE:
                yield rest[:PIECE]
                rest = rest[PIECE:]
                continue
            room = PIECE - len(gathered)
            gathered += rest[:room]
            rest = rest[room:]
            if len(gathered) == PIECE:
                yield memoryview(bytes(gathered))
                gathered = bytearray()
    if gathered:
        yield memoryview(bytes(gathered))


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


class SealedFile(io.RawIOBase):
    """The content of an encrypted whole file, read from any place; holds one piece in memory.

    Args:
        file: the encrypted file, open after its head; closed with this one.
        key: its key.

    Raises:
        VaultError: if its length cannot be right.
    """

    def __init__(self, file: BinaryIO, key: FileKey) -> None:
        super().__init__()
        self._file, self._key, self._place = file, key, 0
        body = os.fstat(file.fileno()).st_size - HEAD_BYTES
        self._count = max(1, -(-body // (PIECE + TAG_BYTES)))
        self._size = body - TAG_BYTES * self._count
        self._number, self._piece = -1, b""
        if self._size < 0 or (self._count > 1 and self._size <= (self._count - 1) * PIECE):
            raise key.altered()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place in the content."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place in the content."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # any writable buffer
        """Read from one piece."""
        number, start = divmod(self._place, PIECE)
        if self._place >= self._size:
            if self._size == 0 and self._number < 0:
                self._load(0)  # so that an empty file is verified too
            return 0
        self._load(number)
        data = self._piece[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _load(self, number: int) -> None:
        if number == self._number:
            return
        self._file.seek(HEAD_BYTES + number * (PIECE + TAG_BYTES))
        sealed = self._file.read(PIECE + TAG_BYTES)
        self._piece = self._key.open(_nonce(number, last=number == self._count - 1), sealed)
        self._number = number

    def close(self) -> None:
        """Close the encrypted file too."""
        if not self.closed:
            self._file.close()
        super().close()
