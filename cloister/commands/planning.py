"""`cloister plan`: its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.commands import Json
from privacy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloister.planning.costs import Rates
    from privacy.run.settings import RunSettings


def plan(
    run: Annotated[Path, typer.Argument(help="The run's settings, run.toml.")],
    records: Annotated[
        Path | None, typer.Option(help="Records that the run's task reads; by default, it makes some up.")
    ] = None,
    sites: Annotated[
        int | None, typer.Option(min=2, help="How many sites; by default, those in the file, or 10.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Records that each site trains on; by default, as in the file.")
    ] = None,
    link: Annotated[float, typer.Option(min=0.001, help="Megabits a second of each site's network.")] = 100.0,
    server_link: Annotated[float, typer.Option(min=0.001, help="Megabits a second of the server's network.")] = 1000.0,
    cpu_hour: Annotated[float | None, typer.Option(min=0, help="What an hour of one core costs.")] = None,
    gigabyte: Annotated[float | None, typer.Option(min=0, help="What a gigabyte costs that is sent.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long to measure here, beside starting.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Say what a run will cost each site and the server: time, bytes, memory, ε, money; measured here for moments."""
    from cloister.planning.costs import Rates  # noqa: PLC0415 - loads torch
    from cloister.views.plan import lines, measuring  # noqa: PLC0415

    settings = read_planned(run, sites, size)
    with measuring() as advance:
        report = measured_plan(settings, run.absolute().parent, records, Rates(link, server_link, cpu_hour, gigabyte),
                               seconds, advance)  # fmt: skip
    if as_json:
        typer.echo(json.dumps(report))
    else:
        typer.echo("\n".join(lines(report, link, server_link)))


def read_planned(run: Path, sites: int | None, size: int | None) -> RunSettings:
    """Return a run's settings, complete with sites.

    Raises:
        ConfigError: if they do not fit, or nothing says how many records the sites have.
    """
    from simulations.study.run_settings import named_sites, read_with_task  # noqa: PLC0415 - loads torch

    settings, task = read_with_task(run)
    if settings.start:
        msg = f"{run}: a plan measures from an untrained model, which takes as long; remove [start]"
        raise ConfigError(msg)
    sizes = dict(settings.cohort.sizes) if settings.cohort else {}
    if not sizes and size is None:
        msg = f"{run}: without [cohort.sizes], say how many records each site trains on: --size 500"
        raise ConfigError(msg)
    if sites is not None and sites != len(sizes):
        typical = size or round(sum(sizes.values()) / len(sizes))
        sizes = dict.fromkeys(named_sites(sites), typical)
    elif not sizes:
        sizes = dict.fromkeys(named_sites(10), size or 1)
    return settings.deployed(settings.completed(task, dict.fromkeys(sizes, size) if size else sizes))


def measured_plan(
    settings: RunSettings, beside: Path, records: Path | None, rates: Rates, seconds: float,
    advance: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Measure rounds here, and return what the run will cost.

    Args:
        settings: the run's, complete.
        beside: the folder beside whose files the task may lie.
        records: that the task reads; None for those that it makes up.
        rates: of network and money.
        seconds: how long to measure.
        advance: called with what goes on.

    Raises:
        CloisterError: if the task or the records cannot be used, or the run does not go well here.
    """
    from client.state.model_parts import layout_of  # noqa: PLC0415 - loads torch
    from client.task.installed import find_beside  # noqa: PLC0415
    from client.task.probe import make_model  # noqa: PLC0415
    from client.task.task import import_task  # noqa: PLC0415
    from cloister.planning.costs import cohorts  # noqa: PLC0415
    from cloister.planning.costs import plan as planned  # noqa: PLC0415
    from cloister.planning.measuring import measure  # noqa: PLC0415
    from simulations.planning.records import records_like  # noqa: PLC0415

    find_beside(beside, [settings.task])
    find_beside(Path.cwd(), [settings.task])
    task = import_task(settings.task)
    pool = records_like(task, settings.task, records)
    chosen = cohorts(settings.cohort.sizes, settings.colluding_sites)
    measured = [measure(settings, pool, sizes, seconds / len(chosen), beside, advance) for sizes in chosen]
    parameters = layout_of(make_model(task, settings.model_seed), task.local).size
    return planned(settings, measured, parameters, rates)
