"""Connections that say nothing, or little, or far too much, while an honest run goes on."""

import random
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from threading import Event, Thread

from cryptography.hazmat.primitives.asymmetric import ec

from tests.federations import SITES, tls_of
from tests.reliability.outcomes import Outcome, check
from tests.reliability.stage import Stage, forget_peak, peak, plain, staged
from transport.channel import SERVICE, TlsFiles
from transport.pki import Authority, certificate_pem, key_pem

IDLE, STRANGERS, MEMBERS = 500, 100, 100  # connections; the last two kinds send a kilobyte a second
ROUNDS = 20  # of which the median counts
FLOOD, MOST = 300 << 20, 16 << 20  # bytes
_KIB = 1 << 10
_HEAD, _PING = 9, 6  # of frames of HTTP/2: the head's length, and a type
_SECONDS = 60.0
_ENDLESS = 10_000  # rounds: the run lasts longer than the case


def crowd(seed: int, folder: Path) -> Outcome:
    """Measure honest rounds, alone and beside hundreds of idle and slow connections."""
    del seed  # there is no chance in it
    *run_sites, member = SITES
    settings = plain(4 * ROUNDS)
    sizes = {site: settings.cohort.sizes[site] for site in run_sites}
    settings = replace(settings, cohort=replace(settings.cohort, sizes=sizes, minimum=len(sizes)))
    with staged(folder, settings, forked=False) as stage:
        for site in run_sites:
            stage.start_agent(site)
        stage.start_server()
        stage.await_rounds(ROUNDS + 1)
        with _crowd(stage, tls_of(stage.federation, member)) as counts:
            before = stage.rounds
            stage.await_rounds(before + 1 + ROUNDS)
            after = stage.rounds
            check(counts() >= IDLE + STRANGERS + MEMBERS - 20, f"only {counts()} connections were open")
        stage.await_end()
        seconds = [event["seconds"] for event in stage.ended]
        check(all(event["released"] and not event["problems"] for event in stage.ended), "a round was disturbed")
        alone, beside = median(seconds[1 : ROUNDS + 1]), median(seconds[before + 1 : after])
    check(beside < 2 * alone, f"a round took {beside:.2f} s instead of {alone:.2f} s")
    outcome = Outcome(IDLE + STRANGERS + MEMBERS)
    outcome.note("times as long as alone", beside / alone)
    return outcome


@contextmanager
def _crowd(stage: Stage, tls: TlsFiles) -> Iterator["_Count"]:
    """Open all connections; let the slow ones send until the context ends."""
    with ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(socket.create_connection(("localhost", stage.port)))
        strangers = [stack.enter_context(socket.create_connection(("localhost", stage.port))) for _ in range(STRANGERS)]
        hello = _client_hello()
        for connection in strangers:
            connection.sendall(hello[:64])
        members = [stack.enter_context(_pushing(stage.port, tls)) for _ in range(MEMBERS)]
        ended, count = Event(), _Count(IDLE)
        slow = Thread(target=_trickle, args=(strangers, members, ended, count), daemon=True)
        slow.start()
        try:
            yield count
        finally:
            ended.set()
            slow.join(_SECONDS)


class _Count:
    """How many connections are open."""

    def __init__(self, idle: int) -> None:
        self.idle = self.slow = idle

    def __call__(self) -> int:
        return self.idle + self.slow


def _trickle(strangers: list[socket.socket], members: list[ssl.SSLSocket], ended: Event, count: _Count) -> None:
    """Send about a kilobyte a second over each connection: as TLS that never gets anywhere, or as an update."""
    record = b"\x16\x03\x01" + (1 << 14).to_bytes(2, "big")  # the beginning of a record of 16 KiB
    data = _frame(0, 0, 1, bytes(_KIB))
    first = True
    while True:
        open_ = 0
        for stranger in strangers:
            with suppress(OSError):
                stranger.sendall(record if first else bytes(_KIB))
                open_ += 1
        for member in members:
            with suppress(OSError):
                _answer_pings(member)
                member.sendall(data)
                open_ += 1
        first, count.slow = False, open_
        if ended.wait(1.0):
            return


