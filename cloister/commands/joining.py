"""`cloister init`, `invite` and `join`: a consortium whose sites make their own keys."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.commands import Json
from privacy.errors import ConfigError, KeyFileError
from privacy.failures import reason
from privacy.storage import read_file, write_atomically

if TYPE_CHECKING:
    from client.joining import Way
    from privacy.run.invitation import Invitation

Folder = Annotated[Path, typer.Option(help="The consortium's folder, with coordinator/ and server/ in it.")]
SiteFolder = Annotated[Path | None, typer.Option(help="The site's folder; by default, one of the site's name.")]

_AGAIN_SECONDS = 5.0  # between two questions whether the coordinator has approved


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
    folder: Folder = Path(),
    as_json: Json = False,
) -> None:
    """Found a consortium: make its authority, the coordinator's signing key and the server's certificate."""
    from server.founding import create_consortium  # noqa: PLC0415
    from transport.pki import authority_fingerprint, read_certificate  # noqa: PLC0415

    if joining_port == port:
        msg = f"port {port} is for agents; choose another --joining-port"
        raise ConfigError(msg)
    coordinator = create_consortium(folder, name, host, port, joining_port=joining_port, online=online)
    fingerprint = authority_fingerprint(read_certificate(coordinator.folder / "authority.pem"))
    if as_json:
        typer.echo(json.dumps({"consortium": name, "server": coordinator.settings.server, "authority": fingerprint}))
        return
    where = "the server approves sites with them" if online else "keep it off every server"
    typer.echo(f"✓ {folder / 'coordinator'}: the authority's key and the coordinator's; {where}")
    typer.echo(f"✓ {folder / 'server'}: what the server at {coordinator.settings.server} needs")
    typer.echo(f"  authority {fingerprint}")
    typer.echo(f"next: cloister server {folder / 'server'}, and cloister invite SITE")


def invite(
    site: Annotated[str, typer.Argument(help="The site's name: a to z, digits, hyphens.")],
    folder: Folder = Path(),
    hours: Annotated[float, typer.Option(min=0.01, max=24 * 30, help="How long the invitation is valid.")] = 24.0,
    out: Annotated[Path | None, typer.Option(help="The file to write; by default SITE.invitation.")] = None,
    as_json: Json = False,
) -> None:
    """Invite a site. Hand it the token over a channel that you both trust: it works once, and is secret until then."""
    from server.coordinator import Coordinator  # noqa: PLC0415

    invitation = Coordinator(folder / "coordinator").invite(site, hours)
    path = out or Path(f"{site}.invitation")
    write_atomically(path, f"{invitation.to_text()}\n".encode())
    if as_json:
        typer.echo(json.dumps({"site": site, "invitation": str(path), "expires": invitation.expires}))
        return
    typer.echo(f"✓ {path}: valid until {date(invitation.expires)}; its fingerprint, to compare by telephone:")
    typer.echo(f"  authority {_fingerprint(invitation)}")
    typer.echo(f"next, at the site: cloister join {path.name}    (the file, or the token in it)")


def join(
    document: Annotated[
        str, typer.Argument(help="The invitation, as a file or its text; or the welcome that answers a request.")
    ],
    folder: SiteFolder = None,
    files: Annotated[bool, typer.Option("--files", help="Ask with a file instead of asking the server.")] = False,
    wait: Annotated[
        float, typer.Option(min=0.0, max=24 * 60, help="Minutes to wait for the coordinator's approval.")
    ] = 0.0,
    proxy: Annotated[
        str | None,
        typer.Option(
            help="The HTTP proxy to the server, host:port, or none; by default as https_proxy and no_proxy say. "
            "Its user and password: CLOISTER_PROXY_USER and CLOISTER_PROXY_PASSWORD."
        ),
    ] = None,
    authentication: Annotated[
        str, typer.Option(help="How this site shows who it is: tls, or signature where TLS is ended on the way.")
    ] = "tls",
    server: Annotated[
        str | None, typer.Option(help="Where to reach the server, host:port, if not as the invitation says.")
    ] = None,
    ca_bundle: Annotated[
        Path | None,
        typer.Option(
            help="With signature: a PEM file of who issues the certificate of what ends TLS; by default the system's."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Join a consortium: make this site's keys here, ask to become a member, and take in the answer.

    The private keys never leave this site. Interrupted or not approved yet: run the same command again.
    """
    from client import joining  # noqa: PLC0415
    from privacy.run.enrolment import is_welcome  # noqa: PLC0415
    from privacy.run.invitation import is_invitation, read_invitation  # noqa: PLC0415

    data = document.encode() if is_invitation(document) else read(Path(document))
    if is_welcome(data):
        _finish(folder or Path(Path(document).name.removesuffix(".welcome")), data, as_json=as_json)
        return
    invitation = _dialling(read_invitation(data.decode("utf-8", "replace")), server)
    way = _way(proxy, authentication, ca_bundle)
    place = folder or Path(invitation.site)
    if known := joining.membership(place, invitation):
        _say_member(place, invitation.site, known.version, as_json=as_json, again=True)
    elif files or not (invitation.joining_port or way.signature):
        _ask_with_file(place, invitation, way, as_json=as_json)
    else:
        _ask(place, invitation, wait, way, as_json=as_json)


