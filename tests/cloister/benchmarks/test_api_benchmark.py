"""`cloister bench api`: rounds of a real federation, with and without requests."""

from __future__ import annotations

import pytest

from cloister.benchmarks.api import measure, table


@pytest.mark.soak
def test_requests_and_rounds_go_on_side_by_side() -> None:
    report = measure(1000, 16, 3, 40.0)
    assert report["requests"] > 0
    assert report["loaded_to_quiet"] > 0
    assert report["client_processor_ms"] > 0
    assert "times as long" in table(report)


def test_the_table_names_both_times_and_the_ratio() -> None:
    report = {
        "parameters": 100_000, "sites": 3, "rounds": 72, "requests": 4000, "requests_per_second": 99.6,
        "request_median_ms": 4.25, "server_processor_ms": 1.1, "client_processor_ms": 0.2, "quiet_median_ms": 210.0,
        "loaded_median_ms": 220.5, "loaded_to_quiet": 1.05,
    }  # fmt: skip
    assert table(report).splitlines() == [
        "100,000 parameters, 3 agents, 72 rounds",
        "a round       210 ms; at 100 requests/s 220 ms, 1.05 times as long",
        "a request     4.2 ms: the median of 4,000",
        "processor     1.10 ms a request at the server, 0.20 ms where it comes from",
    ]
