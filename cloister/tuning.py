"""`cloister.tune`: search for a run's settings by simulating it many times."""

from __future__ import annotations

import csv
import json
import math
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import StringIO
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from cloister.simulating import play_study, shown
from cloister.views.progress import progress_bar
from privacy.accounting.accounting import RDP, Mechanism, epsilon
from privacy.errors import CloisterError, ConfigError, RunError
from privacy.run.new_manifest import make_manifest
from privacy.storage import write_atomically
from simulations.study.columns import NOT_METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cloister.result import Result
    from simulations.study.runner import Study
    from simulations.study.simulation import Simulation

_COUNTED = ("complete", "pruned", "failed")


@dataclass(frozen=True, eq=False)
class Tuning:
    """What a search found.

    Attributes:
        trials: a row for each: `trial`, `state` (`complete`, `pruned` or `failed`), `value` of the metric, `params`,
            `seconds`, `rounds`, `epsilon`, `bytes`; for a failed one, `why`.
        metric: what was searched for.
        larger_is_better: whether the best trial is that of the largest value.
        result: a run with the best settings, measured on records on which no trial was.
        importances: how much each setting has decided, adding up to 1; empty after few trials.
        epsilon: the ε of all trials and that run together, by composition, also of attempts that a kill cut off: each
            counts as a whole run. Infinite without noise.
        delta: the δ that belongs to it.
    """

    trials: tuple[Mapping[str, Any], ...]
    metric: str
    larger_is_better: bool
    result: Result
    importances: Mapping[str, float]
    epsilon: float
    delta: float

    @property
    def best(self) -> Mapping[str, Any]:
        """The best trial's row."""
        return best_of(self.trials, larger_is_better=self.larger_is_better)

    @property
    def best_params(self) -> dict[str, Any]:
        """The best trial's settings."""
        return dict(self.best["params"])

    @property
    def best_value(self) -> float:
        """The best trial's metric; it was chosen by it, so that `result.metrics` is the fair one."""
        return float(self.best["value"])

    @property
    def history(self) -> Any:  # noqa: ANN401 - a pandas.DataFrame; pandas is an extra
        """The trials as a data frame.

        Raises:
            ConfigError: if pandas is not installed.
        """
        import pandas as pd  # noqa: PLC0415 - Optuna's extra has it

        return pd.DataFrame.from_records(self._flat(), index="trial")

    def plot(self, path: Path | str | None = None) -> Any:  # noqa: ANN401 - a matplotlib figure
        """Draw trials, the best so far, and what each setting decided; return the figure, and write it to `path`."""
        from cloister.views.plots import draw_tuning  # noqa: PLC0415 - loads matplotlib

        return draw_tuning(
            self.trials, self.metric, self.importances, Path(path) if path else None,
            larger_is_better=self.larger_is_better,
        )  # fmt: skip

    def save(self, folder: Path | str) -> Path:
        """Write to a folder: run.toml with the best settings, trials.csv, tuning.json, a plot; and the run's results.

        Raises:
            ConfigError: if there is a file of that name.
        """
        out = self.result.save(folder)
        write_atomically(out / "trials.csv", self._csv().encode())
        write_atomically(out / "tuning.json", (json.dumps(self.summary()) + "\n").encode())
        self.plot(out / "tuning.svg")
        return out

    def summary(self) -> dict[str, Any]:
        """Return the search for JSON, with null for an infinite ε."""
        return {
            "metric": self.metric,
            "trials": len(self.trials),
            **{state: sum(trial["state"] == state for trial in self.trials) for state in _COUNTED},
            "best": dict(self.best),
            "measured": self.result.metrics,
            "importances": dict(self.importances),
            "epsilon_of_all": self.epsilon if math.isfinite(self.epsilon) else None,
            "delta": self.delta,
            "rows": [dict(trial) for trial in self.trials],
        }

    def _flat(self) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in trial.items() if name != "params"} | trial["params"]
            for trial in self.trials
        ]

    def _csv(self) -> str:
        text, rows = StringIO(), self._flat()
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def __repr__(self) -> str:
        return f"<Tuning: {len(self.trials)} trials, best {self.metric} {self.best_value:.4g} with {self.best_params}>"


