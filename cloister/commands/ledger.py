"""`cloister ledger`: what a site has spent on its people, and what a run would add. Changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cloister.commands import Json
from cloister.view import make_console

Site = Annotated[Path, typer.Argument(help="site.toml, or the folder that holds it.")]

ledger = typer.Typer(help="See what a site has spent, check it, and plan ahead.", no_args_is_help=True)


@ledger.command("show", epilog="Example:  cloister ledger show north --rounds")
def show(
    site: Site,
    rounds: Annotated[bool, typer.Option("--rounds", help="Every entry, not only every run.")] = False,
    as_json: Json = False,
) -> None:
    """Every run's cost, what is spent and left, and whether independent accountants agree; if not, exit 1."""
    from cloister import accounts, balance  # noqa: PLC0415 - composing takes a moment to load

    report = accounts.report(site)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        balance.show(report, make_console(json=False), rounds=rounds)
    if not balance.agree(report):
        raise typer.Exit(1)


@ledger.command("verify", epilog="Example:  cloister ledger verify north --json")
def verify(site: Site, as_json: Json = False) -> None:
    """Check that no entry was changed, removed or moved, and that both ledgers are this site's; if not, exit 1."""
    from cloister import accounts  # noqa: PLC0415

    found = accounts.verify(site)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for each in found["ledgers"]:
            typer.echo(f"✓ {each['ledger']}: the whole chain holds")
            typer.echo(f"  site {each['site']}, lineage {each['lineage']}, {each['entries']} entries")
            typer.echo(f"  head {each['head']}")


@ledger.command("plan", epilog="Example:  cloister ledger plan north run.toml")
def plan(
    site: Site,
    run: Annotated[Path, typer.Argument(help="A run's settings, run.toml, or the signed run.")],
    as_json: Json = False,
) -> None:
    """What a run would cost, and whether policy and budget allow it; if not, exit 1. Charges nothing."""
    from cloister import accounts, balance  # noqa: PLC0415

    report = accounts.plan(site, run)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        balance.show_plan(report, make_console(json=False))
    if not report["allowed"]:
        raise typer.Exit(1)
