"""The seam: what a run does with a site's records. Each kind of run is one class in one file, listed in `works`.

    training     `client.work.training`     DP-SGD, from the round's model on
    statistics   `client.work.survey`       a survey's records added up, once
    evaluation   `client.work.evaluation`   what a model makes of the records held out, added up, once

What settings, codec and ledger need to know of a kind of run stands in `privacy.run.settings`, as a `RunKind`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from privacy.codec.update import Layout, Model, Update
    from privacy.noise.randomness import Randomness
    from privacy.run.manifest import Manifest
    from privacy.run.settings import RunSettings


class Work(Protocol):
    """What runs of one kind do with a site's records, for one task or survey."""

    def count(self) -> int:
        """Return how many records there are for it, each of which it can use.

        Raises:
            DataError: if one cannot be used.
            TaskError: if the task is refused for good.
        """
        ...

    def layout(self, settings: RunSettings) -> Layout:
        """Names and shapes of the numbers that updates are of."""
        ...

    def start(self, settings: RunSettings) -> Model:
        """Return the model that a run starts from.

        Raises:
            RefusedError: if the site does not have it.
        """
        ...

    def check_records(self, settings: RunSettings) -> None:
        """Check, before anything is charged, that a run can use this site's records; each of them once a process.

        Raises:
            DataError: if a record cannot be used, or none is left.
            TaskError: if the task is refused for good, or has not what the run asks for.
        """

    def check_memory(self, manifest: Manifest) -> None:
        """Check, once a process, that a round fits in this site's memory.

        Raises:
            RefusedError: if it does not.
            TaskError: if there is no way to compute it.
        """

    def files(self, settings: RunSettings, layout: Layout) -> dict[Path, int]:
        """Return what a round writes beside its update and its model: bytes in each folder."""
        ...

    def release(self, manifest: Manifest, model: Model, randomness: Randomness) -> Update:
        """Make a round's update from the site's records and this model: `(layout.size,)`.

        To be called once the ledger has the charge: `manifest.round_cost`.
        """
        ...

    def opened(self, manifest: Manifest, run: str, model: Model, contributors: Collection[str]) -> None:
        """Take note of what a round's sum led to. It may come again, if the model could not be kept."""

    def measure(self, settings: RunSettings, model: Model) -> tuple[int, dict[str, float]]:
        """Return over how many held-out records, and means of what tells this site how good a round's model is."""
        ...
