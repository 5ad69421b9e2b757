"""Server-sent events are read as the standard says, however their bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.event_stream import LARGEST, EventStream, ServerSent
from privacy.errors import MalformedError

lines = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=8)
sent = st.builds(ServerSent, st.integers(1, 99).map(str), st.sampled_from(["message", "end", "é"]), lines)


def wire(event: ServerSent, end: str) -> str:
    kind = [] if event.kind == "message" else [f"event: {event.kind}"]
    return end.join([f"id: {event.number}", *kind, ": a comment", f"data: {event.data}", "retry: 5", "", ""])


@given(st.lists(sent, max_size=4), st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(0, 200), max_size=6))
def test_events_come_out_as_they_went_in_wherever_they_are_cut(
    events: list[ServerSent], end: str, cuts: list[int]
) -> None:
    data = "".join(wire(event, end) for event in events).encode() + b": at the end\n"
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    stream, found = EventStream(), list[ServerSent]()
    for start, stop in pairwise(places):
        found += stream.feed(data[start:stop])
    assert found == events


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_bytes_are_read_without_another_error(parts: list[bytes]) -> None:
    stream = EventStream()
    for part in parts:
        for event in stream.feed(part):
            assert isinstance(event.data, str)


@pytest.mark.parametrize("endless", [b"x" * (1 << 16), b"data: x\n" * (1 << 13), b"x\n" * (1 << 15)])
def test_an_event_without_end_is_refused(endless: bytes) -> None:
    stream = EventStream()
    parts = (list(stream.feed(endless)) for _ in range(2 * LARGEST // len(endless) + 2))
    with pytest.raises(MalformedError, match="more than 1 MiB"):
        list(parts)
