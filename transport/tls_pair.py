"""Give Python's ssl a certificate and key that lie encrypted on disk; it reads both from files only.

They are copied into a temporary file, the key encrypted under a password that is used once and kept in memory only.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from privacy.at_rest.vaults import vault_of
from privacy.storage import read_file, write_atomically
from transport.pki import read_tls_key

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def readable_pair(certificate: Path, key: Path) -> Iterator[tuple[Path, Path, str]]:
    """Return files from which ssl can read a certificate and its key, and the key's password.

    Raises:
        KeyFileError: if the key is encrypted at rest and is no P-256 key.
    """
    if not (vault_of(certificate) or vault_of(key)):
        yield certificate, key, ""  # without a password, OpenSSL asks on the terminal
        return
    password = secrets.token_hex(32)
    sealed = read_tls_key(key).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode())
    )
    with TemporaryDirectory(prefix="cloister-tls-") as folder:
        both = Path(folder) / "pair.pem"
        write_atomically(both, read_file(certificate), b"\n", sealed, sync=False)
        yield both, both, password
