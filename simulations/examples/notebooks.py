"""Write docs/notebooks from the scripts in this folder, with what they print and draw: `make notebooks`.

A script is in the percent format, which editors and Jupytext know: `# %%` begins a cell, `# %% [markdown]` a text.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
NOTEBOOKS = FOLDER.parent.parent / "docs" / "notebooks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path != Path(__file__))


def cells_of(script):
    """Return a notebook's cells, not yet run, from a script's text."""
    cells = []
    for place, (kind, body) in enumerate(
        re.findall(r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", script, re.MULTILINE | re.DOTALL)
    ):
        text = body.strip("\n")
        if kind:
            text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.split("\n"))
        make = nbformat.v4.new_markdown_cell if kind else nbformat.v4.new_code_cell
        cells.append(make(text.strip("\n"), id=f"cell-{place}"))
    return cells


def notebook_of(path, folder):
    """Run a script as a notebook, in an empty folder, and return it with its outputs."""
    notebook = nbformat.v4.new_notebook(
        cells=cells_of(path.read_text(encoding="utf-8")),
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    options = {"timeout": 300, "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, **options, resources={"metadata": {"path": str(folder)}}).execute()
    notebook.metadata.pop("language_info", None)  # of whoever ran it
    return notebook


if __name__ == "__main__":
    import tempfile

    for script in SCRIPTS:
        if sys.argv[1:] and script.stem not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            nbformat.write(notebook_of(script, scratch), NOTEBOOKS / f"{script.stem}.ipynb")
        print(f"✓ docs/notebooks/{script.stem}.ipynb")
