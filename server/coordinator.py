"""The coordinator's part in a consortium: invite sites, approve them, renew and end memberships.

    coordinator/   authority.pem, authority.key, signing.key, coordinator.toml, invitations/, latest-roster
    server/        consortium.toml, authority.pem, tls.pem, tls.key, roster, invitations/, requests/, welcomes/

The authority's key never leaves the coordinator's folder, and no site's private key ever enters it. The folder needs no
network: requests and welcomes are files. Of an invitation it keeps only what verifies a request.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import AfterValidator, ValidationError
from pydantic.dataclasses import dataclass as settings

from privacy.config import STRICT, File, read_toml, settings_file
from privacy.errors import AuthenticityError, ConfigError, KeyFileError, MalformedError
from privacy.run.enrolment import JoinRequest, number_of, open_request, write_welcome
from privacy.run.invitation import VALID_HOURS, Invitation, InvitationRecord, Port, read_record, record_name
from privacy.run.roster import Member, Roster, open_roster, sign_roster
from privacy.storage import read_file, write_atomically
from server.protection import (
    ANSWERS,
    AUTHORITY_KEY,
    INVITATIONS,
    RENEWALS,
    REQUESTS,
    SIGNING_KEY,
    WELCOMES,
    kept_coordinator,
)
from transport.address import Dialled, read_address
from transport.pki import (
    certificate_pem,
    public_key_digest,
    read_authority,
    read_certificate,
    read_signing_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

log = logging.getLogger("cloister.coordinator")

ROSTER_DAYS = 90
"""How long a roster is valid."""

LATEST = "latest-roster"
"""File of the coordinator, with the version of the latest roster that it signed."""

_LONGEST_NAME = 64


def printable(name: str) -> str:
    """Check the name of a consortium.

    Raises:
        ValueError: if it is not one.
    """
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        msg = f"a consortium's name has 1 to {_LONGEST_NAME} printable characters"
        raise ValueError(msg)
    return name


@settings(frozen=True, config=STRICT)
class CoordinatorSettings:
    """`coordinator.toml`."""

    consortium: Annotated[str, AfterValidator(printable)]
    server: Dialled  # host:port, which agents dial
    joining_port: Port = 0  # of the same host, where sites ask to join; 0: with files only
    roster: File = Path("../server/roster")


@dataclass(frozen=True)
class Approval:
    """One approved site."""

    site: str
    number: str  # of its invitation
    welcome: bytes


class Coordinator:
    """A consortium's coordinator, who holds the authority's key."""

    def __init__(self, path: Path) -> None:
        """Open the folder of a coordinator, or its `coordinator.toml`.

        Raises:
            ConfigError: if there is none.
            KeyFileError: if its keys cannot be read.
            VaultError: if it is encrypted and cannot be opened.
        """
        file = settings_file(path, "coordinator.toml")
        self.folder, self.settings = file.parent, read_toml(file, CoordinatorSettings)
        kept_coordinator(self.folder).ready()
        self._authority = read_authority(self.folder / AUTHORITY_KEY, self.folder / "authority.pem")
        self._signing_key = read_signing_key(self.folder / SIGNING_KEY)

    @property
    def roster_path(self) -> Path:
        """The file of the current roster."""
        return Path(os.path.normpath(self.folder / self.settings.roster))

    def roster(self) -> Roster | None:
        """Return the current roster, or None before the first site is approved.

        Raises:
            KeyFileError: if it cannot be read, the authority did not sign it, or a later one was signed.
        """
        try:
            data = read_file(self.roster_path)
        except FileNotFoundError:
            self._check_latest(0)
            return None
        roster = open_roster(data, self._authority.key.public_key(), expired=True)
        self._check_latest(roster.version)
        return roster

    def _check_latest(self, version: int) -> None:
        """Check that no later roster was signed: the file is at the server, which could put an old one back."""
        try:
            latest = int(read_file(self.folder / LATEST))
        except FileNotFoundError:  # before the first one
            return
        except ValueError as error:
            msg = f"{self.folder / LATEST} is damaged; write the version of the consortium's latest roster into it"
            raise KeyFileError(msg) from error
        if version < latest:
            have = f"only roster {version}" if version else "no roster"
            msg = (
                f"{self.roster_path}: there is {have}, but roster {latest} was signed; put the latest back: every "
                "member has it in keys/roster"
            )
            raise KeyFileError(msg)

    def invite(self, site: str, hours: float = VALID_HOURS) -> Invitation:
        """Make an invitation for a site.

        Raises:
            ConfigError: if the name is not one for a site, or a member has it.
        """
        roster = self.roster()
        if roster is not None and any(member.site == site for member in roster.members):
            msg = f"{site} is a member already; to give it new keys, remove it first: cloister roster remove {site}"
            raise ConfigError(msg)
        fingerprint = self._authority.certificate.fingerprint(hashes.SHA256()).hex()
        try:
            invitation = Invitation.make(site, self.settings.server, self.settings.joining_port, fingerprint, hours)
        except ValidationError as error:
            msg = (
                f"{site!a} is not a site's name; use a to z, digits and hyphens, a letter first, 32 characters at most"
            )
            raise ConfigError(msg) from error
        record = invitation.record
        for folder in (self.folder, self._server):
            write_atomically(folder / INVITATIONS / record.file_name, record.to_bytes())
        return invitation

    def approve(self, requests: Sequence[bytes]) -> tuple[Roster, list[Approval]]:
        """Make sites that ask to join members, in one new version of the roster; return it, and what to send them.

        A request that was approved before gets a new welcome, and the roster stays as it is.

        Raises:
            AuthenticityError: if a request was not made with a valid invitation, or its invitation was used before.
            MalformedError: if a request, or a key in it, is malformed.
        """
        with self._alone():
            return self._approve(requests)

    def _approve(self, requests: Sequence[bytes]) -> tuple[Roster, list[Approval]]:
        now = self.roster()
        members = {member.site: member for member in now.members} if now else {}
        opened, certificates = [self._open(data, members) for data in requests], {}
        for _, request in opened:
            certificate = self._authority.issue_site(request.site, _certified_key(request))
            member = Member(request.site, public_key_digest(certificate), request.signing_key, request.sealing_key)
            if members.get(request.site, member) != member:
                msg = f"{request.site} joined with other keys; remove it first: cloister roster remove {request.site}"
                raise AuthenticityError(msg)
            members[request.site], certificates[request.site] = member, certificate_pem(certificate).decode()
        listed = tuple(members.values())
        data = read_file(self.roster_path) if now and listed == now.members else self._sign(listed, now)
        approvals, der = [], self._authority.certificate.public_bytes(Encoding.DER)
        for invited, request in opened:
            self._mark_used(invited, request)
            welcome = write_welcome(request.site, certificates[request.site], data, self._authority.key, der)
            approvals.append(Approval(request.site, invited.number, welcome))
        return self._opened(data), approvals

    def approve_waiting(self) -> tuple[list[Approval], list[str]]:
        """Approve the requests that wait at the server; return the approvals, and why others were refused.

        Each is approved by itself, so that a bad one keeps nobody else out.
        """
        approvals, refusals = [], []
        for path in sorted((self._server / REQUESTS).glob("[0-9a-f]*")):
            if (self._server / WELCOMES / path.name).exists():
                continue
            try:
                approval = self.approve([read_file(path)])[1][0]
            except (AuthenticityError, MalformedError) as error:
                refusals.append(f"{path}: {error}")
                continue
            self.leave_at_server(approval)
            approvals.append(approval)
        return approvals, refusals

    def leave_at_server(self, approval: Approval) -> None:
        """Keep a welcome where the server finds it when the site asks again."""
        write_atomically(self._server / WELCOMES / approval.number[:32], approval.welcome)

    def remove(self, site: str) -> Roster:
        """End a site's membership, in a new version of the roster; return it. Its unused invitations end too.

        Raises:
            ConfigError: if it is not a member, or the last one.
        """
        with self._alone():
            return self._remove(site)

    def _remove(self, site: str) -> Roster:
        now = self.roster()
        rest = tuple(member for member in now.members if member.site != site) if now else ()
        if now is None or len(rest) == len(now.members):
            msg = f"{site} is not a member of {self.settings.consortium}; `cloister roster show` lists them"
            raise ConfigError(msg)
        if not rest:
            msg = f"{site} is the last member of {self.settings.consortium}; a roster needs at least one"
            raise ConfigError(msg)
        self._withdraw(site)
        return self._opened(self._sign(rest, now))

    def _withdraw(self, site: str) -> None:
        """Delete a site's unused invitations, with which it could join again."""
        for path in sorted((self.folder / INVITATIONS).glob("*.json")):
            try:
                record = read_record(read_file(path), str(path))
            except KeyFileError as error:  # nobody can join with it
                log.warning("%s", error)
                continue
            if record.site == site and record.used is None:
                for folder in (self._server, self.folder):
                    (folder / INVITATIONS / path.name).unlink(missing_ok=True)

    def renew(self) -> Roster:
        """Sign the same members and the server's key anew, with later dates of expiry; return the roster.

        Raises:
            ConfigError: if there is no roster.
            KeyFileError: if the server's certificate cannot be read.
        """
        with self._alone():
            return self._renew()

    def recertify(self, site: str, certificate: x509.Certificate) -> bytes:
        """Return a new certificate, as PEM, for the key in a member's present one.

        Raises:
            AuthenticityError: if the roster does not list that key for this site.
        """
        roster, key = self.roster(), certificate.public_key()
        listed = {member.site: member.tls_key for member in roster.members} if roster else {}
        if not isinstance(key, ec.EllipticCurvePublicKey) or listed.get(site) != public_key_digest(certificate):
            msg = f"the roster lists no such key for {site}, so its certificate is not renewed"
            raise AuthenticityError(msg)
        return certificate_pem(self._authority.issue_site(site, key))

    def recertify_waiting(self) -> list[str]:
        """Answer the members that asked the server for new certificates; return their names."""
        renewed = []
        for path in sorted((self._server / RENEWALS).glob("*.pem")):
            try:
                data = self.recertify(path.stem, read_certificate(path))
            except (AuthenticityError, KeyFileError):  # of a site that has left since, or damaged on its way here
                path.unlink()
                continue
            write_atomically(self._server / RENEWALS / ANSWERS / path.name, data)
            path.unlink()
            renewed.append(path.stem)
        return renewed

    def renew_server(self) -> None:
        """Certify the server's key anew.

        Raises:
            KeyFileError: if the server's certificate cannot be read.
        """
        certificate = self._server / "tls.pem"
        key = read_certificate(certificate).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            msg = f"{certificate}: not a certificate of a P-256 key; restore it from the server"
            raise KeyFileError(msg)
        host = read_address(self.settings.server).host
        write_atomically(certificate, certificate_pem(self._authority.issue_server(host, key)))

    def _renew(self) -> Roster:
        now = self.roster()
        if now is None:
            msg = f"{self.settings.consortium} has no members yet; invite one: cloister invite SITE"
            raise ConfigError(msg)
        self.renew_server()
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
        write_atomically(self.folder / LATEST, b"%d\n" % version)
        return data

    def _open(self, data: bytes, members: Mapping[str, Member]) -> tuple[InvitationRecord, JoinRequest]:
        path = self.folder / INVITATIONS / record_name(number_of(data))
        try:
            invited = read_record(read_file(path), str(path))
        except FileNotFoundError as error:
            msg = (
                "no invitation of this consortium belongs to this request; invite the site again: cloister invite SITE"
            )
            raise AuthenticityError(msg) from error
        request = open_request(data, invited)
        invited.check_open(request.signing_key)
        if invited.used and invited.site not in members:
            msg = f"{invited.site} is no longer a member; to let it join anew: cloister invite {invited.site}"
            raise AuthenticityError(msg)
        return invited, request

    def _mark_used(self, invited: InvitationRecord, request: JoinRequest) -> None:
        data = replace(invited, used=request.signing_key).to_bytes()
        for folder in (self.folder, self._server):
            write_atomically(folder / INVITATIONS / invited.file_name, data)

    @property
    def _server(self) -> Path:
        return self.roster_path.parent

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the roster meanwhile."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)  # which ends the lock


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
