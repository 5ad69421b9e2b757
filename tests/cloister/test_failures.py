"""Whatever fails in a command ends in one sentence on standard error, never in a traceback; `--debug` shows where."""

import codecs
import contextlib
import errno
import importlib
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import typer

from cloister import cli
from cloister.views.terminal import make_usable
from privacy.errors import CloisterError, ConfigError
from privacy.failures import raised, sentence
from simulations.engine.federation import Federation, SiteTerms

QUOTE = "Mrs Smith, 1961"

SEAMS = {  # what each command calls, and how it is called
    ("demo",): ("cloister.commands.demo.run_demo", []),
    ("init",): ("server.founding.create_consortium", ["lungs", "--host", "localhost"]),
    ("invite",): ("server.coordinator.Coordinator", ["north"]),
    ("join",): ("cloister.commands.joining.read", ["north.invitation"]),
    ("person", "join"): ("cloister.commands.joining.read", ["north.invitation"]),
    ("revoke",): ("server.coordinator.Coordinator", ["north"]),
    ("renew",): ("server.coordinator.Coordinator", []),
    ("roster", "show"): ("server.coordinator.Coordinator", []),
    ("roster", "approve"): ("server.coordinator.Coordinator", ["north.request"]),
    ("roster", "remove"): ("server.coordinator.Coordinator", ["north"]),
    ("roster", "renew"): ("server.coordinator.Coordinator", []),
    ("roster", "take"): ("client.settings.read_site", ["roster", "--site", "north"]),
    ("check",): ("client.checks.check_site", ["north"]),
    ("approve",): ("client.settings.read_site", ["north"]),
    ("run", "events"): ("server.settings.read_consortium", ["server"]),
    ("run", "show"): ("client.settings.read_site", ["run.manifest", "north"]),
    ("protect",): ("client.settings.read_site", ["north"]),
    ("backup",): ("client.settings.read_site", ["north", "north.backup"]),
    ("restore",): ("client.restoring.restore", ["north.backup", "north"]),
    ("export",): ("client.settings.read_site", ["north", "models/a", "a"]),
    ("data", "check"): ("cloister.own_records.report", ["north"]),
    ("login",): ("cloister.client.Client", []),
    ("submit",): ("cloister.client.Client", ["run.manifest"]),
    ("runs",): ("cloister.client.Client", []),
    ("watch",): ("cloister.client.Client", ["lungs"]),
    ("stop",): ("cloister.client.Client", ["lungs"]),
    ("retry",): ("cloister.client.Client", ["lungs"]),
    ("sign",): ("cloister.commands.sign.sign_run", ["run.toml"]),
    ("server",): ("server.process.serve", ["server"]),
    ("agent",): ("client.agent.attend", ["north"]),
    ("tune",): ("simulations.study.run_settings.read_run_settings", ["study.toml", "--records", "records.csv"]),
    ("plan",): ("cloister.commands.planning.read_planned", ["study.toml"]),
    ("simulate",): ("cloister.commands.simulate.simulate", []),
    ("stats",): ("cloister.commands.stats.survey", []),
    ("audit", "privacy"): ("cloister.audit.privacy.audit", []),
    ("audit", "inversion"): ("cloister.audit.inversion.demonstrate", []),
    ("audit", "statement"): ("cloister.audit.statement.write_statement", ["north"]),
    ("bench", "round"): ("cloister.benchmarks.round.measure", []),
    ("bench", "api"): ("cloister.benchmarks.api.measure", []),
    ("bench", "scale"): ("cloister.benchmarks.scale.measure", []),
    ("bench", "simulation"): ("cloister.benchmarks.simulation.measure", []),
    ("bench", "plan"): ("cloister.benchmarks.plan.measure", []),
    ("bench", "encryption"): ("cloister.benchmarks.encryption.measure", []),
    ("bench", "accuracy"): ("cloister.benchmarks.accuracy.measure", []),
    ("bench", "algorithms"): ("cloister.benchmarks.algorithms.measure", []),
    ("bench", "personal"): ("cloister.benchmarks.personal.measure", []),
    ("bench", "results"): ("cloister.benchmarks.results.measure", []),
    ("bench", "records"): ("cloister.benchmarks.records.measure", []),
    ("bench", "training"): ("cloister.benchmarks.training.measure", []),
    ("bench", "adversary"): ("cloister.benchmarks.adversary.measure", []),
    ("bench", "utility"): ("cloister.benchmarks.utility.measure", []),
    ("bench", "norm"): ("cloister.benchmarks.norm.measure", []),
    ("bench", "poisoning"): ("cloister.benchmarks.poisoning.measure", []),
    ("ledger", "show"): ("cloister.accounts.report", ["north"]),
    ("ledger", "verify"): ("cloister.accounts.verify", ["north"]),
    ("ledger", "adopt"): ("cloister.accounts.adopt", ["north", "--unverified"]),
    ("ledger", "recover"): ("cloister.recovery.recover", ["north", "--spent"]),
    ("ledger", "plan"): ("cloister.accounts.plan", ["north", "run.toml"]),
}

