"""`cloister stats`: run a survey over the reference study's hospitals, or show a site's figures from a real run."""

from __future__ import annotations

import json
import time
from importlib import resources
from typing import TYPE_CHECKING, Any

from client.work.sums import FOLDER, OWN
from cloister.views.subgroups import number, show_subgroups
from privacy.config import read_toml, settings_file
from privacy.errors import ConfigError, RunError
from privacy.run.settings import RunSettings
from privacy.storage import read_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

_NAME, _CELLS, _LEVELS = 23, 8, "▁▂▃▄▅▆▇█"
_ROW = f"{{:<{_NAME}}} {{:>7}} {{:>7}} {{:>7}} {{:>7}} {{:>7}} {{:>7}} {{}}"


def survey(run: Path | None, folder: Path, console: Console) -> dict[str, Any]:
    """Run the reference survey, or the one in a file, in this process; return the figures.

    Raises:
        CloisterError: if settings are wrong, or the run failed.
    """
    from cloister.commands.simulate import run_here  # noqa: PLC0415 - loads torch, not needed to show a site's figures
    from simulations.tasks.reference_study import prepare_study  # noqa: PLC0415

    started = time.monotonic()
    with resources.as_file(resources.files("simulations.tasks") / "measurements.toml") as own:
        if read_toml(run or own, RunSettings).statistics is None:
            msg = f"{run}: this run trains or evaluates; give it a table [statistics], or use `cloister simulate`"
            raise ConfigError(msg)
        study = prepare_study(folder, run or own, limits=False)
    results = run_here(study, console)
    files = {site: _newest(path) for site, path in study.federation.paths.items()}
    if len({path.read_bytes() for path in files.values()}) != 1:
        msg = f"the hospitals have different figures: {', '.join(map(str, files.values()))}"
        raise RunError(msg)
    last = next(event for event in reversed(results.events) if event["event"] == "round" and event["released"])
    return {
        **latest(next(iter(study.federation.paths.values()))),
        "epsilon_spent": last["epsilon"],
        "bytes_up": last["bytes_up"],
        "files": {site: str(path) for site, path in files.items()},
        "seconds": round(time.monotonic() - started, 1),
    }


def latest(site: Path) -> dict[str, Any]:
    """Return a site's latest figures.

    Raises:
        ConfigError: if it has none, or the file is damaged.
    """
    path = _newest(settings_file(site, "site.toml").parent)
    try:
        report: dict[str, Any] = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        msg = f"{path}: this file is damaged; restore it, or copy it from another site: all sites have the same file"
        raise ConfigError(msg) from error
    return report | _own(path) | {"files": {path.parent.parent.name: str(path)}}


def _own(path: Path) -> dict[str, Any]:
    """Return a site's own exact figures beside its file of a sum, if it has them; no other site does."""
    own = path.parent.parent / OWN / path.name
    if not own.exists():
        return {}
    try:
        results: dict[str, Any] = json.loads(read_file(own))
    except (ValueError, RecursionError) as error:
        msg = f"{own}: this file is damaged; delete it: it holds only this site's own figures"
        raise ConfigError(msg) from error
    return {"own": results}


