"""End processes that a program under test has left in the background, such as Ray's and Flower's."""

import os
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL


def end_those_that_name(folder: Path) -> None:
    """Kill the processes in whose environment a test's own folder stands, but not this one."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(process.name) != os.getpid() and os.fsencode(folder) in (process / "environ").read_bytes():
                os.kill(int(process.name), SIGKILL)
