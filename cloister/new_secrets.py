"""A new secret for an encrypted folder: typed twice, from the environment, or a key file."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cloister.views.terminal import ask_secretly
from privacy.at_rest.secrets import given_passphrase, read_key_file
from privacy.at_rest.vault import SHORTEST, Secret
from privacy.at_rest.vaults import is_protected
from privacy.errors import ConfigError
from privacy.storage import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NEW = "CLOISTER_NEW_PASSPHRASE"


@contextmanager
def for_new_folders(folders: tuple[Path, ...], key_file: Path | None, *, protect: bool) -> Iterator[Secret | None]:
    """Yield the secret that is to open new folders; None if they are not to be encrypted, or are already.

    A key file that was made for folders of which none came to be is removed again.

    Raises:
        ConfigError: if there is no secret, or it cannot be used.
        VaultError: if the key file cannot be one.
    """
    if not (protect or key_file) or all(map(is_protected, folders)):
        yield None
        return
    made = key_file is not None and not key_file.exists()
    secret = new_key_file(folders, key_file) if key_file else new_passphrase(_named(folders), before=False)
    try:
        yield secret
    finally:
        if made and key_file and not any(map(is_protected, folders)):
            key_file.unlink()


def _named(folders: tuple[Path, ...]) -> str:
    return " and ".join(map(str, folders))


def new_passphrase(name: str, *, before: bool) -> Secret | None:
    """Return a new passphrase: from the environment, or typed twice; None to keep the present one.

    Args:
        name: what it is to open, for the question.
        before: whether that has a passphrase or key file already.

    Raises:
        ConfigError: if there is none, it is too short, or it was typed differently.
    """
    secret = Secret.of_passphrase(os.environ[_NEW]) if os.environ.get(_NEW) else None
    if secret is None and not before:
        secret = given_passphrase()
    if secret is None:
        keep = ", or nothing to keep the present one" if before else ""
        text = ask_secretly(f"new passphrase for {name}{keep}: ")
        if text is None and not before:
            msg = "there is no terminal to ask for a passphrase; set CLOISTER_PASSPHRASE, or use --key-file"
            raise ConfigError(msg)
        if not text and before:
            return None
        if text != ask_secretly("the same again: "):
            msg = "the two passphrases differ; nothing was changed; try again"
            raise ConfigError(msg)
        secret = Secret.of_passphrase(text or "")
    if len(secret.value.decode(errors="replace")) < SHORTEST:
        msg = f"a passphrase has at least {SHORTEST} characters; nothing was changed; choose a longer one"
        raise ConfigError(msg)
    return secret


def new_key_file(folders: tuple[Path, ...], path: Path) -> Secret:
    """Read a key file; make it first if it is missing.

    Raises:
        ConfigError: if it is in a folder that it is to open.
        VaultError: if it cannot be one.
    """
    if any(path.resolve().is_relative_to(folder.resolve()) for folder in folders):
        msg = f"{path} is in the folder that it would open; choose another place, on another disk"
        raise ConfigError(msg)
    if not path.exists():
        write_atomically(path, os.urandom(32))
    return read_key_file(path)
