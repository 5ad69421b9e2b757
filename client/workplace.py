"""Where a site trains: its settings, its device, and tasks with its records. It has neither keys nor ledger."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import torch

from client.launch import own_place
from client.study import Study
from client.survey import Survey
from client.task import import_class
from privacy.errors import TaskError

if TYPE_CHECKING:
    from client.settings import SiteFolder
    from client.team import Team


class Workplace:
    """What a site needs to train."""

    def __init__(self, folder: SiteFolder) -> None:
        self.place, self.settings = folder, folder.settings
        self.name = self.settings.site
        self.device = find_device(self.settings.device)
        self.team: Team | None = None  # those that train with this process
        self._studies: dict[str, Study] = {}

    def study(self, task: str) -> Study:
        """Return a task with this site's records, read once.

        Raises:
            TaskError: if the task cannot be imported or trained.
        """
        if task not in self._studies:
            self._studies[task] = Study(task, self)
        return self._studies[task]

    def records_digest(self) -> bytes:
        """Read the records for every task that the policy allows to be trained; return a digest of them all."""
        found = sha256()
        for task in self.settings.policy.tasks:
            if not issubclass(import_class(task), Survey):
                found.update(task.encode() + self.study(task).digest())
        return found.digest()


def find_device(wanted: str) -> torch.device:
    """Return the device that a site's settings ask for, `auto`, `cpu` or `cuda`.

    Raises:
        TaskError: if there is none.
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
        msg = f"torchrun starts {own.size} processes, and there are {devices} CUDA devices; let it start one for each"
        raise TaskError(msg)
    torch.cuda.set_device(own.device)
    return torch.device("cuda", own.device)
