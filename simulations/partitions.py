"""Ways to divide records among simulated sites: equal, or different as real sites are.

Surveys of such partitions: Hsu, Qi and Brown 2019 (arXiv 1909.06335) and Li et al. 2022 (arXiv 2102.02079, NIID-Bench).
Every record is at exactly one site. With the same version of NumPy, the same seed gives the same parts.
"""

from __future__ import annotations

import copy
import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from privacy.config import did_you_mean
from privacy.errors import ConfigError
from simulations.tasks.partition import dealt_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

_LEAST = 1  # records at a site
_USUAL = 10  # sites


@dataclass(frozen=True)
class Described:
    """What a partition may know of the records."""

    labels: NDArray[np.int64]  # (n,): the place of each record's target among the different ones
    columns: Mapping[str, NDArray[Any]]  # (n,) each: what else is known of records, by name; None where it is not


@runtime_checkable
class Partition(Protocol):
    """Divides records among sites."""

    def split(self, records: Described, sites: int, seed: int) -> list[NDArray[np.intp]]:
        """Return the indices of each site's records.

        Raises:
            ConfigError: if the records cannot be divided so.
        """
        ...


@runtime_checkable
class _OwnCount(Protocol):
    """A partition that makes so many parts as the records, or its own settings, say."""

    def sites(self, records: Described) -> int: ...


def usual_sites(partition: Partition, records: Described) -> int:
    """Return into how many parts a partition divides records, if nobody says.

    Raises:
        ConfigError: if the records cannot be divided so.
    """
    return partition.sites(records) if isinstance(partition, _OwnCount) else _USUAL


@dataclass(frozen=True)
class Iid:
    """Each site's records are a random sample of all; sizes differ by at most one."""

    def split(self, records: Described, sites: int, seed: int) -> list[NDArray[np.intp]]:
        """Return the indices of each site's records.

        >>> [len(part) for part in Iid().split(Described(np.zeros(7, int), {}), 3, 0)]
        [3, 2, 2]
        """
        return np.array_split(np.random.default_rng(seed).permutation(len(records.labels)), sites)


@dataclass(frozen=True)
class Dirichlet:
    """Each label's records are divided by shares from Dirichlet(α): the smaller α is, the more sites differ.

    A site that would have no record gets one of the largest site's.
    """

    alpha: float = 0.5

    def split(self, records: Described, sites: int, seed: int) -> list[NDArray[np.intp]]:
        """Return the indices of each site's records."""
        if self.alpha <= 0:
            msg = f"dirichlet:{self.alpha:g}: α must be above 0; 100 is nearly equal, 0.1 very different"
            raise ConfigError(msg)
        parts = dealt_once(records.labels, sites, self.alpha, np.random.default_rng(seed))
        sizes = np.array([len(part) for part in parts])
        for site in np.flatnonzero(sizes < _LEAST):
            largest = int(sizes.argmax())
            parts[site], parts[largest] = parts[largest][:_LEAST], parts[largest][_LEAST:]
            sizes[site], sizes[largest] = _LEAST, sizes[largest] - _LEAST
        return parts


@dataclass(frozen=True)
class Shards:
    """Records sorted by label are cut into shards; each site gets some (McMahan et al., 2017, arXiv 1602.05629)."""

    per_site: int = 2

    def split(self, records: Described, sites: int, seed: int) -> list[NDArray[np.intp]]:
        """Return the indices of each site's records."""
        if self.per_site < 1:
            msg = f"shards:{self.per_site}: a site needs at least one shard"
            raise ConfigError(msg)
        draw = np.random.default_rng(seed)
        mixed = draw.permutation(len(records.labels))
        shards = np.array_split(mixed[np.argsort(records.labels[mixed], kind="stable")], sites * self.per_site)
        dealt = draw.permutation(len(shards)).reshape(sites, self.per_site)
        return [draw.permutation(np.concatenate([shards[shard] for shard in own])) for own in dealt]


@dataclass(frozen=True)
class ByColumn:
    """Each value of a column is a site, as the hospital that a patient was in. The column may also be `label`."""

    column: str

    def split(self, records: Described, sites: int, seed: int) -> list[NDArray[np.intp]]:
        """Return the indices of each site's records."""
        del seed
        places = self._places(records)
        if (count := self.sites(records)) != sites:
            msg = f"by_column:{self.column}: this column has {count} values; set sites = {count}, or leave it out"
            raise ConfigError(msg)
        return [np.flatnonzero(places == place) for place in range(sites)]

    def sites(self, records: Described) -> int:
        """Return how many values there are."""
        return int(self._places(records).max()) + 1

    def _places(self, records: Described) -> NDArray[np.intp]:
        """Return the place of each record's value among the different ones, in ascending order.

        Raises:
            ConfigError: if there is no such column, or a record has no value there.
        """
        columns = {"label": records.labels, **records.columns}
        if self.column not in columns:
            hint = did_you_mean(self.column, columns) or f"columns are {', '.join(columns)}"
            msg = f"by_column:{self.column}: the records have no such column; {hint}"
            raise ConfigError(msg)
        values = columns[self.column]
        if missing := sum(value is None for value in values.tolist()):
            msg = f"by_column:{self.column}: {missing:,} records have no value there; fill it in, or leave them out"
            raise ConfigError(msg)
        if values.dtype == object:  # perhaps numbers and texts, which have no order
            values = values.astype(str)
        return np.unique(values, return_inverse=True)[1]


