"""What a task's `load` returned, as a site's own records: checked, and divided into those to train on and held out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from client.data.inputs import named, tensors
from client.data.people import People, divide
from client.data.site_records import InMemory
from client.data.stored import Feed, Reader, Stored
from client.task.conversions import changes
from client.task.user_code import foreign
from privacy.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from client.data.site_records import Records
    from client.settings import Data
    from client.task.probe import Example

log = logging.getLogger("cloister.agent")

_WANTED = "return two tensors, inputs and targets, or a map-style Dataset"


@dataclass(frozen=True)
class Side:
    """The records to train on, or those held out."""

    records: Records
    numbers: NDArray[np.intp]  # (n,): of each record, from 1, in the order in which `load` returned them


@dataclass(frozen=True)
class OwnRecords:
    """All of a site's records, with the persons whom they are about, if `load` named them."""

    records: Records
    people: People | None = None
    notices: tuple[str, ...] = ()  # what was changed of what `load` returned

    def divided(self, data: Data, device: torch.device) -> tuple[Side, Side]:
        """Return the records to train on and those held out, to be read to a device.

        Of each named person, at most `records_per_person` records are used.
        """
        sides = divide(len(self.records), data.held_out, self.people, data.records_per_person)
        if unused := len(self.records) - sum(len(side) for side in sides):
            log.warning(
                "%d of %d records are left out: records_per_person = %d in [data] of site.toml, and only the first "
                "records of each person are used. With a larger number more are used, and every ε is larger",
                unused, len(self.records), data.records_per_person,
            )  # fmt: skip
        used, kept = (
            Side(self.records.subset(torch.from_numpy(side)).to(device), np.asarray(side + 1)) for side in sides
        )
        return used, kept


def check_loaded(loaded: Any, name: str, example: Example, path: Path, data: Data | None = None) -> OwnRecords:  # noqa: ANN401 - whatever a task returns
    """Check what a task's `load` returned: records of the example's form, at least one; those in memory are finite.

    Args:
        loaded: what `load` returned.
        name: the task's name.
        example: the records that the task makes up.
        path: the file of records.
        data: the site's settings for reading; None reads in this process.

    Raises:
        DataError: if it is anything else.
    """
    notices: tuple[str, ...] = ()
    parts = list[Any](loaded) if isinstance(loaded, tuple | list) else [loaded]
    if parts and isinstance(parts[0], Dataset) and len(parts) <= 2:  # noqa: PLR2004 - a data set and persons
        stored = _stored(parts[0], name, example, path, data)
        records: Records = stored
        persons, notices = parts[1:], _converted(stored.feed.reader.changes())
    elif len(parts) in {2, 3}:
        in_memory = _in_memory(parts[0], parts[1], example, path)
        said = changes((parts[0], parts[1]), (in_memory.inputs, in_memory.targets))
        records, persons, notices = in_memory, parts[2:], _converted(said)
    else:
        kind = f"{len(parts)} things" if isinstance(loaded, tuple | list) else f"a {type(loaded).__name__}"
        msg = f"{path}: the load() of {name} returns {kind}; {_WANTED}"
        raise DataError(msg)
    for notice in notices:
        log.info("%s: %s", path, notice)
    return OwnRecords(records, people(persons[0], len(records), name, path) if persons else None, notices)


def people(value: object, count: int, name: str, path: Path) -> People:
    """Return the persons that `load` returned after the records.

    Raises:
        DataError: if there is not one whole number or text for each of `count` records.
    """
    persons = People.named(value)
    if persons is None:
        msg = (
            f"{path}: what the load() of {name} returns after the records does not name persons; return one whole "
            "number or text for each record, or only the records"
        )
        raise DataError(msg)
    if len(persons.of) != count:
        msg = f"{path}: the load() of {name} names {len(persons.of)} persons for {count} records; name one for each"
        raise DataError(msg)
    return persons


def _in_memory(inputs: object, targets: object, example: Example, path: Path) -> InMemory:
    if _counts(inputs) == [0] or _counts(targets) == [0]:
        msg = f"{path}: the task read no records in it; name one with records, or correct load()"
        raise DataError(msg)
    records = InMemory(*example.check(inputs, targets, path))
    parts = tensors(records.inputs)
    sizes, count = sorted({len(part) for part in parts}), len(records.targets)
    if sizes != [count]:
        msg = (
            f"{path}: the task read {' and '.join(map(str, sizes))} inputs and {count} targets; it must return the "
            "same number of both"
        )
        raise DataError(msg)
    for label, part in (*named(records.inputs).items(), ("target", records.targets)):
        if (place := _not_finite(label, part)) is not None:
            msg = f"{path}: {place}, as the task read it, is not finite; correct the record, or the task's scaling"
            raise DataError(msg)
    return records


def _counts(part: Any) -> list[int]:  # noqa: ANN401 - whatever a task returns
    """Return how many records tensors, arrays or lists have; different numbers once."""
    several = part.values() if isinstance(part, Mapping) else part if isinstance(part, tuple) else [part]
    counts = set[int]()
    for each in several:
        if shape := getattr(each, "shape", None):
            counts.add(shape[0])
        elif shape is None and hasattr(each, "__len__"):
            counts.add(len(each))
    return sorted(counts)


def _converted(said: list[str]) -> tuple[str, ...]:
    """Return a sentence if numbers were converted."""
    return (f"load() returns other types of numbers than example(); converted: {', '.join(said)}",) if said else ()


def _not_finite(label: str, part: Tensor) -> str | None:
    """Return the place of the first number that is not finite."""
    odd = torch.isfinite(part).logical_not().nonzero()
    if not len(odd):
        return None
    row, *column = (int(position) + 1 for position in odd[0])
    label = "input" if label == "inputs" else label
    numbers = ", ".join(map(str, column))
    if not column:
        return f"the {label} of record {row}"
    return f"{label} {numbers} of record {row}" if " " not in label else f"value {numbers} of {label} of record {row}"


def _stored(dataset: Dataset[Any], name: str, example: Example, path: Path, data: Data | None) -> Stored:
    if not hasattr(dataset, "__len__"):
        msg = f"{path}: the load() of {name} returns a data set without a length; return one with len() and indices"
        raise DataError(msg)
    sized: Any = dataset
    with foreign(name, f"len() of the data set in {path}", DataError):
        count = len(sized)
    if count == 0:
        msg = f"{path}: the task's data set has no records; name a file with records, or correct load()"
        raise DataError(msg)
    workers, pinned = (data.loader_workers, data.pinned_memory) if data else (0, False)
    feed = Feed(Reader(dataset, example, name, path), workers, pinned=pinned and torch.cuda.is_available())
    return Stored(feed, torch.arange(count), torch.device("cpu"))
