"""What came out of a simulation: figures by round, models, ε; to plot, save, report, and run with real sites."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from privacy.errors import ConfigError
from privacy.storage import write_atomically
from simulations.study.columns import NOT_METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulations.study.runner import Outcome


@dataclass(frozen=True, eq=False)
class Result:
    """A simulation's result.

    Attributes:
        rows: one for each round: `round`, `sites` that took part, the loss and metrics on the test records, `epsilon`
            of the sites that took part most often (infinite without noise), `site_epsilon` if there is site privacy,
            `bytes` that all sites have sent so far,
            `seconds` so far, whether the sum was `released`, and `problems`.
        engine: which engine played it.
        why: why it was chosen.
        stopped: why it ended before its last round; empty if it did not.
    """

    rows: tuple[Mapping[str, Any], ...]
    engine: str
    why: str
    stopped: str
    _outcome: Outcome

    @property
    def metrics(self) -> dict[str, float]:
        """The loss and metrics of the last model."""
        last: Mapping[str, Any] = next((row for row in reversed(self.rows) if "loss" in row), {})
        return {name: value for name, value in last.items() if name not in NOT_METRICS}

    @property
    def epsilon(self) -> float:
        """The ε that the site that took part most often has spent on each of its people; infinite without noise."""
        return float(self.rows[-1]["epsilon"]) if self.rows else 0.0

    @property
    def delta(self) -> float:
        """The δ that belongs to `epsilon`."""
        return self._outcome.study.simulation.settings.privacy.delta

    @property
    def epsilons(self) -> dict[str, float]:
        """Each site's ε, by name."""
        return self._outcome.epsilons

    @property
    def site_epsilon(self) -> float | None:
        """The ε of each site, whose unit is the site's membership and not a person; None without `site_privacy`.

        It is for who sees the models alone. Rows say how many sites were sampled: keep those to yourself.
        """
        return self._outcome.site_epsilon

    @property
    def site_delta(self) -> float | None:
        """The δ that belongs to `site_epsilon`."""
        return self._outcome.site_delta

    @property
    def history(self) -> Any:  # noqa: ANN401 - a pandas.DataFrame; pandas is an extra
        """The rows as a data frame.

        Raises:
            ConfigError: if pandas is not installed.
        """
        try:
            import pandas as pd  # noqa: PLC0415 - an extra
        except ImportError as error:
            msg = "a data frame needs pandas: pip install 'cloister[simulation]'; `rows` has the same figures"
            raise ConfigError(msg) from error
        return pd.DataFrame.from_records(list(self.rows), index="round" if self.rows else None)

    @property
    def model(self) -> Any:  # noqa: ANN401 - a torch module; this room does not load torch
        """The shared model, in evaluation mode. What stays at sites is as the task makes it: see `site_models`."""
        return self.models[-1]

    @property
    def models(self) -> list[Any]:
        """The untrained model and those after each round, if `keep_models` was set; otherwise only the last one."""
        return self._outcome.modules()

    @property
    def released(self) -> int:
        """How many rounds released their sum; after none of them, the model is the untrained one."""
        return sum(bool(row["released"]) for row in self.rows)

    @property
    def rounds_line(self) -> str:
        """How many rounds there were, and how many of them released a model, if not all did."""
        count = f"{len(self.rows)} rounds"
        if self.released == len(self.rows):
            return count
        return f"{self.released or 'none'} of {count} released a model" + ("" if self.released else ": it is untrained")

    @property
    def site_models(self) -> Mapping[str, Any]:
        """Each site's own model by its name, a module in evaluation mode that is made when it is asked for.

        It is the one that the site trained for itself (`personal`), or else the shared one with what stays at the site
        (`Task.local`), as it was after its last round. Without either, there are none.
        """
        return self._outcome.own

    @property
    def personal(self) -> Mapping[str, Mapping[str, Any]]:
        """What each site's own model is worth there, by the site's name; without sites that have no test records.

        Each has `records`, how many were held out at the site, and the loss and metrics on them of the `shared` and the
        `personal` model. Both have the parameters that stay at the site; but without `[personal]`, the shared one has
        those that the task makes, as a new site would.
        """
        return self._outcome.personal

    @property
    def personal_metrics(self) -> dict[str, dict[str, float]]:
        """The means of `personal` over all test records: of the `shared` and the `personal` models; or none."""
        return self._outcome.personal_metrics

    @property
    def digest(self) -> str:
        """SHA-256 of the shared model: equal for models that are equal bit for bit."""
        return self._outcome.model.digest

    def plot(self, path: Path | str | None = None) -> Any:  # noqa: ANN401 - a matplotlib figure
        """Draw metrics by round, and one against ε and against bytes; return the figure, and write it to `path`."""
        from cloister.views.plots import draw_history  # noqa: PLC0415 - loads matplotlib

        return draw_history(self.rows, self._title, Path(path) if path else None)

    def to_run(self, path: Path | str) -> Path:
        """Write the run that was simulated as run.toml, ready for `cloister sign`.

        What the run did not set, but simulations do without, is as real runs have it: masks, and rounds of three sites.
        With a run without noise and its seed, real sites of the same names and records arrive at the same model: bit
        for bit after `inline` and `processes`, within rounding after `vectorised`.
        """
        out = Path(path)
        note = f"# As simulated by the engine {self.engine}" + (
            ": real sites arrive at the same model within rounding.\n" if self.engine == "vectorised" else ".\n"
        )
        if self.site_delta:
            note += "# Site privacy is not part of a run: real sites have no trusted party that would add its noise.\n"
        if own := self._outcome.study.personal_toml:
            said = "".join(f"# {line}".rstrip() + "\n" for line in own.strip().splitlines())
            note += f"# What each site trains for itself is not part of a run; its site.toml says so:\n{said}"
        if self._outcome.study.simulation.task_name.startswith("__main__:"):
            note += "# Before it is signed: put the task into a file that every site has, and name it below.\n"
        write_atomically(out, (note + self.toml).encode())
        return out

    def save(self, folder: Path | str) -> Path:
        """Write the result to a folder: run.toml, history.csv, result.json, model.safetensors, a plot and a report.

        Raises:
            ConfigError: if there is a file of that name.
        """
        out = Path(folder)
        if out.exists() and not out.is_dir():
            msg = f"{out} is a file; name a folder to save to"
            raise ConfigError(msg)
        out.mkdir(parents=True, exist_ok=True)
        self.to_run(out / "run.toml")
        write_atomically(out / "history.csv", self._csv().encode())
        write_atomically(out / "result.json", (json.dumps(self.summary()) + "\n").encode())
        self._outcome.write_model(out / "model.safetensors")
        self.plot(out / "plot.svg")
        self.report(out / "report.html")
        return out

    def report(self, path: Path | str) -> Path:
        """Write one page of HTML with the settings, the figures and the plot; it loads nothing from elsewhere."""
        from cloister.views.simulation_page import page  # noqa: PLC0415

        with TemporaryDirectory() as folder:
            drawn = Path(folder, "plot.svg")
            self.plot(drawn)
            picture = drawn.read_text(encoding="utf-8")
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        cost = (
            f"ε {self.epsilon:.2f} at δ {self.delta:g}, of each person" if math.isfinite(self.epsilon) else "no privacy"
        )
        ended = f" It ended early: {self.stopped}." if self.stopped else ""
        lead = [
            f"After {self.rounds_line}: {figures}; {cost}.{ended}",
            f"Engine {self.engine}: {self.why}. Model {self.digest[:16]}…",
        ]
        if own := self.personal_line:
            lead.insert(1, own)
        out = Path(path)
        write_atomically(out, page(self._title, lead, picture, self.rows, self.personal, self.toml).encode())
        return out

    def summary(self) -> dict[str, Any]:
        """Return the result for JSON, with null for an infinite ε."""
        epsilon = self.epsilon if math.isfinite(self.epsilon) else None
        return {
            "engine": self.engine,
            "why": self.why,
            "released": self.released,
            "stopped": self.stopped,
            "rounds": len(self.rows),
            **self.metrics,
            "epsilon": epsilon,
            "delta": self.delta if epsilon is not None else None,
            **({"site_epsilon": self.site_epsilon, "site_delta": self.site_delta} if self.site_delta else {}),
            **({"personal": {site: _finite(worth) for site, worth in self.personal.items()}} if self.personal else {}),
            "model": self.digest,
            "rows": [_finite(row) for row in self.rows],
        }

    @property
    def personal_line(self) -> str:
        """What the sites' own models are worth, in a sentence; empty if there are none."""
        if not self.personal:
            return ""
        means, personal = self.personal_metrics, self._outcome.study.personal
        figures = ", ".join(
            f"{name} {value:.4g} (shared model {means['shared'][name]:.4g})"
            for name, value in means["personal"].items()
        )
        what = f"trained by {personal.method} without noise, not private" if personal else "with what stays at each"
        return f"Own models of {len(self.personal)} sites ({what}), each on its site's test records: {figures}."

    @property
    def toml(self) -> str:
        """The run's settings as run.toml has them, for real sites."""
        return self._outcome.toml

    @property
    def _title(self) -> str:
        simulation = self._outcome.study.simulation
        return f"{simulation.task_name.partition(':')[2]}, {len(simulation.sites)} sites, {self.engine}"

    def _csv(self) -> str:
        text = StringIO()
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        cost = f"ε {self.epsilon:.2f}" if math.isfinite(self.epsilon) else "no privacy"
        cost += f", site ε {self.site_epsilon:.2f}" if self.site_epsilon is not None else ""
        return f"<Result: {self.rounds_line}, {figures}, {cost}; engine {self.engine}>"


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures for JSON, in tables or not, with null for those that are not finite."""
    return {
        name: _finite(value) if isinstance(value, dict)
        else value if not isinstance(value, float) or math.isfinite(value) else None
        for name, value in values.items()
    }  # fmt: skip


def compare(
    results: Mapping[str, Result | Sequence[Result]],
    metric: str | None = None,
    *,
    title: str = "",
    path: Path | str | None = None,
) -> Any:  # noqa: ANN401 - a matplotlib figure
    """Draw one metric of several simulations in one figure: by round, against ε, and against bytes if they differ.

    Args:
        results: by the names that the legend shows. Where one run was repeated, with several seeds, give the results
            in a list: their mean is drawn, in a band from the least to the greatest.
        metric: which; by default, the first that all have, apart from the loss.
        title: above the figure.
        path: a file to write it to, besides.

    Raises:
        ConfigError: if there is no result, or one lacks the metric.
    """
    from cloister.views.plots import draw_comparison  # noqa: PLC0415 - loads matplotlib

    given: Any = results
    named: Any = given.items() if isinstance(given, Mapping) else [("", None)]
    lists: dict[str, Any] = {name: some if isinstance(some, list | tuple) else [some] for name, some in named}
    if not all(isinstance(one, Result) for some in lists.values() for one in some):
        msg = "compare takes results by name: compare({'FedAvg': one, 'FedProx': other}); each may be a list of results"
        raise ConfigError(msg)
    rows = {name: [one.rows for one in some] for name, some in lists.items()}
    return draw_comparison(rows, metric, title, Path(path) if path else None)
