"""What the README shows works exactly as printed."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from client.task.guard import check_task
from client.task.task import Task

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_task_in_the_readme_reads_records_and_learns_from_them(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    names: dict[str, Any] = {}
    exec(code[1], names)  # noqa: S102 - our own README
    task = names["Diagnosis"]()
    assert isinstance(task, Task)
    check_task(task, "Diagnosis")
    (tmp_path / "records.csv").write_text("mean_radius,mean_texture,malignant\n14,20,0\n21,30,1\n", encoding="utf-8")

    loaded: Any = task.load(tmp_path / "records.csv")
    inputs, targets = loaded
    outputs = task.model()(inputs)
    loss = task.loss(outputs, targets)
    loss.backward()

    assert inputs.shape == (2, 2)
    assert loss.shape == torch.Size([])
    assert task.metrics(outputs, targets)["accuracy"].shape == (2,)


def test_the_simulation_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    task, simulation = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "shown_in_readme.py").write_text(task, encoding="utf-8")
    names = runpy.run_module("shown_in_readme", alter_sys=False, run_name="shown_in_readme")
    rows, labels = torch.rand(300, 2).numpy(), (torch.rand(300, 1) < 0.5).float().numpy()

    exec(simulation, names | {"rows": rows, "labels": labels})  # noqa: S102 - our own README

    saved = {file.name for file in (tmp_path / "trial").iterdir()}
    assert saved >= {"history.csv", "plot.svg", "report.html", "model.safetensors", "run.toml"}


def test_every_path_in_the_readme_exists() -> None:
    links = re.findall(r"\]\((?!http|#)([^)#]+)", README)
    assert links
    for link in links:
        assert (Path(__file__).parent.parent / link).exists(), link


def test_the_output_in_the_readme_fits_a_terminal() -> None:
    match = re.search(r"\$ make demo\n(.*?)```", README, re.DOTALL)
    assert match
    assert max(map(len, match[1].splitlines())) <= 80
