"""`cloister bench`: benchmarks that compare alternatives in one run."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import Annotated

import typer

from cloister.commands import Json

bench = typer.Typer(help="Measure on this machine, side by side with other software.", no_args_is_help=True)


@bench.command("round", epilog="Example:  cloister bench round --parameters 100000 --json")
def bench_round(
    parameters: Annotated[int, typer.Option(min=1, help="Number of parameters of the model.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to measure, both with and without masks.")] = 30,
    sites: Annotated[int, typer.Option(min=3, help="Agents.")] = 3,
    at_rest: Annotated[
        bool, typer.Option("--at-rest", help="Compare encrypted with unencrypted folders of the sites instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a round without training: server and agents as processes, with TLS and encryption."""
    from cloister.benchmarks.round import measure, measure_at_rest, table  # noqa: PLC0415

    report = (measure_at_rest if at_rest else measure)(parameters, rounds, sites)
    typer.echo(json.dumps(report) if as_json else table(report))


@bench.command("scale", epilog="Example:  cloister bench scale --sites 200 --rounds 20 --json")
def bench_scale(
    parameters: Annotated[int, typer.Option(min=1, help="Number of parameters of the model.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds to measure.")] = 20,
    sites: Annotated[int, typer.Option(min=3, help="Sites.")] = 200,
    processes: Annotated[int, typer.Option(min=1, help="Processes that the agents of all sites share.")] = 2,
    masks: Annotated[bool, typer.Option(help="With masks, or without.")] = True,
    as_json: Json = False,
) -> None:
    """Measure rounds of many sites, whose agents share processes: seconds, processor time, memory by round."""
    from cloister.benchmarks.scale import measure, table  # noqa: PLC0415

    report = measure(parameters, rounds, sites, processes, masked=masks)
    typer.echo(json.dumps(report) if as_json else table(report))


