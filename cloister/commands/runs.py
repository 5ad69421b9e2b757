"""`cloister login | submit | runs | watch | stop | retry`: work with a server through its API."""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.commands import STOPPED, Json
from cloister.views.run import RoundTable, make_console
from cloister.views.run_page import moment, page, report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloister.client import Client
    from cloister.run_status import RunStatus


As = Annotated[
    Path, typer.Option("--as", help="Your folder: one by `cloister person join`, or coordinator/.", show_default=True)
]
Api = Annotated[
    str | None,
    typer.Option(help="The API's address, host:port; by default the last one used, or port 9442 of the server."),
]
Proxy = Annotated[str | None, typer.Option(help="An HTTP proxy, or none; by default, the environment's.")]
Run = Annotated[str, typer.Argument(help="The run's digest, or what its digest or name begins with.")]
_ME = Path("coordinator")


def _client(folder: Path, api: str | None, proxy: str | None) -> Client:
    from cloister import client  # noqa: PLC0415 - httpx takes a while

    return client.Client(folder, api, proxy=proxy)


def login(
    folder: As = _ME,
    api: Api = None,
    account: Annotated[
        bool, typer.Option("--account", help="Sign in with your organisation's account, in a browser.")
    ] = False,
    logout: Annotated[bool, typer.Option("--logout", help="End the session, here and at the server.")] = False,
    proxy: Proxy = None,
    as_json: Json = False,
) -> None:
    """Sign in to a server's API, with the key in your folder, say who you are there, and take its newest roster."""
    with _client(folder, api, proxy) as client:
        if logout:
            client.logout()
            _say({"api": client.api, "signed_in": False}, f"✓ signed out of {client.api}", as_json=as_json)
            return
        who = client.login(account=account)
        client.take_roster()
        text = f"✓ signed in to {client.api} as {who.get('person')}, {who.get('role')}, until {moment(who.get('ends'))}"
        _say({"api": client.api, "signed_in": True, **who}, text, as_json=as_json)


def submit(
    run: Annotated[Path, typer.Argument(help="The signed run, by `cloister sign`.")],
    folder: As = _ME,
    api: Api = None,
    watching: Annotated[bool, typer.Option("--watch", help="Follow the run until it ends.")] = False,
    proxy: Proxy = None,
    as_json: Json = False,
) -> None:
    """Submit a signed run, which then waits for its turn. The same one again changes nothing."""
    with _client(folder, api, proxy) as client:
        submitted = client.submit(run)
        if watching:
            _follow(client, submitted, folder, as_json=as_json)
            return
        text = f"✓ {submitted.name} {submitted.digest[:8]} is {submitted.status}"
        if submitted.ended is not None:
            why = f": {submitted.reason}" if submitted.reason else ""
            text = f"! {submitted.name} {submitted.digest[:8]} was submitted before, and {_has(submitted)}{why}"
        _say(asdict(submitted), text, as_json=as_json)
        if not as_json:
            typer.echo(f"next: {_next(submitted, folder)}")


def runs(
    run: Annotated[str | None, typer.Argument(help="One run only, in full.", show_default=False)] = None,
    folder: As = _ME,
    api: Api = None,
    status: Annotated[
        str | None, typer.Option(help="Only those that are waiting, running, finished, failed or stopped.")
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, max=10_000, help="How many to list.")] = 20,
    fetch: Annotated[
        str | None, typer.Option(help="Fetch this of one run: manifest, events or statement.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where --fetch writes; by default a file named after the run.")
    ] = None,
    proxy: Proxy = None,
    as_json: Json = False,
) -> None:
    """List a server's runs, the newest first; show one: times, rounds, sites, noise; or fetch what there is of it."""
    if fetch or out:
        from cloister.commands.fetching import fetched  # noqa: PLC0415 - few need it

        with _client(folder, api, proxy) as client:
            path = fetched(client, run, fetch, out)
        _say({"fetched": fetch, "file": str(path)}, f"✓ {path}", as_json=as_json)
        return
    with _client(folder, api, proxy) as client:
        if run is not None:
            one = client.run(run)
            with _of_this_version(client):
                shown = report(one, client.events(one.digest), _paused(client, one))
            _say(shown, "\n".join([_row(one), *page(shown)]), as_json=as_json)
            return
        found = [each for each, _ in zip(client.runs(status), range(most), strict=False)]
    if as_json:
        typer.echo(json.dumps({"runs": [asdict(each) for each in found]}))
        return
    if not found:
        typer.echo("no runs; submit one: cloister submit run.manifest")
    for each in found:
        typer.echo(_row(each))
        if each.reason:
            typer.echo(f"          {each.reason}")


