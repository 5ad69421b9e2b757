"""Locks on folders end with the process that took them, also if processes that it forked go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from privacy.errors import VaultError
from privacy.folder_locks import folder_alone, folder_in_use

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from privacy import folder_locks
going, goes = os.pipe()
with getattr(folder_locks, sys.argv[2])(Path(sys.argv[1])):
    if os.fork() == 0:
        os.write(goes, b"!")
        sys.stdin.read()  # as long as the test likes
    else:
        os.read(going, 1)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("lock", [folder_alone.__name__, folder_in_use.__name__])
def test_a_killed_process_leaves_no_lock_to_those_that_it_forked(lock: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), lock]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        assert process.wait(60) == -signal.SIGKILL
        with folder_alone(tmp_path):
            pass


def test_a_fork_that_ends_does_not_end_the_lock_of_its_parent(tmp_path: Path) -> None:
    script = KILLED.replace("sys.stdin.read()", "sys.exit()").replace("os.kill(os.getpid(), signal.SIGKILL)", """
        os.wait()
        print("ready", flush=True)
        sys.stdin.read()""")  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(tmp_path), folder_alone.__name__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(VaultError, match="uses this folder"), folder_alone(tmp_path):
            pass
        process.communicate()
        assert process.returncode == 0
    with folder_alone(tmp_path):
        pass