def _dialling(invitation: Invitation, server: str | None) -> Invitation:
    from transport.address import read_address  # noqa: PLC0415

    return replace(invitation, server=str(read_address(server))) if server else invitation


def _way(proxy: str | None, authentication: str, ca_bundle: Path | None) -> Way:
    from client.joining import Way  # noqa: PLC0415
    from transport.proxies import check_setting  # noqa: PLC0415

    if authentication not in {"tls", "signature"} or (ca_bundle and authentication == "tls"):
        msg = "--authentication is tls or signature, and --ca-bundle is for signature only"
        raise ConfigError(msg)
    try:
        return Way(None if proxy is None else check_setting(proxy), authentication == "signature", ca_bundle)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _ask(place: Path, invitation: Invitation, minutes: float, way: Way, *, as_json: bool) -> None:
    from client.joining import ask  # noqa: PLC0415

    until = time.monotonic() + 60 * minutes
    while (version := ask(place, invitation, way)) is None and time.monotonic() < until:
        time.sleep(min(_AGAIN_SECONDS, max(0.0, until - time.monotonic())))
    if version is None:
        _say_kept(place, invitation, as_json=as_json)
    else:
        if not as_json:
            _say_keys(place, invitation)
        _say_member(place, invitation.site, version, as_json=as_json)


def _ask_with_file(place: Path, invitation: Invitation, way: Way, *, as_json: bool) -> None:
    from client import joining  # noqa: PLC0415

    request, data = place / f"{invitation.site}.request", joining.prepare(place, invitation, way)
    write_atomically(request, data)
    if as_json:
        typer.echo(json.dumps({"site": invitation.site, "member": False, "request": str(request),
                               "settings": str(place / "site.toml")}))  # fmt: skip
        return
    _say_keys(place, invitation)
    typer.echo(f"next: send {request} to the coordinator, who runs: cloister roster approve {request.name}")
    typer.echo(f"then: cloister join {invitation.site}.welcome")


def _say_keys(place: Path, invitation: Invitation) -> None:
    typer.echo(f"✓ {place / 'keys'}: this site's keys, made here; they never leave it")
    typer.echo(f"  authority {_fingerprint(invitation)}; compare it with the coordinator's by telephone")
    typer.echo(f"✓ {place / 'site.toml'}: fill in [data] and [policy]")


def _say_kept(place: Path, invitation: Invitation, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"site": invitation.site, "member": False, "folder": str(place)}))
        return
    _say_keys(place, invitation)
    typer.echo("✓ the server keeps the request until the coordinator runs: cloister roster approve")
    typer.echo("then: the same command again, or with --wait MINUTES")


def _finish(place: Path, data: bytes, *, as_json: bool) -> None:
    from client import joining  # noqa: PLC0415

    if not (place / "keys").is_dir():
        msg = f"{place} has no keys; join with the invitation first, or name the site's folder with --folder"
        raise ConfigError(msg)
    site, version = joining.finish(place, data)
    _say_member(place, site, version, as_json=as_json)


def _say_member(place: Path, site: str, version: int, *, as_json: bool, again: bool = False) -> None:
    if as_json:
        typer.echo(json.dumps({"site": site, "member": True, "folder": str(place), "roster": version}))
        return
    typer.echo(f"✓ {site} is a member{' already; nothing was changed' if again else ''}, in roster {version}")
    typer.echo(f"next, once {place / 'site.toml'} is filled in: cloister agent {place}")


def read(path: Path) -> bytes:
    """Return the content of a document that somebody sent.

    Raises:
        KeyFileError: if it cannot be read.
    """
    try:
        return read_file(path)
    except OSError as error:
        msg = f"{path}: {reason(error)}; name the file that you received"
        raise KeyFileError(msg) from error


def _fingerprint(invitation: Invitation) -> str:
    from transport.pki import grouped  # noqa: PLC0415

    return grouped(invitation.authority)


def date(seconds: float) -> str:
    """Return a time for people."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
