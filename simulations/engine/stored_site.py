"""A site that reads its records as tensors from a file in its folder, whatever form they came in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from typing_extensions import override

from client.data.inputs import mapped, named
from client.data.own_records import OwnRecords
from client.data.site_records import InMemory
from client.site import Site

if TYPE_CHECKING:
    from pathlib import Path

    from client.task.probe import Example
    from client.task.task import Task
    from simulations.pools import Pool

RECORDS = "records.safetensors"
"""What such a site's file is called."""

_TARGETS = "targets"  # beside the inputs by name


class StoredSite(Site):
    """A site whose file `write_records` has written."""

    @override
    def load(self, task: Task, name: str, example: Example) -> OwnRecords:
        return OwnRecords(read_records(self.records_path, example))


def write_records(pool: Pool, path: Path) -> None:
    """Write a site's records."""
    tensors = {**named(pool.inputs), _TARGETS: pool.targets}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def read_records(path: Path, example: Example) -> InMemory:
    """Return the records that `write_records` wrote, mapped into memory that processes share, in an example's form."""
    stored = load_file(path)
    parts = iter([stored[name] for name in named(example.inputs)])
    return InMemory(mapped(lambda _: next(parts), example.inputs), stored[_TARGETS])
