"""Cloister: one shared model over data that never leaves its owner.

This is the public API: `Task` to write a study, `Survey` to gather statistics, `Algorithm` to write a federated
algorithm, `save_frozen` and `load_model` for model files, `CloisterError` to catch errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.errors import CloisterError
from strategies.algorithm import Algorithm, LocalRound, LocalSolver, Mean, Run, Update, Values

if TYPE_CHECKING:
    from client.data.records import read_csv
    from client.state.model_use import load_model, save_frozen
    from client.task.task import Task
    from client.work.survey import Survey

__version__ = "0.1.0"
__all__ = [
    "Algorithm",
    "CloisterError",
    "LocalRound",
    "LocalSolver",
    "Mean",
    "Run",
    "Survey",
    "Task",
    "Update",
    "Values",
    "load_model",
    "read_csv",
    "save_frozen",
]


def __getattr__(name: str) -> object:
    """Import what only a site needs lazily: the server has no torch."""
    if name == "Task":
        from client.task.task import Task  # noqa: PLC0415

        return Task
    if name == "Survey":
        from client.work.survey import Survey  # noqa: PLC0415

        return Survey
    if name == "read_csv":
        from client.data.records import read_csv  # noqa: PLC0415

        return read_csv
    if name in {"load_model", "save_frozen"}:
        from client.state import model_use  # noqa: PLC0415

        return getattr(model_use, name)
    msg = f"module 'cloister' has no attribute {name!r}"
    raise AttributeError(msg)