def tune(
    task: Any,  # noqa: ANN401 - as for `simulate`
    records: Any,  # noqa: ANN401 - as for `simulate`
    run: Any = None,  # noqa: ANN401 - as for `simulate`
    *,
    space: Any = None,  # noqa: ANN401 - a mapping or a path
    trials: int = 50,
    metric: str | None = None,
    larger_is_better: bool | None = None,
    pruner: str = "median",
    processes: int = 1,
    folder: Path | str | None = None,
    sites: int | None = None,
    partition: Any = "iid",  # noqa: ANN401 - as for `simulate`
    participation: Any = 1.0,  # noqa: ANN401 - as for `simulate`
    test: Any = 0.2,  # noqa: ANN401 - as for `simulate`
    engine: str = "auto",
    seed: int = 0,
    device: str = "cpu",
    progress: bool | None = None,
) -> Tuning:
    """Simulate a run with many settings, and find the best (Optuna's TPE: Bergstra et al., 2011).

    Half of the test records choose among trials; on the other half, the run with the best settings is measured.

    Choosing among runs costs privacy, too, if the records are private: `Tuning.epsilon` is what all trials cost.

    Args:
        task: as for `simulate`.
        records: as for `simulate`.
        run: the settings that no trial changes, as for `simulate`.
        space: by setting, such as `training.learning_rate`, a list of choices, or a mapping with `low`, `high`, and
            `log` or `step`; or the path of a TOML file with a table `[space]` of these. By default, the learning rate
            and, with noise, the clipping norm and the sample rate; and numbers of the run's algorithm.
        trials: how many in all, with those of an earlier search in this folder.
        metric: what is searched for; by default the task's first metric, or the loss if it has none.
        larger_is_better: by default, only a loss is better if it is smaller.
        pruner: ends trials that promise little: `median`, `hyperband` or `none`.
        processes: how many play trials at the same time.
        folder: keeps the trials: the same call goes on with them, also after a crash; by default, they are not kept.
        sites: as for `simulate`, as are the rest.
        partition: as for `simulate`.
        participation: as for `simulate`.
        test: as for `simulate`.
        engine: as for `simulate`.
        seed: decides the partition, the test records, who takes part, and what the search draws.
        device: as for `simulate`.
        progress: whether a bar is shown; by default, in a terminal.

    Raises:
        CloisterError: if anything is wrong with task, records, run or space, before the first trial; if the folder has
            another search's trials; or if all trials failed.
    """
    options: dict[str, Any] = {"participation": participation, "engine": engine, "seed": seed, "device": device}
    dealt = options | {"sites": sites, "partition": partition, "test": test}
    counts: dict[str, Any] = {"trials": trials, "processes": processes}
    for what, number in counts.items():
        if not isinstance(number, Integral) or number < 1:
            msg = f"{what} = {number!r}: write 1 or more"
            raise ConfigError(msg)
    with _shown(trials, visible=progress) as advance:
        return search(
            task, records, run, dealt, options, advance, space=space, trials=trials, metric=metric, pruner=pruner,
            larger_is_better=larger_is_better, processes=processes, folder=folder,
        )  # fmt: skip


