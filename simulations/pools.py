"""Records for a simulation, in whatever form a researcher has them, as one pool of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from client.data.inputs import Inputs, joined, mapped, rows
from client.data.own_records import check_loaded
from client.data.site_records import InMemory
from client.data.sources.registry import Source
from client.settings import DataAlone
from client.task.user_code import foreign
from privacy.config import read_toml
from privacy.errors import DataError
from simulations.partitions import Described

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from client.task.probe import Example
    from client.task.task import Task

_FORMS = "(inputs, targets), a data frame, a torch data set, a path to records, or one of these for each site by name"


@dataclass(frozen=True)
class Pool:
    """Records in memory, and what else is known of each."""

    inputs: Inputs  # (n, ...)
    targets: Tensor  # (n, ...)
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # (n,) each

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, chosen: NDArray[np.intp]) -> Pool:
        """Return some of the records, by their indices `(k,)`."""
        places = torch.from_numpy(np.asarray(chosen, np.int64))
        return Pool(
            rows(self.inputs, places),
            self.targets[places],
            {name: column[chosen] for name, column in self.columns.items()},
        )

    @classmethod
    def joined(cls, parts: Sequence[Pool]) -> Pool:
        """Return the records of several pools as one, with the columns that all have."""
        names = set.intersection(*(set(part.columns) for part in parts))
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in sorted(names)}
        return cls(joined([part.inputs for part in parts]), torch.cat([part.targets for part in parts]), columns)

    @property
    def records(self) -> InMemory:
        """The records as a site has them."""
        return InMemory(self.inputs, self.targets)

    @property
    def described(self) -> Described:
        """What a partition may know of them. Targets that are many numbers are divided into ten bands."""
        targets = self.targets.reshape(len(self), -1)[:, 0].numpy()
        values, labels = np.unique(targets, return_inverse=True)
        if len(values) > max(_MOST_LABELS, len(self) // 10) and np.issubdtype(targets.dtype, np.floating):
            labels = np.searchsorted(np.quantile(targets, np.arange(0.1, 1, 0.1)), targets)
        return Described(labels.astype(np.int64), self.columns)

    def shifted(self, parts: list[NDArray[np.intp]], sigma: float, seed: int) -> Pool:
        """Return records to whose inputs site i of n adds noise of variance σ·i/n; whole numbers stay as they are."""
        draw = torch.Generator().manual_seed(seed)
        scales = torch.zeros(len(self))
        for place, part in enumerate(parts, start=1):
            scales[torch.from_numpy(part)] = (sigma * place / len(parts)) ** 0.5

        def noisy(values: Tensor) -> Tensor:
            if not values.is_floating_point():
                return values
            noise = torch.randn(values.shape, generator=draw, dtype=values.dtype)
            return values + noise * scales.to(values.dtype).view(-1, *(1,) * (values.dim() - 1))

        return replace(self, inputs=mapped(noisy, self.inputs))


_MOST_LABELS = 100
_LISTED = "; `cloister data check` lists them"  # of files


class Division(Mapping[str, Pool]):
    """The records of sites, by name: parts of one pool, which is held once, however many sites there are."""

    def __init__(self, pool: Pool, parts: Mapping[str, NDArray[np.intp]]) -> None:
        self.pool, self.parts = pool, parts

    @classmethod
    def of(cls, named: Mapping[str, Pool]) -> Division:
        """Put the pools of sites together."""
        ends = np.cumsum([len(pool) for pool in named.values()])
        ranges = np.split(np.arange(ends[-1]), ends[:-1])
        return cls(Pool.joined(list(named.values())), dict(zip(named, ranges, strict=True)))

    @property
    def sizes(self) -> dict[str, int]:
        """How many records each site has."""
        return {site: len(part) for site, part in self.parts.items()}

    @property
    def whole(self) -> Pool:
        """The records of all sites."""
        return self.pool.subset(np.sort(np.concatenate(list(self.parts.values()))))

    def split(self, fraction: float, seed: int, *, least: int = 1) -> tuple[Division, Division]:
        """Take a fraction of each site's records at random, of all sites' together as exactly as possible.

        Args:
            fraction: of the records.
            seed: decides which.
            least: how many a site keeps, if it has them.

        Returns:
            What sites keep, and what was taken from them: of small sites, perhaps nothing.
        """
        draw, sizes = np.random.default_rng([seed, 1]), np.array(list(self.sizes.values()))
        counts = np.diff(np.rint(fraction * sizes.cumsum()).astype(int), prepend=0)
        kept, taken = dict[str, NDArray[np.intp]](), dict[str, NDArray[np.intp]]()
        for (site, part), count in zip(
            self.parts.items(), np.minimum(counts, np.maximum(sizes - least, 0)).tolist(), strict=True
        ):
            order = draw.permutation(part)
            taken[site], kept[site] = np.sort(order[:count]), np.sort(order[count:])
        return Division(self.pool, kept), Division(self.pool, taken)

    @override
    def __getitem__(self, site: str) -> Pool:
        return self.pool.subset(self.parts[site])

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    @override
    def __len__(self) -> int:
        return len(self.parts)


def read_pool(task: Task, name: str, example: Example, records: Any) -> Pool:  # noqa: ANN401 - whatever a user has
    """Return records as a pool, in the form that the task trains on.

    Args:
        task: reads files and data frames.
        name: its name, for messages.
        example: the records that it makes up, whose form all records have.
        records: inputs and targets as arrays or tensors, a data frame, a map-style data set, or a path.

    Raises:
        DataError: if they are anything else, or the task cannot use them.
    """
    if isinstance(records, Pool):
        return records
    columns: Mapping[str, NDArray[Any]] = {}
    path = Path("records")
    if _is_frame(records):
        columns = _known(records)
        loaded = _of_frame(task, name, records)
    elif isinstance(records, str | Path):
        path = Path(records)
        if not path.exists():
            msg = f"{path}: there is no such file or folder; check the path to the records"
            raise DataError(msg)
        loaded = _of_file(task, name, path)
        columns = _columns(path)
    elif isinstance(records, tuple | list) and len(records) == 2:  # noqa: PLR2004 - inputs and targets
        loaded = records
    elif isinstance(records, tuple | list | np.ndarray | Tensor):
        kind = f"{len(records)} things" if isinstance(records, tuple | list) else "one array"
        msg = f"records are {kind}; give two: (inputs, targets)"
        raise DataError(msg)
    elif hasattr(records, "__getitem__") and hasattr(records, "__len__") and not isinstance(records, Mapping):
        dataset: Any = records
        loaded = torch.utils.data.Subset(dataset, range(len(dataset)))
    else:
        msg = f"records are a {type(records).__name__}; give {_FORMS}"
        raise DataError(msg)
    own = check_loaded(loaded, name, example, path)
    if own.people is not None:
        raise persons_named(name)
    inputs, targets = own.records.whole()
    known = {column: values for column, values in columns.items() if len(values) == len(targets)}
    return Pool(inputs, targets, known)


def persons_named(name: str) -> DataError:
    """Return what says that a simulation cannot tell persons apart."""
    return DataError(
        f"{name} names the persons of its records, but a simulation takes each record for a person: leave `person` out "
        "of the task, or the persons out of what load() returns, and simulate with one record of each"
    )


def _is_frame(records: object) -> bool:
    return type(records).__name__ == "DataFrame" and hasattr(records, "columns")


def _of_file(task: Task, name: str, path: Path) -> Any:  # noqa: ANN401 - whatever a task returns
    source = Source(path)
    if path.suffix == ".toml":
        data = read_toml(path, DataAlone).data
        source = Source(path.parent / data.file, data.source, path.parent)
    try:
        with foreign(name, f"load() of {source.path}", DataError):
            return task.load_from(source)
    except DataError as error:
        if source.options is None and "[data]" in str(error):
            msg = f"{error}; a simulation takes a site.toml, or a file with [data] alone, as the path to the records"
            raise DataError(msg) from error
        if path.suffix.lower() != ".parquet" or "UTF-8" not in str(error):
            raise
        msg = f"{path}: the load() of {name} reads text, not Parquet; derive the task from TableTask, or give CSV"
        raise DataError(msg) from error


def _of_frame(task: Task, name: str, frame: Any) -> Any:  # noqa: ANN401 - of pandas, which is an extra
    """Have a task read a data frame: as the Parquet or CSV file that a site would have."""
    with TemporaryDirectory(prefix="cloister-") as folder:
        path = Path(folder, "records.csv")
        frame.to_csv(path, index=False)
        try:
            with foreign(name, "load() of a data frame, which it read as a CSV file", DataError):
                return task.load_from(Source(path))
        except DataError as error:
            said = str(error).replace(str(path), "the data frame, as a CSV file").replace(_LISTED, "")
            raise DataError(said) from error


def _columns(path: Path) -> dict[str, NDArray[Any]]:
    """Return the columns of a table, if pandas is there to read it: partitions may go by them."""
    try:
        import pandas as pd  # noqa: PLC0415 - an extra
    except ImportError:
        return {}
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        return {}
    try:
        frame = reader(path)
    except (ValueError, OSError, UnicodeError):  # in a dialect that only the task knows
        return {}
    return _known(frame)


def _known(frame: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401 - of pandas
    """Return the columns of a data frame; None stands for every kind of missing value."""
    columns = {str(name): column for name, column in frame.items()}
    return {
        name: (column.astype(object).where(column.notna(), None) if column.hasnans else column).to_numpy()
        for name, column in columns.items()
    }
