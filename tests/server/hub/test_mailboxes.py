"""Mailboxes keep a message until it is answered, and take one reply to it."""

from threading import Thread

import pytest

from privacy.errors import ProtocolError
from server.hub import mailboxes as module
from server.hub.mailboxes import SMALL, Mailboxes

NORTH, SOUTH = 1, 2
GRACE = 60.0
LARGE = bytes(SMALL + 1)


def unnoticed() -> None:
    """Give a reply's place back where no test looks."""


@pytest.fixture
def boxes() -> Mailboxes:
    return Mailboxes({NORTH, SOUTH})


def test_a_message_is_offered_to_its_site_alone_until_it_is_answered(boxes: Mailboxes) -> None:
    boxes.put(NORTH, "m1", (b"first",))
    boxes.put(NORTH, "m2", (b"second",))
    assert boxes.peek(NORTH) == boxes.peek(NORTH) == ("m1", (b"first",))
    assert boxes.peek(SOUTH) is None
    assert boxes.answer(NORTH, "m1", b"done", unnoticed)
    assert boxes.peek(NORTH) == ("m2", (b"second",))
    assert boxes.take({"m1", "m2"}, 0) == ("m1", b"done")
    assert boxes.take({"m1", "m2"}, 0) is None


def test_a_message_to_no_member_is_refused(boxes: Mailboxes) -> None:
    with pytest.raises(ProtocolError, match="node 3 is not in the roster"):
        boxes.put(3, "m", ())


def test_the_same_reply_again_gets_the_same_receipt_and_is_handed_over_once(boxes: Mailboxes) -> None:
    boxes.put(NORTH, "m", ())
    assert boxes.answer(NORTH, "m", b"done", unnoticed)
    assert boxes.answer(NORTH, "m", b"done", unnoticed)
    assert boxes.take({"m"}, 0) == ("m", b"done")
    assert boxes.answer(NORTH, "m", b"done", unnoticed)
    assert boxes.take({"m"}, 0) is None


@pytest.mark.parametrize("collected", [False, True])
def test_another_reply_to_the_same_message_is_refused(boxes: Mailboxes, *, collected: bool) -> None:
    boxes.put(NORTH, "m", ())
    boxes.answer(NORTH, "m", b"done", unnoticed)
    if collected:
        boxes.take({"m"}, 0)
    with pytest.raises(ProtocolError, match="another reply"):
        boxes.answer(NORTH, "m", b"something else", unnoticed)
    assert boxes.take({"m"}, 0) == (None if collected else ("m", b"done"))


def test_a_site_cannot_answer_for_another(boxes: Mailboxes) -> None:
    boxes.put(NORTH, "m", ())
    assert not boxes.expects(SOUTH, "m")
    assert not boxes.answer(SOUTH, "m", b"forged", unnoticed)
    assert boxes.take({"m"}, 0) is None
    assert boxes.answer(NORTH, "m", b"done", unnoticed)
    assert boxes.take({"m"}, 0) == ("m", b"done")


def test_a_reply_to_a_message_that_was_withdrawn_comes_too_late(boxes: Mailboxes) -> None:
    boxes.put(NORTH, "m", ())
    boxes.put(SOUTH, "n", ())
    boxes.answer(SOUTH, "n", b"done", unnoticed)
    boxes.withdraw({"m", "n", "unheard of"})
    assert boxes.peek(NORTH) is None
    assert not boxes.expects(NORTH, "m")
    assert not boxes.answer(NORTH, "m", b"done", unnoticed)
    assert boxes.take({"m", "n"}, 0) is None


def test_a_message_to_a_site_that_leaves_or_has_left_is_answered_with_nothing_at_once(boxes: Mailboxes) -> None:
    boxes.put(NORTH, "before", ())
    boxes.admit({SOUTH})
    boxes.put(NORTH, "after", ())
    assert boxes.peek(NORTH) is None
    assert [boxes.take({name}, 60) for name in ("before", "after")] == [("before", None), ("after", None)]
    boxes.admit({NORTH, SOUTH})
    boxes.put(NORTH, "again", ())
    assert boxes.peek(NORTH) == ("again", ())


class Place:
    """A reply's place in memory, and how often it was given back."""

    def __init__(self) -> None:
        self.freed = 0

    def free(self) -> None:
        self.freed += 1


@pytest.mark.parametrize("end", ["taken", "withdrawn"])
def test_a_reply_frees_its_place_when_it_is_taken_or_withdrawn(boxes: Mailboxes, end: str) -> None:
    place = Place()
    boxes.put(NORTH, "m", ())
    boxes.answer(NORTH, "m", LARGE, place.free)
    assert boxes.take({"another"}, 0) is None
    boxes.withdraw({"another"})
    assert place.freed == 0
    if end == "taken":
        boxes.take({"m"}, 0)
    boxes.withdraw({"m"})
    assert place.freed == 1


