"""The hub lets members in, one another's mail never, and nobody's bytes before they were announced."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any
from weakref import ref

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from client.exchange import Exchange
from privacy.errors import AuthenticityError, CloisterError, ConfigError, ProtocolError, UnreachableError
from server.hub import hub
from server.hub.hub import _PULLS, Hub
from server.hub.mailboxes import Mailboxes
from server.settings import ServerFolder, read_consortium
from simulations.engine.federation import Federation
from tests.federations import authority_of, await_condition, certify, tls_of
from transport import cloister_pb2 as pb
from transport.channel import SERVICE, TlsFiles
from transport.framing import FRAME_BYTES, PROTOCOL, assemble, to_frames
from transport.pki import certificate_pem

SITES = ("north", "south")
LIMIT = 4 << 20
LONG = 20.0
UNDER_WAY = 100  # mebibytes: more than may lie in the buffers of the line
ACCEPTED, LATE = pb.Receipt.ACCEPTED, pb.Receipt.LATE


@dataclass
class Server:
    """A hub on a free port, and what stands behind it."""

    federation: Federation
    place: ServerFolder
    mailboxes: Mailboxes
    hub: Hub
    address: str

    def node(self, site: str) -> int:
        return self.place.roster().member(site).node_id


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation.create(tmp_path_factory.mktemp("federation"), SITES)


@pytest.fixture
def server(federation: Federation) -> Iterator[Server]:
    place = read_consortium(federation.server)
    roster = place.roster()
    mailboxes = Mailboxes({member.node_id for member in roster.members})
    hub = Hub(roster, mailboxes, LIMIT)
    try:
        yield Server(federation, place, mailboxes, hub, f"localhost:{hub.start('localhost:0', place.tls)}")
    finally:
        hub.stop(grace=0)


class Caller:
    """Speaks to the hub as the test says, which a real agent would not do."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials) -> None:
        self._channel = grpc.secure_channel(address, credentials)
        self._pull = self._channel.unary_stream(
            f"/{SERVICE}/Pull", pb.PullRequest.SerializeToString, pb.Chunk.FromString
        )
        self._push = self._channel.stream_unary(f"/{SERVICE}/Push", pb.Chunk.SerializeToString, pb.Receipt.FromString)

    def pull(self, protocol: int = PROTOCOL, wait: float = 0.0) -> bytes | None:
        found = assemble(self._pull(pb.PullRequest(protocol=protocol, wait_seconds=wait), timeout=LONG), LIMIT)
        return None if found is None else bytes(found)

    def messages(self, wait: float) -> Iterator[bytes]:
        """Read the messages of one stream."""
        chunks = self._pull(pb.PullRequest(protocol=PROTOCOL, wait_seconds=wait), timeout=LONG)
        while (found := assemble(chunks, LIMIT)) is not None:
            yield bytes(found)

    def push(self, chunks: Iterator[pb.Chunk]) -> int:
        return int(self._push(chunks, timeout=LONG).status)

    def refused(self, chunks: Iterator[pb.Chunk]) -> tuple[grpc.StatusCode, str]:
        """Push what must be refused; return how it was."""
        return _refusal(lambda: self.push(chunks))


def _refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), str(caught.value.details())


@pytest.fixture
def north(server: Server) -> Caller:
    authority, key, certificate = tls_of(server.federation, "north").read()
    return Caller(server.address, grpc.ssl_channel_credentials(authority, key, certificate))


@pytest.fixture
def south(server: Server) -> Caller:
    authority, key, certificate = tls_of(server.federation, "south").read()
    return Caller(server.address, grpc.ssl_channel_credentials(authority, key, certificate))


def chunk(total: int, data: bytes, reply_to: str, protocol: int = PROTOCOL) -> pb.Chunk:
    return pb.Chunk(opening=pb.Opening(protocol=protocol, total_bytes=total, reply_to=reply_to), data=data)


# --- Who may speak --------------------------------------------------------------------------------------------------


def _no_certificate(federation: Federation, folder: Path) -> grpc.ChannelCredentials:
    del folder
    return grpc.ssl_channel_credentials(tls_of(federation, "north").authority.read_bytes())


