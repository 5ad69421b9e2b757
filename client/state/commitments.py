"""What a site does once at most, in its own record: written to disk before the thing is done, and never forgotten.

A second seed revealed for a round would let whoever has both take the masks off. (That a plan gets one update only, for
the same reason and for the sake of its charge, the ledger sees to.)
"""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

from privacy.errors import ProtocolError
from privacy.storage import append, make_folder, private, read_file

if TYPE_CHECKING:
    from pathlib import Path


class Commitments:
    """A folder with one file a run, a line a deed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, run: str, deed: str, value: str) -> None:
        """Note that a deed is about to be done, with this. The same again changes nothing.

        Raises:
            ProtocolError: if it was done with something else.
        """
        make_folder(self._folder)
        with open(self._path(run), "a+b", opener=private) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            data = file.read()
            done = _lines(data).get(deed)
            if done not in {None, value}:
                msg = f"{deed} was done already, with something else; it is not done again"
                raise ProtocolError(msg)
            if done is None:
                file.truncate(data.rfind(b"\n") + 1)  # a line that was cut off: nothing was done after it
            line = f"{deed}: {value}\n".encode() if done is None else b""
            # Even if empty: what another process wrote may not be on disk, if it was killed just before this.
            append(self._path(run), file.fileno(), line)

    def find(self, run: str, deed: str) -> str | None:
        """Return with what a deed was done, if it was."""
        path = self._path(run)
        return _lines(read_file(path)).get(deed) if path.exists() else None

    def _path(self, run: str) -> Path:
        return self._folder / f"{run[:16]}.commitments"


def _lines(data: bytes) -> dict[str, str]:
    whole = data[: data.rfind(b"\n") + 1].decode(errors="replace")
    return {deed: value for deed, _, value in (line.partition(": ") for line in whole.splitlines())}