def _newest(site: Path) -> Path:
    files = sorted((site / FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        msg = f"{site / FOLDER} contains no figures; a run with [statistics] adds them once its sum is opened"
        raise ConfigError(msg)
    return files[-1]


def show(report: dict[str, Any], console: Console) -> None:
    """Print a survey's figures, in 80 columns."""

    def line(text: str, style: str | None = None) -> None:
        console.print(text.rstrip(), style=style, markup=False, soft_wrap=True)

    if "metrics" in report:
        _show_evaluation(report, line)
        return
    line(_ROW.format("", "mean", "±", "sd", "5 %", "50 %", "95 %", ""), "bold")
    for name, column in report["columns"].items():
        short = name if len(name) <= _NAME else name[: _NAME - 1] + "…"
        low, middle, high = (number(column["quantiles"][fraction]) for fraction in ("0.05", "0.5", "0.95"))
        mean, error = number(column["mean"]), number(column["mean_error"], digits=2)
        line(_ROW.format(short, mean, error, number(column["deviation"]), low, middle, high, _bars(column)))
    for entry in report["classes"]:
        fraction = f"{100 * entry['fraction']:.0f} % ± {100 * entry['fraction_error']:.0f}"
        label = f"label {entry['label']:g}"
        line(f"{label:<{_NAME}} {entry['count']:7.0f} {entry['count_error']:7.0f} {fraction:>15}")
    width, rank = 100 / report["bins"], 100 * max(column["rank_error"] for column in report["columns"].values())
    line(f"✓ {report['count']:.0f} ± {report['count_error']:.0f} records at {len(report['sites'])} sites")
    line(_privacy(report))
    line("  ±         standard error of the noise in the mean; for the sd, see the file")
    line(f"  quantiles accurate to {1.5 * width:.2g} % of the range, and ± {rank:.0f} % in rank")
    line(f"  file      {next(iter(report['files'].values()))}")


def _show_evaluation(report: dict[str, Any], line: Callable[[str], None]) -> None:
    """Print a model's metrics."""
    own = report.get("own", {}).get("metrics", {})
    for name, figure in report["metrics"].items():
        line(f"{name:<{_NAME}} {_measured(figure)}{_alone(own.get(name))}")
        for row in figure.get("counts", []):
            line(f"{'':<{_NAME}} " + " ".join(f"{count:7.0f}" for count in row))
        for row in figure.get("table", []):
            line(
                f"  {row['low']:.1f} to {row['high']:.1f} {row['count']:8.0f} ± {figure['count_error']:.0f} records, "
                f"true − said {row['gap']:+.2f} ± {row['gap_error']:.2f}"
            )
    for column, table in report.get("subgroups", {}).items():
        show_subgroups(column, table, line, report.get("own", {}).get("subgroups", {}).get(column))
    line(f"✓ {report['count']:.0f} ± {report['count_error']:.0f} held-out records at {len(report['sites'])} sites")
    line(f"  model     sha256 {report['model']}")
    line(_privacy(report))
    line("  ±         standard error of the noise, not of the sampling of records")
    if report.get("subgroups"):
        line("  gaps      largest minus smallest; noise only makes them larger")
    if any("bins" in metric for metric in report["metrics"].values()):
        line("  bins      how much the scores' order within their bins can change a metric, at most")
    if own:
        line(f"  alone     exact, over this site's {report['own']['records']} held-out records; it has not left it")
    line(f"  file      {next(iter(report['files'].values()))}")


def _measured(figure: dict[str, Any]) -> str:
    """Return a metric with its error."""
    if "counts" in figure:
        return f"{'':>7} ± {number(figure['error'], digits=2)}, in rows the true classes, in columns the predicted"
    value = figure.get("value", figure.get("mean"))
    if value is None:
        return f"      – undefined: {figure['reason']}"
    bins = f", bins ± {number(figure['bins'], digits=2)}" if "bins" in figure else ""
    return f"{number(value):>7} ± {number(figure['error'], digits=2)}{bins}"


def _alone(own: dict[str, Any] | None) -> str:
    """Return what a site knows of a metric by itself."""
    if own is None:
        return ""
    if "counts" in own:
        return "; alone " + "; ".join(" ".join(map(str, row)) for row in own["counts"])
    return f"; alone {'undefined' if own['value'] is None else number(own['value'])}"


def _privacy(report: dict[str, Any]) -> str:
    epsilon = "∞" if report["epsilon"] is None else f"{report['epsilon']:.2f}"
    return f"  privacy   ε {epsilon}, δ {report['delta']:g}, per person, at each site"


def _bars(column: dict[str, Any]) -> str:
    """Draw a histogram as a line of bars."""
    fractions, cells = column["histogram"], min(_CELLS, len(column["histogram"]))
    sums = [0.0] * cells
    for place, fraction in enumerate(fractions):
        sums[place * cells // len(fractions)] += fraction
    top = max(sums) or 1.0
    return "".join(_LEVELS[round(height / top * (len(_LEVELS) - 1))] for height in sums)
