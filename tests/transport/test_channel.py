"""Any fault between an agent and the server is reported in plain words, with the address, within five seconds."""

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from client.exchange import Exchange
from client.settings import read_site
from privacy.errors import AuthenticityError, CloisterError, KeyFileError, UnreachableError
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.settings import read_consortium
from simulations.engine.federation import Federation
from tests.federations import TERMS, authority_of, certify, tls_of
from tests.ports import unused_port
from transport.address import Address, read_host
from transport.channel import OPTIONS, PROBE_SECONDS, TlsFiles, probe

SITES = ("north", "south")
WITHIN = 5.0  # seconds


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation.create(tmp_path_factory.mktemp("federation"), SITES)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Another consortium."""
    return Federation.create(tmp_path_factory.mktemp("strangers"), SITES)


@pytest.fixture(scope="module")
def address(federation: Federation) -> Iterator[str]:
    with _hub(federation, read_consortium(federation.server).tls) as server:
        yield server


@contextmanager
def _hub(federation: Federation, tls: TlsFiles) -> Iterator[str]:
    roster = read_consortium(federation.server).roster()
    hub = Hub(roster, Mailboxes({member.node_id for member in roster.members}), 1 << 20)
    try:
        yield f"localhost:{hub.start('localhost:0', tls)}"
    finally:
        hub.stop(grace=0)


def complaint(address: str, files: TlsFiles, kind: type[CloisterError], seconds: float = PROBE_SECONDS) -> str:
    """What `probe` says, which must be soon."""
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        probe(address, files, seconds)
    assert time.monotonic() - started < WITHIN
    assert address in str(caught.value)
    return str(caught.value)


@contextmanager
def _listening(serve: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server that takes one connection and does with it what the test says."""
    with socket.create_server(("localhost", 0)) as listener:

        def take() -> None:
            with suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(WITHIN)
                    serve(connection)

        thread = Thread(target=take)
        thread.start()
        try:
            yield f"localhost:{listener.getsockname()[1]}"
        finally:
            thread.join(2 * WITHIN)
    assert not thread.is_alive()


