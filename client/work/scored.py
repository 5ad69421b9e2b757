"""Collect the scores of held-out records, and compute the metrics that a task names from them, for this site alone."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from client.task.scoring import as_numbers
from privacy.analytics.exact import exact
from privacy.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from client.task.task import Task
    from privacy.analytics.scores import Prediction

log = logging.getLogger("cloister.agent")


class Scores:
    """The scores and labels of a task's records, as they are measured batch by batch."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._parts: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch, if the task names metrics."""
        if self._task.named_metrics:
            self._parts.append(as_numbers(self._task, outputs, targets))

    def beside(
        self, measure: Callable[[Tensor, Tensor], dict[str, float]]
    ) -> Callable[[Tensor, Tensor], dict[str, float]]:
        """Return a function that measures a batch and adds its scores."""

        def both(outputs: Tensor, targets: Tensor) -> dict[str, float]:
            self.add(outputs, targets)
            return measure(outputs, targets)

        return both

    def joined(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return all scores and labels; there is at least one batch."""
        scores, labels = zip(*self._parts, strict=True)
        return np.concatenate(scores), np.concatenate(labels)

    def figures(self, prediction: Prediction) -> dict[str, dict[str, Any]]:
        """Return the exact figures of the metrics that the task names; nothing without records.

        Raises:
            DataError: if a score is not a finite number.
        """
        return exact(prediction, tuple(self._task.named_metrics), *self.joined()) if self._parts else {}

    def numbers(self, prediction: Prediction) -> dict[str, float]:
        """Return the metrics that are one number, NaN where undefined; warn if a score is not a finite number."""
        try:
            figures = self.figures(prediction)
        except DataError as error:
            log.warning("%s", error)
            return {}
        return {
            name: math.nan if figure["value"] is None else figure["value"]
            for name, figure in figures.items()
            if "value" in figure
        }
