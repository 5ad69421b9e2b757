"""The settings of a simulated run: those of run.toml, with defaults for what a simulation knows by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tomli_w
from pydantic import Field, TypeAdapter, WrapValidator
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, explained, read_mapping, read_toml
from privacy.errors import ConfigError
from privacy.run.optimizer import check_steps
from privacy.run.settings import Cohort, Encryption, Positive, Privacy, RunSettings, Training
from privacy.run.strategy import FEDAVG, Strategy
from privacy.run.tables import Start, Vote
from strategies.registry import completed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import ValidationInfo, ValidatorFunctionWrapHandler

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_DEADLINE = 3600.0  # seconds of a round
_BATCH = 32  # records in a step, on average
_LEARNING_RATE = 0.1
_EPSILON, _NORM, _BOUND = 3.0, 1.0, 1.0


@dataclass(frozen=True, config=STRICT)
class BatchTraining(Training):
    """`[training]` without a sample rate: at the largest site, a batch has 32 records on average."""

    sample_rate: None = None  # type: ignore[assignment]  # known once the sites' sizes are
    learning_rate: Positive = _LEARNING_RATE

    def __post_init__(self) -> None:
        """Check that the number of steps is given once."""
        check_steps(self.steps_per_round, self.epochs_per_round, 1.0)

    def sampled(self, largest: int) -> Training:
        """Return the table, given the number of records of the largest site."""
        return Training(**_values(self) | {"sample_rate": min(1.0, _BATCH / largest)})


@dataclass(frozen=True, config=STRICT)
class AnyCohort(Cohort):
    """`[cohort]` without sizes: the sites are those of the simulation."""

    sizes: dict[str, int] = field(default_factory=dict)
    minimum: Annotated[int, Field(ge=2)] = 2
    round_deadline_seconds: Positive = _DEADLINE

    def __post_init__(self) -> None:
        """Check nothing: the sites are not known."""


def _values(table: object) -> dict[str, Any]:
    return {each.name: getattr(table, each.name) for each in fields(table)}  # type: ignore[arg-type]  # a dataclass


def _table(kind: type, filled: Callable[[dict[str, Any], ValidationInfo], Any]) -> WrapValidator:
    """Read a table, also as a mapping in Python; `filled` returns it with defaults, or an object that is one."""

    def read(value: object, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
        if not isinstance(value, Mapping):
            return handler(value)
        given = {key: part for key, part in value.items() if part is not None}
        asked, finish = filled(given, info)
        made = handler(asked) if info.mode == "json" else read_mapping(asked, kind, f"[{kind.__name__.lower()}]")
        return finish(made)

    return WrapValidator(read)


def _as_it_is(made: object) -> object:
    return made


def _privacy(given: dict[str, Any], _: ValidationInfo) -> Any:  # noqa: ANN401 - see `_table`
    return ({} if given.keys() & {"epsilon", "noise_multiplier"} else {"epsilon": _EPSILON}) | given, _as_it_is


def _encryption(given: dict[str, Any], info: ValidationInfo) -> Any:  # noqa: ANN401 - see `_table`
    # With [cohort] it is a real run's file, and means what it says there.
    return ({} if info.data.get("cohort") else {"collusion_resistant": False}) | given, _as_it_is


def _training(given: dict[str, Any], _: ValidationInfo) -> Any:  # noqa: ANN401 - see `_table`
    steps = {} if given.keys() & {"steps_per_round", "epochs_per_round"} else {"epochs_per_round": 1.0}
    asked = {"learning_rate": _LEARNING_RATE, "sample_rate": 1.0} | steps | given
    return asked, _as_it_is if "sample_rate" in given else lambda made: BatchTraining(
        **_values(made) | {"sample_rate": None}
    )


def _cohort(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    """Read `[cohort]`, which need not name sites."""
    if isinstance(value, Mapping) and "sizes" not in value:
        return read_mapping({**value}, AnyCohort, "[cohort]")
    return handler(value)


@explained
@dataclass(frozen=True, config=STRICT)
class SimulatedRun:
    """What a simulation does in its rounds. Every table is that of run.toml, and a run.toml is one, too.

    Every key has a default. The whole run costs ε = 3; a round is one epoch, in batches of 32 records at the largest
    site, with a learning rate of 0.1; gradients are clipped to 1. The task and the sites of `[cohort]` come from the
    simulation, whatever stands here. A table is given by its class, or by a mapping of some of its keys.

    >>> SimulatedRun(rounds=5, privacy={"max_grad_norm": 0.5}).privacy.epsilon
    3.0

    Raises:
        ArgumentError: if a setting does not fit; it names the setting.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")] = "simulation"
    task: str | None = None
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 10
    privacy: Annotated[Privacy, _table(Privacy, _privacy)] = field(default_factory=lambda: Privacy(epsilon=_EPSILON))
    cohort: Annotated[Cohort | None, WrapValidator(_cohort)] = None
    training: Annotated[Training, _table(Training, _training)] = field(
        default_factory=lambda: BatchTraining(epochs_per_round=1.0)
    )
    start: Start | None = None
    vote: Vote | None = None
    encryption: Annotated[Encryption, _table(Encryption, _encryption)] = field(
        default_factory=lambda: Encryption(collusion_resistant=False)
    )
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
        training = self.training
        if isinstance(training, BatchTraining):
            training = training.sampled(max(sizes.values()))
        norm, bound = self.privacy.max_grad_norm or _NORM, self.encryption.update_bound or _BOUND
        minimum = min(self.cohort.minimum if self.cohort else 2, len(sizes))
        seconds = self.cohort.round_deadline_seconds if self.cohort else _DEADLINE
        if len(sizes) < 2:  # noqa: PLR2004 - a sum of one update would be that update
            msg = "one site alone is no federation: name two or more"
            raise ConfigError(msg)
        values = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if getattr(self, each.name) is not None and each.name not in {"task", "cohort", "training"}
        } | {
            "privacy": replace(self.privacy, max_grad_norm=norm),
            "encryption": replace(self.encryption, update_bound=bound),
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
