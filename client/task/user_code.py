"""The boundary around user code: turn whatever a task's code raises into an error without its message.

An exception's message may quote a record, and more people read logs than records. So the error gives only the
exception's type and the line of the task; `--debug` shows all of it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from privacy.errors import CloisterError, TaskError
from privacy.failures import raised

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_MEMORY = "can't allocate memory", "not enough memory", "out of memory"


@contextmanager
def foreign(name: str, method: str, kind: type[CloisterError] = TaskError) -> Iterator[None]:
    """Run a task's own code. Cloister's errors and Ctrl-C pass through; `sys.exit` does not.

    Args:
        name: the task's name, `module:Class`.
        method: the part of the task that runs, for the message.
        kind: the class of error to raise.

    Raises:
        CloisterError: of that class, for whatever else the code raises.
    """
    try:
        yield
    except (CloisterError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if is_memory(error):
            msg = (
                f"{name}: its {method} needs more memory than this machine has left; free some, or use a larger machine"
            )
        else:
            where = raised(error, name.partition(":")[0])
            advice = "correct it there (`cloister --debug …` shows its message)"
            if isinstance(error, FileNotFoundError) and method.startswith("load()"):
                advice = f"if `file` in [data] of site.toml is wrong, correct that; otherwise {advice}"
            msg = f"{name}: its {method} raises {where}; {advice}"
        raise kind(msg) from error


def is_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; on a CPU, torch then raises a plain `RuntimeError`."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)
