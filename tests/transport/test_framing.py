"""Messages are cut and put together again; nobody is made to hold more than was announced and allowed."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privacy.errors import MalformedError
from transport import cloister_pb2 as pb
from transport.framing import FRAME_BYTES, PROTOCOL, Assembly, assemble, to_frames

LIMIT = 8 * FRAME_BYTES


def opening(total: int, data: bytes = b"", protocol: int = PROTOCOL) -> pb.Chunk:
    return pb.Chunk(opening=pb.Opening(protocol=protocol, total_bytes=total), data=data)


def assembled(frames: Iterable[pb.Chunk], limit: int = LIMIT) -> bytes | None:
    body = assemble(frames, limit)
    return None if body is None else bytes(body)


@given(size=st.integers(0, LIMIT), cuts=st.lists(st.floats(0, 1), max_size=5))
@example(0, [])
@example(1, [])
@example(FRAME_BYTES, [])
@example(FRAME_BYTES + 1, [])
@example(2 * FRAME_BYTES, [])
@example(LIMIT, [])
@example(2 * FRAME_BYTES, [0.5])
@example(2 * FRAME_BYTES + 3, [0.0, 0.25, 0.25, 1.0])
def test_any_message_within_the_limit_arrives_as_it_was(size: int, cuts: list[float]) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    places = [0, *sorted(int(cut * size) for cut in cuts), size]
    parts = [data[start:end] for start, end in pairwise(places)]
    frames = list(to_frames(parts, "m"))
    assert assembled(frames) == data
    assert all(len(frame.data) <= FRAME_BYTES for frame in frames)
    # Short parts share a frame: never two in a row that would fit into one.
    assert all(len(one.data) + len(next_.data) > FRAME_BYTES for one, next_ in pairwise(frames))
    assert frames[0].opening.reply_to == "m"
    assert frames[0].opening.total_bytes == size
    assert not any(frame.HasField("opening") for frame in frames[1:])


def test_a_message_has_at_least_one_chunk() -> None:
    assert assemble([], LIMIT) is None


def test_a_message_over_the_limit_is_refused_at_its_announcement() -> None:
    with pytest.raises(MalformedError, match="a message of 101 bytes exceeds the limit of 100"):
        Assembly(100).add(opening(101))
    assert assembled(to_frames([bytes(100)]), 100) == bytes(100)


@given(announced=st.integers(0, 2**64 - 1))
def test_memory_is_taken_only_for_data_that_has_arrived(announced: int) -> None:
    assembly = Assembly(2**64)
    assembly.add(opening(announced))
    assert assembly._data == b""


@given(announced=st.integers(0, 60), pieces=st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_no_more_memory_is_taken_than_was_announced(announced: int, pieces: list[bytes]) -> None:
    first, *others = pieces
    chunks = [opening(announced, first), *(pb.Chunk(data=data) for data in others)]
    assembly = Assembly(100)
    for before, chunk in pairwise([None, *chunks]):
        assert chunk is not None
        del before
        if len(assembly._data) + len(chunk.data) > announced:
            with pytest.raises(MalformedError, match="longer than"):
                assembly.add(chunk)
            break
        assembly.add(chunk)
    else:
        whole = b"".join(pieces)
        if len(whole) == announced:
            assert bytes(assembly.finish() or b"") == whole
        else:
            with pytest.raises(MalformedError, match="cut short"):
                assembly.finish()
    assert len(assembly._data) <= announced


@given(size=st.integers(1, 3 * FRAME_BYTES), kept=st.integers(0, 2))
def test_a_message_that_was_cut_short_is_refused(size: int, kept: int) -> None:
    frames = list(to_frames([bytes(size)]))[:-1][:kept]
    if not frames:
        assert assemble(frames, LIMIT) is None
        return
    with pytest.raises(MalformedError, match="cut short"):
        assemble(frames, LIMIT)


@pytest.mark.parametrize("protocol", [0, PROTOCOL + 1, 2**32 - 1])
def test_another_protocol_is_refused_by_its_number(protocol: int) -> None:
    with pytest.raises(MalformedError, match=f"protocol {protocol} is not supported"):
        Assembly(LIMIT).add(opening(0, protocol=protocol))


def test_a_message_that_does_not_announce_itself_is_refused() -> None:
    with pytest.raises(MalformedError, match="protocol 0"):
        assemble([pb.Chunk(data=b"x")], LIMIT)


def test_only_the_first_announcement_counts() -> None:
    assembly = Assembly(LIMIT)
    assembly.add(opening(1, b"x"))
    with pytest.raises(MalformedError, match="longer than the 1 bytes"):
        assembly.add(opening(100, b"y"))


def test_messages_of_one_stream_are_read_one_at_a_time() -> None:
    stream = iter([*to_frames([b"first"]), *to_frames([bytes(FRAME_BYTES + 1)]), *to_frames([b""])])
    messages = [assemble(stream, LIMIT) for _ in range(4)]
    assert messages == [b"first", bytes(FRAME_BYTES + 1), b"", None]
