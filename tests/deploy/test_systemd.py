"""The systemd units: systemd itself takes them, and finds little that it could take away from them."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cloister.in_process import Run, runner

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
NAMES = ("cloister-server.service", "cloister-agent@.service")
COMMAND = "/opt/cloister/bin/cloister"
MOST = 2.0  # of systemd's scale from 0, nothing to take away, to 10

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def analyze(*arguments: str | Path) -> str:
    """What `systemd-analyze` says; fail if it finds a mistake."""
    ended = subprocess.run(
        [ANALYZE or "", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={"LC_ALL": "C.UTF-8"},
    )
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr
    return ended.stdout


@pytest.fixture(params=NAMES)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit, whose command is installed."""
    text = (UNITS / request.param).read_text(encoding="utf-8")
    name = str(request.param).replace("@", "@north")
    (tmp_path / name).write_text(text.replace(COMMAND, f"{sys.executable} -m cloister"), encoding="utf-8")
    return tmp_path / name


@needs_systemd
def test_systemd_finds_no_mistake(unit: Path) -> None:
    analyze("verify", "--man=no", unit)


@needs_systemd
def test_systemd_finds_little_that_the_unit_need_not_have(unit: Path) -> None:
    said = analyze("security", "--offline=true", "--no-pager", unit)
    score = re.search(r"Overall exposure level for .*: ([\d.]+) ", said)
    assert score, said
    assert float(score[1]) < MOST


@pytest.mark.parametrize("name", NAMES)
def test_its_command_is_one_that_there_is(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = re.search(r"^ExecStart=(.*)$", (UNITS / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert line
    program, *arguments = shlex.split(line[1].replace("%i", "north"))
    assert program == COMMAND
    run: Run = runner(monkeypatch, capsys)
    ended = run(*arguments[:1], "/nowhere", *arguments[2:])
    assert ended.returncode == 1, ended.stderr  # it is 2 for arguments that it does not know
