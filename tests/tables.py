"""Records whose inputs are one tensor, as most tests have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from client.data.site_records import Records


def table(records: Records) -> tuple[Tensor, Tensor]:
    """Return inputs and targets `(n, ...)`."""
    inputs, targets = records.whole()
    assert isinstance(inputs, Tensor)
    return inputs, targets
