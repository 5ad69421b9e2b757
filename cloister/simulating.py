"""`cloister.simulate`: a study on this machine, in one call."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack, closing, contextmanager
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from cloister.result import Result
from cloister.run_logs import RunLogs, settings_of
from cloister.views.progress import progress_bar
from privacy.errors import ConfigError
from simulations.study.columns import NOT_METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from client.settings import Personal
    from simulations.study.site_privacy import SitePrivacy

    Callback = Callable[[Mapping[str, Any]], object]

_SHOWN = 2  # metrics beside the progress bar


class EarlyStop:
    """Ends a simulation when a metric has not improved for some rounds. Give it as one of `callbacks`.

    The decision looks at test records, which no ε covers: it is for simulations, not for real runs.
    """

    def __init__(self, metric: str = "loss", patience: int = 3, *, larger_is_better: bool | None = None) -> None:
        """Watch a metric; by default, only a loss is better if it is smaller."""
        self.metric, self.patience = metric, patience
        self._sign = 1 if (metric != "loss" if larger_is_better is None else larger_is_better) else -1
        self._best, self._since = -math.inf, 0

    def __call__(self, row: Mapping[str, Any]) -> str | None:
        """Return why the simulation ends, or None.

        Raises:
            ConfigError: if the task measures no such metric.
        """
        if self.metric not in row:
            if "loss" in row:  # the round was measured
                known = [name for name in row if name not in NOT_METRICS]
                msg = f"EarlyStop: the task has no metric {self.metric!r}; it measures {', '.join(known)}"
                raise ConfigError(msg)
            return None
        value = self._sign * float(row[self.metric])
        self._since = 0 if value > self._best else self._since + 1
        self._best = max(self._best, value)
        return f"no better {self.metric} for {self.patience} rounds" if self._since >= self.patience else None


def simulate(
    task: Any,  # noqa: ANN401 - a Task, which only rooms with torch know
    records: Any,  # noqa: ANN401 - see below
    run: Any = None,  # noqa: ANN401 - see below
    *,
    sites: int | None = None,
    partition: Any = "iid",  # noqa: ANN401 - a text or a Partition
    participation: Any = 1.0,  # noqa: ANN401 - a number, a text or a Participation
    dropout: float = 0.0,
    site_seconds: Any = None,  # noqa: ANN401 - a text or a distribution
    deadline: float | None = None,
    site_privacy: SitePrivacy | None = None,
    test: Any = 0.2,  # noqa: ANN401 - a fraction, or records
    personal: Personal | Mapping[str, Any] | Path | str | None = None,
    engine: str = "auto",
    callbacks: Iterable[Callback] = (),
    log: Mapping[str, Path | str] | None = None,
    keep_models: bool = False,
    measure_every: int = 1,
    seed: int = 0,
    device: str = "cpu",
    processes: int | None = None,
    ray_address: str | None = None,
    cpus_per_site: float | None = None,
    gpus_per_site: float | None = None,
    folder: Path | str | None = None,
    checkpoint: Path | str | None = None,
    progress: bool | None = None,
) -> Result:
    """Simulate a federated run over many sites on this machine.

    Args:
        task: a class derived from `Task`, at the top of a file or notebook, or its name `module:Class`.
        records: `(inputs, targets)` as arrays or tensors, a data frame, a map-style data set, or a path that the task's
            `load` reads, or of a site.toml whose `[data]` names it, to be divided among sites; or a mapping with one of
            these for each site by name.
        run: a mapping like run.toml, the path of one, `SimulatedRun` or `RunSettings`. Without `[training]` a round is
            one epoch in batches of 32; without `[privacy]` the whole run costs ε = 3. So it is key by key: what a table
            does not say has its default. The model that `[start]` names is looked for in `models/public` beside the
            run's file, beside the task's, and in the current folder.
        sites: how many; 10 if neither the records nor the partition nor the run say so.
        partition: `iid`, `dirichlet:0.3`, `shards:2`, `by_column:ward`, `quantity_skew:0.5`, `feature_shift:0.1`, or a
            `Partition` of `simulations.partitions`, which has one for any partitioner of flwr-datasets.
        participation: the fraction of sites in a round, or `poisson:0.1`, `available`, or a `Participation`.
        dropout: the probability that a site that begins a round fails before it trains. Rounds go on with the others.
        site_seconds: how long a site takes for a round, drawn anew each time: `lognormal:30:0.5` (median, deviation of
            the logarithm), `exponential:30`, `gamma:30:2` (mean, shape) or `uniform:10:60`. A site that takes longer
            than the deadline is too late: its privacy is spent, its update lost.
        deadline: seconds that a round waits for sites; by default, the run's `round_deadline_seconds`.
        site_privacy: hides, with noise by a trusted party, whether a site is in the population: an ε whose unit is a
            site, not a person. It needs `participation="poisson:…"`.
        test: records on which models are measured, and no site trains: a fraction of each site's; or others, in the
            form of `records`, also of each site by its name.
        personal: what each site trains for itself, without noise, as `[personal]` of a site.toml says: `Personal`, a
            mapping, or a file that has it. Ditto's models are trained after each round at the sites that took part in
            it, fine-tuned ones at all sites after the last; see `Result.personal` and `Result.site_models`.
        engine: `inline` and `processes` play the whole protocol, with keys, ledgers and encryption; so does `flower`,
            on Flower's own engine and Ray, where one machine is not enough; `vectorised` trains all sites together,
            with the same codec and arithmetic; `auto` chooses, but not `flower`, and the result says why.
        callbacks: called with each round's row; one that returns a text ends the run for that reason.
        log: where rounds are logged: a file for `csv` and `jsonl`, a folder for `tensorboard`, a URI for `mlflow`.
        keep_models: whether the result has the model after every round.
        measure_every: in which rounds the model is measured.
        seed: decides the partition, the test records, and who takes part and drops out. Noise and sampling are fresh,
            unless the run has a seed itself, which needs `noise_multiplier = 0`.
        device: where `vectorised` trains: `cpu` or `cuda`.
        processes: how many `processes` may use, and Ray if it starts here; by default, as this machine has cores.
        ray_address: with `flower`, `host:port` of a Ray cluster that runs, of which this machine is one, or `auto` to
            find it; by default, Ray starts here.
        cpus_per_site: with `flower`, how many CPUs a site has while it works; by default, 1.
        gpus_per_site: with `flower`, how many GPUs, for example 0.5; by default, none.
        folder: where server and sites keep what they keep, in the whole protocol: an empty or a new one; by default, it
            is removed at the end.
            With `ray_address`, on storage that all machines of the cluster share.
        checkpoint: a folder that has what the simulation needs to go on after each round: the same call goes on there
            after the last whole round, and gives the same result. Callbacks get the earlier rounds' rows again.
        progress: whether a bar is shown; by default, in a terminal.

    Raises:
        CloisterError: if anything is wrong with task, records or run, before the first round; or the run fails.
    """
    given: Any = callbacks
    called: tuple[Any, ...] = tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(map(callable, called)):
        msg = "callbacks is a list of functions that take a round's row: write callbacks=[…]"
        raise ConfigError(msg)
    every: Any = measure_every
    folders: dict[str, Any] = {"folder": folder, "checkpoint": checkpoint}
    for name, path in folders.items():
        if path is not None and not isinstance(path, str | Path):
            msg = f"{name} = {path!r}; write the path of a folder"
            raise ConfigError(msg)
    if not isinstance(every, Integral) or measure_every < 1:
        msg = f"measure_every = {measure_every}: write 1 for every round, 2 for every second"
        raise ConfigError(msg)
    options: dict[str, Any] = {
        "sites": sites, "partition": partition, "participation": participation, "dropout": dropout,
        "site_seconds": site_seconds, "deadline": deadline, "site_privacy": site_privacy, "test": test,
        "personal": personal, "engine": engine, "seed": seed, "device": device, "processes": processes,
        "ray_address": ray_address, "cpus_per_site": cpus_per_site, "gpus_per_site": gpus_per_site,
    }  # fmt: skip
    with shown(progress) as view:
        return play_study(
            task, records, run, options, view, callbacks=called, log=log, keep_models=keep_models,
            measure_every=measure_every, folder=Path(folder) if folder else None,
            checkpoint=Path(checkpoint) if checkpoint else None,
        )  # fmt: skip


class View(Protocol):
    """Shows a simulation while it runs."""

    def begin(self, sites: int, rounds: int, engine: str, why: str) -> None:
        """Show what is simulated."""

    def show(self, row: Mapping[str, Any]) -> None:
        """Show a round."""

    def compare(self, done: int, sites: int) -> None:
        """Show at how many sites, of all, the site's own model was compared with the shared one."""


