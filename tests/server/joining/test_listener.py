"""What somebody without an invitation can do to the joining port."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from client.joining import ask, begin
from privacy.errors import UnreachableError
from privacy.run.invitation import Invitation
from server.coordinator import Coordinator
from server.founding import create_consortium
from server.joining.limits import A_MINUTE, AT_ONCE, AT_ONCE_FROM_ONE, Limits
from server.joining.listener import JoiningPort
from server.joining.requests import Requests
from server.settings import read_consortium
from transport.joining import Line, State, read_greeting, read_standing

SECONDS = 1.0  # that a connection may take where a test is about that


class Port:
    """A joining port, and ways to connect to it."""

    def __init__(self, coordinator: Coordinator, joining: JoiningPort, port: int) -> None:
        self.coordinator, self._joining, self.port = coordinator, joining, port

    @contextmanager
    def hasty(self) -> Iterator[None]:
        """Have connections that are made meanwhile end soon."""
        patient, self._joining._seconds = self._joining._seconds, SECONDS
        yield
        self._joining._seconds = patient

    def invite(self, site: str = "north") -> Invitation:
        return replace(self.coordinator.invite(site), joining_port=self.port)

    def plain(self) -> socket.socket:
        return socket.create_connection(("localhost", self.port), timeout=10)

    def line(self) -> Line:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return Line(context.wrap_socket(self.plain()), 10)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    coordinator = create_consortium(tmp_path, "lungs", "localhost", joining_port=9441, online=True)
    place = read_consortium(tmp_path / "server")
    joining = JoiningPort(Requests(place), place.tls)
    with ExitStack() as stack:
        stack.callback(joining.stop)
        yield Port(coordinator, joining, joining.start("localhost:0"))


def await_end(connection: socket.socket) -> None:
    """Return once the server has closed a connection; fail if it does not within the socket's time-out."""
    with connection, suppress(ConnectionError):
        while connection.recv(1 << 12):
            pass


def test_connections_that_say_nothing_keep_nobody_out_for_long(port: Port, tmp_path: Path) -> None:
    invitation = port.invite()
    with port.hasty():
        idle = [port.plain() for _ in range(AT_ONCE_FROM_ONE + 5)]
        with pytest.raises(UnreachableError):
            ask(tmp_path / "north", invitation)
        for connection in idle:
            await_end(connection)
    assert ask(tmp_path / "north", port.invite()) == 1


def test_a_proof_that_comes_byte_by_byte_ends_at_the_deadline(port: Port) -> None:
    with port.hasty(), port.line() as line:
        read_greeting(line)
        line.send(b"\0" * 31)
        with pytest.raises(UnreachableError):
            line.exactly(1)


def test_a_wrong_proof_learns_nothing_and_its_request_is_not_read(port: Port) -> None:
    port.invite()
    with port.line() as line:
        read_greeting(line)
        line.send(b"\0" * 32)
        assert read_standing(line).state is State.UNKNOWN
        with pytest.raises(UnreachableError):
            line.exactly(1)


def test_a_request_that_is_too_long_or_foreign_is_refused_and_changes_nothing(port: Port, tmp_path: Path) -> None:
    invitation, other = port.invite(), port.invite("south")
    foreign = begin(tmp_path / "south", other)
    for sent in (b"\xff\xff" + bytes(100), len(foreign).to_bytes(2, "big") + foreign, b"\0\x04none"):
        with port.line() as line:
            read_greeting(line)
            line.send(invitation.proof)
            assert read_standing(line).state is State.OPEN
            line.send(sent)
            with suppress(UnreachableError):
                assert line.exactly(1) == b"\x02"  # refused
    assert not (tmp_path / "server" / "requests").exists()
    assert ask(tmp_path / "north", invitation) == 1


def test_the_greeting_carries_the_authority(port: Port, tmp_path: Path) -> None:
    with port.line() as line:
        der = read_greeting(line)
    assert ssl.DER_cert_to_PEM_cert(der).encode() == (tmp_path / "server" / "authority.pem").read_bytes()


def test_connections_are_limited_by_address_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, now = Limits(), 1000.0
    monkeypatch.setattr("server.joining.limits.time.monotonic", lambda: now)
    assert [limits.admit("192.0.2.1") for _ in range(AT_ONCE_FROM_ONE + 1)] == [True] * AT_ONCE_FROM_ONE + [False]
    assert limits.admit("::ffff:192.0.2.2")
    limits.leave("192.0.2.2")
    assert [limits.admit(f"2001:db8::{number:x}") for number in range(5)].count(True) == AT_ONCE_FROM_ONE
    admitted = sum(limits.admit(f"198.51.100.{number}") for number in range(50))
    assert admitted == AT_ONCE - 2 * AT_ONCE_FROM_ONE


def test_an_address_may_connect_only_so_often_in_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, now = Limits(), 1000.0
    monkeypatch.setattr("server.joining.limits.time.monotonic", lambda: now)
    for _ in range(A_MINUTE):
        assert limits.admit("192.0.2.1")
        limits.leave("192.0.2.1")
    assert not limits.admit("192.0.2.1")
    now += 61
    assert limits.admit("192.0.2.1")
