"""`cloister protect` and `cloister export`: encrypt what a site keeps on its disk, and take something out of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.commands import Json
from cloister.views.patience import patience
from cloister.views.terminal import ask_secretly
from privacy.errors import ConfigError, KeyFileError
from privacy.failures import reason

if TYPE_CHECKING:
    from client.person import PersonFolder
    from client.settings import SiteFolder
    from privacy.at_rest.vault import Secret

Site = Annotated[Path, typer.Argument(help="site.toml, or its folder.")]
Place = Annotated[Path, typer.Argument(metavar="SITE", help="site.toml or person.toml, or its folder.")]

_NEW = "CLOISTER_NEW_PASSPHRASE"


def protect(
    site: Place,
    key_file: Annotated[
        Path | None, typer.Option(help="Open it with this file instead of a passphrase; it is made if missing.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Decrypt the folder again.")] = False,
    as_json: Json = False,
) -> None:
    """Encrypt what a site or a person keeps on their disk, change the passphrase, or decrypt it again.

    Stop the agent first. If it is interrupted, run it again.
    """
    from client import protection  # noqa: PLC0415
    from client.person import is_person, read_person  # noqa: PLC0415
    from client.settings import read_site  # noqa: PLC0415
    from privacy.at_rest.vaults import is_protected  # noqa: PLC0415

    place = read_person(site) if is_person(site) else read_site(site)
    before = is_protected(place.folder)
    if off:
        if not before or key_file:
            msg = f"{place.folder} is not encrypted" if not before else "give --off or --key-file, not both"
            raise ConfigError(msg + "; see cloister protect --help")
        with patience("decrypting"):
            count = protection.unprotect(place)
        _tell(place, count, encrypted=False, changed=False, as_json=as_json)
        return
    if before:
        from privacy.at_rest.vaults import opened  # noqa: PLC0415

        opened(place.folder)  # asks for the present passphrase before the new one
    secret = _new_key_file(place, key_file) if key_file else _new_passphrase(place, before=before)
    with patience("encrypting"):
        count = protection.protect(place, secret)
    for path in protection.outside(place):
        typer.echo(f"! {path} lies outside the folder and stays as it is", err=True)
    _tell(place, count, encrypted=True, changed=before and secret is not None, as_json=as_json)


def export(
    site: Site,
    file: Annotated[Path, typer.Argument(help="A file of the site, relative to its folder.")],
    out: Annotated[Path, typer.Argument(help="Where to write it, in the clear.")],
    as_json: Json = False,
) -> None:
    """Write one of a site's encrypted files in the clear, for example a model for other software."""
    from client.settings import read_site  # noqa: PLC0415
    from privacy.at_rest.held import is_log  # noqa: PLC0415
    from privacy.log_file import read_log  # noqa: PLC0415
    from privacy.storage import read_file, write_atomically  # noqa: PLC0415

    place = read_site(site)
    path = place.path(file)
    try:
        data = read_log(path) if is_log(file.as_posix()) else read_file(path)
    except OSError as error:
        msg = f"{path}: {reason(error)}; name a file in the site's folder, such as models/NAME-RUN.safetensors"
        raise KeyFileError(msg) from error
    write_atomically(out, data)
    typer.echo(json.dumps({"file": str(out), "bytes": len(data)}) if as_json else f"✓ {out}: {len(data):,} bytes")


def _new_passphrase(place: SiteFolder | PersonFolder, *, before: bool) -> Secret | None:
    """Return a new passphrase: from the environment, or typed twice; None to keep the present one.

    Raises:
        ConfigError: if there is none, it is too short, or it was typed differently.
    """
    from privacy.at_rest.secrets import given_passphrase  # noqa: PLC0415
    from privacy.at_rest.vault import SHORTEST, Secret  # noqa: PLC0415

    secret = Secret.of_passphrase(os.environ[_NEW]) if os.environ.get(_NEW) else None
    if secret is None and not before:
        secret = given_passphrase()
    if secret is None:
        keep = ", or nothing to keep the present one" if before else ""
        text = ask_secretly(f"new passphrase for {place.folder}{keep}: ")
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


def _new_key_file(place: SiteFolder | PersonFolder, path: Path) -> Secret:
    """Read a key file; make it first if it is missing.

    Raises:
        ConfigError: if it is in the site's folder.
    """
    from privacy.at_rest.secrets import read_key_file  # noqa: PLC0415
    from privacy.storage import write_atomically  # noqa: PLC0415

    if path.resolve().is_relative_to(place.folder.resolve()):
        msg = f"{path} is in the folder that it would open; choose another place, on another disk"
        raise ConfigError(msg)
    if not path.exists():
        write_atomically(path, os.urandom(32))
    return read_key_file(path)


def _tell(place: SiteFolder | PersonFolder, count: int, *, encrypted: bool, changed: bool, as_json: bool) -> None:
    if as_json:
        report = {"folder": str(place.folder), "encrypted": encrypted, "files": count, "changed_secret": changed}
        typer.echo(json.dumps(report))
        return
    typer.echo(f"✓ {place.folder}: {count} files {'encrypted' if encrypted else 'decrypted'}")
    if changed:
        typer.echo("✓ it opens with the new secret only; a copy of the folder made before opens with the old one")
    if encrypted:
        typer.echo("next: keep the passphrase or key file in two places: without it, the folder is lost")
