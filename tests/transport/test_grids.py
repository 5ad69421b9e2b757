"""What a grid is: every engine's passes these tests, and so the same Flower apps run on each."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any
from uuid import uuid4
from weakref import ref

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from typing_extensions import override

from privacy.errors import ProtocolError
from simulations.engine.inline import InlineGrid
from tests.federations import FederationMaker, run_with
from tests.transport.grids import LONG, RUN, grpc_grid, inline_grid
from tests.transport.records import everything, spelled
from transport.flower import SERVER_NODE, describe_run, reply, stamp
from transport.grid import ReplyGrid, StreamingGrid


@dataclass
class Work:
    """How far a node is with a message that takes time."""

    begun: Event = field(default_factory=Event)
    may_end: Event = field(default_factory=Event)
    ended: Event = field(default_factory=Event)


works: dict[str, Work] = {}
node = ClientApp()


@node.train()
def echo(message: Message, context: Context) -> Message:
    del context
    return reply(message.content, message)


@node.train("work")
def work(message: Message, context: Context) -> Message:
    del context
    settings = message.content["work"]
    assert isinstance(settings, ConfigRecord)
    mine, seconds = works[str(settings["name"])], settings["seconds"]
    assert isinstance(seconds, float)
    mine.begun.set()
    mine.may_end.wait(seconds)
    mine.ended.set()
    return reply(message.content, message)


@node.train("refuse")
def refuse(message: Message, context: Context) -> Message:
    del context
    return reply(Error(7, "it does not want to"), message)


@node.train("fail")
def fail(message: Message, context: Context) -> Message:
    raise ValueError(message, context, "a secret")


@node.train("misdirect")
def misdirect(message: Message, context: Context) -> Message:
    del context
    answer = reply(message.content, message)
    answer.metadata.__dict__["_reply_to_message_id"] = "another"
    return answer


class GridContract(ABC):
    """Two nodes and a grid between them and the test."""

    @pytest.fixture
    @abstractmethod
    def grid(self) -> ReplyGrid:
        """A grid with two nodes that are online."""

    def test_both_nodes_are_there(self, grid: ReplyGrid) -> None:
        assert list(grid.get_node_ids()) == sorted(set(grid.get_node_ids()))
        assert len(list(grid.get_node_ids())) == len(list(grid.get_nodes())) == 2

    def test_every_message_gets_an_id_of_its_own_and_one_reply_that_names_it(self, grid: ReplyGrid) -> None:
        messages = [_message(node) for node in list(grid.get_node_ids()) * 5]
        replies = list(grid.send_and_receive(messages, timeout=LONG))
        ids = [message.metadata.message_id for message in messages]
        assert len(set(ids)) == len(ids) == 10
        assert all(ids)
        assert sorted(answer.metadata.reply_to_message_id for answer in replies) == sorted(ids)
        assert len({answer.metadata.message_id for answer in replies} | set(ids)) == 20

    def test_a_reply_names_its_sender_and_the_message_it_answers(self, grid: ReplyGrid) -> None:
        for number in grid.get_node_ids():
            (answer,) = grid.send_and_receive([_message(number, group="3")], timeout=LONG)
            meta = answer.metadata
            assert (meta.src_node_id, meta.message_type, meta.group_id, meta.run_id) == (number, "train", "3", RUN)

    def test_a_message_that_the_grid_made_arrives(self, grid: ReplyGrid) -> None:
        number = next(iter(grid.get_node_ids()))
        message = grid.create_message(_content("x"), MessageType.TRAIN, number, "1")
        assert (message.metadata.dst_node_id, message.metadata.run_id) == (number, RUN)
        (answer,) = grid.send_and_receive([message], timeout=LONG)
        assert answer.content == _content("x")

    def test_messages_are_sent_before_replies_are_asked_for(self, grid: ReplyGrid) -> None:
        numbers = []

        def messages() -> Iterator[Message]:
            for number in grid.get_node_ids():
                numbers.append(number)
                yield _message(number)

        replies = grid.send_and_receive(messages(), timeout=LONG)
        assert len(numbers) == 2
        assert len(list(replies)) == 2

    def test_a_reply_is_yielded_while_another_node_still_works(self, grid: ReplyGrid) -> None:
        fast, slow = grid.get_node_ids()
        with _work() as (name, task):
            replies = grid.stream([_message(fast), _slow(slow, name)], timeout=LONG)
            assert next(replies).metadata.src_node_id == fast
            assert not task.ended.is_set()
            task.may_end.set()
            assert next(replies).metadata.src_node_id == slow
            assert task.ended.is_set()
            assert list(replies) == []

    def test_a_reply_after_the_deadline_is_dropped_and_does_not_disturb_what_follows(self, grid: ReplyGrid) -> None:
        other, slow = grid.get_node_ids()
        with _work() as (name, task):
            message = _slow(slow, name, seconds=0.5)
            started = time.monotonic()
            assert list(grid.send_and_receive([message], timeout=0.2)) == []
            assert time.monotonic() - started < 5
            assert task.ended.wait(LONG)
        # The node answers in order: once it has answered this, it has delivered its late reply.
        replies = list(grid.send_and_receive([_message(slow), _message(other)], timeout=LONG))
        assert sorted(answer.metadata.src_node_id for answer in replies) == [other, slow]
        assert all(answer.content == _content() for answer in replies)
        assert list(grid.pull_messages([message.metadata.message_id])) == []

    def test_nobody_waits_longer_than_the_deadline_for_a_node_that_does_not_answer(self, grid: ReplyGrid) -> None:
        other, slow = grid.get_node_ids()
        with _work() as (name, _):
            started = time.monotonic()
            replies = list(grid.send_and_receive([_message(other), _slow(slow, name, seconds=0.6)], timeout=0.3))
            assert [answer.metadata.src_node_id for answer in replies] == [other]
            assert time.monotonic() - started < 5

    def test_a_node_that_refuses_is_an_error_reply_with_its_reason(self, grid: ReplyGrid) -> None:
        first, second = grid.get_node_ids()
        messages = [_message(first, "train.refuse"), _message(second)]
        answers = {answer.metadata.src_node_id: answer for answer in grid.send_and_receive(messages, timeout=LONG)}
        assert (answers[first].error.code, answers[first].error.reason) == (7, "it does not want to")
        assert answers[second].has_content()

    @pytest.mark.parametrize("kind", ["train.fail", "train.unheard_of", "evaluate", "system"])
    def test_an_app_that_raises_is_an_error_reply_without_its_text_and_the_node_goes_on(
        self, grid: ReplyGrid, kind: str
    ) -> None:
        first, second = grid.get_node_ids()
        messages = [_message(first, kind), _message(second), _message(first)]
        answers = list(grid.send_and_receive(messages, timeout=LONG))
        (failed,) = (answer for answer in answers if answer.has_error())
        assert failed.metadata.src_node_id == first
        assert "secret" not in str(failed.error.reason)
        assert len(answers) == 3

    def test_a_reply_that_names_another_message_is_an_error_reply(self, grid: ReplyGrid) -> None:
        first, second = grid.get_node_ids()
        messages = [_message(first, "train.misdirect"), _message(second)]
        answers = {answer.metadata.src_node_id: answer for answer in grid.send_and_receive(messages, timeout=LONG)}
        assert "a message other than" in str(answers[first].error.reason)
        assert answers[second].has_content()

    def test_a_message_to_nobody_is_refused_and_with_it_those_that_were_sent_beside_it(self, grid: ReplyGrid) -> None:
        number = next(iter(grid.get_node_ids()))
        beside = _message(number, content=_content("beside"))
        with pytest.raises(ProtocolError, match="node 12345 is not in"):
            list(grid.send_and_receive([beside, _message(12345)], timeout=LONG))
        (answer,) = grid.send_and_receive([_message(number)], timeout=LONG)
        assert answer.content == _content()
        assert list(grid.pull_messages([beside.metadata.message_id])) == []

    def test_pushed_messages_are_pulled_once(self, grid: ReplyGrid) -> None:
        ids = list(grid.push_messages([_message(number) for number in grid.get_node_ids()]))
        assert len(set(ids)) == 2
        replies: list[Message] = []
        deadline = time.monotonic() + LONG
        while len(replies) < 2 and time.monotonic() < deadline:
            replies += grid.pull_messages(ids)
        assert sorted(answer.metadata.reply_to_message_id for answer in replies) == sorted(ids)
        assert list(grid.pull_messages(ids)) == []
        assert list(grid.pull_messages(["unheard-of"])) == []

    def test_sending_no_messages_returns_no_replies(self, grid: ReplyGrid) -> None:
        assert list(grid.send_and_receive([], timeout=LONG)) == []
        assert list(grid.pull_messages([])) == []

    def test_twenty_megabytes_arrive_intact(self, grid: ReplyGrid) -> None:
        content = RecordDict({"a": ArrayRecord({"x": Array("uint8", (20_000_000,), "bytes", os.urandom(20_000_000))})})
        number = next(iter(grid.get_node_ids()))
        (answer,) = grid.send_and_receive([_message(number, content=content)], timeout=60)
        assert answer.content["a"] == content["a"]

    def test_every_kind_of_record_arrives_as_it_was(self, grid: ReplyGrid) -> None:
        number = next(iter(grid.get_node_ids()))
        (answer,) = grid.send_and_receive([_message(number, content=everything())], timeout=LONG)
        assert spelled(answer.content) == spelled(everything())

    def test_replies_can_be_read_again(self, grid: ReplyGrid) -> None:
        replies = grid.send_and_receive([_message(number) for number in grid.get_node_ids()], timeout=LONG)
        assert len(replies) == len(list(replies)) == len(list(replies)) == 2

    def test_a_stream_holds_one_reply_at_a_time(self, grid: ReplyGrid) -> None:
        messages = [_message(number) for number in (*grid.get_node_ids(), *grid.get_node_ids())]
        passed: list[ref[Message]] = []
        for answer in StreamingGrid(grid).send_and_receive(messages, timeout=LONG):
            assert all(earlier() is None for earlier in passed[:-1])  # the loop's own name still holds the last one
            passed.append(ref(answer))
        assert len(passed) == 4

    def test_the_run_that_a_grid_tells_is_the_one_its_messages_belong_to(self, grid: ReplyGrid) -> None:
        assert grid.run.run_id == StreamingGrid(grid).run.run_id == RUN
        grid.set_run(describe_run(RUN + 1))
        assert grid.run.run_id == _message(next(iter(grid.get_node_ids()))).metadata.run_id == RUN + 1

    def test_two_rounds_one_after_the_other(self, grid: ReplyGrid) -> None:
        for round_number in ("1", "2"):
            messages = [_message(number, content=_content(round_number)) for number in grid.get_node_ids()]
            answers = list(grid.send_and_receive(messages, timeout=LONG))
            assert [answer.content for answer in answers] == [_content(round_number)] * 2

    def test_leaving_a_round_early_leaves_nothing_behind(self, grid: ReplyGrid) -> None:
        first, second = grid.get_node_ids()
        messages = [_message(first), _message(second)]
        replies = grid.stream(messages, timeout=LONG)
        answered = next(replies).metadata.reply_to_message_id
        replies.close()
        left = {message.metadata.message_id for message in messages} - {answered}
        assert len(list(grid.send_and_receive([_message(first), _message(second)], timeout=LONG))) == 2
        assert list(grid.pull_messages(left)) == []


class TestInlineGrid(GridContract):
    @override
    @pytest.fixture
    def grid(self) -> ReplyGrid:
        return inline_grid(node)


class TestGrpcGrid(GridContract):
    @override
    @pytest.fixture
    def grid(self, tmp_path: Path) -> Iterator[ReplyGrid]:
        with grpc_grid(tmp_path, node) as grid:
            try:
                yield grid
            finally:
                for task in works.values():
                    task.may_end.set()

    def test_a_slow_node_does_not_keep_the_reply_of_one_that_was_asked_later(self, grid: ReplyGrid) -> None:
        slow, fast = grid.get_node_ids()
        with _work() as (name, task):
            replies = grid.stream([_slow(slow, name), _message(fast)], timeout=LONG)
            assert next(replies).metadata.src_node_id == fast
            assert not task.ended.is_set()
            task.may_end.set()
            assert next(replies).metadata.src_node_id == slow

    def test_nodes_work_at_the_same_time(self, grid: ReplyGrid) -> None:
        with _work() as (one, first), _work() as (two, second):
            messages = [_slow(number, name) for number, name in zip(grid.get_node_ids(), (one, two), strict=True)]
            replies = grid.stream(messages, timeout=LONG)
            assert first.begun.wait(LONG)
            assert second.begun.wait(LONG)
            first.may_end.set()
            second.may_end.set()
            assert len(list(replies)) == 2


def test_the_server_holds_two_updates_at_most(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, held = InlineGrid._read, list[int]()
    updates: list[ref[Message]] = []

    def noting(data: bytes | bytearray, instruction: Message) -> Message:
        update = read(data, instruction)
        if instruction.metadata.message_type == MessageType.TRAIN:
            updates.append(ref(update))
            held.append(sum(collect() is not None for collect in updates))
        return update

    monkeypatch.setattr(InlineGrid, "_read", staticmethod(noting))
    run_with(make_federation())
    assert held == [1, 2, 2, 2]  # the one that was added last, and the one that has just come


class FlowersWay:
    """What Flower's own grids do: fetch all replies that came, and speak in their own name for a node that is lost."""

    def __init__(self, grid: ReplyGrid) -> None:
        self._grid = grid
        self.held = 0  # the most replies that were fetched at a time

    def push_messages(self, messages: list[Message]) -> list[str]:
        return list(self._grid.push_messages(messages))

    def pull_messages(self, message_ids: list[str]) -> list[Message]:
        messages = list(self._grid.pull_messages(message_ids))
        self.held = max(self.held, len(messages))
        for message in messages:
            if message.has_error():
                message.metadata.__dict__["_src_node_id"] = SERVER_NODE
        return messages


