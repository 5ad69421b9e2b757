"""Sites that sign in, at a port where TLS does not show who calls."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import grpc
import pytest

from client import session
from client.exchange import Exchange
from privacy.errors import AuthenticityError, ProtocolError, UnreachableError
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.hub.ports import Port, Ports
from server.hub.sessions import Sessions
from server.hub.signing_in import signing_in
from server.settings import read_consortium
from simulations.engine.federation import Federation
from tests.federations import await_condition, tls_of
from tests.server.callers import LIMIT, LONG, SITES, UNDER_WAY, Caller, Server, refusal
from transport.channel import SERVICE, TlsFiles, credentials_without_clients
from transport.framing import FRAME_BYTES
from transport.pki import read_signing_key
from transport.sign_in import Signer, authorization, carrying, challenge_request

WITHIN = 5.0  # seconds


@pytest.fixture
def server(federation: Federation) -> Iterator[Server]:
    """A hub whose address is that of the port for sites that sign in."""
    place = read_consortium(federation.server)
    roster = place.roster()
    mailboxes = Mailboxes({member.node_id for member in roster.members})
    sessions = Sessions(place.tls, roster)

    def renewed(member: object, certificate: bytes) -> bytes:
        del member
        return certificate + b"renewed"

    hub = Hub(roster, mailboxes, LIMIT, b"", renewed, sessions)
    try:
        hub.start("localhost:0", place.tls, "localhost:0")
        yield Server(federation, place, mailboxes, hub, f"localhost:{hub.signature_port}")
    finally:
        hub.stop(grace=0)


def signer(federation: Federation, site: str) -> Signer:
    keys = federation.paths[site] / "keys"
    authority = keys / "authority.pem"
    return Signer(site, read_signing_key(keys / "signing.key"), authority, 1, authority)


def exchange(server: Server, site: str = "north") -> Exchange:
    return Exchange(server.address, tls_of(server.federation, site), None, signer(server.federation, site))


def sessions_of(server: Server) -> Sessions:
    sessions = server.hub._sessions
    assert sessions
    return sessions


def test_a_site_that_signed_in_gets_its_own_messages_and_answers_them(server: Server) -> None:
    server.mailboxes.put(server.node("north"), "m", (b"for north",))
    with exchange(server, "south") as south, exchange(server) as north:
        assert south.pull(0.0) is None
        assert bytes(north.pull() or b"") == b"for north"
        assert not south.push((b"forged",), "m")
        assert north.push((b"done",), "m")
        measured = north.measure()
        assert measured
        assert measured[0] == pytest.approx(time.time(), abs=60)
    assert server.mailboxes.take({"m"}, 0) == ("m", b"done")


def test_a_site_without_a_token_learns_what_to_set(server: Server) -> None:
    with Exchange(server.address, tls_of(server.federation, "north")) as north:
        calls = (north.pull, north.roster, north.renewed_certificate, north.measure, lambda: north.push((b"",), "m"))
        for call in calls:
            with pytest.raises(AuthenticityError, match=r'set authentication = "signature" in \[network\] of site'):
                call()


def test_nothing_of_a_stranger_is_parsed(server: Server) -> None:
    credentials = grpc.ssl_channel_credentials(tls_of(server.federation, "north").authority.read_bytes())
    stranger = Caller(server.address, credentials)
    pull = stranger._channel.unary_stream(f"/{SERVICE}/Pull", bytes, bytes)
    push = stranger._channel.stream_unary(f"/{SERVICE}/Push", bytes, bytes)
    tokens: tuple[tuple[tuple[str, str], ...], ...] = ((), authorization(bytes(32)), (("authorization", "nonsense"),))
    for metadata in tokens:
        codes = {
            refusal(lambda sent=metadata: list(pull(b"\xff" * 9, timeout=LONG, metadata=sent)))[0],  # type: ignore[misc]
            refusal(lambda sent=metadata: push(iter([b"\xff" * 9]), timeout=LONG, metadata=sent))[0],  # type: ignore[misc]
        }
        assert codes == {grpc.StatusCode.UNAUTHENTICATED if metadata else grpc.StatusCode.PERMISSION_DENIED}


def test_a_site_whose_token_was_lost_signs_in_again(server: Server) -> None:
    with exchange(server) as north:
        assert north.pull(0.0) is None
        sessions_of(server)._tokens.clear()  # as after a restart
        with pytest.raises(UnreachableError, match="does not know this site's token"):
            north.pull(0.0)
        assert north.pull(0.0) is None


def test_a_token_is_renewed_before_it_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with exchange(server) as north:
        north.pull(0.0)
        north.pull(0.0)
        assert len(sessions_of(server)._tokens) == 1
        ahead = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + 401)
        monkeypatch.setattr(session, "time", ahead)
        north.pull(0.0)
        north.pull(0.0)
    assert len(sessions_of(server)._tokens) == 2


def test_a_site_that_leaves_is_cut_within_seconds_while_it_waits_and_cannot_sign_in_again(server: Server) -> None:
    raised = list[Exception]()

    def wait() -> None:
        with exchange(server) as north:
            for _ in range(2):
                try:
                    north.pull(60.0)
                except (UnreachableError, AuthenticityError) as error:
                    raised.append(error)

    waiting = Thread(target=wait)
    waiting.start()
    await_condition(lambda: server.node("north") in server.mailboxes.online(0.0))
    roster = server.place.roster()
    start = time.monotonic()
    members = tuple(member for member in roster.members if member.site != "north")
    server.hub.admit(replace(roster, version=2, members=members))
    waiting.join(WITHIN)
    assert time.monotonic() - start < WITHIN
    assert "does not know this site's token" in str(raised[0])
    assert "roster 2 lists no site north with the key of this signature" in str(raised[1])
    with exchange(server, "south") as south:
        assert south.pull(0.0) is None


def test_a_certificate_is_renewed_only_for_its_owner(server: Server) -> None:
    own, other = (tls_of(server.federation, site) for site in SITES)
    with exchange(server) as north:
        assert north.renewed_certificate() == own.certificate.read_bytes() + b"renewed"
        north._tls = other
        with pytest.raises(ProtocolError, match="not the certificate of north"):
            north.renewed_certificate()


# --- Who the server is ----------------------------------------------------------------------------------------------


@contextmanager
def proving(server: Server, proof: TlsFiles) -> Iterator[Server]:
    """A port that proves itself with other files, behind TLS that a site accepts."""
    ports, sessions = Ports("impostor"), Sessions(proof, server.place.roster())
    service = grpc.method_handlers_generic_handler(SERVICE, signing_in(sessions))
    try:
        (port,) = ports.start(Port("localhost:0", credentials_without_clients(server.place.tls), [service]))
        yield replace(server, address=f"localhost:{port}")
    finally:
        ports.stop(grace=0)


def test_a_server_of_another_consortium_or_a_member_that_poses_as_one_is_refused(
    server: Server, tmp_path: Path
) -> None:
    strangers = read_consortium(Federation.create(tmp_path, SITES).server).tls
    own = server.place.tls
    for proof, why in (
        (strangers, "its certificate is not by this consortium's authority"),
        (tls_of(server.federation, "south"), "its certificate is a member's, not the server's"),
        (TlsFiles(own.authority, own.certificate, strangers.key), "the signature of this challenge is not valid"),
        (TlsFiles(strangers.authority, own.certificate, own.key), "the signature of this challenge is not valid"),
    ):
        with (
            proving(server, proof) as impostor,
            exchange(impostor) as north,
            pytest.raises(AuthenticityError, match=f"does not prove who it is: {why}"),
        ):
            north.pull(0.0)


def test_a_site_whose_clock_is_off_learns_it_before_it_signs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    late = SimpleNamespace(time=lambda: time.time() - 600, monotonic=time.monotonic)
    monkeypatch.setattr(session, "time", late)
    with exchange(server) as north, pytest.raises(UnreachableError, match=r"north's clock is (599|600|601) s behind"):
        north.pull(0.0)
    assert not sessions_of(server)._challenges.kept


# --- Strangers ------------------------------------------------------------------------------------------------------


def test_no_message_of_a_stranger_is_read(server: Server) -> None:
    credentials = grpc.ssl_channel_credentials(tls_of(server.federation, "north").authority.read_bytes())
    sent = list[int]()

    def endless() -> Iterator[bytes]:
        for number in range(UNDER_WAY):
            sent.append(number)
            yield bytes(FRAME_BYTES)

    with grpc.secure_channel(server.address, credentials) as channel:
        for name in ("Challenge", "SignIn", "Pull", "Push", "Roster", "Renew", "Measure"):
            call = channel.stream_stream(f"/{SERVICE}/{name}", bytes, bytes)
            refusal(lambda call=call: list(call(endless(), timeout=LONG)))  # type: ignore[misc]
    assert len(sent) < UNDER_WAY


def test_what_a_stranger_sends_has_one_form(server: Server) -> None:
    credentials = grpc.ssl_channel_credentials(tls_of(server.federation, "north").authority.read_bytes())
    genuine = challenge_request(bytes(32), "nobody")
    with grpc.secure_channel(server.address, credentials) as channel:
        challenge = channel.unary_unary(f"/{SERVICE}/Challenge", bytes, bytes)
        for data in (b"", genuine[:-6], bytes(5000), challenge_request(bytes(32), "NORTH"), genuine + b"\n"):
            code, text = refusal(lambda sent=data: challenge(b"", timeout=LONG, metadata=carrying(sent)))  # type: ignore[misc]
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            assert "install the same version" in text
        twice = carrying(genuine) * 2
        assert refusal(lambda: challenge(b"", timeout=LONG, metadata=twice))[0] == grpc.StatusCode.INVALID_ARGUMENT
        assert challenge(b"", timeout=LONG, metadata=carrying(genuine))


def test_a_port_without_sessions_lets_nobody_sign_in(federation: Federation) -> None:
    place = read_consortium(federation.server)
    hub = Hub(place.roster(), Mailboxes(set()), LIMIT)
    try:
        port = hub.start("localhost:0", place.tls)
        files = tls_of(federation, "north")
        authority, key, certificate = files.read()
        north = Caller(f"localhost:{port}", grpc.ssl_channel_credentials(authority, key, certificate))
        call = north._channel.unary_unary(f"/{SERVICE}/Challenge", bytes, bytes)
        assert refusal(lambda: call(b"", timeout=LONG))[0] == grpc.StatusCode.UNIMPLEMENTED
        assert hub.signature_port is None
    finally:
        hub.stop(grace=0)


def test_a_body_over_the_limit_is_refused_there_too(server: Server) -> None:
    server.mailboxes.put(server.node("north"), "m", ())
    with exchange(server) as north:
        with pytest.raises(ProtocolError, match="exceeds the limit"):
            north.push((bytes(LIMIT + 1),), "m")
        assert north.push((b"done",), "m")
