"""A vector for each of many sites, in memory, or in a temporary file if they are large: memory then stays flat."""

from __future__ import annotations

import itertools
import os
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

Number = TypeVar("Number", np.float32, np.float64)
_IN_MEMORY = 128 << 20  # bytes
_AT_ONCE = 32 << 20  # bytes of the parts in which all vectors are read


class KeptVectors(Generic[Number]):
    """Vectors of `size` numbers, zero at first; one for each of `sites` sites, numbered from 0."""

    def __init__(self, sites: int, size: int, number: type[Number]) -> None:
        self._shape = sites, size
        self._number: np.dtype[Any] = np.dtype(number)
        self._width: int = size * self._number.itemsize
        self._file: IO[bytes] | None = None
        self._rows: NDArray[Any] | None = None
        if sites * self._width <= _IN_MEMORY:
            self._rows = np.zeros(self._shape, self._number)
        else:
            self._file = TemporaryFile(prefix="cloister-")  # noqa: SIM115 - closed by `close`, or with this object
            self._file.truncate(sites * self._width)

    def read(self, sites: NDArray[np.intp], into: NDArray[Number] | None = None) -> NDArray[Number]:
        """Return a copy of the vectors of these sites, `(len(sites), size)`, in memory that is given or new."""
        rows: NDArray[Any] = np.empty((len(sites), self._shape[1]), self._number) if into is None else into
        if self._rows is not None:
            return np.take(self._rows, sites, 0, out=rows, mode="clip")  # "raise" would copy once more
        for place, first, count in self._runs(sites):
            os.preadv(self._descriptor, [rows[place : place + count].data.cast("B")], first * self._width)
        return rows

    def write(self, sites: NDArray[np.intp], rows: NDArray[Number]) -> None:
        """Replace the vectors of these sites by `(len(sites), size)`."""
        if self._rows is not None:
            self._rows[sites] = rows
            return
        for place, first, count in self._runs(sites):
            os.pwrite(self._descriptor, rows[place : place + count].data.cast("B"), first * self._width)

    def parts(self) -> Iterator[NDArray[Number]]:
        """Yield copies of all vectors, some at a time, in order."""
        several = max(1, _AT_ONCE // self._width)
        for start in range(0, self._shape[0], several):
            yield self.read(np.arange(start, min(start + several, self._shape[0])))

    def restore(self, parts: Iterable[NDArray[Number]]) -> None:
        """Write all vectors, as `parts` yielded them.

        Raises:
            ValueError: if there are more or fewer, or of another size.
        """
        start = 0
        for rows in parts:
            end = start + len(rows)
            if end > self._shape[0] or rows.shape[1:] != self._shape[1:] or rows.dtype != self._number:
                break
            self.write(np.arange(start, end), rows)
            start = end
        if start != self._shape[0]:
            msg = f"{start} of {self._shape[0]} vectors are there"
            raise ValueError(msg)

    def close(self) -> None:
        """Remove the file, if there is one."""
        if self._file is not None:
            self._file.close()

    @property
    def _descriptor(self) -> int:
        assert self._file is not None  # noqa: S101 - otherwise they are in memory
        return self._file.fileno()

    @staticmethod
    def _runs(sites: NDArray[np.intp]) -> Iterator[tuple[int, int, int]]:
        """Yield for each run of consecutive numbers: its place in `sites`, its first number, its length."""
        cuts = [0, *(np.flatnonzero(np.diff(sites) != 1) + 1).tolist(), len(sites)]
        for start, end in itertools.pairwise(cuts):
            if end > start:
                yield start, int(sites[start]), end - start
