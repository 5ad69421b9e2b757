"""A site's part in joining a consortium: make its keys, ask, and become a member.

The keys are made here and stay here. `begin` may be called again with the same invitation: it asks with the same keys.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from client.settings import Keys
from privacy.crypto.key_epoch import SealingKey
from privacy.errors import AuthenticityError, ConfigError, KeyFileError
from privacy.failures import reason
from privacy.run.enrolment import JoinRequest, open_welcome, write_request
from privacy.run.roster import open_roster
from privacy.storage import read_file, write_atomically
from transport.pki import (
    key_digest,
    key_pem,
    load_certificate,
    read_authority_key,
    read_certificate,
    read_signing_key,
    read_tls_key,
)

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.run.enrolment import Invitation, Welcome
    from privacy.run.roster import Roster

_DEFAULT = Keys()


def begin(folder: Path, invitation: Invitation) -> bytes:
    """Make a site's keys in `folder`/keys, and return its request to join.

    Raises:
        AuthenticityError: if the invitation has expired.
        ConfigError: if the folder is another site's, or trusts another authority.
        KeyFileError: if keys are there, but cannot be read.
    """
    invitation.check_valid()
    _check_same(folder, invitation)
    for path, make in (
        (folder / _DEFAULT.tls_key, _new_tls_key),
        (folder / _DEFAULT.signing_key, _new_signing_key),
        (folder / _DEFAULT.sealing_key, _new_sealing_key),
    ):
        if not path.exists():
            write_atomically(path, make())
    write_atomically(folder / _DEFAULT.authority, invitation.authority.encode())
    tls = read_tls_key(folder / _DEFAULT.tls_key)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, invitation.site)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(tls, hashes.SHA256())
    pem = request.public_bytes(Encoding.PEM).decode()
    return write_request(JoinRequest(invitation.site, pem, *_public_keys(folder, _DEFAULT)), invitation)


def _new_tls_key() -> bytes:
    return key_pem(ec.generate_private_key(ec.SECP256R1()))


def _new_signing_key() -> bytes:
    return key_pem(Ed25519PrivateKey.generate())


def _new_sealing_key() -> bytes:
    return SealingKey.generate().to_bytes()


def finish(folder: Path, data: bytes) -> Welcome:
    """Become a member: keep the certificate and the roster that a welcome holds.

    Raises:
        AuthenticityError: if the authority that the invitation named did not sign it, or it is for other keys.
        MalformedError: if it is not a welcome.
    """
    welcome = open_welcome(data, read_authority_key(folder / _DEFAULT.authority))
    certificate = load_certificate(welcome.certificate.encode(), "the certificate in this welcome")
    if certificate.public_key() != read_tls_key(folder / _DEFAULT.tls_key).public_key():
        msg = f"this welcome certifies another TLS key than the one in {folder}; join again with a new invitation"
        raise AuthenticityError(msg)
    take_roster(folder, _DEFAULT, welcome.site, welcome.roster_file)
    write_atomically(folder / _DEFAULT.tls_certificate, welcome.certificate.encode())
    return welcome


def take_roster(folder: Path, keys: Keys, site: str, data: bytes) -> Roster:
    """Keep a newer roster.

    Args:
        folder: the site's folder.
        keys: the files in it.
        site: the site's name.
        data: the signed roster.

    Raises:
        AuthenticityError: if the authority did not sign it, it has expired, is older than the site's, or lists other
            keys for this site.
    """
    authority, path = read_authority_key(folder / keys.authority), folder / keys.roster
    roster = open_roster(data, authority)
    member, tls = roster.member(site), read_tls_key(folder / keys.tls_key).public_key()
    if (member.signing_key, member.sealing_key) != _public_keys(folder, keys) or member.tls_key != key_digest(tls):
        msg = (
            f"roster {roster.version} lists keys for {site} that are not in {folder}; join again with a new invitation"
        )
        raise AuthenticityError(msg)
    if path.exists():
        before = open_roster(read_file(path), authority, expired=True)
        if before.version > roster.version:
            msg = (
                f"roster {roster.version} is older than the site's, {before.version}; ask the coordinator for the "
                "latest"
            )
            raise AuthenticityError(msg)
    write_atomically(path, data)
    return roster


def _public_keys(folder: Path, keys: Keys) -> tuple[str, str]:
    """Return the site's public keys for signing and sealing, as the roster lists them."""
    signing = read_signing_key(folder / keys.signing_key).public_key().public_bytes_raw().hex()
    try:
        return signing, SealingKey(read_file(folder / keys.sealing_key)).public
    except OSError as error:
        msg = f"{folder / keys.sealing_key}: {reason(error)}; restore this key from the site's backup"
        raise KeyFileError(msg) from error


def settings_text(invitation: Invitation) -> str:
    """Return a `site.toml` to fill in: whoever joins decides what the site takes part in."""
    return f"""\
# {invitation.site} in {invitation.consortium}. Fill in [data] and [policy]; docs/operations.md explains every key.

site = {json.dumps(invitation.site)}
server = {json.dumps(invitation.server)}

[data]
file = "records.csv"          # the site's records, relative to this folder
lineage = "{invitation.site}-people"   # the people that the records are about; all files about them share one budget
held_out = 0.2                # the fraction that is never trained on

[budget]                      # the most that may ever be spent on these people
epsilon = 3.0
delta = 1e-5

[policy]                      # what this site takes part in, whatever a run asks for
tasks = []                    # installed tasks, for example ["mypackage.lungs:Study"]; nothing else is trained
maximum_epsilon = 3.0         # of one run
minimum_noise_multiplier = 0.5
minimum_cohort = 3            # with fewer sites, nothing leaves
disclose = ["epsilon"]        # what else leaves; metrics, if listed here, leave without noise and are in no ε
"""


def _check_same(folder: Path, invitation: Invitation) -> None:
    """Check that a folder is empty, or belongs to the invited site.

    Raises:
        ConfigError: if it is another site's, or trusts another authority.
    """
    path = folder / _DEFAULT.authority
    if not path.exists():
        return
    invited = load_certificate(invitation.authority.encode(), "the authority's certificate in this invitation")
    if read_certificate(path) != invited:
        msg = f"{folder} belongs to another consortium; name another folder with --folder"
        raise ConfigError(msg)