def search(
    task: Any, records: Any, run: Any, dealt: Mapping[str, Any], options: Mapping[str, Any],  # noqa: ANN401 - see `tune`
    advance: Callable[[Sequence[Mapping[str, Any]], str], None], *, space: Any, trials: int, metric: str | None,  # noqa: ANN401
    larger_is_better: bool | None, pruner: str, processes: int, folder: Path | str | None,
) -> Tuning:  # fmt: skip
    """Search as `tune` does, whose other arguments are in `dealt` and `options`.

    `advance` is told of each trial, and how to say how far the search is.
    """
    from simulations.study.digest import digest_of  # noqa: PLC0415 - loads torch
    from simulations.study.runner import prepare  # noqa: PLC0415
    from simulations.tuning.playing import ManyProcesses, Objective, ThisProcess  # noqa: PLC0415
    from simulations.tuning.space import applied, read_space, settings_map  # noqa: PLC0415
    from simulations.tuning.trials import Trials  # noqa: PLC0415

    with TemporaryDirectory(prefix="cloister-") as temporary:
        study = prepare(task, records, run, **dealt, folder=Path(temporary, "federation"))
        simulation, base = study.simulation, settings_map(study.simulation.settings, study.given)
        searched = read_space(space, base)
        known = _metrics(study)
        chosen = metric or (known[1] if len(known) > 1 else known[0])
        if chosen not in known:
            msg = f"metric: the task has no metric {chosen!a}; it measures {', '.join(known)}"
            raise ConfigError(msg)
        larger = chosen != "loss" if larger_is_better is None else larger_is_better
        judged, kept = _halved(study, int(options["seed"]))
        share = {"processes": max(1, simulation.processes // processes)}  # of this machine's, for a trial
        objective = Objective(
            simulation.task_name, base, simulation.records, judged, chosen, {**options, **share}, simulation.public
        )  # fmt: skip
        identity = {
            "space": searched.dimensions, "base": base, "metric": chosen, "larger": larger, "options": options,
            "pruner": pruner, "study": digest_of(study),
        }  # fmt: skip

        def told() -> None:
            rows = kept_trials.ended
            values = [row["value"] for row in rows if row["state"] == "complete"]
            advance(rows, f"best {chosen} {(max if larger else min)(values):.3f}" if values else "trials")

        advance((), "trials")
        players = ThisProcess(objective) if processes == 1 else ManyProcesses(objective, min(processes, trials))
        with players, Trials.opened(
            Path(folder or Path(temporary, "trials")), identity, larger_is_better=larger, pruner=pruner,
            rounds=simulation.settings.rounds, seed=int(options["seed"]),
        ) as kept_trials:  # fmt: skip
            told()
            players.search(searched, kept_trials, trials - len(kept_trials.ended), told)
            rows, importances = kept_trials.ended, kept_trials.importances()
            params = best_of(rows, larger_is_better=larger)["params"]
            cut_off = _cut_off(kept_trials.interrupted, base, simulation)
            measured = kept_trials.note_measured(asdict(_whole(base, params, simulation)))
        best = applied(base, {key: value for key, value in params.items() if key != "task"})
        measured_on = {**options, "test": kept, "public": simulation.public}
        with shown(visible=False) as view:
            result = play_study(
                params.get("task", simulation.task_name), simulation.records, best, measured_on, view
            )  # fmt: skip
    delta = study.manifest.settings.privacy.delta
    spent = [*_played(rows), *cut_off, *(Mechanism(**cost) for cost in measured)]  # by ledgers, from above: Rényi
    return Tuning(tuple(rows), chosen, larger, result, importances, epsilon(spent, delta, accountant=RDP), delta)


def best_of(rows: Sequence[Mapping[str, Any]], *, larger_is_better: bool) -> Mapping[str, Any]:
    """Return the best complete trial.

    Raises:
        RunError: if none is complete.
    """
    complete = [row for row in rows if row["state"] == "complete"]
    if not complete:
        why = next((row["why"] for row in rows if "why" in row), "all were pruned")
        msg = f"no trial is complete; the first says: {why}"
        raise RunError(msg)
    return max(complete, key=lambda row: row["value"] if larger_is_better else -row["value"])


def _played(rows: Sequence[Mapping[str, Any]]) -> list[Mechanism]:
    """Return what the rounds of trials cost; nothing of those that could not begin."""
    return [
        Mechanism(row["sigma"], row["sample_rate"], row["steps"], row.get("discrete", False))
        for row in rows
        if row.get("steps")
    ]


def _cut_off(attempts: Sequence[Mapping[str, Any]], base: Mapping[str, Any], simulation: Simulation) -> list[Mechanism]:
    """Return what attempts cost that ended with their process, in whatever round: each as much as a whole run."""
    costs = list[Mechanism]()
    for values in attempts:
        with suppress(CloisterError):  # of settings that do not fit, no round began
            costs.append(_whole(base, values, simulation))
    return costs


def _whole(base: Mapping[str, Any], values: Mapping[str, Any], simulation: Simulation) -> Mechanism:
    """Return what all rounds of a run cost that has these settings."""
    from simulations.tuning.space import applied  # noqa: PLC0415 - loads torch

    run = applied(base, {key: value for key, value in values.items() if key != "task"})
    settings = run.completed(str(values.get("task", simulation.task_name)), simulation.records.sizes)
    return make_manifest(settings, roster_version=1).run_cost


def _metrics(study: Study) -> list[str]:
    """Return what the task measures: the loss, and its metrics."""
    from simulations.study.scoring import score  # noqa: PLC0415 - loads torch

    simulation = study.simulation
    module = simulation.loaded(simulation.start())
    measured = score(simulation.task, simulation.task_name, module, study.test.records)
    return [name for name in measured if name not in NOT_METRICS]


def _halved(study: Study, seed: int) -> tuple[Any, Any]:
    """Return the test records that choose among trials, and those that measure the best; by site, if they have one."""
    test, divided = study.test, study.held_out
    if len(test) < 2:  # noqa: PLR2004 - they cannot be divided
        return divided or test, divided or test
    if divided:
        return divided.split(0.5, seed, least=0)
    order = np.random.default_rng([seed, 1]).permutation(len(test))
    middle = len(test) // 2
    return test.subset(np.sort(order[:middle])), test.subset(np.sort(order[middle:]))


@contextmanager
def _shown(total: int, *, visible: bool | None) -> Iterator[Callable[[Sequence[Mapping[str, Any]], str], None]]:
    with progress_bar(visible=visible) as bar:
        shown = bar.add_task("reading records", total=total)

        def advance(rows: Sequence[Mapping[str, Any]], said: str) -> None:
            bar.update(shown, completed=len(rows), description=said)

        yield advance
