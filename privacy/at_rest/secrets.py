"""Where the secret that opens a vault comes from: the environment, systemd, or whoever starts the command.

passphrase   CLOISTER_PASSPHRASE, or systemd's credential `cloister-passphrase`, or a question at the terminal
key file     the file that CLOISTER_KEY_FILE names, or systemd's credential `cloister-key`
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from privacy.at_rest.vault import KEY_FILE, PASSPHRASE, Secret
from privacy.errors import VaultError
from privacy.files import private

if TYPE_CHECKING:
    from collections.abc import Callable

PASSPHRASE_VARIABLE, KEY_FILE_VARIABLE = "CLOISTER_PASSPHRASE", "CLOISTER_KEY_FILE"
_CREDENTIALS = "CREDENTIALS_DIRECTORY"  # see systemd.exec(5)
_KEY_BYTES = range(32, (1 << 16) + 1)  # of a key file


class Asking:
    """How to ask a person for a passphrase; a command that runs at a terminal sets it."""

    how: Callable[[str], str | None] | None = None


def secret_for(folder: Path, kind: str) -> Secret:
    """Return the secret for a site's vault.

    Raises:
        VaultError: if there is none.
    """
    if kind == KEY_FILE:
        path = os.environ.get(KEY_FILE_VARIABLE) or _credential("cloister-key")
        if path:
            return read_key_file(Path(path))
        msg = f"{folder} is encrypted with a key file; name the file in {KEY_FILE_VARIABLE}"
        raise VaultError(msg)
    if (given := given_passphrase()) is not None:
        return given
    if Asking.how and (text := Asking.how(f"passphrase of {folder}: ")) is not None:
        return Secret.of_passphrase(text)
    msg = f"{folder} is encrypted; run this at a terminal, or set {PASSPHRASE_VARIABLE}"
    raise VaultError(msg)


def given_passphrase() -> Secret | None:
    """Return the passphrase in the environment or in systemd's credentials, or None."""
    text = os.environ.get(PASSPHRASE_VARIABLE)
    if text:
        return Secret.of_passphrase(text)
    if path := _credential("cloister-passphrase"):
        try:
            return Secret.of_passphrase(Path(path).read_text(encoding="utf-8").rstrip("\r\n"))
        except (OSError, UnicodeDecodeError) as error:
            msg = f"{path}: the passphrase cannot be read; store it as UTF-8 text"
            raise VaultError(msg) from error
    return None


def read_key_file(path: Path) -> Secret:
    """Read a key file.

    Raises:
        VaultError: naming the file, if it cannot be read, or cannot be one.
    """
    try:
        with open(path, "rb", opener=private) as file:
            data = file.read(_KEY_BYTES.stop)
    except OSError as error:
        msg = f"{path}: {(error.strerror or str(error)).lower()}; name the site's key file in {KEY_FILE_VARIABLE}"
        raise VaultError(msg) from error
    if len(data) not in _KEY_BYTES:
        msg = f"{path}: a key file has 32 to 65,536 random bytes, this one has {len(data):,}; name the site's key file"
        raise VaultError(msg)
    return Secret(KEY_FILE, data)


def _credential(name: str) -> str | None:
    folder = os.environ.get(_CREDENTIALS)
    path = Path(folder) / name if folder else None
    return str(path) if path and path.is_file() else None


__all__ = ["KEY_FILE", "PASSPHRASE", "Asking", "given_passphrase", "read_key_file", "secret_for"]
