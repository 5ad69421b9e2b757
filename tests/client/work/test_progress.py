"""How good a model is after a round, a site finds out for itself; no number of records leaves, whatever does."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord
from torch import Tensor
from typing_extensions import override

from client.flower import app as client_app
from client.flower import open_site
from client.round.admission import AdmittedRun
from client.work.progress import look
from privacy.ledger.ledger import Ledger
from privacy.run.settings import Training
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.results import read_events, read_own_metrics
from tests import studies
from tests.federations import (
    SETTINGS,
    SITES,
    SIZES,
    TERMS,
    FederationMaker,
    models_of,
    own_metrics,
    run_with,
    signed_run,
    task_name,
)
from tests.tables import table

COUNTED = task_name(studies.Counted)
DISCLOSED: tuple[str, ...] = ("epsilon", "loss", "accuracy", "odd")


def disclosing(task: str, **names: tuple[str, ...]) -> dict[str, SiteTerms]:
    """Terms of the sites that disclose more than ε."""
    return {site: replace(TERMS, tasks=(task,), disclose=names.get(site, ("epsilon",))) for site in SITES}


def numbers_of(replies: list[Message]) -> set[float]:
    """Every number in these replies, at whatever place."""
    numbers: set[float] = set()
    for reply in replies:
        for record in reply.content.values():
            if isinstance(record, (ConfigRecord, MetricRecord)):
                numbers |= {value for value in record.values() if isinstance(value, (int, float))}
    return numbers


def test_a_sites_own_metrics_of_every_round_stay_at_the_site(
    make_federation: FederationMaker, caplog: pytest.LogCaptureFixture
) -> None:
    federation, replies = make_federation(replace(SETTINGS, rounds=2)), list[Message]()

    def heard(message: Message, context: Context) -> Message:
        replies.append(client_app(message, context))
        return replies[-1]

    with caplog.at_level(logging.INFO):
        first, second = run_with(federation, heard)
    assert first["metrics"] == second["metrics"] == {}
    assert all(not reply.content.get("metrics") for reply in replies)
    _, manifest, run = signed_run(federation)
    for site, path in federation.paths.items():
        lines, opened = own_metrics(federation, site), open_site(path)
        study, checkpoint = opened.study(SETTINGS.task), opened.checkpoint(manifest, run)
        inputs, targets = table(study.held_out)
        with torch.no_grad():
            loss = float(study.task.loss(study.load_into(study.module(0), checkpoint.model)(inputs), targets))
        assert [line["round"] for line in lines] == [1, 2]
        assert lines[-1] | {"time": 0} == {
            "round": 2, "time": 0, "model": checkpoint.digest, "records": len(inputs), "metrics": lines[-1]["metrics"],
        }  # fmt: skip
        assert lines[-1]["metrics"]["loss"] == pytest.approx(loss)
        (file,) = (path / "metrics").iterdir()
        assert (file.name, file.stat().st_mode & 0o777) == (f"study-{run[:8]}.jsonl", 0o600)
        assert f"round 2 of 2: loss {loss:.3f} on {len(inputs)} held-out records" in caplog.messages
    counts = {site: SIZES[site] // 4 for site in SITES}
    whole = sum(counts[site] * own_metrics(federation, site)[0]["metrics"]["loss"] for site in SITES)
    assert read_own_metrics(federation, 1) == {"loss": pytest.approx(whole / sum(counts.values()))}


@pytest.mark.parametrize("who", [("north",), ("north", "west"), SITES], ids=len)
def test_a_metric_is_averaged_over_the_sites_that_reported_it(
    make_federation: FederationMaker, who: tuple[str, ...]
) -> None:
    shares: dict[str, tuple[str, ...]] = {site: ("loss", "accuracy") if site in who else ("loss",) for site in SITES}
    federation = make_federation(replace(SETTINGS, task=COUNTED), disclosing(COUNTED, **shares))
    (event,) = run_with(federation)
    assert event["metrics"]["accuracy"] == 1.0
    assert event["sharing"] == sorted(SITES)
    losses = {site: float(f"{own_metrics(federation, site)[0]['metrics']['loss']:.2g}") for site in SITES}
    assert event["metrics"]["loss"] == pytest.approx(
        sum(SIZES[site] * losses[site] for site in SITES) / sum(SIZES.values())
    )


def test_no_number_of_records_leaves_even_where_metrics_do(make_federation: FederationMaker) -> None:
    # Sizes that are declared are not those that there are, so that a true one would be seen.
    declared = {site: 7 * size for site, size in SIZES.items()}
    settings = replace(SETTINGS, task=COUNTED, cohort=replace(SETTINGS.cohort, sizes=declared))
    federation = make_federation(
        settings, disclosing(COUNTED, **dict.fromkeys(SITES, (*DISCLOSED, "records", "count")))
    )
    replies: list[Message] = []

    def heard(message: Message, context: Context) -> Message:
        replies.append(client_app(message, context))
        return replies[-1]

    run_with(federation, heard)
    assert len([reply for reply in replies if reply.content.get("metrics")]) == len(SITES)
    true = {count for size in SIZES.values() for count in (size, size // 4, size * 5 // 4)}
    assert not numbers_of(replies) & true
    for reply in replies:
        for value in reply.content.get("metrics", MetricRecord()).values():
            assert isinstance(value, float)
            assert value == float(f"{value:.2g}")  # a fraction with all its digits would tell


@pytest.mark.parametrize("shared", [DISCLOSED, ("epsilon",)], ids=["shared", "kept"])
def test_a_metric_that_is_nan_does_not_stop_the_run(make_federation: FederationMaker, shared: tuple[str, ...]) -> None:
    federation = make_federation(replace(SETTINGS, task=COUNTED), disclosing(COUNTED, **dict.fromkeys(SITES, shared)))
    (event,) = run_with(federation)
    assert event["released"]
    assert event["problems"] == {}
    assert set(event["metrics"]) == set(shared) & {"loss", "accuracy"}
    assert own_metrics(federation, "north")[0]["metrics"]["odd"] is None
    assert len(set(models_of(federation).values())) == 1


class Mistaken(studies.Knowing):
    """Its metrics are right of what it makes up alone."""

    metric: ClassVar[object] = None

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"accuracy": self.metric if self.has_records else torch.ones(len(targets))}  # type: ignore[dict-item]


@pytest.mark.parametrize("metric", ["0.5", 0.5, torch.ones(5, 2), torch.tensor(0.5)], ids=repr)
def test_a_metric_that_is_not_one_number_a_record_is_named_and_the_run_goes_on(
    make_federation: FederationMaker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    metric: object,
) -> None:
    monkeypatch.setattr(Mistaken, "metric", metric)
    federation = make_federation(replace(SETTINGS, task=task_name(Mistaken)))
    (event,) = run_with(federation)
    assert (event["released"], event["problems"]) == (True, {})
    assert "round 1: not evaluated on held-out records; the run continues: its metric 'accuracy' is" in caplog.text
    assert "Traceback" not in caplog.text
    assert own_metrics(federation, "north") == []


def _no_room(folder: Path) -> None:
    (folder / "metrics").write_text("a file where a folder should be")


@pytest.mark.parametrize("failing", ["the task's metrics", "the file"])
def test_own_metrics_that_cannot_be_computed_do_not_stop_the_run(
    make_federation: FederationMaker, caplog: pytest.LogCaptureFixture, failing: str
) -> None:
    task = task_name(studies.Unmeasurable) if failing == "the task's metrics" else SETTINGS.task
    federation = make_federation(replace(SETTINGS, task=task, rounds=2))
    if failing == "the file":
        for path in federation.paths.values():
            _no_room(path)
    events = run_with(federation)
    assert [(event["released"], event["problems"]) for event in events] == [(True, {})] * 2
    assert studies.QUOTE not in str(read_events(federation))
    assert "Traceback" not in caplog.text
    assert studies.QUOTE not in caplog.text


def test_runs_without_training_have_no_own_metrics(make_federation: FederationMaker) -> None:
    federation = make_federation(
        replace(SETTINGS, training=Training(steps_per_round=0, sample_rate=1.0, learning_rate=0.1))
    )
    run_with(federation)
    assert not (federation.paths["north"] / "metrics").exists()


def test_a_line_that_a_crash_cut_off_stays_separate_and_a_round_is_recorded_once(
    make_federation: FederationMaker,
) -> None:
    federation = make_federation()
    run_with(federation)
    (file,) = (federation.paths["north"] / "metrics").iterdir()
    first = file.read_bytes()
    file.write_bytes(first + b'{"round": 2, "ti')
    _, manifest, run = signed_run(federation)
    site = open_site(federation.paths["north"])
    checkpoint = site.checkpoint(manifest, run)
    for number in (1, 2, 2):  # a sum may be delivered again
        look(AdmittedRun(site, manifest, run, site.algorithm(manifest)), replace(checkpoint, round=number))
    cut, last = file.read_bytes().removeprefix(first).splitlines()
    assert (cut, json.loads(last)["round"]) == (b'{"round": 2, "ti', 2)
    assert set(read_own_metrics(federation, 2)) == {"loss"}


def test_large_held_out_sets_are_sampled_and_evaluated_in_parts(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.work.training._MOST_RECORDS", 4)
    monkeypatch.setattr("client.work.training._BATCH", 2)
    federation = make_federation()
    run_with(federation)
    _, manifest, run = signed_run(federation)
    opened = open_site(federation.paths["north"])
    study, model = opened.study(SETTINGS.task), opened.checkpoint(manifest, run).model
    inputs, targets = (part[::2] for part in table(study.held_out))
    with torch.no_grad():
        loss = float(study.task.loss(study.load_into(study.module(0), model)(inputs), targets))
    (line,) = own_metrics(federation, "north")
    assert line["records"] == len(inputs) == 3
    assert line["metrics"]["loss"] == pytest.approx(loss)


def test_settings_that_any_tool_writes_share_epsilon_alone(tmp_path: Path) -> None:
    federation = Federation(tmp_path, ("north",))
    federation.write_settings("north", "localhost:1", SiteTerms(tasks=(SETTINGS.task,)))
    text: Any = (tmp_path / "north" / "site.toml").read_text()
    assert 'disclose = ["epsilon"] ' in text


def test_an_epsilon_that_cannot_be_computed_does_not_keep_an_update_back(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> float:
        raise OverflowError

    monkeypatch.setattr(Ledger, "spent", fail)
    (event,) = run_with(make_federation())
    assert event["released"]
    assert (sorted(event["sites"]), event["problems"], event["epsilon"]) == (sorted(SITES), {}, {})