CODES = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EMFILE, errno.EIO)
ERRORS: list[BaseException] = [
    *(OSError(code, os.strerror(code), "some/file") for code in CODES),
    OSError(QUOTE),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    TimeoutError(),
    UnicodeEncodeError("latin-1", QUOTE, 0, 1, "ordinal not in range"),
    UnicodeDecodeError("utf-8", QUOTE.encode(), 0, 1, "invalid start byte"),
    MemoryError(),
    RecursionError(QUOTE),
    ValueError(QUOTE),
    KeyError(QUOTE),
    SystemExit(QUOTE),
    GeneratorExit(QUOTE),
    IndexError(QUOTE),
    TypeError(QUOTE),
    AttributeError(QUOTE),
    RuntimeError(QUOTE),
    AssertionError(QUOTE),
    ImportError(QUOTE),
    struct.error(QUOTE),
    EOFError(),
    ArithmeticError(QUOTE),
    ConfigError("the file says nothing; write something"),
]


def test_these_tests_cover_every_command() -> None:
    assert {*_commands(typer.main.get_command(cli.app))} == {*SEAMS}


def _commands(command: click.Command, *names: str) -> Iterator[tuple[str, ...]]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _commands(inner, *names, name)
    else:
        yield names


@pytest.mark.parametrize("command", SEAMS, ids=" ".join)
def test_every_error_of_a_command_is_one_sentence(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, arguments = SEAMS[command]
    module, _, name = place.rpartition(".")
    importlib.import_module("cloister.accounts")  # or it would take, and keep, a function that is replaced here
    for error in ERRORS:
        with monkeypatch.context() as patch:
            patch.setattr(importlib.import_module(module), name, _raising(error))
            message = _fail(patch, capsys, *command, *arguments)
        assert message.startswith("✗ "), error
        assert message.count("\n") == 1, message
        assert QUOTE not in message
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module(module), name, _raising(KeyError(QUOTE)))
        message = _fail(patch, capsys, "--debug", *command, *arguments)
    assert "Traceback" in message
    assert QUOTE in message


def _raising(error: BaseException) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command in this process; return the code with which it would end."""
    monkeypatch.setattr(sys, "argv", ["cloister", *arguments])
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def _fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command in this process that is to fail; return what it said on standard error."""
    assert _run(monkeypatch, *arguments) == 1
    return capsys.readouterr().err


def test_the_text_of_foreign_exceptions_is_never_shown() -> None:
    for error in ERRORS:
        message = sentence(error)
        assert message
        assert QUOTE not in message
        assert isinstance(error, CloisterError | OSError | MemoryError) or type(error).__name__ in message


