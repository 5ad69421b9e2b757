"""Parcels carry every kind of record that Flower has, and other bytes than a parcel's are refused with a name."""

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from google.protobuf.message import Message as Proto
from hypothesis import example, given
from hypothesis import strategies as st

from privacy.errors import CloisterError, MalformedError
from tests.transport.records import array_records, contents, everything, floats, integers, names, spelled
from transport import cloister_pb2 as pb
from transport.flower import instruction, reply, stamp
from transport.parcel import decode_arrays, decode_instruction, decode_reply, encode, encode_arrays

RUN, NODE = 7, 12


def sent(message: Message) -> bytes:
    """What of a message travels, all parts one after the other."""
    return b"".join(encode(message))


def framed(head: Proto, following: bytes = b"") -> bytes:
    """Write a parcel, or arrays, as the protocol says: length, message, the arrays' bytes."""
    data = head.SerializeToString()
    return len(data).to_bytes(4, "big") + data + following


def parsed(data: bytes) -> tuple[pb.Parcel, bytes]:
    """Take a parcel apart: the message, and what follows it."""
    end = 4 + int.from_bytes(data[:4], "big")
    return pb.Parcel.FromString(data[4:end]), data[end:]


def ask(content: RecordDict | None = None, **changes: Any) -> Message:  # noqa: ANN401 - of several types
    message = instruction(
        content or RecordDict(), **{"kind": "train", "node": NODE, "run_id": RUN, "group": "1", "ttl": 60.0, **changes}
    )
    stamp(message)
    return message


@given(content=contents, group=names, ttl=st.floats(1e-3, 1e6))
def test_an_instruction_arrives_as_it_was(content: RecordDict, group: str, ttl: float) -> None:
    message = ask(content, group=group, ttl=ttl)
    arrived = decode_instruction(sent(message))
    assert spelled(arrived.content) == spelled(content)
    for name in (
        "message_id",
        "run_id",
        "src_node_id",
        "dst_node_id",
        "reply_to_message_id",
        "group_id",
        "ttl",
        "message_type",
    ):
        assert getattr(arrived.metadata, name) == getattr(message.metadata, name), name


@given(content=contents)
def test_a_reply_arrives_as_it_was(content: RecordDict) -> None:
    to = ask()
    arrived = decode_reply(sent(reply(content, decode_instruction(sent(to)))), to)
    assert spelled(arrived.content) == spelled(content)
    assert (arrived.metadata.src_node_id, arrived.metadata.reply_to_message_id) == (NODE, to.metadata.message_id)


@given(code=st.integers(-(2**31), 2**31 - 1), reason=st.none() | st.text(max_size=2000))
def test_an_error_arrives_with_the_beginning_of_its_reason(code: int, reason: str | None) -> None:
    to = ask()
    arrived = decode_reply(sent(reply(Error(code, reason), to)), to)
    assert (arrived.error.code, arrived.error.reason) == (code, (reason or "")[:1000])


@given(record=array_records)
def test_arrays_in_a_file_are_read_back_in_their_order(record: ArrayRecord) -> None:
    assert list(decode_arrays(b"".join(encode_arrays(record))).items()) == list(record.items())


def test_numbers_that_only_behave_like_pythons_are_carried_as_pythons() -> None:
    content = RecordDict({"m": MetricRecord({"x": np.float64(0.5), "xs": list(np.array([inf]))})})
    assert decode_instruction(sent(ask(content))).content["m"] == MetricRecord({"x": 0.5, "xs": [inf]})


def test_a_parcel_contains_no_pickle() -> None:
    data = sent(ask(everything()))
    assert b"\x80\x04" not in data
    assert b"\x80\x05" not in data


# --- Bytes from outside ---------------------------------------------------------------------------------------------


def _read_all(data: bytes) -> None:
    """Read bytes as everything that they could be; whatever they are, no other error than ours comes out."""
    readers: list[Callable[[], object]] = [
        lambda: decode_instruction(data), lambda: decode_reply(data, ask()), lambda: decode_arrays(data)
    ]  # fmt: skip
    for read in readers:
        try:
            read()
        except CloisterError:
            continue


@given(data=st.binary(max_size=400))
@example(b"")
def test_arbitrary_bytes_are_read_or_refused_but_never_raise_another_error(data: bytes) -> None:
    _read_all(data)


