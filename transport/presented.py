"""Who issued the certificate that arrives where a server should be: an inspecting proxy is recognised by it."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.x509.oid import NameOID

from privacy.errors import CloisterError
from privacy.untrusted_text import quoted
from transport.dialling import dial, left

if TYPE_CHECKING:
    from transport.address import Address
    from transport.proxies import Proxy


def certificate_at(server: Address, seconds: float, proxy: Proxy | None = None) -> x509.Certificate | None:
    """Return the certificate that a server presents, whoever issued it; None if none comes. Nothing is sent."""
    context, deadline = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), time.monotonic() + seconds  # of any version
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only to see who answers
    try:
        with dial(server, seconds, proxy) as plain:
            plain.settimeout(left(deadline))
            with context.wrap_socket(plain, server_hostname=server.host) as secured:
                return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
    except (CloisterError, OSError, ValueError):
        return None


def issuer(server: Address, seconds: float, proxy: Proxy | None = None) -> str:
    """Return who issued the certificate that arrives; empty if none does."""
    certificate = certificate_at(server, seconds, proxy)
    return issuers(certificate) if certificate else ""


def issuers(certificate: x509.Certificate) -> str:
    """Return the names of who issued a certificate."""
    names = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    names += certificate.issuer.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return ", ".join(quoted(str(name.value)) for name in names) or "nobody named"


def issuer_remark(server: Address, seconds: float, proxy: Proxy | None = None) -> str:
    """Return who issued the certificate that arrives, and what to do, as the end of a sentence; empty if none does."""
    if not (names := issuer(server, seconds, proxy)):
        return ""
    return (
        f"; the certificate that arrives was issued by {names}. If that is a proxy of your own network that inspects "
        f"TLS, have your network team exempt the server from that ({server}), or, if consortium.toml has [signature], "
        'set authentication = "signature" in [network] of site.toml (cloister join --authentication signature)'
    )
