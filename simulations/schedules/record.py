"""The server's record of a run in memory, in place of its database: every write is whole, or was never made."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from simulations.schedules.disk import Disk


class MemoryRecord:
    """A `strategies.run_record.RunRecord`. The server may be killed before each write, and once it is on disk."""

    place = "memory"

    def __init__(self, disk: Disk) -> None:
        self.disk, self.scratch = disk, disk.folder
        self._state: bytes | None = None
        self._sums: dict[int, bytes] = {}
        self._pending: list[Callable[[], object]] | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write what is written within this context at its end."""
        if self._pending is not None:
            yield
            return
        changes = self._pending = list["Callable[[], object]"]()
        try:
            yield
        finally:
            self._pending = None
        self._commit(changes)

    def _write(self, change: Callable[[], object]) -> None:
        if self._pending is None:
            self._commit([change])
        else:
            self._pending.append(change)

    def _commit(self, changes: Sequence[Callable[[], object]]) -> None:
        self.disk.operate()
        for change in changes:
            change()
        self.disk.operate()

    def state(self) -> bytes | None:
        """Return the run's state."""
        return self._state

    def write_state(self, state: bytes, released: int) -> None:
        """Replace the run's state."""
        del released

        def change() -> None:
            self._state = state

        self._write(change)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write no event down, though the server may be killed here, too."""
        del entry
        self._write(lambda: None)

    def write_sum(self, number: int, parts: Sequence[bytes | memoryview]) -> None:
        """Keep the sum of a round."""
        whole = b"".join(parts)
        self._write(lambda: self._sums.__setitem__(number, whole))

    def read_sum(self, number: int) -> bytes:
        """Return the sum of a round."""
        return self._sums[number]

    def has_sum(self, number: int) -> bool:
        """Whether a round's sum is kept."""
        return number in self._sums

    def remove_sum(self, number: int) -> None:
        """Forget a round's sum."""
        self._write(lambda: self._sums.pop(number, None))

    @property
    def holds_sums(self) -> bool:
        """Whether any round's sum is kept."""
        return bool(self._sums)

    def check_room(self, size: int) -> None:
        """Find enough."""


class MemoryStore:
    """As much of `server.store.store.Store` as serves one run."""

    def __init__(self, disk: Disk) -> None:
        self.kept, self.behind = MemoryRecord(disk), list[str]()

    def record(self, run: str) -> MemoryRecord:
        """Return the run's record."""
        del run
        return self.kept

    def mark(self, run: str, status: str, reason: str = "") -> None:
        """Note nothing: the schedule sees how the run ends."""

    def mark_behind(self, run: str, sites: Sequence[str]) -> None:
        """Note who lacks the last model."""
        del run
        self.behind = list(sites)
