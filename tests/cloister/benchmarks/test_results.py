"""The reference tasks' records and settings, and what the benchmark makes of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lifelines.utils import concordance_index

from client.task.task import import_task
from cloister.benchmarks import results
from privacy.errors import DataError
from simulations.tasks.references import EPSILONS, FAST, REFERENCES, Recipe, Reference

EACH = pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.name)


@EACH
def test_a_site_reads_the_records_that_were_written(reference: Reference, tmp_path: Path) -> None:
    task, rows = import_task(reference.task), np.arange(400)
    reference.write(tmp_path / "records", rows)
    inputs, targets = _two_tensors(task.load(tmp_path / "records"))
    assert len(inputs) == len(targets) == 400
    assert torch.isfinite(inputs.float()).all()
    loaded = _two_tensors(task.example())
    assert [(part.shape[1:], part.dtype) for part in loaded] == [
        (part.shape[1:], part.dtype) for part in (inputs, targets)
    ]
    model = task.model()
    with torch.no_grad():
        outputs = model(inputs)
    assert torch.isfinite(task.loss(outputs, targets))
    assert np.isfinite(reference.scored(outputs.numpy(), targets.numpy()))


def _two_tensors(records: object) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(records, tuple)
    inputs, targets = records
    assert isinstance(inputs, torch.Tensor)
    assert isinstance(targets, torch.Tensor)
    return inputs, targets


@EACH
def test_a_file_of_something_else_is_a_data_error(reference: Reference, tmp_path: Path) -> None:
    for content in (b"", b"\x00\xff\xfe", b"a,b\n1,2\n", b"PK\x03\x04 cut"):
        (tmp_path / "records").write_bytes(content)
        with pytest.raises(DataError):
            import_task(reference.task).load(tmp_path / "records")


@EACH
def test_runs_are_planned_at_every_epsilon(reference: Reference) -> None:
    sizes = {"site-1": 100, "site-2": 200, "site-3": 300}
    for epsilon in (None, *EPSILONS):
        assert reference.settings(epsilon, sizes).privacy.epsilon == epsilon


def test_a_task_is_trained_in_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    place = [reference.name for reference in REFERENCES].index("survival")
    short = Recipe(0.5, 2, max_grad_norm=0.5)
    quick = replace(REFERENCES[place], plain=short, private=dict.fromkeys(EPSILONS, short), sites=3)
    monkeypatch.setattr(results, "REFERENCES", (quick,))
    name, cells = results._cells(0, seed=0)
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


def test_concordance_is_that_of_lifelines() -> None:
    rng = np.random.default_rng(1)
    days, event, risk = rng.integers(1, 50, 60), rng.integers(0, 2, 60), rng.integers(0, 9, 60)
    scored = next(reference.scored for reference in REFERENCES if reference.score == "C-index")
    got = scored(risk[:, None].astype(np.float32), np.stack([days, event], 1).astype(np.float32))
    assert got == pytest.approx(concordance_index(days, -risk, event), abs=0.02)  # ties in time are counted differently


def test_the_quick_tasks_exist() -> None:
    assert set(FAST) <= {reference.name for reference in REFERENCES}
