"""`cloister check` names what a proxy or another clock does to a site, for causes that are made for real."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from client import line_checks
from privacy.errors import ConfigError
from server.hub import hub as hubs
from simulations.engine.federation import Federation
from tests.cloister.commands.test_check import SITES, check, serving, settle, text_of
from tests.transport.tunnels import TunnelProxy
from transport.framing import measurement_answer
from transport.pki import Authority, certificate_pem, key_pem

SERVER = "fed.example.test:9440"  # has no address here: only a proxy can reach it


@pytest.fixture(scope="module")
def distant(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A consortium whose server has a name that does not resolve here."""
    return Federation.create(tmp_path_factory.mktemp("distant") / "lungs", SITES, host="fed.example.test")


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation.create(tmp_path_factory.mktemp("near") / "lungs", SITES)


def through(federation: Federation, proxy: str, server: str = SERVER) -> Path:
    """Write the settings of a site that names a proxy."""
    place = settle(federation, server, tasks=())
    with (place / "site.toml").open("a", encoding="utf-8") as file:
        file.write(f'\n[network]\nproxy = "{proxy}"\n')
    return place


def test_a_proxy_that_opens_a_tunnel_is_named(distant: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOISTER_PROXY_USER", "north")
    monkeypatch.setenv("CLOISTER_PROXY_PASSWORD", "hunter2")
    with serving(distant) as here, TunnelProxy({SERVER: int(here.rpartition(":")[2])}, ("north", "hunter2")) as proxy:
        findings = check(through(distant, proxy.place))
    assert f"localhost:{proxy.port} (from the settings) opened a tunnel to {SERVER}" in text_of(findings, "proxy", "ok")
    assert [findings[name]["state"] for name in ("TLS", "line", "clock")] == ["ok"] * 3, findings
    assert not {"name", "port"} & set(findings)  # the proxy resolves and dials
    assert "hunter2" not in str(findings)


def test_a_proxy_that_wants_a_password_or_refuses_is_named(distant: Federation) -> None:
    with TunnelProxy(login=("north", "hunter2")) as proxy:
        text = text_of(check(through(distant, proxy.place)), "proxy", "failed")
    assert "asks for a user and a password (407); set CLOISTER_PROXY_USER and CLOISTER_PROXY_PASSWORD" in text
    with TunnelProxy(refusal="403 Forbidden") as proxy:
        findings = check(through(distant, proxy.place))
    assert "have your network team allow CONNECT to it" in text_of(findings, "proxy", "failed")
    assert "TLS" not in findings
    with socket.socket() as held:
        held.bind(("localhost", 0))
        findings = check(through(distant, f"localhost:{held.getsockname()[1]}"))
    assert "connection refused; check its name and port" in text_of(findings, "proxy", "failed")


@contextmanager
def inspecting(folder: Path, name: str) -> Iterator[int]:
    """End TLS with a certificate of one's own, as an inspecting proxy does; give the port."""
    inspector, key = Authority.create("Hospital Web Gateway"), ec.generate_private_key(ec.SECP256R1())
    certificate = certificate_pem(inspector.issue_server(name, key.public_key()))
    (folder / "proxy.pem").write_bytes(certificate + key_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "proxy.pem")
    with socket.create_server(("localhost", 0)) as listening:

        def loop() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with suppress(OSError), connection:
                        context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_a_proxy_that_opens_a_tunnel_but_inspects_tls_is_named(distant: Federation, tmp_path: Path) -> None:
    with inspecting(tmp_path, "fed.example.test") as port, TunnelProxy({SERVER: port}) as proxy:
        findings = check(through(distant, proxy.place))
    assert findings["proxy"]["state"] == "ok"
    text = text_of(findings, "TLS", "failed")
    assert "issued by “Hospital Web Gateway authority”" in text
    assert f"have it pass {SERVER} on untouched" in text


def test_a_password_in_the_settings_is_refused_with_its_line(distant: Federation) -> None:
    with pytest.raises(ConfigError, match=r"must hold no user and no password; set CLOISTER_PROXY_USER"):
        check(through(distant, "http://north:word@proxy:3128"))


def test_a_slow_line_and_a_server_that_cannot_measure_it_are_warnings(
    near: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(near) as server:
        place = settle(near, server, tasks=())
        with monkeypatch.context() as patch:
            patch.setattr(line_checks, "_SLOW", 1e9)
            assert "ask your network team whether" in text_of(check(place), "line", "warning")

        async def unknown(_: object, __: bytes, context: Any) -> None:  # noqa: ANN401 - gRPC's
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")  # as a server before this version

        monkeypatch.setattr(hubs.Hub, "_measure", unknown)
    with serving(near) as server:
        findings = check(settle(near, server, tasks=()))
    for name in ("line", "clock"):
        assert "install the same version of Cloister at both ends" in text_of(findings, name, "warning")


@pytest.mark.parametrize(("seconds", "state", "said"), [
    (600.0, "failed", "north's clock is 600 s behind the server's: it shows"),
    (-20.0, "warning", "ahead of the server's; a run whose round_deadline_seconds is below 4"),
])  # fmt: skip
def test_a_clock_that_is_off_is_reported(
    near: Federation, monkeypatch: pytest.MonkeyPatch, seconds: float, state: str, said: str
) -> None:
    monkeypatch.setattr(hubs, "measurement_answer", lambda request, clock: measurement_answer(request, clock + seconds))
    with serving(near) as server:
        findings = check(settle(near, server, tasks=()))
    assert said in text_of(findings, "clock", state)
