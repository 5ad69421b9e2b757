"""Make and check receipts: the server's reason why a site's update is not in a sum, signed with its TLS key.

The site keeps a receipt as evidence for later questions to the server. It travels beside the sum and cannot spoil it:
an unsigned receipt counts as an unproven claim, a malformed one as none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from flwr.app import ConfigRecord

from privacy.clock import now
from privacy.crypto.signing import sign, verify
from privacy.errors import AuthenticityError, KeyFileError
from transport.pki import read_certificate

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.app import RecordDict

    from transport.channel import TlsFiles

KIND = "receipt"
_UNUSABLE = (  # errors that an unusable certificate may raise
    ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.ExtensionNotFound, x509.DuplicateExtension,
)  # fmt: skip


@dataclass(frozen=True)
class Receipt:
    """A reason, and its signature; unsigned if certificate and signature are empty."""

    reason: str
    certificate: bytes = b""  # the server's, PEM
    signature: bytes = b""


def make_receipt(tls: TlsFiles, plan: str, site: str, reason: str) -> Receipt:
    """Sign why a site's update is not in a plan's sum; without a key, as under Flower's engines, leave it unsigned."""
    if not tls.key.exists():
        return Receipt(reason)
    _, pem, certificate = tls.read()
    key = load_pem_private_key(pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - the server serves with it
    return Receipt(reason, certificate, sign(key, KIND, _statement(plan, site, reason)))


def is_signed(receipt: Receipt, plan: str, site: str, authority: Path) -> bool:
    """Whether a receipt was signed with a currently valid server certificate of this authority."""
    try:
        certificate, issuer = x509.load_pem_x509_certificate(receipt.certificate), read_certificate(authority)
        certificate.verify_directly_issued_by(issuer)
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        key = certificate.public_key()
        current = certificate.not_valid_before_utc <= now() <= certificate.not_valid_after_utc
        if not current or ExtendedKeyUsageOID.SERVER_AUTH not in uses or not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        verify(key, KIND, _statement(plan, site, receipt.reason), receipt.signature)
    except (*_UNUSABLE, InvalidSignature, AuthenticityError, KeyFileError):
        return False
    return True


def put_receipt(content: RecordDict, receipt: Receipt) -> RecordDict:
    """Add a receipt to a message."""
    content["receipt"] = ConfigRecord(asdict(receipt))
    return content


def find_receipt(content: RecordDict) -> Receipt | None:
    """Return the receipt in a message; None if it is missing or malformed."""
    record = content.get("receipt")
    if not isinstance(record, ConfigRecord):
        return None
    reason, certificate, signature = (record.get(name) for name in ("reason", "certificate", "signature"))
    if isinstance(reason, str) and isinstance(certificate, bytes) and isinstance(signature, bytes):
        return Receipt(reason, certificate, signature)
    return None


def _statement(plan: str, site: str, reason: str) -> bytes:
    return f"{plan} {site} {reason}".encode()
