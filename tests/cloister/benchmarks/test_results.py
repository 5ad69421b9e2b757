"""The reference tasks' records and settings, and what the benchmark makes of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lifelines.utils import concordance_index

from client.data.sources.options import Csv, Dicom, Images
from client.data.sources.registry import Source
from client.task.image_task import ImageTask
from client.task.task import import_task
from cloister.benchmarks import results
from privacy.accounting.accounting import Mechanism, epsilon
from privacy.errors import ConfigError, DataError
from simulations.tasks.references import EPSILONS, FAST, REFERENCES, Recipe, Reference

pytestmark = pytest.mark.xdist_group("strokes")  # whose filters take seconds to make, once a process
SOURCES: dict[str, Csv | Images | Dicom] = {"csv": Csv(), "images": Images(), "dicom": Dicom()}
EACH = pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.name)


@EACH
def test_a_site_reads_the_records_that_were_written(reference: Reference, tmp_path: Path) -> None:
    task = import_task(reference.task)
    rows = np.arange(16 if issubclass(type(task), ImageTask) else 400)
    reference.write(tmp_path / "records", rows)
    inputs, targets = _read(reference, tmp_path / "records")
    assert len(inputs) == len(targets) >= len(rows)
    assert torch.isfinite(inputs.float()).all()
    made_up = task.example()
    assert isinstance(made_up[0], torch.Tensor)
    assert [(part.shape[1:], part.dtype) for part in (made_up[0], made_up[1])] == [
        (part.shape[1:], part.dtype) for part in (inputs, targets)
    ]
    model = task.model()
    with torch.no_grad():
        outputs = model(inputs)
    assert torch.isfinite(task.loss(outputs, targets))
    assert np.isfinite(reference.scored(outputs.numpy(), targets.numpy()))


def _read(reference: Reference, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    task = import_task(reference.task)
    options = None if reference.source is None else SOURCES[reference.source]
    loaded: Any = task.load_from(Source(path, options))
    if isinstance(task, ImageTask):
        images: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        inputs, targets = zip(*(images[place] for place in range(len(images))), strict=True)
        return torch.stack(inputs), torch.stack(targets)
    inputs, targets, *_ = loaded
    assert isinstance(inputs, torch.Tensor)
    assert isinstance(targets, torch.Tensor)
    return inputs, targets


@EACH
def test_a_file_of_something_else_is_a_data_error(reference: Reference, tmp_path: Path) -> None:
    for content in (b"", b"\x00\xff\xfe", b"a,b\n1,2\n", b"PK\x03\x04 cut"):
        (tmp_path / "records").write_bytes(content)
        with pytest.raises(DataError):
            _read(reference, tmp_path / "records")


@EACH
def test_runs_are_planned_at_every_epsilon(reference: Reference) -> None:
    sizes = {"site-1": 100, "site-2": 200, "site-3": 300}
    for target in (None, *EPSILONS):
        privacy, recipe = reference.settings(target, sizes).privacy, reference.recipe(target)
        if target is None or reference.records_per_person == 1:
            assert privacy.epsilon == target
        else:  # for a person with this many records
            assert privacy.noise_multiplier
            steps = Mechanism(privacy.noise_multiplier, recipe.sample_rate, recipe.rounds * recipe.steps)
            spent = epsilon([steps], privacy.delta, group=reference.records_per_person)
            assert 0.99 * target < spent <= target


def test_a_task_is_trained_in_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    place = [reference.name for reference in REFERENCES].index("survival")
    short = Recipe(0.5, 2, max_grad_norm=0.5)
    quick = replace(REFERENCES[place], plain=short, private=dict.fromkeys(EPSILONS, short), sites=3)
    monkeypatch.setattr(results, "REFERENCES", (quick,))
    name, cells = results._cells("survival", seed=0)
    assert name == "survival"
    assert tuple(cells) == results.WAYS
    assert [round(cells[f"ε = {epsilon:g}"]["epsilon"], 1) for epsilon in EPSILONS] == list(EPSILONS)
    assert all(0.3 < cell["score"] < 0.9 for cell in cells.values())
    rows: list[dict[str, Any]] = [
        {"task": name, "way": way, "score": "C-index", "mean": cells[way]["score"], "std": 0.0, "delta": 1e-4,
         "bytes": cells[way].get("bytes"), "seconds": cells[way]["seconds"], "sites": 3, "seeds": 1, "published": []}
        for way in results.WAYS
    ]  # fmt: skip
    report = {"rows": rows, "first_seed": 0}
    assert "survival, C-index" in results.table(report)
    assert "| survival | C-index | 0." in results.page(report)


def _report(task: str, mean: float) -> dict[str, Any]:
    row = {"task": task, "score": "AUC", "mean": mean, "std": 0.0, "delta": 1e-4, "bytes": 9.0, "seconds": 1.0}
    rows = [{**row, "way": way, "sites": 5, "seeds": 5, "published": []} for way in results.WAYS]
    return {"rows": rows, "first_seed": 0}


def test_writing_some_tasks_keeps_the_rows_of_others(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    for task, mean in (("fraud", 0.7), ("credit", 0.5), ("fraud", 0.8)):
        results.write_page(_report(task, mean), page, results.written_before(page, 5))
    lines = [line for line in page.read_text("utf-8").splitlines() if "| AUC |" in line]
    assert [line.split(" ")[1] for line in lines] == ["credit", "fraud"]  # in the order of the tasks
    assert "0.500" in lines[0]
    assert "0.800" in lines[1]
    assert "0.7" not in lines[1]


def test_results_of_different_seeds_are_not_mixed(tmp_path: Path) -> None:
    results.write_page(_report("fraud", 0.7), tmp_path / "results.md")
    with pytest.raises(ConfigError, match="has results of 5 seeds; use --seeds 5"):
        results.written_before(tmp_path / "results.md", 2)


def test_concordance_is_that_of_lifelines() -> None:
    rng = np.random.default_rng(1)
    days, event, risk = rng.integers(1, 50, 60), rng.integers(0, 2, 60), rng.integers(0, 9, 60)
    scored = next(reference.scored for reference in REFERENCES if reference.score == "C-index")
    got = scored(risk[:, None].astype(np.float32), np.stack([days, event], 1).astype(np.float32))
    assert got == pytest.approx(concordance_index(days, -risk, event), abs=0.02)  # ties in time are counted differently


def test_the_quick_tasks_exist() -> None:
    assert set(FAST) <= {reference.name for reference in REFERENCES}
