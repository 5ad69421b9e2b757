"""`cloister init`, `invite`, `join` and `roster`: a consortium whose sites make their own keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.commands import Json
from privacy.errors import ConfigError, KeyFileError
from privacy.failures import reason
from privacy.storage import read_file, write_atomically

if TYPE_CHECKING:
    from privacy.run.enrolment import Invitation
    from privacy.run.roster import Roster

Folder = Annotated[Path, typer.Option(help="The consortium's folder, with coordinator/ and server/ in it.")]
SiteFolder = Annotated[Path | None, typer.Option(help="The site's folder; by default, one of the site's name.")]

roster = typer.Typer(help="Who belongs to a consortium: approve, remove, renew.", no_args_is_help=True)


def init(
    name: Annotated[str, typer.Argument(help="The consortium's name.")],
    host: Annotated[str, typer.Option(help="The name or address that agents dial.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port that agents dial.")] = 9440,
    folder: Folder = Path(),
    as_json: Json = False,
) -> None:
    """Found a consortium: make its authority, the coordinator's signing key and the server's certificate."""
    from server.coordinator import create_consortium  # noqa: PLC0415
    from transport.pki import authority_fingerprint, read_certificate  # noqa: PLC0415

    coordinator = create_consortium(folder, name, host, port)
    fingerprint = authority_fingerprint(read_certificate(coordinator.folder / "authority.pem"))
    if as_json:
        typer.echo(json.dumps({"consortium": name, "server": coordinator.settings.server, "authority": fingerprint}))
        return
    typer.echo(f"✓ {folder / 'coordinator'}: the authority's key and the coordinator's; keep it off every server")
    typer.echo(f"✓ {folder / 'server'}: what the server at {coordinator.settings.server} needs")
    typer.echo(f"  authority {fingerprint}")
    typer.echo("next: cloister invite SITE")


def invite(
    site: Annotated[str, typer.Argument(help="The site's name: a to z, digits, hyphens.")],
    folder: Folder = Path(),
    hours: Annotated[float, typer.Option(min=0.01, max=24 * 30, help="How long the invitation is valid.")] = 24.0,
    out: Annotated[Path | None, typer.Option(help="The file to write; by default SITE.invitation.")] = None,
    as_json: Json = False,
) -> None:
    """Invite a site. Hand it the file over a channel that you both trust: it works once, and is secret until then."""
    from server.coordinator import Coordinator  # noqa: PLC0415

    invitation = Coordinator(folder / "coordinator").invite(site, hours)
    path = out or Path(f"{site}.invitation")
    write_atomically(path, f"{invitation.to_text()}\n".encode())
    if as_json:
        typer.echo(json.dumps({"site": site, "invitation": str(path), "expires": invitation.expires}))
        return
    typer.echo(f"✓ {path}: valid until {_date(invitation.expires)}; its fingerprint, to compare by telephone:")
    typer.echo(f"  authority {_fingerprint(invitation)}")
    typer.echo(f"next, at the site: cloister join {path.name}")


def join(
    document: Annotated[Path, typer.Argument(help="The invitation; later, the welcome that answers the request.")],
    folder: SiteFolder = None,
    as_json: Json = False,
) -> None:
    """Join a consortium: make this site's keys here, ask to become a member, and take in the answer.

    The private keys never leave this site.
    """
    from client import joining  # noqa: PLC0415
    from privacy.run.enrolment import read_invitation  # noqa: PLC0415

    data = _read(document)
    if data.startswith(b"cloister-signed-1 "):
        _finish(document, data, folder, as_json=as_json)
        return
    invitation = read_invitation(data.decode("utf-8", "replace"))
    place = folder or Path(invitation.site)
    request = place / f"{invitation.site}.request"
    write_atomically(request, joining.begin(place, invitation))
    settings = place / "site.toml"
    if not settings.exists():
        write_atomically(settings, joining.settings_text(invitation).encode())
    if as_json:
        typer.echo(json.dumps({"site": invitation.site, "request": str(request), "settings": str(settings)}))
        return
    typer.echo(f"✓ {place / 'keys'}: this site's keys, made here; they never leave it")
    typer.echo(f"  authority {_fingerprint(invitation)}; compare it with the coordinator's by telephone")
    typer.echo(f"✓ {settings}: fill in [data] and [policy]")
    typer.echo(f"next: send {request} to the coordinator, who runs: cloister roster approve {request.name}")
    typer.echo(f"then: cloister join {invitation.site}.welcome")


def _finish(document: Path, data: bytes, folder: Path | None, *, as_json: bool) -> None:
    from client import joining  # noqa: PLC0415

    place = folder or Path(document.name.removesuffix(".welcome"))
    if not (place / "keys").is_dir():
        msg = f"{place} has no keys; join with the invitation first, or name the site's folder with --folder"
        raise ConfigError(msg)
    welcome = joining.finish(place, data)
    if as_json:
        typer.echo(json.dumps({"site": welcome.site, "folder": str(place)}))
        return
    typer.echo(f"✓ {welcome.site} is a member")
    typer.echo(f"next: fill in {place / 'site.toml'}, then: cloister agent {place}")


@roster.command("show", epilog="Example:  cloister roster show --json")
def show(folder: Folder = Path(), as_json: Json = False) -> None:
    """Show the members of a consortium, and until when the roster is valid."""
    from rich.table import Table  # noqa: PLC0415

    from cloister.views.run import make_console  # noqa: PLC0415
    from server.coordinator import Coordinator  # noqa: PLC0415

    coordinator = Coordinator(folder / "coordinator")
    current = coordinator.roster()
    if as_json:
        typer.echo(json.dumps(_report(current) if current else {"version": 0, "members": []}))
        return
    if current is None:
        typer.echo(f"{coordinator.settings.consortium} has no members yet; invite one: cloister invite SITE")
        return
    table = Table("site", "signing key", "TLS key")
    for member in current.members:
        table.add_row(member.site, f"{member.signing_key[:16]}…", f"{member.tls_key[:16]}…")
    console = make_console(json=False)
    console.print(f"{current.consortium}, roster {current.version}, valid until {_date(current.expires)}")
    console.print(table)


@roster.command("approve", epilog="Example:  cloister roster approve north.request south.request")
def approve(
    requests: Annotated[list[Path], typer.Argument(help="Files that `cloister join` wrote at the sites.")],
    folder: Folder = Path(),
    as_json: Json = False,
) -> None:
    """Make sites members: certify their keys, and write a new roster and each site's welcome."""
    from server.coordinator import Coordinator  # noqa: PLC0415

    coordinator = Coordinator(folder / "coordinator")
    current, approvals = coordinator.approve([_read(path) for path in requests])
    for approval in approvals:
        write_atomically(Path(f"{approval.site}.welcome"), approval.welcome)
    if as_json:
        typer.echo(json.dumps({"version": current.version, "sites": [approval.site for approval in approvals]}))
        return
    for approval in approvals:
        typer.echo(f"✓ {approval.site} is a member; send it {approval.site}.welcome")
    _tell(coordinator.roster_path, current)


