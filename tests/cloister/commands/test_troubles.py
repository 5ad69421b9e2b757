"""What can go wrong at a site, made for real: `check`, `join` and `agent` name the cause at once, and what to do."""

import json
import logging
import re
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from importlib import import_module
from pathlib import Path

import pytest

from cloister.views.log import LineFormatter
from tests.cloister.commands.consortium_at_work import Case, Consortium
from tests.cloister.commands.network_troubles import unknown_name
from tests.cloister.commands.site_troubles import windows
from tests.cloister.commands.troubles_table import SECTIONS, STOPPED, TROUBLES, Trouble
from tests.cloister.in_process import Run
from tests.transport.tunnels import TunnelProxy

pytestmark = pytest.mark.xdist_group("troubles")  # one consortium for all

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
        clock = FairClock()
        done = cloister(*arguments)
        took = clock.seconds
        after = case.files()
    said = "\n".join([done.stdout, *ctrl_c.lines, done.stderr])
    line = next((line for line in said.replace("\n ", " ").splitlines() if trouble.phrase(command) in line), "")
    assert line, said
    assert trouble.remedy in line
    assert done.returncode == trouble.exit_status(command), said
    assert "Traceback" not in said
    assert after == before
    assert took < SECONDS, f"{took:.1f} s: {said}"


def test_settings_from_a_windows_editor_are_read(case: Case, cloister: Run) -> None:
    windows(case)
    done = cloister(*case.command("check"))
    assert done.returncode == 0, done.stdout
    assert "✗" not in done.stdout


def test_the_report_for_programs_says_the_same(case: Case, cloister: Run) -> None:
    unknown_name(case)
    case.write_settings()
    before = case.files()
    done = cloister(*case.command("check"), "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (1, False)
    found = {finding["check"]: finding for finding in report["checks"]}
    assert found["name"]["state"] == "failed"
    assert "the name cannot be resolved here" in found["name"]["text"]
    assert case.files() == before


def test_an_agent_says_it_when_another_cause_takes_the_place_of_the_first(case: Case, cloister: Run) -> None:
    said, log = list[str](), logging.getLogger("cloister.agent")
    with TunnelProxy(refusal="403 Forbidden") as proxy:
        case.proxy = proxy.place
        case.write_settings()

        class Then(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                said.append(record.getMessage())
                if "403 “" in said[-1]:
                    proxy.refusal = "502 Bad Gateway"
                else:
                    signal.raise_signal(signal.SIGINT)

        log.addHandler(handler := Then(logging.WARNING))
        done = cloister(*case.command("agent"))
        log.removeHandler(handler)
    assert done.returncode == STOPPED
    assert [("403 “" in line, "502 “" in line) for line in said] == [(True, False), (False, True)], said


def test_the_document_has_the_same_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    sections = re.findall(r"^## ([^\n]+)\n[^|]*?(^\| what is wrong [^\n]*\n(?:^\|[^\n]*\n)+)", text, re.MULTILINE)
    rows = {title: table.splitlines()[2:] for title, table in sections}
    assert rows == {title: [row(trouble) for trouble in troubles] for title, troubles in SECTIONS.items()}


def row(trouble: Trouble) -> str:
    """A trouble as a row of the document's tables."""
    texts = dict.fromkeys(trouble.phrase(command) for command in trouble.commands)
    shows = ["–" if command not in trouble.commands else "✓" for command in ("check", "join")]
    shows += ["–" if "agent" not in trouble.commands else "goes on" if trouble.passes else "ends"]
    cells = trouble.name, ", or ".join(f"*{text}*" for text in texts), trouble.remedy, *shows
    return f"| {' | '.join(cells)} |"


@pytest.fixture(scope="module", autouse=True)
def all_that_commands_load() -> None:
    """Load it before time is measured."""
    for name in ("client.agent", "client.app", "client.checks", "client.joining", "client.work.room", "tests.studies"):
        import_module(name)


class FairClock:
    """Measures time without what this process's threads waited for a processor: other tests run on this machine."""

    def __init__(self) -> None:
        self._start, self._waited = time.monotonic(), self._waits()

    @property
    def seconds(self) -> float:
        return (
            time.monotonic()
            - self._start
            - sum(waited - self._waited.get(thread, 0.0) for thread, waited in self._waits().items())
        )

    @staticmethod
    def _waits() -> dict[str, float]:
        """By thread, the seconds that it waited; nothing where the system does not count them."""
        waits = dict[str, float]()
        for path in Path("/proc/self/task").glob("*/schedstat"):
            with suppress(OSError):  # of a thread that has just ended
                waits[path.parent.name] = int(path.read_text(encoding="ascii").split()[1]) / 1e9
        return waits
