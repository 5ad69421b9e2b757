"""A site's part in joining a consortium: make its keys, ask, and become a member.

The keys are made here and stay here. `begin` may be called again with the same invitation: it asks with the same keys.
"""

from __future__ import annotations

import json
import ssl
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
from client.settings import Keys
from privacy.crypto.key_epoch import SealingKey
from privacy.errors import AuthenticityError, ConfigError, KeyFileError
from privacy.failures import reason
from privacy.run.enrolment import JoinRequest, authority_in, open_welcome, write_request
from privacy.run.invitation import read_invitation
from privacy.run.roster import open_roster
from privacy.storage import read_file, write_atomically
from privacy.untrusted_text import quoted
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
    from privacy.crypto.signing import PublicKey
    from privacy.run.invitation import Invitation
    from privacy.run.roster import Roster

_DEFAULT = Keys()
_INVITATION = Path("keys/invitation")  # while the site waits for its welcome
_JOINED = Path("keys/joined")  # the number of the invitation with which it joined


def membership(folder: Path, invitation: Invitation) -> Roster | None:
    """Return the roster of a site that has joined with this very invitation; None if it has not.

    Raises:
        ConfigError: if the folder is another site's, or trusts another authority.
    """
    _check_same(folder, invitation)
    joined = folder / _JOINED
    if not joined.exists() or read_file(joined) != invitation.number.encode():
        return None
    return open_roster(
        read_file(folder / _DEFAULT.roster), read_authority_key(folder / _DEFAULT.authority), expired=True
    )


def own_key(folder: Path) -> str | None:
    """Return the public key with which this site signs, in hex; None before it has one."""
    path = folder / _DEFAULT.signing_key
    return read_signing_key(path).public_key().public_bytes_raw().hex() if path.exists() else None


def begin(folder: Path, invitation: Invitation) -> bytes:
    """Make a site's keys in `folder`/keys, unless they are there; return its request to join.

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
    write_atomically(folder / _INVITATION, invitation.to_text().encode())
    tls = read_tls_key(folder / _DEFAULT.tls_key)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, invitation.site)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(tls, hashes.SHA256())
    pem = request.public_bytes(Encoding.PEM).decode()
    return write_request(JoinRequest(invitation.site, pem, *_public_keys(folder, _DEFAULT)), invitation)


def prepare(folder: Path, invitation: Invitation, proxy: str | None = None) -> bytes:
    """Make a site's keys, and a `site.toml` to fill in, unless they are there; return its request to join.

    Raises:
        CloisterError: as `begin` does.
    """
    request = begin(folder, invitation)
    if not (folder / "site.toml").exists():
        write_atomically(folder / "site.toml", _settings_text(invitation, proxy).encode())
    return request


def _new_tls_key() -> bytes:
    return key_pem(ec.generate_private_key(ec.SECP256R1()))


def _new_signing_key() -> bytes:
    return key_pem(Ed25519PrivateKey.generate())


def _new_sealing_key() -> bytes:
    return SealingKey.generate().to_bytes()


def ask(folder: Path, invitation: Invitation, proxy: str | None = None) -> int | None:
    """Ask the running server; return the version of the roster that now lists the site, or None if it has to wait.

    Nothing is written before the server has accepted the invitation.

    Args:
        folder: the site's.
        invitation: the site's.
        proxy: as in `[network]` of a site's settings.

    Raises:
        AuthenticityError: if the server is another's, or the invitation has expired or was used by other keys.
        ConfigError: if the folder is another site's, or trusts another authority.
        UnreachableError: if no joining port answers.
    """
    invitation.check_valid()
    _check_same(folder, invitation)
    with Asking(invitation, proxy) as asking:
        if asking.used_by not in {None, own_key(folder)}:
            msg = (
                f"the invitation of {invitation.site} was used before, by other keys than those in {folder}; if this "
                "site did that in another folder, name it with --folder; otherwise tell the coordinator at once"
            )
            raise AuthenticityError(msg)
        answer = asking.ask(prepare(folder, invitation, proxy))
    if answer.outcome is Outcome.REFUSED:
        msg = (
            f"the server refused the request of {invitation.site}: {quoted(answer.content.decode('utf-8', 'replace'))}"
        )
        raise AuthenticityError(msg)
    return finish(folder, answer.content)[1] if answer.outcome is Outcome.WELCOME else None


def finish(folder: Path, data: bytes) -> tuple[str, int]:
    """Become a member: keep the certificates and the roster of a welcome; return the site and the roster's version.

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
    certificate = load_certificate(welcome.certificate.encode(), "the certificate in this welcome")
    if certificate.public_key() != read_tls_key(folder / _DEFAULT.tls_key).public_key():
        msg = f"this welcome certifies another TLS key than the one in {folder}; join again with a new invitation"
        raise AuthenticityError(msg)
    roster = _check_roster(folder, _DEFAULT, welcome.site, welcome.roster_file, authority)
    write_atomically(folder / _DEFAULT.authority, pem)
    write_atomically(folder / _DEFAULT.tls_certificate, welcome.certificate.encode())
    write_atomically(folder / _DEFAULT.roster, welcome.roster_file)
    if invited := _invitation(folder):
        write_atomically(folder / _JOINED, invited.number.encode())
        (folder / _INVITATION).unlink()
    return welcome.site, roster.version