@contextmanager
def _impostor(files: TlsFiles) -> Iterator[str]:
    """A server that shows whatever certificate it has, which a hub would not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    with _listening(lambda connection: context.wrap_socket(connection, server_side=True).recv(1)) as address:
        yield address


def test_a_server_and_a_site_of_one_consortium_accept_each_other(federation: Federation, address: str) -> None:
    for site in SITES:
        probe(address, tls_of(federation, site))


def test_a_server_of_another_consortium_is_refused(strangers: Federation, address: str) -> None:
    message = complaint(address, tls_of(strangers, "north"), AuthenticityError)
    assert "did not issue" in message
    assert "same consortium" in message


def test_a_site_that_the_server_refuses_gets_the_reason(
    federation: Federation, strangers: Federation, address: str
) -> None:
    files = replace(tls_of(strangers, "north"), authority=tls_of(federation, "north").authority)
    message = complaint(address, files, AuthenticityError)
    assert f"does not accept the certificate {files.certificate}" in message


def test_a_site_whose_certificate_has_expired_gets_the_reason(
    federation: Federation, address: str, tmp_path: Path
) -> None:
    files = certify(tmp_path / "old", authority_of(federation), name="north", days=-1, server=False)
    said = complaint(address, files, AuthenticityError)
    assert "does not accept the certificate" in said
    assert "this site's certificate expired on" in said


def test_a_server_whose_certificate_has_expired_is_not_reached_until_it_is_renewed(
    federation: Federation, tmp_path: Path
) -> None:
    files = certify(tmp_path / "old", authority_of(federation), name="localhost", days=-1, server=True)
    with _impostor(files) as address:
        assert "expired" in complaint(address, tls_of(federation, "north"), UnreachableError)


def _refusal(exchange: Exchange) -> str:
    with pytest.raises(UnreachableError) as caught:
        exchange.pull()
    return str(caught.value)


def test_a_member_cannot_pose_as_the_server(federation: Federation, tmp_path: Path) -> None:
    files = certify(tmp_path / "member", authority_of(federation), name="localhost", days=1, server=False)
    with _impostor(files) as address:
        assert "purpose" in complaint(address, tls_of(federation, "north"), AuthenticityError)
    with _impostor(files) as address, Exchange(address, tls_of(federation, "north")) as exchange:
        assert "lost the server" in _refusal(exchange)


def test_a_server_under_another_name_is_refused(federation: Federation) -> None:
    with _hub(federation, read_consortium(federation.server).tls) as address:
        elsewhere = address.replace("localhost", "127.0.0.1")
        assert "IP address mismatch" in complaint(elsewhere, tls_of(federation, "north"), AuthenticityError)


def test_a_port_where_nobody_listens_is_named(federation: Federation) -> None:
    address = f"localhost:{unused_port()}"
    assert "connection refused" in complaint(address, tls_of(federation, "north"), UnreachableError)


def test_a_host_that_has_no_address_is_named(federation: Federation) -> None:
    message = complaint("fed.invalid:9440", tls_of(federation, "north"), UnreachableError)
    assert "cannot reach the server" in message


@pytest.mark.parametrize(
    "serve",
    [
        lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"),
        lambda connection: (connection.recv(1), connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
        lambda connection: connection.recv(10_000),  # and close, as a proxy whose server is gone
    ],
    ids=["ssh", "http", "closes"],
)
def test_a_server_that_speaks_no_tls_is_unreachable_rather_than_refusing(
    federation: Federation, serve: Callable[[socket.socket], object]
) -> None:
    with _listening(serve) as address:
        complaint(address, tls_of(federation, "north"), UnreachableError)


def test_an_agent_does_not_wait_for_a_silent_server(federation: Federation) -> None:
    with _listening(lambda connection: connection.recv(10_000) and connection.recv(1)) as address:
        assert "says nothing" in complaint(address, tls_of(federation, "north"), UnreachableError, seconds=0.3)
    assert PROBE_SECONDS < WITHIN


def test_a_server_that_only_speaks_old_tls_is_named(federation: Federation) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    tls = read_consortium(federation.server).tls
    context.load_cert_chain(tls.certificate, tls.key)
    with _listening(lambda connection: context.wrap_socket(connection, server_side=True)) as address:
        assert "not with the TLS" in complaint(address, tls_of(federation, "north"), UnreachableError)


@pytest.mark.parametrize("missing", ["authority", "certificate", "key"])
def test_a_site_that_lacks_a_file_gets_its_name(federation: Federation, missing: str, tmp_path: Path) -> None:
    path = tmp_path / "gone.pem"
    with pytest.raises(KeyFileError, match=f"{path}.*restore the file"):
        probe("localhost:1", replace(tls_of(federation, "north"), **{missing: path}))


@pytest.mark.parametrize("damaged", ["authority", "certificate", "key"])
def test_a_site_with_a_damaged_file_gets_its_name(federation: Federation, damaged: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n")
    with pytest.raises(KeyFileError, match=str(path)):
        probe("localhost:1", replace(tls_of(federation, "north"), **{damaged: path}))


def test_a_certificate_with_another_sites_key_is_refused_before_dialling(federation: Federation) -> None:
    files = replace(tls_of(federation, "north"), key=tls_of(federation, "south").key)
    with pytest.raises(KeyFileError, match="not a matching certificate and key"):
        probe("localhost:1", files)


def test_a_key_under_a_passphrase_is_refused_instead_of_asked_for(federation: Federation, tmp_path: Path) -> None:
    files = replace(tls_of(federation, "north"), key=tmp_path / "tls.key")
    key = load_pem_private_key(tls_of(federation, "north").key.read_bytes(), password=None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass"))
    files.key.write_bytes(locked)
    with pytest.raises(KeyFileError, match=r"tls\.key"):
        probe("localhost:1", files)


def test_an_idle_connection_is_kept_alive_below_a_minute_and_the_server_permits_it() -> None:
    both_ends = dict(OPTIONS)
    assert both_ends["grpc.keepalive_time_ms"] <= 30_000
    assert both_ends["grpc.keepalive_time_ms"] + both_ends["grpc.http2.ping_timeout_ms"] <= 50_000  # of silence
    assert both_ends["grpc.keepalive_permit_without_calls"] == 1
    assert both_ends["grpc.http2.max_pings_without_data"] == 0  # any number
    assert both_ends["grpc.http2.min_ping_interval_without_data_ms"] < both_ends["grpc.keepalive_time_ms"]


# --- Proxies, see test_proxies.py -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["https_proxy", "http_proxy", "grpc_proxy", "HTTPS_PROXY"])
def test_grpc_uses_no_proxy_of_its_own_accord(
    federation: Federation, address: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    with socket.create_server(("localhost", 0)) as gateway:
        gateway.settimeout(0)
        monkeypatch.setenv(name, f"http://localhost:{gateway.getsockname()[1]}")
        probe(address, tls_of(federation, "north"))
        with Exchange(address, tls_of(federation, "north")) as exchange:
            assert exchange.pull(wait=0) is None
        with pytest.raises(BlockingIOError):
            gateway.accept()


# --- Addresses other than names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["::1", "[::1]", "127.0.0.1", "LOCALHOST"])
def test_a_server_at_any_kind_of_address_is_listened_on_and_dialled(host: str, tmp_path: Path) -> None:
    federation = Federation.create(tmp_path, SITES, host=host)
    place = read_consortium(federation.server)
    roster = place.roster()
    hub = Hub(roster, Mailboxes({member.node_id for member in roster.members}), 1 << 20)
    try:
        port = hub.start(place.settings.listen, place.tls)
        federation.write_settings("north", str(Address(read_host(host), port)), TERMS)
        server = read_site(federation.paths["north"]).settings.server
        probe(server, tls_of(federation, "north"))
        with Exchange(server, tls_of(federation, "north")) as exchange:
            assert exchange.pull(wait=0) is None
    finally:
        hub.stop(grace=0)
