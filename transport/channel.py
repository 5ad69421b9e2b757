"""Set up gRPC for both ends: mutual TLS, small frames, keep-alive, and a probe that explains failures.

gRPC reports a wrong certificate, a wrong name, a dead host and a proxy that refuses alike as "unavailable". `probe`
first makes the same TLS connection with Python's own ssl, and says within five seconds which of them it is.
"""

from __future__ import annotations

import ssl
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
import grpc.experimental

from privacy.errors import AuthenticityError, CloisterError, KeyFileError, UnreachableError
from privacy.failures import reason
from privacy.storage import read_file
from privacy.untrusted_text import quoted
from transport.address import read_address
from transport.dialling import cause, dial
from transport.framing import FRAME_BYTES
from transport.pki import check_server_certificate, read_certificate
from transport.presented import issuer_remark
from transport.tls_pair import readable_pair

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transport.proxies import Proxy

SERVICE = "cloister.v1.Exchange"
PROBE_SECONDS = 4.0
_ALPN = "h2"  # HTTP/2, in which gRPC speaks

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", FRAME_BYTES + (64 << 10)),
    ("grpc.max_send_message_length", FRAME_BYTES + (64 << 10)),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.bdp_probe", 0),  # otherwise each stream of a fast connection may buffer a whole unread body
    ("grpc.http2.lookahead_bytes", FRAME_BYTES),
    ("grpc.enable_retries", 0),  # the agent decides on retries, never the transport
    ("grpc.so_reuseport", 0),  # if another server holds the port, fail instead of sharing its calls
    ("grpc.enable_http_proxy", 0),  # a proxy is used as `open_channel` says, as `probe` does, and not as gRPC would
)

_DATES, _OTHER_NAMES = (9, 10), (62, 64)  # OpenSSL's numbers: X509_V_ERR_...


@dataclass(frozen=True)
class TlsFiles:
    """The files of one party's TLS identity."""

    authority: Path
    certificate: Path
    key: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Return authority, key and certificate, each as PEM.

        Raises:
            KeyFileError: if one is missing.
        """
        try:
            return read_file(self.authority), read_file(self.key), read_file(self.certificate)
        except OSError as error:
            msg = f"{error.filename}: {reason(error)}; restore the file, or correct its path in the settings"
            raise KeyFileError(msg) from error


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return the credentials of a server that accepts only clients certified by the authority.

    Raises:
        KeyFileError: if no agent could accept them; says which file is wrong, and why.
    """
    authority, key, certificate = files.read()
    _load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    check_server_certificate(files.certificate, files.authority)
    initial = grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authority)
    renewed: Any = _Renewed(files, certificate)  # grpc's types omit that it may return None
    return grpc.dynamic_ssl_server_credentials(initial, renewed, require_client_authentication=True)


class _Renewed:
    """Tells gRPC, for every new connection, whether the server's certificate was renewed."""

    def __init__(self, files: TlsFiles, certificate: bytes) -> None:
        self._files, self._certificate = files, certificate

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new identity; None if it is as before, or cannot be used."""
        try:
            authority, key, certificate = self._files.read()
            if certificate == self._certificate:
                return None
            _load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._files)
            check_server_certificate(self._files.certificate, self._files.authority)
        except (CloisterError, OSError):  # gRPC goes on with what it has
            return None
        self._certificate = certificate
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authority)


def joining_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the settings of a port that needs no certificate of its callers; they see if the server's has expired.

    Raises:
        KeyFileError: if the server's files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load_pair(context, files)
    return context


def authority_context(authority: bytes) -> ssl.SSLContext:
    """Return the settings of a caller that trusts one authority, given its certificate as DER.

    Raises:
        KeyFileError: if it is not a certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=authority)
    except ssl.SSLError as error:
        msg = "the authority's certificate is not readable; ask the coordinator for a new invitation"
        raise KeyFileError(msg) from error
    return context


