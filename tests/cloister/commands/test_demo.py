"""What `cloister demo` promises a person: one model, the privacy spent, nothing left running."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

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


def _await_nothing_running(folder: Path, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while (left := _running(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "cloister", "demo", "--folder", str(folder), "--json"]
    return folder, subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


def _summary(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    finished = demo[1]
    assert finished.returncode == 0, finished.stderr
    summary: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return summary


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
def test_the_demo_trains_one_model_within_every_hospitals_budget(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    summary = _summary(demo)

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
@pytest.mark.xdist_group("demo")
def test_the_demo_shows_metrics_that_no_hospital_sent(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, finished = demo
    rounds, rows = _summary(demo)["rounds"], [line.split() for line in finished.stderr.splitlines() if " 3/3 " in line]
    (event_log,) = (folder / "server" / "runs").glob("*/events.jsonl")
    events = [json.loads(line) for line in event_log.read_text().splitlines()]
    assert [event["metrics"] for event in events if event["event"] == "round"] == [{}] * rounds
    own = [
        [json.loads(line) for file in (folder / site / "metrics").iterdir() for line in file.read_text().splitlines()]
        for site in sorted(SITES)
    ]
    for row, *lines in zip(rows, *own, strict=True):
        records = sum(line["records"] for line in lines)
        for place, name in ((2, "loss"), (3, "accuracy")):
            mean = sum(line["records"] * line["metrics"][name] for line in lines) / records
            assert row[place] == f"{mean:.3f}"
    assert "they never left it" in finished.stderr
    for site in SITES:
        assert 'disclose = ["epsilon"] ' in (folder / site / "site.toml").read_text()


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
def test_the_demo_shows_one_row_per_round_and_leaves_nothing_running(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, finished = demo
    rows = [line for line in finished.stderr.splitlines() if " 3/3 " in line]

    assert len(rows) == _summary(demo)["rounds"]
    assert all(len(line) <= 80 for line in rows)
    _await_nothing_running(folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "demo"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell would ignore it
    with subprocess.Popen(
        [sys.executable, "-m", "cloister", "demo", "--folder", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 60
        while not (folder / "east" / "agent.log").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=30) == 130
    _await_nothing_running(folder)


def test_the_demo_does_not_replace_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("twelve years of work", encoding="utf-8")
    command = [sys.executable, "-m", "cloister", "demo", "--folder", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert refused.returncode == 1
    assert "--folder" in refused.stderr
    assert (tmp_path / "thesis.tex").read_text(encoding="utf-8") == "twelve years of work"
