"""Write TensorBoard's event files with its own writer, which needs neither torch nor TensorFlow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] - generated
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] - generated
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from typing_extensions import override

from transport.tracking.tracker import Tracker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class EventFiles(Tracker):
    """One folder of event files for each run; after a restart, another file in the same folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers = dict[str, EventFileWriter]()

    @override
    def begin(self, run: str, name: str, settings: Mapping[str, str]) -> None:
        self._writer(run, name)

    @override
    def log(self, run: str, name: str, step: int, values: Mapping[str, float]) -> None:
        writer = self._writer(run, name)
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
        writer.flush()

    @override
    def end(self, run: str, *, well: bool) -> None:
        if writer := self._writers.pop(run, None):
            writer.close()

    @override
    def close(self) -> None:
        for run in list(self._writers):
            self.end(run, well=True)

    def _writer(self, run: str, name: str) -> EventFileWriter:
        if run not in self._writers:
            self._writers[run] = EventFileWriter(str(self._folder / f"{name}-{run[:8]}"))
        return self._writers[run]
