"""Images that a table lists: one row per record, with the file's name and the label.

    file,label
    scans/0001.png,benign
    scans/0002.png,malignant

Names are relative to the table's folder, and may not lead out of it. An image is read when it is used; a task declares
its channels, size and range of values, to which every image is brought.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from unicodedata import normalize

from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from typing_extensions import override

from client.data.sources.chunks import Chunk, Problem
from client.data.sources.table_tensors import Declared, Findings, TableRecords, read_tensors
from client.data.sources.text_tables import TextTable
from privacy.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from client.data.decoded import Decoded
    from client.data.sources.options import ListedOptions

FILE = "file"
"""The column with the images' names."""

_LONGEST = 1000  # characters of a name
_FLAT = 2  # dimensions of an image; a volume has three


@dataclass(frozen=True)
class ImageForm:
    """What a task declares of its images."""

    channels: int
    size: tuple[int, ...]  # height and width; of a volume depth, height and width
    values: tuple[float, float]  # clipped to these, which are mapped to -1 … 1
    modality: str | None = None  # of DICOM, such as "CT"

    def finish(self, image: Tensor) -> Tensor:
        """Clip, scale and resize an image `(channels, …)` to `(channels, *size)`, float32; NaN counts as the lowest."""
        low, high = self.values
        image = image.float().nan_to_num(nan=low, posinf=high, neginf=low).clamp(low, high)
        image = 2 * (image - low) / (high - low) - 1
        if image.shape[1:] == self.size:
            return image
        flat = len(self.size) == _FLAT
        mode = "bilinear" if flat else "trilinear"
        resized = functional.interpolate(image[None], self.size, mode=mode, align_corners=False, antialias=flat)
        return resized[0].clamp(-1, 1)


class UnusableError(Exception):
    """An image cannot be used; the message says why, and what to do, without a value of it."""


class ImageReader(ABC):
    """Reads one kind of image."""

    dimensions: frozenset[int]  # of the sizes that it can read
    folders = False  # whether a record may be a folder of files

    def __init__(self, form: ImageForm, most: float) -> None:
        self.form, self.most = form, most * 1e6  # pixels

    @abstractmethod
    def read(self, path: Path) -> Tensor:
        """Read an image as `(channels, …)`, with its values as measured.

        Raises:
            UnusableError: if it cannot be used.
            Exception: whatever its library raises, if the file is damaged.
        """

    def check_size(self, pixels: int) -> None:
        """Check an image's size before its pixels are read.

        Raises:
            UnusableError: if it is too large.
        """
        if pixels > self.most:
            msg = f"larger than {self.most / 1e6:g} megapixels; shrink it, or raise most_megapixels in [data.source]"
            raise UnusableError(msg)

    def check_channels(self, channels: int) -> None:
        """Check the number of channels.

        Raises:
            UnusableError: if it is not the task's.
        """
        if channels != self.form.channels:
            msg = f"{channels} channels where the task declares {self.form.channels}; convert the image"
            raise UnusableError(msg)