def test_a_message_states_where_an_error_was_raised() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        print(1 // 0)  # noqa: T201 - it does not come to that
    assert raised(caught.value).startswith("ZeroDivisionError at tests/cloister/test_failures.py:")
    assert raised(caught.value, __name__) == raised(caught.value)


def test_control_characters_in_the_name_of_a_file_do_not_reach_the_terminal() -> None:
    assert sentence(FileNotFoundError(2, "No such file", "a\x1b[2Jb\nc")) == "a·[2Jb·c: no such file; check the name"


# --- Real files and real streams ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    federation = Federation.create(tmp_path_factory.mktemp("failures"), ("north", "south", "east"))
    run = (Path(__file__).parents[2] / "simulations" / "tasks" / "diagnosis.toml").read_bytes()
    run = run.replace(b"epsilon = 2.9 ", b"noise_multiplier = 2.5 ").replace(b"\n", b"\r\n")
    (federation.folder / "run.toml").write_bytes(codecs.BOM_UTF8 + run)
    return federation


def sign(federation: Federation, out: Path | str, *, run: Path | str = "run.toml") -> list[str]:
    return ["sign", str(federation.folder / run), "--as", str(federation.folder / "coordinator"),
            "--roster", str(federation.server / "roster"), "--out", str(out)]  # fmt: skip


def test_a_run_with_a_byte_order_mark_and_carriage_returns_is_signed(
    consortium: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(monkeypatch, *sign(consortium, tmp_path / "run.manifest")) == 0
    assert (tmp_path / "run.manifest").exists()


def test_files_that_cannot_be_read_or_written_are_named(
    consortium: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "latin1.toml").write_bytes('name = "größe"'.encode("latin-1"))
    settings = (consortium.folder / "run.toml").read_bytes()
    (tmp_path / "for_ever.toml").write_bytes(settings.replace(b"seconds = 30", b"seconds = 1e300"))
    os.mkfifo(tmp_path / "pipe")
    cases = {
        f"{tmp_path}/for_ever.toml: round_deadline_seconds is more than 30 days": sign(
            consortium, "x", run=tmp_path / "for_ever.toml"
        ),
        f"{tmp_path}/pipe: a pipe or a device, not a file": sign(consortium, "x", run=tmp_path / "pipe"),
        f"{tmp_path}/nobody: no such folder; name yours with --as": [
            *sign(consortium, "x"), "--as", f"{tmp_path}/nobody"
        ],
        f"{consortium.server}/consortium.toml: this is not a signed Cloister roster": [
            *sign(consortium, "x"), "--roster", f"{consortium.server}/consortium.toml"
        ],
        f"{tmp_path}/folder: is a directory; name a file": sign(consortium, tmp_path / "folder"),
        f"{tmp_path}/file: not a directory; name a folder that can exist": [
            "simulate", "--folder", f"{tmp_path}/file"
        ],
        f"{tmp_path}/file: file exists; choose another name": sign(consortium, tmp_path / "file" / "out"),
        f"{tmp_path}/loop: Too many levels of symbolic links": sign(consortium, "x", run=tmp_path / "loop"),
        f"{tmp_path}/latin1.toml:1: not UTF-8 text": sign(consortium, "x", run=tmp_path / "latin1.toml"),
        f"{tmp_path}/folder: Is a directory": sign(consortium, "x", run=tmp_path / "folder"),
        f"{tmp_path}/{'n' * 300}: file name too long": sign(consortium, tmp_path / ("n" * 300)),
    }  # fmt: skip
    for expected, arguments in cases.items():
        message = _fail(monkeypatch, capsys, *arguments)
        assert message.startswith(f"✗ {expected}"), message
        assert "Traceback" not in message
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "file",
        "folder",
        "for_ever.toml",
        "latin1.toml",
        "loop",
        "pipe",
    ]


def test_a_file_that_exceeds_the_size_limit_is_named_and_removed(
    consortium: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with file_size_limit(1000):
        message = _fail(monkeypatch, capsys, *sign(consortium, tmp_path / "run.manifest"))
    assert message.startswith(f"✗ {tmp_path / 'run.manifest'}: file too large; raise this account's limit")
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Limit the size of the files that this process writes, in bytes, as `ulimit -f` does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _start(*arguments: str, **options: object) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "cloister", *arguments]
    return subprocess.run(command, timeout=60, check=False, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


def test_a_latin_1_terminal_gets_only_characters_that_it_can_display(consortium: Federation, tmp_path: Path) -> None:
    terminal = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    signed = _start(*sign(consortium, tmp_path / "run.manifest"), stdout=subprocess.PIPE, env=terminal)
    assert signed.returncode == 0
    assert signed.stdout.decode("latin-1").startswith(f"+ {tmp_path / 'run.manifest'}: 12 rounds cost each site eps ")
    refused = _start("agent", "größe-ε", env=terminal)
    assert refused.stderr.decode("latin-1").startswith(f"x {Path.cwd()}/größe-")
    assert b"Traceback" not in signed.stderr + refused.stderr


def test_a_full_disk_under_standard_output_is_reported_and_a_closed_pipe_is_not(consortium: Federation) -> None:
    for site, path in consortium.paths.items():
        if not (path / "site.toml").exists():
            consortium.write_settings(site, "localhost:1", SiteTerms(("simulations.tasks.diagnosis:Diagnosis",)))
    with Path("/dev/full").open("wb") as full:
        unwritten = _start("--version", stdout=full)
    assert unwritten.returncode == 1
    assert unwritten.stderr.decode().endswith("no space left on device; make room on this disk\n")
    ours, theirs = os.pipe()
    os.close(ours)
    unread = _start("--help", stdout=theirs)
    output = _start("ledger", "verify", str(consortium.paths["north"]), stdout=theirs)
    os.close(theirs)
    for text in (unread, output):
        assert text.returncode == 1
        assert b"unexpected" not in text.stderr
    assert unread.stderr == b""


def test_a_closed_standard_output_is_not_an_error() -> None:
    closed = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m cloister --version >&-"], timeout=60, check=False, capture_output=True
    )
    assert (closed.returncode, closed.stderr) == (0, b"")


def test_every_non_ascii_character_has_an_ascii_form() -> None:
    make_usable()
    assert "✓ ε ≥ 3, σ…\udcff".encode("ascii", "cloister") == rb"+ eps >= 3, sigma...\udcff"


def test_ctrl_c_stops_any_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command, (place, arguments) in SEAMS.items():
        module, _, name = place.rpartition(".")
        with monkeypatch.context() as patch:
            patch.setattr(importlib.import_module(module), name, _raising(KeyboardInterrupt()))
            assert _run(patch, *command, *arguments) == 130
        message = capsys.readouterr().err
        assert message.startswith(("stopped", "left; nothing is lost"))
        assert message.count("\n") == 1
