"""Accuracy against ε as a picture, drawn without a screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from privacy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_COLOURS = {"local": "#1f5fa8", "shared": "#c2571a"}


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw a panel for each data set: a line for each noise, with deviations; dashed, what there is without privacy.

    Raises:
        ConfigError: if the file cannot be written, or is of no kind that pictures have.
    """
    rows = [row for row in report["rows"] if not row["variant"]]
    names = list(dict.fromkeys(row["data"] for row in rows))
    figure = Figure(figsize=(4.4 * len(names), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), place)
        own = [row for row in rows if row["data"] == name]
        for noise, colour in _COLOURS.items():
            line = [row for row in own if row["noise"] == noise]
            means, spreads = ([100 * row[key] for row in line] for key in ("accuracy_mean", "accuracy_std"))
            axes.errorbar([row["epsilon"] for row in line], means, spreads, color=colour, marker="o", capsize=3,
                          label=f"{noise} noise")  # fmt: skip
        for row in own:
            if row["noise"] == "none":
                axes.axhline(100 * row["accuracy_mean"], color="grey", linestyle="--", label="no privacy")
        axes.set_xscale("log")
        ticks = sorted({row["epsilon"] for row in own if row["epsilon"]})
        axes.set_xticks(ticks, [f"{each:g}" for each in ticks])
        axes.minorticks_off()
        axes.set_xlabel("ε of the whole run")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(f"{name}, {own[0]['sites']} sites")
        axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        msg = f"{path}: the picture cannot be written ({error}); name a .png, .svg or .pdf in a folder that exists"
        raise ConfigError(msg) from error
