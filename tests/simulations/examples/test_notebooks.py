"""The notebooks in docs/ are the scripts in simulations/examples, and they run."""

from __future__ import annotations

import importlib
import runpy
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import nbformat
import pytest

from cloister import simulating
from tests.test_rooms import EXAMPLES, ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from cloister import Result

TOOLS = runpy.run_path(str(EXAMPLES / "notebooks.py"))
SCRIPTS: list[Path] = TOOLS["SCRIPTS"]
NOTEBOOKS = ROOT / "docs" / "notebooks"


def pictures(notebook: Any) -> int:  # noqa: ANN401 - nbformat has no types
    """Return how many pictures a notebook shows; no cell may have failed, or written to stderr."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.get("name") == "stderr" or output.output_type == "error"]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_there_is_a_notebook_for_every_script() -> None:
    assert {path.stem for path in SCRIPTS} == {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert len(SCRIPTS) >= 5


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_has_its_script_s_cells_and_shows_pictures(script: Path) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{script.stem}.ipynb", as_version=4)
    cells = TOOLS["cells_of"](script.read_text(encoding="utf-8"))
    written = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert written == [(cell.cell_type, cell.source) for cell in cells], f"run `make notebooks`: {script.name} changed"
    assert pictures(notebook) >= 1
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code"), "it was not run"


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs_with_two_rounds(script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a notebook does, in this process: to start a kernel takes longer than the rest."""
    played = simulating.simulate

    def briefly(task: Any, records: Any, run: Any, **options: Any) -> Result:  # noqa: ANN401 - as `simulate`
        return played(task, records, run | {"rounds": 2}, **options)

    monkeypatch.setattr(simulating, "simulate", briefly)
    monkeypatch.chdir(tmp_path)
    backend = mpl.get_backend()
    mpl.use("template")  # draws nothing
    try:
        importlib.import_module(f"simulations.examples.{script.stem}")
    finally:
        mpl.use(backend)
    assert not list(tmp_path.iterdir())


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_runs(script: Path, tmp_path: Path) -> None:
    kept = nbformat.read(NOTEBOOKS / f"{script.stem}.ipynb", as_version=4)
    assert pictures(TOOLS["notebook_of"](script, tmp_path)) == pictures(kept)
    assert not list(tmp_path.iterdir())
