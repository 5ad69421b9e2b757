"""Messages as transport/flower.py makes them; tests/test_internals.py has what it uses of Flower's insides."""

import os

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from transport.flower import FAILED, SERVER_NODE, answer, instruction, reply, stamp


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, None)


def test_a_message_has_no_id_until_it_is_stamped() -> None:
    message = instruction(RecordDict(), kind="train", node=12, run_id=7, group="1", ttl=5.0)
    assert message.metadata.message_id == ""
    assert (message.metadata.run_id, message.metadata.src_node_id) == (7, SERVER_NODE)
    assert stamp(message, "chosen") == message.metadata.message_id == "chosen"
    assert stamp(message) == message.metadata.message_id != "chosen"


def test_a_reply_names_the_message_by_its_id_and_swaps_sender_and_receiver() -> None:
    message = instruction(RecordDict(), kind="train", node=12, run_id=7, group="1", ttl=5.0)
    stamp(message, "m")
    for content in (RecordDict(), Error(1, "no")):
        meta = reply(content, message).metadata
        assert (meta.reply_to_message_id, meta.src_node_id, meta.dst_node_id) == ("m", 12, SERVER_NODE)
        assert (meta.run_id, meta.message_type, meta.group_id) == (7, "train", "1")


def test_an_app_that_raises_answers_with_an_error_that_does_not_say_why() -> None:
    def raising(message: Message, context: Context) -> Message:
        raise KeyError(message, context)

    message = instruction(RecordDict(), kind="train", node=12, run_id=7, group="1", ttl=5.0)
    message_ = answer(raising, message, Context(7, 12, {}, RecordDict(), {}))
    assert message_.error.code == FAILED
    assert "KeyError" not in str(message_.error.reason)


def test_flower_does_not_call_home() -> None:
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
