"""A run that evaluates compares subgroups over all sites' held-out records, from one noisy, encrypted sum."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor
from typing_extensions import override

from client.data.columns import Category, Flag, Number
from client.data.site_records import InMemory
from client.flower import open_site
from client.task.subgrouping import check_subgroups, places_of
from client.task.table_task import TableTask
from cloister.commands import stats
from privacy.accounting.accounting import Mechanism
from privacy.errors import DataError, RunError, TaskError
from privacy.noise.randomness import Randomness
from simulations.tasks.diagnosis import Diagnosis
from simulations.tasks.hospitals import write_patients
from tests.client.work.test_named_metrics import exam, fitted, own_report, put_model, report_of
from tests.federations import (
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    charges_of,
    restart,
    run_with,
    signed_run,
    task_name,
    with_deadline,
)
from tests.tables import table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from privacy.run.settings import RunSettings
    from simulations.engine.federation import Federation

NAMES = ("auc", "by size", "by texture")
VALUES = {"size": ("small", "large"), "texture": ("even", "uneven", "rough")}


class Grouped(Diagnosis):
    """Tumours by size and texture."""

    subgroups: ClassVar[Mapping[str, Sequence[Any]]] = VALUES

    @override
    def subgroup_of(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        cuts = torch.tensor([-0.5, -0.2])
        return {"size": (inputs[:, 0] > -0.4).long(), "texture": torch.bucketize(inputs[:, 1].contiguous(), cuts)}


TASK = task_name(Grouped)


def asked(digest: str, sigma: float = 0.0, names: tuple[str, ...] = NAMES) -> RunSettings:
    """A run that evaluates this model by subgroup."""
    return replace(exam(digest, sigma, names), task=TASK)


@pytest.fixture
def hospitals(make_federation: FederationMaker) -> tuple[Federation, str]:
    """Four sites with different tumours, and the digest of a model that each of them has."""
    terms = replace(TERMS, tasks=(TASK,), held_out=0.5)
    federation = make_federation(replace(SETTINGS, task=TASK), dict.fromkeys(SITES, terms))
    parts = np.array_split(np.random.default_rng(1).permutation(569), 4)
    for part, path in zip(parts, federation.paths.values(), strict=True):
        write_patients(path / TERMS.file, np.sort(part))
    open_site.cache_clear()
    return federation, put_model(federation, *fitted(federation))


def known(federation: Federation, digest: str, site: str) -> tuple[dict[str, Any], Any, Any]:
    """The places, predictions and labels of a site's held-out records."""
    study = open_site(federation.paths[site]).study(TASK)
    module = study.load_into(study.module(0), study.start(asked(digest)))
    inputs, targets = table(study.held_out)
    places = {name: tensor.numpy() for name, tensor in Grouped().subgroup_of(inputs, targets).items()}
    with torch.no_grad():
        return places, module(inputs)[:, 0].numpy() >= 0, targets[:, 0].numpy() == 1


def test_without_noise_the_table_is_that_of_all_held_out_records(hospitals: tuple[Federation, str]) -> None:
    federation, digest = hospitals
    federation.sign(asked(digest))
    (event,) = run_with(federation)
    assert event["released"]
    parts: list[Any] = [known(federation, digest, site) for site in SITES]
    subgroups = report_of(federation)["subgroups"]
    chosen, true = (np.concatenate([part[number] for part in parts]) for number in (1, 2))
    for column, values in VALUES.items():
        places = np.concatenate([part[0][column] for part in parts])
        rates = []
        for place, value in enumerate(values):
            own, figures = places == place, subgroups[column]["values"][value]
            assert figures["count"] == pytest.approx(own.sum(), abs=0.1)
            assert figures["selection_rate"]["value"] == pytest.approx(chosen[own].mean(), abs=0.002)
            assert figures["true_positive_rate"]["value"] == pytest.approx(chosen[own & true].mean(), abs=0.002)
            assert figures["false_positive_rate"]["value"] == pytest.approx(chosen[own & ~true].mean(), abs=0.002)
            assert figures["auc"]["value"] > 0.8
            rates.append(chosen[own].mean())
        gap = subgroups[column]["gaps"]["demographic_parity_difference"]
        assert gap["value"] == pytest.approx(max(rates) - min(rates), abs=0.004)
    own_places, chosen, _ = parts[0]
    alone = own_report(federation, SITES[0])["subgroups"]["size"]["values"]["large"]
    assert alone["count"] == np.count_nonzero(own_places["size"])
    assert alone["selection_rate"]["value"] == pytest.approx(chosen[own_places["size"] == 1].mean(), abs=1e-5)


