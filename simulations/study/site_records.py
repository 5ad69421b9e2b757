"""Read the records of a simulation, divide them among its sites, and hold some of each site's out to test on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from client.data.fitness import Fitness
from client.task.probe import make_model
from privacy.errors import ConfigError
from simulations.partitions import FeatureShift, Iid, divide, read_partition, usual_sites
from simulations.pools import Division, Pool, read_pool
from simulations.study.run_settings import checked_names, named_sites

if TYPE_CHECKING:
    from collections.abc import Sequence

    from client.task.probe import Example
    from client.task.task import Task
    from simulations.partitions import Partition

_WANTED = "give (inputs, targets) to have them divided"


@dataclass(frozen=True)
class Dealt:
    """The records of a simulation."""

    training: Division
    test: Pool  # no site trains on them
    held_out: Division | None  # those to test on by their sites; None if it was not said whose they are


def deal(
    reader: Reader,
    records: Any,  # noqa: ANN401 - see `read_pool`; or a mapping by site
    test: Any,  # noqa: ANN401 - a fraction, or records; or a mapping by site
    *,
    sites: int | None,
    known: Sequence[str],
    partition: str | Partition,
    seed: int,
) -> Dealt:
    """Read records and divide them.

    Args:
        reader: reads them.
        records: of all sites together, or of each by its name.
        test: records to test on, likewise; or the fraction of each site's that is held out for it.
        sites: how many, if the records do not name them.
        known: names of sites, taken if they are as many.
        partition: divides records of all sites together.
        seed: decides who has which, and which are held out.

    Raises:
        ConfigError: if they cannot be divided so.
        DataError: if the task cannot use them.
    """
    if isinstance(test, int | float) and not 0 < test < 1:
        msg = f"test = {test:g} must be between 0 and 1: the fraction of records on which models are measured"
        raise ConfigError(msg)
    chosen = read_partition(partition)
    if isinstance(records, Mapping):
        given = "partition" if chosen != Iid() else "" if sites in {None, len(records)} else f"sites = {sites}"
        if given:
            msg = f"the records are a mapping, of {len(records)} sites by name; leave {given} out, or {_WANTED}"
            raise ConfigError(msg)
        everything = reader.named(records, "the records of")
    else:
        everything = _divided(reader.read(records), sites or len(known), known, chosen, seed)
    if isinstance(test, int | float):
        training, held_out = everything.split(test, seed)
        if not any(held_out.sizes.values()):
            count = len(everything.whole)
            msg = f"{count} records of {len(everything)} sites are too few to test on; add some, or give test records"
            raise ConfigError(msg)
        return Dealt(training, held_out.whole, held_out)
    if not isinstance(test, Mapping):
        return Dealt(everything, reader.read(test, "the test records"), None)
    if unknown := [str(site) for site in test if site not in everything.parts]:
        msg = f"the test records name {unknown[0]!a}, which is no site of this simulation"
        raise ConfigError(msg)
    held_out = reader.named(test, "the test records of")
    return Dealt(everything, held_out.whole, held_out)


def _divided(pool: Pool, sites: int, known: Sequence[str], partition: Partition, seed: int) -> Division:
    described = pool.described
    count = sites or usual_sites(partition, described)
    names = known if len(known) == count else named_sites(count)
    parts = divide(partition, described, count, seed)
    if isinstance(partition, FeatureShift):
        pool = pool.shifted(parts, partition.sigma, seed)
    return Division(pool, dict(zip(names, parts, strict=True)))


@dataclass(frozen=True)
class Reader:
    """Reads records as a task has them, and tries its loss on each."""

    task: Task
    name: str
    example: Example

    def read(self, records: Any, whose: str = "the records") -> Pool:  # noqa: ANN401 - see `read_pool`
        """Return records as a pool.

        Raises:
            DataError: if the task cannot use them.
        """
        pool = read_pool(self.task, self.name, self.example, records)
        path = Path(records) if isinstance(records, str | Path) else Path(whose)
        with torch.random.fork_rng(devices=[]):
            module = make_model(self.task, 0)
        Fitness(self.task, self.name, module, quoting=True).check(pool.records, range(1, len(pool) + 1), path)
        return pool

    def named(self, records: Mapping[str, Any], whose: str) -> Division:
        """Return the records of sites, each given by its name.

        Raises:
            ConfigError: if there are none, or a name cannot be a site's.
            DataError: if the task cannot use them.
        """
        if isinstance(records, Division):
            return records
        if not records:
            msg = f"{whose} no site are given: name at least one, with its records"
            raise ConfigError(msg)
        checked_names(list(records))
        return Division.of({site: self.read(own, f"{whose} {site}") for site, own in records.items()})
