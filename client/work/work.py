"""The interface for what a run does with a site's records. Each kind of run is one class in one file; see `works`.

    training     `client.work.training`     DP-SGD, starting from the round's model
    statistics   `client.work.survey`       the sum of a survey's records, once
    evaluation   `client.work.evaluation`   the sum of a model's metrics on held-out records, once

What settings, codec and ledger need to know about a kind of run is in `privacy.run.settings`, as a `RunKind`.
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
        """Return the number of records that it uses, having checked that it can use each of them.

        Raises:
            DataError: if a record cannot be used.
            TaskError: if the task is refused permanently.
        """
        ...

    def layout(self, settings: RunSettings) -> Layout:
        """Return the names and shapes of an update's numbers."""
        ...

    def start(self, settings: RunSettings) -> Model:
        """Return the model from which a run starts.

        Raises:
            RefusedError: if the site lacks it.
        """
        ...

    def check_records(self, settings: RunSettings) -> None:
        """Check, before anything is charged and once per process, that a run can use each of this site's records.

        Raises:
            DataError: if a record cannot be used, or none is left.
            TaskError: if the task is refused permanently, or lacks what the run asks for.
        """

    def check_memory(self, manifest: Manifest) -> None:
        """Check, once per process, that a round fits in this site's memory.

        Raises:
            RefusedError: if it does not.
            TaskError: if the round cannot be computed.
        """

    def files(self, settings: RunSettings, layout: Layout) -> dict[Path, int]:
        """Return how many bytes a round writes into each folder, besides its update and its model."""
        ...

    def release(self, manifest: Manifest, number: int, model: Model, randomness: Randomness) -> Update:
        """Make a round's update from the site's records and this model: `(layout.size,)`.

        Call it once the ledger has the charge: `manifest.round_cost`. Rounds have numbers from 1.
        """
        ...

    def opened(self, manifest: Manifest, run: str, model: Model, contributors: Collection[str]) -> None:
        """Record the result of a round's sum. It may be called again, if the model could not be kept."""

    def measure(self, settings: RunSettings, model: Model) -> tuple[int, dict[str, float]]:
        """Return the number of held-out records used, and means that tell this site how good a round's model is."""
        ...
