"""`cloister data`: see a site's own records as its tasks will, before any run."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import Annotated

import typer

from cloister.commands import Json
from cloister.views.run import make_console

data = typer.Typer(help="Look at a site's own records as its tasks will.", no_args_is_help=True)


@data.callback()
def _group() -> None:
    """Look at a site's own records as its tasks will."""


@data.command("check", epilog="Example:  cloister data check north")
def check(
    site: Annotated[Path, typer.Argument(help="site.toml, or its folder.")],
    task: Annotated[
        str | None, typer.Option(help="One task, module:Class; by default, all that the policy allows.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read a site's records as its tasks do, and list every problem with row and column; with any, exit with 1.

    Sends, charges and writes nothing. The counts are private: they come from the site's records without noise.
    """
    from cloister import own_records  # noqa: PLC0415 - loads torch
    from cloister.views import records  # noqa: PLC0415
    from cloister.views.waiting import Counting  # noqa: PLC0415

    with Counting("reading the records", make_console(json=True)) as counting:
        report = own_records.report(site, task, counting.at)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        records.show(report, make_console(json=False))
    if not report["usable"]:
        raise typer.Exit(1)