def _answer_pings(member: ssl.SSLSocket) -> None:
    """Answer what the server asks to see whether the line stands."""
    member.settimeout(0.001)
    arrived = b""
    with suppress(TimeoutError, ssl.SSLWantReadError):
        while piece := member.recv(_KIB):
            arrived += piece
    member.settimeout(_SECONDS)
    while len(arrived) >= _HEAD:
        size, kind, flags = int.from_bytes(arrived[:3], "big"), arrived[3], arrived[4]
        if (kind, flags) == (_PING, 0):
            member.sendall(_frame(_PING, 1, 0, arrived[_HEAD : _HEAD + size]))
        arrived = arrived[_HEAD + size :]


def _client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def _pushing(port: int, tls: TlsFiles) -> ssl.SSLSocket:
    """Begin, as a member, to push a megabyte to the server."""
    context = ssl.create_default_context(cafile=str(tls.authority))
    context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["h2"])
    secured = context.wrap_socket(socket.create_connection(("localhost", port)), server_hostname="localhost")
    headers = b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in (
            (b":method", b"POST"), (b":scheme", b"https"), (b":path", f"/{SERVICE}/Push".encode()),
            (b":authority", b"localhost"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
        )
    )  # fmt: skip
    message = b"\x00" + (1 << 20).to_bytes(4, "big")
    secured.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"") + _frame(1, 4, 1, headers) + _frame(0, 0, 1, message)
    )
    return secured


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def nobody(seed: int, folder: Path) -> Outcome:
    """Send the server 300 MB without being anybody: in the clear, and in TLS with a stranger's certificate."""
    rng, outcome = random.Random(seed), Outcome(tries=2)  # noqa: S311
    with staged(folder, plain(_ENDLESS), forked=False) as stage:
        stage.start_agents()
        server = stage.start_server()
        stage.await_rounds(ROUNDS)  # it has all that a round takes
        forget_peak(server)
        before = peak(server)
        stranger = _stranger(folder, stage)
        outcome.counts["MB sent"] = 0.0
        for tls in (None, stranger):
            sent = _flood(stage.port, tls, FLOOD // 2, rng.randbytes(1 << 20))
            outcome.counts["MB sent"] += sent / 1e6
        more = peak(server) - before
        check(more <= MOST, f"the server took {more / 1e6:.1f} MB more memory")
        outcome.note("MB more memory", more / 1e6)
        stage.await_rounds(stage.rounds + 2)
        check(server.poll() is None, f"the server ended: {stage.processes.tail('server')}")
        check(all(event["released"] for event in stage.ended), "a round released nothing")
    return outcome


def _stranger(folder: Path, stage: Stage) -> TlsFiles:
    """The TLS identity of somebody whom another authority certified."""
    key, authority = ec.generate_private_key(ec.SECP256R1()), Authority.create("elsewhere")
    place = folder / "stranger"
    place.mkdir()
    own = tls_of(stage.federation, SITES[0])
    files = TlsFiles(own.authority, place / "tls.pem", place / "tls.key")
    files.certificate.write_bytes(certificate_pem(authority.issue_server("localhost", key.public_key())))
    files.key.write_bytes(key_pem(key))
    return files


def _flood(port: int, tls: TlsFiles | None, size: int, piece: bytes) -> int:
    """Send so much over one connection after another; the server ends each. Return how many bytes were taken."""
    sent = 0
    context = ssl.create_default_context(cafile=str(tls.authority)) if tls else None
    if context and tls:
        context.load_cert_chain(tls.certificate, tls.key)
        context.set_alpn_protocols(["h2"])
    while sent < size:
        with socket.create_connection(("localhost", port)) as plain_, suppress(OSError):
            plain_.settimeout(_SECONDS)
            connection = context.wrap_socket(plain_, server_hostname="localhost") if context else plain_
            while sent < size:
                sent += connection.send(piece)
    return sent
