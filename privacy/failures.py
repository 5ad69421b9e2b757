"""Describe any failure in one sentence, Cloister's own errors or others: what, where, and what to do next.

The sentence never includes the text of an unexpected exception: a task's exception may quote a record.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from privacy.errors import CloisterError, DataError

if TYPE_CHECKING:
    from types import TracebackType

_ROOT = Path(__file__).parent.parent
_ADVICE = {
    errno.ENOSPC: "make room on this disk",
    errno.EDQUOT: "make room on this disk, or raise this account's quota",
    errno.EFBIG: "raise this account's limit on the size of files (ulimit -f)",
    errno.EACCES: "let this account read and write it",
    errno.EPERM: "let this account read and write it",
    errno.EROFS: "choose another place, or make this disk writable",
    errno.ENOENT: "check the name",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name a folder that can exist",
    errno.EEXIST: "choose another name, or move the existing one aside",
    errno.ENOTEMPTY: "choose another name, or move the existing one aside",
    errno.ELOOP: "repair the link",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise this account's limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs: this machine has too many files open",
    errno.ENOMEM: "free memory on this machine",
    errno.EADDRINUSE: "stop what uses this address, or choose another",
}


class Quoting:
    """Whether a sentence may quote a record. A process whose log leaves the machine sets this to False."""

    records = True


def sentence(error: BaseException) -> str:
    """Return one sentence that says what went wrong.

    >>> sentence(FileNotFoundError(2, "No such file or directory", "run.toml"))
    'run.toml: no such file or directory; check the name'
    """
    match error:
        case DataError() if not Quoting.records:
            return "a record cannot be used as it is; to see which and why, run: cloister data check"
        case CloisterError():
            return str(error)
        case OSError():
            return _of_system(error)
        case MemoryError():
            return "this machine does not have enough free memory; free some, or use a larger machine"
    return f"unexpected {raised(error)}; `cloister --debug …` shows the traceback; please report it"


def raised(error: BaseException, module: str = "") -> str:
    """Return the type of an error and where it was raised: in `module` or its package, if that is in the trace.

    >>> raised(ValueError("Mrs Smith, 1961"))
    'ValueError'
    """
    kind = type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{kind} at {_relative(error.filename)}:{error.lineno}"
    frames = list(_frames(error.__traceback__))
    package = module.partition(".")[0]
    own = [frame for frame in frames if package and frame[0].partition(".")[0] == package]
    if not (own or frames):
        return kind
    _, file, line = (own or frames)[-1]
    return f"{kind} at {_relative(file)}:{line}"


def _frames(trace: TracebackType | None) -> list[tuple[str, str, int]]:
    """Return module, file and line of every frame that has a file, outermost first."""
    frames = []
    while trace is not None:
        frame = trace.tb_frame
        if not frame.f_code.co_filename.startswith("<"):
            frames.append((str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return frames


def _relative(file: str) -> str:
    """Return a file's path relative to Cloister's root folder or to the working folder, if it is below one of them."""
    for folder in (_ROOT, Path.cwd()):
        if file.startswith(f"{folder}{os.sep}"):
            return file[len(str(folder)) + 1 :]
    return file


def reason(error: OSError) -> str:
    """Return the system's description of an error, without a file's name.

    >>> reason(FileNotFoundError(2, "No such file or directory", "run.toml"))
    'no such file or directory'
    """
    text = (error.strerror or "it cannot be used").strip()
    return text[:1].lower() + text[1:]


def _of_system(error: OSError) -> str:
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    place = "".join(character if character.isprintable() else "·" for character in name) + ": " * bool(name)
    advice = _ADVICE.get(error.errno or 0, "check the file and its disk")
    return f"{place}{reason(error)}; {advice}"
