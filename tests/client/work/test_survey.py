"""A survey takes the way of a training round: charged before records are added up, encrypted, the same everywhere."""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, MessageType
from numpy.typing import ArrayLike, NDArray

from client.data.records import read_csv
from client.flower import app, open_site
from client.round.admission import admit
from client.round.aggregate import open_sum
from client.work.survey import StatisticsQuery
from privacy.accounting.accounting import Mechanism, epsilon
from privacy.analytics import figures
from privacy.errors import DataError, RunError, TaskError
from privacy.run.settings import Encryption, Privacy, RunSettings, Statistics
from simulations.engine.federation import Federation, SiteTerms
from tests import studies
from tests.federations import (
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    charges_of,
    models_of,
    restart,
    rounds_of,
    run_with,
    signed_run,
    task_name,
    watch_releases,
)
from transport.flower import FAILED, reply
from transport.run_messages import read_sum

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.crypto.summation import EncryptedSum

ASKED = task_name(studies.Asked)
ALL = replace(TERMS, tasks=(ASKED,), held_out=0.0)
SURVEY = RunSettings(
    name="survey",
    task=ASKED,
    rounds=1,
    statistics=Statistics(bins=8),
    privacy=Privacy(noise_multiplier=0.0),
    cohort=SETTINGS.cohort,
    seed=5,
)
"""A survey of four sites without noise."""

NOISY = replace(SURVEY, privacy=Privacy(noise_multiplier=0.7), seed=None)


def everywhere(terms: SiteTerms = ALL) -> dict[str, SiteTerms]:
    return dict.fromkeys(SITES, terms)


def pooled(federation: Federation, sites: Iterable[str] = SITES) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """All records of these sites."""
    paths = [federation.paths[site] / ALL.file for site in sites]
    parts = [read_csv(path, features=("a", "b"), target="y") for path in paths]
    return np.concatenate([values for values, _ in parts]), np.concatenate([labels for _, labels in parts])


def reports_of(federation: Federation) -> dict[str, bytes]:
    """The files of figures of the sites that have one."""
    return {site: file.read_bytes() for site, path in federation.paths.items() for file in path.glob("statistics/*")}


def report_of(federation: Federation) -> dict[str, Any]:
    """The figures, which must be the same at all sites."""
    reports = reports_of(federation)
    assert set(reports) == set(SITES)
    assert len(set(reports.values())) == 1
    read: dict[str, Any] = json.loads(reports[SITES[0]])
    return read


def hold(report: dict[str, Any], values: ArrayLike, labels: ArrayLike, errors: float) -> None:
    """Check figures against the pooled records, within this many standard errors."""
    values, labels = np.asarray(values), np.asarray(labels)
    slack = 1e-4  # of rounding
    assert abs(report["count"] - len(values)) <= errors * report["count_error"] + slack * len(values)
    for place, (name, (low, high)) in enumerate(studies.Asked.columns.items()):
        read, own = report["columns"][name], np.clip(values[:, place], low, high)
        assert abs(read["mean"] - own.mean()) <= errors * read["mean_error"] + slack * high
        off = errors * read["deviation_error"] + (high - low) / report["bins"] / 3
        assert abs(read["deviation"] - own.std()) <= off
        for fraction in figures.FRACTIONS:
            middle, bins = read["quantiles"][f"{fraction:g}"], 1.5 * (high - low) / report["bins"] + slack
            rank = errors * read["rank_error"] + slack
            # Noise may put a rank beyond the last record: then the error says nothing on that side.
            if fraction - rank > 0:
                assert np.quantile(own, fraction - rank, method="inverted_cdf") <= middle + bins
            if fraction + rank < 1:
                assert np.quantile(own, fraction + rank, method="higher") >= middle - bins
    for entry in report["classes"]:
        assert abs(entry["count"] - np.sum(labels == entry["label"])) <= errors * entry["count_error"] + slack * len(
            values
        )
        assert abs(entry["fraction"] - np.mean(labels == entry["label"])) <= errors * entry["fraction_error"] + slack


