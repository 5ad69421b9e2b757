"""A site's vault: the file `vault.json` in its folder, which has the data key, encrypted.

The data key is random. It is encrypted ("wrapped") with AES-256-GCM under a key that comes from a passphrase (Argon2id)
or from a key file (HKDF). There is one slot today; the format has room for several, and for keys in hardware (PKCS#11).
The file also says which state the folder is in, and which of the site's own files outside the usual folders are
encrypted. An HMAC under the data key covers all of it.
"""

from __future__ import annotations

import hmac
import json
import os
import unicodedata
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.at_rest.held import holds, is_empty
from privacy.at_rest.sealed import ID_BYTES
from privacy.errors import VaultError

if TYPE_CHECKING:
    from pathlib import Path

FILE = "vault.json"
PASSPHRASE, KEY_FILE = "passphrase", "key file"
SHORTEST = 12
"""The fewest characters of a passphrase."""

State = Literal["encrypting", "encrypted", "decrypting"]

_VERSION = 1
_KEY_BYTES, _SALT_BYTES, _NONCE_BYTES = 32, 16, 12
_MEMORY_KIB, _PASSES, _LANES = 1 << 16, 3, 4
_MOST_KIB, _MOST_PASSES, _MOST_LANES = 1 << 20, 16, 16


@dataclass(frozen=True)
class Secret:
    """What opens a vault: a passphrase, or a key file's content."""

    kind: str
    value: bytes

    @classmethod
    def of_passphrase(cls, text: str) -> Secret:
        """Return a passphrase as a secret, whichever way its accents are typed."""
        return cls(PASSPHRASE, unicodedata.normalize("NFC", text).encode(errors="surrogateescape"))


@dataclass(frozen=True)
class Slot:
    """The data key, wrapped under one secret."""

    kind: str
    salt: str
    memory_kib: int  # of Argon2id; 0 for a key file
    passes: int
    lanes: int
    nonce: str
    wrapped: str

    @classmethod
    def wrap(cls, data_key: bytes, secret: Secret, vault: str) -> Slot:
        """Wrap a data key under a secret."""
        costs = (_MEMORY_KIB, _PASSES, _LANES) if secret.kind == PASSPHRASE else (0, 0, 0)
        nonce = os.urandom(_NONCE_BYTES)
        slot = cls(secret.kind, os.urandom(_SALT_BYTES).hex(), *costs, nonce.hex(), "")
        return replace(slot, wrapped=AESGCM(slot._key(secret)).encrypt(nonce, data_key, slot._bound(vault)).hex())

    def unwrap(self, secret: Secret, vault: str) -> bytes | None:
        """Return the data key, or None if this secret does not open the slot."""
        try:
            data = AESGCM(self._key(secret)).decrypt(
                bytes.fromhex(self.nonce), bytes.fromhex(self.wrapped), self._bound(vault)
            )
        except InvalidTag:
            return None
        return data if len(data) == _KEY_BYTES else None

    def _key(self, secret: Secret) -> bytes:
        salt = bytes.fromhex(self.salt)
        if self.kind == PASSPHRASE:
            derivation = Argon2id(
                salt=salt, length=_KEY_BYTES, iterations=self.passes, lanes=self.lanes, memory_cost=self.memory_kib
            )
            return derivation.derive(secret.value)
        return HKDF(SHA256(), _KEY_BYTES, salt, b"cloister key file").derive(secret.value)

    def _bound(self, vault: str) -> bytes:
        return _canonical({"vault": vault, **asdict(replace(self, nonce="", wrapped=""))})

    @property
    def is_known(self) -> bool:
        """Whether this version can open such a slot at all, with a bounded amount of work."""
        sizes = len(self.salt) == 2 * _SALT_BYTES and len(self.nonce) == 2 * _NONCE_BYTES
        if self.kind == KEY_FILE:
            return sizes
        bounded = 8 * self.lanes <= self.memory_kib <= _MOST_KIB and 1 <= self.passes <= _MOST_PASSES
        return self.kind == PASSPHRASE and sizes and bounded and 1 <= self.lanes <= _MOST_LANES