def test_with_noise_it_is_one_charged_release_and_printed_with_its_errors(
    hospitals: tuple[Federation, str], caplog: pytest.LogCaptureFixture
) -> None:
    federation, digest = hospitals
    caplog.set_level("INFO", "cloister.agent")
    federation.sign(asked(digest, 0.2))
    run_with(federation)
    for path in federation.paths.values():
        assert open_site(path).held_out_ledger.mechanisms() == [Mechanism(0.2, 1.0, 1)]
    report = report_of(federation)
    # Count, confusion, scores; for each of two columns the same again: nine parts.
    assert report["count_error"] == pytest.approx(0.2 * np.sqrt(4 * 9), rel=0.01)
    large = report["subgroups"]["size"]["values"]["large"]
    assert large["count_error"] == report["count_error"]
    assert 0 < large["selection_rate"]["error"] < 0.2
    assert "over 4 sites by size: demographic_parity_difference 0." in caplog.text
    report, text = stats.latest(federation.paths["north"]), io.StringIO()
    stats.show(report, Console(file=text, width=1000))
    lines = text.getvalue().splitlines()
    start = next(number for number, text_line in enumerate(lines) if text_line.startswith("by size"))
    assert lines[start].split() == ["by", "size", "records", "auc", "selected", "true", "pos.", "false", "pos."]
    assert lines[start + 1].startswith("  small")
    assert lines[start + 2].startswith("    alone")
    gap = next(text_line for text_line in lines if text_line.startswith("  demographic parity difference"))
    assert ", large over small; alone 0." in gap
    assert json.loads(json.dumps(report))["subgroups"]["texture"]["values"].keys() == set(VALUES["texture"])


