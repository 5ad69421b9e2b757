"""The `cloister` command. An error prints one sentence and exits with 1; `--debug` adds a traceback."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import click
import typer
import typer.core

from cloister import __version__, service_manager
from cloister.commands import STOPPED, Json
from cloister.commands.audit import audit
from cloister.commands.backup import backup, restore
from cloister.commands.bench import bench
from cloister.commands.check import check
from cloister.commands.consent import approve, run
from cloister.commands.data import data
from cloister.commands.founding import init
from cloister.commands.joining import invite, join
from cloister.commands.ledger import ledger
from cloister.commands.person import person
from cloister.commands.planning import plan
from cloister.commands.protect import export, protect
from cloister.commands.roster import remove, renew, roster
from cloister.commands.runs import login, retry, runs, stop, submit, watch
from cloister.commands.simulating import simulate
from cloister.commands.tuning import tune
from cloister.processes import end_at_work
from cloister.views.log import LogForm, show_log
from cloister.views.patience import patience
from cloister.views.run import RoundTable, listening, make_console
from cloister.views.terminal import (
    ask_secretly,
    complain,
    flush_output,
    make_usable,
    quieten_libraries,
    reader_has_gone,
)
from privacy.at_rest.secrets import Asking
from privacy.failures import sentence

log = logging.getLogger("cloister")

_LEFT = "left; nothing is lost, and what was charged stays charged. To come back, run the same command"

Log = Annotated[LogForm, typer.Option("--log", help="How to write the log: json is one object a line.")]

typer.core.HAS_RICH = False  # plain help: with rich, it escapes brackets, and the escapes are shown

app = typer.Typer(
    name="cloister",
    help="Train one shared model over data that never leaves its owner.",
    epilog="Start here:  cloister demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    suggest_commands=False,  # click does
)
app.add_typer(audit, name="audit")
app.add_typer(bench, name="bench")
app.add_typer(data, name="data")
app.add_typer(ledger, name="ledger")
app.add_typer(person, name="person")
app.add_typer(roster, name="roster")
app.add_typer(run, name="run")
app.command(epilog="Example:  cloister init lungs --host fed.example.org --online --api")(init)
app.command(epilog="Example:  cloister invite north")(invite)
app.command(epilog="Example:  cloister join north.invitation")(join)
app.command("revoke", epilog="Example:  cloister revoke north")(remove)
app.command(epilog="Example:  cloister renew")(renew)
app.command(epilog="Example:  cloister check north    (or: cloister check --server server)")(check)
app.command(epilog="Example:  cloister approve run.manifest north    (or, to see what waits: cloister approve north)")(
    approve
)
app.command(epilog="Example:  cloister login --as ana --api fed.example.org:9442")(login)
app.command(epilog="Example:  cloister submit run.manifest --as ana --watch")(submit)
app.command(epilog="Example:  cloister runs --as ana --status running    (or: cloister runs lungs --fetch statement)")(
    runs
)
app.command(epilog="Example:  cloister watch lungs --as ana    (or, for the newest run: cloister watch --as ana)")(
    watch
)
app.command(epilog='Example:  cloister stop lungs --as ana --reason "wrong task"')(stop)
app.command(epilog="Example:  cloister retry lungs --as ana")(retry)
app.command(epilog="Example:  cloister protect north")(protect)
app.command(
    epilog="Example:  cloister simulate study.toml --records patients.csv --sites 100 --partition dirichlet:0.3"
)(simulate)
app.command(
    epilog="Example:  cloister tune study.toml --records public.csv --space space.toml --trials 50 --processes 2"
)(tune)
app.command(epilog="Example:  cloister plan study.toml --link 100 --cpu-hour 0.05 --gigabyte 0.09")(plan)
app.command(epilog="Example:  cloister backup north north.backup")(backup)
app.command(epilog="Example:  cloister restore north.backup north")(restore)
app.command(epilog="Example:  cloister export north models/lungs-1a2b3c4d.safetensors lungs.safetensors")(export)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Handle the options that all commands share."""
    del version
    _Output.debug, _Output.log = debug, LogForm.TEXT


