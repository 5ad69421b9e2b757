"""What can go wrong between a site and its server, each made for real on this machine."""

import ctypes
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from client.joining import ask
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.joining.listener import JoiningPort
from server.joining.requests import Requests
from tests.cloister.commands.consortium_at_work import GUEST, SITE, Case
from tests.federations import certify
from tests.ports import unused_port
from tests.transport.tunnels import InspectingProxy, TunnelProxy
from transport import dialling, framing, joining
from transport.pki import Authority, certificate_pem, key_pem, read_authority

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


# --- The server's name and address ----------------------------------------------------------------------------------


def unknown_name(case: Case) -> None:
    case.host = "no-such-host.invalid"


@contextmanager
def silent_name_server(case: Case) -> Iterator[None]:
    case.host, ended = "fed.example.test", threading.Event()

    def wait(*_: object, **__: object) -> None:  # as the system's resolver, which waits longer than anybody likes
        ended.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    case.monkeypatch.setattr(socket, "getaddrinfo", wait)
    case.monkeypatch.setattr(dialling, "_NAME_SECONDS", 0.3)
    yield
    ended.set()


@contextmanager
def one_dead_address(case: Case) -> Iterator[None]:
    with silence("127.0.0.2", case.port):
        addresses = [(socket.AF_INET, 1, 6, "", (host, case.port)) for host in ("127.0.0.2", "127.0.0.1")]
        case.monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        yield


@contextmanager
def no_ipv6(case: Case) -> Iterator[None]:
    """Run in a network of one's own, which has no interface that is up."""
    case.host, system = "2001:db8::7", ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        if system.unshare(_NEW_NETWORK):
            pytest.skip("this user cannot leave the network")
        try:
            yield
        finally:
            assert system.setns(before.fileno(), _NEW_NETWORK) == 0


def closed_port(case: Case) -> None:
    case.everything_at(unused_port())


