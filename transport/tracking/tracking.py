"""Report runs as `[report]` says, from a thread of its own: a run neither waits for it nor fails with it."""

from __future__ import annotations

import logging
import math
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING

from privacy.errors import ConfigError
from privacy.failures import raised
from transport.tracking.tracker import Tracker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from transport.tracking.settings import Report

log = logging.getLogger("cloister.report")

_MOST = 1000  # reports that wait; further ones are dropped
_SECONDS = 15.0  # for what waits at the end
_POLL = 0.2


class Tracking:
    """Reports to every tracker of the settings; without settings, to none."""

    def __init__(self, settings: Report | None, folder: Path, named: str = "[report]") -> None:
        """Load what the settings need.

        Args:
            settings: `[report]`.
            folder: to which the path of the event files is relative.
            named: where they are from, for messages.

        Raises:
            ConfigError: if a package is not installed.
        """
        self._named = named
        self._trackers = _trackers(settings, folder, named) if settings else []
        self._waiting = Queue[tuple[str, "Callable[[Tracker], None]"]](_MOST)
        self._failed = set[tuple[Tracker, str]]()
        self._ended = Event()
        self._thread = Thread(target=self._work, name="report", daemon=True)
        if self._trackers:
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin(self, run: str, name: str, settings: Mapping[str, object]) -> None:
        """Report that a run goes on."""
        texts = {key: str(value) for key, value in settings.items()}
        self._put("begin", lambda tracker: tracker.begin(run, name, texts))

    def log(self, run: str, name: str, step: int, values: Mapping[str, float | None]) -> None:
        """Report what a round measured; leave out what is no number."""
        numbers = {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}
        self._put("log", lambda tracker: tracker.log(run, name, step, numbers))

    def end(self, run: str, *, well: bool) -> None:
        """Report that a run has ended."""
        self._put("end", lambda tracker: tracker.end(run, well=well))

    def close(self) -> None:
        """Write what waits, for some seconds at most."""
        self._put("close", lambda tracker: tracker.close())
        self._ended.set()
        if self._trackers:
            self._thread.join(_SECONDS)

    def _put(self, what: str, report: Callable[[Tracker], None]) -> None:
        if not self._trackers:
            return
        try:
            self._waiting.put_nowait((what, report))
        except Full:
            log.warning("a report of a run is dropped: %d others wait", _MOST)

    def _work(self) -> None:
        while True:
            try:
                what, report = self._waiting.get(timeout=_POLL)
            except Empty:
                if self._ended.is_set():
                    return
                continue
            for tracker in self._trackers:
                self._try(tracker, what, report)

    def _try(self, tracker: Tracker, what: str, report: Callable[[Tracker], None]) -> None:
        """Report; whatever goes wrong is logged once for each kind of report, and the run goes on."""
        try:
            report(tracker)
        except Exception as error:  # whatever a library raises  # noqa: BLE001
            if (tracker, what) not in self._failed:
                log.warning(
                    "%s cannot be written to, and the run goes on without: %s; check %s",
                    type(tracker).__name__, raised(error), self._named,
                )  # fmt: skip
            self._failed.add((tracker, what))
        else:
            self._failed.discard((tracker, what))


def _trackers(settings: Report, folder: Path, named: str) -> list[Tracker]:
    trackers = list["Tracker"]()
    try:
        if settings.tensorboard is not None:
            from transport.tracking.event_files import EventFiles  # noqa: PLC0415 - only who reports needs it

            trackers.append(EventFiles(folder / settings.tensorboard))
        if settings.mlflow is not None:
            from transport.tracking.mlflow_runs import MlflowRuns  # noqa: PLC0415

            trackers.append(MlflowRuns(settings.mlflow, settings.experiment))
    except ImportError as error:
        msg = f"{named} needs packages that are not installed; install them: pip install 'cloister[tracking]'"
        raise ConfigError(msg) from error
    return trackers
