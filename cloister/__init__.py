"""Cloister: one shared model over data that never leaves its owner.

This is the public API: `Task` to write a study, `TableTask` and `ImageTask` for records that a site's source reads,
with `Number`, `Category`, `Flag` and `Date` for their columns; `Survey` to gather statistics, `Algorithm` to write a
federated algorithm, `save_frozen`, `load_model` and `load_personal` for model files, `Client` to submit runs to a
server and follow them, `CloisterError` to catch errors; and `simulate` with its `Result`, `compare`, `EarlyStop`, and
the settings of a run: `SimulatedRun`, `Training`, `Privacy`, `SitePrivacy`, `Personal`, `Encryption`; `tune`, which
searches for them, with its `Tuning`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from privacy.errors import CloisterError
from strategies.algorithm import Algorithm, LocalRound, LocalSolver, Mean, Run, Update, Values

if TYPE_CHECKING:
    from client.data.columns import Category, Date, Flag, Number
    from client.data.records import read_csv
    from client.settings import Personal
    from client.state.model_use import load_model, load_personal, save_frozen
    from client.task.image_task import ImageTask
    from client.task.table_task import TableTask
    from client.task.task import Task
    from client.work.survey import Survey
    from cloister.client import Client
    from cloister.result import Result, compare
    from cloister.simulating import EarlyStop, simulate
    from cloister.tuning import Tuning, tune
    from privacy.run.settings import Encryption, Privacy, Training
    from simulations.study.run_settings import SimulatedRun
    from simulations.study.site_privacy import SitePrivacy

__version__ = "0.1.0"
__all__ = [
    "Algorithm",
    "Category",
    "Client",
    "CloisterError",
    "Date",
    "EarlyStop",
    "Encryption",
    "Flag",
    "ImageTask",
    "LocalRound",
    "LocalSolver",
    "Mean",
    "Number",
    "Personal",
    "Privacy",
    "Result",
    "Run",
    "SimulatedRun",
    "SitePrivacy",
    "Survey",
    "TableTask",
    "Task",
    "Training",
    "Tuning",
    "Update",
    "Values",
    "compare",
    "load_model",
    "load_personal",
    "read_csv",
    "save_frozen",
    "simulate",
    "tune",
]


_LAZY = {
    "Category": "client.data.columns",
    "Client": "cloister.client",
    "Date": "client.data.columns",
    "EarlyStop": "cloister.simulating",
    "Encryption": "privacy.run.settings",
    "Flag": "client.data.columns",
    "ImageTask": "client.task.image_task",
    "Number": "client.data.columns",
    "Personal": "client.settings",
    "Privacy": "privacy.run.settings",
    "Result": "cloister.result",
    "SitePrivacy": "simulations.study.site_privacy",
    "SimulatedRun": "simulations.study.run_settings",
    "Survey": "client.work.survey",
    "TableTask": "client.task.table_task",
    "Task": "client.task.task",
    "Training": "privacy.run.settings",
    "Tuning": "cloister.tuning",
    "compare": "cloister.result",
    "load_model": "client.state.model_use",
    "load_personal": "client.state.model_use",
    "read_csv": "client.data.records",
    "save_frozen": "client.state.model_use",
    "simulate": "cloister.simulating",
    "tune": "cloister.tuning",
}
"""Names that few programs need, and their modules: the server has no torch, and httpx takes a while."""


def __getattr__(name: str) -> object:
    """Import what few programs need when it is used."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    msg = f"module 'cloister' has no attribute {name!r}"
    raise AttributeError(msg)
