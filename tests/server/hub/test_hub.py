"""The hub lets members in, one another's mail never, and takes whole replies within the limit."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from client.exchange import Exchange
from privacy.errors import AuthenticityError, ProtocolError, UnreachableError
from server.hub.hub import Hub
from simulations.engine.federation import Federation
from tests.federations import authority_of, await_condition, certify, tls_of
from tests.server.callers import ACCEPTED, LATE, LIMIT, LONG, SITES, UNDER_WAY, Caller, Endless, Server, chunk, refusal
from transport import cloister_pb2 as pb
from transport.channel import SERVICE, TlsFiles
from transport.framing import FRAME_BYTES, PROTOCOL, to_frames
from transport.pki import certificate_pem

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
def test_callers_without_a_valid_certificate_are_refused_before_they_send_anything(
    server: Server, tmp_path: Path, credentials: Callable[[Federation, Path], grpc.ChannelCredentials]
) -> None:
    server.mailboxes.put(server.node("north"), "m", (b"for north",))
    caller = Caller(server.address, credentials(server.federation, tmp_path))
    started = time.monotonic()
    assert refusal(caller.pull)[0] == grpc.StatusCode.UNAVAILABLE
    assert caller.refused(to_frames([b"x"], "m"))[0] == grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - started < 10  # loaded machines
    assert server.mailboxes.take({"m"}, 0) is None
    assert server.mailboxes.online(LONG) == set()


def test_plain_http_gets_no_answer(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        pull = channel.unary_stream(f"/{SERVICE}/Pull", pb.PullRequest.SerializeToString, pb.Chunk.FromString)
        code, _ = refusal(lambda: list(pull(pb.PullRequest(protocol=PROTOCOL), timeout=5)))
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
        assert bytes(exchange.pull(wait=0.0) or b"") == b"a"
        assert server.mailboxes.online(0) == {server.node("north")}  # as long as it works
        assert exchange.push((b"done",), "a")
        await_condition(lambda: server.mailboxes.online(0) == set())  # the stream is over
        server.mailboxes.put(server.node("north"), "b", (b"b",))
        assert bytes(exchange.pull(wait=LONG) or b"") == b"b"
        assert exchange.push((b"done",), "b")
        server.mailboxes.put(server.node("north"), "c", (b"c",))
        assert bytes(exchange.pull(wait=0) or b"") == b"c"  # in the stream of the one before


def test_a_site_that_works_is_online_until_it_leaves_or_its_message_is_withdrawn(server: Server) -> None:
    files, north = tls_of(server.federation, "north"), server.node("north")
    for leaves in (True, False):
        server.mailboxes.put(north, "a", (b"a",))
        with Exchange(server.address, files) as exchange:
            assert bytes(exchange.pull(wait=0.0) or b"") == b"a"
            assert server.mailboxes.online(0) == {north}
            if not leaves:
                server.mailboxes.withdraw({"a"})
                await_condition(lambda: server.mailboxes.online(0) == set())
        await_condition(lambda: server.mailboxes.online(0) == set())


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


def test_a_waiting_site_gets_a_message_as_soon_as_it_arrives(server: Server, north: Caller) -> None:
    with ThreadPoolExecutor(1) as pool:
        pulled = pool.submit(north.pull, wait=LONG)
        await_condition(lambda: server.mailboxes.online(0) == {server.node("north")})
        started = time.monotonic()
        server.mailboxes.put(server.node("north"), "m", (b"work",))
        assert pulled.result(LONG) == b"work"
    assert time.monotonic() - started < 10  # loaded machines


@pytest.mark.parametrize("wait", [-1.0, 0.0, 0.05, float("nan")])
def test_a_site_waits_no_longer_than_it_asked_to(north: Caller, wait: float) -> None:
    started = time.monotonic()
    assert north.pull(wait=wait) is None
    assert time.monotonic() - started < 10  # loaded machines


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
    code, message = north.refused(to_frames([b"something else"], "m"))
    assert code == grpc.StatusCode.ALREADY_EXISTS
    assert "another reply" in message
    with Exchange(server.address, tls_of(server.federation, "north")) as exchange:
        assert exchange.push((b"done",), "m")
        with pytest.raises(ProtocolError, match=f"{server.address} refused a message: “another reply"):
            exchange.push((b"something else",), "m")
    assert server.mailboxes.take({"m"}, 0) == ("m", b"done")


def test_text_that_a_server_adds_to_a_refusal_is_shortened_and_quoted(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bool:
        raise ProtocolError("\x1b[2J\u202eon\n" * 200)

    monkeypatch.setattr(server.mailboxes, "answer", refuse)
    server.mailboxes.put(server.node("north"), "m", ())
    with Exchange(server.address, tls_of(server.federation, "north")) as exchange, pytest.raises(ProtocolError) as text:
        exchange.push((b"done",), "m")
    assert "refused a message: “\\x1b[2J\\u202eon\\n" in str(text.value)
    assert str(text.value).isprintable()
    assert len(str(text.value)) < 400


def test_a_reply_to_no_message_or_to_a_withdrawn_one_comes_too_late(server: Server, north: Caller) -> None:
    server.mailboxes.put(server.node("north"), "m", ())
    assert north.push(to_frames([b"done"], "unheard of")) == LATE
    assert north.push(to_frames([b"done"], "")) == LATE
    server.mailboxes.withdraw({"m"})
    assert north.push(to_frames([b"done"], "m")) == LATE


def test_a_body_that_announces_too_much_is_refused_before_it_is_read(server: Server, north: Caller) -> None:
    server.mailboxes.put(server.node("north"), "m", ())
    body = Endless(LIMIT + 1, "m")
    code, message = north.refused(iter(body))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert f"exceeds the limit of {LIMIT:,}" in message
    assert body.count < UNDER_WAY
    assert north.push(to_frames([b"done"], "m")) == ACCEPTED


def test_a_late_body_is_refused_before_it_is_read(north: Caller) -> None:
    body = Endless(LIMIT, "unheard of")
    assert north.push(iter(body)) == LATE
    assert body.count < UNDER_WAY


def test_a_body_longer_than_announced_is_refused_where_it_is_longer(server: Server, north: Caller) -> None:
    server.mailboxes.put(server.node("north"), "m", ())
    body = Endless(2 * FRAME_BYTES, "m")
    code, message = north.refused(iter(body))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "longer than the 2,097,152 bytes" in message
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
    status, message = north.refused(iter(chunks))
    assert status == code
    assert reason in message
    assert server.mailboxes.take({"m"}, 0) is None
    assert north.push(to_frames([b"done"], "m")) == ACCEPTED


def test_a_site_with_another_protocol_learns_which_version_to_install(north: Caller) -> None:
    code, message = refusal(lambda: north.pull(protocol=2))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "protocol 2 is not supported, only 1" in message


def test_bytes_that_are_not_a_request_do_not_harm_the_hub(server: Server, north: Caller) -> None:
    pull = north._channel.unary_stream(f"/{SERVICE}/Pull", bytes, bytes)
    push = north._channel.stream_unary(f"/{SERVICE}/Push", bytes, bytes)
    unknown = north._channel.unary_unary(f"/{SERVICE}/Delete", bytes, bytes)
    refusal(lambda: list(pull(b"\xff\xff\xff", timeout=LONG)))
    refusal(lambda: push(iter([b"\xff\xff\xff"]), timeout=LONG))
    assert refusal(lambda: unknown(b"", timeout=LONG))[0] == grpc.StatusCode.UNIMPLEMENTED
    server.mailboxes.put(server.node("north"), "m", ())
    assert north.push(to_frames([b"done"], "m")) == ACCEPTED