@dataclass(frozen=True)
class Header:
    """What `vault.json` says."""

    id: str
    state: State
    files: tuple[str, ...]  # further encrypted files and folders, relative to the site's folder
    slots: tuple[Slot, ...]
    mac: str = ""

    @property
    def kind(self) -> str:
        """What opens the vault: "passphrase" or "key file"."""
        return self.slots[0].kind

    def holds(self, relative: str) -> bool:
        """Return whether a file of the folder is kept encrypted."""
        own = any(relative == each or relative.startswith(f"{each}/") for each in self.files)
        return (own and not is_empty(relative)) or holds(relative)

    def to_bytes(self) -> bytes:
        """Encode as JSON."""
        return json.dumps({"version": _VERSION, **asdict(self)}, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, path: Path) -> Header:
        """Decode.

        Raises:
            VaultError: naming the file, if it is damaged or of another version.
        """
        try:
            values: dict[str, Any] = json.loads(data)
            version = values.pop("version")
            slots = tuple(Slot(**each) for each in values.pop("slots"))
            files: tuple[str, ...] = tuple(values.pop("files"))
            header = cls(**values, files=files, slots=slots)
            good = header._is_well_formed
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _damaged(path) from error
        if version != _VERSION:
            msg = f"{path}: this folder was encrypted by another version of Cloister; use that version"
            raise VaultError(msg)
        if not good:
            raise _damaged(path)
        if not all(slot.is_known for slot in header.slots):
            msg = (
                f"{path}: this version can open no vault with a {header.kind!r} of this form; use the version that can"
            )
            raise VaultError(msg)
        return header

    @property
    def _is_well_formed(self) -> bool:
        texts = [self.id, self.state, self.mac, *self.files]
        for slot in self.slots:
            texts += [slot.kind, slot.salt, slot.nonce, slot.wrapped]
            bytes.fromhex(slot.salt + slot.nonce + slot.wrapped)
            if not all(type(each) is int for each in (slot.memory_kib, slot.passes, slot.lanes)):
                return False
        known = self.state in {"encrypting", "encrypted", "decrypting"}
        named = all(isinstance(each, str) for each in texts) and len(bytes.fromhex(self.id)) == ID_BYTES
        return known and named and bool(self.slots)


@dataclass(frozen=True)
class Vault:
    """An open vault."""

    folder: Path
    header: Header
    data_key: bytes

    @classmethod
    def create(cls, folder: Path, secret: Secret, files: tuple[str, ...], state: State) -> Vault:
        """Make a vault with a new data key; nothing is written."""
        vault, data_key = os.urandom(ID_BYTES).hex(), os.urandom(_KEY_BYTES)
        header = Header(vault, state, files, (Slot.wrap(data_key, secret, vault),))
        return cls(folder, header, data_key).signed()

    @classmethod
    def open(cls, folder: Path, header: Header, secret: Secret) -> Vault:
        """Open a vault.

        Raises:
            VaultError: if the secret does not open it, or `vault.json` was altered.
        """
        for slot in header.slots:
            if slot.kind == secret.kind and (data_key := slot.unwrap(secret, header.id)) is not None:
                return cls(folder, header, data_key).checked()
        msg = f"{folder}: this {secret.kind} does not open the encrypted folder; check it and try again"
        raise VaultError(msg)

    def checked(self) -> Vault:
        """Return this vault.

        Raises:
            VaultError: if `vault.json` was altered.
        """
        if not hmac.compare_digest(self._mac(), self.header.mac):
            msg = f"{self.folder / FILE}: this file was altered; restore it from a backup"
            raise VaultError(msg)
        return self

    def with_secret(self, secret: Secret) -> Vault:
        """Return the vault with the same data key under another secret."""
        slots = (Slot.wrap(self.data_key, secret, self.header.id),)
        return replace(self, header=replace(self.header, slots=slots)).signed()

    def with_state(self, state: State, files: tuple[str, ...]) -> Vault:
        """Return the vault in another state."""
        return replace(self, header=replace(self.header, state=state, files=files)).signed()

    def signed(self) -> Vault:
        """Return the vault with the header's HMAC."""
        return replace(self, header=replace(self.header, mac=self._mac()))

    def _mac(self) -> str:
        key = HKDF(SHA256(), _KEY_BYTES, None, b"cloister vault header").derive(self.data_key)
        return hmac.new(key, _canonical(asdict(replace(self.header, mac=""))), sha256).hexdigest()


def _canonical(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def _damaged(path: Path) -> VaultError:
    return VaultError(f"{path}: this file is damaged; restore it from a backup")
