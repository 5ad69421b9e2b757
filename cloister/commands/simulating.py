"""`cloister simulate`: its options. Records of one's own, any number of sites; or made-up hospitals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.commands import Json, going_on
from cloister.views.run import make_console
from privacy.errors import ConfigError, RunError

if TYPE_CHECKING:
    from rich.console import Console

    from cloister.result import Result
    from simulations.study.site_privacy import SitePrivacy


_OF_HOSPITALS = frozenset({"run", "--folder", "--personal", "--json"})


def simulate(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Argument(
            help="The run's settings; by default, the reference study's. A model that [start] names is looked for in "
            "models/public beside this file or in the current folder."
        ),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(
            help="A file or folder that the run's task reads, to be divided among sites; or a site.toml, whose "
            "[data] names it."
        ),
    ] = None,
    sites: Annotated[
        int | None,
        typer.Option(help="How many sites share the records; by default, what run or partition say, or 10.", min=1),
    ] = None,
    partition: Annotated[
        str,
        typer.Option(help="iid, dirichlet:0.3, shards:2, by_column:ward, quantity_skew:0.5 or feature_shift:0.1."),
    ] = "iid",
    participation: Annotated[
        str, typer.Option(help="Who is in a round: all, a fraction such as 0.1, poisson:0.1 or available.")
    ] = "all",
    dropout: Annotated[float, typer.Option(help="The probability that a site that begins a round fails.")] = 0.0,
    site_seconds: Annotated[
        str | None, typer.Option(help="A site's seconds in a round: lognormal:30:0.5, exponential:30, uniform:10:60.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds that a round waits for sites; by default, the run's.")
    ] = None,
    site_epsilon: Annotated[
        float | None,
        typer.Option(
            help="Also hide, by noise of a trusted party, which sites there are: the ε of a site, not a person."
        ),
    ] = None,
    max_update_norm: Annotated[
        float, typer.Option(help="With --site-epsilon: to what sites' updates are clipped.")
    ] = 1.0,
    bands: Annotated[int, typer.Option(help="With --site-epsilon: rounds in a row whose noise is correlated.")] = 1,
    engine: Annotated[str, typer.Option(help="auto, inline, processes, vectorised or flower.")] = "auto",
    test: Annotated[float, typer.Option(help="The fraction of the records to measure on.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Decides the partition, the test records and who is in a round.")] = 0,
    device: Annotated[str, typer.Option(help="Where the engine vectorised trains: cpu or cuda.")] = "cpu",
    ray_address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster that runs, for --engine flower: host:port, or auto; else Ray starts here."),
    ] = None,
    cpus_per_site: Annotated[
        float | None, typer.Option(help="CPUs of a site while it works, for --engine flower; by default, 1.")
    ] = None,
    gpus_per_site: Annotated[
        float | None, typer.Option(help="GPUs of a site while it works, for --engine flower: for example 0.5.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="A folder for the history, the model, a plot and a report.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A folder from which the same command goes on after an interruption.")
    ] = None,
    log_csv: Annotated[Path | None, typer.Option(help="Log rounds to this CSV file.")] = None,
    log_jsonl: Annotated[Path | None, typer.Option(help="Log rounds to this file, a JSON object a line.")] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Log rounds to this folder, for TensorBoard.")] = None,
    mlflow: Annotated[str | None, typer.Option(help="Log rounds to this MLflow server, or sqlite:///FILE.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the files of made-up hospitals, by default simulation; with --records, for those of "
            "server and sites, else removed at the end; with --ray-address, where all machines of the cluster see it."
        ),
    ] = None,
    personal: Annotated[
        Path | None,
        typer.Option(help="A site.toml, or a file with [personal] alone: each site also trains such a model."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a study over simulated sites on this machine; without --records, over made-up hospitals.

    Hospitals play the whole protocol: the same apps and bytes, no network, no policy limits.
    """
    console = make_console(json=as_json)
    logs = {"csv": log_csv, "jsonl": log_jsonl, "tensorboard": tensorboard, "mlflow": mlflow}
    log = {kind: place for kind, place in logs.items() if place is not None}
    if records is None:
        _check_hospitals(context)
        _hospitals(run, folder or Path("simulation"), personal, console, as_json=as_json)
        return
    if run is None:
        msg = "--records needs the file of a run, which names the task: cloister simulate study.toml --records …"
        raise ConfigError(msg)
    options: dict[str, Any] = {
        "sites": sites, "partition": partition, "participation": participation, "dropout": dropout,
        "site_seconds": site_seconds, "deadline": deadline,
        "site_privacy": _site_privacy(site_epsilon, max_update_norm, bands), "test": test, "personal": personal,
        "engine": engine, "seed": seed, "device": device, "ray_address": ray_address, "cpus_per_site": cpus_per_site,
        "gpus_per_site": gpus_per_site,
    }  # fmt: skip
    rest = {"folder": folder, "checkpoint": checkpoint, "log": log}
    with going_on(checkpoint):
        result = _of_records(run, records, options, rest, console)
    if save:
        result.save(save)
    if as_json:
        typer.echo(json.dumps(result.summary()))
        _check_trained(result)
        return
    figures = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    cost = f"; ε {result.epsilon:.2f}, δ {result.delta:g}" if math.isfinite(result.epsilon) else "; no privacy"
    if result.site_epsilon is not None:
        cost += f"; of a site, to who sees only models: ε {result.site_epsilon:.2f}, δ {result.site_delta:g}"
    _check_trained(result)
    typer.echo(f"✓ {result.rounds_line}: {figures}{cost}")
    if result.personal_line:
        typer.echo(result.personal_line)
    typer.echo(f"next: open {save / 'report.html'}" if save else "nothing is kept; --save FOLDER writes a run's model")


