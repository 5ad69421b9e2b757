"""Several runs use the keys of the same sites: they are in rounds together, and change keys one at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Event, Thread

import pytest

from strategies.interruption import Interruption, RunInterrupted
from strategies.key_turns import KeyTurn, KeyTurns
from tests.federations import await_condition

SECONDS = 20.0


@contextmanager
def elsewhere(turn: KeyTurn) -> Iterator[Event]:
    """Have a run change keys in another thread; yields an event that is set once it does."""
    changing, may_end = Event(), Event()

    def change() -> None:
        with turn.alone() as known:
            assert known
            changing.set()
            may_end.wait(SECONDS)

    thread = Thread(target=change)
    thread.start()
    try:
        yield changing
    finally:
        may_end.set()
        thread.join(SECONDS)
    assert not thread.is_alive()


def test_runs_are_in_rounds_at_the_same_time() -> None:
    turns = KeyTurns()
    one, two = KeyTurn(turns), KeyTurn(turns)
    assert one.begin()
    assert one.begin()  # the same round
    assert two.begin()
    one.end()
    one.end()
    two.end()
    with turns.now_or_never() as now:
        assert now


def test_keys_change_when_no_run_is_in_a_round_and_none_begins_one_before() -> None:
    turns = KeyTurns()
    one, two, three = (KeyTurn(turns) for _ in range(3))
    assert one.begin()
    with ExitStack() as stack:
        changing = stack.enter_context(elsewhere(two))
        await_condition(lambda: bool(turns._waiting))
        begun = Thread(target=lambda: stack.callback(three.end) if three.begin() else None)
        begun.start()
        assert not changing.wait(0.05)
        with turns.now_or_never() as now:
            assert not now
        one.end()
        assert changing.wait(SECONDS)
        assert begun.is_alive()
    begun.join(SECONDS)
    assert not three._in_round  # the keys have changed since it asked
    three.asks_anew()
    assert three.begin()


def test_a_run_learns_that_another_has_changed_keys_before_it_changes_them_itself() -> None:
    turns = KeyTurns()
    one, two = KeyTurn(turns), KeyTurn(turns)
    with one.alone() as known:
        assert known
    assert one.begin()
    one.end()
    assert not two.begin()
    with two.alone() as known:
        assert not known


def test_an_open_round_goes_on_whatever_has_changed_since() -> None:
    turns = KeyTurns()
    one, two = KeyTurn(turns), KeyTurn(turns)
    with two.alone():
        pass
    one.go_on()
    with turns.now_or_never() as now:
        assert not now


def test_a_run_that_is_stopped_waits_for_no_other() -> None:
    turns, interruption = KeyTurns(), Interruption()
    one, two = KeyTurn(turns), KeyTurn(turns, interruption.check)
    assert one.begin()
    interruption.stop("by ana")
    with pytest.raises(RunInterrupted), two.alone():
        pass
    one.end()
    with turns.now_or_never() as now:
        assert now


def test_a_run_that_is_stopped_ends_once_its_released_sum_is_delivered() -> None:
    interruption = Interruption()
    interruption.delivering = True
    interruption.stop("by ana")
    interruption.check()
    interruption.delivering = False
    with pytest.raises(RunInterrupted):
        interruption.check()
    interruption.delivering = True
    interruption.end()
    with pytest.raises(RunInterrupted):
        interruption.check()
