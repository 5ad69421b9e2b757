"""No member keeps another waiting, or fills the hub's memory."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Event
from typing import Any
from weakref import ref

import grpc
import pytest

from server.hub import hub
from server.hub.hub import _PULLS
from tests.federations import await_condition
from tests.server.callers import ACCEPTED, LATE, LIMIT, LONG, SITES, UNDER_WAY, Caller, Endless, Server, chunk, refusal
from transport import cloister_pb2 as pb
from transport.framing import FRAME_BYTES, PROTOCOL, to_frames

# --- Who keeps whom waiting -----------------------------------------------------------------------------------------


def test_a_member_that_stalls_many_bodies_does_not_block_another(server: Server, north: Caller, south: Caller) -> None:
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
        assert time.monotonic() - started < 10  # loaded machines
    finally:
        stop.set()
        for call in calls:
            call.cancel()


def test_members_whose_bodies_do_not_go_on_give_way_to_others_that_wait(
    server: Server, north: Caller, south: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_PIECE_SECONDS", 0.2)
    server.hub._bodies._free = 1
    for site in SITES:
        server.mailboxes.put(server.node(site), site, ())
    slow = north._push.future(_trickling("north"), timeout=LONG)
    await_condition(server.hub._turns["north"].locked)
    Event().wait(0.5)
    assert not slow.done()  # nobody waits
    assert south.push(to_frames([bytes(FRAME_BYTES * 2)], "south")) == ACCEPTED
    assert slow.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert slow.details() == "a body must come in 600 s, and if others wait, each MiB in 0.2 s"
    server.mailboxes.take({"south"}, 0.0)
    assert north.push(to_frames([b"again"], "north")) == ACCEPTED


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
        assert refusal(lambda: list(calls[0]))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
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


def test_two_hundred_silent_connections_block_no_member(server: Server, south: Caller) -> None:
    host, port = server.address.split(":")
    server.mailboxes.put(server.node("south"), "m", ())
    with ExitStack() as connections:
        for _ in range(200):
            connections.enter_context(socket.create_connection((host, int(port))))
        started = time.monotonic()
        assert south.push(to_frames([b"done"], "m")) == ACCEPTED
        assert time.monotonic() - started < 10  # loaded machines


# --- What is held ---------------------------------------------------------------------------------------------------

AT_ONCE = 4


def test_bodies_are_accepted_only_while_there_is_room_to_hold_them(
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
        assert north.push(to_frames([bytes(LIMIT)], f"n{number}")) == ACCEPTED
    waiting = north._push.future(to_frames([bytes(LIMIT)], "n4"), timeout=LONG)
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
        assert north.push(to_frames([bytes(LIMIT)], "m")) == ACCEPTED
        north.refused(to_frames([b"something else"], "m"))
    assert north.push(to_frames([b"done"], "last")) == ACCEPTED
    assert set(server.mailboxes._replies) == {"m", "last"}


def _stalling(reply_to: str) -> Iterator[pb.Chunk]:
    yield chunk(10, b"", reply_to)
    Event().wait(LONG)


def _trickling(reply_to: str) -> Iterator[pb.Chunk]:
    yield chunk(LIMIT, b"", reply_to)
    for _ in range(int(LONG / 0.02)):
        Event().wait(0.02)
        yield pb.Chunk(data=b".")
