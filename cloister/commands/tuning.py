"""`cloister tune`: its options."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.commands import Json, going_on
from cloister.views.patience import patience
from cloister.views.run import make_console
from privacy.errors import ConfigError

if TYPE_CHECKING:
    from cloister.tuning import Tuning

_SHOWN = 5  # trials


def tune(
    run: Annotated[Path, typer.Argument(help="The run's settings; trials change those in the space.")],
    records: Annotated[
        Path | None, typer.Option(help="A file or folder that the run's task reads, to be divided among sites.")
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="A file with [space]; by default, learning rate, clipping, sampling.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all; with --private, runs on average.")] = 50,
    processes: Annotated[int, typer.Option(min=1, help="Trials that run at the same time.")] = 1,
    metric: Annotated[str | None, typer.Option(help="What to search for; by default, the task's first.")] = None,
    minimise: Annotated[
        bool, typer.Option("--minimise", help="The smallest metric is the best, as for a loss.")
    ] = False,
    pruner: Annotated[str, typer.Option(help="Ends poor trials early: median, hyperband or none.")] = "median",
    sites: Annotated[
        int | None,
        typer.Option(help="How many sites share the records; by default, what run or partition say, or 10.", min=1),
    ] = None,
    partition: Annotated[str, typer.Option(help="As for simulate: iid, dirichlet:0.3, shards:2, …")] = "iid",
    participation: Annotated[str, typer.Option(help="As for simulate: all, 0.1, poisson:0.1 or available.")] = "all",
    engine: Annotated[str, typer.Option(help="As for simulate: auto, inline, processes or vectorised.")] = "auto",
    test: Annotated[float, typer.Option(help="The fraction of the records to measure on.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Decides the partition, the test records and what is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="Where the engine vectorised trains: cpu or cuda.")] = "cpu",
    folder: Annotated[
        Path, typer.Option(help="Keeps the trials: the same command goes on with them; --private writes runs here.")
    ] = Path("tuning"),
    private: Annotated[
        bool, typer.Option("--private", help="For a consortium: draw runs to sign, and say what choosing costs.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --private: write the runs without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Search for a run's settings by simulating it, on public or made-up records; or draw a consortium's runs."""
    if private:
        _private(run, space, trials, folder, records, yes=yes, as_json=as_json)
        return
    if records is None:
        msg = "name public or made-up records with --records FILE; for a consortium's own records, see --private"
        raise ConfigError(msg)
    from client.task.installed import find_for_run  # noqa: PLC0415 - loads torch
    from cloister.tuning import tune as search  # noqa: PLC0415
    from simulations.study.run_settings import read_with_task  # noqa: PLC0415

    _, task = read_with_task(run)
    find_for_run(run, task)
    with going_on(folder):
        tuned = search(
            task, records, run, space=space, trials=trials, metric=metric, pruner=pruner,
            larger_is_better=False if minimise else None, processes=processes, folder=folder, sites=sites,
            partition=partition, participation=participation, test=test, engine=engine, seed=seed, device=device,
        )  # fmt: skip
    tuned.save(folder)
    if as_json:
        typer.echo(json.dumps(tuned.summary()))
    else:
        _show(tuned, folder)


def _show(tuned: Tuning, folder: Path) -> None:
    states = [trial["state"] for trial in tuned.trials]
    counts = ", ".join(
        f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed") if state in states
    )
    console = make_console(json=False)
    sign = -1 if tuned.larger_is_better else 1
    best = sorted((each for each in tuned.trials if each["state"] == "complete"), key=lambda row: sign * row["value"])
    console.print(f"trial  {tuned.metric:>10.10}   settings", style="bold", markup=False)
    for row in best[:_SHOWN]:
        console.print(
            f"{row['trial']:>5}  {row['value']:>10.4g}   {_listed(row['params'])}", markup=False, soft_wrap=True
        )
    failed = next((row["why"] for row in tuned.trials if "why" in row), "")
    if failed:
        console.print(f"! a trial failed: {failed}", style="yellow", markup=False, soft_wrap=True)
    if tuned.importances:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in tuned.importances.items())
        console.print(f"decided by: {shares}", markup=False, soft_wrap=True)
    measured = ", ".join(f"{name} {value:.4g}" for name, value in tuned.result.metrics.items())
    typer.echo(f"✓ {len(states)} trials ({counts}); the best settings, on records that no trial saw: {measured}")
    if math.isfinite(tuned.epsilon):
        typer.echo(
            f"if these records are private: all trials together cost ε {tuned.epsilon:.2f} at δ {tuned.delta:g}, not "
            f"{tuned.result.epsilon:.2f}, and the test records, by which trials are compared, have no bound at all; on "
            "public or made-up records, the search costs nothing"
        )
    typer.echo(f"next: {folder / 'run.toml'} has the best settings; the figures are in {folder / 'tuning.svg'}")


def _listed(params: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in params.items()
    )


def _private(
    run: Path, space: Path | None, trials: int, folder: Path, records: Path | None, *, yes: bool, as_json: bool
) -> None:
    from cloister.private_tuning import draw_private, plan_private  # noqa: PLC0415 - loads torch

    if records is not None:
        msg = "--private draws runs for sites, which have their own records; leave --records out"
        raise ConfigError(msg)
    with patience("counting what the choice costs"):
        cost = plan_private(run, space, trials)
    lines = [
        f"one run costs each person ε {cost['epsilon_of_one']:.2f} at δ {cost['delta']:g}",
        f"{trials} runs, as many as on average: ε {cost['epsilon_of_all']:.2f}; ledgers charge it, run by run",
        f"the best run alone, for who sees no other run and not how many there were: ε {cost['epsilon_of_choice']:.2f}",
        "comparing the runs on private records costs more: an [evaluation] run has its own ε",
    ]
    for line in lines:
        typer.echo(line, err=as_json)
    if not yes:
        if not as_json:
            typer.echo("next: the same with --yes draws the runs and writes them; nothing is drawn or charged yet")
        else:
            typer.echo(json.dumps(cost))
        return
    paths = draw_private(run, space, trials, folder)
    if as_json:
        typer.echo(json.dumps(cost | {"runs": [str(path) for path in paths]}))
    else:
        typer.echo(f"✓ {len(paths)} runs drawn; keep their number secret. next: cloister sign {paths[0]}")
