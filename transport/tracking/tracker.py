"""What TensorBoard and MLflow have in common here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Tracker(ABC):
    """Shows runs somewhere. Only one thread calls it."""

    @abstractmethod
    def begin(self, run: str, name: str, settings: Mapping[str, str]) -> None:
        """Show a run, given its digest, its name and its settings; again after a restart."""

    @abstractmethod
    def log(self, run: str, name: str, step: int, values: Mapping[str, float]) -> None:
        """Show what a round measured."""

    @abstractmethod
    def end(self, run: str, *, well: bool) -> None:
        """Show that a run has ended; `well`, if it did not fail."""

    @abstractmethod
    def close(self) -> None:
        """Write what is not written yet."""
