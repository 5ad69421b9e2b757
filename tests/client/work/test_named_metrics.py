"""Metrics that are not means, evaluated over four sites' held-out tumours, are those of all of them in one place."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from client.data.site_records import InMemory
from client.flower import open_site
from cloister.commands import stats
from cloister.views.subgroups import number
from privacy.accounting.accounting import Mechanism, epsilon
from privacy.errors import DataError, RunError
from privacy.noise.randomness import Randomness
from privacy.run.settings import Evaluation, Privacy, RunSettings
from privacy.run.tables import Start
from simulations.tasks.diagnosis import Diagnosis
from simulations.tasks.hospitals import diagnoses, write_patients
from tests.federations import (
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    charges_of,
    own_metrics,
    restart,
    run_with,
    signed_run,
    task_name,
    with_deadline,
)
from tests.tables import table

if TYPE_CHECKING:
    from simulations.engine.federation import Federation

TASK = task_name(Diagnosis)
HELD_OUT = replace(TERMS, tasks=(TASK,), held_out=0.5)
ALL = ("accuracy", "auc", "average_precision", "f1", "confusion", "ece", "brier")


def exam(digest: str, sigma: float = 0.0, names: tuple[str, ...] = ALL) -> RunSettings:
    """A run that evaluates this model by these metrics."""
    cohort = replace(SETTINGS.cohort, sizes=dict.fromkeys(SITES, 150))
    return RunSettings(
        name="exam",
        task=TASK,
        rounds=1,
        evaluation=Evaluation(metrics=names),
        start=Start(digest),
        privacy=Privacy(noise_multiplier=sigma),
        cohort=cohort,
    )


@pytest.fixture
def hospitals(make_federation: FederationMaker) -> tuple[Federation, str]:
    """Four sites with all tumours, and a model that all of them have; its digest."""
    federation = make_federation(replace(SETTINGS, task=TASK), dict.fromkeys(SITES, HELD_OUT))
    parts = np.array_split(np.random.default_rng(1).permutation(569), 4)
    for part, path in zip(parts, federation.paths.values(), strict=True):
        write_patients(path / TERMS.file, np.sort(part))
    open_site.cache_clear()
    return federation, put_model(federation, *fitted(federation))


def fitted(federation: Federation) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(1, 30)` and bias `(1,)` of a model that has seen few of the records."""
    inputs, targets = table(open_site(federation.paths["north"]).study(TASK).training)
    model = LogisticRegression(C=0.02).fit(inputs[:40].numpy(), targets[:40, 0].numpy())
    return model.coef_, model.intercept_


def put_model(federation: Federation, weight: np.ndarray, bias: np.ndarray) -> str:
    """Give every site this model, and return its file's digest."""
    header = {
        "weight": {"dtype": "F32", "shape": [1, 30], "data_offsets": [0, 120]},
        "bias": {"dtype": "F32", "shape": [1], "data_offsets": [120, 124]},
    }
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + weight.astype("<f4").tobytes() + bias.astype("<f4").tobytes()
    for path in federation.paths.values():
        (path / "models" / "public").mkdir(parents=True, exist_ok=True)
        (path / "models" / "public" / "model.safetensors").write_bytes(data)
    return sha256(data).hexdigest()


def scored(federation: Federation, digest: str, site: str) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities and labels of a site's held-out records."""
    study = open_site(federation.paths[site]).study(TASK)
    module = study.load_into(study.module(0), study.start(exam(digest)))
    inputs, targets = table(study.held_out)
    with torch.no_grad():
        return torch.sigmoid(module(inputs).double())[:, 0].numpy(), targets[:, 0].numpy()


