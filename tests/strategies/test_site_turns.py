"""Runs with sites in common reach these in turn: in the order in which they ask, and never two at a time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from threading import Lock, Thread

import pytest

from strategies import site_turns
from strategies.interruption import Interruption, RunInterrupted
from strategies.site_turns import SiteTurn, SiteTurns
from tests.federations import await_condition

SECONDS = 20.0


def taking(turn: SiteTurn, nodes: set[int], waits: Callable[[set[int]], None] = lambda _: None) -> Thread:
    thread = Thread(target=turn.take, args=(nodes, waits), daemon=True)
    thread.start()
    return thread


def test_a_run_waits_for_the_sites_that_it_shares_with_another_and_for_no_others() -> None:
    turns = SiteTurns()
    one, two, three = (SiteTurn(turns) for _ in range(3))
    one.take({1, 2})
    three.take({4})
    waiting = taking(two, {2, 3})
    await_condition(lambda: two in turns.lines[2])
    waiting.join(0.05)
    assert waiting.is_alive()
    one.release(1)
    waiting.join(0.05)
    assert waiting.is_alive()
    one.release(2)
    waiting.join(SECONDS)
    assert not waiting.is_alive()


def test_who_asked_first_is_next_and_nobody_passes() -> None:
    turns = SiteTurns()
    one, two, three = (SiteTurn(turns) for _ in range(3))
    one.take({1})
    assert two.line_up({1, 2}) == {2}
    assert three.line_up({1}) == set()
    one.leave()
    assert one.line_up({1}) == set()  # again, at the end of the line
    assert two.line_up({1, 2}) == {1, 2}
    assert two.line_up({2}) == {2}  # lets go of the other
    assert (three.line_up({1}), one.line_up({1})) == ({1}, set())


def test_a_run_that_is_stopped_waits_no_longer() -> None:
    turns, interruption = SiteTurns(), Interruption()
    one, two = SiteTurn(turns), turns.turn(interruption.check)
    one.take({1})
    interruption.stop("by ana")
    with pytest.raises(RunInterrupted):
        two.take({1})
    two.leave()
    one.leave()
    assert SiteTurn(turns).line_up({1}) == {1}


def test_a_long_wait_is_reported_once_with_the_sites_that_others_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_turns, "PATIENCE", 0.0)
    turns, told = SiteTurns(), list[set[int]]()
    one, two = SiteTurn(turns), SiteTurn(turns)
    one.take({1, 3})
    waiting = taking(two, {1, 2, 3}, told.append)
    await_condition(lambda: bool(told))
    waiting.join(3 * Interruption.SECONDS)
    one.leave()
    waiting.join(SECONDS)
    assert told == [{1, 3}]


def test_many_runs_never_have_a_site_at_the_same_time_and_all_of_them_get_on() -> None:
    turns, lock, busy = SiteTurns(), Lock(), set[int]()

    def run(seed: int) -> int:
        draw, turn = Random(seed), SiteTurn(turns)  # noqa: S311 - a test's
        for _ in range(50):
            nodes = set(draw.sample(range(6), draw.randint(1, 4)))
            turn.take(nodes)
            with lock:
                assert not busy & nodes
                busy.update(nodes)
            with lock:
                busy.difference_update(nodes)
            turn.leave()
        return seed

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8), timeout=SECONDS)) == list(range(8))
