"""Commands in the tests' process, which has loaded what they need: each process of its own takes seconds for that."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister import cli

Run = Callable[..., subprocess.CompletedProcess[str]]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command, in a folder or here, and returns its exit code and what it printed."""

    def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = ["cloister", *map(str, arguments)]
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", command)
            if cwd:
                patch.chdir(cwd)
            try:
                with pytest.raises(SystemExit) as ended:
                    cli.main()
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(command, ended.value.code, *capsys.readouterr())

    return run
