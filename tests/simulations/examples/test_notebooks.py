"""The notebooks in docs/ are the scripts in simulations/examples, and they run."""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING, Any

import nbformat
import pytest

from tests.test_rooms import ROOT

if TYPE_CHECKING:
    from pathlib import Path

TOOLS = runpy.run_path(str(ROOT / "simulations" / "examples" / "notebooks.py"))
SCRIPTS: list[Path] = TOOLS["SCRIPTS"]
NOTEBOOKS: Path = TOOLS["NOTEBOOKS"]


def pictures(notebook: Any) -> int:  # noqa: ANN401 - nbformat has no types
    """Return how many pictures a notebook shows; no cell may have written to stderr."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.get("name") == "stderr" or output.output_type == "error"]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_there_is_a_notebook_for_every_script() -> None:
    assert len(SCRIPTS) == 5
    assert {path.stem for path in SCRIPTS} == {path.stem for path in NOTEBOOKS.glob("*.ipynb")}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_has_its_script_s_cells_and_shows_pictures(script: Path) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{script.stem}.ipynb", as_version=4)
    cells = TOOLS["cells_of"](script.read_text(encoding="utf-8"))
    written = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert written == [(cell.cell_type, cell.source) for cell in cells], f"run `make notebooks`: {script.stem} changed"
    assert pictures(notebook) >= 1
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code"), "it was not run"


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_runs(script: Path, tmp_path: Path) -> None:
    kept = nbformat.read(NOTEBOOKS / f"{script.stem}.ipynb", as_version=4)
    assert pictures(TOOLS["notebook_of"](script, tmp_path)) == pictures(kept)
    assert not list(tmp_path.iterdir())