@bench.command("api", epilog="Example:  cloister bench api --rate 100 --json")
def bench_api(
    parameters: Annotated[int, typer.Option(min=1, help="Number of parameters of the model.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=16, help="Rounds to measure, half of them with requests.")] = 80,
    sites: Annotated[int, typer.Option(min=3, help="Agents.")] = 3,
    rate: Annotated[float, typer.Option(min=1, max=180, help="Requests a second.")] = 100.0,
    as_json: Json = False,
) -> None:
    """Measure how much requests to the API slow a round: server and agents as processes."""
    from cloister.benchmarks.api import measure, table  # noqa: PLC0415

    report = measure(parameters, rounds, sites, rate)
    typer.echo(json.dumps(report) if as_json else table(report))


@bench.command("simulation", epilog="Example:  cloister bench simulation --sites 100 --engine vectorised --engine loop")
def bench_simulation(
    sites: Annotated[list[int], typer.Option(min=2, help="Numbers of sites.")] = [100, 1000],  # noqa: B006 - typer copies
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of each run.")] = 20,
    engine: Annotated[
        list[str], typer.Option(help="vectorised, processes, inline, ray, pfl or loop; by default, all installed.")
    ] = ["vectorised", "processes", "inline", "ray", "pfl", "loop"],  # noqa: B006
    model: Annotated[list[str], typer.Option(help="softmax or mlp; by default, both.")] = ["softmax", "mlp"],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Measure simulations of many sites: Cloister's engines, Flower's on Ray, pfl-research, and a plain loop."""
    from cloister.benchmarks.simulation import ENGINES, MODELS, measure, table  # noqa: PLC0415
    from privacy.errors import ConfigError  # noqa: PLC0415

    if unknown := set(engine) - set(ENGINES):
        msg = f"{min(unknown)!a} is not an engine; engines are {', '.join(ENGINES)}"
        raise ConfigError(msg)
    if unknown := set(model) - set(MODELS):
        msg = f"{min(unknown)!a} is not a model; models are {', '.join(MODELS)}"
        raise ConfigError(msg)
    report = measure(sites, rounds, engine, model)
    typer.echo(json.dumps(report) if as_json else table(report))


@bench.command("plan", epilog="Example:  cloister bench plan --task diagnosis --json")
def bench_plan(
    task: Annotated[list[str], typer.Option(help="A reference task; may be repeated.")] = [  # noqa: B006 - typer copies
        "diagnosis", "handwriting", "sentiment",
    ],
    sites: Annotated[int, typer.Option(min=3, help="Number of sites, each with an agent on this machine.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="How long each plan measures.")] = 10.0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Compare what `cloister plan` says with what the runs then take: seconds, bytes, memory."""
    from cloister.benchmarks.plan import measure, table  # noqa: PLC0415

    report = measure(task, sites, seconds)
    typer.echo(json.dumps(report) if as_json else table(report))


@bench.command("encryption", epilog="Example:  cloister bench encryption --parameters 1000000 --json")
def bench_encryption(
    parameters: Annotated[int, typer.Option(min=1, help="Number of parameters of the model.")] = 1_000_000,
    sites: Annotated[int, typer.Option(min=2, help="Number of sites in the sum.")] = 3,
    tensors: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of tensors of the model; CKKS encrypts each separately. By default, as few as possible."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure bytes and CPU of an encrypted round, and compare with NVFlare's CKKS in the same run."""
    from cloister.benchmarks.encryption import measure, table  # noqa: PLC0415

    report = measure(parameters, sites, tensors)
    typer.echo(json.dumps(report) if as_json else table(report))


@bench.command("norm", epilog="Example:  cloister bench norm --parameters 1000000 --json")
def bench_norm(
    parameters: Annotated[int, typer.Option(min=1, help="Number of parameters of the model.")] = 100_000,
    sites: Annotated[int, typer.Option(min=3, help="Number of sites in the sum.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to measure, both with and without proofs.")] = 10,
    as_json: Json = False,
) -> None:
    """Measure a round in which each site proves the norm of its update (`update_norm`), and one without."""
    from cloister.benchmarks.norm import measure, table  # noqa: PLC0415

    report = measure(parameters, rounds, sites)
    typer.echo(json.dumps(report) if as_json else table(report))


@bench.command("accuracy", epilog="Example:  cloister bench accuracy --seeds 5 --json")
def bench_accuracy(
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings with each codec.")] = 5,
    as_json: Json = False,
) -> None:
    """Measure the accuracy that packing into few bits costs the reference study, compared with float32 averaging."""
    from cloister.benchmarks.accuracy import measure, table  # noqa: PLC0415

    report = measure(seeds)
    typer.echo(json.dumps(report) if as_json else table(report))


@bench.command("training", epilog="Example:  cloister bench training --full --json")
def bench_training(
    model: Annotated[list[str] | None, typer.Option(help="Only this model, such as mlp; may be repeated.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions for every way to compute gradients.")] = 5,
    cores: Annotated[
        int, typer.Option(min=1, help="Cores for every row, plain training too; one: processor time.")
    ] = 1,
    full: Annotated[bool, typer.Option("--full", help="Include Opacus's own ways. Takes minutes.")] = False,
    as_json: Json = False,
) -> None:
    """Measure time and memory of an epoch of DP-SGD, and of plain training."""
    from client.gradients.noisy_optimizer import usable_cores  # noqa: PLC0415 - loads torch
    from cloister.benchmarks.training import EVERY, OURS, measure, table  # noqa: PLC0415
    from cloister.benchmarks.zoo import SPECIMENS  # noqa: PLC0415

    if unknown := set(model or ()) - set(SPECIMENS):
        msg = f"there is no model {', '.join(sorted(unknown))}; there are {', '.join(SPECIMENS)}"
        raise typer.BadParameter(msg)
    if cores > (usable := usable_cores()):
        msg = f"this process may use {usable} cores; name fewer than {cores}"
        raise typer.BadParameter(msg, param_hint="--cores")
    report = measure(repeats, EVERY if full else OURS, model or tuple(SPECIMENS), cores)
    typer.echo(json.dumps(report) if as_json else table(report))


@bench.command("records", epilog="Example:  cloister bench records --full --json")
def bench_records(
    records: Annotated[int, typer.Option(min=64, help="Number of images; tables have 20 times as many rows.")] = 512,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Also 100,000 images: 2,000 files under 50 names each, each read and decoded. Takes many minutes.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure the share of a training step that reading records takes, and the memory, for several sources."""
    from cloister.benchmarks.records import MANY, measure, table  # noqa: PLC0415

    report = measure(records, MANY if full else 0)
    typer.echo(json.dumps(report) if as_json else table(report))


@bench.command("adversary", epilog="Example:  cloister bench adversary --tries 100 --rounds 50")
def bench_adversary(
    tries: Annotated[int, typer.Option(min=1, help="Number of attacks, of all kinds together.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Number of honest rounds, to count false alarms.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed by which the server chooses its attacks.")] = 1,
    as_json: Json = False,
) -> None:
    """Attack sites as a malicious server and as lying members: sites must refuse, and the liar must be named."""
    from cloister.benchmarks.adversary import held, measure, table  # noqa: PLC0415

    report = measure(tries, rounds, seed)
    typer.echo(json.dumps(report) if as_json else table(report))
    if not held(report):
        raise typer.Exit(1)


@bench.command("poisoning", epilog="Example:  cloister bench poisoning --epsilon 2 --json")
def bench_poisoning(
    epsilon: Annotated[float, typer.Option(min=0.01, max=20, help="The ε of one vote, at each site.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=6, help="Number of rounds of each run.")] = 30,
    as_json: Json = False,
) -> None:
    """Have one member of four, and of six, poison the model, with votes and without."""
    from cloister.benchmarks.poisoning import measure, table  # noqa: PLC0415

    report = measure(epsilon, rounds)
    typer.echo(json.dumps(report) if as_json else table(report))


@bench.command("utility", epilog="Example:  cloister bench utility --seeds 5 --plot utility.png")
def bench_utility(
    seeds: Annotated[int, typer.Option(min=1, help="Number of different splits of the records, for every row.")] = 5,
    ablations: Annotated[bool, typer.Option("--ablations", help="Also without the settings that matter most.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy against ε into this file.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a model's accuracy for an ε, with local noise, shared noise and none."""
    from cloister.benchmarks import trials  # noqa: PLC0415
    from cloister.benchmarks.utility import measure, table  # noqa: PLC0415

    report = measure(seeds, [*trials.trials(), *(trials.ablations() if ablations else ())])
    if plot:
        from cloister.views.plots import draw_utility  # noqa: PLC0415 - loads matplotlib

        draw_utility(report, plot)
    typer.echo(json.dumps(report) if as_json else table(report))


@bench.command("algorithms", epilog="Example:  cloister bench algorithms --quick --json")
def bench_algorithms(
    seeds: Annotated[int, typer.Option(min=1, help="Number of different splits of the records, for every row.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Use one seed.")] = False,
    as_json: Json = False,
) -> None:
    """Compare the federated algorithms on heterogeneous sites, without noise and at ε = 8."""
    from cloister.benchmarks.algorithms import measure, table  # noqa: PLC0415

    report = measure(1 if quick else seeds)
    typer.echo(json.dumps(report) if as_json else table(report))


@bench.command("personal", epilog="Example:  cloister bench personal --seeds 5 --json")
def bench_personal(
    seeds: Annotated[int, typer.Option(min=1, help="Number of different splits of the records, for every row.")] = 5,
    as_json: Json = False,
) -> None:
    """Compare the shared model with those that each site trains for itself (`[personal]`), on its own records."""
    from cloister.benchmarks.personal import measure, table  # noqa: PLC0415

    report = measure(seeds)
    typer.echo(json.dumps(report) if as_json else table(report))


@bench.command("results", epilog="Example:  cloister bench results --task credit --seeds 2")
def bench_results(
    task: Annotated[list[str] | None, typer.Option(help="Only this reference task; may be repeated.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of different splits of the records, for every figure.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Use one seed, and only the tasks that train fast.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train side by side.")] = 2,
    write: Annotated[
        Path | None,
        typer.Option(help="Also write this page, and its figures beside it as JSON; other tasks' rows stay."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train every reference task alone, pooled, federated, and federated at ε = 8, 3 and 1."""
    from cloister.benchmarks.results import measure, table, write_page, written_before  # noqa: PLC0415
    from simulations.tasks.references import FAST  # noqa: PLC0415

    if write and not quick:
        written_before(write, seeds)  # also raises before hours of work
    report = measure(1 if quick else seeds, task or (FAST if quick else ()), workers=workers)
    if write and not quick:
        write_page(report, write, written_before(write, seeds))  # others may have written meanwhile
    typer.echo(json.dumps(report) if as_json else table(report))
