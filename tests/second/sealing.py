"""Second reader: HPKE with MLKEM768-X25519, by hand but for the two parts of the KEM and AES-GCM; see `signed.py`."""

from __future__ import annotations

import hmac
import json
from hashlib import sha3_256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.second.signed import AUTHENTICITY, RefusedError

_SUITE = b"HPKE" + b"\x64\x7a" + b"\x00\x01" + b"\x00\x02"
_LABEL = bytes.fromhex("5c2e2f2f5e5c")  # of X-Wing
_CIPHERTEXT, _ENCAPSULATED, _SEED = 1088, 1120, 64


def public_key(private: bytes) -> bytes:
    """Return the public key, as a roster lists it, of a sealing key's file."""
    mlkem, x25519 = _keys(private)
    return mlkem.public_key().public_bytes_raw() + _raw(x25519)


def open_sealed(sealed: bytes, private: bytes, info: bytes) -> bytes:
    """Open what was sealed to a key (RFC 9180, base mode, no associated data)."""
    if len(sealed) < _ENCAPSULATED + 16:
        raise RefusedError(AUTHENTICITY, "too short")
    mlkem, x25519 = _keys(private)
    ephemeral = sealed[_CIPHERTEXT:_ENCAPSULATED]
    shared = sha3_256(
        mlkem.decapsulate(sealed[:_CIPHERTEXT])
        + x25519.exchange(X25519PublicKey.from_public_bytes(ephemeral))
        + ephemeral
        + _raw(x25519)
        + _LABEL
    ).digest()
    context = b"\0" + _extract(b"", b"psk_id_hash", b"") + _extract(b"", b"info_hash", info)
    secret = _extract(shared, b"secret", b"")
    key, nonce = _expand(secret, b"key", context, 32), _expand(secret, b"base_nonce", context, 12)
    try:
        return AESGCM(key).decrypt(nonce, sealed[_ENCAPSULATED:], None)
    except InvalidTag as error:
        raise RefusedError(AUTHENTICITY, "seal") from error


def bound(purpose: str, *names: object) -> bytes:
    """Return what a letter (`epoch`) or a pair letter (`pair`) is sealed with."""
    return f"cloister {purpose} ".encode() + json.dumps(names).encode()


def _keys(private: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    return MLKEM768PrivateKey.from_seed_bytes(private[:_SEED]), X25519PrivateKey.from_private_bytes(private[_SEED:])


def _raw(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _extract(salt: bytes, label: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + _SUITE + label + secret, "sha256")


def _expand(secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labelled = length.to_bytes(2, "big") + b"HPKE-v1" + _SUITE + label + info
    return hmac.digest(secret, labelled + b"\1", "sha256")[:length]
