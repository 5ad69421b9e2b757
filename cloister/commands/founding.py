"""`cloister init`: found a consortium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cloister.commands import Json
from cloister.commands.joining import Folder, KeyFile, Protect
from privacy.errors import ConfigError
from transport.address import Address, read_host
from transport.api import PORT as API_PORT


def init(
    name: Annotated[str, typer.Argument(help="The consortium's name.")],
    host: Annotated[str, typer.Option(help="The name or address that agents dial.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port that agents dial.")] = 9440,
    joining_port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port at which sites ask to join; 0: they join with files only.")
    ] = 9441,
    online: Annotated[
        bool,
        typer.Option("--online", help="Keep coordinator/ on the server's machine, so that sites join at once."),
    ] = False,
    api: Annotated[
        bool,
        typer.Option("--api", help=f"Let people sign in, submit runs and follow them, at port {API_PORT}."),
    ] = False,
    person: Annotated[
        str, typer.Option(help="Your name in the roster, as its first coordinator: a to z, digits, hyphens.")
    ] = "founder",
    folder: Folder = Path(),
    protect: Protect = False,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Found a consortium: make its authority, the coordinator's signing key and the server's certificate."""
    from cloister.new_secrets import for_new_folders  # noqa: PLC0415
    from server.founding import create_consortium  # noqa: PLC0415
    from transport.pki import authority_fingerprint, read_certificate  # noqa: PLC0415

    if joining_port == port:
        msg = f"port {port} is for agents; choose another --joining-port"
        raise ConfigError(msg)
    if api and API_PORT in {port, joining_port}:
        msg = (
            f"port {API_PORT} is for people (--api); choose another --{'port' if port == API_PORT else 'joining-port'}"
        )
        raise ConfigError(msg)
    with for_new_folders((folder / "coordinator", folder / "server"), key_file, protect=protect) as secret:
        coordinator = create_consortium(
            folder, name, host, port, joining_port=joining_port, online=online, person=person, secret=secret, api=api
        )
    people = str(Address(read_host(host), API_PORT)) if api else None
    fingerprint = authority_fingerprint(read_certificate(coordinator.folder / "authority.pem"))
    if as_json:
        report = {"consortium": name, "server": coordinator.settings.server, "authority": fingerprint}
        typer.echo(json.dumps({**report, "coordinator": person, "api": people}))
        return
    where = "the server approves sites with them" if online else "keep it off every server"
    typer.echo(f"✓ {folder / 'coordinator'}: the authority's key, and that of {person}, the first coordinator; {where}")
    typer.echo(f"✓ {folder / 'server'}: what the server at {coordinator.settings.server} needs")
    if people:
        typer.echo(f"  people sign in at {people}, once the server runs and they have joined: cloister login")
    typer.echo(f"  authority {fingerprint}")
    typer.echo(f"next: cloister server {folder / 'server'}, and cloister invite SITE")
