"""The claim under all others: what a record adds to an update is its own gradient, whoever else is in the batch.

Canaries cannot show it: they have gradients of their own making. So the site's own tasks are tried, as the guard tries
them when an agent starts, on what they make up and on the site's records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.context import find_device
from client.task.proving import prove_all
from cloister.audit.checks import Check
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from client.settings import Computing


def check_tasks(tasks: Sequence[str], folder: Path, file: Path, device: str, computing: Computing) -> Check:
    """Try tasks on their examples and on the records in a file.

    Raises:
        DataError: if a record cannot be used.
    """
    try:
        counts = [prove_all(folder, task, file, find_device(device), computing) for task in tasks]
    except TaskError as error:
        return Check("gradients", "a record's own", str(error), held=False)
    return Check("gradients", "a record's own", f"in any batch of {min(counts)} records", held=True)
