"""Check whether a run suits a task that keeps parameters at its sites, and a site's `[personal]` suits a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.state.model_parts import matches, trained
from privacy.errors import ConfigError, RefusedError

if TYPE_CHECKING:
    from torch import nn

    from client.settings import Personal
    from client.task.task import Task
    from privacy.run.settings import RunSettings


_SHOWN = 8  # names in a message


def check_local(task: Task, name: str, settings: RunSettings, site: str) -> None:
    """Check that a run can train what stays at a site.

    Args:
        task: says what stays.
        name: the task's name.
        settings: the run's settings.
        site: the site's name.

    Raises:
        RefusedError: if it cannot.
    """
    training, wrong = settings.training, ""
    if not task.local or training is None:
        return
    if settings.shares_noise:
        wrong = (
            'parameters that stay at the site need noise of the site\'s own in every step; set noise = "local" in '
            "[privacy]"
        )
    elif settings.takes_steps and task.local_steps >= training.steps:
        wrong = (
            f"it takes {task.local_steps} steps for what stays at the site, and a round has {training.steps}; set "
            "steps_per_round higher in [training]"
        )
    if wrong:
        msg = f"{site} cannot train {name}: {wrong}"
        raise RefusedError(msg)


def check_layers(personal: Personal, module: nn.Module, name: str) -> None:
    """Check that each pattern in `layers` names a trained parameter of the task called `name`.

    Raises:
        ConfigError: if one names none.
    """
    names = tuple(trained(module))
    for pattern in personal.layers:
        if not any(matches(parameter, (pattern,)) for parameter in names):
            msg = (
                f"`layers` in [personal] of site.toml has {pattern!r}, which no trained parameter of {name} matches; "
                f"they are {', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}"
            )
            raise ConfigError(msg)