def play_study(
    task: Any, records: Any, run: Any, options: Mapping[str, Any], view: View, *, callbacks: Sequence[Callback] = (),  # noqa: ANN401 - as for `simulate`
    log: Mapping[str, Path | str] | None = None, keep_models: bool = False, measure_every: int = 1,
    folder: Path | None = None, checkpoint: Path | None = None,
) -> Result:  # fmt: skip
    """Simulate as `simulate` does, whose other arguments are in `options`, and show it in a view."""
    from simulations.study.checkpoints import Checkpoints  # noqa: PLC0415 - loads torch
    from simulations.study.digest import digest_of  # noqa: PLC0415 - loads torch
    from simulations.study.runner import play, prepare  # noqa: PLC0415 - loads torch

    if folder and checkpoint:
        msg = "a checkpoint has the folder of server and sites in it; leave folder out"
        raise ConfigError(msg)
    with ExitStack() as opened:
        temporary = opened.enter_context(TemporaryDirectory(prefix="cloister-", ignore_cleanup_errors=True))
        logs = opened.enter_context(RunLogs(log))
        place = folder or (checkpoint or Path(temporary)) / "federation"
        study = prepare(task, records, run, **options, folder=place, resumable=checkpoint is not None)
        checkpoints = None
        if checkpoint:
            checkpoints = Checkpoints.opened(checkpoint, digest_of(study, measure_every, keep_models))
            opened.enter_context(checkpoints.alone())
        rounds, outcome = study.simulation.settings.rounds, None
        logs.begin(study.manifest.nonce, study.simulation.settings.name, settings_of(study))
        view.begin(len(study.simulation.sites), rounds, study.engine.name, study.engine.why)
        rows = play(study, every=measure_every, keep_models=keep_models, checkpoints=checkpoints)
        with closing(rows) as played:  # type: ignore[type-var]  # a generator
            for outcome, row in played:
                view.show(row)
                logs(row)
                reasons = [reason for callback in callbacks if isinstance(reason := callback(row), str) and reason]
                if reasons and row["round"] < rounds:
                    outcome.stopped = "; ".join(reasons)
                    break
        assert outcome is not None  # noqa: S101 - a run has at least one round
        for done, _ in enumerate(outcome.finish(), start=1):
            view.compare(done, len(outcome.own))
        return Result(tuple(outcome.rows), study.engine.name, study.engine.why, outcome.stopped, outcome)


