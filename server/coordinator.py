"""The coordinator's part in a consortium: invite sites and people, approve them, renew and end their entries.

    coordinator/   authority.pem, authority.key, signing.key, coordinator.toml, invitations/, latest-roster
    server/        consortium.toml, authority.pem, tls.pem, tls.key, roster, invitations/, requests/, welcomes/

The authority's key never leaves the coordinator's folder, and no site's private key ever enters it. The folder needs no
network: requests and welcomes are files. Of an invitation it keeps only what verifies a request.

The coordinator who founded the consortium is a person of the roster like all others: `signing.key` is that person's.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from privacy.config import read_toml, settings_file
from privacy.errors import AuthenticityError, ConfigError, KeyFileError, MalformedError
from privacy.run.enrolment import AnyRequest, JoinRequest, number_of, open_request, write_welcome
from privacy.run.invitation import VALID_HOURS, Invitation
from privacy.run.people import Person, Role, may, not_a_role
from privacy.run.roster import Member, Roster, open_roster, sign_roster
from privacy.storage import read_file, write_atomically
from server.coordinator_settings import CoordinatorSettings
from server.invitations import Invitations
from server.protection import ANSWERS, AUTHORITY_KEY, RENEWALS, REQUESTS, SIGNING_KEY, WELCOMES, kept_coordinator
from transport.address import read_address
from transport.pki import (
    certificate_pem,
    public_key_digest,
    read_authority,
    read_certificate,
    read_signing_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from privacy.run.invitation import InvitationRecord

E = TypeVar("E")

ROSTER_DAYS = 90
"""How long a roster is valid."""

LATEST = "latest-roster"
"""File of the coordinator, with the version of the latest roster that it signed."""


@dataclass(frozen=True)
class Approval:
    """One approved site or person."""

    name: str
    role: Role | None  # None: a site
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

    def invite(self, name: str, hours: float = VALID_HOURS, role: Role | None = None) -> Invitation:
        """Make an invitation for a site or, with a role, for a person.

        Raises:
            ConfigError: if the name is not one, or a site or person has it.
        """
        self._check_free(name)
        fingerprint, settings = self._authority.certificate.fingerprint(hashes.SHA256()).hex(), self.settings
        try:
            if role is not None:
                not_a_role(name)
            invitation = Invitation.make(name, settings.server, settings.joining_port, fingerprint, hours, role)
        except ValidationError as error:
            whose = "person" if role else "site"
            msg = (
                f"{name!a} is not a {whose}'s name; use a to z, digits and hyphens, a letter first, 32 characters at "
                "most"
            )
            raise ConfigError(msg) from error
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._invitations.keep(invitation.record)
        return invitation

    def _check_free(self, name: str) -> None:
        """Check that no site and no person of the roster has a name.

        Raises:
            ConfigError: if one has.
        """
        roster = self.roster()
        entries = (roster.members, roster.people) if roster else ((), self._founder)
        if name in {member.site for member in entries[0]} | {person.name for person in entries[1]}:
            msg = f"{name} is in the roster already; to give it new keys, remove it first: cloister revoke {name}"
            raise ConfigError(msg)

    @property
    def _founder(self) -> tuple[Person, ...]:
        """Who founded the consortium, as the first roster lists them."""
        return (Person(self.settings.person, "coordinator", self._signing_key.public_key().public_bytes_raw().hex()),)

    def approve(self, requests: Sequence[bytes]) -> tuple[Roster, list[Approval]]:
        """Enter those who ask to join, in one new version of the roster; return it, and what to send them.

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
        people = {person.name: person for person in (now.people if now else self._founder)}
        opened, certificates = [self._open(data, members.keys() | people.keys()) for data in requests], dict[str, str]()
        for invited, request in opened:
            if isinstance(request, JoinRequest):
                certificate = self._authority.issue_site(request.name, _certified_key(request))
                certificates[request.name] = certificate_pem(certificate).decode()
                key = public_key_digest(certificate)
                _enter(members, request.name, Member(request.name, key, request.signing_key, request.sealing_key))
            elif invited.role is not None:  # of a person's request, it never is
                _enter(people, request.name, Person(request.name, invited.role, request.signing_key))
        listed = tuple(members.values()), tuple(people.values())
        unchanged = now and listed == (now.members, now.people)
        data = read_file(self.roster_path) if unchanged else self._sign(*listed, now)
        approvals, der = [], self._authority.certificate.public_bytes(Encoding.DER)
        for invited, request in opened:
            self._invitations.mark_used(invited, request.signing_key)
            certified = certificates.get(request.name)
            welcome = write_welcome(request.name, certified, data, self._authority.key, der)
            approvals.append(Approval(request.name, invited.role, invited.number, welcome))
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

    def remove(self, name: str) -> Roster:
        """End the entry of a site or a person, in a new version of the roster; return it. Unused invitations end too.

        Raises:
            ConfigError: if there is none, or it is the last site or the last coordinator.
        """
        with self._alone():
            return self._remove(name)

    def _remove(self, name: str) -> Roster:
        now = self.roster()
        members = tuple(member for member in now.members if member.site != name) if now else ()
        people = tuple(person for person in now.people if person.name != name) if now else ()
        if now is None or (len(members), len(people)) == (len(now.members), len(now.people)):
            msg = f"{name} is not in the roster of {self.settings.consortium}; `cloister roster show` lists who is"
            raise ConfigError(msg)
        if now.members and not members:
            msg = f"{name} is the last member of {self.settings.consortium}; a consortium needs at least one"
            raise ConfigError(msg)
        if not any(may(person.role, "administer") for person in people):
            msg = f"{name} is the last coordinator of {self.settings.consortium}; invite another one first"
            raise ConfigError(msg)
        self._invitations.withdraw(name)
        return self._opened(self._sign(members, people, now))

    def withdraw(self, name: str) -> int:
        """Delete the unused invitations of a site or a person, and what was asked with them; return how many.

        A server that has this folder's records recognises them no more from this moment on.

        Raises:
            ConfigError: if there are none.
        """
        with self._alone():
            if count := self._invitations.withdraw(name):
                return count
            now = self.roster()
            joined = now and (now.person(name) or any(member.site == name for member in now.members))
            end = f"it has joined, which `cloister revoke {name}` ends" if joined else "nothing was changed"
            msg = f"there is no unused invitation of {name}; {end}"
            raise ConfigError(msg)

    def renew(self) -> Roster:
        """Sign the same entries and the server's key anew, with later dates of expiry; return the roster.

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
        return self._opened(self._sign(now.members, now.people, now))

    def _opened(self, data: bytes) -> Roster:
        return open_roster(data, self._authority.key.public_key())

    def _sign(self, members: tuple[Member, ...], people: tuple[Person, ...], before: Roster | None) -> bytes:
        version, expires = before.version + 1 if before else 1, time.time() + ROSTER_DAYS * 86400
        try:
            roster = Roster(self.settings.consortium, version, expires, people, members)
        except ValidationError as error:
            msg = "two entries have the same name or key; everybody has a name, and makes keys, of their own"
            raise MalformedError(msg) from error
        data = sign_roster(roster, self._authority.key).to_bytes()
        write_atomically(self.roster_path, data)
        write_atomically(self.folder / LATEST, b"%d\n" % version)
        return data

    def _open(self, data: bytes, listed: AbstractSet[str]) -> tuple[InvitationRecord, AnyRequest]:
        invited = self._invitations.find(number_of(data))
        request = open_request(data, invited)
        invited.check_open(request.signing_key)
        if invited.used and invited.name not in listed:
            msg = f"{invited.name} is no longer in the roster; to let it join anew: cloister invite"
            raise AuthenticityError(msg)
        return invited, request

    @property
    def _server(self) -> Path:
        return self.roster_path.parent

    @property
    def _invitations(self) -> Invitations:
        return Invitations(self.folder, self._server)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the roster meanwhile."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)  # which ends the lock


def _enter(entries: dict[str, E], name: str, entry: E) -> None:
    """Add an entry.

    Raises:
        AuthenticityError: if the name has one with other keys.
    """
    if entries.setdefault(name, entry) != entry:
        msg = f"{name} joined with other keys; remove it first: cloister revoke {name}"
        raise AuthenticityError(msg)


def _certified_key(request: JoinRequest) -> ec.EllipticCurvePublicKey:
    """Return the TLS key of an authenticated request, having checked that the site has its private half.

    Raises:
        MalformedError: if it is not a P-256 key, or is not the site's.
    """
    try:
        signed = x509.load_pem_x509_csr(request.tls_request.encode())
        key, valid = signed.public_key(), signed.is_signature_valid
    except ValueError as error:
        msg = f"the certificate request of {request.name} is damaged; have the site make a new one: cloister join"
        raise MalformedError(msg) from error
    if not valid or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        msg = f"{request.name} does not prove that it has a P-256 key; have it make a new request: cloister join"
        raise MalformedError(msg)
    return key
