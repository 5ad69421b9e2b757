"""Processes in the background end with the one that started them, even if that is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from cloister.processes import Processes

PARENT = """
import sys, time
from pathlib import Path
from cloister.processes import Processes

with Processes() as processes:
    child = processes.start_module("http.server", "child", Path(sys.argv[1]), "0", "--bind", "127.0.0.1")
    processes.wait_for_line("child", "Serving HTTP on", 60)
    print(child.pid, flush=True)
    time.sleep(600)
"""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_parent_leaves_no_process_behind(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert _runs(pid)
        parent.kill()
    deadline = time.monotonic() + 30
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(pid)


def test_a_process_gets_its_arguments_and_no_input(tmp_path: Path) -> None:
    with Processes() as processes:
        processes.start_module("tests.cloister.echo", "echo", tmp_path / "log", "one", "two")
        processes.wait("echo", 30)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "['one', 'two'] ''\n"
