"""Manage child processes that never outlive their parent's work: at its end, they are terminated, then killed.

Where the parent itself is killed, they find that out (`cloister.child`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.child import GRACE
from privacy.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Self

_POLL = 0.05
_ENDING = (signal.SIGINT, signal.SIGTERM)
_AT_WORK = {"simulated server", "Flower's engine"}  # the names of threads of simulations


def end_at_work(code: int) -> None:
    """End this process at once if a thread of it still plays a simulation's rounds.

    Python would kill the thread inside PyTorch, which then aborts the process. Forked workers end, too.
    """
    if any(thread.name in _AT_WORK for thread in threading.enumerate()):
        for child in multiprocessing.active_children():
            child.kill()  # to be terminated, it would have to come back from PyTorch
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it, or it is closed
                stream.flush()
        os._exit(code)


class Processes:
    """`cloister` commands running in the background, each with a log file."""

    def __init__(self) -> None:
        self._children: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.stop()

    def start(
        self, name: str, log: Path, *arguments: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `cloister ARGUMENTS`, with its output in `log`."""
        return self.start_module("cloister", name, log, *arguments, env=env)

    def start_module(
        self, module: str, name: str, log: Path, *arguments: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start another module of ours as a program, with its output in `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file, _undisturbed():
            child = subprocess.Popen(  # noqa: S603 - our own command with our own arguments
                [sys.executable, "-m", "cloister.child", module, *arguments],
                stdin=subprocess.PIPE,  # it ends with this process
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
                start_new_session=True,  # Ctrl-C reaches only the parent, which then stops its children in order
            )
            self._children[name] = child, log
        return child

    def wait_for_line(self, name: str, marker: str, seconds: float) -> str:
        """Wait until a process prints a line that contains `marker`, and return the rest of the line.

        Raises:
            RunError: if it ends without such a line, or not within `seconds`.
        """
        child, log = self._children[name]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended = child.poll() is not None
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                if marker in line:
                    return line.split(marker, 1)[1].strip()
            if ended:
                break
            time.sleep(_POLL)
        msg = f"{name} did not start; its log {log} ends with:\n{self.tail(name)}"
        raise RunError(msg)

    def ended(self) -> dict[str, int]:
        """Return the exit codes of processes that have ended."""
        return {name: code for name, (child, _) in self._children.items() if (code := child.poll()) is not None}

    def wait(self, name: str, seconds: float) -> None:
        """Wait until a process has ended.

        Raises:
            RunError: if it does not end within `seconds`, or fails.
        """
        child, log = self._children[name]
        with suppress(subprocess.TimeoutExpired):
            if child.wait(seconds) == 0:
                return
        msg = f"{name} did not end properly; its log {log} ends with:\n{self.tail(name)}"
        raise RunError(msg)

    def peak_memory(self, name: str) -> int | None:
        """Return a process's peak memory so far, in bytes; None if the system does not report it."""
        return self._status(name, "VmHWM:")

    def memory(self, name: str) -> int | None:
        """Return a process's memory now, in bytes; None if the system does not report it."""
        return self._status(name, "VmRSS:")

    def processor_seconds(self, name: str) -> float | None:
        """Return the processor time that a process has used so far; None if the system does not report it."""
        with suppress(OSError):
            stat = Path(f"/proc/{self._children[name][0].pid}/stat").read_text(encoding="utf-8")
            user, system = stat.rpartition(")")[2].split()[11:13]  # proc_pid_stat(5)
            return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        return None

    def _status(self, name: str, field: str) -> int | None:
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self._children[name][0].pid}/status").read_text(encoding="utf-8").splitlines()
            return int(next(line for line in lines if line.startswith(field)).split()[1]) << 10
        return None

    def tail(self, name: str, lines: int = 5) -> str:
        """Return the last lines that a process printed."""
        return "\n".join(self._children[name][1].read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """Stop all processes that are still running."""
        running = [child for child, _ in self._children.values() if child.poll() is None]
        for child in running:
            child.terminate()
        deadline = time.monotonic() + GRACE
        for child in running:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
            if child.poll() is None:
                child.kill()
                child.wait()
        for child, _ in self._children.values():
            if child.stdin:
                child.stdin.close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM: an interrupt between starting and recording a child would leave it orphaned."""
    if threading.current_thread() is not threading.main_thread():  # signals never interrupt another thread
        yield
        return
    held: list[int] = []
    usual = {number: signal.signal(number, lambda received, _: held.append(received)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        if held:
            raise KeyboardInterrupt
