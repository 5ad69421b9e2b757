"""Report the server's runs to TensorBoard and MLflow, from their events as they are logged."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from privacy.log_fields import fields
from transport.tracking.tracking import Tracking

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from transport.tracking.settings import Report

_LOGGER = "cloister.run"
_SETTINGS = ("rounds", "minimum", "noise_multiplier", "profile")


class ReportedRuns(logging.Handler):
    """Reports the events of all runs of this process, within its context."""

    def __init__(self, settings: Report | None, folder: Path) -> None:
        """Take `[report]` and the server's folder.

        Raises:
            ConfigError: if a package is not installed.
        """
        super().__init__()
        self._tracking, self._wanted = Tracking(settings, folder), settings is not None
        self._names = dict[str, str]()  # of the runs going on

    def __enter__(self) -> Self:
        if self._wanted:
            logger = logging.getLogger(_LOGGER)
            logger.setLevel(logging.INFO)  # otherwise nobody is told of events
            logger.addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger(_LOGGER).removeHandler(self)
        self._tracking.close()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        """Report the event that a log record carries."""
        entry: dict[str, Any] | None = getattr(record, "entry", None)
        if entry is None:
            return
        run = str(entry.get("run") or fields().get("run", ""))
        if entry["event"] in {"started", "resumed"}:
            self._names[run] = entry["name"]
            self._tracking.begin(run, entry["name"], {name: entry[name] for name in _SETTINGS if name in entry})
        elif run not in self._names:
            return
        elif entry["event"] == "round":
            self._tracking.log(run, self._names[run], entry["round"], _numbers(entry))
        elif entry["event"] in {"finished", "failed", "stopped"}:
            del self._names[run]
            self._tracking.end(run, well=entry["event"] == "finished")


def _numbers(entry: dict[str, Any]) -> dict[str, float | None]:
    """Return what a round measured: metrics that sites share, ε that they report, and what it took."""
    return {
        **{f"metrics/{name}": value for name, value in entry.get("metrics", {}).items()},
        **{f"epsilon/{site}": value for site, value in entry["epsilon"].items()},
        "round/released": float(entry["released"]),
        "round/sites": len(entry["sites"]),
        "round/seconds": entry["seconds"],
        "round/bytes_up": entry["bytes_up"],
        "round/bytes_down": entry["bytes_down"],
    }
