"""The context in which a site works with its records: settings, device and process group; no keys, no ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from client.data.fitness import load_records
from client.dpsgd.torchrun import own_place
from client.state.local_parameters import FOLDER, LocalParameters
from client.state.personal_models import FOLDER as PERSONAL
from client.state.personal_models import PersonalModels
from privacy.errors import DataError, TaskError

if TYPE_CHECKING:
    from pathlib import Path

    from client.data.own_records import OwnRecords
    from client.data.sources.registry import Source
    from client.dpsgd.process_group import ProcessGroup
    from client.settings import SiteFolder
    from client.task.probe import Example
    from client.task.task import Task


class SiteContext:
    """What a task or a survey needs to know about its site."""

    def __init__(self, folder: SiteFolder) -> None:
        self.place, self.settings = folder, folder.settings
        self.name = self.settings.site
        self.device = find_device(self.settings.device)
        self.group: ProcessGroup | None = None  # the processes that train together
        self.own_parameters = LocalParameters(folder.folder / FOLDER)
        self.personal_models = PersonalModels(folder.folder / PERSONAL)

    @property
    def records_path(self) -> Path:
        """The file with the site's records."""
        return self.place.path(self.settings.data.file)

    @property
    def source(self) -> Source:
        """The site's records, and how to read them."""
        return self.place.source

    def load(self, task: Task, name: str, example: Example) -> OwnRecords:
        """Have a task read the site's records.

        Args:
            task: reads.
            name: its name.
            example: the records that it makes up.

        Raises:
            DataError: if it cannot.
        """
        return load_records(task, name, example, self.source, self.settings.data)

    def check_count(self, count: int, purpose: str) -> None:
        """Check that a run has records to work on.

        Raises:
            DataError: if it has none.
        """
        if count == 0:
            held_out = self.settings.data.held_out
            msg = f"{self.records_path}: held_out = {held_out:g} leaves no records {purpose}; change it, or add records"
            raise DataError(msg)


def find_device(wanted: str) -> torch.device:
    """Return the device that a site's settings ask for, `auto`, `cpu` or `cuda`.

    Raises:
        TaskError: if this machine lacks it.
    """
    cuda = torch.cuda.is_available()
    if wanted == "cuda" and not cuda:
        msg = 'this machine has no usable CUDA device; set device = "auto" or "cpu" in site.toml'
        raise TaskError(msg)
    if wanted == "cpu" or not cuda:
        return torch.device("cpu")
    own, devices = own_place(), torch.cuda.device_count()
    if own.size == 1:
        return torch.device("cuda")
    if own.device >= devices:
        msg = f"torchrun starts {own.size} processes on {devices} CUDA devices; let it start one process per device"
        raise TaskError(msg)
    torch.cuda.set_device(own.device)
    return torch.device("cuda", own.device)
