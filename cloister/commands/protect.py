"""`cloister protect` and `cloister export`: encrypt what a folder keeps on its disk, and take something out of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from cloister.commands import Json
from cloister.views.patience import patience
from privacy.errors import ConfigError, KeyFileError
from privacy.failures import reason

Place = Annotated[
    Path, typer.Argument(help="The folder of a site, a person, the server or the coordinator; or the settings in it.")
]


def protect(
    folder: Place,
    key_file: Annotated[
        Path | None, typer.Option(help="Open it with this file instead of a passphrase; it is made if missing.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Decrypt the folder again.")] = False,
    as_json: Json = False,
) -> None:
    """Encrypt what a site, a person, the server or the coordinator keeps, change the passphrase, or decrypt it again.

    Stop the agent or the server first. If it is interrupted, run it again.
    """
    from cloister.folders import read_folder  # noqa: PLC0415
    from cloister.new_secrets import new_key_file, new_passphrase  # noqa: PLC0415
    from privacy.at_rest.vaults import is_protected, opened  # noqa: PLC0415

    place = read_folder(folder)
    before = is_protected(place.folder)
    if off:
        if not before or key_file:
            msg = f"{place.folder} is not encrypted" if not before else "give --off or --key-file, not both"
            raise ConfigError(msg + "; see cloister protect --help")
        with patience("decrypting"):
            count = place.unprotect()
        _tell(place.folder, count, encrypted=False, changed=False, as_json=as_json)
        return
    if before:
        opened(place.folder)  # asks for the present passphrase before the new one
    secret = new_key_file((place.folder,), key_file) if key_file else new_passphrase(str(place.folder), before=before)
    with patience("encrypting"):
        count = place.protect(secret)
    for path in place.outside:
        typer.echo(f"! {path} lies outside the folder and stays as it is", err=True)
    _tell(place.folder, count, encrypted=True, changed=before and secret is not None, as_json=as_json)


def export(
    folder: Place,
    file: Annotated[Path, typer.Argument(help="A file of the folder, relative to it, or as a path of its own.")],
    out: Annotated[Path, typer.Argument(help="Where to write it, in the clear.")],
    as_json: Json = False,
) -> None:
    """Write one of a folder's encrypted files in the clear, for example a model for other software."""
    from cloister.folders import read_folder  # noqa: PLC0415
    from privacy.at_rest.held import is_log  # noqa: PLC0415
    from privacy.log_file import read_log  # noqa: PLC0415
    from privacy.storage import read_file, write_atomically  # noqa: PLC0415

    place = read_folder(folder).folder
    relative = _within(place, file)
    path = place / relative
    try:
        data = read_log(path) if is_log(relative.as_posix()) else read_file(path)
    except OSError as error:
        msg = f"{path}: {reason(error)}; name a file in the folder, such as models/NAME-RUN.safetensors"
        raise KeyFileError(msg) from error
    write_atomically(out, data)
    typer.echo(json.dumps({"file": str(out), "bytes": len(data)}) if as_json else f"✓ {out}: {len(data):,} bytes")


def _within(folder: Path, file: Path) -> Path:
    """Return a file's path relative to a folder, through which links it may be named.

    Raises:
        KeyFileError: if it is not in the folder.
    """
    named = Path(os.path.abspath(folder / file))  # noqa: PTH100 - resolve() follows links
    for path in (folder / file, Path.cwd() / file):
        real = path.parent.resolve() / path.name
        for place, base in ((Path(os.path.abspath(path)), folder), (real, folder.resolve())):  # noqa: PTH100
            if place.is_relative_to(base) and os.path.lexists(place):
                return place.relative_to(base)
    if named.is_relative_to(folder):
        return named.relative_to(folder)
    msg = f"{file} is not in {folder}; name a file in the folder, such as models/NAME-RUN.safetensors"
    raise KeyFileError(msg)


def _tell(folder: Path, count: int, *, encrypted: bool, changed: bool, as_json: bool) -> None:
    if as_json:
        report = {"folder": str(folder), "encrypted": encrypted, "files": count, "changed_secret": changed}
        typer.echo(json.dumps(report))
        return
    if count or not changed:
        typer.echo(f"✓ {folder}: {count} files {'encrypted' if encrypted else 'decrypted'}")
    if changed:
        typer.echo(
            f"✓ {folder} opens with the new secret only; a copy of the folder made before opens with the old one"
        )
    if encrypted:
        typer.echo("next: keep the passphrase or key file in two places: without it, the folder is lost")
