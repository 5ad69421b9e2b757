"""What nobody waits for any more is not offered to a site for ever."""

import time
from threading import Event, Thread

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from server.hub.grid import GrpcGrid
from server.hub.mailboxes import Mailboxes
from strategies.attention import Attention
from tests.federations import await_condition


def message(name: str, ttl: float) -> Message:
    return Message(RecordDict({"said": ConfigRecord({"text": name})}), 5, MessageType.QUERY, ttl=ttl)


def test_an_expired_message_makes_room_for_the_next() -> None:
    mailboxes = Mailboxes({5})
    grid, brief = GrpcGrid(1, mailboxes), message("first", 0.05)
    (first,) = grid.push_messages([brief])
    assert mailboxes.expects(5, first)
    await_condition(lambda: time.time() > brief.metadata.created_at + brief.metadata.ttl)
    Event().wait(0.01)
    (second,) = grid.push_messages([message("second", 60.0)])
    (third,) = grid.push_messages([message("third", 60.0)])
    assert [mailboxes.expects(5, message_id) for message_id in (first, second, third)] == [False, True, True]


@pytest.mark.parametrize("seconds", [-7200.0, 7200.0])
def test_a_clock_that_is_set_withdraws_no_message_and_keeps_none(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    mailboxes = Mailboxes({5})
    grid, attention, real = GrpcGrid(1, mailboxes), Attention(600.0), time.time
    (first, brief) = (next(iter(attention.push(grid, [message("", ttl)]))) for ttl in (600.0, 0.05))
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    Event().wait(0.1)
    attention.see({5})
    grid.push_messages([message("next", 60.0)])
    assert [mailboxes.expects(5, message_id) for message_id in (first, brief)] == [True, False]
    assert attention._open.keys() == {first}


def test_nobody_waits_for_the_answer_of_a_site_that_was_revoked() -> None:
    mailboxes = Mailboxes({5})
    grid, sent = GrpcGrid(1, mailboxes), message("train", 600.0)
    replies = grid.stream([sent], timeout=600.0)
    mailboxes.admit(set())
    (answered,) = replies
    assert answered.has_error()
    assert answered.error.reason == "it is no longer in the roster"
    assert answered.metadata.reply_to_message_id == sent.metadata.message_id


def test_whoever_listens_is_told_for_whom_the_grid_waits() -> None:
    mailboxes = Mailboxes({5})
    grid, told = GrpcGrid(1, mailboxes), list[tuple[set[int], bool]]()
    grid.idle = lambda nodes, left: told.append((set(nodes), 0 < left <= 60.0))
    assert list(grid.pull_messages(grid.push_messages([message("not awaited", 60.0)]))) == []
    assert told == []

    def leave_once_told() -> None:
        await_condition(lambda: bool(told))
        mailboxes.admit(set())

    replies = grid.stream([message("train", 60.0)], timeout=60.0)
    Thread(target=leave_once_told).start()
    assert [reply.has_error() for reply in replies] == [True]
    assert told[0] == ({5}, True)
    assert told[-1] == (set(), True)
