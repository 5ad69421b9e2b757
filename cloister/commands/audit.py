"""`cloister audit`: test the privacy guarantee from outside, and state it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cloister.commands import Json
from cloister.views.patience import patience
from cloister.views.run import make_console

audit = typer.Typer(help="Test the privacy guarantee from outside, or write a privacy statement.", no_args_is_help=True)


@audit.command("privacy", epilog="Example:  cloister audit privacy north --plot audit.png")
def audit_privacy(
    site: Annotated[
        Path | None, typer.Argument(help="site.toml, or its folder; by default, the reference study.")
    ] = None,
    epsilon: Annotated[float, typer.Option(min=0.05, max=50, help="The ε that the audited run claims to cost.")] = 8.0,
    canaries: Annotated[int, typer.Option(min=100, help="Number of made-up records to detect.")] = 4000,
    plot: Annotated[Path | None, typer.Option(help="Draw the result into this PNG file.")] = None,
    as_json: Json = False,
) -> None:
    """Send canaries through a site's own training and try to find them. Exits with 1 if a claim is refuted.

    Nothing is charged to the site's people: the audit runs in a scratch folder. With SITE, the result is kept in its
    audit.json.
    """
    from cloister.audit import privacy  # noqa: PLC0415 - loads torch

    result = privacy.audit(site, epsilon, canaries, make_console(json=True))
    console = make_console(json=as_json)
    if plot and result.sighting:
        from cloister.views.plots import draw_audit  # noqa: PLC0415 - loads matplotlib

        draw_audit(result, plot)
    if site:
        privacy.keep(site, result.report)
    console.print(privacy.table(result.report))
    console.print(privacy.verdict(result.report), soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(result.report))
    if not result.report["passed"]:
        raise typer.Exit(1)


@audit.command("inversion", epilog="Example:  cloister audit inversion --out inversion.png")
def audit_inversion(
    out: Annotated[Path, typer.Option(help="PNG file to draw into.")] = Path("inversion.png"),
    digit: Annotated[int, typer.Option(min=0, max=1796, help="Index of the digit in scikit-learn's data set.")] = 0,
    batch: Annotated[int, typer.Option(min=2, max=8, help="Records in the small batch.")] = 4,
    epsilon: Annotated[
        float, typer.Option(min=0.05, max=50, help="The ε of the update with differential privacy.")
    ] = 8.0,
    as_json: Json = False,
) -> None:
    """Reconstruct a handwritten digit from updates: plain, with differential privacy, and encrypted."""
    from cloister.audit import inversion  # noqa: PLC0415 - loads torch and matplotlib

    report = inversion.demonstrate(out, digit, batch, epsilon)
    typer.echo(json.dumps(report) if as_json else inversion.table(report))


@audit.command("statement", epilog="Example:  cloister audit statement north --run run.manifest")
def audit_statement(
    site: Annotated[Path, typer.Argument(help="site.toml, or its folder.")],
    run: Annotated[
        Path | None, typer.Option(help="The signed run to state; by default, all runs in the ledger.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write to; by default, the site's `statements`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a site's differential privacy statement, as a printable page and as JSON."""
    from cloister.audit.statement import write_statement  # noqa: PLC0415

    with patience("counting ε over all charges"):
        statement, path = write_statement(site, run, out)
    if as_json:
        typer.echo(json.dumps(statement | {"page": str(path)}))
    else:
        typer.echo(f"✓ {path}")
        for entry in statement["spending"]:
            spent, budget = _number(entry["epsilon_spent"]), _number(entry["epsilon_budget"])
            typer.echo(f"  {entry['people']:<26} ε {spent} of {budget} spent at δ {entry['delta']:g}")
        typer.echo(f"  {'audit':<26} {statement['audit']['result']}")
        if statement["guarantee"]["delta_is"].startswith("δ"):
            typer.echo(f"! {statement['guarantee']['delta_is']}")
    if not statement["accounting"]["agree"]:
        typer.echo("✗ the accountants disagree: do not trust these figures; report this with the ledger", err=True)
        raise typer.Exit(1)


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"
