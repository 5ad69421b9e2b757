"""An evaluation tells how good a model is over held-out records, with noise, and charges a ledger of its own."""

import io
import json
import re
from dataclasses import replace
from hashlib import sha256
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor
from typing_extensions import override

from client.data.site_records import InMemory
from client.flower import open_site
from cloister.commands import stats
from privacy.accounting.accounting import Mechanism, epsilon
from privacy.errors import CloisterError, RunError
from privacy.noise.randomness import Randomness
from privacy.run.settings import Evaluation, Privacy, RunSettings, Statistics, Training
from privacy.run.tables import Start
from simulations.engine.federation import Federation, SiteTerms
from tests import studies
from tests.client.evaluations import TASK, TERMS_HALF, evaluation_of
from tests.federations import (
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    charges_of,
    models_of,
    restart,
    run_with,
    signed_run,
    task_name,
    with_deadline,
)
from tests.second import numbers
from tests.tables import table

TRAINED = replace(SETTINGS, task=TASK)
MODEL = "0" * 64


def evaluation(digest: str, sigma: float = 0.0, **options: Any) -> RunSettings:  # noqa: ANN401 - passed on
    """A run that evaluates this model."""
    return RunSettings(
        name="exam",
        task=TASK,
        rounds=1,
        evaluation=Evaluation(**(options or {"metrics": ("near", "odd"), "loss_bound": 4.0})),
        start=Start(digest),
        privacy=Privacy(noise_multiplier=sigma),
        cohort=SETTINGS.cohort,
    )


@pytest.fixture
def trained(make_federation: FederationMaker) -> tuple[Federation, str]:
    """A federation with a trained model, and its digest."""
    federation = make_federation(TRAINED, dict.fromkeys(SITES, TERMS_HALF))
    run_with(federation)
    return federation, sha256(next(iter(models_of(federation).values()))).hexdigest()


class Odd(studies.Scored):
    """Its metrics are right of all records at once, and of one alone as its class says."""

    alone: ClassVar[dict[str, object]] = {}

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if len(targets) == 1:
            return self.alone  # type: ignore[return-value]
        return super().metrics(outputs, targets)


@pytest.mark.parametrize(
    ("alone", "message"),
    [
        ({"odd": torch.ones(1)}, "some records lack the metric 'near'"),
        ({"near": "1"}, "its metric 'near' is a builtins.str"),
        ({"near": torch.ones(2)}, "its metric 'near' is float32"),
        ("near", "its metrics() returns a builtins.str"),
    ],
    ids=["none", "text", "two", "no names"],
)
def test_a_metric_that_a_record_does_not_have_is_found_before_a_charge(
    trained: tuple[Federation, str], monkeypatch: pytest.MonkeyPatch, alone: dict[str, object], message: str
) -> None:
    federation, digest = trained
    monkeypatch.setattr(Odd, "alone", alone)
    terms = replace(TERMS, tasks=(task_name(Odd),), held_out=0.5)
    federation.write_settings("north", "localhost:1", terms)
    settings = replace(evaluation(digest, 2.0, metrics=("near",)), task=task_name(Odd))
    with pytest.raises(CloisterError) as caught:
        restart(federation, "north").work(settings).check_records(settings)
    assert message in str(caught.value)


def test_the_vector_is_the_one_that_the_protocol_describes(make_federation: FederationMaker) -> None:
    report = json.loads(json.dumps(evaluation_of(make_federation(TRAINED, dict.fromkeys(SITES, TERMS_HALF)))))
    vector = numbers.evaluation(report["metrics"], report["losses"], report["loss_bound"])
    assert report["vector"] == pytest.approx(vector, abs=1e-9)
    assert numbers.evaluation_layout(["near", "odd"], report["loss_bound"]) == report["layout"]


def report_of(federation: Federation) -> dict[str, Any]:
    """The figures, which must be the same at all sites."""
    files = {file.read_bytes() for path in federation.paths.values() for file in path.glob("statistics/exam-*")}
    assert len(files) == 1
    report: dict[str, Any] = json.loads(files.pop())
    return report