def test_after_the_last_round_of_training_a_site_compares_them_for_itself(
    hospitals: tuple[Federation, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, _ = hospitals
    caplog.set_level("INFO", "cloister.agent")
    federation.sign(replace(SETTINGS, task=TASK, rounds=2))
    events = run_with(federation)
    assert not any(event.get("metrics") for event in events)
    (path,) = (federation.paths["north"] / "metrics").glob("*.subgroups.json")
    report = json.loads(path.read_text())
    assert report["records"] == len(open_site(federation.paths["north"]).study(TASK).held_out)
    for column, values in VALUES.items():
        counts = {value: report["subgroups"][column]["values"][value]["count"] for value in values}
        assert sum(counts.values()) == report["records"]
    size = report["subgroups"]["size"]
    rates = [figures["selection_rate"]["value"] for figures in size["values"].values()]
    assert size["gaps"]["demographic_parity_difference"]["value"] == pytest.approx(max(rates) - min(rates), abs=1e-5)
    assert {"auc", "true_positive_rate"} <= size["values"]["large"].keys()
    assert caplog.text.count("this site alone by size: demographic_parity_difference 0.") == len(SITES)

    monkeypatch.setattr(Grouped, "subgroup_of", lambda *_: {})
    federation.sign(replace(SETTINGS, name="again", task=TASK))
    (event,) = run_with(federation)
    assert (event["released"], event["problems"]) == (True, {})
    assert "subgroups were not compared; the run is complete" in caplog.text


def test_one_record_changes_a_sites_vector_by_at_most_one(hospitals: tuple[Federation, str]) -> None:
    federation, digest = hospitals
    federation.sign(asked(digest))
    settings, site = signed_run(federation)[1].settings, open_site(federation.paths["north"])
    study, work, sums = site.study(TASK), site.work(settings), []
    inputs, targets = (part[:8] for part in table(study.held_out))
    manifest = signed_run(federation)[1]
    for kept in range(len(inputs) + 1):
        study.__dict__["_records"] = study._records[0], InMemory(inputs[:kept], targets[:kept])
        update = work.release(manifest, 1, work.start(settings), Randomness.fresh())
        sums.append(update.vector.astype(np.float64) * settings.largest_size)
    lengths = np.linalg.norm(np.diff(sums, axis=0), axis=1)
    assert 0.7 < lengths.max() <= 1 + 1e-5


def test_a_site_with_other_subgroups_takes_part_in_no_sum(
    hospitals: tuple[Federation, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, digest = hospitals
    federation.sign(asked(digest))
    settings = signed_run(federation)[1].settings
    same = {open_site(path).work(settings).layout(settings).digest for path in federation.paths.values()}
    assert len(same) == 1
    monkeypatch.setattr(Grouped, "subgroups", VALUES | {"size": ("little", "large")})
    assert restart(federation, "north").work(settings).layout(settings).digest not in same


# --- Refused before a charge ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("auc", "by sise"), "has no subgroups 'sise'; did you mean `size`?"),
        (("auc", "by sex"), "has no subgroups 'sex'; declare them in its `subgroups`"),
    ],
)
def test_subgroups_that_the_task_lacks_are_refused(
    hospitals: tuple[Federation, str], caplog: pytest.LogCaptureFixture, names: tuple[str, ...], said: str
) -> None:
    federation, digest = hospitals
    federation.sign(with_deadline(asked(digest, 1.0, names), 2.0))
    with pytest.raises(RunError, match="sites"):
        run_with(federation)
    assert said in caplog.text
    assert all(charges_of(federation, site) == 0 for site in SITES)


def test_a_record_that_is_in_no_subgroup_is_named(
    hospitals: tuple[Federation, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, digest = hospitals
    settings, site = asked(digest, 1.0), open_site(federation.paths["north"])
    work, (inputs, _) = site.work(settings), table(site.study(TASK).held_out)
    work.check_records(settings)

    def odd(_: Grouped, inputs_: Tensor, targets: Tensor) -> dict[str, Tensor]:
        fifth = (inputs_ == inputs[4]).all(1)
        return {"size": torch.where(fifth, 2, 0), "texture": torch.zeros(len(targets))}

    monkeypatch.setattr(Grouped, "subgroup_of", odd)
    with pytest.raises(DataError, match="held-out record 5: its size is none of small, large; correct the record"):
        work.check_records(settings)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (["size"], "its subgroups are no table of names"),
        ({"size": ("one",)}, "have 1 values; declare 2 to 32 different ones"),
        ({"size": ("one", "one")}, "have 2 values"),
        ({"size": ("one", " two")}, "that is not a text of 1 to 60 characters"),
        ({"size": (0, 1)}, "that is not a text of 1 to 60 characters"),
    ],
)
def test_declarations_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch, declared: object, said: str) -> None:
    monkeypatch.setattr(Grouped, "subgroups", declared)
    with pytest.raises(TaskError, match=said):
        check_subgroups(Grouped())


def test_places_that_are_not_one_per_record_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = Grouped().example()
    for answer, said in (
        ({"size": torch.zeros(1)}, "of shape"),
        ({"size": [0] * len(targets)}, "a list"),
        ({}, "a NoneType"),
    ):
        monkeypatch.setattr(Grouped, "subgroup_of", lambda *_, answer=answer: answer)
        with pytest.raises(TaskError, match=said):
            places_of(Grouped(), "size", inputs, targets)
    with pytest.raises(TaskError, match="but no subgroup_of"):
        places_of(Diagnosis(), "size", inputs, targets)


# --- Tables -----------------------------------------------------------------------------------------------------------


class Ward(TableTask):
    """Columns of three kinds."""

    columns = (
        Number("age", low=18, high=100), Category("ward", ["a", "b"], other="other"), Flag("smoker"),
    )  # fmt: skip
    target = Flag("readmitted")
    subgroups: ClassVar[Mapping[str, Sequence[Any]]] = {"ward": (), "age": (40, 65), "smoker": ()}
    named_metrics = ("auc",)

    @override
    def model(self) -> torch.nn.Module:
        return torch.nn.Linear(self.width, 1)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(outputs, targets)


def test_a_table_declares_subgroups_by_its_columns(tmp_path: Any) -> None:  # noqa: ANN401
    file = tmp_path / "rows.csv"
    rows = ["39,a,no,1", "40,b,yes,0", "64,c,no,1", "65,a,yes,0", "100,b,no,1", "18,c,yes,0"]
    file.write_text("\n".join(["age,ward,smoker,readmitted", *rows, ""]))
    task = Ward()
    check_subgroups(task)
    assert task.subgroup_values == {
        "ward": ("a", "b", "other"), "age": ("below 40", "40 to below 65", "65 and above"), "smoker": ("no", "yes"),
    }  # fmt: skip
    loaded: Any = task.load(file)
    inputs, targets = loaded[:2]
    assert places_of(task, "age", inputs, targets).tolist() == [0, 1, 1, 2, 2, 0]
    assert places_of(task, "ward", inputs, targets).tolist() == [0, 1, 2, 0, 1, 2]
    assert places_of(task, "smoker", inputs, targets).tolist() == [0, 1, 0, 1, 0, 1]
    inputs, targets = task.example()
    assert all((places_of(task, name, inputs, targets) >= 0).all() for name in task.subgroups)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"sex": ()}, "its subgroups name the column 'sex', which there is not"),
        ({"age": ()}, r"'age' of this task cannot have the subgroups \(\)"),
        ({"age": (65, 40)}, "ascending cuts within its range"),
        ({"age": (18, 40)}, "ascending cuts within its range"),
        ({"ward": (1,)}, "give a Category or a Flag"),
    ],
)
def test_a_table_whose_columns_do_not_suit_is_refused(
    monkeypatch: pytest.MonkeyPatch, declared: object, said: str
) -> None:
    monkeypatch.setattr(Ward, "subgroups", declared)
    with pytest.raises(TaskError, match=said):
        check_subgroups(Ward())