# --- A whole survey -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [False, True], ids=["shared keys", "masks"])
def test_without_noise_the_figures_are_those_of_all_records_pooled(
    make_federation: FederationMaker, *, masks: bool
) -> None:
    federation = make_federation(replace(SURVEY, encryption=Encryption(collusion_resistant=masks)), everywhere())
    (event,) = run_with(federation)
    assert event["released"]
    assert len(set(models_of(federation).values())) == 1
    report = report_of(federation)
    hold(report, *pooled(federation), errors=1.0)
    assert report["sites"] == sorted(SITES)
    assert (report["survey"], report["run"], report["epsilon"]) == (ASKED, signed_run(federation)[2], None)


def test_with_noise_they_are_within_their_errors_and_charged_once(make_federation: FederationMaker) -> None:
    federation = make_federation(NOISY, everywhere())
    run_with(federation)
    report = report_of(federation)
    assert report["columns"]["a"]["mean_error"] > 0
    hold(report, *pooled(federation), errors=6.0)
    cost = epsilon([Mechanism(0.7, 1.0, 1)], NOISY.privacy.delta)
    assert report["epsilon"] == pytest.approx(cost, abs=1e-3)
    for site in SITES:
        assert charges_of(federation, site) == 1
        assert open_site(federation.paths[site]).ledger.mechanisms() == [Mechanism(0.7, 1.0, 1)]


def test_epsilon_is_what_the_noise_is_calibrated_to(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(NOISY, privacy=Privacy(epsilon=3.0)))
    manifest = signed_run(federation)[1]
    assert manifest.run_cost == manifest.round_cost == Mechanism(manifest.noise_multiplier, 1.0, 1)
    assert 2.9 < epsilon([manifest.run_cost], 1e-5) <= 3.0


def test_records_that_are_held_out_are_not_in_it(make_federation: FederationMaker) -> None:
    federation = make_federation(SURVEY, everywhere(replace(ALL, held_out=0.2)))
    run_with(federation)
    assert report_of(federation)["count"] == pytest.approx(60, rel=1e-4)
    assert len(pooled(federation)[0]) == 74


def test_a_site_that_fails_is_not_in_the_sum(make_federation: FederationMaker) -> None:
    federation = make_federation(SURVEY, everywhere())

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == MessageType.TRAIN and str(context.node_config["site"]).endswith("west"):
            return reply(Error(FAILED, "out of order"), message)
        return app(message, context)

    (event,) = run_with(federation, answer)
    assert "west" not in event["sites"]
    report = json.loads(reports_of(federation)["north"])
    assert report["sites"] == ["east", "north", "south"]
    hold(report, *pooled(federation, report["sites"]), errors=1.0)


def test_a_survey_without_label_takes_tensors(make_federation: FederationMaker) -> None:
    name = task_name(studies.Unlabelled)
    federation = make_federation(replace(SURVEY, task=name), everywhere(replace(ALL, tasks=(name,))))
    run_with(federation)
    report = report_of(federation)
    assert report["classes"] == []
    hold(report, *pooled(federation), errors=1.0)


def test_a_report_lost_in_a_crash_is_written_when_the_sum_is_delivered_again(make_federation: FederationMaker) -> None:
    federation = make_federation(NOISY, everywhere())
    sums: list[EncryptedSum] = []

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == MessageType.EVALUATE:
            sums.append(read_sum(message.content))
        return app(message, context)

    run_with(federation, answer)
    report = reports_of(federation)["north"]
    for file in [*federation.paths["north"].glob("models/*"), *federation.paths["north"].glob("statistics/*")]:
        file.unlink()
    site = restart(federation, "north")
    open_sum(admit(site, signed_run(federation)[0]), sums[0])
    assert reports_of(federation)["north"] == report


# --- Before anything is made of records ----------------------------------------------------------------------------


