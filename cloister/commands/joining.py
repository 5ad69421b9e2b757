"""`cloister invite`, `join` and `person join`: a consortium whose sites and people make their own keys."""

from __future__ import annotations

import json
import sys
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
    from privacy.at_rest.vault import Secret
    from privacy.run.invitation import Invitation
    from privacy.run.people import Role

Folder = Annotated[Path, typer.Option(help="The consortium's folder, with coordinator/ and server/ in it.")]
Protect = Annotated[
    bool, typer.Option("--protect", help="Encrypt what is made here, from the first key on, with a new passphrase.")
]
KeyFile = Annotated[
    Path | None, typer.Option(help="Encrypt it with this file instead of a passphrase; it is made if missing.")
]

_LARGEST = 64 << 20  # bytes of a document by standard input; a welcome holds a roster
_LONG = 200  # characters; no file's name, but a token

_AGAIN_SECONDS = 5.0  # between two questions whether the coordinator has approved


def invite(
    site: Annotated[
        str | None, typer.Argument(help="The site's name: a to z, digits, hyphens.", show_default=False)
    ] = None,
    person: Annotated[str | None, typer.Option(help="Invite a person instead, by name; needs --role.")] = None,
    role: Annotated[
        str | None, typer.Option(help="What the person is: coordinator, researcher, operator or auditor.")
    ] = None,
    withdraw: Annotated[
        str | None, typer.Option(help="Withdraw the unused invitations of this site or person instead.")
    ] = None,
    folder: Folder = Path(),
    hours: Annotated[float, typer.Option(min=0.01, max=24 * 30, help="How long the invitation is valid.")] = 24.0,
    out: Annotated[Path | None, typer.Option(help="The file to write; by default NAME.invitation.")] = None,
    as_json: Json = False,
) -> None:
    """Invite a site or a person. Hand them the file over a channel that you both trust: it works once, and is secret.

    An invitation that was not used yet can be withdrawn, which holds at once, also at a running server.
    """
    from server.coordinator import Coordinator  # noqa: PLC0415

    if [site, person, withdraw].count(None) != 2:  # noqa: PLR2004
        msg = "name one site to invite, one person with --person NAME --role ROLE, or one with --withdraw NAME"
        raise ConfigError(msg)
    coordinator = Coordinator(folder / "coordinator")
    if withdraw is not None:
        count = coordinator.withdraw(withdraw)
        if as_json:
            typer.echo(json.dumps({"name": withdraw, "withdrawn": count}))
            return
        typer.echo(f"✓ {withdraw} cannot join any more with {'its invitation' if count == 1 else 'its invitations'}")
        return
    if (person is None) != (role is None):
        msg = "a person is invited with --person NAME and --role ROLE, a site with neither"
        raise ConfigError(msg)
    name = person or site or ""
    invitation = coordinator.invite(name, hours, _role(role))
    path = out or Path(f"{name}.invitation")
    write_atomically(path, f"{invitation.to_text()}\n".encode())
    if as_json:
        whom = {"person": name, "role": role} if person else {"site": name}
        typer.echo(json.dumps({**whom, "invitation": str(path), "expires": invitation.expires}))
        return
    typer.echo(f"✓ {path}: valid until {date(invitation.expires)}; its fingerprint, to compare by telephone:")
    typer.echo(f"  authority {_fingerprint(invitation)}")
    typer.echo(f"next, {f'for {name}' if person else 'at the site'}: {_command(invitation)} {path.name}")


def _role(text: str | None) -> Role | None:
    from privacy.run.people import read_role  # noqa: PLC0415

    try:
        return None if text is None else read_role(text)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _command(invitation: Invitation) -> str:
    return "cloister person join" if invitation.role else "cloister join"


Document = Annotated[
    str,
    typer.Argument(
        help="The invitation, or the welcome that answers a request: its file, or - for standard input. The text of an "
        "invitation works too, but others on this machine see it in the list of processes."
    ),
]
Files = Annotated[bool, typer.Option("--files", help="Ask with a file instead of asking the server.")]
Wait = Annotated[float, typer.Option(min=0.0, max=24 * 60, help="Minutes to wait for the coordinator's approval.")]
Proxy = Annotated[
    str | None,
    typer.Option(
        help="The HTTP proxy to the server, host:port, or none; by default as https_proxy and no_proxy say. "
        "Its user and password: CLOISTER_PROXY_USER and CLOISTER_PROXY_PASSWORD."
    ),
]