class _Output:
    """How this process speaks."""

    debug = False
    log = LogForm.TEXT

    @classmethod
    def show_log(cls, form: LogForm, *, by_thread: bool = False) -> None:
        """Write the log to standard error, and in JSON nothing else."""
        cls.log = form
        show_log(form, by_thread=by_thread)

    @classmethod
    def say(cls, text: str) -> None:
        """Say what nobody needs to act on."""
        if cls.log is LogForm.JSON:
            log.info("%s", text)
        else:
            typer.echo(text)

    @classmethod
    def complain(cls, mark: str, text: str) -> None:
        """Say why the process ends."""
        if cls.log is LogForm.JSON:
            log.error("%s", text)
        else:
            complain(mark + text)


@app.command(epilog="Example:  cloister demo --folder /tmp/demo")
def demo(
    folder: Annotated[Path, typer.Option(help="Folder for the files of the server and hospitals.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Run a real federation here: a server and three hospitals as processes, TLS, privacy, encryption, real data."""
    from cloister.commands.demo import run_demo  # noqa: PLC0415 - loads torch

    summary = run_demo(folder, make_console(json=as_json))
    if as_json:
        typer.echo(json.dumps(summary))


@app.command(epilog="Example:  cloister sign study.toml --as ana --out run.manifest")
def sign(
    run: Annotated[Path, typer.Argument(help="The run's settings, run.toml.")],
    folder: Annotated[
        Path, typer.Option("--as", help="The folder of whoever signs: coordinator/, or one by `cloister person join`.")
    ] = Path("coordinator"),
    roster: Annotated[
        Path | None, typer.Option(help="The consortium's roster; by default, the one that this folder knows.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write the signed run.")] = Path("run.manifest"),
    as_json: Json = False,
) -> None:
    """Calibrate a run's noise, show its cost, and sign it, as a coordinator or researcher of the roster."""
    from cloister.commands.sign import sign_run  # noqa: PLC0415

    with patience("calibrating the noise"):
        report = sign_run(run, folder, roster, out)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        rounds = "1 round costs" if report["rounds"] == 1 else f"{report['rounds']} rounds cost"
        typer.echo(f"✓ {report['manifest']}: {rounds} each site ε {report['epsilon']:.2f} "
                   f"at δ {report['delta']:g} (σ {report['noise_multiplier']:g})")  # fmt: skip
        if math.isfinite(more := report["epsilon_of_two_records"]):
            typer.echo(f"  for a person with one record; with two, at a site with records_per_person = 2: ε {more:.2f}")
        from cloister.views.observers import table  # noqa: PLC0415

        for line in table(report):
            typer.echo(line)
        if report["delta_warning"]:
            typer.echo(f"! {report['delta_warning']}")
        typer.echo(f"next: cloister submit {out} --as {folder}    (or, at the server: cloister server server {out})")


@app.command(epilog="Example:  cloister server server    (or, for one run alone: cloister server server run.manifest)")
def server(
    consortium: Annotated[Path, typer.Argument(help="consortium.toml, or its folder.")],
    manifest: Annotated[
        Path | None, typer.Argument(help="A signed run: serve it alone, to its end; without one, serve the queue.")
    ] = None,
    new_epoch: Annotated[bool, typer.Option("--new-epoch", help="Have the sites make a new key epoch first.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Go on with a run that failed or was stopped.")] = False,
    log_form: Log = LogForm.TEXT,
) -> None:
    """Run the aggregation server: it takes signed runs, and serves them. It holds no decryption key."""
    from server.process import serve, serve_one  # noqa: PLC0415 - sites need no server

    _Output.show_log(log_form)
    ready = threading.Event()

    def started(text: str) -> None:
        _Output.say(text)
        if not ready.is_set():
            ready.set()
            service_manager.ready()

    with ExitStack() as stack:
        stack.enter_context(service_manager.watched())
        if manifest is None:
            if new_epoch or retry:
                msg = "--new-epoch and --retry belong to one run; name its file: cloister server server run.manifest"
                raise click.UsageError(msg)
            try:
                serve(consortium, started, threading.Event())
            except KeyboardInterrupt:
                _Output.complain("", "stopped; runs that were going on are taken up again by the same command")
                raise typer.Exit(STOPPED) from None
            return
        if log_form is LogForm.TEXT:
            stack.enter_context(listening(stack.enter_context(RoundTable(make_console(json=False)))))
        serve_one(consortium, manifest, started, threading.Event(), new_epoch=new_epoch, retry=retry)
    _Output.say("✓ the run has ended; every site has the result in its own folder")


@app.command(epilog="Example:  cloister agent north")
def agent(
    sites: Annotated[list[Path], typer.Argument(help="site.toml, or its folder; several share one process.")],
    log_form: Log = LogForm.TEXT,
) -> None:
    """Run a site's agent, or those of several sites. Ctrl-C stops it safely."""
    _Output.show_log(log_form, by_thread=len(sites) > 1)
    if _Output.debug:
        logging.getLogger("cloister").setLevel(logging.DEBUG)
    try:
        with service_manager.watched():
            if len(sites) == 1:
                from client.agent import attend  # noqa: PLC0415 - a server needs no agent

                attend(sites[0], threading.Event(), service_manager.ready)
            else:
                from client.agents import attend_all  # noqa: PLC0415

                attend_all(sites, threading.Event(), service_manager.ready)
    except KeyboardInterrupt:
        _Output.complain("", _LEFT)
        if len(sites) > 1:
            flush_output()
            os._exit(STOPPED)  # Python would wait for threads that train, or break those that hold torch's locks
        raise typer.Exit(STOPPED) from None


@app.command(epilog="Example:  cloister stats survey.toml --json")
def stats(
    run: Annotated[Path | None, typer.Argument(help="The run's settings; by default, the reference survey's.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder for the files of the simulated hospitals.")] = Path("simulation"),
    site: Annotated[
        Path | None, typer.Option(help="Show this site's latest statistics instead of simulating a run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show counts, means, deviations, quantiles and labels over all sites: simulated hospitals, or a site's results."""
    from cloister.commands import stats  # noqa: PLC0415 - loads torch

    console = make_console(json=as_json)
    report = stats.latest(site) if site else stats.survey(run, folder, console)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        stats.show(report, console)


def main() -> None:
    """Run the command line. Every error ends here, as one sentence: see `privacy.failures`."""
    make_usable()
    quieten_libraries()
    Asking.how = ask_secretly
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as for a script's background jobs
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = _run(sys.argv[1:])
    if code == STOPPED:
        end_at_work(code)
    if not ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C does not wait for cleanup
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    error: BaseException | None = None
    try:
        code = _code(arguments)
    except KeyboardInterrupt:
        code = STOPPED
        _Output.complain("", "stopped")
    except BaseException as raised:  # noqa: BLE001 - all errors end here
        code, error = 1, raised
    unread, unwritten = reader_has_gone(), flush_output()
    error = error or unwritten
    if error is None:
        return code
    if isinstance(error, BrokenPipeError) and unread:
        return 1  # as with `| head`: the reader has seen enough and needs no message
    if _Output.debug and _Output.log is LogForm.TEXT:
        traceback.print_exception(error)
    _Output.complain("✗ ", sentence(error))
    return code or 1


def _code(arguments: list[str]) -> int:
    """Run a command and return its exit code; handle only click's own exceptions here."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("cloister", arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort as error:
        raise KeyboardInterrupt from error
    return 0
