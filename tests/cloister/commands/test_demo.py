"""What `cloister demo` promises a person: one model, the privacy spent, nothing left running."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloister.cli import app
from tests.cloister.in_process import Run
from tests.federations import await_condition, events_at
from tests.forked import ForkedAgents

SITES = {"north", "south", "east"}


def _running(folder: Path) -> list[str]:
    """Return the command lines of processes that name this folder."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if str(folder) in line and int(process.name) != os.getpid():
                lines.append(line)
    return lines


def _await_nothing_running(folder: Path) -> None:
    await_condition(lambda: not _running(folder), 10.0)


@dataclass(frozen=True)
class Demo:
    """What a demo printed and left."""

    folder: Path
    code: int
    stdout: str
    stderr: str
    left: set[str]  # agents that still ran at its end

    @property
    def summary(self) -> dict[str, Any]:
        assert self.code == 0, self.stderr
        summary: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return summary


@pytest.fixture(scope="module", params=["forked", pytest.param("alone", marks=pytest.mark.soak)])
def demo(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Demo:
    """A demo whose agents are forked; with soak, also one whose processes all load what they need."""
    folder = tmp_path_factory.mktemp("demo")
    arguments = ["demo", "--folder", str(folder), "--json"]
    if request.param == "alone":
        command = [sys.executable, "-m", "cloister", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
        return Demo(folder, ended.returncode, ended.stdout, ended.stderr, set())
    processes = ForkedAgents()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cloister.commands.demo.Processes", lambda: processes)
        shown = CliRunner().invoke(app, arguments)
    return Demo(folder, shown.exit_code, shown.stdout, shown.stderr, processes._children.keys() - processes.ended())


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_the_demo_trains_one_model_within_every_hospitals_budget(demo: Demo) -> None:
    summary = demo.summary

    assert summary["accuracy"] >= 0.93
    assert set(summary["epsilon"]) == set(summary["delta"]) == set(summary["accuracy_alone"]) == SITES
    assert all(0 < value <= 3 for value in summary["epsilon"].values())
    assert summary["rounds"] >= 1
    assert 0 < summary["accuracy_pooled"] <= 1
    assert summary["upload_bytes_per_parameter"] > 0
    assert summary["seconds"] > 0
    digests = {sha256(Path(path).read_bytes()).hexdigest() for path in summary["model"].values()}
    assert len(summary["model"]) == 3
    assert digests == set(summary["model_digest"].values())
    assert len(digests) == 1


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_the_demo_shows_metrics_that_no_hospital_sent(demo: Demo) -> None:
    folder, rounds = demo.folder, demo.summary["rounds"]
    rows = [line.split() for line in demo.stderr.splitlines() if " 3/3 " in line]
    assert [event["metrics"] for event in events_at(folder / "server") if event["event"] == "round"] == [{}] * rounds
    own = [
        [json.loads(line) for file in (folder / site / "metrics").iterdir() for line in file.read_text().splitlines()]
        for site in sorted(SITES)
    ]
    for row, *lines in zip(rows, *own, strict=True):
        records = sum(line["records"] for line in lines)
        for place, name in ((2, "loss"), (3, "accuracy")):
            mean = sum(line["records"] * line["metrics"][name] for line in lines) / records
            assert row[place] == f"{mean:.3f}"
    assert "they never left it" in demo.stderr
    for site in SITES:
        assert 'disclose = ["epsilon"] ' in (folder / site / "site.toml").read_text()


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_the_demo_shows_one_row_per_round_and_leaves_nothing_running(demo: Demo) -> None:
    rows = [line for line in demo.stderr.splitlines() if " 3/3 " in line]

    assert len(rows) == demo.summary["rounds"]
    assert all(len(line) <= 80 for line in rows)
    assert not demo.left
    _await_nothing_running(demo.folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "demo"
    with subprocess.Popen(
        [sys.executable, "-m", "cloister", "demo", "--folder", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        await_condition((folder / "east" / "agent.log").exists, 60.0)
        process.send_signal(number)
        assert process.wait(timeout=120) == 130
    _await_nothing_running(folder)


def test_the_demo_does_not_replace_a_folder_that_is_not_its_own(tmp_path: Path, cloister: Run) -> None:
    (tmp_path / "thesis.tex").write_text("twelve years of work", encoding="utf-8")
    refused = cloister("demo", "--folder", tmp_path)
    assert refused.returncode == 1
    assert "--folder" in refused.stderr
    assert (tmp_path / "thesis.tex").read_text(encoding="utf-8") == "twelve years of work"
