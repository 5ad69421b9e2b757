"""`cloister check` where TLS is ended on the way, and which file has to allow that sites sign in."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from privacy.errors import ConfigError
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.hub.sessions import Sessions
from server.settings import read_consortium
from simulations.engine.federation import Federation
from tests.cloister.commands.test_check import SITES, check, settle, text_of
from transport.pki import Authority, certificate_pem, key_pem

SIGNATURE = '\n[network]\nauthentication = "signature"\nca_bundle = "keys/authority.pem"\n'


@pytest.fixture(scope="module")
def lungs(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation.create(tmp_path_factory.mktemp("ended") / "lungs", SITES)


@pytest.fixture
def server(lungs: Federation) -> Iterator[tuple[str, str]]:
    """A hub: its address for certificates, and that for signatures."""
    place = read_consortium(lungs.server)
    roster = place.roster()
    hub = Hub(roster, Mailboxes({member.node_id for member in roster.members}), 1 << 20,
              sessions=Sessions(place.tls, roster))  # fmt: skip
    with ExitStack() as stack:
        stack.callback(hub.stop, 0)
        port = hub.start("localhost:0", place.tls, "localhost:0")
        yield f"localhost:{port}", f"localhost:{hub.signature_port}"


def site(federation: Federation, server: str, network: str) -> Path:
    place = settle(federation, server, tasks=())
    with (place / "site.toml").open("a", encoding="utf-8") as file:
        file.write(network)
    return place


def test_a_site_that_signs_in_passes_and_both_proofs_are_named(lungs: Federation, server: tuple[str, str]) -> None:
    findings = check(site(lungs, server[1], SIGNATURE))
    assert "with a certificate that “demo authority” issued; this site signs in behind it" in text_of(
        findings, "TLS", "ok"
    )
    assert text_of(findings, "signature", "ok") == "behind it, server and site accept each other's signatures"
    assert {findings[name]["state"] for name in ("line", "clock")} == {"ok"}


def test_a_site_that_dials_the_other_port_learns_which_to_dial(lungs: Federation, server: tuple[str, str]) -> None:
    text = text_of(check(site(lungs, server[0], SIGNATURE)), "TLS", "failed")
    assert "dial the `listen` of [signature] in consortium.toml, or set authentication" in text
    text = text_of(check(site(lungs, server[1], "")), "line", "failed")
    assert 'sites sign in at this port: set authentication = "signature" in [network] of site.toml' in text


def test_an_inspecting_proxy_that_does_not_speak_tls_1_3_is_named_too(lungs: Federation, tmp_path: Path) -> None:
    with ending(tmp_path) as port:
        text = text_of(check(site(lungs, f"localhost:{port}", "")), "TLS", "failed")
        assert "issued by “Hospital Web Gateway authority”" in text
        assert 'if consortium.toml has [signature], set authentication = "signature"' in text
        own = SIGNATURE.replace("keys/authority.pem", str(tmp_path / "gateway.pem"))
        assert "does not speak HTTP/2" in text_of(check(site(lungs, f"localhost:{port}", own)), "TLS", "failed")


def test_a_bundle_for_tls_and_a_bundle_that_is_none_are_refused(lungs: Federation, server: tuple[str, str]) -> None:
    bundle = 'ca_bundle = "keys/authority.pem"'
    with pytest.raises(ConfigError, match='ca_bundle is for authentication = "signature"'):
        check(site(lungs, server[1], f"\n[network]\n{bundle}\n"))
    for other, why in (("keys/tls.key", "not a PEM file of certificates"), ("keys/none.pem", "no such file")):
        network = SIGNATURE.replace("keys/authority.pem", other)
        assert why in text_of(check(site(lungs, server[1], network)), "TLS", "failed")


def test_the_systems_certificates_are_used_without_a_bundle(
    lungs: Federation, server: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = '\n[network]\nauthentication = "signature"\n'
    monkeypatch.setenv("SSL_CERT_FILE", str(lungs.paths["north"] / "keys" / "authority.pem"))
    assert text_of(check(site(lungs, server[1], network)), "signature", "ok")


def test_a_server_says_where_sites_may_sign_in(lungs: Federation) -> None:
    settings = lungs.server / "consortium.toml"
    kept = settings.read_text(encoding="utf-8")
    try:
        settings.write_text(f'{kept}\n[signature]\nlisten = "localhost:0"\n', encoding="utf-8")
        text = text_of(check("--server", lungs.server), "signature", "ok")
    finally:
        settings.write_text(kept, encoding="utf-8")
    assert text == "localhost:0 is free, for sites whose TLS is ended on the way"


@contextmanager
def ending(folder: Path) -> Iterator[int]:
    """End TLS 1.2, without HTTP/2; give the port."""
    gateway, key = Authority.create("Hospital Web Gateway"), ec.generate_private_key(ec.SECP256R1())
    (folder / "gateway.pem").write_bytes(certificate_pem(gateway.certificate))
    (folder / "front.pem").write_bytes(
        certificate_pem(gateway.issue_server("localhost", key.public_key())) + key_pem(key)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(folder / "front.pem")
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
