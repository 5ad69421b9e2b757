"""`cloister data check`: a site's own records, as its tasks will see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from client.data.inspection import inspect
from client.settings import read_site
from client.task.installed import check_installed
from client.work.works import is_survey
from privacy.config import did_you_mean
from privacy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def report(site: Path, task: str | None, progress: Callable[[int], None]) -> dict[str, Any]:
    """Return what the tasks of a site would read of its records, and every problem.

    Args:
        site: the site's settings or folder.
        task: the only task to look at; None: all that the policy allows.
        progress: is told the number of records read so far.

    Raises:
        ConfigError: if the policy allows no such task.
        TaskError: if a task cannot be trained, whatever the records.
    """
    place = read_site(site)
    allowed = place.settings.policy.tasks
    if task is not None and task not in allowed:
        hint = did_you_mean(task, allowed) or "list it in `tasks` of [policy]"
        msg = f"{place.folder}: its policy does not allow the task {task!r}; {hint}"
        raise ConfigError(msg)
    for name in (task,) if task else allowed:
        check_installed(place.settings.policy, name, place.settings.site)
    chosen = [name for name in ((task,) if task else allowed) if not is_survey(name)]
    if not chosen:
        msg = f"{place.folder}: its policy allows no task that trains; list one in `tasks` of [policy]"
        raise ConfigError(msg)
    tasks = [inspect(place, name, progress) for name in chosen]
    return {
        "site": place.settings.site,
        "file": str(place.source.path),
        "source": place.source.options.name if place.source.options else None,
        "usable": not any(findings["problem_count"] for findings in tasks),
        "tasks": tasks,
    }
