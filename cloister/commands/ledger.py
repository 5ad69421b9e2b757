"""`cloister ledger`: the privacy budget that a site has spent, and what a run would add. Two commands write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cloister.commands import Json
from cloister.views.patience import patience
from cloister.views.run import make_console
from privacy.errors import ConfigError

Site = Annotated[Path, typer.Argument(help="site.toml, or its folder.")]

ledger = typer.Typer(help="See what a site has spent, check it, and plan ahead.", no_args_is_help=True)


@ledger.command("show", epilog="Example:  cloister ledger show north --rounds")
def show(
    site: Site,
    rounds: Annotated[bool, typer.Option("--rounds", help="Show every entry, not only every run.")] = False,
    as_json: Json = False,
) -> None:
    """Show every run's cost, the spent and remaining budget, and whether accountants agree; if not, exit with 1."""
    from cloister import accounts  # noqa: PLC0415 - takes a moment to load
    from cloister.views import balance  # noqa: PLC0415 - takes a moment to load

    with patience("counting ε over all charges"):
        report = accounts.report(site)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        balance.show(report, make_console(json=False), rounds=rounds)
    if not balance.agree(report):
        raise typer.Exit(1)


@ledger.command("verify", epilog="Example:  cloister ledger verify north --head 5f0c…")
def verify(
    site: Site,
    head: Annotated[
        list[str] | None,
        typer.Option(help="A head that was written down, or that a server keeps; the option may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that nobody without the site's key changed, removed or moved an entry of its ledgers; if not, exit with 1.

    The signing key is not needed: the public key in the roster suffices.
    """
    from cloister import accounts  # noqa: PLC0415
    from cloister.views import balance  # noqa: PLC0415

    report = accounts.verify(site, head or ())
    if as_json:
        typer.echo(json.dumps(report))
    else:
        balance.show_verified(report, make_console(json=False))


@ledger.command("adopt", epilog="Example:  cloister ledger adopt north --old-key backup/signing.key")
def adopt(
    site: Site,
    old_key: Annotated[Path | None, typer.Option(help="The signing key that the site had before.")] = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Accept the ledgers as they are: the old key is lost.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Sign a site's ledgers with its new key, once, after the site has changed keys."""
    from cloister import accounts  # noqa: PLC0415

    if (old_key is None) != unverified:
        msg = "give the key that signed the ledgers as --old-key, or, if it is lost, use --unverified"
        raise ConfigError(msg)
    report = accounts.adopt(site, old_key)
    if as_json:
        typer.echo(json.dumps({"ledgers": report}))
    else:
        for account in report:
            checked = "verified with the old key" if old_key else "accepted as they were"
            typer.echo(f"✓ {account['ledger']}: {account['entries']} entries {checked}, signed with the new one")


@ledger.command(
    "recover",
    epilog="Example:  cloister ledger recover north --heads ledger-heads.json --run run.manifest --settings north",
)
def recover(
    site: Site,
    heads: Annotated[
        Path | None, typer.Option(help="The server's ledger-heads.json, if its heads show that entries are missing.")
    ] = None,
    run: Annotated[
        list[Path] | None, typer.Option(help="A signed run that may have charged the site since; name all of them.")
    ] = None,
    settings: Annotated[
        list[Path] | None,
        typer.Option(help="With --run: a site.toml that stood at some time since; name all of them, and the present."),
    ] = None,
    spent: Annotated[
        bool, typer.Option("--spent", help="One of them is unknown: count the whole budget as spent, for good.")
    ] = False,
    without_head: Annotated[
        bool, typer.Option("--without-head", help="Charge though no head shows a loss: all copies of it are lost too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Charge what may be missing from a site's ledgers, if their newest copies are lost. Stop the agent first.

    A run is charged with the most that any of the settings let it spend. Nothing of this can be taken back.
    """
    from cloister.recovery import Since  # noqa: PLC0415
    from cloister.recovery import recover as recover_lost  # noqa: PLC0415

    if run and spent:
        msg = "give --run and --settings, or --spent, not both"
        raise ConfigError(msg)
    since = Since(heads, None if spent else run or (), settings or ())
    with patience("counting what the runs may have charged"):
        charges = recover_lost(site, since, without_head=without_head)
    if as_json:
        typer.echo(json.dumps({"charges": charges}))
        return
    for charge in charges:
        what = "all that the budget allows" if spent else f"run {charge['run'][:8]}, the most that it may have cost"
        typer.echo(f"✓ {charge['lineage']}: charged {what}")
    typer.echo(f"next: cloister ledger show {site}")


@ledger.command("plan", epilog="Example:  cloister ledger plan north run.toml")
def plan(
    site: Site,
    run: Annotated[Path, typer.Argument(help="A run's settings, run.toml, or the signed run.")],
    as_json: Json = False,
) -> None:
    """Show a run's cost, and whether policy and budget allow it; if not, exit with 1. Charges nothing."""
    from cloister import accounts  # noqa: PLC0415
    from cloister.views import balance  # noqa: PLC0415

    with patience("counting ε over all charges and the run"):
        report = accounts.plan(site, run)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        balance.show_plan(report, make_console(json=False))
    if not report["allowed"]:
        raise typer.Exit(1)