def watch(
    run: Annotated[str | None, typer.Argument(help="The run; by default, the newest.", show_default=False)] = None,
    folder: As = _ME,
    api: Api = None,
    proxy: Proxy = None,
    as_json: Json = False,
) -> None:
    """Follow a run until it ends: a row for each round. Ctrl-C leaves; the run goes on."""
    with _client(folder, api, proxy) as client:
        if run is None:
            newest = next(client.runs(), None)
            if newest is None:
                typer.echo("no runs; submit one: cloister submit run.manifest", err=True)
                raise typer.Exit(1)
            run = newest.digest
        _follow(client, client.run(run), folder, as_json=as_json)


def stop(
    run: Run,
    folder: As = _ME,
    api: Api = None,
    reason: Annotated[str, typer.Option(help="Why, for the others to read.")] = "",
    proxy: Proxy = None,
    as_json: Json = False,
) -> None:
    """Stop a run. The sites keep its last model, and what was charged stays charged."""
    with _client(folder, api, proxy) as client:
        stopped = client.stop(run, reason)
    _say(asdict(stopped), f"✓ {stopped.name} {stopped.digest[:8]} stops", as_json=as_json)


def retry(run: Run, folder: As = _ME, api: Api = None, proxy: Proxy = None, as_json: Json = False) -> None:
    """Let a run that failed or was stopped go on where it ended; it may charge sites for further rounds."""
    with _client(folder, api, proxy) as client:
        again = client.retry(run)
    _say(asdict(again), f"✓ {again.name} {again.digest[:8]} is {again.status}", as_json=as_json)


def _follow(client: Client, run: RunStatus, folder: Path, *, as_json: bool) -> None:
    """Show a run until it ends; exit with 1 if it did not finish, with 130 if the user leaves."""
    from cloister.run_status import ENDED  # noqa: PLC0415

    try:
        with RoundTable(make_console(json=as_json)) as table:
            if run.status == "waiting":
                table.status("waiting for its turn")
                table.note(f"waits for its turn{f': {run.reason}' if run.reason else _behind(client, run)}")
            for event in client.follow(run.digest, on_lost=lambda: table.note(_lost(client, run))):
                with _of_this_version(client):
                    table.show(event)
        ended = client.run(run.digest)
    except KeyboardInterrupt:
        typer.echo(f"left; the run goes on. To come back: {_command(run.digest, folder)}", err=True)
        raise typer.Exit(STOPPED) from None
    if as_json:
        typer.echo(json.dumps(asdict(ended)))
    else:
        mark = "✓" if ended.status == "finished" else "✗"
        why = f": {ended.reason}" if ended.reason else ""
        typer.echo(f"{mark} {ended.name} {ended.digest[:8]} {_has(ended)}{why}")
    if ended.status in ENDED - {"finished"}:
        raise typer.Exit(1)


def _lost(client: Client, run: RunStatus) -> str:
    """Return why no events come: the server may be there, and its store not."""
    from privacy.errors import CloisterError  # noqa: PLC0415

    with suppress(CloisterError):
        if why := _paused(client, run):
            return f"the run cannot go on at the moment: {why}"
    return "the connection to the server was lost; it is made again, for five minutes"


def _paused(client: Client, run: RunStatus) -> str:
    """Return why a run cannot go on at the moment; nothing if it can."""
    paused = client.status().get("paused")
    return str(paused.get(run.digest, "")) if isinstance(paused, dict) else ""


@contextmanager
def _of_this_version(client: Client) -> Iterator[None]:
    from privacy.errors import MalformedError  # noqa: PLC0415

    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        msg = f"{client.api} sends events of another version of Cloister; install the server's version"
        raise MalformedError(msg) from error


def _behind(client: Client, run: RunStatus) -> str:
    """Return which runs go on before this one: not a stopped one, even if it still delivers its last sum."""
    digests = client.status().get("running")
    before = [each for each in digests if each != run.digest] if isinstance(digests, list) else []
    known = [client.run(str(digest)) for digest in before]
    names = [f"{each.name} {each.digest[:8]}" for each in known if each.status != "stopped"]
    return f", after {'; '.join(names)}" if names else ""


def _has(run: RunStatus) -> str:
    rounds = f"{run.released} of {run.rounds} rounds released a model"
    return f"{'has ' if run.status == 'finished' else 'was ' if run.status == 'stopped' else ''}{run.status}; {rounds}"


def _row(run: RunStatus) -> str:
    rounds = f"{run.released:>4}/{run.rounds:<4}"
    return f"{run.digest[:8]}  {run.status:<8}  {rounds}  {moment(run.submitted)}  {run.name}, by {run.by}"


def _next(run: RunStatus, folder: Path) -> str:
    """Return what to do after a run was submitted."""
    if run.status == "finished":
        return "cloister sign RUN.toml, which makes a new run, to train again"
    if run.ended is not None:
        return f"an operator or a coordinator may let it go on: cloister retry {run.digest[:8]}"
    return _command(run.digest, folder)


def _command(digest: str, folder: Path) -> str:
    return f"cloister watch {digest[:8]}" + (f" --as {folder}" if folder != _ME else "")


def _say(report: dict[str, Any], text: str, *, as_json: bool) -> None:
    typer.echo(json.dumps(report) if as_json else text)