def test_one_of_flowers_grids_streams_too_and_its_errors_name_the_node_that_they_are_about() -> None:
    grid = inline_grid(node)
    flowers: Any = FlowersWay(grid)
    lost, other = grid.get_node_ids()
    messages = (message for message in (_message(lost, "train.refuse"), _message(other), _message(other)))
    replies = StreamingGrid(flowers).send_and_receive(messages, timeout=LONG)
    assert [(answer.metadata.src_node_id, answer.has_error()) for answer in replies] == [
        (lost, True),
        (other, False),
        (other, False),
    ]
    assert flowers.held == 1


def test_nobody_waits_longer_than_the_deadline_for_one_of_flowers_grids() -> None:
    silent: Any = SimpleNamespace(push_messages=stamp_all, pull_messages=lambda _: [])
    started, waits = time.monotonic(), list[tuple[set[int], float]]()
    grid = StreamingGrid(silent, lambda nodes, left: waits.append((set(nodes), left)))
    assert list(grid.send_and_receive([_message(11)], timeout=0.2)) == []
    assert 0.2 <= time.monotonic() - started < 5
    assert waits[0][0] == {11}
    assert 0 < waits[0][1] <= 0.2


def stamp_all(messages: list[Message]) -> list[str]:
    return [stamp(message) for message in messages]


@contextmanager
def _work() -> Iterator[tuple[str, Work]]:
    """Name a piece of work that takes as long as the test says."""
    name, task = uuid4().hex, Work()
    works[name] = task
    try:
        yield name, task
    finally:
        task.may_end.set()


def _content(text: str = "") -> RecordDict:
    return RecordDict({"said": ConfigRecord({"text": text})})


def _message(number: int, kind: str = MessageType.TRAIN, content: RecordDict | None = None, group: str = "") -> Message:
    return Message(content or _content(), number, kind, ttl=LONG, group_id=group)


def _slow(number: int, name: str, seconds: float = LONG) -> Message:
    return _message(number, "train.work", RecordDict({"work": ConfigRecord({"name": name, "seconds": seconds})}))
