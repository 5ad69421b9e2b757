"""The optimizer for processes that train together, by Opacus's convention for distributed training.

Each process has the clipped sum of its own records. The first process adds the noise of the whole batch; the others
have a noise multiplier of zero. Then gradients are summed, and all processes take the same step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opacus.optimizers import DistributedDPOptimizer
from typing_extensions import override

from client.gradients.noisy_optimizer import CipherOptimizer

if TYPE_CHECKING:
    from client.dpsgd.process_group import ProcessGroup


class DistributedOptimizer(CipherOptimizer, DistributedDPOptimizer):  # type: ignore[misc]  # opacus is untyped
    """Clips and adds noise as `CipherOptimizer` does; sums over the group as Opacus's distributed optimizer does."""

    def __init__(self, *args: Any, group: ProcessGroup, expected_batch_size: float, **kwargs: Any) -> None:  # noqa: ANN401
        # Opacus expects one process's share of the batch, and takes the mean over processes.
        super().__init__(*args, expected_batch_size=expected_batch_size / group.size, **kwargs)
        self._group = group

    @override
    def reduce_gradients(self) -> None:
        """Sum over all processes, once all have reached this point."""
        self._group.meet()
        with self._group.talking():
            super().reduce_gradients()
