"""Parcels carry every kind of record that Flower has, and other bytes than a parcel's are refused with a name."""

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from google.protobuf.message import Message as Proto
from hypothesis import example, given
from hypothesis import strategies as st

from privacy.errors import CloisterError, MalformedError
from tests.transport.records import array_records, contents, everything, floats, integers, names, spelled
from transport import cloister_pb2 as pb
from transport.flower import instruction, reply, stamp
from transport.parcel import decode_arrays, decode_instruction, decode_reply, encode, encode_arrays

RUN, NODE = 7, 12


def ask(content: RecordDict | None = None, **changes: Any) -> Message:  # noqa: ANN401 - of several types
    message = instruction(
        content or RecordDict(), **{"kind": "train", "node": NODE, "run_id": RUN, "group": "1", "ttl": 60.0, **changes}
    )
    stamp(message)
    return message


@given(content=contents, group=names, ttl=st.floats(1e-3, 1e6))
def test_an_instruction_arrives_as_it_was(content: RecordDict, group: str, ttl: float) -> None:
    sent = ask(content, group=group, ttl=ttl)
    arrived = decode_instruction(encode(sent))
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
        assert getattr(arrived.metadata, name) == getattr(sent.metadata, name), name


@given(content=contents)
def test_a_reply_arrives_as_it_was(content: RecordDict) -> None:
    to = ask()
    sent = reply(content, decode_instruction(encode(to)))
    arrived = decode_reply(encode(sent), to)
    assert spelled(arrived.content) == spelled(content)
    assert (arrived.metadata.src_node_id, arrived.metadata.reply_to_message_id) == (NODE, to.metadata.message_id)


@given(code=st.integers(-(2**31), 2**31 - 1), reason=st.none() | st.text(max_size=2000))
def test_an_error_arrives_with_the_beginning_of_its_reason(code: int, reason: str | None) -> None:
    to = ask()
    arrived = decode_reply(encode(reply(Error(code, reason), to)), to)
    assert (arrived.error.code, arrived.error.reason) == (code, (reason or "")[:1000])


@given(record=array_records)
def test_arrays_in_a_file_are_read_back_in_their_order(record: ArrayRecord) -> None:
    assert list(decode_arrays(encode_arrays(record)).items()) == list(record.items())


def test_numbers_that_only_behave_like_pythons_are_carried_as_pythons() -> None:
    content = RecordDict({"m": MetricRecord({"x": np.float64(0.5), "xs": list(np.array([inf]))})})
    assert decode_instruction(encode(ask(content))).content["m"] == MetricRecord({"x": 0.5, "xs": [inf]})


def test_nothing_in_a_parcel_is_a_pickle() -> None:
    data = encode(ask(everything()))
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
    parcel = bytearray(encode(ask(content)))
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
        return st.one_of(st.just(pb.Value()), *(st.builds(pb.Value, **{name: each}) for name, each in choices.items()))
    if kind is pb.Arrays:
        entries = st.builds(
            pb.Arrays.Entry,
            name=names,
            dtype=names,
            shape=st.lists(integers, max_size=3),
            stype=names,
            data=st.binary(max_size=8),
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


@given(parcel=st.one_of(_protos(pb.Parcel), _protos(pb.Arrays)))
def test_well_formed_parcels_with_wrong_content_are_read_or_refused(parcel: Proto) -> None:
    _read_all(parcel.SerializeToString())


@given(parcel=_protos(pb.Parcel))
def test_a_reply_to_another_message_is_refused_whatever_it_holds(parcel: Proto) -> None:
    with pytest.raises(MalformedError, match="another message"):
        decode_reply(parcel.SerializeToString(), ask())


def _altered(message: Message, change: Callable[[pb.Parcel], object]) -> bytes:
    parcel = pb.Parcel.FromString(encode(message))
    change(parcel)
    return parcel.SerializeToString()


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
def test_what_is_no_instruction_is_refused_in_plain_words(change: Callable[[pb.Parcel], object]) -> None:
    with pytest.raises(MalformedError, match="must run the same version"):
        decode_instruction(_altered(ask(), change))
