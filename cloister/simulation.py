"""`cloister simulate`: a federation's run in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloister.view import RoundTable, listen
from privacy.config import read_toml
from privacy.errors import ConfigError
from privacy.manifest import RunSettings
from simulations.federation import Federation
from simulations.inline import run_inline
from simulations.results import read_results

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console


def simulate_folder(folder: Path, run: Path | None, console: Console) -> dict[str, Any]:
    """Run the signed run of a federation's folder, or sign another first; return what came out.

    Raises:
        CloisterError: if the folder holds no federation, or the run failed.
    """
    sites = sorted(path.parent.name for path in folder.glob("*/site.toml"))
    if not sites:
        msg = f"{folder}: no federation here; `cloister demo --folder {folder}` makes one"
        raise ConfigError(msg)
    federation = Federation(folder, tuple(sites))
    if run is not None:
        federation.sign(read_toml(run, RunSettings))
    with RoundTable(console) as table:
        listen(table)
        run_inline(federation)
    results = read_results(federation)
    return {"rounds": results.rounds, "model": results.model, "run": results.run}