def expected(federation: Federation, digest: str) -> dict[str, float]:
    """The same figures, from all held-out records in one place."""
    values: dict[str, list[float]] = {"near": [], "odd": [], "loss": []}
    for site in SITES:
        study = open_site(federation.paths[site]).study(TASK)
        module = study.load_into(study.module(0), study.start(evaluation(digest)))
        inputs, targets = table(study.held_out)
        with torch.no_grad():
            outputs = module(inputs)
        batch_metrics = study.task.metrics(outputs, targets)
        for name in ("near", "odd"):
            values[name] += np.clip(np.nan_to_num(batch_metrics[name].numpy(), nan=0.0), 0, 1).tolist()
        losses = ((outputs - targets) ** 2).squeeze(1)
        values["loss"] += losses.clamp(0, 4.0).tolist()
    return {name: float(np.mean(column)) for name, column in values.items()} | {"count": len(values["loss"])}


def test_without_noise_the_figures_are_those_of_all_held_out_records(trained: tuple[Federation, str]) -> None:
    federation, digest = trained
    federation.sign(evaluation(digest))
    (event,) = run_with(federation)
    assert event["released"]
    report, wanted = report_of(federation), expected(federation, digest)
    assert report["model"] == digest
    assert report["count"] == pytest.approx(wanted.pop("count"), rel=1e-3)
    for name, value in wanted.items():
        assert report["metrics"][name]["mean"] == pytest.approx(value, abs=2e-3)
    assert report["epsilon"] is None


def test_noise_is_charged_to_the_held_out_ledger_and_reported_with_its_error(trained: tuple[Federation, str]) -> None:
    federation, digest = trained
    before = [open_site(path).ledger.mechanisms() for path in federation.paths.values()]
    federation.sign(evaluation(digest, sigma=0.7))
    (event,) = run_with(federation)
    report, wanted = report_of(federation), expected(federation, digest)
    assert abs(report["count"] - wanted["count"]) < 6 * report["count_error"]
    assert report["count_error"] == pytest.approx(0.7 * np.sqrt(4 * len(SITES)), rel=0.01)
    for name in ("near", "odd", "loss"):
        assert report["metrics"][name]["error"] > 0
        assert abs(report["metrics"][name]["mean"] - wanted[name]) < 6 * report["metrics"][name]["error"]
    assert [open_site(path).ledger.mechanisms() for path in federation.paths.values()] == before
    cost = [Mechanism(0.7, 1.0, 1)]
    assert report["epsilon"] == pytest.approx(epsilon(cost, 1e-5), abs=1e-3)
    for site, path in federation.paths.items():
        assert open_site(path).held_out_ledger.mechanisms() == cost
        assert event["epsilon"][site] == pytest.approx(epsilon(cost, TERMS.delta))


def test_one_record_changes_a_sites_vector_by_at_most_one(trained: tuple[Federation, str]) -> None:
    federation, digest = trained
    federation.sign(evaluation(digest))
    _, manifest, _ = signed_run(federation)
    settings, site = manifest.settings, open_site(federation.paths["north"])
    study = site.study(TASK)
    inputs, targets = table(study.held_out)
    sums = []
    for kept in range(len(inputs) + 1):
        study.__dict__["_records"] = study._records[0], InMemory(inputs[:kept], targets[:kept])
        update = site.work(settings).release(manifest, 1, site.work(settings).start(settings), Randomness.fresh())
        sums.append(update.vector.astype(np.float64) * settings.largest_size)
    lengths = np.linalg.norm(np.diff(sums, axis=0), axis=1)
    assert len(lengths) == len(inputs) > 5
    assert lengths.max() <= 1 + 1e-5
    assert lengths.max() > 0.7


def test_a_metric_that_compares_records_sees_one_at_a_time(make_federation: FederationMaker) -> None:
    terms: dict[str, SiteTerms] = dict.fromkeys(SITES, replace(TERMS_HALF, tasks=(task_name(studies.Ranked),)))
    federation = make_federation(replace(TRAINED, task=task_name(studies.Ranked)), terms)
    settings = replace(evaluation(put_model(federation), metrics=("above", "balanced")), task=task_name(studies.Ranked))
    federation.sign(settings)
    _, manifest, _ = signed_run(federation)
    site = open_site(federation.paths["north"])
    study, work = site.study(settings.task), site.work(settings)
    inputs, targets = table(study.held_out)
    extreme = torch.cat([inputs, torch.full((1, 2), 1e6)]), torch.cat([targets, targets[:1]])
    sums = []
    for held_out in ((inputs, targets), extreme):
        study.__dict__["_records"] = study._records[0], InMemory(*held_out)
        update = work.release(manifest, 1, work.start(settings), Randomness.fresh())
        sums.append(update.vector.astype(np.float64) * settings.largest_size)
    assert np.linalg.norm(sums[1] - sums[0]) <= 1 + 1e-5