@dataclass(frozen=True)
class QuantitySkew:
    """Sites' sizes are drawn from Dirichlet(α); which records a site has is random."""

    alpha: float = 0.5

    def split(self, records: Described, sites: int, seed: int) -> list[NDArray[np.intp]]:
        """Return the indices of each site's records."""
        count = len(records.labels)
        if self.alpha <= 0:
            msg = f"quantity_skew:{self.alpha:g}: α must be above 0; 100 is nearly equal, 0.1 very different"
            raise ConfigError(msg)
        draw = np.random.default_rng(seed)
        ends = np.cumsum(draw.dirichlet(np.full(sites, self.alpha)))[:-1] * (count - _LEAST * sites)
        cuts = ends.astype(int) + _LEAST * np.arange(1, sites)
        return np.split(draw.permutation(count), cuts)


@dataclass(frozen=True)
class FeatureShift:
    """Records are random samples, but each site measures differently: site i of n adds noise of variance σ·i/n.

    That is the "noise-based feature imbalance" of NIID-Bench. Inputs that are whole numbers stay as they are.
    """

    sigma: float = 0.1

    def split(self, records: Described, sites: int, seed: int) -> list[NDArray[np.intp]]:
        """Return the indices of each site's records."""
        if self.sigma <= 0:
            msg = f"feature_shift:{self.sigma:g}: σ must be above 0"
            raise ConfigError(msg)
        return Iid().split(records, sites, seed)


_PLACE = "place in the pool"


@dataclass(frozen=True)
class FlowerPartition:
    """Any partitioner of flwr-datasets; it may partition by `label` or by one of the records' columns."""

    partitioner: Any  # a flwr_datasets.partitioner.Partitioner

    def split(self, records: Described, sites: int, seed: int) -> list[NDArray[np.intp]]:
        """Return the indices of each site's records."""
        del seed  # the partitioner has its own
        with self._given(records) as partitioner:
            count = partitioner.num_partitions
            if count == sites:
                return [np.asarray(partitioner.load_partition(site)[_PLACE], np.intp) for site in range(sites)]
        msg = f"{type(self.partitioner).__name__} makes {count} parts; set sites = {count}, or leave it out"
        raise ConfigError(msg)

    def sites(self, records: Described) -> int:
        """Return how many parts the partitioner makes."""
        with self._given(records) as partitioner:
            return int(partitioner.num_partitions)

    @contextmanager
    def _given(self, records: Described) -> Iterator[Any]:
        """Give these records to a copy of the partitioner, which takes records only once."""
        from datasets import Dataset  # noqa: PLC0415 - an extra

        if type(self.partitioner).__name__.startswith("Vertical"):
            msg = f"{type(self.partitioner).__name__} divides columns, and sites have whole records; name another"
            raise ConfigError(msg)
        columns = {"label": records.labels, **records.columns, _PLACE: np.arange(len(records.labels))}
        try:
            with warnings.catch_warnings():  # about functions that flwr-datasets and its libraries will lose
                warnings.simplefilter("ignore", FutureWarning)
                partitioner = copy.deepcopy(self.partitioner)
                partitioner.dataset = Dataset.from_dict({name: list(values) for name, values in columns.items()})
                yield partitioner
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            msg = f"{type(self.partitioner).__name__} cannot divide these records: {error}"
            raise ConfigError(msg) from error


_NAMED: dict[str, Callable[[str], Partition]] = {
    "iid": lambda _: Iid(),
    "dirichlet": lambda text: Dirichlet(_number(text or "0.5")),
    "shards": lambda text: Shards(int(text or 2)),
    "by_column": ByColumn,
    "quantity_skew": lambda text: QuantitySkew(_number(text or "0.5")),
    "feature_shift": lambda text: FeatureShift(_number(text or "0.1")),
}


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def read_partition(text: object) -> Partition:
    """Return the partition that a text names: `iid`, `dirichlet:0.3`, `shards:2`, `by_column:ward`; or one as it is.

    Raises:
        ConfigError: if it names none.

    >>> read_partition("dirichlet:0.3")
    Dirichlet(alpha=0.3)
    """
    if not isinstance(text, str):
        if isinstance(text, Partition):
            return text
        wrap = "; wrap it: FlowerPartition(…)" if hasattr(text, "load_partition") else ""
        msg = f"partition is a {type(text).__name__}{wrap or '; write for example iid or dirichlet:0.3'}"
        raise ConfigError(msg)
    name, colon, rest = text.partition(":")
    if name == "iid" and colon:
        msg = f"{text!a}: random samples have no number; write iid"
        raise ConfigError(msg)
    if name not in _NAMED:
        hint = did_you_mean(name, _NAMED) or f"partitions are {', '.join(_NAMED)}"
        msg = f"{text!a} is not a partition; {hint}"
        raise ConfigError(msg)
    try:
        return _NAMED[name](rest)
    except ValueError as error:
        msg = f"{text!a}: {rest!a} is not a number; write for example dirichlet:0.3 or shards:2"
        raise ConfigError(msg) from error


def divide(partition: Partition, records: Described, sites: int, seed: int) -> list[NDArray[np.intp]]:
    """Divide records, and check that every site has some.

    Raises:
        ConfigError: if a site has none, or the partition cannot divide them so.
    """
    count = len(records.labels)
    if sites > count:
        msg = f"{count} records cannot be divided among {sites} sites; name fewer sites"
        raise ConfigError(msg)
    parts = partition.split(records, sites, seed)
    if empty := sum(not len(part) for part in parts):
        msg = f"{partition} leaves {empty} of {sites} sites without records; name fewer sites, or another partition"
        raise ConfigError(msg)
    return parts
