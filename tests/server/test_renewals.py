"""Certificates are renewed while agents are connected: at once, or after the coordinator's approval."""

import logging
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509

from client.exchange import Exchange
from client.settings import read_site
from client.site import Site
from client.upkeep import Upkeep
from privacy.errors import AuthenticityError, UnreachableError
from privacy.storage import write_atomically
from server.coordinator import Coordinator
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.joining.renewals import Renewals
from server.settings import read_consortium
from simulations.engine.federation import Federation
from tests.aged import age
from tests.federations import FederationMaker, tls_of
from tests.server.callers import LIMIT
from transport.pki import certificate_pem, check_renewed, read_certificate, renewal_is_due

JOINING = '\n[joining]\nlisten = "localhost:0"\n{}authority = "../coordinator"\n'


class Renewing:
    """A federation whose certificates are 70 days old, and a hub that renews them."""

    def __init__(self, federation: Federation, stack: ExitStack, *, online: bool) -> None:
        self.federation, self.coordinator = federation, Coordinator(federation.folder / "coordinator")
        age(federation, federation.server, days=70)
        for site, path in federation.paths.items():
            age(federation, path / "keys", days=70, site=site)
        settings = federation.server / "consortium.toml"
        settings.write_text(settings.read_text(encoding="utf-8") + JOINING.format("" if online else "# "))
        place = read_consortium(federation.server)
        self.renewals, roster = Renewals(place), place.roster()
        hub = Hub(
            roster, Mailboxes({member.node_id for member in roster.members}), LIMIT, b"", self.renewals.certificate
        )
        stack.callback(hub.stop, 0)
        self.port = hub.start("localhost:0", place.tls)

    def certificate(self, site: str) -> x509.Certificate:
        return read_certificate(tls_of(self.federation, site).certificate)

    def exchange(self, site: str) -> Exchange:
        return Exchange(f"localhost:{self.port}", tls_of(self.federation, site))

    def look(self, site: str) -> None:
        with self.exchange(site) as exchange:
            Upkeep(Site(read_site(self.federation.paths[site]))).look(exchange)

    def shown_by_server(self) -> x509.Certificate:
        """The certificate that a new connection meets."""
        return x509.load_pem_x509_certificate(ssl.get_server_certificate(("localhost", self.port)).encode())


@pytest.fixture
def renewing(make_federation: FederationMaker) -> Iterator[Callable[..., Renewing]]:
    with ExitStack() as stack:
        yield lambda *, online: Renewing(make_federation(), stack, online=online)


def test_a_site_gets_a_new_certificate_for_its_key_at_two_thirds_of_its_life(renewing: Callable[..., Renewing]) -> None:
    federation = renewing(online=True)
    old = federation.certificate("north")
    assert renewal_is_due(old)
    federation.look("north")
    new = federation.certificate("north")
    check_renewed(new, old, read_certificate(tls_of(federation.federation, "north").authority))
    assert not renewal_is_due(new)
    with federation.exchange("north") as exchange:  # with the new one
        assert exchange.pull(0.0) is None
        assert exchange.renewed_certificate() is None


def test_where_the_authority_is_elsewhere_the_coordinator_approves(
    renewing: Callable[..., Renewing], caplog: pytest.LogCaptureFixture
) -> None:
    federation = renewing(online=False)
    old = federation.certificate("north")
    with caplog.at_level(logging.INFO):
        federation.look("north")
    assert federation.certificate("north") == old
    assert "the certificate of north has to be renewed by the coordinator: cloister renew" in caplog.text
    assert federation.coordinator.recertify_waiting() == ["north"]
    assert federation.coordinator.recertify_waiting() == []
    federation.look("north")
    assert not renewal_is_due(federation.certificate("north"))


def test_a_removed_sites_request_does_not_keep_the_others_from_renewal(renewing: Callable[..., Renewing]) -> None:
    federation = renewing(online=False)
    for site in ("north", "south"):
        federation.look(site)
    waiting = federation.federation.server / "renewals"
    write_atomically(waiting / "east.pem", b"damaged")
    federation.coordinator.remove("north")
    assert federation.coordinator.recertify_waiting() == ["south"]
    assert not list(waiting.glob("*.pem"))
    assert not (waiting / "answers" / "north.pem").exists()
    federation.look("south")
    assert not renewal_is_due(federation.certificate("south"))


def test_a_request_for_an_earlier_key_gives_way_to_one_for_the_present_key(renewing: Callable[..., Renewing]) -> None:
    federation = renewing(online=False)
    path = federation.federation.server / "renewals" / "north.pem"
    write_atomically(path, certificate_pem(federation.certificate("south")))  # as of a key that was lost
    federation.look("north")
    assert path.read_bytes() == certificate_pem(federation.certificate("north"))


def test_a_certificate_that_the_server_makes_up_is_not_taken(
    renewing: Callable[..., Renewing], caplog: pytest.LogCaptureFixture
) -> None:
    federation = renewing(online=False)
    old = federation.certificate("north")
    answers = federation.federation.server / "renewals" / "answers"
    for other in (certificate_pem(federation.certificate("south")), certificate_pem(old), b"none"):
        write_atomically(answers / "north.pem", other)
        federation.look("north")
        assert federation.certificate("north") == old
    for made_up in (certificate_pem(federation.certificate("south")), b"none"):
        with pytest.MonkeyPatch.context() as patch, federation.exchange("north") as exchange:
            patch.setattr(exchange, "renewed_certificate", lambda data=made_up: data)
            Upkeep(Site(read_site(federation.federation.paths["north"]))).look(exchange)
        assert "kept the certificate, as the server's cannot be taken" in caplog.text
        assert federation.certificate("north") == old


def test_only_a_members_own_key_is_certified(renewing: Callable[..., Renewing]) -> None:
    federation = renewing(online=True)
    with pytest.raises(AuthenticityError, match="lists no such key for north"):
        federation.coordinator.recertify("north", federation.certificate("south"))
    federation.coordinator.remove("north")
    with federation.exchange("north") as exchange, pytest.raises(UnreachableError, match="lists no such key for north"):
        exchange.renewed_certificate()


def test_the_server_shows_its_new_certificate_without_a_restart(renewing: Callable[..., Renewing]) -> None:
    federation = renewing(online=True)
    before = federation.shown_by_server()
    assert renewal_is_due(before)
    federation.renewals.look()
    after = federation.shown_by_server()
    assert not renewal_is_due(after)
    assert after.public_key() == before.public_key()
    (federation.federation.server / "tls.pem").write_bytes(b"damaged")
    assert federation.shown_by_server() == after


def test_what_expires_within_two_weeks_is_announced(
    renewing: Callable[..., Renewing], caplog: pytest.LogCaptureFixture
) -> None:
    federation = renewing(online=False)
    age(federation.federation, federation.federation.server, days=80)
    age(federation.federation, Path(federation.federation.paths["north"]) / "keys", days=80, site="north")
    federation.renewals.look()
    assert "the server's certificate is valid until" in caplog.text
    federation.look("north")
    assert "for 10 more days; ask the coordinator for a new one" in caplog.text
