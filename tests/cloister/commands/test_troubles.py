"""What can go wrong at a site, made for real: `check`, `join` and `agent` name the cause at once, and what to do."""

import logging
import re
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import pytest

from cloister.views.run import LineFormatter
from tests.cloister.commands.consortium_at_work import Case, Consortium
from tests.cloister.commands.troubles_table import TROUBLES, Trouble
from tests.cloister.in_process import Run

SECONDS = 5.0  # within which a cause is named
DOCUMENT = Path(__file__).parents[3] / "docs" / "troubleshooting.md"
PAIRS = [pytest.param(trouble, command, id=f"{command}: {trouble.name}")
         for trouble in TROUBLES for command in trouble.commands]  # fmt: skip


@pytest.fixture(scope="module")
def lungs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    consortium = Consortium.found(tmp_path_factory.mktemp("troubles") / "lungs")
    with consortium.serving():
        yield consortium


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    consortium = Consortium.found(tmp_path_factory.mktemp("troubles") / "hearts")
    with consortium.serving():
        yield consortium


@pytest.fixture
def case(lungs: Consortium, hearts: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    return Case(lungs, hearts, tmp_path / "here", monkeypatch)


class CtrlC(logging.Handler):
    """Shows an agent's log, and presses Ctrl-C once it has said something, or goes on without saying it."""

    def __init__(self, awaited: str) -> None:
        super().__init__()
        self.setFormatter(LineFormatter("%(message)s"))
        self._awaited, self.lines = awaited, list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(line := self.format(record))
        if any(text in line for text in (self._awaited, "online at", "retrying")):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("trouble", "command"), PAIRS)
def test_the_cause_is_named_at_once_with_what_to_do(
    trouble: Trouble, command: str, case: Case, cloister: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cloister")
    log = logging.getLogger("cloister.agent")
    with ExitStack() as stack:
        made = trouble.make(case)
        stack.enter_context(made if isinstance(made, AbstractContextManager) else nullcontext())
        case.write_settings()
        arguments, before = case.command(command), case.files()
        ctrl_c = CtrlC(trouble.phrase(command))
        log.addHandler(ctrl_c)
        stack.callback(log.removeHandler, ctrl_c)
        start = fair_seconds()
        done = cloister(*arguments)
        took = fair_seconds() - start
        after = case.files()
    said = "\n".join([done.stdout, *ctrl_c.lines, done.stderr])
    line = next((line for line in said.replace("\n ", " ").splitlines() if trouble.phrase(command) in line), "")
    assert line, said
    assert trouble.remedy in line
    assert done.returncode == trouble.exit_status(command), said
    assert "Traceback" not in said
    assert after == before
    assert took < SECONDS, f"{took:.1f} s: {said}"


def fair_seconds() -> float:
    """This process's time, without what it waited for a processor: other tests run on this machine too."""
    waited = 0.0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        waited = max(waited, int(path.read_text().split()[1]) / 1e9)
    return time.monotonic() - waited
