"""Processes that start in no time: forked from one that has loaded all that an agent needs, which takes seconds.

For tests that are not about how a process starts. Each process of tests has one such server of processes; it ends with
it.
"""

import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import cast

from typing_extensions import override

from cloister.processes import Processes

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([
    "client.agent", "client.app", "client.dpsgd.process_group", "cloister.cli", "server.process",
    "tests.client.group_members", "tests.client.killed", "tests.forked", "tests.studies",
    "pandas", "pyarrow.compute", "torch._dynamo",  # which pyarrow, and autograd, load when they are used
])  # fmt: skip


def start_forking() -> None:
    """Load all of that now; for tests of code that would otherwise have others load something else."""
    forkserver.ensure_running()


class Forked:
    """A process that calls a function; its output goes to a file. Otherwise as `subprocess.Popen`."""

    def __init__(self, log: Path, run: Callable[..., None], *arguments: str, env: Mapping[str, str]) -> None:
        log.write_bytes(b"")
        self.log, self.stdin = log, None
        self._process = _FORKS.Process(target=_call, args=(log, {**os.environ, **env}, run, arguments))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return code

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


class ForkedAgents(Processes):
    """What sites run is forked, and so is the server, unless it is to load only what it needs; the rest as usual."""

    def __init__(self, *, server: bool = True) -> None:
        super().__init__()
        self._forked = {"agent", "join", *(["server"] if server else [])}

    @override
    def start(
        self, name: str, log: Path, *arguments: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        if arguments[0] not in self._forked:
            return super().start(name, log, *arguments, env=env)
        child = cast("subprocess.Popen[bytes]", Forked(log, run_command, *arguments, env=env or {}))
        self._children[name] = child, log
        return child


def _call(log: Path, env: Mapping[str, str], run: Callable[..., None], arguments: tuple[str, ...]) -> None:
    os.setsid()
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    logging.getLogger().handlers.clear()  # opacus has set one, when it was loaded
    os.environ.clear()
    os.environ.update(env)
    run(*arguments)


def run_command(*arguments: str) -> None:
    """Run `cloister ARGUMENTS` in a forked process."""
    from cloister.cli import main  # noqa: PLC0415 - loads what the tests' own process need not

    sys.argv = ["cloister", *arguments]
    main()