def _another_authority(federation: Federation, folder: Path) -> grpc.ChannelCredentials:
    strangers = Federation.create(folder / "strangers", SITES)
    _, key, certificate = tls_of(strangers, "north").read()
    return grpc.ssl_channel_credentials(tls_of(federation, "north").authority.read_bytes(), key, certificate)


def _expired(federation: Federation, folder: Path) -> grpc.ChannelCredentials:
    files = certify(folder / "old", authority_of(federation), name="north", days=-1, server=False)
    authority, key, certificate = files.read()
    return grpc.ssl_channel_credentials(authority, key, certificate)


@pytest.mark.parametrize("credentials", [_no_certificate, _another_authority, _expired])
def test_who_has_no_valid_certificate_of_this_consortium_is_turned_away_before_speaking(
    server: Server, tmp_path: Path, credentials: Callable[[Federation, Path], grpc.ChannelCredentials]
) -> None:
    server.mailboxes.put(server.node("north"), "m", (b"for north",))
    caller = Caller(server.address, credentials(server.federation, tmp_path))
    started = time.monotonic()
    assert _refusal(caller.pull)[0] == grpc.StatusCode.UNAVAILABLE
    assert caller.refused(to_frames([b"x"], "m"))[0] == grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - started < 5
    assert server.mailboxes.take({"m"}, 0) is None
    assert server.mailboxes.online(LONG) == set()