@roster.command("remove", epilog="Example:  cloister roster remove north")
def remove(
    site: Annotated[str, typer.Argument(help="The site that leaves.")],
    folder: Folder = Path(),
    as_json: Json = False,
) -> None:
    """End a site's membership. The others make new keys before the next run, and the server refuses the site."""
    from server.coordinator import Coordinator  # noqa: PLC0415

    coordinator = Coordinator(folder / "coordinator")
    _changed(coordinator.roster_path, coordinator.remove(site), f"{site} is no longer a member", as_json=as_json)


@roster.command("renew", epilog="Example:  cloister roster renew")
def renew(folder: Folder = Path(), as_json: Json = False) -> None:
    """Sign the same members, and the server's certificate, for another 90 days."""
    from server.coordinator import Coordinator  # noqa: PLC0415

    coordinator = Coordinator(folder / "coordinator")
    current = coordinator.renew()
    _changed(coordinator.roster_path, current, f"valid until {_date(current.expires)}", as_json=as_json)


@roster.command("take", epilog="Example:  cloister roster take roster --site north")
def take(
    document: Annotated[Path, typer.Argument(help="The roster that the coordinator sent.")],
    site: Annotated[Path, typer.Option(help="site.toml, or its folder.")],
    as_json: Json = False,
) -> None:
    """Take in a newer roster at a site. Restart its agent afterwards."""
    from client.joining import take_roster  # noqa: PLC0415
    from client.settings import read_site  # noqa: PLC0415

    place = read_site(site)
    current = take_roster(place.folder, place.settings.keys, place.settings.site, _read(document))
    if as_json:
        typer.echo(json.dumps(_report(current)))
    else:
        typer.echo(f"✓ {place.settings.site} has roster {current.version}, of {len(current.members)} sites")
        typer.echo(f"next: restart its agent: cloister agent {site}")


def _changed(path: Path, current: Roster, message: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_report(current)))
        return
    typer.echo(f"✓ {message}")
    _tell(path, current)


def _tell(path: Path, current: Roster) -> None:
    typer.echo(f"✓ {path}: roster {current.version} of {len(current.members)} sites")
    typer.echo("next: send it to every member (cloister roster take), restart server and agents, and sign runs anew")


def _report(current: Roster) -> dict[str, Any]:
    return {
        "consortium": current.consortium,
        "version": current.version,
        "expires": current.expires,
        "members": [member.site for member in current.members],
    }


def _read(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        msg = f"{path}: {reason(error)}; name the file that you received"
        raise KeyFileError(msg) from error


def _fingerprint(invitation: Invitation) -> str:
    from transport.pki import authority_fingerprint, load_certificate  # noqa: PLC0415

    return authority_fingerprint(load_certificate(invitation.authority.encode(), "the authority's certificate"))


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