def test_the_charge_is_on_disk_before_records_are_added_up(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledgers = watch_releases(monkeypatch, StatisticsQuery)
    federation = make_federation(NOISY)
    run_with(federation)
    run = signed_run(federation)[2]
    assert len(ledgers) == len(SITES)
    assert all(f'"run": "{run}"' in ledger and '"noise_multiplier": 0.7' in ledger for ledger in ledgers)


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        (replace(ALL, tasks=(SETTINGS.task,)), f"does not allow the task {ASKED}"),
        (replace(ALL, minimum_noise_multiplier=1.0), "does not allow a noise multiplier of 0.7"),
        (replace(ALL, maximum_epsilon=1.0), "its policy says maximum_epsilon = 1"),
        (replace(ALL, epsilon=1.0), "A site's privacy budget does not cover"),
        (replace(ALL, minimum_cohort=4), "minimum_cohort = 4"),
    ],
)
def test_a_refused_survey_reads_no_records_and_is_not_charged(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch, terms: SiteTerms, reason: str
) -> None:
    files: list[Path] = []
    monkeypatch.setattr(studies.Asked, "files", files)
    settings = replace(NOISY, cohort=replace(NOISY.cohort, round_deadline_seconds=0.2))
    federation = make_federation(settings, everywhere(terms))
    with pytest.raises(RunError, match="no round had enough sites"):
        run_with(federation)
    assert reason in rounds_of(federation)[0]["reason"] + str(rounds_of(federation)[0]["problems"])
    assert files == []
    assert [charges_of(federation, site) for site in SITES] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (replace(SURVEY, task=SETTINGS.task), "is not a cloister.Survey"),
        (replace(SETTINGS, task=ASKED), "is not a cloister.Task"),
        (replace(SURVEY, task=task_name(studies.NoColumns)), "needs columns"),
        (replace(SURVEY, task=task_name(studies.Backwards)), "needs columns"),
        (replace(SURVEY, task=task_name(studies.Endless)), "needs columns"),
        (replace(SURVEY, task=task_name(studies.Twice)), "distinct numbers as classes"),
        (replace(SURVEY, task="tests.studies:HOLD"), "is not a class"),
    ],
)
def test_a_class_that_does_not_fit_the_run_is_refused(
    make_federation: FederationMaker, settings: RunSettings, reason: str
) -> None:
    federation = make_federation(settings)
    with pytest.raises(TaskError, match=reason):
        open_site(federation.paths["north"]).work(settings)


# --- Records --------------------------------------------------------------------------------------------------------

GOOD = [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("values", "labels", "reason"),
    [
        ([[1.0, 2.0], [3.0, np.nan]], [0, 1], "`b` of record 2 is not finite"),
        ([[np.inf, 2.0], [3.0, 1.0]], [0, 1], "`a` of record 1 is not finite"),
        (GOOD, [0, 7], "the label of record 2 is 7; the survey's classes are 0, 1, 2"),
        (GOOD, [0, np.nan], "the label of record 2 is nan"),
        (GOOD, [0], r"values of shape \(2, 2\) and labels of shape \(1,\)"),
        ([1.0, 2.0], [0, 1], r"it needs \(n, 2\), with the columns a, b, and \(n,\)"),
        ([[1.0], [2.0]], [0, 1], r"values of shape \(2, 1\)"),
        (np.zeros((0, 2)), [], "read no records"),
        ([[1.0, 2.0], [3.0]], [0, 1], "did not read a table of numbers"),
        ([["a", "b"], ["c", "d"]], [0, 1], "did not read a table of numbers"),
    ],
)
def test_records_that_cannot_be_counted_are_refused_and_named(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch, values: ArrayLike, labels: ArrayLike, reason: str
) -> None:
    monkeypatch.setattr(studies.Replaced, "read", (values, labels))
    name = task_name(studies.Replaced)
    federation = make_federation(replace(SURVEY, task=name))
    with pytest.raises(DataError, match=reason):
        open_site(federation.paths["north"]).check_records()


def test_labels_may_be_in_a_separate_column(make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies.Replaced, "read", (GOOD, [[0], [1]]))
    name = task_name(studies.Replaced)
    federation = make_federation(replace(SURVEY, task=name), everywhere(replace(ALL, tasks=(name,))))
    assert open_site(federation.paths["north"]).check_records() == {name: 2}


def test_more_records_than_were_declared_are_a_warning_at_the_site_alone(
    make_federation: FederationMaker, caplog: pytest.LogCaptureFixture
) -> None:
    few = replace(SURVEY, cohort=replace(SURVEY.cohort, sizes=dict.fromkeys(SITES, 5)))
    federation = make_federation(few, everywhere())
    run_with(federation)
    assert "25 records, more than twice the declared 5" in caplog.text
