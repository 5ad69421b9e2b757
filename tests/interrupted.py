"""A process that is killed at one of its operations on files, to see what it leaves behind."""

import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def killed_at(number: int, root: Path, act: Callable[[], object]) -> bool:
    """Act in a process of its own, which ends by SIGKILL before its change of a file with this number.

    Args:
        number: from 0. Changes are: opening to write, syncing, renaming, linking, removing, making a folder.
        root: only changes below this folder count.
        act: what the process does; it must not fail.

    Returns:
        Whether the process got so far; otherwise it has done everything.
    """
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in {0, -signal.SIGKILL}, code
        return code != 0
    gc.freeze()  # what other tests left may wait for threads that do not exist here, such as a gRPC server's
    left = [number]

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in _CHANGES or (event == "open" and arguments[2] & _WRITING)
        if changes and isinstance(arguments[0], (str, os.PathLike)) and os.fspath(arguments[0]).startswith(str(root)):
            count()

    sync = os.fsync

    def synced(file: Any) -> None:  # noqa: ANN401 - a number, or what has one
        count()
        sync(file)

    os.fsync = synced  # type: ignore[assignment]
    sys.addaudithook(heard)
    try:
        act()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - this process must not go on with the tests
        import traceback  # noqa: PLC0415

        traceback.print_exc()
        os._exit(1)
