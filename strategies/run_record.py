"""What a run keeps durably at the server, and nothing about where: `server.store` keeps it in a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path


class RunRecord(Protocol):
    """The record of one run. Whatever a method has written is on disk when it returns.

    Every method raises a `StorageError` if the record cannot be read or written; then nothing has changed.
    """

    @property
    def place(self) -> str:
        """Where the record is, for messages."""
        ...

    @property
    def scratch(self) -> Path:
        """A folder for temporary files that need not survive this process."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """Write what is written within this context as one: all of it, at its end, or nothing. Reads see none of it."""
        ...

    def state(self) -> bytes | None:
        """Return the run's state, as last written; None if the run was never begun."""
        ...

    def write_state(self, state: bytes, released: int) -> None:
        """Replace the run's state, and note how many rounds released a sum."""

    def append(self, entry: Mapping[str, Any]) -> None:
        """Append an event, which JSON can hold."""

    def write_sum(self, number: int, parts: Sequence[bytes | memoryview]) -> None:
        """Keep the sum of a round, in place of an earlier one of that round."""

    def read_sum(self, number: int) -> bytes | bytearray:
        """Return the sum of a round, which must have been written."""
        ...

    def has_sum(self, number: int) -> bool:
        """Whether a round's sum is kept."""
        ...

    def remove_sum(self, number: int) -> None:
        """Forget a round's sum, if one is kept."""

    @property
    def holds_sums(self) -> bool:
        """Whether any round's sum is kept."""
        ...

    def check_room(self, size: int) -> None:
        """Check that there is room for `size` more bytes of sums and temporary files."""
