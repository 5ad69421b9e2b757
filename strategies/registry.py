"""Find the algorithm that a run's `strategy` names: built in, from an installed package, or `module:Class`.

An algorithm of another package is found by the name of an entry point in the group `cloister.strategies`, or by
`module:Class`. Its code runs at every site, so a site imports it only after its policy has allowed the name.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from privacy.config import did_you_mean
from privacy.errors import ConfigError, PolicyError, RefusedError
from privacy.failures import raised
from strategies import algorithms
from strategies.algorithm import Algorithm, Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from privacy.run.manifest import Manifest
    from privacy.run.policy import Policy
    from privacy.run.settings import RunSettings
    from privacy.run.strategy import Parameter

GROUP = "cloister.strategies"
"""The entry-point group in which packages offer algorithms."""

_NOT_PARAMETERS = frozenset({"name", "version"})


@cache
def shipped() -> tuple[str, ...]:
    """Return the names of the built-in algorithms: the files in `strategies/algorithms/`."""
    return tuple(module.name for module in pkgutil.iter_modules(algorithms.__path__))


def completed(settings: RunSettings) -> RunSettings:
    """Return a run's settings with its strategy's version and all parameters filled in, ready to sign.

    Raises:
        ConfigError: if the strategy does not exist, a parameter is unknown or wrong, or it does not suit the run.
    """
    strategy = settings.strategy
    algorithm = _make(strategy)
    if strategy.get("version", algorithm.version) != algorithm.version:
        raise ConfigError(_of_version(strategy, algorithm))
    if problem := _unsuitable(settings, algorithm):
        raise ConfigError(problem)
    values = asdict(algorithm)  # type: ignore[call-overload]  # `find` has checked that it is a dataclass
    try:
        return replace(settings, strategy={"name": strategy["name"], "version": algorithm.version, **values})
    except ValidationError as error:
        msg = f"the strategy {strategy['name']} has parameters that cannot be signed: {error.errors()[0]['msg']}"
        raise ConfigError(msg) from error


def check_strategy(policy: Policy, settings: RunSettings, site: str) -> None:
    """Check the strategy of a training run against a site's policy. Nothing is imported.

    Raises:
        PolicyError: if the policy does not allow it.
    """
    name, allowed = str(settings.strategy["name"]), policy.strategies
    if settings.training is None or name in (shipped() if allowed is None else allowed):
        return
    if allowed is None:
        near = f"; {hint}" if (hint := did_you_mean(name, shipped())) else ""
        limit = f"allows only those that ship, {', '.join(shipped())}{near}"
    else:
        limit = "says strategies = [" + ", ".join(f'"{method}"' for method in allowed) + "]"
    text = (
        f"{site} does not allow the strategy {name}: its policy {limit}; change the run, or let the site change its "
        "policy"
    )
    raise PolicyError(text, rule="strategies")


def algorithm_of(manifest: Manifest, site: str) -> Algorithm:
    """Return a run's algorithm with its parameters. The site's policy must have allowed it.

    Raises:
        RefusedError: if the site lacks it or has another version, or it does not suit the run.
    """
    settings, strategy = manifest.settings, manifest.settings.strategy
    try:
        algorithm = _make(strategy)
    except ConfigError as error:
        msg = f"{site} cannot take part: {error}"
        raise RefusedError(msg) from error
    if strategy.get("version") != algorithm.version:
        msg = f"{site} cannot take part: {_of_version(strategy, algorithm)}"
        raise RefusedError(msg)
    if problem := _unsuitable(settings, algorithm):
        msg = f"{site} cannot take part: {problem}"
        raise RefusedError(msg)
    return algorithm


def parameters_of(kind: type[Algorithm]) -> tuple[str, ...]:
    """Return the names of an algorithm's parameters."""
    return tuple(field.name for field in fields(kind))  # type: ignore[arg-type]  # `find` accepts only dataclasses


@cache
def find(name: str) -> type[Algorithm]:
    """Import an algorithm's class.

    Raises:
        ConfigError: if there is no class of this name, or it is not an algorithm.
    """
    if name in shipped():
        return _class_of(f"{algorithms.__name__}.{name}", name)
    if ":" in name:
        module, _, attribute = name.partition(":")
        return _imported(name, module, attribute)
    offered = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name in offered:
        return _imported(name, offered[name].module, offered[name].attr)
    known = sorted({*shipped(), *offered})
    hint = did_you_mean(name, known) or f"choose one of {', '.join(known)}"
    msg = f"there is no strategy {name!r} here; {hint} (or install the package that provides it)"
    raise ConfigError(msg)


def _class_of(module: str, name: str) -> type[Algorithm]:
    members = vars(importlib.import_module(module)).items()
    return next(member for key, member in members if key.lower() == name)  # type: ignore[no-any-return]  # found by name


def _imported(name: str, module: str, attribute: str) -> type[Algorithm]:
    try:
        imported: Any = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        msg = f"the strategy {name} cannot be imported here: there is no module {error.name!r}; install its package"
        raise ConfigError(msg) from error
    except Exception as error:
        msg = f"the strategy {name} cannot be imported here: {module} raises {raised(error, module)}; correct it there"
        raise ConfigError(msg) from error
    methods = ("check", "initial", "local", "keep", "apply")
    if not (isinstance(imported, type) and is_dataclass(imported)) or not all(
        hasattr(imported, method) for method in methods
    ):
        msg = f"the strategy {name} is not an algorithm; derive a dataclass from cloister.Algorithm"
        raise ConfigError(msg)
    return imported  # type: ignore[return-value]  # methods are checked by name, not by type


def _make(strategy: Mapping[str, Parameter]) -> Algorithm:
    name = str(strategy["name"])
    kind = find(name)
    parameters = {key: value for key, value in strategy.items() if key not in _NOT_PARAMETERS}
    known = parameters_of(kind)
    for key in parameters:
        if key not in known:
            raise ConfigError(_no_parameter(name, key, known))
    try:
        return _adapter(kind).validate_json(json.dumps(parameters))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        msg = (
            f"the strategy {name} does not accept {where} = {first['input']!r}: {first['msg']}; change it in [strategy]"
        )
        raise ConfigError(msg) from error


@cache
def _adapter(kind: type[Algorithm]) -> TypeAdapter[Algorithm]:
    return TypeAdapter(kind)


def _no_parameter(name: str, key: str, known: Iterable[str]) -> str:
    hint = did_you_mean(key, known) or f"it has {', '.join(known) or 'none'}; remove it"
    return f"the strategy {name} has no parameter {key!r}; {hint}"


def _of_version(strategy: Mapping[str, Parameter], algorithm: Algorithm) -> str:
    return (
        f"the run uses version {strategy.get('version')} of the strategy {strategy['name']}, but version "
        f"{algorithm.version} is installed here; install the same version everywhere, or sign the run again"
    )


def _unsuitable(settings: RunSettings, algorithm: Algorithm) -> str | None:
    """Return why an algorithm cannot be used for a run; None if it can."""
    name, kind = settings.strategy["name"], type(algorithm)
    if settings.shares_noise and kind.local is not Algorithm.local:
        # The update that `local` gets, and that `own` is computed from, must have its own noise.
        return (
            f'with noise = "shared" an update has no noise of its own, but {name} needs it; use fedavg or local noise'
        )
    if settings.vote and kind.own:
        return f"{name} keeps vectors at the sites, which a vote cannot undo; remove [vote], or use another strategy"
    problem = algorithm.check(Run.of(settings))
    return problem and f"{name}: {problem}"
