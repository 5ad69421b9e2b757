"""The space that a search draws settings from: ranges and choices, by the keys of run.toml.

[space]
training.learning_rate = { low = 0.01, high = 3.0, log = true }
training.epochs_per_round = [0.5, 1.0, 2.0]
strategy.name = ["fedavg", "fedprox"]
strategy.mu = { low = 0.001, high = 1.0, log = true }   # only where the strategy has it
task = ["lungs:Small", "lungs:Large"]
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, did_you_mean, read_mapping, read_toml
from privacy.errors import ConfigError
from privacy.run.optimizer import Adam, AdamW, Constant, Cosine, Linear, Sgd, Step
from simulations.study.run_settings import AnyEncryption, SimulatedRun
from strategies.registry import find, parameters_of

if TYPE_CHECKING:
    from privacy.run.settings import RunSettings

Value = bool | int | float | str
_RANGE = {"low", "high", "log", "step"}
_EITHER = (
    ("training.steps_per_round", "training.epochs_per_round"),
    ("privacy.epsilon", "privacy.noise_multiplier"),
    ("training.averaging", "training.ema_decay"),
)
_BY_NAME: dict[str, tuple[type, ...]] = {
    "training.optimizer": (Sgd, Adam, AdamW), "training.schedule": (Constant, Cosine, Linear, Step),
}  # fmt: skip
_CHARGED = (
    "rounds", "training.sample_rate", "training.steps_per_round", "training.epochs_per_round", "privacy.epsilon",
    "privacy.noise_multiplier", "privacy.delta", "privacy.noise",
)  # fmt: skip


@dataclass(frozen=True, config=STRICT)
class _SpaceFile:
    space: dict[str, Any]


class Draws(Protocol):
    """Draws one value; Optuna's `Trial` is one."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
                      ) -> float:  # fmt: skip
        """Draw from a range."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Draw from a range of whole numbers."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:  # noqa: ANN401 - one of the choices
        """Draw one of the choices."""
        ...


class Space:
    """Ranges and choices by setting, such as `training.learning_rate`."""

    def __init__(self, dimensions: Mapping[str, Mapping[str, Any] | Sequence[Value]]) -> None:
        # An algorithm comes before its parameters, which depend on it.
        order = sorted(dimensions, key=lambda key: (not key.endswith(".name"), list(dimensions).index(key)))
        self.dimensions = {key: dimensions[key] for key in order}

    def draw(self, draws: Draws, base: Mapping[str, Any]) -> dict[str, Value]:
        """Draw one value for each setting; leave out parameters that the drawn algorithm does not have."""
        values = dict[str, Value]()
        for key, dimension in self.dimensions.items():
            if not _applies(key, values, base):
                continue
            if not isinstance(dimension, Mapping):
                values[key] = draws.suggest_categorical(key, list(dimension))
            elif isinstance(dimension["low"], int) and isinstance(dimension["high"], int):
                values[key] = draws.suggest_int(key, **dimension)
            else:
                values[key] = draws.suggest_float(key, **dimension)
        return values

    @property
    def charged(self) -> dict[str, Sequence[Value]]:
        """The settings on which ε depends, each with its choices.

        Raises:
            ConfigError: if one is a range.
        """
        found = {key: self.dimensions[key] for key in _CHARGED if key in self.dimensions}
        for key, dimension in found.items():
            if isinstance(dimension, Mapping):
                ends = f"{dimension['low']}, {dimension['high']}"
                msg = f"{key} decides what a run costs, so a private search chooses it from a list: {key} = [{ends}]"
                raise ConfigError(msg)
        return found  # type: ignore[return-value]  # no mapping is left

    def check(self, base: Mapping[str, Any]) -> None:
        """Check that each setting exists and takes its values.

        Raises:
            ConfigError: names the setting.
        """
        for key, dimension in self.dimensions.items():
            ends = [dimension["low"], dimension["high"]] if isinstance(dimension, Mapping) else dimension
            for value in ends:
                if not key.endswith(".name") and not _applies(key, {}, base):
                    continue
                applied(base, {key: value})
                if key in {"strategy", "strategy.name"}:
                    find(str(value))


def read_space(given: Any, base: Mapping[str, Any]) -> Space:  # noqa: ANN401 - see below
    """Return a space, given a mapping of settings, the path of a TOML file with `[space]`, or None for a usual one.

    Args:
        given: by setting, in tables or with dots: a list of choices, or a table with low and high, and log or step.
        base: the run's settings, as in run.toml.

    Raises:
        ConfigError: if it is no space of this run.
    """
    if given is None:
        return usual(base)
    if isinstance(given, str | Path):
        given = read_toml(Path(given), _SpaceFile).space
    if not isinstance(given, Mapping) or not given:
        msg = 'a space is a mapping of settings, such as {"training.learning_rate": [0.1, 0.3, 1.0]}'
        raise ConfigError(msg)
    dimensions = dict[str, Any]()
    _flatten(given, "", dimensions)
    space = Space(dimensions)
    space.check(base)
    return space


def usual(base: Mapping[str, Any], *, charged: bool = True) -> Space:
    """Return what is usually worth a search: the learning rate, the clipping norm, the sampling, the algorithm's own.

    Args:
        base: the run's settings.
        charged: whether to include a range of what ε depends on.
    """
    training, privacy = base["training"], base["privacy"]
    rate, norm, sampled = training["learning_rate"], privacy["max_grad_norm"], training["sample_rate"]
    found: dict[str, Mapping[str, Any] | Sequence[Value]] = {
        "training.learning_rate": {"low": rate / 10, "high": rate * 10, "log": True}
    }
    if privacy.get("noise_multiplier") != 0:  # without noise, clipping only bounds
        found["privacy.max_grad_norm"] = {"low": norm / 10, "high": norm * 3, "log": True}
        if charged:
            found["training.sample_rate"] = {"low": sampled / 2, "high": min(1.0, 4 * sampled), "log": True}
    for key, value in base["strategy"].items():
        if type(value) is float and value > 0:
            below_1 = "momentum" in key or "beta" in key
            most = 0.99 if below_1 else 0.09 / rate if key == "mu" else math.inf  # μ times the learning rate is below 1
            found[f"strategy.{key}"] = {"low": min(value, most) / 10, "high": min(value * 10, most), "log": True}
    return Space(found)


def settings_map(settings: RunSettings, given: SimulatedRun | None = None) -> dict[str, Any]:
    """Return a run's settings as a mapping like run.toml.

    Args:
        settings: complete.
        given: the simulated run from which they were completed; then what it leaves to simulations stays so.
    """
    known = {each.name for each in fields(SimulatedRun)}
    dumped = TypeAdapter(type(settings)).dump_python(settings, mode="json", exclude_none=True)
    values = {key: value for key, value in dumped.items() if key in known}
    if given is not None and not (given.cohort and given.cohort.sizes):
        del values["cohort"]["sizes"]
        if given.cohort is None or given.cohort.minimum is None:
            del values["cohort"]["minimum"]
        if isinstance(given.encryption, AnyEncryption):
            del values["encryption"]["collusion_resistant"]
    return values


def applied(base: Mapping[str, Any], values: Mapping[str, Value]) -> SimulatedRun:
    """Return a run's settings with some changed.

    Raises:
        ConfigError: if they do not fit.
    """
    run: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in values.items():
        *tables, last = key.split(".")
        table = run
        for name in tables:
            if isinstance(table.get(name), str):  # the short form of a table with a name
                table[name] = {"name": table[name]}
            table = table.setdefault(name, {})
        if last == "name" and tables and table.get("name") != value:
            table.clear()
        for pair in _EITHER:
            if key in pair:
                table.pop(pair[key == pair[0]].rpartition(".")[2], None)
        table[last] = value
    return read_mapping(run, SimulatedRun, "the space")


def _applies(key: str, values: Mapping[str, Value], base: Mapping[str, Any]) -> bool:
    """Return whether the algorithm, optimizer or schedule that is chosen has this parameter."""
    table, _, parameter = key.rpartition(".")
    if parameter == "name" or table not in {"strategy", *_BY_NAME}:
        return True
    present: Any = base
    for name in table.split("."):
        present = present.get(name, {})
    chosen = str(values.get(f"{table}.name", present if isinstance(present, str) else present.get("name", "")))
    if table == "strategy":
        return parameter in parameters_of(find(chosen))
    kinds = {str(kind.name): kind for kind in _BY_NAME[table]}  # type: ignore[attr-defined]  # each has a name
    return chosen in kinds and parameter in {each.name for each in fields(kinds[chosen])}


def _flatten(table: Mapping[str, Any], prefix: str, into: dict[str, Any]) -> None:
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and not set(value) & {"low", "high"}:
            _flatten(value, f"{key}.", into)
        elif isinstance(value, Mapping):
            into[key] = _range(key, value)
        elif isinstance(value, list | tuple) and value and all(isinstance(each, Value) for each in value):
            into[key] = list(value)
        else:
            msg = f"the space: {key} needs a list of values, or a table with low and high"
            raise ConfigError(msg)


def _range(key: str, value: Mapping[str, Any]) -> dict[str, Any]:
    for name in value:
        if name not in _RANGE:
            hint = did_you_mean(name, _RANGE) or f"there are {', '.join(sorted(_RANGE))}"
            msg = f"the space: {key} has an unknown key {name!r}; {hint}"
            raise ConfigError(msg)
    numbers = [value.get("low"), value.get("high"), value.get("step", 1)]
    fits = all(type(number) in {int, float} for number in numbers) and value["low"] <= value["high"]
    if not fits or not isinstance(value.get("log", False), bool):
        msg = f"the space: {key} needs numbers low and high, low at most high; and log = true, or a step"
        raise ConfigError(msg)
    if value.get("log") and (value["low"] <= 0 or "step" in value):
        msg = f"the space: {key} with log = true needs low above 0, and no step"
        raise ConfigError(msg)
    return {name: part for name, part in value.items() if name != "log" or part}
