"""A hub that cannot listen says why, and one that stops ends the calls that wait."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from client.exchange import Exchange
from privacy.errors import CloisterError, ConfigError, UnreachableError
from server.hub.hub import Hub
from server.hub.listening import numbered
from server.hub.mailboxes import Mailboxes
from server.settings import read_consortium
from simulations.engine.federation import Federation
from tests.federations import authority_of, await_condition, certify, tls_of
from tests.ports import unused_port
from tests.server.callers import LIMIT, LONG, SITES, Server
from transport.address import read_address
from transport.channel import TlsFiles


def start_of(server: Server, address: str, tls: TlsFiles | None = None) -> str:
    """Return the message when a hub cannot start at an address."""
    hub = Hub(server.place.roster(), Mailboxes(set()), LIMIT)
    try:
        with pytest.raises(CloisterError) as caught:
            hub.start(address, tls or server.place.tls)
    finally:
        hub.stop()
    return str(caught.value)


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("no.such.host.invalid:9440", "the name cannot be resolved here"),
        ("192.0.2.1:9440", "this machine does not have that address"),  # reserved for documentation
        ("[2001:db8::1]:9440", "this machine does not have that address"),
    ],
)
def test_a_failure_to_listen_is_reported_with_the_reason(server: Server, address: str, cause: str) -> None:
    assert start_of(server, address).startswith(f"cannot listen on {address}: ")
    assert cause in start_of(server, address)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may take any port")
def test_a_port_that_this_user_may_not_take_is_named(server: Server) -> None:
    assert "may not use that port" in start_of(server, "localhost:1")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0", "[::]"])  # noqa: S104
@pytest.mark.parametrize("held", ["127.0.0.1", "::1"])
def test_a_port_that_another_program_holds_is_named(server: Server, host: str, held: str) -> None:
    family = socket.AF_INET6 if ":" in held else socket.AF_INET
    with socket.create_server((held, unused_port()), family=family) as other:
        address = f"{host}:{other.getsockname()[1]}"
        if (host, held) == ("127.0.0.1", "::1"):  # which is another
            hub = Hub(server.place.roster(), Mailboxes(set()), LIMIT)
            assert hub.start(address, server.place.tls) == other.getsockname()[1]
            hub.stop()
        else:
            assert "another program uses the port" in start_of(server, address)


@pytest.mark.parametrize("address", ["localhost", "localhost:99999", "localhost:-1", "::1:9440", "https://localhost:1"])
def test_the_server_does_not_listen_on_an_invalid_address(server: Server, address: str) -> None:
    assert f"'{address}' is not an address" in start_of(server, address)
    toml = server.federation.server / "consortium.toml"
    before = toml.read_text()
    toml.write_text(f'consortium = "demo"\nlisten = "{address}"\n')
    with pytest.raises(ConfigError, match=r"consortium\.toml:2(?s:.*)is not an address"):
        read_consortium(server.federation.server)
    toml.write_text(before)


def test_a_certificate_that_no_agent_could_accept_is_named_before_anything_is_served(
    server: Server, tmp_path: Path
) -> None:
    tls, authority = server.place.tls, authority_of(server.federation)
    site = tls_of(server.federation, "north")
    strangers = Federation.create(tmp_path / "strangers", SITES)
    locked = replace(tls, key=tmp_path / "locked.key")
    key = load_pem_private_key(tls.key.read_bytes(), password=None)
    locked.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass")))
    wrong = {
        "not a matching certificate and key": replace(tls, key=site.key),
        "has expired": certify(tmp_path / "old", authority, name="localhost", days=-1, server=True),
        "belongs to a site": replace(tls, certificate=site.certificate, key=site.key),
        "did not issue this certificate": replace(tls_of(strangers, "north"), authority=tls.authority),
        "locked.key": locked,
    }
    for message, files in wrong.items():
        assert message in start_of(server, "localhost:0", files)


def test_a_hub_that_stops_ends_the_calls_that_wait(server: Server) -> None:
    with Exchange(server.address, tls_of(server.federation, "north")) as exchange, ThreadPoolExecutor(1) as pool:
        pulled = pool.submit(exchange.pull)
        await_condition(lambda: server.mailboxes.online(0) == {server.node("north")})
        server.hub.stop(grace=0)
        with pytest.raises(UnreachableError, match=server.address):
            pulled.result(LONG)


def test_a_port_that_the_system_chooses_is_free_at_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, chosen, create = other.getsockname()[1], list[int](), socket.create_server

        def unlucky(place: tuple[str, int], **options: Any) -> socket.socket:  # noqa: ANN401 - as the original
            first: dict[str, Any] = {} if chosen else {"family": socket.AF_INET6}
            opened = create(place if chosen else ("::1", taken), **{**options, **first})
            chosen.append(opened.getsockname()[1])
            return opened

        monkeypatch.setattr(socket, "create_server", unlucky)
        found = numbered(read_address("localhost:0", listening=True))
    assert chosen[0] == taken
    assert found.port not in {0, taken}
