"""Found a consortium: its authority, the coordinator's signing key and the server's certificate."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from privacy.errors import ConfigError
from privacy.run.people import Person
from privacy.storage import make_folder, write_atomically
from server.coordinator import Coordinator
from server.coordinator_settings import FOUNDER, printable
from server.protection import AUTHORITY_KEY, SIGNING_KEY, kept_coordinator, kept_server
from server.settings import read_consortium
from transport.address import Address, read_host
from transport.api import PORT as API_PORT
from transport.pki import Authority, certificate_pem, key_pem

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.at_rest.vault import Secret

PORT = 9440
"""The port on which a server listens, unless the coordinator says otherwise."""

JOINING_PORT = 9441
"""The port at which sites ask to join, unless the coordinator says otherwise."""


def create_consortium(
    folder: Path,
    consortium: str,
    host: str,
    port: int = PORT,
    listen: Address | None = None,
    *,
    joining_port: int = 0,
    online: bool = False,
    secret: Secret | None = None,
    person: str = FOUNDER,
    api: bool = False,
) -> Coordinator:
    """Make a consortium's authority, coordinator and server in `folder`; return its coordinator.

    Args:
        folder: where `coordinator/` and `server/` are made.
        consortium: the consortium's name, for people.
        host: the name or address that agents dial.
        port: the port that agents dial.
        listen: where the server listens; by default on the same port, on all addresses of its machine.
        joining_port: where sites ask to join, on all addresses of its machine; 0: with files only.
        online: whether the server's machine has the coordinator's folder, so that sites are answered at once.
        secret: what opens both folders, which are encrypted before a key is made; None: they are not.
        person: the name of the first coordinator in the roster, who has the folder's signing key.
        api: whether people may sign in and submit runs, at the API's usual port, on all addresses of its machine.

    Raises:
        ConfigError: if a name is not one, or the folder holds a consortium already.
        MalformedError: if the host is malformed.
    """
    try:
        printable(consortium)
        Person(person, "coordinator", "0" * 64)
    except ValidationError as error:
        msg = f"{person!a} is not a person's name; use a to z, digits and hyphens, a letter first, and no role's name"
        raise ConfigError(msg) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    host = read_host(host)
    coordinator, server = folder / "coordinator", folder / "server"
    for path in (coordinator / "authority.key", server / "tls.key"):
        if path.exists():
            msg = f"{path} exists already; a new consortium would replace it: name another folder with --folder"
            raise ConfigError(msg)
    authority, key = Authority.create(consortium), ec.generate_private_key(ec.SECP256R1())
    ca, name = certificate_pem(authority.certificate), f"consortium = {json.dumps(consortium)}\n"
    listening = listen or _everywhere(port)
    settings = f"{name}listen = {json.dumps(str(listening))}\n{_joining_text(joining_port, online=online)}"
    if api:
        settings += _API_TEXT
    _write(server, {"consortium.toml": settings.encode()})
    make_folder(coordinator)
    if secret:
        for kept in (kept_coordinator(coordinator), kept_server(read_consortium(server))):
            kept.protect(secret)
    _write(coordinator, {
        "authority.pem": ca,
        AUTHORITY_KEY: key_pem(authority.key),
        SIGNING_KEY: key_pem(Ed25519PrivateKey.generate()),
        "coordinator.toml": (
            f"{name}server = {json.dumps(str(Address(host, port)))}   # which agents dial\n"
            f"joining_port = {joining_port}   # of the same host, where sites ask to join; 0: with files only\n"
            f"person = {json.dumps(person)}   # the first coordinator in the roster, with signing.key\n"
        ).encode(),
    })  # fmt: skip
    _write(server, {
        "authority.pem": ca,
        "tls.pem": certificate_pem(authority.issue_server(host, key.public_key())),
        "tls.key": key_pem(key),
    })  # fmt: skip
    return Coordinator(coordinator)


def _everywhere(port: int) -> Address:
    return Address("0.0.0.0", port)  # noqa: S104 - a server is there to be reached


def _joining_text(port: int, *, online: bool) -> str:
    if not port:
        return ""
    mark = "" if online else "# "
    return f"""
[joining]                       # where invited sites ask to join; without it, they join with files only
listen = "{_everywhere(port)}"
{mark}authority = "../coordinator"   # the coordinator's folder: with it on this machine, sites are answered at once
"""


_API_TEXT = f"""
[api]                           # where people sign in, submit runs, follow and stop them
listen = "{_everywhere(API_PORT)}"
"""


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        write_atomically(folder / name, data)
