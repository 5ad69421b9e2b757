"""Find the vault that a file belongs to, and open it once per process.

A folder is encrypted if it has a `vault.json`, whoever reads or writes in it: nothing of a site's is written in the
clear because a caller forgot to ask.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from privacy.at_rest.secrets import secret_for
from privacy.at_rest.vault import FILE, Header, Vault
from privacy.errors import VaultError
from privacy.files import private

_MOST = 1 << 20  # bytes of `vault.json`
_lock = threading.RLock()
_headers = dict[str, tuple[tuple[int, int, int], Header]]()
_open = dict[str, Vault]()


def vault_of(path: Path) -> tuple[Vault, str] | None:
    """Return the open vault that keeps a file encrypted, and the file's path in it; None for any other file.

    Raises:
        VaultError: if the vault cannot be opened.
    """
    place = _place(path)
    if place is None:
        return None
    folder, relative = place
    return (opened(Path(folder)), relative) if header_of(Path(folder)).holds(relative) else None


def is_below_vault(path: Path) -> bool:
    """Return whether a file is in an encrypted folder, whether or not the file is encrypted itself."""
    return _place(path) is not None


def is_protected(folder: Path) -> bool:
    """Return whether a site's folder has a vault."""
    return (folder / FILE).exists()


def header_of(folder: Path) -> Header:
    """Read a folder's `vault.json`. Unverified until the vault is open.

    Raises:
        VaultError: if it cannot be read, or is damaged.
    """
    path = os.path.join(os.path.abspath(folder), FILE)  # noqa: PTH100, PTH118 - resolve() follows links
    try:
        known = _headers.get(path)
        if known and known[0] == _version(os.stat(path)):  # noqa: PTH116 - called for every file: faster than Path
            return known[1]
        with open(path, "rb", opener=private) as file:
            version = _version(os.fstat(file.fileno()))
            header = Header.from_bytes(file.read(_MOST), Path(path))
    except OSError as error:
        msg = f"{path}: {(error.strerror or str(error)).lower()}; restore this file from a backup"
        raise VaultError(msg) from error
    with _lock:
        _headers[path] = version, header
    return header


def _version(state: os.stat_result) -> tuple[int, int, int]:
    return state.st_mtime_ns, state.st_ino, state.st_size


def opened(folder: Path) -> Vault:
    """Return a folder's vault, opened with the secret from the environment, or from whoever started the command.

    Raises:
        VaultError: if it cannot be opened.
    """
    name, header = os.path.abspath(folder), header_of(folder)  # noqa: PTH100 - resolve() follows links
    with _lock:
        vault = _open.get(name)
        if vault and vault.header.id == header.id:
            if vault.header != header:  # another process changed state or secret
                _open[name] = vault = Vault(vault.folder, header, vault.data_key).checked()
            return vault
        _open[name] = vault = Vault.open(Path(name), header, secret_for(folder, header.kind))
        return vault


def remember(vault: Vault) -> None:
    """Use a vault that is already open."""
    with _lock:
        _open[os.path.abspath(vault.folder)] = vault  # noqa: PTH100 - resolve() follows links


def forget(folder: Path) -> None:
    """Forget a vault: its folder needs the secret again."""
    with _lock:
        _open.pop(os.path.abspath(folder), None)  # noqa: PTH100 - resolve() follows links


def _place(path: Path) -> tuple[str, str] | None:
    """Return the nearest folder above a file that has a vault, and the file's path in it; None if there is none."""
    file = os.path.abspath(path)  # noqa: PTH100 - resolve() follows links
    folder = os.path.dirname(file)  # noqa: PTH120 - called for every file: faster than Path
    while True:
        if os.path.lexists(os.path.join(folder, FILE)):  # noqa: PTH118
            return folder, os.path.relpath(file, folder)
        parent = os.path.dirname(folder)  # noqa: PTH120
        if parent == folder:
            return None
        folder = parent
