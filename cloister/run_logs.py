"""Log a simulation's rounds as they end: to a CSV file, to JSON lines, to TensorBoard and to MLflow."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privacy.config import did_you_mean, read_mapping
from privacy.errors import ConfigError
from privacy.failures import reason
from privacy.storage import write_atomically
from transport.tracking.settings import Report
from transport.tracking.tracking import Tracking

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from simulations.study.runner import Study

KINDS = ("csv", "jsonl", "tensorboard", "mlflow")
_NOT_NUMBERS = frozenset({"round", "released", "problems"})


class RunLogs:
    """Writes to all the logs that a mapping names; a context manager, within which rounds are written.

    Files are appended to: the column `run` tells the runs apart. TensorBoard has a folder for each run, MLflow a run.
    """

    def __init__(self, given: Mapping[str, Path | str] | None) -> None:
        """Take a file for `csv` and `jsonl`, a folder for `tensorboard`, a URI for `mlflow`.

        Raises:
            ConfigError: if there is no such log, a file cannot be one, or a package is not installed.
        """
        logs: Any = given or {}
        if not isinstance(logs, Mapping):
            msg = f'log = {logs!r}; write for example log={{"csv": "rounds.csv"}}'
            raise ConfigError(msg)
        given = dict(logs)
        for kind in given:
            if kind not in KINDS:
                msg = f"log: {kind!a} is no log; {did_you_mean(str(kind), KINDS) or 'logs are ' + ', '.join(KINDS)}"
                raise ConfigError(msg)
        self._table = _Table(Path(given["csv"])) if "csv" in given else None
        self._lines = Path(given["jsonl"]) if "jsonl" in given else None
        if self._lines:
            _check_lines(self._lines)
        for path in (self._lines, self._table.path if self._table else None):
            if path is not None:
                _append(path, _missing_end(path))
        wanted: dict[str, str] = {kind: str(given[kind]) for kind in ("tensorboard", "mlflow") if kind in given}
        report = read_mapping(wanted, Report, "log") if wanted else None
        self._tracking = Tracking(report, Path(), f"the log ({', '.join(wanted)})")
        self._run = self._name = ""

    def begin(self, run: str, name: str, settings: Mapping[str, object]) -> None:
        """Begin to log a run, given its identity, its name and its settings."""
        self._run, self._name = run, name
        self._tracking.begin(run, name, settings)

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Log a round's row.

        Raises:
            ConfigError: if a file cannot be written.
        """
        entry = {"run": self._run, **row}
        if self._table:
            self._table.add(entry)
        if self._lines:
            finite = {key: None if isinstance(value, float) and not math.isfinite(value) else value
                      for key, value in entry.items()}  # fmt: skip
            _append(self._lines, json.dumps(finite) + "\n")
        numbers = {key: value for key, value in row.items() if key not in _NOT_NUMBERS}
        self._tracking.log(self._run, self._name, row["round"], numbers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        if self._run:
            self._tracking.end(self._run, well=error is None)
        self._tracking.close()


class _Table:
    """A CSV file; its header grows when a row has a value of a new name."""

    def __init__(self, path: Path) -> None:
        self.path, self._names = path, list[str]()
        try:
            rows = list(csv.reader(StringIO(_text(path)), strict=True))
        except csv.Error as error:
            raise _other(path) from error
        if rows:
            self._names = rows[0]
            if self._names[:2] != ["run", "round"]:
                raise _other(path)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add a row."""
        if not set(entry) <= set(self._names):
            rows = list(csv.DictReader(StringIO(self.path.read_text(encoding="utf-8"))))
            self._names += [name for name in entry if name not in self._names]
            write_atomically(self.path, (_csv(self._names, {name: name for name in self._names})
                             + "".join(_csv(self._names, row) for row in rows)).encode())  # fmt: skip
        _append(self.path, _csv(self._names, entry))


def _check_lines(path: Path) -> None:
    """Check that JSON lines, if there are any, are of rounds.

    Raises:
        ConfigError: if they are of anything else.
    """
    first = _text(path).partition("\n")[0]
    try:
        known = not first or {"run", "round"} <= set(json.loads(first))
    except (ValueError, TypeError):
        known = False
    if not known:
        raise _other(path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: this is no log to go on with ({error}); name another file"
        raise ConfigError(msg) from error


def _other(path: Path) -> ConfigError:
    return ConfigError(f"{path}: this file is no log of rounds, so nothing is added to it; name another file")


def _missing_end(path: Path) -> str:
    """Return what ends the last line of a file whose writer did not get so far."""
    text = _text(path)
    return "\n" if text and not text.endswith("\n") else ""


def _csv(names: list[str], entry: Mapping[str, Any]) -> str:
    text = StringIO()
    csv.DictWriter(text, names, lineterminator="\n").writerow(dict(entry))
    return text.getvalue()


def _append(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        msg = f"{path}: the log cannot be written ({reason(error)}); name a file in a folder that can be"
        raise ConfigError(msg) from error


def settings_of(study: Study) -> dict[str, object]:
    """Return what a log says of a study: its settings by name, without those of single sites."""
    manifest, simulation = study.manifest, study.simulation
    settings, engine = manifest.settings, study.engine.name
    found: dict[str, object] = {
        "task": settings.task, "sites": len(simulation.sites), "rounds": settings.rounds, "engine": engine,
        "partition_seed": simulation.population.seed, "noise_multiplier": manifest.noise_multiplier,
    }  # fmt: skip
    tables = {"training": vars(settings.training), "privacy": vars(settings.privacy), "strategy": settings.strategy}
    for table, values in tables.items():
        for key, value in values.items():
            if isinstance(value, int | float | str):
                found[f"{table}.{key}"] = value
    return found
