"""Tables in Parquet files: one file, or a folder of them in the order of their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import parquet
from typing_extensions import override

from client.data.sources.chunks import Chunk, Table
from privacy.failures import reason
from privacy.storage import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_ROWS = 1 << 16  # at a time
_MOST = 1 << 32  # bytes of the wanted columns in a row group, uncompressed


class ParquetTable(Table):
    """A Parquet file or a folder of them; rows count on from file to file."""

    @override
    def chunks(self, wanted: Mapping[str, str | None]) -> Iterator[Chunk]:
        start = 1
        for path in self._paths():
            try:
                with open_file(path) as file:
                    if not path.stat().st_size:
                        self.fail(
                            "a file is empty" if self.path.is_dir() else "the file is empty",
                            "name a whole Parquet file",
                        )
                    reader = parquet.ParquetFile(file)
                    names = list(reader.schema_arrow.names)
                    places = self.places(wanted, names)
                    self._check_size(reader, places)
                    # By name: a column that is a structure fails as one.
                    needed = sorted({names[place] for place in places.values()})
                    for batch in reader.iter_batches(_ROWS, columns=needed):
                        columns = {name: batch.column(names[place]) for name, place in places.items()}
                        yield Chunk(columns, range(start, start + len(batch)))
                        start += len(batch)
            except OSError as error:  # PyArrow's, too, for damaged pages
                text = reason(error) if error.filename else "a file is damaged"
                self.fail(text, "name a whole Parquet file that this account can read")
            except pa.ArrowException:
                problem = f"the file of row {start} is not a whole Parquet file, or is encrypted"
                self.fail(problem, "write it again, as plain Parquet")

    def _paths(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        paths = sorted(self.path.glob("*.parquet"))
        if deeper := next(self.path.glob("*/**/*.parquet"), None):
            folder = deeper.relative_to(self.path).parent
            self.fail(f"its folder {folder} has files *.parquet, too", "put all of them into this folder")
        if not paths:
            self.fail("this folder has no file *.parquet", "name another, or one file")
        return paths

    def _check_size(self, reader: Any, places: Mapping[str, int]) -> None:  # noqa: ANN401 - of PyArrow
        names = {reader.schema_arrow.names[place] for place in places.values()}
        for number in range(reader.metadata.num_row_groups):
            group = reader.metadata.row_group(number)
            parts = [group.column(at) for at in range(group.num_columns)]
            if sum(part.total_uncompressed_size for part in parts if part.path_in_schema in names) > _MOST:
                problem = f"row group {number + 1} has more than {_MOST >> 30} GiB in the wanted columns"
                self.fail(problem, "write the file with smaller row groups")