Authentication = Annotated[
    str, typer.Option(help="How this site shows who it is: tls, or signature where TLS is ended on the way.")
]
Server = Annotated[
    str | None, typer.Option(help="Where to reach the server, host:port, if not as the invitation says.")
]
CaBundle = Annotated[
    Path | None,
    typer.Option(
        help="With signature: a PEM file of who issues the certificate of what ends TLS; by default the system's."
    ),
]


def join(
    document: Document,
    folder: Annotated[Path | None, typer.Option(help="The site's folder; by default, one of the site's name.")] = None,
    files: Files = False,
    wait: Wait = 0.0,
    proxy: Proxy = None,
    authentication: Authentication = "tls",
    server: Server = None,
    ca_bundle: CaBundle = None,
    protect: Protect = False,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Join a consortium: make this site's keys here, ask to become a member, and take in the answer.

    The private keys never leave this site. Interrupted or not approved yet: run the same command again.
    """
    way = way_to(proxy, authentication, ca_bundle)
    enter(document, folder, way, server, (protect, key_file), minutes=wait, files=files, as_json=as_json,
          person=False)  # fmt: skip


def enter(
    document: str,
    folder: Path | None,
    way: Way,
    server: str | None,
    encryption: tuple[bool, Path | None],
    *,
    minutes: float,
    files: bool,
    as_json: bool,
    person: bool,
) -> None:
    """Ask with an invitation, or take in a welcome: a site's, or a person's.

    Raises:
        CloisterError: if the document is neither, or somebody else's, or the server refuses.
    """
    from client import joining  # noqa: PLC0415
    from cloister.new_secrets import for_new_folders  # noqa: PLC0415
    from privacy.run.enrolment import is_welcome  # noqa: PLC0415
    from privacy.run.invitation import is_invitation, read_invitation  # noqa: PLC0415

    data = document.encode() if is_invitation(document) else _received(document)
    if is_welcome(data):
        _finish(folder or Path(Path(document).name.removesuffix(".welcome")), data, as_json=as_json, person=person)
        return
    invitation = _dialling(read_invitation(data.decode("utf-8", "replace")), server)
    if bool(invitation.role) != person:
        whom = f"a person, {invitation.name}" if invitation.role else f"the site {invitation.name}"
        msg = f"this invitation is for {whom}; use: {_command(invitation)} {document if len(document) < _LONG else '-'}"
        raise ConfigError(msg)
    place = folder or Path(invitation.name)
    if known := joining.membership(place, invitation):
        _say_member(place, invitation.name, known.version, as_json=as_json, person=person, again=True)
        return
    protect, key_file = encryption
    with for_new_folders((place,), key_file, protect=protect) as secret:
        if files or not (invitation.joining_port or way.signature):
            _ask_with_file(place, invitation, way, secret, as_json=as_json)
        else:
            _ask(place, invitation, minutes, way, secret, as_json=as_json)


def _dialling(invitation: Invitation, server: str | None) -> Invitation:
    from transport.address import read_address  # noqa: PLC0415

    return replace(invitation, server=str(read_address(server))) if server else invitation


def _received(document: str) -> bytes:
    """Return what a file holds, or what comes by standard input.

    Raises:
        ConfigError: if nothing comes.
        KeyFileError: if the file cannot be read.
    """
    if document != "-":
        return read(Path(document))
    data = sys.stdin.buffer.read(_LARGEST)
    if not data.strip():
        msg = "nothing came by standard input; give the invitation so: cloister join - < north.invitation"
        raise ConfigError(msg)
    return data


def way_to(proxy: str | None, authentication: str, ca_bundle: Path | None) -> Way:
    """Return the way to the server that the options name.

    Raises:
        ConfigError: if there is no such way.
    """
    from client.joining import Way  # noqa: PLC0415
    from transport.proxies import check_setting  # noqa: PLC0415

    if authentication not in {"tls", "signature"} or (ca_bundle and authentication == "tls"):
        msg = "--authentication is tls or signature, and --ca-bundle is for signature only"
        raise ConfigError(msg)
    try:
        return Way(None if proxy is None else check_setting(proxy), authentication == "signature", ca_bundle)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _ask(
    place: Path, invitation: Invitation, minutes: float, way: Way, secret: Secret | None, *, as_json: bool
) -> None:
    from client.joining import ask  # noqa: PLC0415

    until = time.monotonic() + 60 * minutes
    while (version := ask(place, invitation, way, secret)) is None and time.monotonic() < until:
        time.sleep(min(_AGAIN_SECONDS, max(0.0, until - time.monotonic())))
    if version is None:
        _say_kept(place, invitation, as_json=as_json)
    else:
        if not as_json:
            _say_keys(place, invitation)
        _say_member(place, invitation.name, version, as_json=as_json, person=bool(invitation.role))


def _ask_with_file(place: Path, invitation: Invitation, way: Way, secret: Secret | None, *, as_json: bool) -> None:
    from client import joining  # noqa: PLC0415

    request, data = place / f"{invitation.name}.request", joining.prepare(place, invitation, way, secret)
    write_atomically(request, data)
    if as_json:
        settings = {} if invitation.role else {"settings": str(place / "site.toml")}
        typer.echo(json.dumps({**_named(invitation.name, person=bool(invitation.role)), "member": False,
                               "request": str(request), **settings}))  # fmt: skip
        return
    _say_keys(place, invitation)
    typer.echo(f"next: send {request} to the coordinator, who runs: cloister roster approve {request.name}")
    typer.echo(f"then: {_command(invitation)} {invitation.name}.welcome")


def _named(name: str, *, person: bool) -> dict[str, str]:
    return {"person" if person else "site": name}


def _say_keys(place: Path, invitation: Invitation) -> None:
    whose = f"the key of {invitation.name}, {invitation.role}" if invitation.role else "this site's keys"
    typer.echo(
        f"✓ {place / 'keys'}: {whose}, made here; {'it never leaves' if invitation.role else 'they never leave'} it"
    )
    typer.echo(f"  authority {_fingerprint(invitation)}; compare it with the coordinator's by telephone")
    if not invitation.role:
        typer.echo(f"✓ {place / 'site.toml'}: fill in [data] and [policy]")


def _say_kept(place: Path, invitation: Invitation, *, as_json: bool) -> None:
    if as_json:
        named = _named(invitation.name, person=bool(invitation.role))
        typer.echo(json.dumps({**named, "member": False, "folder": str(place)}))
        return
    _say_keys(place, invitation)
    typer.echo("✓ the server keeps the request until the coordinator runs: cloister roster approve")
    typer.echo("then: the same command again, or with --wait MINUTES")


def _finish(place: Path, data: bytes, *, as_json: bool, person: bool) -> None:
    from client import joining  # noqa: PLC0415

    if not (place / "keys").is_dir():
        msg = f"{place} has no keys; join with the invitation first, or name the folder with --folder"
        raise ConfigError(msg)
    name, version = joining.finish(place, data)
    _say_member(place, name, version, as_json=as_json, person=person)


def _say_member(
    place: Path, name: str, version: int, *, as_json: bool, person: bool = False, again: bool = False
) -> None:
    if as_json:
        named = _named(name, person=person)
        typer.echo(json.dumps({**named, "member": True, "folder": str(place), "roster": version}))
        return
    already = " already; nothing was changed" if again else ""
    typer.echo(
        f"✓ {name} is {'in the roster' if person else 'a member'}{already}, {'' if person else 'in '}roster {version}"
    )
    if person:
        signs = f", and: cloister sign RUN.toml --as {place}" if _may_sign(place) else ""
        typer.echo(f"next: cloister protect {place}, which encrypts the key{signs}")
    else:
        typer.echo(f"next, once {place / 'site.toml'} is filled in: cloister agent {place}")


def _may_sign(place: Path) -> bool:
    from client.person import read_person  # noqa: PLC0415
    from privacy.run.people import may  # noqa: PLC0415
    from transport.pki import read_roster  # noqa: PLC0415

    own = read_person(place)
    person = read_roster(own.roster, own.authority).person(own.settings.name)
    return person is not None and may(person.role, "sign")


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
