"""A cache on disk of decoded images, with `cache = true` in `[data]` of `site.toml`: each image is decoded once.

    cache/3f/3fa2….safetensors    the image as the model gets it, and a checksum

The name is the SHA-256 of the image's file, or of all files of its folder, of the code of the task and of Cloister, and
of the versions of all installed packages. So after a change of any of them, the entry is not found, and the image is
decoded anew. Labels are not in it. In an encrypted site's folder entries are encrypted, as all that the site keeps.

An entry that is damaged is removed, and its image decoded anew. Processes that read ahead share the cache without
locks: entries are replaced atomically, and each process may add its own part of what the cache may still grow by.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.metadata import distributions
from shutil import disk_usage
from typing import TYPE_CHECKING, Any
from zlib import crc32

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from client.task.installed import package_digest
from privacy.at_rest.sealed import sealed_size
from privacy.at_rest.vaults import remember, vault_of
from privacy.errors import VaultError
from privacy.failures import sentence
from privacy.files import make_folder
from privacy.storage import open_file, read_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

    from privacy.at_rest.vault import Vault

log = logging.getLogger("cloister.agent")

FOLDER = "cache"
"""In the site's folder."""

_IMAGE, _CHECKSUM = "image", "checksum"
_SUFFIX = ".safetensors"
_FULL = 0.9  # of the bound: then entries go that were not used for a week
_DAY = 24 * 3600.0
_IDLE = 7 * _DAY


@dataclass
class Decoded:
    """The decoded images of one task, in this process.

    Attributes:
        folder: where all entries are.
        code: stands for everything that decodes.
        left: how many bytes this process may add.
        vault: of the site's folder, if it is encrypted.
    """

    folder: Path
    code: bytes
    left: int
    vault: Vault | None = None

    @classmethod
    def open(cls, site: Path, task: object, form: object, most: int, processes: int) -> Self:
        """Open a site's cache, and make room in it.

        Args:
            site: the site's folder.
            task: whose images these are.
            form: what it declares of them.
            most: bytes that the cache may take.
            processes: how many will add to it.

        Raises:
            OSError, VaultError: if it cannot be used.
        """
        folder = site / FOLDER
        make_folder(folder)
        free = disk_usage(folder).free // 2  # the site's own files need room, too
        left = max(0, min(most - make_room(folder, most), free))
        vault = vault_of(folder / _SUFFIX)
        return cls(folder, code_of(task, form), left // processes, vault[0] if vault else None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the site's vault in another process, which cannot ask for the passphrase."""
        self.__dict__.update(state)
        if self.vault:
            remember(self.vault)

    def key_of(self, path: Path) -> str:
        """Return the name of an image's entry, in hex.

        Raises:
            OSError: if its file cannot be read.
        """
        digest = sha256(self.code)
        for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if each.is_file():
                with open_file(each) as file:
                    digest.update(f"{each.relative_to(path.parent)}\0".encode() + file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def get(self, key: str) -> Tensor | None:
        """Return an image; None if there is no entry of this name, or it is damaged."""
        path = self._path(key)
        image: Tensor | None = None
        try:
            with suppress(VaultError):
                image = _opened(read_file(path))
            if image is None:
                log.warning("%s is damaged; its image is decoded anew", path)
                path.unlink(missing_ok=True)
            elif time.time() - path.stat().st_mtime > _DAY:
                os.utime(path)  # so that it is not removed as unused
        except FileNotFoundError:
            pass
        except OSError as error:
            log.debug("an entry of the cache cannot be used", exc_info=error)
        return image

    def put(self, key: str, path: Path, image: Tensor) -> None:
        """Keep an image, unless the cache is full, or its file has changed since `key_of` read it."""
        if image.layout != torch.strided or not image.dim():
            return
        image = image.detach().contiguous()
        data = safetensors.torch.save({_IMAGE: image, _CHECKSUM: torch.tensor([_checksum(image)])})
        size = sealed_size(len(data)) if self.vault else len(data)
        if size > self.left:
            return
        try:
            if self.key_of(path) == key:
                write_atomically(self._path(key), data, sync=False)
                self.left -= size
        except OSError as error:
            self.left = 0
            log.warning("the cache of decoded images does not grow any more: %s", sentence(error))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"


def code_of(task: object, form: object) -> bytes:
    """Return a digest of everything that decides what an image's file becomes."""
    digest = sha256(f"{type(task).__module__}:{type(task).__qualname__} {form!r}\n".encode())
    packages = {kind.__module__.partition(".")[0] for kind in type(task).__mro__} - sys.stdlib_module_names
    for package in sorted(packages):  # of the task and of Cloister
        digest.update(f"{package} {package_digest(package, '')}\n".encode())
    for name, version in sorted({(each.name, each.version) for each in distributions()}):
        digest.update(f"{name} {version}\n".encode())
    return digest.digest()


def make_room(folder: Path, most: int) -> int:
    """Remove what is no longer used if little room is left, and what is above the bound; return the bytes in use."""
    now, used, entries = time.time(), 0, list[tuple[float, int, str]]()
    for entry in _files(folder):
        try:
            state = entry.stat()
        except FileNotFoundError:  # another process makes room, too
            continue
        if entry.name.startswith(".") and now - state.st_mtime > _DAY:
            _remove(entry.path)  # left by a process that was killed
        else:
            used += state.st_size
            entries.append((state.st_mtime, state.st_size, entry.path))
    for last, size, path in sorted(entries):
        if used > most or (used > _FULL * most and now - last > _IDLE):
            _remove(path)
            used -= size
    return used


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as parts:
        for part in parts:
            if part.is_dir(follow_symlinks=False):
                with os.scandir(part) as files:
                    yield from (file for file in files if file.is_file(follow_symlinks=False))


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):  # another process may be faster
        os.unlink(path)  # noqa: PTH108 - what `scandir` returns


def _opened(data: bytes) -> Tensor | None:
    """Return the image in an entry; None if it is not one that `put` wrote."""
    try:
        parts = safetensors.torch.load(data)
        image = parts[_IMAGE]
        return image if int(parts[_CHECKSUM]) == _checksum(image) else None
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError):
        return None


def _checksum(image: Tensor) -> int:
    """Return a checksum of an image's type, shape and values."""
    return crc32(image.view(torch.uint8).numpy().data, crc32(f"{image.dtype} {tuple(image.shape)}".encode()))