@given(content=contents, data=st.data())
def test_parcels_with_flipped_and_missing_bytes_are_read_or_refused(content: RecordDict, data: st.DataObject) -> None:
    parcel = bytearray(sent(ask(content)))
    for _ in range(data.draw(st.integers(1, 4))):
        parcel[data.draw(st.integers(0, len(parcel) - 1))] = data.draw(st.integers(0, 255))
    _read_all(bytes(parcel[: data.draw(st.integers(0, len(parcel)))]))


def _protos(kind: type[Proto]) -> st.SearchStrategy[Proto]:
    """Well-formed messages of a kind with any content that protobuf allows."""
    if kind is pb.Value:
        choices = {
            "number": floats, "integer": integers, "flag": st.booleans(), "text": names, "blob": st.binary(max_size=8),
            "numbers": st.builds(pb.Value.Doubles, items=st.lists(floats, max_size=2)),
            "integers": st.builds(pb.Value.Integers, items=st.lists(integers, max_size=2)),
            "texts": st.builds(pb.Value.Strings, items=st.lists(names, max_size=2)),
            "blobs": st.builds(pb.Value.Blobs, items=st.lists(st.binary(max_size=4), max_size=2)),
            "flags": st.builds(pb.Value.Flags, items=st.lists(st.booleans(), max_size=2)),
        }  # fmt: skip
        return st.one_of(
            st.just(pb.Value()), *(st.builds(pb.Value, **{name: choice}) for name, choice in choices.items())
        )
    if kind is pb.Arrays:
        entries = st.builds(
            pb.Arrays.Entry,
            name=names,
            dtype=names,
            shape=st.lists(integers, max_size=3),
            stype=names,
            size=st.integers(0, 8) | st.integers(0, 2**64 - 1),
        )
        return st.builds(pb.Arrays, entries=st.lists(entries, max_size=3))
    if kind is pb.Values:
        return st.builds(pb.Values, values=st.dictionaries(names, _protos(pb.Value), max_size=3))
    if kind is pb.Records:
        return st.builds(
            pb.Records,
            arrays=st.dictionaries(names, _protos(pb.Arrays), max_size=2),
            metrics=st.dictionaries(names, _protos(pb.Values), max_size=2),
            configs=st.dictionaries(names, _protos(pb.Values), max_size=2),
        )
    numbered = st.integers(0, 2**64 - 1)
    fields = {
        "message_id": names, "reply_to": names, "group": names,
        "kind": names | st.sampled_from(["train", "train.x", "evaluate", "query", "system"]),
        "run_id": numbered, "source": numbered, "destination": numbered, "created_at": floats, "ttl": floats,
    }  # fmt: skip
    failures = st.builds(pb.Failure, code=st.integers(-(2**31), 2**31 - 1), reason=names)
    return st.one_of(
        st.builds(pb.Parcel, **fields),
        st.builds(pb.Parcel, **fields, failure=failures),
        st.builds(pb.Parcel, **fields, records=_protos(pb.Records)),
    )


@given(parcel=st.one_of(_protos(pb.Parcel), _protos(pb.Arrays)), following=st.binary(max_size=24))
def test_well_formed_parcels_with_wrong_content_are_read_or_refused(parcel: Proto, following: bytes) -> None:
    _read_all(framed(parcel, following))


@given(parcel=_protos(pb.Parcel), following=st.binary(max_size=24))
def test_a_reply_to_another_message_is_refused_whatever_it_holds(parcel: Proto, following: bytes) -> None:
    with pytest.raises(MalformedError, match="a message other than"):
        decode_reply(framed(parcel, following), ask())


def _altered(message: Message, change: Callable[[pb.Parcel], object]) -> bytes:
    parcel, following = parsed(sent(message))
    change(parcel)
    return framed(parcel, following)


