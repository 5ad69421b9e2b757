"""`cloister run` and `cloister approve`: see what a run would do at a site, and did; decide whether it takes part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cloister.commands import Json
from cloister.views.patience import patience
from privacy.errors import ConfigError

Run = Annotated[Path, typer.Argument(help="A signed run, or the first 8 digits of one that the site keeps.")]

run = typer.Typer(help="See what a run would do, and what happened in it.", no_args_is_help=True)


@run.callback()
def about() -> None:
    """See what a run would do, and what happened in it."""


@run.command("show", epilog="Example:  cloister run show run.manifest north")
def show(
    run: Run,
    site: Annotated[Path, typer.Argument(help="site.toml, or its folder.")],
    as_json: Json = False,
) -> None:
    """Say what a signed run would do at a site, what it would cost, and which rule refuses it; then, exit with 1.

    Charges and decides nothing.
    """
    from client.settings import read_site  # noqa: PLC0415
    from cloister.consent import describe, read_signed  # noqa: PLC0415
    from cloister.views.consent import lines  # noqa: PLC0415

    place = read_site(site)
    with patience("counting ε over all charges and the run"):
        report = describe(place, read_signed(place, run))
    if as_json:
        typer.echo(json.dumps(report))
    else:
        for line in lines(report):
            typer.echo(line)
    if not report["allowed"]:
        raise typer.Exit(1)


@run.command("events", epilog="Example:  cloister run events server | tail")
def events(
    server: Annotated[Path, typer.Argument(help="consortium.toml, or its folder.")],
    name: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="What the run's digest or name begins with; or the newest.")
    ] = None,
) -> None:
    """Print a run's events from the server's store, one JSON object per line, the oldest first."""
    from server.protection import kept_server  # noqa: PLC0415
    from server.settings import read_consortium  # noqa: PLC0415
    from server.store.store import Store  # noqa: PLC0415

    place = read_consortium(server)
    kept_server(place).ready()
    with Store.open(place) as store:
        digest, shown = store.newest().digest if name is None else store.run(name).digest, 0
        while more := store.events(digest, after=shown):
            shown, _ = more[-1]
            for _, event in more:
                typer.echo(json.dumps(event))


def approve(
    run: Annotated[
        Path, typer.Argument(metavar="[RUN]", help="A signed run, or the first 8 digits of one that the site keeps.")
    ],
    site: Annotated[Path | None, typer.Argument(metavar="SITE", help="site.toml, or its folder.")] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take no further part in the run.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Approve a run at a site whose policy has `approval = true`; without a run, list those that wait."""
    from client.settings import read_site  # noqa: PLC0415
    from cloister import consent  # noqa: PLC0415
    from cloister.views.consent import lines, listed  # noqa: PLC0415

    place = read_site(site or run)
    if site is None:
        runs = consent.kept_runs(place)
        typer.echo(json.dumps({"runs": runs}) if as_json else "\n".join(listed(runs, place.settings.site)))
        return
    if as_json and not yes:
        msg = "with --json nobody is asked; add --yes"
        raise ConfigError(msg)
    signed = consent.read_signed(place, run)
    if not withdraw:
        with patience("counting ε over all charges and the run"):
            report = consent.describe(place, signed)
        if not as_json:
            for line in lines(report):
                typer.echo(line)
        if not report["allowed"]:
            text = f"{place.settings.site} cannot approve this run: {report['refusals'][0]}"
            raise ConfigError(text)
    if not yes:
        question = "Take no further part in this run?" if withdraw else "Approve this run?"
        typer.confirm(question, abort=True)
    decision = consent.approvals_of(place).decide(signed, approved=not withdraw)
    if as_json:
        typer.echo(json.dumps(vars(decision)))
        return
    typer.echo(f"✓ {signed.manifest.settings.name}: {'withdrawn' if withdraw else 'approved'}; "
               "a running agent heeds it from its next message on")  # fmt: skip
    if not place.settings.policy.approval:
        typer.echo("! this site takes part in runs without approval too: set approval = true in [policy]")
