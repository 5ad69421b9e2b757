"""A site's tasks and the works of its runs; each task's records are read once."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from client.context import SiteContext
from client.task.installed import check_installed
from client.task.task import import_class
from client.work.evaluation import HeldOutEvaluation
from client.work.personal import check_layers
from client.work.survey import StatisticsQuery, Survey
from client.work.training import Study

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.settings import SiteFolder
    from client.work.work import Work
    from privacy.ledger.entries import Purpose
    from privacy.run.settings import RunSettings


class Works(SiteContext):
    """A site's context with the works of all its runs."""

    def __init__(self, folder: SiteFolder) -> None:
        super().__init__(folder)
        self._studies: dict[str, Study] = {}
        self._works: dict[tuple[Purpose, str], Work] = {}

    def study(self, task: str) -> Study:
        """Return a task with this site's records, read once.

        Raises:
            TaskError: if the task cannot be imported or trained.
            PolicyError: if its installed package has another digest than the policy says.
        """
        if task not in self._studies:
            check_installed(self.settings.policy, task, self.name)
            self._studies[task] = Study(task, self)
        return self._studies[task]

    def work(self, settings: RunSettings) -> Work:
        """Return a run's work.

        Raises:
            TaskError: if its task or survey cannot be imported, or is neither.
        """
        return self._work(settings.kind.purpose, settings.task)

    def _work(self, purpose: Purpose, task: str) -> Work:
        if (purpose, task) not in self._works:
            check_installed(self.settings.policy, task, self.name)
            self._works[purpose, task] = _KINDS[purpose](self, task)
        return self._works[purpose, task]

    def check_records(self) -> dict[str, int]:
        """Read and check the records for every task that the policy allows, before any round starts.

        Returns:
            The number of records that each task would use, for this site alone.

        Raises:
            DataError: if a record cannot be used.
            ConfigError: if `[personal]` names layers that a task lacks.
            PolicyError: if a task's installed package has another digest than the policy says.
        """
        for task in self.settings.policy.task_digests:
            check_installed(self.settings.policy, task, self.name)
        if personal := self.settings.personal:
            for task in self.settings.policy.tasks:
                if not is_survey(task):
                    check_layers(personal, self.study(task).module(0), task)
        return {
            task: self._work("statistics" if is_survey(task) else "training", task).count()
            for task in self.settings.policy.tasks
        }

    def records_digest(self) -> bytes:
        """Read the records for every task that the policy allows for training; return a digest of them all."""
        digest = sha256()
        for task in self.settings.policy.tasks:
            if not is_survey(task):
                digest.update(task.encode() + self.study(task).digest())
        return digest.digest()


def is_survey(task: str) -> bool:
    """Return whether a name in the policy is a survey, not a task to train.

    Raises:
        TaskError: if it cannot be imported.
    """
    return issubclass(import_class(task), Survey)


_KINDS: dict[Purpose, Callable[[Works, str], Work]] = {
    "training": lambda site, task: site.study(task),
    "statistics": lambda site, task: StatisticsQuery(task, site),
    "evaluation": lambda site, task: HeldOutEvaluation(site.study(task), site),
}