def test_a_reply_that_is_not_kept_frees_its_place_at_once(boxes: Mailboxes) -> None:
    first, late, again, other = (Place() for _ in range(4))
    boxes.put(NORTH, "m", ())
    boxes.answer(NORTH, "m", LARGE, first.free)
    boxes.answer(NORTH, "unheard of", LARGE, late.free)
    boxes.answer(NORTH, "m", LARGE, again.free)
    with pytest.raises(ProtocolError, match="another reply"):
        boxes.answer(NORTH, "m", b"something else", other.free)
    assert [place.freed for place in (first, late, again, other)] == [0, 1, 1, 1]


def test_replies_that_nobody_awaits_take_no_places_of_awaited_replies(boxes: Mailboxes) -> None:
    names, places = ["m1", "m2", "m3", "m4"], [Place() for _ in range(4)]
    for name, place in zip(names, places, strict=True):
        boxes.put(NORTH, name, ())
        boxes.answer(NORTH, name, LARGE, place.free)
    assert boxes.take({"awaited"}, 0) is None
    assert [place.freed for place in places] == [0, 0, 0, 0]
    assert boxes.take({"awaited"}, 0.01) is None
    assert [place.freed for place in places] == [0, 0, 1, 1]
    assert [boxes.take({name}, 0) for name in names] == [("m1", LARGE), ("m2", LARGE), ("m3", b""), ("m4", b"")]
    assert [place.freed for place in places] == [1, 1, 1, 1]


def test_small_replies_take_no_place_and_are_kept_whoever_waits(boxes: Mailboxes) -> None:
    names, places = [f"m{number}" for number in range(8)], [Place() for _ in range(8)]
    for name, place in zip(names, places, strict=True):
        boxes.put(NORTH, name, ())
        boxes.answer(NORTH, name, bytes(SMALL), place.free)
    assert [place.freed for place in places] == [1] * 8
    assert boxes.take({"another run's"}, 0.01) is None
    assert [boxes.take({name}, 0) for name in names] == [(name, bytes(SMALL)) for name in names]
    assert [place.freed for place in places] == [1] * 8


def test_receipts_are_remembered_for_the_promised_number_of_messages(
    boxes: Mailboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    for number in range(3):
        boxes.put(NORTH, f"m{number}", ())
        boxes.answer(NORTH, f"m{number}", b"done", unnoticed)
    assert [boxes.expects(NORTH, f"m{number}") for number in range(3)] == [False, True, True]


def test_a_reply_that_comes_while_it_is_awaited_is_handed_over_at_once(boxes: Mailboxes) -> None:
    boxes.put(NORTH, "m", ())
    answering = Thread(target=boxes.answer, args=(NORTH, "m", b"done", unnoticed))
    answering.start()
    assert boxes.take({"m"}, 20) == ("m", b"done")
    answering.join()


def test_a_site_is_online_while_it_waits_and_for_a_while_after(boxes: Mailboxes) -> None:
    calls: list[int] = []

    def wake() -> None:
        calls.append(1)

    assert boxes.online(GRACE) == set()
    boxes.watch(NORTH, wake)
    assert boxes.online(0) == {NORTH}
    boxes.put(NORTH, "m", ())
    boxes.unwatch(NORTH, wake)
    boxes.put(NORTH, "n", ())
    assert calls == [1]
    assert boxes.online(GRACE) == {NORTH}
    assert boxes.online(0) == set()


def test_a_site_that_has_just_replied_is_online_however_long_it_worked(boxes: Mailboxes) -> None:
    boxes.put(NORTH, "m", ())
    assert boxes.online(GRACE) == set()
    boxes.answer(NORTH, "m", b"done", unnoticed)
    assert boxes.online(GRACE) == {NORTH}


def test_a_run_that_awaits_replies_takes_nothing_from_another_that_does(boxes: Mailboxes) -> None:
    own = [f"own {number}" for number in range(4)]
    for name in own:
        boxes.expect(name)
    for name in [*own, *(f"late {number}" for number in range(4))]:
        boxes.put(NORTH, name, ())
        assert boxes.answer(NORTH, name, LARGE, unnoticed)
    assert boxes.take({"another run's"}, 0.01) is None
    assert [boxes.take({name}, 0) for name in own] == [(name, LARGE) for name in own]
    late = [boxes.take({f"late {number}"}, 0) for number in range(4)]
    assert [bool(reply and reply[1]) for reply in late] == [True, True, False, False]
