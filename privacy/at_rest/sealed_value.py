"""Values that are not files, such as those in a database: each is encrypted under a key of its own, bound to its place.

    value   "cloister-sealed-1 v", a line feed, the vault's id, 32 random bytes, then the text by AES-256-GCM

The associated data are those of an encrypted file (`privacy.at_rest.sealed`), with the value's place as its path. The
key is used once, so the nonce is zero.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from privacy.at_rest.sealed import HEAD_BYTES, MAGIC, SALT_BYTES, VALUE, FileKey
from privacy.at_rest.vaults import header_of, is_protected, opened
from privacy.errors import VaultError

if TYPE_CHECKING:
    from pathlib import Path

_NONCE = bytes(12)


def is_sealed_value(data: bytes) -> bool:
    """Return whether a value has the form of an encrypted one."""
    return data.startswith(MAGIC + VALUE + b"\n")


def seal_value(folder: Path, place: str, data: bytes | memoryview) -> bytes:
    """Return a value as it is stored: encrypted, if the folder is.

    Args:
        folder: the folder whose vault it belongs to.
        place: where the value stands, as a path relative to the folder; it opens at no other place.
        data: the value.

    Raises:
        VaultError: if the folder's vault cannot be opened.
    """
    if not is_protected(folder) or header_of(folder).state == "decrypting":
        return bytes(data)
    vault = opened(folder)
    key = FileKey(
        vault.data_key, bytes.fromhex(vault.header.id), place, VALUE, os.urandom(SALT_BYTES), vault.folder / place
    )
    return key.head + key.seal(_NONCE, data)


def open_value(folder: Path, place: str, stored: bytes) -> bytes:
    """Return a value, given as it is stored.

    Raises:
        VaultError: if the vault cannot be opened, the value was altered or is another's, or it is encrypted and should
            not be, or the other way around.
    """
    protected, sealed = is_protected(folder), is_sealed_value(stored)
    if not protected:
        if sealed:
            msg = f"{folder / place}: this value is encrypted, but there is no vault.json; restore that file"
            raise VaultError(msg)
        return stored
    vault = opened(folder)
    own = bytes.fromhex(vault.header.id)
    if not sealed:
        if vault.header.state == "encrypted":
            msg = f"{folder / place}: this value is not encrypted, though its folder is; restore it from a backup"
            raise VaultError(msg)
        return stored
    salt = stored[HEAD_BYTES - SALT_BYTES : HEAD_BYTES]
    key = FileKey(vault.data_key, own, place, VALUE, salt, vault.folder / place)
    try:
        if not stored.startswith(key.head):
            raise key.altered()
        return key.open(_NONCE, stored[HEAD_BYTES:])
    except VaultError as error:
        msg = f"{key.path}: this encrypted value was altered, or belongs at another place; restore it from a backup"
        raise VaultError(msg) from error
