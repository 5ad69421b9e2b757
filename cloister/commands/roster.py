"""`cloister roster`: who belongs to a consortium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.commands import Json
from cloister.commands.joining import Folder, date, read
from privacy.storage import write_atomically

if TYPE_CHECKING:
    from privacy.run.roster import Roster

roster = typer.Typer(help="Who belongs to a consortium: approve, remove, renew.", no_args_is_help=True)


@roster.command("show", epilog="Example:  cloister roster show --json")
def show(folder: Folder = Path(), as_json: Json = False) -> None:
    """Show the sites and people of a consortium, and until when the roster is valid."""
    from rich.table import Table  # noqa: PLC0415

    from cloister.views.run import make_console  # noqa: PLC0415
    from server.coordinator import Coordinator  # noqa: PLC0415

    coordinator = Coordinator(folder / "coordinator")
    current = coordinator.roster()
    if as_json:
        typer.echo(json.dumps(_report(current) if current else {"version": 0, "members": [], "people": []}))
        return
    if current is None:
        typer.echo(f"{coordinator.settings.consortium} has no members yet; invite one: cloister invite SITE")
        return
    sites, people = Table("site", "signing key", "TLS key"), Table("person", "role", "signing key")
    for member in current.members:
        sites.add_row(member.site, f"{member.signing_key[:16]}…", f"{member.tls_key[:16]}…")
    for person in current.people:
        people.add_row(person.name, person.role, f"{person.signing_key[:16]}…")
    console = make_console(json=False)
    console.print(f"{current.consortium}, roster {current.version}, valid until {date(current.expires)}")
    for table in (sites, people):
        if table.row_count:
            console.print(table)


@roster.command("approve", epilog="Example:  cloister roster approve    (or: cloister roster approve north.request)")
def approve(
    requests: Annotated[
        list[Path] | None,
        typer.Argument(help="Files that `cloister join` wrote at the sites; by default, all that wait at the server."),
    ] = None,
    folder: Folder = Path(),
    as_json: Json = False,
) -> None:
    """Enter sites and people: certify the sites' keys, and write a new roster and everybody's welcome.

    Whoever asked the server gets the welcome from it; the others need the file NAME.welcome.
    """
    from server.coordinator import Coordinator  # noqa: PLC0415

    coordinator = Coordinator(folder / "coordinator")
    if requests:
        approvals, refusals = coordinator.approve([read(path) for path in requests])[1], list[str]()
        for approval in approvals:
            coordinator.leave_at_server(approval)
            write_atomically(Path(f"{approval.name}.welcome"), approval.welcome)
    else:
        approvals, refusals = coordinator.approve_waiting()
    current = coordinator.roster()
    if as_json:
        report = {
            "version": current.version if current else 0,
            "sites": [approval.name for approval in approvals if approval.role is None],
            "people": {approval.name: approval.role for approval in approvals if approval.role},
        }
        typer.echo(json.dumps(report if requests else {**report, "refused": refusals}))
        return
    for approval in approvals:
        command = "cloister person join" if approval.role else "cloister join"
        how = f"send it {approval.name}.welcome" if requests else f"its next `{command}` takes the welcome"
        typer.echo(
            f"✓ {approval.name} is {f'in the roster as {approval.role}' if approval.role else 'a member'}; {how}"
        )
    for refusal in refusals:
        typer.echo(f"! {refusal}")
    if current and approvals:
        _tell(coordinator.roster_path, current)
    elif not refusals:
        typer.echo("nobody waits to be approved")


@roster.command("remove", epilog="Example:  cloister roster remove north    (the same as: cloister revoke north)")
def remove(
    name: Annotated[str, typer.Argument(help="The site or person that leaves.")],
    folder: Folder = Path(),
    as_json: Json = False,
) -> None:
    """End the entry of a site or a person.

    A running server cuts a site's connections within seconds, and the other sites make new keys. Sites refuse what a
    person signed as soon as they have the new roster.
    """
    from server.coordinator import Coordinator  # noqa: PLC0415

    coordinator = Coordinator(folder / "coordinator")
    _changed(coordinator.roster_path, coordinator.remove(name), f"{name} is no longer in the roster", as_json=as_json)


@roster.command("renew", epilog="Example:  cloister roster renew    (the same as: cloister renew)")
def renew(folder: Folder = Path(), as_json: Json = False) -> None:
    """Sign the same entries and the server's certificate, and those that sites want renewed, for another 90 days.

    A running server and its agents take all of it without a restart.
    """
    from server.coordinator import Coordinator  # noqa: PLC0415

    coordinator = Coordinator(folder / "coordinator")
    signed, sites = coordinator.renew(), coordinator.recertify_waiting()
    if as_json:
        typer.echo(json.dumps({**_report(signed), "certificates": sites}))
        return
    typer.echo(f"✓ valid until {date(signed.expires)}")
    if sites:
        typer.echo(f"✓ new certificates for {', '.join(sites)}, whose agents take them from the server")
    _tell(coordinator.roster_path, signed)


@roster.command("take", epilog="Example:  cloister roster take roster --site north")
def take(
    document: Annotated[Path, typer.Argument(help="The roster that the coordinator sent.")],
    site: Annotated[Path, typer.Option(help="site.toml or person.toml, or its folder.")],
    as_json: Json = False,
) -> None:
    """Take in a newer roster: as a person; or at a site, whose agent does that by itself when it reaches the server."""
    from client.joining import take_roster  # noqa: PLC0415
    from client.person import is_person, read_person  # noqa: PLC0415
    from client.settings import read_site  # noqa: PLC0415

    if is_person(site):
        owner = read_person(site)
        current = owner.take_roster(read(document))
        has = f"{owner.settings.name} has roster {current.version}, of {len(current.members)} sites"
        typer.echo(json.dumps(_report(current)) if as_json else f"✓ {has}")
        return
    place = read_site(site)
    current = take_roster(place.folder, place.settings.keys, place.settings.site, read(document))
    if as_json:
        typer.echo(json.dumps(_report(current)))
    else:
        typer.echo(f"✓ {place.settings.site} has roster {current.version}, of {len(current.members)} sites")
        typer.echo(f"  if its agent runs, restart it: cloister agent {site}")


def _changed(path: Path, current: Roster, message: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_report(current)))
        return
    typer.echo(f"✓ {message}")
    _tell(path, current)


def _tell(path: Path, current: Roster) -> None:
    typer.echo(f"✓ {path}: roster {current.version} (sites: {len(current.members)})")
    typer.echo("  a running server and its agents take it by themselves")


def _report(current: Roster) -> dict[str, Any]:
    return {
        "consortium": current.consortium,
        "version": current.version,
        "expires": current.expires,
        "members": [member.site for member in current.members],
        "people": {person.name: person.role for person in current.people},
    }
