"""Many sites in few processes: every site in every round, and a server whose memory does not grow."""

import pytest

from cloister.benchmarks import scale
from tests.forked import ForkedAgents


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.timeout(300)
def test_sites_that_share_processes_take_part_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "Processes", ForkedAgents)
    report = scale.measure(14, 2, 4, 2, masked=True)  # a round without a site, or another model, is an error
    assert (report["sites"], report["processes"], report["rounds"]) == (4, 2, 2)
    assert report["phases"].keys() == {"train", "query.agree", "query.reveal", "evaluate"}
    assert 0 < sum(report["phases"].values()) <= report["median_seconds"]
    assert all(size > 0 for size in report["server_bytes"])
    assert max(map(len, scale.table(report).splitlines())) <= 80


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("masked", [True, False])
def test_two_hundred_sites_take_part_in_twenty_rounds(
    masked: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    report = scale.measure(100_000, 20, 200, 4, masked=masked)
    assert report["rounds"] == 20
    assert report["agent_peak_bytes"] < 40e6


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_servers_memory_hardly_grows_from_round_to_round() -> None:
    # Over many rounds, since messages of hundreds of sites make its memory vary by megabytes. About 20 kB a round stay.
    report = scale.measure(100_000, 200, 12, 2, masked=True)
    assert report["server_growth"]["slope"] < 3e6


def test_one_large_round_is_no_growth() -> None:
    assert scale.growth([100, 101, 100, 300, 100, 101, 100]) == {"slope": 0, "low": -100, "high": 100}
    assert scale.growth([10, 20, 30, 40]) == {"slope": 1000, "low": 1000, "high": 1000}
    assert scale.growth([1])["slope"] == 0
