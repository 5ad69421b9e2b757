"""The parsers of what comes over the network: frames, parcels, and what the records in them say."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from flwr.app import Error
from google.protobuf.message import DecodeError

from privacy.envelope import Contribution, SignedUpdate
from privacy.heads import SignedHead
from privacy.summation import EncryptedSum
from privacy.votes import Question, Vote
from tests.transport.records import everything
from transport import ceremony, contents, heads, masking, votes
from transport import cloister_pb2 as pb
from transport.flower import instruction, reply, stamp
from transport.framing import Assembly, to_frames
from transport.parcel import decode_arrays, decode_instruction, decode_reply, encode, encode_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flwr.app import Message, RecordDict

    Entry = tuple[str, Callable[[bytes], object], list[bytes]]

_DIGEST = "0f" * 32
_LIMIT = 1 << 16
_SUM = EncryptedSum(b"plan", (Contribution(b"header", b"signature", b"seeds"),) * 2, (b"c0", b"c0"), b"codes",
                    (b"c1", b"c1"))  # fmt: skip
_UPDATE = SignedUpdate(b"header", b"signature", (b"one", b"two"))
_OPENED = contents.Opened(_DIGEST, 0.5, bytes(64))
_HEAD = SignedHead(_DIGEST, bytes(64))
_VOTE = Vote(reject=True, signature=bytes(64))
_ASKED: dict[str, tuple[Callable[[RecordDict], object], RecordDict]] = {
    "query": (contents.read_manifest, contents.pack_query(b"manifest")),
    "head asked": (heads.read_head, heads.put_head(contents.pack_query(b"manifest"), _HEAD)),
    "train": (contents.read_train, contents.pack_train(b"manifest", b"plan", [_SUM, _SUM])),
    "sum": (contents.read_sum, contents.pack_sum(b"manifest", _SUM)),
    "lead": (ceremony.read_lead, ceremony.pack_lead(3)),
    "contributors": (masking.read_contributors, masking.pack_contributors(b"manifest", b"plan", _SUM.contributions)),
    "signatures": (
        masking.read_signatures,
        masking.pack_contributors(b"manifest", b"plan", _SUM.contributions, {"north": bytes(64)}),
    ),
    "votes": (
        lambda content: votes.read_votes(content, _DIGEST),
        votes.pack_votes(b"manifest", Question(_DIGEST, 2, _DIGEST, _DIGEST), {"north": _VOTE}),
    ),
    "pairs": (ceremony.read_pairs, ceremony.pack_pairs(_DIGEST, {"north": b"letter"})),
    "body": (
        masking.read_body,
        masking.pack_body(b"manifest", b"plan", _UPDATE, masking.Accusation("north", bytes(64))),
    ),
    "letter from": (ceremony.read_letter_from, ceremony.pack_letter("north", b"letter")),
}
_ANSWERED: dict[str, tuple[Callable[[RecordDict], object], RecordDict]] = {
    "readiness": (contents.read_readiness, contents.pack_readiness(
        contents.Readiness("north", _DIGEST, 20, _DIGEST, 0.5, 2, _DIGEST, 2, ["south"], 1e9, b"signature"))),
    "update": (contents.read_update, contents.pack_update(_UPDATE, {"epsilon": 0.5})),
    "head answered": (heads.read_head, heads.put_head(contents.pack_update(_UPDATE, {}), _HEAD)),
    "opened": (contents.read_opened, contents.pack_opened(_OPENED, {"accuracy": 1.0, "loss": 0.5})),
    "vote": (votes.find_vote, votes.put_vote(contents.pack_opened(_OPENED, {}), _VOTE)),
    "undone": (votes.read_undone, votes.pack_undone(_DIGEST)),
    "agreed": (masking.read_agreed, masking.pack_agreed(bytes(64), bytes(48))),
    "verdict": (masking.read_verdict, masking.pack_verdict(masking.Verdict(right=True, signature=bytes(64)))),
    "refused": (masking.find_refusal, masking.pack_refusal(masking.Refusal("seeds", ["east"], bytes(64)))),
    "revealed": (masking.read_revealed, masking.pack_revealed(bytes(112))),
    "keys": (ceremony.read_keys, ceremony.pack_keys(3, _DIGEST, {}, {"west": b"pair"})),
    "own pairs": (ceremony.read_own_pairs, ceremony.pack_keys(3, _DIGEST, {}, {"west": b"pair"})),
    "shared": (ceremony.read_shared, ceremony.pack_shared({"west": b"pair"}, ["east", "west"])),
    "letters": (ceremony.read_letters, ceremony.pack_keys(3, _DIGEST, {"north": b"one", "south": b"two"}, {})),
}  # fmt: skip


def message_parsers() -> Iterator[Entry]:
    """Yield name, parser and seeds of each."""
    to = _ask(everything())
    yield "frames", _assemble, [_framed(bytes(100), 7), _framed(bytes(100), 1000), _framed(b"", 7)]
    yield "instruction", decode_instruction, [_joined(encode(to))]
    yield ("reply", lambda data: decode_reply(data, to),
           [_joined(encode(reply(everything(), to))), _joined(encode(reply(Error(100, "no"), to)))])  # fmt: skip
    yield "arrays", decode_arrays, [_joined(encode_arrays(contents.sum_to_arrays(_SUM)))]
    yield ("stored sum", lambda data: contents.sum_from_arrays(decode_arrays(data)),
           [_joined(encode_arrays(contents.sum_to_arrays(_SUM)))])  # fmt: skip
    for name, (read, content) in _ASKED.items():
        yield name, partial(_read_asked, read), [_joined(encode(_ask(content)))]
    for name, (read, content) in _ANSWERED.items():
        yield name, partial(_read_answered, read, to), [_joined(encode(reply(content, to)))]


_joined = b"".join


def _read_asked(read: Callable[[RecordDict], object], data: bytes) -> object:
    return read(decode_instruction(data).content)


def _read_answered(read: Callable[[RecordDict], object], to: Message, data: bytes) -> object:
    return read(contents.content_of(decode_reply(data, to)))


def _ask(content: RecordDict) -> Message:
    message = instruction(content, kind="train", node=12, run_id=7, group="1", ttl=60.0)
    stamp(message, "f" * 32)
    return message


def _framed(data: bytes, size: int) -> bytes:
    """Return a message's chunks of this size, each behind its length."""
    whole = next(to_frames([data], "m"))
    chunks = [pb.Chunk(opening=whole.opening, data=data[:size])]
    chunks += [pb.Chunk(data=data[start : start + size]) for start in range(size, len(data), size)]
    return b"".join(len(each).to_bytes(2) + each for each in (chunk.SerializeToString() for chunk in chunks))


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
