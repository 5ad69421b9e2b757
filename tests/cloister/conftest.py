"""What tests of commands share."""

from functools import cache

import pytest
import typer.main
import typer.testing

from tests.cloister.in_process import Run, runner

_build = cache(typer.main.get_command)


@pytest.fixture(autouse=True)
def build_commands_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make click's commands from ours once per process, which takes longer than most of them; nothing changes them."""
    monkeypatch.setattr(typer.main, "get_command", _build)
    monkeypatch.setattr(typer.testing, "_get_command", _build)


@pytest.fixture
def cloister(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, as its own process would."""
    return runner(monkeypatch, capsys)