def _check_hospitals(context: typer.Context) -> None:
    """Check that no option was given which says something about --records.

    Raises:
        ConfigError: if one was.
    """
    sources = {each.opts[0]: context.get_parameter_source(str(each.name)) for each in context.command.params}
    given = [option for option, source in sources.items() if source and source.name == "COMMANDLINE"]
    if others := [option for option in given if option not in _OF_HOSPITALS]:
        msg = f"made-up hospitals take no {', '.join(others)}; add --records, or leave that out"
        raise ConfigError(msg)


def _check_trained(result: Result) -> None:
    """Check that a round released a model.

    Raises:
        RunError: if none did.
    """
    if not result.released:
        last = next((row["problems"] for row in reversed(result.rows) if row["problems"]), "too few sites took part")
        msg = f"{result.rounds_line}; in the last one, {last}"
        raise RunError(msg)


def _of_records(run: Path, records: Path, options: dict[str, Any], rest: dict[str, Any], console: Console) -> Result:
    from client.task.installed import find_for_run  # noqa: PLC0415 - loads torch
    from cloister.simulating import play_study  # noqa: PLC0415 - loads torch
    from cloister.views.simulation_table import SimulationTable  # noqa: PLC0415
    from simulations.study.run_settings import read_with_task  # noqa: PLC0415 - loads torch

    _, task = read_with_task(run)
    find_for_run(run, task)
    with SimulationTable(console) as table:
        return play_study(task, records, run, options, table, **rest)


def _site_privacy(epsilon: float | None, max_update_norm: float, bands: int) -> SitePrivacy | None:
    from simulations.study.site_privacy import SitePrivacy  # noqa: PLC0415 - loads scipy

    return None if epsilon is None else SitePrivacy(max_update_norm, epsilon, bands=bands)


def _hospitals(run: Path | None, folder: Path, personal: Path | None, console: Console, *, as_json: bool) -> None:
    from cloister.commands.simulate import simulate as run_simulation  # noqa: PLC0415 - loads torch
    from cloister.views.observers import table  # noqa: PLC0415

    report = run_simulation(run, folder, console, personal)
    if as_json:
        typer.echo(json.dumps(report))
        return
    typer.echo(f"✓ {report['rounds']} rounds; the model is {next(iter(report['model'].values()))}")
    for line in table(report):
        typer.echo(line)