def test_plain_http_gets_no_answer(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        pull = channel.unary_stream(f"/{SERVICE}/Pull", pb.PullRequest.SerializeToString, pb.Chunk.FromString)
        code, _ = _refusal(lambda: list(pull(pb.PullRequest(protocol=PROTOCOL), timeout=5)))
    assert code == grpc.StatusCode.UNAVAILABLE


def unlisted(federation: Federation, folder: Path) -> TlsFiles:
    """A certificate that the consortium's authority issued, but that is not in the roster, under a member's name."""
    return certify(folder / "unlisted", authority_of(federation), name="north", days=1, server=False)


def test_a_certified_site_that_is_not_in_the_roster_is_refused_with_what_to_do(server: Server, tmp_path: Path) -> None:
    server.mailboxes.put(server.node("north"), "m", (b"for north",))
    with Exchange(server.address, unlisted(server.federation, tmp_path)) as exchange:
        for call in (exchange.pull, lambda: exchange.push((b"x",), "m")):
            with pytest.raises(AuthenticityError, match="ask the coordinator to add this site") as caught:
                call()
            assert server.address in str(caught.value)
    assert server.mailboxes.take({"m"}, 0) is None


def test_a_members_new_certificate_over_its_old_key_is_accepted(server: Server, tmp_path: Path) -> None:
    old = tls_of(server.federation, "north")
    key = load_pem_private_key(old.key.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    renewed = tmp_path / "tls.pem"
    certificate = authority_of(server.federation).issue_site("north", key.public_key())
    renewed.write_bytes(certificate_pem(certificate))
    server.mailboxes.put(server.node("north"), "m", (b"for north",))
    with Exchange(server.address, TlsFiles(old.authority, renewed, old.key)) as exchange:
        assert bytes(exchange.pull() or b"") == b"for north"


# --- Whose mail it is -----------------------------------------------------------------------------------------------


def test_a_site_gets_its_own_messages_and_no_others(server: Server, north: Caller, south: Caller) -> None:
    server.mailboxes.put(server.node("south"), "m", (b"for south",))
    assert north.pull() is None
    assert south.pull() == b"for south"
    server.mailboxes.put(server.node("north"), "n", (b"for north",))
    assert north.pull() == b"for north"
    assert south.pull() == b"for south"


def test_a_site_cannot_answer_another_sites_message(server: Server, north: Caller, south: Caller) -> None:
    server.mailboxes.put(server.node("south"), "m", (b"for south",))
    assert north.push(to_frames([b"forged"], "m")) == LATE
    assert server.mailboxes.take({"m"}, 0) is None
    assert south.push(to_frames([b"genuine"], "m")) == ACCEPTED
    assert server.mailboxes.take({"m"}, 0) == ("m", b"genuine")


def test_a_message_is_offered_again_until_it_is_answered(server: Server, north: Caller) -> None:
    server.mailboxes.put(server.node("north"), "m", (b"work",))
    assert north.pull() == north.pull() == b"work"
    assert north.push(to_frames([b"done"], "m")) == ACCEPTED
    assert north.pull() is None


def test_a_stream_delivers_each_message_once_after_the_previous_one_was_answered(server: Server, north: Caller) -> None:
    for name in ("a", "b", "c"):
        server.mailboxes.put(server.node("north"), name, (name.encode(),))
    messages = north.messages(wait=LONG)
    assert next(messages) == b"a"
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, messages)
        with pytest.raises(TimeoutError):
            following.result(0.2)  # not before this one is answered
        assert north.push(to_frames([b"done"], "a")) == ACCEPTED
        assert following.result(LONG) == b"b"
    server.mailboxes.withdraw({"b"})
    assert next(messages) == b"c"
    assert north.pull() == b"c"  # a new stream starts again with what is not answered


def test_an_agent_that_worked_longer_than_a_stream_lasts_gets_the_next_message(server: Server) -> None:
    files = tls_of(server.federation, "north")
    server.mailboxes.put(server.node("north"), "a", (b"a",))
    with Exchange(server.address, files) as exchange:
        assert bytes(exchange.pull(wait=0.2) or b"") == b"a"
        await_condition(lambda: server.mailboxes.online(0) == set())  # the stream is over
        assert exchange.push((b"done",), "a")
        server.mailboxes.put(server.node("north"), "b", (b"b",))
        assert bytes(exchange.pull(wait=LONG) or b"") == b"b"
        assert exchange.push((b"done",), "b")
        server.mailboxes.put(server.node("north"), "c", (b"c",))
        assert bytes(exchange.pull(wait=0) or b"") == b"c"  # in the stream of the one before


def test_a_stream_that_broke_is_not_read_again(server: Server) -> None:
    files, port = tls_of(server.federation, "north"), server.address.rpartition(":")[2]
    with Exchange(server.address, files) as exchange:
        server.mailboxes.put(server.node("north"), "a", (b"a",))
        assert bytes(exchange.pull(wait=3 * LONG) or b"") == b"a"
        server.hub.stop(grace=0)
        with pytest.raises(UnreachableError):
            exchange.pull(wait=LONG)
        again = Hub(server.place.roster(), server.mailboxes, LIMIT)
        again.start(f"localhost:{port}", server.place.tls)
        try:
            await_condition(lambda: _answers(exchange))
            assert bytes(exchange.pull(wait=LONG) or b"") == b"a"
        finally:
            again.stop(grace=0)


def _answers(exchange: Exchange) -> bool:
    with suppress(UnreachableError):
        return exchange.pull(wait=0.0) is not None
    return False


def test_a_waiting_site_gets_a_message_as_soon_as_it_is_there(server: Server, north: Caller) -> None:
    with ThreadPoolExecutor(1) as pool:
        pulled = pool.submit(north.pull, wait=LONG)
        await_condition(lambda: server.mailboxes.online(0) == {server.node("north")})
        started = time.monotonic()
        server.mailboxes.put(server.node("north"), "m", (b"work",))
        assert pulled.result(LONG) == b"work"
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("wait", [-1.0, 0.0, 0.05, float("nan")])
def test_a_site_waits_no_longer_than_it_asked_to(north: Caller, wait: float) -> None:
    started = time.monotonic()
    assert north.pull(wait=wait) is None
    assert time.monotonic() - started < 2


# --- What is taken --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES, FRAME_BYTES + 1, LIMIT])
def test_a_reply_of_any_size_within_the_limit_is_taken_whole(server: Server, north: Caller, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    server.mailboxes.put(server.node("north"), "m", ())
    assert north.push(to_frames([data], "m")) == ACCEPTED
    assert server.mailboxes.take({"m"}, 0) == ("m", data)


def test_the_same_reply_again_gets_the_same_receipt_and_another_is_refused(server: Server, north: Caller) -> None:
    server.mailboxes.put(server.node("north"), "m", ())
    assert north.push(to_frames([b"done"], "m")) == ACCEPTED
    assert north.push(to_frames([b"done"], "m")) == ACCEPTED
    code, said = north.refused(to_frames([b"something else"], "m"))
    assert code == grpc.StatusCode.ALREADY_EXISTS
    assert "another reply" in said
    with Exchange(server.address, tls_of(server.federation, "north")) as exchange:
        assert exchange.push((b"done",), "m")
        with pytest.raises(ProtocolError, match=f"{server.address} refused a message: “another reply"):
            exchange.push((b"something else",), "m")
    assert server.mailboxes.take({"m"}, 0) == ("m", b"done")


def test_what_a_server_adds_to_a_refusal_is_short_and_quoted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise ProtocolError("\x1b[2J\u202eon\n" * 200)

    monkeypatch.setattr(server.mailboxes, "answer", refuse)
    server.mailboxes.put(server.node("north"), "m", ())
    with Exchange(server.address, tls_of(server.federation, "north")) as exchange, pytest.raises(ProtocolError) as said:
        exchange.push((b"done",), "m")
    assert "refused a message: “\\x1b[2J\\u202eon\\n" in str(said.value)
    assert str(said.value).isprintable()
    assert len(str(said.value)) < 400


def test_a_reply_to_no_message_or_to_a_withdrawn_one_comes_too_late(server: Server, north: Caller) -> None:
    server.mailboxes.put(server.node("north"), "m", ())
    assert north.push(to_frames([b"done"], "unheard of")) == LATE
    assert north.push(to_frames([b"done"], "")) == LATE
    server.mailboxes.withdraw({"m"})
    assert north.push(to_frames([b"done"], "m")) == LATE


class Endless:
    """Chunks without end, and how many were asked for."""

    def __init__(self, total: int, reply_to: str) -> None:
        self.count, self._opening = 0, chunk(total, bytes(FRAME_BYTES), reply_to)

    def __iter__(self) -> Iterator[pb.Chunk]:
        yield self._opening
        while self.count < 100_000:
            self.count += 1
            yield pb.Chunk(data=bytes(FRAME_BYTES))


def test_a_body_that_announces_too_much_is_refused_before_it_is_read(server: Server, north: Caller) -> None:
    server.mailboxes.put(server.node("north"), "m", ())
    body = Endless(LIMIT + 1, "m")
    code, said = north.refused(iter(body))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert f"exceeds the limit of {LIMIT:,}" in said
    assert body.count < UNDER_WAY
    assert north.push(to_frames([b"done"], "m")) == ACCEPTED


def test_a_late_body_is_refused_before_it_is_read(north: Caller) -> None:
    body = Endless(LIMIT, "unheard of")
    assert north.push(iter(body)) == LATE
    assert body.count < UNDER_WAY


def test_a_body_longer_than_announced_is_refused_where_it_is_longer(server: Server, north: Caller) -> None:
    server.mailboxes.put(server.node("north"), "m", ())
    body = Endless(2 * FRAME_BYTES, "m")
    code, said = north.refused(iter(body))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "longer than the 2,097,152 bytes" in said
    assert body.count < UNDER_WAY


@pytest.mark.parametrize(
    ("chunks", "code", "reason"),
    [
        ([chunk(9, b"short", "m")], grpc.StatusCode.INVALID_ARGUMENT, "cut short: 5 of 9"),
        ([chunk(1, b"x", "m", protocol=2)], grpc.StatusCode.INVALID_ARGUMENT, "protocol 2 is not supported"),
        ([chunk(1, b"x", "m", protocol=0)], grpc.StatusCode.INVALID_ARGUMENT, "protocol 0 is not supported"),
        ([], grpc.StatusCode.INVALID_ARGUMENT, "empty body"),
        ([chunk(LIMIT, bytes(2 * FRAME_BYTES), "m")], grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
    ],
    ids=["cut short", "newer protocol", "no protocol", "nothing", "too large a frame"],
)
def test_a_body_that_is_wrong_is_refused_and_the_message_stays_open(
    server: Server, north: Caller, chunks: list[pb.Chunk], code: grpc.StatusCode, reason: str
) -> None:
    server.mailboxes.put(server.node("north"), "m", ())
    found, said = north.refused(iter(chunks))
    assert found == code
    assert reason in said
    assert server.mailboxes.take({"m"}, 0) is None
    assert north.push(to_frames([b"done"], "m")) == ACCEPTED


def test_a_site_with_another_protocol_learns_which_version_to_install(north: Caller) -> None:
    code, said = _refusal(lambda: north.pull(protocol=2))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "protocol 2 is not supported, only 1" in said


def test_bytes_that_are_not_a_request_do_not_harm_the_hub(server: Server, north: Caller) -> None:
    pull = north._channel.unary_stream(f"/{SERVICE}/Pull", bytes, bytes)
    push = north._channel.stream_unary(f"/{SERVICE}/Push", bytes, bytes)
    unknown = north._channel.unary_unary(f"/{SERVICE}/Delete", bytes, bytes)
    _refusal(lambda: list(pull(b"\xff\xff\xff", timeout=LONG)))
    _refusal(lambda: push(iter([b"\xff\xff\xff"]), timeout=LONG))
    assert _refusal(lambda: unknown(b"", timeout=LONG))[0] == grpc.StatusCode.UNIMPLEMENTED
    server.mailboxes.put(server.node("north"), "m", ())
    assert north.push(to_frames([b"done"], "m")) == ACCEPTED


# --- Who keeps whom waiting -----------------------------------------------------------------------------------------


def test_a_member_that_stalls_many_bodies_does_not_keep_another_out(
    server: Server, north: Caller, south: Caller
) -> None:
    stop = Event()

    def stalled(number: int) -> Iterator[pb.Chunk]:
        yield chunk(10, b"", f"m{number}")
        stop.wait(LONG)

    for number in range(12):
        server.mailboxes.put(server.node("north"), f"m{number}", ())
    server.mailboxes.put(server.node("south"), "m", ())
    calls = [north._push.future(stalled(number), timeout=LONG) for number in range(12)]
    try:
        await_condition(lambda: sum(not turn.locked() for turn in server.hub._turns.values()) == 1)
        started = time.monotonic()
        assert south.push(to_frames([bytes(FRAME_BYTES * 2)], "m")) == ACCEPTED
        assert time.monotonic() - started < 5
    finally:
        stop.set()
        for call in calls:
            call.cancel()


class Message(list[bytes]):
    """The parts of a message. A test can see whether they are in memory, which a tuple would not tell."""


def _unread(server: Server, north: Caller, count: int) -> tuple[list[Any], list[ref[Message]]]:
    """Open streams one after the other and read none of them; each gets a message that is then withdrawn."""
    calls, messages = [], []
    for number in range(count):
        message: Any = Message([bytes(UNDER_WAY << 20)])
        messages.append(ref(message))
        server.mailboxes.put(server.node("north"), f"m{number}", message)
        calls.append(north._pull(pb.PullRequest(protocol=PROTOCOL, wait_seconds=0.0)))
        next(calls[-1])
        server.mailboxes.withdraw({f"m{number}"})
        del message
    return calls, messages


def test_a_member_that_does_not_read_its_streams_holds_few_messages(server: Server, north: Caller) -> None:
    calls, messages = _unread(server, north, _PULLS + 3)
    try:
        await_condition(lambda: sum(message() is not None for message in messages) == _PULLS)
        server.mailboxes.put(server.node("north"), "m", (b"work",))
        assert north.pull() == b"work"
        assert _refusal(lambda: list(calls[0]))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        for call in calls:
            call.cancel()
    await_condition(lambda: server.mailboxes.online(0) == set())


def test_a_message_that_is_not_read_in_time_is_free_and_its_site_offline(
    server: Server, north: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_BODY_SECONDS", 0.5)
    (call,), (message,) = _unread(server, north, 1)
    try:
        await_condition(lambda: message() is None and server.mailboxes.online(0) == set())
    finally:
        call.cancel()


def test_two_hundred_silent_connections_keep_nobody_out(server: Server, south: Caller) -> None:
    host, port = server.address.split(":")
    server.mailboxes.put(server.node("south"), "m", ())
    with ExitStack() as connections:
        for _ in range(200):
            connections.enter_context(socket.create_connection((host, int(port))))
        started = time.monotonic()
        assert south.push(to_frames([b"done"], "m")) == ACCEPTED
        assert time.monotonic() - started < 5


# --- What is held ---------------------------------------------------------------------------------------------------

AT_ONCE = 4


def test_no_more_bodies_are_taken_in_than_may_be_held_until_their_replies_are_taken(
    server: Server, north: Caller, south: Caller
) -> None:
    for number in range(AT_ONCE + 2):
        server.mailboxes.put(server.node("north"), f"n{number}", ())
    server.mailboxes.put(server.node("south"), "s", ())
    for number in range(AT_ONCE):
        assert north.push(to_frames([bytes(LIMIT)], f"n{number}")) == ACCEPTED
    body = Endless(LIMIT, "n4")
    waiting = [
        north._push.future(iter(body), timeout=LONG),
        south._push.future(to_frames([b"from south"], "s"), timeout=LONG),
    ]
    Event().wait(0.5)
    assert not any(call.done() for call in waiting)
    assert len(server.mailboxes._replies) == AT_ONCE
    assert body.count < UNDER_WAY
    waiting[0].cancel()
    assert server.mailboxes.take({"n0"}, 0) == ("n0", bytes(LIMIT))
    assert server.mailboxes.take({"s"}, LONG) == ("s", b"from south")
    assert waiting[1].result(LONG).status == ACCEPTED


def test_replies_that_are_withdrawn_make_room(server: Server, north: Caller) -> None:
    for number in range(AT_ONCE + 1):
        server.mailboxes.put(server.node("north"), f"n{number}", ())
    for number in range(AT_ONCE):
        assert north.push(to_frames([b"done"], f"n{number}")) == ACCEPTED
    waiting = north._push.future(to_frames([b"done"], "n4"), timeout=LONG)
    server.mailboxes.withdraw({"n1", "n2"})
    assert waiting.result(LONG).status == ACCEPTED


def test_bodies_that_are_not_kept_take_no_room(server: Server, north: Caller) -> None:
    server.mailboxes.put(server.node("north"), "m", ())
    server.mailboxes.put(server.node("north"), "last", ())
    for _ in range(AT_ONCE + 1):
        north.refused(iter([chunk(9, b"short", "m")]))
        north.refused(iter([chunk(LIMIT + 1, b"", "m")]))
        north.refused(iter([]))
        assert north.push(to_frames([b"done"], "unheard of")) == LATE
        call = north._push.future(_stalling("m"), timeout=LONG)
        await_condition(server.hub._turns["north"].locked)
        call.cancel()
        await_condition(lambda: not server.hub._turns["north"].locked())
    for _ in range(AT_ONCE + 1):
        assert north.push(to_frames([b"done"], "m")) == ACCEPTED
        north.refused(to_frames([b"something else"], "m"))
    assert north.push(to_frames([b"done"], "last")) == ACCEPTED
    assert set(server.mailboxes._replies) == {"m", "last"}


def _stalling(reply_to: str) -> Iterator[pb.Chunk]:
    yield chunk(10, b"", reply_to)
    Event().wait(LONG)


# --- The port -------------------------------------------------------------------------------------------------------


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
    with socket.create_server((held, 0), family=family) as other:
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
    for said, files in wrong.items():
        assert said in start_of(server, "localhost:0", files)


def test_a_hub_that_stops_ends_the_calls_that_wait(server: Server) -> None:
    with Exchange(server.address, tls_of(server.federation, "north")) as exchange, ThreadPoolExecutor(1) as pool:
        pulled = pool.submit(exchange.pull)
        await_condition(lambda: server.mailboxes.online(0) == {server.node("north")})
        server.hub.stop(grace=0)
        with pytest.raises(UnreachableError, match=server.address):
            pulled.result(LONG)
