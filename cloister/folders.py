"""Which kind of folder somebody names: a site's, a person's, a server's or a coordinator's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.config import settings_file
from privacy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.at_rest.kept import KeptFolder

_SERVER, _COORDINATOR = "consortium.toml", "coordinator.toml"


def read_folder(path: Path) -> KeptFolder:
    """Return a folder that can be encrypted, given its settings file or the folder that holds it.

    Raises:
        ConfigError: if it has no usable settings.
    """
    from client.person import is_person, read_person  # noqa: PLC0415 - only what this kind of folder needs
    from client.protection import kept, kept_person  # noqa: PLC0415
    from client.settings import read_site  # noqa: PLC0415
    from server.protection import kept_coordinator, kept_server  # noqa: PLC0415
    from server.settings import read_consortium  # noqa: PLC0415

    if _is(path, _SERVER):
        return kept_server(read_consortium(path))
    if _is(path, _COORDINATOR):
        return kept_coordinator(settings_file(path, _COORDINATOR).parent)
    if is_person(path):
        return kept_person(read_person(path))
    return kept(read_site(path))


def check_has_ledger(path: Path) -> None:
    """Check that a folder may be a site's.

    Raises:
        ConfigError: if it is a server's or a coordinator's; says how those are backed up.
    """
    for name, whose in ((_SERVER, "a server's"), (_COORDINATOR, "a coordinator's")):
        if _is(path, name):
            msg = (
                f"{path} is {whose} folder and has no ledger to guard: stop what uses it and copy the folder as it is, "
                "with vault.json; what is encrypted stays so"
            )
            raise ConfigError(msg)


def _is(path: Path, name: str) -> bool:
    return path.name == name or (path / name).is_file()
