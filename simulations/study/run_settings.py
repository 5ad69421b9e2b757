"""The settings of a simulated run: those of run.toml, with defaults for what a simulation knows by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tomli_w
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, read_mapping, read_toml
from privacy.errors import ConfigError
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings, Training
from privacy.run.strategy import FEDAVG, Strategy
from privacy.run.tables import Start, Vote
from strategies.registry import completed

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_DEADLINE = 3600.0  # seconds of a round
_BATCH = 32  # records in a step, on average
_LEARNING_RATE = 0.1


@dataclass(frozen=True, config=STRICT)
class SimulatedRun:
    """What a simulation does in its rounds. Every table is that of run.toml, and a run.toml is one, too.

    Without `[training]`, a round is one epoch in batches of 32; without `[privacy]`, the whole run costs ε = 3. The
    task and `[cohort]` come from the simulation, whatever stands here, except the cohort's minimum and deadline.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")] = "simulation"
    task: str | None = None
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 10
    privacy: Privacy = field(default_factory=lambda: Privacy(epsilon=3.0, max_grad_norm=1.0))
    cohort: Cohort | None = None
    training: Training | None = None
    start: Start | None = None
    vote: Vote | None = None
    encryption: Encryption = field(default_factory=lambda: Encryption(update_bound=1.0, collusion_resistant=False))
    strategy: Strategy = field(default_factory=FEDAVG.copy)
    recipients: tuple[str, ...] = ()
    model_seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    valid_days: Annotated[float, Field(gt=0, le=366)] = 30.0
    seed: Annotated[int, Field(ge=0)] | None = None

    def completed(self, task: str, sizes: Mapping[str, int]) -> RunSettings:
        """Return the run's settings, ready to sign.

        Args:
            task: its name, `module:Class`.
            sizes: how many records to train on each site has, by name.

        Raises:
            ConfigError: if settings contradict each other.
        """
        largest = max(sizes.values())
        training = self.training or Training(
            sample_rate=min(1.0, _BATCH / largest), epochs_per_round=1.0, learning_rate=_LEARNING_RATE
        )
        minimum = min(self.cohort.minimum if self.cohort else 2, len(sizes))
        seconds = self.cohort.round_deadline_seconds if self.cohort else _DEADLINE
        if len(sizes) < 2:  # noqa: PLR2004 - a sum of one update would be that update
            msg = "one site alone is no federation: name two or more"
            raise ConfigError(msg)
        values = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if getattr(self, each.name) is not None and each.name not in {"task", "cohort", "training"}
        }
        try:
            settings = RunSettings(
                **values,
                task=task,
                training=training,
                cohort=Cohort(dict(sizes), minimum, seconds),
            )
        except ValueError as error:
            msg = f"the run's settings: {_first(error)}"
            raise ConfigError(msg) from error
        return completed(settings)


def _first(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    return str(errors()[0]["msg"]).removeprefix("Value error, ") if errors else str(error)


def read_run_settings(run: object) -> SimulatedRun:
    """Return a simulated run's settings, given them, a run's, a mapping like run.toml, or the path of a run.toml.

    Raises:
        ConfigError: if they do not fit.
    """
    if run is None:
        return SimulatedRun()
    if isinstance(run, SimulatedRun):
        return run
    if isinstance(run, RunSettings):
        given = {each.name: getattr(run, each.name) for each in fields(SimulatedRun)}
        return SimulatedRun(**given)
    if isinstance(run, Mapping):
        return read_mapping(run, SimulatedRun, "the run")
    if isinstance(run, str | Path):
        return read_toml(Path(run), SimulatedRun)
    msg = f"a run is given by settings, a mapping or the path of a run.toml, not by a {type(run).__name__}"
    raise ConfigError(msg)


def named_sites(count: int) -> list[str]:
    """Return names for so many sites.

    >>> named_sites(3)
    ['site-1', 'site-2', 'site-3']
    """
    width = len(str(count))
    return [f"site-{number:0{width}d}" for number in range(1, count + 1)]


def checked_names(names: Sequence[str]) -> list[str]:
    """Return sites' names, which must be those of real sites.

    Raises:
        ConfigError: if one cannot be.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            msg = f"{name!a} is no name of a site; use lower-case letters, digits and hyphens"
            raise ConfigError(msg)
    return list(names)


def with_seed(run: SimulatedRun, seed: int) -> SimulatedRun:
    """Return a run that repeats, if it has no privacy that a seed would break."""
    if run.seed is not None or run.privacy.noise_multiplier != 0:
        return run
    return replace(run, seed=seed)


def as_toml(settings: RunSettings) -> str:
    """Return a run's settings as run.toml has them."""
    values = TypeAdapter(RunSettings).dump_python(settings, mode="json", exclude_none=True)
    return tomli_w.dumps({key: value for key, value in values.items() if value not in ([], {})})
