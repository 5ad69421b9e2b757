"""`cloister bench simulation`: how long a site's round takes in a simulation, by Cloister's engines and by others.

Every row is a process of its own, so that its peak memory is its own, and starts with loaded libraries. Seconds are
those of the rounds; reading records, starting workers and measuring the model do not count: `start_to_end` has them.
Ray's workers are processes whose memory no row has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from privacy.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

ENGINES = ("vectorised", "processes", "inline", "ray", "pfl", "loop")
MODELS = ("softmax", "mlp")
_MODULES = {"ray": "ray", "pfl": "pfl"}  # which a row needs, and not everybody has
_SECONDS = 1800.0
_ROW = "{:<11}{:<8}{:>8} {:<7}{:>13}{:>8}{:>9}{:>7}{:>8}"


def jobs(
    sites: Sequence[int], rounds: int, engines: Sequence[str], models: Sequence[str] = MODELS
) -> list[tuple[str, str, int, int, bool]]:
    """Return what to measure: engine, model, sites, rounds, and whether with DP-SGD.

    The whole protocol is measured with few sites, since making a site's keys takes longer than its rounds.
    """
    planned = []
    for engine in engines:
        for model in models:
            for count in sites:
                for private in (False, True):
                    if engine in {"ray", "pfl"} and private:
                        continue  # they have no DP-SGD at the sites
                    if engine in {"processes", "inline"} and (count > _MOST_WHOLE or private):
                        continue
                    planned.append((engine, model, count, rounds, private))
    return planned


_MOST_WHOLE = 100


def measure(
    sites: Sequence[int], rounds: int, engines: Sequence[str], models: Sequence[str] = MODELS
) -> dict[str, Any]:
    """Measure the engines that are installed; show progress on standard error.

    Raises:
        RunError: if a row fails.
    """
    missing = [engine for engine in engines if engine in _MODULES and not find_spec(_MODULES[engine])]
    console = Console(stderr=True)
    planned = jobs(sites, rounds, [engine for engine in engines if engine not in missing], models)
    rows = [
        _row(*job)
        for job in track(planned, "simulating", console=console, transient=True, disable=not console.is_terminal)
    ]
    return {"rows": rows, "rounds": rounds, "missing": missing}


def _row(engine: str, model: str, sites: int, rounds: int, private: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "cloister.benchmarks.simulation_rows", engine, model, str(sites), str(rounds)]
    environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(  # noqa: S603 - our own module
        [*command, "private" if private else "plain"], capture_output=True, text=True, timeout=_SECONDS, check=False,
        env=environment,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        msg = f"{engine}, {model}, {sites} sites: the simulation failed:\n{done.stderr[-2000:]}"
        raise RunError(msg)
    row = json.loads(lines[-1])
    return {
        "engine": engine,
        "model": model,
        "sites": sites,
        "private": private,
        "ms_per_site_round": 1000 * row["seconds"] / sites / rounds,
        "accuracy": row["accuracy"],
        "peak_mb": row["peak_mb"],
        "start_to_end": row["start_to_end"],
    }


def table(report: dict[str, Any]) -> str:
    """Format a report as text, in 80 columns."""
    rows = report["rows"]
    lines = [
        f"digits, one epoch a round in batches of 8, {report['rounds']} rounds",
        _ROW.format("engine", "model", "sites", "DP-SGD", "ms/site/round", "of ours", "accuracy", "MB", "all, s"),
    ]
    for row in rows:
        own = next(
            (each["ms_per_site_round"] for each in rows if each["engine"] == "vectorised"
             and all(each[key] == row[key] for key in ("model", "sites", "private"))),
            None,
        )  # fmt: skip
        ratio = f"{row['ms_per_site_round'] / own:,.1f}" if own else "–"
        lines.append(
            _ROW.format(
                row["engine"], row["model"], f"{row['sites']:,}", "yes" if row["private"] else "no",
                f"{row['ms_per_site_round']:.4f}", ratio, f"{row['accuracy']:.3f}", f"{row['peak_mb']:.0f}",
                f"{row['start_to_end']:.1f}",
            )
        )  # fmt: skip
    lines += [f"{engine} is not installed: no row" for engine in report["missing"]]
    return "\n".join(lines)
