"""The parsers of what comes over the network: frames, parcels, and what the records in them say."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from flwr.app import Error
from google.protobuf.message import DecodeError

from privacy.codec.envelope import Contribution
from privacy.crypto.summation import EncryptedSum
from tests.privacy.golden_wire import instructions, replies
from tests.privacy.readers import ANSWERED
from tests.transport.records import everything
from transport import cloister_pb2 as pb
from transport import run_messages
from transport.flower import instruction, reply, stamp
from transport.framing import Assembly, to_frames
from transport.messages import KINDS
from transport.parcel import decode_arrays, decode_instruction, decode_reply, encode, encode_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flwr.app import Message, RecordDict

    Entry = tuple[str, Callable[[bytes], object], list[bytes]]

_LIMIT = 1 << 16
_RUN = "0f" * 32
_SUM = EncryptedSum(b"plan", (Contribution(b"header", b"signature", b"seeds"),) * 2, (b"c0", b"c0"), b"codes",
                    (b"c1", b"c1"))  # fmt: skip


def message_parsers() -> Iterator[Entry]:
    """Yield name, parser and seeds of each."""
    to = _ask(everything())
    yield "frames", _assemble, [_framed(bytes(100), 7), _framed(bytes(100), 1000), _framed(b"", 7)]
    yield "instruction", decode_instruction, [_joined(encode(to))]
    yield ("reply", lambda data: decode_reply(data, to),
           [_joined(encode(reply(everything(), to))), _joined(encode(reply(Error(100, "no"), to)))])  # fmt: skip
    yield "arrays", decode_arrays, [_joined(encode_arrays(run_messages.sum_to_arrays(_SUM)))]
    yield ("stored sum", lambda data: run_messages.sum_from_arrays(decode_arrays(data)),
           [_joined(encode_arrays(run_messages.sum_to_arrays(_SUM)))])  # fmt: skip
    for name, content in instructions(_RUN).items():
        yield name, partial(_read_asked, KINDS[name].read), [_joined(encode(_ask(content)))]
    for name, content in replies(_RUN).items():
        yield name, partial(_read_answered, ANSWERED[name].read_reply, to), [_joined(encode(reply(content, to)))]


_joined = b"".join


def _read_asked(read: Callable[[RecordDict], object], data: bytes) -> object:
    return read(decode_instruction(data).content)


def _read_answered(read: Callable[[RecordDict], object], to: Message, data: bytes) -> object:
    return read(run_messages.content_of(decode_reply(data, to)))


def _ask(content: RecordDict) -> Message:
    message = instruction(content, kind="train", node=12, run_id=7, group="1", ttl=60.0)
    stamp(message, "f" * 32)
    return message


def _framed(data: bytes, size: int) -> bytes:
    """Return a message's chunks of this size, each behind its length."""
    whole = next(to_frames([data], "m"))
    chunks = [pb.Chunk(opening=whole.opening, data=data[:size])]
    chunks += [pb.Chunk(data=data[start : start + size]) for start in range(size, len(data), size)]
    return b"".join(len(frame).to_bytes(2) + frame for frame in (chunk.SerializeToString() for chunk in chunks))


def _assemble(data: bytes) -> bytearray | None:
    """Assemble chunks as the hub does; gRPC has parsed each of them."""
    assembly = Assembly(_LIMIT)
    while data:
        size = 2 + int.from_bytes(data[:2])
        try:
            chunk = pb.Chunk.FromString(data[2:size])
        except DecodeError:
            return None
        assembly.add(chunk)
        data = data[size:]
    return assembly.finish()
