"""Check the claim behind all others: a record contributes only its own gradient, whatever else is in the batch.

Canaries cannot show this: their gradients are artificial. So the site's own tasks are tested on their examples and on
the site's records, as the guard tests them when an agent starts.
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

    from client.data.sources.registry import Source
    from client.settings import Computing


def check_tasks(tasks: Sequence[str], folder: Path, source: Source, device: str, computing: Computing) -> Check:
    """Test tasks on their examples and on a site's records.

    Raises:
        DataError: if a record cannot be used.
    """
    try:
        counts = [prove_all(folder, task, source, find_device(device), computing) for task in tasks]
    except TaskError as error:
        return Check("gradients", "a record's own", str(error), held=False)
    return Check("gradients", "a record's own", f"in any batch of {min(counts)} records", held=True)