def expected(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics, as scikit-learn computes them."""
    right = (scores >= 0.5) == labels
    return {
        "accuracy": float(right.mean()),
        "auc": metrics.roc_auc_score(labels, scores),
        "average_precision": metrics.average_precision_score(labels, scores),
        "f1": metrics.f1_score(labels, scores >= 0.5),
        "brier": metrics.brier_score_loss(labels, scores),
    }


def report_of(federation: Federation) -> dict[str, Any]:
    """The figures, which must be the same at all sites."""
    files = {file.read_bytes() for path in federation.paths.values() for file in path.glob("statistics/exam-*")}
    assert len(files) == 1
    report: dict[str, Any] = json.loads(files.pop())
    return report


def own_report(federation: Federation, site: str) -> dict[str, Any]:
    """A site's own exact figures."""
    (file,) = (federation.paths[site] / "metrics").glob("exam-*.json")
    report: dict[str, Any] = json.loads(file.read_bytes())
    return report


def test_without_noise_metrics_are_those_of_all_held_out_records_up_to_the_bins(
    hospitals: tuple[Federation, str],
) -> None:
    federation, digest = hospitals
    federation.sign(exam(digest))
    (event,) = run_with(federation)
    assert event["released"]
    report = report_of(federation)["metrics"]
    parts = [scored(federation, digest, site) for site in SITES]
    scores, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    wanted = expected(scores, labels)
    assert wanted["auc"] < 0.999  # so that there is something to find
    for name, value in wanted.items():
        near = report[name].get("value", report[name].get("mean"))
        assert abs(near - value) <= report[name].get("bins", 0) + 4 * report[name]["error"] + 1e-5, name
        assert report[name]["error"] < 0.01, name
    matrix = metrics.confusion_matrix(labels, scores >= 0.5)
    assert np.array(report["confusion"]["counts"]) == pytest.approx(matrix, abs=0.2)
    for site, (alone, true) in zip(SITES, parts, strict=True):
        own, known = own_report(federation, site), expected(alone, true)
        assert own["records"] == len(alone)
        del known["accuracy"]  # of the task's own method
        assert {name: own["metrics"][name]["value"] for name in known} == pytest.approx(known, abs=1e-5)
        assert own["metrics"]["confusion"]["counts"] == metrics.confusion_matrix(true, alone >= 0.5).tolist()


def test_with_noise_they_are_within_the_stated_error_and_charged_as_one_release(
    hospitals: tuple[Federation, str], caplog: pytest.LogCaptureFixture
) -> None:
    federation, digest = hospitals
    caplog.set_level("INFO", "cloister.agent")
    sigma, names = 0.6, ("auc", "f1", "confusion")
    federation.sign(exam(digest, sigma, names))
    (event,) = run_with(federation)
    report = report_of(federation)
    cost = [Mechanism(sigma, 1.0, 1)]
    assert report["epsilon"] == pytest.approx(epsilon(cost, 1e-5), abs=1e-3)
    for site, path in federation.paths.items():
        opened = open_site(path)
        assert opened.held_out_ledger.mechanisms() == cost
        assert opened.ledger.mechanisms() == []
        assert event["epsilon"][site] == pytest.approx(epsilon(cost, TERMS.delta))
    parts = [scored(federation, digest, site) for site in SITES]
    wanted = expected(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    # Count, confusion and scores: three parts, so each number has √3·σ of noise from each of four sites.
    assert (
        report["count_error"] == report["metrics"]["confusion"]["error"] == pytest.approx(sigma * np.sqrt(12), rel=0.01)
    )
    for name in ("auc", "f1"):
        figure = report["metrics"][name]
        assert 0 < figure["error"] < 0.2
        assert abs(figure["value"] - wanted[name]) < 5 * figure["error"] + figure.get("bins", 0.0)
    assert f"over 4 sites: auc {report['metrics']['auc']['value']:.3f} ± " in caplog.text
    assert "this site alone: auc 0." in caplog.text
    text = io.StringIO()
    stats.show(stats.latest(federation.paths["north"]), Console(file=text, width=1000))
    text_ = text.getvalue()
    auc = next(line for line in text_.splitlines() if line.startswith("auc"))
    alone = own_report(federation, "north")["metrics"]["auc"]["value"]
    assert auc.split()[2] == "±"
    assert "bins ±" in auc
    assert auc.endswith(f"alone {number(alone)}")
    assert "it has not left it" in text_


def test_one_record_changes_a_sites_vector_by_at_most_one(hospitals: tuple[Federation, str]) -> None:
    federation, digest = hospitals
    federation.sign(exam(digest))
    _, manifest, _ = signed_run(federation)
    settings, site = manifest.settings, open_site(federation.paths["north"])
    study, sums = site.study(TASK), []
    inputs, targets = (part[:12] for part in table(study.held_out))
    for kept in range(len(inputs) + 1):
        study.__dict__["_records"] = study._records[0], InMemory(inputs[:kept], targets[:kept])
        update = site.work(settings).release(manifest, 1, site.work(settings).start(settings), Randomness.fresh())
        sums.append(update.vector.astype(np.float64) * settings.largest_size)
    lengths = np.linalg.norm(np.diff(sums, axis=0), axis=1)
    assert lengths.max() <= 1 + 1e-5
    assert lengths.max() > 0.7


def test_a_site_whose_task_has_other_constants_takes_part_in_no_sum(
    hospitals: tuple[Federation, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, digest = hospitals
    federation.sign(with_deadline(exam(digest, 1.0, ("auc",)), 2.0))
    settings = signed_run(federation)[1].settings
    layouts = {open_site(path).work(settings).layout(settings).digest for path in federation.paths.values()}
    assert len(layouts) == 1
    for constant, value in (("threshold", 0.4), ("score_bins", 32)):
        with monkeypatch.context() as patch:
            patch.setattr(Diagnosis, constant, value)
            other = restart(federation, "north")
            assert other.work(settings).layout(settings).digest not in layouts
    charged = charges_of(federation, "north")
    with monkeypatch.context() as patch:
        patch.setattr(Diagnosis, "threshold", 0.4)
        _ = restart(federation, "north").study(TASK).prediction  # as it keeps it
    (event,) = run_with(federation)
    assert sorted(event["sites"]) == ["east", "south", "west"]
    assert charges_of(federation, "north") == charged


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("c_index",), "has no metric 'c_index'; name others in [evaluation]"),
        (("acu",), "has no metric 'acu'; did you mean `auc`?"),
    ],
)
def test_a_metric_that_the_task_does_not_name_is_refused_before_a_charge(
    hospitals: tuple[Federation, str], caplog: pytest.LogCaptureFixture, names: tuple[str, ...], message: str
) -> None:
    federation, digest = hospitals
    federation.sign(with_deadline(exam(digest, 1.0, names), 2.0))
    with pytest.raises(RunError, match="sites"):
        run_with(federation)
    assert message in caplog.text
    assert all(not open_site(path).held_out_ledger.mechanisms() for path in federation.paths.values())


def test_a_label_that_is_no_class_and_a_score_that_is_none_are_found_before_a_charge(
    hospitals: tuple[Federation, str],
) -> None:
    federation, digest = hospitals
    settings = exam(digest, 1.0, ("auc",))
    site = open_site(federation.paths["north"])
    study, work = site.study(TASK), site.work(settings)
    inputs, targets = table(study.held_out)
    fifth = torch.arange(len(inputs))[:, None] == 4
    for usable, odd, message in (
        (False, (inputs, torch.where(fifth, 0.5, targets)), "its label is not a whole number, and the task's classes"),
        (True, (torch.where(fifth, torch.nan, inputs), targets), "cannot evaluate held-out record 5: its score is not"),
    ):
        study.__dict__["_records"] = study._records[0], InMemory(*odd)
        study.__dict__["_usable"] = usable
        with pytest.raises(DataError) as caught:
            work.check_records(settings)
        assert message in str(caught.value)


def test_auc_is_undefined_only_at_sites_with_one_held_out_class(
    hospitals: tuple[Federation, str], caplog: pytest.LogCaptureFixture
) -> None:
    federation, digest = hospitals
    caplog.set_level("INFO", "cloister.agent")
    write_patients(federation.paths["north"] / TERMS.file, np.flatnonzero(diagnoses() == 0)[:100])
    open_site.cache_clear()
    federation.sign(exam(digest, names=("auc", "f1")))
    run_with(federation)
    own, report = own_report(federation, "north")["metrics"]["auc"], report_of(federation)["metrics"]["auc"]
    assert own == {"value": None, "reason": "all held-out records have class 0"}
    assert 0.5 < report["value"] < 1
    assert own_report(federation, "south")["metrics"]["auc"]["value"] > 0.5
    assert "this site alone: auc undefined: all held-out records have class 0" in caplog.text


def test_after_each_round_of_training_a_site_sees_them_and_nobody_else_does(
    hospitals: tuple[Federation, str], caplog: pytest.LogCaptureFixture
) -> None:
    federation, _ = hospitals
    caplog.set_level("INFO", "cloister.agent")
    federation.sign(replace(SETTINGS, task=TASK))
    (event,) = run_with(federation)
    for site in SITES:
        (line,) = own_metrics(federation, site)
        assert {"loss", "accuracy", "auc", "average_precision", "f1", "ece", "brier"} == set(line["metrics"])
        assert 0.5 < line["metrics"]["auc"] <= 1
    assert not event.get("metrics")
    assert ", auc 0." in caplog.text