def _trusted(folder: Path) -> str | None:
    """Return the SHA-256 of the certificate of the authority that a site trusts; None if it trusts none."""
    path = folder / _DEFAULT.authority
    if path.exists():
        return read_certificate(path).fingerprint(hashes.SHA256()).hex()
    return invited.authority if (invited := _invitation(folder)) else None


def _invitation(folder: Path) -> Invitation | None:
    """Return the invitation with which a site asked to join and has no welcome yet."""
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
        AuthenticityError: if the authority did not sign it, it has expired, is older than the site's, or lists other
            keys for this site.
    """
    path, authority = folder / keys.roster, read_authority_key(folder / keys.authority)
    roster = _check_roster(folder, keys, site, data, authority)
    if path.exists() and (kept := read_file(path)) != data:  # sums of rounds under it may still come
        write_atomically(older_roster(path, open_roster(kept, authority, expired=True).version), kept)
    write_atomically(path, data)
    return roster


def older_roster(path: Path, version: int) -> Path:
    """Return where a site keeps an older version of its roster."""
    return path.with_name(f"{path.name}-{version}")


def _check_roster(folder: Path, keys: Keys, site: str, data: bytes, authority: PublicKey) -> Roster:
    path, roster = folder / keys.roster, open_roster(data, authority)
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
        if before.consortium != roster.consortium:
            msg = f"this roster is of {roster.consortium!a}, and the site is in {before.consortium!a}; ask for its own"
            raise AuthenticityError(msg)
    return roster


def _public_keys(folder: Path, keys: Keys) -> tuple[str, str]:
    """Return the site's public keys for signing and sealing, as the roster lists them."""
    signing = read_signing_key(folder / keys.signing_key).public_key().public_bytes_raw().hex()
    try:
        return signing, SealingKey(read_file(folder / keys.sealing_key)).public
    except OSError as error:
        msg = f"{folder / keys.sealing_key}: {reason(error)}; restore this key from the site's backup"
        raise KeyFileError(msg) from error


def _settings_text(invitation: Invitation, proxy: str | None) -> str:
    """Return a `site.toml` to fill in: whoever joins decides what the site takes part in."""
    network = f"\n[network]\nproxy = {json.dumps(proxy)}\n" if proxy else ""
    return f"""\
# {invitation.site}. Fill in [data], and [policy] to take part in runs; docs/operations.md explains every key.

site = {json.dumps(invitation.site)}
server = {json.dumps(invitation.server)}

[data]
file = "records.csv"          # the site's records, relative to this folder
lineage = "{invitation.site}-people"   # the people that the records are about; all files about them share one budget
held_out = 0.2                # the fraction that is never trained on

[budget]                      # the most that may ever be spent on these people: for a run of ε 3, a few rounds of it
epsilon = 4.0                 # that are repeated after a fault, and a survey of ε 1; not for a second such run
delta = 1e-5                  # below 1 over the number of these people

[policy]                      # what this site takes part in, whatever a run asks for
tasks = []                    # installed, or in a file beside this one: ["lungs:Study"]; nothing else is trained
maximum_epsilon = 3.5         # of one run with its repeated rounds; each of 12 to 20 rounds adds about 0.1 to an ε of 3
minimum_noise_multiplier = 0.5
approval = false              # true: only runs approved here with `cloister approve`
minimum_cohort = 3            # with fewer sites, nothing leaves
disclose = ["epsilon"]        # what else leaves; metrics, if listed here, leave without noise and are in no ε
{network}"""


def _check_same(folder: Path, invitation: Invitation) -> None:
    """Check that a folder is empty, or belongs to the invited site.

    Raises:
        ConfigError: if it is another site's, or trusts another authority.
    """
    if (_trusted(folder) or invitation.authority) != invitation.authority:
        msg = f"{folder} belongs to another consortium; name another folder with --folder"
        raise ConfigError(msg)
    if (invited := _invitation(folder)) and invited.site != invitation.site:
        msg = f"{folder} is the folder of another site; name another folder with --folder"
        raise ConfigError(msg)