def test_held_out_records_have_their_own_budget(make_federation: FederationMaker) -> None:
    federation = make_federation(TRAINED, dict.fromkeys(SITES, replace(TERMS_HALF, epsilon=50.0)))
    run_with_budget(federation, None)
    federation = make_federation(TRAINED, dict.fromkeys(SITES, replace(TERMS_HALF, epsilon=50.0)), name="little")
    with pytest.raises(RunError, match="no round had enough sites"):
        run_with_budget(federation, 0.5)


def run_with_budget(federation: Federation, held_out: float | None) -> None:
    """Evaluate some model under such a budget."""
    for path in federation.paths.values():
        text = (path / "site.toml").read_text()
        if held_out is not None:
            text = text.replace("[budget]", f"[budget]\nheld_out_epsilon = {held_out}", 1)
        (path / "site.toml").write_text(text)
    open_site.cache_clear()
    digest = put_model(federation)
    settings = evaluation(digest, sigma=1.0)
    federation.sign(replace(settings, cohort=replace(settings.cohort, round_deadline_seconds=2.0)))
    run_with(federation)


def put_model(federation: Federation) -> str:
    """Give every site the same public model."""
    header = {
        "weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
        "bias": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
    }
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + np.array([0.1, 0.2, 0.3], "<f4").tobytes()
    for path in federation.paths.values():
        (path / "models" / "public").mkdir(parents=True)
        (path / "models" / "public" / "model.safetensors").write_bytes(data)
    return sha256(data).hexdigest()


def test_a_metric_that_the_task_does_not_have_is_refused_before_anything_is_charged(
    trained: tuple[Federation, str], caplog: pytest.LogCaptureFixture
) -> None:
    federation, digest = trained
    charged = charges_of(federation, "north")
    federation.sign(with_deadline(evaluation(digest, metrics=("unheard-of",)), 2.0))
    with pytest.raises(RunError, match="sites"):
        run_with(federation)
    assert "has no metric 'unheard-of'; name others in [evaluation]" in caplog.text
    assert charges_of(federation, "north") == charged


def test_cloister_stats_shows_an_evaluation(trained: tuple[Federation, str]) -> None:
    federation, digest = trained
    federation.sign(evaluation(digest, sigma=0.7))
    run_with(federation)
    text = io.StringIO()
    stats.show(stats.latest(federation.paths["north"]), Console(file=text, width=1000))
    text_ = text.getvalue()
    assert digest in text_
    assert "held-out records at 4 sites" in text_
    assert {"near", "odd", "loss"} <= {line.split(" ")[0] for line in text_.splitlines()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": None}, "an evaluation needs [start]"),
        ({"rounds": 2}, "an evaluation takes one round; set rounds = 1"),
        (
            {"training": Training(steps_per_round=1, sample_rate=1.0, learning_rate=0.1)},
            "choose exactly one of [training], [statistics] and [evaluation]",
        ),
        ({"privacy": Privacy(noise_multiplier=1.0, max_grad_norm=1.0)}, "an evaluation has its own range"),
        ({"evaluation": Evaluation(metrics=())}, "an evaluation needs metrics, or a loss_bound"),
        ({"evaluation": Evaluation(metrics=("near", "near"))}, "name each metric of an evaluation once"),
        ({"evaluation": Evaluation(metrics=("loss",))}, "for the loss, set loss_bound"),
        ({"evaluation": None, "statistics": Statistics()}, "statistics need no initial model; remove [start]"),
        ({"privacy": Privacy(noise_multiplier=1.0, noise="shared")}, "an evaluation has local noise"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(evaluation(MODEL), **changes)
