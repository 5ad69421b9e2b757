"""Plot audits, benchmarks and simulations. This is the only file that loads matplotlib; it needs no display."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cloister.audit.checks import CONFIDENCE
from privacy.config import did_you_mean
from privacy.errors import ConfigError
from simulations.study.columns import NOT_METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from cloister.audit.privacy import Audit

_OUT, _IN, _GREY = "#4c72b0", "#dd8452", "#888888"
_BINS = 60
_IN_A_ROW = 3  # panels
_SIDE = 8  # pixels of a digit


@dataclass(frozen=True)
class Panel:
    """One digit in a row of digits."""

    title: str
    image: NDArray[np.float64]  # (64,), of any range
    caption: str
    correlation: float | None  # with the first digit


def draw_audit(audit: Audit, path: Path) -> None:
    """Draw the scores of included and excluded canaries with fitted normals, and the three ε side by side."""
    sighting, report = audit.sighting, audit.report
    if sighting is None:
        msg = f"{report['site']}: its task is refused, so there is nothing to draw"
        raise ConfigError(msg)
    figure = Figure(figsize=(10, 4), layout="constrained")
    scores, bars = figure.subplots(1, 2, width_ratios=[3, 2])
    edges = np.linspace(sighting.scores.min(), sighting.scores.max(), _BINS)
    for name, chosen, colour in (("not in", ~sighting.included, _OUT), ("in", sighting.included, _IN)):
        _histogram(scores, sighting.scores[chosen], edges, f"canaries {name} the data", colour)
    scores.axvline(sighting.expected / 2, color=_GREY, linestyle=":", label="threshold, fixed in advance")
    scores.set(xlabel="score: clipped gradients found in the final model", ylabel="density")
    scores.set_title(f"{report['site']}: {report['canaries']} canaries", loc="left")
    scores.legend(frameon=False, fontsize="small")
    names = "formal\nlower bound", "implementation\ntest", "claimed\n(accountant)"
    heights = [report[key] for key in ("epsilon_formal", "epsilon_lower", "epsilon_claimed")]
    drawn = bars.bar(names, heights, color=[_OUT, _IN, _GREY])
    bars.bar_label(drawn, fmt="%.2f")
    bars.set(ylabel=f"ε at δ {report['delta']:g}")
    bars.set_title(f"{100 * CONFIDENCE:.0f} % confidence", loc="left")
    for axes in (scores, bars):
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_digits(panels: Sequence[Panel], path: Path) -> None:
    """Draw digits side by side with captions, each in its own grey scale."""
    figure = Figure(figsize=(2.6 * len(panels), 3.6), layout="constrained")
    figure.suptitle("One record, reconstructed from its update", x=0.01, ha="left")
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(panel.image.reshape(_SIDE, _SIDE), cmap="gray_r")
        axes.set(xticks=[], yticks=[])
        axes.set_title(panel.title, fontsize="medium")
        label = panel.caption if panel.correlation is None else f"{panel.caption}\ncorrelation {panel.correlation:z.2f}"
        axes.set_xlabel(label, fontsize="small")
    _save(figure, path)


def draw_utility(report: dict[str, Any], path: Path) -> None:
    """Draw a panel per data set, with a line and deviations per kind of noise; dashed, the result without privacy."""
    rows = [row for row in report["rows"] if not row["variant"]]
    names = list(dict.fromkeys(row["data"] for row in rows))
    figure = Figure(figsize=(4.4 * len(names), 3.6), layout="constrained")
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), place)
        own = [row for row in rows if row["data"] == name]
        for noise, colour in (("local", _OUT), ("shared", _IN)):
            line = [row for row in own if row["noise"] == noise]
            means, spreads = ([100 * row[key] for row in line] for key in ("accuracy_mean", "accuracy_std"))
            axes.errorbar([row["epsilon"] for row in line], means, spreads, color=colour, marker="o", capsize=3,
                          label=f"{noise} noise")  # fmt: skip
        for row in own:
            if row["noise"] == "none":
                axes.axhline(100 * row["accuracy_mean"], color="grey", linestyle="--", label="no privacy")
        axes.set_xscale("log")
        ticks = sorted({row["epsilon"] for row in own if row["epsilon"]})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("ε of the whole run")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(f"{name}, {own[0]['sites']} sites")
        axes.legend()
    _save(figure, path)


class Drawing(Figure):
    """A figure that a notebook shows, also if nothing has loaded pyplot."""

    def _repr_png_(self) -> bytes:
        out = BytesIO()
        FigureCanvasAgg(self)
        self.savefig(out, dpi=110, format="png")
        return out.getvalue()


def draw_history(rows: Sequence[Mapping[str, Any]], title: str, path: Path | None) -> Figure:
    """Draw a simulation: the loss and the metrics by round, and one metric against ε, if there is noise, and bytes."""
    measured = _measured(rows)
    names = [
        name for name in measured[0] if name not in NOT_METRICS and not math.isnan(measured[-1].get(name, math.nan))
    ]
    within = [name for name in names if name != "loss" and all(0 <= row[name] <= 1 for row in measured)]
    panels = [[name] for name in names if name not in within] + ([within] if within else [])
    chosen = (within or names)[0]
    ways = [key for key in _AXES if key != "round" and _finite(measured, key)]
    figure, all_axes = _panels(len(panels) + len(ways), title)
    for axes, shown in zip(all_axes, panels, strict=False):
        for name in shown:
            _line(axes, measured, "round", name, name)
        axes.set_ylabel(shown[0] if len(shown) == 1 else "")
        if len(shown) > 1:
            axes.legend(frameon=False, fontsize="small")
    for axes, key in zip(all_axes[len(panels) :], ways, strict=True):
        _line(axes, measured, key, chosen, chosen)
        axes.set_ylabel(chosen)
    return _finished(figure, path)


def draw_comparison(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], metric: str | None, title: str, path: Path | None
) -> Figure:
    """Draw one metric of several simulations by round, and against ε, if all have noise, and bytes, if they differ.

    Each may have been repeated: then the mean is drawn, in a band from the least to the greatest.

    Raises:
        ConfigError: if there is nothing to draw, or a run has no such metric.
    """
    measured = {name: [_measured(rows) for rows in repeated] for name, repeated in runs.items()}
    every = [rows for repeated in measured.values() for rows in repeated]
    if not every or not all(measured.values()):
        msg = "there is no result to compare; give some by name"
        raise ConfigError(msg)
    common = [name for name in every[0][0] if name not in NOT_METRICS and all(name in rows[0] for rows in every)]
    chosen = metric or next((name for name in common if name != "loss"), "loss")
    if chosen not in common:
        hint = did_you_mean(chosen, common) or f"they have {', '.join(common)}"
        msg = f"not all of these results have the metric {chosen!r}; {hint}"
        raise ConfigError(msg)
    ways = [key for key in _AXES if all(_finite(rows, key) for rows in every)]
    if len({rows[-1]["bytes"] / rows[-1]["round"] for rows in every}) == 1:
        ways.remove("bytes")  # it would be the first panel again
    figure, all_axes = _panels(len(ways), title)
    for axes, key in zip(all_axes, ways, strict=True):
        axes.set_prop_cycle(_MANY_LINES)
        for name, repeated in measured.items():
            _band(axes, repeated, key, chosen, name)
        axes.set_ylabel(chosen)
    all_axes[0].legend(frameon=False, fontsize="small")
    return _finished(figure, path)


_AXES = {"round": "round", "epsilon": "ε spent", "bytes": "MB sent by all sites"}
_UNITS = {"bytes": 1e6}
_MANY_LINES = cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=TABLEAU_COLORS.values())


def _measured(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    measured = [row for row in rows if "loss" in row]
    if not measured:
        msg = "no round was measured, so there is nothing to draw; simulate at least one round"
        raise ConfigError(msg)
    return measured


def _finite(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    return all(math.isfinite(row[key]) for row in rows)


def _panels(count: int, title: str) -> tuple[Drawing, list[Axes]]:
    lines = math.ceil(count / _IN_A_ROW)
    columns = math.ceil(count / lines)
    figure = Drawing(figsize=(3.6 * columns + 0.4, 2.9 * lines + 0.3), layout="constrained")
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    panels = [figure.add_subplot(lines, columns, place) for place in range(1, count + 1)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure, panels


def _band(axes: Axes, repeated: Sequence[Sequence[Mapping[str, Any]]], key: str, metric: str, label: str) -> None:
    """Draw the mean of repeated runs over the rounds that all of them measured, and the band in which they are."""
    by_round = [{row["round"]: row for row in rows} for rows in repeated]
    rounds = [number for number in by_round[0] if all(number in rows for rows in by_round)]
    figures = np.array([[[rows[number][name] for name in (key, metric)] for rows in by_round] for number in rounds])
    means = figures.reshape(len(rounds), len(repeated), 2).mean(1)
    rows = [dict(zip((key, metric), mean, strict=True)) for mean in means]
    colour = _line(axes, rows, key, metric, label)
    if len(repeated) > 1:
        across = [row[key] / _UNITS.get(key, 1) for row in rows]
        axes.fill_between(
            across, figures[:, :, 1].min(1), figures[:, :, 1].max(1), color=colour, alpha=0.2, linewidth=0
        )


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, metric: str, label: str) -> Any:  # noqa: ANN401 - a colour
    across = [row[key] / _UNITS.get(key, 1) for row in rows]
    (line,) = axes.plot(across, [row[metric] for row in rows], marker="o", markersize=3, label=label)
    axes.set_xlabel(_AXES[key])
    if key == "round":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return line.get_color()


def _finished(figure: Drawing, path: Path | None) -> Figure:
    if path is None:
        FigureCanvasAgg(figure)
    else:
        _save(figure, path)
    return figure


def draw_tuning(
    rows: Sequence[Mapping[str, Any]], metric: str, importances: Mapping[str, float], path: Path | None, *,
    larger_is_better: bool,
) -> Figure:  # fmt: skip
    """Draw a search: each trial's metric and the best so far; beside it, how much each setting decided."""
    rows = [row for row in rows if row["value"] is not None]
    figure = Drawing(figsize=(9, 3.8), layout="constrained")
    trials, parts = figure.subplots(1, 2, width_ratios=[3, 2])
    for state, colour in (("complete", _OUT), ("pruned", _GREY)):
        some = [row for row in rows if row["state"] == state]
        trials.plot([row["trial"] for row in some], [row["value"] for row in some], "o", markersize=4, color=colour,
                    label=state)  # fmt: skip
    complete = [row for row in rows if row["state"] == "complete"]
    better = np.maximum if larger_is_better else np.minimum
    best = better.accumulate([row["value"] for row in complete])
    trials.step([row["trial"] for row in complete], best, where="post", color=_IN, label="best so far")
    trials.set(xlabel="trial", ylabel=metric)
    trials.legend(frameon=False, fontsize="small")
    shares = sorted(importances.items(), key=lambda share: share[1])
    parts.barh([name for name, _ in shares], [share for _, share in shares], color=_OUT)
    parts.set(xlabel="share of what decided", title="" if shares else "too few trials to say what decided")
    for axes in (trials, parts):
        axes.spines[["top", "right"]].set_visible(False)
    return _finished(figure, path)


def _histogram(axes: Axes, scores: NDArray[np.float64], edges: NDArray[np.float64], name: str, colour: str) -> None:
    axes.hist(scores, bins=edges.tolist(), density=True, alpha=0.5, color=colour, label=name)
    mean, deviation = float(scores.mean()), float(scores.std())
    if deviation > 0:
        density = np.exp(-(((edges - mean) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
        axes.plot(edges, density, color=colour)


def _save(figure: Figure, path: Path) -> None:
    """Write a picture.

    Raises:
        ConfigError: if it cannot be written, or its file type is unknown.
    """
    FigureCanvasAgg(figure)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        msg = f"{path}: the picture cannot be written ({error}); name a .png, .svg or .pdf in a folder that exists"
        raise ConfigError(msg) from error
