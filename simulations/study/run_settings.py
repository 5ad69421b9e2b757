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
_REAL_MINIMUM = 3  # sites: the default of `[cohort]`, which masks need


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
        values: dict[str, Any] = _values(self) | {"sample_rate": min(1.0, _BATCH / largest)}
        return Training(**values)


@dataclass(frozen=True, config=STRICT)
class AnyCohort(Cohort):
    """`[cohort]` without sizes: the sites are those of the simulation."""

    sizes: dict[str, int] = field(default_factory=dict)
    minimum: Annotated[int, Field(ge=2)] | None = None  # type: ignore[assignment]  # 2 in a simulation
    round_deadline_seconds: Positive = _DEADLINE

    def __post_init__(self) -> None:
        """Check nothing: the sites are not known."""


@dataclass(frozen=True, config=STRICT)
class AnyEncryption(Encryption):
    """`[encryption]` that does not say whether there are masks: a simulation has none, and real sites have them."""

    collusion_resistant: bool = False


def _values(table: object) -> dict[str, Any]:
    return {each.name: getattr(table, each.name) for each in fields(table)}  # type: ignore[arg-type]  # a dataclass


def _table(kind: type, completed: Callable[[dict[str, Any], ValidationInfo], dict[str, Any]]) -> WrapValidator:
    """Read a table, which may be a mapping in Python, too, and which `completed` returns with defaults."""

    def read(value: object, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
        if not isinstance(value, Mapping):
            return handler(value)
        given = {key: part for key, part in value.items() if part is not None}
        whole = completed(given, info)
        table = handler(whole) if info.mode == "json" else read_mapping(whole, kind, f"[{kind.__name__.lower()}]")
        values = _values(table)
        if kind is Training and "sample_rate" not in given:
            values["sample_rate"] = None
            return BatchTraining(**values)
        if kind is Encryption and "collusion_resistant" not in given and not values["collusion_resistant"]:
            return AnyEncryption(**values)
        return table

    return WrapValidator(read)


def _privacy(given: dict[str, Any], _: ValidationInfo) -> dict[str, Any]:
    return ({} if given.keys() & {"epsilon", "noise_multiplier"} else {"epsilon": _EPSILON}) | given


def _encryption(given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    # If [cohort] names sites, it is a real run's file, and means what it says there.
    cohort = info.data.get("cohort")
    return ({} if cohort and cohort.sizes else {"collusion_resistant": False}) | given


def _training(given: dict[str, Any], _: ValidationInfo) -> dict[str, Any]:
    steps = {} if given.keys() & {"steps_per_round", "epochs_per_round"} else {"epochs_per_round": 1.0}
    return {"learning_rate": _LEARNING_RATE, "sample_rate": 1.0} | steps | given


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
    encryption: Annotated[Encryption, _table(Encryption, _encryption)] = field(default_factory=AnyEncryption)
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
        norm = self.privacy.max_grad_norm or _NORM
        encryption = _values(self.encryption)
        encryption["update_bound"] = self.encryption.update_bound or _BOUND
        minimum = min(self._minimum or 2, len(sizes))
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
            "encryption": Encryption(**encryption),
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

    def deployed(self, settings: RunSettings) -> RunSettings:
        """Return completed settings as real sites play them: what nobody set has the default of run.toml.

        That is masks, and rounds of three sites: masks cancel, so that the sites arrive at the same model.
        """
        if len(settings.cohort.sizes) < _REAL_MINIMUM or settings.shares_noise:
            return settings
        cohort, encryption = settings.cohort, settings.encryption
        if self._minimum is None:
            cohort = replace(cohort, minimum=_REAL_MINIMUM)
        if isinstance(self.encryption, AnyEncryption) and cohort.minimum >= _REAL_MINIMUM:
            encryption = replace(encryption, collusion_resistant=True)
        return replace(settings, cohort=cohort, encryption=encryption)

    @property
    def _minimum(self) -> int | None:
        return self.cohort.minimum if self.cohort else None


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


def read_with_task(run: Path) -> tuple[SimulatedRun, str]:
    """Return the settings in a file, and the task that it has to name.

    Raises:
        ConfigError: if they do not fit, or name none.
    """
    settings = read_run_settings(run)
    if settings.task is None:
        msg = (
            f"{run}: the key `task` is missing; add it: module:Class, of an installed package or a file beside this one"
        )
        raise ConfigError(msg)
    return settings, settings.task


def named_sites(count: int) -> list[str]:
    """Return names for so many sites.

    >>> named_sites(3)
    ['site-1', 'site-2', 'site-3']
    """
    width = len(str(count))
    return [f"site-{number:0{width}d}" for number in range(1, count + 1)]


def checked_names(names: Sequence[Any]) -> list[str]:
    """Return sites' names, which must be those of real sites.

    Raises:
        ConfigError: if one cannot be.
    """
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
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
