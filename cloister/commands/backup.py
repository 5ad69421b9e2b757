"""`cloister backup` and `cloister restore`: a site in one file, and back, without forgetting what was spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cloister.commands import Json
from cloister.views.patience import patience
from privacy.errors import ConfigError

Backup = Annotated[Path, typer.Argument(help="The backup.")]


def backup(
    site: Annotated[Path, typer.Argument(help="site.toml, or its folder.")],
    file: Backup,
    as_json: Json = False,
) -> None:
    """Write what a site keeps into one file, encrypted if its folder is. Stop the agent first.

    The records are not in it, nor models/public.
    """
    from client.backup import back_up  # noqa: PLC0415
    from client.settings import read_site  # noqa: PLC0415
    from cloister.folders import check_has_ledger  # noqa: PLC0415

    check_has_ledger(site)
    place = read_site(site)
    with patience("copying"):
        header = back_up(place, file)
    if as_json:
        typer.echo(json.dumps({"backup": str(file), "site": header.site, "files": len(header.files),
                               "encrypted": bool(header.mac)}))  # fmt: skip
        return
    typer.echo(f"✓ {file}: {len(header.files)} files of {header.site}, {'' if header.mac else 'not '}encrypted")
    if not header.mac:
        typer.echo("! it has the site's private keys: store it where nobody else can read it")


def restore(
    file: Backup,
    site: Annotated[Path, typer.Argument(help="The site's folder, or a new one.")],
    charge_missing: Annotated[
        bool, typer.Option("--charge-missing", help="Restore an older ledger, and charge what it lacks.")
    ] = False,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --charge-missing: a signed run that may have charged the site since; name all of them."
        ),
    ] = None,
    settings: Annotated[
        list[Path] | None,
        typer.Option(help="With --run: a site.toml that stood at some time since; name all of them, and the last."),
    ] = None,
    spent: Annotated[
        bool, typer.Option("--spent", help="With --charge-missing: one of them is unknown; the whole budget is spent.")
    ] = False,
    heads: Annotated[Path | None, typer.Option(help="With --charge-missing: the server's ledger-heads.json.")] = None,
    as_json: Json = False,
) -> None:
    """Restore a site from a backup. Stop the agent first.

    A ledger in the folder that continues the backup's stays. If entries would be lost, nothing is restored.
    """
    from client.restoring import restore as restore_backup  # noqa: PLC0415
    from cloister.folders import check_has_ledger  # noqa: PLC0415
    from cloister.recovery import Since, charging  # noqa: PLC0415

    if (run and spent) or (not charge_missing and (run or settings or spent or heads)):
        msg = "give --charge-missing with --run and --settings, or with --spent; see cloister restore --help"
        raise ConfigError(msg)
    check_has_ledger(site)
    charge = None
    if charge_missing:
        present = site / "site.toml"
        since = Since(heads, None if spent else run or (), settings or ())
        charge = charging(since, present if present.exists() else None)
    with patience("restoring"):
        restored = restore_backup(file, site, charge)
    header = restored.header
    if as_json:
        typer.echo(json.dumps({"site": header.site, "time": header.time, "files": len(header.files),
                               "kept": list(restored.kept)}))  # fmt: skip
        return
    when = f"{header.time[:16].replace('T', ' ')} UTC"
    typer.echo(f"✓ {site}: {len(header.files) - len(restored.kept)} files of {header.site}, as of {when}")
    for name in restored.kept:
        typer.echo(f"✓ {name}: the folder's own continues the backup's, and stays")
    if charge_missing:
        typer.echo(f"✓ what the ledger lacks is charged: cloister ledger show {site}")
    typer.echo(f"next: put the records back if they are lost too, then: cloister check {site}")
