"""Join a consortium as a site or as a person: make the keys, ask, and get into the roster.

The keys are made here and stay here. `begin` may be called again with the same invitation: it asks with the same keys.
A site makes three keys, a person one; all else is the same for both.
"""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from client.asking import Asking
from client.asking_grpc import AskingByGrpc
from client.person import FILE as PERSON_FILE
from client.person import check_listed, read_person
from client.person import settings_text as person_text
from client.protection import new_folder
from client.rosters import checked_roster, replace_roster
from client.settings import Keys
from privacy.at_rest.vaults import is_protected
from privacy.crypto.key_epoch import SealingKey
from privacy.errors import AuthenticityError, ConfigError, KeyFileError
from privacy.failures import reason
from privacy.run.enrolment import JoinRequest, PersonRequest, authority_in, open_welcome, write_request
from privacy.run.invitation import read_invitation
from privacy.run.roster import open_roster
from privacy.storage import read_file, write_atomically
from privacy.untrusted_text import quoted
from transport.channel import system_bundle
from transport.joining import Outcome
from transport.pki import (
    authority_key,
    key_digest,
    key_pem,
    load_certificate,
    read_authority_key,
    read_certificate,
    read_signing_key,
    read_tls_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from privacy.at_rest.vault import Secret
    from privacy.crypto.signing import PublicKey
    from privacy.run.enrolment import Welcome
    from privacy.run.invitation import Invitation
    from privacy.run.roster import Roster

_DEFAULT = Keys()
_INVITATION = Path("keys/invitation")  # while the site waits for its welcome
_CA_BUNDLE = Path("keys/ca-bundle.pem")
_JOINED = Path("keys/joined")  # the number of the invitation with which it joined


@dataclass(frozen=True)
class Way:
    """How a site reaches its server."""

    proxy: str | None = None  # as in `[network]` of a site's settings
    signature: bool = False  # whether TLS is ended before the server
    ca_bundle: Path | None = None  # the certificates of whoever issued that of what ends it; None: the system's

    @property
    def settings(self) -> dict[str, str]:
        """What `[network]` says of it."""
        said = {
            "proxy": self.proxy,
            "authentication": "signature" if self.signature else None,
            "ca_bundle": _CA_BUNDLE.as_posix() if self.ca_bundle else None,
        }
        return {name: value for name, value in said.items() if value}


def membership(folder: Path, invitation: Invitation) -> Roster | None:
    """Return the roster of whoever has joined with this very invitation in `folder`; None if nobody has.

    Raises:
        ConfigError: if the folder is somebody else's, or trusts another authority.
    """
    _check_same(folder, invitation)
    joined = folder / _JOINED
    if not joined.exists() or read_file(joined) != invitation.number.encode():
        return None
    return open_roster(
        read_file(folder / _DEFAULT.roster), read_authority_key(folder / _DEFAULT.authority), expired=True
    )


def own_key(folder: Path) -> str | None:
    """Return the public key of this folder's signing key, in hex; None before it has one."""
    path = folder / _DEFAULT.signing_key
    return read_signing_key(path).public_key().public_bytes_raw().hex() if path.exists() else None


def begin(folder: Path, invitation: Invitation, secret: Secret | None = None) -> bytes:
    """Make the keys in `folder`/keys, unless they are there; return the request to join.

    With a secret, the folder is encrypted before a key is made, and opens with it.

    Raises:
        AuthenticityError: if the invitation has expired.
        ConfigError: if the folder is somebody else's, or trusts another authority.
        KeyFileError: if keys are there, but cannot be read.
    """
    invitation.check_valid()
    _check_same(folder, invitation)
    if secret and not is_protected(folder):
        new_folder(folder).protect(secret)
    for path, make in (_PERSONS_KEYS if invitation.role else _SITES_KEYS).items():
        if not (folder / path).exists():
            write_atomically(folder / path, make())
    write_atomically(folder / _INVITATION, invitation.to_text().encode())
    if invitation.role:
        key = read_signing_key(folder / _DEFAULT.signing_key).public_key().public_bytes_raw().hex()
        return write_request(PersonRequest(invitation.name, key), invitation)
    tls = read_tls_key(folder / _DEFAULT.tls_key)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, invitation.name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(tls, hashes.SHA256())
    pem = request.public_bytes(Encoding.PEM).decode()
    return write_request(JoinRequest(invitation.name, pem, *_public_keys(folder, _DEFAULT)), invitation)


def prepare(folder: Path, invitation: Invitation, way: Way = Way(), secret: Secret | None = None) -> bytes:
    """Make keys, and a `site.toml` to fill in or a `person.toml`, unless they are there; return the request to join.

    Raises:
        CloisterError: as `begin` does.
    """
    request = begin(folder, invitation, secret)
    path = folder / (PERSON_FILE if invitation.role else "site.toml")
    if path.exists():
        return request
    if invitation.role:
        write_atomically(path, person_text(invitation).encode())
        return request
    if way.ca_bundle:
        write_atomically(folder / _CA_BUNDLE, _read_bundle(way.ca_bundle))
    write_atomically(path, _settings_text(invitation, way).encode())
    return request


def _new_tls_key() -> bytes:
    return key_pem(ec.generate_private_key(ec.SECP256R1()))


def _new_signing_key() -> bytes:
    return key_pem(Ed25519PrivateKey.generate())


def _new_sealing_key() -> bytes:
    return SealingKey.generate().to_bytes()


_PERSONS_KEYS: dict[Path, Callable[[], bytes]] = {_DEFAULT.signing_key: _new_signing_key}
_SITES_KEYS: dict[Path, Callable[[], bytes]] = {
    _DEFAULT.tls_key: _new_tls_key,
    _DEFAULT.signing_key: _new_signing_key,
    _DEFAULT.sealing_key: _new_sealing_key,
}


def ask(folder: Path, invitation: Invitation, way: Way = Way(), secret: Secret | None = None) -> int | None:
    """Ask the running server; return the version of the roster that now lists who asks, or None if they have to wait.

    Nothing is written before the server has accepted the invitation.

    Args:
        folder: the site's or the person's.
        invitation: theirs.
        way: to the server.
        secret: as for `begin`.

    Raises:
        AuthenticityError: if the server is another's, or the invitation has expired or was used by other keys.
        ConfigError: if the folder is somebody else's, or trusts another authority.
        UnreachableError: if no joining port answers.
    """
    invitation.check_valid()
    _check_same(folder, invitation)
    with _asking(invitation, way) as asking:
        if asking.used_by not in {None, own_key(folder)}:
            msg = (
                f"the invitation of {invitation.name} was used before, by other keys than those in {folder}; if you "
                "did that in another folder, name it with --folder; otherwise tell the coordinator at once"
            )
            raise AuthenticityError(msg)
        answer = asking.ask(prepare(folder, invitation, way, secret))
    if answer.outcome is Outcome.REFUSED:
        msg = (
            f"the server refused the request of {invitation.name}: {quoted(answer.content.decode('utf-8', 'replace'))}"
        )
        raise AuthenticityError(msg)
    return finish(folder, answer.content)[1] if answer.outcome is Outcome.WELCOME else None


def _asking(invitation: Invitation, way: Way) -> Asking | AskingByGrpc:
    if not way.signature:
        return Asking(invitation, way.proxy)
    return AskingByGrpc(invitation, way.ca_bundle or system_bundle(), way.proxy)


def _read_bundle(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        msg = f"{path}: {reason(error)}; correct --ca-bundle"
        raise KeyFileError(msg) from error


def finish(folder: Path, data: bytes) -> tuple[str, int]:
    """Keep the certificate, if it is a site's, and the roster of a welcome; return the name and the roster's version.

    Raises:
        AuthenticityError: if the authority that the invitation named did not sign it, or it is for other keys.
        MalformedError: if it is not a welcome.
    """
    der, document = authority_in(data)
    if sha256(der).hexdigest() != _trusted(folder):
        msg = f"this welcome is of another consortium than {folder}; take the welcome that answers its request"
        raise AuthenticityError(msg)
    pem = ssl.DER_cert_to_PEM_cert(der).encode()
    authority = authority_key(load_certificate(pem, "the authority's certificate in this welcome"), "this welcome")
    welcome = open_welcome(document, authority)
    roster = _check_welcome(folder, welcome, authority)
    write_atomically(folder / _DEFAULT.authority, pem)
    if welcome.certificate is not None:
        write_atomically(folder / _DEFAULT.tls_certificate, welcome.certificate.encode())
    write_atomically(folder / _DEFAULT.roster, welcome.roster_file)
    if invited := _invitation(folder):
        write_atomically(folder / _JOINED, invited.number.encode())
        (folder / _INVITATION).unlink()
    return welcome.name, roster.version


def _check_welcome(folder: Path, welcome: Welcome, authority: PublicKey) -> Roster:
    """Check that a welcome is for the keys in a folder; return its roster."""
    if (welcome.certificate is None) == (folder / _DEFAULT.tls_key).exists():
        whose = ("site", "person") if welcome.certificate is None else ("person", "site")
        msg = (
            f"{folder} is the folder of a {whose[0]}, and this welcome is for a {whose[1]}; name the folder that asked"
        )
        raise AuthenticityError(msg)
    if welcome.certificate is None:
        key = read_signing_key(folder / _DEFAULT.signing_key)
        return checked_roster(
            folder / _DEFAULT.roster,
            welcome.roster_file,
            authority,
            lambda roster: check_listed(roster, welcome.name, key),
        )
    certificate = load_certificate(welcome.certificate.encode(), "the certificate in this welcome")
    if certificate.public_key() != read_tls_key(folder / _DEFAULT.tls_key).public_key():
        msg = f"this welcome certifies another TLS key than the one in {folder}; join again with a new invitation"
        raise AuthenticityError(msg)
    return _check_roster(folder, _DEFAULT, welcome.name, welcome.roster_file, authority)


def _trusted(folder: Path) -> str | None:
    """Return the SHA-256 of the certificate of the authority that a folder trusts; None if it trusts none."""
    path = folder / _DEFAULT.authority
    if path.exists():
        return read_certificate(path).fingerprint(hashes.SHA256()).hex()
    return invited.authority if (invited := _invitation(folder)) else None


def _invitation(folder: Path) -> Invitation | None:
    """Return the invitation with which somebody asked to join and has no welcome yet."""
    path = folder / _INVITATION
    return read_invitation(read_file(path).decode("utf-8", "replace")) if path.exists() else None


def take_roster(folder: Path, keys: Keys, site: str, data: bytes) -> Roster:
    """Keep a newer roster.

    Args:
        folder: the site's folder.
        keys: the files in it.
        site: the site's name.
        data: the signed roster.

    Raises:
        AuthenticityError: as `client.rosters.checked_roster`, or if it lists other keys for this site.
    """
    authority = read_authority_key(folder / keys.authority)
    roster = _check_roster(folder, keys, site, data, authority)
    replace_roster(folder / keys.roster, data, authority)
    return roster


def check_offered(folder: Path, keys: Keys, site: str, data: bytes) -> Roster:
    """Check the roster with which the server runs, without keeping it; return it.

    Raises:
        AuthenticityError: if it is not one that this site could take; says what to do.
        MalformedError: if it is no roster.
    """
    try:
        return _check_roster(folder, keys, site, data, read_authority_key(folder / keys.authority))
    except AuthenticityError as error:
        msg = f"the server's roster cannot be taken: {error}; an old copy may have been put back at the server"
        raise AuthenticityError(msg) from error


def _check_roster(folder: Path, keys: Keys, site: str, data: bytes, authority: PublicKey) -> Roster:
    def check(roster: Roster) -> None:
        member, tls = roster.member(site), read_tls_key(folder / keys.tls_key).public_key()
        if (member.signing_key, member.sealing_key) != _public_keys(folder, keys) or member.tls_key != key_digest(tls):
            msg = (
                f"roster {roster.version} lists keys for {site} that are not in {folder}; join again with a new "
                "invitation"
            )
            raise AuthenticityError(msg)

    return checked_roster(folder / keys.roster, data, authority, check)


def _public_keys(folder: Path, keys: Keys) -> tuple[str, str]:
    """Return the site's public keys for signing and sealing, as the roster lists them."""
    signing = read_signing_key(folder / keys.signing_key).public_key().public_bytes_raw().hex()
    try:
        return signing, SealingKey(read_file(folder / keys.sealing_key)).public
    except OSError as error:
        msg = f"{folder / keys.sealing_key}: {reason(error)}; restore this key from the site's backup"
        raise KeyFileError(msg) from error


def _settings_text(invitation: Invitation, way: Way) -> str:
    """Return a `site.toml` to fill in: whoever joins decides what the site takes part in."""
    network = "".join(f"{name} = {json.dumps(value)}\n" for name, value in way.settings.items())
    network = network and f"\n[network]\n{network}"
    return f"""\
# {invitation.name}. Fill in [data], and [policy] to take part in runs; docs/operations.md explains every key.

site = {json.dumps(invitation.name)}
server = {json.dumps(invitation.server)}

[data]
file = "records.csv"          # the site's records, relative to this folder
lineage = "{invitation.name}-people"   # the people that the records are about; all files about them share one budget
held_out = 0.2                # the fraction that is never trained on

[budget]                      # the most that may ever be spent on these people: for a run of ε 3, a few rounds of it
epsilon = 4.0                 # that are repeated after a fault, and a survey of ε 1; not for a second such run
delta = 1e-5                  # below 1 over the number of these people

[policy]                      # what this site takes part in, whatever a run asks for
tasks = []                    # installed, or in a file beside this one: ["lungs:Study"]; nothing else is trained
maximum_epsilon = 3.5         # of one run with its repeated rounds; each of 12 to 20 rounds adds about 0.1 to an ε of 3
minimum_noise_multiplier = 0.5
approval = false              # true: only runs approved here with `cloister approve`
# signers = ["coordinator"]   # whose runs: names or roles; by default, of all whom the roster allows to sign
recipients = []               # who may have the model beside a run's sites: names or roles; by default, nobody
minimum_cohort = 3            # with fewer sites, nothing leaves
disclose = ["epsilon"]        # what else leaves; metrics, if listed here, leave without noise and are in no ε
{network}"""


def _check_same(folder: Path, invitation: Invitation) -> None:
    """Check that a folder is empty, or belongs to whoever is invited.

    Raises:
        ConfigError: if it is somebody else's, or trusts another authority.
    """
    if (_trusted(folder) or invitation.authority) != invitation.authority:
        msg = f"{folder} belongs to another consortium; name another folder with --folder"
        raise ConfigError(msg)
    before, other = _invitation(folder), "site.toml" if invitation.role else PERSON_FILE
    names = {invitation.name} | ({before.name} if before else set[str]())
    if invitation.role and (folder / PERSON_FILE).exists():
        names.add(read_person(folder).settings.name)
    if len(names) > 1 or (folder / other).exists():
        msg = f"{folder} is the folder of another site or person; name another folder with --folder"
        raise ConfigError(msg)
