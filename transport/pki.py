"""Issue and check a consortium's certificates: one authority, one server, many sites.

All keys are P-256 (gRPC refuses Ed25519 certificates). A server's certificate is valid only for serving and a site's
only for calling, so no member can pose as the server. Both are valid for 90 days, the authority's for ten years.
"""

from __future__ import annotations

import ipaddress
import warnings
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from privacy.clock import now
from privacy.errors import AuthenticityError, KeyFileError
from privacy.failures import reason
from privacy.run.roster import open_roster
from privacy.storage import read_document, read_file
from transport.address import read_host

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

    from privacy.crypto.signing import PrivateKey
    from privacy.run.roster import Roster

_LEAF_DAYS = 90
_AUTHORITY_DAYS = 3650
_UNREADABLE = (
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,
)
_SKEW = timedelta(minutes=10)  # how far other machines' clocks may lag


@dataclass(frozen=True)
class Authority:
    """The consortium's certificate authority. Its key stays with the coordinator, offline."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, consortium: str) -> Self:
        """Create a new authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{consortium} authority")])
        certificate = (
            _builder(name, name, key.public_key(), _AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    def issue_server(self, host: str, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        """Certify the server under the name or address that agents dial.

        Raises:
            MalformedError: if `host` is neither.
        """
        return self._issue("cloister server", _host(host), key, ExtendedKeyUsageOID.SERVER_AUTH)

    def issue_site(self, site: str, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        """Certify a site."""
        name = x509.UniformResourceIdentifier(f"cloister:site:{site}")
        return self._issue(site, name, key, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(self, common: str, alternative: x509.GeneralName, key: ec.EllipticCurvePublicKey,
               use: x509.ObjectIdentifier) -> x509.Certificate:  # fmt: skip
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
        return (
            _builder(name, self.certificate.subject, key, _LEAF_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    begins = now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins - _SKEW)
        .not_valid_after(begins + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    host = read_host(host)
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def public_key_digest(certificate: x509.Certificate) -> str:
    """Return the SHA-256, in hex, of a certificate's public key, by which the roster lists a site's TLS identity."""
    return key_digest(certificate.public_key())


def key_digest(key: CertificatePublicKeyTypes) -> str:
    """Return the SHA-256, in hex, of a public key as a certificate holds it (SubjectPublicKeyInfo)."""
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def key_pem(key: PrivateKey) -> bytes:
    """Return a private key as PEM (PKCS 8)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_certificate(path: Path) -> x509.Certificate:
    """Read a certificate from a PEM file.

    Raises:
        KeyFileError: if there is none.
    """
    try:
        data = read_file(path)
    except OSError as error:
        msg = f"{path}: {reason(error)}; restore this certificate, or ask the coordinator for a new one"
        raise KeyFileError(msg) from error
    return load_certificate(data, str(path))


@lru_cache(maxsize=16)
def load_certificate(data: bytes, place: str) -> x509.Certificate:
    """Read a certificate from PEM; `place` says where it stands, for the error. The cache is for bytes seen again.

    Raises:
        KeyFileError: if it is none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(data)
        certificate.public_key()  # raises if it is unusable
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        msg = f"{place}: not a readable PEM certificate; restore it, or ask the coordinator for a new one"
        raise KeyFileError(msg) from error
    return certificate


def authority_fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate in groups of four digits, for people who compare it."""
    return grouped(certificate.fingerprint(hashes.SHA256()).hex())


def grouped(digits: str) -> str:
    """Return hexadecimal digits in groups of four, for people who compare them."""
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def renewal_is_due(certificate: x509.Certificate) -> bool:
    """Return whether two thirds of a certificate's life are over."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now() >= begins + (ends - begins) * 2 / 3


def check_renewed(new: x509.Certificate, old: x509.Certificate, authority: x509.Certificate) -> None:
    """Check that a certificate may take the place of another: the same key and name, a later end, valid now.

    Raises:
        AuthenticityError: if it may not.
    """
    kinds = x509.SubjectAlternativeName, x509.ExtendedKeyUsage
    try:
        new.verify_directly_issued_by(authority)
        same = new.public_key() == old.public_key() and all(
            new.extensions.get_extension_for_class(kind) == old.extensions.get_extension_for_class(kind)
            for kind in kinds
        )
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        same = False
    if not same or not new.not_valid_before_utc <= now() < new.not_valid_after_utc > old.not_valid_after_utc:
        msg = "a new certificate is not by the authority, not for the same key and name, or not valid for longer"
        raise AuthenticityError(msg)


def check_server_certificate(path: Path, authority: Path) -> None:
    """Check that agents that trust an authority can accept a server's certificate under some name.

    Raises:
        KeyFileError: if they cannot; says why.
    """
    certificate, issuer = read_certificate(path), read_certificate(authority)
    for file, signed in ((authority, issuer), (path, certificate)):
        if not signed.not_valid_before_utc <= now() < signed.not_valid_after_utc:
            begins, ends = (
                f"{time:%Y-%m-%d %H:%M}" for time in (signed.not_valid_before_utc, signed.not_valid_after_utc)
            )
            msg = (
                f"{file}: this certificate is valid from {begins} to {ends} UTC, not now: it has expired, or this "
                "machine's clock is wrong; ask the coordinator for a new one, or set the clock"
            )
            raise KeyFileError(msg)
    try:
        certificate.verify_directly_issued_by(issuer)
        uses = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, TypeError, InvalidSignature) as error:
        msg = f"{path}: {authority} did not issue this certificate; use the server's own"
        raise KeyFileError(msg) from error
    except x509.ExtensionNotFound as error:
        msg = f"{path}: the certificate states neither its purpose nor its name; use the server's own"
        raise KeyFileError(msg) from error
    if ExtendedKeyUsageOID.SERVER_AUTH not in uses:
        msg = (
            f"{path}: this certificate belongs to a site and is not valid for a server; use the server's own, with "
            "its key"
        )
        raise KeyFileError(msg)


def open_server_certificate(data: bytes, authority: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Check a server's certificate, DER, that came over the network, and return its key.

    Raises:
        AuthenticityError: if the authority did not issue it for a server, or it is not valid now.
    """
    try:
        with warnings.catch_warnings(action="error", category=CryptographyDeprecationWarning):  # of malformed numbers
            certificate = x509.load_der_x509_certificate(data)
        certificate.verify_directly_issued_by(authority)
        key, uses = certificate.public_key(), certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, *_UNREADABLE) as error:
        msg = "its certificate is not by this consortium's authority"
        raise AuthenticityError(msg) from error
    if ExtendedKeyUsageOID.SERVER_AUTH not in uses.value or not isinstance(key, ec.EllipticCurvePublicKey):
        msg = "its certificate is a member's, not the server's"
        raise AuthenticityError(msg)
    if not certificate.not_valid_before_utc <= now() < certificate.not_valid_after_utc:
        msg = "its certificate is not valid now: have it renewed, or set this machine's clock"
        raise AuthenticityError(msg)
    return key


def read_authority_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read the authority's public key from its certificate, which a site trusts because it is on its own disk.

    Raises:
        KeyFileError: if the file holds no P-256 certificate.
    """
    return authority_key(read_certificate(path), str(path))


def authority_key(certificate: x509.Certificate, place: str) -> ec.EllipticCurvePublicKey:
    """Return the public key in the authority's certificate; `place` says where it stands, for the error.

    Raises:
        KeyFileError: if it is not a P-256 key.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        msg = f"{place}: the authority's certificate has no P-256 key; ask the coordinator for the right file"
        raise KeyFileError(msg)
    return key


def read_roster(path: Path, authority: Path) -> Roster:
    """Read the consortium's roster.

    Args:
        path: the roster's file.
        authority: the certificate of the authority that signed it.

    Raises:
        KeyFileError: if a file is missing, or the roster is malformed, expired, or another authority's.
    """
    key = read_authority_key(authority)
    return read_document(
        path, lambda data: open_roster(data, key), "check its path, or ask the coordinator for the roster"
    )


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 private key from a PEM file.

    Raises:
        KeyFileError: if there is none.
    """
    key = _read_private_key(path)
    if not isinstance(key, Ed25519PrivateKey):
        msg = f"{path}: this is not an Ed25519 key; name the site's signing key"
        raise KeyFileError(msg)
    return key


def read_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a P-256 private key from a PEM file.

    Raises:
        KeyFileError: if there is none.
    """
    key = _read_private_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        msg = f"{path}: this is not a P-256 key; restore it from its owner's backup"
        raise KeyFileError(msg)
    return key


def read_authority(key: Path, certificate: Path) -> Authority:
    """Read the authority's key and certificate.

    Raises:
        KeyFileError: if one is missing, or they do not belong together.
    """
    authority = Authority(read_tls_key(key), read_certificate(certificate))
    if authority.key.public_key() != authority.certificate.public_key():
        msg = f"{key} and {certificate} do not belong together; restore both from one backup"
        raise KeyFileError(msg)
    return authority


def _read_private_key(path: Path) -> object:
    try:
        return load_pem_private_key(read_file(path), password=None)
    except OSError as error:
        msg = f"{path}: {reason(error)}; restore this key from its owner's backup"
        raise KeyFileError(msg) from error
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        msg = f"{path}: not a readable private key, or one with a passphrase; restore it from its owner's backup"
        raise KeyFileError(msg) from error