@contextmanager
def silence(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """An address that does not answer: its queue is full, which drops packets as a firewall does; gives its port."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind((host, port))
        full.listen(0)
        for _ in range(4):
            attempt = stack.enter_context(socket.socket())
            attempt.setblocking(False)  # noqa: FBT003 - socket knows no name for it
            attempt.connect_ex(full.getsockname())
        yield full.getsockname()[1]


@contextmanager
def filtered_port(case: Case) -> Iterator[None]:
    case.host = "127.0.0.1"
    with silence() as port:
        case.everything_at(port)
        yield


def agents_dial_the_joining_port(case: Case) -> None:
    case.port, case.joining_port = case.joining_port, case.port


@contextmanager
def large_packets_dropped(case: Case) -> Iterator[None]:
    """Pass on a connection until something arrives that is as large as a packet never is in a handshake."""
    with listening(lambda caller: _pass_short_pieces(caller, case.lungs.port)) as port:
        case.port = port
        yield


def _pass_short_pieces(caller: socket.socket, server: int) -> None:
    with socket.create_connection(("localhost", server)) as target:
        back = threading.Thread(target=_copy, args=(target, caller, 1 << 20), daemon=True)
        back.start()
        _copy(caller, target, 8 << 10)
        back.join(10)


def _copy(source: socket.socket, target: socket.socket, most: int) -> None:
    """Copy until a piece is longer than that; then read on, and pass nothing on."""
    with suppress(OSError):
        while piece := source.recv(1 << 20):
            most = most if len(piece) < most else 0
            if most:
                target.sendall(piece)
    for side in (source, target):
        with suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


# --- What answers there ---------------------------------------------------------------------------------------------


@contextmanager
def listening(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """Accept connections, answer each in a thread, and give the port."""
    with socket.create_server(("localhost", 0)) as listener:

        def serve(connection: socket.socket) -> None:
            with suppress(OSError), connection:
                answer(connection)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def answered_by(answer: Callable[[socket.socket], object]) -> Callable[[Case], object]:
    """Have a service answer at the server's ports."""

    @contextmanager
    def answered(case: Case) -> Iterator[None]:
        with listening(answer) as port:
            case.everything_at(port)
            yield

    return answered


def ssh(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
    connection.recv(1)


def says_nothing(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def closes(connection: socket.socket) -> None:
    connection.recv(1)


@contextmanager
def web_server(case: Case) -> Iterator[None]:
    with _web() as server:
        case.everything_at(server.server_port)
        yield


@contextmanager
def web_server_with_tls(case: Case) -> Iterator[None]:
    key, authority = ec.generate_private_key(ec.SECP256R1()), Authority.create("Example Web Trust")
    file = case.folder / "web.pem"
    file.write_bytes(certificate_pem(authority.issue_server("localhost", key.public_key())) + key_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with _web() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        case.everything_at(server.server_port)
        yield


class _Page(BaseHTTPRequestHandler):
    timeout = 60

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - its name is the base class's
        """Say nothing."""


@contextmanager
def _web() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("localhost", 0), _Page) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # callers that break off are no news
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def another_consortium(case: Case) -> None:
    case.port, case.joining_port = case.hearts.port, case.hearts.joining_port


def another_name(case: Case) -> None:
    case.host = "127.0.0.1"


def certified(days: float, begins: float = -10.0) -> Callable[[Case], object]:
    """Have the server run with a certificate of these days, counted from now."""

    @contextmanager
    def served(case: Case) -> Iterator[None]:
        case.monkeypatch.setattr("transport.channel.check_server_certificate", lambda *_: None)  # it was good when
        case.monkeypatch.setattr("server.joining.listener.check_server_certificate", lambda *_: None)  # it started
        folder = case.lungs.folder / "coordinator"
        authority = read_authority(folder / "authority.key", folder / "authority.pem")
        tls = certify(case.folder / "server", authority, name="localhost", days=days, server=True, begins=begins)
        place, roster = case.lungs.place, case.lungs.place.roster()
        hub = Hub(roster, Mailboxes({member.node_id for member in roster.members}), 1 << 20)
        joining_port = JoiningPort(Requests(place), tls)
        try:
            case.port, case.joining_port = hub.start("localhost:0", tls), joining_port.start("localhost:0")
            yield
        finally:
            hub.stop(grace=0)
            joining_port.stop()

    return served


def newer_server(case: Case) -> None:
    """Run the server's code with the next protocol, beside ours."""
    code = Path(framing.__file__).read_text(encoding="utf-8").replace("PROTOCOL = 1", "PROTOCOL = 2")
    newer = dict[str, object]()
    exec(compile(code, "newer", "exec"), newer)  # noqa: S102 - our own
    for name in ("PROTOCOL", "measurement_answer", "read_roster_request", "to_frames"):
        case.monkeypatch.setattr(f"server.hub.hub.{name}", newer[name])
    case.monkeypatch.setattr(
        "server.joining.listener.greeting", lambda der: joining.greeting(der).replace(b"join-1", b"join-2", 1)
    )


def clock_off(minutes: float) -> Callable[[Case], object]:
    """Let the server's clock, which the site compares with its own, be off."""

    def off(case: Case) -> None:
        case.monkeypatch.setattr(
            "server.hub.hub.measurement_answer",
            lambda request, clock: framing.measurement_answer(
                request, clock + timedelta(minutes=minutes).total_seconds()
            ),
        )

    return off


# --- Proxies --------------------------------------------------------------------------------------------------------


def proxy_that(refusal: str = "", login: tuple[str, str] | None = None) -> Callable[[Case], object]:
    @contextmanager
    def through(case: Case) -> Iterator[None]:
        with TunnelProxy(refusal=refusal, login=login) as proxy:
            case.proxy = proxy.place
            yield

    return through


def wrong_password(case: Case) -> object:
    case.monkeypatch.setenv("CLOISTER_PROXY_USER", "north")
    case.monkeypatch.setenv("CLOISTER_PROXY_PASSWORD", "hunter1")
    return proxy_that(login=("north", "hunter2"))(case)


def proxy_is_away(case: Case) -> None:
    case.proxy = f"localhost:{unused_port()}"


def proxy_answers(answer: Callable[[socket.socket], object]) -> Callable[[Case], object]:
    @contextmanager
    def through(case: Case) -> Iterator[None]:
        with listening(answer) as port:
            case.proxy = f"localhost:{port}"
            yield

    return through


def inspecting_proxy(latest: ssl.TLSVersion) -> Callable[[Case], object]:
    @contextmanager
    def through(case: Case) -> Iterator[None]:
        with InspectingProxy(case.folder, "Hospital Web Gateway", latest=latest) as proxy:
            case.proxy = proxy.place
            yield

    return through


# --- Members and invitations ----------------------------------------------------------------------------------------


@contextmanager
def revoked(case: Case) -> Iterator[None]:
    roster = case.lungs.place.roster()
    rest = replace(roster, members=tuple(member for member in roster.members if member.site != SITE))
    hub = Hub(rest, Mailboxes({member.node_id for member in rest.members}), 1 << 20)
    try:
        case.port = hub.start("localhost:0", case.lungs.place.tls)
        yield
    finally:
        hub.stop(grace=0)


def damaged_token(case: Case) -> None:
    case.document = case.invitation().to_text()[:-3]


def token_of_another_version(case: Case) -> None:
    case.document = case.invitation().to_text().replace("invitation-3", "invitation-4")


def expired_token(case: Case) -> None:
    case.document = replace(case.invitation(), expires=1_700_000_000).to_text()


def used_token(case: Case) -> None:
    invitation = case.invitation(guest="used")
    case.document = invitation.to_text()
    ask(case.folder / "elsewhere", invitation)


def withdrawn_token(case: Case) -> None:
    invitation = case.invitation()
    case.document = invitation.to_text()
    case.lungs.coordinator.withdraw(GUEST)


def token_of_another_consortium(case: Case) -> None:
    case.document = case.invitation(case.hearts).to_text()