class _Bar:
    """A progress bar alone: a notebook or script shows its own results."""

    def __init__(self, *, visible: bool | None) -> None:
        self.progress = progress_bar(visible=visible)
        self._task = self.progress.add_task("reading records", total=None)

    def begin(self, sites: int, rounds: int, engine: str, why: str) -> None:
        """Show what is simulated."""
        del why
        self.progress.update(self._task, total=rounds, description=f"{sites} sites, {engine}")

    def show(self, row: Mapping[str, Any]) -> None:
        """Show a round."""
        self.progress.update(self._task, advance=1, description=_described(row))

    def compare(self, done: int, sites: int) -> None:
        """Show how far the sites' own models are."""
        self.progress.update(self._task, completed=done, total=sites, description="models of sites")


@contextmanager
def shown(visible: bool | None) -> Iterator[View]:
    """Show a bar while a simulation runs."""
    bar = _Bar(visible=visible)
    with bar.progress:
        yield bar


def _described(row: Mapping[str, Any]) -> str:
    figures = [f"{name} {value:.3f}" for name, value in row.items() if name not in NOT_METRICS][:_SHOWN]
    cost = [f"ε {row['epsilon']:.2f}"] if math.isfinite(row["epsilon"]) else []
    return ", ".join([*figures, *cost])
