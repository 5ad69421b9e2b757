"""The coordinator's part in a consortium: found it, invite sites, approve them, renew and end memberships.

    coordinator/   authority.pem, authority.key, signing.key, coordinator.toml, invitations/
    server/        consortium.toml, authority.pem, tls.pem, tls.key, roster

The authority's key never leaves the coordinator's folder, and no site's private key ever enters it. The folder needs no
network: requests and welcomes are files.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AfterValidator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as settings

from privacy.config import STRICT, File, read_toml, settings_file
from privacy.errors import AuthenticityError, ConfigError, KeyFileError, MalformedError
from privacy.run.enrolment import (
    VALID_HOURS,
    Invitation,
    JoinRequest,
    number_of,
    open_request,
    write_welcome,
)
from privacy.run.roster import Member, Roster, open_roster, sign_roster
from privacy.storage import read_file, write_atomically
from transport.address import Address, Dialled, read_address, read_host
from transport.pki import (
    Authority,
    certificate_pem,
    key_pem,
    public_key_digest,
    read_authority,
    read_certificate,
    read_signing_key,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

ROSTER_DAYS = 90
"""How long a roster is valid."""

PORT = 9440
"""The port on which a server listens, unless the coordinator says otherwise."""

_LONGEST_NAME = 64


def _printable(name: str) -> str:
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        msg = f"a consortium's name has 1 to {_LONGEST_NAME} printable characters"
        raise ValueError(msg)
    return name


@settings(frozen=True, config=STRICT)
class CoordinatorSettings:
    """`coordinator.toml`."""

    consortium: Annotated[str, AfterValidator(_printable)]
    server: Dialled  # host:port, which agents dial
    roster: File = Path("../server/roster")


@dataclass(frozen=True)
class Approval:
    """One approved site."""

    site: str
    welcome: bytes


class Coordinator:
    """A consortium's coordinator, who holds the authority's key."""

    def __init__(self, path: Path) -> None:
        """Open the folder of a coordinator, or its `coordinator.toml`.

        Raises:
            ConfigError: if there is none.
            KeyFileError: if its keys cannot be read.
        """
        file = settings_file(path, "coordinator.toml")
        self.folder, self.settings = file.parent, read_toml(file, CoordinatorSettings)
        self._authority = read_authority(self.folder / "authority.key", self.folder / "authority.pem")
        self._signing_key = read_signing_key(self.folder / "signing.key")

    @property
    def roster_path(self) -> Path:
        """The file of the current roster."""
        return Path(os.path.normpath(self.folder / self.settings.roster))

    def roster(self) -> Roster | None:
        """Return the current roster, or None before the first site is approved.

        Raises:
            KeyFileError: if it cannot be read, or the authority did not sign it.
        """
        try:
            data = read_file(self.roster_path)
        except FileNotFoundError:
            return None
        return open_roster(data, self._authority.key.public_key(), expired=True)

    def invite(self, site: str, hours: float = VALID_HOURS) -> Invitation:
        """Make an invitation for a site.

        Raises:
            ConfigError: if the name is not one for a site, or a member has it.
        """
        roster = self.roster()
        if roster is not None and any(member.site == site for member in roster.members):
            msg = f"{site} is a member already; to give it new keys, remove it first: cloister roster remove {site}"
            raise ConfigError(msg)
        try:
            invitation = Invitation(
                consortium=self.settings.consortium,
                site=site,
                server=self.settings.server,
                authority=certificate_pem(self._authority.certificate).decode(),
                secret=secrets.token_hex(32),
                expires=time.time() + hours * 3600,
            )
        except ValidationError as error:
            msg = (
                f"{site!a} is not a site's name; use a to z, digits and hyphens, a letter first, 32 characters at most"
            )
            raise ConfigError(msg) from error
        write_atomically(self._invitation(invitation.number), json.dumps(asdict(invitation)).encode())
        return invitation

    def approve(self, requests: Sequence[bytes]) -> tuple[Roster, list[Approval]]:
        """Make sites that ask to join members, in one new version of the roster; return it, and what to send them.

        A request that was approved before gets a new welcome, and the roster stays as it is.

        Raises:
            AuthenticityError: if a request was not made with a valid invitation, or its invitation was used before.
            MalformedError: if a request, or a key in it, is malformed.
        """
        opened = [self._open(data) for data in requests]
        now = self.roster()
        members = {member.site: member for member in now.members} if now else {}
        certificates = {}
        for invitation, request in opened:
            key = _certified_key(request)
            certificate = self._authority.issue_site(request.site, key)
            member = Member(request.site, public_key_digest(certificate), request.signing_key, request.sealing_key)
            if members.get(request.site, member) != member:
                msg = f"{request.site} joined with other keys; remove it first: cloister roster remove {request.site}"
                raise AuthenticityError(msg)
            members[request.site], certificates[request.site] = member, certificate_pem(certificate).decode()
            self._mark_used(invitation.number, request)
        listed = tuple(members.values())
        data = read_file(self.roster_path) if now and listed == now.members else self._sign(listed, now)
        welcomes = [Approval(site, write_welcome(site, certificate, data, self._authority.key))
                    for site, certificate in certificates.items()]  # fmt: skip
        return self._opened(data), welcomes

    def remove(self, site: str) -> Roster:
        """End a site's membership, in a new version of the roster; return it.

        Raises:
            ConfigError: if it is not a member, or the last one.
        """
        now = self.roster()
        rest = tuple(member for member in now.members if member.site != site) if now else ()
        if now is None or len(rest) == len(now.members):
            msg = f"{site} is not a member of {self.settings.consortium}; `cloister roster show` lists them"
            raise ConfigError(msg)
        if not rest:
            msg = f"{site} is the last member of {self.settings.consortium}; a roster needs at least one"
            raise ConfigError(msg)
        return self._opened(self._sign(rest, now))

    def renew(self) -> Roster:
        """Sign the same members and the server's key anew, with later dates of expiry; return the roster.

        Raises:
            ConfigError: if there is no roster.
            KeyFileError: if the server's certificate cannot be read.
        """
        now = self.roster()
        if now is None:
            msg = f"{self.settings.consortium} has no members yet; invite one: cloister invite SITE"
            raise ConfigError(msg)
        certificate = self.roster_path.with_name("tls.pem")
        key = read_certificate(certificate).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            msg = f"{certificate}: not a certificate of a P-256 key; restore it from the server"
            raise KeyFileError(msg)
        host = read_address(self.settings.server).host
        write_atomically(certificate, certificate_pem(self._authority.issue_server(host, key)))
        return self._opened(self._sign(now.members, now))

    def _opened(self, data: bytes) -> Roster:
        return open_roster(data, self._authority.key.public_key())

    def _sign(self, members: tuple[Member, ...], before: Roster | None) -> bytes:
        public = self._signing_key.public_key().public_bytes_raw().hex()
        version = before.version + 1 if before else 1
        try:
            roster = Roster(self.settings.consortium, version, time.time() + ROSTER_DAYS * 86400, public, members)
        except ValidationError as error:
            msg = "two sites have the same key; each site must make its own"
            raise MalformedError(msg) from error
        data = sign_roster(roster, self._authority.key).to_bytes()
        write_atomically(self.roster_path, data)
        return data

    def _open(self, data: bytes) -> tuple[Invitation, JoinRequest]:
        number = number_of(data)
        try:
            kept = json.loads(read_file(self._invitation(number)))
            used = kept.pop("used", None)
            invitation = TypeAdapter(Invitation).validate_json(json.dumps(kept))
        except (ValueError, AttributeError) as error:
            msg = f"{self._invitation(number)} is damaged; invite the site again: cloister invite SITE"
            raise KeyFileError(msg) from error
        except FileNotFoundError as error:
            msg = (
                "no invitation of this consortium belongs to this request; invite the site again: cloister invite SITE"
            )
            raise AuthenticityError(msg) from error
        request = open_request(data, invitation)
        if used is None:
            invitation.check_valid()
        elif used != request.signing_key:
            msg = f"the invitation of {invitation.site} was used before, by other keys; invite the site again"
            raise AuthenticityError(msg)
        return invitation, request

    def _mark_used(self, number: str, request: JoinRequest) -> None:
        path = self._invitation(number)
        kept = json.loads(read_file(path))
        write_atomically(path, json.dumps(kept | {"used": request.signing_key}).encode())

    def _invitation(self, number: str) -> Path:
        return self.folder / "invitations" / f"{number}.json"


def create_consortium(
    folder: Path, consortium: str, host: str, port: int = PORT, listen: Address | None = None
) -> Coordinator:
    """Make a consortium's authority, coordinator and server in `folder`; return its coordinator.

    Args:
        folder: where `coordinator/` and `server/` are made.
        consortium: the consortium's name, for people.
        host: the name or address that agents dial.
        port: the port that agents dial.
        listen: where the server listens; by default on the same port, on all addresses of its machine.

    Raises:
        ConfigError: if the name is not one, or the folder holds a consortium already.
        MalformedError: if the host is malformed.
    """
    try:
        _printable(consortium)
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
    _write(coordinator, {
        "authority.pem": ca,
        "authority.key": key_pem(authority.key),
        "signing.key": key_pem(Ed25519PrivateKey.generate()),
        "coordinator.toml": f"{name}server = {json.dumps(str(Address(host, port)))}   # which agents dial\n".encode(),
    })  # fmt: skip
    listening = listen or Address("0.0.0.0", port)  # noqa: S104 - a server is there to be reached
    _write(server, {
        "authority.pem": ca,
        "tls.pem": certificate_pem(authority.issue_server(host, key.public_key())),
        "tls.key": key_pem(key),
        "consortium.toml": f"{name}listen = {json.dumps(str(listening))}\n".encode(),
    })  # fmt: skip
    return Coordinator(coordinator)


def _certified_key(request: JoinRequest) -> ec.EllipticCurvePublicKey:
    """Return the TLS key of an authenticated request, having checked that the site has its private half.

    Raises:
        MalformedError: if it is not a P-256 key, or is not the site's.
    """
    try:
        signed = x509.load_pem_x509_csr(request.tls_request.encode())
        key, valid = signed.public_key(), signed.is_signature_valid
    except ValueError as error:
        msg = f"the certificate request of {request.site} is damaged; have the site make a new one: cloister join"
        raise MalformedError(msg) from error
    if not valid or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        msg = f"{request.site} does not prove that it has a P-256 key; have it make a new request: cloister join"
        raise MalformedError(msg)
    return key


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        write_atomically(folder / name, data)
