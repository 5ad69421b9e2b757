"""A whole run in TensorBoard: the server's side of it, and a site's own."""

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from client.flower import open_site
from server.operations.report import ReportedRuns
from server.operations.run_events import RunEvents
from tests import studies
from tests.federations import (
    NOISY,
    SITES,
    TERMS,
    FederationMaker,
    own_metrics,
    run_with,
    signed_run,
    task_name,
)
from transport.tracking.settings import Report

pytest.importorskip("tensorboard", reason="the extra tracking is not installed")
from tests.transport.tracking.test_tracking import scalars


def test_the_server_counts_and_reports_rounds_and_a_site_its_own_metrics(make_federation: FederationMaker) -> None:
    settings = replace(NOISY, rounds=2, task=task_name(studies.Scored))
    terms = replace(TERMS, tasks=(settings.task,), disclose=("epsilon", "loss"))
    federation = make_federation(settings, dict.fromkeys(SITES, terms))
    with (federation.paths["north"] / "site.toml").open("a", encoding="utf-8") as file:
        file.write('\n[report]\ntensorboard = "board"\n')
    counted = RunEvents(CollectorRegistry())
    counted.attach()
    with ReportedRuns(Report(tensorboard=Path("board")), federation.server):
        events = run_with(federation)
    counted.detach()
    assert (counted.age, counted.needed) == (0, 0)  # the run has ended
    assert counted._rounds.labels("released")._value.get() == 2
    assert counted._bytes.labels("up")._value.get() == sum(event["bytes_up"] for event in events)
    open_site(federation.paths["north"]).tracking.close()

    name = f"{settings.name}-{signed_run(federation)[2][:8]}"
    shown = scalars(federation.server / "board" / name)
    for number, event in enumerate(events):
        assert shown["round/bytes_up"][number] == (number + 1, event["bytes_up"])
        assert shown["epsilon/north"][number][1] == pytest.approx(event["epsilon"]["north"], rel=1e-5)
        assert shown["metrics/loss"][number][1] == pytest.approx(event["metrics"]["loss"], rel=1e-5)
    assert [value for _, value in shown["round/sites"]] == [4, 4]

    own = scalars(federation.paths["north"] / "board" / f"{settings.name}-north-{name[-8:]}")
    kept = own_metrics(federation, "north")
    assert [value for _, value in own["metrics/loss"]] == pytest.approx(
        [line["metrics"]["loss"] for line in kept], rel=1e-5
    )
    assert own["epsilon/spent"][1] > own["epsilon/spent"][0]
