"""No schedule of faults breaks a promise of the protocol; bugs put in on purpose do. Many more: make schedules."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulations.schedules.__main__ import SCHEDULES, explore, find, folder, main, smallest
from simulations.schedules.bugs import BUGS, put_in
from simulations.schedules.consortium import Consortium
from simulations.schedules.faults import draw
from simulations.schedules.play import play

ROOT = Path(__file__).parents[3]
QUICK = 20
LATE = 1005, 3390  # schedules in which a site lacks the last sum when the run ends
ALTERED = 15, 20, 48, 68, 116  # schedules in which what is altered depends on what is in a message
FOUND_BY = {
    "a lost fsync, of the ledger": 0,
    "a lost fsync, of replaced files": 21,
    "a retry that trains again": 8,
    "another attempt that trains again": 53,
    "a missing attempt check, at the sites": 15,
    "a missing attempt check, at the server": 12,
    "a quorum off by one, at the server": 3,
    "a quorum off by one, at the sites": 545,
    "an unverified digest": 14,
}
"""The first schedule that finds each bug."""


@pytest.fixture(scope="module")
def consortium() -> Iterator[Consortium]:
    with folder() as place:
        yield Consortium(place)


@pytest.mark.slow
def test_no_schedule_breaks_a_promise() -> None:
    report = explore([*range(QUICK), *LATE], processes=1)
    assert report.broken == {}
    assert (report.schedules, report.released > QUICK, report.crashes > 0) == (QUICK + len(LATE), True, True)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_no_schedule_of_thousands_breaks_a_promise() -> None:
    report = explore(range(QUICK, SCHEDULES), processes=os.cpu_count() or 1)
    assert report.broken == {}


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What one process saw: starting it takes longer than the schedules."""
    return called("look")  # type: ignore[no-any-return]


@pytest.mark.slow
def test_every_bug_put_in_on_purpose_is_found(seen: dict[str, Any]) -> None:
    broken = seen["broken"]
    assert broken.keys() == BUGS.keys()
    assert [bug for bug in broken if not broken[bug]] == []  # new ones: python -m simulations.schedules --schedules 0


def called(function: str) -> Any:  # noqa: ANN401 - whatever it prints as JSON
    """Return what one of this module's functions prints in a process in which sets have the order of all such ones."""
    code = f"from tests.simulations.schedules.test_schedules import {function}; {function}()"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "0"}, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return json.loads(printed)


def look() -> None:
    """Print what each bug breaks in its schedule, and what passes where messages are altered."""
    with folder() as place:
        consortium = Consortium(place)
        found = {bug: find(bug, consortium, [seed, *range(100)]) for bug, seed in FOUND_BY.items()}
    broken = {bug: result and result[2] for bug, result in found.items()}
    print(json.dumps({"broken": broken, "traces": traces()}))  # noqa: T201 - read by the tests


def test_a_schedule_goes_the_same_way_whenever_it_is_played() -> None:
    with folder() as place:
        consortium = Consortium(place)
        first, _, again = (play(draw(seed), consortium) for seed in (748, 6, 748))
    assert first == again


@pytest.mark.slow
def test_a_schedule_goes_the_same_way_in_every_process(seen: dict[str, Any]) -> None:
    assert len(set(seen["traces"])) == len(ALTERED)
    assert called("trace") == seen["traces"]


def trace() -> None:
    """Print what passes in schedules in which messages are altered."""
    print(json.dumps(traces()))  # noqa: T201 - read by the test


def traces() -> list[str]:
    with folder() as place:
        consortium = Consortium(place)
        return [play(draw(seed), consortium).trace for seed in ALTERED]


def test_a_failing_schedule_is_made_as_small_as_it_gets(consortium: Consortium) -> None:
    with put_in("a lost fsync, of the ledger"):
        assert smallest(draw(FOUND_BY["a lost fsync, of the ledger"]), consortium).faults == ()


def test_one_schedule_is_played_again_by_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3"]) == 0
    assert "every promise holds" in capsys.readouterr().out
    assert main(["--seed", "3", "--bug", "a lost fsync, of the ledger"]) == 1
    assert "broken: charged: " in capsys.readouterr().out