class ImageRecords(Dataset[tuple[Tensor, Tensor]]):
    """Records that are read when they are used: image `(channels, *size)`, float32, and label.

    Attributes:
        table: the table that lists them.
        targets: the labels of all records, `(n, …)`.
        persons: whom they are about, if the task names a column for it.
        cache: of decoded images; None: each is decoded whenever it is read.
    """

    def __init__(
        self,
        table: ListedTable,
        labels: TableRecords,
        reader: ImageReader,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.table, self.targets, self.persons = table, labels.targets, labels.persons
        self.cache: Decoded | None = None
        self._reader, self._transform = reader, transform

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def form(self) -> ImageForm:
        """What every image is brought to."""
        return self._reader.form

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        item = self.try_read(index)
        if isinstance(item, Problem):
            raise DataError(item.sentence(self.table.path, self.table.row))
        return item

    def try_read(self, index: int) -> Problem | tuple[Tensor, Tensor]:
        """Read a record, or say what is wrong with it."""
        row, path = self.table.file_of(index)
        cache, key = self.cache, ""
        try:
            if cache and (kept := cache.get(key := cache.key_of(path))) is not None:
                return kept, self.targets[index]
            image = self._reader.form.finish(self._reader.read(path))
        except UnusableError as error:
            return Problem(row, self.table.named(FILE), str(error))
        except (MemoryError, DataError):
            raise
        except Exception:  # noqa: BLE001 - whatever a decoder raises for a damaged file; its text may quote it
            text = "the file is cut, damaged, or of another kind; copy it again, or leave it out"
            return Problem(row, self.table.named(FILE), text)
        if self._transform is not None:
            image = self._transform(image)
        if cache and isinstance(image, Tensor):
            cache.put(key, path, image)
        return image, self.targets[index]


class ListedTable(TextTable):
    """The table that lists images; remembers the files of usable rows."""

    what = f"the table that lists the images, one per line, with a column `{FILE}` and the labels,"

    def __init__(self, path: Path, options: ListedOptions, *, folders: bool) -> None:
        super().__init__(path, options)
        self._files: list[tuple[int, str]] = []  # a path takes ten times the memory of its text
        self._folders, self._folder = folders, path.parent.resolve()
        self._paths = dict[int, str]()
        self._first: dict[str, int] | None = None  # the row that lists a file, if no other row may
        self._alike = dict[Path, dict[str, str]]()  # names in a folder, for messages

    def file_of(self, index: int) -> tuple[int, Path]:
        """Return the row and the file of a usable record, once the labels are read."""
        row, path = self._files[index]
        return row, Path(path)

    def labels(
        self, declared: Declared, findings: Findings, progress: Callable[[int], None] = lambda _: None
    ) -> TableRecords:
        """Read the labels of all records whose row and file name can be used; `findings` has the others.

        Raises:
            DataError: if the table cannot be read.
        """
        self._first = None if declared.person else {}
        records = read_tensors(self, declared, findings, progress)
        self._first = None
        self._files = [(row, self._paths[row]) for row in records.rows]
        self._paths.clear()
        self._alike.clear()
        return records

    @override
    def chunks(self, wanted: Mapping[str, str | None]) -> Iterator[Chunk]:
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.fail(
                "this folder is empty", "put the images into it, with the table that lists them, and name the table"
            )
        for chunk in super().chunks({FILE: None, **wanted}):
            problems, usable = list(chunk.problems), list[bool]()
            for row, name in zip(chunk.rows, chunk.columns[FILE].to_pylist(), strict=True):
                try:
                    self._paths[row] = self._only(row, str(self._find(name.strip())))
                except UnusableError as error:
                    problems.append(Problem(row, self.named(FILE), str(error)))
                usable.append(row in self._paths)
            columns = {name: chunk.columns[name].filter(usable) for name in wanted}
            rows = [row for row in chunk.rows if row in self._paths]
            yield Chunk(columns, rows, problems)

    def _only(self, row: int, file: str) -> str:
        """Return a row's file.

        Raises:
            UnusableError: if another row lists it, and nothing says whom rows are about: one person would count twice.
        """
        if self._first is not None and (first := self._first.setdefault(file, row)) != row:
            msg = f"the file of {self.row} {first} again; leave one out, or have the task name a column for persons"
            raise UnusableError(msg)
        return file

    def _names(self, folder: Path) -> dict[str, str]:
        """Return the names in a folder, by what those alike have in common; none if it leads out of the table's own."""
        if folder not in self._alike:
            self._alike[folder] = {}
            with suppress(OSError, RuntimeError):
                if folder.resolve().is_relative_to(self._folder):
                    self._alike[folder] = {_alike(path.name): path.name for path in folder.iterdir()}
        return self._alike[folder]

    def _find(self, name: str) -> Path:
        """Return the file that a cell names.

        Raises:
            UnusableError: if there is none, or it is outside the table's folder.
        """
        pure = PurePosixPath(name.replace("\\", "/"))  # as Windows writes it
        if not name or len(name) > _LONGEST:
            msg = "no file name, or a very long one; correct it, or leave the record out"
            raise UnusableError(msg)
        if pure.is_absolute() or ".." in pure.parts or "\0" in name:
            msg = "leads out of this table's folder; name files in it, such as scans/1.png"
            raise UnusableError(msg)
        try:
            path = (self._folder / pure).resolve(strict=True)
        except (OSError, RuntimeError) as error:
            msg = "there is no such file; copy it here, or leave the record out"
            if self._names(self._folder / pure.parent).get(_alike(pure.name), pure.name) != pure.name:
                msg = "there is no such file, but one whose name has other capitals or accents; write its name as it is"
            raise UnusableError(msg) from error
        if not path.is_relative_to(self._folder):
            msg = "a link out of this table's folder; copy the file itself here"
            raise UnusableError(msg)
        if not (path.is_file() or (self._folders and path.is_dir())):
            msg = "not a file; name one, or leave the record out"
            raise UnusableError(msg)
        return path


def _alike(name: str) -> str:
    """Return what names have in common that differ in capitals, or in whether an accent is a character of its own."""
    return normalize("NFC", name).casefold()
