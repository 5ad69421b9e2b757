"""The quick part of the fault bench, and that its page is of what there is. All of it: `make reliability`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.federations import SITES, FederationMaker
from tests.forked import ForkedAgents
from tests.reliability import bench
from tests.reliability.lines import until
from tests.reliability.outcomes import BrokenError, Outcome
from tests.reliability.places import ROOT, failpoints
from tests.reliability.promises import CASES, PROMISES, Case
from tests.reliability.stage import LONG, Stage, dying_at, masked, was_killed

ROUNDS = 5
VICTIM = "north"
PAGE = ROOT / "docs" / "reliability.md"


@pytest.fixture
def stage(make_federation: FederationMaker) -> Iterator[Stage]:
    with ForkedAgents() as processes:
        stage_ = Stage(make_federation, masked(ROUNDS), processes, lines=True)
        yield stage_
        stage_.close()


@pytest.mark.slow
@pytest.mark.xdist_group("agents")
@pytest.mark.timeout(300)
def test_a_server_and_an_agent_are_killed_at_failpoints_and_a_line_is_cut(stage: Stage) -> None:
    for site in SITES[1:]:
        stage.start_agent(site)
    agent = stage.start_agent(VICTIM, dying_at("round-charged", 1))
    server = stage.start_server(dying_at("sum-stored", 2))
    assert until(lambda: was_killed(agent), LONG) is not None  # in the first round
    stage.start_agent(VICTIM)
    cut = stage.lines["south"].will("cut", 20_000)
    assert until(lambda: was_killed(server), LONG) is not None  # in the second
    server = stage.start_server(dying_at("seeds-shown", 2))
    assert until(lambda: was_killed(server), LONG) is not None
    stage.start_server()
    stage.await_end()
    assert cut.happened.is_set()
    assert stage.check_whole(extra=1) == 0


def test_what_a_case_finds_is_on_the_page_with_the_command_that_replays_what_broke(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def breaks(seed: int, folder: Path) -> Outcome:
        assert folder.is_dir()
        if seed == 2:
            msg = "a round was lost"
            raise BrokenError(msg)
        return Outcome(3, {"rounds lost": 0}, {"s until the next round": seed + 0.5}, {"sum-stored"})

    monkeypatch.setitem(CASES, "clocks", Case(breaks, 2))
    held = bench.run_case("clocks")
    assert (held["state"], held["tries"], held["counts"]) == ("held", 6, {"rounds lost": 0})
    assert bench.figures([held]) == "0 rounds lost; at most 1.5 s until the next round"
    broken = bench.run_case("clocks", [2])
    assert broken["state"] == "broken"
    assert "make reliability ARGS='--case clocks --seed 2'" in broken["why"]
    report: dict[str, Any] = {"cases": {"clocks": broken | {"seeds": 1}}, "tests": {}, "seconds": 0.0}
    bench.write_report(report, tmp_path / "page.md")
    assert bench.read_report(tmp_path / "page.md") == report
    rows = [row for row in (tmp_path / "page.md").read_text("utf-8").splitlines() if row.startswith("| 13 |")]
    assert "| broken |" in rows[0]


def test_every_promise_is_held_by_tests_that_exist_and_every_case_holds_a_promise() -> None:
    assert [promise.number for promise in PROMISES] == list(range(1, 35))
    for promise in PROMISES:
        assert promise.tests, promise.number
        for name in promise.tests:
            file, _, function = name.partition("::")
            text = (ROOT / "tests" / file).read_text("utf-8")
            assert not function or f"def {function}(" in text, name
    assert {name for promise in PROMISES for name in promise.cases} == CASES.keys()


def test_the_page_is_what_its_figures_say_and_no_failpoint_was_missed() -> None:
    report = json.loads(PAGE.with_suffix(".json").read_bytes())
    assert PAGE.read_text("utf-8") == bench.page(report)
    assert bench.missed(report) == []
    assert {name for found in report["cases"].values() for name in found["reached"]} <= failpoints().keys()
