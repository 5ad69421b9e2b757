"""Append-only files, encrypted: every append is a record of its own, bound to its position.

    record   nonce, the sealed length of the text (4 bytes), nonce, the sealed text

Nonces are random, since a record that was cut off after a failed append is followed by another at the same position.
The associated data are those of the file (`privacy.at_rest.sealed`), the record's number, and which part it is.

A crash may tear the last record: it is cut short, or ends in zeros that nobody wrote. It is dropped.
Everything else is an alteration: the length is sealed, so that no edit can pass a whole record off as a torn one.
A file that ends after an earlier record looks whole; whoever needs more keeps a head elsewhere, as the ledger does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from privacy.at_rest.sealed import HEAD_BYTES, TAG_BYTES
from privacy.errors import VaultError

if TYPE_CHECKING:
    from privacy.at_rest.sealed import FileKey

_NONCE, _LENGTH = 12, 4
_FRONT = 2 * _NONCE + _LENGTH + TAG_BYTES
_LARGEST = 1 << 28  # bytes of one record


def sealed_record(key: FileKey, number: int, text: bytes) -> bytes:
    """Return the record with this number, from 0."""
    nonces = os.urandom(2 * _NONCE)
    length = len(text).to_bytes(_LENGTH, "big")
    if len(text) > _LARGEST:
        msg = f"{key.path}: {len(text)} bytes are too many for one entry; report this"
        raise VaultError(msg)
    return (
        nonces[:_NONCE]
        + key.seal(nonces[:_NONCE], length, _place(number, b"length"))
        + nonces[_NONCE:]
        + key.seal(nonces[_NONCE:], text, _place(number, b"text"))
    )


def open_records(key: FileKey, data: bytes) -> tuple[list[bytes], list[int]]:
    """Return the texts of a file's whole records, and where each ends in the file.

    Args:
        key: the file's key.
        data: the whole file, head included.

    Raises:
        VaultError: naming the file, if a record was altered.
    """
    texts, ends, place = list[bytes](), list[int](), HEAD_BYTES
    try:
        while (record := _record(key, len(texts), data, place)) is not None:
            text, place = record
            texts.append(text)
            ends.append(place)
    except VaultError:
        if any(data[-TAG_BYTES:]):  # else the last bytes were never written
            raise
    return texts, ends


def _record(key: FileKey, number: int, data: bytes, start: int) -> tuple[bytes, int] | None:
    """Return the text of the record that starts at a place, and where it ends; None if it is cut, or there is none."""
    front = data[start : start + _FRONT]
    if len(front) < _FRONT:
        return None
    split = _FRONT - _NONCE
    length = int.from_bytes(key.open(front[:_NONCE], front[_NONCE:split], _place(number, b"length")), "big")
    end = start + _FRONT + length + TAG_BYTES
    if end > len(data):
        return None
    return key.open(front[split:], data[start + _FRONT : end], _place(number, b"text")), end


def _place(number: int, part: bytes) -> bytes:
    return number.to_bytes(8, "big") + part