def open_channel(address: str, files: TlsFiles, proxy: Proxy | None = None) -> grpc.Channel:
    """Open a channel to the server, as a site, through the proxy if one is given."""
    authority, key, certificate = files.read()
    server, target = read_address(address), read_address(address)
    options: tuple[tuple[str, str | int], ...] = (
        *OPTIONS,
        (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
    )
    if proxy:  # gRPC connects to the proxy and asks for a tunnel; inside it, the server must still show its own name
        target = proxy.address
        options += (
            ("grpc.http_connect_server", str(server)),
            *[("grpc.http_connect_headers", header) for header in proxy.headers],
            ("grpc.ssl_target_name_override", server.host),
            ("grpc.default_authority", str(server)),
        )
    return grpc.secure_channel(str(target), grpc.ssl_channel_credentials(authority, key, certificate), options=options)


def probe(address: str, files: TlsFiles, seconds: float = PROBE_SECONDS, proxy: Proxy | None = None) -> None:
    """Make one TLS connection to the server, through the proxy if one is given, to find out what is wrong with it.

    Raises:
        MalformedError: if the address is malformed.
        UnreachableError: if no Cloister server answers there, or only one whose certificate has expired, or the proxy
            refuses.
        AuthenticityError: if the server's certificate, or this site's, is not accepted.
        KeyFileError: if this site's own files cannot be used.
    """
    with _connected(address, _context(files), str(files.authority), seconds, proxy) as secured:
        if secured.selected_alpn_protocol() != _ALPN:
            msg = (
                f"{address} is not the port for agents, though its certificate is the server's; check address and port "
                "with the coordinator (`server` in site.toml)"
            )
            raise UnreachableError(msg)
        if not _welcomed(secured):
            raise AuthenticityError(_unwelcome(address, files))


@contextmanager
def _connected(
    address: str, context: ssl.SSLContext, authority: str, seconds: float, proxy: Proxy | None
) -> Iterator[ssl.SSLSocket]:
    """Connect, and name what prevents it; `authority` should have issued the certificate that arrives."""
    place, deadline, connected = read_address(address), time.monotonic() + seconds, False
    try:
        with dial(place, seconds, proxy) as plain:
            connected = True
            plain.settimeout(left(deadline))
            with context.wrap_socket(plain, server_hostname=place.host) as secured:
                secured.settimeout(left(deadline))
                yield secured
    except ssl.SSLCertVerificationError as error:
        what = unaccepted(address, authority, error)
        if error.verify_code in _DATES:
            raise UnreachableError(what) from error  # it will be renewed: worth another attempt
        issuer = "" if error.verify_code in _OTHER_NAMES else issuer_remark(place, left(deadline), proxy)
        raise AuthenticityError(what + issuer) from error
    except ssl.SSLError as error:  # also of a proxy that inspects TLS, and speaks no TLS 1.3
        what = not_ours(address, "a Cloister server", error)
        raise UnreachableError(what + issuer_remark(place, left(deadline), proxy)) from error
    except OSError as error:
        if connected:
            raise UnreachableError(not_ours(address, "a Cloister server", error)) from error
        msg = f"cannot reach the server at {address}: {cause(error)}"
        raise UnreachableError(msg) from error


def left(deadline: float) -> float:
    """Return the seconds that are left until a time of the monotonic clock, as a time-out that a socket takes."""
    return max(1e-3, deadline - time.monotonic())


def not_ours(address: str, service: str, error: OSError) -> str:
    """Return what answered instead of the TLS of `service`, as a sentence."""
    if isinstance(error, TimeoutError):
        what = "takes the connection and then says nothing: the server hangs, or"
    elif isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError) and "EOF" not in str(error):
        what = f"answers, but not with the TLS of {service} ({quoted(error.reason or str(error))}):"
    else:
        what = "takes the connection and closes it before TLS begins:"
    return (
        f"something at {address} {what} another service is behind this address, or a firewall that looks into "
        "connections; check address and port with the coordinator, and ask your network team what answers there"
    )


def _context(files: TlsFiles) -> ssl.SSLContext:
    authority, _, _ = files.read()
    try:
        context = ssl.create_default_context(cadata=authority.decode("ascii") or "-")  # "" would mean the system's
    except (ssl.SSLError, ValueError) as error:
        msg = f"{files.authority}: not a readable PEM certificate; ask the coordinator for it"
        raise KeyFileError(msg) from error
    _load_pair(context, files)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([_ALPN])
    return context


def _load_pair(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        with readable_pair(files.certificate, files.key) as (certificate, key, password):
            context.load_cert_chain(certificate, key, password=password)
    except ssl.SSLError as error:
        msg = f"{files.certificate} and {files.key} are not a matching certificate and key; restore them"
        raise KeyFileError(msg) from error


def unaccepted(address: str, authority: str, error: ssl.SSLCertVerificationError) -> str:
    """Return what is wrong with the server's certificate, which `authority` should have issued, as a sentence."""
    if error.verify_code in _OTHER_NAMES:
        return (
            f"{address} presents a certificate for another name ({error.verify_message}); use the name in the "
            "certificate, or ask the coordinator for a certificate with this name"
        )
    if error.verify_code in _DATES:
        return (
            f"{address} presents a certificate that is not valid now ({error.verify_message}); ask the coordinator "
            "for a new one, or set this machine's clock"
        )
    return (
        f"{address} presents a certificate that {authority} did not issue ({error.verify_message}); check "
        "address and port with the coordinator, and that both belong to the same consortium"
    )


def _welcomed(secured: ssl.SSLSocket) -> bool:
    """Wait for the server's first byte. In TLS 1.3, a refused client learns it only now: the connection is closed."""
    try:
        return bool(secured.recv(1))
    except (ssl.SSLError, ConnectionError):
        return False


def _unwelcome(address: str, files: TlsFiles) -> str:
    refused = f"{address} does not accept the certificate {files.certificate}"
    if (ends := read_certificate(files.certificate).not_valid_after_utc) < datetime.now(UTC):
        return f"{refused}: {expired(ends)}"
    return f"{refused}; ask the coordinator for a new one, and compare your clocks"


def expired(ends: datetime) -> str:
    """Return what to do about a site's certificate that has expired, as a sentence."""
    return (
        f"this site's certificate expired on {ends:%Y-%m-%d %H:%M} UTC; have the coordinator approve this site's "
        "request again (cloister roster approve), and take in the welcome (cloister join); or, if it is wrong, set "
        "this machine's clock"
    )
