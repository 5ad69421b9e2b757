"""Set up gRPC for both ends: mutual TLS, small frames, keep-alive, and a probe that explains failures.

gRPC reports a wrong certificate, a wrong name, a dead host and a proxy that refuses alike as "unavailable". `probe`
first makes the same TLS connection with Python's own ssl, and says within five seconds which of them it is.
"""

from __future__ import annotations

import os
import ssl
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.experimental
from cryptography import x509

from privacy.clock import now
from privacy.errors import AuthenticityError, CloisterError, KeyFileError, UnreachableError
from privacy.failures import reason
from privacy.storage import read_file
from privacy.untrusted_text import quoted
from transport.address import read_address
from transport.dialling import cause, dial, left
from transport.framing import FRAME_BYTES
from transport.pki import check_server_certificate, read_certificate
from transport.presented import issuer, issuer_remark
from transport.tls_pair import readable_pair

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from transport.address import Address
    from transport.proxies import Proxy

SERVICE, JOINING = "cloister.v1.Exchange", "cloister.v1.Joining"
PROBE_SECONDS = 4.0
_ALPN = "h2"  # HTTP/2, in which gRPC speaks

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", FRAME_BYTES + (64 << 10)),
    ("grpc.max_send_message_length", FRAME_BYTES + (64 << 10)),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 25_000),  # a full minute if not given; an answer may queue behind an update
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.bdp_probe", 0),  # otherwise each stream of a fast connection may buffer a whole unread body
    ("grpc.http2.lookahead_bytes", FRAME_BYTES),
    ("grpc.enable_retries", 0),  # the agent decides on retries, never the transport
    ("grpc.so_reuseport", 0),  # if another server holds the port, fail instead of sharing its calls
    ("grpc.enable_http_proxy", 0),  # a proxy is used as `open_channel` says, as `probe` does, and not as gRPC would
)

_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_SAME = "check address and port with the coordinator, and that both belong to the same consortium"
_ISSUER = "let ca_bundle in [network] of site.toml name a PEM file with the certificate of its issuer"
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
    return _server_credentials(files, clients=True)


def credentials_without_clients(files: TlsFiles) -> grpc.ServerCredentials:
    """Return the credentials of a server that asks its callers for no certificate.

    Raises:
        KeyFileError: as `server_credentials` does.
    """
    return _server_credentials(files, clients=False)


def _server_credentials(files: TlsFiles, *, clients: bool) -> grpc.ServerCredentials:
    authority, key, certificate = files.read()
    _load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    check_server_certificate(files.certificate, files.authority)
    initial = grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authority)
    renewed: Any = _Renewed(files, certificate)  # grpc's types omit that it may return None
    return grpc.dynamic_ssl_server_credentials(initial, renewed, require_client_authentication=clients)


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
    return _open(address, grpc.ssl_channel_credentials(authority, key, certificate), proxy)


def open_ended_channel(address: str, ca_bundle: Path, proxy: Proxy | None = None) -> grpc.Channel:
    """Open a channel to what ends TLS before the server. It tells neither end who the other is.

    Raises:
        KeyFileError: if the bundle cannot be read.
    """
    return _open(address, grpc.ssl_channel_credentials(_bundle(ca_bundle)), proxy)


def _open(address: str, credentials: grpc.ChannelCredentials, proxy: Proxy | None) -> grpc.Channel:
    server = target = read_address(address)
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
    return grpc.secure_channel(str(target), credentials, options=options)


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


