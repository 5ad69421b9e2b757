"""The boundary around what a consortium's members write: whatever a task's code raises ends here, without its words.

An exception's text may quote a record, and a log is read by more people than the records are. So a sentence says which
error it was and at which line of the task; `--debug` shows all of it.
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
def foreign(name: str, what: str, kind: type[CloisterError] = TaskError) -> Iterator[None]:
    """Run a task's own code. What is ours passes through, and so does Ctrl-C; a `sys.exit` ends nothing.

    Args:
        name: of the task, `module:Class`.
        what: of it is run, for people.
        kind: of error to raise.

    Raises:
        CloisterError: of that kind, for whatever else the code raises.
    """
    try:
        yield
    except (CloisterError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if is_memory(error):
            msg = f"{name}: its {what} needs more memory than this machine has left; free some, or take a larger one"
        else:
            where = raised(error, name.partition(":")[0])
            msg = f"{name}: its {what} raises {where}; mend it there (`cloister --debug …` shows what it says)"
        raise kind(msg) from error


def is_memory(error: BaseException) -> bool:
    """Whether an error means that memory is short. For want of it on a CPU, torch raises a plain `RuntimeError`."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error).lower() for each in _NO_MEMORY)
