"""A folder whose secrets can be encrypted: a site's, a server's, or a coordinator's. The code is the same for all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from privacy.at_rest import protection
from privacy.at_rest.held import FOLDERS
from privacy.at_rest.vault import FILE
from privacy.at_rest.vaults import header_of, is_protected
from privacy.errors import VaultError
from privacy.files import remove_unfinished, unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager
    from typing import Self

    from privacy.at_rest.vault import Secret


@dataclass(frozen=True)
class KeptFolder:
    """A folder, and what is encrypted in it.

    Args:
        folder: the folder.
        files: files and folders to encrypt, relative to it, beside the usual ones of `privacy.at_rest.held`.
        outside: secrets that its settings keep elsewhere; they stay as they are.
        alone: keeps other processes from using the folder; raises a `VaultError` if one does.
        values: encrypts or decrypts what is not in files.
    """

    folder: Path
    files: tuple[str, ...]
    outside: tuple[Path, ...]
    alone: Callable[[], AbstractContextManager[None]]
    values: protection.Values = protection.no_values

    @classmethod
    def of(
        cls, folder: Path, paths: Iterable[Path], alone: Callable[[], AbstractContextManager[None]],
        values: protection.Values = protection.no_values,
    ) -> Self:  # fmt: skip
        """Return a folder whose settings name these files and folders, relative to it or absolute."""
        within, outside = list[str](), list[Path]()
        for each in paths:
            path = Path(os.path.abspath(folder / each))  # noqa: PTH100 - resolve() follows links
            if path.is_relative_to(folder) and path != folder:
                within.append(path.relative_to(folder).as_posix())
            else:
                outside.append(path)
        return cls(folder, tuple(within), tuple(outside), alone, values)

    def protect(self, secret: Secret | None) -> int:
        """Encrypt the folder, or change what opens it; return how many files and values were encrypted.

        Args:
            secret: what opens it from now on; None to leave that as it is.

        Raises:
            VaultError: if another process uses the folder, or the present secret is missing or wrong.
        """
        with self.alone():
            return protection.protect(self.folder, secret, self.files, self.values)

    def unprotect(self) -> int:
        """Decrypt the folder; return how many files and values were decrypted.

        Raises:
            VaultError: as `protect`.
        """
        with self.alone():
            return protection.unprotect(self.folder, self.values)

    def sweep(self) -> None:
        """Remove what processes that were killed hours ago left half written."""
        remove_unfinished(self.folder, {*FOLDERS, *self.files})

    def ready(self) -> None:
        """Open the folder, if it is encrypted; finish its encryption, if that was interrupted.

        Raises:
            VaultError: if it cannot be opened, or its settings name secrets in it that are not encrypted.
        """
        if not is_protected(self.folder):
            return
        if header_of(self.folder).state != "encrypted" or unfinished(self.folder / FILE):
            with self.alone():
                protection.finish(self.folder, self.values)
        if not is_protected(self.folder):
            return
        header = header_of(self.folder)
        if missing := [each for each in self.files if not header.holds(each)]:
            msg = (
                f"{self.folder / missing[0]}: the settings keep secrets here, which were not encrypted with the rest; "
                f"run cloister protect {self.folder}"
            )
            raise VaultError(msg)
