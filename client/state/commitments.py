"""A site's record of actions that it takes at most once: written to disk before the action, and never forgotten.

With a second seed revealed for a round, whoever has both could remove the masks. (For the same reason, and because of
its charge, a plan gets only one update; the ledger ensures that.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.errors import ProtocolError
from privacy.log_file import opened_log, read_log
from privacy.storage import make_folder

if TYPE_CHECKING:
    from pathlib import Path


class Commitments:
    """A folder with one file per run, one line per action."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, run: str, action: str, value: str) -> None:
        """Record an action and its value before it is taken. Repeating the same changes nothing.

        Raises:
            ProtocolError: if the action was recorded with another value.
        """
        make_folder(self._folder)
        with opened_log(self._path(run)) as file:
            done = _value(file.data, action)
            if done not in {None, value}:
                msg = f"{action} was already recorded with another value; this site does not do it again"
                raise ProtocolError(msg)
            if done is None:
                file.keep(file.data.rfind(b"\n") + 1)  # drop a torn line: its action was never taken
            line = f"{action}: {value}\n".encode() if done is None else b""
            # Even if empty: a process killed just before this may have left its line unsynced.
            file.append(line)

    def find(self, run: str, action: str) -> str | None:
        """Return the value recorded for an action, if there is one."""
        try:
            return _value(read_log(self._path(run)), action)
        except FileNotFoundError:
            return None

    def _path(self, run: str) -> Path:
        return self._folder / f"{run[:16]}.commitments"


def _value(data: bytes, action: str) -> str | None:
    """Return an action's value from the whole lines of a file, without splitting them all: a long run has many."""
    lines, start = b"\n" + data[: data.rfind(b"\n") + 1], f"\n{action}: ".encode()
    place = lines.rfind(start)
    if place < 0:
        return None
    place += len(start)
    return lines[place : lines.index(b"\n", place)].decode(errors="replace")