@pytest.mark.parametrize(
    "change",
    [
        lambda parcel: parcel.ClearField("records"),
        lambda parcel: parcel.failure.SetInParent(),
        lambda parcel: setattr(parcel, "reply_to", "x"),
        lambda parcel: setattr(parcel, "kind", "delete"),
        lambda parcel: setattr(parcel, "kind", ""),
        lambda parcel: parcel.records.metrics["m"].values["x"].SetInParent(),
        lambda parcel: setattr(parcel.records.metrics["m"].values["x"], "text", "no metric"),
        lambda parcel: setattr(parcel.records.metrics["m"].values["x"], "flag", True),
    ],
    ids=["nobody", "failure", "a reply", "unknown kind", "no kind", "empty value", "text metric", "flag metric"],
)
def test_a_message_that_is_not_an_instruction_is_refused_in_plain_words(change: Callable[[pb.Parcel], object]) -> None:
    with pytest.raises(MalformedError, match="run the same version everywhere"):
        decode_instruction(_altered(ask(), change))


@pytest.mark.parametrize("place", ["kind", "record", "value"])
def test_names_that_flower_does_not_accept_are_not_repeated_as_they_came(place: str) -> None:
    name = "train.\x1b[2J\u202e\n" * 10_000

    def change(parcel: pb.Parcel) -> None:
        if place == "kind":
            parcel.kind = name
        elif place == "record":
            parcel.records.metrics[name].values["x"].text = "no metric"
        else:
            parcel.records.metrics["m"].values[name].text = "no metric"

    with pytest.raises(MalformedError) as caught:
        decode_instruction(_altered(ask(), change))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


# --- Arrays, whose bytes follow -------------------------------------------------------------------------------------


def two_arrays() -> RecordDict:
    first, second = (Array("uint8", (4,), "x", data) for data in (b"1234", b"5678"))
    return RecordDict({"b": ArrayRecord({"z": first}), "a": ArrayRecord({"y": second, "e": Array("", (), "", b"")})})


def test_arrays_follow_the_parcel_as_they_are_in_the_order_of_their_records() -> None:
    content = two_arrays()
    parts = encode(ask(content))
    assert parts[2:] == (b"5678", b"", b"1234")
    assert parts[2] is content.array_records["a"]["y"].data  # not a copy
    parcel, following = parsed(b"".join(parts))
    assert following == b"56781234"
    assert [entry.size for name in "ab" for entry in parcel.records.arrays[name].entries] == [4, 0, 4]


@pytest.mark.parametrize("kind", ["instruction", "reply", "file"])
@pytest.mark.parametrize(
    ("change", "following", "sentence_"),
    [
        pytest.param(5, b"56781234", "longer arrays than follow", id="announced longer"),
        pytest.param(2**64 - 1, b"56781234", "longer arrays than follow", id="announced as long as can be"),
        pytest.param(3, b"56781234", "longer than it announces", id="announced shorter"),
        pytest.param(0, b"56781234", "longer than it announces", id="announced empty"),
        pytest.param(4, b"5678123", "longer arrays than follow", id="cut"),
        pytest.param(4, b"", "longer arrays than follow", id="missing"),
        pytest.param(4, b"567812345", "longer than it announces", id="padded"),
    ],
)
def test_arrays_announced_longer_or_shorter_than_what_follows_are_refused(
    kind: str, change: int, following: bytes, sentence_: str
) -> None:
    to = ask()
    if kind == "file":
        arrays = pb.Arrays(entries=[pb.Arrays.Entry(name="1", size=4), pb.Arrays.Entry(name="2", size=change)])
        with pytest.raises(MalformedError, match=sentence_):
            decode_arrays(framed(arrays, following))
        return
    message = ask(two_arrays()) if kind == "instruction" else reply(two_arrays(), to)
    parcel, _ = parsed(sent(message))
    parcel.records.arrays["b"].entries[0].size = change
    data = framed(parcel, following)
    with pytest.raises(MalformedError, match=sentence_):
        _ = decode_instruction(data) if kind == "instruction" else decode_reply(data, to)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_length_that_is_itself_cut_is_refused(length: int) -> None:
    with pytest.raises(MalformedError):
        decode_instruction(sent(ask())[:length])


@pytest.mark.parametrize("beyond", [1, 2**31])
def test_a_parcel_that_is_announced_longer_than_the_message_is_refused(beyond: int) -> None:
    data = sent(ask())
    longer = (len(data) - 4 + beyond).to_bytes(4, "big") + data[4:]
    with pytest.raises(MalformedError, match="not a Cloister message"):
        decode_instruction(longer)
