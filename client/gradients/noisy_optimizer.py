"""Opacus's optimizer, with noise from a cipher and clipped sums from one of Cloister's modes.

A logical batch, the accountant's unit, is computed in physical parts by Opacus's convention: every part but the last is
announced with `signal_skip_step`, so that sums gather in `p.summed_grad` and noise is added once.
"""

from __future__ import annotations

import logging
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from opacus.optimizers import DPOptimizer
from typing_extensions import override

from client.gradients.memory import NoMemoryLeft, running_out
from privacy.errors import TaskError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from client.data.site_records import Records
    from client.gradients.mode import GradientMode
    from privacy.noise.randomness import Randomness


log = logging.getLogger("cloister.agent")


class CipherOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus is untyped
    """Adds noise to the clipped sums that a mode has left in `p.summed_grad`, and takes the step."""

    def __init__(self, *args: Any, randomness: Randomness, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        super().__init__(*args, **kwargs)
        self._randomness = randomness
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="noise")
        self._ahead: Future[NDArray[np.float64]] | None = None

    def draw_ahead(self) -> None:
        """Start drawing the next step's noise, if that does not take a core from those that compute the gradients.

        Nobody else may draw from the randomness until the step is taken.
        """
        if self._scale > 0 and self._draws_ahead:
            self._ahead = self._thread.submit(self._draw, self._size)

    def close(self) -> None:
        """Wait for the thread, and end it."""
        self._thread.shutdown()

    @property
    def _draws_ahead(self) -> bool:
        """Whether another device computes the gradients, or torch leaves this process a core."""
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return cores > torch.get_num_threads() or any(each.device.type != "cpu" for each in self.params)

    @property
    def _scale(self) -> float:
        """σC."""
        return float(self.noise_multiplier * self.max_grad_norm)

    @property
    def _size(self) -> int:
        """The number of values of noise per step. Do not read it during a pass, which may freeze parameters."""
        return sum(parameter.numel() for parameter in self.params)

    def _draw(self, size: int) -> NDArray[np.float64]:
        drawn = self._randomness.gaussian(size)
        drawn *= self._scale
        return drawn

    def take(self, mode: GradientMode, records: Records, chosen: Tensor, physical_batch: int) -> None:
        """Take one step on the chosen records, in parts. An empty batch gets noise too.

        Args:
            mode: fills `p.summed_grad`.
            records: the records `(n, ...)`, on the model's device.
            chosen: the logical batch, `(k,)` indices of records.
            physical_batch: the number of records computed at a time, or of their augmented copies.

        Raises:
            DataError: if a record cannot be read.
            TaskError: if gradients are not those of single records; clipping would not bound a record's influence.
        """
        size = mode.at_once(physical_batch)
        for number, (inputs, targets) in enumerate(records.parts(chosen, size), start=1):
            self.signal_skip_step(number * size < len(chosen))
            self.zero_grad(set_to_none=True)
            with running_out():
                mode.fill(inputs, targets)
            self.step()

    def take_what_fits(self, mode: GradientMode, records: Records, chosen: Tensor, physical_batch: int) -> int:
        """Take one step; start it again with smaller parts if memory runs out before its gradients are computed.

        The step has the same records and the same noise. Arguments and errors are those of `take`.

        Returns:
            The number of records computed at a time.

        Raises:
            NoMemoryLeft: if there is too little memory for a single record.
        """
        dropped = mode.dropped
        while True:
            try:
                self.take(mode, records, chosen, physical_batch)
            except NoMemoryLeft:
                if mode.at_once(physical_batch) <= 1:
                    raise
            else:
                return physical_batch
            mode.dropped = dropped
            self._forget()
            physical_batch = max(1, physical_batch // 2)
            log.warning("memory ran out in a step: it starts again with %d records at a time", physical_batch)

    def _forget(self) -> None:
        """Forget the sums of a batch that was not completed, and free their memory."""
        self._check_skip_next_step()  # was announced for the part that failed
        self._is_last_step_skipped = False
        self.zero_grad(set_to_none=True)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    @override
    def clip_and_accumulate(self) -> None:
        """Check that the mode has clipped and summed the gradients of every parameter.

        Raises:
            TaskError: if a parameter has no sum.
        """
        if any(getattr(parameter, "summed_grad", None) is None for parameter in self.params):
            msg = "a trained parameter of the model has no gradient; this is a bug in Cloister, please report it"
            raise TaskError(msg)

    @override
    def pre_step(self, closure: Any = None) -> bool:
        """If the batch is complete, add noise and divide by a public number."""
        self.clip_and_accumulate()
        self._is_last_step_skipped = bool(self._check_skip_next_step())
        if self._is_last_step_skipped:
            return False
        self.add_noise()
        self.scale_grad()
        return True

    @override
    def scale_grad(self) -> None:
        """Divide by the public expected batch size, unless the reduction is the sum."""
        if self.loss_reduction == "mean":
            expected: Any = self.expected_batch_size  # optional in Opacus, always set here
            for parameter in self.params:
                parameter.grad /= expected

    @override
    def add_noise(self) -> None:
        """Set every gradient to the clipped sum plus N(0, (σC)²); the noise is drawn in double precision."""
        drawn = None
        if self._scale > 0:
            drawn, self._ahead = torch.from_numpy(self._ahead.result() if self._ahead else self._draw(self._size)), None
        start, parameters = 0, list[Any](self.params)
        for parameter in parameters:
            total: Tensor = parameter.summed_grad
            if drawn is not None:
                part = drawn[start : (start := start + parameter.numel())]
                total += part.to(device=total.device, dtype=total.dtype).view_as(total)
            parameter.grad, parameter.summed_grad = total, None