def probe_ended(
    address: str, ca_bundle: Path, seconds: float = PROBE_SECONDS, proxy: Proxy | None = None
) -> x509.Certificate:
    """Make one TLS connection to what ends TLS before the server; return the certificate that arrives.

    Raises:
        MalformedError: if the address is malformed.
        UnreachableError: if nothing answers there, or not with HTTP/2, or only to sites with a certificate.
        AuthenticityError: if nobody in the bundle issued the certificate that arrives.
        KeyFileError: if the bundle cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=_bundle(ca_bundle).decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        msg = f"{ca_bundle}: not a PEM file of certificates; correct ca_bundle in [network] of site.toml"
        raise KeyFileError(msg) from error
    context.set_alpn_protocols([_ALPN])
    with _connected(address, context, str(ca_bundle), seconds, proxy, _ISSUER) as secured:
        if secured.selected_alpn_protocol() != _ALPN:
            msg = f"what ends TLS at {address} does not speak HTTP/2, which gRPC needs; have it enabled there"
            raise UnreachableError(msg)
        if not _welcomed(secured):
            msg = (
                f"{address} closes the connection: if it is the server's port for certificates, dial the `listen` of "
                '[signature] in consortium.toml, or set authentication = "tls" in [network] of site.toml'
            )
            raise UnreachableError(msg)
        return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")


def system_bundle() -> Path:
    """Return the file with the certificates that this system trusts.

    Raises:
        KeyFileError: if it is not in any usual place.
    """
    paths = ssl.get_default_verify_paths()
    named = (os.environ.get(paths.openssl_cafile_env), paths.cafile, *_BUNDLES)
    found = next((Path(path) for path in named if path and Path(path).is_file()), None)
    if found is None:
        msg = "this system's CA bundle is not in any usual place; name one: ca_bundle in [network] of site.toml"
        raise KeyFileError(msg)
    return found


def _bundle(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        msg = f"{path}: {reason(error)}; correct ca_bundle in [network] of site.toml"
        raise KeyFileError(msg) from error


@contextmanager
def _connected(
    address: str, context: ssl.SSLContext, authority: str, seconds: float, proxy: Proxy | None, advice: str = _SAME
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
        what = unaccepted(address, authority, error, advice)
        if error.verify_code in _DATES:
            raise UnreachableError(what) from error  # it will be renewed: worth another attempt
        remark = "" if error.verify_code in _OTHER_NAMES else _remark(place, deadline, proxy, advice)
        raise AuthenticityError(what + remark) from error
    except ssl.SSLError as error:  # also of a proxy that inspects TLS, and speaks no TLS 1.3
        what = not_ours(address, "a Cloister server", error)
        raise UnreachableError(what + _remark(place, deadline, proxy, advice)) from error
    except OSError as error:
        if connected:
            raise UnreachableError(not_ours(address, "a Cloister server", error)) from error
        msg = f"cannot reach the server at {address}: {cause(error)}"
        raise UnreachableError(msg) from error


def _remark(place: Address, deadline: float, proxy: Proxy | None, advice: str) -> str:
    if advice == _SAME:
        return issuer_remark(place, left(deadline), proxy)
    names = issuer(place, left(deadline), proxy)
    return f"; it was issued by {names}" if names else ""


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


def unaccepted(address: str, authority: str, error: ssl.SSLCertVerificationError, advice: str = _SAME) -> str:
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
    return f"{address} presents a certificate that {authority} did not issue ({error.verify_message}); {advice}"


def _welcomed(secured: ssl.SSLSocket) -> bool:
    """Wait for the server's first byte. In TLS 1.3, a refused client learns it only now: the connection is closed."""
    try:
        return bool(secured.recv(1))
    except (ssl.SSLError, ConnectionError):
        return False


def _unwelcome(address: str, files: TlsFiles) -> str:
    refused = f"{address} does not accept the certificate {files.certificate}"
    if (ends := read_certificate(files.certificate).not_valid_after_utc) < now():
        return f"{refused}: {expired(ends)}"
    return f"{refused}; ask the coordinator for a new one, and compare your clocks"


def expired(ends: datetime) -> str:
    """Return what to do about a site's certificate that has expired, as a sentence."""
    return (
        f"this site's certificate expired on {ends:%Y-%m-%d %H:%M} UTC; have the coordinator approve this site's "
        "request again (cloister roster approve), and take in the welcome (cloister join); or, if it is wrong, set "
        "this machine's clock"
    )
