"""Serialise Flower messages to bytes and back.

A parcel carries every kind of record in Flower's public API, and nothing else: no pickles, no numpy files. An array
stays the opaque bytes that its sender wrote; nothing here decodes them, and they follow the parcel without a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from google.protobuf.message import DecodeError

from privacy.errors import MalformedError
from privacy.untrusted_text import plain, quoted
from transport import cloister_pb2 as pb
from transport.body import framed, split
from transport.flower import instruction, reply, stamp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flwr.app import Message

    from transport.body import Bytes, Cutter


# The fields for a value of each type, and for a list of them. The order matters: in Python, a bool is an int.
_FIELDS: dict[type, tuple[str, str]] = {
    bool: ("flag", "flags"),
    int: ("integer", "integers"),
    float: ("number", "numbers"),
    str: ("text", "texts"),
    bytes: ("blob", "blobs"),
}
_MOST_ARRAYS = 1 << 16  # in one record
_LISTS = {many for _, many in _FIELDS.values()}


def encode(message: Message) -> tuple[bytes, ...]:
    """Serialise a message with its id and metadata; return the parts, in the order to send them."""
    meta = message.metadata
    parcel = pb.Parcel(
        message_id=meta.message_id,
        reply_to=meta.reply_to_message_id,
        run_id=meta.run_id,
        source=meta.src_node_id,
        destination=meta.dst_node_id,
        group=meta.group_id,
        kind=meta.message_type,
        created_at=meta.created_at,
        ttl=meta.ttl,
    )
    if message.has_error():
        parcel.failure.code = message.error.code
        parcel.failure.reason = message.error.reason or ""
    else:
        parcel.records.SetInParent()  # present even if empty
        arrays = _fill(parcel.records, message.content)
        data = (array.data for name in sorted(arrays) for array in arrays[name].values())
        return framed(parcel.SerializeToString(), data)
    return framed(parcel.SerializeToString(), ())


def decode_instruction(data: Bytes) -> Message:
    """Read a message from the server, at a node.

    Raises:
        MalformedError: if the bytes are not such a message.
    """
    parcel, arrays = _parse(data)
    if parcel.reply_to or parcel.WhichOneof("body") != "records":
        msg = "the server sent a message that is not an instruction; run the same version everywhere"
        raise MalformedError(msg)
    try:
        message = instruction(
            _records(parcel.records, arrays),
            kind=parcel.kind,
            node=parcel.destination,
            run_id=parcel.run_id,
            group=parcel.group,
            ttl=parcel.ttl,
        )
    except (ValueError, TypeError) as error:
        why = quoted(str(error))
        msg = f"the server sent a message that Flower does not accept ({why}); run the same version everywhere"
        raise MalformedError(msg) from error
    stamp(message, parcel.message_id)
    return message


def decode_reply(data: Bytes, to: Message) -> Message:
    """Read a node's reply to `to`, at the server.

    Raises:
        MalformedError: if the bytes are not a reply to that message.
    """
    parcel, arrays = _parse(data)
    if parcel.reply_to != to.metadata.message_id:
        msg = "a reply names a message other than the one that it answers; it was dropped"
        raise MalformedError(msg)
    if parcel.WhichOneof("body") is None:
        msg = "a reply contains neither records nor an error; it was dropped"
        raise MalformedError(msg)
    try:
        if parcel.WhichOneof("body") == "records":
            content: RecordDict | Error = _records(parcel.records, arrays)
        else:
            content = Error(parcel.failure.code, parcel.failure.reason[:1000])
        message = reply(content, to)
    except (ValueError, TypeError) as error:
        msg = f"a reply contains records that Flower does not accept ({plain(str(error))}); it was dropped"
        raise MalformedError(msg) from error
    stamp(message, parcel.message_id)
    return message


def encode_arrays(arrays: ArrayRecord) -> tuple[bytes, ...]:
    """Serialise arrays for a file; return the parts, in the order to write them."""
    head = pb.Arrays()
    _fill_arrays(head, arrays)
    return framed(head.SerializeToString(), (array.data for array in arrays.values()))


def decode_arrays(data: Bytes) -> ArrayRecord:
    """Undo `encode_arrays`.

    Raises:
        MalformedError: if the bytes hold no arrays.
    """
    try:
        head, rest = split(data)
        record = _array_record(pb.Arrays.FromString(head), rest)
        rest.finish()
    except (DecodeError, ValueError, TypeError) as error:
        msg = f"these bytes contain no arrays ({error}); the file is damaged"
        raise MalformedError(msg) from error
    return record


def _fill_arrays(target: pb.Arrays, arrays: ArrayRecord) -> None:
    for name, array in arrays.items():
        target.entries.add(name=name, dtype=array.dtype, shape=array.shape, stype=array.stype, size=len(array.data))


def _array_record(arrays: pb.Arrays, data: Cutter) -> ArrayRecord:
    if len(arrays.entries) > _MOST_ARRAYS:
        msg = "it exceeds the limit on the number of arrays"
        raise ValueError(msg)
    record = ArrayRecord()  # filled in place: made from a dictionary, it copies every array
    for entry in arrays.entries:
        record[entry.name] = Array(entry.dtype, tuple(entry.shape), entry.stype, data.take(entry.size))
    return record


def _parse(data: Bytes) -> tuple[pb.Parcel, Cutter]:
    try:
        head, rest = split(data)
        return pb.Parcel.FromString(head), rest
    except (DecodeError, ValueError) as error:
        msg = "these bytes are not a Cloister message; run the same version everywhere"
        raise MalformedError(msg) from error


def _fill(records: pb.Records, content: RecordDict) -> dict[str, ArrayRecord]:
    """Fill in all records, and return those of arrays, whose bytes follow the parcel."""
    arrays = dict[str, ArrayRecord]()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            records.arrays[name].SetInParent()
            _fill_arrays(records.arrays[name], record)
            arrays[name] = record
        else:
            values = records.metrics if isinstance(record, MetricRecord) else records.configs
            values[name].SetInParent()
            _fill_values(values[name], record)
    return arrays


def _fill_values(target: pb.Values, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        slot = target.values[key]
        if isinstance(value, list):
            # An empty list has no element type; any list field can hold it.
            items = getattr(slot, _fields(value[0] if value else 0)[1])
            items.SetInParent()
            items.items.extend(value)
        else:
            setattr(slot, _fields(value)[0], value)


def _fields(value: object) -> tuple[str, str]:
    return next(fields for kind, fields in _FIELDS.items() if isinstance(value, kind))


def _records(records: pb.Records, data: Cutter) -> RecordDict:
    content = RecordDict()
    for name in sorted(records.arrays):
        content[name] = _array_record(records.arrays[name], data)
    data.finish()
    for name, values in records.metrics.items():
        content[name] = MetricRecord({key: _value(value) for key, value in values.values.items()})
    for name, values in records.configs.items():
        content[name] = ConfigRecord({key: _value(value) for key, value in values.values.items()})
    return content


def _value(value: pb.Value) -> Any:  # noqa: ANN401 - whatever scalar or list the sender's record held
    field = value.WhichOneof("value")
    if field is None:
        msg = "a record contains a value without content"
        raise ValueError(msg)
    item = getattr(value, field)
    return list(item.items) if field in _LISTS else item
