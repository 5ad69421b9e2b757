"""Tasks that a site refuses permanently, because on its own records they broke what the guarantee rests on.

A refusal is kept in the site's folder, so it survives a restart of the agent. It applies to the task's code: once the
code changes, the task is tried again. Others learn only that the site refuses.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from client.task.installed import package_digest
from privacy.clock import date
from privacy.errors import TaskError
from privacy.storage import lost, read_file, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from client.task.task import Task

FILE = "refused-tasks.json"
"""The file of refusals in a site's folder: by task name, the digest of its code, the date and the reason."""


class Refusals:
    """The tasks that one site refuses."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def check(self, name: str, task: Task) -> None:
        """Refuse a task that was refused before, unless its code has changed since.

        Raises:
            TaskError: if it is refused, or the file of refusals cannot be read.
        """
        refusal = self._read().get(name)
        if refusal is None:
            return
        try:
            code, since, reason = refusal["code"], refusal["date"], refusal["reason"]
        except (TypeError, KeyError) as error:
            raise self._damaged() from error
        if code == code_digest(task):
            msg = f"{name}: refused since {since}, and its code is the same: {reason}; {self._remedy}"
            raise TaskError(msg)

    def add(self, name: str, task: Task, reason: str) -> TaskError:
        """Record a refusal, and return the error to raise."""
        today = date()
        noted = self._read() | {name: {"code": code_digest(task), "date": today, "reason": reason}}
        write_atomically(self._path, json.dumps(noted, indent=1).encode() + b"\n")
        return TaskError(f"{name}: {reason}; it is refused from now on. {self._remedy}")

    @property
    def _remedy(self) -> str:
        return f"Change its code, or delete {self._path} once you know that it is sound"

    def _read(self) -> dict[str, Any]:
        try:
            refusals = json.loads(read_file(self._path))
        except FileNotFoundError as error:
            if lost(self._path):
                raise self._damaged() from error
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged() from error
        if not isinstance(refusals, dict):
            raise self._damaged()
        return refusals

    def _damaged(self) -> TaskError:
        msg = f"{self._path} cannot be read, so the refused tasks are unknown; restore it from a backup"
        return TaskError(msg)


def code_digest(task: Task) -> str:
    """Return the SHA-256, in hex, of all Python files in the package that defines a task."""
    return str(package_digest(type(task).__module__, type(task).__qualname__))
